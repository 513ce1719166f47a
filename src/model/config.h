/* The config.json of a checkpoint as validated hyper-parameters. What differs between architectures is data: a row
 * of a table in config.c. The same from the metadata of a GGUF file: config_gguf.h. */
#ifndef FL_CONFIG_H
#define FL_CONFIG_H

#include "model/config_quantised.h"

#define FL_LAYERS_MAX 1024u
#define FL_HEAD_DIM_MAX 1024u

typedef enum fl_rope_kind {
    FL_ROPE_DEFAULT,
    FL_ROPE_LINEAR,
    FL_ROPE_NTK,     /* static: the base is scaled once */
    FL_ROPE_DYNAMIC, /* NTK by the length; here, of the context as opened */
    FL_ROPE_YARN,
    FL_ROPE_LLAMA3,
    FL_ROPE_DIVISORS /* what llama3 comes to, as GGUF files have it: a number for every frequency */
} fl_rope_kind;

typedef struct fl_rope_config {
    fl_rope_kind kind;
    double theta, factor;
    double original;                       /* positions that the model was trained on before scaling */
    double beta_fast, beta_slow;           /* yarn */
    double attention_factor;               /* yarn: of cosines and sines; 0: from factor */
    double mscale, mscale_all_dim;         /* yarn */
    bool truncate;                         /* yarn: round the borders of the ramp */
    double low_freq_factor, high_freq_factor; /* llama3 */
    const float *divisors;                 /* (head_dim / 2), bound with the weights */
} fl_rope_config;

typedef struct fl_config {
    char architecture[32];
    uint32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab;
    uint32_t max_positions; /* as written */
    uint32_t max_context;   /* what RoPE scaling makes of it */
    float norm_epsilon;
    bool tied, qk_norm, qkv_bias, o_bias, mlp_bias;
    bool rotates_neighbours;               /* the file has rows of Q and K for that; they are put in order when bound */
    uint32_t window;                       /* keys that a sliding layer sees; 0: none slides */
    uint32_t sliding[FL_LAYERS_MAX / 32];  /* bit per layer */
    fl_rope_config rope;
    fl_quantisation quantised;
} fl_config;

/* Read and check directory/config.json, and quantize_config.json if only that says how matrices are quantised.
 * FOLOLLM_E_UNSUPPORTED names what is not computed here. */
FL_LOCAL folollm_status fl_config_read(fl_memory *m, fl_config *c, const char *directory, folollm_error *error);

/* Check what has been read from the file `name`, whoever read it, and work out max_context. */
FL_LOCAL folollm_status fl_config_settle(fl_config *c, const char *name, folollm_error *error);

/* Let a layer slide. */
FL_INLINE void fl_config_slide(fl_config *c, uint32_t layer) {
    c->sliding[layer / 32] |= 1u << (layer % 32);
}

FL_INLINE uint32_t fl_config_window(const fl_config *c, uint32_t layer) {
    return c->sliding[layer / 32] >> (layer % 32) & 1u ? c->window : 0;
}

#endif
