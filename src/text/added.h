/* Added tokens: strings that are cut out of a text before anything else looks at it. */
#ifndef FL_ADDED_H
#define FL_ADDED_H

#include "base/map.h"
#include "text/unicode.h"

typedef struct fl_added_token {
    uint32_t id;
    bool single_word, lstrip, rstrip;
    bool trusted_only; /* becomes a token only inside a trusted span */
} fl_added_token;

/* A trie for each of the two passes. */
enum { FL_ADDED_RAW, FL_ADDED_NORMALIZED, FL_ADDED_PASSES };

typedef struct fl_added {
    fl_added_token *tokens;  /* (n_tokens) */
    size_t n_tokens;
    fl_pair_map edges;       /* (node, byte) -> node; nodes 0 and 1 are the roots */
    uint32_t *ends;          /* (n_nodes) index of the token that ends here + 1; 0: none */
    uint32_t n_nodes;
    bool first[FL_ADDED_PASSES][256]; /* bytes that some token begins with */
} fl_added;

/* Room for n_tokens whose contents have n_bytes together. */
FL_LOCAL void fl_added_layout(fl_added *a, fl_arena *arena, size_t n_tokens, size_t n_bytes);
FL_LOCAL void fl_added_clear(fl_added *a);

/* Let content, not empty, be found as tokens[index] in a pass; of equal contents the first counts. */
FL_LOCAL void fl_added_put(fl_added *a, size_t pass, fl_str content, size_t index);

/* The index of the token whose content is just this in a pass; SIZE_MAX: there is none. */
FL_LOCAL size_t fl_added_find(const fl_added *a, size_t pass, fl_str content);

/* A walk over the parts of a text. */
typedef struct fl_added_walk {
    const fl_added *added;
    size_t pass;
    fl_str text;
    const folollm_span *trusted; /* (n_trusted) ascending, in bytes of a whole that text begins at `offset` of */
    size_t n_trusted, offset;
    size_t at, done; /* searched so far; handed out so far */
    const fl_added_token *found; /* not handed out yet, with the spaces that it takes */
    size_t found_begin, found_end;
} fl_added_walk;

FL_LOCAL void fl_added_begin(fl_added_walk *w, const fl_added *a, size_t pass, fl_str text, size_t offset,
                             const folollm_span *trusted, size_t n_trusted);

/* The next part: *token NULL and *part text, or a token. False at the end. */
FL_LOCAL bool fl_added_next(fl_added_walk *w, fl_str *part, const fl_added_token **token);

#endif
