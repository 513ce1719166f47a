/* The executor: batches, and the host's own steps as transactions. Those reserve pages for what is to be appended, cut
 * the tokens into batches, run them on the worker, and then either commit (lengths move, logits and streams are taken
 * over) or undo (pages go back); in between nothing of a sequence changes. A loop that takes the tokens that a backend
 * chooses finds its next step begun.
 *
 * With several devices this is the place that speaks to all of their workers. */
#ifndef FL_EXECUTOR_H
#define FL_EXECUTOR_H

#include "engine/sequences.h"
#include "engine/worker.h"

typedef struct fl_composed { /* a batch, and what a backend chooses after it; (max_rows) each */
    folollm_token *tokens;
    uint32_t *positions, *slots, *wanted;
    fl_run *runs;
    size_t n_rows, n_runs, n_wanted;
    fl_device_choice *choices; /* of the wanted rows, where the backend chooses: then there are no logits, */
    fl_device_chosen *chosen;  /* but these */
    bool asks;
} fl_composed;

typedef struct fl_executor {
    fl_worker *worker;
    fl_pages *pages;
    fl_sequences *sequences;
    const fl_tokenizer *tokenizer; /* NULL: no text */
    uint32_t max_rows;             /* of a batch */
    uint32_t max_wanted;           /* of them with logits */
    uint32_t context;
    folollm_stats stats;
    uint64_t step; /* number of the last decode step */

    fl_composed batches[2];
    uint32_t running, composed; /* which of them; one is composed while the other runs, or was the last that did */
    float *logits;         /* (max_logits, vocab) of a step that is not committed yet */
    fl_sequence **stepped; /* (sequences of the host's loop) */
    uint32_t *origins;     /* as many: the shared page that a stepped sequence's last one was copied from */
    fl_device_chosen *made; /* as many: what the backend chose for a stepped sequence; its logits stay there, */
    bool *away;             /* if they do */
    fl_sequence **last;     /* as many: those of the last decode step */
    size_t n_last;
    uint32_t n_followed;    /* decode steps in a row, up to the last, of these and with what had been chosen for them */
    bool has_begun;         /* the next one of them, behind the last */
} fl_executor;

FL_LOCAL void fl_executor_layout(fl_executor *e, fl_arena *arena, uint32_t max_rows, uint32_t max_seqs,
                                 uint32_t max_logits, uint32_t vocab);

/* Compose a batch: clear, add n tokens that follow the first `position` of a sequence which has room reserved (logits
 * are wanted of the last n_wanted of them; returns which row of logits is the first of these), begin, and advance until
 * it returns true. */
FL_LOCAL void fl_executor_clear(fl_executor *e);
FL_LOCAL size_t fl_executor_add(fl_executor *e, const fl_sequence *s, uint32_t position, const folollm_token *tokens,
                              size_t n, size_t n_wanted);
FL_LOCAL void fl_executor_begin(fl_executor *e, float *logits);

/* Before it begins: the token that follows the last row added, with which there are n_tokens, n_prompt of them the
 * prompt, is to be chosen by the backend, if it can do that. */
FL_LOCAL void fl_executor_ask(fl_executor *e, const fl_sampling *sampling, uint32_t n_tokens, uint32_t n_prompt);

/* What the backend chose for row i of the logits; NULL: nothing, the logits are there. */
FL_LOCAL const fl_device_chosen *fl_executor_chosen(const fl_executor *e, size_t i);
FL_LOCAL bool fl_executor_advance(fl_executor *e, fl_slice slice);

/* Begin the batch that was composed, one row of each of its sequences, behind the one that runs: see ops.h. False: it
 * was not begun. When the one that runs is over, tell the tokens that were not known, and resume: then it is the batch
 * that was begun, up to its end. */
FL_LOCAL bool fl_executor_ahead(fl_executor *e);
FL_LOCAL void fl_executor_tell(fl_executor *e, size_t row, folollm_token token);
FL_LOCAL void fl_executor_resume(fl_executor *e);

/* After fl_sequence_reserve: bring the keys and values of the page that was shared. */
FL_LOCAL void fl_executor_copy_page(fl_executor *e, const fl_sequence *s, uint32_t origin);

/* Row i of logits (n, vocab), and whether it holds numbers. */
FL_LOCAL float *fl_executor_row(const fl_executor *e, float *logits, size_t i);
FL_LOCAL bool fl_executor_is_finite(const fl_executor *e, const float *row);

/* Give up what fl_executor_decode has begun, and the pages that are held for it: before another batch begins, and
 * before others ask for pages. Until then, what becomes of its sequences is no matter: it writes only behind their
 * ends, and what comes later to the device is done later. */
FL_LOCAL void fl_executor_rest(fl_executor *e);

/* Bring the logits of a sequence, if they are away. */
FL_LOCAL folollm_status fl_executor_bring(fl_executor *e, fl_sequence *s, folollm_error *error);

/* See folollm_prefill and folollm_decode_step; the arguments' shapes are checked, their values are not. */
FL_LOCAL folollm_status fl_executor_prefill(fl_executor *e, fl_sequence *s, const folollm_token *tokens,
                                            size_t n_tokens, float *all_logits, folollm_error *error);
FL_LOCAL folollm_status fl_executor_decode(fl_executor *e, const folollm_seq *seqs, const folollm_token *tokens,
                                           size_t n, folollm_error *error);

#endif
