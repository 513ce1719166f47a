#include "model/config_quantised.h"

typedef struct fl_quant_reader {
    const fl_json *doc;
    uint32_t node;
    fl_quantisation *q;
    folollm_error *error;
} fl_quant_reader;

static folollm_status fl_quant_bad(const fl_quant_reader *r, folollm_status status, const char *key,
                                   const char *what) {
    return fl_fail(r->error, status, "%s: quantisation: \"%s\": %s", r->doc->name, key, what);
}

/* The value of a key is none of those that are read: say both. */
static folollm_status fl_quant_unknown(const fl_quant_reader *r, uint32_t object, const char *key,
                                       const char *known) {
    fl_str found = fl_json_found(r->doc, fl_json_get(r->doc, object, key));
    return fl_fail(r->error, FOLOLLM_E_UNSUPPORTED, "%s: quantisation: \"%s\" is %S; read are %s", r->doc->name, key,
                   &found, known);
}

static bool fl_quant_is_set(const fl_quant_reader *r, uint32_t object, const char *key) {
    return fl_json_type_of(r->doc, fl_json_get(r->doc, object, key)) != FL_JSON_NULL;
}

/* "group_size": -1 stands for the whole row. */
static folollm_status fl_quant_group(fl_quant_reader *r, uint32_t object) {
    double size = 0;
    if (!fl_quant_is_set(r, object, "group_size")) {
        return fl_quant_bad(r, FOLOLLM_E_FORMAT, "group_size", "the key is missing");
    }
    FL_TRY(fl_json_double(r->doc, object, "group_size", 0, &size, r->error));
    if (size != -1 && !(size >= 1 && size <= 1 << 20 && size == (double)(uint32_t)size)) {
        return fl_quant_bad(r, FOLOLLM_E_FORMAT, "group_size", "must be -1, or an integer from 1 to 1048576");
    }
    r->q->group = size == -1 ? 0 : (uint32_t)size;
    return FOLOLLM_OK;
}

/* allowed: a bit for each number of bits. */
static folollm_status fl_quant_bits(fl_quant_reader *r, uint32_t object, const char *key, uint32_t allowed,
                                    const char *known) {
    FL_TRY(fl_json_u32(r->doc, object, key, 0, &r->q->bits, r->error));
    if (r->q->bits > 8 || (allowed >> r->q->bits & 1) == 0) {
        return fl_quant_unknown(r, object, key, known);
    }
    return FOLOLLM_OK;
}

/* Two sizes of a block, rows and columns. */
static folollm_status fl_quant_block(const fl_quant_reader *r, uint32_t node, const char *key, uint64_t *rows,
                                     uint64_t *cols) {
    if (fl_json_type_of(r->doc, node) != FL_JSON_ARRAY || r->doc->nodes[node].n_children != 2 ||
        !fl_json_integer(r->doc, node + 1, 1 << 20, rows) || !fl_json_integer(r->doc, node + 2, 1 << 20, cols) ||
        *rows == 0 || *cols == 0) {
        return fl_quant_bad(r, FOLOLLM_E_FORMAT, key, "must be two integers from 1 to 1048576");
    }
    return FOLOLLM_OK;
}

/* ---- GPTQ -- */

/* Rules for single modules: those that leave modules out ("-:") need no care, the others change bits and groups. */
static folollm_status fl_quant_rules(const fl_quant_reader *r) {
    uint32_t rules = fl_json_get(r->doc, r->node, "dynamic");
    if (fl_json_type_of(r->doc, rules) != FL_JSON_OBJECT) {
        return FOLOLLM_OK;
    }
    for (uint32_t i = rules + 1; i < r->doc->nodes[rules].next; i = r->doc->nodes[i + 1].next) {
        const fl_json_node *key = &r->doc->nodes[i];
        if (key->n < 2 || memcmp(r->doc->text.at + key->begin, "-:", 2) != 0) {
            return fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "dynamic",
                                "bits and groups must be the same in all modules here");
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quant_gptq(fl_quant_reader *r) {
    bool marlin;
    const char *key = fl_quant_is_set(r, r->node, "checkpoint_format") ? "checkpoint_format" : "format";
    uint32_t layout = fl_json_get(r->doc, r->node, key);
    *r->q = (fl_quantisation){.format = FL_QUANT_GPTQ, .rows = 1};
    FL_TRY(fl_json_bool(r->doc, r->node, "is_marlin_format", false, &marlin, r->error));
    if (marlin) {
        return fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "is_marlin_format",
                            "the layouts of gptq and gptq_v2 are read, that of marlin is not");
    }
    r->q->exact_zeros = fl_json_is(r->doc, layout, "gptq_v2");
    if (fl_json_type_of(r->doc, layout) != FL_JSON_NULL && !r->q->exact_zeros &&
        !fl_json_is(r->doc, layout, "gptq")) {
        return fl_quant_unknown(r, r->node, key, "gptq and gptq_v2");
    }
    FL_TRY(fl_quant_bits(r, r->node, "bits", 1u << 2 | 1u << 3 | 1u << 4 | 1u << 8, "2, 3, 4 and 8"));
    FL_TRY(fl_quant_group(r, r->node));
    FL_TRY(fl_json_bool(r->doc, r->node, "sym", true, &r->q->symmetric, r->error));
    FL_TRY(fl_json_bool(r->doc, r->node, "desc_act", false, &r->q->ordered, r->error));
    return fl_quant_rules(r);
}

/* ---- AWQ -- */

static folollm_status fl_quant_awq(fl_quant_reader *r) {
    bool zeros;
    uint32_t layout = fl_json_get(r->doc, r->node, "version");
    *r->q = (fl_quantisation){.format = FL_QUANT_AWQ, .rows = 1, .exact_zeros = true};
    if (fl_json_type_of(r->doc, layout) != FL_JSON_NULL && !fl_json_is(r->doc, layout, "gemm") &&
        !fl_json_is(r->doc, layout, "GEMM")) {
        return fl_quant_unknown(r, r->node, "version", "\"gemm\" only");
    }
    FL_TRY(fl_quant_bits(r, r->node, "bits", 1u << 4, "4 only"));
    FL_TRY(fl_quant_group(r, r->node));
    FL_TRY(fl_json_bool(r->doc, r->node, "zero_point", true, &zeros, r->error));
    return zeros ? FOLOLLM_OK
                 : fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "zero_point", "awq is read with zero points only");
}

/* ---- compressed-tensors -- */

/* "strategy": which numbers share a scale. */
static folollm_status fl_quant_strategy(fl_quant_reader *r, uint32_t weights) {
    uint32_t strategy = fl_json_get(r->doc, weights, "strategy");
    uint64_t rows = 0, cols = 0;
    r->q->rows = 1;
    if (fl_json_is(r->doc, strategy, "channel")) {
        return FOLOLLM_OK;
    }
    if (r->q->format == FL_QUANT_PACKED && (fl_json_is(r->doc, strategy, "group") ||
                                            fl_json_type_of(r->doc, strategy) == FL_JSON_NULL)) {
        return fl_quant_group(r, weights);
    }
    if (r->q->format == FL_QUANT_FLOAT && fl_json_is(r->doc, strategy, "tensor")) {
        r->q->rows = 0;
        return FOLOLLM_OK;
    }
    if (r->q->format == FL_QUANT_FLOAT && fl_json_is(r->doc, strategy, "block")) {
        const char *key = "block_structure";
        FL_TRY(fl_quant_block(r, fl_json_get(r->doc, weights, key), key, &rows, &cols));
        r->q->rows = (uint32_t)rows;
        r->q->group = (uint32_t)cols;
        return FOLOLLM_OK;
    }
    return fl_quant_unknown(r, weights, "strategy", r->q->format == FL_QUANT_PACKED  ? "group and channel"
                                                    : r->q->format == FL_QUANT_FLOAT ? "channel, tensor and block"
                                                                                     : "channel only");
}

/* The "weights" of one group of modules. */
static folollm_status fl_quant_arguments(fl_quant_reader *r, uint32_t group) {
    uint32_t weights = fl_json_get(r->doc, group, "weights");
    const char *type = r->q->format == FL_QUANT_FLOAT ? "float" : "int";
    bool packed = r->q->format == FL_QUANT_PACKED;
    if (fl_json_type_of(r->doc, weights) != FL_JSON_OBJECT) {
        return fl_quant_bad(r, FOLOLLM_E_FORMAT, "config_groups", "every group must hold an object \"weights\"");
    }
    if (fl_quant_is_set(r, weights, "type") && !fl_json_is(r->doc, fl_json_get(r->doc, weights, "type"), type)) {
        return fl_quant_unknown(r, weights, "type", type);
    }
    FL_TRY(fl_quant_bits(r, weights, "num_bits", packed ? 1u << 4 | 1u << 8 : 1u << 8, packed ? "4 and 8" : "8 only"));
    FL_TRY(fl_json_bool(r->doc, weights, "symmetric", true, &r->q->symmetric, r->error));
    if (!packed && !r->q->symmetric) {
        return fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "symmetric", "zero points are read with pack-quantized only");
    }
    uint32_t order = fl_json_get(r->doc, weights, "actorder");
    r->q->ordered = packed && (fl_json_is(r->doc, order, "group") || fl_json_is(r->doc, order, "dynamic"));
    return fl_quant_strategy(r, weights);
}

static folollm_status fl_quant_groups(fl_quant_reader *r) {
    uint32_t groups = fl_json_get(r->doc, r->node, "config_groups");
    fl_quantisation empty = *r->q, first = {.format = FL_QUANT_NONE};
    if (fl_json_type_of(r->doc, groups) != FL_JSON_OBJECT || r->doc->nodes[groups].n_children == 0) {
        return fl_quant_bad(r, FOLOLLM_E_FORMAT, "config_groups", "must be an object with a group at least");
    }
    for (uint32_t i = groups + 1; i < r->doc->nodes[groups].next; i = r->doc->nodes[i + 1].next) {
        const fl_quantisation *q = r->q;
        *r->q = empty;
        FL_TRY(fl_quant_arguments(r, i + 1));
        first = first.format == FL_QUANT_NONE ? *q : first;
        if (q->bits != first.bits || q->group != first.group || q->rows != first.rows ||
            q->symmetric != first.symmetric || q->ordered != first.ordered) {
            return fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "config_groups",
                                "bits and groups must be the same in all modules here");
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quant_compressed(fl_quant_reader *r) {
    static const struct {
        const char *name;
        fl_quant_format format;
    } formats[] = {{"pack-quantized", FL_QUANT_PACKED}, {"int-quantized", FL_QUANT_INT},
                   {"float-quantized", FL_QUANT_FLOAT}, {"naive-quantized", FL_QUANT_FLOAT}};
    uint32_t format = fl_json_get(r->doc, r->node, "format");
    uint32_t sparsity = fl_json_get(r->doc, fl_json_get(r->doc, r->node, "sparsity_config"), "format");
    uint32_t transforms = fl_json_get(r->doc, fl_json_get(r->doc, r->node, "transform_config"), "config_groups");
    for (size_t i = 0; i < FL_COUNT(formats); i++) {
        if (fl_json_is(r->doc, format, formats[i].name)) {
            *r->q = (fl_quantisation){.format = formats[i].format, .exact_zeros = true};
        }
    }
    if (r->q->format == FL_QUANT_NONE) {
        return fl_quant_unknown(r, r->node, "format", "pack-quantized, int-quantized and float-quantized");
    }
    if (fl_json_type_of(r->doc, sparsity) != FL_JSON_NULL && !fl_json_is(r->doc, sparsity, "dense")) {
        return fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "sparsity_config", "only dense matrices are read");
    }
    if (transforms != FL_JSON_NONE && r->doc->nodes[transforms].n_children != 0) {
        return fl_quant_bad(r, FOLOLLM_E_UNSUPPORTED, "transform_config", "activations are not transformed here");
    }
    return fl_quant_groups(r);
}

/* ---- FP8 and bitsandbytes -- */

static folollm_status fl_quant_fp8(fl_quant_reader *r) {
    uint64_t rows = 0, cols = 0;
    uint32_t format = fl_json_get(r->doc, r->node, "fmt");
    if (fl_json_type_of(r->doc, format) != FL_JSON_NULL && !fl_json_is(r->doc, format, "e4m3")) {
        return fl_quant_unknown(r, r->node, "fmt", "e4m3 only");
    }
    FL_TRY(fl_quant_block(r, fl_json_get(r->doc, r->node, "weight_block_size"), "weight_block_size", &rows, &cols));
    *r->q = (fl_quantisation){.format = FL_QUANT_FP8, .bits = 8, .rows = (uint32_t)rows, .group = (uint32_t)cols,
                              .symmetric = true};
    return FOLOLLM_OK;
}

static folollm_status fl_quant_bitsandbytes(fl_quant_reader *r) {
    bool four, eight;
    FL_TRY(fl_json_bool(r->doc, r->node, "load_in_4bit", false, &four, r->error));
    FL_TRY(fl_json_bool(r->doc, r->node, "load_in_8bit", false, &eight, r->error));
    if (four == eight) {
        return fl_quant_bad(r, FOLOLLM_E_FORMAT, "load_in_4bit", "just one of this and \"load_in_8bit\" must be true");
    }
    if (four && fl_quant_is_set(r, r->node, "bnb_4bit_quant_storage") &&
        !fl_json_is(r->doc, fl_json_get(r->doc, r->node, "bnb_4bit_quant_storage"), "uint8")) {
        return fl_quant_unknown(r, r->node, "bnb_4bit_quant_storage", "uint8 only");
    }
    *r->q = (fl_quantisation){.format = four ? FL_QUANT_BITSANDBYTES_4 : FL_QUANT_BITSANDBYTES_8,
                              .bits = four ? 4 : 8, .rows = 1, .symmetric = true};
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_quantisation_read(fl_quantisation *q, const fl_json *doc, uint32_t node,
                                             folollm_error *error) {
    static const struct {
        const char *method;
        folollm_status (*read)(fl_quant_reader *r);
    } methods[] = {{"gptq", fl_quant_gptq}, {"awq", fl_quant_awq}, {"compressed-tensors", fl_quant_compressed},
                   {"fp8", fl_quant_fp8},   {"bitsandbytes", fl_quant_bitsandbytes}};
    fl_quant_reader r = {doc, node, q, error};
    memset(q, 0, sizeof *q);
    if (fl_json_type_of(doc, node) != FL_JSON_OBJECT) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: the quantisation must be an object", doc->name);
    }
    uint32_t method = fl_json_get(doc, node, "quant_method");
    for (size_t i = 0; i < FL_COUNT(methods); i++) {
        if (fl_json_is(doc, method, methods[i].method)) {
            return methods[i].read(&r);
        }
    }
    if (method == FL_JSON_NONE && fl_quant_is_set(&r, node, "desc_act")) {
        return fl_quant_gptq(&r); /* older files, of gptq alone, do not name it */
    }
    return fl_quant_unknown(&r, node, "quant_method", "gptq, awq, compressed-tensors, fp8 and bitsandbytes");
}

FL_LOCAL size_t fl_quantisation_text(const fl_quantisation *q, char *text, size_t room) {
    static const char *const names[FL_QUANT_FORMATS] = {
        "", "gptq", "awq", "compressed-tensors", "compressed-tensors", "compressed-tensors", "fp8", "bitsandbytes",
        "bitsandbytes"};
    bool floats = q->format == FL_QUANT_FLOAT || q->format == FL_QUANT_FP8;
    size_t n = fl_format(text, room, "%s", names[q->format]);
    if (q->format == FL_QUANT_NONE) {
        return n;
    }
    n += fl_format(text + n, room - n, floats ? ", float8" : ", %u bits", (uint64_t)q->bits);
    if (q->group != 0 && floats) {
        n += fl_format(text + n, room - n, ", blocks of %u x %u", (uint64_t)q->rows, (uint64_t)q->group);
    } else if (q->group != 0) {
        n += fl_format(text + n, room - n, ", groups of %u", (uint64_t)q->group);
    }
    n += fl_format(text + n, room - n, "%s", q->symmetric ? "" : ", zero points");
    return n + fl_format(text + n, room - n, "%s", q->ordered ? ", act-order" : "");
}
