#include "model/config_gguf_write.h"

#include "model/rope.h"

FL_LOCAL bool fl_config_turns_in_gguf(const fl_config *c) {
    return strcmp(c->architecture, "llama") == 0 || strcmp(c->architecture, "mistral") == 0;
}

static const char *fl_config_name_in_gguf(const fl_config *c) {
    return fl_config_turns_in_gguf(c) ? "llama" : c->architecture;
}

/* ---- What cannot be said -- */

static folollm_status fl_config_refuse(const fl_config *c, const char *what, folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "config.json: a GGUF file of architecture %s cannot have %s",
                   fl_config_name_in_gguf(c), what);
}

static folollm_status fl_config_fits_gguf(const fl_config *c, folollm_error *error) {
    bool qwen = !fl_config_turns_in_gguf(c);
    const fl_rope_config *r = &c->rope;
    if (r->kind == FL_ROPE_NTK || r->kind == FL_ROPE_DYNAMIC) {
        return fl_config_refuse(c, "RoPE of type ntk or dynamic", error);
    }
    if (r->kind == FL_ROPE_YARN && (!r->truncate || r->original != (double)(uint32_t)r->original)) {
        return fl_config_refuse(c, "yarn that does not round (truncate false, or an original length with a fraction)",
                                error);
    }
    if (qwen && r->kind == FL_ROPE_LLAMA3) {
        return fl_config_refuse(c, "RoPE of type llama3: llama.cpp does not load its divisors", error);
    }
    if (qwen && c->o_bias) {
        return fl_config_refuse(c, "a bias of o_proj (attention_bias): llama.cpp does not load it", error);
    }
    if (strcmp(c->architecture, "qwen2") == 0 && (uint64_t)c->n_heads * c->head_dim != c->dim) {
        return fl_config_refuse(c, "heads that together are not as wide as the model: llama.cpp does not load them",
                                error);
    }
    return FOLOLLM_OK;
}

/* ---- Entries -- */

typedef struct fl_config_out {
    const fl_config *c;
    fl_gguf_out *o;
    char key[96]; /* of the last entry */
} fl_config_out;

static const char *fl_config_key(fl_config_out *w, const char *key) {
    fl_format(w->key, sizeof w->key, "%s.%s", fl_config_name_in_gguf(w->c), key);
    return w->key;
}

static folollm_status fl_config_put_sizes(fl_config_out *w) {
    const fl_config *c = w->c;
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
        {"block_count", c->n_layers},
        {"context_length", c->max_positions},
        {"embedding_length", c->dim},
        {"feed_forward_length", c->ffn_dim},
        {"vocab_size", c->vocab},
        {"attention.head_count", c->n_heads},
        {"attention.head_count_kv", c->n_kv_heads},
        {"attention.key_length", c->head_dim},
        {"attention.value_length", c->head_dim},
        {"rope.dimension_count", c->head_dim},
    };
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        FL_TRY(fl_gguf_out_u32(w->o, fl_config_key(w, sizes[i].key), sizes[i].value));
    }
    return fl_gguf_out_f32(w->o, fl_config_key(w, "attention.layer_norm_rms_epsilon"), (double)c->norm_epsilon);
}

static folollm_status fl_config_put_windows(fl_config_out *w) {
    const fl_config *c = w->c;
    uint32_t n_sliding = 0;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        n_sliding += fl_config_window(c, i) != 0;
    }
    if (n_sliding == 0) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_gguf_out_u32(w->o, fl_config_key(w, "attention.sliding_window"), c->window));
    if (n_sliding == c->n_layers) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_gguf_out_array(w->o, fl_config_key(w, "attention.sliding_window_pattern"), FL_GGUF_BOOL, c->n_layers));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        FL_TRY(fl_gguf_out_number(w->o, fl_config_window(c, i) != 0, 1));
    }
    return FOLOLLM_OK;
}

static folollm_status fl_config_put_yarn(fl_config_out *w) {
    const fl_rope_config *r = &w->c->rope;
    FL_TRY(fl_gguf_out_u32(w->o, fl_config_key(w, "rope.scaling.original_context_length"), (uint32_t)r->original));
    if (r->attention_factor != 0 || (r->mscale != 0 && r->mscale_all_dim != 0)) {
        FL_TRY(fl_gguf_out_f32(w->o, fl_config_key(w, "rope.scaling.yarn_attn_factor"), (double)fl_rope_scale(w->c)));
    }
    FL_TRY(fl_gguf_out_f32(w->o, fl_config_key(w, "rope.scaling.yarn_beta_fast"), r->beta_fast));
    return fl_gguf_out_f32(w->o, fl_config_key(w, "rope.scaling.yarn_beta_slow"), r->beta_slow);
}

static folollm_status fl_config_put_rope(fl_config_out *w) {
    const fl_rope_config *r = &w->c->rope;
    FL_TRY(fl_gguf_out_f32(w->o, fl_config_key(w, "rope.freq_base"), r->theta));
    if (r->kind != FL_ROPE_LINEAR && r->kind != FL_ROPE_YARN) {
        return FOLOLLM_OK;
    }
    fl_str name = fl_str_of(r->kind == FL_ROPE_YARN ? "yarn" : "linear");
    FL_TRY(fl_gguf_out_string(w->o, fl_config_key(w, "rope.scaling.type"), name));
    FL_TRY(fl_gguf_out_f32(w->o, fl_config_key(w, "rope.scaling.factor"), r->factor));
    return r->kind == FL_ROPE_YARN ? fl_config_put_yarn(w) : FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_config_put_gguf(const fl_config *c, fl_gguf_out *o, folollm_error *error) {
    fl_config_out w = {.c = c, .o = o};
    FL_TRY(fl_config_fits_gguf(c, error));
    FL_TRY(fl_gguf_out_string(o, "general.architecture", fl_str_of(fl_config_name_in_gguf(c))));
    FL_TRY(fl_config_put_sizes(&w));
    FL_TRY(fl_config_put_windows(&w));
    return fl_config_put_rope(&w);
}
