/* GGUF: the metadata by every way to read it, a quarter of the keys in each execution, the tensors, the config, and the
 * file as a model that is loaded and computes two tokens. A file that says it is the first of two has itself as the
 * second. What has no config is loaded in one of 16 executions: loading would find the same and end. */
#include "fuzz.h"

#include "gguf_mutate.h"
#include "model.h"

#define PATH "mem/m-00001-of-00002.gguf"

static void check_value(const fl_gguf *g, const fl_gguf_value *v) {
    uint64_t u64;
    int64_t i64;
    double number;
    bool truth;
    fl_str text;
    FUZZ_CHECK(v->type < FL_GGUF_TYPE_COUNT && v->of < FL_GGUF_TYPE_COUNT);
    FUZZ_CHECK(v->at >= g->header && v->at <= g->header + g->header_read);
    bool integer = fl_gguf_to_i64(v, &i64), positive = fl_gguf_to_u64(v, &u64);
    FUZZ_CHECK(!integer || positive == (i64 >= 0));
    FUZZ_CHECK(!positive || !integer || u64 == (uint64_t)i64);
    FUZZ_CHECK(fl_gguf_to_double(v, &number) || !(integer || positive));
    FUZZ_CHECK(fl_gguf_to_bool(v, &truth) == (v->type == FL_GGUF_BOOL));
    if (fl_gguf_to_string(v, &text)) {
        FUZZ_CHECK((size_t)(g->header + g->header_read - (const uint8_t *)text.at) >= text.n);
    }
}

static void check_array(const fl_gguf *g, fl_gguf_value v) {
    fl_gguf_value element;
    size_t n = 0, n_there = v.n;
    for (size_t i = 0; i < 4 && fl_gguf_at(&v, i, &element); i++) {
        check_value(g, &element);
    }
    for (; fl_gguf_next(&v, &element); n++) {
        check_value(g, &element);
    }
    FUZZ_CHECK(n == n_there || v.of == FL_GGUF_ARRAY);
}

/* Words take longer than all else: they are asked for, and checked, of one key in each execution. */
static folollm_status refused(folollm_status status, const folollm_error *error) {
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT);
    return error != NULL ? fuzz_status(status) : status;
}

/* Through the typed readers, under keys that end in NUL as theirs do. */
static void check_key(const fl_gguf *g, const fl_gguf_entry *e, folollm_error *error) {
    static const fl_gguf_type of[] = {FL_GGUF_STRING, FL_GGUF_BOOL, FL_GGUF_I64, FL_GGUF_F64};
    char key[64];
    uint32_t u32;
    uint64_t u64;
    double number;
    bool truth;
    fl_str text;
    fl_gguf_value array;
    if (e->key.n >= sizeof key) {
        return;
    }
    memcpy(key, e->key.at, e->key.n);
    key[e->key.n] = 0;
    FUZZ_CHECK(fl_gguf_find(g, key) == &e->value);
    refused(fl_gguf_u32(g, key, 0, &u32, error), error);
    refused(fl_gguf_u64(g, key, 0, &u64, error), error);
    refused(fl_gguf_double(g, key, 0, &number, error), error);
    refused(fl_gguf_bool(g, key, false, &truth, error), error);
    refused(fl_gguf_string(g, key, &text, error), error);
    for (size_t i = 0; i < FL_COUNT(of); i++) {
        if (refused(fl_gguf_array(g, key, of[i], &array, error), error) == FOLOLLM_OK) {
            check_array(g, array);
        }
    }
}

/* Is there the config of a model, so that loading goes on? */
static bool check_tensors(const fl_gguf *g, size_t size) {
    fl_tensors t;
    fl_config c;
    uint64_t end = 0;
    folollm_status status;
    for (size_t i = 0; i < g->n_tensors; i++) {
        FUZZ_CHECK(g->tensors[i].offset >= end && fl_within(g->tensors[i].offset, g->tensors[i].n_bytes, size));
        end = g->tensors[i].offset + g->tensors[i].n_bytes;
    }
    status = fuzz_status(fl_gguf_tensors(g, &t, &fuzz_error));
    if (status == FOLOLLM_OK) {
        status = fuzz_status(fl_config_of_gguf(&c, g, &t, &fuzz_error));
        fl_tensors_close(&t);
    }
    return status == FOLOLLM_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes input = {data, size};
    fl_memory m;
    fl_gguf g;
    fuzz_begin(16 * size + 4 * FUZZ_KIB); /* entries and maps are that much larger than the shortest in the file */
    fuzz_forget_error();
    fuzz_file(PATH, input);
    fuzz_file("mem/m-00002-of-00002.gguf", input);
    fl_memory_init(&m, &fuzz.hooks);
    folollm_status status = fuzz_status(fl_gguf_open(&m, &g, PATH, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT || status == FOLOLLM_E_UNSUPPORTED);
    if (status == FOLOLLM_OK) {
        uint64_t number = fuzz_number(data, size);
        for (size_t i = 0; i < g.n_entries; i++) {
            check_value(&g, &g.entries[i].value);
            bool words = i == number % g.n_entries;
            if (words || (i + number) % 4 == 0) {
                check_key(&g, &g.entries[i], words ? &fuzz_error : NULL);
            }
        }
        fuzz.limit += 32 * size + 8 * FUZZ_KIB;
        bool goes_on = check_tensors(&g, size) || fl_gguf_find(&g, "split.count") != NULL;
        fl_gguf_close(&g);
        if (goes_on || number / 64 % 16 == 0) {
            fuzz.limit = fuzz.live + FUZZ_MODEL_LIMIT(size);
            fuzz.hooks.file_map = number / 4 % 2 == 0 ? fuzz_map : NULL;
            fuzz_load(PATH, number / 8 % 2 == 0);
        }
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
