#include "model/adapter.h"

#include "base/math.h"
#include "formats/json.h"
#include "formats/safetensors.h"

#define FL_ADAPTER_CONFIG_MAX_BYTES (16u << 20)
#define FL_ADAPTER_RANK_MAX 65536u /* of a file */
#define FL_PATH_ROOM 64            /* of a module's name */

static const char *const fl_adapter_config_name = "adapter_config.json";

typedef struct fl_adapter_reader {
    fl_memory *memory;
    fl_adapter *adapter;
    const fl_config *c;
    fl_tensors tensors;
    fl_json doc;
    uint32_t rank, max_rank;
    double alpha, scale;
    bool by_root; /* rsLoRA */
    uint8_t *raw; /* (raw_bytes) a tensor as the file has it */
    size_t raw_bytes;
    folollm_error *error;
} fl_adapter_reader;

/* ---- adapter_config.json -- */

static folollm_status fl_adapter_refuse(const fl_adapter_reader *r, const char *key, const char *what) {
    return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: \"%s\": %s", r->doc.name, key, what);
}

/* Absent, null, false, or empty. */
static bool fl_adapter_lacks(const fl_adapter_reader *r, const char *key) {
    uint32_t node = fl_json_get(&r->doc, 0, key);
    fl_json_type type = fl_json_type_of(&r->doc, node);
    return type == FL_JSON_NULL || type == FL_JSON_FALSE ||
           ((type == FL_JSON_ARRAY || type == FL_JSON_OBJECT) && r->doc.nodes[node].n_children == 0);
}

/* What would change the numbers and is not computed here. */
static folollm_status fl_adapter_check_kind(const fl_adapter_reader *r) {
    static const char *const others[][2] = {
        {"use_dora", "DoRA is not computed here"},
        {"modules_to_save", "whole trained modules are not taken from adapters; merge them into the checkpoint"},
        {"lora_bias", "biases of adapters are not computed here"},
        {"layer_replication", "models with repeated layers are not computed here"},
        {"use_qalora", "QALoRA is not computed here"},
        {"use_bdlora", "block-diagonal LoRA is not computed here"},
        {"kasa_config", "KaSA is not computed here"},
        {"monteclora_config", "MonteCLoRA is not computed here"},
        {"target_parameters", "adapters of parameters that are no linear layers are not computed here"},
        {"trainable_token_indices", "trained rows of the embedding are not taken from adapters"},
        {"alora_invocation_tokens", "adapters that begin in the middle of a prompt are not computed here"},
        {"arrow_config", "routing between adapters is not computed here"},
    };
    static const char *const residual[] = {"pissa", "olora", "loftq", "corda", "lora_ga"};
    uint32_t type = fl_json_get(&r->doc, 0, "peft_type"), bias = fl_json_get(&r->doc, 0, "bias");
    uint32_t init = fl_json_get(&r->doc, 0, "init_lora_weights");
    if (!fl_json_is(&r->doc, type, "LORA")) {
        return fl_adapter_refuse(r, "peft_type", "only \"LORA\" is computed here");
    }
    if (!fl_adapter_lacks(r, "bias") && !fl_json_is(&r->doc, bias, "none")) {
        return fl_adapter_refuse(r, "bias", "only \"none\" is computed here");
    }
    for (size_t i = 0; i < FL_COUNT(others); i++) {
        if (!fl_adapter_lacks(r, others[i][0])) {
            return fl_adapter_refuse(r, others[i][0], others[i][1]);
        }
    }
    for (size_t i = 0; i < FL_COUNT(residual) && fl_json_type_of(&r->doc, init) == FL_JSON_STRING; i++) {
        size_t n = strlen(residual[i]);
        const fl_json_node *node = &r->doc.nodes[init];
        if (node->n >= n && memcmp(r->doc.text.at + node->begin, residual[i], n) == 0) {
            return fl_adapter_refuse(r, "init_lora_weights",
                                     "it belongs to a base whose weights were changed with it; save it as plain LoRA");
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_adapter_read_config(fl_adapter_reader *r, float scale) {
    FL_TRY(fl_json_type_of(&r->doc, 0) == FL_JSON_OBJECT
               ? fl_adapter_check_kind(r)
               : fl_fail(r->error, FOLOLLM_E_FORMAT, "%s must be an object", r->doc.name));
    FL_TRY(fl_json_u32(&r->doc, 0, "r", 8, &r->rank, r->error));
    FL_TRY(fl_json_double(&r->doc, 0, "lora_alpha", 8, &r->alpha, r->error));
    FL_TRY(fl_json_bool(&r->doc, 0, "use_rslora", false, &r->by_root, r->error));
    r->scale = (double)scale;
    return FOLOLLM_OK;
}

/* Does a key of a pattern name this module? PEFT takes keys for regular expressions that a path must end in, behind a
 * dot, or with '^' be; only those that are plain names are read here. */
static folollm_status fl_pattern_matches(const fl_adapter_reader *r, const char *pattern, uint32_t key,
                                         const char *path, bool *matches) {
    const fl_json_node *node = &r->doc.nodes[key];
    fl_str name = {r->doc.text.at + node->begin, node->n};
    bool whole = name.n > 0 && name.at[0] == '^';
    name.at += whole;
    name.n -= whole;
    for (size_t i = 0; i < name.n; i++) {
        char c = name.at[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                     c == '-' || c == '.';
        if (!plain) {
            return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                           "%s: \"%s\": the key %S is an expression; only names of modules are read here", r->doc.name,
                           pattern, &name);
        }
    }
    size_t n = strlen(path), before = n - fl_min(name.n, n);
    *matches = name.n > 0 && name.n <= n && memcmp(path + before, name.at, name.n) == 0 &&
               (before == 0 || (!whole && path[before - 1] == '.'));
    return FOLOLLM_OK;
}

/* The number that the first matching key of rank_pattern or alpha_pattern gives for a module, or what *value holds. */
static folollm_status fl_adapter_pattern(const fl_adapter_reader *r, const char *pattern, const char *path,
                                         double *value) {
    uint32_t map = fl_json_get(&r->doc, 0, pattern);
    if (fl_adapter_lacks(r, pattern)) {
        return FOLOLLM_OK;
    }
    if (fl_json_type_of(&r->doc, map) != FL_JSON_OBJECT) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be an object", r->doc.name, pattern);
    }
    for (uint32_t i = map + 1; i < r->doc.nodes[map].next; i = r->doc.nodes[i + 1].next) {
        bool matches = false;
        FL_TRY(fl_pattern_matches(r, pattern, i, path, &matches));
        if (matches) {
            char key[FL_PATH_ROOM] = {0}; /* no longer than a path and a '^' */
            memcpy(key, r->doc.text.at + r->doc.nodes[i].begin, r->doc.nodes[i].n);
            return fl_json_double(&r->doc, map, key, *value, value, r->error);
        }
    }
    return FOLOLLM_OK;
}

/* ---- Tensors -- */

static const fl_tensor *fl_adapter_find(const fl_adapter_reader *r, const char *path, const char *suffix, char *name,
                                        size_t room) {
    size_t n = fl_format(name, room, "base_model.model.%s.%s.weight", path, suffix);
    return fl_tensors_find(&r->tensors, (fl_str){name, n});
}

static folollm_status fl_adapter_check_tensor(const fl_adapter_reader *r, const fl_tensor *t, uint64_t n_rows,
                                              uint64_t n_cols) {
    if (t->n_dims != 2 || t->shape[0] != n_rows || t->shape[1] != n_cols) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: tensor %S is %u x %u (%u dimensions); the model and %s imply %u x %u",
                       r->tensors.files[0].path, &t->name, t->n_dims > 0 ? t->shape[0] : 0,
                       t->n_dims > 1 ? t->shape[1] : 0, (uint64_t)t->n_dims, fl_adapter_config_name, n_rows, n_cols);
    }
    if (t->type == FL_DTYPE_OTHER) {
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: tensor %S has type %s; BF16, F16 and F32 are computed",
                       r->tensors.files[0].path, &t->name, t->type_name);
    }
    return FOLOLLM_OK;
}

/* Rows of a tensor times factor to out, padded. */
static folollm_status fl_adapter_read_rows(fl_adapter_reader *r, const fl_tensor *t, double factor, float *out) {
    size_t n_rows = (size_t)t->shape[0], n_cols = (size_t)t->shape[1], row_bytes = n_cols * fl_dtype_bytes(t->type);
    FL_TRY(fl_file_read(&r->tensors.files[t->file], t->offset, r->raw, (size_t)t->n_bytes, r->error));
    for (size_t row = 0; row < n_rows; row++, out += fl_padded(n_cols)) {
        fl_to_float(t->type, r->raw + row * row_bytes, n_cols, out);
        for (size_t i = 0; i < n_cols; i++) {
            out[i] = (float)((double)out[i] * factor);
            if (!fl_is_finite(out[i])) {
                return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor %S: number %u of row %u is not finite",
                               r->tensors.files[0].path, &t->name, (uint64_t)i, (uint64_t)row);
            }
            r->adapter->fingerprint = fl_mix(r->adapter->fingerprint ^ fl_bits_of_float(out[i]));
        }
    }
    return FOLOLLM_OK;
}

/* rank and factor of a module that the file has a pair for. */
static folollm_status fl_adapter_scale(const fl_adapter_reader *r, const char *path, uint32_t *rank, double *factor) {
    double alpha = r->alpha, wanted = r->rank;
    FL_TRY(fl_adapter_pattern(r, "rank_pattern", path, &wanted));
    FL_TRY(fl_adapter_pattern(r, "alpha_pattern", path, &alpha));
    *rank = wanted >= 1 && wanted <= FL_ADAPTER_RANK_MAX ? (uint32_t)wanted : 0;
    if (*rank == 0 || (double)*rank != wanted || !(alpha >= -1e9 && alpha <= 1e9)) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: %s has rank %g and alpha %g; a rank is from 1 to %u",
                       r->doc.name, path, wanted, alpha, (uint64_t)FL_ADAPTER_RANK_MAX);
    }
    if (*rank > r->max_rank) {
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                       "%s: %s has rank %u; the engine was loaded for ranks up to %u (options.max_rank)", r->doc.name,
                       path, (uint64_t)*rank, (uint64_t)r->max_rank);
    }
    *factor = r->scale * alpha / (r->by_root ? fl_pow((double)*rank, 0.5) : (double)*rank);
    return FOLOLLM_OK;
}

/* One linear layer of n_out by n_in. */
static folollm_status fl_adapter_bind(fl_adapter_reader *r, const char *path, size_t n_out, size_t n_in,
                                      fl_low_rank *out) {
    char name_a[128], name_b[128];
    const fl_tensor *a = fl_adapter_find(r, path, "lora_A", name_a, sizeof name_a);
    const fl_tensor *b = fl_adapter_find(r, path, "lora_B", name_b, sizeof name_b);
    uint32_t rank = 0;
    double factor = 0;
    memset(out, 0, sizeof *out);
    if (a == NULL && b == NULL) {
        return FOLOLLM_OK;
    }
    if (a == NULL || b == NULL) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor \"%s\" is missing, and \"%s\" is there",
                       r->tensors.files[0].path, a == NULL ? name_a : name_b, a == NULL ? name_b : name_a);
    }
    FL_TRY(fl_adapter_scale(r, path, &rank, &factor));
    FL_TRY(fl_adapter_check_tensor(r, a, rank, n_in));
    FL_TRY(fl_adapter_check_tensor(r, b, n_out, rank));
    r->tensors.tensors[a - r->tensors.tensors].bound = true;
    r->tensors.tensors[b - r->tensors.tensors].bound = true;
    r->raw_bytes = fl_max(r->raw_bytes, (size_t)fl_max(a->n_bytes, b->n_bytes));
    float *rows_a = fl_take(&r->adapter->arena, rank, fl_padded(n_in) * sizeof *rows_a);
    float *rows_b = fl_take(&r->adapter->arena, n_out, fl_padded(rank) * sizeof *rows_b);
    if (rows_a == NULL || rows_b == NULL) {
        return FOLOLLM_OK;
    }
    r->adapter->fingerprint = fl_mix(r->adapter->fingerprint ^ fl_mix((uint64_t)(out - r->adapter->low_ranks) + rank));
    out->rank = rank;
    out->a = rows_a;
    out->b = rows_b;
    FL_TRY(fl_adapter_read_rows(r, a, 1, rows_a));
    return fl_adapter_read_rows(r, b, factor, rows_b);
}

/* Every linear layer of the model, dry or real. */
static folollm_status fl_adapter_walk(fl_adapter_reader *r) {
    const fl_config *c = r->c;
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    const struct {
        const char *name;
        size_t n_out, n_in;
    } linears[FL_LINEARS] = {
        {"self_attn.q_proj", q, c->dim},       {"self_attn.k_proj", kv, c->dim},    {"self_attn.v_proj", kv, c->dim},
        {"self_attn.o_proj", c->dim, q},       {"mlp.gate_proj", c->ffn_dim, c->dim},
        {"mlp.up_proj", c->ffn_dim, c->dim},   {"mlp.down_proj", c->dim, c->ffn_dim},
    };
    fl_low_rank unused, *at = fl_take(&r->adapter->arena, (size_t)c->n_layers * FL_LINEARS, sizeof *at);
    r->adapter->low_ranks = at;
    for (size_t i = 0; i < (size_t)c->n_layers * FL_LINEARS; i++) {
        size_t k = i % FL_LINEARS;
        char path[FL_PATH_ROOM - 1];
        fl_format(path, sizeof path, "model.layers.%u.%s", (uint64_t)(i / FL_LINEARS), linears[k].name);
        FL_TRY(fl_adapter_bind(r, path, linears[k].n_out, linears[k].n_in, at != NULL ? &at[i] : &unused));
    }
    return FOLOLLM_OK;
}

static folollm_status fl_adapter_check_all_bound(const fl_adapter_reader *r) {
    for (size_t i = 0; i < r->tensors.n_tensors; i++) {
        const fl_tensor *t = &r->tensors.tensors[i];
        if (!t->bound) {
            return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                           "%s: tensor %S belongs to no pair of a linear layer of this model",
                           r->tensors.files[0].path, &t->name);
        }
    }
    if (r->tensors.n_tensors == 0) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s holds no tensor", r->tensors.files[0].path);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_adapter_read_tensors(fl_adapter_reader *r) {
    FL_TRY(fl_adapter_walk(r));
    FL_TRY(fl_adapter_check_all_bound(r));
    FL_TRY(fl_arena_open(r->memory, &r->adapter->arena, "an adapter", r->error));
    r->raw = fl_alloc_raw(r->memory, r->raw_bytes);
    if (r->raw == NULL) {
        return fl_no_memory(r->error, "a tensor of an adapter", r->raw_bytes);
    }
    size_t n = r->raw_bytes;
    folollm_status status = fl_adapter_walk(r);
    fl_free(r->memory, r->raw, n);
    return status;
}

static folollm_status fl_adapter_read(fl_adapter_reader *r, const char *directory, float scale) {
    FL_TRY(fl_adapter_read_config(r, scale));
    FL_TRY(fl_tensors_open(r->memory, &r->tensors, directory, "adapter_model.safetensors", r->error));
    folollm_status status = fl_adapter_read_tensors(r);
    fl_tensors_close(&r->tensors);
    return status;
}

FL_LOCAL folollm_status fl_adapter_open(fl_memory *m, fl_adapter *a, const fl_config *c, const char *directory,
                                        float scale, uint32_t max_rank, folollm_error *error) {
    fl_adapter_reader r = {.memory = m, .adapter = a, .c = c, .max_rank = max_rank, .error = error};
    fl_str text;
    memset(a, 0, sizeof *a);
    FL_TRY(fl_file_slurp(m, directory, fl_adapter_config_name, FL_ADAPTER_CONFIG_MAX_BYTES, NULL, &text, error));
    folollm_status status = fl_json_parse(m, &r.doc, fl_adapter_config_name, text, error);
    if (status == FOLOLLM_OK) {
        status = fl_adapter_read(&r, directory, scale);
        fl_json_free(m, &r.doc);
    }
    fl_free(m, (void *)(uintptr_t)text.at, text.n);
    if (status != FOLOLLM_OK) {
        fl_adapter_close(m, a);
    }
    return status;
}

FL_LOCAL void fl_adapter_close(fl_memory *m, fl_adapter *a) {
    fl_arena_close(m, &a->arena);
    memset(a, 0, sizeof *a);
}
