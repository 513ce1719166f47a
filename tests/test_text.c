/* Text: tokenizers and chat formats against what Hugging Face gives for the same input.
 *
 *     cc -O1 -I.. -I../src test_text.c inside.c -lutf8proc -lm -lpthread && ./a.out [vectors directory]
 *
 * The vectors and their formats: oracle/make_tokenizers.py and oracle/make_chats.py. Everything runs in a thread
 * with a stack of 64 KiB, because nothing here may recurse on its input. */
#include "inside.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* ---- Checks -------------------------------------------------------------------------------------- */

static size_t n_passed, n_failed, group_passed, group_failed;
static char root[512], scratch_path[1024], context[256];

#define CHECK(ok, ...) check((ok), __LINE__, __VA_ARGS__)

static bool check(bool ok, int line, const char *what) {
    if (ok) {
        n_passed++;
        return true;
    }
    if (n_failed++ < 60) {
        printf("    line %d: %s: %s\n", line, context, what);
    }
    return false;
}

static void group(const char *name) {
    printf("%-28s %zu passed, %zu failed\n", name, n_passed - group_passed, n_failed - group_failed);
    fflush(stdout);
    group_passed = n_passed;
    group_failed = n_failed;
}

static const char *path(const char *a, const char *b, const char *c) {
    snprintf(scratch_path, sizeof scratch_path, "%s/%s%s%s", root, a, b, c);
    return scratch_path;
}

/* A whole file, ended by a NUL that n does not count; NULL if it is not there. Freed by the caller. */
static char *read_whole(const char *name, size_t *n) {
    FILE *f = fopen(name, "rb");
    if (f == NULL) {
        return NULL;
    }
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*n + 1);
    if (fread(text, 1, *n, f) != *n) {
        exit(2);
    }
    text[*n] = 0;
    fclose(f);
    return text;
}

/* The vectors are lines of words, some followed by counted bytes. */
typedef struct cursor {
    const char *at, *end;
} cursor;

static fl_str next_word(cursor *c) {
    fl_str s = {c->at, 0};
    while (c->at < c->end && *c->at != ' ' && *c->at != '\n') {
        c->at++;
    }
    s.n = (size_t)(c->at - s.at);
    c->at += c->at < c->end;
    return s;
}

static long next_number(cursor *c) {
    return strtol(next_word(c).at, NULL, 10);
}

static uint32_t next_hex(cursor *c) {
    return (uint32_t)strtoul(next_word(c).at, NULL, 16);
}

static fl_str next_bytes(cursor *c) {
    fl_str s;
    s.n = (size_t)next_number(c);
    s.at = c->at;
    c->at += s.n + 1;
    return s;
}

static uint64_t fnv(uint64_t h, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001B3u;
    }
    return h;
}

#define FNV_SEED UINT64_C(0xCBF29CE484222325)

static uint64_t fnv_ids(uint64_t h, const folollm_token *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t id = (uint32_t)ids[i];
        uint8_t bytes[4] = {(uint8_t)id, (uint8_t)(id >> 8), (uint8_t)(id >> 16), (uint8_t)(id >> 24)};
        h = fnv(h, bytes, 4);
    }
    return h;
}

static uint32_t fold(uint64_t h) {
    return (uint32_t)(h ^ h >> 32);
}

/* ---- A host in memory: counted allocations that can fail, files that are strings ------------------- */

typedef struct test_host {
    size_t n_calls, fail_at; /* the fail_at-th allocation fails, from 1; 0: none */
    bool forever;            /* and all after it */
    size_t live;
    fl_str tokenizer, config, jinja;
} test_host;

static void *test_realloc(void *user, void *p, size_t old_size, size_t new_size) {
    test_host *h = user;
    if (new_size != 0) {
        h->n_calls++;
        if (h->fail_at != 0 && (h->n_calls == h->fail_at || (h->forever && h->n_calls > h->fail_at))) {
            return NULL;
        }
    }
    h->live += new_size - (p != NULL ? old_size : 0);
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    return realloc(p, new_size);
}

static void *test_open(void *user, const char *name) {
    test_host *h = user;
    fl_str *f = strstr(name, "tokenizer.json") != NULL          ? &h->tokenizer
                : strstr(name, "tokenizer_config.json") != NULL ? &h->config
                : strstr(name, "chat_template.jinja") != NULL   ? &h->jinja
                                                                : NULL;
    return f != NULL && f->at != NULL ? f : NULL;
}

static uint64_t test_size(void *user, void *file) {
    (void)user;
    return ((fl_str *)file)->n;
}

static int test_read(void *user, void *file, uint64_t offset, void *out, size_t n) {
    (void)user;
    memcpy(out, ((fl_str *)file)->at + offset, n);
    return 0;
}

static void test_close(void *user, void *file) {
    (void)user;
    (void)file;
}

static fl_memory memory_of(test_host *h, bool files) {
    folollm_host host;
    memset(&host, 0, sizeof host);
    host.user = h;
    host.realloc = test_realloc;
    if (files) {
        host.file_open = test_open;
        host.file_size = test_size;
        host.file_read = test_read;
        host.file_close = test_close;
    }
    fl_memory m;
    fl_memory_init(&m, &host);
    return m;
}

/* ---- Encoding and decoding, all the lengths checked ------------------------------------------------ */

typedef struct ids {
    folollm_token *at;
    size_t n;
} ids;

enum { TRUSTED, UNTRUSTED };

static ids encode_spans(const fl_tokenizer *t, fl_memory *m, fl_str text, const folollm_span *spans,
                        size_t n_spans, unsigned flags) {
    ids out = {NULL, 0};
    folollm_error error;
    folollm_status status = fl_tokenizer_encode(t, m, text, spans, n_spans, flags, NULL, &out.n, &error);
    if (!CHECK(status == (out.n == 0 ? FOLOLLM_OK : FOLOLLM_E_BUFFER), "a count without room")) {
        printf("    %s\n", error.text);
        out.n = 0;
        return out;
    }
    out.at = malloc((out.n + 1) * sizeof *out.at);
    size_t n = out.n;
    status = fl_tokenizer_encode(t, m, text, spans, n_spans, flags, out.at, &n, &error);
    CHECK(status == FOLOLLM_OK && n == out.n, "the same count with room");
    return out;
}

static ids encode(const fl_tokenizer *t, fl_memory *m, fl_str text, int trust) {
    folollm_span whole = {0, text.n};
    return trust == TRUSTED ? encode_spans(t, m, text, &whole, text.n > 0, 0)
                            : encode_spans(t, m, text, NULL, 0, FOLOLLM_TOKENIZE_PLAIN);
}

/* All the text of the ids; freed by the caller. */
static char *decode(const fl_tokenizer *t, ids tokens, unsigned flags, size_t *n) {
    size_t room = fl_tokenizer_max_piece_bytes(t) + FL_DETOKENIZE_SLACK;
    char *piece = malloc(room), *text = malloc(room * (tokens.n + 1));
    fl_detokenizer d;
    memset(&d, 0, sizeof d);
    *n = 0;
    for (size_t i = 0; i <= tokens.n; i++) {
        size_t length = i < tokens.n ? fl_detokenizer_feed(&d, t, tokens.at[i], flags, piece)
                                     : fl_detokenizer_finish(&d, piece);
        if (length > room || fl_utf8_valid_prefix(piece, length) != length) {
            CHECK(false, "a piece of text that is not whole code points");
        }
        memcpy(text + *n, piece, length);
        *n += length;
    }
    free(piece);
    return text;
}

static uint64_t random_next(uint64_t *state, uint64_t n) { /* splitmix64 */
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return (z ^ z >> 31) % n;
}

/* ---- Tokenizer vectors ----------------------------------------------------------------------------- */

static fl_str snippets[4096];
static size_t n_snippets;
static uint32_t versions[2048]; /* pairs: first, last */
static size_t n_versions;
static size_t n_skipped; /* texts in blocks that differ, of code points in versions.txt */

static void read_common(void) {
    size_t n;
    char *text = read_whole(path("vectors/tokenizers/snippets.bin", "", ""), &n); /* stays */
    for (cursor c = {text, text + n}; c.at < c.end && n_snippets < 4096;) {
        snippets[n_snippets++] = next_bytes(&c);
    }
    text = read_whole(path("vectors/tokenizers/versions.txt", "", ""), &n);
    for (cursor c = {text, text + n}; c.at < c.end && n_versions < 2048;) {
        versions[n_versions++] = next_hex(&c);
    }
    free(text);
}

static bool versions_differ(uint32_t code) {
    size_t low = 0, high = n_versions / 2;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > versions[2 * middle + 1]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return 2 * low < n_versions && code >= versions[2 * low];
}

static fl_str make_piece(size_t index, char *room) {
    uint64_t state = index + 1;
    fl_str text = {room, 0};
    while (text.n < 4096) {
        fl_str s = snippets[random_next(&state, n_snippets)];
        memcpy(room + text.n, s.at, s.n);
        text.n += s.n;
    }
    return text;
}

static void check_case(const fl_tokenizer *t, fl_memory *m, cursor *c) {
    fl_str text = next_bytes(c);
    ids got = encode(t, m, text, TRUSTED);
    next_word(c);
    size_t n = (size_t)next_number(c), same = 0;
    for (size_t i = 0; i < n; i++) {
        folollm_token id = (folollm_token)next_number(c);
        same += i < got.n && got.at[i] == id && fl_tokenizer_has_id(t, id);
    }
    if (!CHECK(got.n == n && same == n, "the ids of a case")) {
        printf("    text: %.*s\n    got:", (int)fl_min(text.n, 200), text.at);
        for (size_t i = 0; i < got.n; i++) {
            printf(" %d", (int)got.at[i]);
        }
        printf("\n");
    }
    free(got.at);
}

static void check_piece(const fl_tokenizer *t, fl_memory *m, cursor *c, size_t index) {
    char *room = malloc(8192);
    fl_str text = make_piece(index, room);
    ids got = encode(t, m, text, TRUSTED), plain = encode(t, m, text, UNTRUSTED);
    CHECK(fold(fnv_ids(FNV_SEED, got.at, got.n)) == next_hex(c), "the ids of a piece");
    for (unsigned flags = 0; flags <= FOLOLLM_DETOKENIZE_SKIP_SPECIAL; flags++) {
        size_t n;
        char *decoded = decode(t, got, flags, &n);
        CHECK(fold(fnv(FNV_SEED, decoded, n)) == next_hex(c), flags ? "a piece decoded without special tokens"
                                                                  : "a piece decoded");
        free(decoded);
    }
    CHECK(fold(fnv_ids(FNV_SEED, plain.at, plain.n)) == next_hex(c), "the ids of an untrusted piece");
    free(got.at);
    free(plain.at);
    free(room);
}

static void check_block(const fl_tokenizer *t, fl_memory *m, cursor *c) {
    uint32_t low = next_hex(c), n = (uint32_t)next_number(c), n_loose = 0;
    uint32_t step = (low >= 0x32000 && low < 0xE0000) || low >= 0xE0200 ? 251 : 1;
    uint64_t hash[2] = {FNV_SEED, FNV_SEED};
    for (uint32_t i = 0; i < n; i++) {
        static const char beside[] = " a1A!\n ";
        char text[64];
        size_t length = 0;
        for (size_t k = 0; k < 7; k++) {
            text[length++] = beside[k];
            length += fl_utf8_encode(low + i * step, text + length);
        }
        fl_str s = {text, length};
        folollm_span whole = {0, length};
        folollm_token got[512];
        size_t n_got = FL_COUNT(got);
        bool loose = versions_differ(low + i * step);
        CHECK(fl_tokenizer_encode(t, m, s, &whole, 1, 0, got, &n_got, NULL) == FOLOLLM_OK, "a text of code points");
        hash[loose] = fnv_ids(hash[loose], got, n_got);
        n_loose += loose;
    }
    if (!CHECK(fold(hash[0]) == next_hex(c), "the ids of a block of code points")) {
        printf("    block of U+%04X\n", (unsigned)low);
    }
    n_skipped += fold(hash[1]) == next_hex(c) ? 0 : n_loose;
}

static size_t n_tokenizers; /* that were checked */

/* Under AddressSanitizer a block is for one tokenizer in five: all of them look a code point up in the same tables. */
static bool takes_block(size_t index) {
    return !SANITIZED || (index + n_tokenizers) % 5 == 0;
}

/* Every special string, glued to others: only a trusted span may make tokens of them. */
static void check_hostile_text(const fl_tokenizer *t, fl_memory *m) {
    char *text = malloc(1 << 16);
    folollm_span *spans = malloc(2048 * sizeof *spans);
    size_t n_spans = 0, n = 0;
    for (uint32_t id = 0; id < fl_tokenizer_n_ids(t) && n < 60000 && n_spans < 2048; id++) {
        folollm_token token = (folollm_token)id;
        ids one = {&token, 1};
        if (fl_tokenizer_is_special(t, token)) {
            size_t length;
            char *name = decode(t, one, 0, &length);
            text[n++] = 'x';
            memcpy(text + n, name, length);
            spans[n_spans].begin = n;
            n += length;
            spans[n_spans++].end = n - 1; /* without the last byte */
            free(name);
        }
    }
    fl_str s = {text, n};
    folollm_token unknown = fl_tokenizer_find(t, fl_str_of("<unk>"));
    size_t n_special[3] = {0, 0, 0};
    for (size_t round = 0; round < 3; round++) {
        ids got = encode_spans(t, m, s, spans, round == 0 ? 0 : n_spans, FOLOLLM_TOKENIZE_PLAIN);
        for (size_t i = 0; i < got.n; i++) {
            n_special[round] += fl_tokenizer_is_special(t, got.at[i]) && got.at[i] != unknown;
        }
        free(got.at);
        for (size_t i = 0; round == 1 && i < n_spans; i++) {
            spans[i].end++;
        }
    }
    CHECK(n_special[0] == 0, "a special token from untrusted text");
    CHECK(n_special[1] == 0, "a special token from a span that ends inside it");
    CHECK(n_special[2] + 1 >= n_spans && n_spans > 0, "special tokens from trusted spans");
    free(spans);
    free(text);
}

static void check_refusals(const fl_tokenizer *t, fl_memory *m) {
    static const char *const bad[] = {"\xFF", "a\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                      "a\xE2\x82", "\x80"};
    folollm_token out[8] = {-7, -7, -7, -7, -7, -7, -7, -7};
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        size_t n = 8;
        folollm_status status = fl_tokenizer_encode(t, m, fl_str_of(bad[i]), NULL, 0, 0, out, &n, NULL);
        CHECK(status == FOLOLLM_E_ENCODING && n == 8 && out[0] == -7, "text that is not UTF-8");
    }
    ids all = encode(t, m, fl_str_of("a b c d"), UNTRUSTED);
    for (size_t room = 0; room < all.n && room < 8; room++) {
        size_t n = room;
        out[room] = -7;
        folollm_status status = fl_tokenizer_encode(t, m, fl_str_of("a b c d"), NULL, 0, FOLOLLM_TOKENIZE_PLAIN,
                                                    out, &n, NULL);
        CHECK(status == FOLOLLM_E_BUFFER && n == all.n && out[room] == -7, "too little room");
    }
    free(all.at);
}

static void check_tokenizer(const char *name, const char *directory) {
    test_host host;
    memset(&host, 0, sizeof host);
    fl_memory m = memory_of(&host, false);
    fl_tokenizer *t = NULL;
    folollm_error error;
    uint64_t planned = 0, bytes = 0;
    snprintf(context, sizeof context, "%s", name);
    folollm_status status = fl_tokenizer_open(&m, directory, NULL, &planned, &error);
    CHECK(status == FOLOLLM_OK && host.live == 0, "the plan");
    status = fl_tokenizer_open(&m, directory, &t, &bytes, &error);
    if (!CHECK(status == FOLOLLM_OK, "it opens")) {
        printf("    %s\n", error.text);
        return;
    }
    CHECK(planned == bytes && host.live == bytes, "it takes what the plan said");
    size_t n, n_pieces = 0, n_blocks = 0;
    char *text = read_whole(path("vectors/tokenizers/", name, "/expected.txt"), &n);
    for (cursor c = {text, text + n}; c.at < c.end;) {
        fl_str kind = next_word(&c);
        if (fl_str_is(kind, "case")) {
            check_case(t, &m, &c);
        } else if (fl_str_is(kind, "piece")) {
            check_piece(t, &m, &c, n_pieces++);
        } else if (takes_block(n_blocks++)) {
            check_block(t, &m, &c);
        } else {
            for (int words = 4; words > 0; words--) {
                next_word(&c);
            }
        }
    }
    n_tokenizers++;
    check_hostile_text(t, &m);
    check_refusals(t, &m);
    fl_tokenizer_close(&m, t);
    CHECK(host.live == 0, "all memory is given back");
    free(text);
    group(name);
}

/* The names in a file, one a line. */
static void for_names(const char *file, void (*body)(const char *name)) {
    size_t n;
    char *text = read_whole(path(file, "", ""), &n);
    for (cursor c = {text, text + n}; text != NULL && c.at < c.end;) {
        fl_str word = next_word(&c);
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)word.n, word.at);
        body(name);
    }
    CHECK(text != NULL, file);
    free(text);
}

static void check_named_tokenizer(const char *name) {
    char directory[1024];
    snprintf(directory, sizeof directory, "%s", path("vectors/tokenizers/", name, ""));
    check_tokenizer(name, directory);
}

static void check_real_tokenizer(void) {
    static const char *const places[] = {"../../shared/tokenizers/qwen3", "../../../shared/tokenizers/qwen3"};
    for (size_t i = 0; i < FL_COUNT(places); i++) {
        char directory[1024];
        size_t n;
        snprintf(directory, sizeof directory, "%s/%s", root, places[i]);
        char *text = read_whole(path(places[i], "/tokenizer.json", ""), &n);
        if (text != NULL) {
            free(text);
            check_tokenizer("qwen3", directory);
            return;
        }
    }
    printf("%-28s skipped: no ../shared/tokenizers/qwen3 beside the repository\n", "qwen3");
}

/* ---- Hostile tokenizers ---------------------------------------------------------------------------- */

#define VOCAB_AB "{\"a\":0,\"b\":1,\"ab\":2}"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":true}"
#define BPE(vocab, merges) "\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
#define PRE(pre) "\"pre_tokenizer\":" pre ",\"decoder\":" BYTE_LEVEL "," BPE(VOCAB_AB, "[]")
#define MODEL(vocab, merges) "\"pre_tokenizer\":" BYTE_LEVEL ",\"decoder\":" BYTE_LEVEL "," BPE(vocab, merges)
#define FALLBACK(vocab) \
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}," \
    "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":" vocab ",\"merges\":[]}"
#define FLAGS "\"special\":true,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false"
#define ADDED(fields) "\"added_tokens\":[{" fields FLAGS "}]," MODEL(VOCAB_AB, "[]")
#define POST(ids) \
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" \
    "{\"SpecialToken\":{\"id\":\"s\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]," \
    "\"pair\":[],\"special_tokens\":{\"s\":{\"id\":\"s\",\"ids\":" ids \
    ",\"tokens\":[\"s\"]}}}," MODEL(VOCAB_AB, "[]")

static const struct {
    const char *name, *body; /* of the object in tokenizer.json */
    folollm_status status;
    const char *first; /* what id 0 decodes to, where that is the point */
} hostile[] = {
    {"no model", "\"pre_tokenizer\":" BYTE_LEVEL ",\"decoder\":" BYTE_LEVEL, FOLOLLM_E_FORMAT, NULL},
    {"fine", MODEL(VOCAB_AB, "[[\"a\",\"b\"]]"), FOLOLLM_OK, NULL},
    {"vocabulary of 0", MODEL("{}", "[]"), FOLOLLM_OK, NULL},
    {"vocabulary of 1", MODEL("{\"a\":0}", "[]"), FOLOLLM_OK, NULL},
    {"vocabulary is a list", MODEL("[]", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is negative", MODEL("{\"a\":-1}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is a fraction", MODEL("{\"a\":0.5}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is 2^31", MODEL("{\"a\":2147483648}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is 2^32", MODEL("{\"a\":4294967296}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is 1e300", MODEL("{\"a\":1e300}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is 2^31 - 1", MODEL("{\"a\":2147483647}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"id is text", MODEL("{\"a\":\"0\"}", "[]"), FOLOLLM_E_FORMAT, NULL},
    {"merge of an absent token", MODEL(VOCAB_AB, "[[\"a\",\"c\"]]"), FOLOLLM_E_FORMAT, NULL},
    {"merge to an absent token", MODEL(VOCAB_AB, "[[\"b\",\"a\"]]"), FOLOLLM_E_FORMAT, NULL},
    {"merge to twice the longest", MODEL(VOCAB_AB, "[[\"ab\",\"ab\"]]"), FOLOLLM_E_FORMAT, NULL},
    {"merge said twice", MODEL(VOCAB_AB, "[[\"a\",\"b\"],[\"a\",\"b\"]]"), FOLOLLM_OK, NULL},
    {"merge of one", MODEL(VOCAB_AB, "[[\"a\"]]"), FOLOLLM_E_FORMAT, NULL},
    {"merge of three", MODEL(VOCAB_AB, "[[\"a\",\"b\",\"a\"]]"), FOLOLLM_E_FORMAT, NULL},
    {"merge without a space", MODEL(VOCAB_AB, "[\"ab\"]"), FOLOLLM_E_FORMAT, NULL},
    {"merge of numbers", MODEL(VOCAB_AB, "[[0,1]]"), FOLOLLM_E_FORMAT, NULL},
    {"merge of empty text", MODEL("{\"\":1,\"a\":0}", "[[\"\",\"a\"]]"), FOLOLLM_OK, NULL},
    {"merges is text", MODEL(VOCAB_AB, "\"a b\""), FOLOLLM_E_FORMAT, NULL},
    {"byte <0x-1>", FALLBACK("{\"<0x-1>\":0}"), FOLOLLM_OK, "<0x-1>"},
    {"byte <0xGG>", FALLBACK("{\"<0xGG>\":0}"), FOLOLLM_OK, "<0xGG>"},
    {"byte <0x100>", FALLBACK("{\"<0x100>\":0}"), FOLOLLM_OK, "<0x100>"},
    {"byte <0x>", FALLBACK("{\"<0x>\":0}"), FOLOLLM_OK, "<0x>"},
    {"byte <0x4a>", FALLBACK("{\"<0x4a>\":0}"), FOLOLLM_OK, "J"},
    {"bytes missing", PRE(BYTE_LEVEL), FOLOLLM_OK, NULL},
    {"unknown pattern", PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+$\"},\"behavior\":\"Isolated\","
         "\"invert\":false}"), FOLOLLM_E_UNSUPPORTED, NULL},
    {"unknown pre-tokenizer", PRE("{\"type\":\"Bert\"}"), FOLOLLM_E_UNSUPPORTED, NULL},
    {"unigram", "\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]]}", FOLOLLM_E_UNSUPPORTED, NULL},
    {"unknown normalizer", "\"normalizer\":{\"type\":\"Precompiled\"}," MODEL(VOCAB_AB, "[]"),
     FOLOLLM_E_UNSUPPORTED, NULL},
    {"unknown decoder", "\"decoder\":{\"type\":\"CTC\"}," BPE(VOCAB_AB, "[]"), FOLOLLM_E_UNSUPPORTED, NULL},
    {"added token", ADDED("\"id\":3,\"content\":\"c\","), FOLOLLM_OK, NULL},
    {"added token of id 2^31", ADDED("\"id\":2147483648,\"content\":\"c\","), FOLOLLM_E_FORMAT, NULL},
    {"added token of id -1", ADDED("\"id\":-1,\"content\":\"c\","), FOLOLLM_E_FORMAT, NULL},
    {"added token without id", ADDED("\"content\":\"c\","), FOLOLLM_E_FORMAT, NULL},
    {"added token of no text", ADDED("\"id\":3,\"content\":\"\","), FOLOLLM_OK, NULL},
    {"added token without text", ADDED("\"id\":3,"), FOLOLLM_E_FORMAT, NULL},
    {"BOS", POST("[1]"), FOLOLLM_OK, NULL},
    {"BOS out of range", POST("[3]"), FOLOLLM_E_FORMAT, NULL},
    {"BOS of id 2^32", POST("[4294967296]"), FOLOLLM_E_FORMAT, NULL},
    {"not an object", "]", FOLOLLM_E_FORMAT, NULL},
};

/* Open what h holds and, if that works, encode and decode with it. */
static folollm_status exercise(test_host *h, const char *first, folollm_error *error) {
    static const char sample[] = "ab<s>a b\xC3\xA9 \xE4\xB8\xAD\n1<unk> aab";
    fl_memory m = memory_of(h, true);
    fl_tokenizer *t = NULL;
    uint64_t bytes;
    folollm_status status = fl_tokenizer_open(&m, "d", &t, &bytes, error);
    if (status == FOLOLLM_OK) {
        folollm_token tokens[64];
        ids got = {tokens, 64};
        folollm_span whole = {0, sizeof sample - 1};
        status = fl_tokenizer_encode(t, &m, fl_str_of(sample), &whole, 1, 0, tokens, &got.n, error);
        if (status == FOLOLLM_OK) {
            size_t n;
            free(decode(t, got, 0, &n));
        }
        if (first != NULL) {
            ids zero = {tokens, 1};
            fl_str text = {NULL, 0};
            tokens[0] = 0;
            char *decoded = decode(t, zero, 0, &text.n);
            text.at = decoded;
            CHECK(fl_str_is(text, first), "the text of id 0");
            free(decoded);
        }
        fl_tokenizer_close(&m, t);
    }
    CHECK(h->live == 0, "memory is left");
    return status;
}

static void test_hostile(void) {
    for (size_t i = 0; i < FL_COUNT(hostile); i++) {
        char text[2048];
        test_host h;
        folollm_error error = {FOLOLLM_OK, ""};
        memset(&h, 0, sizeof h);
        snprintf(context, sizeof context, "%s", hostile[i].name);
        snprintf(text, sizeof text, "{%s}", hostile[i].body);
        h.tokenizer = fl_str_of(text);
        folollm_status status = exercise(&h, hostile[i].first, &error);
        if (!CHECK(status == hostile[i].status, "the status")) {
            printf("    %d was expected; %d: %s\n", hostile[i].status, status, error.text);
        }
        CHECK(status == FOLOLLM_OK || error.text[0] != 0, "an error without words");
    }
    char *deep = malloc(200000);
    test_host h;
    memset(&h, 0, sizeof h);
    memset(deep, '[', 200000);
    h.tokenizer.at = deep;
    h.tokenizer.n = 200000;
    snprintf(context, sizeof context, "100000 brackets");
    CHECK(exercise(&h, NULL, NULL) == FOLOLLM_E_FORMAT, "the status");
    free(deep);
    group("hostile tokenizers");
}

/* An added token of which the normalizer leaves nothing may still be longer than a piece can be. */
static void test_long_added(void) {
    size_t room = FL_PIECE_BYTES_MAX + 2048;
    char *text = malloc(room);
    test_host h;
    folollm_error error = {FOLOLLM_OK, ""};
    memset(&h, 0, sizeof h);
    h.tokenizer.at = text;
    h.tokenizer.n = (size_t)snprintf(text, room,
                                     "{\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true},"
                                     "\"added_tokens\":[{\"id\":3,\"content\":\"%*s\",\"normalized\":true}],%s}",
                                     (int)FL_PIECE_BYTES_MAX + 5, "", MODEL(VOCAB_AB, "[]"));
    snprintf(context, sizeof context, "an added token of 16 MiB");
    CHECK(exercise(&h, NULL, &error) == FOLOLLM_E_FORMAT && strstr(error.text, "token 3") != NULL, error.text);
    free(text);
}

static bool is_clean(folollm_status status) {
    return status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT || status == FOLOLLM_E_UNSUPPORTED;
}

/* Prefixes of a file, and the file with one byte changed: some status, and nothing leaks. */
static void test_damage(void) {
    size_t n;
    char *text = read_whole(path("vectors/tokenizers/llama2/tokenizer.json", "", ""), &n);
    static const char replacements[] = "\"{}[],:0-\\x\xFF ";
    uint64_t state = 1;
    snprintf(context, sizeof context, "a damaged tokenizer.json");
    for (size_t i = 1; i < n; i += i < 600 || n - i < 300 ? 1 : 37) {
        test_host h;
        memset(&h, 0, sizeof h);
        char *copy = malloc(i); /* exactly so long, for the address sanitizer */
        memcpy(copy, text, i);
        h.tokenizer.at = copy;
        h.tokenizer.n = i;
        CHECK(exercise(&h, NULL, NULL) == FOLOLLM_E_FORMAT, "a prefix");
        h.tokenizer.at = text;
        h.tokenizer.n = n;
        size_t place = (size_t)random_next(&state, i < 600 ? 1000 : n);
        char kept = text[place];
        text[place] = replacements[random_next(&state, sizeof replacements - 1)];
        CHECK(is_clean(exercise(&h, NULL, NULL)), "one byte changed");
        text[place] = kept;
        free(copy);
    }
    free(text);
    group("damaged tokenizer.json");
}

/* The n-th allocation fails, for every n: once, and with all that follow. */
static void test_no_memory(void) {
    size_t n;
    char *text = read_whole(path("vectors/tokenizers/qwen2/tokenizer.json", "", ""), &n);
    for (int forever = 0; forever < 2; forever++) {
        snprintf(context, sizeof context, "no memory%s", forever ? " any more" : "");
        for (size_t at = 1, hit = 1; hit != 0 && at < 1000; at++) {
            test_host h;
            folollm_error error = {FOLOLLM_OK, ""};
            memset(&h, 0, sizeof h);
            h.tokenizer.at = text;
            h.tokenizer.n = n;
            h.fail_at = at;
            h.forever = forever;
            folollm_status status = exercise(&h, NULL, &error);
            hit = h.n_calls >= at;
            CHECK(status == (hit ? FOLOLLM_E_MEMORY : FOLOLLM_OK), "the status");
        }
    }
    free(text);
    group("failing allocations");
}

/* ---- Long words ------------------------------------------------------------------------------------ */

#define LONG_WORD (SANITIZED ? 1u << 18 : 1u << 20)

static double encode_seconds(const fl_tokenizer *t, fl_memory *m, const char *unit, size_t n) {
    size_t width = strlen(unit), count = n / width;
    char *text = malloc(count * width);
    for (size_t i = 0; i < count; i++) {
        memcpy(text + i * width, unit, width);
    }
    fl_str s = {text, count * width};
    size_t n_tokens = 0;
    clock_t begin = clock();
    folollm_status status = fl_tokenizer_encode(t, m, s, NULL, 0, FOLOLLM_TOKENIZE_PLAIN, NULL, &n_tokens, NULL);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    CHECK(status == FOLOLLM_E_BUFFER && n_tokens > 0, "it is encoded");
    free(text);
    return seconds;
}

static void test_long_words(void) {
    static const char *const names[] = {"qwen2", "o200k", "llama2"};
    static const char *const units[] = {"a", "Ab", "1", " ", "\n", "!", "'s", "\xC3\xA9", "\xE4\xB8\xAD",
                                        "\xCC\x81", "\xF0\x9F\x98\x80", " \n", "\xE1\x84\x92\xE1\x85\xA1"};
    for (size_t k = 0; k < FL_COUNT(names); k++) {
        test_host h;
        memset(&h, 0, sizeof h);
        fl_memory m = memory_of(&h, false);
        fl_tokenizer *t = NULL;
        uint64_t bytes;
        double slowest = 0;
        snprintf(context, sizeof context, "a long word, %s", names[k]);
        const char *directory = path("vectors/tokenizers/", names[k], "");
        if (!CHECK(fl_tokenizer_open(&m, directory, &t, &bytes, NULL) == FOLOLLM_OK, "it opens")) {
            continue;
        }
        for (size_t i = 0; i < FL_COUNT(units); i++) {
            double one = encode_seconds(t, &m, units[i], LONG_WORD);
            double two = encode_seconds(t, &m, units[i], 2 * LONG_WORD);
            slowest = one > slowest ? one : slowest;
            CHECK(two < 6 * one + 0.05, "time grows faster than the text");
        }
        printf("    %s: %u KiB without a break, slowest of %zu kinds: %.2f s\n", names[k], LONG_WORD >> 10,
               FL_COUNT(units), slowest);
        fl_tokenizer_close(&m, t);
    }
    group("long words");
}

/* ---- Chat ------------------------------------------------------------------------------------------ */

typedef struct chat_case {
    unsigned flags;
    char date[64];
    bool has_date;
    folollm_status status;
    folollm_message messages[16];
    char roles[16][16];
    size_t n_messages;
    fl_str text, user;
} chat_case;

static void read_chat_case(cursor *c, chat_case *out) {
    memset(out, 0, sizeof *out);
    out->flags = (unsigned)next_number(c);
    fl_str date = next_word(c);
    out->has_date = !fl_str_is(date, "-");
    for (size_t i = 0; i < date.n && i + 1 < sizeof out->date; i++) {
        out->date[i] = date.at[i] == '_' ? ' ' : date.at[i];
    }
    out->status = (folollm_status)next_number(c);
    for (cursor ahead = *c; c->at < c->end; ahead = *c) {
        fl_str kind = next_word(&ahead);
        if (fl_str_is(kind, "message") && out->n_messages < 16) {
            fl_str role = next_word(&ahead), text = next_bytes(&ahead);
            size_t i = out->n_messages++;
            snprintf(out->roles[i], sizeof out->roles[i], "%.*s", (int)role.n, role.at);
            out->messages[i].role = out->roles[i];
            out->messages[i].text = text.n == 0 ? NULL : text.at;
            out->messages[i].n_bytes = text.n;
        } else if (fl_str_is(kind, "text")) {
            out->text = next_bytes(&ahead);
        } else if (fl_str_is(kind, "user")) {
            out->user = next_bytes(&ahead);
        } else {
            return;
        }
        *c = ahead;
    }
}

/* Spans ascend, are apart and not empty; what lies between them, put together, is the users' text. */
static void check_spans(fl_str text, const folollm_span *spans, size_t n, fl_str user) {
    char *outside = malloc(text.n + 1);
    size_t at = 0, n_outside = 0;
    bool ordered = true;
    for (size_t i = 0; i <= n && ordered; i++) {
        size_t begin = i < n ? spans[i].begin : text.n;
        ordered = begin >= at && begin <= text.n && (i == 0 || i == n || begin > at)
                  && (i == n || (spans[i].end > begin && spans[i].end <= text.n));
        if (ordered) {
            memcpy(outside + n_outside, text.at + at, begin - at);
            n_outside += begin - at;
            at = i < n ? spans[i].end : at;
        }
    }
    fl_str rest = {outside, n_outside};
    CHECK(ordered, "trusted spans ascend and are apart");
    CHECK(fl_str_equal(rest, user), "the untrusted text is the messages' own");
    free(outside);
}

static void check_chat_case(const fl_chat_template *t, const chat_case *k) {
    const char *date = k->has_date ? k->date : NULL;
    folollm_error error = {FOLOLLM_OK, ""};
    size_t n = 0, n_spans = 0;
    folollm_status status = fl_chat_render(t, k->messages, k->n_messages, date, k->flags, NULL, &n, NULL, &n_spans,
                                           &error);
    if (k->status != FOLOLLM_OK) {
        CHECK(status == k->status && n == 0 && n_spans == 0 && error.text[0] != 0, "a refusal");
        return;
    }
    if (!CHECK(status == FOLOLLM_E_BUFFER && n == k->text.n, "the length of the text")) {
        printf("    %zu was expected; %zu: %s\n", k->text.n, n, error.text);
        return;
    }
    char *text = malloc(n);
    folollm_span *spans = malloc(n_spans * sizeof *spans);
    size_t short_n = n - 1, short_spans = n_spans - 1, same_n = n, same_spans = n_spans;
    CHECK(fl_chat_render(t, k->messages, k->n_messages, date, k->flags, text, &short_n, spans, &same_spans, NULL)
              == FOLOLLM_E_BUFFER && short_n == n, "one byte too few");
    CHECK(fl_chat_render(t, k->messages, k->n_messages, date, k->flags, text, &same_n, spans, &short_spans, NULL)
              == FOLOLLM_E_BUFFER && short_spans == n_spans, "one span too few");
    status = fl_chat_render(t, k->messages, k->n_messages, date, k->flags, text, &n, spans, &n_spans, NULL);
    fl_str got = {text, n};
    if (!CHECK(status == FOLOLLM_OK && fl_str_equal(got, k->text), "the text")) {
        printf("---- expected\n%.*s\n---- got\n%.*s\n----\n", (int)k->text.n, k->text.at, (int)n, text);
    }
    check_spans(got, spans, n_spans, k->user);
    free(text);
    free(spans);
}

static void check_chat(const char *name) {
    test_host h;
    memset(&h, 0, sizeof h);
    fl_memory m = memory_of(&h, false);
    fl_chat_template t;
    snprintf(context, sizeof context, "chat %s", name);
    CHECK(fl_chat_open(&m, path("vectors/chat/", name, ""), &t, NULL) == FOLOLLM_OK && h.live == 0, "it opens");
    size_t n;
    char *text = read_whole(path("vectors/chat/", name, "/cases.txt"), &n);
    cursor c = {text, text + n};
    next_word(&c);
    if (!CHECK(fl_str_equal(next_word(&c), fl_str_of(fl_chat_format_name(t.format))), "the format")) {
        printf("    got %s\n", fl_chat_format_name(t.format));
    } else {
        while (c.at < c.end) {
            chat_case one;
            next_word(&c);
            read_chat_case(&c, &one);
            check_chat_case(&t, &one);
        }
    }
    free(text);
}

/* Every prefix of every template, and no memory for the n-th allocation. */
static void check_chat_damage(const char *name) {
    size_t n;
    char *text = read_whole(path("vectors/chat/", name, "/tokenizer_config.json"), &n);
    snprintf(context, sizeof context, "chat %s", name);
    for (size_t i = 0; i < n; i++) {
        fl_chat_template t;
        test_host h;
        memset(&h, 0, sizeof h);
        h.jinja.at = text + n - i - 1;
        h.jinja.n = i + 1;
        h.config.at = text;
        h.config.n = i + 1;
        h.fail_at = i < 20 ? i + 1 : 0;
        fl_memory m = memory_of(&h, true);
        folollm_status status = fl_chat_open(&m, "d", &t, NULL);
        bool last = i + 1 == n || (text[i] == '}' && i + 2 == n);
        CHECK(h.live == 0 && (status == FOLOLLM_E_FORMAT || status == FOLOLLM_E_MEMORY || last),
              "a damaged template");
    }
    free(text);
}

static void test_chat_refusals(void) {
    static const struct {
        const char *what, *date;
        folollm_message message;
        size_t n_messages;
        folollm_status status;
    } rows[] = {
        {"no messages", NULL, {"user", "a", 1}, 0, FOLOLLM_E_ARGUMENT},
        {"a role that is none", NULL, {"tool", "a", 1}, 1, FOLOLLM_E_ARGUMENT},
        {"no role", NULL, {NULL, "a", 1}, 1, FOLOLLM_E_ARGUMENT},
        {"no text", NULL, {"user", NULL, 1}, 1, FOLOLLM_E_ARGUMENT},
        {"text that is not UTF-8", NULL, {"user", "a\xFF", 2}, 1, FOLOLLM_E_ENCODING},
        {"a date that is not UTF-8", "\xFF", {"user", "a", 1}, 1, FOLOLLM_E_ENCODING},
    };
    fl_chat_template t = {FL_CHAT_CHATML, 0, "", "", ""};
    snprintf(context, sizeof context, "chat refusals");
    for (size_t i = 0; i < FL_COUNT(rows); i++) {
        size_t n = 77, n_spans = 78;
        folollm_status status = fl_chat_render(&t, &rows[i].message, rows[i].n_messages, rows[i].date, 0, NULL, &n,
                                               NULL, &n_spans, NULL);
        CHECK(status == rows[i].status && n == 77 && n_spans == 78, rows[i].what);
    }
    test_host h;
    memset(&h, 0, sizeof h);
    fl_memory m = memory_of(&h, true);
    CHECK(fl_chat_open(&m, "d", &t, NULL) == FOLOLLM_OK && t.format == FL_CHAT_NONE, "no files");
    char zero[] = "{%for message in messages%}{%if loop.first and messages[0].role!='system'%}"
                  "{{'<|im_start|>system\\nab<|im_end|>\\n'}}{%endif%}"
                  "{{'<|im_start|>'+message.role+'\\n'+message.content+'<|im_end|>\\n'}}"
                  "{%endfor%}{%if add_generation_prompt%}{{'<|im_start|>assistant\\n'}}{%endif%}";
    fl_str source = fl_str_of(zero), none = {"", 0};
    CHECK(fl_chat_read(&m, source, none, none, &t, NULL) == FOLOLLM_OK && t.format == FL_CHAT_CHATML &&
          strcmp(t.default_system, "ab") == 0, "a default system message");
    *strstr(zero, "b<|im_end|>") = 0;
    CHECK(fl_chat_read(&m, source, none, none, &t, NULL) == FOLOLLM_OK && t.format == FL_CHAT_NONE,
          "a zero in the default system message");
}

/* ---- All of it ------------------------------------------------------------------------------------- */

static bool find_root(const char *place) {
    size_t n;
    snprintf(root, sizeof root, "%s", place);
    char *text = read_whole(path("vectors/tokenizers/snippets.bin", "", ""), &n);
    free(text);
    return text != NULL;
}

static void *run_all(void *unused) {
    (void)unused;
    for_names("vectors/chat/names.txt", check_chat);
    group("chat");
    for_names("vectors/chat/names.txt", check_chat_damage);
    test_chat_refusals();
    group("chat, damaged");
    read_common();
    for_names("vectors/tokenizers/names.txt", check_named_tokenizer);
    check_real_tokenizer();
    printf("    %zu texts of code points on which Unicode versions differ did not count\n", n_skipped);
    test_hostile();
    test_long_added();
    test_damage();
    test_no_memory();
    test_long_words();
    return NULL;
}

int main(int argc, char **argv) {
    char here[512] = __FILE__;
    char *slash = strrchr(here, '/');
    if (slash != NULL) {
        *slash = 0;
    } else {
        memcpy(here, ".", 2);
    }
    if (!(argc > 1 ? find_root(argv[1]) : find_root(here) || find_root("tests") || find_root("."))) {
        printf("the vectors are not there: give the directory tests as argument\n");
        return 2;
    }
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    if (pthread_attr_setstacksize(&attributes, fl_max(64 * 1024, (size_t)PTHREAD_STACK_MIN)) != 0
        || pthread_create(&thread, &attributes, run_all, NULL) != 0) {
        printf("no thread with a stack of 64 KiB\n");
        return 2;
    }
    pthread_join(thread, NULL);
    printf("%zu passed, %zu failed\n", n_passed, n_failed);
    return n_failed != 0;
}
