#include "formats/json.h"

#include "base/utf8.h"

#define FL_JSON_DEPTH 64

typedef struct fl_json_reader {
    fl_memory *memory;
    fl_json *doc;
    const char *s;
    size_t n, at;
    folollm_error *error;
    uint32_t open[FL_JSON_DEPTH]; /* the containers that are not closed yet */
    size_t depth;
} fl_json_reader;

FL_LOCAL uint64_t fl_json_line(const fl_json *doc, size_t at) {
    uint64_t line = 1;
    for (size_t i = 0; i < at && i < doc->text.n; i++) {
        line += doc->text.at[i] == '\n';
    }
    return line;
}

static folollm_status fl_json_bad(fl_json_reader *r, const char *expected) {
    fl_str found = {r->s + r->at, fl_min(r->n - r->at, 12)};
    if (found.n == 0) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: the JSON ends after %u bytes where %s was expected",
                       r->doc->name, (uint64_t)r->n, expected);
    }
    return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: JSON line %u, byte %u: expected %s, found %S", r->doc->name,
                   fl_json_line(r->doc, r->at), (uint64_t)r->at, expected, &found);
}

static void fl_json_skip_space(fl_json_reader *r) {
    while (r->at < r->n &&
           (r->s[r->at] == ' ' || r->s[r->at] == '\n' || r->s[r->at] == '\r' || r->s[r->at] == '\t')) {
        r->at++;
    }
}

static folollm_status fl_json_push(fl_json_reader *r, fl_json_type type, size_t begin, size_t n) {
    fl_json *doc = r->doc;
    void *nodes = doc->nodes;
    if (!fl_grow(r->memory, &nodes, &doc->capacity, doc->n_nodes + 1, sizeof *doc->nodes)) {
        return fl_no_memory(r->error, doc->name, (doc->n_nodes + 1) * sizeof *doc->nodes);
    }
    doc->nodes = nodes;
    fl_json_node *node = &doc->nodes[doc->n_nodes++];
    memset(node, 0, sizeof *node);
    node->type = (uint8_t)type;
    node->begin = (uint32_t)begin;
    node->n = (uint32_t)n;
    node->next = (uint32_t)doc->n_nodes;
    return FOLOLLM_OK;
}

static int fl_hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The four digits of \uXXXX at s[0..n), or -1. */
static int32_t fl_hex4(const char *s, size_t n) {
    int32_t value = 0;
    if (n < 4) {
        return -1;
    }
    for (size_t i = 0; i < 4; i++) {
        int digit = fl_hex_digit(s[i]);
        if (digit < 0) {
            return -1;
        }
        value = value << 4 | digit;
    }
    return value;
}

/* The escape at s[0] == '\\': its code point, and its length in *used; -1 if it is none. A surrogate half that has
 * no partner is none. */
static int32_t fl_json_escape(const char *s, size_t n, size_t *used) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *name;
    if (n < 2 || s[1] == 0) {
        return -1;
    }
    *used = 2;
    if ((name = strchr(names, s[1])) != NULL) {
        return values[name - names];
    }
    int32_t high = s[1] == 'u' ? fl_hex4(s + 2, n - 2) : -1;
    *used = 6;
    if (high < 0xD800 || high > 0xDFFF) {
        return high;
    }
    int32_t low = n >= 12 && s[6] == '\\' && s[7] == 'u' ? fl_hex4(s + 8, n - 8) : -1;
    *used = 12;
    bool pair = high <= 0xDBFF && low >= 0xDC00 && low <= 0xDFFF;
    return pair ? 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00) : -1;
}

static folollm_status fl_json_read_string(fl_json_reader *r) {
    bool escaped = false;
    size_t begin = ++r->at;
    while (r->at < r->n && r->s[r->at] != '"') {
        size_t used;
        int32_t code;
        if (r->s[r->at] == '\\') {
            code = fl_json_escape(r->s + r->at, r->n - r->at, &used);
            escaped = true;
        } else {
            code = fl_utf8_decode(r->s + r->at, r->n - r->at, &used);
            code = code < 0x20 ? -1 : code;
        }
        if (code < 0) {
            return fl_json_bad(r, "a character or escape of a string");
        }
        r->at += used;
    }
    if (r->at == r->n) {
        return fl_json_bad(r, "the end of a string");
    }
    FL_TRY(fl_json_push(r, FL_JSON_STRING, begin, r->at - begin));
    r->doc->nodes[r->doc->n_nodes - 1].escaped = escaped;
    r->at++;
    return FOLOLLM_OK;
}

static bool fl_json_digits(fl_json_reader *r) {
    size_t begin = r->at;
    while (r->at < r->n && r->s[r->at] >= '0' && r->s[r->at] <= '9') {
        r->at++;
    }
    return r->at > begin;
}

static folollm_status fl_json_read_number(fl_json_reader *r) {
    size_t begin = r->at;
    r->at += r->s[r->at] == '-';
    bool ok = r->at < r->n && r->s[r->at] == '0' ? (r->at++, true) : fl_json_digits(r);
    if (ok && r->at < r->n && r->s[r->at] == '.') {
        r->at++;
        ok = fl_json_digits(r);
    }
    if (ok && r->at < r->n && (r->s[r->at] | 0x20) == 'e') {
        r->at++;
        r->at += r->at < r->n && (r->s[r->at] == '+' || r->s[r->at] == '-');
        ok = fl_json_digits(r);
    }
    if (!ok) {
        return fl_json_bad(r, "a digit");
    }
    return fl_json_push(r, FL_JSON_NUMBER, begin, r->at - begin);
}

static folollm_status fl_json_read_word(fl_json_reader *r) {
    static const struct {
        const char *text;
        fl_json_type type;
    } words[] = {{"null", FL_JSON_NULL}, {"true", FL_JSON_TRUE}, {"false", FL_JSON_FALSE}};
    for (size_t i = 0; i < FL_COUNT(words); i++) {
        size_t n = strlen(words[i].text);
        if (r->n - r->at >= n && memcmp(r->s + r->at, words[i].text, n) == 0) {
            r->at += n;
            return fl_json_push(r, words[i].type, r->at - n, n);
        }
    }
    return fl_json_bad(r, "a value");
}

/* A scalar whole, or the opening of a container. */
static folollm_status fl_json_read_value(fl_json_reader *r) {
    char c = r->at < r->n ? r->s[r->at] : 0;
    if (c == '"') {
        return fl_json_read_string(r);
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        return fl_json_read_number(r);
    }
    if (c != '{' && c != '[') {
        return fl_json_read_word(r);
    }
    if (r->depth == FL_JSON_DEPTH) {
        return fl_json_bad(r, "at most 64 levels of nesting");
    }
    r->open[r->depth++] = (uint32_t)r->doc->n_nodes;
    r->at++;
    return fl_json_push(r, c == '{' ? FL_JSON_OBJECT : FL_JSON_ARRAY, r->at - 1, 1);
}

static folollm_status fl_json_read_key(fl_json_reader *r) {
    if (r->at == r->n || r->s[r->at] != '"') {
        return fl_json_bad(r, "a key in quotes");
    }
    FL_TRY(fl_json_read_string(r));
    fl_json_skip_space(r);
    if (r->at == r->n || r->s[r->at] != ':') {
        return fl_json_bad(r, "a colon");
    }
    r->at++;
    fl_json_skip_space(r);
    return FOLOLLM_OK;
}

/* Inside a container: read its next element or its end. */
static folollm_status fl_json_read_element(fl_json_reader *r) {
    uint32_t open = r->open[r->depth - 1];
    bool object = r->doc->nodes[open].type == FL_JSON_OBJECT, first = r->doc->nodes[open].n_children == 0;
    fl_json_skip_space(r);
    if (r->at < r->n && r->s[r->at] == (object ? '}' : ']')) {
        r->at++;
        r->doc->nodes[open].next = (uint32_t)r->doc->n_nodes;
        r->depth--;
        return FOLOLLM_OK;
    }
    if (!first) {
        if (r->at == r->n || r->s[r->at] != ',') {
            return fl_json_bad(r, object ? "',' or '}'" : "',' or ']'");
        }
        r->at++;
        fl_json_skip_space(r);
    }
    r->doc->nodes[open].n_children++;
    if (object) {
        FL_TRY(fl_json_read_key(r));
    }
    return fl_json_read_value(r);
}

FL_LOCAL folollm_status fl_json_parse(fl_memory *m, fl_json *doc, const char *name, fl_str text,
                                      folollm_error *error) {
    memset(doc, 0, sizeof *doc);
    doc->name = name;
    doc->text = text;
    fl_json_reader r = {.memory = m, .doc = doc, .s = text.at, .n = text.n, .error = error};
    if (text.n > UINT32_MAX / 2) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: %u bytes of JSON are more than is read here", name,
                       (uint64_t)text.n);
    }
    fl_json_skip_space(&r);
    folollm_status status = fl_json_read_value(&r);
    while (status == FOLOLLM_OK && r.depth > 0) {
        status = fl_json_read_element(&r);
    }
    if (status == FOLOLLM_OK) {
        fl_json_skip_space(&r);
        status = r.at == r.n ? FOLOLLM_OK : fl_json_bad(&r, "the end of the file");
    }
    if (status != FOLOLLM_OK) {
        fl_json_free(m, doc);
    }
    return status;
}

FL_LOCAL void fl_json_free(fl_memory *m, fl_json *doc) {
    fl_free(m, doc->nodes, doc->capacity * sizeof *doc->nodes);
    memset(doc, 0, sizeof *doc);
}

FL_LOCAL fl_str fl_json_string(const fl_json *doc, uint32_t node, char *buffer) {
    const fl_json_node *n = &doc->nodes[node];
    fl_str s = {doc->text.at + n->begin, n->n};
    if (!n->escaped) {
        return s;
    }
    size_t length = 0;
    for (size_t at = 0; at < s.n;) {
        size_t used = 1;
        if (s.at[at] == '\\') {
            length += fl_utf8_encode((uint32_t)fl_json_escape(s.at + at, s.n - at, &used), buffer + length);
        } else {
            buffer[length++] = s.at[at];
        }
        at += used;
    }
    s.at = buffer;
    s.n = length;
    return s;
}

FL_LOCAL fl_str fl_json_found(const fl_json *doc, uint32_t node) {
    if (node == FL_JSON_NONE) {
        return (fl_str){"nothing", 7};
    }
    return (fl_str){doc->text.at + doc->nodes[node].begin, doc->nodes[node].n};
}

FL_LOCAL bool fl_json_is(const fl_json *doc, uint32_t node, const char *text) {
    char buffer[256];
    return fl_json_type_of(doc, node) == FL_JSON_STRING && doc->nodes[node].n <= sizeof buffer &&
           fl_str_is(fl_json_string(doc, node, buffer), text);
}

FL_LOCAL uint32_t fl_json_get(const fl_json *doc, uint32_t node, const char *key) {
    uint32_t found = FL_JSON_NONE;
    if (fl_json_type_of(doc, node) != FL_JSON_OBJECT) {
        return FL_JSON_NONE;
    }
    for (uint32_t i = node + 1; i < doc->nodes[node].next; i = doc->nodes[i + 1].next) {
        if (fl_json_is(doc, i, key)) {
            found = i + 1;
        }
    }
    return found;
}

/* ---- Numbers -- */

/* value * 10^exponent in steps of powers that double holds exactly. */
static double fl_json_scale(double value, int64_t exponent) {
    while (exponent != 0 && value != 0 && value < DBL_MAX) {
        int64_t step = exponent < -22 ? -22 : exponent > 22 ? 22 : exponent;
        double power = 1;
        for (int64_t i = 0; i < (step < 0 ? -step : step); i++) {
            power *= 10;
        }
        value = step < 0 ? value / power : value > DBL_MAX / power ? DBL_MAX : value * power;
        exponent -= step;
    }
    return value;
}

/* Exact for up to 15 digits and powers of ten up to 22; else one rounding for every 22 powers. */
static double fl_json_number(fl_str s) {
    uint64_t digits = 0;
    int64_t exponent = 0;
    size_t at = s.at[0] == '-', point = SIZE_MAX;
    for (; at < s.n && (s.at[at] | 0x20) != 'e'; at++) {
        if (s.at[at] == '.') {
            point = at;
        } else if (digits < 1000000000000000000u) {
            digits = digits * 10 + (uint64_t)(s.at[at] - '0');
            exponent -= point != SIZE_MAX;
        } else {
            exponent += point == SIZE_MAX;
        }
    }
    int64_t written = 0;
    bool negative = at + 1 < s.n && s.at[at + 1] == '-';
    for (at += 1; at < s.n; at++) {
        if (s.at[at] >= '0' && written < 100000) {
            written = written * 10 + (s.at[at] - '0');
        }
    }
    exponent += negative ? -written : written;
    double value = fl_json_scale((double)digits, exponent);
    return s.at[0] == '-' ? -value : value;
}

FL_LOCAL bool fl_json_integer(const fl_json *doc, uint32_t node, uint64_t max, uint64_t *out) {
    uint64_t value = 0;
    if (fl_json_type_of(doc, node) != FL_JSON_NUMBER) {
        return false;
    }
    const fl_json_node *n = &doc->nodes[node];
    for (uint32_t i = 0; i < n->n; i++) {
        char c = doc->text.at[n->begin + i];
        uint64_t digit = (uint64_t)(c - '0');
        if (c < '0' || c > '9' || value > (UINT64_MAX - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    if (value > max) {
        return false;
    }
    *out = value;
    return true;
}

static folollm_status fl_json_wrong(const fl_json *doc, uint32_t node, const char *key, const char *expected,
                                    folollm_error *error) {
    fl_str found = {doc->text.at + doc->nodes[node].begin, doc->nodes[node].n};
    return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be %s; found %S", doc->name, key, expected, &found);
}

FL_LOCAL folollm_status fl_json_u32(const fl_json *doc, uint32_t object, const char *key, uint32_t missing,
                                    uint32_t *out, folollm_error *error) {
    uint32_t node = fl_json_get(doc, object, key);
    uint64_t value = missing;
    if (fl_json_type_of(doc, node) != FL_JSON_NULL && !fl_json_integer(doc, node, INT32_MAX, &value)) {
        return fl_json_wrong(doc, node, key, "an integer from 0 to 2147483647", error);
    }
    *out = (uint32_t)value;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_json_double(const fl_json *doc, uint32_t object, const char *key, double missing,
                                       double *out, folollm_error *error) {
    uint32_t node = fl_json_get(doc, object, key);
    *out = missing;
    if (fl_json_type_of(doc, node) == FL_JSON_NULL) {
        return FOLOLLM_OK;
    }
    if (fl_json_type_of(doc, node) != FL_JSON_NUMBER) {
        return fl_json_wrong(doc, node, key, "a number", error);
    }
    fl_str text = {doc->text.at + doc->nodes[node].begin, doc->nodes[node].n};
    *out = fl_json_number(text);
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_json_bool(const fl_json *doc, uint32_t object, const char *key, bool missing, bool *out,
                                     folollm_error *error) {
    uint32_t node = fl_json_get(doc, object, key);
    fl_json_type type = fl_json_type_of(doc, node);
    *out = type == FL_JSON_NULL ? missing : type == FL_JSON_TRUE;
    if (type > FL_JSON_TRUE) {
        return fl_json_wrong(doc, node, key, "true or false", error);
    }
    return FOLOLLM_OK;
}
