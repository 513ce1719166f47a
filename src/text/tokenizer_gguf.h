/* The tokenizer and the chat template in the metadata of a GGUF file.
 *
 * Such a file keeps the vocabulary with a type for every token, merges or scores, and the name of a pre-tokenizer. What
 * else a tokenizer.json says is known by that name: the pattern that cuts words, Unicode's normal form, whether whole
 * words are looked up first. Where llama.cpp and Hugging Face differ, the ids here are Hugging Face's:
 *
 *   - qwen2 and qwen35 normalise text to NFC;
 *   - "default", which llama.cpp cuts by a pattern of its own, is GPT-2's pattern;
 *   - a pad token "[PAD7]" that the converter invented for id 7 is no token at all;
 *   - what a control token is spelled with never becomes one, not even by merging, unless it is trusted.
 *
 * What the file does not keep is lost: whether an added token takes the spaces beside it, stands only alone as a word,
 * or is looked for in normalised text. */
#ifndef FL_TOKENIZER_GGUF_H
#define FL_TOKENIZER_GGUF_H

#include "formats/gguf.h"
#include "text/chat.h"
#include "text/tokenizer.h"

FL_LOCAL bool fl_tokenizer_in_gguf(const fl_gguf *g);

/* As fl_tokenizer_open. The file may be closed after. */
FL_LOCAL folollm_status fl_tokenizer_open_gguf(fl_memory *m, const fl_gguf *g, fl_tokenizer **out, uint64_t *bytes,
                                               folollm_error *error);

/* As fl_chat_open; t is the file's tokenizer. */
FL_LOCAL folollm_status fl_chat_open_gguf(fl_memory *m, const fl_gguf *g, const fl_tokenizer *t, fl_chat_template *out,
                                          folollm_error *error);

#endif
