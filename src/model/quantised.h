/* A matrix that Hugging Face holds quantised: some tensors of one module, decoded row by row once they are read.
 *
 *     gptq    qweight i32 (columns * bits / 32, rows)  qzeros i32 (groups, rows * bits / 32)  scales (groups, rows)
 *             g_idx i32 (columns): the group of each
 *     awq     qweight i32 (columns, rows / 8)          qzeros i32 (groups, rows / 8)          scales (groups, rows)
 *     compressed-tensors
 *             weight_packed i32 (rows, columns * bits / 32)   weight_zero_point i32 (rows * bits / 32, groups)
 *             weight_scale (rows, groups)   weight_shape i64 (2)   weight_g_idx i32 (columns)
 *             or weight i8 or f8_e4m3 (rows, columns)         weight_scale (rows, 1), (1), or of blocks
 *     fp8     weight f8_e4m3 (rows, columns)           weight_scale_inv of blocks: numbers are multiplied by it
 *     bitsandbytes
 *             weight i8 (rows, columns)                SCB f32 (rows): 127 times the scale
 *             or weight u8: two numbers a byte, the first in the high half, row after row without a gap;
 *             weight.quant_map f32 (16): what they stand for; weight.absmax: the scales of blocks, f32, or u8 with
 *             weight.nested_quant_map f32 (256) and weight.nested_absmax f32; weight.quant_state.*: JSON, with the
 *             sizes of blocks and an offset of scales of the second kind
 *
 * Integers in words are unsigned and lie from the lowest bits on; of 3 bits some cross into the next word. A number is
 * (integer - zero point) * scale. */
#ifndef FL_QUANTISED_H
#define FL_QUANTISED_H

#include "formats/safetensors.h"
#include "model/config_quantised.h"
#include "ops/packed.h"

typedef enum fl_quant_tensor {
    FL_QUANT_WEIGHT,
    FL_QUANT_SCALES,
    FL_QUANT_ZEROS,
    FL_QUANT_GROUPS, /* of columns */
    FL_QUANT_SHAPE,
    FL_QUANT_TABLE, /* what four bits stand for */
    FL_QUANT_SCALES_TABLE, /* what scales of eight bits stand for */
    FL_QUANT_SCALES_SCALES,
    FL_QUANT_STATE,
    FL_QUANT_TENSORS
} fl_quant_tensor;

typedef struct fl_quantised {
    const fl_quantisation *how;
    const fl_tensors *all;
    const fl_tensor *tensors[FL_QUANT_TENSORS]; /* NULL: it has none; no weight: the module is not quantised */
    const uint8_t *data[FL_QUANT_TENSORS];      /* once read */
    size_t n_rows, n_cols, n_groups, group;     /* group: columns */
    fl_dtype type;         /* that holds it, or comes nearest */
    bool exact;            /* does it hold it bit for bit, but for scales that f16 rounds? */
    bool ordered;          /* do its columns lie by group there? */
    const uint32_t *order; /* (n_cols) then: which column of the input the i-th is; NULL: the i-th */
    size_t block, nested_block; /* bitsandbytes, once read: numbers with one scale, scales with one */
    double offset;              /* of scales */
} fl_quantised;

/* Find the tensors of a module ("model.layers.0.mlp.up_proj") and check their types and shapes. */
FL_LOCAL folollm_status fl_quantised_find(const fl_tensors *all, const fl_quantisation *how, fl_str module,
                                          size_t n_rows, size_t n_cols, fl_quantised *q, folollm_error *error);

/* What reading takes at raw, and what it holds in memory of its own for its time. */
FL_LOCAL size_t fl_quantised_bytes(const fl_quantised *q);
FL_LOCAL size_t fl_quantised_temporary_bytes(const fl_quantisation *how);

/* Read the tensors to raw and check what they hold. */
FL_LOCAL folollm_status fl_quantised_read(fl_quantised *q, uint8_t *raw, folollm_error *error);

/* What is lost on the way to a type: "", or more to say in a list. */
FL_LOCAL const char *fl_quantised_loss(const fl_quantised *q, fl_dtype type);

/* Put columns in order of their groups; order has room for (n_cols). */
FL_LOCAL folollm_status fl_quantised_sort(fl_quantised *q, uint32_t *order, folollm_error *error);

/* A row as floats, in the order of the input. */
FL_LOCAL void fl_quantised_floats(const fl_quantised *q, size_t row, float *x);

/* A row as the type that holds it, before packing. integers: room for n_cols. */
FL_LOCAL void fl_quantised_row(const fl_quantised *q, size_t row, uint8_t *integers, uint8_t *out);

#endif
