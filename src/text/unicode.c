/* Classes and normal forms over utf8proc.
 *
 * utf8proc orders combining marks by exchanging neighbours, which takes quadratic time on a long run of them, so only
 * its decomposition of single code points and its composition are used, and the ordering is done here:
 *
 *     ASCII ... ASCII | starter, non-ASCII run | ASCII ...     no ASCII character composes with what stands before it,
 *     copied            decomposed, ordered, composed           so every stretch is normalised by itself
 *
 * Two tables make up for the Unicode versions that the tokenizers library was built with, newer here, older there. */
#include "text/unicode.h"

#include "base/utf8.h"

#include <utf8proc.h>

#define FL_UNI_EXPANSION 32 /* most code points in one decomposition; Unicode's longest has 18 */

typedef struct fl_uni_range {
    uint32_t first, last;
    uint8_t value;
} fl_uni_range;

/* The value of the range that holds code, 0 if none of n ascending ones does. */
static uint8_t fl_uni_range_of(const fl_uni_range *ranges, size_t n, uint32_t code) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[middle].last < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < n && ranges[low].first <= code ? ranges[low].value : 0;
}

/* What Unicode 15.1 and 16 added. utf8proc 2.8 and 2.9, which systems ship, end at 15.0 and 15.1; the tokenizers
 * library cuts words by 16. Looked at only where utf8proc knows no character. */
static uint8_t fl_uni_class_of_new(uint32_t code) {
    static const fl_uni_range ranges[] = {
        /* FL_UNI_LETTER 1, with UPPER 17, with LOWER 33; FL_UNI_NUMBER 2; FL_UNI_MARK 8 */
        {0x00897, 0x00897, 8}, {0x01C89, 0x01C89, 17}, {0x01C8A, 0x01C8A, 33}, {0x0A7CB, 0x0A7CC, 17},
        {0x0A7CD, 0x0A7CD, 33}, {0x0A7DA, 0x0A7DA, 17}, {0x0A7DB, 0x0A7DB, 33}, {0x0A7DC, 0x0A7DC, 17},
        {0x105C0, 0x105F3, 1}, {0x10D40, 0x10D49, 2}, {0x10D4A, 0x10D4F, 1}, {0x10D50, 0x10D65, 17},
        {0x10D69, 0x10D6D, 8}, {0x10D6F, 0x10D6F, 1}, {0x10D70, 0x10D85, 33}, {0x10EC2, 0x10EC4, 1},
        {0x10EFC, 0x10EFC, 8}, {0x11380, 0x11389, 1}, {0x1138B, 0x1138B, 1}, {0x1138E, 0x1138E, 1},
        {0x11390, 0x113B5, 1}, {0x113B7, 0x113B7, 1}, {0x113B8, 0x113C0, 8}, {0x113C2, 0x113C2, 8},
        {0x113C5, 0x113C5, 8}, {0x113C7, 0x113CA, 8}, {0x113CC, 0x113D0, 8}, {0x113D1, 0x113D1, 1},
        {0x113D2, 0x113D2, 8}, {0x113D3, 0x113D3, 1}, {0x113E1, 0x113E2, 8}, {0x116D0, 0x116E3, 2},
        {0x11BC0, 0x11BE0, 1}, {0x11BF0, 0x11BF9, 2}, {0x11F5A, 0x11F5A, 8}, {0x13460, 0x143FA, 1},
        {0x16100, 0x1611D, 1}, {0x1611E, 0x1612F, 8}, {0x16130, 0x16139, 2}, {0x16D40, 0x16D6C, 1},
        {0x16D70, 0x16D79, 2}, {0x18CFF, 0x18CFF, 1}, {0x1CCF0, 0x1CCF9, 2}, {0x1E5D0, 0x1E5ED, 1},
        {0x1E5EE, 0x1E5EF, 8}, {0x1E5F0, 0x1E5F0, 1}, {0x1E5F1, 0x1E5FA, 2}, {0x2EBF0, 0x2EE5D, 1},
    };
    return fl_uni_range_of(ranges, FL_COUNT(ranges), code);
}

FL_LOCAL uint8_t fl_uni_class(uint32_t code) {
    static const uint8_t of_category[] = {
        [UTF8PROC_CATEGORY_LU] = FL_UNI_LETTER | FL_UNI_UPPER, [UTF8PROC_CATEGORY_LT] = FL_UNI_LETTER | FL_UNI_UPPER,
        [UTF8PROC_CATEGORY_LL] = FL_UNI_LETTER | FL_UNI_LOWER, [UTF8PROC_CATEGORY_LM] = FL_UNI_LETTER,
        [UTF8PROC_CATEGORY_LO] = FL_UNI_LETTER,                [UTF8PROC_CATEGORY_MN] = FL_UNI_MARK,
        [UTF8PROC_CATEGORY_MC] = FL_UNI_MARK,                  [UTF8PROC_CATEGORY_ME] = FL_UNI_MARK,
        [UTF8PROC_CATEGORY_ND] = FL_UNI_NUMBER,                [UTF8PROC_CATEGORY_NL] = FL_UNI_NUMBER,
        [UTF8PROC_CATEGORY_NO] = FL_UNI_NUMBER,                [UTF8PROC_CATEGORY_ZS] = FL_UNI_SPACE,
        [UTF8PROC_CATEGORY_ZL] = FL_UNI_SPACE,                 [UTF8PROC_CATEGORY_ZP] = FL_UNI_SPACE,
        [UTF8PROC_CATEGORY_CO] = 0,
    };
    if (code < 0x80) {
        return fl_uni_ascii[code];
    }
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    if (category == UTF8PROC_CATEGORY_CN) {
        return fl_uni_class_of_new(code);
    }
    return code == 0x85 ? FL_UNI_SPACE : of_category[category];
}

FL_LOCAL fl_uni_char fl_uni_decode(const char *s, size_t n) {
    size_t used;
    fl_uni_char c;
    c.code = (uint32_t)fl_utf8_decode(s, n, &used);
    c.class = fl_uni_class(c.code);
    c.n = (uint8_t)used;
    return c;
}

FL_LOCAL fl_uni_char fl_uni_before(fl_str s, size_t at) {
    size_t begin = at - 1;
    while (begin > 0 && ((uint8_t)s.at[begin] & 0xC0) == 0x80) {
        begin--;
    }
    return fl_uni_peek(s, begin);
}

/* Alphabetic, but for its symbols, is letters, letter-like numbers and some marks, and \w takes all marks anyway. */
FL_LOCAL bool fl_uni_is_word(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    bool joiner = code == 0x200C || code == 0x200D;
    bool symbol = (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
                  (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
    return joiner || symbol || (fl_uni_class(code) & (FL_UNI_LETTER | FL_UNI_MARK)) != 0 ||
           category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_PC;
}

/* ---- Growing text -- */

FL_LOCAL bool fl_text_append(fl_text_buffer *b, const char *text, size_t n) {
    size_t wanted;
    void *at = b->at;
    if (!fl_add(b->n, n, &wanted) || !fl_grow(b->memory, &at, &b->capacity, wanted, 1)) {
        return false;
    }
    b->at = at;
    if (n > 0) {
        memcpy(b->at + b->n, text, n);
    }
    b->n = wanted;
    return true;
}

FL_LOCAL void fl_text_free(fl_text_buffer *b) {
    fl_free(b->memory, b->at, b->capacity);
    b->at = NULL;
    b->n = b->capacity = 0;
}

static bool fl_text_append_code(fl_text_buffer *b, uint32_t code) {
    char bytes[4];
    return fl_text_append(b, bytes, fl_utf8_encode(code, bytes));
}

/* ---- Normal forms -- */

/* Blocks in which every code point is its own NFC, composes with nothing before it and reorders nothing: Latin,
 * Cyrillic, kana, ideographs and Hangul syllables, so that common texts are not taken apart. */
static bool fl_uni_is_inert(uint32_t code) {
    return code < 0x300 || (code >= 0x400 && code <= 0x482) || (code >= 0x3041 && code <= 0x3096) ||
           (code >= 0x30A1 && code <= 0x30FA) || (code >= 0x3400 && code <= 0x4DBF) ||
           (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0xAC00 && code <= 0xD7A3);
}

/* Marks and decompositions that came after Unicode 9, where the tokenizers library's normaliser stands still: there
 * they are characters of which nothing is known, and nothing composes or moves across them. */
static bool fl_uni_is_late(uint32_t code) {
    static const fl_uni_range ranges[] = {
        {0x007FD, 0x007FD, 1}, {0x00898, 0x0089F, 1}, {0x008CA, 0x008D3, 1}, {0x009FE, 0x009FE, 1},
        {0x00C3C, 0x00C3C, 1}, {0x00D3B, 0x00D3C, 1}, {0x00EBA, 0x00EBA, 1}, {0x01715, 0x01715, 1},
        {0x01ABF, 0x01ACE, 1}, {0x01DF6, 0x01DFA, 1}, {0x032FF, 0x032FF, 1}, {0x0A7F2, 0x0A7F4, 1},
        {0x0A82C, 0x0A82C, 1}, {0x0AB69, 0x0AB69, 1}, {0x10781, 0x10785, 1}, {0x10787, 0x107B0, 1},
        {0x107B2, 0x107BA, 1}, {0x10D24, 0x10D27, 1}, {0x10EAB, 0x10EAC, 1}, {0x10EFD, 0x10EFF, 1},
        {0x10F46, 0x10F50, 1}, {0x10F82, 0x10F85, 1}, {0x11070, 0x11070, 1}, {0x1133B, 0x1133B, 1},
        {0x1145E, 0x1145E, 1}, {0x11839, 0x1183A, 1}, {0x11938, 0x11938, 1}, {0x1193D, 0x1193E, 1},
        {0x11943, 0x11943, 1}, {0x119E0, 0x119E0, 1}, {0x11A34, 0x11A34, 1}, {0x11A47, 0x11A47, 1},
        {0x11A99, 0x11A99, 1}, {0x11D42, 0x11D42, 1}, {0x11D44, 0x11D45, 1}, {0x11D97, 0x11D97, 1},
        {0x11F41, 0x11F42, 1}, {0x16FF0, 0x16FF1, 1}, {0x1E030, 0x1E06D, 1}, {0x1E08F, 0x1E08F, 1},
        {0x1E130, 0x1E136, 1}, {0x1E2AE, 0x1E2AE, 1}, {0x1E2EC, 0x1E2EF, 1}, {0x1E4EC, 0x1E4EF, 1},
        {0x1F16C, 0x1F16C, 1}, {0x1FBF0, 0x1FBF9, 1},
    };
    return !fl_uni_is_inert(code) && fl_uni_range_of(ranges, FL_COUNT(ranges), code) != 0;
}

FL_LOCAL bool fl_uni_is_normal(fl_uni_form form, fl_str text) {
    for (size_t at = 0; at < text.n;) {
        uint8_t byte = (uint8_t)text.at[at];
        if (byte < 0x80) {
            at++;
            continue;
        }
        size_t used;
        uint32_t code = (uint32_t)fl_utf8_decode(text.at + at, text.n - at, &used);
        if (form != FL_UNI_NFC || !fl_uni_is_inert(code)) {
            return false;
        }
        at += used;
    }
    return true;
}

/* Code points on their way through one stretch. */
typedef struct fl_uni_codes {
    fl_memory *memory;
    utf8proc_int32_t *at;
    size_t n, capacity;
} fl_uni_codes;

static bool fl_uni_reserve(fl_uni_codes *c, size_t n) {
    void *at = c->at;
    if (!fl_grow(c->memory, &at, &c->capacity, n, sizeof *c->at)) {
        return false;
    }
    c->at = at;
    return true;
}

static uint8_t fl_uni_combining(utf8proc_int32_t code) {
    return (uint8_t)utf8proc_get_property(code)->combining_class;
}

/* Order a run of marks by combining class, equal ones as they stand. spare: room for n. */
static void fl_uni_order_run(utf8proc_int32_t *run, size_t n, utf8proc_int32_t *spare) {
    size_t begin[257] = {0};
    for (size_t i = 0; i < n; i++) {
        begin[fl_uni_combining(run[i]) + 1]++;
    }
    for (size_t i = 1; i < FL_COUNT(begin); i++) {
        begin[i] += begin[i - 1];
    }
    for (size_t i = 0; i < n; i++) {
        spare[begin[fl_uni_combining(run[i])]++] = run[i];
    }
    memcpy(run, spare, n * sizeof *run);
}

/* The canonical ordering of all codes. */
static bool fl_uni_order(fl_uni_codes *c) {
    for (size_t i = 0; i < c->n;) {
        size_t end = i;
        bool sorted = true;
        uint8_t before = 0, class;
        while (end < c->n && (class = fl_uni_combining(c->at[end])) != 0) {
            sorted = sorted && class >= before;
            before = class;
            end++;
        }
        if (!sorted) {
            if (!fl_uni_reserve(c, c->n + (end - i))) {
                return false;
            }
            fl_uni_order_run(c->at + i, end - i, c->at + c->n);
        }
        i = end + 1;
    }
    return true;
}

static bool fl_uni_decompose(fl_str text, bool compatible, fl_uni_codes *c) {
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    c->n = 0;
    for (size_t at = 0; at < text.n;) {
        size_t used;
        int bound = 0;
        int32_t code = fl_utf8_decode(text.at + at, text.n - at, &used);
        if (!fl_uni_reserve(c, c->n + FL_UNI_EXPANSION)) {
            return false;
        }
        utf8proc_ssize_t n = utf8proc_decompose_char(code, c->at + c->n, FL_UNI_EXPANSION, options, &bound);
        if (n < 0 || n > FL_UNI_EXPANSION) {
            c->at[c->n] = code; /* utf8proc knows no code point that gets here */
            n = 1;
        }
        c->n += (size_t)n;
        at += used;
    }
    return true;
}

static bool fl_uni_normalize_stretch(fl_uni_form form, fl_str text, fl_uni_codes *c, fl_text_buffer *out) {
    bool compatible = form == FL_UNI_NFKC || form == FL_UNI_NFKD;
    if (!fl_uni_decompose(text, compatible, c) || !fl_uni_order(c)) {
        return false;
    }
    if (form == FL_UNI_NFC || form == FL_UNI_NFKC) {
        utf8proc_ssize_t n = utf8proc_normalize_utf32(c->at, (utf8proc_ssize_t)c->n,
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        c->n = n >= 0 ? (size_t)n : c->n;
    }
    for (size_t i = 0; i < c->n; i++) {
        if (!fl_text_append_code(out, (uint32_t)c->at[i])) {
            return false;
        }
    }
    return true;
}

/* From `at` on, the end of the characters that stand for themselves (ASCII and late ones), or of those that do not. */
static size_t fl_uni_skip(fl_str text, size_t at, bool plain) {
    while (at < text.n) {
        size_t used;
        uint32_t code = (uint32_t)fl_utf8_decode(text.at + at, text.n - at, &used);
        if ((code < 0x80 || fl_uni_is_late(code)) != plain) {
            break;
        }
        at += used;
    }
    return at;
}

FL_LOCAL bool fl_uni_normalize(fl_uni_form form, fl_str text, fl_text_buffer *out) {
    fl_uni_codes codes = {out->memory, NULL, 0, 0};
    bool ok = true;
    for (size_t at = 0; ok && at < text.n;) {
        size_t middle = fl_uni_skip(text, at, true), end = fl_uni_skip(text, middle, false);
        /* An ASCII character may compose with what follows it. */
        size_t stretch = end > middle && middle > at && (uint8_t)text.at[middle - 1] < 0x80 ? middle - 1 : middle;
        fl_str part = {text.at + stretch, end - stretch};
        ok = fl_text_append(out, text.at + at, stretch - at) &&
             (fl_uni_is_normal(form, part) ? fl_text_append(out, part.at, part.n)
                                           : fl_uni_normalize_stretch(form, part, &codes, out));
        at = end;
    }
    fl_free(codes.memory, codes.at, codes.capacity * sizeof *codes.at);
    return ok;
}

FL_LOCAL bool fl_uni_lowercase(fl_str text, fl_text_buffer *out) {
    for (size_t at = 0; at < text.n;) {
        fl_uni_char c = fl_uni_peek(text, at);
        bool ok = c.code == 0x130 /* the one character that becomes two */
                      ? fl_text_append(out, "i\xCC\x87", 3)
                      : fl_text_append_code(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c.code));
        if (!ok) {
            return false;
        }
        at += c.n;
    }
    return true;
}
