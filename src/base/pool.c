#include "base/pool.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <pthread.h>
#endif

/* A thread joins the loop that is open, if it sees it in time; the caller closes the loop when no task is left and
 * waits only for those that joined. So a thread that the system does not run, because the cores are busy with
 * something else, delays nothing.
 *
 *     state:  round (32 bits) | open (1) | threads in the loop (31)
 */
#define FL_POOL_OPEN (UINT64_C(1) << 31)
#define FL_POOL_ROUND (UINT64_C(1) << 32)

/* How long a thread looks for work before it sleeps: some 50 microseconds, longer than the gap between two loops of
 * one step, shorter than a host would notice. */
#define FL_SPINS 4000

#ifdef _WIN32
typedef HANDLE fl_thread;
typedef SRWLOCK fl_mutex;
typedef CONDITION_VARIABLE fl_condition;
#define fl_mutex_init(m) (InitializeSRWLock(m), true)
#define fl_mutex_free(m) ((void)(m))
#define fl_mutex_lock(m) AcquireSRWLockExclusive(m)
#define fl_mutex_unlock(m) ReleaseSRWLockExclusive(m)
#define fl_condition_init(c) (InitializeConditionVariable(c), true)
#define fl_condition_free(c) ((void)(c))
#define fl_condition_wait(c, m) SleepConditionVariableSRW(c, m, INFINITE, 0)
#define fl_condition_wake(c) WakeAllConditionVariable(c)
#else
typedef pthread_t fl_thread;
typedef pthread_mutex_t fl_mutex;
typedef pthread_cond_t fl_condition;
#define fl_mutex_init(m) (pthread_mutex_init(m, NULL) == 0)
#define fl_mutex_free(m) pthread_mutex_destroy(m)
#define fl_mutex_lock(m) pthread_mutex_lock(m)
#define fl_mutex_unlock(m) pthread_mutex_unlock(m)
#define fl_condition_init(c) (pthread_cond_init(c, NULL) == 0)
#define fl_condition_free(c) pthread_cond_destroy(c)
#define fl_condition_wait(c, m) pthread_cond_wait(c, m)
#define fl_condition_wake(c) pthread_cond_broadcast(c)
#endif

typedef struct fl_worker_thread {
    fl_pool *pool;
    size_t slot;
    fl_thread thread;
} fl_worker_thread;

struct fl_pool {
    const folollm_host *host; /* its parallel_for, if it has one */
    uint32_t n_slots, n_threads; /* n_threads: of our own that run */

    /* The loop that is running; written by the caller before `round` moves. */
    fl_task *task;
    void *context;
    size_t n_tasks;

    size_t next;    /* atomic: the task to take */
    uint64_t state; /* atomic: see above */
    bool stop;      /* atomic */

    fl_mutex mutex; /* guards sleeping: held while a sleeper tests the round, and while that moves */
    fl_condition wake;
    uint32_t n_asleep; /* under mutex */
    fl_worker_thread threads[]; /* (n_slots - 1) */
};

static void fl_pool_work(fl_pool *p, size_t slot) {
    for (;;) {
        size_t i = fl_atomic_add(&p->next, 1);
        if (i >= p->n_tasks) {
            return;
        }
        p->task(p->context, i, slot);
    }
}

/* Wait until the round is no longer `seen`: in a short loop, then asleep. Returns the state. */
static uint64_t fl_pool_await(fl_pool *p, uint64_t seen) {
    for (int i = 0; i < FL_SPINS; i++) {
        uint64_t state = fl_atomic_load(&p->state);
        if (state / FL_POOL_ROUND != seen) {
            return state;
        }
        fl_relax();
    }
    fl_mutex_lock(&p->mutex);
    p->n_asleep++;
    while (fl_atomic_load(&p->state) / FL_POOL_ROUND == seen) {
        fl_condition_wait(&p->wake, &p->mutex);
    }
    p->n_asleep--;
    fl_mutex_unlock(&p->mutex);
    return fl_atomic_load(&p->state);
}

static void fl_pool_thread(fl_worker_thread *self) {
    fl_pool *p = self->pool;
    uint64_t seen = 0;
    for (;;) {
        uint64_t state = fl_pool_await(p, seen);
        while ((state & FL_POOL_OPEN) != 0 && !fl_atomic_swap_if(&p->state, &state, state + 1)) {
        }
        seen = state / FL_POOL_ROUND;
        if ((state & FL_POOL_OPEN) != 0) {
            fl_pool_work(p, self->slot);
            fl_atomic_add(&p->state, (uint64_t)-1);
        } else if (fl_atomic_load(&p->stop)) { /* asked behind the round that is taken as seen: it may be the last */
            return;
        }
    }
}

/* Open the next round (open: to work; not: to look at `stop`). No thread is in the loop. */
static void fl_pool_next_round(fl_pool *p, uint64_t open) {
    fl_mutex_lock(&p->mutex);
    fl_atomic_store(&p->state, (fl_atomic_load(&p->state) / FL_POOL_ROUND + 1) * FL_POOL_ROUND + open);
    if (p->n_asleep > 0) {
        fl_condition_wake(&p->wake);
    }
    fl_mutex_unlock(&p->mutex);
}

#ifdef _WIN32
static DWORD WINAPI fl_thread_main(LPVOID self) {
    fl_pool_thread(self);
    return 0;
}

static bool fl_thread_start(fl_worker_thread *t) {
    t->thread = CreateThread(NULL, 0, fl_thread_main, t, 0, NULL);
    return t->thread != NULL;
}

static void fl_thread_join(fl_worker_thread *t) {
    WaitForSingleObject(t->thread, INFINITE);
    CloseHandle(t->thread);
}

static void fl_thread_yield(void) {
    SwitchToThread();
}
#else
#include <sched.h>

static void *fl_thread_main(void *self) {
    fl_pool_thread(self);
    return NULL;
}

static bool fl_thread_start(fl_worker_thread *t) {
    return pthread_create(&t->thread, NULL, fl_thread_main, t) == 0;
}

static void fl_thread_join(fl_worker_thread *t) {
    pthread_join(t->thread, NULL);
}

static void fl_thread_yield(void) {
    sched_yield();
}
#endif

FL_LOCAL uint64_t fl_pool_bytes(uint32_t n_slots) {
    return n_slots > 1 ? sizeof(fl_pool) + (n_slots - 1) * sizeof(fl_worker_thread) : 0;
}

FL_LOCAL folollm_status fl_pool_open(fl_memory *m, uint32_t n_slots, fl_pool **out, folollm_error *error) {
    *out = NULL;
    if (n_slots <= 1) {
        return FOLOLLM_OK;
    }
    size_t bytes = (size_t)fl_pool_bytes(n_slots);
    fl_pool *p = fl_alloc(m, bytes);
    if (p == NULL) {
        return fl_no_memory(error, "the thread pool", bytes);
    }
    p->n_slots = n_slots;
    p->host = m->host.parallel_for != NULL ? &m->host : NULL;
    if (p->host != NULL) {
        *out = p;
        return FOLOLLM_OK;
    }
    if (!fl_mutex_init(&p->mutex)) {
        fl_free(m, p, bytes);
        return fl_fail(error, FOLOLLM_E_MEMORY, "the system has no mutex for the thread pool");
    }
    if (!fl_condition_init(&p->wake)) {
        fl_mutex_free(&p->mutex);
        fl_free(m, p, bytes);
        return fl_fail(error, FOLOLLM_E_MEMORY, "the system has no condition variable for the thread pool");
    }
    for (uint32_t i = 0; i + 1 < n_slots; i++) {
        p->threads[i].pool = p;
        p->threads[i].slot = i + 1;
        if (!fl_thread_start(&p->threads[i])) {
            fl_pool_close(m, p);
            return fl_fail(error, FOLOLLM_E_MEMORY, "the system refused thread %u of %u: ask for fewer n_threads",
                           (uint64_t)i + 2, (uint64_t)n_slots);
        }
        p->n_threads++;
    }
    *out = p;
    return FOLOLLM_OK;
}

FL_LOCAL void fl_pool_close(fl_memory *m, fl_pool *p) {
    if (p == NULL) {
        return;
    }
    if (p->host == NULL) {
        fl_atomic_store(&p->stop, true);
        fl_pool_next_round(p, 0);
        for (uint32_t i = 0; i < p->n_threads; i++) {
            fl_thread_join(&p->threads[i]);
        }
        fl_condition_free(&p->wake);
        fl_mutex_free(&p->mutex);
    }
    fl_free(m, p, (size_t)fl_pool_bytes(p->n_slots));
}

static void fl_pool_host_task(void *pool, size_t slot) {
    fl_pool_work(pool, slot);
}

FL_LOCAL void fl_pool_run(fl_pool *p, size_t n, fl_task *task, void *context) {
    if (p == NULL || n <= 1) {
        for (size_t i = 0; i < n; i++) {
            task(context, i, 0);
        }
        return;
    }
    p->task = task;
    p->context = context;
    p->n_tasks = n;
    fl_atomic_store(&p->next, (size_t)0);
    if (p->host != NULL) {
        p->host->parallel_for(p->host->user, p->n_slots, fl_pool_host_task, p);
        return;
    }
    fl_pool_next_round(p, FL_POOL_OPEN);
    fl_pool_work(p, 0);
    uint64_t state = fl_atomic_and(&p->state, ~FL_POOL_OPEN);
    for (int i = 0; state % FL_POOL_OPEN != 0; i++) {
        if (i < FL_SPINS) {
            fl_relax();
        } else {
            fl_thread_yield(); /* more threads than cores: let the one that holds the last task run */
        }
        state = fl_atomic_load(&p->state);
    }
}
