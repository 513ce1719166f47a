/* What the harnesses share: a host whose files are pieces of the fuzzer's input, and whose memory is counted. What a
 * harness finds wrong ends it by a trap, which libFuzzer reports together with the input.
 *
 * An execution is: fuzz_begin, fuzz_file for each file, calls of the library, fuzz_end. */
#ifndef FUZZ_H
#define FUZZ_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

/* Not one of the readers depends on the processor, and to instrument the unrolled kernels takes minutes: these are the
 * ones in plain C, behind the system's headers, which do depend on it. Nor is compiled what no harness calls. */
#undef __x86_64__
#define FOLOLLM_API static
#include "../../folollm.c"

#define FUZZ_FILES 4
#define FUZZ_BLOCK 16 /* bytes in front of a block: its size */
#define FUZZ_KIB ((size_t)1 << 10)

typedef struct fuzz_bytes {
    const uint8_t *at;
    size_t n;
} fuzz_bytes;

typedef struct fuzz_host {
    folollm_host hooks;
    uint64_t live, kept, limit; /* bytes: now, between executions, at most */
    size_t n_open, n_kept_open, n_files;
    struct {
        const char *path;
        fuzz_bytes bytes;
    } files[FUZZ_FILES];
} fuzz_host;

static fuzz_host fuzz;
static folollm_error fuzz_error;

/* Freed blocks are kept apart for a while, but not so many that they leave the cache. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "quarantine_size_mb=2:malloc_context_size=6:detect_stack_use_after_return=0";
}

static void fuzz_check(bool ok, const char *what, int line) {
    if (!ok) {
        fprintf(stderr, "\nfuzz: line %d: %s; %llu bytes live of %llu, status %d \"%s\"\n", line, what,
                (unsigned long long)fuzz.live, (unsigned long long)fuzz.limit, (int)fuzz_error.status, fuzz_error.text);
        __builtin_trap();
    }
}

#define FUZZ_CHECK(condition) fuzz_check((condition), #condition, __LINE__)

/* ---- Memory: every resize moves, every size must be the one that was asked for -- */

static void *fuzz_realloc(void *user, void *p, size_t old_size, size_t new_size) {
    uint8_t *old = p != NULL ? (uint8_t *)p - FUZZ_BLOCK : NULL, *block = NULL;
    size_t was = 0;
    (void)user;
    if (old != NULL) {
        memcpy(&was, old, sizeof was);
    }
    FUZZ_CHECK(was == old_size && (old != NULL || new_size > 0));
    fuzz.live -= was;
    FUZZ_CHECK(new_size <= fuzz.limit && fuzz.live <= fuzz.limit - new_size);
    fuzz.live += new_size;
    if (new_size > 0) {
        block = malloc(new_size + FUZZ_BLOCK);
        FUZZ_CHECK(block != NULL);
        memcpy(block, &new_size, sizeof new_size);
        if (old != NULL) {
            memcpy(block + FUZZ_BLOCK, p, was < new_size ? was : new_size);
        }
    }
    free(old);
    return block != NULL ? block + FUZZ_BLOCK : NULL;
}

/* ---- Files -- */

static void *fuzz_open(void *user, const char *path) {
    (void)user;
    for (size_t i = 0; i < fuzz.n_files; i++) {
        if (strcmp(fuzz.files[i].path, path) == 0) {
            fuzz.n_open++;
            return &fuzz.files[i].bytes;
        }
    }
    return NULL;
}

static uint64_t fuzz_size(void *user, void *file) {
    (void)user;
    return ((const fuzz_bytes *)file)->n;
}

static int fuzz_read(void *user, void *file, uint64_t offset, void *out, size_t n) {
    const fuzz_bytes *b = file;
    (void)user;
    FUZZ_CHECK(offset <= b->n && n <= b->n - offset);
    if (n > 0) {
        memcpy(out, b->at + offset, n);
    }
    return 0;
}

static void fuzz_close(void *user, void *file) {
    (void)user;
    (void)file;
    fuzz.n_open--;
}

static inline const void *fuzz_map(void *user, void *file) {
    (void)user;
    return ((const fuzz_bytes *)file)->at;
}

/* ---- Executions -- */

/* limit: what may be allocated at once. */
static void fuzz_begin(size_t limit) {
    static const folollm_host hooks = {.realloc = fuzz_realloc, .file_open = fuzz_open, .file_size = fuzz_size,
                                       .file_read = fuzz_read, .file_close = fuzz_close};
    fuzz.hooks = hooks;
    fuzz.kept = fuzz.live;
    fuzz.n_kept_open = fuzz.n_open;
    fuzz.limit = fuzz.live + limit;
    fuzz.n_files = 0;
}

static inline void fuzz_file(const char *path, fuzz_bytes bytes) {
    fuzz.files[fuzz.n_files].path = path;
    fuzz.files[fuzz.n_files++].bytes = bytes;
}

static void fuzz_end(void) {
    FUZZ_CHECK(fuzz.live == fuzz.kept);
    FUZZ_CHECK(fuzz.n_open == fuzz.n_kept_open);
}

static inline void fuzz_forget_error(void) {
    fuzz_error.status = FOLOLLM_OK;
    fuzz_error.text[0] = 0;
}

/* A failure has a documented status and words. None is for want of memory, of which there is enough. */
static inline folollm_status fuzz_status(folollm_status status) {
    if (status != FOLOLLM_OK) {
        FUZZ_CHECK(status <= FOLOLLM_E_ARGUMENT && status >= FOLOLLM_E_DEVICE && status != FOLOLLM_E_MEMORY);
        FUZZ_CHECK(fuzz_error.status == status && fuzz_error.text[0] != 0);
        FUZZ_CHECK(memchr(fuzz_error.text, 0, sizeof fuzz_error.text) != NULL);
    }
    return status;
}

/* What stands before the next byte 0xFF, which no text has; *rest becomes what follows it. */
static inline fuzz_bytes fuzz_part(fuzz_bytes *rest) {
    const uint8_t *end = rest->n > 0 ? memchr(rest->at, 0xFF, rest->n) : NULL;
    fuzz_bytes part = {rest->at, end != NULL ? (size_t)(end - rest->at) : rest->n};
    size_t used = end != NULL ? part.n + 1 : part.n;
    rest->at += used;
    rest->n -= used;
    return part;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

#endif
