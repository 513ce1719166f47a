/* The CUDA side of folollm. It carries the hash of the sources it was made from, and says which of the operations of
 * ops.h it computes: none yet, so folollm.c runs on the CPU. */
#include <cuda_runtime.h>

extern "C" {

/* Equal to folollm_source_hash() when both files come from the same sources. */
const char *folollm_kernels_source_hash(void) {
    return FOLOLLM_SOURCE_HASH;
}

/* Operations of ops.h that run on the device. */
int folollm_kernels_n_ops(void) {
    return 0;
}

/* Devices that the CUDA runtime can reach; 0, too, when there is no driver. */
int folollm_kernels_n_devices(void) {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

} /* extern "C" */
