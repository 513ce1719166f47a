#include "engine/sequences.h"

FL_LOCAL void fl_sequences_layout(fl_sequences *all, fl_arena *arena, uint32_t n_own, uint32_t n_driven,
                                  uint32_t context, uint32_t vocab, size_t text_room) {
    all->n_own = n_own;
    all->n_slots = n_own + n_driven;
    all->table_pages = (uint32_t)fl_div_up(context, FL_PAGE_TOKENS);
    all->slots = fl_take(arena, all->n_slots, sizeof *all->slots);
    for (uint32_t i = 0; i < all->n_slots; i++) {
        uint32_t *pages = fl_take(arena, all->table_pages, sizeof *pages);
        float *logits = i < n_own ? fl_take(arena, vocab, sizeof *logits) : NULL;
        char *text = fl_take(arena, text_room, 1);
        if (all->slots != NULL) {
            all->slots[i].pages = pages;
            all->slots[i].logits = logits;
            all->slots[i].text = text;
        }
    }
}

FL_LOCAL fl_sequence *fl_sequence_vacant(const fl_sequences *all, bool driven) {
    uint32_t end = driven ? all->n_slots : all->n_own;
    for (uint32_t i = driven ? all->n_own : 0; i < end; i++) {
        if (all->slots[i].handle == 0) {
            return &all->slots[i];
        }
    }
    return NULL;
}

FL_LOCAL folollm_seq fl_sequence_occupy(fl_sequences *all, fl_sequence *s) {
    uint32_t slot = (uint32_t)(s - all->slots);
    /* After 2^19 - 1 uses of a slot its generations begin again: a handle kept that long may match. */
    s->generation = s->generation % (UINT32_MAX / FL_SEQS_MAX) + 1;
    all->n_open += slot < all->n_own;
    folollm_seq id = s->generation * FL_SEQS_MAX + slot;
    fl_atomic_store(&s->cancelled, (folollm_seq)0);
    fl_atomic_store(&s->handle, id);
    return id;
}

FL_LOCAL fl_sequence *fl_sequence_open(fl_sequences *all, bool driven, folollm_seq *id) {
    fl_sequence *s = fl_sequence_vacant(all, driven);
    if (s != NULL) {
        s->has_logits = s->logits_away = false;
        s->adapter = NULL;
        s->n_tokens = s->n_prompt = s->n_pages = 0;
        memset(&s->stream, 0, sizeof s->stream);
        *id = fl_sequence_occupy(all, s);
    }
    return s;
}

FL_LOCAL folollm_status fl_sequence_find(const fl_sequences *all, folollm_seq id, fl_sequence **out,
                                         folollm_error *error) {
    uint32_t slot = id % FL_SEQS_MAX, generation = id / FL_SEQS_MAX;
    if (slot >= all->n_slots || generation == 0) {
        return fl_fail(error, FOLOLLM_E_SEQUENCE, "sequence %u was never opened on this engine", (uint64_t)id);
    }
    fl_sequence *s = &all->slots[slot];
    if (fl_atomic_load(&s->handle) != id) {
        return fl_fail(error, FOLOLLM_E_SEQUENCE, "sequence %u is closed", (uint64_t)id);
    }
    *out = s;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_sequence_find_own(const fl_sequences *all, folollm_seq id, fl_sequence **out,
                                             folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_sequence_find(all, id, &s, error));
    if (s >= all->slots + all->n_own) {
        return fl_fail(error, FOLOLLM_E_STATE, "sequence %u was submitted: folollm_step drives it", (uint64_t)id);
    }
    *out = s;
    return FOLOLLM_OK;
}

FL_LOCAL bool fl_sequences_use(const fl_sequences *all, const fl_adapter *adapter) {
    bool used = false;
    for (uint32_t i = 0; i < all->n_slots; i++) {
        used = used || (all->slots[i].handle != 0 && all->slots[i].adapter == adapter);
    }
    return used;
}

/* The wish that stands in the slot is replaced only if it is still the one that stood there while the handle was right:
 * by now the slot may be another's, with a wish of its own. */
FL_LOCAL folollm_status fl_sequence_cancel(fl_sequences *all, folollm_seq id, folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_sequence_find(all, id, &s, error));
    folollm_seq wish = fl_atomic_load(&s->cancelled);
    do {
        FL_TRY(fl_sequence_find(all, id, &s, error));
    } while (!fl_atomic_swap_if(&s->cancelled, &wish, id));
    fl_atomic_store(&all->any_cancel, true);
    return FOLOLLM_OK;
}

FL_LOCAL void fl_sequence_trim(fl_sequence *s, fl_pages *pages, uint32_t n) {
    uint32_t kept = (uint32_t)fl_div_up(n, FL_PAGE_TOKENS);
    while (s->n_pages > kept) {
        fl_pages_release(pages, s->pages[--s->n_pages]);
    }
}

FL_LOCAL void fl_sequence_cut(fl_sequence *s, fl_pages *pages, uint32_t n_tokens) {
    fl_sequence_trim(s, pages, n_tokens);
    s->n_tokens = n_tokens;
    s->n_prompt = s->n_prompt < n_tokens ? s->n_prompt : n_tokens;
}

FL_LOCAL void fl_sequence_close(fl_sequences *all, fl_sequence *s, fl_pages *pages) {
    fl_sequence_cut(s, pages, 0);
    fl_atomic_store(&s->handle, (folollm_seq)0);
    all->n_open -= s < all->slots + all->n_own;
}

/* Is the page that the next token goes to shared with another sequence? */
static bool fl_sequence_must_copy(const fl_sequence *s, const fl_pages *pages) {
    return s->n_tokens % FL_PAGE_TOKENS != 0 && pages->references[s->pages[s->n_pages - 1]] > 1;
}

FL_LOCAL size_t fl_sequence_pages_wanted(const fl_sequence *s, const fl_pages *pages, size_t n) {
    return fl_div_up(s->n_tokens + n, FL_PAGE_TOKENS) - s->n_pages + fl_sequence_must_copy(s, pages);
}

FL_LOCAL uint32_t fl_sequence_reserve(fl_sequence *s, fl_pages *pages, size_t n) {
    uint32_t origin = FL_PAGE_NONE;
    if (fl_sequence_must_copy(s, pages)) {
        uint32_t *last = &s->pages[s->n_pages - 1], copy = fl_pages_take(pages);
        memcpy(pages->tokens + (size_t)copy * FL_PAGE_TOKENS, pages->tokens + (size_t)*last * FL_PAGE_TOKENS,
               FL_PAGE_TOKENS * sizeof *pages->tokens);
        fl_pages_release(pages, *last);
        origin = *last;
        *last = copy;
    }
    size_t n_pages = fl_div_up(s->n_tokens + n, FL_PAGE_TOKENS);
    while (s->n_pages < n_pages) {
        s->pages[s->n_pages++] = fl_pages_take(pages);
    }
    return origin;
}

FL_LOCAL void fl_sequence_unreserve(fl_sequence *s, fl_pages *pages, uint32_t origin) {
    fl_sequence_cut(s, pages, s->n_tokens);
    if (origin != FL_PAGE_NONE) {
        uint32_t *last = &s->pages[s->n_pages - 1];
        fl_pages_release(pages, *last);
        fl_pages_share(pages, origin);
        *last = origin;
    }
}

FL_LOCAL void fl_sequence_share(fl_sequence *to, const fl_sequence *from, fl_pages *pages) {
    size_t n = fl_div_up(from->n_tokens, FL_PAGE_TOKENS);
    for (size_t i = 0; i < n; i++) {
        to->pages[i] = from->pages[i];
        fl_pages_share(pages, from->pages[i]);
    }
    to->n_pages = (uint32_t)n;
    to->n_tokens = from->n_tokens;
}

FL_LOCAL void fl_sequence_fork(fl_sequence *to, const fl_sequence *from, fl_pages *pages, uint32_t vocab) {
    fl_sequence_share(to, from, pages);
    to->n_prompt = from->n_prompt;
    to->has_logits = from->has_logits;
    if (from->has_logits) {
        memcpy(to->logits, from->logits, vocab * sizeof *to->logits);
    }
    to->adapter = from->adapter;
    to->sampling = from->sampling;
    to->stream = from->stream;
}

FL_LOCAL fl_history fl_sequence_history(const fl_sequence *s, const fl_pages *pages) {
    fl_history h = {pages->tokens, s->pages, s->n_tokens, s->n_prompt};
    return h;
}

FL_LOCAL void fl_sequence_replay(fl_sequence *s, const fl_pages *pages, const fl_tokenizer *t) {
    fl_history h = fl_sequence_history(s, pages);
    size_t n;
    memset(&s->stream, 0, sizeof s->stream);
    if (s->n_prompt > 0) {
        fl_detokenizer_begin_inside(&s->stream.detokenizer);
    }
    for (uint32_t i = s->n_prompt; i < s->n_tokens; i++) {
        bool look = i - s->n_prompt + 1 >= s->sampling.s.min_tokens;
        fl_stream_feed(&s->stream, t, &s->sampling, fl_history_at(&h, i), look, s->text, &n);
    }
}

/* ---- The next token -- */

FL_LOCAL bool fl_sequence_is_full(const fl_sequence *s, uint32_t n, uint32_t limit) {
    uint32_t max = s->sampling.s.max_tokens;
    return (max != 0 && n - s->n_prompt + 1 >= max) || n + 1 >= limit;
}

/* Try the token on a copy of the stream: what it adds to the text, and whether that ends it. */
static void fl_sequence_try(const fl_sequence *s, const fl_chooser *c, fl_stream *after, folollm_sampled *out) {
    uint32_t n_output = s->n_tokens - s->n_prompt + 1, min = s->sampling.s.min_tokens;
    *after = s->stream;
    out->text = s->text;
    out->n_bytes = 0;
    out->stop_index = -1;
    out->finish = FOLOLLM_FINISH_NONE;
    if (n_output > min && fl_sampling_stops_at(&s->sampling, out->token)) {
        out->finish = FOLOLLM_FINISH_STOP_ID;
        fl_stream_finish(after, s->text, &out->n_bytes);
        return;
    }
    out->stop_index =
        fl_stream_feed(after, c->tokenizer, &s->sampling, out->token, n_output >= min, s->text, &out->n_bytes);
    if (out->stop_index >= 0) {
        out->finish = FOLOLLM_FINISH_STOP_STRING;
    } else if (fl_sequence_is_full(s, s->n_tokens, c->limit)) {
        out->finish = FOLOLLM_FINISH_LENGTH;
        fl_stream_finish(after, s->text, &out->n_bytes);
    }
}

FL_LOCAL bool fl_sequence_choose(const fl_sequence *s, const fl_chooser *c, const fl_device_chosen *made,
                                 const float *logits, fl_stream *after, folollm_sampled *out, folollm_logprob *top,
                                 size_t n_top) {
    fl_history history = fl_sequence_history(s, c->pages);
    folollm_logprob chosen;
    if (made != NULL ? !fl_sampler_accept(made, &chosen)
                     : !fl_sampler_choose(c->sampler, &s->sampling, logits, &history, &chosen, top, n_top)) {
        return false;
    }
    out->token = chosen.token;
    out->chosen = chosen;
    fl_sequence_try(s, c, after, out);
    return true;
}
