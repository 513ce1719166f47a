/* GGUF: files that the gguf package wrote (oracle/make_gguf.py) give the logits of the checkpoints they were made of,
 * bit by bit; blocks of every type are computed with as they stand in the file, or as those that loading makes of them;
 * metadata of every type is read; split
 * files are put together; and hostile files, each byte and each number of the header wrong in turn, are refused with a
 * reason, within the memory that the file justifies, with everything given back.
 *
 *     cc -O2 -I. -Isrc tests/test_gguf.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "logits.h"
#include "random.h"

#include <math.h>
#include <unistd.h>

#define DIRECTORY "tests/vectors/gguf/"

/* A file of DIRECTORY against the checkpoint that it was made of. */
static void test_vector(const char *name, const char *checkpoint, const char *how) {
    char path[256], original[256];
    uint32_t vocab = 0, vocab_there = 0;
    snprintf(path, sizeof path, DIRECTORY "%s", name);
    snprintf(original, sizeof original, "tests/vectors/models/%s", checkpoint);
    float *there = logits_of(original, NULL, &vocab_there), *first = NULL;
    for (int copy = 0; copy < 2 && there != NULL; copy++) {
        folollm_options o = {.copy_weights = copy};
        float *here = logits_of(path, &o, &vocab);
        if (here == NULL || !CHECK(vocab == vocab_there)) {
            free(here);
            continue;
        }
        size_t n = (size_t)N_IDS * vocab;
        double error = nmse(here, there, n);
        bool same = memcmp(here, there, n * sizeof *here) == 0;
        if (!CHECK(strcmp(how, "same") == 0 ? same : error < (strcmp(how, "near") == 0 ? 1e-9 : 0.2))) {
            printf("    %s is not %s: NMSE %.3g\n", name, how, error);
        }
        if (strcmp(how, "coarse") == 0) { /* with integers, and with floats, against what the blocks stand for */
            folollm_options floats = {.float_activations = 1}, plain = {.weights = FOLOLLM_WEIGHTS_F32};
            float *y = logits_of(path, &floats, &vocab), *z = logits_of(path, &plain, &vocab);
            CHECK(y != NULL && z != NULL && nmse(y, z, n) < 1e-9 && nmse(here, z, n) < 1e-3);
            printf("%s: NMSE %.2g to the original, %.2g to its blocks as floats\n", name, error, nmse(here, z, n));
            free(y);
            free(z);
        }
        if (first == NULL) {
            first = here;
        } else {
            CHECK(memcmp(first, here, n * sizeof *here) == 0);
            free(here);
        }
    }
    free(first);
    free(there);
}

static void test_vectors(void) {
    char line[256], name[128], checkpoint[128], how[16];
    unsigned n = 0;
    FILE *index = fopen(DIRECTORY "index.txt", "r");
    if (!CHECK(index != NULL)) {
        return;
    }
    while (fgets(line, sizeof line, index) != NULL) {
        if (CHECK(sscanf(line, "%127s %127s %15s", name, checkpoint, how) == 3)) {
            test_vector(name, checkpoint, how);
            n++;
        }
    }
    fclose(index);
    CHECK(n >= 12);
}

/* ---- Files made here -- */

typedef struct field {
    size_t at;
    unsigned bytes;
} field;

typedef struct buffer {
    uint8_t *bytes;
    size_t n, room;
    field fields[256]; /* numbers whose value decides how the rest is read */
    size_t n_fields;
} buffer;

static void put(buffer *b, const void *bytes, size_t n) {
    while (b->n + n > b->room) {
        b->room = b->room * 2 + 1024;
        b->bytes = realloc(b->bytes, b->room);
    }
    if (n > 0) {
        memcpy(b->bytes + b->n, bytes, n);
    }
    b->n += n;
}

static void put_number(buffer *b, uint64_t value, unsigned n_bytes) {
    for (unsigned i = 0; i < n_bytes; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        put(b, &byte, 1);
    }
}

static void put_field(buffer *b, uint64_t value, unsigned n_bytes) {
    if (b->n_fields < FL_COUNT(b->fields)) {
        b->fields[b->n_fields++] = (field){b->n, n_bytes};
    }
    put_number(b, value, n_bytes);
}

static void put_text(buffer *b, const char *text) {
    put_field(b, strlen(text), 8);
    put(b, text, strlen(text));
}

static void put_key(buffer *b, const char *key, fl_gguf_type type) {
    put_text(b, key);
    put_field(b, type, 4);
}

static void put_u32(buffer *b, const char *key, uint32_t value) {
    put_key(b, key, FL_GGUF_U32);
    put_field(b, value, 4);
}

static void put_f32(buffer *b, const char *key, float value) {
    put_key(b, key, FL_GGUF_F32);
    put_number(b, fl_bits_of_float(value), 4);
}

static void put_start(buffer *b, uint64_t n_tensors, uint64_t n_entries) {
    put(b, "GGUF", 4);
    put_field(b, 3, 4);
    put_field(b, n_tensors, 8);
    put_field(b, n_entries, 8);
}

/* A tensor's entry; cols 0: a vector. Sizes stand in the file from the contiguous one on. */
static void put_info(buffer *b, const char *name, uint64_t rows, uint64_t cols, uint32_t type, uint64_t offset) {
    put_text(b, name);
    put_field(b, cols != 0 ? 2 : 1, 4);
    if (cols != 0) {
        put_field(b, cols, 8);
    }
    put_field(b, rows, 8);
    put_field(b, type, 4);
    put_field(b, offset, 8);
}

static void pad(buffer *b, size_t align) {
    while (b->n % align != 0) {
        put_number(b, 0, 1);
    }
}

static void buffer_free(buffer *b) {
    free(b->bytes);
    memset(b, 0, sizeof *b);
}

/* ---- Blocks of every type -- */

#define DIM 256u
#define HEADS 8u
#define KV_HEADS 2u
#define HEAD_DIM 32u
#define VOCAB 90u

typedef struct weight {
    const char *name, *gguf_name;
    uint32_t rows, cols; /* cols 0: a vector */
    uint32_t turned;     /* heads whose rows the llama architecture has in another order */
    enum { ALWAYS, QWEN3_ONLY, UNTIED_ONLY } when;
    float *values;
} weight;

static weight weights[] = {
    {"model.embed_tokens.weight", "token_embd.weight", VOCAB, DIM, 0, ALWAYS, NULL},
    {"model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", DIM, 0, 0, ALWAYS, NULL},
    {"model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", DIM, DIM, HEADS, ALWAYS, NULL},
    {"model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", KV_HEADS * HEAD_DIM, DIM, KV_HEADS, ALWAYS, NULL},
    {"model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", KV_HEADS * HEAD_DIM, DIM, 0, ALWAYS, NULL},
    {"model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", DIM, DIM, 0, ALWAYS, NULL},
    {"model.layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight", HEAD_DIM, 0, 0, QWEN3_ONLY, NULL},
    {"model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight", HEAD_DIM, 0, 0, QWEN3_ONLY, NULL},
    {"model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", DIM, 0, 0, ALWAYS, NULL},
    {"model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", DIM, DIM, 0, ALWAYS, NULL},
    {"model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", DIM, DIM, 0, ALWAYS, NULL},
    {"model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", DIM, DIM, 0, ALWAYS, NULL},
    {"model.norm.weight", "output_norm.weight", DIM, 0, 0, ALWAYS, NULL},
    {"lm_head.weight", "output.weight", VOCAB, DIM, 0, UNTIED_ONLY, NULL},
};

static const struct {
    fl_dtype type;
    folollm_weights asked;
    uint32_t number; /* in a file */
} block_types[] = {
    {FL_Q8_0, FOLOLLM_WEIGHTS_Q8, 8},    {FL_Q4_0, FOLOLLM_WEIGHTS_Q4, 2},    {FL_Q4_K, FOLOLLM_WEIGHTS_Q4_K, 12},
    {FL_Q5_K, FOLOLLM_WEIGHTS_Q5_K, 13}, {FL_Q6_K, FOLOLLM_WEIGHTS_Q6_K, 14},
};

/* Types that are in files only. bound: NMSE of logits from what the blocks stand for, activations as floats. */
static const struct {
    fl_dtype type;
    uint32_t number;
    double bound;
} file_types[] = {
    {FL_Q4_1, 3, 3e-4},  {FL_Q5_0, 6, 1e-9},    {FL_Q5_1, 7, 3e-4},    {FL_Q2_K, 10, 2e-4},
    {FL_Q3_K, 11, 1e-9}, {FL_IQ4_NL, 20, 1e-9}, {FL_IQ4_XS, 23, 1e-6}, {FL_MXFP4, 39, 1e-9},
};

/* Is a weight in a model? */
static bool is_there(const weight *w, bool qwen3, bool untied) {
    return w->when == ALWAYS || (w->when == QWEN3_ONLY ? qwen3 : untied);
}

static size_t weight_numbers(const weight *w) {
    return (size_t)w->rows * (w->cols != 0 ? w->cols : 1);
}

static void draw_weights(void) {
    for (size_t i = 0; i < FL_COUNT(weights); i++) {
        weight *w = &weights[i];
        w->values = malloc(weight_numbers(w) * sizeof *w->values);
        for (size_t k = 0; k < weight_numbers(w); k++) {
            w->values[k] = w->cols != 0 ? random_float() * 0.08f : 1 + 0.3f * random_float();
        }
    }
}

/* The checkpoint of float32 as a Hugging Face directory in the host's memory. */
static void put_directory(test_host *h, bool qwen3) {
    char text[4096];
    buffer b = {0};
    size_t at = 0, n;
    n = (size_t)snprintf(text, sizeof text, "{");
    for (size_t i = 0; i < FL_COUNT(weights); i++) {
        const weight *w = &weights[i];
        size_t end = at + weight_numbers(w) * sizeof(float);
        if (!is_there(w, qwen3, false)) {
            continue;
        }
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%u", i > 0 ? "," : "",
                              w->name, w->rows);
        if (w->cols != 0) {
            n += (size_t)snprintf(text + n, sizeof text - n, ",%u", w->cols);
        }
        n += (size_t)snprintf(text + n, sizeof text - n, "],\"data_offsets\":[%zu,%zu]}", at, end);
        at = end;
    }
    n += (size_t)snprintf(text + n, sizeof text - n, "}");
    put_number(&b, n, 8);
    put(&b, text, n);
    for (size_t i = 0; i < FL_COUNT(weights); i++) {
        if (is_there(&weights[i], qwen3, false)) {
            put(&b, weights[i].values, weight_numbers(&weights[i]) * sizeof(float));
        }
    }
    host_put(h, "model.safetensors", b.bytes, b.n);
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"num_hidden_layers\":1,\"hidden_size\":%u,\"num_attention_heads\":%u,"
             "\"num_key_value_heads\":%u,\"head_dim\":%u,\"intermediate_size\":%u,\"vocab_size\":%u,"
             "\"max_position_embeddings\":64,\"tie_word_embeddings\":true,\"rms_norm_eps\":1e-05,"
             "\"rope_theta\":10000.0}", qwen3 ? "qwen3" : "llama", DIM, HEADS, KV_HEADS, HEAD_DIM, DIM, VOCAB);
    host_put_text(h, "config.json", text);
    buffer_free(&b);
}

/* Row r of a weight as the file has it. */
static const float *row_in_file(const weight *w, bool qwen3, size_t r) {
    size_t from = r;
    if (w->turned != 0 && !qwen3) {
        from = r / HEAD_DIM * HEAD_DIM + r % HEAD_DIM / 2 + r % 2 * (HEAD_DIM / 2);
    }
    return w->values + from * w->cols;
}

/* The type that the loader makes of a matrix when it is asked for `type`: the tied head has at least six bits. */
static fl_dtype type_of(const weight *w, fl_dtype type) {
    bool few = type == FL_Q4_0 || type == FL_Q4_K || type == FL_Q5_K;
    return w == &weights[0] && few ? FL_Q6_K : type;
}

static uint32_t number_of(fl_dtype type) {
    for (uint32_t i = 0; i < inside_gguf_n_dtypes; i++) {
        if (inside_gguf_dtype(i).type == type && inside_gguf_dtype(i).name != NULL) {
            return i;
        }
    }
    return 0;
}

static void set_half(uint8_t *p, float value) {
    uint16_t half = fl_f16_of_float(value);
    p[0] = (uint8_t)half;
    p[1] = (uint8_t)(half >> 8);
}

/* A row of any integers under scales that make weights of a usual size; the same for the same seed. */
static void draw_row(fl_dtype type, uint64_t seed, uint8_t *row) {
    random_state = fl_mix(seed);
    for (size_t b = 0; b < fl_row_bytes(type, DIM); b++) {
        row[b] = (uint8_t)random_next();
    }
    for (size_t b = 0; b < fl_row_bytes(type, DIM); b += fl_block_bytes(type)) {
        float u = 1 + (float)(random_next() % 1024) / 2048, v = 1 + (float)(random_next() % 1024) / 2048;
        switch (type) {
        case FL_Q4_1:
        case FL_Q5_1:
            set_half(row + b, u * (type == FL_Q4_1 ? 0.008f : 0.004f));
            set_half(row + b + 2, v * -0.06f);
            break;
        case FL_Q2_K:
            set_half(row + b + 80, u * 0.002f);
            set_half(row + b + 82, v * 0.003f);
            break;
        case FL_Q3_K:
            set_half(row + b + 108, u * -0.0008f);
            break;
        case FL_MXFP4:
            row[b] = (uint8_t)(119 + random_next() % 3);
            break;
        default:
            set_half(row + b, u * (type == FL_Q5_0 ? 0.004f : type == FL_IQ4_NL ? -0.0005f : 0.00003f));
            break;
        }
    }
}

/* A block of Q6_K: number i has two halves of its bits where the layout's table says. */
static void hold_q6_k(const uint8_t *q3_k, const float *y, uint8_t *out) {
    float d = fl_float_of_f16((uint16_t)(q3_k[108] | q3_k[109] << 8));
    memset(out, 0, 210);
    for (size_t i = 0; i < 256; i++) {
        size_t g = i / 16, half = i / 128, run = i % 128 / 32, l = i % 32;
        int low = g < 8 ? q3_k[96 + g] & 15 : q3_k[88 + g] >> 4;
        int scale = low + 16 * (q3_k[104 + g % 4] >> (2 * (g / 4)) & 3) - 32;
        int q = scale == 0 ? 32 : (int)lrintf(y[i] / (d * (float)scale)) + 32;
        out[64 * half + run % 2 * 32 + l] |= (uint8_t)((q & 15) << (run < 2 ? 0 : 4));
        out[128 + 32 * half + l] |= (uint8_t)(q >> 4 << (2 * run));
        out[192 + g] = (uint8_t)scale;
    }
    memcpy(out + 208, q3_k + 108, 2);
}

/* The step of unit u of a row whose numbers are integers times it; 0: they are not. */
static float step_of(fl_dtype type, const uint8_t *row, size_t u) {
    const uint8_t *b = row + u * fl_block_bytes(type);
    if (type == FL_Q5_0 || type == FL_IQ4_NL) {
        return fl_float_of_f16((uint16_t)(b[0] | b[1] << 8));
    }
    if (type == FL_MXFP4) {
        return ldexpf(1, b[0] - 128);
    }
    if (type == FL_IQ4_XS) {
        int scale = (row[4 + u / 2] >> (4 * (u % 2)) & 15) + 16 * ((row[2] | row[3] << 8) >> (2 * u) & 3) - 32;
        return fl_float_of_f16((uint16_t)(row[0] | row[1] << 8)) * (float)scale;
    }
    return 0;
}

/* What loading makes of a row, by other means: from the numbers, y, and the steps between them. */
static void hold_row(fl_dtype type, const uint8_t *row, const float *y, uint8_t *out) {
    if (type == FL_Q3_K) {
        hold_q6_k(row, y, out);
        return;
    }
    for (size_t u = 0; u < DIM / 32; u++, out += 34) {
        float step = step_of(type, row, u);
        set_half(out, step);
        for (size_t i = 0; i < 32; i++) {
            out[2 + i] = (uint8_t)(step != 0 ? lrintf(y[32 * u + i] / step) : 0);
        }
        if (step == 0 && type != FL_IQ4_XS) {
            fl_quantise(FL_Q8_0, y + 32 * u, 32, out);
        }
    }
}

typedef enum row_form { BLOCKS, DECODED, HELD } row_form;

/* Row r of a weight as blocks, as the floats that these stand for, or as the blocks that loading makes of them. */
static void put_row(buffer *b, const weight *w, bool qwen3, size_t r, fl_dtype type, row_form form) {
    uint8_t blocks[DIM * 2], held[DIM * 2];
    float back[DIM];
    bool in_files_only = fl_computed_type(type) != type;
    if (in_files_only) {
        draw_row(type, (uint64_t)(w - weights) << 32 | r, blocks);
    } else {
        fl_quantise_row(type, row_in_file(w, qwen3, r), w->cols, blocks);
    }
    fl_dequantise(type, blocks, w->cols, back);
    if (form == DECODED) {
        put(b, back, sizeof back);
    } else if (form == HELD && in_files_only) {
        hold_row(type, blocks, back, held);
        put(b, held, fl_row_bytes(fl_computed_type(type), w->cols));
    } else {
        put(b, blocks, fl_row_bytes(type, w->cols));
    }
}

/* The model as a GGUF file, of the directory's numbers or, if there is no encoder for the type, of others. embedding:
 * 0, or the number of the type that it has instead, all zeros. */
static void put_gguf(test_host *h, bool qwen3, bool untied, fl_dtype type, row_form form, uint32_t embedding) {
    static const char *const names[] = {"blocks.gguf", "decoded.gguf", "held.gguf"};
    const char *arch = qwen3 ? "qwen3" : "llama";
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {{"block_count", 1},           {"context_length", 64},
                 {"embedding_length", DIM},    {"feed_forward_length", DIM},
                 {"attention.head_count", HEADS}, {"attention.head_count_kv", KV_HEADS},
                 {"attention.key_length", HEAD_DIM}};
    buffer b = {0}, data = {0};
    char key[96];
    put_start(&b, (qwen3 ? 13u : 11u) + untied, FL_COUNT(sizes) + 2);
    put_key(&b, "general.architecture", FL_GGUF_STRING);
    put_text(&b, arch);
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        snprintf(key, sizeof key, "%s.%s", arch, sizes[i].key);
        put_u32(&b, key, sizes[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    put_f32(&b, key, 1e-5f);
    for (size_t i = 0; i < FL_COUNT(weights); i++) {
        const weight *w = &weights[i];
        fl_dtype t = type_of(w, type);
        uint32_t number = w->cols == 0 || form == DECODED ? 0 : number_of(form == HELD ? fl_computed_type(t) : t);
        if (!is_there(w, qwen3, untied)) {
            continue;
        }
        pad(&data, 32);
        put_info(&b, w->gguf_name, w->rows, w->cols, i == 0 && embedding != 0 ? embedding : number, data.n);
        if (w->cols == 0) {
            put(&data, w->values, w->rows * sizeof(float));
        }
        inside_dtype d = inside_gguf_dtype(embedding);
        for (size_t n = 0; i == 0 && embedding != 0 && n < w->rows * w->cols; n += d.numbers) {
            static const uint8_t zeros[512];
            put(&data, zeros, d.bytes);
        }
        for (size_t r = 0; w->cols != 0 && (i != 0 || embedding == 0) && r < w->rows; r++) {
            put_row(&data, w, qwen3, r, t, form);
        }
    }
    pad(&b, 32);
    put(&b, data.bytes, data.n);
    host_put(h, names[form], b.bytes, b.n);
    buffer_free(&b);
    buffer_free(&data);
}

/* Loading takes what was planned; the names of the types. */
static void check_load(test_host *h, const char *path, folollm_weights asked, const char *weights_name,
                       const char *stored) {
    folollm_options o = {.host = &h->hooks, .weights = asked};
    folollm_memory plan = {0};
    folollm_info info;
    folollm *f = NULL;
    h->peak = h->live;
    CHECK(folollm_plan(path, &o, &plan, NULL) == FOLOLLM_OK);
    if (!CHECK(folollm_load(path, &o, &f, NULL) == FOLOLLM_OK)) {
        return;
    }
    CHECK_TEXT(h->live == plan.allocated && h->peak <= plan.allocated + plan.temporary, "loading takes what it planned");
    folollm_get_info(f, &info);
    if (!CHECK(strcmp(info.weights, weights_name) == 0 && strcmp(info.stored, stored) == 0)) {
        printf("    \"%s\", \"%s\" instead of \"%s\", \"%s\"\n", info.weights, info.stored, weights_name, stored);
    }
    folollm_free(f);
}

/* Blocks in a file against the same blocks made while loading, and against the numbers that they stand for. */
static void test_blocks(bool qwen3, size_t i) {
    static test_host h;
    host_init(&h, true);
    uint32_t vocab = 0;
    size_t n = (size_t)N_IDS * VOCAB;
    folollm_options converted = {.host = &h.hooks, .weights = block_types[i].asked}, as_stored = {.host = &h.hooks};
    folollm_options plain = {.host = &h.hooks, .weights = FOLOLLM_WEIGHTS_F32};
    folollm_options floats = {.host = &h.hooks, .float_activations = 1};
    put_directory(&h, qwen3);
    put_gguf(&h, qwen3, false, block_types[i].type, BLOCKS, 0);
    put_gguf(&h, qwen3, false, block_types[i].type, DECODED, 0);
    float *a = logits_of("mem", &converted, &vocab), *b = logits_of("mem/blocks.gguf", &as_stored, &vocab);
    CHECK_TEXT(a != NULL && b != NULL && memcmp(a, b, n * sizeof *a) == 0, "blocks keep their bits");
    float *c = logits_of("mem/decoded.gguf", &as_stored, &vocab), *d = logits_of("mem/blocks.gguf", &plain, &vocab);
    CHECK_TEXT(c != NULL && d != NULL && memcmp(c, d, n * sizeof *c) == 0, "blocks are decoded as the reference does");
    bool few = type_of(&weights[0], block_types[i].type) != block_types[i].type;
    char both[32];
    snprintf(both, sizeof both, few ? "%s, q6_k" : "%s", fl_dtype_name(block_types[i].type));
    check_load(&h, "mem/blocks.gguf", FOLOLLM_WEIGHTS_AS_STORED, few ? "mixed" : both, both);
    CHECK(number_of(block_types[i].type) == block_types[i].number);
    float *e = logits_of("mem/blocks.gguf", &floats, &vocab);
    CHECK_TEXT(e != NULL && c != NULL && nmse(e, c, n) < 1e-9, "blocks times floats");
    CHECK(b != NULL && c != NULL && nmse(b, c, n) < 1e-3);
    free(a);
    free(b);
    free(c);
    free(d);
    free(e);
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* Blocks that are in files only against a file of what they become, against the numbers that they stand for, and as
 * another type that is asked for. */
static void test_file_type(bool qwen3, size_t i) {
    static test_host h;
    host_init(&h, true);
    uint32_t vocab = 0;
    size_t n = (size_t)N_IDS * VOCAB;
    fl_dtype type = file_types[i].type;
    const char *name = fl_dtype_name(type), *computed = fl_dtype_name(fl_computed_type(type));
    char stored[64];
    folollm_options as_stored = {.host = &h.hooks}, plain = {.host = &h.hooks, .weights = FOLOLLM_WEIGHTS_F32};
    folollm_options floats = {.host = &h.hooks, .float_activations = 1};
    folollm_options other = {.host = &h.hooks, .weights = FOLOLLM_WEIGHTS_Q8_ROW};
    for (int form = BLOCKS; form <= HELD; form++) {
        put_gguf(&h, qwen3, !qwen3, type, (row_form)form, 0);
    }
    CHECK(number_of(type) == file_types[i].number);
    float *a = logits_of("mem/blocks.gguf", &as_stored, &vocab), *b = logits_of("mem/held.gguf", &as_stored, &vocab);
    CHECK_TEXT(a != NULL && b != NULL && memcmp(a, b, n * sizeof *a) == 0, "blocks are what they become");
    float *c = logits_of("mem/decoded.gguf", &as_stored, &vocab), *d = logits_of("mem/blocks.gguf", &plain, &vocab);
    CHECK_TEXT(c != NULL && d != NULL && memcmp(c, d, n * sizeof *c) == 0, "blocks are decoded as the reference does");
    float *e = logits_of("mem/decoded.gguf", &other, &vocab), *f = logits_of("mem/blocks.gguf", &other, &vocab);
    CHECK_TEXT(e != NULL && f != NULL && memcmp(e, f, n * sizeof *e) == 0, "and converted as floats are");
    float *g = logits_of("mem/blocks.gguf", &floats, &vocab);
    if (CHECK(a != NULL && c != NULL && g != NULL)) {
        CHECK(nmse(g, c, n) < file_types[i].bound && nmse(a, c, n) < 1e-3);
        printf("%s as %s: NMSE %.2g to its numbers as floats, %.2g with float activations\n", name, computed,
               nmse(a, c, n), nmse(g, c, n));
    }
    snprintf(stored, sizeof stored, "%s as %s", name, computed);
    check_load(&h, "mem/blocks.gguf", FOLOLLM_WEIGHTS_AS_STORED, computed, stored);
    snprintf(stored, sizeof stored, "%s as q4_k and q6_k", name);
    check_load(&h, "mem/blocks.gguf", FOLOLLM_WEIGHTS_Q4_K, type == FL_Q3_K ? "mixed" : "q4_k", stored);
    float *all[] = {a, b, c, d, e, f, g};
    for (size_t k = 0; k < FL_COUNT(all); k++) {
        free(all[k]);
    }
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* ---- Metadata -- */

static void put_scalars(buffer *b) {
    put_key(b, "u8", FL_GGUF_U8);
    put_number(b, 200, 1);
    put_key(b, "i8", FL_GGUF_I8);
    put_number(b, (uint64_t)-100, 1);
    put_key(b, "u16", FL_GGUF_U16);
    put_number(b, 60000, 2);
    put_key(b, "i16", FL_GGUF_I16);
    put_number(b, (uint64_t)-30000, 2);
    put_key(b, "u32", FL_GGUF_U32);
    put_number(b, UINT32_MAX, 4);
    put_key(b, "i32", FL_GGUF_I32);
    put_number(b, (uint64_t)INT32_MIN, 4);
    put_f32(b, "f32", 0.5f);
    put_key(b, "bool", FL_GGUF_BOOL);
    put_number(b, 1, 1);
    put_key(b, "string", FL_GGUF_STRING);
    put_text(b, "text");
    put_key(b, "u64", FL_GGUF_U64);
    put_number(b, UINT64_MAX, 8);
    put_key(b, "i64", FL_GGUF_I64);
    put_number(b, (uint64_t)INT64_MIN, 8);
    put_key(b, "f64", FL_GGUF_F64);
    put_number(b, UINT64_C(0xC004000000000000), 8); /* -2.5 */
}

static void put_arrays(buffer *b) {
    put_key(b, "strings", FL_GGUF_ARRAY);
    put_number(b, FL_GGUF_STRING, 4);
    put_number(b, 3, 8);
    put_text(b, "a");
    put_text(b, "");
    put_text(b, "ccc");
    put_key(b, "i16s", FL_GGUF_ARRAY);
    put_number(b, FL_GGUF_I16, 4);
    put_number(b, 2, 8);
    put_number(b, 7, 2);
    put_number(b, (uint64_t)-1, 2);
    put_key(b, "bools", FL_GGUF_ARRAY);
    put_number(b, FL_GGUF_BOOL, 4);
    put_number(b, 2, 8);
    put_number(b, 0x0001, 2);
    put_key(b, "nothing", FL_GGUF_ARRAY);
    put_number(b, FL_GGUF_ARRAY, 4);
    put_number(b, 0, 8);
    put_key(b, "nested", FL_GGUF_ARRAY); /* [[[1], []], []] of u8 in arrays */
    put_number(b, FL_GGUF_ARRAY, 4);
    put_number(b, 2, 8);
    put_number(b, FL_GGUF_ARRAY, 4);
    put_number(b, 2, 8);
    put_number(b, FL_GGUF_U8, 4);
    put_number(b, 1, 8);
    put_number(b, 1, 1);
    put_number(b, FL_GGUF_STRING, 4);
    put_number(b, 0, 8);
    put_number(b, FL_GGUF_ARRAY, 4);
    put_number(b, 0, 8);
    put_u32(b, "after", 42);
}

static void check_integers(const fl_gguf *g) {
    static const struct {
        const char *key;
        bool u64, u32;
        uint64_t value;
    } cases[] = {
        {"u8", true, true, 200}, {"i8", false, false, 0}, {"u16", true, true, 60000}, {"i16", false, false, 0},
        {"u32", true, true, UINT32_MAX}, {"i32", false, false, 0}, {"u64", true, false, UINT64_MAX},
        {"i64", false, false, 0}, {"f32", false, false, 0}, {"bool", false, false, 0}, {"string", false, false, 0},
        {"f64", false, false, 0}, {"strings", false, false, 0}, {"none", true, true, 9}, {"after", true, true, 42},
    };
    folollm_error error;
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        uint64_t wide = 0;
        uint32_t narrow = 0;
        CHECK_TEXT((fl_gguf_u64(g, cases[i].key, 9, &wide, &error) == FOLOLLM_OK) == cases[i].u64, cases[i].key);
        CHECK_TEXT((fl_gguf_u32(g, cases[i].key, 9, &narrow, &error) == FOLOLLM_OK) == cases[i].u32, cases[i].key);
        CHECK_TEXT(!cases[i].u64 || wide == cases[i].value, cases[i].key);
        CHECK_TEXT(!cases[i].u32 || narrow == cases[i].value, cases[i].key);
    }
    int64_t value = 0;
    CHECK(fl_gguf_to_i64(fl_gguf_find(g, "i8"), &value) && value == -100);
    CHECK(fl_gguf_to_i64(fl_gguf_find(g, "i16"), &value) && value == -30000);
    CHECK(fl_gguf_to_i64(fl_gguf_find(g, "i32"), &value) && value == INT32_MIN);
    CHECK(fl_gguf_to_i64(fl_gguf_find(g, "i64"), &value) && value == INT64_MIN);
    CHECK(fl_gguf_to_i64(fl_gguf_find(g, "u32"), &value) && value == UINT32_MAX);
    CHECK(!fl_gguf_to_i64(fl_gguf_find(g, "u64"), &value));
}

static void check_others(const fl_gguf *g) {
    folollm_error error;
    double number = 0;
    bool truth = false;
    fl_str text;
    CHECK(fl_gguf_double(g, "f32", 0, &number, &error) == FOLOLLM_OK && number == 0.5);
    CHECK(fl_gguf_double(g, "f64", 0, &number, &error) == FOLOLLM_OK && number == -2.5);
    CHECK(fl_gguf_double(g, "i8", 0, &number, &error) == FOLOLLM_OK && number == -100);
    CHECK(fl_gguf_double(g, "u64", 0, &number, &error) == FOLOLLM_OK && number == 18446744073709551616.0);
    CHECK(fl_gguf_double(g, "none", 7, &number, &error) == FOLOLLM_OK && number == 7);
    CHECK(fl_gguf_double(g, "string", 7, &number, &error) == FOLOLLM_E_FORMAT && strstr(error.text, "string") != NULL);
    CHECK(fl_gguf_double(g, "bool", 7, &number, &error) == FOLOLLM_E_FORMAT);
    CHECK(fl_gguf_bool(g, "bool", false, &truth, &error) == FOLOLLM_OK && truth);
    CHECK(fl_gguf_bool(g, "none", true, &truth, &error) == FOLOLLM_OK && truth);
    CHECK(fl_gguf_bool(g, "u8", true, &truth, &error) == FOLOLLM_E_FORMAT);
    CHECK(fl_gguf_string(g, "string", &text, &error) == FOLOLLM_OK && fl_str_is(text, "text"));
    CHECK(fl_gguf_string(g, "none", &text, &error) == FOLOLLM_OK && text.at == NULL && text.n == 0);
    CHECK(fl_gguf_string(g, "strings", &text, &error) == FOLOLLM_E_FORMAT);
    CHECK(strstr(error.text, "array of string") != NULL);
}

static void check_arrays(const fl_gguf *g) {
    static const char *const expected[] = {"a", "", "ccc"};
    folollm_error error;
    fl_gguf_value array, element;
    fl_str text;
    int64_t value = 0;
    bool truth = true;
    size_t n = 0;
    CHECK(fl_gguf_array(g, "strings", FL_GGUF_STRING, &array, &error) == FOLOLLM_OK && array.n == 3);
    CHECK(!fl_gguf_at(&array, 0, &element));
    for (; fl_gguf_next(&array, &element); n++) {
        CHECK(fl_gguf_to_string(&element, &text) && fl_str_is(text, expected[n]));
    }
    CHECK(n == 3);
    CHECK(fl_gguf_array(g, "i16s", FL_GGUF_I64, &array, &error) == FOLOLLM_OK && array.n == 2);
    CHECK(fl_gguf_at(&array, 0, &element) && fl_gguf_to_i64(&element, &value) && value == 7);
    CHECK(fl_gguf_at(&array, 1, &element) && fl_gguf_to_i64(&element, &value) && value == -1);
    CHECK(!fl_gguf_at(&array, 2, &element));
    CHECK(fl_gguf_array(g, "i16s", FL_GGUF_F64, &array, &error) == FOLOLLM_OK);
    CHECK(fl_gguf_array(g, "i16s", FL_GGUF_STRING, &array, &error) == FOLOLLM_E_FORMAT);
    CHECK(fl_gguf_array(g, "strings", FL_GGUF_I64, &array, &error) == FOLOLLM_E_FORMAT);
    CHECK(fl_gguf_array(g, "u8", FL_GGUF_I64, &array, &error) == FOLOLLM_E_FORMAT);
    CHECK(fl_gguf_array(g, "bools", FL_GGUF_BOOL, &array, &error) == FOLOLLM_OK);
    CHECK(fl_gguf_next(&array, &element) && fl_gguf_to_bool(&element, &truth) && truth);
    CHECK(fl_gguf_next(&array, &element) && fl_gguf_to_bool(&element, &truth) && !truth);
    CHECK(!fl_gguf_next(&array, &element));
    CHECK(fl_gguf_array(g, "none", FL_GGUF_STRING, &array, &error) == FOLOLLM_OK && array.n == 0);
    CHECK(!fl_gguf_next(&array, &element));
    array = *fl_gguf_find(g, "nested");
    CHECK(array.n == 2 && array.of == FL_GGUF_ARRAY && !fl_gguf_next(&array, &element));
}

static void test_metadata(void) {
    static test_host h;
    host_init(&h, true);
    fl_memory m;
    fl_gguf g;
    folollm_error error;
    buffer b = {0};
    put_start(&b, 0, 18);
    put_scalars(&b);
    put_arrays(&b);
    host_put(&h, "m.gguf", b.bytes, b.n);
    buffer_free(&b);
    fl_memory_init(&m, &h.hooks);
    if (CHECK(fl_gguf_open(&m, &g, "mem/m.gguf", &error) == FOLOLLM_OK)) {
        check_integers(&g);
        check_others(&g);
        check_arrays(&g);
        fl_gguf_close(&g);
    } else {
        printf("    %s\n", error.text);
    }
    CHECK(host_is_clean(&h));
    host_free(&h);
}

/* What makes a path one of a GGUF file. */
static void test_paths(void) {
    fl_memory m;
    fl_memory_init(&m, NULL);
    bool is;
    size_t n;
    folollm_error error;
    char name[] = "/tmp/test_gguf_XXXXXX";
    uint8_t *bytes = host_slurp(DIRECTORY "qwen3-linear-f16.gguf", &n);
    int file = mkstemp(name);
    CHECK(bytes != NULL && file >= 0 && write(file, bytes, n) == (ssize_t)n && close(file) == 0);
    CHECK(fl_gguf_is_at(&m, name, &is, &error) == FOLOLLM_OK && is);
    folollm *f = NULL;
    CHECK(folollm_load(name, NULL, &f, &error) == FOLOLLM_OK);
    folollm_free(f);
    CHECK(truncate(name, 3) == 0 && fl_gguf_is_at(&m, name, &is, &error) == FOLOLLM_OK && !is);
    unlink(name);
    free(bytes);
    CHECK(fl_gguf_is_at(&m, "nothing.gguf", &is, &error) == FOLOLLM_OK && is);
    CHECK(folollm_load("nothing.gguf", NULL, &f, &error) == FOLOLLM_E_IO && strstr(error.text, "nothing.gguf") != NULL);
    error.text[0] = 0;
    CHECK(fl_gguf_is_at(&m, "tests/vectors", &is, &error) == FOLOLLM_OK && !is);
    CHECK_TEXT(error.text[0] == 0, "an error is written on failure alone");
    CHECK(fl_gguf_is_at(&m, "tests/check.h", &is, &error) == FOLOLLM_OK && !is);
    CHECK(m.live == 0);
}

/* ---- Hostile files -- */

#define ANY 1     /* success or a clean failure */
#define REFUSED 2 /* a clean failure of any kind */

static test_host host;
static folollm_error error;
static unsigned n_cases;

/* Read a file, open it as a model; what every case proves beside its status. */
static void hostile(const char *name, const uint8_t *bytes, size_t n, int expected) {
    folollm_options o = {.host = &host.hooks, .context = 8, .chunk = 8, .n_threads = 1, .max_seqs = 1,
                         .max_requests = 1};
    folollm_memory plan;
    fl_memory m;
    fl_gguf g;
    folollm *f = NULL;
    host_put(&host, "m.gguf", bytes, n);
    memset(&error, 0, sizeof error);
    host.peak = host.live;
    fl_memory_init(&m, &host.hooks);
    folollm_status status = fl_gguf_open(&m, &g, "mem/m.gguf", &error);
    bool ok = host.peak <= 16 * n + 4096; /* entries and maps are that much larger than the shortest in the file */
    if (status == FOLOLLM_OK) {
        fl_gguf_close(&g);
        status = folollm_plan("mem/m.gguf", &o, &plan, &error);
        ok = ok && host.peak <= 64 * n + (1u << 16); /* and a path, an engine, a converter's head */
    }
    if (status == FOLOLLM_OK) {
        status = folollm_load("mem/m.gguf", &o, &f, &error);
        folollm_free(f);
    }
    ok = ok && (expected == ANY || (expected == REFUSED ? status != FOLOLLM_OK : (int)status == expected));
    ok = ok && (status == FOLOLLM_OK || (error.status == status && error.text[0] != 0));
    ok = ok && (status == FOLOLLM_OK || status == FOLOLLM_E_ARGUMENT || strstr(error.text, "m.gguf") != NULL);
    if (!CHECK_TEXT(ok && host_is_clean(&host), name)) {
        printf("    status %d, expected %d, \"%s\"; live %llu, peak %llu of %zu\n", (int)status, expected, error.text,
               (unsigned long long)host.live, (unsigned long long)host.peak, n);
    }
    n_cases++;
}

/* What no type here is made for is refused by its name, and all that are read are named. */
static void test_refused(void) {
    unsigned n = 0;
    for (uint32_t type = 0; type < inside_gguf_n_dtypes; type++) {
        if (inside_gguf_dtype(type).name == NULL || inside_gguf_dtype(type).type != FL_DTYPE_OTHER) {
            continue;
        }
        put_gguf(&host, false, false, FL_Q8_0, BLOCKS, type);
        const host_file *f = host_find(&host, "blocks.gguf");
        hostile(inside_gguf_dtype(type).name, f->bytes, f->n, FOLOLLM_E_UNSUPPORTED);
        CHECK(strstr(error.text, inside_gguf_dtype(type).name) != NULL && strstr(error.text, "MXFP4 are read") != NULL);
        n++;
    }
    CHECK(n == 19);
}

/* Files of each type that end too early, by a byte or by much. */
static void test_cut(void) {
    for (size_t i = 0; i < FL_COUNT(file_types); i++) {
        put_gguf(&host, true, false, file_types[i].type, BLOCKS, 0);
        const host_file *f = host_find(&host, "blocks.gguf");
        for (size_t n = f->n - 1; n > f->n / 2; n -= 1 + f->n / 16) {
            hostile("cut", f->bytes, n, FOLOLLM_E_FORMAT);
            CHECK(strstr(error.text, "truncated") != NULL);
        }
    }
}

/* A sound file of one layer that everything below is a change of. */
typedef struct change {
    uint64_t n_tensors, n_entries;     /* more of them than there are */
    const buffer *entries, *infos;     /* further ones, appended */
    const char *without;               /* a key that is left out */
    uint32_t matrix_type;              /* of the embedding; its data stays as it is */
    size_t extra;                      /* bytes after the last tensor */
    bool unfilled;                     /* the last tensor is not filled up */
    uint32_t align;                    /* 0: the key is not there */
} change;

static const struct {
    const char *key;
    uint32_t value;
} sound_sizes[] = {{"llama.block_count", 1},           {"llama.context_length", 32},
                   {"llama.embedding_length", 8},      {"llama.feed_forward_length", 6},
                   {"llama.attention.head_count", 2},  {"llama.attention.head_count_kv", 1},
                   {"llama.attention.key_length", 4},  {"llama.attention.value_length", 4},
                   {"llama.rope.dimension_count", 4}};

static const struct {
    const char *name;
    uint32_t rows, cols;
} sound_tensors[] = {
    {"token_embd.weight", 40, 8}, {"blk.0.attn_norm.weight", 8, 0}, {"blk.0.attn_q.weight", 8, 8},
    {"blk.0.attn_k.weight", 4, 8}, {"blk.0.attn_v.weight", 4, 8}, {"blk.0.attn_output.weight", 8, 8},
    {"blk.0.ffn_norm.weight", 8, 0}, {"blk.0.ffn_gate.weight", 6, 8}, {"blk.0.ffn_up.weight", 6, 8},
    {"blk.0.ffn_down.weight", 8, 6}, {"output_norm.weight", 8, 0},
};

static size_t sound_offset; /* where further tensors' data goes */
static size_t sound_end;    /* of the last tensor's data in the file */

static buffer make(const change *c) {
    buffer b = {0};
    bool without = c->without != NULL;
    uint32_t align = c->align != 0 ? c->align : 32;
    put_start(&b, FL_COUNT(sound_tensors) + c->n_tensors,
              FL_COUNT(sound_sizes) + 4 - without + (c->align != 0) + c->n_entries);
    put_key(&b, "general.architecture", FL_GGUF_STRING);
    put_text(&b, "llama");
    for (size_t i = 0; i < FL_COUNT(sound_sizes); i++) {
        if (!without || strcmp(c->without, sound_sizes[i].key) != 0) {
            put_u32(&b, sound_sizes[i].key, sound_sizes[i].value);
        }
    }
    put_f32(&b, "llama.rope.freq_base", 10000);
    put_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    put_key(&b, "words", FL_GGUF_ARRAY);
    put_field(&b, FL_GGUF_STRING, 4);
    put_field(&b, 2, 8);
    put_text(&b, "one");
    put_text(&b, "two");
    if (c->align != 0) {
        put_u32(&b, "general.alignment", c->align);
    }
    put(&b, c->entries != NULL ? c->entries->bytes : NULL, c->entries != NULL ? c->entries->n : 0);
    size_t at = 0, end = 0;
    for (size_t i = 0; i < FL_COUNT(sound_tensors); i++) {
        bool vector = sound_tensors[i].cols == 0;
        at = (end + align - 1) / align * align;
        end = at + (vector ? 4u * sound_tensors[i].rows : 2u * sound_tensors[i].rows * sound_tensors[i].cols);
        put_info(&b, sound_tensors[i].name, sound_tensors[i].rows, sound_tensors[i].cols,
                 i == 0 && c->matrix_type != 0 ? c->matrix_type : vector ? 0 : 1, at);
    }
    sound_offset = (end + align - 1) / align * align;
    put(&b, c->infos != NULL ? c->infos->bytes : NULL, c->infos != NULL ? c->infos->n : 0);
    pad(&b, align);
    for (size_t i = 0; i < end; i++) {
        put_number(&b, i % 2 == 1 ? 0x2C : i * 7, 1); /* halves near 0.06 */
    }
    sound_end = b.n;
    if (!c->unfilled) {
        pad(&b, align);
    }
    for (size_t i = 0; i < c->extra; i++) {
        put_number(&b, 1, 1);
    }
    return b;
}

static void hostile_change(const char *name, const change *c, int expected) {
    buffer b = make(c);
    hostile(name, b.bytes, b.n, expected);
    buffer_free(&b);
}

static void test_bytes(void) {
    static const change sound = {.align = 0};
    buffer b = make(&sound);
    size_t n_header = 0;
    hostile("a sound file", b.bytes, b.n, FOLOLLM_OK);
    for (size_t i = 0; i < b.n_fields; i++) {
        n_header = b.fields[i].at + b.fields[i].bytes;
    }
    for (size_t n = 0; n < b.n; n++) {
        hostile("a prefix", b.bytes, n, n >= sound_end ? FOLOLLM_OK : REFUSED);
    }
    for (size_t i = 0; i < n_header; i++) {
        const uint8_t was = b.bytes[i];
        const uint8_t values[] = {0, 0xFF, (uint8_t)(was ^ 1), (uint8_t)(was ^ 0x80), (uint8_t)(was + 1)};
        for (size_t v = 0; v < FL_COUNT(values); v++) {
            b.bytes[i] = values[v];
            hostile("a changed byte", b.bytes, b.n, ANY);
        }
        b.bytes[i] = was;
    }
    for (size_t i = 0; i < b.n_fields; i++) {
        uint8_t *at = b.bytes + b.fields[i].at, was[8];
        memcpy(was, at, b.fields[i].bytes);
        uint64_t now = b.fields[i].bytes == 8 ? fl_load_u64(at) : fl_load_u32(at);
        const uint64_t values[] = {0, 1, 2, 9, 12, 13, now - 1, now + 1, now * 2, now + 32, b.n, b.n + 1, 1u << 20,
                                   INT32_MAX, UINT64_C(1) << 31, UINT32_MAX, UINT64_C(1) << 32, UINT64_C(1) << 62,
                                   INT64_MAX, UINT64_C(1) << 63, UINT64_MAX - 31, UINT64_MAX - 7, UINT64_MAX - 1,
                                   UINT64_MAX};
        for (size_t v = 0; v < FL_COUNT(values); v++) {
            for (unsigned k = 0; k < b.fields[i].bytes; k++) {
                at[k] = (uint8_t)(values[v] >> (8 * k));
            }
            hostile("a field at a border", b.bytes, b.n, ANY);
        }
        memcpy(at, was, b.fields[i].bytes);
    }
    buffer_free(&b);
}

static void test_start(void) {
    static const struct {
        const char *bytes;
        int expected;
    } cases[] = {{"GGUF\3\0\0", FOLOLLM_OK},          {"GGUF\2\0\0", FOLOLLM_OK},
                 {"GGUF\1\0\0", FOLOLLM_E_UNSUPPORTED}, {"GGUF\4\0\0", FOLOLLM_E_UNSUPPORTED},
                 {"GGUF\0\0\0", FOLOLLM_E_UNSUPPORTED}, {"FUGG\3\0\0", FOLOLLM_E_FORMAT},
                 {"GGJT\3\0\0", FOLOLLM_E_FORMAT}};
    static const change sound = {.align = 0}, unfilled = {.unfilled = true}, junk = {.extra = 1};
    static const change more_tensors = {.n_tensors = 1}, fewer = {.n_tensors = UINT64_MAX};
    static const change more_entries = {.n_entries = 1}, fewer_entries = {.n_entries = UINT64_MAX};
    buffer b = make(&sound);
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        memcpy(b.bytes, cases[i].bytes, 8);
        hostile("magic and version", b.bytes, b.n, cases[i].expected);
    }
    memcpy(b.bytes, "GGUF\0\0\0\3", 8);
    hostile("big-endian", b.bytes, b.n, FOLOLLM_E_UNSUPPORTED);
    CHECK(strstr(error.text, "big-endian") != NULL);
    buffer_free(&b);
    hostile_change("the last tensor is not filled up", &unfilled, FOLOLLM_OK);
    hostile_change("a byte behind the end", &junk, FOLOLLM_E_FORMAT);
    hostile_change("one tensor too many", &more_tensors, REFUSED);
    hostile_change("one tensor too few", &fewer, REFUSED);
    hostile_change("one entry too many", &more_entries, REFUSED);
    hostile_change("one entry too few", &fewer_entries, REFUSED);
}

/* The value of a type, in a few bytes. */
static void put_any(buffer *b, fl_gguf_type type) {
    if (type == FL_GGUF_STRING) {
        put_text(b, "1");
    } else if (type == FL_GGUF_ARRAY) {
        put_number(b, FL_GGUF_U8, 4);
        put_number(b, 1, 8);
        put_number(b, 1, 1);
    } else {
        put_number(b, 1, inside_gguf_bytes(type));
    }
}

static void test_alignment(void) {
    static const struct {
        uint32_t align;
        int expected;
    } cases[] = {{8, FOLOLLM_OK}, {16, FOLOLLM_OK}, {64, FOLOLLM_OK}, {4096, FOLOLLM_OK}, {4, FOLOLLM_OK},
                 {1, FOLOLLM_OK}, {3, FOLOLLM_E_FORMAT}, {31, FOLOLLM_E_FORMAT}, {48, FOLOLLM_E_FORMAT}};
    static const uint32_t values[] = {0, 1, 3, 31, 64, 1u << 31, UINT32_MAX};
    change c = {.align = 0};
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        c.align = cases[i].align;
        hostile_change("an alignment that the file keeps", &c, cases[i].expected);
    }
    for (size_t i = 0; i < FL_COUNT(values); i++) { /* the file is laid out for 32 */
        buffer more = {0};
        put_u32(&more, "general.alignment", values[i]);
        change said = {.n_entries = 1, .entries = &more};
        hostile_change("an alignment that the file does not keep", &said, REFUSED);
        buffer_free(&more);
    }
    for (int type = 0; type < FL_GGUF_TYPE_COUNT; type++) {
        buffer more = {0};
        put_key(&more, "general.alignment", (fl_gguf_type)type);
        if (inside_gguf_bytes((fl_gguf_type)type) > 1) {
            put_number(&more, 32, inside_gguf_bytes((fl_gguf_type)type));
        } else {
            put_any(&more, (fl_gguf_type)type);
        }
        change said = {.n_entries = 1, .entries = &more};
        hostile_change("an alignment of another type", &said, type == FL_GGUF_U32 ? FOLOLLM_OK : FOLOLLM_E_FORMAT);
        buffer_free(&more);
    }
}

/* Only booleans tell which layers slide. */
static void test_patterns(void) {
    for (int of = 0; of < FL_GGUF_TYPE_COUNT; of++) {
        buffer more = {0};
        put_u32(&more, "llama.attention.sliding_window", 4);
        put_key(&more, "llama.attention.sliding_window_pattern", FL_GGUF_ARRAY);
        put_number(&more, (uint64_t)of, 4);
        put_number(&more, 1, 8);
        put_any(&more, (fl_gguf_type)of);
        change c = {.n_entries = 2, .entries = &more};
        hostile_change("an array of every type", &c, of == FL_GGUF_BOOL ? FOLOLLM_OK : FOLOLLM_E_FORMAT);
        buffer_free(&more);
    }
}

/* Every key that is looked at with every type of value, and every size at its borders. */
static void test_keys(void) {
    static const char *const keys[] = {
        "general.architecture", "general.alignment", "llama.block_count", "llama.context_length",
        "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.value_length",
        "llama.rope.dimension_count", "llama.attention.layer_norm_rms_epsilon", "llama.attention.causal",
        "llama.attention.sliding_window", "llama.attention.sliding_window_pattern", "llama.expert_count",
        "llama.attention.scale", "llama.logit_scale", "llama.rope.freq_base", "llama.rope.scale_linear",
        "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scaling.original_context_length",
        "llama.rope.scaling.attn_factor", "llama.rope.scaling.yarn_attn_factor", "llama.rope.scaling.yarn_ext_factor",
        "llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.yarn_beta_slow", "split.count",
        "tokenizer.ggml.eos_token_id"};
    static const uint32_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 1023, 1024, 1025, 4096, 4097, 1u << 17, (1u << 17) + 1,
                                     1u << 20, (1u << 26) + 1, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < FL_COUNT(keys); i++) {
        for (int type = 0; type < FL_GGUF_TYPE_COUNT; type++) {
            buffer more = {0};
            put_key(&more, keys[i], (fl_gguf_type)type);
            put_any(&more, (fl_gguf_type)type);
            change c = {.n_entries = 1, .entries = &more, .without = keys[i]};
            bool sized = false; /* known to the sound file as something that can be left out */
            for (size_t k = 0; k < FL_COUNT(sound_sizes); k++) {
                sized = sized || strcmp(keys[i], sound_sizes[k].key) == 0;
            }
            c.without = sized ? keys[i] : NULL;
            hostile_change(keys[i], &c, ANY);
            buffer_free(&more);
        }
    }
    for (size_t i = 0; i < FL_COUNT(sound_sizes); i++) {
        for (size_t v = 0; v < FL_COUNT(sizes); v++) {
            buffer more = {0};
            put_u32(&more, sound_sizes[i].key, sizes[v]);
            change c = {.n_entries = 1, .entries = &more, .without = sound_sizes[i].key};
            bool free_one = strcmp(sound_sizes[i].key, "llama.context_length") == 0;
            hostile_change(sound_sizes[i].key, &c,
                           sizes[v] == sound_sizes[i].value ? FOLOLLM_OK : free_one ? ANY : REFUSED);
            buffer_free(&more);
        }
        change c = {.without = sound_sizes[i].key};
        hostile_change("a key is missing", &c, ANY);
    }
}

static void change_u32(buffer *b, const char *key, uint32_t value) {
    size_t n = strlen(key);
    for (size_t i = 8; i + n + 8 <= b->n; i++) {
        for (size_t k = 0; memcmp(b->bytes + i, key, n) == 0 && fl_load_u64(b->bytes + i - 8) == n && k < 4; k++) {
            b->bytes[i + n + 4 + k] = (uint8_t)(value >> (8 * k));
        }
    }
}

/* Two sizes that are wrong together: none divides by a zero, and none makes up for another. */
static void test_pairs(void) {
    static const uint32_t sizes[] = {0, 1, 2, 3, 4, 8, 16, UINT32_MAX};
    static const change sound = {.align = 0};
    for (size_t i = 0; i < FL_COUNT(sound_sizes) * FL_COUNT(sound_sizes); i++) {
        size_t first = i / FL_COUNT(sound_sizes), second = i % FL_COUNT(sound_sizes);
        for (size_t v = 0; first < second && v < FL_COUNT(sizes) * FL_COUNT(sizes); v++) {
            uint32_t a = sizes[v / FL_COUNT(sizes)], b = sizes[v % FL_COUNT(sizes)];
            bool free_a = first == 1 && a != 0 && a <= 1u << 26, free_b = second == 1 && b != 0 && b <= 1u << 26;
            bool same = (a == sound_sizes[first].value || free_a) && (b == sound_sizes[second].value || free_b);
            buffer file = make(&sound);
            change_u32(&file, sound_sizes[first].key, a);
            change_u32(&file, sound_sizes[second].key, b);
            hostile("two sizes", file.bytes, file.n, same ? ANY : REFUSED);
            buffer_free(&file);
        }
    }
}

static void entry_case(const char *name, const buffer *more, int expected) {
    change c = {.n_entries = 1, .entries = more};
    hostile_change(name, &c, expected);
}

static void test_entries(void) {
    buffer b = {0};
    put_u32(&b, "llama.block_count", 1);
    entry_case("a key is there twice", &b, FOLOLLM_E_FORMAT);
    CHECK(strstr(error.text, "llama.block_count") != NULL);
    b.n = 0;
    put_u32(&b, "", 1);
    entry_case("an empty key", &b, FOLOLLM_E_FORMAT);
    b.n = 0;
    put_number(&b, 3, 8);
    put(&b, "a\0b", 3);
    put_number(&b, FL_GGUF_U8, 4);
    put_number(&b, 1, 1);
    entry_case("a zero in a key", &b, FOLOLLM_E_FORMAT);
    for (uint64_t value = 0; value < 4; value++) {
        b.n = 0;
        put_key(&b, "b", FL_GGUF_BOOL);
        put_number(&b, value, 1);
        entry_case("a boolean", &b, value < 2 ? FOLOLLM_OK : FOLOLLM_E_FORMAT);
        b.n = 0;
        put_key(&b, "b", FL_GGUF_ARRAY);
        put_number(&b, FL_GGUF_BOOL, 4);
        put_number(&b, 2, 8);
        put_number(&b, value << 8, 2);
        entry_case("booleans", &b, value < 2 ? FOLOLLM_OK : FOLOLLM_E_FORMAT);
    }
    for (unsigned depth = 1; depth < 40; depth++) {
        b.n = 0;
        put_key(&b, "deep", FL_GGUF_ARRAY);
        for (unsigned i = 1; i < depth; i++) {
            put_number(&b, FL_GGUF_ARRAY, 4);
            put_number(&b, 1, 8);
        }
        put_number(&b, FL_GGUF_U8, 4);
        put_number(&b, 1, 8);
        put_number(&b, 1, 1);
        entry_case("arrays in arrays", &b, depth <= inside_gguf_depth ? FOLOLLM_OK : FOLOLLM_E_UNSUPPORTED);
    }
    buffer_free(&b);
}

/* Arrays of every element type that announce more than there is. */
static void test_lengths(void) {
    static const uint64_t counts[] = {1, 1u << 16, INT32_MAX, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 60,
                                      UINT64_C(1) << 61, (UINT64_C(1) << 61) + 1, UINT64_C(1) << 62, UINT64_C(1) << 63,
                                      UINT64_MAX / 12, UINT64_MAX / 12 + 1, UINT64_MAX / 8 + 1, UINT64_MAX / 4 + 1,
                                      UINT64_MAX / 2 + 1, UINT64_MAX - 1, UINT64_MAX};
    for (uint32_t of = 0; of < 16; of++) {
        for (size_t i = 0; i < FL_COUNT(counts); i++) {
            buffer b = {0};
            put_key(&b, "a", FL_GGUF_ARRAY);
            put_number(&b, of, 4);
            put_number(&b, counts[i], 8);
            entry_case("an array's length", &b, i == 0 ? ANY : REFUSED);
            b.n = 0;
            put_key(&b, "s", FL_GGUF_STRING);
            put_number(&b, counts[i], 8);
            entry_case("a string's length", &b, i == 0 ? ANY : REFUSED);
            buffer_free(&b);
        }
    }
}

static void tensor_case(const char *name, const buffer *more, size_t extra, int expected) {
    change c = {.n_tensors = 1, .infos = more, .extra = extra};
    hostile_change(name, &c, expected);
}

static void put_shape(buffer *b, const char *name, uint32_t n_dims, const uint64_t *sizes, uint32_t type,
                      uint64_t offset) {
    b->n = 0;
    put_text(b, name);
    put_number(b, n_dims, 4);
    for (uint32_t d = 0; d < n_dims && d < 16; d++) {
        put_number(b, sizes[d], 8);
    }
    put_number(b, type, 4);
    put_number(b, offset, 8);
}

static void test_infos(void) {
    static const uint64_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const uint32_t dims[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 1u << 31, UINT32_MAX};
    static const uint32_t unknown[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, 1u << 31, UINT32_MAX};
    change none = {.align = 0};
    buffer b = make(&none);
    size_t at = sound_offset;
    buffer_free(&b);
    for (size_t i = 0; i < FL_COUNT(dims); i++) {
        put_shape(&b, "more", dims[i], ones, 0, at);
        tensor_case("dimensions", &b, 4, dims[i] <= 4 ? FOLOLLM_E_UNSUPPORTED : FOLOLLM_E_FORMAT);
        CHECK(dims[i] > 4 || strstr(error.text, "\"more\" is none that llama models have") != NULL);
    }
    for (size_t i = 0; i < FL_COUNT(unknown); i++) {
        put_shape(&b, "more", 1, ones, unknown[i], at);
        tensor_case("a type that is none", &b, 4, FOLOLLM_E_UNSUPPORTED);
    }
    put_shape(&b, "blk.0.attn_q.weight", 1, ones, 0, at);
    tensor_case("a tensor is there twice", &b, 4, FOLOLLM_E_FORMAT);
    put_shape(&b, "", 1, ones, 0, at);
    tensor_case("a tensor without a name", &b, 4, FOLOLLM_E_FORMAT);
    put_shape(&b, "a2345678901234567890123456789012345678901234567890123456789012345", 1, ones, 0, at);
    tensor_case("a name of 65 bytes", &b, 4, FOLOLLM_E_FORMAT);
    put_shape(&b, "a234567890123456789012345678901234567890123456789012345678901234", 1, ones, 0, at);
    tensor_case("a name of 64 bytes, but of nothing", &b, 4, FOLOLLM_E_UNSUPPORTED);
    put_shape(&b, "a-b", 1, ones, 0, at);
    b.bytes[9] = 0;
    tensor_case("a zero in a name", &b, 4, FOLOLLM_E_FORMAT);
    const uint64_t offsets[] = {0, at - 32, at + 1, at - 1, at + 8, at + 32, UINT64_MAX, UINT64_MAX - 31, INT64_MAX};
    for (size_t i = 0; i < FL_COUNT(offsets); i++) {
        put_shape(&b, "more", 1, ones, 0, offsets[i]);
        tensor_case("an offset that overlaps, leaves a hole or is not aligned", &b, 64, FOLOLLM_E_FORMAT);
    }
    put_shape(&b, "more", 1, ones, 0, at);
    tensor_case("data that is not there", &b, 3, FOLOLLM_E_FORMAT);
    for (uint32_t type = 0; type < inside_gguf_n_dtypes; type++) { /* 40 rows of 8 f16 are 640 bytes */
        change c = {.matrix_type = type};
        bool has_blocks = inside_gguf_dtype(type).name != NULL && inside_gguf_dtype(type).numbers > 1;
        hostile_change("the embedding has another type", &c,
                       has_blocks ? FOLOLLM_E_FORMAT : type == 1 || type == 30 || type == 0 ? ANY : REFUSED);
        CHECK(!has_blocks || strstr(error.text, "whole blocks") != NULL);
    }
    buffer_free(&b);
}

/* Rows of 8, of half a block and of one and a half: each type that comes in blocks says how many there must be. And
 * vectors, which do not come in blocks. */
static void test_rows(void) {
    for (uint32_t type = 0; type < inside_gguf_n_dtypes; type++) {
        const char *name = inside_gguf_dtype(type).name;
        uint32_t numbers = inside_gguf_dtype(type).numbers;
        const uint64_t rows[] = {8, numbers / 2, numbers + numbers / 2, numbers - 1, numbers + 1, 2 * numbers - 1};
        for (size_t i = 0; i < FL_COUNT(rows) && numbers > 1; i++) {
            const uint64_t sizes[] = {rows[i], 4};
            buffer b = {0};
            put_shape(&b, "more", 2, sizes, type, sound_offset);
            tensor_case("rows that are no whole blocks", &b, 4096, FOLOLLM_E_FORMAT);
            CHECK(strstr(error.text, "whole blocks") != NULL && strstr(error.text, name) != NULL);
            buffer_free(&b);
        }
    }
}

/* Sizes of every magnitude against arithmetic of 128 bits: what does not fit the file is never taken. */
static void test_products(void) {
#ifdef __SIZEOF_INT128__
    __extension__ typedef unsigned __int128 wide;
    static const uint64_t edges[] = {0, 1, 2, 32, 256, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 33,
                                     UINT64_C(1) << 62, INT64_MAX, UINT64_C(1) << 63, UINT64_MAX};
    buffer b = {0};
    size_t at = sound_offset;
    for (int i = 0; i < 4000; i++) {
        uint64_t sizes[4];
        uint32_t type, n_dims = (uint32_t)(random_next() % 5);
        do {
            type = (uint32_t)(random_next() % inside_gguf_n_dtypes);
        } while (inside_gguf_dtype(type).name == NULL);
        wide bytes = inside_gguf_dtype(type).bytes, limit = (wide)1 << 100;
        for (uint32_t d = 0; d < n_dims; d++) {
            sizes[d] = random_next() % 2 ? edges[random_next() % FL_COUNT(edges)] : random_next() >> random_next() % 64;
            sizes[d] = d == 0 ? sizes[d] / 256 * inside_gguf_dtype(type).numbers : sizes[d];
            wide n = d == 0 ? sizes[d] / inside_gguf_dtype(type).numbers : sizes[d];
            bytes = bytes > limit && n != 0 ? limit : bytes * n;
        }
        bool whole = n_dims > 0 || inside_gguf_dtype(type).numbers == 1;
        put_shape(&b, "more", n_dims, sizes, type, at);
        tensor_case("a product of sizes", &b, 64, !whole || bytes > 64 ? REFUSED : ANY);
    }
    buffer_free(&b);
#endif
}

/* A file that says that it is much longer than what there is of it: the rest is zeros. */
static uint64_t said_bytes;

static uint64_t said_size(void *user, void *file) {
    (void)user;
    (void)file;
    return said_bytes;
}

static int read_or_zero(void *user, void *handle, uint64_t offset, void *out, size_t n) {
    const host_file *f = *(host_file **)handle;
    (void)user;
    memset(out, 0, n);
    if (offset < f->n) {
        memcpy(out, f->bytes + offset, fl_min(n, f->n - (size_t)offset));
    }
    return 0;
}

/* Tensors of more than 4 GiB, and such as would only fit if sums wrapped. */
static void test_large(void) {
    const struct {
        uint64_t rows, second, behind; /* of 4 floats; floats of the second tensor; what the file has after both */
        int expected;
    } cases[] = {
        {1 << 30, 1, 0, FOLOLLM_OK},
        {1 << 30, 1, UINT64_MAX, FOLOLLM_E_FORMAT}, /* one byte short */
        {(uint64_t)1 << 58, 1, 0, FOLOLLM_OK},
        {((uint64_t)1 << 59) - 2, (uint64_t)1 << 60, 0, FOLOLLM_OK},
        {((uint64_t)1 << 59) - 2, ((uint64_t)1 << 61) - 1, 0, FOLOLLM_E_FORMAT}, /* together more than 64 bits */
        {(uint64_t)1 << 59, 1, 0, FOLOLLM_E_FORMAT}, /* alone more than 63 */
        {(uint64_t)1 << 60, 1, 0, FOLOLLM_E_FORMAT},
        {(uint64_t)1 << 62, 1, 0, FOLOLLM_E_FORMAT}, /* and numbers that wrap to none */
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        uint64_t sizes[] = {4, cases[i].rows}, bytes = cases[i].rows * 16, all = bytes + 4 * cases[i].second;
        test_host h;
        host_init(&h, true);
        h.hooks.file_size = said_size;
        h.hooks.file_read = read_or_zero;
        buffer file = {0}, b = {0};
        fl_memory m;
        fl_gguf g;
        put_start(&file, 2, 0);
        put_shape(&b, "large", 2, sizes, 0, 0);
        put(&file, b.bytes, b.n);
        put_shape(&b, "second", 1, &cases[i].second, 0, bytes);
        put(&file, b.bytes, b.n);
        pad(&file, 32);
        said_bytes = all < UINT64_MAX - file.n ? file.n + all + cases[i].behind : UINT64_MAX;
        host_put(&h, "m.gguf", file.bytes, file.n);
        fl_memory_init(&m, &h.hooks);
        folollm_status status = fl_gguf_open(&m, &g, "mem/m.gguf", &error);
        CHECK_TEXT((int)status == cases[i].expected && h.peak < 2u << 20, "tensors of gigabytes");
        if (status == FOLOLLM_OK) {
            CHECK(g.tensors[0].n_bytes == bytes && g.tensors[0].offset == file.n);
            CHECK(g.tensors[1].n_bytes == 4 * cases[i].second && g.tensors[1].offset == file.n + bytes);
            fl_gguf_close(&g);
        }
        CHECK(host_is_clean(&h));
        host_free(&h);
        buffer_free(&file);
        buffer_free(&b);
    }
}

static void test_rope(void) {
    static const uint32_t bits[] = {0x3F800000u, 0x41000000u, 0, 0x80000000u, 0xBF800000u, 0x7F800000u, 0xFF800000u,
                                    0x7FC00000u, 0x00000001u, 0x3F7FFFFFu, 0x7F7FFFFFu};
    for (size_t i = 0; i < FL_COUNT(bits); i++) {
        static const uint64_t two[] = {2};
        change c = {.n_tensors = 1, .extra = 8};
        buffer more = {0};
        put_shape(&more, "rope_freqs.weight", 1, two, 0, sound_offset);
        c.infos = &more;
        buffer b = make(&c);
        for (size_t k = 0; k < 8; k++) {
            b.bytes[b.n - 8 + k] = (uint8_t)(bits[i] >> (8 * (k % 4)));
        }
        hostile("divisors of frequencies", b.bytes, b.n, i < 2 ? FOLOLLM_OK : FOLOLLM_E_FORMAT);
        buffer_free(&b);
        buffer_free(&more);
    }
}

/* ---- Split files -- */

/* File `number` of n_files with the tensors [first, last) of the sound file, which says that it is another. */
static void put_split(uint32_t number, uint32_t n_files, size_t first, size_t last, uint32_t says,
                      uint32_t says_tensors) {
    char name[64];
    buffer b = {0};
    put_start(&b, last - first, 3 + (number == 0 ? FL_COUNT(sound_sizes) + 1 : 0));
    put_key(&b, "split.no", FL_GGUF_U16);
    put_number(&b, says, 2);
    put_key(&b, "split.count", FL_GGUF_U16);
    put_number(&b, n_files, 2);
    put_key(&b, "split.tensors.count", FL_GGUF_I32);
    put_number(&b, says_tensors, 4);
    if (number == 0) {
        put_key(&b, "general.architecture", FL_GGUF_STRING);
        put_text(&b, "llama");
    }
    for (size_t i = 0; number == 0 && i < FL_COUNT(sound_sizes); i++) {
        put_u32(&b, sound_sizes[i].key, sound_sizes[i].value);
    }
    size_t end = 0;
    for (size_t i = first; i < last; i++) {
        put_info(&b, sound_tensors[i].name, sound_tensors[i].rows, sound_tensors[i].cols, 0, end);
        end += 4u * sound_tensors[i].rows * (sound_tensors[i].cols != 0 ? sound_tensors[i].cols : 1);
        end = (end + 31) / 32 * 32;
    }
    pad(&b, 32);
    for (size_t i = 0; i < end / 4; i++) {
        put_number(&b, fl_bits_of_float(0.125f), 4);
    }
    snprintf(name, sizeof name, "s-%05u-of-%05u.gguf", number + 1, n_files);
    host_put(&host, name, b.bytes, b.n);
    buffer_free(&b);
}

static void split_case(const char *name, const char *path, int expected) {
    folollm_options o = {.host = &host.hooks, .context = 8, .chunk = 8, .n_threads = 1};
    folollm *f = NULL;
    memset(&error, 0, sizeof error);
    folollm_status status = folollm_load(path, &o, &f, &error);
    folollm_free(f);
    if (!CHECK_TEXT((int)status == expected && host_is_clean(&host), name)) {
        printf("    status %d, expected %d: %s\n", (int)status, expected, error.text);
    }
}

static void test_split(void) {
    const uint32_t n = FL_COUNT(sound_tensors);
    const char *first = "mem/s-00001-of-00003.gguf";
    for (size_t cut = 0; cut <= n; cut++) {
        put_split(0, 3, 0, cut / 2, 0, n);
        put_split(1, 3, cut / 2, cut, 1, n);
        put_split(2, 3, cut, n, 2, n);
        split_case("three files", first, FOLOLLM_OK);
    }
    split_case("the second is opened", "mem/s-00002-of-00003.gguf", FOLOLLM_E_FORMAT);
    CHECK(strstr(error.text, "-00001-of-00003.gguf") != NULL);
    put_split(1, 3, 5, n, 2, n);
    split_case("a number that is another's", first, FOLOLLM_E_FORMAT);
    put_split(1, 3, 0, 0, 1, n);
    put_split(0, 3, 0, n, 0, n + 1);
    put_split(2, 3, 0, 0, 2, n);
    split_case("a count of tensors that is not theirs", first, FOLOLLM_E_FORMAT);
    put_split(0, 3, 0, n, 0, n + 1);
    put_split(2, 3, 3, 4, 2, n);
    split_case("a tensor in two files", first, FOLOLLM_E_FORMAT);
    put_split(0, 3, 0, n, 0, n);
    host_remove(&host, "s-00003-of-00003.gguf");
    split_case("a file is missing", first, FOLOLLM_E_IO);
    CHECK(strstr(error.text, "s-00003-of-00003.gguf") != NULL);
    const host_file *f = host_find(&host, first + 4);
    host_put(&host, "other.gguf", f->bytes, f->n);
    split_case("a name that does not count", "mem/other.gguf", FOLOLLM_E_FORMAT);
    put_split(0, 1, 0, n, 0, n);
    split_case("a split into one", "mem/s-00001-of-00001.gguf", FOLOLLM_OK);
    put_split(0, 9999, 0, n, 0, n);
    split_case("more files than are read", "mem/s-00001-of-09999.gguf", FOLOLLM_E_FORMAT);
}

/* ---- Faults -- */

/* Every call of every kind fails in turn, once or from then on: a status, and nothing is kept. */
static void test_faults(fault kind, const char *path) {
    for (int forever = 0; forever < 2; forever++) {
        for (uint64_t at = 1; at < 4000; at++) {
            folollm_options o = {.host = &host.hooks, .context = 8, .chunk = 8, .n_threads = 1};
            folollm *f = NULL;
            memset(&error, 0, sizeof error);
            host.done = 0;
            host_arm(&host, kind, at, forever);
            folollm_status status = folollm_load(path, &o, &f, &error);
            uint64_t n_injected = host.n_injected;
            host_disarm(&host);
            folollm_free(f);
            bool ok = host_is_clean(&host) && (status == FOLOLLM_OK || error.text[0] != 0);
            ok = ok && (n_injected == 0 ? status == FOLOLLM_OK : status != FOLOLLM_OK || kind == FAULT_MAP);
            if (!CHECK(ok)) {
                printf("    fault %d at %llu: status %d, \"%s\"\n", (int)kind, (unsigned long long)at, (int)status,
                       error.text);
            }
            if (n_injected == 0) {
                break;
            }
        }
    }
}

static void put_sound(void) {
    static const change sound = {.align = 0};
    buffer b = make(&sound);
    host_put(&host, "m.gguf", b.bytes, b.n);
    buffer_free(&b);
    put_split(0, 2, 0, 5, 0, FL_COUNT(sound_tensors));
    put_split(1, 2, 5, FL_COUNT(sound_tensors), 1, FL_COUNT(sound_tensors));
}

int main(void) {
    test_metadata();
    test_paths();
    test_vectors();
    draw_weights();
    for (size_t i = 0; i < FL_COUNT(block_types); i++) {
        test_blocks(false, i);
        test_blocks(true, i);
    }
    for (size_t i = 0; i < FL_COUNT(file_types); i++) {
        test_file_type(false, i);
        test_file_type(true, i);
    }
    host_init(&host, true);
    test_refused();
    test_cut();
    for (size_t i = 0; i < FL_COUNT(weights); i++) {
        free(weights[i].values);
    }
    test_bytes();
    test_start();
    test_alignment();
    test_patterns();
    test_keys();
    test_pairs();
    test_entries();
    test_lengths();
    test_infos();
    test_rows();
    test_products();
    test_large();
    test_rope();
    test_split();
    put_sound();
    host.hooks.file_map = host_map;
    host.hooks.progress = host_progress;
    for (int kind = FAULT_ALLOCATE; kind < FAULT_COUNT; kind++) {
        test_faults((fault)kind, "mem/m.gguf");
        test_faults((fault)kind, "mem/s-00001-of-00002.gguf");
    }
    CHECK(host.n_injected_ever > 50);
    host_free(&host);
    printf("%u hostile files\n", n_cases);
    return check_finish();
}
