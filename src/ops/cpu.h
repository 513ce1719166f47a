/* The CPU backend: ops.h over the kernels of one instruction set and a pool of threads. */
#ifndef FL_CPU_H
#define FL_CPU_H

#include "base/pool.h"
#include "ops/kernels.h"

typedef struct fl_cpu_backend {
    fl_backend base; /* first: an fl_backend * points here */
    const fl_kernels *kernels;
    fl_pool *pool;   /* not owned; NULL: the calling thread alone */
    uint32_t n_slots;
    size_t ahead;    /* bytes by which weights are fetched before their turn */
    bool streams;    /* but not if they are one stream through memory: fl_cpu in os.h */
    float *normed;   /* (n_rows, dim) padded */
    float *narrow;   /* (FL_PARTS_MAX, n_rows, rank) padded: rows times the a of their adapters */
    size_t narrow_rows, narrow_stride;
    fl_chunk8 *integers; /* (orders, chunks, rows of the batch) of the rows that meet packed weights */
    bool float_activations; /* packed weights are multiplied as floats, with floats */
    float *scratch;  /* (n_slots, slot_floats) */
    size_t slot_floats;
} fl_cpu_backend;

/* Lay out scratch memory for batches up to the limits (dry, then real). */
FL_LOCAL void fl_cpu_layout(fl_cpu_backend *cpu, fl_arena *arena, const fl_limits *limits, uint32_t n_slots);

FL_LOCAL void fl_cpu_init(fl_cpu_backend *cpu, const fl_kernels *kernels, fl_pool *pool);

#endif
