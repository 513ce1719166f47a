/* Types of stored numbers, and the exact conversions between the plain ones and float. Those of blocks: blocks.h. */
#ifndef FL_DTYPE_H
#define FL_DTYPE_H

#include "base/base.h"

typedef enum fl_dtype {
    FL_F32,
    FL_F16,
    FL_BF16,
    FL_Q8_0,   /* as in GGUF, and so are those named alike below: blocks.h */
    FL_Q8_ROW, /* 8 bits, one float scale for a whole row */
    FL_Q4_0,
    FL_Q4_K,
    FL_Q5_K,
    FL_Q6_K,
    FL_Q4_ZERO, /* 4 bits, a scale and a zero point for 32: packed.h */
    FL_Q4_1, /* from here on only in files: loading moves them to one of those above */
    FL_Q5_0,
    FL_Q5_1,
    FL_Q2_K,
    FL_Q3_K,
    FL_IQ4_NL,
    FL_IQ4_XS,
    FL_MXFP4,
    FL_DTYPE_COUNT,
    FL_DTYPE_OTHER = FL_DTYPE_COUNT /* in a file: named, sized, but never read */
} fl_dtype;

FL_INLINE bool fl_is_plain(fl_dtype type) {
    return type <= FL_BF16;
}

FL_LOCAL size_t fl_dtype_bytes(fl_dtype type);     /* of one number; plain types only */
FL_LOCAL const char *fl_dtype_name(fl_dtype type); /* "f32", "bf16", "q4_k"; FL_Q8_0 is "q8", FL_Q4_0 "q4" */

FL_INLINE float fl_float_of_bf16(uint16_t b) {
    return fl_float_of_bits((uint32_t)b << 16);
}

/* Subnormals, infinities and NaN included (IEEE 754 binary16). */
FL_INLINE float fl_float_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3FFu;
    if (exponent == 31) {
        return fl_float_of_bits(sign | 0x7F800000u | fraction << 13);
    }
    if (exponent != 0) {
        return fl_float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    }
    float magnitude = (float)fraction * 5.9604644775390625e-8f; /* 2^-24, exact */
    return sign != 0 ? -magnitude : magnitude;
}

/* Round to nearest, ties to even; too large becomes infinity; a NaN stays one. */
FL_INLINE uint16_t fl_bf16_of_float(float f) {
    uint32_t u = fl_bits_of_float(f);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)(u >> 16 | 0x40u);
    }
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

FL_INLINE uint16_t fl_f16_of_float(float f) {
    uint32_t u = fl_bits_of_float(f), sign = u >> 16 & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
    }
    if (magnitude >= 0x477FF000u) { /* 65520 and above */
        return (uint16_t)(sign | 0x7C00u);
    }
    if (magnitude >= 0x38800000u) { /* 2^-14: normal */
        magnitude += 0xFFFu + (magnitude >> 13 & 1u);
        return (uint16_t)(sign | ((magnitude >> 13) - (112u << 10)));
    }
    if (magnitude < 0x33000000u) { /* below half of the least subnormal */
        return (uint16_t)sign;
    }
    uint32_t shift = 126u - (magnitude >> 23), fraction = (magnitude & 0x7FFFFFu) | 0x800000u;
    uint32_t value = fraction >> shift, rest = fraction & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    value += rest > half || (rest == half && (value & 1u));
    return (uint16_t)(sign | value);
}

/* n numbers of F32, F16 or BF16, at any alignment, to float. */
FL_LOCAL void fl_to_float(fl_dtype type, const void *from, size_t n, float *to);

#endif
