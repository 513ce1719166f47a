/* The part of CUDA that folollm_kernels.cu uses, for a machine without a GPU and a compiler of plain C++17:
 *
 *     g++ -std=c++17 -ffp-contract=off -Itests/cuda -c -x c++ folollm_kernels.cu -x none tests/cuda/shim.cpp
 *
 * This file has the language (qualifiers, built-in variables, intrinsics) and the declarations of the runtime; shim.cpp
 * has the runtime and runs the kernels, every thread of a block as a fiber of one host thread; shim.h is for tests.
 *
 * A kernel is started by cudaLaunchKernelEx, as <<<>>> is not C++. Its memory:
 *     __shared__ float s[32];         static: one block runs at a time; what it held before stays in it
 *     FL_DYNAMIC_SHARED(name);        unsigned char *name: the bytes of the launch, no more, all 0xFF in each block
 * What is stricter here than on a GPU:
 *     - nothing in a stream runs before somebody waits for it, copies from and to host memory included;
 *     - __shfl_*_sync, votes and __syncwarp take masks of lanes that exist and have not returned, and all lanes of the
 *       mask must meet in the same line; so must all threads of a block in __syncthreads;
 *     - a source lane outside of the mask, which CUDA leaves undefined, is a fault.
 * Faults of a kernel are described on stderr, then the process aborts. */
#ifndef SHIM_CUDA_RUNTIME_H
#define SHIM_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>
#include <utility>

#include "shim.h"

#define CUDART_VERSION 12040
#define CUDARTAPI

/* ---- The language ---------------------------------------------------------------------------- */

#define __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define FL_DYNAMIC_SHARED(name) unsigned char *name = shim_dynamic_shared

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

#define SHIM_VECTORS(T, name)                                                                                          \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                                 \
    struct name##3 { T x, y, z; };                                                                                     \
    struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };                                                           \
    static inline name##2 make_##name##2(T x, T y) { return name##2{x, y}; }                                           \
    static inline name##3 make_##name##3(T x, T y, T z) { return name##3{x, y, z}; }                                   \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }

SHIM_VECTORS(int, int)
SHIM_VECTORS(unsigned, uint)
SHIM_VECTORS(float, float)
SHIM_VECTORS(short, short)
SHIM_VECTORS(unsigned short, ushort)
SHIM_VECTORS(signed char, char)
SHIM_VECTORS(unsigned char, uchar)
#undef SHIM_VECTORS

/* Of the thread that runs. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
extern unsigned char *shim_dynamic_shared;
static const int warpSize = 32;

/* ---- Barriers, shuffles, votes --------------------------------------------------------------- */

enum shim_warp_kind {
    SHIM_SYNCWARP,
    SHIM_VOTE,
    SHIM_SHFL,
    SHIM_SHFL_UP,
    SHIM_SHFL_DOWN,
    SHIM_SHFL_XOR
};

/* Returns when all threads of the block, or all lanes of the mask, have come; line says where in the source. */
void shim_barrier(int line);
uint64_t shim_warp(shim_warp_kind kind, unsigned mask, uint64_t value, unsigned operand, int width, int line);
unsigned shim_active_mask(void);
void shim_fence(void);

static inline void __syncthreads(int line = __builtin_LINE()) {
    shim_barrier(line);
}

static inline void __syncwarp(unsigned mask = 0xFFFFFFFF, int line = __builtin_LINE()) {
    shim_warp(SHIM_SYNCWARP, mask, 0, 0, warpSize, line);
}

static inline unsigned __activemask(void) {
    return shim_active_mask();
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return (unsigned)shim_warp(SHIM_VOTE, mask, predicate != 0, 0, warpSize, line);
}

static inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) != 0;
}

static inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) == mask;
}

template <typename T>
static inline T shim_shuffle(shim_warp_kind kind, unsigned mask, T value, unsigned operand, int width, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shim_warp(kind, mask, bits, operand, width, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define SHIM_SHUFFLES(T)                                                                                               \
    static inline T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, int line = __builtin_LINE()) { \
        return shim_shuffle(SHIM_SHFL, mask, value, (unsigned)lane, width, line);                                      \
    }                                                                                                                  \
    static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,                       \
                                   int line = __builtin_LINE()) {                                                      \
        return shim_shuffle(SHIM_SHFL_UP, mask, value, delta, width, line);                                            \
    }                                                                                                                  \
    static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,                     \
                                     int line = __builtin_LINE()) {                                                    \
        return shim_shuffle(SHIM_SHFL_DOWN, mask, value, delta, width, line);                                          \
    }                                                                                                                  \
    static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,                           \
                                    int line = __builtin_LINE()) {                                                     \
        return shim_shuffle(SHIM_SHFL_XOR, mask, value, (unsigned)lanes, width, line);                                 \
    }

SHIM_SHUFFLES(int)
SHIM_SHUFFLES(unsigned)
SHIM_SHUFFLES(long)
SHIM_SHUFFLES(unsigned long)
SHIM_SHUFFLES(long long)
SHIM_SHUFFLES(unsigned long long)
SHIM_SHUFFLES(float)
SHIM_SHUFFLES(double)
#undef SHIM_SHUFFLES

/* ---- Atomics: relaxed, as the hardware's are ------------------------------------------------- */

static inline void __threadfence(void) {
    shim_fence();
}

static inline void __threadfence_block(void) {
    shim_fence();
}

#define SHIM_ATOMICS(T)                                                                                                \
    static inline T atomicAdd(T *p, T v) {                                                                             \
        unsigned old = __atomic_fetch_add((unsigned *)p, (unsigned)v, __ATOMIC_RELAXED);                               \
        return (T)old;                                                                                                 \
    }                                                                                                                  \
    static inline T atomicExch(T *p, T v) {                                                                            \
        return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);                                                            \
    }                                                                                                                  \
    static inline T atomicCAS(T *p, T expected, T v) {                                                                 \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                       \
        return expected;                                                                                               \
    }                                                                                                                  \
    static inline T atomicMax(T *p, T v) {                                                                             \
        T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                  \
        while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {       \
        }                                                                                                              \
        return old;                                                                                                    \
    }                                                                                                                  \
    static inline T atomicMin(T *p, T v) {                                                                             \
        T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                  \
        while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {       \
        }                                                                                                              \
        return old;                                                                                                    \
    }

SHIM_ATOMICS(int)
SHIM_ATOMICS(unsigned)
#undef SHIM_ATOMICS

static inline unsigned atomicInc(unsigned *p, unsigned most) {
    unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, old >= most ? 0 : old + 1, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}

static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) {
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

static inline float atomicAdd(float *p, float v) {
    float old, sum;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        sum = old + v;
    } while (!__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

static inline float atomicExch(float *p, float v) {
    float old;
    __atomic_exchange(p, &v, &old, __ATOMIC_RELAXED);
    return old;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline void __stcg(T *p, T v) { *p = v; }
template <typename T> static inline void __stcs(T *p, T v) { *p = v; }

/* ---- Numbers --------------------------------------------------------------------------------- */

/* A value that the compiler cannot look through, so that it does not join its computation to the next. */
static inline float shim_rounded(float x) {
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
#else
    __asm__("" : "+w"(x));
#endif
    return x;
}

static inline float __fadd_rn(float a, float b) { return shim_rounded(a + b); }
static inline float __fsub_rn(float a, float b) { return shim_rounded(a - b); }
static inline float __fmul_rn(float a, float b) { return shim_rounded(a * b); }
static inline float __fdiv_rn(float a, float b) { return shim_rounded(a / b); }
static inline float __frcp_rn(float a) { return shim_rounded(1.0f / a); }
static inline float __fsqrt_rn(float a) { return shim_rounded(sqrtf(a)); }
static inline float __fmaf_rn(float a, float b, float c) { return shim_rounded(fmaf(a, b, c)); }

template <typename T, typename F> static inline T shim_bits(F from) {
    static_assert(sizeof(T) == sizeof(F), "");
    T to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return shim_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
static inline float __int_as_float(int x) { return shim_bits<float>(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }

/* Saturates; 0 for NaN. */
static inline int __float2int_rn(float x) {
    return !(x == x) ? 0 : x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : (int)rintf(x);
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

static inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
    x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
    x = (x >> 4 & 0x0F0F0F0F) | (x & 0x0F0F0F0F) << 4;
    return __builtin_bswap32(x);
}

/* Each nibble of s chooses by its lower three bits one of 8 bytes: those of x, then those of y. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned chosen = 0;
    for (int i = 0; i < 4; i++) {
        chosen |= (unsigned)(bytes >> (s >> (4 * i) & 7) * 8 & 255) << (8 * i);
    }
    return chosen;
}

/* Four products of bytes, added to c, modulo 2^32. */
static inline int __dp4a(int a, int b, int c) {
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 32; i += 8) {
        sum += (unsigned)((int8_t)((unsigned)a >> i & 255) * (int8_t)((unsigned)b >> i & 255));
    }
    return (int)sum;
}

static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) {
        c += (a >> i & 255) * (b >> i & 255);
    }
    return c;
}

#define SHIM_ORDERED(T)                                                                                                \
    static inline T min(T a, T b) { return b < a ? b : a; }                                                            \
    static inline T max(T a, T b) { return a < b ? b : a; }

SHIM_ORDERED(int)
SHIM_ORDERED(unsigned)
SHIM_ORDERED(long)
SHIM_ORDERED(unsigned long)
SHIM_ORDERED(long long)
SHIM_ORDERED(unsigned long long)
#undef SHIM_ORDERED

static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

/* ---- Tensor cores, copies to shared memory --------------------------------------------------- */

/* What folollm_kernels.cu writes in PTX: see fl_mma and what follows it there. */
#define FL_TENSOR_CORES

struct shim_lane { /* what it shows the others of its warp */
    uint32_t a[4], b[2];
    const uint32_t *row;
};

struct shim_copies { /* of a thread, that it has not waited for */
    struct {
        void *to;
        const void *from;
        size_t n;
        unsigned group;
    } copies[64];
    unsigned n, n_groups;
};

shim_lane *shim_warp_lanes(void);       /* for what the warp does next */
shim_lane *shim_warp_product(void);     /* which counts */
/* With room for one more, of so many bytes. */
shim_copies *shim_thread_copies(const void *to, const void *from, size_t n);

/* A kernel that is launched before those in front of it are over must wait for them: with a thread that returns without
 * it, a fault. */
void fl_follow(void);

/* mma.m16n8k16 and mma.m16n8k32 of signed bytes: every lane shows what it holds, then takes the quads it needs. */
template <int QUADS> static inline void fl_mma(int sums[4], const uint32_t *a, const uint32_t *b, int start) {
    static_assert(QUADS == 4 || QUADS == 8, "");
    shim_lane *lanes = shim_warp_product();
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    memcpy(lanes[lane].a, a, QUADS / 2 * sizeof *a);
    memcpy(lanes[lane].b, b, QUADS / 4 * sizeof *b);
    __syncwarp();
    for (unsigned i = 0; i < 4; i++) {
        unsigned sum = (unsigned)start;
        for (unsigned quad = 0; quad < QUADS; quad++) {
            uint32_t of_a = lanes[4 * g + quad % 4].a[i / 2 + quad / 4 * 2];
            uint32_t of_b = lanes[4 * (2 * t + i % 2) + quad % 4].b[quad / 4];
            sum = (unsigned)__dp4a((int)of_a, (int)of_b, (int)sum);
        }
        sums[i] = (int)sum;
    }
}

/* ldmatrix.m8n8.x4 */
static inline void fl_load_tiles(uint32_t quads[4], const uint32_t *row) {
    shim_lane *lanes = shim_warp_lanes();
    unsigned lane = threadIdx.x % 32;
    lanes[lane].row = row;
    __syncwarp();
    for (unsigned i = 0; i < 4; i++) {
        quads[i] = lanes[8 * i + lane / 4].row[lane % 4];
    }
}

/* ldmatrix.m8n8.x4.trans */
static inline void fl_load_turned(uint32_t pairs[4], const uint32_t *row) {
    shim_lane *lanes = shim_warp_lanes();
    unsigned lane = threadIdx.x % 32;
    lanes[lane].row = row;
    __syncwarp();
    for (unsigned i = 0; i < 4; i++) {
        uint32_t first = lanes[8 * i + lane % 4 * 2].row[lane / 8];
        uint32_t second = lanes[8 * i + lane % 4 * 2 + 1].row[lane / 8];
        unsigned shift = lane / 4 % 2 * 16;
        pairs[i] = (first >> shift & 0xFFFFu) | second >> shift << 16;
    }
}

/* The place holds 0xFF until the thread has waited. */
template <int BYTES> static inline void fl_copy(void *to, const void *from) {
    static_assert(BYTES == 4 || BYTES == 16, "");
    shim_copies *pending = shim_thread_copies(to, from, BYTES);
    memset(to, 0xFF, BYTES);
    pending->copies[pending->n++] = {to, from, BYTES, pending->n_groups};
}

static inline void shim_copied_before(unsigned group) {
    shim_copies *pending = shim_thread_copies(nullptr, nullptr, 0);
    unsigned left = 0;
    for (unsigned i = 0; i < pending->n; i++) {
        if (pending->copies[i].group < group) {
            memcpy(pending->copies[i].to, pending->copies[i].from, pending->copies[i].n);
        } else {
            pending->copies[left++] = pending->copies[i];
        }
    }
    pending->n = left;
}

static inline void fl_copied(void) { shim_copied_before(~0u); }

static inline void fl_copies_end(void) { shim_thread_copies(nullptr, nullptr, 0)->n_groups++; }

template <int GROUPS> static inline void fl_copied_but(void) {
    unsigned n_groups = shim_thread_copies(nullptr, nullptr, 0)->n_groups;
    shim_copied_before(n_groups > GROUPS ? n_groups - GROUPS : 0);
}

/* ---- The runtime ----------------------------------------------------------------------------- */

#define SHIM_ERRORS(X)                                                                                                 \
    X(cudaSuccess, 0, "no error")                                                                                      \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                                                    \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                                                   \
    X(cudaErrorInitializationError, 3, "initialization error")                                                         \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                              \
    X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                                                        \
    X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                                        \
    X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")                 \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                                   \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                                    \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                           \
    X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")                \
    X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error encountered")                                           \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                                  \
    X(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                            \
    X(cudaErrorNotReady, 600, "device not ready")                                                                      \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                                        \
    X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                                   \
    X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                                          \
    X(cudaErrorAssert, 710, "device-side assert triggered")                                                            \
    X(cudaErrorHardwareStackError, 714, "hardware stack error")                                                        \
    X(cudaErrorIllegalInstruction, 715, "an illegal instruction was encountered")                                      \
    X(cudaErrorMisalignedAddress, 716, "misaligned address")                                                           \
    X(cudaErrorInvalidAddressSpace, 717, "operation not supported on global/shared address space")                     \
    X(cudaErrorInvalidPc, 718, "invalid program counter")                                                              \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                                       \
    X(cudaErrorNotPermitted, 800, "operation not permitted")                                                           \
    X(cudaErrorNotSupported, 801, "operation not supported")                                                           \
    X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                      \
    X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")               \
    X(cudaErrorStreamCaptureMerge, 902, "operation would result in a merge of separate capture sequences")             \
    X(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")                    \
    X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                                       \
    X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")                 \
    X(cudaErrorStreamCaptureImplicit, 906, "operation would make the legacy stream depend on a capturing one") \
    X(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream")          \
    X(cudaErrorStreamCaptureWrongThread, 908, "attempt to end a thread-local capture sequence from another thread") \
    X(cudaErrorGraphExecUpdateFailure, 910, "the graph update was not performed because it included changes which "    \
                                            "violated constraints specific to instantiated graph update")              \
    X(cudaErrorUnknown, 999, "unknown error")

typedef enum cudaError {
#define SHIM_ERROR(name, number, text) name = number,
    SHIM_ERRORS(SHIM_ERROR)
#undef SHIM_ERROR
} cudaError_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxBlockDimX = 2,
    cudaDevAttrMaxBlockDimY = 3,
    cudaDevAttrMaxBlockDimZ = 4,
    cudaDevAttrMaxGridDimX = 5,
    cudaDevAttrMaxGridDimY = 6,
    cudaDevAttrMaxGridDimZ = 7,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMaxRegistersPerBlock = 12,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrIntegrated = 18,
    cudaDevAttrCanMapHostMemory = 19,
    cudaDevAttrComputeMode = 20,
    cudaDevAttrConcurrentKernels = 31,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrAsyncEngineCount = 40,
    cudaDevAttrUnifiedAddressing = 41,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrStreamPrioritiesSupported = 78,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrManagedMemory = 83,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

typedef struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];
    int major, minor, multiProcessorCount, integrated, canMapHostMemory, concurrentKernels, asyncEngineCount;
    int unifiedAddressing, l2CacheSize, maxThreadsPerMultiProcessor, streamPrioritiesSupported;
    size_t sharedMemPerMultiprocessor, sharedMemPerBlockOptin;
} cudaDeviceProp;

typedef struct cudaFuncAttributes {
    int ptxVersion, binaryVersion;
} cudaFuncAttributes;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;

#define cudaStreamLegacy ((cudaStream_t)0x1)
#define cudaStreamDefault 0x0u
#define cudaStreamNonBlocking 0x1u
#define cudaEventDefault 0x0u
#define cudaEventBlockingSync 0x1u
#define cudaEventDisableTiming 0x2u
#define cudaHostAllocDefault 0x0u
#define cudaHostAllocPortable 0x1u
#define cudaHostAllocMapped 0x2u
#define cudaHostAllocWriteCombined 0x4u

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};

enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};

enum cudaGraphExecUpdateResult {
    cudaGraphExecUpdateSuccess,
    cudaGraphExecUpdateError,
    cudaGraphExecUpdateErrorTopologyChanged,
    cudaGraphExecUpdateErrorNodeTypeChanged,
    cudaGraphExecUpdateErrorFunctionChanged,
    cudaGraphExecUpdateErrorParametersChanged,
    cudaGraphExecUpdateErrorNotSupported
};

typedef struct cudaGraphExecUpdateResultInfo {
    cudaGraphExecUpdateResult result;
    cudaGraphNode_t errorNode, errorFromNode;
} cudaGraphExecUpdateResultInfo;

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

typedef enum cudaLaunchAttributeID {
    cudaLaunchAttributeIgnore = 0,
    cudaLaunchAttributeCooperative = 2,
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6,
    cudaLaunchAttributePriority = 8
} cudaLaunchAttributeID;

typedef union cudaLaunchAttributeValue {
    char pad[64];
    int cooperative, programmaticStreamSerializationAllowed, priority;
    struct {
        unsigned x, y, z;
    } clusterDim;
} cudaLaunchAttributeValue;

typedef struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
} cudaLaunchAttribute;

typedef struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
} cudaLaunchConfig_t;

extern "C" {
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemGetInfo(size_t *n_free, size_t *total);

cudaError_t cudaFree(void *p);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream = nullptr);

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);

cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
} /* extern "C" */

cudaError_t shim_malloc(void **p, size_t n);
cudaError_t shim_host_alloc(void **p, size_t n);
cudaError_t shim_host_get_device_pointer(void **p, void *host);
cudaError_t shim_func_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t shim_func_get_attributes(cudaFuncAttributes *attributes, const void *kernel);
/* thread runs the kernel as one thread of it, with its own copy of the arguments. */
cudaError_t shim_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> thread);

template <typename T> static inline cudaError_t cudaMalloc(T **p, size_t n) {
    return shim_malloc((void **)p, n);
}

template <typename T> static inline cudaError_t cudaHostAlloc(T **p, size_t n, unsigned flags) {
    (void)flags;
    return shim_host_alloc((void **)p, n);
}

template <typename T> static inline cudaError_t cudaHostGetDevicePointer(T **p, void *host, unsigned flags) {
    (void)flags;
    return shim_host_get_device_pointer((void **)p, host);
}

template <typename T>
static inline cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute attribute, int value) {
    return shim_func_set_attribute((const void *)kernel, attribute, value);
}

template <typename T> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, T *kernel) {
    return shim_func_get_attributes(attributes, (const void *)kernel);
}

template <typename... Parameters, typename... Arguments>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                                             Arguments &&...arguments) {
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel has at most 4096 bytes of parameters");
    std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
    return shim_launch(config, (const void *)kernel, [kernel, values] { std::apply(kernel, values); });
}

#endif
