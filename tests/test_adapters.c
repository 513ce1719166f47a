/* LoRA adapters: against transformers with PEFT (vectors/adapters, which oracle/make_adapters.py wrote), attached to
 * sequences and merged while loading; mixed in one batch without moving a bit of anybody; in prefix cache, forks and
 * snapshots; hostile files and faults.
 *
 *     cc -O2 -I. -Isrc tests/test_adapters.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "expected.h"
#include "host.h"

#include <math.h>

#define BASE "tests/vectors/models/qwen3-gqa-fp32"
#define ADAPTERS "tests/vectors/adapters/"
#define GATE 1e-10 /* NMSE against float64, everything in float32 */
#define PROMPT 50

static folollm *load(const char *path, const folollm_options *o) {
    folollm_error error;
    folollm *f = NULL;
    if (!CHECK(folollm_load(path, o, &f, &error) == FOLOLLM_OK)) {
        printf("  %s: %s\n", path, error.text);
        exit(1);
    }
    return f;
}

static folollm_adapter attach(folollm *f, const char *path, float scale) {
    folollm_error error;
    folollm_adapter a = 0;
    if (!CHECK(folollm_adapter_load(f, path, scale, &a, &error) == FOLOLLM_OK)) {
        printf("  %s: %s\n", path, error.text);
        exit(1);
    }
    return a;
}

static folollm_seq open_with(folollm *f, folollm_adapter adapter) {
    folollm_sampling sampling = {.ignore_eos = 1};
    folollm_seq seq = 0;
    CHECK(folollm_seq_open(f, &sampling, &seq, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_set_adapter(f, seq, adapter, NULL) == FOLOLLM_OK);
    return seq;
}

/* ---- Against PEFT -- */

/* NMSE of the logits to those of float64, and how many greedy tokens differ. */
static double compare(folollm *f, folollm_adapter adapter, const vector_case *c, unsigned *n_wrong) {
    float *all = malloc((size_t)c->n_ids * c->vocab * sizeof *all);
    folollm_seq seq = open_with(f, adapter);
    folollm_sampled s;
    CHECK(folollm_prefill(f, seq, c->ids, c->n_ids, all, NULL) == FOLOLLM_OK);
    for (int i = 0; i < GREEDY; i++) {
        CHECK(folollm_sample(f, seq, &s, NULL, 0, NULL) == FOLOLLM_OK);
        *n_wrong += s.token != c->greedy[i];
        CHECK(folollm_decode_step(f, &seq, &s.token, 1, NULL) == FOLOLLM_OK);
    }
    CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    double error = nmse_of_case(c, all, c->logits64);
    free(all);
    return error;
}

static void test_adapter(const char *name, const char *base, double worst[3], unsigned *n_wrong) {
    char adapter[400], model[400], file[420];
    snprintf(adapter, sizeof adapter, ADAPTERS "%s", name);
    snprintf(model, sizeof model, "tests/vectors/models/%s", base);
    snprintf(file, sizeof file, "%s/logits.bin", adapter);
    vectors v = open_vectors(file);
    vector_case e = next_case(&v);
    const folollm_merge merge = {adapter, 1};
    for (int merged = 0; merged < 2; merged++) {
        folollm_options o = {.kv = FOLOLLM_KV_F32, .n_threads = 2, .chunk = 7};
        if (merged) {
            o.weights = FOLOLLM_WEIGHTS_F32; /* the sum is not rounded to the checkpoint's type */
            o.merges = &merge;
            o.n_merges = 1;
        }
        folollm *f = load(model, &o);
        double error = compare(f, merged ? 0 : attach(f, adapter, 1), &e, n_wrong);
        worst[merged] = error > worst[merged] ? error : worst[merged];
        if (!merged) {
            unsigned ignored = 0;
            double without = compare(f, 0, &e, &ignored);
            worst[2] = without < worst[2] ? without : worst[2];
        }
        folollm_free(f);
    }
    free(v.words);
}

static void test_vectors(void) {
    char line[256];
    double worst[3] = {0, 0, 1};
    unsigned n_wrong = 0, n = 0;
    FILE *index = fopen(ADAPTERS "index.txt", "r");
    if (index == NULL) {
        printf("run from the root of the repository\n");
        exit(2);
    }
    for (; fgets(line, sizeof line, index) != NULL; n++) {
        char *space = strchr(line, ' ');
        line[strcspn(line, "\n")] = 0;
        *space = 0;
        test_adapter(line, space + 1, worst, &n_wrong);
    }
    fclose(index);
    CHECK(n == 5);
    CHECK(worst[0] <= GATE);
    CHECK(worst[1] <= GATE);
    CHECK(worst[2] > 0.01);
    CHECK(n_wrong == 0);
    printf("%u adapters beside PEFT in float64: NMSE at most %.2g attached, %.2g merged; at least %.2g without; greedy "
           "tokens that differ: %u of %u\n", n, worst[0], worst[1], worst[2], n_wrong, 2 * n * GREEDY);
}

/* ---- No bit moves -- */

enum { KINDS = 3, SEQS = 8 }; /* kinds: no adapter, "all", "other" */

static folollm_token token_of(folollm *f, uint64_t i) {
    folollm_info info;
    folollm_get_info(f, &info);
    return (folollm_token)(fl_mix(i + 77) % info.vocab);
}

/* The logits after a prompt and three more tokens, of sequence i alone. */
static void run_alone(folollm *f, folollm_adapter adapter, unsigned i, float *out, uint32_t vocab) {
    folollm_token prompt[PROMPT];
    const float *logits;
    folollm_seq seq = open_with(f, adapter);
    for (unsigned k = 0; k < 5 + i; k++) {
        prompt[k] = token_of(f, i * 100 + k);
    }
    CHECK(folollm_prefill(f, seq, prompt, 5 + i, NULL, NULL) == FOLOLLM_OK);
    for (unsigned k = 0; k < 3; k++) {
        folollm_token next = token_of(f, i * 100 + 60 + k);
        CHECK(folollm_decode_step(f, &seq, &next, 1, NULL) == FOLOLLM_OK);
    }
    CHECK(folollm_logits(f, seq, &logits, NULL) == FOLOLLM_OK);
    memcpy(out, logits, vocab * sizeof *out);
    CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
}

/* The same of all in one batch. */
static void run_together(folollm *f, const folollm_adapter *adapters, float *out, uint32_t vocab) {
    folollm_seq seqs[SEQS];
    folollm_token prompt[PROMPT], next[SEQS];
    const float *logits;
    for (unsigned i = 0; i < SEQS; i++) {
        seqs[i] = open_with(f, adapters[i % KINDS]);
        for (unsigned k = 0; k < 5 + i; k++) {
            prompt[k] = token_of(f, i * 100 + k);
        }
        CHECK(folollm_prefill(f, seqs[i], prompt, 5 + i, NULL, NULL) == FOLOLLM_OK);
    }
    for (unsigned k = 0; k < 3; k++) {
        for (unsigned i = 0; i < SEQS; i++) {
            next[i] = token_of(f, i * 100 + 60 + k);
        }
        CHECK(folollm_decode_step(f, seqs, next, SEQS, NULL) == FOLOLLM_OK);
    }
    for (unsigned i = 0; i < SEQS; i++) {
        CHECK(folollm_logits(f, seqs[i], &logits, NULL) == FOLOLLM_OK);
        memcpy(out + i * vocab, logits, vocab * sizeof *out);
        CHECK(folollm_seq_close(f, seqs[i], NULL) == FOLOLLM_OK);
    }
}

static void test_bits_of(folollm_weights weights, folollm_isa isa, uint32_t n_threads, uint32_t chunk, float *first,
                         uint32_t vocab) {
    folollm_options o = {.weights = weights, .isa = isa, .n_threads = n_threads, .chunk = chunk, .pool_tokens = 1024};
    float alone[SEQS * 512], together[SEQS * 512];
    folollm *f = load(BASE, &o);
    folollm_adapter adapters[KINDS] = {0, attach(f, ADAPTERS "all", 1), attach(f, ADAPTERS "other", 1.5f)};
    for (unsigned i = 0; i < SEQS; i++) {
        run_alone(f, adapters[i % KINDS], i, alone + i * vocab, vocab);
    }
    run_together(f, adapters, together, vocab);
    CHECK(memcmp(alone, together, SEQS * vocab * sizeof *alone) == 0);
    if (first[0] == 0) {
        memcpy(first, alone, SEQS * vocab * sizeof *alone);
    }
    CHECK(memcmp(first, alone, SEQS * vocab * sizeof *alone) == 0);
    folollm_free(f);
}

static void test_bits(void) {
    static const folollm_weights types[] = {FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_WEIGHTS_BF16, FOLOLLM_WEIGHTS_Q8};
    folollm_options o = {.n_threads = 1};
    folollm *f = load(BASE, &o);
    folollm_info info;
    folollm_get_info(f, &info);
    folollm_free(f);
    CHECK(info.vocab <= 512);
    for (size_t w = 0; w < FL_COUNT(types); w++) {
        float first[SEQS * 512] = {0};
        for (int isa = FOLOLLM_ISA_SCALAR; isa <= FOLOLLM_ISA_NEON; isa++) {
            if (fl_kernels_of((folollm_isa)isa) != NULL) {
                test_bits_of(types[w], (folollm_isa)isa, 2, 0, first, info.vocab);
            }
        }
        for (uint32_t threads = 1; threads <= 4; threads++) {
            test_bits_of(types[w], FOLOLLM_ISA_BEST, threads, threads == 1 ? 3 : 8, first, info.vocab);
        }
    }
}

/* An adapter times nothing is no adapter; and different scales are different adapters. */
static void test_scale(void) {
    folollm_options o = {.n_threads = 1};
    float with[512], without[512], half[512];
    folollm_info info;
    folollm *f = load(BASE, &o);
    folollm_get_info(f, &info);
    run_alone(f, 0, 4, without, info.vocab);
    run_alone(f, attach(f, ADAPTERS "all", 0), 4, with, info.vocab);
    run_alone(f, attach(f, ADAPTERS "all", 0.5f), 4, half, info.vocab);
    CHECK(memcmp(with, without, info.vocab * sizeof *with) == 0);
    CHECK(memcmp(with, half, info.vocab * sizeof *with) != 0);
    folollm_free(f);
}

/* ---- Requests -- */

typedef struct answers {
    folollm_token tokens[SEQS][24];
    uint32_t n[SEQS], cached[SEQS];
} answers;

static void submit(folollm *f, unsigned i, folollm_adapter adapter, uint32_t n_prompt, uint64_t seed) {
    folollm_token prompt[PROMPT];
    folollm_sampling sampling = {.temperature = 0.8f, .seed = seed, .max_tokens = 24, .ignore_eos = 1};
    folollm_submission s = {.prompt = prompt, .n_prompt = n_prompt, .sampling = &sampling, .tag = i,
                            .adapter = adapter};
    folollm_seq seq;
    for (uint32_t k = 0; k < n_prompt; k++) {
        prompt[k] = token_of(f, k);
    }
    CHECK(folollm_submit(f, &s, &seq, NULL) == FOLOLLM_OK);
}

static void drain(folollm *f, answers *a) {
    folollm_event events[16];
    size_t n;
    memset(a, 0, sizeof *a);
    do {
        n = 16;
        CHECK(folollm_step(f, NULL, events, &n, NULL) == FOLOLLM_OK);
        for (size_t i = 0; i < n; i++) {
            uint64_t tag = events[i].tag;
            CHECK(events[i].token >= 0 && a->n[tag] < 24);
            a->tokens[tag][a->n[tag]++ % 24] = events[i].token;
            a->cached[tag] = events[i].metrics.cached_tokens;
        }
        folollm_stats stats;
        folollm_get_stats(f, &stats);
        n += stats.requests_waiting + stats.requests_running;
    } while (n > 0);
}

/* Requests of all kinds over a pool that is too small for them: preempted, they say what they say alone. */
static void test_requests(void) {
    folollm_options o = {.n_threads = 2, .chunk = 16, .pool_tokens = 160, .no_prefix_cache = 1};
    folollm *f = load(BASE, &o);
    folollm_adapter adapters[KINDS] = {0, attach(f, ADAPTERS "all", 1), attach(f, ADAPTERS "other", 1)};
    answers alone[SEQS], together;
    folollm_stats stats;
    unsigned n_different = 0;
    for (unsigned i = 0; i < SEQS; i++) {
        submit(f, i, adapters[i % KINDS], PROMPT - i, 9);
        drain(f, &alone[i]);
    }
    for (unsigned i = 0; i < SEQS; i++) {
        submit(f, i, adapters[i % KINDS], PROMPT - i, 9);
    }
    drain(f, &together);
    folollm_get_stats(f, &stats);
    CHECK(stats.preemptions > 0);
    for (unsigned i = 0; i < SEQS; i++) {
        CHECK(together.n[i] == 24);
        CHECK(memcmp(together.tokens[i], alone[i].tokens[i], sizeof together.tokens[i]) == 0);
        n_different += memcmp(together.tokens[i], together.tokens[0], sizeof together.tokens[0]) != 0;
    }
    CHECK(n_different == SEQS - 1);
    printf("%llu preemptions among requests of three kinds\n", (unsigned long long)stats.preemptions);
    folollm_free(f);
}

/* Cached pages are of one adapter, and of the one that was loaded, not of what has its name now. */
static void test_prefix_cache(void) {
    folollm_options o = {.n_threads = 1, .pool_tokens = 1024};
    folollm *f = load(BASE, &o);
    folollm_adapter all = attach(f, ADAPTERS "all", 1), other = attach(f, ADAPTERS "other", 1);
    const struct {
        folollm_adapter *adapter;
        uint32_t found;
    } steps[] = {{NULL, 0}, {&all, 0}, {&other, 0}, {NULL, 48}, {&all, 48}, {&other, 48}};
    answers a, first[3];
    for (size_t i = 0; i < FL_COUNT(steps); i++) {
        submit(f, 0, steps[i].adapter != NULL ? *steps[i].adapter : 0, PROMPT, 5);
        drain(f, &a);
        CHECK(a.cached[0] == steps[i].found);
        if (i < 3) {
            first[i] = a;
        } else {
            CHECK(memcmp(a.tokens[0], first[i - 3].tokens[0], sizeof a.tokens[0]) == 0);
        }
    }
    CHECK(folollm_adapter_free(f, all, NULL) == FOLOLLM_OK);
    all = attach(f, ADAPTERS "all", 1);
    submit(f, 0, all, PROMPT, 5);
    drain(f, &a);
    CHECK(a.cached[0] == 0);
    CHECK(memcmp(a.tokens[0], first[1].tokens[0], sizeof a.tokens[0]) == 0);
    folollm_free(f);
}

/* ---- Lives -- */

static void expect(folollm_status status, folollm_status wanted, const folollm_error *error, const char *text) {
    if (!CHECK(status == wanted) || (text != NULL && !CHECK(strstr(error->text, text) != NULL))) {
        printf("  status %d and \"%s\"; expected %d and \"%s\"\n", (int)status, error->text, (int)wanted, text);
    }
}

static void test_lives(void) {
    folollm_options o = {.n_threads = 1, .max_adapters = 2};
    folollm *f = load(BASE, &o);
    folollm_error error = {0};
    folollm_token prompt[3] = {1, 2, 3};
    folollm_adapter a = attach(f, ADAPTERS "all", 1), b = attach(f, ADAPTERS "other", 1), c = 99;
    folollm_seq seq, fork;
    expect(folollm_adapter_load(f, ADAPTERS "all", 1, &c, &error), FOLOLLM_E_POOL, &error, "max_adapters");
    CHECK(c == 99);
    expect(folollm_adapter_load(f, ADAPTERS "all", INFINITY, &c, &error), FOLOLLM_E_ARGUMENT, &error, "finite");
    expect(folollm_adapter_load(f, NULL, 1, &c, &error), FOLOLLM_E_ARGUMENT, &error, "path");
    seq = open_with(f, a);
    CHECK(folollm_prefill(f, seq, prompt, 3, NULL, NULL) == FOLOLLM_OK);
    expect(folollm_seq_set_adapter(f, seq, b, &error), FOLOLLM_E_STATE, &error, "another adapter");
    CHECK(folollm_seq_set_adapter(f, seq, a, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_fork(f, seq, NULL, &fork, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    expect(folollm_adapter_free(f, a, &error), FOLOLLM_E_STATE, &error, "close them first"); /* of the fork */
    CHECK(folollm_seq_truncate(f, fork, 0, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_set_adapter(f, fork, b, NULL) == FOLOLLM_OK);
    CHECK(folollm_adapter_free(f, a, NULL) == FOLOLLM_OK);
    expect(folollm_adapter_free(f, a, &error), FOLOLLM_E_ARGUMENT, &error, "none that this engine holds");
    c = attach(f, ADAPTERS "all", 1);
    CHECK(c != a);
    expect(folollm_seq_set_adapter(f, fork, a, &error), FOLOLLM_E_ARGUMENT, &error, "none that this engine holds");
    folollm_submission s = {.prompt = prompt, .n_prompt = 3, .adapter = a};
    expect(folollm_submit(f, &s, &seq, &error), FOLOLLM_E_ARGUMENT, &error, "none that this engine holds");
    s.adapter = c;
    CHECK(folollm_submit(f, &s, &seq, NULL) == FOLOLLM_OK);
    expect(folollm_adapter_free(f, c, &error), FOLOLLM_E_STATE, &error, "close them first"); /* of the request */
    CHECK(folollm_adapter_free(f, 0, NULL) == FOLOLLM_OK);
    folollm_free(f);
}

static void test_snapshots(void) {
    folollm_options o = {.n_threads = 1};
    folollm *f = load(BASE, &o), *g = load(BASE, &o);
    folollm_error error = {0};
    folollm_token prompt[20], next = 7;
    folollm_seq seq = open_with(f, attach(f, ADAPTERS "all", 1)), again = 0;
    const float *ours, *theirs;
    folollm_info info;
    size_t n = 0;
    folollm_get_info(f, &info);
    for (unsigned i = 0; i < 20; i++) {
        prompt[i] = token_of(f, i);
    }
    CHECK(folollm_prefill(f, seq, prompt, 20, NULL, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_save(f, seq, NULL, &n, NULL) == FOLOLLM_OK);
    uint8_t *bytes = malloc(n);
    CHECK(folollm_seq_save(f, seq, bytes, &n, NULL) == FOLOLLM_OK);
    expect(folollm_seq_restore(g, bytes, n, &again, &error), FOLOLLM_E_UNSUPPORTED, &error, "does not hold");
    attach(g, ADAPTERS "all", 0.5f);
    attach(g, ADAPTERS "other", 1);
    expect(folollm_seq_restore(g, bytes, n, &again, &error), FOLOLLM_E_UNSUPPORTED, &error, "does not hold");
    folollm_adapter same = attach(g, ADAPTERS "all", 1);
    CHECK(folollm_seq_restore(g, bytes, n, &again, &error) == FOLOLLM_OK);
    expect(folollm_adapter_free(g, same, &error), FOLOLLM_E_STATE, &error, "close them first");
    CHECK(folollm_decode_step(f, &seq, &next, 1, NULL) == FOLOLLM_OK);
    CHECK(folollm_decode_step(g, &again, &next, 1, NULL) == FOLOLLM_OK);
    CHECK(folollm_logits(f, seq, &ours, NULL) == FOLOLLM_OK);
    CHECK(folollm_logits(g, again, &theirs, NULL) == FOLOLLM_OK);
    CHECK(memcmp(ours, theirs, info.vocab * sizeof *ours) == 0);
    free(bytes);
    folollm_free(f);
    folollm_free(g);
}

/* ---- Merged -- */

typedef struct written {
    uint8_t *bytes;
    size_t n, room;
} written;

static int write_bytes(void *user, const void *bytes, size_t n) {
    written *w = user;
    if (w->n + n > w->room) {
        w->room = 2 * (w->n + n);
        w->bytes = realloc(w->bytes, w->room);
    }
    memcpy(w->bytes + w->n, bytes, n);
    w->n += n;
    return 0;
}

/* Merging while loading is loading what was merged while quantising, for every type; the plan holds. */
static void test_merge_of(folollm_weights weights) {
    const folollm_merge merges[] = {{ADAPTERS "all", 1}, {ADAPTERS "other", -0.5f}};
    test_host host;
    written out = {NULL, 0, 0};
    float direct[512], through[512], plain[512];
    folollm_memory plan;
    folollm_info info;
    host_init(&host, false);
    folollm_options o = {.host = &host.hooks, .weights = weights, .n_threads = 2, .merges = merges, .n_merges = 2};
    CHECK(folollm_plan(BASE, &o, &plan, NULL) == FOLOLLM_OK);
    CHECK(host.live == 0);
    host.peak = 0;
    folollm *f = load(BASE, &o);
    folollm_get_info(f, &info);
    CHECK(host.live == plan.allocated);
    CHECK(host.peak <= plan.allocated + plan.temporary);
    run_alone(f, 0, 4, direct, info.vocab);
    folollm_free(f);
    CHECK(folollm_quantize(BASE, &o, write_bytes, &out, NULL) == FOLOLLM_OK);
    CHECK(host_is_clean(&host));
    host_init(&host, true);
    host_put_directory(&host, BASE);
    host_put(&host, "model.safetensors", out.bytes, out.n);
    folollm_options again = {.host = &host.hooks, .n_threads = 1};
    f = load("mem", &again);
    run_alone(f, 0, 4, through, info.vocab);
    folollm_free(f);
    again.host = NULL;
    again.weights = weights;
    f = load(BASE, &again);
    run_alone(f, 0, 4, plain, info.vocab);
    folollm_free(f);
    CHECK(memcmp(direct, through, info.vocab * sizeof *direct) == 0);
    CHECK(memcmp(direct, plain, info.vocab * sizeof *direct) != 0);
    host_free(&host);
    free(out.bytes);
}

static void test_merges(void) {
    static const folollm_weights types[] = {FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_WEIGHTS_BF16, FOLOLLM_WEIGHTS_Q8,
                                            FOLOLLM_WEIGHTS_Q8_ROW, FOLOLLM_WEIGHTS_Q4};
    const folollm_merge bad = {"tests/vectors/adapters/none", 1}, bare = {NULL, 1};
    folollm_error error = {0};
    folollm *f = NULL;
    for (size_t i = 0; i < FL_COUNT(types); i++) {
        test_merge_of(types[i]);
    }
    folollm_options o = {.merges = &bad, .n_merges = 1};
    expect(folollm_load(BASE, &o, &f, &error), FOLOLLM_E_IO, &error, "adapter_config.json");
    o.merges = &bare;
    expect(folollm_load(BASE, &o, &f, &error), FOLOLLM_E_ARGUMENT, &error, "merges");
    o.n_merges = 65;
    expect(folollm_load(BASE, &o, &f, &error), FOLOLLM_E_ARGUMENT, &error, "merges");
}

/* ---- Hostile files: an adapter in memory, beside a model there -- */

#define CONFIG(more) "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"bias\": \"none\"" more "}"
#define PATH "base_model.model.model.layers.0."

typedef struct tensor {
    const char *name, *type;
    uint32_t n_rows, n_cols;
    float fill;
} tensor;

/* Lay down adapter_model.safetensors of n tensors, each filled with one number. */
static void put_tensors(test_host *h, const tensor *tensors, size_t n) {
    char header[4096];
    uint8_t *bytes = calloc(1, 1 << 20);
    size_t at = 0, length = 1;
    header[0] = '{';
    for (size_t i = 0; i < n; i++) {
        const tensor *t = &tensors[i];
        size_t size = t->type[0] == 'F' && t->type[1] == '3' ? 4 : 2, end = at + size * t->n_rows * t->n_cols;
        length += (size_t)snprintf(header + length, sizeof header - length,
                                   "%s\"%s\": {\"dtype\": \"%s\", \"shape\": [%u, %u], \"data_offsets\": [%zu, %zu]}",
                                   i > 0 ? ", " : "", t->name, t->type, t->n_rows, t->n_cols, at, end);
        at = end;
    }
    header[length++] = '}';
    uint64_t prefix = length;
    memcpy(bytes, &prefix, 8);
    memcpy(bytes + 8, header, length);
    uint8_t *data = bytes + 8 + length;
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < (size_t)tensors[i].n_rows * tensors[i].n_cols; k++) {
            if (strcmp(tensors[i].type, "F32") == 0) {
                memcpy(data, &tensors[i].fill, 4);
                data += 4;
            } else {
                uint16_t half = fl_f16_of_float(tensors[i].fill);
                memcpy(data, &half, 2);
                data += 2;
            }
        }
    }
    host_put(h, "adapter_model.safetensors", bytes, (size_t)(data - bytes));
    free(bytes);
}

typedef struct hostile {
    const char *config;
    tensor tensors[3];
    folollm_status status;
    const char *text;
} hostile;

/* qwen3-gqa-fp32: dim 40, 4 heads, 2 kv heads, head_dim 8. */
static const tensor good_a = {PATH "self_attn.q_proj.lora_A.weight", "F32", 2, 40, 0.5f};
static const tensor good_b = {PATH "self_attn.q_proj.lora_B.weight", "F32", 32, 2, 0.5f};
#define A(more) {PATH more ".lora_A.weight", "F32", 2, 40, 0.5f}
#define GOOD_A A("self_attn.q_proj")
#define GOOD_B {PATH "self_attn.q_proj.lora_B.weight", "F32", 32, 2, 0.5f}

static void test_hostile(test_host *h, folollm *f) {
    static const hostile cases[] = {
        {CONFIG(""), {GOOD_A, GOOD_B}, FOLOLLM_OK, NULL},
        {CONFIG(", \"fan_in_fan_out\": true, \"modules_to_save\": [], \"lora_dropout\": 0.1, \"new_key\": [1]"),
         {GOOD_A, GOOD_B}, FOLOLLM_OK, NULL},
        {"[]", {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "must be an object"},
        {"{", {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "adapter_config.json"},
        {"{}", {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "peft_type"},
        {"{\"peft_type\": \"IA3\"}", {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "peft_type"},
        {CONFIG(", \"use_dora\": true"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "use_dora"},
        {CONFIG(", \"modules_to_save\": [\"lm_head\"]"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "modules_to_save"},
        {CONFIG(", \"bias\": \"all\""), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "bias"},
        {CONFIG(", \"lora_bias\": true"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "lora_bias"},
        {CONFIG(", \"layer_replication\": [[0, 1]]"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "layer_replication"},
        {CONFIG(", \"init_lora_weights\": \"pissa_niter_16\""), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "plain LoRA"},
        {CONFIG(", \"init_lora_weights\": \"gaussian\""), {GOOD_A, GOOD_B}, FOLOLLM_OK, NULL},
        {CONFIG(", \"trainable_token_indices\": [1]"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "token_indices"},
        {CONFIG(", \"alora_invocation_tokens\": [1]"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "alora"},
        {CONFIG(", \"r\": 0"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "rank 0"},
        {CONFIG(", \"r\": -1"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "\"r\""},
        {CONFIG(", \"r\": 4294967295"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "\"r\""},
        {CONFIG(", \"r\": 2.5"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "\"r\""},
        {CONFIG(", \"r\": 65"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "max_rank"},
        {CONFIG(", \"r\": 3"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "imply 3 x 40"},
        {CONFIG(", \"lora_alpha\": \"x\""), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "lora_alpha"},
        {CONFIG(", \"lora_alpha\": 1e300"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "alpha"},
        {CONFIG(", \"rank_pattern\": 3"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "rank_pattern"},
        {CONFIG(", \"rank_pattern\": {\"q_proj\": 2.5}"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT, "rank 2.5"},
        {CONFIG(", \"rank_pattern\": {\"q_proj\": 1, \"q_proj\": \"x\"}"), {GOOD_A, GOOD_B}, FOLOLLM_E_FORMAT,
         "q_proj"},
        {CONFIG(", \"rank_pattern\": {\"proj\": 7, \"^q_proj\": 7, \"\": 7, \"k_proj\": 7}"), {GOOD_A, GOOD_B},
         FOLOLLM_OK, NULL},
        {CONFIG(", \"rank_pattern\": {\".*q_proj\": 2}"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "expression"},
        {CONFIG(", \"alpha_pattern\": {\"q_\\u0070roj\": 2}"), {GOOD_A, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "expression"},
        {CONFIG(""), {GOOD_A}, FOLOLLM_E_FORMAT, "lora_B.weight\" is missing"},
        {CONFIG(""), {GOOD_B}, FOLOLLM_E_FORMAT, "lora_A.weight\" is missing"},
        {CONFIG(""), {GOOD_A, GOOD_B, GOOD_A}, FOLOLLM_E_FORMAT, "twice"},
        {CONFIG(""), {{NULL}}, FOLOLLM_E_FORMAT, "holds no tensor"},
        {CONFIG(""), {A("self_attn.z_proj")}, FOLOLLM_E_UNSUPPORTED, "no pair of a linear layer"},
        {CONFIG(""), {GOOD_A, GOOD_B, {"base_model.model.model.layers.77.mlp.up_proj.lora_A.weight", "F32", 2, 40, 1}},
         FOLOLLM_E_UNSUPPORTED, "layers.77"},
        {CONFIG(""), {GOOD_A, GOOD_B, {"base_model.model.lm_head.lora_A.weight", "F32", 2, 40, 1}},
         FOLOLLM_E_UNSUPPORTED, "lm_head"},
        {CONFIG(""), {GOOD_A, GOOD_B, {PATH "self_attn.q_proj.lora_magnitude_vector", "F32", 1, 32, 1}},
         FOLOLLM_E_UNSUPPORTED, "magnitude"},
        {CONFIG(""), {GOOD_A, {PATH "self_attn.q_proj.lora_B.weight", "F32", 2, 32, 1}}, FOLOLLM_E_FORMAT,
         "imply 32 x 2"},
        {CONFIG(""), {{PATH "self_attn.q_proj.lora_A.weight", "F32", 2, 41, 1}, GOOD_B}, FOLOLLM_E_FORMAT,
         "imply 2 x 40"},
        {CONFIG(""), {{PATH "self_attn.q_proj.lora_A.weight", "I16", 2, 40, 1}, GOOD_B}, FOLOLLM_E_UNSUPPORTED, "I16"},
        {CONFIG(""), {{PATH "self_attn.q_proj.lora_A.weight", "F32", 2, 40, INFINITY}, GOOD_B},
         FOLOLLM_E_FORMAT, "not finite"},
        {CONFIG(""), {GOOD_A, {PATH "self_attn.q_proj.lora_B.weight", "F32", 32, 2, 3e38f}}, FOLOLLM_E_FORMAT,
         "not finite"}, /* times alpha / rank */
        {CONFIG(""), {{PATH "self_attn.q_proj.lora_A.weight", "F16", 2, 40, 1}, GOOD_B}, FOLOLLM_OK, NULL},
    };
    uint64_t live = h->live;
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        folollm_error error = {0};
        folollm_adapter a = 0;
        size_t n = 0;
        while (n < 3 && cases[i].tensors[n].name != NULL) {
            n++;
        }
        host_put_text(h, "adapter_config.json", cases[i].config);
        put_tensors(h, cases[i].tensors, n);
        folollm_status status = folollm_adapter_load(f, "mem", 1, &a, &error);
        expect(status, cases[i].status, &error, cases[i].text);
        CHECK((a != 0) == (status == FOLOLLM_OK));
        CHECK(folollm_adapter_free(f, a, NULL) == FOLOLLM_OK);
        CHECK(h->live == live);
    }
    host_remove(h, "adapter_model.safetensors");
    expect(folollm_adapter_load(f, "mem", 1, &(folollm_adapter){0}, NULL), FOLOLLM_E_IO, NULL, NULL);
}

/* Every byte of a small file cut off or changed: a status, and nothing lost. */
static void test_damage(test_host *h, folollm *f) {
    const tensor tensors[] = {good_a, good_b};
    unsigned n_accepted = 0, n_cases = 0;
    uint64_t live = h->live;
    host_put_text(h, "adapter_config.json", CONFIG(""));
    put_tensors(h, tensors, 2);
    const host_file *file = host_find(h, "adapter_model.safetensors");
    size_t n = file->n;
    uint8_t *good = malloc(n);
    memcpy(good, file->bytes, n);
    for (size_t i = 0; i < n; i += i < 400 ? 1 : 37) {
        for (int change = 0; change < 2; change++, n_cases++) {
            folollm_adapter a = 0;
            good[i] ^= 0x55;
            host_put(h, "adapter_model.safetensors", good, change ? n : i);
            good[i] ^= 0x55;
            folollm_status status = folollm_adapter_load(f, "mem", 1, &a, NULL);
            CHECK((a != 0) == (status == FOLOLLM_OK));
            n_accepted += a != 0;
            CHECK(folollm_adapter_free(f, a, NULL) == FOLOLLM_OK);
            CHECK(h->live == live);
        }
    }
    printf("%u damaged files: %u accepted\n", n_cases, n_accepted);
    free(good);
}

/* The n-th call of each hook fails: a status, nothing lost, and the engine goes on. */
static void test_faults(test_host *h, folollm *f) {
    static const fault kinds[] = {FAULT_ALLOCATE, FAULT_OPEN, FAULT_READ, FAULT_EMPTY, FAULT_LONG, FAULT_ENDLESS};
    const tensor tensors[] = {good_a, good_b};
    uint64_t live = h->live;
    unsigned n_faults = 0;
    host_put_text(h, "adapter_config.json", CONFIG(""));
    put_tensors(h, tensors, 2);
    for (size_t k = 0; k < FL_COUNT(kinds); k++) {
        for (uint64_t at = 1;; at++) {
            folollm_adapter a = 0;
            host_arm(h, kinds[k], at, false);
            folollm_status status = folollm_adapter_load(f, "mem", 1, &a, NULL);
            bool injected = h->n_injected > 0;
            host_disarm(h);
            CHECK((status == FOLOLLM_OK) == !injected);
            CHECK(folollm_adapter_free(f, a, NULL) == FOLOLLM_OK);
            CHECK(h->live == live);
            n_faults += injected;
            if (!injected) {
                break;
            }
        }
    }
    CHECK(n_faults > 12);
    float logits[512];
    folollm_info info;
    folollm_get_info(f, &info);
    folollm_adapter a = attach(f, "mem", 1);
    uint64_t calls = h->n_calls;
    run_alone(f, a, 3, logits, info.vocab);
    CHECK(h->n_calls == calls); /* steps allocate nothing */
    printf("%u faults\n", n_faults);
}

static void test_files(void) {
    test_host h;
    host_init(&h, true);
    CHECK(host_put_directory(&h, BASE));
    folollm_options o = {.host = &h.hooks, .n_threads = 1};
    folollm *f = load("mem", &o);
    test_hostile(&h, f);
    test_damage(&h, f);
    test_faults(&h, f);
    folollm_free(f);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

int main(void) {
    test_vectors();
    test_bits();
    test_scale();
    test_requests();
    test_prefix_cache();
    test_lives();
    test_snapshots();
    test_merges();
    test_files();
    return check_finish();
}
