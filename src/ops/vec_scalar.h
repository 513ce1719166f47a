/* Sixteen floats, one after the other: what every wider version must equal to the bit. */
#ifndef FL_VEC_SCALAR_H
#define FL_VEC_SCALAR_H

#include "formats/dtype.h"

#include <math.h>

#if defined(__GNUC__)
#define FL_SCALAR static inline __attribute__((unused))
#else
#define FL_SCALAR static inline
#endif

typedef struct fl_scalar_v {
    float at[16];
} fl_scalar_v;

#define FL_SCALAR_EACH(expression)     \
    fl_scalar_v each;                  \
    for (int i = 0; i < 16; i++) {     \
        each.at[i] = (expression);     \
    }                                  \
    return each

FL_SCALAR fl_scalar_v fl_scalar_set1(float f) {
    FL_SCALAR_EACH(f);
}
FL_SCALAR fl_scalar_v fl_scalar_load(const float *p) {
    FL_SCALAR_EACH(p[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_load_n(const float *p, size_t n) { /* the rest is zero */
    FL_SCALAR_EACH((size_t)i < n ? p[i] : 0);
}
FL_SCALAR fl_scalar_v fl_scalar_load_bf16(const uint16_t *p) {
    FL_SCALAR_EACH(fl_float_of_bf16(p[i]));
}
FL_SCALAR fl_scalar_v fl_scalar_load_f16(const uint16_t *p) {
    FL_SCALAR_EACH(fl_float_of_f16(p[i]));
}
FL_SCALAR void fl_scalar_store(float *p, fl_scalar_v v) {
    memcpy(p, v.at, sizeof v.at);
}
FL_SCALAR void fl_scalar_store_n(float *p, fl_scalar_v v, size_t n) {
    memcpy(p, v.at, n * sizeof *p);
}
FL_SCALAR void fl_scalar_store_f16(uint16_t *p, fl_scalar_v v) {
    for (int i = 0; i < 16; i++) {
        p[i] = fl_f16_of_float(v.at[i]);
    }
}
FL_SCALAR fl_scalar_v fl_scalar_fma(fl_scalar_v a, fl_scalar_v b, fl_scalar_v c) { /* a * b + c, rounded once */
    FL_SCALAR_EACH(fmaf(a.at[i], b.at[i], c.at[i]));
}
FL_SCALAR fl_scalar_v fl_scalar_add(fl_scalar_v a, fl_scalar_v b) {
    FL_SCALAR_EACH(a.at[i] + b.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_sub(fl_scalar_v a, fl_scalar_v b) {
    FL_SCALAR_EACH(a.at[i] - b.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_mul(fl_scalar_v a, fl_scalar_v b) {
    FL_SCALAR_EACH(a.at[i] * b.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_div(fl_scalar_v a, fl_scalar_v b) {
    FL_SCALAR_EACH(a.at[i] / b.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_max(fl_scalar_v a, fl_scalar_v b) { /* b if either is a NaN */
    FL_SCALAR_EACH(a.at[i] > b.at[i] ? a.at[i] : b.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_min(fl_scalar_v a, fl_scalar_v b) { /* b if either is a NaN */
    FL_SCALAR_EACH(a.at[i] < b.at[i] ? a.at[i] : b.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_round(fl_scalar_v a) { /* to the nearest integer, ties to even */
    FL_SCALAR_EACH(rintf(a.at[i]));
}
FL_SCALAR fl_scalar_v fl_scalar_pow2(fl_scalar_v a) { /* 2^a, a integral in [-127, 127]; 0 for -127 */
    FL_SCALAR_EACH(fl_float_of_bits((uint32_t)((int32_t)a.at[i] + 127) << 23));
}
FL_SCALAR fl_scalar_v fl_scalar_zero_below(fl_scalar_v y, fl_scalar_v x, float limit) { /* x < limit ? 0 : y */
    FL_SCALAR_EACH(x.at[i] < limit ? 0 : y.at[i]);
}
FL_SCALAR fl_scalar_v fl_scalar_load_i8(const uint8_t *p) { /* signed bytes */
    FL_SCALAR_EACH((float)(p[i] < 128 ? p[i] : p[i] - 256));
}
FL_SCALAR fl_scalar_v fl_scalar_load_low(const uint8_t *p) { /* the low four bits, less 8 */
    FL_SCALAR_EACH((float)((p[i] & 15) - 8));
}
FL_SCALAR fl_scalar_v fl_scalar_load_high(const uint8_t *p) {
    FL_SCALAR_EACH((float)((p[i] >> 4) - 8));
}
FL_SCALAR void fl_scalar_store_i8(int8_t *p, fl_scalar_v v) { /* integral, in [-128, 127] */
    for (int i = 0; i < 16; i++) {
        p[i] = (int8_t)v.at[i];
    }
}
FL_SCALAR fl_scalar_v fl_scalar_butterfly(fl_scalar_v a, size_t half) { /* lanes half apart: sum, difference */
    FL_SCALAR_EACH(((size_t)i & half) == 0 ? a.at[i] + a.at[(size_t)i + half] : a.at[(size_t)i - half] - a.at[i]);
}
/* The tree: lanes eight apart, four, two, one. */
FL_SCALAR float fl_scalar_reduce_add(fl_scalar_v v) {
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            v.at[i] = v.at[i] + v.at[i + half];
        }
    }
    return v.at[0];
}
FL_SCALAR void fl_scalar_reduce_add4(fl_scalar_v a, fl_scalar_v b, fl_scalar_v c, fl_scalar_v d, float *sums) {
    sums[0] = fl_scalar_reduce_add(a);
    sums[1] = fl_scalar_reduce_add(b);
    sums[2] = fl_scalar_reduce_add(c);
    sums[3] = fl_scalar_reduce_add(d);
}
FL_SCALAR float fl_scalar_reduce_max(fl_scalar_v v) {
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            v.at[i] = v.at[i] > v.at[i + half] ? v.at[i] : v.at[i + half];
        }
    }
    return v.at[0];
}

/* Exact sums of integral numbers from 0 to 2^30, and whether lanes are not below a number, the first in the lowest
 * bit. */
typedef struct fl_scalar_total {
    uint64_t at;
} fl_scalar_total;

FL_SCALAR fl_scalar_total fl_scalar_no_total(void) {
    fl_scalar_total t = {0};
    return t;
}
FL_SCALAR fl_scalar_total fl_scalar_add_total(fl_scalar_total t, fl_scalar_v v) {
    for (int i = 0; i < 16; i++) {
        t.at += (uint32_t)v.at[i];
    }
    return t;
}
FL_SCALAR uint64_t fl_scalar_sum_total(fl_scalar_total t) {
    return t.at;
}
FL_SCALAR void fl_scalar_store_u32(uint32_t *p, fl_scalar_v v) {
    for (int i = 0; i < 16; i++) {
        p[i] = (uint32_t)v.at[i];
    }
}
FL_SCALAR uint32_t fl_scalar_at_least(fl_scalar_v v, float limit) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++) {
        bits |= (uint32_t)(v.at[i] >= limit) << i;
    }
    return bits;
}

/* Sixteen exact sums of products, and four unsigned bytes of each of sixteen rows, which meet four signed ones of
 * another. wide: the unsigned ones are what they stand for plus 128, and the sums are to be of that; if not, they are
 * below 128. */
typedef struct fl_scalar_sums {
    int32_t at[16];
} fl_scalar_sums;
typedef struct fl_scalar_quad {
    uint8_t at[64];
} fl_scalar_quad;

/* start: what wide bytes have too much; else whatever the sums begin with. */
FL_SCALAR fl_scalar_sums fl_scalar_sums_of(bool wide, int32_t start) {
    fl_scalar_sums s;
    (void)wide;
    for (int i = 0; i < 16; i++) {
        s.at[i] = start;
    }
    return s;
}
FL_SCALAR fl_scalar_quad fl_scalar_quads_masked(const uint8_t *p, int shift, int mask) {
    fl_scalar_quad k;
    for (int i = 0; i < 64; i++) {
        k.at[i] = (uint8_t)(p[i] >> shift & mask);
    }
    return k;
}
FL_SCALAR fl_scalar_quad fl_scalar_load_quads(bool wide, const uint8_t *p) {
    (void)wide;
    return fl_scalar_quads_masked(p, 0, 255);
}
FL_SCALAR fl_scalar_quad fl_scalar_low_quads(const uint8_t *p) { /* the low four bits of each byte */
    return fl_scalar_quads_masked(p, 0, 15);
}
FL_SCALAR fl_scalar_quad fl_scalar_high_quads(const uint8_t *p) {
    return fl_scalar_quads_masked(p, 4, 15);
}
FL_SCALAR fl_scalar_sums fl_scalar_dot(bool wide, fl_scalar_sums s, fl_scalar_quad k, const int8_t *q) {
    (void)wide;
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 4; j++) {
            s.at[i] += k.at[4 * i + j] * q[j];
        }
    }
    return s;
}
FL_SCALAR fl_scalar_v fl_scalar_sums_float(fl_scalar_sums s) {
    FL_SCALAR_EACH((float)s.at[i]);
}

/* Sixty-four bytes. */
typedef fl_scalar_quad fl_scalar_b;

FL_SCALAR fl_scalar_b fl_scalar_b_load(const uint8_t *p) {
    fl_scalar_b b;
    memcpy(b.at, p, sizeof b.at);
    return b;
}
FL_SCALAR void fl_scalar_b_store(uint8_t *p, fl_scalar_b b) {
    memcpy(p, b.at, sizeof b.at);
}
FL_SCALAR fl_scalar_b fl_scalar_b_or(fl_scalar_b a, fl_scalar_b b) {
    for (int i = 0; i < 64; i++) {
        a.at[i] |= b.at[i];
    }
    return a;
}
FL_SCALAR fl_scalar_b fl_scalar_b_left(fl_scalar_b b, int n, int mask) { /* (b << n) & mask, each byte for itself */
    for (int i = 0; i < 64; i++) {
        b.at[i] = (uint8_t)(b.at[i] << n & mask);
    }
    return b;
}
FL_SCALAR fl_scalar_b fl_scalar_b_right(fl_scalar_b b, int n, int mask) { /* (b >> n) & mask */
    for (int i = 0; i < 64; i++) {
        b.at[i] = (uint8_t)(b.at[i] >> n & mask);
    }
    return b;
}

/* Of bytes that are not wide. */
FL_SCALAR fl_scalar_quad fl_scalar_as_quad(fl_scalar_b b) {
    return b;
}

#undef FL_SCALAR_EACH
#endif
