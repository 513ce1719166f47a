#include "engine/worker.h"

FL_LOCAL void fl_worker_layout(fl_worker *w, const fl_weights *weights, const fl_worker_options *o) {
    const fl_config *c = &weights->config;
    fl_limits limits = fl_runner_limits(c, o->n_rows);
    limits.packed = fl_weights_packed(weights);
    limits.rank = o->rank;
    limits.ordered = weights->ordered;
    w->weights = weights;
    fl_cpu_layout(&w->cpu, &w->scratch, &limits, o->n_threads);
    fl_activations_layout(&w->activations, &w->scratch, &limits);
    fl_rope_layout(&w->rope, &w->scratch, c);
    w->kv.type = o->kv;
    w->kv.n_layers = c->n_layers;
    w->kv.n_pages = o->n_pages;
    w->kv.n_kv_heads = c->n_kv_heads;
    w->kv.head_dim = c->head_dim;
    size_t layers = (size_t)c->n_layers * fl_kv_offset(&w->kv, 0, 1, 0); /* below 2^63: config.c bounds each factor */
    w->cache.raw = true; /* a slot is read only after it was written */
    w->kv.k = fl_take(&w->cache, o->n_pages, layers);
    w->kv.v = fl_take(&w->cache, o->n_pages, layers);
}

FL_LOCAL folollm_status fl_worker_open(fl_memory *m, fl_worker *w, const fl_worker_options *o,
                                       folollm_error *error) {
    FL_TRY(fl_arena_open(m, &w->scratch, "scratch memory", error));
    FL_TRY(fl_arena_open(m, &w->cache, "the KV cache", error));
    FL_TRY(fl_pool_open(m, o->n_threads, &w->pool, error));
    fl_worker_layout(w, w->weights, o);
    fl_cpu_init(&w->cpu, o->kernels, w->pool);
    w->cpu.float_activations = o->float_activations;
    fl_rope_init(&w->rope, &w->weights->config, o->context);
    return FOLOLLM_OK;
}

FL_LOCAL void fl_worker_close(fl_memory *m, fl_worker *w) {
    fl_pool_close(m, w->pool);
    fl_arena_close(m, &w->scratch);
    fl_arena_close(m, &w->cache);
}

FL_LOCAL void fl_worker_begin(fl_worker *w, const fl_batch *batch, float *logits) {
    fl_runner_begin(w->weights, &w->rope, &w->cpu.base, &w->activations, batch, logits, &w->forward);
}

FL_LOCAL bool fl_worker_advance(fl_worker *w, fl_slice slice) {
    return fl_runner_advance(w->weights, &w->cpu.base, &w->activations, &w->kv, slice, &w->forward);
}

FL_LOCAL fl_slice fl_worker_whole(const fl_worker *w) {
    fl_slice whole = {w->weights->config.n_kv_heads, w->weights->head.n_rows};
    return whole;
}

FL_LOCAL void fl_worker_copy_page(fl_worker *w, uint32_t from, uint32_t to) {
    size_t bytes = fl_kv_offset(&w->kv, 0, 1, 0);
    for (size_t layer = 0; layer < w->kv.n_layers; layer++) {
        size_t source = fl_kv_offset(&w->kv, layer, from, 0), target = fl_kv_offset(&w->kv, layer, to, 0);
        memcpy(w->kv.k + target, w->kv.k + source, bytes);
        memcpy(w->kv.v + target, w->kv.v + source, bytes);
    }
}
