/* Sampling: which tokens survive, and how likely they are, against transformers, llama.cpp and vLLM's rules
 * (vectors/sampling.txt, made by oracle/make_sampling.py); penalties, bans, the generator, and what is refused. How
 * outputs end and what text they give: test_output.c.
 *
 *     cc -O1 -I. -Isrc tests/test_sample.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "random.h"

#include <math.h>

#define MODEL "examples/models/tiny-shakespeare"
#define SMALL "tests/vectors/models/llama-gqa-fp32" /* 48 tokens, no tokenizer */
#define VOCAB_MAX 1024
#define HISTORY_MAX 256

static int near(double a, double b) {
    return fabs(a - b) <= 1e-5 * (fabs(b) > 1 ? fabs(b) : 1);
}

/* ---- A sampler without a model ------------------------------------------------------------------- */

static fl_sampler sampler;
static folollm_token store[HISTORY_MAX + FL_PAGE_TOKENS];
static uint32_t pages[HISTORY_MAX / FL_PAGE_TOKENS + 1];
static fl_history history;
static folollm_logprob chosen, top[VOCAB_MAX];
static double processed[VOCAB_MAX]; /* of the last choice, by id; -FLT_MAX: removed */

static void open_sampler(void) {
    static float logits[VOCAB_MAX];
    static uint32_t counts[VOCAB_MAX], weights[VOCAB_MAX];
    static folollm_token ids[VOCAB_MAX];
    static uint64_t bins[FL_BINS];
    sampler.kernels = fl_kernels_of(FOLOLLM_ISA_BEST);
    sampler.logits = logits;
    sampler.counts = counts;
    sampler.ids = ids;
    sampler.weights = weights;
    sampler.bins = bins;
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
    if (!fl_sampler_choose(&sampler, options, logits, &history, &chosen, top, vocab)) {
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
        CHECK(fl_sampler_choose(&sampler, &options, logits, &history, &chosen, some, n_top));
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
    CHECK(inside_uniform(seed, position) * 9007199254740992.0 == strtod(next_word(), NULL));
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

/* ---- Kernels --------------------------------------------------------------------------------------- */

/* Every table weighs, scales and finds alike, and each as plain C does; nothing is written behind the end. */
static void check_kernels(const fl_kernels *k, const fl_kernels *first, const float *x, size_t n) {
    static uint32_t weights[VOCAB_MAX + 1], others[VOCAB_MAX + 1], which[VOCAB_MAX];
    static float scaled[VOCAB_MAX + 1], other[VOCAB_MAX + 1];
    float largest, limit = x[random_below((uint32_t)n)];
    double expected = 0;
    uint64_t sum = 0;
    CHECK(k->largest(x, n, &largest));
    weights[n] = others[n] = 12345;
    scaled[n] = other[n] = 12345;
    uint64_t total = k->weigh(x, n, largest, weights);
    CHECK(total == k->weigh(x, n, largest, NULL) && total == first->weigh(x, n, largest, others));
    CHECK(memcmp(weights, others, (n + 1) * sizeof *weights) == 0);
    k->temper(x, n, 0.25f, 0.7f, scaled);
    first->temper(x, n, 0.25f, 0.7f, other);
    CHECK(memcmp(scaled, other, (n + 1) * sizeof *scaled) == 0);
    size_t n_found = limit > -FLT_MAX ? k->at_least(x, n, limit, which) : 0, found = 0;
    for (size_t i = 0; i < n; i++) {
        sum += weights[i];
        expected += exp((double)x[i] - (double)largest);
        CHECK(x[i] <= largest && (x[i] != largest || weights[i] == (uint32_t)FL_WEIGHT_ONE));
        CHECK(x[i] > -FLT_MAX ? scaled[i] > -FLT_MAX : scaled[i] == -FLT_MAX && weights[i] == 0);
        if (n_found > 0 && x[i] >= limit) {
            CHECK(found < n_found && which[found] == i);
            found++;
        }
    }
    CHECK(sum == total && found == n_found);
    CHECK(fabs((double)total / (double)FL_WEIGHT_ONE - expected) < 1e-6 * expected);
}

static void test_kernels(void) {
    const fl_kernels *tables[INSIDE_TABLES];
    size_t n_tables = inside_tables(tables);
    float x[VOCAB_MAX];
    for (size_t round = 0; round < 400; round++) {
        size_t n = round < 40 ? round + 1 : 1 + random_below(VOCAB_MAX - 1);
        for (size_t i = 0; i < n; i++) {
            x[i] = random_float() * (round % 3 == 0 ? 1.0f : round % 3 == 1 ? 12.0f : 200.0f);
            x[i] = i > 0 && random_below(9) == 0 ? -FLT_MAX : i > 0 && random_below(9) == 0 ? x[i - 1] : x[i];
        }
        for (size_t t = 0; t < n_tables; t++) {
            check_kernels(tables[t], tables[0], x, n);
        }
        static const float odd[] = {NAN, INFINITY, -INFINITY};
        x[random_below((uint32_t)n)] = odd[round % 3];
        for (size_t t = 0; t < n_tables; t++) {
            float largest;
            CHECK(!tables[t]->largest(x, n, &largest));
        }
    }
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
        double uniform = inside_uniform(seed, position);
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
        fl_sampler_choose(&sampler, &options, logits, &history, &drawn, NULL, 0);
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

int main(void) {
    open_sampler();
    test_vectors();
    test_examples();
    test_one_token();
    test_extremes();
    test_penalised_tokens();
    test_counts();
    test_bans();
    test_kernels();
    test_philox();
    test_distribution();
    test_draw_depends_on();
    test_numbers_refused();
    test_options_refused();
    test_lists_refused();
    return check_finish();
}
