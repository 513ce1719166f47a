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
    float *angles; /* (n_rows, head_dim); NULL: the backend has those of all positions */
} fl_activations;

FL_LOCAL fl_limits fl_runner_limits(const fl_config *c, size_t n_rows);

FL_LOCAL void fl_activations_layout(fl_activations *a, fl_arena *arena, const fl_limits *limits, bool with_angles);

typedef enum fl_op { /* of a layer, or behind the last */
    FL_OP_QKV,
    FL_OP_ROPE,
    FL_OP_ATTEND,
    FL_OP_OUT,
    FL_OP_GATE_UP,
    FL_OP_DOWN,
    FL_OP_HEAD,
    FL_OP_END, /* all of them were started, perhaps at once */
    FL_OP_DONE
} fl_op;

/* A forward pass on its way: everything between two ops lies here and in the activations, so it may rest as long as
 * its host likes. */
typedef struct fl_forward {
    fl_batch batch;
    float *logits; /* (n_wanted, vocab) */
    uint32_t layer;
    fl_op op;
    size_t at; /* kv heads attended, or rows of the head done, of the op */
} fl_forward;

/* How much of an op is done at once; it moves no bit. */
typedef struct fl_slice {
    size_t kv_heads, head_rows;
    bool waits; /* until it has been done, where backends only start it */
} fl_slice;

/* Begin a batch: its arrays and page tables must stay until it is done. */
FL_LOCAL void fl_runner_begin(const fl_weights *w, const fl_rope *rope, fl_backend *backend, const fl_activations *a,
                              const fl_batch *batch, float *logits, fl_forward *f);

/* One more op. True: that was the last. Then the keys and values of the batch lie in their slots, and logits hold
 * those of the wanted rows. */
FL_LOCAL bool fl_runner_advance(const fl_weights *w, fl_backend *backend, const fl_activations *a, fl_kv *kv,
                                fl_slice slice, fl_forward *f);

/* All ops of a batch, without its begin and end: for a backend that records them. */
FL_LOCAL void fl_runner_record(const fl_weights *w, fl_backend *backend, const fl_activations *a, fl_kv *kv,
                               const fl_batch *batch);

#endif
