/* Sixteen floats in one AVX-512 register; the meaning of each function stands in vec_scalar.h. */
#ifndef FL_VEC_AVX512_H
#define FL_VEC_AVX512_H

#include "base/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FL_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define FL_AVX512 FL_INLINE FL_TARGET_AVX512

typedef __m512 fl_avx512_v;

FL_AVX512 __m512 fl_avx512_set1(float f) {
    return _mm512_set1_ps(f);
}
FL_AVX512 __m512 fl_avx512_load(const float *p) {
    return _mm512_loadu_ps(p);
}
FL_AVX512 __mmask16 fl_avx512_first(size_t n) {
    return (__mmask16)((1u << n) - 1u);
}
FL_AVX512 __m512 fl_avx512_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(fl_avx512_first(n), p);
}
FL_AVX512 __m512 fl_avx512_load_bf16(const uint16_t *p) {
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}
FL_AVX512 __m512 fl_avx512_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
FL_AVX512 void fl_avx512_store(float *p, __m512 v) {
    _mm512_storeu_ps(p, v);
}
FL_AVX512 void fl_avx512_store_n(float *p, __m512 v, size_t n) {
    _mm512_mask_storeu_ps(p, fl_avx512_first(n), v);
}
FL_AVX512 void fl_avx512_store_f16(uint16_t *p, __m512 v) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_maskz_cvtps_ph((__mmask16)0xFFFF, v, _MM_FROUND_TO_NEAREST_INT));
}
FL_AVX512 __m512 fl_avx512_fma(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
}
FL_AVX512 __m512 fl_avx512_add(__m512 a, __m512 b) {
    return a + b;
}
FL_AVX512 __m512 fl_avx512_sub(__m512 a, __m512 b) {
    return a - b;
}
FL_AVX512 __m512 fl_avx512_mul(__m512 a, __m512 b) {
    return a * b;
}
FL_AVX512 __m512 fl_avx512_div(__m512 a, __m512 b) {
    return a / b;
}
FL_AVX512 __m512 fl_avx512_max(__m512 a, __m512 b) {
    return _mm512_max_ps(a, b);
}
FL_AVX512 __m512 fl_avx512_min(__m512 a, __m512 b) {
    return _mm512_min_ps(a, b);
}
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion" /* gcc's own macro, without optimisation */
FL_AVX512 __m512 fl_avx512_round(__m512 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#pragma GCC diagnostic pop
FL_AVX512 __m512 fl_avx512_pow2(__m512 a) {
    __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}
FL_AVX512 __m512 fl_avx512_zero_below(__m512 y, __m512 x, float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), y);
}
FL_AVX512 float fl_avx512_reduce_add(__m512 v) {
    __m256 s8 = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
    __m128 s4 = _mm256_castps256_ps128(s8) + _mm256_extractf128_ps(s8, 1);
    __m128 s2 = s4 + _mm_movehl_ps(s4, s4);
    return _mm_cvtss_f32(s2 + _mm_movehdup_ps(s2));
}
FL_AVX512 __m256 fl_avx512_halve(__m512 v) {
    return _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
}
/* The quarter sums of a in the low half, those of b in the high half. */
FL_AVX512 __m256 fl_avx512_quarter(__m512 a, __m512 b) {
    __m256 x = fl_avx512_halve(a), y = fl_avx512_halve(b);
    return _mm256_permute2f128_ps(x, y, 0x20) + _mm256_permute2f128_ps(x, y, 0x31);
}
FL_AVX512 void fl_avx512_reduce_add4(__m512 a, __m512 b, __m512 c, __m512 d, float *sums) {
    __m256 ab = fl_avx512_quarter(a, b), cd = fl_avx512_quarter(c, d);
    __m256 s2 = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xEE);
    __m256 s1 = _mm256_shuffle_ps(s2, s2, 0x88) + _mm256_shuffle_ps(s2, s2, 0xDD);
    _mm_storeu_ps(sums, _mm_unpacklo_ps(_mm256_castps256_ps128(s1), _mm256_extractf128_ps(s1, 1)));
}
FL_AVX512 float fl_avx512_reduce_max(__m512 v) {
    __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

#endif
#endif
