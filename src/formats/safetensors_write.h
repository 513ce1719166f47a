/* safetensors, written: first every tensor is announced, then the header goes out, then the data in the same order. */
#ifndef FL_SAFETENSORS_WRITE_H
#define FL_SAFETENSORS_WRITE_H

#include "base/memory.h"

typedef struct fl_tensors_out {
    fl_memory *memory;
    int (*write)(void *user, const void *bytes, size_t n_bytes); /* 0, or why not */
    void *user;
    char *header; /* (n_header) */
    size_t n_header, capacity;
    uint64_t n_data; /* announced so far */
} fl_tensors_out;

/* name: without anything that JSON would escape. n_cols 0: one dimension. */
FL_LOCAL folollm_status fl_tensors_out_announce(fl_tensors_out *o, const char *name, const char *dtype, uint64_t n_rows,
                                                uint64_t n_cols, uint64_t n_bytes, folollm_error *error);

/* The data then begins at a multiple of FL_ALIGN. */
FL_LOCAL folollm_status fl_tensors_out_header(fl_tensors_out *o, folollm_error *error);
FL_LOCAL folollm_status fl_tensors_out_data(fl_tensors_out *o, const void *bytes, size_t n_bytes, folollm_error *error);
FL_LOCAL void fl_tensors_out_close(fl_tensors_out *o);

#endif
