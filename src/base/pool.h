/* The thread pool: one parallel loop at a time, handed out task by task, over our own threads or the host's.
 *
 * A loop has n tasks; each worker slot takes the next one until none is left, so slow cores take fewer. Which slot
 * runs a task never changes a result: a slot only says whose scratch memory may be used. */
#ifndef FL_POOL_H
#define FL_POOL_H

#include "base/os.h"

typedef struct fl_pool fl_pool;

/* slot < the pool's n_slots, and no two calls at the same time have the same one. */
typedef void fl_task(void *context, size_t task, size_t slot);

/* n_slots threads compute, the caller among them; with the host's parallel_for no thread is made. Lives in memory
 * of its own; NULL in *out for one slot. */
FL_LOCAL folollm_status fl_pool_open(fl_memory *m, uint32_t n_slots, fl_pool **out, folollm_error *error);
FL_LOCAL void fl_pool_close(fl_memory *m, fl_pool *pool);
FL_LOCAL uint64_t fl_pool_bytes(uint32_t n_slots);

/* Returns when all n tasks are done. */
FL_LOCAL void fl_pool_run(fl_pool *pool, size_t n, fl_task *task, void *context);

#endif
