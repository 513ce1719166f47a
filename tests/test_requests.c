/* Many requests: whatever company, order, chunk, budget, time slice, prefix hit, preemption or thread count an answer
 * meets, its logits have the bits, and its tokens and text are those, of the same request alone in the host's own loop.
 * Counters show that each path was really taken. Then: who is served when, cancels at every check-point, deadlines,
 * full pools, numbers that are none, misuse.
 *
 *     cc -O1 -I. -Isrc tests/test_requests.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 *     -DFL_PAGE_TOKENS=2: a page edge every other token
 */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "invariants.h"
#include "random.h"

#define MODEL "examples/models/tiny-shakespeare"
#define SMALL "tests/vectors/models/llama-gqa-fp16" /* 80 ids, 96 positions, no tokenizer */
#define PROMPT_MAX 160
#define OUTPUT_MAX 48
#define TEXT_MAX 1024
#define JOBS_MAX 64

static folollm_error error;
static uint64_t digest_of(const void *p, size_t n) {
    return inside_checksum(p, n);
}

/* ---- Engines: a clock that moves a little each time it is read, and hooks that let a test act in between ----------- */

typedef struct ticker {
    uint64_t now, step; /* microseconds */
    uint64_t n_reads, act_at; /* at this read, act */
    folollm *engine;
    folollm_seq target;
} ticker;

static uint64_t read_ticker(void *user) {
    ticker *t = user;
    if (++t->n_reads == t->act_at) {
        CHECK(folollm_cancel(t->engine, t->target, NULL) == FOLOLLM_OK);
    }
    return t->now += t->step;
}

static ticker clock_of_tests;
static folollm_host host_of_tests = {.user = &clock_of_tests, .clock = read_ticker};

static folollm *open_model(const char *path, folollm_options o) {
    folollm *f = NULL;
    o.host = &host_of_tests;
    o.n_threads = o.n_threads != 0 ? o.n_threads : 1;
    if (folollm_load(path, &o, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    return f;
}

static folollm_stats stats_of(const folollm *f) {
    folollm_stats stats;
    folollm_get_stats(f, &stats);
    return stats;
}

static uint32_t vocab_of(const folollm *f) {
    folollm_info info;
    folollm_get_info(f, &info);
    return info.vocab;
}

/* ---- Jobs: a request, and what it gives alone -------------------------------------------------------------------- */

typedef struct job {
    folollm_token prompt[PROMPT_MAX];
    size_t n_prompt;
    folollm_sampling sampling;

    folollm_token tokens[OUTPUT_MAX];
    uint64_t digests[OUTPUT_MAX]; /* of the logits that each token was chosen from */
    folollm_logprob top[OUTPUT_MAX][FOLOLLM_TOP_MAX];
    uint32_t n_tokens;
    char text[TEXT_MAX];
    size_t n_bytes;
    folollm_finish finish;
} job;

/* The job by itself, in the host's own loop. */
static void solve(folollm *f, job *j, uint64_t seed) {
    folollm_sampling sampling = j->sampling;
    folollm_sampled next = {0};
    folollm_seq seq = 0;
    sampling.seed = seed;
    j->n_tokens = 0;
    j->n_bytes = 0;
    CHECK(folollm_seq_open(f, &sampling, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, j->prompt, j->n_prompt, NULL, &error) == FOLOLLM_OK);
    for (;;) {
        const float *logits = NULL;
        CHECK(folollm_logits(f, seq, &logits, &error) == FOLOLLM_OK);
        CHECK(folollm_sample(f, seq, &next, j->top[j->n_tokens], FOLOLLM_TOP_MAX, &error) == FOLOLLM_OK);
        j->digests[j->n_tokens] = digest_of(logits, vocab_of(f) * sizeof *logits);
        j->tokens[j->n_tokens++] = next.token;
        memcpy(j->text + j->n_bytes, next.text, next.n_bytes);
        j->n_bytes += next.n_bytes;
        if (next.finish != FOLOLLM_FINISH_NONE) {
            break;
        }
        CHECK(folollm_decode_step(f, seq != 0 ? &seq : NULL, &next.token, 1, &error) == FOLOLLM_OK);
    }
    j->finish = next.finish;
    CHECK(folollm_seq_close(f, seq, &error) == FOLOLLM_OK);
}

/* Prompts share beginnings, so that prefixes are found; samplings are of all kinds. */
static void make_job(job *j, uint32_t n_ids, size_t n_prompt, uint32_t n_output, uint64_t seed) {
    static const folollm_text stops[] = {{"the", 3}, {"\n\n", 2}};
    size_t shared = random_below((uint32_t)n_prompt + 1);
    memset(j, 0, sizeof *j);
    j->n_prompt = n_prompt;
    for (size_t i = 0; i < n_prompt; i++) {
        j->prompt[i] = (folollm_token)(i < shared ? (i * 7 + 3) % n_ids : random_below(n_ids));
    }
    j->sampling.max_tokens = n_output;
    j->sampling.seed = seed;
    if (seed % 4 != 0) {
        j->sampling.temperature = 0.5f + 0.25f * (float)(seed % 3);
        j->sampling.top_p = 0.95f;
        j->sampling.repetition_penalty = seed % 2 != 0 ? 1.1f : 0;
        j->sampling.presence_penalty = 0.1f;
    }
    if (seed % 5 == 1) {
        j->sampling.stops = stops;
        j->sampling.n_stops = 2;
        j->sampling.min_tokens = 2;
    }
    j->sampling.ignore_eos = seed % 3 == 0;
}

/* ---- Runs: jobs as requests, every event compared ---------------------------------------------------------------- */

typedef struct run {
    folollm *f;
    const job *jobs;
    size_t n_jobs;
    uint32_t n_done[JOBS_MAX];
    char text[JOBS_MAX][TEXT_MAX];
    size_t n_bytes[JOBS_MAX];
    folollm_seq seqs[JOBS_MAX];
    size_t n_live, n_events, n_wrong;
    bool logits_stay; /* nothing else uses the executor */
} run;

/* Each third job asks for none. */
static uint32_t n_top_of(size_t i) {
    return i % 3 == 0 ? 0 : (uint32_t)(i * 7 % FOLOLLM_TOP_MAX) + 1;
}

static bool top_is_right(const folollm_event *e, const job *j, uint32_t k, uint32_t n_top) {
    return e->n_top == n_top && (e->top != NULL) == (n_top > 0) &&
           (n_top == 0 || memcmp(e->top, j->top[k], n_top * sizeof *e->top) == 0);
}

static void submit_job(run *r, size_t i, folollm_submission more) {
    more.prompt = r->jobs[i].prompt;
    more.n_prompt = r->jobs[i].n_prompt;
    more.sampling = &r->jobs[i].sampling;
    more.tag = i;
    more.n_top = n_top_of(i);
    CHECK(folollm_submit(r->f, &more, &r->seqs[i], &error) == FOLOLLM_OK);
    r->n_live++;
}

static bool logits_are_right(const run *r, const folollm_event *e, const job *j, uint32_t k) {
    const fl_request *q = &r->f->driver.scheduler.requests[e->seq % FL_SEQS_MAX - r->f->sequences.n_own];
    if (!r->logits_stay || q->logits_row == FL_NO_ROW) {
        return true;
    }
    uint32_t vocab = vocab_of(r->f);
    return digest_of(r->f->executor.logits + (size_t)q->logits_row * vocab, vocab * sizeof(float)) == j->digests[k];
}

static void take_event(run *r, const folollm_event *e) {
    const job *j = &r->jobs[e->tag];
    uint32_t k = r->n_done[e->tag];
    bool ok = e->seq == r->seqs[e->tag] && e->status == FOLOLLM_OK && k < j->n_tokens && e->token == j->tokens[k] &&
              logits_are_right(r, e, j, k) && top_is_right(e, j, k, n_top_of(e->tag)) &&
              r->n_bytes[e->tag] + e->n_bytes <= j->n_bytes &&
              (e->finish != FOLOLLM_FINISH_NONE) == (k + 1 == j->n_tokens) && e->metrics.output_tokens == k + 1;
    r->n_done[e->tag]++;
    if (ok) {
        memcpy(r->text[e->tag] + r->n_bytes[e->tag], e->text, e->n_bytes);
        r->n_bytes[e->tag] += e->n_bytes;
    }
    if (e->finish != FOLOLLM_FINISH_NONE) {
        ok = ok && e->finish == j->finish && r->n_bytes[e->tag] == j->n_bytes &&
             memcmp(r->text[e->tag], j->text, j->n_bytes) == 0;
        r->n_live--;
    }
    r->n_events++;
    r->n_wrong += !ok;
}

static void step_run(run *r, const folollm_budget *budget, size_t room) {
    folollm_event events[JOBS_MAX];
    size_t n = room;
    folollm_stats before = stats_of(r->f);
    folollm_status status = folollm_step(r->f, budget, events, &n, &error);
    folollm_stats after = stats_of(r->f);
    if (!CHECK(status == FOLOLLM_OK && n <= room)) {
        printf("    %d %s\n", status, error.text);
        exit(1);
    }
    if (budget != NULL && budget->tokens != 0) {
        uint64_t rows = after.prompt_tokens + after.generated_tokens - before.prompt_tokens - before.generated_tokens;
        CHECK(rows <= budget->tokens);
    }
    for (size_t i = 0; i < n; i++) {
        take_event(r, &events[i]);
    }
    CHECK_INVARIANTS(r->f);
}

static void check_run(const run *r) {
    CHECK(r->n_wrong == 0);
    CHECK(stats_of(r->f).pages_used == 0 && stats_of(r->f).requests_running == 0);
    for (size_t i = 0; i < r->n_jobs; i++) {
        CHECK(r->n_done[i] == r->jobs[i].n_tokens);
    }
}

static void begin_run(run *r, folollm *f, const job *jobs, size_t n_jobs) {
    memset(r, 0, sizeof *r);
    r->f = f;
    r->jobs = jobs;
    r->n_jobs = n_jobs;
    r->logits_stay = true;
}

/* All jobs, coming one by one at random steps, in random order of arrival. */
static void run_jobs(run *r, const folollm_budget *budget, size_t room) {
    size_t next = 0;
    while (next < r->n_jobs || r->n_live > 0) {
        while (next < r->n_jobs && (r->n_live == 0 || random_below(3) == 0)) {
            folollm_submission s = {.priority = (int32_t)random_below(3)};
            s.flow = random_below(3);
            submit_job(r, next++, s);
        }
        step_run(r, budget, room);
    }
    check_run(r);
}

/* ---- The matrix -------------------------------------------------------------------------------------------------- */

static job jobs[JOBS_MAX];

static void make_jobs(const char *model, size_t n, size_t longest, uint32_t n_output, folollm_kv_type kv) {
    folollm *f = open_model(model, (folollm_options){.kv = kv, .max_seqs = 1});
    folollm_info info;
    folollm_get_info(f, &info);
    uint32_t n_ids = info.n_tokens > 3 ? info.n_tokens - 3 : info.vocab;
    for (size_t i = 0; i < n; i++) {
        size_t n_prompt = 1 + random_below((uint32_t)longest); /* in this order, whatever the compiler */
        make_job(&jobs[i], n_ids, n_prompt, 2 + random_below(n_output - 1), i);
        solve(f, &jobs[i], jobs[i].sampling.seed);
    }
    folollm_free(f);
}

typedef struct totals {
    uint64_t steps, slices, preemptions, found, evicted, runs, events;
} totals;

static void add_totals(totals *t, const run *r) {
    folollm_stats s = stats_of(r->f);
    t->steps += s.steps;
    t->slices += s.slices;
    t->preemptions += s.preemptions;
    t->found += s.prefix_found_tokens;
    t->evicted += s.pages_evicted;
    t->events += r->n_events;
    t->runs++;
}

static void test_matrix(folollm_kv_type kv) {
    static const uint32_t widths[] = {1, 2, 5, 13, 32}, chunks[] = {1, 7, 16, 64, 512};
    totals t = {0};
    make_jobs(MODEL, 33, 70, 16, kv);
    for (size_t w = 0; w < FL_COUNT(widths); w++) {
        for (size_t c = 0; c < FL_COUNT(chunks); c++) {
            for (uint32_t kind = 0; kind < 4; kind++) { /* whole; budgets of tokens; time slices; a small pool */
                if ((w * 5 + c) % 2 != 0 && kind != (w + c) % 4) {
                    continue; /* half of the cells get one kind alone */
                }
                uint32_t threads = 1 + (uint32_t)(w + c + kind) % 4;
                folollm_options o = {.kv = kv, .max_running = widths[w], .chunk = chunks[c], .n_threads = threads,
                                     .pool_tokens = kind == 3 ? 112 : 33 * 112, .context = 512};
                folollm_budget budget = {kind == 1 ? 1 + random_below(40) : 0, kind == 2 ? 40 : 0};
                folollm *f = open_model(MODEL, o);
                run r;
                clock_of_tests.step = kind == 2 ? 3 : 0;
                begin_run(&r, f, jobs, kind == 3 ? 33 : 1 + widths[w]);
                run_jobs(&r, kind == 1 || kind == 2 ? &budget : NULL, kind == 1 ? 1 + random_below(3) : JOBS_MAX);
                CHECK(kind != 2 || stats_of(f).slices > stats_of(f).steps);
                CHECK(kind != 3 || widths[w] < 13 || chunks[c] < 16 || stats_of(f).preemptions > 0);
                add_totals(&t, &r);
                folollm_free(f);
            }
        }
    }
    clock_of_tests.step = 0;
    printf("matrix, KV type %d: %u runs, %u events, %u steps, %u slices, %u preemptions, %u prefix tokens found, "
           "%u pages evicted\n", (int)kv, (unsigned)t.runs, (unsigned)t.events, (unsigned)t.steps, (unsigned)t.slices,
           (unsigned)t.preemptions, (unsigned)t.found, (unsigned)t.evicted);
    CHECK(t.slices > 1000 && t.preemptions > 10 && t.found > 1000 && t.evicted > 20);
}

/* ---- The prefix cache -------------------------------------------------------------------------------------------- */

/* One request at a time, to its end. */
static folollm_metrics run_alone(folollm *f, const job *j, folollm_submission more) {
    folollm_event events[JOBS_MAX];
    folollm_metrics metrics = {0};
    run r;
    begin_run(&r, f, j, 1);
    submit_job(&r, 0, more);
    while (r.n_live > 0) {
        size_t n = JOBS_MAX;
        CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK);
        for (size_t i = 0; i < n; i++) {
            take_event(&r, &events[i]);
            metrics = events[i].metrics;
        }
        CHECK_INVARIANTS(f);
    }
    check_run(&r);
    return metrics;
}

/* Every length around page edges, cold and warm, in one space and in another. */
static void test_prefix(folollm_kv_type kv) {
    const size_t page = FL_PAGE_TOKENS;
    folollm *alone = open_model(MODEL, (folollm_options){.kv = kv});
    for (size_t n = 1; n <= 3 * page + 2; n++) {
        folollm *f = open_model(MODEL, (folollm_options){.kv = kv, .chunk = 1 + random_below(40), .pool_tokens = 512});
        job j;
        make_job(&j, 300, n, 6, 3);
        solve(alone, &j, 3);
        uint32_t warm = (uint32_t)((n - 1) / page * page);
        CHECK(run_alone(f, &j, (folollm_submission){0}).cached_tokens == 0);
        CHECK(run_alone(f, &j, (folollm_submission){0}).cached_tokens == warm);
        CHECK(run_alone(f, &j, (folollm_submission){.cache_space = 7}).cached_tokens == 0);
        CHECK(run_alone(f, &j, (folollm_submission){.cache_space = 7}).cached_tokens == warm);
        CHECK(run_alone(f, &j, (folollm_submission){.no_prefix_cache = 1}).cached_tokens == 0);
        job other = j; /* differs in its first token: nothing of it may be found, though later pages are equal */
        other.prompt[0]++;
        solve(alone, &other, 3);
        CHECK(run_alone(f, &other, (folollm_submission){0}).cached_tokens == 0);
        if (n > page) { /* differs behind the first page */
            other = j;
            other.prompt[page]++;
            solve(alone, &other, 3);
            CHECK(run_alone(f, &other, (folollm_submission){0}).cached_tokens == page);
        }
        folollm_stats s = stats_of(f);
        CHECK((s.pages_cached > 0) == (n + j.n_tokens > page) && s.pages_used == 0);
        folollm_free(f);
        f = open_model(MODEL, (folollm_options){.kv = kv, .no_prefix_cache = 1});
        run_alone(f, &j, (folollm_submission){0});
        CHECK(run_alone(f, &j, (folollm_submission){0}).cached_tokens == 0 && stats_of(f).pages_cached == 0);
        folollm_free(f);
    }
    folollm_free(alone);
}

/* An answer's own pages serve the next turn of the conversation. */
static void test_turns(void) {
    const size_t page = FL_PAGE_TOKENS;
    folollm *alone = open_model(MODEL, (folollm_options){0}), *f = open_model(MODEL, (folollm_options){0});
    job j;
    make_job(&j, 300, 2 * page + 3, 20, 3);
    for (int turn = 0; turn < 4; turn++) {
        solve(alone, &j, 3);
        folollm_metrics m = run_alone(f, &j, (folollm_submission){0});
        CHECK(turn == 0 || m.cached_tokens >= j.n_prompt - 5 - 2 * page);
        for (uint32_t i = 0; i < j.n_tokens; i++) {
            j.prompt[j.n_prompt++] = j.tokens[i];
        }
        j.prompt[j.n_prompt++] = 5;
        j.prompt[j.n_prompt++] = 6;
    }
    folollm_free(alone);
    folollm_free(f);
}

/* Eviction takes what was unused for longest, and of one prompt the end before the beginning. */
static void test_eviction(void) {
    const size_t page = FL_PAGE_TOKENS;
    folollm *alone = open_model(SMALL, (folollm_options){0});
    folollm *f = open_model(SMALL, (folollm_options){.pool_tokens = (uint32_t)(6 * page)});
    job a, b, c;
    make_job(&a, 80, 2 * page + 1, 1, 0);
    make_job(&b, 80, 2 * page + 1, 1, 0);
    make_job(&c, 80, 2 * page + 1, 1, 0);
    a.prompt[0] = 1;
    b.prompt[0] = 2;
    c.prompt[0] = 3;
    solve(alone, &a, 0);
    solve(alone, &b, 0);
    solve(alone, &c, 0);
    run_alone(f, &a, (folollm_submission){0});
    run_alone(f, &b, (folollm_submission){0});
    CHECK(run_alone(f, &a, (folollm_submission){0}).cached_tokens == 2 * page); /* now b is older */
    run_alone(f, &c, (folollm_submission){0});
    CHECK(stats_of(f).pages_evicted == 1);
    CHECK(run_alone(f, &a, (folollm_submission){0}).cached_tokens == 2 * page);
    CHECK(run_alone(f, &b, (folollm_submission){0}).cached_tokens == page);
    folollm_free(alone);
    folollm_free(f);
}

/* ---- Several answers --------------------------------------------------------------------------------------------- */

static void test_answers(uint32_t pool_tokens, uint32_t n, uint32_t max_running, int cache_off) {
    folollm *alone = open_model(MODEL, (folollm_options){0});
    folollm *f = open_model(MODEL, (folollm_options){.pool_tokens = pool_tokens, .max_running = max_running, .chunk = 9,
                                                     .no_prefix_cache = cache_off});
    folollm_event events[JOBS_MAX];
    folollm_seq seqs[8];
    uint32_t done[8] = {0}, live = n;
    static job answers[8];
    make_job(&jobs[0], 300, 37, 20, 2);
    jobs[0].sampling.stops = NULL;
    jobs[0].sampling.n_stops = 0;
    for (uint32_t i = 0; i < n; i++) {
        answers[i] = jobs[0];
        solve(alone, &answers[i], jobs[0].sampling.seed + i);
    }
    folollm_submission s = {.prompt = jobs[0].prompt, .n_prompt = 37, .sampling = &jobs[0].sampling, .n_answers = n,
                            .n_top = FOLOLLM_TOP_MAX};
    CHECK(folollm_submit(f, &s, seqs, &error) == FOLOLLM_OK);
    uint32_t prompt_rows = 0;
    while (live > 0) {
        size_t m = JOBS_MAX;
        CHECK(folollm_step(f, NULL, events, &m, &error) == FOLOLLM_OK);
        CHECK_INVARIANTS(f);
        for (size_t i = 0; i < m; i++) {
            const folollm_event *e = &events[i];
            const job *j = &answers[e->answer];
            CHECK(e->seq == seqs[e->answer] && e->token == j->tokens[done[e->answer]]);
            CHECK(top_is_right(e, j, done[e->answer], FOLOLLM_TOP_MAX)); /* of the same step, each its own */
            done[e->answer]++;
            CHECK((e->finish != FOLOLLM_FINISH_NONE) == (done[e->answer] == j->n_tokens));
            CHECK(e->answer == 0 || e->metrics.cached_tokens == 37);
            live -= e->finish != FOLOLLM_FINISH_NONE;
        }
        prompt_rows = prompt_rows == 0 && stats_of(f).generated_tokens > 0 ? (uint32_t)stats_of(f).prompt_tokens : prompt_rows;
    }
    CHECK(prompt_rows == 37 || stats_of(f).preemptions > 0);
    CHECK(stats_of(f).pages_used == 0 && stats_of(f).requests_finished == n);
    printf("%u answers over %u tokens of pool: %u preemptions, %u pages copied\n", n, pool_tokens,
           (unsigned)stats_of(f).preemptions, (unsigned)stats_of(f).pages_copied);
    CHECK(stats_of(f).pages_copied > 0 || FL_PAGE_TOKENS == 2);
    folollm_free(alone);
    folollm_free(f);
}

/* ---- Who is served when ------------------------------------------------------------------------------------------ */

/* Steps of small budgets over long requests: how many rows each got. */
typedef struct contest {
    folollm *f;
    folollm_seq seqs[8];
    uint64_t finished_at[8]; /* call, 1 the first */
    uint32_t n_tokens[8];
    uint64_t n_calls;
} contest;

static void begin_contest(contest *c, folollm_options o) {
    memset(c, 0, sizeof *c);
    o.pool_tokens = o.pool_tokens != 0 ? o.pool_tokens : 4096;
    c->f = open_model(SMALL, o);
}

static void enter(contest *c, uint32_t i, size_t n_prompt, uint32_t n_output, folollm_submission s) {
    folollm_token prompt[96];
    folollm_sampling sampling = {.max_tokens = n_output, .ignore_eos = 1};
    for (size_t k = 0; k < n_prompt; k++) {
        prompt[k] = (folollm_token)random_below(80);
    }
    s.prompt = prompt;
    s.n_prompt = n_prompt;
    s.sampling = &sampling;
    s.tag = i;
    CHECK(folollm_submit(c->f, &s, &c->seqs[i], &error) == FOLOLLM_OK);
}

static void step_contest(contest *c, const folollm_budget *budget) {
    folollm_event events[16];
    size_t n = 16;
    CHECK(folollm_step(c->f, budget, events, &n, &error) == FOLOLLM_OK);
    CHECK_INVARIANTS(c->f);
    c->n_calls++;
    for (size_t i = 0; i < n; i++) {
        c->n_tokens[events[i].tag] += events[i].token >= 0;
        if (events[i].finish != FOLOLLM_FINISH_NONE) {
            c->finished_at[events[i].tag] = c->n_calls;
        }
    }
}

static void finish_contest(contest *c, const folollm_budget *budget) {
    folollm_stats s = stats_of(c->f);
    while (s.requests_running + s.requests_waiting > 0 && c->n_calls < 20000) {
        step_contest(c, budget);
        s = stats_of(c->f);
    }
    CHECK(c->n_calls < 20000 && s.pages_used == 0);
    folollm_free(c->f);
}

static void test_order(void) {
    contest c;
    begin_contest(&c, (folollm_options){.max_running = 1}); /* first come, first served */
    for (uint32_t i = 0; i < 4; i++) {
        enter(&c, i, 20, 5, (folollm_submission){0});
    }
    finish_contest(&c, NULL);
    CHECK(c.finished_at[0] < c.finished_at[1] && c.finished_at[1] < c.finished_at[2] && c.finished_at[2] < c.finished_at[3]);

    begin_contest(&c, (folollm_options){.max_running = 1}); /* priority, then the earlier deadline */
    enter(&c, 0, 20, 5, (folollm_submission){.priority = 5});
    enter(&c, 1, 20, 5, (folollm_submission){.priority = 1});
    enter(&c, 2, 20, 5, (folollm_submission){.priority = 1, .deadline = 2000000000});
    enter(&c, 3, 20, 5, (folollm_submission){.priority = 1, .deadline = 1000000000});
    enter(&c, 4, 20, 5, (folollm_submission){.priority = -3});
    finish_contest(&c, NULL);
    CHECK(c.finished_at[4] < c.finished_at[3] && c.finished_at[3] < c.finished_at[2]);
    CHECK(c.finished_at[2] < c.finished_at[1] && c.finished_at[1] < c.finished_at[0]);
}

/* A flow of weight 3 gets three rows for one of a flow of weight 1, however many requests each has. */
static void test_fairness(void) {
    folollm_budget four = {4, 0};
    contest c;
    uint32_t heavy = 0, light = 0;
    begin_contest(&c, (folollm_options){.max_running = 8});
    for (uint32_t i = 0; i < 8; i++) {
        enter(&c, i, 2, 80, (folollm_submission){.flow = i < 6 ? 1 : 2, .weight = i < 6 ? 1 : 3});
    }
    while (c.n_calls < 60) {
        step_contest(&c, &four);
    }
    for (uint32_t i = 0; i < 8; i++) {
        *(i < 6 ? &light : &heavy) += c.n_tokens[i];
    }
    printf("rows by weight 3 and 1: %u and %u\n", heavy, light);
    CHECK(heavy > 110 && heavy <= 2 * 60 && light > 60); /* two requests: at most two rows of a step */
    finish_contest(&c, &four);

    begin_contest(&c, (folollm_options){.max_running = 8}); /* equal weights, one flow with many */
    for (uint32_t i = 0; i < 8; i++) {
        enter(&c, i, 2, 80, (folollm_submission){.flow = i < 7 ? 1 : 2});
    }
    folollm_budget one = {1, 0};
    while (c.n_calls < 160) {
        step_contest(&c, &one);
    }
    light = 0;
    for (uint32_t i = 0; i < 7; i++) {
        light += c.n_tokens[i];
    }
    printf("rows of one request beside seven of another flow: %u and %u\n", c.n_tokens[7], light);
    CHECK(c.n_tokens[7] >= 60 && light >= 60);
    finish_contest(&c, &one);
}

/* Under a stream of better ones, and with a budget of one row, the worst goes on all the same. */
static void test_starvation(void) {
    folollm_budget one = {1, 0};
    contest c;
    begin_contest(&c, (folollm_options){.max_running = 2});
    enter(&c, 0, 10, 3, (folollm_submission){.priority = 3});
    uint32_t next = 1;
    while (c.finished_at[0] == 0 && c.n_calls < 15000) {
        folollm_stats s = stats_of(c.f);
        if (s.requests_running + s.requests_waiting < 4) {
            enter(&c, 1 + next++ % 7, 3, 9, (folollm_submission){.priority = 0});
        }
        step_contest(&c, &one);
    }
    printf("the last in order was finished after %u steps of one row, beside %u better ones\n", (unsigned)c.finished_at[0], next);
    CHECK(c.finished_at[0] > 0 && next > 20);
    finish_contest(&c, &one);

    begin_contest(&c, (folollm_options){.max_running = 4}); /* those that write do not keep a prompt out */
    for (uint32_t i = 0; i < 3; i++) {
        enter(&c, i, 1, 90, (folollm_submission){0});
    }
    for (int i = 0; i < 12; i++) {
        step_contest(&c, &one);
    }
    enter(&c, 3, 30, 1, (folollm_submission){0});
    uint64_t came = c.n_calls;
    while (c.finished_at[3] == 0 && c.n_calls < came + 300) {
        step_contest(&c, &one);
    }
    CHECK(c.finished_at[3] > 0);
    CHECK(c.n_tokens[0] > 30 && c.n_tokens[1] > 30 && c.n_tokens[2] > 30);
    finish_contest(&c, &one);
}

/* While a long prompt arrives in pieces, those that write get a token in every step. */
static void test_decodes_progress(void) {
    folollm_budget eight = {8, 0};
    contest c;
    begin_contest(&c, (folollm_options){.max_running = 8});
    for (uint32_t i = 0; i < 4; i++) {
        enter(&c, i, 2, 60, (folollm_submission){0});
    }
    while (c.n_tokens[3] == 0) {
        step_contest(&c, &eight);
    }
    enter(&c, 4, 90, 2, (folollm_submission){0});
    while (c.n_tokens[4] == 0) {
        uint32_t before[4];
        memcpy(before, c.n_tokens, sizeof before);
        step_contest(&c, &eight);
        for (uint32_t i = 0; i < 4; i++) {
            CHECK(c.n_tokens[i] == before[i] + 1);
        }
    }
    CHECK(c.n_calls > 20);
    finish_contest(&c, &eight);
}

static char log_text[1 << 18]; /* what host.log_step said, line by line */

static void keep_log(void *user, const char *text) {
    size_t at = strlen(log_text);
    (void)user;
    CHECK(strchr(text, '\n') == NULL && strncmp(text, "step ", 5) == 0);
    CHECK((size_t)snprintf(log_text + at, sizeof log_text - at, "%s\n", text) < sizeof log_text - at);
}

static void begin_log(void) {
    log_text[0] = 0;
    host_of_tests.log_step = keep_log;
}

static void end_log(void) {
    host_of_tests.log_step = NULL;
}

/* What the lines say adds up to what was counted. */
static void check_log(const folollm *f) {
    uint64_t rows = 0, found = 0, preemptions = 0, n_admitted = 0;
    const char *at = log_text;
    if (host_of_tests.log_step == NULL) {
        return;
    }
    while ((at = strpbrk(at, ";\n")) != NULL) {
        unsigned tag, answer, first, n, of;
        char word[16], more[16];
        if (*at++ == ';' && CHECK(sscanf(at, " %u/%u %15s", &tag, &answer, word) == 3 && tag < 8 && answer == 0)) {
            rows += strcmp(word, "writes") == 0;
            rows += sscanf(at, " %u/%u reads from %u: %u of %u", &tag, &answer, &first, &n, &of) == 5 ? n : 0;
            n_admitted += sscanf(at, " %u/%u admitted, %15s %u of %u", &tag, &answer, more, &n, &of) == 5;
            found += strcmp(word, "admitted,") == 0 && strcmp(more, "found") == 0 ? n : 0;
            preemptions += strcmp(word, "preempted") == 0;
        }
    }
    folollm_stats s = stats_of(f);
    CHECK(rows == s.prompt_tokens + s.generated_tokens && found == s.prefix_found_tokens);
    CHECK(preemptions == s.preemptions && n_admitted > 0);
}

/* The same history gives the same decisions; another order gives others. */
static uint64_t replay(uint64_t seed, uint32_t pool_tokens) {
    contest c;
    uint32_t n = 0;
    random_state = seed;
    begin_contest(&c, (folollm_options){.max_running = 4, .chunk = 16, .pool_tokens = pool_tokens});
    for (int i = 0; i < 150; i++) {
        if (random_below(4) == 0 && n < 40) {
            size_t n_prompt = 1 + random_below(60);
            uint32_t n_output = 1 + random_below(20);
            folollm_submission s = {.priority = (int32_t)random_below(2)};
            s.flow = random_below(3);
            enter(&c, n++ % 8, n_prompt, n_output, s);
        }
        if (random_below(10) == 0) {
            folollm_cancel(c.f, c.seqs[random_below(8)], NULL);
        }
        step_contest(&c, &(folollm_budget){1 + random_below(20), 0});
    }
    uint64_t hash = stats_of(c.f).schedule_hash;
    CHECK(stats_of(c.f).preemptions > 0);
    check_log(c.f);
    finish_contest(&c, NULL);
    return hash;
}

/* The same submissions give the same choices, in words too; being asked for words changes none. */
static void test_replay(void) {
    static char first[sizeof log_text];
    for (uint64_t seed = 1; seed < 6; seed++) {
        log_text[0] = 0;
        uint64_t hash = replay(seed, 100);
        CHECK(log_text[0] == 0);
        begin_log();
        CHECK(hash != 0 && replay(seed, 100) == hash);
        strcpy(first, log_text);
        begin_log();
        CHECK(replay(seed, 100) == hash && strcmp(first, log_text) == 0);
        begin_log();
        CHECK(replay(seed + 100, 100) != hash && strcmp(first, log_text) != 0);
        end_log();
    }
}

/* Word for word: a follower, a prefix that is found, a pool that is full, and a sequence of the host that holds it. */
static void test_log(void) {
    static const char expected[] =
        "step 1: up to 40 rows, 0 of 2 run, 2 wait, 4 pages free, 0 of them cached; 7/0 admitted, found 0 of 18; "
        "7/0 reads from 0: 18 of 18\n"
        "step 2: up to 40 rows, 1 of 2 run, 1 wait, 2 pages free, 0 of them cached; 7/0 writes at 18; "
        "7/1 admitted, holds 18 of 19; 7/1 writes at 18\n"
        "step 4: up to 40 rows, 0 of 2 run, 1 wait, 4 pages free, 1 of them cached; 18446744073709551615/0 admitted, "
        "found 16 of 18; 18446744073709551615/0 reads from 16: 2 of 2\n"
        "step 6: up to 40 rows, 0 of 2 run, 1 wait, 0 pages free, 0 of them cached; 9/0 waits: 1 pages wanted, 0 free, "
        "0 promised\n";
    folollm_token prompt[64] = {1, 2, 3};
    folollm_seq seqs[2], own;
    folollm_sampling two = {.max_tokens = 2, .ignore_eos = 1}, one = {.max_tokens = 1, .ignore_eos = 1};
    folollm_submission a = {.prompt = prompt, .n_prompt = 18, .n_answers = 2, .sampling = &two, .tag = 7};
    folollm_submission b = {.prompt = prompt, .n_prompt = 18, .sampling = &one, .tag = UINT64_MAX, .priority = 1};
    folollm_submission c = {.prompt = prompt, .n_prompt = 3, .tag = 9};
    folollm_options o = {.pool_tokens = 64, .max_running = 2, .max_requests = 3, .chunk = 40};
    folollm_event events[3];
    size_t n;
    if (FL_PAGE_TOKENS != 16) {
        return;
    }
    begin_log();
    folollm *f = open_model(SMALL, o);
    CHECK(folollm_submit(f, &a, seqs, &error) == FOLOLLM_OK);
    for (int i = 0; i < 5; i++) { /* the third has nothing to do: no line */
        n = 3;
        CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK);
        CHECK(i != 2 || folollm_submit(f, &b, seqs, &error) == FOLOLLM_OK);
    }
    CHECK(folollm_seq_open(f, NULL, &own, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, own, prompt, 64, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_submit(f, &c, seqs, &error) == FOLOLLM_OK);
    n = 3;
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_E_POOL);
    folollm_free(f);
    end_log();
    if (!CHECK(strcmp(log_text, expected) == 0)) {
        printf("%s", log_text);
    }
}

/* Who does not ask pays nothing; who does has it in the plan. */
static void test_log_memory(void) {
    folollm_options o = {.host = &host_of_tests, .n_threads = 1};
    folollm_memory without, with;
    CHECK(folollm_plan(SMALL, &o, &without, &error) == FOLOLLM_OK);
    begin_log();
    CHECK(folollm_plan(SMALL, &o, &with, &error) == FOLOLLM_OK);
    end_log();
    CHECK(with.sequences > without.sequences && with.sequences - without.sequences < 64 * 1024);
    CHECK(with.allocated - without.allocated == with.sequences - without.sequences);
}

/* ---- Cancels and deadlines --------------------------------------------------------------------------------------- */

/* The third of five is cancelled at the n-th reading of the clock, for every n: between any two ops, in a step and
 * between steps. It ends with what it had; nobody else notices. */
static void test_cancel_everywhere(void) {
    uint64_t n_hits = 0, n_reads = 1;
    make_jobs(SMALL, 5, 40, 6, FOLOLLM_KV_F16);
    for (uint64_t at = 1; at <= n_reads; at++) {
        folollm *f = open_model(SMALL, (folollm_options){.chunk = 16, .pool_tokens = 600});
        folollm_budget budget = {0, 30};
        run r;
        begin_run(&r, f, jobs, 5);
        clock_of_tests = (ticker){.step = 3, .engine = f};
        for (size_t i = 0; i < 5; i++) {
            submit_job(&r, i, (folollm_submission){0});
        }
        clock_of_tests.n_reads = 0;
        clock_of_tests.act_at = at;
        clock_of_tests.target = r.seqs[2];
        bool over = false;
        while (r.n_live > 0) {
            folollm_event events[8];
            size_t n = 8;
            CHECK(folollm_step(f, &budget, events, &n, &error) == FOLOLLM_OK);
            CHECK_INVARIANTS(f);
            for (size_t i = 0; i < n; i++) {
                if (events[i].tag != 2 || events[i].finish != FOLOLLM_FINISH_CANCELLED) {
                    take_event(&r, &events[i]);
                    over = over || (events[i].tag == 2 && events[i].finish != FOLOLLM_FINISH_NONE);
                    clock_of_tests.act_at = over ? 0 : clock_of_tests.act_at;
                    continue;
                }
                CHECK(events[i].status == FOLOLLM_E_CANCELLED);
                uint32_t k = r.n_done[2] + (events[i].token >= 0);
                CHECK(k <= jobs[2].n_tokens && (events[i].token < 0 || events[i].token == jobs[2].tokens[k - 1]));
                r.n_live--;
                n_hits++;
                CHECK(f->driver.running || folollm_cancel(f, r.seqs[2], &error) == FOLOLLM_E_SEQUENCE);
            }
        }
        n_reads = over ? clock_of_tests.n_reads : n_reads + 1;
        CHECK(r.n_wrong == 0 && stats_of(f).pages_used == 0);
        for (size_t i = 0; i < 5; i++) {
            CHECK(i == 2 || r.n_done[i] == jobs[i].n_tokens);
        }
        folollm_free(f);
        if (over) {
            break;
        }
    }
    clock_of_tests = (ticker){0};
    printf("cancelled at %u check-points\n", (unsigned)n_hits);
    CHECK(n_hits > 100);
}

/* The same in the host's own calls, with the loop over tasks as the place to act. */
typedef struct interrupter {
    uint64_t n_loops, act_at;
    folollm *engine;
    folollm_seq target;
} interrupter;

static void run_and_interrupt(void *user, size_t n, void (*task)(void *context, size_t i), void *context) {
    interrupter *in = user;
    for (size_t i = 0; i < n; i++) {
        task(context, i);
    }
    if (++in->n_loops == in->act_at) {
        CHECK(folollm_cancel(in->engine, in->target, NULL) == FOLOLLM_OK);
    }
}

static void test_cancel_own_calls(void) {
    interrupter in = {0};
    folollm_host host = {.user = &in, .parallel_for = run_and_interrupt};
    folollm_options o = {.host = &host, .n_threads = 2, .chunk = 8, .pool_tokens = 400};
    folollm *f = NULL;
    folollm_token prompt[40];
    folollm_seq seqs[2];
    uint64_t clean[2] = {0}, n_cancelled = 0;
    CHECK(folollm_load(SMALL, &o, &f, &error) == FOLOLLM_OK);
    in.engine = f;
    uint32_t vocab = vocab_of(f);
    for (size_t i = 0; i < 40; i++) {
        prompt[i] = (folollm_token)(i * 3 % 80);
    }
    for (uint64_t at = 0; at < 400; at++) { /* 0: never */
        const float *logits = NULL;
        folollm_token next[2] = {4, 5};
        bool hit = false;
        for (size_t i = 0; i < 2; i++) {
            CHECK(folollm_seq_open(f, NULL, &seqs[i], &error) == FOLOLLM_OK);
        }
        in.target = seqs[1];
        in.n_loops = 0;
        in.act_at = at;
        for (size_t i = 0; i < 2; i++) {
            size_t length = 1;
            folollm_status status = folollm_prefill(f, seqs[i], prompt, 30 + i, NULL, &error);
            if (status != FOLOLLM_OK) {
                CHECK(status == FOLOLLM_E_CANCELLED && i == 1 && !hit);
                CHECK(folollm_seq_tokens(f, seqs[i], NULL, &length, &error) == FOLOLLM_OK && length == 0);
                hit = true;
                CHECK(folollm_prefill(f, seqs[i], prompt, 30 + i, NULL, &error) == FOLOLLM_OK);
            }
        }
        folollm_status status = folollm_decode_step(f, seqs, next, 2, &error);
        if (status != FOLOLLM_OK) {
            CHECK(status == FOLOLLM_E_CANCELLED && !hit);
            hit = true;
            CHECK(folollm_decode_step(f, seqs, next, 2, &error) == FOLOLLM_OK);
        }
        n_cancelled += hit;
        for (size_t i = 0; i < 2; i++) {
            CHECK(folollm_logits(f, seqs[i], &logits, &error) == FOLOLLM_OK);
            uint64_t digest = logits != NULL ? digest_of(logits, vocab * sizeof *logits) : 0;
            clean[i] = at == 0 ? digest : clean[i];
            CHECK(digest == clean[i]);
            CHECK(folollm_seq_close(f, seqs[i], &error) == FOLOLLM_OK);
        }
        CHECK_INVARIANTS(f);
        if (at > 0 && in.n_loops < at) {
            break;
        }
    }
    printf("own calls cancelled at %u places\n", (unsigned)n_cancelled);
    CHECK(n_cancelled > 30);
    folollm_free(f);
}

static void test_deadlines(void) {
    folollm *f = open_model(SMALL, (folollm_options){.max_running = 2});
    contest c = {.f = f};
    clock_of_tests = (ticker){.step = 1};
    enter(&c, 0, 10, 80, (folollm_submission){.deadline = 700}); /* while it writes */
    enter(&c, 1, 10, 20, (folollm_submission){0});
    enter(&c, 2, 10, 20, (folollm_submission){.priority = 1, .deadline = 5}); /* while it waits */
    folollm_event events[8];
    unsigned n_over = 0, n_late = 0;
    while (n_over < 3) {
        size_t n = 8;
        CHECK(folollm_step(f, &(folollm_budget){0, 1000000}, events, &n, &error) == FOLOLLM_OK);
        for (size_t i = 0; i < n; i++) {
            n_over += events[i].finish != FOLOLLM_FINISH_NONE;
            if (events[i].finish == FOLOLLM_FINISH_DEADLINE) {
                CHECK(events[i].status == FOLOLLM_OK && (events[i].tag == 0 || events[i].tag == 2));
                CHECK(events[i].tag == 2 ? events[i].metrics.output_tokens == 0 : events[i].metrics.output_tokens > 1);
                n_late++;
            }
        }
    }
    CHECK(n_late == 2 && stats_of(f).pages_used == 0);
    clock_of_tests = (ticker){0};
    folollm_free(f);
}

/* ---- Beside the host's own loop ---------------------------------------------------------------------------------- */

/* Own sequences are filled and stepped between the slices of a step, over the same pool. */
static void test_beside_own_loop(void) {
    folollm *f = open_model(MODEL, (folollm_options){.pool_tokens = 2048, .chunk = 32, .n_threads = 2});
    folollm *alone = open_model(MODEL, (folollm_options){0});
    folollm_seq seq = 0;
    folollm_sampled sampled;
    job own;
    run r;
    make_jobs(MODEL, 12, 60, 20, FOLOLLM_KV_F16);
    make_job(&own, 300, 30, 40, 3);
    own.sampling.min_tokens = 40;
    solve(alone, &own, 3);
    begin_run(&r, f, jobs, 12);
    r.logits_stay = false;
    clock_of_tests = (ticker){.step = 2};
    for (size_t i = 0; i < 12; i++) {
        submit_job(&r, i, (folollm_submission){0});
    }
    CHECK(folollm_seq_open(f, &own.sampling, &seq, &error) == FOLOLLM_OK);
    uint32_t n = 0;
    bool resting = false;
    while (r.n_live > 0) {
        step_run(&r, &(folollm_budget){0, 40}, JOBS_MAX);
        resting = resting || f->driver.running;
        if (random_below(4) != 0 || n == own.n_tokens) {
            continue;
        }
        CHECK(n == 0 ? folollm_prefill(f, seq, own.prompt, own.n_prompt, NULL, &error) == FOLOLLM_OK
                     : folollm_decode_step(f, &seq, &own.tokens[n - 1], 1, &error) == FOLOLLM_OK);
        CHECK(!f->driver.running);
        CHECK(folollm_sample(f, seq, &sampled, NULL, 0, &error) == FOLOLLM_OK && sampled.token == own.tokens[n]);
        n++;
        CHECK_INVARIANTS(f);
    }
    CHECK(n > 5 && resting);
    CHECK(folollm_seq_close(f, seq, &error) == FOLOLLM_OK);
    check_run(&r);
    clock_of_tests = (ticker){0};
    folollm_free(f);
    folollm_free(alone);
}

/* Own sequences hold the pool: requests wait, the status says so, and all goes on when they let go. */
static void test_pool_held(void) {
    const uint32_t page = FL_PAGE_TOKENS;
    folollm *f = open_model(SMALL, (folollm_options){.pool_tokens = 4 * page, .context = 4 * page < 90 ? 4 * page : 90});
    folollm_token prompt[96] = {1, 2, 3};
    folollm_event events[4];
    folollm_seq seq, held;
    size_t n = 4;
    folollm_sampling sampling = {.max_tokens = 2 * page, .ignore_eos = 1};
    folollm_submission s = {.prompt = prompt, .n_prompt = page, .sampling = &sampling};
    CHECK(folollm_seq_open(f, NULL, &held, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, held, prompt, 2 * page, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_submit(f, &s, &seq, &error) == FOLOLLM_OK);
    folollm_status status;
    uint32_t n_tokens = 0;
    while ((status = folollm_step(f, NULL, events, &n, &error)) == FOLOLLM_OK && n_tokens < 100) {
        n_tokens += n > 0;
        n = 4;
    }
    CHECK(status == FOLOLLM_E_POOL && n_tokens == page + 1 && strstr(error.text, "own loop") != NULL);
    CHECK_INVARIANTS(f);
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_E_POOL);
    CHECK(folollm_seq_close(f, held, &error) == FOLOLLM_OK);
    for (folollm_finish finish = FOLOLLM_FINISH_NONE; finish == FOLOLLM_FINISH_NONE;) {
        n = 4;
        CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK && n == 1);
        finish = events[0].finish;
        n_tokens++;
    }
    CHECK(n_tokens == 2 * page && stats_of(f).pages_used == 0);
    folollm_free(f);
}

/* An answer that waits with the pages of its prompt, first in order, does not stop one that runs. */
static void test_pool_waited_for(void) {
    const uint32_t page = FL_PAGE_TOKENS;
    contest c;
    begin_contest(&c, (folollm_options){.pool_tokens = 7 * page});
    enter(&c, 0, 2 * page, 2 * page, (folollm_submission){.priority = 5});
    while (c.n_tokens[0] < page) { /* until it is about to need a fourth page */
        step_contest(&c, NULL);
    }
    folollm_seq two[2];
    folollm_token prompt[96] = {1, 2, 3};
    folollm_submission s = {.prompt = prompt, .n_prompt = 4 * page - 4, .n_answers = 2, .tag = 2};
    s.sampling = &(folollm_sampling){.max_tokens = 9, .ignore_eos = 1};
    CHECK(folollm_submit(c.f, &s, two, &error) == FOLOLLM_OK);
    while (c.n_tokens[2] < 2) { /* the first of both */
        step_contest(&c, NULL);
    }
    CHECK(folollm_cancel(c.f, two[0], &error) == FOLOLLM_OK);
    finish_contest(&c, NULL);
    CHECK(c.n_tokens[0] == 2 * page && c.n_tokens[2] >= 10);
}

/* A request that grows to the whole pool ends there, as at the end of a context. */
static void test_pool_as_limit(void) {
    const uint32_t page = FL_PAGE_TOKENS;
    folollm *f = open_model(SMALL, (folollm_options){.pool_tokens = 2 * page});
    contest c = {.f = f};
    enter(&c, 0, page, 0, (folollm_submission){0});
    finish_contest(&c, NULL);
    CHECK(c.n_tokens[0] == page);
}

/* A forward pass may have more rows than a sequence has room for: those of several prompts. */
static void test_chunk_above_context(void) {
    enum { N = 4, LENGTH = 30 };
    folollm_options o = {.context = LENGTH + 2, .pool_tokens = 400, .chunk = N * LENGTH, .no_prefix_cache = 1};
    folollm *f = open_model(SMALL, o);
    folollm_token prompts[N][LENGTH];
    folollm_event events[N];
    folollm_info info;
    size_t n = N;
    folollm_get_info(f, &info);
    CHECK(info.chunk == N * LENGTH);
    for (uint64_t i = 0; i < N; i++) {
        folollm_sampling sampling = {.max_tokens = 1, .ignore_eos = 1};
        folollm_submission s = {.prompt = prompts[i], .n_prompt = LENGTH, .sampling = &sampling, .tag = i};
        folollm_seq seq;
        for (size_t k = 0; k < LENGTH; k++) {
            prompts[i][k] = (folollm_token)random_below(info.vocab);
        }
        CHECK(folollm_submit(f, &s, &seq, &error) == FOLOLLM_OK);
    }
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK && n == N);
    CHECK(stats_of(f).forwards == 1 && stats_of(f).prompt_tokens == N * LENGTH);
    for (size_t i = 0; i < n; i++) {
        folollm_sampled alone;
        folollm_seq seq;
        CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seq, prompts[events[i].tag], LENGTH, NULL, &error) == FOLOLLM_OK);
        CHECK(folollm_sample(f, seq, &alone, NULL, 0, &error) == FOLOLLM_OK);
        CHECK(alone.token == events[i].token && memcmp(&alone.chosen, &events[i].chosen, sizeof alone.chosen) == 0);
        CHECK(folollm_seq_close(f, seq, &error) == FOLOLLM_OK);
    }
    folollm_free(f);
}

/* ---- Numbers that are none --------------------------------------------------------------------------------------- */

static void test_numeric(void) {
    test_host h;
    folollm *f = NULL;
    fl_memory m;
    fl_tensors t;
    uint16_t nan = 0x7E00;
    run r;
    make_jobs(SMALL, 6, 30, 8, FOLOLLM_KV_F16);
    for (size_t i = 0; i < 6; i++) { /* nobody uses the token that is going to be damaged */
        for (size_t k = 0; k < jobs[i].n_prompt; k++) {
            jobs[i].prompt[k] = jobs[i].prompt[k] == 40 ? 41 : jobs[i].prompt[k];
        }
    }
    folollm *alone = open_model(SMALL, (folollm_options){0});
    for (size_t i = 0; i < 6; i++) {
        static const folollm_bias never = {40, -INFINITY};
        jobs[i].sampling.biases = &never;
        jobs[i].sampling.n_biases = 1;
        solve(alone, &jobs[i], jobs[i].sampling.seed);
    }
    folollm_free(alone);
    host_init(&h, true);
    CHECK(host_put_directory(&h, SMALL));
    fl_memory_init(&m, &h.hooks);
    CHECK(fl_tensors_open(&m, &t, "mem", NULL, &error) == FOLOLLM_OK);
    const fl_tensor *embedding = fl_tensors_find(&t, fl_str_of("model.embed_tokens.weight"));
    memcpy(host_find(&h, "model.safetensors")->bytes + embedding->offset + 40 * 20 * sizeof nan, &nan, sizeof nan);
    fl_tensors_close(&t);
    CHECK(folollm_load("mem", &(folollm_options){.host = &h.hooks, .n_threads = 1, .chunk = 16}, &f, &error) == FOLOLLM_OK);
    begin_run(&r, f, jobs, 6);
    for (size_t i = 0; i < 6; i++) {
        submit_job(&r, i, (folollm_submission){0});
    }
    folollm_token bad[20] = {1, 2, 40, 3};
    folollm_seq seqs[2];
    folollm_submission s = {.prompt = bad, .n_prompt = 20, .n_answers = 2, .tag = 99};
    CHECK(folollm_submit(f, &s, seqs, &error) == FOLOLLM_OK);
    unsigned n_bad = 0;
    while (r.n_live > 0 || n_bad < 2) {
        folollm_event events[16];
        size_t n = 16;
        CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK);
        CHECK_INVARIANTS(f);
        for (size_t i = 0; i < n; i++) {
            if (events[i].tag != 99) {
                take_event(&r, &events[i]);
                continue;
            }
            CHECK(events[i].finish == FOLOLLM_FINISH_ERROR && events[i].status == FOLOLLM_E_NUMERIC &&
                  events[i].token == -1);
            n_bad++;
        }
    }
    check_run(&r);
    folollm_free(f);
    host_free(&h);
}

/* ---- Misuse ------------------------------------------------------------------------------------------------------ */

static void test_misuse(void) {
    folollm_options o = {.host = &(folollm_host){0}, .n_threads = 1, .max_requests = 4, .pool_tokens = 64};
    folollm *f = NULL; /* without a clock */
    folollm_token prompt[97] = {1, 2, 3}, bad[2] = {1, 80};
    folollm_seq seqs[8] = {77}, seq = 0, own = 0;
    folollm_event events[8];
    folollm_sampled sampled;
    const float *logits = NULL;
    size_t n = 8, zero = 0;
    folollm_submission good = {.prompt = prompt, .n_prompt = 3};
    CHECK(folollm_load(SMALL, &o, &f, &error) == FOLOLLM_OK);
#define REFUSED(status_, ...)                                                                               \
    do {                                                                                                    \
        folollm_submission s_ = {__VA_ARGS__};                                                              \
        memset(&error, 0, sizeof error);                                                                    \
        CHECK(folollm_submit(f, &s_, seqs, &error) == (status_) && error.status == (status_) && error.text[0] != 0); \
        CHECK(seqs[0] == 77 && stats_of(f).requests_waiting == 0);                                          \
    } while (0)
    REFUSED(FOLOLLM_E_ARGUMENT, .n_prompt = 3);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt);
    REFUSED(FOLOLLM_E_ARGUMENT, .struct_size = 8, .prompt = prompt, .n_prompt = 3);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = bad, .n_prompt = 2);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3, .weight = 1001);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3, .n_answers = 5);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3, .n_top = FOLOLLM_TOP_MAX + 1);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3, .n_top = UINT32_MAX);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3, .deadline = 5);
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3, .sampling = &(folollm_sampling){.top_p = 2});
    REFUSED(FOLOLLM_E_ARGUMENT, .prompt = prompt, .n_prompt = 3,
            .sampling = &(folollm_sampling){.min_tokens = 3, .max_tokens = 2});
    REFUSED(FOLOLLM_E_CONTEXT, .prompt = prompt, .n_prompt = 97);
    CHECK(strstr(error.text, "97") != NULL && strstr(error.text, "96") != NULL);
    REFUSED(FOLOLLM_E_CONTEXT, .prompt = prompt, .n_prompt = SIZE_MAX);
    REFUSED(FOLOLLM_E_POOL, .prompt = prompt, .n_prompt = 65);
    CHECK(strstr(error.text, "65") != NULL && strstr(error.text, "64") != NULL);
    CHECK(folollm_submit(f, NULL, seqs, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_submit(f, &good, NULL, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_submit(NULL, &good, seqs, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_step(f, NULL, NULL, &n, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_step(f, NULL, events, NULL, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_step(f, NULL, events, &zero, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_step(NULL, NULL, events, &n, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_step(f, &(folollm_budget){0, 0}, events, &n, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_step(f, &(folollm_budget){0, 5}, events, &n, &error) == FOLOLLM_E_ARGUMENT); /* no clock */
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK && n == 0); /* nothing to do */
    n = 8;
    CHECK(folollm_cancel(f, 0, &error) == FOLOLLM_E_SEQUENCE && folollm_cancel(f, UINT32_MAX, &error) == FOLOLLM_E_SEQUENCE);
    CHECK(folollm_cancel(NULL, 1, &error) == FOLOLLM_E_ARGUMENT);

    for (int i = 0; i < 4; i++) {
        CHECK(folollm_submit(f, &good, &seqs[i], &error) == FOLOLLM_OK);
    }
    CHECK(folollm_submit(f, &good, &seq, &error) == FOLOLLM_E_POOL && seq == 0);
    CHECK(strstr(error.text, "max_requests") != NULL);
    good.n_answers = 2;
    CHECK(folollm_cancel(f, seqs[0], &error) == FOLOLLM_OK && folollm_cancel(f, seqs[0], &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK && n == 1 && events[0].seq == seqs[0]);
    CHECK(events[0].finish == FOLOLLM_FINISH_CANCELLED && events[0].metrics.output_tokens == 0);
    CHECK(folollm_submit(f, &good, seqs + 4, &error) == FOLOLLM_E_POOL); /* one is free, two are asked for */
    CHECK(folollm_cancel(f, seqs[0], &error) == FOLOLLM_E_SEQUENCE); /* finished */

    CHECK(folollm_prefill(f, seqs[1], prompt, 1, NULL, &error) == FOLOLLM_E_STATE); /* driven */
    CHECK(folollm_decode_step(f, &seqs[1], prompt, 1, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_truncate(f, seqs[1], 0, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_fork(f, seqs[1], NULL, &own, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_close(f, seqs[1], &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_save(f, seqs[1], NULL, &zero, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_sample(f, seqs[1], &sampled, NULL, 0, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_logits(f, seqs[1], &logits, &error) == FOLOLLM_E_STATE);
    n = 8;
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK && n == 3);
    size_t length = 97;
    folollm_token tokens[97];
    CHECK(folollm_seq_tokens(f, seqs[1], tokens, &length, &error) == FOLOLLM_OK && length == 3 &&
          memcmp(tokens, prompt, 3 * sizeof *tokens) == 0);
    CHECK_INVARIANTS(f);
    folollm_free(f); /* with requests open */
    CHECK(folollm_load(MODEL, &(folollm_options){.tokenizer_only = 1}, &f, &error) == FOLOLLM_OK);
    CHECK(folollm_submit(f, &good, seqs, &error) == FOLOLLM_E_STATE && folollm_step(f, NULL, events, &n, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_cancel(f, 1, &error) == FOLOLLM_E_STATE);
    folollm_free(f);
}

/* Events without a token have no likely ones; one that ends while it waits to be handed out keeps its own; a request
 * that takes the place of one that wanted them gets none. */
static void test_top_of_ends(void) {
    folollm *f = open_model(SMALL, (folollm_options){.max_requests = 2, .max_seqs = 1});
    folollm_token prompt[3] = {1, 2, 3};
    folollm_logprob top[FOLOLLM_TOP_MAX];
    folollm_sampled next;
    folollm_event e;
    folollm_seq seqs[2], seq;
    size_t n = 1;
    CHECK(folollm_seq_open(f, NULL, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, prompt, 3, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_sample(f, seq, &next, top, FOLOLLM_TOP_MAX, &error) == FOLOLLM_OK);
    CHECK(top[0].token == next.token && memcmp(&top[0], &next.chosen, sizeof top[0]) == 0);
    folollm_submission s = {.prompt = prompt, .n_prompt = 3, .n_answers = 2, .n_top = 5};
    CHECK(folollm_submit(f, &s, seqs, &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, &e, &n, &error) == FOLOLLM_OK && n == 1 && e.seq == seqs[0] && e.n_top == 5);
    CHECK(folollm_cancel(f, seqs[0], &error) == FOLOLLM_OK && folollm_cancel(f, seqs[1], &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, &e, &n, &error) == FOLOLLM_OK && n == 1 && e.seq == seqs[0]);
    CHECK(e.finish == FOLOLLM_FINISH_CANCELLED && e.token == -1 && e.n_top == 0 && e.top == NULL);
    CHECK(folollm_step(f, NULL, &e, &n, &error) == FOLOLLM_OK && n == 1 && e.seq == seqs[1]);
    CHECK(e.finish == FOLOLLM_FINISH_CANCELLED && e.token == next.token && e.n_top == 5);
    CHECK(memcmp(e.top, top, 5 * sizeof *top) == 0);
    s.n_answers = 1;
    s.n_top = 0;
    CHECK(folollm_submit(f, &s, seqs, &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, &e, &n, &error) == FOLOLLM_OK && n == 1 && e.token >= 0);
    CHECK(e.n_top == 0 && e.top == NULL);
    folollm_free(f);
}

/* Biases that ban everything end a request, and it alone. */
static void test_banned(void) {
    folollm *f = open_model(SMALL, (folollm_options){0});
    folollm_bias all[80];
    folollm_token prompt[3] = {1, 2, 3};
    folollm_event events[4];
    folollm_seq seq;
    size_t n = 4;
    for (int i = 0; i < 80; i++) {
        all[i] = (folollm_bias){i, -INFINITY};
    }
    folollm_submission s = {.prompt = prompt, .n_prompt = 3, .sampling = &(folollm_sampling){.biases = all, .n_biases = 80}};
    CHECK(folollm_submit(f, &s, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_step(f, NULL, events, &n, &error) == FOLOLLM_OK && n == 1);
    CHECK(events[0].finish == FOLOLLM_FINISH_ERROR && events[0].status == FOLOLLM_E_STATE && events[0].token == -1);
    CHECK(stats_of(f).pages_used == 0);
    folollm_free(f);
}

int main(void) {
    test_matrix(FOLOLLM_KV_F16);
    test_matrix(FOLOLLM_KV_Q8);
    test_prefix(FOLOLLM_KV_F16);
    test_prefix(FOLOLLM_KV_Q4);
    test_turns();
    test_eviction();
    test_answers(4096, 6, 8, 0);
    test_answers(4096, 6, 8, 1);
    test_answers(4096, 8, 3, 0);
    test_answers(96, 6, 8, 0);
    test_order();
    test_fairness();
    test_starvation();
    test_decodes_progress();
    test_replay();
    test_log();
    test_log_memory();
    test_cancel_everywhere();
    test_cancel_own_calls();
    test_deadlines();
    test_beside_own_loop();
    test_pool_held();
    test_pool_waited_for();
    test_pool_as_limit();
    test_chunk_above_context();
    test_numeric();
    test_banned();
    test_top_of_ends();
    test_misuse();
    return check_finish();
}
