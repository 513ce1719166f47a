#include "model/upload.h"

static const void *fl_upload_bytes(fl_upload *u, const void *from, size_t n_bytes) {
    void *to = from != NULL ? fl_take(&u->arena, n_bytes, 1) : NULL;
    if (to != NULL) {
        fl_cuda_upload(&u->cuda, to, from, n_bytes);
    }
    return to;
}

static void fl_upload_vector(fl_upload *u, const float **v, size_t n) {
    *v = fl_upload_bytes(u, *v, n * sizeof **v);
}

/* An order of columns that several parts have in common stays one. */
static void fl_upload_order(fl_upload *u, const fl_matrix *from, fl_matrix *to, uint32_t part) {
    to->parts[part].order = fl_upload_bytes(u, from->parts[part].order, from->n_cols * sizeof(uint32_t));
    for (uint32_t i = part; i-- > 0;) {
        if (from->parts[i].order == from->parts[part].order) {
            to->parts[part].order = to->parts[i].order;
        }
    }
}

static void fl_upload_matrix(fl_upload *u, const fl_matrix *from, fl_matrix *to, void *piece) {
    *to = *from;
    for (uint32_t i = 0; i < from->n_parts; i++) {
        const fl_part *part = &from->parts[i];
        void *data = fl_take(&u->arena, fl_cuda_matrix_bytes(part->type, part->n_rows, from->n_cols), 1);
        fl_cuda_upload_part(&u->cuda, part, from->n_cols, piece, data);
        to->parts[i].data = data;
        fl_upload_vector(u, &to->parts[i].bias, part->n_rows);
        fl_upload_order(u, from, to, i);
    }
}

/* Takes what the walk of weights.c counted, in an order of its own. */
static void fl_upload_walk(fl_upload *u, const fl_weights *w, void *piece) {
    const fl_config *c = &w->config;
    fl_upload_matrix(u, &w->embedding, &u->weights.embedding, piece);
    u->weights.head = u->weights.embedding;
    if (!c->tied) {
        fl_upload_matrix(u, &w->head, &u->weights.head, piece);
    }
    u->weights.final_norm = w->final_norm;
    fl_upload_vector(u, &u->weights.final_norm, c->dim);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        fl_layer layer = w->layers[i];
        fl_upload_vector(u, &layer.attention_norm, c->dim);
        fl_upload_vector(u, &layer.mlp_norm, c->dim);
        fl_upload_vector(u, &layer.attention.q_norm, c->head_dim);
        fl_upload_vector(u, &layer.attention.k_norm, c->head_dim);
        fl_upload_matrix(u, &w->layers[i].qkv, &layer.qkv, piece);
        fl_upload_matrix(u, &w->layers[i].o, &layer.o, piece);
        fl_upload_matrix(u, &w->layers[i].gate_up, &layer.gate_up, piece);
        fl_upload_matrix(u, &w->layers[i].down, &layer.down, piece);
        u->weights.layers[i] = layer;
    }
}

FL_LOCAL void fl_upload_layout(fl_upload *u, const fl_weights *w) {
    memset(u, 0, sizeof *u);
    u->arena.at = w->device_bytes;
}

FL_LOCAL size_t fl_upload_host_bytes(const fl_weights *w) {
    return w->config.n_layers * sizeof *w->layers + fl_cuda_host_bytes();
}

FL_LOCAL folollm_status fl_upload_open(fl_memory *m, fl_upload *u, const fl_weights *w, uint32_t ordinal,
                                       folollm_error *error) {
    FL_TRY(fl_cuda_open(m, &u->cuda, ordinal, NULL, error));
    FL_TRY(fl_cuda_arena_open(&u->cuda, &u->arena, "the weights", error));
    u->layers_bytes = w->config.n_layers * sizeof *u->weights.layers;
    u->weights.config = w->config;
    u->weights.layers = fl_alloc(m, u->layers_bytes);
    if (u->weights.layers == NULL) {
        return fl_no_memory(error, "a model's layers", u->layers_bytes);
    }
    fl_arena room = {.at = FL_CUDA_PIECE};
    FL_TRY(fl_cuda_arena_open(&u->cuda, &room, "a piece of weights", error));
    fl_upload_walk(u, w, room.base);
    fl_cuda_wait(&u->cuda);
    folollm_status status = fl_cuda_status(&u->cuda, error);
    fl_cuda_arena_close(&u->cuda, &room);
    return status;
}

FL_LOCAL void fl_upload_close(fl_memory *m, fl_upload *u) {
    if (u->cuda.device != NULL) {
        fl_cuda_arena_close(&u->cuda, &u->arena);
    }
    fl_free(m, u->weights.layers, u->layers_bytes);
    fl_cuda_close(m, &u->cuda);
    memset(u, 0, sizeof *u);
}
