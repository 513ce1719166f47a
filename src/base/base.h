/* Base: what every file stands on. Compiler seams, checked arithmetic, statuses.
 *
 * A number that came from a file is combined only by the checked helpers below; sizes and offsets are size_t or
 * uint64_t from the first multiplication on. */
#ifndef FL_BASE_H
#define FL_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pread and kin under -std=c99 too; before the first system header */
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include "folollm.h"

#include <float.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>

#ifndef FOLOLLM_SOURCE_HASH
#define FOLOLLM_SOURCE_HASH "not amalgamated"
#endif

/* folollm.c is one translation unit in which everything internal is static. -DFL_LOCAL= compiles the files of src/
 * one by one instead. */
#ifndef FL_LOCAL
#define FL_LOCAL static
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FL_INLINE static inline __attribute__((always_inline, unused))
#define FL_LIKELY(x) __builtin_expect(!!(x), 1)
#define FL_UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define FL_INLINE static inline
#define FL_LIKELY(x) (x)
#define FL_UNLIKELY(x) (x)
#endif

/* Tell the processor that the cache line at an address, which need not exist, will be read soon. */
#if defined(__GNUC__) || defined(__clang__)
#define FL_PREFETCH(address) __builtin_prefetch((const void *)(address), 0, 3)
#else
#define FL_PREFETCH(address) ((void)(address))
#endif

#define FL_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define FL_ALIGN 64 /* a cache line, and the widest vector */

/* Tests build with smaller numbers, to be at every border all the time. */
#ifndef FL_PAGE_TOKENS
#define FL_PAGE_TOKENS 16
#endif

#define FL_TRY(call)                        \
    do {                                    \
        folollm_status status_ = (call);    \
        if (FL_UNLIKELY(status_ != FOLOLLM_OK)) { \
            return status_;                 \
        }                                   \
    } while (0)

/* out = a * b or a + b; false, and out untouched, if that is more than SIZE_MAX. */
FL_INLINE bool fl_mul(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > SIZE_MAX / b) {
        return false;
    }
    *out = a * b;
    return true;
}

FL_INLINE bool fl_add(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b) {
        return false;
    }
    *out = a + b;
    return true;
}

/* a rounded up to a multiple of align, a power of two. */
FL_INLINE bool fl_align_up(size_t a, size_t align, size_t *out) {
    if (!fl_add(a, align - 1, out)) {
        return false;
    }
    *out &= ~(align - 1);
    return true;
}

/* Does [begin, begin + n) lie within size? */
FL_INLINE bool fl_within(uint64_t begin, uint64_t n, uint64_t size) {
    return begin <= size && n <= size - begin;
}

FL_INLINE size_t fl_min(size_t a, size_t b) {
    return a < b ? a : b;
}

FL_INLINE size_t fl_max(size_t a, size_t b) {
    return a > b ? a : b;
}

FL_INLINE size_t fl_div_up(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

FL_INLINE float fl_float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

FL_INLINE uint32_t fl_bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* By bits, because a host's -ffast-math lets the compiler assume the answer. */
FL_INLINE bool fl_is_finite(float f) {
    return (fl_bits_of_float(f) & 0x7F800000u) != 0x7F800000u;
}

FL_INLINE uint32_t fl_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

FL_INLINE uint64_t fl_load_u64(const uint8_t *p) {
    return (uint64_t)fl_load_u32(p) | (uint64_t)fl_load_u32(p + 4) << 32;
}

/* A piece of text that somebody else owns. */
typedef struct fl_str {
    const char *at;
    size_t n;
} fl_str;

FL_INLINE fl_str fl_str_of(const char *text) {
    fl_str s = {text, strlen(text)};
    return s;
}

FL_INLINE bool fl_str_equal(fl_str a, fl_str b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.at, b.at, a.n) == 0);
}

FL_INLINE bool fl_str_is(fl_str a, const char *text) {
    return fl_str_equal(a, fl_str_of(text));
}

#endif
