/* Sequences: the slots of an engine, their page tables, samplers and text streams. */
#ifndef FL_SEQUENCES_H
#define FL_SEQUENCES_H

#include "engine/stream.h"

#define FL_SEQS_MAX 4096u /* a folollm_seq is generation * FL_SEQS_MAX + slot */

typedef struct fl_sequence {
    uint32_t generation; /* of the handle that is open in this slot, above 0 */
    bool open, has_logits;
    uint64_t step;       /* the last decode step that named it */
    uint32_t n_tokens, n_prompt; /* n_prompt <= n_tokens <= context */
    uint32_t n_pages;            /* = n_tokens in pages, rounded up */
    uint32_t *pages;             /* (pages of a context) */
    float *logits;               /* (vocab) after the last token, if has_logits */
    fl_sampling sampling;
    fl_stream stream;            /* of the output so far */
    char *text;                  /* (room of a stream) what the last sample gave */
} fl_sequence;

typedef struct fl_sequences {
    uint32_t n_slots, n_open, table_pages;
    fl_sequence *slots;
} fl_sequences;

FL_LOCAL void fl_sequences_layout(fl_sequences *all, fl_arena *arena, uint32_t n_slots, uint32_t context,
                                  uint32_t vocab, size_t text_room);

/* A free slot, now open and empty; NULL: none is free. */
FL_LOCAL fl_sequence *fl_sequence_open(fl_sequences *all, folollm_seq *id);

/* The open sequence of a handle; FOLOLLM_E_SEQUENCE says what is wrong with it. */
FL_LOCAL folollm_status fl_sequence_find(const fl_sequences *all, folollm_seq id, fl_sequence **out,
                                         folollm_error *error);

/* Keep the first n_tokens; pages behind them are released. */
FL_LOCAL void fl_sequence_cut(fl_sequence *s, fl_pages *pages, uint32_t n_tokens);
FL_LOCAL void fl_sequence_close(fl_sequences *all, fl_sequence *s, fl_pages *pages);

/* Make `to`, just opened, hold what `from` holds, sharing its pages. */
FL_LOCAL void fl_sequence_fork(fl_sequence *to, const fl_sequence *from, fl_pages *pages, uint32_t vocab);

FL_LOCAL fl_history fl_sequence_history(const fl_sequence *s, const fl_pages *pages);

/* The stream as it is after the output tokens before n_tokens. */
FL_LOCAL void fl_sequence_replay(fl_sequence *s, const fl_pages *pages, const fl_tokenizer *t);

#endif
