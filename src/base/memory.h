/* Memory: the host's allocator, counted, and arenas.
 *
 * An arena is laid out twice by the same code: first dry (no block, only a size), then in a block of exactly that
 * size. So a plan is the sum of dry arenas and cannot disagree with what loading takes. */
#ifndef FL_MEMORY_H
#define FL_MEMORY_H

#include "base/error.h"

typedef struct fl_memory {
    folollm_host host;   /* every hook set */
    uint64_t live, peak; /* bytes; peak since it was last set to live */
} fl_memory;

/* Takes the hooks of *host, or the C library's allocator where there is none. */
FL_LOCAL void fl_memory_init(fl_memory *m, const folollm_host *host);

/* Whether memory is the C library's: of a host's own we know nothing. */
FL_LOCAL bool fl_memory_is_default(const fl_memory *m);

/* n bytes, zeroed (fl_alloc_raw: as they are); NULL if there are none, or if n is 0. */
FL_LOCAL void *fl_alloc(fl_memory *m, size_t n);
FL_LOCAL void *fl_alloc_raw(fl_memory *m, size_t n);

/* NULL is allowed; n is what was asked for. */
FL_LOCAL void fl_free(fl_memory *m, void *p, size_t n);

/* A block that grows: *p has room for *capacity elements and gets room for n. False if there is no memory. */
FL_LOCAL bool fl_grow(fl_memory *m, void **p, size_t *capacity, size_t n, size_t element_bytes);

FL_LOCAL folollm_status fl_no_memory(folollm_error *error, const char *what, size_t n_bytes);

typedef struct fl_arena {
    uint8_t *base; /* NULL: dry, only counts */
    size_t size, at;
    bool overflow; /* a size passed SIZE_MAX; then every take returns NULL */
    bool raw;      /* leave the block as the allocator gave it: what is never read unwritten need not be touched */
    void *block;   /* what was allocated; base is this, aligned */
} fl_arena;

/* Room for n elements, zeroed, at a multiple of FL_ALIGN. NULL while dry: callers lay out first and write later. */
FL_LOCAL void *fl_take(fl_arena *a, size_t n, size_t element_bytes);

/* After a dry run: allocate what was counted and start again. bytes: what the host is asked for. */
FL_LOCAL folollm_status fl_arena_open(fl_memory *m, fl_arena *a, const char *what, folollm_error *error);
FL_LOCAL size_t fl_arena_bytes(const fl_arena *a);
FL_LOCAL void fl_arena_close(fl_memory *m, fl_arena *a);

#endif
