/* Pre-tokenizers: text to words. Each known regular expression is a scanner that reads forward. */
#ifndef FL_PRETOKENIZE_H
#define FL_PRETOKENIZE_H

#include "text/unicode.h"

#define FL_PRETOK_STEPS 6

typedef struct fl_short_text { /* a few bytes of a tokenizer.json, kept in place */
    uint8_t n;
    char at[31];
} fl_short_text;

FL_INLINE fl_str fl_short_str(const fl_short_text *s) {
    fl_str str = {s->at, s->n};
    return str;
}

/* A word pattern as data: what its alternatives say. */
typedef struct fl_pretok_pattern {
    const char *regex; /* exactly so in tokenizer.json */
    uint8_t contractions; /* FL_PRETOK_CONTRACTION_* */
    bool any_prefix;   /* letters may follow one character that is no letter, number or newline; else one space */
    bool cased;        /* words of letters are upper* lower+ or upper+ lower* */
    bool marks;        /* \p{M} counts as letter */
    bool number_space; /* numbers may follow one space */
    uint8_t n_digits;  /* most digits in a word; 0: any number */
    const char *tail;  /* characters that punctuation takes along */
    bool newlines;     /* white space up to a newline is a word */
} fl_pretok_pattern;

enum {
    FL_PRETOK_CONTRACTION_NONE,
    FL_PRETOK_CONTRACTION_EXACT,  /* 's 't 're 've 'm 'll 'd as a word of their own */
    FL_PRETOK_CONTRACTION_FOLDED, /* the same in any case */
    FL_PRETOK_CONTRACTION_SUFFIX  /* folded, at the end of a word of letters */
};

typedef enum fl_pretok_kind {
    FL_PRETOK_WHOLE,   /* one word */
    FL_PRETOK_WORDS,   /* a pattern */
    FL_PRETOK_NUMBERS, /* numbers apart, at most n_digits of \p{N} together; 0: any number */
    FL_PRETOK_LITERAL  /* at a string */
} fl_pretok_kind;

typedef enum fl_pretok_join { /* where the string goes that LITERAL cuts at */
    FL_PRETOK_ISOLATED,
    FL_PRETOK_WITH_PREVIOUS,
    FL_PRETOK_WITH_NEXT
} fl_pretok_join;

typedef enum fl_pretok_prefix {
    FL_PRETOK_PREFIX_NEVER,
    FL_PRETOK_PREFIX_FIRST,
    FL_PRETOK_PREFIX_ALWAYS
} fl_pretok_prefix;

typedef struct fl_pretok_step {
    fl_pretok_kind kind;
    const fl_pretok_pattern *pattern; /* WORDS */
    uint8_t n_digits;                 /* NUMBERS */
    fl_pretok_join join;              /* LITERAL */
    fl_short_text literal;            /* LITERAL; with `spaces`, what spaces become */
    bool spaces;                      /* Metaspace: spaces become the literal first */
    fl_pretok_prefix prefix;          /* put the literal (Metaspace) or a space (ByteLevel) before the text */
} fl_pretok_step;

/* The steps of a pre-tokenizer: each cuts the words of the one before it. */
typedef struct fl_pretokenizer {
    fl_pretok_step steps[FL_PRETOK_STEPS];
    size_t n_steps;
    bool byte_level; /* the vocabulary is spelled in the byte alphabet */
} fl_pretokenizer;

/* The pattern or the digit count that a regular expression is known as. False: it is not known. */
FL_LOCAL bool fl_pretok_find(fl_str regex, fl_pretok_step *step);

/* The patterns by name. */
typedef enum fl_pretok_name {
    FL_PRETOK_GPT2, /* and ByteLevel with use_regex */
    FL_PRETOK_QWEN2,
    FL_PRETOK_LLAMA3,
    FL_PRETOK_QWEN35,
    FL_PRETOK_O200K,
    FL_PRETOK_TEKKEN
} fl_pretok_name;

FL_LOCAL const fl_pretok_pattern *fl_pretok_known(fl_pretok_name name);

typedef struct fl_pretok_walk {
    const fl_pretokenizer *steps;
    fl_text_buffer *rewritten; /* of the one step that changes its text */
    fl_str rest[FL_PRETOK_STEPS + 1];
    size_t depth;
    const char *begin; /* of the text */
    bool at_start;     /* the text is the beginning of all */
} fl_pretok_walk;

/* Walk over the words of text, which is valid UTF-8 and outlives the walk. next gives one, *word with n 0 at the end;
 * false: no memory. A word is valid until the next call. */
FL_LOCAL bool fl_pretok_begin(fl_pretok_walk *w, const fl_pretokenizer *p, fl_str text, bool at_start,
                              fl_text_buffer *rewritten);
FL_LOCAL bool fl_pretok_next(fl_pretok_walk *w, fl_str *word);

#endif
