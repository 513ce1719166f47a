/* Faults: the n-th allocation or file operation fails, for every n; misuse of every call; NaN in the weights; full
 * pools in the middle of a step. After each the status is the documented one, nothing is lost, nothing leaks, and
 * what is computed next has the same bits as if nothing had happened.
 *
 *     cc -O1 -g -I. -Isrc tests/test_faults.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out [repository root] */
#include "inside.h"

#include "check.h"
#include "host.h"

#include <math.h>
#include <unistd.h>

static char root[512] = ".";
static folollm_error error;
static uint64_t n_faults;

static const char *model_path(const char *name) {
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

/* The engine of most tests: 80 ids, no tied head, so that a damaged embedding row hurts who uses it and nobody
 * else. */
#define SMALL "tests/vectors/models/llama-gqa-fp16"
#define SHAKESPEARE "examples/models/tiny-shakespeare"

static bool all_bytes(const void *p, size_t n, int value) {
    const uint8_t *bytes = p;
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != (uint8_t)value) {
            return false;
        }
    }
    return true;
}

static uint64_t digest_of(uint64_t digest, const void *p, size_t n) {
    const uint8_t *bytes = p;
    for (size_t i = 0; i < n; i++) {
        digest = (digest ^ bytes[i]) * UINT64_C(0x100000001B3);
    }
    return digest;
}

static folollm *load_memory(test_host *h, const folollm_options *options) {
    folollm_options o = {0};
    folollm *f = NULL;
    if (options != NULL) {
        o = *options;
    }
    o.host = &h->hooks;
    o.n_threads = o.n_threads != 0 ? o.n_threads : 1;
    folollm_status status = folollm_load("mem", &o, &f, &error);
    if (!CHECK_TEXT(status == FOLOLLM_OK, "load")) {
        printf("    %s\n", error.text);
        exit(1);
    }
    return f;
}

static uint32_t vocab_of(const folollm *f) {
    folollm_info info;
    folollm_get_info(f, &info);
    return info.vocab;
}

static uint64_t digest_logits(folollm *f, folollm_seq seq, uint64_t digest) {
    const float *logits = NULL;
    CHECK(folollm_logits(f, seq, &logits, &error) == FOLOLLM_OK);
    return logits != NULL ? digest_of(digest, logits, vocab_of(f) * sizeof *logits) : 0;
}

/* The bits of a sequence that is opened, used and closed. */
static uint64_t probe(folollm *f) {
    static const folollm_token prompt[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3};
    folollm_token next = 7;
    folollm_seq seq = 0;
    uint64_t digest = 1;
    CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, prompt, FL_COUNT(prompt), NULL, &error) == FOLOLLM_OK);
    digest = digest_logits(f, seq, digest);
    CHECK(folollm_decode_step(f, &seq, &next, 1, &error) == FOLOLLM_OK);
    digest = digest_logits(f, seq, digest);
    CHECK(folollm_seq_close(f, seq, &error) == FOLOLLM_OK);
    return digest;
}

/* ---- The n-th call of a hook fails --------------------------------------------------------------- */

static test_host host;

/* Proves, at the place of a failure: the status is that of the fault, there is a message, nothing stays taken. */
static void check_failure(folollm_status status, uint64_t live, size_t n_open) {
    fault kind = host.armed;
    bool right = kind == FAULT_ALLOCATE ? status == FOLOLLM_E_MEMORY
                 : kind == FAULT_PROGRESS ? status == FOLOLLM_E_CANCELLED
                 : kind == FAULT_OPEN || kind == FAULT_READ ? status == FOLOLLM_E_IO
                                      : status == FOLOLLM_E_IO || status == FOLOLLM_E_FORMAT;
    if (!CHECK_TEXT(right, "the status of an injected fault")) {
        printf("    kind %d call %u: %d %s\n", (int)kind, (unsigned)host.at, (int)status, error.text);
    }
    CHECK(error.status == status && error.text[0] != 0);
    CHECK(host.live == live && host.n_open == n_open);
}

/* Make a call. If a fault hits it, its outputs must be untouched; then the same call without the fault must do. An
 * open that fails may pass for a file that is not there: `undo` such a success and call again. */
#define STEP(call, untouched, undo)                            \
    do {                                                       \
        uint64_t live_ = host.live, injected_ = host.n_injected; \
        size_t n_open_ = host.n_open;                          \
        memset(&error, 0, sizeof error);                       \
        folollm_status status_ = (call);                       \
        if (status_ != FOLOLLM_OK) {                           \
            check_failure(status_, live_, n_open_);            \
            CHECK(untouched);                                  \
        } else if (host.armed == FAULT_OPEN && host.n_injected > injected_) { \
            undo;                                              \
            status_ = FOLOLLM_E_IO;                            \
        }                                                      \
        if (status_ != FOLOLLM_OK) {                           \
            host_disarm(&host);                                \
            status_ = (call);                                  \
        }                                                      \
        if (!CHECK_TEXT(status_ == FOLOLLM_OK, #call)) {       \
            printf("    %s\n", error.text);                    \
            exit(1);                                           \
        }                                                      \
    } while (0)

/* Text in and out: all that allocates beside loading. */
static uint64_t scenario_text(folollm *f, uint64_t digest) {
    static const char text[] = "hello hell, the caf" "e\xCC\x81" " <|im_end|>";
    folollm_message messages[] = {{"system", "be well", 7}, {"user", "hello <|im_end|>", 16}};
    folollm_token tokens[256], canary[256];
    char out[512], chat[512];
    folollm_span spans[64];
    size_t n = FL_COUNT(tokens), n_out = sizeof out, n_chat = sizeof chat, n_spans = FL_COUNT(spans);
    memset(tokens, 0x5A, sizeof tokens);
    memset(canary, 0x5A, sizeof canary);
    memset(out, 0x5A, sizeof out);
    STEP(folollm_tokenize(f, text, sizeof text - 1, NULL, 0, 0, tokens, &n, &error),
         n == FL_COUNT(tokens) && memcmp(tokens, canary, sizeof tokens) == 0, (void)0);
    digest = digest_of(digest, tokens, n * sizeof *tokens);
    STEP(folollm_detokenize(f, tokens, n, 0, out, &n_out, &error),
         n_out == sizeof out && all_bytes(out, sizeof out, 0x5A), (void)0);
    digest = digest_of(digest, out, n_out);
    STEP(folollm_chat(f, messages, 2, NULL, 0, chat, &n_chat, spans, &n_spans, &error),
         n_chat == sizeof chat && n_spans == FL_COUNT(spans), (void)0);
    digest = digest_of(digest, chat, n_chat);
    memset(tokens, 0x5A, sizeof tokens);
    n = FL_COUNT(tokens);
    STEP(folollm_tokenize(f, chat, n_chat, spans, n_spans, FOLOLLM_TOKENIZE_PLAIN, tokens, &n, &error),
         n == FL_COUNT(tokens) && memcmp(tokens, canary, sizeof tokens) == 0, (void)0);
    return digest_of(digest, tokens, n * sizeof *tokens);
}

/* Two answers to one prompt, until they are over; in whatever order their events come. */
static uint64_t scenario_requests(folollm *f, uint64_t digest) {
    static const folollm_token prompt[] = {7, 4, 11, 11, 14, 26, 19, 7, 4, 17, 4, 30, 5, 6, 7, 8, 9, 10};
    folollm_sampling sampling = {.temperature = 0.9f, .seed = 3, .max_tokens = 6, .ignore_eos = 1};
    folollm_submission submission = {.prompt = prompt, .n_prompt = FL_COUNT(prompt), .sampling = &sampling,
                                     .n_answers = 2, .tag = 99};
    uint64_t digests[2] = {1, 1};
    folollm_seq seqs[2];
    folollm_event events[3];
    folollm_stats stats;
    unsigned n_over = 0;
    CHECK(folollm_submit(f, &submission, seqs, &error) == FOLOLLM_OK);
    for (unsigned step = 0; step < 200 && n_over < 2; step++) {
        folollm_budget budget = {1 + step % 7, 0};
        size_t n = 1 + step % 3;
        CHECK(folollm_step(f, &budget, events, &n, &error) == FOLOLLM_OK);
        for (size_t i = 0; i < n; i++) {
            const folollm_event *e = &events[i];
            CHECK(e->tag == 99 && e->answer < 2 && e->seq == seqs[e->answer] && e->status == FOLOLLM_OK);
            digests[e->answer] = digest_of(digests[e->answer], &e->token, sizeof e->token);
            digests[e->answer] = digest_of(digests[e->answer], e->text, e->n_bytes);
            digests[e->answer] = digest_of(digests[e->answer], &e->chosen, sizeof e->chosen);
            n_over += e->finish != FOLOLLM_FINISH_NONE;
        }
    }
    folollm_get_stats(f, &stats);
    CHECK(n_over == 2 && stats.requests_running + stats.requests_waiting == 0);
    return digest_of(digest, digests, sizeof digests);
}

/* Save, close and restore: the snapshot, and what comes after it. The handle changes. */
static uint64_t scenario_snapshot(folollm *f, folollm_seq *seq, uint64_t digest) {
    static uint8_t bytes[1 << 16];
    folollm_token next = 5;
    size_t n = sizeof bytes;
    CHECK(folollm_seq_save(f, *seq, bytes, &n, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(f, *seq, &error) == FOLOLLM_OK);
    digest = digest_of(digest, bytes, n);
    CHECK(folollm_seq_restore(f, bytes, n, seq, &error) == FOLOLLM_OK);
    digest = digest_logits(f, *seq, digest);
    CHECK(folollm_decode_step(f, seq, &next, 1, &error) == FOLOLLM_OK);
    return digest_logits(f, *seq, digest);
}

/* The loop, which must not call the allocator at all. */
static uint64_t scenario_loop(folollm *f, uint64_t digest) {
    static const folollm_token prompt[] = {7, 4, 11, 11, 14, 26, 19, 7, 4, 17, 4, 30, 5, 6, 7, 8, 9, 10, 11};
    folollm_sampling sampling = {.temperature = 0.9f, .top_k = 20, .seed = 7, .repetition_penalty = 1.1f};
    folollm_logprob top[4];
    folollm_sampled sampled;
    folollm_seq seqs[3];
    folollm_token next[2];
    uint64_t calls = host.n_calls;
    for (size_t i = 0; i < 2; i++) {
        CHECK(folollm_seq_open(f, &sampling, &seqs[i], &error) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seqs[i], prompt + i, FL_COUNT(prompt) - i, NULL, &error) == FOLOLLM_OK);
    }
    for (size_t step = 0; step < 4; step++) {
        for (size_t i = 0; i < 2; i++) {
            CHECK(folollm_sample(f, seqs[i], &sampled, top, FL_COUNT(top), &error) == FOLOLLM_OK);
            digest = digest_of(digest, &sampled.token, sizeof sampled.token);
            digest = digest_of(digest, sampled.text, sampled.n_bytes);
            digest = digest_of(digest, top, sizeof top);
            next[i] = sampled.token;
        }
        CHECK(folollm_decode_step(f, seqs, next, 2, &error) == FOLOLLM_OK);
        digest = digest_logits(f, seqs[0], digest_logits(f, seqs[1], digest));
    }
    CHECK(folollm_seq_fork(f, seqs[0], NULL, &seqs[2], &error) == FOLOLLM_OK);
    CHECK(folollm_seq_truncate(f, seqs[0], 5, &error) == FOLOLLM_OK);
    CHECK(folollm_decode_step(f, seqs + 1, next, 2, &error) == FOLOLLM_OK);
    digest = digest_logits(f, seqs[2], digest);
    CHECK(folollm_prefill(f, seqs[0], prompt, 3, NULL, &error) == FOLOLLM_OK);
    digest = digest_logits(f, seqs[0], digest);
    digest = scenario_requests(f, scenario_snapshot(f, &seqs[0], digest));
    digest = scenario_snapshot(f, &seqs[2], digest);
    CHECK(folollm_seq_close(f, seqs[1], &error) == FOLOLLM_OK);
    CHECK_TEXT(host.n_calls == calls, "the loop calls no allocator");
    return digest;
}

/* Everything that can allocate or read, from plan to free, two sequences and a shared engine left open. */
static uint64_t scenario(const folollm_options *options, bool share_first) {
    folollm_options o = *options;
    folollm_memory plan;
    folollm *canary = (folollm *)(void *)&plan, *f = canary, *g = canary;
    uint64_t digest = 1;
    o.host = &host.hooks;
    host.done = 0;
    memset(&plan, 0x5A, sizeof plan);
    STEP(folollm_plan("mem", &o, &plan, &error), all_bytes(&plan, sizeof plan, 0x5A), (void)0);
    STEP((host.done = 0, folollm_load("mem", &o, &f, &error)), f == canary, folollm_free(f));
    if (f->checkpoint->tokenizer != NULL) {
        digest = scenario_text(f, digest);
    }
    STEP(folollm_share(f, &o, &g, &error), g == canary, (void)0);
    digest = scenario_loop(f, digest);
    digest = digest_of(digest, &(uint64_t){probe(g)}, sizeof(uint64_t));
    folollm_free(share_first ? g : f);
    CHECK(host.n_open == 0 || host.live > 0);
    digest = digest_of(digest, &(uint64_t){probe(share_first ? f : g)}, sizeof(uint64_t));
    folollm_free(share_first ? f : g);
    CHECK(host_is_clean(&host));
    return digest;
}

/* Proves that no fault of this kind, at any call, once or from then on, does more than fail the call that it hits.
 * stride: try every stride-th call. */
static void fail_every(fault kind, const folollm_options *o, uint64_t clean, uint64_t stride) {
    for (int forever = 0; forever < 2; forever++) {
        for (uint64_t n = 1;; n += stride) {
            host_arm(&host, kind, n, forever);
            uint64_t digest = scenario(o, n % 2 != 0);
            bool hit = host.n_injected > 0;
            host_disarm(&host);
            if (!CHECK_TEXT(digest == clean, "the same bits after a fault")) {
                printf("    kind %d call %u forever %d\n", (int)kind, (unsigned)n, forever);
            }
            if (!hit) {
                break;
            }
            n_faults++;
        }
    }
}

/* Fresh memory full of 0xFF, which is NaN: what was never written is never read. */
static void test_faults_of(const char *directory, bool tokenizer, uint64_t stride) {
    static const fault file_kinds[] = {FAULT_OPEN, FAULT_EMPTY, FAULT_LONG, FAULT_ENDLESS, FAULT_READ, FAULT_MAP};
    uint64_t bits = 0;
    for (int variant = 0; variant < 6; variant++) { /* copied, mapped, mapped and misaligned, threads, q8, q4 */
        folollm_options o = {.copy_weights = variant == 0, .n_threads = variant == 3 || variant == 5 ? 2 : 1,
                             .weights = variant == 4   ? FOLOLLM_WEIGHTS_Q8
                                        : variant == 5 ? FOLOLLM_WEIGHTS_Q4
                                                       : FOLOLLM_WEIGHTS_AS_STORED,
                             .max_seqs = 4,
                             .context = 64, .pool_tokens = 192, .chunk = variant == 2 ? 3 : 16};
        host_init(&host, true);
        host.shift = variant == 2;
        host.fill = variant == 1 ? 0xFF : 0xA5;
        host.hooks.file_map = variant != 0 ? host_map : NULL;
        host.hooks.progress = host_progress;
        CHECK(host_put_directory(&host, directory));
        if (tokenizer) {
            host_put_tokenizer(&host);
        }
        uint64_t clean = scenario(&o, true);
        bits = variant == 0 || variant > 3 ? clean : bits;
        CHECK_TEXT(clean == bits, "the same bits copied, mapped, misaligned and with threads");
        fail_every(FAULT_ALLOCATE, &o, clean, variant < 2 || variant == 5 ? stride : stride * 3);
        fail_every(FAULT_PROGRESS, &o, clean, stride);
        for (size_t i = 0; i < FL_COUNT(file_kinds) && (variant < 3 || variant == 4); i++) {
            fail_every(file_kinds[i], &o, clean, stride);
        }
        host_free(&host);
    }
}

static void test_every_fault(void) {
    char path[1024];
    snprintf(path, sizeof path, "%s", model_path(SMALL));
    test_faults_of(path, true, 1);
    snprintf(path, sizeof path, "%s", model_path("tests/vectors/models/qwen3-sharded"));
    test_faults_of(path, false, 1);
}

/* The hooks see the same model as the operating system: the same bits from memory and from the path. */
static void test_hooks_equal_path(void) {
    static const char *const models[] = {SHAKESPEARE, SMALL, "tests/vectors/models/qwen3-sharded",
                                         "tests/vectors/models/mistral-window-old"};
    for (size_t i = 0; i < FL_COUNT(models); i++) {
        uint64_t bits[4];
        for (int kind = 0; kind < 4; kind++) { /* path mapped, path copied, memory read, memory mapped */
            test_host h;
            host_init(&h, kind >= 2);
            h.hooks.file_map = kind == 3 ? host_map : NULL;
            CHECK(kind < 2 || host_put_directory(&h, model_path(models[i])));
            folollm_options o = {.host = &h.hooks, .n_threads = 1, .copy_weights = kind == 1, .context = 64};
            folollm *f = NULL;
            CHECK(folollm_load(kind < 2 ? model_path(models[i]) : "mem", &o, &f, &error) == FOLOLLM_OK);
            bits[kind] = f != NULL ? probe(f) : 0;
            CHECK(f == NULL || (f->plan.mapped > 0) == (kind == 0 || kind == 3));
            folollm_free(f);
            CHECK(host_is_clean(&h));
            host_free(&h);
        }
        CHECK(bits[0] == bits[1] && bits[0] == bits[2] && bits[0] == bits[3]);
    }
}

/* ---- The plan ------------------------------------------------------------------------------------ */

static void run_in_order(void *user, size_t n, void (*task)(void *context, size_t i), void *context) {
    (void)user;
    for (size_t i = n; i-- > 0;) {
        task(context, i);
    }
}

/* Proves that loading takes what was planned, to the byte, and never holds more than planned beside it. */
static void check_plan(const char *path, folollm_options o, bool parallel_hook) {
    test_host h;
    folollm_memory plan = {0};
    folollm_info info, shared;
    folollm *f = NULL, *g = NULL;
    host_init(&h, false);
    h.hooks.parallel_for = parallel_hook ? run_in_order : NULL;
    o.host = &h.hooks;
    CHECK(folollm_plan(path, &o, &plan, &error) == FOLOLLM_OK && h.live == 0);
    CHECK(h.peak <= plan.allocated + plan.temporary);
    CHECK(plan.allocated == plan.weights + plan.tokenizer + plan.kv_cache + plan.scratch + plan.sequences);
    h.peak = 0;
    CHECK(folollm_load(path, &o, &f, &error) == FOLOLLM_OK);
    if (f == NULL) {
        printf("    %s\n", error.text);
        return;
    }
    CHECK(h.live == plan.allocated);
    CHECK(h.peak <= plan.allocated + plan.temporary);
    folollm_get_info(f, &info);
    CHECK(memcmp(&info.memory, &plan, sizeof plan) == 0);
    CHECK(folollm_share(f, &o, &g, &error) == FOLOLLM_OK);
    folollm_get_info(g, &shared);
    CHECK(h.live == plan.allocated + shared.memory.allocated);
    CHECK(shared.memory.weights == 0 && shared.memory.tokenizer == 0 && shared.memory.kv_cache == plan.kv_cache);
    folollm_free(g);
    CHECK(h.live == plan.allocated);
    folollm_free(f);
    CHECK(host_is_clean(&h));
    f = NULL;
    o.memory_limit = plan.allocated;
    CHECK(folollm_load(path, &o, &f, &error) == FOLOLLM_OK);
    folollm_free(f);
    o.memory_limit--;
    f = NULL;
    CHECK(folollm_load(path, &o, &f, &error) == FOLOLLM_E_MEMORY && f == NULL && host_is_clean(&h));
    CHECK(folollm_plan(path, &o, &plan, &error) == FOLOLLM_E_MEMORY);
    CHECK(strstr(error.text, "memory_limit") != NULL);
}

static void test_plan(void) {
    static const char *const models[] = {
        SHAKESPEARE, SMALL, "tests/vectors/models/qwen3-sharded", "tests/vectors/models/mistral-window-old",
        "tests/vectors/models/llama-mqa-fp32", "tests/vectors/models/qwen2-mha-bf16",
        "tests/vectors/models/rope-yarn-new",
    };
    static const folollm_options sets[] = {
        {.n_threads = 1},
        {.n_threads = 2, .kv = FOLOLLM_KV_F32, .copy_weights = 1},
        {.n_threads = 3, .kv = FOLOLLM_KV_BF16, .max_seqs = 1, .context = 1},
        {.n_threads = 1, .max_seqs = 33, .pool_tokens = 1000, .chunk = 1},
        {.n_threads = 2, .max_seqs = 3, .pool_tokens = 17, .chunk = 500, .context = 50, .copy_weights = 1},
        {.n_threads = 1, .isa = FOLOLLM_ISA_SCALAR, .pool_tokens = 1},
        {.n_threads = 1, .weights = FOLOLLM_WEIGHTS_Q4},
        {.n_threads = 3, .weights = FOLOLLM_WEIGHTS_BF16, .copy_weights = 1},
        {.n_threads = 2, .weights = FOLOLLM_WEIGHTS_Q6_K, .float_activations = 1},
    };
    for (size_t m = 0; m < FL_COUNT(models); m++) {
        for (size_t i = 0; i < FL_COUNT(sets); i++) {
            check_plan(model_path(models[m]), sets[i], false);
            check_plan(model_path(models[m]), sets[i], true);
        }
    }
    check_plan(model_path(SHAKESPEARE), (folollm_options){.tokenizer_only = 1}, false);
}

/* Loading and freeing again and again leaves no memory, no file and no thread behind. */
static void test_load_loops(void) {
    test_host h;
    host_init(&h, false);
    int first = dup(0);
    for (int i = 0; i < 200; i++) {
        folollm_options o = {.host = &h.hooks, .n_threads = 1u + (uint32_t)i % 2, .copy_weights = i % 3 == 0};
        folollm *f = NULL;
        folollm_seq seq;
        CHECK(folollm_load(model_path(i % 20 == 0 ? SHAKESPEARE : SMALL), &o, &f, &error) == FOLOLLM_OK);
        CHECK(f != NULL && folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
        folollm_free(f);
        CHECK(host_is_clean(&h));
        CHECK(folollm_load(model_path("no/such/place"), &o, &f, &error) == FOLOLLM_E_IO && host_is_clean(&h));
    }
    int last = dup(0);
    CHECK(last == first + 1);
    close(first);
    close(last);
}

/* The progress hook sees the bytes of every tensor, and cancels at any of its calls (beside FAULT_PROGRESS above).
 */
static void test_progress(void) {
    folollm_options o = {.n_threads = 1};
    host_init(&host, true);
    CHECK(host_put_directory(&host, model_path(SHAKESPEARE)));
    host.hooks.progress = host_progress;
    host_arm(&host, FAULT_NONE, 0, false);
    folollm_free(load_memory(&host, &o));
    uint64_t n = host.seen[FAULT_PROGRESS];
    CHECK(n > 50 && host.done == host.total && host.total > 3000000);
    o.host = &host.hooks;
    for (uint64_t i = 1; i <= n; i++) {
        folollm *f = NULL;
        host.done = 0;
        host_arm(&host, FAULT_PROGRESS, i, false);
        CHECK(folollm_load("mem", &o, &f, &error) == FOLOLLM_E_CANCELLED && f == NULL);
        CHECK(host_is_clean(&host) && error.text[0] != 0);
        n_faults++;
    }
    host_free(&host);
}

/* ---- Misuse -------------------------------------------------------------------------------------- */

static folollm *engine;
static uint64_t engine_bits;

/* A call that must fail so, say why, and leave the engine as it was. */
static void check_fails(folollm_status status, folollm_status expected, int line, const char *call) {
    if (!check_that(status == expected, __FILE__, line, call)) {
        printf("    %d: %s\n", (int)status, error.text);
    }
    check_that(error.status == status && error.text[0] != 0, __FILE__, line, "the text of an error");
    check_that(probe(engine) == engine_bits, __FILE__, line, "the same bits after a failed call");
}

#define FAILS(expected, call) (memset(&error, 0, sizeof error), check_fails((call), (expected), __LINE__, #call))

static void misuse_loading(test_host *h) {
    folollm_options o = {.host = &h->hooks, .n_threads = 1};
    folollm_memory plan;
    folollm *f = (folollm *)(void *)&plan, *canary = f;
    FAILS(FOLOLLM_E_ARGUMENT, folollm_load(NULL, &o, &f, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_load("", &o, &f, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_load("mem", &o, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_plan(NULL, &o, &plan, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_plan("mem", &o, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_share(NULL, &o, &f, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_share(engine, &o, NULL, &error));
    FAILS(FOLOLLM_E_IO, folollm_load("elsewhere", &(folollm_options){.n_threads = 1}, &f, &error));
    FAILS(FOLOLLM_E_IO, folollm_plan("elsewhere", NULL, &plan, &error));
    CHECK(folollm_load(NULL, NULL, NULL, NULL) == FOLOLLM_E_ARGUMENT);
    const folollm_options bad[] = {
        {.struct_size = 1},
        {.struct_size = sizeof o + 8},
        {.context = 97}, /* the model has 96 */
        {.context = UINT32_MAX},
        {.max_seqs = 4097},
        {.max_seqs = UINT32_MAX},
        {.pool_tokens = UINT32_MAX},
        {.chunk = 8193},
        {.chunk = UINT32_MAX},
        {.n_threads = 257},
        {.n_threads = UINT32_MAX},
        {.kv = (folollm_kv_type)5},
        {.kv = (folollm_kv_type)-1},
        {.isa = (folollm_isa)5},
        {.isa = (folollm_isa)-1},
    };
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        folollm_options b = bad[i];
        b.host = &h->hooks;
        b.n_threads = b.n_threads == 0 ? 1 : b.n_threads;
        FAILS(FOLOLLM_E_ARGUMENT, folollm_load("mem", &b, &f, &error));
        FAILS(FOLOLLM_E_ARGUMENT, folollm_plan("mem", &b, &plan, &error));
        FAILS(FOLOLLM_E_ARGUMENT, folollm_share(engine, &b, &f, &error));
    }
    for (int missing = 0; missing < 4; missing++) { /* file hooks come together */
        folollm_host hooks = h->hooks;
        hooks.file_open = missing == 0 ? NULL : hooks.file_open;
        hooks.file_size = missing == 1 ? NULL : hooks.file_size;
        hooks.file_read = missing == 2 ? NULL : hooks.file_read;
        hooks.file_close = missing == 3 ? NULL : hooks.file_close;
        o.host = &hooks;
        FAILS(FOLOLLM_E_ARGUMENT, folollm_load("mem", &o, &f, &error));
    }
    o.host = &h->hooks;
    o.max_seqs = 4096;
    CHECK(folollm_share(engine, &o, &f, &error) == FOLOLLM_OK);
    folollm_free(f);
    f = canary;
    o.max_seqs = 0;
    o.pool_tokens = 1u << 31;
    o.memory_limit = 1u << 30;
    FAILS(FOLOLLM_E_MEMORY, folollm_share(engine, &o, &f, &error));
    CHECK(f == canary);
    folollm_free(NULL);
}

static void misuse_text(void) {
    static const char text[] = "hello hello";
    folollm_token tokens[16], bad_tokens[] = {3, -1}, high[] = {3, 80}, low[] = {INT32_MIN}, max[] = {INT32_MAX};
    folollm_span spans[] = {{0, 5}, {4, 6}}, long_span[] = {{0, 12}}, back[] = {{3, 2}};
    char out[64];
    size_t n = 16, zero = 0, n_out = sizeof out;
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(NULL, text, 5, NULL, 0, 0, tokens, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, NULL, 5, NULL, 0, 0, tokens, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 5, NULL, 1, 0, tokens, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 5, NULL, 0, 0, tokens, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 5, NULL, 0, 0, NULL, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 5, NULL, 0, 2, tokens, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 11, spans, 2, 0, tokens, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 11, long_span, 1, 0, tokens, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_tokenize(engine, text, 11, back, 1, 0, tokens, &n, &error));
    static const char *const broken[] = {"\x80", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF"};
    for (size_t i = 0; i < FL_COUNT(broken); i++) {
        FAILS(FOLOLLM_E_ENCODING,
              folollm_tokenize(engine, broken[i], strlen(broken[i]), NULL, 0, 0, tokens, &n, &error));
    }
    CHECK(n == 16);
    CHECK(folollm_tokenize(engine, NULL, 0, NULL, 0, 0, NULL, &zero, &error) == FOLOLLM_OK && zero == 0);
    memset(tokens, 0x5A, sizeof tokens);
    FAILS(FOLOLLM_E_BUFFER, folollm_tokenize(engine, text, 11, NULL, 0, 0, NULL, &zero, &error));
    CHECK(zero > 2 && zero < 16);
    n = zero - 1;
    FAILS(FOLOLLM_E_BUFFER, folollm_tokenize(engine, text, 11, NULL, 0, 0, tokens, &n, &error));
    CHECK(n == zero && all_bytes(tokens, sizeof tokens, 0x5A));
    CHECK(folollm_tokenize(engine, text, 11, NULL, 0, 0, tokens, &n, &error) == FOLOLLM_OK && n == zero);
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(NULL, tokens, n, 0, out, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, NULL, n, 0, out, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, tokens, n, 0, NULL, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, tokens, n, 0, out, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, tokens, n, 2, out, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, bad_tokens, 2, 0, out, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, high, 2, 0, out, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, low, 1, 0, out, &n_out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_detokenize(engine, max, 1, 0, out, &n_out, &error));
    CHECK(n_out == sizeof out);
    n_out = 10;
    memset(out, 0x5A, sizeof out);
    FAILS(FOLOLLM_E_BUFFER, folollm_detokenize(engine, tokens, n, 0, out, &n_out, &error));
    CHECK(n_out == 11 && all_bytes(out, sizeof out, 0x5A));
    CHECK(folollm_detokenize(engine, tokens, n, 0, out, &n_out, &error) == FOLOLLM_OK &&
          memcmp(out, text, 11) == 0);
    CHECK(all_bytes(out + 11, sizeof out - 11, 0x5A));
    n_out = 0;
    CHECK(folollm_detokenize(engine, NULL, 0, 0, NULL, &n_out, &error) == FOLOLLM_OK && n_out == 0);
    high[0] = high[1] = 79; /* an id of the head that no token has is no text */
    CHECK(folollm_detokenize(engine, high, 2, 0, NULL, &n_out, &error) == FOLOLLM_OK && n_out == 0);
}

static void misuse_chat(void) {
    folollm_message m[] = {{"user", "hello", 5}}, no_role[] = {{NULL, "a", 1}}, no_text[] = {{"user", NULL, 1}};
    folollm_message odd[] = {{"tool", "a", 1}}, broken[] = {{"user", "\xFF", 1}};
    char out[256];
    folollm_span spans[16];
    size_t n = sizeof out, n_spans = FL_COUNT(spans), zero = 0, none = 0, short_by_one;
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(NULL, m, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, NULL, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, m, 0, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, m, 1, NULL, 4, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, m, 1, NULL, 0, NULL, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, m, 1, NULL, 0, out, NULL, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, m, 1, NULL, 0, out, &n, NULL, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, m, 1, NULL, 0, out, &n, spans, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, no_role, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, no_text, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_chat(engine, odd, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ENCODING, folollm_chat(engine, broken, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    FAILS(FOLOLLM_E_ENCODING, folollm_chat(engine, m, 1, "\xFF", 0, out, &n, spans, &n_spans, &error));
    CHECK(n == sizeof out && n_spans == FL_COUNT(spans));
    FAILS(FOLOLLM_E_BUFFER, folollm_chat(engine, m, 1, NULL, 0, NULL, &zero, NULL, &none, &error));
    CHECK(zero > 20 && none >= 2);
    memset(out, 0x5A, sizeof out);
    short_by_one = zero - 1;
    FAILS(FOLOLLM_E_BUFFER, folollm_chat(engine, m, 1, NULL, 0, out, &short_by_one, spans, &n_spans, &error));
    CHECK(short_by_one == zero && n_spans == none && all_bytes(out, sizeof out, 0x5A));
    n_spans = none - 1;
    FAILS(FOLOLLM_E_BUFFER, folollm_chat(engine, m, 1, NULL, 0, out, &zero, spans, &n_spans, &error));
    CHECK(folollm_chat(engine, m, 1, NULL, 0, out, &zero, spans, &n_spans, &error) == FOLOLLM_OK &&
          n_spans == none);
}

static void misuse_sampling(void) {
    static const char long_stop[129] = {0};
    folollm_bias biases[257] = {{0, 0}}, bad_token[] = {{80, 1}}, below[] = {{-1, 1}}, nan_bias[] = {{1, NAN}};
    folollm_bias infinite[] = {{1, INFINITY}}, all[80];
    folollm_token ids[65] = {0}, bad_ids[] = {80}, below_ids[] = {INT32_MIN};
    folollm_text stops[17], empty[] = {{"", 0}}, too_long[] = {{long_stop, 129}}, null_text[] = {{NULL, 3}};
    for (size_t i = 0; i < FL_COUNT(stops); i++) {
        stops[i] = (folollm_text){"a", 1};
    }
    const folollm_sampling bad[] = {
        {.struct_size = 1}, {.struct_size = sizeof(folollm_sampling) + 1},
        {.temperature = NAN}, {.temperature = INFINITY}, {.temperature = -0.5f}, {.temperature = 101},
        {.top_p = NAN}, {.top_p = -0.1f}, {.top_p = 1.1f}, {.top_p = -INFINITY},
        {.min_p = NAN}, {.min_p = -0.1f}, {.min_p = 1.1f},
        {.repetition_penalty = NAN}, {.repetition_penalty = -1}, {.repetition_penalty = INFINITY},
        {.frequency_penalty = NAN}, {.frequency_penalty = 1e9f}, {.presence_penalty = -INFINITY},
        {.preset = (folollm_preset)3}, {.preset = (folollm_preset)-1},
        {.order = {(folollm_stage)5}}, {.order = {(folollm_stage)-1}},
        {.order = {FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TOP_K}},
        {.order = {FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_MIN_P, FOLOLLM_STAGE_TEMPERATURE,
                   FOLOLLM_STAGE_TOP_K}},
        {.biases = biases, .n_biases = 257}, {.n_biases = 1}, {.biases = bad_token, .n_biases = 1},
        {.biases = below, .n_biases = 1}, {.biases = nan_bias, .n_biases = 1}, {.biases = infinite, .n_biases = 1},
        {.biases = biases, .n_biases = SIZE_MAX},
        {.stop_ids = ids, .n_stop_ids = 65}, {.n_stop_ids = 1}, {.stop_ids = bad_ids, .n_stop_ids = 1},
        {.stop_ids = below_ids, .n_stop_ids = 1}, {.stop_ids = ids, .n_stop_ids = SIZE_MAX},
        {.stops = stops, .n_stops = 17}, {.n_stops = 1}, {.stops = empty, .n_stops = 1},
        {.stops = too_long, .n_stops = 1}, {.stops = null_text, .n_stops = 1},
        {.min_tokens = 2, .max_tokens = 1},
    };
    folollm_seq seq = 77, fork = 77;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_open(engine, &bad[i], &seq, &error));
    }
    CHECK(seq == 77);
    CHECK(folollm_seq_open(engine, NULL, &seq, &error) == FOLOLLM_OK);
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_fork(engine, seq, &bad[i], &fork, &error));
    }
    CHECK(fork == 77);
    CHECK(folollm_seq_close(engine, seq, &error) == FOLOLLM_OK);
    for (size_t i = 0; i < FL_COUNT(all); i++) {
        all[i] = (folollm_bias){(folollm_token)i, -INFINITY};
    }
    folollm_sampling banned = {.temperature = 1, .biases = all, .n_biases = 80};
    folollm_sampled out;
    folollm_token one = 1;
    memset(&out, 0x5A, sizeof out);
    CHECK(folollm_seq_open(engine, &banned, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(engine, seq, &one, 1, NULL, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_STATE, folollm_sample(engine, seq, &out, NULL, 0, &error));
    CHECK(all_bytes(&out, sizeof out, 0x5A));
    CHECK(folollm_seq_close(engine, seq, &error) == FOLOLLM_OK);
}

static void misuse_handles(void) {
    folollm_token tokens[4] = {1, 2, 3, 4}, room[4];
    const float *logits = NULL;
    folollm_sampled out;
    folollm_seq closed, foreign = 3 * FL_SEQS_MAX, made = 77;
    size_t n = 4, n_bytes = 5;
    CHECK(folollm_seq_open(engine, NULL, &closed, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(engine, closed, &error) == FOLOLLM_OK);
    folollm_seq bad[] = {0, 1, 5, FL_SEQS_MAX - 1, FL_SEQS_MAX + 9, FL_SEQS_MAX + 8 + 64, closed, UINT32_MAX,
                         0x80000000u, 0xDEADBEEFu, foreign + FL_SEQS_MAX - 96, closed + FL_SEQS_MAX, closed ^ 1};
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        folollm_seq pair[] = {bad[i], bad[i]};
        FAILS(FOLOLLM_E_SEQUENCE, folollm_seq_close(engine, bad[i], &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_seq_fork(engine, bad[i], NULL, &made, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_seq_truncate(engine, bad[i], 0, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_seq_tokens(engine, bad[i], room, &n, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_prefill(engine, bad[i], tokens, 4, NULL, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_decode_step(engine, pair, tokens, 2, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_logits(engine, bad[i], &logits, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_sample(engine, bad[i], &out, NULL, 0, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_seq_save(engine, bad[i], room, &n_bytes, &error));
        FAILS(FOLOLLM_E_SEQUENCE, folollm_cancel(engine, bad[i], &error));
    }
    CHECK(made == 77 && n == 4 && n_bytes == 5 && logits == NULL);
}

static void misuse_snapshots(void) {
    static const uint8_t none[200] = {0};
    folollm_token tokens[] = {1, 2, 3};
    static uint8_t bytes[1 << 14], canary[1 << 14];
    folollm_seq seq = 0, out = 77;
    size_t n = 0, room;
    CHECK(folollm_seq_open(engine, NULL, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(engine, seq, tokens, 3, NULL, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_save(NULL, seq, NULL, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_save(engine, seq, NULL, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_save(engine, seq, bytes, NULL, &error));
    n = 9;
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_save(engine, seq, NULL, &n, &error));
    CHECK(n == 9);
    memset(bytes, 0x5A, sizeof bytes);
    FAILS(FOLOLLM_E_BUFFER, folollm_seq_save(engine, seq, bytes, &n, &error));
    room = n - 1;
    FAILS(FOLOLLM_E_BUFFER, folollm_seq_save(engine, seq, bytes, &room, &error));
    CHECK(n > 9 && n < sizeof bytes && room == n && all_bytes(bytes, sizeof bytes, 0x5A));
    room = 0;
    CHECK(folollm_seq_save(engine, seq, NULL, &room, &error) == FOLOLLM_OK && room == n);
    room = sizeof bytes;
    CHECK(folollm_seq_save(engine, seq, bytes, &room, &error) == FOLOLLM_OK && room == n);
    CHECK(all_bytes(bytes + n, sizeof bytes - n, 0x5A));
    memcpy(canary, bytes, sizeof bytes);
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_restore(NULL, bytes, n, &out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_restore(engine, NULL, n, &out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_restore(engine, NULL, 0, &out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_restore(engine, bytes, n, NULL, &error));
    FAILS(FOLOLLM_E_FORMAT, folollm_seq_restore(engine, bytes, 0, &out, &error));
    FAILS(FOLOLLM_E_FORMAT, folollm_seq_restore(engine, bytes, n - 1, &out, &error));
    FAILS(FOLOLLM_E_FORMAT, folollm_seq_restore(engine, bytes, n + 1, &out, &error));
    FAILS(FOLOLLM_E_FORMAT, folollm_seq_restore(engine, none, sizeof none, &out, &error));
    CHECK(out == 77 && memcmp(bytes, canary, sizeof bytes) == 0);
    CHECK(folollm_seq_close(engine, seq, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_restore(engine, bytes, n, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(engine, seq, &error) == FOLOLLM_OK);
}

/* Submissions that contradict the header, each in one field. */
static void misuse_submit(void) {
    static const folollm_token prompt[97] = {1, 2, 3}, low[] = {1, -1}, high[] = {80, 1};
    static const folollm_text broken[] = {{"\xFF", 1}};
    const folollm_sampling hot = {.temperature = 101}, not_text = {.stops = broken, .n_stops = 1};
    const folollm_submission good = {.prompt = prompt, .n_prompt = 3};
    const struct {
        folollm_status status;
        folollm_submission s;
    } bad[] = {
        {FOLOLLM_E_ARGUMENT, {.struct_size = 1, .prompt = prompt, .n_prompt = 3}},
        {FOLOLLM_E_ARGUMENT, {.struct_size = sizeof good + 8, .prompt = prompt, .n_prompt = 3}},
        {FOLOLLM_E_ARGUMENT, {.n_prompt = 3}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt}},
        {FOLOLLM_E_ARGUMENT, {.prompt = low, .n_prompt = 2}},
        {FOLOLLM_E_ARGUMENT, {.prompt = high, .n_prompt = 2}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt, .n_prompt = 3, .sampling = &hot}},
        {FOLOLLM_E_ENCODING, {.prompt = prompt, .n_prompt = 3, .sampling = &not_text}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt, .n_prompt = 3, .weight = 1001}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt, .n_prompt = 3, .weight = UINT32_MAX}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt, .n_prompt = 3, .n_answers = 65}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt, .n_prompt = 3, .n_answers = UINT32_MAX}},
        {FOLOLLM_E_ARGUMENT, {.prompt = prompt, .n_prompt = 3, .deadline = 1}}, /* there is no clock */
        {FOLOLLM_E_CONTEXT, {.prompt = prompt, .n_prompt = 97}},
        {FOLOLLM_E_CONTEXT, {.prompt = prompt, .n_prompt = SIZE_MAX}},
    };
    folollm_seq out[66], canary[66];
    memset(out, 0x5A, sizeof out);
    memcpy(canary, out, sizeof out);
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        FAILS(bad[i].status, folollm_submit(engine, &bad[i].s, out, &error));
    }
    FAILS(FOLOLLM_E_ARGUMENT, folollm_submit(NULL, &good, out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_submit(engine, NULL, out, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_submit(engine, &good, NULL, &error));
    CHECK(memcmp(out, canary, sizeof out) == 0);
    folollm_submission most = good, one = good;
    most.n_answers = 63;
    one.n_answers = 2;
    CHECK(folollm_submit(engine, &most, out, &error) == FOLOLLM_OK);
    memcpy(canary, out, sizeof out);
    FAILS(FOLOLLM_E_POOL, folollm_submit(engine, &one, out, &error)); /* one is free */
    CHECK(memcmp(out, canary, sizeof out) == 0);
    one.n_answers = 1;
    CHECK(folollm_submit(engine, &one, out + 63, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_POOL, folollm_submit(engine, &one, out + 64, &error));
    for (size_t i = 0; i < 64; i++) {
        CHECK(folollm_cancel(engine, out[i], &error) == FOLOLLM_OK);
    }
    folollm_event events[64];
    size_t n = 64;
    CHECK(folollm_step(engine, NULL, events, &n, &error) == FOLOLLM_OK && n == 64);
    for (size_t i = 0; i < 64; i++) {
        CHECK(events[i].finish == FOLOLLM_FINISH_CANCELLED && events[i].status == FOLOLLM_E_CANCELLED);
        CHECK(events[i].token == -1 && events[i].n_bytes == 0);
        FAILS(FOLOLLM_E_SEQUENCE, folollm_cancel(engine, out[i], &error)); /* it is over */
    }
}

static void misuse_step(void) {
    static const folollm_token prompt[] = {1, 2, 3};
    const folollm_sampling endless = {.ignore_eos = 1};
    const folollm_submission submission = {.prompt = prompt, .n_prompt = 3, .sampling = &endless};
    const folollm_budget nothing = {0, 0}, timed = {0, 10}, both = {5, 10};
    folollm_event events[2], canary[2];
    folollm_token tokens[8];
    folollm_sampled sampled;
    const float *logits = NULL;
    folollm_seq seq = 0, out = 77;
    size_t n = 2, n_bytes = 3, n_tokens = 8;
    memset(events, 0x5A, sizeof events);
    memcpy(canary, events, sizeof events);
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(NULL, NULL, events, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(engine, NULL, NULL, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(engine, NULL, events, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(engine, &nothing, events, &n, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(engine, &timed, events, &n, &error)); /* there is no clock */
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(engine, &both, events, &n, &error));
    CHECK(n == 2);
    n = 0;
    FAILS(FOLOLLM_E_ARGUMENT, folollm_step(engine, NULL, events, &n, &error));
    CHECK(n == 0 && memcmp(events, canary, sizeof events) == 0);
    n = 2;
    CHECK(folollm_step(engine, NULL, events, &n, &error) == FOLOLLM_OK && n == 0); /* nothing to do */
    FAILS(FOLOLLM_E_ARGUMENT, folollm_cancel(NULL, 0, &error));
    CHECK(folollm_submit(engine, &submission, &seq, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_STATE, folollm_seq_close(engine, seq, &error));
    FAILS(FOLOLLM_E_STATE, folollm_seq_fork(engine, seq, NULL, &out, &error));
    FAILS(FOLOLLM_E_STATE, folollm_seq_truncate(engine, seq, 0, &error));
    FAILS(FOLOLLM_E_STATE, folollm_seq_save(engine, seq, NULL, &n_bytes, &error));
    FAILS(FOLOLLM_E_STATE, folollm_prefill(engine, seq, prompt, 1, NULL, &error));
    FAILS(FOLOLLM_E_STATE, folollm_decode_step(engine, &seq, prompt, 1, &error));
    FAILS(FOLOLLM_E_STATE, folollm_logits(engine, seq, &logits, &error));
    FAILS(FOLOLLM_E_STATE, folollm_sample(engine, seq, &sampled, NULL, 0, &error));
    CHECK(out == 77 && n_bytes == 3 && logits == NULL);
    n = 2;
    CHECK(folollm_step(engine, NULL, events, &n, &error) == FOLOLLM_OK && n == 1 && events[0].seq == seq);
    CHECK(folollm_seq_tokens(engine, seq, tokens, &n_tokens, &error) == FOLOLLM_OK && n_tokens == 3);
    CHECK(memcmp(tokens, prompt, sizeof prompt) == 0);
    CHECK(folollm_cancel(engine, seq, &error) == FOLOLLM_OK && folollm_cancel(engine, seq, &error) == FOLOLLM_OK);
    n = 2;
    CHECK(folollm_step(engine, NULL, events, &n, &error) == FOLOLLM_OK && n == 1);
    CHECK(events[0].seq == seq && events[0].finish == FOLOLLM_FINISH_CANCELLED && events[0].token == -1);
    FAILS(FOLOLLM_E_SEQUENCE, folollm_cancel(engine, seq, &error));
    FAILS(FOLOLLM_E_SEQUENCE, folollm_seq_tokens(engine, seq, tokens, &n_tokens, &error));
    n = 2;
    CHECK(folollm_step(engine, NULL, events, &n, &error) == FOLOLLM_OK && n == 0);
}

/* Sequences of the host's own loop hold the pages: no request can move, until they give some back. */
static void misuse_pool(void) {
    static const folollm_token prompt[2 * FL_PAGE_TOKENS + 1] = {1, 2, 3};
    const folollm_sampling endless = {.ignore_eos = 1};
    folollm_submission s = {.prompt = prompt, .n_prompt = FL_COUNT(prompt), .sampling = &endless};
    folollm_options o = {.n_threads = 1, .pool_tokens = 2 * FL_PAGE_TOKENS};
    folollm_event event, canary;
    folollm_seq own = 0, seq = 77;
    folollm *f = NULL;
    size_t n = 1;
    CHECK(folollm_share(engine, &o, &f, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_POOL, folollm_submit(f, &s, &seq, &error)); /* more than there are */
    CHECK(seq == 77);
    s.n_prompt--;
    CHECK(folollm_seq_open(f, NULL, &own, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, own, prompt, 1, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_submit(f, &s, &seq, &error) == FOLOLLM_OK);
    memset(&event, 0x5A, sizeof event);
    memcpy(&canary, &event, sizeof event);
    FAILS(FOLOLLM_E_POOL, folollm_step(f, NULL, &event, &n, &error));
    FAILS(FOLOLLM_E_POOL, folollm_step(f, NULL, &event, &n, &error));
    CHECK(n == 1 && memcmp(&canary, &event, sizeof event) == 0);
    CHECK(folollm_seq_close(f, own, &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, &event, &n, &error) == FOLOLLM_OK && n == 1 && event.seq == seq);
    CHECK(event.finish == FOLOLLM_FINISH_LENGTH && event.token >= 0); /* the whole pool is full */
    folollm_free(f);
}

static void misuse_loop(void) {
    folollm_token tokens[128] = {1, 2, 3}, room[128],
                  bad[][2] = {{1, -1}, {1, 80}, {INT32_MIN, 0}, {INT32_MAX, 0}};
    folollm_logprob top[81];
    folollm_sampled out;
    const float *logits = NULL;
    folollm_seq seq = 0, seqs[9], extra = 77;
    size_t n = 128;
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_open(NULL, NULL, &seq, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_open(engine, NULL, NULL, &error));
    CHECK(folollm_seq_open(engine, NULL, &seq, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_STATE, folollm_logits(engine, seq, &logits, &error));
    FAILS(FOLOLLM_E_STATE, folollm_sample(engine, seq, &out, NULL, 0, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_prefill(NULL, seq, tokens, 1, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_prefill(engine, seq, NULL, 1, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_prefill(engine, seq, tokens, 0, NULL, &error));
    FAILS(FOLOLLM_E_CONTEXT, folollm_prefill(engine, seq, tokens, 97, NULL, &error));
    CHECK(strstr(error.text, "97") != NULL && strstr(error.text, "96") != NULL);
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        FAILS(FOLOLLM_E_ARGUMENT, folollm_prefill(engine, seq, bad[i], 2, NULL, &error));
        FAILS(FOLOLLM_E_ARGUMENT, folollm_decode_step(engine, (folollm_seq[]){seq, seq}, bad[i], 2, &error));
    }
    CHECK(folollm_prefill(engine, seq, tokens, 60, NULL, &error) == FOLOLLM_OK);
    uint64_t bits = digest_logits(engine, seq, 1);
    FAILS(FOLOLLM_E_CONTEXT, folollm_prefill(engine, seq, tokens, 37, NULL, &error));
    FAILS(FOLOLLM_E_CONTEXT, folollm_prefill(engine, seq, tokens, 128, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_truncate(engine, seq, 61, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_truncate(engine, seq, SIZE_MAX, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_tokens(engine, seq, room, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_seq_fork(engine, seq, NULL, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_logits(engine, seq, NULL, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_sample(engine, seq, NULL, NULL, 0, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_sample(engine, seq, &out, NULL, 1, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_sample(engine, seq, &out, top, 81, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_decode_step(NULL, &seq, tokens, 1, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_decode_step(engine, NULL, tokens, 1, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_decode_step(engine, &seq, NULL, 1, &error));
    FAILS(FOLOLLM_E_ARGUMENT, folollm_decode_step(engine, (folollm_seq[]){seq, seq}, tokens, 2, &error));
    CHECK(folollm_decode_step(engine, NULL, NULL, 0, &error) == FOLOLLM_OK);
    n = 59;
    memset(room, 0x5A, sizeof room);
    FAILS(FOLOLLM_E_BUFFER, folollm_seq_tokens(engine, seq, room, &n, &error));
    CHECK(n == 60 && all_bytes(room, sizeof room, 0x5A));
    CHECK(folollm_seq_tokens(engine, seq, room, &n, &error) == FOLOLLM_OK && n == 60);
    CHECK(memcmp(room, tokens, 60 * sizeof *room) == 0 && digest_logits(engine, seq, 1) == bits);
    n = 0;
    CHECK(folollm_seq_tokens(engine, seq, NULL, &n, &error) == FOLOLLM_OK && n == 60);
    CHECK(folollm_sample(engine, seq, &out, top, 80, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(engine, seq, &error) == FOLOLLM_OK);
    for (size_t i = 0; i < 7; i++) {
        CHECK(folollm_seq_open(engine, NULL, &seqs[i], &error) == FOLOLLM_OK);
    }
    CHECK(folollm_seq_open(engine, NULL, &seqs[7], &error) == FOLOLLM_OK);
    CHECK(folollm_seq_open(engine, NULL, &extra, &error) == FOLOLLM_E_POOL && extra == 77 && error.text[0] != 0);
    CHECK(folollm_seq_fork(engine, seqs[0], NULL, &extra, &error) == FOLOLLM_E_POOL && extra == 77);
    seqs[8] = seqs[7];
    CHECK(folollm_decode_step(engine, seqs, tokens, 9, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_close(engine, seqs[3], &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_SEQUENCE, folollm_decode_step(engine, seqs, tokens, 5, &error));
    for (size_t i = 0; i < 8; i++) {
        CHECK(folollm_seq_close(engine, seqs[i], &error) == (i == 3 ? FOLOLLM_E_SEQUENCE : FOLOLLM_OK));
    }
}

/* Calls that need what a checkpoint does not have. */
static void misuse_partial(test_host *h) {
    folollm_options o = {.host = &h->hooks, .n_threads = 1, .tokenizer_only = 1};
    folollm_token token = 1, tokens[8];
    folollm_message m[] = {{"user", "hello", 5}};
    char out[8];
    folollm_span spans[8];
    folollm_seq seq;
    folollm_event event;
    folollm *f = NULL;
    size_t n = 8, n_spans = 8;
    CHECK(folollm_load("mem", &o, &f, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_STATE, folollm_seq_open(f, NULL, &seq, &error));
    FAILS(FOLOLLM_E_STATE, folollm_seq_close(f, FL_SEQS_MAX, &error));
    FAILS(FOLOLLM_E_STATE, folollm_prefill(f, FL_SEQS_MAX, &token, 1, NULL, &error));
    FAILS(FOLOLLM_E_STATE, folollm_decode_step(f, &(folollm_seq){FL_SEQS_MAX}, &token, 1, &error));
    FAILS(FOLOLLM_E_STATE, folollm_seq_save(f, FL_SEQS_MAX, NULL, &n, &error));
    FAILS(FOLOLLM_E_STATE, folollm_seq_restore(f, out, sizeof out, &seq, &error));
    FAILS(FOLOLLM_E_STATE, folollm_submit(f, &(folollm_submission){.prompt = &token, .n_prompt = 1}, &seq, &error));
    FAILS(FOLOLLM_E_STATE, folollm_step(f, NULL, &event, &n, &error));
    FAILS(FOLOLLM_E_STATE, folollm_cancel(f, FL_SEQS_MAX, &error));
    CHECK(folollm_tokenize(f, "hello", 5, NULL, 0, 0, tokens, &n, &error) == FOLOLLM_OK);
    folollm_free(f);
    f = NULL;
    o.tokenizer_only = 0;
    CHECK(folollm_load(model_path("tests/vectors/models/qwen3-sharded"), &(folollm_options){.n_threads = 1}, &f,
                       &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_STATE, folollm_tokenize(f, "hello", 5, NULL, 0, 0, tokens, &n, &error));
    FAILS(FOLOLLM_E_STATE, folollm_detokenize(f, &token, 1, 0, out, &n, &error));
    FAILS(FOLOLLM_E_STATE, folollm_chat(f, m, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    folollm_free(f);
    f = NULL;
    CHECK(folollm_load(model_path(SHAKESPEARE), &(folollm_options){.n_threads = 1}, &f, &error) == FOLOLLM_OK);
    FAILS(FOLOLLM_E_UNSUPPORTED, folollm_chat(f, m, 1, NULL, 0, out, &n, spans, &n_spans, &error));
    folollm_free(f);
    for (int status = -20; status < 20; status++) {
        CHECK(folollm_status_text((folollm_status)status) != NULL);
    }
}

/* Every public function with what its comment forbids: the documented status, a message, and nothing changed. */
static void test_misuse(void) {
    test_host h;
    host_init(&h, true);
    CHECK(host_put_directory(&h, model_path(SMALL)));
    host_put_tokenizer(&h);
    engine = load_memory(&h, &(folollm_options){.pool_tokens = 192});
    engine_bits = probe(engine);
    misuse_loading(&h);
    misuse_text();
    misuse_chat();
    misuse_sampling();
    misuse_handles();
    misuse_loop();
    misuse_snapshots();
    misuse_submit();
    misuse_step();
    misuse_pool();
    misuse_partial(&h);
    folollm_stats stats;
    folollm_get_stats(engine, &stats);
    CHECK(stats.seqs_open == 0 && stats.pages_used == 0 && stats.pages_shared == 0);
    folollm_free(engine);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* ---- Transactions -------------------------------------------------------------------------------- */

/* What a failed step must not change. */
typedef struct state {
    uint64_t digest;
    folollm_stats stats;
} state;

static state state_of(folollm *f, const folollm_seq *seqs, size_t n) {
    state s = {.digest = 1};
    folollm_get_stats(f, &s.stats);
    for (size_t i = 0; i < n; i++) {
        folollm_token tokens[128];
        folollm_sampled sampled;
        size_t length = FL_COUNT(tokens);
        CHECK(folollm_seq_tokens(f, seqs[i], tokens, &length, &error) == FOLOLLM_OK);
        s.digest = digest_of(s.digest, tokens, length * sizeof *tokens);
        if (folollm_sample(f, seqs[i], &sampled, NULL, 0, NULL) == FOLOLLM_OK) {
            s.digest = digest_logits(f, seqs[i], s.digest);
            s.digest = digest_of(s.digest, &sampled.token, sizeof sampled.token);
            s.digest = digest_of(s.digest, sampled.text, sampled.n_bytes);
        }
    }
    return s;
}

static void check_unchanged(folollm *f, const folollm_seq *seqs, size_t n, const state *before) {
    state now = state_of(f, seqs, n);
    CHECK(now.digest == before->digest);
    CHECK(now.stats.pages_used == before->stats.pages_used && now.stats.pages_free == before->stats.pages_free);
    CHECK(now.stats.pages_shared == before->stats.pages_shared && now.stats.seqs_open == before->stats.seqs_open);
    CHECK(now.stats.generated_tokens == before->stats.generated_tokens);
    CHECK(now.stats.prompt_tokens == before->stats.prompt_tokens);
}

static const folollm_sampling sampled_text = {.temperature = 0.8f, .seed = 11, .repetition_penalty = 1.2f};

static folollm_token token_at(size_t i) {
    return (folollm_token)((i * 7 + 3) % 34);
}

/* A sequence of n tokens, others for another salt. */
static folollm_seq open_with(folollm *f, size_t n, size_t salt) {
    folollm_token tokens[128];
    folollm_seq seq = 0;
    for (size_t i = 0; i < n; i++) {
        tokens[i] = token_at(i + salt);
    }
    CHECK(folollm_seq_open(f, &sampled_text, &seq, &error) == FOLOLLM_OK);
    CHECK(n == 0 || folollm_prefill(f, seq, tokens, n, NULL, &error) == FOLOLLM_OK);
    return seq;
}

static folollm *open_engine(test_host *h, uint32_t pool_tokens, uint32_t chunk, uint32_t n_threads) {
    host_init(h, true);
    CHECK(host_put_directory(h, model_path(SMALL)));
    host_put_tokenizer(h);
    return load_memory(h, &(folollm_options){.pool_tokens = pool_tokens, .chunk = chunk, .n_threads = n_threads});
}

static void close_engine(test_host *h, folollm *f) {
    folollm_free(f);
    CHECK(host_is_clean(h));
    host_free(h);
}

/* The logits of each after one step, from an engine with room for all. */
static void step_apart(const size_t *lengths, const folollm_token *next, size_t n, uint64_t *bits) {
    test_host h;
    folollm *f = open_engine(&h, 96 * 8, 0, 1);
    for (size_t i = 0; i < n; i++) {
        folollm_seq seq = open_with(f, lengths[i], i);
        CHECK(folollm_decode_step(f, &seq, &next[i], 1, &error) == FOLOLLM_OK);
        bits[i] = digest_logits(f, seq, 1);
    }
    close_engine(&h, f);
}

/* A step for which the last of its sequences finds no page changes none of them, and does when pages are free. */
static void test_pool_in_step(uint32_t chunk, uint32_t n_threads) {
    const uint32_t page = FL_PAGE_TOKENS;
    const size_t lengths[] = {page, 3, 2 * page}; /* the first and the last go on in a new page */
    const folollm_token next[] = {5, 6, 7}, many[96] = {0};
    uint64_t bits[3];
    test_host h;
    folollm *f = open_engine(&h, (page < 3 ? 9 : 8) * page, chunk, n_threads);
    step_apart(lengths, next, 3, bits);
    folollm_seq seqs[4] = {open_with(f, lengths[0], 0), open_with(f, lengths[1], 1), open_with(f, lengths[2], 2),
                           open_with(f, 2 * page + 1, 5)};
    CHECK(f->pages.n_free == 1);
    state before = state_of(f, seqs, 4);
    for (int again = 0; again < 2; again++) {
        CHECK(folollm_decode_step(f, seqs, next, 3, &error) == FOLOLLM_E_POOL && error.text[0] != 0);
        check_unchanged(f, seqs, 4, &before);
        CHECK(folollm_prefill(f, seqs[0], many, 3 * page, NULL, &error) == FOLOLLM_E_POOL);
        check_unchanged(f, seqs, 4, &before);
    }
    CHECK(folollm_seq_close(f, seqs[3], &error) == FOLOLLM_OK);
    CHECK(folollm_decode_step(f, seqs, next, 3, &error) == FOLOLLM_OK);
    for (size_t i = 0; i < 3; i++) {
        CHECK(digest_logits(f, seqs[i], 1) == bits[i]);
    }
    close_engine(&h, f);
}

/* The same when a shared page was already copied for one of them: that is taken back too. n_cut tokens are cut off
 * the fork, which then goes on in the middle of what the other one holds. */
static void test_pool_after_copy(size_t n_cut) {
    const uint32_t page = FL_PAGE_TOKENS;
    test_host h;
    folollm *f = open_engine(&h, 4 * page, 0, 1);
    folollm_token next[] = {5, 6, 7};
    folollm_seq seqs[3] = {open_with(f, 2 * page - 1, 0), 0, 0};
    CHECK(folollm_seq_fork(f, seqs[0], NULL, &seqs[1], &error) == FOLOLLM_OK);
    CHECK(folollm_seq_truncate(f, seqs[1], 2 * page - 1 - n_cut, &error) == FOLOLLM_OK);
    seqs[2] = open_with(f, page, 1); /* 2 shared + 1, one free: the copy takes it, the last finds none */
    state before = state_of(f, seqs, 3);
    CHECK(folollm_decode_step(f, seqs, next, 3, &error) == FOLOLLM_E_POOL);
    check_unchanged(f, seqs, 3, &before);
    CHECK(folollm_decode_step(f, seqs, next, 2, &error) == FOLOLLM_OK); /* one copy serves both */
    CHECK(f->executor.stats.pages_copied == 2 && f->pages.n_free == 0 && f->pages.n_shared == 1);
    close_engine(&h, f);
}

/* A step in which one sequence fills its context changes none. */
static void test_context_in_step(void) {
    test_host h;
    folollm *f = open_engine(&h, 96 * 4, 0, 1);
    folollm_token next[] = {5, 6, 7};
    folollm_seq seqs[3] = {open_with(f, 10, 0), open_with(f, 96, 1), open_with(f, 16, 2)};
    state before = state_of(f, seqs, 3);
    CHECK(folollm_decode_step(f, seqs, next, 3, &error) == FOLOLLM_E_CONTEXT);
    CHECK(strstr(error.text, "96") != NULL);
    check_unchanged(f, seqs, 3, &before);
    CHECK(folollm_seq_truncate(f, seqs[1], 95, &error) == FOLOLLM_OK);
    CHECK(folollm_decode_step(f, seqs, next, 3, &error) == FOLOLLM_OK);
    uint64_t bits[3];
    step_apart((const size_t[]){10, 95, 16}, next, 3, bits);
    for (size_t i = 0; i < 3; i++) {
        CHECK(digest_logits(f, seqs[i], 1) == bits[i]);
    }
    close_engine(&h, f);
}

/* ---- Numbers that are none ----------------------------------------------------------------------- */

#define BAD_TOKEN 40

/* Write a half-precision pattern over one value of a tensor of the file in memory. */
static void damage(test_host *h, const char *tensor, size_t at, uint16_t value) {
    fl_memory m;
    fl_tensors t;
    fl_memory_init(&m, &h->hooks);
    if (!CHECK(fl_tensors_open(&m, &t, "mem", NULL, &error) == FOLOLLM_OK)) {
        return;
    }
    const fl_tensor *found = fl_tensors_find(&t, fl_str_of(tensor));
    if (CHECK(found != NULL && found->type == FL_F16 && at * 2 < found->n_bytes)) {
        memcpy(host_find(h, "model.safetensors")->bytes + found->offset + at * 2, &value, sizeof value);
    }
    fl_tensors_close(&t);
}

/* One damaged embedding row: whoever uses it gets FOLOLLM_E_NUMERIC and stays where it was, others notice nothing.
 */
static void test_numeric_row(uint16_t value, uint32_t chunk, uint32_t n_threads, bool mapped) {
    const size_t lengths[] = {10, 20, FL_PAGE_TOKENS};
    const folollm_token next[] = {5, 6, 7}, bad[] = {5, BAD_TOKEN, 7};
    folollm_token prompt[40];
    uint64_t bits[3];
    test_host h;
    step_apart(lengths, next, 3, bits);
    host_init(&h, true);
    h.hooks.file_map = mapped ? host_map : NULL;
    CHECK(host_put_directory(&h, model_path(SMALL)));
    host_put_tokenizer(&h);
    damage(&h, "model.embed_tokens.weight", BAD_TOKEN * 20 + 11, value);
    folollm *f = load_memory(&h, &(folollm_options){.pool_tokens = 192, .chunk = chunk, .n_threads = n_threads});
    folollm_seq seqs[4];
    for (size_t i = 0; i < 3; i++) {
        seqs[i] = open_with(f, lengths[i], i);
    }
    CHECK(folollm_seq_fork(f, seqs[0], NULL, &seqs[3], &error) == FOLOLLM_OK);
    state before = state_of(f, seqs, 4);
    CHECK(folollm_decode_step(f, seqs, bad, 3, &error) == FOLOLLM_E_NUMERIC && error.text[0] != 0);
    check_unchanged(f, seqs, 4, &before);
    CHECK(folollm_seq_truncate(f, seqs[3], lengths[0] - 1, &error) == FOLOLLM_OK);
    before = state_of(f, seqs, 4);
    CHECK(folollm_decode_step(f, (folollm_seq[]){seqs[0], seqs[3], seqs[1]}, (folollm_token[]){5, 8, BAD_TOKEN}, 3,
                              &error) == FOLOLLM_E_NUMERIC);
    CHECK(state_of(f, seqs, 4).digest == before.digest); /* the fork wrote where the other one's last token was */
    before = state_of(f, seqs, 4);
    for (size_t at = 0; at < 40; at += 13) { /* in any chunk of the prompt */
        for (size_t i = 0; i < 40; i++) {
            prompt[i] = i == at ? BAD_TOKEN : token_at(i);
        }
        CHECK(folollm_prefill(f, seqs[1], prompt, 40, NULL, &error) == FOLOLLM_E_NUMERIC && error.text[0] != 0);
        check_unchanged(f, seqs, 4, &before);
        static float all_logits[40 * 80];
        CHECK(folollm_prefill(f, seqs[1], prompt, 40, all_logits, &error) == FOLOLLM_E_NUMERIC);
        check_unchanged(f, seqs, 4, &before);
    }
    CHECK(folollm_decode_step(f, seqs, next, 3, &error) == FOLOLLM_OK);
    for (size_t i = 0; i < 3; i++) {
        CHECK(digest_logits(f, seqs[i], 1) == bits[i]);
    }
    folollm_stats stats;
    folollm_get_stats(f, &stats);
    CHECK(stats.undone == 10);
    close_engine(&h, f);
}

/* A value in any tensor that is not finite: never a token from it. */
static void test_numeric_everywhere(void) {
    static const char *const tensors[] = {
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",    "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",    "model.layers.1.input_layernorm.weight",
        "model.norm.weight",                      "lm_head.weight",
    };
    for (size_t k = 0; k < FL_COUNT(tensors) * 5; k++) { /* with every type of KV cache */
        test_host h;
        folollm_sampled out;
        folollm_options o = {.kv = (folollm_kv_type)(k % 5)};
        folollm_token tokens[] = {1, 2, 3};
        size_t i = k / 5;
        folollm_seq seq;
        host_init(&h, true);
        CHECK(host_put_directory(&h, model_path(SMALL)));
        damage(&h, tensors[i], 5, 0x7E00);
        folollm *f = load_memory(&h, &o);
        CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
        CHECK_TEXT(folollm_prefill(f, seq, tokens, 3, NULL, &error) == FOLOLLM_E_NUMERIC, tensors[i]);
        CHECK_TEXT(folollm_decode_step(f, &seq, tokens, 1, &error) == FOLOLLM_E_NUMERIC, tensors[i]);
        CHECK(folollm_sample(f, seq, &out, NULL, 0, &error) == FOLOLLM_E_STATE);
        CHECK(f->pages.n_free == f->pages.n_pages);
        close_engine(&h, f);
    }
}

/* The KV cache and the logits of a step; of scratch memory what loading neither fills nor keeps at zero: padding
 * behind the rows of an odd width stays zero by its allocation. */
static void fill_working_memory(folollm *f, int value) {
    fl_rope *rope = &f->worker.rope;
    const fl_config *c = &f->checkpoint->weights.config;
    float kept[512];
    memset(f->worker.cache.base, value, f->worker.cache.size);
    memset(f->executor.logits, value, f->max_seqs * (size_t)c->vocab * sizeof(float));
    if (c->dim % 16 == 0 && c->ffn_dim % 16 == 0 && c->head_dim % 16 == 0) {
        memcpy(kept, rope->frequencies, rope->half * sizeof *kept);
        memset(f->worker.scratch.base, value, f->worker.scratch.size);
        memcpy(rope->frequencies, kept, rope->half * sizeof *kept);
    }
}

/* What lies in unused cache, padding and scratch changes no bit, NaN least of all. */
static void test_dirty_memory(void) {
    static const char *const models[] = {SMALL, "tests/vectors/models/mistral-window-old",
                                         "tests/vectors/models/qwen3-window-mixed",
                                         "tests/vectors/models/qwen2-mqa-bf16", SHAKESPEARE};
    for (size_t i = 0; i < FL_COUNT(models) * 5; i++) {
        static const int values[] = {0, 0xFF, 0x7F};
        uint64_t bits[3];
        for (size_t k = 0; k < 3; k++) {
            folollm_options o = {.n_threads = 1u + i % 2, .kv = (folollm_kv_type)(i % 5), .context = 64};
            folollm *f = NULL;
            CHECK(folollm_load(model_path(models[i / 5]), &o, &f, &error) == FOLOLLM_OK);
            if (f == NULL) {
                return;
            }
            fill_working_memory(f, values[k]);
            bits[k] = probe(f);
            fill_working_memory(f, values[k]);
            CHECK(probe(f) == bits[k]);
            folollm_free(f);
        }
        CHECK(bits[0] == bits[1] && bits[0] == bits[2]);
    }
}

/* Shared engines may be freed in any order, with sequences open, from any of them. */
static void test_share_orders(void) {
    static const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (size_t i = 0; i < FL_COUNT(orders) * 2; i++) {
        test_host h;
        folollm *f[3];
        folollm_seq seq;
        host_init(&h, true);
        h.hooks.file_map = i % 2 != 0 ? host_map : NULL;
        CHECK(host_put_directory(&h, model_path(SMALL)));
        host_put_tokenizer(&h);
        folollm_options o = {.n_threads = 1, .max_seqs = 2, .pool_tokens = 96};
        f[0] = load_memory(&h, &o);
        CHECK(folollm_share(f[0], &o, &f[1], &error) == FOLOLLM_OK);
        CHECK(folollm_share(f[1], &o, &f[2], &error) == FOLOLLM_OK);
        uint64_t bits = probe(f[0]);
        for (size_t k = 0; k < 3; k++) {
            folollm_token tokens[16];
            size_t n = 16;
            CHECK(probe(f[orders[i / 2][k]]) == bits);
            CHECK(folollm_tokenize(f[orders[i / 2][k]], "hello", 5, NULL, 0, 0, tokens, &n, &error) == FOLOLLM_OK);
            CHECK(folollm_seq_open(f[orders[i / 2][k]], NULL, &seq, &error) == FOLOLLM_OK);
            folollm_free(f[orders[i / 2][k]]);
            CHECK(k == 2 || h.live > 0);
        }
        CHECK(host_is_clean(&h));
        host_free(&h);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) {
        snprintf(root, sizeof root, "%s", argv[1]);
    }
    test_every_fault();
    test_hooks_equal_path();
    test_plan();
    test_load_loops();
    test_progress();
    test_misuse();
    test_pool_in_step(0, 1);
    test_pool_in_step(2, 2);
    test_pool_after_copy(0);
    if (FL_PAGE_TOKENS > 3) {
        test_pool_after_copy(2);
    }
    test_context_in_step();
    test_numeric_row(0x7E00, 0, 1, true);  /* NaN */
    test_numeric_row(0xFC00, 7, 2, false); /* -inf */
    test_numeric_row(0x7C00, 2, 1, true);  /* inf */
    test_numeric_everywhere();
    test_dirty_memory();
    test_share_orders();
    printf("%llu faults injected\n", (unsigned long long)n_faults);
    return check_finish();
}
