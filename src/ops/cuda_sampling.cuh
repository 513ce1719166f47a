/* Choosing a token where its logits lie: sampler.c, a block of threads for each row. All that is added up are integers,
 * so that no order matters, and what is chosen is what the CPU chooses. Nothing is written but the choice: what earlier
 * stages left is asked anew of every logit. */
#ifndef FL_CUDA_SAMPLING_CUH
#define FL_CUDA_SAMPLING_CUH

#include "ops/cuda_base.cuh"

#ifndef FL_CHOOSE_THREADS
#define FL_CHOOSE_THREADS 1024
#endif
#define FL_CHOOSE_WARPS (FL_CHOOSE_THREADS / FL_WARP)
#define FL_BINS 2048u
#define FL_WEIGHT_ONE 1073741824.0f /* 2^30 */
#define FL_BANNED (-FLT_MAX)
#define FL_LOWEST (-3.40282326e+38f) /* the number after it */
#define FL_CUTS 3                    /* min_p, top_k, top_p */

namespace {

typedef unsigned long long fl_u64;

/* What a stage left: all above a logit, and of those that equal it the ids up to `last`. */
struct fl_cut {
    float logit;
    uint32_t last;
    bool tempered; /* or is it one of the model's logits? */
};

/* The same for all threads of a block. */
struct fl_candidates {
    const float *logits;
    const uint32_t *banned; /* a bit for each id; NULL: none */
    uint32_t n;
    bool tempered;
    float shift, temperature;
    fl_cut cuts[FL_CUTS];
    uint32_t n_cuts;
};

struct fl_choosing { /* shared memory */
    fl_u64 bins[FL_BINS];
    fl_u64 sums[FL_CHOOSE_WARPS];
    float most[FL_CHOOSE_WARPS];
    fl_u64 left;
    uint32_t found, broken;
};

__device__ __forceinline__ float fl_tempered(float x, float shift, float temperature) {
    float y = __fdiv_rn(__fsub_rn(x, shift), temperature);
    return x < FL_LOWEST ? FL_BANNED : fl_most(fl_least(y, FLT_MAX), -FLT_MAX);
}

/* The logit of an id as the stages so far leave it; FL_BANNED: it is no candidate. */
__device__ __forceinline__ float fl_candidate(const fl_candidates &c, uint32_t id) {
    bool banned = c.banned != NULL && (c.banned[id / 32] >> id % 32 & 1) != 0;
    float x = banned ? FL_BANNED : c.logits[id], y = c.tempered ? fl_tempered(x, c.shift, c.temperature) : x;
    bool stays = true;
#pragma unroll
    for (uint32_t i = 0; i < FL_CUTS; i++) {
        if (i < c.n_cuts) {
            float logit = c.cuts[i].tempered ? y : x;
            stays = stays && logit >= fl_most(c.cuts[i].logit, FL_LOWEST) &&
                    (logit != c.cuts[i].logit || id <= c.cuts[i].last);
        }
    }
    return stays ? y : FL_BANNED;
}

/* Written out, so that all of it stays in registers. */
__device__ __forceinline__ void fl_add_cut(fl_candidates &c, fl_cut cut) {
#pragma unroll
    for (uint32_t i = 0; i < FL_CUTS; i++) {
        if (i == c.n_cuts) {
            c.cuts[i] = cut;
        }
    }
    c.n_cuts++;
}

__device__ __forceinline__ uint32_t fl_weight(float logit, float highest) {
    return (uint32_t)rintf(__fmul_rn(fl_exp(__fsub_rn(logit, highest)), FL_WEIGHT_ONE));
}

/* A larger float has a larger key; both zeros have one. */
__device__ __forceinline__ uint32_t fl_key_of_float(float x) {
    uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float fl_float_of_key(uint32_t key) {
    return __uint_as_float(key >> 31 != 0 ? key & 0x7FFFFFFFu : ~key);
}

/* ---- A block together -- */

__device__ __forceinline__ float fl_block_most(fl_choosing &s, float v) {
    uint32_t lane = threadIdx.x % FL_WARP;
    v = fl_warp_most(v);
    __syncthreads();
    if (lane == 0) {
        s.most[threadIdx.x / FL_WARP] = v;
    }
    __syncthreads();
    return fl_warp_most(s.most[lane % FL_CHOOSE_WARPS]);
}

__device__ __forceinline__ fl_u64 fl_warp_sum(fl_u64 v) {
    for (int half = FL_WARP / 2; half > 0; half /= 2) {
        v += __shfl_xor_sync(FL_EVERY, v, half);
    }
    return v;
}

/* The sum of the lanes up to this one. */
__device__ __forceinline__ fl_u64 fl_warp_up_to(fl_u64 v) {
    for (uint32_t delta = 1; delta < FL_WARP; delta *= 2) {
        fl_u64 before = __shfl_up_sync(FL_EVERY, v, delta);
        v += threadIdx.x % FL_WARP >= delta ? before : 0;
    }
    return v;
}

/* Sums of the warps, to s.sums, and that of all. */
__device__ __forceinline__ fl_u64 fl_block_sum(fl_choosing &s, fl_u64 v) {
    uint32_t lane = threadIdx.x % FL_WARP;
    v = fl_warp_sum(v);
    __syncthreads();
    if (lane == 0) {
        s.sums[threadIdx.x / FL_WARP] = v;
    }
    __syncthreads();
    return fl_warp_sum(lane < FL_CHOOSE_WARPS ? s.sums[lane] : 0);
}

__device__ __forceinline__ float fl_highest(fl_choosing &s, const fl_candidates &c) {
    float most = FL_BANNED;
    for (uint32_t id = threadIdx.x; id < c.n; id += FL_CHOOSE_THREADS) {
        most = fl_most(fl_candidate(c, id), most);
    }
    return fl_block_most(s, most);
}

__device__ __forceinline__ fl_u64 fl_total(fl_choosing &s, const fl_candidates &c, float highest) {
    fl_u64 total = 0;
    for (uint32_t id = threadIdx.x; id < c.n; id += FL_CHOOSE_THREADS) {
        total += fl_weight(fl_candidate(c, id), highest);
    }
    return fl_block_sum(s, total);
}

__device__ __forceinline__ uint32_t fl_count(fl_choosing &s, const fl_candidates &c) {
    fl_u64 n = 0;
    for (uint32_t id = threadIdx.x; id < c.n; id += FL_CHOOSE_THREADS) {
        n += fl_candidate(c, id) >= FL_LOWEST;
    }
    return (uint32_t)fl_block_sum(s, n);
}

/* The measure of an id, of which a running sum in order of id is taken: its weight, or is it `equal`? */
struct fl_measure {
    bool weighs;
    float highest, equal;
};

__device__ __forceinline__ fl_u64 fl_measured(const fl_candidates &c, const fl_measure &m, uint32_t id) {
    float logit = id < c.n ? fl_candidate(c, id) : FL_BANNED;
    return m.weighs ? fl_weight(logit, m.highest) : logit == m.equal && logit >= FL_LOWEST;
}

/* The first id whose running sum passes `left`. Each warp has a stretch of ids. */
__device__ __forceinline__ uint32_t fl_first_past(fl_choosing &s, const fl_candidates &c, const fl_measure &m,
                                                  fl_u64 left) {
    uint32_t lane = threadIdx.x % FL_WARP, warp = threadIdx.x / FL_WARP;
    uint32_t n_steps = (c.n + FL_CHOOSE_THREADS - 1) / FL_CHOOSE_THREADS, first = warp * n_steps * FL_WARP + lane;
    fl_u64 sum = 0;
    for (uint32_t step = 0; step < n_steps; step++) {
        sum += fl_measured(c, m, first + step * FL_WARP);
    }
    fl_block_sum(s, sum);
    for (uint32_t i = 0; i < warp; i++) {
        left = left >= s.sums[i] ? left - s.sums[i] : ~(fl_u64)0; /* found by a warp before */
    }
    bool here = left < s.sums[warp];
    for (uint32_t step = 0; here && step < n_steps; step++) {
        fl_u64 up_to = fl_warp_up_to(fl_measured(c, m, first + step * FL_WARP));
        uint32_t past = __ballot_sync(FL_EVERY, up_to > left);
        if (past != 0) {
            if ((past & ((1u << lane) - 1)) == 0 && up_to > left) {
                s.found = first + step * FL_WARP;
            }
            here = false;
        }
        left -= __shfl_sync(FL_EVERY, up_to, FL_WARP - 1);
    }
    __syncthreads();
    return s.found;
}

/* ---- Thresholds -- */

/* The highest bin at which the sum of all from there up reaches `wanted`, and in *wanted what is left of it. */
__device__ __forceinline__ uint32_t fl_find_bin(fl_choosing &s, uint32_t n_bins, fl_u64 *wanted) {
    uint32_t lane = threadIdx.x, each = n_bins / FL_WARP;
    if (lane < FL_WARP) { /* lane 0 has the highest bins */
        uint32_t top = n_bins - 1 - lane * each;
        fl_u64 sum = 0, left = *wanted;
        for (uint32_t i = 0; i < each; i++) {
            sum += s.bins[top - i];
        }
        fl_u64 up_to = fl_warp_up_to(sum);
        if (up_to >= left && up_to - sum < left) {
            left -= up_to - sum;
            while (s.bins[top] < left) {
                left -= s.bins[top--];
            }
            s.found = top;
            s.left = left;
        }
    }
    __syncthreads();
    *wanted = s.left;
    uint32_t found = s.found;
    __syncthreads();
    return found;
}

/* Where the weights of the best add up to `wanted` (not 0, nor more than all have); weighs false: their number. */
__device__ __forceinline__ fl_cut fl_find_cut(fl_choosing &s, const fl_candidates &c, bool weighs, float highest,
                                              fl_u64 wanted, bool ties) {
    uint32_t found = 0;
    for (int pass = 0; pass < 3; pass++) {
        uint32_t shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, n_bins = pass < 2 ? FL_BINS : FL_BINS / 2;
        for (uint32_t i = threadIdx.x; i < n_bins; i += FL_CHOOSE_THREADS) {
            s.bins[i] = 0;
        }
        __syncthreads();
        for (uint32_t id = threadIdx.x; id < c.n; id += FL_CHOOSE_THREADS) {
            float logit = fl_candidate(c, id);
            uint32_t key = fl_key_of_float(logit);
            if (logit >= FL_LOWEST && (pass == 0 || key >> (pass == 1 ? 21 : 10) == found)) {
                atomicAdd(&s.bins[key >> shift & (n_bins - 1)], weighs ? (fl_u64)fl_weight(logit, highest) : 1);
            }
        }
        __syncthreads();
        found = found * n_bins + fl_find_bin(s, n_bins, &wanted);
    }
    fl_cut cut = {fl_float_of_key(found), UINT32_MAX, c.tempered};
    if (!ties) {
        fl_u64 weight = weighs ? fl_weight(cut.logit, highest) : 1;
        fl_measure equal = {false, 0, cut.logit};
        cut.last = fl_first_past(s, c, equal, (wanted + weight - 1) / weight - 1);
        __syncthreads();
    }
    return cut;
}

__device__ __forceinline__ fl_cut fl_min_p_cut(float highest, double log_min_p, bool tempered) {
    double limit = (double)highest + log_min_p;
    fl_cut cut = {limit > (double)FL_LOWEST ? (float)limit : FL_LOWEST, UINT32_MAX, tempered};
    if ((double)cut.logit < limit) { /* the smallest float that is not below it */
        cut.logit = fl_float_of_key(fl_key_of_float(cut.logit) + 1);
    }
    return cut;
}

/* ---- Choosing -- */

/* highest: of the candidates; every stage keeps it. */
__device__ __forceinline__ void fl_run_stages(fl_choosing &s, fl_candidates &c, const fl_device_choice &o,
                                              float highest) {
    for (uint32_t i = 0; i < o.n_stages; i++) {
        if (o.stages[i] == FL_DEVICE_TEMPERATURE) {
            c.shift = fl_finite(__fdiv_rn(highest, o.temperature)) ? 0 : highest;
            c.temperature = o.temperature;
            c.tempered = true;
            highest = fl_tempered(highest, c.shift, c.temperature);
        } else if (o.stages[i] == FL_DEVICE_MIN_P) {
            fl_add_cut(c, fl_min_p_cut(highest, o.log_min_p, c.tempered));
        } else if (o.stages[i] == FL_DEVICE_TOP_K) {
            if (o.top_k < fl_count(s, c)) {
                fl_add_cut(c, fl_find_cut(s, c, false, highest, o.top_k, o.ties != 0));
            }
        } else {
            double wanted = (double)fl_total(s, c, highest) * (double)o.top_p;
            fl_u64 whole = (fl_u64)wanted;
            whole += (double)whole < wanted || whole == 0;
            fl_add_cut(c, fl_find_cut(s, c, true, highest, whole, false));
        }
    }
}

/* Nothing, if all are banned. */
__device__ __forceinline__ void fl_choose_among(fl_choosing &s, fl_candidates &c, const fl_device_choice &o,
                                                fl_device_chosen &chosen) {
    float highest = fl_highest(s, c);
    if (highest < FL_LOWEST) {
        return;
    }
    fl_run_stages(s, c, o, highest);
    chosen.highest = fl_highest(s, c);
    chosen.total = fl_total(s, c, chosen.highest);
    fl_measure by = {o.draws != 0, chosen.highest, chosen.highest};
    fl_u64 left = (fl_u64)(o.uniform * (double)chosen.total);
    left = left < chosen.total ? left : chosen.total - 1;
    uint32_t id = fl_first_past(s, c, by, o.draws != 0 ? left : 0);
    chosen.token = (int32_t)id;
    chosen.logit = fl_candidate(c, id);
    chosen.raw = c.logits[id];
}

__global__ void __launch_bounds__(FL_CHOOSE_THREADS) fl_choose_kernel(fl_device_choose a) {
    __shared__ fl_choosing s;
    fl_follow();
    uint32_t row = blockIdx.x;
    if (row >= a.counts->n_wanted || a.choices[row].asked == 0) {
        return;
    }
    const fl_device_choice &o = a.choices[row];
    const float *logits = a.logits + (size_t)row * a.vocab;
    fl_candidates c = {logits, NULL, a.vocab, false, 0, 1, {}, 0};
    float most = FL_BANNED;
    if (threadIdx.x == 0) {
        s.broken = 0;
    }
    __syncthreads();
    for (uint32_t id = threadIdx.x; id < a.vocab; id += FL_CHOOSE_THREADS) {
        most = fl_most(logits[id], most);
        if (!fl_finite(logits[id])) {
            atomicExch(&s.broken, 1u);
        }
    }
    fl_device_chosen chosen = {};
    chosen.raw_highest = fl_block_most(s, most);
    chosen.token = -1;
    chosen.broken = s.broken;
    if (chosen.broken == 0) {
        chosen.raw_total = fl_total(s, c, chosen.raw_highest);
        c.banned = a.banned;
        fl_choose_among(s, c, o, chosen);
    }
    if (threadIdx.x == 0) {
        a.chosen[row] = chosen;
    }
}

int fl_choose(fl_device *d, const fl_device_choose *a) {
    return fl_launch(d, fl_choose_kernel, dim3(a->most, 1, 1), FL_CHOOSE_THREADS, 0, *a);
}

} /* namespace */

#endif
