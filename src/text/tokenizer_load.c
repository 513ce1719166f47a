/* Opening a tokenizer: tokenizer.json is measured, its memory planned, then filled.
 *
 *     JSON -> parts -> measure: ids, pieces, added tokens, merges -> one arena -> vocabulary, added tokens, merges
 *
 * Measuring and filling read the same nodes with the same functions, so the arena is exactly as large as what is put
 * into it, and filling can only fail for what the file says. The JSON and all working memory are gone at the end. */
#include "text/tokenizer_impl.h"

#include "base/os.h"

#define FL_LOAD_FILE_BYTES ((size_t)256 << 20)
#define FL_LOAD_CONFIG_BYTES ((size_t)16 << 20)
#define FL_LOAD_ADDED_BYTES ((size_t)1 << 24) /* contents of all added tokens */

typedef struct fl_load {
    fl_memory *memory;
    const fl_json *doc;
    folollm_error *error;
    fl_tokenizer *t;
    uint32_t vocab, merges, added; /* nodes */
    size_t n_vocab, n_merges, n_added, n_ids, blob_bytes, added_bytes;
    fl_text_buffer token, piece, normal[2];
    uint64_t *pairs; /* (n_merges) left << 32 | right */
    size_t n_pairs;
} fl_load;

static folollm_status fl_load_no_memory(const fl_load *l) {
    return fl_no_memory(l->error, "reading tokenizer.json", l->token.n);
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

/* The piece that token is kept as. */
static bool fl_load_piece(fl_load *l, fl_str token, fl_str *out, bool *raw) {
    l->piece.n = 0;
    if (!fl_text_append(&l->piece, token.at, token.n)) {
        return false;
    }
    *raw = fl_vocab_piece_of(l->t->vocab.byte_level, token, l->piece.at, &out->n);
    out->at = l->piece.at;
    return true;
}

/* The id that the model's own vocabulary has for token; FL_VOCAB_NONE. guess: looked at first, because the results of
 * merges mostly have ascending ids, and to find them by hash would miss the cache each time. */
static bool fl_load_model_id(fl_load *l, fl_str token, uint32_t guess, uint32_t *id) {
    const fl_vocab *v = &l->t->vocab;
    fl_str piece;
    bool raw;
    if (!fl_load_piece(l, token, &piece, &raw)) {
        return false;
    }
    bool guessed = guess < v->n_ids && (v->pieces[guess].flags & FL_PIECE_PRESENT) != 0 &&
                   ((v->pieces[guess].flags & FL_PIECE_RAW) != 0) == raw &&
                   fl_str_equal(fl_vocab_piece(v, guess), piece);
    *id = guessed ? guess : fl_vocab_find(v, piece, raw);
    if (*id != FL_VOCAB_NONE && (v->pieces[*id].flags & FL_PIECE_ADDED) != 0) {
        *id = FL_VOCAB_NONE;
    }
    return true;
}

/* ---- Measuring -- */

static folollm_status fl_load_model(fl_load *l) {
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    uint32_t model = fl_json_get(l->doc, 0, "model"), type = fl_json_get(l->doc, model, "type");
    fl_bpe *b = &l->t->bpe;
    if (type != FL_JSON_NONE && !fl_json_is(l->doc, type, "BPE")) {
        fl_str found = {l->doc->text.at + l->doc->nodes[type].begin, l->doc->nodes[type].n};
        return fl_fail(l->error, FOLOLLM_E_UNSUPPORTED, "%s: the model type %S is not supported, only \"BPE\"",
                       l->doc->name, &found);
    }
    for (size_t i = 0; i < FL_COUNT(empty); i++) {
        uint32_t node = fl_json_get(l->doc, model, empty[i]);
        if (fl_json_type_of(l->doc, node) != FL_JSON_NULL && !fl_json_is(l->doc, node, "")) {
            return fl_fail(l->error, FOLOLLM_E_UNSUPPORTED, "%s: a model with %s is not supported", l->doc->name,
                           empty[i]);
        }
    }
    double dropout;
    FL_TRY(fl_json_double(l->doc, model, "dropout", 0, &dropout, l->error));
    if (dropout != 0) {
        return fl_fail(l->error, FOLOLLM_E_UNSUPPORTED, "%s: a model with dropout %g is not supported", l->doc->name,
                       dropout);
    }
    FL_TRY(fl_json_bool(l->doc, model, "fuse_unk", false, &b->fuse_unk, l->error));
    FL_TRY(fl_json_bool(l->doc, model, "byte_fallback", false, &b->byte_fallback, l->error));
    FL_TRY(fl_json_bool(l->doc, model, "ignore_merges", false, &b->ignore_merges, l->error));
    l->vocab = fl_json_get(l->doc, model, "vocab");
    l->merges = fl_json_get(l->doc, model, "merges");
    l->added = fl_json_get(l->doc, 0, "added_tokens");
    bool lists = fl_json_type_of(l->doc, l->vocab) == FL_JSON_OBJECT &&
                 fl_json_type_of(l->doc, l->merges) == FL_JSON_ARRAY &&
                 (fl_json_type_of(l->doc, l->added) == FL_JSON_ARRAY || l->added == FL_JSON_NONE);
    return lists ? FOLOLLM_OK
                 : fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: a BPE model must have a \"vocab\" object and a \"merges\" "
                                                       "list, and added_tokens must be a list", l->doc->name);
}

static folollm_status fl_load_bad_id(const fl_load *l, fl_str token, uint32_t node) {
    fl_str found = {l->doc->text.at + l->doc->nodes[node].begin, l->doc->nodes[node].n};
    return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: token %S must have an integer id from 0 to %u; found %S",
                   l->doc->name, &token, (uint64_t)(FL_VOCAB_IDS_MAX - 1), &found);
}

static folollm_status fl_load_measure_vocab(fl_load *l) {
    const fl_json *doc = l->doc;
    for (uint32_t i = l->vocab + 1; i < doc->nodes[l->vocab].next; i = doc->nodes[i + 1].next) {
        fl_str token, piece;
        bool raw;
        uint64_t id;
        if (!fl_load_string(l, i, &token) || !fl_load_piece(l, token, &piece, &raw)) {
            return fl_load_no_memory(l);
        }
        if (!fl_json_integer(doc, i + 1, FL_VOCAB_IDS_MAX - 1, &id)) {
            return fl_load_bad_id(l, token, i + 1);
        }
        if (piece.n >= FL_PIECE_BYTES_MAX) {
            return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: token %u has %u bytes, which is more than is read here",
                           doc->name, id, (uint64_t)piece.n);
        }
        l->n_vocab++;
        l->n_ids = fl_max(l->n_ids, (size_t)id + 1);
        l->blob_bytes += piece.n;
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
        return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: every one of added_tokens must have an \"id\" and a string "
                                                   "\"content\"", l->doc->name);
    }
    if (!fl_load_string(l, content, &e->content)) {
        return fl_load_no_memory(l);
    }
    if (!fl_json_integer(l->doc, number, FL_VOCAB_IDS_MAX - 1, &id)) {
        return fl_load_bad_id(l, e->content, number);
    }
    FL_TRY(fl_json_bool(l->doc, node, "special", false, &e->special, l->error));
    FL_TRY(fl_json_bool(l->doc, node, "normalized", !e->special, &e->normalized, l->error));
    FL_TRY(fl_json_bool(l->doc, node, "single_word", false, &e->token.single_word, l->error));
    FL_TRY(fl_json_bool(l->doc, node, "lstrip", false, &e->token.lstrip, l->error));
    FL_TRY(fl_json_bool(l->doc, node, "rstrip", false, &e->token.rstrip, l->error));
    e->found = e->content;
    if (e->normalized && !fl_norm_apply(&l->t->normalizer, e->content, l->normal, &e->found)) {
        return fl_load_no_memory(l);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_load_measure_added(fl_load *l) {
    size_t n_listed = l->added != FL_JSON_NONE ? l->doc->nodes[l->added].n_children : 0;
    for (uint32_t i = l->added + 1; n_listed > 0 && i < l->doc->nodes[l->added].next; i = l->doc->nodes[i].next) {
        fl_load_entry e;
        FL_TRY(fl_load_added_entry(l, i, &e));
        l->n_added++;
        l->added_bytes += e.found.n;
        l->blob_bytes += e.content.n;
        if (l->added_bytes > FL_LOAD_ADDED_BYTES) {
            return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: added_tokens of more than %u bytes are not read here",
                           l->doc->name, (uint64_t)FL_LOAD_ADDED_BYTES);
        }
    }
    l->n_merges = l->doc->nodes[l->merges].n_children;
    /* What is not in the vocabulary is numbered from the vocabulary's size, or from the highest added id. */
    l->n_ids = fl_max(l->n_ids, l->n_vocab) + l->n_added;
    if (l->n_ids > FL_VOCAB_IDS_MAX) {
        return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: ids up to %u are needed, and %u is the highest that is read "
                                                   "here", l->doc->name, (uint64_t)l->n_ids,
                       (uint64_t)FL_VOCAB_IDS_MAX);
    }
    return FOLOLLM_OK;
}

static void fl_load_layout(const fl_load *l, fl_tokenizer *t, fl_arena *arena) {
    fl_vocab_layout(&t->vocab, arena, l->n_ids, l->n_vocab + l->n_added, l->blob_bytes);
    fl_added_layout(&t->added, arena, l->n_added, l->added_bytes);
    fl_pair_map_layout(&t->bpe.ranks, arena, l->n_merges);
    t->bpe.results = fl_take(arena, l->n_merges, sizeof *t->bpe.results);
    t->bpe.joins = fl_take(arena, FL_BPE_JOINS / 8, 1);
}

/* ---- Filling -- */

static folollm_status fl_load_fill_vocab(fl_load *l) {
    const fl_json *doc = l->doc;
    for (uint32_t i = l->vocab + 1; i < doc->nodes[l->vocab].next; i = doc->nodes[i + 1].next) {
        fl_str token, piece;
        bool raw;
        uint64_t id = 0;
        if (!fl_load_string(l, i, &token) || !fl_load_piece(l, token, &piece, &raw)) {
            return fl_load_no_memory(l);
        }
        fl_json_integer(doc, i + 1, FL_VOCAB_IDS_MAX - 1, &id);
        if (!fl_vocab_put(&l->t->vocab, (uint32_t)id, piece, raw ? FL_PIECE_RAW : 0)) {
            return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: token %S with the id %u: another token of the vocabulary "
                                                       "has this id or is spelled so", doc->name, &token, id);
        }
    }
    return FOLOLLM_OK;
}

/* The id of an added token is its id in the vocabulary, or the next free one as the tokenizers library counts, which
 * does not look at the "id" in the file. */
static folollm_status fl_load_added_id(fl_load *l, fl_load_entry *e, uint32_t *next) {
    fl_vocab *v = &l->t->vocab;
    fl_str piece;
    bool raw;
    if (!fl_load_piece(l, e->content, &piece, &raw)) {
        return fl_load_no_memory(l);
    }
    uint32_t id = fl_vocab_find(v, piece, raw);
    if (id == FL_VOCAB_NONE) {
        id = *next > l->n_vocab ? *next : (uint32_t)l->n_vocab;
        id = l->n_vocab == 0 ? *next : id;
        if (!fl_vocab_put(v, id, piece, (uint8_t)(FL_PIECE_ADDED | (raw ? FL_PIECE_RAW : 0)))) {
            return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: added token %S is not in the vocabulary and would get the "
                                                       "id %u, which another token has", l->doc->name, &e->content,
                           (uint64_t)id);
        }
    }
    v->pieces[id].flags |= e->special ? FL_PIECE_SPECIAL : 0;
    e->token.id = id;
    *next = id + 1 > *next ? id + 1 : *next;
    return FOLOLLM_OK;
}

static folollm_status fl_load_fill_added(fl_load *l) {
    fl_added *a = &l->t->added;
    uint32_t next = 0;
    for (size_t i = 0, node = l->added + 1; i < l->n_added; i++, node = l->doc->nodes[node].next) {
        fl_load_entry e;
        FL_TRY(fl_load_added_entry(l, (uint32_t)node, &e));
        if (e.content.n > 0) {
            FL_TRY(fl_load_added_id(l, &e, &next));
            e.token.trusted_only = (l->t->vocab.pieces[e.token.id].flags & (FL_PIECE_SPECIAL | FL_PIECE_ADDED)) != 0;
        }
        a->tokens[i] = e.token;
    }
    /* Of tokens that look alike once they are normalised the first counts, and special ones come first. */
    for (int special = 1; special >= 0; special--) {
        for (size_t i = 0, node = l->added + 1; i < l->n_added; i++, node = l->doc->nodes[node].next) {
            fl_load_entry e;
            FL_TRY(fl_load_added_entry(l, (uint32_t)node, &e));
            if (e.found.n > 0 && e.special == (special == 1)) {
                fl_added_put(a, e.normalized ? FL_ADDED_NORMALIZED : FL_ADDED_RAW, e.found, i);
            }
        }
    }
    a->n_tokens = l->n_added;
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
        return fl_fail(l->error, FOLOLLM_E_FORMAT,
                       "%s: a merge must be \"left right\" or [\"left\", \"right\"]; found %S", l->doc->name, &found);
    }
    if (!*skip) {
        memmove(l->token.at + left, l->token.at + left + 1, l->token.n - left - 1);
        l->token.n--;
    }
    *n_left = left;
    return FOLOLLM_OK;
}

/* Look up the three tokens of a merge and keep it as the next rank. */
static folollm_status fl_load_merge(fl_load *l, size_t n_left, size_t *rank) {
    fl_str whole = fl_text_of(&l->token), right = {whole.at + n_left, whole.n - n_left};
    fl_str names[3] = {{whole.at, n_left}, right, whole};
    uint32_t ids[3], next = *rank > 0 ? l->t->bpe.results[*rank - 1] + 1 : FL_VOCAB_NONE;
    for (size_t i = 0; i < 3; i++) {
        if (!fl_load_model_id(l, names[i], i == 2 ? next : FL_VOCAB_NONE, &ids[i])) {
            return fl_load_no_memory(l);
        }
        if (ids[i] == FL_VOCAB_NONE) {
            return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: merge %u of %S and %S: %S is not in the vocabulary",
                           l->doc->name, (uint64_t)*rank, &names[0], &names[1], &names[i]);
        }
    }
    l->pairs[*rank] = (uint64_t)ids[0] << 32 | ids[1];
    l->t->bpe.results[*rank] = ids[2];
    fl_bpe_note_join(&l->t->bpe, ids[0], ids[1], ids[2]);
    ++*rank;
    return FOLOLLM_OK;
}

/* Of equal merges the last counts, as in the tokenizers library, so they are entered from the end. A merge whose
 * result is a special token is left out: where that token may be, it was cut out of the text before. */
static folollm_status fl_load_fill_merges(fl_load *l) {
    void *pairs = NULL;
    size_t rank = 0;
    if (!fl_grow(l->memory, &pairs, &l->n_pairs, l->n_merges, sizeof *l->pairs)) {
        return fl_no_memory(l->error, "the merges of tokenizer.json", l->n_merges * sizeof *l->pairs);
    }
    l->pairs = pairs;
    for (uint32_t i = l->merges + 1; i < l->doc->nodes[l->merges].next; i = l->doc->nodes[i].next) {
        size_t n_left;
        bool skip;
        FL_TRY(fl_load_merge_text(l, i, &n_left, &skip));
        if (!skip) {
            FL_TRY(fl_load_merge(l, n_left, &rank));
        }
    }
    while (rank-- > 0) {
        if ((l->t->vocab.pieces[l->t->bpe.results[rank]].flags & FL_PIECE_SPECIAL) == 0) {
            fl_pair_map_put(&l->t->bpe.ranks, (uint32_t)(l->pairs[rank] >> 32), (uint32_t)l->pairs[rank],
                            (uint32_t)rank);
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_load_unk(fl_load *l) {
    uint32_t node = fl_json_get(l->doc, fl_json_get(l->doc, 0, "model"), "unk_token");
    fl_bpe *b = &l->t->bpe;
    fl_str token;
    b->unk = FL_VOCAB_NONE;
    b->unk_named = fl_json_type_of(l->doc, node) == FL_JSON_STRING;
    if (b->unk_named && (!fl_load_string(l, node, &token) || !fl_load_model_id(l, token, FL_VOCAB_NONE, &b->unk))) {
        return fl_load_no_memory(l);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_load_check_template(const fl_load *l) {
    const fl_tokenizer *t = l->t;
    for (size_t i = 0; i < t->n_before + t->n_after; i++) {
        uint32_t id = i < t->n_before ? t->before[i] : t->after[i - t->n_before];
        if (!fl_tokenizer_has_id(t, (folollm_token)id)) {
            return fl_fail(l->error, FOLOLLM_E_FORMAT, "%s: the post_processor adds the id %u, which no token has",
                           l->doc->name, (uint64_t)id);
        }
    }
    return FOLOLLM_OK;
}

/* "<0xHH>" as the library's decoder reads it: a sign and either case are let through. */
static bool fl_load_is_byte(fl_str s) {
    for (size_t i = 3; s.n == 6 && i < 5; i++) {
        char c = s.at[i], lower = (char)(c | 0x20);
        if (!((c >= '0' && c <= '9') || (lower >= 'a' && lower <= 'f') || (i == 3 && c == '+'))) {
            return false;
        }
    }
    return s.n == 6 && memcmp(s.at, "<0x", 3) == 0 && s.at[5] == '>';
}

/* Mark byte pieces, and find the most that one piece can become: bytes that are no UTF-8 become three each. */
static void fl_load_finish(fl_tokenizer *t) {
    fl_bpe_index(&t->bpe);
    for (uint32_t id = 0; id < t->vocab.n_ids; id++) {
        fl_str piece = fl_vocab_piece(&t->vocab, id);
        size_t n = t->decoder.byte_level ? piece.n : fl_detok_replace(&t->decoder, piece, false, NULL);
        for (size_t i = 0; t->decoder.byte_level && i < piece.n; i++) {
            n += (uint8_t)piece.at[i] >= 0x80 ? 2 : 0;
        }
        t->max_piece_bytes = fl_max(t->max_piece_bytes, n);
        if (t->decoder.byte_fallback && fl_load_is_byte(piece)) {
            t->vocab.pieces[id].flags |= FL_PIECE_BYTE;
        }
    }
}

static folollm_status fl_load_fill(fl_load *l) {
    l->t->bpe.vocab = &l->t->vocab;
    fl_vocab_clear(&l->t->vocab);
    fl_added_clear(&l->t->added);
    fl_pair_map_clear(&l->t->bpe.ranks);
    FL_TRY(fl_load_fill_vocab(l));
    FL_TRY(fl_load_fill_added(l));
    FL_TRY(fl_load_fill_merges(l));
    FL_TRY(fl_load_unk(l));
    FL_TRY(fl_load_check_template(l));
    fl_load_finish(l->t);
    return FOLOLLM_OK;
}

static void fl_load_free(fl_load *l) {
    fl_text_free(&l->token);
    fl_text_free(&l->piece);
    fl_text_free(&l->normal[0]);
    fl_text_free(&l->normal[1]);
    fl_free(l->memory, l->pairs, l->n_pairs * sizeof *l->pairs);
}

/* Plan, open the arena, move in. */
static folollm_status fl_load_build(fl_load *l, fl_tokenizer *plan, fl_tokenizer **out) {
    fl_arena arena = {0};
    FL_TRY(fl_tokenizer_parts(l->doc, plan, l->error));
    FL_TRY(fl_load_model(l));
    FL_TRY(fl_load_measure_vocab(l));
    FL_TRY(fl_load_measure_added(l));
    fl_take(&arena, 1, sizeof *plan);
    fl_load_layout(l, plan, &arena);
    FL_TRY(fl_arena_open(l->memory, &arena, "the tokenizer", l->error));
    fl_tokenizer *t = fl_take(&arena, 1, sizeof *t);
    *t = *plan;
    fl_load_layout(l, t, &arena);
    t->arena = arena;
    l->t = t;
    folollm_status status = fl_load_fill(l);
    if (status != FOLOLLM_OK) {
        fl_arena_close(l->memory, &arena);
        return status;
    }
    *out = t;
    return FOLOLLM_OK;
}

static folollm_status fl_load_tokenizer(fl_memory *m, const char *directory, fl_tokenizer **out,
                                        folollm_error *error) {
    fl_str text;
    fl_json doc;
    fl_tokenizer plan;
    FL_TRY(fl_file_slurp(m, directory, "tokenizer.json", FL_LOAD_FILE_BYTES, NULL, &text, error));
    folollm_status status = fl_json_parse(m, &doc, "tokenizer.json", text, error);
    if (status == FOLOLLM_OK) {
        memset(&plan, 0, sizeof plan);
        fl_load l = {.memory = m, .doc = &doc, .error = error, .t = &plan};
        l.token.memory = l.piece.memory = l.normal[0].memory = l.normal[1].memory = m;
        status = fl_load_build(&l, &plan, out);
        fl_load_free(&l);
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
    t->bos = t->eos = -1;
    FL_TRY(fl_file_slurp(m, directory, "tokenizer_config.json", FL_LOAD_CONFIG_BYTES, &found, &text, error));
    if (!found) {
        return FOLOLLM_OK;
    }
    folollm_status status = fl_json_parse(m, &doc, "tokenizer_config.json", text, error);
    if (status == FOLOLLM_OK) {
        t->bos = fl_load_named(t, &doc, "bos_token");
        t->eos = fl_load_named(t, &doc, "eos_token");
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
