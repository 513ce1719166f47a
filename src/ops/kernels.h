/* Kernels: the arithmetic of one thread on the CPU, one table per instruction set.
 *
 * kernels.inc holds the only definition; each table compiles it over its own sixteen-lane vector, so the order of
 * every sum, and with it every bit, is the same in all tables. A dot product runs along K in sixteen lanes, each one
 * a chain of fused multiply-adds, and ends in the fixed tree of reduce_add. */
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "base/os.h"
#include "ops/ops.h"
#include "ops/packed.h"

#define FL_BLOCK_TOKENS 64 /* keys that attention takes at a time, at multiples of this: the order of its sums */

#define FL_WEIGHT_ONE 1073741824.0f /* 2^30 */
#define FL_LOWEST (-3.40282326e+38f) /* the number after -FLT_MAX */

/* Rows of keys or values, n numbers each, in whole vectors: those of the KV cache where they lie, page by page, or laid
 * out as floats. Of scaled types only values, without their scales. */
typedef struct fl_rows {
    folollm_kv_type type;
    size_t n, n_of_part; /* rows in a part */
    const uint8_t *parts[FL_BLOCK_TOKENS / FL_PAGE_TOKENS];
} fl_rows;

/* The scores of rows of integers against keys of the KV cache. */
typedef struct fl_dots {
    folollm_kv_type type;
    size_t n_quads;             /* of a key */
    const int8_t *q;            /* (n_rows, q_stride); q4: those of the low halves, then those of the high ones */
    size_t q_stride, n_rows;
    const float *q_scales;      /* (n_rows) */
    const int32_t *q_sums;      /* (n_rows) of the integers of a row */
    const uint8_t *strips[FL_BLOCK_TOKENS / FL_LANES]; /* each (n_quads, 16, 4) */
    size_t n_strips;
    const float *k_scales;      /* (n_strips, 16) */
    float *scores;              /* (n_rows, FL_BLOCK_TOKENS) */
} fl_dots;

/* A chunk of columns of a row of activations as integers, a scale for each unit of 32: x = q * scale. */
typedef struct fl_chunk8 {
    int8_t q[FL_CHUNK]; /* from -127 to 127, zeros behind the last column */
    float scales[FL_CHUNK_UNITS];
    float minus[FL_CHUNK_UNITS]; /* -scale * sum of the q of a unit */
    int32_t starts8[FL_CHUNK_UNITS], starts4[FL_CHUNK_UNITS], starts6[2 * FL_CHUNK_UNITS]; /* -128, -8 and -32 times
                                   that sum, the last of half units: what sums begin with where weights are unsigned */
} fl_chunk8;

/* A chunk of 16 rows of a packed panel, laid open: n_units times 32 columns. */
typedef struct fl_slab {
    uint8_t bytes[FL_CHUNK * FL_LANES];
    float scales[2 * FL_CHUNK_UNITS][FL_LANES]; /* of a unit; q6_k: of a half */
    float mins[FL_CHUNK_UNITS][FL_LANES];       /* q4_k, q5_k, q4_zero */
    const uint8_t *quads; /* (n_units, 8, 16, 4), in bytes or where they lie packed */
    uint8_t filler[FL_ALIGN - sizeof(void *)];
} fl_slab;

#define FL_SLABS 2 /* of a panel */

#define FL_STREAM_ROWS 7 /* measured on Zen 4: for 8 opened weights are as fast */
#define FL_AHEAD 4096    /* bytes: 1 to 8 KiB measured on Emerald Rapids; 1.35 times the rate without */
#define FL_KV_AHEAD 8192 /* bytes of keys or values with scales: half to 8 KiB measured on Zen 4; 1.3 times */

/* Weights that are read after those at hand: fetched into the cache while these are multiplied, so that memory and
 * arithmetic do not wait for each other. */
typedef struct fl_next {
    uintptr_t at;
    size_t n; /* bytes; 0: nothing is to be fetched */
} fl_next;

/* The next n bytes of it. */
FL_INLINE void fl_fetch(fl_next *next, size_t n) {
    n = fl_min(n, next->n);
    for (size_t i = 0; i < n; i += FL_ALIGN) {
        FL_PREFETCH(next->at + i);
    }
    next->at += n;
    next->n -= n;
}

/* What each of n_steps has to fetch of it. */
FL_INLINE size_t fl_fetch_step(const fl_next *next, size_t n_steps) {
    return fl_div_up(next->n, fl_max(n_steps, 1));
}

/* Rows of integers times slabs. */
typedef struct fl_accumulation {
    fl_dtype type;
    const fl_chunk8 *x; /* (n_rows), n_units of each */
    size_t n_rows, n_units;
    const fl_slab *slabs; /* (n_slabs), 1 or 2 */
    size_t n_slabs;
    bool first; /* y is written; otherwise added to */
    fl_next next;
    float *y; /* (n_rows, 16 * n_slabs) */
    size_t y_stride;
} fl_accumulation;

/* Few rows of integers times a panel, or its upper half, as it lies: nothing is stored in between, so that memory is
 * read as one stream. Processors that look ahead by themselves do so at twice the rate. */
typedef struct fl_streaming {
    fl_dtype type;
    const uint8_t *panel;
    size_t n_slabs, n_units;
    const fl_chunk8 *x; /* (chunks, n_rows) */
    size_t n_rows;      /* FL_STREAM_ROWS at most */
    fl_next next;       /* the panel after it; that many bytes before their turn its own are fetched */
    float *y;           /* (n_rows, 16 * n_slabs) */
    size_t y_stride;
} fl_streaming;

typedef struct fl_kernels {
    const char *name;
    /* y (n) = n numbers of type, then zeros up to fl_lanes(n) */
    void (*expand)(fl_dtype type, const void *from, size_t n, float *y);
    /* y[r * y_stride + o] = x_r . w_o for n_rows rows of x and n_outs rows of w, both of k floats, whole vectors */
    void (*matmul)(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_outs,
                   size_t k, fl_next next, float *y, size_t y_stride);
    /* The same for few rows, with w as it is stored (k numbers of type a row, packed). x has whole vectors. ahead: how
     * many bytes before their turn the weights are fetched, at least, or 0. */
    void (*matvec)(fl_dtype type, const float *x, size_t x_stride, size_t n_rows, const void *w, size_t n_outs,
                   size_t k, size_t ahead, float *y, size_t y_stride);
    /* x (n), then zeros up to whole units, as integers: the chunks of a row lie `stride` apart. A row with a NaN or an
     * infinity in it has NaN for scales. */
    void (*integers)(const float *x, size_t n, fl_chunk8 *to, size_t stride);
    /* Lay open n_units of 16 rows. row_scales: (16) those of q8_row. */
    void (*open)(fl_dtype type, const uint8_t *row_scales, const uint8_t *chunk, size_t n_units, fl_slab *slab);
    /* y += x times the slabs, in order of units: the product of the integers of a unit, exact, times (scale of the
     * slab * scale of x), by fma; then with minima those times (scale of x * sum of its q), taken off. */
    void (*accumulate)(const fl_accumulation *a);
    /* Few rows times a panel: the same bits as by open and accumulate, sooner for stream_rows at most. */
    void (*stream)(const fl_streaming *a);
    size_t stream_rows;
    /* y (n) = x / sqrt(mean(x^2) + epsilon) * w */
    void (*rmsnorm)(const float *x, const float *w, size_t n, float epsilon, float *y);
    /* Rotate (x_i, x_{i + half}) by the angle whose cosine and sine are given, i < half. */
    void (*rotate)(float *x, const float *cosines, const float *sines, size_t half);
    /* x = H x in blocks of `block`, a power of two that divides n, with the matrix of 1 and -1 of Sylvester and
     * Hadamard: H H = block. */
    void (*hadamard)(float *x, size_t n, size_t block);
    /* Integers such that q * the returned scale is about x (n): of 8 bits, from -127 to 127; of 4, from -8 to 7. The
     * number of the largest magnitude becomes the least, so the scale may be negative, and what would pass the most is
     * cut there. A row too small to matter is zero; so is one with a NaN or infinity in it, and its scale is a NaN. */
    float (*quantise)(const float *x, size_t n, int bits, int8_t *q);
    /* y (n) = the integers of a row of V as it is stored, then zeros up to fl_lanes(n) */
    void (*unpack)(folollm_kv_type type, const uint8_t *row, size_t n, float *y);
    /* scores = (q . k) * (q_scale * k_scale), the product of integers exact */
    void (*dots)(const fl_dots *d);
    /* n numbers of KV cache, floats of some type */
    void (*store)(folollm_kv_type type, const float *x, size_t n, void *to);
    /* scores[i * FL_BLOCK_TOKENS + j] = q_i . k_j: the same bits as by matmul, sooner for few queries */
    void (*scores)(const float *q, size_t n_queries, const fl_rows *k, size_t n_keys, float *scores);
    /* One step of the running softmax (Milakov and Gimelshein, 2018): scores (FL_BLOCK_TOKENS) become weights
     * relative to the new maximum, zero outside [begin, end); returns the factor for what was gathered before.
     * maximum and sum are updated. */
    float (*softmax)(float *scores, size_t begin, size_t end, float scale, float *maximum, float *sum);
    /* out_h = out_h * factor_h + sum over [begin, end) of weights_h[j] * v_j, in order of j; n_heads rows of out (v->n)
     * and of weights (FL_BLOCK_TOKENS). */
    void (*gather)(float *out, const float *factors, const float *weights, size_t n_heads, const fl_rows *v,
                   size_t begin, size_t end);
    /* What the softmax of earlier keys gave, with that of later ones: total (n), in whole vectors, and its maximum and
     * sum become those of both */
    void (*merge)(const float *part, float maximum, float sum, size_t n, float *total, float *total_maximum,
                  float *total_sum);
    /* y = x * factor */
    void (*scale)(const float *x, float factor, size_t n, float *y);
    /* y = y * x */
    void (*mul)(const float *x, size_t n, float *y);
    /* y = y + x */
    void (*add)(const float *x, size_t n, float *y);
    /* y = g / (1 + exp(-g)) * u */
    void (*silu_mul)(const float *g, const float *u, size_t n, float *y);
    /* *largest of x (n > 0); false if some are not finite */
    bool (*largest)(const float *x, size_t n, float *largest);
    /* The sum of the weights exp(x - largest), in units of 1 / FL_WEIGHT_ONE, each rounded to an integer: no order in
     * which they are added changes it. weights (n) are given too, if not NULL. */
    uint64_t (*weigh)(const float *x, size_t n, float largest, uint32_t *weights);
    /* y = (x - shift) / temperature, within what is finite; but -FLT_MAX, which is no candidate, stays. y may be x */
    void (*temper)(const float *x, size_t n, float shift, float temperature, float *y);
    /* Which of x (n) are not below limit, which is above -FLT_MAX, in order; returns how many. which: room for n */
    size_t (*at_least)(const float *x, size_t n, float limit, uint32_t *which);
} fl_kernels;

/* NULL: this processor, or this build, does not have it. BEST is never NULL. */
FL_LOCAL const fl_kernels *fl_kernels_of(folollm_isa isa);

#endif
