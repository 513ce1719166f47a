#include "formats/blocks.h"

#define FL_SUPER 256 /* numbers in a block of the K types */

/* By type. Of those that no other type holds, q8 loses least: of random blocks of Q4_1, Q5_1 and Q2_K 0.4 % of their
 * numbers' size as root of mean squares and at most 1.4 %, where q6_k and q5_k lose 0.6 to 1.6 % and 4 to 11 %; of
 * IQ4_XS 0.02 and 0.1 % (test_blocks.c). */
static const struct {
    uint16_t numbers, bytes; /* of a block */
    fl_dtype computed;
} fl_block_types[FL_DTYPE_COUNT + 1] = {
    {1, 4, FL_F32},      {1, 2, FL_F16},     {1, 2, FL_BF16},    {32, 34, FL_Q8_0},   {1, 1, FL_Q8_ROW},
    {32, 18, FL_Q4_0},   {256, 144, FL_Q4_K}, {256, 176, FL_Q5_K}, {256, 210, FL_Q6_K}, {1, 1, FL_Q4_ZERO},
    {32, 20, FL_Q8_0},   {32, 22, FL_Q8_0},  {32, 24, FL_Q8_0},  {256, 84, FL_Q8_0},  {256, 110, FL_Q6_K},
    {32, 18, FL_Q8_0},   {256, 136, FL_Q8_0}, {32, 17, FL_Q8_0}, {1, 1, FL_DTYPE_OTHER},
};

FL_LOCAL size_t fl_block_numbers(fl_dtype type) {
    return fl_block_types[type].numbers;
}

FL_LOCAL size_t fl_block_bytes(fl_dtype type) {
    return fl_block_types[type].bytes;
}

FL_LOCAL fl_dtype fl_computed_type(fl_dtype type) {
    return fl_block_types[type].computed;
}

/* ---- Decoding: the product is exact, so that a compiler which fuses it with the difference changes nothing -- */

static float fl_get_half(const uint8_t *p) {
    return fl_float_of_f16((uint16_t)(p[0] | p[1] << 8));
}

static void fl_dequantise_q8_0(const uint8_t *b, float *y) {
    float d = fl_get_half(b);
    for (size_t i = 0; i < 32; i++) {
        y[i] = (float)(int8_t)b[2 + i] * d;
    }
}

static void fl_dequantise_q4_0(const uint8_t *b, float *y) {
    float d = fl_get_half(b);
    for (size_t i = 0; i < 16; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

/* The scales and minima of 8 groups, 6 bits each: the low bits of the last four, and the high bits of those above the
 * six of the first four. */
FL_LOCAL void fl_get_sixes(const uint8_t *b, uint8_t *scales, uint8_t *mins) {
    for (size_t i = 0; i < 4; i++) {
        scales[i] = b[i] & 63;
        mins[i] = b[i + 4] & 63;
        scales[i + 4] = (uint8_t)((b[i + 8] & 15) | b[i] >> 6 << 4);
        mins[i + 4] = (uint8_t)(b[i + 8] >> 4 | b[i + 4] >> 6 << 4);
    }
}

/* d, dmin, scales[12], the fifth bits if there are any, and 8 groups of 32: two share 32 bytes of nibbles. */
FL_INLINE void fl_dequantise_pairs(const uint8_t *b, bool fifth, float *y) {
    const uint8_t *high = b + 16, *low = fifth ? high + 32 : high;
    uint8_t scales[8], mins[8];
    float d = fl_get_half(b), dmin = fl_get_half(b + 2);
    fl_get_sixes(b + 4, scales, mins);
    for (size_t g = 0; g < 8; g++) {
        float step = d * (float)scales[g], min = dmin * (float)mins[g];
        for (size_t i = 0; i < 32; i++) {
            int q = low[g / 2 * 32 + i] >> (g % 2 * 4) & 15;
            q += fifth ? (high[i] >> g & 1) << 4 : 0;
            y[32 * g + i] = step * (float)q - min;
        }
    }
}

static void fl_dequantise_q4_k(const uint8_t *b, float *y) {
    fl_dequantise_pairs(b, false, y);
}

static void fl_dequantise_q5_k(const uint8_t *b, float *y) {
    fl_dequantise_pairs(b, true, y);
}

/* low[128], high[64], scales[16], d. Of each half of the numbers: 4 runs of 32, whose low nibbles lie in 64 bytes and
 * whose high two bits in 32. */
static void fl_dequantise_q6_k(const uint8_t *b, float *y) {
    float d = fl_get_half(b + 208);
    for (size_t g = 0; g < 16; g++) {
        const uint8_t *low = b + g / 8 * 64 + g % 4 * 16, *high = b + 128 + g / 8 * 32 + g % 2 * 16;
        float step = d * (float)(int8_t)b[192 + g];
        for (size_t i = 0; i < 16; i++) {
            int q = (low[i] >> (g % 8 / 4 * 4) & 15) | (high[i] >> (g % 8 / 2 * 2) & 3) << 4;
            y[16 * g + i] = step * (float)(q - 32);
        }
    }
}

/* ---- Blocks that are in files only, laid open -- */

/* A number is d * scale * q, with a minimum d * scale * q + m * min; scales and minima are of 16 numbers each. */
typedef struct fl_open_block {
    float d, m;
    bool has_mins;
    int8_t scales[16], mins[16], q[FL_SUPER];
} fl_open_block;

static const int8_t fl_iq4_levels[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t fl_mxfp4_levels[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* An exponent, which counts steps twice as large as those of the levels above. */
static float fl_get_power(uint8_t exponent) {
    uint32_t e = exponent;
    return fl_float_of_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

/* What is said of all numbers, the fifth bits if there are any, and 16 bytes of nibbles. */
static void fl_open_32(fl_dtype type, const uint8_t *b, fl_open_block *o) {
    const uint8_t *low = b + fl_block_bytes(type) - 16;
    uint32_t fifth = type == FL_Q5_0 || type == FL_Q5_1 ? fl_load_u32(low - 4) : 0;
    o->has_mins = type == FL_Q4_1 || type == FL_Q5_1;
    o->d = type == FL_MXFP4 ? fl_get_power(b[0]) : fl_get_half(b);
    o->m = o->has_mins ? fl_get_half(b + 2) : 0;
    memset(o->scales, 1, 2);
    memset(o->mins, 1, 2);
    for (size_t i = 0; i < 16; i++) {
        o->q[i] = (int8_t)((low[i] & 15) | (fifth >> i & 1) << 4);
        o->q[i + 16] = (int8_t)(low[i] >> 4 | (fifth >> (i + 16) & 1) << 4);
    }
    const int8_t *levels = type == FL_IQ4_NL ? fl_iq4_levels : type == FL_MXFP4 ? fl_mxfp4_levels : NULL;
    for (size_t i = 0; i < 32 && levels != NULL; i++) {
        o->q[i] = levels[o->q[i]];
    }
    for (size_t i = 0; i < 32 && type == FL_Q5_0; i++) {
        o->q[i] = (int8_t)(o->q[i] - 16);
    }
}

/* Two bits each; of each half of the numbers, 4 runs of 32 share 32 bytes. */
static void fl_open_twos(const uint8_t *b, int8_t *q) {
    for (size_t run = 0; run < 8; run++) {
        for (size_t i = 0; i < 32; i++) {
            q[32 * run + i] = (int8_t)(b[run / 4 * 32 + i] >> (run % 4 * 2) & 3);
        }
    }
}

/* scales[16] with minima in the high nibbles, twos[64], d, dmin. */
static void fl_open_q2_k(const uint8_t *b, fl_open_block *o) {
    o->has_mins = true;
    o->d = fl_get_half(b + 80);
    o->m = -fl_get_half(b + 82);
    for (size_t g = 0; g < 16; g++) {
        o->scales[g] = b[g] & 15;
        o->mins[g] = (int8_t)(b[g] >> 4);
    }
    fl_open_twos(b + 16, o->q);
}

/* Third bits[32], one for each run, twos[64], scales[12], d. Of the scales, 8 bytes of low nibbles, then 4 of high two
 * bits. */
static void fl_open_q3_k(const uint8_t *b, fl_open_block *o) {
    o->has_mins = false;
    o->d = fl_get_half(b + 108);
    for (size_t g = 0; g < 16; g++) {
        int low = b[96 + g % 8] >> (g / 8 * 4) & 15, high = b[104 + g % 4] >> (g / 4 * 2) & 3;
        o->scales[g] = (int8_t)((low | high << 4) - 32);
    }
    fl_open_twos(b + 32, o->q);
    for (size_t run = 0; run < 8; run++) {
        int8_t *q = o->q + 32 * run;
        for (size_t i = 0; i < 32; i++) {
            q[i] = (int8_t)(q[i] + (b[i] >> run & 1) * 4 - 4);
        }
    }
}

/* d, high two bits of the scales, their low nibbles[4], 8 groups of nibbles[16]. */
static void fl_open_iq4_xs(const uint8_t *b, fl_open_block *o) {
    int highs = b[2] | b[3] << 8;
    o->has_mins = false;
    o->d = fl_get_half(b);
    for (size_t g = 0; g < 8; g++) {
        int low = b[4 + g / 2] >> (g % 2 * 4) & 15, high = highs >> (2 * g) & 3;
        o->scales[2 * g] = o->scales[2 * g + 1] = (int8_t)((low | high << 4) - 32);
        for (size_t i = 0; i < 16; i++) {
            o->q[32 * g + i] = fl_iq4_levels[b[8 + 16 * g + i] & 15];
            o->q[32 * g + 16 + i] = fl_iq4_levels[b[8 + 16 * g + i] >> 4];
        }
    }
}

static void fl_open_any(fl_dtype type, const uint8_t *b, fl_open_block *o) {
    switch (type) {
    case FL_Q2_K:
        fl_open_q2_k(b, o);
        break;
    case FL_Q3_K:
        fl_open_q3_k(b, o);
        break;
    case FL_IQ4_XS:
        fl_open_iq4_xs(b, o);
        break;
    default:
        fl_open_32(type, b, o);
        break;
    }
}

/* n numbers from one on, both multiples of 16. */
static void fl_dequantise_open(const fl_open_block *o, size_t first, size_t n, float *y) {
    for (size_t i = 0; i < n; i += 16) {
        size_t g = (first + i) / 16;
        const int8_t *q = o->q + 16 * g;
        float step = o->d * (float)o->scales[g], min = o->has_mins ? o->m * (float)o->mins[g] : 0;
        for (size_t k = 0; k < 16; k++) {
            float product = step * (float)q[k];
            y[i + k] = o->has_mins ? product + min : product; /* -0 stays -0 */
        }
    }
}

FL_LOCAL void fl_dequantise(fl_dtype type, const void *blocks, size_t n, float *y) {
    fl_open_block o;
    size_t numbers = fl_block_numbers(type), bytes = fl_block_bytes(type);
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n; i += numbers, b += bytes) {
        switch (type) {
        case FL_Q8_0:
            fl_dequantise_q8_0(b, y + i);
            break;
        case FL_Q4_0:
            fl_dequantise_q4_0(b, y + i);
            break;
        case FL_Q4_K:
            fl_dequantise_q4_k(b, y + i);
            break;
        case FL_Q5_K:
            fl_dequantise_q5_k(b, y + i);
            break;
        case FL_Q6_K:
            fl_dequantise_q6_k(b, y + i);
            break;
        default:
            fl_open_any(type, b, &o);
            fl_dequantise_open(&o, 0, numbers, y + i);
            break;
        }
    }
}

/* ---- Encoding: loops over a fixed 16 or 32 without branches, which compilers turn into vectors. The same bytes
 * everywhere, so a product that is added to something is exact, fused or not: of numbers cut short, or in double -- */

static void fl_put_half(uint8_t *p, uint16_t half) {
    p[0] = (uint8_t)half;
    p[1] = (uint8_t)(half >> 8);
}

/* What every scale and every sum below can take: at most 65504, a NaN as 0, and 0 below 2^-30, where f16 has long
 * ended. By bits, because a host's -ffast-math lets the compiler assume that there is no NaN. */
static void fl_tame(const float *from, size_t n, float *x) {
    for (size_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)fl_bits_of_float(from[i]), sign = bits & INT32_MIN, magnitude = bits & INT32_MAX;
        magnitude = magnitude > 0x7F800000 ? 0 : magnitude;
        magnitude = magnitude > 0x477FE000 ? 0x477FE000 : magnitude;
        magnitude = magnitude < 0x30800000 ? 0 : magnitude;
        sign = magnitude == 0 ? 0 : sign;
        x[i] = fl_float_of_bits((uint32_t)(sign | magnitude));
    }
}

/* x without its lowest n bits. */
FL_INLINE float fl_cut(float x, int n) {
    return fl_float_of_bits(fl_bits_of_float(x) >> n << n);
}

/* Half of twice_x to the nearest integer, a half away from zero, but within low..top; |twice_x| < 2^31. Integers are
 * limited, in one statement each, because gcc makes branches of the rest. */
FL_INLINE int32_t fl_level(float twice_x, int32_t low, int32_t top) {
    int32_t twice = (int32_t)twice_x, q = (twice + 1 + (twice >> 31)) >> 1;
    q = q < low ? low : q;
    q = q > top ? top : q;
    return q;
}

/* The sum of n numbers, 16 or 32, which are lost: by halves, an order that vectors can take. */
FL_INLINE float fl_block_sum(float *v, size_t n) {
    if (n == 32) {
        for (size_t i = 0; i < 16; i++) {
            v[i] += v[i + 16];
        }
    }
    for (size_t i = 0; i < 8; i++) {
        v[i] += v[i + 8];
    }
    for (size_t i = 0; i < 4; i++) {
        v[i] += v[i + 4];
    }
    return (v[0] + v[2]) + (v[1] + v[3]);
}

FL_INLINE float fl_lesser(float a, float b) {
    return a < b ? a : b;
}

FL_INLINE float fl_greater(float a, float b) {
    return a > b ? a : b;
}

/* Of n numbers, 16 or 32. */
FL_INLINE void fl_extremes(const float *x, size_t n, float *least, float *most) {
    float low[16], high[16];
    for (size_t i = 0; i < 16; i++) {
        low[i] = fl_lesser(x[i], x[i + n - 16]);
        high[i] = fl_greater(x[i], x[i + n - 16]);
    }
    for (size_t i = 0; i < 8; i++) {
        low[i] = fl_lesser(low[i], low[i + 8]);
        high[i] = fl_greater(high[i], high[i + 8]);
    }
    for (size_t i = 0; i < 4; i++) {
        low[i] = fl_lesser(low[i], low[i + 4]);
        high[i] = fl_greater(high[i], high[i + 4]);
    }
    *least = fl_lesser(fl_lesser(low[0], low[1]), fl_lesser(low[2], low[3]));
    *most = fl_greater(fl_greater(high[0], high[1]), fl_greater(high[2], high[3]));
}

/* The f16 nearest to most / top, most >= 0; the next one if `most` were out of reach by more than half a step, which
 * happens only where f16 is subnormal. */
static uint16_t fl_scale_of(float most, float top) {
    uint16_t d = fl_f16_of_float(most / top);
    return (uint16_t)(d + ((top + 0.5f) * fl_float_of_f16(d) < most));
}

/* What numbers are multiplied by on their way to fl_level; a step of 0 makes all of them 0. */
static float fl_twice_inverse(float step) {
    return step != 0 ? 2 / step : 0;
}

static void fl_quantise_q8_0(const float *from, uint8_t *b) {
    float x[32], least, most;
    fl_tame(from, 32, x);
    fl_extremes(x, 32, &least, &most);
    uint16_t half = fl_scale_of(fl_greater(-least, most), 127);
    float twice = fl_twice_inverse(fl_float_of_f16(half));
    fl_put_half(b, half);
    for (size_t i = 0; i < 32; i++) {
        b[2 + i] = (uint8_t)fl_level(x[i] * twice, -127, 127);
    }
}

/* n numbers as step * q, q in -top..top - 1. Each try puts the number of greatest magnitude at or near -top, rounds the
 * others, and solves for the step of least squared error with these integers, which explains (sum qx)^2 / sum qq of
 * the sum of x^2. A coarser grid, which clips, is often the better one; a finer one rarely. */
FL_INLINE float fl_fit_step(const float *x, size_t n, int32_t top) {
    float least, most, best = 0, step = 0, qx[32], qq[32];
    fl_extremes(x, n, &least, &most);
    float unit = (float)-top * fl_twice_inverse(most > -least ? most : least);
    for (int t = 59; t < 91; t += 2) {
        float twice = unit * ((float)t * 0.0125f);
        for (size_t i = 0; i < n; i++) {
            float q = (float)fl_level(x[i] * twice, -top, top - 1);
            qx[i] = q * fl_cut(x[i], 6);
            qq[i] = q * q;
        }
        float sum_qx = fl_block_sum(qx, n), sum_qq = fl_block_sum(qq, n), fitted = sum_qq != 0 ? sum_qx / sum_qq : 0;
        float explained = sum_qx * fitted;
        step = explained > best ? fitted : step;
        best = fl_greater(best, explained);
    }
    return step;
}

static void fl_quantise_q4_0(const float *from, uint8_t *b) {
    float x[32];
    fl_tame(from, 32, x);
    uint16_t half = fl_f16_of_float(fl_fit_step(x, 32, 8));
    float twice = fl_twice_inverse(fl_float_of_f16(half));
    fl_put_half(b, half);
    for (size_t i = 0; i < 16; i++) {
        int32_t low = fl_level(x[i] * twice, -8, 7) + 8, high = fl_level(x[i + 16] * twice, -8, 7) + 8;
        b[2 + i] = (uint8_t)(low | high << 4);
    }
}

/* A group's numbers are step * q - min. */
typedef struct fl_line {
    float step, min;
} fl_line;

FL_INLINE void fl_levels(const float *x, size_t n, fl_line line, int32_t low, int32_t top, int32_t *q) {
    float twice = fl_twice_inverse(line.step);
    for (size_t i = 0; i < n; i++) {
        q[i] = fl_level((x[i] + line.min) * twice, low, top);
    }
}

/* The squared error of n numbers on a line whose integers are those nearest to them. */
FL_INLINE float fl_line_error(const float *x, size_t n, fl_line line, int32_t low, int32_t top) {
    int32_t q[32];
    float squares[32];
    fl_levels(x, n, line, low, top, q);
    for (size_t i = 0; i < n; i++) {
        float off = fl_cut(x[i] - (line.step * (float)q[i] - line.min), 12);
        squares[i] = off * off;
    }
    return fl_block_sum(squares, n);
}

/* 32 numbers on a line, q in 0..top and min >= 0. The search is over y, the numbers above the least of them or above
 * 0: each try rounds y on a grid about as wide as they are, and solves for slope and shift, y = slope * q + shift, of
 * least squared error with these integers. They explain slope * sum q(y - shift) + shift * sum (2y - shift) of the sum
 * of y^2. */
static fl_line fl_fit_line(const float *x, int32_t top) {
    float least, most, y[32], qs[32], qy[32], qq[32];
    double best = 0;
    fl_extremes(x, 32, &least, &most);
    least = fl_lesser(least, 0);
    fl_line line = {0, -least};
    for (size_t i = 0; i < 32; i++) {
        y[i] = qy[i] = fl_cut(x[i] - least, 6);
    }
    float unit = fl_twice_inverse(most - least) * 0.2f;
    double sum_y = (double)fl_block_sum(qy, 32);
    for (int32_t t = 5 * top - 14; t < 5 * top + 6; t++) {
        float twice = unit * (float)t;
        for (size_t i = 0; i < 32; i++) {
            float q = (float)fl_level(y[i] * twice, 0, top);
            qs[i] = q;
            qy[i] = q * y[i];
            qq[i] = q * q;
        }
        double sum_q = (double)fl_block_sum(qs, 32), sum_qy = (double)fl_block_sum(qy, 32);
        double sum_qq = (double)fl_block_sum(qq, 32);
        double spread = 32 * sum_qq - sum_q * sum_q, mean = sum_y * sum_qq - sum_q * sum_qy;
        float shift = fl_lesser(spread != 0 ? (float)(mean / spread) : 0, -least);
        float rest = (float)(sum_qy - (double)shift * sum_q), slope = sum_qq != 0 ? rest / (float)sum_qq : 0;
        float by_shift = (float)(2 * sum_y - 32 * (double)shift);
        double explained = (double)slope * (double)rest + (double)shift * (double)by_shift;
        if (explained > best) {
            best = explained;
            line.step = slope;
            line.min = -(least + shift);
        }
    }
    return line;
}

/* Of the multiples of d and dmin around a line: those with the least squared error. */
static void fl_choose_line(const float *x, int32_t top, fl_line line, float d, float dmin, uint8_t *scale,
                           uint8_t *min) {
    int32_t s = fl_level(line.step * fl_twice_inverse(d), 1, 62);
    int32_t m = fl_level(line.min * fl_twice_inverse(dmin), 1, 62);
    float best = FLT_MAX;
    for (int32_t i = s - 1; i <= s + 1; i++) {
        for (int32_t j = m - 1; j <= m + 1; j++) {
            fl_line here = {d * (float)i, dmin * (float)j};
            float error = fl_line_error(x, 32, here, 0, top);
            if (error < best) {
                best = error;
                *scale = (uint8_t)i;
                *min = (uint8_t)j;
            }
        }
    }
}

static void fl_put_sixes(const uint8_t *scales, const uint8_t *mins, uint8_t *b) {
    for (size_t i = 0; i < 4; i++) {
        b[i] = (uint8_t)(scales[i] | scales[i + 4] >> 4 << 6);
        b[i + 4] = (uint8_t)(mins[i] | mins[i + 4] >> 4 << 6);
        b[i + 8] = (uint8_t)((scales[i + 4] & 15) | (mins[i + 4] & 15) << 4);
    }
}

/* The integers of group g; the bytes were zero before the first group. */
static void fl_put_pair(const int32_t *q, size_t g, bool fifth, uint8_t *b) {
    uint8_t *high = b + 16, *low = (fifth ? high + 32 : high) + g / 2 * 32;
    for (size_t i = 0; i < 32; i++) {
        low[i] = (uint8_t)(low[i] | (q[i] & 15) << (g % 2 * 4));
    }
    for (size_t i = 0; fifth && i < 32; i++) {
        high[i] = (uint8_t)(high[i] | q[i] >> 4 << g);
    }
}

static void fl_quantise_pairs(const float *from, fl_dtype type, uint8_t *b) {
    float x[FL_SUPER], most_step = 0, most_min = 0;
    bool fifth = type == FL_Q5_K;
    int32_t top = fifth ? 31 : 15, q[32];
    fl_line lines[8];
    uint8_t scales[8] = {0}, mins[8] = {0};
    fl_tame(from, FL_SUPER, x);
    for (size_t g = 0; g < 8; g++) {
        lines[g] = fl_fit_line(x + 32 * g, top);
        most_step = fl_greater(lines[g].step, most_step);
        most_min = fl_greater(lines[g].min, most_min);
    }
    most_step = fl_greater(most_step, most_min * 9.5367431640625e-7f); /* 2^-20: integers stay far below 2^31 */
    uint16_t half = fl_scale_of(most_step, 63), half_min = fl_scale_of(most_min, 63);
    float d = fl_float_of_f16(half), dmin = fl_float_of_f16(half_min);
    memset(b, 0, fl_block_bytes(type));
    for (size_t g = 0; g < 8; g++) {
        fl_choose_line(x + 32 * g, top, lines[g], d, dmin, scales + g, mins + g);
        fl_line line = {d * (float)scales[g], dmin * (float)mins[g]};
        fl_levels(x + 32 * g, 32, line, 0, top, q);
        fl_put_pair(q, g, fifth, b);
    }
    fl_put_half(b, half);
    fl_put_half(b + 2, half_min);
    fl_put_sixes(scales, mins, b + 4);
}

FL_INLINE float fl_step_error(const float *x, float step) {
    fl_line line = {step, 0};
    return fl_line_error(x, 16, line, -32, 31);
}

/* Of the multiples of d around a step: that with the least squared error, the nearest if equal. */
static int32_t fl_choose_step(const float *x, float step, float d) {
    int32_t s = fl_level(step * fl_twice_inverse(d), -127, 126);
    float same = fl_step_error(x, d * (float)s), below = fl_step_error(x, d * (float)(s - 1)),
          above = fl_step_error(x, d * (float)(s + 1));
    if (below < same && below <= above) {
        return s - 1;
    }
    return above < same ? s + 1 : s;
}

/* The integers of group g; the bytes were zero before the first group. */
FL_INLINE void fl_put_sixteen(const int32_t *q, size_t g, uint8_t *b) {
    uint8_t *low = b + g / 8 * 64 + g % 4 * 16, *high = b + 128 + g / 8 * 32 + g % 2 * 16;
    for (size_t i = 0; i < 16; i++) {
        low[i] = (uint8_t)(low[i] | ((q[i] + 32) & 15) << (g % 8 / 4 * 4));
        high[i] = (uint8_t)(high[i] | (q[i] + 32) >> 4 << (g % 8 / 2 * 2));
    }
}

/* The step of greatest magnitude becomes -128 * d: d has the opposite sign. */
static void fl_quantise_q6_k(const float *from, uint8_t *b) {
    float x[FL_SUPER], steps[16], least, most;
    int32_t q[16];
    fl_tame(from, FL_SUPER, x);
    for (size_t g = 0; g < 16; g++) {
        steps[g] = fl_fit_step(x + 16 * g, 16, 32);
    }
    fl_extremes(steps, 16, &least, &most);
    uint16_t half = fl_scale_of(fl_greater(-least, most), 128);
    half = (uint16_t)(half | (most > -least ? 0x8000 : 0));
    float d = fl_float_of_f16(half);
    memset(b, 0, 208);
    for (size_t g = 0; g < 16; g++) {
        int32_t scale = fl_choose_step(x + 16 * g, steps[g], d);
        fl_line line = {d * (float)scale, 0};
        fl_levels(x + 16 * g, 16, line, -32, 31, q);
        fl_put_sixteen(q, g, b);
        b[192 + g] = (uint8_t)scale;
    }
    fl_put_half(b + 208, half);
}

FL_LOCAL void fl_quantise(fl_dtype type, const float *x, size_t n, void *blocks) {
    size_t numbers = fl_block_numbers(type), bytes = fl_block_bytes(type);
    uint8_t *b = blocks;
    for (size_t i = 0; i < n; i += numbers, b += bytes) {
        switch (type) {
        case FL_Q8_0:
            fl_quantise_q8_0(x + i, b);
            break;
        case FL_Q4_0:
            fl_quantise_q4_0(x + i, b);
            break;
        case FL_Q4_K:
        case FL_Q5_K:
            fl_quantise_pairs(x + i, type, b);
            break;
        default:
            fl_quantise_q6_k(x + i, b);
            break;
        }
    }
}

/* ---- Moving: scales and integers as they are, wherever the other type has room for them -- */

static void fl_move_to_q6_k(const fl_open_block *o, uint8_t *b) {
    memset(b, 0, 208);
    for (size_t g = 0; g < 16; g++) {
        int32_t q[16];
        for (size_t i = 0; i < 16; i++) {
            q[i] = o->q[16 * g + i];
        }
        fl_put_sixteen(q, g, b);
        b[192 + g] = (uint8_t)o->scales[g];
    }
    fl_put_half(b + 208, fl_f16_of_float(o->d));
}

/* A power of two that f16 does not have: what it is too small or too large by goes to the integers, which have room
 * for 8 times as much. */
static void fl_fit_power(fl_open_block *o) {
    float held = fl_lesser(fl_greater(o->d, 5.9604644775390625e-8f), 32768), rest = o->d / held; /* 2^-24..2^15 */
    if (rest > 8) {
        return;
    }
    o->d = held;
    for (size_t i = 0; i < 32; i++) {
        o->q[i] = (int8_t)fl_level(2 * rest * (float)o->q[i], -127, 127);
    }
}

/* Unit g. */
static void fl_move_to_q8_0(const fl_open_block *o, size_t g, uint8_t *b) {
    float x[32];
    if (o->has_mins) {
        fl_dequantise_open(o, 32 * g, 32, x);
        fl_quantise_q8_0(x, b);
        return;
    }
    fl_put_half(b, fl_f16_of_float(o->d * (float)o->scales[2 * g]));
    memcpy(b + 2, o->q + 32 * g, 32);
}

FL_LOCAL void fl_move_blocks(fl_dtype type, const void *blocks, size_t n, void *to) {
    size_t numbers = fl_block_numbers(type), bytes = fl_block_bytes(type);
    const uint8_t *from = blocks;
    uint8_t *b = to;
    fl_open_block o;
    for (size_t i = 0; i < n; i += numbers, from += bytes) {
        fl_open_any(type, from, &o);
        if (type == FL_Q3_K) {
            fl_move_to_q6_k(&o, b);
            b += fl_block_bytes(FL_Q6_K);
            continue;
        }
        if (type == FL_MXFP4) {
            fl_fit_power(&o);
        }
        for (size_t g = 0; g < numbers / 32; g++, b += fl_block_bytes(FL_Q8_0)) {
            fl_move_to_q8_0(&o, g, b);
        }
    }
}
