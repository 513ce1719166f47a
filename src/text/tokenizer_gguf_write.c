/* Writing tokenizer.ggml.*.
 *
 * Byte-level BPE keeps its merges, in the order of their ranks. SentencePiece's BPE has scores instead, and a
 * tokenizer.json that was made of such a model has the merges that follow from them: every way to cut a piece into two
 * pieces, the pieces one after another. That is checked, and the places of the pieces become their scores. Pieces whose
 * merges mingle had equal scores; Llama 2 has them for runs of spaces. Of such runs the longest left part is merged
 * first, and as the parts of a run descend in length, this is to make the longest piece first. */
#include "text/tokenizer_gguf_write.h"

#include "base/utf8.h"
#include "text/tokenizer_impl.h"

typedef struct fl_ggtok_out {
    const fl_tokenizer *t;
    uint32_t vocab;
    fl_gguf_out *o;
    folollm_error *error;
    const fl_ggtok_pre *pre; /* NULL: SentencePiece */
    bool prefix;             /* SentencePiece: a space in front of a text */
    fl_arena arena;          /* of what follows */
    uint8_t *types;          /* (vocab) */
    uint32_t *places;        /* (ids) of a piece among those that merging makes, from 1 on; 0: none makes it */
    uint32_t *last;          /* (ids) rank of a piece's last merge */
    uint64_t *pairs;         /* (ranks) left << 32 | right, or UINT64_MAX */
    char *text;              /* room for two tokens as they are spelled, and a blank */
    uint32_t n_places;
    uint64_t n_pairs;
} fl_ggtok_out;

static folollm_status fl_ggtok_refuse(const fl_ggtok_out *w, const char *what) {
    return fl_fail(w->error, FOLOLLM_E_UNSUPPORTED, "tokenizer.json: GGUF cannot say %s", what);
}

static folollm_status fl_ggtok_refuse_token(const fl_ggtok_out *w, uint32_t id, const char *what) {
    fl_str token = {w->text, fl_vocab_spell(&w->t->vocab, id, w->text)};
    return fl_fail(w->error, FOLOLLM_E_UNSUPPORTED, "tokenizer.json: GGUF cannot say that token %S %s", &token, what);
}

static bool fl_ggtok_has(const fl_ggtok_out *w, uint32_t id, uint8_t flag) {
    return fl_tokenizer_has_id(w->t, (folollm_token)id) && (w->t->vocab.pieces[id].flags & flag) != 0;
}

/* ---- Which model, and what comes before it -- */

static bool fl_ggtok_same_pre(const fl_ggtok_pre *pre, const fl_tokenizer *t) {
    const fl_pretokenizer *p = &t->pretokenizer;
    const fl_norm_step *norm = &t->normalizer.steps[0];
    size_t n = pre->digits ? 2 : 1;
    const fl_pretok_step *first = &p->steps[0], *words = &p->steps[n - 1];
    bool nfc = t->normalizer.n_steps == 1 && norm->kind == FL_NORM_FORM && norm->form == FL_UNI_NFC;
    bool digits = first->kind == FL_PRETOK_NUMBERS && first->n_digits == 1;
    return p->n_steps == n && words->kind == FL_PRETOK_WORDS && words->pattern == fl_pretok_known(pre->pattern) &&
           words->prefix == FL_PRETOK_PREFIX_NEVER && digits == pre->digits && nfc == pre->nfc &&
           t->normalizer.n_steps == pre->nfc && t->bpe.ignore_merges == pre->ignore_merges;
}

static folollm_status fl_ggtok_choose_pre(fl_ggtok_out *w) {
    const fl_bpe *bpe = &w->t->bpe;
    for (size_t i = 0; w->pre == NULL && fl_ggtok_pre_at(i) != NULL; i++) {
        w->pre = fl_ggtok_same_pre(fl_ggtok_pre_at(i), w->t) ? fl_ggtok_pre_at(i) : NULL;
    }
    if (w->pre == NULL) {
        return fl_ggtok_refuse(w, "how this one normalises text, cuts it into words and merges these, together");
    }
    for (size_t i = 0; (bpe->unk_named || bpe->byte_fallback) && i < FL_COUNT(bpe->first); i++) {
        if (bpe->first[i] == FL_VOCAB_NONE) {
            return fl_ggtok_refuse(w, "what stands for a byte that no token has (unk_token, byte_fallback)");
        }
    }
    return FOLOLLM_OK;
}

/* Only spaces become U+2581, perhaps with one more in front. */
static bool fl_ggtok_marks_spaces(const fl_tokenizer *t, bool *prefix) {
    const fl_norm_step *steps = t->normalizer.steps;
    size_t n = t->normalizer.n_steps;
    *prefix = n == 2 && steps[0].kind == FL_NORM_PREPEND && fl_str_is(fl_short_str(&steps[0].to), FL_GGTOK_BLANK);
    return n > 0 && n == 1 + (size_t)*prefix && steps[n - 1].kind == FL_NORM_REPLACE &&
           fl_str_is(fl_short_str(&steps[n - 1].from), " ") &&
           fl_str_is(fl_short_str(&steps[n - 1].to), FL_GGTOK_BLANK);
}

/* A text is one word: nothing cuts it, or what does looks for the spaces that are gone. */
static bool fl_ggtok_leaves_whole(const fl_pretokenizer *p) {
    const fl_pretok_step *s = &p->steps[0];
    return p->n_steps == 0 || (p->n_steps == 1 && s->kind == FL_PRETOK_LITERAL && !s->spaces &&
                               s->prefix == FL_PRETOK_PREFIX_NEVER && fl_str_is(fl_short_str(&s->literal), " "));
}

static folollm_status fl_ggtok_choose_pieces(fl_ggtok_out *w) {
    const fl_decoder *d = &w->t->decoder;
    bool whole = fl_ggtok_marks_spaces(w->t, &w->prefix) && fl_ggtok_leaves_whole(&w->t->pretokenizer);
    bool undone = fl_str_is(fl_short_str(&d->from), FL_GGTOK_BLANK) && fl_str_is(fl_short_str(&d->to), " ") &&
                  !d->drop_first && d->byte_fallback && d->n_strip == w->prefix &&
                  (d->n_strip == 0 || fl_str_is(fl_short_str(&d->strip), " "));
    if (!whole || !undone || w->t->bpe.ignore_merges) {
        return fl_ggtok_refuse(w, "how this one marks spaces and cuts text (SentencePiece's are marked by a Prepend "
                                  "and a Replace normalizer, and by a Replace and a Strip decoder)");
    }
    for (size_t i = 0; i < FL_COUNT(w->t->bpe.fallback); i++) {
        if (!w->t->bpe.byte_fallback || w->t->bpe.fallback[i] == FL_VOCAB_NONE) {
            return fl_ggtok_refuse(w, "what stands for a byte that has no token \"<0xHH>\"");
        }
    }
    return FOLOLLM_OK;
}

/* ---- Types of tokens -- */

static folollm_status fl_ggtok_type_added(fl_ggtok_out *w, size_t index) {
    const fl_added *a = &w->t->added;
    const fl_added_token *token = &a->tokens[index];
    fl_str content = {w->text, fl_vocab_spell(&w->t->vocab, token->id, w->text)};
    bool found = fl_added_find(a, FL_ADDED_RAW, content) == index;
    found = found || fl_added_find(a, FL_ADDED_NORMALIZED, content) == index;
    if (!found) { /* it is empty, or another one comes first */
        return FOLOLLM_OK;
    }
    if (token->single_word || token->lstrip || token->rstrip) {
        return fl_ggtok_refuse_token(w, token->id, token->single_word ? "stands only alone (single_word)"
                                                                      : "takes the spaces beside it (lstrip, rstrip)");
    }
    bool special = fl_ggtok_has(w, token->id, FL_PIECE_SPECIAL);
    bool unknown = special && w->pre == NULL && w->t->bpe.unk == token->id;
    w->types[token->id] = unknown ? FL_GGTOK_UNKNOWN : special ? FL_GGTOK_CONTROL : FL_GGTOK_USER_DEFINED;
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_settle_types(fl_ggtok_out *w) {
    const fl_added *a = &w->t->added;
    for (uint32_t id = 0; id < w->vocab; id++) {
        bool byte = w->pre == NULL && fl_ggtok_has(w, id, FL_PIECE_BYTE);
        w->types[id] = byte ? FL_GGTOK_BYTE : fl_ggtok_has(w, id, FL_PIECE_PRESENT) ? FL_GGTOK_NORMAL : FL_GGTOK_UNUSED;
    }
    for (size_t c = 0; c < 256 && w->t->normalizer.n_steps > 0; c++) {
        if (a->first[FL_ADDED_NORMALIZED][c]) {
            return fl_ggtok_refuse(w, "that an added token is looked for in normalised text (normalized)");
        }
    }
    for (size_t i = 0; i < a->n_tokens; i++) {
        FL_TRY(fl_ggtok_type_added(w, i));
    }
    return FOLOLLM_OK;
}

/* ---- Merges and scores -- */

static void fl_ggtok_settle_merges(fl_ggtok_out *w) {
    const fl_pair_map *map = &w->t->bpe.ranks;
    memset(w->pairs, 0xFF, w->t->bpe.n_results * sizeof *w->pairs);
    for (size_t i = 0; i <= map->mask; i++) {
        const fl_pair_slot *slot = &map->slots[i];
        if (slot->value != FL_PAIR_NONE) {
            w->pairs[slot->value] = (uint64_t)slot->a << 32 | slot->b;
            w->n_pairs++;
        }
    }
}

/* Are all ways to cut a piece in two merges? *n counts them. */
static bool fl_ggtok_all_cuts(const fl_tokenizer *t, uint32_t id, uint64_t *n) {
    const fl_vocab *v = &t->vocab;
    fl_str whole = fl_vocab_piece(v, id);
    for (size_t at = 0; at < whole.n; at += fl_utf8_length((uint8_t)whole.at[at])) {
        fl_str left = {whole.at, at}, right = {whole.at + at, whole.n - at};
        uint32_t a = at > 0 ? fl_vocab_find(v, left, true) : FL_VOCAB_NONE;
        uint32_t b = a != FL_VOCAB_NONE ? fl_vocab_find(v, right, true) : FL_VOCAB_NONE;
        uint32_t rank = b != FL_VOCAB_NONE ? fl_pair_map_get(&t->bpe.ranks, a, b) : 0;
        if (rank == FL_PAIR_NONE || (b != FL_VOCAB_NONE && t->bpe.results[rank] != id)) {
            return false;
        }
        *n += b != FL_VOCAB_NONE;
    }
    return true;
}

static bool fl_ggtok_is_run(fl_str piece) {
    size_t n = fl_min(fl_utf8_length((uint8_t)piece.at[0]), piece.n);
    return memcmp(piece.at, piece.at + n, piece.n - n) == 0;
}

/* Where a run comes among those that it mingles with. */
static uint32_t fl_ggtok_place_of_run(const fl_ggtok_out *w, uint32_t id) {
    return w->n_places + FL_GGTOK_PIECE_BYTES - (uint32_t)fl_min(w->t->vocab.pieces[id].n, FL_GGTOK_PIECE_BYTES);
}

/* Give every piece its place. False: merges of pieces mingle that are no runs, or there are more places than floats
 * can tell apart. */
static bool fl_ggtok_settle_places(fl_ggtok_out *w) {
    const fl_bpe *bpe = &w->t->bpe;
    uint32_t first = 0, end = 0; /* piece that opened the place; last rank of it so far */
    bool mingled = false;
    for (uint32_t rank = 0; rank < bpe->n_results; rank++) {
        w->last[bpe->results[rank]] = rank;
    }
    for (uint32_t rank = 0; rank < bpe->n_results; rank++) {
        uint32_t id = bpe->results[rank];
        if (fl_ggtok_has(w, id, FL_PIECE_SPECIAL) || w->places[id] != 0) {
            continue;
        }
        if (w->n_places == 0 || rank > end) {
            w->n_places += mingled ? FL_GGTOK_PIECE_BYTES + 1 : 1;
            w->places[id] = w->n_places;
            first = id;
            end = w->last[id];
            mingled = false;
            continue;
        }
        if (!fl_ggtok_is_run(fl_vocab_piece(&w->t->vocab, id)) ||
            !fl_ggtok_is_run(fl_vocab_piece(&w->t->vocab, first))) {
            return false;
        }
        w->places[first] = fl_ggtok_place_of_run(w, first);
        w->places[id] = fl_ggtok_place_of_run(w, id);
        end = w->last[id] > end ? w->last[id] : end;
        mingled = true;
    }
    w->n_places += mingled ? FL_GGTOK_PIECE_BYTES : 0;
    return w->n_places < 1u << 24;
}

static folollm_status fl_ggtok_settle_scores(fl_ggtok_out *w) {
    const fl_tokenizer *t = w->t;
    uint64_t n_cuts = 0;
    bool ok = fl_ggtok_settle_places(w);
    for (uint32_t id = 0; id < t->vocab.n_ids && ok; id++) {
        bool cut = fl_ggtok_has(w, id, FL_PIECE_PRESENT) && !fl_ggtok_has(w, id, FL_PIECE_SPECIAL);
        bool is_long = t->vocab.pieces[id].n > FL_GGTOK_PIECE_BYTES;
        if (cut && is_long && w->types[id] != FL_GGTOK_USER_DEFINED) {
            return fl_ggtok_refuse_token(w, id, "is a piece: it has more than 512 bytes");
        }
        ok = !cut || is_long || fl_ggtok_all_cuts(t, id, &n_cuts);
    }
    return ok && n_cuts == w->n_pairs ? FOLOLLM_OK
                                      : fl_ggtok_refuse(w, "merges that are not every way to cut each piece, one piece "
                                                           "after another, as they are in a SentencePiece model");
}

/* ---- Entries -- */

static folollm_status fl_ggtok_put_token(fl_ggtok_out *w, uint32_t id) {
    fl_str token = {w->text, 0};
    if (fl_ggtok_has(w, id, FL_PIECE_PRESENT)) {
        token.n = fl_vocab_spell(&w->t->vocab, id, w->text);
        return fl_gguf_out_text(w->o, token);
    }
    token.n = fl_format(w->text, 32, "[PAD%u]", (uint64_t)id);
    if (fl_tokenizer_find(w->t, token) >= 0) {
        return fl_fail(w->error, FOLOLLM_E_UNSUPPORTED,
                       "tokenizer.json: in GGUF the unused id %u is spelled %S, and so is a token", (uint64_t)id,
                       &token);
    }
    return fl_gguf_out_text(w->o, token);
}

static folollm_status fl_ggtok_put_tokens(fl_ggtok_out *w) {
    FL_TRY(fl_gguf_out_array(w->o, "tokenizer.ggml.tokens", FL_GGUF_STRING, w->vocab));
    for (uint32_t id = 0; id < w->vocab; id++) {
        FL_TRY(fl_ggtok_put_token(w, id));
    }
    FL_TRY(fl_gguf_out_array(w->o, "tokenizer.ggml.token_type", FL_GGUF_I32, w->vocab));
    for (uint32_t id = 0; id < w->vocab; id++) {
        FL_TRY(fl_gguf_out_number(w->o, w->types[id], 4));
    }
    return FOLOLLM_OK;
}

static folollm_status fl_ggtok_put_merges(fl_ggtok_out *w) {
    FL_TRY(fl_gguf_out_array(w->o, "tokenizer.ggml.merges", FL_GGUF_STRING, w->n_pairs));
    for (size_t rank = 0; rank < w->t->bpe.n_results; rank++) {
        if (w->pairs[rank] == UINT64_MAX) {
            continue;
        }
        size_t left = fl_vocab_spell(&w->t->vocab, (uint32_t)(w->pairs[rank] >> 32), w->text);
        w->text[left] = ' ';
        size_t right = fl_vocab_spell(&w->t->vocab, (uint32_t)w->pairs[rank], w->text + left + 1);
        fl_str merge = {w->text, left + 1 + right};
        if (memchr(w->text, ' ', left) != NULL || memchr(w->text + left + 1, ' ', right) != NULL) {
            return fl_ggtok_refuse(w, "a merge of tokens that are spelled with a space");
        }
        FL_TRY(fl_gguf_out_text(w->o, merge));
    }
    return FOLOLLM_OK;
}

/* What no merge makes comes last. */
static folollm_status fl_ggtok_put_scores(fl_ggtok_out *w) {
    FL_TRY(fl_gguf_out_array(w->o, "tokenizer.ggml.scores", FL_GGUF_F32, w->vocab));
    for (uint32_t id = 0; id < w->vocab; id++) {
        uint32_t place = id < w->t->vocab.n_ids && w->places[id] != 0 ? w->places[id] : w->n_places + 1;
        FL_TRY(fl_gguf_out_number(w->o, fl_bits_of_float(-(float)place), 4));
    }
    return fl_gguf_out_bool(w->o, "tokenizer.ggml.add_space_prefix", w->prefix);
}

static folollm_status fl_ggtok_put_ids(fl_ggtok_out *w) {
    const fl_tokenizer *t = w->t;
    bool bos = t->n_before == 1 && t->bos >= 0 && t->before[0] == (uint32_t)t->bos;
    bool eos = t->n_after == 1 && t->eos >= 0 && t->after[0] == (uint32_t)t->eos;
    if ((t->n_before != 0 && !bos) || (t->n_after != 0 && !eos)) {
        return fl_ggtok_refuse(w, "that other tokens than bos_token in front and eos_token behind are added to a text "
                                  "(post_processor)");
    }
    if (t->bos >= 0) {
        FL_TRY(fl_gguf_out_u32(w->o, "tokenizer.ggml.bos_token_id", (uint32_t)t->bos));
    }
    if (t->pad >= 0) {
        FL_TRY(fl_gguf_out_u32(w->o, "tokenizer.ggml.padding_token_id", (uint32_t)t->pad));
    }
    if (t->bpe.unk_named && t->bpe.unk != FL_VOCAB_NONE) {
        FL_TRY(fl_gguf_out_u32(w->o, "tokenizer.ggml.unknown_token_id", t->bpe.unk));
    }
    FL_TRY(fl_gguf_out_bool(w->o, "tokenizer.ggml.add_bos_token", bos));
    return fl_gguf_out_bool(w->o, "tokenizer.ggml.add_eos_token", eos);
}

/* ---- All of it -- */

static void fl_ggtok_out_layout(fl_ggtok_out *w, size_t longest) {
    w->types = fl_take(&w->arena, w->vocab, sizeof *w->types);
    w->places = fl_take(&w->arena, w->t->vocab.n_ids, sizeof *w->places);
    w->last = fl_take(&w->arena, w->t->vocab.n_ids, sizeof *w->last);
    w->pairs = fl_take(&w->arena, w->t->bpe.n_results, sizeof *w->pairs);
    w->text = fl_take(&w->arena, 4 * longest + 33, 1);
}

static folollm_status fl_ggtok_put(fl_ggtok_out *w) {
    FL_TRY(w->t->vocab.byte_level ? fl_ggtok_choose_pre(w) : fl_ggtok_choose_pieces(w));
    FL_TRY(fl_ggtok_settle_types(w));
    fl_ggtok_settle_merges(w);
    if (w->pre == NULL) {
        FL_TRY(fl_ggtok_settle_scores(w));
    }
    FL_TRY(fl_gguf_out_string(w->o, "tokenizer.ggml.model", fl_str_of(w->pre != NULL ? "gpt2" : "llama")));
    FL_TRY(fl_gguf_out_string(w->o, "tokenizer.ggml.pre", fl_str_of(w->pre != NULL ? w->pre->name : "default")));
    FL_TRY(fl_ggtok_put_tokens(w));
    FL_TRY(w->pre != NULL ? fl_ggtok_put_merges(w) : fl_ggtok_put_scores(w));
    return fl_ggtok_put_ids(w);
}

FL_LOCAL folollm_status fl_tokenizer_put_gguf(const fl_tokenizer *t, uint32_t vocab, fl_gguf_out *o,
                                              folollm_error *error) {
    fl_ggtok_out w = {.t = t, .vocab = vocab, .o = o, .error = error};
    size_t longest = 0;
    if (t == NULL) {
        return fl_gguf_out_string(o, "tokenizer.ggml.model", fl_str_of("none"));
    }
    for (uint32_t id = 0; id < t->vocab.n_ids; id++) {
        longest = fl_max(longest, t->vocab.pieces[id].n);
    }
    fl_ggtok_out_layout(&w, longest);
    FL_TRY(fl_arena_open(o->memory, &w.arena, "a tokenizer's tokens as they are spelled", error));
    fl_ggtok_out_layout(&w, longest);
    folollm_status status = fl_ggtok_put(&w);
    fl_arena_close(o->memory, &w.arena);
    return status;
}
