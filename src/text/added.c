/* The matcher of added tokens: at each byte the longest token that begins there, from left to right, as the tokenizers
 * library does it with Aho-Corasick (leftmost-longest). A byte that begins no token costs one look-up.
 *
 * A token that may come only from trusted text must lie inside one trusted span; the spaces that lstrip and rstrip
 * take and the neighbours that single_word asks for may lie anywhere, as they make no token. */
#include "text/added.h"

FL_LOCAL void fl_added_layout(fl_added *a, fl_arena *arena, size_t n_tokens, size_t n_bytes) {
    a->tokens = fl_take(arena, n_tokens, sizeof *a->tokens);
    a->ends = fl_take(arena, n_bytes + FL_ADDED_PASSES, sizeof *a->ends);
    fl_pair_map_layout(&a->edges, arena, n_bytes);
}

FL_LOCAL void fl_added_clear(fl_added *a) {
    fl_pair_map_clear(&a->edges);
    a->n_nodes = FL_ADDED_PASSES;
}

FL_LOCAL void fl_added_put(fl_added *a, size_t pass, fl_str content, size_t index) {
    uint32_t node = (uint32_t)pass;
    a->first[pass][(uint8_t)content.at[0]] = true;
    for (size_t i = 0; i < content.n; i++) {
        uint8_t byte = (uint8_t)content.at[i];
        uint32_t next = fl_pair_map_get(&a->edges, node, byte);
        if (next == FL_PAIR_NONE) {
            next = a->n_nodes++;
            fl_pair_map_put(&a->edges, node, byte, next);
        }
        node = next;
    }
    if (a->ends[node] == 0) {
        a->ends[node] = (uint32_t)index + 1;
    }
}

FL_LOCAL size_t fl_added_find(const fl_added *a, size_t pass, fl_str content) {
    uint32_t node = (uint32_t)pass;
    for (size_t i = 0; i < content.n && node != FL_PAIR_NONE; i++) {
        node = fl_pair_map_get(&a->edges, node, (uint8_t)content.at[i]);
    }
    return node != FL_PAIR_NONE && a->ends[node] != 0 ? a->ends[node] - 1 : SIZE_MAX;
}

FL_LOCAL void fl_added_begin(fl_added_walk *w, const fl_added *a, size_t pass, fl_str text, size_t offset,
                             const folollm_span *trusted, size_t n_trusted) {
    memset(w, 0, sizeof *w);
    w->added = a;
    w->pass = pass;
    w->text = text;
    w->offset = offset;
    w->trusted = trusted;
    w->n_trusted = n_trusted;
}

/* How many bytes from w->at on lie in the same trusted span. Spans that end before are dropped. */
static size_t fl_added_trust(fl_added_walk *w) {
    size_t at = w->offset + w->at;
    while (w->n_trusted > 0 && w->trusted->end <= at) {
        w->trusted++;
        w->n_trusted--;
    }
    return w->n_trusted > 0 && w->trusted->begin <= at ? w->trusted->end - at : 0;
}

/* The longest token at w->at that may be there; its length, or 0. */
static size_t fl_added_longest(fl_added_walk *w, const fl_added_token **token) {
    const fl_added *a = w->added;
    size_t trust = fl_added_trust(w), length = 0;
    uint32_t node = (uint32_t)w->pass;
    for (size_t i = w->at; i < w->text.n; i++) {
        node = fl_pair_map_get(&a->edges, node, (uint8_t)w->text.at[i]);
        if (node == FL_PAIR_NONE) {
            break;
        }
        if (a->ends[node] != 0) {
            const fl_added_token *found = &a->tokens[a->ends[node] - 1];
            size_t n = i + 1 - w->at;
            if (n <= trust || !found->trusted_only) {
                *token = found;
                length = n;
            }
        }
    }
    return length;
}

static bool fl_added_alone(fl_str text, size_t begin, size_t end) {
    return (begin == 0 || !fl_uni_is_word(fl_uni_before(text, begin).code)) &&
           (end == text.n || !fl_uni_is_word(fl_uni_peek(text, end).code));
}

static size_t fl_added_strip_left(fl_str text, size_t begin, size_t at) {
    while (at > begin) {
        fl_uni_char c = fl_uni_before(text, at);
        if ((c.class & FL_UNI_SPACE) == 0) {
            break;
        }
        at -= c.n;
    }
    return at;
}

static size_t fl_added_strip_right(fl_str text, size_t at) {
    fl_uni_char c = fl_uni_peek(text, at);
    while ((c.class & FL_UNI_SPACE) != 0) {
        at += c.n;
        c = fl_uni_peek(text, at);
    }
    return at;
}

/* Find the next token from w->at on. */
static void fl_added_search(fl_added_walk *w) {
    while (w->found == NULL && w->at < w->text.n) {
        const fl_added_token *token = NULL;
        size_t n = 0, start = w->at;
        if (w->added->first[w->pass][(uint8_t)w->text.at[start]]) {
            n = fl_added_longest(w, &token);
        }
        w->at += n > 0 ? n : 1;
        if (n == 0 || (token->single_word && !fl_added_alone(w->text, start, start + n))) {
            continue;
        }
        w->found = token;
        w->found_begin = token->lstrip ? fl_added_strip_left(w->text, fl_min(w->done, start), start) : start;
        w->found_end = token->rstrip ? fl_added_strip_right(w->text, w->at) : w->at;
    }
}

FL_LOCAL bool fl_added_next(fl_added_walk *w, fl_str *part, const fl_added_token **token) {
    fl_added_search(w);
    size_t begin = w->found != NULL ? w->found_begin : w->text.n;
    bool text = w->done < begin;
    if (!text && w->found == NULL) {
        return false;
    }
    part->at = w->text.at + w->done;
    part->n = text ? begin - w->done : 0;
    *token = text ? NULL : w->found;
    w->done = text ? begin : w->found_end;
    w->found = text ? w->found : NULL;
    return true;
}
