/* Random operations against a naive model: submit, step, cancel, and the host's own open, prefill, decode, fork,
 * truncate, save, restore (in vain too), close, over one small pool. What each sequence holds is known from a list of
 * tokens; its logits must be those of that list computed by another engine in one piece, and a finished answer must be
 * what that engine writes alone. Invariants are checked all the time, and in the end the pool is empty.
 *
 *     cc -O2 -I. -Isrc tests/test_random.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out [OPERATIONS [SEED]]
 *     default: 40000 1
 */
#include "inside.h"

#include "check.h"
#include "invariants.h"
#include "random.h"

#define MODEL "tests/vectors/models/llama-gqa-fp16" /* 80 ids, 96 positions */
#define CONTEXT 96
#define N_OWN 6
#define N_REQUESTS 12
#define N_SAVED 4

static folollm_error error;

static uint64_t now_of_tests;

static uint64_t read_clock(void *user) {
    (void)user;
    return now_of_tests += 2;
}

static folollm_host host = {.clock = read_clock};

static folollm *open_engine(folollm_options o) {
    folollm *f = NULL;
    o.host = &host;
    o.n_threads = 1;
    if (folollm_load(MODEL, &o, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    return f;
}

/* ---- The naive model --------------------------------------------------------------------------------------------- */

typedef struct own_sequence {
    folollm_seq seq; /* 0: closed */
    folollm_token tokens[CONTEXT];
    size_t n;
    bool has_logits;
} own_sequence;

typedef struct request {
    folollm_seq seq; /* 0: none */
    folollm_token prompt[CONTEXT], output[CONTEXT];
    size_t n_prompt, n_output;
    folollm_sampling sampling;
    bool cancelled;
} request;

typedef struct saved {
    uint8_t *bytes; /* NULL: none */
    size_t n_bytes;
    own_sequence content;
} saved;

static folollm *engine, *oracle;
static own_sequence own[N_OWN];
static request requests[N_REQUESTS];
static saved snapshots[N_SAVED];
static folollm_seq oracle_seq;

enum { OPEN, PREFILL, DECODE, FORK, TRUNCATE, SAVE, RESTORE, CLOSE, SUBMIT, STEP, CANCEL, RESTORE_IN_VAIN,
       N_KINDS };
static const char *const kind_names[] = {"open", "prefill", "decode", "fork", "truncate", "save", "restore", "close",
                                         "submit", "step", "cancel", "restore in vain"};
static uint64_t n_done[N_KINDS], n_refused[N_KINDS], n_finished, n_ended;

static void check_logits(const own_sequence *o) {
    const float *ours = NULL, *naive = NULL;
    if (!o->has_logits) {
        CHECK(folollm_logits(engine, o->seq, &ours, &error) == FOLOLLM_E_STATE);
        return;
    }
    CHECK(folollm_seq_truncate(oracle, oracle_seq, 0, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(oracle, oracle_seq, o->tokens, o->n, NULL, &error) == FOLOLLM_OK);
    CHECK(folollm_logits(oracle, oracle_seq, &naive, &error) == FOLOLLM_OK);
    CHECK(folollm_logits(engine, o->seq, &ours, &error) == FOLOLLM_OK);
    CHECK(ours != NULL && memcmp(ours, naive, 80 * sizeof *ours) == 0);
}

static void check_tokens(const own_sequence *o) {
    folollm_token tokens[CONTEXT];
    size_t n = CONTEXT;
    CHECK(folollm_seq_tokens(engine, o->seq, tokens, &n, &error) == FOLOLLM_OK);
    CHECK(n == o->n && memcmp(tokens, o->tokens, n * sizeof *tokens) == 0);
}

/* What the request gives alone, as far as it came. */
static void check_output(const request *r, bool whole) {
    folollm_seq seq = 0;
    folollm_sampled next = {0};
    CHECK(folollm_seq_open(oracle, &r->sampling, &seq, &error) == FOLOLLM_OK);
    CHECK(folollm_prefill(oracle, seq, r->prompt, r->n_prompt, NULL, &error) == FOLOLLM_OK);
    for (size_t i = 0; i < r->n_output; i++) {
        CHECK(next.finish == FOLOLLM_FINISH_NONE);
        CHECK(folollm_sample(oracle, seq, &next, NULL, 0, &error) == FOLOLLM_OK && next.token == r->output[i]);
        if (next.finish == FOLOLLM_FINISH_NONE) {
            CHECK(folollm_decode_step(oracle, &seq, &next.token, 1, &error) == FOLOLLM_OK);
        }
    }
    CHECK(!whole || next.finish != FOLOLLM_FINISH_NONE);
    CHECK(folollm_seq_close(oracle, seq, &error) == FOLOLLM_OK);
}

/* ---- Operations: each returns whether it was done ---------------------------------------------------------------- */

static own_sequence *any_own(bool open) {
    for (int tries = 0; tries < 10; tries++) {
        own_sequence *o = &own[random_below(N_OWN)];
        if ((o->seq != 0) == open) {
            return o;
        }
    }
    return NULL;
}

static bool do_open(void) {
    own_sequence *o = any_own(false);
    if (o == NULL || folollm_seq_open(engine, NULL, &o->seq, &error) != FOLOLLM_OK) {
        return false;
    }
    o->n = 0;
    o->has_logits = false;
    return true;
}

static bool do_prefill(void) {
    own_sequence *o = any_own(true);
    folollm_token tokens[60];
    size_t n = 1 + random_below(random_below(4) == 0 ? 60 : 12);
    if (o == NULL) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        tokens[i] = (folollm_token)(random_below(3) == 0 ? random_below(80) : (o->n + i) % 80);
    }
    folollm_status status = folollm_prefill(engine, o->seq, tokens, n, NULL, &error);
    CHECK((status == FOLOLLM_E_CONTEXT) == (o->n + n > CONTEXT));
    if (status != FOLOLLM_OK) {
        CHECK(status == FOLOLLM_E_CONTEXT || status == FOLOLLM_E_POOL);
        check_tokens(o);
        return false;
    }
    memcpy(o->tokens + o->n, tokens, n * sizeof *tokens);
    o->n += n;
    o->has_logits = true;
    check_logits(o);
    return true;
}

static bool do_decode(void) {
    folollm_seq seqs[N_OWN];
    folollm_token tokens[N_OWN];
    own_sequence *stepped[N_OWN];
    size_t n = 0;
    bool full = false;
    for (size_t i = 0; i < N_OWN; i++) {
        if (own[i].seq != 0 && random_below(2) == 0) {
            full = full || own[i].n == CONTEXT;
            stepped[n] = &own[i];
            seqs[n] = own[i].seq;
            tokens[n++] = (folollm_token)random_below(80);
        }
    }
    folollm_status status = folollm_decode_step(engine, seqs, tokens, n, &error);
    CHECK((status == FOLOLLM_E_CONTEXT) == full);
    if (status != FOLOLLM_OK) {
        CHECK(status == FOLOLLM_E_CONTEXT || status == FOLOLLM_E_POOL);
    }
    for (size_t i = 0; i < n; i++) {
        if (status == FOLOLLM_OK) {
            stepped[i]->tokens[stepped[i]->n++] = tokens[i];
            stepped[i]->has_logits = true;
        }
        check_tokens(stepped[i]);
        check_logits(stepped[i]);
    }
    return status == FOLOLLM_OK && n > 0;
}

static bool do_fork(void) {
    own_sequence *from = any_own(true), *to = any_own(false);
    folollm_seq seq;
    if (from == NULL || to == NULL || folollm_seq_fork(engine, from->seq, NULL, &seq, &error) != FOLOLLM_OK) {
        return false;
    }
    *to = *from;
    to->seq = seq;
    check_logits(to);
    return true;
}

static bool do_truncate(void) {
    own_sequence *o = any_own(true);
    size_t n = random_below(CONTEXT + 2);
    if (o == NULL) {
        return false;
    }
    CHECK(folollm_seq_truncate(engine, o->seq, n, &error) == (n > o->n ? FOLOLLM_E_ARGUMENT : FOLOLLM_OK));
    if (n >= o->n) {
        return n == o->n;
    }
    o->n = n;
    o->has_logits = false;
    check_tokens(o);
    return true;
}

static bool do_save(void) {
    own_sequence *o = any_own(true);
    saved *s = &snapshots[random_below(N_SAVED)];
    size_t n = 0;
    if (o == NULL) {
        return false;
    }
    CHECK(folollm_seq_save(engine, o->seq, NULL, &n, &error) == FOLOLLM_OK);
    s->bytes = realloc(s->bytes, n);
    s->n_bytes = n;
    s->content = *o;
    CHECK(folollm_seq_save(engine, o->seq, s->bytes, &n, &error) == FOLOLLM_OK && n == s->n_bytes);
    return true;
}

typedef struct stream {
    const uint8_t *at;
    size_t left;
} stream;

static int read_stream(void *user, void *bytes, size_t n) {
    stream *s = user;
    if (n > s->left) {
        return 1;
    }
    memcpy(bytes, s->at, n);
    s->at += n;
    s->left -= n;
    return 0;
}

/* From a stream that ends too early: all others go on as if that had not been tried. */
static bool do_restore_in_vain(void) {
    const saved *s = &snapshots[random_below(N_SAVED)];
    folollm_seq seq = 0;
    if (s->bytes == NULL) {
        return false;
    }
    stream in = {s->bytes, random_below((uint32_t)s->n_bytes)};
    folollm_status status = folollm_seq_restore_from(engine, read_stream, &in, &seq, &error);
    CHECK((status == FOLOLLM_E_IO || status == FOLOLLM_E_POOL) && seq == 0);
    return status == FOLOLLM_E_IO;
}

static bool do_restore(void) {
    own_sequence *o = any_own(false);
    const saved *s = &snapshots[random_below(N_SAVED)];
    folollm_seq seq = 0;
    if (o == NULL || s->bytes == NULL) {
        return false;
    }
    stream in = {s->bytes, s->n_bytes};
    folollm_status status = random_below(2) == 0
                                ? folollm_seq_restore(engine, s->bytes, s->n_bytes, &seq, &error)
                                : folollm_seq_restore_from(engine, read_stream, &in, &seq, &error);
    if (status != FOLOLLM_OK) {
        CHECK(status == FOLOLLM_E_POOL && seq == 0);
        return false;
    }
    *o = s->content;
    o->seq = seq;
    check_tokens(o);
    check_logits(o);
    return true;
}

static bool do_close(void) {
    own_sequence *o = any_own(true);
    if (o == NULL) {
        return false;
    }
    CHECK(folollm_seq_close(engine, o->seq, &error) == FOLOLLM_OK);
    CHECK(folollm_seq_close(engine, o->seq, &error) == FOLOLLM_E_SEQUENCE);
    o->seq = 0;
    return true;
}

static bool do_submit(void) {
    request *r = NULL;
    folollm_seq seqs[3];
    size_t n_answers = 1 + (random_below(4) == 0 ? random_below(3) : 0), n_free = 0;
    for (size_t i = 0; i < N_REQUESTS; i++) {
        n_free += requests[i].seq == 0;
    }
    request made = {.n_prompt = 1 + random_below(random_below(3) == 0 ? 90 : 20)};
    size_t shared = random_below((uint32_t)made.n_prompt + 1);
    for (size_t i = 0; i < made.n_prompt; i++) {
        made.prompt[i] = (folollm_token)(i < shared ? i % 80 : random_below(80));
    }
    made.sampling.max_tokens = 1 + random_below(30);
    made.sampling.temperature = random_below(2) == 0 ? 0 : 0.9f;
    made.sampling.seed = random_below(1000);
    folollm_submission s = {.prompt = made.prompt, .n_prompt = made.n_prompt, .sampling = &made.sampling,
                            .n_answers = (uint32_t)n_answers};
    s.priority = (int32_t)random_below(3);
    s.flow = random_below(3);
    s.weight = random_below(4);
    s.cache_space = random_below(2);
    s.no_prefix_cache = random_below(5) == 0;
    folollm_status status = folollm_submit(engine, &s, seqs, &error);
    if (status != FOLOLLM_OK) {
        CHECK(status == FOLOLLM_E_POOL && (n_free < n_answers || engine->driver.running));
        return false;
    }
    for (size_t i = 0; i < n_answers; i++) {
        for (r = requests; r->seq != 0; r++) {
        }
        *r = made;
        r->seq = seqs[i];
        r->sampling.seed += i;
    }
    return true;
}

static void take_event(const folollm_event *e) {
    request *r = requests;
    while (r < requests + N_REQUESTS && r->seq != e->seq) {
        r++;
    }
    if (!CHECK(r < requests + N_REQUESTS)) {
        return;
    }
    if (e->token >= 0) {
        r->output[r->n_output++] = e->token;
    }
    if (e->finish != FOLOLLM_FINISH_NONE) {
        CHECK((e->finish == FOLOLLM_FINISH_CANCELLED) <= r->cancelled);
        check_output(r, e->finish != FOLOLLM_FINISH_CANCELLED);
        r->seq = 0;
        n_finished++;
        n_ended += e->finish == FOLOLLM_FINISH_CANCELLED;
    }
}

static bool do_step(void) {
    folollm_event events[N_REQUESTS];
    size_t n = 1 + random_below(N_REQUESTS), room = n;
    folollm_budget budget = {random_below(3) == 0 ? 1 + random_below(40) : 0, random_below(2) == 0 ? 1 + random_below(200) : 0};
    bool whole = budget.tokens == 0 && budget.microseconds == 0;
    folollm_status status = folollm_step(engine, whole ? NULL : &budget, events, &n, &error);
    CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_POOL);
    for (size_t i = 0; status == FOLOLLM_OK && i < n; i++) {
        CHECK(n <= room);
        take_event(&events[i]);
    }
    return status == FOLOLLM_OK;
}

static bool do_cancel(void) {
    request *r = &requests[random_below(N_REQUESTS)];
    if (random_below(8) != 0 || r->seq == 0) {
        return false;
    }
    CHECK(folollm_cancel(engine, r->seq, &error) == FOLOLLM_OK);
    r->cancelled = true;
    return true;
}

static void drain(void) {
    for (size_t i = 0; i < N_OWN; i++) {
        if (own[i].seq != 0) {
            CHECK(folollm_seq_close(engine, own[i].seq, &error) == FOLOLLM_OK);
            own[i].seq = 0;
        }
    }
    folollm_stats s;
    for (int i = 0; i < 100000; i++) {
        folollm_event events[4];
        size_t n = 4;
        CHECK(folollm_step(engine, NULL, events, &n, &error) == FOLOLLM_OK);
        for (size_t k = 0; k < n; k++) {
            take_event(&events[k]);
        }
        folollm_get_stats(engine, &s);
        if (s.requests_waiting + s.requests_running == 0) {
            break;
        }
    }
    CHECK(s.requests_waiting + s.requests_running == 0 && s.pages_used == 0 && s.seqs_open == 0);
    CHECK_INVARIANTS(engine);
}

int main(int argc, char **argv) {
    static bool (*const operations[])(void) = {do_open, do_prefill, do_decode, do_fork, do_truncate, do_save,
                                               do_restore, do_close, do_submit, do_step, do_cancel,
                                               do_restore_in_vain};
    static const uint8_t weights[] = {4, 10, 12, 5, 5, 4, 4, 8, 12, 60, 30, 6};
    uint64_t n_operations = argc > 1 ? strtoull(argv[1], NULL, 10) : 40000;
    random_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    engine = open_engine((folollm_options){.max_seqs = N_OWN, .max_requests = N_REQUESTS, .max_running = 5, .chunk = 24,
                                           .pool_tokens = 400});
    oracle = open_engine((folollm_options){.pool_tokens = 400});
    CHECK(folollm_seq_open(oracle, NULL, &oracle_seq, &error) == FOLOLLM_OK);
    for (uint64_t i = 0; i < n_operations; i++) {
        uint32_t at = random_below(160), kind = 0;
        for (; at >= weights[kind]; kind++) {
            at -= weights[kind];
        }
        bool done = operations[kind]();
        n_done[kind] += done;
        n_refused[kind] += !done;
        if (i % 16 == 0) {
            CHECK_INVARIANTS(engine);
        }
        if (i % 20000 == 19999) {
            drain();
        }
    }
    drain();
    folollm_stats s;
    folollm_get_stats(engine, &s);
    for (int kind = 0; kind < N_KINDS; kind++) {
        printf("%s %u of %u, ", kind_names[kind], (unsigned)n_done[kind], (unsigned)(n_done[kind] + n_refused[kind]));
        CHECK(n_operations < 10000 || n_done[kind] > 100);
    }
    printf("\n%u answers, %u of them cancelled; %u steps, %u slices, %u preemptions, %u prefix tokens found, %u evicted\n",
           (unsigned)n_finished, (unsigned)n_ended, (unsigned)s.steps, (unsigned)s.slices, (unsigned)s.preemptions,
           (unsigned)s.prefix_found_tokens, (unsigned)s.pages_evicted);
    CHECK(n_operations < 40000 || (s.slices > 1000 && s.preemptions > 100 && s.prefix_found_tokens > 1000));
    for (size_t i = 0; i < N_SAVED; i++) {
        free(snapshots[i].bytes);
    }
    folollm_free(engine);
    folollm_free(oracle);
    return check_finish();
}
