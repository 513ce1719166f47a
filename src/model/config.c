#include "model/config.h"

#include "base/os.h"
#include "formats/json.h"

#define FL_CONFIG_MAX_BYTES (1u << 20)

/* Which layers slide when the config does not list them. */
typedef enum fl_window_rule {
    FL_WINDOW_NEVER,
    FL_WINDOW_ALL,  /* mistral: every layer, if sliding_window is set; 4096 if the key is not there */
    FL_WINDOW_UPPER /* qwen: if use_sliding_window, the layers from max_window_layers on */
} fl_window_rule;

typedef struct fl_architecture {
    const char *model_type;
    bool qk_norm;          /* RMSNorm per head on q and k, before the rotation */
    bool always_qkv_bias;  /* else as attention_bias says, and then o has one too */
    bool attention_bias, mlp_bias; /* does it look at these keys? */
    fl_window_rule window;
    uint32_t missing_kv_heads; /* when num_key_value_heads is not there; 0: as many as heads */
    uint32_t missing_head_dim; /* 0: hidden_size / heads */
    uint32_t missing_positions;
} fl_architecture;

static const fl_architecture fl_architectures[] = {
    {"qwen3", true, false, true, false, FL_WINDOW_UPPER, 32, 128, 32768},
    {"qwen2", false, true, false, false, FL_WINDOW_UPPER, 32, 0, 32768},
    {"llama", false, false, true, true, FL_WINDOW_NEVER, 0, 0, 2048},
    {"mistral", false, false, false, false, FL_WINDOW_ALL, 8, 0, 131072},
};

typedef struct fl_config_reader {
    const fl_json *doc;
    fl_config *c;
    const fl_architecture *arch;
    folollm_error *error;
} fl_config_reader;

static folollm_status fl_config_bad(const fl_config_reader *r, folollm_status status, const char *key,
                                    const char *what) {
    return fl_fail(r->error, status, "%s: \"%s\": %s", r->doc->name, key, what);
}

static bool fl_config_has(const fl_config_reader *r, const char *key) {
    return fl_json_get(r->doc, 0, key) != FL_JSON_NONE;
}

static bool fl_config_is_null(const fl_config_reader *r, const char *key) {
    return fl_config_has(r, key) && fl_json_type_of(r->doc, fl_json_get(r->doc, 0, key)) == FL_JSON_NULL;
}

/* An integer in [1, max]; missing 0: the key must be there. */
static folollm_status fl_config_size(const fl_config_reader *r, const char *key, uint32_t missing, uint32_t max,
                                     uint32_t *out) {
    if (missing == 0 && !fl_config_has(r, key)) {
        return fl_config_bad(r, FOLOLLM_E_FORMAT, key, "the key is missing");
    }
    FL_TRY(fl_json_u32(r->doc, 0, key, missing, out, r->error));
    if (*out == 0 || *out > max) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be from 1 to %u; found %u", r->doc->name, key,
                       (uint64_t)max, (uint64_t)*out);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_config_architecture(fl_config_reader *r) {
    uint32_t node = fl_json_get(r->doc, 0, "model_type");
    for (size_t i = 0; i < FL_COUNT(fl_architectures); i++) {
        if (fl_json_is(r->doc, node, fl_architectures[i].model_type)) {
            r->arch = &fl_architectures[i];
            memcpy(r->c->architecture, r->arch->model_type, strlen(r->arch->model_type) + 1);
        }
    }
    if (r->arch == NULL) {
        fl_str found = fl_json_found(r->doc, node);
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                       "%s: \"model_type\" is %S; known are qwen3, qwen2, llama and mistral", r->doc->name, &found);
    }
    uint32_t activation = fl_json_get(r->doc, 0, "hidden_act");
    if (activation != FL_JSON_NONE && !fl_json_is(r->doc, activation, "silu")) {
        return fl_config_bad(r, FOLOLLM_E_UNSUPPORTED, "hidden_act", "only \"silu\" is computed here");
    }
    return FOLOLLM_OK;
}

static folollm_status fl_config_shapes(fl_config_reader *r) {
    fl_config *c = r->c;
    FL_TRY(fl_config_size(r, "num_hidden_layers", 0, FL_LAYERS_MAX, &c->n_layers));
    FL_TRY(fl_config_size(r, "hidden_size", 0, 1u << 17, &c->dim));
    FL_TRY(fl_config_size(r, "num_attention_heads", 0, 4096, &c->n_heads));
    FL_TRY(fl_config_size(r, "intermediate_size", 0, 1u << 20, &c->ffn_dim));
    FL_TRY(fl_config_size(r, "vocab_size", 0, 1u << 24, &c->vocab));
    FL_TRY(fl_config_size(r, "max_position_embeddings", r->arch->missing_positions, 1u << 26, &c->max_positions));
    uint32_t kv_missing = r->arch->missing_kv_heads;
    if (kv_missing == 0 || fl_config_is_null(r, "num_key_value_heads")) {
        kv_missing = c->n_heads;
    }
    FL_TRY(fl_config_size(r, "num_key_value_heads", kv_missing, 4096, &c->n_kv_heads));
    uint32_t derived = c->dim / c->n_heads;
    if (r->arch->missing_head_dim != 0 && !fl_config_has(r, "head_dim")) {
        derived = r->arch->missing_head_dim;
    }
    FL_TRY(fl_config_size(r, "head_dim", derived == 0 ? 1 : derived, FL_HEAD_DIM_MAX, &c->head_dim));
    double epsilon;
    FL_TRY(fl_json_double(r->doc, 0, "rms_norm_eps", 1e-6, &epsilon, r->error));
    if (!(epsilon >= 0 && epsilon <= 1)) {
        return fl_config_bad(r, FOLOLLM_E_FORMAT, "rms_norm_eps", "must be from 0 to 1");
    }
    c->norm_epsilon = (float)epsilon;
    c->qk_norm = r->arch->qk_norm;
    FL_TRY(fl_json_bool(r->doc, 0, "tie_word_embeddings", false, &c->tied, r->error));
    bool attention_bias = false;
    if (r->arch->attention_bias) {
        FL_TRY(fl_json_bool(r->doc, 0, "attention_bias", false, &attention_bias, r->error));
    }
    if (r->arch->mlp_bias) {
        FL_TRY(fl_json_bool(r->doc, 0, "mlp_bias", false, &c->mlp_bias, r->error));
    }
    c->qkv_bias = attention_bias || r->arch->always_qkv_bias;
    c->o_bias = attention_bias;
    return FOLOLLM_OK;
}

/* ---- Windows -- */

static folollm_status fl_config_layer_types(fl_config_reader *r, uint32_t list) {
    uint32_t layer = 0;
    if (fl_json_type_of(r->doc, list) != FL_JSON_ARRAY || r->doc->nodes[list].n_children != r->c->n_layers) {
        return fl_config_bad(r, FOLOLLM_E_FORMAT, "layer_types", "must be a list with one entry per layer");
    }
    for (uint32_t i = list + 1; i < r->doc->nodes[list].next; i = r->doc->nodes[i].next, layer++) {
        if (fl_json_is(r->doc, i, "sliding_attention")) {
            fl_config_slide(r->c, layer);
            if (r->c->window == 0) {
                return fl_config_bad(r, FOLOLLM_E_FORMAT, "layer_types",
                                     "a layer slides, but no sliding_window is in force");
            }
        } else if (!fl_json_is(r->doc, i, "full_attention")) {
            return fl_config_bad(r, FOLOLLM_E_UNSUPPORTED, "layer_types",
                                 "known are \"full_attention\" and \"sliding_attention\"");
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_config_windows(fl_config_reader *r) {
    fl_config *c = r->c;
    uint32_t first = 0;
    bool use = r->arch->window == FL_WINDOW_ALL;
    if (r->arch->window == FL_WINDOW_NEVER) {
        return FOLOLLM_OK;
    }
    if (r->arch->window == FL_WINDOW_UPPER) {
        FL_TRY(fl_json_bool(r->doc, 0, "use_sliding_window", false, &use, r->error));
        FL_TRY(fl_json_u32(r->doc, 0, "max_window_layers", 28, &first, r->error));
    }
    uint32_t missing = fl_config_is_null(r, "sliding_window") ? 0 : 4096;
    FL_TRY(fl_json_u32(r->doc, 0, "sliding_window", missing, &c->window, r->error));
    c->window = use ? c->window : 0;
    uint32_t list = fl_json_get(r->doc, 0, "layer_types");
    if (r->arch->window == FL_WINDOW_UPPER && fl_json_type_of(r->doc, list) != FL_JSON_NULL) {
        return fl_config_layer_types(r, list);
    }
    for (uint32_t layer = first; layer < c->n_layers; layer++) {
        fl_config_slide(c, layer);
    }
    return FOLOLLM_OK;
}

/* ---- RoPE: rope_theta and rope_scaling, or rope_parameters with both -- */

static const struct {
    const char *name;
    fl_rope_kind kind;
} fl_rope_names[] = {
    {"default", FL_ROPE_DEFAULT}, {"linear", FL_ROPE_LINEAR}, {"ntk", FL_ROPE_NTK},
    {"dynamic", FL_ROPE_DYNAMIC}, {"yarn", FL_ROPE_YARN},     {"llama3", FL_ROPE_LLAMA3},
};

static folollm_status fl_rope_kind_of(fl_config_reader *r, uint32_t object, fl_rope_kind *kind) {
    uint32_t node = fl_json_get(r->doc, object, "rope_type");
    node = fl_json_type_of(r->doc, node) == FL_JSON_NULL ? fl_json_get(r->doc, object, "type") : node;
    *kind = FL_ROPE_DEFAULT;
    if (fl_json_type_of(r->doc, node) == FL_JSON_NULL) {
        return FOLOLLM_OK;
    }
    for (size_t i = 0; i < FL_COUNT(fl_rope_names); i++) {
        if (fl_json_is(r->doc, node, fl_rope_names[i].name)) {
            *kind = fl_rope_names[i].kind;
            return FOLOLLM_OK;
        }
    }
    fl_str found = {r->doc->text.at + r->doc->nodes[node].begin, r->doc->nodes[node].n};
    return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                   "%s: the RoPE type is %S; known are default, linear, ntk, dynamic, yarn and llama3", r->doc->name,
                   &found);
}

static folollm_status fl_rope_numbers(fl_config_reader *r, uint32_t object) {
    fl_rope_config *rope = &r->c->rope;
    const fl_json *d = r->doc;
    double positions = r->c->max_positions, partial;
    FL_TRY(fl_json_double(d, 0, "rope_theta", 10000, &rope->theta, r->error));
    FL_TRY(fl_json_double(d, object, "rope_theta", rope->theta, &rope->theta, r->error));
    FL_TRY(fl_json_double(d, object, "original_max_position_embeddings", positions, &rope->original, r->error));
    FL_TRY(fl_json_double(d, 0, "original_max_position_embeddings", rope->original, &rope->original, r->error));
    FL_TRY(fl_json_double(d, object, "factor", 0, &rope->factor, r->error));
    FL_TRY(fl_json_double(d, object, "beta_fast", 0, &rope->beta_fast, r->error));
    FL_TRY(fl_json_double(d, object, "beta_slow", 0, &rope->beta_slow, r->error));
    FL_TRY(fl_json_double(d, object, "attention_factor", 0, &rope->attention_factor, r->error));
    FL_TRY(fl_json_double(d, object, "mscale", 0, &rope->mscale, r->error));
    FL_TRY(fl_json_double(d, object, "mscale_all_dim", 0, &rope->mscale_all_dim, r->error));
    FL_TRY(fl_json_double(d, object, "low_freq_factor", 1, &rope->low_freq_factor, r->error));
    FL_TRY(fl_json_double(d, object, "high_freq_factor", 4, &rope->high_freq_factor, r->error));
    FL_TRY(fl_json_bool(d, object, "truncate", true, &rope->truncate, r->error));
    FL_TRY(fl_json_double(d, 0, "partial_rotary_factor", 1, &partial, r->error));
    FL_TRY(fl_json_double(d, object, "partial_rotary_factor", partial, &partial, r->error));
    rope->beta_fast = rope->beta_fast == 0 ? 32 : rope->beta_fast;
    rope->beta_slow = rope->beta_slow == 0 ? 1 : rope->beta_slow;
    if (partial != 1) {
        return fl_config_bad(r, FOLOLLM_E_UNSUPPORTED, "partial_rotary_factor", "only whole heads are rotated here");
    }
    return FOLOLLM_OK;
}

static bool fl_in_range(double x, double low, double high) {
    return x >= low && x <= high;
}

static folollm_status fl_rope_bad(const char *name, const char *what, folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_FORMAT, "%s: RoPE: %s", name, what);
}

static folollm_status fl_rope_check(fl_config *c, const char *name, folollm_error *error) {
    fl_rope_config *rope = &c->rope;
    bool stretched = rope->kind != FL_ROPE_DEFAULT && rope->kind != FL_ROPE_DIVISORS;
    if (rope->kind == FL_ROPE_YARN && rope->factor == 0) {
        rope->factor = c->max_positions / rope->original;
    }
    if (stretched && !fl_in_range(rope->factor, 1, 1e6)) {
        return fl_rope_bad(name, "scaling needs a \"factor\" from 1 to 1000000", error);
    }
    if (!fl_in_range(rope->theta, 1.0001, 1e15) || !fl_in_range(rope->original, 1, 1e9)) {
        return fl_rope_bad(name, "the base (rope_theta) must be above 1, and the trained length at least 1", error);
    }
    if (!fl_in_range(rope->beta_fast, 1e-6, 1e6) || !fl_in_range(rope->beta_slow, 1e-6, 1e6) ||
        !fl_in_range(rope->attention_factor, 0, 1e6) || !fl_in_range(rope->mscale, 0, 1e6) ||
        !fl_in_range(rope->mscale_all_dim, 0, 1e6)) {
        return fl_rope_bad(name, "a number of yarn is negative or absurd", error);
    }
    if (rope->kind == FL_ROPE_LLAMA3 && !(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor &&
                                          rope->high_freq_factor <= 1e6)) {
        return fl_rope_bad(name, "\"high_freq_factor\" must be above \"low_freq_factor\", and that above 0", error);
    }
    if ((rope->kind == FL_ROPE_NTK || rope->kind == FL_ROPE_DYNAMIC) && c->head_dim < 4) {
        return fl_rope_bad(name, "NTK scaling needs a head_dim of at least 4", error);
    }
    return FOLOLLM_OK;
}

/* linear, NTK and YaRN stretch the written length by their factor; llama3 has done so already; the dynamic kind has
 * no end of its own. */
static uint32_t fl_rope_reach(const fl_config *c) {
    const uint32_t most = 1u << 26;
    double reach = c->max_positions;
    if (c->rope.kind == FL_ROPE_DYNAMIC) {
        return most;
    }
    if (c->rope.kind == FL_ROPE_LINEAR || c->rope.kind == FL_ROPE_NTK) {
        reach *= c->rope.factor;
    } else if (c->rope.kind == FL_ROPE_YARN && c->rope.original * c->rope.factor > reach) {
        reach = c->rope.original * c->rope.factor;
    }
    return reach < most ? (uint32_t)reach : most;
}

static folollm_status fl_config_rope(fl_config_reader *r) {
    uint32_t object = fl_json_get(r->doc, 0, "rope_scaling");
    if (fl_json_type_of(r->doc, object) == FL_JSON_NULL) {
        object = fl_json_get(r->doc, 0, "rope_parameters");
    }
    if (fl_json_type_of(r->doc, object) != FL_JSON_NULL && fl_json_type_of(r->doc, object) != FL_JSON_OBJECT) {
        return fl_config_bad(r, FOLOLLM_E_FORMAT, "rope_scaling", "must be an object or null");
    }
    if (fl_json_get(r->doc, object, "full_attention") != FL_JSON_NONE) {
        return fl_config_bad(r, FOLOLLM_E_UNSUPPORTED, "rope_parameters",
                             "one RoPE per layer type is not computed here");
    }
    FL_TRY(fl_rope_kind_of(r, object, &r->c->rope.kind));
    return fl_rope_numbers(r, object);
}

FL_LOCAL folollm_status fl_config_settle(fl_config *c, const char *name, folollm_error *error) {
    if (c->n_heads % c->n_kv_heads != 0) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: %u attention heads cannot share %u key-value heads", name,
                       (uint64_t)c->n_heads, (uint64_t)c->n_kv_heads);
    }
    if (c->head_dim % 2 != 0) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: head_dim is %u; rotation needs an even one", name,
                       (uint64_t)c->head_dim);
    }
    FL_TRY(fl_rope_check(c, name, error));
    c->max_context = fl_rope_reach(c);
    return FOLOLLM_OK;
}

static folollm_status fl_config_fill(fl_config *c, const fl_json *doc, folollm_error *error) {
    fl_config_reader r = {.doc = doc, .c = c, .error = error};
    if (fl_json_type_of(doc, 0) != FL_JSON_OBJECT) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s must hold a JSON object", doc->name);
    }
    FL_TRY(fl_config_architecture(&r));
    FL_TRY(fl_config_shapes(&r));
    FL_TRY(fl_config_windows(&r));
    FL_TRY(fl_config_rope(&r));
    if (fl_config_has(&r, "quantization_config") && !fl_config_is_null(&r, "quantization_config")) {
        FL_TRY(fl_quantisation_read(&c->quantised, doc, fl_json_get(doc, 0, "quantization_config"), error));
    }
    return fl_config_settle(c, doc->name, error);
}

static folollm_status fl_config_fill_quantised(fl_config *c, const fl_json *doc, folollm_error *error) {
    return fl_quantisation_read(&c->quantised, doc, 0, error);
}

/* found: NULL, or the file may be missing. */
static folollm_status fl_config_file(fl_memory *m, fl_config *c, const char *directory, const char *name, bool *found,
                                     folollm_status (*fill)(fl_config *c, const fl_json *doc, folollm_error *error),
                                     folollm_error *error) {
    fl_str text;
    fl_json doc;
    FL_TRY(fl_file_slurp(m, directory, name, FL_CONFIG_MAX_BYTES, found, &text, error));
    if (found != NULL && !*found) {
        return FOLOLLM_OK;
    }
    folollm_status status = fl_json_parse(m, &doc, name, text, error);
    if (status == FOLOLLM_OK) {
        status = fill(c, &doc, error);
        fl_json_free(m, &doc);
    }
    fl_free(m, (void *)(uintptr_t)text.at, text.n);
    return status;
}

FL_LOCAL folollm_status fl_config_read(fl_memory *m, fl_config *c, const char *directory, folollm_error *error) {
    bool found;
    memset(c, 0, sizeof *c);
    FL_TRY(fl_config_file(m, c, directory, "config.json", NULL, fl_config_fill, error));
    if (c->quantised.format != FL_QUANT_NONE) {
        return FOLOLLM_OK;
    }
    return fl_config_file(m, c, directory, "quantize_config.json", &found, fl_config_fill_quantised, error);
}
