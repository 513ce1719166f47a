/* Rotary position embedding (Su et al., 2021): frequencies, with the scalings that stretch them past the trained
 * length, and the angles of a position. */
#ifndef FL_ROPE_H
#define FL_ROPE_H

#include "model/config.h"

typedef struct fl_rope {
    float *frequencies; /* (half) radians per position */
    size_t half;
    float scale;        /* of cosines and sines */
} fl_rope;

FL_LOCAL void fl_rope_layout(fl_rope *rope, fl_arena *arena, const fl_config *c);

/* context: the length that the dynamic kind is fixed to, so that cached keys stay true. */
FL_LOCAL void fl_rope_init(fl_rope *rope, const fl_config *c, uint32_t context);

/* What cosines and sines are multiplied by. */
FL_LOCAL float fl_rope_scale(const fl_config *c);

/* By what llama3's scaling divides each of the head_dim / 2 frequencies. */
FL_LOCAL void fl_rope_divisors(const fl_config *c, float *divisors);

/* angles (2 * half): cosines, then sines. The angle itself is a float product, as in the models' own code. */
FL_LOCAL void fl_rope_angles(const fl_rope *rope, uint32_t position, float *angles);

#endif
