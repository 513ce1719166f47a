/* Sampling and stopping: which tokens survive, and how likely they are, against transformers, llama.cpp and vLLM's
 * rules (vectors/sampling.txt, made by oracle/make_sampling.py); the generator; the text that comes out with stop
 * strings, stop ids and limits, against a model of it that searches the whole text.
 *
 *     cc -O1 tests/test_sample.c -lutf8proc -lm -lpthread && ./a.out     (from the root of the repository)
 */
#include "../folollm.c"

#include "check.h"
#include "host.h"

#include <math.h>

#define MODEL "examples/models/tiny-shakespeare"
#define SMALL "tests/vectors/models/llama-gqa-fp32" /* 48 tokens, no tokenizer */
#define VOCAB_MAX 1024
#define HISTORY_MAX 256

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n) {
    random_state += 0x9E3779B97F4A7C15u;
    return (uint32_t)(fl_mix(random_state) % n);
}

static int near(double a, double b) {
    return fabs(a - b) <= 1e-5 * (fabs(b) > 1 ? fabs(b) : 1);
}

/* ---- A sampler without a model ------------------------------------------------------------------- */

static fl_sampler sampler;
static fl_cpu_backend cpu;
static folollm_token store[HISTORY_MAX + FL_PAGE_TOKENS];
static uint32_t pages[HISTORY_MAX / FL_PAGE_TOKENS + 1];
static fl_history history;
static folollm_logprob chosen, top[VOCAB_MAX];
static double processed[VOCAB_MAX]; /* of the last choice, by id; -FLT_MAX: removed */

static void open_sampler(void) {
    static float logits[VOCAB_MAX];
    static uint32_t counts[VOCAB_MAX];
    static fl_candidate candidates[VOCAB_MAX];
    sampler.logits = logits;
    sampler.counts = counts;
    sampler.candidates = candidates;
    fl_cpu_init(&cpu, fl_kernels_of(FOLOLLM_ISA_BEST), NULL);
}

/* The pages lie backwards in the store, so that the page table matters. */
static void set_history(const folollm_token *tokens, uint32_t n, uint32_t n_prompt) {
    for (uint32_t i = 0; i < FL_COUNT(pages); i++) {
        pages[i] = (uint32_t)FL_COUNT(pages) - 1 - i;
    }
    for (uint32_t i = 0; i < n; i++) {
        store[pages[i / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + i % FL_PAGE_TOKENS] = tokens[i];
    }
    history.store = store;
    history.pages = pages;
    history.n_tokens = n;
    history.n_prompt = n_prompt;
}

static bool top_is_sorted(const float *logits, uint32_t vocab) {
    for (uint32_t i = 1; i < vocab; i++) {
        float a = logits[top[i - 1].token], b = logits[top[i].token];
        if (a < b || (a == b && top[i - 1].token > top[i].token)) {
            return false;
        }
    }
    return true;
}

static bool scratch_is_clean(uint32_t vocab) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        left |= sampler.counts[i];
    }
    return left == 0;
}

/* Choose, with the logprobs of the whole vocabulary; what holds for every choice is checked here. */
static bool choose_checked(const fl_sampling *options, const float *logits, uint32_t vocab) {
    static float before[VOCAB_MAX];
    double sum = 0;
    sampler.vocab = vocab;
    memcpy(before, logits, vocab * sizeof *logits);
    if (!fl_sampler_choose(&sampler, &cpu.base, options, logits, &history, &chosen, top, vocab)) {
        CHECK(scratch_is_clean(vocab));
        return false;
    }
    for (uint32_t i = 0; i < vocab; i++) {
        processed[top[i].token] = top[i].processed;
        sum += top[i].processed > -FLT_MAX ? exp(top[i].processed) : 0;
        if (top[i].token == chosen.token) {
            CHECK(chosen.raw == top[i].raw && chosen.processed == top[i].processed);
        }
    }
    CHECK(fabs(sum - 1) < 1e-5);
    CHECK(chosen.processed > -FLT_MAX);
    CHECK(top_is_sorted(logits, vocab));
    CHECK(memcmp(before, logits, vocab * sizeof *logits) == 0);
    CHECK(scratch_is_clean(vocab));
    return true;
}

static bool choose(const folollm_sampling *in, const float *logits, uint32_t vocab) {
    fl_sampling options;
    return CHECK(fl_sampling_init(&options, in, NULL, 0, vocab, NULL) == FOLOLLM_OK) &&
           choose_checked(&options, logits, vocab);
}

static uint32_t count_kept(uint32_t vocab) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        n += processed[i] > -FLT_MAX;
    }
    return n;
}

/* ---- Vectors --------------------------------------------------------------------------------------- */

static char *vectors; /* what is left of the file */

static const char *next_word(void) {
    char *begin = vectors, *end = begin + strcspn(begin, " \n");
    vectors = *end != 0 ? end + 1 : end;
    *end = 0;
    return begin;
}

static uint32_t next_number(void) {
    return (uint32_t)strtoul(next_word(), NULL, 10);
}

static float next_float(void) {
    uint32_t bits = (uint32_t)strtoul(next_word(), NULL, 16);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float vector_logits[32][VOCAB_MAX];
static uint32_t vector_sizes[32], n_vector_logits, n_vector_cases;
static folollm_sampling wanted; /* of the case that is being read */
static folollm_bias wanted_biases[8];
static uint32_t wanted_logits;

static void read_logits(void) {
    uint32_t n = vector_sizes[n_vector_logits] = next_number();
    for (uint32_t i = 0; i < n; i++) {
        vector_logits[n_vector_logits][i] = next_float();
    }
    n_vector_logits++;
}

/* The best of the logits just read, for every n_top. */
static void check_top(void) {
    const float *logits = vector_logits[n_vector_logits - 1];
    uint32_t vocab = vector_sizes[n_vector_logits - 1], n = next_number();
    static const folollm_sampling greedy;
    fl_sampling options;
    CHECK(fl_sampling_init(&options, &greedy, NULL, 0, vocab, NULL) == FOLOLLM_OK);
    set_history(NULL, 0, 0);
    CHECK(choose_checked(&options, logits, vocab));
    for (uint32_t i = 0; i < n; i++) {
        folollm_token id = (folollm_token)next_number();
        float raw = next_float();
        CHECK(top[i].token == id && near(top[i].raw, raw) && near(top[i].processed, raw));
        CHECK(i > 0 || chosen.token == id);
    }
    for (uint32_t n_top = 0; n_top <= vocab; n_top += n_top < 20 ? 1 : vocab / 5) {
        folollm_logprob some[VOCAB_MAX + 1];
        memset(some, 0x77, sizeof some);
        CHECK(fl_sampler_choose(&sampler, &cpu.base, &options, logits, &history, &chosen, some, n_top));
        CHECK(memcmp(some, top, n_top * sizeof *some) == 0 && some[n_top].token == 0x77777777);
    }
}

static void read_case(void) {
    const char *engine = next_word();
    memset(&wanted, 0, sizeof wanted);
    wanted.preset = engine[0] == 'h'   ? FOLOLLM_PRESET_HF
                    : engine[0] == 'v' ? FOLOLLM_PRESET_VLLM
                                       : FOLOLLM_PRESET_LLAMACPP;
    wanted_logits = next_number();
    const char *order = next_word();
    for (size_t i = 0; order[0] != '-' && order[i] != 0; i++) {
        wanted.order[i] = (folollm_stage)(order[i] - '0');
    }
    wanted.temperature = next_float();
    wanted.top_k = next_number();
    wanted.top_p = next_float();
    wanted.min_p = next_float();
    wanted.repetition_penalty = next_float();
    wanted.frequency_penalty = next_float();
    wanted.presence_penalty = next_float();
    set_history(NULL, 0, 0);
}

static void read_history(void) {
    folollm_token tokens[HISTORY_MAX];
    uint32_t n_prompt = next_number(), n = next_number();
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = (folollm_token)next_number();
    }
    set_history(tokens, n, n_prompt);
}

static void read_biases(void) {
    wanted.biases = wanted_biases;
    wanted.n_biases = next_number();
    for (size_t i = 0; i < wanted.n_biases; i++) {
        wanted_biases[i].token = (folollm_token)next_number();
        wanted_biases[i].bias = next_float();
    }
}

/* The kept set must be exactly this one. */
static void check_kept(void) {
    uint32_t vocab = vector_sizes[wanted_logits], n = 0, n_wrong = 0;
    char what[64];
    snprintf(what, sizeof what, "kept set of vector case %u", n_vector_cases++);
    if (!CHECK(choose(&wanted, vector_logits[wanted_logits], vocab))) {
        return;
    }
    for (uint32_t ranges = next_number(); ranges > 0; ranges--) {
        uint32_t first = next_number(), last = next_number();
        for (uint32_t i = first; i <= last; i++, n++) {
            n_wrong += processed[i] <= -FLT_MAX;
        }
    }
    CHECK_TEXT(n_wrong == 0 && n == count_kept(vocab), what);
}

static void check_logprobs(void) {
    char what[64];
    snprintf(what, sizeof what, "logprobs of vector case %u", n_vector_cases - 1);
    for (uint32_t n = next_number(); n > 0; n--) {
        uint32_t id = next_number();
        CHECK_TEXT(near(processed[id], next_float()), what);
    }
}

static void check_uniform(void) {
    uint64_t seed = strtoull(next_word(), NULL, 10), position = strtoull(next_word(), NULL, 10);
    CHECK(fl_uniform(seed, position) * 9007199254740992.0 == strtod(next_word(), NULL));
}

/* Every preset and order: the same candidates, with the same probabilities, as the engine whose meaning it has. */
static void test_vectors(void) {
    static const struct {
        const char *word;
        void (*read)(void);
    } records[] = {
        {"logits", read_logits}, {"top", check_top},   {"case", read_case},          {"history", read_history},
        {"bias", read_biases},   {"kept", check_kept}, {"logprobs", check_logprobs}, {"uniform", check_uniform},
    };
    size_t n, known = 0, lines = 0;
    char *file = (char *)host_slurp("tests/vectors/sampling.txt", &n);
    if (!CHECK_TEXT(file != NULL, "tests/vectors/sampling.txt is there")) {
        return;
    }
    file[n] = 0; /* host_slurp leaves room for it */
    for (char *line = file, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        *end = 0;
        vectors = line;
        const char *word = next_word();
        for (size_t i = 0; i < FL_COUNT(records); i++) {
            if (strcmp(word, records[i].word) == 0) {
                records[i].read();
                known++;
            }
        }
    }
    CHECK(known == lines && n_vector_logits > 10 && n_vector_cases > 400);
    free(file);
}

/* ---- Worked examples ------------------------------------------------------------------------------- */

static void check_probabilities(const double *expected, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        double p = processed[i] > -FLT_MAX ? exp(processed[i]) : 0;
        CHECK(fabs(p - expected[i]) < 1e-4);
    }
}

static void choose_by_probabilities(const folollm_sampling *s, const double *p, uint32_t n) {
    float logits[8];
    for (uint32_t i = 0; i < n; i++) {
        logits[i] = (float)log(p[i]);
    }
    CHECK(choose(s, logits, n));
}

/* Probabilities that can be worked out on paper. */
static void test_examples(void) {
    static const float logits531[] = {5, 3, 1}, logits321[] = {3, 2, 1};
    static const float temperatures[] = {0.5f, 1, 2};
    static const double tempered[][3] = {
        {.98168, .01798, .00033}, {.86681, .11731, .01588}, {.66524, .24473, .09003}};
    static const double five[] = {.6, .25, .1, .03, .02}, five_left[] = {.6 / .95, .25 / .95, .1 / .95, 0, 0};
    static const float equal[] = {2, 2, 2, 2};
    static const double four[] = {.1, .2, .3, .4}, two_left[] = {0, 0, 3 / 7., 4 / 7.}, one_left[] = {0, 0, 0, 1};
    folollm_sampling s = {0}, top_p = {.temperature = 1, .top_p = 0.9f};
    set_history(NULL, 0, 0);
    for (size_t i = 0; i < 3; i++) {
        s.temperature = temperatures[i];
        CHECK(choose(&s, logits531, 3));
        check_probabilities(tempered[i], 3);
    }
    choose_by_probabilities(&top_p, five, 5); /* the token that crosses p stays */
    check_probabilities(five_left, 5);
    for (int quarters = 1; quarters < 4; quarters++) { /* and none after a sum that is p exactly */
        top_p.top_p = (float)quarters / 4;
        CHECK(choose(&top_p, equal, 4) && count_kept(4) == (uint32_t)quarters);
    }
    folollm_sampling k_then_p = {.temperature = 1, .top_k = 2, .top_p = 0.5f};
    choose_by_probabilities(&k_then_p, four, 4); /* .4 of .7 is above .5 */
    check_probabilities(one_left, 4);
    folollm_sampling p_then_k = {.temperature = 1, .top_k = 2, .top_p = 0.5f,
                                 .order = {FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_TOP_K}};
    choose_by_probabilities(&p_then_k, four, 4);
    check_probabilities(two_left, 4);
    folollm_sampling order = {.temperature = 0.5f, .top_p = 0.8f};
    for (int preset = FOLOLLM_PRESET_VLLM; preset <= FOLOLLM_PRESET_LLAMACPP; preset++) {
        order.preset = (folollm_preset)preset;
        CHECK(choose(&order, logits321, 3));
        CHECK(count_kept(3) == (preset == FOLOLLM_PRESET_LLAMACPP ? 2u : 1u));
    }
}

/* Settings that leave one token: temperature 0, top_k 1, a tiny top_p, min_p 1; the lowest id among equals. */
static void test_one_token(void) {
    static const float ties[] = {1, 4, -2, 4, 4, 0}, single[] = {-3};
    folollm_sampling greedy = {0}, k = {.temperature = 1, .top_k = 1, .preset = FOLOLLM_PRESET_LLAMACPP};
    folollm_sampling p = {.temperature = 1, .top_p = 1e-6f}, m = {.temperature = 1, .min_p = 1};
    set_history(NULL, 0, 0);
    for (uint64_t seed = 0; seed < 20; seed++) {
        greedy.seed = k.seed = p.seed = m.seed = seed;
        CHECK(choose(&greedy, ties, 6) && chosen.token == 1);
        CHECK(choose(&k, ties, 6) && chosen.token == 1 && count_kept(6) == 1);
        CHECK(choose(&p, ties, 6) && chosen.token == 1 && count_kept(6) == 1);
        CHECK(choose(&m, ties, 6) && count_kept(6) == 3); /* all that are as likely as the best */
        k.preset = FOLOLLM_PRESET_VLLM;
        CHECK(choose(&k, ties, 6) && count_kept(6) == 3); /* top-k keeps its ties there */
        k.preset = FOLOLLM_PRESET_LLAMACPP;
        CHECK(choose(&greedy, single, 1) && chosen.token == 0 && chosen.raw == 0);
        CHECK(choose(&p, single, 1) && chosen.token == 0 && chosen.processed == 0);
    }
}

/* Numbers at the ends of float neither overflow nor turn into NaN. */
static void test_extremes(void) {
    static const float huge[] = {-1e30f, 1e30f, 0, 1e30f, -FLT_MAX / 2}, small[] = {-5, 7, 0, 6, -1e-40f};
    static const float temperatures[] = {0, 1e-38f, 1e-20f, 1e-3f, 1, 100};
    static const float penalties[] = {0, 1e-38f, 1e-3f, 100};
    static const folollm_token seen[] = {0, 1, 3, 3, 1};
    folollm_bias biases[] = {{1, FLT_MAX}, {1, FLT_MAX}, {0, -FLT_MAX}, {0, -FLT_MAX}};
    set_history(seen, 5, 2);
    for (size_t i = 0; i < FL_COUNT(temperatures) * FL_COUNT(penalties) * 6; i++) {
        folollm_sampling s = {.temperature = temperatures[i % 6], .repetition_penalty = penalties[i / 6 % 4]};
        s.preset = (folollm_preset)(i / 24 % 3);
        s.top_p = i / 72 ? 0.9f : 0;
        s.min_p = i / 72 ? 0.1f : 0;
        s.top_k = i / 72 ? 3 : 0;
        s.biases = biases;
        CHECK(choose(&s, huge, 5) && (chosen.token == 1 || chosen.token == 3));
        if (s.repetition_penalty == 0 && s.temperature > 0 && s.temperature < 0.01f) {
            CHECK(choose(&s, small, 5) && chosen.token == 1 && chosen.processed > -1e-5f);
        }
        CHECK(choose(&s, small, 5));
        s.n_biases = 4;
        CHECK(choose(&s, small, 5));
        CHECK(choose(&s, huge, 5));
    }
}

/* ---- Penalties, biases, bans ----------------------------------------------------------------------- */

/* Which tokens count: all for repetition, the output for frequency and presence; the last 64 for llama.cpp. */
static void test_penalised_tokens(void) {
    enum { VOCAB = 100 };
    float logits[VOCAB];
    folollm_token tokens[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
        logits[i] = (float)(i % 7) - 3;
        tokens[i] = i;
    }
    set_history(tokens, 90, 60); /* tokens 0 to 59 are the prompt, 60 to 89 the output, the last 64 begin at 26 */
    for (int preset = FOLOLLM_PRESET_VLLM; preset <= FOLOLLM_PRESET_LLAMACPP; preset++) {
        bool llamacpp = preset == FOLOLLM_PRESET_LLAMACPP;
        folollm_sampling repetition = {.temperature = 1, .repetition_penalty = 2};
        folollm_sampling presence = {.temperature = 1, .presence_penalty = 2.5f};
        repetition.preset = presence.preset = (folollm_preset)preset;
        CHECK(choose(&repetition, logits, VOCAB));
        for (int i = 0; i < VOCAB; i++) {
            float l = logits[i], expected = i < (llamacpp ? 26 : 0) || i >= 90 ? l : l > 0 ? l / 2 : l * 2;
            CHECK(near(processed[i] - processed[99], expected - logits[99]));
        }
        CHECK(choose(&presence, logits, VOCAB));
        for (int i = 0; i < VOCAB; i++) {
            float expected = i < (llamacpp ? 26 : 60) || i >= 90 ? logits[i] : logits[i] - 2.5f;
            CHECK(near(processed[i] - processed[99], expected - logits[99]));
        }
    }
}

/* Frequency counts every occurrence, presence one; both negative ones make a token likelier. */
static void test_counts(void) {
    static const float logits[] = {0, 0, 0, 0};
    static const folollm_token tokens[] = {3, 3, 3, 1, 2, 2, 1, 1};
    folollm_sampling s = {.temperature = 1, .frequency_penalty = 0.5f, .presence_penalty = -0.25f};
    set_history(tokens, 8, 3);
    CHECK(choose(&s, logits, 4));
    CHECK(near(processed[1] - processed[0], -1.5 + 0.25) && near(processed[2] - processed[0], -1 + 0.25));
    CHECK(near(processed[3] - processed[0], 0));
    s.temperature = 0; /* greedy has them too */
    CHECK(choose(&s, logits, 4) && chosen.token == 0 && near(processed[2] - processed[0], -0.75));
}

/* A bias adds up, a ban holds against any bias or penalty, and an empty choice is not made. */
static void test_bans(void) {
    static const float logits[] = {1, 2, 3, 4, 5};
    static const folollm_token tokens[] = {0, 1, 2, 3, 4};
    folollm_bias biases[] = {{4, -INFINITY}, {4, 1e30f},     {0, 2.5f},     {0, 1},
                             {3, -INFINITY}, {2, -INFINITY}, {1, -INFINITY}};
    folollm_sampling s = {.temperature = 1, .biases = biases, .n_biases = 5, .repetition_penalty = 0.5f};
    static const folollm_token hole = 2;
    for (uint64_t seed = 0; seed < 40; seed++) {
        s.seed = seed;
        s.temperature = seed % 2 ? 1.0f : 0.0f;
        s.repetition_penalty = seed % 3 ? 0.5f : 0;
        set_history(tokens, 5, (uint32_t)seed % 6);
        CHECK(choose(&s, logits, 5) && count_kept(5) == 3 && chosen.token < 3);
        sampler.holes = &hole;
        sampler.n_holes = 1;
        CHECK(choose(&s, logits, 5) && count_kept(5) == 2 && chosen.token < 2 && processed[hole] == -FLT_MAX);
        sampler.n_holes = 0;
    }
    folollm_sampling one = {.temperature = 1, .biases = biases + 2, .n_biases = 2};
    CHECK(choose(&one, logits, 5) && near(processed[0] - processed[1], 2.5));
    biases[2].bias = -INFINITY;
    s.n_biases = 7;
    CHECK(!choose(&s, logits, 5));
    s.temperature = 1;
    CHECK(!choose(&s, logits, 5));
}

/* ---- The generator --------------------------------------------------------------------------------- */

static void reference_philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        uint64_t a = (uint64_t)c[0] * 0xD2511F53u, b = (uint64_t)c[2] * 0xCD9E8D57u;
        c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)a;
    }
}

/* Philox 4x32-10: Random123's known answers hold for the reference, and the reference for the generator. */
static void test_philox(void) {
    static const uint32_t known[][10] = {
        /* the counter, the key, the answer */
        {0, 0, 0, 0, 0, 0,
         0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
         0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
         0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    uint32_t c[4];
    for (size_t i = 0; i < FL_COUNT(known); i++) {
        memcpy(c, known[i], sizeof c);
        reference_philox(c, known[i][4], known[i][5]);
        CHECK(memcmp(c, known[i] + 6, sizeof c) == 0);
    }
    for (uint64_t i = 0; i < 10000; i++) {
        uint64_t seed = fl_mix(i) >> (i % 64), position = fl_mix(~i) >> (i / 64 % 64);
        uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
        reference_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
        double expected = ldexp((double)counter[0], -32) + ldexp((double)(counter[1] >> 11), -53);
        double uniform = fl_uniform(seed, position);
        CHECK(uniform == expected && uniform >= 0 && uniform < 1);
    }
}

#define DRAWS 200000
#define SIDES 12

/* Is the chi-square statistic within five standard deviations of its mean? */
static int as_likely_as(const uint32_t *counts, const double *p, size_t n) {
    double sum = 0, freedom = -1;
    for (size_t i = 0; i < n; i++) {
        double expected = p[i] * DRAWS;
        if (p[i] == 0) {
            CHECK(counts[i] == 0);
            continue;
        }
        sum += (counts[i] - expected) * (counts[i] - expected) / expected;
        freedom++;
    }
    return fabs(sum - freedom) < 5 * sqrt(2 * freedom) + 1e-9;
}

/* Draws along positions or seeds: each as often as it is likely, and each pair too. */
static void check_distribution(const folollm_sampling *in, const float *logits, bool seeds) {
    static uint32_t counts[SIDES], pairs[SIDES * SIDES];
    double p[SIDES], pair_p[SIDES * SIDES];
    fl_sampling options;
    folollm_logprob drawn;
    folollm_token before = 0;
    memset(counts, 0, sizeof counts);
    memset(pairs, 0, sizeof pairs);
    set_history(NULL, 0, 0);
    CHECK(choose(in, logits, SIDES) && fl_sampling_init(&options, in, NULL, 0, SIDES, NULL) == FOLOLLM_OK);
    for (size_t i = 0; i < SIDES * SIDES; i++) {
        p[i / SIDES] = processed[i / SIDES] > -FLT_MAX ? exp(processed[i / SIDES]) : 0;
        pair_p[i] = p[i / SIDES] * (processed[i % SIDES] > -FLT_MAX ? exp(processed[i % SIDES]) : 0);
    }
    for (uint32_t i = 0; i <= DRAWS; i++) {
        options.s.seed = seeds ? i : in->seed;
        history.n_tokens = seeds ? 17 : i;
        fl_sampler_choose(&sampler, &cpu.base, &options, logits, &history, &drawn, NULL, 0);
        counts[drawn.token] += i > 0;
        pairs[before * SIDES + drawn.token] += i > 0;
        before = drawn.token;
    }
    CHECK(as_likely_as(counts, p, SIDES));
    CHECK(as_likely_as(pairs, pair_p, SIDES * SIDES));
}

static void test_distribution(void) {
    static const float logits[SIDES] = {0.1f, -0.4f, 1.2f, 0.7f, 0, 0.3f, -0.9f, 1.4f, 0.2f, 0.2f, -0.1f, 0.9f};
    folollm_sampling plain = {.temperature = 1, .seed = 1}, other = {.temperature = 1, .seed = UINT64_MAX};
    folollm_sampling cut = {.temperature = 0.7f, .top_p = 0.8f, .seed = 3};
    folollm_sampling best = {.temperature = 1, .top_k = 5, .preset = FOLOLLM_PRESET_LLAMACPP};
    check_distribution(&plain, logits, false);
    check_distribution(&other, logits, false);
    check_distribution(&plain, logits, true);
    check_distribution(&cut, logits, false);
    check_distribution(&best, logits, true);
}

/* A draw depends on seed and position: not on what the tokens were, where they lie, or which are prompt. */
static void test_draw_depends_on(void) {
    float logits[64];
    folollm_token tokens[128];
    folollm_sampling s = {.temperature = 1};
    uint32_t n_seeds_differ = 0;
    for (int i = 0; i < 64; i++) {
        logits[i] = (float)random_below(100) / 50;
    }
    for (int i = 0; i < 200; i++) {
        uint32_t position = random_below(128);
        folollm_token first = -1;
        s.seed = random_below(1000);
        for (int again = 0; again < 4; again++) {
            for (int j = 0; j < 128; j++) {
                tokens[j] = (folollm_token)random_below(64);
            }
            set_history(tokens, position, random_below(position + 1));
            CHECK(choose(&s, logits, 64) && (again == 0 || chosen.token == first));
            first = chosen.token;
        }
        s.seed++;
        CHECK(choose(&s, logits, 64));
        n_seeds_differ += chosen.token != first;
    }
    CHECK(n_seeds_differ > 170);
}

/* ---- Options --------------------------------------------------------------------------------------- */

static folollm_status accepts(const folollm_sampling *s) {
    static const folollm_token eos[] = {7, 9};
    fl_sampling out;
    folollm_error error = {FOLOLLM_OK, ""};
    folollm_status status = fl_sampling_init(&out, s, eos, 2, 100, &error);
    CHECK(status == error.status && (status == FOLOLLM_OK || strlen(error.text) > 10));
    return status;
}

/* Every number has its range; NaN and infinities are in none. */
static void test_numbers_refused(void) {
    static const struct {
        size_t offset;
        float low, high;
    } fields[] = {
        {offsetof(folollm_sampling, temperature), 0, 100},
        {offsetof(folollm_sampling, top_p), 0, 1},
        {offsetof(folollm_sampling, min_p), 0, 1},
        {offsetof(folollm_sampling, repetition_penalty), 0, 100},
        {offsetof(folollm_sampling, frequency_penalty), -100, 100},
        {offsetof(folollm_sampling, presence_penalty), -100, 100},
    };
    for (size_t i = 0; i < FL_COUNT(fields); i++) {
        float good[] = {fields[i].low, fields[i].high, 0.5f};
        float bad[] = {NAN, -NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, 0};
        bad[6] = nextafterf(fields[i].low, -INFINITY);
        bad[7] = nextafterf(fields[i].high, INFINITY);
        for (size_t j = 0; j < FL_COUNT(bad) + FL_COUNT(good); j++) {
            folollm_sampling s = {0};
            bool is_bad = j < FL_COUNT(bad);
            float value = is_bad ? bad[j] : good[j - FL_COUNT(bad)];
            memcpy((char *)&s + fields[i].offset, &value, sizeof value);
            CHECK(accepts(&s) == (is_bad ? FOLOLLM_E_ARGUMENT : FOLOLLM_OK));
        }
    }
}

static void test_options_refused(void) {
    folollm_sampling bad[] = {
        {.struct_size = 1},
        {.preset = (folollm_preset)3},
        {.preset = (folollm_preset)-1},
        {.order = {FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_TOP_K}},
        {.order = {FOLOLLM_STAGE_TOP_K, (folollm_stage)5}},
        {.order = {(folollm_stage)-1}},
        {.order = {(folollm_stage)33}},
        {.n_biases = 1},
        {.n_stop_ids = 1},
        {.n_stops = 1},
        {.min_tokens = 4, .max_tokens = 3},
    };
    folollm_sampling good[] = {
        {.struct_size = sizeof(folollm_sampling)},
        {.order = {FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_MIN_P, FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TEMPERATURE}},
        {.top_k = UINT32_MAX, .seed = UINT64_MAX},
        {.min_tokens = 3, .max_tokens = 3},
        {.min_tokens = UINT32_MAX},
    };
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        CHECK(accepts(&bad[i]) == FOLOLLM_E_ARGUMENT);
    }
    for (size_t i = 0; i < FL_COUNT(good); i++) {
        CHECK(accepts(&good[i]) == FOLOLLM_OK);
    }
    CHECK(accepts(NULL) == FOLOLLM_OK);
}

static folollm_status accepts_bias(folollm_token token, float value, size_t n) {
    folollm_bias biases[257];
    for (size_t i = 0; i < FL_COUNT(biases); i++) {
        biases[i].token = token;
        biases[i].bias = value;
    }
    folollm_sampling s = {.biases = biases, .n_biases = n};
    return accepts(&s);
}

static folollm_status accepts_stop_id(folollm_token token, size_t n, int ignore_eos) {
    folollm_token ids[65];
    for (size_t i = 0; i < FL_COUNT(ids); i++) {
        ids[i] = token;
    }
    folollm_sampling s = {.stop_ids = ids, .n_stop_ids = n, .ignore_eos = ignore_eos};
    return accepts(&s);
}

static folollm_status accepts_stop(const char *text, size_t n_bytes, size_t n) {
    folollm_text stops[17];
    for (size_t i = 0; i < FL_COUNT(stops); i++) {
        stops[i].text = text;
        stops[i].n_bytes = n_bytes;
    }
    folollm_sampling s = {.stops = stops, .n_stops = n};
    return accepts(&s);
}

/* Lists: how long they may be, and what may stand in them. The engine's vocabulary is 100, with two EOS ids. */
static void test_lists_refused(void) {
    char text[129];
    memset(text, 'x', sizeof text);
    CHECK(accepts_bias(99, 1, 256) == FOLOLLM_OK && accepts_bias(0, -INFINITY, 1) == FOLOLLM_OK);
    CHECK(accepts_bias(0, 1, 257) == FOLOLLM_E_ARGUMENT && accepts_bias(100, 1, 1) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_bias(-1, 1, 1) == FOLOLLM_E_ARGUMENT && accepts_bias(0, NAN, 1) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_bias(0, INFINITY, 1) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_stop_id(99, 62, 0) == FOLOLLM_OK && accepts_stop_id(99, 63, 0) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_stop_id(0, 64, 1) == FOLOLLM_OK && accepts_stop_id(0, 65, 1) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_stop_id(-1, 1, 0) == FOLOLLM_E_ARGUMENT && accepts_stop_id(100, 1, 0) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_stop(text, 128, 16) == FOLOLLM_OK && accepts_stop(text, 128, 17) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_stop(text, 129, 1) == FOLOLLM_E_ARGUMENT && accepts_stop(text, 0, 1) == FOLOLLM_E_ARGUMENT);
    CHECK(accepts_stop(NULL, 1, 1) == FOLOLLM_E_ARGUMENT && accepts_stop("a\0b", 3, 1) == FOLOLLM_OK);
    CHECK(accepts_stop("\xC3\xA9", 2, 1) == FOLOLLM_OK);
    CHECK(accepts_stop("\xA9", 1, 1) == FOLOLLM_E_ENCODING); /* it would cut a character in two */
    CHECK(accepts_stop("a\xC3", 2, 1) == FOLOLLM_E_ENCODING);
}

/* ---- An engine: outputs ---------------------------------------------------------------------------- */

#define OUTPUT_MAX 96
#define TEXT_MAX 8192
#define CONTEXT 192

static folollm *engine;
static folollm_seq base; /* the prompt alone, without output: everything below is a fork of it */

typedef struct output {
    folollm_token tokens[OUTPUT_MAX];
    size_t ends[OUTPUT_MAX]; /* bytes of text after each token */
    size_t n_tokens, n_bytes;
    char text[TEXT_MAX];
    folollm_finish finish;
    int stop_index;
} output;

static folollm *open_engine(const char *path, const folollm_options *options) {
    folollm_error error;
    folollm *f = NULL;
    if (folollm_load(path, options, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    return f;
}

static void prefill_text(folollm *f, folollm_seq seq, const char *text) {
    folollm_token tokens[64];
    size_t n = FL_COUNT(tokens);
    CHECK(folollm_tokenize(f, text, strlen(text), NULL, 0, 0, tokens, &n, NULL) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, tokens, n, NULL, NULL) == FOLOLLM_OK);
}

static void open_model(void) {
    folollm_options o = {.context = CONTEXT, .max_seqs = 12, .pool_tokens = 12 * CONTEXT, .n_threads = 1};
    engine = open_engine(MODEL, &o);
    CHECK(folollm_seq_open(engine, NULL, &base, NULL) == FOLOLLM_OK);
    prefill_text(engine, base, "ROMEO:\nWhat");
}

static folollm_seq fork_of(folollm_seq seq, const folollm_sampling *sampling) {
    folollm_seq out = 0;
    CHECK(folollm_seq_fork(engine, seq, sampling, &out, NULL) == FOLOLLM_OK);
    return out;
}

static void close_sequence(folollm_seq seq) {
    CHECK(folollm_seq_close(engine, seq, NULL) == FOLOLLM_OK);
}

static void step(folollm_seq seq, folollm_token token) {
    CHECK(folollm_decode_step(engine, &seq, &token, 1, NULL) == FOLOLLM_OK);
}

/* Sample twice, which must give the same, and append to the output what comes of it. */
static void sample_one(folollm *f, folollm_seq seq, output *o) {
    folollm_sampled s, again;
    folollm_logprob best[3];
    CHECK(folollm_sample(f, seq, &again, NULL, 0, NULL) == FOLOLLM_OK);
    char text[TEXT_MAX];
    memcpy(text, again.text, again.n_bytes);
    if (!CHECK(folollm_sample(f, seq, &s, best, 3, NULL) == FOLOLLM_OK && o->n_tokens < OUTPUT_MAX)) {
        exit(2);
    }
    CHECK(s.token == again.token && s.finish == again.finish && s.stop_index == again.stop_index);
    CHECK(s.n_bytes == again.n_bytes && memcmp(s.text, text, s.n_bytes) == 0);
    CHECK(fl_utf8_valid_prefix(s.text, s.n_bytes) == s.n_bytes);
    CHECK((s.stop_index >= 0) == (s.finish == FOLOLLM_FINISH_STOP_STRING));
    memcpy(o->text + o->n_bytes, s.text, s.n_bytes);
    o->n_bytes += s.n_bytes;
    o->ends[o->n_tokens] = o->n_bytes;
    o->tokens[o->n_tokens++] = s.token;
    o->finish = s.finish;
    o->stop_index = s.stop_index;
}

/* Go on until the end, or until the output has so many tokens. */
static void continue_output(folollm_seq seq, output *o, size_t n_tokens) {
    while (o->n_tokens < n_tokens) {
        sample_one(engine, seq, o);
        if (o->finish != FOLOLLM_FINISH_NONE || o->n_tokens == n_tokens) {
            break;
        }
        step(seq, o->tokens[o->n_tokens - 1]);
    }
}

static void run_output(const folollm_sampling *sampling, output *o, size_t n_tokens) {
    folollm_seq seq = fork_of(base, sampling);
    memset(o, 0, sizeof *o);
    continue_output(seq, o, n_tokens);
    close_sequence(seq);
}

static bool same_output(const output *a, const output *b) {
    return a->n_tokens == b->n_tokens && a->n_bytes == b->n_bytes && a->finish == b->finish &&
           a->stop_index == b->stop_index && memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) == 0 &&
           memcmp(a->ends, b->ends, a->n_tokens * sizeof *a->ends) == 0 &&
           memcmp(a->text, b->text, a->n_bytes) == 0;
}

/* Does the text equal what the first n tokens decode to at once? */
static bool text_is_of(const output *o, const char *text, size_t n_bytes, size_t n) {
    char whole[TEXT_MAX];
    size_t length = sizeof whole;
    CHECK(folollm_detokenize(engine, o->tokens, n, FOLOLLM_DETOKENIZE_SKIP_SPECIAL, whole, &length, NULL) ==
          FOLOLLM_OK);
    return length == n_bytes && memcmp(text, whole, length) == 0;
}

/* Pieces put together are the text of all tokens, from likely ones to noise full of broken UTF-8. */
static void test_concatenation(void) {
    static const float temperatures[] = {0, 0.8f, 1.5f, 100};
    output o;
    for (size_t i = 0; i < FL_COUNT(temperatures) * 4; i++) {
        folollm_sampling s = {.temperature = temperatures[i % 4], .seed = i, .max_tokens = 30 + (uint32_t)i};
        s.ignore_eos = 1;
        run_output(&s, &o, OUTPUT_MAX);
        CHECK(o.finish == FOLOLLM_FINISH_LENGTH && o.n_tokens == s.max_tokens);
        CHECK(text_is_of(&o, o.text, o.n_bytes, o.n_tokens));
        CHECK(temperatures[i % 4] < 100 || memmem(o.text, o.n_bytes, "\xEF\xBF\xBD", 3) != NULL);
    }
}

/* ---- Ends ------------------------------------------------------------------------------------------ */

/* Stop ids: the list and the checkpoint's EOS end the output and add no text; ignore_eos frees the latter. */
static void test_stop_ids(void) {
    output plain, o;
    folollm_sampling s = {.temperature = 1, .seed = 5};
    run_output(&s, &plain, 20);
    for (size_t k = 0; k < 20; k++) {
        folollm_token ids[] = {1022, plain.tokens[k], 0};
        size_t first = 0;
        while (plain.tokens[first] != ids[1] && plain.tokens[first] != ids[2]) {
            first++;
        }
        s.stop_ids = ids;
        s.n_stop_ids = 3;
        run_output(&s, &o, 20);
        CHECK(o.n_tokens == first + 1 && o.finish == FOLOLLM_FINISH_STOP_ID);
        CHECK(text_is_of(&o, o.text, o.n_bytes, first));
    }
    folollm_bias eos = {1021, 1000};
    folollm_sampling ends = {.biases = &eos, .n_biases = 1, .max_tokens = 5};
    run_output(&ends, &o, 20);
    CHECK(o.n_tokens == 1 && o.finish == FOLOLLM_FINISH_STOP_ID && o.n_bytes == 0);
    ends.ignore_eos = 1;
    run_output(&ends, &o, 20);
    CHECK(o.n_tokens == 5 && o.finish == FOLOLLM_FINISH_LENGTH && o.n_bytes == 0);
}

/* min_tokens: no stop id is sampled among the first, EOS included, however likely; then it is. */
static void test_min_tokens(void) {
    folollm_bias biases[] = {{1021, 1000}, {11, 900}};
    folollm_token id = 11;
    output o;
    for (uint32_t n = 0; n < 5; n++) {
        folollm_sampling s = {.biases = biases, .n_biases = 2, .stop_ids = &id, .n_stop_ids = 1, .min_tokens = n};
        run_output(&s, &o, 20);
        CHECK(o.n_tokens == n + 1 && o.finish == FOLOLLM_FINISH_STOP_ID && o.tokens[n] == 1021);
        for (uint32_t i = 0; i < n; i++) {
            CHECK(o.tokens[i] != 1021 && o.tokens[i] != 11);
        }
        s.ignore_eos = 1;
        s.max_tokens = n + 3;
        run_output(&s, &o, 20);
        CHECK(o.n_tokens == n + 3 && o.finish == FOLOLLM_FINISH_LENGTH && o.tokens[0] == 1021);
    }
}

/* LENGTH comes with the token that max_tokens allows last, or that fits the context last. */
static void test_length(void) {
    folollm_options options = {.context = 24, .max_seqs = 1, .n_threads = 1};
    folollm *f = open_engine(MODEL, &options);
    folollm_sampling s = {.ignore_eos = 1, .temperature = 1};
    folollm_seq seq = 0;
    output o = {.n_tokens = 0};
    CHECK(folollm_seq_open(f, &s, &seq, NULL) == FOLOLLM_OK);
    prefill_text(f, seq, "JULIET:\n");
    size_t n_prompt = 0;
    CHECK(folollm_seq_tokens(f, seq, NULL, &n_prompt, NULL) == FOLOLLM_OK);
    while (n_prompt + o.n_tokens < 24) {
        sample_one(f, seq, &o);
        CHECK((o.finish == FOLOLLM_FINISH_LENGTH) == (n_prompt + o.n_tokens == 24));
        CHECK(folollm_decode_step(f, &seq, &o.tokens[o.n_tokens - 1], 1, NULL) == FOLOLLM_OK);
    }
    CHECK(text_is_of(&o, o.text, o.n_bytes, o.n_tokens));
    sample_one(f, seq, &o); /* the full context still says what would come, but not where to put it */
    CHECK(o.finish == FOLOLLM_FINISH_LENGTH);
    CHECK(folollm_decode_step(f, &seq, o.tokens, 1, NULL) == FOLOLLM_E_CONTEXT);
    folollm_free(f);
    s.max_tokens = 1;
    run_output(&s, &o, 20);
    CHECK(o.n_tokens == 1 && o.finish == FOLOLLM_FINISH_LENGTH);
}

/* A vocabulary that is banned whole: a status, and nothing written. Without a tokenizer there is no text. */
static void test_banned_vocabulary(void) {
    folollm_bias biases[48];
    folollm_sampling s = {.biases = biases, .n_biases = 48};
    folollm_seq seq = 0;
    folollm_token token = 3;
    folollm_sampled sampled, untouched;
    folollm_logprob best[48], none[48];
    folollm *f = open_engine(SMALL, NULL);
    memset(&untouched, 0x55, sizeof untouched);
    memset(none, 0x55, sizeof none);
    for (int i = 0; i < 48; i++) {
        biases[i].token = i;
        biases[i].bias = -INFINITY;
    }
    for (int round = 0; round < 4; round++) {
        sampled = untouched;
        memcpy(best, none, sizeof best);
        s.temperature = (float)(round & 1);
        s.n_biases = round & 2 ? 47 : 48;
        CHECK(folollm_seq_open(f, &s, &seq, NULL) == FOLOLLM_OK);
        CHECK(folollm_sample(f, seq, &sampled, NULL, 0, NULL) == FOLOLLM_E_STATE); /* no logits yet */
        CHECK(folollm_prefill(f, seq, &token, 1, NULL, NULL) == FOLOLLM_OK);
        CHECK(folollm_sample(f, seq, &sampled, best, 49, NULL) == FOLOLLM_E_ARGUMENT);
        CHECK(folollm_sample(f, seq, &sampled, NULL, 1, NULL) == FOLOLLM_E_ARGUMENT);
        CHECK(folollm_sample(f, seq, NULL, best, 1, NULL) == FOLOLLM_E_ARGUMENT);
        folollm_status status = folollm_sample(f, seq, &sampled, best, 48, NULL);
        CHECK(status == (round & 2 ? FOLOLLM_OK : FOLOLLM_E_STATE));
        if (status == FOLOLLM_OK) {
            CHECK(sampled.token == 47 && sampled.n_bytes == 0 && sampled.chosen.processed == 0);
        } else {
            CHECK(memcmp(&sampled, &untouched, sizeof sampled) == 0 && memcmp(best, none, sizeof best) == 0);
        }
        CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    }
    folollm_free(f);
}

/* An id that the head computes and no token has is never sampled. */
static void test_holes(void) {
    static test_host host;
    folollm_options options = {.host = &host.hooks, .context = 32, .max_seqs = 1, .n_threads = 1};
    folollm_bias bias = {1023, 1e30f};
    folollm_seq seq = 0;
    folollm_sampled sampled;
    static folollm_logprob best[1024];
    host_init(&host, true);
    CHECK(host_put_directory(&host, MODEL));
    char *entry = memmem(host_find(&host, "tokenizer.json")->bytes, 1000, ", {\"id\": 1023", 13);
    memset(entry, ' ', (size_t)(strchr(entry, '}') + 1 - entry));
    folollm *f = open_engine("mem", &options);
    for (int round = 0; round < 8; round++) {
        folollm_sampling s = {.temperature = (float)(round % 2), .seed = (uint64_t)round, .biases = &bias};
        s.n_biases = 1;
        CHECK(folollm_seq_open(f, &s, &seq, NULL) == FOLOLLM_OK);
        prefill_text(f, seq, "O");
        CHECK(folollm_sample(f, seq, &sampled, best, 1024, NULL) == FOLOLLM_OK && sampled.token != 1023);
        for (size_t i = 0; i < 1024; i++) {
            CHECK((best[i].token == 1023) == (best[i].processed == -FLT_MAX));
        }
        CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    }
    folollm_free(f);
    CHECK(host_is_clean(&host));
    host_free(&host);
}

/* ---- Draws in an engine ------------------------------------------------------------------------------ */

#define SEQS 5

/* The tokens of sequences that step together, in an order that turns; one is forked half-way. */
static void run_together(output *outputs, size_t n_tokens, unsigned turn) {
    folollm_seq seqs[SEQS], ordered[SEQS];
    folollm_token tokens[SEQS];
    for (size_t i = 0; i < SEQS; i++) {
        folollm_sampling s = {.temperature = 1.1f, .seed = i / 2, .ignore_eos = 1, .top_p = i == 3 ? 0.7f : 0};
        seqs[i] = fork_of(base, &s);
        memset(&outputs[i], 0, sizeof outputs[i]);
    }
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t i = 0; i < SEQS; i++) {
            size_t at = turn & 1 ? SEQS - 1 - i : (i + turn + t) % SEQS;
            sample_one(engine, seqs[at], &outputs[at]);
            ordered[i] = seqs[at];
            tokens[i] = outputs[at].tokens[t];
        }
        CHECK(folollm_decode_step(engine, ordered, tokens, SEQS, NULL) == FOLOLLM_OK);
        if (t == n_tokens / 2) {
            folollm_seq fork = fork_of(seqs[t % SEQS], NULL);
            close_sequence(seqs[t % SEQS]);
            seqs[t % SEQS] = fork;
        }
    }
    for (size_t i = 0; i < SEQS; i++) {
        close_sequence(seqs[i]);
    }
}

/* Neighbours, their order, forks and interleaving change no draw: each is as if it were alone. */
static void test_draws_in_batches(void) {
    static output together[SEQS], alone[SEQS];
    for (unsigned turn = 0; turn < 4; turn++) {
        run_together(together, 40, turn);
        CHECK(same_output(&together[0], &together[1]) && !same_output(&together[0], &together[2]));
        for (size_t i = 0; i < SEQS; i++) {
            folollm_sampling s = {.temperature = 1.1f, .seed = i / 2, .ignore_eos = 1, .top_p = i == 3 ? 0.7f : 0};
            run_output(&s, &alone[i], 40);
            CHECK(same_output(&together[i], &alone[i]));
        }
    }
}

/* ---- Stop strings -------------------------------------------------------------------------------------- */

typedef struct expected {
    size_t n_tokens, n_bytes;
    int stop; /* -1: none is complete within the output */
} expected;

/* The earliest stop string in text[from, end), the longest that begins there. */
static int find_stop(const char *text, size_t from, size_t end, const folollm_text *stops, size_t n, size_t *at) {
    int found = -1;
    for (*at = from; *at < end && found < 0; ++*at) {
        for (size_t k = 0; k < n; k++) {
            bool fits = stops[k].n_bytes <= end - *at && memcmp(text + *at, stops[k].text, stops[k].n_bytes) == 0;
            if (fits && (found < 0 || stops[k].n_bytes > stops[found].n_bytes)) {
                found = (int)k;
            }
        }
    }
    *at -= found >= 0;
    return found;
}

/* What must become of an output that ran without stop strings. */
static expected expect_stop(const output *o, const folollm_text *stops, size_t n, uint32_t min_tokens) {
    size_t from = min_tokens > 1 ? o->ends[min_tokens - 2] : 0, at;
    for (size_t i = min_tokens > 1 ? min_tokens - 1 : 0; i < o->n_tokens; i++) {
        int stop = find_stop(o->text, from, o->ends[i], stops, n, &at);
        if (stop >= 0) {
            expected e = {i + 1, at, stop};
            return e;
        }
    }
    expected e = {o->n_tokens, o->n_bytes, -1};
    return e;
}

static bool is_boundary(const output *o, size_t at) {
    return at == o->n_bytes || ((uint8_t)o->text[at] & 0xC0) != 0x80;
}

/* A stop string of an output's own text, sometimes spoiled at its end so that it never completes. */
static folollm_text random_stop(const output *o, char *room) {
    size_t begin, end;
    do {
        begin = random_below((uint32_t)o->n_bytes);
        end = begin + 1 + random_below(random_below(4) == 0 ? 60 : 8);
    } while (end > o->n_bytes || !is_boundary(o, begin) || !is_boundary(o, end));
    memcpy(room, o->text + begin, end - begin);
    folollm_text stop = {room, end - begin};
    if (random_below(3) == 0) {
        room[stop.n_bytes++] = '\x01';
    }
    return stop;
}

static size_t random_stops(const output *o, folollm_text *stops, char rooms[][80]) {
    size_t n = 1 + random_below(6);
    for (size_t i = 0; i < n; i++) {
        stops[i] = random_stop(o, rooms[i]);
        if (i > 0 && random_below(3) == 0) { /* a beginning of the one before */
            stops[i] = stops[i - 1];
            do {
                stops[i].n_bytes -= stops[i].n_bytes > 1;
            } while (((uint8_t)stops[i].text[stops[i].n_bytes] & 0xC0) == 0x80);
        }
    }
    return n;
}

/* Through the engine: text, end and index are those of the search over the whole text. */
static void check_stops(const output *plain, folollm_sampling s, const folollm_text *stops, size_t n_stops) {
    output o;
    expected e = expect_stop(plain, stops, n_stops, s.min_tokens);
    s.stops = stops;
    s.n_stops = n_stops;
    s.max_tokens = (uint32_t)plain->n_tokens;
    run_output(&s, &o, OUTPUT_MAX);
    CHECK(o.n_tokens == e.n_tokens && o.stop_index == e.stop);
    if (e.stop >= 0) {
        CHECK(o.finish == FOLOLLM_FINISH_STOP_STRING);
        CHECK(o.n_bytes == e.n_bytes && memcmp(o.text, plain->text, e.n_bytes) == 0);
    } else {
        CHECK(o.finish == FOLOLLM_FINISH_LENGTH && text_is_of(plain, o.text, o.n_bytes, plain->n_tokens));
    }
}

static void test_stop_strings(void) {
    static const float temperatures[] = {0.9f, 2, 100};
    folollm_text stops[8];
    char rooms[8][80];
    for (uint64_t seed = 0; seed < 9; seed++) {
        folollm_sampling s = {.temperature = temperatures[seed % 3], .seed = seed, .ignore_eos = 1};
        output plain;
        run_output(&s, &plain, 40);
        for (int round = 0; round < 12; round++) {
            size_t n = random_stops(&plain, stops, rooms);
            s.min_tokens = round % 3 == 2 ? random_below(40) : 0;
            check_stops(&plain, s, stops, n);
        }
    }
}

/* The same at the stream itself, many more times. */
static void test_stop_streams(void) {
    static fl_sampling options;
    folollm_text stops[8];
    char rooms[8][80], text[TEXT_MAX];
    folollm_sampling s = {.temperature = 3, .seed = 99, .ignore_eos = 1};
    output plain;
    run_output(&s, &plain, 60);
    for (int round = 0; round < 5000; round++) {
        fl_stream stream = {.n_held = 0};
        folollm_sampling with = {.stops = stops, .n_stops = random_stops(&plain, stops, rooms)};
        expected e = expect_stop(&plain, stops, with.n_stops, 0);
        size_t n_bytes = 0, n, i = 0;
        int stop = -1;
        CHECK(fl_sampling_init(&options, &with, NULL, 0, 1024, NULL) == FOLOLLM_OK);
        for (; i < plain.n_tokens && stop < 0; i++) {
            stop = fl_stream_feed(&stream, engine->checkpoint->tokenizer, &options, plain.tokens[i], true,
                                  text + n_bytes, &n);
            n_bytes += n;
            CHECK(n_bytes <= e.n_bytes); /* nothing of it has leaked */
        }
        n_bytes += stop < 0 ? stream.n_held : 0;
        CHECK(i == e.n_tokens && stop == e.stop && n_bytes == e.n_bytes);
        CHECK(memcmp(text, plain.text, n_bytes - (stop < 0 ? stream.n_held : 0)) == 0);
    }
}

/* Text that waits for a stop string to complete comes out when a stop id or the length ends the output. */
static void test_held_text(void) {
    folollm_sampling s = {.temperature = 0.9f, .seed = 4, .ignore_eos = 1};
    output plain, o;
    run_output(&s, &plain, 30);
    for (size_t k = 1; k < 30; k++) {
        char stop[80];
        size_t begin = plain.ends[k - 1] > 6 ? plain.ends[k - 1] - 6 : 0, n = plain.ends[k - 1] - begin, first = 0;
        memcpy(stop, plain.text + begin, n);
        memcpy(stop + n, "\x02 never", 7);
        folollm_text text = {stop, n + 7};
        folollm_sampling with = s;
        with.stops = &text;
        with.n_stops = 1;
        with.max_tokens = (uint32_t)k;
        run_output(&with, &o, OUTPUT_MAX);
        CHECK(o.finish == FOLOLLM_FINISH_LENGTH && text_is_of(&plain, o.text, o.n_bytes, k));
        CHECK(k == 1 || o.ends[k - 2] <= begin);
        while (plain.tokens[first] != plain.tokens[k]) {
            first++;
        }
        with.max_tokens = 0;
        with.stop_ids = &plain.tokens[k];
        with.n_stop_ids = 1;
        run_output(&with, &o, OUTPUT_MAX);
        CHECK(o.finish == FOLOLLM_FINISH_STOP_ID && text_is_of(&plain, o.text, o.n_bytes, first));
    }
}

/* ---- Streams over forks, truncation and new prompts ------------------------------------------------------ */

/* Does the rest of the output come out of seq as it did, from token k on? */
static void check_continues(folollm_seq seq, const output *whole, size_t k) {
    output o = *whole;
    o.n_tokens = k;
    o.n_bytes = k > 0 ? whole->ends[k - 1] : 0;
    continue_output(seq, &o, whole->n_tokens);
    CHECK(same_output(&o, whole));
}

#define WAITS 16

static folollm_text waits[WAITS];

/* Stop strings that never complete, spelled so that nearly all the time much of the output is held. */
static folollm_sampling never_stops(folollm_sampling s) {
    static char rooms[WAITS][80];
    static output plain;
    run_output(&s, &plain, OUTPUT_MAX);
    for (size_t i = 0; i < WAITS; i++) {
        size_t begin = i * plain.n_bytes / WAITS, n = fl_min(40, plain.n_bytes - begin);
        for (; !is_boundary(&plain, begin); n--) {
            begin++;
        }
        while (!is_boundary(&plain, begin + n)) {
            n--;
        }
        memcpy(rooms[i], plain.text + begin, n);
        rooms[i][n] = '\x01';
        waits[i].text = rooms[i];
        waits[i].n_bytes = n + 1;
    }
    s.stops = waits;
    s.n_stops = WAITS;
    return s;
}

/* A sequence that is forked, or cut back and stepped on, goes on in the same words. */
static void test_fork_and_truncate(void) {
    for (uint64_t seed = 0; seed < 14; seed++) {
        output whole;
        folollm_sampling s = {.ignore_eos = 1, .max_tokens = 40, .seed = seed, .min_tokens = (uint32_t)seed};
        s.temperature = seed % 2 ? 100.0f : 0.9f;
        s = never_stops(s);
        run_output(&s, &whole, OUTPUT_MAX);
        CHECK(whole.n_tokens == 40);
        folollm_seq seq = fork_of(base, &s);
        size_t n_prompt = 0, k = 5 + random_below(30);
        CHECK(folollm_seq_tokens(engine, base, NULL, &n_prompt, NULL) == FOLOLLM_OK);
        for (size_t i = 0; i < k; i++) {
            step(seq, whole.tokens[i]); /* without a sample */
        }
        folollm_seq fork = fork_of(seq, NULL), other = fork_of(seq, &s);
        check_continues(fork, &whole, k);
        check_continues(other, &whole, k);
        for (size_t j = k; j > 0; j -= fl_min(j, 1 + random_below(9))) {
            CHECK(folollm_seq_truncate(engine, fork, n_prompt + j - 1, NULL) == FOLOLLM_OK);
            step(fork, whole.tokens[j - 1]);
            check_continues(fork, &whole, j);
        }
        check_continues(seq, &whole, k); /* what was done to its fork has not touched it */
        close_sequence(seq);
        close_sequence(fork);
        close_sequence(other);
    }
}

/* A fork with other stop strings streams as if it had had them from the start. */
static void test_fork_with_other_stops(void) {
    folollm_sampling plain = {.ignore_eos = 1, .temperature = 0.9f, .max_tokens = 30}, held = never_stops(plain);
    output whole, o;
    run_output(&plain, &whole, OUTPUT_MAX);
    run_output(&held, &o, OUTPUT_MAX);
    CHECK(o.n_bytes == whole.n_bytes && memcmp(o.ends, whole.ends, sizeof whole.ends) != 0);
    for (size_t k = 1; k < 30; k += 4) {
        folollm_seq seq = fork_of(base, &held);
        for (size_t i = 0; i < k; i++) {
            step(seq, whole.tokens[i]);
        }
        folollm_seq fork = fork_of(seq, &plain), back = fork_of(fork, &held);
        check_continues(fork, &whole, k);
        check_continues(back, &o, k);
        close_sequence(seq);
        close_sequence(fork);
        close_sequence(back);
    }
}

/* Prefill begins a new output: text, limits and output penalties start there, whatever was held before. */
static void test_new_output(void) {
    folollm_sampling s = {.ignore_eos = 1, .temperature = 0.9f, .max_tokens = 25, .frequency_penalty = 0.8f};
    folollm_token tokens[CONTEXT];
    size_t n = FL_COUNT(tokens);
    output first, second = {.n_tokens = 0}, fresh = {.n_tokens = 0};
    s = never_stops(s);
    run_output(&s, &first, 12);
    folollm_seq seq = fork_of(base, &s), other = 0;
    for (size_t i = 0; i < 12; i++) {
        step(seq, first.tokens[i]);
    }
    CHECK(text_is_of(&first, first.text, first.n_bytes, 12) == false); /* something is held */
    prefill_text(engine, seq, "\n\nJULIET:\n");
    CHECK(folollm_seq_tokens(engine, seq, tokens, &n, NULL) == FOLOLLM_OK);
    continue_output(seq, &second, OUTPUT_MAX);
    CHECK(folollm_seq_open(engine, &s, &other, NULL) == FOLOLLM_OK);
    CHECK(folollm_prefill(engine, other, tokens, n, NULL, NULL) == FOLOLLM_OK);
    continue_output(other, &fresh, OUTPUT_MAX);
    CHECK(same_output(&second, &fresh) && second.n_tokens == 25);
    CHECK(text_is_of(&second, second.text, second.n_bytes, 25));
    close_sequence(seq);
    close_sequence(other);
}

/* A SentencePiece text drops its first space only where the text begins: after a prompt the space stays. */
static void test_first_space(void) {
    static const char *const names[] = {"llama2", "metaspace"};
    static const folollm_token prompt[FL_PAGE_TOKENS];
    static fl_sequence s;
    fl_pages pool = {.tokens = (folollm_token *)(uintptr_t)prompt};
    uint32_t page = 0;
    fl_memory memory;
    fl_memory_init(&memory, NULL);
    for (size_t i = 0; i < FL_COUNT(names); i++) {
        fl_tokenizer *t = NULL;
        char path[64], text[256];
        uint64_t bytes;
        size_t n = 0;
        snprintf(path, sizeof path, "tests/vectors/tokenizers/%s", names[i]);
        if (!CHECK(fl_tokenizer_open(&memory, path, &t, &bytes, NULL) == FOLOLLM_OK)) {
            continue;
        }
        fl_str spelled = {"\xE2\x96\x81the", 6};
        folollm_token word = fl_tokenizer_find(t, spelled);
        CHECK(word >= 0 && fl_tokenizer_max_piece_bytes(t) < 128);
        s.pages = &page;
        for (uint32_t n_prompt = 0; n_prompt < 2; n_prompt++) {
            s.n_tokens = s.n_prompt = n_prompt;
            fl_sequence_replay(&s, &pool, t);
            fl_stream_feed(&s.stream, t, &s.sampling, word, true, text, &n);
            CHECK_TEXT(n == 3 + n_prompt && memcmp(text, n_prompt ? " the" : "the", n) == 0, names[i]);
        }
        fl_tokenizer_close(&memory, t);
    }
}

/* ---- The checkpoint's own settings ------------------------------------------------------------------- */

/* What generation_config.json and its neighbours lead to. eos: as a list ended by -1; config.json names 7 and
 * tokenizer_config.json <|endoftext|>, 1021. */
typedef struct settings {
    const char *file;
    folollm_status status;
    float temperature;
    uint32_t top_k;
    float top_p, min_p, repetition_penalty;
    folollm_token eos[6];
} settings;

static test_host settings_host;

static void check_settings(const settings *want) {
    folollm_options o = {.host = &settings_host.hooks, .tokenizer_only = 1};
    folollm_sampling s;
    folollm_info info;
    folollm_error error = {FOLOLLM_OK, ""};
    folollm *f = NULL;
    if (want->file != NULL) {
        host_put_text(&settings_host, "generation_config.json", want->file);
    } else {
        host_remove(&settings_host, "generation_config.json");
    }
    folollm_status status = folollm_load("mem", &o, &f, &error);
    CHECK_TEXT(status == want->status, want->file);
    CHECK_TEXT(status == FOLOLLM_OK || strstr(error.text, "generation_config.json") != NULL, want->file);
    if (status == FOLOLLM_OK) {
        const fl_generation *g = &f->checkpoint->generation;
        folollm_default_sampling(f, &s);
        folollm_get_info(f, &info);
        CHECK_TEXT(s.temperature == want->temperature && s.top_k == want->top_k && s.top_p == want->top_p &&
                   s.min_p == want->min_p && s.repetition_penalty == want->repetition_penalty, want->file);
        CHECK(s.preset == 0 && s.order[0] == 0 && s.seed == 0 && s.n_stops == 0 && s.max_tokens == 0);
        CHECK(accepts(&s) == FOLOLLM_OK);
        for (size_t i = 0; i + 1 < FL_COUNT(want->eos) && want->eos[i] >= 0; i++) {
            CHECK_TEXT(i < g->n_eos && g->eos[i] == want->eos[i], want->file);
            CHECK_TEXT(want->eos[i + 1] >= 0 || g->n_eos == i + 1, want->file);
        }
        CHECK(info.eos == want->eos[0]);
    }
    folollm_free(f);
    CHECK(host_is_clean(&settings_host));
}

static const settings good_settings[] = {
    {NULL, FOLOLLM_OK, 0, 0, 0, 0, 0, {7, 1021, -1}},
    {"{}", FOLOLLM_OK, 0, 0, 0, 0, 1, {7, 1021, -1}},
    {"{\"do_sample\": false, \"temperature\": 0.7, \"top_k\": 9}", FOLOLLM_OK, 0, 0, 0, 0, 1, {7, 1021, -1}},
    {"{\"do_sample\": null, \"top_p\": 0.5}", FOLOLLM_OK, 0, 0, 0, 0, 1, {7, 1021, -1}},
    {"{\"do_sample\": false, \"repetition_penalty\": 1.5}", FOLOLLM_OK, 0, 0, 0, 0, 1.5f, {7, 1021, -1}},
    {"{\"do_sample\": true}", FOLOLLM_OK, 1, 50, 1, 0, 1, {7, 1021, -1}},
    {"{\"do_sample\": true, \"temperature\": 0.25, \"top_k\": 0, \"top_p\": 0.5, \"min_p\": 0.125, "
     "\"repetition_penalty\": 1.25, \"eos_token_id\": 3}",
     FOLOLLM_OK, 0.25f, 0, 0.5f, 0.125f, 1.25f, {3, 7, 1021, -1}},
    {"{\"do_sample\": true, \"top_k\": null, \"min_p\": null, \"temperature\": null}",
     FOLOLLM_OK, 1, 50, 1, 0, 1, {7, 1021, -1}},
    {"{\"do_sample\": true, \"temperature\": 0}", FOLOLLM_OK, 0, 50, 1, 0, 1, {7, 1021, -1}},
    {"{\"eos_token_id\": null}", FOLOLLM_OK, 0, 0, 0, 0, 1, {7, 1021, -1}},
    {"{\"eos_token_id\": []}", FOLOLLM_OK, 0, 0, 0, 0, 1, {7, 1021, -1}},
    {"{\"eos_token_id\": 0}", FOLOLLM_OK, 0, 0, 0, 0, 1, {0, 7, 1021, -1}},
    {"{\"eos_token_id\": [1021, 3, 3, 9]}", FOLOLLM_OK, 0, 0, 0, 0, 1, {1021, 3, 9, 7, -1}},
};

static const char *const bad_settings[] = {
    "", "{", "{}x", "\xFF", "nonsense", "{\"do_sample\": 1}", "{\"do_sample\": \"true\"}",
    "{\"eos_token_id\": \"a\"}", "{\"eos_token_id\": -1}", "{\"eos_token_id\": 1.5}", "{\"eos_token_id\": true}",
    "{\"eos_token_id\": {}}", "{\"eos_token_id\": [1, \"a\"]}", "{\"eos_token_id\": [[1]]}",
    "{\"eos_token_id\": [1, null]}", "{\"eos_token_id\": 99999999999}",
    "{\"repetition_penalty\": 0}", "{\"repetition_penalty\": -1}", "{\"repetition_penalty\": \"1\"}",
    "{\"do_sample\": true, \"temperature\": -1}", "{\"do_sample\": true, \"temperature\": \"hot\"}",
    "{\"do_sample\": true, \"temperature\": 1e999}", "{\"do_sample\": true, \"temperature\": NaN}",
    "{\"do_sample\": true, \"top_p\": 2}", "{\"do_sample\": true, \"min_p\": -0.5}",
    "{\"do_sample\": true, \"top_k\": -5}", "{\"do_sample\": true, \"top_k\": 1.5}",
    "{\"do_sample\": true, \"top_k\": []}", "[]", "3", "null",
};

/* do_sample decides between greedy and the file's numbers, missing ones as in transformers; EOS ids add up. */
static void test_checkpoint_settings(void) {
    folollm_sampling s;
    folollm_default_sampling(engine, &s);
    CHECK(s.temperature == 0.8f && s.top_k == 50 && s.top_p == 0.95f && s.min_p == 0 && s.repetition_penalty == 1);
    host_init(&settings_host, true);
    CHECK(host_put_directory(&settings_host, MODEL));
    host_put_text(&settings_host, "config.json", "{\"eos_token_id\": [7]}");
    for (size_t i = 0; i < FL_COUNT(good_settings); i++) {
        check_settings(&good_settings[i]);
    }
    for (size_t i = 0; i < FL_COUNT(bad_settings); i++) {
        settings bad = {.file = bad_settings[i], .status = FOLOLLM_E_FORMAT};
        check_settings(&bad);
    }
    host_free(&settings_host);
}

int main(void) {
    open_sampler();
    test_vectors();
    test_examples();
    test_one_token();
    test_extremes();
    test_penalised_tokens();
    test_counts();
    test_bans();
    test_philox();
    test_distribution();
    test_draw_depends_on();
    test_numbers_refused();
    test_options_refused();
    test_lists_refused();
    open_model();
    test_concatenation();
    test_stop_ids();
    test_min_tokens();
    test_length();
    test_banned_vocabulary();
    test_holes();
    test_draws_in_batches();
    test_stop_strings();
    test_stop_streams();
    test_held_text();
    test_fork_and_truncate();
    test_fork_with_other_stops();
    test_new_output();
    test_first_space();
    test_checkpoint_settings();
    folollm_free(engine);
    return check_finish();
}
