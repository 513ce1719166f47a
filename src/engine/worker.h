/* The worker: one device with its share of the memory (KV cache, activations), ready to run batches. It knows
 * nothing of requests. */
#ifndef FL_WORKER_H
#define FL_WORKER_H

#include "model/runner.h"
#include "model/upload.h"
#include "ops/cpu.h"

typedef struct fl_worker_options {
    uint32_t n_pages, n_rows, n_threads, context, rank; /* rank: of adapters, at most */
    uint32_t device; /* 0: the CPU; else a CUDA device, from 1 on */
    uint32_t n_wanted; /* rows of logits of a batch, at most */
    uint32_t n_kept;   /* places for rows of logits */
    void *device_stream; /* NULL: its own */
    folollm_floats floats;
    folollm_kv_type kv;
    const fl_kernels *kernels;
    bool float_activations;
} fl_worker_options;

/* A block of the KV cache of a device, for a moment on the host. */
typedef struct fl_visit {
    uint8_t *bytes;
    uint8_t *of; /* where it lies on the device; NULL: none is here */
    bool changed;
} fl_visit;

typedef struct fl_worker {
    const fl_weights *weights; /* on the host */
    const fl_weights *bound;   /* as the backend reads them: the same, or where they are on its device */
    fl_backend *backend;
    fl_pool *pool;      /* NULL with a device: there the calling thread does what is left */
    fl_cpu_backend cpu; /* with a device, for nothing but a look at logits */
    fl_cuda cuda;       /* device NULL: there is none */
    fl_cuda_backend on_cuda;
    fl_rope rope;
    fl_activations activations;
    fl_kv kv;
    fl_visit visit;
    fl_forward forward; /* the batch that is being run */
    fl_arena scratch, device_scratch, cache; /* cache: of the device if there is one */
} fl_worker;

/* Lay out, dry or real: its arenas count or get their memory. */
FL_LOCAL void fl_worker_layout(fl_worker *w, const fl_weights *weights, const fl_worker_options *o);

/* After a dry layout: allocate and start. upload: the weights on the device, if there is one. On failure
 * fl_worker_close gives everything back. */
FL_LOCAL folollm_status fl_worker_open(fl_memory *m, fl_worker *w, const fl_worker_options *o, const fl_upload *upload,
                                       folollm_error *error);
FL_LOCAL void fl_worker_close(fl_memory *m, fl_worker *w);

/* Begin a batch, and run its next op (true: the last); see fl_runner_begin and fl_runner_advance. */
FL_LOCAL void fl_worker_begin(fl_worker *w, const fl_batch *batch, float *logits);
FL_LOCAL bool fl_worker_advance(fl_worker *w, fl_slice slice);

/* After the last op of a batch and before its end: begin the next one behind it, see ops.h. When the first is over,
 * resume lets this one be run to its end. */
FL_LOCAL bool fl_worker_ahead(fl_worker *w, const fl_batch *batch);
FL_LOCAL void fl_worker_resume(fl_worker *w, const fl_batch *batch, float *logits);

/* Return when what was begun has been done. */
FL_LOCAL void fl_worker_wait(fl_worker *w);

/* Ops as a whole. */
FL_LOCAL fl_slice fl_worker_whole(const fl_worker *w);

/* These ids (n), in order, are never chosen by the backend. Fails as fl_worker_status. */
FL_LOCAL void fl_worker_ban(fl_worker *w, const folollm_token *ids, size_t n);

/* Where the backend chooses: keep n rows, from row i on, of the logits of the last batch at places from `place` on, all
 * below n_kept, and bring what is kept at one, (vocab). Both fail as fl_worker_status. */
FL_LOCAL void fl_worker_keep(fl_worker *w, size_t i, size_t n, size_t place);
FL_LOCAL void fl_worker_kept(fl_worker *w, size_t place, float *logits);

/* Copy the keys and values of one page over another's. */
FL_LOCAL void fl_worker_copy_page(fl_worker *w, uint32_t from, uint32_t to);

/* An adapter that was loaded, to where the backend reads it, and back: no sequence has it. */
FL_LOCAL folollm_status fl_worker_bind(fl_worker *w, fl_adapter *a, folollm_error *error);
FL_LOCAL void fl_worker_unbind(fl_worker *w, fl_adapter *a);

/* Did something fail since fl_worker_status was asked? It says what; then nothing of the batch counts. A CPU does not
 * fail. */
FL_LOCAL bool fl_worker_failed(const fl_worker *w);
FL_LOCAL folollm_status fl_worker_status(fl_worker *w, folollm_error *error);

/* The block of [layer][kv_head][page] of K, or of V, that begins at `at`, to be read or, changes, to be written whole.
 * It stays until the next call; after the last, fl_worker_leave. */
FL_LOCAL uint8_t *fl_worker_visit(fl_worker *w, bool is_v, size_t at, bool changes);
FL_LOCAL void fl_worker_leave(fl_worker *w);

#endif
