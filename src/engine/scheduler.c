#include "engine/scheduler.h"

#define FL_FLOW_UNIT (UINT64_C(1) << 20) /* one row for weight 1 */
#define FL_PROMPT_SHARE 8                /* prompts get at least one in so many rows of a step */
#define FL_CHOICE_BYTES 96               /* most of one choice in words, and twice that of what was there */

FL_LOCAL void fl_scheduler_layout(fl_scheduler *s, fl_arena *arena, uint32_t n_requests, uint32_t max_running,
                                  uint32_t context, bool logs) {
    s->n_requests = n_requests;
    s->max_running = max_running;
    s->requests = fl_take(arena, n_requests, sizeof *s->requests);
    s->flows = fl_take(arena, n_requests, sizeof *s->flows);
    s->placed = fl_take(arena, max_running, sizeof *s->placed);
    for (uint32_t i = 0; i < n_requests; i++) {
        folollm_token *tokens = fl_take(arena, context, sizeof *tokens);
        folollm_logprob *top = fl_take(arena, FOLOLLM_TOP_MAX, sizeof *top);
        if (s->requests != NULL) {
            s->requests[i].tokens = tokens;
            s->requests[i].top = top;
        }
    }
    /* In a step each may be preempted once and wait once, and each that runs be admitted, get rows, and have none. */
    s->line_room = FL_CHOICE_BYTES * (2 + 2 * (size_t)n_requests + 3 * (size_t)max_running);
    s->line = logs ? fl_take(arena, s->line_room, 1) : NULL;
}

/* ---- In words -- */

static void fl_tell_begin(fl_scheduler *s, uint32_t max_rows) {
    if (s->line != NULL) {
        s->line_bytes = fl_format(s->line, s->line_room,
                                  "step %u: up to %u rows, %u of %u run, %u wait, %u pages free, %u of them cached",
                                  s->step, (uint64_t)max_rows, (uint64_t)s->n_running, (uint64_t)s->max_running,
                                  (uint64_t)s->n_waiting, (uint64_t)s->pages->n_free, (uint64_t)s->pages->n_cached);
    }
}

/* what: a format of at most three numbers. */
static void fl_tell(fl_scheduler *s, const fl_request *r, const char *what, uint64_t a, uint64_t b, uint64_t c) {
    if (s->line != NULL) {
        s->line_bytes += fl_format(s->line + s->line_bytes, s->line_room - s->line_bytes, "; %u/%u ", r->event.tag,
                                   (uint64_t)r->event.answer);
        s->line_bytes += fl_format(s->line + s->line_bytes, s->line_room - s->line_bytes, what, a, b, c);
    }
}

/* ---- Coming and going -- */

/* There are as many flows as requests, so one is free. A flow that comes back begins where the others are. */
static uint32_t fl_flow_join(fl_scheduler *s, uint32_t id, uint32_t weight) {
    uint32_t at = 0;
    while (at < s->n_requests && !(s->flows[at].n_live > 0 && s->flows[at].id == id)) {
        at++;
    }
    if (at == s->n_requests) {
        for (at = 0; s->flows[at].n_live > 0; at++) {
        }
        s->flows[at].id = id;
        s->flows[at].time = s->virtual_time;
    }
    s->flows[at].weight = weight;
    s->flows[at].n_live++;
    return at;
}

FL_LOCAL fl_request *fl_scheduler_open(fl_scheduler *s, uint32_t flow, uint32_t weight, folollm_seq *id) {
    fl_sequence *sequence = fl_sequence_open(s->sequences, true, id);
    if (sequence == NULL) {
        return NULL;
    }
    fl_request *r = fl_request_of(s, sequence);
    folollm_token *tokens = r->tokens;
    folollm_logprob *top = r->top;
    memset(r, 0, sizeof *r);
    r->tokens = tokens;
    r->top = top;
    r->s = sequence;
    r->state = FL_REQUEST_WAITING;
    r->flow = fl_flow_join(s, flow, weight);
    r->arrival = ++s->n_arrived;
    r->leader = fl_request_index(s, r);
    r->logits_row = FL_NO_ROW;
    r->event.seq = *id;
    s->n_waiting++;
    s->too_few = 0;
    s->n_used = (uint32_t)fl_max(s->n_used, fl_request_index(s, r) + 1);
    return r;
}

FL_LOCAL void fl_scheduler_close(fl_scheduler *s, fl_request *r) {
    fl_sequence_close(s->sequences, r->s, s->pages);
    s->flows[r->flow].n_live--;
    r->state = FL_REQUEST_FREE;
    while (s->n_used > 0 && s->requests[s->n_used - 1].state == FL_REQUEST_FREE) {
        s->n_used--;
    }
}

static void fl_release_pages(fl_scheduler *s, fl_request *r) {
    uint32_t n_prompt = r->s->n_prompt;
    fl_sequence_cut(r->s, s->pages, 0);
    r->s->n_prompt = n_prompt;
    r->serial = 0;
    r->n_published = 0;
}

static void fl_leave_queue(fl_scheduler *s, const fl_request *r) {
    if (r->state == FL_REQUEST_RUNNING) {
        s->n_running--;
    } else {
        s->n_waiting--;
    }
}

FL_LOCAL void fl_scheduler_lead(fl_scheduler *s, fl_request *leader, fl_request *r) {
    r->leader = fl_request_index(s, leader);
    leader->n_followers++;
}

static void fl_stop_following(fl_scheduler *s, fl_request *r) {
    s->requests[r->leader].n_followers--;
    r->leader = fl_request_index(s, r);
}

FL_LOCAL fl_request *fl_scheduler_follower(const fl_scheduler *s, const fl_request *r) {
    uint32_t index = fl_request_index(s, r);
    for (uint32_t i = 0; i < s->n_used && r->n_followers > 0; i++) {
        if (i != index && s->requests[i].leader == index) {
            return &s->requests[i];
        }
    }
    return NULL;
}

/* The first of those that waited for r's prompt computes it for the others. */
static void fl_pass_lead(fl_scheduler *s, const fl_request *r) {
    fl_request *heir = fl_scheduler_follower(s, r);
    if (heir == NULL) {
        return;
    }
    fl_stop_following(s, heir);
    for (fl_request *next; (next = fl_scheduler_follower(s, r)) != NULL;) {
        fl_stop_following(s, next);
        fl_scheduler_lead(s, heir, next);
    }
}

FL_LOCAL void fl_scheduler_end(fl_scheduler *s, fl_request *r) {
    fl_leave_queue(s, r);
    r->state = FL_REQUEST_OVER;
    fl_pass_lead(s, r);
    if (r->leader != fl_request_index(s, r)) {
        fl_stop_following(s, r);
    }
    if (r->n_rows == 0) {
        fl_release_pages(s, r);
    }
}

FL_LOCAL void fl_scheduler_let_go(fl_scheduler *s, fl_request *r) {
    r->n_rows = 0;
    if (r->state == FL_REQUEST_OVER) {
        fl_release_pages(s, r);
    }
}

FL_LOCAL fl_request *fl_scheduler_find(const fl_scheduler *s, const fl_placed *placed) {
    fl_request *r = &s->requests[placed->request];
    return r->s->handle == placed->handle && fl_request_is_live(r) ? r : NULL;
}

/* ---- Order -- */

typedef struct fl_rank {
    int64_t priority;
    uint64_t deadline, flow_time, turn, arrival;
} fl_rank;

static bool fl_ranks_before(fl_rank a, fl_rank b) {
    if (a.priority != b.priority) {
        return a.priority < b.priority;
    }
    if (a.deadline != b.deadline) {
        return a.deadline < b.deadline;
    }
    if (a.flow_time != b.flow_time) {
        return a.flow_time < b.flow_time;
    }
    return a.turn != b.turn ? a.turn < b.turn : a.arrival < b.arrival;
}

static fl_rank fl_rank_of(const fl_scheduler *s, const fl_request *r) {
    fl_rank rank = {r->priority, r->deadline, s->flows[r->flow].time, 0, r->arrival};
    return rank;
}

typedef enum fl_class { /* whom a step serves, one after the other */
    FL_CLASS_ONE_ROW,
    FL_CLASS_PROMPT,
    FL_CLASS_WAITING
} fl_class;

static bool fl_is_of(const fl_scheduler *s, const fl_request *r, fl_class class_) {
    if (r->considered == s->step || r->has_event) {
        return false;
    }
    if (class_ == FL_CLASS_WAITING) {
        return r->state == FL_REQUEST_WAITING && r->leader == fl_request_index(s, r);
    }
    return r->state == FL_REQUEST_RUNNING && (r->n_known - r->s->n_tokens == 1) == (class_ == FL_CLASS_ONE_ROW);
}

/* In which order a class is served: with ageing; those that write in turn; those that were preempted before others. */
static fl_rank fl_turn_of(const fl_scheduler *s, const fl_request *r, fl_class class_) {
    fl_rank rank = fl_rank_of(s, r);
    rank.priority -= r->waited / FL_AGE;
    if (class_ == FL_CLASS_ONE_ROW) {
        rank.turn = r->served;
    } else if (class_ == FL_CLASS_WAITING && r->preempted) {
        rank.deadline = rank.flow_time = 0;
    }
    return rank;
}

static fl_request *fl_pick(fl_scheduler *s, fl_class class_) {
    fl_request *best = NULL;
    fl_rank best_rank = {0, 0, 0, 0, 0};
    for (uint32_t i = 0; i < s->n_used; i++) {
        fl_request *r = &s->requests[i];
        if (fl_is_of(s, r, class_)) {
            fl_rank rank = fl_turn_of(s, r, class_);
            if (best == NULL || fl_ranks_before(rank, best_rank)) {
                best = r;
                best_rank = rank;
            }
        }
    }
    if (best != NULL) {
        best->considered = s->step;
    }
    return best;
}

/* ---- Pages -- */

static void fl_note(fl_scheduler *s, const fl_request *r, uint32_t what) {
    s->stats->schedule_hash = fl_mix(s->stats->schedule_hash ^ fl_mix(r->arrival) ^ fl_mix(s->step << 32 | what));
}

/* Everything that r knows is to be computed again. */
static void fl_start_over(fl_scheduler *s, fl_request *r) {
    fl_release_pages(s, r);
    if (r->state == FL_REQUEST_RUNNING) {
        s->n_running--;
        s->n_waiting++;
        r->state = FL_REQUEST_WAITING;
    }
    r->preempted = true;
    r->event.metrics.preemptions++;
    s->stats->preemptions++;
}

static void fl_preempt(fl_scheduler *s, fl_request *r, const fl_request *than) {
    fl_note(s, r, UINT32_MAX);
    fl_tell(s, r, "preempted at %u for %u/%u", r->s->n_tokens, than->event.tag, than->event.answer);
    fl_start_over(s, r);
    s->preempted = true;
}

FL_LOCAL void fl_scheduler_undo(fl_scheduler *s, fl_request *r) {
    fl_scheduler_let_go(s, r);
    if (fl_request_is_live(r)) {
        fl_start_over(s, r);
    }
}

/* May `than` take the pages of r? To go on, from any that waits, and from those behind it that run; to be let in, from
 * those behind it that wait. */
static bool fl_may_take(const fl_scheduler *s, const fl_request *than, const fl_request *r, bool to_be_let_in) {
    bool behind = fl_ranks_before(fl_rank_of(s, than), fl_rank_of(s, r));
    if (r == than || !fl_request_is_live(r) || r->n_rows > 0 || r->s->n_pages == 0) {
        return false;
    }
    return r->state == FL_REQUEST_WAITING ? behind || !to_be_let_in : behind && !to_be_let_in;
}

/* The last in order of those whose pages may be taken. */
static fl_request *fl_victim(fl_scheduler *s, const fl_request *than, bool to_be_let_in) {
    fl_request *worst = NULL;
    for (uint32_t i = 0; i < s->n_used; i++) {
        fl_request *r = &s->requests[i];
        if (fl_may_take(s, than, r, to_be_let_in) &&
            (worst == NULL || fl_ranks_before(fl_rank_of(s, worst), fl_rank_of(s, r)))) {
            worst = r;
        }
    }
    return worst;
}

/* How many of its next n tokens there are pages for, preempting who stands behind it. */
static uint32_t fl_make_room(fl_scheduler *s, fl_request *r, uint32_t n) {
    fl_request *victim;
    while (fl_sequence_pages_wanted(r->s, s->pages, n) > s->pages->n_free &&
           (victim = fl_victim(s, r, false)) != NULL) {
        fl_preempt(s, victim, r);
    }
    while (n > 0 && fl_sequence_pages_wanted(r->s, s->pages, n) > s->pages->n_free) {
        n--;
    }
    return n;
}

/* Pages that those who run will still take for what they know. */
static size_t fl_pages_promised(const fl_scheduler *s) {
    size_t n = 0;
    for (uint32_t i = 0; i < s->n_used; i++) {
        const fl_request *r = &s->requests[i];
        size_t all = fl_div_up(r->n_known, FL_PAGE_TOKENS);
        if (r->state == FL_REQUEST_RUNNING && all > r->s->n_pages) {
            n += all - r->s->n_pages;
        }
    }
    return n;
}

/* ---- The prefix cache -- */

static fl_page_key fl_request_key(const fl_request *r, uint64_t before) {
    fl_page_key key = {r->space, r->s->adapter != NULL ? r->s->adapter->serial : 0, before};
    return key;
}

/* Begin with the pages that were computed before. The last known token is always computed: its logits are wanted. */
static void fl_find_prefix(fl_scheduler *s, fl_request *r) {
    fl_page_key key = fl_request_key(r, 0);
    uint32_t n_pages = (r->n_known - 1) / FL_PAGE_TOKENS, n = 0;
    for (; r->caches && n < n_pages; n++) {
        uint32_t page = fl_pages_find(s->pages, key, r->tokens + (size_t)n * FL_PAGE_TOKENS);
        if (page == FL_PAGE_NONE) {
            break;
        }
        fl_pages_share(s->pages, page);
        r->s->pages[n] = page;
        key.before = s->pages->serials[page];
    }
    r->s->n_pages = r->n_published = n;
    r->s->n_tokens = n * FL_PAGE_TOKENS;
    r->serial = key.before;
}

static void fl_count_prefix(fl_scheduler *s, fl_request *r) {
    if (!r->caches) {
        return;
    }
    s->stats->prefix_asked_tokens += r->n_known;
    s->stats->prefix_found_tokens += r->s->n_tokens;
    if (!r->preempted) {
        r->event.metrics.cached_tokens = r->s->n_tokens;
    }
}

FL_LOCAL void fl_scheduler_commit(fl_scheduler *s, fl_request *r) {
    fl_sequence *q = r->s;
    bool generated = r->n_rows == 1 && q->n_tokens >= q->n_prompt;
    s->stats->generated_tokens += generated ? 1 : 0;
    s->stats->prompt_tokens += generated ? 0 : r->n_rows;
    q->n_tokens += r->n_rows;
    for (; r->caches && (r->n_published + 1) * FL_PAGE_TOKENS <= q->n_tokens; r->n_published++) {
        r->serial = fl_pages_publish(s->pages, fl_request_key(r, r->serial), q->pages[r->n_published]);
    }
}

FL_LOCAL void fl_scheduler_follow(fl_scheduler *s, const fl_request *leader, fl_request *r) {
    fl_sequence_share(r->s, leader->s, s->pages);
    fl_stop_following(s, r);
    r->serial = leader->serial;
    r->n_published = leader->n_published;
    r->event.metrics.cached_tokens = r->s->n_tokens;
}

/* ---- The plan -- */

/* Give r up to n rows; returns how many it got. */
static uint32_t fl_place(fl_scheduler *s, fl_request *r, uint32_t n) {
    fl_flow *flow = &s->flows[r->flow];
    uint32_t known = r->n_known - r->s->n_tokens;
    n = fl_make_room(s, r, n < known ? n : known);
    if (n == 0) {
        fl_tell(s, r, "stays: no page is free", 0, 0, 0);
        return 0;
    }
    bool writes = n == 1 && r->s->n_tokens >= r->s->n_prompt;
    fl_tell(s, r, writes ? "writes at %u" : "reads from %u: %u of %u", r->s->n_tokens, n, known);
    fl_placed placed = {fl_request_index(s, r), r->s->handle};
    s->placed[s->n_placed++] = placed;
    r->origin = fl_sequence_reserve(r->s, s->pages, n);
    r->n_rows = n;
    r->served = s->step;
    r->waited = 0;
    s->virtual_time = flow->time > s->virtual_time ? flow->time : s->virtual_time;
    flow->time += n * (FL_FLOW_UNIT / flow->weight);
    fl_note(s, r, n);
    return n;
}

/* Let a waiting request in, if all that it knows fits beside what those who run will need. */
static bool fl_admit(fl_scheduler *s, fl_request *r) {
    bool fresh = r->s->n_pages == 0;
    if (fresh) {
        fl_find_prefix(s, r);
    }
    size_t n = r->n_known - r->s->n_tokens, promised = fl_pages_promised(s);
    fl_request *victim;
    while (fl_sequence_pages_wanted(r->s, s->pages, n) + promised > s->pages->n_free) {
        victim = fl_victim(s, r, true);
        if (victim == NULL) {
            fl_tell(s, r, "waits: %u pages wanted, %u free, %u promised", fl_sequence_pages_wanted(r->s, s->pages, n),
                   s->pages->n_free, promised);
            if (fresh) {
                fl_release_pages(s, r);
            }
            return false;
        }
        fl_preempt(s, victim, r);
    }
    fl_tell(s, r, fresh ? "admitted, found %u of %u" : "admitted, holds %u of %u", r->s->n_tokens, r->n_known, 0);
    if (fresh) {
        fl_count_prefix(s, r);
    }
    r->state = FL_REQUEST_RUNNING;
    r->preempted = false;
    s->n_waiting--;
    s->n_running++;
    return true;
}

/* Are there rows and pages for all who want one row? Then nobody needs to be first. */
static bool fl_all_fit(const fl_scheduler *s, uint32_t rows) {
    size_t n = 0, pages = 0;
    for (uint32_t i = 0; i < s->n_used; i++) {
        const fl_request *r = &s->requests[i];
        if (fl_is_of(s, r, FL_CLASS_ONE_ROW)) {
            n++;
            pages += fl_sequence_pages_wanted(r->s, s->pages, 1);
        }
    }
    return n <= rows && pages <= s->pages->n_free;
}

static uint32_t fl_serve_all(fl_scheduler *s) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_used; i++) {
        fl_request *r = &s->requests[i];
        if (fl_is_of(s, r, FL_CLASS_ONE_ROW)) {
            r->considered = s->step;
            n += fl_place(s, r, 1);
        }
    }
    return n;
}

static uint32_t fl_serve(fl_scheduler *s, fl_class class_, uint32_t rows, uint32_t each) {
    uint32_t left = rows;
    fl_request *r;
    if (class_ == FL_CLASS_ONE_ROW && fl_all_fit(s, rows)) {
        return fl_serve_all(s);
    }
    while (left > 0 && (r = fl_pick(s, class_)) != NULL) {
        left -= fl_place(s, r, left < each ? left : each);
    }
    return rows - left;
}

static uint32_t fl_let_in(fl_scheduler *s, uint32_t rows) {
    uint32_t left = rows;
    fl_request *r;
    while (left > 0 && !s->preempted && s->n_running < s->max_running && (r = fl_pick(s, FL_CLASS_WAITING)) != NULL) {
        if (fl_admit(s, r)) {
            left -= fl_place(s, r, left);
        } else if (s->n_running > 0) {
            s->too_few = s->pages->n_free;
            break; /* it is next, as soon as one of these is done; while none runs, a smaller one may go before it */
        }
    }
    return rows - left;
}

/* Rows that those who write leave to prompts: a share, and of a step of one row every so many steps that row. */
static uint32_t fl_rows_for_prompts(const fl_scheduler *s, uint32_t max_rows) {
    bool any = s->n_waiting > 0 && s->n_running < s->max_running;
    for (uint32_t i = 0; i < s->n_used && !any; i++) {
        any = fl_is_of(s, &s->requests[i], FL_CLASS_PROMPT);
    }
    if (!any) {
        return 0;
    }
    return max_rows > 1 ? (max_rows + FL_PROMPT_SHARE - 1) / FL_PROMPT_SHARE : s->step % FL_PROMPT_SHARE == 0;
}

static void fl_plan_begin(fl_scheduler *s, uint32_t max_rows) {
    s->step++;
    s->n_placed = 0;
    s->preempted = false;
    fl_tell_begin(s, max_rows);
}

static void fl_plan_end(fl_scheduler *s) {
    for (uint32_t i = 0; i < s->n_used; i++) {
        fl_request *r = &s->requests[i];
        r->waited += fl_request_is_live(r) && r->n_rows == 0 && r->waited < UINT32_MAX;
    }
}

FL_LOCAL bool fl_scheduler_is_full(const fl_scheduler *s) {
    return s->n_running == s->max_running || s->pages->n_free <= s->too_few;
}

FL_LOCAL void fl_scheduler_plan_these(fl_scheduler *s, const fl_placed *these, uint32_t n) {
    fl_plan_begin(s, n);
    for (uint32_t i = 0; i < n; i++) {
        fl_request *r = fl_scheduler_find(s, &these[i]);
        if (r != NULL && fl_is_of(s, r, FL_CLASS_ONE_ROW)) {
            fl_place(s, r, 1);
            r->logits_row = i;
        }
    }
    fl_plan_end(s);
}

FL_LOCAL void fl_scheduler_plan(fl_scheduler *s, uint32_t max_rows, uint32_t max_prompt_rows) {
    uint32_t for_prompts = fl_rows_for_prompts(s, max_rows), left = max_rows, prompts;
    fl_plan_begin(s, max_rows);
    left -= fl_serve(s, FL_CLASS_ONE_ROW, max_rows - for_prompts, 1);
    prompts = left < max_prompt_rows ? left : max_prompt_rows;
    uint32_t given = fl_serve(s, FL_CLASS_PROMPT, prompts, prompts);
    given += fl_let_in(s, prompts - given);
    fl_serve(s, FL_CLASS_ONE_ROW, left - given, 1);
    fl_plan_end(s);
}
