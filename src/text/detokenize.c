/* Decoding, one id at a time: a piece's bytes are handed out as soon as they form whole code points.
 *
 * Two rules for bytes that form none, as the tokenizers library has them: a byte-level text replaces each maximal
 * invalid sequence by one U+FFFD (Unicode, section 3.9); a run of byte-fallback pieces that is not valid as a whole
 * becomes one U+FFFD for each of its bytes. */
#include "text/tokenizer_impl.h"

#include "base/utf8.h"

#define FL_DETOK_CUT_DONE 255 /* n_cut: nothing more is cut from the beginning */

static size_t fl_detok_put_unknown(char *out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        memcpy(out + 3 * i, "\xEF\xBF\xBD", 3);
    }
    return 3 * n;
}

FL_LOCAL size_t fl_detok_replace(const fl_decoder *d, fl_str piece, bool first, char *out) {
    fl_str from = fl_short_str(&d->from), to = fl_short_str(&d->to);
    size_t length = 0;
    for (size_t at = 0; at < piece.n;) {
        bool hit = from.n > 0 && piece.n - at >= from.n && memcmp(piece.at + at, from.at, from.n) == 0;
        fl_str part = {piece.at + at, 1};
        part = hit ? to : part;
        part.n = hit && first && d->drop_first ? 0 : part.n;
        if (out != NULL && part.n > 0) {
            memcpy(out + length, part.at, part.n);
        }
        length += part.n;
        at += hit ? from.n : 1;
    }
    return length;
}

/* Take one byte. Returns what it completes, with invalid sequences replaced; *valid: there was none. */
static size_t fl_detok_byte(fl_detokenizer *d, char byte, char *out, bool *valid) {
    size_t length = 0, used;
    *valid = true;
    for (;;) {
        d->pending[d->n_pending++] = (uint8_t)byte;
        const char *pending = (const char *)d->pending;
        size_t n = d->n_pending;
        if (fl_utf8_decode(pending, n, &used) >= 0) {
            memcpy(out + length, pending, n);
            d->n_pending = 0;
            return length + n;
        }
        if (used == n && fl_utf8_length(d->pending[0]) > n) {
            return length;
        }
        *valid = false;
        d->n_pending = 0;
        length += fl_detok_put_unknown(out + length, 1);
        if (n == 1) {
            return length;
        }
    }
}

static size_t fl_detok_feed_bytes(fl_detokenizer *d, fl_str piece, char *out) {
    size_t length = 0;
    bool valid;
    for (size_t i = 0; i < piece.n; i++) {
        if (d->n_pending == 0 && (uint8_t)piece.at[i] < 0x80) {
            out[length++] = piece.at[i];
        } else {
            length += fl_detok_byte(d, piece.at[i], out + length, &valid);
        }
    }
    return length;
}

/* End a run of byte-fallback pieces. */
static size_t fl_detok_end_run(fl_detokenizer *d, char *out) {
    size_t length = fl_detok_put_unknown(out, d->n_pending);
    d->n_pending = 0;
    d->bytes = d->broken = false;
    return length;
}

/* The byte that a "<0xHH>" piece stands for. */
static char fl_detok_byte_of(fl_str piece) {
    int value = 0;
    for (size_t i = 3; i < 5; i++) {
        char c = piece.at[i];
        int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
        value = value * 16 + (c == '+' ? 0 : digit);
    }
    return (char)value;
}

static size_t fl_detok_feed_fallback(fl_detokenizer *d, char byte, char *out) {
    char text[16];
    bool valid = true;
    d->bytes = true;
    size_t before = d->n_pending, length = 0;
    if (!d->broken) {
        length = fl_detok_byte(d, byte, text, &valid);
    }
    if (d->broken || !valid) { /* the whole run is: one for each byte, those that waited included */
        d->broken = true;
        d->n_pending = 0;
        return fl_detok_put_unknown(out, before + 1);
    }
    memcpy(out, text, length);
    return length;
}

/* Cut the first characters of the whole text, as many as the decoder says, from what comes first. */
static size_t fl_detok_strip(fl_detokenizer *d, const fl_decoder *decoder, char *out, size_t length) {
    fl_str strip = fl_short_str(&decoder->strip);
    size_t at = 0;
    while (d->n_cut < decoder->n_strip && length - at >= strip.n && strip.n > 0 &&
           memcmp(out + at, strip.at, strip.n) == 0) {
        at += strip.n;
        d->n_cut++;
    }
    if (at < length) {
        d->n_cut = FL_DETOK_CUT_DONE;
    }
    memmove(out, out + at, length - at);
    return length - at;
}

/* An id that is no part of the text at all. */
static bool fl_detok_skips(const fl_tokenizer *t, folollm_token id, unsigned flags) {
    bool special = (flags & FOLOLLM_DETOKENIZE_SKIP_SPECIAL) != 0 && fl_tokenizer_is_special(t, id);
    return special || !fl_tokenizer_has_id(t, id);
}

static bool fl_detok_is_byte(const fl_tokenizer *t, folollm_token id) {
    return fl_tokenizer_has_id(t, id) && (t->vocab.pieces[id].flags & FL_PIECE_BYTE) != 0;
}

FL_LOCAL void fl_detokenizer_begin_inside(fl_detokenizer *d) {
    memset(d, 0, sizeof *d);
    d->started = true;
    d->n_cut = FL_DETOK_CUT_DONE;
}

FL_LOCAL size_t fl_detokenizer_feed(fl_detokenizer *d, const fl_tokenizer *t, folollm_token id, unsigned flags,
                                    char *out) {
    if (fl_detok_skips(t, id, flags)) {
        return 0;
    }
    fl_str piece = fl_vocab_piece(&t->vocab, (uint32_t)id);
    bool first = !d->started;
    d->started = true;
    if (t->decoder.byte_level) {
        return fl_detok_feed_bytes(d, piece, out);
    }
    size_t length;
    if (fl_detok_is_byte(t, id)) {
        length = fl_detok_feed_fallback(d, fl_detok_byte_of(piece), out);
    } else {
        length = fl_detok_end_run(d, out);
        length += fl_detok_replace(&t->decoder, piece, first, out + length);
    }
    return d->n_cut == FL_DETOK_CUT_DONE ? length : fl_detok_strip(d, &t->decoder, out, length);
}

FL_LOCAL void fl_detokenizer_look_ahead(fl_detokenizer *d, const fl_tokenizer *t, const folollm_token *ids, size_t n,
                                        unsigned flags) {
    fl_detokenizer run = {.n_pending = 0};
    bool valid = true;
    char text[16];
    if (d->bytes || n == 0 || !fl_detok_is_byte(t, ids[0]) || fl_detok_skips(t, ids[0], flags)) {
        return;
    }
    for (size_t i = 0; valid && i < n; i++) {
        if (fl_detok_skips(t, ids[i], flags)) {
            continue;
        }
        if (!fl_detok_is_byte(t, ids[i])) {
            break;
        }
        fl_detok_byte(&run, fl_detok_byte_of(fl_vocab_piece(&t->vocab, (uint32_t)ids[i])), text, &valid);
    }
    d->broken = !valid || run.n_pending > 0;
}

FL_LOCAL size_t fl_detokenizer_finish(fl_detokenizer *d, char *out) {
    size_t n = d->bytes ? d->n_pending : d->n_pending > 0;
    d->n_pending = 0;
    return fl_detok_put_unknown(out, n);
}
