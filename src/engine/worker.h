/* The worker: one device with its share of the memory (KV cache, activations), ready to run batches. It knows
 * nothing of requests. */
#ifndef FL_WORKER_H
#define FL_WORKER_H

#include "model/runner.h"
#include "ops/cpu.h"

typedef struct fl_worker_options {
    uint32_t n_pages, n_rows, n_threads, context, rank; /* rank: of adapters, at most */
    folollm_kv_type kv;
    const fl_kernels *kernels;
    bool float_activations;
} fl_worker_options;

typedef struct fl_worker {
    const fl_weights *weights;
    fl_pool *pool;
    fl_cpu_backend cpu;
    fl_rope rope;
    fl_activations activations;
    fl_kv kv;
    fl_forward forward; /* the batch that is being run */
    fl_arena scratch, cache;
} fl_worker;

/* Lay out, dry or real: w->scratch and w->cache count or get their memory. */
FL_LOCAL void fl_worker_layout(fl_worker *w, const fl_weights *weights, const fl_worker_options *o);

/* After a dry layout: allocate and start. On failure fl_worker_close gives everything back. */
FL_LOCAL folollm_status fl_worker_open(fl_memory *m, fl_worker *w, const fl_worker_options *o, folollm_error *error);
FL_LOCAL void fl_worker_close(fl_memory *m, fl_worker *w);

/* Begin a batch, and run its next op (true: the last); see fl_runner_begin and fl_runner_advance. */
FL_LOCAL void fl_worker_begin(fl_worker *w, const fl_batch *batch, float *logits);
FL_LOCAL bool fl_worker_advance(fl_worker *w, fl_slice slice);

/* Ops as a whole. */
FL_LOCAL fl_slice fl_worker_whole(const fl_worker *w);

/* Copy the keys and values of one page over another's. */
FL_LOCAL void fl_worker_copy_page(fl_worker *w, uint32_t from, uint32_t to);

#endif
