#include "engine/pages.h"

FL_LOCAL void fl_pages_layout(fl_pages *p, fl_arena *arena, uint32_t n_pages) {
    p->n_pages = n_pages;
    p->references = fl_take(arena, n_pages, sizeof *p->references);
    p->free_list = fl_take(arena, n_pages, sizeof *p->free_list);
    p->tokens = fl_take(arena, n_pages, FL_PAGE_TOKENS * sizeof *p->tokens);
}

/* The lowest page is on top: a fresh pool is handed out from its start. */
FL_LOCAL void fl_pages_init(fl_pages *p) {
    for (uint32_t i = 0; i < p->n_pages; i++) {
        p->free_list[i] = p->n_pages - 1 - i;
    }
    p->n_free = p->n_pages;
    p->n_shared = 0;
}

FL_LOCAL uint32_t fl_pages_take(fl_pages *p) {
    uint32_t page = p->free_list[--p->n_free];
    p->references[page] = 1;
    return page;
}

FL_LOCAL void fl_pages_share(fl_pages *p, uint32_t page) {
    p->n_shared += p->references[page]++ == 1;
}

FL_LOCAL void fl_pages_release(fl_pages *p, uint32_t page) {
    uint32_t left = --p->references[page];
    p->n_shared -= left == 1;
    if (left == 0) {
        p->free_list[p->n_free++] = page;
    }
}
