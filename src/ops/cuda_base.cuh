/* What all kernels stand on: arithmetic that rounds where the CPU's does, sums of sixteen lanes, launches.
 *
 * Bits come first. Nothing here may be contracted, so additions and products are written as intrinsics; a sum runs in
 * sixteen lanes, each a chain of fused multiply-adds, and ends in the tree of fl_lanes_sum; exp is that of kernels.inc.
 * Threads are then free to take any lanes of any outputs. */
#ifndef FL_CUDA_BASE_CUH
#define FL_CUDA_BASE_CUH

#include "ops/device.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <float.h>

#ifndef FL_DYNAMIC_SHARED /* a host that runs kernels has its own */
#define FL_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#define FL_WARP 32
#define FL_EVERY 0xFFFFFFFFu /* lane of a warp */
#define FL_LANES 16
#define FL_UNIT 32
#define FL_BLOCK_TOKENS 64

struct fl_device {
    int ordinal, n_multiprocessors;
    cudaStream_t stream;
    bool owns_stream;
    bool follows; /* kernels come before those in front of them are over: see fl_follow */
    cudaGraphExec_t steps[FL_DEVICE_STEPS];
    cudaEvent_t marks[FL_DEVICE_MARKS];
};

namespace { /* two copies of this file may be linked into one program */

/* Makes the device current while it lives, and the one that was current before again afterwards. */
struct fl_current {
    int before;
    bool changed;
    explicit fl_current(const fl_device *d) : before(0), changed(false) {
        changed = cudaGetDevice(&before) == cudaSuccess && before != d->ordinal;
        if (changed) {
            cudaSetDevice(d->ordinal);
        }
    }
    ~fl_current() {
        if (changed) {
            cudaSetDevice(before);
        }
    }
};

/* The runtime keeps the last error of a thread; a host that asks for it shall find its own. */
inline int fl_said(cudaError_t error) {
    if (error != cudaSuccess) {
        cudaGetLastError();
    }
    return error;
}

template <class... P>
int fl_launch(fl_device *d, void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared, P... arguments) {
    fl_current current(d);
    if (shared > 16u << 10) { /* more than 48 KiB must be asked for, with what a kernel has besides */
        cudaError_t error = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 (int)shared);
        if (error != cudaSuccess) {
            return fl_said(error);
        }
    }
    cudaLaunchConfig_t how = {};
    how.gridDim = grid;
    how.blockDim = dim3(threads, 1, 1);
    how.dynamicSmemBytes = shared;
    how.stream = d->stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    how.attrs = &early;
    how.numAttrs = d->follows ? 1 : 0;
    return fl_said(cudaLaunchKernelEx(&how, kernel, arguments...));
}

inline unsigned fl_blocks(size_t n, size_t of) {
    return (unsigned)((n + of - 1) / of);
}

/* The stride of rows of n floats: as ops.h has it. */
__host__ __device__ __forceinline__ uint32_t fl_padded(uint32_t n) {
    return ((n + FL_LANES - 1) / FL_LANES | 1) * FL_LANES;
}

/* ---- Arithmetic -- */

__device__ __forceinline__ bool fl_finite(float x) {
    return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
}

__device__ __forceinline__ float fl_most(float a, float b) { /* b if either is a NaN */
    return a > b ? a : b;
}

__device__ __forceinline__ float fl_least(float a, float b) {
    return a < b ? a : b;
}

__device__ __forceinline__ float fl_bf16(uint32_t bits) {
    return __uint_as_float(bits << 16);
}

__device__ __forceinline__ float fl_f16(uint32_t bits) {
    return __half2float(__ushort_as_half((unsigned short)bits));
}

__device__ __forceinline__ unsigned short fl_to_bf16(float f) {
    uint32_t u = __float_as_uint(f);
    return (unsigned short)((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16 | 0x40u) : (u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

template <bool BF16>
__device__ __forceinline__ unsigned short fl_to_half(float x) { /* bf16 or f16 */
    return BF16 ? fl_to_bf16(x) : __half_as_ushort(__float2half_rn(x));
}

/* x as the sum of two of them: the nearest, and of what is left the nearest. */
template <bool BF16>
__device__ __forceinline__ void fl_split(float x, unsigned short pieces[2]) {
    pieces[0] = fl_to_half<BF16>(x);
    pieces[1] = fl_to_half<BF16>(__fsub_rn(x, BF16 ? fl_bf16(pieces[0]) : fl_f16(pieces[0])));
}

__device__ __forceinline__ float fl_exp(float x) {
    x = fl_least(88.0f, x);
    float n = rintf(__fmul_rn(fl_most(x, -87.0f), 1.44269504f));
    float r = __fmaf_rn(n, -0.693359375f, x);
    r = __fmaf_rn(n, 2.12194440e-4f, r);
    float y = 1.0f / 5040;
    y = __fmaf_rn(y, r, 1.0f / 720);
    y = __fmaf_rn(y, r, 1.0f / 120);
    y = __fmaf_rn(y, r, 1.0f / 24);
    y = __fmaf_rn(y, r, 1.0f / 6);
    y = __fmaf_rn(y, r, 0.5f);
    y = __fmaf_rn(y, r, 1.0f);
    y = __fmaf_rn(y, r, 1.0f);
    y = __fmul_rn(y, __uint_as_float((uint32_t)(__float2int_rn(n) + 127) << 23));
    return x < -87.0f ? 0.0f : y;
}

__device__ __forceinline__ float fl_silu_mul(float g, float u) {
    return __fmul_rn(__fdiv_rn(g, __fadd_rn(1.0f, fl_exp(__fsub_rn(0.0f, g)))), u);
}

/* ---- Sixteen lanes: half a warp; all threads of the warp must come -- */

__device__ __forceinline__ float fl_lanes_sum(float v) {
    for (int half = 8; half > 0; half /= 2) {
        v = __fadd_rn(v, __shfl_xor_sync(FL_EVERY, v, half, FL_LANES));
    }
    return v;
}

__device__ __forceinline__ float fl_lanes_most(float v) {
    for (int half = 8; half > 0; half /= 2) {
        v = fl_most(v, __shfl_xor_sync(FL_EVERY, v, half, FL_LANES));
    }
    return v;
}

__device__ __forceinline__ int fl_lanes_isum(int v) {
    for (int half = 8; half > 0; half /= 2) {
        v += __shfl_xor_sync(FL_EVERY, v, half, FL_LANES);
    }
    return v;
}

__device__ __forceinline__ float fl_warp_most(float v) {
    v = fl_lanes_most(v);
    return fl_most(v, __shfl_xor_sync(FL_EVERY, v, FL_LANES));
}

/* 1 / sqrt(mean of squares + epsilon) of x (n), in shared memory. */
__device__ __forceinline__ float fl_norm_scale(const float *x, uint32_t n, float epsilon) {
    uint32_t lane = threadIdx.x % FL_LANES;
    float sum = 0;
#pragma unroll 8
    for (uint32_t i = lane; i < n; i += FL_LANES) {
        sum = __fmaf_rn(x[i], x[i], sum);
    }
    sum = fl_lanes_sum(sum);
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)n), epsilon)));
}

#define FL_LINE 128 /* bytes */

/* Has a line of memory come nearer; nobody waits for it. */
__device__ __forceinline__ void fl_prefetch(const void *at) {
#if __CUDA_ARCH__ >= 750
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#else
    (void)at;
#endif
}

/* ---- Early kernels, tensor cores, and copies to shared memory that nobody waits for -- */

#ifndef FL_TENSOR_CORES /* a host that runs kernels has its own */

/* Every thread of every kernel calls this before it reads or writes anything but weights, which may be prefetched.
 * From compute capability 9.0 on (programmatic dependent launch), a kernel's blocks come as soon as all of the kernel
 * in front have begun, and wait here until that is over and what it wrote can be seen. As it waited, too, so is all
 * before it. */
__device__ __forceinline__ void fl_follow() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* sums (16, 8) = start + a (16, 4 * QUADS) b (4 * QUADS, 8), exact, a warp together; QUADS is 4 or 8. With g = lane / 4
 * and t = lane % 4, a lane holds quads t and, of 8, 4 + t: of a those of rows g and g + 8, of b those of column g; and
 * of the sums columns 2t and 2t + 1 of both rows. */
template <int QUADS>
__device__ __forceinline__ void fl_mma(int sums[4], const uint32_t a[QUADS / 2], const uint32_t b[QUADS / 4],
                                       int start) {
#if __CUDA_ARCH__ >= 800
    if (QUADS == 8) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%10, %10, %10, %10};"
                     : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[QUADS / 4]), "r"(a[QUADS / 4 + 1]), "r"(b[0]), "r"(b[QUADS / 8]),
                       "r"(start));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%7, %7, %7, %7};"
                     : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(start));
    }
#else
    sums[0] = sums[1] = sums[2] = sums[3] = start;
#pragma unroll
    for (int i = 0; i < QUADS / 2; i++) { /* eight rows and four quads at a time */
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(sums[i % 2 * 2]), "+r"(sums[i % 2 * 2 + 1])
                     : "r"(a[i]), "r"(b[i / 2]));
    }
#endif
}

/* sums (16, 8) += a (16, 16) b (16, 8) of bf16 or f16, a warp together; from compute capability 8.0 on. With
 * g = lane / 4 and t = lane % 4, a lane holds columns 2t and 2t + 1 of a, of row g and then of g + 8, and the same of
 * columns 2t + 8 and 2t + 9; of b these rows of column g; of the sums columns 2t and 2t + 1 of row g, then of g + 8. */
template <bool BF16>
__device__ __forceinline__ void fl_mma_halves(float sums[4], const uint32_t a[4], uint32_t b_low, uint32_t b_high) {
#if __CUDA_ARCH__ >= 800
    if (BF16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                     "{%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                     "{%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
    }
#endif
}

/* Four tiles of eight rows of four quads out of shared memory, a warp together: lane i says where row i % 8 of tile
 * i / 8 lies. Of each tile a lane takes quad lane % 4 of row lane / 4. */
__device__ __forceinline__ void fl_load_tiles(uint32_t quads[4], const uint32_t *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(quads[0]), "=r"(quads[1]), "=r"(quads[2]), "=r"(quads[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* The same of tiles of eight rows of eight halves, turned: of each tile a lane takes column lane / 4 of rows
 * 2 * (lane % 4) and the next. */
__device__ __forceinline__ void fl_load_turned(uint32_t pairs[4], const uint32_t *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* BYTES, 4 or 16, to shared memory; there after fl_copied, for this thread. */
template <int BYTES>
__device__ __forceinline__ void fl_copy(void *to, const void *from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
                 "n"(BYTES)
                 : "memory");
#else
    if (BYTES == 16) {
        *(uint4 *)to = *(const uint4 *)from;
    } else {
        *(uint32_t *)to = *(const uint32_t *)from;
    }
#endif
}

__device__ __forceinline__ void fl_copied() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* What was copied since the last end, perhaps nothing, is one group; */
__device__ __forceinline__ void fl_copies_end() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* there are all groups but the last GROUPS, for this thread. */
template <int GROUPS>
__device__ __forceinline__ void fl_copied_but() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

#endif

} /* namespace */

#endif
