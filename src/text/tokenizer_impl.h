/* What is inside a tokenizer; the files of tokenizer.h share this. */
#ifndef FL_TOKENIZER_IMPL_H
#define FL_TOKENIZER_IMPL_H

#include "formats/json.h"
#include "text/added.h"
#include "text/bpe.h"
#include "text/normalize.h"
#include "text/tokenizer.h"

#define FL_TEMPLATE_IDS 8 /* most ids that a post-processor puts before or after a text */

/* How pieces become text: in order, replace in each piece, join byte pieces, cut the first characters of all. */
typedef struct fl_decoder {
    bool byte_level;        /* pieces are bytes; the rest does not apply */
    bool byte_fallback;     /* "<0xHH>" are bytes */
    bool drop_first;        /* Metaspace: in the first piece `from` becomes nothing */
    fl_short_text from, to; /* from.n 0: nothing is replaced */
    fl_short_text strip;    /* one character */
    uint8_t n_strip;        /* how many of it at most are cut from the beginning */
} fl_decoder;

struct fl_tokenizer {
    fl_arena arena; /* holds this structure too */
    fl_vocab vocab;
    fl_bpe bpe;
    fl_added added;
    fl_normalizer normalizer;
    fl_pretokenizer pretokenizer;
    fl_decoder decoder;
    uint32_t before[FL_TEMPLATE_IDS], after[FL_TEMPLATE_IDS]; /* what the post-processor adds */
    size_t n_before, n_after;
    size_t max_piece_bytes; /* of any piece, decoded */
    folollm_token bos, eos, pad; /* -1: none */
};

/* Read normalizer, pre_tokenizer, decoder and post_processor of a tokenizer.json into *t. */
FL_LOCAL folollm_status fl_tokenizer_parts(const fl_json *doc, fl_tokenizer *t, folollm_error *error);

/* A piece as the decoder replaces in it; out NULL only measures. */
FL_LOCAL size_t fl_detok_replace(const fl_decoder *d, fl_str piece, bool first, char *out);

#endif
