#include "base/memory.h"

#include <stdlib.h>

static void *fl_default_realloc(void *user, void *p, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    return realloc(p, new_size);
}

FL_LOCAL void fl_memory_init(fl_memory *m, const folollm_host *host) {
    memset(m, 0, sizeof *m);
    if (host != NULL) {
        m->host = *host;
    }
    if (m->host.realloc == NULL) {
        m->host.realloc = fl_default_realloc;
    }
}

FL_LOCAL bool fl_memory_is_default(const fl_memory *m) {
    return m->host.realloc == fl_default_realloc;
}

FL_LOCAL void *fl_alloc(fl_memory *m, size_t n) {
    void *p = fl_alloc_raw(m, n);
    if (p != NULL) {
        memset(p, 0, n);
    }
    return p;
}

FL_LOCAL void *fl_alloc_raw(fl_memory *m, size_t n) {
    if (n == 0) {
        return NULL;
    }
    void *p = m->host.realloc(m->host.user, NULL, 0, n);
    if (p != NULL) {
        m->live += n;
        m->peak = m->live > m->peak ? m->live : m->peak;
    }
    return p;
}

FL_LOCAL void fl_free(fl_memory *m, void *p, size_t n) {
    if (p != NULL) {
        m->live -= n;
        m->host.realloc(m->host.user, p, n, 0); /* last: m may lie in the block */
    }
}

FL_LOCAL bool fl_grow(fl_memory *m, void **p, size_t *capacity, size_t n, size_t element_bytes) {
    if (n <= *capacity) {
        return true;
    }
    size_t wanted = fl_max(n, *capacity <= SIZE_MAX / 2 ? *capacity * 2 : n), bytes;
    if (!fl_mul(fl_max(wanted, 16), element_bytes, &bytes)) {
        return false;
    }
    size_t old_bytes = *capacity * element_bytes;
    void *q = m->host.realloc(m->host.user, *p, old_bytes, bytes);
    if (q == NULL) {
        return false;
    }
    m->live += bytes - old_bytes;
    m->peak = m->live > m->peak ? m->live : m->peak;
    *p = q;
    *capacity = bytes / element_bytes;
    return true;
}

FL_LOCAL folollm_status fl_no_memory(folollm_error *error, const char *what, size_t n_bytes) {
    return fl_fail(error, FOLOLLM_E_MEMORY, "no memory for %s: the allocator refused %u bytes", what,
                   (uint64_t)n_bytes);
}

FL_LOCAL void *fl_take(fl_arena *a, size_t n, size_t element_bytes) {
    size_t bytes, end;
    if (a->overflow || !fl_mul(n, element_bytes, &bytes) || !fl_align_up(bytes, FL_ALIGN, &bytes) ||
        !fl_add(a->at, bytes, &end)) {
        a->overflow = true;
        return NULL;
    }
    void *p = a->base != NULL && end <= a->size ? a->base + a->at : NULL;
    a->at = end;
    return p;
}

FL_LOCAL size_t fl_arena_bytes(const fl_arena *a) {
    size_t bytes = a->base != NULL ? a->size : a->at;
    return bytes == 0 ? 0 : bytes + FL_ALIGN;
}

FL_LOCAL folollm_status fl_arena_open(fl_memory *m, fl_arena *a, const char *what, folollm_error *error) {
    if (a->overflow || a->at > SIZE_MAX - FL_ALIGN) {
        return fl_fail(error, FOLOLLM_E_MEMORY, "%s would need more bytes than this machine can address", what);
    }
    if (a->at == 0) {
        return FOLOLLM_OK;
    }
    size_t bytes = fl_arena_bytes(a);
    a->block = a->raw ? fl_alloc_raw(m, bytes) : fl_alloc(m, bytes);
    if (a->block == NULL) {
        return fl_no_memory(error, what, bytes);
    }
    a->base = (uint8_t *)(((uintptr_t)a->block + FL_ALIGN - 1) & ~(uintptr_t)(FL_ALIGN - 1));
    a->size = a->at;
    a->at = 0;
    return FOLOLLM_OK;
}

FL_LOCAL void fl_arena_close(fl_memory *m, fl_arena *a) {
    fl_free(m, a->block, fl_arena_bytes(a));
    memset(a, 0, sizeof *a);
}
