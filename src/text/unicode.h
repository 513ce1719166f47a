/* Unicode as the tokenizers library sees it: classes of code points, normal forms. The tables are utf8proc's. */
#ifndef FL_UNICODE_H
#define FL_UNICODE_H

#include "base/memory.h"

enum { /* classes of a code point, combined */
    FL_UNI_LETTER = 1,  /* \p{L} */
    FL_UNI_NUMBER = 2,  /* \p{N} */
    FL_UNI_SPACE = 4,   /* White_Space, which is \s of Oniguruma and of Rust */
    FL_UNI_MARK = 8,    /* \p{M} */
    FL_UNI_UPPER = 16,  /* \p{Lu}, \p{Lt} */
    FL_UNI_LOWER = 32,  /* \p{Ll} */
    FL_UNI_NEWLINE = 64 /* \r, \n */
};

/* A code point of valid UTF-8, and how many bytes it takes; n 0: there was none. */
typedef struct fl_uni_char {
    uint32_t code;
    uint8_t class, n;
} fl_uni_char;

/* The classes of ASCII, which is most of most texts. */
static const uint8_t fl_uni_ascii[128] = {
    0,  0,  0,  0,  0,  0,  0,  0,  0,  4,  68, 4,  4,  68, 0,  0,  /* \t \n \v \f \r */
    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  /* */
    4,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  /* space */
    2,  2,  2,  2,  2,  2,  2,  2,  2,  2,  0,  0,  0,  0,  0,  0,  /* 0-9 */
    0,  17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 17, /* A-O */
    17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 17, 0,  0,  0,  0,  0,  /* P-Z */
    0,  33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 33, /* a-o */
    33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 33, 0,  0,  0,  0,  0,  /* p-z */
};

FL_LOCAL uint8_t fl_uni_class(uint32_t code);
FL_LOCAL fl_uni_char fl_uni_decode(const char *s, size_t n); /* s: valid UTF-8 of n > 0 bytes */

/* The character at s[at]; text must be valid UTF-8 and `at` the beginning of a character. */
FL_INLINE fl_uni_char fl_uni_peek(fl_str s, size_t at) {
    if (at >= s.n) {
        fl_uni_char none = {0, 0, 0};
        return none;
    }
    uint8_t byte = (uint8_t)s.at[at];
    if (byte < 0x80) {
        fl_uni_char c = {byte, fl_uni_ascii[byte], 1};
        return c;
    }
    return fl_uni_decode(s.at + at, s.n - at);
}

FL_LOCAL bool fl_uni_is_word(uint32_t code); /* \w of Rust's regex: letters, marks, digits, connectors, joiners */

/* The last character of s before `at`, which must not be 0. */
FL_LOCAL fl_uni_char fl_uni_before(fl_str s, size_t at);

/* Text that grows. */
typedef struct fl_text_buffer {
    fl_memory *memory;
    char *at;
    size_t n, capacity;
} fl_text_buffer;

FL_LOCAL bool fl_text_append(fl_text_buffer *b, const char *text, size_t n); /* false: no memory */
FL_LOCAL void fl_text_free(fl_text_buffer *b);

FL_INLINE fl_str fl_text_of(const fl_text_buffer *b) {
    fl_str s = {b->at, b->n};
    return s;
}

typedef enum fl_uni_form { FL_UNI_NFC, FL_UNI_NFD, FL_UNI_NFKC, FL_UNI_NFKD } fl_uni_form;

/* Is text its own normal form? False may also mean "not known". */
FL_LOCAL bool fl_uni_is_normal(fl_uni_form form, fl_str text);

/* Append the normal form of text, in linear time whatever its combining marks. False: no memory. */
FL_LOCAL bool fl_uni_normalize(fl_uni_form form, fl_str text, fl_text_buffer *out);

/* Append text as Rust's char::to_lowercase maps it. False: no memory. */
FL_LOCAL bool fl_uni_lowercase(fl_str text, fl_text_buffer *out);

#endif
