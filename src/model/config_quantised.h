/* How a checkpoint directory says that its matrices are quantised: "quantization_config" of config.json, or what
 * quantize_config.json holds. Which matrices are, the tensors say (quantised.h): lists of modules that were left out
 * tell nothing more. */
#ifndef FL_CONFIG_QUANTISED_H
#define FL_CONFIG_QUANTISED_H

#include "formats/json.h"

typedef enum fl_quant_format {
    FL_QUANT_NONE,
    FL_QUANT_GPTQ,
    FL_QUANT_AWQ,         /* "gemm" */
    FL_QUANT_PACKED,      /* compressed-tensors, pack-quantized */
    FL_QUANT_INT,         /* compressed-tensors, int-quantized: bytes, a scale for each row */
    FL_QUANT_FLOAT,       /* compressed-tensors, float-quantized or naive-quantized: F8_E4M3 */
    FL_QUANT_FP8,         /* the same in blocks, as DeepSeek and Qwen have it */
    FL_QUANT_BITSANDBYTES_8,
    FL_QUANT_BITSANDBYTES_4,
    FL_QUANT_FORMATS
} fl_quant_format;

typedef struct fl_quantisation {
    fl_quant_format format;
    uint32_t bits;
    uint32_t group;   /* columns with one scale; 0: all */
    uint32_t rows;    /* with one scale; 0: all */
    bool symmetric;   /* is every zero point half of the range? */
    bool ordered;     /* may columns belong to groups in any order (act-order)? */
    bool exact_zeros; /* are zero points stored as they are (gptq_v2), not less one? */
} fl_quantisation;

/* From the object `node` of a document. FOLOLLM_E_UNSUPPORTED names what is not read. */
FL_LOCAL folollm_status fl_quantisation_read(fl_quantisation *q, const fl_json *doc, uint32_t node,
                                             folollm_error *error);

/* "gptq, 4 bits, groups of 128" and so on; returns the length. */
FL_LOCAL size_t fl_quantisation_text(const fl_quantisation *q, char *text, size_t room);

#endif
