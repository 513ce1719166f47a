/* The operating system: files, threads, processor features. The only place that knows which one it is. */
#ifndef FL_OS_H
#define FL_OS_H

#include "base/memory.h"

/* ---- Files, the host's or the system's -- */

typedef struct fl_file {
    fl_memory *memory;
    char *path; /* owned, path_bytes */
    size_t path_bytes;
    uint64_t size;
    void *host_file;   /* of the host's hooks */
    intptr_t os_file;  /* descriptor or handle, -1: closed */
    const uint8_t *map; /* the whole file, or NULL */
    bool os_mapped;
} fl_file;

/* Open directory/name; name "" opens directory itself as a file. FOLOLLM_E_IO if it is not there; with `found` the
 * absence is no error: *found becomes false and the file stays closed. */
FL_LOCAL folollm_status fl_file_open(fl_memory *m, fl_file *f, const char *directory, const char *name, bool *found,
                                     folollm_error *error);
FL_LOCAL folollm_status fl_file_read(fl_file *f, uint64_t offset, void *out, size_t n_bytes, folollm_error *error);

/* Make f->map point to the content, if the host or the system can. */
FL_LOCAL bool fl_file_map(fl_file *f);

/* These bytes of the map were read and will not be soon: the process need not be charged for them. */
FL_LOCAL void fl_file_forget(const fl_file *f, uint64_t offset, uint64_t n_bytes);

FL_LOCAL void fl_file_close(fl_file *f);

/* Read a file of at most max_bytes whole into *text (owned by the caller, freed with fl_free and text->n). */
FL_LOCAL folollm_status fl_file_slurp(fl_memory *m, const char *directory, const char *name, size_t max_bytes,
                                      bool *found, fl_str *text, folollm_error *error);

/* ---- Memory and threads -- */

/* This memory is used for long, and from end to end: the system may lay it on huge pages, when it has the time. */
FL_LOCAL void fl_want_huge_pages(void *p, size_t n_bytes);

FL_LOCAL uint32_t fl_n_cores(void);

/* Hint that this is a wait in a loop. */
FL_INLINE void fl_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#define fl_atomic_load(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define fl_atomic_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define fl_atomic_add(p, v) __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)
#define fl_atomic_and(p, v) __atomic_fetch_and(p, v, __ATOMIC_ACQ_REL)
/* *p = wanted if it is *seen; else *seen = *p and false. */
#define fl_atomic_swap_if(p, seen, wanted) \
    __atomic_compare_exchange_n(p, seen, wanted, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* ---- Processor -- */

typedef struct fl_cpu {
    bool avx2;   /* AVX2, FMA, F16C, and the system saves the registers */
    bool avxvnni; /* AVX-VNNI beside all of that */
    bool avx512; /* F, BW, DQ, VL beside all of that */
    bool vnni;   /* AVX-512 VNNI beside all of that */
    bool dotprod; /* of 64-bit ARM: SDOT */
    bool i8mm;    /* USMMLA beside that */
    bool prefetch; /* memory is read faster when told ahead of it */
    bool streams;  /* but for a single stream, which it follows by itself better than it can be told to: AMD's */
} fl_cpu;

FL_LOCAL fl_cpu fl_cpu_features(void);

#endif
