/* The smallest whole program around folollm: continue a text. */
#include "folollm.h"
#include <stdio.h>
#include <stdlib.h>

static folollm_error error;

static void check(folollm_status status) {
    if (status != FOLOLLM_OK) { fprintf(stderr, "%s\n", error.text); exit(1); }
}

int main(int argc, char **argv) {
    folollm *llm; folollm_seq seq; folollm_sampled next; folollm_token prompt[64]; size_t n_prompt = 64;
    folollm_sampling sampling = {.temperature = 0.8f, .top_k = 50, .seed = 1, .max_tokens = 200};

    check(folollm_load(argc > 1 ? argv[1] : "examples/models/tiny-shakespeare", NULL, &llm, &error));
    check(folollm_tokenize(llm, "ROMEO:", 6, NULL, 0, 0, prompt, &n_prompt, &error));
    check(folollm_seq_open(llm, &sampling, &seq, &error));
    check(folollm_prefill(llm, seq, prompt, n_prompt, NULL, &error));
    for (;;) {
        check(folollm_sample(llm, seq, &next, NULL, 0, &error));
        fwrite(next.text, 1, next.n_bytes, stdout);
        if (next.finish != FOLOLLM_FINISH_NONE) { break; }
        check(folollm_decode_step(llm, &seq, &next.token, 1, &error));
    }
    folollm_free(llm);
}
