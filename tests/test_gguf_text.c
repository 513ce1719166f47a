/* Tokenizers in GGUF files against the same ones as tokenizer.json, and against what Hugging Face and llama.cpp gave.
 *
 *     cc -O1 -I.. -I../src test_gguf_text.c inside.c -lutf8proc -lm -lpthread && ./a.out
 *
 * The vectors: oracle/make_gguf_tokenizers.py. Files that differ in a setting or two, and hostile ones, are made here
 * out of entries. */
#include "inside.h"

#include "check.h"
#include "host.h"

/* ---- Bytes of a GGUF file -- */

typedef struct bytes {
    uint8_t *at;
    size_t n, capacity;
} bytes;

static void put(bytes *b, const void *data, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->at = realloc(b->at, b->capacity);
    }
    memcpy(b->at + b->n, data, n);
    b->n += n;
}

static void put_number(bytes *b, uint64_t value, size_t n) { /* little-endian */
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        put(b, &byte, 1);
    }
}

static void put_text(bytes *b, const char *text) {
    put_number(b, strlen(text), 8);
    put(b, text, strlen(text));
}

static void put_key(bytes *b, const char *key, fl_gguf_type type) {
    put_text(b, key);
    put_number(b, (uint64_t)type, 4);
}

static void put_string(bytes *b, const char *key, const char *text) {
    put_key(b, key, FL_GGUF_STRING);
    put_text(b, text);
}

static void put_u32(bytes *b, const char *key, uint32_t value) {
    put_key(b, key, FL_GGUF_U32);
    put_number(b, value, 4);
}

static void put_bool(bytes *b, const char *key, bool value) {
    put_key(b, key, FL_GGUF_BOOL);
    put_number(b, value, 1);
}

static void put_array(bytes *b, const char *key, fl_gguf_type of, size_t n) {
    put_key(b, key, FL_GGUF_ARRAY);
    put_number(b, (uint64_t)of, 4);
    put_number(b, n, 8);
}

/* Strings that are written with ";" between them. */
static void put_strings(bytes *b, const char *key, const char *text) {
    size_t n = text[0] != 0;
    for (const char *c = text; *c != 0; c++) {
        n += *c == ';';
    }
    put_array(b, key, FL_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) {
        size_t length = strcspn(text, ";");
        put_number(b, length, 8);
        put(b, text, length);
        text += length + 1;
    }
}

/* A file of n entries. */
static void put_file(test_host *h, const bytes *entries, uint64_t n) {
    bytes file = {NULL, 0, 0};
    put(&file, "GGUF", 4);
    put_number(&file, 3, 4);
    put_number(&file, 0, 8);
    put_number(&file, n, 8);
    put(&file, entries->at, entries->n);
    host_put(h, "model.gguf", file.at, file.n);
    free(file.at);
}

/* ---- Opening -- */

static const char *const places[] = {"tests/vectors/", "vectors/", "../tests/vectors/"};

static uint8_t *vector(const char *name, size_t *n) {
    for (size_t i = 0; i < FL_COUNT(places); i++) {
        char path[512];
        snprintf(path, sizeof path, "%s%s", places[i], name);
        uint8_t *found = host_slurp(path, n);
        if (found != NULL) {
            return found;
        }
    }
    CHECK_TEXT(false, name);
    exit(check_finish());
}

static folollm_status open_gguf(fl_memory *m, fl_tokenizer **t, uint64_t *kept, folollm_error *error) {
    fl_gguf g;
    FL_TRY(fl_gguf_open(m, &g, "mem/model.gguf", error));
    folollm_status status = fl_tokenizer_open_gguf(m, &g, t, kept, error);
    fl_gguf_close(&g);
    return status;
}

typedef struct ids {
    folollm_token *at;
    size_t n;
} ids;

static ids encode(const fl_tokenizer *t, fl_memory *m, fl_str text, bool trusted) {
    folollm_span whole = {0, text.n};
    ids out = {malloc((4 * text.n + 16) * sizeof *out.at), 4 * text.n + 16}; /* NFC can make text longer */
    folollm_error error;
    folollm_status status = fl_tokenizer_encode(t, m, text, &whole, trusted && text.n > 0,
                                                trusted ? 0 : FOLOLLM_TOKENIZE_PLAIN, out.at, &out.n, &error);
    if (!CHECK(status == FOLOLLM_OK)) {
        printf("    %s\n", error.text);
        out.n = 0;
    }
    return out;
}

static char *decode(const fl_tokenizer *t, ids tokens, unsigned flags, size_t *n) {
    size_t room = fl_tokenizer_max_piece_bytes(t) + FL_DETOKENIZE_SLACK;
    char *text = malloc(room * (tokens.n + 1));
    fl_detokenizer d;
    memset(&d, 0, sizeof d);
    *n = 0;
    for (size_t i = 0; i < tokens.n; i++) {
        fl_detokenizer_look_ahead(&d, t, tokens.at + i, tokens.n - i, flags);
        *n += fl_detokenizer_feed(&d, t, tokens.at[i], flags, text + *n);
    }
    *n += fl_detokenizer_finish(&d, text + *n);
    return text;
}

static bool same_ids(ids a, ids b) {
    return a.n == b.n && memcmp(a.at, b.at, a.n * sizeof *a.at) == 0;
}

/* The same ids, and the same text of them, from both. */
static void compare(const fl_tokenizer *a, const fl_tokenizer *b, fl_memory *m, fl_str text) {
    for (int trusted = 0; trusted < 2; trusted++) {
        ids x = encode(a, m, text, trusted), y = encode(b, m, text, trusted);
        CHECK_TEXT(same_ids(x, y), "ids equal those of tokenizer.json");
        for (unsigned flags = 0; flags <= FOLOLLM_DETOKENIZE_SKIP_SPECIAL; flags++) {
            size_t n[2];
            char *u = decode(a, x, flags, &n[0]), *v = decode(b, y, flags, &n[1]);
            CHECK_TEXT(n[0] == n[1] && memcmp(u, v, n[0]) == 0, "text equals that of tokenizer.json");
            free(u);
            free(v);
        }
        free(x.at);
        free(y.at);
    }
}

/* ---- Texts -- */

static fl_str snippets[4096];
static size_t n_snippets;

static void read_snippets(void) {
    size_t n;
    char *text = (char *)vector("tokenizers/snippets.bin", &n), *end; /* stays */
    for (char *at = text; at < text + n && n_snippets < FL_COUNT(snippets);) {
        fl_str *s = &snippets[n_snippets++];
        s->n = strtoul(at, &end, 10);
        s->at = end + 1;
        at = end + 1 + s->n + 1;
    }
}

static void compare_all(const fl_tokenizer *a, const fl_tokenizer *b, fl_memory *m) {
    uint64_t state = 1;
    char *text = malloc(8192);
    for (size_t i = 0; i < n_snippets; i++) {
        compare(a, b, m, snippets[i]);
    }
    for (size_t i = 0; i < 64; i++) {
        fl_str s = {text, 0};
        while (s.n < 4096) {
            state = state * UINT64_C(6364136223846793005) + 1;
            fl_str next = snippets[(state >> 33) % n_snippets];
            memcpy(text + s.n, next.at, next.n);
            s.n += next.n;
        }
        compare(a, b, m, s);
    }
    for (uint32_t code = 1; code < 0x20000; code += code < 0x3000 ? 7 : 61) {
        fl_str s = {text, 0};
        for (const char *c = " a1A!\n "; *c != 0 && (code < 0xD800 || code > 0xDFFF); c++) {
            text[s.n++] = *c;
            s.n += fl_utf8_encode(code, text + s.n);
        }
        compare(a, b, m, s);
    }
    for (uint32_t id = 0; id < fl_tokenizer_n_ids(b) + 3; id++) {
        CHECK(fl_tokenizer_has_id(a, (folollm_token)id) == fl_tokenizer_has_id(b, (folollm_token)id));
        CHECK(fl_tokenizer_is_special(a, (folollm_token)id) == fl_tokenizer_is_special(b, (folollm_token)id));
    }
    free(text);
}

/* ---- The same tokenizer in both forms -- */

/* Read the entries of a file of the vectors, all but those under two keys; returns how many. */
static uint64_t take_entries(const char *name, const char *without, const char *and_without, bytes *out) {
    size_t n;
    uint8_t *file = vector(name, &n);
    test_host h;
    host_init(&h, true);
    fl_memory m;
    fl_memory_init(&m, &h.hooks);
    host_put(&h, "model.gguf", file, n);
    fl_gguf g;
    CHECK(fl_gguf_open(&m, &g, "mem/model.gguf", NULL) == FOLOLLM_OK);
    uint64_t kept = 0;
    const uint8_t *begin = g.header + 24;
    for (size_t i = 0; i < g.n_entries; i++) {
        fl_gguf_value v = g.entries[i].value, element;
        while (v.type == FL_GGUF_ARRAY && fl_gguf_next(&v, &element)) {
        }
        size_t scalar = v.type == FL_GGUF_BOOL ? 1 : 4; /* the vectors have no others */
        const uint8_t *end = v.type == FL_GGUF_ARRAY ? v.at : v.at + (v.type == FL_GGUF_STRING ? v.n : scalar);
        if (!fl_str_is(g.entries[i].key, without) && !fl_str_is(g.entries[i].key, and_without)) {
            put(out, begin, (size_t)(end - begin));
            kept++;
        }
        begin = end;
    }
    fl_gguf_close(&g);
    host_free(&h);
    free(file);
    return kept;
}

typedef struct pair {
    const char *gguf, *pre; /* pre NULL: as the file says */
    bool prefix;            /* add add_space_prefix */
    const char *json, *from, *to;
} pair;

/* tokenizer.json of a pair, with `from` replaced. */
static void put_json(test_host *h, const pair *p) {
    size_t n;
    char *text = (char *)vector(p->json, &n);
    for (size_t i = 0; p->from != NULL && i + strlen(p->from) <= n; i++) {
        if (memcmp(text + i, p->from, strlen(p->from)) == 0) {
            memcpy(text + i, p->to, strlen(p->to));
        }
    }
    host_put(h, "tokenizer.json", text, n);
    free(text);
}

static void put_gguf(test_host *h, const char *gguf, const char *pre, bool prefix) {
    static const char pre_key[] = "tokenizer.ggml.pre", prefix_key[] = "tokenizer.ggml.add_space_prefix";
    bytes entries = {NULL, 0, 0};
    uint64_t n = take_entries(gguf, pre != NULL ? pre_key : "", prefix ? prefix_key : "", &entries);
    if (pre != NULL) {
        put_string(&entries, pre_key, pre);
        n++;
    }
    if (prefix) {
        put_bool(&entries, prefix_key, true);
        n++;
    }
    put_file(h, &entries, n);
    free(entries.at);
}

static void test_pair(const pair *p) {
    test_host h;
    host_init(&h, true);
    fl_memory m;
    fl_memory_init(&m, &h.hooks);
    fl_tokenizer *a = NULL, *b = NULL;
    folollm_error error;
    uint64_t planned = 0, kept = 0, other;
    put_gguf(&h, p->gguf, p->pre, p->prefix);
    put_json(&h, p);
    CHECK(open_gguf(&m, NULL, &planned, &error) == FOLOLLM_OK && h.live == 0);
    if (!CHECK(open_gguf(&m, &a, &kept, &error) == FOLOLLM_OK)) {
        printf("    %s\n", error.text);
        return;
    }
    CHECK_TEXT(kept == planned && h.live == kept, "it takes what the plan said");
    CHECK(fl_tokenizer_open(&m, "mem", &b, &other, &error) == FOLOLLM_OK);
    compare_all(a, b, &m);
    fl_tokenizer_close(&m, a);
    fl_tokenizer_close(&m, b);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

static void test_pairs(void) {
    static const char gpt2[] = "gguf_tokenizers/gpt2.gguf";
    static const pair pairs[] = {
        {gpt2, NULL, false, "tokenizers/gpt2/tokenizer.json", NULL, NULL},
        {gpt2, "default", false, "tokenizers/gpt2/tokenizer.json", NULL, NULL},
        {gpt2, NULL, true, "tokenizers/gpt2-prefix/tokenizer.json", NULL, NULL},
        {gpt2, "smollm", false, "tokenizers/digits/tokenizer.json", NULL, NULL},
        {gpt2, "starcoder", false, "tokenizers/digits/tokenizer.json", NULL, NULL},
        {gpt2, "refact", false, "tokenizers/digits/tokenizer.json", NULL, NULL},
        {gpt2, "qwen2", false, "tokenizers/nfkc/tokenizer.json", "\"NFKC\"", "\"NFC\" "},
        {gpt2, "qwen35", false, "tokenizers/marks/tokenizer.json", NULL, NULL},
        {gpt2, "gpt-4o", false, "tokenizers/o200k/tokenizer.json", NULL, NULL},
        {gpt2, "tekken", false, "tokenizers/tekken/tokenizer.json", NULL, NULL},
        {"gguf_tokenizers/llama3.gguf", NULL, false, "tokenizers/llama3/tokenizer.json", NULL, NULL},
        {"gguf_tokenizers/llama3.gguf", "llama3", false, "tokenizers/llama3/tokenizer.json", NULL, NULL},
        {"gguf_tokenizers/llama2.gguf", NULL, false, "gguf_tokenizers/llama2.json", NULL, NULL},
        {"gguf_tokenizers/gemma.gguf", NULL, false, "gguf_tokenizers/gemma.json", NULL, NULL},
    };
    for (size_t i = 0; i < FL_COUNT(pairs); i++) {
        test_pair(&pairs[i]);
    }
}

/* ---- What is written is read again -- */

static int append(void *user, const void *data, size_t n) {
    put(user, data, n);
    return 0;
}

/* A tokenizer of so many rows of embedding to a GGUF file without tensors. */
static folollm_status write_gguf(test_host *h, fl_memory *m, const fl_tokenizer *t, uint32_t vocab,
                                 folollm_error *error) {
    bytes file = {NULL, 0, 0};
    fl_gguf_out o = {.memory = m, .write = append, .user = &file, .error = error};
    folollm_status status = fl_gguf_out_open(&o);
    for (int pass = 0; pass < 2 && status == FOLOLLM_OK; pass++) {
        status = fl_tokenizer_put_gguf(t, vocab, &o, error);
        if (status == FOLOLLM_OK && pass == 0) {
            status = fl_gguf_out_begin(&o);
        }
    }
    CHECK_TEXT(status == FOLOLLM_OK || file.n == 0, "what is refused is refused before anything is written");
    if (status == FOLOLLM_OK) {
        CHECK(fl_gguf_out_finish(&o) == FOLOLLM_OK);
        host_put(h, "model.gguf", file.at, file.n);
    }
    fl_gguf_out_close(&o);
    free(file.at);
    return status;
}

typedef struct written {
    const char *json, *from, *to; /* of the same length, or NULL */
    const char *pre;              /* NULL: refused */
    const char *why;
} written;

static void test_written_one(const written *w) {
    test_host h;
    host_init(&h, true);
    fl_memory m;
    fl_memory_init(&m, &h.hooks);
    fl_tokenizer *a = NULL, *b = NULL;
    folollm_error error = {0};
    uint64_t kept;
    pair source = {.json = w->json, .from = w->from, .to = w->to};
    put_json(&h, &source);
    host_put_text(&h, "tokenizer_config.json", "{\"bos_token\":\"<s>\",\"eos_token\":\"<|im_end|>\","
                                               "\"pad_token\":\"<|endoftext|>\"}");
    if (strstr(w->json, "llama3") != NULL) {
        host_put_text(&h, "tokenizer_config.json", "{\"bos_token\":\"<|begin_of_text|>\"}");
    }
    CHECK(fl_tokenizer_open(&m, "mem", &a, &kept, &error) == FOLOLLM_OK);
    uint32_t vocab = fl_tokenizer_n_ids(a) + 5;
    folollm_status status = write_gguf(&h, &m, a, vocab, &error);
    if (!CHECK_TEXT(status == (w->pre != NULL ? FOLOLLM_OK : FOLOLLM_E_UNSUPPORTED), w->json)
        || !CHECK_TEXT(w->pre != NULL || strstr(error.text, w->why) != NULL, w->json)) {
        printf("    %s\n", error.text);
    }
    if (status == FOLOLLM_OK && CHECK(open_gguf(&m, &b, &kept, &error) == FOLOLLM_OK)) {
        fl_gguf g;
        fl_gguf_value tokens;
        fl_str pre;
        compare_all(b, a, &m);
        CHECK(fl_tokenizer_bos(a) == fl_tokenizer_bos(b) && fl_tokenizer_n_ids(b) <= vocab);
        CHECK(fl_gguf_open(&m, &g, "mem/model.gguf", &error) == FOLOLLM_OK);
        CHECK(fl_gguf_string(&g, "tokenizer.ggml.pre", &pre, &error) == FOLOLLM_OK && fl_str_is(pre, w->pre));
        CHECK(fl_gguf_array(&g, "tokenizer.ggml.tokens", FL_GGUF_STRING, &tokens, &error) == FOLOLLM_OK &&
              tokens.n == vocab);
        fl_gguf_close(&g);
        fl_tokenizer_close(&m, b);
    }
    fl_tokenizer_close(&m, a);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

static void test_written(void) {
    static const char nfkc[] = "tokenizers/nfkc/tokenizer.json", llama2[] = "gguf_tokenizers/llama2.json";
    static const char qwen2[] = "tokenizers/qwen2/tokenizer.json", gpt2[] = "tokenizers/gpt2/tokenizer.json";
    static const written all[] = {
        {gpt2, NULL, NULL, "gpt-2", NULL},
        {"tokenizers/digits/tokenizer.json", NULL, NULL, "smollm", NULL},
        {nfkc, "\"NFKC\"", "\"NFC\" ", "qwen2", NULL},
        {"tokenizers/marks/tokenizer.json", NULL, NULL, "qwen35", NULL},
        {"tokenizers/o200k/tokenizer.json", "\"ignore_merges\":false", "\"ignore_merges\":true ", "gpt-4o", NULL},
        {"tokenizers/tekken/tokenizer.json", "\"ignore_merges\":false", "\"ignore_merges\":true ", "tekken", NULL},
        {"tokenizers/llama3/tokenizer.json", NULL, NULL, "llama-bpe", NULL},
        {llama2, NULL, NULL, "default", NULL},
        {"gguf_tokenizers/gemma.json", NULL, NULL, "default", NULL},
        {"tokenizers/gpt2-prefix/tokenizer.json", NULL, NULL, NULL, "cuts it into words"},
        {"tokenizers/digits3/tokenizer.json", NULL, NULL, NULL, "cuts it into words"},
        {"tokenizers/metaspace/tokenizer.json", NULL, NULL, NULL, "marks spaces"},
        {nfkc, NULL, NULL, NULL, "normalises text"},
        {"tokenizers/llama3/tokenizer.json", "\"ignore_merges\"", "\"ignore_mergez\"", NULL, "cuts it"},
        {qwen2, NULL, NULL, NULL, "normalized"},
        {llama2, "[\"\xE2\x96\x81\",\"t\"]", "[\"the\",\"r\"]", NULL, "merges"},
        {llama2, "\"<0x41>\"", "\"<0x4g>\"", NULL, "<0xHH>"},
        {llama2, "\"start\":1", "\"start\":2", NULL, "marks spaces"},
        {gpt2, "\"unk_token\":null", "\"unk_token\":\"!\" ", "gpt-2", NULL},
    };
    for (size_t i = 0; i < FL_COUNT(all); i++) {
        test_written_one(&all[i]);
    }
}

/* A tokenizer.json of SentencePiece's kind with bytes, "\u2581", a, b and more pieces; both lists are JSON inside. */
static folollm_status open_pieces(test_host *h, fl_memory *m, const char *pieces, const char *merges,
                                  fl_tokenizer **t) {
    static char text[16384];
    size_t n = 0;
    uint64_t kept;
    n += (size_t)snprintf(text + n, sizeof text - n,
                          "{\"added_tokens\":[],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
                          "\"content\":\"\u2581\"},\"pre_tokenizer\":null,\"decoder\":{\"type\":\"Sequence\","
                          "\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\u2581\"},"
                          "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},\"model\":{"
                          "\"type\":\"BPE\",\"byte_fallback\":true,\"fuse_unk\":true,\"merges\":[%s],\"vocab\":{",
                          merges);
    for (unsigned i = 0; i < 256; i++) {
        n += (size_t)snprintf(text + n, sizeof text - n, "\"<0x%02X>\":%u,", i, i);
    }
    n += (size_t)snprintf(text + n, sizeof text - n, "\"\u2581\":256,\"a\":257,\"b\":258%s}}}", pieces);
    host_put(h, "tokenizer.json", text, n);
    return fl_tokenizer_open(m, "mem", t, &kept, NULL);
}

/* Pieces of equal scores: runs of spaces may mingle, others not. */
static void test_mingled(void) {
    char pieces[512], merges[4096];
    size_t n = 0, n_pieces = 0;
    test_host h;
    host_init(&h, true);
    fl_memory m;
    fl_memory_init(&m, &h.hooks);
    fl_tokenizer *a = NULL, *b = NULL;
    folollm_error error;
    uint64_t kept;
    static const char spaces[] = "\u2581\u2581\u2581\u2581\u2581\u2581\u2581\u2581\u2581\u2581\u2581\u2581";
    for (int length = 2; length <= 12; length++) {
        n_pieces += (size_t)snprintf(pieces + n_pieces, sizeof pieces - n_pieces, ",\"%.*s\":%d", 3 * length, spaces,
                                     257 + length);
    }
    for (int run = 2; run <= 4; run += 2) { /* scores of their own */
        for (int left = run - 1; left > 0; left--) {
            n += (size_t)snprintf(merges + n, sizeof merges - n, "%s[\"%.*s\",\"%.*s\"]", n > 0 ? "," : "", 3 * left,
                                  spaces, 3 * (run - left), spaces);
        }
    }
    for (int left = 11; left > 0; left--) { /* the others as transformers sorts them: the longest left part first */
        for (int right = 12 - left; right > 0; right--) {
            if (left + right != 2 && left + right != 4) {
                n += (size_t)snprintf(merges + n, sizeof merges - n, ",[\"%.*s\",\"%.*s\"]", 3 * left, spaces,
                                      3 * right, spaces);
            }
        }
    }
    CHECK(open_pieces(&h, &m, pieces, merges, &a) == FOLOLLM_OK);
    CHECK(write_gguf(&h, &m, a, 300, &error) == FOLOLLM_OK);
    CHECK(open_gguf(&m, &b, &kept, &error) == FOLOLLM_OK);
    for (size_t length = 1; length < 100 && b != NULL; length++) {
        char text[128];
        memset(text, ' ', sizeof text);
        text[0] = length % 3 == 0 ? 'a' : ' ';
        text[length] = length % 2 == 0 ? 'b' : ' ';
        fl_str s = {text, length + 1};
        compare(b, a, &m, s);
    }
    fl_tokenizer_close(&m, a);
    fl_tokenizer_close(&m, b);
    a = NULL;
    CHECK(open_pieces(&h, &m, ",\"aa\":259,\"ab\":260,\"bb\":261,\"aab\":262,\"abb\":263",
                      "[\"a\",\"a\"],[\"a\",\"b\"],[\"b\",\"b\"],[\"aa\",\"b\"],[\"ab\",\"b\"],[\"a\",\"ab\"],"
                      "[\"a\",\"bb\"]", &a) == FOLOLLM_OK);
    CHECK(write_gguf(&h, &m, a, 300, &error) == FOLOLLM_E_UNSUPPORTED && strstr(error.text, "merges") != NULL);
    fl_tokenizer_close(&m, a);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* ---- Ids that others gave -- */

/* The numbers of a line after its first word. */
static ids read_ids(const char *line) {
    ids out = {malloc((strcspn(line, "\n") + 1) * sizeof *out.at), 0};
    char *end;
    for (line += strcspn(line, " \n"); *line == ' '; line = end) {
        out.at[out.n++] = (folollm_token)strtol(line, &end, 10);
        if (end == line) {
            break;
        }
    }
    return out;
}

static fl_tokenizer *open_named(test_host *h, fl_memory *m, const char *name) {
    static const char *const of_gpt2[][2] = {{"qwen2", "qwen2"}, {"digits", "smollm"}, {"marks", "qwen35"},
                                             {"o200k", "gpt-4o"}, {"tekken", "tekken"}};
    char path[128];
    const char *pre = NULL, *file = name;
    for (size_t i = 0; i < FL_COUNT(of_gpt2); i++) {
        if (strcmp(name, of_gpt2[i][0]) == 0) {
            pre = of_gpt2[i][1];
            file = "gpt2";
        }
    }
    snprintf(path, sizeof path, "gguf_tokenizers/%s.gguf", file);
    put_gguf(h, path, pre, false);
    fl_tokenizer *t = NULL;
    uint64_t kept;
    CHECK(open_gguf(m, &t, &kept, NULL) == FOLOLLM_OK);
    return t;
}

static void test_others(void) {
    size_t n, n_cases = 0, n_differ = 0;
    char *text = (char *)vector("gguf_tokenizers/ids.txt", &n), *at = text;
    fl_str cases[64];
    for (char *end; n_cases < 64 && memcmp(at, "case ", 5) == 0; at = end + 1 + cases[n_cases++].n + 1) {
        cases[n_cases].n = strtoul(at + 5, &end, 10);
        cases[n_cases].at = end + 1;
    }
    while (at < text + n) {
        char name[32];
        test_host h;
        host_init(&h, true);
        fl_memory m;
        fl_memory_init(&m, &h.hooks);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 10, "\n"), at + 10);
        fl_tokenizer *t = open_named(&h, &m, name);
        at += strcspn(at, "\n") + 1;
        for (size_t i = 0; i < n_cases; i++) {
            ids got = encode(t, &m, cases[i], true), wanted = read_ids(at);
            CHECK_TEXT(same_ids(got, wanted), "Hugging Face's ids");
            at += strcspn(at, "\n") + 1;
            n_differ += memcmp(at, "llama =", 7) != 0;
            at += strcspn(at, "\n") + 1;
            free(got.at);
            free(wanted.at);
        }
        fl_tokenizer_close(&m, t);
        host_free(&h);
    }
    CHECK_TEXT(n_differ == 4, "llama.cpp differs where text is not NFC, twice each in qwen2 and qwen35");
    free(text);
}

/* ---- Trust, special ids, chat format: through the public functions -- */

static void put_small(bytes *b, const char *pre) {
    put_string(b, "tokenizer.ggml.model", "gpt2");
    put_string(b, "tokenizer.ggml.pre", pre);
    put_strings(b, "tokenizer.ggml.tokens",
                "a;b;c;ab;<|im_end|>;<think>;abc;  ;<|endoftext|>;[PAD9];<|eot_id|>;[PAD9]x;x");
    put_strings(b, "tokenizer.ggml.merges", "a b;ab c");
    put_array(b, "tokenizer.ggml.token_type", FL_GGUF_I32, 13);
    for (size_t i = 0; i < 13; i++) {
        put_number(b, (uint64_t)("1111344435314"[i] - '0'), 4);
    }
}

static void test_public(void) {
    static const char chatml[] = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                                 "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    test_host h;
    host_init(&h, true);
    bytes b = {NULL, 0, 0};
    put_small(&b, "qwen2");
    put_u32(&b, "tokenizer.ggml.eos_token_id", 4);
    put_string(&b, "tokenizer.chat_template", chatml);
    put_file(&h, &b, 7);
    folollm_options o = {.host = &h.hooks, .tokenizer_only = 1};
    folollm *f = NULL;
    folollm_error error;
    if (!CHECK(folollm_load("mem/model.gguf", &o, &f, &error) == FOLOLLM_OK)) {
        printf("    %s\n", error.text);
        return;
    }
    static const struct {
        const char *text;
        bool trusted;
        folollm_token ids[4];
    } rows[] = {
        {"ab", false, {3, -1}},
        {"abc", false, {6, -1}},              /* user-defined, but merging makes it */
        {"  ", false, {7, -1}},               /* white space is nobody's secret */
        {"x", false, {12, -1}},               /* and so is a symbol */
        {"<think>", true, {5, -1}},
        {"<think>", false, {-1}},             /* its bytes are no tokens here */
        {"<|im_end|>", false, {-1}},
        {"ab<|im_end|>", true, {3, 4, -1}},
    };
    for (size_t i = 0; i < FL_COUNT(rows); i++) {
        folollm_token out[16];
        size_t n = 16, wanted = 0;
        folollm_span all = {0, strlen(rows[i].text)};
        CHECK(folollm_tokenize(f, rows[i].text, all.end, &all, rows[i].trusted, 0, out, &n, &error) == FOLOLLM_OK);
        bool same = true;
        for (; rows[i].ids[wanted] >= 0; wanted++) {
            same = same && wanted < n && out[wanted] == rows[i].ids[wanted];
        }
        CHECK_TEXT(same && (wanted == n || wanted == 0), rows[i].text);
        for (size_t k = 0; wanted == 0 && k < n; k++) {
            CHECK(out[k] != 4 && out[k] != 5);
        }
    }
    CHECK_TEXT(f->checkpoint->chat.format == FL_CHAT_CHATML, "the chat format is recognised");
    CHECK_TEXT(strcmp(f->checkpoint->chat.eos, "<|im_end|>") == 0, "EOS is spelled");
    const fl_generation *g = &f->checkpoint->generation;
    CHECK_TEXT(g->n_eos == 3 && g->eos[0] == 4 && g->eos[1] == 8 && g->eos[2] == 10,
               "EOS, then the control tokens that are known to end a text");
    CHECK_TEXT(!fl_tokenizer_has_id(f->checkpoint->tokenizer, 9), "padding is no token");
    CHECK(fl_tokenizer_has_id(f->checkpoint->tokenizer, 11));
    folollm_free(f);
    CHECK(h.live == 0);
    host_free(&h);
    free(b.at);
}

/* ---- Hostile metadata -- */

typedef struct hostile {
    const char *what;
    folollm_status status;
    const char *model, *pre, *tokens, *merges, *types; /* NULL: not there; types are digits */
    const char *id_key;
    uint32_t id;
    size_t n_scores; /* as many as tokens: fine */
    uint32_t score;  /* bits of the first */
} hostile;

#define ABC "a;b;ab"
#define BPE "gpt2", "gpt-2"
#define SPM "llama", NULL
#define ONE 0x3F800000

static const hostile rows[] = {
    {"fine, bytes", FOLOLLM_OK, BPE, ABC, "a b", "111", NULL, 0, 0, 0},
    {"fine, no types", FOLOLLM_OK, BPE, ABC, "a b", NULL, NULL, 0, 0, 0},
    {"fine, pieces", FOLOLLM_OK, SPM, ABC, NULL, "111", NULL, 0, 3, ONE},
    {"another model", FOLOLLM_E_UNSUPPORTED, "bert", "gpt-2", ABC, "a b", "111", NULL, 0, 0, 0},
    {"another pre", FOLOLLM_E_UNSUPPORTED, "gpt2", "jais-2", ABC, "a b", "111", NULL, 0, 0, 0},
    {"no pre", FOLOLLM_E_UNSUPPORTED, "gpt2", NULL, ABC, "a b", "111", NULL, 0, 0, 0},
    {"no tokens", FOLOLLM_E_FORMAT, BPE, NULL, "a b", NULL, NULL, 0, 0, 0},
    {"empty tokens", FOLOLLM_E_FORMAT, BPE, "", "a b", NULL, NULL, 0, 0, 0},
    {"an empty token", FOLOLLM_OK, BPE, "a;;ab", "", NULL, NULL, 0, 0, 0},
    {"an empty piece", FOLOLLM_OK, SPM, "a;;ab", NULL, NULL, NULL, 0, 3, ONE},
    {"an empty control token", FOLOLLM_OK, BPE, "a;;ab", "", "131", NULL, 0, 0, 0},
    {"no merges", FOLOLLM_E_FORMAT, BPE, ABC, NULL, "111", NULL, 0, 0, 0},
    {"no scores", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 0, 0},
    {"too few types", FOLOLLM_E_FORMAT, BPE, ABC, "a b", "11", NULL, 0, 0, 0},
    {"too many types", FOLOLLM_E_FORMAT, BPE, ABC, "a b", "1111", NULL, 0, 0, 0},
    {"too few scores", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 2, ONE},
    {"too many scores", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 4, ONE},
    {"type 0", FOLOLLM_E_FORMAT, BPE, ABC, "a b", "110", NULL, 0, 0, 0},
    {"type 7", FOLOLLM_E_FORMAT, BPE, ABC, "a b", "117", NULL, 0, 0, 0},
    {"type -1", FOLOLLM_E_FORMAT, BPE, ABC, "a b", "11/", NULL, 0, 0, 0},
    {"a score that is NaN", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 3, 0x7FC00000},
    {"a score that is NaN, negative", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 3, 0xFFC00000},
    {"a score that is infinite", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 3, 0x7F800000},
    {"a score that is -infinite", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", NULL, 0, 3, 0xFF800000},
    {"a token twice", FOLOLLM_E_FORMAT, BPE, "a;b;a", "", "111", NULL, 0, 0, 0},
    {"a piece twice", FOLOLLM_E_FORMAT, SPM, "a;b;a", NULL, "111", NULL, 0, 3, ONE},
    {"a token that is not UTF-8", FOLOLLM_E_FORMAT, BPE, "a;b;\xFF", "", "111", NULL, 0, 0, 0},
    {"a piece that is not UTF-8", FOLOLLM_E_FORMAT, SPM, "a;b;\xE2\x96", NULL, "111", NULL, 0, 3, ONE},
    {"a merge without a blank", FOLOLLM_E_FORMAT, BPE, ABC, "ab", "111", NULL, 0, 0, 0},
    {"a merge with two blanks", FOLOLLM_E_FORMAT, BPE, ABC, "a b ", "111", NULL, 0, 0, 0},
    {"an empty merge", FOLOLLM_E_FORMAT, BPE, ABC, "a b;", "111", NULL, 0, 0, 0},
    {"a merge of nothing", FOLOLLM_E_FORMAT, BPE, ABC, " ", "111", NULL, 0, 0, 0},
    {"a merge of an unknown piece", FOLOLLM_E_FORMAT, BPE, ABC, "a c", "111", NULL, 0, 0, 0},
    {"a merge to an unknown piece", FOLOLLM_E_FORMAT, BPE, ABC, "b a", "111", NULL, 0, 0, 0},
    {"a merge that is not UTF-8", FOLOLLM_E_FORMAT, BPE, ABC, "\xFF \xFE", "111", NULL, 0, 0, 0},
    {"a merge twice", FOLOLLM_OK, BPE, ABC, "a b;a b", "111", NULL, 0, 0, 0},
    {"BOS", FOLOLLM_OK, BPE, ABC, "", "111", "tokenizer.ggml.bos_token_id", 2, 0, 0},
    {"BOS out of range", FOLOLLM_E_FORMAT, BPE, ABC, "", "111", "tokenizer.ggml.bos_token_id", 3, 0, 0},
    {"BOS of 2^32 - 1", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", "tokenizer.ggml.bos_token_id", UINT32_MAX, 3, ONE},
    {"EOS of 2^31", FOLOLLM_E_FORMAT, BPE, ABC, "", "111", "tokenizer.ggml.eos_token_id", (uint32_t)1 << 31, 0, 0},
    {"EOS that is padding", FOLOLLM_E_FORMAT, BPE, "a;[PAD1]", "", "15", "tokenizer.ggml.eos_token_id", 1, 0, 0},
    {"unknown out of range", FOLOLLM_E_FORMAT, SPM, ABC, NULL, "111", "tokenizer.ggml.unknown_token_id", 9, 3, ONE},
    {"EOT out of range", FOLOLLM_E_FORMAT, BPE, ABC, "", "111", "tokenizer.ggml.eot_token_id", 3, 0, 0},
    {"BOS to add, and none", FOLOLLM_E_FORMAT, BPE, ABC, "", "111", "tokenizer.ggml.add_bos_token", 1, 0, 0},
    {"EOS to add, and none", FOLOLLM_E_FORMAT, BPE, ABC, "", "111", "tokenizer.ggml.add_eos_token", 1, 0, 0},
    {"white space removed", FOLOLLM_E_UNSUPPORTED, SPM, ABC, NULL, "111", "tokenizer.ggml.remove_extra_whitespaces", 1,
     3, ONE},
    {"all are padding", FOLOLLM_OK, BPE, "[PAD0];[PAD1]", "", "55", NULL, 0, 0, 0},
    {"all are control", FOLOLLM_OK, SPM, ABC, NULL, "333", NULL, 0, 3, ONE},
};

static uint64_t put_hostile(bytes *b, const hostile *r) {
    uint64_t n = 1;
    put_string(b, "tokenizer.ggml.model", r->model);
    if (r->pre != NULL) {
        put_string(b, "tokenizer.ggml.pre", r->pre);
        n++;
    }
    if (r->tokens != NULL) {
        put_strings(b, "tokenizer.ggml.tokens", r->tokens);
        n++;
    }
    if (r->merges != NULL) {
        put_strings(b, "tokenizer.ggml.merges", r->merges);
        n++;
    }
    if (r->types != NULL) {
        put_array(b, "tokenizer.ggml.token_type", FL_GGUF_I32, strlen(r->types));
        for (const char *c = r->types; *c != 0; c++) {
            put_number(b, (uint64_t)(int64_t)(*c - '0'), 4);
        }
        n++;
    }
    if (r->n_scores > 0) {
        put_array(b, "tokenizer.ggml.scores", FL_GGUF_F32, r->n_scores);
        for (size_t i = 0; i < r->n_scores; i++) {
            put_number(b, i == 0 ? r->score : 0xBF800000, 4);
        }
        n++;
    }
    if (r->id_key != NULL && strstr(r->id_key, "_id") != NULL) {
        put_u32(b, r->id_key, r->id);
    } else if (r->id_key != NULL) {
        put_bool(b, r->id_key, r->id != 0);
    }
    return n + (r->id_key != NULL);
}

/* Load, and where that works, use it. */
static folollm_status exercise(test_host *h, folollm_error *error) {
    static const char sample[] = "ab<s>a b\xC3\xA9 \xE4\xB8\xAD\n1<unk> aab";
    folollm_options o = {.host = &h->hooks, .tokenizer_only = 1};
    folollm *f = NULL;
    folollm_status status = folollm_load("mem/model.gguf", &o, &f, error);
    if (status == FOLOLLM_OK) {
        folollm_token tokens[64];
        size_t n = 64;
        folollm_span whole = {0, sizeof sample - 1};
        if (folollm_tokenize(f, sample, sizeof sample - 1, &whole, 1, 0, tokens, &n, NULL) == FOLOLLM_OK) {
            ids got = {tokens, n};
            free(decode(f->checkpoint->tokenizer, got, 0, &n));
        }
        folollm_free(f);
    }
    CHECK(host_is_clean(h));
    return status;
}

static void test_hostile(void) {
    for (size_t i = 0; i < FL_COUNT(rows); i++) {
        test_host h;
        host_init(&h, true);
        bytes b = {NULL, 0, 0};
        folollm_error error = {FOLOLLM_OK, ""};
        put_file(&h, &b, put_hostile(&b, &rows[i]));
        folollm_status status = exercise(&h, &error);
        if (!CHECK_TEXT(status == rows[i].status, rows[i].what)) {
            printf("    %d was expected; %d: %s\n", rows[i].status, status, error.text);
        }
        CHECK_TEXT(status == FOLOLLM_OK || error.text[0] != 0, "an error has words");
        host_free(&h);
        free(b.at);
    }
}

/* Each array with elements of each type. */
static void test_array_types(void) {
    static const struct {
        const char *key, *model, *texts[3];
        bool text, number; /* what it may hold; else integers */
    } arrays[] = {
        {"tokenizer.ggml.tokens", "gpt2", {"a", "b", "ab"}, true, false},
        {"tokenizer.ggml.merges", "gpt2", {"a b", "a b", "a b"}, true, false},
        {"tokenizer.ggml.token_type", "gpt2", {"1", "1", "1"}, false, false},
        {"tokenizer.ggml.scores", "llama", {"1", "1", "1"}, false, true},
    };
    for (size_t i = 0; i < FL_COUNT(arrays) * FL_GGUF_TYPE_COUNT; i++) {
        size_t k = i / FL_GGUF_TYPE_COUNT;
        fl_gguf_type of = (fl_gguf_type)(i % FL_GGUF_TYPE_COUNT);
        hostile r = {"", FOLOLLM_OK, arrays[k].model, "gpt-2", k == 0 ? NULL : ABC, k == 0 ? "" : k == 1 ? NULL : "a b",
                     k == 2 ? NULL : "111", NULL, 0, 0, 0};
        test_host h;
        host_init(&h, true);
        bytes b = {NULL, 0, 0};
        uint64_t n = put_hostile(&b, &r) + 1;
        put_array(&b, arrays[k].key, of, 3);
        for (size_t e = 0; e < 3; e++) {
            if (of == FL_GGUF_STRING) {
                put_text(&b, arrays[k].texts[e]);
            } else if (of == FL_GGUF_ARRAY) {
                put_number(&b, FL_GGUF_U8, 4);
                put_number(&b, 0, 8);
            } else {
                put_number(&b, 1, inside_gguf_bytes(of));
            }
        }
        put_file(&h, &b, n);
        bool is_text = of == FL_GGUF_STRING || of == FL_GGUF_BOOL || of == FL_GGUF_ARRAY;
        bool is_float = of == FL_GGUF_F32 || of == FL_GGUF_F64;
        bool fits = arrays[k].text ? of == FL_GGUF_STRING : !is_text && (arrays[k].number || !is_float);
        folollm_status status = exercise(&h, NULL);
        if (!CHECK_TEXT(status == (fits ? FOLOLLM_OK : FOLOLLM_E_FORMAT), arrays[k].key)) {
            printf("    elements of type %d: %d\n", (int)of, status);
        }
        host_free(&h);
        free(b.at);
    }
}

/* A file cut off or with a byte changed: some status, nothing leaks. And every allocation fails once. */
static void test_damage(const char *name) {
    size_t n;
    uint8_t *file = vector(name, &n);
    uint64_t state = 1;
    test_host h;
    host_init(&h, true);
    for (size_t i = 0; i < 1500; i++) {
        state = state * UINT64_C(6364136223846793005) + 1;
        size_t place = i < 600 ? i % n : (size_t)(state >> 20) % n;
        uint8_t kept = file[place];
        file[place] = i % 3 == 0 ? (uint8_t)(state >> 56) : i % 3 == 1 ? (uint8_t)(kept + 1) : (uint8_t)(kept ^ 0x80);
        host_put(&h, "model.gguf", file, i % 8 == 7 ? place : n);
        folollm_status status = exercise(&h, NULL);
        CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT || status == FOLOLLM_E_UNSUPPORTED ||
              status == FOLOLLM_E_IO); /* the key that names the tokenizer's model is gone */
        file[place] = kept;
    }
    host_put(&h, "model.gguf", file, n);
    for (uint64_t at = 1; at < 500; at++) {
        host_arm(&h, FAULT_ALLOCATE, at, at % 2 == 0);
        folollm_status status = exercise(&h, NULL);
        bool hit = h.n_injected > 0;
        host_disarm(&h);
        if (!hit) {
            break;
        }
        CHECK(status == FOLOLLM_E_MEMORY || status == FOLOLLM_OK);
    }
    host_free(&h);
    free(file);
}

/* ---- Long pieces, and many cuts -- */

static void test_long_pieces(void) {
    test_host h;
    host_init(&h, true);
    for (size_t longest = 512; longest <= 513; longest++) {
        bytes b = {NULL, 0, 0};
        put_string(&b, "tokenizer.ggml.model", "llama");
        put_array(&b, "tokenizer.ggml.tokens", FL_GGUF_STRING, longest);
        char *text = malloc(longest + 1);
        memset(text, 'a', longest + 1);
        for (size_t n = 1; n <= longest; n++) {
            put_number(&b, n, 8);
            put(&b, text, n);
        }
        put_array(&b, "tokenizer.ggml.scores", FL_GGUF_F32, longest);
        for (size_t n = 0; n < longest; n++) {
            put_number(&b, 0, 4);
        }
        put_bool(&b, "tokenizer.ggml.add_space_prefix", false);
        put_file(&h, &b, 4);
        fl_memory m;
        fl_memory_init(&m, &h.hooks);
        fl_tokenizer *t = NULL;
        uint64_t kept;
        folollm_status status = open_gguf(&m, &t, &kept, NULL);
        CHECK(status == (longest > 512 ? FOLOLLM_E_FORMAT : FOLOLLM_OK));
        if (status == FOLOLLM_OK) { /* equal scores: the lower id first, so pairs, then pairs of what there is */
            fl_str s = {text, longest};
            ids got = encode(t, &m, s, false);
            size_t total = 0;
            for (size_t i = 0; i < got.n; i++) {
                total += (size_t)got.at[i] + 1;
            }
            CHECK(total == longest && got.n == 1);
            free(got.at);
            fl_tokenizer_close(&m, t);
        }
        CHECK(h.live == 0);
        free(text);
        free(b.at);
    }
    host_free(&h);
}

int main(void) {
    read_snippets();
    test_pairs();
    test_written();
    test_mingled();
    test_others();
    test_public();
    test_hostile();
    test_array_types();
    test_damage("gguf_tokenizers/llama2.gguf");
    test_damage("gguf_tokenizers/llama3.gguf");
    test_long_pieces();
    return check_finish();
}
