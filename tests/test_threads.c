/* Threads: engines that share one model's weights run in threads of their own, each a random mix of requests and of
 * its own loop, while other threads cancel whatever handles they can see, stale ones too, and engines are made and
 * freed all the time. Every token must be the one that the same prompt gave alone, before any of this began.
 *
 *     cc -O1 -g -I. -Isrc tests/test_threads.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 *     with clang and -fsanitize=thread: no race is reported; make -C tests tsan
 */
#include "inside.h"

#include "check.h"
#include "invariants.h"

#include <sched.h>
#include <signal.h>
#include <sys/time.h>

#define SMALL "tests/vectors/models/llama-gqa-fp16"
#define SHAKESPEARE "examples/models/tiny-shakespeare"

#define WORKERS 8
#define CANCELLERS 2
#define PUBLISHED 8 /* handles of a worker that others can see */
#define PROMPTS 6
#define ANSWERS 2
#define LENGTH 12   /* tokens of an answer */
#define PROMPT_MAX 40
#define KEPT 64     /* handles that a canceller remembers, to try them again when they are stale */
#define OWN_MAX 3   /* sequences of a worker's own loop */

/* ---- The oracle: written before the threads begin, read only from then on -- */

static folollm_token prompts[PROMPTS][PROMPT_MAX];
static size_t prompt_lengths[PROMPTS];
static folollm_token expected[PROMPTS][ANSWERS][LENGTH];
static folollm_sampling samplings[PROMPTS][ANSWERS];

static uint32_t random_from(uint64_t *state, uint32_t n) {
    *state += 0x9E3779B97F4A7C15u;
    return (uint32_t)(fl_mix(*state) % n);
}

/* Prompts 0 to 2 begin alike, for longer than a page. */
static void make_expected(folollm *f) {
    uint64_t random = 5;
    for (size_t k = 0; k < PROMPTS; k++) {
        prompt_lengths[k] = 18 + 4 * k;
        for (size_t i = 0; i < prompt_lengths[k]; i++) {
            bool shared = k > 0 && k < 3 && i < 17;
            prompts[k][i] = shared ? prompts[0][i] : (folollm_token)random_from(&random, 78);
        }
        for (uint32_t answer = 0; answer < ANSWERS; answer++) {
            folollm_sampling s = {.temperature = k % 2 ? 0.9f : 0, .seed = 10 * k + answer, .max_tokens = LENGTH,
                                  .ignore_eos = 1};
            folollm_seq seq = 0;
            folollm_sampled sampled;
            samplings[k][answer] = s;
            CHECK(folollm_seq_open(f, &s, &seq, NULL) == FOLOLLM_OK);
            CHECK(folollm_prefill(f, seq, prompts[k], prompt_lengths[k], NULL, NULL) == FOLOLLM_OK);
            for (size_t i = 0; i < LENGTH; i++) {
                CHECK(folollm_sample(f, seq, &sampled, NULL, 0, NULL) == FOLOLLM_OK);
                expected[k][answer][i] = sampled.token;
                CHECK(folollm_decode_step(f, &seq, &sampled.token, 1, NULL) == FOLOLLM_OK);
            }
            CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
        }
    }
}

/* ---- Workers -- */

typedef struct answer { /* a request that is under way; tag is its place */
    folollm_seq seq;    /* 0: none */
    uint32_t prompt, n_tokens;
} answer;

typedef struct own {
    folollm_seq seq;
    uint32_t prompt, n_tokens; /* of its output */
} own;

typedef struct worker {
    folollm *f;
    uint64_t random;
    unsigned rounds;
    folollm_seq published[PUBLISHED]; /* atomic */
    answer answers[PUBLISHED];        /* [i] and [i + 1] of one request */
    own own[OWN_MAX];
    uint8_t *snapshot;
    size_t snapshot_bytes;
    unsigned n_tokens, n_finished, n_cancelled, n_undone, n_engines, n_restored, n_no_room;
    unsigned n_checks, n_failed;
    int failed_line;
} worker;

static bool expect(worker *w, bool ok, int line) {
    w->n_checks++;
    if (!ok && w->n_failed++ == 0) {
        w->failed_line = line;
    }
    return ok;
}

#define EXPECT(condition) expect(w, (condition), __LINE__)

static void submit_one(worker *w) {
    uint32_t at = random_from(&w->random, PUBLISHED / 2) * 2, k = random_from(&w->random, PROMPTS);
    uint32_t n = 1 + random_from(&w->random, 2);
    folollm_seq seqs[ANSWERS];
    if (w->answers[at].seq != 0 || w->answers[at + 1].seq != 0) {
        return;
    }
    folollm_submission s = {.prompt = prompts[k], .n_prompt = prompt_lengths[k], .sampling = &samplings[k][0],
                            .n_answers = n, .tag = at, .priority = (int32_t)random_from(&w->random, 3), .flow = at,
                            .no_prefix_cache = random_from(&w->random, 4) == 0};
    if (!EXPECT(folollm_submit(w->f, &s, seqs, NULL) == FOLOLLM_OK)) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        w->answers[at + i] = (answer){seqs[i], k, 0};
        fl_atomic_store(&w->published[at + i], seqs[i]);
    }
}

static void take_event(worker *w, const folollm_event *e) {
    uint32_t at = (uint32_t)e->tag + e->answer;
    if (!EXPECT(at < PUBLISHED && w->answers[at].seq == e->seq && e->seq != 0)) {
        return;
    }
    answer *a = &w->answers[at];
    if (e->token >= 0) {
        EXPECT(a->n_tokens < LENGTH && e->token == expected[a->prompt][e->answer][a->n_tokens]);
        a->n_tokens++;
        w->n_tokens++;
    }
    if (e->finish != FOLOLLM_FINISH_NONE) {
        bool cancelled = e->finish == FOLOLLM_FINISH_CANCELLED;
        EXPECT(cancelled ? e->status == FOLOLLM_E_CANCELLED
                         : e->finish == FOLOLLM_FINISH_LENGTH && e->status == FOLOLLM_OK && a->n_tokens == LENGTH);
        w->n_finished++;
        w->n_cancelled += cancelled;
        a->seq = 0; /* the handle stays published: from now on it is stale */
    }
}

static void step_one(worker *w) {
    folollm_event events[5];
    folollm_budget budget = {1 + random_from(&w->random, 16), 0};
    size_t n = 1 + random_from(&w->random, 5);
    folollm_status status = folollm_step(w->f, random_from(&w->random, 3) ? &budget : NULL, events, &n, NULL);
    w->n_no_room += status == FOLOLLM_E_POOL;
    if (status == FOLOLLM_E_POOL) { /* the own ones hold the pages */
        for (size_t i = 0; i < OWN_MAX; i++) {
            if (w->own[i].seq != 0) {
                EXPECT(folollm_seq_close(w->f, w->own[i].seq, NULL) == FOLOLLM_OK);
                w->own[i].seq = 0;
            }
        }
    } else if (EXPECT(status == FOLOLLM_OK)) {
        for (size_t i = 0; i < n; i++) {
            take_event(w, &events[i]);
        }
    }
}

/* A call of the own loop, again while others cancel it. False: no room. */
#define TRY_OWN(call)                                                        \
    do {                                                                     \
        while ((status = (call)) == FOLOLLM_E_CANCELLED) {                   \
            w->n_undone++;                                                   \
        }                                                                    \
        EXPECT(status == FOLOLLM_OK || status == FOLOLLM_E_POOL);            \
        w->n_no_room += status == FOLOLLM_E_POOL;                            \
    } while (0)

static void own_open(worker *w, own *o) {
    folollm_status status;
    o->prompt = random_from(&w->random, PROMPTS);
    o->n_tokens = 0;
    EXPECT(folollm_seq_open(w->f, &samplings[o->prompt][0], &o->seq, NULL) == FOLOLLM_OK);
    fl_atomic_store(&w->published[random_from(&w->random, PUBLISHED)], o->seq);
    size_t n = prompt_lengths[o->prompt], cut = random_from(&w->random, (uint32_t)n);
    status = FOLOLLM_OK;
    if (cut > 0) {
        TRY_OWN(folollm_prefill(w->f, o->seq, prompts[o->prompt], cut, NULL, NULL));
    }
    if (status == FOLOLLM_OK) {
        TRY_OWN(folollm_prefill(w->f, o->seq, prompts[o->prompt] + cut, n - cut, NULL, NULL));
    }
    if (status != FOLOLLM_OK) {
        EXPECT(folollm_seq_close(w->f, o->seq, NULL) == FOLOLLM_OK);
        o->seq = 0;
    }
}

static void own_close(worker *w, own *o) {
    EXPECT(folollm_seq_close(w->f, o->seq, NULL) == FOLOLLM_OK);
    o->seq = 0;
}

/* Save, close, and restore as another handle. The pages that it had are free again, so there is room. */
static void own_restore(worker *w, own *o) {
    size_t n = w->snapshot_bytes;
    if (EXPECT(folollm_seq_save(w->f, o->seq, w->snapshot, &n, NULL) == FOLOLLM_OK)) {
        own_close(w, o);
        folollm_status status = folollm_seq_restore(w->f, w->snapshot, n, &o->seq, NULL);
        EXPECT(status == FOLOLLM_OK || status == FOLOLLM_E_POOL); /* it may have shared its pages with a fork */
        if (status != FOLOLLM_OK) {
            o->seq = 0;
            return;
        }
        fl_atomic_store(&w->published[random_from(&w->random, PUBLISHED)], o->seq);
        w->n_restored++;
    }
}

static void own_fork(worker *w, const own *o) {
    own *to = &w->own[random_from(&w->random, OWN_MAX)];
    if (to->seq == 0) {
        *to = *o;
        EXPECT(folollm_seq_fork(w->f, o->seq, NULL, &to->seq, NULL) == FOLOLLM_OK);
        fl_atomic_store(&w->published[random_from(&w->random, PUBLISHED)], to->seq);
    }
}

static void own_decode(worker *w, own *o) {
    folollm_sampled sampled;
    folollm_status status;
    EXPECT(folollm_sample(w->f, o->seq, &sampled, NULL, 0, NULL) == FOLOLLM_OK);
    EXPECT(sampled.token == expected[o->prompt][0][o->n_tokens]);
    TRY_OWN(folollm_decode_step(w->f, &o->seq, &sampled.token, 1, NULL));
    o->n_tokens += status == FOLOLLM_OK;
    w->n_tokens++;
    if (o->n_tokens == LENGTH || status == FOLOLLM_E_POOL) {
        own_close(w, o);
    }
}

static void own_move(worker *w) {
    own *o = &w->own[random_from(&w->random, OWN_MAX)];
    if (o->seq == 0) {
        own_open(w, o);
        return;
    }
    switch (random_from(&w->random, 6)) {
    case 0:
        own_restore(w, o);
        break;
    case 1:
        own_fork(w, o);
        break;
    case 2:
        if (random_from(&w->random, 4) == 0) {
            own_close(w, o);
        }
        break;
    default:
        own_decode(w, o);
    }
}

/* An engine more over the same weights, that makes another, is freed, and leaves its work to that one. */
static void share_one(worker *w) {
    folollm_options o = {.n_threads = 1, .max_seqs = 1, .max_requests = 1, .pool_tokens = 64};
    folollm *a = NULL, *b = NULL;
    folollm_seq seq = 0;
    folollm_sampled sampled;
    uint32_t k = random_from(&w->random, PROMPTS);
    EXPECT(folollm_share(w->f, &o, &a, NULL) == FOLOLLM_OK);
    EXPECT(folollm_share(a, &o, &b, NULL) == FOLOLLM_OK);
    folollm_free(a);
    EXPECT(folollm_seq_open(b, &samplings[k][1], &seq, NULL) == FOLOLLM_OK);
    EXPECT(folollm_prefill(b, seq, prompts[k], prompt_lengths[k], NULL, NULL) == FOLOLLM_OK);
    EXPECT(folollm_sample(b, seq, &sampled, NULL, 0, NULL) == FOLOLLM_OK && sampled.token == expected[k][1][0]);
    folollm_free(b);
    w->n_engines += 2;
}

static void *work(void *argument) {
    worker *w = argument;
    for (unsigned round = 0; round < w->rounds; round++) {
        switch (random_from(&w->random, 12)) {
        case 0:
        case 1:
            submit_one(w);
            break;
        case 2:
        case 3:
        case 4:
            own_move(w);
            break;
        case 5:
            if (random_from(&w->random, 8) == 0) {
                share_one(w);
            }
            break;
        case 6:
            sched_yield();
            break;
        default:
            step_one(w);
        }
    }
    return NULL;
}

/* Until nothing is left; nobody cancels any more. */
static void drain(worker *w) {
    folollm_stats stats;
    unsigned n = 0;
    for (size_t i = 0; i < OWN_MAX; i++) {
        if (w->own[i].seq != 0) {
            own_close(w, &w->own[i]);
        }
    }
    do {
        step_one(w);
        folollm_get_stats(w->f, &stats);
    } while (stats.requests_running + stats.requests_waiting > 0 && ++n < 100000);
    for (size_t i = 0; i < PUBLISHED; i++) {
        EXPECT(w->answers[i].seq == 0);
    }
    EXPECT(stats.pages_used == 0 && stats.seqs_open == 0 && stats.pages_shared == 0);
    EXPECT(stats.requests_finished == w->n_finished && stats.requests_cancelled == w->n_cancelled);
}

/* ---- Cancellers -- */

static worker workers[WORKERS];
static int over; /* atomic */

typedef struct canceller {
    uint64_t random;
    unsigned n_hit, n_stale, n_wrong;
} canceller;

static void *cancel(void *argument) {
    canceller *c = argument;
    struct {
        worker *w;
        folollm_seq seq;
    } kept[KEPT] = {{NULL, 0}};
    while (!fl_atomic_load(&over)) {
        size_t at = random_from(&c->random, KEPT);
        if (random_from(&c->random, 3) != 0) {
            kept[at].w = &workers[random_from(&c->random, WORKERS)];
            kept[at].seq = fl_atomic_load(&kept[at].w->published[random_from(&c->random, PUBLISHED)]);
        }
        if (kept[at].w != NULL) {
            folollm_error error;
            folollm_status status = folollm_cancel(kept[at].w->f, kept[at].seq, &error);
            c->n_hit += status == FOLOLLM_OK;
            c->n_stale += status == FOLOLLM_E_SEQUENCE;
            c->n_wrong += status != FOLOLLM_OK && status != FOLOLLM_E_SEQUENCE;
        }
        struct timespec pause = {0, 1000 * (long)random_from(&c->random, 1500)};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* ---- All together -- */

static void test_threads(const char *path, unsigned rounds) {
    folollm_options o = {.n_threads = 1, .max_requests = PUBLISHED, .max_running = 3, .max_seqs = OWN_MAX,
                         .context = 64, .pool_tokens = 13 * 16, .chunk = 16};
    folollm *f = NULL;
    pthread_t threads[WORKERS + CANCELLERS];
    canceller cancellers[CANCELLERS];
    unsigned n_tokens = 0, n_cancelled = 0, n_undone = 0, n_engines = 0, n_restored = 0, n_preempted = 0;
    unsigned n_stale = 0, n_hit = 0;
    CHECK(folollm_load(path, &o, &f, NULL) == FOLOLLM_OK);
    make_expected(f);
    memset(workers, 0, sizeof workers);
    memset(cancellers, 0, sizeof cancellers);
    over = 0;
    for (size_t i = 0; i < WORKERS; i++) {
        worker *w = &workers[i];
        o.n_threads = i == 0 ? 2 : 1; /* one has threads of its own beside */
        CHECK(folollm_share(f, &o, &w->f, NULL) == FOLOLLM_OK);
        w->random = 100 * i + rounds;
        w->rounds = rounds;
        w->snapshot_bytes = 1 << 20;
        w->snapshot = malloc(w->snapshot_bytes);
    }
    folollm_free(f);
    for (size_t i = 0; i < CANCELLERS; i++) {
        cancellers[i].random = 7 + i;
        CHECK(pthread_create(&threads[WORKERS + i], NULL, cancel, &cancellers[i]) == 0);
    }
    for (size_t i = 0; i < WORKERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (size_t i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    fl_atomic_store(&over, 1);
    for (size_t i = 0; i < CANCELLERS; i++) {
        pthread_join(threads[WORKERS + i], NULL);
        CHECK(cancellers[i].n_wrong == 0);
        n_hit += cancellers[i].n_hit; /* one alone may have had no turn */
        n_stale += cancellers[i].n_stale;
    }
    for (size_t i = 0; i < WORKERS; i++) {
        worker *w = &workers[i];
        folollm_stats stats;
        drain(w);
        if (!CHECK(w->n_failed == 0)) {
            printf("    worker %u: %u of %u checks failed, the first in line %d\n", (unsigned)i, w->n_failed,
                   w->n_checks, w->failed_line);
        }
        check_n_passed += w->n_checks - w->n_failed;
        CHECK_INVARIANTS(w->f);
        folollm_get_stats(w->f, &stats);
        n_preempted += (unsigned)stats.preemptions;
        n_tokens += w->n_tokens;
        n_cancelled += w->n_cancelled;
        n_undone += w->n_undone;
        n_engines += w->n_engines;
        n_restored += w->n_restored;
        folollm_free(w->f);
        free(w->snapshot);
    }
    printf("%s: %u tokens, %u requests cancelled, %u own calls undone, %u stale cancels, %u engines, %u restored, %u "
           "preempted\n",
           path, n_tokens, n_cancelled, n_undone, n_stale, n_engines, n_restored, n_preempted);
    CHECK(n_hit > 0 && n_stale > 5 && n_cancelled > 5 && n_undone > 0);
    CHECK(n_tokens > 100 && n_engines > 10 && n_restored > 5);
}

/* ---- A cancel that comes late -- */

static struct {
    folollm *f;
    folollm_seq seq;
    volatile sig_atomic_t changed;
    unsigned n_wrong;
} late;

/* What the engine's own thread might do between any two instructions of a cancel in another: the sequence is closed,
 * its slot given to the next one, and that is cancelled. */
static void change(int signal_number) {
    (void)signal_number;
    late.n_wrong += folollm_seq_close(late.f, late.seq, NULL) != FOLOLLM_OK;
    late.n_wrong += folollm_seq_open(late.f, NULL, &late.seq, NULL) != FOLOLLM_OK;
    late.n_wrong += folollm_cancel(late.f, late.seq, NULL) != FOLOLLM_OK;
    late.changed = 1;
}

/* The wish for the new sequence is not lost to a cancel of the old one that was under way. A signal stands for the
 * other thread: it comes at every place sooner or later. */
static void test_late_cancel(void) {
    const folollm_token token = 1;
    folollm_options o = {.n_threads = 1, .max_seqs = 1, .max_requests = 1};
    struct sigaction action;
    unsigned n_lost = 0;
    memset(&action, 0, sizeof action);
    action.sa_handler = change;
    sigaction(SIGALRM, &action, NULL);
    CHECK(folollm_load(SMALL, &o, &late.f, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_open(late.f, NULL, &late.seq, NULL) == FOLOLLM_OK);
    for (long i = 0; i < 3000; i++) {
        struct itimerval once = {{0, 0}, {0, 50 + i % 37}};
        folollm_seq old = late.seq;
        late.changed = 0;
        setitimer(ITIMER_REAL, &once, NULL);
        while (!late.changed) {
            folollm_cancel(late.f, old, NULL);
        }
        n_lost += folollm_prefill(late.f, late.seq, &token, 1, NULL, NULL) != FOLOLLM_E_CANCELLED;
    }
    CHECK(n_lost == 0);
    CHECK(late.n_wrong == 0);
    folollm_free(late.f);
}

static void count_task(void *context, size_t task, size_t slot) {
    (void)task;
    (void)slot;
    fl_atomic_add((size_t *)context, (size_t)1);
}

/* A pool that is closed right behind a loop, while its threads still look at that loop, ends them all. */
static void test_short_pools(void) {
    fl_memory memory;
    fl_memory_init(&memory, NULL);
    for (unsigned i = 0; i < 6000; i++) {
        fl_pool *pool = NULL;
        size_t n = 0, tasks = 2 + i % 5;
        CHECK(fl_pool_open(&memory, 2 + i % 3, &pool, NULL) == FOLOLLM_OK);
        fl_pool_run(pool, tasks, count_task, &n);
        CHECK(n == tasks);
        fl_pool_close(&memory, pool);
    }
    CHECK(memory.live == 0);
}

int main(void) {
    test_short_pools();
    test_late_cancel();
    test_threads(SMALL, 3000);
    test_threads(SHAKESPEARE, 300);
    return check_finish();
}
