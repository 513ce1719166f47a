/* The scheduler: which tokens of which requests are computed next, and who gives up pages for it. Ids and lengths
 * only; what it decides is a function of what was submitted, cancelled and budgeted before.
 *
 * One rule serves prompts, answers, prefix hits and preemptions alike: a request knows n_known tokens, of which the
 * first s->n_tokens are computed, and a step moves the latter towards the former. When they meet, a token is sampled.
 *
 *     submit -> WAITING -> RUNNING -> OVER -> (last event handed out) FREE
 *                  ^          |
 *                  +----------+  preempted: all pages released, everything known is computed again
 *
 * Order: priority, deadline, the flow that had least for its weight, arrival. A step serves first those that want one
 * row, then prompts that are on their way, then lets others in. Whoever gets no row for FL_AGE steps counts as one
 * priority higher until it gets one: nothing starves. Pages are taken from whoever stands last in that order (without
 * the ageing, so that two never take them from each other in turn), and never to let somebody in. */
#ifndef FL_SCHEDULER_H
#define FL_SCHEDULER_H

#include "engine/sequences.h"

#define FL_REQUESTS_MAX 4096u
#define FL_WEIGHT_MAX 1000u
#define FL_AGE 64u             /* steps */
#define FL_NO_ROW UINT32_MAX

typedef enum fl_request_state {
    FL_REQUEST_FREE,
    FL_REQUEST_WAITING, /* with pages only if another answer computed its prompt */
    FL_REQUEST_RUNNING,
    FL_REQUEST_OVER
} fl_request_state;

typedef struct fl_request { /* one answer */
    fl_request_state state;
    fl_sequence *s;        /* its slot; s->n_prompt is the prompt's whole length from the start */
    folollm_token *tokens; /* (context) prompt and output */
    uint32_t n_known;      /* of tokens; s->n_tokens <= n_known <= context */

    /* Its place in the order. */
    int32_t priority;
    uint32_t flow;          /* index */
    uint64_t deadline;      /* UINT64_MAX: none */
    uint64_t arrival;
    uint64_t served;        /* the last step with a row of it */
    uint64_t considered;    /* the last step that looked at it */
    uint32_t waited;        /* steps without a row since */
    uint32_t leader;        /* index of the answer that computes the prompt for it, or its own */
    uint32_t n_followers;   /* others that wait for this one to do so */
    bool preempted;

    /* The step at hand. */
    uint32_t n_rows;        /* tokens behind s->n_tokens that it computes */
    uint32_t logits_row;    /* FL_NO_ROW: it does not reach the last known token */
    uint32_t origin;        /* the page to copy first, or FL_PAGE_NONE */

    /* Prefix cache. */
    bool caches;            /* finds pages, and leaves its own */
    uint64_t space, serial; /* serial: of the last published page, or one like it */
    uint32_t n_published;   /* pages from the start that are */

    uint64_t submitted_us;
    bool has_event;         /* which is not handed out yet; until then it gets no row */
    folollm_event event;    /* seq, answer, tag and metrics are kept up all the time */
    folollm_logprob *top;   /* (FOLOLLM_TOP_MAX) of the event; n_top of them are wanted */
    uint32_t n_top;
} fl_request;

typedef struct fl_flow {
    uint32_t id, weight, n_live;
    uint64_t time; /* rows that it had, in units of its weight (start-time fair queueing; Goyal, Vin and Cheng, 1996) */
} fl_flow;

typedef struct fl_placed {
    uint32_t request;   /* index */
    folollm_seq handle; /* a slot may have been given to another meanwhile */
} fl_placed;

typedef struct fl_scheduler {
    fl_pages *pages;
    fl_sequences *sequences;
    folollm_stats *stats;
    uint32_t n_requests, max_running;
    uint32_t n_used; /* from here on they are free */
    uint32_t n_waiting, n_running;
    fl_request *requests; /* (n_requests) */
    fl_flow *flows;       /* (n_requests) */
    fl_placed *placed;    /* (max_running) the requests with rows in the step at hand */
    uint32_t n_placed;
    uint64_t step, n_arrived, virtual_time;
    bool preempted;       /* in the step at hand: then nobody is let in */
    uint32_t too_few;     /* so many free pages were not enough to let somebody in; 0: since then somebody came */
    char *line;           /* (line_room) what the last plan chose, for host.log_step; NULL: nobody wants to know */
    size_t line_room, line_bytes;
} fl_scheduler;

/* logs: plans are put into words. */
FL_LOCAL void fl_scheduler_layout(fl_scheduler *s, fl_arena *arena, uint32_t n_requests, uint32_t max_running,
                                  uint32_t context, bool logs);

/* A waiting request, empty but for its slot, in the flow of that name; NULL: all are taken. */
FL_LOCAL fl_request *fl_scheduler_open(fl_scheduler *s, uint32_t flow, uint32_t weight, folollm_seq *id);

/* Choose the rows of the next step, at most max_rows and of those at most max_prompt_rows of prompts; pages for them
 * are reserved. s->n_placed 0: nothing can move. */
FL_LOCAL void fl_scheduler_plan(fl_scheduler *s, uint32_t max_rows, uint32_t max_prompt_rows);

/* The next step has one row of each of these (n) that still goes on; the i-th has row i of the logits. */
FL_LOCAL void fl_scheduler_plan_these(fl_scheduler *s, const fl_placed *these, uint32_t n);

/* Would the next plan let nobody in, unless some end before it? */
FL_LOCAL bool fl_scheduler_is_full(const fl_scheduler *s);

/* The rows of a placed request are computed. */
FL_LOCAL void fl_scheduler_commit(fl_scheduler *s, fl_request *r);

/* r, just opened, waits for `leader`, another one that was, to compute the prompt of both. */
FL_LOCAL void fl_scheduler_lead(fl_scheduler *s, fl_request *leader, fl_request *r);

/* Another answer that waits for r to compute its prompt; NULL: none does. */
FL_LOCAL fl_request *fl_scheduler_follower(const fl_scheduler *s, const fl_request *r);

/* `leader` has computed the prompt of r: r goes on from its pages. */
FL_LOCAL void fl_scheduler_follow(fl_scheduler *s, const fl_request *leader, fl_request *r);

/* The request is over: it gives back its pages, or, with rows in the step at hand, does so when that ends. */
FL_LOCAL void fl_scheduler_end(fl_scheduler *s, fl_request *r);

/* The step at hand is done with r, or was given up. */
FL_LOCAL void fl_scheduler_let_go(fl_scheduler *s, fl_request *r);

/* The step at hand failed: r goes back to the queue, as if preempted. */
FL_LOCAL void fl_scheduler_undo(fl_scheduler *s, fl_request *r);

/* Free the slot of a request that is over. */
FL_LOCAL void fl_scheduler_close(fl_scheduler *s, fl_request *r);

/* The request that was placed, or NULL if it is gone or over. */
FL_LOCAL fl_request *fl_scheduler_find(const fl_scheduler *s, const fl_placed *placed);

FL_INLINE uint32_t fl_request_index(const fl_scheduler *s, const fl_request *r) {
    return (uint32_t)(r - s->requests);
}

FL_INLINE bool fl_request_is_live(const fl_request *r) {
    return r->state == FL_REQUEST_WAITING || r->state == FL_REQUEST_RUNNING;
}

/* The driven sequence's request. */
FL_INLINE fl_request *fl_request_of(const fl_scheduler *s, const fl_sequence *sequence) {
    return &s->requests[sequence - s->sequences->slots - s->sequences->n_own];
}

#endif
