/* The adapters that an engine holds, for its sequences to have. */
#ifndef FL_ADAPTERS_H
#define FL_ADAPTERS_H

#include "model/adapter.h"

#define FL_ADAPTERS_MAX 1024u /* a folollm_adapter is generation * FL_ADAPTERS_MAX + slot */

typedef struct fl_adapters {
    uint32_t n_slots;
    uint64_t last_serial;
    fl_adapter *slots;     /* (n_slots) serial 0: free */
    uint32_t *generations; /* (n_slots) of the last handle, above 0 once there was one */
} fl_adapters;

FL_LOCAL void fl_adapters_layout(fl_adapters *all, fl_arena *arena, uint32_t n_slots);

/* See folollm_adapter_load. */
FL_LOCAL folollm_status fl_adapters_load(fl_memory *m, fl_adapters *all, const fl_config *c, const char *directory,
                                         float scale, uint32_t max_rank, folollm_adapter *out, folollm_error *error);

/* The adapter of a handle, NULL for 0. One that was freed, or never was, is FOLOLLM_E_ARGUMENT. */
FL_LOCAL folollm_status fl_adapters_find(const fl_adapters *all, folollm_adapter handle, fl_adapter **out,
                                         folollm_error *error);

/* The one with this fingerprint, or NULL. */
FL_LOCAL const fl_adapter *fl_adapters_with(const fl_adapters *all, uint64_t fingerprint);

FL_LOCAL void fl_adapters_close(fl_memory *m, fl_adapters *all);

#endif
