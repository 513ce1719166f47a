/* GGUF, version 3, written front to back, as gguf.h says how it lies. How many entries and tensors there are stands at
 * the beginning, so everything before the data is put twice by the same code, the first time only to be counted:
 *
 *     open | entries, tensors | begin | entries, tensors | fill | bytes, fill, bytes, fill, ... | finish | close
 *
 * What is put goes through a piece of memory to the host's function, which is not called again once it failed. */
#ifndef FL_GGUF_WRITE_H
#define FL_GGUF_WRITE_H

#include "formats/gguf.h"

typedef struct fl_gguf_out {
    fl_memory *memory;
    int (*write)(void *user, const void *bytes, size_t n_bytes); /* 0, or why not */
    void *user;
    folollm_error *error;
    bool begun;                     /* else what is put is only counted */
    uint64_t n_entries, n_tensors;
    uint64_t n_written;             /* to the piece */
    uint64_t n_data;                /* announced so far, each tensor filled up */
    uint8_t *piece;
    size_t n_piece;
} fl_gguf_out;

FL_LOCAL folollm_status fl_gguf_out_open(fl_gguf_out *o);
FL_LOCAL folollm_status fl_gguf_out_begin(fl_gguf_out *o);
FL_LOCAL folollm_status fl_gguf_out_finish(fl_gguf_out *o);
FL_LOCAL void fl_gguf_out_close(fl_gguf_out *o);

/* ---- Entries -- */

FL_LOCAL folollm_status fl_gguf_out_u32(fl_gguf_out *o, const char *key, uint32_t value);
FL_LOCAL folollm_status fl_gguf_out_f32(fl_gguf_out *o, const char *key, double value); /* rounded */
FL_LOCAL folollm_status fl_gguf_out_bool(fl_gguf_out *o, const char *key, bool value);
FL_LOCAL folollm_status fl_gguf_out_string(fl_gguf_out *o, const char *key, fl_str value);

/* An array of n values, which are put after it, each by one of the functions below. */
FL_LOCAL folollm_status fl_gguf_out_array(fl_gguf_out *o, const char *key, fl_gguf_type of, uint64_t n);
FL_LOCAL folollm_status fl_gguf_out_text(fl_gguf_out *o, fl_str value);
FL_LOCAL folollm_status fl_gguf_out_number(fl_gguf_out *o, uint64_t bits, size_t n_bytes);

/* Entry i of a file, as it stands there. */
FL_LOCAL folollm_status fl_gguf_out_entry(fl_gguf_out *o, const fl_gguf *g, size_t i);

/* ---- Tensors: n_cols 0, one dimension; rows are whole blocks -- */

FL_LOCAL folollm_status fl_gguf_out_tensor(fl_gguf_out *o, const char *name, fl_dtype type, uint64_t n_rows,
                                           uint64_t n_cols);

/* ---- The data, in the order in which tensors were announced -- */

FL_LOCAL folollm_status fl_gguf_out_bytes(fl_gguf_out *o, const void *bytes, size_t n_bytes);
FL_LOCAL folollm_status fl_gguf_out_fill(fl_gguf_out *o); /* before the first tensor, and after each */

#endif
