/* The page pool: which pages of KV cache are free, who shares them, and which tokens they hold. Ids and counts only;
 * the keys and values themselves lie with the worker.
 *
 * Invariant: every page is either on the free list with no reference, or off it with at least one. */
#ifndef FL_PAGES_H
#define FL_PAGES_H

#include "base/memory.h"

typedef struct fl_pages {
    uint32_t n_pages, n_free;
    uint32_t n_shared;     /* pages with more than one reference */
    uint32_t *references;  /* (n_pages) */
    uint32_t *free_list;   /* (n_free) a stack */
    folollm_token *tokens; /* (n_pages, FL_PAGE_TOKENS) */
} fl_pages;

FL_LOCAL void fl_pages_layout(fl_pages *p, fl_arena *arena, uint32_t n_pages);
FL_LOCAL void fl_pages_init(fl_pages *p);

/* A page with one reference; there must be a free one. */
FL_LOCAL uint32_t fl_pages_take(fl_pages *p);
FL_LOCAL void fl_pages_share(fl_pages *p, uint32_t page);
FL_LOCAL void fl_pages_release(fl_pages *p, uint32_t page);

#endif
