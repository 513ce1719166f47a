/* Matrices of a checkpoint as another type: read in pieces, turned over by all threads, written where they will stay. */
#ifndef FL_CONVERT_H
#define FL_CONVERT_H

#include "base/pool.h"
#include "ops/packed.h"

typedef struct fl_converter {
    fl_pool *pool;
    fl_arena arena;   /* of raw and slots */
    uint8_t *raw;     /* some rows as the file has them */
    uint8_t *slots;   /* (n_slots, slot_bytes) */
    size_t raw_bytes, slot_bytes;
    uint32_t n_slots;
} fl_converter;

/* Rows of at most n_cols, as plain or packed types. */
FL_LOCAL folollm_status fl_converter_open(fl_memory *m, fl_converter *c, size_t n_cols, uint32_t n_threads,
                                          folollm_error *error);
FL_LOCAL void fl_converter_close(fl_memory *m, fl_converter *c);

/* What a converter holds while it is open. */
FL_LOCAL uint64_t fl_converter_bytes(size_t n_cols, uint32_t n_threads);

/* (n_rows, n_cols) of a plain type, or rows of blocks, at an offset of a file -> fl_matrix_bytes of `to` at out. Blocks
 * of the type they already have keep their bits. */
FL_LOCAL folollm_status fl_convert(fl_converter *c, fl_file *file, uint64_t offset, fl_dtype from, size_t n_rows,
                                   size_t n_cols, fl_dtype to, void *out, folollm_error *error);

#endif
