/* Reading tokenizer.ggml.*: two models, byte-level BPE ("gpt2") with merges, SentencePiece's BPE ("llama") with scores.
 *
 * SentencePiece joins the two neighbours whose joined piece has the best score, the leftmost of equals. As merges that
 * is: every way to cut a piece into two pieces, all of the rank that the piece has by its score. So the merges are
 * found by cutting each piece at each of its characters, once to count them and once to enter them. */
#include "text/tokenizer_gguf.h"

#include "base/utf8.h"
#include "text/tokenizer_build.h"

static const fl_ggtok_pre fl_ggtok_pres[] = {
    {.name = "gpt-2", .pattern = FL_PRETOK_GPT2},
    {.name = "default", .pattern = FL_PRETOK_GPT2},
    {.name = "smollm", .pattern = FL_PRETOK_GPT2, .digits = true},
    {.name = "starcoder", .pattern = FL_PRETOK_GPT2, .digits = true},
    {.name = "refact", .pattern = FL_PRETOK_GPT2, .digits = true},
    {.name = "qwen2", .pattern = FL_PRETOK_QWEN2, .nfc = true},
    {.name = "qwen35", .pattern = FL_PRETOK_QWEN35, .nfc = true},
    {.name = "llama-bpe", .pattern = FL_PRETOK_LLAMA3, .ignore_merges = true, .bos = true},
    {.name = "llama3", .pattern = FL_PRETOK_LLAMA3, .ignore_merges = true, .bos = true},
    {.name = "llama-v3", .pattern = FL_PRETOK_LLAMA3, .ignore_merges = true, .bos = true},
    {.name = "gpt-4o", .pattern = FL_PRETOK_O200K, .ignore_merges = true},
    {.name = "tekken", .pattern = FL_PRETOK_TEKKEN, .ignore_merges = true, .bos = true},
};

FL_LOCAL const fl_ggtok_pre *fl_ggtok_pre_at(size_t i) {
    return i < FL_COUNT(fl_ggtok_pres) ? &fl_ggtok_pres[i] : NULL;
}

typedef struct fl_ggtok {
    fl_build b;
    const fl_gguf *g;
    const fl_ggtok_pre *pre;                       /* NULL: SentencePiece */
    fl_gguf_value tokens, types, scores, merges;   /* arrays; types may be empty */
    fl_text_buffer whole;
    uint32_t *order; /* (2, tokens) ids by score, and room to sort them */
} fl_ggtok;

static size_t fl_ggtok_order_bytes(const fl_ggtok *l) {
    return 2 * l->tokens.n * sizeof *l->order;
}

/* ---- Tokens -- */

/* Take the next token off a copy of l->tokens. */
static bool fl_ggtok_next(const fl_ggtok *l, fl_gguf_value *rest, uint32_t *id, fl_str *token) {
    fl_gguf_value element;
    *id = (uint32_t)(l->tokens.n - rest->n);
    return fl_gguf_next(rest, &element) && fl_gguf_to_string(&element, token);
}

static int64_t fl_ggtok_type(const fl_ggtok *l, uint32_t id) {
    fl_gguf_value element;
    int64_t type = l->types.n == 0 ? FL_GGTOK_NORMAL : 0;
    if (fl_gguf_at(&l->types, id, &element)) {
        fl_gguf_to_i64(&element, &type);
    }
    return type;
}

/* NaN becomes infinity, so that what is not finite is one thing. */
static float fl_ggtok_score(const fl_ggtok *l, uint32_t id) {
    fl_gguf_value element;
    double score = 0;
    bool ok = fl_gguf_at(&l->scores, id, &element) && fl_gguf_to_double(&element, &score);
    return ok && score >= -FLT_MAX && score <= FLT_MAX ? (float)score : fl_float_of_bits(0x7F800000u);
}

static bool fl_ggtok_is_special(const fl_ggtok *l, uint32_t id) {
    int64_t type = fl_ggtok_type(l, id);
    return type == FL_GGTOK_CONTROL || type == FL_GGTOK_UNKNOWN;
}

static bool fl_ggtok_is_added(const fl_ggtok *l, uint32_t id) {
    return fl_ggtok_type(l, id) == FL_GGTOK_USER_DEFINED || fl_ggtok_is_special(l, id);
}

/* Did the converter put it there to fill the rows of the embedding? */
static bool fl_ggtok_is_padding(const fl_ggtok *l, uint32_t id, fl_str token) {
    char name[32];
    fl_str padding = {name, fl_format(name, sizeof name, "[PAD%u]", (uint64_t)id)};
    return fl_ggtok_type(l, id) == FL_GGTOK_UNUSED && fl_str_equal(token, padding);
}

static bool fl_ggtok_is_blank(fl_str token) {
    fl_uni_char c;
    for (size_t at = 0; at < token.n; at += c.n) {
        c = fl_uni_peek(token, at);
        if ((c.class & FL_UNI_SPACE) == 0) {
            return false;
        }
    }
    return true;
}

/* Is a token what a byte or a character is before anything is merged? */
static bool fl_ggtok_is_symbol(const fl_ggtok *l, fl_str token) {
    char piece[4];
    size_t n = token.n;
    bool raw = n > sizeof piece || fl_vocab_piece_of(l->pre != NULL, token, piece, &n);
    return l->pre != NULL ? n == 1 && !raw : fl_uni_peek(token, 0).n == n;
}

/* The file does not tell user-defined tokens of the model's own vocabulary, which any text may become, from those that
 * were added to it, like <think>. The own ones are symbols, white space, and, found later, what merging makes. */
static uint8_t fl_ggtok_flags(const fl_ggtok *l, uint32_t id, fl_str token) {
    if (fl_ggtok_is_special(l, id)) {
        return FL_PIECE_SPECIAL;
    }
    bool own = !fl_ggtok_is_added(l, id) || fl_ggtok_is_symbol(l, token) || fl_ggtok_is_blank(token);
    return own ? 0 : FL_PIECE_ADDED;
}

/* ---- Settings -- */

static folollm_status fl_ggtok_find_pre(fl_ggtok *l, fl_str name) {
    for (size_t i = 0; i < FL_COUNT(fl_ggtok_pres); i++) {
        if (fl_str_is(name, fl_ggtok_pres[i].name)) {
            l->pre = &fl_ggtok_pres[i];
            return FOLOLLM_OK;
        }
    }
    return fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED, "%s: how \"tokenizer.ggml.pre\" %S cuts text is not known",
                   l->b.name, &name);
}

static folollm_status fl_ggtok_model(fl_ggtok *l) {
    fl_str model, pre;
    bool squeeze;
    FL_TRY(fl_gguf_string(l->g, "tokenizer.ggml.model", &model, l->b.error));
    FL_TRY(fl_gguf_string(l->g, "tokenizer.ggml.pre", &pre, l->b.error));
    FL_TRY(fl_gguf_bool(l->g, "tokenizer.ggml.remove_extra_whitespaces", false, &squeeze, l->b.error));
    if (squeeze) {
        return fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED, "%s: a tokenizer that removes white space is not supported",
                       l->b.name);
    }
    if (fl_str_is(model, "gpt2")) {
        return fl_ggtok_find_pre(l, pre);
    }
    return fl_str_is(model, "llama")
               ? FOLOLLM_OK
               : fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED,
                         "%s: the tokenizer model %S is not supported, only \"gpt2\" and \"llama\"", l->b.name, &model);
}

static void fl_ggtok_short(fl_short_text *out, const char *text) {
    fl_str s = fl_str_of(text);
    memcpy(out->at, text, s.n);
    out->n = (uint8_t)s.n;
}

static folollm_status fl_ggtok_bytes(fl_ggtok *l, bool prefix) {
    fl_tokenizer *t = l->b.t;
    fl_pretok_step *steps = t->pretokenizer.steps;
    size_t n = 0;
    if (prefix && l->pre->pattern != FL_PRETOK_GPT2) {
        return fl_fail(l->b.error, FOLOLLM_E_UNSUPPORTED, "%s: add_space_prefix beside \"tokenizer.ggml.pre\" %s is "
                                                          "not supported", l->b.name, l->pre->name);
    }
    if (l->pre->digits) {
        steps[n].kind = FL_PRETOK_NUMBERS;
        steps[n++].n_digits = 1;
    }
    steps[n].kind = FL_PRETOK_WORDS;
    steps[n].pattern = fl_pretok_known(l->pre->pattern);
    steps[n++].prefix = prefix ? FL_PRETOK_PREFIX_ALWAYS : FL_PRETOK_PREFIX_NEVER;
    t->pretokenizer.n_steps = n;
    t->pretokenizer.byte_level = t->decoder.byte_level = t->vocab.byte_level = true;
    t->normalizer.steps[0].kind = FL_NORM_FORM;
    t->normalizer.steps[0].form = FL_UNI_NFC;
    t->normalizer.n_steps = l->pre->nfc;
    t->bpe.ignore_merges = l->pre->ignore_merges;
    return FOLOLLM_OK;
}

static void fl_ggtok_pieces(fl_tokenizer *t, bool prefix) {
    fl_norm_step *steps = t->normalizer.steps;
    size_t n = 0;
    if (prefix) {
        steps[n].kind = FL_NORM_PREPEND;
        fl_ggtok_short(&steps[n++].to, FL_GGTOK_BLANK);
    }
    steps[n].kind = FL_NORM_REPLACE;
    fl_ggtok_short(&steps[n].from, " ");
    fl_ggtok_short(&steps[n++].to, FL_GGTOK_BLANK);
    t->normalizer.n_steps = n;
    fl_ggtok_short(&t->decoder.from, FL_GGTOK_BLANK);
    fl_ggtok_short(&t->decoder.to, " ");
    fl_ggtok_short(&t->decoder.strip, " ");
    t->decoder.n_strip = prefix;
    t->decoder.byte_fallback = t->bpe.byte_fallback = t->bpe.fuse_unk = true;
}

static folollm_status fl_ggtok_settings(fl_ggtok *l) {
    bool prefix;
    FL_TRY(fl_ggtok_model(l));
    FL_TRY(fl_gguf_bool(l->g, "tokenizer.ggml.add_space_prefix", l->pre == NULL, &prefix, l->b.error));
    if (l->pre != NULL) {
        return fl_ggtok_bytes(l, prefix);
    }
    fl_ggtok_pieces(l->b.t, prefix);
    return FOLOLLM_OK;
}

/* ---- Measuring -- */

static folollm_status fl_ggtok_array(fl_ggtok *l, const char *key, fl_gguf_type of, bool needed, bool of_tokens,
                                     fl_gguf_value *out) {
    FL_TRY(fl_gguf_array(l->g, key, of, out, l->b.error));
    bool found = fl_gguf_find(l->g, key) != NULL;
    if (needed && !found) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: \"%s\" is missing", l->b.name, key);
    }
    if (found && of_tokens && out->n != l->tokens.n) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: \"%s\" has %u entries for %u tokens", l->b.name, key,
                       (uint64_t)out->n, (uint64_t)l->tokens.n);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_arrays(fl_ggtok *l) {
    bool pieces = l->pre == NULL;
    FL_TRY(fl_ggtok_array(l, "tokenizer.ggml.tokens", FL_GGUF_STRING, true, false, &l->tokens));
    FL_TRY(fl_ggtok_array(l, "tokenizer.ggml.token_type", FL_GGUF_I64, false, true, &l->types));
    if (pieces) {
        FL_TRY(fl_ggtok_array(l, "tokenizer.ggml.scores", FL_GGUF_F64, true, true, &l->scores));
    } else {
        FL_TRY(fl_ggtok_array(l, "tokenizer.ggml.merges", FL_GGUF_STRING, true, false, &l->merges));
    }
    if (l->tokens.n == 0 || l->tokens.n > FL_VOCAB_IDS_MAX) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: %u tokens; from 1 to %u are read here", l->b.name,
                       (uint64_t)l->tokens.n, (uint64_t)FL_VOCAB_IDS_MAX);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_check_token(const fl_ggtok *l, uint32_t id, fl_str token) {
    int64_t type = fl_ggtok_type(l, id);
    bool cut = l->pre == NULL && !fl_ggtok_is_added(l, id);
    if (type < FL_GGTOK_NORMAL || type > FL_GGTOK_BYTE) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %u has the type %d; types are 1 to 6", l->b.name,
                       (uint64_t)id, type);
    }
    if (fl_utf8_valid_prefix(token.at, token.n) < token.n) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %u, %S, is not UTF-8", l->b.name, (uint64_t)id, &token);
    }
    if (cut && token.n > FL_GGTOK_PIECE_BYTES) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %u has %u bytes; a piece has at most %u here",
                       l->b.name, (uint64_t)id, (uint64_t)token.n, (uint64_t)FL_GGTOK_PIECE_BYTES);
    }
    if (l->pre == NULL && !fl_is_finite(fl_ggtok_score(l, id))) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %u has a score that is not finite", l->b.name,
                       (uint64_t)id);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_measure(fl_ggtok *l) {
    fl_gguf_value rest = l->tokens;
    fl_str token;
    for (uint32_t id; fl_ggtok_next(l, &rest, &id, &token);) {
        FL_TRY(fl_ggtok_check_token(l, id, token));
        if (!fl_ggtok_is_padding(l, id, token)) {
            FL_TRY(fl_build_measure(&l->b, token, id, false));
        }
        if (fl_ggtok_is_added(l, id)) {
            FL_TRY(fl_build_measure_added(&l->b, token.n));
        }
    }
    l->b.n_merges = l->b.n_results = l->merges.n;
    return FOLOLLM_OK;
}

/* ---- Filling -- */

static folollm_status fl_ggtok_fill_tokens(fl_ggtok *l) {
    fl_gguf_value rest = l->tokens;
    fl_str token;
    bool fresh;
    for (uint32_t id; fl_ggtok_next(l, &rest, &id, &token);) {
        if (fl_ggtok_is_padding(l, id, token)) {
            continue;
        }
        if (!fl_build_put(&l->b, id, token, fl_ggtok_flags(l, id, token), &fresh)) {
            return fl_build_no_memory(&l->b, token.n);
        }
        if (!fresh) {
            return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: token %u is %S, and so is another one", l->b.name,
                           (uint64_t)id, &token);
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_fill_merges(fl_ggtok *l) {
    fl_gguf_value rest = l->merges, element;
    fl_str merge;
    while (fl_gguf_next(&rest, &element) && fl_gguf_to_string(&element, &merge)) {
        const char *blank = merge.n > 0 ? memchr(merge.at, ' ', merge.n) : NULL;
        size_t left = blank != NULL ? (size_t)(blank - merge.at) : 0, right = merge.n - left - (blank != NULL);
        if (blank == NULL || memchr(blank + 1, ' ', right) != NULL) {
            return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: a merge must be \"left right\"; found %S", l->b.name,
                           &merge);
        }
        l->whole.n = 0;
        if (!fl_text_append(&l->whole, merge.at, left) || !fl_text_append(&l->whole, blank + 1, right)) {
            return fl_build_no_memory(&l->b, merge.n);
        }
        FL_TRY(fl_build_merge(&l->b, fl_text_of(&l->whole), left));
    }
    return FOLOLLM_OK;
}

/* ---- Merges from scores -- */

/* In how many ways two pieces make the piece `id`; with bpe they are entered as merges of that rank. */
static size_t fl_ggtok_cut(fl_vocab *v, uint32_t id, fl_bpe *bpe, uint32_t rank) {
    fl_str whole = fl_vocab_piece(v, id);
    size_t n = 0;
    if ((v->pieces[id].flags & FL_PIECE_SPECIAL) != 0 || whole.n > FL_GGTOK_PIECE_BYTES) {
        return 0;
    }
    for (size_t at = 0; at < whole.n; at += fl_utf8_length((uint8_t)whole.at[at])) {
        fl_str left = {whole.at, at}, right = {whole.at + at, whole.n - at};
        uint32_t a = at > 0 ? fl_vocab_find(v, left, true) : FL_VOCAB_NONE;
        uint32_t b = a != FL_VOCAB_NONE ? fl_vocab_find(v, right, true) : FL_VOCAB_NONE;
        if (b != FL_VOCAB_NONE && bpe != NULL) {
            fl_pair_map_put(&bpe->ranks, a, b, rank);
            fl_bpe_note_join(bpe, a, b, id);
            v->pieces[id].flags &= (uint8_t)~FL_PIECE_ADDED;
        }
        n += b != FL_VOCAB_NONE;
    }
    return n;
}

/* Count the merges, in a vocabulary that is thrown away. */
static folollm_status fl_ggtok_count_cuts(fl_ggtok *l) {
    fl_arena arena = {0};
    fl_build *b = &l->b;
    fl_vocab *v = &b->t->vocab;
    fl_vocab_layout(v, &arena, b->n_ids, b->n_vocab, b->blob_bytes);
    FL_TRY(fl_arena_open(b->memory, &arena, "the pieces of a tokenizer", b->error));
    fl_vocab_layout(v, &arena, b->n_ids, b->n_vocab, b->blob_bytes);
    fl_vocab_clear(v);
    folollm_status status = fl_ggtok_fill_tokens(l);
    for (uint32_t id = 0; status == FOLOLLM_OK && id < v->n_ids; id++) {
        b->n_merges += fl_ggtok_cut(v, id, NULL, 0);
    }
    b->n_results = v->n_ids;
    fl_arena_close(b->memory, &arena);
    return status;
}

/* A number that ascends as the score descends. */
static uint32_t fl_ggtok_key(const fl_ggtok *l, uint32_t id) {
    float score = fl_ggtok_score(l, id);
    uint32_t bits = score == 0 ? 0 : fl_bits_of_float(score);
    return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}

/* Sort l->order by score, ids of equal scores ascending: a byte of the key at a time, each pass keeps what the passes
 * before made. */
static void fl_ggtok_sort(fl_ggtok *l, size_t n) {
    uint32_t *from = l->order, *to = l->order + l->tokens.n;
    for (uint32_t i = 0; i < n; i++) {
        from[i] = i;
    }
    for (unsigned shift = 0; shift < 32; shift += 8) {
        size_t starts[257] = {0};
        for (size_t i = 0; i < n; i++) {
            starts[(fl_ggtok_key(l, from[i]) >> shift & 255) + 1]++;
        }
        for (size_t i = 0; i < 256; i++) {
            starts[i + 1] += starts[i];
        }
        for (size_t i = 0; i < n; i++) {
            to[starts[fl_ggtok_key(l, from[i]) >> shift & 255]++] = from[i];
        }
        uint32_t *other = from;
        from = to;
        to = other;
    }
}

static folollm_status fl_ggtok_fill_cuts(fl_ggtok *l) {
    fl_tokenizer *t = l->b.t;
    l->order = fl_alloc_raw(l->b.memory, fl_ggtok_order_bytes(l));
    if (l->order == NULL) {
        return fl_build_no_memory(&l->b, fl_ggtok_order_bytes(l));
    }
    fl_ggtok_sort(l, t->vocab.n_ids);
    for (uint32_t rank = 0; rank < t->vocab.n_ids; rank++) {
        uint32_t id = l->order[rank];
        t->bpe.results[rank] = id;
        fl_ggtok_cut(&t->vocab, id, &t->bpe, rank);
    }
    return FOLOLLM_OK;
}

/* ---- Added tokens, special ids -- */

static void fl_ggtok_fill_added(fl_ggtok *l) {
    fl_added *a = &l->b.t->added;
    fl_gguf_value rest = l->tokens;
    fl_str token;
    for (uint32_t id; fl_ggtok_next(l, &rest, &id, &token);) {
        if (!fl_ggtok_is_added(l, id)) {
            continue;
        }
        uint8_t flags = l->b.t->vocab.pieces[id].flags;
        a->tokens[a->n_tokens].id = id;
        a->tokens[a->n_tokens].trusted_only = (flags & (FL_PIECE_SPECIAL | FL_PIECE_ADDED)) != 0;
        if (token.n > 0) {
            fl_added_put(a, FL_ADDED_RAW, token, a->n_tokens);
        }
        a->n_tokens++;
    }
}

/* The token under a key; -1: none. */
static folollm_status fl_ggtok_id(const fl_ggtok *l, const char *key, folollm_token *id) {
    uint32_t number = UINT32_MAX;
    *id = -1;
    FL_TRY(fl_gguf_u32(l->g, key, 0, &number, l->b.error));
    if (fl_gguf_find(l->g, key) == NULL) {
        return FOLOLLM_OK;
    }
    if (number > INT32_MAX || !fl_tokenizer_has_id(l->b.t, (folollm_token)number)) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: \"%s\" is %u, an id that no token has", l->b.name, key,
                       (uint64_t)number);
    }
    *id = (folollm_token)number;
    return FOLOLLM_OK;
}

/* Is a token added at one end of every text? By default BOS is, if there is one and the model has it so. */
static folollm_status fl_ggtok_end(const fl_ggtok *l, const char *key, bool missing, folollm_token id, uint32_t *ids,
                                   size_t *n) {
    bool add;
    FL_TRY(fl_gguf_bool(l->g, key, missing && id >= 0, &add, l->b.error));
    if (add && id < 0) {
        return fl_fail(l->b.error, FOLOLLM_E_FORMAT, "%s: \"%s\" is true, and there is no such token", l->b.name, key);
    }
    ids[0] = (uint32_t)id;
    *n = add;
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_fill_ids(fl_ggtok *l) {
    fl_tokenizer *t = l->b.t;
    folollm_token unk;
    FL_TRY(fl_ggtok_id(l, "tokenizer.ggml.bos_token_id", &t->bos));
    FL_TRY(fl_ggtok_id(l, "tokenizer.ggml.eos_token_id", &t->eos));
    t->pad = -1;
    FL_TRY(fl_ggtok_id(l, "tokenizer.ggml.unknown_token_id", &unk));
    FL_TRY(fl_ggtok_end(l, "tokenizer.ggml.add_bos_token", l->pre == NULL || l->pre->bos, t->bos, t->before,
                        &t->n_before));
    FL_TRY(fl_ggtok_end(l, "tokenizer.ggml.add_eos_token", false, t->eos, t->after, &t->n_after));
    t->bpe.unk_named = l->pre == NULL && unk >= 0;
    t->bpe.unk = t->bpe.unk_named ? (uint32_t)unk : FL_VOCAB_NONE;
    return FOLOLLM_OK;
}

/* ---- Opening -- */

static folollm_status fl_ggtok_fill(fl_ggtok *l) {
    FL_TRY(fl_ggtok_fill_tokens(l));
    FL_TRY(l->pre != NULL ? fl_ggtok_fill_merges(l) : fl_ggtok_fill_cuts(l));
    fl_ggtok_fill_added(l);
    return fl_ggtok_fill_ids(l);
}

static folollm_status fl_ggtok_build(fl_ggtok *l, fl_tokenizer **out) {
    FL_TRY(fl_ggtok_settings(l));
    FL_TRY(fl_ggtok_arrays(l));
    FL_TRY(fl_ggtok_measure(l));
    if (l->pre == NULL) {
        FL_TRY(fl_ggtok_count_cuts(l));
    }
    FL_TRY(fl_build_open(&l->b));
    return fl_build_close(&l->b, fl_ggtok_fill(l), out);
}

FL_LOCAL bool fl_tokenizer_in_gguf(const fl_gguf *g) {
    const fl_gguf_value *model = fl_gguf_find(g, "tokenizer.ggml.model");
    fl_str name;
    bool none = model != NULL && fl_gguf_to_string(model, &name) &&
                (fl_str_is(name, "none") || fl_str_is(name, "no_vocab"));
    return model != NULL && !none;
}

FL_LOCAL folollm_status fl_tokenizer_open_gguf(fl_memory *m, const fl_gguf *g, fl_tokenizer **out, uint64_t *bytes,
                                               folollm_error *error) {
    fl_tokenizer plan, *t = NULL;
    fl_ggtok l = {.g = g};
    fl_build_init(&l.b, m, g->file.path, &plan, error);
    l.b.own_added = true;
    l.whole.memory = m;
    folollm_status status = fl_ggtok_build(&l, &t);
    fl_free(m, l.order, fl_ggtok_order_bytes(&l));
    fl_text_free(&l.whole);
    fl_build_free(&l.b);
    FL_TRY(status);
    *bytes = fl_arena_bytes(&t->arena);
    if (out != NULL) {
        *out = t;
    } else {
        fl_tokenizer_close(m, t);
    }
    return FOLOLLM_OK;
}

/* ---- The chat template -- */

/* How a token is spelled; nothing for -1. */
static fl_str fl_ggtok_spelling(const fl_gguf *g, folollm_token id) {
    const fl_gguf_value *tokens = fl_gguf_find(g, "tokenizer.ggml.tokens");
    fl_gguf_value rest = *tokens, element;
    fl_str token = {"", 0};
    for (folollm_token i = 0; i <= id && fl_gguf_next(&rest, &element); i++) {
        fl_gguf_to_string(&element, &token);
    }
    return token;
}

FL_LOCAL folollm_status fl_chat_open_gguf(fl_memory *m, const fl_gguf *g, const fl_tokenizer *t, fl_chat_template *out,
                                          folollm_error *error) {
    fl_str source;
    FL_TRY(fl_gguf_string(g, "tokenizer.chat_template", &source, error));
    fl_str bos = fl_ggtok_spelling(g, fl_tokenizer_bos(t)), eos = fl_ggtok_spelling(g, fl_tokenizer_eos(t));
    return fl_chat_read(m, source, bos, eos, out, error);
}
