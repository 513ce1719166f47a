/* Soak: the shipped model under requests that come at random for as long as is asked, with whatever a host does to an
 * engine in a day: cancels, priorities, several answers to a prompt, prompts that begin alike, steps bounded by a real
 * clock, a pool too small for all so that answers are preempted, a sequence of its own that is saved, closed and
 * restored. At the end nothing may have grown, and no text may have gone wrong: some answers, chosen when they are
 * submitted, are written again, alone on another engine.
 *
 *     cc -O2 -I. -Isrc tests/soak.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out [minutes [seed]]
 *     make -C tests soak MINUTES=20
 */
#include "inside.h"

#include "check.h"
#include "invariants.h"
#include "random.h"

#include <dirent.h>
#include <math.h>
#include <time.h>
#include <unistd.h>

#define MODEL "examples/models/tiny-shakespeare"
#define TOKENS_MAX 448 /* prompt and output of a request: fewer than the pool has beside the own sequence */
#define OWN_TOKENS 96
#define REQUESTS 48
#define POOL 640
#define ANSWERS_MAX 4
#define EVENTS 8
#define RSS_SLACK (1u << 20)

static double random_unit(void) { /* (0, 1] */
    return (random_below(1u << 30) + 1) / (double)(1u << 30);
}

/* ---- What is measured -- */

static uint64_t live_bytes, n_allocations;

static void *counting_realloc(void *user, void *p, size_t old_size, size_t new_size) {
    (void)user;
    n_allocations++;
    live_bytes += new_size - old_size;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    return realloc(p, new_size);
}

static uint64_t now_us(void *user) {
    struct timespec t;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t resident_bytes(void) {
    unsigned long long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f != NULL) {
        if (fscanf(f, "%llu %llu", &all, &resident) != 2) {
            resident = 0;
        }
        fclose(f);
    }
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static unsigned open_files(void) {
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d != NULL && readdir(d) != NULL) {
        n++;
    }
    if (d != NULL) {
        closedir(d);
    }
    return n;
}

/* ---- Requests -- */

typedef struct answer {
    folollm_seq seq; /* 0: no answer here */
    uint64_t seed;
    uint32_t n_prompt, n_tokens, index;
    uint32_t cancel_after; /* tokens; UINT32_MAX: it is not cancelled */
    bool compared, wanted_over, deadline;
    folollm_sampling sampling;
    folollm_token tokens[TOKENS_MAX + 1];
} answer;

static answer answers[REQUESTS];
static folollm *engine, *judge;
static uint32_t vocab;
static uint64_t n_submitted, n_refused, n_over, n_cancelled, n_late, n_compared, n_wrong, n_tokens, n_own, n_restored;
static uint64_t n_steps, n_violations, longest_step_us;

static void violation(const char *what) {
    if (n_violations++ < 20) {
        printf("violation: %s\n", what);
        fflush(stdout);
    }
}

#define DEMAND(condition) ((condition) ? (void)0 : violation(#condition))

/* A prompt of one of eight beginnings and a random rest. */
static uint32_t make_prompt(folollm_token *out, uint32_t max) {
    uint32_t family = random_below(8), shared = family * 24, n = 1 + random_below(random_below(4) == 0 ? max : 60);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (folollm_token)(i < shared ? fl_mix(family * 1000 + i) % (vocab - 3) : random_below(vocab - 3));
    }
    return n;
}

static folollm_sampling make_sampling(uint32_t n_prompt) {
    uint32_t room = TOKENS_MAX - n_prompt, kind = random_below(4);
    folollm_sampling s = {.temperature = kind > 0 ? 0.8f : 0, .seed = random_below(UINT32_MAX), .ignore_eos = 1};
    s.top_k = kind == 1 ? 40 : 0;
    s.top_p = kind == 2 ? 0.95f : 0;
    s.repetition_penalty = kind == 3 ? 1.1f : 0;
    s.max_tokens = 1 + random_below(random_below(4) == 0 ? room : room < 50 ? room : 50);
    return s;
}

static answer *find(folollm_seq seq) {
    for (size_t i = 0; i < REQUESTS; i++) {
        if (answers[i].seq == seq) {
            return &answers[i];
        }
    }
    return NULL;
}

static void submit(void) {
    static folollm_token prompt[TOKENS_MAX];
    uint32_t n_prompt = make_prompt(prompt, TOKENS_MAX - 40);
    folollm_sampling sampling = make_sampling(n_prompt);
    folollm_submission s = {.prompt = prompt, .n_prompt = n_prompt, .sampling = &sampling};
    folollm_seq seqs[ANSWERS_MAX];
    folollm_error error;
    s.n_answers = random_below(6) == 0 ? 1 + random_below(ANSWERS_MAX) : 1;
    s.priority = random_below(5) == 0 ? -1 : random_below(3) == 0;
    s.flow = random_below(5);
    s.weight = 1 + s.flow;
    s.cache_space = random_below(3);
    s.no_prefix_cache = random_below(10) == 0;
    s.deadline = random_below(50) == 0 ? now_us(NULL) + 1 + random_below(2000000) : 0;
    folollm_status status = folollm_submit(engine, &s, seqs, &error);
    if (status == FOLOLLM_E_POOL) {
        n_refused++;
        return;
    }
    if (status != FOLOLLM_OK) {
        violation(error.text);
        return;
    }
    for (uint32_t i = 0; i < s.n_answers; i++) {
        answer *a = find(0);
        DEMAND(a != NULL);
        if (a == NULL) {
            return;
        }
        a->seq = seqs[i];
        a->seed = sampling.seed + i;
        a->index = i;
        a->n_prompt = a->n_tokens = n_prompt;
        a->sampling = sampling;
        a->sampling.seed = a->seed;
        a->compared = random_below(100) == 0;
        a->cancel_after = random_below(5) == 0 ? random_below(sampling.max_tokens + 1) : UINT32_MAX;
        a->wanted_over = false;
        a->deadline = s.deadline != 0;
        memcpy(a->tokens, prompt, n_prompt * sizeof *prompt);
        n_submitted++;
    }
}

/* The same, alone: prompt in one call, then token by token. */
static bool is_written_alone(const folollm_token *tokens, uint32_t n_prompt, uint32_t n,
                             const folollm_sampling *sampling) {
    folollm_seq seq;
    folollm_sampled sampled;
    bool same = folollm_seq_open(judge, sampling, &seq, NULL) == FOLOLLM_OK &&
                folollm_prefill(judge, seq, tokens, n_prompt, NULL, NULL) == FOLOLLM_OK;
    for (uint32_t i = n_prompt; same && i < n; i++) {
        same = folollm_sample(judge, seq, &sampled, NULL, 0, NULL) == FOLOLLM_OK && sampled.token == tokens[i] &&
               folollm_decode_step(judge, &seq, &tokens[i], 1, NULL) == FOLOLLM_OK;
    }
    return folollm_seq_close(judge, seq, NULL) == FOLOLLM_OK && same;
}

static void compare(const folollm_token *tokens, uint32_t n_prompt, uint32_t n, const folollm_sampling *sampling) {
    n_compared++;
    if (!is_written_alone(tokens, n_prompt, n, sampling)) {
        n_wrong++;
        violation("other tokens than alone");
    }
}

static void end(answer *a, const folollm_event *e) {
    uint32_t n_output = a->n_tokens - a->n_prompt;
    n_over++;
    switch (e->finish) {
    case FOLOLLM_FINISH_CANCELLED:
        n_cancelled++;
        DEMAND(a->wanted_over && e->status == FOLOLLM_E_CANCELLED);
        break;
    case FOLOLLM_FINISH_DEADLINE:
        n_late++;
        DEMAND(a->deadline && e->status == FOLOLLM_OK);
        break;
    default:
        DEMAND(e->finish == FOLOLLM_FINISH_LENGTH && e->status == FOLOLLM_OK && n_output == a->sampling.max_tokens);
    }
    DEMAND(e->metrics.output_tokens == n_output && e->metrics.prompt_tokens == a->n_prompt);
    DEMAND(e->metrics.first_token_us <= e->metrics.last_token_us);
    if (a->compared) {
        compare(a->tokens, a->n_prompt, a->n_tokens, &a->sampling);
    }
    a->seq = 0;
}

static void take(const folollm_event *e) {
    answer *a = find(e->seq);
    DEMAND(a != NULL && e->answer == a->index);
    DEMAND(fl_utf8_valid_prefix(e->text, e->n_bytes) == e->n_bytes);
    if (a == NULL) {
        return;
    }
    if (e->token >= 0) {
        DEMAND((uint32_t)e->token < vocab && a->n_tokens < TOKENS_MAX);
        a->tokens[a->n_tokens < TOKENS_MAX ? a->n_tokens++ : TOKENS_MAX] = e->token;
        n_tokens++;
    }
    if (e->finish != FOLOLLM_FINISH_NONE) {
        end(a, e);
    } else if (a->n_tokens - a->n_prompt >= a->cancel_after && !a->wanted_over) {
        a->wanted_over = true;
        DEMAND(folollm_cancel(engine, a->seq, NULL) == FOLOLLM_OK);
    }
}

/* A step, mostly with a time to end at. */
static void step(void) {
    folollm_event events[EVENTS];
    folollm_error error;
    folollm_budget budget = {0, 200 + random_below(4000)};
    size_t n = 1 + random_below(EVENTS);
    uint64_t begin = now_us(NULL);
    budget.tokens = random_below(3) == 0 ? 1 + random_below(64) : 0;
    folollm_status status = folollm_step(engine, random_below(10) == 0 ? NULL : &budget, events, &n, &error);
    uint64_t took = now_us(NULL) - begin;
    longest_step_us = took > longest_step_us ? took : longest_step_us;
    n_steps++;
    if (status != FOLOLLM_OK) {
        violation(error.text);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        take(&events[i]);
    }
}

/* ---- The host's own sequence -- */

static struct {
    folollm_seq seq; /* 0: none */
    uint32_t n_prompt, n_tokens;
    folollm_sampling sampling;
    folollm_token tokens[OWN_TOKENS];
    uint8_t *snapshot;
    size_t room;
} own;

static void own_close(void) {
    DEMAND(folollm_seq_close(engine, own.seq, NULL) == FOLOLLM_OK);
    own.seq = 0;
}

static void own_open(void) {
    own.n_prompt = own.n_tokens = make_prompt(own.tokens, OWN_TOKENS - 20);
    own.sampling = make_sampling(own.n_prompt);
    DEMAND(folollm_seq_open(engine, &own.sampling, &own.seq, NULL) == FOLOLLM_OK);
    folollm_status status = folollm_prefill(engine, own.seq, own.tokens, own.n_prompt, NULL, NULL);
    DEMAND(status == FOLOLLM_OK || status == FOLOLLM_E_POOL); /* the requests hold the pages */
    if (status != FOLOLLM_OK) {
        own_close();
    }
}

/* One token more; then save, close, restore. */
static void own_move(void) {
    folollm_sampled sampled;
    size_t n = own.room;
    if (own.seq == 0) {
        own_open();
        return;
    }
    DEMAND(folollm_sample(engine, own.seq, &sampled, NULL, 0, NULL) == FOLOLLM_OK);
    folollm_status status = folollm_decode_step(engine, &own.seq, &sampled.token, 1, NULL);
    DEMAND(status == FOLOLLM_OK || status == FOLOLLM_E_POOL);
    if (status == FOLOLLM_OK) {
        own.tokens[own.n_tokens++] = sampled.token;
    }
    DEMAND(folollm_seq_save(engine, own.seq, own.snapshot, &n, NULL) == FOLOLLM_OK);
    own_close();
    status = folollm_seq_restore(engine, own.snapshot, n, &own.seq, NULL);
    DEMAND(status == FOLOLLM_OK);
    n_restored++;
    if (status == FOLOLLM_OK && own.n_tokens == OWN_TOKENS) {
        compare(own.tokens, own.n_prompt, own.n_tokens, &own.sampling);
        own_close();
        n_own++;
    }
}

/* ---- All day -- */

typedef struct level { /* what must not rise */
    uint64_t live, allocations, resident;
    unsigned files;
} level;

static level level_now(void) {
    level l = {live_bytes, n_allocations, resident_bytes(), open_files()};
    return l;
}

static void report(double seconds) {
    folollm_stats s;
    folollm_get_stats(engine, &s);
    printf("%6.0f s: %llu answers (%llu cancelled, %llu late, %llu refused), %llu tokens, %llu steps (longest "
           "%.1f ms), %llu slices, %llu preempted, %llu%% of prompts cached, %llu restored, %llu compared, %llu "
           "violations, rss %.1f MB\n",
           seconds, (unsigned long long)n_over, (unsigned long long)n_cancelled, (unsigned long long)n_late,
           (unsigned long long)n_refused, (unsigned long long)n_tokens, (unsigned long long)n_steps,
           (double)longest_step_us / 1000, (unsigned long long)s.slices, (unsigned long long)s.preemptions,
           (unsigned long long)(s.prefix_found_tokens * 100 / (s.prefix_asked_tokens + 1)),
           (unsigned long long)n_restored, (unsigned long long)n_compared, (unsigned long long)n_violations,
           (double)resident_bytes() / 1e6);
    fflush(stdout);
    longest_step_us = 0;
}

static void load(void) {
    folollm_host host = {.realloc = counting_realloc, .clock = now_us};
    folollm_options o = {.host = &host, .n_threads = 2, .max_requests = REQUESTS, .max_running = 12, .max_seqs = 1,
                         .pool_tokens = POOL, .chunk = 64};
    folollm_error error;
    folollm_info info;
    if (folollm_load(MODEL, &o, &engine, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    o.n_threads = 1;
    o.pool_tokens = 0;
    CHECK(folollm_share(engine, &o, &judge, &error) == FOLOLLM_OK);
    folollm_get_info(engine, &info);
    vocab = info.vocab;
    own.room = (size_t)info.kv_token_bytes * OWN_TOKENS + vocab * sizeof(float) + 65536;
    own.snapshot = malloc(own.room);
    memset(own.snapshot, 0, own.room);
}

/* Poisson arrivals, faster than the engine can answer, until most places are taken; then slower. */
static double next_gap_us(void) {
    folollm_stats s;
    folollm_get_stats(engine, &s);
    double mean = s.requests_waiting + s.requests_running > REQUESTS * 3 / 4 ? 100000 : 10000;
    return -mean * log(random_unit());
}

static void run(double seconds) {
    uint64_t begin = now_us(NULL), next_report = begin + 30000000;
    double next_arrival = (double)begin;
    uint64_t settled = begin + (uint64_t)((seconds < 120 ? seconds / 2 : 60) * 1e6);
    level first = {0, 0, 0, 0}, last;
    for (uint64_t now = begin; (double)(now - begin) < seconds * 1e6; now = now_us(NULL)) {
        while ((double)now >= next_arrival) {
            submit();
            next_arrival += next_gap_us();
        }
        step();
        if (random_below(20) == 0) {
            own_move();
        }
        if (n_steps % 1000 == 0) {
            check_invariants(engine, __LINE__);
        }
        if (first.live == 0 && now >= settled) {
            first = level_now();
        }
        if (now >= next_report) {
            report((double)(now - begin) / 1e6);
            next_report += 30000000;
        }
    }
    folollm_stats s;
    uint64_t n_before = n_steps;
    do {
        step();
        folollm_get_stats(engine, &s);
    } while (s.requests_waiting + s.requests_running > 0 && n_steps - n_before < 1000000);
    if (own.seq != 0) {
        own_close();
    }
    last = level_now();
    folollm_get_stats(engine, &s);
    report((double)(now_us(NULL) - begin) / 1e6);
    printf("live bytes %llu then %llu, allocations %llu then %llu, rss %lld bytes more, files %u then %u\n",
           (unsigned long long)first.live, (unsigned long long)last.live, (unsigned long long)first.allocations,
           (unsigned long long)last.allocations, (long long)(last.resident - first.resident), first.files, last.files);
    CHECK(s.requests_waiting + s.requests_running == 0 && s.pages_used == 0 && s.pages_shared == 0 && s.seqs_open == 0);
    CHECK(s.requests_finished == n_submitted && n_over == n_submitted && s.requests_cancelled == n_cancelled);
    CHECK(first.live > 0 && last.live == first.live && last.allocations == first.allocations);
    CHECK(last.resident <= first.resident + RSS_SLACK);
    CHECK(last.files == first.files);
    CHECK_INVARIANTS(engine);
    CHECK(s.preemptions > 0 && s.slices > 0 && s.prefix_found_tokens > 0 && s.pages_evicted > 0);
    CHECK(n_cancelled > 0 && n_restored > 0 && n_compared > 0);
}

int main(int argc, char **argv) {
    double minutes = argc > 1 ? atof(argv[1]) : 20;
    random_state = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
    load();
    run(minutes * 60);
    folollm_free(judge);
    folollm_free(engine);
    free(own.snapshot);
    CHECK(live_bytes == 0);
    CHECK(n_wrong == 0);
    check_n_passed += (unsigned)(n_over + n_compared);
    check_n_failed += (unsigned)n_violations;
    return check_finish();
}
