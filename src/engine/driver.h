/* The driver: one step of all requests. Plan, run, sample; each of its pieces (an op of the forward pass, the choice of
 * one token) is small, and between two of them the step may rest and wait for the next call.
 *
 * What a step produced stands as an event with its request until it was handed out, so that no queue can overflow. */
#ifndef FL_DRIVER_H
#define FL_DRIVER_H

#include "engine/ahead.h"

typedef struct fl_driver {
    fl_scheduler scheduler;
    fl_executor *executor;
    fl_chooser chooser;
    const folollm_host *host;
    bool no_prefix_cache;
    fl_slice fine;        /* of ops, where time counts */

    /* The step at hand. */
    bool running;         /* there is one; the worker's forward pass is its own, and FL_OP_DONE when only choices are
                             left */
    uint32_t n_sampled;   /* of the placed requests */

    fl_ahead ahead;       /* the step behind it */
    bool goes_ahead;      /* may one be started? */
    bool was_settled;     /* since the last step: what runs ahead would be in the way next time, too */

    /* Time, in microseconds. */
    uint64_t until;       /* when the call shall end; UINT64_MAX: whenever */
    uint64_t budget_us;   /* its length */
    bool moved;           /* the call did something */
    uint64_t took_us[FL_OP_DONE + 1][2]; /* by each op the last two times; FL_OP_DONE: a choice */
    uint64_t longest_us;  /* op of the forward pass at hand */
    uint32_t prompt_rows; /* of prompts in a step bounded by time: so many that no op is longer than the budget */
} fl_driver;

FL_LOCAL void fl_driver_layout(fl_driver *d, fl_arena *arena, uint32_t n_requests, uint32_t max_running,
                               uint32_t context, bool logs);
FL_LOCAL void fl_driver_init(fl_driver *d, fl_executor *executor, const fl_chooser *chooser,
                             const folollm_host *host);

/* See folollm_submit: the submission is checked, sampling is that of its first answer. */
FL_LOCAL folollm_status fl_driver_submit(fl_driver *d, const folollm_submission *submission,
                                         const fl_sampling *sampling, const fl_adapter *adapter, folollm_seq *out,
                                         folollm_error *error);

/* See folollm_step. */
FL_LOCAL folollm_status fl_driver_step(fl_driver *d, const folollm_budget *budget, folollm_event *events,
                                       size_t *n_events, folollm_error *error);

/* Finish the step at hand, if there is one: its batch is in the executor's way. */
FL_LOCAL void fl_driver_settle(fl_driver *d);

#endif
