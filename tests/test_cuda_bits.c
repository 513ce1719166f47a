/* The CUDA backend beside the CPU's: every op gives the same bits, and so do whole engines. Linked with
 * folollm_kernels.cu, compiled for this machine's processor over the runtime in cuda/ or, by `make device`, for a
 * device by nvcc. */
#include "inside.h"

#include "check.h"
#include "cuda/shim.h"
#include "demand.h"
#include "random.h"

#include <stdlib.h>

#define MODEL "examples/models/tiny-shakespeare"
#define MODELS "tests/vectors/models/"
#define BASE MODELS "qwen3-gqa-fp32" /* small, and what the adapters are for */
#define ADAPTERS "tests/vectors/adapters/"

#pragma weak shim_get_counts /* a device has none of these */
#pragma weak shim_set_order

/* ---- Random layers -- */

typedef struct layer_case {
    const char *name;
    uint32_t dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab;
    fl_dtype types[4]; /* of q and gate, k and up, v and o, down and embedding */
    folollm_kv_type kv;
    uint32_t window;
    bool bias, qk_norm, ordered;
} layer_case;

static uint8_t room[48u << 20];
static size_t room_used;

static void *take(size_t n) {
    void *p = room + room_used;
    room_used += (n + 63) / 64 * 64;
    if (room_used > sizeof room) {
        puts("the test's room is too small");
        exit(2);
    }
    return p;
}

static float *random_floats(size_t n, float size, float middle) {
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = middle + size * random_float();
    }
    return x;
}

/* A row before packing: any bits for the integers, and scales that are no larger than others' values. */
static void random_row(fl_dtype type, size_t n_cols, uint8_t *row) {
    float *x = random_floats(fl_units(n_cols) * FL_UNIT, 0.2f, 0);
    if (type == FL_F32) {
        memcpy(row, x, n_cols * sizeof *x);
    } else if (fl_is_plain(type)) {
        for (size_t i = 0; i < n_cols; i++) {
            uint16_t bits = type == FL_F16 ? fl_f16_of_float(x[i]) : fl_bf16_of_float(x[i]);
            memcpy(row + 2 * i, &bits, sizeof bits);
        }
    } else if (type == FL_Q4_ZERO) {
        random_zero_row(n_cols, false, row);
    } else {
        fl_quantise_row(type, x, n_cols, row);
    }
    room_used = (size_t)((uint8_t *)x - room);
}

static fl_part random_part(fl_dtype type, size_t n_rows, size_t n_cols, bool bias, const uint32_t *order) {
    size_t row_bytes = fl_row_bytes(type, n_cols);
    uint8_t *data = take(fl_matrix_bytes(type, n_rows, n_cols)), *panel = take(FL_PANEL * row_bytes);
    fl_part part = {data, n_rows, type, bias ? random_floats(n_rows, 0.1f, 0) : NULL,
                    fl_is_packed(type) ? order : NULL};
    for (size_t first = 0; first < n_rows; first += FL_PANEL) {
        size_t n = fl_min(n_rows - first, FL_PANEL);
        for (size_t r = 0; r < n; r++) {
            random_row(type, n_cols, fl_is_packed(type) ? panel + r * row_bytes : data + (first + r) * row_bytes);
        }
        if (fl_is_packed(type)) {
            fl_pack(type, panel, n, n_cols, data + first / FL_PANEL * fl_panel_bytes(type, n_cols));
        }
    }
    return part;
}

static const uint32_t *random_order(size_t n) {
    uint32_t *order = take(n * sizeof *order);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = random_below(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

static void add_part(fl_matrix *m, fl_part part, size_t n_cols) {
    m->n_cols = n_cols;
    m->n_rows += part.n_rows;
    m->parts[m->n_parts++] = part;
}

static fl_weights random_weights(const layer_case *c, fl_layer *l) {
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim, dim = c->dim;
    fl_weights w;
    memset(&w, 0, sizeof w);
    memset(l, 0, sizeof *l);
    const uint32_t *order = c->ordered ? random_order(dim) : NULL, *other = c->ordered ? random_order(dim) : NULL;
    w.config.dim = c->dim;
    w.config.n_heads = c->n_heads;
    w.config.n_kv_heads = c->n_kv_heads;
    w.config.head_dim = c->head_dim;
    w.config.ffn_dim = c->ffn_dim;
    w.config.vocab = c->vocab;
    w.config.n_layers = 1;
    w.config.tied = 1;
    w.layers = l;
    l->attention_norm = random_floats(dim, 0.3f, 1);
    l->mlp_norm = random_floats(dim, 0.3f, 1);
    w.final_norm = random_floats(dim, 0.3f, 1);
    add_part(&l->qkv, random_part(c->types[0], q, dim, c->bias, order), dim);
    add_part(&l->qkv, random_part(c->types[1], kv, dim, c->bias, other), dim);
    add_part(&l->qkv, random_part(c->types[2], kv, dim, c->bias, order), dim);
    add_part(&l->o, random_part(c->types[2], dim, q, c->bias, c->ordered ? random_order(q) : NULL), q);
    add_part(&l->gate_up, random_part(c->types[0], c->ffn_dim, dim, c->bias, order), dim);
    add_part(&l->gate_up, random_part(c->types[1], c->ffn_dim, dim, c->bias, order), dim);
    add_part(&l->down, random_part(c->types[3], dim, c->ffn_dim, c->bias, NULL), c->ffn_dim);
    add_part(&w.embedding, random_part(c->types[3], c->vocab, dim, false, NULL), dim);
    w.head = w.embedding;
    fl_attention *a = &l->attention;
    a->n_heads = c->n_heads;
    a->n_kv_heads = c->n_kv_heads;
    a->head_dim = c->head_dim;
    a->norm_epsilon = 1e-6f;
    a->scale = 0.3f;
    a->window = c->window;
    if (c->qk_norm) {
        a->q_norm = random_floats(c->head_dim, 0.3f, 1);
        a->k_norm = random_floats(c->head_dim, 0.3f, 1);
    }
    return w;
}

/* ---- Both sides -- */

#define ROWS_MAX 130
#define CONTEXT 256
#define SEQS 3

typedef struct side {
    const fl_weights *weights;
    fl_backend *backend;
    fl_activations a;
    fl_kv kv;
} side;

static fl_cpu_backend cpu;
static fl_cuda_backend cuda;
static fl_cuda device;
static fl_arena host_arena, device_arena;
static side sides[2]; /* CPU, CUDA */
static float frequencies[FL_DEVICE_HEAD_DIM / 2];
static fl_rope rope = {frequencies, 0, 0};
static uint32_t tables[SEQS][CONTEXT / FL_PAGE_TOKENS];

static void layout_side(side *s, fl_arena *arena, const layer_case *c, const fl_limits *limits) {
    fl_activations_layout(&s->a, arena, limits, s == &sides[0]);
    fl_kv kv = {c->kv, NULL, NULL, 1, SEQS * CONTEXT / FL_PAGE_TOKENS, c->n_kv_heads, c->head_dim};
    s->kv = kv;
    s->kv.k = fl_take(arena, 1, fl_kv_offset(&kv, 1, 0, 0));
    s->kv.v = fl_take(arena, 1, fl_kv_offset(&kv, 1, 0, 0));
}

static void layout_sides(const layer_case *c) {
    fl_limits limits = fl_runner_limits(&sides[0].weights->config, ROWS_MAX);
    for (int i = 0; i < 4; i++) {
        limits.packed = limits.packed || fl_is_packed(c->types[i]);
    }
    limits.ordered = c->ordered;
    fl_cuda_options o = {.limits = limits, .vocab = c->vocab, .context = CONTEXT, .n_heads = c->n_heads,
                         .n_wanted = ROWS_MAX};
    fl_cpu_layout(&cpu, &host_arena, &limits, 1);
    layout_side(&sides[0], &host_arena, c, &limits);
    fl_cuda_layout(&cuda, &device_arena, &o);
    layout_side(&sides[1], &device_arena, c, &limits);
}

static void open_sides(const layer_case *c, fl_upload *upload, const fl_weights *w) {
    memset(&host_arena, 0, sizeof host_arena);
    memset(&device_arena, 0, sizeof device_arena);
    memset(&cpu, 0, sizeof cpu);
    memset(&cuda, 0, sizeof cuda);
    memset(upload, 0, sizeof *upload);
    upload->arena.at = 16u << 20; /* more than any of them takes */
    demand(fl_upload_open(&memory, upload, w, 0, &error));
    sides[0].weights = w;
    sides[1].weights = &upload->weights;
    layout_sides(c);
    demand(fl_cuda_open(&memory, &device, 0, NULL, &error));
    demand(fl_arena_open(&memory, &host_arena, "a test", &error));
    demand(fl_cuda_arena_open(&device, &device_arena, "a test", &error));
    layout_sides(c);
    fl_cpu_init(&cpu, fl_kernels_of(FOLOLLM_ISA_SCALAR), NULL);
    demand(fl_cuda_start(&cuda, &device, &error));
    sides[0].backend = &cpu.base;
    sides[1].backend = &cuda.base;
    rope.half = c->head_dim / 2;
    rope.scale = random_float();
    for (size_t i = 0; i < rope.half; i++) {
        frequencies[i] = (i % 3 == 0 ? 1e5f : 2.0f) * random_float(); /* and below 0, which no model has */
    }
    fl_cuda_angles(&cuda, frequencies, rope.scale);
    for (uint32_t i = 0; i < SEQS * CONTEXT / FL_PAGE_TOKENS; i++) { /* pages of all in one another */
        tables[i % SEQS][i / SEQS] = i * 7 % (SEQS * CONTEXT / FL_PAGE_TOKENS);
    }
}

static void close_sides(fl_upload *upload) {
    fl_cuda_stop(&cuda);
    fl_cuda_arena_close(&device, &device_arena);
    fl_cuda_close(&memory, &device);
    fl_upload_close(&memory, upload);
    fl_arena_close(&memory, &host_arena);
}

/* Rows of floats of both sides, n of each. */
static int rows_are_equal(const float *of_cpu, const float *of_cuda, size_t n_rows, size_t n, size_t stride) {
    float *copy = take(n_rows * stride * sizeof *copy);
    int equal = 1;
    fl_cuda_read(&device, copy, of_cuda, n_rows * stride * sizeof *copy);
    for (size_t r = 0; r < n_rows; r++) {
        equal = equal && memcmp(copy + r * stride, of_cpu + r * stride, n * sizeof *copy) == 0;
    }
    room_used = (size_t)((uint8_t *)copy - room);
    return equal;
}

/* The cache's rows in the slots of a batch. */
static int kv_is_equal(const fl_batch *batch) {
    const fl_kv *kv = &sides[0].kv;
    size_t block_bytes = fl_kv_block_bytes(kv), n = fl_kv_row_bytes(kv);
    uint8_t *block = take(block_bytes), *a = take(n), *b = take(n);
    int equal = 1;
    for (size_t i = 0; i < batch->n_rows * kv->n_kv_heads * 2; i++) {
        uint32_t slot = batch->slots[i / (2 * kv->n_kv_heads)];
        bool is_v = i % 2 == 1;
        size_t at = fl_kv_offset(kv, 0, i / 2 % kv->n_kv_heads, slot / FL_PAGE_TOKENS);
        fl_cuda_read(&device, block, (is_v ? sides[1].kv.v : sides[1].kv.k) + at, block_bytes);
        fl_kv_copy_row(kv, is_v, block, slot % FL_PAGE_TOKENS, a, false);
        fl_kv_copy_row(kv, is_v, (is_v ? kv->v : kv->k) + at, slot % FL_PAGE_TOKENS, b, false);
        equal = equal && memcmp(a, b, n) == 0;
    }
    room_used = (size_t)(block - room);
    return equal;
}

/* Packed weights meet many rows on tensor cores, and else nothing does; since the last call. */
static int cores_are_used(const fl_matrix *w, size_t n_rows) {
    static uint64_t before;
    uint64_t now = shim_get_counts != NULL ? shim_get_counts().products : 0, n = now - before;
    bool packed = false;
    for (size_t i = 0; i < w->n_parts; i++) {
        packed = packed || fl_is_packed(w->parts[i].type);
    }
    before = now;
    return shim_get_counts == NULL || (n > 0) == (packed && n_rows > 16);
}

/* Kernels that were started since the last call. */
static uint64_t kernels_started(void) {
    static uint64_t before;
    uint64_t now = shim_get_counts != NULL ? shim_get_counts().kernels : 0, n = now - before;
    before = now;
    return n;
}

/* Was that a product of w and nothing else? Parts that are alike are one kernel, and few rows are made ready there; of
 * more, others norm them and make integers, one for each order of columns. */
static int kernels_are_few(const fl_matrix *w, bool norm, bool is_gate_up, size_t n_rows) {
    uint64_t products = 0, orders = 0, n = kernels_started();
    for (size_t i = 0; i < w->n_parts; i++) {
        const fl_part *part = &w->parts[i];
        bool is_new = fl_is_packed(part->type);
        for (size_t j = 0; j < i; j++) {
            is_new = is_new && !(fl_is_packed(w->parts[j].type) && w->parts[j].order == part->order);
        }
        orders += is_new;
        products += i == 0 || part->type != part[-1].type || part->order != part[-1].order;
    }
    products += is_gate_up && products == 2; /* and what brings them together */
    bool fused = n_rows <= FL_DEVICE_FUSED_ROWS && device.info.shared_bytes > 0;
    return shim_get_counts == NULL || n == products + (fused ? 0 : fl_max(orders, norm));
}

/* The CPU wants those of the rows. */
static void take_angles(const layer_case *c, const fl_batch *batch) {
    for (size_t row = 0; row < batch->n_rows; row++) {
        fl_rope_angles(&rope, batch->positions[row], sides[0].a.angles + row * c->head_dim);
    }
}

/* Every op of a layer on both sides; each must leave the same bits. */
static void check_ops(const layer_case *c, const fl_batch *batch) {
    size_t d = c->head_dim, qkv = (size_t)(c->n_heads + 2 * c->n_kv_heads) * d, q = (size_t)c->n_heads * d;
    size_t n = batch->n_rows, vocab = c->vocab;
    const fl_layer *layer = &sides[0].weights->layers[0];
    float *logits[2] = {take(n * vocab * sizeof(float)), take(n * vocab * sizeof(float))};
#define BOTH(call)                                                     \
    for (side *s = sides; s < sides + 2; s++) {                        \
        const fl_ops *ops = s->backend->ops;                           \
        const fl_layer *l = &s->weights->layers[0];                    \
        (void)l;                                                       \
        call;                                                          \
    }
    take_angles(c, batch);
    BOTH(CHECK(!ops->begin(s->backend, batch)))
    BOTH(ops->embed(s->backend, &s->weights->embedding, batch, s->a.x))
    CHECK_TEXT(rows_are_equal(sides[0].a.x, sides[1].a.x, n, c->dim, fl_padded(c->dim)), "embed");
    kernels_started();
    BOTH(ops->norm_qkv(s->backend, batch, s->a.x, l->attention_norm, 1e-5f, &l->qkv, s->a.qkv))
    CHECK_TEXT(rows_are_equal(sides[0].a.qkv, sides[1].a.qkv, n, qkv, fl_padded(qkv)), "norm_qkv");
    CHECK(cores_are_used(&layer->qkv, n));
    CHECK(kernels_are_few(&layer->qkv, true, false, n));
    BOTH(ops->rope_store(s->backend, &l->attention, batch, s->a.angles, &s->kv, 0, s->a.qkv))
    CHECK_TEXT(rows_are_equal(sides[0].a.qkv, sides[1].a.qkv, n, q, fl_padded(qkv)), "rope_store: queries");
    CHECK_TEXT(kv_is_equal(batch), "rope_store: keys and values");
    for (size_t head = 0, part; head < c->n_kv_heads; head += part) {
        part = fl_min(1 + random_below(2), c->n_kv_heads - head);
        BOTH(ops->attend(s->backend, &l->attention, batch, &s->kv, 0, head, part, s->a.qkv, s->a.attended))
    }
    CHECK_TEXT(rows_are_equal(sides[0].a.attended, sides[1].a.attended, n, q, fl_padded(q)), "attend");
    kernels_started();
    BOTH(ops->project_add(s->backend, batch, s->a.attended, &l->o, s->a.x))
    CHECK_TEXT(rows_are_equal(sides[0].a.x, sides[1].a.x, n, c->dim, fl_padded(c->dim)), "project_add: o");
    CHECK(cores_are_used(&layer->o, n));
    CHECK(kernels_are_few(&layer->o, false, false, n));
    BOTH(ops->norm_gate_up(s->backend, batch, s->a.x, l->mlp_norm, 1e-5f, &l->gate_up, s->a.h))
    CHECK_TEXT(rows_are_equal(sides[0].a.h, sides[1].a.h, n, c->ffn_dim, fl_padded(c->ffn_dim)), "norm_gate_up");
    CHECK(cores_are_used(&layer->gate_up, n));
    CHECK(kernels_are_few(&layer->gate_up, true, true, n));
    BOTH(ops->project_add(s->backend, batch, s->a.h, &l->down, s->a.x))
    CHECK_TEXT(rows_are_equal(sides[0].a.x, sides[1].a.x, n, c->dim, fl_padded(c->dim)), "project_add: down");
    CHECK(cores_are_used(&layer->down, n));
    CHECK(kernels_are_few(&layer->down, false, false, n));
    BOTH(ops->norm_head(s->backend, batch, s->a.x, s->weights->final_norm, 1e-5f, &s->weights->head, 0, 32,
                        logits[s - sides]))
    CHECK(kernels_are_few(&sides[0].weights->head, true, false, batch->n_wanted));
    BOTH(ops->norm_head(s->backend, batch, s->a.x, s->weights->final_norm, 1e-5f, &s->weights->head, 32, vocab - 32,
                        logits[s - sides]))
    BOTH(ops->end(s->backend, logits[s - sides]))
    CHECK_TEXT(memcmp(logits[0], logits[1], batch->n_wanted * vocab * sizeof(float)) == 0, "norm_head");
    CHECK(cores_are_used(&sides[0].weights->head, batch->n_wanted));
    CHECK(fl_cuda_status(&device, &error) == FOLOLLM_OK);
#undef BOTH
}

/* A whole forward pass on both sides; on the device it is a recorded step. */
static void check_step(const layer_case *c, const fl_batch *batch) {
    size_t q = (size_t)c->n_heads * c->head_dim, n = batch->n_rows, n_logits = batch->n_wanted * c->vocab;
    float *logits[2] = {take(n_logits * sizeof(float)), take(n_logits * sizeof(float))};
    fl_slice whole = {c->n_kv_heads, c->vocab, false};
    take_angles(c, batch);
    for (side *s = sides; s < sides + 2; s++) {
        fl_forward f = {.batch = *batch, .logits = logits[s - sides]};
        bool recorded = s->backend->ops->begin(s->backend, batch);
        CHECK(recorded == (s == &sides[1]));
        if (recorded) {
            f.op = FL_OP_END;
        } else {
            s->backend->ops->embed(s->backend, &s->weights->embedding, batch, s->a.x);
        }
        while (!fl_runner_advance(s->weights, s->backend, &s->a, &s->kv, whole, &f)) {
        }
    }
    CHECK_TEXT(rows_are_equal(sides[0].a.attended, sides[1].a.attended, n, q, fl_padded(q)), "step: attend");
    CHECK_TEXT(kv_is_equal(batch), "step: keys and values");
    CHECK_TEXT(memcmp(logits[0], logits[1], n_logits * sizeof(float)) == 0, "step: logits");
    CHECK(fl_cuda_status(&device, &error) == FOLOLLM_OK);
}

/* A batch of so many rows of each sequence, from where it stands. */
static void check_batch(const layer_case *c, uint32_t positions[SEQS], const uint32_t n[SEQS],
                        void (*check)(const layer_case *, const fl_batch *)) {
    folollm_token tokens[ROWS_MAX];
    uint32_t at[ROWS_MAX], slots[ROWS_MAX], wanted[ROWS_MAX];
    fl_run runs[SEQS];
    fl_batch batch = {0, tokens, at, slots, runs, 0, wanted, 0};
    for (uint32_t s = 0; s < SEQS; s++) {
        if (n[s] > 0) {
            fl_run run = {batch.n_rows, n[s], positions[s], tables[s], NULL};
            runs[batch.n_runs++] = run;
        }
        for (uint32_t i = 0; i < n[s]; i++, batch.n_rows++) {
            uint32_t p = positions[s] + i;
            tokens[batch.n_rows] = (folollm_token)random_below(c->vocab);
            at[batch.n_rows] = p;
            slots[batch.n_rows] = tables[s][p / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + p % FL_PAGE_TOKENS;
            if (i + 1 == n[s] || (n[s] != 7 && random_below(3) != 0)) { /* of seven, few */
                wanted[batch.n_wanted++] = (uint32_t)batch.n_rows;
            }
        }
        positions[s] += n[s];
    }
    check(c, &batch);
}

/* Steps that are recorded, of rows at positions that all have keys before them: the first key of a split, the last
 * one, and a row with one split beside rows with several. Whichever block of threads is the last, bits stay. */
static void check_steps(const layer_case *c) {
    static const uint32_t steps[][2][SEQS] = {{{1, 0, 0}, {156, 0, 0}}, {{1, 1, 1}, {157, 64, 127}},
                                              {{1, 1, 1}, {0, 63, 128}}, {{0, 1, 0}, {0, 9, 0}},
                                              {{1, 0, 1}, {64, 0, 5}},   {{0, 0, 1}, {0, 0, 134}}};
    fl_batch batch;
    while (fl_cuda_record_begin(&cuda, false, &batch)) {
        fl_runner_record(sides[1].weights, sides[1].backend, &sides[1].a, &sides[1].kv, &batch);
        fl_cuda_record_end(&cuda, false);
    }
    demand(fl_cuda_status(&device, &error));
    size_t used = room_used;
    for (size_t i = 0; i < FL_COUNT(steps); i++) {
        uint32_t positions[SEQS];
        memcpy(positions, steps[i][1], sizeof positions);
        room_used = used;
        if (shim_set_order != NULL) {
            shim_set_order(i);
        }
        check_batch(c, positions, steps[i][0], check_step);
    }
    if (shim_set_order != NULL) {
        shim_set_order(0);
    }
}

/* The last row of n is not finite: it gives no numbers, and the others what they give without it. */
static void check_broken(const layer_case *c, uint32_t n) {
    size_t qkv = (size_t)(c->n_heads + 2 * c->n_kv_heads) * c->head_dim, stride = fl_padded(c->dim), n_broken = 0;
    folollm_token tokens[ROWS_MAX] = {0};
    uint32_t zeros[ROWS_MAX] = {0};
    fl_run run = {0, n, 0, tables[0], NULL};
    fl_batch batch = {n, tokens, zeros, zeros, &run, 1, zeros, 1, NULL, NULL};
    float *x = random_floats(n * stride, 1, 0), *last = take(qkv * sizeof *last);
    x[(n - 1) * stride + c->dim / 2] = INFINITY;
    memcpy(sides[0].a.x, x, n * stride * sizeof *x);
    fl_cuda_write(&device, sides[1].a.x, x, n * stride * sizeof *x);
    for (side *s = sides; s < sides + 2; s++) {
        const fl_layer *l = &s->weights->layers[0];
        s->backend->ops->begin(s->backend, &batch);
        s->backend->ops->norm_qkv(s->backend, &batch, s->a.x, l->attention_norm, 1e-5f, &l->qkv, s->a.qkv);
    }
    CHECK(rows_are_equal(sides[0].a.qkv, sides[1].a.qkv, n - 1, qkv, fl_padded(qkv)));
    fl_cuda_read(&device, last, sides[1].a.qkv + (n - 1) * fl_padded(qkv), qkv * sizeof *last);
    for (size_t i = 0; i < qkv; i++) {
        n_broken += isnan(last[i]) && isnan(sides[0].a.qkv[(n - 1) * fl_padded(qkv) + i]);
    }
    CHECK(n_broken == qkv);
}

static void test_layer(const layer_case *c) {
    static const uint32_t batches[][SEQS] = {{5, 0, 0}, {1, 0, 0}, {1, 3, 0}, {1, 1, 62}, {98, 1, 1},
                                             {1, 1, 1}, {17, 0, 0}, {2, 1, 30}, {30, 60, 40}, {2, 0, 0},
                                             {0, 1, 1}, {7, 0, 0}, {7, 7, 0}, {0, 1, 0}, {1, 0, 1}};
    uint32_t positions[SEQS] = {0};
    unsigned failed = check_n_failed;
    fl_upload upload;
    fl_layer layer;
    room_used = 0;
    fl_weights w = random_weights(c, &layer);
    open_sides(c, &upload, &w);
    size_t used = room_used;
    uint64_t shared_bytes = device.info.shared_bytes;
    for (size_t i = 0; i < FL_COUNT(batches); i++) {
        room_used = used;
        device.info.shared_bytes = i + 2 < FL_COUNT(batches) ? shared_bytes : 0; /* no room for rows */
        check_batch(c, positions, batches[i], check_ops);
    }
    device.info.shared_bytes = shared_bytes;
    for (uint32_t n = 1; n <= 3; n++) {
        room_used = used;
        check_broken(c, n);
    }
    room_used = used;
    check_steps(c);
    close_sides(&upload);
    if (check_n_failed != failed) {
        printf("    in %s\n", c->name);
    }
}

static const layer_case layers[] = {
    {"bf16", 144, 4, 2, 32, 200, 80, {FL_BF16, FL_BF16, FL_BF16, FL_BF16}, FOLOLLM_KV_F16, 0, false, true, false},
    {"f16, f32", 136, 3, 1, 24, 136, 100, {FL_F16, FL_F16, FL_F32, FL_F32}, FOLOLLM_KV_F32, 50, true, false, false},
    {"q8", 160, 4, 4, 16, 96, 65, {FL_Q8_0, FL_Q8_0, FL_Q8_0, FL_Q8_0}, FOLOLLM_KV_BF16, 0, false, false, false},
    {"q8_row", 100, 6, 2, 20, 300, 64, {FL_Q8_ROW, FL_Q8_ROW, FL_Q8_ROW, FL_Q8_ROW}, FOLOLLM_KV_Q8, 0, true, true,
     false},
    {"q4", 256, 5, 1, 64, 512, 70, {FL_Q4_0, FL_Q4_0, FL_Q4_0, FL_Q6_K}, FOLOLLM_KV_Q4, 100, false, false, false},
    {"q4_zero, ordered", 96, 2, 1, 128, 128, 70, {FL_Q4_ZERO, FL_Q4_ZERO, FL_Q8_0, FL_BF16}, FOLOLLM_KV_Q4, 0, false,
     true, true},
    {"q4_k, q5_k, q6_k", 256, 2, 2, 128, 512, 64, {FL_Q4_K, FL_Q5_K, FL_Q6_K, FL_Q6_K}, FOLOLLM_KV_Q8, 0, true, false,
     false},
    {"bf16, q8, f32", 160, 4, 2, 32, 96, 64, {FL_BF16, FL_Q8_0, FL_Q8_0, FL_F32}, FOLOLLM_KV_F16, 0, false, false,
     false},
    {"f16, q8 in orders", 96, 4, 2, 32, 96, 64, {FL_F16, FL_Q8_0, FL_Q4_ZERO, FL_BF16}, FOLOLLM_KV_F16, 0, true, false,
     true},
    {"q4_k", 512, 2, 1, 256, 256, 64, {FL_Q4_K, FL_Q4_K, FL_Q4_K, FL_Q4_K}, FOLOLLM_KV_F16, 70, false, false, false},
    {"q6_k", 256, 2, 1, 36, 256, 80, {FL_Q6_K, FL_Q6_K, FL_Q8_0, FL_Q6_K}, FOLOLLM_KV_F32, 0, true, false, false},
    {"q5_k, many heads", 256, 20, 1, 64, 256, 64, {FL_Q5_K, FL_Q5_K, FL_BF16, FL_Q5_K}, FOLOLLM_KV_BF16, 0, false,
     false, false},
    {"q4_zero, q8_row, wide", 6501, 3, 1, 22, 77, 64, {FL_Q4_ZERO, FL_Q4_ZERO, FL_Q8_ROW, FL_Q4_0}, FOLOLLM_KV_F16, 0,
     true, false, true},
};

/* ---- Whole engines -- */

#define LENGTH 70

typedef struct text { /* what an engine gives for one prompt */
    float *logits; /* (LENGTH, vocab) */
    uint32_t vocab;
} text;

static folollm *open_model(const char *path, folollm_options o) {
    folollm *f = NULL;
    o.context = 80;
    o.pool_tokens = 640;
    o.n_threads = 1;
    demand(folollm_load(path, &o, &f, &error));
    return f;
}

static folollm *open_engine(folollm_options o) {
    return open_model(BASE, o);
}

static void prompt_of(folollm_token *ids, size_t n, uint32_t vocab) {
    for (size_t i = 0; i < n; i++) {
        ids[i] = (folollm_token)(fl_mix(i + 77) % vocab);
    }
}

/* Logits at every position: `first` by prefill, the others by decode steps beside another sequence. */
static text write_text(folollm *f, size_t first) {
    folollm_info info;
    folollm_token ids[LENGTH], both[2];
    folollm_seq seqs[2];
    folollm_get_info(f, &info);
    text t = {malloc(LENGTH * (size_t)info.vocab * sizeof(float)), info.vocab};
    prompt_of(ids, LENGTH, info.vocab);
    demand(folollm_seq_open(f, NULL, &seqs[0], &error));
    demand(folollm_seq_open(f, NULL, &seqs[1], &error));
    demand(folollm_prefill(f, seqs[0], ids, first, t.logits, &error));
    demand(folollm_prefill(f, seqs[1], ids + 3, 17, NULL, &error));
    for (size_t i = first; i < LENGTH; i++) {
        const float *logits = NULL;
        both[0] = both[1] = ids[i];
        demand(folollm_decode_step(f, seqs, both, i % 3 == 0 ? 1 : 2, &error));
        demand(folollm_logits(f, seqs[0], &logits, &error));
        memcpy(t.logits + i * t.vocab, logits, t.vocab * sizeof *logits);
    }
    demand(folollm_seq_close(f, seqs[0], &error));
    demand(folollm_seq_close(f, seqs[1], &error));
    return t;
}

static int texts_are_equal(text a, text b) {
    int equal = a.vocab == b.vocab && memcmp(a.logits, b.logits, LENGTH * a.vocab * sizeof(float)) == 0;
    free(a.logits);
    free(b.logits);
    return equal;
}

static const struct {
    const char *path;
    folollm_weights weights;
    folollm_kv_type kv;
} models[] = {
    {MODEL, FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_KV_F16},
    {MODEL, FOLOLLM_WEIGHTS_Q4, FOLOLLM_KV_Q8},
    {BASE, FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_KV_F32},
    {BASE, FOLOLLM_WEIGHTS_Q8_ROW, FOLOLLM_KV_Q4},
    {MODELS "qwen2-mha-bf16", FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_KV_BF16},
    {MODELS "qwen2-window-old", FOLOLLM_WEIGHTS_Q8, FOLOLLM_KV_Q8},
    {MODELS "qwen3-window-mixed", FOLOLLM_WEIGHTS_F16, FOLOLLM_KV_F16},
    {MODELS "llama-mqa-fp16", FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_KV_F16},
    {MODELS "mistral-window-new", FOLOLLM_WEIGHTS_Q4, FOLOLLM_KV_F32},
    {MODELS "rope-yarn-new", FOLOLLM_WEIGHTS_BF16, FOLOLLM_KV_Q4},
};

static void test_engines(void) {
    for (size_t i = 0; i < FL_COUNT(models); i++) {
        folollm_options o = {.weights = models[i].weights, .kv = models[i].kv};
        folollm *on_cpu = open_model(models[i].path, o);
        o.device = 1;
        o.chunk = 33;
        folollm *on_cuda = open_model(models[i].path, o);
        CHECK_TEXT(texts_are_equal(write_text(on_cpu, 40), write_text(on_cuda, i % 2 == 0 ? 40 : 63)), models[i].path);
        folollm_free(on_cpu);
        folollm_free(on_cuda);
    }
}

/* More rows with logits than a device has room for at once. */
static void test_long_prompt(void) {
    enum { N = 150 };
    float *logits[2];
    size_t n = 0;
    for (uint32_t on_device = 0; on_device < 2; on_device++) {
        folollm_options o = {.device = on_device, .context = N, .pool_tokens = 320, .chunk = N, .n_threads = 1};
        folollm *f = NULL;
        folollm_info info;
        folollm_token ids[N];
        folollm_seq seq;
        demand(folollm_load(MODEL, &o, &f, &error));
        folollm_get_info(f, &info);
        CHECK(info.chunk == N);
        n = (size_t)N * info.vocab;
        logits[on_device] = malloc(n * sizeof(float));
        prompt_of(ids, N, info.vocab);
        demand(folollm_seq_open(f, NULL, &seq, &error));
        demand(folollm_prefill(f, seq, ids, N, logits[on_device], &error));
        folollm_free(f);
    }
    CHECK(memcmp(logits[0], logits[1], n * sizeof(float)) == 0);
    free(logits[0]);
    free(logits[1]);
}

/* ---- Requests -- */

#define ANSWERS 6
#define TOKENS 12

typedef struct answer {
    folollm_token tokens[TOKENS];
    folollm_logprob chosen[TOKENS];
} answer;

/* What a device can choose by itself, and what it cannot. */
static folollm_sampling sampling_of(uint32_t i) {
    static const folollm_bias bias = {3, 2};
    folollm_sampling s = {.seed = i, .max_tokens = TOKENS, .ignore_eos = 1, .temperature = i % 2 == 0 ? 0 : 0.9f};
    if (i == 3) {
        s.top_k = 20;
        s.top_p = 0.9f;
        s.min_p = 0.02f;
    }
    if (i == 4) {
        s.biases = &bias;
        s.n_biases = 1;
    }
    return s;
}

static void write_answers(folollm *f, const folollm_budget *budget, answer out[ANSWERS]) {
    folollm_info info;
    folollm_token prompt[64];
    folollm_seq seqs[ANSWERS];
    size_t n[ANSWERS] = {0}, n_over = 0;
    folollm_get_info(f, &info);
    for (uint32_t i = 0; i < ANSWERS; i++) {
        folollm_sampling sampling = sampling_of(i);
        size_t length = 20 + i / 2; /* every other shares its prompt with the one before, and so its pages */
        prompt_of(prompt, length, info.vocab);
        folollm_submission s = {.prompt = prompt, .n_prompt = length, .sampling = &sampling, .tag = i};
        demand(folollm_submit(f, &s, &seqs[i], &error));
    }
    for (int steps = 0; n_over < ANSWERS && steps < 100000; steps++) {
        folollm_event events[ANSWERS];
        size_t n_events = ANSWERS;
        demand(folollm_step(f, budget, events, &n_events, &error));
        for (size_t i = 0; i < n_events; i++) {
            size_t which = (size_t)events[i].tag;
            out[which].tokens[n[which]] = events[i].token;
            out[which].chosen[n[which]++] = events[i].chosen;
            n_over += events[i].finish != FOLOLLM_FINISH_NONE;
        }
    }
    CHECK(n_over == ANSWERS);
}

static uint64_t ticks(void *user) {
    (void)user;
    static uint64_t now;
    return now += 100;
}

static void test_requests(void) {
    folollm_host host = {.clock = ticks};
    static answer expected[ANSWERS], got[ANSWERS];
    folollm_options o = {.host = &host};
    folollm *f = open_engine(o);
    write_answers(f, NULL, expected);
    folollm_free(f);
    o.device = 1;
    f = open_engine(o);
    folollm_budget budgets[] = {{.tokens = 64}, {.tokens = 9}, {.microseconds = 300}};
    for (size_t i = 0; i < FL_COUNT(budgets); i++) {
        memset(got, 0, sizeof got);
        write_answers(f, &budgets[i], got);
        CHECK(memcmp(got, expected, sizeof got) == 0);
    }
    folollm_stats stats;
    folollm_get_stats(f, &stats);
    CHECK(stats.slices > 0 && stats.prefix_found_tokens > 0);
    folollm_free(f);
}

/* ---- Forks, and sequences that move between devices -- */

static void save(folollm *f, folollm_seq seq, uint8_t **bytes, size_t *n) {
    *n = 0;
    demand(folollm_seq_save(f, seq, NULL, n, &error));
    *bytes = malloc(*n);
    demand(folollm_seq_save(f, seq, *bytes, n, &error));
}

static void test_moves(void) {
    for (int kv = FOLOLLM_KV_F16; kv <= FOLOLLM_KV_Q4; kv++) {
        folollm_options o = {.kv = (folollm_kv_type)kv};
        folollm *engines[2] = {open_engine(o)};
        folollm_info info;
        folollm_token ids[LENGTH];
        folollm_seq seqs[2], forks[2], moved[2];
        uint8_t *bytes[2];
        size_t n[2];
        const float *logits[4];
        o.device = 1;
        engines[1] = open_engine(o);
        folollm_get_info(engines[1], &info);
        CHECK(strcmp(info.kernels, "cuda") == 0 && info.device[0] != 0);
        prompt_of(ids, LENGTH, info.vocab);
        for (int i = 0; i < 2; i++) {
            demand(folollm_seq_open(engines[i], NULL, &seqs[i], &error));
            demand(folollm_prefill(engines[i], seqs[i], ids, 37, NULL, &error));
            demand(folollm_seq_fork(engines[i], seqs[i], NULL, &forks[i], &error)); /* one last page, then two */
            demand(folollm_decode_step(engines[i], &forks[i], &ids[50], 1, &error));
            demand(folollm_decode_step(engines[i], &seqs[i], &ids[37], 1, &error));
            save(engines[i], seqs[i], &bytes[i], &n[i]);
        }
        CHECK(n[0] == n[1] && memcmp(bytes[0], bytes[1], n[0]) == 0);
        for (int i = 0; i < 2; i++) {
            demand(folollm_seq_restore(engines[i], bytes[1 - i], n[1 - i], &moved[i], &error));
            demand(folollm_decode_step(engines[i], &moved[i], &ids[38], 1, &error));
            demand(folollm_decode_step(engines[i], &forks[i], &ids[51], 1, &error));
            demand(folollm_logits(engines[i], moved[i], &logits[i], &error));
            demand(folollm_logits(engines[i], forks[i], &logits[2 + i], &error));
        }
        CHECK(memcmp(logits[0], logits[1], info.vocab * sizeof(float)) == 0);
        CHECK(memcmp(logits[2], logits[3], info.vocab * sizeof(float)) == 0);
        for (int i = 0; i < 2; i++) {
            free(bytes[i]);
            folollm_free(engines[i]);
        }
    }
}

/* Engines that share the weights of one, on the device and on the CPU. */
static void test_share(void) {
    folollm *first = open_engine((folollm_options){.device = 1}), *others[2] = {NULL, NULL}, *none = NULL;
    folollm_options o = {.device = 1, .context = 80, .pool_tokens = 640, .n_threads = 1};
    folollm_memory plan;
    folollm_info info;
    demand(folollm_plan(BASE, &o, &plan, &error));
    folollm_get_info(first, &info);
    CHECK(plan.device > 0 && plan.device == info.memory.device && plan.kv_cache == 0);
    CHECK(memcmp(&plan, &info.memory, sizeof plan) == 0);
    demand(folollm_share(first, &o, &others[0], &error));
    o.device = 2;
    CHECK(folollm_share(first, &o, &none, &error) == FOLOLLM_E_ARGUMENT && none == NULL);
    o.device = 0;
    demand(folollm_share(first, &o, &others[1], &error));
    folollm_free(first);
    CHECK(texts_are_equal(write_text(others[0], 50), write_text(others[1], 60)));
    folollm_free(others[1]);
    o.device = 1;
    folollm_free(others[0]);
    o.device = 60;
    CHECK(folollm_load(BASE, &o, &none, &error) == FOLOLLM_E_DEVICE && none == NULL);
    o.device = 1000;
    CHECK(folollm_load(BASE, &o, &none, &error) == FOLOLLM_E_ARGUMENT && none == NULL);
    o.device = 1;
    o.float_activations = 1;
    CHECK(folollm_load(BASE, &o, &none, &error) == FOLOLLM_E_UNSUPPORTED && none == NULL);
}

#define ADAPTED 3 /* sequences: with different adapters, and one with none */
#define ADAPTED_STEPS 4

/* Their logits (ADAPTED_STEPS, ADAPTED, vocab) in the same steps. */
static float *write_adapted(folollm_options o, size_t *vocab) {
    static const char *const names[ADAPTED] = {ADAPTERS "all", ADAPTERS "other", NULL};
    folollm *f = NULL;
    folollm_info info;
    folollm_token ids[30], next[ADAPTED];
    folollm_seq seqs[ADAPTED];
    folollm_adapter adapters[ADAPTED] = {0};
    demand(folollm_load(BASE, &o, &f, &error));
    folollm_get_info(f, &info);
    prompt_of(ids, 30, info.vocab);
    size_t n = *vocab = info.vocab;
    float *logits = malloc(ADAPTED_STEPS * ADAPTED * n * sizeof *logits);
    for (uint32_t s = 0; s < ADAPTED; s++) {
        if (names[s] != NULL) {
            demand(folollm_adapter_load(f, names[s], 1, &adapters[s], &error));
        }
        demand(folollm_seq_open(f, NULL, &seqs[s], &error));
        demand(folollm_seq_set_adapter(f, seqs[s], adapters[s], &error));
        demand(folollm_prefill(f, seqs[s], ids, 11 + s, NULL, &error));
    }
    for (uint32_t i = 0; i < ADAPTED_STEPS * ADAPTED; i++) {
        uint32_t step = i / ADAPTED, s = i % ADAPTED;
        const float *row = NULL;
        if (s == 0) {
            next[0] = next[1] = next[2] = ids[20 + step];
            for (uint32_t at = 0, together = 1 + step % ADAPTED; at < ADAPTED; at += together) {
                demand(folollm_decode_step(f, seqs + at, next, fl_min(together, ADAPTED - at), &error));
            }
        }
        demand(folollm_logits(f, seqs[s], &row, &error));
        memcpy(logits + i * n, row, n * sizeof *row);
    }
    CHECK(memcmp(logits, logits + n, n * sizeof *logits) != 0);
    demand(folollm_seq_close(f, seqs[0], &error));
    demand(folollm_adapter_free(f, adapters[0], &error));
    folollm_free(f);
    return logits;
}

static void test_adapters(void) {
    static const folollm_weights weights[] = {FOLOLLM_WEIGHTS_AS_STORED, FOLOLLM_WEIGHTS_Q8, FOLOLLM_WEIGHTS_Q4};
    for (size_t i = 0; i < FL_COUNT(weights); i++) {
        folollm_options o = {.weights = weights[i], .context = 48, .pool_tokens = 400, .chunk = 9, .n_threads = 1};
        size_t vocab;
        float *on_cpu = write_adapted(o, &vocab);
        o.device = 1;
        float *on_cuda = write_adapted(o, &vocab);
        CHECK(memcmp(on_cpu, on_cuda, ADAPTED_STEPS * ADAPTED * vocab * sizeof *on_cpu) == 0);
        free(on_cpu);
        free(on_cuda);
    }
}

/* ---- A stream of the host -- */

extern int cudaStreamCreateWithFlags(void **stream, unsigned flags);
extern int cudaStreamDestroy(void *stream);

static void test_stream(void) {
    folollm_options o = {.device = 1};
    folollm *on_own = open_engine(o);
    CHECK(cudaStreamCreateWithFlags(&o.device_stream, 1) == 0);
    uint64_t before = shim_get_counts != NULL ? shim_get_counts().live_streams : 0;
    folollm *f = open_engine(o);
    CHECK(shim_get_counts == NULL || shim_get_counts().live_streams == before + 1); /* of the weights */
    CHECK(texts_are_equal(write_text(on_own, 40), write_text(f, 40)));
    folollm_free(f);
    folollm_free(on_own);
    CHECK(shim_get_counts == NULL || shim_get_counts().live_streams == 1);
    CHECK(cudaStreamDestroy(o.device_stream) == 0);
    o.device = 0;
    CHECK(folollm_load(BASE, &o, &f, &error) == FOLOLLM_E_ARGUMENT);
}

int main(void) {
    fl_memory_init(&memory, NULL);
    for (size_t i = 0; i < FL_COUNT(layers); i++) {
        test_layer(&layers[i]);
    }
    test_engines();
    test_long_prompt();
    test_requests();
    test_moves();
    test_share();
    test_adapters();
    test_stream();
    return check_finish();
}
