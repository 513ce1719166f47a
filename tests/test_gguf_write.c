/* GGUF files that folollm_quantize writes: they give the logits of the checkpoints that they were made of, bit by bit,
 * in every type, and hold what the gguf package writes for the same checkpoint; written from GGUF they keep everything;
 * what cannot be said is refused before the first byte; every write, allocation and read may fail.
 *
 *     cc -O2 -I. -Isrc tests/test_gguf_write.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "logits.h"
#include "random.h"

#define MODELS "tests/vectors/models/"
#define FILES "tests/vectors/gguf/"

/* ---- Writing to memory -- */

typedef struct sink {
    uint8_t *bytes;
    size_t n, room;
    unsigned n_writes, fails_at; /* 0: never */
} sink;

static int take(void *user, const void *bytes, size_t n) {
    sink *s = user;
    if (++s->n_writes == s->fails_at) {
        return 1;
    }
    CHECK_TEXT(s->fails_at == 0 || s->n_writes < s->fails_at, "nothing is written after a failure");
    while (s->n + n > s->room) {
        s->room = 2 * s->room + 4096;
        s->bytes = realloc(s->bytes, s->room);
    }
    memcpy(s->bytes + s->n, bytes, n);
    s->n += n;
    return 0;
}

static void sink_free(sink *s) {
    free(s->bytes);
    memset(s, 0, sizeof *s);
}

/* An adapter in the host's directory that is merged when a directory is loaded, and whenever something is written. */
static const folollm_merge merge = {"mem", 1};
static size_t n_merges;

/* Quantize a path to a file of the host. */
static folollm_status write_file(test_host *h, const char *path, folollm_weights weights, const char *name,
                                 folollm_error *error) {
    bool in_host = strncmp(path, "mem", 3) == 0;
    folollm_options o = {.host = in_host ? &h->hooks : NULL, .weights = weights, .n_threads = 2, .gguf = 1,
                         .merges = &merge, .n_merges = n_merges};
    sink s = {0};
    folollm_status status = folollm_quantize(path, &o, take, &s, error);
    CHECK_TEXT(status == FOLOLLM_OK || s.n_writes == 0, "what is refused is refused before anything is written");
    if (status == FOLOLLM_OK) {
        host_put(h, name, s.bytes, s.n);
    }
    sink_free(&s);
    return status;
}

/* ---- Logits -- */

static float *logits_in(test_host *h, const char *path, folollm_weights weights, uint32_t *vocab) {
    folollm_options o = {.host = strncmp(path, "mem", 3) == 0 ? &h->hooks : NULL, .weights = weights, .merges = &merge};
    o.n_merges = strstr(path, ".gguf") == NULL ? n_merges : 0;
    return logits_of(path, &o, vocab);
}

/* What two paths give, each with its own type. */
static double distance(test_host *h, const char *path, folollm_weights weights, const char *other,
                       folollm_weights other_weights, bool *same) {
    uint32_t vocab = 0, other_vocab = 0;
    double error = 1;
    float *a = logits_in(h, path, weights, &vocab), *b = logits_in(h, other, other_weights, &other_vocab);
    *same = false;
    if (a != NULL && b != NULL && CHECK(vocab == other_vocab)) {
        size_t n = (size_t)N_IDS * vocab;
        *same = memcmp(a, b, n * sizeof *a) == 0;
        error = nmse(a, b, n);
    }
    free(a);
    free(b);
    return error;
}

/* ---- Every checkpoint in every type -- */

static const folollm_weights types[] = {
    FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_WEIGHTS_F32,  FOLOLLM_WEIGHTS_F16,  FOLOLLM_WEIGHTS_BF16, FOLOLLM_WEIGHTS_Q8,
    FOLOLLM_WEIGHTS_Q4,        FOLOLLM_WEIGHTS_Q4_K, FOLOLLM_WEIGHTS_Q5_K, FOLOLLM_WEIGHTS_Q6_K,
};

/* What GGUF, or llama.cpp, cannot say of a checkpoint; NULL: it can. */
static const char *refusal(const char *name, const fl_config *c) {
    bool qwen = strncmp(c->architecture, "qwen", 4) == 0;
    if (c->rope.kind == FL_ROPE_NTK || c->rope.kind == FL_ROPE_DYNAMIC) {
        return "ntk or dynamic";
    }
    if (strstr(name, "untruncated") != NULL) {
        return "does not round";
    }
    if (qwen && c->rope.kind == FL_ROPE_LLAMA3) {
        return "llama3";
    }
    return qwen && c->o_bias ? "o_proj" : NULL;
}

static bool same_config(const fl_config *a, const fl_config *b) {
    const fl_rope_config *r = &a->rope, *s = &b->rope;
    bool same = a->n_layers == b->n_layers && a->dim == b->dim && a->n_heads == b->n_heads &&
                a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim && a->ffn_dim == b->ffn_dim &&
                a->vocab == b->vocab && a->max_positions == b->max_positions && a->max_context == b->max_context &&
                a->norm_epsilon == b->norm_epsilon && a->tied == b->tied && a->qk_norm == b->qk_norm &&
                a->qkv_bias == b->qkv_bias && a->o_bias == b->o_bias && a->mlp_bias == b->mlp_bias &&
                (float)r->theta == (float)s->theta;
    for (uint32_t i = 0; i < a->n_layers; i++) {
        same = same && fl_config_window(a, i) == fl_config_window(b, i);
    }
    if (r->kind == FL_ROPE_LLAMA3) {
        return same && s->kind == FL_ROPE_DIVISORS;
    }
    bool yarn = r->kind != FL_ROPE_YARN || ((float)r->beta_fast == (float)s->beta_fast && r->original == s->original &&
                                            (float)r->beta_slow == (float)s->beta_slow);
    bool scaled = r->kind == FL_ROPE_DEFAULT || (float)r->factor == (float)s->factor;
    return same && yarn && scaled && r->kind == s->kind && fl_rope_scale(a) == fl_rope_scale(b);
}

static fl_config config_of(test_host *h, const char *path) {
    fl_memory m;
    fl_config c;
    fl_weights w;
    fl_gguf g;
    fl_memory_init(&m, strncmp(path, "mem", 3) == 0 ? &h->hooks : NULL);
    memset(&c, 0, sizeof c);
    if (strstr(path, ".gguf") == NULL) {
        CHECK(fl_config_read(&m, &c, path, NULL) == FOLOLLM_OK);
    } else if (CHECK(fl_gguf_open(&m, &g, path, NULL) == FOLOLLM_OK)) {
        const folollm_options copied = {.copy_weights = 1};
        CHECK(fl_weights_open(&m, &w, NULL, &g, &copied, NULL) == FOLOLLM_OK);
        c = w.config;
        fl_weights_close(&m, &w);
        fl_gguf_close(&g);
    }
    return c;
}

/* Rows of the file's matrices: how many widths of three are whole blocks of 32. */
static unsigned whole_widths(const fl_config *c) {
    return (c->dim % 32 == 0) + (c->ffn_dim % 32 == 0) + ((size_t)c->n_heads * c->head_dim % 32 == 0);
}

static void test_checkpoint(const char *name) {
    static test_host h;
    char path[256];
    folollm_error error;
    host_init(&h, true);
    snprintf(path, sizeof path, MODELS "%s", name);
    fl_config c = config_of(&h, path);
    const char *refused = refusal(name, &c);
    for (size_t i = 0; i < FL_COUNT(types); i++) {
        folollm_status status = write_file(&h, path, types[i], "out.gguf", &error);
        if (refused != NULL) {
            CHECK_TEXT(status == FOLOLLM_E_UNSUPPORTED && strstr(error.text, refused) != NULL, name);
            continue;
        }
        if (!CHECK_TEXT(status == FOLOLLM_OK, name)) {
            printf("    %s\n", error.text);
            continue;
        }
        fl_config read = config_of(&h, "mem/out.gguf");
        CHECK_TEXT(same_config(&c, &read), name);
        bool same, blocks = types[i] >= FOLOLLM_WEIGHTS_Q8;
        folollm_weights other = blocks && whole_widths(&c) == 0 ? FOLOLLM_WEIGHTS_F16 : types[i];
        double far = distance(&h, "mem/out.gguf", FOLOLLM_WEIGHTS_AS_STORED, path, other, &same);
        bool near = c.rope.kind == FL_ROPE_LLAMA3 || (double)(float)c.rope.theta != c.rope.theta ||
                    (double)(float)c.rope.factor != c.rope.factor;
        bool mixed = blocks && whole_widths(&c) != 0 && whole_widths(&c) != 3;
        if (!CHECK_TEXT(mixed ? far < 0.2 : near ? far < (blocks ? 1e-3 : 1e-8) : same, name)) {
            printf("    %s: NMSE %.3g with type %d\n", name, far, (int)types[i]);
        }
    }
    CHECK(host_is_clean(&h));
    host_free(&h);
}

static void test_checkpoints(void) {
    char line[256], name[128];
    unsigned n = 0;
    FILE *index = fopen(MODELS "index.txt", "r");
    if (!CHECK(index != NULL)) {
        return;
    }
    while (fgets(line, sizeof line, index) != NULL) {
        if (CHECK(sscanf(line, "%127s", name) == 1)) {
            test_checkpoint(name);
            n++;
        }
    }
    fclose(index);
    CHECK(n > 60);
}

/* ---- Against the gguf package -- */

/* Has `ours` every entry of `theirs`, byte by byte? */
static void compare_entries(const fl_gguf *ours, const fl_gguf *theirs) {
    for (size_t i = 0; i < theirs->n_entries; i++) {
        fl_str wanted = fl_gguf_entry_bytes(theirs, i);
        bool found = false;
        for (size_t k = 0; k < ours->n_entries; k++) {
            found = found || fl_str_equal(fl_gguf_entry_bytes(ours, k), wanted);
        }
        if (!CHECK_TEXT(found, "an entry of the gguf package")) {
            printf("    %s: %.*s\n", theirs->file.path, (int)theirs->entries[i].key.n, theirs->entries[i].key.at);
        }
    }
}

/* Type, shape and bytes of every tensor; divisors, which Python computes from other roundings, to a few bits. */
static void compare_tensors(fl_gguf *ours, fl_gguf *theirs) {
    CHECK(ours->n_tensors == theirs->n_tensors);
    for (size_t i = 0; i < ours->n_tensors; i++) {
        const fl_tensor *a = &ours->tensors[i], *b = NULL;
        for (size_t k = 0; k < theirs->n_tensors; k++) {
            b = fl_str_equal(theirs->tensors[k].name, a->name) ? &theirs->tensors[k] : b;
        }
        if (!CHECK(b != NULL && a->n_bytes == b->n_bytes && strcmp(a->type_name, b->type_name) == 0 &&
                   a->n_dims == b->n_dims && memcmp(a->shape, b->shape, sizeof a->shape) == 0)) {
            continue;
        }
        size_t n = (size_t)a->n_bytes;
        uint8_t *x = malloc(n), *y = malloc(n);
        CHECK(fl_file_read(&ours->file, a->offset, x, n, NULL) == FOLOLLM_OK);
        CHECK(fl_file_read(&theirs->file, b->offset, y, n, NULL) == FOLOLLM_OK);
        bool same = memcmp(x, y, n) == 0;
        for (size_t k = 0; !same && fl_str_is(a->name, "rope_freqs.weight") && k < n / 4; k++) {
            double p = fl_float_of_bits(fl_load_u32(x + 4 * k)), q = fl_float_of_bits(fl_load_u32(y + 4 * k));
            same = k + 1 == n / 4 && p - q < 1e-6 * q && q - p < 1e-6 * q;
        }
        CHECK_TEXT(same, "the bytes of a tensor of the gguf package");
        free(x);
        free(y);
    }
}

static void test_package(const char *file, const char *checkpoint, const char *how) {
    static test_host h;
    char path[256];
    folollm_error error;
    fl_memory memory, disk;
    fl_gguf ours, theirs;
    host_init(&h, true);
    fl_memory_init(&memory, &h.hooks);
    fl_memory_init(&disk, NULL);
    snprintf(path, sizeof path, MODELS "%s", checkpoint);
    if (strcmp(how, "coarse") != 0) {
        folollm_status status = write_file(&h, path, FOLOLLM_WEIGHTS_AS_STORED, "out.gguf", &error);
        snprintf(path, sizeof path, FILES "%s", file);
        if (CHECK(status == FOLOLLM_OK) && CHECK(fl_gguf_open(&memory, &ours, "mem/out.gguf", &error) == FOLOLLM_OK)) {
            CHECK(fl_gguf_open(&disk, &theirs, path, &error) == FOLOLLM_OK);
            compare_entries(&ours, &theirs);
            compare_tensors(&ours, &theirs);
            fl_gguf_close(&theirs);
            fl_gguf_close(&ours);
        }
    }
    /* From that file: as it is, with everything that it says; and in another type. */
    bool same;
    snprintf(path, sizeof path, FILES "%s", file);
    CHECK(write_file(&h, path, FOLOLLM_WEIGHTS_AS_STORED, "copy.gguf", &error) == FOLOLLM_OK);
    distance(&h, "mem/copy.gguf", FOLOLLM_WEIGHTS_AS_STORED, path, FOLOLLM_WEIGHTS_AS_STORED, &same);
    CHECK_TEXT(same, "GGUF to GGUF keeps the logits");
    CHECK(fl_gguf_open(&memory, &ours, "mem/copy.gguf", &error) == FOLOLLM_OK);
    CHECK(fl_gguf_open(&disk, &theirs, path, &error) == FOLOLLM_OK);
    compare_entries(&ours, &theirs);
    CHECK(ours.n_entries == theirs.n_entries + 2); /* alignment and version of the blocks */
    fl_gguf_close(&theirs);
    fl_gguf_close(&ours);
    CHECK(write_file(&h, path, FOLOLLM_WEIGHTS_F32, "f32.gguf", &error) == FOLOLLM_OK);
    distance(&h, "mem/f32.gguf", FOLOLLM_WEIGHTS_AS_STORED, path, FOLOLLM_WEIGHTS_F32, &same);
    CHECK_TEXT(same, "GGUF to GGUF of float32");
    CHECK(host_is_clean(&h));
    host_free(&h);
}

static void test_packages(void) {
    char line[256], name[128], checkpoint[128], how[16];
    unsigned n = 0;
    FILE *index = fopen(FILES "index.txt", "r");
    if (!CHECK(index != NULL)) {
        return;
    }
    while (fgets(line, sizeof line, index) != NULL) {
        if (CHECK(sscanf(line, "%127s %127s %15s", name, checkpoint, how) == 3)) {
            test_package(name, checkpoint, how);
            n++;
        }
    }
    fclose(index);
    CHECK(n >= 12);
}

/* ---- Adapters that are merged -- */

static void test_adapter(const char *adapter, const char *checkpoint) {
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    static const folollm_weights asked[] = {FOLOLLM_WEIGHTS_F32, FOLOLLM_WEIGHTS_BF16};
    static test_host h;
    char path[256];
    folollm_error error;
    host_init(&h, true);
    snprintf(path, sizeof path, MODELS "%s", checkpoint);
    CHECK(host_put_directory(&h, path));
    for (size_t i = 0; i < FL_COUNT(names); i++) {
        size_t n = 0;
        snprintf(path, sizeof path, "tests/vectors/adapters/%s/%s", adapter, names[i]);
        uint8_t *bytes = host_slurp(path, &n);
        CHECK(bytes != NULL);
        host_put(&h, names[i], bytes, n);
        free(bytes);
    }
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_AS_STORED, "base.gguf", &error) == FOLOLLM_OK);
    n_merges = 1;
    for (size_t i = 0; i < FL_COUNT(asked); i++) {
        bool same;
        CHECK(write_file(&h, "mem", asked[i], "out.gguf", &error) == FOLOLLM_OK);
        distance(&h, "mem/out.gguf", FOLOLLM_WEIGHTS_AS_STORED, "mem", asked[i], &same);
        CHECK_TEXT(same, adapter);
        CHECK(write_file(&h, "mem/base.gguf", asked[i], "again.gguf", &error) == FOLOLLM_OK);
        distance(&h, "mem/again.gguf", FOLOLLM_WEIGHTS_AS_STORED, "mem", asked[i], &same);
        CHECK_TEXT(same, adapter);
    }
    n_merges = 0;
    CHECK(host_is_clean(&h));
    host_free(&h);
}

static void test_adapters(void) {
    char line[256], adapter[128], checkpoint[128];
    unsigned n = 0;
    FILE *index = fopen("tests/vectors/adapters/index.txt", "r");
    if (!CHECK(index != NULL)) {
        return;
    }
    while (fgets(line, sizeof line, index) != NULL) {
        if (CHECK(sscanf(line, "%127s %127s", adapter, checkpoint) == 2)) {
            test_adapter(adapter, checkpoint);
            n++;
        }
    }
    fclose(index);
    CHECK(n >= 5);
}

/* ---- Wide rows: every architecture, blocks of 256 -- */

typedef struct shape {
    const char *architecture;
    uint32_t dim, heads, kv_heads, head_dim, ffn, vocab, layers;
    bool tied, qk_norm, qkv_bias;
} shape;

static const shape shapes[] = {
    {"qwen3", 256, 8, 2, 64, 512, 90, 2, true, true, false},
    {"qwen2", 256, 8, 4, 32, 256, 90, 1, false, false, true},
    {"llama", 256, 4, 4, 64, 288, 90, 1, false, false, false}, /* down has rows of Q8_0 instead of K types */
    {"mistral", 256, 8, 2, 96, 256, 90, 1, true, false, false},
};

typedef struct maker {
    char header[16384];
    size_t n, n_data;
    float *values;
} maker;

static void make_tensor(maker *k, const char *name, uint32_t layer, uint32_t rows, uint32_t cols) {
    char full[128];
    size_t n = (size_t)rows * (cols != 0 ? cols : 1);
    snprintf(full, sizeof full, name, layer);
    k->n += (size_t)snprintf(k->header + k->n, sizeof k->header - k->n,
                             "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%u", k->n > 0 ? "," : "{", full, rows);
    if (cols != 0) {
        k->n += (size_t)snprintf(k->header + k->n, sizeof k->header - k->n, ",%u", cols);
    }
    k->n += (size_t)snprintf(k->header + k->n, sizeof k->header - k->n, "],\"data_offsets\":[%zu,%zu]}",
                             4 * k->n_data, 4 * (k->n_data + n));
    k->values = realloc(k->values, (k->n_data + n) * sizeof *k->values);
    for (size_t i = 0; i < n; i++) {
        k->values[k->n_data + i] = cols != 0 ? random_float() * 0.08f : 1 + 0.3f * random_float();
    }
    k->n_data += n;
}

/* A checkpoint of float32 as the host's directory. */
static void put_directory(test_host *h, const shape *s) {
    static maker k;
    char config[1024];
    uint32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    memset(&k, 0, sizeof k);
    make_tensor(&k, "model.embed_tokens.weight", 0, s->vocab, s->dim);
    for (uint32_t i = 0; i < s->layers; i++) {
        make_tensor(&k, "model.layers.%u.input_layernorm.weight", i, s->dim, 0);
        make_tensor(&k, "model.layers.%u.self_attn.q_proj.weight", i, q, s->dim);
        make_tensor(&k, "model.layers.%u.self_attn.k_proj.weight", i, kv, s->dim);
        make_tensor(&k, "model.layers.%u.self_attn.v_proj.weight", i, kv, s->dim);
        make_tensor(&k, "model.layers.%u.self_attn.o_proj.weight", i, s->dim, q);
        if (s->qkv_bias) {
            make_tensor(&k, "model.layers.%u.self_attn.q_proj.bias", i, q, 0);
            make_tensor(&k, "model.layers.%u.self_attn.k_proj.bias", i, kv, 0);
            make_tensor(&k, "model.layers.%u.self_attn.v_proj.bias", i, kv, 0);
        }
        if (s->qk_norm) {
            make_tensor(&k, "model.layers.%u.self_attn.q_norm.weight", i, s->head_dim, 0);
            make_tensor(&k, "model.layers.%u.self_attn.k_norm.weight", i, s->head_dim, 0);
        }
        make_tensor(&k, "model.layers.%u.post_attention_layernorm.weight", i, s->dim, 0);
        make_tensor(&k, "model.layers.%u.mlp.gate_proj.weight", i, s->ffn, s->dim);
        make_tensor(&k, "model.layers.%u.mlp.up_proj.weight", i, s->ffn, s->dim);
        make_tensor(&k, "model.layers.%u.mlp.down_proj.weight", i, s->dim, s->ffn);
    }
    make_tensor(&k, "model.norm.weight", 0, s->dim, 0);
    if (!s->tied) {
        make_tensor(&k, "lm_head.weight", 0, s->vocab, s->dim);
    }
    k.header[k.n++] = '}';
    size_t n = 8 + k.n + 4 * k.n_data;
    uint64_t length = k.n;
    uint8_t *file = malloc(n);
    memcpy(file, &length, 8);
    memcpy(file + 8, k.header, k.n);
    memcpy(file + 8 + k.n, k.values, 4 * k.n_data);
    host_put(h, "model.safetensors", file, n);
    snprintf(config, sizeof config,
             "{\"model_type\":\"%s\",\"num_hidden_layers\":%u,\"hidden_size\":%u,\"num_attention_heads\":%u,"
             "\"num_key_value_heads\":%u,\"head_dim\":%u,\"intermediate_size\":%u,\"vocab_size\":%u,"
             "\"max_position_embeddings\":64,\"tie_word_embeddings\":%s,\"rms_norm_eps\":1e-05,"
             "\"rope_theta\":10000.0,\"sliding_window\":null}", s->architecture, s->layers, s->dim, s->heads,
             s->kv_heads, s->head_dim, s->ffn, s->vocab, s->tied ? "true" : "false");
    host_put_text(h, "config.json", config);
    free(file);
    free(k.values);
}

/* The type that a tensor of a file should have. */
static const char *type_name_of(const shape *s, const fl_tensor *t, folollm_weights w) {
    static const char *const names[] = {"F32", "F32", "F16", "BF16", "Q8_0", "", "Q4_0", "Q4_K", "Q5_K", "Q6_K"};
    bool few = w == FOLOLLM_WEIGHTS_Q4 || w == FOLOLLM_WEIGHTS_Q4_K || w == FOLOLLM_WEIGHTS_Q5_K;
    bool is_head = fl_str_is(t->name, "token_embd.weight") || fl_str_is(t->name, "output.weight");
    bool narrow = t->n_dims == 2 && t->shape[1] % 256 != 0 && w >= FOLOLLM_WEIGHTS_Q4_K;
    CHECK(s->ffn % 32 == 0);
    return t->n_dims == 1 ? "F32" : narrow ? "Q8_0" : few && is_head ? "Q6_K" : names[w];
}

static void check_types(test_host *h, const shape *s, folollm_weights w) {
    static const uint32_t file_types[] = {0, 0, 1, 32, 7, 0, 2, 14, 16, 18};
    fl_memory m;
    fl_gguf g;
    uint32_t file_type = 99, alignment = 0, version = 0;
    fl_memory_init(&m, &h->hooks);
    if (!CHECK(fl_gguf_open(&m, &g, "mem/out.gguf", NULL) == FOLOLLM_OK)) {
        return;
    }
    for (size_t i = 0; i < g.n_tensors; i++) {
        const fl_tensor *t = &g.tensors[i];
        CHECK_TEXT(strcmp(t->type_name, type_name_of(s, t, w)) == 0, "the type of a tensor");
        CHECK(t->offset % 32 == 0);
    }
    CHECK(g.file.size % 32 == 0);
    CHECK(fl_gguf_u32(&g, "general.file_type", 99, &file_type, NULL) == FOLOLLM_OK && file_type == file_types[w]);
    CHECK(fl_gguf_u32(&g, "general.alignment", 0, &alignment, NULL) == FOLOLLM_OK && alignment == 32);
    CHECK(fl_gguf_u32(&g, "general.quantization_version", 0, &version, NULL) == FOLOLLM_OK && version == 2);
    fl_gguf_close(&g);
}

/* Are two files of the host the same? */
static bool same_files(test_host *h, const char *a, const char *b) {
    const host_file *x = host_find(h, a), *y = host_find(h, b);
    return x != NULL && y != NULL && x->n == y->n && memcmp(x->bytes, y->bytes, x->n) == 0;
}

static void test_shape(const shape *s) {
    static test_host h;
    folollm_error error;
    host_init(&h, true);
    put_directory(&h, s);
    for (size_t i = 0; i < FL_COUNT(types); i++) {
        bool same;
        double far;
        if (!CHECK(write_file(&h, "mem", types[i], "out.gguf", &error) == FOLOLLM_OK)) {
            printf("    %s\n", error.text);
            continue;
        }
        check_types(&h, s, types[i]);
        far = distance(&h, "mem/out.gguf", FOLOLLM_WEIGHTS_AS_STORED, "mem", types[i], &same);
        if (!CHECK_TEXT(same, "the logits of the directory, converted while loading")) {
            printf("    %s: NMSE %.3g with type %d\n", s->architecture, far, (int)types[i]);
        }
        CHECK(write_file(&h, "mem/out.gguf", FOLOLLM_WEIGHTS_AS_STORED, "copy.gguf", &error) == FOLOLLM_OK);
        CHECK_TEXT(same_files(&h, "out.gguf", "copy.gguf"), "GGUF to GGUF as it is: the same file");
        if (types[i] <= FOLOLLM_WEIGHTS_F32) {
            host_put(&h, "f32.gguf", host_find(&h, "out.gguf")->bytes, host_find(&h, "out.gguf")->n);
        }
        CHECK(write_file(&h, "mem/f32.gguf", types[i], "again.gguf", &error) == FOLOLLM_OK);
        CHECK_TEXT(same_files(&h, "out.gguf", "again.gguf"), "over float32 in GGUF: the same file");
    }
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* ---- Tokenizer, chat format and ends of text -- */

/* That of the other tests, without the NFC that no name in GGUF has beside GPT-2's pattern. */
static void put_tokenizer(test_host *h) {
    static const char nfc[] = "{\"type\":\"NFC\"}", none[] = "null          ";
    folollm_error error;
    host_put_tokenizer(h);
    CHECK(write_file(h, "mem", FOLOLLM_WEIGHTS_Q8, "out.gguf", &error) == FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "normalises text") != NULL);
    host_file *f = host_find(h, "tokenizer.json");
    for (size_t i = 0; i + sizeof nfc <= f->n; i++) {
        if (memcmp(f->bytes + i, nfc, sizeof nfc - 1) == 0) {
            memcpy(f->bytes + i, none, sizeof none - 1);
        }
    }
}

static void test_public(void) {
    static test_host h;
    folollm_error error;
    folollm *a = NULL, *b = NULL;
    folollm_info of_a, of_b;
    host_init(&h, true);
    put_directory(&h, &shapes[0]);
    put_tokenizer(&h);
    host_put_text(&h, "generation_config.json", "{\"eos_token_id\":[36,34,7,9]}");
    if (!CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_Q8, "out.gguf", &error) == FOLOLLM_OK)) {
        printf("    %s\n", error.text);
    }
    folollm_options o = {.host = &h.hooks, .weights = FOLOLLM_WEIGHTS_Q8}, stored = {.host = &h.hooks};
    if (!CHECK(folollm_load("mem", &o, &a, &error) == FOLOLLM_OK) ||
        !CHECK(folollm_load("mem/out.gguf", &stored, &b, &error) == FOLOLLM_OK)) {
        printf("    %s\n", error.text);
        return;
    }
    folollm_get_info(a, &of_a);
    folollm_get_info(b, &of_b);
    CHECK(strcmp(of_a.chat_format, "chatml") == 0 && strcmp(of_b.chat_format, "chatml") == 0);
    CHECK(strcmp(of_b.architecture, "qwen3") == 0 && strcmp(of_b.weights, "q8") == 0);
    CHECK(of_a.eos == 36 && of_b.eos == 36 && of_a.bos == -1 && of_b.bos == -1 && of_a.n_tokens == of_b.n_tokens);
    const fl_generation *g = &b->checkpoint->generation;
    CHECK_TEXT(a->checkpoint->generation.n_eos == 4 && g->n_eos == 4, "the same ids end a text");
    for (size_t i = 0; i < g->n_eos; i++) {
        folollm_token id = a->checkpoint->generation.eos[i];
        CHECK(id == g->eos[0] || id == g->eos[1] || id == g->eos[2] || id == g->eos[3]);
    }
    static const char text[] = "hello, he\n<|im_end|>";
    folollm_token ids[2][32];
    size_t n[2] = {32, 32};
    folollm_span all = {0, sizeof text - 1};
    CHECK(folollm_tokenize(a, text, all.end, &all, 1, 0, ids[0], &n[0], &error) == FOLOLLM_OK);
    CHECK(folollm_tokenize(b, text, all.end, &all, 1, 0, ids[1], &n[1], &error) == FOLOLLM_OK);
    CHECK(n[0] == n[1] && n[0] > 5 && memcmp(ids[0], ids[1], n[0] * sizeof ids[0][0]) == 0);
    folollm_free(a);
    folollm_free(b);
    host_put_text(&h, "generation_config.json", "{\"eos_token_id\":[36,34,7,9,11]}");
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_Q8, "out.gguf", &error) == FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "eos_token_id") != NULL);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* ---- What is refused -- */

static void test_refused(void) {
    static test_host h;
    folollm_error error;
    host_init(&h, true);
    put_directory(&h, &shapes[0]);
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_Q8_ROW, "out.gguf", &error) == FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "q8_row") != NULL);
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_Q4_K, "out.gguf", &error) == FOLOLLM_OK);
    folollm_options o = {.host = &h.hooks, .weights = FOLOLLM_WEIGHTS_Q4_K};
    sink s = {0};
    CHECK(folollm_quantize("mem/out.gguf", &o, take, &s, &error) == FOLOLLM_E_UNSUPPORTED && s.n_writes == 0);
    CHECK(folollm_quantize("mem", &o, take, &s, &error) == FOLOLLM_OK);
    host_put(&h, "model.safetensors", s.bytes, s.n);
    sink_free(&s);
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_AS_STORED, "packed.gguf", &error) == FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "is packed") != NULL);
    shape uneven = shapes[1]; /* qwen2 whose heads are wider than the model */
    uneven.head_dim = 64;
    put_directory(&h, &uneven);
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_Q4_K, "out.gguf", &error) == FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "as wide as the model") != NULL);
    put_directory(&h, &shapes[1]);
    host_put_text(&h, "tokenizer.json", "{\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":"
                                        "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},\"decoder\":"
                                        "{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,"
                                        "\"[PAD2]\":1},\"merges\":[]}}");
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_Q4_K, "out.gguf", &error) == FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "[PAD2]") != NULL);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* ---- Faults -- */

/* Every write of a file fails once. */
static void test_writes(test_host *h, const char *path, folollm_weights weights) {
    folollm_options o = {.host = &h->hooks, .weights = weights, .n_threads = 2, .gguf = 1};
    folollm_error error;
    folollm_status status = FOLOLLM_E_IO;
    unsigned n = 0;
    while (status != FOLOLLM_OK && n < 200) {
        sink s = {.fails_at = ++n};
        status = folollm_quantize(path, &o, take, &s, &error);
        CHECK(status == FOLOLLM_OK ? s.n_writes == n - 1 : status == FOLOLLM_E_IO && s.n_writes == n);
        CHECK(host_is_clean(h));
        sink_free(&s);
    }
    CHECK_TEXT(n > 3 && n < 200, "several writes were tried");
}

/* Every allocation and read fails once, and from then on. */
static void test_hooks(test_host *h, const char *path) {
    static const fault kinds[] = {FAULT_ALLOCATE, FAULT_OPEN, FAULT_EMPTY, FAULT_LONG, FAULT_READ};
    folollm_options o = {.host = &h->hooks, .weights = FOLOLLM_WEIGHTS_Q4_K, .n_threads = 1, .gguf = 1};
    sink whole = {0};
    CHECK(folollm_quantize(path, &o, take, &whole, NULL) == FOLOLLM_OK);
    for (size_t k = 0; k < 2 * FL_COUNT(kinds); k++) {
        uint64_t injected = 1;
        for (uint64_t at = 1; injected > 0 && at < 3000; at++) {
            folollm_error error = {0};
            sink s = {0};
            host_arm(h, kinds[k / 2], at, k % 2 == 1);
            folollm_status status = folollm_quantize(path, &o, take, &s, &error);
            injected = h->n_injected;
            host_disarm(h);
            CHECK(status == FOLOLLM_OK || (error.status == status && error.text[0] != 0));
            CHECK_TEXT(injected > 0 || (status == FOLOLLM_OK && s.n == whole.n), "at last nothing fails");
            CHECK(host_is_clean(h));
            sink_free(&s);
        }
    }
    sink_free(&whole);
}

static void test_faults(void) {
    static test_host h;
    folollm_error error;
    host_init(&h, true);
    put_directory(&h, &shapes[3]);
    put_tokenizer(&h);
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_F16, "in.gguf", &error) == FOLOLLM_OK);
    for (size_t i = 0; i < FL_COUNT(types); i++) {
        test_writes(&h, "mem", types[i]);
        test_writes(&h, "mem/in.gguf", types[i]);
    }
    shape small = {"llama", 32, 2, 1, 16, 32, 40, 1, true, false, false};
    put_directory(&h, &small);
    CHECK(write_file(&h, "mem", FOLOLLM_WEIGHTS_F16, "in.gguf", &error) == FOLOLLM_OK);
    test_hooks(&h, "mem");
    test_hooks(&h, "mem/in.gguf");
    CHECK(host_is_clean(&h));
    host_free(&h);
    printf("%u faults were injected\n", (unsigned)h.n_injected_ever);
}

int main(void) {
    test_checkpoints();
    test_packages();
    test_adapters();
    for (size_t i = 0; i < FL_COUNT(shapes); i++) {
        test_shape(&shapes[i]);
    }
    test_public();
    test_refused();
    test_faults();
    return check_finish();
}
