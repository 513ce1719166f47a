#include "model/config_gguf.h"

static const struct {
    const char *name;
    bool qk_norm, rotates_neighbours;
} fl_gguf_architectures[] = {
    {"llama", false, true},
    {"qwen2", false, false},
    {"qwen3", true, false},
};

typedef struct fl_gguf_config {
    const fl_gguf *g;
    const fl_tensors *t;
    fl_config *c;
    folollm_error *error;
    char key[96]; /* of the last value asked for */
} fl_gguf_config;

/* Keys begin with the architecture's name. */
static const char *fl_gguf_key(fl_gguf_config *r, const char *key) {
    fl_format(r->key, sizeof r->key, "%s.%s", r->c->architecture, key);
    return r->key;
}

static folollm_status fl_gguf_refuse(fl_gguf_config *r, const char *what) {
    return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: \"%s\": %s", r->g->file.path, r->key, what);
}

/* A list of one integer per layer, which must be the same for all. */
static folollm_status fl_gguf_same(fl_gguf_config *r, uint64_t *out) {
    fl_gguf_value list, element;
    uint64_t value;
    FL_TRY(fl_gguf_array(r->g, r->key, FL_GGUF_I64, &list, r->error));
    for (bool first = true; fl_gguf_next(&list, &element); first = false) {
        if (!fl_gguf_to_u64(&element, &value) || (!first && value != *out)) {
            return fl_gguf_refuse(r, "layers that differ are not computed here");
        }
        *out = value;
    }
    return FOLOLLM_OK;
}

/* An integer in [1, max]; missing 0: the key must be there. */
static folollm_status fl_gguf_size(fl_gguf_config *r, const char *name, uint32_t missing, uint32_t max, uint32_t *out) {
    const char *key = fl_gguf_key(r, name);
    const fl_gguf_value *v = fl_gguf_find(r->g, key);
    uint64_t value = 0;
    if (missing == 0 && v == NULL) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: the key \"%s\" is missing", r->g->file.path, key);
    }
    FL_TRY(v != NULL && v->type == FL_GGUF_ARRAY ? fl_gguf_same(r, &value)
                                                 : fl_gguf_u64(r->g, key, missing, &value, r->error));
    *out = value <= max ? (uint32_t)value : 0;
    if (*out == 0) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be from 1 to %u; found %u", r->g->file.path, key,
                       (uint64_t)max, value);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_architecture(fl_gguf_config *r) {
    fl_str name;
    FL_TRY(fl_gguf_string(r->g, "general.architecture", &name, r->error));
    for (size_t i = 0; i < FL_COUNT(fl_gguf_architectures); i++) {
        if (fl_str_is(name, fl_gguf_architectures[i].name)) {
            memcpy(r->c->architecture, name.at, name.n);
            r->c->qk_norm = fl_gguf_architectures[i].qk_norm;
            r->c->rotates_neighbours = fl_gguf_architectures[i].rotates_neighbours;
            return FOLOLLM_OK;
        }
    }
    return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                   "%s: \"general.architecture\" is %S; known are llama, qwen2 and qwen3", r->g->file.path, &name);
}

/* What would change the result and is not computed must not be there. */
static folollm_status fl_gguf_foreign(fl_gguf_config *r) {
    static const char *const keys[] = {"expert_count", "attention.scale", "attention.max_alibi_bias",
                                       "attention.clamp_kqv", "attn_logit_softcapping", "final_logit_softcapping",
                                       "logit_scale", "residual_scale", "embedding_scale"};
    for (size_t i = 0; i < FL_COUNT(keys); i++) {
        double value;
        FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, keys[i]), 0, &value, r->error));
        if (value != 0) {
            return fl_gguf_refuse(r, "this is not computed here");
        }
    }
    bool causal;
    FL_TRY(fl_gguf_bool(r->g, fl_gguf_key(r, "attention.causal"), true, &causal, r->error));
    return causal ? FOLOLLM_OK : fl_gguf_refuse(r, "only causal attention is computed here");
}

static folollm_status fl_gguf_shapes(fl_gguf_config *r) {
    fl_config *c = r->c;
    FL_TRY(fl_gguf_size(r, "block_count", 0, FL_LAYERS_MAX, &c->n_layers));
    FL_TRY(fl_gguf_size(r, "embedding_length", 0, 1u << 17, &c->dim));
    FL_TRY(fl_gguf_size(r, "attention.head_count", 0, 4096, &c->n_heads));
    FL_TRY(fl_gguf_size(r, "attention.head_count_kv", c->n_heads, 4096, &c->n_kv_heads));
    FL_TRY(fl_gguf_size(r, "feed_forward_length", 0, 1u << 20, &c->ffn_dim));
    FL_TRY(fl_gguf_size(r, "context_length", 0, 1u << 26, &c->max_positions));
    uint32_t derived = c->dim / c->n_heads, value_dim, rotated;
    FL_TRY(fl_gguf_size(r, "attention.key_length", derived == 0 ? 1 : derived, FL_HEAD_DIM_MAX, &c->head_dim));
    FL_TRY(fl_gguf_size(r, "attention.value_length", c->head_dim, 1024, &value_dim));
    if (value_dim != c->head_dim) {
        return fl_gguf_refuse(r, "values as long as keys are computed here");
    }
    FL_TRY(fl_gguf_size(r, "rope.dimension_count", c->head_dim, 1024, &rotated));
    if (rotated != c->head_dim) {
        return fl_gguf_refuse(r, "only whole heads are rotated here");
    }
    double epsilon;
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "attention.layer_norm_rms_epsilon"), 1e-6, &epsilon, r->error));
    if (!(epsilon >= 0 && epsilon <= 1)) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"%s\" is %g; expected 0 to 1", r->g->file.path, r->key,
                       epsilon);
    }
    c->norm_epsilon = (float)epsilon;
    return FOLOLLM_OK;
}

static const fl_tensor *fl_gguf_tensor(const fl_gguf_config *r, const char *name) {
    return fl_tensors_find(r->t, fl_str_of(name));
}

/* What no key says. */
static folollm_status fl_gguf_presence(fl_gguf_config *r) {
    fl_config *c = r->c;
    const fl_tensor *embedding = fl_gguf_tensor(r, "token_embd.weight");
    if (embedding == NULL || embedding->n_dims != 2 || embedding->shape[0] == 0 || embedding->shape[0] > 1u << 24) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor \"token_embd.weight\" with 1 to %u rows is missing",
                       r->g->file.path, (uint64_t)1 << 24);
    }
    c->vocab = (uint32_t)embedding->shape[0];
    c->tied = fl_gguf_tensor(r, "output.weight") == NULL;
    c->qkv_bias = fl_gguf_tensor(r, "blk.0.attn_q.bias") != NULL;
    c->o_bias = fl_gguf_tensor(r, "blk.0.attn_output.bias") != NULL;
    c->mlp_bias = fl_gguf_tensor(r, "blk.0.ffn_gate.bias") != NULL;
    return FOLOLLM_OK;
}

/* Every layer slides if there is a window, or those that a list of booleans names. */
static folollm_status fl_gguf_windows(fl_gguf_config *r) {
    fl_config *c = r->c;
    fl_gguf_value pattern, slides;
    FL_TRY(fl_gguf_u32(r->g, fl_gguf_key(r, "attention.sliding_window"), 0, &c->window, r->error));
    FL_TRY(fl_gguf_array(r->g, fl_gguf_key(r, "attention.sliding_window_pattern"), FL_GGUF_BOOL, &pattern, r->error));
    if (pattern.at != NULL && pattern.n != c->n_layers) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"%s\" has %u entries for %u layers", r->g->file.path, r->key,
                       (uint64_t)pattern.n, (uint64_t)c->n_layers);
    }
    for (uint32_t layer = 0; layer < c->n_layers && c->window != 0; layer++) {
        bool slide = true;
        if (fl_gguf_at(&pattern, layer, &slides)) {
            fl_gguf_to_bool(&slides, &slide);
        }
        if (slide) {
            fl_config_slide(c, layer);
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_rope_kind(fl_gguf_config *r) {
    fl_rope_config *rope = &r->c->rope;
    fl_str name;
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scale_linear"), 0, &rope->factor, r->error)); /* its old name */
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.factor"), rope->factor, &rope->factor, r->error));
    FL_TRY(fl_gguf_string(r->g, fl_gguf_key(r, "rope.scaling.type"), &name, r->error));
    bool scaled = rope->factor != 0 && rope->factor != 1;
    if (fl_str_is(name, "yarn")) {
        rope->kind = FL_ROPE_YARN;
    } else if (fl_str_is(name, "linear") || name.at == NULL) {
        rope->kind = scaled ? FL_ROPE_LINEAR : FL_ROPE_DEFAULT;
    } else if (!fl_str_is(name, "none")) {
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: \"%s\" is %S; known are none, linear and yarn",
                       r->g->file.path, r->key, &name);
    }
    if (fl_gguf_tensor(r, "rope_freqs.weight") != NULL) {
        if (rope->kind != FL_ROPE_DEFAULT) {
            return fl_gguf_refuse(r, "beside the tensor rope_freqs.weight, scaling is not computed here");
        }
        rope->kind = FL_ROPE_DIVISORS;
    }
    return FOLOLLM_OK;
}

/* The attention_factor of the model's config.json has become yarn_attn_factor; attn_factor is another thing. */
static folollm_status fl_gguf_yarn(fl_gguf_config *r) {
    fl_rope_config *rope = &r->c->rope;
    double gain, extrapolation;
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.yarn_beta_fast"), 32, &rope->beta_fast, r->error));
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.yarn_beta_slow"), 1, &rope->beta_slow, r->error));
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.yarn_attn_factor"), 0, &rope->attention_factor, r->error));
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.attn_factor"), 1, &gain, r->error));
    if (gain != 1) {
        return fl_gguf_refuse(r, "only 1 is computed here");
    }
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.yarn_ext_factor"), 1, &extrapolation, r->error));
    return extrapolation == 1 ? FOLOLLM_OK : fl_gguf_refuse(r, "only 1 is computed here");
}

static folollm_status fl_gguf_rope(fl_gguf_config *r) {
    fl_rope_config *rope = &r->c->rope;
    double positions = r->c->max_positions;
    FL_TRY(fl_gguf_rope_kind(r));
    FL_TRY(fl_gguf_yarn(r));
    FL_TRY(fl_gguf_double(r->g, fl_gguf_key(r, "rope.freq_base"), 10000, &rope->theta, r->error));
    rope->truncate = true;
    return fl_gguf_double(r->g, fl_gguf_key(r, "rope.scaling.original_context_length"), positions, &rope->original,
                          r->error);
}

FL_LOCAL folollm_status fl_config_of_gguf(fl_config *c, const fl_gguf *g, const fl_tensors *t,
                                          folollm_error *error) {
    fl_gguf_config r = {.g = g, .t = t, .c = c, .error = error};
    memset(c, 0, sizeof *c);
    FL_TRY(fl_gguf_architecture(&r));
    FL_TRY(fl_gguf_foreign(&r));
    FL_TRY(fl_gguf_shapes(&r));
    FL_TRY(fl_gguf_presence(&r));
    FL_TRY(fl_gguf_windows(&r));
    FL_TRY(fl_gguf_rope(&r));
    return fl_config_settle(c, g->file.path, error);
}
