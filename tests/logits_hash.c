/* Prints lines "model kv isa threads hash" for every table of kernels that this machine has: the hash is over all logits
 * of a prompt and a few greedy steps, and over the log-probabilities that sample computes. Equal lines from two builds
 * mean equal bits.
 *
 *     logits_hash MODEL...
 *
 * With FOLOLLM_PREFIX it calls that copy. */
#include "../folollm.h"

#include <stdio.h>
#include <stdlib.h>

#define N_STEPS 4

static folollm_error error;

static void check(folollm_status status) {
    if (status != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(1);
    }
}

static uint64_t fnv(uint64_t hash, const void *data, size_t n_bytes) {
    const unsigned char *byte = (const unsigned char *)data;
    for (size_t i = 0; i < n_bytes; i++) {
        hash = (hash ^ byte[i]) * 1099511628211u;
    }
    return hash;
}

static uint64_t run(folollm *llm) {
    static const char text[] = "ROMEO:\nWhat light through yonder window breaks?";
    folollm_info info;
    folollm_token prompt[64];
    folollm_seq seq;
    size_t n = 64;
    uint64_t hash = 14695981039346656037u;
    folollm_get_info(llm, &info);
    check(folollm_tokenize(llm, text, sizeof text - 1, NULL, 0, 0, prompt, &n, &error));
    float *rows = malloc(n * info.vocab * sizeof *rows);
    check(folollm_seq_open(llm, NULL, &seq, &error));
    check(folollm_prefill(llm, seq, prompt, n, rows, &error));
    hash = fnv(hash, rows, n * info.vocab * sizeof *rows);
    free(rows);
    for (int step = 0; step < N_STEPS; step++) {
        folollm_sampled next;
        const float *logits;
        check(folollm_sample(llm, seq, &next, NULL, 0, &error));
        hash = fnv(hash, &next.chosen, sizeof next.chosen);
        check(folollm_decode_step(llm, &seq, &next.token, 1, &error));
        check(folollm_logits(llm, seq, &logits, &error));
        hash = fnv(hash, logits, info.vocab * sizeof *logits);
    }
    return hash;
}

int main(int argc, char **argv) {
    static const struct {
        folollm_kv_type kv;
        uint32_t n_threads;
        folollm_weights weights;
    } runs[] = {{FOLOLLM_KV_F16, 1, FOLOLLM_WEIGHTS_AS_STORED},  {FOLOLLM_KV_F16, 3, FOLOLLM_WEIGHTS_AS_STORED},
                {FOLOLLM_KV_F32, 2, FOLOLLM_WEIGHTS_AS_STORED},  {FOLOLLM_KV_BF16, 1, FOLOLLM_WEIGHTS_AS_STORED},
                {FOLOLLM_KV_Q8, 2, FOLOLLM_WEIGHTS_AS_STORED},   {FOLOLLM_KV_Q4, 1, FOLOLLM_WEIGHTS_AS_STORED},
                {FOLOLLM_KV_F16, 2, FOLOLLM_WEIGHTS_Q8},         {FOLOLLM_KV_F16, 1, FOLOLLM_WEIGHTS_Q8_ROW},
                {FOLOLLM_KV_F16, 1, FOLOLLM_WEIGHTS_Q4},         {FOLOLLM_KV_Q8, 2, FOLOLLM_WEIGHTS_Q4_K},
                {FOLOLLM_KV_F16, 2, FOLOLLM_WEIGHTS_Q5_K},       {FOLOLLM_KV_F16, 1, FOLOLLM_WEIGHTS_Q6_K}};
    static const folollm_isa isas[] = {FOLOLLM_ISA_SCALAR, FOLOLLM_ISA_AVX2, FOLOLLM_ISA_AVX512,
                                       FOLOLLM_ISA_NEON};
    for (int model = 1; model < argc; model++) {
        for (size_t i = 0; i < sizeof runs / sizeof runs[0] * 4; i++) {
            folollm_options options = {0};
            folollm_info info;
            folollm *llm;
            options.kv = runs[i / 4].kv;
            options.n_threads = runs[i / 4].n_threads;
            options.weights = runs[i / 4].weights;
            options.isa = isas[i % 4];
            options.context = 128;
            folollm_status status = folollm_load(argv[model], &options, &llm, &error);
            if (status == FOLOLLM_E_UNSUPPORTED && options.isa != FOLOLLM_ISA_SCALAR) {
                continue;
            }
            check(status);
            folollm_get_info(llm, &info);
            printf("%s w%d kv%d %s %u %016llx\n", argv[model], (int)options.weights, (int)info.kv, info.kernels, info.n_threads,
                   (unsigned long long)run(llm));
            folollm_free(llm);
        }
    }
    return 0;
}
