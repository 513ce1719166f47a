/* The KV cache of 8 and 4 bits: each kernel against plain C at odd sizes and with odd values, in every table; attention
 * at every width against float64; what it costs in quality, printed and bounded; and in memory.
 *
 *     cc -O2 -I. -Isrc tests/test_kv.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 *     -DFL_PAGE_TOKENS=2: strips of keys put together from several pages
 */
#include "inside.h"

#include "check.h"
#include "random.h"

#include <stdlib.h>

#define MODEL "examples/models/tiny-shakespeare"
#define VECTORS "tests/vectors/models/"
#define WIDEST 256 /* head_dim */
#define GUARD 0x5A

static const size_t widths[] = {2, 6, 12, 20, 64, 80, 96, 128, WIDEST};

/* ---- Kernels -- */

static void test_hadamard(const fl_kernels *k, size_t d) {
    float x[WIDEST], first[WIDEST], y[WIDEST + 1];
    size_t block = inside_rotation(d);
    CHECK(d % block == 0 && d / block % 2 == 1 && (block & (block - 1)) == 0);
    for (size_t i = 0; i < d; i++) {
        x[i] = y[i] = first[i] = random_float();
    }
    y[d] = 7;
    k->hadamard(y, d, block);
    fl_kernels_of(FOLOLLM_ISA_SCALAR)->hadamard(first, d, block);
    CHECK(memcmp(y, first, d * sizeof *y) == 0 && y[d] == 7);
    for (size_t i = 0; i < d; i++) {
        double sum = 0;
        for (size_t j = 0; j < block; j++) {
            size_t both = i % block & j, odd = 0;
            for (; both != 0; both /= 2) {
                odd ^= both & 1;
            }
            sum += (odd ? -1.0 : 1.0) * x[i - i % block + j];
        }
        CHECK(fabs(sum - y[i]) < 1e-4);
    }
    for (size_t i = 0; i < d; i++) { /* of small integers, exact: twice is the block */
        x[i] = y[i] = (float)((int)random_below(2001) - 1000);
    }
    k->hadamard(y, d, block);
    k->hadamard(y, d, block);
    for (size_t i = 0; i < d; i++) {
        CHECK(y[i] == x[i] * (float)block);
    }
}

/* What quantise means, in its own words. */
static float quantise_plainly(const float *x, size_t n, int bits, int8_t *q) {
    float most = 0, least = 0, low = bits == 8 ? -127.0f : -8.0f, high = bits == 8 ? 127.0f : 7.0f;
    bool broken = false;
    for (size_t i = 0; i < n; i++) {
        broken |= !fl_is_finite(x[i]);
        most = x[i] > most ? x[i] : most;
        least = x[i] < least ? x[i] : least;
        q[i] = 0;
    }
    float extreme = most >= -least ? most : least;
    if (broken || fabsf(extreme) < 1e-30f) {
        return broken ? NAN : 0;
    }
    for (size_t i = 0; i < n; i++) {
        float rounded = rintf(x[i] * (low / extreme));
        q[i] = (int8_t)(rounded < high ? rounded : high);
    }
    return extreme / low;
}

static void check_quantise(const fl_kernels *k, const float *x, size_t d) {
    for (int bits = 4; bits <= 8; bits += 4) {
        int8_t got[WIDEST + 16], expected[WIDEST];
        memset(got, GUARD, sizeof got);
        float scale = k->quantise(x, d, bits, got), plain = quantise_plainly(x, d, bits, expected);
        CHECK(fl_is_finite(plain) ? scale == plain : !fl_is_finite(scale));
        CHECK(memcmp(got, expected, d) == 0 && got[d] == GUARD);
        for (size_t i = 0; i < d && fl_is_finite(scale); i++) { /* half a step, or the one that is cut */
            float allowed = bits == 4 && got[i] == 7 ? 1.001f : 0.501f;
            CHECK(fabsf((float)got[i] * scale - x[i]) <= fabsf(scale) * allowed + 1e-30f);
        }
    }
}

static void test_quantise(const fl_kernels *k, size_t d) {
    static const float sizes[] = {0, 1, 1e-3f, 1e30f, 3e38f, 1e-28f, 1e-31f, 1e-38f, 1e-44f, 65504, 127, 8};
    float x[WIDEST];
    for (size_t s = 0; s < FL_COUNT(sizes); s++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            for (size_t i = 0; i < d; i++) {
                x[i] = random_float() / 4 * sizes[s];
            }
            check_quantise(k, x, d);
            x[random_below((uint32_t)d)] = (float)sign * sizes[s];
            check_quantise(k, x, d);
        }
    }
    for (size_t at = 0; at < d; at++) {
        static const float broken[] = {INFINITY, -INFINITY, NAN};
        x[at] = broken[at % 3];
        check_quantise(k, x, d);
        x[at] = (float)at;
    }
    for (size_t i = 0; i < d; i++) { /* ties: to even */
        x[i] = i == 0 ? 127 : (float)(int)(i % 100) - 49.5f;
    }
    check_quantise(k, x, d);
}

static void test_unpack(const fl_kernels *k, size_t d) {
    for (int bits = 4; bits <= 8; bits += 4) {
        fl_kv kv = {.type = bits == 8 ? FOLOLLM_KV_Q8 : FOLOLLM_KV_Q4, .head_dim = d};
        int8_t q[WIDEST];
        size_t row_bytes = fl_kv_row_bytes(&kv), lanes = fl_lanes(d);
        uint8_t *row = malloc(row_bytes); /* so that a sanitizer sees its end */
        float y[WIDEST + 16];
        memset(y, GUARD, sizeof y);
        for (size_t i = 0; i < d; i++) {
            q[i] = (int8_t)(bits == 8 ? (int)random_below(255) - 127 : (int)random_below(16) - 8);
        }
        inside_pack_row(&kv, true, q, 1.5f, row);
        k->unpack(kv.type, row, d, y);
        for (size_t i = 0; i < lanes; i++) {
            CHECK(y[i] == (i < d ? (float)q[i] : 0));
        }
        CHECK(memcmp(y + lanes, &(uint32_t){0x5A5A5A5A}, sizeof *y) == 0);
        CHECK(memcmp(row + row_bytes - sizeof *y, &(float){1.5f}, sizeof *y) == 0);
        free(row);
    }
}

/* Integers of n_rows queries and 16 n_strips keys; one product is made as large as can be. */
static void check_dots(const fl_kernels *k, folollm_kv_type type, size_t d, size_t n_rows, size_t n_strips) {
    enum { ROWS = 9, KEYS = FL_BLOCK_TOKENS };
    static int8_t q[ROWS][WIDEST + 8], keys[KEYS][WIDEST];
    static float q_scales[ROWS], k_scales[KEYS], scores[ROWS * KEYS];
    int32_t q_sums[ROWS] = {0};
    fl_kv kv = {.type = type, .head_dim = d};
    fl_dots dots = {.type = type, .n_quads = fl_kv_numbers_bytes(kv.type, kv.head_dim) / 4, .q = q[0], .q_stride = sizeof q[0],
                    .n_rows = n_rows, .q_scales = q_scales, .q_sums = q_sums, .n_strips = n_strips,
                    .k_scales = k_scales, .scores = scores};
    int least = type == FOLOLLM_KV_Q8 ? -127 : -8, most = type == FOLOLLM_KV_Q8 ? 127 : 7;
    memset(q, 0, sizeof q);
    memset(scores, GUARD, sizeof scores);
    for (size_t r = 0; r < n_rows; r++) {
        q_scales[r] = random_float();
        for (size_t i = 0; i < d; i++) {
            size_t at = type == FOLOLLM_KV_Q8 || i < d / 2 ? i : 4 * dots.n_quads + i - d / 2;
            q[r][at] = (int8_t)(r == 0 ? -127 : (int)random_below(255) - 127);
            q_sums[r] += q[r][at];
        }
    }
    uint8_t *strips = malloc(n_strips * 64 * dots.n_quads), row[WIDEST + 8];
    for (size_t j = 0; j < n_strips * 16; j++) {
        k_scales[j] = random_float();
        for (size_t i = 0; i < d; i++) {
            int any = least + (int)random_below((uint32_t)(most - least + 1));
            keys[j][i] = (int8_t)(j == 0 ? least : j == 1 ? most : any);
        }
        inside_pack_row(&kv, false, keys[j], 0, row);
        for (size_t quad = 0; quad < dots.n_quads; quad++) {
            memcpy(strips + 64 * (j / 16 * dots.n_quads + quad) + j % 16 * 4, row + 4 * quad, 4);
        }
    }
    for (size_t s = 0; s < n_strips; s++) {
        dots.strips[s] = strips + s * 64 * dots.n_quads;
    }
    k->dots(&dots);
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t j = 0; j < n_strips * 16; j++) {
            int32_t sum = 0;
            for (size_t i = 0; i < d; i++) {
                sum += keys[j][i] * q[r][type == FOLOLLM_KV_Q8 || i < d / 2 ? i : 4 * dots.n_quads + i - d / 2];
            }
            CHECK(scores[r * KEYS + j] == (float)sum * (q_scales[r] * k_scales[j]));
        }
        for (size_t j = n_strips * 16; j < KEYS; j++) {
            CHECK(fl_bits_of_float(scores[r * KEYS + j]) == 0x5A5A5A5A);
        }
    }
    free(strips);
}

static void test_kernels(void) {
    const fl_kernels *tables[INSIDE_TABLES];
    for (size_t t = inside_tables(tables); t-- > 0;) {
        for (size_t w = 0; w < FL_COUNT(widths); w++) {
            test_hadamard(tables[t], widths[w]);
            test_quantise(tables[t], widths[w]);
            test_unpack(tables[t], widths[w]);
            for (size_t rows = 1; rows < 10; rows += rows < 3 ? 1 : 3) {
                check_dots(tables[t], FOLOLLM_KV_Q8, widths[w], rows, 1 + random_below(4));
                check_dots(tables[t], FOLOLLM_KV_Q4, widths[w], rows, 4 - random_below(4));
            }
        }
    }
}

/* Rows written one by one fill a block exactly, each comes back, and no neighbour changes. */
static void test_rows(void) {
    for (int type = FOLOLLM_KV_F16; type <= FOLOLLM_KV_Q4; type++) {
        for (size_t w = 0; w < FL_COUNT(widths); w++) {
            fl_kv kv = {.type = (folollm_kv_type)type, .n_layers = 1, .n_pages = 2, .n_kv_heads = 1,
                        .head_dim = widths[w]};
            size_t n = fl_kv_row_bytes(&kv), block_bytes = fl_kv_block_bytes(&kv);
            uint8_t *block = malloc(block_bytes), *rows = malloc(FL_PAGE_TOKENS * n), *back = malloc(n);
            CHECK(block_bytes == FL_PAGE_TOKENS * n);
            for (int is_v = 0; is_v < 2; is_v++) {
                memset(block, 0, block_bytes);
                for (size_t i = 0; i < FL_PAGE_TOKENS * n; i++) {
                    rows[i] = (uint8_t)(1 + random_below(255)); /* none is zero: every byte of the block is written */
                }
                for (size_t i = FL_PAGE_TOKENS; i-- > 0;) {
                    fl_kv_copy_row(&kv, is_v == 1, block, i, rows + i * n, true);
                }
                CHECK(memchr(block, 0, block_bytes) == NULL);
                for (size_t i = 0; i < FL_PAGE_TOKENS; i++) {
                    fl_kv_copy_row(&kv, is_v == 1, block, i, back, false);
                    CHECK(memcmp(back, rows + i * n, n) == 0);
                }
            }
            free(block);
            free(rows);
            free(back);
        }
    }
}

/* ---- Attention -- */

enum { TOKENS = 75, HEADS = 6, KV_HEADS = 2, PAGES = (TOKENS + FL_PAGE_TOKENS - 1) / FL_PAGE_TOKENS };

/* Kernels whose gather notes in which type it met its values. */
static const fl_kernels *spied;
static size_t met[FOLOLLM_KV_Q4 + 1];

static void spying_gather(float *out, const float *factors, const float *weights, size_t n_heads, const fl_rows *v,
                          size_t begin, size_t end) {
    met[v->type]++;
    spied->gather(out, factors, weights, n_heads, v, begin, end);
}

/* out (TOKENS, HEADS * d) from qkv (TOKENS, (HEADS + 2 KV_HEADS) * d), both padded, through the cache, `together` rows
 * at a time; pages lie out of order, and everything else is NaN. */
static void attend(const fl_kernels *k, folollm_kv_type type, size_t d, uint32_t window, uint32_t together,
                   const float *qkv, float *out) {
    size_t n_qkv = TOKENS * fl_padded((HEADS + 2 * KV_HEADS) * d);
    fl_limits limits = {.n_rows = TOKENS, .head_dim = d, .group = HEADS / KV_HEADS};
    fl_kv kv = {.type = type, .n_layers = 2, .n_pages = PAGES + 1, .n_kv_heads = KV_HEADS, .head_dim = d};
    fl_attention a = {.n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = d, .scale = 1 / sqrtf((float)d),
                      .window = window};
    fl_cpu_backend cpu;
    fl_arena arena = {0};
    fl_kernels spying = *k;
    spying.gather = spying_gather;
    spied = k;
    fl_cpu_init(&cpu, &spying, NULL);
    fl_cpu_layout(&cpu, &arena, &limits, 1);
    uint32_t slots[TOKENS], pages[PAGES];
    for (uint32_t i = 0; i < TOKENS; i++) {
        pages[i / FL_PAGE_TOKENS] = PAGES - i / FL_PAGE_TOKENS;
        slots[i] = pages[i / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + i % FL_PAGE_TOKENS;
    }
    fl_run runs[TOKENS];
    fl_batch batch = {.n_rows = TOKENS, .slots = slots, .runs = runs};
    for (uint32_t i = 0; i < TOKENS; i += together) {
        fl_run run = {i, fl_min(together, TOKENS - i), i, pages, NULL};
        runs[batch.n_runs++] = run;
    }
    size_t kv_bytes = fl_kv_offset(&kv, 2, 0, 0);
    float *copy = malloc(n_qkv * sizeof *copy), *angles = malloc(TOKENS * d * sizeof *angles);
    kv.k = malloc(kv_bytes);
    kv.v = malloc(kv_bytes);
    memset(kv.k, 0xFF, kv_bytes);
    memset(kv.v, 0xFF, kv_bytes);
    cpu.scratch = malloc(cpu.slot_floats * sizeof(float));
    memset(cpu.scratch, 0xFF, cpu.slot_floats * sizeof(float));
    memcpy(copy, qkv, n_qkv * sizeof *copy);
    for (size_t i = 0; i < TOKENS * d; i++) {
        angles[i] = i % d < d / 2 ? 1 : 0;
    }
    cpu.base.ops->rope_store(&cpu.base, &a, &batch, angles, &kv, 1, copy);
    cpu.base.ops->attend(&cpu.base, &a, &batch, &kv, 1, 0, KV_HEADS, copy, out);
    free(copy);
    free(angles);
    free(kv.k);
    free(kv.v);
    free(cpu.scratch);
}

/* NMSE to attention in float64. */
static double attention_error(size_t d, uint32_t window, const float *qkv, const float *out) {
    size_t in_stride = fl_padded((HEADS + 2 * KV_HEADS) * d), out_stride = fl_padded(HEADS * d);
    double wrong = 0, all = 0;
    for (size_t row = 0; row < TOKENS; row++) {
        for (size_t h = 0; h < HEADS; h++) {
            size_t kv_head = h / (HEADS / KV_HEADS), begin = window != 0 && row >= window ? row + 1 - window : 0;
            double weights[TOKENS], total = 0;
            for (size_t j = begin; j <= row; j++) {
                double score = 0;
                for (size_t i = 0; i < d; i++) {
                    score += (double)qkv[row * in_stride + h * d + i] * qkv[j * in_stride + (HEADS + kv_head) * d + i];
                }
                total += weights[j] = exp(score / sqrt((double)d));
            }
            for (size_t i = 0; i < d; i++) {
                double sum = 0;
                for (size_t j = begin; j <= row; j++) {
                    sum += weights[j] / total * qkv[j * in_stride + (HEADS + KV_HEADS + kv_head) * d + i];
                }
                wrong += (sum - out[row * out_stride + h * d + i]) * (sum - out[row * out_stride + h * d + i]);
                all += sum * sum;
            }
        }
    }
    return wrong / all;
}

static void random_qkv(float *qkv, size_t d) {
    size_t stride = fl_padded((HEADS + 2 * KV_HEADS) * d);
    for (size_t i = 0; i < TOKENS * stride; i++) {
        qkv[i] = random_float();
    }
}

/* Few queries meet values where they lie, many meet floats; the same bits. */
static void test_few(const fl_kernels *k, folollm_kv_type type, size_t d, uint32_t window, const float *qkv,
                     const float *first) {
    static const uint32_t together[] = {1, 2, 5, 15}; /* times a group of 3: queries */
    static float out[TOKENS * 8 * 128];
    for (size_t i = 0; i < FL_COUNT(together); i++) {
        bool few = together[i] < 15 && d % (type == FOLOLLM_KV_Q4 ? 32 : 16) == 0;
        memset(met, 0, sizeof met);
        memset(out, 0, sizeof out);
        attend(k, type, d, window, together[i], qkv, out);
        CHECK(memcmp(first, out, TOKENS * fl_padded(HEADS * d) * sizeof *out) == 0);
        CHECK(type == FOLOLLM_KV_F32 || (few ? met[type] > 0 : met[type] == 0 && met[FOLOLLM_KV_F32] > 0));
    }
}

static void test_attention(void) {
    static const folollm_kv_type types[] = {FOLOLLM_KV_F32, FOLOLLM_KV_F16, FOLOLLM_KV_BF16, FOLOLLM_KV_Q8,
                                            FOLOLLM_KV_Q4};
    static const double gates[] = {1e-10, 1e-6, 1e-4, 5e-4, 5e-2};
    static float qkv[TOKENS * 16 * 128], first[TOKENS * 8 * 128], out[TOKENS * 8 * 128];
    double worst[FL_COUNT(types)] = {0};
    const fl_kernels *tables[INSIDE_TABLES];
    size_t n_tables = inside_tables(tables);
    for (size_t w = 0; w < FL_COUNT(widths) && widths[w] <= 128; w++) {
        size_t d = widths[w];
        uint32_t window = w % 2 == 0 ? 0 : 21;
        random_qkv(qkv, d);
        for (size_t type = 0; type < FL_COUNT(types); type++) {
            for (size_t t = 0; t < n_tables; t++) {
                float *to = t == 0 ? first : out;
                memset(to, 0, sizeof out);
                attend(tables[t], types[type], d, window, TOKENS, qkv, to);
                CHECK(t == 0 || memcmp(first, out, TOKENS * fl_padded(HEADS * d) * sizeof *out) == 0);
                test_few(tables[t], types[type], d, window, qkv, first);
            }
            double error = attention_error(d, window, qkv, first);
            worst[type] = error > worst[type] ? error : worst[type];
            CHECK(error <= gates[type]);
        }
    }
    printf("attention, NMSE to float64 on normal numbers: f32 %.2g, f16 %.2g, bf16 %.2g, q8 %.2g, q4 %.2g\n", worst[0],
           worst[1], worst[2], worst[3], worst[4]);
}

/* A NaN or an infinity reaches every row that sees it, and no other. */
static void test_not_finite(void) {
    static float qkv[TOKENS * 16 * 20], out[TOKENS * 8 * 20];
    static const float broken[] = {NAN, INFINITY, -INFINITY};
    size_t d = 20, stride = fl_padded((HEADS + 2 * KV_HEADS) * d), out_stride = fl_padded(HEADS * d);
    const fl_kernels *tables[INSIDE_TABLES];
    for (size_t t = inside_tables(tables); t-- > 0;) {
        for (size_t i = 0; i < 3 * 2 * 3; i++) {
            size_t at = 5 + 30 * (i % 2), part = i / 2 % 3; /* of token `at`: the last head of q, k or v */
            size_t heads = part == 0 ? HEADS : HEADS + part * KV_HEADS;
            random_qkv(qkv, d);
            qkv[at * stride + heads * d - 1 - random_below((uint32_t)d)] = broken[i / 6];
            attend(tables[t], i % 2 == 0 ? FOLOLLM_KV_Q8 : FOLOLLM_KV_Q4, d, 0, TOKENS, qkv, out);
            for (size_t row = 0; row < TOKENS; row++) {
                for (size_t h = 0; h < HEADS; h++) {
                    bool hit = part == 0 ? row == at && h == HEADS - 1 : row >= at && h >= HEADS / KV_HEADS;
                    CHECK(fl_is_finite(out[row * out_stride + h * d]) != hit);
                }
            }
        }
    }
}

/* ---- Quality -- */

enum { LENGTH = 250, SHORT = 60, TEXTS = 4 };

typedef struct quality {
    double mean, max, same_top; /* Kullback-Leibler divergence from f32 KV, in nats */
} quality;

/* A stand-in that only does what makes the lengths right. */
static void hadamard_without_rotation(float *x, size_t n, size_t block) {
    for (size_t i = 0; i < n; i++) {
        x[i] *= sqrtf((float)block);
    }
}

/* The same function with outlier channels in K: some pairs of k_norm times 16, of q_norm divided by it. Models are
 * trained into such channels. */
static void make_outliers(folollm *f, float *norms) {
    const fl_config *c = &f->checkpoint->weights.config;
    size_t d = c->head_dim;
    for (uint32_t layer = 0; layer < c->n_layers; layer++, norms += 2 * d) {
        fl_attention *a = &f->checkpoint->weights.layers[layer].attention;
        memcpy(norms, a->q_norm, d * sizeof *norms);
        memcpy(norms + d, a->k_norm, d * sizeof *norms);
        for (size_t pair = 5; pair < d / 2; pair += 11) {
            for (size_t i = pair; i < d; i += d / 2) {
                norms[i] /= 16;
                norms[d + i] *= 16;
            }
        }
        a->q_norm = norms;
        a->k_norm = norms + d;
    }
}

typedef struct setting {
    const char *model;
    folollm_kv_type kv;
    bool outliers, no_rotation;
} setting;

static folollm *open_setting(setting s, fl_kernels *kernels, float *norms) {
    folollm_options o = {.n_threads = 1, .kv = s.kv, .pool_tokens = 512};
    folollm *f = NULL;
    folollm_error error;
    if (folollm_load(s.model, &o, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    if (s.outliers) {
        make_outliers(f, norms);
    }
    if (s.no_rotation) {
        *kernels = *f->worker.cpu.kernels;
        kernels->hadamard = hadamard_without_rotation;
        f->worker.cpu.kernels = kernels;
    }
    return f;
}

static folollm_token texts[TEXTS][LENGTH];

/* Texts that the model writes itself, at temperature 1. */
static void write_texts(const char *model, size_t length) {
    folollm *f = open_setting((setting){.model = model, .kv = FOLOLLM_KV_F32}, NULL, NULL);
    for (size_t t = 0; t < TEXTS; t++) {
        folollm_sampling sampling = {.temperature = 1, .seed = t, .ignore_eos = 1};
        folollm_seq seq = 0;
        CHECK(folollm_seq_open(f, &sampling, &seq, NULL) == FOLOLLM_OK);
        for (size_t i = 0; i < length; i++) {
            folollm_sampled s = {.token = (folollm_token)t + 1};
            CHECK(i == 0 || folollm_sample(f, seq, &s, NULL, 0, NULL) == FOLOLLM_OK);
            texts[t][i] = s.token;
            CHECK(folollm_prefill(f, seq, texts[t] + i, 1, NULL, NULL) == FOLOLLM_OK);
        }
        CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    }
    folollm_free(f);
}

/* log of the softmax; returns the index of the largest */
static uint32_t log_softmax(const float *logits, uint32_t n, double *log_p) {
    uint32_t top = 0;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        top = logits[i] > logits[top] ? i : top;
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)logits[i] - logits[top]);
    }
    for (uint32_t i = 0; i < n; i++) {
        log_p[i] = (double)logits[i] - logits[top] - log(sum);
    }
    return top;
}

static void compare(const float *reference, const float *logits, size_t n_rows, uint32_t vocab, quality *total) {
    double *p = malloc(vocab * sizeof *p), *q = malloc(vocab * sizeof *q);
    for (size_t row = 0; row < n_rows; row++) {
        double divergence = 0;
        uint32_t top = log_softmax(reference + row * vocab, vocab, p);
        total->same_top += top == log_softmax(logits + row * vocab, vocab, q);
        for (uint32_t i = 0; i < vocab; i++) {
            divergence += exp(p[i]) * (p[i] - q[i]);
        }
        total->mean += divergence;
        total->max = divergence > total->max ? divergence : total->max;
    }
    free(p);
    free(q);
}

static quality measure(setting s, size_t length) {
    static float norms[2][2 * 64 * 16];
    static fl_kernels kernels;
    setting exact = {.model = s.model, .kv = FOLOLLM_KV_F32, .outliers = s.outliers};
    folollm *e = open_setting(exact, NULL, norms[0]), *f = open_setting(s, &kernels, norms[1]);
    folollm_info info;
    folollm_get_info(f, &info);
    size_t bytes = length * info.vocab * sizeof(float);
    float *reference = malloc(bytes), *logits = malloc(bytes);
    quality total = {0, 0, 0};
    for (size_t i = 0; i < TEXTS; i++) {
        folollm_seq a = 0, b = 0;
        CHECK(folollm_seq_open(e, NULL, &a, NULL) == FOLOLLM_OK && folollm_seq_open(f, NULL, &b, NULL) == FOLOLLM_OK);
        CHECK(folollm_prefill(e, a, texts[i], length, reference, NULL) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, b, texts[i], length, logits, NULL) == FOLOLLM_OK);
        CHECK(folollm_seq_close(e, a, NULL) == FOLOLLM_OK && folollm_seq_close(f, b, NULL) == FOLOLLM_OK);
        compare(reference, logits, length, info.vocab, &total);
    }
    total.mean /= (double)(TEXTS * length);
    total.same_top /= (double)(TEXTS * length);
    free(reference);
    free(logits);
    folollm_free(e);
    folollm_free(f);
    return total;
}

static quality report(const char *what, setting s, size_t length) {
    quality q = measure(s, length);
    printf("%-46s KLD mean %.2g, max %.2g; same top token %.2f %%\n", what, q.mean, q.max, 100 * q.same_top);
    return q;
}

static void test_quality(void) {
    write_texts(MODEL, LENGTH);
    quality f16 = report("tiny-shakespeare, f16", (setting){.model = MODEL, .kv = FOLOLLM_KV_F16}, LENGTH);
    quality q8 = report("tiny-shakespeare, q8", (setting){.model = MODEL, .kv = FOLOLLM_KV_Q8}, LENGTH);
    quality q4 = report("tiny-shakespeare, q4", (setting){.model = MODEL, .kv = FOLOLLM_KV_Q4}, LENGTH);
    quality bare = report("tiny-shakespeare, q4 without rotation",
                          (setting){.model = MODEL, .kv = FOLOLLM_KV_Q4, .no_rotation = true}, LENGTH);
    CHECK(f16.mean < 1e-6 && f16.same_top > 0.995);
    CHECK(q8.mean < 1e-4 && q8.max < 0.02 && q8.same_top > 0.98);
    CHECK(q4.mean < 0.012 && q4.max < 1 && q4.same_top > 0.88);
    CHECK(q4.mean < bare.mean);
    quality hard8 = report("  with outlier channels, q8",
                           (setting){.model = MODEL, .kv = FOLOLLM_KV_Q8, .outliers = true}, LENGTH);
    quality hard4 = report("  with outlier channels, q4",
                           (setting){.model = MODEL, .kv = FOLOLLM_KV_Q4, .outliers = true}, LENGTH);
    quality hard_bare =
        report("  with outlier channels, q4 without rotation",
               (setting){.model = MODEL, .kv = FOLOLLM_KV_Q4, .outliers = true, .no_rotation = true}, LENGTH);
    CHECK(hard8.mean < 2e-3);
    CHECK(hard4.mean < hard_bare.mean / 2);
    static const char *const models[] = {"qwen3-gqa-bf16", "qwen3-mqa-fp32", "qwen2-gqa-bf16", "llama-gqa-fp16",
                                         "mistral-mha-fp32", "qwen3-window-mixed"};
    for (size_t i = 0; i < FL_COUNT(models); i++) {
        char path[256], name[256];
        snprintf(path, sizeof path, VECTORS "%s", models[i]);
        write_texts(path, SHORT);
        for (int kv = FOLOLLM_KV_Q8; kv <= FOLOLLM_KV_Q4; kv++) {
            snprintf(name, sizeof name, "%s, %s", models[i], kv == FOLOLLM_KV_Q8 ? "q8" : "q4");
            quality q = report(name, (setting){.model = path, .kv = (folollm_kv_type)kv}, SHORT);
            CHECK(q.mean < (kv == FOLOLLM_KV_Q8 ? 1e-3 : 0.15));
        }
    }
}

/* ---- Memory -- */

static void test_memory(void) {
    static const char *const names[] = {"f16", "f32", "bf16", "q8", "q4"};
    static const double most[] = {1, 2, 1, 0.54, 0.30}; /* of f16 */
    uint64_t f16 = 0;
    for (int kv = FOLOLLM_KV_F16; kv <= FOLOLLM_KV_Q4; kv++) {
        folollm_options o = {.n_threads = 1, .kv = (folollm_kv_type)kv, .context = 256};
        folollm_info info;
        folollm_memory plan;
        folollm *f = NULL;
        CHECK(folollm_plan(MODEL, &o, &plan, NULL) == FOLOLLM_OK);
        CHECK(folollm_load(MODEL, &o, &f, NULL) == FOLOLLM_OK);
        folollm_get_info(f, &info);
        f16 = kv == FOLOLLM_KV_F16 ? info.kv_token_bytes : f16;
        CHECK(info.kv == o.kv && (double)info.kv_token_bytes <= most[kv] * (double)f16);
        uint64_t tokens = (uint64_t)info.n_pages * info.page_tokens;
        CHECK(plan.kv_cache >= tokens * info.kv_token_bytes && plan.kv_cache < tokens * info.kv_token_bytes + 256);
        printf("bytes of KV per token, %s: %llu\n", names[kv], (unsigned long long)info.kv_token_bytes);
        folollm_free(f);
    }
}

int main(void) {
    test_kernels();
    test_rows();
    test_attention();
    test_not_finite();
    test_quality();
    test_memory();
    return check_finish();
}
