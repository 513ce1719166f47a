/* Products of bf16 weights on tensor cores (options.device_floats): near enough to the sums that they stand for, and the
 * same bits for a row whatever other rows there are, in every kernel, and so in whole engines. Linked as
 * test_cuda_bits. */
#include "inside.h"

#include "check.h"
#include "cuda/shim.h"
#include "demand.h"
#include "random.h"

#include <stdlib.h>

#define BASE "tests/vectors/models/qwen3-gqa-fp32"
#define ADAPTER "tests/vectors/adapters/all" /* for it */
#define BF16 "tests/vectors/models/qwen2-mha-bf16"

#pragma weak shim_get_counts /* a device has none */

/* ---- Products -- */

#define ROWS_MAX 130
#define COLUMNS_MAX 2200
#define OUTS_MAX 300

typedef struct product_case {
    const char *name;
    uint32_t n_cols, outs[3], n_parts;
    int epilogue;
    bool bias;
} product_case;

static const product_case products[] = {
    {"one column", 1, {5}, 1, FL_DEVICE_STORE, false},
    {"one chunk, added", 128, {16}, 1, FL_DEVICE_ADD, true},
    {"a segment", 256, {40}, 1, FL_DEVICE_STORE, false},
    {"a segment and a bit", 300, {33, 16, 70}, 3, FL_DEVICE_STORE, true},
    {"gate and up", 400, {60, 60}, 2, FL_DEVICE_GATE_UP, true},
    {"gate and up, one block", 136, {7, 7}, 2, FL_DEVICE_GATE_UP, false},
    {"more segments than warps", 2200, {20}, 1, FL_DEVICE_ADD, false},
    {"large tiles", 130, {300}, 1, FL_DEVICE_STORE, true},
};

static fl_cuda device;
static fl_arena arena;
static uint16_t weights[3][OUTS_MAX * COLUMNS_MAX];
static float x[ROWS_MAX * (COLUMNS_MAX + 64)], bias[3][OUTS_MAX], before[ROWS_MAX * OUTS_MAX];
static struct {
    uint8_t *piece, *weights[3];
    float *x, *y, *bias[3];
    fl_device_pieces pieces;
    uint32_t *n;
} there;

static void layout(void) {
    size_t chunks = fl_div_up(COLUMNS_MAX, FL_DEVICE_CHUNK) * FL_DEVICE_CHUNK;
    there.piece = fl_take(&arena, OUTS_MAX * COLUMNS_MAX, sizeof(uint16_t));
    for (size_t i = 0; i < 3; i++) {
        there.weights[i] = fl_take(&arena, OUTS_MAX * chunks, sizeof(uint16_t));
        there.bias[i] = fl_take(&arena, OUTS_MAX, sizeof(float));
    }
    there.x = fl_take(&arena, FL_COUNT(x), sizeof(float));
    there.y = fl_take(&arena, ROWS_MAX * OUTS_MAX, sizeof(float));
    there.pieces.piece[0] = fl_take(&arena, ROWS_MAX * chunks, sizeof(uint16_t));
    there.pieces.piece[1] = fl_take(&arena, ROWS_MAX * chunks, sizeof(uint16_t));
    there.n = fl_take(&arena, 1, sizeof *there.n);
}

static uint32_t outs_of(const product_case *c) { /* of a row of y */
    return c->epilogue == FL_DEVICE_GATE_UP ? c->outs[0] : c->outs[0] + c->outs[1] + c->outs[2];
}

static void make_case(const product_case *c) {
    for (uint32_t p = 0; p < c->n_parts; p++) {
        for (size_t i = 0; i < (size_t)c->outs[p] * c->n_cols; i++) {
            weights[p][i] = fl_bf16_of_float(random_float());
        }
        for (uint32_t i = 0; i < c->outs[p]; i++) {
            bias[p][i] = random_float();
        }
        fl_device_pack pack = {FL_DEVICE_BF16, there.piece, there.weights[p], c->outs[p], c->n_cols};
        fl_cuda_write(&device, there.piece, weights[p], (size_t)c->outs[p] * c->n_cols * sizeof(uint16_t));
        CHECK(device.api->pack(device.device, &pack) == 0);
        fl_cuda_write(&device, there.bias[p], bias[p], c->outs[p] * sizeof(float));
    }
    size_t stride = fl_padded(c->n_cols);
    for (size_t i = 0; i < ROWS_MAX * stride; i++) { /* what is behind a row must not be read */
        x[i] = i % stride < c->n_cols ? random_float() : NAN;
    }
    for (size_t i = 0; i < FL_COUNT(before); i++) {
        before[i] = random_float();
    }
    fl_cuda_write(&device, there.x, x, ROWS_MAX * stride * sizeof(float));
}

/* The first n rows, of a grid made for `most`. */
static void multiply(const product_case *c, uint32_t n, uint32_t most, uint32_t n_pieces, float *y) {
    size_t stride = fl_padded(c->n_cols), bytes = (size_t)ROWS_MAX * outs_of(c) * sizeof *y;
    uint64_t used = shim_get_counts != NULL ? shim_get_counts().products : 0;
    fl_device_rows rows = {.x = there.x, .stride = stride, .n = there.n, .most = most, .n_cols = c->n_cols,
                           .n_pieces = n_pieces, .pieces = there.pieces};
    fl_device_product p = {.type = FL_DEVICE_BF16, .epilogue = c->epilogue, .n_parts = c->n_parts,
                           .n_cols = c->n_cols, .n = there.n, .most = most, .x = there.x, .x_stride = stride,
                           .n_pieces = n_pieces, .pieces = there.pieces, .y = there.y, .y_stride = outs_of(c)};
    for (uint32_t i = 0; i < c->n_parts; i++) {
        fl_device_part part = {there.weights[i], c->bias ? there.bias[i] : NULL, c->outs[i]};
        p.parts[i] = part;
    }
    fl_cuda_write(&device, there.n, &n, sizeof n);
    fl_cuda_write(&device, there.y, before, bytes);
    CHECK(most <= FL_DEVICE_SPLIT_ROWS || device.api->rows(device.device, &rows) == 0);
    CHECK(device.api->product(device.device, &p) == 0);
    fl_cuda_read(&device, y, there.y, bytes);
    demand(fl_cuda_status(&device, &error));
    CHECK(shim_get_counts == NULL || shim_get_counts().products > used);
}

/* What a sum of a part stands for, and the sum of its sizes. */
static double sum_of(const product_case *c, uint32_t part, uint32_t out, uint32_t row, double *size) {
    double sum = c->bias ? bias[part][out] : 0;
    *size = fabs(sum);
    for (uint32_t k = 0; k < c->n_cols; k++) {
        double product = (double)fl_float_of_bf16(weights[part][(size_t)out * c->n_cols + k]) *
                         (double)x[row * fl_padded(c->n_cols) + k];
        sum += product;
        *size += fabs(product);
    }
    return sum;
}

/* The largest error of y, in units of what the sums may have: with two pieces 2^-16 of their sizes, with one 2^-8. */
static double worst_error(const product_case *c, uint32_t n_pieces, const float *y) {
    double worst = 0, unit = n_pieces == 2 ? 0x1p-16 : 0x1p-8, size, up_size = 0;
    for (uint32_t row = 0; row < ROWS_MAX; row++) {
        for (uint32_t i = 0; i < outs_of(c); i++) {
            uint32_t part = 0, out = i;
            for (; out >= c->outs[part]; part++) {
                out -= c->outs[part];
            }
            double expected = sum_of(c, part, out, row, &size), had = before[row * outs_of(c) + i];
            if (c->epilogue == FL_DEVICE_GATE_UP) { /* silu rises by 1.1 at most, and is at most its argument */
                double up = sum_of(c, 1, out, row, &up_size);
                size = 1.1 * size * fabs(up) + (fabs(expected) + size * unit) * up_size;
                expected = expected / (1 + exp(-expected)) * up;
            } else if (c->epilogue == FL_DEVICE_ADD) {
                expected += had;
                size += fabs(had);
            }
            worst = fmax(worst, fabs(y[row * outs_of(c) + i] - expected) / (size * unit));
        }
    }
    return worst;
}

static void test_products(void) {
    static const uint32_t counts[] = {1, 2, 4, 5, 8, 9, 16, 17, 31, 32, 33, 64, 65, 97, ROWS_MAX - 1};
    static float all[ROWS_MAX * OUTS_MAX], some[ROWS_MAX * OUTS_MAX];
    for (size_t i = 0; i < FL_COUNT(products); i++) {
        const product_case *c = &products[i];
        make_case(c);
        for (uint32_t n_pieces = 1; n_pieces <= 2; n_pieces++) {
            multiply(c, ROWS_MAX, ROWS_MAX, n_pieces, all);
            double worst = worst_error(c, n_pieces, all);
            CHECK_TEXT(worst < 1 && (c->n_cols == 1 || worst > 1e-3), c->name);
            for (size_t k = 0; k < FL_COUNT(counts); k++) {
                size_t done = (size_t)counts[k] * outs_of(c), rest = (size_t)ROWS_MAX * outs_of(c) - done;
                multiply(c, counts[k], counts[k] + (k % 3 == 0 ? k : 0), n_pieces, some);
                CHECK_TEXT(memcmp(some, all, done * sizeof *all) == 0, c->name);
                CHECK_TEXT(memcmp(some + done, before + done, rest * sizeof *all) == 0, c->name);
            }
        }
    }
}

/* A row that is no number stays by itself. */
static void test_broken_rows(void) {
    static float y[ROWS_MAX * OUTS_MAX], good[ROWS_MAX * OUTS_MAX];
    const product_case *c = &products[3];
    make_case(c);
    for (uint32_t n = 2; n <= ROWS_MAX; n += 32) {
        size_t stride = fl_padded(c->n_cols), outs = outs_of(c);
        multiply(c, n, n, 2, good);
        float kept = x[stride + 7];
        x[stride + 7] = INFINITY;
        fl_cuda_write(&device, there.x, x, ROWS_MAX * stride * sizeof(float));
        multiply(c, n, n, 2, y);
        x[stride + 7] = kept;
        fl_cuda_write(&device, there.x, x, ROWS_MAX * stride * sizeof(float));
        for (size_t i = 0; i < n * outs; i++) {
            CHECK(i / outs == 1 ? !fl_is_finite(y[i]) : memcmp(&y[i], &good[i], sizeof *y) == 0);
        }
    }
}

/* ---- Engines -- */

#define LENGTH 90

static folollm *open_engine(const char *path, folollm_floats floats, uint32_t chunk) {
    folollm *f = NULL;
    folollm_options o = {.device = 1, .device_floats = floats, .chunk = chunk, .context = 96, .pool_tokens = 640,
                         .weights = FOLOLLM_WEIGHTS_BF16, .n_threads = 1};
    demand(folollm_load(path, &o, &f, &error));
    return f;
}

static void prompt_of(folollm_token *ids, size_t n, uint32_t vocab) {
    for (size_t i = 0; i < n; i++) {
        ids[i] = (folollm_token)(fl_mix(i + 5) % vocab);
    }
}

/* Logits at every position: `first` by prefill in calls of `piece`, the others by steps beside `beside` sequences, of
 * which one has the adapter. */
static float *write_text(folollm *f, size_t first, size_t piece, uint32_t beside, folollm_adapter adapter,
                         uint32_t *vocab) {
    folollm_info info;
    folollm_token ids[LENGTH], next[8];
    folollm_seq seqs[8];
    folollm_get_info(f, &info);
    *vocab = info.vocab;
    float *all = malloc(LENGTH * (size_t)info.vocab * sizeof *all);
    prompt_of(ids, LENGTH, info.vocab);
    for (uint32_t i = 0; i <= beside; i++) {
        demand(folollm_seq_open(f, NULL, &seqs[i], &error));
    }
    if (beside > 0) {
        demand(folollm_seq_set_adapter(f, seqs[1], adapter, &error));
    }
    for (size_t at = 0; at < first; at += piece) {
        demand(folollm_prefill(f, seqs[0], ids + at, fl_min(piece, first - at), all + at * info.vocab, &error));
    }
    for (size_t i = first; i < LENGTH; i++) {
        const float *logits = NULL;
        for (uint32_t k = 0; k <= beside; k++) {
            next[k] = ids[(i + k) % LENGTH];
        }
        demand(folollm_decode_step(f, seqs, next, 1 + (beside != 0 ? i % (beside + 1) : 0), &error));
        demand(folollm_logits(f, seqs[0], &logits, &error));
        memcpy(all + i * info.vocab, logits, info.vocab * sizeof *all);
    }
    for (uint32_t i = 0; i <= beside; i++) {
        demand(folollm_seq_close(f, seqs[i], &error));
    }
    return all;
}

/* The largest difference of logits, relative to the largest logit. */
static double difference(const float *a, const float *b, size_t n) {
    double most = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return most / largest;
}

static void test_engines(void) {
    static const struct {
        size_t first, piece;
        uint32_t beside, chunk;
    } ways[] = {{LENGTH, LENGTH, 0, 96}, {LENGTH, LENGTH, 0, 7}, {64, 64, 7, 64}, {1, 1, 0, 96}, {40, 3, 4, 33}};
    static const double bounds[] = {0, 5e-4, 5e-2};
    const char *paths[] = {BASE, BF16};
    for (size_t p = 0; p < FL_COUNT(paths); p++) {
        uint32_t vocab = 0;
        folollm *f = open_engine(paths[p], FOLOLLM_FLOATS_EXACT, 96);
        float *exact = write_text(f, LENGTH, LENGTH, 0, 0, &vocab), *first = NULL;
        size_t n = (size_t)LENGTH * vocab;
        folollm_free(f);
        for (int floats = FOLOLLM_FLOATS_SPLIT; floats <= FOLOLLM_FLOATS_BF16; floats++) {
            for (size_t i = 0; i < FL_COUNT(ways); i++) {
                folollm_adapter adapter = 0;
                f = open_engine(paths[p], (folollm_floats)floats, ways[i].chunk);
                if (p == 0) {
                    demand(folollm_adapter_load(f, ADAPTER, 1, &adapter, &error));
                }
                float *text = write_text(f, ways[i].first, ways[i].piece, ways[i].beside, adapter, &vocab);
                folollm_free(f);
                if (i == 0) {
                    double d = difference(text, exact, n);
                    CHECK_TEXT(d > 0 && d < bounds[floats], paths[p]);
                    first = text;
                    continue;
                }
                CHECK_TEXT(memcmp(text, first, n * sizeof *text) == 0, paths[p]);
                free(text);
            }
            free(first);
        }
        free(exact);
    }
}

/* ---- Options -- */

static void test_options(void) {
    folollm *f = NULL;
    folollm_options o = {.device_floats = FOLOLLM_FLOATS_SPLIT};
    CHECK(folollm_load(BASE, &o, &f, &error) == FOLOLLM_E_ARGUMENT && f == NULL);
    o.device = 1;
    o.device_floats = (folollm_floats)3;
    CHECK(folollm_load(BASE, &o, &f, &error) == FOLOLLM_E_ARGUMENT && f == NULL);
    if (shim_get_counts != NULL) {
        shim_set_capability(7, 5);
        o.device_floats = FOLOLLM_FLOATS_BF16;
        CHECK(folollm_load(BASE, &o, &f, &error) == FOLOLLM_E_UNSUPPORTED && f == NULL);
        CHECK(strstr(error.text, "no tensor cores for bf16") != NULL);
        shim_set_capability(9, 0);
    }
}

int main(void) {
    fl_memory_init(&memory, NULL);
    demand(fl_cuda_open(&memory, &device, 0, NULL, &error));
    layout();
    demand(fl_cuda_arena_open(&device, &arena, "a test", &error));
    layout();
    test_products();
    test_broken_rows();
    fl_cuda_arena_close(&device, &arena);
    fl_cuda_close(&memory, &device);
    test_engines();
    test_options();
    return check_finish();
}
