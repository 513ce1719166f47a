/* bench_batch.c - what continuous batching gives, and what it costs those that run.
 *
 *     cc -O2 -I../.. -o bench_batch bench_batch.c ../../folollm.c -lutf8proc -lm -lpthread
 *     ./bench_batch -m MODEL [OPTIONS] EXPERIMENT...      one JSON object per line and measurement
 *
 *   throughput  requests of random lengths, in four modes. continuous: all are submitted at once. static: batches of
 *               as many as run, the next when the longest answer of the last is over; nothing is computed for those
 *               that ended before, so this is the kindest form of it. padded: the same as a tensor of fixed shape has
 *               it, every prompt and answer of a batch as long as its longest; only tokens that were asked for count.
 *               single: one after the other. The time to the first token counts from the start of all, as if all had
 *               come then.
 *   requests    nothing is run: the requests of throughput, one per line, for another program to do the same.
 *   arrival     the time between two tokens of answers that are being written, before and while a long prompt comes,
 *               for several chunks; a chunk above the prompt takes it in one step.
 *   prefix      the time to the first token of a prompt whose beginning nobody asked before, and somebody did.
 *   overrun     how much longer than its budget a call of folollm_step takes, with answers being written and a long
 *               prompt on its way; one budget after the other behind the same prompt. "undisturbed" leaves out calls in
 *               which the calling thread was off its processor for more than 0.1 ms: what the machine did, and not
 *               folollm.
 *
 * Token ids are random from a fixed seed, answers greedy and never ended by an EOS. Options and their defaults stand in
 * the table below. */
#define _POSIX_C_SOURCE 200809L
#include "folollm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct list {
    uint32_t at[16], n;
} list;

static const char *model;
static const char *const kv_names[] = {"f16", "f32", "bf16", "q8", "q4", NULL};
static const char *const floats_names[] = {"exact", "split", "bf16", NULL};
static uint32_t n_threads, device, kv, floats, chunk;
static uint32_t n_requests = 64, length_min = 16, length_max = 512, prompt_length, answer_length, n_running = 16;
static uint32_t arrival_running = 8, arrival_prompt = 4096, arrival_steps = 64;
static uint32_t prefix_length = 2048, prefix_repeats = 5;
static uint32_t overrun_running = 4, overrun_prompt = 32768, overrun_depth, overrun_calls = 2000;
static list chunks = {{0, 8192, 32}, 3}, budgets = {{1000, 2000, 4000, 8000}, 4};

typedef struct option {
    const char *name, *help;
    uint32_t *count; /* or else: */
    list *counts;
} option;

static const option options[] = {
    {"-t", "threads; 0: all cores", &n_threads, NULL},
    {"--device", "1 + the number of a CUDA device; 0: the CPU", &device, NULL},
    {"--chunk", "rows of a forward pass in throughput, prefix and overrun; 0: folollm's default", &chunk, NULL},
    {"--requests", "throughput: how many", &n_requests, NULL},
    {"--min-length", "throughput: shortest prompt and answer", &length_min, NULL},
    {"--max-length", "throughput: longest prompt and answer", &length_max, NULL},
    {"--prompt-length", "throughput: all prompts; 0: random", &prompt_length, NULL},
    {"--answer-length", "throughput: all answers; 0: random", &answer_length, NULL},
    {"--running", "throughput: most answers written at once", &n_running, NULL},
    {"--arrival-running", "arrival: answers being written", &arrival_running, NULL},
    {"--arrival-prompt", "arrival: tokens of the long prompt", &arrival_prompt, NULL},
    {"--arrival-steps", "arrival: steps before it comes", &arrival_steps, NULL},
    {"--chunks", "arrival: rows of a forward pass; 0: folollm's default", NULL, &chunks},
    {"--prefix", "prefix: tokens of the beginning", &prefix_length, NULL},
    {"--prefix-repeats", "prefix: how often, each time with another beginning", &prefix_repeats, NULL},
    {"--overrun-running", "overrun: answers being written", &overrun_running, NULL},
    {"--overrun-prompt", "overrun: tokens of the long prompt", &overrun_prompt, NULL},
    {"--overrun-depth", "overrun: tokens of it that are computed before the measurement", &overrun_depth, NULL},
    {"--overrun-calls", "overrun: calls per budget, or until the prompt is computed", &overrun_calls, NULL},
    {"--budgets", "overrun: microseconds", NULL, &budgets},
};

static folollm *base; /* holds the weights; each measurement opens an engine of its own beside it */
static folollm_info info;
static folollm_error error;

static void check(folollm_status status)
{
    if (status != FOLOLLM_OK) {
        fprintf(stderr, "bench_batch: %s\n", error.text);
        exit(1);
    }
}

static void *take(size_t n, size_t bytes)
{
    void *out = calloc(n + 1, bytes);
    if (out == NULL) {
        fprintf(stderr, "bench_batch: out of memory\n");
        exit(1);
    }
    return out;
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t now_us(void *user)
{
    (void)user;
    return now_ns(CLOCK_MONOTONIC) / 1000;
}

/* SplitMix64 (Steele, Lea, Flood 2014): the same numbers in every run. */
static uint64_t random_state;

static uint32_t draw(uint32_t low, uint32_t high)
{
    uint64_t x = random_state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return low + (uint32_t)((x ^ (x >> 31)) % ((uint64_t)high - low + 1));
}

static folollm_token *draw_ids(uint32_t n)
{
    folollm_token *ids = take(n, sizeof *ids);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = (folollm_token)draw(0, info.n_tokens - 1);
    }
    return ids;
}

/* ---- Samples ------------------------------------------------------------------------------------- */

typedef struct samples {
    double *at; /* milliseconds */
    size_t n, room;
} samples;

static void add(samples *s, double value)
{
    if (s->n == s->room) {
        s->room = 2 * s->room + 256;
        s->at = realloc(s->at, s->room * sizeof *s->at);
        if (s->at == NULL) {
            fprintf(stderr, "bench_batch: out of memory\n");
            exit(1);
        }
    }
    s->at[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The smallest of the sorted samples that at least so many thousandths of them do not exceed. */
static double percentile(const samples *s, size_t thousandths)
{
    return s->n > 0 ? s->at[(s->n * thousandths + 999) / 1000 - 1] : 0;
}

/* Print the distribution as one member of an object, and forget the samples. */
static void print_samples(const char *name, samples *s)
{
    qsort(s->at, s->n, sizeof *s->at, compare);
    printf(", \"%s\": {\"n\": %zu, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f}", name,
           s->n, percentile(s, 500), percentile(s, 900), percentile(s, 990), percentile(s, 999), percentile(s, 1000));
    free(s->at);
    memset(s, 0, sizeof *s);
}

static void print_head(const char *experiment, const folollm *engine)
{
    folollm_info i;
    folollm_get_info(engine, &i);
    printf("{\"experiment\": \"%s\", \"threads\": %u, \"weights\": \"%s\", \"kv\": \"%s\", \"kernels\": \"%s\", "
           "\"chunk\": %u", experiment, (unsigned)i.n_threads, i.weights, kv_names[kv], i.kernels, (unsigned)i.chunk);
}

static void print_tail(void)
{
    puts("}");
    fflush(stdout);
}

/* ---- Requests ------------------------------------------------------------------------------------ */

typedef struct request {
    folollm_token *ids;
    uint32_t n_ids, n_answer; /* n_answer 0: until the context is full */
    folollm_seq seq;
    uint32_t n_written;
    uint64_t first_us, last_us; /* when it had its first token, and its last so far */
    int is_over;
    folollm_metrics metrics;
} request;

static folollm *open_engine(uint32_t rows, uint32_t context, uint64_t pool, uint32_t running, uint32_t waiting)
{
    folollm_options o = {.context = context, .pool_tokens = (uint32_t)pool, .chunk = rows, .max_seqs = 1};
    folollm *engine;
    o.n_threads = n_threads;
    o.device = device;
    o.device_floats = (folollm_floats)floats;
    o.kv = (folollm_kv_type)kv;
    o.max_running = running;
    o.max_requests = waiting;
    check(folollm_share(base, &o, &engine, &error));
    return engine;
}

static void submit(folollm *engine, request *r, uint64_t tag)
{
    folollm_sampling sampling = {.max_tokens = r->n_answer, .ignore_eos = 1};
    folollm_submission s = {.prompt = r->ids, .n_prompt = r->n_ids, .sampling = &sampling, .tag = tag};
    r->n_written = 0;
    r->is_over = 0;
    r->first_us = r->last_us = 0;
    check(folollm_submit(engine, &s, &r->seq, &error));
}

/* One call of folollm_step. The times between two tokens of a request go to `between`, if that is there. Returns how
 * many requests ended. */
static uint32_t step(folollm *engine, uint32_t microseconds, request *requests, samples *between)
{
    folollm_event events[64];
    folollm_budget budget = {.microseconds = microseconds};
    size_t n = sizeof events / sizeof events[0];
    uint32_t n_over = 0;
    check(folollm_step(engine, microseconds > 0 ? &budget : NULL, events, &n, &error));
    uint64_t now = now_us(NULL);
    for (size_t i = 0; i < n; i++) {
        request *r = &requests[events[i].tag];
        if (events[i].status != FOLOLLM_OK && events[i].status != FOLOLLM_E_CANCELLED) {
            fprintf(stderr, "bench_batch: a request ended: %s\n", folollm_status_text(events[i].status));
            exit(1);
        }
        if (between != NULL && r->last_us != 0 && events[i].token >= 0) {
            add(between, (double)(now - r->last_us) * 1e-3);
        }
        r->first_us = r->first_us != 0 ? r->first_us : now;
        r->last_us = now;
        r->n_written += events[i].token >= 0;
        if (events[i].finish != FOLOLLM_FINISH_NONE) {
            r->is_over = 1;
            r->metrics = events[i].metrics;
            n_over++;
        }
    }
    return n_over;
}

static void free_requests(request *requests, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        free(requests[i].ids);
    }
    free(requests);
}

/* Answers that are being written: submit n prompts of 64 tokens, and step until all have their first token. */
static request *begin_running(folollm *engine, uint32_t n, uint32_t n_answer, uint32_t n_more)
{
    request *requests = take(n + n_more, sizeof *requests);
    for (uint32_t i = 0, ready = 0; i < n || ready < n;) {
        if (i < n) {
            requests[i].ids = draw_ids(64);
            requests[i].n_ids = 64;
            requests[i].n_answer = n_answer;
            submit(engine, &requests[i], i);
            i++;
            continue;
        }
        step(engine, 0, requests, NULL);
        for (ready = 0; ready < n && requests[ready].n_written > 0;) {
            ready++;
        }
    }
    return requests;
}

/* ---- The experiments ----------------------------------------------------------------------------- */

/* Submit requests [first, end) and step until all are over. */
static void run_group(folollm *engine, request *requests, uint32_t first, uint32_t end, samples *between)
{
    for (uint32_t i = first; i < end; i++) {
        submit(engine, &requests[i], i);
    }
    for (uint32_t n_over = 0; n_over < end - first;) {
        n_over += step(engine, 0, requests, between);
    }
}

static request *draw_requests(void)
{
    request *requests = take(n_requests, sizeof *requests);
    random_state = 1;
    for (uint32_t i = 0; i < n_requests; i++) {
        requests[i].n_ids = prompt_length > 0 ? prompt_length : draw(length_min, length_max);
        requests[i].n_answer = answer_length > 0 ? answer_length : draw(length_min, length_max);
        requests[i].ids = draw_ids(requests[i].n_ids);
    }
    return requests;
}

static void print_requests(void)
{
    request *requests = draw_requests();
    for (uint32_t i = 0; i < n_requests; i++) {
        printf("{\"n_answer\": %u, \"ids\": [", (unsigned)requests[i].n_answer);
        for (uint32_t k = 0; k < requests[i].n_ids; k++) {
            printf("%s%d", k > 0 ? ", " : "", (int)requests[i].ids[k]);
        }
        puts("]}");
    }
    free_requests(requests, n_requests);
}

/* Make all of these as long as the longest of them. */
static void pad(request *requests, uint32_t n)
{
    uint32_t n_ids = 0, n_answer = 0;
    for (uint32_t i = 0; i < n; i++) {
        n_ids = requests[i].n_ids > n_ids ? requests[i].n_ids : n_ids;
        n_answer = requests[i].n_answer > n_answer ? requests[i].n_answer : n_answer;
    }
    for (uint32_t i = 0; i < n; i++) {
        free(requests[i].ids);
        requests[i].ids = draw_ids(n_ids);
        requests[i].n_ids = n_ids;
        requests[i].n_answer = n_answer;
    }
}

static void run_throughput(const char *mode)
{
    samples between = {0}, first = {0};
    uint64_t n_prompt = 0, n_answer = 0;
    uint32_t group = strcmp(mode, "single") == 0 ? 1 : strcmp(mode, "continuous") == 0 ? n_requests : n_running;
    request *requests = draw_requests();
    for (uint32_t i = 0; i < n_requests; i++) {
        n_prompt += requests[i].n_ids;
        n_answer += requests[i].n_answer;
    }
    for (uint32_t i = 0; i < n_requests && strcmp(mode, "padded") == 0; i += group) {
        pad(requests + i, n_requests - i < group ? n_requests - i : group);
    }
    uint32_t longest_prompt = prompt_length > 0 ? prompt_length : length_max;
    uint32_t context = longest_prompt + (answer_length > 0 ? answer_length : length_max);
    folollm *engine = open_engine(chunk, context, (uint64_t)n_running * (context + 16), n_running, n_requests);
    uint64_t begin = now_us(NULL);
    for (uint32_t i = 0; i < n_requests; i += group) {
        run_group(engine, requests, i, n_requests - i < group ? n_requests : i + group, &between);
    }
    double seconds = (double)(now_us(NULL) - begin) * 1e-6;
    for (uint32_t i = 0; i < n_requests; i++) {
        add(&first, (double)(requests[i].first_us - begin) * 1e-3);
    }
    folollm_stats stats;
    folollm_get_stats(engine, &stats);
    print_head("throughput", engine);
    printf(", \"mode\": \"%s\", \"requests\": %u, \"running\": %u", mode, (unsigned)n_requests, (unsigned)n_running);
    printf(", \"prompt_tokens\": %llu, \"generated_tokens\": %llu", (unsigned long long)n_prompt,
           (unsigned long long)n_answer);
    printf(", \"seconds\": %.3f, \"tokens_per_s\": %.3f, \"all_tokens_per_s\": %.3f, \"preemptions\": %llu", seconds,
           (double)n_answer / seconds, (double)(n_prompt + n_answer) / seconds, (unsigned long long)stats.preemptions);
    print_samples("between_tokens_ms", &between);
    print_samples("first_token_ms", &first);
    print_tail();
    folollm_free(engine);
    free_requests(requests, n_requests);
}

static void run_arrival(uint32_t rows)
{
    samples before = {0}, during = {0};
    random_state = 2;
    uint32_t n = arrival_running, own = rows > 0 ? rows : 128;
    uint32_t n_steps = own > n ? arrival_prompt / (own - n) + 8 : arrival_prompt + 8;
    uint32_t answer = arrival_steps + n_steps;
    uint32_t context = (arrival_prompt > answer + 64 ? arrival_prompt : answer + 64) + n + 16;
    uint64_t pool = (uint64_t)n * (64 + answer + 16) + arrival_prompt + 64;
    rows = rows > context ? context : rows;
    folollm *engine = open_engine(rows, context, pool, n + 1, n + 1);
    request *requests = begin_running(engine, n, answer, 1), *late = &requests[n];
    for (uint32_t i = 0; i < arrival_steps; i++) {
        step(engine, 0, requests, &before);
    }
    late->ids = draw_ids(arrival_prompt);
    late->n_ids = arrival_prompt;
    late->n_answer = 1;
    submit(engine, late, n);
    while (!late->is_over) {
        step(engine, 0, requests, &during);
    }
    print_head("arrival", engine);
    printf(", \"running\": %u, \"prompt\": %u, \"prompt_first_token_ms\": %.3f", (unsigned)n, (unsigned)arrival_prompt,
           (double)late->metrics.first_token_us * 1e-3);
    print_samples("before_ms", &before);
    print_samples("during_ms", &during);
    print_tail();
    folollm_free(engine);
    free_requests(requests, n + 1);
}

/* The beginning, and 16 tokens that nobody else has; one token is answered. */
static void ask_prefix(folollm *engine, const folollm_token *prefix, samples *first, uint64_t *cached)
{
    request r = {.n_ids = prefix_length + 16, .n_answer = 1};
    r.ids = draw_ids(r.n_ids);
    memcpy(r.ids, prefix, prefix_length * sizeof *prefix);
    run_group(engine, &r, 0, 1, NULL);
    add(first, (double)r.metrics.first_token_us * 1e-3);
    *cached += r.metrics.cached_tokens;
    free(r.ids);
}

static void run_prefix(void)
{
    samples cold = {0}, warm = {0};
    uint64_t cached_cold = 0, cached_warm = 0;
    random_state = 3;
    folollm *engine = open_engine(chunk, prefix_length + 32, 2 * ((uint64_t)prefix_length + 64), 1, 1);
    for (uint32_t i = 0; i < prefix_repeats; i++) {
        folollm_token *prefix = draw_ids(prefix_length);
        ask_prefix(engine, prefix, &cold, &cached_cold);
        ask_prefix(engine, prefix, &warm, &cached_warm);
        free(prefix);
    }
    print_head("prefix", engine);
    printf(", \"prefix\": %u, \"cached_tokens_cold\": %llu, \"cached_tokens_warm\": %llu", (unsigned)prefix_length,
           (unsigned long long)(cached_cold / prefix_repeats), (unsigned long long)(cached_warm / prefix_repeats));
    print_samples("cold_ms", &cold);
    print_samples("warm_ms", &warm);
    print_tail();
    folollm_free(engine);
}

/* Calls of one budget, until there have been enough or `late` is over. */
static void measure_overrun(folollm *engine, request *requests, const request *late, uint32_t budget)
{
    samples all = {0}, undisturbed = {0}, took = {0};
    folollm_stats before, after;
    uint32_t n_above = 0;
    folollm_get_stats(engine, &before);
    for (uint32_t i = 0; i < overrun_calls && !late->is_over; i++) {
        uint64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID), wall = now_ns(CLOCK_MONOTONIC);
        step(engine, budget, requests, NULL);
        double ms = (double)(now_ns(CLOCK_MONOTONIC) - wall) * 1e-6;
        double off = ms - (double)(now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu) * 1e-6;
        double over = ms - budget * 1e-3;
        n_above += over > 0;
        add(&took, ms);
        add(&all, over);
        if (off <= 0.1) {
            add(&undisturbed, over);
        }
    }
    folollm_get_stats(engine, &after);
    print_head("overrun", engine);
    printf(", \"budget_ms\": %.3f, \"running\": %u, \"prompt\": %u, \"depth\": %u, \"prompt_tokens_done\": %llu, "
           "\"calls_above\": %u", budget * 1e-3, (unsigned)overrun_running, (unsigned)overrun_prompt,
           (unsigned)overrun_depth, (unsigned long long)(after.prompt_tokens - before.prompt_tokens), (unsigned)n_above);
    print_samples("call_ms", &took);
    print_samples("overrun_ms", &all);
    print_samples("undisturbed_overrun_ms", &undisturbed);
    print_tail();
}

static void run_overrun(void)
{
    folollm_stats stats;
    random_state = 4;
    uint32_t n = overrun_running;
    uint32_t answer = budgets.n * overrun_calls + overrun_depth + 64; /* each step of the approach gives a token, too */
    uint32_t context = overrun_prompt + 16 > answer + 64 ? overrun_prompt + 16 : answer + 64;
    context = context < info.model_context ? context : info.model_context;
    answer = answer + 64 < context ? answer : context - 64;
    uint64_t pool = (uint64_t)n * (64 + answer + 16) + overrun_prompt + 64;
    folollm *engine = open_engine(chunk, context, pool, n + 1, n + 1);
    request *requests = begin_running(engine, n, answer, 1), *late = &requests[n];
    folollm_get_stats(engine, &stats);
    uint64_t rows_before = stats.prompt_tokens;
    late->ids = draw_ids(overrun_prompt);
    late->n_ids = overrun_prompt;
    late->n_answer = 1;
    submit(engine, late, n);
    while (!late->is_over && stats.prompt_tokens - rows_before < overrun_depth) {
        step(engine, 0, requests, NULL);
        folollm_get_stats(engine, &stats);
    }
    for (uint32_t i = 0; i < budgets.n; i++) {
        measure_overrun(engine, requests, late, budgets.at[i]);
    }
    folollm_free(engine);
    free_requests(requests, n + 1);
}

/* ---- main ---------------------------------------------------------------------------------------- */

static void run_experiment(const char *name, const char *mode)
{
    static const char *const modes[] = {"continuous", "static", "padded", "single"};
    if (strcmp(name, "throughput") == 0) {
        for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
            if (mode == NULL || strcmp(mode, modes[i]) == 0) {
                run_throughput(modes[i]);
            }
        }
    } else if (strcmp(name, "arrival") == 0) {
        for (uint32_t i = 0; i < chunks.n; i++) {
            run_arrival(chunks.at[i]);
        }
    } else if (strcmp(name, "prefix") == 0) {
        run_prefix();
    } else if (strcmp(name, "requests") == 0) {
        print_requests();
    } else {
        run_overrun();
    }
}

static void print_usage(void)
{
    fputs("usage: bench_batch -m MODEL [OPTIONS] [--mode continuous|static|padded|single] "
          "[--kv f16|f32|bf16|q8|q4] [--floats exact|split|bf16] throughput|requests|arrival|prefix|overrun...\n", stderr);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        const option *o = &options[i];
        fprintf(stderr, "  %-18s %s (", o->name, o->help);
        for (uint32_t k = 0; o->counts != NULL && k < o->counts->n; k++) {
            fprintf(stderr, "%s%u", k > 0 ? "," : "", (unsigned)o->counts->at[k]);
        }
        if (o->count != NULL) {
            fprintf(stderr, "%u", (unsigned)*o->count);
        }
        fputs(")\n", stderr);
    }
    exit(2);
}

static void set_option(const option *o, const char *value)
{
    list values = {{0}, 0};
    char *end = (char *)value;
    do {
        values.at[values.n++] = (uint32_t)strtoul(value, &end, 10);
        if (end == value || (*end != '\0' && *end != ',')) {
            print_usage();
        }
        value = end + 1;
    } while (*end == ',' && values.n < 16);
    if (o->counts != NULL) {
        *o->counts = values;
    } else {
        *o->count = values.at[0];
    }
}

static const option *find_option(const char *name)
{
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        if (strcmp(name, options[i].name) == 0) {
            return &options[i];
        }
    }
    return NULL;
}

static uint32_t find_name(const char *const *names, const char *name)
{
    for (uint32_t i = 0; names[i] != NULL; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    print_usage();
    return 0;
}

/* Load, and touch all weights once: a mapped file is read at first use, which is no part of any measurement. */
static void open_base(void)
{
    static folollm_host host;
    folollm_options o = {.pool_tokens = 64, .max_seqs = 1, .max_requests = 1, .max_running = 1};
    folollm_seq seq;
    host.clock = now_us;
    o.host = &host;
    o.n_threads = n_threads;
    o.device = device;
    o.device_floats = (folollm_floats)floats;
    o.kv = (folollm_kv_type)kv;
    check(folollm_load(model, &o, &base, &error));
    folollm_get_info(base, &info);
    folollm_token *ids = draw_ids(32);
    check(folollm_seq_open(base, NULL, &seq, &error));
    check(folollm_prefill(base, seq, ids, 32, NULL, &error));
    free(ids);
}

int main(int argc, char **argv)
{
    static const char experiments[] = " throughput requests arrival prefix overrun ";
    const char *mode = NULL, *names[16];
    size_t n_names = 0;
    for (int i = 1; i < argc; i++) {
        const option *o = find_option(argv[i]);
        char word[32];
        if (argv[i][0] == '-' && i + 1 == argc) {
            print_usage();
        } else if (o != NULL) {
            set_option(o, argv[++i]);
        } else if (strcmp(argv[i], "-m") == 0) {
            model = argv[++i];
        } else if (strcmp(argv[i], "--mode") == 0) {
            mode = argv[++i];
        } else if (strcmp(argv[i], "--kv") == 0) {
            kv = find_name(kv_names, argv[++i]);
        } else if (strcmp(argv[i], "--floats") == 0) {
            floats = find_name(floats_names, argv[++i]);
        } else if ((size_t)snprintf(word, sizeof word, " %s ", argv[i]) < sizeof word && n_names < 16 &&
                   strstr(experiments, word) != NULL) {
            names[n_names++] = argv[i];
        } else {
            print_usage();
        }
    }
    if (model == NULL || n_names == 0 || n_requests == 0 || length_min == 0 || length_min > length_max ||
        n_running == 0 || prefix_repeats == 0) {
        print_usage();
    }
    open_base();
    for (size_t i = 0; i < n_names; i++) {
        run_experiment(names[i], mode);
    }
    folollm_free(base);
    return 0;
}
