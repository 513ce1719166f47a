#include "model/generation.h"

#include "base/os.h"
#include "formats/json.h"

#define FL_GENERATION_MAX_BYTES (1u << 20)

FL_LOCAL void fl_generation_add_eos(fl_generation *g, folollm_token id) {
    for (size_t i = 0; i < g->n_eos; i++) {
        if (g->eos[i] == id) {
            return;
        }
    }
    if (id >= 0 && g->n_eos < FL_EOS_MAX) {
        g->eos[g->n_eos++] = id;
    }
}

/* eos_token_id: an integer, a list of them, or null. */
static folollm_status fl_generation_eos(fl_generation *g, const fl_json *doc, folollm_error *error) {
    uint32_t node = fl_json_get(doc, 0, "eos_token_id");
    fl_json_type type = fl_json_type_of(doc, node);
    uint64_t id;
    if (type == FL_JSON_NULL) {
        return FOLOLLM_OK;
    }
    uint32_t i = type == FL_JSON_ARRAY ? node + 1 : node;
    uint32_t end = type == FL_JSON_ARRAY ? doc->nodes[node].next : node + 1;
    for (; i < end; i = doc->nodes[i].next) {
        if (!fl_json_integer(doc, i, INT32_MAX, &id)) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"eos_token_id\" must be a token id or a list of them",
                           doc->name);
        }
        fl_generation_add_eos(g, (folollm_token)id);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_generation_number(const fl_json *doc, const char *key, double missing, double low,
                                           double high, float *out, folollm_error *error) {
    double value;
    FL_TRY(fl_json_double(doc, 0, key, missing, &value, error));
    if (!(value >= low && value <= high)) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"%s\" is %g; expected %g to %g", doc->name, key, value, low,
                       high);
    }
    *out = (float)value;
    return FOLOLLM_OK;
}

/* The defaults of a missing key are those of transformers' GenerationConfig. */
static folollm_status fl_generation_sampling(folollm_sampling *s, const fl_json *doc, folollm_error *error) {
    bool sample;
    FL_TRY(fl_json_bool(doc, 0, "do_sample", false, &sample, error));
    FL_TRY(fl_generation_number(doc, "repetition_penalty", 1, 1e-3, 100, &s->repetition_penalty, error));
    if (!sample) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_generation_number(doc, "temperature", 1, 0, 100, &s->temperature, error));
    FL_TRY(fl_generation_number(doc, "top_p", 1, 0, 1, &s->top_p, error));
    FL_TRY(fl_generation_number(doc, "min_p", 0, 0, 1, &s->min_p, error));
    return fl_json_u32(doc, 0, "top_k", 50, &s->top_k, error);
}

static folollm_status fl_generation_file(fl_memory *m, fl_generation *g, const char *directory, const char *name,
                                         bool sampling, folollm_error *error) {
    fl_str text;
    fl_json doc;
    bool found;
    FL_TRY(fl_file_slurp(m, directory, name, FL_GENERATION_MAX_BYTES, &found, &text, error));
    if (!found) {
        return FOLOLLM_OK;
    }
    folollm_status status = fl_json_parse(m, &doc, name, text, error);
    if (status == FOLOLLM_OK) {
        status = fl_json_type_of(&doc, 0) == FL_JSON_OBJECT
                     ? fl_generation_eos(g, &doc, error)
                     : fl_fail(error, FOLOLLM_E_FORMAT, "%s holds no JSON object", name);
        if (status == FOLOLLM_OK && sampling) {
            status = fl_generation_sampling(&g->sampling, &doc, error);
        }
        fl_json_free(m, &doc);
    }
    fl_free(m, (void *)(uintptr_t)text.at, text.n);
    return status;
}

FL_LOCAL folollm_status fl_generation_read(fl_memory *m, fl_generation *g, const char *directory,
                                           folollm_error *error) {
    memset(g, 0, sizeof *g);
    FL_TRY(fl_generation_file(m, g, directory, "generation_config.json", true, error));
    return fl_generation_file(m, g, directory, "config.json", false, error);
}

/* ---- GGUF -- */

static const char *const fl_generation_keys[] = { /* of text, turn and message */
    "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};

/* Special tokens that end a text wherever they are. */
static void fl_generation_add_known(fl_generation *g, const fl_tokenizer *t) {
    static const char *const names[] = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>",
                                        "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"};
    for (size_t i = 0; t != NULL && i < FL_COUNT(names); i++) {
        folollm_token id = fl_tokenizer_find(t, fl_str_of(names[i]));
        fl_generation_add_eos(g, fl_tokenizer_is_special(t, id) ? id : -1);
    }
}

FL_LOCAL folollm_status fl_generation_of_gguf(fl_generation *generation, const fl_gguf *g, const fl_tokenizer *t,
                                              folollm_error *error) {
    memset(generation, 0, sizeof *generation);
    for (size_t i = 0; i < FL_COUNT(fl_generation_keys); i++) {
        const char *key = fl_generation_keys[i];
        uint32_t number = UINT32_MAX;
        FL_TRY(fl_gguf_u32(g, key, UINT32_MAX, &number, error));
        folollm_token id = number <= INT32_MAX ? (folollm_token)number : -1;
        if (t != NULL && fl_gguf_find(g, key) != NULL && !fl_tokenizer_has_id(t, id)) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"%s\" is %u, an id that no token has", g->file.path, key,
                           (uint64_t)number);
        }
        fl_generation_add_eos(generation, id);
    }
    fl_generation_add_known(generation, t);
    return FOLOLLM_OK;
}

/* The tokenizer's own EOS first; of the others, those that nobody finds by their spelling. */
FL_LOCAL folollm_status fl_generation_put_gguf(const fl_generation *generation, const fl_tokenizer *t, fl_gguf_out *o,
                                               folollm_error *error) {
    fl_generation known = {.n_eos = 0};
    size_t n_put = 0;
    fl_generation_add_known(&known, t);
    for (size_t i = 0; i <= generation->n_eos; i++) {
        folollm_token id = i > 0 ? generation->eos[i - 1] : t != NULL ? fl_tokenizer_eos(t) : -1;
        bool has = id >= 0 && (t == NULL || fl_tokenizer_has_id(t, id));
        size_t n_known = known.n_eos;
        fl_generation_add_eos(&known, has ? id : -1);
        if (!has || (n_put > 0 && known.n_eos == n_known)) {
            continue;
        }
        if (n_put == FL_COUNT(fl_generation_keys)) {
            return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "generation_config.json: GGUF cannot say that so many ids end "
                                                         "a text (eos_token_id)");
        }
        FL_TRY(fl_gguf_out_u32(o, fl_generation_keys[n_put++], (uint32_t)id));
    }
    return FOLOLLM_OK;
}
