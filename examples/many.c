/* A server in small: four users send requests at random times, some urgent, some with a deadline, some withdrawn from
 * another thread; one loop of folollm_step answers them all. The table at the end is what a server would report.
 *
 *     many [MODEL] */
#define _POSIX_C_SOURCE 200809L
#include "folollm.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N_REQUESTS = 200, N_USERS = 4, MEAN_GAP_US = 8000 };

static folollm_error error;
static folollm *llm;

typedef struct request {
    uint64_t arrival, withdrawal; /* on now_us; withdrawal 0: none */
    folollm_seq seq;              /* 0 before submit and after the end */
    folollm_finish finish;
    folollm_metrics metrics;
} request;

static request requests[N_REQUESTS];
static pthread_mutex_t seqs_lock = PTHREAD_MUTEX_INITIALIZER; /* guards request.seq */

static void check(folollm_status status)
{
    if (status != FOLOLLM_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
}

static uint64_t now_us(void *user)
{
    struct timespec now;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void sleep_us(long us)
{
    struct timespec rest = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&rest, NULL);
}

/* Uniform below n, the same in every run. */
static uint32_t draw(uint32_t n)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static void set_seq(request *r, folollm_seq seq)
{
    pthread_mutex_lock(&seqs_lock);
    r->seq = seq;
    pthread_mutex_unlock(&seqs_lock);
}

/* The other thread: a client hangs up, whatever the engine is doing. */
static void *withdraw(void *unused)
{
    (void)unused;
    for (int i = 0; i < N_REQUESTS;) {
        request *r = &requests[i];
        if (r->withdrawal > now_us(NULL)) {
            sleep_us(1000);
            continue;
        }
        pthread_mutex_lock(&seqs_lock);
        if (r->withdrawal != 0 && r->seq != 0) {
            folollm_cancel(llm, r->seq, NULL);
        }
        pthread_mutex_unlock(&seqs_lock);
        i++;
    }
    return NULL;
}

/* Arrivals with exponential gaps; every sixth is withdrawn some time later. */
static void plan_requests(uint64_t begin)
{
    for (int i = 0; i < N_REQUESTS; i++) {
        begin += (uint64_t)(-log((draw(1000000) + 1) / 1e6) * MEAN_GAP_US);
        requests[i].arrival = begin;
        requests[i].withdrawal = i % 6 == 5 ? begin + 20000 + draw(200000) : 0;
    }
}

/* User 0 pays for twice the share of the others, every eighth request is urgent, every tenth has 150 ms. */
static void submit(int i)
{
    static const char scene[] = "Rome. The Forum. Citizens stand about, and talk of war and the price of corn.\n\n%s:";
    static const char *const speakers[] = {"BRUTUS", "CASSIUS", "MENENIUS", "First Citizen", "Second Citizen"};
    char text[sizeof scene + 16];
    folollm_token tokens[sizeof text];
    size_t n = sizeof text;
    folollm_seq seq;
    int n_bytes = snprintf(text, sizeof text, scene, speakers[draw(5)]);
    check(folollm_tokenize(llm, text, (size_t)n_bytes, NULL, 0, 0, tokens, &n, &error));
    folollm_sampling sampling = {.temperature = 0.8f, .seed = (uint64_t)i, .max_tokens = 10 + draw(90)};
    folollm_submission s = {.prompt = tokens, .n_prompt = n, .sampling = &sampling, .tag = (uint64_t)i};
    s.flow = (uint32_t)i % N_USERS;
    s.weight = s.flow == 0 ? 2 : 1;
    s.priority = i % 8 == 7 ? -1 : 0;
    s.deadline = i % 10 == 9 ? requests[i].arrival + 150000 : 0;
    check(folollm_submit(llm, &s, &seq, &error));
    set_seq(&requests[i], seq);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One row: the requests of one user, or of all. */
static void print_row(const char *name, int first, int step, double seconds)
{
    double times[N_REQUESTS];
    unsigned n = 0, n_cancelled = 0, n_late = 0, n_times = 0;
    uint64_t tokens = 0, prompt = 0, cached = 0, preempted = 0;
    for (int i = first; i < N_REQUESTS; i += step, n++) {
        const folollm_metrics *m = &requests[i].metrics;
        n_cancelled += requests[i].finish == FOLOLLM_FINISH_CANCELLED;
        n_late += requests[i].finish == FOLOLLM_FINISH_DEADLINE;
        tokens += m->output_tokens;
        prompt += m->prompt_tokens;
        cached += m->cached_tokens;
        preempted += m->preemptions;
        if (m->output_tokens > 0) {
            times[n_times++] = (double)m->first_token_us / 1e3;
        }
    }
    qsort(times, n_times, sizeof *times, compare);
    printf("%-6s %9u %10u %6u %9.0f %12.1f %12.1f %11.0f%% %12u\n", name, n, n_cancelled, n_late, tokens / seconds,
           n_times > 0 ? times[n_times / 2] : 0, n_times > 0 ? times[n_times * 95 / 100] : 0,
           prompt > 0 ? 100.0 * (double)cached / (double)prompt : 0, (unsigned)preempted);
}

int main(int argc, char **argv)
{
    folollm_host host = {.clock = now_us};
    folollm_options options = {.host = &host, .pool_tokens = 640, .max_requests = N_REQUESTS, .max_running = 12,
                               .n_threads = 1}; /* a model this small gains nothing from more */
    folollm_event events[32];
    pthread_t other;
    int n_sent = 0, n_open = 0;
    check(folollm_load(argc > 1 ? argv[1] : "examples/models/tiny-shakespeare", &options, &llm, &error));
    uint64_t begin = now_us(NULL);
    plan_requests(begin);
    if (pthread_create(&other, NULL, withdraw, NULL) != 0) {
        return 1;
    }
    while (n_sent < N_REQUESTS || n_open > 0) {
        size_t n = sizeof events / sizeof events[0];
        for (; n_sent < N_REQUESTS && requests[n_sent].arrival <= now_us(NULL); n_sent++, n_open++) {
            submit(n_sent);
        }
        if (n_open == 0) {
            sleep_us(500); /* a server would wait for its sockets */
            continue;
        }
        check(folollm_step(llm, NULL, events, &n, &error));
        for (size_t i = 0; i < n; i++) { /* a server would send events[i].text to its client */
            request *r = &requests[events[i].tag];
            if (events[i].finish != FOLOLLM_FINISH_NONE) {
                set_seq(r, 0);
                r->finish = events[i].finish;
                r->metrics = events[i].metrics;
                n_open--;
            }
        }
    }
    double seconds = (double)(now_us(NULL) - begin) / 1e6;
    pthread_join(other, NULL);
    printf("%-6s %9s %10s %6s %9s %12s %12s %12s %12s\n", "user", "requests", "cancelled", "late", "tokens/s",
           "first, p50", "p95, ms", "prefix hits", "preemptions");
    for (int user = 0; user < N_USERS; user++) {
        char name[12];
        snprintf(name, sizeof name, "%d", user);
        print_row(name, user, N_USERS, seconds);
    }
    print_row("all", 0, 1, seconds);
    folollm_free(llm);
    return 0;
}
