/* Attention: FlashAttention (Dao et al., 2022) over pages. A block of threads has a tile of queries, those of one kv
 * head, and all keys of these, or one split of them (Flash-Decoding; Dao et al., 2023). Blocks of FL_BLOCK_TOKENS
 * keys and splits begin at multiples of themselves, and splits are merged in order, so that no bit depends on who
 * computes what:
 *
 *     scores    half a warp for each key, a lane of the sum a thread; integers: a thread for each score
 *     softmax   half a warp for each query
 *     gather    a thread for each column of V
 *     merge     a thread for each column, in a kernel of its own
 *
 * When each tile is all of one row and kv head, this kernel also does the work of fl_rope_kernel and fl_merge_kernel: a
 * block turns the queries that it needs, the one that meets the row's own key stores that and its value before, and the
 * last one of a row and kv head to be done merges what all of them gave.
 *
 * Shared memory: [ K, then V as floats | queries | scores | state of the queries ], see fl_attend_room. Its rows are
 * padded, so that two half warps meet different banks. */
#ifndef FL_CUDA_ATTENTION_CUH
#define FL_CUDA_ATTENTION_CUH

#include "ops/cuda_rows.cuh"

namespace {

struct fl_queries { /* of a tile, in shared memory */
    float *kv;          /* (FL_BLOCK_TOKENS, stride) */
    float *q;           /* (queries, stride): floats, or integers and their rest */
    float *scores;      /* (queries, FL_BLOCK_TOKENS) */
    float *maximum, *sum, *factor, *q_scale; /* (queries) */
    int *q_sum;
    uint32_t *begin, *end; /* the keys that each sees */
    float *v_scales;    /* (FL_BLOCK_TOKENS) */
    uint32_t *is_last;  /* of the blocks of its row */
};

__host__ __device__ __forceinline__ size_t fl_attend_floats(uint32_t queries, uint32_t d) {
    return (size_t)(FL_BLOCK_TOKENS + queries) * fl_padded(d) + queries * (FL_BLOCK_TOKENS + 7) + FL_BLOCK_TOKENS + 1;
}

__device__ __forceinline__ fl_queries fl_attend_room(unsigned char *shared, uint32_t queries, uint32_t d) {
    fl_queries t;
    t.kv = (float *)shared;
    t.q = t.kv + FL_BLOCK_TOKENS * fl_padded(d);
    t.scores = t.q + queries * fl_padded(d);
    t.maximum = t.scores + queries * FL_BLOCK_TOKENS;
    t.sum = t.maximum + queries;
    t.factor = t.sum + queries;
    t.q_scale = t.factor + queries;
    t.q_sum = (int *)(t.q_scale + queries);
    t.begin = (uint32_t *)(t.q_sum + queries);
    t.end = t.begin + queries;
    t.v_scales = (float *)(t.end + queries);
    t.is_last = (uint32_t *)(t.v_scales + FL_BLOCK_TOKENS);
    return t;
}

/* The keys that a position sees: as the CPU's fl_attend_range. */
__device__ __forceinline__ void fl_keys_of(uint32_t window, uint32_t position, uint32_t *begin, uint32_t *end) {
    *end = position + 1;
    *begin = window != 0 && *end > window ? *end - window : 0;
}

/* A tile at work; the same for all threads of a block. */
struct fl_tile {
    const fl_device_attend *a;
    fl_device_tile queries;
    uint32_t kv_head, group, stride;
    fl_queries t;
};

__device__ __forceinline__ uint32_t fl_row_of(const fl_tile &w, uint32_t query) {
    return w.queries.first_row + (w.queries.first + query) / w.group;
}

__device__ __forceinline__ uint32_t fl_head_of(const fl_tile &w, uint32_t query) {
    return w.kv_head * w.group + (w.queries.first + query) % w.group;
}

__device__ __forceinline__ uint32_t fl_position_of(const fl_tile &w, uint32_t query) {
    return w.queries.position + (w.queries.first + query) / w.group;
}

__device__ __forceinline__ const uint8_t *fl_block_of(const fl_tile &w, const uint8_t *kv, uint32_t token) {
    uint32_t page = w.a->pages[w.queries.pages + token / w.a->heads.kv.page_tokens];
    return kv + (w.kv_head * w.a->heads.kv.n_pages + page) * fl_kv_block_bytes(w.a->heads.kv);
}

/* ---- Queries -- */

/* Query i, which is x, as integers in its place: those of the low halves, then those of the high ones. A warp
 * together. */
__device__ __forceinline__ void fl_query_integers(const fl_tile &w, uint32_t i, float *x) {
    uint32_t d = w.a->heads.kv.head_dim, lane = threadIdx.x % FL_WARP, half = d / 2;
    uint32_t high = fl_kv_bytes(FL_DEVICE_KV_Q4, d), n = 2 * high; /* bytes of a row of queries: 8 * ceil(d / 8) */
    bool wide = w.a->heads.kv.type == FL_DEVICE_KV_Q8;
    int8_t *to = (int8_t *)(w.t.q + i * w.stride);
    fl_hadamard(x, d);
    fl_quantiser q = fl_quantiser_of(x, d, 8);
    int sum = 0;
    for (uint32_t k = lane; k < n; k += FL_WARP) {
        uint32_t column = wide ? k : k < high ? k : half + k - high;
        bool there = wide ? k < d : k < high ? k < half : k - high < half;
        int number = there ? fl_quantised(q, x[column]) : 0;
        to[k] = (int8_t)number;
        sum += number;
    }
    sum = fl_lanes_isum(sum);
    sum += __shfl_xor_sync(FL_EVERY, sum, FL_LANES);
    if (lane == 0) {
        w.t.q_scale[i] = __fdiv_rn(q.scale, (float)fl_rotation(d));
        w.t.q_sum[i] = sum;
    }
}

__device__ __forceinline__ const float *fl_query_of(const fl_tile &w, uint32_t query) {
    const fl_device_heads &h = w.a->heads;
    return h.qkv + fl_row_of(w, query) * h.qkv_stride + (size_t)fl_head_of(w, query) * h.kv.head_dim;
}

/* Head i of a tile: its queries, then, of its row, k and v. */
__device__ __forceinline__ uint32_t fl_tile_head(const fl_tile &w, uint32_t i) {
    const fl_device_heads &h = w.a->heads;
    return i < w.queries.n ? fl_head_of(w, i) : h.n_heads + w.kv_head + (i - w.queries.n) * h.kv.n_kv_heads;
}

/* Queries to their places; and k and v of the row into the cache, if this block stores them. */
__device__ __forceinline__ void fl_attend_queries(const fl_tile &w, bool stores) {
    const fl_device_heads &heads = w.a->heads;
    uint32_t d = heads.kv.head_dim, warps = blockDim.x / FL_WARP, n = w.queries.n;
    float *x = w.t.kv + threadIdx.x / FL_WARP * w.stride; /* not used yet */
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        fl_keys_of(w.a->window, fl_position_of(w, i), &w.t.begin[i], &w.t.end[i]);
    }
    for (uint32_t i = threadIdx.x / FL_WARP; i < n + (stores ? 2 : 0); i += warps) {
        uint32_t row = fl_row_of(w, min(i, n - 1)), head = fl_tile_head(w, i);
        fl_head_load(heads, row, head, x);
        if (w.a->decodes) {
            fl_head_turn(heads, row, head, x);
        }
        if (i < n && fl_kv_scaled(heads.kv.type)) {
            fl_query_integers(w, i, x);
        }
        for (uint32_t k = threadIdx.x % FL_WARP; k < w.stride && i < n && !fl_kv_scaled(heads.kv.type); k += FL_WARP) {
            w.t.q[i * w.stride + k] = k < d ? x[k] : 0.0f;
        }
        __syncwarp();
    }
    __syncthreads();
}

/* ---- Keys and values -- */

template <int KV>
__device__ __forceinline__ float fl_kv_at(const fl_device_kv &kv, const uint8_t *block, uint32_t token, uint32_t i) {
    uint32_t d = kv.head_dim, half = d / 2;
    size_t at = (size_t)token * d + i;
    switch (KV) {
    case FL_DEVICE_KV_F32: return ((const float *)block)[at];
    case FL_DEVICE_KV_F16: return fl_f16(((const unsigned short *)block)[at]);
    case FL_DEVICE_KV_BF16: return fl_bf16(((const unsigned short *)block)[at]);
    case FL_DEVICE_KV_Q8: return (float)(int8_t)block[fl_kv_byte(kv, true, token, i)];
    default: {
        uint8_t both = block[fl_kv_byte(kv, true, token, i < half ? i : i - half)];
        return (float)((i < half ? both & 15 : both >> 4) - 8);
    }
    }
}

/* Tokens [first, first + n) of K or V as floats to w.t.kv, zeros behind them and in the rest of each row. */
template <int KV>
__device__ __forceinline__ void fl_attend_load(const fl_tile &w, const uint8_t *kv, uint32_t first, uint32_t n) {
    uint32_t d = w.a->heads.kv.head_dim, page_tokens = w.a->heads.kv.page_tokens;
    for (uint32_t token = threadIdx.x / FL_WARP; token < FL_BLOCK_TOKENS; token += blockDim.x / FL_WARP) {
        float *to = w.t.kv + token * w.stride;
        const uint8_t *block = token < n ? fl_block_of(w, kv, first + token) : NULL;
        for (uint32_t i = threadIdx.x % FL_WARP; i < w.stride; i += FL_WARP) {
            to[i] = token < n && i < d ? fl_kv_at<KV>(w.a->heads.kv, block, (first + token) % page_tokens, i) : 0.0f;
        }
    }
}

/* scores = queries times the keys in w.t.kv */
template <int QUERIES>
__device__ __forceinline__ void fl_scores_floats(const fl_tile &w) {
    uint32_t lane = threadIdx.x % FL_LANES, n = (w.a->heads.kv.head_dim + FL_LANES - 1) / FL_LANES * FL_LANES;
    for (uint32_t j = threadIdx.x / FL_LANES; j < FL_BLOCK_TOKENS; j += blockDim.x / FL_LANES) {
        float sums[QUERIES];
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            sums[q] = 0;
        }
        for (uint32_t i = lane; i < n; i += FL_LANES) {
            float k = w.t.kv[j * w.stride + i];
#pragma unroll
            for (int q = 0; q < QUERIES; q++) { /* those that are not there take the last one's place */
                sums[q] = __fmaf_rn(w.t.q[min((uint32_t)q, w.queries.n - 1) * w.stride + i], k, sums[q]);
            }
        }
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            float sum = fl_lanes_sum(sums[q]);
            if (lane == (uint32_t)q % FL_LANES && (uint32_t)q < w.queries.n) {
                w.t.scores[q * FL_BLOCK_TOKENS + j] = sum;
            }
        }
    }
}

/* The same of integers, where the keys lie. */
template <int KV>
__device__ __forceinline__ void fl_scores_integers(const fl_tile &w, uint32_t first, uint32_t n) {
    const fl_device_kv &kv = w.a->heads.kv;
    uint32_t quads = fl_kv_bytes(KV, kv.head_dim) / 4, high = fl_kv_bytes(FL_DEVICE_KV_Q4, kv.head_dim) / 4;
    for (uint32_t i = threadIdx.x; i < w.queries.n * FL_BLOCK_TOKENS; i += blockDim.x) {
        uint32_t query = i / FL_BLOCK_TOKENS, j = i % FL_BLOCK_TOKENS, token = (first + j) % kv.page_tokens;
        if (j >= n) {
            continue;
        }
        const uint8_t *block = fl_block_of(w, kv.k, first + j);
        const int *q = (const int *)(w.t.q + query * w.stride);
        int sum = KV == FL_DEVICE_KV_Q8 ? 0 : -8 * w.t.q_sum[query];
        for (uint32_t quad = 0; quad < quads; quad++) {
            uint32_t k = *(const uint32_t *)(block + fl_kv_byte(kv, false, token, 4 * quad));
            if (KV == FL_DEVICE_KV_Q8) {
                sum = __dp4a((int)(k ^ 0x80808080u), q[quad], sum);
            } else {
                sum = __dp4a((int)(k & 0x0F0F0F0Fu), q[quad], sum);
                sum = __dp4a((int)(k >> 4 & 0x0F0F0F0Fu), q[high + quad], sum);
            }
        }
        float scale = __fmul_rn(w.t.q_scale[query], *fl_kv_scale(kv, block, token));
        w.t.scores[i] = __fmul_rn((float)sum, scale);
    }
}

/* ---- Softmax and what it weighs -- */

/* A query's keys among those of a block. */
__device__ __forceinline__ void fl_visible(const fl_tile &w, uint32_t query, uint32_t block, uint32_t *begin,
                                           uint32_t *end) {
    *begin = max(w.t.begin[query], block) - block;
    *end = min(w.t.end[query], block + FL_BLOCK_TOKENS) - min(w.t.end[query], block);
}

/* One step of the running softmax: see kernels.h. */
template <int KV>
__device__ __forceinline__ void fl_attend_softmax(const fl_tile &w, uint32_t block) {
    uint32_t lane = threadIdx.x % FL_LANES, teams = blockDim.x / FL_LANES, begin, end;
    for (uint32_t i = 0; i < w.queries.n; i += teams) { /* all of a warp go through */
        uint32_t query = min(i + threadIdx.x / FL_LANES, w.queries.n - 1);
        bool mine = i + threadIdx.x / FL_LANES < w.queries.n;
        float *scores = w.t.scores + query * FL_BLOCK_TOKENS, lanes[FL_BLOCK_TOKENS / FL_LANES];
        fl_visible(w, query, block, &begin, &end);
        float before = mine ? w.t.maximum[query] : 0, top = before, sum = 0;
        for (uint32_t v = 0; v < FL_BLOCK_TOKENS / FL_LANES; v++) {
            uint32_t j = v * FL_LANES + lane;
            lanes[v] = mine && j >= begin && j < end ? __fmul_rn(scores[j], w.a->scale) : -FLT_MAX;
            top = fl_most(top, lanes[v]);
        }
        top = fl_lanes_most(top);
        for (uint32_t v = 0; v < FL_BLOCK_TOKENS / FL_LANES; v++) {
            lanes[v] = fl_exp(__fsub_rn(lanes[v], top));
            sum = __fadd_rn(sum, lanes[v]);
        }
        sum = fl_lanes_sum(sum);
        float factor = fl_exp(__fsub_rn(before, top));
        bool empty = begin >= end;
        __syncwarp();
        for (uint32_t v = 0; v < FL_BLOCK_TOKENS / FL_LANES && mine && !empty; v++) {
            uint32_t j = v * FL_LANES + lane;
            bool weighed = fl_kv_scaled(KV) && j >= begin && j < end;
            scores[j] = weighed ? __fmul_rn(lanes[v], w.t.v_scales[j]) : lanes[v];
        }
        if (lane == 0 && mine) {
            w.t.factor[query] = empty ? 1.0f : factor;
            w.t.sum[query] = empty ? w.t.sum[query] : __fmaf_rn(w.t.sum[query], factor, sum);
            w.t.maximum[query] = empty ? before : top;
        }
    }
}

/* outs = outs * factor + weights V: this thread's column, all queries. */
template <int QUERIES>
__device__ __forceinline__ void fl_attend_gather(const fl_tile &w, uint32_t block, float outs[QUERIES]) {
    uint32_t lowest = FL_BLOCK_TOKENS, highest = 0, shared_begin = 0, shared_end = FL_BLOCK_TOKENS, begin, end;
    for (uint32_t q = 0; q < w.queries.n; q++) {
        fl_visible(w, q, block, &begin, &end);
        lowest = min(lowest, begin);
        highest = max(highest, end);
        shared_begin = max(shared_begin, begin);
        shared_end = min(shared_end, end);
    }
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        outs[q] = (uint32_t)q < w.queries.n ? __fmul_rn(outs[q], w.t.factor[q]) : 0;
    }
    for (uint32_t j = lowest; j < highest; j++) {
        float v = w.t.kv[j * w.stride + threadIdx.x];
        bool all = j >= shared_begin && j < shared_end;
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            bool sees = (uint32_t)q < w.queries.n;
            if (sees && !all) {
                fl_visible(w, q, block, &begin, &end);
                sees = j >= begin && j < end;
            }
            outs[q] = sees ? __fmaf_rn(w.t.scores[q * FL_BLOCK_TOKENS + j], v, outs[q]) : outs[q];
        }
    }
}

/* ---- Splits -- */

/* One number of what the softmax of earlier keys gave, with that of later ones: see merge in kernels.h. */
__device__ __forceinline__ void fl_merge(float part, float maximum, float sum, float *total, float *total_maximum,
                                         float *total_sum) {
    float top = fl_most(*total_maximum, maximum);
    float keep = fl_exp(__fsub_rn(*total_maximum, top)), take = fl_exp(__fsub_rn(maximum, top));
    *total = __fmaf_rn(part, take, __fmul_rn(*total, keep));
    *total_sum = __fmaf_rn(sum, take, __fmul_rn(*total_sum, keep));
    *total_maximum = top;
}

/* The queries' keys of one split; afterwards outs, w.t.maximum and w.t.sum have what they give. */
template <int KV, int QUERIES>
__device__ __forceinline__ void fl_attend_split(const fl_tile &w, uint32_t begin, uint32_t end, float outs[QUERIES]) {
    const fl_device_kv &kv = w.a->heads.kv;
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        outs[q] = 0;
    }
    for (uint32_t i = threadIdx.x; i < w.queries.n; i += blockDim.x) {
        w.t.maximum[i] = -FLT_MAX;
        w.t.sum[i] = 0;
    }
    for (uint32_t block = begin - begin % FL_BLOCK_TOKENS; block < end; block += FL_BLOCK_TOKENS) {
        uint32_t n = min(end - block, (uint32_t)FL_BLOCK_TOKENS);
        if (fl_kv_scaled(KV)) {
            for (uint32_t j = threadIdx.x; j < n; j += blockDim.x) {
                w.t.v_scales[j] = *fl_kv_scale(kv, fl_block_of(w, kv.v, block + j), (block + j) % kv.page_tokens);
            }
            fl_scores_integers<KV>(w, block, n);
        } else {
            fl_attend_load<KV>(w, kv.k, block, n);
            __syncthreads();
            fl_scores_floats<QUERIES>(w);
        }
        __syncthreads();
        fl_attend_softmax<KV>(w, block);
        fl_attend_load<KV>(w, kv.v, block, n);
        __syncthreads();
        if (threadIdx.x < kv.head_dim) {
            fl_attend_gather<QUERIES>(w, block, outs);
        }
        __syncthreads();
    }
}

/* Where what a split gave for a row and head lies among the parts. */
__device__ __forceinline__ size_t fl_part_of(const fl_device_attend &a, uint32_t row, uint32_t head, uint32_t split) {
    return ((size_t)row * a.heads.n_heads + head) * a.n_splits + split;
}

/* Of the n heads of a row from `head` on, what splits [first, behind) gave, in order; a column a thread, and heads that
 * are not there take the last one's place. */
template <int QUERIES>
__device__ __forceinline__ void fl_merge_parts(const fl_device_attend &a, uint32_t row, uint32_t head, uint32_t n,
                                               uint32_t first, uint32_t behind, float totals[QUERIES],
                                               float maxima[QUERIES], float sums[QUERIES]) {
    uint32_t d = a.heads.kv.head_dim, column = min(threadIdx.x, d - 1);
#pragma unroll
    for (uint32_t q = 0; q < QUERIES; q++) {
        size_t part = fl_part_of(a, row, head + min(q, n - 1), first);
        totals[q] = a.parts[part * d + column];
        maxima[q] = a.limits[2 * part];
        sums[q] = a.limits[2 * part + 1];
    }
    /* Several reads are under way at a time. */
#pragma unroll (QUERIES <= 4 ? 8 / QUERIES : 1)
    for (uint32_t split = first + 1; split < behind; split++) {
#pragma unroll
        for (uint32_t q = 0; q < QUERIES; q++) {
            size_t part = fl_part_of(a, row, head + min(q, n - 1), split);
            fl_merge(a.parts[part * d + column], a.limits[2 * part], a.limits[2 * part + 1], &totals[q], &maxima[q],
                     &sums[q]);
        }
    }
}

/* One head of a row, which is over. */
__device__ __forceinline__ void fl_merge_head(const fl_device_attend &a, uint32_t row, uint32_t head, uint32_t first,
                                              uint32_t behind) {
    float total, maximum, sum;
    fl_merge_parts<1>(a, row, head, 1, first, behind, &total, &maximum, &sum);
    if (threadIdx.x < a.heads.kv.head_dim) {
        float *out = a.out + row * a.out_stride + (size_t)head * a.heads.kv.head_dim;
        out[threadIdx.x] = __fmul_rn(total, __fdiv_rn(1.0f, sum));
    }
}

/* Which splits have keys of a tile, and whether what one gives goes to the parts. */
struct fl_splits {
    uint32_t begin, end, lowest, highest; /* keys; splits */
    bool apart;
};

__device__ __forceinline__ fl_splits fl_splits_of(const fl_tile &w) {
    const fl_device_attend &a = *w.a;
    uint32_t ignored;
    fl_splits s;
    fl_keys_of(a.window, fl_position_of(w, 0), &s.begin, &ignored);
    fl_keys_of(a.window, fl_position_of(w, w.queries.n - 1), &ignored, &s.end);
    s.lowest = s.begin / a.split_tokens;
    s.highest = (s.end - 1) / a.split_tokens;
    s.apart = a.n_splits > 1 && !(a.decodes && s.lowest == s.highest);
    return s;
}

/* Is this block the last of n that add to *done? Then it sees what the others wrote before. */
__device__ __forceinline__ bool fl_is_last(uint32_t *done, uint32_t n, uint32_t *is_last) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        *is_last = atomicInc(done, n - 1) == n - 1; /* and *done is 0 again */
        __threadfence();
    }
    __syncthreads();
    return *is_last != 0;
}

template <int KV, int QUERIES>
__global__ void __launch_bounds__(FL_DEVICE_HEAD_DIM, QUERIES <= 4 ? 2 : 1)
fl_attend_kernel(const __grid_constant__ fl_device_attend a) {
    FL_DYNAMIC_SHARED(shared);
    fl_follow();
    if (blockIdx.x >= a.heads.counts->n_tiles) {
        return;
    }
    uint32_t d = a.heads.kv.head_dim;
    fl_tile w = {&a, a.tiles[blockIdx.x], a.kv_head + blockIdx.y, a.heads.n_heads / a.heads.kv.n_kv_heads,
                 fl_padded(d), fl_attend_room(shared, QUERIES, d)};
    const fl_splits s = fl_splits_of(w);
    uint32_t first = s.lowest, behind = s.highest + 1;
    if (a.n_splits > 1) {
        first = max(first, blockIdx.z);
        behind = min(behind, blockIdx.z + 1);
    }
    if (first >= behind) {
        return;
    }
    float outs[QUERIES], totals[QUERIES] = {}, maxima[QUERIES] = {}, sums[QUERIES] = {};
    fl_attend_queries(w, a.decodes && behind == s.highest + 1);
    for (uint32_t split = first; split < behind; split++) {
        uint32_t from = max(s.begin, split * a.split_tokens), to = min(s.end, (split + 1) * a.split_tokens);
        fl_attend_split<KV, QUERIES>(w, from, to, outs);
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            bool there = (uint32_t)q < w.queries.n && w.t.begin[q] < to && w.t.end[q] > split * a.split_tokens;
            if (!there) {
                continue; /* it has no keys here */
            }
            float maximum = w.t.maximum[q], sum = w.t.sum[q];
            if (s.apart) {
                size_t part = fl_part_of(a, fl_row_of(w, q), fl_head_of(w, q), split);
                if (threadIdx.x < d) {
                    a.parts[part * d + threadIdx.x] = outs[q];
                }
                if (threadIdx.x == 0) {
                    a.limits[2 * part] = maximum;
                    a.limits[2 * part + 1] = sum;
                }
            } else if (w.t.begin[q] / a.split_tokens == split) {
                totals[q] = outs[q];
                maxima[q] = maximum;
                sums[q] = sum;
            } else {
                fl_merge(outs[q], maximum, sum, &totals[q], &maxima[q], &sums[q]);
            }
        }
        __syncthreads();
    }
    if (s.apart) {
        uint32_t row = w.queries.first_row, *done = a.done + row * a.heads.kv.n_kv_heads + w.kv_head;
        if (!a.decodes || !fl_is_last(done, s.highest + 1 - s.lowest, w.t.is_last)) {
            return;
        }
        fl_merge_parts<QUERIES>(a, row, fl_head_of(w, 0), w.queries.n, s.lowest, s.highest + 1, totals, maxima, sums);
    }
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        if ((uint32_t)q < w.queries.n && threadIdx.x < d) {
            float *out = a.out + fl_row_of(w, q) * a.out_stride + (size_t)fl_head_of(w, q) * d;
            out[threadIdx.x] = __fmul_rn(totals[q], __fdiv_rn(1.0f, sums[q]));
        }
    }
}

/* The parts of a row and head. */
__global__ void __launch_bounds__(FL_DEVICE_HEAD_DIM) fl_merge_kernel(fl_device_attend a) {
    fl_follow();
    uint32_t row = blockIdx.x, group = a.heads.n_heads / a.heads.kv.n_kv_heads, begin, end;
    if (row >= a.heads.counts->n_rows) {
        return;
    }
    fl_keys_of(a.window, a.heads.positions[row], &begin, &end);
    fl_merge_head(a, row, a.kv_head * group + blockIdx.y, begin / a.split_tokens, (end - 1) / a.split_tokens + 1);
}

/* ---- Launches -- */

unsigned fl_attend_threads(uint32_t d) {
    return d <= 128 ? 128 : (d + FL_WARP - 1) / FL_WARP * FL_WARP;
}

size_t fl_attend_bytes(uint32_t queries, uint32_t head_dim) {
    return fl_attend_floats(queries, head_dim) * sizeof(float);
}

template <int KV, int QUERIES>
int fl_attend_launch(fl_device *d, const fl_device_attend *a) {
    uint32_t dim = a->heads.kv.head_dim;
    dim3 grid(a->most_tiles, a->n_kv_heads, a->n_splits);
    return fl_launch(d, fl_attend_kernel<KV, QUERIES>, grid, fl_attend_threads(dim),
                     fl_attend_bytes(QUERIES, dim), *a);
}

template <int KV>
int fl_attend_of(fl_device *d, const fl_device_attend *a) {
    return a->queries == 1   ? fl_attend_launch<KV, 1>(d, a)
           : a->queries == 2 ? fl_attend_launch<KV, 2>(d, a)
           : a->queries <= 4 ? fl_attend_launch<KV, 4>(d, a)
           : a->queries <= 8 ? fl_attend_launch<KV, 8>(d, a)
                             : fl_attend_launch<KV, FL_DEVICE_QUERIES>(d, a);
}

int fl_merge_launch(fl_device *d, const fl_device_attend *a) {
    dim3 grid(a->heads.most, a->heads.n_heads / a->heads.kv.n_kv_heads * a->n_kv_heads, 1);
    return fl_launch(d, fl_merge_kernel, grid, fl_attend_threads(a->heads.kv.head_dim), 0, *a);
}

int fl_attend(fl_device *d, const fl_device_attend *a) {
    int error = a->heads.kv.type == FL_DEVICE_KV_F16    ? fl_attend_of<FL_DEVICE_KV_F16>(d, a)
                : a->heads.kv.type == FL_DEVICE_KV_F32  ? fl_attend_of<FL_DEVICE_KV_F32>(d, a)
                : a->heads.kv.type == FL_DEVICE_KV_BF16 ? fl_attend_of<FL_DEVICE_KV_BF16>(d, a)
                : a->heads.kv.type == FL_DEVICE_KV_Q8   ? fl_attend_of<FL_DEVICE_KV_Q8>(d, a)
                                                  : fl_attend_of<FL_DEVICE_KV_Q4>(d, a);
    return error == 0 && a->n_splits > 1 && !a->decodes ? fl_merge_launch(d, a) : error;
}

} /* namespace */

#endif
