/* bench_device.c - what the kernels of folollm_kernels.cu do on a CUDA device, one by one, beside what it can do: in
 * the shapes of Qwen3-0.6B (28 layers), as recorded steps, over memory that holds anything.
 *
 *     make -C tests build/device/bench_device
 *     tests/build/device/bench_device [REPEATS]
 *
 * Every row is the median of REPEATS (20) launches of one graph. The first rows are the device's own: copying a
 * gigabyte within it, counted as read and written, and a thousand kernels that do nothing, which is what a kernel
 * costs. Shares are of that copy's rate. */
#define _POSIX_C_SOURCE 199309L
#include "ops/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LAYERS 28
#define DIM 1024u
#define HEADS 16u
#define KV_HEADS 8u
#define HEAD_DIM 128u
#define FFN 3072u
#define VOCAB 151936u
#define ROWS_MAX 8192u
#define PAGE 16u
#define SPLIT 256u

static const fl_device_api *api;
static fl_device *device;
static size_t n_steps;
static int repeats = 20;
static double copy_rate; /* bytes a second */

static void must(int code) {
    if (code != 0) {
        fprintf(stderr, "%s\n", api->error_text(code));
        exit(1);
    }
}

static void *room(size_t n_bytes) {
    void *p = NULL;
    must(api->alloc(device, n_bytes, &p));
    return p;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void begin(void) {
    if (n_steps == FL_DEVICE_STEPS) {
        fprintf(stderr, "more rows than a device has steps\n");
        exit(1);
    }
    must(api->record(device));
}

/* What was recorded takes so long, in microseconds; the first three launches do not count. */
static double end(void) {
    double times[1000];
    must(api->recorded(device, n_steps));
    for (int i = -3; i < repeats; i++) {
        double from = now();
        must(api->replay(device, n_steps));
        must(api->wait(device));
        times[i < 0 ? 0 : i] = now() - from;
    }
    n_steps++;
    qsort(times, (size_t)repeats, sizeof *times, by_size);
    return times[repeats / 2] * 1e6;
}

/* bytes and operations: of one of n kernels. */
static void row(const char *what, const char *how, uint32_t rows, size_t n, double us, double bytes,
                double operations) {
    double each = us / (double)n;
    printf("| %s | %s | %u | %.2f | %.0f | %.0f %% | %.1f |\n", what, how, rows, each, bytes / each * 1e-3,
           100 * bytes / (each * 1e-6) / copy_rate, operations / each * 1e-6);
    fflush(stdout);
}

/* ---- The device -- */

static void device_itself(void) {
    size_t n = (size_t)1 << 30;
    uint8_t *from = room(2 * n);
    must(api->copy(device, from + n, from, n, n, 1));
    must(api->wait(device));
    double best = 1e9;
    for (int i = 0; i < repeats; i++) {
        double at = now();
        must(api->copy(device, from + n, from, n, n, 1));
        must(api->wait(device));
        best = now() - at < best ? now() - at : best;
    }
    api->release(device, from);
    copy_rate = 2 * (double)n / best;
    row("copy, 1 GiB", "", 0, 1, best * 1e6, 2 * (double)n, 0);
    uint32_t one = 1, *count = room(sizeof *count);
    float *y = room(64);
    must(api->upload(device, count, &one, sizeof one));
    fl_device_combine nothing = {FL_DEVICE_ADD, count, 1, 1, y, y, 16};
    begin();
    for (int i = 0; i < 1000; i++) {
        must(api->combine(device, &nothing));
    }
    row("a kernel", "", 0, 1000, end(), 0, 0);
}

/* ---- Products -- */

static const struct {
    const char *name;
    int type;
    uint32_t n_pieces;
    double bytes; /* of a weight */
} ways[] = {{"bf16, exact", FL_DEVICE_BF16, 0, 2},        {"bf16, split", FL_DEVICE_BF16, 2, 2},
            {"bf16, bf16", FL_DEVICE_BF16, 1, 2},         {"q8", FL_DEVICE_Q8, 0, 34.0 / 32},
            {"q4", FL_DEVICE_Q4, 0, 18.0 / 32}};

typedef struct rows {
    float *x, *y, *norm;
    fl_device_integers integers;
    fl_device_pieces pieces;
    uint32_t *counts[8]; /* of 1, 2, 8, 32, 256, 512, 8192 */
} rows;

static const uint32_t row_counts[] = {1, 2, 8, 32, 256, 512, 8192};
#define N_COUNTS (sizeof row_counts / sizeof *row_counts)

static uint32_t padded(uint32_t n) {
    return ((n + 15) / 16 | 1) * 16;
}

static rows make_rows(void) {
    rows r;
    size_t n = ROWS_MAX;
    r.x = room(n * padded(4096) * 4);
    r.y = room((size_t)512 * VOCAB * 4);
    r.norm = room(4096 * 4);
    r.integers.q = room(n * 4096);
    r.integers.scales = room(n * 128 * 4);
    r.integers.minus = room(n * 128 * 4);
    r.pieces.piece[0] = room(n * 4096 * 2);
    r.pieces.piece[1] = room(n * 4096 * 2);
    for (size_t i = 0; i < N_COUNTS; i++) {
        r.counts[i] = room(sizeof(fl_device_counts));
        must(api->upload(device, r.counts[i], &row_counts[i], sizeof row_counts[i]));
        must(api->wait(device));
    }
    return r;
}

/* One product as a step makes it, its rows made ready as there; returns weights. */
static size_t product(const rows *r, size_t way, size_t count, const uint8_t *w, int epilogue, const uint32_t outs[3],
                      uint32_t n_parts, uint32_t n_cols, int normed) {
    uint32_t n = row_counts[count];
    fl_device_rows in = {.x = r->x, .stride = padded(n_cols), .n = r->counts[count], .most = n, .n_cols = n_cols,
                         .norm = normed ? r->norm : NULL, .epsilon = 1e-6f, .n_pieces = ways[way].n_pieces};
    int packed = ways[way].type >= FL_DEVICE_Q8;
    if (n > FL_DEVICE_FUSED_ROWS) {
        if (packed) {
            in.integers = r->integers;
        } else if (in.n_pieces > 0) {
            in.pieces = r->pieces;
        } else {
            in.normed = normed ? r->x : NULL;
        }
        if (packed || in.n_pieces > 0 || normed) {
            must(api->rows(device, &in));
        }
        in.norm = NULL;
        in.normed = NULL;
    }
    fl_device_product p = {.type = ways[way].type, .epilogue = epilogue, .n_parts = n_parts, .rows = in, .y = r->y,
                           .y_stride = padded(outs[0] + outs[1] + outs[2])};
    size_t all = 0;
    for (uint32_t i = 0; i < n_parts; i++) {
        fl_device_part part = {w + (size_t)((double)all * ways[way].bytes) / 64 * 64, NULL, outs[i]};
        p.parts[i] = part;
        all += (size_t)outs[i] * n_cols;
    }
    must(api->product(device, &p));
    return all;
}

static void products(const rows *r) {
    static const uint32_t qkv[] = {HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM}, o[] = {DIM, 0, 0};
    static const uint32_t gate_up[] = {FFN, FFN, 0}, head[] = {VOCAB, 0, 0};
    size_t layer = (size_t)15 << 20, largest = LAYERS * layer * 2 + (size_t)VOCAB * DIM * 2; /* with q and k above it */
    uint8_t *weights = room(largest + ((size_t)64 << 20));
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
        for (size_t c = 0; c < N_COUNTS; c++) {
            double rows = row_counts[c];
            size_t n = 0;
            begin();
            for (size_t l = 0; l < LAYERS; l++) {
                uint8_t *w = weights + (size_t)((double)(l * layer) * ways[way].bytes) / 64 * 64;
                n = product(r, way, c, w, FL_DEVICE_STORE, qkv, 3, DIM, 1);
                n += product(r, way, c, w, FL_DEVICE_ADD, o, 1, HEADS * HEAD_DIM, 0);
                n += product(r, way, c, w, FL_DEVICE_GATE_UP, gate_up, 2, DIM, 1);
                n += product(r, way, c, w, FL_DEVICE_ADD, o, 1, FFN, 0);
            }
            row("products of a layer", ways[way].name, row_counts[c], LAYERS, end(), (double)n * ways[way].bytes,
                2 * (double)n * rows);
            if (row_counts[c] <= 512) {
                begin();
                n = product(r, way, c, weights, FL_DEVICE_STORE, head, 1, DIM, 1);
                row("head", ways[way].name, row_counts[c], 1, end(), (double)n * ways[way].bytes, 2 * (double)n * rows);
            }
        }
    }
    api->release(device, weights);
}

/* ---- Attention, and choosing a token -- */

/* n sequences with n_rows rows each, the last at position depth - 1. */
static void attention(const rows *r, uint32_t n, uint32_t n_rows, uint32_t depth, uint32_t n_pieces, int type) {
    uint32_t group = HEADS / KV_HEADS, all = n * n_rows, tile = 1, pages = (depth + PAGE - 1) / PAGE, n_tiles = 0;
    uint32_t most = n_pieces > 0 ? FL_DEVICE_FLASH_QUERIES : FL_DEVICE_QUERIES;
    while (tile < n_rows * group && tile < most) {
        tile *= 2;
    }
    fl_device_tile *tiles = malloc((size_t)all * group * sizeof *tiles);
    uint32_t *table = malloc((size_t)n * pages * sizeof *table), *positions = malloc(all * sizeof *positions);
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t q = 0; q < n_rows * group; q += tile, n_tiles++) {
            uint32_t left = n_rows * group - q;
            fl_device_tile t = {s * n_rows, depth - n_rows, s * pages, q, left < tile ? left : tile};
            tiles[n_tiles] = t;
        }
        for (uint32_t i = 0; i < n_rows; i++) {
            positions[s * n_rows + i] = depth - n_rows + i;
        }
        for (uint32_t i = 0; i < pages; i++) {
            table[s * pages + i] = s * pages + i;
        }
    }
    fl_device_counts counts = {all, all, n_tiles, 0};
    uint32_t qkv = padded((HEADS + 2 * KV_HEADS) * HEAD_DIM), n_splits = (depth + SPLIT - 1) / SPLIT;
    n_splits = all <= 32 ? n_splits : 1;
    size_t row_bytes = type == FL_DEVICE_KV_Q8 ? HEAD_DIM + 4 : 2 * HEAD_DIM;
    size_t kv_bytes = (size_t)n * pages * PAGE * KV_HEADS * row_bytes, parts = (size_t)all * HEADS * n_splits;
    fl_device_attend a = {.most_tiles = n_tiles, .queries = tile, .n_pieces = n_pieces, .n_kv_heads = KV_HEADS,
                          .n_splits = n_splits, .split_tokens = SPLIT, .scale = 0.1f,
                          .tiles = room(n_tiles * sizeof *tiles),
                          .pages = room((size_t)n * pages * sizeof *table),
                          .out = r->x, .out_stride = padded(HEADS * HEAD_DIM), .parts = room(parts * HEAD_DIM * 4),
                          .limits = room(parts * 8)};
    fl_device_heads heads = {.kv = {room(kv_bytes), room(kv_bytes), type, PAGE, KV_HEADS, HEAD_DIM, (size_t)n * pages},
                             .counts = room(sizeof counts), .most = all, .n_heads = HEADS,
                             .positions = room(all * sizeof *positions), .qkv = r->y, .qkv_stride = qkv};
    a.heads = heads;
    must(api->upload(device, (void *)(uintptr_t)heads.counts, &counts, sizeof counts));
    must(api->upload(device, (void *)(uintptr_t)a.tiles, tiles, n_tiles * sizeof *tiles));
    must(api->upload(device, (void *)(uintptr_t)a.pages, table, (size_t)n * pages * sizeof *table));
    must(api->upload(device, (void *)(uintptr_t)heads.positions, positions, all * sizeof *positions));
    must(api->wait(device));
    begin();
    for (int i = 0; i < LAYERS; i++) {
        must(api->attend(device, &a));
    }
    char how[64];
    snprintf(how, sizeof how, "%s, %s, depth %u", type == FL_DEVICE_KV_Q8 ? "q8" : "f16",
             n_pieces == 0 ? "exact" : n_pieces == 2 ? "split" : "bf16", depth);
    double keys = (double)depth - (n_rows - 1) / 2.0;
    row(n_rows == 1 ? "attention, decode" : "attention, prefill", how, all, LAYERS, end(), 2 * (double)kv_bytes,
        4.0 * HEADS * HEAD_DIM * all * keys);
    api->release(device, heads.kv.k);
    api->release(device, heads.kv.v);
    api->release(device, a.parts);
    free(tiles);
    free(table);
    free(positions);
}

static void attentions(const rows *r) {
    static const struct {
        uint32_t n, n_rows, depth;
    } shapes[] = {{1, 1, 512}, {1, 1, 4096}, {32, 1, 512}, {256, 1, 903}, {1, 512, 512}, {8, 1024, 1024}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (uint32_t n_pieces = 0; n_pieces <= 2; n_pieces++) {
            attention(r, shapes[i].n, shapes[i].n_rows, shapes[i].depth, n_pieces, FL_DEVICE_KV_F16);
        }
        attention(r, shapes[i].n, shapes[i].n_rows, shapes[i].depth, 0, FL_DEVICE_KV_Q8);
    }
}

static void choices(const rows *r) {
    static const uint32_t n[] = {1, 32, 256};
    uint32_t words = (VOCAB + 31) / 32, *banned = room(words * 4), *none = calloc(words, 4);
    fl_device_choice greedy = {.asked = 1}, top_p = {.asked = 1, .draws = 1, .n_stages = 2,
                                                     .stages = {FL_DEVICE_TEMPERATURE, FL_DEVICE_TOP_P},
                                                     .temperature = 0.8f, .top_p = 0.9f, .uniform = 0.5};
    float *logits = calloc((size_t)256 * VOCAB, sizeof *logits);
    for (size_t i = 0; i < (size_t)256 * VOCAB; i++) {
        logits[i] = (float)(i * 2654435761u % 10007) * 1e-3f;
    }
    must(api->upload(device, r->y, logits, (size_t)256 * VOCAB * sizeof *logits));
    must(api->upload(device, banned, none, words * 4));
    for (int draws = 0; draws < 2; draws++) {
        for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
            fl_device_counts counts = {n[i], n[i], 0, 0};
            fl_device_choice *asked = malloc(n[i] * sizeof *asked);
            for (uint32_t k = 0; k < n[i]; k++) {
                asked[k] = draws ? top_p : greedy;
            }
            fl_device_choose c = {room(sizeof counts), n[i], VOCAB, r->y, banned, room(n[i] * sizeof *asked),
                                  room(n[i] * sizeof(fl_device_chosen))};
            must(api->upload(device, (void *)(uintptr_t)c.counts, &counts, sizeof counts));
            must(api->upload(device, (void *)(uintptr_t)c.choices, asked, n[i] * sizeof *asked));
            must(api->wait(device));
            begin();
            must(api->choose(device, &c));
            row("choice", draws ? "top-p" : "greedy", n[i], 1, end(), (double)n[i] * VOCAB * 4, 0);
            free(asked);
        }
    }
    free(logits);
    free(none);
}

int main(int argc, char **argv) {
    fl_device_info info;
    api = folollm_kernels();
    if (argc > 1) {
        repeats = atoi(argv[1]);
    }
    if (repeats < 1 || repeats > 1000) {
        fprintf(stderr, "REPEATS: 1 to 1000\n");
        return 2;
    }
    device = calloc(1, api->device_bytes);
    must(api->open(device, 0, NULL));
    must(api->about(device, &info));
    printf("%s\n\n| kernel | as | rows | us | GB/s | of the copy | TFLOP/s |\n|---|---|---:|---:|---:|---:|---:|\n",
           info.name);
    device_itself();
    rows r = make_rows();
    products(&r);
    attentions(&r);
    choices(&r);
    api->close(device);
    free(device);
    return 0;
}
