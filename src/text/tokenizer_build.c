#include "text/tokenizer_build.h"

#define FL_BUILD_ADDED_BYTES ((size_t)1 << 24) /* contents of all added tokens */

FL_LOCAL void fl_build_init(fl_build *b, fl_memory *m, const char *name, fl_tokenizer *plan, folollm_error *error) {
    memset(b, 0, sizeof *b);
    memset(plan, 0, sizeof *plan);
    b->memory = b->piece.memory = b->normal[0].memory = b->normal[1].memory = m;
    b->name = name;
    b->error = error;
    b->t = plan;
}

FL_LOCAL void fl_build_free(fl_build *b) {
    fl_text_free(&b->piece);
    fl_text_free(&b->normal[0]);
    fl_text_free(&b->normal[1]);
    fl_free(b->memory, b->pairs, b->pairs_capacity * sizeof *b->pairs);
}

FL_LOCAL folollm_status fl_build_no_memory(const fl_build *b, size_t n_bytes) {
    return fl_no_memory(b->error, "reading a tokenizer", n_bytes);
}

/* The piece that token is kept as. */
static bool fl_build_piece(fl_build *b, fl_str token, fl_str *out, bool *raw) {
    b->piece.n = 0;
    if (!fl_text_append(&b->piece, token.at, token.n)) {
        return false;
    }
    *raw = fl_vocab_piece_of(b->t->vocab.byte_level, token, b->piece.at, &out->n);
    out->at = b->piece.at;
    return true;
}

/* ---- Measuring -- */

FL_LOCAL folollm_status fl_build_measure(fl_build *b, fl_str token, uint32_t id, bool added) {
    fl_str piece;
    bool raw;
    if (token.n >= FL_PIECE_BYTES_MAX) {
        return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: token %u has %u bytes, which is more than is read here",
                       b->name, (uint64_t)id, (uint64_t)token.n);
    }
    if (added) { /* numbered at the end; takes no more than it is spelled with */
        b->blob_bytes += token.n;
        return FOLOLLM_OK;
    }
    if (!fl_build_piece(b, token, &piece, &raw)) {
        return fl_build_no_memory(b, token.n);
    }
    b->n_vocab++;
    b->n_ids = fl_max(b->n_ids, (size_t)id + 1);
    b->blob_bytes += piece.n;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_build_measure_added(fl_build *b, size_t n_found) {
    b->n_added++;
    b->added_bytes += n_found;
    if (b->added_bytes > FL_BUILD_ADDED_BYTES) {
        return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: added tokens of more than %u bytes are not read here", b->name,
                       (uint64_t)FL_BUILD_ADDED_BYTES);
    }
    return FOLOLLM_OK;
}

static void fl_build_layout(const fl_build *b, fl_tokenizer *t, fl_arena *arena) {
    fl_vocab_layout(&t->vocab, arena, b->n_ids, b->n_vocab + b->n_added, b->blob_bytes);
    fl_added_layout(&t->added, arena, b->n_added, b->added_bytes);
    fl_pair_map_layout(&t->bpe.ranks, arena, b->n_merges);
    t->bpe.results = fl_take(arena, b->n_results, sizeof *t->bpe.results);
    t->bpe.joins = fl_take(arena, FL_BPE_JOINS / 8, 1);
}

FL_LOCAL folollm_status fl_build_open(fl_build *b) {
    fl_arena arena = {0};
    if (b->n_ids > FL_VOCAB_IDS_MAX) {
        return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: ids up to %u are needed, and %u is the highest that is read "
                                                   "here", b->name, (uint64_t)b->n_ids, (uint64_t)FL_VOCAB_IDS_MAX);
    }
    fl_take(&arena, 1, sizeof *b->t);
    fl_build_layout(b, b->t, &arena);
    FL_TRY(fl_arena_open(b->memory, &arena, "the tokenizer", b->error));
    fl_tokenizer *t = fl_take(&arena, 1, sizeof *t);
    *t = *b->t;
    fl_build_layout(b, t, &arena);
    t->arena = arena;
    t->bpe.vocab = &t->vocab;
    fl_vocab_clear(&t->vocab);
    fl_added_clear(&t->added);
    fl_pair_map_clear(&t->bpe.ranks);
    b->t = t;
    return FOLOLLM_OK;
}

/* ---- Filling -- */

FL_LOCAL bool fl_build_find(fl_build *b, fl_str token, uint32_t guess, uint32_t *id) {
    const fl_vocab *v = &b->t->vocab;
    fl_str piece;
    bool raw;
    if (!fl_build_piece(b, token, &piece, &raw)) {
        return false;
    }
    bool guessed = guess < v->n_ids && (v->pieces[guess].flags & FL_PIECE_PRESENT) != 0 &&
                   ((v->pieces[guess].flags & FL_PIECE_RAW) != 0) == raw &&
                   fl_str_equal(fl_vocab_piece(v, guess), piece);
    *id = guessed ? guess : fl_vocab_find(v, piece, raw);
    return true;
}

FL_LOCAL bool fl_build_put(fl_build *b, uint32_t id, fl_str token, uint8_t flags, bool *fresh) {
    fl_str piece;
    bool raw;
    if (!fl_build_piece(b, token, &piece, &raw)) {
        return false;
    }
    *fresh = fl_vocab_put(&b->t->vocab, id, piece, (uint8_t)(flags | (raw ? FL_PIECE_RAW : 0)));
    return true;
}

/* Room for the next of n_merges pairs. */
static folollm_status fl_build_reserve(fl_build *b) {
    void *pairs = b->pairs;
    if (!fl_grow(b->memory, &pairs, &b->pairs_capacity, b->n_merges, sizeof *b->pairs)) {
        return fl_no_memory(b->error, "the merges of a tokenizer", b->n_merges * sizeof *b->pairs);
    }
    b->pairs = pairs;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_build_merge(fl_build *b, fl_str whole, size_t n_left) {
    fl_bpe *bpe = &b->t->bpe;
    fl_piece *pieces = b->t->vocab.pieces;
    const char *right = n_left > 0 ? whole.at + n_left : whole.at; /* of nothing merged with nothing, NULL */
    fl_str names[3] = {{whole.at, n_left}, {right, whole.n - n_left}, whole};
    size_t rank = b->n_pairs;
    uint32_t ids[3], next = rank > 0 ? bpe->results[rank - 1] + 1 : FL_VOCAB_NONE;
    FL_TRY(fl_build_reserve(b));
    for (size_t i = 0; i < 3; i++) {
        if (!fl_build_find(b, names[i], i == 2 ? next : FL_VOCAB_NONE, &ids[i])) {
            return fl_build_no_memory(b, whole.n);
        }
        if (ids[i] == FL_VOCAB_NONE || (!b->own_added && (pieces[ids[i]].flags & FL_PIECE_ADDED) != 0)) {
            return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: merge %u of %S and %S: %S is not in the vocabulary",
                           b->name, (uint64_t)rank, &names[0], &names[1], &names[i]);
        }
        pieces[ids[i]].flags &= (uint8_t)~FL_PIECE_ADDED;
    }
    b->pairs[b->n_pairs++] = (uint64_t)ids[0] << 32 | ids[1];
    bpe->results[rank] = ids[2];
    fl_bpe_note_join(bpe, ids[0], ids[1], ids[2]);
    return FOLOLLM_OK;
}

/* ---- Closing -- */

/* Of equal merges the last counts, as in the tokenizers library, so they are entered from the end. A merge whose
 * result is a special token is left out: where that token may be, it was cut out of the text before. */
static void fl_build_enter_merges(fl_build *b) {
    fl_bpe *bpe = &b->t->bpe;
    for (size_t rank = b->n_pairs; rank-- > 0;) {
        if ((b->t->vocab.pieces[bpe->results[rank]].flags & FL_PIECE_SPECIAL) == 0) {
            fl_pair_map_put(&bpe->ranks, (uint32_t)(b->pairs[rank] >> 32), (uint32_t)b->pairs[rank], (uint32_t)rank);
        }
    }
}

static folollm_status fl_build_check_template(const fl_build *b) {
    const fl_tokenizer *t = b->t;
    for (size_t i = 0; i < t->n_before + t->n_after; i++) {
        uint32_t id = i < t->n_before ? t->before[i] : t->after[i - t->n_before];
        if (!fl_tokenizer_has_id(t, (folollm_token)id)) {
            return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: the id %u is added to every text, and no token has it",
                           b->name, (uint64_t)id);
        }
    }
    return FOLOLLM_OK;
}

/* "<0xHH>" as the library's decoder reads it: a sign and either case are let through. */
static bool fl_build_is_byte(fl_str s) {
    for (size_t i = 3; s.n == 6 && i < 5; i++) {
        char c = s.at[i], lower = (char)(c | 0x20);
        if (!((c >= '0' && c <= '9') || (lower >= 'a' && lower <= 'f') || (i == 3 && c == '+'))) {
            return false;
        }
    }
    return s.n == 6 && memcmp(s.at, "<0x", 3) == 0 && s.at[5] == '>';
}

/* Mark byte pieces, and find the most that one piece can become: bytes that are no UTF-8 become three each. */
static void fl_build_index(fl_tokenizer *t) {
    fl_bpe_index(&t->bpe);
    for (uint32_t id = 0; id < t->vocab.n_ids; id++) {
        fl_str piece = fl_vocab_piece(&t->vocab, id);
        size_t n = t->decoder.byte_level ? piece.n : fl_detok_replace(&t->decoder, piece, false, NULL);
        for (size_t i = 0; t->decoder.byte_level && i < piece.n; i++) {
            n += (uint8_t)piece.at[i] >= 0x80 ? 2 : 0;
        }
        t->max_piece_bytes = fl_max(t->max_piece_bytes, n);
        if (t->decoder.byte_fallback && fl_build_is_byte(piece)) {
            t->vocab.pieces[id].flags |= FL_PIECE_BYTE;
        }
    }
}

FL_LOCAL folollm_status fl_build_close(fl_build *b, folollm_status status, fl_tokenizer **out) {
    if (status == FOLOLLM_OK) {
        b->t->bpe.n_results = b->n_pairs > 0 ? b->n_pairs : b->n_results;
        fl_build_enter_merges(b);
        fl_build_index(b->t);
        status = fl_build_check_template(b);
    }
    if (status != FOLOLLM_OK) {
        fl_tokenizer_close(b->memory, b->t);
        return status;
    }
    *out = b->t;
    return FOLOLLM_OK;
}
