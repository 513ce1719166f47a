/* Work by rows: embedding, norms, rows as integers, rotation, and what goes into the KV cache. */
#ifndef FL_CUDA_ROWS_CUH
#define FL_CUDA_ROWS_CUH

#include "ops/cuda_weights.cuh"

namespace {

/* ---- Embedding -- */

__global__ void fl_embed_kernel(fl_device_embed a) {
    fl_follow();
    if (blockIdx.x >= a.counts->n_rows) {
        return;
    }
    int32_t told = a.tokens[blockIdx.x];
    size_t token = (size_t)(told >= 0 ? told : max(a.chosen[-1 - told].token, 0)); /* -1: this row is in vain */
    for (uint32_t i = threadIdx.x; i < a.n_cols; i += blockDim.x) {
        a.x[blockIdx.x * a.x_stride + i] = fl_weight_at(a.type, a.table, a.n_cols, token, i);
    }
}

int fl_embed(fl_device *d, const fl_device_embed *a) {
    return fl_launch(d, fl_embed_kernel, dim3(a->most, 1, 1), 256, 0, *a);
}

/* ---- Rows for a product: a block of threads together -- */

__device__ __forceinline__ const float *fl_row_of(const fl_device_rows &a, uint32_t row) {
    return a.x + (a.which != NULL ? a.which[row] : row) * a.stride;
}

/* ROWS rows, behind the last one that again, normed, to shared memory: to (ROWS, stride). */
template <int ROWS>
__device__ __forceinline__ void fl_norm_rows(const fl_device_rows &a, uint32_t first, float *to) {
    static_assert(ROWS <= FL_WARP / FL_LANES, "half a warp for each row");
    __shared__ float scales[ROWS];
    uint32_t stride = (uint32_t)a.stride, team = threadIdx.x / FL_LANES;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float *x = fl_row_of(a, min(first + r, *a.n - 1));
#pragma unroll 8
        for (uint32_t i = threadIdx.x; i < a.n_cols; i += blockDim.x) {
            to[r * stride + i] = x[i];
        }
    }
    __syncthreads();
    if (threadIdx.x < FL_WARP) {
        float scale = fl_norm_scale(to + min(team, ROWS - 1u) * stride, a.n_cols, a.epsilon);
        if (threadIdx.x % FL_LANES == 0 && team < ROWS) {
            scales[team] = scale;
        }
    }
    __syncthreads();
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < a.n_cols; i += blockDim.x) {
        float norm = a.norm[i];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            to[r * stride + i] = __fmul_rn(__fmul_rn(to[r * stride + i], scales[r]), norm);
        }
    }
    __syncthreads();
}

#define FL_EACH 8 /* numbers of a unit that a thread has */
#define FL_SHARERS (FL_UNIT / FL_EACH)

/* Those of a row from `column` on; behind the last, zeros. */
__device__ __forceinline__ void fl_each_load(const fl_device_rows &a, const float *x, uint32_t column,
                                             float numbers[FL_EACH]) {
    if (a.order == NULL && column + FL_EACH <= a.n_cols) {
        float4 low = *(const float4 *)(x + column), high = *(const float4 *)(x + column + 4);
        numbers[0] = low.x, numbers[1] = low.y, numbers[2] = low.z, numbers[3] = low.w;
        numbers[4] = high.x, numbers[5] = high.y, numbers[6] = high.z, numbers[7] = high.w;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < FL_EACH; i++) {
        uint32_t at = column + i;
        numbers[i] = at < a.n_cols ? x[a.order != NULL ? a.order[at] : at] : 0.0f;
    }
}

/* A unit as integers, by the threads that share it; all of their warp must come. Returns whether it is finite. */
__device__ __forceinline__ bool fl_each_store(const float numbers[FL_EACH], bool exists, size_t unit,
                                              const fl_device_integers &to) {
    float largest = 0;
    uint32_t words[FL_EACH / 4] = {0};
    int sum = 0;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < FL_EACH; i++) {
        largest = fl_most(largest, fabsf(numbers[i]));
        finite = finite && fl_finite(numbers[i]);
    }
    for (int half = FL_SHARERS / 2; half > 0; half /= 2) {
        largest = fl_most(largest, __shfl_xor_sync(FL_EVERY, largest, half));
    }
    float inverse = largest >= 1e-30f ? __fdiv_rn(127.0f, largest) : 0.0f; /* below, it comes near the largest float */
#pragma unroll
    for (int i = 0; i < FL_EACH; i++) {
        int q = (int)fl_most(fl_least(rintf(__fmul_rn(numbers[i], inverse)), 127.0f), -127.0f);
        words[i / 4] |= ((uint32_t)q & 255u) << i % 4 * 8;
        sum += q;
    }
    for (int half = FL_SHARERS / 2; half > 0; half /= 2) {
        sum += __shfl_xor_sync(FL_EVERY, sum, half);
    }
    float scale = inverse != 0 ? __fdiv_rn(largest, 127.0f) : 0.0f;
    uint32_t sharer = threadIdx.x % FL_SHARERS;
    if (exists) {
        *(uint2 *)(to.q + unit * FL_UNIT + sharer * FL_EACH) = make_uint2(words[0], words[1]);
    }
    if (exists && sharer == 0) {
        to.scales[unit] = scale;
        to.minus[unit] = __fmul_rn(-scale, (float)sum);
    }
    return finite;
}

/* Rows x (ROWS, stride) as integers: to (ROWS, units). The scales of a row that is not finite are no numbers. Threads
 * must meet before they read them. */
template <int ROWS>
__device__ __forceinline__ void fl_integers_rows(const fl_device_rows &a, const float *x,
                                                 const fl_device_integers &to) {
    __shared__ uint32_t broken[ROWS];
    constexpr uint32_t at_once = FL_WARP / FL_SHARERS; /* units of a warp */
    uint32_t n_units = fl_units(a.n_cols), lane = threadIdx.x % FL_WARP;
    if (threadIdx.x < ROWS) {
        broken[threadIdx.x] = 0;
    }
    __syncthreads();
    for (uint32_t u = threadIdx.x / FL_WARP * at_once; u < n_units; u += blockDim.x / FL_SHARERS) {
        uint32_t unit = u + lane / FL_SHARERS;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float numbers[FL_EACH];
            fl_each_load(a, x + r * a.stride, unit * FL_UNIT + lane % FL_SHARERS * FL_EACH, numbers);
            if (!fl_each_store(numbers, unit < n_units, (size_t)r * n_units + unit, to)) {
                atomicExch(&broken[r], 1u);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        for (uint32_t u = threadIdx.x; broken[r] != 0 && u < n_units; u += blockDim.x) {
            to.scales[r * n_units + u] = __uint_as_float(0x7FC00000u);
        }
    }
}

/* x as pieces, each laid out as plain weights are. */
__device__ __forceinline__ void fl_pieces_row(const fl_device_rows &a, const float *x, uint32_t row) {
    uint32_t n = fl_chunks(a.n_cols) * FL_DEVICE_CHUNK;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        unsigned short pieces[2];
        fl_split<true>(i < a.n_cols ? x[i] : 0.0f, pieces);
        size_t at = (size_t)row * n + fl_chunk_place(i);
        a.pieces.piece[0][at] = pieces[0];
        if (a.n_pieces == 2) {
            a.pieces.piece[1][at] = pieces[1];
        }
    }
}

#define FL_ROWS_THREADS 256

__global__ void __launch_bounds__(FL_ROWS_THREADS) fl_rows_kernel(fl_device_rows a) {
    FL_DYNAMIC_SHARED(shared); /* a row of floats that is to be normed */
    fl_follow();
    uint32_t row = blockIdx.x;
    if (row >= *a.n) {
        return;
    }
    const float *x = fl_row_of(a, row);
    if (a.norm != NULL) {
        fl_norm_rows<1>(a, row, (float *)shared);
        x = (const float *)shared;
        for (uint32_t i = threadIdx.x; a.normed != NULL && i < a.n_cols; i += blockDim.x) {
            a.normed[row * a.stride + i] = x[i];
        }
    }
    if (a.n_pieces > 0) {
        fl_pieces_row(a, x, row);
    }
    if (a.integers.q != NULL) {
        size_t at = (size_t)row * fl_units(a.n_cols);
        fl_device_integers to = {a.integers.q + at * FL_UNIT, a.integers.scales + at, a.integers.minus + at};
        fl_integers_rows<1>(a, x, to);
    }
}

__host__ __device__ __forceinline__ size_t fl_floats_bytes(const fl_device_rows &a, uint32_t n_rows) {
    return a.norm != NULL ? n_rows * a.stride * sizeof(float) : 0;
}

int fl_rows(fl_device *d, const fl_device_rows *a) {
    return fl_launch(d, fl_rows_kernel, dim3(a->most, 1, 1), FL_ROWS_THREADS, fl_floats_bytes(*a, 1), *a);
}

/* ---- Angles: number by number what math.c and rope.c compute -- */

template <int N>
__device__ __forceinline__ double fl_polynomial(const double (&coefficients)[N], double x) {
    double y = coefficients[N - 1];
#pragma unroll
    for (int i = N - 2; i >= 0; i--) {
        y = fma(y, x, coefficients[i]);
    }
    return y;
}

__device__ __forceinline__ void fl_sincos(double x, double &sine, double &cosine) {
    const double sine_terms[] = {1, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
                                 1.0 / 6227020800, -1.0 / 1307674368000};
    const double cosine_terms[] = {1, -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800,
                                   1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000};
    const double two_over_pi = 0.63661977236758134308;
    double n = (double)(int64_t)fma(x, two_over_pi, x < 0 ? -0.5 : 0.5);
    double r = fma(n, -2.02226624879595063154e-21,
                   fma(n, -6.07710050630396597660e-11, fma(n, -1.57079632673412561417e+00, x)));
    double s = r * fl_polynomial(sine_terms, r * r);
    double c = fl_polynomial(cosine_terms, r * r);
    unsigned quadrant = (unsigned)((int64_t)n & 3);
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    sine = quadrant >= 2 ? -sine : sine;
    cosine = quadrant == 1 || quadrant == 2 ? -cosine : cosine;
}

__global__ void fl_angles_kernel(fl_device_angles a) {
    fl_follow();
    float *angles = a.angles + (size_t)blockIdx.x * 2 * a.half;
    for (uint32_t i = threadIdx.x; i < a.half; i += blockDim.x) {
        double sine, cosine;
        fl_sincos(__fmul_rn((float)blockIdx.x, a.frequencies[i]), sine, cosine);
        angles[i] = __fmul_rn((float)cosine, a.scale);
        angles[a.half + i] = __fmul_rn((float)sine, a.scale);
    }
}

int fl_angles(fl_device *d, const fl_device_angles *a) {
    return fl_launch(d, fl_angles_kernel, dim3(a->context, 1, 1), 64, 0, *a);
}

/* ---- Rotation and the KV cache -- */

__device__ __forceinline__ bool fl_kv_scaled(int type) {
    return type == FL_DEVICE_KV_Q8 || type == FL_DEVICE_KV_Q4;
}

/* Bytes of the numbers of a row, and of a row with its scale. */
__host__ __device__ __forceinline__ uint32_t fl_kv_bytes(int type, uint32_t d) {
    return type == FL_DEVICE_KV_Q8   ? 4 * ((d + 3) / 4)
           : type == FL_DEVICE_KV_Q4 ? 4 * ((d + 7) / 8)
                                     : d * (type == FL_DEVICE_KV_F32 ? 4 : 2);
}

__device__ __forceinline__ size_t fl_kv_block_bytes(const fl_device_kv &kv) {
    uint32_t row = fl_kv_bytes(kv.type, kv.head_dim) + (fl_kv_scaled(kv.type) ? sizeof(float) : 0);
    return (size_t)row * kv.page_tokens;
}

/* Offset of byte i of a token's row: keys with scales lie side by side, four bytes each. */
__device__ __forceinline__ size_t fl_kv_byte(const fl_device_kv &kv, bool is_v, uint32_t token, uint32_t i) {
    uint32_t n = fl_kv_bytes(kv.type, kv.head_dim), strip = min(kv.page_tokens, (uint32_t)FL_LANES);
    if (is_v || !fl_kv_scaled(kv.type)) {
        return (size_t)token * n + i;
    }
    return (size_t)token / strip * strip * n + i / 4 * 4 * strip + token % strip * 4 + i % 4;
}

__device__ __forceinline__ float *fl_kv_scale(const fl_device_kv &kv, const uint8_t *block, uint32_t token) {
    return (float *)(block + (size_t)kv.page_tokens * fl_kv_bytes(kv.type, kv.head_dim)) + token;
}

__device__ __forceinline__ uint32_t fl_rotation(uint32_t d) {
    return d & (~d + 1);
}

/* x = H x in blocks: see the CPU's fl_rotation. A warp together, x in shared memory. */
__device__ __forceinline__ void fl_hadamard(float *x, uint32_t d) {
    for (uint32_t half = 1; half < fl_rotation(d); half *= 2) {
        for (uint32_t i = threadIdx.x % FL_WARP; i < d; i += FL_WARP) {
            if ((i & half) == 0) {
                float a = x[i], b = x[i + half];
                x[i] = __fadd_rn(a, b);
                x[i + half] = __fsub_rn(a, b);
            }
        }
        __syncwarp();
    }
}

struct fl_quantiser {
    float scale, inverse, top;
};

/* How a row becomes integers: see kernels.h. A warp together. */
__device__ __forceinline__ fl_quantiser fl_quantiser_of(const float *x, uint32_t d, int bits) {
    float highest = 0, lowest = 0;
    bool broken = false;
    for (uint32_t i = threadIdx.x % FL_WARP; i < d; i += FL_WARP) {
        highest = fl_most(x[i], highest);
        lowest = fl_most(__fsub_rn(0.0f, x[i]), lowest);
        broken = broken || !fl_finite(x[i]);
    }
    highest = fl_warp_most(highest);
    lowest = fl_warp_most(lowest);
    broken = __any_sync(FL_EVERY, broken) != 0;
    float extreme = highest >= lowest ? highest : -lowest, least = bits == 8 ? -127.0f : -8.0f;
    fl_quantiser q = {0, 0, bits == 8 ? 127.0f : 7.0f};
    if (broken) {
        q.scale = __uint_as_float(0x7FC00000u);
    } else if (fl_most(highest, lowest) >= 1e-30f) { /* below, the inverse comes near the largest float */
        q.scale = __fdiv_rn(extreme, least);
        q.inverse = __fdiv_rn(least, extreme);
    }
    return q;
}

__device__ __forceinline__ int fl_quantised(const fl_quantiser &q, float x) {
    return q.inverse != 0 ? (int)fl_least(q.top, rintf(__fmul_rn(x, q.inverse))) : 0;
}

/* Byte i of a row as the cache has it: K made unsigned. */
__device__ __forceinline__ uint8_t fl_kv_pack(const fl_device_kv &kv, bool is_v, const fl_quantiser &q, const float *x,
                                              uint32_t i) {
    uint32_t d = kv.head_dim, half = d / 2;
    if (kv.type == FL_DEVICE_KV_Q8) {
        return i < d ? (uint8_t)(fl_quantised(q, x[i]) + (is_v ? 0 : 128)) : 0;
    }
    return i < half ? (uint8_t)((fl_quantised(q, x[i]) + 8) | (fl_quantised(q, x[half + i]) + 8) << 4) : 0;
}

/* x (head_dim), which may change, to its place. A warp together. */
__device__ __forceinline__ void fl_kv_store(const fl_device_kv &kv, bool is_v, float *x, uint8_t *block,
                                            uint32_t token) {
    uint32_t lane = threadIdx.x % FL_WARP, d = kv.head_dim;
    if (fl_kv_scaled(kv.type)) {
        if (!is_v) {
            fl_hadamard(x, d);
        }
        fl_quantiser q = fl_quantiser_of(x, d, kv.type == FL_DEVICE_KV_Q8 ? 8 : 4);
        for (uint32_t i = lane; i < fl_kv_bytes(kv.type, d); i += FL_WARP) {
            block[fl_kv_byte(kv, is_v, token, i)] = fl_kv_pack(kv, is_v, q, x, i);
        }
        if (lane == 0) {
            *fl_kv_scale(kv, block, token) = q.scale;
        }
        return;
    }
    for (uint32_t i = lane; i < d; i += FL_WARP) {
        size_t at = (size_t)token * d + i;
        if (kv.type == FL_DEVICE_KV_F32) {
            ((float *)block)[at] = x[i];
        } else if (kv.type == FL_DEVICE_KV_BF16) {
            ((unsigned short *)block)[at] = fl_to_bf16(x[i]);
        } else { /* what f16 does not hold is cut */
            float cut = fl_most(-65504.0f, fl_least(65504.0f, x[i]));
            ((unsigned short *)block)[at] = __half_as_ushort(__float2half_rn(cut));
        }
    }
}

/* x (head_dim) = a head of a row; those of k are counted behind those of q, then come those of v. A warp together, x in
 * shared memory: as below. */
__device__ __forceinline__ void fl_head_load(const fl_device_heads &a, uint32_t row, uint32_t head, float *x) {
    const float *from = a.qkv + row * a.qkv_stride + (size_t)head * a.kv.head_dim;
    for (uint32_t i = threadIdx.x % FL_WARP; i < a.kv.head_dim; i += FL_WARP) {
        x[i] = from[i];
    }
    __syncwarp();
}

/* A head of q or k is normed and turned; one of k or v goes into its slot, which may change x. */
__device__ __forceinline__ void fl_head_turn(const fl_device_heads &a, uint32_t row, uint32_t head, float *x) {
    uint32_t d = a.kv.head_dim, half = d / 2, lane = threadIdx.x % FL_WARP, n_kv = a.kv.n_kv_heads;
    bool is_q = head < a.n_heads, is_v = head >= a.n_heads + n_kv;
    const float *norm = is_q ? a.q_norm : is_v ? NULL : a.k_norm, *cosines = a.angles + (size_t)a.positions[row] * d;
    if (norm != NULL) {
        float scale = fl_norm_scale(x, d, a.epsilon);
        __syncwarp();
        for (uint32_t i = lane; i < d; i += FL_WARP) {
            x[i] = __fmul_rn(__fmul_rn(x[i], scale), norm[i]);
        }
        __syncwarp();
    }
    for (uint32_t i = lane; i < half && !is_v; i += FL_WARP) {
        float c = cosines[i], s = cosines[half + i], one = x[i], other = x[half + i];
        x[i] = __fmaf_rn(one, c, __fsub_rn(0.0f, __fmul_rn(other, s)));
        x[half + i] = __fmaf_rn(other, c, __fmul_rn(one, s));
    }
    __syncwarp();
    if (!is_q) {
        uint32_t slot = a.slots[row], page = slot / a.kv.page_tokens, kv_head = (head - a.n_heads) % n_kv;
        uint8_t *block = (is_v ? a.kv.v : a.kv.k) + (kv_head * a.kv.n_pages + page) * fl_kv_block_bytes(a.kv);
        fl_kv_store(a.kv, is_v, x, block, slot % a.kv.page_tokens);
    }
}

#define FL_ROPE_WARPS 4

/* A warp for every head of every row, those of V too. */
__global__ void __launch_bounds__(FL_ROPE_WARPS * FL_WARP) fl_rope_kernel(fl_device_rope a) {
    FL_DYNAMIC_SHARED(shared); /* a head for each warp */
    fl_follow();
    uint32_t d = a.heads.kv.head_dim, warp = threadIdx.x / FL_WARP, row = blockIdx.x;
    uint32_t head = blockIdx.y * FL_ROPE_WARPS + warp;
    if (row >= a.heads.counts->n_rows || head >= a.heads.n_heads + 2 * a.heads.kv.n_kv_heads) {
        return;
    }
    float *x = (float *)shared + warp * d, *to = a.q + row * a.heads.qkv_stride + (size_t)head * d;
    fl_head_load(a.heads, row, head, x);
    fl_head_turn(a.heads, row, head, x);
    for (uint32_t i = threadIdx.x % FL_WARP; i < d && head < a.heads.n_heads; i += FL_WARP) {
        to[i] = x[i];
    }
}

int fl_rope_store(fl_device *d, const fl_device_rope *a) {
    uint32_t n_heads = a->heads.n_heads + 2 * a->heads.kv.n_kv_heads;
    dim3 grid(a->heads.most, fl_blocks(n_heads, FL_ROPE_WARPS), 1);
    return fl_launch(d, fl_rope_kernel, grid, FL_ROPE_WARPS * FL_WARP,
                     FL_ROPE_WARPS * a->heads.kv.head_dim * sizeof(float), *a);
}

} /* namespace */

#endif
