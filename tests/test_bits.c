/* Bits do not move: the logits of a sequence are the same, by memcmp, for any table of kernels, thread count, chunk,
 * cut of the prompt into calls, batch neighbours, forks, truncations and shared engines. Counters show that each path
 * was really taken. Sampling with a seed, through all of that, writes the same tokens.
 *
 *     cc -O2 -I. -Isrc tests/test_bits.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 *     -DFL_PAGE_TOKENS=2: a page edge every other token
 */
#include "inside.h"

#include "check.h"
#include "invariants.h"
#include "random.h"

#include <stdlib.h>

#define MODEL "examples/models/tiny-shakespeare"
#define LENGTH 100 /* several pages, attention blocks and tiles, with odd ends */

static folollm_token prompt[LENGTH];
static float *expected; /* (LENGTH, vocab) of the prompt alone: one thread, scalar kernels, one token a call */
static uint32_t vocab;

static folollm *open_engine(folollm_options o) {
    folollm_error error;
    folollm *f = NULL;
    o.pool_tokens = o.pool_tokens != 0 ? o.pool_tokens : 16 * 512;
    o.max_seqs = 16;
    if (folollm_load(MODEL, &o, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    return f;
}

static folollm_seq open_sequence(folollm *f, const folollm_sampling *sampling) {
    folollm_seq seq = 0;
    CHECK(folollm_seq_open(f, sampling, &seq, NULL) == FOLOLLM_OK);
    return seq;
}

/* Are the sequence's logits those of the prompt's first n tokens? */
static int logits_as_expected(folollm *f, folollm_seq seq, size_t n) {
    const float *logits = NULL;
    return folollm_logits(f, seq, &logits, NULL) == FOLOLLM_OK &&
           memcmp(logits, expected + (n - 1) * vocab, vocab * sizeof *logits) == 0;
}

/* Prefill [from, to) of the prompt in calls of `piece` tokens. */
static void feed(folollm *f, folollm_seq seq, size_t from, size_t to, size_t piece) {
    for (size_t at = from; at < to; at += piece) {
        size_t n = fl_min(piece, to - at);
        CHECK(folollm_prefill(f, seq, prompt + at, n, NULL, NULL) == FOLOLLM_OK);
    }
}

static void make_expected(void) {
    folollm_options o = {.isa = FOLOLLM_ISA_SCALAR, .n_threads = 1, .chunk = 1};
    folollm *f = open_engine(o);
    folollm_info info;
    folollm_get_info(f, &info);
    vocab = info.vocab;
    for (size_t i = 0; i < LENGTH; i++) {
        prompt[i] = (folollm_token)random_below(info.n_tokens - 3);
    }
    expected = malloc((size_t)LENGTH * vocab * sizeof *expected);
    folollm_seq seq = open_sequence(f, NULL);
    CHECK(folollm_prefill(f, seq, prompt, LENGTH, expected, NULL) == FOLOLLM_OK);
    folollm_free(f);
}

static void test_tables_threads_chunks(void) {
    static const uint32_t chunks[] = {1, 3, 16, 17, 128};
    unsigned n = 0;
    float *all = malloc((size_t)LENGTH * vocab * sizeof *all);
    for (int isa = FOLOLLM_ISA_SCALAR; isa <= FOLOLLM_ISA_NEON; isa++) {
        for (uint32_t threads = 1; threads <= 4 && fl_kernels_of((folollm_isa)isa) != NULL; threads++) {
            for (size_t c = 0; c < FL_COUNT(chunks); c++, n++) {
                folollm_options o = {.isa = (folollm_isa)isa, .n_threads = threads, .chunk = chunks[c]};
                folollm *f = open_engine(o);
                folollm_seq seq = open_sequence(f, NULL);
                CHECK(folollm_prefill(f, seq, prompt, LENGTH, all, NULL) == FOLOLLM_OK);
                CHECK(memcmp(all, expected, (size_t)LENGTH * vocab * sizeof *all) == 0);
                CHECK(f->executor.stats.forwards == fl_div_up(LENGTH, chunks[c]));
                CHECK(threads == 1 ? f->worker.pool == NULL : inside_pool_threads(f->worker.pool) == threads - 1);
                folollm_free(f);
            }
        }
    }
    free(all);
    printf("tables x threads 1-4 x chunks: %u engines\n", n);
}

/* The prompt cut at random places, every call another size. */
static void test_cuts(void) {
    folollm_options o = {.n_threads = 2};
    folollm *f = open_engine(o);
    for (int round = 0; round < 20; round++) {
        folollm_seq seq = open_sequence(f, NULL);
        for (size_t at = 0; at < LENGTH;) {
            size_t n = fl_min(1 + random_below(40), LENGTH - at);
            feed(f, seq, at, at + n, n);
            at += n;
            CHECK(logits_as_expected(f, seq, at));
        }
        CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    }
    folollm_free(f);
}

/* Up to eight sequences at different places of the same prompt, or of noise, stepped together in random company. */
static void test_neighbours(folollm_kv_type kv, const float *reference) {
    folollm_options o = {.n_threads = 3, .kv = kv};
    folollm *f = open_engine(o);
    folollm_seq seqs[8], stepped[8];
    size_t at[8];
    unsigned widths[9] = {0};
    for (int i = 0; i < 8; i++) {
        seqs[i] = open_sequence(f, NULL);
        at[i] = 1 + random_below(60);
        feed(f, seqs[i], 0, at[i], 1 + random_below(30));
    }
    for (int round = 0; round < 60; round++) {
        folollm_token tokens[8];
        size_t n = 0, which[8];
        for (size_t k = 0; k < 8; k++) {
            size_t i = (k * 3 + (size_t)round) % 8; /* another order each time */
            if (at[i] < LENGTH && random_below(3) != 0) {
                which[n] = i;
                stepped[n] = seqs[i];
                tokens[n++] = prompt[at[i]];
            }
        }
        CHECK(folollm_decode_step(f, stepped, tokens, n, NULL) == FOLOLLM_OK);
        widths[n]++;
        for (size_t k = 0; k < n; k++) {
            const float *logits = NULL;
            size_t row = at[which[k]]++;
            CHECK(folollm_logits(f, stepped[k], &logits, NULL) == FOLOLLM_OK);
            CHECK(logits != NULL && memcmp(logits, reference + row * vocab, vocab * sizeof *logits) == 0);
        }
    }
    folollm_free(f);
    printf("steps by batch size:");
    for (int i = 1; i <= 8; i++) {
        printf(" %u", widths[i]);
    }
    printf("\n");
    CHECK(widths[3] + widths[4] + widths[5] + widths[6] > 20);
}

static void prefill_with(folollm_kv_type kv, folollm_isa isa, uint32_t n_threads, float *logits) {
    folollm_options o = {.n_threads = n_threads, .kv = kv, .isa = isa, .chunk = 13};
    folollm *f = open_engine(o);
    CHECK(folollm_prefill(f, open_sequence(f, NULL), prompt, LENGTH, logits, NULL) == FOLOLLM_OK);
    folollm_free(f);
}

static void test_kv_types(void) {
    static const folollm_kv_type types[] = {FOLOLLM_KV_F16, FOLOLLM_KV_F32, FOLOLLM_KV_BF16, FOLOLLM_KV_Q8,
                                            FOLOLLM_KV_Q4};
    float *reference = malloc((size_t)LENGTH * vocab * sizeof *reference);
    float *other = malloc((size_t)LENGTH * vocab * sizeof *other);
    for (size_t i = 0; i < FL_COUNT(types); i++) {
        prefill_with(types[i], FOLOLLM_ISA_SCALAR, 1, reference);
        for (int isa = FOLOLLM_ISA_AVX2; isa <= FOLOLLM_ISA_NEON; isa++) {
            if (fl_kernels_of((folollm_isa)isa) == NULL) {
                continue;
            }
            prefill_with(types[i], (folollm_isa)isa, 3, other);
            CHECK(memcmp(reference, other, (size_t)LENGTH * vocab * sizeof *other) == 0);
        }
        CHECK((memcmp(reference, expected, vocab * sizeof *reference) == 0) == (types[i] == FOLOLLM_KV_F16));
        test_neighbours(types[i], reference);
    }
    free(reference);
    free(other);
}

/* Forks at every length around a page edge: both sides go on, one copies the page it shares. */
static void test_forks(void) {
    folollm_options o = {.n_threads = 2};
    folollm *f = open_engine(o);
    for (size_t n = 1; n < 3 * FL_PAGE_TOKENS + 2; n++) {
        uint64_t copied = f->executor.stats.pages_copied;
        folollm_seq a = open_sequence(f, NULL), b = 0;
        feed(f, a, 0, n, n);
        CHECK(folollm_seq_fork(f, a, NULL, &b, NULL) == FOLOLLM_OK);
        CHECK(f->pages.n_shared == fl_div_up(n, FL_PAGE_TOKENS));
        CHECK(logits_as_expected(f, b, n));
        folollm_token other[5] = {1, 2, 3, 4, 5};
        CHECK(folollm_prefill(f, b, other, 5, NULL, NULL) == FOLOLLM_OK);
        CHECK(f->executor.stats.pages_copied - copied == (n % FL_PAGE_TOKENS != 0));
        feed(f, a, n, LENGTH, 31);
        CHECK(logits_as_expected(f, a, LENGTH));
        CHECK(folollm_seq_truncate(f, b, n, NULL) == FOLOLLM_OK);
        feed(f, b, n, LENGTH, 50);
        CHECK(logits_as_expected(f, b, LENGTH));
        CHECK(folollm_seq_close(f, a, NULL) == FOLOLLM_OK && folollm_seq_close(f, b, NULL) == FOLOLLM_OK);
        CHECK(f->pages.n_free == f->pages.n_pages && f->pages.n_shared == 0);
        CHECK_INVARIANTS(f);
    }
    folollm_free(f);
}

/* Truncate to every length, then go on. */
static void test_truncation(void) {
    folollm_options o = {.n_threads = 2};
    folollm *f = open_engine(o);
    folollm_seq seq = open_sequence(f, NULL);
    feed(f, seq, 0, LENGTH, LENGTH);
    for (size_t n = LENGTH; n-- > 1;) {
        CHECK(folollm_seq_truncate(f, seq, n, NULL) == FOLOLLM_OK);
        CHECK(folollm_logits(f, seq, &(const float *){NULL}, NULL) == FOLOLLM_E_STATE);
        feed(f, seq, n, n + 1, 1);
        CHECK(logits_as_expected(f, seq, n + 1));
        CHECK(folollm_seq_truncate(f, seq, n, NULL) == FOLOLLM_OK);
        CHECK(f->pages.n_free == f->pages.n_pages - fl_div_up(n, FL_PAGE_TOKENS));
        CHECK_INVARIANTS(f);
    }
    folollm_free(f);
}

/* Sixty tokens with a seed: alone, in company, after a fork, in an engine that shares the weights. */
static void generate(folollm *f, folollm_seq seq, folollm_seq company, folollm_token *out, int n) {
    for (int i = 0; i < n; i++) {
        folollm_sampled s;
        CHECK(folollm_sample(f, seq, &s, NULL, 0, NULL) == FOLOLLM_OK);
        out[i] = s.token;
        folollm_seq seqs[2] = {company, seq};
        folollm_token tokens[2] = {(folollm_token)random_below(vocab), s.token};
        size_t skip = company == 0;
        CHECK(folollm_decode_step(f, seqs + skip, tokens + skip, 2 - skip, NULL) == FOLOLLM_OK);
    }
}

static void test_seeds(void) {
    folollm_options o = {.n_threads = 2};
    folollm *f = open_engine(o), *g = NULL;
    folollm_sampling sampling = {.temperature = 0.9f, .top_k = 40, .top_p = 0.95f, .seed = 7, .ignore_eos = 1};
    folollm_token alone[60], other[60];
    folollm_seq a = open_sequence(f, &sampling), b, company = open_sequence(f, &sampling), fork = 0;
    feed(f, a, 0, 40, 40);
    generate(f, a, 0, alone, 60);
    feed(f, company, 0, 9, 9);
    b = open_sequence(f, &sampling);
    feed(f, b, 0, 40, 7);
    CHECK(folollm_seq_fork(f, b, NULL, &fork, NULL) == FOLOLLM_OK);
    generate(f, b, company, other, 60);
    CHECK(memcmp(alone, other, sizeof alone) == 0);
    generate(f, fork, company, other, 60);
    CHECK(memcmp(alone, other, sizeof alone) == 0);
    CHECK(folollm_share(f, &(folollm_options){.n_threads = 1, .chunk = 5}, &g, NULL) == FOLOLLM_OK);
    folollm_free(f);
    folollm_seq c = open_sequence(g, &sampling);
    feed(g, c, 0, 40, 40);
    generate(g, c, 0, other, 60);
    CHECK(memcmp(alone, other, sizeof alone) == 0);
    sampling.seed = 8;
    folollm_seq d = open_sequence(g, &sampling);
    feed(g, d, 0, 40, 40);
    generate(g, d, 0, other, 60);
    CHECK_TEXT(memcmp(alone, other, sizeof alone) != 0, "another seed writes another text");
    folollm_free(g);
}

/* The host's own parallel_for, run backwards, in place of our threads. */
static void run_backwards(void *user, size_t n, void (*task)(void *context, size_t i), void *context) {
    ++*(unsigned *)user;
    while (n-- > 0) {
        task(context, n);
    }
}

static void test_host_threads(void) {
    unsigned n_loops = 0;
    folollm_host host = {.user = &n_loops, .parallel_for = run_backwards};
    folollm_options o = {.host = &host, .n_threads = 4};
    folollm *f = open_engine(o);
    folollm_seq seq = open_sequence(f, NULL);
    feed(f, seq, 0, LENGTH, LENGTH);
    CHECK(logits_as_expected(f, seq, LENGTH));
    CHECK(n_loops > 20 && inside_pool_threads(f->worker.pool) == 0);
    folollm_free(f);
}

int main(void) {
    make_expected();
    test_tables_threads_chunks();
    test_cuts();
    test_kv_types();
    test_forks();
    test_truncation();
    test_seeds();
    test_host_threads();
    free(expected);
    return check_finish();
}
