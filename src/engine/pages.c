#include "engine/pages.h"

FL_LOCAL void fl_pages_layout(fl_pages *p, fl_arena *arena, uint32_t n_pages) {
    size_t n_buckets = 16;
    while (n_buckets < n_pages) { /* n_pages is below 2^32 */
        n_buckets *= 2;
    }
    p->n_pages = n_pages;
    p->bucket_mask = n_buckets - 1;
    p->references = fl_take(arena, n_pages, sizeof *p->references);
    p->next = fl_take(arena, (size_t)n_pages + 1, sizeof *p->next);
    p->previous = fl_take(arena, (size_t)n_pages + 1, sizeof *p->previous);
    p->tokens = fl_take(arena, n_pages, FL_PAGE_TOKENS * sizeof *p->tokens);
    p->serials = fl_take(arena, n_pages, sizeof *p->serials);
    p->keys = fl_take(arena, n_pages, sizeof *p->keys);
    p->buckets = fl_take(arena, n_buckets, sizeof *p->buckets);
    p->chain = fl_take(arena, n_pages, sizeof *p->chain);
}

/* The lowest page comes first: a fresh pool is handed out from its start. */
FL_LOCAL void fl_pages_init(fl_pages *p) {
    uint32_t anchor = p->n_pages;
    for (uint32_t i = 0; i <= anchor; i++) {
        p->next[i] = i < anchor ? i + 1 : 0;
        p->previous[i] = i > 0 ? i - 1 : anchor;
    }
    for (size_t i = 0; i <= p->bucket_mask; i++) {
        p->buckets[i] = FL_PAGE_NONE;
    }
    p->n_free = p->n_pages;
}

/* ---- The ring -- */

static void fl_ring_remove(fl_pages *p, uint32_t page) {
    p->next[p->previous[page]] = p->next[page];
    p->previous[p->next[page]] = p->previous[page];
    p->n_free--;
    p->n_cached -= p->serials[page] != 0;
}

static void fl_ring_insert(fl_pages *p, uint32_t page) {
    bool cached = p->serials[page] != 0;
    uint32_t after = cached ? p->previous[p->n_pages] : p->n_pages;
    p->next[page] = p->next[after];
    p->previous[page] = after;
    p->previous[p->next[page]] = page;
    p->next[after] = page;
    p->n_free++;
    p->n_cached += cached;
}

/* ---- The index -- */

static uint32_t *fl_pages_bucket(const fl_pages *p, fl_page_key key, const folollm_token *tokens) {
    uint64_t h = fl_mix(key.space) ^ fl_mix(~key.adapter) ^ key.before;
    for (size_t i = 0; i < FL_PAGE_TOKENS; i++) {
        h = fl_mix(h ^ (uint32_t)tokens[i]);
    }
    return &p->buckets[(size_t)h & p->bucket_mask];
}

static const folollm_token *fl_pages_tokens(const fl_pages *p, uint32_t page) {
    return p->tokens + (size_t)page * FL_PAGE_TOKENS;
}

static void fl_pages_unpublish(fl_pages *p, uint32_t page) {
    uint32_t *link = fl_pages_bucket(p, p->keys[page], fl_pages_tokens(p, page));
    while (*link != page) {
        link = &p->chain[*link];
    }
    *link = p->chain[page];
    p->serials[page] = 0;
    p->n_evicted++;
}

FL_LOCAL uint32_t fl_pages_find(const fl_pages *p, fl_page_key key, const folollm_token *tokens) {
    uint32_t page = *fl_pages_bucket(p, key, tokens);
    while (page != FL_PAGE_NONE &&
           (p->keys[page].space != key.space || p->keys[page].adapter != key.adapter ||
            p->keys[page].before != key.before ||
            memcmp(fl_pages_tokens(p, page), tokens, FL_PAGE_TOKENS * sizeof *tokens) != 0)) {
        page = p->chain[page];
    }
    return page;
}

FL_LOCAL uint64_t fl_pages_publish(fl_pages *p, fl_page_key key, uint32_t page) {
    uint32_t there = fl_pages_find(p, key, fl_pages_tokens(p, page));
    if (there != FL_PAGE_NONE) {
        return p->serials[there];
    }
    uint32_t *bucket = fl_pages_bucket(p, key, fl_pages_tokens(p, page));
    p->keys[page] = key;
    p->serials[page] = ++p->last_serial;
    p->chain[page] = *bucket;
    *bucket = page;
    return p->serials[page];
}

/* ---- References -- */

FL_LOCAL uint32_t fl_pages_take(fl_pages *p) {
    uint32_t page = p->next[p->n_pages];
    fl_ring_remove(p, page);
    if (p->serials[page] != 0) {
        fl_pages_unpublish(p, page);
    }
    p->references[page] = 1;
    return page;
}

FL_LOCAL void fl_pages_share(fl_pages *p, uint32_t page) {
    if (p->references[page] == 0) {
        fl_ring_remove(p, page);
    }
    p->n_shared += p->references[page]++ == 1;
}

FL_LOCAL void fl_pages_release(fl_pages *p, uint32_t page) {
    uint32_t left = --p->references[page];
    p->n_shared -= left == 1;
    if (left == 0) {
        fl_ring_insert(p, page);
    }
}
