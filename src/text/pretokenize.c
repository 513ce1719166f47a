/* The known pre-tokenizer patterns and one scanner for them.
 *
 * A word is found by reading forward from its first byte; a run is read at most three times (spaces: up to the last
 * newline, then without the last space, then the rest), so a text takes linear time whatever it holds. The
 * alternatives are tried in the order in which the regular expressions have them; where an expression would
 * backtrack, the code says what it would find. */
#include "text/pretokenize.h"

#define FL_PRETOK_LLAMA3_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define FL_PRETOK_LLAMA3_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define FL_PRETOK_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define FL_PRETOK_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define FL_PRETOK_PREFIXED "[^\\r\\n\\p{L}\\p{N}]?"
#define FL_PRETOK_SUFFIX "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#define FL_PRETOK_O200K_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const fl_pretok_pattern fl_pretok_patterns[] = { /* by fl_pretok_name */
    /* GPT-2; ByteLevel with use_regex */
    {.regex = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     .contractions = FL_PRETOK_CONTRACTION_EXACT,
     .number_space = true,
     .tail = ""},
    /* Qwen 2, 2.5, 3 */
    {.regex = FL_PRETOK_LLAMA3_HEAD "\\p{N}" FL_PRETOK_LLAMA3_TAIL,
     .contractions = FL_PRETOK_CONTRACTION_FOLDED,
     .any_prefix = true,
     .n_digits = 1,
     .tail = "\r\n",
     .newlines = true},
    /* Llama 3 */
    {.regex = FL_PRETOK_LLAMA3_HEAD "\\p{N}{1,3}" FL_PRETOK_LLAMA3_TAIL,
     .contractions = FL_PRETOK_CONTRACTION_FOLDED,
     .any_prefix = true,
     .n_digits = 3,
     .tail = "\r\n",
     .newlines = true},
    /* Qwen 3.5 */
    {.regex = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+"
              "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     .contractions = FL_PRETOK_CONTRACTION_FOLDED,
     .any_prefix = true,
     .marks = true,
     .n_digits = 1,
     .tail = "\r\n",
     .newlines = true},
    /* o200k: gpt-oss, Phi-4-mini */
    {.regex = FL_PRETOK_PREFIXED FL_PRETOK_UPPER "*" FL_PRETOK_LOWER "+" FL_PRETOK_SUFFIX "|" FL_PRETOK_PREFIXED
                  FL_PRETOK_UPPER "+" FL_PRETOK_LOWER "*" FL_PRETOK_SUFFIX "|\\p{N}{1,3}" FL_PRETOK_O200K_TAIL,
     .contractions = FL_PRETOK_CONTRACTION_SUFFIX,
     .any_prefix = true,
     .cased = true,
     .n_digits = 3,
     .tail = "\r\n/",
     .newlines = true},
    /* Tekken: Mistral */
    {.regex = FL_PRETOK_PREFIXED FL_PRETOK_UPPER "*" FL_PRETOK_LOWER "+|" FL_PRETOK_PREFIXED FL_PRETOK_UPPER
                  "+" FL_PRETOK_LOWER "*|\\p{N}" FL_PRETOK_O200K_TAIL,
     .any_prefix = true,
     .cased = true,
     .n_digits = 1,
     .tail = "\r\n/",
     .newlines = true},
};

FL_LOCAL const fl_pretok_pattern *fl_pretok_known(fl_pretok_name name) {
    return &fl_pretok_patterns[name];
}

FL_LOCAL bool fl_pretok_find(fl_str regex, fl_pretok_step *step) {
    memset(step, 0, sizeof *step);
    for (size_t i = 0; i < FL_COUNT(fl_pretok_patterns); i++) {
        if (fl_str_is(regex, fl_pretok_patterns[i].regex)) {
            step->kind = FL_PRETOK_WORDS;
            step->pattern = &fl_pretok_patterns[i];
            return true;
        }
    }
    bool three = fl_str_is(regex, "\\p{N}{1,3}"), one = fl_str_is(regex, "\\p{N}");
    step->kind = FL_PRETOK_NUMBERS;
    step->n_digits = one ? 1 : three ? 3 : 0;
    return one || three || fl_str_is(regex, "\\p{N}+");
}

/* ---- The scanner: each alternative gives the end of the word that it finds at the beginning of s, or 0 -- */

/* From `at` on as long as characters have one of the classes, at most `most` (0: any number) of them. */
static size_t fl_pretok_run(fl_str s, size_t at, uint8_t classes, size_t most) {
    for (size_t i = 0; most == 0 || i < most; i++) {
        fl_uni_char c = fl_uni_peek(s, at);
        if ((c.class & classes) == 0) {
            break;
        }
        at += c.n;
    }
    return at;
}

static uint32_t fl_pretok_fold(uint32_t code, bool folded) {
    if (!folded) {
        return code;
    }
    return code == 0x17F ? 's' : code >= 'A' && code <= 'Z' ? code + 32 : code; /* U+017F: long s, as Oniguruma folds */
}

/* The end of 's 't 're 've 'm 'll 'd at `at`, or `at` itself. */
static size_t fl_pretok_contraction(fl_str s, size_t at, bool folded) {
    if (at >= s.n || s.at[at] != '\'') {
        return at;
    }
    fl_uni_char a = fl_uni_peek(s, at + 1), b = fl_uni_peek(s, at + 1 + a.n);
    uint32_t first = fl_pretok_fold(a.code, folded), second = fl_pretok_fold(b.code, folded);
    if (a.n == 0) {
        return at;
    }
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return at + 1 + a.n;
    }
    bool pair = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return pair ? at + 1 + a.n + b.n : at;
}

/* U* L+ or U+ L* at `at`, with U all letters and marks but lower-case ones and L all but upper-case ones. U* takes
 * all it can; if nothing that L+ takes follows, it gives back to the last character that both take; and if it has
 * none, the whole run is U+. Returns `at` for no match; *lower: what was found is U* L+. */
static size_t fl_pretok_cased(fl_str s, size_t at, bool *lower) {
    size_t end = at, give_back = at;
    fl_uni_char c = fl_uni_peek(s, end);
    while ((c.class & (FL_UNI_LETTER | FL_UNI_MARK)) != 0 && (c.class & FL_UNI_LOWER) == 0) {
        end += c.n;
        if ((c.class & FL_UNI_UPPER) == 0) {
            give_back = end;
        }
        c = fl_uni_peek(s, end);
    }
    *lower = true;
    if ((c.class & FL_UNI_LOWER) != 0) {
        do {
            end += c.n;
            c = fl_uni_peek(s, end);
        } while ((c.class & (FL_UNI_LETTER | FL_UNI_MARK)) != 0 && (c.class & FL_UNI_UPPER) == 0);
        return end;
    }
    if (give_back > at) {
        return give_back;
    }
    *lower = false;
    return end;
}

/* Letters of patterns that tell upper case from lower. */
static size_t fl_pretok_cased_letters(const fl_pretok_pattern *p, fl_str s) {
    fl_uni_char first = fl_uni_peek(s, 0);
    bool prefix = (first.class & (FL_UNI_LETTER | FL_UNI_NUMBER | FL_UNI_NEWLINE)) == 0, lower, bare_lower;
    size_t end = 0, bare = 0;
    if (prefix) {
        end = fl_pretok_cased(s, first.n, &lower);
        end = end > first.n ? end : 0;
    }
    /* The first alternative is tried with the prefix, then without it, before the second one: a mark can be both. */
    if (end == 0 || !lower) {
        bare = fl_pretok_cased(s, 0, &bare_lower);
        end = bare > 0 && (end == 0 || bare_lower) ? bare : end;
    }
    bool suffix = end > 0 && p->contractions == FL_PRETOK_CONTRACTION_SUFFIX;
    return suffix ? fl_pretok_contraction(s, end, true) : end;
}

static size_t fl_pretok_letters(const fl_pretok_pattern *p, fl_str s) {
    if (p->cased) {
        return fl_pretok_cased_letters(p, s);
    }
    uint8_t classes = p->marks ? FL_UNI_LETTER | FL_UNI_MARK : FL_UNI_LETTER;
    fl_uni_char first = fl_uni_peek(s, 0);
    size_t begin = 0;
    if ((first.class & classes) == 0) {
        bool prefix = p->any_prefix ? (first.class & (FL_UNI_NUMBER | FL_UNI_NEWLINE)) == 0 : first.code == ' ';
        if (!prefix) {
            return 0;
        }
        begin = first.n;
    }
    size_t end = fl_pretok_run(s, begin, classes, 0);
    return end > begin ? end : 0;
}

static size_t fl_pretok_numbers(const fl_pretok_pattern *p, fl_str s) {
    size_t begin = p->number_space && s.at[0] == ' ';
    size_t end = fl_pretok_run(s, begin, FL_UNI_NUMBER, p->n_digits);
    return end > begin ? end : 0;
}

static size_t fl_pretok_punctuation(const fl_pretok_pattern *p, fl_str s) {
    uint8_t others = FL_UNI_SPACE | FL_UNI_LETTER | FL_UNI_NUMBER;
    others = p->marks ? (uint8_t)(others | FL_UNI_MARK) : others;
    size_t begin = s.at[0] == ' ', end = begin;
    fl_uni_char c = fl_uni_peek(s, end);
    while (c.n > 0 && (c.class & others) == 0) {
        end += c.n;
        c = fl_uni_peek(s, end);
    }
    if (end == begin) {
        return 0;
    }
    while (end < s.n && s.at[end] != 0 && strchr(p->tail, s.at[end]) != NULL) {
        end++;
    }
    return end;
}

static size_t fl_pretok_spaces(const fl_pretok_pattern *p, fl_str s) {
    size_t end = 0, last = 0, newline = 0;
    fl_uni_char c = fl_uni_peek(s, 0);
    while ((c.class & FL_UNI_SPACE) != 0) {
        last = end;
        end += c.n;
        newline = (c.class & FL_UNI_NEWLINE) != 0 ? end : newline;
        c = fl_uni_peek(s, end);
    }
    if (p->newlines && newline > 0) {
        return newline;
    }
    return end < s.n && last > 0 ? last : end; /* \s+(?!\S) leaves the last space to the word that follows */
}

/* Length of the first word of s, which is not empty. */
static size_t fl_pretok_word(const fl_pretok_pattern *p, fl_str s) {
    size_t end = 0;
    if (p->contractions == FL_PRETOK_CONTRACTION_EXACT || p->contractions == FL_PRETOK_CONTRACTION_FOLDED) {
        end = fl_pretok_contraction(s, 0, p->contractions == FL_PRETOK_CONTRACTION_FOLDED);
    }
    end = end > 0 ? end : fl_pretok_letters(p, s);
    end = end > 0 ? end : fl_pretok_numbers(p, s);
    end = end > 0 ? end : fl_pretok_punctuation(p, s);
    end = end > 0 ? end : fl_pretok_spaces(p, s);
    return end > 0 ? end : fl_uni_peek(s, 0).n;
}

/* ---- The other cuts -- */

static size_t fl_pretok_cut_numbers(fl_str s, size_t n_digits) {
    size_t end = fl_pretok_run(s, 0, FL_UNI_NUMBER, n_digits);
    if (end > 0) {
        return end;
    }
    while (end < s.n) {
        fl_uni_char c = fl_uni_peek(s, end);
        if ((c.class & FL_UNI_NUMBER) != 0) {
            break;
        }
        end += c.n;
    }
    return end;
}

/* Where literal next occurs in s, from `at` on; s.n if nowhere. */
static size_t fl_pretok_find_literal(fl_str s, size_t at, fl_str literal) {
    while (at + literal.n <= s.n) {
        const char *hit = memchr(s.at + at, literal.at[0], s.n - at - literal.n + 1);
        if (hit == NULL) {
            return s.n;
        }
        at = (size_t)(hit - s.at);
        if (memcmp(hit, literal.at, literal.n) == 0) {
            return at;
        }
        at++;
    }
    return s.n;
}

static size_t fl_pretok_cut_literal(fl_str s, fl_str literal, fl_pretok_join join) {
    size_t hit = fl_pretok_find_literal(s, 0, literal);
    if (join == FL_PRETOK_WITH_PREVIOUS) {
        return hit < s.n ? hit + literal.n : s.n;
    }
    if (hit > 0) {
        return hit;
    }
    return join == FL_PRETOK_ISOLATED ? literal.n : fl_pretok_find_literal(s, literal.n, literal);
}

static size_t fl_pretok_cut(const fl_pretok_step *step, fl_str s) {
    switch (step->kind) {
    case FL_PRETOK_WORDS:
        return fl_pretok_word(step->pattern, s);
    case FL_PRETOK_NUMBERS:
        return fl_pretok_cut_numbers(s, step->n_digits);
    case FL_PRETOK_LITERAL:
        return fl_pretok_cut_literal(s, fl_short_str(&step->literal), step->join);
    case FL_PRETOK_WHOLE:
        break;
    }
    return s.n;
}

/* ---- The walk -- */

/* Spaces to the literal, and the prefix, where the step has them. */
static bool fl_pretok_rewrite(fl_pretok_walk *w, const fl_pretok_step *step, fl_str *s) {
    fl_text_buffer *b = w->rewritten;
    fl_str space = {" ", 1}, literal = step->spaces ? fl_short_str(&step->literal) : space;
    bool has = s->n >= literal.n && memcmp(s->at, literal.at, literal.n) == 0;
    has = has || (step->spaces && s->at[0] == ' ');
    bool first = w->at_start && s->at == w->begin;
    bool put = !has && (step->prefix == FL_PRETOK_PREFIX_ALWAYS || (step->prefix == FL_PRETOK_PREFIX_FIRST && first));
    if (!put && !step->spaces) {
        return true;
    }
    b->n = 0;
    if (put && !fl_text_append(b, literal.at, literal.n)) {
        return false;
    }
    for (size_t at = 0; at < s->n;) {
        size_t end = step->spaces ? fl_pretok_find_literal(*s, at, space) : s->n;
        if (!fl_text_append(b, s->at + at, end - at) ||
            (end < s->n && !fl_text_append(b, literal.at, literal.n))) {
            return false;
        }
        at = end + (end < s->n);
    }
    *s = fl_text_of(b);
    return true;
}

/* Hand s to the next step; after the last one it is a word. */
static bool fl_pretok_enter(fl_pretok_walk *w, fl_str s) {
    if (w->depth < w->steps->n_steps) {
        const fl_pretok_step *step = &w->steps->steps[w->depth];
        if (s.n > 0 && (step->spaces || step->prefix != FL_PRETOK_PREFIX_NEVER) && !fl_pretok_rewrite(w, step, &s)) {
            return false;
        }
    }
    w->rest[w->depth++] = s;
    return true;
}

FL_LOCAL bool fl_pretok_begin(fl_pretok_walk *w, const fl_pretokenizer *p, fl_str text, bool at_start,
                              fl_text_buffer *rewritten) {
    w->steps = p;
    w->rewritten = rewritten;
    w->depth = 0;
    w->begin = text.at;
    w->at_start = at_start;
    return fl_pretok_enter(w, text);
}

FL_LOCAL bool fl_pretok_next(fl_pretok_walk *w, fl_str *word) {
    word->n = 0;
    while (w->depth > 0) {
        fl_str *rest = &w->rest[w->depth - 1];
        if (w->depth > w->steps->n_steps) {
            *word = *rest;
            w->depth--;
            if (word->n > 0) {
                return true;
            }
        } else if (rest->n == 0) {
            w->depth--;
        } else {
            fl_str part = {rest->at, fl_pretok_cut(&w->steps->steps[w->depth - 1], *rest)};
            rest->at += part.n;
            rest->n -= part.n;
            if (!fl_pretok_enter(w, part)) {
                return false;
            }
        }
    }
    return true;
}
