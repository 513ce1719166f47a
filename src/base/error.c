#include "base/error.h"

#include <stdarg.h>

#define FL_STRING_SHOWN 120 /* bytes of one string argument; longer ones lose their middle */

typedef struct fl_writer {
    char *out;
    size_t n, at; /* room, NUL included; length so far */
} fl_writer;

static void fl_put(fl_writer *w, char c) {
    if (w->at + 1 < w->n) {
        w->out[w->at++] = c;
    }
}

static void fl_put_text(fl_writer *w, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (n > FL_STRING_SHOWN && i == FL_STRING_SHOWN / 3) {
            i = n - 2 * FL_STRING_SHOWN / 3;
            fl_put(w, '.');
            fl_put(w, '.');
            fl_put(w, '.');
        }
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F) {
            const char *hex = "0123456789abcdef";
            fl_put(w, '\\');
            fl_put(w, 'x');
            fl_put(w, hex[c >> 4]);
            fl_put(w, hex[c & 15]);
        } else {
            fl_put(w, (char)c);
        }
    }
}

static void fl_put_unsigned(fl_writer *w, uint64_t value) {
    char digits[20];
    size_t n = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    while (n > 0) {
        fl_put(w, digits[--n]);
    }
}

static void fl_put_signed(fl_writer *w, int64_t value) {
    if (value < 0) {
        fl_put(w, '-');
    }
    fl_put_unsigned(w, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

/* Six digits after the point, and a decimal exponent outside [1e-4, 1e15): for messages, not for reading back. */
static void fl_put_double(fl_writer *w, double value) {
    if (!(value >= -DBL_MAX && value <= DBL_MAX)) {
        fl_put_text(w, "not finite", 10);
        return;
    }
    if (value < 0) {
        fl_put(w, '-');
        value = -value;
    }
    int exponent = 0;
    if (value != 0 && (value >= 1e15 || value < 1e-4)) {
        for (; value >= 10; exponent++) {
            value /= 10;
        }
        for (; value < 1; exponent--) {
            value *= 10;
        }
    }
    uint64_t whole = (uint64_t)value, part = (uint64_t)((value - (double)whole) * 1e6 + 0.5);
    if (part >= 1000000) {
        whole++;
        part = 0;
    }
    fl_put_unsigned(w, whole);
    if (part != 0) {
        fl_put(w, '.');
        for (uint64_t unit = 100000; part != 0; unit /= 10) {
            fl_put(w, (char)('0' + part / unit));
            part %= unit;
        }
    }
    if (exponent != 0) {
        fl_put(w, 'e');
        fl_put_signed(w, exponent);
    }
}

static void fl_put_argument(fl_writer *w, char kind, va_list *args) {
    if (kind == 's') {
        const char *text = va_arg(*args, const char *);
        fl_put_text(w, text, strlen(text));
    } else if (kind == 'S') {
        const fl_str *text = va_arg(*args, const fl_str *);
        fl_put(w, '"');
        fl_put_text(w, text->at, text->n);
        fl_put(w, '"');
    } else if (kind == 'd') {
        fl_put_signed(w, va_arg(*args, int64_t));
    } else if (kind == 'u') {
        fl_put_unsigned(w, va_arg(*args, uint64_t));
    } else if (kind == 'g') {
        fl_put_double(w, va_arg(*args, double));
    } else {
        fl_put(w, kind);
    }
}

static size_t fl_format_list(char *out, size_t n, const char *format, va_list *args) {
    fl_writer w = {out, n, 0};
    for (; *format != 0; format++) {
        if (*format == '%' && format[1] != 0) {
            fl_put_argument(&w, *++format, args);
        } else {
            fl_put(&w, *format);
        }
    }
    if (n > 0) {
        out[w.at] = 0;
    }
    return w.at;
}

FL_LOCAL size_t fl_format(char *out, size_t n, const char *format, ...) {
    va_list args;
    va_start(args, format);
    size_t length = fl_format_list(out, n, format, &args);
    va_end(args);
    return length;
}

FL_LOCAL folollm_status fl_fail(folollm_error *error, folollm_status status, const char *format, ...) {
    if (error != NULL) {
        va_list args;
        va_start(args, format);
        fl_format_list(error->text, sizeof error->text, format, &args);
        va_end(args);
        error->status = status;
    }
    return status;
}
