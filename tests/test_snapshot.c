/* Snapshots: a sequence that was saved and restored goes on as one that was not, bit for bit, on this engine and on
 * every other that may take it; the bytes depend on nothing but the sequence; and whatever else is handed to
 * folollm_seq_restore is refused with the documented status, while not one byte of the engine changes (refused from a
 * stream: none that anybody has). The forgeries have right checksums, so that the checks behind those are the ones under
 * test.
 *
 *     cc -O1 -g -I. -Isrc tests/test_snapshot.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 *     -DFL_PAGE_TOKENS=2: a page edge every other token
 */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "invariants.h"
#include "random.h"

#include <math.h>

#define SHAKESPEARE "examples/models/tiny-shakespeare"
#define MODELS "tests/vectors/models/"
#define SMALL MODELS "llama-gqa-fp16" /* 80 ids, EOS 2, no tied head */

#define SLOW (SANITIZED ? 4 : 1) /* so many times fewer sequences are continued */

#define PAGE ((uint32_t)FL_PAGE_TOKENS)
#define LENGTHS (3 * PAGE + 3) /* 0 to 3 pages and 2 */

static folollm_error error;
static void must(folollm_status status, int line) {
    if (!check_that(status == FOLOLLM_OK, __FILE__, line, "a call that must do")) {
        printf("    %d: %s\n", (int)status, error.text);
        exit(1);
    }
}

#define MUST(call) must((call), __LINE__)

/* ---- Saving and restoring -- */

typedef struct saved {
    uint8_t *bytes; /* a block of just that size, so that a sanitizer sees its end */
    size_t n;
} saved;

/* A stream of the host over a block of memory. */
typedef struct stream {
    uint8_t *bytes;
    size_t n, at;
    unsigned n_calls, fails_at; /* the call that fails, from 1; 0: none */
    unsigned n_wrong;           /* calls that no one may make */
} stream;

static int stream_moves(stream *s, size_t n) {
    s->n_wrong += n == 0 || n > 8192 || (s->fails_at > 0 && s->n_calls >= s->fails_at);
    return ++s->n_calls == s->fails_at || n > s->n - s->at ? -1 : 0;
}

static int stream_write(void *user, const void *bytes, size_t n) {
    stream *s = user;
    if (stream_moves(s, n) != 0) {
        return 1;
    }
    memcpy(s->bytes + s->at, bytes, n);
    s->at += n;
    return 0;
}

static int stream_read(void *user, void *bytes, size_t n) {
    stream *s = user;
    if (stream_moves(s, n) != 0) {
        memset(bytes, 0xEE, n); /* a half-filled piece must not matter */
        return 5;
    }
    memcpy(bytes, s->bytes + s->at, n);
    s->at += n;
    return 0;
}

/* Both ways of saving give the same bytes. */
static void check_saved_alike(folollm *f, folollm_seq seq, saved s) {
    stream out = {malloc(s.n), s.n, 0, 0, 0, 0};
    MUST(folollm_seq_save_to(f, seq, stream_write, &out, &error));
    CHECK(out.at == s.n && out.n_wrong == 0 && memcmp(out.bytes, s.bytes, s.n) == 0);
    free(out.bytes);
}

/* Save, by way of all that the entry documents of room and lengths. */
static saved save(folollm *f, folollm_seq seq) {
    saved s = {NULL, 0};
    size_t room;
    MUST(folollm_seq_save(f, seq, NULL, &s.n, &error));
    s.bytes = malloc(s.n);
    room = s.n - 1;
    memset(s.bytes, 0x5A, s.n);
    CHECK(folollm_seq_save(f, seq, s.bytes, &room, &error) == FOLOLLM_E_BUFFER && room == s.n);
    CHECK(s.bytes[0] == 0x5A && s.bytes[s.n / 2] == 0x5A && memcmp(s.bytes, s.bytes + 1, s.n - 1) == 0);
    MUST(folollm_seq_save(f, seq, s.bytes, &room, &error));
    CHECK(room == s.n);
    check_saved_alike(f, seq, s);
    return s;
}

static bool equal(saved a, saved b) {
    return a.n == b.n && memcmp(a.bytes, b.bytes, a.n) == 0;
}

/* By turns from a buffer and from a stream. */
static folollm_seq restore(folollm *f, saved s) {
    static unsigned turn;
    folollm_seq seq = 0;
    if (turn++ % 2 == 0) {
        MUST(folollm_seq_restore(f, s.bytes, s.n, &seq, &error));
    } else {
        stream in = {s.bytes, s.n, 0, 0, 0, 0};
        MUST(folollm_seq_restore_from(f, stream_read, &in, &seq, &error));
        CHECK(in.at == s.n && in.n_wrong == 0);
    }
    CHECK_INVARIANTS(f);
    return seq;
}

static void close_sequence(folollm *f, folollm_seq seq) {
    MUST(folollm_seq_close(f, seq, &error));
}

/* What never was written must not matter: fill the whole cache with this. */
static void fill_cache(folollm *f, int value) {
    memset(f->worker.cache.base, value, f->worker.cache.size);
}

/* ---- It goes on -- */

/* The same sequence in several places; the first was never interrupted. */
typedef struct party {
    folollm *f;
    folollm_seq seq;
} party;

#define PARTIES_MAX 8

/* Sample all: the same token, numbers, text and end. */
static folollm_token sample_all(const party *p, size_t n) {
    folollm_sampled first, other;
    char text[2048];
    MUST(folollm_sample(p[0].f, p[0].seq, &first, NULL, 0, &error));
    CHECK(first.n_bytes <= sizeof text);
    memcpy(text, first.text, first.n_bytes);
    for (size_t i = 1; i < n; i++) {
        MUST(folollm_sample(p[i].f, p[i].seq, &other, NULL, 0, &error));
        CHECK(other.token == first.token && other.finish == first.finish && other.stop_index == first.stop_index);
        CHECK(memcmp(&other.chosen, &first.chosen, sizeof first.chosen) == 0);
        CHECK(other.n_bytes == first.n_bytes && memcmp(other.text, text, first.n_bytes) == 0);
    }
    return first.token;
}

static void compare_logits(const party *p, size_t n) {
    const float *first = NULL, *other = NULL;
    size_t bytes = p[0].f->checkpoint->weights.config.vocab * sizeof *first;
    folollm_status status = folollm_logits(p[0].f, p[0].seq, &first, &error);
    for (size_t i = 1; i < n; i++) {
        CHECK(folollm_logits(p[i].f, p[i].seq, &other, &error) == status);
        CHECK(status != FOLOLLM_OK || memcmp(other, first, bytes) == 0);
    }
}

/* All take the same step: forced (or what the first samples, if that is -1). */
static void step_all(const party *p, size_t n, folollm_token forced) {
    bool has_logits = p[0].f->sequences.slots[p[0].seq % FL_SEQS_MAX].has_logits;
    compare_logits(p, n);
    folollm_token token = has_logits ? sample_all(p, n) : 7;
    token = forced >= 0 ? forced : token;
    for (size_t i = 0; i < n; i++) {
        MUST(folollm_decode_step(p[i].f, &p[i].seq, &token, 1, &error));
    }
}

/* At last their snapshots are the same too. */
static void compare_snapshots(const party *p, size_t n) {
    saved first = save(p[0].f, p[0].seq);
    for (size_t i = 1; i < n; i++) {
        saved other = save(p[i].f, p[i].seq);
        CHECK(equal(first, other));
        free(other.bytes);
    }
    free(first.bytes);
}

/* The engines: where a sequence is made; its twin, where nothing is saved; one that shares the weights; another load
 * with other kernels, threads, chunk and pool. Each with other garbage in its cache. */
enum { HOME, TWIN, SHARED, OTHER, ENGINES };

static folollm *engines[ENGINES];

static void open_engines(const char *path, folollm_kv_type kv, uint32_t context, folollm_isa isa) {
    static const int garbage[ENGINES] = {0x00, 0xFF, 0x7F, 0x3C};
    folollm_options o = {.n_threads = 1, .kv = kv, .context = context, .pool_tokens = 12 * context, .max_seqs = 12};
    MUST(folollm_load(path, &o, &engines[HOME], &error));
    MUST(folollm_share(engines[HOME], &o, &engines[TWIN], &error));
    o.chunk = 3;
    o.pool_tokens = 2 * context;
    o.max_seqs = 3;
    MUST(folollm_share(engines[HOME], &o, &engines[SHARED], &error));
    o.chunk = 5;
    o.n_threads = isa == FOLOLLM_ISA_SCALAR ? 2 : 1;
    o.isa = fl_kernels_of(isa) != NULL ? isa : FOLOLLM_ISA_SCALAR;
    o.pool_tokens = 3 * context + 1;
    o.copy_weights = 1;
    MUST(folollm_load(path, &o, &engines[OTHER], &error));
    for (size_t i = 0; i < ENGINES; i++) {
        fill_cache(engines[i], garbage[i]);
    }
}

static void free_engines(void) {
    for (size_t i = 0; i < ENGINES; i++) {
        CHECK(engines[i]->sequences.n_open == 0 && engines[i]->pages.n_free == engines[i]->pages.n_pages);
        folollm_free(engines[i]);
    }
}

/* How sequences are sampled; ids up to 47, so that every checkpoint has them. */
static const folollm_bias biases[] = {{5, 3.5f}, {7, -INFINITY}, {11, 100}, {11, -99.5f}, {13, -FLT_MAX}};
static const folollm_token stop_ids[] = {3, 0, 47};
static const folollm_text stops[] = {{"the end of it all", 17}, {"e", 1}, {"\xC3\xA9\n", 3}, {" t", 2}};

static const folollm_sampling samplings[] = {
    {.temperature = 0},
    {.temperature = 0.9f, .top_k = 40, .top_p = 0.95f, .seed = 7},
    {.temperature = 1.5f, .min_p = 0.02f, .seed = UINT64_MAX, .preset = FOLOLLM_PRESET_HF,
     .repetition_penalty = 1.3f, .frequency_penalty = 0.5f, .presence_penalty = -0.25f},
    {.temperature = 0.7f, .seed = 1, .preset = FOLOLLM_PRESET_LLAMACPP, .repetition_penalty = 1.1f, .top_k = 20},
    {.temperature = 0, .repetition_penalty = 1.2f, .biases = biases, .n_biases = FL_COUNT(biases)},
    {.temperature = 1, .seed = 9, .order = {FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_TEMPERATURE}, .top_p = 0.8f,
     .biases = biases, .n_biases = 2},
    {.temperature = 1, .seed = 3, .stops = stops, .n_stops = FL_COUNT(stops), .min_tokens = 5, .max_tokens = 30},
    {.temperature = 1, .seed = 4, .stop_ids = stop_ids, .n_stop_ids = FL_COUNT(stop_ids), .max_tokens = 9},
    {.temperature = 2, .seed = 5, .stop_ids = stop_ids, .n_stop_ids = 1, .ignore_eos = 1, .min_tokens = 50},
    {.temperature = 0, .frequency_penalty = 2, .stops = stops, .n_stops = 1, .ignore_eos = 1},
};

/* Ways to come to a length. */
enum { PREFILLED, TWO_PROMPTS, DECODED, HALF_DECODED, TRUNCATED_PROMPT, TRUNCATED_OUTPUT, FORKED, WAYS };

static folollm_token token_of(size_t i) {
    return (folollm_token)((i * 29 + 11) % 46);
}

static void feed(folollm *f, folollm_seq seq, size_t from, size_t to, bool one_by_one) {
    folollm_token tokens[256];
    for (size_t i = from; i < to; i++) {
        tokens[i - from] = token_of(i);
        if (one_by_one) {
            MUST(folollm_decode_step(f, &seq, &tokens[i - from], 1, &error));
        }
    }
    if (to > from && !one_by_one) {
        MUST(folollm_prefill(f, seq, tokens, to - from, NULL, &error));
    }
}

/* A sequence of n tokens that came there in this way; a fork leaves its other side open in *company. */
static folollm_seq make(folollm *f, size_t n, int way, const folollm_sampling *sampling, folollm_seq *company) {
    folollm_seq seq = 0;
    size_t half = way == DECODED ? 0 : way == PREFILLED || way == TRUNCATED_PROMPT ? n : n / 2;
    size_t more = way == TRUNCATED_PROMPT || way == TRUNCATED_OUTPUT ? 3 : 0;
    MUST(folollm_seq_open(f, way == FORKED ? NULL : sampling, &seq, &error));
    *company = 0;
    if (way == TRUNCATED_PROMPT) {
        half += more;
    }
    feed(f, seq, 0, half, false);
    feed(f, seq, half, n + more, way != TWO_PROMPTS);
    if (more > 0) {
        MUST(folollm_seq_truncate(f, seq, n, &error));
    }
    if (way == FORKED) {
        *company = seq;
        MUST(folollm_seq_fork(f, *company, sampling, &seq, &error));
    }
    return seq;
}

/* Made at home and there saved, restored at home, elsewhere, and from the snapshot of a restored one; then all of
 * them, and the twin that was never saved, go on together. */
static void check_goes_on(size_t n, int way, const folollm_sampling *sampling, int n_steps) {
    folollm_seq company[2];
    party p[PARTIES_MAX] = {{engines[TWIN], 0}, {engines[HOME], 0}};
    size_t n_parties = 2;
    p[0].seq = make(engines[TWIN], n, way, sampling, &company[0]);
    p[1].seq = make(engines[HOME], n, way, sampling, &company[1]);
    saved s = save(engines[HOME], p[1].seq), again = save(engines[HOME], p[1].seq);
    CHECK(equal(s, again));
    free(again.bytes);
    for (int i = HOME; i < ENGINES; i++) {
        if (i != TWIN) {
            p[n_parties].f = engines[i];
            p[n_parties++].seq = restore(engines[i], s);
        }
    }
    again = save(p[n_parties - 1].f, p[n_parties - 1].seq);
    CHECK(equal(s, again));
    p[n_parties].f = engines[SHARED];
    p[n_parties++].seq = restore(engines[SHARED], again);
    free(again.bytes);
    if (company[1] != 0) { /* the other side of the fork writes into pages that were shared */
        for (int i = 0; i < 2; i++) {
            feed(p[i].f, company[i], 90, 90 + PAGE + 1, false);
            close_sequence(p[i].f, company[i]);
        }
    }
    for (int i = 0; i < n_steps; i++) {
        step_all(p, n_parties, -1);
    }
    compare_snapshots(p, n_parties);
    for (size_t i = 0; i < n_parties; i++) {
        close_sequence(p[i].f, p[i].seq);
    }
    free(s.bytes);
}

/* Every length, every way to it, every sampling (not each with each). */
static void test_goes_on(const char *path, folollm_kv_type kv, uint32_t context, size_t stride, int n_steps) {
    open_engines(path, kv, context, stride >= 31 ? FOLOLLM_ISA_SCALAR : FOLOLLM_ISA_AVX2);
    for (size_t i = 0; i < LENGTHS * WAYS; i += stride) {
        size_t sampling = (i + i / WAYS) % (FL_COUNT(samplings) + 1);
        check_goes_on(i / WAYS, (int)(i % WAYS), sampling > 0 ? &samplings[sampling - 1] : NULL, n_steps);
    }
    for (size_t i = 0; i < ENGINES; i++) {
        CHECK_INVARIANTS(engines[i]);
    }
    free_engines();
}

/* A text of many alphabets, fed as output: the snapshot is taken after each of its tokens, in the middle of code points
 * and of stop strings too, and the text goes on from there. */
static void test_text(size_t less) {
    static const char text[] = "Na\xC3\xAFve K\xC3\xB6nigin, \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E "
                               "\xF0\x9F\x8E\xAD\xF0\x9F\x91\x91 and the ends "
                               "of the \xE6\x97\xA5\xE6\x9C\xAC! \xC3\xA9\xC3\xA9 th";
    static const folollm_text held[] = {{"the end of it", 13}, {"\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9Ex", 10},
                                        {"\xF0\x9F\x8E\xAD\xF0\x9F\x91\x91\xF0\x9F\x91\x91", 12},
                                        {"and the ends of thy", 19}};
    folollm_token tokens[128], prompt[] = {1, 2, 3, 4, 5};
    size_t n_tokens = FL_COUNT(tokens);
    unsigned n_pending = 0, n_held = 0, n_both = 0;
    open_engines(SHAKESPEARE, FOLOLLM_KV_F16, 200, FOLOLLM_ISA_AVX2);
    MUST(folollm_tokenize(engines[HOME], text, sizeof text - 1, NULL, 0, 0, tokens, &n_tokens, &error));
    folollm_sampling sampling = {.temperature = 1, .seed = 2, .stops = held, .n_stops = FL_COUNT(held),
                                 .ignore_eos = 1};
    for (uint32_t min_tokens = 0; min_tokens < 20; min_tokens += 13) {
        party p[3] = {{engines[TWIN], 0}};
        sampling.min_tokens = min_tokens;
        MUST(folollm_seq_open(engines[TWIN], &sampling, &p[0].seq, &error));
        MUST(folollm_prefill(engines[TWIN], p[0].seq, prompt, FL_COUNT(prompt), NULL, &error));
        for (size_t cut = 0; cut < n_tokens; cut++) {
            const fl_stream *stream = &engines[TWIN]->sequences.slots[p[0].seq % FL_SEQS_MAX].stream;
            n_pending += stream->detokenizer.n_pending > 0;
            n_held += stream->n_held > 0;
            n_both += stream->n_held > 0 && stream->detokenizer.n_pending > 0;
            if (cut % less != 0) {
                step_all(p, 1, tokens[cut]);
                continue;
            }
            saved s = save(engines[TWIN], p[0].seq);
            folollm_seq whole = 0;
            MUST(folollm_seq_fork(engines[TWIN], p[0].seq, NULL, &whole, &error)); /* goes on beside */
            party q[3] = {{engines[TWIN], whole}, {engines[HOME], restore(engines[HOME], s)},
                          {engines[OTHER], restore(engines[OTHER], s)}};
            for (size_t i = cut; i < n_tokens && i < cut + 4; i++) {
                step_all(q, 3, tokens[i]);
            }
            compare_snapshots(q, 3);
            for (size_t i = 0; i < 3; i++) {
                close_sequence(q[i].f, q[i].seq);
            }
            free(s.bytes);
            step_all(p, 1, tokens[cut]);
        }
        close_sequence(engines[TWIN], p[0].seq);
    }
    printf("snapshots of texts: %u inside a code point, %u inside a stop string, %u both\n", n_pending, n_held, n_both);
    CHECK(n_pending > 20 && n_held > 20 && n_both > 2);
    free_engines();
}

/* Nothing but the sequence is in the bytes: not the garbage of unused slots, not which pages it has, not who shares
 * them. */
static void test_nothing_leaks(void) {
    open_engines(SMALL, FOLOLLM_KV_F16, 96, FOLOLLM_ISA_AVX2);
    for (size_t n = 0; n < LENGTHS; n++) {
        saved first = {NULL, 0};
        for (int value = 0; value < 256; value += 51) {
            folollm_seq other, seq, fork, company;
            fill_cache(engines[HOME], value);
            MUST(folollm_seq_open(engines[HOME], NULL, &other, &error)); /* the pages are others each time */
            feed(engines[HOME], other, 3, 4 + (size_t)value / 3, false);
            seq = make(engines[HOME], n, PREFILLED, &samplings[1], &company);
            close_sequence(engines[HOME], other);
            MUST(folollm_seq_fork(engines[HOME], seq, NULL, &fork, &error));
            saved s = save(engines[HOME], seq), of_fork = save(engines[HOME], fork);
            CHECK(equal(s, of_fork));
            CHECK(first.bytes == NULL || equal(s, first));
            close_sequence(engines[HOME], seq);
            close_sequence(engines[HOME], fork);
            free(of_fork.bytes);
            free(value > 0 ? s.bytes : NULL);
            first = value > 0 ? first : s;
        }
        free(first.bytes);
    }
    free_engines();
}

/* ---- It is refused -- */

static test_host host;

/* An engine that is small enough to keep a copy of all its memory. */
static folollm *open_small(folollm_options o) {
    folollm *f = NULL;
    o.host = &host.hooks;
    o.n_threads = 1;
    o.chunk = o.chunk != 0 ? o.chunk : 8;
    o.max_requests = 2;
    o.max_running = 2;
    o.max_seqs = o.max_seqs != 0 ? o.max_seqs : 3;
    MUST(folollm_load("mem", &o, &f, &error));
    return f;
}

/* All that an engine is, but for scratch. */
typedef struct image {
    uint8_t *bytes;
    size_t n;
} image;

static image image_of(const folollm *f) {
    image m = {NULL, sizeof *f + f->arena.size + f->worker.cache.size};
    m.bytes = malloc(m.n);
    memcpy(m.bytes, f, sizeof *f);
    memcpy(m.bytes + sizeof *f, f->arena.base, f->arena.size);
    memcpy(m.bytes + sizeof *f + f->arena.size, f->worker.cache.base, f->worker.cache.size);
    return m;
}

static bool is_as_in(const folollm *f, image m) {
    return memcmp(m.bytes, f, sizeof *f) == 0 &&
           memcmp(m.bytes + sizeof *f, f->arena.base, f->arena.size) == 0 &&
           memcmp(m.bytes + sizeof *f + f->arena.size, f->worker.cache.base, f->worker.cache.size) == 0;
}

/* The same, but for what nobody has: pages that are free and not cached, and the room of slots that are free. */
static bool is_as_in_but_free(const folollm *f, image m) {
    image now = image_of(f);
    const uint8_t *arena = f->arena.base, *cache = f->worker.cache.base;
    size_t block = fl_kv_block_bytes(&f->worker.kv), page_tokens = FL_PAGE_TOKENS * sizeof(folollm_token);
    uint8_t *to[2] = {now.bytes + sizeof *f, now.bytes + sizeof *f + f->arena.size};
    const uint8_t *from[2] = {m.bytes + sizeof *f, m.bytes + sizeof *f + f->arena.size};
    for (uint32_t page = 0; page < f->pages.n_pages; page++) {
        if (f->pages.references[page] > 0 || f->pages.serials[page] != 0) {
            continue;
        }
        size_t at = (size_t)((const uint8_t *)f->pages.tokens - arena) + page * page_tokens;
        memcpy(to[0] + at, from[0] + at, page_tokens);
        for (size_t head = 0; head < f->worker.kv.n_layers * f->worker.kv.n_kv_heads; head++) {
            at = (size_t)(f->worker.kv.k - cache) + fl_kv_offset(&f->worker.kv, 0, head, page);
            memcpy(to[1] + at, from[1] + at, block);
            at += (size_t)(f->worker.kv.v - f->worker.kv.k);
            memcpy(to[1] + at, from[1] + at, block);
        }
    }
    for (uint32_t i = 0; i < f->sequences.n_own; i++) {
        const fl_sequence *s = &f->sequences.slots[i];
        if (s->handle == 0) {
            size_t table = (size_t)((const uint8_t *)s->pages - arena);
            size_t logits = (size_t)((const uint8_t *)s->logits - arena);
            memcpy(to[0] + table, from[0] + table, f->sequences.table_pages * sizeof *s->pages);
            memcpy(to[0] + logits, from[0] + logits, f->checkpoint->weights.config.vocab * sizeof *s->logits);
        }
    }
    bool same = memcmp(now.bytes, m.bytes, m.n) == 0;
    free(now.bytes);
    return same;
}

/* A stream of these bytes is refused so, and leaves the engine as it was but for free memory. */
static bool is_refused_from(folollm *f, image before, stream *in, folollm_status expected) {
    folollm_seq out = 0x77777777;
    memset(&error, 0, sizeof error);
    folollm_status status = folollm_seq_restore_from(f, stream_read, in, &out, &error);
    /* a forged length may lead to the end of the stream, before a contradiction is found */
    bool right = (status == expected || (expected == FOLOLLM_E_FORMAT && status == FOLOLLM_E_IO)) &&
                 out == 0x77777777 && error.status == status && error.text[0] != 0 && in->n_wrong == 0 &&
                 is_as_in_but_free(f, before);
    if (!right) {
        printf("    from a stream: %d, expected %d: %s\n", (int)status, (int)expected, error.text);
    }
    return right;
}

/* Refused so, with a reason; the engine and *out are as they were. */
static bool is_refused(folollm *f, image before, const uint8_t *bytes, size_t n, folollm_status expected) {
    folollm_seq out = 0x77777777;
    memset(&error, 0, sizeof error);
    folollm_status status = folollm_seq_restore(f, bytes, n, &out, &error);
    bool right = status == expected && out == 0x77777777 && error.status == status && error.text[0] != 0 &&
                 is_as_in(f, before);
    if (!right) {
        printf("    %d, expected %d: %s\n", (int)status, (int)expected, error.text);
    }
    return right;
}

/* A snapshot as bytes to be changed, in a block of just its size. */
static saved copy_of(saved s, size_t n) {
    saved copy = {malloc(n > 0 ? n : 1), n};
    memcpy(copy.bytes, s.bytes, n < s.n ? n : s.n);
    return copy;
}

/* Where things stand. */
enum {
    AT_VERSION = 8, AT_KV_TYPE = 12, AT_FINGERPRINT = 16, AT_LAYERS = 24, AT_KV_HEADS = 28, AT_HEAD_DIM = 32,
    AT_VOCAB = 36, AT_TOKENS = 40, AT_PROMPT = 44, AT_SECTIONS = 48, AT_ADAPTER = 48 + 16 * FL_SECTIONS,
    AT_CHECKSUM = AT_ADAPTER + 8,
    HEADER = AT_CHECKSUM + 8,
    /* of the sampling section */
    IN_TEMPERATURE = 0, IN_TOP_K = 4, IN_TOP_P = 8, IN_MIN_P = 12, IN_PRESET = 16, IN_ORDER = 20, IN_REPETITION = 52,
    IN_FREQUENCY = 56, IN_PRESENCE = 60, IN_SEED = 64, IN_MIN_TOKENS = 72, IN_MAX_TOKENS = 76, IN_IGNORE_EOS = 80,
    IN_BIASES = 84, IN_STOP_IDS = 88, IN_STOPS = 92, IN_LISTS = 96
};

static void put_u32(saved s, size_t at, uint32_t v) {
    memcpy(s.bytes + at, &v, sizeof v);
}

static void put_u64(saved s, size_t at, uint64_t v) {
    memcpy(s.bytes + at, &v, sizeof v);
}

static uint64_t section_bytes(saved s, int section) {
    return fl_load_u64(s.bytes + AT_SECTIONS + 16 * section);
}

static size_t section_at(saved s, int section) {
    size_t at = HEADER;
    for (int i = 0; i < section; i++) {
        at += (size_t)section_bytes(s, i);
    }
    return at;
}

/* Make all checksums right again, of sections as far as they lie within the bytes. */
static void forge(saved s) {
    size_t at = HEADER;
    for (int i = 0; i < FL_SECTIONS; i++) {
        uint64_t n = section_bytes(s, i);
        if (n > s.n - at) {
            break;
        }
        put_u64(s, AT_SECTIONS + 16 * (size_t)i + 8, inside_checksum(s.bytes + at, (size_t)n));
        at += (size_t)n;
    }
    put_u64(s, AT_CHECKSUM, inside_checksum(s.bytes, AT_CHECKSUM));
}

/* The same snapshot with another sampling section. */
static saved with_sampling(saved s, const uint8_t *sampling, size_t n) {
    size_t at = section_at(s, FL_SECTION_SAMPLING), was = (size_t)section_bytes(s, FL_SECTION_SAMPLING);
    saved out = {malloc(s.n - was + n), s.n - was + n};
    memcpy(out.bytes, s.bytes, at);
    memcpy(out.bytes + at, sampling, n);
    memcpy(out.bytes + at + n, s.bytes + at + was, s.n - at - was);
    put_u64(out, AT_SECTIONS + 16 * FL_SECTION_SAMPLING, n);
    forge(out);
    return out;
}

static folollm *victim;
static image before;
static saved good;

static void victim_is_whole(void) {
    CHECK_INVARIANTS(victim);
    CHECK(is_as_in(victim, before));
}

/* What a stream that was refused left in free memory is no matter for what comes next. */
static void take_image(void) {
    free(before.bytes);
    before = image_of(victim);
}

/* A forged copy with this in place of what stands there. */
static bool forged_u32(size_t at, uint32_t v, folollm_status expected) {
    saved s = copy_of(good, good.n);
    put_u32(s, at, v);
    forge(s);
    bool right = is_refused(victim, before, s.bytes, s.n, expected);
    stream in = {s.bytes, s.n, 0, 0, 0, 0};
    right = is_refused_from(victim, before, &in, expected) && right;
    take_image();
    free(s.bytes);
    return right;
}

static bool forged_u64(size_t at, uint64_t v, folollm_status expected) {
    saved s = copy_of(good, good.n);
    put_u64(s, at, v);
    forge(s);
    bool right = is_refused(victim, before, s.bytes, s.n, expected);
    free(s.bytes);
    return right;
}

/* Accidents: bytes that are missing, added, or changed. */
static void test_damage(void) {
    for (size_t n = 0; n < good.n; n++) {
        saved s = copy_of(good, n);
        CHECK(is_refused(victim, before, s.bytes, n, FOLOLLM_E_FORMAT));
        free(s.bytes);
    }
    for (size_t bit = 0; bit < 8 * HEADER; bit++) {
        saved s = copy_of(good, good.n);
        s.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(is_refused(victim, before, s.bytes, s.n,
                         bit / 8 >= AT_VERSION && bit / 8 < AT_KV_TYPE ? FOLOLLM_E_UNSUPPORTED : FOLOLLM_E_FORMAT));
        free(s.bytes);
    }
    for (int section = 0; section < FL_SECTIONS; section++) {
        size_t n_bits = 8 * (size_t)section_bytes(good, section), stride = n_bits / 299 + 1;
        CHECK(n_bits > 0);
        for (size_t i = 0; i < n_bits; i += stride) {
            size_t bit = i + stride < n_bits ? i : n_bits - 1; /* the first and the last too */
            saved s = copy_of(good, good.n);
            s.bytes[section_at(s, section) + bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
            free(s.bytes);
        }
    }
    for (size_t extra = 1; extra < 40; extra += 3) {
        saved s = copy_of(good, good.n + extra);
        memset(s.bytes + good.n, extra % 2 ? 0 : 0xEE, extra);
        CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
        free(s.bytes);
    }
    saved twice = copy_of(good, 2 * good.n);
    memcpy(twice.bytes + good.n, good.bytes, good.n);
    CHECK(is_refused(victim, before, twice.bytes, twice.n, FOLOLLM_E_FORMAT));
    free(twice.bytes);
    victim_is_whole();
}

static void test_forged_header(void) {
    static const uint32_t odd[] = {0, 1, 0x7FFFFFFF, 0x80000000u, UINT32_MAX};
    static const uint64_t odd_long[] = {1, 0x7FFFFFFF, 0xFFFFFFFF, UINT64_C(1) << 32, UINT64_C(1) << 63,
                                        (UINT64_C(1) << 63) - 1, UINT64_MAX, UINT64_MAX - 7};
    uint32_t n_tokens = fl_load_u32(good.bytes + AT_TOKENS);
    for (size_t i = 0; i < FL_COUNT(odd); i++) {
        if (odd[i] != inside_snapshot_version) {
            CHECK(forged_u32(AT_VERSION, odd[i], FOLOLLM_E_UNSUPPORTED));
        }
        CHECK(odd[i] == FOLOLLM_KV_F16 || forged_u32(AT_KV_TYPE, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(forged_u32(AT_LAYERS, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(forged_u32(AT_KV_HEADS, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(forged_u32(AT_HEAD_DIM, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(forged_u32(AT_VOCAB, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(forged_u32(AT_FINGERPRINT, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(odd[i] == 0 || forged_u32(AT_ADAPTER, odd[i], FOLOLLM_E_UNSUPPORTED));
        CHECK(forged_u32(AT_TOKENS, odd[i], FOLOLLM_E_FORMAT));
        CHECK(odd[i] <= n_tokens || forged_u32(AT_PROMPT, odd[i], FOLOLLM_E_FORMAT));
    }
    for (uint32_t d = 1; d < 3 * PAGE; d++) {
        CHECK(forged_u32(AT_TOKENS, n_tokens + d, FOLOLLM_E_FORMAT));
        CHECK(d >= n_tokens || forged_u32(AT_TOKENS, n_tokens - d, FOLOLLM_E_FORMAT));
        CHECK(forged_u32(AT_PROMPT, n_tokens + d, FOLOLLM_E_FORMAT));
    }
    CHECK(forged_u64(0, 0, FOLOLLM_E_FORMAT));
    for (int section = 0; section < FL_SECTIONS; section++) {
        size_t at = AT_SECTIONS + 16 * (size_t)section;
        uint64_t n = section_bytes(good, section);
        for (size_t i = 0; i < FL_COUNT(odd_long); i++) {
            CHECK(forged_u64(at, odd_long[i], FOLOLLM_E_FORMAT));
            CHECK(forged_u64(at, n + odd_long[i], FOLOLLM_E_FORMAT));
        }
        CHECK(forged_u64(at, 0, FOLOLLM_E_FORMAT));
        CHECK(forged_u64(at, n - 1, FOLOLLM_E_FORMAT) && forged_u64(at, n - 4, FOLOLLM_E_FORMAT));
    }
    saved s = copy_of(good, good.n); /* lengths whose sum is right modulo 2^64 */
    uint64_t n = section_bytes(s, FL_SECTION_SAMPLING);
    put_u64(s, AT_SECTIONS + 16 * FL_SECTION_SAMPLING, n + (UINT64_C(1) << 63));
    put_u64(s, AT_SECTIONS + 16 * FL_SECTION_KV, section_bytes(s, FL_SECTION_KV) + (UINT64_C(1) << 63));
    forge(s);
    CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
    free(s.bytes);
    s = copy_of(good, good.n); /* one section's end moved into the next */
    put_u64(s, AT_SECTIONS + 16 * FL_SECTION_SAMPLING, n + 4);
    put_u64(s, AT_SECTIONS + 16 * FL_SECTION_LOGITS, section_bytes(good, FL_SECTION_LOGITS) - 4);
    forge(s);
    CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
    free(s.bytes);
    victim_is_whole();
}

static void test_forged_numbers(void) {
    static const uint32_t bad_tokens[] = {80, 81, 1024, 0x7FFFFFFF, 0x80000000u, UINT32_MAX};
    static const float bad_floats[] = {NAN, -NAN, INFINITY, -INFINITY};
    size_t tokens = section_at(good, FL_SECTION_TOKENS), logits = section_at(good, FL_SECTION_LOGITS);
    uint32_t n_tokens = fl_load_u32(good.bytes + AT_TOKENS);
    for (size_t i = 0; i < FL_COUNT(bad_tokens); i++) {
        for (size_t at = 0; at < n_tokens; at += n_tokens - 1) {
            CHECK(forged_u32(tokens + 4 * at, bad_tokens[i], FOLOLLM_E_FORMAT));
        }
    }
    for (size_t i = 0; i < FL_COUNT(bad_floats); i++) {
        for (size_t at = 0; at < 80; at += 79) {
            CHECK(forged_u32(logits + 4 * at, fl_bits_of_float(bad_floats[i]), FOLOLLM_E_FORMAT));
        }
    }
    victim_is_whole();
}

static void test_forged_sampling(void) {
    static const float never[] = {NAN, INFINITY, -INFINITY, -0.5f, 101, -101, 1e30f, -FLT_MAX, FLT_MAX};
    static const size_t floats[] = {IN_TEMPERATURE, IN_TOP_P, IN_MIN_P, IN_REPETITION, IN_FREQUENCY, IN_PRESENCE};
    static const uint32_t counts[] = {FL_BIASES_MAX + 1, 1u << 16, 0x7FFFFFFF, 0x80000000u, 0xFFFFFFF0u, UINT32_MAX};
    size_t at = section_at(good, FL_SECTION_SAMPLING);
    for (size_t f = 0; f < FL_COUNT(floats); f++) {
        for (size_t i = 0; i < FL_COUNT(never); i++) {
            bool allowed = floats[f] >= IN_FREQUENCY && never[i] == -0.5f;
            CHECK(allowed || forged_u32(at + floats[f], fl_bits_of_float(never[i]), FOLOLLM_E_FORMAT));
        }
    }
    for (uint32_t i = 3; i != 0; i *= 2) {
        CHECK(forged_u32(at + IN_PRESET, i, FOLOLLM_E_FORMAT));
        CHECK(forged_u32(at + IN_ORDER, i + 2, FOLOLLM_E_FORMAT));
    }
    saved s = copy_of(good, good.n);
    put_u32(s, at + IN_ORDER, FOLOLLM_STAGE_TOP_K);
    put_u32(s, at + IN_ORDER + 4, FOLOLLM_STAGE_TOP_K);
    forge(s);
    CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
    free(s.bytes);
    s = copy_of(good, good.n);
    put_u32(s, at + IN_MIN_TOKENS, 5);
    put_u32(s, at + IN_MAX_TOKENS, 4);
    forge(s);
    CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
    free(s.bytes);
    for (size_t i = 0; i < FL_COUNT(counts); i++) {
        CHECK(forged_u32(at + IN_BIASES, counts[i], FOLOLLM_E_FORMAT));
        CHECK(forged_u32(at + IN_STOP_IDS, counts[i], FOLOLLM_E_FORMAT));
        CHECK(forged_u32(at + IN_STOPS, counts[i], FOLOLLM_E_FORMAT));
    }
    for (uint32_t n = 0; n < 20; n++) { /* any other than its own leaves bytes or lacks them */
        CHECK(n == 2 || forged_u32(at + IN_BIASES, n, FOLOLLM_E_FORMAT));
        CHECK(n == 3 || forged_u32(at + IN_STOP_IDS, n, FOLOLLM_E_FORMAT));
        CHECK(n == 2 || forged_u32(at + IN_STOPS, n, FOLOLLM_E_FORMAT));
    }
    victim_is_whole();
}

/* The same with lists of a wrong length that fit their section, and what is in them. */
static void test_forged_lists(void) {
    static uint8_t section[IN_LISTS + 4096];
    size_t at = section_at(good, FL_SECTION_SAMPLING);
    saved s, as = {section, sizeof section};
    for (int list = 0; list < 3; list++) { /* full lists do, one entry more does not */
        const uint32_t n_eos = (uint32_t)victim->checkpoint->generation.n_eos; /* they are stop ids too */
        const uint32_t most[] = {FL_BIASES_MAX, FL_STOP_IDS_MAX - n_eos, FL_STOPS_MAX};
        static const size_t each[] = {8, 4, 5};
        for (uint32_t more = 0; more < 2; more++) {
            uint32_t n = most[list] + more;
            memset(section, 0, sizeof section);
            put_u32(as, IN_BIASES + 4 * (size_t)list, n);
            for (uint32_t i = 0; i < n && list == 2; i++) {
                put_u32(as, IN_LISTS + 5 * i, 1);
                section[IN_LISTS + 5 * i + 4] = 'a';
            }
            s = with_sampling(good, section, IN_LISTS + n * each[list]);
            if (more) {
                CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
            } else {
                close_sequence(victim, restore(victim, s));
                free(before.bytes);
                before = image_of(victim);
            }
            free(s.bytes);
        }
    }
    static const uint32_t lengths[] = {0, 129, 255, 256, 257, 0x7FFFFFFF, 0xFFFFFF7Fu, UINT32_MAX};
    for (size_t i = 0; i < FL_COUNT(lengths); i++) {
        for (size_t there = 0; there < 300; there += 37) { /* bytes that follow */
            memset(section, 0, IN_LISTS);
            memset(section + IN_LISTS, 'a', sizeof section - IN_LISTS);
            put_u32(as, IN_STOPS, 1);
            put_u32(as, IN_LISTS, lengths[i]);
            s = with_sampling(good, section, IN_LISTS + 4 + there);
            CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
            free(s.bytes);
            s = with_sampling(good, section, IN_LISTS + 4 + (lengths[i] < 300 ? lengths[i] : there));
            CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
            free(s.bytes);
        }
    }
    static const char *const broken[] = {"\x80", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF"};
    for (size_t i = 0; i < FL_COUNT(broken); i++) {
        size_t n = strlen(broken[i]);
        memset(section, 0, IN_LISTS);
        put_u32(as, IN_STOPS, 1);
        put_u32(as, IN_LISTS, (uint32_t)n);
        memcpy(section + IN_LISTS + 4, broken[i], n);
        s = with_sampling(good, section, IN_LISTS + 4 + n);
        CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
        free(s.bytes);
    }
    static const uint32_t bad[] = {80, 0x7FFFFFFF, 0x80000000u, UINT32_MAX};
    static const float bad_bias[] = {NAN, INFINITY};
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        CHECK(forged_u32(at + IN_LISTS, bad[i], FOLOLLM_E_FORMAT));
        CHECK(forged_u32(at + IN_LISTS + 16, bad[i], FOLOLLM_E_FORMAT));
        CHECK(forged_u32(at + IN_LISTS + 4, fl_bits_of_float(bad_bias[i % 2]), FOLOLLM_E_FORMAT));
    }
    for (size_t n = 0; n < IN_LISTS; n++) { /* a section that ends within its fixed part */
        s = with_sampling(good, good.bytes + at, n);
        CHECK(is_refused(victim, before, s.bytes, s.n, FOLOLLM_E_FORMAT));
        free(s.bytes);
    }
    victim_is_whole();
}

/* What an accepted forgery can do: be stepped, saved and closed. Its snapshot is one that restores to itself. */
static void use_and_close(folollm_seq seq) {
    folollm_sampled sampled;
    folollm_token next = 5;
    CHECK_INVARIANTS(victim);
    saved s = save(victim, seq);
    folollm_status status = folollm_sample(victim, seq, &sampled, NULL, 0, &error);
    CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_STATE);
    CHECK(status != FOLOLLM_OK || (sampled.token >= 0 && sampled.token < 80));
    status = folollm_decode_step(victim, &seq, &next, 1, &error);
    CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_NUMERIC || status == FOLOLLM_E_CONTEXT);
    close_sequence(victim, seq);
    seq = restore(victim, s);
    saved again = save(victim, seq);
    CHECK(equal(s, again));
    close_sequence(victim, seq);
    free(s.bytes);
    free(again.bytes);
}

/* Keys and values that are no numbers: the step says so, or overflows nowhere; nobody else is hurt. */
static void test_forged_kv(void) {
    static const uint16_t patterns[] = {0xFFFF, 0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0xFBFF, 0x0001, 0x8000, 0};
    folollm_token next = 5;
    unsigned n_refused = 0;
    for (size_t i = 0; i < FL_COUNT(patterns) * 2; i++) {
        saved s = copy_of(good, good.n);
        size_t at = section_at(s, FL_SECTION_KV), n = (size_t)section_bytes(s, FL_SECTION_KV);
        size_t stride = i % 2 ? n / 3 / 2 * 2 : 2; /* all, or three values */
        for (size_t k = 0; k + 2 <= n; k += stride) {
            memcpy(s.bytes + at + k, &patterns[i / 2], 2);
        }
        forge(s);
        folollm_seq seq = restore(victim, s), fine = restore(victim, good);
        party p[2] = {{victim, fine}, {engines[HOME], restore(engines[HOME], good)}};
        folollm_status status = folollm_decode_step(victim, &seq, &next, 1, &error);
        CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_NUMERIC);
        n_refused += status == FOLOLLM_E_NUMERIC;
        CHECK((patterns[i / 2] & 0x7C00) == 0x7C00 || status == FOLOLLM_OK || stride == 2);
        CHECK((patterns[i / 2] & 0x7FFF) <= 0x7C00 || i % 2 == 1 || status == FOLOLLM_E_NUMERIC);
        CHECK(victim->sequences.slots[seq % FL_SEQS_MAX].n_tokens ==
              fl_load_u32(good.bytes + AT_TOKENS) + (status == FOLOLLM_OK));
        step_all(p, 2, -1);
        step_all(p, 2, -1);
        close_sequence(victim, fine);
        close_sequence(victim, seq);
        close_sequence(engines[HOME], p[1].seq);
        CHECK_INVARIANTS(victim);
        free(s.bytes);
    }
    CHECK(n_refused >= 4);
    free(before.bytes);
    before = image_of(victim);
}

/* Random forgeries of the header and the sampling section. */
static void test_mutations(unsigned n_rounds) {
    static const uint32_t odd[] = {0, 1, 2, 3, 4, 8, 16, 64, 79, 80, 96, 97, 128, 129, 256, 257,
                                   0x7FFFFFFF, 0x80000000u, 0xFFFFFFF0u, UINT32_MAX,
                                   0x7F800000u, 0xFF800000u, 0x7FC00000u, 0x3F800000u, 0xBF800000u};
    unsigned by_status[16] = {0};
    size_t sampling = section_at(good, FL_SECTION_SAMPLING);
    size_t n_sampling = (size_t)section_bytes(good, FL_SECTION_SAMPLING);
    for (unsigned round = 0; round < n_rounds; round++) {
        saved s = copy_of(good, good.n);
        for (uint32_t n = 1 + random_below(3); n > 0; n--) {
            bool of_sampling = random_below(4) != 0;
            size_t begin = of_sampling ? sampling : AT_TOKENS;
            size_t bytes = of_sampling ? n_sampling : AT_ADAPTER - AT_TOKENS;
            size_t at = begin + random_below((uint32_t)bytes);
            switch (random_below(4)) {
            case 0:
                s.bytes[at] = (uint8_t)random_below(256);
                break;
            case 1:
                s.bytes[at] ^= (uint8_t)(1u << random_below(8));
                break;
            default:
                at = begin + (at - begin) / 4 * 4;
                if (at + 4 <= begin + bytes) {
                    put_u32(s, at, odd[random_below(FL_COUNT(odd))]);
                }
            }
        }
        forge(s);
        folollm_seq seq = 0x77777777;
        folollm_status status = folollm_seq_restore(victim, s.bytes, s.n, &seq, &error);
        CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT);
        by_status[-(int)status & 15]++;
        if (status == FOLOLLM_OK) {
            use_and_close(seq);
            free(before.bytes);
            before = image_of(victim);
        } else {
            CHECK(seq == 0x77777777 && is_as_in(victim, before));
        }
        free(s.bytes);
    }
    printf("%u random forgeries: %u accepted, %u refused\n", n_rounds, by_status[0], by_status[-FOLOLLM_E_FORMAT]);
    CHECK(by_status[0] > n_rounds / 50 && by_status[-FOLOLLM_E_FORMAT] > n_rounds / 4);
    victim_is_whole();
}

/* The one to be damaged: a sequence with everything in it, two lists of two and one of three entries. */
static void open_victim(void) {
    static const folollm_bias some[] = {{5, 3.5f}, {7, -INFINITY}};
    static const folollm_text words[] = {{"he", 2}, {"hello\n", 6}};
    folollm_sampling sampling = {.temperature = 0.8f, .top_k = 30, .top_p = 0.9f, .seed = 3,
                                 .biases = some, .n_biases = 2, .stop_ids = stop_ids, .n_stop_ids = 3,
                                 .stops = words, .n_stops = 2};
    folollm_seq seq, other, driven[2];
    folollm_token prompt[] = {8, 9, 10};
    folollm_event events[4];
    size_t n_events = 4;
    host_init(&host, true);
    CHECK(host_put_directory(&host, SMALL));
    host_put_tokenizer(&host);
    folollm_options o = {.pool_tokens = 12 * 16 + 5};
    engines[HOME] = open_small(o);
    victim = open_small(o);
    MUST(folollm_seq_open(engines[HOME], &sampling, &seq, &error));
    feed(engines[HOME], seq, 0, PAGE + 1, false);
    feed(engines[HOME], seq, PAGE + 1, 2 * PAGE + 3, true);
    good = save(engines[HOME], seq);
    close_sequence(engines[HOME], seq);
    /* The victim is in the middle of something: a sequence, and a request that was begun. */
    MUST(folollm_seq_open(victim, &sampling, &other, &error));
    feed(victim, other, 0, PAGE + 2, false);
    folollm_submission submission = {.prompt = prompt, .n_prompt = 3, .n_answers = 2};
    MUST(folollm_submit(victim, &submission, driven, &error));
    MUST(folollm_step(victim, NULL, events, &n_events, &error));
    CHECK(n_events == 2);
    before = image_of(victim);
}

static void close_victim(void) {
    folollm_event events[4];
    folollm_stats stats;
    unsigned n = 0;
    do { /* what was begun is finished */
        size_t n_events = 4;
        MUST(folollm_step(victim, NULL, events, &n_events, &error));
        folollm_get_stats(victim, &stats);
    } while (stats.requests_running + stats.requests_waiting > 0 && ++n < 1000);
    CHECK(stats.requests_finished == 2);
    folollm_free(victim);
    folollm_free(engines[HOME]);
    CHECK(host_is_clean(&host));
    host_free(&host);
    free(before.bytes);
    free(good.bytes);
}

/* ---- Streams -- */

/* Of so many pieces that any may be the one that fails. */
static saved make_long(void) {
    folollm_seq seq;
    MUST(folollm_seq_open(engines[HOME], NULL, &seq, &error));
    feed(engines[HOME], seq, 0, 5 * PAGE + 1, false);
    saved s = save(engines[HOME], seq);
    close_sequence(engines[HOME], seq);
    return s;
}

/* The n-th write fails, for every n: the engine is as it was to the last byte, and nothing more is written. */
static void test_failing_writes(saved s) {
    stream out = {malloc(s.n), s.n, 0, 0, 0, 0};
    folollm_seq seq = restore(victim, s);
    image is = image_of(victim);
    uint64_t n_calls = host.n_calls;
    MUST(folollm_seq_save_to(victim, seq, stream_write, &out, &error));
    CHECK(out.n_calls >= s.n / 8192 && host.n_calls == n_calls);
    for (unsigned at = 1; at <= out.n_calls; at++) {
        stream bad = {out.bytes, out.n, 0, 0, at, 0};
        CHECK(folollm_seq_save_to(victim, seq, stream_write, &bad, at % 2 ? &error : NULL) == FOLOLLM_E_IO);
        CHECK(bad.n_calls == at && bad.n_wrong == 0 && error.status == FOLOLLM_E_IO);
    }
    CHECK(is_as_in(victim, is));
    close_sequence(victim, seq);
    take_image();
    free(is.bytes);
    free(out.bytes);
}

/* The n-th read fails, or the stream ends at any byte. */
static void test_failing_reads(saved s) {
    stream in = {s.bytes, s.n, 0, 0, 0, 0};
    folollm_seq seq = 0;
    uint64_t n_calls = host.n_calls;
    MUST(folollm_seq_restore_from(victim, stream_read, &in, &seq, &error));
    CHECK(in.n_calls >= 5 && in.n_calls >= s.n / 8192 && host.n_calls == n_calls);
    close_sequence(victim, seq);
    take_image();
    for (unsigned at = 1; at <= in.n_calls; at++) {
        stream bad = {s.bytes, s.n, 0, 0, at, 0};
        CHECK(is_refused_from(victim, before, &bad, FOLOLLM_E_IO) && bad.n_calls == at);
        CHECK_INVARIANTS(victim);
    }
    for (size_t n = 0; n < s.n; n += n < HEADER ? 1 : s.n / 99) {
        stream bad = {s.bytes, n, 0, 0, 0, 0};
        CHECK(is_refused_from(victim, before, &bad, FOLOLLM_E_IO));
    }
    printf("streams of %u bytes: %u reads\n", (unsigned)s.n, in.n_calls);
    take_image();
    victim_is_whole();
}

/* Bits flip on the way: in the header before a page is taken, behind it while pages are filled. */
static void test_damaged_streams(void) {
    for (size_t bit = 0; bit < 8 * good.n; bit += bit < 8 * HEADER ? 1 : 8 * good.n / 499) {
        saved s = copy_of(good, good.n);
        s.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        stream in = {s.bytes, s.n, 0, 0, 0, 0};
        bool version = bit / 8 >= AT_VERSION && bit / 8 < AT_KV_TYPE;
        CHECK(is_refused_from(victim, before, &in, version ? FOLOLLM_E_UNSUPPORTED : FOLOLLM_E_FORMAT));
        CHECK(in.at == (bit / 8 < HEADER ? HEADER : in.at) && error.status != FOLOLLM_E_IO);
        free(s.bytes);
    }
    take_image();
    victim_is_whole();
}

/* Snapshots behind each other in one stream, and something else at its end. */
static void test_stream_goes_on(void) {
    saved both = copy_of(good, 2 * good.n + 3);
    folollm_seq one = 0, two = 0;
    memcpy(both.bytes + good.n, good.bytes, good.n);
    stream in = {both.bytes, both.n, 0, 0, 0, 0};
    MUST(folollm_seq_restore_from(victim, stream_read, &in, &one, &error));
    CHECK(in.at == good.n);
    MUST(folollm_seq_restore_from(victim, stream_read, &in, &two, &error));
    CHECK(in.at == 2 * good.n && one != two);
    compare_snapshots((party[]){{victim, one}, {victim, two}}, 2);
    close_sequence(victim, one);
    close_sequence(victim, two);
    free(both.bytes);
    take_image();
}

static void test_streams(void) {
    saved s = make_long();
    test_failing_writes(s);
    test_failing_reads(s);
    free(s.bytes);
    test_damaged_streams();
    test_stream_goes_on();
}

/* Pages whose content can be found again are the last that a restored sequence takes, the longest unused first; what a
 * failure made of them is free, and found no more. */
static void test_cached_pages(void) {
    enum { N = 3 };
    folollm_token prompt[N][64];
    folollm_event events[4];
    folollm_stats stats;
    folollm_seq seq;
    folollm *f = NULL;
    saved s = copy_of(good, good.n);
    uint32_t n_needed = (uint32_t)fl_div_up(fl_load_u32(good.bytes + AT_TOKENS), PAGE);
    s.bytes[s.n - 1] ^= 1; /* the very last is wrong */
    f = open_small((folollm_options){.pool_tokens = 8 * PAGE});
    for (uint32_t r = 0; r < N; r++) { /* each leaves two cached pages; two are of no use to anybody */
        for (uint32_t i = 0; i < 2 * PAGE; i++) {
            prompt[r][i] = (folollm_token)(10 * (r + 1) + i % 10);
        }
        folollm_sampling sampling = {.max_tokens = 1};
        folollm_submission submission = {.prompt = prompt[r], .n_prompt = 2 * PAGE, .sampling = &sampling};
        MUST(folollm_submit(f, &submission, &seq, &error));
        do {
            size_t n_events = 4;
            MUST(folollm_step(f, NULL, events, &n_events, &error));
            folollm_get_stats(f, &stats);
        } while (stats.requests_running + stats.requests_waiting > 0);
    }
    CHECK(stats.pages_cached == 2 * N && stats.pages_free == 8 && n_needed > 2);
    for (int round = 0; round < 2; round++) { /* the second time the pages are of no use already */
        stream in = {s.bytes, s.n, 0, 0, 0, 0};
        CHECK(folollm_seq_restore_from(f, stream_read, &in, &seq, &error) == FOLOLLM_E_FORMAT);
        CHECK_INVARIANTS(f);
        folollm_get_stats(f, &stats);
        CHECK(stats.pages_free == 8 && stats.seqs_open == 0);
        CHECK(stats.pages_evicted == n_needed - 2 && stats.pages_cached == 2 * N + 2 - n_needed);
    }
    CHECK(folollm_seq_restore(f, s.bytes, s.n, &seq, &error) == FOLOLLM_E_FORMAT);
    close_sequence(f, restore(f, good));
    folollm_get_stats(f, &stats);
    CHECK(stats.pages_evicted == n_needed - 2);
    fl_page_key key = {0, 0, 0};
    CHECK(fl_pages_find(&f->pages, key, prompt[0]) == FL_PAGE_NONE || n_needed < 4);
    CHECK(fl_pages_find(&f->pages, key, prompt[N - 1]) != FL_PAGE_NONE);
    free(s.bytes);
    folollm_free(f);
}

static void test_refusals(unsigned n_rounds) {
    open_victim();
    test_streams();
    test_cached_pages();
    test_damage();
    test_forged_header();
    test_forged_numbers();
    test_forged_sampling();
    test_forged_lists();
    test_forged_kv();
    test_mutations(n_rounds);
    close_victim();
}

/* ---- It fits, or not -- */

static saved snapshot_of(folollm *f, size_t n) {
    folollm_seq seq;
    MUST(folollm_seq_open(f, NULL, &seq, &error));
    feed(f, seq, 0, n, false);
    saved s = save(f, seq);
    close_sequence(f, seq);
    return s;
}

static void load_plain(const char *path, folollm_options o, folollm **f) {
    o.n_threads = 1;
    o.max_seqs = 2;
    o.max_requests = 2;
    MUST(folollm_load(path, &o, f, &error));
}

/* No restore from each of these to another: checkpoints of other shapes or weights, KV types, contexts of a RoPE that
 * follows the context. */
static void test_foreign(void) {
    static const struct {
        const char *path;
        folollm_options o;
    } all[] = {
        {SMALL, {.kv = FOLOLLM_KV_F16}},
        {SMALL, {.kv = FOLOLLM_KV_F32}},
        {SMALL, {.kv = FOLOLLM_KV_BF16}},
        {MODELS "llama-gqa-fp32", {.context = 40}},
        {MODELS "llama-mha-fp16", {.context = 40}},
        {MODELS "qwen3-gqa-fp16", {.context = 40}},
        {MODELS "qwen3-gqa-bf16", {.context = 40}},
        {MODELS "mistral-window-old", {.context = 40}},
        {MODELS "mistral-window-new", {.context = 40}},
        {MODELS "rope-none-old", {.context = 40}},
        {MODELS "rope-ntk-old", {.context = 40}},
        {MODELS "rope-dynamic-new", {.context = 40}},
        {MODELS "rope-dynamic-new", {.context = 60}},
        {MODELS "rope-dynamic-new", {.context = 80}},
        {MODELS "rope-yarn-old", {.context = 40}},
        {MODELS "rope-yarn-attention-new", {.context = 40}},
        {SHAKESPEARE, {.context = 40}},
    };
    folollm *f[FL_COUNT(all)];
    saved s[FL_COUNT(all)];
    for (size_t i = 0; i < FL_COUNT(all); i++) {
        load_plain(all[i].path, all[i].o, &f[i]);
        s[i] = snapshot_of(f[i], 20);
    }
    for (size_t i = 0; i < FL_COUNT(all); i++) {
        image is = image_of(f[i]);
        for (size_t k = 0; k < FL_COUNT(all); k++) {
            if (!CHECK(i == k || is_refused(f[i], is, s[k].bytes, s[k].n, FOLOLLM_E_UNSUPPORTED))) {
                printf("    %s (%u) from %s (%u)\n", all[i].path, (unsigned)i, all[k].path, (unsigned)k);
            }
        }
        free(is.bytes);
        close_sequence(f[i], restore(f[i], s[i]));
    }
    for (size_t i = 0; i < FL_COUNT(all); i++) {
        folollm_free(f[i]);
        free(s[i].bytes);
    }
}

/* A context below the one of rope-dynamic's training changes nothing in it; one above does. */
static void test_rope_context(void) {
    static const uint32_t contexts[] = {16, 39, 40, 41, 79, 80};
    folollm *f[FL_COUNT(contexts)];
    for (size_t i = 0; i < FL_COUNT(contexts); i++) {
        load_plain(MODELS "rope-dynamic-new", (folollm_options){.context = contexts[i]}, &f[i]);
    }
    for (size_t i = 0; i < FL_COUNT(contexts); i++) {
        saved s = snapshot_of(f[i], 10);
        for (size_t k = 0; k < FL_COUNT(contexts); k++) {
            folollm_seq seq = 0;
            bool same = contexts[i] == contexts[k] || (contexts[i] <= 40 && contexts[k] <= 40);
            folollm_status status = folollm_seq_restore(f[k], s.bytes, s.n, &seq, &error);
            CHECK(status == (same ? FOLOLLM_OK : FOLOLLM_E_UNSUPPORTED));
            if (status == FOLOLLM_OK) {
                close_sequence(f[k], seq);
            }
        }
        free(s.bytes);
    }
    for (size_t i = 0; i < FL_COUNT(contexts); i++) {
        folollm_free(f[i]);
    }
}

/* The snapshot of a checkpoint is refused by the same one with a bit changed in the first or the last whole word of a
 * tensor. What is compared is a fingerprint: shapes, sixteen words of each matrix from its first to its last, all of
 * the norms and biases, and the numbers of config.json that a forward pass reads. A change to other words of a matrix
 * alone is not seen. */
static void check_other_weights(const char *tensor, bool last, saved s, const char *directory) {
    test_host h;
    fl_memory m;
    fl_tensors t;
    host_init(&h, true);
    CHECK(host_put_directory(&h, directory));
    fl_memory_init(&m, &h.hooks);
    MUST(fl_tensors_open(&m, &t, "mem", NULL, &error));
    const fl_tensor *found = fl_tensors_find(&t, fl_str_of(tensor));
    if (CHECK_TEXT(found != NULL, tensor)) {
        size_t at = (size_t)found->offset + (last ? (size_t)found->n_bytes - (found->n_bytes % 8 + 8) : 0);
        host_find(&h, "model.safetensors")->bytes[at] ^= 1;
    }
    fl_tensors_close(&t);
    folollm *f = NULL;
    MUST(folollm_load("mem", &(folollm_options){.host = &h.hooks, .n_threads = 1, .max_requests = 2}, &f, &error));
    image is = image_of(f);
    CHECK_TEXT(is_refused(f, is, s.bytes, s.n, FOLOLLM_E_UNSUPPORTED), tensor);
    free(is.bytes);
    folollm_free(f);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

static void test_other_weights(void) {
    static const char *const tensors[] = {
        "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
    };
    folollm *f = NULL;
    load_plain(SMALL, (folollm_options){.context = 0}, &f);
    saved s = snapshot_of(f, 20);
    for (size_t i = 0; i < FL_COUNT(tensors); i++) {
        check_other_weights(tensors[i], false, s, SMALL);
        check_other_weights(tensors[i], true, s, SMALL);
    }
    folollm_free(f);
    free(s.bytes);
    load_plain(MODELS "qwen3-mqa-fp16", (folollm_options){.context = 0}, &f); /* with q and k norms, and biases */
    s = snapshot_of(f, 20);
    check_other_weights("model.layers.1.self_attn.q_norm.weight", false, s, MODELS "qwen3-mqa-fp16");
    check_other_weights("model.layers.1.self_attn.k_norm.weight", false, s, MODELS "qwen3-mqa-fp16");
    check_other_weights("model.layers.1.self_attn.k_proj.bias", false, s, MODELS "qwen3-mqa-fp16");
    check_other_weights("model.layers.1.self_attn.o_proj.bias", true, s, MODELS "qwen3-mqa-fp16");
    folollm_free(f);
    free(s.bytes);
}

/* The same weights under another config.json are another model: keys mean something else in it. */
static void test_other_config(void) {
    static const struct {
        const char *path, *from, *to;
    } changes[] = {
        {MODELS "mistral-window-old", "\"sliding_window\": 20", "\"sliding_window\": 19"},
        {MODELS "mistral-window-new", "\"sliding_window\": 7", "\"sliding_window\": 8"},
        {SMALL, "\"rms_norm_eps\": 0.01", "\"rms_norm_eps\": 0.02"},
    };
    for (size_t i = 0; i < FL_COUNT(changes); i++) {
        test_host h;
        folollm *f = NULL;
        load_plain(changes[i].path, (folollm_options){.context = 0}, &f);
        saved s = snapshot_of(f, 20);
        folollm_free(f);
        host_init(&h, true);
        CHECK(host_put_directory(&h, changes[i].path));
        host_file *config = host_find(&h, "config.json");
        size_t n = strlen(changes[i].from), at = 0;
        while (at + n < config->n && memcmp(config->bytes + at, changes[i].from, n) != 0) {
            at++;
        }
        CHECK_TEXT(at + n < config->n && strlen(changes[i].to) == n, changes[i].from);
        memcpy(config->bytes + at, changes[i].to, n);
        MUST(folollm_load("mem", &(folollm_options){.host = &h.hooks, .n_threads = 1, .max_requests = 2}, &f, &error));
        image is = image_of(f);
        CHECK_TEXT(is_refused(f, is, s.bytes, s.n, FOLOLLM_E_UNSUPPORTED), changes[i].from);
        free(is.bytes);
        folollm_free(f);
        host_free(&h);
        free(s.bytes);
    }
}

/* Too long, too many, no room; then, with room, it does. */
static void test_no_room(void) {
    folollm *big = NULL, *small = NULL;
    folollm_seq seqs[2], held = 0;
    load_plain(SMALL, (folollm_options){.pool_tokens = 96 * 4}, &big);
    load_plain(SMALL, (folollm_options){.context = 5 * PAGE, .pool_tokens = 6 * PAGE}, &small);
    for (uint32_t n = 5 * PAGE; n < 5 * PAGE + 3; n++) { /* context */
        saved s = snapshot_of(big, n);
        image is = image_of(small);
        if (n > 5 * PAGE) {
            CHECK(is_refused(small, is, s.bytes, s.n, FOLOLLM_E_CONTEXT));
            CHECK(is_refused_from(small, is, &(stream){s.bytes, HEADER, 0, 0, 0, 0}, FOLOLLM_E_CONTEXT));
        } else {
            folollm_seq seq = restore(small, s);
            folollm_token next = 1;
            CHECK(folollm_decode_step(small, &seq, &next, 1, &error) == FOLOLLM_E_CONTEXT);
            close_sequence(small, seq);
        }
        free(is.bytes);
        free(s.bytes);
    }
    for (uint32_t n = 0; n < 3 * PAGE + 2; n++) { /* pages: four are held, two are free */
        saved s = snapshot_of(big, n);
        MUST(folollm_seq_open(small, NULL, &held, &error));
        feed(small, held, 0, 3 * PAGE + 1, false);
        CHECK(small->pages.n_free == 2);
        image is = image_of(small);
        if (n > 2 * PAGE) {
            CHECK(is_refused(small, is, s.bytes, s.n, FOLOLLM_E_POOL));
            CHECK(is_refused_from(small, is, &(stream){s.bytes, HEADER, 0, 0, 0, 0}, FOLOLLM_E_POOL));
            free(is.bytes);
            MUST(folollm_seq_truncate(small, held, PAGE, &error));
            is = image_of(small);
        }
        close_sequence(small, restore(small, s));
        close_sequence(small, held);
        free(is.bytes);
        free(s.bytes);
    }
    saved s = snapshot_of(big, PAGE / 2); /* slots */
    seqs[0] = restore(small, s);
    seqs[1] = restore(small, s);
    image is = image_of(small);
    CHECK(is_refused(small, is, s.bytes, s.n, FOLOLLM_E_POOL));
    CHECK(is_refused_from(small, is, &(stream){s.bytes, HEADER, 0, 0, 0, 0}, FOLOLLM_E_POOL) && is_as_in(small, is));
    free(is.bytes);
    close_sequence(small, seqs[0]);
    seqs[0] = restore(small, s);
    free(s.bytes);
    folollm_free(small);
    folollm_free(big);
}

/* What the entries say of handles, NULLs and states. */
static void test_misuse(void) {
    folollm *f = NULL, *text_only = NULL;
    folollm_seq seq, closed, driven, out = 0x77777777;
    folollm_token prompt[] = {1, 2, 3};
    folollm_event events[2];
    uint8_t room[64];
    size_t n = 0, n_events = 2;
    load_plain(SMALL, (folollm_options){.context = 0}, &f);
    saved s = snapshot_of(f, PAGE + 1);
    MUST(folollm_seq_open(f, NULL, &closed, &error));
    close_sequence(f, closed);
    MUST(folollm_seq_open(f, NULL, &seq, &error));
    folollm_submission submission = {.prompt = prompt, .n_prompt = 3, .tag = 1};
    MUST(folollm_submit(f, &submission, &driven, &error));
    image is = image_of(f);
    CHECK(folollm_seq_save(NULL, seq, NULL, &n, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_save(f, seq, NULL, NULL, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_save(f, seq, room, NULL, &error) == FOLOLLM_E_ARGUMENT);
    n = 1;
    CHECK(folollm_seq_save(f, seq, NULL, &n, &error) == FOLOLLM_E_ARGUMENT && n == 1);
    CHECK(folollm_seq_save(f, closed, NULL, &n, &error) == FOLOLLM_E_SEQUENCE && n == 1);
    CHECK(folollm_seq_save(f, 0, NULL, &n, &error) == FOLOLLM_E_SEQUENCE && n == 1);
    CHECK(folollm_seq_save(f, UINT32_MAX, NULL, &n, &error) == FOLOLLM_E_SEQUENCE && n == 1);
    CHECK(folollm_seq_save(f, driven, NULL, &n, &error) == FOLOLLM_E_STATE && n == 1);
    CHECK(folollm_seq_save(f, closed, NULL, &n, NULL) == FOLOLLM_E_SEQUENCE);
    n = 0; /* a buffer with no room is a question too */
    memset(room, 0x5A, sizeof room);
    CHECK(folollm_seq_save(f, seq, room, &n, &error) == FOLOLLM_E_BUFFER && n > HEADER && room[0] == 0x5A);
    CHECK(folollm_seq_restore(NULL, s.bytes, s.n, &out, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_restore(f, NULL, s.n, &out, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_restore(f, NULL, 0, &out, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_restore(f, s.bytes, s.n, NULL, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_restore(f, s.bytes, 0, &out, &error) == FOLOLLM_E_FORMAT);
    CHECK(folollm_seq_restore(f, s.bytes, s.n - 1, &out, NULL) == FOLOLLM_E_FORMAT);
    stream io = {s.bytes, 0, 0, 0, 0, 0}; /* of which nothing may be asked, but at the end */
    CHECK(folollm_seq_save_to(NULL, seq, stream_write, &io, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_save_to(f, seq, NULL, &io, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_save_to(f, closed, stream_write, &io, &error) == FOLOLLM_E_SEQUENCE);
    CHECK(folollm_seq_save_to(f, driven, stream_write, &io, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_restore_from(NULL, stream_read, &io, &out, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_restore_from(f, NULL, &io, &out, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_seq_restore_from(f, stream_read, &io, NULL, &error) == FOLOLLM_E_ARGUMENT && io.n_calls == 0);
    CHECK(folollm_seq_restore_from(f, stream_read, &io, &out, NULL) == FOLOLLM_E_IO && io.n_calls == 1);
    CHECK(out == 0x77777777 && is_as_in(f, is));
    free(is.bytes);
    MUST(folollm_load(SHAKESPEARE, &(folollm_options){.tokenizer_only = 1}, &text_only, &error));
    CHECK(folollm_seq_save(text_only, seq, NULL, &n, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_restore(text_only, s.bytes, s.n, &out, &error) == FOLOLLM_E_STATE && out == 0x77777777);
    CHECK(folollm_seq_save_to(text_only, seq, stream_write, &io, &error) == FOLOLLM_E_STATE);
    CHECK(folollm_seq_restore_from(text_only, stream_read, &io, &out, &error) == FOLOLLM_E_STATE && io.n_calls == 1);
    folollm_free(text_only);
    MUST(folollm_step(f, NULL, events, &n_events, &error)); /* while it runs, and when it ends */
    CHECK(folollm_seq_save(f, driven, NULL, &n, &error) == FOLOLLM_E_STATE);
    MUST(folollm_cancel(f, driven, &error));
    n_events = 2;
    MUST(folollm_step(f, NULL, events, &n_events, &error));
    CHECK(n_events == 1 && events[0].finish == FOLOLLM_FINISH_CANCELLED);
    CHECK(folollm_seq_save(f, driven, NULL, &n, &error) == FOLOLLM_E_SEQUENCE);
    /* A wish to cancel belongs to the handle, not to what is saved. */
    folollm_token next = 4;
    feed(f, seq, 0, 5, false);
    MUST(folollm_cancel(f, seq, &error));
    saved wished = save(f, seq);
    folollm_seq other = restore(f, wished);
    MUST(folollm_decode_step(f, &other, &next, 1, &error));
    CHECK(folollm_decode_step(f, &seq, &next, 1, &error) == FOLOLLM_E_CANCELLED);
    MUST(folollm_decode_step(f, &seq, &next, 1, &error));
    compare_snapshots((party[]){{f, seq}, {f, other}}, 2);
    free(wished.bytes);
    free(s.bytes);
    folollm_free(f);
}

/* ---- In the middle of a step -- */

static uint64_t ticks(void *user) {
    return *(uint64_t *)user += 1000;
}

/* The tokens of three requests whose steps rest after every operation; between two calls, with `meddle`, a sequence is
 * restored, looked at, saved and closed. */
static unsigned run_sliced(bool meddle, folollm_token *tokens) {
    static const folollm_token prompt[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4};
    uint64_t now = 0;
    folollm_host hooks = {.user = &now, .clock = ticks};
    folollm_options o = {.host = &hooks, .n_threads = 1, .pool_tokens = 400, .max_seqs = 2, .max_requests = 3};
    folollm_sampling sampling = {.temperature = 1, .seed = 5, .max_tokens = 12, .ignore_eos = 1};
    folollm *f = NULL;
    folollm_seq driven[3], seq;
    folollm_stats stats;
    unsigned n_calls = 0;
    MUST(folollm_load(SMALL, &o, &f, &error));
    folollm_submission submission = {.prompt = prompt, .n_prompt = FL_COUNT(prompt), .n_answers = 3,
                                     .sampling = &sampling};
    saved s = snapshot_of(f, PAGE + 2), again;
    MUST(folollm_submit(f, &submission, driven, &error));
    do {
        folollm_event events[3];
        size_t n_events = 3;
        MUST(folollm_step(f, &(folollm_budget){.microseconds = 1}, events, &n_events, &error));
        for (size_t i = 0; i < n_events; i++) {
            if (events[i].token >= 0) {
                tokens[events[i].answer * 12 + events[i].metrics.output_tokens - 1] = events[i].token;
            }
        }
        if (meddle) {
            seq = restore(f, s);
            again = save(f, seq);
            CHECK(equal(s, again));
            free(again.bytes);
            close_sequence(f, seq);
        }
        folollm_get_stats(f, &stats);
        n_calls++;
    } while (stats.requests_running + stats.requests_waiting > 0 && n_calls < 10000);
    CHECK(stats.requests_finished == 3 && stats.slices > 20);
    free(s.bytes);
    folollm_free(f);
    return n_calls;
}

static void test_between_slices(void) {
    folollm_token alone[36] = {0}, beside[36] = {0};
    CHECK(run_sliced(false, alone) == run_sliced(true, beside));
    CHECK(memcmp(alone, beside, sizeof alone) == 0);
}

int main(void) {
    test_goes_on(SHAKESPEARE, FOLOLLM_KV_F16, 256, 17 * SLOW, 12);
    for (int kv = 0;; kv++) { /* all types that there are */
        folollm_memory plan;
        if (folollm_plan(SMALL, &(folollm_options){.kv = (folollm_kv_type)kv}, &plan, &error) != FOLOLLM_OK) {
            CHECK(kv >= 3 && error.status == FOLOLLM_E_ARGUMENT);
            break;
        }
        test_goes_on(SMALL, (folollm_kv_type)kv, 96, (kv == 0 ? 2 : 5) * SLOW, 8);
        test_goes_on(MODELS "mistral-window-old", (folollm_kv_type)kv, 96, 19 * SLOW, 40);
        test_goes_on(MODELS "qwen3-mqa-fp16", (folollm_kv_type)kv, 96, 31 * SLOW, 8);
    }
    test_text(2 * SLOW);
    test_nothing_leaks();
    test_refusals(20000);
    test_foreign();
    test_rope_context();
    test_other_weights();
    test_other_config();
    test_no_room();
    test_misuse();
    test_between_slices();
    return check_finish();
}
