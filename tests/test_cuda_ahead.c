/* Steps that a device begins before the tokens in front of them are known: answers stay those of the CPU whatever
 * ends, comes, or gets in the way meanwhile, and nothing of a step that was begun in vain is left. Linked as
 * test_cuda_bits. */
#include "inside.h"

#include "check.h"
#include "demand.h"
#include "invariants.h"
#include "random.h"

#define MODEL "tests/vectors/models/qwen3-gqa-fp32"
#define ADAPTER "tests/vectors/adapters/all"
#define KINDS 48 /* of submissions */
#define TOKENS 24
#define PROMPT 20
#define TEXT 512
#define LIVE 12

typedef struct kind {
    folollm_token prompt[PROMPT];
    size_t n_prompt;
    folollm_sampling sampling;
    folollm_token stops[2];
    uint32_t n_answers;
    bool adapts;
} kind;

typedef struct answer {
    folollm_token tokens[TOKENS];
    folollm_logprob chosen[TOKENS];
    size_t n_tokens, n_bytes;
    char text[TEXT];
    folollm_finish finish;
} answer;

#define ANSWERS 2 /* of one submission, at most */

static kind kinds[KINDS];
static answer expected[KINDS][ANSWERS], got[KINDS][ANSWERS];
static folollm_adapter adapter; /* of the engine at hand */
static uint64_t now;

static uint64_t ticks(void *user) {
    (void)user;
    return now += 40;
}

static folollm *open_engine(uint32_t on_device, uint32_t pool_tokens, uint32_t max_running) {
    static const folollm_host host = {.clock = ticks};
    folollm_options o = {.host = &host, .device = on_device, .context = 96, .pool_tokens = pool_tokens, .chunk = 24,
                         .n_threads = 1, .max_requests = LIVE, .max_running = max_running};
    folollm *f = NULL;
    demand(folollm_load(MODEL, &o, &f, &error));
    demand(folollm_adapter_load(f, ADAPTER, 1, &adapter, &error));
    return f;
}

/* Some end by a token that nobody foresees, some where everybody knows; one in 16 has a penalty, which keeps the
 * choice on the host. */
static void make_kinds(uint32_t vocab) {
    for (uint32_t i = 0; i < KINDS; i++) {
        kind *k = &kinds[i];
        k->n_prompt = 1 + random_below(PROMPT);
        for (size_t t = 0; t < k->n_prompt; t++) {
            k->prompt[t] = (folollm_token)random_below(vocab);
        }
        k->n_answers = random_below(4) == 0 ? 2 : 1;
        k->adapts = random_below(4) == 0;
        k->stops[0] = (folollm_token)random_below(vocab);
        k->stops[1] = (folollm_token)random_below(vocab);
        k->sampling.ignore_eos = 1;
        k->sampling.seed = i;
        k->sampling.temperature = random_below(3) == 0 ? 0 : 1.2f;
        k->sampling.max_tokens = 1 + random_below(TOKENS);
        k->sampling.stop_ids = k->stops;
        k->sampling.n_stop_ids = i % 3 == 0 ? 0 : 2;
        k->sampling.repetition_penalty = random_below(16) == 0 ? 1.1f : 0;
    }
}

static void submit(folollm *f, uint32_t i, folollm_seq seqs[ANSWERS]) {
    const kind *k = &kinds[i];
    folollm_submission s = {.prompt = k->prompt, .n_prompt = k->n_prompt, .sampling = &k->sampling, .tag = i,
                            .n_answers = k->n_answers, .adapter = k->adapts ? adapter : 0};
    demand(folollm_submit(f, &s, seqs, &error));
}

/* Returns how many answers ended. */
static size_t take(answer out[KINDS][ANSWERS], const folollm_event *events, size_t n) {
    size_t n_ended = 0;
    for (size_t i = 0; i < n; i++) {
        const folollm_event *e = &events[i];
        answer *a = &out[e->tag][e->answer];
        if (e->token >= 0) {
            CHECK(a->n_tokens < TOKENS);
            a->tokens[a->n_tokens] = e->token;
            a->chosen[a->n_tokens++] = e->chosen;
        }
        CHECK(a->n_bytes + e->n_bytes < TEXT);
        memcpy(a->text + a->n_bytes, e->text, e->n_bytes);
        a->n_bytes += e->n_bytes;
        a->finish = e->finish;
        n_ended += e->finish != FOLOLLM_FINISH_NONE;
    }
    return n_ended;
}

static void write_expected(void) {
    folollm *f = open_engine(0, 2048, 4);
    folollm_info info;
    folollm_get_info(f, &info);
    make_kinds(info.vocab);
    for (uint32_t i = 0; i < KINDS; i++) {
        folollm_seq seqs[ANSWERS];
        folollm_event events[ANSWERS];
        submit(f, i, seqs);
        for (size_t n_ended = 0; n_ended < kinds[i].n_answers;) {
            size_t n = ANSWERS;
            demand(folollm_step(f, NULL, events, &n, &error));
            n_ended += take(expected, events, n);
        }
    }
    folollm_free(f);
}

/* The host's own sequence in between, which needs what runs to be over. */
static void own_call(folollm *f) {
    static const folollm_token ids[] = {5, 6, 7};
    folollm_seq seq;
    demand(folollm_seq_open(f, NULL, &seq, &error));
    folollm_status status = folollm_prefill(f, seq, ids, 1 + random_below(3), NULL, &error);
    CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_POOL);
    CHECK(f->driver.ahead.n == 0);
    demand(folollm_seq_close(f, seq, &error));
}

static folollm_budget random_budget(void) {
    static const folollm_budget some[] = {{0, 150}, {2, 0}, {5, 0}, {0, 4000}};
    folollm_budget whole = {24, 0};
    return random_below(10) == 0 ? some[random_below(FL_COUNT(some))] : whole;
}

typedef struct counts {
    size_t ended, cancelled, dropped, in_vain, rows_in_vain, late;
} counts;

/* What a step is that was begun: rows of answers that are over count as in vain. */
static void look(const folollm *f, counts *c) {
    const fl_ahead *a = &f->driver.ahead;
    size_t n_vain = 0;
    for (uint32_t i = 0; i < a->n; i++) {
        n_vain += fl_scheduler_find(&f->driver.scheduler, &a->placed[i]) == NULL;
    }
    c->rows_in_vain += n_vain;
    c->in_vain += n_vain > 0 && n_vain == a->n;
}

/* All of them in a random order, a few at a time. */
static void run(folollm *f, bool disturbed, counts *c) {
    static bool cancelled[KINDS];
    folollm_seq seqs[KINDS][ANSWERS];
    folollm_event events[LIVE];
    uint32_t next = 0;
    size_t live = 0;
    memset(got, 0, sizeof got);
    memset(cancelled, 0, sizeof cancelled);
    for (int calls = 0; (next < KINDS || live > 0) && calls < 20000; calls++) {
        while (next < KINDS && live + ANSWERS <= LIVE && random_below(disturbed ? 3 : 4 + 2 * (uint32_t)live) == 0) {
            submit(f, next, seqs[next]);
            live += kinds[next++].n_answers;
        }
        folollm_budget budget = {24, 0};
        size_t room = LIVE;
        if (disturbed) {
            budget = random_budget();
            room = random_below(3) == 0 ? 1 + random_below(3) : LIVE;
            if (random_below(12) == 0) {
                c->dropped += f->driver.ahead.n > 0;
                own_call(f);
                CHECK_INVARIANTS(f);
            }
            if (next > 0 && random_below(40) == 0) {
                uint32_t i = random_below(next), which = random_below(kinds[i].n_answers);
                cancelled[i] = folollm_cancel(f, seqs[i][which], &error) == FOLOLLM_OK || cancelled[i];
            }
        }
        uint32_t n_begun = f->driver.ahead.n;
        folollm_stats before = f->executor.stats;
        demand(folollm_step(f, &budget, events, &room, &error));
        const folollm_stats *after = &f->executor.stats;
        c->late += n_begun > 0 && after->ahead == before.ahead && f->driver.ahead.n > 0;
        CHECK(budget.tokens == 0 || budget.tokens >= n_begun || after->ahead == before.ahead);
        CHECK(budget.microseconds == 0 || after->steps == before.steps || f->driver.ahead.n == 0);
        CHECK_INVARIANTS(f);
        size_t n = take(got, events, room);
        live -= n;
        c->ended += n;
        look(f, c);
    }
    CHECK(next == KINDS && live == 0);
    for (uint32_t i = 0; i < KINDS; i++) {
        for (uint32_t k = 0; k < kinds[i].n_answers; k++) {
            const answer *a = &got[i][k], *e = &expected[i][k];
            bool same = a->finish == e->finish && a->n_tokens == e->n_tokens && a->n_bytes == e->n_bytes;
            c->cancelled += a->finish == FOLOLLM_FINISH_CANCELLED;
            CHECK(same || (cancelled[i] && a->finish == FOLOLLM_FINISH_CANCELLED && a->n_tokens <= e->n_tokens));
            CHECK(memcmp(a->tokens, e->tokens, a->n_tokens * sizeof *a->tokens) == 0);
            CHECK(memcmp(a->chosen, e->chosen, a->n_tokens * sizeof *a->chosen) == 0);
            CHECK(memcmp(a->text, e->text, fl_min(a->n_bytes, e->n_bytes)) == 0);
        }
    }
}

/* Pools: roomy; and so small that answers wait for one another's pages, and take them. */
static void test_any_company(void) {
    static const uint32_t pools[] = {2048, 112};
    counts c = {0};
    uint64_t ahead = 0, steps = 0, preemptions = 0;
    for (size_t p = 0; p < FL_COUNT(pools); p++) {
        for (int round = 0; round < (SANITIZED ? 2 : 4); round++) {
            folollm *f = open_engine(1, pools[p], 3 + (uint32_t)round % 3 * 4);
            run(f, round % 2 == 1, &c);
            folollm_stats stats;
            folollm_get_stats(f, &stats);
            CHECK(stats.ahead <= stats.steps && stats.pages_used == 0);
            ahead += stats.ahead;
            steps += stats.steps;
            preemptions += stats.preemptions;
            folollm_free(f);
        }
    }
    printf("%u answers, %u of them cancelled; %u steps, %u of them begun ahead, %u dropped, %u wholly in vain; "
           "%u rows in vain; %u preemptions; %u times events were in the way\n",
           (unsigned)c.ended, (unsigned)c.cancelled, (unsigned)steps, (unsigned)ahead, (unsigned)c.dropped,
           (unsigned)c.in_vain, (unsigned)c.rows_in_vain, (unsigned)preemptions, (unsigned)c.late);
    size_t some = SANITIZED ? 1 : 3;
    CHECK(ahead * 3 > steps && c.dropped > some && c.in_vain > some && c.rows_in_vain > 10 * some);
    CHECK(c.cancelled >= some && preemptions > 0 && c.late > some);
}

/* How many calls it takes until there is an event of the submission with this tag. */
static int calls_until(folollm *f, uint64_t tag) {
    for (int calls = 1; calls < 100; calls++) {
        folollm_event events[LIVE];
        size_t n = LIVE;
        demand(folollm_step(f, NULL, events, &n, &error));
        for (size_t i = 0; i < n; i++) {
            if (events[i].tag == tag) {
                return calls;
            }
        }
    }
    return 100;
}

static void submit_plain(folollm *f, uint64_t tag, uint32_t n_prompt, int32_t priority) {
    static const folollm_token prompt[40] = {1, 2, 3, 4, 5};
    folollm_sampling sampling = {.max_tokens = 60, .ignore_eos = 1};
    folollm_submission s = {.prompt = prompt, .n_prompt = n_prompt, .sampling = &sampling, .tag = tag,
                            .priority = priority};
    folollm_seq seq;
    demand(folollm_submit(f, &s, &seq, &error));
}

/* Who comes has to wait for the step that was begun, and not for another. */
static void test_who_comes(void) {
    folollm *f = open_engine(1, 2048, 4);
    for (uint64_t tag = 0; tag < 4; tag++) {
        submit_plain(f, tag, 5, 0);
        CHECK(calls_until(f, tag) <= 2);
        CHECK(calls_until(f, 0) <= 2 && f->driver.ahead.n == tag + 1);
    }
    folollm_free(f);
}

/* While there are no pages for who waits, the others run ahead; once there are some, they do not. */
static void test_who_waits(void) {
    static const folollm_token ids[96] = {1, 2, 3};
    folollm *f = open_engine(1, 176, 4); /* 11 pages, six of them the host's own */
    folollm_seq own;
    demand(folollm_seq_open(f, NULL, &own, &error));
    demand(folollm_prefill(f, own, ids, 90, NULL, &error));
    submit_plain(f, 1, 16, 0);
    submit_plain(f, 2, 24, 0);
    submit_plain(f, 3, 40, 0);
    CHECK(calls_until(f, 1) <= 2);
    for (int i = 0; i < 3; i++) {
        CHECK(calls_until(f, 1) == 1);
    }
    folollm_stats stats;
    folollm_get_stats(f, &stats);
    CHECK(stats.requests_waiting == 1 && stats.ahead >= 2 && f->driver.ahead.n > 0);
    submit_plain(f, 4, 2, -1); /* for this one there are */
    CHECK(calls_until(f, 4) <= 2);
    CHECK(calls_until(f, 4) == 1 && calls_until(f, 4) == 1 && f->driver.ahead.n == 3);
    demand(folollm_seq_close(f, own, &error));
    CHECK(calls_until(f, 3) <= 4);
    folollm_free(f);
}

/* ---- The host's own loop: every call on both engines, which must say the same -- */

#define SEQS 4

static folollm *both[2]; /* the second is on the device */
static folollm_seq open_seqs[SEQS];
static size_t n_open, n_begun_in_vain, n_no_pages;
static uint32_t vocab;

/* The same call on both; `f` is the engine, `k` which of them it is. */
#define BOTH(status, call)                               \
    do {                                                 \
        for (size_t k = 0; k < 2; k++) {                 \
            folollm *f = both[k];                        \
            folollm_status status_ = (call);             \
            CHECK(k == 0 || status_ == (status));        \
            (status) = status_;                          \
        }                                                \
        n_no_pages += (status) == FOLOLLM_E_POOL;        \
    } while (0)

static folollm_sampled sample_both(folollm_seq seq, size_t n_top) {
    folollm_sampled out[2];
    folollm_logprob top[2][3];
    folollm_status status = FOLOLLM_OK;
    memset(top, 0, sizeof top);
    BOTH(status, folollm_sample(f, seq, &out[k], top[k], n_top, &error));
    CHECK(status != FOLOLLM_OK || (out[0].token == out[1].token && out[0].finish == out[1].finish));
    CHECK(status != FOLOLLM_OK || memcmp(&out[0].chosen, &out[1].chosen, sizeof out[0].chosen) == 0);
    CHECK(memcmp(top[0], top[1], sizeof top[0]) == 0);
    return out[0];
}

/* And the tokens that lead there. */
static void compare_logits(folollm_seq seq) {
    folollm_token tokens[2][96];
    const float *logits[2];
    size_t n[2] = {96, 96};
    folollm_status status = FOLOLLM_OK;
    BOTH(status, folollm_seq_tokens(f, seq, tokens[k], &n[k], &error));
    CHECK(status == FOLOLLM_OK && n[0] == n[1] && memcmp(tokens[0], tokens[1], n[0] * sizeof tokens[0][0]) == 0);
    BOTH(status, folollm_logits(f, seq, &logits[k], &error));
    CHECK(status != FOLOLLM_OK || memcmp(logits[0], logits[1], vocab * sizeof(float)) == 0);
}

static void open_another(void) {
    folollm_sampling sampling = {.temperature = random_below(2) == 0 ? 0 : 1, .seed = random_below(100),
                                 .max_tokens = random_below(4) == 0 ? 6 : 0, .ignore_eos = 1,
                                 .repetition_penalty = random_below(10) == 0 ? 1.2f : 0};
    folollm_token ids[30];
    size_t n = 1 + random_below(30);
    folollm_seq seq = 0;
    folollm_status status = FOLOLLM_OK;
    for (size_t i = 0; i < n; i++) {
        ids[i] = (folollm_token)random_below(vocab);
    }
    BOTH(status, folollm_seq_open(f, &sampling, &seq, &error));
    BOTH(status, folollm_prefill(f, seq, ids, n, NULL, &error));
    if (status != FOLOLLM_OK) {
        BOTH(status, folollm_seq_close(f, seq, &error));
        return;
    }
    open_seqs[n_open++] = seq;
}

static void close_one(size_t i) {
    folollm_status status = FOLOLLM_OK;
    BOTH(status, folollm_seq_close(f, open_seqs[i], &error));
    CHECK(status == FOLOLLM_OK);
    open_seqs[i] = open_seqs[--n_open];
}

/* A few steps of the same sequences, which take what is chosen, but for one in so many. */
static void decode_some(uint32_t strays) {
    folollm_seq seqs[SEQS];
    folollm_token tokens[SEQS];
    folollm_status status = FOLOLLM_OK;
    size_t n = 0;
    for (size_t i = 0; i < n_open; i++) {
        if (random_below(3) > 0) {
            seqs[n++] = open_seqs[i];
        }
    }
    uint32_t n_steps = 1 + random_below(9);
    for (uint32_t step = 0; step < n_steps && status == FOLOLLM_OK; step++) {
        for (size_t i = 0; i < n; i++) {
            folollm_sampled next = sample_both(seqs[i], 0);
            tokens[i] = random_below(strays) == 0 ? (folollm_token)random_below(vocab) : next.token;
        }
        if (random_below(40) == 0 && n > 0) {
            BOTH(status, folollm_cancel(f, seqs[0], &error));
        }
        BOTH(status, folollm_decode_step(f, seqs, tokens, n, &error));
        if (random_below(10) == 0 && n > 0) {
            compare_logits(seqs[random_below((uint32_t)n)]);
        }
    }
}

static folollm_stats stats_of(const folollm *f) {
    folollm_stats s;
    folollm_get_stats(f, &s);
    return s;
}

static void answer_request(void) {
    static const folollm_token ids[] = {4, 5, 6};
    folollm_sampling sampling = {.max_tokens = 4, .ignore_eos = 1};
    folollm_submission s = {.prompt = ids, .n_prompt = 3, .sampling = &sampling};
    folollm_seq seq;
    folollm_status status = FOLOLLM_OK;
    BOTH(status, folollm_submit(f, &s, &seq, &error));
    for (int steps = 0; steps < 6; steps++) {
        folollm_event events[2];
        size_t n[2] = {1, 1};
        BOTH(status, folollm_step(f, NULL, &events[k], &n[k], &error));
        if (status == FOLOLLM_E_POOL) {
            BOTH(status, folollm_cancel(f, seq, &error));
        } else {
            CHECK(status == FOLOLLM_OK && n[0] == n[1] && (n[0] == 0 || events[0].token == events[1].token));
        }
    }
    CHECK(stats_of(both[0]).requests_running + stats_of(both[0]).requests_waiting == 0);
}

static void save_and_restore(size_t i) {
    static uint8_t bytes[2][1 << 18];
    size_t n[2] = {sizeof bytes[0], sizeof bytes[0]};
    folollm_status status = FOLOLLM_OK;
    BOTH(status, folollm_seq_save(f, open_seqs[i], bytes[k], &n[k], &error));
    CHECK(status == FOLOLLM_OK && n[0] == n[1] && memcmp(bytes[0], bytes[1], n[0]) == 0);
    if (n_open < SEQS) {
        BOTH(status, folollm_seq_restore(f, bytes[1 - k], n[0], &open_seqs[n_open], &error));
        n_open += status == FOLOLLM_OK;
    }
}

static void disturb(void) {
    size_t i = n_open > 0 ? random_below((uint32_t)n_open) : 0, n = 0;
    folollm_status status = FOLOLLM_OK;
    uint32_t what = random_below(8);
    n_begun_in_vain += both[1]->executor.has_begun;
    if (n_open == 0 || (what == 0 && n_open < SEQS)) {
        open_another();
    } else if (what == 1) {
        close_one(i);
    } else if (what == 2 && n_open < SEQS) {
        BOTH(status, folollm_seq_fork(f, open_seqs[i], NULL, &open_seqs[n_open], &error));
        n_open += status == FOLOLLM_OK;
    } else if (what == 3) {
        BOTH(status, folollm_seq_tokens(f, open_seqs[i], NULL, (n = 0, &n), &error));
        size_t keep = n - fl_min(n, random_below(20));
        BOTH(status, folollm_seq_truncate(f, open_seqs[i], keep, &error));
    } else if (what == 4) {
        save_and_restore(i);
    } else if (what == 5) {
        answer_request();
    } else if (what == 6) {
        sample_both(open_seqs[i], 3);
    }
}

static void test_own_loop(void) {
    static const folollm_host host = {.clock = ticks};
    uint64_t ahead = 0;
    random_state = 7;
    for (int round = 0; round < (SANITIZED ? 1 : 3); round++) {
        for (uint32_t k = 0; k < 2; k++) {
            folollm_options o = {.host = &host, .device = k, .context = 96, .pool_tokens = round == 0 ? 1024 : 208,
                                 .chunk = 24, .n_threads = 1, .max_seqs = SEQS};
            demand(folollm_load(MODEL, &o, &both[k], &error));
        }
        folollm_info info;
        folollm_get_info(both[0], &info);
        vocab = info.vocab;
        n_open = 0;
        for (int i = 0; i < 120; i++) {
            disturb();
            decode_some(round == 2 ? 8 : 40);
            CHECK_INVARIANTS(both[1]);
            for (size_t s = 0; s < n_open && i % 6 == 5; s++) {
                compare_logits(open_seqs[s]);
            }
        }
        folollm_stats stats = stats_of(both[1]);
        printf("own loop: %u forward passes, %u begun ahead; so far %u in vain, %u times no pages\n",
               (unsigned)stats.forwards, (unsigned)stats.ahead, (unsigned)n_begun_in_vain, (unsigned)n_no_pages);
        ahead += stats.ahead;
        folollm_free(both[0]);
        folollm_free(both[1]);
    }
    CHECK(ahead > (SANITIZED ? 50 : 100) && n_begun_in_vain > 10 && (SANITIZED || n_no_pages > 5));
}

int main(void) {
    fl_memory_init(&memory, NULL);
    write_expected();
    test_any_company();
    test_who_comes();
    test_who_waits();
    test_own_loop();
    return check_finish();
}
