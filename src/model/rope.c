#include "model/rope.h"

#include "base/math.h"

#include <math.h>

#define FL_PI 3.14159265358979323846

FL_LOCAL void fl_rope_layout(fl_rope *rope, fl_arena *arena, const fl_config *c) {
    rope->half = c->head_dim / 2;
    rope->frequencies = fl_take(arena, rope->half, sizeof *rope->frequencies);
}

/* Which dimension turns `rotations` times over the trained length (YaRN, Peng et al., 2023). */
static double fl_yarn_dimension(const fl_config *c, double rotations) {
    return c->head_dim * fl_log(c->rope.original / (rotations * 2 * FL_PI)) / (2 * fl_log(c->rope.theta));
}

static double fl_floor(double x) {
    double whole = (double)(int64_t)x;
    return whole > x ? whole - 1 : whole;
}

static double fl_clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

/* 1 where dimension i keeps its frequency, 0 where it is divided by the factor. */
static double fl_yarn_keep(const fl_config *c, size_t i) {
    double low = fl_yarn_dimension(c, c->rope.beta_fast), high = fl_yarn_dimension(c, c->rope.beta_slow);
    if (c->rope.truncate) {
        low = fl_floor(low);
        high = -fl_floor(-high);
    }
    low = low < 0 ? 0 : low;
    high = high > c->head_dim - 1 ? c->head_dim - 1 : high;
    if (low == high) {
        high += 0.001;
    }
    return 1 - fl_clamp(((double)i - low) / (high - low), 0, 1);
}

static double fl_yarn_mscale(double factor, double mscale) {
    return factor <= 1 ? 1 : fma(0.1 * mscale, fl_log(factor), 1);
}

static double fl_yarn_scale(const fl_rope_config *r) {
    if (r->attention_factor != 0) {
        return r->attention_factor;
    }
    if (r->mscale != 0 && r->mscale_all_dim != 0) {
        return fl_yarn_mscale(r->factor, r->mscale) / fl_yarn_mscale(r->factor, r->mscale_all_dim);
    }
    return fl_yarn_mscale(r->factor, 1);
}

static double fl_llama3_frequency(const fl_rope_config *r, double f) {
    double wavelength = 2 * FL_PI / f;
    if (wavelength < r->original / r->high_freq_factor) {
        return f;
    }
    if (wavelength > r->original / r->low_freq_factor) {
        return f / r->factor;
    }
    double smooth = (r->original / wavelength - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return fma(smooth, f, (1 - smooth) * f / r->factor);
}

static double fl_rope_base(const fl_config *c, uint32_t context) {
    const fl_rope_config *r = &c->rope;
    double d = c->head_dim, length = context > c->max_positions ? context : c->max_positions;
    if (r->kind == FL_ROPE_NTK) {
        return r->theta * fl_pow(r->factor, d / (d - 2));
    }
    if (r->kind == FL_ROPE_DYNAMIC) {
        return r->theta * fl_pow(r->factor * length / c->max_positions - (r->factor - 1), d / (d - 2));
    }
    return r->theta;
}

FL_LOCAL void fl_rope_init(fl_rope *rope, const fl_config *c, uint32_t context) {
    const fl_rope_config *r = &c->rope;
    double base = fl_rope_base(c, context);
    for (size_t i = 0; i < rope->half; i++) {
        double f = fl_pow(base, -2.0 * (double)i / c->head_dim);
        if (r->kind == FL_ROPE_LINEAR) {
            f /= r->factor;
        } else if (r->kind == FL_ROPE_YARN) {
            double keep = fl_yarn_keep(c, i);
            f = fma(f, keep, f / r->factor * (1 - keep));
        } else if (r->kind == FL_ROPE_LLAMA3) {
            f = fl_llama3_frequency(r, f);
        } else if (r->kind == FL_ROPE_DIVISORS) {
            f /= (double)r->divisors[i];
        }
        rope->frequencies[i] = (float)f;
    }
    rope->scale = fl_rope_scale(c);
}

FL_LOCAL float fl_rope_scale(const fl_config *c) {
    return c->rope.kind == FL_ROPE_YARN ? (float)fl_yarn_scale(&c->rope) : 1.0f;
}

FL_LOCAL void fl_rope_divisors(const fl_config *c, float *divisors) {
    for (size_t i = 0; i < c->head_dim / 2; i++) {
        double f = fl_pow(c->rope.theta, -2.0 * (double)i / c->head_dim);
        divisors[i] = (float)(f / fl_llama3_frequency(&c->rope, f));
    }
}

FL_LOCAL void fl_rope_angles(const fl_rope *rope, uint32_t position, float *angles) {
    for (size_t i = 0; i < rope->half; i++) {
        float angle = (float)position * rope->frequencies[i];
        double sine, cosine;
        fl_sincos(angle, &sine, &cosine);
        angles[i] = (float)cosine * rope->scale;
        angles[rope->half + i] = (float)sine * rope->scale;
    }
}
