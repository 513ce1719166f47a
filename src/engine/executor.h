/* The executor: steps as transactions. It reserves pages for what is to be appended, cuts the tokens into batches,
 * runs them on the worker, and then either commits (lengths move, logits and streams are taken over) or undoes
 * (pages go back); in between nothing of a sequence changes.
 *
 * With several devices this is the place that speaks to all of their workers. */
#ifndef FL_EXECUTOR_H
#define FL_EXECUTOR_H

#include "engine/sequences.h"
#include "engine/worker.h"

typedef struct fl_executor {
    fl_worker *worker;
    fl_pages *pages;
    fl_sequences *sequences;
    const fl_tokenizer *tokenizer; /* NULL: no text */
    uint32_t n_rows;               /* of a batch, at most */
    uint32_t context;
    folollm_stats stats;
    uint64_t step; /* number of the last decode step */

    /* One batch; (n_rows) each. */
    folollm_token *tokens;
    uint32_t *positions, *slots, *wanted;
    fl_run *runs;
    float *logits;         /* (max_seqs, vocab) of a step that is not committed yet */
    fl_sequence **stepped; /* (max_seqs) */
    uint32_t *origins;     /* (max_seqs) the shared page that a stepped sequence's last one was copied from */
} fl_executor;

FL_LOCAL void fl_executor_layout(fl_executor *e, fl_arena *arena, uint32_t n_rows, uint32_t max_seqs,
                                 uint32_t vocab);

/* See folollm_prefill and folollm_decode_step; the arguments' shapes are checked, their values are not. */
FL_LOCAL folollm_status fl_executor_prefill(fl_executor *e, fl_sequence *s, const folollm_token *tokens,
                                            size_t n_tokens, float *all_logits, folollm_error *error);
FL_LOCAL folollm_status fl_executor_decode(fl_executor *e, const folollm_seq *seqs, const folollm_token *tokens,
                                           size_t n, folollm_error *error);

#endif
