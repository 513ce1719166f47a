#include "formats/gguf.h"

#include "formats/blocks.h"

#define FL_GGUF_DEPTH 8u              /* of arrays in arrays */
#define FL_GGUF_HEADER_MAX (1u << 28) /* a tokenizer of half a million tokens and its merges take 32 MiB */
#define FL_GGUF_READ (1u << 20)       /* at least, at once */
#define FL_GGUF_KEY_MAX 65535u        /* the format's own limit */
#define FL_GGUF_NAME_MAX 64u          /* the format's own limit */
#define FL_GGUF_DIMS 4u               /* the format's own limit */
#define FL_GGUF_SPLITS_MAX 1024u
#define FL_GGUF_SPLIT_END 20u         /* bytes of "-00001-of-00002.gguf" */
#define FL_GGUF_ENTRY_MIN 14u         /* bytes: a key of one, a value of one */
#define FL_GGUF_TENSOR_MIN 25u        /* bytes: a name of one, no sizes */

/* ---- Types -- */

static const struct {
    const char *name;
    uint8_t bytes; /* 0: as long as it says itself */
} fl_gguf_types[FL_GGUF_TYPE_COUNT] = {
    {"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
    {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8},
};

/* By the number in the file; those that were taken out of the format have no name. */
static const struct {
    const char *name;
    uint16_t numbers, bytes; /* of a block */
    fl_dtype type;
} fl_gguf_dtypes[] = {
    {"F32", 1, 4, FL_F32},
    {"F16", 1, 2, FL_F16},
    {"Q4_0", 32, 18, FL_Q4_0},
    {"Q4_1", 32, 20, FL_Q4_1},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {"Q5_0", 32, 22, FL_Q5_0},
    {"Q5_1", 32, 24, FL_Q5_1},
    {"Q8_0", 32, 34, FL_Q8_0},
    {"Q8_1", 32, 36, FL_DTYPE_OTHER},
    {"Q2_K", 256, 84, FL_Q2_K},
    {"Q3_K", 256, 110, FL_Q3_K},
    {"Q4_K", 256, 144, FL_Q4_K},
    {"Q5_K", 256, 176, FL_Q5_K},
    {"Q6_K", 256, 210, FL_Q6_K},
    {"Q8_K", 256, 292, FL_DTYPE_OTHER},
    {"IQ2_XXS", 256, 66, FL_DTYPE_OTHER},
    {"IQ2_XS", 256, 74, FL_DTYPE_OTHER},
    {"IQ3_XXS", 256, 98, FL_DTYPE_OTHER},
    {"IQ1_S", 256, 50, FL_DTYPE_OTHER},
    {"IQ4_NL", 32, 18, FL_IQ4_NL},
    {"IQ3_S", 256, 110, FL_DTYPE_OTHER},
    {"IQ2_S", 256, 82, FL_DTYPE_OTHER},
    {"IQ4_XS", 256, 136, FL_IQ4_XS},
    {"I8", 1, 1, FL_DTYPE_OTHER},
    {"I16", 1, 2, FL_DTYPE_OTHER},
    {"I32", 1, 4, FL_DTYPE_OTHER},
    {"I64", 1, 8, FL_DTYPE_OTHER},
    {"F64", 1, 8, FL_DTYPE_OTHER},
    {"IQ1_M", 256, 56, FL_DTYPE_OTHER},
    {"BF16", 1, 2, FL_BF16},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {"TQ1_0", 256, 54, FL_DTYPE_OTHER},
    {"TQ2_0", 256, 66, FL_DTYPE_OTHER},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {NULL, 0, 0, FL_DTYPE_OTHER},
    {"MXFP4", 32, 17, FL_MXFP4},
    {"NVFP4", 64, 36, FL_DTYPE_OTHER},
    {"Q1_0", 128, 18, FL_DTYPE_OTHER},
    {"Q2_0", 64, 18, FL_DTYPE_OTHER},
};

/* ---- The cursor -- */

typedef struct fl_gguf_reader {
    fl_gguf *g;
    size_t at;
    bool dry; /* the first walk: read as far as it gets, check everything, note nothing */
    folollm_error *error;
} fl_gguf_reader;

static folollm_status fl_gguf_more(fl_gguf_reader *r, uint64_t end, const char *what) {
    fl_gguf *g = r->g;
    if (end > FL_GGUF_HEADER_MAX) {
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED,
                       "%s: %s at offset %u ends after %u bytes; headers up to %u are read", g->file.path, what,
                       (uint64_t)r->at, end, (uint64_t)FL_GGUF_HEADER_MAX);
    }
    size_t wanted = fl_max(fl_max((size_t)end, FL_GGUF_READ), g->header_read * 2);
    wanted = fl_min(wanted, FL_GGUF_HEADER_MAX);
    wanted = wanted < g->file.size ? wanted : (size_t)g->file.size;
    void *header = g->header;
    if (!fl_grow(g->memory, &header, &g->header_capacity, wanted, 1)) {
        return fl_no_memory(r->error, "a GGUF header", wanted);
    }
    g->header = header;
    FL_TRY(fl_file_read(&g->file, g->header_read, g->header + g->header_read, wanted - g->header_read, r->error));
    g->header_read = wanted;
    return FOLOLLM_OK;
}

/* Have the next n bytes in memory. */
static folollm_status fl_gguf_need(fl_gguf_reader *r, uint64_t n, const char *what) {
    if (fl_within(r->at, n, r->g->header_read)) {
        return FOLOLLM_OK;
    }
    if (!fl_within(r->at, n, r->g->file.size)) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: %s at offset %u takes %u bytes, but the file ends after %u: is it truncated?",
                       r->g->file.path, what, (uint64_t)r->at, n, r->g->file.size);
    }
    return fl_gguf_more(r, r->at + n, what);
}

static folollm_status fl_gguf_read_u32(fl_gguf_reader *r, const char *what, uint32_t *out) {
    FL_TRY(fl_gguf_need(r, 4, what));
    *out = fl_load_u32(r->g->header + r->at);
    r->at += 4;
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_read_u64(fl_gguf_reader *r, const char *what, uint64_t *out) {
    FL_TRY(fl_gguf_need(r, 8, what));
    *out = fl_load_u64(r->g->header + r->at);
    r->at += 8;
    return FOLOLLM_OK;
}

/* The text stays where it is: while dry it may move with the next reading. */
static folollm_status fl_gguf_read_text(fl_gguf_reader *r, const char *what, fl_str *out) {
    uint64_t n;
    FL_TRY(fl_gguf_read_u64(r, what, &n));
    FL_TRY(fl_gguf_need(r, n, what));
    out->at = (const char *)r->g->header + r->at;
    out->n = (size_t)n;
    r->at += (size_t)n;
    return FOLOLLM_OK;
}

/* A key or a tensor's name. */
static folollm_status fl_gguf_read_name(fl_gguf_reader *r, const char *what, size_t most, fl_str *out) {
    size_t at = r->at;
    FL_TRY(fl_gguf_read_text(r, what, out));
    if (out->n == 0 || out->n > most || memchr(out->at, 0, out->n) != NULL) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: %s at offset %u has %u bytes; it must have 1 to %u, none of them 0", r->g->file.path, what,
                       (uint64_t)at, (uint64_t)out->n, (uint64_t)most);
    }
    return FOLOLLM_OK;
}

/* ---- Values -- */

static folollm_status fl_gguf_read_type(fl_gguf_reader *r, fl_gguf_type *out) {
    uint32_t type;
    FL_TRY(fl_gguf_read_u32(r, "a value's type", &type));
    if (type >= FL_GGUF_TYPE_COUNT) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: the value's type at offset %u is %u; the format has 0 to 12",
                       r->g->file.path, (uint64_t)r->at - 4, (uint64_t)type);
    }
    *out = (fl_gguf_type)type;
    return FOLOLLM_OK;
}

/* Step over n values of a type with a size. */
static folollm_status fl_gguf_skip_plain(fl_gguf_reader *r, fl_gguf_type type, uint64_t n) {
    uint64_t bytes = fl_gguf_types[type].bytes;
    if (n > UINT64_MAX / bytes) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: the array at offset %u announces %u elements: more than 64 bits", r->g->file.path,
                       (uint64_t)r->at, n);
    }
    FL_TRY(fl_gguf_need(r, n * bytes, "a value"));
    for (size_t i = 0; r->dry && type == FL_GGUF_BOOL && i < (size_t)n; i++) {
        if (r->g->header[r->at + i] > 1) {
            return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: the boolean at offset %u is %u; it must be 0 or 1",
                           r->g->file.path, (uint64_t)r->at + i, (uint64_t)r->g->header[r->at + i]);
        }
    }
    r->at += (size_t)(n * bytes);
    return FOLOLLM_OK;
}

/* The head of an array. Every element takes at least a byte; strings and arrays take eight and twelve. */
static folollm_status fl_gguf_read_array(fl_gguf_reader *r, fl_gguf_type *of, uint64_t *n) {
    FL_TRY(fl_gguf_read_type(r, of));
    FL_TRY(fl_gguf_read_u64(r, "an array's length", n));
    uint64_t least = *of == FL_GGUF_STRING ? 8 : *of == FL_GGUF_ARRAY ? 12 : fl_gguf_types[*of].bytes;
    if (*n > (r->g->file.size - r->at) / least) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: the array at offset %u announces %u elements of type %s; the file ends after %u bytes",
                       r->g->file.path, (uint64_t)r->at - 12, *n, fl_gguf_types[*of].name, r->g->file.size);
    }
    return FOLOLLM_OK;
}

/* Step over a value. What is left of the arrays around it stands on a stack of fixed depth. */
static folollm_status fl_gguf_skip(fl_gguf_reader *r, fl_gguf_type type) {
    struct {
        fl_gguf_type of;
        uint64_t left;
    } open[FL_GGUF_DEPTH];
    size_t depth = 0;
    for (;;) {
        fl_str text;
        if (type == FL_GGUF_STRING) {
            FL_TRY(fl_gguf_read_text(r, "a string", &text));
        } else if (type != FL_GGUF_ARRAY) {
            FL_TRY(fl_gguf_skip_plain(r, type, 1));
        } else if (depth == FL_GGUF_DEPTH) {
            return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: the array at offset %u lies more than %u arrays deep",
                           r->g->file.path, (uint64_t)r->at, (uint64_t)FL_GGUF_DEPTH);
        } else {
            FL_TRY(fl_gguf_read_array(r, &open[depth].of, &open[depth].left));
            if (fl_gguf_types[open[depth].of].bytes != 0) {
                FL_TRY(fl_gguf_skip_plain(r, open[depth].of, open[depth].left));
            } else {
                depth++;
            }
        }
        while (depth > 0 && open[depth - 1].left == 0) {
            depth--;
        }
        if (depth == 0) {
            return FOLOLLM_OK;
        }
        open[depth - 1].left--;
        type = open[depth - 1].of;
    }
}

/* A value whose first byte is at; its bytes were checked. */
static fl_gguf_value fl_gguf_value_at(fl_gguf_type type, const uint8_t *at) {
    fl_gguf_value v = {type, FL_GGUF_U8, 0, at};
    if (type == FL_GGUF_STRING) {
        v.n = (size_t)fl_load_u64(at);
        v.at = at + 8;
    } else if (type == FL_GGUF_ARRAY) {
        v.of = (fl_gguf_type)fl_load_u32(at);
        v.n = (size_t)fl_load_u64(at + 4);
        v.at = at + 12;
    }
    return v;
}

/* ---- The header -- */

static folollm_status fl_gguf_read_entry(fl_gguf_reader *r, size_t i) {
    fl_str key;
    fl_gguf_type type = FL_GGUF_U8;
    FL_TRY(fl_gguf_read_name(r, "a key", FL_GGUF_KEY_MAX, &key));
    FL_TRY(fl_gguf_read_type(r, &type));
    size_t at = r->at;
    FL_TRY(fl_gguf_skip(r, type));
    if (r->dry) {
        return FOLOLLM_OK;
    }
    r->g->entries[i].key = key;
    r->g->entries[i].value = fl_gguf_value_at(type, r->g->header + at);
    if (fl_name_map_put(&r->g->by_key, key, (int32_t)i) != (int32_t)i) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: the key %S is there twice", r->g->file.path, &key);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_tensor_bad(const fl_gguf_reader *r, const fl_tensor *t, const char *what) {
    return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor %S: %s", r->g->file.path, &t->name, what);
}

/* The type of a tensor whose sizes are known, and the bytes that both mean. */
static folollm_status fl_gguf_read_dtype(fl_gguf_reader *r, fl_tensor *t) {
    uint32_t type;
    FL_TRY(fl_gguf_read_u32(r, "a tensor's type", &type));
    if (type >= FL_COUNT(fl_gguf_dtypes) || fl_gguf_dtypes[type].name == NULL) {
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: tensor %S has type %u, which is none that is known",
                       r->g->file.path, &t->name, (uint64_t)type);
    }
    uint64_t numbers = fl_gguf_dtypes[type].numbers, bytes = fl_gguf_dtypes[type].bytes, n = 1;
    t->type = fl_gguf_dtypes[type].type;
    memcpy(t->type_name, fl_gguf_dtypes[type].name, strlen(fl_gguf_dtypes[type].name) + 1);
    uint64_t row = t->n_dims > 0 ? t->shape[t->n_dims - 1] : 1;
    if (row % numbers != 0) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: tensor %S of type %s has rows of %u; they must be whole blocks of %u", r->g->file.path,
                       &t->name, t->type_name, row, numbers);
    }
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (t->shape[i] != 0 && n > INT64_MAX / t->shape[i]) {
            return fl_gguf_tensor_bad(r, t, "its sizes multiply to more than 63 bits");
        }
        n *= t->shape[i];
    }
    if (n / numbers > INT64_MAX / bytes) {
        return fl_gguf_tensor_bad(r, t, "its bytes are more than 63 bits can count");
    }
    t->n_bytes = n / numbers * bytes;
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_read_tensor(fl_gguf_reader *r, size_t i) {
    fl_tensor t = {.type = FL_DTYPE_OTHER};
    FL_TRY(fl_gguf_read_name(r, "a tensor's name", FL_GGUF_NAME_MAX, &t.name));
    /* A name that is only part of a message while dry: later reading moves it. */
    char name[FL_GGUF_NAME_MAX];
    memcpy(name, t.name.at, t.name.n);
    fl_str kept = t.name;
    t.name.at = name;
    FL_TRY(fl_gguf_read_u32(r, "a tensor's number of dimensions", &t.n_dims));
    if (t.n_dims > FL_GGUF_DIMS) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor %S has %u dimensions; the format has at most %u",
                       r->g->file.path, &t.name, (uint64_t)t.n_dims, (uint64_t)FL_GGUF_DIMS);
    }
    for (uint32_t d = t.n_dims; d-- > 0;) {
        FL_TRY(fl_gguf_read_u64(r, "a tensor's size", &t.shape[d]));
    }
    FL_TRY(fl_gguf_read_dtype(r, &t));
    FL_TRY(fl_gguf_read_u64(r, "a tensor's offset", &t.offset));
    if (!r->dry) {
        t.name = kept;
        r->g->tensors[i] = t;
    }
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_read_count(fl_gguf_reader *r, const char *what, uint64_t least, size_t *out) {
    uint64_t n;
    FL_TRY(fl_gguf_read_u64(r, what, &n));
    if (n > (r->g->file.size - r->at) / least || n > FL_GGUF_HEADER_MAX / least) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: %s is %u; a file of %u bytes has no room for them",
                       r->g->file.path, what, n, r->g->file.size);
    }
    *out = (size_t)n;
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_read_start(fl_gguf_reader *r) {
    uint32_t magic, version;
    FL_TRY(fl_gguf_read_u32(r, "the magic number", &magic));
    if (memcmp(r->g->header, "GGUF", 4) != 0) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s does not begin with \"GGUF\": it is no GGUF file",
                       r->g->file.path);
    }
    FL_TRY(fl_gguf_read_u32(r, "the version", &version));
    if (version != 2 && version != 3) {
        return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, (version & 0xFFFFu) == 0 && version != 0
                       ? "%s is a big-endian GGUF file (its version reads as %u); little-endian ones are read"
                       : "%s has version %u of GGUF; 2 and 3 are read", r->g->file.path, (uint64_t)version);
    }
    FL_TRY(fl_gguf_read_count(r, "the number of tensors", FL_GGUF_TENSOR_MIN, &r->g->n_tensors));
    return fl_gguf_read_count(r, "the number of entries", FL_GGUF_ENTRY_MIN, &r->g->n_entries);
}

static folollm_status fl_gguf_walk(fl_gguf_reader *r) {
    r->at = 0;
    FL_TRY(fl_gguf_read_start(r));
    for (size_t i = 0; i < r->g->n_entries; i++) {
        FL_TRY(fl_gguf_read_entry(r, i));
    }
    r->g->entries_end = r->at;
    for (size_t i = 0; i < r->g->n_tensors; i++) {
        FL_TRY(fl_gguf_read_tensor(r, i));
    }
    return FOLOLLM_OK;
}

/* The tensors' data, one after another, each filled up to the alignment, the last perhaps not. Offsets become those of
 * the file. */
static folollm_status fl_gguf_place(fl_gguf_reader *r) {
    fl_gguf *g = r->g;
    const fl_gguf_value *v = fl_gguf_find(g, "general.alignment");
    uint64_t align = 32, size = g->file.size, at = r->at;
    bool ok = v == NULL || (v->type == FL_GGUF_U32 && fl_gguf_to_u64(v, &align));
    if (!ok || align == 0 || (align & (align - 1)) != 0) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: \"general.alignment\" must be a power of two as u32; found %s, %u", g->file.path,
                       fl_gguf_types[v->type].name, align);
    }
    uint64_t data = (at + align - 1) & ~(align - 1), end = 0; /* at < 2^32, align <= 2^31 */
    for (size_t i = 0; i < g->n_tensors; i++) {
        fl_tensor *t = &g->tensors[i];
        end = (end + align - 1) & ~(align - 1); /* end <= size, and that is a file's */
        if (t->offset != end) {
            return fl_fail(r->error, FOLOLLM_E_FORMAT,
                           "%s: tensor %S has offset %u; the data before it ends, filled up to %u bytes, at %u",
                           g->file.path, &t->name, t->offset, align, end);
        }
        if (data > size || !fl_within(end, t->n_bytes, size - data)) {
            return fl_fail(r->error, FOLOLLM_E_FORMAT,
                           "%s: tensor %S has %u bytes from offset %u on, but the file ends after %u: is it truncated?",
                           g->file.path, &t->name, t->n_bytes, data + end, size);
        }
        t->offset = data + end;
        end += t->n_bytes;
    }
    uint64_t last = data + ((end + align - 1) & ~(align - 1));
    if (size > last) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: %u bytes after the last tensor belong to none", g->file.path,
                       size - last);
    }
    return FOLOLLM_OK;
}

static void fl_gguf_layout(fl_gguf *g) {
    g->entries = fl_take(&g->arena, g->n_entries, sizeof *g->entries);
    g->tensors = fl_take(&g->arena, g->n_tensors, sizeof *g->tensors);
    fl_name_map_layout(&g->by_key, &g->arena, g->n_entries);
}

static folollm_status fl_gguf_read(fl_gguf *g, const char *path, folollm_error *error) {
    fl_gguf_reader r = {.g = g, .dry = true, .error = error};
    FL_TRY(fl_file_open(g->memory, &g->file, path, "", NULL, error));
    FL_TRY(fl_gguf_walk(&r));
    fl_gguf_layout(g);
    FL_TRY(fl_arena_open(g->memory, &g->arena, "a GGUF file's entries", error));
    fl_gguf_layout(g);
    r.dry = false;
    FL_TRY(fl_gguf_walk(&r));
    return fl_gguf_place(&r);
}

FL_LOCAL folollm_status fl_gguf_open(fl_memory *m, fl_gguf *g, const char *path, folollm_error *error) {
    memset(g, 0, sizeof *g);
    g->memory = m;
    folollm_status status = fl_gguf_read(g, path, error);
    if (status != FOLOLLM_OK) {
        fl_gguf_close(g);
    }
    return status;
}

FL_LOCAL void fl_gguf_close(fl_gguf *g) {
    if (g->memory == NULL) {
        return;
    }
    fl_arena_close(g->memory, &g->arena);
    fl_free(g->memory, g->header, g->header_capacity);
    fl_file_close(&g->file);
    memset(g, 0, sizeof *g);
}

FL_LOCAL folollm_status fl_gguf_is_at(fl_memory *m, const char *path, bool *is, folollm_error *error) {
    size_t n = strlen(path);
    uint8_t magic[4];
    fl_file file;
    bool found = false;
    *is = n >= 5 && memcmp(path + n - 5, ".gguf", 5) == 0;
    if (*is || m->host.file_open != NULL) {
        return FOLOLLM_OK;
    }
    folollm_status status = fl_file_open(m, &file, path, "", &found, NULL);
    if (status == FOLOLLM_OK && found) {
        *is = file.size >= 4 && fl_file_read(&file, 0, magic, 4, NULL) == FOLOLLM_OK && memcmp(magic, "GGUF", 4) == 0;
        fl_file_close(&file);
    }
    return status == FOLOLLM_E_MEMORY ? fl_no_memory(error, "a path", n + 1) : FOLOLLM_OK;
}

/* ---- The tensors -- */

/* The file of one GGUF, its tensors, and a block of their names alone, so that its header need not stay. */
static folollm_status fl_gguf_append(const fl_gguf *g, fl_tensors *t, folollm_error *error) {
    size_t n_names = 0, n_files = t->n_files + 1, n_tensors = t->n_tensors + g->n_tensors; /* all in memory already */
    void *files = t->files, *headers = t->headers, *tensors = t->tensors;
    for (size_t i = 0; i < g->n_tensors; i++) {
        n_names += g->tensors[i].name.n;
    }
    bool ok = fl_grow(t->memory, &files, &t->files_capacity, n_files, sizeof *t->files);
    t->files = files;
    ok = ok && fl_grow(t->memory, &headers, &t->headers_capacity, n_files, sizeof *t->headers);
    t->headers = headers;
    ok = ok && fl_grow(t->memory, &tensors, &t->capacity, n_tensors, sizeof *t->tensors);
    t->tensors = tensors;
    char *names = ok ? fl_alloc_raw(t->memory, n_names) : NULL;
    if (!ok || (names == NULL && n_names > 0)) {
        return fl_no_memory(error, "the tensor directory", n_tensors * sizeof *t->tensors);
    }
    fl_file *file = &t->files[t->n_files];
    memset(file, 0, sizeof *file);
    t->headers[t->n_files].at = names;
    t->headers[t->n_files].n = n_names;
    for (size_t i = 0; i < g->n_tensors; i++) {
        fl_tensor *tensor = &t->tensors[t->n_tensors++];
        *tensor = g->tensors[i];
        tensor->file = (uint32_t)t->n_files;
        memcpy(names, tensor->name.at, tensor->name.n);
        tensor->name.at = names;
        names += tensor->name.n;
    }
    t->n_files++;
    FL_TRY(fl_file_open(t->memory, file, g->file.path, "", NULL, error));
    if (file->size != g->file.size) {
        return fl_fail(error, FOLOLLM_E_IO, "%s changed while it was read", g->file.path);
    }
    return FOLOLLM_OK;
}

/* What a file says about the split that it belongs to. n_files 1: none. */
typedef struct fl_gguf_split {
    uint32_t number, n_files;
    uint64_t n_tensors; /* of all files; 0: not said */
} fl_gguf_split;

static folollm_status fl_gguf_read_split(const fl_gguf *g, fl_gguf_split *s, folollm_error *error) {
    FL_TRY(fl_gguf_u32(g, "split.no", 0, &s->number, error));
    FL_TRY(fl_gguf_u32(g, "split.count", 1, &s->n_files, error));
    FL_TRY(fl_gguf_u64(g, "split.tensors.count", 0, &s->n_tensors, error));
    s->n_files = s->n_files == 0 ? 1 : s->n_files;
    return FOLOLLM_OK;
}

/* The end of a split file's name, without a NUL. Names count from 1, metadata from 0. */
static void fl_gguf_split_end(uint32_t number, uint32_t n_files, char *out) {
    memcpy(out, "-00000-of-00000.gguf", FL_GGUF_SPLIT_END);
    number++;
    for (size_t i = 5; i > 0; i--, number /= 10, n_files /= 10) {
        out[i] = (char)('0' + number % 10);
        out[i + 9] = (char)('0' + n_files % 10);
    }
}

static folollm_status fl_gguf_add_split(fl_tensors *t, const char *path, uint32_t number, uint32_t n_files,
                                        folollm_error *error) {
    fl_gguf g;
    fl_gguf_split own;
    FL_TRY(fl_gguf_open(t->memory, &g, path, error));
    folollm_status status = fl_gguf_read_split(&g, &own, error);
    if (status == FOLOLLM_OK && (own.number != number || own.n_files != n_files)) {
        status = fl_fail(error, FOLOLLM_E_FORMAT, "%s says that it is file %u of %u; file %u of %u was expected", path,
                         (uint64_t)own.number + 1, (uint64_t)own.n_files, (uint64_t)number + 1, (uint64_t)n_files);
    }
    if (status == FOLOLLM_OK) {
        status = fl_gguf_append(&g, t, error);
    }
    fl_gguf_close(&g);
    return status;
}
/* The other files of a split, beside the first. */
static folollm_status fl_gguf_add_splits(const fl_gguf *g, const fl_gguf_split *split, fl_tensors *t,
                                         folollm_error *error) {
    char end[FL_GGUF_SPLIT_END];
    size_t n = strlen(g->file.path);
    fl_gguf_split_end(0, split->n_files, end);
    if (split->number != 0 || split->n_files > FL_GGUF_SPLITS_MAX || n < FL_GGUF_SPLIT_END ||
        memcmp(g->file.path + n - FL_GGUF_SPLIT_END, end, FL_GGUF_SPLIT_END) != 0) {
        fl_str expected = {end, FL_GGUF_SPLIT_END};
        return fl_fail(error, FOLOLLM_E_FORMAT,
                       "%s is file %u of %u of a split model; the first is opened, and its name ends in %S",
                       g->file.path, (uint64_t)split->number + 1, (uint64_t)split->n_files, &expected);
    }
    char *path = fl_alloc(t->memory, n + 1);
    if (path == NULL) {
        return fl_no_memory(error, "a path", n + 1);
    }
    memcpy(path, g->file.path, n);
    folollm_status status = FOLOLLM_OK;
    for (uint32_t i = 1; i < split->n_files && status == FOLOLLM_OK; i++) {
        fl_gguf_split_end(i, split->n_files, path + n - FL_GGUF_SPLIT_END);
        status = fl_gguf_add_split(t, path, i, split->n_files, error);
    }
    fl_free(t->memory, path, n + 1);
    return status;
}

static folollm_status fl_gguf_add_all(const fl_gguf *g, fl_tensors *t, folollm_error *error) {
    fl_gguf_split split;
    FL_TRY(fl_gguf_read_split(g, &split, error));
    FL_TRY(fl_gguf_append(g, t, error));
    if (split.n_files > 1) {
        FL_TRY(fl_gguf_add_splits(g, &split, t, error));
    }
    if (split.n_tensors != 0 && split.n_tensors != t->n_tensors) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"split.tensors.count\" is %u, but its files have %u tensors",
                       g->file.path, split.n_tensors, (uint64_t)t->n_tensors);
    }
    return fl_tensors_index(t, error);
}

FL_LOCAL folollm_status fl_gguf_tensors(const fl_gguf *g, fl_tensors *t, folollm_error *error) {
    memset(t, 0, sizeof *t);
    t->memory = g->memory;
    folollm_status status = fl_gguf_add_all(g, t, error);
    if (status != FOLOLLM_OK) {
        fl_tensors_close(t);
    }
    return status;
}

/* ---- For writing -- */

FL_LOCAL uint32_t fl_gguf_number_of(fl_dtype type, uint64_t n, uint64_t *row_bytes) {
    for (uint32_t i = 0; type != FL_DTYPE_OTHER && i < FL_COUNT(fl_gguf_dtypes); i++) {
        if (fl_gguf_dtypes[i].name != NULL && fl_gguf_dtypes[i].type == type && n % fl_gguf_dtypes[i].numbers == 0 &&
            n / fl_gguf_dtypes[i].numbers <= INT64_MAX / fl_gguf_dtypes[i].bytes) {
            *row_bytes = n / fl_gguf_dtypes[i].numbers * fl_gguf_dtypes[i].bytes;
            return i;
        }
    }
    return FL_GGUF_NO_NUMBER;
}

FL_LOCAL fl_str fl_gguf_entry_bytes(const fl_gguf *g, size_t i) {
    const char *end = i + 1 < g->n_entries ? g->entries[i + 1].key.at - 8 : (const char *)g->header + g->entries_end;
    fl_str bytes = {g->entries[i].key.at - 8, 0};
    bytes.n = (size_t)(end - bytes.at);
    return bytes;
}

/* ---- What values are -- */

FL_LOCAL bool fl_gguf_to_i64(const fl_gguf_value *v, int64_t *out) {
    size_t bytes = fl_gguf_types[v->type].bytes;
    uint64_t bits = 0;
    if ((v->type >= FL_GGUF_F32 && v->type <= FL_GGUF_ARRAY) || v->type == FL_GGUF_F64) {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        bits |= (uint64_t)v->at[i] << (8 * i);
    }
    bool is_signed = v->type == FL_GGUF_I8 || v->type == FL_GGUF_I16 || v->type == FL_GGUF_I32 ||
                     v->type == FL_GGUF_I64;
    bool high = (bits >> (8 * bytes - 1) & 1) != 0;
    if (high && v->type == FL_GGUF_U64) {
        return false;
    }
    if (high && is_signed) {
        uint64_t below = ~bits & UINT64_MAX >> (64 - 8 * bytes); /* -1 - value */
        *out = -1 - (int64_t)below;
    } else {
        *out = (int64_t)bits;
    }
    return true;
}

FL_LOCAL bool fl_gguf_to_u64(const fl_gguf_value *v, uint64_t *out) {
    int64_t value;
    if (v->type == FL_GGUF_U64) {
        *out = fl_load_u64(v->at);
        return true;
    }
    if (!fl_gguf_to_i64(v, &value) || value < 0) {
        return false;
    }
    *out = (uint64_t)value;
    return true;
}

FL_LOCAL bool fl_gguf_to_double(const fl_gguf_value *v, double *out) {
    int64_t integer;
    uint64_t bits;
    if (v->type == FL_GGUF_F32) {
        *out = (double)fl_float_of_bits(fl_load_u32(v->at));
    } else if (v->type == FL_GGUF_F64) {
        bits = fl_load_u64(v->at);
        memcpy(out, &bits, sizeof *out);
    } else if (v->type == FL_GGUF_U64) {
        *out = (double)fl_load_u64(v->at);
    } else if (fl_gguf_to_i64(v, &integer)) {
        *out = (double)integer;
    } else {
        return false;
    }
    return true;
}

FL_LOCAL bool fl_gguf_to_bool(const fl_gguf_value *v, bool *out) {
    if (v->type != FL_GGUF_BOOL) {
        return false;
    }
    *out = v->at[0] != 0;
    return true;
}

FL_LOCAL bool fl_gguf_to_string(const fl_gguf_value *v, fl_str *out) {
    if (v->type != FL_GGUF_STRING) {
        return false;
    }
    out->at = (const char *)v->at;
    out->n = v->n;
    return true;
}

FL_LOCAL bool fl_gguf_at(const fl_gguf_value *array, size_t i, fl_gguf_value *element) {
    size_t bytes = fl_gguf_types[array->of].bytes;
    if (array->type != FL_GGUF_ARRAY || bytes == 0 || i >= array->n) {
        return false;
    }
    *element = fl_gguf_value_at(array->of, array->at + i * bytes);
    return true;
}

FL_LOCAL bool fl_gguf_next(fl_gguf_value *array, fl_gguf_value *element) {
    if (array->type != FL_GGUF_ARRAY || array->of == FL_GGUF_ARRAY || array->n == 0) {
        return false;
    }
    *element = fl_gguf_value_at(array->of, array->at);
    array->at = element->at + (array->of == FL_GGUF_STRING ? element->n : fl_gguf_types[array->of].bytes);
    array->n--;
    return true;
}

/* ---- Values under keys -- */

FL_LOCAL const fl_gguf_value *fl_gguf_find(const fl_gguf *g, const char *key) {
    int32_t i = fl_name_map_get(&g->by_key, fl_str_of(key), -1);
    return i >= 0 ? &g->entries[i].value : NULL;
}

static folollm_status fl_gguf_bad(const fl_gguf *g, const char *key, const char *expected, folollm_error *error) {
    const fl_gguf_value *v = fl_gguf_find(g, key);
    return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be %s; its type is %s%s", g->file.path, key, expected,
                   v->type == FL_GGUF_ARRAY ? "array of " : "",
                   fl_gguf_types[v->type == FL_GGUF_ARRAY ? v->of : v->type].name);
}

FL_LOCAL folollm_status fl_gguf_u64(const fl_gguf *g, const char *key, uint64_t missing, uint64_t *out,
                                    folollm_error *error) {
    const fl_gguf_value *v = fl_gguf_find(g, key);
    *out = missing;
    return v == NULL || fl_gguf_to_u64(v, out) ? FOLOLLM_OK : fl_gguf_bad(g, key, "an integer from 0 on", error);
}

FL_LOCAL folollm_status fl_gguf_u32(const fl_gguf *g, const char *key, uint32_t missing, uint32_t *out,
                                    folollm_error *error) {
    uint64_t value;
    FL_TRY(fl_gguf_u64(g, key, missing, &value, error));
    if (value > UINT32_MAX) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"%s\" is %u; at most %u was expected", g->file.path, key, value,
                       (uint64_t)UINT32_MAX);
    }
    *out = (uint32_t)value;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_gguf_double(const fl_gguf *g, const char *key, double missing, double *out,
                                       folollm_error *error) {
    const fl_gguf_value *v = fl_gguf_find(g, key);
    *out = missing;
    return v == NULL || fl_gguf_to_double(v, out) ? FOLOLLM_OK : fl_gguf_bad(g, key, "a number", error);
}

FL_LOCAL folollm_status fl_gguf_bool(const fl_gguf *g, const char *key, bool missing, bool *out, folollm_error *error) {
    const fl_gguf_value *v = fl_gguf_find(g, key);
    *out = missing;
    return v == NULL || fl_gguf_to_bool(v, out) ? FOLOLLM_OK : fl_gguf_bad(g, key, "a boolean", error);
}

FL_LOCAL folollm_status fl_gguf_string(const fl_gguf *g, const char *key, fl_str *out, folollm_error *error) {
    const fl_gguf_value *v = fl_gguf_find(g, key);
    out->at = NULL;
    out->n = 0;
    return v == NULL || fl_gguf_to_string(v, out) ? FOLOLLM_OK : fl_gguf_bad(g, key, "a string", error);
}

static bool fl_gguf_counts_as(fl_gguf_type type, fl_gguf_type wanted) {
    bool is_text = type == FL_GGUF_STRING || type == FL_GGUF_BOOL || type == FL_GGUF_ARRAY;
    bool is_float = type == FL_GGUF_F32 || type == FL_GGUF_F64;
    return type == wanted || (wanted == FL_GGUF_F64 && !is_text) || (wanted == FL_GGUF_I64 && !is_text && !is_float);
}

FL_LOCAL folollm_status fl_gguf_array(const fl_gguf *g, const char *key, fl_gguf_type of, fl_gguf_value *out,
                                      folollm_error *error) {
    static const fl_gguf_value none = {FL_GGUF_ARRAY, FL_GGUF_U8, 0, NULL};
    const fl_gguf_value *v = fl_gguf_find(g, key);
    *out = v != NULL ? *v : none;
    if (v != NULL && (v->type != FL_GGUF_ARRAY || !fl_gguf_counts_as(v->of, of))) {
        return fl_gguf_bad(g, key, of == FL_GGUF_STRING ? "an array of strings"
                                   : of == FL_GGUF_BOOL ? "an array of booleans"
                                   : of == FL_GGUF_I64  ? "an array of integers"
                                                        : "an array of numbers", error);
    }
    return FOLOLLM_OK;
}
