#include "engine/ahead.h"

FL_LOCAL void fl_ahead_layout(fl_ahead *a, fl_arena *arena, uint32_t max_running) {
    a->placed = fl_take(arena, max_running, sizeof *a->placed);
}

/* Tokens of r when the step at hand is over, without the one that it chooses. */
static uint32_t fl_tokens_then(const fl_request *r) {
    return r->s->n_tokens + r->n_rows;
}

/* Will the token that the step at hand chooses be the last of r, whatever it is? */
static bool fl_will_end(const fl_request *r, uint32_t limit) {
    return fl_sequence_is_full(r->s, fl_tokens_then(r), limit);
}

/* Does r go on with one row that a backend can compute behind the step at hand? */
static bool fl_goes_on(const fl_executor *e, const fl_request *r) {
    return r->n_rows > 0 && r->logits_row != FL_NO_ROW && fl_executor_chosen(e, r->logits_row) != NULL;
}

/* Is the next step one row for each of those who have one now and do not end, for whom there are pages? */
static bool fl_is_steady(const fl_scheduler *s, const fl_executor *e, uint32_t limit) {
    size_t n_ends = 0, pages = 0;
    for (uint32_t i = 0; i < s->n_used; i++) {
        const fl_request *r = &s->requests[i];
        if (r->state == FL_REQUEST_RUNNING) {
            if (!fl_goes_on(e, r)) {
                return false;
            }
            n_ends += fl_will_end(r, limit);
            pages += fl_sequence_pages_wanted(r->s, s->pages, r->n_rows + 1);
        }
    }
    return pages <= s->pages->n_free && (s->n_waiting == 0 || (n_ends == 0 && fl_scheduler_is_full(s)));
}

static void fl_give_back_pages(const fl_ahead *a, fl_scheduler *s) {
    for (uint32_t i = 0; i < a->n; i++) {
        const fl_request *r = fl_scheduler_find(s, &a->placed[i]);
        if (r != NULL) {
            fl_sequence_trim(r->s, s->pages, fl_tokens_then(r));
        }
    }
}

FL_LOCAL void fl_ahead_start(fl_ahead *a, fl_scheduler *s, fl_executor *e, uint32_t limit) {
    if (!e->worker->backend->chooses || !fl_is_steady(s, e, limit)) {
        return;
    }
    fl_executor_clear(e);
    for (uint32_t i = 0; i < s->n_placed; i++) {
        const fl_request *r = fl_scheduler_find(s, &s->placed[i]);
        if (r == NULL || fl_will_end(r, limit)) {
            continue;
        }
        uint32_t n = fl_tokens_then(r);
        folollm_token unknown = -1 - (folollm_token)r->logits_row;
        fl_sequence_reserve(r->s, s->pages, r->n_rows + 1);
        fl_executor_add(e, r->s, n, &unknown, 1, 1);
        fl_executor_ask(e, &r->s->sampling, n + 1, r->s->n_prompt);
        a->placed[a->n++] = s->placed[i];
    }
    if (a->n > 0 && !fl_executor_ahead(e)) {
        fl_give_back_pages(a, s);
        a->n = 0;
    }
}

FL_LOCAL bool fl_ahead_take(fl_ahead *a, fl_scheduler *s, fl_executor *e, uint32_t max_rows) {
    bool is_wanted = false;
    for (uint32_t i = 0; i < a->n; i++) {
        const fl_request *r = fl_scheduler_find(s, &a->placed[i]);
        if (r != NULL) {
            fl_executor_tell(e, i, r->tokens[r->s->n_tokens]);
            is_wanted = true;
        }
    }
    if (!is_wanted || a->n > max_rows) {
        fl_ahead_drop(a, s, e);
        return false;
    }
    fl_scheduler_plan_these(s, a->placed, a->n);
    fl_executor_resume(e);
    a->n = 0;
    return true;
}

FL_LOCAL void fl_ahead_drop(fl_ahead *a, fl_scheduler *s, fl_executor *e) {
    if (a->n > 0) {
        fl_worker_wait(e->worker);
        fl_give_back_pages(a, s);
        a->n = 0;
    }
}
