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
#include <sanitizer/asan_interface.h>
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
#define FL_CONVERT_BYTES 4096u /* files are small, and read in pieces all the same */
#include "../../folollm.c"

#define FUZZ_FILES 4
#define FUZZ_BLOCK ((size_t)32) /* bytes in front of a block: at their end its size */
#define FUZZ_KIB ((size_t)1 << 10)
#define FUZZ_ARENA (8192 * FUZZ_KIB)
#define FUZZ_FILL (4 * FUZZ_KIB) /* bytes at a block's beginning that are not what was there before */

typedef struct fuzz_bytes {
    const uint8_t *at;
    size_t n;
} fuzz_bytes;

typedef struct fuzz_host {
    folollm_host hooks;
    uint64_t live, kept, limit; /* bytes: now, between executions, at most */
    uint8_t *arena;
    size_t used; /* of the arena */
    size_t n_open, n_kept_open, n_files;
    struct {
        const char *path;
        fuzz_bytes bytes;
    } files[FUZZ_FILES];
} fuzz_host;

static fuzz_host fuzz;
static folollm_error fuzz_error;

/* What malloc gave and was freed is kept apart for a while, but not so much that it leaves the cache. */
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

/* ---- Memory: every resize moves, every size must be the one that was asked for --
 *
 * Blocks lie one behind the other in an arena, whose bytes are poisoned where no block is: what is put in front of a
 * block, what fills it up to 16, and what was freed, for no byte is used twice in an execution.
 *
 *     [ size | block | size | freed | size | block | ... ]
 *
 * That is faster than the sanitizer's malloc. What has no room there comes from malloc. */

/* The size in front of a block, where nothing else may look. */
__attribute__((no_sanitize("address"))) static void fuzz_note_size(uint8_t *block, size_t n) {
    ((size_t *)(void *)block)[-1] = n;
}

__attribute__((no_sanitize("address"))) static size_t fuzz_noted_size(const uint8_t *block) {
    return ((const size_t *)(const void *)block)[-1];
}

static uint8_t *fuzz_take(size_t n) {
    size_t whole = FUZZ_BLOCK + ((n + 15) & ~(size_t)15);
    uint8_t *block;
    if (fuzz.arena == NULL) {
        fuzz.arena = mmap(NULL, FUZZ_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        FUZZ_CHECK(fuzz.arena != MAP_FAILED);
        __asan_poison_memory_region(fuzz.arena, FUZZ_ARENA);
    }
    if (whole <= FUZZ_ARENA - FUZZ_BLOCK - fuzz.used) { /* the last block has something poisoned behind it, too */
        block = fuzz.arena + fuzz.used + FUZZ_BLOCK;
        fuzz.used += whole;
        __asan_unpoison_memory_region(block, n);
        memset(block, 0xBE, fl_min(n, FUZZ_FILL));
    } else {
        block = malloc(FUZZ_BLOCK + n);
        FUZZ_CHECK(block != NULL);
        block += FUZZ_BLOCK;
    }
    fuzz_note_size(block, n);
    return block;
}

static void fuzz_give(uint8_t *block, size_t n) {
    if ((uintptr_t)block - (uintptr_t)fuzz.arena < FUZZ_ARENA) {
        __asan_poison_memory_region(block, n);
    } else {
        free(block - FUZZ_BLOCK);
    }
}

static void *fuzz_realloc(void *user, void *p, size_t old_size, size_t new_size) {
    uint8_t *old = p, *block = NULL;
    size_t was = old != NULL ? fuzz_noted_size(old) : 0;
    (void)user;
    FUZZ_CHECK(was == old_size && (old != NULL || new_size > 0));
    fuzz.live -= was;
    FUZZ_CHECK(new_size <= fuzz.limit && fuzz.live <= fuzz.limit - new_size);
    fuzz.live += new_size;
    if (new_size > 0) {
        block = fuzz_take(new_size);
        if (old != NULL) {
            memcpy(block, old, fl_min(was, new_size));
        }
    }
    if (old != NULL) {
        FUZZ_CHECK(!__asan_address_is_poisoned(old));
        fuzz_give(old, was);
    }
    return block;
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
    fuzz.used = fuzz.live == 0 ? 0 : fuzz.used;
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

/* A number of an input's own, for what is not done with every one: what is kept for it has it again. */
static inline uint64_t fuzz_number(const uint8_t *data, size_t size) {
    uint64_t h = size;
    for (size_t at = 0; at + 8 <= size; at += 8) {
        h = fl_mix(h ^ fl_load_u64(data + at));
    }
    return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

#endif
