/* Text through a tokenizer and back, whatever tokenizer it is. Behind fuzz.h. */
#ifndef FUZZ_TEXT_H
#define FUZZ_TEXT_H

#define FUZZ_IDS 1024
#define FUZZ_TEXT 96 /* most bytes of a text */

/* May text that nobody vouches for become this id? No control token, save the one that stands for what is unknown and
 * those of single bytes. */
static bool fuzz_is_plain(const fl_tokenizer *t, folollm_token id) {
    bool control = (t->vocab.pieces[id].flags & (FL_PIECE_SPECIAL | FL_PIECE_ADDED)) != 0;
    for (size_t i = 0; control && i < 256; i++) {
        control = t->bpe.fallback[i] != (uint32_t)id;
    }
    return !control || (uint32_t)id == t->bpe.unk;
}

static void fuzz_decode(const fl_tokenizer *t, const folollm_token *ids, size_t n, unsigned flags) {
    size_t room = fl_tokenizer_max_piece_bytes(t) + FL_DETOKENIZE_SLACK;
    char *out = malloc(room);
    fl_detokenizer d;
    memset(&d, 0, sizeof d);
    for (size_t i = 0; i <= n; i++) {
        if (i < n && (flags & FOLOLLM_DETOKENIZE_SKIP_SPECIAL) == 0) {
            fl_detokenizer_look_ahead(&d, t, ids + i, n - i, flags);
        }
        size_t length = i < n ? fl_detokenizer_feed(&d, t, ids[i], flags, out) : fl_detokenizer_finish(&d, out);
        FUZZ_CHECK(length <= room);
        FUZZ_CHECK(!t->decoder.byte_level || fl_utf8_valid_prefix(out, length) == length);
    }
    free(out);
}

static void fuzz_encode(const fl_tokenizer *t, fl_memory *m, fl_str text, bool trusted) {
    static folollm_token ids[FUZZ_IDS];
    folollm_span all = {0, text.n};
    size_t n = FUZZ_IDS;
    folollm_status status = fuzz_status(fl_tokenizer_encode(
        t, m, text, &all, trusted && text.n > 0, trusted ? 0 : FOLOLLM_TOKENIZE_PLAIN, ids, &n, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_ENCODING || status == FOLOLLM_E_FORMAT ||
               status == FOLOLLM_E_BUFFER);
    FUZZ_CHECK(status != FOLOLLM_E_BUFFER || n > FUZZ_IDS);
    if (status != FOLOLLM_OK) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        FUZZ_CHECK(fl_tokenizer_has_id(t, ids[i]) && (trusted || fuzz_is_plain(t, ids[i])));
    }
    fuzz_decode(t, ids, n, trusted ? 0 : FOLOLLM_DETOKENIZE_SKIP_SPECIAL);
}

/* The input's own text, and one that has something of everything. */
static void fuzz_use_tokenizer(const fl_tokenizer *t, fl_memory *m, fuzz_bytes own) {
    static const char sample[] = "ab ab<s>a\xC3\xA9\xCC\x81 \xE4\xB8\xAD\xF0\x9F\x98\x80\n\n 12 It's<unk>";
    fl_str texts[] = {{(const char *)own.at, own.n < FUZZ_TEXT ? own.n : FUZZ_TEXT}, {sample, sizeof sample - 1}};
    for (size_t i = 0; i < 4; i++) {
        fuzz_encode(t, m, texts[i / 2], i % 2 == 1);
    }
    for (folollm_token id = -1; id <= 8; id++) {
        fuzz_decode(t, &id, 1, 0);
    }
    FUZZ_CHECK(fl_tokenizer_find(t, texts[0]) < (folollm_token)fl_tokenizer_n_ids(t));
}

#endif
