#include "model/runner.h"

FL_LOCAL fl_limits fl_runner_limits(const fl_config *c, size_t n_rows) {
    fl_limits l = {.n_rows = n_rows, .dim = c->dim, .ffn_dim = c->ffn_dim, .head_dim = c->head_dim};
    l.group = c->n_heads / c->n_kv_heads;
    l.attention_dim = (size_t)c->n_heads * c->head_dim;
    l.qkv_dim = l.attention_dim + 2 * (size_t)c->n_kv_heads * c->head_dim;
    return l;
}

FL_LOCAL void fl_activations_layout(fl_activations *a, fl_arena *arena, const fl_limits *l) {
    a->x = fl_take(arena, l->n_rows, fl_padded(l->dim) * sizeof(float));
    a->qkv = fl_take(arena, l->n_rows, fl_padded(l->qkv_dim) * sizeof(float));
    a->attended = fl_take(arena, l->n_rows, fl_padded(l->attention_dim) * sizeof(float));
    a->h = fl_take(arena, l->n_rows, fl_padded(l->ffn_dim) * sizeof(float));
    a->angles = fl_take(arena, l->n_rows, l->head_dim * sizeof(float));
}

FL_LOCAL void fl_runner_forward(const fl_weights *w, const fl_rope *rope, fl_backend *backend,
                                const fl_activations *a, fl_kv *kv, const fl_batch *batch, float *logits) {
    const fl_ops *ops = backend->ops;
    const fl_config *c = &w->config;
    size_t n = batch->n_rows;
    for (size_t row = 0; row < n; row++) {
        fl_rope_angles(rope, batch->positions[row], a->angles + row * c->head_dim);
    }
    ops->embed(backend, &w->embedding, batch, a->x);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const fl_layer *l = &w->layers[i];
        ops->norm_qkv(backend, n, a->x, l->attention_norm, c->norm_epsilon, &l->qkv, a->qkv);
        ops->rope_store(backend, &l->attention, batch, a->angles, kv, i, a->qkv);
        ops->attend(backend, &l->attention, batch, kv, i, a->qkv, a->attended);
        ops->project_add(backend, n, a->attended, &l->o, a->x);
        ops->norm_gate_up(backend, n, a->x, l->mlp_norm, c->norm_epsilon, &l->gate_up, a->h);
        ops->project_add(backend, n, a->h, &l->down, a->x);
    }
    if (batch->n_wanted > 0) {
        ops->norm_head(backend, batch, a->x, w->final_norm, c->norm_epsilon, &w->head, logits);
    }
}
