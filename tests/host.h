/* A host for tests. Its memory is counted and checked, its files lie in memory under the directory "mem", and the
 * n-th call of any hook can be made to fail, once or from then on. Include it after inside.h. */
#ifndef TEST_HOST_H
#define TEST_HOST_H

#include <stdio.h>
#include <stdlib.h>

#define HOST_FILES 24
#define HOST_BLOCK 16 /* bytes in front of a block: its size */

typedef enum fault {
    FAULT_NONE,
    FAULT_ALLOCATE, /* NULL */
    FAULT_OPEN,     /* NULL */
    FAULT_EMPTY,    /* file_size says 0 */
    FAULT_LONG,     /* file_size says more than there is */
    FAULT_ENDLESS,  /* file_size says 2^64 - 1 */
    FAULT_READ,     /* half of it, then an error */
    FAULT_MAP,      /* NULL */
    FAULT_PROGRESS, /* cancel */
    FAULT_COUNT
} fault;

typedef struct host_file {
    char name[96];
    uint8_t *block, *bytes;
    size_t n;
} host_file;

typedef struct test_host {
    folollm_host hooks;
    uint64_t live, peak;   /* bytes */
    uint64_t n_calls;      /* of realloc, frees among them */
    uint64_t n_wrong;      /* sizes or paths that no caller may hand in */
    uint8_t fill;          /* what fresh memory holds */
    uint64_t seen[FAULT_COUNT], at; /* calls of each kind since host_arm; the one that fails */
    fault armed;
    bool forever;
    uint64_t n_injected, n_injected_ever;
    size_t n_open;         /* files */
    size_t shift;          /* how far from alignment files are laid down */
    uint64_t done, total;  /* of the last progress */
    host_file files[HOST_FILES];
    size_t n_files;
} test_host;

static bool host_hits(test_host *h, fault kind) {
    uint64_t n = ++h->seen[kind];
    if (kind != h->armed || !(n == h->at || (h->forever && n > h->at))) {
        return false;
    }
    h->n_injected++;
    h->n_injected_ever++;
    return true;
}

static inline void host_disarm(test_host *h) {
    h->armed = FAULT_NONE;
}

static inline void host_arm(test_host *h, fault kind, uint64_t at, bool forever) {
    memset(h->seen, 0, sizeof h->seen);
    h->armed = kind;
    h->at = at;
    h->forever = forever;
    h->n_injected = 0;
}

/* ---- Memory: every resize moves, and every size must be the one that was asked for -- */

static void *host_realloc(void *user, void *p, size_t old_size, size_t new_size) {
    test_host *h = user;
    uint8_t *old = p != NULL ? (uint8_t *)p - HOST_BLOCK : NULL, *block = NULL;
    size_t was = 0;
    h->n_calls++;
    if (old != NULL) {
        memcpy(&was, old, sizeof was);
    }
    h->n_wrong += was != old_size || (old == NULL && new_size == 0);
    if (new_size > 0) {
        bool fails = host_hits(h, FAULT_ALLOCATE) || new_size > SIZE_MAX / 2;
        block = fails ? NULL : malloc(new_size + HOST_BLOCK);
        if (block == NULL) {
            return NULL;
        }
        memcpy(block, &new_size, sizeof new_size);
        memset(block + HOST_BLOCK, h->fill, new_size);
    }
    if (old != NULL && new_size > 0) {
        memcpy(block + HOST_BLOCK, p, was < new_size ? was : new_size);
    }
    free(old);
    h->live += new_size - was;
    h->peak = h->live > h->peak ? h->live : h->peak;
    return block != NULL ? block + HOST_BLOCK : NULL;
}

/* ---- Files -- */

static host_file *host_find(test_host *h, const char *name) {
    for (size_t i = 0; i < h->n_files; i++) {
        if (strcmp(h->files[i].name, name) == 0) {
            return &h->files[i];
        }
    }
    return NULL;
}

static void *host_open(void *user, const char *path) {
    test_host *h = user;
    bool inside = strncmp(path, "mem/", 4) == 0 && strchr(path + 4, '/') == NULL;
    h->n_wrong += !inside;
    host_file *f = inside ? host_find(h, path + 4) : NULL;
    if (host_hits(h, FAULT_OPEN) || f == NULL) {
        return NULL;
    }
    host_file **handle = malloc(sizeof *handle); /* of its own, so that a second close is seen */
    if (handle != NULL) {
        *handle = f;
        h->n_open++;
    }
    return handle;
}

static uint64_t host_size(void *user, void *handle) {
    uint64_t n = (*(host_file **)handle)->n;
    n = host_hits(user, FAULT_EMPTY) ? 0 : n;
    n = host_hits(user, FAULT_LONG) ? n + 1000 : n;
    return host_hits(user, FAULT_ENDLESS) ? UINT64_MAX : n;
}

static int host_read(void *user, void *handle, uint64_t offset, void *out, size_t n) {
    const host_file *f = *(host_file **)handle;
    if (offset > f->n || n > f->n - offset) {
        return 1;
    }
    bool fails = host_hits(user, FAULT_READ);
    memcpy(out, f->bytes + offset, fails ? n / 2 : n);
    return fails;
}

static void host_close(void *user, void *handle) {
    ((test_host *)user)->n_open--;
    free(handle);
}

static inline const void *host_map(void *user, void *handle) {
    return host_hits(user, FAULT_MAP) ? NULL : (*(host_file **)handle)->bytes;
}

static inline int host_progress(void *user, uint64_t done, uint64_t total) {
    test_host *h = user;
    h->n_wrong += done > total || done < h->done;
    h->done = done;
    h->total = total;
    return host_hits(h, FAULT_PROGRESS);
}

/* Lay down a file, in the place of one of the same name. The block ends with it, so that a sanitizer sees its end.
 */
static void host_put(test_host *h, const char *name, const void *bytes, size_t n) {
    host_file *f = host_find(h, name);
    if (f == NULL && h->n_files < HOST_FILES) {
        f = &h->files[h->n_files++];
        snprintf(f->name, sizeof f->name, "%s", name);
    } else if (f != NULL) {
        free(f->block);
    }
    f->block = malloc(n + h->shift + 1);
    f->bytes = f->block + h->shift;
    f->n = n;
    if (n > 0) {
        memcpy(f->bytes, bytes, n);
    }
}

static void host_put_text(test_host *h, const char *name, const char *text) {
    host_put(h, name, text, strlen(text));
}

static inline void host_remove(test_host *h, const char *name) {
    host_file *f = host_find(h, name);
    if (f != NULL) {
        free(f->block);
        *f = h->files[--h->n_files];
    }
}

/* A whole file of the disk; NULL if it is not there. Freed by the caller. */
static uint8_t *host_slurp(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        return NULL;
    }
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*n + 1);
    if (bytes != NULL && fread(bytes, 1, *n, f) != *n) {
        free(bytes);
        bytes = NULL;
    }
    fclose(f);
    return bytes;
}

/* The files of a checkpoint on disk. */
static inline bool host_put_directory(test_host *h, const char *directory) {
    static const char *const names[] = {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    };
    size_t before = h->n_files;
    for (size_t i = 0; i < FL_COUNT(names); i++) {
        char path[1024];
        size_t n;
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        uint8_t *bytes = host_slurp(path, &n);
        if (bytes != NULL) {
            host_put(h, names[i], bytes, n);
            free(bytes);
        }
    }
    return h->n_files > before;
}

/* A tokenizer of 37 ids and a ChatML template, small enough for a fault at every allocation. */
static inline void host_put_tokenizer(test_host *h) {
    host_put_text(h, "tokenizer.json",
                  "{\"added_tokens\":["
                  "{\"id\":34,\"content\":\"<|endoftext|>\",\"normalized\":false,\"special\":true},"
                  "{\"id\":35,\"content\":\"<|im_start|>\",\"normalized\":false,\"special\":true},"
                  "{\"id\":36,\"content\":\"<|im_end|>\",\"normalized\":false,\"special\":true}],"
                  "\"normalizer\":{\"type\":\"NFC\"},"
                  "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                  "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{"
                  "\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"f\":5,\"g\":6,\"h\":7,\"i\":8,\"j\":9,\"k\":10,"
                  "\"l\":11,\"m\":12,\"n\":13,\"o\":14,\"p\":15,\"q\":16,\"r\":17,\"s\":18,\"t\":19,\"u\":20,"
                  "\"v\":21,\"w\":22,\"x\":23,\"y\":24,\"z\":25,\"\\u0120\":26,\"\\u010a\":27,\"\\u00c3\":28,"
                  "\"\\u00a9\":29,\",\":30,\"he\":31,\"ll\":32,\"\\u0120he\":33},"
                  "\"merges\":[\"h e\",\"l l\",[\"\\u0120\",\"he\"]]}}");
    host_put_text(
        h, "tokenizer_config.json",
        "{\"bos_token\":null,\"eos_token\":\"<|im_end|>\",\"chat_template\":"
        "\"{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\\\n' + message['content']"
        " + '<|im_end|>' + '\\\\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\\\\n' }}{% endif %}\"}");
}

/* memory_files: hook the files too, not only memory. */
static void host_init(test_host *h, bool memory_files) {
    memset(h, 0, sizeof *h);
    h->fill = 0xA5;
    h->hooks.user = h;
    h->hooks.realloc = host_realloc;
    if (memory_files) {
        h->hooks.file_open = host_open;
        h->hooks.file_size = host_size;
        h->hooks.file_read = host_read;
        h->hooks.file_close = host_close;
    }
}

/* Is everything given back, and was everything asked for right? */
static bool host_is_clean(const test_host *h) {
    return h->live == 0 && h->n_open == 0 && h->n_wrong == 0;
}

static void host_free(test_host *h) {
    while (h->n_files > 0) {
        free(h->files[--h->n_files].block);
    }
}

#endif
