/* The tables of kernels, for tests that compare them; behind folollm.c. */
#ifndef TABLES_H
#define TABLES_H

/* The tables of this processor; those of AVX2 and AVX-512 are two. */
static size_t all_tables(const fl_kernels *tables[5]) {
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
#endif
    return n;
}

#endif
