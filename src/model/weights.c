#include "model/weights.h"

#include "base/map.h"
#include "base/math.h"
#include "model/config_gguf.h"
#include "model/config_gguf_write.h"
#include "model/rope.h"
#include "ops/cuda.h"

/* What a tensor is to the model. */
typedef enum fl_role {
    FL_ROLE_EMBEDDING,
    FL_ROLE_ATTENTION_NORM,
    FL_ROLE_Q,
    FL_ROLE_K,
    FL_ROLE_V,
    FL_ROLE_O,
    FL_ROLE_Q_BIAS,
    FL_ROLE_K_BIAS,
    FL_ROLE_V_BIAS,
    FL_ROLE_O_BIAS,
    FL_ROLE_Q_NORM,
    FL_ROLE_K_NORM,
    FL_ROLE_MLP_NORM,
    FL_ROLE_GATE,
    FL_ROLE_UP,
    FL_ROLE_DOWN,
    FL_ROLE_GATE_BIAS,
    FL_ROLE_UP_BIAS,
    FL_ROLE_DOWN_BIAS,
    FL_ROLE_FINAL_NORM,
    FL_ROLE_HEAD,
    FL_ROLE_ROPE_DIVISORS,
    FL_ROLE_NONE /* no bias */
} fl_role;

/* Its names in safetensors and in GGUF; %u stands for the layer. */
static const char *const fl_role_names[FL_ROLE_NONE][2] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.layers.%u.input_layernorm.weight", "blk.%u.attn_norm.weight"},
    {"model.layers.%u.self_attn.q_proj.weight", "blk.%u.attn_q.weight"},
    {"model.layers.%u.self_attn.k_proj.weight", "blk.%u.attn_k.weight"},
    {"model.layers.%u.self_attn.v_proj.weight", "blk.%u.attn_v.weight"},
    {"model.layers.%u.self_attn.o_proj.weight", "blk.%u.attn_output.weight"},
    {"model.layers.%u.self_attn.q_proj.bias", "blk.%u.attn_q.bias"},
    {"model.layers.%u.self_attn.k_proj.bias", "blk.%u.attn_k.bias"},
    {"model.layers.%u.self_attn.v_proj.bias", "blk.%u.attn_v.bias"},
    {"model.layers.%u.self_attn.o_proj.bias", "blk.%u.attn_output.bias"},
    {"model.layers.%u.self_attn.q_norm.weight", "blk.%u.attn_q_norm.weight"},
    {"model.layers.%u.self_attn.k_norm.weight", "blk.%u.attn_k_norm.weight"},
    {"model.layers.%u.post_attention_layernorm.weight", "blk.%u.ffn_norm.weight"},
    {"model.layers.%u.mlp.gate_proj.weight", "blk.%u.ffn_gate.weight"},
    {"model.layers.%u.mlp.up_proj.weight", "blk.%u.ffn_up.weight"},
    {"model.layers.%u.mlp.down_proj.weight", "blk.%u.ffn_down.weight"},
    {"model.layers.%u.mlp.gate_proj.bias", "blk.%u.ffn_gate.bias"},
    {"model.layers.%u.mlp.up_proj.bias", "blk.%u.ffn_up.bias"},
    {"model.layers.%u.mlp.down_proj.bias", "blk.%u.ffn_down.bias"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"", "rope_freqs.weight"},
};

typedef struct fl_binder {
    fl_memory *memory;
    fl_weights *w;
    fl_converter *converter; /* NULL while dry, or if nothing is converted */
    uint32_t layer;
    folollm_error *error;
    fl_tensors_out *out; /* NULL, or where the tensors go instead of being bound */
    fl_gguf_out *gguf;   /* the same */
    bool announce;       /* their names only */
} fl_binder;

static bool fl_bind_writes(const fl_binder *b) {
    return b->out != NULL || b->gguf != NULL;
}

static const fl_tensor *fl_bind_named(const fl_binder *b, fl_role role, const char *suffix, char *name, size_t room) {
    size_t n = fl_format(name, room, fl_role_names[role][b->w->is_gguf], (uint64_t)b->layer);
    n += fl_format(name + n, room - n, "%s", suffix);
    return fl_tensors_find(&b->w->tensors, (fl_str){name, n});
}

/* A matrix that folollm_quantize wrote: NAME.q4_k and so on, panel by panel as packed.h says. NULL: there is none. */
static const fl_tensor *fl_bind_packed(const fl_binder *b, fl_role role, char *name, size_t room, fl_dtype *type) {
    const fl_tensor *t = NULL;
    for (int i = FL_Q8_0; fl_is_packed((fl_dtype)i) && t == NULL && !b->w->is_gguf; i++) {
        char suffix[16];
        fl_format(suffix, sizeof suffix, ".%s", fl_dtype_name((fl_dtype)i));
        *type = (fl_dtype)i;
        t = fl_bind_named(b, role, suffix, name, room);
    }
    return t;
}

/* What the checkpoint has for a role. */
typedef struct fl_found {
    const fl_tensor *t; /* its tensor, or that of the integers of a quantised matrix */
    fl_dtype type;      /* of what is in it */
    bool packed;        /* is it already as it will lie in memory? */
    bool is_quantised;
    fl_quantised quantised;
    fl_merged merged;   /* what is added to it */
} fl_found;

/* A quantised matrix; found->t stays NULL if the module is none. */
static folollm_status fl_bind_quantised(const fl_binder *b, fl_role role, size_t n_rows, size_t n_cols,
                                        fl_found *found) {
    static const char plain[] = ".weight";
    char name[128];
    fl_quantised *q = &found->quantised;
    if (b->w->config.quantised.format == FL_QUANT_NONE || n_cols == 0) {
        return FOLOLLM_OK;
    }
    size_t n = fl_format(name, sizeof name, fl_role_names[role][0], (uint64_t)b->layer) - strlen(plain);
    FL_TRY(fl_quantised_find(&b->w->tensors, &b->w->config.quantised, (fl_str){name, n}, n_rows, n_cols, q, b->error));
    found->t = q->tensors[FL_QUANT_WEIGHT];
    found->is_quantised = found->t != NULL;
    found->type = q->type;
    return FOLOLLM_OK;
}

/* The tensor of this role with just this shape (n_cols 0: a vector). */
static folollm_status fl_bind_find(const fl_binder *b, fl_role role, size_t n_rows, size_t n_cols, fl_found *found) {
    char name[128], other[128];
    const fl_tensors *all = &b->w->tensors;
    const char *implied = b->w->is_gguf ? "the metadata" : "config.json";
    memset(found, 0, sizeof *found);
    FL_TRY(fl_bind_quantised(b, role, n_rows, n_cols, found));
    if (found->is_quantised) {
        return FOLOLLM_OK;
    }
    const fl_tensor *t = fl_bind_named(b, role, "", name, sizeof name);
    if (t == NULL && n_cols != 0) {
        t = fl_bind_packed(b, role, other, sizeof other, &found->type);
        found->packed = t != NULL;
    }
    if (t == NULL) {
        return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: tensor \"%s\" is not in the checkpoint, but %s implies it",
                       all->files[0].path, name, implied);
    }
    found->type = found->packed ? found->type : t->type;
    uint64_t rows = t->n_dims > 0 ? t->shape[0] : 0, cols = t->n_dims > 1 ? t->shape[1] : 0;
    if (found->packed) {
        n_rows = fl_packs(found->type, n_cols) ? fl_div_up(n_rows, FL_PANEL) : 0;
        n_cols = fl_panel_bytes(found->type, n_cols);
    }
    if (t->n_dims != (n_cols != 0 ? 2u : 1u) || rows != n_rows || cols != n_cols ||
        (found->packed && strcmp(t->type_name, "U8") != 0)) {
        return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: tensor %S is %u x %u (%u dimensions, %s); %s implies %u x %u",
                       all->files[t->file].path, &t->name, rows, cols, (uint64_t)t->n_dims, t->type_name, implied,
                       (uint64_t)n_rows, (uint64_t)n_cols);
    }
    if (found->type == FL_DTYPE_OTHER || (n_cols == 0 && !fl_is_plain(found->type))) {
        return fl_fail(b->error, FOLOLLM_E_UNSUPPORTED, "%s: tensor %S has type %s; %s are read",
                       all->files[t->file].path, &t->name, t->type_name,
                       !b->w->is_gguf || n_cols == 0
                           ? "BF16, F16 and F32"
                           : "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS and MXFP4");
    }
    found->t = t;
    return FOLOLLM_OK;
}

static bool fl_role_turns(fl_role role) {
    return role == FL_ROLE_Q || role == FL_ROLE_K || role == FL_ROLE_Q_BIAS || role == FL_ROLE_K_BIAS;
}

/* Where its rows are; the llama architecture has those of Q and K in another order in GGUF. */
static fl_rows_in_file fl_bind_rows(const fl_binder *b, const fl_tensor *t, fl_role role, size_t n_cols) {
    fl_rows_in_file rows = {&b->w->tensors.files[t->file], t->offset, fl_row_bytes(t->type, n_cols), 0};
    rows.head_dim = fl_role_turns(role) && b->w->config.rotates_neighbours ? b->w->config.head_dim : 0;
    return rows;
}

/* How its rows go out. */
static fl_rows_out fl_bind_rows_out(const fl_binder *b, fl_role role) {
    const fl_config *c = &b->w->config;
    fl_rows_out how = {b->gguf == NULL, 0};
    how.head_dim = b->gguf != NULL && fl_role_turns(role) && fl_config_turns_in_gguf(c) ? c->head_dim : 0;
    return how;
}

/* Count a tensor; while loading, tell the host and let it cancel. */
static folollm_status fl_bind_done(fl_binder *b, const fl_tensor *t, size_t n_numbers) {
    const folollm_host *host = &b->memory->host;
    fl_weights *w = b->w;
    w->tensors.tensors[t - w->tensors.tensors].bound = true;
    w->done_bytes += t->n_bytes;
    if (w->arena.base == NULL) {
        w->n_params += n_numbers;
        w->total_bytes += t->n_bytes;
        return FOLOLLM_OK;
    }
    if (host->progress != NULL && host->progress(host->user, w->done_bytes, w->total_bytes) != 0) {
        return fl_fail(b->error, FOLOLLM_E_CANCELLED, "loading was cancelled by the host after %u of %u bytes",
                       w->done_bytes, w->total_bytes);
    }
    return FOLOLLM_OK;
}

/* Count what a copy on a device takes. */
static void fl_bind_on_device(fl_binder *b, size_t n_bytes) {
    fl_arena room = {.at = b->w->device_bytes};
    if (b->w->arena.base == NULL) {
        fl_take(&room, n_bytes, 1);
        b->w->device_bytes = room.at;
    }
}

#define FL_WRITE_BYTES 65536u

static folollm_status fl_bind_put(const fl_binder *b, const void *bytes, size_t n_bytes) {
    return b->gguf != NULL ? fl_gguf_out_bytes(b->gguf, bytes, n_bytes)
                           : fl_tensors_out_data(b->out, bytes, n_bytes, b->error);
}

/* The bytes of a tensor as they are. */
static folollm_status fl_bind_copy(fl_binder *b, const fl_tensor *t) {
    uint8_t *piece = fl_alloc_raw(b->memory, FL_WRITE_BYTES);
    folollm_status status = piece != NULL ? FOLOLLM_OK : fl_no_memory(b->error, "a piece of a tensor", FL_WRITE_BYTES);
    for (uint64_t at = 0; at < t->n_bytes && status == FOLOLLM_OK; at += FL_WRITE_BYTES) {
        size_t n = t->n_bytes - at < FL_WRITE_BYTES ? (size_t)(t->n_bytes - at) : FL_WRITE_BYTES;
        status = fl_file_read(&b->w->tensors.files[t->file], t->offset + at, piece, n, b->error);
        if (status == FOLOLLM_OK) {
            status = fl_bind_put(b, piece, n);
        }
    }
    fl_free(b->memory, piece, FL_WRITE_BYTES);
    return status;
}

/* A matrix as type, to `to`, packed unless it goes to a GGUF file. order: room for that of its columns, if it is to
 * keep one. */
static folollm_status fl_bind_convert(fl_binder *b, fl_role role, fl_found *found, size_t n_rows, size_t n_cols,
                                      fl_dtype type, void *to, uint32_t *order) {
    fl_quantised *q = &found->quantised;
    fl_rows_in_file rows = fl_bind_rows(b, found->t, role, n_cols);
    fl_rows_out how = fl_bind_rows_out(b, role);
    if (!found->is_quantised) {
        return fl_convert(b->converter, &rows, found->t->type, n_rows, n_cols, &found->merged, type, how, to,
                          b->error);
    }
    FL_TRY(fl_quantised_read(q, b->converter->raw, b->error));
    if (order != NULL) {
        FL_TRY(fl_quantised_sort(q, order, b->error));
    }
    bool exact = q->exact && type == q->type && q->ordered == (order != NULL);
    fl_convert_quantised(b->converter, q, exact, &found->merged, type, how, to);
    return FOLOLLM_OK;
}

static folollm_status fl_bind_convert_out(fl_binder *b, fl_role role, fl_found *found, size_t n_rows, size_t n_cols,
                                          fl_dtype type) {
    size_t bytes = fl_matrix_bytes(type, n_rows, n_cols);
    bool fits = b->gguf == NULL || fl_mul(n_rows, fl_row_bytes(type, n_cols), &bytes);
    void *matrix = fits ? fl_alloc_raw(b->memory, bytes) : NULL;
    if (matrix == NULL) {
        return fl_no_memory(b->error, "a converted tensor", bytes);
    }
    folollm_status status = fl_bind_convert(b, role, found, n_rows, n_cols, type, matrix, NULL);
    if (status == FOLOLLM_OK) {
        status = fl_bind_put(b, matrix, bytes);
    }
    fl_free(b->memory, matrix, bytes);
    return status;
}

/* A tensor to b->gguf, as type; n_cols 0: a vector. */
static folollm_status fl_bind_write_gguf(fl_binder *b, fl_role role, fl_found *found, size_t n_rows, size_t n_cols,
                                         fl_dtype type) {
    char name[128];
    fl_rows_in_file rows = fl_bind_rows(b, found->t, role, fl_max(n_cols, 1));
    bool copy = type == found->type && !found->is_quantised && found->merged.n == 0 &&
                rows.head_dim == fl_bind_rows_out(b, role).head_dim;
    if (b->announce) {
        fl_format(name, sizeof name, fl_role_names[role][1], (uint64_t)b->layer);
        return fl_gguf_out_tensor(b->gguf, name, type, n_rows, n_cols);
    }
    FL_TRY(copy ? fl_bind_copy(b, found->t)
                : fl_bind_convert_out(b, role, found, n_rows, fl_max(n_cols, 1), type));
    return fl_gguf_out_fill(b->gguf);
}

/* A tensor to b->out, as type. */
static folollm_status fl_bind_write(fl_binder *b, fl_role role, fl_found *found, size_t n_rows, size_t n_cols,
                                    fl_dtype type) {
    static const char *const names[] = {"F32", "F16", "BF16"};
    char name[128];
    bool copy = found->packed || (type == found->type && !found->is_quantised && found->merged.n == 0);
    size_t n = fl_format(name, sizeof name, fl_role_names[role][0], (uint64_t)b->layer);
    if (!b->announce) {
        return copy ? fl_bind_copy(b, found->t) : fl_bind_convert_out(b, role, found, n_rows, n_cols, type);
    }
    if (!fl_is_packed(type)) {
        return fl_tensors_out_announce(b->out, name, names[type], n_rows, n_cols,
                                       (uint64_t)n_rows * fl_max(n_cols, 1) * fl_dtype_bytes(type), b->error);
    }
    fl_format(name + n, sizeof name - n, ".%s", fl_dtype_name(type));
    return fl_tensors_out_announce(b->out, name, "U8", fl_div_up(n_rows, FL_PANEL), fl_panel_bytes(type, n_cols),
                                   fl_matrix_bytes(type, n_rows, n_cols), b->error);
}

/* A vector as floats. */
static folollm_status fl_bind_vector(fl_binder *b, fl_role role, size_t n, const float **out) {
    fl_found found;
    FL_TRY(fl_bind_find(b, role, n, 0, &found));
    if (fl_bind_writes(b)) {
        *out = NULL;
        return b->gguf != NULL ? fl_bind_write_gguf(b, role, &found, n, 0, FL_F32)
                               : fl_bind_write(b, role, &found, n, 0, found.type);
    }
    const fl_tensor *t = found.t;
    float *v = fl_take(&b->w->arena, n, sizeof *v);
    fl_bind_on_device(b, role != FL_ROLE_ROPE_DIVISORS ? n * sizeof *v : 0);
    if (v != NULL) {
        fl_rows_in_file rows = fl_bind_rows(b, t, role, 1);
        /* Read into the end of its own room: conversion then runs ahead of what is still to be read. */
        uint8_t *raw = (uint8_t *)v + n * sizeof *v - (size_t)t->n_bytes;
        FL_TRY(fl_read_rows(&rows, 0, n, raw, b->error));
        for (size_t i = 0; i < n; i++) {
            float value;
            fl_to_float(t->type, raw + i * rows.row_bytes, 1, &value);
            v[i] = value;
        }
    }
    *out = v;
    return fl_bind_done(b, t, n);
}

/* The type that a matrix of n_cols columns is computed with. K types come in blocks of 256: other rows, and the head
 * where 4 or 5 bits are asked for, which then matter most (it makes up a quarter of a small model), get more bits. */
static fl_dtype fl_bind_type(folollm_weights asked, fl_dtype stored, size_t n_cols, bool is_head) {
    static const fl_dtype types[] = {FL_F32,  FL_F16,  FL_BF16, FL_Q8_0, FL_Q8_ROW,
                                     FL_Q4_0, FL_Q4_K, FL_Q5_K, FL_Q6_K}; /* from FOLOLLM_WEIGHTS_F32 on */
    if (asked == FOLOLLM_WEIGHTS_AS_STORED) {
        return fl_computed_type(stored);
    }
    fl_dtype type = types[asked - FOLOLLM_WEIGHTS_F32];
    if (is_head && (type == FL_Q4_0 || type == FL_Q4_K || type == FL_Q5_K)) {
        type = FL_Q6_K;
    }
    return fl_is_packed(type) && !fl_packs(type, n_cols) ? FL_Q8_0 : type;
}

/* The same in a GGUF file, where rows are whole blocks: those of others are F16. llama.cpp's quantiser takes F16 there
 * too; where this takes Q8_0 for rows that are no multiple of 256, it takes Q5_0 instead of Q4_K and Q5_1 instead of
 * Q5_K. As stored, types stay that are only in files. */
static fl_dtype fl_bind_type_in_gguf(const fl_binder *b, const fl_found *found, fl_dtype type, size_t n_cols) {
    bool kept = b->w->asked == FOLOLLM_WEIGHTS_AS_STORED && !found->is_quantised && found->merged.n == 0;
    if (kept) {
        return found->type;
    }
    return fl_is_packed(type) && n_cols % fl_block_numbers(type) != 0 ? FL_F16 : type;
}

/* A part's matrix where the file has it, or in the arena. */
static folollm_status fl_bind_data(fl_binder *b, fl_role role, fl_found *found, size_t n_cols, fl_part *part) {
    fl_weights *w = b->w;
    const fl_tensor *t = found->t;
    fl_rows_in_file rows = fl_bind_rows(b, t, role, n_cols);
    const uint8_t *map = rows.file->map;
    bool as_it_is = found->packed || (part->type == t->type && !fl_is_packed(t->type) && found->merged.n == 0);
    size_t unit = found->packed ? 1 : fl_dtype_bytes(t->type);
    bool ordered = found->is_quantised && found->quantised.ordered && part->type == found->type;
    w->converts = w->converts || !as_it_is;
    fl_bind_on_device(b, fl_cuda_matrix_bytes(part->type, part->n_rows, n_cols));
    fl_bind_on_device(b, ordered ? n_cols * sizeof *part->order : 0);
    if (as_it_is && map != NULL && rows.head_dim == 0 && ((uintptr_t)map + t->offset) % unit == 0) {
        part->data = map + t->offset;
        w->mapped_bytes += w->arena.base == NULL ? t->n_bytes : 0;
        return FOLOLLM_OK;
    }
    size_t bytes = fl_matrix_bytes(part->type, part->n_rows, n_cols);
    if (t->n_bytes > SIZE_MAX || bytes == SIZE_MAX) {
        return fl_fail(b->error, FOLOLLM_E_MEMORY, "tensor %S is larger than the address space", &t->name);
    }
    void *data = fl_take(&w->arena, bytes, 1);
    uint32_t *order = ordered ? fl_take(&w->arena, n_cols, sizeof *order) : NULL;
    w->ordered = w->ordered || ordered;
    part->data = data;
    if (data == NULL) {
        return FOLOLLM_OK;
    }
    if (found->packed) {
        return fl_file_read(rows.file, rows.offset, data, bytes, b->error);
    }
    if (as_it_is) {
        return fl_read_rows(&rows, 0, part->n_rows, data, b->error);
    }
    FL_TRY(fl_bind_convert(b, role, found, part->n_rows, n_cols, part->type, data, order));
    part->order = ordered ? found->quantised.order : NULL;
    return FOLOLLM_OK;
}

/* Let the last part of a matrix have the very order of columns of one before it, if that is equal: then they meet the
 * same rows of integers. */
static void fl_bind_share_order(fl_matrix *m) {
    fl_part *last = &m->parts[m->n_parts - 1];
    for (uint32_t i = 0; i + 1 < m->n_parts && last->order != NULL; i++) {
        const uint32_t *order = m->parts[i].order;
        if (order != NULL && memcmp(order, last->order, m->n_cols * sizeof *order) == 0) {
            last->order = order;
            return;
        }
    }
}

/* What is merged into the next part of a matrix. */
static fl_merged fl_bind_merged(const fl_binder *b, const fl_matrix *m, bool is_head) {
    fl_merged merged = {b->w->merges, 0, m->low_rank + m->n_parts};
    for (size_t i = 0; i < b->w->n_merges && !is_head; i++) {
        merged.n = b->w->merges[i].low_ranks[merged.index].rank != 0 ? b->w->n_merges : merged.n;
    }
    return merged;
}

/* Can what was found become this type? */
static folollm_status fl_bind_may_become(const fl_binder *b, const fl_found *found, fl_dtype type) {
    const char *path = b->w->tensors.files[found->t->file].path;
    if (found->packed && (type != found->type || b->gguf != NULL)) {
        return fl_fail(b->error, FOLOLLM_E_UNSUPPORTED, "%s: tensor %S is packed; it cannot become %s again", path,
                       &found->t->name, b->gguf != NULL ? "blocks of GGUF" : fl_dtype_name(type));
    }
    bool ordered = found->is_quantised && found->quantised.ordered && b->w->asked == FOLOLLM_WEIGHTS_AS_STORED;
    if (b->gguf != NULL && (type == FL_Q4_ZERO || type == FL_Q8_ROW || ordered)) {
        return fl_fail(b->error, FOLOLLM_E_UNSUPPORTED,
                       "%s: tensor %S has zero points, one scale a row or an order of columns, which no block of GGUF "
                       "has; ask for a type of weights", path, &found->t->name);
    }
    if (b->out != NULL && ordered) {
        return fl_fail(b->error, FOLOLLM_E_UNSUPPORTED,
                       "%s: tensor %S has columns in an order of their own (act-order), which cannot be written; ask "
                       "for a type of weights", path, &found->t->name);
    }
    if (found->merged.n > 0 && (found->packed || (found->is_quantised && type == found->type))) {
        return fl_fail(b->error, FOLOLLM_E_UNSUPPORTED,
                       "%s: tensor %S is quantised: an adapter can be attached to it, but not merged into it", path,
                       &found->t->name);
    }
    return FOLOLLM_OK;
}

/* One more part of a matrix. */
static folollm_status fl_bind_part(fl_binder *b, fl_matrix *m, fl_role role, fl_role bias, size_t n_rows,
                                   size_t n_cols) {
    fl_found found;
    FL_TRY(fl_bind_find(b, role, n_rows, n_cols, &found));
    bool is_head = m == &b->w->embedding || m == &b->w->head;
    found.merged = fl_bind_merged(b, m, is_head);
    fl_part *part = &m->parts[m->n_parts++];
    m->n_rows += n_rows;
    m->n_cols = n_cols;
    part->n_rows = n_rows;
    part->type = fl_bind_type(b->w->asked, found.type, n_cols, is_head);
    part->type = b->gguf != NULL ? fl_bind_type_in_gguf(b, &found, part->type, n_cols) : part->type;
    b->w->types[part->type] = b->w->types[part->type] || !is_head || part->type == fl_computed_type(found.type);
    FL_TRY(fl_bind_may_become(b, &found, part->type));
    if (found.is_quantised) {
        b->w->quantised_bytes = fl_max(b->w->quantised_bytes, fl_quantised_bytes(&found.quantised));
        b->w->quantised_type = part->type;
        b->w->quantised_loss = fl_quantised_loss(&found.quantised, part->type);
    } else {
        b->w->stored[found.type] |= 1u << part->type;
    }
    FL_TRY(b->gguf != NULL  ? fl_bind_write_gguf(b, role, &found, n_rows, n_cols, part->type)
           : b->out != NULL ? fl_bind_write(b, role, &found, n_rows, n_cols, part->type)
                            : fl_bind_data(b, role, &found, n_cols, part));
    fl_bind_share_order(m);
    if (bias != FL_ROLE_NONE) {
        FL_TRY(fl_bind_vector(b, bias, n_rows, &part->bias));
    }
    for (int i = 0; found.is_quantised && i < FL_QUANT_TENSORS; i++) {
        if (i != FL_QUANT_WEIGHT && found.quantised.tensors[i] != NULL) {
            FL_TRY(fl_bind_done(b, found.quantised.tensors[i], 0));
        }
    }
    return fl_bind_done(b, found.t, n_rows * n_cols);
}

static folollm_status fl_bind_attention(fl_binder *b, fl_layer *l) {
    const fl_config *c = &b->w->config;
    size_t d = c->head_dim, q = c->n_heads * d, kv = c->n_kv_heads * d;
    fl_role q_bias = c->qkv_bias ? FL_ROLE_Q_BIAS : FL_ROLE_NONE, k_bias = c->qkv_bias ? FL_ROLE_K_BIAS : FL_ROLE_NONE;
    fl_role v_bias = c->qkv_bias ? FL_ROLE_V_BIAS : FL_ROLE_NONE, o_bias = c->o_bias ? FL_ROLE_O_BIAS : FL_ROLE_NONE;
    l->qkv.low_rank = fl_low_rank_index(b->layer, FL_LINEAR_Q);
    l->o.low_rank = fl_low_rank_index(b->layer, FL_LINEAR_O);
    FL_TRY(fl_bind_vector(b, FL_ROLE_ATTENTION_NORM, c->dim, &l->attention_norm));
    FL_TRY(fl_bind_part(b, &l->qkv, FL_ROLE_Q, q_bias, q, c->dim));
    FL_TRY(fl_bind_part(b, &l->qkv, FL_ROLE_K, k_bias, kv, c->dim));
    FL_TRY(fl_bind_part(b, &l->qkv, FL_ROLE_V, v_bias, kv, c->dim));
    FL_TRY(fl_bind_part(b, &l->o, FL_ROLE_O, o_bias, c->dim, q));
    fl_attention *a = &l->attention;
    if (c->qk_norm) {
        FL_TRY(fl_bind_vector(b, FL_ROLE_Q_NORM, d, &a->q_norm));
        FL_TRY(fl_bind_vector(b, FL_ROLE_K_NORM, d, &a->k_norm));
    }
    a->n_heads = c->n_heads;
    a->n_kv_heads = c->n_kv_heads;
    a->head_dim = d;
    a->norm_epsilon = c->norm_epsilon;
    a->scale = (float)fl_pow((double)d, -0.5);
    a->window = fl_config_window(c, b->layer);
    return FOLOLLM_OK;
}

static folollm_status fl_bind_mlp(fl_binder *b, fl_layer *l) {
    const fl_config *c = &b->w->config;
    fl_role gate_bias = c->mlp_bias ? FL_ROLE_GATE_BIAS : FL_ROLE_NONE;
    fl_role up_bias = c->mlp_bias ? FL_ROLE_UP_BIAS : FL_ROLE_NONE;
    fl_role down_bias = c->mlp_bias ? FL_ROLE_DOWN_BIAS : FL_ROLE_NONE;
    l->gate_up.low_rank = fl_low_rank_index(b->layer, FL_LINEAR_GATE);
    l->down.low_rank = fl_low_rank_index(b->layer, FL_LINEAR_DOWN);
    FL_TRY(fl_bind_vector(b, FL_ROLE_MLP_NORM, c->dim, &l->mlp_norm));
    FL_TRY(fl_bind_part(b, &l->gate_up, FL_ROLE_GATE, gate_bias, c->ffn_dim, c->dim));
    FL_TRY(fl_bind_part(b, &l->gate_up, FL_ROLE_UP, up_bias, c->ffn_dim, c->dim));
    return fl_bind_part(b, &l->down, FL_ROLE_DOWN, down_bias, c->dim, c->ffn_dim);
}

/* What every frequency is divided by, from 1 on as the factors of the other kinds. */
static folollm_status fl_bind_divisors(fl_binder *b) {
    fl_rope_config *rope = &b->w->config.rope;
    size_t n = b->w->config.head_dim / 2;
    FL_TRY(fl_bind_vector(b, FL_ROLE_ROPE_DIVISORS, n, &rope->divisors));
    for (size_t i = 0; rope->divisors != NULL && i < n; i++) {
        if (!fl_is_finite(rope->divisors[i]) || rope->divisors[i] < 1 || rope->divisors[i] > 1e6f) {
            return fl_fail(b->error, FOLOLLM_E_FORMAT, "%s: tensor \"%s\": number %u is %g; expected 1 to 1000000",
                           b->w->tensors.files[0].path, fl_role_names[FL_ROLE_ROPE_DIVISORS][1], (uint64_t)i,
                           (double)rope->divisors[i]);
        }
    }
    return FOLOLLM_OK;
}

/* What llama3's scaling comes to in a GGUF file. */
static folollm_status fl_bind_write_divisors(fl_binder *b) {
    float divisors[FL_HEAD_DIM_MAX / 2];
    size_t n = b->w->config.head_dim / 2;
    if (b->announce) {
        return fl_gguf_out_tensor(b->gguf, fl_role_names[FL_ROLE_ROPE_DIVISORS][1], FL_F32, n, 0);
    }
    fl_rope_divisors(&b->w->config, divisors);
    FL_TRY(fl_gguf_out_bytes(b->gguf, divisors, n * sizeof *divisors));
    return fl_gguf_out_fill(b->gguf);
}

/* Every tensor of the model in one order, whatever is done with it. */
static folollm_status fl_bind_walk(fl_binder *b) {
    fl_weights *w = b->w;
    const fl_config *c = &w->config;
    memset(&w->embedding, 0, sizeof w->embedding);
    memset(&w->head, 0, sizeof w->head);
    b->layer = 0;
    FL_TRY(fl_bind_part(b, &w->embedding, FL_ROLE_EMBEDDING, FL_ROLE_NONE, c->vocab, c->dim));
    for (; b->layer < c->n_layers; b->layer++) {
        fl_layer layer;
        memset(&layer, 0, sizeof layer);
        FL_TRY(fl_bind_attention(b, &layer));
        FL_TRY(fl_bind_mlp(b, &layer));
        if (w->layers != NULL) {
            w->layers[b->layer] = layer;
        }
    }
    FL_TRY(fl_bind_vector(b, FL_ROLE_FINAL_NORM, c->dim, &w->final_norm));
    if (c->rope.kind == FL_ROPE_DIVISORS) {
        FL_TRY(fl_bind_divisors(b));
    } else if (c->rope.kind == FL_ROPE_LLAMA3 && b->gguf != NULL) {
        FL_TRY(fl_bind_write_divisors(b));
    }
    if (c->tied) {
        w->head = w->embedding;
        return FOLOLLM_OK;
    }
    return fl_bind_part(b, &w->head, FL_ROLE_HEAD, FL_ROLE_NONE, c->vocab, c->dim);
}

/* Bind everything into w->arena, dry or real: the same walk, so that both agree. */
static folollm_status fl_bind_all(fl_memory *m, fl_weights *w, fl_converter *converter, folollm_error *error) {
    fl_binder b = {.memory = m, .w = w, .converter = converter, .error = error};
    w->done_bytes = 0;
    w->layers = fl_take(&w->arena, w->config.n_layers, sizeof *w->layers);
    return fl_bind_walk(&b);
}

/* The metadata of GGUF does not tell every variant of an architecture: what has further tensors is another one. */
static folollm_status fl_weights_are_all(const fl_weights *w, folollm_error *error) {
    for (size_t i = 0; i < w->tensors.n_tensors && w->is_gguf; i++) {
        const fl_tensor *t = &w->tensors.tensors[i];
        if (!t->bound) {
            return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "%s: tensor %S is none that %s models have here",
                           w->tensors.files[t->file].path, &t->name, w->config.architecture);
        }
    }
    return FOLOLLM_OK;
}

static void fl_weights_close_merges(fl_memory *m, fl_weights *w) {
    for (size_t i = 0; w->merges != NULL && i < w->n_merges; i++) {
        fl_adapter_close(m, &w->merges[i]);
    }
    fl_free(m, w->merges, w->n_merges * sizeof *w->merges);
    w->merges = NULL;
    w->n_merges = 0;
}

static folollm_status fl_weights_open_merges(fl_memory *m, fl_weights *w, const folollm_options *o,
                                             folollm_error *error) {
    if (o->n_merges == 0) {
        return FOLOLLM_OK;
    }
    w->merges = fl_alloc(m, o->n_merges * sizeof *w->merges);
    if (w->merges == NULL) {
        return fl_no_memory(error, "adapters", o->n_merges * sizeof *w->merges);
    }
    w->n_merges = o->n_merges;
    for (size_t i = 0; i < o->n_merges; i++) {
        const folollm_merge *merge = &o->merges[i];
        FL_TRY(fl_adapter_open(m, &w->merges[i], &w->config, merge->path, merge->scale, UINT32_MAX, error));
        w->merged = fl_mix(w->merged ^ w->merges[i].fingerprint);
    }
    return FOLOLLM_OK;
}

/* Without what stays open on failure: see below. */
static folollm_status fl_weights_check(fl_memory *m, fl_weights *w, const fl_gguf *gguf, const folollm_options *o,
                                       folollm_error *error) {
    if (w->is_gguf) {
        FL_TRY(fl_config_of_gguf(&w->config, gguf, &w->tensors, error));
    }
    FL_TRY(fl_weights_open_merges(m, w, o, error));
    FL_TRY(fl_bind_all(m, w, NULL, error));
    return fl_weights_are_all(w, error);
}

FL_LOCAL folollm_status fl_weights_open(fl_memory *m, fl_weights *w, const char *directory, const fl_gguf *gguf,
                                        const folollm_options *o, folollm_error *error) {
    bool maps = o->copy_weights == 0 && o->weights == FOLOLLM_WEIGHTS_AS_STORED;
    memset(w, 0, sizeof *w);
    w->arena.raw = true; /* all of it is written by the threads that convert; nothing is read before */
    w->asked = o->weights;
    w->is_gguf = gguf != NULL;
    if (w->is_gguf) {
        FL_TRY(fl_gguf_tensors(gguf, &w->tensors, error));
    } else {
        FL_TRY(fl_config_read(m, &w->config, directory, error));
        FL_TRY(fl_tensors_open(m, &w->tensors, directory, NULL, error));
    }
    for (size_t i = 0; i < w->tensors.n_files && maps; i++) {
        fl_file_map(&w->tensors.files[i]);
    }
    folollm_status status = fl_weights_check(m, w, gguf, o, error);
    if (status != FOLOLLM_OK) {
        fl_weights_close(m, w);
    }
    return status;
}

/* Columns of the widest matrix. */
static size_t fl_weights_columns(const fl_weights *w) {
    const fl_config *c = &w->config;
    return fl_max(fl_max(c->dim, c->ffn_dim), (size_t)c->n_heads * c->head_dim);
}

FL_LOCAL uint64_t fl_weights_passing_bytes(const fl_weights *w) {
    uint64_t bytes = fl_tensors_names_bytes(&w->tensors) + w->n_merges * sizeof *w->merges;
    for (size_t i = 0; i < w->n_merges; i++) {
        bytes += fl_arena_bytes(&w->merges[i].arena);
    }
    return bytes;
}

FL_LOCAL uint64_t fl_weights_temporary_bytes(const fl_weights *w, uint32_t n_threads) {
    uint64_t bytes = fl_weights_passing_bytes(w);
    if (w->converts) {
        bytes += fl_converter_bytes(fl_weights_columns(w), w->quantised_bytes, n_threads) +
                 fl_quantised_temporary_bytes(&w->config.quantised);
    }
    return bytes;
}

FL_LOCAL fl_dtype fl_weights_type(const fl_weights *w) {
    fl_dtype only = FL_DTYPE_OTHER;
    unsigned n = 0;
    for (int type = 0; type < FL_DTYPE_COUNT; type++) {
        n += w->types[type];
        only = w->types[type] ? (fl_dtype)type : only;
    }
    return n == 1 ? only : FL_DTYPE_OTHER;
}

FL_LOCAL bool fl_weights_packed(const fl_weights *w) {
    bool packed = false;
    for (int type = 0; type < FL_DTYPE_COUNT; type++) {
        packed = packed || (w->types[type] && fl_is_packed((fl_dtype)type));
    }
    return packed;
}

FL_LOCAL folollm_status fl_weights_load(fl_memory *m, fl_weights *w, uint32_t n_threads, folollm_error *error) {
    fl_converter converter;
    FL_TRY(fl_arena_open(m, &w->arena, "the weights", error));
    if (!w->converts) {
        FL_TRY(fl_bind_all(m, w, NULL, error));
    } else {
        FL_TRY(fl_converter_open(m, &converter, fl_weights_columns(w), w->quantised_bytes, n_threads, error));
        folollm_status status = fl_bind_all(m, w, &converter, error);
        fl_converter_close(m, &converter);
        FL_TRY(status);
    }
    if (fl_memory_is_default(m)) { /* now, for loading would wait until there are some */
        fl_want_huge_pages(w->arena.block, fl_arena_bytes(&w->arena));
    }
    fl_weights_close_merges(m, w);
    fl_tensors_forget_names(&w->tensors);
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_weights_write(fl_memory *m, fl_weights *w, uint32_t n_threads, fl_tensors_out *out,
                                         folollm_error *error) {
    fl_converter converter;
    fl_binder b = {.memory = m, .w = w, .converter = &converter, .error = error, .out = out, .announce = true};
    FL_TRY(fl_converter_open(m, &converter, fl_weights_columns(w), w->quantised_bytes, n_threads, error));
    folollm_status status = fl_bind_walk(&b);
    if (status == FOLOLLM_OK) {
        status = fl_tensors_out_header(out, error);
    }
    if (status == FOLOLLM_OK) {
        b.announce = false;
        status = fl_bind_walk(&b);
    }
    fl_converter_close(m, &converter);
    return status;
}

FL_LOCAL folollm_status fl_weights_announce_gguf(fl_weights *w, fl_gguf_out *out, folollm_error *error) {
    fl_binder b = {.memory = out->memory, .w = w, .error = error, .gguf = out, .announce = true};
    return fl_bind_walk(&b);
}

FL_LOCAL folollm_status fl_weights_write_gguf(fl_weights *w, uint32_t n_threads, fl_gguf_out *out,
                                              folollm_error *error) {
    fl_converter converter;
    fl_binder b = {.memory = out->memory, .w = w, .converter = &converter, .error = error, .gguf = out};
    FL_TRY(fl_converter_open(out->memory, &converter, fl_weights_columns(w), w->quantised_bytes, n_threads, error));
    folollm_status status = fl_gguf_out_fill(out);
    if (status == FOLOLLM_OK) {
        status = fl_bind_walk(&b);
    }
    fl_converter_close(out->memory, &converter);
    return status;
}

static uint64_t fl_vector_fingerprint(const float *v, size_t n, uint64_t h) {
    h = fl_mix(h ^ (v != NULL ? n : 0));
    for (size_t i = 0; v != NULL && i < n; i++) {
        h = fl_mix(h ^ fl_bits_of_float(v[i]));
    }
    return h;
}

/* Sixteen pieces of a matrix, from its start to its end, and its biases. */
static uint64_t fl_matrix_fingerprint(const fl_matrix *m, uint64_t h) {
    for (uint32_t i = 0; i < m->n_parts; i++) {
        const fl_part *part = &m->parts[i];
        size_t n_words = fl_matrix_bytes(part->type, part->n_rows, m->n_cols) / sizeof(uint64_t);
        h = fl_mix(h ^ fl_mix(part->n_rows) ^ fl_mix(m->n_cols << 8 | part->type));
        for (size_t k = 0; k < 16 && n_words > 0; k++) {
            size_t word = k * (n_words - 1) / 15;
            h = fl_mix(h ^ fl_load_u64((const uint8_t *)part->data + word * sizeof(uint64_t)));
        }
        for (size_t k = 0; part->order != NULL && k < m->n_cols; k++) {
            h = fl_mix(h ^ part->order[k]);
        }
        h = fl_vector_fingerprint(part->bias, part->n_rows, h);
    }
    return h;
}

static uint64_t fl_layer_fingerprint(const fl_layer *l, size_t dim, uint64_t h) {
    const fl_attention *a = &l->attention;
    h = fl_mix(h ^ fl_mix(a->n_heads) ^ fl_mix((uint64_t)a->window << 32 | fl_bits_of_float(a->norm_epsilon)));
    h = fl_vector_fingerprint(l->mlp_norm, dim, fl_vector_fingerprint(l->attention_norm, dim, h));
    h = fl_vector_fingerprint(a->k_norm, a->head_dim, fl_vector_fingerprint(a->q_norm, a->head_dim, h));
    h = fl_matrix_fingerprint(&l->o, fl_matrix_fingerprint(&l->qkv, h));
    return fl_matrix_fingerprint(&l->down, fl_matrix_fingerprint(&l->gate_up, h));
}

FL_LOCAL uint64_t fl_weights_fingerprint(const fl_weights *w) {
    uint64_t h = fl_mix(fl_bits_of_float(w->config.norm_epsilon)) ^ w->merged;
    h = fl_matrix_fingerprint(&w->head, fl_matrix_fingerprint(&w->embedding, h));
    h = fl_vector_fingerprint(w->final_norm, w->config.dim, h);
    for (uint32_t i = 0; i < w->config.n_layers; i++) {
        h = fl_layer_fingerprint(&w->layers[i], w->config.dim, h);
    }
    return h;
}

FL_LOCAL void fl_weights_close(fl_memory *m, fl_weights *w) {
    fl_arena_close(m, &w->arena);
    fl_weights_close_merges(m, w);
    fl_tensors_close(&w->tensors);
}
