/* The CUDA side of folollm: what device.h promises, over the CUDA runtime. State lies in the fl_device alone; whatever
 * device the host had made current is current again when a call returns. */
#include "ops/cuda_flash.cuh"
#include "ops/cuda_sampling.cuh"
#include "ops/cuda_tensor.cuh"

namespace {

/* ---- The device and its memory -- */

const char *fl_error_text(int error) {
    return cudaGetErrorString((cudaError_t)error);
}

int fl_count(int *n_devices) {
    return fl_said(cudaGetDeviceCount(n_devices));
}

int fl_open(fl_device *d, int ordinal, void *stream) {
    int least, greatest;
    d->ordinal = ordinal;
    d->stream = (cudaStream_t)stream;
    fl_current current(d);
    cudaError_t error = cudaSuccess;
    if (stream == NULL) {
        error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
        if (error == cudaSuccess) {
            error = cudaStreamCreateWithPriority(&d->stream, cudaStreamNonBlocking, least);
        }
        d->owns_stream = error == cudaSuccess;
    }
    for (size_t i = 0; i < FL_DEVICE_MARKS && error == cudaSuccess; i++) {
        error = cudaEventCreateWithFlags(&d->marks[i], cudaEventDisableTiming);
    }
    return fl_said(error);
}

void fl_close(fl_device *d) {
    fl_current current(d);
    for (size_t i = 0; i < FL_DEVICE_STEPS; i++) {
        if (d->steps[i] != NULL) {
            cudaGraphExecDestroy(d->steps[i]);
        }
    }
    for (size_t i = 0; i < FL_DEVICE_MARKS; i++) {
        if (d->marks[i] != NULL) {
            cudaEventDestroy(d->marks[i]);
        }
    }
    if (d->owns_stream) {
        cudaStreamDestroy(d->stream);
    }
}

int fl_about(fl_device *d, fl_device_info *info) {
    fl_current current(d);
    cudaDeviceProp p;
    cudaFuncAttributes compiled; /* for an older device, kernels lack what this one could do */
    size_t n_free, total;
    cudaError_t error = cudaGetDeviceProperties(&p, d->ordinal);
    if (error == cudaSuccess) {
        error = cudaMemGetInfo(&n_free, &total);
    }
    if (error == cudaSuccess) {
        error = cudaFuncGetAttributes(&compiled, (const void *)fl_embed_kernel);
    }
    if (error != cudaSuccess) {
        return fl_said(error);
    }
    for (size_t i = 0; i < sizeof info->name; i++) {
        info->name[i] = i + 1 < sizeof info->name ? p.name[i] : 0;
    }
    info->total_bytes = total;
    info->free_bytes = n_free;
    info->shared_bytes = p.sharedMemPerBlockOptin;
    info->multiplies_bf16 = compiled.ptxVersion >= 80;
    d->n_multiprocessors = p.multiProcessorCount;
    d->follows = compiled.ptxVersion >= 90 && CUDART_VERSION >= 12030; /* before, no graph had such launches */
    return 0;
}

int fl_alloc(fl_device *d, size_t n_bytes, void **out) {
    fl_current current(d);
    return fl_said(cudaMalloc(out, n_bytes));
}

void fl_release(fl_device *d, void *p) {
    fl_current current(d);
    cudaFree(p);
}

int fl_alloc_host(fl_device *d, size_t n_bytes, void **out) {
    fl_current current(d);
    return fl_said(cudaHostAlloc(out, n_bytes, cudaHostAllocDefault));
}

void fl_release_host(fl_device *d, void *p) {
    fl_current current(d);
    cudaFreeHost(p);
}

int fl_upload(fl_device *d, void *to, const void *from, size_t n_bytes) {
    fl_current current(d);
    return fl_said(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, d->stream));
}

int fl_download(fl_device *d, void *to, const void *from, size_t n_bytes) {
    fl_current current(d);
    return fl_said(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, d->stream));
}

int fl_copy(fl_device *d, void *to, const void *from, size_t pitch, size_t width, size_t height) {
    fl_current current(d);
    return fl_said(cudaMemcpy2DAsync(to, pitch, from, pitch, width, height, cudaMemcpyDeviceToDevice, d->stream));
}

int fl_wait(fl_device *d) {
    fl_current current(d);
    return fl_said(cudaStreamSynchronize(d->stream));
}

int fl_mark(fl_device *d, size_t which) {
    fl_current current(d);
    return fl_said(cudaEventRecord(d->marks[which], d->stream));
}

int fl_reach(fl_device *d, size_t which) {
    fl_current current(d);
    return fl_said(cudaEventSynchronize(d->marks[which]));
}

/* ---- Steps -- */

int fl_record(fl_device *d) {
    fl_current current(d);
    return fl_said(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
}

int fl_recorded(fl_device *d, size_t step) {
    fl_current current(d);
    cudaGraph_t graph = NULL;
    cudaError_t error = cudaStreamEndCapture(d->stream, &graph);
    if (d->steps[step] != NULL) { /* recorded before, but something else of it failed */
        cudaGraphExecDestroy(d->steps[step]);
        d->steps[step] = NULL;
    }
    if (error == cudaSuccess) {
        error = cudaGraphInstantiate(&d->steps[step], graph, 0);
    }
    if (graph != NULL) {
        cudaGraphDestroy(graph);
    }
    return fl_said(error);
}

int fl_replay(fl_device *d, size_t step) {
    fl_current current(d);
    return fl_said(cudaGraphLaunch(d->steps[step], d->stream));
}

} /* namespace */

extern "C" const fl_device_api *folollm_kernels(void) {
    static const fl_device_api api = {
        FOLOLLM_SOURCE_HASH, sizeof(fl_device), fl_error_text, fl_count, fl_open, fl_close, fl_about, fl_attend_bytes,
        fl_product_bytes,
        fl_alloc, fl_release, fl_alloc_host, fl_release_host, fl_upload, fl_download, fl_copy, fl_wait,
        fl_mark, fl_reach,
        fl_pack, fl_embed, fl_rows, fl_multiply, fl_combine, fl_adapt, fl_angles, fl_rope_store, fl_attend_either,
        fl_choose,
        fl_record, fl_recorded, fl_replay,
    };
    return &api;
}
