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
FL_AVX2 fl_avx2_v fl_avx2_of_ints(__m256i a, __m256i b) {
    return fl_avx2_of(_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b));
}
FL_AVX2 __m128i fl_avx2_bytes(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}
FL_AVX2 fl_avx2_v fl_avx2_of_i8(__m128i bytes) {
    return fl_avx2_of_ints(_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
}
FL_AVX2 fl_avx2_v fl_avx2_load_i8(const uint8_t *p) {
    return fl_avx2_of_i8(fl_avx2_bytes(p));
}
FL_AVX2 fl_avx2_v fl_avx2_load_low(const uint8_t *p) {
    return fl_avx2_of_i8(_mm_sub_epi8(_mm_and_si128(fl_avx2_bytes(p), _mm_set1_epi8(15)), _mm_set1_epi8(8)));
}
FL_AVX2 fl_avx2_v fl_avx2_load_high(const uint8_t *p) {
    __m128i high = _mm_and_si128(_mm_srli_epi16(fl_avx2_bytes(p), 4), _mm_set1_epi8(15));
    return fl_avx2_of_i8(_mm_sub_epi8(high, _mm_set1_epi8(8)));
}
FL_AVX2 void fl_avx2_store_i8(int8_t *p, fl_avx2_v v) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    words = _mm256_permute4x64_epi64(words, 0xD8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)p, bytes);
}
FL_AVX2 __m256 fl_avx2_half_butterfly(__m256 x, size_t half) {
    __m256 other = half == 1   ? _mm256_permute_ps(x, 0xB1)
                   : half == 2 ? _mm256_permute_ps(x, 0x4E)
                               : _mm256_permute2f128_ps(x, x, 0x01);
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), bit = _mm256_set1_epi32((int)half);
    __m256i second = _mm256_cmpeq_epi32(_mm256_and_si256(lanes, bit), bit);
    __m256 sign = _mm256_and_ps(_mm256_castsi256_ps(second), _mm256_set1_ps(-0.0f));
    return other + _mm256_xor_ps(x, sign); /* the second of a pair: other - x */
}
FL_AVX2 fl_avx2_v fl_avx2_butterfly(fl_avx2_v x, size_t half) {
    return half == 8 ? fl_avx2_of(x.a + x.b, x.a - x.b)
                     : fl_avx2_of(fl_avx2_half_butterfly(x.a, half), fl_avx2_half_butterfly(x.b, half));
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

typedef struct fl_avx2_total {
    __m256i even, odd;
} fl_avx2_total;

FL_AVX2 fl_avx2_total fl_avx2_no_total(void) {
    fl_avx2_total t = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    return t;
}
FL_AVX2 fl_avx2_total fl_avx2_half_total(fl_avx2_total t, __m256 half) {
    __m256i n = _mm256_cvtps_epi32(half);
    t.even = _mm256_add_epi64(t.even, _mm256_and_si256(n, _mm256_set1_epi64x(0xFFFFFFFF)));
    t.odd = _mm256_add_epi64(t.odd, _mm256_srli_epi64(n, 32));
    return t;
}
FL_AVX2 fl_avx2_total fl_avx2_add_total(fl_avx2_total t, fl_avx2_v v) {
    return fl_avx2_half_total(fl_avx2_half_total(t, v.a), v.b);
}
FL_AVX2 uint64_t fl_avx2_sum_total(fl_avx2_total t) {
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)(void *)lanes, _mm256_add_epi64(t.even, t.odd));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}
FL_AVX2 void fl_avx2_store_u32(uint32_t *p, fl_avx2_v v) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_cvtps_epi32(v.a));
    _mm256_storeu_si256((__m256i *)(void *)(p + 8), _mm256_cvtps_epi32(v.b));
}
FL_AVX2 uint32_t fl_avx2_at_least(fl_avx2_v v, float limit) {
    __m256 l = _mm256_set1_ps(limit);
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(v.a, l, _CMP_GE_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(v.b, l, _CMP_GE_OQ)) << 8;
}

/* Sums of rows 0-7, 8-15; quads of the same. */
typedef struct fl_avx2_sums {
    __m256i at[2];
} fl_avx2_sums;
typedef fl_avx2_sums fl_avx2_quad;

/* Wide bytes are made signed again, and have nothing too much. */
FL_AVX2 fl_avx2_sums fl_avx2_sums_of(bool wide, int32_t start) {
    __m256i n = _mm256_set1_epi32(wide ? 0 : start);
    fl_avx2_sums s = {{n, n}};
    return s;
}
FL_AVX2 __m256i fl_avx2_wide_bytes(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
FL_AVX2 fl_avx2_quad fl_avx2_quad_of(__m256i a, __m256i b) {
    fl_avx2_quad k = {{a, b}};
    return k;
}
FL_AVX2 fl_avx2_quad fl_avx2_load_quads(bool wide, const uint8_t *p) {
    __m256i sign = _mm256_set1_epi8(wide ? -128 : 0);
    return fl_avx2_quad_of(_mm256_xor_si256(fl_avx2_wide_bytes(p), sign),
                           _mm256_xor_si256(fl_avx2_wide_bytes(p + 32), sign));
}
FL_AVX2 fl_avx2_quad fl_avx2_low_quads(const uint8_t *p) {
    __m256i mask = _mm256_set1_epi8(15);
    return fl_avx2_quad_of(_mm256_and_si256(fl_avx2_wide_bytes(p), mask),
                           _mm256_and_si256(fl_avx2_wide_bytes(p + 32), mask));
}
FL_AVX2 fl_avx2_quad fl_avx2_high_quads(const uint8_t *p) {
    __m256i mask = _mm256_set1_epi8(15);
    return fl_avx2_quad_of(_mm256_and_si256(_mm256_srli_epi16(fl_avx2_wide_bytes(p), 4), mask),
                           _mm256_and_si256(_mm256_srli_epi16(fl_avx2_wide_bytes(p + 32), 4), mask));
}
/* Two products of 8 bits, added, still fit a word: 2 * 128 * 127. The unsigned factor is |k|, or k. */
FL_AVX2 __m256i fl_avx2_half_dot(bool wide, __m256i sums, __m256i k, __m256i q) {
    __m256i words = wide ? _mm256_maddubs_epi16(_mm256_abs_epi8(k), _mm256_sign_epi8(q, k))
                         : _mm256_maddubs_epi16(k, q);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}
FL_AVX2 fl_avx2_sums fl_avx2_dot(bool wide, fl_avx2_sums s, fl_avx2_quad k, const int8_t *q) {
    int32_t bits;
    memcpy(&bits, q, sizeof bits);
    __m256i four = _mm256_set1_epi32(bits);
    s.at[0] = fl_avx2_half_dot(wide, s.at[0], k.at[0], four);
    s.at[1] = fl_avx2_half_dot(wide, s.at[1], k.at[1], four);
    return s;
}
FL_AVX2 fl_avx2_v fl_avx2_sums_float(fl_avx2_sums s) {
    return fl_avx2_of_ints(s.at[0], s.at[1]);
}

/* The same with AVX-VNNI, which some processors without AVX-512 have, and newer compilers know. */
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define FL_HAS_AVXVNNI
#define FL_TARGET_AVXVNNI __attribute__((target("avxvnni,avx2,fma,f16c")))
#define FL_AVXVNNI_INLINE FL_INLINE FL_TARGET_AVXVNNI

typedef fl_avx2_sums fl_avxvnni_sums;
typedef fl_avx2_quad fl_avxvnni_quad;

FL_AVXVNNI_INLINE fl_avx2_sums fl_avxvnni_sums_of(bool wide, int32_t start) {
    (void)wide;
    return fl_avx2_quad_of(_mm256_set1_epi32(start), _mm256_set1_epi32(start));
}
FL_AVXVNNI_INLINE fl_avx2_quad fl_avxvnni_load_quads(bool wide, const uint8_t *p) {
    (void)wide;
    return fl_avx2_load_quads(false, p);
}
FL_AVXVNNI_INLINE fl_avx2_quad fl_avxvnni_low_quads(const uint8_t *p) {
    return fl_avx2_low_quads(p);
}
FL_AVXVNNI_INLINE fl_avx2_quad fl_avxvnni_high_quads(const uint8_t *p) {
    return fl_avx2_high_quads(p);
}
FL_AVXVNNI_INLINE fl_avx2_sums fl_avxvnni_dot(bool wide, fl_avx2_sums s, fl_avx2_quad k, const int8_t *q) {
    int32_t bits;
    (void)wide;
    memcpy(&bits, q, sizeof bits);
    __m256i four = _mm256_set1_epi32(bits);
    s.at[0] = _mm256_dpbusd_avx_epi32(s.at[0], k.at[0], four);
    s.at[1] = _mm256_dpbusd_avx_epi32(s.at[1], k.at[1], four);
    return s;
}
FL_AVXVNNI_INLINE fl_avx2_v fl_avxvnni_sums_float(fl_avx2_sums s) {
    return fl_avx2_sums_float(s);
}
#endif

/* Sixty-four bytes. */
typedef fl_avx2_sums fl_avx2_b;

FL_AVX2 fl_avx2_b fl_avx2_b_load(const uint8_t *p) {
    return fl_avx2_quad_of(fl_avx2_wide_bytes(p), fl_avx2_wide_bytes(p + 32));
}
FL_AVX2 void fl_avx2_b_store(uint8_t *p, fl_avx2_b b) {
    _mm256_storeu_si256((__m256i *)(void *)p, b.at[0]);
    _mm256_storeu_si256((__m256i *)(void *)(p + 32), b.at[1]);
}
FL_AVX2 fl_avx2_b fl_avx2_b_or(fl_avx2_b a, fl_avx2_b b) {
    return fl_avx2_quad_of(_mm256_or_si256(a.at[0], b.at[0]), _mm256_or_si256(a.at[1], b.at[1]));
}
/* Words are shifted: what crosses from byte to byte is masked. */
typedef uint16_t fl_avx2_words __attribute__((vector_size(32)));
FL_AVX2 fl_avx2_b fl_avx2_b_left(fl_avx2_b b, int n, int mask) {
    __m256i m = _mm256_set1_epi8((char)mask);
    return fl_avx2_quad_of(_mm256_and_si256((__m256i)((fl_avx2_words)b.at[0] << n), m),
                           _mm256_and_si256((__m256i)((fl_avx2_words)b.at[1] << n), m));
}
FL_AVX2 fl_avx2_b fl_avx2_b_right(fl_avx2_b b, int n, int mask) {
    __m256i m = _mm256_set1_epi8((char)mask);
    return fl_avx2_quad_of(_mm256_and_si256((__m256i)((fl_avx2_words)b.at[0] >> n), m),
                           _mm256_and_si256((__m256i)((fl_avx2_words)b.at[1] >> n), m));
}
FL_AVX2 fl_avx2_quad fl_avx2_as_quad(fl_avx2_b b) {
    return b;
}
#if defined(FL_HAS_AVXVNNI)
FL_AVXVNNI_INLINE fl_avx2_quad fl_avxvnni_as_quad(fl_avx2_b b) {
    return b;
}
#endif

#endif
#endif
