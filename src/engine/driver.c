#include "engine/driver.h"

#define FL_SLICE_BYTES (4u << 20) /* of the head's weights, done at once where time counts */
#define FL_PROMPT_ROWS_MIN 4      /* fewer cost as much: the weights must be read all the same */

FL_LOCAL void fl_driver_layout(fl_driver *d, fl_arena *arena, uint32_t n_requests, uint32_t max_running,
                               uint32_t context, bool logs) {
    fl_scheduler_layout(&d->scheduler, arena, n_requests, max_running, context, logs);
    fl_ahead_layout(&d->ahead, arena, max_running);
}

FL_LOCAL void fl_driver_init(fl_driver *d, fl_executor *executor, const fl_chooser *chooser,
                             const folollm_host *host) {
    const fl_worker *w = executor->worker;
    const fl_matrix *head = &w->weights->head;
    d->scheduler.pages = executor->pages;
    d->scheduler.sequences = executor->sequences;
    d->scheduler.stats = &executor->stats;
    d->executor = executor;
    d->chooser = *chooser;
    d->chooser.limit = (uint32_t)fl_min(chooser->limit, (size_t)executor->pages->n_pages * FL_PAGE_TOKENS);
    d->host = host;
    size_t row_bytes = fl_matrix_bytes(head->parts[0].type, FL_PANEL, head->n_cols) / FL_PANEL;
    d->fine = fl_worker_whole(w);
    if (w->cuda.device == NULL) {
        d->fine.kv_heads = fl_min(w->cpu.n_slots, d->fine.kv_heads);
        d->fine.head_rows = fl_max(FL_SLICE_BYTES / row_bytes, 64) / FL_PANEL * FL_PANEL;
    }
    d->fine.waits = true;
    d->prompt_rows = (uint32_t)fl_min(16, executor->max_rows);
}

static uint64_t fl_driver_now(const fl_driver *d) {
    return d->host->clock != NULL ? d->host->clock(d->host->user) : 0;
}

/* ---- Submission -- */

FL_LOCAL folollm_status fl_driver_submit(fl_driver *d, const folollm_submission *in, const fl_sampling *sampling,
                                         const fl_adapter *adapter, folollm_seq *out, folollm_error *error) {
    fl_scheduler *s = &d->scheduler;
    uint32_t n = in->n_answers != 0 ? in->n_answers : 1, n_free = 0;
    fl_request *leader = NULL;
    for (uint32_t i = 0; i < s->n_requests; i++) {
        n_free += s->requests[i].state == FL_REQUEST_FREE;
    }
    if (n > n_free) {
        return fl_fail(error, FOLOLLM_E_POOL,
                       "%u answers are asked for and %u of %u requests are free: step until some are finished, or load "
                       "with more max_requests",
                       (uint64_t)n, (uint64_t)n_free, (uint64_t)s->n_requests);
    }
    for (uint32_t i = 0; i < n; i++) {
        fl_request *r = fl_scheduler_open(s, in->flow, in->weight != 0 ? in->weight : 1, &out[i]);
        if (i == 0) {
            leader = r;
        } else {
            fl_scheduler_lead(s, leader, r);
        }
        r->priority = in->priority;
        r->deadline = in->deadline != 0 ? in->deadline : UINT64_MAX;
        r->space = in->cache_space;
        r->caches = in->no_prefix_cache == 0 && !d->no_prefix_cache;
        r->n_known = r->s->n_prompt = (uint32_t)in->n_prompt;
        memcpy(r->tokens, in->prompt, in->n_prompt * sizeof *r->tokens);
        r->s->adapter = adapter;
        r->s->sampling = *sampling;
        r->s->sampling.s.seed += i;
        fl_detokenizer_begin_inside(&r->s->stream.detokenizer);
        r->submitted_us = fl_driver_now(d);
        r->event.answer = i;
        r->event.tag = in->tag;
        r->n_top = in->n_top;
        r->event.metrics.prompt_tokens = r->n_known;
    }
    return FOLOLLM_OK;
}

/* ---- Events -- */

/* The answer ends here, with what its text held back. A token that was not handed out yet stays in the event. */
static void fl_driver_end(fl_driver *d, fl_request *r, folollm_finish finish, folollm_status status) {
    folollm_event *e = &r->event;
    if (!r->has_event) {
        e->token = -1;
        e->stop_index = -1;
        e->text = r->s->text;
        e->n_bytes = 0;
        e->top = NULL;
        e->n_top = 0;
        memset(&e->chosen, 0, sizeof e->chosen);
    }
    fl_stream_finish(&r->s->stream, r->s->text, &e->n_bytes);
    e->finish = finish;
    e->status = status;
    r->has_event = true;
    d->executor->stats.requests_cancelled += finish == FOLOLLM_FINISH_CANCELLED;
    fl_scheduler_end(&d->scheduler, r);
}

static void fl_driver_end_unwanted(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    uint64_t now = fl_driver_now(d);
    fl_atomic_store(&s->sequences->any_cancel, false); /* before looking: what comes later is seen later */
    for (uint32_t i = 0; i < s->n_used; i++) {
        fl_request *r = &s->requests[i];
        if (!fl_request_is_live(r)) {
            continue;
        }
        if (fl_sequence_is_cancelled(r->s)) {
            fl_driver_end(d, r, FOLOLLM_FINISH_CANCELLED, FOLOLLM_E_CANCELLED);
        } else if (now > r->deadline) {
            fl_driver_end(d, r, FOLOLLM_FINISH_DEADLINE, FOLOLLM_OK);
        }
    }
}

static size_t fl_driver_hand_out(fl_driver *d, folollm_event *events, size_t room) {
    fl_scheduler *s = &d->scheduler;
    size_t n = 0;
    for (uint32_t i = 0; i < s->n_used && n < room; i++) {
        fl_request *r = &s->requests[i];
        if (r->has_event) {
            events[n++] = r->event;
            r->has_event = false;
        }
    }
    return n;
}

/* Free the slots of those that are over in every respect. */
static void fl_driver_sweep(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    for (uint32_t i = 0; i < s->n_used; i++) {
        fl_request *r = &s->requests[i];
        if (r->state == FL_REQUEST_OVER && !r->has_event && r->n_rows == 0) {
            d->executor->stats.requests_finished++;
            fl_scheduler_close(s, r);
        }
    }
}

/* ---- Sampling -- */

static void fl_driver_note_times(fl_driver *d, fl_request *r) {
    folollm_metrics *m = &r->event.metrics;
    m->last_token_us = fl_driver_now(d) - r->submitted_us;
    m->first_token_us = m->output_tokens == 1 ? m->last_token_us : m->first_token_us;
}

/* Choose the next token of r from row i of the logits. */
static void fl_driver_choose(fl_driver *d, fl_request *r, size_t i) {
    const float *logits = fl_executor_row(d->executor, d->executor->logits, i);
    const fl_device_chosen *made = fl_executor_chosen(d->executor, i);
    folollm_sampled sampled;
    fl_stream after;
    if (made != NULL ? made->broken != 0 : !fl_executor_is_finite(d->executor, logits)) {
        fl_driver_end(d, r, FOLOLLM_FINISH_ERROR, FOLOLLM_E_NUMERIC);
        return;
    }
    if (!fl_sequence_choose(r->s, &d->chooser, made, logits, &after, &sampled, r->top, r->n_top)) {
        fl_driver_end(d, r, FOLOLLM_FINISH_ERROR, FOLOLLM_E_STATE);
        return;
    }
    folollm_event *e = &r->event;
    r->s->stream = after;
    e->token = sampled.token;
    e->finish = sampled.finish;
    e->status = FOLOLLM_OK;
    e->stop_index = sampled.stop_index;
    e->chosen = sampled.chosen;
    e->text = sampled.text;
    e->n_bytes = sampled.n_bytes;
    e->top = r->n_top > 0 ? r->top : NULL;
    e->n_top = r->n_top;
    e->metrics.output_tokens++;
    fl_driver_note_times(d, r);
    r->has_event = true;
    if (e->finish != FOLOLLM_FINISH_NONE) {
        fl_scheduler_end(&d->scheduler, r);
    } else {
        r->tokens[r->n_known++] = e->token;
    }
}

/* One choice more; false: all are made. Those that share r's prompt come before it, while it holds the prompt alone. */
static bool fl_driver_sample(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    while (d->n_sampled < s->n_placed) {
        fl_request *r = fl_scheduler_find(s, &s->placed[d->n_sampled]);
        if (r == NULL || r->logits_row == FL_NO_ROW) {
            d->n_sampled++;
            continue;
        }
        uint32_t row = r->logits_row;
        fl_request *follower = fl_scheduler_follower(s, r);
        if (follower != NULL) {
            fl_scheduler_follow(s, r, follower);
            follower->event.metrics.wait_us = fl_driver_now(d) - follower->submitted_us;
            r = follower;
        } else {
            d->n_sampled++;
        }
        fl_driver_choose(d, r, row);
        return true;
    }
    return false;
}

/* ---- One step -- */

/* The step at hand has begun. */
static void fl_driver_note_step(fl_driver *d) {
    d->running = true;
    d->n_sampled = 0;
    d->longest_us = 0;
    d->executor->stats.steps++;
}

/* Compose the batch that the scheduler planned. */
static void fl_driver_begin(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    uint64_t now = fl_driver_now(d);
    fl_executor_clear(d->executor);
    for (uint32_t i = 0; i < s->n_placed; i++) {
        fl_request *r = &s->requests[s->placed[i].request];
        bool last = r->s->n_tokens + r->n_rows == r->n_known;
        fl_executor_copy_page(d->executor, r->s, r->origin);
        size_t row = fl_executor_add(d->executor, r->s, r->s->n_tokens, r->tokens + r->s->n_tokens, r->n_rows, last);
        r->logits_row = last ? (uint32_t)row : FL_NO_ROW;
        if (last && r->n_top == 0 && fl_scheduler_follower(s, r) == NULL) { /* nobody else needs the logits */
            fl_executor_ask(d->executor, &r->s->sampling, r->n_known, r->s->n_prompt);
        }
        if (r->event.metrics.wait_us == 0) {
            r->event.metrics.wait_us = now - r->submitted_us;
        }
    }
    fl_executor_begin(d->executor, d->executor->logits);
    fl_driver_note_step(d);
}

static void fl_driver_let_go(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    for (uint32_t i = 0; i < s->n_placed; i++) {
        fl_scheduler_let_go(s, &s->requests[s->placed[i].request]);
    }
}

/* The forward pass failed: what it was to move starts again. */
static void fl_driver_undo(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    for (uint32_t i = 0; i < s->n_placed; i++) {
        fl_scheduler_undo(s, &s->requests[s->placed[i].request]);
    }
    fl_ahead_drop(&d->ahead, s, d->executor);
    d->running = false;
    d->executor->stats.undone++;
}

/* The forward pass is over: its rows count, save those of requests that ended meanwhile. */
static void fl_driver_commit(fl_driver *d) {
    fl_scheduler *s = &d->scheduler;
    uint32_t prompt_rows = 0;
    for (uint32_t i = 0; i < s->n_placed; i++) {
        fl_request *r = fl_scheduler_find(s, &s->placed[i]);
        if (r != NULL) {
            prompt_rows += r->n_rows > 1 ? r->n_rows : 0;
            fl_scheduler_commit(s, r);
        }
    }
    fl_driver_let_go(d);
    if (d->until == UINT64_MAX || prompt_rows == 0) {
        return;
    }
    /* The longest op shall take half of the budget to three quarters. */
    uint64_t budget = d->budget_us, rows = d->prompt_rows;
    if (d->longest_us * 4 > budget * 3) {
        rows = fl_max(rows * 3 / 4, FL_PROMPT_ROWS_MIN);
    } else if (d->longest_us * 2 < budget && prompt_rows >= rows) {
        rows = fl_min(rows + rows / 4 + 1, d->executor->max_rows);
    }
    d->prompt_rows = (uint32_t)rows;
}

/* Nobody wants what the step at hand computes. */
static bool fl_driver_is_in_vain(const fl_driver *d) {
    for (uint32_t i = 0; i < d->scheduler.n_placed; i++) {
        if (fl_scheduler_find(&d->scheduler, &d->scheduler.placed[i]) != NULL) {
            return false;
        }
    }
    return true;
}

/* Must the call end before something that last took so long? A call does one thing at least. */
static bool fl_driver_must_rest(const fl_driver *d, uint64_t would_take) {
    return d->moved && (fl_atomic_load(&d->scheduler.sequences->any_cancel) ||
                        (d->until != UINT64_MAX && fl_driver_now(d) + would_take > d->until));
}

/* Do the next piece of the step at hand. */
static void fl_driver_move(fl_driver *d, fl_op op) {
    bool timed = d->until != UINT64_MAX;
    uint64_t begin = timed ? fl_driver_now(d) : 0, *took = d->took_us[op];
    if (op == FL_OP_END && d->goes_ahead) {
        fl_ahead_start(&d->ahead, &d->scheduler, d->executor, d->chooser.limit);
    }
    if (op == FL_OP_DONE) {
        d->running = fl_driver_sample(d);
    } else if (fl_executor_advance(d->executor, timed ? d->fine : fl_worker_whole(d->executor->worker))) {
        if (fl_worker_failed(d->executor->worker)) {
            fl_driver_undo(d);
        } else {
            fl_driver_commit(d);
        }
    }
    d->moved = true;
    if (timed) {
        took[1] = took[0];
        took[0] = fl_driver_now(d) - begin;
        d->longest_us = op != FL_OP_DONE && took[0] > d->longest_us ? took[0] : d->longest_us;
    }
}

/* Run the step at hand until it is over (true), or the call must end. What an op will take is the less of the last two
 * times: one hiccup of the machine shall not end the next calls early. */
static bool fl_driver_run(fl_driver *d) {
    while (d->running) {
        fl_op op = d->executor->worker->forward.op;
        if (fl_driver_must_rest(d, d->took_us[op][d->took_us[op][1] < d->took_us[op][0]])) {
            d->executor->stats.slices++;
            return false;
        }
        fl_driver_move(d, op);
    }
    return true;
}

FL_LOCAL void fl_driver_settle(fl_driver *d) {
    d->until = UINT64_MAX;
    d->goes_ahead = false;
    d->was_settled = true;
    while (d->running) {
        d->moved = false;
        fl_driver_end_unwanted(d);
        fl_driver_run(d);
    }
    fl_ahead_drop(&d->ahead, &d->scheduler, d->executor);
    fl_driver_sweep(d);
}

/* Plan the next step. Requests of which none can move are an error. */
static folollm_status fl_driver_plan(fl_driver *d, const folollm_budget *budget, folollm_error *error) {
    fl_scheduler *s = &d->scheduler;
    uint32_t rows = d->executor->max_rows;
    rows = budget->tokens != 0 && budget->tokens < rows ? budget->tokens : rows;
    bool started = fl_ahead_take(&d->ahead, s, d->executor, rows);
    if (!started) {
        fl_scheduler_plan(s, rows, d->until != UINT64_MAX && d->prompt_rows < rows ? d->prompt_rows : rows);
    }
    if (s->line != NULL && s->n_waiting + s->n_running > 0) {
        d->host->log_step(d->host->user, s->line);
    }
    if (started) {
        fl_driver_note_step(d);
    } else if (s->n_placed > 0) {
        fl_driver_begin(d);
    } else if (s->n_waiting + s->n_running > 0) {
        return fl_fail(error, FOLOLLM_E_POOL,
                       "no request can move: of %u pages of KV cache %u are free, and sequences of the host's own loop "
                       "hold the others: close or truncate one, or load with more pool_tokens",
                       (uint64_t)s->pages->n_pages, (uint64_t)s->pages->n_free);
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_driver_step(fl_driver *d, const folollm_budget *budget, folollm_event *events,
                                       size_t *n_events, folollm_error *error) {
    d->until = budget->microseconds != 0 ? fl_driver_now(d) + budget->microseconds : UINT64_MAX;
    d->budget_us = budget->microseconds;
    d->goes_ahead = d->until == UINT64_MAX && !d->was_settled;
    d->was_settled = false;
    d->moved = false;
    fl_executor_rest(d->executor);
    fl_driver_end_unwanted(d);
    if (d->running && fl_driver_is_in_vain(d)) {
        fl_worker_wait(d->executor->worker); /* what was started of it reads its batch */
        fl_driver_let_go(d);
        d->running = false;
    }
    size_t n = fl_driver_hand_out(d, events, *n_events);
    fl_driver_sweep(d);
    while (n == 0) { /* else the host first looks at these: their texts are written over when their answers go on */
        if (!d->running) {
            FL_TRY(fl_driver_plan(d, budget, error));
        }
        bool idle = !d->running, over = fl_driver_run(d);
        fl_driver_end_unwanted(d);
        n = fl_driver_hand_out(d, events, *n_events);
        fl_driver_sweep(d);
        if (n == 0 && fl_worker_failed(d->executor->worker)) {
            return fl_worker_status(d->executor->worker, error);
        }
        if (idle || !over || d->until == UINT64_MAX || budget->tokens != 0) {
            break;
        }
    }
    *n_events = n;
    return FOLOLLM_OK;
}
