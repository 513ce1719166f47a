#include "engine/worker.h"

static void fl_worker_layout_kv(fl_worker *w, const fl_worker_options *o) {
    const fl_config *c = &w->weights->config;
    w->kv.type = o->kv;
    w->kv.n_layers = c->n_layers;
    w->kv.n_pages = o->n_pages;
    w->kv.n_kv_heads = c->n_kv_heads;
    w->kv.head_dim = c->head_dim;
    size_t page_bytes = (size_t)c->n_layers * c->n_kv_heads * fl_kv_block_bytes(&w->kv); /* config.c has bounds */
    w->cache.raw = true; /* a slot is read only after it was written */
    w->kv.k = fl_take(&w->cache, o->n_pages, page_bytes);
    w->kv.v = fl_take(&w->cache, o->n_pages, page_bytes);
    if (o->device != 0) {
        w->visit.bytes = fl_take(&w->scratch, 1, fl_kv_block_bytes(&w->kv));
    }
}

FL_LOCAL void fl_worker_layout(fl_worker *w, const fl_weights *weights, const fl_worker_options *o) {
    const fl_config *c = &weights->config;
    fl_limits limits = fl_runner_limits(c, o->n_rows);
    limits.packed = fl_weights_packed(weights);
    limits.ordered = weights->ordered;
    limits.rank = o->rank;
    w->weights = weights;
    if (o->device != 0) {
        static const uint32_t pieces[] = {[FOLOLLM_FLOATS_SPLIT] = 2, [FOLOLLM_FLOATS_BF16] = 1};
        fl_cuda_options cuda = {limits, c->vocab, o->context, c->n_heads, o->n_wanted, o->n_kept, pieces[o->floats],
                                o->kv};
        fl_cuda_layout(&w->on_cuda, &w->device_scratch, &cuda);
        fl_activations_layout(&w->activations, &w->device_scratch, &limits, false);
    } else {
        fl_cpu_layout(&w->cpu, &w->scratch, &limits, o->n_threads);
        fl_activations_layout(&w->activations, &w->scratch, &limits, true);
    }
    fl_rope_layout(&w->rope, &w->scratch, c);
    fl_worker_layout_kv(w, o);
}

static folollm_status fl_worker_open_cpu(fl_memory *m, fl_worker *w, const fl_worker_options *o,
                                         folollm_error *error) {
    FL_TRY(fl_arena_open(m, &w->scratch, "scratch memory", error));
    FL_TRY(fl_arena_open(m, &w->cache, "the KV cache", error));
    FL_TRY(fl_pool_open(m, o->n_threads, &w->pool, error));
    fl_worker_layout(w, w->weights, o);
    w->bound = w->weights;
    w->backend = &w->cpu.base;
    return FOLOLLM_OK;
}

/* Steps are recorded once, for good. */
static folollm_status fl_worker_record(fl_worker *w, bool adapts, folollm_error *error) {
    fl_batch batch;
    while (fl_cuda_record_begin(&w->on_cuda, adapts, &batch)) {
        fl_runner_record(w->bound, w->backend, &w->activations, &w->kv, &batch);
        fl_cuda_record_end(&w->on_cuda, adapts);
    }
    return fl_cuda_status(&w->cuda, error);
}

static folollm_status fl_worker_open_cuda(fl_memory *m, fl_worker *w, const fl_worker_options *o,
                                          const fl_upload *upload, folollm_error *error) {
    FL_TRY(fl_cuda_open(m, &w->cuda, o->device - 1, o->device_stream, error));
    FL_TRY(fl_arena_open(m, &w->scratch, "scratch memory", error));
    FL_TRY(fl_cuda_arena_open(&w->cuda, &w->device_scratch, "activations", error));
    FL_TRY(fl_cuda_arena_open(&w->cuda, &w->cache, "the KV cache", error));
    fl_worker_layout(w, w->weights, o);
    w->bound = &upload->weights;
    w->backend = &w->on_cuda.base;
    FL_TRY(fl_cuda_start(&w->on_cuda, &w->cuda, error));
    return fl_worker_record(w, false, error);
}

FL_LOCAL folollm_status fl_worker_open(fl_memory *m, fl_worker *w, const fl_worker_options *o, const fl_upload *upload,
                                       folollm_error *error) {
    FL_TRY(o->device != 0 ? fl_worker_open_cuda(m, w, o, upload, error) : fl_worker_open_cpu(m, w, o, error));
    fl_cpu_init(&w->cpu, o->kernels, w->pool);
    w->cpu.float_activations = o->float_activations;
    fl_rope_init(&w->rope, &w->weights->config, o->context);
    if (o->device != 0) {
        fl_cuda_angles(&w->on_cuda, w->rope.frequencies, w->rope.scale);
    }
    return fl_worker_status(w, error);
}

FL_LOCAL void fl_worker_close(fl_memory *m, fl_worker *w) {
    if (w->cuda.device != NULL) { /* first: a copy that was not waited for may still go to memory of the host */
        fl_cuda_stop(&w->on_cuda);
        fl_cuda_arena_close(&w->cuda, &w->device_scratch);
        fl_cuda_arena_close(&w->cuda, &w->cache);
        fl_cuda_close(m, &w->cuda);
    }
    fl_pool_close(m, w->pool);
    fl_arena_close(m, &w->scratch);
    fl_arena_close(m, &w->cache);
}

FL_LOCAL void fl_worker_begin(fl_worker *w, const fl_batch *batch, float *logits) {
    fl_runner_begin(w->bound, &w->rope, w->backend, &w->activations, batch, logits, &w->forward);
}

FL_LOCAL bool fl_worker_advance(fl_worker *w, fl_slice slice) {
    return fl_runner_advance(w->bound, w->backend, &w->activations, &w->kv, slice, &w->forward);
}

FL_LOCAL bool fl_worker_ahead(fl_worker *w, const fl_batch *batch) {
    return w->backend->ops->ahead(w->backend, batch);
}

FL_LOCAL void fl_worker_resume(fl_worker *w, const fl_batch *batch, float *logits) {
    fl_forward started = {.batch = *batch, .logits = logits, .op = FL_OP_END};
    w->forward = started;
}

FL_LOCAL void fl_worker_wait(fl_worker *w) {
    w->backend->ops->wait(w->backend);
}

FL_LOCAL fl_slice fl_worker_whole(const fl_worker *w) {
    fl_slice whole = {w->weights->config.n_kv_heads, w->weights->head.n_rows, false};
    return whole;
}

FL_LOCAL void fl_worker_ban(fl_worker *w, const folollm_token *ids, size_t n) {
    if (w->cuda.device != NULL) {
        fl_cuda_ban(&w->on_cuda, ids, n);
    }
}

FL_LOCAL void fl_worker_keep(fl_worker *w, size_t i, size_t n, size_t place) {
    fl_cuda_keep(&w->on_cuda, i, n, place);
}

FL_LOCAL void fl_worker_kept(fl_worker *w, size_t place, float *logits) {
    fl_cuda_kept(&w->on_cuda, place, logits);
}

FL_LOCAL void fl_worker_copy_page(fl_worker *w, uint32_t from, uint32_t to) {
    const fl_kv *kv = &w->kv;
    size_t bytes = fl_kv_block_bytes(kv), source = from * bytes, target = to * bytes;
    size_t head = bytes * kv->n_pages, n_heads = kv->n_layers * kv->n_kv_heads;
    if (w->cuda.device != NULL) {
        fl_cuda_copy(&w->cuda, kv->k + target, kv->k + source, head, bytes, n_heads);
        fl_cuda_copy(&w->cuda, kv->v + target, kv->v + source, head, bytes, n_heads);
        return;
    }
    for (size_t at = 0; at < n_heads * head; at += head) {
        memcpy(kv->k + at + target, kv->k + at + source, bytes);
        memcpy(kv->v + at + target, kv->v + at + source, bytes);
    }
}

FL_LOCAL folollm_status fl_worker_bind(fl_worker *w, fl_adapter *a, folollm_error *error) {
    size_t n = (size_t)w->weights->config.n_layers * FL_LINEARS;
    if (w->cuda.device == NULL) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_cuda_upload_low_ranks(&w->cuda, &a->arena, a->low_ranks, n, &a->bound, error));
    folollm_status status = fl_worker_record(w, true, error);
    if (status != FOLOLLM_OK) {
        fl_worker_unbind(w, a);
    }
    return status;
}

FL_LOCAL void fl_worker_unbind(fl_worker *w, fl_adapter *a) {
    if (w->cuda.device != NULL && a->bound != a->low_ranks) {
        fl_worker_wait(w); /* a step that was begun in vain may still read it */
        fl_cuda_release(&w->cuda, a->bound);
    }
    a->bound = a->low_ranks;
}

FL_LOCAL bool fl_worker_failed(const fl_worker *w) {
    return w->cuda.error != 0;
}

FL_LOCAL folollm_status fl_worker_status(fl_worker *w, folollm_error *error) {
    return w->cuda.device != NULL ? fl_cuda_status(&w->cuda, error) : FOLOLLM_OK;
}

FL_LOCAL uint8_t *fl_worker_visit(fl_worker *w, bool is_v, size_t at, bool changes) {
    uint8_t *block = (is_v ? w->kv.v : w->kv.k) + at;
    if (w->cuda.device == NULL) {
        return block;
    }
    if (w->visit.of != block) {
        fl_worker_leave(w);
        w->visit.of = block;
        if (!changes) {
            fl_cuda_read(&w->cuda, w->visit.bytes, block, fl_kv_block_bytes(&w->kv));
        }
    }
    w->visit.changed = changes;
    return w->visit.bytes;
}

FL_LOCAL void fl_worker_leave(fl_worker *w) {
    if (w->visit.of != NULL && w->visit.changed) {
        fl_cuda_write(&w->cuda, w->visit.of, w->visit.bytes, fl_kv_block_bytes(&w->kv));
    }
    w->visit.of = NULL;
    w->visit.changed = false;
}
