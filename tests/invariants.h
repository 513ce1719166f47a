/* What must hold between any two calls of an engine. Include it after inside.h and check.h. */
#ifndef TEST_INVARIANTS_H
#define TEST_INVARIANTS_H

#include <stdlib.h>

/* Each page has as many references as page tables name it; the ring holds exactly the free ones, those of no use to
 * anybody first; what is published can be found, and only that. */
static inline const char *broken_pages(const folollm *f) {
    const fl_pages *p = &f->pages;
    uint32_t *named = calloc(p->n_pages, sizeof *named), n_free = 0, n_cached = 0, n_shared = 0, n_chained = 0;
    const char *wrong = NULL;
    for (uint32_t i = 0; i < f->sequences.n_slots; i++) {
        const fl_sequence *s = &f->sequences.slots[i];
        if (s->handle == 0 && s->n_pages != 0) {
            wrong = "a free slot holds pages";
        }
        for (uint32_t k = 0; k < s->n_pages; k++) {
            named[s->pages[k]]++;
        }
    }
    for (uint32_t i = 0; i < p->n_pages; i++) {
        wrong = named[i] != p->references[i] ? "references are not what page tables say" : wrong;
        n_shared += p->references[i] > 1;
    }
    for (uint32_t at = p->next[p->n_pages], cached = 0; at != p->n_pages && n_free <= p->n_pages; at = p->next[at]) {
        wrong = p->references[at] != 0 || p->next[p->previous[at]] != at ? "the ring is broken" : wrong;
        wrong = cached && p->serials[at] == 0 ? "a useless page behind a cached one" : wrong;
        cached = p->serials[at] != 0;
        n_cached += cached;
        n_free++;
    }
    for (size_t b = 0; b <= p->bucket_mask; b++) {
        for (uint32_t at = p->buckets[b]; at != FL_PAGE_NONE && n_chained <= p->n_pages; at = p->chain[at]) {
            wrong = p->serials[at] == 0 ? "an unpublished page in the index" : wrong;
            const folollm_token *tokens = p->tokens + (size_t)at * FL_PAGE_TOKENS;
            wrong = fl_pages_find(p, p->keys[at], tokens) != at ? "a page that is not found" : wrong;
            n_chained++;
        }
    }
    for (uint32_t i = 0; i < p->n_pages; i++) {
        n_chained -= p->serials[i] != 0;
    }
    wrong = n_chained != 0 ? "published pages are not those of the index" : wrong;
    wrong = n_free != p->n_free || n_cached != p->n_cached || n_shared != p->n_shared ? "a counter is off" : wrong;
    free(named);
    return wrong;
}

static inline uint32_t n_followers(const fl_scheduler *s, uint32_t of) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_requests; i++) {
        bool waits = s->requests[i].state == FL_REQUEST_WAITING;
        n += i != of && waits && s->requests[i].leader == of;
    }
    return n;
}

/* Has r a row of the step that was begun behind the one at hand? */
static inline uint32_t begun_rows(const fl_driver *d, const fl_request *r) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->ahead.n; i++) {
        n += fl_scheduler_find(&d->scheduler, &d->ahead.placed[i]) == r;
    }
    return n;
}

/* Each request is in one place, its lengths are in order, and its pages are those that its lengths need. */
static inline const char *broken_requests(const folollm *f) {
    const fl_driver *d = &f->driver;
    const fl_scheduler *s = &d->scheduler;
    uint32_t n_waiting = 0, n_running = 0;
    for (uint32_t i = 0; i < s->n_requests; i++) {
        const fl_request *r = &s->requests[i];
        const fl_sequence *q = r->s;
        if (r->state == FL_REQUEST_FREE) {
            continue;
        }
        n_waiting += r->state == FL_REQUEST_WAITING;
        n_running += r->state == FL_REQUEST_RUNNING;
        if (i >= s->n_used || r->n_followers != n_followers(s, i)) {
            return "a request behind the last one, or with other followers than it knows";
        }
        if (q->handle == 0 || q->handle != r->event.seq) {
            return "a request without its sequence";
        }
        if (fl_request_is_live(r) && (q->n_tokens > r->n_known || r->n_known > d->chooser.limit ||
                                      q->n_prompt > r->n_known || q->n_tokens + r->n_rows > r->n_known)) {
            return "lengths that are not computed <= known <= limit";
        }
        if (q->n_pages != fl_div_up(q->n_tokens + r->n_rows + begun_rows(d, r), FL_PAGE_TOKENS)) {
            return "pages that are not those of the tokens";
        }
        if (r->state == FL_REQUEST_RUNNING && q->n_tokens == r->n_known && !d->running) {
            return "a running request with nothing to do";
        }
        if (r->n_rows > 0 && !d->running) {
            return "rows of a step that is over";
        }
        if (r->n_published * FL_PAGE_TOKENS > q->n_tokens) {
            return "published more than computed";
        }
        for (uint32_t k = 0; k < q->n_tokens; k++) {
            fl_history h = fl_sequence_history(q, &f->pages);
            if (fl_history_at(&h, k) != r->tokens[k]) {
                return "pages that hold other tokens than the request";
            }
        }
    }
    if (n_waiting != s->n_waiting || n_running != s->n_running || n_running > s->max_running) {
        return "queues that are not counted right";
    }
    return NULL;
}

static inline void check_invariants(const folollm *f, int line) {
    const char *wrong = broken_pages(f);
    wrong = wrong != NULL ? wrong : broken_requests(f);
    check_that(wrong == NULL, __FILE__, line, wrong != NULL ? wrong : "invariants");
}

#define CHECK_INVARIANTS(f) check_invariants(f, __LINE__)

#endif
