/* Functions of double, our own, so that no libm decides a token: within 1e-15 relative of the true value on the
 * ranges that the engine uses, and the same bits everywhere. Every multiply-add is an explicit fma: there is none
 * left for a compiler to contract or not. */
#ifndef FL_MATH_H
#define FL_MATH_H

#include "base/base.h"

FL_LOCAL double fl_exp(double x);              /* 0 below -745, DBL_MAX above 709 */
FL_LOCAL double fl_log(double x);              /* x > 0 and finite */
FL_LOCAL double fl_pow(double base, double x); /* base > 0 */
FL_LOCAL void fl_sincos(double x, double *sine, double *cosine); /* |x| < 1e9 */

#endif
