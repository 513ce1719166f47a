/* LoRA adapters as PEFT saves them: a directory with adapter_config.json and adapter_model.safetensors. Of every linear
 * layer of a model an adapter may hold a pair of matrices (Hu et al., 2021):
 *
 *     base_model.model.PATH.lora_A.weight (rank, in)    base_model.model.PATH.lora_B.weight (out, rank)
 *     y = W x + scale * alpha / rank * B (A x)          rsLoRA: alpha / sqrt(rank)  (Kalajdzievski, 2023)
 *
 * They are kept in float with the factor in B, for sequences that have the adapter, or merged into the weights while
 * those are loaded (weights.h). Immutable once open. */
#ifndef FL_ADAPTER_H
#define FL_ADAPTER_H

#include "model/config.h"
#include "ops/ops.h"

/* The linear layers of a layer, in the order of fl_matrix.low_rank. */
typedef enum fl_linear {
    FL_LINEAR_Q,
    FL_LINEAR_K,
    FL_LINEAR_V,
    FL_LINEAR_O,
    FL_LINEAR_GATE,
    FL_LINEAR_UP,
    FL_LINEAR_DOWN,
    FL_LINEARS
} fl_linear;

FL_INLINE size_t fl_low_rank_index(size_t layer, fl_linear linear) {
    return layer * FL_LINEARS + (size_t)linear;
}

typedef struct fl_adapter {
    fl_low_rank *low_ranks; /* (layers, FL_LINEARS) */
    const fl_low_rank *bound; /* the same as the backend reads them: these, or copies on its device */
    uint64_t fingerprint;   /* of all its numbers */
    uint64_t serial;        /* the engine's; never given twice. 0: not in use */
    fl_arena arena;
} fl_adapter;

/* Read a directory for a model of this config. scale: what it is multiplied with beside its own. max_rank: more is
 * FOLOLLM_E_UNSUPPORTED. Whatever else is in the files than the pairs above, trained embeddings say, is refused by
 * name. On failure nothing stays allocated. */
FL_LOCAL folollm_status fl_adapter_open(fl_memory *m, fl_adapter *a, const fl_config *c, const char *directory,
                                        float scale, uint32_t max_rank, folollm_error *error);
FL_LOCAL void fl_adapter_close(fl_memory *m, fl_adapter *a);

#endif
