/* Outputs: draws in company, stop ids, limits, and the text that comes out with stop strings, through forks,
 * truncation and new prompts, against a model of it that searches the whole text; the checkpoint's own settings.
 *
 *     cc -O1 -I. -Isrc tests/test_output.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "random.h"

#include <math.h>

#define MODEL "examples/models/tiny-shakespeare"
#define SMALL "tests/vectors/models/llama-gqa-fp32" /* 48 tokens, no tokenizer */

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
        fl_sampling checked;
        CHECK(fl_sampling_init(&checked, &s, g->eos, g->n_eos, 1u << 20, NULL) == FOLOLLM_OK);
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
