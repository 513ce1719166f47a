/* Hostile files: what a checkpoint must not be. Every case has a name and an expected status; after each the error
 * names the file, all memory is given back, the most that was held is bounded by the file's size, and it took less
 * than a second. Parsers run on a stack of 64 KiB, because none may recurse on its input.
 *
 *     cc -O1 -g -I. -Isrc tests/test_hostile.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out [repository root] */
#include "inside.h"

#include "check.h"
#include "host.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if SANITIZED || !defined(__OPTIMIZE__)
#define STACK_BYTES (1u << 20) /* red zones, and unrolled kernels with a place on the stack for each number */
#else
#define STACK_BYTES (1u << 16)
#endif

/* Expectations beside the statuses, which are none of them positive. */
#define ANY 1     /* success or a clean failure */
#define REFUSED 2 /* a clean failure of any kind */

static char root[512] = ".";
static test_host host;
static folollm_error error;
static uint64_t n_cases;
static double slowest;
static char slowest_name[128];

static uint64_t random_state = 1;

static uint64_t random_next(void) { /* splitmix64 */
    uint64_t z = random_state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* Of this thread, so that a busy machine fails no case. */
static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double case_began;

static void case_begin(void) {
    memset(&error, 0, sizeof error);
    host.peak = host.live;
    case_began = cpu_seconds();
}

/* What every case proves. file: must be in the message of a failure; NULL: nothing in particular. */
static folollm_status case_end(const char *name, folollm_status status, int expected, const char *file) {
    double seconds = cpu_seconds() - case_began;
    uint64_t bytes = 0;
    for (size_t i = 0; i < host.n_files; i++) {
        bytes += host.files[i].n;
    }
    bool ok = expected == ANY || (expected == REFUSED ? status != FOLOLLM_OK : (int)status == expected);
    ok = ok && (status == FOLOLLM_OK || (error.status == status && error.text[0] != 0));
    ok = ok && (status == FOLOLLM_OK || file == NULL || strstr(error.text, file) != NULL);
    ok = ok && host_is_clean(&host) && host.peak <= 4 * bytes + (16u << 20) && seconds < 1;
    if (!CHECK_TEXT(ok, name)) {
        printf("    status %d, expected %d, \"%s\"; live %llu, peak %llu of %llu, wrong %llu, %.3f s\n",
               (int)status, expected, error.text, (unsigned long long)host.live, (unsigned long long)host.peak,
               (unsigned long long)bytes, (unsigned long long)host.n_wrong, seconds);
    }
    if (seconds > slowest) {
        slowest = seconds;
        snprintf(slowest_name, sizeof slowest_name, "%s", name);
    }
    n_cases++;
    return status;
}

/* ---- A small checkpoint, made here so that every byte of it can be wrong -------------------------- */

#define LAYERS "1"
static const char good_config[] =
    "{\"model_type\":\"qwen3\",\"num_hidden_layers\":" LAYERS ",\"hidden_size\":8,\"num_attention_heads\":2,"
    "\"num_key_value_heads\":1,\"head_dim\":4,\"intermediate_size\":6,\"vocab_size\":40,"
    "\"max_position_embeddings\":32,\"tie_word_embeddings\":true,\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0}";

typedef struct shape {
    const char *name, *dtype;
    uint64_t rows, cols; /* cols 0: a vector */
} shape;

static const shape good_shapes[] = {
    {"model.embed_tokens.weight", "BF16", 40, 8},
    {"model.layers.0.input_layernorm.weight", "F32", 8, 0},
    {"model.layers.0.self_attn.q_proj.weight", "BF16", 8, 8},
    {"model.layers.0.self_attn.k_proj.weight", "F16", 4, 8},
    {"model.layers.0.self_attn.v_proj.weight", "BF16", 4, 8},
    {"model.layers.0.self_attn.o_proj.weight", "F32", 8, 8},
    {"model.layers.0.self_attn.q_norm.weight", "BF16", 4, 0},
    {"model.layers.0.self_attn.k_norm.weight", "BF16", 4, 0},
    {"model.layers.0.post_attention_layernorm.weight", "BF16", 8, 0},
    {"model.layers.0.mlp.gate_proj.weight", "BF16", 6, 8},
    {"model.layers.0.mlp.up_proj.weight", "BF16", 6, 8},
    {"model.layers.0.mlp.down_proj.weight", "BF16", 8, 6},
    {"model.norm.weight", "BF16", 8, 0},
};

static uint64_t type_bytes(const char *dtype) {
    return strcmp(dtype, "I64") == 0 ? 8 : strcmp(dtype, "F32") == 0 ? 4 : 2;
}

/* A safetensors file of a header and n_data bytes of data; n_header: as announced, or 0 for what it is. */
static void put_file(const char *name, const char *header, size_t n, uint64_t n_header, size_t n_data) {
    uint8_t *bytes = calloc(1, 8 + n + n_data);
    n_header = n_header != 0 ? n_header : n;
    for (size_t i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(n_header >> (8 * i));
    }
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i + 1 < n_data; i += 2) { /* 0x3C01 and near: small numbers in every type */
        bytes[8 + n + i] = (uint8_t)(i * 7 % 61);
        bytes[8 + n + i + 1] = 0x3C;
    }
    host_put(&host, name, bytes, 8 + n + n_data);
    free(bytes);
}

static void put_shapes(const char *file, const shape *shapes, size_t n_shapes) {
    char header[8192];
    size_t n = 0;
    uint64_t at = 0;
    n += (size_t)snprintf(header + n, sizeof header - n, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n_shapes; i++) {
        const shape *s = &shapes[i];
        uint64_t bytes = s->rows * (s->cols != 0 ? s->cols : 1) * type_bytes(s->dtype);
        n += (size_t)snprintf(header + n, sizeof header - n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", s->name,
                              s->dtype, (unsigned long long)s->rows);
        if (s->cols != 0) {
            n += (size_t)snprintf(header + n, sizeof header - n, ",%llu", (unsigned long long)s->cols);
        }
        n += (size_t)snprintf(header + n, sizeof header - n, "],\"data_offsets\":[%llu,%llu]}",
                              (unsigned long long)at, (unsigned long long)(at + bytes));
        at += bytes;
    }
    header[n++] = '}';
    put_file(file, header, n, 0, (size_t)at);
}

static void put_good(void) {
    host_free(&host);
    host_init(&host, true);
    host_put_text(&host, "config.json", good_config);
    put_shapes("model.safetensors", good_shapes, FL_COUNT(good_shapes));
}

/* Load what lies there and, if that succeeds, use it. */
static folollm_status load_and_use(void) {
    folollm_options o = {.host = &host.hooks, .n_threads = 1, .max_seqs = 1, .context = 1};
    folollm *f = NULL;
    folollm_token token = 0;
    folollm_seq seq;
    folollm_memory plan;
    folollm_status planned = folollm_plan("mem", &o, &plan, &error);
    folollm_status status = folollm_load("mem", &o, &f, &error);
    CHECK(planned == status || (planned == FOLOLLM_OK && status != FOLOLLM_OK));
    if (f != NULL) {
        CHECK(plan.allocated == host.live);
        CHECK(folollm_seq_open(f, NULL, &seq, NULL) == FOLOLLM_OK);
        folollm_status used = folollm_prefill(f, seq, &token, 1, NULL, NULL);
        CHECK(used == FOLOLLM_OK || used == FOLOLLM_E_NUMERIC);
    }
    folollm_free(f);
    return status;
}

static folollm_status try_load(const char *name, int expected, const char *file) {
    case_begin();
    return case_end(name, load_and_use(), expected, file);
}

/* ---- safetensors --------------------------------------------------------------------------------- */

static folollm_status try_tensors(const char *name, int expected) {
    fl_memory m;
    fl_tensors t;
    fl_memory_init(&m, &host.hooks);
    case_begin();
    folollm_status status = fl_tensors_open(&m, &t, "mem", NULL, &error);
    if (status == FOLOLLM_OK) {
        fl_tensors_close(&t);
    }
    return case_end(name, status, expected, "mem/model");
}

typedef struct header_case {
    const char *name, *header;
    size_t n_data;
    int expected;
} header_case;

#define T(shape_text, begin, end) \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":" shape_text ",\"data_offsets\":[" #begin "," #end "]}}"
#define BAD FOLOLLM_E_FORMAT

/* One tensor "a", or two, of which one thing is wrong. */
static const header_case header_cases[] = {
    {"good", T("[2,3]", 0, 24), 24, FOLOLLM_OK},
    {"no tensors", "{}", 0, FOLOLLM_OK},
    {"no tensors, spaces", "{}       ", 0, FOLOLLM_OK},
    {"no tensors, data", "{}", 4, BAD},
    {"rank 0", T("[]", 0, 4), 4, FOLOLLM_OK},
    {"rank 8", T("[1,1,1,1,1,1,1,2]", 0, 8), 8, FOLOLLM_OK},
    {"rank 9", T("[1,1,1,1,1,1,1,1,2]", 0, 8), 8, BAD},
    {"empty tensor", T("[0]", 0, 0), 0, FOLOLLM_OK},
    {"empty tensor, many", T("[0,18446744073709551609]", 0, 0), 0, FOLOLLM_OK},
    {"empty tensor with a range", T("[0,5]", 0, 4), 4, BAD},
    {"empty tensor past the end", T("[0]", 1, 1), 0, BAD},
    {"product wraps to 0: 2^32 x 2^32", T("[4294967296,4294967296]", 0, 0), 0, BAD},
    {"product wraps to 0: 2^63 x 2", T("[9223372036854775808,2]", 0, 0), 0, BAD},
    {"product wraps to 4", T("[4294967297,4294967296,4294967296]", 0, 4), 4, BAD},
    {"bytes wrap to 0: 2^62", T("[4611686018427387904]", 0, 0), 0, BAD},
    {"bytes wrap to 4: 2^62 + 1", T("[4611686018427387905]", 0, 4), 4, BAD},
    {"zero after a wrap", T("[4294967296,4294967296,0]", 0, 0), 0, ANY},
    {"size 2^64 - 1", T("[18446744073709551615]", 0, 4), 4, BAD},
    {"size 2^64", T("[18446744073709551616]", 0, 4), 4, BAD},
    {"negative size", T("[-1]", 0, 4), 4, BAD},
    {"negative sizes", T("[-1,-1]", 0, 4), 4, BAD},
    {"minus zero", T("[-0]", 0, 0), 0, BAD},
    {"fraction", T("[1.0]", 0, 4), 4, BAD},
    {"exponent", T("[1e0]", 0, 4), 4, BAD},
    {"size is text", T("[\"1\"]", 0, 4), 4, BAD},
    {"size is null", T("[null]", 0, 4), 4, BAD},
    {"size is a list", T("[[1]]", 0, 4), 4, BAD},
    {"shape is a number", T("1", 0, 4), 4, BAD},
    {"shape is null", T("null", 0, 4), 4, BAD},
    {"end before begin", T("[1]", 4, 0), 4, BAD},
    {"range past the end", T("[2]", 0, 8), 4, BAD},
    {"range far past the end", T("[1]", 18446744073709551612, 18446744073709551615), 4, BAD},
    {"range wraps", T("[2]", 18446744073709551612, 4), 8, BAD},
    {"range one element short", T("[2]", 0, 4), 4, BAD},
    {"range one element long", T("[2]", 0, 12), 12, BAD},
    {"range one byte long", T("[2]", 0, 9), 9, BAD},
    {"negative begin", T("[1]", -4, 0), 4, BAD},
    {"hole at the front", T("[1]", 4, 8), 8, BAD},
    {"bytes at the end", T("[1]", 0, 4), 5, BAD},
    {"offsets of one", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, BAD},
    {"offsets of three", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, BAD},
    {"offsets nested", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[[0,4],4]}}", 4, BAD},
    {"offsets missing", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, BAD},
    {"offsets text", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":\"0,4\"}}", 4, BAD},
    {"shape missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype missing", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype unknown", "{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype in small letters", "{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype a number", "{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype with NUL", "{\"a\":{\"dtype\":\"F32\\u0000\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype of another size", "{\"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype of a known other kind", "{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8,
     FOLOLLM_OK},
    {"dtype twice", "{\"a\":{\"dtype\":\"F16\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"shape twice", "{\"a\":{\"dtype\":\"F32\",\"shape\":[9],\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"offsets twice",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,9],\"data_offsets\":[0,4]}}", 4, BAD},
    {"dtype in the place of shape", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, BAD},
    {"something beside the three", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
     BAD},
    {"tensor is a list", "{\"a\":[\"F32\",[1],[0,4]]}", 4, BAD},
    {"tensor is null", "{\"a\":null}", 0, BAD},
    {"tensor is empty", "{\"a\":{}}", 0, BAD},
    {"header is a list", "[1,2,3]", 0, BAD},
    {"header is a number", "12", 0, BAD},
    {"header is text", "\"{}\"", 0, BAD},
    {"header begins with a space", " {}", 0, BAD},
    {"header begins with a byte order mark", "\xEF\xBB\xBF{}", 0, BAD},
    {"header not closed", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", 4, BAD},
    {"something after the header", "{}x", 0, BAD},
    {"a second header", "{}{}", 0, BAD},
    {"escape in a name", "{\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"NUL in a name", "{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"name that is not UTF-8", "{\"\xFF\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, BAD},
    {"name with half a surrogate", "{\"\\ud800\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     BAD},
    {"empty name", "{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, FOLOLLM_OK},
    {"metadata", "{\"__metadata__\":{\"a\":\"b\",\"c\":\"\"}}", 0, FOLOLLM_OK},
    {"metadata of a number", "{\"__metadata__\":{\"a\":1}}", 0, BAD},
    {"metadata of an object", "{\"__metadata__\":{\"a\":{}}}", 0, BAD},
    {"metadata is a list", "{\"__metadata__\":[]}", 0, BAD},
    {"metadata is null", "{\"__metadata__\":null}", 0, BAD},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, BAD},
    {"metadata twice, once escaped", "{\"__metadata__\":{},\"\\u005f_metadata__\":{}}", 0, BAD},
};

#define TWO(a, ra, b, rb) "{" PAIR(a, ra, b, rb)
#define PAIR(a, ra, b, rb)                                                \
    "\"" a "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" ra "}," \
    "\"" b "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" rb "}}"

/* Tensors of four bytes, and empty ones at three places. */
#define AT(name, place) "\"" name "\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[" place "," place "]},"
#define EMPTY(x, y, z) "{" AT("c", z) AT("d", x) AT("e", y) PAIR("a", "[0,4]", "b", "[4,8]")

static const header_case pair_cases[] = {
    {"two", TWO("a", "[0,4]", "b", "[4,8]"), 8, FOLOLLM_OK},
    {"two, the other way round", TWO("a", "[4,8]", "b", "[0,4]"), 8, FOLOLLM_OK},
    {"two with one name", TWO("a", "[0,4]", "a", "[4,8]"), 8, BAD},
    {"two with one range", TWO("a", "[0,4]", "b", "[0,4]"), 4, BAD},
    {"two that overlap", TWO("a", "[0,4]", "b", "[2,6]"), 6, BAD},
    {"two with a hole between", TWO("a", "[0,4]", "b", "[5,9]"), 9, BAD},
    {"two with one range, a hole to match", TWO("a", "[4,8]", "b", "[4,8]"), 8, BAD},
    {"an empty one at every border", EMPTY("0", "4", "8"), 8, FOLOLLM_OK},
    {"an empty one inside another", EMPTY("0", "2", "8"), 8, BAD},
    {"two names with one escaped", TWO("a", "[0,4]", "\\u0061", "[4,8]"), 8, BAD},
};

static void test_headers(void) {
    for (size_t i = 0; i < FL_COUNT(header_cases) + FL_COUNT(pair_cases); i++) {
        const header_case *c =
            i < FL_COUNT(header_cases) ? &header_cases[i] : &pair_cases[i - FL_COUNT(header_cases)];
        put_file("model.safetensors", c->header, strlen(c->header), 0, c->n_data);
        try_tensors(c->name, c->expected);
    }
    char header[] = "{\"a\0\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    put_file("model.safetensors", header, sizeof header - 1, 0, 4);
    try_tensors("NUL byte in a name", BAD);
}

/* The eight bytes in front. */
static void test_header_lengths(void) {
    static const uint64_t lengths[] = {1, 3, 100000000, 100000001, 1u << 31, UINT32_MAX, UINT64_C(1) << 32,
                                       UINT64_C(1) << 63, UINT64_MAX - 8, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < FL_COUNT(lengths); i++) {
        put_file("model.safetensors", "{}", 2, lengths[i], 0);
        try_tensors("a length of the header that is not its", BAD);
    }
    host_put(&host, "model.safetensors", "\0\0\0\0\0\0\0\0{}", 10);
    try_tensors("a header of no bytes", BAD);
    for (size_t n = 0; n < 10; n++) {
        host_put(&host, "model.safetensors", "\2\0\0\0\0\0\0\0{}", n);
        try_tensors("a file of less than ten bytes", BAD);
    }
    host_put(&host, "model.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    try_tensors("a file of ten bytes", FOLOLLM_OK);
}

/* A text of `open` n times, then `middle`, then `close` n times; freed by the caller. */
static char *nest(const char *open, const char *middle, const char *close, size_t n, size_t *length) {
    size_t a = strlen(open), b = strlen(middle), c = strlen(close);
    char *text = malloc(n * (a + c) + b + 1), *at = text;
    for (size_t i = 0; i < n; i++, at += a) {
        memcpy(at, open, a);
    }
    memcpy(at, middle, b);
    at += b;
    for (size_t i = 0; i < n; i++, at += c) {
        memcpy(at, close, c);
    }
    *at = 0;
    *length = (size_t)(at - text);
    return text;
}

static void try_nested(const char *name, const char *open, const char *close, size_t n, int expected) {
    size_t length;
    char *text = nest(open, "{}", close, n, &length);
    put_file("model.safetensors", text, length, 0, 0);
    try_tensors(name, expected);
    free(text);
}

static void test_nesting(void) {
    try_nested("62 levels in metadata", "{\"a\":", "}", 62, BAD);
    try_nested("64 levels", "{\"a\":", "}", 63, BAD);
    try_nested("65 levels", "{\"a\":", "}", 64, BAD);
    try_nested("100000 objects", "{\"a\":", "}", 100000, BAD);
    try_nested("100000 objects, open", "{\"a\":", "", 100000, BAD);
    try_nested("100000 lists", "{\"a\":[", "]}", 100000, BAD);
}

/* Every prefix of a file, and every byte of its header replaced: refused or read, never believed too much. */
static void test_header_bytes(void) {
    static const uint8_t values[] = {0x00, 0xFF, 0x80, '"', '{', '}', '[',  ']',
                                     ',',  ':',  '0',  '9', '-', 'e', '\\', ' '};
    put_good();
    host_file *f = host_find(&host, "model.safetensors");
    size_t n = f->n, n_header = 8 + (size_t)fl_load_u64(f->bytes);
    uint8_t *whole = malloc(n), *copy = malloc(n);
    memcpy(whole, f->bytes, n);
    for (size_t i = 0; i < n; i++) {
        host_put(&host, "model.safetensors", whole, i);
        try_tensors("a prefix of a safetensors file", BAD);
    }
    for (size_t i = 0; i < n_header; i++) {
        for (size_t k = 0; k < FL_COUNT(values); k++) {
            memcpy(copy, whole, n);
            copy[i] = values[k];
            host_put(&host, "model.safetensors", copy, n);
            if (try_tensors("a byte of the header changed", ANY) == FOLOLLM_OK) {
                try_load("a byte of the header changed, and read", ANY, NULL);
            }
        }
    }
    free(whole);
    free(copy);
    put_good();
}

/* ---- Shards -------------------------------------------------------------------------------------- */

static void put_halves(void) {
    put_shapes("half-1.safetensors", good_shapes, 6);
    put_shapes("half-2.safetensors", good_shapes + 6, FL_COUNT(good_shapes) - 6);
    host_remove(&host, "model.safetensors");
}

#define INDEX "model.safetensors.index.json"

static void try_index(const char *name, const char *text, int expected) {
    host_put_text(&host, INDEX, text);
    try_load(name, expected, expected == FOLOLLM_E_IO ? "mem" : expected == REFUSED ? "model." : "safetensors");
}

static void test_shards(void) {
    static const char *const elsewhere[] = {
        "../x", "..", ".", "", "/etc/passwd", "a/b", "a\\\\b", ".hidden", "./half-1.safetensors", "a\\u0000b",
        "\\u002e\\u002e/x", "mem/half-1.safetensors", "../mem/half-1.safetensors",
    };
    put_halves();
    try_index("two shards", "{\"weight_map\":{\"a\":\"half-1.safetensors\",\"b\":\"half-2.safetensors\"}}",
              FOLOLLM_OK);
    try_index("shards named again", "{\"weight_map\":{\"a\":\"half-1.safetensors\",\"b\":\"half-2.safetensors\","
              "\"c\":\"half-1.safetensors\",\"d\":\"half-2.safetensors\"}}", FOLOLLM_OK);
    try_index("a shard that is missing",
              "{\"weight_map\":{\"a\":\"half-1.safetensors\",\"b\":\"half-3.safetensors\"}}", FOLOLLM_E_IO);
    try_index("half the tensors", "{\"weight_map\":{\"a\":\"half-1.safetensors\"}}", REFUSED);
    for (size_t i = 0; i < FL_COUNT(elsewhere); i++) {
        char text[256];
        snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"half-1.safetensors\",\"b\":\"%s\"}}", elsewhere[i]);
        try_index("a shard elsewhere", text, BAD);
    }
    try_index("no weight_map", "{}", BAD);
    try_index("weight_map is a list", "{\"weight_map\":[\"half-1.safetensors\"]}", BAD);
    try_index("weight_map is null", "{\"weight_map\":null}", BAD);
    try_index("a shard that is a number", "{\"weight_map\":{\"a\":1}}", BAD);
    try_index("index is a list", "[]", BAD);
    try_index("index not closed", "{\"weight_map\":{\"a\":\"half-1.safetensors\"", BAD);
    try_index("no shards", "{\"weight_map\":{}}", REFUSED);
    put_shapes("half-2.safetensors", good_shapes + 5, FL_COUNT(good_shapes) - 5);
    try_index("a tensor in two shards",
              "{\"weight_map\":{\"a\":\"half-1.safetensors\",\"b\":\"half-2.safetensors\"}}", BAD);
    host_put_text(&host, INDEX, "");
    try_load("an empty index", REFUSED, "safetensors");
    host_remove(&host, INDEX);
    try_load("neither file nor index", FOLOLLM_E_IO, "mem");
    host_put_text(&host, "half-1.safetensors", "");
    try_index("an empty shard", "{\"weight_map\":{\"a\":\"half-1.safetensors\"}}", BAD);
    put_good();
}

/* Every name is a file, without tensors. */
static void *open_any(void *user, const char *path) {
    return host_open(user, strstr(path, "/model.safetensors") != NULL ? path : "mem/any");
}

/* As many shards as may be, each named fifty times: time must not grow with the product. */
static void test_many_shards(void) {
    const size_t n_shards = inside_shards_max, n_names = 50 * n_shards, room = 16 * n_names + 32;
    char *index = malloc(room);
    size_t n = (size_t)snprintf(index, room, "{\"weight_map\":{");
    for (size_t i = 0; i < n_names; i++) {
        n += (size_t)snprintf(index + n, room - n, "%s\"\":\"s%zu\"", i > 0 ? "," : "", i % n_shards);
    }
    n += (size_t)snprintf(index + n, room - n, "}}");
    host_remove(&host, "model.safetensors");
    host_put(&host, "any", "\2\0\0\0\0\0\0\0{}", 10);
    host_put(&host, INDEX, index, n);
    host.hooks.file_open = open_any;
    try_tensors("many shards, named often", FOLOLLM_OK);
    free(index);
    put_good();
}

/* ---- Tensors against the config ------------------------------------------------------------------ */

static void test_tensors(void) {
    shape shapes[FL_COUNT(good_shapes) + 1];
    for (size_t i = 0; i < FL_COUNT(good_shapes); i++) {
        const shape *g = &good_shapes[i];
        const shape wrong[] = {
            {g->name, g->dtype, g->rows + 1, g->cols},
            {g->name, g->dtype, g->rows - 1, g->cols},
            {g->name, g->dtype, g->rows, g->cols + 1},
            {g->name, g->dtype, g->cols != 0 ? g->cols : 1, g->rows}, /* transposed */
            {g->name, g->dtype, g->rows * (g->cols != 0 ? g->cols : 2), 0},
            {g->name, g->dtype, 0, g->cols},
            {g->name, "I64", g->rows, g->cols},
            {"another.weight", g->dtype, g->rows, g->cols},
        };
        for (size_t k = 0; k < FL_COUNT(wrong); k++) {
            bool same = wrong[k].rows == g->rows && wrong[k].cols == g->cols && k != 6 && k != 7;
            memcpy(shapes, good_shapes, sizeof good_shapes);
            shapes[i] = wrong[k];
            put_shapes("model.safetensors", shapes, FL_COUNT(good_shapes));
            try_load("a tensor that is not as the config implies",
                     same ? FOLOLLM_OK : k == 6 ? FOLOLLM_E_UNSUPPORTED : BAD, g->name);
        }
        memcpy(shapes, good_shapes, sizeof good_shapes);
        shapes[FL_COUNT(good_shapes)] = (shape){"model.layers.7.extra.weight", "I64", 3, 5};
        put_shapes("model.safetensors", shapes, FL_COUNT(shapes));
        try_load("a tensor that nobody asked for", FOLOLLM_OK, NULL);
    }
    put_good();
}

/* Ids of the tokenizer against rows of the embedding. */
static void test_vocabulary(void) {
    host_put_tokenizer(&host);
    try_load("40 rows for 37 ids", FOLOLLM_OK, NULL);
    for (unsigned rows = 35; rows < 39; rows++) {
        shape shapes[FL_COUNT(good_shapes)];
        char config[1024], *at;
        memcpy(shapes, good_shapes, sizeof shapes);
        shapes[0].rows = rows;
        put_shapes("model.safetensors", shapes, FL_COUNT(shapes));
        memcpy(config, good_config, sizeof good_config);
        at = strstr(config, "\"vocab_size\":40");
        memcpy(at, rows == 35 ? "\"vocab_size\":35" : rows == 36 ? "\"vocab_size\":36"
               : rows == 37 ? "\"vocab_size\":37" : "\"vocab_size\":38", 15);
        host_put_text(&host, "config.json", config);
        try_load("rows around the number of ids", rows < 37 ? BAD : FOLOLLM_OK, "tokenizer.json");
    }
    put_good();
}

/* ---- config.json --------------------------------------------------------------------------------- */

/* good_config with `"key":value` in the place of that key, or added; value NULL: without it. */
static void put_config(const char *key, const char *value) {
    char config[4096], quoted[64], rest[2048];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    snprintf(config, sizeof config, "%s", good_config);
    char *at = strstr(config, quoted);
    if (at == NULL) {
        at = config + strlen(config) - 1;
        snprintf(rest, sizeof rest, "}");
        *at++ = ',';
    } else {
        snprintf(rest, sizeof rest, "%s", at + strcspn(at, ",}"));
    }
    size_t room = sizeof config - (size_t)(at - config);
    if (value != NULL) {
        snprintf(at, room, "%s%s%s", quoted, value, rest);
    } else {
        snprintf(at, room, "%s", rest[0] == ',' ? rest + 1 : rest);
    }
    host_put_text(&host, "config.json", config);
}

static void try_config(const char *key, const char *value, int expected) {
    char name[256];
    snprintf(name, sizeof name, "config.json: %s = %.80s", key, value != NULL ? value : "(absent)");
    put_config(key, value);
    try_load(name, expected, "config.json");
}

/* Every integer at every border: refused, or used as far as the tensors agree. */
static void test_config_integers(void) {
    static const struct {
        const char *key;
        uint64_t cap;
        bool needed, zero; /* must be there; may be 0 */
    } keys[] = {
        {"num_hidden_layers", 1024, true, false},     {"hidden_size", 131072, true, false},
        {"num_attention_heads", 4096, true, false},   {"intermediate_size", 1048576, true, false},
        {"vocab_size", 16777216, true, false},        {"max_position_embeddings", 67108864, false, false},
        {"num_key_value_heads", 4096, false, false},  {"head_dim", 1024, false, false},
        {"sliding_window", 2147483647, false, true},  {"max_window_layers", 2147483647, false, true},
    };
    static const char *const never[] = {"-1", "1.5", "\"text\"", "true", "[]", "{}", "[8]", "1e3", "4294967295",
                                        "2147483648", "4294967296", "4294967297", "18446744073709551615",
                                        "18446744073709551624", "99999999999999999999999999999999", "-0", "8.0"};
    for (size_t i = 0; i < FL_COUNT(keys); i++) {
        char value[32];
        for (size_t k = 0; k < FL_COUNT(never); k++) {
            try_config(keys[i].key, never[k], BAD);
        }
        try_config(keys[i].key, NULL, keys[i].needed ? BAD : ANY);
        try_config(keys[i].key, "null", keys[i].needed ? BAD : ANY);
        try_config(keys[i].key, "0", keys[i].zero ? ANY : BAD);
        try_config(keys[i].key, "1", ANY);
        snprintf(value, sizeof value, "%llu", (unsigned long long)keys[i].cap);
        try_config(keys[i].key, value, ANY);
        snprintf(value, sizeof value, "%llu", (unsigned long long)keys[i].cap + 1);
        try_config(keys[i].key, value, BAD);
    }
}

typedef struct config_case {
    const char *key, *value;
    int expected;
} config_case;

#define NO FOLOLLM_E_UNSUPPORTED
#define ROPE(text) "{\"rope_type\":" text "}"

static const config_case config_cases[] = {
    {"num_key_value_heads", "2", BAD}, /* then k_proj has the wrong shape */
    {"num_key_value_heads", "3", BAD}, /* 2 % 3 */
    {"num_attention_heads", "3", BAD},
    {"head_dim", "3", BAD},
    {"head_dim", "2", BAD},
    {"model_type", "\"gpt2\"", NO},
    {"model_type", "\"\"", NO},
    {"model_type", "\"qwen3\\u0000\"", NO},
    {"model_type", "3", NO},
    {"model_type", "null", NO},
    {"model_type", NULL, NO},
    {"model_type", "\"llama\"", FOLOLLM_OK}, /* the norms of q and k are then tensors that nobody asked for */
    {"model_type", "\"qwen2\"", BAD},        /* biases are missing */
    {"hidden_act", "\"silu\"", FOLOLLM_OK},
    {"hidden_act", "\"gelu\"", NO},
    {"hidden_act", "3", NO},
    {"quantization_config", "{\"bits\":4}", NO},
    {"quantization_config", "null", FOLOLLM_OK},
    {"attention_bias", "true", BAD},
    {"attention_bias", "1", BAD},
    {"tie_word_embeddings", "false", BAD},
    {"tie_word_embeddings", "\"true\"", BAD},
    {"rms_norm_eps", "-1e-6", BAD},
    {"rms_norm_eps", "1e300", BAD},
    {"rms_norm_eps", "2", BAD},
    {"rms_norm_eps", "\"1e-6\"", BAD},
    {"rms_norm_eps", "0", FOLOLLM_OK},
    {"rms_norm_eps", "1e-400", FOLOLLM_OK},
    {"rms_norm_eps", "NaN", BAD},
    {"rms_norm_eps", "Infinity", BAD},
    {"rope_theta", "0", BAD},
    {"rope_theta", "1", BAD},
    {"rope_theta", "-10000", BAD},
    {"rope_theta", "1e300", BAD},
    {"rope_theta", "1e999999999999", BAD},
    {"rope_theta", "\"10000\"", BAD},
    {"partial_rotary_factor", "0.5", NO},
    {"partial_rotary_factor", "0", NO},
    {"layer_types", "[\"full_attention\"]", FOLOLLM_OK},
    {"layer_types", "null", FOLOLLM_OK},
    {"layer_types", "[]", BAD},
    {"layer_types", "[\"full_attention\",\"full_attention\"]", BAD},
    {"layer_types", "[\"sliding_attention\"]", BAD},
    {"layer_types", "[\"linear_attention\"]", NO},
    {"layer_types", "[1]", NO},
    {"layer_types", "[[\"full_attention\"]]", NO},
    {"layer_types", "\"full_attention\"", BAD},
    {"layer_types", "{\"full_attention\":1}", BAD},
    {"use_sliding_window", "2", BAD},
    {"rope_scaling", "null", FOLOLLM_OK},
    {"rope_scaling", "{}", FOLOLLM_OK},
    {"rope_scaling", "[]", BAD},
    {"rope_scaling", "7", BAD},
    {"rope_scaling", ROPE("\"default\""), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"longrope\""), NO},
    {"rope_scaling", ROPE("3"), NO},
    {"rope_scaling", ROPE("\"linear\""), BAD},
    {"rope_scaling", ROPE("\"linear\",\"factor\":2"), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"linear\",\"factor\":0"), BAD},
    {"rope_scaling", ROPE("\"linear\",\"factor\":-1"), BAD},
    {"rope_scaling", ROPE("\"linear\",\"factor\":1e300"), BAD},
    {"rope_scaling", ROPE("\"linear\",\"factor\":1e-300"), BAD},
    {"rope_scaling", ROPE("\"linear\",\"factor\":\"2\""), BAD},
    {"rope_scaling", ROPE("\"linear\",\"factor\":NaN"), BAD},
    {"rope_scaling", ROPE("\"ntk\",\"factor\":1e6"), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"dynamic\",\"factor\":1"), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"dynamic\",\"factor\":2,\"original_max_position_embeddings\":0"), BAD},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4"), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4,\"beta_fast\":-1"), BAD},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4,\"beta_slow\":1e300"), BAD},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4,\"beta_fast\":1e-6,\"beta_slow\":1e6"), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4,\"attention_factor\":-1"), BAD},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4,\"mscale\":1e300"), BAD},
    {"rope_scaling", ROPE("\"yarn\",\"original_max_position_embeddings\":1e9"), BAD},
    {"rope_scaling", ROPE("\"yarn\",\"factor\":4,\"truncate\":1"), BAD},
    {"rope_scaling", ROPE("\"llama3\",\"factor\":8"), FOLOLLM_OK},
    {"rope_scaling", ROPE("\"llama3\",\"factor\":8,\"low_freq_factor\":0"), BAD},
    {"rope_scaling", ROPE("\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4"), BAD},
    {"rope_scaling", ROPE("\"llama3\",\"factor\":8,\"high_freq_factor\":1e300"), BAD},
    {"rope_scaling", ROPE("\"llama3\",\"factor\":8,\"original_max_position_embeddings\":-5"), BAD},
    {"rope_parameters", "{\"full_attention\":{}}", NO},
};

static void test_config_values(void) {
    static const char *const whole[] = {"",
                                        " ",
                                        "{",
                                        "}",
                                        "[]",
                                        "null",
                                        "3",
                                        "\"config\"",
                                        "{}",
                                        "{]",
                                        "{\"model_type\"}",
                                        "{\"model_type\":}",
                                        "{\"model_type\":\"qwen3\"",
                                        "{\"model_type\":\"qwen3\",}",
                                        "\xEF\xBB\xBF{}",
                                        "{\"a\":\"\xC3\"}",
                                        "{} {}",
                                        "{'a':1}",
                                        "// a\n{}"};
    for (size_t i = 0; i < FL_COUNT(config_cases); i++) {
        char name[256];
        snprintf(name, sizeof name, "config.json: %s = %s", config_cases[i].key,
                 config_cases[i].value != NULL ? config_cases[i].value : "(absent)");
        put_config(config_cases[i].key, config_cases[i].value);
        try_load(name, config_cases[i].expected, NULL);
    }
    for (size_t i = 0; i < FL_COUNT(whole); i++) {
        host_put_text(&host, "config.json", whole[i]);
        try_load("a config.json that is none", REFUSED, "config.json");
    }
    host_remove(&host, "config.json");
    try_load("no config.json", FOLOLLM_E_IO, "config.json");
    for (size_t n = 0; n < sizeof good_config - 1; n++) {
        host_put(&host, "config.json", good_config, n);
        try_load("a prefix of config.json", BAD, "config.json");
    }
    for (size_t n = 0; n < 6000; n++) { /* two bytes of it changed */
        char config[sizeof good_config];
        memcpy(config, good_config, sizeof config);
        for (size_t k = 0; k < 2; k++) {
            config[random_next() % (sizeof config - 1)] = "\"{}[],:0192e-. \\\xFF"[random_next() % 17];
        }
        host_put(&host, "config.json", config, sizeof config - 1);
        try_load("config.json with two bytes changed", ANY, NULL);
    }
    put_good();
}

static void test_generation_config(void) {
    static const struct {
        const char *text;
        int expected;
    } cases[] = {
        {"{}", FOLOLLM_OK},
        {"{\"eos_token_id\":3}", FOLOLLM_OK},
        {"{\"eos_token_id\":null}", FOLOLLM_OK},
        {"{\"eos_token_id\":[]}", FOLOLLM_OK},
        {"{\"eos_token_id\":[1,2,3,1,2,3]}", FOLOLLM_OK},
        {"{\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,"
         "32,33,"
         "34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63,64,65,66]}",
         ANY},
        {"{\"eos_token_id\":\"3\"}", BAD},
        {"{\"eos_token_id\":-1}", BAD},
        {"{\"eos_token_id\":1.5}", BAD},
        {"{\"eos_token_id\":true}", BAD},
        {"{\"eos_token_id\":{}}", BAD},
        {"{\"eos_token_id\":2147483647}", FOLOLLM_OK},
        {"{\"eos_token_id\":2147483648}", BAD},
        {"{\"eos_token_id\":99999999999999999999999}", BAD},
        {"{\"eos_token_id\":[1,\"2\"]}", BAD},
        {"{\"eos_token_id\":[[1]]}", BAD},
        {"{\"eos_token_id\":[null]}", BAD},
        {"{\"do_sample\":true,\"temperature\":-1}", BAD},
        {"{\"do_sample\":true,\"temperature\":1e300}", BAD},
        {"{\"do_sample\":true,\"temperature\":\"hot\"}", BAD},
        {"{\"do_sample\":true,\"top_k\":-1}", BAD},
        {"{\"do_sample\":true,\"top_k\":1.5}", BAD},
        {"{\"do_sample\":true,\"top_p\":1.5}", BAD},
        {"{\"do_sample\":true,\"min_p\":-0.1}", BAD},
        {"{\"do_sample\":1}", BAD},
        {"{\"repetition_penalty\":0}", BAD},
        {"{\"repetition_penalty\":1e999}", BAD},
        {"[", BAD},
        {"", BAD},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        host_put_text(&host, "generation_config.json", cases[i].text);
        try_load(cases[i].text, cases[i].expected, "generation_config.json");
    }
    put_good();
}

/* ---- tokenizer.json ------------------------------------------------------------------------------ */

static folollm_status try_tokenizer(const char *name, int expected, const char *file) {
    static const char text[] = "hello hell, <|im_end|> caf\xC3\xA9 \xF0\x9F\x98\x80 \n\n  he";
    folollm_options o = {.host = &host.hooks, .tokenizer_only = 1};
    folollm_token tokens[256];
    folollm_span all = {0, sizeof text - 1};
    char out[2048];
    size_t n = FL_COUNT(tokens), n_out = sizeof out;
    folollm *f = NULL;
    case_begin();
    folollm_status status = folollm_load("mem", &o, &f, &error);
    if (f != NULL && folollm_tokenize(f, text, sizeof text - 1, &all, 1, 0, tokens, &n, NULL) == FOLOLLM_OK) {
        folollm_status back = folollm_detokenize(f, tokens, n, 0, out, &n_out, NULL);
        CHECK(back == FOLOLLM_OK || back == FOLOLLM_E_BUFFER);
    }
    folollm_free(f);
    return case_end(name, status, expected, file);
}

/* Every prefix of a small tokenizer.json; the same with bytes changed; some prefixes of larger ones. */
static void test_tokenizers(void) {
    static const char *const models[] = {"examples/models/tiny-shakespeare", "tests/vectors/tokenizers/llama2",
                                         "tests/vectors/tokenizers/gpt2"};
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    host_free(&host);
    host_init(&host, true);
    host_put_tokenizer(&host);
    try_tokenizer("a good tokenizer", FOLOLLM_OK, NULL);
    for (size_t which = 0; which < 2; which++) {
        host_file *f = host_find(&host, names[which]);
        size_t n = f->n;
        uint8_t *whole = malloc(n), *copy = malloc(n);
        memcpy(whole, f->bytes, n);
        for (size_t i = 0; i < n; i++) {
            host_put(&host, names[which], whole, i);
            try_tokenizer("a prefix of a tokenizer", BAD, names[which]);
        }
        for (size_t i = 0; i < 6000; i++) {
            memcpy(copy, whole, n);
            for (uint64_t k = random_next() % 3 + 1; k > 0; k--) {
                copy[random_next() % n] = (uint8_t)"\"{}[],:0192e-. \\\xFF"[random_next() % 17];
            }
            host_put(&host, names[which], copy, n);
            try_tokenizer("a tokenizer with bytes changed", ANY, NULL);
        }
        host_put(&host, names[which], whole, n);
        free(whole);
        free(copy);
    }
    for (size_t m = 0; m < FL_COUNT(models); m++) {
        char path[1024];
        size_t n = 0;
        snprintf(path, sizeof path, "%s/%s/tokenizer.json", root, models[m]);
        uint8_t *whole = host_slurp(path, &n);
        CHECK(whole != NULL);
        for (size_t i = 0; whole != NULL && i + 2 < n; i += n / 50 + 1) {
            host_put(&host, "tokenizer.json", whole, i);
            try_tokenizer("a prefix of a larger tokenizer.json", BAD, "tokenizer.json");
        }
        free(whole);
    }
    put_good();
}

#define TOKENIZER(vocab, merges, added, rest)                                                        \
    "{\"added_tokens\":" added ",\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}" rest "}"
#define LONG "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" /* 31 */
#define REPLACE(from, to) "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"
#define NORMALIZERS(list) ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[" list "]}" LEVEL
#define NORMALIZED "[{\"id\":1,\"content\":\"a\",\"normalized\":true}]"
#define LEVEL ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}," \
              "\"decoder\":{\"type\":\"ByteLevel\"}"

static void test_tokenizer_parts(void) {
    static const struct {
        const char *name, *text;
        int expected;
    } cases[] = {
        {"two tokens", TOKENIZER("{\"a\":0,\"b\":1}", "[]", "[]", LEVEL), FOLOLLM_OK},
        {"no tokens", TOKENIZER("{}", "[]", "[]", LEVEL), ANY},
        {"two tokens of one id", TOKENIZER("{\"a\":0,\"b\":0}", "[]", "[]", LEVEL), BAD},
        {"one token twice", TOKENIZER("{\"a\":0,\"a\":1}", "[]", "[]", LEVEL), BAD},
        {"a negative id", TOKENIZER("{\"a\":-1}", "[]", "[]", LEVEL), BAD},
        {"an id of 2^31", TOKENIZER("{\"a\":2147483648}", "[]", "[]", LEVEL), BAD},
        {"an id of 2^32", TOKENIZER("{\"a\":4294967296}", "[]", "[]", LEVEL), BAD},
        {"an id of 2^64", TOKENIZER("{\"a\":18446744073709551616}", "[]", "[]", LEVEL), BAD},
        {"an id far from the others", TOKENIZER("{\"a\":0,\"b\":4194302}", "[]", "[]", LEVEL), NO},
        {"an id a little apart", TOKENIZER("{\"a\":0,\"b\":65000}", "[]", "[]", LEVEL), FOLOLLM_OK},
        {"an id that is text", TOKENIZER("{\"a\":\"0\"}", "[]", "[]", LEVEL), BAD},
        {"a vocabulary that is a list", TOKENIZER("[\"a\"]", "[]", "[]", LEVEL), BAD},
        {"a merge of what is not there", TOKENIZER("{\"a\":0,\"b\":1}", "[\"a b\"]", "[]", LEVEL), BAD},
        {"a merge of a stranger", TOKENIZER("{\"a\":0,\"ac\":1}", "[\"a c\"]", "[]", LEVEL), BAD},
        {"a merge without a space", TOKENIZER("{\"a\":0,\"aa\":1}", "[\"aa\"]", "[]", LEVEL), BAD},
        {"a merge of three", TOKENIZER("{\"a\":0,\"aa\":1}", "[[\"a\",\"a\",\"a\"]]", "[]", LEVEL), BAD},
        {"a merge that is a number", TOKENIZER("{\"a\":0}", "[7]", "[]", LEVEL), BAD},
        {"merges that are an object", TOKENIZER("{\"a\":0}", "{}", "[]", LEVEL), BAD},
        {"a merge twice", TOKENIZER("{\"a\":0,\"aa\":1}", "[\"a a\",\"a a\"]", "[]", LEVEL), ANY},
        {"added tokens that are an object", TOKENIZER("{\"a\":0}", "[]", "{}", LEVEL), BAD},
        {"an added token without id", TOKENIZER("{\"a\":0}", "[]", "[{\"content\":\"x\"}]", LEVEL), BAD},
        {"an added token of a negative id", TOKENIZER("{\"a\":0}", "[]", "[{\"id\":-1,\"content\":\"x\"}]", LEVEL),
         BAD},
        {"an added token without content", TOKENIZER("{\"a\":0}", "[]", "[{\"id\":1}]", LEVEL), BAD},
        {"an added token of a number", TOKENIZER("{\"a\":0}", "[]", "[1]", LEVEL), BAD},
        {"an empty added token", TOKENIZER("{\"a\":0}", "[]", "[{\"id\":1,\"content\":\"\"}]", LEVEL), ANY},
        {"an unknown pre-tokenizer", TOKENIZER("{\"a\":0}", "[]", "[]", ",\"pre_tokenizer\":{\"type\":\"Magic\"}"),
         REFUSED},
        {"an exponential pattern",
         TOKENIZER("{\"a\":0}", "[]", "[]",
                   ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+$\"},"
                   "\"behavior\":\"Isolated\",\"invert\":false}"),
         REFUSED},
        {"an unknown normalizer", TOKENIZER("{\"a\":0}", "[]", "[]", ",\"normalizer\":{\"type\":\"Magic\"}"),
         REFUSED},
        {"a normalizer that makes 31 bytes of one",
         TOKENIZER("{\"a\":0}", "[]", NORMALIZED, NORMALIZERS(REPLACE("a", LONG))), FOLOLLM_OK},
        {"five that do so in turn",
         TOKENIZER("{\"a\":0}", "[]", NORMALIZED,
                   NORMALIZERS(REPLACE("a", LONG) "," REPLACE("a", LONG) "," REPLACE("a", LONG) "," REPLACE("a", LONG)
                               "," REPLACE("a", LONG))), NO},
        {"an unknown decoder", TOKENIZER("{\"a\":0}", "[]", "[]", ",\"decoder\":{\"type\":\"Magic\"}"), REFUSED},
        {"another model", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1.0]]}}", REFUSED},
        {"no model", "{}", REFUSED},
        {"a list", "[]", REFUSED},
        {"byte tokens that are none",
         "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"<0x-1>\":0,\"<0xGG>\":1,\"<0x100>\":2,"
         "\"<0x>\":3,\"<0x0a>\":4,\"<0x0A>\":5,\"<0x+1>\":6},\"merges\":[]},"
         "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}}",
         ANY},
        {"100000 opening brackets", NULL, BAD},
    };
    host_free(&host);
    host_init(&host, true);
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        size_t n = 0;
        char *deep = cases[i].text == NULL ? nest("[", "", "", 100000, &n) : NULL;
        host_put_text(&host, "tokenizer.json", deep != NULL ? deep : cases[i].text);
        try_tokenizer(cases[i].name, cases[i].expected, "tokenizer.json");
        free(deep);
    }
    put_good();
}

/* A template of many special tokens that have no ids, each looked for among many names: time must not grow with the
 * product. */
static void test_long_template(void) {
    const size_t n_parts = 16000, n_names = 60000, room = 32 * n_parts + 8 * n_names + 1024;
    char *text = malloc(room);
    size_t n = (size_t)snprintf(text, room, "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[");
    for (size_t i = 0; i < n_parts; i++) {
        n += (size_t)snprintf(text + n, room - n, "{\"SpecialToken\":{\"id\":\"s\"}},");
    }
    n += (size_t)snprintf(text + n, room - n, "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{");
    for (size_t i = 0; i < n_names; i++) {
        n += (size_t)snprintf(text + n, room - n, "\"\":0,");
    }
    n += (size_t)snprintf(text + n, room - n, "\"s\":{\"ids\":[]}}},%s",
                          &TOKENIZER("{\"a\":0}", "[]", "[]", LEVEL)[1]);
    host_free(&host);
    host_init(&host, true);
    host_put(&host, "tokenizer.json", text, n);
    try_tokenizer("a template of tokens without ids", BAD, "tokenizer.json");
    free(text);
    put_good();
}

/* ---- JSON by itself ------------------------------------------------------------------------------ */

static folollm_status parse(fl_memory *m, fl_json *doc, const char *text, size_t n) {
    fl_str s = {text, n};
    return fl_json_parse(m, doc, "test.json", s, &error);
}

/* RFC 8259: what is JSON is read, what is not is refused with its place. */
static void test_json_corpus(void) {
    static const char *const valid[] = {
        "0",
        "-0",
        "1",
        "-1",
        "1.5",
        "1e5",
        "1E+5",
        "1e-5",
        "0.0",
        "-0.5e-10",
        "true",
        "false",
        "null",
        "\"\"",
        "[]",
        "{}",
        " [ ] ",
        "\t\n\r {} \n",
        "[1,2]",
        "[[],[[]]]",
        "{\"a\":{}}",
        "{\"\":0}",
        "\"\\u0000\"",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\\ud83d\\ude00\"",
        "\"\xF0\x9F\x98\x80\"",
        "\"\x7F\"",
        "{\"a\":1,\"a\":2}",
        "[1e400]",
        "\"\\uFFFF\"",
        "123456789012345678901234567890",
    };
    static const char *const invalid[] = {
        "",
        " ",
        "+1",
        ".5",
        "1.",
        "1.e5",
        "01",
        "-",
        "-a",
        "1e",
        "1e+",
        "0x10",
        "1 2",
        "tru",
        "truex",
        "True",
        "nul",
        "NaN",
        "Infinity",
        "-Infinity",
        "'a'",
        "\"",
        "\"a",
        "\"\\",
        "\"\\\"",
        "\"\\x41\"",
        "\"\\u12\"",
        "\"\\u12G4\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\\ud83d\\u0041\"",
        "\"\\ud83dx\"",
        "\"\n\"",
        "\"\t\"",
        "\"\x01\"",
        "\"\x80\"",
        "\"\xC0\x80\"",
        "\"\xED\xA0\x80\"",
        "\"\xF4\x90\x80\x80\"",
        "\"\xE2\x82\"",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "}",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{,}",
        "{a:1}",
        "{1:1}",
        "{\"a\" 1}",
        "{\"a\"::1}",
        "[}",
        "{]",
        "[1}",
        "{\"a\":1]",
        "[]]",
        "{}}",
        "[1]x",
        "/**/1",
        "1//",
        "\xEF\xBB\xBF"
        "1",
        "\xFF",
        "[\"a\",\n\"b\"",
    };
    fl_memory m;
    fl_json doc;
    fl_memory_init(&m, &host.hooks);
    for (size_t i = 0; i < FL_COUNT(valid) + FL_COUNT(invalid); i++) {
        bool good = i < FL_COUNT(valid);
        const char *text = good ? valid[i] : invalid[i - FL_COUNT(valid)];
        size_t n = strlen(text);
        char *exact = malloc(n + (n == 0)); /* so that a sanitizer sees a byte too far */
        memcpy(exact, text, n);
        case_begin();
        folollm_status status = parse(&m, &doc, exact, n);
        if (status == FOLOLLM_OK) {
            CHECK(doc.nodes[0].next == doc.n_nodes);
            fl_json_free(&m, &doc);
        }
        case_end(text, status, good ? FOLOLLM_OK : BAD, "test.json");
        free(exact);
    }
    case_begin();
    folollm_status status = parse(&m, &doc, "1\0", 2);
    case_end("a NUL behind a number", status, BAD, "test.json");
    case_begin();
    status = parse(&m, &doc, "{\"a\":\n1,\n\"b\": x}", 17);
    case_end("the line of an error", status, BAD, "line 3");
}

static void test_json_strings(void) {
    static const struct {
        const char *text, *value;
        size_t n;
    } cases[] = {
        {"\"plain\"", "plain", 5},
        {"\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\"", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8},
        {"\"a\\u0000b\"", "a\0b", 3},
        {"\"\\uDBFF\\uDFFF\\uD800\\uDC00\"", "\xF4\x8F\xBF\xBF\xF0\x90\x80\x80", 8},
    };
    fl_memory m;
    fl_json doc;
    fl_memory_init(&m, &host.hooks);
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        char buffer[64];
        CHECK(parse(&m, &doc, cases[i].text, strlen(cases[i].text)) == FOLOLLM_OK);
        CHECK(doc.nodes[0].n <= sizeof buffer);
        fl_str s = fl_json_string(&doc, 0, buffer);
        CHECK_TEXT(s.n == cases[i].n && memcmp(s.at, cases[i].value, s.n) == 0, cases[i].text);
        fl_json_free(&m, &doc);
    }
}

static double json_number(const char *text) {
    fl_memory m;
    fl_json doc;
    char object[512];
    double value = -1;
    fl_memory_init(&m, &host.hooks);
    snprintf(object, sizeof object, "{\"x\":%s}", text);
    CHECK(parse(&m, &doc, object, strlen(object)) == FOLOLLM_OK);
    CHECK(fl_json_double(&doc, 0, "x", 0, &value, &error) == FOLOLLM_OK);
    fl_json_free(&m, &doc);
    return value;
}

/* Numbers as files have them are those of strtod to the bit; any other is near. */
static void test_json_numbers(void) {
    static const char *const exact[] = {
        "0",
        "-0.0",
        "1",
        "-1",
        "0.1",
        "0.02",
        "0.8",
        "0.95",
        "1.1",
        "1e-6",
        "1e-06",
        "1e-05",
        "1e-12",
        "10000.0",
        "500000.0",
        "1000000.0",
        "5000000",
        "1e22",
        "3.141592653589793",
        "2.718281828459045",
        "0.07",
        "0.7",
        "1.05",
        "32768",
        "8.0",
        "123456789",
        "9007199254740993",
        "4.35",
        "0.000001",
        "1E3",
        "100e-2",
        "0.1e1",
        "0.30000000000000004",
    };
    for (size_t i = 0; i < FL_COUNT(exact); i++) {
        double value = json_number(exact[i]), wanted = strtod(exact[i], NULL);
        CHECK_TEXT(memcmp(&value, &wanted, sizeof value) == 0, exact[i]);
    }
    for (size_t i = 0; i < 20000; i++) {
        char text[64];
        uint64_t digits = random_next() >> (random_next() % 60);
        int exponent = (int)(random_next() % 300) - 150;
        snprintf(text, sizeof text, "%s%llu.%llue%d", i % 2 != 0 ? "-" : "",
                 (unsigned long long)(digits % 1000000000), (unsigned long long)(digits / 1000000000), exponent);
        double value = json_number(text), wanted = strtod(text, NULL);
        CHECK_TEXT(fabs(value - wanted) <= 1e-13 * fabs(wanted), text);
    }
    CHECK(json_number("1e999") >= DBL_MAX && json_number("-1e999") <= -DBL_MAX && json_number("1e-999") == 0);
    CHECK(json_number("0e999999999999999999999999") == 0);
    CHECK(host_is_clean(&host));
}

/* Nesting to the limit and past it, long strings and wide lists, on a small stack and in bounded memory. */
static void test_json_sizes(void) {
    static const struct {
        const char *name, *open, *middle, *close;
        size_t n;
        int expected;
    } cases[] = {
        {"64 lists", "[", "", "]", 64, FOLOLLM_OK},
        {"65 lists", "[", "", "]", 65, BAD},
        {"64 objects", "{\"a\":", "1", "}", 64, FOLOLLM_OK},
        {"65 objects", "{\"a\":", "1", "}", 65, BAD},
        {"100000 lists", "[", "", "]", 100000, BAD},
        {"100000 lists, open", "[", "", "", 100000, BAD},
        {"100000 objects", "{\"a\":", "1", "}", 100000, BAD},
        {"a wide list", "", "[0", ",0", 200000, BAD},
        {"a million digits", "", "1", "0", 1000000, FOLOLLM_OK},
        {"a million escapes", "", "\"", "\\n", 1000000, BAD},
        {"a million spaces", " ", "1", " ", 1000000, FOLOLLM_OK},
        {"a million quotes", "\"", "", "", 1000000, BAD},
        {"a million minus signs", "-", "", "", 1000000, BAD},
    };
    fl_memory m;
    fl_json doc;
    fl_memory_init(&m, &host.hooks);
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        size_t n;
        char *text = nest(cases[i].open, cases[i].middle, cases[i].close, cases[i].n, &n);
        host_put(&host, "counted", text, n); /* for the bound of memory */
        case_begin();
        folollm_status status = parse(&m, &doc, text, n);
        if (status == FOLOLLM_OK) {
            fl_json_free(&m, &doc);
        }
        case_end(cases[i].name, status, cases[i].expected, "test.json");
        host_remove(&host, "counted");
        free(text);
    }
}

/* ---- Arithmetic ---------------------------------------------------------------------------------- */

__extension__ typedef unsigned __int128 wide;

static uint64_t random_edge(void) {
    uint64_t r = random_next();
    switch (r % 6) {
    case 0:
        return random_next() >> (random_next() % 64);
    case 1:
        return UINT64_MAX - random_next() % 200;
    case 2:
        return random_next() % 200;
    case 3:
        return (UINT64_C(1) << (random_next() % 64)) + random_next() % 5 - 2;
    case 4:
        return UINT64_MAX / (random_next() % 1000 + 1) + random_next() % 3;
    default:
        return random_next();
    }
}

/* The checked helpers against arithmetic of 128 bits, which cannot wrap here. */
static void test_arithmetic(void) {
    uint64_t n_wrong = 0;
    for (size_t i = 0; i < 2000000; i++) {
        size_t a = (size_t)random_edge(), b = (size_t)random_edge(), out = 12345;
        uint64_t c = random_edge();
        wide product = (wide)a * b, sum = (wide)a + b;
        bool fits = product <= SIZE_MAX;
        n_wrong += fl_mul(a, b, &out) != fits || out != (fits ? (size_t)product : 12345);
        out = 12345;
        fits = sum <= SIZE_MAX;
        n_wrong += fl_add(a, b, &out) != fits || out != (fits ? (size_t)sum : 12345);
        size_t align = (size_t)1 << (b % 20);
        wide up = ((wide)a + align - 1) / align * align;
        out = 12345;
        bool aligned = fl_align_up(a, align, &out);
        n_wrong += aligned ? (wide)out != up : up <= (wide)SIZE_MAX - align;
        n_wrong += fl_within(a, b, c) != ((wide)a + b <= c);
        n_wrong += b != 0 && fl_div_up(a, b) != (size_t)(((wide)a + b - 1) / b);
    }
    CHECK(n_wrong == 0);
}

/* ---- Real files ---------------------------------------------------------------------------------- */

static void write_file(const char *directory, const char *name, const void *bytes, size_t n) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(bytes, 1, n, f) == n);
    if (f != NULL) {
        fclose(f);
    }
}

/* Files of the disk, mapped and read: cut at every border between two tensors, and one byte before and after. */
static void test_cut_files(void) {
    char directory[] = "/tmp/folollm-hostile-XXXXXX", path[1024];
    if (!CHECK(mkdtemp(directory) != NULL)) {
        return;
    }
    put_good();
    host_file *file = host_find(&host, "model.safetensors");
    size_t at = 8 + (size_t)fl_load_u64(file->bytes);
    host.hooks.file_open = NULL;
    host.hooks.file_size = NULL;
    host.hooks.file_read = NULL;
    host.hooks.file_close = NULL;
    write_file(directory, "config.json", good_config, sizeof good_config - 1);
    for (size_t i = 0; i <= FL_COUNT(good_shapes); i++) {
        for (size_t cut = at - 1; cut <= at + 1; cut++) {
            bool whole = cut == file->n;
            size_t n = cut < file->n ? cut : file->n;
            uint8_t *longer = calloc(1, cut);
            memcpy(longer, file->bytes, n);
            write_file(directory, "model.safetensors", longer, cut);
            free(longer);
            for (int copy = 0; copy < 2; copy++) {
                folollm_options o = {.host = &host.hooks, .n_threads = 1, .copy_weights = copy};
                folollm *f = NULL;
                case_begin();
                folollm_status status = folollm_load(directory, &o, &f, &error);
                folollm_free(f);
                case_end("a file cut near the end of a tensor", status, whole ? FOLOLLM_OK : BAD,
                         "model.safetensors");
            }
        }
        const shape *s = &good_shapes[i < FL_COUNT(good_shapes) ? i : 0];
        at += s->rows * (s->cols != 0 ? s->cols : 1) * type_bytes(s->dtype);
    }
    folollm *f = NULL;
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    unlink(path);
    CHECK(mkdir(path, 0700) == 0);
    case_begin();
    folollm_status status = folollm_load(directory, &(folollm_options){.host = &host.hooks}, &f, &error);
    case_end("a directory in the place of a file", status, FOLOLLM_E_IO, directory);
    rmdir(path);
    snprintf(path, sizeof path, "%s/config.json", directory);
    case_begin();
    status = folollm_load(path, &(folollm_options){.host = &host.hooks}, &f, &error);
    case_end("a file in the place of the directory", status, FOLOLLM_E_IO, "config.json");
    unlink(path);
    rmdir(directory);
    put_good();
}

/* Weights that were copied do not mind what becomes of their file. */
static void test_shrunk_file(void) {
    char directory[] = "/tmp/folollm-hostile-XXXXXX", path[1024];
    float logits[2][40];
    folollm_token token = 3;
    folollm_seq seq;
    folollm *f = NULL;
    if (!CHECK(mkdtemp(directory) != NULL)) {
        return;
    }
    put_good();
    host_file *file = host_find(&host, "model.safetensors");
    folollm_options o = {.host = &(folollm_host){.user = &host, .realloc = host_realloc}, .n_threads = 1,
                         .copy_weights = 1};
    write_file(directory, "config.json", good_config, sizeof good_config - 1);
    write_file(directory, "model.safetensors", file->bytes, file->n);
    case_begin();
    folollm_status status = folollm_load(directory, &o, &f, &error);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    for (size_t i = 0; i < 2 && f != NULL; i++) {
        CHECK(folollm_seq_open(f, NULL, &seq, NULL) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seq, &token, 1, logits[i], NULL) == FOLOLLM_OK);
        CHECK(truncate(path, 0) == 0);
    }
    CHECK(f != NULL && memcmp(logits[0], logits[1], sizeof logits[0]) == 0);
    folollm_free(f);
    case_end("a file that shrinks once it is loaded", status, FOLOLLM_OK, NULL);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", directory);
    unlink(path);
    rmdir(directory);
}

/* A path longer than a message has room for. */
static void test_long_path(void) {
    folollm *f = NULL;
    size_t n;
    char *path = nest("x", "", "", 100000, &n);
    case_begin();
    folollm_status status = folollm_load(path, &(folollm_options){.host = &(folollm_host){0}}, &f, &error);
    case_end("a path of 100000 bytes", status, FOLOLLM_E_IO, "config.json");
    CHECK(strlen(error.text) < sizeof error.text);
    free(path);
}

static void *run_parsers(void *unused) {
    put_good();
    try_load("the good checkpoint", FOLOLLM_OK, NULL);
    test_headers();
    test_header_lengths();
    test_nesting();
    test_header_bytes();
    test_shards();
    test_many_shards();
    test_tensors();
    test_vocabulary();
    test_config_integers();
    test_config_values();
    test_generation_config();
    test_tokenizers();
    test_tokenizer_parts();
    test_long_template();
    test_json_corpus();
    test_json_strings();
    test_json_numbers();
    test_json_sizes();
    return unused;
}

int main(int argc, char **argv) {
    pthread_attr_t attributes;
    pthread_t thread;
    if (argc > 1) {
        snprintf(root, sizeof root, "%s", argv[1]);
    }
    host_init(&host, true);
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, fl_max(STACK_BYTES, (size_t)PTHREAD_STACK_MIN)) == 0);
    CHECK(pthread_create(&thread, &attributes, run_parsers, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    pthread_attr_destroy(&attributes);
    test_arithmetic();
    test_cut_files();
    test_shrunk_file();
    test_long_path();
    CHECK(host_is_clean(&host));
    host_free(&host);
    printf("%llu cases, the slowest %.3f s: %s\n", (unsigned long long)n_cases, slowest, slowest_name);
    return check_finish();
}
