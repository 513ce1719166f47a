#include "model/quantised.h"

#define FL_QUANT_STATE_MAX 4096u /* bytes of JSON */

/* ---- Finding -- */

static const char *const fl_quant_suffixes[FL_QUANT_FORMATS][FL_QUANT_TENSORS] = {
    {NULL},
    {".qweight", ".scales", ".qzeros", ".g_idx"},
    {".qweight", ".scales", ".qzeros"},
    {".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape"},
    {".weight", ".weight_scale"},
    {".weight", ".weight_scale"},
    {".weight", ".weight_scale_inv"},
    {".weight", ".SCB"},
    {".weight", ".weight.absmax", NULL, NULL, NULL, ".weight.quant_map", ".weight.nested_quant_map",
     ".weight.nested_absmax", ".weight.quant_state.bitsandbytes__nf4"},
};

static const fl_tensor *fl_quant_named(const fl_quantised *q, fl_str module, const char *suffix) {
    char name[192];
    if (suffix == NULL || module.n + strlen(suffix) > sizeof name) {
        return NULL;
    }
    memcpy(name, module.at, module.n);
    memcpy(name + module.n, suffix, strlen(suffix));
    return fl_tensors_find(q->all, (fl_str){name, module.n + strlen(suffix)});
}

static bool fl_quant_is_type(const fl_tensor *t, const char *type) {
    return t != NULL && strcmp(t->type_name, type) == 0;
}

/* The types that integers of a format have: a plain weight beside quantised ones has another. */
static const char *fl_quant_weight_type(fl_quant_format format) {
    static const char *const types[FL_QUANT_FORMATS] = {"",        "I32",     "I32", "I32", "I8",
                                                        "F8_E4M3", "F8_E4M3", "I8",  "U8"};
    return types[format];
}

static void fl_quant_find_tensors(fl_quantised *q, fl_str module) {
    fl_quant_format format = q->how->format;
    for (int i = 0; i < FL_QUANT_TENSORS; i++) {
        q->tensors[i] = fl_quant_named(q, module, fl_quant_suffixes[format][i]);
    }
    if (format == FL_QUANT_BITSANDBYTES_4 && q->tensors[FL_QUANT_STATE] == NULL) {
        q->tensors[FL_QUANT_STATE] = fl_quant_named(q, module, ".weight.quant_state.bitsandbytes__fp4");
    }
    if (format == FL_QUANT_PACKED && q->how->symmetric) {
        q->tensors[FL_QUANT_ZEROS] = NULL; /* older files have them all the same */
    }
    if (format > FL_QUANT_PACKED && !fl_quant_is_type(q->tensors[FL_QUANT_WEIGHT], fl_quant_weight_type(format))) {
        q->tensors[FL_QUANT_WEIGHT] = NULL;
    }
}

/* A tensor that there must be, of just this shape (n_cols 0: a vector); any: of whatever shape. */
static folollm_status fl_quant_need(const fl_quantised *q, fl_str module, fl_quant_tensor which, const char *type,
                                    size_t n_rows, size_t n_cols, bool any, folollm_error *error) {
    const fl_tensor *t = q->tensors[which];
    if (t == NULL) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: %S is quantised, but there is no tensor \"%s\" beside it",
                       q->all->files[0].path, &module, fl_quant_suffixes[q->how->format][which] + 1);
    }
    bool fits = type != NULL ? fl_quant_is_type(t, type) : t->type != FL_DTYPE_OTHER;
    uint64_t rows = t->n_dims > 0 ? t->shape[0] : 0, cols = t->n_dims > 1 ? t->shape[1] : 0;
    if (!fits || (!any && (t->n_dims != (n_cols != 0 ? 2u : 1u) || rows != n_rows || cols != n_cols))) {
        return fl_fail(error, FOLOLLM_E_FORMAT,
                       "%s: tensor %S is %u x %u (%u dimensions, %s); the config implies %u x %u of %s",
                       q->all->files[t->file].path, &t->name, rows, cols, (uint64_t)t->n_dims, t->type_name,
                       (uint64_t)n_rows, (uint64_t)n_cols, type != NULL ? type : "F16, BF16 or F32");
    }
    return FOLOLLM_OK;
}

/* Words that hold n integers. */
static size_t fl_quant_words(const fl_quantised *q, size_t n) {
    return fl_div_up(n * q->how->bits, 32);
}

static folollm_status fl_quant_need_words(const fl_quantised *q, fl_str module, folollm_error *error) {
    size_t rows = q->n_rows, cols = q->n_cols, groups = q->n_groups, zeros = fl_quant_words(q, rows);
    bool packed = q->how->format == FL_QUANT_PACKED, awq = q->how->format == FL_QUANT_AWQ;
    size_t whole = packed ? 1 : q->how->bits == 3 ? 32 : 32 / q->how->bits; /* integers that fill words */
    if (rows % whole != 0 || (!awq && cols % whole != 0)) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: %S is %u x %u, which integers of %u bits do not fill",
                       q->all->files[0].path, &module, (uint64_t)rows, (uint64_t)cols, (uint64_t)q->how->bits);
    }
    size_t down = packed ? rows : awq ? cols : fl_quant_words(q, cols);
    size_t across = packed ? fl_quant_words(q, cols) : awq ? zeros : rows;
    FL_TRY(fl_quant_need(q, module, FL_QUANT_WEIGHT, "I32", down, across, false, error));
    FL_TRY(fl_quant_need(q, module, FL_QUANT_SCALES, NULL, packed ? rows : groups, packed ? groups : rows, false,
                         error));
    if (!packed || !q->how->symmetric) {
        FL_TRY(fl_quant_need(q, module, FL_QUANT_ZEROS, "I32", packed ? zeros : groups, packed ? groups : zeros, false,
                             error));
    }
    if (q->how->ordered || q->tensors[FL_QUANT_GROUPS] != NULL) {
        FL_TRY(fl_quant_need(q, module, FL_QUANT_GROUPS, "I32", cols, 0, false, error));
    }
    return !packed ? FOLOLLM_OK : fl_quant_need(q, module, FL_QUANT_SHAPE, "I64", 2, 0, false, error);
}

/* Bytes that stand for a number each. */
static folollm_status fl_quant_need_bytes(const fl_quantised *q, fl_str module, folollm_error *error) {
    size_t rows = q->how->rows == 0 ? 1 : fl_div_up(q->n_rows, q->how->rows);
    size_t groups = q->how->rows == 0 || q->how->format == FL_QUANT_BITSANDBYTES_8 ? 0 : q->n_groups;
    FL_TRY(fl_quant_need(q, module, FL_QUANT_WEIGHT, fl_quant_weight_type(q->how->format), q->n_rows, q->n_cols, false,
                         error));
    return fl_quant_need(q, module, FL_QUANT_SCALES, NULL, rows, groups, false, error);
}

/* How many scales there are, and whether these have scales, is seen when the state is read. */
static folollm_status fl_quant_need_nibbles(const fl_quantised *q, fl_str module, folollm_error *error) {
    bool nested = fl_quant_is_type(q->tensors[FL_QUANT_SCALES], "U8");
    const fl_tensor *state = q->tensors[FL_QUANT_STATE];
    FL_TRY(fl_quant_need(q, module, FL_QUANT_WEIGHT, "U8", fl_div_up(q->n_rows * q->n_cols, 2), 1, false, error));
    FL_TRY(fl_quant_need(q, module, FL_QUANT_SCALES, nested ? "U8" : "F32", 0, 0, true, error));
    FL_TRY(fl_quant_need(q, module, FL_QUANT_TABLE, "F32", 16, 0, false, error));
    FL_TRY(fl_quant_need(q, module, FL_QUANT_STATE, "U8", 0, 0, true, error));
    if (state->n_bytes > FL_QUANT_STATE_MAX) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S has %u bytes; at most %u were expected",
                       q->all->files[state->file].path, &state->name, state->n_bytes, (uint64_t)FL_QUANT_STATE_MAX);
    }
    if (nested) {
        FL_TRY(fl_quant_need(q, module, FL_QUANT_SCALES_TABLE, "F32", 256, 0, false, error));
        FL_TRY(fl_quant_need(q, module, FL_QUANT_SCALES_SCALES, "F32", 0, 0, true, error));
    }
    return FOLOLLM_OK;
}

static bool fl_quant_has_integers(const fl_quantised *q) {
    fl_quant_format format = q->how->format;
    return format != FL_QUANT_FLOAT && format != FL_QUANT_FP8 && format != FL_QUANT_BITSANDBYTES_4;
}

/* Integers of 4 bits and less stay what they are where groups are whole units of 32 columns, and so do those of 8 bits
 * around their middle. Others become q8, which has steps for the values between; but floats of 8 bits, whose small ones
 * would be lost beside large ones, bf16. */
static void fl_quant_choose(fl_quantised *q) {
    bool units = q->n_groups == 1 || q->group % FL_UNIT == 0, wide = q->how->bits == 8;
    q->exact = fl_quant_has_integers(q) && units && (!wide || q->how->symmetric);
    q->ordered = q->exact && q->how->ordered && q->n_groups > 1;
    q->type = FL_Q8_0;
    if (q->exact && !wide) {
        q->type = q->how->symmetric ? FL_Q4_0 : FL_Q4_ZERO;
    } else if (q->exact && q->n_groups == 1) {
        q->type = FL_Q8_ROW;
    } else if (q->how->format == FL_QUANT_FLOAT || q->how->format == FL_QUANT_FP8) {
        q->type = FL_BF16;
    }
}

FL_LOCAL folollm_status fl_quantised_find(const fl_tensors *all, const fl_quantisation *how, fl_str module,
                                          size_t n_rows, size_t n_cols, fl_quantised *q, folollm_error *error) {
    memset(q, 0, sizeof *q);
    q->how = how;
    q->all = all;
    fl_quant_find_tensors(q, module);
    if (q->tensors[FL_QUANT_WEIGHT] == NULL) {
        return FOLOLLM_OK;
    }
    q->n_rows = n_rows;
    q->n_cols = n_cols;
    q->group = how->group != 0 ? fl_min(how->group, n_cols) : n_cols;
    q->n_groups = fl_div_up(n_cols, q->group);
    fl_quant_choose(q);
    if (how->format <= FL_QUANT_PACKED) {
        return fl_quant_need_words(q, module, error);
    }
    return how->format == FL_QUANT_BITSANDBYTES_4 ? fl_quant_need_nibbles(q, module, error)
                                                  : fl_quant_need_bytes(q, module, error);
}

FL_LOCAL const char *fl_quantised_loss(const fl_quantised *q, fl_dtype type) {
    if (type == FL_F32) {
        return "";
    }
    if (!q->exact || type != q->type) {
        return ", rounded";
    }
    return type == FL_Q8_ROW || q->tensors[FL_QUANT_SCALES]->type == FL_F16 ? "" : ", scales rounded to f16";
}

/* ---- Numbers -- */

static float fl_quant_float(const fl_quantised *q, fl_quant_tensor which, size_t i) {
    fl_dtype type = q->tensors[which]->type;
    float x;
    fl_to_float(type, q->data[which] + i * fl_dtype_bytes(type), 1, &x);
    return x;
}

/* The i-th scale of bitsandbytes' four bits. */
static float fl_quant_block_scale(const fl_quantised *q, size_t i) {
    if (q->tensors[FL_QUANT_SCALES]->type == FL_F32) {
        return fl_quant_float(q, FL_QUANT_SCALES, i);
    }
    float scale = fl_quant_float(q, FL_QUANT_SCALES_TABLE, q->data[FL_QUANT_SCALES][i]);
    scale *= fl_quant_float(q, FL_QUANT_SCALES_SCALES, i / q->nested_block);
    return scale + (float)q->offset;
}

static float fl_quant_scale(const fl_quantised *q, size_t row, size_t group) {
    switch (q->how->format) {
    case FL_QUANT_GPTQ:
    case FL_QUANT_AWQ: return fl_quant_float(q, FL_QUANT_SCALES, group * q->n_rows + row);
    case FL_QUANT_BITSANDBYTES_8: return fl_quant_float(q, FL_QUANT_SCALES, row) / 127.0f;
    default: break;
    }
    size_t row_of_scales = q->how->rows != 0 ? row / q->how->rows : 0;
    return fl_quant_float(q, FL_QUANT_SCALES, row_of_scales * q->n_groups + group);
}

/* Bit b of a row of words that lie `stride` apart begins an integer. */
static uint32_t fl_quant_integer(const fl_quantised *q, const uint8_t *words, size_t stride, size_t bit) {
    size_t shift = bit % 32, bits = q->how->bits;
    const uint8_t *word = words + 4 * stride * (bit / 32);
    uint32_t integer = fl_load_u32(word) >> shift;
    if (shift + bits > 32) {
        integer |= fl_load_u32(word + 4 * stride) << (32 - shift);
    }
    return integer & ((1u << bits) - 1);
}

static const uint8_t fl_awq_nibbles[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* where the integers of eight rows lie */

/* A zero point as it is stored. */
static uint32_t fl_quant_stored_zero(const fl_quantised *q, size_t row, size_t group) {
    const uint8_t *zeros = q->data[FL_QUANT_ZEROS];
    size_t words = fl_quant_words(q, q->n_rows);
    switch (q->how->format) {
    case FL_QUANT_AWQ:
        return fl_load_u32(zeros + 4 * (group * words + row / 8)) >> 4 * fl_awq_nibbles[row % 8] & 15;
    case FL_QUANT_PACKED: return fl_quant_integer(q, zeros + 4 * group, q->n_groups, row * q->how->bits);
    default: return fl_quant_integer(q, zeros + 4 * group * words, 1, row * q->how->bits);
    }
}

static uint32_t fl_quant_zero(const fl_quantised *q, size_t row, size_t group) {
    if (q->how->symmetric) {
        return 1u << (q->how->bits - 1);
    }
    return fl_quant_stored_zero(q, row, group) + !q->how->exact_zeros;
}

static size_t fl_quant_group_of(const fl_quantised *q, size_t column) {
    return q->how->ordered ? fl_load_u32(q->data[FL_QUANT_GROUPS] + 4 * column) : column / q->group;
}

/* ---- Reading -- */

FL_LOCAL size_t fl_quantised_bytes(const fl_quantised *q) {
    size_t bytes = 0; /* shapes were checked: below 2^45 */
    for (int i = 0; i < FL_QUANT_TENSORS; i++) {
        bytes += q->tensors[i] != NULL ? (size_t)q->tensors[i]->n_bytes : 0;
    }
    return bytes;
}

FL_LOCAL size_t fl_quantised_temporary_bytes(const fl_quantisation *how) {
    return how->format == FL_QUANT_BITSANDBYTES_4 ? FL_QUANT_STATE_MAX * sizeof(fl_json_node) : 0;
}

static folollm_status fl_quant_bad_tensor(const fl_quantised *q, fl_quant_tensor which, const char *what,
                                          folollm_error *error) {
    const fl_tensor *t = q->tensors[which];
    return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S: %s", q->all->files[t->file].path, &t->name, what);
}

/* The size of blocks, and whether that is how many scales there are. */
static folollm_status fl_quant_blocks(const fl_quantised *q, const fl_json *doc, const char *key, size_t n,
                                      fl_quant_tensor which, size_t *block, folollm_error *error) {
    const fl_tensor *t = q->tensors[which];
    uint32_t size = 0;
    FL_TRY(fl_json_u32(doc, 0, key, 0, &size, error));
    if (size == 0) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be above 0", doc->name, key);
    }
    *block = size;
    size_t bytes = t->type == FL_F32 ? sizeof(float) : 1;
    if (t->n_bytes != fl_div_up(n, size) * bytes) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S has %u numbers; expected %u, one for every %u of %u",
                       q->all->files[t->file].path, &t->name, t->n_bytes / bytes, (uint64_t)fl_div_up(n, size),
                       (uint64_t)size, (uint64_t)n);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quant_fill_state(fl_quantised *q, const fl_json *doc, folollm_error *error) {
    size_t n = q->n_rows * q->n_cols;
    bool nested = q->tensors[FL_QUANT_SCALES]->type != FL_F32;
    FL_TRY(fl_quant_blocks(q, doc, "blocksize", n, FL_QUANT_SCALES, &q->block, error));
    FL_TRY(fl_json_double(doc, 0, "nested_offset", 0, &q->offset, error));
    if (!(q->offset >= -1e30 && q->offset <= 1e30)) {
        return fl_quant_bad_tensor(q, FL_QUANT_STATE, "\"nested_offset\" is beyond 1e30", error);
    }
    return !nested ? FOLOLLM_OK
                   : fl_quant_blocks(q, doc, "nested_blocksize", fl_div_up(n, q->block), FL_QUANT_SCALES_SCALES,
                                     &q->nested_block, error);
}

static folollm_status fl_quant_read_state(fl_quantised *q, folollm_error *error) {
    const fl_tensor *t = q->tensors[FL_QUANT_STATE];
    fl_str text = {(const char *)q->data[FL_QUANT_STATE], t != NULL ? (size_t)t->n_bytes : 0};
    fl_json doc;
    if (q->how->format != FL_QUANT_BITSANDBYTES_4) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_json_parse(q->all->memory, &doc, "quant_state", text, error));
    folollm_status status = fl_quant_fill_state(q, &doc, error);
    fl_json_free(q->all->memory, &doc);
    return status;
}

static folollm_status fl_quant_check_scales(const fl_quantised *q, folollm_error *error) {
    const fl_tensor *t = q->tensors[FL_QUANT_SCALES];
    bool halves = q->exact && q->type != FL_Q8_ROW, nested = t->type == FL_DTYPE_OTHER;
    for (size_t i = 0; q->tensors[FL_QUANT_TABLE] != NULL && i < 16; i++) {
        if (!fl_is_finite(fl_quant_float(q, FL_QUANT_TABLE, i))) {
            return fl_quant_bad_tensor(q, FL_QUANT_TABLE, "a number of it is not finite", error);
        }
    }
    size_t n = (size_t)t->n_bytes / (nested ? 1 : fl_dtype_bytes(t->type));
    for (size_t i = 0; i < n; i++) {
        float scale = nested ? fl_quant_block_scale(q, i) : fl_quant_float(q, FL_QUANT_SCALES, i);
        if (!fl_is_finite(scale) || (halves && !fl_is_finite(fl_float_of_f16(fl_f16_of_float(scale))))) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S: scale %u is %g; expected a finite one%s",
                           q->all->files[t->file].path, &t->name, (uint64_t)i, (double)scale,
                           halves ? " that f16 can hold" : "");
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quant_bad_zero(const fl_quantised *q, size_t row, size_t group, const char *what,
                                        uint32_t zero, folollm_error *error) {
    const fl_tensor *t = q->tensors[FL_QUANT_ZEROS];
    return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S: %u for row %u, group %u: %s",
                   q->all->files[t->file].path, &t->name, (uint64_t)zero, (uint64_t)row, (uint64_t)group, what);
}

/* Symmetric matrices have one zero point, half of the range. The first layout of GPTQ stores it less one; newer files
 * may name that layout and yet hold what the second one does. Where a zero point of 0 less one was to be stored, the
 * bits above it were overwritten. */
static folollm_status fl_quant_check_zeros(const fl_quantised *q, folollm_error *error) {
    uint32_t middle = 1u << (q->how->bits - 1);
    if (q->tensors[FL_QUANT_ZEROS] == NULL || (!q->how->symmetric && q->how->exact_zeros)) {
        return FOLOLLM_OK;
    }
    uint32_t first = fl_quant_stored_zero(q, 0, 0);
    for (size_t group = 0; group < q->n_groups; group++) {
        for (size_t row = 0; row < q->n_rows; row++) {
            uint32_t zero = fl_quant_stored_zero(q, row, group);
            bool half = zero == first && (zero == middle || (zero == middle - 1 && !q->how->exact_zeros));
            if (q->how->symmetric && !half) {
                return fl_quant_bad_zero(q, row, group, "no zero point of symmetric integers", zero, error);
            }
            if (!q->how->symmetric && zero == 2 * middle - 1) {
                return fl_quant_bad_zero(q, row, group, "a zero point of 0, stored less one, overwrote others", zero,
                                         error);
            }
        }
    }
    return FOLOLLM_OK;
}

/* g_idx counts upward in groups unless the config says otherwise. */
static folollm_status fl_quant_check_groups(const fl_quantised *q, folollm_error *error) {
    const fl_tensor *t = q->tensors[FL_QUANT_GROUPS];
    for (size_t i = 0; t != NULL && i < q->n_cols; i++) {
        uint32_t group = fl_load_u32(q->data[FL_QUANT_GROUPS] + 4 * i);
        if (group >= q->n_groups || (!q->how->ordered && group != i / q->group)) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S: column %u is in group %d; expected %s %u",
                           q->all->files[t->file].path, &t->name, (uint64_t)i, (int64_t)(int32_t)group,
                           q->how->ordered ? "one below" : "group",
                           (uint64_t)(q->how->ordered ? q->n_groups : i / q->group));
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quant_check_shape(const fl_quantised *q, folollm_error *error) {
    const uint8_t *p = q->data[FL_QUANT_SHAPE];
    if (p != NULL && (fl_load_u64(p) != q->n_rows || fl_load_u64(p + 8) != q->n_cols)) {
        return fl_quant_bad_tensor(q, FL_QUANT_SHAPE, "it says other than the config implies", error);
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_quantised_read(fl_quantised *q, uint8_t *raw, folollm_error *error) {
    for (int i = 0; i < FL_QUANT_TENSORS; i++) {
        const fl_tensor *t = q->tensors[i];
        if (t != NULL) {
            FL_TRY(fl_file_read(&q->all->files[t->file], t->offset, raw, (size_t)t->n_bytes, error));
            q->data[i] = raw;
            raw += t->n_bytes;
        }
    }
    FL_TRY(fl_quant_read_state(q, error));
    FL_TRY(fl_quant_check_shape(q, error));
    FL_TRY(fl_quant_check_scales(q, error));
    FL_TRY(fl_quant_check_zeros(q, error));
    return fl_quant_check_groups(q, error);
}

/* Each group must be as large as if they lay in order, so that its scales belong to whole units. */
FL_LOCAL folollm_status fl_quantised_sort(fl_quantised *q, uint32_t *order, folollm_error *error) {
    size_t at = 0, moved = 0;
    for (size_t group = 0; group < q->n_groups; group++) {
        size_t begin = at, expected = fl_min(q->n_cols - group * q->group, q->group);
        for (size_t i = 0; i < q->n_cols; i++) {
            if (fl_quant_group_of(q, i) == group) {
                moved += at != i;
                order[at++] = (uint32_t)i;
            }
        }
        if (at - begin != expected) {
            const fl_tensor *t = q->tensors[FL_QUANT_GROUPS];
            return fl_fail(error, FOLOLLM_E_FORMAT, "%s: tensor %S: group %u has %u columns; expected %u",
                           q->all->files[t->file].path, &t->name, (uint64_t)group, (uint64_t)(at - begin),
                           (uint64_t)expected);
        }
    }
    q->order = moved != 0 ? order : NULL;
    return FOLOLLM_OK;
}

/* ---- Decoding -- */

/* The integers of a row, unsigned, in the order of the input. */
static void fl_quant_integers(const fl_quantised *q, size_t row, uint8_t *to) {
    const uint8_t *from = q->data[FL_QUANT_WEIGHT];
    uint32_t bits = q->how->bits, mask = (1u << bits) - 1, filled = 0;
    uint64_t window = 0;
    if (q->how->format == FL_QUANT_AWQ) {
        from += 4 * (row / 8);
        for (size_t i = 0; i < q->n_cols; i++, from += q->n_rows / 2) {
            to[i] = fl_load_u32(from) >> 4 * fl_awq_nibbles[row % 8] & 15;
        }
        return;
    }
    if (q->how->format > FL_QUANT_PACKED) {
        for (size_t i = 0; i < q->n_cols; i++) {
            to[i] = from[row * q->n_cols + i] ^ 128;
        }
        return;
    }
    bool packed = q->how->format == FL_QUANT_PACKED;
    size_t step = packed ? 4 : 4 * q->n_rows;
    from += packed ? 4 * row * fl_quant_words(q, q->n_cols) : 4 * row;
    for (size_t i = 0; i < q->n_cols; i++, filled -= bits, window >>= bits) {
        if (filled < bits) {
            window |= (uint64_t)fl_load_u32(from) << filled;
            from += step;
            filled += 32;
        }
        to[i] = (uint8_t)(window & mask);
    }
}

static void fl_quant_floats_of_integers(const fl_quantised *q, size_t row, float *x) {
    uint8_t *integers = (uint8_t *)x + 3 * q->n_cols; /* in the end of its own room: floats never catch up with them */
    size_t group = SIZE_MAX;
    int32_t zero = 0;
    float scale = 0;
    fl_quant_integers(q, row, integers);
    for (size_t i = 0; i < q->n_cols; i++) {
        if (fl_quant_group_of(q, i) != group) {
            group = fl_quant_group_of(q, i);
            zero = (int32_t)fl_quant_zero(q, row, group);
            scale = fl_quant_scale(q, row, group);
        }
        x[i] = (float)((int32_t)integers[i] - zero) * scale;
    }
}

/* A sign, 4 bits of exponent with a bias of 7, 3 bits; all ones are a NaN, and there is no infinity. */
static float fl_quant_float8(uint8_t byte) {
    uint32_t sign = (uint32_t)(byte & 128) << 24, exponent = byte >> 3 & 15, fraction = byte & 7;
    if ((byte & 127) == 127) {
        return fl_float_of_bits(sign | 0x7FC00000u);
    }
    if (exponent != 0) {
        return fl_float_of_bits(sign | (exponent + 120) << 23 | fraction << 20);
    }
    return fl_float_of_bits(sign | fl_bits_of_float((float)fraction / 512));
}

static void fl_quant_floats_of_float8(const fl_quantised *q, size_t row, float *x) {
    const uint8_t *from = q->data[FL_QUANT_WEIGHT] + row * q->n_cols;
    for (size_t first = 0; first < q->n_cols; first += q->group) {
        float scale = fl_quant_scale(q, row, first / q->group);
        for (size_t i = first; i < q->n_cols && i - first < q->group; i++) {
            x[i] = fl_quant_float8(from[i]) * scale;
        }
    }
}

/* Four bits choose a number of a table. Blocks with a scale go on from row to row. */
static void fl_quant_floats_of_table(const fl_quantised *q, size_t row, float *x) {
    const uint8_t *from = q->data[FL_QUANT_WEIGHT];
    float table[16], scale = 0;
    for (size_t i = 0; i < FL_COUNT(table); i++) {
        table[i] = fl_quant_float(q, FL_QUANT_TABLE, i);
    }
    for (size_t i = 0, at = row * q->n_cols; i < q->n_cols; i++, at++) {
        if (i == 0 || at % q->block == 0) {
            scale = fl_quant_block_scale(q, at / q->block);
        }
        x[i] = table[at % 2 == 0 ? from[at / 2] >> 4 : from[at / 2] & 15] * scale;
    }
}

FL_LOCAL void fl_quantised_floats(const fl_quantised *q, size_t row, float *x) {
    if (fl_quant_has_integers(q)) {
        fl_quant_floats_of_integers(q, row, x);
    } else if (q->how->format != FL_QUANT_BITSANDBYTES_4) {
        fl_quant_floats_of_float8(q, row, x);
    } else {
        fl_quant_floats_of_table(q, row, x);
    }
}

/* 32 integers around the middle of their range, as blocks have them: those of 8 bits lose 128, others are put around 8;
 * up 0: as they are. */
static void fl_quant_block_of(const uint8_t *unit, bool wide, uint8_t up, uint8_t *block) {
    for (size_t i = 0; i < FL_UNIT && wide; i++) {
        block[i] = unit[i] ^ 128;
    }
    for (size_t i = 0; i < FL_UNIT / 2 && !wide; i++) {
        block[i] = (uint8_t)((unit[i] + up) | (unit[i + FL_UNIT / 2] + up) << 4);
    }
}

FL_LOCAL void fl_quantised_row(const fl_quantised *q, size_t row, uint8_t *integers, uint8_t *out) {
    bool wide = q->how->bits == 8, whole = q->type == FL_Q8_ROW, zeros = q->type == FL_Q4_ZERO;
    uint8_t up = (uint8_t)(wide || zeros ? 0 : 8 - (1u << (q->how->bits - 1)));
    fl_quant_integers(q, row, integers);
    if (whole) {
        float scale = fl_quant_scale(q, row, 0);
        memcpy(out, &scale, sizeof scale);
        out += sizeof scale;
    }
    for (size_t first = 0; first < q->n_cols; first += FL_UNIT, out += wide ? FL_UNIT : FL_UNIT / 2) {
        uint8_t unit[FL_UNIT] = {0};
        size_t group = first / q->group;
        for (size_t i = 0; i < fl_min(q->n_cols - first, FL_UNIT); i++) {
            unit[i] = integers[q->order != NULL ? q->order[first + i] : first + i];
        }
        if (!whole) {
            uint16_t scale = fl_f16_of_float(fl_quant_scale(q, row, group));
            memcpy(out, &scale, sizeof scale);
            out += sizeof scale;
        }
        if (zeros) {
            *out++ = (uint8_t)fl_quant_zero(q, row, group);
        }
        fl_quant_block_of(unit, wide, up, out);
    }
}
