/* A model out of the input: loaded, and two tokens computed. Behind fuzz.h. */
#ifndef FUZZ_MODEL_H
#define FUZZ_MODEL_H

/* Two tokens, whose logits may be no numbers if the weights are none. */
static void fuzz_compute(folollm *f) {
    folollm_token token = 0;
    folollm_seq seq;
    FUZZ_CHECK(folollm_seq_open(f, NULL, &seq, &fuzz_error) == FOLOLLM_OK);
    folollm_status status = fuzz_status(folollm_prefill(f, seq, &token, 1, NULL, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_NUMERIC);
    if (status == FOLOLLM_OK) {
        folollm_sampled next;
        fuzz_status(folollm_sample(f, seq, &next, NULL, 0, &fuzz_error));
        status = fuzz_status(folollm_decode_step(f, &seq, &token, 1, &fuzz_error));
        FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_NUMERIC);
    }
}

#define FUZZ_MODEL_LIMIT(size) (128 * (size) + 64 * FUZZ_KIB)

static void fuzz_load(const char *path, bool copy) {
    folollm_options o = {.host = &fuzz.hooks, .context = 2, .max_seqs = 1, .max_requests = 1, .max_running = 1,
                         .chunk = 1, .n_threads = 1, .isa = FOLOLLM_ISA_SCALAR, .copy_weights = copy};
    folollm *f = NULL;
    folollm_status status = fuzz_status(folollm_load(path, &o, &f, &fuzz_error));
    if (status == FOLOLLM_OK) {
        fuzz_compute(f);
        folollm_free(f);
    }
}

#endif
