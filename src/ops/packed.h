/* Packed weights: how matrices of integers lie in memory, for products with rows of integers.
 *
 * A matrix is cut into panels of 32 rows, filled up with zeros, and a panel into chunks of 256 columns (the last may be
 * shorter), each first of the upper 16 rows, then of the lower 16: a product of one row reads all of it in the order in
 * which it lies. A chunk is made of units of 32 columns. A step of a product takes four columns of 16 rows, which are
 * the 64 bytes of one vector:
 *
 *     quad:    [row][4 columns]                                        lane r of a vector of sums belongs to row r
 *     q8       f16 scales[unit][row], quads[unit][8]                   value: (byte - 128) * scale
 *     q8_row   quads[unit][8]; f32 scales[32 rows] before the first chunk  the same
 *     q4       f16 scales[unit][row], halves[unit][4]                  (bits - 8) * scale
 *     q4_zero  f16 scales[unit][row], u8 zeros[unit][row], halves[unit][4]
 *                                                                      (bits - zero) * scale, never -0; zero up to 127
 *     q4_k     f16 d[row], f16 dmin[row], u8 scale[unit][row], u8 min[unit][row], halves[unit][4]
 *                                                                      d * scale * bits - dmin * min
 *     q5_k     the same, then one plane[unit]
 *     q6_k     f16 d[row], i8 scale[half unit][row], halves[unit][4], planes[unit][2]
 *                                                                      d * scale * (bits - 32)
 *
 * halves j holds quad j in its low four bits and quad 4 + j in the high ones. A plane holds what is above four bits: of
 * 5 bits, bit j of its bytes belongs to quad j; of 6, bits 2j and 2j + 1 of the first to quad j, of the second to quad
 * 4 + j. The values are those of the GGUF blocks of formats/blocks.h, bit for bit. */
#ifndef FL_PACKED_H
#define FL_PACKED_H

#include "formats/blocks.h"
#include "ops/ops.h"

#define FL_PANEL (2 * FL_LANES) /* rows */
#define FL_UNIT 32   /* columns */
#define FL_CHUNK 256 /* columns */
#define FL_CHUNK_UNITS (FL_CHUNK / FL_UNIT)
#define FL_QUAD_BYTES 64

FL_INLINE bool fl_is_packed(fl_dtype type) {
    return type >= FL_Q8_0 && type <= FL_Q4_ZERO;
}

/* Does a value have one scale for 16 numbers? */
FL_INLINE bool fl_has_half_units(fl_dtype type) {
    return type == FL_Q6_K;
}

/* Is something taken off? */
FL_INLINE bool fl_has_mins(fl_dtype type) {
    return type == FL_Q4_K || type == FL_Q5_K || type == FL_Q4_ZERO;
}

/* Are its scales multiples of one for 256 columns? */
FL_INLINE bool fl_is_k(fl_dtype type) {
    return type == FL_Q4_K || type == FL_Q5_K || type == FL_Q6_K;
}

/* Planes of a unit. */
FL_INLINE size_t fl_n_planes(fl_dtype type) {
    return type == FL_Q5_K ? 1 : type == FL_Q6_K ? 2 : 0;
}

/* Has bytes of eight bits, made unsigned by 128? The others stay below 64. */
FL_INLINE bool fl_is_wide(fl_dtype type) {
    return type == FL_Q8_0 || type == FL_Q8_ROW;
}

/* What the unsigned bytes have too much. */
FL_INLINE int32_t fl_packed_offset(fl_dtype type) {
    return fl_is_wide(type) ? 128 : type == FL_Q4_0 ? 8 : type == FL_Q6_K ? 32 : 0;
}

FL_INLINE size_t fl_units(size_t n_cols) {
    return fl_div_up(n_cols, FL_UNIT);
}

/* Where the pieces of a chunk of 16 rows lie; those that its type has not are NULL, or not to be read. */
typedef struct fl_packed_chunk {
    const uint8_t *d, *dmin, *scales, *mins; /* q4_zero: mins are the zero points */
    const uint8_t *bytes, *planes; /* quads or halves */
} fl_packed_chunk;

/* row_scales: (16) of q8_row, before the panel's first chunk. */
FL_INLINE fl_packed_chunk fl_packed_chunk_of(fl_dtype type, const uint8_t *row_scales, const uint8_t *chunk,
                                             size_t n_units) {
    fl_packed_chunk c = {NULL, NULL, row_scales, NULL, chunk, chunk};
    if (fl_is_k(type)) {
        c.d = chunk;
        c.dmin = fl_has_mins(type) ? chunk + 2 * FL_LANES : NULL;
        c.scales = chunk + (fl_has_mins(type) ? 4 : 2) * FL_LANES;
        c.mins = c.scales + n_units * FL_LANES;
        c.bytes = c.mins + n_units * FL_LANES; /* of q6_k these are scales too, of the other halves */
    } else if (type != FL_Q8_ROW) {
        c.scales = chunk;
        c.mins = chunk + n_units * 2 * FL_LANES;
        c.bytes = c.mins + (type == FL_Q4_ZERO ? n_units * FL_LANES : 0);
    }
    c.planes = c.bytes + n_units * 4 * FL_QUAD_BYTES;
    return c;
}

/* OF_TYPE(t) with the packed type `type` as a constant t. */
#define FL_EACH_PACKED(type, OF_TYPE)               \
    do {                                            \
        switch (type) {                             \
        case FL_Q8_0: OF_TYPE(FL_Q8_0); break;      \
        case FL_Q8_ROW: OF_TYPE(FL_Q8_ROW); break;  \
        case FL_Q4_0: OF_TYPE(FL_Q4_0); break;      \
        case FL_Q4_ZERO: OF_TYPE(FL_Q4_ZERO); break;\
        case FL_Q4_K: OF_TYPE(FL_Q4_K); break;      \
        case FL_Q5_K: OF_TYPE(FL_Q5_K); break;      \
        default: OF_TYPE(FL_Q6_K); break;           \
        }                                           \
    } while (0)

/* Columns that the blocks of a type go up to; n_cols of q4_k, q5_k and q6_k must be whole blocks. */
FL_LOCAL bool fl_packs(fl_dtype type, size_t n_cols);

/* Bytes of a row before packing: blocks as in GGUF, those that are in files only too; q8_row: a float scale, then the
 * integers; q4_zero: of each unit an f16 scale, a byte for its zero point, then bits as q4 has them. */
FL_LOCAL size_t fl_row_bytes(fl_dtype type, size_t n_cols);

/* Bytes of n_units of 16 rows, of what stands before the first chunk of a panel, and of a panel. */
FL_LOCAL size_t fl_chunk_bytes(fl_dtype type, size_t n_units);
FL_LOCAL size_t fl_panel_head_bytes(fl_dtype type);
FL_LOCAL size_t fl_panel_bytes(fl_dtype type, size_t n_cols);

/* Of a whole matrix, packed or plain. Saturates. */
FL_LOCAL size_t fl_matrix_bytes(fl_dtype type, size_t n_rows, size_t n_cols);

/* rows: n_rows <= 32 of fl_row_bytes each -> panel. */
FL_LOCAL void fl_pack(fl_dtype type, const uint8_t *rows, size_t n_rows, size_t n_cols, uint8_t *panel);

/* x (n_cols), then zeros up to whole units -> a row of fl_row_bytes, of any type but q4_zero. */
FL_LOCAL void fl_quantise_row(fl_dtype type, const float *x, size_t n_cols, uint8_t *row);

#endif
