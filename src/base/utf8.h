/* UTF-8, strict: no overlong forms, no surrogates, nothing above U+10FFFF. */
#ifndef FL_UTF8_H
#define FL_UTF8_H

#include "base/base.h"

/* The code point at s[0..n), n > 0, and its length in *used; -1, and *used the bytes to skip, if it is not valid. */
FL_LOCAL int32_t fl_utf8_decode(const char *s, size_t n, size_t *used);

/* Write a code point, 1 to 4 bytes; returns how many. */
FL_LOCAL size_t fl_utf8_encode(uint32_t code, char *out);

/* Length of the sequence that this first byte opens, 1 for bytes that open none. */
FL_LOCAL size_t fl_utf8_length(uint8_t first);

/* Bytes before the first invalid one; n if all of s is valid. */
FL_LOCAL size_t fl_utf8_valid_prefix(const char *s, size_t n);

#endif
