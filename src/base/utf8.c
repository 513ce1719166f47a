#include "base/utf8.h"

FL_LOCAL size_t fl_utf8_length(uint8_t first) {
    if (first >= 0xC2 && first <= 0xDF) {
        return 2;
    }
    if (first >= 0xE0 && first <= 0xEF) {
        return 3;
    }
    return first >= 0xF0 && first <= 0xF4 ? 4 : 1;
}

FL_LOCAL int32_t fl_utf8_decode(const char *s, size_t n, size_t *used) {
    const uint8_t *p = (const uint8_t *)s;
    *used = 1;
    if (p[0] < 0x80) {
        return p[0];
    }
    size_t length = fl_utf8_length(p[0]);
    if (length == 1) {
        return -1;
    }
    /* The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF (Unicode, table 3-7). */
    uint8_t low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    uint8_t high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    if (n < 2 || p[1] < low || p[1] > high) {
        return -1;
    }
    int32_t code = p[0] & (0x7F >> length);
    code = code << 6 | (p[1] & 0x3F);
    for (size_t i = 2; i < length; i++) {
        if (i >= n || (p[i] & 0xC0) != 0x80) {
            *used = i;
            return -1;
        }
        code = code << 6 | (p[i] & 0x3F);
    }
    *used = length;
    return code;
}

FL_LOCAL size_t fl_utf8_encode(uint32_t code, char *out) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

FL_LOCAL size_t fl_utf8_valid_prefix(const char *s, size_t n) {
    size_t at = 0, used;
    while (at < n) {
        if (fl_utf8_decode(s + at, n - at, &used) < 0) {
            return at;
        }
        at += used;
    }
    return n;
}
