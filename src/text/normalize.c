/* The steps of a normaliser, each from one buffer into the other. A step that changes nothing writes nothing, so that
 * plain text passes through where it lies. */
#include "text/normalize.h"

static fl_str fl_norm_strip(fl_str s, bool left, bool right) {
    while (left && s.n > 0) {
        fl_uni_char c = fl_uni_peek(s, 0);
        if ((c.class & FL_UNI_SPACE) == 0) {
            break;
        }
        s.at += c.n;
        s.n -= c.n;
    }
    while (right && s.n > 0) {
        fl_uni_char c = fl_uni_before(s, s.n);
        if ((c.class & FL_UNI_SPACE) == 0) {
            break;
        }
        s.n -= c.n;
    }
    return s;
}

static bool fl_norm_replace(fl_str s, fl_str from, fl_str to, fl_text_buffer *out, bool *changed) {
    size_t done = 0;
    *changed = false;
    for (size_t at = 0; from.n > 0 && at + from.n <= s.n;) {
        const char *hit = memchr(s.at + at, from.at[0], s.n - at - from.n + 1);
        if (hit == NULL) {
            break;
        }
        at = (size_t)(hit - s.at);
        if (memcmp(hit, from.at, from.n) != 0) {
            at++;
            continue;
        }
        *changed = true;
        if (!fl_text_append(out, s.at + done, at - done) || !fl_text_append(out, to.at, to.n)) {
            return false;
        }
        at += from.n;
        done = at;
    }
    return !*changed || fl_text_append(out, s.at + done, s.n - done);
}

/* One step that writes; *changed: it did. */
static bool fl_norm_write(const fl_norm_step *step, fl_str s, fl_text_buffer *out, bool *changed) {
    fl_str to = fl_short_str(&step->to);
    *changed = true;
    switch (step->kind) {
    case FL_NORM_FORM:
        *changed = !fl_uni_is_normal(step->form, s);
        return !*changed || fl_uni_normalize(step->form, s, out);
    case FL_NORM_PREPEND:
        return fl_text_append(out, to.at, to.n) && fl_text_append(out, s.at, s.n);
    case FL_NORM_REPLACE:
        return fl_norm_replace(s, fl_short_str(&step->from), to, out, changed);
    case FL_NORM_LOWERCASE:
        return fl_uni_lowercase(s, out);
    case FL_NORM_STRIP:
        break;
    }
    *changed = false;
    return true;
}

FL_LOCAL bool fl_norm_apply(const fl_normalizer *norm, fl_str text, fl_text_buffer buffers[2], fl_str *out) {
    size_t free_buffer = 0;
    for (size_t i = 0; i < norm->n_steps && text.n > 0; i++) {
        const fl_norm_step *step = &norm->steps[i];
        bool changed;
        if (step->kind == FL_NORM_STRIP) {
            text = fl_norm_strip(text, step->left, step->right);
            continue;
        }
        buffers[free_buffer].n = 0;
        if (!fl_norm_write(step, text, &buffers[free_buffer], &changed)) {
            return false;
        }
        if (changed) {
            text = fl_text_of(&buffers[free_buffer]);
            free_buffer = 1 - free_buffer;
        }
    }
    *out = text;
    return true;
}
