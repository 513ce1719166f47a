/* Tokens chosen by the CUDA backend beside those of the CPU's sampler: the same token and the same probabilities for
 * any logits and options; and what a device is not asked. Linked as test_cuda_bits. */
#include "inside.h"

#include "check.h"
#include "demand.h"
#include "random.h"

#include <stdlib.h>

#define VOCAB_MAX 5000
#define ROWS 4

typedef struct side {
    fl_device_counts *counts;
    float *logits;
    uint32_t *banned;
    fl_device_choice *choices;
    fl_device_chosen *chosen;
} side;

static void layout(side *s, fl_arena *a) {
    s->counts = fl_take(a, 1, sizeof *s->counts);
    s->logits = fl_take(a, ROWS * VOCAB_MAX, sizeof *s->logits);
    s->banned = fl_take(a, (VOCAB_MAX + 31) / 32, sizeof *s->banned);
    s->choices = fl_take(a, ROWS, sizeof *s->choices);
    s->chosen = fl_take(a, ROWS, sizeof *s->chosen);
}

enum { FLAT, PEAKED, TIED, EQUAL, ZEROS, HUGE_ONES, BROKEN, KINDS };

static void random_logits(int kind, float *x, uint32_t n) {
    static const float zeros[] = {0.0f, -0.0f, -1.0f}, huge[] = {3e38f, -3e38f, FLT_MAX, -FLT_MAX, 1e30f, 0};
    for (uint32_t i = 0; i < n; i++) {
        float r = random_float();
        x[i] = kind == PEAKED      ? 12 * r
               : kind == TIED      ? rintf(4 * r) / 2
               : kind == EQUAL     ? -3.25f
               : kind == ZEROS     ? zeros[random_below(3)]
               : kind == HUGE_ONES ? huge[random_below(FL_COUNT(huge))]
                                   : 3 * r;
    }
    if (kind == BROKEN) {
        static const float broken[] = {NAN, INFINITY, -INFINITY};
        x[random_below(n)] = broken[random_below(3)];
    }
}

static folollm_sampling random_sampling(uint32_t vocab) {
    static const float temperatures[] = {0, 1e-30f, 0.2f, 0.8f, 1, 1.7f, 100};
    static const float ps[] = {0, 1e-6f, 0.3f, 0.36787944f, 0.60653066f, 0.9f, 0.999f, 1}; /* powers of e among them */
    folollm_sampling s = {.seed = random_below(1000), .preset = (folollm_preset)random_below(3)};
    s.temperature = temperatures[random_below(FL_COUNT(temperatures))];
    s.top_p = random_below(2) != 0 ? ps[random_below(FL_COUNT(ps))] : 0;
    s.min_p = random_below(2) != 0 ? ps[random_below(FL_COUNT(ps))] : 0;
    s.top_k = random_below(3) == 0 ? 0 : random_below(3) == 0 ? vocab + 1 - random_below(2) : 1 + random_below(vocab);
    for (uint32_t i = 0, from = random_below(4); s.seed % 4 == 0 && i < 1 + s.seed % 3; i++) { /* an order of its own */
        s.order[i] = (folollm_stage)(1 + (from + i) % 4);
    }
    return s;
}

static fl_cuda device;
static fl_arena host_arena, device_arena, sampler_arena;
static side host, there;
static fl_sampler sampler;
static size_t n_chosen, n_broken, n_banned;

static void start_vocab(uint32_t vocab) {
    memset(&sampler, 0, sizeof sampler);
    memset(&sampler_arena, 0, sizeof sampler_arena);
    fl_sampler_layout(&sampler, &sampler_arena, vocab);
    demand(fl_arena_open(&memory, &sampler_arena, "a test", &error));
    fl_sampler_layout(&sampler, &sampler_arena, vocab);
    sampler.kernels = fl_kernels_of(FOLOLLM_ISA_BEST);
}

/* None, some, or all but a few of the ids are holes. */
static void random_holes(uint32_t vocab, folollm_token *holes) {
    uint32_t kind = random_below(4);
    sampler.holes = holes;
    sampler.n_holes = 0;
    memset(host.banned, 0, (VOCAB_MAX + 31) / 32 * sizeof *host.banned);
    for (uint32_t id = 0; id < vocab; id++) {
        if (kind == 0 ? random_below(50) == 0 : kind == 1 && random_below(50) != 0) {
            holes[sampler.n_holes++] = (folollm_token)id;
            host.banned[id / 32] |= 1u << id % 32;
        }
    }
}

static void check_row(size_t row, uint32_t vocab, const fl_sampling *o, const fl_history *h) {
    const float *logits = host.logits + row * vocab;
    const fl_device_chosen *made = &host.chosen[row];
    folollm_logprob expected = {0}, got = {0};
    float largest;
    bool whole = sampler.kernels->largest(logits, vocab, &largest);
    CHECK((made->broken != 0) == !whole);
    n_broken += !whole;
    if (!whole) {
        return;
    }
    bool is_there = fl_sampler_choose(&sampler, o, logits, h, &expected, NULL, 0);
    CHECK(fl_sampler_accept(made, &got) == is_there);
    n_banned += !is_there;
    if (is_there) {
        CHECK(got.token == expected.token);
        CHECK(memcmp(&got.raw, &expected.raw, sizeof got.raw) == 0);
        CHECK(memcmp(&got.processed, &expected.processed, sizeof got.processed) == 0);
        n_chosen++;
    }
}

static void check_rows(uint32_t vocab) {
    static folollm_token holes[VOCAB_MAX];
    static fl_sampling sampling[ROWS];
    fl_history then[ROWS];
    fl_device_chosen untouched;
    size_t row_bytes = vocab * sizeof(float);
    uint32_t silent = random_below(ROWS); /* not asked */
    random_holes(vocab, holes);
    memset(&untouched, 0x5A, sizeof untouched);
    *host.counts = (fl_device_counts){ROWS, ROWS - random_below(2), 0, 0};
    for (uint32_t row = 0; row < ROWS; row++) {
        folollm_sampling s = random_sampling(vocab);
        then[row] = (fl_history){NULL, NULL, 10 + random_below(1000), 10};
        random_logits((int)random_below(KINDS), host.logits + row * vocab, vocab);
        demand(fl_sampling_init(&sampling[row], &s, NULL, 0, vocab, &error));
        CHECK(fl_sampler_ask(&sampling[row], &then[row], &host.choices[row]) && host.choices[row].asked == 1);
        host.choices[row].asked = row != silent;
        host.chosen[row] = untouched;
    }
    fl_device_choose choose = {there.counts, ROWS, vocab, there.logits, there.banned, there.choices, there.chosen};
    fl_cuda_write(&device, there.counts, host.counts, sizeof *host.counts);
    fl_cuda_write(&device, there.logits, host.logits, ROWS * row_bytes);
    fl_cuda_write(&device, there.banned, host.banned, (VOCAB_MAX + 31) / 32 * sizeof *host.banned);
    fl_cuda_write(&device, there.choices, host.choices, ROWS * sizeof *host.choices);
    fl_cuda_write(&device, there.chosen, host.chosen, ROWS * sizeof *host.chosen);
    CHECK(device.api->choose(device.device, &choose) == 0);
    fl_cuda_read(&device, host.chosen, there.chosen, ROWS * sizeof *host.chosen);
    demand(fl_cuda_status(&device, &error));
    for (uint32_t row = 0; row < ROWS; row++) {
        if (row == silent || row >= host.counts->n_wanted) {
            CHECK(memcmp(&host.chosen[row], &untouched, sizeof untouched) == 0);
        } else {
            check_row(row, vocab, &sampling[row], &then[row]);
        }
    }
}

static void test_rows(void) {
    static const uint32_t vocabs[] = {1, 2, 31, 32, 33, 200, 513, 1100, VOCAB_MAX};
    demand(fl_cuda_open(&memory, &device, 0, NULL, &error));
    layout(&host, &host_arena);
    layout(&there, &device_arena);
    demand(fl_arena_open(&memory, &host_arena, "a test", &error));
    demand(fl_cuda_arena_open(&device, &device_arena, "a test", &error));
    layout(&host, &host_arena);
    layout(&there, &device_arena);
    for (size_t v = 0; v < FL_COUNT(vocabs); v++) {
        start_vocab(vocabs[v]);
        for (int i = 0; i < (SANITIZED ? 6 : 60); i++) {
            check_rows(vocabs[v]);
        }
        fl_arena_close(&memory, &sampler_arena);
    }
    fl_cuda_arena_close(&device, &device_arena);
    fl_arena_close(&memory, &host_arena);
    fl_cuda_close(&memory, &device);
    printf("%zu rows chosen, %zu not finite, %zu with nothing to choose\n", n_chosen, n_broken, n_banned);
    CHECK(n_chosen > 50 && n_broken > 5);
}

/* Penalties, biases and bans of stop ids are the host's: the device is not asked. */
static void test_not_asked(void) {
    static fl_sampling o;
    static const folollm_bias bias = {3, 1.5f};
    static const folollm_token stop = 5;
    folollm_sampling cases[] = {{.repetition_penalty = 1.1f},
                                {.frequency_penalty = 0.5f},
                                {.presence_penalty = -1},
                                {.biases = &bias, .n_biases = 1},
                                {.min_tokens = 2, .stop_ids = &stop, .n_stop_ids = 1}};
    fl_history first = {NULL, NULL, 10, 10}, later = {NULL, NULL, 12, 10};
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_device_choice choice;
        demand(fl_sampling_init(&o, &cases[i], NULL, 0, 100, &error));
        CHECK(!fl_sampler_ask(&o, &first, &choice) && choice.asked == 0);
        CHECK(fl_sampler_ask(&o, &later, &choice) == (cases[i].min_tokens == 2));
    }
}

int main(void) {
    fl_memory_init(&memory, NULL);
    test_rows();
    test_not_asked();
    return check_finish();
}
