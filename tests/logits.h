/* The logits of a model, and how far those of two are apart; behind inside.h and check.h. */
#ifndef LOGITS_H
#define LOGITS_H

#include <stdlib.h>

#define N_IDS 40

/* Of every position of a text that is the same for every model of so many ids; NULL: it does not open. Of the
 * options, context, n_threads, chunk and kv are its own; NULL: so are all. */
static float *logits_of(const char *path, const folollm_options *options, uint32_t *vocab) {
    folollm_options o = options != NULL ? *options : (folollm_options){0};
    folollm_error error = {0};
    folollm_info info;
    folollm *f = NULL;
    folollm_seq seq;
    folollm_sampling greedy = {.ignore_eos = 1};
    o.context = 48;
    o.n_threads = 2;
    o.chunk = 7;
    o.kv = FOLOLLM_KV_F32;
    if (!CHECK(folollm_load(path, &o, &f, &error) == FOLOLLM_OK)) {
        printf("    %s: %s\n", path, error.text);
        return NULL;
    }
    folollm_get_info(f, &info);
    *vocab = info.vocab;
    folollm_token ids[N_IDS];
    for (uint32_t i = 0; i < N_IDS; i++) {
        ids[i] = (folollm_token)(fl_mix(i + 1) % info.vocab);
    }
    float *logits = malloc((size_t)N_IDS * info.vocab * sizeof *logits);
    CHECK(folollm_seq_open(f, &greedy, &seq, NULL) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, ids, N_IDS, logits, NULL) == FOLOLLM_OK);
    folollm_free(f);
    return logits;
}

/* Squared error of a by the size of b. */
static double nmse(const float *a, const float *b, size_t n) {
    double difference = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        total += (double)b[i] * b[i];
    }
    return difference / total;
}

#endif
