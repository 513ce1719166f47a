#include "engine/executor.h"

FL_LOCAL void fl_executor_layout(fl_executor *e, fl_arena *arena, uint32_t n_rows, uint32_t max_seqs,
                                 uint32_t vocab) {
    e->n_rows = n_rows;
    e->tokens = fl_take(arena, n_rows, sizeof *e->tokens);
    e->positions = fl_take(arena, n_rows, sizeof *e->positions);
    e->slots = fl_take(arena, n_rows, sizeof *e->slots);
    e->wanted = fl_take(arena, n_rows, sizeof *e->wanted);
    e->runs = fl_take(arena, n_rows, sizeof *e->runs);
    e->logits = fl_take(arena, max_seqs, (size_t)vocab * sizeof *e->logits);
    e->stepped = fl_take(arena, max_seqs, sizeof *e->stepped);
    e->origins = fl_take(arena, max_seqs, sizeof *e->origins);
}

static uint32_t fl_vocab_rows(const fl_executor *e) {
    return e->worker->weights->config.vocab;
}

static float *fl_logits_row(const fl_executor *e, float *rows, size_t i) {
    return rows + i * fl_vocab_rows(e);
}

/* ---- Reservation -- */

/* Is the page that the next token goes to shared with another sequence? */
static bool fl_must_copy(const fl_executor *e, const fl_sequence *s) {
    return s->n_tokens % FL_PAGE_TOKENS != 0 && e->pages->references[s->pages[s->n_pages - 1]] > 1;
}

/* Pages that appending n tokens takes from the free list. */
static size_t fl_pages_wanted(const fl_executor *e, const fl_sequence *s, size_t n) {
    return fl_div_up(s->n_tokens + n, FL_PAGE_TOKENS) - s->n_pages + fl_must_copy(e, s);
}

#define FL_PAGE_NONE UINT32_MAX

/* Give the sequence room for n more tokens; enough pages are free. n_tokens does not move. Returns the shared page
 * that was copied, for fl_unreserve, or FL_PAGE_NONE. */
static uint32_t fl_reserve(fl_executor *e, fl_sequence *s, size_t n) {
    uint32_t origin = FL_PAGE_NONE;
    if (fl_must_copy(e, s)) {
        uint32_t *last = &s->pages[s->n_pages - 1], copy = fl_pages_take(e->pages);
        fl_worker_copy_page(e->worker, *last, copy);
        memcpy(e->pages->tokens + (size_t)copy * FL_PAGE_TOKENS, e->pages->tokens + (size_t)*last * FL_PAGE_TOKENS,
               FL_PAGE_TOKENS * sizeof *e->pages->tokens);
        fl_pages_release(e->pages, *last);
        origin = *last;
        *last = copy;
        e->stats.pages_copied++;
    }
    size_t n_pages = fl_div_up(s->n_tokens + n, FL_PAGE_TOKENS);
    while (s->n_pages < n_pages) {
        s->pages[s->n_pages++] = fl_pages_take(e->pages);
    }
    return origin;
}

/* Take back what fl_reserve gave. Whoever else had the origin has it still, so it was not freed. */
static void fl_unreserve(fl_executor *e, fl_sequence *s, uint32_t origin) {
    fl_sequence_cut(s, e->pages, s->n_tokens);
    if (origin != FL_PAGE_NONE) {
        uint32_t *last = &s->pages[s->n_pages - 1];
        fl_pages_release(e->pages, *last);
        fl_pages_share(e->pages, origin);
        *last = origin;
    }
}

static folollm_status fl_no_pages(const fl_executor *e, size_t wanted, folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_POOL,
                   "%u pages of KV cache are needed and %u of %u are free: close or truncate a sequence, or load with "
                   "more pool_tokens",
                   (uint64_t)wanted, (uint64_t)e->pages->n_free, (uint64_t)e->pages->n_pages);
}

/* ---- Batches -- */

static void fl_set_row(fl_executor *e, size_t row, const fl_sequence *s, uint32_t position, folollm_token token) {
    uint32_t slot = s->pages[position / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + position % FL_PAGE_TOKENS;
    e->tokens[row] = token;
    e->positions[row] = position;
    e->slots[row] = slot;
    e->pages->tokens[slot] = token;
}

static void fl_set_run(fl_executor *e, size_t run, size_t row, size_t n_rows, const fl_sequence *s,
                       uint32_t position) {
    e->runs[run].first_row = row;
    e->runs[run].n_rows = n_rows;
    e->runs[run].position = position;
    e->runs[run].pages = s->pages;
}

static void fl_run_batch(fl_executor *e, size_t n_rows, size_t n_runs, size_t n_wanted, float *logits) {
    fl_batch batch = {n_rows, e->tokens, e->positions, e->slots, e->runs, n_runs, e->wanted, n_wanted};
    fl_worker_begin(e->worker, &batch, logits);
    while (!fl_worker_advance(e->worker, fl_worker_whole(e->worker))) {
    }
    e->stats.forwards++;
}

static bool fl_all_finite(const fl_executor *e, const float *logits) {
    fl_backend *backend = &e->worker->cpu.base;
    float max, sum;
    return backend->ops->softmax_stats(backend, logits, fl_vocab_rows(e), &max, &sum);
}

/* ---- Prefill -- */

/* Rows [at, at + n) of the tokens, which follow the sequence's own. Logits of all rows, of the last token, or none. */
static folollm_status fl_prefill_chunk(fl_executor *e, const fl_sequence *s, const folollm_token *tokens, size_t at,
                                       size_t n, bool last, float *all_logits, folollm_error *error) {
    uint32_t position = s->n_tokens + (uint32_t)at;
    for (size_t i = 0; i < n; i++) {
        fl_set_row(e, i, s, position + (uint32_t)i, tokens[at + i]);
        e->wanted[i] = (uint32_t)i;
    }
    fl_set_run(e, 0, 0, n, s, position);
    size_t n_wanted = all_logits != NULL ? n : last;
    float *logits = all_logits != NULL ? fl_logits_row(e, all_logits, at) : e->logits;
    if (all_logits == NULL) {
        e->wanted[0] = (uint32_t)n - 1;
    }
    fl_run_batch(e, n, 1, n_wanted, logits);
    for (size_t i = 0; i < n_wanted; i++) {
        if (!fl_all_finite(e, fl_logits_row(e, logits, i))) {
            return fl_fail(error, FOLOLLM_E_NUMERIC,
                           "the logits at position %u are not finite: are the weights damaged?",
                           (uint64_t)position + (all_logits != NULL ? i : n - 1));
        }
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_executor_prefill(fl_executor *e, fl_sequence *s, const folollm_token *tokens,
                                            size_t n_tokens, float *all_logits, folollm_error *error) {
    if (n_tokens > e->context - s->n_tokens) {
        return fl_fail(error, FOLOLLM_E_CONTEXT, "%u tokens do not fit: the sequence has %u of a context of %u",
                       (uint64_t)n_tokens, (uint64_t)s->n_tokens, (uint64_t)e->context);
    }
    size_t wanted = fl_pages_wanted(e, s, n_tokens);
    if (wanted > e->pages->n_free) {
        return fl_no_pages(e, wanted, error);
    }
    uint32_t origin = fl_reserve(e, s, n_tokens);
    folollm_status status = FOLOLLM_OK;
    for (size_t at = 0; at < n_tokens && status == FOLOLLM_OK; at += e->n_rows) {
        size_t n = fl_min(n_tokens - at, e->n_rows);
        status = fl_prefill_chunk(e, s, tokens, at, n, at + n == n_tokens, all_logits, error);
    }
    if (status != FOLOLLM_OK) {
        fl_unreserve(e, s, origin);
        e->stats.undone++;
        return status;
    }
    s->n_tokens += (uint32_t)n_tokens;
    s->n_prompt = s->n_tokens;
    s->has_logits = true;
    memcpy(s->logits, all_logits != NULL ? fl_logits_row(e, all_logits, n_tokens - 1) : e->logits,
           fl_vocab_rows(e) * sizeof *s->logits);
    fl_sequence_replay(s, e->pages, e->tokenizer);
    e->stats.prompt_tokens += n_tokens;
    return FOLOLLM_OK;
}

/* ---- Decode -- */

/* Find the sequences; every one must be open, there once, and have room. */
static folollm_status fl_decode_check(fl_executor *e, const folollm_seq *seqs, size_t n, folollm_error *error) {
    e->step++;
    if (n > e->sequences->n_slots) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "%u sequences in one step; the engine has %u", (uint64_t)n,
                       (uint64_t)e->sequences->n_slots);
    }
    for (size_t i = 0; i < n; i++) {
        fl_sequence *s = NULL;
        FL_TRY(fl_sequence_find(e->sequences, seqs[i], &s, error));
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
        fl_unreserve(e, e->stepped[i], keep ? FL_PAGE_NONE : e->origins[i]);
    }
    e->stats.undone++;
}

/* One by one, because a copy that one sequence makes of a shared page may spare the next one its own. */
static folollm_status fl_decode_reserve(fl_executor *e, size_t n, folollm_error *error) {
    for (size_t i = 0; i < n; i++) {
        size_t wanted = fl_pages_wanted(e, e->stepped[i], 1);
        if (wanted > e->pages->n_free) {
            fl_no_pages(e, wanted, error);
            fl_decode_undo(e, i, false);
            return FOLOLLM_E_POOL;
        }
        e->origins[i] = fl_reserve(e, e->stepped[i], 1);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_decode_rows(fl_executor *e, const folollm_seq *seqs, const folollm_token *tokens, size_t n,
                                     folollm_error *error) {
    for (size_t at = 0; at < n; at += e->n_rows) {
        size_t rows = fl_min(n - at, e->n_rows);
        for (size_t i = 0; i < rows; i++) {
            const fl_sequence *s = e->stepped[at + i];
            fl_set_row(e, i, s, s->n_tokens, tokens[at + i]);
            fl_set_run(e, i, i, 1, s, s->n_tokens);
            e->wanted[i] = (uint32_t)i;
        }
        fl_run_batch(e, rows, rows, rows, fl_logits_row(e, e->logits, at));
    }
    for (size_t i = 0; i < n; i++) {
        if (!fl_all_finite(e, fl_logits_row(e, e->logits, i))) {
            return fl_fail(error, FOLOLLM_E_NUMERIC,
                           "the logits of sequence %u at position %u are not finite: are the weights damaged?",
                           (uint64_t)seqs[i], (uint64_t)e->stepped[i]->n_tokens);
        }
    }
    return FOLOLLM_OK;
}

static void fl_decode_commit(fl_executor *e, fl_sequence *s, folollm_token token, const float *logits) {
    size_t ignored;
    bool look = s->n_tokens - s->n_prompt + 1 >= s->sampling.s.min_tokens;
    fl_stream_feed(&s->stream, e->tokenizer, &s->sampling, token, look, s->text, &ignored);
    s->n_tokens++;
    s->has_logits = true;
    memcpy(s->logits, logits, fl_vocab_rows(e) * sizeof *logits);
}

FL_LOCAL folollm_status fl_executor_decode(fl_executor *e, const folollm_seq *seqs, const folollm_token *tokens,
                                           size_t n, folollm_error *error) {
    FL_TRY(fl_decode_check(e, seqs, n, error));
    FL_TRY(fl_decode_reserve(e, n, error));
    folollm_status status = fl_decode_rows(e, seqs, tokens, n, error);
    if (status != FOLOLLM_OK) {
        fl_decode_undo(e, n, true);
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        fl_decode_commit(e, e->stepped[i], tokens[i], fl_logits_row(e, e->logits, i));
    }
    e->stats.generated_tokens += n;
    return FOLOLLM_OK;
}
