/* Sixteen floats in one AVX-512 register; the meaning of each function stands in vec_scalar.h. */
#ifndef FL_VEC_AVX512_H
#define FL_VEC_AVX512_H

#include "base/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FL_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define FL_AVX512 FL_INLINE FL_TARGET_AVX512
#define FL_TARGET_VNNI __attribute__((target("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define FL_VNNI_INLINE FL_INLINE FL_TARGET_VNNI

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
FL_AVX512 __m128i fl_avx512_bytes(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
FL_AVX512 __m512 fl_avx512_load_i8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(fl_avx512_bytes(p)));
}
/* By the lowest four bits of each integer. */
FL_AVX512 __m512 fl_avx512_of_nibbles(__m512i n) {
    return _mm512_permutexvar_ps(n, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
}
FL_AVX512 __m512 fl_avx512_load_low(const uint8_t *p) {
    return fl_avx512_of_nibbles(_mm512_cvtepu8_epi32(fl_avx512_bytes(p)));
}
FL_AVX512 __m512 fl_avx512_load_high(const uint8_t *p) {
    return fl_avx512_of_nibbles(_mm512_srli_epi32(_mm512_cvtepu8_epi32(fl_avx512_bytes(p)), 4));
}
FL_AVX512 void fl_avx512_store_i8(int8_t *p, __m512 v) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
FL_AVX512 __m512 fl_avx512_butterfly(__m512 x, size_t half) {
    __m512 other = half == 1   ? _mm512_permute_ps(x, 0xB1)
                   : half == 2 ? _mm512_permute_ps(x, 0x4E)
                   : half == 4 ? _mm512_shuffle_f32x4(x, x, 0xB1)
                               : _mm512_shuffle_f32x4(x, x, 0x4E);
    __mmask16 second = half == 1 ? 0xAAAA : half == 2 ? 0xCCCC : half == 4 ? 0xF0F0 : 0xFF00;
    return _mm512_mask_sub_ps(other + x, second, other, x);
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

typedef struct fl_avx512_total {
    __m512i even, odd;
} fl_avx512_total;

FL_AVX512 fl_avx512_total fl_avx512_no_total(void) {
    fl_avx512_total t = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    return t;
}
FL_AVX512 fl_avx512_total fl_avx512_add_total(fl_avx512_total t, __m512 v) {
    __m512i n = _mm512_cvtps_epi32(v);
    t.even = _mm512_add_epi64(t.even, _mm512_and_si512(n, _mm512_set1_epi64(0xFFFFFFFF)));
    t.odd = _mm512_add_epi64(t.odd, _mm512_srli_epi64(n, 32));
    return t;
}
FL_AVX512 uint64_t fl_avx512_sum_total(fl_avx512_total t) {
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(t.even, t.odd));
}
FL_AVX512 void fl_avx512_store_u32(uint32_t *p, __m512 v) {
    _mm512_storeu_si512((void *)p, _mm512_cvtps_epi32(v));
}
FL_AVX512 uint32_t fl_avx512_at_least(__m512 v, float limit) {
    return _mm512_cmp_ps_mask(v, _mm512_set1_ps(limit), _CMP_GE_OQ);
}

/* Sums of two and two products, (rows, 2) in order; quads as words. */
typedef struct fl_avx512_sums {
    __m512i a, b;
} fl_avx512_sums;
typedef fl_avx512_sums fl_avx512_quad;

FL_AVX512 __m512i fl_avx512_all_bytes(const uint8_t *p) {
    return _mm512_loadu_si512((const void *)p);
}
FL_AVX512 __m512i fl_avx512_low_bytes(const uint8_t *p) {
    return _mm512_and_si512(fl_avx512_all_bytes(p), _mm512_set1_epi8(15));
}
FL_AVX512 __m512i fl_avx512_high_bytes(const uint8_t *p) {
    return _mm512_and_si512(_mm512_srli_epi16(fl_avx512_all_bytes(p), 4), _mm512_set1_epi8(15));
}
FL_AVX512 int32_t fl_avx512_four(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return four;
}
FL_AVX512 fl_avx512_sums fl_avx512_sums_of(bool wide, int32_t start) {
    (void)wide;
    __m512i first = _mm512_set1_epi64((int64_t)(uint32_t)start);
    fl_avx512_sums s = {first, first};
    return s;
}
FL_AVX512 fl_avx512_quad fl_avx512_quads_of(__m512i bytes) {
    fl_avx512_quad k = {_mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes)),
                        _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(bytes, 1))};
    return k;
}
FL_AVX512 fl_avx512_quad fl_avx512_load_quads(bool wide, const uint8_t *p) {
    (void)wide;
    return fl_avx512_quads_of(fl_avx512_all_bytes(p));
}
FL_AVX512 fl_avx512_quad fl_avx512_low_quads(const uint8_t *p) {
    return fl_avx512_quads_of(fl_avx512_low_bytes(p));
}
FL_AVX512 fl_avx512_quad fl_avx512_high_quads(const uint8_t *p) {
    return fl_avx512_quads_of(fl_avx512_high_bytes(p));
}
FL_AVX512 fl_avx512_sums fl_avx512_dot(bool wide, fl_avx512_sums s, fl_avx512_quad k, const int8_t *q) {
    (void)wide;
    __m512i words = _mm512_cvtepi8_epi16(_mm256_set1_epi32(fl_avx512_four(q)));
    s.a = _mm512_add_epi32(s.a, _mm512_madd_epi16(k.a, words));
    s.b = _mm512_add_epi32(s.b, _mm512_madd_epi16(k.b, words));
    return s;
}
FL_AVX512 __m512 fl_avx512_sums_float(fl_avx512_sums s) {
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i first = _mm512_permutex2var_epi32(s.a, even, s.b);
    __m512i second = _mm512_permutex2var_epi32(s.a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), s.b);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(first, second));
}

/* The same with the instruction made for it. */
typedef __m512i fl_vnni_sums;
typedef __m512i fl_vnni_quad;

FL_VNNI_INLINE __m512i fl_vnni_sums_of(bool wide, int32_t start) {
    (void)wide;
    return _mm512_set1_epi32(start);
}
FL_VNNI_INLINE __m512i fl_vnni_load_quads(bool wide, const uint8_t *p) {
    (void)wide;
    return fl_avx512_all_bytes(p);
}
FL_VNNI_INLINE __m512i fl_vnni_low_quads(const uint8_t *p) {
    return fl_avx512_low_bytes(p);
}
FL_VNNI_INLINE __m512i fl_vnni_high_quads(const uint8_t *p) {
    return fl_avx512_high_bytes(p);
}
FL_VNNI_INLINE __m512i fl_vnni_dot(bool wide, __m512i sums, __m512i k, const int8_t *q) {
    (void)wide;
    return _mm512_dpbusd_epi32(sums, k, _mm512_set1_epi32(fl_avx512_four(q)));
}
FL_VNNI_INLINE __m512 fl_vnni_sums_float(__m512i sums) {
    return _mm512_cvtepi32_ps(sums);
}

/* Sixty-four bytes. */
typedef __m512i fl_avx512_b;

FL_AVX512 __m512i fl_avx512_b_load(const uint8_t *p) {
    return fl_avx512_all_bytes(p);
}
FL_AVX512 void fl_avx512_b_store(uint8_t *p, __m512i b) {
    _mm512_storeu_si512((void *)p, b);
}
FL_AVX512 __m512i fl_avx512_b_or(__m512i a, __m512i b) {
    return _mm512_or_si512(a, b);
}
/* Words are shifted: what crosses from byte to byte is masked. */
typedef uint16_t fl_avx512_words __attribute__((vector_size(64)));
FL_AVX512 __m512i fl_avx512_b_left(__m512i b, int n, int mask) {
    return _mm512_and_si512((__m512i)((fl_avx512_words)b << n), _mm512_set1_epi8((char)mask));
}
FL_AVX512 __m512i fl_avx512_b_right(__m512i b, int n, int mask) {
    return _mm512_and_si512((__m512i)((fl_avx512_words)b >> n), _mm512_set1_epi8((char)mask));
}
FL_AVX512 fl_avx512_quad fl_avx512_as_quad(__m512i b) {
    return fl_avx512_quads_of(b);
}
FL_VNNI_INLINE __m512i fl_vnni_as_quad(__m512i b) {
    return b;
}

#endif
#endif
