/* The forward pass, once, for every architecture, backend and batch shape. */
#ifndef FL_RUNNER_H
#define FL_RUNNER_H

#include "model/rope.h"
#include "model/weights.h"

/* Activations of one batch; rows are padded to FL_LANES. */
typedef struct fl_activations {
    float *x;      /* (n_rows, dim) the residual stream */
    float *qkv;    /* (n_rows, (heads + 2 kv_heads) * head_dim) */
    float *attended; /* (n_rows, heads * head_dim) */
    float *h;      /* (n_rows, ffn_dim) */
    float *angles; /* (n_rows, head_dim) */
} fl_activations;

FL_LOCAL fl_limits fl_runner_limits(const fl_config *c, size_t n_rows);
FL_LOCAL void fl_activations_layout(fl_activations *a, fl_arena *arena, const fl_limits *limits);

/* Run a batch: its keys and values land in their slots, logits (n_wanted, vocab) hold those of the wanted rows. */
FL_LOCAL void fl_runner_forward(const fl_weights *w, const fl_rope *rope, fl_backend *backend,
                                const fl_activations *a, fl_kv *kv, const fl_batch *batch, float *logits);

#endif
