#include "model/runner.h"

FL_LOCAL fl_limits fl_runner_limits(const fl_config *c, size_t n_rows) {
    fl_limits l = {.n_rows = n_rows, .dim = c->dim, .ffn_dim = c->ffn_dim, .head_dim = c->head_dim};
    l.group = c->n_heads / c->n_kv_heads;
    l.attention_dim = (size_t)c->n_heads * c->head_dim;
    l.qkv_dim = l.attention_dim + 2 * (size_t)c->n_kv_heads * c->head_dim;
    return l;
}

FL_LOCAL void fl_activations_layout(fl_activations *a, fl_arena *arena, const fl_limits *l, bool with_angles) {
    a->x = fl_take(arena, l->n_rows, fl_padded(l->dim) * sizeof(float));
    a->qkv = fl_take(arena, l->n_rows, fl_padded(l->qkv_dim) * sizeof(float));
    a->attended = fl_take(arena, l->n_rows, fl_padded(l->attention_dim) * sizeof(float));
    a->h = fl_take(arena, l->n_rows, fl_padded(l->ffn_dim) * sizeof(float));
    if (with_angles) {
        a->angles = fl_take(arena, l->n_rows, l->head_dim * sizeof(float));
    }
}

FL_LOCAL void fl_runner_begin(const fl_weights *w, const fl_rope *rope, fl_backend *backend, const fl_activations *a,
                              const fl_batch *batch, float *logits, fl_forward *f) {
    memset(f, 0, sizeof *f);
    f->batch = *batch;
    f->logits = logits;
    for (size_t row = 0; row < batch->n_rows && a->angles != NULL; row++) {
        fl_rope_angles(rope, batch->positions[row], a->angles + row * w->config.head_dim);
    }
    if (backend->ops->begin(backend, batch)) {
        f->op = FL_OP_END;
    } else {
        backend->ops->embed(backend, &w->embedding, batch, a->x);
    }
}

/* The op at hand; returns whether nothing of it is left. */
static bool fl_runner_one(const fl_weights *w, fl_backend *backend, const fl_activations *a, fl_kv *kv, fl_slice slice,
                         fl_forward *f) {
    const fl_ops *ops = backend->ops;
    const fl_layer *l = &w->layers[f->layer];
    float epsilon = w->config.norm_epsilon;
    const fl_batch *batch = &f->batch;
    size_t of, part;
    switch (f->op) {
    case FL_OP_QKV: ops->norm_qkv(backend, batch, a->x, l->attention_norm, epsilon, &l->qkv, a->qkv); return true;
    case FL_OP_ROPE:
        ops->rope_store(backend, &l->attention, batch, a->angles, kv, f->layer, a->qkv);
        return true;
    case FL_OP_ATTEND:
        of = l->attention.n_kv_heads;
        part = fl_min(slice.kv_heads, of - f->at);
        ops->attend(backend, &l->attention, batch, kv, f->layer, f->at, part, a->qkv, a->attended);
        f->at += part;
        return f->at == of;
    case FL_OP_OUT: ops->project_add(backend, batch, a->attended, &l->o, a->x); return true;
    case FL_OP_GATE_UP: ops->norm_gate_up(backend, batch, a->x, l->mlp_norm, epsilon, &l->gate_up, a->h); return true;
    case FL_OP_DOWN: ops->project_add(backend, batch, a->h, &l->down, a->x); return true;
    default:
        of = w->head.n_rows;
        part = fl_min(slice.head_rows, of - f->at);
        ops->norm_head(backend, batch, a->x, w->final_norm, epsilon, &w->head, f->at, part, f->logits);
        f->at += part;
        return f->at == of;
    }
}

/* To the op behind the one that is over. */
static void fl_runner_next(const fl_weights *w, fl_forward *f) {
    f->at = 0;
    if (f->op == FL_OP_HEAD) {
        f->op = FL_OP_END;
    } else if (f->op != FL_OP_DOWN) {
        f->op = (fl_op)(f->op + 1);
    } else if (f->layer + 1 < w->config.n_layers) {
        f->layer++;
        f->op = FL_OP_QKV;
    } else {
        f->op = f->batch.n_wanted > 0 ? FL_OP_HEAD : FL_OP_END;
    }
}

FL_LOCAL bool fl_runner_advance(const fl_weights *w, fl_backend *backend, const fl_activations *a, fl_kv *kv,
                                fl_slice slice, fl_forward *f) {
    if (f->op == FL_OP_END) {
        backend->ops->end(backend, f->logits);
        f->op = FL_OP_DONE;
        return true;
    }
    if (fl_runner_one(w, backend, a, kv, slice, f)) {
        fl_runner_next(w, f);
    }
    if (slice.waits) {
        backend->ops->wait(backend);
    }
    return false;
}

FL_LOCAL void fl_runner_record(const fl_weights *w, fl_backend *backend, const fl_activations *a, fl_kv *kv,
                               const fl_batch *batch) {
    fl_forward f = {.batch = *batch};
    fl_slice whole = {w->config.n_kv_heads, w->head.n_rows, false};
    backend->ops->embed(backend, &w->embedding, batch, a->x);
    while (f.op != FL_OP_END) {
        fl_runner_one(w, backend, a, kv, whole, &f);
        fl_runner_next(w, &f);
    }
}
