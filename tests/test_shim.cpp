/* The host's CUDA of tests/cuda: what kernels compute, in whatever order threads run; the faults of kernels that are
 * found; when work runs; capture; errors. Kernels here are as nvcc would take them, but for cudaLaunchKernelEx. */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

#ifdef __has_feature
#define HAS(feature) __has_feature(feature)
#else
#define HAS(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HAS(address_sanitizer)
#define ASAN 1
#else
#define ASAN 0
#endif
#if defined(__SANITIZE_THREAD__) || HAS(thread_sanitizer)
#define TSAN 1
#else
#define TSAN 0
#endif

#define OK(call) CHECK((call) == cudaSuccess)
#define ALL 0xFFFFFFFFu

template <typename... Parameters, typename... Arguments>
static cudaError_t launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared, void (*kernel)(Parameters...),
                          Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

/* Device memory of n elements, and what it holds. */
template <typename T> struct Array {
    T *p = nullptr;
    size_t n;

    explicit Array(size_t count) : n(count) { OK(cudaMalloc(&p, n * sizeof(T))); }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;
    ~Array() { OK(cudaFree(p)); }

    std::vector<T> read() const {
        std::vector<T> host(n);
        OK(cudaDeviceSynchronize());
        OK(cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return host;
    }
};

static cudaStream_t new_stream(unsigned flags = cudaStreamNonBlocking) {
    cudaStream_t s = nullptr;
    OK(cudaStreamCreateWithPriority(&s, flags, 0));
    return s;
}

/* How a child that runs f ends, and what it says on stderr. */
struct Ending {
    int status;
    std::string says;

    bool aborts_saying(const char *words) const {
        return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && says.find(words) != std::string::npos;
    }
};

template <typename F> static Ending in_child(F f) {
    int ends[2];
    Ending ending = {-1, ""};
    fflush(stdout);
    if (!CHECK(pipe(ends) == 0)) {
        return ending;
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        f();
        exit(0);
    }
    close(ends[1]);
    char buffer[4096];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) {
        ending.says.append(buffer, (size_t)got);
    }
    close(ends[0]);
    CHECK(waitpid(child, &ending.status, 0) == child);
    return ending;
}

/* ---- Threads, barriers, shuffles ------------------------------------------------------------- */

__global__ static void block_sums(const float *in, float *out, int n) {
    __shared__ float of_warp[32];
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float sum = i < n ? in[i] : 0;
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(ALL, sum, lanes);
    }
    if (threadIdx.x % 32 == 0) {
        of_warp[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0;
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            sum += __shfl_down_sync(ALL, sum, (unsigned)lanes);
        }
        if (threadIdx.x == 0) {
            out[blockIdx.x] = sum;
        }
    }
    __syncthreads();
}

static void test_reduction(void) {
    const unsigned blocks = 100, threads = 128, n = blocks * threads - 57;
    std::vector<float> in(n), first;
    for (unsigned i = 0; i < n; i++) {
        in[i] = (float)(i % 101) - 50;
    }
    for (uint64_t seed : {0u, 1u, 2u, 3u, 4u}) {
        shim_set_order(seed);
        Array<float> device_in(n), out(blocks);
        OK(cudaMemcpy(device_in.p, in.data(), n * sizeof(float), cudaMemcpyHostToDevice));
        OK(launch(nullptr, blocks, threads, 0, block_sums, device_in.p, out.p, (int)n));
        std::vector<float> sums = out.read();
        for (unsigned b = 0; b < blocks; b++) {
            float expected = 0;
            for (unsigned i = b * threads; i < n && i < (b + 1) * threads; i++) {
                expected += in[i];
            }
            CHECK(sums[b] == expected);
        }
    }
    shim_set_order(0);
}

__global__ static void shuffle_all(int *out, int operand, int width) {
    int lane = (int)threadIdx.x, *row = out + lane * 4;
    row[0] = __shfl_sync(ALL, lane, operand, width);
    row[1] = __shfl_up_sync(ALL, lane, (unsigned)operand, width);
    row[2] = __shfl_down_sync(ALL, lane, (unsigned)operand, width);
    row[3] = __shfl_xor_sync(ALL, lane, operand, width);
}

static void test_shuffles(void) {
    for (int width = 1; width <= 32; width *= 2) {
        for (int operand = 0; operand < 32; operand++) {
            Array<int> out(128);
            OK(launch(nullptr, 1, 32, 0, shuffle_all, out.p, operand, width));
            std::vector<int> got = out.read();
            unsigned wrong = 0;
            for (int lane = 0; lane < 32; lane++) {
                int begin = lane / width * width, other = lane ^ operand, *row = &got[(size_t)lane * 4];
                wrong += row[0] != begin + operand % width;
                wrong += row[1] != (lane - begin >= operand ? lane - operand : lane);
                wrong += row[2] != (lane - begin + operand < width ? lane + operand : lane);
                wrong += row[3] != (other < begin + width ? other : lane);
            }
            CHECK(wrong == 0);
        }
    }
}

struct Wide {
    long long number;
    double real;
    float single;
    unsigned bits;
};

__global__ static void shuffle_types(Wide *out) {
    int lane = (int)threadIdx.x;
    out[lane].number = __shfl_sync(ALL, (long long)lane << 40, 31 - lane);
    out[lane].real = __shfl_sync(ALL, lane + 0.125, 31 - lane);
    out[lane].single = __shfl_sync(ALL, (float)lane - 0.5f, 31 - lane);
    out[lane].bits = __shfl_sync(ALL, 0x80000000u | (unsigned)lane, 31 - lane);
}

static void test_shuffle_types(void) {
    Array<Wide> out(32);
    OK(launch(nullptr, 1, 32, 0, shuffle_types, out.p));
    std::vector<Wide> got = out.read();
    for (int lane = 0; lane < 32; lane++) {
        int from = 31 - lane;
        const Wide &w = got[(size_t)lane];
        CHECK(w.number == (long long)from << 40 && w.real == from + 0.125);
        CHECK(w.single == (float)from - 0.5f && w.bits == (0x80000000u | (unsigned)from));
    }
}

__global__ static void vote(unsigned *out) {
    unsigned lane = threadIdx.x, *row = out + lane * 5;
    row[0] = __ballot_sync(ALL, lane & 1);
    row[1] = (unsigned)__any_sync(ALL, lane == 7) << 1 | (unsigned)__any_sync(ALL, lane == 32);
    row[2] = (unsigned)__all_sync(ALL, lane < 32) << 1 | (unsigned)__all_sync(ALL, lane != 9);
    row[3] = __activemask();
    row[4] = lane < 16 ? 0 : __ballot_sync(0xFFFF0000u, lane % 4 == 0);
}

/* Halves of a warp that do not meet for a while, then pairs whose masks overlap with those of others in time. */
__global__ static void diverge(int *out) {
    int lane = (int)threadIdx.x, value = lane;
    if (lane < 16) {
        for (int i = 0; i < 5; i++) {
            value += __shfl_xor_sync(0x0000FFFFu, value, 1);
        }
    } else {
        value += __shfl_down_sync(0xFFFF0000u, value, 1, 16);
    }
    if (lane < 3) {
        if (lane != 1) {
            value += __shfl_xor_sync(5u, value, 2);
        }
        if (lane != 2) {
            value += __shfl_xor_sync(3u, value, 1);
        }
    }
    __syncwarp();
    out[lane] = value;
}

static void test_votes(void) {
    for (uint64_t seed : {0u, 1u, 5u, 6u}) {
        shim_set_order(seed);
        Array<unsigned> out(32 * 5);
        Array<int> values(32);
        OK(launch(nullptr, 1, 32, 0, vote, out.p));
        OK(launch(nullptr, 1, 32, 0, diverge, values.p));
        std::vector<unsigned> votes = out.read();
        std::vector<int> got = values.read();
        int expected[32];
        for (int lane = 0; lane < 32; lane++) {
            const unsigned *row = &votes[(size_t)lane * 5];
            CHECK(row[0] == 0xAAAAAAAAu && row[1] == 2 && row[2] == 2 && row[4] == (lane < 16 ? 0 : 0x11110000u));
            CHECK((row[3] >> lane & 1) == 1); /* which others have returned by then is not fixed */
            int pair = lane ^ 1;
            expected[lane] = lane < 16 ? (lane + pair) * 16 : lane + (lane < 31 ? lane + 1 : lane);
        }
        expected[0] += expected[2];
        expected[2] = expected[0];
        int both = expected[0] + expected[1];
        expected[0] = expected[1] = both;
        CHECK(memcmp(expected, got.data(), sizeof expected) == 0);
    }
    shim_set_order(0);
}

__global__ static void shapes(unsigned *out) {
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    __shared__ unsigned seen[1024];
    seen[thread] = block * 1000 + thread;
    __syncthreads();
    unsigned n = blockDim.x * blockDim.y * blockDim.z;
    out[block * n + thread] = seen[n - 1 - thread];
}

static void test_shapes(void) {
    const dim3 grids[] = {{1, 1, 1}, {2, 3, 4}, {5}, {1, 1, 2}}, blocks[] = {{4, 4, 64}, {5, 3, 2}, {1}, {1024}};
    for (int i = 0; i < 4; i++) {
        shim_set_order((uint64_t)i);
        unsigned g = grids[i].x * grids[i].y * grids[i].z, b = blocks[i].x * blocks[i].y * blocks[i].z, wrong = 0;
        Array<unsigned> out(g * b);
        OK(launch(nullptr, grids[i], blocks[i], 0, shapes, out.p));
        std::vector<unsigned> got = out.read();
        for (unsigned j = 0; j < g * b; j++) {
            wrong += got[j] != j / b * 1000 + b - 1 - j % b;
        }
        CHECK(wrong == 0);
    }
    shim_set_order(0);
}

__global__ static void use_dynamic(unsigned *out, unsigned n) {
    FL_DYNAMIC_SHARED(bytes);
    unsigned fresh = 1;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        fresh = fresh && bytes[i] == 0xFF;
        bytes[i] = (unsigned char)i;
    }
    __syncthreads();
    unsigned sum = (uintptr_t)bytes % 16 == 0 ? fresh : 0;
    for (unsigned i = 0; i < n; i++) {
        sum += bytes[i];
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

static void test_dynamic_shared(void) {
    for (unsigned n : {0u, 1u, 1000u, 49152u, 49153u, 232448u}) {
        Array<unsigned> out(64);
        cudaError_t e = launch(nullptr, 2, 32, n, use_dynamic, out.p, n);
        if (n > 49152) {
            CHECK(e == cudaErrorInvalidValue && cudaGetLastError() == e);
            OK(cudaFuncSetAttribute(use_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n));
            e = launch(nullptr, 2, 32, n, use_dynamic, out.p, n);
        }
        OK(e);
        unsigned expected = 1, wrong = 0;
        for (unsigned i = 0; i < n; i++) {
            expected += i & 255;
        }
        for (unsigned got : out.read()) {
            wrong += got != expected;
        }
        CHECK(wrong == 0);
    }
    cudaFuncAttribute limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    CHECK(cudaFuncSetAttribute(use_dynamic, limit, 232449) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
}

__global__ static void count_atomically(int *counts, float *sum) {
    atomicAdd(&counts[0], 1);
    atomicMax(&counts[1], (int)(blockIdx.x * blockDim.x + threadIdx.x));
    atomicAdd((unsigned *)&counts[2], 0xFFFFFFFFu);
    atomicAdd(sum, 0.5f);
    if (atomicExch(&counts[3], 1) == 0) {
        atomicAdd(&counts[4], 1);
    }
    int old = atomicAdd(&counts[5], 0), seen;
    while ((seen = atomicCAS(&counts[5], old, old + 2)) != old) {
        old = seen;
    }
    __threadfence();
}

static void test_atomics(void) {
    Array<int> counts(6);
    Array<float> sum(1);
    OK(cudaMemsetAsync(counts.p, 0, 6 * sizeof(int)));
    OK(cudaMemsetAsync(sum.p, 0, sizeof(float)));
    OK(launch(nullptr, 3, 70, 0, count_atomically, counts.p, sum.p));
    std::vector<int> got = counts.read();
    CHECK(got[0] == 210 && got[1] == 209 && got[2] == -210 && got[3] == 1 && got[4] == 1 && got[5] == 420);
    CHECK(sum.read()[0] == 105);
}

/* Every block leaves a number; the last one to be done adds them up, and the count begins anew. */
__global__ static void add_up_last(unsigned *done, unsigned *numbers, unsigned *out) {
    __shared__ unsigned is_last;
    numbers[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < gridDim.x * blockDim.x && is_last; i += blockDim.x) {
        atomicAdd(out, numbers[i]);
    }
}

static void test_last_block(void) {
    const unsigned n_blocks = 7, n_threads = 40, n = n_blocks * n_threads;
    Array<unsigned> done(1), numbers(n), out(1);
    OK(cudaMemsetAsync(done.p, 0, sizeof(unsigned)));
    for (uint64_t order = 0; order < 5; order++) {
        shim_set_order(order);
        OK(cudaMemsetAsync(numbers.p, 0xFF, n * sizeof(unsigned)));
        OK(cudaMemsetAsync(out.p, 0, sizeof(unsigned)));
        OK(launch(nullptr, n_blocks, n_threads, 0, add_up_last, done.p, numbers.p, out.p));
        CHECK(out.read()[0] == 21 * 780 && done.read()[0] == 0);
    }
    shim_set_order(0);
}

/* ---- Tensor cores, copies to shared memory ----------------------------------------------------- */

/* c (16, 8) = i + a (16, k) b (k, 8), for i of n; a lane takes its elements as the PTX manual numbers them. */
template <int QUADS> __global__ static void multiply(const signed char *a, const signed char *b, int *c, int n) {
    const int k = 4 * QUADS, group = (int)threadIdx.x % 32 / 4, in_group = (int)threadIdx.x % 4;
    const int warps = (int)(gridDim.x * blockDim.x) / 32;
    for (int m = (int)(blockIdx.x * blockDim.x + threadIdx.x) / 32; m < n; m += warps) {
        signed char of_a[2 * QUADS], of_b[QUADS];
        uint32_t words_of_a[QUADS / 2], words_of_b[QUADS / 4];
        int sums[4];
        for (int i = 0; i < 2 * QUADS; i++) {
            int row = i < 4 || (8 <= i && i < 12) ? group : group + 8;
            of_a[i] = a[(m * 16 + row) * k + in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0)];
        }
        for (int i = 0; i < QUADS; i++) {
            int row = in_group * 4 + (i & 3) + (i >= 4 ? 16 : 0);
            of_b[i] = b[(m * k + row) * 8 + group];
        }
        memcpy(words_of_a, of_a, sizeof of_a);
        memcpy(words_of_b, of_b, sizeof of_b);
        fl_mma<QUADS>(sums, words_of_a, words_of_b, m);
        for (int i = 0; i < 4; i++) {
            c[(m * 16 + group + i / 2 * 8) * 8 + in_group * 2 + i % 2] = sums[i];
        }
    }
}

template <int QUADS> static void check_products(uint64_t order) {
    const unsigned n = 17, k = 4 * QUADS;
    Array<signed char> a(n * 16 * k), b(n * k * 8);
    Array<int> c(n * 16 * 8);
    std::vector<signed char> host_a(a.n), host_b(b.n);
    std::vector<int> expected(c.n);
    uint64_t state = 77 + order;
    auto next = [&state] { return (signed char)((state = state * 6364136223846793005u + 1442695040888963407u) >> 40); };
    for (size_t i = 0; i < a.n; i++) { /* the first of them as large as they get */
        host_a[i] = i < 16 * k ? (signed char)-128 : next();
        host_b[i / 2] = i < 16 * k ? (signed char)-128 : next();
    }
    OK(cudaMemcpy(a.p, host_a.data(), a.n, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(b.p, host_b.data(), b.n, cudaMemcpyHostToDevice));
    for (size_t i = 0; i < c.n; i++) {
        expected[i] = (int)i / 128;
        for (size_t j = 0; j < k; j++) {
            expected[i] += host_a[i / 8 * k + j] * host_b[(i / 128 * k + j) * 8 + i % 8];
        }
    }
    uint64_t before = shim_get_counts().products;
    OK(launch(nullptr, 3, 64, 0, multiply<QUADS>, (const signed char *)a.p, (const signed char *)b.p, c.p, (int)n));
    CHECK(c.read() == expected && shim_get_counts().products == before + n);
}

static void test_products(void) {
    for (uint64_t order = 0; order < 4; order++) {
        shim_set_order(order);
        check_products<4>(order);
        check_products<8>(order);
    }
    shim_set_order(0);
}

/* a (16, 16), b (16, 8) and c (16, 8), in order of rows, as the instruction set says which lane has what. */
template <bool BF16>
__global__ static void multiply_halves(const unsigned short *a, const unsigned short *b, float *c) {
    unsigned group = threadIdx.x / 4, in_group = threadIdx.x % 4;
    uint32_t of_a[4], of_b[2];
    float sums[4];
    for (unsigned i = 0; i < 4; i++) {
        const unsigned short *pair = a + (group + i % 2 * 8) * 16 + in_group * 2 + i / 2 * 8;
        of_a[i] = pair[0] | (uint32_t)pair[1] << 16;
        sums[i] = c[(group + i / 2 * 8) * 8 + in_group * 2 + i % 2];
    }
    for (unsigned i = 0; i < 2; i++) {
        const unsigned short *pair = b + (in_group * 2 + i * 8) * 8 + group;
        of_b[i] = pair[0] | (uint32_t)pair[8] << 16;
    }
    fl_mma_halves<BF16>(sums, of_a, of_b[0], of_b[1]);
    for (unsigned i = 0; i < 4; i++) {
        c[(group + i / 2 * 8) * 8 + in_group * 2 + i % 2] = sums[i];
    }
}

template <bool BF16> static void check_halves(void) {
    Array<unsigned short> a(256), b(128);
    Array<float> c(128);
    std::vector<unsigned short> host_a(256), host_b(128);
    std::vector<float> expected(128);
    auto bits = [](int i) { /* of a small number, exact */
        float f = (float)i;
        uint32_t u;
        if (!BF16) {
            return __half_as_ushort(__float2half_rn(f));
        }
        memcpy(&u, &f, sizeof u);
        return (unsigned short)(u >> 16);
    };
    for (int i = 0; i < 256; i++) {
        host_a[i] = bits(i * 37 % 101 - 50);
        host_b[i / 2] = bits(i * 53 % 97 - 48);
    }
    for (int i = 0; i < 128; i++) {
        expected[i] = (float)(i - 60);
    }
    OK(cudaMemcpy(a.p, host_a.data(), 512, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(b.p, host_b.data(), 256, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(c.p, expected.data(), 512, cudaMemcpyHostToDevice));
    for (int i = 0; i < 128; i++) {
        for (int k = 0; k < 16; k++) {
            int of_b = 2 * (k * 8 + i % 8) + 1; /* the later of two */
            expected[i] += (float)((i / 8 * 16 + k) * 37 % 101 - 50) * (float)(of_b * 53 % 97 - 48);
        }
    }
    OK(launch(nullptr, 1, 32, 0, multiply_halves<BF16>, (const unsigned short *)a.p, (const unsigned short *)b.p, c.p));
    CHECK(c.read() == expected);
}

__global__ static void load_tiles(uint32_t *out) {
    __shared__ uint4 rows[32];
    unsigned i = threadIdx.x;
    rows[i] = make_uint4(4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3);
    __syncwarp();
    fl_load_tiles(out + 4 * i, &rows[i * 5 % 32].x);
    fl_load_tiles(out + 128 + 4 * i, &rows[31 - i].x);
    fl_load_turned(out + 256 + 4 * i, &rows[i * 5 % 32].x);
}

static void test_tiles(void) {
    Array<uint32_t> out(384);
    OK(launch(nullptr, 1, 32, 0, load_tiles, out.p));
    std::vector<uint32_t> got = out.read();
    unsigned wrong = 0;
    for (unsigned i = 0; i < 128; i++) { /* lane l has the l-th pair of a tile's 16-bit elements */
        unsigned lane = i / 4, row = i % 4 * 8 + lane / 4;
        wrong += got[i] != row * 5 % 32 * 4 + lane % 4 || got[128 + i] != (31 - row) * 4 + lane % 4;
        unsigned column = lane / 4, turned = i % 4 * 8 + lane % 4 * 2; /* each is below 2^16, so every odd one is 0 */
        uint32_t two[2] = {turned * 5 % 32 * 4 + column / 2, (turned + 1) * 5 % 32 * 4 + column / 2};
        wrong += got[256 + i] != (column % 2 != 0 ? 0 : two[0] | two[1] << 16);
    }
    CHECK(wrong == 0);
}

__global__ static void copy_and_wait(const uint32_t *in, uint32_t *out) {
    __shared__ uint4 whole[64];
    __shared__ uint32_t words[64];
    unsigned i = threadIdx.x;
    fl_copy<16>(&whole[i], in + 4 * i);
    fl_copy<4>(&words[i], in + i);
    out[i] = whole[i].w & words[i]; /* what is read too early is no number of the input */
    fl_copied();
    __syncthreads();
    out[64 + i] = whole[63 - i].w;
    out[128 + i] = words[63 - i];
}

__global__ static void copy_in_groups(const uint32_t *in, uint32_t *out) {
    __shared__ uint32_t first[64], second[64];
    unsigned i = threadIdx.x;
    fl_copy<4>(&first[i], in + i);
    fl_copies_end();
    fl_copy<4>(&second[i], in + 64 + i);
    fl_copies_end();
    fl_copied_but<2>();
    out[i] = first[i] & second[i];
    fl_copied_but<1>();
    out[64 + i] = first[i];
    out[128 + i] = second[i];
    fl_copies_end(); /* an empty one */
    fl_copied_but<1>();
    out[192 + i] = second[i];
}

__global__ static void never_waits(const uint32_t *in) {
    __shared__ uint32_t words[65];
    for (unsigned i = 0; i < 65; i++) {
        fl_copy<4>(&words[i], in + i);
    }
}

__global__ static void follows_or_not(unsigned which) {
    if (threadIdx.x != which) {
        fl_follow();
    }
}

static void test_following(void) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(40);
    config.attrs = &early;
    OK(cudaLaunchKernelEx(&config, follows_or_not, 7u)); /* without the attribute it need not */
    config.numAttrs = 1;
    OK(cudaLaunchKernelEx(&config, follows_or_not, 40u));
    OK(cudaDeviceSynchronize());
    Ending e = in_child([&] {
        cudaLaunchKernelEx(&config, follows_or_not, 7u);
        cudaDeviceSynchronize();
    });
    CHECK(e.aborts_saying("a kernel that may come early did not wait for those in front of it"));
}

static void test_shared_copies(void) {
    std::vector<uint32_t> host(256);
    Array<uint32_t> in(host.size()), out(192);
    for (unsigned i = 0; i < host.size(); i++) {
        host[i] = i * 7;
    }
    OK(cudaMemcpy(in.p, host.data(), host.size() * sizeof(uint32_t), cudaMemcpyHostToDevice));
    OK(launch(nullptr, 1, 64, 0, copy_and_wait, (const uint32_t *)in.p, out.p));
    std::vector<uint32_t> got = out.read();
    unsigned wrong = 0;
    for (unsigned i = 0; i < 64; i++) {
        wrong += got[i] != ALL || got[64 + i] != host[4 * (63 - i) + 3] || got[128 + i] != host[63 - i];
    }
    CHECK(wrong == 0);
    Array<uint32_t> grouped(256);
    OK(launch(nullptr, 1, 64, 0, copy_in_groups, (const uint32_t *)in.p, grouped.p));
    got = grouped.read();
    for (unsigned i = 0; i < 64; i++) {
        wrong += got[i] != ALL || got[64 + i] != host[i] || got[128 + i] != ALL || got[192 + i] != host[64 + i];
    }
    CHECK(wrong == 0);
    Ending e = in_child([&] {
        launch(nullptr, 1, 1, 0, never_waits, (const uint32_t *)in.p);
        cudaDeviceSynchronize();
    });
    CHECK(e.aborts_saying("too many copies to shared memory that nobody waited for"));
    e = in_child([&] {
        launch(nullptr, 1, 64, 0, copy_and_wait, (const uint32_t *)(in.p + 1), out.p);
        cudaDeviceSynchronize();
    });
    CHECK(e.aborts_saying("a copy to shared memory is not aligned to its bytes"));
}

/* ---- The order of threads shows ---------------------------------------------------------------- */

__global__ static void last_thread(unsigned *out) {
    out[0] = threadIdx.x; /* a race that is meant */
}

__global__ static void last_block(unsigned *out) {
    out[0] = blockIdx.x;
}

__global__ static void forgotten_barrier(unsigned *out) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = blockIdx.x * 64 + threadIdx.x;
    out[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];
}

static void test_order(void) {
    std::set<unsigned> seen_threads, seen_blocks;
    std::set<std::vector<unsigned>> seen_shared;
    for (uint64_t seed = 0; seed < 10; seed++) {
        unsigned twice[2][2];
        Array<unsigned> many(256);
        for (int i = 0; i < 2; i++) {
            shim_set_order(seed);
            Array<unsigned> out(2);
            OK(launch(nullptr, 1, 64, 0, last_thread, out.p));
            OK(launch(nullptr, 64, 1, 0, last_block, out.p + 1));
            std::vector<unsigned> got = out.read();
            memcpy(twice[i], got.data(), sizeof twice[i]);
        }
        OK(launch(nullptr, 4, 64, 0, forgotten_barrier, many.p));
        seen_shared.insert(many.read());
        CHECK(memcmp(twice[0], twice[1], sizeof twice[0]) == 0);
        CHECK(seed != 0 || (twice[0][0] == 63 && twice[0][1] == 63));
        CHECK(seed != 1 || (twice[0][0] == 0 && twice[0][1] == 0));
        seen_threads.insert(twice[0][0]);
        seen_blocks.insert(twice[0][1]);
    }
    CHECK(seen_threads.size() > 4 && seen_blocks.size() > 4 && seen_shared.size() == 10);
    shim_set_order(0);
}

/* ---- Faults of kernels ------------------------------------------------------------------------- */

__global__ static void two_barriers(void) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ static void returns_early(void) {
    if (threadIdx.x == 40) {
        return;
    }
    __syncthreads();
}

__global__ static void barrier_and_shuffle(void) {
    if (threadIdx.x == 3) {
        __syncthreads();
    }
    __shfl_sync(ALL, 1, 0);
    if (threadIdx.x != 3) {
        __syncthreads();
    }
}

__global__ static void lane_returned(void) {
    if (threadIdx.x == 0) {
        return;
    }
    __syncwarp(ALL);
}

__global__ static void lane_returns_later(void) {
    if (threadIdx.x == 63) {
        return;
    }
    __syncwarp(ALL);
}

__global__ static void lane_missing(void) {
    __shfl_xor_sync(ALL, 1, 1);
}

__global__ static void masks_differ(void) {
    __shfl_sync(threadIdx.x == 5 ? 0x7FFFFFFFu : ALL, 1, 0);
}

__global__ static void not_in_mask(void) {
    __ballot_sync(1, 1);
}

__global__ static void reads_outside(void) {
    if (threadIdx.x < 16) {
        __shfl_sync(0xFFFFu, 1, 16);
    }
}

__global__ static void two_shuffles(void) {
    if (threadIdx.x < 16) {
        __shfl_sync(ALL, 1, 0);
    } else {
        __shfl_sync(ALL, 1, 0);
    }
}

__global__ static void odd_width(void) {
    __shfl_sync(ALL, 1, 0, 24);
}

static void test_kernel_faults(void) {
    struct {
        void (*kernel)(void);
        unsigned threads;
        const char *name, *says;
    } cases[] = {
        {two_barriers, 64, "kernel two_barriers()", "threads of a block wait at different __syncthreads"},
        {returns_early, 64, "kernel returns_early()", "no thread of the block can go on"},
        {barrier_and_shuffle, 32, "kernel barrier_and_shuffle()", "no thread of the block can go on"},
        {lane_returned, 32, "kernel lane_returned()", "the mask names a lane that has returned"},
        {lane_returns_later, 64, "kernel lane_returns_later()", "returned while others wait, and none can go on"},
        {lane_missing, 16, "kernel lane_missing()", "the mask names a lane that the block does not have"},
        {masks_differ, 32, "kernel masks_differ()", "no thread of the block can go on"},
        {not_in_mask, 32, "kernel not_in_mask()", "the mask does not name the lane that calls"},
        {reads_outside, 32, "kernel reads_outside()", "a shuffle reads a lane that the mask does not name"},
        {two_shuffles, 32, "kernel two_shuffles()", "lanes of the same mask meet in different places"},
        {odd_width, 32, "kernel odd_width()", "the width of a shuffle is not"},
    };
    for (auto &c : cases) {
        for (uint64_t seed : {0u, 1u, 2u}) {
            Ending e = in_child([&] {
                shim_set_order(seed);
                OK(launch(nullptr, dim3(1, 2), c.threads, 0, c.kernel));
                cudaDeviceSynchronize();
            });
            bool named = e.says.find(c.name) != std::string::npos && e.says.find("block (0, ") != std::string::npos;
            /* Whether a thread returns before or after others wait is up to the order. */
            bool early = seed != 0 && (c.kernel == lane_returned || c.kernel == lane_returns_later ||
                                       c.kernel == returns_early);
            if (!CHECK_TEXT(named && (e.aborts_saying(c.says) || (early && e.aborts_saying("returned"))), c.name)) {
                printf("%s\n", e.says.c_str());
            }
        }
    }
    Ending e = in_child([] { __syncthreads(); });
    CHECK(e.aborts_saying("__syncthreads outside of a kernel"));
    e = in_child([] {
        launch(nullptr, dim3(1, 2), 64, 0, returns_early);
        cudaDeviceSynchronize();
    });
    CHECK(e.says.find("threads 0 to 39 wait at __syncthreads, line") != std::string::npos);
    CHECK(e.says.find("threads 40 to 40 returned") != std::string::npos);
}

__global__ static void step_out_of_shared(void) {
    FL_DYNAMIC_SHARED(bytes);
    bytes[threadIdx.x] = 1;
}

__global__ static void step_out_of_global(float *p) {
    p[threadIdx.x] = 1;
}

/* Under AddressSanitizer. */
static void test_bounds(void) {
    Ending e = in_child([] {
        launch(nullptr, 1, 33, 32, step_out_of_shared);
        cudaDeviceSynchronize();
    });
    CHECK(e.status != 0 && e.says.find("heap-buffer-overflow") != std::string::npos);
    e = in_child([] {
        Array<float> a(7);
        launch(nullptr, 1, 8, 0, step_out_of_global, a.p);
        cudaDeviceSynchronize();
    });
    CHECK(e.status != 0 && e.says.find("heap-buffer-overflow") != std::string::npos);
    e = in_child([] {
        Array<float> a(8);
        launch(nullptr, 1, 8, 0, step_out_of_global, a.p);
        cudaDeviceSynchronize();
    });
    CHECK(e.status == 0);
    e = in_child([] {
        Array<float> a(8);
        launch(nullptr, 1, 8, 0, step_out_of_global, a.p);
        cudaDeviceSynchronize();
        *(volatile float *)a.p = 1;
    });
    CHECK(e.status != 0 && e.says.find("use-after-poison") != std::string::npos);
}

/* ---- Races, under ThreadSanitizer ------------------------------------------------------------ */

__global__ static void ordered_by_barrier(unsigned *out) {
    __shared__ unsigned s[64];
    for (unsigned i = 0; i < 3; i++) {
        s[threadIdx.x] = i;
        __syncthreads();
        out[threadIdx.x] = s[63 - threadIdx.x];
        __syncthreads();
    }
}

__global__ static void barrier_left_out(unsigned *out) {
    __shared__ unsigned s[64];
    for (unsigned i = 0; i < 3; i++) {
        s[threadIdx.x] = i;
        __syncthreads();
        out[threadIdx.x] = s[63 - threadIdx.x];
    }
}

__global__ static void racy_global(unsigned *out) {
    out[threadIdx.x] = 1;
    out[64] += out[threadIdx.x];
}

__global__ static void racy_dynamic(unsigned *out) {
    FL_DYNAMIC_SHARED(bytes);
    unsigned *s = (unsigned *)bytes;
    s[threadIdx.x] = 1;
    out[threadIdx.x] = s[(threadIdx.x + 1) % 64];
}

__global__ static void ordered_by_syncwarp(unsigned *out) {
    __shared__ unsigned s[64];
    unsigned warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    for (unsigned i = 0; i < 3; i++) {
        s[warp + lane] = i;
        __syncwarp();
        out[threadIdx.x] = s[warp + 31 - lane];
        __syncwarp();
    }
}

__global__ static void shuffle_orders_nothing(unsigned *out) {
    __shared__ unsigned s[64];
    unsigned warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    s[warp + lane] = lane;
    __shfl_sync(ALL, lane, 0);
    out[threadIdx.x] = s[warp + 31 - lane];
}

__global__ static void across_warps(unsigned *out) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = 1;
    __syncwarp();
    out[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ static void only_atomics(unsigned *out) {
    atomicAdd(&out[0], 1u);
    atomicMax(&out[1], threadIdx.x);
}

extern "C" const char *__tsan_default_options(void) {
    return "atexit_sleep_ms=0"; /* there is nobody to wait for when a child ends */
}

static void test_races(void) {
    struct {
        void (*kernel)(unsigned *);
        bool races;
        const char *name;
    } cases[] = {
        {ordered_by_barrier, false, "ordered_by_barrier"},
        {barrier_left_out, true, "barrier_left_out"},
        {racy_global, true, "racy_global"},
        {racy_dynamic, true, "racy_dynamic"},
        {ordered_by_syncwarp, false, "ordered_by_syncwarp"},
        {shuffle_orders_nothing, true, "shuffle_orders_nothing"},
        {across_warps, true, "across_warps"},
        {only_atomics, false, "only_atomics"},
    };
    for (auto &c : cases) {
        for (uint64_t seed : {0u, 1u, 2u}) {
            Ending e = in_child([&] {
                shim_set_order(seed);
                Array<unsigned> out(65);
                for (int i = 0; i < 2; i++) {
                    launch(nullptr, 3, 64, 256, c.kernel, out.p);
                }
                cudaDeviceSynchronize();
            });
            bool reported = e.says.find("data race") != std::string::npos;
            if (!CHECK_TEXT(reported == c.races && (e.status == 0) == !c.races, c.name)) {
                printf("%s\n", e.says.c_str());
            }
        }
    }
}

/* ---- When work runs ---------------------------------------------------------------------------- */

__global__ static void increment(int *p, int by) {
    if (threadIdx.x == 0) {
        *p += by;
    }
}

static void test_late(void) {
    cudaStream_t s = new_stream();
    int *pinned = nullptr;
    OK(cudaHostAlloc(&pinned, 2 * sizeof(int), cudaHostAllocDefault));
    Array<int> device(1);
    pinned[0] = 10;
    pinned[1] = -1;
    OK(cudaMemcpyAsync(device.p, pinned, sizeof(int), cudaMemcpyHostToDevice, s));
    OK(launch(s, 1, 1, 0, increment, device.p, 5));
    OK(cudaMemcpyAsync(pinned + 1, device.p, sizeof(int), cudaMemcpyDeviceToHost, s));
    CHECK(pinned[1] == -1);
    pinned[0] = 20; /* before the copy from it ran */
    OK(cudaStreamSynchronize(s));
    CHECK(pinned[1] == 25);

    OK(launch(s, 1, 1, 0, increment, device.p, 1));
    OK(cudaMemcpyAsync(pinned, device.p, sizeof(int), cudaMemcpyDefault, s));
    CHECK(pinned[0] == 20 && cudaStreamQuery(s) == cudaErrorNotReady && cudaStreamQuery(s) == cudaSuccess);
    CHECK(pinned[0] == 26 && cudaGetLastError() == cudaErrorNotReady);

    /* The default stream does not wait for one that was made not to block. */
    OK(launch(s, 1, 1, 0, increment, device.p, 1));
    OK(cudaMemcpy(pinned, device.p, sizeof(int), cudaMemcpyDeviceToHost));
    CHECK(pinned[0] == 26);
    cudaStream_t blocking = new_stream(cudaStreamDefault);
    OK(launch(blocking, 1, 1, 0, increment, device.p, 100));
    OK(cudaMemcpy(pinned, device.p, sizeof(int), cudaMemcpyDeviceToHost));
    CHECK(pinned[0] == 126);
    OK(launch(nullptr, 1, 1, 0, increment, device.p, 100));
    OK(launch(blocking, 1, 1, 0, increment, device.p, 100));
    OK(cudaStreamSynchronize(blocking));
    OK(cudaStreamSynchronize(s));
    OK(cudaMemcpyAsync(pinned, device.p, sizeof(int), cudaMemcpyDeviceToHost, s));
    OK(cudaStreamDestroy(s));
    CHECK(pinned[0] == 327);
    OK(cudaStreamDestroy(blocking));
    CHECK(cudaStreamDestroy(s) == cudaErrorInvalidResourceHandle && cudaStreamSynchronize(s) != cudaSuccess);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
    OK(cudaFreeHost(pinned));
}

static void test_events(void) {
    cudaStream_t a = new_stream(), b = new_stream();
    cudaEvent_t event = nullptr, begin = nullptr, end = nullptr;
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&begin, cudaEventDefault));
    OK(cudaEventCreateWithFlags(&end, cudaEventDefault));
    Array<int> device(1);
    int host = -1;
    CHECK(cudaEventQuery(event) == cudaSuccess && cudaStreamWaitEvent(a, event, 0) == cudaSuccess);
    OK(cudaMemsetAsync(device.p, 0, sizeof(int), a));
    OK(launch(a, 1, 1, 0, increment, device.p, 3));
    OK(cudaEventRecord(event, a));
    OK(launch(a, 1, 1, 0, increment, device.p, 4)); /* nobody waits for this one */
    OK(cudaStreamWaitEvent(b, event, 0));
    OK(cudaMemcpyAsync(&host, device.p, sizeof(int), cudaMemcpyDeviceToHost, b));
    OK(cudaStreamSynchronize(b));
    CHECK(host == 3 && cudaEventQuery(event) == cudaSuccess);

    OK(cudaEventRecord(begin, b));
    OK(cudaEventRecord(end, b));
    float milliseconds = -1;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end) == cudaErrorNotReady);
    CHECK(cudaEventQuery(end) == cudaErrorNotReady && cudaEventQuery(end) == cudaSuccess);
    OK(cudaEventElapsedTime(&milliseconds, begin, end));
    CHECK(milliseconds >= 0 && milliseconds < 1000);
    CHECK(cudaEventElapsedTime(&milliseconds, begin, event) == cudaErrorInvalidResourceHandle);

    OK(launch(a, 1, 1, 0, increment, device.p, 5));
    OK(cudaMemcpyAsync(&host, device.p, sizeof(int), cudaMemcpyDeviceToHost, a));
    OK(cudaEventRecord(event, a));
    CHECK(host == 3);
    OK(cudaEventSynchronize(event));
    CHECK(host == 12);
    OK(cudaEventDestroy(event));
    OK(cudaEventDestroy(begin));
    OK(cudaEventDestroy(end));
    CHECK(cudaEventDestroy(end) == cudaErrorInvalidResourceHandle);
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
    cudaGetLastError();
}

/* ---- Capture ----------------------------------------------------------------------------------- */

static cudaGraph_t capture_increment(cudaStream_t s, int *p, int by, int *host) {
    cudaGraph_t graph = nullptr;
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    OK(launch(s, 1, 1, 0, increment, p, by));
    by = 1000; /* the launch has its own */
    OK(cudaMemcpyAsync(host, p, sizeof(int), cudaMemcpyDeviceToHost, s));
    OK(cudaStreamEndCapture(s, &graph));
    return graph;
}

static void test_capture(void) {
    cudaStream_t s = new_stream();
    Array<int> device(1);
    int host = -1, host2 = -1;
    OK(cudaMemsetAsync(device.p, 0, sizeof(int), s));
    shim_clear_counts();
    cudaGraph_t graph = capture_increment(s, device.p, 7, &host);
    OK(cudaStreamSynchronize(s));
    CHECK(host == -1 && shim_get_counts().kernels == 0);
    cudaGraphExec_t exec = nullptr;
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    OK(cudaGraphUpload(exec, s));
    for (int i = 1; i <= 3; i++) {
        OK(cudaGraphLaunch(exec, s));
        CHECK(host == (i == 1 ? -1 : 7 * (i - 1)));
        OK(cudaStreamSynchronize(s));
        CHECK(host == 7 * i);
    }
    OK(cudaGraphLaunch(exec, s)); /* as it is now: 28 */
    graph = capture_increment(s, device.p, 100, &host2);
    cudaGraphExecUpdateResultInfo info;
    OK(cudaGraphExecUpdate(exec, graph, &info));
    CHECK(info.result == cudaGraphExecUpdateSuccess);
    OK(cudaGraphDestroy(graph));
    OK(cudaGraphLaunch(exec, s));
    OK(cudaStreamSynchronize(s));
    CHECK(host == 28 && host2 == 128);
    shim_counts c = shim_get_counts();
    CHECK(c.kernels == 0 && c.graph_kernels == 5 && c.graph_launches == 5 && c.copies_out == 5 && c.bytes_out == 20);

    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    OK(cudaMemsetAsync(device.p, 0, sizeof(int), s));
    OK(cudaMemcpyAsync(device.p, &host, sizeof(int), cudaMemcpyHostToDevice, s));
    OK(cudaStreamEndCapture(s, &graph));
    CHECK(cudaGraphExecUpdate(exec, graph, &info) == cudaErrorGraphExecUpdateFailure);
    CHECK(info.result == cudaGraphExecUpdateErrorNodeTypeChanged);
    OK(cudaGraphDestroy(graph));
    OK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphLaunch(exec, s) == cudaErrorInvalidValue && cudaGraphExecDestroy(exec) == cudaErrorInvalidValue);
    OK(cudaStreamDestroy(s));
    cudaGetLastError();
}

static void test_capture_refuses(void) {
    cudaStream_t s = new_stream();
    cudaGraph_t graph = nullptr;
    Array<int> device(1);
    void *p = nullptr;
    int host = 0;
    cudaStreamCaptureStatus status;
    for (int i = 0; i < 6; i++) {
        OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
        OK(launch(s, 1, 1, 0, increment, device.p, 1));
        OK(cudaStreamIsCapturing(s, &status));
        CHECK(status == cudaStreamCaptureStatusActive);
        cudaError_t e = i == 0   ? cudaMalloc(&p, 4)
                        : i == 1 ? cudaStreamSynchronize(s)
                        : i == 2 ? cudaStreamQuery(s)
                        : i == 3 ? cudaFree(device.p)
                        : i == 4 ? cudaMemcpy(&host, device.p, 4, cudaMemcpyDeviceToHost)
                                 : cudaDeviceSynchronize();
        CHECK(e == cudaErrorStreamCaptureUnsupported);
        OK(cudaStreamIsCapturing(s, &status));
        CHECK(status == cudaStreamCaptureStatusInvalidated);
        CHECK(launch(s, 1, 1, 0, increment, device.p, 1) == cudaErrorStreamCaptureInvalidated);
        CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated && graph == nullptr);
        OK(cudaStreamIsCapturing(s, &status));
        CHECK(status == cudaStreamCaptureStatusNone);
    }
    CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorIllegalState);
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);

    /* What is not allowed to its own thread is to others, and a relaxed one allows it to all. */
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    std::thread([&] {
        OK(cudaMalloc(&p, 4));
        OK(cudaFree(p));
        CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureWrongThread);
    }).join();
    OK(cudaStreamEndCapture(s, &graph));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    OK(cudaMalloc(&p, 4));
    OK(cudaFree(p));
    OK(cudaStreamEndCapture(s, &graph));
    OK(cudaGraphDestroy(graph));

    /* A stream that blocks with the default one, which may not be used then. */
    cudaStream_t blocking = new_stream(cudaStreamDefault);
    OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
    CHECK(launch(nullptr, 1, 1, 0, increment, device.p, 1) == cudaErrorStreamCaptureImplicit);
    CHECK(cudaStreamEndCapture(blocking, &graph) == cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamDestroy(blocking));
    OK(cudaStreamDestroy(s));
    cudaGetLastError();
}

static void test_capture_fork(void) {
    cudaStream_t s = new_stream(), other = new_stream();
    cudaEvent_t fork_event = nullptr, join = nullptr;
    OK(cudaEventCreateWithFlags(&fork_event, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    Array<int> device(1);
    int host = -1;
    OK(cudaMemsetAsync(device.p, 0, sizeof(int), s));
    OK(cudaStreamSynchronize(s));
    for (int i = 0; i < 3; i++) {
        bool waits = i > 0, late = i == 1, joined = i == 2; /* late: the branch goes on after what is waited for */
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
        OK(launch(s, 1, 1, 0, increment, device.p, 1));
        OK(cudaEventRecord(fork_event, s));
        OK(cudaStreamWaitEvent(other, fork_event, 0));
        OK(launch(other, 1, 1, 0, increment, device.p, 2));
        OK(cudaEventRecord(join, other));
        if (late) {
            OK(launch(other, 1, 1, 0, increment, device.p, 2));
        }
        if (waits) {
            OK(cudaStreamWaitEvent(s, join, 0));
        }
        OK(cudaMemcpyAsync(&host, device.p, sizeof(int), cudaMemcpyDeviceToHost, s));
        cudaError_t e = cudaStreamEndCapture(s, &graph);
        CHECK(e == (joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined));
        if (e == cudaSuccess) {
            OK(cudaGraphInstantiate(&exec, graph, 0));
            OK(cudaGraphLaunch(exec, other));
            OK(cudaStreamSynchronize(other));
            CHECK(host == 3);
            OK(cudaGraphExecDestroy(exec));
            OK(cudaGraphDestroy(graph));
        }
    }
    CHECK(cudaEventQuery(join) == cudaErrorCapturedEvent);
    OK(cudaEventRecord(join, other));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    CHECK(cudaStreamWaitEvent(s, join, 0) == cudaErrorStreamCaptureIsolation);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated);
    OK(cudaEventDestroy(fork_event));
    OK(cudaEventDestroy(join));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(other));
    cudaGetLastError();
}

/* ---- Errors ------------------------------------------------------------------------------------ */

static void test_launch_errors(void) {
    Array<int> device(1);
    struct {
        dim3 grid, block;
        size_t shared;
        cudaError_t error;
    } cases[] = {
        {{1}, {1024}, 0, cudaSuccess},
        {{1}, {1025}, 0, cudaErrorInvalidConfiguration},
        {{1}, {32, 33}, 0, cudaErrorInvalidConfiguration},
        {{1}, {1, 1, 65}, 0, cudaErrorInvalidConfiguration},
        {{1}, {0}, 0, cudaErrorInvalidConfiguration},
        {{0}, {1}, 0, cudaErrorInvalidConfiguration},
        {{1, 65536}, {1}, 0, cudaErrorInvalidConfiguration},
        {{1, 1, 65536}, {1}, 0, cudaErrorInvalidConfiguration},
        {{1}, {1}, 49152, cudaSuccess},
        {{1}, {1}, 49153, cudaErrorInvalidValue},
    };
    for (auto &c : cases) {
        CHECK(launch(nullptr, c.grid, c.block, c.shared, increment, device.p, 1) == c.error);
        CHECK(cudaPeekAtLastError() == c.error && cudaGetLastError() == c.error);
        CHECK(cudaGetLastError() == cudaSuccess);
    }
    CHECK(strcmp(cudaGetErrorName(cudaErrorInvalidConfiguration), "cudaErrorInvalidConfiguration") == 0);
    CHECK(strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory") == 0);
    CHECK(strcmp(cudaGetErrorName((cudaError_t)555), "unrecognized error code") == 0);
}

static void test_copy_errors(void) {
    Array<signed char> a(100), b(100);
    signed char host[100] = {0};
    OK(cudaMemcpy(a.p, host, 100, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(a.p, host, 101, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(a.p + 1, host, 100, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, a.p, 100, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, host, 100, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(a.p, nullptr, 1, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(a.p, b.p, 100, (cudaMemcpyKind)7) == cudaErrorInvalidMemcpyDirection);
    OK(cudaMemcpy(a.p, b.p, 100, cudaMemcpyDeviceToDevice));
    OK(cudaMemcpy(a.p, nullptr, 0, cudaMemcpyHostToDevice));
    CHECK(cudaMemsetAsync(a.p, 0, 101) == cudaErrorInvalidValue && cudaMemsetAsync(host, 0, 1) != cudaSuccess);

    for (int i = 0; i < 100; i++) {
        host[i] = (signed char)i;
    }
    signed char back[100];
    memset(back, -1, sizeof back);
    OK(cudaMemsetAsync(a.p, 1, 100));
    OK(cudaMemcpy2DAsync(a.p, 10, host, 20, 7, 5, cudaMemcpyHostToDevice));
    OK(cudaMemcpy2DAsync(back, 9, a.p, 10, 8, 5, cudaMemcpyDeviceToHost));
    OK(cudaStreamSynchronize(nullptr));
    for (int i = 0; i < 45; i++) {
        CHECK(back[i] == (i % 9 == 8 ? -1 : i % 9 == 7 ? 1 : i / 9 * 20 + i % 9));
    }
    CHECK(cudaMemcpy2DAsync(a.p, 10, host, 20, 11, 5, cudaMemcpyHostToDevice) == cudaErrorInvalidPitchValue);
    CHECK(cudaMemcpy2DAsync(a.p, 30, host, 20, 11, 5, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy2DAsync(a.p, SIZE_MAX, host, 20, 11, 5, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy2DAsync(a.p, 20, host, SIZE_MAX, 11, 5, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    cudaGetLastError();
}

static void test_memory(void) {
    shim_reset();
    shim_set_memory(1000);
    char *a = nullptr, *b = nullptr, *c = nullptr;
    size_t n_free = 0, total = 0;
    OK(cudaMalloc(&a, 600));
    CHECK((uintptr_t)a % 256 == 0);
    CHECK(cudaMalloc(&b, 401) == cudaErrorMemoryAllocation && b == nullptr);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    CHECK(cudaMalloc(&b, SIZE_MAX) == cudaErrorMemoryAllocation);
    OK(cudaMalloc(&b, 400));
    OK(cudaMemGetInfo(&n_free, &total));
    CHECK(n_free == 0 && total == 1000);
    OK(cudaHostAlloc(&c, 5000, cudaHostAllocDefault));
    CHECK((unsigned char)c[0] == 0xFF && (unsigned char)c[4999] == 0xFF);
    shim_counts counts = shim_get_counts();
    CHECK(counts.live_bytes == 1000 && counts.live_allocations == 2 && counts.live_host_bytes == 5000);
    CHECK(counts.allocations == 2 && counts.host_allocations == 1 && counts.bad_frees == 0);
    OK(cudaFree(a));
    OK(cudaFree(nullptr));
    CHECK(cudaFree(a) == cudaErrorInvalidValue && cudaFree(c) == cudaErrorInvalidValue);
    CHECK(cudaFreeHost(b) == cudaErrorInvalidValue && cudaFree(b + 1) == cudaErrorInvalidValue);
    OK(cudaMemGetInfo(&n_free, &total));
    CHECK(n_free == 600 && shim_get_counts().bad_frees == 4 && shim_get_counts().peak_bytes == 1000);
    unsigned char fresh[400];
    OK(cudaMemcpy(fresh, b, 400, cudaMemcpyDeviceToHost));
    CHECK(fresh[0] == 0xFF && fresh[399] == 0xFF);
    OK(cudaFreeHost(c));
    OK(cudaFree(b));
    CHECK(shim_get_counts().live_allocations == 0 && shim_get_counts().live_host_allocations == 0);
    OK(cudaMalloc(&a, 0));
    CHECK(a == nullptr);
    shim_reset();
}

static void test_devices(void) {
    int n = -1, device = -1, value = -1, least = -1, greatest = -1;
    cudaDeviceProp properties;
    shim_set_processors(7);
    shim_set_capability(7, 5);
    OK(cudaGetDeviceCount(&n));
    OK(cudaGetDevice(&device));
    CHECK(n == 1 && device == 0 && cudaSetDevice(1) == cudaErrorInvalidDevice);
    OK(cudaGetDeviceProperties(&properties, 0));
    CHECK(properties.major == 7 && properties.minor == 5 && properties.multiProcessorCount == 7);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
    CHECK(value == 7);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    CHECK(value == 232448);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMinor, 0));
    CHECK(value == 5 && cudaDeviceGetAttribute(&value, (cudaDeviceAttr)99, 0) == cudaErrorInvalidValue);
    CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 1) == cudaErrorInvalidDevice);
    OK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CHECK(least == 0 && greatest == -5);

    shim_set_devices(2);
    cudaStream_t s = new_stream();
    int *p = nullptr;
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&p, 4));
    CHECK(launch(s, 1, 1, 0, increment, p, 1) == cudaErrorInvalidResourceHandle);
    std::thread([&] { CHECK(cudaGetDevice(&device) == cudaSuccess && device == 0); }).join();
    OK(cudaFree(p));
    shim_reset();

    shim_set_devices(0);
    CHECK(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0);
    CHECK(cudaMalloc(&p, 4) == cudaErrorNoDevice && cudaStreamCreateWithFlags(&s, 0) == cudaErrorNoDevice);
    shim_reset();
}

static void test_faults(void) {
    int *p = nullptr, *q = nullptr;
    shim_fail(2, cudaErrorMemoryAllocation, 0);
    OK(cudaMalloc(&p, 4));
    CHECK(cudaMalloc(&q, 4) == cudaErrorMemoryAllocation && q == nullptr);
    OK(cudaMalloc(&q, 4));
    CHECK(shim_get_counts().n_injected == 1);
    shim_fail(1, cudaErrorMemoryAllocation, 1);
    CHECK(cudaFree(q) == cudaErrorMemoryAllocation && cudaFree(p) == cudaErrorMemoryAllocation);
    CHECK(shim_get_counts().live_allocations == 0 && shim_get_counts().bad_frees == 0);
    shim_fail(0, 0, 0);
    OK(cudaMalloc(&p, 4));
    shim_fail_call(SHIM_cudaLaunchKernelEx, 2, cudaErrorLaunchOutOfResources, 0);
    OK(cudaMemsetAsync(p, 0, 4));
    OK(launch(nullptr, 1, 1, 0, increment, p, 1));
    CHECK(launch(nullptr, 1, 1, 0, increment, p, 1) == cudaErrorLaunchOutOfResources);
    int host = -1;
    OK(cudaMemcpy(&host, p, 4, cudaMemcpyDeviceToHost));
    CHECK(host == 1 && shim_get_counts().calls[SHIM_cudaLaunchKernelEx] == 2);

    cudaStream_t s = new_stream();
    OK(launch(s, 1, 1, 0, increment, p, 1));
    OK(cudaMemcpyAsync(&host, p, 4, cudaMemcpyDeviceToHost, s));
    shim_fail(1, cudaErrorIllegalAddress, 0);
    CHECK(cudaStreamSynchronize(s) == cudaErrorIllegalAddress && host == 1);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaMalloc(&q, 4) == cudaErrorIllegalAddress && cudaStreamQuery(s) == cudaErrorIllegalAddress);
    CHECK(launch(s, 1, 1, 0, increment, p, 1) == cudaErrorIllegalAddress);
    CHECK(cudaStreamDestroy(s) == cudaErrorIllegalAddress && cudaFree(p) == cudaErrorIllegalAddress);
    CHECK(shim_get_counts().live_streams == 0 && shim_get_counts().live_allocations == 0 && host == 1);
    shim_reset();
    CHECK(cudaGetLastError() == cudaSuccess);
    OK(cudaMalloc(&p, 4));
    OK(cudaFree(p));
}

/* ---- Numbers ----------------------------------------------------------------------------------- */

/* The value of a half that is not NaN, from its definition; 65536 stands for infinity. */
static double half_value(unsigned bits) {
    int exponent = (int)(bits >> 10 & 31), mantissa = (int)(bits & 1023);
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return bits >> 15 ? -v : v;
}

/* The nearest half of a magnitude, by bisection in the table of all. */
static unsigned nearest_half(double magnitude) {
    unsigned low = 0, high = 0x7C00;
    if (magnitude >= 65536) {
        return high;
    }
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        (half_value(middle) <= magnitude ? low : high) = middle;
    }
    double below = magnitude - half_value(low), above = half_value(high) - magnitude;
    return below < above || (below == above && low % 2 == 0) ? low : high;
}

static void test_half(void) {
    unsigned wrong = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        float f = __half2float(__ushort_as_half((unsigned short)bits));
        unsigned back = __half_as_ushort(__float2half_rn(f));
        if ((bits & 0x7FFF) > 0x7C00) {
            wrong += f == f || back != 0x7FFF;
        } else {
            bool negative = bits >> 15 != 0, infinite = (bits & 0x7FFF) == 0x7C00;
            float expected = infinite ? (negative ? -INFINITY : INFINITY) : (float)half_value(bits);
            wrong += f != expected || (signbit(f) != 0) != negative || back != bits;
        }
    }
    CHECK(wrong == 0);
    /* Around every half and every middle between two, and across all floats. */
    wrong = 0;
    auto check = [&wrong](float f) {
        unsigned sign = signbit(f) ? 0x8000 : 0;
        wrong += f == f && __half_as_ushort(__float2half_rn(f)) != (sign | nearest_half(fabs((double)f)));
    };
    for (unsigned bits = 0; bits < 0x7C00; bits++) {
        float at = (float)half_value(bits), middle = (float)((half_value(bits) + half_value(bits + 1)) / 2);
        for (float f : {at, middle}) {
            check(f);
            check(-f);
            check(nextafterf(f, 1e9f));
            check(-nextafterf(f, -1e9f));
        }
    }
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += 9973) {
        check(__uint_as_float((unsigned)u));
    }
    CHECK(wrong == 0);
}

static void test_integers(void) {
    uint64_t state = 88172645463325252u;
    auto next = [&state] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return (unsigned)(state >> 16);
    };
    unsigned wrong = 0;
    for (int i = 0; i < 20000; i++) {
        unsigned a = i == 0 ? 0x80808080 : next(), b = i == 0 ? 0x80808080 : next(), c = next();
        int64_t sum = (int)c, usum = c;
        unsigned reversed = 0, permuted = 0;
        int zeros = 0, ones = 0;
        for (int j = 0; j < 4; j++) {
            sum += (int64_t)(signed char)(a >> 8 * j) * (signed char)(b >> 8 * j);
            usum += (int64_t)(unsigned char)(a >> 8 * j) * (unsigned char)(b >> 8 * j);
            unsigned which = c >> 4 * j & 7;
            permuted |= ((which < 4 ? a >> 8 * which : b >> 8 * (which - 4)) & 255) << 8 * j;
        }
        for (int j = 0; j < 32; j++) {
            reversed |= (a >> j & 1) << (31 - j);
            ones += (int)(a >> j & 1);
        }
        while (zeros < 32 && (a >> (31 - zeros) & 1) == 0) {
            zeros++;
        }
        wrong += __dp4a((int)a, (int)b, (int)c) != (int)(unsigned)sum || __dp4a(a, b, c) != (unsigned)usum;
        wrong += __brev(a) != reversed || __popc(a) != ones || __clz((int)a) != zeros;
        wrong += __byte_perm(a, b, c) != permuted;
    }
    CHECK(wrong == 0);
    CHECK(__dp4a(-1, 0x01010101, 10) == 6 && __dp4a(0xFFFFFFFFu, 0x01010101u, 10u) == 1030 && __clz(0) == 32);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(-3.5f) == -4 && __float2int_rn(NAN) == 0);
    CHECK(__float2int_rn(1e10f) == INT32_MAX && __float2int_rn(-1e10f) == INT32_MIN);
    CHECK(__float_as_uint(1.0f) == 0x3F800000 && __int_as_float(0x40000000) == 2 && __float_as_int(-0.0f) == INT32_MIN);
}

static void test_rounding(void) {
    volatile float a = 1 + 0x1p-12f, b = 1 - 0x1p-12f, c = -1; /* a * b = 1 - 2^-24, which rounds to 1 - 2^-24 */
    volatile float d = 1 + 0x1p-13f;                           /* d * d = 1 + 2^-12 + 2^-26 */
    CHECK(__fadd_rn(__fmul_rn(a, b), c) == -0x1p-24f);
    CHECK(__fadd_rn(__fmul_rn(d, d), c) == 0x1p-12f && __fmaf_rn(d, d, c) == 0x1p-12f + 0x1p-26f);
    CHECK(__fsub_rn(__fmul_rn(d, d), -c) == 0x1p-12f && fmaf(d, d, c) == 0x1p-12f + 0x1p-26f);
    CHECK(__fdiv_rn(1, 3) == 0x1.555556p-2f && __fsqrt_rn(2) == 0x1.6a09e6p+0f && rintf(2.5f) == 2);
    CHECK(min(1, 2) == 1 && max(1u, 2u) == 2 && max(1.0f, NAN) == 1);
    float4 v = make_float4(1, 2, 3, 4);
    CHECK(__ldg(&v).w == 4 && __ldcs(&v).x == 1 && alignof(float4) == 16 && alignof(uint2) == 8 && alignof(int4) == 16);
}

/* ---- Host threads, speed ----------------------------------------------------------------------- */

/* What is wrong is counted; CHECK is for one thread. */
static void one_of_many(int salt, unsigned *wrong) {
    cudaStream_t s = nullptr;
    float *in = nullptr, *out = nullptr;
    std::vector<float> host(1000, (float)salt), sums(10);
    *wrong += cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) != cudaSuccess;
    *wrong += cudaMalloc(&in, 4000) != cudaSuccess || cudaMalloc(&out, 40) != cudaSuccess;
    for (int i = 0; i < 20; i++) {
        cudaMemcpyAsync(in, host.data(), 4000, cudaMemcpyHostToDevice, s);
        launch(s, 10, 128, 0, block_sums, (const float *)in, out, 1000);
        cudaMemcpyAsync(sums.data(), out, 40, cudaMemcpyDeviceToHost, s);
        *wrong += cudaStreamSynchronize(s) != cudaSuccess;
        *wrong += sums[0] != (float)(128 * salt) || sums[7] != (float)(104 * salt) || sums[8] != 0;
    }
    *wrong += cudaFree(in) != cudaSuccess || cudaFree(out) != cudaSuccess || cudaStreamDestroy(s) != cudaSuccess;
}

static void test_host_threads(void) {
    std::vector<std::thread> hosts;
    unsigned wrong[4] = {0};
    for (int i = 0; i < 4; i++) {
        hosts.emplace_back(one_of_many, i + 1, &wrong[i]);
    }
    for (int i = 0; i < 4; i++) {
        hosts[(size_t)i].join();
        CHECK(wrong[i] == 0);
    }
}

__global__ static void no_barrier(float *out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = (float)threadIdx.x;
}

static void print_speed(void) {
    const int n = 20;
    Array<float> in(12800), out(12800);
    double best[2] = {1e9, 1e9};
    for (int i = 0; i < 2 * n; i++) {
        auto begin = std::chrono::steady_clock::now();
        if (i % 2 == 0) {
            launch(nullptr, 100, 128, 0, block_sums, in.p, out.p, 12800);
        } else {
            launch(nullptr, 100, 128, 0, no_barrier, out.p);
        }
        OK(cudaDeviceSynchronize());
        std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
        best[i % 2] = took.count() < best[i % 2] ? took.count() : best[i % 2];
    }
    printf("100 blocks of 128 threads: %.2f ms with 5 to 10 shuffles and 2 barriers each, %.2f ms without\n", best[0],
           best[1]);
}

int main(void) {
    test_reduction();
    test_shuffles();
    test_shuffle_types();
    test_votes();
    test_shapes();
    test_dynamic_shared();
    test_atomics();
    test_last_block();
    test_products();
    check_halves<false>();
    check_halves<true>();
    test_tiles();
    test_shared_copies();
    test_following();
    if (!TSAN) {
        test_order();
        test_kernel_faults();
    }
    if (ASAN) {
        test_bounds();
    }
    if (TSAN) {
        test_races();
    }
    test_late();
    test_events();
    test_capture();
    test_capture_refuses();
    test_capture_fork();
    test_launch_errors();
    test_copy_errors();
    test_memory();
    test_devices();
    test_faults();
    test_half();
    test_integers();
    test_rounding();
    test_host_threads();
    print_speed();
    CHECK(shim_get_counts().live_allocations == 0 && shim_get_counts().live_streams == 0);
    return check_finish();
}
