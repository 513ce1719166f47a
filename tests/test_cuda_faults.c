/* What no device shows on demand, over the runtime in cuda/: calls that fail, memory that runs out, a device that is
 * lost, threads in another order. And what it would not show: that a step allocates nothing, waits once, and is one
 * launch.
 *
 * Linked with folollm_kernels.cu, compiled over that runtime, as the Makefile does it. */
#include "inside.h"

#include "check.h"
#include "cuda/shim.h"
#include "host.h"

#define MODEL "tests/vectors/models/qwen3-gqa-fp32"
#define ADAPTER "tests/vectors/adapters/all" /* on all seven matrices of a layer */
#define LAYERS 2
#define OUT_OF_MEMORY 2  /* cudaErrorMemoryAllocation: the device lives on */
#define ILLEGAL_ADDRESS 700 /* cudaErrorIllegalAddress: it does not */

int cudaGetDevice(int *device); /* of the runtime */
int cudaSetDevice(int device);

static folollm_error error;
static test_host host;

static folollm_options small_options(void) {
    folollm_options o = {.host = &host.hooks, .context = 80, .pool_tokens = 400, .chunk = 5, .n_threads = 1};
    o.device = 1;
    return o;
}

static int nothing_is_left(void) {
    shim_counts c = shim_get_counts();
    return host_is_clean(&host) && c.live_allocations == 0 && c.live_host_allocations == 0 && c.live_streams == 0 &&
           c.live_events == 0 && c.live_graphs == 0 && c.live_execs == 0 && c.bad_frees == 0;
}

/* ---- A life of an engine, in which any call may fail -- */

#define FIRST 5  /* tokens of a prompt */
#define STEPS 2
#define ANSWER 3

typedef struct life {
    uint32_t n_failed; /* calls of ours */
    bool lost;
    float *logits; /* (2 * STEPS + 1, vocab) */
    size_t n_logits;
    folollm_token answer[ANSWER];
    size_t n_answer;
} life;

/* Call until it works; false: it never will. */
#define INSIST(call)                                                                       \
    do {                                                                                   \
        folollm_status status_;                                                            \
        for (int tries = 0; (status_ = (call)) != FOLOLLM_OK; tries++) {                   \
            l->n_failed++;                                                                 \
            CHECK((status_ == FOLOLLM_E_DEVICE || status_ == FOLOLLM_E_MEMORY) && error.status == status_); \
            CHECK(strstr(error.text, "CUDA device 0") != NULL);                            \
            if (tries == 2) {                                                              \
                l->lost = true;                                                            \
                return;                                                                    \
            }                                                                              \
        }                                                                                  \
    } while (0)

/* With the token that is sampled before they are asked for, and after it. */
static folollm_status keep_logits(folollm *f, folollm_seq seq, life *l, uint32_t vocab) {
    const float *logits = NULL;
    folollm_sampled before, after;
    CHECK(folollm_sample(f, seq, &before, NULL, 0, &error) == FOLOLLM_OK);
    folollm_status status = folollm_logits(f, seq, &logits, &error);
    if (status != FOLOLLM_OK) {
        return status;
    }
    CHECK(folollm_sample(f, seq, &after, NULL, 0, &error) == FOLOLLM_OK && after.token == before.token);
    CHECK(memcmp(&before.chosen, &after.chosen, sizeof before.chosen) == 0);
    memcpy(l->logits + l->n_logits++ * vocab, logits, vocab * sizeof *logits);
    return FOLOLLM_OK;
}

/* A step that fails leaves the logits before it, wherever they lie. */
static folollm_status step_or_not(folollm *f, const folollm_seq seqs[2], const folollm_token next[2]) {
    folollm_sampled before, after;
    CHECK(folollm_sample(f, seqs[0], &before, NULL, 0, &error) == FOLOLLM_OK);
    folollm_status status = folollm_decode_step(f, seqs, next, 2, &error);
    folollm_error why = error;
    const float *logits = NULL;
    if (status != FOLOLLM_OK && folollm_logits(f, seqs[0], &logits, NULL) == FOLOLLM_OK) {
        CHECK(folollm_sample(f, seqs[0], &after, NULL, 0, &error) == FOLOLLM_OK);
        CHECK(memcmp(&before.chosen, &after.chosen, sizeof before.chosen) == 0);
    }
    error = why;
    return status;
}

static void live_by_hand(folollm *f, uint32_t vocab, life *l) {
    static uint8_t saved[1 << 20];
    folollm_token ids[FIRST + STEPS] = {3, 1, 4, 1, 5, 9, 2};
    folollm_seq seqs[2], back = 0;
    folollm_adapter adapter = 0;
    size_t n = sizeof saved;
    CHECK(folollm_seq_open(f, NULL, &seqs[0], NULL) == FOLOLLM_OK);
    INSIST(folollm_adapter_load(f, ADAPTER, 1, &adapter, &error));
    CHECK(folollm_seq_set_adapter(f, seqs[0], adapter, NULL) == FOLOLLM_OK);
    INSIST(folollm_prefill(f, seqs[0], ids, FIRST, NULL, &error));
    INSIST(folollm_seq_fork(f, seqs[0], NULL, &seqs[1], &error));
    for (size_t i = 0; i < STEPS; i++) {
        folollm_token next[2] = {ids[FIRST + i], ids[i]};
        INSIST(step_or_not(f, seqs, next));
        INSIST(keep_logits(f, seqs[0], l, vocab));
        INSIST(keep_logits(f, seqs[1], l, vocab));
        INSIST(folollm_prefill(f, seqs[0], &ids[i], 1, NULL, &error)); /* its logits are away again */
    }
    INSIST((n = sizeof saved, folollm_seq_save(f, seqs[1], saved, &n, &error)));
    CHECK(folollm_seq_close(f, seqs[1], NULL) == FOLOLLM_OK);
    INSIST(folollm_seq_restore(f, saved, n, &back, &error));
    INSIST(folollm_decode_step(f, &back, ids, 1, &error));
    INSIST(keep_logits(f, back, l, vocab));
    CHECK(folollm_seq_close(f, back, NULL) == FOLOLLM_OK && folollm_seq_close(f, seqs[0], NULL) == FOLOLLM_OK);
}

/* When a step fails, that which was begun behind it is given up. */
static folollm_status step_for(folollm *f, folollm_event *event, size_t *n) {
    folollm_status status = folollm_step(f, NULL, event, n, &error);
    CHECK(status == FOLOLLM_OK || f->driver.ahead.n == 0);
    return status;
}

static void live_by_requests(folollm *f, life *l) {
    folollm_token ids[] = {2, 7, 1, 8, 2};
    folollm_sampling sampling = {.max_tokens = ANSWER, .ignore_eos = 1};
    folollm_submission s = {.prompt = ids, .n_prompt = 5, .sampling = &sampling};
    folollm_seq seq;
    CHECK(folollm_submit(f, &s, &seq, NULL) == FOLOLLM_OK);
    for (int steps = 0; l->n_answer < ANSWER && steps < 100; steps++) {
        folollm_event event;
        size_t n = 1;
        INSIST(step_for(f, &event, (n = 1, &n)));
        if (n == 1) {
            CHECK(event.status == FOLOLLM_OK);
            l->answer[l->n_answer++] = event.token;
        }
    }
    l->lost = l->n_answer < ANSWER; /* recorded steps that never start again leave nothing else */
}

/* The n-th call of a kind of the runtime's fails; 0: none. */
static life live(shim_call kind, uint64_t n, int code, bool forever) {
    folollm_options o = small_options();
    folollm_info info;
    folollm *f = NULL;
    life l = {0};
    shim_fail_call(kind, n, code, forever);
    folollm_status status = folollm_load(MODEL, &o, &f, &error);
    if (status != FOLOLLM_OK) {
        CHECK(f == NULL && (status == FOLOLLM_E_DEVICE || status == FOLOLLM_E_MEMORY) && error.status == status);
        l.n_failed = 1;
        l.lost = true;
        return l;
    }
    folollm_get_info(f, &info);
    CHECK(info.memory.allocated == host.live);
    l.logits = malloc((2 * STEPS + 1) * (size_t)info.vocab * sizeof(float));
    live_by_hand(f, info.vocab, &l);
    if (!l.lost) {
        live_by_requests(f, &l);
    }
    folollm_free(f);
    return l;
}

/* how: what failed once, for ever, or took the device with it. */
static void check_life(const life *l, const life *whole, size_t vocab, int how, uint64_t *n_survived,
                       uint64_t *n_lost) {
    CHECK(how != 0 || !l->lost || l->logits == NULL);
    if (how == 0 && !l->lost) { /* whatever failed was done again, and gave what it would have given */
        CHECK(l->n_logits == whole->n_logits && l->n_answer == whole->n_answer);
        CHECK(memcmp(l->logits, whole->logits, whole->n_logits * vocab * sizeof(float)) == 0);
        CHECK(memcmp(l->answer, whole->answer, sizeof whole->answer) == 0);
        *n_survived += l->n_failed > 0;
    }
    if (how == 2 && l->n_failed > 0) {
        CHECK(l->lost); /* never garbage: all that came before stands */
        CHECK(l->n_logits == 0 || memcmp(l->logits, whole->logits, l->n_logits * vocab * sizeof(float)) == 0);
        (*n_lost)++;
    }
    CHECK(shim_get_counts().n_injected > 0 && nothing_is_left());
}

static void test_calls(void) {
    shim_reset();
    life whole = live(SHIM_cudaMalloc, 0, 0, false);
    shim_counts counts = shim_get_counts();
    CHECK(whole.n_failed == 0 && !whole.lost && nothing_is_left());
    folollm_options o = small_options();
    folollm_info info;
    folollm *f = NULL;
    CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_OK);
    folollm_get_info(f, &info);
    folollm_free(f);
    uint64_t n_survived = 0, n_lost = 0;
    for (int call = 0; call < SHIM_N_CALLS; call++) {
        uint64_t stride = call == SHIM_cudaGetDevice ? 29 : call == SHIM_cudaLaunchKernelEx ? 11 : 1;
        for (uint64_t n = 1; n <= counts.calls[call]; n += stride) {
            for (int how = 0; how < (n % 3 == 1 ? 3 : 1); how++) {
                shim_reset();
                life l = live((shim_call)call, n, how < 2 ? OUT_OF_MEMORY : ILLEGAL_ADDRESS, how == 1);
                check_life(&l, &whole, info.vocab, how, &n_survived, &n_lost);
                free(l.logits);
            }
        }
    }
    CHECK(n_survived > 40 && n_lost > 40);
    shim_reset();
    free(whole.logits);
}

/* ---- A lost device, and the rest of the process -- */

static void test_lost(void) {
    folollm_options o = small_options();
    folollm *f = NULL, *cpu = NULL;
    folollm_token ids[] = {1, 2, 3, 4};
    folollm_seq seq, other;
    const float *logits = NULL, *after = NULL;
    shim_reset();
    CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_OK);
    o.device = 0;
    CHECK(folollm_share(f, &o, &cpu, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, ids, 4, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_logits(f, seq, &logits, &error) == FOLOLLM_OK);
    float first = logits[0];
    shim_fail(1, ILLEGAL_ADDRESS, 0);
    for (int i = 0; i < 3; i++) {
        CHECK(folollm_decode_step(f, &seq, ids, 1, &error) == FOLOLLM_E_DEVICE && strstr(error.text, "lost") != NULL);
        CHECK(folollm_prefill(f, seq, ids, 2, NULL, &error) == FOLOLLM_E_DEVICE);
    }
    CHECK(folollm_logits(f, seq, &after, &error) == FOLOLLM_OK && after[0] == first);
    uint8_t bytes[64];
    size_t n = 0;
    CHECK(folollm_seq_save(f, seq, NULL, &n, &error) == FOLOLLM_OK && n > sizeof bytes);
    uint8_t *room = malloc(n);
    CHECK(folollm_seq_save(f, seq, room, &n, &error) == FOLOLLM_E_DEVICE);
    free(room);
    CHECK(folollm_seq_open(cpu, NULL, &other, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(cpu, other, ids, 4, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_logits(cpu, other, &after, &error) == FOLOLLM_OK && after[0] == first);
    folollm_free(f);
    folollm_free(cpu);
    CHECK(nothing_is_left());
}

/* ---- Memory and devices -- */

static void test_memory(void) {
    folollm_options o = small_options();
    folollm_memory plan;
    folollm *f = NULL;
    shim_reset();
    CHECK(folollm_plan(MODEL, &o, &plan, &error) == FOLOLLM_OK);
    CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_OK);
    CHECK(shim_get_counts().live_bytes == plan.device);
    folollm_free(f);
    for (uint64_t bytes = 0; bytes < plan.device; bytes += plan.device / 23) {
        shim_reset();
        shim_set_memory(bytes);
        f = NULL;
        CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_E_MEMORY && f == NULL);
        CHECK(strstr(error.text, "bytes for") != NULL && nothing_is_left());
    }
    shim_reset();
    shim_set_devices(0);
    CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_E_DEVICE && f == NULL && nothing_is_left());
    shim_reset();
}

/* Two devices in one process; which one the host has made current stays its own affair. */
static void test_devices(void) {
    folollm_options o = small_options();
    folollm *engines[2] = {NULL, NULL};
    folollm_token ids[] = {1, 2, 3, 4};
    const float *logits[2];
    folollm_info info;
    int current = -1;
    shim_reset();
    shim_set_devices(3);
    cudaSetDevice(2);
    for (uint32_t i = 0; i < 2; i++) {
        folollm_seq seq;
        o.device = 1 + i;
        CHECK(folollm_load(MODEL, &o, &engines[i], &error) == FOLOLLM_OK);
        CHECK(folollm_seq_open(engines[i], NULL, &seq, &error) == FOLOLLM_OK);
        CHECK(folollm_prefill(engines[i], seq, ids, 4, NULL, &error) == FOLOLLM_OK);
        CHECK(folollm_decode_step(engines[i], &seq, ids, 1, &error) == FOLOLLM_OK);
        CHECK(folollm_logits(engines[i], seq, &logits[i], &error) == FOLOLLM_OK);
        CHECK(cudaGetDevice(&current) == 0 && current == 2);
    }
    folollm_get_info(engines[0], &info);
    CHECK(memcmp(logits[0], logits[1], info.vocab * sizeof(float)) == 0);
    folollm_free(engines[0]);
    folollm_free(engines[1]);
    CHECK(cudaGetDevice(&current) == 0 && current == 2 && nothing_is_left());
    shim_reset();
}

/* ---- What a step does -- */

/* Of requests, the choices alone come back, unless someone wants to see their logits. */
static void check_answer_steps(folollm *f) {
    for (uint32_t n_top = 0; n_top < 2; n_top++) {
        folollm_token ids[] = {2, 7, 1};
        folollm_sampling sampling = {.max_tokens = 9, .ignore_eos = 1, .temperature = 1, .top_p = 0.9f};
        folollm_submission s = {.prompt = ids, .n_prompt = 3, .sampling = &sampling, .n_top = n_top};
        folollm_event event;
        folollm_info info;
        folollm_seq seq;
        size_t n = 1;
        folollm_get_info(f, &info);
        CHECK(folollm_submit(f, &s, &seq, &error) == FOLOLLM_OK);
        CHECK(folollm_step(f, NULL, &event, &n, &error) == FOLOLLM_OK && n == 1);
        shim_counts c;
        shim_clear_counts();
        for (uint64_t i = 1; i < 9; i++) {
            CHECK(folollm_step(f, NULL, &event, &n, &error) == FOLOLLM_OK && n == 1 && event.token >= 0);
            c = shim_get_counts();
            /* The choice alone lets the next step begin before this one is over, and it is not waited for. */
            CHECK(c.graph_launches == (n_top == 0 && i < 8 ? i + 1 : i) && c.copies_out == c.graph_launches);
            CHECK(c.synchronisations == i && c.calls[SHIM_cudaEventSynchronize] == (n_top == 0 ? i : 0));
        }
        CHECK(event.finish == FOLOLLM_FINISH_LENGTH && c.kernels == 0 && c.copies_in == c.graph_launches);
        CHECK(c.bytes_out == 8 * (n_top == 0 ? sizeof(fl_device_chosen) : info.vocab * sizeof(float)));
        n = 1;
        CHECK(folollm_step(f, NULL, &event, &n, &error) == FOLOLLM_OK && n == 0);
    }
}

/* Recorded, too, while another step is on its way and when it was given up. */
static void check_adapted_step(folollm *f) {
    folollm_token ids[] = {2, 7, 1};
    folollm_adapter adapter;
    folollm_sampled sampled;
    folollm_seq seq, other;
    CHECK(folollm_seq_open(f, NULL, &other, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, other, ids, 3, NULL, &error) == FOLOLLM_OK);
    for (int i = 0; i < 3; i++) {
        CHECK(folollm_sample(f, other, &sampled, NULL, 0, &error) == FOLOLLM_OK);
        CHECK(folollm_decode_step(f, &other, &sampled.token, 1, &error) == FOLOLLM_OK);
    }
    CHECK(f->executor.has_begun);
    CHECK(folollm_adapter_load(f, ADAPTER, 1, &adapter, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_set_adapter(f, seq, adapter, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, ids, 3, NULL, &error) == FOLOLLM_OK);
    shim_clear_counts();
    for (uint64_t i = 1; i < 5; i++) {
        CHECK(folollm_sample(f, seq, &sampled, NULL, 0, &error) == FOLOLLM_OK);
        CHECK(folollm_decode_step(f, &seq, &sampled.token, 1, &error) == FOLOLLM_OK);
        shim_counts c = shim_get_counts();
        CHECK(c.kernels == 0 && c.graph_launches == (i < 3 ? i : i + 1)); /* begun when it was followed twice */
    }
    CHECK(f->executor.has_begun);
    CHECK(folollm_seq_close(f, seq, &error) == FOLOLLM_OK && folollm_adapter_free(f, adapter, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(f, other, &error) == FOLOLLM_OK);
}

/* Steps that take turns with others begin nothing that would be given up. */
static void check_turns(folollm *f) {
    folollm_token ids[] = {2, 7, 1};
    folollm_sampling sampling = {.max_tokens = 20, .ignore_eos = 1};
    folollm_submission s = {.prompt = ids, .n_prompt = 3, .sampling = &sampling};
    folollm_seq seqs[2], request;
    folollm_sampled sampled;
    folollm_event event;
    size_t n = 1;
    for (int i = 0; i < 2; i++) {
        CHECK(folollm_seq_open(f, NULL, &seqs[i], &error) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seqs[i], ids, 3, NULL, &error) == FOLOLLM_OK);
    }
    CHECK(folollm_submit(f, &s, &request, &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, &event, &n, &error) == FOLOLLM_OK && n == 1);
    shim_clear_counts();
    for (uint64_t i = 0; i < 12; i++) {
        for (int k = 0; k < (i < 6 ? 2 : 1); k++) {
            CHECK(folollm_sample(f, seqs[k], &sampled, NULL, 0, &error) == FOLOLLM_OK);
            CHECK(folollm_decode_step(f, &seqs[k], &sampled.token, 1, &error) == FOLOLLM_OK);
        }
        if (i >= 6) {
            CHECK(folollm_step(f, NULL, &event, (n = 1, &n), &error) == FOLOLLM_OK && n == 1);
        }
    }
    CHECK(shim_get_counts().graph_launches == 24);
    CHECK(folollm_cancel(f, request, &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, &event, &n, &error) == FOLOLLM_OK && n == 1);
    CHECK(folollm_seq_close(f, seqs[0], &error) == FOLOLLM_OK && folollm_seq_close(f, seqs[1], &error) == FOLOLLM_OK);
}

/* Kernels that were compiled for a device that cannot wait for one another must not begin early on one that can. */
static void test_early(void) {
    folollm_options o = small_options();
    static const int compiled[] = {0, 80, 90};
    for (int i = 0; i < 3; i++) {
        folollm *f = NULL;
        shim_reset();
        shim_set_compiled(compiled[i]);
        CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_OK);
        CHECK((shim_get_counts().early > LAYERS * 5) == (compiled[i] != 80));
        folollm_free(f);
    }
    shim_reset();
    shim_set_compiled(0);
}

/* Sequences that go the same way have their logits kept in one copy. */
static void check_together(folollm *f, const folollm_seq seqs[2]) {
    static const folollm_token ids[] = {9, 8};
    while (f->sequences.slots[0].away != f->sequences.slots[1].away) {
        CHECK(folollm_decode_step(f, seqs, ids, 1, &error) == FOLOLLM_OK);
    }
    shim_clear_counts();
    for (int i = 0; i < 3; i++) {
        CHECK(folollm_decode_step(f, seqs, ids, 2, &error) == FOLOLLM_OK);
    }
    CHECK(shim_get_counts().copies_on == 3 && shim_get_counts().graph_launches == 3);
}

static void test_steps(void) {
    folollm_options o = small_options();
    folollm_token ids[] = {1, 2, 3, 4};
    folollm_seq seqs[2];
    folollm *f = NULL;
    o.chunk = 8;
    shim_reset();
    CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_OK);
    for (int i = 0; i < 2; i++) {
        CHECK(folollm_seq_open(f, NULL, &seqs[i], &error) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seqs[i], ids, 4, NULL, &error) == FOLOLLM_OK);
    }
    shim_clear_counts();
    for (int i = 0; i < 70; i++) { /* past the first split of attention, and so to other recorded steps */
        folollm_sampled sampled;
        CHECK(folollm_decode_step(f, seqs, ids, 1 + i % 2, &error) == FOLOLLM_OK);
        CHECK(folollm_sample(f, seqs[i % 2], &sampled, NULL, 0, &error) == FOLOLLM_OK);
    }
    shim_counts c = shim_get_counts();
    CHECK(c.kernels == 0 && c.graph_launches == 70);
    /* A layer: q k v, attention, o, gate and up, down. And embedding, head, choice. */
    CHECK(c.graph_kernels == 70 * (3 + LAYERS * 5));
    CHECK(c.allocations == 0 && c.host_allocations == 0 && c.calls[SHIM_cudaGraphInstantiate] == 0);
    CHECK(c.copies_in == 70 && c.copies_out == 70 && c.synchronisations == 70);
    folollm_info info;
    folollm_get_info(f, &info);
    uint64_t kept = 105 * (uint64_t)info.vocab * sizeof(float); /* the logits stay there */
    CHECK(c.bytes_out == 105 * sizeof(fl_device_chosen) && c.bytes_on == kept && c.copies_on <= 105);
    for (int i = 0; i < 2; i++) {
        CHECK(folollm_prefill(f, seqs[i], ids, 1, NULL, &error) == FOLOLLM_OK);
    }
    check_together(f, seqs);
    check_answer_steps(f);
    check_adapted_step(f);
    check_turns(f);
    folollm_free(f);
    CHECK(nothing_is_left());
}

/* Threads in any order give the same bits; where they would not, there is a race. */
static void test_orders(void) {
    folollm_token ids[66];
    float *expected = NULL;
    for (int i = 0; i < 66; i++) {
        ids[i] = i * 5 % 47;
    }
    for (uint64_t order = 0; order < 6; order++) {
        for (int kind = 0; kind < 2; kind++) {
            folollm_options o = small_options();
            folollm_info info;
            folollm_seq seq;
            folollm *f = NULL;
            o.chunk = 40;
            o.weights = kind == 0 ? FOLOLLM_WEIGHTS_AS_STORED : FOLOLLM_WEIGHTS_Q8;
            o.kv = kind == 0 ? FOLOLLM_KV_F16 : FOLOLLM_KV_Q4;
            shim_reset();
            shim_set_order(order);
            CHECK(folollm_load(MODEL, &o, &f, &error) == FOLOLLM_OK);
            folollm_get_info(f, &info);
            size_t n = (size_t)66 * info.vocab;
            float *logits = malloc(n * sizeof *logits);
            expected = expected != NULL ? expected : malloc(2 * n * sizeof *logits);
            CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
            CHECK(folollm_prefill(f, seq, ids, 65, logits, &error) == FOLOLLM_OK);
            CHECK(folollm_decode_step(f, &seq, ids, 1, &error) == FOLOLLM_OK);
            CHECK(shim_get_counts().graph_kernels == 3 + LAYERS * 5);
            const float *last = NULL;
            CHECK(folollm_logits(f, seq, &last, &error) == FOLOLLM_OK);
            memcpy(logits + 65 * (size_t)info.vocab, last, info.vocab * sizeof *last);
            if (order == 0) {
                memcpy(expected + kind * n, logits, n * sizeof *logits);
            }
            CHECK(memcmp(expected + kind * n, logits, n * sizeof *logits) == 0);
            free(logits);
            folollm_free(f);
        }
    }
    shim_reset();
    free(expected);
}

int main(void) {
    host_init(&host, false);
    test_steps();
    test_early();
    test_orders();
    test_memory();
    test_devices();
    test_lost();
    test_calls();
    return check_finish();
}
