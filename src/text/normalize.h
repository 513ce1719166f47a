/* Normalisers: what a tokenizer.json does to text before it cuts it into words. */
#ifndef FL_NORMALIZE_H
#define FL_NORMALIZE_H

#include "text/pretokenize.h"

#define FL_NORM_STEPS 8

typedef enum fl_norm_kind {
    FL_NORM_FORM,
    FL_NORM_PREPEND,
    FL_NORM_REPLACE,
    FL_NORM_STRIP,
    FL_NORM_LOWERCASE
} fl_norm_kind;

typedef struct fl_norm_step {
    fl_norm_kind kind;
    fl_uni_form form;       /* FORM */
    fl_short_text from, to; /* REPLACE; PREPEND uses `to` */
    bool left, right;       /* STRIP */
} fl_norm_step;

typedef struct fl_normalizer {
    fl_norm_step steps[FL_NORM_STEPS];
    size_t n_steps;
} fl_normalizer;

/* Apply all steps to text. *out lies in text, when nothing had to be written, or in one of the two buffers. False: no
 * memory. */
FL_LOCAL bool fl_norm_apply(const fl_normalizer *norm, fl_str text, fl_text_buffer buffers[2], fl_str *out);

#endif
