#include "engine/stream.h"

FL_LOCAL size_t fl_stream_room(size_t max_piece_bytes) {
    return max_piece_bytes + FL_DETOKENIZE_SLACK + FL_STOP_BYTES + FL_DETOKENIZE_SLACK;
}

/* The earliest stop string in text, the longest of those that begin there; -1: none. */
static int fl_find_stop(const fl_sampling *o, const char *text, size_t n, size_t *at) {
    for (size_t i = 0; i < n; i++) {
        int best = -1;
        for (uint32_t k = 0; k < o->n_stops; k++) {
            size_t length = o->stop_bytes[k];
            if (length <= n - i && memcmp(text + i, o->stops[k], length) == 0 &&
                (best < 0 || length > o->stop_bytes[best])) {
                best = (int)k;
            }
        }
        if (best >= 0) {
            *at = i;
            return best;
        }
    }
    return -1;
}

/* Bytes at the end of text that are the beginning of a stop string. */
static size_t fl_stop_tail(const fl_sampling *o, const char *text, size_t n) {
    size_t longest = fl_min(n, FL_STOP_BYTES - 1);
    for (size_t tail = longest; tail > 0; tail--) {
        for (uint32_t k = 0; k < o->n_stops; k++) {
            if (o->stop_bytes[k] > tail && memcmp(text + n - tail, o->stops[k], tail) == 0) {
                return tail;
            }
        }
    }
    return 0;
}

FL_LOCAL int fl_stream_feed(fl_stream *s, const fl_tokenizer *t, const fl_sampling *options, folollm_token id,
                            bool look, char *out, size_t *n_out) {
    size_t n = s->n_held, at = 0;
    memcpy(out, s->held, n);
    s->n_held = 0;
    if (t != NULL && (uint32_t)id < fl_tokenizer_n_ids(t)) {
        n += fl_detokenizer_feed(&s->detokenizer, t, id, FOLOLLM_DETOKENIZE_SKIP_SPECIAL, out + n);
    }
    *n_out = n;
    if (!look || options->n_stops == 0) {
        return -1;
    }
    int stop = fl_find_stop(options, out, n, &at);
    if (stop >= 0) {
        *n_out = at;
        return stop;
    }
    size_t tail = fl_stop_tail(options, out, n);
    memcpy(s->held, out + n - tail, tail);
    s->n_held = (uint8_t)tail;
    *n_out = n - tail;
    return -1;
}

FL_LOCAL void fl_stream_finish(fl_stream *s, char *out, size_t *n_out) {
    memcpy(out + *n_out, s->held, s->n_held);
    *n_out += s->n_held;
    s->n_held = 0;
    *n_out += fl_detokenizer_finish(&s->detokenizer, out + *n_out);
}
