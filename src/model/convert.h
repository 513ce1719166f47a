/* Matrices of a checkpoint as another type: read in pieces, turned by all threads, written where they will stay. */
#ifndef FL_CONVERT_H
#define FL_CONVERT_H

#include "base/pool.h"
#include "model/adapter.h"
#include "model/quantised.h"
#include "ops/kernels.h"

typedef struct fl_converter {
    fl_pool *pool;
    const fl_kernels *kernels;
    fl_arena arena;   /* of raw and slots */
    uint8_t *raw;     /* some rows as the file has them, or all tensors of a quantised matrix */
    uint8_t *slots;   /* (n_threads, slot_bytes) */
    size_t raw_bytes, slot_bytes;
} fl_converter;

/* Rows of at most n_cols, as plain or packed types; quantised matrices of at most quantised_bytes. */
FL_LOCAL folollm_status fl_converter_open(fl_memory *m, fl_converter *c, size_t n_cols, size_t quantised_bytes,
                                          uint32_t n_threads, folollm_error *error);
FL_LOCAL void fl_converter_close(fl_memory *m, fl_converter *c);

/* What a converter holds while it is open. */
FL_LOCAL uint64_t fl_converter_bytes(size_t n_cols, size_t quantised_bytes, uint32_t n_threads);

/* Where a file has the rows of a matrix. head_dim 0: one after the other. Otherwise the rows of a head lie as they do
 * where neighbours are rotated with each other, 0, head_dim / 2, 1, head_dim / 2 + 1, ...; here i and i + head_dim / 2
 * are, and rows come out as 0, 1, 2, ... */
typedef struct fl_rows_in_file {
    fl_file *file;
    uint64_t offset;
    size_t row_bytes, head_dim;
} fl_rows_in_file;

FL_LOCAL folollm_status fl_read_rows(const fl_rows_in_file *rows, size_t first, size_t n_rows, void *out,
                                     folollm_error *error);

/* What is added to a matrix before it becomes what it will be. */
typedef struct fl_merged {
    const fl_adapter *adapters;
    size_t n;     /* 0: nothing */
    size_t index; /* of their low_ranks */
} fl_merged;

/* How rows are laid down: packed, or one after the other as in a file, n_cols being whole blocks; there head_dim says
 * the opposite of what it does above. */
typedef struct fl_rows_out {
    bool pack;
    size_t head_dim;
} fl_rows_out;

/* (n_rows, n_cols) of a plain type, or rows of blocks -> all of them as `to` at out. Blocks of the type they already
 * have keep their bits, and to their computed type they are moved (blocks.h), unless something is added. */
FL_LOCAL folollm_status fl_convert(fl_converter *c, const fl_rows_in_file *rows, fl_dtype from, size_t n_rows,
                                   size_t n_cols, const fl_merged *merged, fl_dtype to, fl_rows_out how, void *out,
                                   folollm_error *error);

/* The same of a quantised matrix that was read to c->raw; exact: its own integers, as the type that holds them. */
FL_LOCAL void fl_convert_quantised(fl_converter *c, const fl_quantised *q, bool exact, const fl_merged *merged,
                                   fl_dtype to, fl_rows_out how, void *out);

#endif
