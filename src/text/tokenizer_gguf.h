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
#include "text/pretokenize.h"
#include "text/tokenizer.h"

#define FL_GGTOK_PIECE_BYTES 512 /* of a piece that is cut: time grows with its square; SentencePiece's own have 64 */
#define FL_GGTOK_BLANK "\xE2\x96\x81" /* U+2581 */

enum { /* tokenizer.ggml.token_type */
    FL_GGTOK_NORMAL = 1,
    FL_GGTOK_UNKNOWN = 2,
    FL_GGTOK_CONTROL = 3,
    FL_GGTOK_USER_DEFINED = 4,
    FL_GGTOK_UNUSED = 5,
    FL_GGTOK_BYTE = 6
};

typedef struct fl_ggtok_pre { /* what a name under tokenizer.ggml.pre stands for */
    const char *name;
    fl_pretok_name pattern;
    bool digits;        /* each \p{N} is a word before the pattern is applied */
    bool nfc;
    bool ignore_merges; /* a word that is a token is not merged */
    bool bos;           /* BOS is added, unless the file says otherwise */
} fl_ggtok_pre;

/* Of names for the same, the usual one comes first. NULL: there are no more. */
FL_LOCAL const fl_ggtok_pre *fl_ggtok_pre_at(size_t i);

FL_LOCAL bool fl_tokenizer_in_gguf(const fl_gguf *g);

/* As fl_tokenizer_open. The file may be closed after. */
FL_LOCAL folollm_status fl_tokenizer_open_gguf(fl_memory *m, const fl_gguf *g, fl_tokenizer **out, uint64_t *bytes,
                                               folollm_error *error);

/* As fl_chat_open; t is the file's tokenizer. */
FL_LOCAL folollm_status fl_chat_open_gguf(fl_memory *m, const fl_gguf *g, const fl_tokenizer *t, fl_chat_template *out,
                                          folollm_error *error);

#endif
