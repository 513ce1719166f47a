/* Half precision as cuda_fp16.h of the CUDA toolkit offers it: conversions, rounded to the nearest, ties to even. */
#ifndef SHIM_CUDA_FP16_H
#define SHIM_CUDA_FP16_H

#include "cuda_runtime.h"

struct __attribute__((aligned(2))) __half {
    unsigned short bits;
};
typedef __half half;

static inline __half __ushort_as_half(unsigned short bits) {
    __half h;
    h.bits = bits;
    return h;
}

static inline unsigned short __half_as_ushort(__half h) {
    return h.bits;
}

/* Exact; every NaN becomes the one that the hardware gives. */
static inline float __half2float(__half h) {
    unsigned sign = (unsigned)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31, mantissa = h.bits & 0x3FF;
    if (exponent == 31) {
        return __uint_as_float(mantissa != 0 ? 0x7FFFFFFF : sign | 0x7F800000);
    }
    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-24f;
        return __uint_as_float(sign | __float_as_uint(magnitude));
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline __half __float2half_rn(float f) {
    unsigned u = __float_as_uint(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF, bits;
    if (magnitude > 0x7F800000) {
        return __ushort_as_half(0x7FFF);
    }
    if (magnitude >= 0x47800000) { /* 65536 and above */
        bits = 0x7C00;
    } else if (magnitude < 0x38800000) { /* below 2^-14: in units of 2^-24, rounded by adding 2^23 of them */
        bits = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0.5f)) - 0x3F000000;
    } else { /* a carry goes on into the exponent, up to infinity */
        bits = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    }
    return __ushort_as_half((unsigned short)(sign | bits));
}

static inline __half __float2half(float f) {
    return __float2half_rn(f);
}

/* As fl_mma in cuda_runtime.h: mma.m16n8k16 of bf16 or f16, added up as doubles and rounded once. A device adds
 * otherwise, but the same numbers. */
template <bool BF16> static inline void fl_mma_halves(float sums[4], const uint32_t a[4], uint32_t b_low,
                                                      uint32_t b_high) {
    auto number = [](uint32_t bits) {
        return (double)(BF16 ? __uint_as_float(bits << 16)
                             : __half2float(__ushort_as_half((unsigned short)bits)));
    };
    shim_lane *lanes = shim_warp_product();
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    lanes[lane] = {{a[0], a[1], a[2], a[3]}, {b_low, b_high}, nullptr};
    __syncwarp();
    for (unsigned i = 0; i < 4; i++) {
        double sum = sums[i];
        for (unsigned pair = 0; pair < 8; pair++) {
            uint32_t of_a = lanes[4 * g + pair % 4].a[i / 2 + pair / 4 * 2];
            uint32_t of_b = lanes[4 * (2 * t + i % 2) + pair % 4].b[pair / 4];
            sum += number(of_a & 0xFFFFu) * number(of_b & 0xFFFFu) + number(of_a >> 16) * number(of_b >> 16);
        }
        sums[i] = (float)sum;
    }
}

#endif
