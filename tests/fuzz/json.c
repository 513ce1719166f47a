/* JSON: what is read is a sound tree over the text, its strings are UTF-8 and its numbers are what they spell. */
#include "fuzz.h"

static fl_json doc;

static void check_string(uint32_t i) {
    const fl_json_node *node = &doc.nodes[i];
    char *buffer = node->escaped ? malloc(node->n) : NULL; /* exactly what is promised to be enough */
    fl_str s = fl_json_string(&doc, i, buffer);
    FUZZ_CHECK(s.n <= node->n && (node->escaped || s.at == doc.text.at + node->begin));
    FUZZ_CHECK(fl_utf8_valid_prefix(s.at, s.n) == s.n);
    free(buffer);
}

static void check_number(uint32_t i) {
    fl_str s = {doc.text.at + doc.nodes[i].begin, doc.nodes[i].n};
    uint64_t integer;
    double value = fl_json_number(s);
    FUZZ_CHECK(s.n > 0 && value >= -DBL_MAX && value <= DBL_MAX);
    if (fl_json_integer(&doc, i, (uint64_t)1 << 53, &integer)) {
        FUZZ_CHECK(value == (double)integer);
    }
}

/* The children of a container follow one another to its end, and are as many as it says. */
static void check_children(uint32_t i) {
    const fl_json_node *node = &doc.nodes[i];
    bool object = node->type == FL_JSON_OBJECT;
    uint32_t n = 0, child = i + 1;
    for (; child < node->next; child = doc.nodes[child].next, n++) {
        FUZZ_CHECK(doc.nodes[child].next > child && (!object || n % 2 == 1 || doc.nodes[child].type == FL_JSON_STRING));
    }
    FUZZ_CHECK(child == node->next && n == node->n_children * (object ? 2 : 1));
}

/* The first key of an object is found, where it stands or where it stands again. */
static void check_key(uint32_t i) {
    char key[64];
    const fl_json_node *node = &doc.nodes[i + 1];
    if (doc.nodes[i].n_children == 0 || node->n >= sizeof key) {
        return;
    }
    fl_str s = fl_json_string(&doc, i + 1, key);
    if (s.n > 0 && memchr(s.at, 0, s.n) == NULL) {
        memmove(key, s.at, s.n);
        key[s.n] = 0;
        uint32_t found = fl_json_get(&doc, i, key);
        FUZZ_CHECK(found > i + 1 && found < doc.nodes[i].next && fl_json_is(&doc, found - 1, key));
    }
}

static void check_typed(void) {
    uint32_t u32;
    double number;
    bool truth;
    fuzz_status(fl_json_u32(&doc, 0, "a", 1, &u32, &fuzz_error));
    fuzz_status(fl_json_double(&doc, 0, "a", 1, &number, &fuzz_error));
    fuzz_status(fl_json_bool(&doc, 0, "a", true, &truth, &fuzz_error));
}

static void check_document(void) {
    FUZZ_CHECK(doc.n_nodes > 0 && doc.nodes[0].next == doc.n_nodes);
    for (uint32_t i = 0; i < doc.n_nodes; i++) {
        const fl_json_node *node = &doc.nodes[i];
        FUZZ_CHECK(node->begin <= doc.text.n && node->n <= doc.text.n - node->begin && node->next <= doc.n_nodes);
        if (node->type == FL_JSON_STRING) {
            check_string(i);
        } else if (node->type == FL_JSON_NUMBER) {
            check_number(i);
        } else if (node->type >= FL_JSON_ARRAY) {
            check_children(i);
        }
        if (node->type == FL_JSON_OBJECT) {
            check_key(i);
        }
    }
    check_typed();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fl_memory m;
    fl_str text = {(const char *)data, size};
    fuzz_begin(20 * size + 4 * FUZZ_KIB); /* a value takes two bytes, 64 open lists one; a node 20; room doubles */
    fuzz_forget_error();
    fl_memory_init(&m, &fuzz.hooks);
    folollm_status status = fuzz_status(fl_json_parse(&m, &doc, "text", text, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT);
    if (status == FOLOLLM_OK) {
        check_document();
        fl_json_free(&m, &doc);
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
