/* Products of bf16 weights with rows on tensor cores, which round otherwise than the CPU: a number of a row is the sum
 * of two bf16 (16 bits, nearly a float), or one, its nearest.
 *
 * A sum runs over segments of 256 columns: within one, a chain of products of sixteen columns, of the nearest numbers
 * and then of the rests; then the segments are added, in order. Every kernel here does it so, and an output sees
 * nothing of its neighbours: so no bit depends on how many rows there are. Which columns are the sixteen does not
 * matter, if both sides agree; they are two pairs of each of four lanes of a chunk (cuda_weights.cuh), because a thread
 * then takes all that it needs for two products with one load of sixteen bytes.
 *
 * Up to FL_FEW_ROWS_MAX rows, warps have segments of sixteen rows of W, and what they give is added up in shared
 * memory: the speed is that of memory, and this keeps most of W on its way. One or two rows are made ready here. With
 * more rows a block has a tile of 64 or 128 rows of W and 64 of x, and stages of 64 columns come to shared memory one
 * behind the other. */
#ifndef FL_CUDA_TENSOR_CUH
#define FL_CUDA_TENSOR_CUH

#include "ops/cuda_products.cuh"

namespace {

#define FL_SEGMENT_CHUNKS 2
#define FL_SLABS 4 /* of 32 columns, of a chunk: numbers of a slab are four lanes' */
#define FL_M 16    /* rows of W of a product */
#define FL_N 8     /* rows of x */

__host__ __device__ __forceinline__ uint32_t fl_segments(uint32_t n_cols) {
    return (fl_chunks(n_cols) + FL_SEGMENT_CHUNKS - 1) / FL_SEGMENT_CHUNKS;
}

/* Sixteen rows of W and 32 columns: what a thread has of rows g and g + 8, where g = lane / 4. */
struct fl_left {
    uint4 low, high;
};

__device__ __forceinline__ uint4 fl_eight(const void *at) {
    return *(const uint4 *)at;
}

/* Eight rows of x and 32 columns: of row g, the nearest numbers and the rests. */
template <int PIECES>
struct fl_right {
    uint4 piece[PIECES];
};

template <int PIECES>
__device__ __forceinline__ void fl_tensor_step(float sums[4], const fl_left &w, const fl_right<PIECES> &x) {
    uint32_t first[4] = {w.low.x, w.high.x, w.low.y, w.high.y}, second[4] = {w.low.z, w.high.z, w.low.w, w.high.w};
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        fl_mma_halves<true>(sums, first, x.piece[p].x, x.piece[p].y);
    }
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        fl_mma_halves<true>(sums, second, x.piece[p].z, x.piece[p].w);
    }
}

/* ---- Few rows -- */

#define FL_FEW_WARPS 8 /* of a block, at most: one for each segment at hand */
#define FL_FEW_ROWS_MAX 32

template <int MATRICES, int TILES>
struct fl_segment_sums { /* of the warps of a block, [lane][number of fl_mma_halves]: a thread's lie together */
    float4 parts[FL_FEW_WARPS][MATRICES][TILES][FL_WARP];
};

/* Rows of a segment as they are multiplied, made by a warp for itself. */
template <int PIECES>
struct fl_segment_rows {
    alignas(16) unsigned short numbers[PIECES][FL_DEVICE_FUSED_ROWS][FL_SEGMENT_CHUNKS * FL_DEVICE_CHUNK];
};

template <int PIECES>
__device__ __forceinline__ void fl_segment_split(const fl_device_product &a, const float *x, uint32_t n,
                                                 uint32_t segment, fl_segment_rows<PIECES> &to) {
    uint32_t begin = segment * FL_SEGMENT_CHUNKS * FL_DEVICE_CHUNK;
    for (uint32_t i = threadIdx.x % FL_WARP; i < n * FL_SEGMENT_CHUNKS * FL_DEVICE_CHUNK; i += FL_WARP) {
        uint32_t row = i / (FL_SEGMENT_CHUNKS * FL_DEVICE_CHUNK), at = i % (FL_SEGMENT_CHUNKS * FL_DEVICE_CHUNK);
        unsigned short pieces[2];
        fl_split<true>(begin + at < a.rows.n_cols ? x[row * a.rows.stride + begin + at] : 0.0f, pieces);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            to.numbers[p][row][fl_chunk_place(at)] = pieces[p];
        }
    }
    __syncwarp();
}

/* Slab `slab` of chunk `chunk`, counted from the segment, of the row that is this thread's. */
template <int PIECES, bool SPLITS>
__device__ __forceinline__ fl_right<PIECES> fl_segment_right(const fl_device_product &a, uint32_t row, uint32_t n,
                                                             uint32_t segment, uint32_t chunk, uint32_t slab,
                                                             const fl_segment_rows<PIECES> *rows) {
    fl_right<PIECES> x;
    uint32_t at = chunk * FL_DEVICE_CHUNK + (slab * FL_SLABS + threadIdx.x % FL_SLABS) * FL_STEPS;
    size_t begin = (row * (size_t)fl_chunks(a.rows.n_cols) + segment * FL_SEGMENT_CHUNKS) * FL_DEVICE_CHUNK;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        if (row >= n) {
            x.piece[p] = make_uint4(0, 0, 0, 0);
        } else if (SPLITS) {
            x.piece[p] = fl_eight(&rows->numbers[p][row][at]);
        } else {
            x.piece[p] = fl_eight(a.rows.pieces.piece[p] + begin + at);
        }
    }
    return x;
}

template <int MATRICES, int PIECES, int TILES, bool SPLITS>
__device__ __forceinline__ void fl_segment_products(const fl_device_product &a, const fl_place &p, uint32_t first,
                                                    uint32_t n, uint32_t segment, const float *x_rows,
                                                    fl_segment_rows<PIECES> *rows,
                                                    float4 to[MATRICES][TILES][FL_WARP]) {
    uint32_t lane = threadIdx.x % FL_WARP, g = lane / 4, chunks = fl_chunks(a.rows.n_cols);
    float sums[MATRICES][TILES][4] = {};
    if (SPLITS) {
        fl_segment_split<PIECES>(a, x_rows, n, segment, *rows);
    }
    for (uint32_t c = 0; c < min(chunks - segment * FL_SEGMENT_CHUNKS, (uint32_t)FL_SEGMENT_CHUNKS); c++) {
        fl_left w[MATRICES][FL_SLABS];
        size_t at = (segment * FL_SEGMENT_CHUNKS + c) * FL_LANES + lane % 4;
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            uint32_t last = a.parts[p.part + m].n_rows - 1, out = p.block * FL_M + g;
            const uint4 *data = (const uint4 *)a.parts[p.part + m].data;
#pragma unroll
            for (int s = 0; s < FL_SLABS; s++) { /* behind the last row: that again */
                w[m][s].low = data[(size_t)min(out, last) * chunks * FL_LANES + at + s * 4];
                w[m][s].high = data[(size_t)min(out + 8, last) * chunks * FL_LANES + at + s * 4];
            }
        }
#pragma unroll
        for (int s = 0; s < FL_SLABS; s++) {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                fl_right<PIECES> x = fl_segment_right<PIECES, SPLITS>(a, first + i * FL_N + g, n, segment, c, s, rows);
#pragma unroll
                for (int m = 0; m < MATRICES; m++) {
                    fl_tensor_step<PIECES>(sums[m][i], w[m][s], x);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < MATRICES * TILES; i++) {
        const float *s = sums[i / TILES][i % TILES];
        to[i / TILES][i % TILES][lane] = make_float4(s[0], s[1], s[2], s[3]);
    }
}

/* What a warp has of W first comes nearer: two lines a thread. */
template <int MATRICES>
__device__ __forceinline__ void fl_segment_prefetch(const fl_device_product &a, const fl_place &p, uint32_t segment) {
    uint32_t lane = threadIdx.x % FL_WARP, row_bytes = fl_chunks(a.rows.n_cols) * FL_DEVICE_CHUNK * 2;
    uint32_t at = segment * FL_SEGMENT_CHUNKS * FL_DEVICE_CHUNK * 2 + lane / FL_M * FL_LINE;
#pragma unroll
    for (int m = 0; m < MATRICES; m++) {
        uint32_t out = min(p.block * FL_M + lane % FL_M, a.parts[p.part + m].n_rows - 1);
        const unsigned char *w = (const unsigned char *)a.parts[p.part + m].data + (size_t)out * row_bytes;
        for (uint32_t half = 0; half < FL_SEGMENT_CHUNKS && at + 2 * half * FL_LINE < row_bytes; half++) {
            fl_prefetch(w + at + 2 * half * FL_LINE);
        }
    }
}

template <int MATRICES, int PIECES, int TILES, bool SPLITS>
__global__ void __launch_bounds__(FL_FEW_WARPS *FL_WARP) fl_tensor_few_kernel(fl_device_product a) {
    FL_DYNAMIC_SHARED(shared); /* rows that are to be normed */
    __shared__ fl_segment_sums<MATRICES, TILES> sums;
    __shared__ fl_segment_rows<PIECES> rows[SPLITS ? FL_FEW_WARPS : 1];
    constexpr uint32_t numbers = TILES * FL_M * FL_N;
    uint32_t warp = threadIdx.x / FL_WARP, warps = blockDim.x / FL_WARP, n_segments = fl_segments(a.rows.n_cols);
    fl_place p = fl_place_of(a, blockIdx.x, FL_M);
    if (warp < n_segments) {
        fl_segment_prefetch<MATRICES>(a, p, warp);
    }
    fl_follow();
    uint32_t n = *a.rows.n, first = blockIdx.y * (TILES * FL_N);
    if (first >= n) {
        return;
    }
    const float *x = a.rows.x;
    if (SPLITS && a.rows.norm != NULL) {
        fl_norm_rows<FL_DEVICE_FUSED_ROWS>(a.rows, first, (float *)shared);
        x = (const float *)shared;
    }
    float totals[MATRICES][TILES * 4] = {}; /* of numbers threadIdx.x + i * blockDim.x */
    for (uint32_t round = 0; round < n_segments; round += warps) {
        if (round + warp < n_segments) {
            fl_segment_products<MATRICES, PIECES, TILES, SPLITS>(a, p, first, n, round + warp, x,
                                                                 &rows[SPLITS ? warp : 0], sums.parts[warp]);
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
#pragma unroll
            for (int i = 0; i < TILES * 4; i++) {
                uint32_t number = threadIdx.x + i * blockDim.x;
                for (uint32_t w = 0; number < numbers && w < min(n_segments - round, warps); w++) {
                    float part = ((const float *)sums.parts[w][m])[number];
                    totals[m][i] = __fadd_rn(totals[m][i], part);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TILES * 4; i++) {
        uint32_t number = threadIdx.x + i * blockDim.x, lane = number / 4 % FL_WARP;
        uint32_t out = p.block * FL_M + lane / 4 + number % 4 / 2 * 8;
        uint32_t row = first + number / (FL_M * FL_N) * FL_N + lane % 4 * 2 + number % 2;
        if (number < numbers && row < n && out < a.parts[p.part].n_rows) {
            fl_put(a, p, row, out, totals[0][i], totals[MATRICES - 1][i]);
        }
    }
}

template <int MATRICES, int PIECES, int TILES, bool SPLITS>
int fl_tensor_few_launch(fl_device *d, const fl_device_product *a) {
    dim3 grid(fl_places(a, FL_M), fl_blocks(a->rows.most, TILES * FL_N), 1);
    unsigned warps = fl_segments(a->rows.n_cols) < FL_FEW_WARPS ? fl_segments(a->rows.n_cols) : FL_FEW_WARPS;
    size_t shared = SPLITS ? fl_floats_bytes(a->rows, FL_DEVICE_FUSED_ROWS) : 0;
    return fl_launch(d, fl_tensor_few_kernel<MATRICES, PIECES, TILES, SPLITS>, grid, warps * FL_WARP, shared, *a);
}

/* ---- Many rows -- */

#define FL_MANY_ROWS 64 /* of a tile, of x: two warps have them, and two the rows of W */
#define FL_MANY_THREADS 128
#define FL_MANY_STAGES 3
#define FL_MANY_SLABS 2 /* of a stage */

/* A thread reads sixteen bytes, and eight neighbours meet all banks: four lanes of two rows. */
template <int PIECES, int M>
struct fl_many_stage {
    uint4 w[FL_MANY_SLABS][2 * M * FL_M][4];
    uint4 x[PIECES][FL_MANY_SLABS][FL_MANY_ROWS][4];
};

/* Sixteen rows of gate and of up take turns, so that a warp has both of an output. */
template <int MATRICES, int PIECES, int M>
__device__ __forceinline__ void fl_many_load(const fl_device_product &a, const fl_place &p, uint32_t first, uint32_t n,
                                             uint32_t stage, fl_many_stage<PIECES, M> &to) {
    constexpr uint32_t w_rows = 2 * M * FL_M, at_once = FL_MANY_THREADS / 4;
    uint32_t chunks = fl_chunks(a.rows.n_cols), quarter = threadIdx.x % 4;
    size_t begin = (size_t)stage * FL_MANY_SLABS * 4 + quarter; /* of a row, in sixteen bytes */
#pragma unroll
    for (uint32_t k = 0; k < FL_MANY_SLABS * w_rows; k += at_once) {
        uint32_t i = k + threadIdx.x / 4, row = i % w_rows, slab = i / w_rows, sixteen = row / FL_M;
        const fl_device_part &part = a.parts[p.part + sixteen % MATRICES];
        uint32_t out = (p.block * (2 * M / MATRICES) + sixteen / MATRICES) * FL_M + row % FL_M;
        size_t at = (size_t)min(out, part.n_rows - 1) * chunks * FL_LANES;
        fl_copy<16>(&to.w[slab][row][quarter], (const uint4 *)part.data + at + begin + slab * 4);
    }
#pragma unroll
    for (uint32_t k = 0; k < FL_MANY_SLABS * FL_MANY_ROWS; k += at_once) {
        uint32_t i = k + threadIdx.x / 4, row = i % FL_MANY_ROWS, slab = i / FL_MANY_ROWS;
        size_t at = (size_t)min(first + row, n - 1) * chunks * FL_LANES + begin + slab * 4;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            fl_copy<16>(&to.x[piece][slab][row][quarter], (const uint4 *)a.rows.pieces.piece[piece] + at);
        }
    }
}

template <int PIECES, int M>
__device__ __forceinline__ void fl_many_products(const fl_many_stage<PIECES, M> &s, float sums[M][4][4]) {
    uint32_t g = threadIdx.x % FL_WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / FL_WARP;
#pragma unroll
    for (int slab = 0; slab < FL_MANY_SLABS; slab++) {
        fl_right<PIECES> x[4];
#pragma unroll
        for (int i = 0; i < 4 * PIECES; i++) {
            x[i / PIECES].piece[i % PIECES] = s.x[i % PIECES][slab][warp / 2 * 32 + i / PIECES * FL_N + g][t];
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
            uint32_t row = (warp % 2 * M + m) * FL_M + g;
            fl_left w = {s.w[slab][row][t], s.w[slab][row + 8][t]};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                fl_tensor_step<PIECES>(sums[m][i], w, x[i]);
            }
        }
    }
}

/* totals += a segment, which is over. */
template <int M>
__device__ __forceinline__ void fl_many_add(float sums[M][4][4], float totals[M][4][4]) {
#pragma unroll
    for (int i = 0; i < M * 16; i++) {
        float &sum = sums[i / 16][i / 4 % 4][i % 4], &total = totals[i / 16][i / 4 % 4][i % 4];
        total = __fadd_rn(total, sum);
        sum = 0;
    }
}

template <int MATRICES, int M>
__device__ __forceinline__ void fl_many_put(const fl_device_product &a, const fl_place &p, uint32_t first, uint32_t n,
                                            const float totals[M][4][4]) {
    uint32_t g = threadIdx.x % FL_WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / FL_WARP;
#pragma unroll
    for (int i = 0; i < M / MATRICES * 16; i++) {
        int m = i / 16 * MATRICES;
        uint32_t sixteen = (p.block * 2 * M + warp % 2 * M + m) / MATRICES;
        uint32_t out = sixteen * FL_M + g + i % 4 / 2 * 8;
        uint32_t row = first + warp / 2 * 32 + i / 4 % 4 * FL_N + 2 * t + i % 2;
        if (row < n && out < a.parts[p.part].n_rows) {
            fl_put(a, p, row, out, totals[m][i / 4 % 4][i % 4], totals[m + MATRICES - 1][i / 4 % 4][i % 4]);
        }
    }
}

template <int MATRICES, int PIECES, int M>
__global__ void __launch_bounds__(FL_MANY_THREADS) fl_tensor_many_kernel(fl_device_product a) {
    FL_DYNAMIC_SHARED(shared);
    fl_follow();
    constexpr uint32_t per_segment = FL_SEGMENT_CHUNKS * FL_SLABS / FL_MANY_SLABS;
    fl_many_stage<PIECES, M> *stages = (fl_many_stage<PIECES, M> *)shared;
    uint32_t n = *a.rows.n, first = blockIdx.y * FL_MANY_ROWS;
    uint32_t n_stages = fl_chunks(a.rows.n_cols) * FL_SLABS / FL_MANY_SLABS;
    if (first >= n) {
        return;
    }
    fl_place p = fl_place_of(a, blockIdx.x, 2 * M * FL_M / MATRICES);
    bool has_rows = first + threadIdx.x / FL_WARP / 2 * 32 < n; /* the same for a warp */
    float sums[M][4][4] = {}, totals[M][4][4] = {};
#pragma unroll
    for (uint32_t s = 0; s < FL_MANY_STAGES - 1; s++) {
        if (s < n_stages) {
            fl_many_load<MATRICES, PIECES, M>(a, p, first, n, s, stages[s]);
        }
        fl_copies_end();
    }
    for (uint32_t s = 0; s < n_stages; s++) {
        uint32_t next = s + FL_MANY_STAGES - 1;
        fl_copied_but<FL_MANY_STAGES - 2>();
        __syncthreads(); /* all have this stage, and nobody reads the one that is filled now */
        if (next < n_stages) {
            fl_many_load<MATRICES, PIECES, M>(a, p, first, n, next, stages[next % FL_MANY_STAGES]);
        }
        fl_copies_end();
        if (has_rows) {
            fl_many_products<PIECES, M>(stages[s % FL_MANY_STAGES], sums);
        }
        if (s % per_segment == per_segment - 1 || s + 1 == n_stages) {
            fl_many_add<M>(sums, totals);
        }
    }
    fl_many_put<MATRICES, M>(a, p, first, n, totals);
}

template <int MATRICES, int PIECES, int M>
int fl_tensor_many_launch(fl_device *d, const fl_device_product *a) {
    dim3 grid(fl_places(a, 2 * M * FL_M / MATRICES), fl_blocks(a->rows.most, FL_MANY_ROWS), 1);
    return fl_launch(d, fl_tensor_many_kernel<MATRICES, PIECES, M>, grid, FL_MANY_THREADS,
                     FL_MANY_STAGES * sizeof(fl_many_stage<PIECES, M>), *a);
}

/* ---- Either -- */

/* Large tiles read less, if there are enough of them for two on each multiprocessor. */
template <int MATRICES, int PIECES>
int fl_tensor_product(fl_device *d, const fl_device_product *a) {
    size_t large = (size_t)fl_places(a, 8 * FL_M / MATRICES) * fl_blocks(a->rows.most, FL_MANY_ROWS);
    return a->rows.pieces.piece[0] == NULL ? fl_tensor_few_launch<MATRICES, PIECES, 1, true>(d, a)
           : a->rows.most <= FL_N               ? fl_tensor_few_launch<MATRICES, PIECES, 1, false>(d, a)
           : a->rows.most <= 2 * FL_N           ? fl_tensor_few_launch<MATRICES, PIECES, 2, false>(d, a)
           : a->rows.most <= FL_FEW_ROWS_MAX    ? fl_tensor_few_launch<MATRICES, PIECES, 4, false>(d, a)
           : large >= 2 * (size_t)d->n_multiprocessors ? fl_tensor_many_launch<MATRICES, PIECES, 4>(d, a)
                                           : fl_tensor_many_launch<MATRICES, PIECES, 2>(d, a);
}

size_t fl_product_bytes(const fl_device_rows *a) {
    size_t exact = 2 * sizeof(fl_packed_round<2, FL_DEVICE_FUSED_ROWS>);
    size_t tensor = sizeof(fl_segment_sums<2, 1>) + FL_FEW_WARPS * sizeof(fl_segment_rows<2>);
    return fl_ready_bytes(*a, FL_DEVICE_FUSED_ROWS) + (exact > tensor ? exact : tensor);
}

int fl_multiply(fl_device *d, const fl_device_product *a) {
    bool both = a->epilogue == FL_DEVICE_GATE_UP;
    switch (a->rows.n_pieces) {
    case 0: return fl_product(d, a);
    case 1: return both ? fl_tensor_product<2, 1>(d, a) : fl_tensor_product<1, 1>(d, a);
    default: return both ? fl_tensor_product<2, 2>(d, a) : fl_tensor_product<1, 2>(d, a);
    }
}

} /* namespace */

#endif
