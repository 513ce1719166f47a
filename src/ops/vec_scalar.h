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

#undef FL_SCALAR_EACH
#endif
