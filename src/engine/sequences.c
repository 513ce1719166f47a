#include "engine/sequences.h"

FL_LOCAL void fl_sequences_layout(fl_sequences *all, fl_arena *arena, uint32_t n_slots, uint32_t context,
                                  uint32_t vocab, size_t text_room) {
    all->n_slots = n_slots;
    all->table_pages = (uint32_t)fl_div_up(context, FL_PAGE_TOKENS);
    all->slots = fl_take(arena, n_slots, sizeof *all->slots);
    for (uint32_t i = 0; i < n_slots; i++) {
        uint32_t *pages = fl_take(arena, all->table_pages, sizeof *pages);
        float *logits = fl_take(arena, vocab, sizeof *logits);
        char *text = fl_take(arena, text_room, 1);
        if (all->slots != NULL) {
            all->slots[i].pages = pages;
            all->slots[i].logits = logits;
            all->slots[i].text = text;
        }
    }
}

FL_LOCAL fl_sequence *fl_sequence_open(fl_sequences *all, folollm_seq *id) {
    for (uint32_t i = 0; i < all->n_slots; i++) {
        fl_sequence *s = &all->slots[i];
        if (s->open) {
            continue;
        }
        /* After 2^20 - 1 uses of a slot its generations begin again: a handle kept that long may match. */
        s->generation = s->generation % (UINT32_MAX / FL_SEQS_MAX) + 1;
        s->open = true;
        s->has_logits = false;
        s->n_tokens = s->n_prompt = s->n_pages = 0;
        memset(&s->stream, 0, sizeof s->stream);
        all->n_open++;
        *id = s->generation * FL_SEQS_MAX + i;
        return s;
    }
    return NULL;
}

FL_LOCAL folollm_status fl_sequence_find(const fl_sequences *all, folollm_seq id, fl_sequence **out,
                                         folollm_error *error) {
    uint32_t slot = id % FL_SEQS_MAX, generation = id / FL_SEQS_MAX;
    if (slot >= all->n_slots || generation == 0) {
        return fl_fail(error, FOLOLLM_E_SEQUENCE, "sequence %u was never opened on this engine", (uint64_t)id);
    }
    fl_sequence *s = &all->slots[slot];
    if (!s->open || s->generation != generation) {
        return fl_fail(error, FOLOLLM_E_SEQUENCE, "sequence %u is closed", (uint64_t)id);
    }
    *out = s;
    return FOLOLLM_OK;
}

FL_LOCAL void fl_sequence_cut(fl_sequence *s, fl_pages *pages, uint32_t n_tokens) {
    uint32_t kept = (uint32_t)fl_div_up(n_tokens, FL_PAGE_TOKENS);
    while (s->n_pages > kept) {
        fl_pages_release(pages, s->pages[--s->n_pages]);
    }
    s->n_tokens = n_tokens;
    s->n_prompt = s->n_prompt < n_tokens ? s->n_prompt : n_tokens;
}

FL_LOCAL void fl_sequence_close(fl_sequences *all, fl_sequence *s, fl_pages *pages) {
    fl_sequence_cut(s, pages, 0);
    s->open = false;
    all->n_open--;
}

FL_LOCAL void fl_sequence_fork(fl_sequence *to, const fl_sequence *from, fl_pages *pages, uint32_t vocab) {
    for (uint32_t i = 0; i < from->n_pages; i++) {
        to->pages[i] = from->pages[i];
        fl_pages_share(pages, from->pages[i]);
    }
    to->n_pages = from->n_pages;
    to->n_tokens = from->n_tokens;
    to->n_prompt = from->n_prompt;
    to->has_logits = from->has_logits;
    if (from->has_logits) {
        memcpy(to->logits, from->logits, vocab * sizeof *to->logits);
    }
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
