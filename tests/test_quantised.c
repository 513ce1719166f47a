/* Quantised Hugging Face checkpoints: what other packages wrote against what they decode (tests/vectors/quantised, from
 * tests/oracle/make_quantised.py); small models of every format and variant, packed here from known integers, against
 * the same model of floats and of blocks, by memcmp where nothing is rounded; what is damaged is refused.
 *
 *     cc -O2 -I. -Isrc tests/test_quantised.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "host.h"
#include "random.h"

#include <stdlib.h>

static folollm_error error;

/* ---- A safetensors file in the making -- */

typedef struct file {
    char header[32768];
    size_t n_header;
    uint8_t *data;
    size_t n_data, room;
} file;

static file *new_file(void) {
    file *f = calloc(1, sizeof *f);
    f->room = 1 << 22;
    f->data = calloc(1, f->room);
    return f;
}

/* Room for a tensor of zeros; n_cols 0: a vector. */
static uint8_t *add(file *f, const char *name, const char *type, size_t bytes, size_t n_rows, size_t n_cols) {
    size_t begin = f->n_data, n = n_rows * (n_cols != 0 ? n_cols : 1) * bytes;
    char shape[64];
    snprintf(shape, sizeof shape, n_cols != 0 ? "%zu,%zu" : "%zu", n_rows, n_cols);
    f->n_data += n;
    f->n_header += (size_t)snprintf(f->header + f->n_header, sizeof f->header - f->n_header,
                                    "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                    f->n_header == 0 ? '{' : ',', name, type, shape, begin, f->n_data);
    if (f->n_data > f->room || f->n_header + 1 >= sizeof f->header) {
        printf("a file of the test is too large\n");
        exit(2);
    }
    return f->data + begin;
}

static void put_file(test_host *h, file *f) {
    uint64_t n_header = f->n_header + 1;
    size_t n = 8 + (size_t)n_header + f->n_data;
    uint8_t *bytes = malloc(n);
    f->header[f->n_header] = '}';
    memcpy(bytes, &n_header, 8);
    memcpy(bytes + 8, f->header, (size_t)n_header);
    memcpy(bytes + 8 + n_header, f->data, f->n_data);
    host_put(h, "model.safetensors", bytes, n);
    free(bytes);
    free(f->data);
    free(f);
}

/* ---- Matrices of integers -- */

typedef struct variant {
    const char *format; /* "gptq", "awq", "pack", "int", "float", "fp8", "nf4", "nested" (nf4 as well), "int8" */
    unsigned bits, group; /* 0: whole rows */
    bool symmetric, ordered;
    const char *layout; /* checkpoint_format of gptq */
    bool half_zeros;    /* zero points as gptq_v2 stores them, whatever the layout says */
    const char *scales; /* "F16", "BF16", "F32" */
    fl_dtype type;      /* that it must become */
    bool exact;
} variant;

typedef struct matrix {
    size_t n_rows, n_cols, group, n_groups;
    uint8_t *q;      /* (n_rows, n_cols) */
    uint8_t *zeros;  /* (n_rows, n_groups); "nested": the integers of scales */
    float *scales;   /* (n_rows, n_groups) */
    uint32_t *groups; /* (n_cols) */
    float *w;        /* (n_rows, n_cols) what they stand for */
} matrix;

static bool is(const variant *v, const char *format) {
    return strcmp(v->format, format) == 0;
}

/* As the type of scales can hold it, and f16 beside bf16; "int8" stores 127 times that. */
static float stored_scale(const variant *v, float x) {
    if (is(v, "int8")) {
        return rintf(x * 65536) / 65536;
    }
    return strcmp(v->scales, "F16") == 0    ? fl_float_of_f16(fl_f16_of_float(x))
           : strcmp(v->scales, "BF16") == 0 ? fl_float_of_bf16(fl_bf16_of_float(x))
                                            : x;
}

/* Which group each column is in; the same for matrices of one seed. */
static void make_groups(const variant *v, matrix *m, uint64_t seed) {
    for (size_t i = 0; i < m->n_cols; i++) {
        m->groups[i] = (uint32_t)(i / m->group);
    }
    for (size_t i = m->n_cols; v->ordered && i-- > 1;) {
        seed += 0x9E3779B97F4A7C15u;
        size_t k = (size_t)(fl_mix(seed) % (i + 1));
        uint32_t g = m->groups[i];
        m->groups[i] = m->groups[k];
        m->groups[k] = g;
    }
}

static float table_of_four(size_t i) { /* some, of no order */
    return (float)((i * 7 + 3) % 16) / 8 - 0.9375f;
}

static float table_of_eight(size_t i) {
    return (float)i / 128 - 1;
}

#define NESTED_BLOCK 16u
#define OFFSET 0.046875f

static float nested_scale(size_t i) {
    return (float)(i % 5 + 1) / 256;
}

/* Numbers that no integer stands for, or that integers stand for in another way. */
static void make_numbers(const variant *v, matrix *m) {
    for (size_t i = 0; i < m->n_rows * m->n_groups; i++) {
        size_t row = i / m->n_groups, first = row / 128 * 128 * m->n_groups + i % m->n_groups;
        m->zeros[i] = (uint8_t)random_below(256);
        if (is(v, "nested")) {
            m->scales[i] = (table_of_eight(m->zeros[i]) * nested_scale(i / NESTED_BLOCK) + OFFSET);
        } else if (is(v, "fp8") && i != first) {
            m->scales[i] = m->scales[first];
        }
    }
    for (size_t i = 0; i < m->n_rows * m->n_cols; i++) {
        float scale = m->scales[i / m->n_cols * m->n_groups + i % m->n_cols / m->group];
        if (is(v, "fp8") || is(v, "float")) {
            m->q[i] = (uint8_t)(random_below(2) << 7 | random_below(88));
            uint32_t exponent = m->q[i] >> 3 & 15;
            double size = exponent != 0 ? ldexp(8 + (m->q[i] & 7), (int)exponent - 10) : ldexp(m->q[i] & 7, -9);
            m->w[i] = (float)(m->q[i] >= 128 ? -size : size) * scale;
        } else if (v->bits == 4) {
            m->w[i] = table_of_four(m->q[i]) * scale;
        }
    }
}

static matrix make_matrix(const variant *v, size_t n_rows, size_t n_cols, uint64_t seed) {
    matrix m = {.n_rows = n_rows, .n_cols = n_cols, .group = v->group != 0 ? v->group : n_cols};
    uint32_t range = 1u << v->bits;
    m.n_groups = fl_div_up(n_cols, m.group);
    m.q = malloc(n_rows * n_cols);
    m.zeros = malloc(n_rows * m.n_groups);
    m.scales = malloc(n_rows * m.n_groups * sizeof *m.scales);
    m.groups = malloc(n_cols * sizeof *m.groups);
    m.w = malloc(n_rows * n_cols * sizeof *m.w);
    make_groups(v, &m, seed);
    bool less_one = is(v, "gptq") && strcmp(v->layout, "gptq_v2") != 0;
    for (size_t i = 0; i < n_rows * m.n_groups; i++) {
        float scale = (0.2f + (float)random_below(1000) / 1000) / (float)range * 0.2f;
        m.scales[i] = stored_scale(v, scale);
        m.zeros[i] = (uint8_t)(v->symmetric ? range / 2 : random_below(range - less_one) + less_one);
    }
    for (size_t i = 0; i < n_rows * n_cols; i++) {
        size_t at = i / n_cols * m.n_groups + m.groups[i % n_cols];
        m.q[i] = (uint8_t)random_below(range);
        m.w[i] = (float)((int)m.q[i] - (int)m.zeros[at]) * m.scales[at];
    }
    if (!is(v, "gptq") && !is(v, "awq") && !is(v, "pack") && !is(v, "int") && !is(v, "int8")) {
        make_numbers(v, &m);
    }
    return m;
}

static void free_matrix(matrix *m) {
    free(m->q);
    free(m->zeros);
    free(m->scales);
    free(m->groups);
    free(m->w);
}

/* Bits from `bit` on of words that lie `stride` apart. */
static void put_bits(uint8_t *words, size_t stride, size_t bit, unsigned bits, uint32_t value) {
    for (unsigned i = 0; i < bits; i++, bit++) {
        words[4 * stride * (bit / 32) + bit % 32 / 8] |= (uint8_t)((value >> i & 1) << bit % 8);
    }
}

static void put_scale(const variant *v, uint8_t *scales, size_t at, float scale) {
    uint16_t half = strcmp(v->scales, "F16") == 0 ? fl_f16_of_float(scale) : fl_bf16_of_float(scale);
    if (strcmp(v->scales, "F32") == 0) {
        memcpy(scales + 4 * at, &scale, 4);
    } else {
        memcpy(scales + 2 * at, &half, 2);
    }
}

/* The tensors of a module with a byte, or half of one, for a number. */
static void add_bytes(file *f, const variant *v, const char *module, const matrix *m) {
    char name[160], state[256];
    size_t r = m->n_rows, c = m->n_cols, g = m->n_groups;
    bool four = v->bits == 4, nested = is(v, "nested"), fp8 = is(v, "fp8") || is(v, "float");
    snprintf(name, sizeof name, "%s.weight", module);
    uint8_t *weight = add(f, name, four ? "U8" : fp8 ? "F8_E4M3" : "I8", 1, four ? r * c / 2 : r, four ? 1 : c);
    for (size_t i = 0; i < r * c; i++) {
        if (four) {
            weight[i / 2] |= (uint8_t)(i % 2 == 0 ? m->q[i] << 4 : m->q[i]);
        } else {
            weight[i] = fp8 ? m->q[i] : m->q[i] ^ 128;
        }
    }
    size_t rows = is(v, "fp8") ? fl_div_up(r, 128) : r;
    const char *suffix = is(v, "fp8") ? "_scale_inv" : is(v, "int8") ? "" : four ? ".absmax" : "_scale";
    snprintf(name, sizeof name, is(v, "int8") ? "%s.SCB" : "%s.weight%s", module, suffix);
    uint8_t *scales = add(f, name, nested ? "U8" : v->scales, nested ? 1 : strcmp(v->scales, "F32") == 0 ? 4 : 2,
                          four ? r * g : rows, four || is(v, "int8") ? 0 : g);
    for (size_t i = 0; i < rows * g; i++) {
        size_t at = is(v, "fp8") ? i / g * 128 * g + i % g : i;
        if (nested) {
            scales[i] = m->zeros[i];
        } else {
            put_scale(v, scales, i, m->scales[at] * (is(v, "int8") ? 127.0f : 1));
        }
    }
    if (!four) {
        return;
    }
    int n = snprintf(state, sizeof state, "{\"quant_type\": \"nf4\", \"blocksize\": %zu, \"shape\": [%zu, %zu], "
                     "\"nested_blocksize\": %u, \"nested_offset\": %g}", m->group, r, c, NESTED_BLOCK, (double)OFFSET);
    snprintf(name, sizeof name, "%s.weight.quant_state.bitsandbytes__nf4", module);
    memcpy(add(f, name, "U8", 1, (size_t)n, 0), state, (size_t)n);
    snprintf(name, sizeof name, "%s.weight.quant_map", module);
    uint8_t *table = add(f, name, "F32", 4, 16, 0);
    for (size_t i = 0; i < 16; i++) {
        float x = table_of_four(i);
        memcpy(table + 4 * i, &x, 4);
    }
    if (!nested) {
        return;
    }
    snprintf(name, sizeof name, "%s.weight.nested_quant_map", module);
    table = add(f, name, "F32", 4, 256, 0);
    snprintf(name, sizeof name, "%s.weight.nested_absmax", module);
    scales = add(f, name, "F32", 4, fl_div_up(r * g, NESTED_BLOCK), 0);
    for (size_t i = 0; i < 256; i++) {
        float x = table_of_eight(i);
        memcpy(table + 4 * i, &x, 4);
    }
    for (size_t i = 0; i < fl_div_up(r * g, NESTED_BLOCK); i++) {
        float x = nested_scale(i);
        memcpy(scales + 4 * i, &x, 4);
    }
}

/* The tensors of a module as v says. */
static void add_module(file *f, const variant *v, const char *module, const matrix *m) {
    if (!is(v, "gptq") && !is(v, "awq") && !is(v, "pack")) {
        add_bytes(f, v, module, m);
        return;
    }
    char name[8][128];
    static const char *const suffixes[] = {"qweight", "qzeros", "scales", "g_idx", "weight_packed",
                                           "weight_zero_point", "weight_scale", "weight_g_idx"};
    static const unsigned awq_rows[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* which row the i-th nibble belongs to */
    for (size_t i = 0; i < 8; i++) {
        snprintf(name[i], sizeof name[i], "%s.%s", module, suffixes[i]);
    }
    bool pack = is(v, "pack"), awq = is(v, "awq");
    size_t r = m->n_rows, c = m->n_cols, g = m->n_groups, words = fl_div_up(c * v->bits, 32);
    size_t zero_words = fl_div_up(r * v->bits, 32), scale_bytes = strcmp(v->scales, "F32") == 0 ? 4 : 2;
    uint8_t *weight = pack ? add(f, name[4], "I32", 4, r, words)
                           : add(f, name[0], "I32", 4, awq ? c : words, awq ? zero_words : r);
    uint8_t *scales = add(f, name[pack ? 6 : 2], v->scales, scale_bytes, pack ? r : g, pack ? g : r), *zeros = NULL;
    if (!pack || !v->symmetric) {
        zeros = add(f, name[pack ? 5 : 1], "I32", 4, pack ? zero_words : g, pack ? g : zero_words);
    }
    if (is(v, "gptq") || v->ordered) {
        memcpy(add(f, name[pack ? 7 : 3], "I32", 4, c, 0), m->groups, c * 4);
    }
    bool less_one = is(v, "gptq") && strcmp(v->layout, "gptq_v2") != 0 && !v->half_zeros;
    for (size_t row = 0; row < r; row++) {
        size_t in_awq = row / 8 * 8;
        while (awq && awq_rows[in_awq % 8] != row % 8) {
            in_awq++;
        }
        for (size_t i = 0; i < c; i++) {
            uint32_t q = m->q[row * c + i];
            if (awq) {
                put_bits(weight + 4 * i * zero_words, 1, 4 * in_awq, 4, q);
            } else if (pack) {
                put_bits(weight + 4 * row * words, 1, i * v->bits, v->bits, q);
            } else {
                put_bits(weight + 4 * row, r, i * v->bits, v->bits, q);
            }
        }
        for (size_t group = 0; group < g; group++) {
            uint32_t zero = (uint32_t)m->zeros[row * g + group] - less_one;
            put_scale(v, scales, pack ? row * g + group : group * r + row, m->scales[row * g + group]);
            if (zeros != NULL && pack) {
                put_bits(zeros + 4 * group, g, row * v->bits, v->bits, zero);
            } else if (zeros != NULL) {
                put_bits(zeros + 4 * group * zero_words, 1, (awq ? in_awq : row) * v->bits, v->bits, zero);
            }
        }
    }
    if (pack) {
        int64_t shape[2] = {(int64_t)r, (int64_t)c};
        char shape_name[128];
        snprintf(shape_name, sizeof shape_name, "%s.weight_shape", module);
        memcpy(add(f, shape_name, "I64", 8, 2, 0), shape, sizeof shape);
    }
}

/* ---- A model -- */

#define DIM 128u
#define KV 64u
#define FFN 256u
#define VOCAB 96u
#define LAYERS 2u
#define LENGTH 40

static const struct {
    const char *name;
    size_t n_rows, n_cols;
    uint64_t order; /* matrices of equal numbers have their columns in the same order */
} linears[] = {{"self_attn.q_proj", DIM, DIM, 1}, {"self_attn.k_proj", KV, DIM, 2}, {"self_attn.v_proj", KV, DIM, 1},
               {"self_attn.o_proj", DIM, DIM, 3}, {"mlp.gate_proj", FFN, DIM, 4},   {"mlp.up_proj", FFN, DIM, 4},
               {"mlp.down_proj", DIM, FFN, 5}};

typedef struct model {
    variant v;
    matrix matrices[LAYERS * FL_COUNT(linears)], head;
    test_host as_stored, as_floats, as_blocks; /* the last only if has_blocks */
} model;

static const char config_of_model[] =
    "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"intermediate_size\":256,"
    "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"max_position_embeddings\":512,\"tie_word_embeddings\":false%s%s}";

static void quantisation_of(const variant *v, char *text, size_t room) {
    int group = v->group != 0 ? (int)v->group : -1;
    const char *symmetric = v->symmetric ? "true" : "false";
    if (is(v, "gptq")) {
        snprintf(text, room, "{\"quant_method\":\"gptq\",\"bits\":%u,\"group_size\":%d,\"sym\":%s,\"desc_act\":%s,"
                 "\"checkpoint_format\":\"%s\"}", v->bits, group, symmetric, v->ordered ? "true" : "false", v->layout);
    } else if (is(v, "awq")) {
        snprintf(text, room, "{\"quant_method\":\"awq\",\"bits\":%u,\"group_size\":%d,\"version\":\"gemm\","
                 "\"zero_point\":true,\"modules_to_not_convert\":null}", v->bits, group);
    } else if (is(v, "fp8")) {
        snprintf(text, room, "{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\","
                 "\"weight_block_size\":[128,128]}");
    } else if (is(v, "nf4") || is(v, "nested") || is(v, "int8")) {
        snprintf(text, room, "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":%s,\"load_in_8bit\":%s}",
                 v->bits == 4 ? "true" : "false", v->bits == 8 ? "true" : "false");
    } else {
        const char *name = is(v, "pack") ? "pack" : is(v, "int") ? "int" : "float";
        snprintf(text, room, "{\"quant_method\":\"compressed-tensors\",\"format\":\"%s-quantized\",\"ignore\":"
                 "[\"lm_head\"],\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":%u,"
                 "\"type\":\"%s\",\"symmetric\":%s,\"strategy\":\"%s\",\"group_size\":%d,\"actorder\":%s}}}}",
                 name, v->bits, is(v, "float") ? "float" : "int", symmetric, v->group != 0 ? "group" : "channel", group,
                 v->ordered ? "\"group\"" : "null");
    }
}

static void put_config(test_host *h, const variant *v, bool quantised) {
    char quantisation[1024], config[2048];
    quantisation_of(v, quantisation, sizeof quantisation);
    snprintf(config, sizeof config, config_of_model, quantised ? ",\"quantization_config\":" : "",
             quantised ? quantisation : "");
    host_put_text(h, "config.json", config);
}

static void add_floats(file *f, const char *name, size_t n_rows, size_t n_cols, const float *x) {
    memcpy(add(f, name, "F32", 4, n_rows, n_cols), x, n_rows * (n_cols != 0 ? n_cols : 1) * 4);
}

/* A module as blocks of v.type, as folollm_quantize writes them. */
static void add_blocks(file *f, const variant *v, const char *module, const matrix *m) {
    char name[160];
    size_t row_bytes = fl_row_bytes(v->type, m->n_cols), panel = fl_panel_bytes(v->type, m->n_cols);
    uint8_t *rows = calloc(FL_PANEL, row_bytes);
    snprintf(name, sizeof name, "%s.weight.%s", module, fl_dtype_name(v->type));
    uint8_t *out = add(f, name, "U8", 1, fl_div_up(m->n_rows, FL_PANEL), panel);
    for (size_t row = 0; row < m->n_rows; row++) {
        uint8_t *to = rows + row % FL_PANEL * row_bytes;
        const uint8_t *q = m->q + row * m->n_cols;
        memcpy(to, m->scales + row, v->type == FL_Q8_ROW ? 4 : 0);
        for (size_t i = 0; i < m->n_cols; i++) {
            size_t at = row * m->n_groups + m->groups[i], unit = i / 32, k = i % 32;
            int n = (int)q[i] - (int)m->zeros[at];
            uint16_t scale = fl_f16_of_float(m->scales[at]);
            if (v->type == FL_Q8_ROW) {
                to[4 + i] = (uint8_t)n;
                continue;
            }
            bool with_zeros = v->type == FL_Q4_ZERO;
            uint8_t *block = to + unit * (v->type == FL_Q8_0 ? 34 : with_zeros ? 19 : 18);
            uint8_t *nibble = block + 2 + with_zeros + k % 16;
            memcpy(block, &scale, 2);
            if (with_zeros) {
                block[2] = m->zeros[at];
                n = (int)q[i] - 8;
            }
            if (v->type == FL_Q8_0) {
                block[2 + k] = (uint8_t)n;
            } else {
                *nibble = (uint8_t)(k < 16 ? n + 8 : *nibble | (n + 8) << 4);
            }
        }
        if (row % FL_PANEL == FL_PANEL - 1 || row == m->n_rows - 1) {
            fl_pack(v->type, rows, row % FL_PANEL + 1, m->n_cols, out + row / FL_PANEL * panel);
        }
    }
    free(rows);
}

/* Can the same integers be given as packed blocks? */
static bool has_blocks(const variant *v) {
    return v->exact && !v->ordered;
}

/* One module into all files. */
static void add_everywhere(file *files[3], const variant *v, const char *module, const matrix *m) {
    char name[160];
    snprintf(name, sizeof name, "%s.weight", module);
    add_module(files[0], v, module, m);
    add_floats(files[1], name, m->n_rows, m->n_cols, m->w);
    if (has_blocks(v)) {
        add_blocks(files[2], v, module, m);
    }
}

static model *make_model(variant v, bool quantised_head) {
    model *m = calloc(1, sizeof *m);
    test_host *hosts[] = {&m->as_stored, &m->as_floats, &m->as_blocks};
    file *files[3];
    float *table = malloc(VOCAB * DIM * sizeof *table), norm[DIM];
    char name[128];
    m->v = v;
    for (size_t i = 0; i < VOCAB * DIM; i++) {
        table[i] = random_float() * 0.4f;
    }
    for (size_t i = 0; i < 3; i++) {
        files[i] = new_file();
        host_init(hosts[i], true);
        put_config(hosts[i], &v, i == 0);
        add_floats(files[i], "model.embed_tokens.weight", VOCAB, DIM, table);
    }
    m->head = make_matrix(&v, VOCAB, DIM, 6);
    if (quantised_head) {
        add_everywhere(files, &v, "lm_head", &m->head);
    }
    for (size_t i = 0; i < 3 && !quantised_head; i++) {
        add_floats(files[i], "lm_head.weight", VOCAB, DIM, m->head.w);
    }
    for (unsigned l = 0; l <= LAYERS; l++) {
        for (unsigned k = 0; k < (l < LAYERS ? 2u : 1u); k++) {
            snprintf(name, sizeof name, "model.layers.%u.%s_layernorm.weight", l, k == 0 ? "input" : "post_attention");
            for (size_t i = 0; i < DIM; i++) {
                norm[i] = 1 + 0.1f * random_float();
            }
            for (size_t i = 0; i < 3; i++) {
                add_floats(files[i], l < LAYERS ? name : "model.norm.weight", DIM, 0, norm);
            }
        }
        for (size_t i = 0; i < FL_COUNT(linears) && l < LAYERS; i++) {
            matrix *one = &m->matrices[l * FL_COUNT(linears) + i];
            *one = make_matrix(&v, linears[i].n_rows, linears[i].n_cols, linears[i].order);
            snprintf(name, sizeof name, "model.layers.%u.%s", l, linears[i].name);
            add_everywhere(files, &v, name, one);
        }
    }
    for (size_t i = 0; i < 3; i++) {
        put_file(hosts[i], files[i]);
    }
    free(table);
    return m;
}

static void free_model(model *m) {
    test_host *hosts[] = {&m->as_stored, &m->as_floats, &m->as_blocks};
    for (size_t i = 0; i < 3; i++) {
        CHECK(host_is_clean(hosts[i]));
        host_free(hosts[i]);
    }
    for (size_t i = 0; i < FL_COUNT(m->matrices); i++) {
        free_matrix(&m->matrices[i]);
    }
    free_matrix(&m->head);
    free(m);
}

static folollm *open_model(test_host *h, folollm_options o) {
    folollm *f = NULL;
    o.host = &h->hooks;
    o.kv = FOLOLLM_KV_F32;
    if (folollm_load("mem", &o, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    return f;
}

static folollm_token prompt[LENGTH];

/* (LENGTH, VOCAB) */
static float *logits_of(test_host *h, folollm_options o) {
    folollm *f = open_model(h, o);
    folollm_seq seq = 0;
    float *logits = malloc((size_t)LENGTH * VOCAB * sizeof *logits);
    CHECK(folollm_seq_open(f, NULL, &seq, NULL) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, prompt, LENGTH, logits, NULL) == FOLOLLM_OK);
    folollm_free(f);
    return logits;
}

/* Squared error of b by the size of a. */
static double nmse(const float *a, const float *b) {
    double off = 0, size = 0;
    for (size_t i = 0; i < (size_t)LENGTH * VOCAB; i++) {
        off += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)a[i] * (double)a[i];
    }
    return off / size;
}

static bool equal(const float *a, const float *b) {
    return memcmp(a, b, (size_t)LENGTH * VOCAB * sizeof *a) == 0;
}

/* What a loaded matrix holds against what its integers stand for; bf16 is that, rounded. */
static void check_values(const folollm *f, const fl_matrix *loaded, uint32_t part, const matrix *m, bool exact) {
    fl_slab *slab = malloc(sizeof *slab);
    float *row = malloc(m->n_cols * sizeof *row);
    double off = 0, size = 0;
    size_t differ = 0;
    for (size_t r = 0; r < m->n_rows; r++) {
        const fl_part *p = &loaded->parts[part];
        if (p->type == FL_BF16) {
            fl_to_float(FL_BF16, (const uint16_t *)p->data + r * m->n_cols, m->n_cols, row);
        } else {
            inside_open_rows(&f->worker.cpu, p, m->n_cols, r, 1, slab, row, 0);
        }
        for (size_t i = 0; i < m->n_cols; i++) {
            float w = m->w[r * m->n_cols + i];
            differ += exact && row[i] != w;
            differ += p->type == FL_BF16 && row[i] != fl_float_of_bf16(fl_bf16_of_float(w));
            off += ((double)row[i] - (double)w) * ((double)row[i] - (double)w);
            size += (double)w * (double)w;
        }
    }
    CHECK(differ == 0 && off <= (exact ? 0 : 1e-4) * size);
    free(row);
    free(slab);
}

static void check_matrices(const model *m, const folollm *f) {
    for (unsigned l = 0; l < LAYERS; l++) {
        const fl_layer *layer = &f->checkpoint->weights.layers[l];
        const fl_matrix *loaded[] = {&layer->qkv, &layer->qkv, &layer->qkv, &layer->o,
                                     &layer->gate_up, &layer->gate_up, &layer->down};
        static const uint32_t parts[] = {0, 1, 2, 0, 0, 1, 0};
        for (size_t i = 0; i < FL_COUNT(linears); i++) {
            CHECK(loaded[i]->parts[parts[i]].type == m->v.type);
            check_values(f, loaded[i], parts[i], &m->matrices[l * FL_COUNT(linears) + i], m->v.exact);
        }
    }
}

/* The plan is kept to the byte, with files read and mapped. */
static void check_plan(model *m) {
    for (int mapped = 0; mapped < 2; mapped++) {
        test_host *h = &m->as_stored;
        folollm_memory plan;
        h->hooks.file_map = mapped ? host_map : NULL;
        folollm_options o = {.host = &h->hooks, .n_threads = 2};
        folollm *f = NULL;
        h->peak = h->live;
        CHECK(folollm_plan("mem", &o, &plan, &error) == FOLOLLM_OK);
        CHECK(h->live == 0 && h->peak <= plan.allocated + plan.temporary);
        h->peak = 0;
        CHECK(folollm_load("mem", &o, &f, &error) == FOLOLLM_OK);
        CHECK(h->live == plan.allocated && h->peak <= plan.allocated + plan.temporary);
        folollm_free(f);
    }
    m->as_stored.hooks.file_map = NULL;
}

/* Loaded values are those of the integers; logits are those of the same integers as blocks, and in float mode those of
 * the floats, to the bit; with integers they are close. */
static void check_model(variant v, bool quantised_head) {
    static const folollm_options floats = {.float_activations = 1}, none = {.n_threads = 2};
    model *m = make_model(v, quantised_head);
    folollm *f = open_model(&m->as_stored, none);
    check_matrices(m, f);
    folollm_free(f);
    check_plan(m);
    float *exact = logits_of(&m->as_floats, floats), *opened = logits_of(&m->as_stored, floats);
    float *first = logits_of(&m->as_stored, none);
    CHECK(v.exact ? equal(exact, opened) : nmse(exact, opened) < 1e-3);
    CHECK(nmse(exact, first) < 1e-3);
    if (has_blocks(&v)) {
        float *blocks = logits_of(&m->as_blocks, none);
        CHECK(equal(blocks, first));
        free(blocks);
    }
    for (int isa = FOLOLLM_ISA_SCALAR; isa <= FOLOLLM_ISA_NEON; isa++) {
        for (uint32_t chunk = 1; chunk < 40 && fl_kernels_of((folollm_isa)isa) != NULL; chunk = chunk * 3 + 2) {
            folollm_options o = {.isa = (folollm_isa)isa, .chunk = chunk, .n_threads = 1 + chunk % 3};
            float *other = logits_of(&m->as_stored, o);
            CHECK(equal(first, other));
            free(other);
        }
    }
    free(exact);
    free(opened);
    free(first);
    free_model(m);
}

/* Sequences that go on together give what each gives alone. */
static void check_batch(variant v) {
    model *m = make_model(v, true);
    float *alone = logits_of(&m->as_stored, (folollm_options){.n_threads = 1});
    folollm *f = open_model(&m->as_stored, (folollm_options){.n_threads = 2, .max_seqs = 20, .pool_tokens = 2048});
    folollm_seq seqs[20];
    folollm_token tokens[20];
    size_t at[20];
    for (size_t i = 0; i < 20; i++) {
        at[i] = 1 + i;
        CHECK(folollm_seq_open(f, NULL, &seqs[i], NULL) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seqs[i], prompt, at[i], NULL, NULL) == FOLOLLM_OK);
    }
    for (size_t n = 1; n <= 20; n += 3) {
        for (size_t i = 0; i < n; i++) {
            tokens[i] = prompt[at[i]];
        }
        CHECK(folollm_decode_step(f, seqs, tokens, n, NULL) == FOLOLLM_OK);
        for (size_t i = 0; i < n; i++) {
            const float *logits = NULL;
            CHECK(folollm_logits(f, seqs[i], &logits, NULL) == FOLOLLM_OK);
            CHECK(logits != NULL && memcmp(logits, alone + at[i] * VOCAB, VOCAB * sizeof *logits) == 0);
            at[i]++;
        }
    }
    folollm_free(f);
    free(alone);
    free_model(m);
}

static const variant variants[] = {
    {"gptq", 4, 128, true, false, "gptq", false, "F16", FL_Q4_0, true},
    {"gptq", 4, 32, true, false, "gptq_v2", true, "F16", FL_Q4_0, true},
    {"gptq", 4, 64, true, false, "gptq", true, "F16", FL_Q4_0, true},
    {"gptq", 4, 0, true, false, "gptq", false, "F16", FL_Q4_0, true},
    {"gptq", 8, 32, true, false, "gptq", false, "F16", FL_Q8_0, true},
    {"gptq", 8, 64, true, false, "gptq", true, "F16", FL_Q8_0, true},
    {"gptq", 8, 0, true, false, "gptq_v2", true, "F16", FL_Q8_ROW, true},
    {"gptq", 3, 64, true, false, "gptq", false, "F16", FL_Q4_0, true},
    {"gptq", 2, 32, true, false, "gptq", false, "F16", FL_Q4_0, true},
    {"gptq", 2, 0, true, false, "gptq_v2", true, "F16", FL_Q4_0, true},
    {"gptq", 4, 64, false, false, "gptq", false, "F16", FL_Q4_ZERO, true},
    {"gptq", 4, 0, false, false, "gptq_v2", false, "F16", FL_Q4_ZERO, true},
    {"gptq", 3, 32, false, false, "gptq", false, "F16", FL_Q4_ZERO, true},
    {"gptq", 2, 64, false, false, "gptq_v2", false, "F16", FL_Q4_ZERO, true},
    {"gptq", 8, 64, false, false, "gptq", false, "F16", FL_Q8_0, false},
    {"gptq", 4, 16, true, false, "gptq", false, "F16", FL_Q8_0, false},
    {"gptq", 4, 32, true, true, "gptq", false, "F16", FL_Q4_0, true},
    {"gptq", 4, 64, false, true, "gptq_v2", false, "F16", FL_Q4_ZERO, true},
    {"gptq", 3, 64, false, true, "gptq", false, "F16", FL_Q4_ZERO, true},
    {"gptq", 8, 32, true, true, "gptq", false, "F16", FL_Q8_0, true},
    {"gptq", 8, 32, false, true, "gptq", false, "F16", FL_Q8_0, false},
    {"gptq", 4, 16, false, true, "gptq", false, "F16", FL_Q8_0, false},
    {"gptq", 4, 0, true, true, "gptq", false, "F16", FL_Q4_0, true},
    {"awq", 4, 128, false, false, "", false, "F16", FL_Q4_ZERO, true},
    {"awq", 4, 32, false, false, "", false, "F16", FL_Q4_ZERO, true},
    {"awq", 4, 0, false, false, "", false, "BF16", FL_Q4_ZERO, true},
    {"pack", 4, 64, true, false, "", false, "BF16", FL_Q4_0, true},
    {"pack", 4, 32, false, false, "", false, "F16", FL_Q4_ZERO, true},
    {"pack", 4, 0, true, false, "", false, "F16", FL_Q4_0, true},
    {"pack", 4, 32, true, true, "", false, "BF16", FL_Q4_0, true},
    {"pack", 8, 0, true, false, "", false, "F32", FL_Q8_ROW, true},
    {"pack", 8, 64, true, false, "", false, "F16", FL_Q8_0, true},
    {"pack", 8, 0, false, false, "", false, "F16", FL_Q8_0, false},
    {"int", 8, 0, true, false, "", false, "BF16", FL_Q8_ROW, true},
    {"int8", 8, 0, true, false, "", false, "F32", FL_Q8_ROW, true},
    {"float", 8, 0, true, false, "", false, "BF16", FL_BF16, false},
    {"fp8", 8, 128, true, false, "", false, "F32", FL_BF16, false},
    {"nf4", 4, 64, true, false, "", false, "F32", FL_Q8_0, false},
    {"nested", 4, 64, true, false, "", false, "F32", FL_Q8_0, false},
};

/* ---- What other packages wrote -- */

static const char *const vectors[] = {
    "gptq-4-sym", "gptq-4-zeros", "gptq-4-sym-order", "gptq-4-zeros-order-v2", "gptq-2-zeros", "gptq-3-sym",
    "gptq-3-zeros-order", "gptq-8-sym-whole", "gptq-8-zeros", "awq-4", "awq-4-whole", "compressed-4-sym",
    "compressed-4-zeros", "compressed-4-whole", "compressed-8-whole", "compressed-8-zeros", "bitsandbytes-nf4",
    "bitsandbytes-fp4", "bitsandbytes-8", "fp8-blocks", "fp8-rows"};

/* A matrix of a file against what its package decodes: as floats, and packed. */
static void check_decoded(fl_quantised *q, const char *name, const float *reference) {
    fl_matrix matrix = {.n_rows = q->n_rows, .n_cols = q->n_cols, .n_parts = 1};
    fl_slab *slab = malloc(sizeof *slab);
    uint8_t *raw = malloc(fl_quantised_bytes(q));
    uint32_t *order = malloc(q->n_cols * sizeof *order);
    float *row = malloc(q->n_cols * sizeof *row), *y = malloc(q->n_cols * sizeof *y);
    uint8_t *rows = malloc(FL_PANEL * (4 + 4 * q->n_cols));
    uint8_t *packed = malloc(fl_matrix_bytes(q->type, q->n_rows, q->n_cols));
    CHECK(fl_quantised_read(q, raw, &error) == FOLOLLM_OK);
    CHECK(!q->ordered || fl_quantised_sort(q, order, &error) == FOLOLLM_OK);
    bool close = strcmp(name, "bitsandbytes-8") == 0; /* multiplies by 1 / 127 after all else */
    size_t row_bytes = fl_row_bytes(q->type, q->n_cols), differ = 0;
    for (size_t r = 0; r < q->n_rows; r++) {
        fl_quantised_floats(q, r, row);
        for (size_t i = 0; i < q->n_cols; i++) {
            float x = reference[r * q->n_cols + i];
            differ += close ? fabsf(row[i] - x) > 3e-7f * fabsf(x) : row[i] != x;
        }
        if (q->exact) {
            fl_quantised_row(q, r, (uint8_t *)y, rows + r % FL_PANEL * row_bytes);
        }
        if (q->exact && (r % FL_PANEL == FL_PANEL - 1 || r == q->n_rows - 1)) {
            fl_pack(q->type, rows, r % FL_PANEL + 1, q->n_cols,
                    packed + r / FL_PANEL * fl_panel_bytes(q->type, q->n_cols));
        }
    }
    fl_cpu_backend cpu = {.kernels = fl_kernels_of(FOLOLLM_ISA_BEST)};
    matrix.parts[0] = (fl_part){.data = packed, .n_rows = q->n_rows, .type = q->type, .order = q->order};
    for (size_t r = 0; r < q->n_rows && q->exact; r++) {
        fl_quantised_floats(q, r, row);
        inside_open_rows(&cpu, &matrix.parts[0], q->n_cols, r, 1, slab, y, 0);
        differ += memcmp(row, y, q->n_cols * sizeof *y) != 0;
    }
    CHECK_TEXT(differ == 0, name);
    free(slab);
    free(raw);
    free(order);
    free(row);
    free(y);
    free(rows);
    free(packed);
}

static void test_vectors(void) {
    for (size_t i = 0; i < FL_COUNT(vectors); i++) {
        char path[256];
        fl_memory memory;
        fl_tensors tensors;
        fl_str text;
        fl_json doc;
        fl_quantisation how;
        fl_quantised q;
        snprintf(path, sizeof path, "tests/vectors/quantised/%s", vectors[i]);
        fl_memory_init(&memory, NULL);
        if (!CHECK_TEXT(fl_tensors_open(&memory, &tensors, path, NULL, &error) == FOLOLLM_OK, path)) {
            continue;
        }
        CHECK(fl_file_slurp(&memory, path, "config.json", 65536, NULL, &text, &error) == FOLOLLM_OK);
        CHECK(fl_json_parse(&memory, &doc, "config.json", text, &error) == FOLOLLM_OK);
        folollm_status status =
            fl_quantisation_read(&how, &doc, fl_json_get(&doc, 0, "quantization_config"), &error);
        const fl_tensor *reference = fl_tensors_find(&tensors, fl_str_of("m.reference"));
        float *x = malloc((size_t)reference->n_bytes);
        CHECK(fl_file_read(&tensors.files[0], reference->offset, x, (size_t)reference->n_bytes, &error) == FOLOLLM_OK);
        if (status == FOLOLLM_OK) {
            status = fl_quantised_find(&tensors, &how, fl_str_of("m"), (size_t)reference->shape[0],
                                       (size_t)reference->shape[1], &q, &error);
        }
        if (CHECK_TEXT(status == FOLOLLM_OK && q.tensors[FL_QUANT_WEIGHT] != NULL, path)) {
            check_decoded(&q, vectors[i], x);
        } else {
            printf("    %s\n", error.text);
        }
        free(x);
        fl_json_free(&memory, &doc);
        fl_free(&memory, (void *)(uintptr_t)text.at, text.n);
        fl_tensors_close(&tensors);
        CHECK(memory.live == 0);
    }
}

/* ---- What is damaged -- */

/* Loading fails with a status and a word. */
static void check_refused(test_host *h, folollm_status status, const char *word) {
    folollm_options o = {.host = &h->hooks, .n_threads = 2};
    folollm *f = NULL;
    error.text[0] = 0;
    folollm_status found = folollm_load("mem", &o, &f, &error);
    if (!CHECK(found == status && f == NULL && strstr(error.text, word) != NULL)) {
        printf("    expected %d, %s; found %d, %s\n", (int)status, word, (int)found, error.text);
    }
    folollm_free(f);
    CHECK(host_is_clean(h));
}

static void test_configs(void) {
    static const struct {
        const char *quantisation;
        folollm_status status;
        const char *word;
    } cases[] = {
        {"[]", FOLOLLM_E_FORMAT, "object"},
        {"{\"quant_method\":\"hqq\"}", FOLOLLM_E_UNSUPPORTED, "\"hqq\"; read are gptq"},
        {"{\"quant_method\":\"gptq\",\"bits\":5,\"group_size\":64}", FOLOLLM_E_UNSUPPORTED, "\"5\"; read are 2, 3, 4"},
        {"{\"quant_method\":\"gptq\",\"group_size\":64}", FOLOLLM_E_UNSUPPORTED, "\"bits\" is \"nothing\""},
        {"{\"quant_method\":\"gptq\",\"bits\":4}", FOLOLLM_E_FORMAT, "\"group_size\": the key is missing"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0}", FOLOLLM_E_FORMAT, "\"group_size\": must be -1"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":-2}", FOLOLLM_E_FORMAT, "\"group_size\": must be -1"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64.5}", FOLOLLM_E_FORMAT, "\"group_size\": must be -1"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":1e300}", FOLOLLM_E_FORMAT, "\"group_size\": must be"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64,\"sym\":1}", FOLOLLM_E_FORMAT, "\"sym\""},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64,\"is_marlin_format\":true}", FOLOLLM_E_UNSUPPORTED,
         "marlin"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64,\"checkpoint_format\":\"bitblas\"}",
         FOLOLLM_E_UNSUPPORTED, "\"bitblas\"; read are gptq and gptq_v2"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64,\"format\":\"marlin\"}", FOLOLLM_E_UNSUPPORTED,
         "\"marlin\""},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64,\"dynamic\":{\"+:x\":{\"bits\":8}}}",
         FOLOLLM_E_UNSUPPORTED, "dynamic"},
        {"{\"quant_method\":\"awq\",\"bits\":8,\"group_size\":64}", FOLOLLM_E_UNSUPPORTED, "\"8\"; read are 4 only"},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"version\":\"gemv\"}", FOLOLLM_E_UNSUPPORTED, "gemv"},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"zero_point\":false}", FOLOLLM_E_UNSUPPORTED,
         "zero_point"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"marlin-24\"}", FOLOLLM_E_UNSUPPORTED, "marlin-24"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\"}", FOLOLLM_E_FORMAT, "config_groups"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{}}}",
         FOLOLLM_E_FORMAT, "weights"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{\"weights\":"
         "{\"num_bits\":4,\"type\":\"float\",\"group_size\":16}}}}", FOLOLLM_E_UNSUPPORTED, "\"float\""},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{\"weights\":"
         "{\"num_bits\":6,\"group_size\":64}}}}", FOLOLLM_E_UNSUPPORTED, "\"6\""},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{\"weights\":"
         "{\"num_bits\":4,\"strategy\":\"tensor\"}}}}", FOLOLLM_E_UNSUPPORTED, "\"tensor\"; read are group and"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{\"weights\":"
         "{\"num_bits\":4,\"group_size\":64}},\"b\":{\"weights\":{\"num_bits\":8,\"group_size\":64}}}}",
         FOLOLLM_E_UNSUPPORTED, "the same in all modules"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"transform_config\":"
         "{\"config_groups\":{\"a\":{}}}}", FOLOLLM_E_UNSUPPORTED, "transform_config"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"sparsity_config\":{\"format\":"
         "\"sparse-24-bitmask\"}}", FOLOLLM_E_UNSUPPORTED, "sparsity_config"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"config_groups\":{\"a\":"
         "{\"weights\":{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"group\"}}}}", FOLOLLM_E_UNSUPPORTED,
         "channel, tensor and"},
        {"{\"quant_method\":\"fp8\"}", FOLOLLM_E_FORMAT, "weight_block_size"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,0]}", FOLOLLM_E_FORMAT, "weight_block_size"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],\"fmt\":\"e5m2\"}", FOLOLLM_E_UNSUPPORTED, "e5m2"},
        {"{\"quant_method\":\"bitsandbytes\"}", FOLOLLM_E_FORMAT, "load_in_8bit"},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true,\"bnb_4bit_quant_storage\":\"bfloat16\"}",
         FOLOLLM_E_UNSUPPORTED, "\"bfloat16\"; read are uint8 only"},
    };
    model *m = make_model(variants[0], false);
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        char config[2048];
        snprintf(config, sizeof config, config_of_model, ",\"quantization_config\":", cases[i].quantisation);
        host_put_text(&m->as_stored, "config.json", config);
        check_refused(&m->as_stored, cases[i].status, cases[i].word);
    }
    char quantisation[1024]; /* the same in a file of its own, without a name, with modules left out by rules */
    quantisation_of(&m->v, quantisation, sizeof quantisation);
    float *first, *second;
    put_config(&m->as_stored, &m->v, true);
    first = logits_of(&m->as_stored, (folollm_options){.n_threads = 1});
    put_config(&m->as_stored, &m->v, false);
    check_refused(&m->as_stored, FOLOLLM_E_FORMAT, "is not in the checkpoint");
    char *method = strstr(quantisation, "\"quant_method\":\"gptq\"");
    memcpy(method, "\"dynamic\":{\"-:q\":{}} ", 21);
    host_put_text(&m->as_stored, "quantize_config.json", quantisation);
    second = logits_of(&m->as_stored, (folollm_options){.n_threads = 1});
    CHECK(equal(first, second));
    free(first);
    free(second);
    free_model(m);
}

/* The place of a tensor's entry in the header of a file, behind its name. */
static char *entry_of(test_host *h, const char *name) {
    char quoted[160];
    host_file *f = host_find(h, "model.safetensors");
    size_t n = (size_t)snprintf(quoted, sizeof quoted, "\"%s\":", name);
    uint64_t n_header = fl_load_u64(f->bytes);
    for (size_t i = 8; i + n <= 8 + n_header; i++) {
        if (memcmp(f->bytes + i, quoted, n) == 0) {
            return (char *)f->bytes + i + n;
        }
    }
    printf("no tensor %s\n", name);
    exit(2);
}

static uint8_t *data_of(test_host *h, const char *name) {
    host_file *f = host_find(h, "model.safetensors");
    const char *at = entry_of(h, name);
    while (strncmp(at, "data_offsets\":[", 15) != 0) {
        at++;
    }
    return f->bytes + 8 + fl_load_u64(f->bytes) + strtoull(at + 15, NULL, 10);
}

/* Put a text of the same length into an entry. */
static void edit(test_host *h, const char *name, const char *from, const char *to) {
    char *at = entry_of(h, name);
    while (strncmp(at, from, strlen(from)) != 0) {
        at++;
    }
    memcpy(at, to, strlen(to));
}

static void put_u32(test_host *h, const char *name, size_t i, uint32_t value) {
    memcpy(data_of(h, name) + 4 * i, &value, sizeof value);
}

static void put_u16(test_host *h, const char *name, size_t i, uint16_t value) {
    memcpy(data_of(h, name) + 2 * i, &value, sizeof value);
}

#define UP "model.layers.1.mlp.up_proj"

static void damage_gptq(test_host *h, int kind) {
    switch (kind) {
    case 0: memcpy(entry_of(h, UP ".qzeros") - 5, "x", 1); break; /* another name */
    case 1: edit(h, UP ".scales", "[2,256]", "[256,2]"); break;
    case 2: edit(h, UP ".qweight", "I32", "F32"); break;
    case 3: edit(h, UP ".scales", "F16", "I16"); break;
    case 4: put_u16(h, UP ".scales", 7, 0x7C00); break;
    case 5: put_u16(h, UP ".scales", 300, 0xFE01); break;
    case 6: put_u32(h, UP ".qzeros", 33, 0x77777778); break;
    case 7: put_u32(h, UP ".g_idx", 5, 1); break;
    case 8: put_u32(h, UP ".g_idx", 5, 0xFFFFFFFFu); break;
    default: edit(h, UP ".g_idx", "[128]", "[127]"); break;
    }
}

static const struct {
    int variant, kind;
    folollm_status status;
    const char *word;
} damages[] = {
    {0, 0, FOLOLLM_E_FORMAT, "no tensor \"qzeros\" beside it"},
    {0, 1, FOLOLLM_E_FORMAT, "the config implies 2 x 256"},
    {0, 2, FOLOLLM_E_FORMAT, "of I32"},
    {0, 3, FOLOLLM_E_FORMAT, "of F16, BF16 or F32"},
    {0, 4, FOLOLLM_E_FORMAT, "scale 7 is"},
    {0, 5, FOLOLLM_E_FORMAT, "scale 300 is"},
    {0, 6, FOLOLLM_E_FORMAT, "8 for row 8, group 1: no zero point of symmetric integers"},
    {0, 7, FOLOLLM_E_FORMAT, "column 5 is in group 1; expected group 0"},
    {0, 8, FOLOLLM_E_FORMAT, "column 5 is in group -1"},
    {0, 9, FOLOLLM_E_FORMAT, "data_offsets"},
    {1, 8, FOLOLLM_E_FORMAT, "column 5 is in group -1; expected one below 2"},
    {1, 10, FOLOLLM_E_FORMAT, "group 0 has 63 columns; expected 64"},
    {2, 11, FOLOLLM_E_FORMAT, "15 for row 3, group 0: a zero point of 0"},
    {3, 12, FOLOLLM_E_FORMAT, "7 for row 0, group 0: no zero point"},
    {4, 13, FOLOLLM_E_FORMAT, "that f16 can hold"},
    {4, 14, FOLOLLM_E_FORMAT, "says other than the config"},
    {4, 15, FOLOLLM_E_FORMAT, "weight_shape"},
    {5, 16, FOLOLLM_E_FORMAT, "quant_state"},
    {5, 17, FOLOLLM_E_FORMAT, "blocksize\" must be above 0"},
    {5, 18, FOLOLLM_E_FORMAT, "one for every 32 of"},
    {5, 19, FOLOLLM_E_FORMAT, "nested_offset"},
    {5, 20, FOLOLLM_E_FORMAT, "scale 16 is"},
    {5, 21, FOLOLLM_E_FORMAT, "no tensor \"weight.nested_absmax\" beside it"},
    {5, 25, FOLOLLM_E_FORMAT, "quant_map\": a number of it is not finite"},
    {6, 22, FOLOLLM_E_FORMAT, "no tensor \"weight_scale_inv\" beside it"},
    {6, 23, FOLOLLM_E_FORMAT, "implies 2 x 1 of"},
    {7, 24, FOLOLLM_E_FORMAT, "which integers of 3 bits do not fill"},
};

static void test_damages(void) {
    static const variant of[] = {{"gptq", 4, 64, true, false, "gptq", false, "F16", FL_Q4_0, true},
                                 {"gptq", 4, 64, true, true, "gptq", false, "F16", FL_Q4_0, true},
                                 {"gptq", 4, 64, false, false, "gptq", false, "F16", FL_Q4_ZERO, true},
                                 {"gptq", 4, 64, true, false, "gptq_v2", false, "F16", FL_Q4_0, true},
                                 {"pack", 4, 64, true, false, "", false, "F32", FL_Q4_0, true},
                                 {"nested", 4, 64, true, false, "", false, "F32", FL_Q8_0, false},
                                 {"fp8", 8, 128, true, false, "", false, "F32", FL_BF16, false},
                                 {"gptq", 3, 64, true, false, "gptq", false, "F16", FL_Q4_0, true}};
    const char *state = UP ".weight.quant_state.bitsandbytes__nf4";
    for (size_t i = 0; i < FL_COUNT(damages); i++) {
        model *m = make_model(of[damages[i].variant], false);
        test_host *h = &m->as_stored;
        uint8_t *text;
        switch (damages[i].kind) {
        case 10:
            for (size_t k = 0; k < DIM; k++) {
                if (fl_load_u32(data_of(h, UP ".g_idx") + 4 * k) == 0) {
                    put_u32(h, UP ".g_idx", k, 1);
                    break;
                }
            }
            break;
        case 11: put_u32(h, UP ".qzeros", 0, 0x3333F333); break;
        case 12: memset(data_of(h, UP ".qzeros"), 0x77, 256); break;
        case 13: put_u32(h, UP ".weight_scale", 9, 0x49742400); break; /* a million */
        case 14: put_u32(h, UP ".weight_shape", 0, 257); break;
        case 15: memcpy(entry_of(h, UP ".weight_shape") - 5, "x", 1); break;
        case 16: data_of(h, state)[0] = 'x'; break;
        case 17: case 18: case 19:
            text = data_of(h, state);
            text = (uint8_t *)strstr((char *)text, damages[i].kind == 19 ? "0.04" : ": 64");
            memcpy(text, damages[i].kind == 17 ? ": 00" : damages[i].kind == 18 ? ": 32" : "1e99", 4);
            if (damages[i].kind == 17) {
                memcpy(text, ":  0", 4);
            }
            break;
        case 20: put_u32(h, UP ".weight.nested_absmax", 1, 0x7F800000u); break;
        case 21: memcpy(entry_of(h, UP ".weight.nested_absmax") - 5, "x", 1); break;
        case 22: memcpy(entry_of(h, UP ".weight_scale_inv") - 5, "x", 1); break;
        case 23: edit(h, UP ".weight_scale_inv", "[2,1]", "[1,2]"); break;
        case 24: break;
        case 25: put_u32(h, UP ".weight.quant_map", 15, 0x7FC00000u); break;
        default: damage_gptq(h, damages[i].kind); break;
        }
        if (damages[i].kind == 24) { /* 96 rows in the head can be of 3 bits, 100 cannot */
            char config[2048], quantisation[1024];
            quantisation_of(&m->v, quantisation, sizeof quantisation);
            snprintf(config, sizeof config, config_of_model, ",\"quantization_config\":", quantisation);
            memcpy(strstr(config, "\"intermediate_size\":256"), "\"intermediate_size\":240", 23);
            host_put_text(h, "config.json", config);
        }
        check_refused(h, damages[i].status, damages[i].word);
        free_model(m);
    }
}

/* Every allocation and every read may fail. */
static void test_faults(void) {
    static const variant of[] = {{"gptq", 4, 64, false, true, "gptq", false, "F16", FL_Q4_ZERO, true},
                                 {"nested", 4, 64, true, false, "", false, "F32", FL_Q8_0, false}};
    uint64_t n = 0;
    for (size_t i = 0; i < FL_COUNT(of) * 2; i++) {
        model *m = make_model(of[i / 2], true);
        test_host *h = &m->as_stored;
        folollm_options o = {.host = &h->hooks, .n_threads = 2};
        for (uint64_t at = 1;; at++, n++) {
            folollm *f = NULL;
            host_arm(h, i % 2 == 0 ? FAULT_ALLOCATE : FAULT_READ, at, false);
            folollm_status status = folollm_load("mem", &o, &f, &error);
            CHECK((status == FOLOLLM_OK) == (h->n_injected == 0) && (f != NULL) == (status == FOLOLLM_OK));
            folollm_free(f);
            CHECK(host_is_clean(h));
            if (status == FOLOLLM_OK) {
                break;
            }
        }
        host_disarm(h);
        free_model(m);
    }
    printf("faults: %u\n", (unsigned)n);
}

/* ---- Other types, and writing -- */

static int append(void *user, const void *bytes, size_t n) {
    file *f = user;
    if (f->n_data + n > f->room) {
        return 1;
    }
    memcpy(f->data + f->n_data, bytes, n);
    f->n_data += n;
    return 0;
}

/* What folollm_quantize writes of a quantised directory loads to the same bits as that itself. */
static void check_written(model *m, folollm_weights weights) {
    test_host *h = &m->as_stored;
    folollm_options o = {.host = &h->hooks, .n_threads = 2, .weights = weights};
    file *out = new_file();
    host_file *source = host_find(h, "model.safetensors");
    folollm_status status = folollm_quantize("mem", &o, append, out, &error);
    if (m->v.ordered && weights == FOLOLLM_WEIGHTS_AS_STORED) {
        CHECK(status == FOLOLLM_E_UNSUPPORTED && strstr(error.text, "act-order") != NULL);
    } else if (CHECK(status == FOLOLLM_OK)) {
        float *before = logits_of(h, (folollm_options){.weights = weights, .n_threads = 1}), *after;
        uint8_t *bytes = malloc(source->n);
        size_t n = source->n;
        memcpy(bytes, source->bytes, n);
        host_put(h, "model.safetensors", out->data, out->n_data);
        after = logits_of(h, (folollm_options){.n_threads = 1});
        CHECK(m->v.ordered && weights == FOLOLLM_WEIGHTS_Q4 ? nmse(before, after) < 0.1 : equal(before, after));
        host_put(h, "model.safetensors", bytes, n);
        free(before);
        free(after);
        free(bytes);
    }
    free(out->data);
    free(out);
}

/* The same of a GGUF file, whose rows of Q and K are in another order. */
static void check_written_gguf(model *m, folollm_weights weights) {
    test_host *h = &m->as_stored;
    folollm_options o = {.host = &h->hooks, .n_threads = 2, .weights = weights, .gguf = 1, .kv = FOLOLLM_KV_F32};
    file *out = new_file();
    folollm_status status = folollm_quantize("mem", &o, append, out, &error);
    if (weights == FOLOLLM_WEIGHTS_AS_STORED && (m->v.ordered || m->v.type == FL_Q4_ZERO)) {
        CHECK(status == FOLOLLM_E_UNSUPPORTED && strstr(error.text, "no block of GGUF") != NULL && out->n_data == 0);
    } else if (CHECK(status == FOLOLLM_OK)) {
        float *before = logits_of(h, (folollm_options){.weights = weights, .n_threads = 1});
        float *after = malloc((size_t)LENGTH * VOCAB * sizeof *after);
        folollm *f = NULL;
        folollm_seq seq = 0;
        host_put(h, "out.gguf", out->data, out->n_data);
        o.weights = FOLOLLM_WEIGHTS_AS_STORED;
        CHECK(folollm_load("mem/out.gguf", &o, &f, &error) == FOLOLLM_OK);
        CHECK(folollm_seq_open(f, NULL, &seq, NULL) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seq, prompt, LENGTH, after, NULL) == FOLOLLM_OK);
        CHECK(m->v.ordered && weights == FOLOLLM_WEIGHTS_Q4 ? nmse(before, after) < 0.1 : equal(before, after));
        folollm_free(f);
        free(before);
        free(after);
    }
    free(out->data);
    free(out);
}

static void test_written(void) {
    static const variant of[] = {{"gptq", 4, 64, true, false, "gptq", false, "F16", FL_Q4_0, true},
                                 {"awq", 4, 32, false, false, "", false, "F16", FL_Q4_ZERO, true},
                                 {"gptq", 4, 32, true, true, "gptq", false, "F16", FL_Q4_0, true},
                                 {"nf4", 4, 64, true, false, "", false, "F32", FL_Q8_0, false}};
    static const folollm_weights weights[] = {FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_WEIGHTS_F32, FOLOLLM_WEIGHTS_BF16,
                                              FOLOLLM_WEIGHTS_Q8, FOLOLLM_WEIGHTS_Q8_ROW, FOLOLLM_WEIGHTS_Q4};
    for (size_t i = 0; i < FL_COUNT(of); i++) {
        model *m = make_model(of[i], false);
        for (size_t w = 0; w < FL_COUNT(weights); w++) {
            check_written(m, weights[w]);
            if (weights[w] != FOLOLLM_WEIGHTS_Q8_ROW) {
                check_written_gguf(m, weights[w]);
            }
        }
        float *exact = logits_of(&m->as_floats, (folollm_options){.n_threads = 1});
        float *floats = logits_of(&m->as_stored, (folollm_options){.weights = FOLOLLM_WEIGHTS_F32});
        CHECK(equal(exact, floats));
        free(exact);
        free(floats);
        free_model(m);
    }
}

static void test_info(void) {
    static const struct {
        variant v;
        const char *text;
    } cases[] = {
        {{"gptq", 4, 64, false, true, "gptq", false, "F16", FL_Q4_ZERO, true},
         "gptq, 4 bits, groups of 64, zero points, act-order: q4_zero"},
        {{"pack", 4, 0, true, false, "", false, "BF16", FL_Q4_0, true},
         "compressed-tensors, 4 bits: q4, scales rounded to f16"},
        {{"nf4", 4, 64, true, false, "", false, "F32", FL_Q8_0, false}, "bitsandbytes, 4 bits: q8, rounded"},
        {{"fp8", 8, 128, true, false, "", false, "F32", FL_BF16, false},
         "fp8, float8, blocks of 128 x 128: bf16, rounded"}};
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        folollm_info info;
        model *m = make_model(cases[i].v, false);
        folollm *f = open_model(&m->as_stored, (folollm_options){.n_threads = 1});
        folollm_get_info(f, &info);
        CHECK_TEXT(strcmp(info.quantised, cases[i].text) == 0, info.quantised);
        folollm_free(f);
        f = open_model(&m->as_floats, (folollm_options){.n_threads = 1});
        folollm_get_info(f, &info);
        CHECK(info.quantised[0] == 0);
        folollm_free(f);
        free_model(m);
    }
}

int main(void) {
    for (size_t i = 0; i < LENGTH; i++) {
        prompt[i] = (folollm_token)random_below(VOCAB);
    }
    test_vectors();
    for (size_t i = 0; i < FL_COUNT(variants); i++) {
        check_model(variants[i], i % 3 == 0);
    }
    check_batch(variants[17]);
    check_batch(variants[10]);
    test_configs();
    test_damages();
    test_faults();
    test_written();
    test_info();
    return check_finish();
}
