/* bench_host.c - what the host does for a step of a device: planning, composing, choosing, text. The device is one
 * that does nothing and takes no time, and answers every request with tokens that count up.
 *
 *     make -C tests build/plain/bench/bench_host
 *     tests/build/plain/bench/bench_host MODEL
 *
 * Every row is the median of 5 runs; a step is one token of every request. */
#define _POSIX_C_SOURCE 199309L
#include "folollm.h"
#include "ops/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STEPS 200
#define RUNS 5
#define MOST 512

/* ---- A device that does nothing -- */

struct fl_device {
    int32_t next;
};

static const char *no_error(int error) {
    (void)error;
    return "nothing";
}

static int count_one(int *n) {
    *n = 1;
    return 0;
}

static int open_it(fl_device *d, int ordinal, void *stream) {
    (void)d, (void)ordinal, (void)stream;
    return 0;
}

static void close_it(fl_device *d) {
    (void)d;
}

static int about(fl_device *d, fl_device_info *info) {
    (void)d;
    memset(info, 0, sizeof *info);
    info->total_bytes = info->free_bytes = UINT64_C(1) << 40;
    info->shared_bytes = 200000;
    return 0;
}

static size_t attend_bytes(uint32_t queries, uint32_t head_dim) {
    return (size_t)queries * head_dim * 4;
}

static size_t product_bytes(const fl_device_rows *a) {
    return a->n_cols;
}

static int take(fl_device *d, size_t n, void **out) {
    (void)d;
    *out = malloc(n);
    return *out == NULL;
}

static void give(fl_device *d, void *p) {
    (void)d;
    free(p);
}

static int upload(fl_device *d, void *to, const void *from, size_t n) {
    (void)d, (void)to, (void)from, (void)n;
    return 0;
}

static int download(fl_device *d, void *to, const void *from, size_t n) {
    fl_device_chosen *chosen = to;
    (void)from;
    for (size_t i = 0; i < n / sizeof *chosen; i++) {
        fl_device_chosen c = {.token = d->next, .raw_total = 1, .total = 1};
        chosen[i] = c;
        d->next = (d->next + 1) % 200;
    }
    return 0;
}

static int copy(fl_device *d, void *to, const void *from, size_t pitch, size_t width, size_t height) {
    (void)d, (void)to, (void)from, (void)pitch, (void)width, (void)height;
    return 0;
}

static int nothing(fl_device *d) {
    (void)d;
    return 0;
}

static int step_of(fl_device *d, size_t step) {
    (void)d, (void)step;
    return 0;
}

#define DOES_NOTHING(name)                                        \
    static int name##_it(fl_device *d, const fl_device_##name *a) { \
        (void)d, (void)a;                                         \
        return 0;                                                 \
    }
DOES_NOTHING(pack)
DOES_NOTHING(embed)
DOES_NOTHING(rows)
DOES_NOTHING(product)
DOES_NOTHING(combine)
DOES_NOTHING(adapt)
DOES_NOTHING(angles)
DOES_NOTHING(rope)
DOES_NOTHING(attend)
DOES_NOTHING(choose)

const fl_device_api *folollm_kernels(void) {
    static fl_device_api api = {
        NULL, sizeof(fl_device), no_error, count_one, open_it, close_it, about, attend_bytes, product_bytes,
        take, give, take, give, upload, download, copy, nothing, step_of, step_of,
        pack_it, embed_it, rows_it, product_it, combine_it, adapt_it, angles_it, rope_it, attend_it, choose_it,
        nothing, step_of, step_of,
    };
    api.source_hash = folollm_source_hash();
    return &api;
}

/* ---- Steps -- */

static folollm_error error;

static void must(folollm_status status) {
    if (status != FOLOLLM_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Microseconds of a step of n requests with a sampler of `temperature`. */
static double one_run(folollm *f, uint32_t n, float temperature) {
    static folollm_event events[MOST];
    folollm_sampling sampling = {.temperature = temperature, .max_tokens = STEPS + 10, .ignore_eos = 1};
    folollm_token prompt[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    double from = 0, took = 0;
    for (uint32_t i = 0; i < n; i++) {
        folollm_seq seq;
        folollm_submission s = {.prompt = prompt, .n_prompt = 8, .sampling = &sampling, .no_prefix_cache = 1};
        must(folollm_submit(f, &s, &seq, &error));
    }
    uint64_t tokens = 0, steps = 0;
    for (size_t room = MOST; tokens < (uint64_t)n * (STEPS + 10); room = MOST) {
        if (steps == 5) {
            from = now();
        }
        must(folollm_step(f, NULL, events, &room, &error));
        tokens += room;
        steps++;
        if (steps == STEPS + 5) {
            took = (now() - from) / STEPS * 1e6;
        }
    }
    return took;
}

int main(int argc, char **argv) {
    static const uint32_t sizes[] = {1, 8, 32, 128, 256, 512};
    folollm_options o = {.context = 512, .pool_tokens = MOST * 256, .chunk = MOST * 8, .max_requests = MOST,
                         .max_running = MOST, .device = 1};
    folollm *f = NULL;
    if (argc != 2) {
        fprintf(stderr, "usage: bench_host MODEL\n");
        return 2;
    }
    must(folollm_load(argv[1], &o, &f, &error));
    printf("| requests | us a step |\n|---|---|\n");
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        double times[RUNS];
        for (int run = 0; run < RUNS; run++) {
            times[run] = one_run(f, sizes[s], 1);
        }
        qsort(times, RUNS, sizeof *times, by_size);
        printf("| %u | %.1f |\n", (unsigned)sizes[s], times[RUNS / 2]);
    }
    folollm_free(f);
    return 0;
}
