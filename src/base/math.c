#include "base/math.h"

#include <math.h>

/* ln 2 and pi / 2 in two parts: a leading one with trailing zeros, so that n times it is exact, and the rest. */
#define FL_LN2_HI 6.93147180369123816490e-01
#define FL_LN2_LO 1.90821492927058770002e-10
#define FL_PIO2_1 1.57079632673412561417e+00
#define FL_PIO2_2 6.07710050630396597660e-11
#define FL_PIO2_3 2.02226624879595063154e-21

static double fl_double_of_bits(uint64_t bits) {
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

static uint64_t fl_bits_of_double(double d) {
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    return bits;
}

/* a * b to the nearest integer. */
static double fl_round_product(double a, double b) {
    return (double)(int64_t)fma(a, b, a * b < 0 ? -0.5 : 0.5);
}

/* coefficients[0] + x * (coefficients[1] + ...) */
static double fl_polynomial(const double *coefficients, size_t n, double x) {
    double y = coefficients[n - 1];
    for (size_t i = n - 1; i-- > 0;) {
        y = fma(y, x, coefficients[i]);
    }
    return y;
}

FL_LOCAL double fl_exp(double x) {
    static const double taylor[] = {1,           1,            1.0 / 2,       1.0 / 6,        1.0 / 24,
                                    1.0 / 120,   1.0 / 720,    1.0 / 5040,    1.0 / 40320,    1.0 / 362880,
                                    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
    if (x < -745) {
        return 0;
    }
    if (x > 709) {
        return DBL_MAX;
    }
    double n = fl_round_product(x, 1.44269504088896340736);
    double r = fma(n, -FL_LN2_LO, fma(n, -FL_LN2_HI, x));
    double y = fl_polynomial(taylor, FL_COUNT(taylor), r);
    int e = (int)n, half = e / 2; /* two steps, so that a subnormal result is reached through normal factors */
    y *= fl_double_of_bits((uint64_t)(1023 + half) << 52);
    return y * fl_double_of_bits((uint64_t)(1023 + e - half) << 52);
}

FL_LOCAL double fl_log(double x) {
    static const double series[] = {2,        2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9, 2.0 / 11,
                                    2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
    int e = 0;
    if (x < DBL_MIN) {
        x *= 18014398509481984.0;
        e = -54;
    }
    uint64_t bits = fl_bits_of_double(x);
    e += (int)(bits >> 52) - 1023;
    double m = fl_double_of_bits((bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u);
    if (m > 1.41421356237309504880) {
        m *= 0.5;
        e++;
    }
    double z = (m - 1) / (m + 1); /* log m = 2 artanh z */
    double y = z * fl_polynomial(series, FL_COUNT(series), z * z);
    return fma(e, FL_LN2_HI, fma(e, FL_LN2_LO, y));
}

FL_LOCAL double fl_pow(double base, double x) {
    return fl_exp(x * fl_log(base));
}

FL_LOCAL void fl_sincos(double x, double *sine, double *cosine) {
    static const double sine_terms[] = {1, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
                                        1.0 / 6227020800, -1.0 / 1307674368000};
    static const double cosine_terms[] = {1, -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800,
                                          1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000};
    double n = fl_round_product(x, 0.63661977236758134308);
    double r = fma(n, -FL_PIO2_3, fma(n, -FL_PIO2_2, fma(n, -FL_PIO2_1, x)));
    double s = r * fl_polynomial(sine_terms, FL_COUNT(sine_terms), r * r);
    double c = fl_polynomial(cosine_terms, FL_COUNT(cosine_terms), r * r);
    unsigned quadrant = (unsigned)((int64_t)n & 3);
    *sine = quadrant & 1 ? c : s;
    *cosine = quadrant & 1 ? s : c;
    *sine = quadrant >= 2 ? -*sine : *sine;
    *cosine = quadrant == 1 || quadrant == 2 ? -*cosine : *cosine;
}
