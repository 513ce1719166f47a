/* The text that a sequence's output adds up to: whole code points, stop strings cut out, what may yet become a stop
 * string held back. A plain value: copy it to try a token, keep the copy to commit it. */
#ifndef FL_STREAM_H
#define FL_STREAM_H

#include "engine/sampler.h"
#include "text/tokenizer.h"

typedef struct fl_stream {
    fl_detokenizer detokenizer;
    uint8_t n_held;
    char held[FL_STOP_BYTES]; /* text that is the beginning of a stop string */
} fl_stream;

/* Room that one feed may need. */
FL_LOCAL size_t fl_stream_room(size_t max_piece_bytes);

/* Add a token. out gets what it releases, *n_out bytes; returns the index of the stop string that is now complete,
 * the text ending before it, or -1. look: false before min_tokens: stop strings are not looked for. t NULL: no text. */
FL_LOCAL int fl_stream_feed(fl_stream *s, const fl_tokenizer *t, const fl_sampling *options, folollm_token id,
                            bool look, char *out, size_t *n_out);

/* The end of the text: release what is held. Appends at out + *n_out. */
FL_LOCAL void fl_stream_finish(fl_stream *s, char *out, size_t *n_out);

#endif
