/* Products with packed weights: every type in every table of kernels against plain C and float64, at odd sizes, to the
 * same bits; rows of an embedding; numbers that are not finite.
 *
 *     cc -O2 -I. -Isrc tests/test_products.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out [TABLES]
 *     TABLES: how many of them this processor must have
 */
#include "inside.h"

#include "check.h"
#include "random.h"

#include <stdlib.h>

#define WIDE 1024 /* most columns of a product here */

static const fl_dtype types[] = {FL_Q8_0, FL_Q8_ROW, FL_Q4_0, FL_Q4_K, FL_Q5_K, FL_Q6_K, FL_Q4_ZERO};

typedef struct matrix {
    fl_matrix m;
    uint8_t *packed;
    float *plain; /* (n_rows, n_cols) what the blocks stand for, by the reference decoder */
} matrix;

static void decode_row(fl_dtype type, const uint8_t *row, size_t n_cols, float *y) {
    float all[WIDE + FL_CHUNK], scale;
    if (type == FL_Q8_ROW) {
        memcpy(&scale, row, sizeof scale);
        for (size_t i = 0; i < n_cols; i++) {
            y[i] = (float)(int8_t)row[sizeof scale + i] * scale;
        }
        return;
    }
    for (size_t i = 0; type == FL_Q4_ZERO && i < n_cols; i++) {
        const uint8_t *unit = row + i / 32 * 19, byte = unit[3 + i % 16];
        uint16_t half;
        memcpy(&half, unit, sizeof half);
        y[i] = (float)((i % 32 < 16 ? byte & 15 : byte >> 4) - unit[2]) * fl_float_of_f16(half) + 0.0f; /* no -0 */
    }
    if (type == FL_Q4_ZERO) {
        return;
    }
    fl_dequantise(type, row, fl_div_up(n_cols, fl_block_numbers(type)) * fl_block_numbers(type), all);
    memcpy(y, all, n_cols * sizeof *y);
}

/* Random numbers, or with `wild` random bytes under scales that are finite: every bit pattern of a block. */
static matrix make_matrix(fl_dtype type, size_t n_rows, size_t n_cols, bool wild) {
    matrix w = {.m = {.n_rows = n_rows, .n_cols = n_cols, .n_parts = 1}};
    size_t row_bytes = fl_row_bytes(type, n_cols), panel_bytes = fl_panel_bytes(type, n_cols);
    uint8_t *rows = malloc(FL_PANEL * row_bytes);
    w.packed = malloc(fl_matrix_bytes(type, n_rows, n_cols));
    w.plain = malloc(n_rows * n_cols * sizeof *w.plain);
    for (size_t first = 0; first < n_rows; first += FL_PANEL) {
        size_t n = fl_min(n_rows - first, FL_PANEL);
        for (size_t r = 0; r < n; r++) {
            float x[WIDE + FL_CHUNK] = {0};
            uint8_t *row = rows + r * row_bytes;
            for (size_t i = 0; i < n_cols; i++) {
                x[i] = random_float() * (random_below(50) == 0 ? 5 : 1);
            }
            if (type == FL_Q4_ZERO) {
                random_zero_row(n_cols, wild, row);
                decode_row(type, row, n_cols, w.plain + (first + r) * n_cols);
                continue;
            }
            fl_quantise_row(type, x, n_cols, row);
            for (size_t i = 0; wild && i < row_bytes; i++) {
                row[i] = (uint8_t)random_below(256);
            }
            for (size_t b = 0; wild && type != FL_Q8_ROW && b < row_bytes; b += fl_block_bytes(type)) {
                uint16_t d = fl_f16_of_float(random_float()), m = fl_f16_of_float(random_float());
                memcpy(row + b + (type == FL_Q6_K ? 208 : 0), &d, 2);
                if (fl_has_mins(type)) {
                    memcpy(row + b + 2, &m, 2);
                }
            }
            if (wild && type == FL_Q8_ROW) {
                float scale = random_float();
                memcpy(row, &scale, sizeof scale);
            }
            decode_row(type, row, n_cols, w.plain + (first + r) * n_cols);
        }
        fl_pack(type, rows, n, n_cols, w.packed + first / FL_PANEL * panel_bytes);
    }
    free(rows);
    w.m.parts[0] = (fl_part){.data = w.packed, .n_rows = n_rows, .type = type};
    return w;
}

static void free_matrix(matrix *w) {
    free(w->packed);
    free(w->plain);
}

typedef struct product {
    fl_cpu_backend cpu;
    fl_arena arena;
    fl_memory memory;
} product;

static void open_product(product *p, const fl_kernels *k, size_t n_rows, size_t n_cols, bool floats) {
    fl_limits limits = {.n_rows = n_rows, .dim = n_cols, .qkv_dim = 16, .attention_dim = 16, .ffn_dim = 16,
                        .head_dim = 16, .group = 1, .packed = true};
    memset(p, 0, sizeof *p);
    fl_memory_init(&p->memory, NULL);
    fl_cpu_layout(&p->cpu, &p->arena, &limits, 1);
    CHECK(fl_arena_open(&p->memory, &p->arena, "a test", NULL) == FOLOLLM_OK);
    fl_cpu_layout(&p->cpu, &p->arena, &limits, 1);
    fl_cpu_init(&p->cpu, k, NULL);
    p->cpu.float_activations = floats;
}

/* y (n_rows, padded w.n_rows) = x W^T by the backend */
static void multiply(const fl_kernels *k, bool floats, const float *x, size_t n_rows, const fl_matrix *w, float *y) {
    product p;
    open_product(&p, k, n_rows, w->n_cols, floats);
    memset(y, 0, n_rows * fl_padded(w->n_rows) * sizeof *y);
    p.cpu.base.ops->project_add(&p.cpu.base, &(fl_batch){.n_rows = n_rows}, x, w, y);
    fl_arena_close(&p.memory, &p.arena);
}

/* x in units of 32 as the kernels round it */
static void round_activations(const float *x, size_t n, double *rounded) {
    for (size_t u = 0; u < n; u += FL_UNIT) {
        size_t end = fl_min(n, u + FL_UNIT);
        float largest = 0;
        for (size_t i = u; i < end; i++) {
            largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        }
        for (size_t i = u; i < end; i++) {
            rounded[i] = largest > 0 ? (double)rintf(x[i] * (127.0f / largest)) * (double)(largest / 127.0f) : 0;
        }
    }
}

/* Both modes against float64, and all tables against the first by memcmp. */
static void check_product(const matrix *w, const float *x, size_t n_rows, const fl_kernels *const *tables, size_t n) {
    size_t n_cols = w->m.n_cols, stride = fl_padded(w->m.n_rows), bytes = n_rows * stride * sizeof(float);
    float *first = malloc(bytes), *y = malloc(bytes);
    for (int floats = 0; floats < 2; floats++) {
        multiply(tables[0], floats, x, n_rows, &w->m, first);
        double error = 0, size = 0, worst = 0;
        for (size_t r = 0; r < n_rows; r++) {
            double rounded[WIDE];
            round_activations(x + r * fl_padded(n_cols), n_cols, rounded);
            for (size_t o = 0; o < w->m.n_rows; o++) {
                double sum = 0, magnitude = 0;
                for (size_t i = 0; i < n_cols; i++) {
                    double a = floats ? (double)x[r * fl_padded(n_cols) + i] : rounded[i];
                    sum += a * (double)w->plain[o * n_cols + i];
                    magnitude += fabs(a * (double)w->plain[o * n_cols + i]);
                }
                double off = fabs((double)first[r * stride + o] - sum);
                error += off * off;
                size += sum * sum;
                worst = off > 1e-6 * magnitude && off > worst ? off : worst;
            }
        }
        CHECK(error <= 1e-11 * size && worst == 0);
        for (size_t t = 1; t < n; t++) {
            multiply(tables[t], floats, x, n_rows, &w->m, y);
            CHECK(memcmp(first, y, bytes) == 0);
        }
    }
    free(first);
    free(y);
}

static float *make_rows(size_t n_rows, size_t n_cols) {
    float *x = calloc(n_rows * fl_padded(n_cols), sizeof *x);
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t i = 0; i < n_cols; i++) {
            x[r * fl_padded(n_cols) + i] = random_below(9) == 0 ? 0 : random_float() * (random_below(60) == 0 ? 40 : 1);
        }
    }
    return x;
}

static void test_products(void) {
    static const size_t shapes[][2] = {{16, 256}, {40, 512}, {97, 1024}, {33, 768}, /* rows, columns */
                                       {1, 2},    {17, 31}, {16, 32},   {50, 33},  {31, 200}, {64, 416}, {15, 990}};
    static const size_t rows[] = {1, 2, 3, 5, 6, 7, 13, 16, 17, 20};
    const fl_kernels *tables[INSIDE_TABLES];
    size_t n_tables = inside_tables(tables);
    unsigned n = 0;
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        for (size_t s = 0; s < FL_COUNT(shapes); s++) {
            if (!fl_packs(types[t], shapes[s][1])) {
                continue;
            }
            for (int wild = 0; wild < 2; wild++, n++) {
                matrix w = make_matrix(types[t], shapes[s][0], shapes[s][1], wild);
                float *x = make_rows(20, shapes[s][1]);
                for (size_t r = (s + (size_t)wild) % 3; r < FL_COUNT(rows); r += 3) {
                    check_product(&w, x, rows[r], tables, n_tables);
                }
                free(x);
                free_matrix(&w);
            }
        }
    }
    printf("products: %u matrices in %zu tables\n", n, n_tables);
}

/* A row's result does not depend on the rows beside it, nor on how many they are. */
static void test_rows_alone(void) {
    const fl_kernels *k = fl_kernels_of(FOLOLLM_ISA_BEST);
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        matrix w = make_matrix(types[t], 50, 512, false);
        size_t stride = fl_padded(50), bytes = stride * sizeof(float);
        float *x = make_rows(41, 512), *all = malloc(41 * bytes), *some = malloc((FL_STREAM_ROWS + 2) * bytes);
        multiply(k, false, x, 41, &w.m, all);
        for (size_t n = 1; n <= FL_STREAM_ROWS + 2; n++) {
            for (size_t r = 0; r + n <= 41; r++) {
                multiply(k, false, x + r * fl_padded(512), n, &w.m, some);
                for (size_t i = 0; i < n; i++) {
                    CHECK(memcmp(some + i * stride, all + (r + i) * stride, 50 * sizeof *some) == 0);
                }
            }
        }
        free(some);
        free(x);
        free(all);
        free_matrix(&w);
    }
}

/* Rows of the embedding are what the blocks stand for, bit for bit. */
static void test_embedding(void) {
    const fl_kernels *tables[INSIDE_TABLES];
    size_t n_tables = inside_tables(tables);
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        size_t n_cols = fl_packs(types[t], 200) ? 200 : 512;
        matrix w = make_matrix(types[t], 45, n_cols, true);
        folollm_token tokens[] = {0, 44, 15, 16, 31, 7};
        fl_batch batch = {.n_rows = FL_COUNT(tokens), .tokens = tokens};
        float *x = calloc(FL_COUNT(tokens) * fl_padded(n_cols), sizeof *x);
        for (size_t k = 0; k < n_tables; k++) {
            product p;
            open_product(&p, tables[k], FL_COUNT(tokens), n_cols, false);
            p.cpu.base.ops->embed(&p.cpu.base, &w.m, &batch, x);
            for (size_t r = 0; r < FL_COUNT(tokens); r++) {
                CHECK(memcmp(x + r * fl_padded(n_cols), w.plain + (size_t)tokens[r] * n_cols,
                             n_cols * sizeof *x) == 0);
            }
            fl_arena_close(&p.memory, &p.arena);
        }
        free(x);
        free_matrix(&w);
    }
}

/* A NaN or an infinity in a row makes that row NaN, and no other. */
static void check_not_finite(size_t n_rows) {
    const fl_kernels *tables[INSIDE_TABLES];
    size_t n_tables = inside_tables(tables), stride = fl_padded(20);
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (size_t t = 0; t < FL_COUNT(types) * n_tables * FL_COUNT(odd); t++) {
        matrix w = make_matrix(types[t % FL_COUNT(types)], 20, 256, false);
        float *x = make_rows(n_rows, 256), clean[(FL_STREAM_ROWS + 1) * 64], y[(FL_STREAM_ROWS + 1) * 64];
        const fl_kernels *k = tables[t / FL_COUNT(types) % n_tables];
        multiply(k, false, x, n_rows, &w.m, clean);
        x[3 * fl_padded(256) + random_below(256)] = odd[t / FL_COUNT(types) / n_tables];
        multiply(k, false, x, n_rows, &w.m, y);
        for (size_t r = 0; r < n_rows; r++) {
            for (size_t o = 0; o < 20; o++) {
                CHECK(r == 3 ? !fl_is_finite(y[r * stride + o]) : y[r * stride + o] == clean[r * stride + o]);
            }
        }
        free(x);
        free_matrix(&w);
    }
}

/* The best table is the last, and no other has its products of integers. */
static void test_tables(size_t n_expected) {
    const fl_kernels *tables[INSIDE_TABLES];
    size_t n = inside_tables(tables);
    CHECK(n_expected == 0 || n == n_expected);
    CHECK(fl_kernels_of(FOLOLLM_ISA_BEST) == tables[n - 1]);
    for (size_t t = 0; t + 1 < n; t++) {
        CHECK(tables[t]->accumulate != tables[n - 1]->accumulate);
    }
}

int main(int argc, char **argv) {
    test_tables(argc > 1 ? (size_t)atoi(argv[1]) : 0);
    test_products();
    test_rows_alone();
    test_embedding();
    check_not_finite(FL_STREAM_ROWS);
    check_not_finite(FL_STREAM_ROWS + 1);
    return check_finish();
}
