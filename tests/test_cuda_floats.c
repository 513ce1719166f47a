/* Floats on tensor cores (options.device_floats): products with bf16 weights and attention are near enough to the sums
 * that they stand for, and the same bits for a row whatever other rows there are, in every kernel, and so in whole
 * engines. Linked as test_cuda_bits. */
#include "inside.h"

#include "check.h"
#include "cuda/shim.h"
#include "demand.h"
#include "random.h"

#include <stdlib.h>

#define BASE "tests/vectors/models/qwen3-gqa-fp32"
#define ADAPTER "tests/vectors/adapters/all" /* for it */
#define MODEL "examples/models/tiny-shakespeare" /* head_dim 64: attention on tensor cores, too */

#pragma weak shim_get_counts /* a device has none of these */
#pragma weak shim_set_capability
#pragma weak shim_set_compiled

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
    bool fused = most <= FL_DEVICE_FUSED_ROWS;
    fl_device_rows rows = {.x = there.x, .stride = stride, .n = there.n, .most = most, .n_cols = c->n_cols,
                           .n_pieces = n_pieces};
    if (!fused) {
        rows.pieces = there.pieces;
    }
    fl_device_product p = {.type = FL_DEVICE_BF16, .epilogue = c->epilogue, .n_parts = c->n_parts, .rows = rows,
                           .y = there.y, .y_stride = outs_of(c)};
    for (uint32_t i = 0; i < c->n_parts; i++) {
        fl_device_part part = {there.weights[i], c->bias ? there.bias[i] : NULL, c->outs[i]};
        p.parts[i] = part;
    }
    fl_cuda_write(&device, there.n, &n, sizeof n);
    fl_cuda_write(&device, there.y, before, bytes);
    CHECK(fused || device.api->rows(device.device, &rows) == 0);
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

/* ---- Attention -- */

#define KEYS_MAX 200
#define HEADS_MAX 20
#define SPLIT 64

typedef struct attention_case {
    const char *name;
    uint32_t head_dim, n_heads, n_kv_heads, window;
    int kv;
    float size; /* of queries */
} attention_case;

static const attention_case attentions[] = {
    {"two heads a key", 128, 4, 2, 0, FL_DEVICE_KV_F16, 1},
    {"a window", 64, 3, 1, 70, FL_DEVICE_KV_BF16, 1},
    {"many heads, a short window", 64, 20, 1, 9, FL_DEVICE_KV_F16, 1},
    {"large queries", 128, 2, 2, 0, FL_DEVICE_KV_F16, 1e6f},
    {"small queries", 64, 2, 1, 0, FL_DEVICE_KV_F16, 1e-30f},
    {"seven heads", 128, 7, 1, 0, FL_DEVICE_KV_BF16, 1},
};

#define N_PAGES (KEYS_MAX / FL_PAGE_TOKENS + 1)
static uint16_t cache[2][2 * N_PAGES * FL_PAGE_TOKENS * 128]; /* K, V: (kv_heads, pages, tokens, head_dim) */
static float queries[KEYS_MAX * HEADS_MAX * 128];
static struct {
    uint8_t *kv[2];
    fl_device_counts *counts;
    fl_device_tile *tiles;
    uint32_t *pages, *positions;
    float *q, *out, *parts, *limits;
} at;

static void layout_attention(void) {
    at.kv[0] = fl_take(&arena, 1, sizeof cache[0]);
    at.kv[1] = fl_take(&arena, 1, sizeof cache[1]);
    at.counts = fl_take(&arena, 1, sizeof *at.counts);
    at.tiles = fl_take(&arena, KEYS_MAX * HEADS_MAX, sizeof *at.tiles);
    at.pages = fl_take(&arena, KEYS_MAX / FL_PAGE_TOKENS + 1, sizeof *at.pages);
    at.positions = fl_take(&arena, KEYS_MAX, sizeof *at.positions);
    at.q = fl_take(&arena, 1, sizeof queries);
    at.out = fl_take(&arena, 1, sizeof queries);
    at.parts = fl_take(&arena, KEYS_MAX * HEADS_MAX * (KEYS_MAX / SPLIT + 1), 128 * sizeof(float));
    at.limits = fl_take(&arena, KEYS_MAX * HEADS_MAX * (KEYS_MAX / SPLIT + 1), 2 * sizeof(float));
}

static uint32_t page_of(uint32_t i) { /* of the sequence */
    return (i * 5 + 3) % N_PAGES;
}

static float cached(const attention_case *c, int is_v, uint32_t kv_head, uint32_t token, uint32_t i) {
    size_t page = (size_t)kv_head * N_PAGES + page_of(token / FL_PAGE_TOKENS);
    uint16_t bits = cache[is_v][((page * FL_PAGE_TOKENS) + token % FL_PAGE_TOKENS) * c->head_dim + i];
    return c->kv == FL_DEVICE_KV_BF16 ? fl_float_of_bf16(bits) : fl_float_of_f16(bits);
}

/* Tokens from n_keys on are no numbers: nobody may use them. */
static void make_attention(const attention_case *c, uint32_t n_keys) {
    bool bf16 = c->kv == FL_DEVICE_KV_BF16;
    for (size_t i = 0; i < FL_COUNT(cache[0]); i++) {
        cache[0][i] = bf16 ? fl_bf16_of_float(random_float()) : fl_f16_of_float(random_float());
        cache[1][i] = bf16 ? fl_bf16_of_float(random_float()) : fl_f16_of_float(random_float());
    }
    for (uint32_t token = n_keys; token < N_PAGES * FL_PAGE_TOKENS; token++) {
        for (uint32_t i = 0; i < c->head_dim * c->n_kv_heads; i++) {
            size_t page = (size_t)(i / c->head_dim) * N_PAGES + page_of(token / FL_PAGE_TOKENS);
            size_t to = ((page * FL_PAGE_TOKENS) + token % FL_PAGE_TOKENS) * c->head_dim + i % c->head_dim;
            cache[0][to] = cache[1][to] = 0x7FFF;
        }
    }
    for (size_t i = 0; i < FL_COUNT(queries); i++) {
        queries[i] = c->size * random_float();
    }
    fl_cuda_write(&device, at.kv[0], cache[0], sizeof cache[0]);
    fl_cuda_write(&device, at.kv[1], cache[1], sizeof cache[1]);
    fl_cuda_write(&device, at.q, queries, sizeof queries);
}

static float scale_of(const attention_case *c) {
    return 1 / (c->size * sqrtf((float)c->head_dim));
}

/* Rows [first, first + n) of one sequence, a row for each position, as one run in tiles of so many queries. */
static void attend(const attention_case *c, uint32_t first, uint32_t n, uint32_t tile, uint32_t n_splits,
                   uint32_t n_pieces, float *out) {
    static fl_device_tile tiles[KEYS_MAX * HEADS_MAX];
    uint32_t n_tiles = 0, all = n * (c->n_heads / c->n_kv_heads), stride = c->n_heads * c->head_dim;
    uint32_t pages[N_PAGES], positions[KEYS_MAX];
    for (uint32_t i = 0; i < N_PAGES; i++) {
        pages[i] = page_of(i);
    }
    for (uint32_t i = 0; i < n; i++) {
        positions[i] = first + i;
    }
    for (uint32_t i = 0; i < all; i += tile, n_tiles++) {
        fl_device_tile t = {0, first, 0, i, fl_min(all - i, tile)};
        tiles[n_tiles] = t;
    }
    fl_device_counts counts = {n, n, n_tiles, 0};
    fl_device_heads heads = {.kv = {at.kv[0], at.kv[1], c->kv, FL_PAGE_TOKENS, c->n_kv_heads, c->head_dim, N_PAGES},
                             .counts = at.counts, .most = n + 1, .n_heads = c->n_heads, .positions = at.positions,
                             .qkv = at.q + first * stride, .qkv_stride = stride};
    fl_device_attend a = {.heads = heads, .most_tiles = n_tiles + 2, .queries = tile, .n_pieces = n_pieces,
                          .n_kv_heads = c->n_kv_heads, .n_splits = n_splits, .split_tokens = SPLIT,
                          .window = c->window, .scale = scale_of(c), .tiles = at.tiles, .pages = at.pages,
                          .out = at.out, .out_stride = stride, .parts = at.parts,
                          .limits = at.limits};
    fl_cuda_write(&device, at.counts, &counts, sizeof counts);
    fl_cuda_write(&device, at.tiles, tiles, n_tiles * sizeof *tiles);
    fl_cuda_write(&device, at.pages, pages, sizeof pages);
    fl_cuda_write(&device, at.positions, positions, n * sizeof *positions);
    CHECK(device.api->attend(device.device, &a) == 0);
    fl_cuda_read(&device, out, at.out, n * stride * sizeof *out);
    demand(fl_cuda_status(&device, &error));
}

/* The largest difference of a row and head from what it stands for. */
static double wrong_by(const attention_case *c, uint32_t row, uint32_t head, const float *out) {
    uint32_t kv_head = head / (c->n_heads / c->n_kv_heads), d = c->head_dim, n = row + 1;
    uint32_t begin = c->window != 0 && n > c->window ? n - c->window : 0;
    const float *q = queries + ((size_t)row * c->n_heads + head) * d;
    double weights[KEYS_MAX], sum = 0, most = -1e300, worst = 0;
    for (uint32_t k = begin; k < n; k++) {
        weights[k] = 0;
        for (uint32_t i = 0; i < d; i++) {
            weights[k] += (double)q[i] * (double)cached(c, 0, kv_head, k, i);
        }
        weights[k] *= (double)scale_of(c);
        most = fmax(most, weights[k]);
    }
    for (uint32_t k = begin; k < n; k++) {
        sum += weights[k] = exp(weights[k] - most);
    }
    for (uint32_t i = 0; i < d; i++) {
        double expected = 0;
        for (uint32_t k = begin; k < n; k++) {
            expected += weights[k] / sum * (double)cached(c, 1, kv_head, k, i);
        }
        worst = fmax(worst, fabs(expected - (double)out[i]));
    }
    return worst;
}

static void test_attention(void) {
    static float whole[KEYS_MAX * HEADS_MAX * 128], some[KEYS_MAX * HEADS_MAX * 128];
    static const struct {
        uint32_t first, n, tile;
        bool splits;
    } ways[] = {{0, KEYS_MAX, 16, false}, {150, 50, 64, false}, {3, 61, 64, false},
                {199, 1, 2, true},        {64, 9, 16, true},    {63, 1, 1, true},
                {130, 3, 4, false},       {0, 1, 8, true},      {70, 30, 32, true}};
    for (size_t i = 0; i < FL_COUNT(attentions); i++) {
        const attention_case *c = &attentions[i];
        size_t stride = c->n_heads * c->head_dim;
        make_attention(c, KEYS_MAX);
        for (uint32_t n_pieces = 1; n_pieces <= 2; n_pieces++) {
            double worst = 0, bound = (n_pieces == 2 ? 0x1p-15 : c->kv == FL_DEVICE_KV_BF16 ? 0x1p-6 : 0x1p-9);
            attend(c, 0, KEYS_MAX, 64, 1, n_pieces, whole);
            for (uint32_t row = 0; row < KEYS_MAX; row++) {
                for (uint32_t head = 0; head < c->n_heads; head++) {
                    worst = fmax(worst, wrong_by(c, row, head, whole + row * stride + head * c->head_dim));
                }
            }
            CHECK_TEXT(worst < bound && worst > 0, c->name);
            for (size_t w = 0; w < FL_COUNT(ways); w++) {
                uint32_t n_splits = ways[w].splits ? (ways[w].first + ways[w].n + SPLIT - 1) / SPLIT : 1;
                attend(c, ways[w].first, ways[w].n, ways[w].tile, n_splits, n_pieces, some);
                CHECK_TEXT(memcmp(some, whole + ways[w].first * stride, ways[w].n * stride * sizeof *some) == 0,
                           c->name);
            }
        }
        make_attention(c, 45); /* a query may see so many, and what lies behind them in their block is not there */
        attend(c, 20, 25, 64, 1, 2, some);
        for (size_t k = 0; k < 25 * stride; k++) {
            CHECK(fl_is_finite(some[k]));
        }
    }
}

/* ---- Engines -- */

#define LENGTH 72

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
    } ways[] = {{LENGTH, LENGTH, 0, 96}, {LENGTH, LENGTH, 0, 7}, {64, 64, 7, 64}, {60, 1, 0, 96}, {55, 3, 4, 33}};
    static const double bounds[] = {0, 5e-4, 5e-2};
    const char *paths[] = {BASE, MODEL};
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
        shim_set_compiled(75);
        CHECK(folollm_load(BASE, &o, &f, &error) == FOLOLLM_E_UNSUPPORTED && f == NULL);
        shim_set_compiled(0);
    }
}

int main(void) {
    fl_memory_init(&memory, NULL);
    demand(fl_cuda_open(&memory, &device, 0, NULL, &error));
    layout();
    layout_attention();
    demand(fl_cuda_arena_open(&device, &arena, "a test", &error));
    layout();
    layout_attention();
    test_products();
    test_broken_rows();
    test_attention();
    fl_cuda_arena_close(&device, &arena);
    fl_cuda_close(&memory, &device);
    test_engines();
    test_options();
    return check_finish();
}
