/* folollm.c as it ships, but for what is static in it: that is visible to the tests, which are linked with it. */
#define FL_LOCAL
#include "../folollm.c"

#include "inside.h"

const uint32_t inside_snapshot_version = FL_SNAPSHOT_VERSION, inside_shards_max = FL_SHARDS_MAX;
const uint32_t inside_gguf_depth = FL_GGUF_DEPTH, inside_gguf_n_dtypes = FL_COUNT(fl_gguf_dtypes);

inside_dtype inside_gguf_dtype(uint32_t number) {
    inside_dtype d = {fl_gguf_dtypes[number].name, fl_gguf_dtypes[number].numbers, fl_gguf_dtypes[number].bytes,
                      fl_gguf_dtypes[number].type};
    return d;
}

uint8_t inside_gguf_bytes(fl_gguf_type type) {
    return fl_gguf_types[type].bytes;
}

uint32_t inside_pool_threads(const fl_pool *pool) {
    return pool->n_threads;
}

size_t inside_tables(const fl_kernels *tables[INSIDE_TABLES]) {
    size_t n = 0;
    tables[n++] = &fl_kernels_scalar;
#if defined(__x86_64__)
    fl_cpu cpu = fl_cpu_features();
    if (cpu.avx2) {
        tables[n++] = &fl_kernels_avx2;
    }
#if defined(FL_HAS_AVXVNNI)
    if (cpu.avxvnni) {
        tables[n++] = &fl_kernels_avxvnni;
    }
#endif
    if (cpu.avx512) {
        tables[n++] = &fl_kernels_avx512;
    }
    if (cpu.vnni) {
        tables[n++] = &fl_kernels_vnni;
    }
#endif
#if defined(__aarch64__)
    tables[n++] = &fl_kernels_neon;
    if (fl_cpu_features().dotprod) {
        tables[n++] = &fl_kernels_dotprod;
    }
    if (fl_cpu_features().i8mm) {
        tables[n++] = &fl_kernels_i8mm;
    }
#endif
    return n;
}

uint64_t inside_checksum(const uint8_t *p, size_t n) {
    return fl_checksum(p, n);
}

double inside_uniform(uint64_t seed, uint64_t position) {
    return fl_uniform(seed, position);
}

size_t inside_rotation(size_t head_dim) {
    return fl_rotation(head_dim);
}

void inside_pack_row(const fl_kv *kv, bool is_v, const int8_t *q, float scale, uint8_t *row) {
    fl_pack_row(kv, is_v, q, scale, row);
}

void inside_open_rows(const fl_cpu_backend *cpu, const fl_part *part, size_t n_cols, size_t first, size_t n,
                      fl_slab *slab, float *y, size_t stride) {
    fl_open_rows(cpu, part, n_cols, first, n, slab, y, stride);
}
