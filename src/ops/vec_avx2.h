/* Sixteen floats in two AVX2 registers; the meaning of each function stands in vec_scalar.h. */
#ifndef FL_VEC_AVX2_H
#define FL_VEC_AVX2_H

#include "base/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FL_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define FL_AVX2 FL_INLINE FL_TARGET_AVX2

typedef struct fl_avx2_v {
    __m256 a, b; /* lanes 0-7, 8-15 */
} fl_avx2_v;

FL_AVX2 fl_avx2_v fl_avx2_of(__m256 a, __m256 b) {
    fl_avx2_v v = {a, b};
    return v;
}
FL_AVX2 fl_avx2_v fl_avx2_set1(float f) {
    return fl_avx2_of(_mm256_set1_ps(f), _mm256_set1_ps(f));
}
FL_AVX2 fl_avx2_v fl_avx2_load(const float *p) {
    return fl_avx2_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
FL_AVX2 fl_avx2_v fl_avx2_load_n(const float *p, size_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return fl_avx2_load(lanes);
}
FL_AVX2 __m256 fl_avx2_widen_bf16(const uint16_t *p) {
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}
FL_AVX2 fl_avx2_v fl_avx2_load_bf16(const uint16_t *p) {
    return fl_avx2_of(fl_avx2_widen_bf16(p), fl_avx2_widen_bf16(p + 8));
}
FL_AVX2 fl_avx2_v fl_avx2_load_f16(const uint16_t *p) {
    return fl_avx2_of(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)),
                      _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 8))));
}
FL_AVX2 void fl_avx2_store(float *p, fl_avx2_v v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
FL_AVX2 void fl_avx2_store_n(float *p, fl_avx2_v v, size_t n) {
    float lanes[16];
    fl_avx2_store(lanes, v);
    memcpy(p, lanes, n * sizeof *p);
}
FL_AVX2 void fl_avx2_store_f16(uint16_t *p, fl_avx2_v v) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(void *)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
FL_AVX2 fl_avx2_v fl_avx2_fma(fl_avx2_v x, fl_avx2_v y, fl_avx2_v z) {
    return fl_avx2_of(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
FL_AVX2 fl_avx2_v fl_avx2_add(fl_avx2_v x, fl_avx2_v y) {
    return fl_avx2_of(x.a + y.a, x.b + y.b);
}
FL_AVX2 fl_avx2_v fl_avx2_sub(fl_avx2_v x, fl_avx2_v y) {
    return fl_avx2_of(x.a - y.a, x.b - y.b);
}
FL_AVX2 fl_avx2_v fl_avx2_mul(fl_avx2_v x, fl_avx2_v y) {
    return fl_avx2_of(x.a * y.a, x.b * y.b);
}
FL_AVX2 fl_avx2_v fl_avx2_div(fl_avx2_v x, fl_avx2_v y) {
    return fl_avx2_of(x.a / y.a, x.b / y.b);
}
FL_AVX2 fl_avx2_v fl_avx2_max(fl_avx2_v x, fl_avx2_v y) {
    return fl_avx2_of(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}
FL_AVX2 fl_avx2_v fl_avx2_min(fl_avx2_v x, fl_avx2_v y) {
    return fl_avx2_of(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}
FL_AVX2 fl_avx2_v fl_avx2_round(fl_avx2_v x) {
    return fl_avx2_of(_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                      _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FL_AVX2 __m256 fl_avx2_half_pow2(__m256 x) {
    __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
FL_AVX2 fl_avx2_v fl_avx2_pow2(fl_avx2_v x) {
    return fl_avx2_of(fl_avx2_half_pow2(x.a), fl_avx2_half_pow2(x.b));
}
FL_AVX2 fl_avx2_v fl_avx2_zero_below(fl_avx2_v y, fl_avx2_v x, float limit) {
    __m256 l = _mm256_set1_ps(limit);
    return fl_avx2_of(_mm256_andnot_ps(_mm256_cmp_ps(x.a, l, _CMP_LT_OQ), y.a),
                      _mm256_andnot_ps(_mm256_cmp_ps(x.b, l, _CMP_LT_OQ), y.b));
}
FL_AVX2 float fl_avx2_reduce_add(fl_avx2_v v) {
    __m256 s8 = v.a + v.b;
    __m128 s4 = _mm256_castps256_ps128(s8) + _mm256_extractf128_ps(s8, 1);
    __m128 s2 = s4 + _mm_movehl_ps(s4, s4);
    return _mm_cvtss_f32(s2 + _mm_movehdup_ps(s2));
}
FL_AVX2 void fl_avx2_reduce_add4(fl_avx2_v a, fl_avx2_v b, fl_avx2_v c, fl_avx2_v d, float *sums) {
    sums[0] = fl_avx2_reduce_add(a);
    sums[1] = fl_avx2_reduce_add(b);
    sums[2] = fl_avx2_reduce_add(c);
    sums[3] = fl_avx2_reduce_add(d);
}
FL_AVX2 float fl_avx2_reduce_max(fl_avx2_v v) {
    __m256 s8 = _mm256_max_ps(v.a, v.b);
    __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

#endif
#endif
