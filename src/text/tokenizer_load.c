/* Opening a tokenizer: tokenizer.json is measured, its memory planned, then filled.
 *
 *     JSON -> parts -> measure: ids, pieces, added tokens, merges -> one arena -> vocabulary, added tokens, merges
 *
 * Measuring and filling read the same nodes. The JSON is gone at the end. */
#include "text/tokenizer_build.h"

#include "base/os.h"

#define FL_LOAD_FILE_BYTES ((size_t)256 << 20)
#define FL_LOAD_CONFIG_BYTES ((size_t)16 << 20)
#define FL_LOAD_SPARSE_IDS 65536u /* so many ids, and so many more for each token, may have gaps between them */
#define FL_LOAD_SPARSE 64u

typedef struct fl_load {
    fl_build b;
    const fl_json *doc;
    uint32_t vocab, merges, added; /* nodes */
    fl_text_buffer token;
} fl_load;

static folollm_status fl_load_no_memory(const fl_load *l) {
    return fl_build_no_memory(&l->b, l->token.n);
}

/* ---- Strings -- */

/* Append a string node, unescaped, to l->token. */
static bool fl_load_append(fl_load *l, uint32_t node) {
    size_t begin = l->token.n, n = l->doc->nodes[node].n;
    if (!fl_text_append(&l->token, l->doc->text.at + l->doc->nodes[node].begin, n)) {
        return false;
    }
    if (l->doc->nodes[node].escaped) {
        l->token.n = begin + fl_json_string(l->doc, node, l->token.at + begin).n;
    }
    return true;
}

/* A string node; valid until the next one is read. */
static bool fl_load_string(fl_load *l, uint32_t node, fl_str *out) {
    l->token.n = 0;
    if (!l->doc->nodes[node].escaped) {
        out->at = l->doc->text.at + l->doc->nodes[node].begin;
        out->n = l->doc->nodes[node].n;
        return true;
    }
    bool ok = fl_load_append(l, node);
    *out = fl_text_of(&l->token);
    return ok;
}

/* ---- Measuring -- */

static folollm_status fl_load_model(fl_load *l) {
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    uint32_t model = fl_json_get(l->doc, 0, "model"), type = fl_json_get(l->doc, model, "type");
    fl_bpe *b = &l->b.t->bpe;
    if (type != FL_JSON_NONE && !fl_json_is(l->doc, type, "BPE")) {
        fl_str found = {l->doc->text.at + l->doc->nodes[type].begin, l->doc->nodes[type].n};
        return fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED, "%s: the model type %S is not supported, only \"BPE\"",
                       l->doc->name, &found);
    }
    for (size_t i = 0; i < FL_COUNT(empty); i++) {
        uint32_t node = fl_json_get(l->doc, model, empty[i]);
        if (fl_json_type_of(l->doc, node) != FL_JSON_NULL && !fl_json_is(l->doc, node, "")) {
            return fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED, "%s: a model with %s is not supported", l->doc->name,
                           empty[i]);
        }
    }
    double dropout;
    FL_TRY(fl_json_double(l->doc, model, "dropout", 0, &dropout, l->b.error));
    if (dropout != 0) {
        return fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED, "%s: a model with dropout %g is not supported", l->doc->name,
                       dropout);
    }
    FL_TRY(fl_json_bool(l->doc, model, "fuse_unk", false, &b->fuse_unk, l->b.error));
    FL_TRY(fl_json_bool(l->doc, model, "byte_fallback", false, &b->byte_fallback, l->b.error));
    FL_TRY(fl_json_bool(l->doc, model, "ignore_merges", false, &b->ignore_merges, l->b.error));
    l->vocab = fl_json_get(l->doc, model, "vocab");
    l->merges = fl_json_get(l->doc, model, "merges");
    l->added = fl_json_get(l->doc, 0, "added_tokens");
    bool lists = fl_json_type_of(l->doc, l->vocab) == FL_JSON_OBJECT &&
                 fl_json_type_of(l->doc, l->merges) == FL_JSON_ARRAY &&
                 (fl_json_type_of(l->doc, l->added) == FL_JSON_ARRAY || l->added == FL_JSON_NONE);
    return lists ? FOLOLLM_OK
                 : fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: a BPE model must have a \"vocab\" object and a "
                                                         "\"merges\" list, and added_tokens must be a list",
                           l->doc->name);
}

static folollm_status fl_load_bad_id(const fl_load *l, fl_str token, uint32_t node) {
    fl_str found = {l->doc->text.at + l->doc->nodes[node].begin, l->doc->nodes[node].n};
    return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %S must have an integer id from 0 to %u; found %S",
                   l->doc->name, &token, (uint64_t)(FL_VOCAB_IDS_MAX - 1), &found);
}

static folollm_status fl_load_measure_vocab(fl_load *l) {
    const fl_json *doc = l->doc;
    for (uint32_t i = l->vocab + 1; i < doc->nodes[l->vocab].next; i = doc->nodes[i + 1].next) {
        fl_str token;
        uint64_t id;
        if (!fl_load_string(l, i, &token)) {
            return fl_load_no_memory(l);
        }
        if (!fl_json_integer(doc, i + 1, FL_VOCAB_IDS_MAX - 1, &id)) {
            return fl_load_bad_id(l, token, i + 1);
        }
        FL_TRY(fl_build_measure(&l->b, token, (uint32_t)id, false));
    }
    return FOLOLLM_OK;
}

/* An entry of added_tokens. *found is how it is looked for in a pass: its content, normalised if it says so. */
typedef struct fl_load_entry {
    fl_str content, found;
    bool special, normalized;
    fl_added_token token;
} fl_load_entry;

static folollm_status fl_load_added_entry(fl_load *l, uint32_t node, fl_load_entry *e) {
    uint32_t content = fl_json_get(l->doc, node, "content"), number = fl_json_get(l->doc, node, "id");
    uint64_t id;
    memset(e, 0, sizeof *e);
    if (fl_json_type_of(l->doc, content) != FL_JSON_STRING || number == FL_JSON_NONE) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: every one of added_tokens must have an \"id\" and a string "
                                                   "\"content\"", l->doc->name);
    }
    if (!fl_load_string(l, content, &e->content)) {
        return fl_load_no_memory(l);
    }
    if (!fl_json_integer(l->doc, number, FL_VOCAB_IDS_MAX - 1, &id)) {
        return fl_load_bad_id(l, e->content, number);
    }
    e->token.id = (uint32_t)id;
    FL_TRY(fl_json_bool(l->doc, node, "special", false, &e->special, l->b.error));
    FL_TRY(fl_json_bool(l->doc, node, "normalized", !e->special, &e->normalized, l->b.error));
    FL_TRY(fl_json_bool(l->doc, node, "single_word", false, &e->token.single_word, l->b.error));
    FL_TRY(fl_json_bool(l->doc, node, "lstrip", false, &e->token.lstrip, l->b.error));
    FL_TRY(fl_json_bool(l->doc, node, "rstrip", false, &e->token.rstrip, l->b.error));
    e->found = e->content;
    if (e->normalized && !fl_norm_apply(&l->b.t->normalizer, e->content, l->b.normal, &e->found)) {
        return fl_load_no_memory(l);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_load_measure_added(fl_load *l) {
    fl_build *b = &l->b;
    size_t n_listed = l->added != FL_JSON_NONE ? l->doc->nodes[l->added].n_children : 0;
    for (uint32_t i = l->added + 1; n_listed > 0 && i < l->doc->nodes[l->added].next; i = l->doc->nodes[i].next) {
        fl_load_entry e;
        FL_TRY(fl_load_added_entry(l, i, &e));
        FL_TRY(fl_build_measure(b, e.content, e.token.id, true));
        FL_TRY(fl_build_measure_added(b, e.found.n));
    }
    b->n_merges = b->n_results = l->doc->nodes[l->merges].n_children;
    /* What is not in the vocabulary is numbered from the vocabulary's size, or from the highest added id. */
    b->n_ids = fl_max(b->n_ids, b->n_vocab) + b->n_added;
    if (b->n_ids > FL_LOAD_SPARSE_IDS + FL_LOAD_SPARSE * (b->n_vocab + b->n_added)) {
        return fl_fail(b->error, FOLOLLM_E_UNSUPPORTED, "%s: %u tokens with ids up to %u: such gaps are not supported",
                       b->name, (uint64_t)(b->n_vocab + b->n_added), (uint64_t)b->n_ids - 1);
    }
    return FOLOLLM_OK;
}

/* ---- Filling -- */

static folollm_status fl_load_fill_vocab(fl_load *l) {
    const fl_json *doc = l->doc;
    for (uint32_t i = l->vocab + 1; i < doc->nodes[l->vocab].next; i = doc->nodes[i + 1].next) {
        fl_str token;
        bool fresh;
        uint64_t id = 0;
        fl_json_integer(doc, i + 1, FL_VOCAB_IDS_MAX - 1, &id);
        if (!fl_load_string(l, i, &token) || !fl_build_put(&l->b, (uint32_t)id, token, 0, &fresh)) {
            return fl_load_no_memory(l);
        }
        if (!fresh) {
            return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %S with the id %u: another token of the vocabulary "
                                                         "has this id or is spelled so", doc->name, &token, id);
        }
    }
    return FOLOLLM_OK;
}

/* The id of an added token is its id in the vocabulary, or the next free one as the tokenizers library counts, which
 * does not look at the "id" in the file. */
static folollm_status fl_load_added_id(fl_load *l, fl_load_entry *e, uint32_t *next) {
    uint32_t id, n_vocab = (uint32_t)l->b.n_vocab;
    bool fresh = true;
    if (!fl_build_find(&l->b, e->content, FL_VOCAB_NONE, &id)) {
        return fl_load_no_memory(l);
    }
    if (id == FL_VOCAB_NONE) {
        id = n_vocab != 0 && *next <= n_vocab ? n_vocab : *next;
        if (!fl_build_put(&l->b, id, e->content, FL_PIECE_ADDED, &fresh)) {
            return fl_load_no_memory(l);
        }
    }
    if (!fresh) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: added token %S is not in the vocabulary and would get the id "
                                                     "%u, which another token has", l->doc->name, &e->content,
                       (uint64_t)id);
    }
    l->b.t->vocab.pieces[id].flags |= e->special ? FL_PIECE_SPECIAL : 0;
    e->token.id = id;
    *next = id + 1 > *next ? id + 1 : *next;
    return FOLOLLM_OK;
}

static folollm_status fl_load_fill_added(fl_load *l) {
    fl_added *a = &l->b.t->added;
    uint32_t next = 0;
    for (size_t i = 0, node = l->added + 1; i < l->b.n_added; i++, node = l->doc->nodes[node].next) {
        fl_load_entry e;
        FL_TRY(fl_load_added_entry(l, (uint32_t)node, &e));
        if (e.content.n > 0) {
            FL_TRY(fl_load_added_id(l, &e, &next));
            e.token.trusted_only = (l->b.t->vocab.pieces[e.token.id].flags & (FL_PIECE_SPECIAL | FL_PIECE_ADDED)) != 0;
        }
        a->tokens[i] = e.token;
    }
    /* Of tokens that look alike once they are normalised the first counts, and special ones come first. */
    for (int special = 1; special >= 0; special--) {
        for (size_t i = 0, node = l->added + 1; i < l->b.n_added; i++, node = l->doc->nodes[node].next) {
            fl_load_entry e;
            FL_TRY(fl_load_added_entry(l, (uint32_t)node, &e));
            if (e.found.n > 0 && e.special == (special == 1)) {
                fl_added_put(a, e.normalized ? FL_ADDED_NORMALIZED : FL_ADDED_RAW, e.found, i);
            }
        }
    }
    a->n_tokens = l->b.n_added;
    return FOLOLLM_OK;
}

/* A merge, "a b" or ["a", "b"], into l->token without what is between: *n_left bytes of it are the left part.
 * *skip: the line is a comment of the old format. */
static folollm_status fl_load_merge_text(fl_load *l, uint32_t node, size_t *n_left, bool *skip) {
    const fl_json_node *n = &l->doc->nodes[node];
    bool pair = n->type == FL_JSON_ARRAY && n->n_children == 2, ok = true;
    l->token.n = 0;
    *skip = false;
    *n_left = 0;
    if (pair && l->doc->nodes[node + 1].type == FL_JSON_STRING && l->doc->nodes[node + 2].type == FL_JSON_STRING) {
        ok = fl_load_append(l, node + 1);
        *n_left = l->token.n;
        ok = ok && fl_load_append(l, node + 2);
        return ok ? FOLOLLM_OK : fl_load_no_memory(l);
    }
    const char *space = NULL;
    if (n->type == FL_JSON_STRING) {
        if (!fl_load_append(l, node)) {
            return fl_load_no_memory(l);
        }
        *skip = l->token.n >= 8 && memcmp(l->token.at, "#version", 8) == 0;
        space = l->token.n > 0 ? memchr(l->token.at, ' ', l->token.n) : NULL;
    }
    size_t left = space != NULL ? (size_t)(space - l->token.at) : 0;
    if (!*skip && (space == NULL || memchr(space + 1, ' ', l->token.n - left - 1) != NULL)) {
        fl_str found = {l->doc->text.at + n->begin, n->n};
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT,
                       "%s: a merge must be \"left right\" or [\"left\", \"right\"]; found %S", l->doc->name, &found);
    }
    if (!*skip) {
        memmove(l->token.at + left, l->token.at + left + 1, l->token.n - left - 1);
        l->token.n--;
    }
    *n_left = left;
    return FOLOLLM_OK;
}

static folollm_status fl_load_fill_merges(fl_load *l) {
    for (uint32_t i = l->merges + 1; i < l->doc->nodes[l->merges].next; i = l->doc->nodes[i].next) {
        size_t n_left;
        bool skip;
        FL_TRY(fl_load_merge_text(l, i, &n_left, &skip));
        if (!skip) {
            FL_TRY(fl_build_merge(&l->b, fl_text_of(&l->token), n_left));
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_load_unk(fl_load *l) {
    uint32_t node = fl_json_get(l->doc, fl_json_get(l->doc, 0, "model"), "unk_token");
    fl_bpe *bpe = &l->b.t->bpe;
    fl_str token;
    bpe->unk = FL_VOCAB_NONE;
    bpe->unk_named = fl_json_type_of(l->doc, node) == FL_JSON_STRING;
    if (bpe->unk_named &&
        (!fl_load_string(l, node, &token) || !fl_build_find(&l->b, token, FL_VOCAB_NONE, &bpe->unk))) {
        return fl_load_no_memory(l);
    }
    if (bpe->unk != FL_VOCAB_NONE && (l->b.t->vocab.pieces[bpe->unk].flags & FL_PIECE_ADDED) != 0) {
        bpe->unk = FL_VOCAB_NONE;
    }
    return FOLOLLM_OK;
}

static folollm_status fl_load_fill(fl_load *l) {
    FL_TRY(fl_load_fill_vocab(l));
    FL_TRY(fl_load_fill_added(l));
    FL_TRY(fl_load_fill_merges(l));
    return fl_load_unk(l);
}

static folollm_status fl_load_build(fl_load *l, fl_tokenizer **out) {
    FL_TRY(fl_tokenizer_parts(l->doc, l->b.t, l->b.error));
    FL_TRY(fl_load_model(l));
    FL_TRY(fl_load_measure_vocab(l));
    FL_TRY(fl_load_measure_added(l));
    FL_TRY(fl_build_open(&l->b));
    return fl_build_close(&l->b, fl_load_fill(l), out);
}

static folollm_status fl_load_tokenizer(fl_memory *m, const char *directory, fl_tokenizer **out,
                                        folollm_error *error) {
    fl_str text;
    fl_json doc;
    fl_tokenizer plan;
    FL_TRY(fl_file_slurp(m, directory, "tokenizer.json", FL_LOAD_FILE_BYTES, NULL, &text, error));
    folollm_status status = fl_json_parse(m, &doc, "tokenizer.json", text, error);
    if (status == FOLOLLM_OK) {
        fl_load l = {.doc = &doc};
        fl_build_init(&l.b, m, doc.name, &plan, error);
        l.token.memory = m;
        status = fl_load_build(&l, out);
        fl_text_free(&l.token);
        fl_build_free(&l.b);
        fl_json_free(m, &doc);
    }
    fl_free(m, (void *)(uintptr_t)text.at, text.n);
    return status;
}

/* ---- tokenizer_config.json -- */

/* The id of a token that is named by a string or by an object with "content"; -1 if there is none. */
static folollm_token fl_load_named(const fl_tokenizer *t, const fl_json *doc, const char *key) {
    char buffer[256];
    uint32_t node = fl_json_get(doc, 0, key);
    node = fl_json_type_of(doc, node) == FL_JSON_OBJECT ? fl_json_get(doc, node, "content") : node;
    if (fl_json_type_of(doc, node) != FL_JSON_STRING || doc->nodes[node].n > sizeof buffer) {
        return -1;
    }
    return fl_tokenizer_find(t, fl_json_string(doc, node, buffer));
}

static folollm_status fl_load_config(fl_memory *m, const char *directory, fl_tokenizer *t, folollm_error *error) {
    fl_str text;
    fl_json doc;
    bool found;
    t->bos = t->eos = t->pad = -1;
    FL_TRY(fl_file_slurp(m, directory, "tokenizer_config.json", FL_LOAD_CONFIG_BYTES, &found, &text, error));
    if (!found) {
        return FOLOLLM_OK;
    }
    folollm_status status = fl_json_parse(m, &doc, "tokenizer_config.json", text, error);
    if (status == FOLOLLM_OK) {
        t->bos = fl_load_named(t, &doc, "bos_token");
        t->eos = fl_load_named(t, &doc, "eos_token");
        t->pad = fl_load_named(t, &doc, "pad_token");
        fl_json_free(m, &doc);
    }
    fl_free(m, (void *)(uintptr_t)text.at, text.n);
    return status;
}

FL_LOCAL folollm_status fl_tokenizer_open(fl_memory *m, const char *directory, fl_tokenizer **out, uint64_t *bytes,
                                          folollm_error *error) {
    fl_tokenizer *t = NULL;
    FL_TRY(fl_load_tokenizer(m, directory, &t, error));
    folollm_status status = fl_load_config(m, directory, t, error);
    if (status != FOLOLLM_OK) {
        fl_tokenizer_close(m, t);
        return status;
    }
    *bytes = fl_arena_bytes(&t->arena);
    if (out != NULL) {
        *out = t;
    } else {
        fl_tokenizer_close(m, t);
    }
    return FOLOLLM_OK;
}

FL_LOCAL void fl_tokenizer_close(fl_memory *m, fl_tokenizer *t) {
    if (t != NULL) {
        fl_arena arena = t->arena;
        fl_arena_close(m, &arena);
    }
}
