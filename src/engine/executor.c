#include "engine/executor.h"

FL_LOCAL void fl_executor_layout(fl_executor *e, fl_arena *arena, uint32_t max_rows, uint32_t max_seqs,
                                 uint32_t max_logits, uint32_t vocab) {
    e->max_rows = max_rows;
    for (fl_composed *r = e->batches; r < e->batches + FL_COUNT(e->batches); r++) {
        r->tokens = fl_take(arena, max_rows, sizeof *r->tokens);
        r->positions = fl_take(arena, max_rows, sizeof *r->positions);
        r->slots = fl_take(arena, max_rows, sizeof *r->slots);
        r->wanted = fl_take(arena, max_rows, sizeof *r->wanted);
        r->runs = fl_take(arena, max_rows, sizeof *r->runs);
        r->choices = fl_take(arena, max_rows, sizeof *r->choices);
        r->chosen = fl_take(arena, max_rows, sizeof *r->chosen);
    }
    e->logits = fl_take(arena, max_logits, (size_t)vocab * sizeof *e->logits);
    e->stepped = fl_take(arena, max_seqs, sizeof *e->stepped);
    e->origins = fl_take(arena, max_seqs, sizeof *e->origins);
    e->made = fl_take(arena, max_seqs, sizeof *e->made);
    e->away = fl_take(arena, max_seqs, sizeof *e->away);
    e->last = fl_take(arena, max_seqs, sizeof *e->last);
}

static uint32_t fl_vocab_rows(const fl_executor *e) {
    return e->worker->weights->config.vocab;
}

FL_LOCAL float *fl_executor_row(const fl_executor *e, float *logits, size_t i) {
    return logits + i * fl_vocab_rows(e);
}

FL_LOCAL bool fl_executor_is_finite(const fl_executor *e, const float *row) {
    float largest;
    return e->worker->cpu.kernels->largest(row, fl_vocab_rows(e), &largest);
}

/* ---- Batches -- */

FL_LOCAL void fl_executor_clear(fl_executor *e) {
    e->composed = e->running ^ 1;
    fl_composed *r = &e->batches[e->composed];
    r->n_rows = r->n_runs = r->n_wanted = 0;
    r->asks = false;
}

FL_LOCAL size_t fl_executor_add(fl_executor *e, const fl_sequence *s, uint32_t position, const folollm_token *tokens,
                                size_t n, size_t n_wanted) {
    fl_composed *r = &e->batches[e->composed];
    size_t first_wanted = r->n_wanted;
    fl_run run = {r->n_rows, n, position, s->pages, s->adapter != NULL ? s->adapter->bound : NULL};
    r->runs[r->n_runs++] = run;
    for (uint32_t i = 0; i < n; i++, r->n_rows++) {
        uint32_t at = position + i, slot = s->pages[at / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + at % FL_PAGE_TOKENS;
        r->positions[r->n_rows] = at;
        r->slots[r->n_rows] = slot;
        r->tokens[r->n_rows] = e->pages->tokens[slot] = tokens[i];
        if (i + n_wanted >= n) {
            r->choices[r->n_wanted].asked = 0;
            r->wanted[r->n_wanted++] = (uint32_t)r->n_rows;
        }
    }
    return first_wanted;
}

static fl_batch fl_executor_batch(const fl_executor *e) {
    const fl_composed *r = &e->batches[e->composed];
    fl_batch batch = {r->n_rows, r->tokens, r->positions, r->slots, r->runs, r->n_runs, r->wanted, r->n_wanted,
                      r->asks ? r->choices : NULL, r->chosen};
    return batch;
}

FL_LOCAL void fl_executor_begin(fl_executor *e, float *logits) {
    fl_batch batch = fl_executor_batch(e);
    e->running = e->composed;
    fl_worker_begin(e->worker, &batch, logits);
    e->stats.forwards++;
}

FL_LOCAL bool fl_executor_ahead(fl_executor *e) {
    fl_batch batch = fl_executor_batch(e);
    bool begun = fl_worker_ahead(e->worker, &batch);
    e->stats.forwards += begun;
    return begun;
}

FL_LOCAL void fl_executor_tell(fl_executor *e, size_t row, folollm_token token) {
    const fl_composed *r = &e->batches[e->composed];
    r->tokens[row] = e->pages->tokens[r->slots[row]] = token;
}

FL_LOCAL void fl_executor_resume(fl_executor *e) {
    fl_batch batch = fl_executor_batch(e);
    e->running = e->composed;
    fl_worker_resume(e->worker, &batch, e->logits);
    e->stats.ahead++;
}

FL_LOCAL void fl_executor_ask(fl_executor *e, const fl_sampling *sampling, uint32_t n_tokens, uint32_t n_prompt) {
    fl_composed *r = &e->batches[e->composed];
    fl_history then = {NULL, NULL, n_tokens, n_prompt};
    if (e->worker->backend->chooses && fl_sampler_ask(sampling, &then, &r->choices[r->n_wanted - 1])) {
        r->asks = true;
    }
}

FL_LOCAL const fl_device_chosen *fl_executor_chosen(const fl_executor *e, size_t i) {
    const fl_composed *r = &e->batches[e->running];
    return r->asks && r->choices[i].asked != 0 ? &r->chosen[i] : NULL;
}

FL_LOCAL bool fl_executor_advance(fl_executor *e, fl_slice slice) {
    return fl_worker_advance(e->worker, slice);
}

FL_LOCAL void fl_executor_copy_page(fl_executor *e, const fl_sequence *s, uint32_t origin) {
    if (origin != FL_PAGE_NONE) {
        fl_worker_copy_page(e->worker, origin, s->pages[s->n_tokens / FL_PAGE_TOKENS]);
        e->stats.pages_copied++;
    }
}

/* ---- The host's own steps -- */

static folollm_status fl_no_pages(const fl_executor *e, size_t wanted, folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_POOL,
                   "%u pages of KV cache are needed and %u of %u are free: close or truncate a sequence, or load with "
                   "more pool_tokens",
                   (uint64_t)wanted, (uint64_t)e->pages->n_free, (uint64_t)e->pages->n_pages);
}

/* One of the sequences is to stop. The wish is used up: the same call again runs. */
static folollm_status fl_check_cancelled(fl_sequence *const *seqs, size_t n, folollm_error *error) {
    for (size_t i = 0; i < n; i++) {
        if (fl_sequence_is_cancelled(seqs[i])) {
            fl_atomic_store(&seqs[i]->cancelled, (folollm_seq)0);
            return fl_fail(error, FOLOLLM_E_CANCELLED, "sequence %u was cancelled: the step was undone",
                           (uint64_t)seqs[i]->handle);
        }
    }
    return FOLOLLM_OK;
}

/* Where the backend keeps the logits of a sequence, and where it puts those of a step that is not committed yet. */
static size_t fl_away_place(const fl_executor *e, const fl_sequence *s, bool next) {
    return (s->away ^ next) * (size_t)e->sequences->n_own + (size_t)(s - e->sequences->slots);
}

/* The logits of these rows that the backend chooses from, those of the sequences from `first` on, stay there: as many
 * together as have their places side by side. */
static void fl_keep_logits(fl_executor *e, size_t first, size_t n_rows) {
    for (size_t row = 0, n; row < n_rows; row += n) {
        n = 1;
        if (fl_executor_chosen(e, row) == NULL) {
            continue;
        }
        size_t place = fl_away_place(e, e->stepped[first + row], true);
        while (row + n < n_rows && fl_executor_chosen(e, row + n) != NULL &&
               fl_away_place(e, e->stepped[first + row + n], true) == place + n) {
            n++;
        }
        fl_worker_keep(e->worker, row, n, place);
    }
}

/* Run the batch that has begun for the n sequences of the step up to its end, when what it computes is still on its
 * way. The rows of its logits, as many as n_kept, are those of the sequences from `first` on. */
static folollm_status fl_run_batch(fl_executor *e, size_t n, size_t first, size_t n_kept, folollm_error *error) {
    fl_slice whole = fl_worker_whole(e->worker);
    FL_TRY(fl_check_cancelled(e->stepped, n, error));
    while (e->worker->forward.op != FL_OP_END) {
        fl_executor_advance(e, whole);
        FL_TRY(fl_check_cancelled(e->stepped, n, error));
    }
    fl_keep_logits(e, first, n_kept);
    return FOLOLLM_OK;
}

static folollm_status fl_end_batch(fl_executor *e, folollm_error *error) {
    fl_executor_advance(e, fl_worker_whole(e->worker));
    return fl_worker_status(e->worker, error);
}

/* What the last batch gave for sequence i of the step, in row `row` of its logits (host), or away from there. A number
 * that is none is FOLOLLM_E_NUMERIC. */
static folollm_status fl_take_logits(fl_executor *e, size_t i, size_t row, const float *logits, uint32_t position,
                                     folollm_error *error) {
    const fl_device_chosen *chosen = fl_executor_chosen(e, row);
    e->away[i] = chosen != NULL;
    if (chosen != NULL) {
        e->made[i] = *chosen;
    }
    if (chosen != NULL ? chosen->broken != 0 : !fl_executor_is_finite(e, logits)) {
        return fl_fail(error, FOLOLLM_E_NUMERIC,
                       "the logits of sequence %u at position %u are not finite: are the weights damaged?",
                       (uint64_t)e->stepped[i]->handle, (uint64_t)position);
    }
    return FOLOLLM_OK;
}

static void fl_commit_logits(fl_executor *e, size_t i, const float *logits) {
    fl_sequence *s = e->stepped[i];
    s->has_logits = true;
    s->logits_away = e->away[i];
    if (s->logits_away) {
        s->away ^= 1;
        s->chosen = e->made[i];
    } else {
        memcpy(s->logits, logits, fl_vocab_rows(e) * sizeof *s->logits);
    }
}

FL_LOCAL folollm_status fl_executor_bring(fl_executor *e, fl_sequence *s, folollm_error *error) {
    if (!s->has_logits || !s->logits_away) {
        return FOLOLLM_OK;
    }
    fl_worker_kept(e->worker, fl_away_place(e, s, false), s->logits);
    FL_TRY(fl_worker_status(e->worker, error));
    s->logits_away = false;
    return FOLOLLM_OK;
}

/* Tokens [at, at + n) of those that follow the sequence's own. Logits of all, of the last, or none. */
static folollm_status fl_prefill_chunk(fl_executor *e, fl_sequence *s, const folollm_token *tokens, size_t at,
                                       size_t n, bool last, float *all_logits, folollm_error *error) {
    uint32_t position = s->n_tokens + (uint32_t)at;
    size_t n_wanted = all_logits != NULL ? n : last;
    float *logits = all_logits != NULL ? fl_executor_row(e, all_logits, at) : e->logits;
    fl_executor_clear(e);
    fl_executor_add(e, s, position, tokens + at, n, n_wanted);
    if (last && all_logits == NULL) {
        fl_executor_ask(e, &s->sampling, position + (uint32_t)n, position + (uint32_t)n);
    }
    fl_executor_begin(e, logits);
    FL_TRY(fl_run_batch(e, 1, 0, n_wanted, error));
    FL_TRY(fl_end_batch(e, error));
    for (size_t i = 0; i < n_wanted; i++) {
        uint32_t of = position + (uint32_t)(n - n_wanted + i);
        FL_TRY(fl_take_logits(e, 0, i, fl_executor_row(e, logits, i), of, error));
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_executor_prefill(fl_executor *e, fl_sequence *s, const folollm_token *tokens,
                                            size_t n_tokens, float *all_logits, folollm_error *error) {
    if (n_tokens > e->context - s->n_tokens) {
        return fl_fail(error, FOLOLLM_E_CONTEXT, "%u tokens do not fit: the sequence has %u of a context of %u",
                       (uint64_t)n_tokens, (uint64_t)s->n_tokens, (uint64_t)e->context);
    }
    fl_executor_rest(e);
    size_t wanted = fl_sequence_pages_wanted(s, e->pages, n_tokens);
    if (wanted > e->pages->n_free) {
        return fl_no_pages(e, wanted, error);
    }
    uint32_t origin = fl_sequence_reserve(s, e->pages, n_tokens);
    fl_executor_copy_page(e, s, origin);
    e->stepped[0] = s;
    folollm_status status = FOLOLLM_OK;
    size_t most = all_logits != NULL ? e->max_wanted : e->max_rows;
    for (size_t at = 0; at < n_tokens && status == FOLOLLM_OK; at += most) {
        size_t n = fl_min(n_tokens - at, most);
        status = fl_prefill_chunk(e, s, tokens, at, n, at + n == n_tokens, all_logits, error);
    }
    if (status != FOLOLLM_OK) {
        fl_worker_wait(e->worker); /* what was started reads its batch */
        fl_sequence_unreserve(s, e->pages, origin);
        e->stats.undone++;
        return status;
    }
    s->n_tokens += (uint32_t)n_tokens;
    s->n_prompt = s->n_tokens;
    fl_commit_logits(e, 0, all_logits != NULL ? fl_executor_row(e, all_logits, n_tokens - 1) : e->logits);
    fl_sequence_replay(s, e->pages, e->tokenizer);
    e->stats.prompt_tokens += n_tokens;
    return FOLOLLM_OK;
}

/* Find the sequences; every one must be open, there once, and have room. */
static folollm_status fl_decode_check(fl_executor *e, const folollm_seq *seqs, size_t n, folollm_error *error) {
    e->step++;
    if (n > e->sequences->n_own) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "%u sequences in one step; the engine has %u", (uint64_t)n,
                       (uint64_t)e->sequences->n_own);
    }
    for (size_t i = 0; i < n; i++) {
        fl_sequence *s = NULL;
        FL_TRY(fl_sequence_find_own(e->sequences, seqs[i], &s, error));
        if (s->step == e->step) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "sequence %u is in the step twice", (uint64_t)seqs[i]);
        }
        s->step = e->step;
        if (s->n_tokens == e->context) {
            return fl_fail(error, FOLOLLM_E_CONTEXT, "sequence %u fills its context of %u tokens", (uint64_t)seqs[i],
                           (uint64_t)e->context);
        }
        e->stepped[i] = s;
    }
    return FOLOLLM_OK;
}

/* Did the last owner of the page that sequence i left, a shorter one of the first n, write over its tokens there? */
static bool fl_decode_overwrote(const fl_executor *e, size_t i, size_t n) {
    for (size_t k = i + 1; k < n; k++) {
        const fl_sequence *s = e->stepped[k];
        if (e->origins[k] == FL_PAGE_NONE && s->n_tokens % FL_PAGE_TOKENS != 0 &&
            s->pages[s->n_pages - 1] == e->origins[i] && s->n_tokens < e->stepped[i]->n_tokens) {
            return true;
        }
    }
    return false;
}

/* ran: rows were computed, so that the slots behind the lengths may hold anything. */
static void fl_decode_undo(fl_executor *e, size_t n, bool ran) {
    for (size_t i = n; i-- > 0;) {
        bool keep = ran && e->origins[i] != FL_PAGE_NONE && fl_decode_overwrote(e, i, n);
        fl_sequence_unreserve(e->stepped[i], e->pages, keep ? FL_PAGE_NONE : e->origins[i]);
    }
    e->stats.undone++;
}

/* One by one, because a copy that one sequence makes of a shared page may spare the next one its own. */
static folollm_status fl_decode_reserve(fl_executor *e, size_t n, folollm_error *error) {
    for (size_t i = 0; i < n; i++) {
        fl_sequence *s = e->stepped[i];
        size_t wanted = fl_sequence_pages_wanted(s, e->pages, 1);
        if (wanted > e->pages->n_free) {
            fl_no_pages(e, wanted, error);
            fl_decode_undo(e, i, false);
            return FOLOLLM_E_POOL;
        }
        e->origins[i] = fl_sequence_reserve(s, e->pages, 1);
        fl_executor_copy_page(e, s, e->origins[i]);
    }
    if (fl_worker_failed(e->worker)) { /* no row was computed, and copies are perhaps not there */
        fl_decode_undo(e, n, false);
        return fl_worker_status(e->worker, error);
    }
    return FOLOLLM_OK;
}

FL_LOCAL void fl_executor_rest(fl_executor *e) {
    if (e->has_begun) {
        fl_worker_wait(e->worker);
        for (size_t i = 0; i < e->n_last; i++) {
            fl_sequence_trim(e->last[i], e->pages, e->last[i]->n_tokens);
        }
    }
    e->has_begun = false;
    e->n_followed = 0;
}

/* Are these the sequences of the last step, and the tokens that the backend chose for them? */
static bool fl_decode_follows(const fl_executor *e, const folollm_token *tokens, size_t n) {
    bool follows = n == e->n_last;
    for (size_t i = 0; follows && i < n; i++) {
        const fl_sequence *s = e->stepped[i];
        follows = s == e->last[i] && s->has_logits && s->logits_away && s->chosen.token == tokens[i];
    }
    return follows;
}

/* Will there be a next step like the one at hand, whose rows were all started, and are there pages for it? Once is not
 * a habit, so two steps must have followed what was chosen. */
static bool fl_decode_goes_on(const fl_executor *e, size_t n) {
    size_t pages = 0;
    for (size_t i = 0; i < n; i++) {
        const fl_sequence *s = e->stepped[i];
        if (fl_executor_chosen(e, i) == NULL || fl_sequence_is_full(s, s->n_tokens + 1, e->context)) {
            return false;
        }
        pages += fl_sequence_pages_wanted(s, e->pages, 2);
    }
    return e->n_followed >= 2 && n > 0 && n <= e->max_wanted && pages <= e->pages->n_free;
}

/* Begin the step behind the one at hand. */
static void fl_decode_ahead(fl_executor *e, size_t n) {
    if (!fl_decode_goes_on(e, n)) {
        return;
    }
    fl_executor_clear(e);
    for (size_t i = 0; i < n; i++) {
        fl_sequence *s = e->stepped[i];
        folollm_token unknown = -1 - (folollm_token)i;
        fl_sequence_reserve(s, e->pages, 2);
        fl_executor_add(e, s, s->n_tokens + 1, &unknown, 1, 1);
        fl_executor_ask(e, &s->sampling, s->n_tokens + 2, s->n_prompt);
    }
    e->has_begun = fl_executor_ahead(e);
    for (size_t i = 0; i < n && !e->has_begun; i++) {
        fl_sequence_trim(e->stepped[i], e->pages, e->stepped[i]->n_tokens + 1);
    }
}

/* Rows [at, at + n) of a step, which may have begun already. */
static void fl_decode_begin(fl_executor *e, const folollm_token *tokens, size_t at, size_t n) {
    if (e->has_begun) {
        for (size_t i = 0; i < n; i++) {
            fl_executor_tell(e, i, tokens[i]);
        }
        fl_executor_resume(e);
        e->has_begun = false;
        return;
    }
    fl_executor_clear(e);
    for (size_t i = at; i < at + n; i++) {
        const fl_sequence *s = e->stepped[i];
        fl_executor_add(e, s, s->n_tokens, &tokens[i], 1, 1);
        fl_executor_ask(e, &s->sampling, s->n_tokens + 1, s->n_prompt);
    }
    fl_executor_begin(e, fl_executor_row(e, e->logits, at));
}

static folollm_status fl_decode_rows(fl_executor *e, const folollm_token *tokens, size_t n, folollm_error *error) {
    for (size_t at = 0; at < n; at += e->max_wanted) {
        size_t rows = fl_min(n - at, e->max_wanted);
        fl_decode_begin(e, tokens, at, rows);
        FL_TRY(fl_run_batch(e, n, at, rows, error));
        fl_decode_ahead(e, n);
        FL_TRY(fl_end_batch(e, error));
        for (size_t i = at; i < at + rows; i++) {
            FL_TRY(fl_take_logits(e, i, i - at, fl_executor_row(e, e->logits, i), e->stepped[i]->n_tokens, error));
        }
    }
    return FOLOLLM_OK;
}

static void fl_decode_commit(fl_executor *e, size_t i, folollm_token token) {
    fl_sequence *s = e->stepped[i];
    size_t ignored;
    bool look = s->n_tokens - s->n_prompt + 1 >= s->sampling.s.min_tokens;
    fl_stream_feed(&s->stream, e->tokenizer, &s->sampling, token, look, s->text, &ignored);
    s->n_tokens++;
    fl_commit_logits(e, i, fl_executor_row(e, e->logits, i));
}

FL_LOCAL folollm_status fl_executor_decode(fl_executor *e, const folollm_seq *seqs, const folollm_token *tokens,
                                           size_t n, folollm_error *error) {
    FL_TRY(fl_decode_check(e, seqs, n, error));
    if (fl_decode_follows(e, tokens, n)) {
        e->n_followed++;
    } else {
        fl_executor_rest(e);
    }
    FL_TRY(fl_decode_reserve(e, n, error));
    folollm_status status = fl_decode_rows(e, tokens, n, error);
    if (status != FOLOLLM_OK) {
        fl_worker_wait(e->worker); /* what was started reads its batch */
        fl_executor_rest(e);
        fl_decode_undo(e, n, true);
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        fl_decode_commit(e, i, tokens[i]);
        e->last[i] = e->stepped[i];
    }
    e->n_last = n;
    e->stats.generated_tokens += n;
    return FOLOLLM_OK;
}
