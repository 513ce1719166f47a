/* limits.cu - what a CUDA device and its libraries can do at best, to hold folollm_kernels.cu against: reading, copies
 * from the host, what a kernel of a graph costs, a barrier of all multiprocessors, a round trip, and products of
 * cuBLASLt in the shapes of Qwen3-0.6B and 8B.
 *
 *     nvcc -O3 -arch=native -o limits limits.cu -lcublasLt
 *     ./limits [REPEATS]
 *
 * Every row is the median of REPEATS (20) measurements by the device's own events, the round trip by the host's clock.
 * Products are bf16 with sums and results of float, each with the algorithm that cuBLASLt names first; a repeat runs
 * through matrices of a gigabyte, so that no cache holds them. */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NODES 1000
#define GIB ((size_t)1 << 30)
#define WORKSPACE ((size_t)64 << 20)

static int repeats = 20;
static cudaStream_t stream;
static cudaEvent_t before, after;

static void must(cudaError_t error) {
    if (error != cudaSuccess) {
        fprintf(stderr, "limits: %s\n", cudaGetErrorString(error));
        exit(1);
    }
}

static void must(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) {
        fprintf(stderr, "limits: %s\n", cublasLtGetStatusString(status));
        exit(1);
    }
}

template <class T> static T *room(size_t n) {
    T *p = NULL;
    must(cudaMalloc(&p, n * sizeof *p));
    return p;
}

static int by_size(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static double median(double *times) {
    qsort(times, (size_t)repeats, sizeof *times, by_size);
    return times[repeats / 2];
}

/* Microseconds of what work() hands to the stream; the first two times do not count. */
template <class F> static double measure(F work) {
    double times[1000];
    for (int i = -2; i < repeats; i++) {
        float ms;
        must(cudaEventRecord(before, stream));
        work();
        must(cudaEventRecord(after, stream));
        must(cudaEventSynchronize(after));
        must(cudaEventElapsedTime(&ms, before, after));
        times[i < 0 ? 0 : i] = (double)ms * 1e3;
    }
    return median(times);
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* ---- Memory -- */

__global__ void read_all(const uint4 *from, size_t n, unsigned *out) {
    unsigned sum = 0;
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        uint4 v = __ldcs(&from[i]);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 1) { /* never: it holds zeros; but the compiler does not know */
        *out = sum;
    }
}

static void memory(int processors) {
    size_t n = 4 * GIB / sizeof(uint4);
    uint4 *there = room<uint4>(n);
    unsigned *out = room<unsigned>(1);
    must(cudaMemset(there, 0, n * sizeof *there));
    for (int blocks = 1; blocks <= 16; blocks *= 2) {
        double us = measure([&] { read_all<<<processors * blocks, 512, 0, stream>>>(there, n, out); });
        printf("| reading 4 GiB, %d x 512 threads for a multiprocessor | %.0f us | %.0f GB/s |\n", blocks, us,
               4.0 * GIB / us * 1e-3);
    }
    void *here = NULL, *locked = NULL;
    must(cudaHostAlloc(&locked, GIB / 4, cudaHostAllocDefault));
    here = calloc(1, GIB / 4);
    double us = measure([&] { must(cudaMemcpyAsync(there, here, GIB / 4, cudaMemcpyHostToDevice, stream)); });
    printf("| 256 MiB from the host | %.0f us | %.1f GB/s |\n", us, 0.25 * GIB / us * 1e-3);
    us = measure([&] { must(cudaMemcpyAsync(there, locked, GIB / 4, cudaMemcpyHostToDevice, stream)); });
    printf("| the same, page-locked | %.0f us | %.1f GB/s |\n", us, 0.25 * GIB / us * 1e-3);
    free(here);
    must(cudaFreeHost(locked));
    must(cudaFree(there));
    must(cudaFree(out));
}

/* ---- Kernels that do nothing -- */

__global__ void nothing() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static void launch(unsigned blocks, bool early) {
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(blocks, 1, 1);
    how.blockDim = dim3(256, 1, 1);
    how.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    how.attrs = &attribute;
    how.numAttrs = early ? 1 : 0;
    must(cudaLaunchKernelEx(&how, nothing));
}

template <class F> static cudaGraphExec_t record(F work) {
    cudaGraph_t graph;
    cudaGraphExec_t step;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work();
    must(cudaStreamEndCapture(stream, &graph));
    must(cudaGraphInstantiate(&step, graph, 0));
    must(cudaGraphDestroy(graph));
    return step;
}

static void launches(unsigned blocks, bool early) {
    for (int i = 0; i < NODES; i++) {
        launch(blocks, early);
    }
}

static void nodes(int processors, bool can_be_early) {
    for (int wide = 0; wide < 2; wide++) {
        unsigned blocks = wide ? (unsigned)processors : 1;
        for (int early = 0; early <= can_be_early; early++) {
            double us = measure([&] { launches(blocks, early); });
            printf("| a kernel of %u blocks%s, launched | %.2f us | |\n", blocks, early ? ", early" : "", us / NODES);
            cudaGraphExec_t step = record([&] { launches(blocks, early); });
            us = measure([&] { must(cudaGraphLaunch(step, stream)); });
            printf("| the same in a graph | %.2f us | |\n", us / NODES);
            must(cudaGraphExecDestroy(step));
        }
    }
}

/* All blocks wait for one another, NODES times: what a step in one kernel would pay between two products. */
__global__ void barriers(unsigned *count) {
    for (unsigned i = 1; i <= NODES; i++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(count, 1);
            while (*(volatile unsigned *)count < i * gridDim.x) {
            }
            __threadfence();
        }
        __syncthreads();
    }
}

static void barrier(int processors) {
    unsigned *count = room<unsigned>(1);
    void *arguments[] = {&count};
    double us = measure([&] {
        must(cudaMemsetAsync(count, 0, sizeof *count, stream));
        must(cudaLaunchCooperativeKernel((void *)barriers, dim3((unsigned)processors), dim3(256), arguments, 0,
                                         stream));
    });
    printf("| a barrier of all multiprocessors | %.2f us | |\n", us / NODES);
    must(cudaFree(count));
}

/* What lies between two steps if the host waits for the first: 4 KiB there, a graph, 40 bytes back. */
static void round_trip(void) {
    cudaGraphExec_t step = record([&] { launch(1, false); });
    char *there = room<char>(4096), *here = NULL;
    double times[1000];
    must(cudaHostAlloc((void **)&here, 8192, cudaHostAllocDefault));
    for (int i = -2; i < repeats; i++) {
        double from = now_us();
        for (int k = 0; k < 100; k++) {
            must(cudaMemcpyAsync(there, here, 4096, cudaMemcpyHostToDevice, stream));
            must(cudaGraphLaunch(step, stream));
            must(cudaMemcpyAsync(here + 4096, there, 40, cudaMemcpyDeviceToHost, stream));
            must(cudaEventRecord(after, stream));
            must(cudaEventSynchronize(after));
        }
        times[i < 0 ? 0 : i] = (now_us() - from) / 100;
    }
    printf("| a step of one kernel that the host waits for | %.2f us | |\n", median(times));
    must(cudaGraphExecDestroy(step));
    must(cudaFreeHost(here));
    must(cudaFree(there));
}

/* ---- cuBLASLt -- */

typedef struct product {
    cublasLtMatmulDesc_t how;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
} product;

/* y (rows, n) = x (rows, k) w^T, w (n, k): as cuBLAS has it, columns first, y^T = w x^T. False: it knows no way. */
static bool make_product(cublasLtHandle_t handle, int rows, int n, int k, product *p) {
    cublasOperation_t turned = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    size_t workspace = WORKSPACE;
    int n_results = 0;
    must(cublasLtMatmulDescCreate(&p->how, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    must(cublasLtMatmulDescSetAttribute(p->how, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned));
    must(cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, (uint64_t)k, (uint64_t)n, k));
    must(cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, (uint64_t)k, (uint64_t)rows, k));
    must(cublasLtMatrixLayoutCreate(&p->y, CUDA_R_32F, (uint64_t)n, (uint64_t)rows, n));
    must(cublasLtMatmulPreferenceCreate(&preference));
    must(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                              sizeof workspace));
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, p->how, p->w, p->x, p->y, p->y, preference, 1,
                                                           &result, &n_results);
    must(cublasLtMatmulPreferenceDestroy(preference));
    p->algorithm = result.algo;
    return status == CUBLAS_STATUS_SUCCESS && n_results > 0;
}

static void forget(product *p) {
    must(cublasLtMatrixLayoutDestroy(p->w));
    must(cublasLtMatrixLayoutDestroy(p->x));
    must(cublasLtMatrixLayoutDestroy(p->y));
    must(cublasLtMatmulDescDestroy(p->how));
}

static void products(void) {
    static const struct {
        const char *name;
        int n, k;
    } shapes[] = {{"0.6B q k v", 4096, 1024},   {"0.6B o", 1024, 2048},       {"0.6B gate up", 6144, 1024},
                  {"0.6B down", 1024, 3072},    {"0.6B head", 151936, 1024},  {"8B q k v", 6144, 4096},
                  {"8B o", 4096, 4096},         {"8B gate up", 24576, 4096},  {"8B down", 4096, 12288}};
    static const int rows[] = {1, 2, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192};
    cublasLtHandle_t handle;
    must(cublasLtCreate(&handle));
    __nv_bfloat16 *w = room<__nv_bfloat16>(GIB / 2), *x = room<__nv_bfloat16>((size_t)8192 * 12288);
    float *y = room<float>((size_t)8192 * 24576);
    char *workspace = room<char>(WORKSPACE);
    must(cudaMemset(w, 0, GIB));
    must(cudaMemset(x, 0, (size_t)8192 * 12288 * sizeof *x));
    for (const auto &shape : shapes) {
        for (int m : rows) {
            size_t of_w = (size_t)shape.n * (size_t)shape.k, n_matrices = GIB / 2 / of_w;
            n_matrices = n_matrices < 64 ? n_matrices : 64;
            product p;
            if ((size_t)m * (size_t)shape.n > (size_t)8192 * 24576 || !make_product(handle, m, shape.n, shape.k, &p)) {
                continue;
            }
            const float one = 1, zero = 0;
            double us = measure([&] {
                for (size_t i = 0; i < n_matrices; i++) {
                    must(cublasLtMatmul(handle, p.how, &one, w + i * of_w, p.w, x, p.x, &zero, y, p.y, y, p.y,
                                        &p.algorithm, workspace, WORKSPACE, stream));
                }
            });
            us /= (double)n_matrices;
            printf("| cuBLASLt, %s, %d rows | %.2f us | %.0f GB/s, %.1f TFLOP/s |\n", shape.name, m, us,
                   2.0 * (double)of_w / us * 1e-3, 2.0 * (double)of_w * m / us * 1e-6);
            fflush(stdout);
            forget(&p);
        }
    }
    must(cublasLtDestroy(handle));
    must(cudaFree(w));
    must(cudaFree(x));
    must(cudaFree(y));
    must(cudaFree(workspace));
}

int main(int argc, char **argv) {
    cudaDeviceProp about;
    if (argc > 1) {
        repeats = atoi(argv[1]);
    }
    if (repeats < 1 || repeats > 1000) {
        fprintf(stderr, "REPEATS: 1 to 1000\n");
        return 2;
    }
    must(cudaGetDeviceProperties(&about, 0));
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    must(cudaEventCreate(&before));
    must(cudaEventCreate(&after));
    printf("%s\n\n| what | time | rate |\n|---|---:|---:|\n", about.name);
    memory(about.multiProcessorCount);
    nodes(about.multiProcessorCount, about.major >= 9);
    barrier(about.multiProcessorCount);
    round_trip();
    products();
    return 0;
}
