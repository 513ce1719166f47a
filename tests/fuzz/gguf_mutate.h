/* Mutation of GGUF files: a length that is wrong hides everything behind it, so most mutations change one field, entry
 * or tensor of a file and then put counts, offsets and the file's length in order. Behind fuzz.h. */
#ifndef FUZZ_GGUF_MUTATE_H
#define FUZZ_GGUF_MUTATE_H

#define GGUF_MARKS 1024
#define GGUF_ROOM 512 /* for what a field is mutated to */

typedef enum gguf_kind { GGUF_TEXT, GGUF_NUMBER, GGUF_ARRAY, GGUF_ENTRY, GGUF_INFO } gguf_kind;

typedef struct gguf_mark {
    gguf_kind kind;
    size_t at, n;         /* bytes; of text and arrays without the length in front, which is a u64 */
    size_t count, last;   /* of an array: elements, where the last one begins */
} gguf_mark;

typedef struct gguf_walk {
    const uint8_t *data;
    size_t size, at;      /* at: how far it can be read */
    size_t n_entries, n_infos, align;
    size_t n_marks;
    gguf_mark marks[GGUF_MARKS];
} gguf_walk;

static void gguf_note(gguf_walk *w, gguf_kind kind, size_t at, size_t n, size_t count, size_t last) {
    if (w->n_marks < GGUF_MARKS) {
        w->marks[w->n_marks++] = (gguf_mark){kind, at, n, count, last};
    }
}

static bool gguf_step(gguf_walk *w, uint64_t n) {
    if (n > w->size - w->at) {
        return false;
    }
    w->at += (size_t)n;
    return true;
}

static bool gguf_number(gguf_walk *w, size_t n) {
    if (!gguf_step(w, n)) {
        return false;
    }
    gguf_note(w, GGUF_NUMBER, w->at - n, n, 0, 0);
    return true;
}

static bool gguf_text(gguf_walk *w, bool note) {
    if (!gguf_step(w, 8)) {
        return false;
    }
    size_t at = w->at;
    if (!gguf_step(w, fl_load_u64(w->data + at - 8))) {
        return false;
    }
    if (note) {
        gguf_note(w, GGUF_TEXT, at, w->at - at, 0, 0);
    }
    return true;
}

static bool gguf_array(gguf_walk *w) {
    if (!gguf_step(w, 12)) {
        return false;
    }
    uint32_t of = fl_load_u32(w->data + w->at - 12);
    uint64_t count = fl_load_u64(w->data + w->at - 8);
    size_t at = w->at, last = at;
    if (of >= FL_GGUF_TYPE_COUNT || of == FL_GGUF_ARRAY || count > w->size) {
        return false;
    }
    for (uint64_t i = 0; i < count; i++) {
        last = w->at;
        if (of == FL_GGUF_STRING ? !gguf_text(w, i < 8) : !gguf_step(w, fl_gguf_types[of].bytes)) {
            return false;
        }
    }
    gguf_note(w, GGUF_NUMBER, at - 12, 4, 0, 0);
    gguf_note(w, GGUF_ARRAY, at, w->at - at, (size_t)count, last);
    return true;
}

static bool gguf_entry(gguf_walk *w) {
    static const char key[] = "general.alignment";
    size_t begin = w->at;
    if (!gguf_text(w, true) || !gguf_number(w, 4)) {
        return false;
    }
    uint32_t type = fl_load_u32(w->data + w->at - 4);
    bool aligns = w->at - begin == 12 + sizeof key - 1 && memcmp(w->data + begin + 8, key, sizeof key - 1) == 0;
    bool ok = type == FL_GGUF_STRING  ? gguf_text(w, true)
              : type == FL_GGUF_ARRAY ? gguf_array(w)
                                      : type < FL_GGUF_TYPE_COUNT && gguf_number(w, fl_gguf_types[type].bytes);
    if (ok && aligns && type == FL_GGUF_U32) {
        uint32_t align = fl_load_u32(w->data + w->at - 4);
        w->align = align != 0 && align <= 4096 && (align & (align - 1)) == 0 ? align : w->align;
    }
    if (ok) {
        gguf_note(w, GGUF_ENTRY, begin, w->at - begin, 0, 0);
    }
    return ok;
}

static bool gguf_info(gguf_walk *w) {
    size_t begin = w->at;
    if (!gguf_text(w, true) || !gguf_number(w, 4)) {
        return false;
    }
    uint32_t n_dims = fl_load_u32(w->data + w->at - 4);
    bool ok = n_dims <= FL_GGUF_DIMS;
    for (uint32_t i = 0; ok && i < n_dims; i++) {
        ok = gguf_number(w, 8);
    }
    ok = ok && gguf_number(w, 4) && gguf_step(w, 8);
    if (ok) {
        gguf_note(w, GGUF_INFO, begin, w->at - begin, 0, 0);
    }
    return ok;
}

/* Find the fields of a file, as far as it is one. */
static void gguf_walk_file(gguf_walk *w, const uint8_t *data, size_t size) {
    w->data = data;
    w->size = size;
    w->n_marks = w->n_entries = w->n_infos = 0;
    w->align = 32;
    w->at = 24;
    uint64_t n_infos = fl_load_u64(data + 8), n_entries = fl_load_u64(data + 16);
    size_t good = 24;
    while (w->n_entries < n_entries && gguf_entry(w)) {
        w->n_entries++;
        good = w->at;
    }
    while (w->n_entries == n_entries && w->n_infos < n_infos && gguf_info(w)) {
        w->n_infos++;
        good = w->at;
    }
    w->at = good;
}

static void gguf_put(uint8_t *at, uint64_t value, size_t n) {
    for (size_t i = 0; i < n; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

/* Put `n` bytes in the place of `old`; false if there is no room. */
static bool gguf_splice(uint8_t *data, size_t *size, size_t room, size_t at, size_t old, const uint8_t *bytes,
                        size_t n) {
    if (n > old && n - old > room - *size) {
        return false;
    }
    memmove(data + at + n, data + at + old, *size - at - old);
    if (n > 0) {
        memcpy(data + at, bytes, n);
    }
    *size = *size - old + n;
    return true;
}

/* The bytes of a tensor whose entry ends at `end`; SIZE_MAX for what makes no sense. */
static size_t gguf_tensor_bytes(const uint8_t *data, const gguf_mark *info) {
    const uint8_t *at = data + info->at + 8 + fl_load_u64(data + info->at);
    uint32_t n_dims = fl_load_u32(at), type = fl_load_u32(at + 4 + 8 * n_dims);
    uint64_t n = 1;
    if (type >= FL_COUNT(fl_gguf_dtypes) || fl_gguf_dtypes[type].name == NULL) {
        return SIZE_MAX;
    }
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t size = fl_load_u64(at + 4 + 8 * i);
        if (size > 1u << 12 || (n *= size) > 1u << 20) {
            return SIZE_MAX;
        }
    }
    return (size_t)(n / fl_gguf_dtypes[type].numbers * fl_gguf_dtypes[type].bytes);
}

/* Counts, offsets and length as they follow from the entries. */
static size_t gguf_repair(gguf_walk *w, uint8_t *data, size_t size, size_t room) {
    size_t end = 0;
    gguf_walk_file(w, data, size);
    memcpy(data, "GGUF\3\0\0", 8);
    gguf_put(data + 8, w->n_infos, 8);
    gguf_put(data + 16, w->n_entries, 8);
    for (size_t i = 0; i < w->n_marks; i++) {
        const gguf_mark *m = &w->marks[i];
        size_t n = m->kind == GGUF_INFO ? gguf_tensor_bytes(data, m) : 0;
        if (n == SIZE_MAX || m->kind != GGUF_INFO) {
            continue;
        }
        end = (end + w->align - 1) / w->align * w->align;
        gguf_put(data + m->at + m->n - 8, end, 8);
        end += n;
    }
    size_t begin = (w->at + w->align - 1) / w->align * w->align, wanted = end > 0 ? begin + end : w->at;
    if (wanted > room) {
        return size;
    }
    for (size_t i = size; i < wanted; i++) {
        data[i] = i % 2 == 1 ? 0x2C : (uint8_t)(i * 7);
    }
    return wanted;
}

static size_t gguf_change(gguf_walk *w, uint8_t *data, size_t size, size_t room, const gguf_mark *m, unsigned seed) {
    static const uint64_t edges[] = {0, 1, 2, 3, 4, 8, 31, 32, 255, 256, 1024, 65536, INT32_MAX, UINT32_MAX,
                                     (uint64_t)1 << 32, INT64_MAX, (uint64_t)1 << 63, UINT64_MAX};
    uint8_t bytes[GGUF_ROOM];
    size_t n = fl_min(m->n, sizeof bytes);
    memcpy(bytes, data + m->at, n);
    if (m->kind == GGUF_NUMBER) {
        if (seed % 3 == 0) {
            gguf_put(data + m->at, edges[seed / 3 % FL_COUNT(edges)], m->n);
        } else {
            LLVMFuzzerMutate(data + m->at, m->n, m->n);
        }
    } else if (m->kind == GGUF_TEXT && m->n <= sizeof bytes) {
        n = LLVMFuzzerMutate(bytes, n, sizeof bytes);
        if (gguf_splice(data, &size, room, m->at, m->n, bytes, n)) {
            gguf_put(data + m->at - 8, n, 8);
        }
    } else if (m->kind == GGUF_ARRAY && m->n > 0) { /* all of its length lose or repeat their last element */
        size_t count = m->count;
        bool grow = seed % 2 == 0;
        for (size_t i = w->n_marks; i-- > 0;) {
            const gguf_mark *a = &w->marks[i];
            size_t last = a->kind == GGUF_ARRAY && a->count == count ? a->at + a->n - a->last : 0;
            if (last == 0 || last > sizeof bytes) {
                continue;
            }
            memcpy(bytes, data + a->last, last);
            bytes[last - 1] = (uint8_t)(bytes[last - 1] + (last > 8 && grow)); /* another token */
            size_t at = grow ? a->at + a->n : a->last;
            if (gguf_splice(data, &size, room, at, grow ? 0 : last, bytes, grow ? last : 0)) {
                gguf_put(data + a->at - 8, grow ? count + 1 : count - 1, 8);
            }
        }
    } else if (m->kind >= GGUF_ENTRY && m->n <= sizeof bytes) { /* an entry or a tensor is left out, or there again */
        bool grow = seed % 4 == 0;
        size_t count_at = m->kind == GGUF_ENTRY ? 16 : 8;
        uint64_t count = fl_load_u64(data + count_at);
        if (gguf_splice(data, &size, room, m->at, grow ? 0 : m->n, bytes, grow ? m->n : 0)) {
            gguf_put(data + count_at, grow ? count + 1 : count - 1, 8);
        }
    }
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
    static gguf_walk w;
    if (size < 24 || seed % 8 == 0) {
        size = LLVMFuzzerMutate(data, size, room);
    } else {
        gguf_walk_file(&w, data, size);
        size = w.n_marks == 0 ? LLVMFuzzerMutate(data, size, room)
                              : gguf_change(&w, data, size, room, &w.marks[seed / 64 % w.n_marks], seed / 8 % 8);
    }
    return size >= 24 && seed % 16 != 0 ? gguf_repair(&w, data, size, room) : size;
}

#endif
