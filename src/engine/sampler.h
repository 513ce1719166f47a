/* The sampler: from logits to a token. Nothing of it is state: the same logits, history, options and position give
 * the same token, whoever asks and how often. */
#ifndef FL_SAMPLER_H
#define FL_SAMPLER_H

#include "engine/pages.h"
#include "ops/device.h"
#include "ops/kernels.h"

#define FL_BIASES_MAX 256
#define FL_STOP_IDS_MAX 64
#define FL_STOPS_MAX 16
#define FL_STOP_BYTES 128
#define FL_STAGES_MAX 8

/* folollm_sampling, checked and with its arrays inside. */
typedef struct fl_sampling {
    folollm_sampling s; /* its pointers are not used; stop_ids and eos are joined below */
    folollm_stage order[FL_STAGES_MAX];
    uint32_t n_biases, n_stop_ids, n_stops;
    folollm_bias biases[FL_BIASES_MAX];
    folollm_token stop_ids[FL_STOP_IDS_MAX];
    uint8_t stop_bytes[FL_STOPS_MAX];
    char stops[FL_STOPS_MAX][FL_STOP_BYTES];
} fl_sampling;

/* Check and copy; NULL: greedy. eos: the checkpoint's. FOLOLLM_E_ARGUMENT names the field. */
FL_LOCAL folollm_status fl_sampling_init(fl_sampling *out, const folollm_sampling *in, const folollm_token *eos,
                                         size_t n_eos, uint32_t vocab, folollm_error *error);

FL_LOCAL bool fl_sampling_stops_at(const fl_sampling *s, folollm_token id);

/* Scratch of one engine, and what is known of its vocabulary. */
typedef struct fl_sampler {
    const fl_kernels *kernels;
    uint32_t vocab;
    float *logits;     /* (vocab) after penalties and biases, then of candidates, as the stages leave them */
    folollm_token *ids; /* (vocab) of candidates */
    uint32_t *weights; /* (vocab) theirs; or which of them */
    uint32_t *counts;  /* (vocab) occurrences, zero between calls */
    uint64_t *bins;    /* (FL_BINS) of a histogram */
    const folollm_token *holes; /* (n_holes) ids that no token has: never sampled */
    size_t n_holes;
} fl_sampler;

#define FL_BINS 2048

FL_LOCAL void fl_sampler_layout(fl_sampler *s, fl_arena *arena, uint32_t vocab);

/* The tokens before, page by page. */
typedef struct fl_history {
    const folollm_token *store; /* of the page pool */
    const uint32_t *pages;
    uint32_t n_tokens, n_prompt;
} fl_history;

FL_INLINE folollm_token fl_history_at(const fl_history *h, uint32_t i) {
    return h->store[h->pages[i / FL_PAGE_TOKENS] * (size_t)FL_PAGE_TOKENS + i % FL_PAGE_TOKENS];
}

/* What a device is to choose as fl_sampler_choose would. False, and nothing asked: penalties, biases or bans of stop
 * ids stand before the stages, and a device does not know them. */
FL_LOCAL bool fl_sampler_ask(const fl_sampling *options, const fl_history *history, fl_device_choice *out);

/* What it chose, as fl_sampler_choose says it. */
FL_LOCAL bool fl_sampler_accept(const fl_device_chosen *made, folollm_logprob *chosen);

/* Choose the token at position history->n_tokens. logits (vocab): finite. top (n_top <= vocab): see folollm_sample.
 * False: every token is banned. */
FL_LOCAL bool fl_sampler_choose(fl_sampler *s, const fl_sampling *options, const float *logits,
                                const fl_history *history, folollm_logprob *chosen, folollm_logprob *top,
                                size_t n_top);

#endif
