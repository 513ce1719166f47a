/* The tokenizer of a Hugging Face tokenizer.json: text to ids and back, equal to the `tokenizers` library.
 *
 *     text -> cut out added tokens -> normalise -> cut into words -> byte-level BPE or SentencePiece-style BPE -> ids
 *
 * Immutable once open: any number of threads may read one. */
#ifndef FL_TOKENIZER_H
#define FL_TOKENIZER_H

#include "base/memory.h"

typedef struct fl_tokenizer fl_tokenizer;

/* Read tokenizer.json and tokenizer_config.json of a directory. *bytes: what an open tokenizer keeps. With out NULL
 * only that is computed. FOLOLLM_E_FORMAT for damaged files, FOLOLLM_E_UNSUPPORTED, naming the part, for a model,
 * normaliser, pre-tokenizer, decoder or pattern that is not known. */
FL_LOCAL folollm_status fl_tokenizer_open(fl_memory *m, const char *directory, fl_tokenizer **out, uint64_t *bytes,
                                          folollm_error *error);
FL_LOCAL void fl_tokenizer_close(fl_memory *m, fl_tokenizer *t);

FL_LOCAL uint32_t fl_tokenizer_n_ids(const fl_tokenizer *t);         /* highest id + 1 */
FL_LOCAL size_t fl_tokenizer_max_piece_bytes(const fl_tokenizer *t); /* bound of any token's text */
FL_LOCAL bool fl_tokenizer_has_id(const fl_tokenizer *t, folollm_token id); /* does a token have this id? */
FL_LOCAL bool fl_tokenizer_is_special(const fl_tokenizer *t, folollm_token id);

/* The id whose token is spelled exactly so, added tokens included; -1: none, or a name of more than 1024 bytes. */
FL_LOCAL folollm_token fl_tokenizer_find(const fl_tokenizer *t, fl_str token);

/* bos_token and eos_token of tokenizer_config.json as ids; -1: none or unknown. */
FL_LOCAL folollm_token fl_tokenizer_bos(const fl_tokenizer *t);
FL_LOCAL folollm_token fl_tokenizer_eos(const fl_tokenizer *t);

/* As folollm_tokenize. Temporary memory comes from m and is given back.
 *
 * What trust decides: an added token that is special, or that the model's own vocabulary does not have, is recognised
 * only where all of it lies inside one trusted span; <think> is such a token, though Qwen does not call it special.
 * Added tokens that are ordinary vocabulary (runs of spaces, say) are recognised everywhere. Merging never makes a
 * special token. So no bytes outside trusted spans become a control id, and a text that is trusted as a whole gets
 * exactly Hugging Face's ids. Spans restrict this alone: words are cut and merged across their borders. */
FL_LOCAL folollm_status fl_tokenizer_encode(const fl_tokenizer *t, fl_memory *m, fl_str text,
                                            const folollm_span *trusted, size_t n_trusted, unsigned flags,
                                            folollm_token *tokens, size_t *n_tokens, folollm_error *error);

/* Streaming detokenisation: feed ids one by one, take whole code points. Zeroed: the beginning of a text. The pieces
 * of a text put together are what Hugging Face decodes of all its ids at once, with one exception that no stream can
 * avoid: of a run of byte-fallback tokens that begins with whole characters and then breaks, Hugging Face replaces
 * those characters too. Who has all ids calls fl_detokenizer_look_ahead before each feed and is exact there too.
 * (An added token is decoded as it is spelled; tokenizers 0.23 gives the normalised spelling of a normalized one, and
 * then does not know it as special.) */
typedef struct fl_detokenizer {
    uint8_t pending[4]; /* bytes of a code point that is not complete */
    uint8_t n_pending;
    uint8_t n_cut;      /* characters cut from the beginning: a SentencePiece text drops its first space */
    bool started;       /* something was fed */
    bool bytes;         /* in a run of byte-fallback tokens */
    bool broken;        /* that run is not UTF-8: every byte becomes U+FFFD */
} fl_detokenizer;

/* Begin inside a text: what comes first is fed as if something stood before it. */
FL_LOCAL void fl_detokenizer_begin_inside(fl_detokenizer *d);

/* Room that one feed or finish may need: out must hold fl_tokenizer_max_piece_bytes + FL_DETOKENIZE_SLACK. */
#define FL_DETOKENIZE_SLACK 16

/* ids[0..n) are all that follow, ids[0] is fed next. Linear over a whole text: it looks only where a run begins. */
FL_LOCAL void fl_detokenizer_look_ahead(fl_detokenizer *d, const fl_tokenizer *t, const folollm_token *ids, size_t n,
                                        unsigned flags);

/* The text that this id completes; returns its length. flags: FOLOLLM_DETOKENIZE_*. An id without a token adds
 * nothing. */
FL_LOCAL size_t fl_detokenizer_feed(fl_detokenizer *d, const fl_tokenizer *t, folollm_token id, unsigned flags,
                                    char *out);

/* What stays of an unfinished code point at the end of a text: U+FFFD or nothing. */
FL_LOCAL size_t fl_detokenizer_finish(fl_detokenizer *d, char *out);

#endif
