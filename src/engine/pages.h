/* The page pool: which pages of KV cache are free, who shares them, which tokens they hold, and which of them can be
 * found again by their tokens. Ids and counts only; the keys and values themselves lie with the worker.
 *
 * Invariant: every page is either in the ring of free ones with no reference, or out of it with at least one.
 *
 *     ring:  [n_pages] -> taken first: pages of no use to anybody -> cached, longest unused ... last used -> [n_pages]
 *
 * The prefix cache is an index over full pages. A page's key is its own tokens and the page before it, which is named
 * by the serial number that it got when it was published: serials are never given twice, so equal keys mean equal
 * tokens from the start of the sequence on, and a hash is only the way to the candidates. A published page is full
 * and never written again; whoever holds no reference any more leaves it in the index until it is taken for something
 * else. */
#ifndef FL_PAGES_H
#define FL_PAGES_H

#include "base/map.h"

#define FL_PAGE_NONE UINT32_MAX

typedef struct fl_page_key {
    uint64_t space;   /* only equal ones see each other */
    uint64_t adapter; /* the same; 0: none */
    uint64_t before;  /* serial of the page before; 0: the first of a sequence */
} fl_page_key;

typedef struct fl_pages {
    uint32_t n_pages, n_free; /* n_free: the cached ones included */
    uint32_t n_shared;        /* pages with more than one reference */
    uint32_t n_cached;        /* free pages that are published */
    uint32_t *references;     /* (n_pages) */
    uint32_t *next, *previous; /* (n_pages + 1) the ring */
    folollm_token *tokens;    /* (n_pages, FL_PAGE_TOKENS) */
    uint64_t *serials;        /* (n_pages) 0: not published */
    fl_page_key *keys;        /* (n_pages) of the published ones */
    uint32_t *buckets;        /* (bucket_mask + 1) the first page of a chain, or FL_PAGE_NONE */
    uint32_t *chain;          /* (n_pages) the next page of the same bucket */
    size_t bucket_mask;
    uint64_t last_serial, n_evicted;
} fl_pages;

FL_LOCAL void fl_pages_layout(fl_pages *p, fl_arena *arena, uint32_t n_pages);
FL_LOCAL void fl_pages_init(fl_pages *p);

/* A page with one reference; there must be a free one. If it was cached, it is so no more. */
FL_LOCAL uint32_t fl_pages_take(fl_pages *p);

/* One more reference; also to a cached page that had none. */
FL_LOCAL void fl_pages_share(fl_pages *p, uint32_t page);
FL_LOCAL void fl_pages_release(fl_pages *p, uint32_t page);

/* The published page with this key and these tokens (FL_PAGE_TOKENS), or FL_PAGE_NONE. */
FL_LOCAL uint32_t fl_pages_find(const fl_pages *p, fl_page_key key, const folollm_token *tokens);

/* Publish a full page, unless one like it is there already. Returns the serial of that one, or of this. */
FL_LOCAL uint64_t fl_pages_publish(fl_pages *p, fl_page_key key, uint32_t page);

#endif
