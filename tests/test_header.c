/* The header alone, before any other: valid C99 and, through test_header.cpp, C++11. Every function is called, most of
 * them with arguments that the contract refuses: outputs stay untouched and the error says why. */
#include "../folollm.h"

#include "check.h"

#include <string.h>

#define MODEL "examples/models/tiny-shakespeare"

static folollm_error error;

static void check_library(void) {
    CHECK(strcmp(folollm_version(), FOLOLLM_VERSION) == 0);
    CHECK(strspn(folollm_source_hash(), "0123456789abcdef") == 64 && folollm_source_hash()[64] == 0);
    for (int status = FOLOLLM_E_DEVICE - 1; status <= FOLOLLM_OK + 1; status++) {
        const char *text = folollm_status_text((folollm_status)status);
        CHECK(text != NULL && text[0] != 0);
    }
}

static void check_model(void) {
    folollm *untouched = NULL;
    folollm_memory memory;
    memset(&memory, 0, sizeof memory);
    CHECK(folollm_plan("no such folder", NULL, &memory, &error) == FOLOLLM_E_IO);
    CHECK(error.status == FOLOLLM_E_IO && strstr(error.text, "no such folder") != NULL);
    CHECK(memory.allocated == 0);
    CHECK(folollm_load("no such folder", NULL, &untouched, NULL) == FOLOLLM_E_IO && untouched == NULL);
    CHECK(folollm_load(NULL, NULL, &untouched, &error) == FOLOLLM_E_ARGUMENT && untouched == NULL);
    CHECK(folollm_share(NULL, NULL, &untouched, &error) == FOLOLLM_E_ARGUMENT && untouched == NULL);
    CHECK(folollm_plan(MODEL, NULL, &memory, &error) == FOLOLLM_OK && memory.allocated > 0);
    folollm_free(NULL);
}

static void check_text(folollm *llm) {
    folollm_token tokens[16];
    folollm_message message = {"user", "hi", 2};
    folollm_span trusted[8];
    char text[64];
    size_t n_tokens = 16, n_bytes = sizeof text, n_trusted = 8;
    CHECK(folollm_tokenize(llm, "To be", 5, NULL, 0, 0, tokens, &n_tokens, &error) == FOLOLLM_OK && n_tokens > 0);
    CHECK(folollm_detokenize(llm, tokens, n_tokens, 0, text, &n_bytes, &error) == FOLOLLM_OK);
    CHECK(n_bytes == 5 && memcmp(text, "To be", 5) == 0);
    n_tokens = 0;
    CHECK(folollm_tokenize(llm, "To be", 5, NULL, 0, 0, NULL, &n_tokens, NULL) == FOLOLLM_E_BUFFER && n_tokens > 0);
    n_bytes = sizeof text;
    CHECK(folollm_chat(llm, &message, 1, NULL, 0, text, &n_bytes, trusted, &n_trusted, &error) ==
          FOLOLLM_E_UNSUPPORTED);
}

static void check_loop(folollm *llm) {
    static const folollm_token prompt[] = {1, 2, 3};
    folollm_sampling sampling;
    folollm_seq seq = 0, fork = 0;
    folollm_sampled next;
    folollm_logprob top[2];
    folollm_token tokens[8];
    folollm_stats stats;
    const float *logits = NULL;
    size_t n_tokens = 8;
    folollm_default_sampling(llm, &sampling);
    CHECK(folollm_seq_open(llm, &sampling, &seq, &error) == FOLOLLM_OK && seq != 0);
    CHECK(folollm_logits(llm, seq, &logits, &error) == FOLOLLM_E_STATE && logits == NULL);
    CHECK(folollm_prefill(llm, seq, prompt, 3, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_fork(llm, seq, NULL, &fork, &error) == FOLOLLM_OK && fork != 0 && fork != seq);
    CHECK(folollm_sample(llm, seq, &next, top, 2, &error) == FOLOLLM_OK && next.token >= 0);
    CHECK(folollm_decode_step(llm, &seq, &next.token, 1, &error) == FOLOLLM_OK);
    CHECK(folollm_logits(llm, seq, &logits, &error) == FOLOLLM_OK && logits != NULL);
    CHECK(folollm_seq_tokens(llm, seq, tokens, &n_tokens, &error) == FOLOLLM_OK && n_tokens == 4);
    CHECK(folollm_seq_truncate(llm, seq, 2, &error) == FOLOLLM_OK);
    folollm_get_stats(llm, &stats);
    CHECK(stats.prompt_tokens == 3 && stats.generated_tokens == 1 && stats.seqs_open == 2);
    CHECK(folollm_seq_close(llm, seq, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(llm, seq, &error) == FOLOLLM_E_SEQUENCE);
}

static int refuse_write(void *user, const void *bytes, size_t n) {
    return bytes != NULL && n > 0 && ++*(int *)user != 0;
}

static int refuse_read(void *user, void *bytes, size_t n) {
    return bytes != NULL && n > 0 && ++*(int *)user != 0;
}

static void check_requests(folollm *llm) {
    static const folollm_token prompt[] = {1, 2, 3};
    folollm_submission submission;
    folollm_event event;
    folollm_seq seqs[2] = {0, 0}, seq = 0, restored = 0;
    size_t n_events = 1, n_bytes = 0;
    int n_calls = 0;
    char bytes[1];
    memset(&submission, 0, sizeof submission);
    submission.prompt = prompt;
    submission.n_prompt = 3;
    submission.n_answers = 2;
    CHECK(folollm_submit(llm, &submission, seqs, &error) == FOLOLLM_OK && seqs[0] != 0 && seqs[1] != seqs[0]);
    CHECK(folollm_step(llm, NULL, &event, &n_events, &error) == FOLOLLM_OK && n_events == 1);
    CHECK(event.seq == seqs[0] && event.token >= 0 && event.answer == 0);
    CHECK(folollm_cancel(llm, seqs[0], &error) == FOLOLLM_OK && folollm_cancel(llm, seqs[1], &error) == FOLOLLM_OK);
    CHECK(folollm_step(llm, NULL, &event, &n_events, &error) == FOLOLLM_OK && n_events == 1);
    CHECK(folollm_step(llm, NULL, &event, &n_events, &error) == FOLOLLM_OK && n_events == 1);
    CHECK(event.finish == FOLOLLM_FINISH_CANCELLED && event.status == FOLOLLM_E_CANCELLED);
    CHECK(folollm_cancel(llm, seqs[0], &error) == FOLOLLM_E_SEQUENCE);
    CHECK(folollm_seq_open(llm, NULL, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_save(llm, seq, NULL, &n_bytes, &error) == FOLOLLM_OK && n_bytes > 0);
    n_bytes = 1;
    CHECK(folollm_seq_save(llm, seq, bytes, &n_bytes, &error) == FOLOLLM_E_BUFFER && n_bytes > 1);
    CHECK(folollm_seq_restore(llm, bytes, 1, &restored, &error) == FOLOLLM_E_FORMAT && restored == 0);
    CHECK(folollm_seq_save_to(llm, seq, refuse_write, &n_calls, &error) == FOLOLLM_E_IO && n_calls == 1);
    CHECK(folollm_seq_restore_from(llm, refuse_read, &n_calls, &restored, &error) == FOLOLLM_E_IO && restored == 0);
    CHECK(folollm_seq_close(llm, seq, &error) == FOLOLLM_OK);
}

int main(void) {
    folollm *llm = NULL, *second = NULL;
    folollm_options options;
    folollm_info info;
    memset(&options, 0, sizeof options);
    options.n_threads = 1;
    check_library();
    check_model();
    if (CHECK(folollm_load(MODEL, &options, &llm, &error) == FOLOLLM_OK)) {
        folollm_get_info(llm, &info);
        CHECK(strcmp(info.architecture, "qwen3") == 0);
        check_text(llm);
        check_loop(llm);
        check_requests(llm);
        CHECK(folollm_share(llm, &options, &second, &error) == FOLOLLM_OK);
        folollm_free(llm);
        check_loop(second);
        folollm_free(second);
    }
    return check_finish();
}
