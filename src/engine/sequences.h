/* Sequences: the slots of an engine, their page tables, samplers and text streams. The first slots are for the host's
 * own loop and keep logits; the others are driven by the scheduler. */
#ifndef FL_SEQUENCES_H
#define FL_SEQUENCES_H

#include "base/os.h"
#include "engine/stream.h"
#include "model/adapter.h"

#define FL_SEQS_MAX 8192u /* a folollm_seq is generation * FL_SEQS_MAX + slot */

typedef struct fl_sequence {
    folollm_seq handle;    /* atomic: of the sequence in this slot; 0: the slot is free */
    folollm_seq cancelled; /* atomic: the handle that some thread wants to stop */
    uint32_t generation;   /* of the last handle, above 0 */
    bool has_logits;
    uint64_t step;         /* the last decode step that named it */
    uint32_t n_tokens, n_prompt; /* n_prompt <= n_tokens <= context, but n_tokens < n_prompt while driven to there */
    uint32_t n_pages;            /* = n_tokens in pages, rounded up; more between reserve and commit */
    uint32_t *pages;             /* (pages of a context) */
    float *logits;               /* (vocab) after the last token, if has_logits; NULL: driven, never has any */
    bool logits_away;            /* they are not there but with the worker, which also chose from them: */
    uint32_t away;               /* at which of two places of this slot, and */
    fl_device_chosen chosen;     /* what `sampling` makes of them */
    const fl_adapter *adapter;   /* NULL: none */
    fl_sampling sampling;
    fl_stream stream;            /* of the output so far */
    char *text;                  /* (room of a stream) what the last sample gave */
} fl_sequence;

typedef struct fl_sequences {
    uint32_t n_slots, n_own; /* slots [n_own, n_slots) are driven */
    uint32_t n_open;         /* of the own ones */
    uint32_t table_pages;
    bool any_cancel; /* atomic: some slot's `cancelled` was set since this was last false */
    fl_sequence *slots;
} fl_sequences;

FL_LOCAL void fl_sequences_layout(fl_sequences *all, fl_arena *arena, uint32_t n_own, uint32_t n_driven,
                                  uint32_t context, uint32_t vocab, size_t text_room);

/* A free slot of either kind, which holds no pages; NULL: none is free. */
FL_LOCAL fl_sequence *fl_sequence_vacant(const fl_sequences *all, bool driven);

/* Open it as it is; returns its handle. */
FL_LOCAL folollm_seq fl_sequence_occupy(fl_sequences *all, fl_sequence *s);

/* A free slot of either kind, now open and empty; NULL: none is free. */
FL_LOCAL fl_sequence *fl_sequence_open(fl_sequences *all, bool driven, folollm_seq *id);

/* The open sequence of a handle, of either kind; FOLOLLM_E_SEQUENCE says what is wrong with it. Any thread may ask. */
FL_LOCAL folollm_status fl_sequence_find(const fl_sequences *all, folollm_seq id, fl_sequence **out,
                                         folollm_error *error);

/* The same for the host's own calls: one that is driven is FOLOLLM_E_STATE. */
FL_LOCAL folollm_status fl_sequence_find_own(const fl_sequences *all, folollm_seq id, fl_sequence **out,
                                             folollm_error *error);

/* Does an open sequence of either kind have this adapter? */
FL_LOCAL bool fl_sequences_use(const fl_sequences *all, const fl_adapter *adapter);

FL_INLINE bool fl_sequence_is_cancelled(const fl_sequence *s) {
    return fl_atomic_load(&s->cancelled) == s->handle;
}

/* See folollm_cancel. From any thread: it reads only what load wrote, and atomics. */
FL_LOCAL folollm_status fl_sequence_cancel(fl_sequences *all, folollm_seq id, folollm_error *error);

/* Keep the first n_tokens; pages behind them are released, the last one first. */
FL_LOCAL void fl_sequence_cut(fl_sequence *s, fl_pages *pages, uint32_t n_tokens);

/* Release the pages behind those of n tokens, the last one first; n_tokens does not move. */
FL_LOCAL void fl_sequence_trim(fl_sequence *s, fl_pages *pages, uint32_t n);
FL_LOCAL void fl_sequence_close(fl_sequences *all, fl_sequence *s, fl_pages *pages);

/* Pages that appending n tokens takes from the free ones. */
FL_LOCAL size_t fl_sequence_pages_wanted(const fl_sequence *s, const fl_pages *pages, size_t n);

/* Give the sequence room for n more tokens; enough pages are free. n_tokens does not move. If the page that the next
 * token goes to is shared, another takes its place: then the shared one is returned, whose keys and values the caller
 * copies to s->pages[s->n_tokens / FL_PAGE_TOKENS]; else FL_PAGE_NONE. */
FL_LOCAL uint32_t fl_sequence_reserve(fl_sequence *s, fl_pages *pages, size_t n);

/* Take back what fl_sequence_reserve gave. Whoever else had the origin has it still, so it was not freed. */
FL_LOCAL void fl_sequence_unreserve(fl_sequence *s, fl_pages *pages, uint32_t origin);

/* Make `to`, just opened, hold the pages of `from`. */
FL_LOCAL void fl_sequence_share(fl_sequence *to, const fl_sequence *from, fl_pages *pages);

/* The same, and all else that `from` is, whose logits are not away. */
FL_LOCAL void fl_sequence_fork(fl_sequence *to, const fl_sequence *from, fl_pages *pages, uint32_t vocab);

FL_LOCAL fl_history fl_sequence_history(const fl_sequence *s, const fl_pages *pages);

/* The stream as it is after the output tokens before n_tokens. */
FL_LOCAL void fl_sequence_replay(fl_sequence *s, const fl_pages *pages, const fl_tokenizer *t);

/* What choosing a token needs beside the sequence. */
typedef struct fl_chooser {
    fl_sampler *sampler;
    const fl_pages *pages;
    const fl_tokenizer *tokenizer; /* NULL: no text */
    uint32_t limit;                /* tokens of a sequence, at most */
} fl_chooser;

/* Is the output token behind the first n tokens the last one, whatever it is? limit: see fl_chooser. */
FL_LOCAL bool fl_sequence_is_full(const fl_sequence *s, uint32_t n, uint32_t limit);

/* See folollm_sample. The sequence does not change; *after is its stream with the token in it. made: a device chose it
 * already; NULL: from logits. False: every token is banned. */
FL_LOCAL bool fl_sequence_choose(const fl_sequence *s, const fl_chooser *c, const fl_device_chosen *made,
                                 const float *logits, fl_stream *after, folollm_sampled *out, folollm_logprob *top,
                                 size_t n_top);

#endif
