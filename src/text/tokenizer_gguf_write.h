/* A tokenizer.json as the metadata of a GGUF file: what tokenizer_gguf.h reads. */
#ifndef FL_TOKENIZER_GGUF_WRITE_H
#define FL_TOKENIZER_GGUF_WRITE_H

#include "formats/gguf_write.h"
#include "text/tokenizer_gguf.h"

/* Entries for a tokenizer, all but those of tokens that end a text: tokens, types, merges or scores, BOS, PAD and UNK,
 * what is added to a text. vocab: rows of the embedding, at least as many as ids; the others become tokens "[PAD7]"
 * that are unused, as llama.cpp's converter fills them up. t NULL: the file has no tokenizer.
 *
 * Read back, a text that is trusted gets the same ids. FOLOLLM_E_UNSUPPORTED names what would change them and the
 * format cannot say: a cut of words or a normaliser that has no name in it, a token that takes the spaces beside it or
 * stands only alone, one that is looked for in normalised text, merges that do not follow from scores, a space in front
 * of byte-level text, a post-processor that adds other tokens than BOS and EOS. */
FL_LOCAL folollm_status fl_tokenizer_put_gguf(const fl_tokenizer *t, uint32_t vocab, fl_gguf_out *o,
                                              folollm_error *error);

#endif
