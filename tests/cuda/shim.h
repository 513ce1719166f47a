/* What a test asks of the CUDA runtime in this directory beyond what the real one offers: another device, an order in
 * which threads run, calls that fail, and counts of everything. Usable from C. Every function may be called from any
 * thread, but not from a kernel. */
#ifndef SHIM_H
#define SHIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The runtime's calls that count and that can be made to fail. */
#define SHIM_CALLS(X)                                                                                                  \
    X(cudaGetDeviceCount) X(cudaSetDevice) X(cudaGetDevice) X(cudaDeviceGetAttribute) X(cudaGetDeviceProperties)       \
    X(cudaDriverGetVersion) X(cudaRuntimeGetVersion) X(cudaDeviceSynchronize) X(cudaMemGetInfo)                        \
    X(cudaMalloc) X(cudaFree) X(cudaHostAlloc) X(cudaFreeHost) X(cudaHostGetDevicePointer)                             \
    X(cudaMemcpy) X(cudaMemcpyAsync) X(cudaMemcpy2DAsync) X(cudaMemsetAsync)                                           \
    X(cudaDeviceGetStreamPriorityRange) X(cudaStreamCreateWithFlags) X(cudaStreamCreateWithPriority)                   \
    X(cudaStreamDestroy) X(cudaStreamSynchronize) X(cudaStreamQuery) X(cudaStreamWaitEvent)                            \
    X(cudaEventCreateWithFlags) X(cudaEventDestroy) X(cudaEventRecord) X(cudaEventSynchronize) X(cudaEventQuery)       \
    X(cudaEventElapsedTime)                                                                                            \
    X(cudaStreamBeginCapture) X(cudaStreamEndCapture) X(cudaStreamIsCapturing)                                         \
    X(cudaGraphInstantiate) X(cudaGraphExecUpdate) X(cudaGraphUpload) X(cudaGraphLaunch)                               \
    X(cudaGraphDestroy) X(cudaGraphExecDestroy)                                                                        \
    X(cudaFuncSetAttribute) X(cudaFuncGetAttributes) X(cudaLaunchKernelEx)

typedef enum shim_call {
#define SHIM_CALL(name) SHIM_##name,
    SHIM_CALLS(SHIM_CALL)
#undef SHIM_CALL
    SHIM_N_CALLS
} shim_call;

typedef struct shim_counts {
    /* Since shim_reset or shim_clear_counts; work is counted when it is handed in. */
    uint64_t n_calls, calls[SHIM_N_CALLS];
    uint64_t n_injected;                        /* calls that failed because of shim_fail, or of a sticky error after */
    uint64_t kernels, graph_kernels;            /* launches: direct ones, those of graph launches */
    uint64_t graph_launches;
    uint64_t copies_in, bytes_in;               /* host to device */
    uint64_t copies_out, bytes_out;             /* device to host */
    uint64_t copies_on, bytes_on;               /* device to device */
    uint64_t fills, bytes_filled;
    uint64_t allocations, host_allocations;
    uint64_t synchronisations;                  /* of a stream, an event or the device, and copies that are not async */
    uint64_t bad_frees;                         /* of pointers and handles that are not live */
    uint64_t threads;                           /* that ran to their end */
    uint64_t products;                          /* of matrices, by warps on tensor cores */
    uint64_t early;                             /* launches, also captured ones, that may begin before those in front
                                                   of them are over */
    /* Now: what a program must have given back when it is done. */
    uint64_t live_bytes, live_allocations, live_host_bytes, live_host_allocations;
    uint64_t live_streams, live_events, live_graphs, live_execs;
    uint64_t peak_bytes;                        /* of live_bytes */
} shim_counts;

shim_counts shim_get_counts(void);
void shim_clear_counts(void); /* the live ones stay */

/* Everything as at the start of the program: memory and handles that live are released, sticky errors forgotten, counts
 * 0, settings at their defaults. */
void shim_reset(void);

/* The n-th call from now on, n >= 1, fails with a cudaError_t and does nothing; with forever, all after it do, too.
 * n = 0 disarms. Calls that release something release it all the same. An error that means a dead context, such as
 * cudaErrorIllegalAddress, is sticky: what is queued is dropped, and every later call returns it until shim_reset. */
void shim_fail(uint64_t n, int error, int forever);
/* As shim_fail, but only calls of one kind are counted. */
void shim_fail_call(shim_call kind, uint64_t n, int error, int forever);

void shim_set_devices(int n);                        /* 1; 0 is a machine without a device */
void shim_set_memory(uint64_t bytes);                /* of each device: 1 GiB */
void shim_set_processors(int n);                     /* multiprocessors: 4 */
void shim_set_capability(int major, int minor);      /* 9.0 */
void shim_set_compiled(int version);                 /* for what kernels are: 80 is 8.0; 0: for the device, whatever */

/* The order in which the blocks of a grid and the threads of a block get to run: 0 ascending, 1 descending, any other
 * number is the seed of a random one. A result that depends on it has a race. */
void shim_set_order(uint64_t seed);

#ifdef __cplusplus
}
#endif

#endif
