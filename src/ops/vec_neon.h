/* Sixteen floats in four NEON registers; the meaning of each function stands in vec_scalar.h. */
#ifndef FL_VEC_NEON_H
#define FL_VEC_NEON_H

#include "base/base.h"

#if defined(__aarch64__)
#include <arm_neon.h>

typedef struct fl_neon_v {
    float32x4_t a, b, c, d; /* lanes 0-3, 4-7, 8-11, 12-15 */
} fl_neon_v;

FL_INLINE fl_neon_v fl_neon_of(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
    fl_neon_v v = {a, b, c, d};
    return v;
}
FL_INLINE fl_neon_v fl_neon_set1(float f) {
    float32x4_t all = vdupq_n_f32(f);
    return fl_neon_of(all, all, all, all);
}
FL_INLINE fl_neon_v fl_neon_load(const float *p) {
    return fl_neon_of(vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12));
}
FL_INLINE fl_neon_v fl_neon_load_n(const float *p, size_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return fl_neon_load(lanes);
}
/* A half behind sixteen zero bits, which are the lower ones: no shift, for which many processors have one unit only. */
FL_INLINE fl_neon_v fl_neon_load_bf16(const uint16_t *p) {
    uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8), zero = vdupq_n_u16(0);
    return fl_neon_of(vreinterpretq_f32_u16(vzip1q_u16(zero, low)), vreinterpretq_f32_u16(vzip2q_u16(zero, low)),
                      vreinterpretq_f32_u16(vzip1q_u16(zero, high)), vreinterpretq_f32_u16(vzip2q_u16(zero, high)));
}
FL_INLINE fl_neon_v fl_neon_load_f16(const uint16_t *p) {
    float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(p)), high = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return fl_neon_of(vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
                      vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high));
}
FL_INLINE void fl_neon_store(float *p, fl_neon_v v) {
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}
FL_INLINE void fl_neon_store_n(float *p, fl_neon_v v, size_t n) {
    float lanes[16];
    fl_neon_store(lanes, v);
    memcpy(p, lanes, n * sizeof *p);
}
FL_INLINE void fl_neon_store_f16(uint16_t *p, fl_neon_v v) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.a), v.b)));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.c), v.d)));
}
FL_INLINE fl_neon_v fl_neon_fma(fl_neon_v x, fl_neon_v y, fl_neon_v z) {
    return fl_neon_of(vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
                      vfmaq_f32(z.d, x.d, y.d));
}
FL_INLINE fl_neon_v fl_neon_add(fl_neon_v x, fl_neon_v y) {
    return fl_neon_of(x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d);
}
FL_INLINE fl_neon_v fl_neon_sub(fl_neon_v x, fl_neon_v y) {
    return fl_neon_of(x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d);
}
FL_INLINE fl_neon_v fl_neon_mul(fl_neon_v x, fl_neon_v y) {
    return fl_neon_of(x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d);
}
FL_INLINE fl_neon_v fl_neon_div(fl_neon_v x, fl_neon_v y) {
    return fl_neon_of(x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d);
}
/* Not fmax, which differs for NaN and for zeros of two signs. */
FL_INLINE float32x4_t fl_neon_quarter_max(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(x, y), x, y);
}
FL_INLINE float32x4_t fl_neon_quarter_min(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcltq_f32(x, y), x, y);
}
FL_INLINE fl_neon_v fl_neon_max(fl_neon_v x, fl_neon_v y) {
    return fl_neon_of(fl_neon_quarter_max(x.a, y.a), fl_neon_quarter_max(x.b, y.b), fl_neon_quarter_max(x.c, y.c),
                      fl_neon_quarter_max(x.d, y.d));
}
FL_INLINE fl_neon_v fl_neon_min(fl_neon_v x, fl_neon_v y) {
    return fl_neon_of(fl_neon_quarter_min(x.a, y.a), fl_neon_quarter_min(x.b, y.b), fl_neon_quarter_min(x.c, y.c),
                      fl_neon_quarter_min(x.d, y.d));
}
FL_INLINE fl_neon_v fl_neon_round(fl_neon_v x) {
    return fl_neon_of(vrndnq_f32(x.a), vrndnq_f32(x.b), vrndnq_f32(x.c), vrndnq_f32(x.d));
}
FL_INLINE float32x4_t fl_neon_quarter_pow2(float32x4_t x) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(x), vdupq_n_s32(127)), 23));
}
FL_INLINE fl_neon_v fl_neon_pow2(fl_neon_v x) {
    return fl_neon_of(fl_neon_quarter_pow2(x.a), fl_neon_quarter_pow2(x.b), fl_neon_quarter_pow2(x.c),
                      fl_neon_quarter_pow2(x.d));
}
FL_INLINE float32x4_t fl_neon_quarter_zero_below(float32x4_t y, float32x4_t x, float32x4_t limit) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, limit)));
}
FL_INLINE fl_neon_v fl_neon_zero_below(fl_neon_v y, fl_neon_v x, float limit) {
    float32x4_t l = vdupq_n_f32(limit);
    return fl_neon_of(fl_neon_quarter_zero_below(y.a, x.a, l), fl_neon_quarter_zero_below(y.b, x.b, l),
                      fl_neon_quarter_zero_below(y.c, x.c, l), fl_neon_quarter_zero_below(y.d, x.d, l));
}
FL_INLINE fl_neon_v fl_neon_of_i8(int8x16_t bytes) {
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return fl_neon_of(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                      vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high)));
}
FL_INLINE fl_neon_v fl_neon_load_i8(const uint8_t *p) {
    return fl_neon_of_i8(vreinterpretq_s8_u8(vld1q_u8(p)));
}
FL_INLINE uint8x16_t fl_neon_low_bytes(const uint8_t *p) {
    return vandq_u8(vld1q_u8(p), vdupq_n_u8(15));
}
FL_INLINE uint8x16_t fl_neon_high_bytes(const uint8_t *p) {
    return vshrq_n_u8(vld1q_u8(p), 4);
}
FL_INLINE fl_neon_v fl_neon_load_low(const uint8_t *p) {
    return fl_neon_of_i8(vsubq_s8(vreinterpretq_s8_u8(fl_neon_low_bytes(p)), vdupq_n_s8(8)));
}
FL_INLINE fl_neon_v fl_neon_load_high(const uint8_t *p) {
    return fl_neon_of_i8(vsubq_s8(vreinterpretq_s8_u8(fl_neon_high_bytes(p)), vdupq_n_s8(8)));
}
FL_INLINE int16x8_t fl_neon_words(float32x4_t low, float32x4_t high) {
    return vmovn_high_s32(vmovn_s32(vcvtq_s32_f32(low)), vcvtq_s32_f32(high));
}
FL_INLINE void fl_neon_store_i8(int8_t *p, fl_neon_v v) {
    vst1q_s8(p, vmovn_high_s16(vmovn_s16(fl_neon_words(v.a, v.b)), fl_neon_words(v.c, v.d)));
}
/* half is 1 or 2. */
FL_INLINE float32x4_t fl_neon_quarter_butterfly(float32x4_t x, size_t half) {
    const uint32x4_t odd = {0, 0x80000000u, 0, 0x80000000u}, upper = {0, 0, 0x80000000u, 0x80000000u};
    float32x4_t other = half == 1 ? vrev64q_f32(x) : vextq_f32(x, x, 2);
    /* The second of a pair: other - x. */
    return other + vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), half == 1 ? odd : upper));
}
FL_INLINE fl_neon_v fl_neon_butterfly(fl_neon_v x, size_t half) {
    if (half == 8) {
        return fl_neon_of(x.a + x.c, x.b + x.d, x.a - x.c, x.b - x.d);
    }
    if (half == 4) {
        return fl_neon_of(x.a + x.b, x.a - x.b, x.c + x.d, x.c - x.d);
    }
    return fl_neon_of(fl_neon_quarter_butterfly(x.a, half), fl_neon_quarter_butterfly(x.b, half),
                      fl_neon_quarter_butterfly(x.c, half), fl_neon_quarter_butterfly(x.d, half));
}
FL_INLINE float32x4_t fl_neon_quarter_sums(fl_neon_v v) {
    return (v.a + v.c) + (v.b + v.d);
}
FL_INLINE float fl_neon_reduce_add(fl_neon_v v) {
    float32x4_t s4 = fl_neon_quarter_sums(v);
    return vpadds_f32(vget_low_f32(s4) + vget_high_f32(s4));
}
/* The last two sums of x, then those of y. */
FL_INLINE float32x4_t fl_neon_two_sums(float32x4_t x, float32x4_t y) {
    return vcombine_f32(vget_low_f32(x), vget_low_f32(y)) + vcombine_f32(vget_high_f32(x), vget_high_f32(y));
}
FL_INLINE void fl_neon_reduce_add4(fl_neon_v a, fl_neon_v b, fl_neon_v c, fl_neon_v d, float *sums) {
    vst1q_f32(sums, vpaddq_f32(fl_neon_two_sums(fl_neon_quarter_sums(a), fl_neon_quarter_sums(b)),
                               fl_neon_two_sums(fl_neon_quarter_sums(c), fl_neon_quarter_sums(d))));
}
FL_INLINE float fl_neon_reduce_max(fl_neon_v v) {
    float32x4_t s4 = fl_neon_quarter_max(fl_neon_quarter_max(v.a, v.c), fl_neon_quarter_max(v.b, v.d));
    float32x4_t s2 = fl_neon_quarter_max(s4, vextq_f32(s4, s4, 2));
    return vgetq_lane_f32(fl_neon_quarter_max(s2, vdupq_laneq_f32(s2, 1)), 0);
}

typedef struct fl_neon_total {
    uint64x2_t a, b;
} fl_neon_total;

FL_INLINE fl_neon_total fl_neon_no_total(void) {
    fl_neon_total t = {vdupq_n_u64(0), vdupq_n_u64(0)};
    return t;
}
FL_INLINE fl_neon_total fl_neon_add_total(fl_neon_total t, fl_neon_v v) {
    t.a = vpadalq_u32(vpadalq_u32(t.a, vcvtq_u32_f32(v.a)), vcvtq_u32_f32(v.b));
    t.b = vpadalq_u32(vpadalq_u32(t.b, vcvtq_u32_f32(v.c)), vcvtq_u32_f32(v.d));
    return t;
}
FL_INLINE uint64_t fl_neon_sum_total(fl_neon_total t) {
    return vaddvq_u64(vaddq_u64(t.a, t.b));
}
FL_INLINE void fl_neon_store_u32(uint32_t *p, fl_neon_v v) {
    vst1q_u32(p, vcvtq_u32_f32(v.a));
    vst1q_u32(p + 4, vcvtq_u32_f32(v.b));
    vst1q_u32(p + 8, vcvtq_u32_f32(v.c));
    vst1q_u32(p + 12, vcvtq_u32_f32(v.d));
}
FL_INLINE uint32_t fl_neon_quarter_at_least(float32x4_t x, float limit) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(x, vdupq_n_f32(limit)), bits));
}
FL_INLINE uint32_t fl_neon_at_least(fl_neon_v v, float limit) {
    return fl_neon_quarter_at_least(v.a, limit) | fl_neon_quarter_at_least(v.b, limit) << 4 |
           fl_neon_quarter_at_least(v.c, limit) << 8 | fl_neon_quarter_at_least(v.d, limit) << 12;
}

/* Sums of rows 0-3, 4-7, 8-11, 12-15; quads of the same. */
typedef struct fl_neon_sums {
    int32x4_t a, b, c, d;
} fl_neon_sums;
typedef struct fl_neon_quad {
    int8x16_t a, b, c, d;
} fl_neon_quad;

/* Products are of signed bytes only: wide ones are made signed again, and have nothing too much. */
FL_INLINE fl_neon_sums fl_neon_sums_of(bool wide, int32_t start) {
    int32x4_t n = vdupq_n_s32(wide ? 0 : start);
    fl_neon_sums s = {n, n, n, n};
    return s;
}
FL_INLINE fl_neon_quad fl_neon_quads_of(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    fl_neon_quad k = {vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)};
    return k;
}
FL_INLINE uint8x16_t fl_neon_signed_bytes(bool wide, const uint8_t *p) {
    return wide ? veorq_u8(vld1q_u8(p), vdupq_n_u8(128)) : vld1q_u8(p);
}
FL_INLINE fl_neon_quad fl_neon_load_quads(bool wide, const uint8_t *p) {
    return fl_neon_quads_of(fl_neon_signed_bytes(wide, p), fl_neon_signed_bytes(wide, p + 16),
                            fl_neon_signed_bytes(wide, p + 32), fl_neon_signed_bytes(wide, p + 48));
}
FL_INLINE fl_neon_quad fl_neon_low_quads(const uint8_t *p) {
    return fl_neon_quads_of(fl_neon_low_bytes(p), fl_neon_low_bytes(p + 16), fl_neon_low_bytes(p + 32),
                            fl_neon_low_bytes(p + 48));
}
FL_INLINE fl_neon_quad fl_neon_high_quads(const uint8_t *p) {
    return fl_neon_quads_of(fl_neon_high_bytes(p), fl_neon_high_bytes(p + 16), fl_neon_high_bytes(p + 32),
                            fl_neon_high_bytes(p + 48));
}
FL_INLINE int8x16_t fl_neon_four(const int8_t *q) {
    int32_t bits;
    memcpy(&bits, q, sizeof bits);
    return vreinterpretq_s8_s32(vdupq_n_s32(bits));
}
/* Two products of 8 bits, added, still fit a word: 2 * 128 * 127. */
FL_INLINE int32x4_t fl_neon_quarter_dot(int32x4_t sums, int8x16_t k, int8x16_t q) {
    int16x8_t low = vmull_s8(vget_low_s8(k), vget_low_s8(q)), high = vmull_high_s8(k, q);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}
FL_INLINE fl_neon_sums fl_neon_dot(bool wide, fl_neon_sums s, fl_neon_quad k, const int8_t *q) {
    int8x16_t four = fl_neon_four(q);
    (void)wide;
    s.a = fl_neon_quarter_dot(s.a, k.a, four);
    s.b = fl_neon_quarter_dot(s.b, k.b, four);
    s.c = fl_neon_quarter_dot(s.c, k.c, four);
    s.d = fl_neon_quarter_dot(s.d, k.d, four);
    return s;
}
FL_INLINE fl_neon_v fl_neon_sums_float(fl_neon_sums s) {
    return fl_neon_of(vcvtq_f32_s32(s.a), vcvtq_f32_s32(s.b), vcvtq_f32_s32(s.c), vcvtq_f32_s32(s.d));
}

/* The same with SDOT, which some processors have. By its bits, because an assembler takes the name only in a function
 * whose target has it, and a compiler puts none of the functions above into such a one if a host asks for a processor
 * that is not part of that target. The numbers of registers are made from their names. */
#define FL_INST(bits)                                                                                            \
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"           \
    ".equ .Lfl_v\\n, \\n\n\t.endr\n\t"                                                                           \
    ".inst " bits " + .Lfl_%0 + (.Lfl_%1 << 5) + (.Lfl_%2 << 16)"
#define FL_SDOT FL_INST("0x4e809400")
#define FL_USMMLA FL_INST("0x4e80ac00")

typedef fl_neon_sums fl_dotprod_sums;
typedef fl_neon_quad fl_dotprod_quad;

FL_INLINE fl_neon_sums fl_dotprod_sums_of(bool wide, int32_t start) {
    return fl_neon_sums_of(wide, start);
}
FL_INLINE fl_neon_quad fl_dotprod_load_quads(bool wide, const uint8_t *p) {
    return fl_neon_load_quads(wide, p);
}
FL_INLINE fl_neon_quad fl_dotprod_low_quads(const uint8_t *p) {
    return fl_neon_low_quads(p);
}
FL_INLINE fl_neon_quad fl_dotprod_high_quads(const uint8_t *p) {
    return fl_neon_high_quads(p);
}
FL_INLINE int32x4_t fl_dotprod_quarter_dot(int32x4_t sums, int8x16_t k, int8x16_t q) {
    __asm__(FL_SDOT : "+w"(sums) : "w"(k), "w"(q));
    return sums;
}
FL_INLINE fl_neon_sums fl_dotprod_dot(bool wide, fl_neon_sums s, fl_neon_quad k, const int8_t *q) {
    int8x16_t four = fl_neon_four(q);
    (void)wide;
    s.a = fl_dotprod_quarter_dot(s.a, k.a, four);
    s.b = fl_dotprod_quarter_dot(s.b, k.b, four);
    s.c = fl_dotprod_quarter_dot(s.c, k.c, four);
    s.d = fl_dotprod_quarter_dot(s.d, k.d, four);
    return s;
}
FL_INLINE fl_neon_v fl_dotprod_sums_float(fl_neon_sums s) {
    return fl_neon_sums_float(s);
}

/* Two rows together, with USMMLA, which some of those have: the sums of rows 0-3, 4-7, 8-11, 12-15 of weights with
 * both, [2][weights 2][rows 2]; quads of the same, of eight columns. */
typedef struct fl_i8mm_sums {
    int32x4x2_t a, b, c, d;
} fl_i8mm_sums;
typedef struct fl_i8mm_quad {
    uint32x4x2_t a, b, c, d;
} fl_i8mm_quad;

/* Unsigned bytes are multiplied as they are, wide ones too. */
FL_INLINE fl_i8mm_sums fl_i8mm_sums_of(bool wide, int32_t first, int32_t second) {
    (void)wide;
    int32x4_t both = vzip1q_s32(vdupq_n_s32(first), vdupq_n_s32(second));
    int32x4x2_t four = {{both, both}};
    fl_i8mm_sums s = {four, four, four, four};
    return s;
}
FL_INLINE uint32x4x2_t fl_i8mm_two_quads(const uint8_t *p) {
    return vzipq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vreinterpretq_u32_u8(vld1q_u8(p + 64)));
}
FL_INLINE fl_i8mm_quad fl_i8mm_load_quads(bool wide, const uint8_t *p) {
    fl_i8mm_quad k = {fl_i8mm_two_quads(p), fl_i8mm_two_quads(p + 16), fl_i8mm_two_quads(p + 32),
                      fl_i8mm_two_quads(p + 48)};
    (void)wide;
    return k;
}
FL_INLINE int32x4x2_t fl_i8mm_quarter_dot(int32x4x2_t sums, uint32x4x2_t k, int8x16_t q) {
    __asm__(FL_USMMLA : "+w"(sums.val[0]) : "w"(k.val[0]), "w"(q));
    __asm__(FL_USMMLA : "+w"(sums.val[1]) : "w"(k.val[1]), "w"(q));
    return sums;
}
FL_INLINE fl_i8mm_sums fl_i8mm_dot(bool wide, fl_i8mm_sums s, fl_i8mm_quad k, const int8_t *first,
                                   const int8_t *second) {
    int8x16_t both = vcombine_s8(vld1_s8(first), vld1_s8(second));
    (void)wide;
    s.a = fl_i8mm_quarter_dot(s.a, k.a, both);
    s.b = fl_i8mm_quarter_dot(s.b, k.b, both);
    s.c = fl_i8mm_quarter_dot(s.c, k.c, both);
    s.d = fl_i8mm_quarter_dot(s.d, k.d, both);
    return s;
}
FL_INLINE float32x4_t fl_i8mm_quarter_float(int32x4x2_t sums, bool second) {
    return vcvtq_f32_s32(second ? vuzp2q_s32(sums.val[0], sums.val[1]) : vuzp1q_s32(sums.val[0], sums.val[1]));
}
FL_INLINE fl_neon_v fl_i8mm_sums_float(fl_i8mm_sums s, bool second) {
    return fl_neon_of(fl_i8mm_quarter_float(s.a, second), fl_i8mm_quarter_float(s.b, second),
                      fl_i8mm_quarter_float(s.c, second), fl_i8mm_quarter_float(s.d, second));
}

#undef FL_INST
#undef FL_SDOT
#undef FL_USMMLA

/* Sixty-four bytes. */
typedef struct fl_neon_b {
    uint8x16_t at[4];
} fl_neon_b;

FL_INLINE fl_neon_b fl_neon_b_load(const uint8_t *p) {
    fl_neon_b b = {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
    return b;
}
FL_INLINE void fl_neon_b_store(uint8_t *p, fl_neon_b b) {
    for (int i = 0; i < 4; i++) {
        vst1q_u8(p + 16 * i, b.at[i]);
    }
}
FL_INLINE fl_neon_b fl_neon_b_or(fl_neon_b a, fl_neon_b b) {
    for (int i = 0; i < 4; i++) {
        a.at[i] = vorrq_u8(a.at[i], b.at[i]);
    }
    return a;
}
FL_INLINE fl_neon_b fl_neon_b_left(fl_neon_b b, int n, int mask) {
    for (int i = 0; i < 4; i++) {
        b.at[i] = vandq_u8(vshlq_u8(b.at[i], vdupq_n_s8((int8_t)n)), vdupq_n_u8((uint8_t)mask));
    }
    return b;
}
FL_INLINE fl_neon_b fl_neon_b_right(fl_neon_b b, int n, int mask) {
    return fl_neon_b_left(b, -n, mask); /* USHL shifts to the right by what is below zero */
}
FL_INLINE fl_neon_quad fl_neon_as_quad(fl_neon_b b) {
    return fl_neon_quads_of(b.at[0], b.at[1], b.at[2], b.at[3]);
}
FL_INLINE fl_neon_quad fl_dotprod_as_quad(fl_neon_b b) {
    return fl_neon_as_quad(b);
}
#endif
#endif
