/* Attention on tensor cores, which round otherwise than the CPU (see cuda_tensor.cuh): queries, and the weights of
 * values, are sums of two numbers of the cache's type, f16 or bf16, or one. head_dim is 64 or 128.
 *
 * Blocks of FL_FLASH_KEYS keys begin at multiples of themselves; splits are those of cuda_attention.cuh. Each warp has
 * sixteen queries and all of their scores and values. With sixteen queries a block or fewer, its four warps share them:
 * each has the scores of eight keys, shows them to the others, and gathers a quarter of the columns of V. Either way a
 * number comes of the same operations in the same order: so no bit depends on who computes what. */
#ifndef FL_CUDA_FLASH_CUH
#define FL_CUDA_FLASH_CUH

#include "ops/cuda_attention.cuh"

namespace {

#define FL_FLASH_KEYS 32
#define FL_FLASH_THREADS 128
#define FL_FLASH_WARPS (FL_FLASH_THREADS / FL_WARP)
#define FL_FLASH_FEW 16 /* queries: of a warp, and of a block that shares them */

/* Keys and values of a block. Rows have room for eight more halves, so that eight of them meet all banks. */
template <int D>
struct fl_flash_stage {
    uint4 k[FL_FLASH_KEYS][D / 8 + 1], v[FL_FLASH_KEYS][D / 8 + 1];
};

template <int D, bool SHARES>
struct fl_flash_room {
    fl_flash_stage<D> stages[2];
    float scores[SHARES ? FL_FLASH_FEW : 1][FL_FLASH_KEYS + 8];
    float heads[SHARES ? FL_FLASH_FEW + 2 : 1][D]; /* of a row that is decoded: queries, k and v */
    uint32_t is_last; /* of the blocks of its row */
    float totals[SHARES ? D / 8 : D / 2][FL_FLASH_THREADS]; /* of the splits before: each thread's own */
};

/* What a thread has: of queries g and g + 8 of its warp, where g = lane / 4. */
template <int PIECES, int D, bool SHARES>
struct fl_flash {
    static constexpr int tiles = SHARES ? D / 32 : D / 8; /* of eight columns of V */
    uint32_t q[PIECES][D / 16][4];
    float scale[2]; /* of the scores */
    uint32_t begin[2], end[2]; /* the keys that each sees */
    float maximum[2], sum[2], total_maximum[2], total_sum[2];
    float outs[tiles][4];

    static __device__ __forceinline__ uint32_t query(uint32_t i) { /* g or g + 8 of the tile, which may end before */
        return (SHARES ? 0 : threadIdx.x / FL_WARP * FL_FLASH_FEW) + threadIdx.x % FL_WARP / 4 + 8 * i;
    }
    static __device__ __forceinline__ uint32_t first_tile() {
        return SHARES ? threadIdx.x / FL_WARP * tiles : 0;
    }
    static __device__ __forceinline__ uint32_t column(uint32_t n) { /* of the n-th of the numbers of a query */
        return (first_tile() + n / 2) * 8 + threadIdx.x % 4 * 2 + n % 2;
    }
};

/* ---- Queries -- */

/* A power of two that brings the largest of a query near 2^10, where f16 holds pieces of all, and its inverse. */
__device__ __forceinline__ float fl_flash_lift(float largest, float *back) {
    uint32_t exponent = max(__float_as_uint(largest) >> 23, 11u);
    *back = __uint_as_float((exponent - 10) << 23);
    return __uint_as_float((264 - exponent) << 23);
}

__device__ __forceinline__ float fl_quad_most(float x) { /* of the four threads of a query */
    x = fl_most(x, __shfl_xor_sync(FL_EVERY, x, 1));
    return fl_most(x, __shfl_xor_sync(FL_EVERY, x, 2));
}

__device__ __forceinline__ float fl_quad_sum(float x) {
    x = __fadd_rn(x, __shfl_xor_sync(FL_EVERY, x, 1));
    return __fadd_rn(x, __shfl_xor_sync(FL_EVERY, x, 2));
}

/* Two numbers as pairs of pieces. */
template <bool BF16, int PIECES>
__device__ __forceinline__ void fl_pairs(float a, float b, uint32_t pairs[PIECES]) {
    unsigned short low[2], high[2];
    fl_split<BF16>(a, low);
    fl_split<BF16>(b, high);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        pairs[p] = low[p] | (uint32_t)high[p] << 16;
    }
}

/* The heads of a row that is decoded are turned, and its k and v go into the cache if this block stores them. */
template <int D, bool SHARES>
__device__ __forceinline__ void fl_flash_turn(const fl_tile &w, bool stores, fl_flash_room<D, SHARES> &room) {
    for (uint32_t i = threadIdx.x / FL_WARP; i < w.queries.n + (stores ? 2 : 0); i += FL_FLASH_WARPS) {
        fl_head_load(w.a->heads, w.queries.first_row, fl_tile_head(w, i), room.heads[i]);
        fl_head_turn(w.a->heads, w.queries.first_row, fl_tile_head(w, i), room.heads[i]);
    }
    __syncthreads();
}

template <bool BF16, int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_queries(const fl_tile &w, const fl_flash_room<D, SHARES> &room,
                                                 fl_flash<PIECES, D, SHARES> &f) {
    uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t query = min(f.query(i), w.queries.n - 1); /* behind the last: that again */
        const float *from = (SHARES && w.a->decodes ? room.heads[SHARES ? query : 0] : fl_query_of(w, query)) + 2 * t;
        float largest = 0, back;
#pragma unroll
        for (int k = 0; k < D; k += 8) {
            largest = fl_most(fabsf(from[k]), fl_most(fabsf(from[k + 1]), largest));
        }
        float lift = fl_flash_lift(fl_quad_most(largest), &back);
#pragma unroll
        for (int k = 0; k < D / 8; k++) {
            uint32_t pairs[PIECES];
            fl_pairs<BF16, PIECES>(__fmul_rn(from[8 * k], lift), __fmul_rn(from[8 * k + 1], lift), pairs);
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                f.q[p][k / 2][k % 2 * 2 + i] = pairs[p];
            }
        }
        f.scale[i] = __fmul_rn(w.a->scale, back);
        fl_keys_of(w.a->window, fl_position_of(w, query), &f.begin[i], &f.end[i]);
    }
}

/* ---- Keys and values -- */

/* Tokens [first, first + FL_FLASH_KEYS); zeros from `end` on. */
template <int D>
__device__ __forceinline__ void fl_flash_load(const fl_tile &w, uint32_t first, uint32_t end, fl_flash_stage<D> &to) {
    constexpr uint32_t eights = D / 8;
    uint32_t at = threadIdx.x % eights;
#pragma unroll
    for (uint32_t k = 0; k < FL_FLASH_KEYS; k += FL_FLASH_THREADS / eights) {
        uint32_t i = k + threadIdx.x / eights, token = first + i;
        if (token < end) {
            size_t in = (size_t)(token % w.a->heads.kv.page_tokens) * eights + at;
            fl_copy<16>(&to.k[i][at], (const uint4 *)fl_block_of(w, w.a->heads.kv.k, token) + in);
            fl_copy<16>(&to.v[i][at], (const uint4 *)fl_block_of(w, w.a->heads.kv.v, token) + in);
        } else {
            to.k[i][at] = to.v[i][at] = make_uint4(0, 0, 0, 0);
        }
    }
}

/* scores = queries times eight keys */
template <bool BF16, int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_scores(const fl_flash<PIECES, D, SHARES> &f, const fl_flash_stage<D> &s,
                                                uint32_t key, float scores[4]) {
    uint32_t lane = threadIdx.x % FL_WARP;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        scores[i] = 0;
    }
#pragma unroll
    for (int k = 0; k < D / 16; k += 2) {
        uint32_t keys[4];
        fl_load_tiles(keys, &s.k[key + lane % 8][2 * k + lane / 8].x);
#pragma unroll
        for (int i = 0; i < 2 * PIECES; i++) {
            int step = i / PIECES;
            fl_mma_halves<BF16>(scores, f.q[i % PIECES][k + step], keys[2 * step], keys[2 * step + 1]);
        }
    }
}

/* The scores of a block's keys for this warp's queries. */
template <bool BF16, int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_all_scores(const fl_flash<PIECES, D, SHARES> &f,
                                                    fl_flash_room<D, SHARES> &room, const fl_flash_stage<D> &s,
                                                    float scores[FL_FLASH_KEYS / 8][4]) {
    uint32_t g = threadIdx.x % FL_WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / FL_WARP;
#pragma unroll
    for (int n = 0; n < (SHARES ? 1 : FL_FLASH_KEYS / 8); n++) {
        fl_flash_scores<BF16>(f, s, SHARES ? warp * 8 : n * 8, scores[n]);
    }
    if (SHARES) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            room.scores[SHARES ? g + i / 2 * 8 : 0][warp * 8 + 2 * t + i % 2] = scores[0][i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < FL_FLASH_KEYS / 2; i++) {
            scores[i / 4][i % 4] = room.scores[SHARES ? g + i % 4 / 2 * 8 : 0][i / 4 * 8 + 2 * t + i % 2];
        }
    }
}

/* ---- Softmax and what it weighs -- */

/* One step of the running softmax: scores become weights. */
template <int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_softmax(fl_flash<PIECES, D, SHARES> &f, uint32_t block,
                                                 float scores[FL_FLASH_KEYS / 8][4]) {
    uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = f.maximum[i], sum = 0;
#pragma unroll
        for (int n = 0; n < FL_FLASH_KEYS / 4; n++) {
            uint32_t key = block + n / 2 * 8 + 2 * t + n % 2;
            float &score = scores[n / 2][2 * i + n % 2];
            score = key >= f.begin[i] && key < f.end[i] ? __fmul_rn(score, f.scale[i]) : -FLT_MAX;
            top = fl_most(top, score);
        }
        top = fl_quad_most(top);
#pragma unroll
        for (int n = 0; n < FL_FLASH_KEYS / 4; n++) {
            uint32_t key = block + n / 2 * 8 + 2 * t + n % 2;
            float &score = scores[n / 2][2 * i + n % 2];
            score = key >= f.begin[i] && key < f.end[i] ? fl_exp(__fsub_rn(score, top)) : 0.0f;
            sum = __fadd_rn(sum, score);
        }
        float factor = fl_exp(__fsub_rn(f.maximum[i], top));
        f.sum[i] = __fmaf_rn(f.sum[i], factor, fl_quad_sum(sum));
        f.maximum[i] = top;
#pragma unroll
        for (int n = 0; n < 2 * f.tiles; n++) {
            float &out = f.outs[n / 2][2 * i + n % 2];
            out = __fmul_rn(out, factor);
        }
    }
}

/* outs += weights V */
template <bool BF16, int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_gather(fl_flash<PIECES, D, SHARES> &f, const fl_flash_stage<D> &s,
                                                const float weights[FL_FLASH_KEYS / 8][4]) {
    uint32_t lane = threadIdx.x % FL_WARP, first = f.first_tile();
#pragma unroll
    for (int step = 0; step < FL_FLASH_KEYS / 16; step++) {
        uint32_t pieces[PIECES][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *pair = &weights[2 * step + i / 2][i % 2 * 2];
            uint32_t pairs[PIECES];
            fl_pairs<BF16, PIECES>(pair[0], pair[1], pairs);
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                pieces[p][i] = pairs[p];
            }
        }
#pragma unroll
        for (int n = 0; n < f.tiles; n += 2) {
            uint32_t v[4];
            fl_load_turned(v, &s.v[step * 16 + lane % 16][first + n + lane / 16].x);
#pragma unroll
            for (int i = 0; i < 2 * PIECES; i++) {
                int of = i / PIECES;
                fl_mma_halves<BF16>(f.outs[n + of], pieces[i % PIECES], v[2 * of], v[2 * of + 1]);
            }
        }
    }
}

/* ---- Splits -- */

template <int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_begin(fl_flash<PIECES, D, SHARES> &f) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        f.maximum[i] = -FLT_MAX;
        f.sum[i] = 0;
    }
#pragma unroll
    for (int n = 0; n < 4 * f.tiles; n++) {
        f.outs[n / 4][n % 4] = 0;
    }
}

/* Query i's numbers of a split to the parts, for fl_merge_kernel. */
template <int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_part(const fl_tile &w, const fl_flash<PIECES, D, SHARES> &f, uint32_t i,
                                              uint32_t query, uint32_t split) {
    const fl_device_attend &a = *w.a;
    size_t part = fl_part_of(a, fl_row_of(w, query), fl_head_of(w, query), split);
#pragma unroll
    for (int n = 0; n < 2 * f.tiles; n++) {
        a.parts[part * D + f.column(n)] = f.outs[n / 2][2 * i + n % 2];
    }
    if (f.column(0) == 0) {
        a.limits[2 * part] = f.maximum[i];
        a.limits[2 * part + 1] = f.sum[i];
    }
}

/* Query i's numbers of a split to those of the splits before. */
template <int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_total(fl_flash<PIECES, D, SHARES> &f, fl_flash_room<D, SHARES> &room,
                                               uint32_t i, bool is_first) {
    float maximum = 0, sum = 0;
#pragma unroll
    for (int n = 0; n < 2 * f.tiles; n++) {
        float &total = room.totals[f.tiles * 2 * i + n][threadIdx.x], out = f.outs[n / 2][2 * i + n % 2];
        maximum = f.total_maximum[i];
        sum = f.total_sum[i];
        if (is_first) {
            total = out;
        } else {
            fl_merge(out, f.maximum[i], f.sum[i], &total, &maximum, &sum);
        }
    }
    f.total_maximum[i] = is_first ? f.maximum[i] : maximum;
    f.total_sum[i] = is_first ? f.sum[i] : sum;
}

/* The split that ends here, of the queries that have keys in it. */
template <int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_end(const fl_tile &w, fl_flash<PIECES, D, SHARES> &f,
                                             fl_flash_room<D, SHARES> &room, uint32_t split, bool apart) {
    uint32_t from = split * w.a->split_tokens, to = from + w.a->split_tokens;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t query = f.query(i);
        if (query >= w.queries.n || f.begin[i] >= to || f.end[i] <= from) {
            continue;
        }
        if (apart) {
            fl_flash_part(w, f, i, query, split);
        } else {
            fl_flash_total(f, room, i, f.begin[i] >= from);
        }
    }
    fl_flash_begin(f);
}

/* What all splits of a row gave, by the last of its blocks. */
__device__ __forceinline__ void fl_flash_merge(const fl_tile &w, uint32_t first, uint32_t behind, uint32_t *is_last) {
    const fl_device_attend &a = *w.a;
    uint32_t row = w.queries.first_row, *done = a.done + row * a.heads.kv.n_kv_heads + w.kv_head;
    bool last = fl_is_last(done, behind - first, is_last);
    for (uint32_t i = 0; i < w.queries.n && last; i++) {
        fl_merge_head(a, row, fl_head_of(w, i), first, behind);
    }
}

/* What is left when all splits are over. */
template <int PIECES, int D, bool SHARES>
__device__ __forceinline__ void fl_flash_put(const fl_tile &w, const fl_flash<PIECES, D, SHARES> &f,
                                             const fl_flash_room<D, SHARES> &room) {
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t query = f.query(i);
        if (query >= w.queries.n) {
            continue;
        }
        float *out = w.a->out + fl_row_of(w, query) * w.a->out_stride + (size_t)fl_head_of(w, query) * D;
        float inverse = __fdiv_rn(1.0f, f.total_sum[i]);
#pragma unroll
        for (int n = 0; n < 2 * f.tiles; n++) {
            float total = room.totals[f.tiles * 2 * i + n][threadIdx.x];
            out[f.column(n)] = __fmul_rn(total, inverse);
        }
    }
}

template <bool BF16, int PIECES, int D, bool SHARES>
__global__ void __launch_bounds__(FL_FLASH_THREADS, 2) fl_flash_kernel(const __grid_constant__ fl_device_attend a) {
    FL_DYNAMIC_SHARED(shared);
    fl_follow();
    fl_flash_room<D, SHARES> &room = *(fl_flash_room<D, SHARES> *)shared;
    if (blockIdx.x >= a.heads.counts->n_tiles) {
        return;
    }
    /* The last tiles of a prompt have most keys, and begin first. */
    fl_tile w = {&a, a.tiles[a.heads.counts->n_tiles - 1 - blockIdx.x], a.kv_head + blockIdx.y,
                 a.heads.n_heads / a.heads.kv.n_kv_heads, 0, {}};
    const fl_splits s = fl_splits_of(w);
    uint32_t begin = s.begin, end = s.end, now = 0;
    if (a.n_splits > 1) {
        begin = max(begin, blockIdx.z * a.split_tokens);
        end = min(end, (blockIdx.z + 1) * a.split_tokens);
    }
    if (begin >= end) {
        return;
    }
    if (SHARES && a.decodes) {
        fl_flash_turn(w, (end - 1) / a.split_tokens == s.highest, room);
    }
    bool has_queries = SHARES || threadIdx.x / FL_WARP * FL_FLASH_FEW < w.queries.n; /* the same for a warp */
    fl_flash<PIECES, D, SHARES> f;
    fl_flash_queries<BF16>(w, room, f);
    fl_flash_begin(f);
    uint32_t block = begin - begin % FL_FLASH_KEYS;
    fl_flash_load<D>(w, block, end, room.stages[now]);
    fl_copies_end();
    for (; block < end; block += FL_FLASH_KEYS, now ^= 1) {
        uint32_t next = block + FL_FLASH_KEYS;
        if (next < end) {
            fl_flash_load<D>(w, next, end, room.stages[now ^ 1]);
        }
        fl_copies_end();
        fl_copied_but<1>();
        __syncthreads();
        if (has_queries) {
            float scores[FL_FLASH_KEYS / 8][4];
            fl_flash_all_scores<BF16>(f, room, room.stages[now], scores);
            fl_flash_softmax(f, block, scores);
            fl_flash_gather<BF16>(f, room.stages[now], scores);
            if (next % a.split_tokens == 0 || next >= end) {
                fl_flash_end(w, f, room, block / a.split_tokens, s.apart);
            }
        }
        __syncthreads(); /* nobody reads what is filled next */
    }
    if (!s.apart && has_queries) {
        fl_flash_put(w, f, room);
    } else if (SHARES && s.apart && a.decodes) {
        fl_flash_merge(w, s.lowest, s.highest + 1, &room.is_last);
    }
}

/* ---- Launches -- */

template <bool BF16, int PIECES, int D, bool SHARES>
int fl_flash_launch(fl_device *d, const fl_device_attend *a) {
    dim3 grid(a->most_tiles, a->n_kv_heads, a->n_splits);
    return fl_launch(d, fl_flash_kernel<BF16, PIECES, D, SHARES>, grid, FL_FLASH_THREADS,
                     sizeof(fl_flash_room<D, SHARES>), *a);
}

template <bool BF16, int PIECES>
int fl_flash_of(fl_device *d, const fl_device_attend *a) {
    bool shares = a->queries <= FL_FLASH_FEW;
    return a->heads.kv.head_dim == 64 ? shares ? fl_flash_launch<BF16, PIECES, 64, true>(d, a)
                                         : fl_flash_launch<BF16, PIECES, 64, false>(d, a)
           : shares             ? fl_flash_launch<BF16, PIECES, 128, true>(d, a)
                                : fl_flash_launch<BF16, PIECES, 128, false>(d, a);
}

int fl_attend_either(fl_device *d, const fl_device_attend *a) {
    bool bf16 = a->heads.kv.type == FL_DEVICE_KV_BF16;
    if (a->n_pieces == 0) {
        return fl_attend(d, a);
    }
    int error = a->n_pieces == 1 ? bf16 ? fl_flash_of<true, 1>(d, a) : fl_flash_of<false, 1>(d, a)
                : bf16           ? fl_flash_of<true, 2>(d, a)
                                 : fl_flash_of<false, 2>(d, a);
    return error == 0 && a->n_splits > 1 && !a->decodes ? fl_merge_launch(d, a) : error;
}

} /* namespace */

#endif
