/* The weights of a model, bound to the roles that the forward pass knows. Matrices stay where the file has them when
 * that is mapped and aligned, unless they are to be of another type or come in blocks, which are packed; norms and
 * biases become float. Immutable after load. */
#ifndef FL_WEIGHTS_H
#define FL_WEIGHTS_H

#include "formats/gguf_write.h"
#include "formats/safetensors_write.h"
#include "model/config.h"
#include "model/convert.h"
#include "ops/ops.h"

typedef struct fl_layer {
    const float *attention_norm, *mlp_norm; /* (dim) */
    fl_matrix qkv;     /* (heads * head_dim + 2 * kv_heads * head_dim, dim), parts q, k, v */
    fl_matrix o;       /* (dim, heads * head_dim) */
    fl_matrix gate_up; /* (2 * ffn_dim, dim), parts gate, up */
    fl_matrix down;    /* (dim, ffn_dim) */
    fl_attention attention;
} fl_layer;

typedef struct fl_weights {
    fl_config config;
    fl_tensors tensors; /* keeps the files open */
    fl_matrix embedding, head; /* (vocab, dim), the same when tied */
    const float *final_norm;   /* (dim) */
    fl_layer *layers;          /* (n_layers) */
    fl_arena arena;
    fl_adapter *merges;  /* (n_merges) what becomes part of the matrices, until it has */
    size_t n_merges;
    uint64_t merged;     /* fingerprint of them; 0: none */
    uint64_t mapped_bytes, n_params, done_bytes, total_bytes;
    size_t device_bytes;        /* that a copy on a device would take: upload.h */
    folollm_weights asked;      /* what matrices are to be */
    bool types[FL_DTYPE_COUNT]; /* which matrices have; a head that was given another does not count */
    uint32_t stored[FL_DTYPE_COUNT]; /* of each type in the file, bits: as which types it is computed */
    bool is_gguf;
    bool converts;              /* is one of them packed, or of another type in its file? */
    bool ordered;               /* have some columns in an order of their own? */
    size_t quantised_bytes;     /* of the tensors of the largest quantised matrix */
    fl_dtype quantised_type;    /* what quantised matrices have become */
    const char *quantised_loss; /* what was lost then; NULL: there are none */
} fl_weights;

/* Read the headers of a directory, or of the file that gguf has read if that is not NULL, and adapters of o->merges;
 * check every tensor against the config, and count: w->arena holds what fl_weights_load will take. Of o, copy_weights
 * and weights count, too. On failure nothing stays open. */
FL_LOCAL folollm_status fl_weights_open(fl_memory *m, fl_weights *w, const char *directory, const fl_gguf *gguf,
                                        const folollm_options *o, folollm_error *error);

/* After open: allocate, read or map. */
FL_LOCAL folollm_status fl_weights_load(fl_memory *m, fl_weights *w, uint32_t n_threads, folollm_error *error);

/* After open: the tensors, as they would be loaded, to a safetensors file: packed ones panel by panel as U8 tensors
 * (panels, bytes) named NAME.TYPE, which fl_weights_open takes as they are. Holds one tensor at a time. */
FL_LOCAL folollm_status fl_weights_write(fl_memory *m, fl_weights *w, uint32_t n_threads, fl_tensors_out *out,
                                         folollm_error *error);

/* After open: the tensors, as they would be loaded but for Q8_ROW, to a GGUF file: blocks row by row, vectors as F32.
 * Holds one tensor at a time. */
FL_LOCAL folollm_status fl_weights_announce_gguf(fl_weights *w, fl_gguf_out *out, folollm_error *error);
FL_LOCAL folollm_status fl_weights_write_gguf(fl_weights *w, uint32_t n_threads, fl_gguf_out *out,
                                              folollm_error *error);

/* What is held from opening on until loading is over; and all that loading holds for its time beside what stays. */
FL_LOCAL uint64_t fl_weights_passing_bytes(const fl_weights *w);
FL_LOCAL uint64_t fl_weights_temporary_bytes(const fl_weights *w, uint32_t n_threads);

/* The type of all matrices; FL_DTYPE_OTHER: they differ. A head that was converted does not count. */
FL_LOCAL fl_dtype fl_weights_type(const fl_weights *w);

/* Are there packed matrices? */
FL_LOCAL bool fl_weights_packed(const fl_weights *w);

/* A number that tells models apart: shapes and types of all matrices and a sample of their values; all values of norms
 * and biases; windows and the norms' epsilon. RoPE is not in it. */
FL_LOCAL uint64_t fl_weights_fingerprint(const fl_weights *w);
FL_LOCAL void fl_weights_close(fl_memory *m, fl_weights *w);

#endif
