/* Byte-pair encoding of one word: byte-level, or over characters with byte fallback (SentencePiece style). */
#ifndef FL_BPE_H
#define FL_BPE_H

#include "base/map.h"
#include "text/vocab.h"

typedef struct fl_bpe {
    const fl_vocab *vocab;
    fl_pair_map ranks;     /* (left id, right id) -> rank, lower first */
    uint32_t *results;     /* (n_results) by rank */
    size_t n_results;
    uint8_t *joins;        /* (FL_BPE_JOINS / 8) bits by hash of two characters: some merge has them side by side */
    uint32_t first[256];   /* the token of one byte (byte-level) or of one ASCII character; FL_VOCAB_NONE */
    uint32_t fallback[256]; /* the token "<0xHH>" */
    uint32_t unk;          /* FL_VOCAB_NONE: no unk_token, or one that no token has */
    bool unk_named;        /* there is an unk_token */
    bool fuse_unk, byte_fallback, ignore_merges;
} fl_bpe;

#define FL_BPE_JOINS 65536

/* Ids of a whole text, and the working memory of its words. */
typedef struct fl_bpe_run {
    fl_memory *memory;
    uint32_t *ids;      /* (n_ids) of capacity */
    size_t n_ids, capacity;
    uint32_t *links;    /* next and previous symbol of a long word, (2, n) */
    size_t n_links;
    uint64_t *heap;     /* rank << 32 | position, smallest first */
    size_t n_heap, heap_capacity;
} fl_bpe_run;

/* What a word's characters are without merging; the tables first and fallback, once the vocabulary is full. */
FL_LOCAL void fl_bpe_index(fl_bpe *b);

/* Note where the merge of two tokens joins them; `whole` is the token that it makes. */
FL_LOCAL void fl_bpe_note_join(fl_bpe *b, uint32_t left, uint32_t right, uint32_t whole);

/* Append the ids of a word, valid UTF-8. FOLOLLM_E_MEMORY, or FOLOLLM_E_FORMAT if it needs an unk_token that the
 * vocabulary does not have. Takes time in n log n. */
FL_LOCAL folollm_status fl_bpe_encode(const fl_bpe *b, fl_bpe_run *run, fl_str word, folollm_error *error);

FL_LOCAL bool fl_bpe_push(fl_bpe_run *run, uint32_t id); /* false: no memory */
FL_LOCAL void fl_bpe_run_free(fl_bpe_run *run);

#endif
