#include "formats/safetensors.h"

#include "formats/json.h"

#define FL_HEADER_MAX 100000000u /* the format's own limit */
#define FL_INDEX_MAX (64u << 20)
#define FL_SHARDS_MAX 4096u

static const char *const fl_index_name = "model.safetensors.index.json";

static const struct {
    const char *name;
    unsigned bits;
    fl_dtype type;
} fl_stored_types[] = {
    {"F32", 32, FL_F32},           {"F16", 16, FL_F16},          {"BF16", 16, FL_BF16},
    {"F64", 64, FL_DTYPE_OTHER},   {"I64", 64, FL_DTYPE_OTHER},  {"U64", 64, FL_DTYPE_OTHER},
    {"I32", 32, FL_DTYPE_OTHER},   {"U32", 32, FL_DTYPE_OTHER},  {"I16", 16, FL_DTYPE_OTHER},
    {"U16", 16, FL_DTYPE_OTHER},   {"I8", 8, FL_DTYPE_OTHER},    {"U8", 8, FL_DTYPE_OTHER},
    {"BOOL", 8, FL_DTYPE_OTHER},   {"F8_E4M3", 8, FL_DTYPE_OTHER}, {"F8_E5M2", 8, FL_DTYPE_OTHER},
    {"F8_E8M0", 8, FL_DTYPE_OTHER},
};

typedef struct fl_header_reader {
    fl_tensors *tensors;
    fl_file *file;
    fl_json doc;
    uint64_t data, data_bytes; /* where the data begins, and how much there is */
    folollm_error *error;
} fl_header_reader;

static folollm_status fl_tensor_bad(const fl_header_reader *r, const fl_str *name, const char *what) {
    return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor %S: %s", r->file->path, name, what);
}

static folollm_status fl_read_type(fl_header_reader *r, uint32_t node, fl_tensor *t, unsigned *bits) {
    uint32_t type = fl_json_get(&r->doc, node, "dtype");
    for (size_t i = 0; i < FL_COUNT(fl_stored_types); i++) {
        if (fl_json_is(&r->doc, type, fl_stored_types[i].name)) {
            t->type = fl_stored_types[i].type;
            memcpy(t->type_name, fl_stored_types[i].name, strlen(fl_stored_types[i].name) + 1);
            *bits = fl_stored_types[i].bits;
            return FOLOLLM_OK;
        }
    }
    return fl_tensor_bad(r, &t->name, "its \"dtype\" is missing or none of the format's");
}

/* The shape, and the number of bytes that it means. */
static folollm_status fl_read_shape(fl_header_reader *r, uint32_t node, fl_tensor *t, unsigned bits,
                                    uint64_t *n_bytes) {
    uint32_t shape = fl_json_get(&r->doc, node, "shape");
    if (fl_json_type_of(&r->doc, shape) != FL_JSON_ARRAY || r->doc.nodes[shape].n_children > FL_TENSOR_DIMS) {
        return fl_tensor_bad(r, &t->name, "\"shape\" must be a list of at most 8 sizes");
    }
    uint64_t n = 1;
    for (uint32_t i = shape + 1; i < r->doc.nodes[shape].next; i = r->doc.nodes[i].next) {
        uint64_t *size = &t->shape[t->n_dims++];
        if (!fl_json_integer(&r->doc, i, UINT64_MAX, size)) {
            return fl_tensor_bad(r, &t->name, "a size in \"shape\" is no unsigned integer");
        }
        if (*size != 0 && n > UINT64_MAX / *size) {
            return fl_tensor_bad(r, &t->name, "the sizes in \"shape\" multiply to more than 64 bits");
        }
        n *= *size;
    }
    if (n > UINT64_MAX / bits) {
        return fl_tensor_bad(r, &t->name, "the sizes in \"shape\" multiply to more than 64 bits");
    }
    *n_bytes = n * bits / 8;
    return FOLOLLM_OK;
}

static folollm_status fl_read_range(fl_header_reader *r, uint32_t node, fl_tensor *t, uint64_t n_bytes) {
    uint32_t range = fl_json_get(&r->doc, node, "data_offsets");
    uint64_t begin, end;
    if (fl_json_type_of(&r->doc, range) != FL_JSON_ARRAY || r->doc.nodes[range].n_children != 2 ||
        !fl_json_integer(&r->doc, range + 1, UINT64_MAX, &begin) ||
        !fl_json_integer(&r->doc, range + 2, UINT64_MAX, &end)) {
        return fl_tensor_bad(r, &t->name, "\"data_offsets\" must be two unsigned integers");
    }
    if (end < begin || end > r->data_bytes) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT,
                       "%s: tensor %S: bytes %u to %u of the data, of which the file has %u: is it truncated?",
                       r->file->path, &t->name, begin, end, r->data_bytes);
    }
    if (end - begin != n_bytes) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: tensor %S: shape and dtype mean %u bytes, data_offsets %u",
                       r->file->path, &t->name, n_bytes, end - begin);
    }
    t->offset = r->data + begin;
    t->n_bytes = n_bytes;
    return FOLOLLM_OK;
}

static folollm_status fl_read_tensor(fl_header_reader *r, uint32_t key) {
    const fl_json_node *k = &r->doc.nodes[key];
    fl_tensor t = {.name = {r->doc.text.at + k->begin, k->n}, .file = (uint32_t)(r->file - r->tensors->files)};
    unsigned bits = 0;
    uint64_t n_bytes = 0;
    if (fl_json_type_of(&r->doc, key + 1) != FL_JSON_OBJECT || r->doc.nodes[key + 1].n_children != 3) {
        return fl_tensor_bad(r, &t.name, "it must have \"dtype\", \"shape\" and \"data_offsets\", once each");
    }
    if (k->escaped || memchr(t.name.at, 0, t.name.n) != NULL) {
        return fl_tensor_bad(r, &t.name, "a tensor's name must be plain text without escapes");
    }
    FL_TRY(fl_read_type(r, key + 1, &t, &bits));
    FL_TRY(fl_read_shape(r, key + 1, &t, bits, &n_bytes));
    FL_TRY(fl_read_range(r, key + 1, &t, n_bytes));
    fl_tensors *all = r->tensors;
    void *tensors = all->tensors;
    if (!fl_grow(all->memory, &tensors, &all->capacity, all->n_tensors + 1, sizeof t)) {
        return fl_no_memory(r->error, "the tensor directory", (all->n_tensors + 1) * sizeof t);
    }
    all->tensors = tensors;
    all->tensors[all->n_tensors++] = t;
    return FOLOLLM_OK;
}

static folollm_status fl_read_metadata(fl_header_reader *r, uint32_t node) {
    if (fl_json_type_of(&r->doc, node) != FL_JSON_OBJECT) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"__metadata__\" must be an object", r->file->path);
    }
    for (uint32_t i = node + 1; i < r->doc.nodes[node].next; i = r->doc.nodes[i + 1].next) {
        if (fl_json_type_of(&r->doc, i + 1) != FL_JSON_STRING) {
            return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"__metadata__\" may hold strings only", r->file->path);
        }
    }
    return FOLOLLM_OK;
}

static bool fl_ends_before(const fl_tensor *a, const fl_tensor *b) {
    uint64_t a_end = a->offset + a->n_bytes, b_end = b->offset + b->n_bytes;
    return a_end < b_end || (a_end == b_end && a->offset < b->offset);
}

static void fl_sift_down(fl_tensor *a, size_t root, size_t n) {
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        child += child + 1 < n && fl_ends_before(&a[child], &a[child + 1]);
        if (!fl_ends_before(&a[root], &a[child])) {
            return;
        }
        fl_tensor t = a[root];
        a[root] = a[child];
        a[child] = t;
    }
}

/* By end, what is empty behind what ends there; in place, by a heap: the C library's sort may allocate or recurse. */
static void fl_sort_by_end(fl_tensor *a, size_t n) {
    for (size_t i = n / 2; i-- > 0;) {
        fl_sift_down(a, i, n);
    }
    for (size_t i = n; i-- > 1;) {
        fl_tensor t = a[0];
        a[0] = a[i];
        a[i] = t;
        fl_sift_down(a, 0, i);
    }
}

/* Sorted by where they end, each tensor from `first` on begins where the one before ended: no overlap, no hole. */
static folollm_status fl_check_ranges(fl_header_reader *r, size_t first) {
    size_t n = r->tensors->n_tensors - first;
    fl_tensor *tensors = n > 0 ? r->tensors->tensors + first : NULL;
    fl_sort_by_end(tensors, n);
    uint64_t at = r->data;
    for (size_t i = 0; i < n; i++) {
        if (tensors[i].offset != at) {
            return fl_tensor_bad(r, &tensors[i].name,
                                 tensors[i].offset < at ? "its data overlaps that of another tensor"
                                                        : "there is a hole before its data");
        }
        at += tensors[i].n_bytes;
    }
    if (at != r->data + r->data_bytes) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: %u bytes after the last tensor belong to none",
                       r->file->path, r->data + r->data_bytes - at);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_read_entries(fl_header_reader *r) {
    size_t first = r->tensors->n_tensors;
    if (fl_json_type_of(&r->doc, 0) != FL_JSON_OBJECT) {
        return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: the header must be a JSON object", r->file->path);
    }
    bool metadata = false;
    for (uint32_t i = 1; i < r->doc.nodes[0].next; i = r->doc.nodes[i + 1].next) {
        bool is_metadata = fl_json_is(&r->doc, i, "__metadata__");
        if (is_metadata && metadata) {
            return fl_fail(r->error, FOLOLLM_E_FORMAT, "%s: \"__metadata__\" is there twice", r->file->path);
        }
        FL_TRY(is_metadata ? fl_read_metadata(r, i + 1) : fl_read_tensor(r, i));
        metadata = metadata || is_metadata;
    }
    return fl_check_ranges(r, first);
}

static folollm_status fl_read_header(fl_tensors *t, fl_file *file, fl_str *header, folollm_error *error) {
    uint8_t prefix[8];
    if (file->size < 8) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s has %u bytes: no safetensors file is shorter than 8", file->path,
                       file->size);
    }
    FL_TRY(fl_file_read(file, 0, prefix, sizeof prefix, error));
    uint64_t n = fl_load_u64(prefix);
    if (n > FL_HEADER_MAX || n > file->size - 8 || n < 2) {
        return fl_fail(error, FOLOLLM_E_FORMAT,
                       "%s: a header of %u bytes is announced; the file has %u: truncated, or no safetensors?",
                       file->path, n, file->size);
    }
    char *text = fl_alloc_raw(t->memory, (size_t)n);
    if (text == NULL) {
        return fl_no_memory(error, "a safetensors header", (size_t)n);
    }
    header->at = text;
    header->n = (size_t)n;
    FL_TRY(fl_file_read(file, 8, text, (size_t)n, error));
    if (text[0] != '{') {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: the header must begin with '{'", file->path);
    }
    fl_header_reader r = {.tensors = t, .file = file, .data = 8 + n, .data_bytes = file->size - 8 - n,
                          .error = error};
    FL_TRY(fl_json_parse(t->memory, &r.doc, file->path, *header, error));
    folollm_status status = fl_read_entries(&r);
    fl_json_free(t->memory, &r.doc);
    return status;
}

static folollm_status fl_add_file(fl_tensors *t, const char *directory, const char *name, bool *found,
                                  folollm_error *error) {
    void *files = t->files, *headers = t->headers;
    bool ok = fl_grow(t->memory, &files, &t->files_capacity, t->n_files + 1, sizeof *t->files);
    t->files = files;
    ok = ok && fl_grow(t->memory, &headers, &t->headers_capacity, t->n_files + 1, sizeof *t->headers);
    t->headers = headers;
    if (!ok) {
        return fl_no_memory(error, "the file table", sizeof *t->files);
    }
    FL_TRY(fl_file_open(t->memory, &t->files[t->n_files], directory, name, found, error));
    if (found != NULL && !*found) {
        return FOLOLLM_OK;
    }
    fl_str *header = &t->headers[t->n_files];
    header->at = NULL;
    header->n = 0;
    t->n_files++;
    return fl_read_header(t, &t->files[t->n_files - 1], header, error);
}

/* ---- Shards -- */

static bool fl_is_file_name(fl_str s) {
    return s.n > 0 && s.n < 256 && memchr(s.at, '/', s.n) == NULL && memchr(s.at, '\\', s.n) == NULL &&
           memchr(s.at, 0, s.n) == NULL && s.at[0] != '.';
}

/* known: room for the names that were added. */
static folollm_status fl_add_shards(fl_tensors *t, const fl_json *index, uint32_t map, fl_name_map *known,
                                    const char *directory, folollm_error *error) {
    for (uint32_t i = map + 1; i < index->nodes[map].next; i = index->nodes[i + 1].next) {
        const fl_json_node *node = &index->nodes[i + 1];
        fl_str name = {index->text.at + node->begin, node->n};
        if (node->type != FL_JSON_STRING || node->escaped || !fl_is_file_name(name)) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s/%s: %S is no name of a file beside it", directory,
                           fl_index_name, &name);
        }
        if (fl_name_map_get(known, name, -1) >= 0) {
            continue;
        }
        if (t->n_files == FL_SHARDS_MAX) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s/%s names more than %u files", directory, fl_index_name,
                           (uint64_t)FL_SHARDS_MAX);
        }
        char terminated[256];
        memcpy(terminated, name.at, name.n);
        terminated[name.n] = 0;
        fl_name_map_put(known, name, (int32_t)t->n_files);
        FL_TRY(fl_add_file(t, directory, terminated, NULL, error));
    }
    if (t->n_files == 0) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s/%s: \"weight_map\" names no file", directory, fl_index_name);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_read_index(fl_tensors *t, const fl_json *index, const char *directory, folollm_error *error) {
    fl_arena arena = {0};
    fl_name_map known;
    uint32_t map = fl_json_get(index, 0, "weight_map");
    if (fl_json_type_of(index, map) != FL_JSON_OBJECT) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s/%s: \"weight_map\" must be an object", directory, fl_index_name);
    }
    size_t most = fl_min(index->nodes[map].n_children, FL_SHARDS_MAX);
    fl_name_map_layout(&known, &arena, most);
    FL_TRY(fl_arena_open(t->memory, &arena, "the names of shards", error));
    fl_name_map_layout(&known, &arena, most);
    folollm_status status = fl_add_shards(t, index, map, &known, directory, error);
    fl_arena_close(t->memory, &arena);
    return status;
}

static folollm_status fl_add_indexed(fl_tensors *t, const char *directory, folollm_error *error) {
    fl_str text;
    fl_json index;
    FL_TRY(fl_file_slurp(t->memory, directory, fl_index_name, FL_INDEX_MAX, NULL, &text, error));
    folollm_status status = fl_json_parse(t->memory, &index, fl_index_name, text, error);
    if (status == FOLOLLM_OK) {
        status = fl_read_index(t, &index, directory, error);
        fl_json_free(t->memory, &index);
    }
    fl_free(t->memory, (void *)(uintptr_t)text.at, text.n);
    return status;
}

/* ---- The directory -- */

FL_LOCAL folollm_status fl_tensors_index(fl_tensors *t, folollm_error *error) {
    fl_name_map_layout(&t->by_name, &t->arena, t->n_tensors);
    FL_TRY(fl_arena_open(t->memory, &t->arena, "the tensor names", error));
    fl_name_map_layout(&t->by_name, &t->arena, t->n_tensors);
    for (size_t i = 0; i < t->n_tensors; i++) {
        if (fl_name_map_put(&t->by_name, t->tensors[i].name, (int32_t)i) != (int32_t)i) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S is there twice",
                           t->files[t->tensors[i].file].path, &t->tensors[i].name);
        }
    }
    return FOLOLLM_OK;
}

/* model.safetensors, or else the shards of the index. */
static folollm_status fl_add_checkpoint(fl_tensors *t, const char *directory, folollm_error *error) {
    bool found = true;
    FL_TRY(fl_add_file(t, directory, "model.safetensors", &found, error));
    folollm_status status = found ? FOLOLLM_OK : fl_add_indexed(t, directory, error);
    if (status == FOLOLLM_E_IO && t->n_files == 0) {
        return fl_fail(error, FOLOLLM_E_IO, "%s holds neither model.safetensors nor %s", directory, fl_index_name);
    }
    return status;
}

FL_LOCAL folollm_status fl_tensors_open(fl_memory *m, fl_tensors *t, const char *directory, const char *name,
                                        folollm_error *error) {
    memset(t, 0, sizeof *t);
    t->memory = m;
    folollm_status status = name != NULL ? fl_add_file(t, directory, name, NULL, error)
                                         : fl_add_checkpoint(t, directory, error);
    if (status == FOLOLLM_OK) {
        status = fl_tensors_index(t, error);
    }
    if (status != FOLOLLM_OK) {
        fl_tensors_close(t);
    }
    return status;
}

FL_LOCAL void fl_tensors_forget_names(fl_tensors *t) {
    fl_arena_close(t->memory, &t->arena);
    for (size_t i = 0; i < t->n_files && t->headers != NULL; i++) {
        fl_free(t->memory, (void *)(uintptr_t)t->headers[i].at, t->headers[i].n);
    }
    fl_free(t->memory, t->headers, t->headers_capacity * sizeof *t->headers);
    fl_free(t->memory, t->tensors, t->capacity * sizeof *t->tensors);
    t->headers = NULL;
    t->tensors = NULL;
    t->headers_capacity = t->capacity = t->n_tensors = 0;
}

FL_LOCAL uint64_t fl_tensors_names_bytes(const fl_tensors *t) {
    uint64_t bytes = fl_arena_bytes(&t->arena);
    for (size_t i = 0; i < t->n_files && t->headers != NULL; i++) {
        bytes += t->headers[i].n;
    }
    return bytes + t->headers_capacity * sizeof *t->headers + t->capacity * sizeof *t->tensors;
}

FL_LOCAL void fl_tensors_close(fl_tensors *t) {
    if (t->memory == NULL) {
        return;
    }
    fl_tensors_forget_names(t);
    for (size_t i = 0; i < t->n_files; i++) {
        fl_file_close(&t->files[i]);
    }
    fl_free(t->memory, t->files, t->files_capacity * sizeof *t->files);
    memset(t, 0, sizeof *t);
}

FL_LOCAL const fl_tensor *fl_tensors_find(const fl_tensors *t, fl_str name) {
    int32_t i = fl_name_map_get(&t->by_name, name, -1);
    return i >= 0 ? &t->tensors[i] : NULL;
}
