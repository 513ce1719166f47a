/* Building a tokenizer: what reading a tokenizer.json and reading the metadata of a GGUF file have in common.
 *
 *     measure every token -> fl_build_open: one arena -> put tokens, added tokens, merges -> fl_build_close
 *
 * A reader measures and fills from the same bytes with the same functions, so the arena is exactly as large as what is
 * put into it, and filling can only fail for what the file says. All working memory is gone at the end. */
#ifndef FL_TOKENIZER_BUILD_H
#define FL_TOKENIZER_BUILD_H

#include "text/tokenizer_impl.h"

typedef struct fl_build {
    fl_memory *memory;
    folollm_error *error;
    const char *name;  /* of what is read, for messages */
    fl_tokenizer *t;   /* until fl_build_open a plan, then the tokenizer */
    bool own_added;    /* a merge may make an added token: it is one of the model's own, then */
    size_t n_vocab, n_added, n_ids;        /* measured */
    size_t n_merges, n_results;            /* pairs that merge, and ranks that they have */
    size_t blob_bytes, added_bytes;
    fl_text_buffer piece, normal[2];
    uint64_t *pairs; /* (n_pairs) of capacity: left << 32 | right, by rank */
    size_t n_pairs, pairs_capacity;
} fl_build;

FL_LOCAL void fl_build_init(fl_build *b, fl_memory *m, const char *name, fl_tokenizer *plan, folollm_error *error);
FL_LOCAL void fl_build_free(fl_build *b);
FL_LOCAL folollm_status fl_build_no_memory(const fl_build *b, size_t n_bytes);

/* ---- Measuring -- */

/* A token of the vocabulary, or with `added` one that stands in the list of added tokens only. */
FL_LOCAL folollm_status fl_build_measure(fl_build *b, fl_str token, uint32_t id, bool added);

/* An added token that is looked for as n_found bytes. */
FL_LOCAL folollm_status fl_build_measure_added(fl_build *b, size_t n_found);

/* Lay out, allocate, move in. */
FL_LOCAL folollm_status fl_build_open(fl_build *b);

/* ---- Filling -- */

/* The id of a token; FL_VOCAB_NONE. guess: looked at first, because the results of merges mostly have ascending ids,
 * and to find them by hash would miss the cache each time. False: no memory. */
FL_LOCAL bool fl_build_find(fl_build *b, fl_str token, uint32_t guess, uint32_t *id);

/* Give a token an id. *fresh: neither the id nor the spelling was taken. False: no memory. */
FL_LOCAL bool fl_build_put(fl_build *b, uint32_t id, fl_str token, uint8_t flags, bool *fresh);

/* The merge of the first n_left bytes of `whole` with the rest, as the next rank. */
FL_LOCAL folollm_status fl_build_merge(fl_build *b, fl_str whole, size_t n_left);

/* Enter the merges, index, check. status: of the filling; unless it is FOLOLLM_OK, everything is given back. */
FL_LOCAL folollm_status fl_build_close(fl_build *b, folollm_status status, fl_tokenizer **out);

#endif
