/* JSON, one value per line (JSON Lines), as much of it as "folollm batch" needs.
 *
 * The reader walks once over a line that the caller may overwrite: json_string unescapes where the text stands, because
 * that never makes it longer. So it allocates nothing, and as values of values are never read, nothing recurses. The
 * first thing that is wrong is kept in `problem`; from then on every call fails, so a caller may check once.
 *
 *     json j = json_begin(line, n_bytes);
 *     for (int more = json_open(&j, '{'); more; more = json_more(&j, '}')) {
 *         folollm_text key = json_key(&j);     ... and one call that reads its value
 *     }
 *     json_end(&j);
 *     if (j.problem != NULL) ...
 *
 * The writer prints to a FILE. */
#ifndef JSONL_H
#define JSONL_H

#include "folollm.h"

#include <stdio.h>
#include <string.h>

typedef struct json {
    char *at, *end;      /* what is left of the line; *end is a byte that may be read and ends any number */
    const char *problem; /* NULL so far */
} json;

/* Bytes of the code point at `at`, which has n > 0 bytes; 0 if they are not UTF-8. */
static size_t utf8_length(const char *at, size_t n)
{
    const unsigned char *p = (const unsigned char *)at;
    size_t length = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (length < 2 || length > n) {
        return length > n ? 0 : length;
    }
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    int overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    int outside = (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f); /* surrogates; above U+10FFFF */
    return overlong || outside ? 0 : length;
}

/* ---- Reading ------------------------------------------------------------------------------------- */

static int json_fail(json *j, const char *problem)
{
    j->problem = j->problem != NULL ? j->problem : problem;
    j->at = j->end;
    return 0;
}

/* The byte after white space; 0 at the end of the line. */
static char json_peek(json *j)
{
    while (j->at < j->end && (*j->at == ' ' || *j->at == '\t' || *j->at == '\r' || *j->at == '\n')) {
        j->at++;
    }
    return j->at < j->end ? *j->at : '\0';
}

/* Take `wanted` if it comes next. */
static int json_take(json *j, char wanted)
{
    int found = json_peek(j) == wanted && j->at < j->end;
    j->at += found;
    return found;
}

static json json_begin(char *line, size_t n_bytes)
{
    json j = {line, line + n_bytes, NULL};
    size_t length;
    for (size_t i = 0; i < n_bytes; i += length) {
        length = utf8_length(line + i, n_bytes - i);
        if (length == 0) {
            json_fail(&j, "not UTF-8");
            break;
        }
    }
    return j;
}

/* Enter an object or a list. Returns whether it holds anything. */
static int json_open(json *j, char bracket)
{
    if (!json_take(j, bracket)) {
        return json_fail(j, bracket == '{' ? "an object {...} expected" : "a list [...] expected");
    }
    return !json_take(j, bracket == '{' ? '}' : ']');
}

/* After one value: whether another follows, or else the bracket was taken. */
static int json_more(json *j, char bracket)
{
    if (json_take(j, ',')) {
        return 1;
    }
    return json_take(j, bracket) ? 0 : json_fail(j, bracket == '}' ? "',' or '}' expected" : "',' or ']' expected");
}

static void json_end(json *j)
{
    if (j->problem == NULL && (json_peek(j) != '\0' || j->at < j->end)) {
        json_fail(j, "something follows the object");
    }
}

/* Take null, if it comes next. */
static int json_null(json *j)
{
    if (json_peek(j) != 'n' || j->end - j->at < 4 || memcmp(j->at, "null", 4) != 0) {
        return 0;
    }
    j->at += 4;
    return 1;
}

/* Four hexadecimal digits; -1 if they are not. */
static long json_hex(json *j)
{
    long value = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *digit = j->at < j->end && *j->at != '\0' ? strchr(digits, *j->at) : NULL;
        if (digit == NULL) {
            return -1;
        }
        value = value * 16 + (digit - digits) % 16;
        j->at++;
    }
    return value;
}

/* The code point of an escape whose \u was taken; the second half of a surrogate pair follows in a second escape. */
static long json_code_point(json *j)
{
    long high = json_hex(j);
    if (high < 0xd800 || high > 0xdfff) {
        return high;
    }
    if (high > 0xdbff || j->end - j->at < 6 || j->at[0] != '\\' || j->at[1] != 'u') {
        return -1;
    }
    j->at += 2;
    long low = json_hex(j);
    return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

static char *json_put_code_point(char *out, long c)
{
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = n - 1; i > 0; i--, c >>= 6) {
        out[i] = (char)(0x80 | (c & 0x3f));
    }
    out[0] = (char)(lead[n] | c);
    return out + n;
}

/* One escape, whose backslash was taken, to *out. */
static int json_escape(json *j, char **out)
{
    static const char names[] = "\"\\/bfnrtu", meanings[] = "\"\\/\b\f\n\r\t";
    const char *name = j->at < j->end && *j->at != '\0' ? strchr(names, *j->at) : NULL;
    if (name == NULL) {
        return json_fail(j, "an escape in a string that JSON does not know");
    }
    j->at++;
    if (*name != 'u') {
        *(*out)++ = meanings[name - names];
        return 1;
    }
    long c = json_code_point(j);
    if (c < 0) {
        return json_fail(j, "\\u needs four hexadecimal digits, and half a surrogate pair the other half");
    }
    *out = json_put_code_point(*out, c);
    return 1;
}

/* A string, which then lies in the line without its escapes; it may hold NUL. */
static folollm_text json_string(json *j)
{
    folollm_text none = {"", 0};
    if (!json_take(j, '"')) {
        json_fail(j, "a string expected");
        return none;
    }
    char *begin = j->at, *out = begin;
    while (j->at < j->end && *j->at != '"') {
        char c = *j->at++;
        if ((unsigned char)c < 0x20) {
            json_fail(j, "a control character in a string");
        } else if (c != '\\') {
            *out++ = c;
        } else {
            json_escape(j, &out);
        }
    }
    if (j->problem != NULL || j->at == j->end) {
        json_fail(j, "a string without an end");
        return none;
    }
    j->at++;
    folollm_text text = {begin, (size_t)(out - begin)};
    return text;
}

/* The name of the next member; its value comes next. */
static folollm_text json_key(json *j)
{
    folollm_text key = json_string(j);
    if (j->problem == NULL && !json_take(j, ':')) {
        json_fail(j, "':' expected");
    }
    return key;
}

static size_t json_digits(json *j)
{
    char *begin = j->at;
    while (j->at < j->end && *j->at >= '0' && *j->at <= '9') {
        j->at++;
    }
    return (size_t)(j->at - begin);
}

/* A number, as it is written: strtod reads it, and it is whole if no '.', 'e' or 'E' is in it. */
static folollm_text json_number(json *j)
{
    folollm_text none = {"", 0};
    json_peek(j);
    char *begin = j->at;
    j->at += j->at < j->end && *j->at == '-';
    int zero = j->at < j->end && *j->at == '0';
    size_t n = json_digits(j);
    int ok = n > 0 && !(zero && n > 1);
    if (ok && j->at < j->end && *j->at == '.') {
        j->at++;
        ok = json_digits(j) > 0;
    }
    if (ok && j->at < j->end && (*j->at == 'e' || *j->at == 'E')) {
        j->at++;
        j->at += j->at < j->end && (*j->at == '+' || *j->at == '-');
        ok = json_digits(j) > 0;
    }
    if (!ok) {
        json_fail(j, "a number expected");
        return none;
    }
    folollm_text text = {begin, (size_t)(j->at - begin)};
    return text;
}

/* Pass over any one value; a list or an object in it only by counting brackets. */
static void json_skip(json *j)
{
    size_t depth = 0;
    do {
        char c = json_peek(j);
        if (c == '"') {
            json_string(j);
        } else if (c == '[' || c == '{') {
            j->at++;
            depth++;
        } else if (depth > 0 && (c == ']' || c == '}')) {
            j->at++;
            depth--;
        } else if (depth > 0 && (c == ',' || c == ':')) {
            j->at++;
        } else {
            size_t n = strspn(j->at, "+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
            j->at += n;
            depth = n > 0 ? depth : 0;
            if (n == 0) {
                json_fail(j, "a value expected");
            }
        }
    } while (depth > 0 && j->problem == NULL);
}

/* ---- Writing ------------------------------------------------------------------------------------- */

/* What is not UTF-8 becomes U+FFFD: the line stays JSON whatever the text is. */
static void json_write_string(FILE *out, folollm_text text)
{
    static const char names[] = "\"\\bfnrt", meanings[] = "\"\\\b\f\n\r\t";
    fputc('"', out);
    for (size_t i = 0; i < text.n_bytes;) {
        size_t n = utf8_length(text.text + i, text.n_bytes - i);
        unsigned char c = (unsigned char)text.text[i];
        const char *escape = n == 1 && c != '\0' ? strchr(meanings, c) : NULL;
        if (n == 0) {
            fputs("\\ufffd", out);
        } else if (escape != NULL) {
            fprintf(out, "\\%c", names[escape - meanings]);
        } else if (c < 0x20) {
            fprintf(out, "\\u%04x", c);
        } else {
            fwrite(text.text + i, 1, n, out);
        }
        i += n > 0 ? n : 1;
    }
    fputc('"', out);
}

#endif
