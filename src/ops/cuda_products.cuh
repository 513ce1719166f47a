/* Products of rows with matrices.
 *
 * Plain weights: half a warp has OUTS rows of W and ROWS of x; a thread of it has one lane of all their sums, and reads
 * eight of its weights at once. A row of x is read again by every half warp, out of the nearest cache.
 *
 * Packed weights: a block of threads has sixteen rows of W. Sixteen half warps each multiply one unit of 32 columns, a
 * thread a row, as integers, exact in any order; then a thread for each output adds the units up, in order.
 *
 * The first weights of a block are on their way before it may look at its rows, and few of these it makes ready for
 * itself, in shared memory.
 *
 * Packed weights with many rows: tensor cores multiply the units, as exactly. A block of threads has a tile of 64 rows
 * of x and 64 of W, of gate and up 32 each, and each of its four warps a quarter of that. Stages of four units take
 * turns in shared memory: while one is multiplied, the next comes. A sum of a unit costs a lane three operations on
 * floats besides, or four: they, not the tensor cores, bound the speed. */
#ifndef FL_CUDA_PRODUCTS_CUH
#define FL_CUDA_PRODUCTS_CUH

#include "ops/cuda_rows.cuh"

namespace {

/* Which part a block has, of those that stand one behind the other. */
struct fl_place {
    uint32_t part, block; /* of the part */
    size_t column;        /* of y where the part begins */
};

__device__ __forceinline__ fl_place fl_place_of(const fl_device_product &a, uint32_t block, uint32_t outs) {
    fl_place p = {0, block, 0};
    for (uint32_t n; p.part + 1 < a.n_parts && p.block >= (n = (a.parts[p.part].n_rows + outs - 1) / outs); p.part++) {
        p.block -= n;
        p.column += a.parts[p.part].n_rows;
    }
    return p;
}

unsigned fl_places(const fl_device_product *a, uint32_t outs) {
    unsigned n = 0;
    for (uint32_t i = 0; i < (a->epilogue == FL_DEVICE_GATE_UP ? 1 : a->n_parts); i++) {
        n += fl_blocks(a->parts[i].n_rows, outs);
    }
    return n;
}

/* One output; sum: of the row of the part, up: of the same row of the second part. */
__device__ __forceinline__ void fl_put(const fl_device_product &a, const fl_place &p, uint32_t row, uint32_t out,
                                       float sum, float up) {
    const float *bias = a.parts[p.part].bias;
    float *y = a.y + row * a.y_stride + p.column + out;
    sum = bias != NULL ? __fadd_rn(sum, bias[out]) : sum;
    if (a.epilogue == FL_DEVICE_GATE_UP) {
        up = a.parts[1].bias != NULL ? __fadd_rn(up, a.parts[1].bias[out]) : up;
        *y = fl_silu_mul(sum, up);
    } else {
        *y = a.epilogue == FL_DEVICE_ADD ? __fadd_rn(*y, sum) : sum;
    }
}

/* ---- Plain -- */

#define FL_PLAIN_THREADS 128

/* sums += one chunk of columns; LAST: it may end early. */
template <int TYPE, int MATRICES, int OUTS, int ROWS, bool LAST>
__device__ __forceinline__ void fl_plain_chunk(const unsigned char *const w[MATRICES][OUTS], size_t at,
                                               const float *const x[ROWS], uint32_t column, uint32_t n_cols,
                                               float sums[MATRICES][OUTS][ROWS]) {
    uint32_t lane = threadIdx.x % FL_LANES;
    float numbers[MATRICES][OUTS][FL_STEPS];
#pragma unroll
    for (int m = 0; m < MATRICES; m++) {
#pragma unroll
        for (int o = 0; o < OUTS; o++) {
            fl_plain_load<TYPE>(w[m][o] + at, numbers[m][o]);
        }
    }
#pragma unroll
    for (int s = 0; s < FL_STEPS; s++) {
        uint32_t k = column + s * FL_LANES + lane;
        float a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            a[r] = !LAST || k < n_cols ? x[r][k] : 0.0f;
        }
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
#pragma unroll
            for (int o = 0; o < OUTS; o++) {
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    sums[m][o][r] = __fmaf_rn(a[r], numbers[m][o][s], sums[m][o][r]);
                }
            }
        }
    }
}

/* The beginnings of the rows of W that half a warp has, a line to a thread. */
template <int MATRICES, int OUTS>
__device__ __forceinline__ void fl_plain_prefetch(const fl_device_product &a, const fl_place &p, uint32_t out,
                                                  size_t row_bytes) {
    constexpr uint32_t lines = FL_LANES / (MATRICES * OUTS); /* of a row */
    uint32_t lane = threadIdx.x % FL_LANES, which = lane / lines, at = lane % lines * FL_LINE;
    const fl_device_part &part = a.parts[p.part + which / OUTS];
    if (at < row_bytes) {
        fl_prefetch((const unsigned char *)part.data + min(out + which % OUTS, part.n_rows - 1) * row_bytes + at);
    }
}

template <int TYPE, int MATRICES, int OUTS, int ROWS, bool NORM>
__global__ void __launch_bounds__(FL_PLAIN_THREADS) fl_plain_kernel(fl_device_product a) {
    FL_DYNAMIC_SHARED(shared); /* rows that are normed here */
    constexpr uint32_t teams = FL_PLAIN_THREADS / FL_LANES, lane_bytes = FL_STEPS * fl_plain_bytes<TYPE>();
    fl_place p = fl_place_of(a, blockIdx.x, teams * OUTS);
    uint32_t out = (p.block * teams + threadIdx.x / FL_LANES) * OUTS, n_outs = a.parts[p.part].n_rows;
    size_t row_bytes = (size_t)fl_chunks(a.rows.n_cols) * FL_LANES * lane_bytes;
    fl_plain_prefetch<MATRICES, OUTS>(a, p, out, row_bytes);
    fl_follow();
    uint32_t n = *a.rows.n, first = blockIdx.y * ROWS, lane = threadIdx.x % FL_LANES;
    if (first >= n) {
        return;
    }
    const unsigned char *w[MATRICES][OUTS];
    const float *x[ROWS];
    float sums[MATRICES][OUTS][ROWS];
    if (NORM) {
        fl_norm_rows<NORM ? ROWS : 1>(a.rows, first, (float *)shared);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        x[r] = NORM ? (const float *)shared + r * a.rows.stride
                    : a.rows.x + min(first + r, n - 1) * a.rows.stride; /* behind the last row: that again */
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
#pragma unroll
            for (int o = 0; o < OUTS; o++) {
                sums[m][o][r] = 0;
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MATRICES; m++) {
#pragma unroll
        for (int o = 0; o < OUTS; o++) {
            w[m][o] = (const unsigned char *)a.parts[p.part + m].data + min(out + o, n_outs - 1) * row_bytes +
                      lane * lane_bytes;
        }
    }
    uint32_t column = 0;
    size_t at = 0;
    for (; column + FL_DEVICE_CHUNK <= a.rows.n_cols; column += FL_DEVICE_CHUNK, at += FL_LANES * lane_bytes) {
        fl_plain_chunk<TYPE, MATRICES, OUTS, ROWS, false>(w, at, x, column, a.rows.n_cols, sums);
    }
    if (column < a.rows.n_cols) {
        fl_plain_chunk<TYPE, MATRICES, OUTS, ROWS, true>(w, at, x, column, a.rows.n_cols, sums);
    }
#pragma unroll
    for (int o = 0; o < OUTS; o++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float sum = fl_lanes_sum(sums[0][o][r]), up = MATRICES == 2 ? fl_lanes_sum(sums[MATRICES - 1][o][r]) : 0;
            if (lane == (uint32_t)(o * ROWS + r) % FL_LANES && out + o < n_outs && first + r < n) {
                fl_put(a, p, first + r, out + o, sum, up);
            }
        }
    }
}

template <int TYPE, int MATRICES, int OUTS, int ROWS, bool NORM>
int fl_plain_launch(fl_device *d, const fl_device_product *a) {
    dim3 grid(fl_places(a, FL_PLAIN_THREADS / FL_LANES * OUTS), fl_blocks(a->rows.most, ROWS), 1);
    return fl_launch(d, fl_plain_kernel<TYPE, MATRICES, OUTS, ROWS, NORM>, grid, FL_PLAIN_THREADS,
                     fl_floats_bytes(a->rows, ROWS), *a);
}

template <int TYPE, int MATRICES>
int fl_plain_product(fl_device *d, const fl_device_product *a) {
    constexpr int outs = 4 / MATRICES;
    if (a->rows.norm != NULL) {
        return a->rows.most == 1 ? fl_plain_launch<TYPE, MATRICES, outs, 1, true>(d, a)
                                 : fl_plain_launch<TYPE, MATRICES, outs, 2, true>(d, a);
    }
    return a->rows.most == 1   ? fl_plain_launch<TYPE, MATRICES, outs, 1, false>(d, a)
           : a->rows.most == 2 ? fl_plain_launch<TYPE, MATRICES, outs, 2, false>(d, a)
           : a->rows.most <= 4 ? fl_plain_launch<TYPE, MATRICES, outs, 4, false>(d, a)
                               : fl_plain_launch<TYPE, MATRICES, 2 * outs, 8, false>(d, a);
}

/* ---- Packed -- */

#define FL_PACKED_THREADS 256
#define FL_PACKED_TEAMS (FL_PACKED_THREADS / FL_LANES)

/* What the half warps leave for those that add it up: one round of units. */
template <int HALVES, int ROWS>
struct fl_packed_round {
    int dots[FL_PACKED_TEAMS * HALVES][ROWS][FL_LANES];
    float scales[FL_PACKED_TEAMS * HALVES][FL_LANES], mins[FL_PACKED_TEAMS][FL_LANES];
};

/* Rows of x as integers: those of a block, or all of them. */
struct fl_packed_rows {
    fl_device_integers integers;
    uint32_t first, n, n_cols; /* the first of a block, and where they end */
};

/* The integers of one unit of one row of W with those of ROWS rows of x. */
template <int TYPE, int ROWS>
__device__ __forceinline__ void fl_packed_unit(const fl_packed_rows &rows, const void *data, size_t slab, uint32_t unit,
                                               fl_packed_round<fl_halves(TYPE), ROWS> &round) {
    constexpr int halves = fl_halves(TYPE);
    uint32_t lane = threadIdx.x % FL_LANES, team = threadIdx.x / FL_LANES, n_units = fl_units(rows.n_cols);
    fl_unit u = fl_unit_of(TYPE, data, rows.n_cols, slab, unit);
    fl_unit_row<TYPE> w = fl_unit_load<TYPE>(u, lane);
    uint32_t words[8];
    fl_unit_open<TYPE>(w, words);
#pragma unroll
    for (int h = 0; h < halves; h++) {
        round.scales[team * halves + h][lane] = fl_unit_scale<TYPE>(w, h);
    }
    if (fl_has_mins(TYPE)) {
        round.mins[team][lane] = fl_unit_min<TYPE>(w);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        size_t at = (size_t)min(rows.first + r, rows.n - 1) * n_units + unit;
        const int4 *q = (const int4 *)(rows.integers.q + at * FL_UNIT);
        int4 low = q[0], high = q[1];
        int x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int h = 0; h < halves; h++) {
            int sum = 0;
#pragma unroll
            for (int i = 8 / halves * h; i < 8 / halves * (h + 1); i++) {
                sum = __dp4a((int)words[i], x[i], sum);
            }
            round.dots[team * halves + h][r][lane] = sum;
        }
    }
}

/* total += the units [unit, n_units) of a round. */
template <int TYPE, int ROWS>
__device__ __forceinline__ float fl_packed_add(const fl_packed_rows &rows, uint32_t unit, uint32_t r, uint32_t lane,
                                               const fl_packed_round<fl_halves(TYPE), ROWS> &round, float total) {
    constexpr uint32_t halves = fl_halves(TYPE);
    uint32_t n_units = fl_units(rows.n_cols), n = min(n_units - unit, (uint32_t)FL_PACKED_TEAMS);
    const float *scales = rows.integers.scales + (size_t)(rows.first + r) * n_units + unit;
    const float *minus = rows.integers.minus + (size_t)(rows.first + r) * n_units + unit;
    for (uint32_t i = 0; i < n; i++) {
#pragma unroll
        for (uint32_t h = 0; h < halves; h++) {
            float both = __fmul_rn(round.scales[i * halves + h][lane], scales[i]);
            total = __fmaf_rn((float)round.dots[i * halves + h][r][lane], both, total);
        }
        if (fl_has_mins(TYPE)) {
            total = __fmaf_rn(round.mins[i][lane], minus[i], total);
        }
    }
    return total;
}

/* The chunks of the first two rounds. */
template <int TYPE>
__device__ __forceinline__ void fl_packed_prefetch(const void *data, uint32_t n_cols, size_t slab) {
    constexpr uint32_t sharers = FL_PACKED_THREADS / (2 * FL_PACKED_TEAMS / FL_CHUNK_UNITS); /* of a chunk */
    static_assert(fl_slab_bytes(TYPE, FL_CHUNK_UNITS) <= sharers * FL_LINE, "a line to a thread");
    uint32_t unit = threadIdx.x / sharers * FL_CHUNK_UNITS, at = threadIdx.x % sharers * FL_LINE;
    if (unit < fl_units(n_cols)) {
        fl_unit u = fl_unit_of(TYPE, data, n_cols, slab, unit);
        if (at < fl_slab_bytes(TYPE, u.n_units)) {
            fl_prefetch(u.slab + at);
        }
    }
}

__host__ __device__ __forceinline__ size_t fl_ready_bytes(const fl_device_rows &a, uint32_t n_rows) {
    return fl_floats_bytes(a, n_rows) + n_rows * fl_units(a.n_cols) * (FL_UNIT + 2 * sizeof(float));
}

/* ROWS rows that a block makes ready, their floats in front if they are normed. */
template <int ROWS>
__device__ __forceinline__ fl_packed_rows fl_packed_ready(const fl_device_rows &a, uint32_t first,
                                                          unsigned char *shared) {
    size_t n_units = ROWS * fl_units(a.n_cols);
    const float *x = a.x + first * a.stride;
    unsigned char *q = shared + fl_floats_bytes(a, ROWS);
    float *scales = (float *)(q + n_units * FL_UNIT);
    fl_packed_rows rows = {{(int8_t *)q, scales, scales + n_units}, 0, ROWS, a.n_cols};
    if (a.norm != NULL) {
        fl_norm_rows<ROWS>(a, first, (float *)shared);
        x = (const float *)shared;
    }
    fl_integers_rows<ROWS>(a, x, rows.integers);
    __syncthreads();
    return rows;
}

template <int TYPE, int MATRICES, int ROWS>
__global__ void __launch_bounds__(FL_PACKED_THREADS) fl_packed_kernel(fl_device_product a) {
    FL_DYNAMIC_SHARED(shared); /* rows that are made ready here */
    constexpr bool fused = ROWS <= FL_DEVICE_FUSED_ROWS;
    __shared__ fl_packed_round<fl_halves(TYPE), ROWS> rounds[2];
    fl_place p = fl_place_of(a, blockIdx.x, FL_LANES);
    fl_packed_prefetch<TYPE>(a.parts[p.part].data, a.rows.n_cols, p.block);
    fl_follow();
    uint32_t n = *a.rows.n, first = blockIdx.y * ROWS, n_units = fl_units(a.rows.n_cols);
    uint32_t lane = threadIdx.x % FL_LANES, team = threadIdx.x / FL_LANES, now = 0;
    if (first >= n) {
        return;
    }
    fl_packed_rows rows = {a.rows.integers, first, n, a.rows.n_cols};
    if (fused) {
        rows = fl_packed_ready<fused ? ROWS : 1>(a.rows, first, shared);
    }
    float totals[MATRICES];
#pragma unroll
    for (int m = 0; m < MATRICES; m++) {
        totals[m] = 0;
        for (uint32_t unit = 0; unit < n_units; unit += FL_PACKED_TEAMS, now ^= 1) {
            if (unit + team < n_units) {
                fl_packed_unit<TYPE, ROWS>(rows, a.parts[p.part + m].data, p.block, unit + team, rounds[now]);
            }
            __syncthreads(); /* the next round has the other half: nobody waits for those that add */
            if (team < ROWS && first + team < n) {
                totals[m] = fl_packed_add<TYPE, ROWS>(rows, unit, team, lane, rounds[now], totals[m]);
            }
        }
    }
    uint32_t out = p.block * FL_LANES + lane;
    if (team < ROWS && first + team < n && out < a.parts[p.part].n_rows) {
        fl_put(a, p, first + team, out, totals[0], totals[MATRICES - 1]);
    }
}

template <int TYPE, int MATRICES, int ROWS>
int fl_packed_launch(fl_device *d, const fl_device_product *a) {
    dim3 grid(fl_places(a, FL_LANES), fl_blocks(a->rows.most, ROWS), 1);
    size_t shared = ROWS <= FL_DEVICE_FUSED_ROWS ? fl_ready_bytes(a->rows, ROWS) : 0;
    return fl_launch(d, fl_packed_kernel<TYPE, MATRICES, ROWS>, grid, FL_PACKED_THREADS, shared, *a);
}

/* ---- Packed, many rows -- */

#define FL_TILE 64 /* rows of x, and of W */
#define FL_TILE_THREADS 128
#define FL_TILE_UNITS 4 /* of a stage */
#define FL_TILE_PAD 8   /* so that the scales of units of a row meet different banks */
#define FL_FEW_ROWS 16  /* up to here the other kernel is used */

/* What meets one another, of so many units. Quads of a part, which is a unit or half of one, lie together:
 * [part][row][quad]; behind each part is room for a row, so that parts of a row meet different banks. */
template <int TYPE>
struct fl_stage {
    static constexpr int halves = fl_halves(TYPE), quads = 8 / halves, parts = FL_TILE_UNITS * halves;
    static constexpr int mins_units = fl_has_mins(TYPE) ? FL_TILE_UNITS : 1;
    alignas(16) uint32_t x[parts][FL_TILE + 1][quads], w[parts][FL_TILE + 1][quads];
    float x_scales[FL_TILE_UNITS][FL_TILE + FL_TILE_PAD], w_scales[parts][FL_TILE];
    float x_minus[mins_units][FL_TILE + FL_TILE_PAD], w_mins[mins_units][FL_TILE];
};

/* Where four quads of a row begin. In every other four rows both halves of a unit have changed places: so eight rows of
 * one half meet all banks. */
template <int QUADS>
__device__ __forceinline__ uint32_t fl_quads_at(uint32_t row, uint32_t half) {
    return QUADS == 8 ? (half ^ row / 4 % 2) * 4 : 0;
}

/* Rows [first, first + FL_TILE) of x, the last one again behind n, to a stage. */
template <int TYPE>
__device__ __forceinline__ void fl_stage_x(const fl_device_product &a, uint32_t first, uint32_t n, uint32_t unit,
                                           fl_stage<TYPE> &to) {
    constexpr uint32_t halves = fl_halves(TYPE), per_row = 2 * FL_TILE_UNITS;
    uint32_t n_units = fl_units(a.rows.n_cols);
#pragma unroll
    for (uint32_t i = 0; i < FL_TILE * per_row / FL_TILE_THREADS; i++) { /* sixteen numbers each */
        uint32_t row = (threadIdx.x + i * FL_TILE_THREADS) / per_row, half = threadIdx.x % per_row;
        size_t at = (size_t)min(first + row, n - 1) * n_units + unit + half / 2;
        if (unit + half / 2 < n_units) {
            uint32_t part = halves == 2 ? half : half / 2, quad = fl_quads_at<8 / halves>(row, half % 2);
            fl_copy<16>(&to.x[part][row][quad], a.rows.integers.q + at * FL_UNIT + half % 2 * FL_LANES);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < FL_TILE * FL_TILE_UNITS / FL_TILE_THREADS; i++) {
        uint32_t row = (threadIdx.x + i * FL_TILE_THREADS) / FL_TILE_UNITS, u = threadIdx.x % FL_TILE_UNITS;
        size_t at = (size_t)min(first + row, n - 1) * n_units + unit + u;
        if (unit + u < n_units) {
            fl_copy<4>(&to.x_scales[u][row], a.rows.integers.scales + at);
            if (fl_has_mins(TYPE)) {
                fl_copy<4>(&to.x_minus[fl_has_mins(TYPE) ? u : 0][row], a.rows.integers.minus + at);
            }
        }
    }
}

/* What a thread has of the W of a stage: one row of the tile in every other unit. */
#define FL_TILE_EACH (FL_TILE * FL_TILE_UNITS / FL_TILE_THREADS)

/* Slabs of gate and of up take turns, so that a warp has both of an output. */
template <int TYPE, int MATRICES>
__device__ __forceinline__ void fl_stage_load(const fl_device_product &a, const fl_place &p, uint32_t unit,
                                              fl_unit_row<TYPE> w[FL_TILE_EACH]) {
    uint32_t n_units = fl_units(a.rows.n_cols);
    uint32_t row = threadIdx.x % FL_TILE, slab = row / FL_LANES, matrix = slab % MATRICES;
    const fl_device_part &part = a.parts[p.part + matrix];
    slab = min(p.block * (FL_TILE / FL_LANES / MATRICES) + slab / MATRICES, (part.n_rows - 1) / FL_LANES);
    fl_unit u = fl_unit_of(TYPE, part.data, a.rows.n_cols, slab, unit); /* whose chunk has all of the stage */
#pragma unroll
    for (uint32_t i = 0; i < FL_TILE_EACH; i++) { /* behind the last unit: that again */
        uint32_t at = min(unit + threadIdx.x / FL_TILE + i * (FL_TILE_THREADS / FL_TILE), n_units - 1);
        u.unit = at % FL_CHUNK_UNITS;
        w[i] = fl_unit_load<TYPE>(u, row % FL_LANES);
    }
}

template <int TYPE>
__device__ __forceinline__ void fl_stage_open(const fl_unit_row<TYPE> w[FL_TILE_EACH], fl_stage<TYPE> &to) {
    constexpr int halves = fl_halves(TYPE), quads = 8 / halves;
    uint32_t row = threadIdx.x % FL_TILE;
#pragma unroll
    for (uint32_t i = 0; i < FL_TILE_EACH; i++) {
        uint32_t words[8], u = threadIdx.x / FL_TILE + i * (FL_TILE_THREADS / FL_TILE);
        fl_unit_open<TYPE>(w[i], words);
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            uint4 four = make_uint4(words[j], words[j + 1], words[j + 2], words[j + 3]);
            *(uint4 *)&to.w[u * halves + j / quads][row][fl_quads_at<quads>(row, j / 4)] = four;
        }
#pragma unroll
        for (int h = 0; h < halves; h++) {
            to.w_scales[u * halves + h][row] = fl_unit_scale<TYPE>(w[i], h);
        }
        if (fl_has_mins(TYPE)) {
            to.w_mins[fl_has_mins(TYPE) ? u : 0][row] = fl_unit_min<TYPE>(w[i]);
        }
    }
}

/* 32 rows of a part as fl_mma takes them: two times sixteen as its a, or four times eight as its b. */
template <int QUADS, bool AS_A>
__device__ __forceinline__ void fl_part_load(const uint32_t part[FL_TILE + 1][QUADS], uint32_t first,
                                             uint32_t quads[QUADS]) {
    uint32_t lane = threadIdx.x % FL_WARP, tile = lane / 8, half = QUADS == 4 ? 0 : AS_A ? tile / 2 : tile % 2;
    uint32_t row = first + (QUADS == 4 ? tile : AS_A ? tile % 2 : tile / 2) * 8 + lane % 8;
#pragma unroll
    for (int i = 0; i < QUADS; i += 4) {
        fl_load_tiles(quads + i, &part[row + 4 * i][fl_quads_at<QUADS>(row, half)]);
    }
}

/* A sum that starts here is, read as a float, itself and 1.5 * 2^23: no sum of a unit comes near 2^22. */
#define FL_SUM_START 0x4B400000

__device__ __forceinline__ float fl_sum_float(int sum) {
    return __fsub_rn(__int_as_float(sum), 12582912.0f);
}

/* totals += one unit of a quarter of the tile: rows 16m + g, 16m + g + 8 of x, rows 8o + 2t, 8o + 2t + 1 of W. */
template <int TYPE>
__device__ __forceinline__ void fl_tile_unit(const fl_stage<TYPE> &s, uint32_t u, float totals[2][4][4]) {
    constexpr int halves = fl_halves(TYPE), quads = 8 / halves;
    uint32_t g = threadIdx.x % FL_WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / FL_WARP;
    uint32_t x_row = warp / 2 * 32 + g, w_row = warp % 2 * 32;
#pragma unroll
    for (int h = 0; h < halves; h++) {
        uint32_t part = u * halves + h, a[quads], b[quads];
        float2 scales[4];
        fl_part_load<quads, true>(s.x[part], warp / 2 * 32, a);
        fl_part_load<quads, false>(s.w[part], w_row, b);
#pragma unroll
        for (int o = 0; o < 4; o++) {
            scales[o] = *(const float2 *)&s.w_scales[part][w_row + 8 * o + 2 * t];
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
            float x_scales[2] = {s.x_scales[u][x_row + 16 * m], s.x_scales[u][x_row + 16 * m + 8]};
#pragma unroll
            for (int o = 0; o < 4; o++) {
                int sums[4];
                fl_mma<quads>(sums, a + quads / 2 * m, b + quads / 4 * o, FL_SUM_START);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float both = __fmul_rn(i % 2 == 0 ? scales[o].x : scales[o].y, x_scales[i / 2]);
                    totals[m][o][i] = __fmaf_rn(fl_sum_float(sums[i]), both, totals[m][o][i]);
                }
            }
        }
    }
    if (fl_has_mins(TYPE)) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
            int m = i / 16, o = i / 4 % 4;
            float min = s.w_mins[fl_has_mins(TYPE) ? u : 0][w_row + 8 * o + 2 * t + i % 2];
            float minus = s.x_minus[fl_has_mins(TYPE) ? u : 0][x_row + 16 * m + i % 4 / 2 * 8];
            totals[m][o][i % 4] = __fmaf_rn(min, minus, totals[m][o][i % 4]);
        }
    }
}

/* A quarter of a tile to y. */
template <int MATRICES>
__device__ __forceinline__ void fl_tile_put(const fl_device_product &a, const fl_place &p, uint32_t first, uint32_t n,
                                            const float totals[2][4][4]) {
    uint32_t g = threadIdx.x % FL_WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / FL_WARP;
    uint32_t row = first + warp / 2 * 32 + g, out = p.block * (FL_TILE / MATRICES) + warp % 2 * (32 / MATRICES) + 2 * t;
#pragma unroll
    for (int i = 0; i < 32 / MATRICES; i++) {
        int m = i / (16 / MATRICES), o = i / 4 % (4 / MATRICES);
        uint32_t r = row + 16 * m + i % 4 / 2 * 8, at = out + 8 * o + i % 2;
        if (r < n && at < a.parts[p.part].n_rows) {
            fl_put(a, p, r, at, totals[m][o][i % 4], totals[m][o + 4 - 4 / MATRICES][i % 4]);
        }
    }
}

template <int TYPE, int MATRICES>
__global__ void __launch_bounds__(FL_TILE_THREADS) fl_tile_kernel(fl_device_product a) {
    __shared__ fl_stage<TYPE> stages[2];
    fl_follow();
    uint32_t n = *a.rows.n, first = blockIdx.y * FL_TILE, n_units = fl_units(a.rows.n_cols), now = 0;
    if (first >= n) {
        return;
    }
    fl_place p = fl_place_of(a, blockIdx.x, FL_TILE / MATRICES);
    bool has_rows = first + threadIdx.x / FL_WARP / 2 * 32 < n; /* the same for a warp */
    float totals[2][4][4];
#pragma unroll
    for (int i = 0; i < 32; i++) {
        totals[i / 16][i / 4 % 4][i % 4] = 0;
    }
    fl_unit_row<TYPE> w[FL_TILE_EACH];
    fl_stage_x<TYPE>(a, first, n, 0, stages[0]);
    fl_stage_load<TYPE, MATRICES>(a, p, 0, w);
    for (uint32_t unit = 0; unit < n_units; unit += FL_TILE_UNITS, now ^= 1) {
        fl_stage_open<TYPE>(w, stages[now]); /* who still multiplies has the other one */
        fl_copied();
        __syncthreads();
        if (unit + FL_TILE_UNITS < n_units) {
            fl_stage_x<TYPE>(a, first, n, unit + FL_TILE_UNITS, stages[now ^ 1]);
            fl_stage_load<TYPE, MATRICES>(a, p, unit + FL_TILE_UNITS, w);
        }
        for (uint32_t u = 0; has_rows && u < min(n_units - unit, (uint32_t)FL_TILE_UNITS); u++) {
            fl_tile_unit<TYPE>(stages[now], u, totals);
        }
    }
    fl_tile_put<MATRICES>(a, p, first, n, totals);
}

template <int TYPE, int MATRICES>
int fl_tile_launch(fl_device *d, const fl_device_product *a) {
    dim3 grid(fl_places(a, FL_TILE / MATRICES), fl_blocks(a->rows.most, FL_TILE), 1);
    return fl_launch(d, fl_tile_kernel<TYPE, MATRICES>, grid, FL_TILE_THREADS, 0, *a);
}

template <int TYPE, int MATRICES>
int fl_packed_product(fl_device *d, const fl_device_product *a) {
    if (a->rows.integers.q == NULL) {
        return a->rows.most == 1 ? fl_packed_launch<TYPE, MATRICES, 1>(d, a)
                                 : fl_packed_launch<TYPE, MATRICES, 2>(d, a);
    }
    return a->rows.most <= 4             ? fl_packed_launch<TYPE, MATRICES, 4>(d, a)
           : a->rows.most <= FL_FEW_ROWS ? fl_packed_launch<TYPE, MATRICES, 8>(d, a)
                                         : fl_tile_launch<TYPE, MATRICES>(d, a);
}

/* ---- Either -- */

template <int MATRICES>
int fl_product_of(fl_device *d, const fl_device_product *a) {
    switch (a->type) {
    case FL_DEVICE_F32: return fl_plain_product<FL_DEVICE_F32, MATRICES>(d, a);
    case FL_DEVICE_F16: return fl_plain_product<FL_DEVICE_F16, MATRICES>(d, a);
    case FL_DEVICE_BF16: return fl_plain_product<FL_DEVICE_BF16, MATRICES>(d, a);
    case FL_DEVICE_Q8: return fl_packed_product<FL_DEVICE_Q8, MATRICES>(d, a);
    case FL_DEVICE_Q8_ROW: return fl_packed_product<FL_DEVICE_Q8_ROW, MATRICES>(d, a);
    case FL_DEVICE_Q4: return fl_packed_product<FL_DEVICE_Q4, MATRICES>(d, a);
    case FL_DEVICE_Q4_K: return fl_packed_product<FL_DEVICE_Q4_K, MATRICES>(d, a);
    case FL_DEVICE_Q5_K: return fl_packed_product<FL_DEVICE_Q5_K, MATRICES>(d, a);
    case FL_DEVICE_Q6_K: return fl_packed_product<FL_DEVICE_Q6_K, MATRICES>(d, a);
    default: return fl_packed_product<FL_DEVICE_Q4_ZERO, MATRICES>(d, a);
    }
}

int fl_product(fl_device *d, const fl_device_product *a) {
    return a->epilogue == FL_DEVICE_GATE_UP ? fl_product_of<2>(d, a) : fl_product_of<1>(d, a);
}

__global__ void fl_combine_kernel(fl_device_combine a) {
    fl_follow();
    for (uint32_t i = threadIdx.x; i < a.n_cols && blockIdx.x < *a.n; i += blockDim.x) {
        size_t at = blockIdx.x * a.stride + i;
        a.y[at] = a.epilogue == FL_DEVICE_GATE_UP ? fl_silu_mul(a.y[at], a.u[at]) : __fadd_rn(a.y[at], a.u[at]);
    }
}

int fl_combine(fl_device *d, const fl_device_combine *a) {
    return fl_launch(d, fl_combine_kernel, dim3(a->most, 1, 1), 256, 0, *a);
}

/* ---- Adapters: half a warp for each number -- */

__device__ __forceinline__ float fl_lanes_dot(const float *a, const float *b, uint32_t n) {
    float sum = 0;
    for (uint32_t i = threadIdx.x % FL_LANES; i < n; i += FL_LANES) {
        sum = __fmaf_rn(a[i], b[i], sum);
    }
    return fl_lanes_sum(sum);
}

__global__ void fl_narrow_kernel(fl_device_adapt a) {
    fl_follow();
    uint32_t row = blockIdx.x, teams = blockDim.x / FL_LANES, team = threadIdx.x / FL_LANES;
    if (row >= *a.n || a.adapters[row] == NULL) {
        return;
    }
    fl_device_low_rank l = a.adapters[row][a.index];
    for (uint32_t first = 0; first < l.rank; first += teams) { /* all of a warp go through */
        uint32_t r = min(first + team, l.rank - 1);
        float sum = fl_lanes_dot(a.x + row * a.x_stride, l.a + (size_t)r * fl_padded(a.n_cols), a.n_cols);
        if (threadIdx.x % FL_LANES == 0 && first + team < l.rank) {
            a.narrow[row * a.narrow_stride + r] = sum;
        }
    }
}

__global__ void fl_widen_kernel(fl_device_adapt a) {
    fl_follow();
    uint32_t row = blockIdx.x, out = blockIdx.y * (blockDim.x / FL_LANES) + threadIdx.x / FL_LANES;
    if (row >= *a.n || a.adapters[row] == NULL) {
        return;
    }
    fl_device_low_rank l = a.adapters[row][a.index];
    if (l.rank == 0) {
        return;
    }
    uint32_t there = min(out, a.n_outs - 1);
    float sum = fl_lanes_dot(a.narrow + row * a.narrow_stride, l.b + (size_t)there * fl_padded(l.rank), l.rank);
    if (threadIdx.x % FL_LANES == 0 && out < a.n_outs) {
        float *y = a.y + row * a.y_stride + out;
        *y = __fadd_rn(*y, sum);
    }
}

int fl_adapt(fl_device *d, const fl_device_adapt *a) {
    const unsigned threads = 128;
    int error = fl_launch(d, fl_narrow_kernel, dim3(a->most, 1, 1), threads, 0, *a);
    dim3 grid(a->most, fl_blocks(a->n_outs, threads / FL_LANES), 1);
    return error != 0 ? error : fl_launch(d, fl_widen_kernel, grid, threads, 0, *a);
}

} /* namespace */

#endif
