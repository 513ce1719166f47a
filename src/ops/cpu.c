/* How the work of each op is cut into tasks. No cut changes a bit: every output element is computed whole by one task,
 * in the order that the kernels fix.
 *
 * A product of few rows streams the weights as they are stored; of many rows, it expands a panel of FL_PANEL_OUTS
 * weight rows to float once and uses it for every row while it is in the cache. Packed weights (packed.h) are
 * multiplied with rows of integers, by few where they lie, by more when they were laid open, chunk by chunk:
 *
 *     slot scratch:  [ slabs | panel: FL_PANEL_OUTS x n_cols | tile: n_rows x outs | tile of the second part ]
 *                    when a tile is there, the panel's place takes what an adapter adds to some rows of it
 *     in rope_store: [ integers | a row of the cache ]
 *     in attend:     [ queries | outputs | those of earlier splits | scores | K block | V block | their scales |
 *                      maximum, sum, factor, scales and sums of the queries, maximum and sum of earlier splits ]
 */
#include "ops/cpu.h"

#define FL_PANEL_OUTS 24
#define FL_FEW_ROWS 48 /* up to here weights are read as stored: measured, at 64 panels are as fast */
#define FL_FEW_OUTS 96 /* outputs of one task then */
#define FL_ONE_STREAM_ROWS 3 /* up to here one stream of weights feeds them fast enough: measured on Zen 4 */
#define FL_NEAR 256      /* bytes */
#define FL_PACKED_FEW_ROWS 16
#define FL_PACKED_OUTS 32 /* of more rows */
#define FL_ROWS_A_TASK 8 /* of work by rows */
#define FL_ORDERS_MAX 3   /* of columns in a matrix: one a part */
#define FL_TILE_QUERIES 64 /* query rows of an attention tile: positions times heads of a group */
#define FL_FEW_QUERIES 16  /* of them, that meet keys and values where they lie */

static fl_cpu_backend *fl_cpu_of(fl_backend *b) {
    return (fl_cpu_backend *)(void *)b;
}

static float *fl_cpu_scratch(const fl_cpu_backend *cpu, size_t slot) {
    return cpu->scratch + slot * cpu->slot_floats;
}

static size_t fl_tile_positions(size_t group) {
    return fl_max(1, FL_TILE_QUERIES / group);
}

/* Longest row that a product reads. */
static size_t fl_widest(const fl_limits *l) {
    return fl_max(fl_max(l->dim, l->attention_dim), l->ffn_dim);
}

#define FL_SLAB_FLOATS (FL_SLABS * sizeof(fl_slab) / sizeof(float))

/* Of packed types too, which have fewer few rows: beside them may be plain ones. */
static size_t fl_product_floats(const fl_limits *l) {
    size_t outs = l->packed ? FL_PACKED_OUTS : FL_PANEL_OUTS, few = fl_min(l->n_rows, FL_FEW_ROWS);
    return FL_SLAB_FLOATS + FL_PANEL_OUTS * fl_padded(fl_widest(l)) + 2 * fl_max(l->n_rows * outs, few * FL_FEW_OUTS);
}

static size_t fl_attention_floats(const fl_limits *l) {
    size_t queries = fl_tile_positions(l->group) * l->group, d = fl_lanes(l->head_dim);
    return queries * (3 * d + FL_BLOCK_TOKENS + 7) + 2 * FL_BLOCK_TOKENS * (d + 1);
}

FL_LOCAL void fl_cpu_layout(fl_cpu_backend *cpu, fl_arena *arena, const fl_limits *limits, uint32_t n_slots) {
    cpu->n_slots = n_slots;
    cpu->slot_floats = fl_lanes(fl_max(fl_product_floats(limits), fl_attention_floats(limits)));
    cpu->normed = fl_take(arena, limits->n_rows, fl_padded(limits->dim) * sizeof(float));
    cpu->scratch = fl_take(arena, n_slots, cpu->slot_floats * sizeof(float));
    cpu->narrow_rows = limits->n_rows;
    cpu->narrow_stride = fl_padded(limits->rank);
    cpu->narrow = fl_take(arena, FL_PARTS_MAX * limits->n_rows, cpu->narrow_stride * sizeof(float));
    if (limits->packed) {
        size_t chunks = fl_div_up(fl_widest(limits), FL_CHUNK) * (limits->ordered ? FL_ORDERS_MAX : 1);
        cpu->integers = fl_take(arena, limits->n_rows, chunks * sizeof *cpu->integers);
    }
}

/* ---- Products -- */

typedef enum fl_epilogue {
    FL_EPILOGUE_STORE,  /* y = x W^T + bias */
    FL_EPILOGUE_ADD,    /* y += x W^T + bias */
    FL_EPILOGUE_GATE_UP /* y = silu(x G^T + bias) * (x U^T + bias), W of two parts */
} fl_epilogue;

typedef struct fl_product {
    const fl_cpu_backend *cpu;
    const float *x; /* (n_rows, w->n_cols) padded */
    size_t n_rows;
    const fl_batch *batch; /* whose adapters add to it; NULL: none does */
    const fl_matrix *w;
    fl_epilogue epilogue;
    float *y; /* (n_rows, y_stride) */
    size_t y_stride;
    size_t outs; /* of one task */
} fl_product;

static const fl_next fl_no_next = {0, 0};

/* Bytes by which weights are fetched before their turn with n_rows rows. */
static size_t fl_ahead_of(const fl_cpu_backend *cpu, size_t n_rows) {
    return cpu->streams && n_rows <= FL_ONE_STREAM_ROWS ? 0 : cpu->ahead;
}

/* n bytes of weights, to be fetched early if that pays on this processor. */
static fl_next fl_next_of(const fl_product *p, uintptr_t at, size_t n) {
    fl_next next = {at, p->cpu->ahead != 0 ? n : 0};
    return next;
}

/* Where row `first` of a part lies, or would if it had so many. */
static uintptr_t fl_row_at(const fl_product *p, const fl_part *part, size_t first) {
    return (uintptr_t)part->data + fl_matrix_bytes(part->type, first, p->w->n_cols);
}

/* tile (n_rows, p->outs) = x times n_outs rows of plain weights from w on. next: where those of the next task lie. */
static void fl_product_plain(const fl_product *p, fl_dtype type, const uint8_t *w, size_t n_outs, uintptr_t next,
                             float *panel, float *tile) {
    const fl_kernels *k = p->cpu->kernels;
    size_t n = p->w->n_cols, stride = fl_padded(n), row_bytes = n * fl_dtype_bytes(type);
    if (p->n_rows <= FL_FEW_ROWS) {
        k->matvec(type, p->x, stride, p->n_rows, w, n_outs, n, fl_ahead_of(p->cpu, p->n_rows), tile, p->outs);
        return;
    }
    for (size_t first = 0; first < n_outs; first += FL_PANEL_OUTS) {
        size_t outs = fl_min(n_outs - first, FL_PANEL_OUTS);
        for (size_t o = 0; o < outs; o++) {
            k->expand(type, w + (first + o) * row_bytes, n, panel + o * stride);
        }
        uintptr_t behind = first + outs < n_outs ? (uintptr_t)(w + (first + outs) * row_bytes) : next;
        k->matmul(p->x, stride, p->n_rows, panel, stride, outs, fl_lanes(n), fl_next_of(p, behind, outs * row_bytes),
                  tile + first, p->outs);
    }
}

/* The first part of a matrix whose columns have the order of this one's: both meet its rows of integers. */
static const fl_part *fl_first_of_order(const fl_matrix *w, const fl_part *part) {
    const fl_part *first = w->parts;
    while (first->order != part->order) {
        first++;
    }
    return first;
}

static fl_chunk8 *fl_integers_of(const fl_cpu_backend *cpu, const fl_matrix *w, const fl_part *part, size_t n_rows) {
    size_t chunks = fl_div_up(w->n_cols, FL_CHUNK);
    return cpu->integers + (size_t)(fl_first_of_order(w, part) - w->parts) * chunks * n_rows;
}

/* The same of a packed panel, or the upper half of it (n_slabs 1), with rows of integers x. */
static void fl_product_slabs(const fl_product *p, fl_dtype type, const uint8_t *panel, size_t n_slabs, uintptr_t next,
                             const fl_chunk8 *x, fl_slab *slabs, float *tile) {
    const fl_kernels *k = p->cpu->kernels;
    size_t n_units = fl_units(p->w->n_cols);
    const uint8_t *chunk = panel + fl_panel_head_bytes(type);
    for (size_t u = 0; u < n_units; u += FL_CHUNK_UNITS, x += p->n_rows) {
        size_t n = fl_min(n_units - u, FL_CHUNK_UNITS), bytes = fl_chunk_bytes(type, n);
        for (size_t s = 0; s < n_slabs; s++) {
            k->open(type, panel + s * FL_LANES * sizeof(float), chunk + s * bytes, n, slabs + s);
        }
        chunk += FL_SLABS * bytes;
        fl_next behind = fl_next_of(p, u + n < n_units ? (uintptr_t)chunk : next, FL_SLABS * bytes);
        fl_accumulation a = {type, x, p->n_rows, n, slabs, n_slabs, u == 0, behind, tile, p->outs};
        k->accumulate(&a);
    }
}

/* The same of few rows. Planes are a second stream through memory; and for halves, which take longer to be opened, it
 * pays to tell of the next lines (on Zen 4: 1.05 to 1.09, but 0.94 for bytes). */
static void fl_product_stream(const fl_product *p, fl_dtype type, const uint8_t *panel, size_t n_slabs, uintptr_t next,
                              const fl_chunk8 *x, float *tile) {
    size_t ahead = fl_ahead_of(p->cpu, p->n_rows);
    if (ahead == 0 && !fl_is_wide(type)) {
        ahead = fl_n_planes(type) != 0 ? p->cpu->ahead : fl_min(p->cpu->ahead, FL_NEAR);
    }
    fl_next behind = {next, fl_min(ahead, fl_panel_bytes(type, p->w->n_cols))};
    fl_streaming a = {type, panel, n_slabs, fl_units(p->w->n_cols), x, p->n_rows, behind, tile, p->outs};
    p->cpu->kernels->stream(&a);
}

/* n columns of a row of a slab as floats. */
static void fl_slab_row(fl_dtype type, const fl_slab *slab, size_t row, size_t n, float *y) {
    int32_t offset = fl_packed_offset(type);
    size_t columns = fl_has_half_units(type) ? FL_UNIT / 2 : FL_UNIT;
    for (size_t i = 0; i < n; i++) {
        float q = (float)(slab->quads[i / 4 * FL_QUAD_BYTES + row * 4 + i % 4] - offset);
        y[i] = q * slab->scales[i / columns][row];
        if (fl_has_mins(type)) {
            y[i] -= slab->mins[i / FL_UNIT][row];
        }
    }
}

/* The same, each to the column of the input that it belongs to. */
static void fl_slab_row_in_order(const fl_part *part, const fl_slab *slab, size_t row, size_t begin, size_t n,
                                 float *y) {
    float numbers[FL_CHUNK];
    if (part->order == NULL) {
        fl_slab_row(part->type, slab, row, n, y + begin);
        return;
    }
    fl_slab_row(part->type, slab, row, n, numbers);
    for (size_t i = 0; i < n; i++) {
        y[part->order[begin + i]] = numbers[i];
    }
}

/* n rows of a packed part from the first on, all in one half of a panel, as floats, to y (n, stride). */
static void fl_open_rows(const fl_cpu_backend *cpu, const fl_part *part, size_t n_cols, size_t first, size_t n,
                         fl_slab *slab, float *y, size_t stride) {
    fl_dtype type = part->type;
    size_t n_units = fl_units(n_cols), half = first % FL_PANEL / FL_LANES;
    const uint8_t *panel = (const uint8_t *)part->data + first / FL_PANEL * fl_panel_bytes(type, n_cols);
    const uint8_t *chunk = panel + fl_panel_head_bytes(type);
    for (size_t u = 0; u < n_units; u += FL_CHUNK_UNITS) {
        size_t units = fl_min(n_units - u, FL_CHUNK_UNITS), bytes = fl_chunk_bytes(type, units), begin = u * FL_UNIT;
        cpu->kernels->open(type, panel + half * FL_LANES * sizeof(float), chunk + half * bytes, units, slab);
        chunk += FL_SLABS * bytes;
        for (size_t r = 0; r < n; r++) {
            fl_slab_row_in_order(part, slab, first % FL_LANES + r, begin, fl_min(n_cols - begin, FL_CHUNK),
                                 y + r * stride);
        }
    }
}

/* The same as fl_product_slabs of packed rows [first, first + n_outs) with rows of floats. */
static void fl_product_opened(const fl_product *p, const fl_part *part, size_t first, size_t n_outs, fl_slab *slab,
                              float *panel, float *tile) {
    size_t n = p->w->n_cols, stride = fl_padded(n);
    for (size_t r = 0; r < FL_LANES; r++) {
        memset(panel + r * stride + n, 0, (fl_lanes(n) - n) * sizeof *panel);
    }
    for (size_t o = 0; o < n_outs; o += FL_LANES) {
        size_t outs = fl_min(n_outs - o, FL_LANES);
        fl_open_rows(p->cpu, part, n, first + o, outs, slab, panel, stride);
        p->cpu->kernels->matmul(p->x, stride, p->n_rows, panel, stride, outs, fl_lanes(n), fl_no_next,
                                tile + o, p->outs);
    }
}

/* ---- Adapters -- */

static float *fl_narrow_row(const fl_cpu_backend *cpu, size_t part, size_t row) {
    return cpu->narrow + (part * cpu->narrow_rows + row) * cpu->narrow_stride;
}

/* What a run's adapter adds to a part of a matrix; NULL: nothing. */
static const fl_low_rank *fl_low_rank_of(const fl_run *run, const fl_matrix *w, size_t part) {
    const fl_low_rank *l = run->low_ranks != NULL ? &run->low_ranks[w->low_rank + part] : NULL;
    return l != NULL && l->rank != 0 ? l : NULL;
}

/* The a of one run's adapter with its rows, for one part. */
static void fl_narrow_task(void *context, size_t task, size_t slot) {
    const fl_product *p = context;
    size_t part = task % p->w->n_parts, stride = fl_padded(p->w->n_cols);
    const fl_run *run = &p->batch->runs[task / p->w->n_parts];
    const fl_low_rank *l = fl_low_rank_of(run, p->w, part);
    (void)slot;
    if (l != NULL) {
        float *y = fl_narrow_row(p->cpu, part, run->first_row);
        memset(y, 0, run->n_rows * p->cpu->narrow_stride * sizeof *y); /* what stands behind the rank is read as well */
        p->cpu->kernels->matmul(p->x + run->first_row * stride, stride, run->n_rows, l->a, stride, l->rank,
                                fl_lanes(p->w->n_cols), fl_no_next, y, p->cpu->narrow_stride);
    }
}

static bool fl_has_adapters(const fl_batch *batch) {
    bool has = false;
    for (size_t i = 0; i < batch->n_runs; i++) {
        has = has || batch->runs[i].low_ranks != NULL;
    }
    return has;
}

/* tile += b times what fl_narrow_task left for the part, outputs [first, first + n_outs); room: that of a panel. */
static void fl_product_widen(const fl_product *p, size_t part, size_t first, size_t n_outs, float *room, float *tile) {
    const fl_kernels *k = p->cpu->kernels;
    size_t most = FL_PANEL_OUTS * fl_padded(p->w->n_cols) / p->outs;
    for (size_t i = 0; i < p->batch->n_runs; i++) {
        const fl_run *run = &p->batch->runs[i];
        const fl_low_rank *l = fl_low_rank_of(run, p->w, part);
        if (l == NULL) {
            continue;
        }
        size_t stride = fl_padded(l->rank), end = run->first_row + run->n_rows;
        for (size_t row = run->first_row; row < end; row += most) {
            size_t n = fl_min(end - row, most);
            k->matmul(fl_narrow_row(p->cpu, part, row), p->cpu->narrow_stride, n, l->b + first * stride, stride,
                      n_outs, fl_lanes(l->rank), fl_no_next, room, p->outs);
            for (size_t r = 0; r < n; r++) {
                k->add(room + r * p->outs, n_outs, tile + (row + r) * p->outs);
            }
        }
    }
}

/* tile (n_rows, p->outs) = x times rows [first, first + n_outs) of a part, plus bias, plus what adapters add */
static void fl_product_tile(const fl_product *p, const fl_part *part, size_t first, size_t n_outs, uintptr_t next,
                            float *scratch, float *tile) {
    size_t n = p->w->n_cols;
    const uint8_t *w = (const uint8_t *)part->data + fl_matrix_bytes(part->type, first, n);
    fl_slab *slabs = (fl_slab *)(void *)scratch;
    float *panel = scratch + FL_SLAB_FLOATS;
    if (!fl_is_packed(part->type)) {
        fl_product_plain(p, part->type, w, n_outs, next, panel, tile);
    } else if (p->cpu->float_activations) {
        fl_product_opened(p, part, first, n_outs, slabs, panel, tile);
    } else {
        const fl_chunk8 *x = fl_integers_of(p->cpu, p->w, part, p->n_rows);
        for (size_t o = 0; o < n_outs; o += FL_PANEL) {
            size_t n_slabs = n_outs - o > FL_LANES ? 2 : 1, end = o + FL_PANEL;
            const uint8_t *at = w + fl_matrix_bytes(part->type, o, n);
            uintptr_t behind = end < n_outs ? fl_row_at(p, part, first + end) : next;
            if (p->n_rows <= p->cpu->kernels->stream_rows) {
                fl_product_stream(p, part->type, at, n_slabs, behind, x, tile + o);
            } else {
                fl_product_slabs(p, part->type, at, n_slabs, behind, x, slabs, tile + o);
            }
        }
    }
    for (size_t r = 0; part->bias != NULL && r < p->n_rows; r++) {
        p->cpu->kernels->add(part->bias + first, n_outs, tile + r * p->outs);
    }
    if (p->batch != NULL) {
        fl_product_widen(p, (size_t)(part - p->w->parts), first, n_outs, panel, tile);
    }
}

static void fl_product_task(void *context, size_t task, size_t slot) {
    const fl_product *p = context;
    const fl_kernels *k = p->cpu->kernels;
    const fl_part *part = p->w->parts;
    size_t part_begin = 0, tasks;
    while (p->epilogue != FL_EPILOGUE_GATE_UP && task >= (tasks = fl_div_up(part->n_rows, p->outs))) {
        task -= tasks;
        part_begin += part->n_rows;
        part++;
    }
    size_t first = task * p->outs, n_outs = fl_min(part->n_rows - first, p->outs);
    float *scratch = fl_cpu_scratch(p->cpu, slot);
    float *tile = scratch + FL_SLAB_FLOATS + FL_PANEL_OUTS * fl_padded(p->w->n_cols);
    float *second = tile + p->n_rows * p->outs;
    uintptr_t next = fl_row_at(p, part, first + p->cpu->n_slots * p->outs); /* of this thread's next task, likely */
    if (p->epilogue == FL_EPILOGUE_GATE_UP) {
        fl_product_tile(p, part, first, n_outs, fl_row_at(p, part + 1, first), scratch, tile);
        fl_product_tile(p, part + 1, first, n_outs, next, scratch, second);
    } else {
        fl_product_tile(p, part, first, n_outs, next, scratch, tile);
    }
    for (size_t r = 0; r < p->n_rows; r++) {
        float *y = p->y + r * p->y_stride + part_begin + first;
        if (p->epilogue == FL_EPILOGUE_STORE) {
            memcpy(y, tile + r * p->outs, n_outs * sizeof *y);
        } else if (p->epilogue == FL_EPILOGUE_ADD) {
            k->add(tile + r * p->outs, n_outs, y);
        } else {
            k->silu_mul(tile + r * p->outs, second + r * p->outs, n_outs, y);
        }
    }
}

static bool fl_has_packed(const fl_matrix *w) {
    bool packed = false;
    for (uint32_t i = 0; i < w->n_parts; i++) {
        packed = packed || fl_is_packed(w->parts[i].type);
    }
    return packed;
}

/* y = epilogue of x W^T; with integers, these were made of x (fl_rows_run). */
static void fl_product_run(fl_product *p) {
    size_t n_tasks = 0, n_parts = p->epilogue == FL_EPILOGUE_GATE_UP ? 1 : p->w->n_parts;
    if (fl_has_packed(p->w)) {
        p->outs = p->n_rows <= FL_PACKED_FEW_ROWS ? FL_FEW_OUTS : FL_PACKED_OUTS;
    } else {
        p->outs = p->n_rows <= FL_FEW_ROWS ? FL_FEW_OUTS : FL_PANEL_OUTS;
    }
    for (size_t i = 0; i < n_parts; i++) {
        n_tasks += fl_div_up(p->w->parts[i].n_rows, p->outs);
    }
    if (p->batch != NULL && !fl_has_adapters(p->batch)) {
        p->batch = NULL;
    } else if (p->batch != NULL) {
        fl_pool_run(p->cpu->pool, p->batch->n_runs * p->w->n_parts, fl_narrow_task, p);
    }
    fl_pool_run(p->cpu->pool, n_tasks, fl_product_task, p);
}

/* ---- Work by rows -- */

typedef struct fl_rows_job {
    const fl_cpu_backend *cpu;
    const float *x; /* (all rows, n) padded */
    const uint32_t *rows; /* which, or NULL: the first n_rows */
    size_t n_rows, n;
    const float *norm; /* (n), or NULL: leave x as it is */
    float epsilon;
    const fl_matrix *w;
    bool integers; /* are they wanted? */
} fl_rows_job;

/* The i-th row as integers, once in every order of columns that the parts of the matrix have. */
static void fl_rows_integers(const fl_rows_job *j, const float *x, size_t i, float *scratch) {
    for (const fl_part *part = j->w->parts; part < j->w->parts + j->w->n_parts; part++) {
        if (fl_first_of_order(j->w, part) != part) {
            continue;
        }
        for (size_t k = 0; part->order != NULL && k < j->n; k++) {
            scratch[k] = x[part->order[k]];
        }
        fl_chunk8 *integers = fl_integers_of(j->cpu, j->w, part, j->n_rows) + i;
        j->cpu->kernels->integers(part->order != NULL ? scratch : x, j->n, integers, j->n_rows);
    }
}

static void fl_rows_task(void *context, size_t task, size_t slot) {
    const fl_rows_job *j = context;
    const fl_kernels *k = j->cpu->kernels;
    size_t stride = fl_padded(j->n), end = fl_min((task + 1) * FL_ROWS_A_TASK, j->n_rows);
    for (size_t i = task * FL_ROWS_A_TASK; i < end; i++) {
        const float *x = j->x + (j->rows != NULL ? j->rows[i] : i) * stride;
        if (j->norm != NULL) {
            float *y = j->cpu->normed + i * stride;
            k->rmsnorm(x, j->norm, j->n, j->epsilon, y);
            x = y;
        }
        if (j->integers) {
            fl_rows_integers(j, x, i, fl_cpu_scratch(j->cpu, slot));
        }
    }
}

/* Rows as a product with w wants them: normed, and as integers where w is packed. */
static void fl_rows_run(fl_rows_job *job, const fl_matrix *w) {
    job->n = w->n_cols;
    job->w = w;
    job->integers = fl_has_packed(w) && !job->cpu->float_activations;
    if (job->norm != NULL || job->integers) {
        fl_pool_run(job->cpu->pool, fl_div_up(job->n_rows, FL_ROWS_A_TASK), fl_rows_task, job);
    }
}

static void fl_cpu_embed(fl_backend *b, const fl_matrix *table, const fl_batch *batch, float *x) {
    const fl_cpu_backend *cpu = fl_cpu_of(b);
    const fl_part *part = &table->parts[0];
    size_t n = table->n_cols, row_bytes = n * fl_dtype_bytes(part->type);
    for (size_t r = 0; r < batch->n_rows; r++) {
        size_t token = (size_t)batch->tokens[r];
        float *to = x + r * fl_padded(n);
        if (fl_is_packed(part->type)) {
            memset(to + n, 0, (fl_lanes(n) - n) * sizeof *to);
            fl_open_rows(cpu, part, n, token, 1, (fl_slab *)(void *)fl_cpu_scratch(cpu, 0), to, 0);
        } else {
            cpu->kernels->expand(part->type, (const uint8_t *)part->data + token * row_bytes, n, to);
        }
    }
}

static void fl_cpu_norm_qkv(fl_backend *b, const fl_batch *batch, const float *x, const float *norm, float epsilon,
                            const fl_matrix *w, float *qkv) {
    const fl_cpu_backend *cpu = fl_cpu_of(b);
    size_t n = batch->n_rows;
    fl_rows_job job = {.cpu = cpu, .x = x, .n_rows = n, .norm = norm, .epsilon = epsilon};
    fl_rows_run(&job, w);
    fl_product p = {cpu, cpu->normed, n, batch, w, FL_EPILOGUE_STORE, qkv, fl_padded(w->n_rows), 0};
    fl_product_run(&p);
}

static void fl_cpu_project_add(fl_backend *b, const fl_batch *batch, const float *in, const fl_matrix *w, float *x) {
    const fl_cpu_backend *cpu = fl_cpu_of(b);
    fl_rows_job job = {.cpu = cpu, .x = in, .n_rows = batch->n_rows};
    fl_rows_run(&job, w);
    fl_product p = {cpu, in, batch->n_rows, batch, w, FL_EPILOGUE_ADD, x, fl_padded(w->n_rows), 0};
    fl_product_run(&p);
}

static void fl_cpu_norm_gate_up(fl_backend *b, const fl_batch *batch, const float *x, const float *norm,
                                float epsilon, const fl_matrix *w, float *h) {
    const fl_cpu_backend *cpu = fl_cpu_of(b);
    size_t n = batch->n_rows;
    fl_rows_job job = {.cpu = cpu, .x = x, .n_rows = n, .norm = norm, .epsilon = epsilon};
    fl_rows_run(&job, w);
    fl_product p = {cpu, cpu->normed, n, batch, w, FL_EPILOGUE_GATE_UP, h, fl_padded(w->parts[0].n_rows), 0};
    fl_product_run(&p);
}

static void fl_cpu_norm_head(fl_backend *b, const fl_batch *batch, const float *x, const float *norm, float epsilon,
                             const fl_matrix *head, size_t first, size_t n, float *logits) {
    const fl_cpu_backend *cpu = fl_cpu_of(b);
    fl_rows_job job = {.cpu = cpu, .x = x, .rows = batch->wanted, .n_rows = batch->n_wanted, .norm = norm,
                       .epsilon = epsilon};
    fl_rows_run(&job, head);
    fl_matrix rows = *head; /* one part, as every head */
    rows.n_rows = rows.parts[0].n_rows = n;
    size_t before = fl_matrix_bytes(rows.parts[0].type, first, head->n_cols);
    rows.parts[0].data = (const uint8_t *)head->parts[0].data + before;
    fl_product p = {cpu, cpu->normed, batch->n_wanted, NULL, &rows, FL_EPILOGUE_STORE, logits + first, head->n_rows, 0};
    fl_product_run(&p);
}

/* ---- Rotation and the KV cache -- */

typedef struct fl_rope_job {
    const fl_cpu_backend *cpu;
    const fl_attention *a;
    const fl_batch *batch;
    const float *angles; /* (n_rows, head_dim) */
    fl_kv *kv;
    size_t layer;
    float *qkv; /* (n_rows, qkv_stride) */
    size_t qkv_stride;
} fl_rope_job;

/* Queries and keys are rotated before they become integers, in blocks of the largest power of two that divides
 * head_dim. Their numbers come out alike in size, so that no channel sets a scale too coarse for the others (QuaRot,
 * Ashkboos et al., 2024), and their products stay what they were, times the block. Values have no such channels. */
static size_t fl_rotation(size_t head_dim) {
    return head_dim & (~head_dim + 1);
}

/* row = integers q (head_dim) as ops.h says, K with an offset that makes them unsigned, then the scale. */
static void fl_pack_row(const fl_kv *kv, bool is_v, const int8_t *q, float scale, uint8_t *row) {
    size_t d = kv->head_dim, half = d / 2, n = fl_kv_numbers_bytes(kv->type, d);
    size_t used = kv->type == FOLOLLM_KV_Q8 ? d : half;
    for (size_t i = 0; i < used; i++) {
        if (kv->type == FOLOLLM_KV_Q8) {
            row[i] = (uint8_t)(is_v ? q[i] : q[i] + 128);
        } else {
            row[i] = (uint8_t)((q[i] + 8) | (q[half + i] + 8) << 4);
        }
    }
    memset(row + used, 0, n - used);
    memcpy(row + n, &scale, sizeof scale);
}

/* x (head_dim), which may change, to its place in the block. */
static void fl_store_row(const fl_rope_job *j, bool is_v, float *x, uint8_t *block, size_t token, int8_t *scratch) {
    const fl_kernels *k = j->cpu->kernels;
    const fl_kv *kv = j->kv;
    size_t d = kv->head_dim;
    if (!fl_kv_is_scaled(kv->type)) {
        k->store(kv->type, x, d, block + token * fl_kv_row_bytes(kv));
        return;
    }
    if (!is_v) {
        k->hadamard(x, d, fl_rotation(d));
    }
    uint8_t *row = (uint8_t *)(scratch + d);
    fl_pack_row(kv, is_v, scratch, k->quantise(x, d, kv->type == FOLOLLM_KV_Q8 ? 8 : 4, scratch), row);
    fl_kv_copy_row(kv, is_v, block, token, row, true);
}

static void fl_rope_row(const fl_rope_job *j, size_t row, int8_t *scratch) {
    const fl_kernels *k = j->cpu->kernels;
    const fl_attention *a = j->a;
    size_t d = a->head_dim, page = j->batch->slots[row] / FL_PAGE_TOKENS, token = j->batch->slots[row] % FL_PAGE_TOKENS;
    const float *cosines = j->angles + row * d, *sines = cosines + d / 2;
    float *x = j->qkv + row * j->qkv_stride;
    for (size_t h = 0; h < a->n_heads + a->n_kv_heads; h++, x += d) {
        const float *norm = h < a->n_heads ? a->q_norm : a->k_norm;
        if (norm != NULL) {
            k->rmsnorm(x, norm, d, a->norm_epsilon, x);
        }
        k->rotate(x, cosines, sines, d / 2);
    }
    x -= a->n_kv_heads * d;
    for (size_t h = 0; h < a->n_kv_heads; h++, x += d) {
        size_t at = fl_kv_offset(j->kv, j->layer, h, page);
        fl_store_row(j, false, x, j->kv->k + at, token, scratch);
        fl_store_row(j, true, x + a->n_kv_heads * d, j->kv->v + at, token, scratch);
    }
}

static void fl_rope_task(void *context, size_t task, size_t slot) {
    const fl_rope_job *j = context;
    size_t end = fl_min((task + 1) * FL_ROWS_A_TASK, j->batch->n_rows);
    for (size_t row = task * FL_ROWS_A_TASK; row < end; row++) {
        fl_rope_row(j, row, (int8_t *)fl_cpu_scratch(j->cpu, slot));
    }
}

static void fl_cpu_rope_store(fl_backend *b, const fl_attention *a, const fl_batch *batch, const float *angles,
                              fl_kv *kv, size_t layer, float *qkv) {
    size_t qkv_dim = (a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    fl_rope_job job = {fl_cpu_of(b), a, batch, angles, kv, layer, qkv, fl_padded(qkv_dim)};
    fl_pool_run(job.cpu->pool, fl_div_up(batch->n_rows, FL_ROWS_A_TASK), fl_rope_task, &job);
}

/* ---- Attention: FlashAttention (Dao et al., 2022) over pages -- */

typedef struct fl_attend_job {
    const fl_cpu_backend *cpu;
    const fl_attention *a;
    const fl_batch *batch;
    const fl_kv *kv;
    size_t layer;
    const float *qkv; /* (n_rows, qkv_stride) */
    float *out;       /* (n_rows, out_stride) */
    size_t qkv_stride, out_stride, group, tile_positions;
    size_t kv_head, n_kv_heads; /* the first, and how many */
} fl_attend_job;

/* Some consecutive rows of one run, all query heads of one kv head: (n * group) queries, row by row. */
typedef struct fl_attend_tile {
    const fl_attend_job *job;
    const uint32_t *pages;
    size_t first_row, n, kv_head;
    size_t position; /* of the first row */
    float *q, *o;    /* (n * group, head_dim) in whole vectors */
    float *total;    /* the same: o of the splits before this one */
    float *scores;   /* (n * group, FL_BLOCK_TOKENS) */
    float *k, *v;    /* (FL_BLOCK_TOKENS, head_dim) in whole vectors; v without its scales */
    fl_rows keys, values;       /* of a block of tokens */
    float *k_scales, *v_scales; /* (FL_BLOCK_TOKENS) */
    float *maximum, *sum, *factor, *total_maximum, *total_sum; /* (n * group) */
    float *q_scales;
    int32_t *q_sums; /* of the integers of a query */
    fl_dots dots;    /* where K has scales: its q lie in the place of q */
} fl_attend_tile;

/* The i-th query as integers in the place of q, which is zero. The place of k is free. */
static void fl_attend_quantise(fl_attend_tile *t, size_t i, const float *q) {
    const fl_attend_job *j = t->job;
    const fl_kernels *k = j->cpu->kernels;
    size_t d = j->a->head_dim, half = d / 2, high = 4 * t->dots.n_quads;
    int8_t *row = (int8_t *)t->q + i * t->dots.q_stride;
    memcpy(t->k, q, d * sizeof *q);
    k->hadamard(t->k, d, fl_rotation(d));
    t->q_scales[i] = k->quantise(t->k, d, 8, row) / (float)fl_rotation(d);
    if (t->dots.type == FOLOLLM_KV_Q4) {
        memmove(row + high, row + half, half);
        memset(row + half, 0, high - half);
    }
    t->q_sums[i] = 0;
    for (size_t at = 0; at < t->dots.q_stride; at++) {
        t->q_sums[i] += row[at];
    }
}

static void fl_attend_begin(fl_attend_tile *t, float *scratch) {
    const fl_attend_job *j = t->job;
    size_t d = j->a->head_dim, stride = fl_lanes(d), n = t->n * j->group;
    t->q = scratch;
    t->o = t->q + n * stride;
    t->total = t->o + n * stride;
    t->scores = t->total + n * stride;
    t->k = t->scores + n * FL_BLOCK_TOKENS;
    t->v = t->k + FL_BLOCK_TOKENS * stride;
    t->k_scales = t->v + FL_BLOCK_TOKENS * stride;
    t->v_scales = t->k_scales + FL_BLOCK_TOKENS;
    t->maximum = t->v_scales + FL_BLOCK_TOKENS;
    t->sum = t->maximum + n;
    t->factor = t->sum + n;
    t->q_scales = t->factor + n;
    t->total_maximum = t->q_scales + n;
    t->total_sum = t->total_maximum + n;
    t->q_sums = (int32_t *)(void *)(t->total_sum + n);
    t->dots = (fl_dots){.type = j->kv->type,
                        .n_quads = fl_kv_numbers_bytes(j->kv->type, d) / 4,
                        .q = (const int8_t *)t->q,
                        .q_stride = 8 * fl_div_up(d, 8),
                        .n_rows = n,
                        .q_scales = t->q_scales,
                        .q_sums = t->q_sums,
                        .k_scales = t->k_scales,
                        .scores = t->scores};
    memset(t->q, 0, 2 * n * stride * sizeof *t->q);
    for (size_t i = 0; i < n; i++) {
        size_t row = t->first_row + i / j->group, head = t->kv_head * j->group + i % j->group;
        const float *q = j->qkv + row * j->qkv_stride + head * d;
        if (fl_kv_is_scaled(j->kv->type)) {
            fl_attend_quantise(t, i, q);
        } else {
            memcpy(t->q + i * stride, q, d * sizeof *q);
        }
        t->maximum[i] = -FLT_MAX;
        t->sum[i] = 0;
    }
}

/* Few queries meet keys and values where they lie: nothing is stored in between, and memory is read as one stream. Many
 * meet them as floats, laid out once for all. The bits are the same. */
static bool fl_attend_is_few(const fl_attend_tile *t) {
    const fl_attend_job *j = t->job;
    size_t lanes = j->kv->type == FOLOLLM_KV_Q4 ? 2 * FL_LANES : FL_LANES; /* a half of a row of q4 in whole vectors */
    return t->n * j->group <= FL_FEW_QUERIES && j->a->head_dim % lanes == 0;
}

/* The block of the page with a token, of K or of V. */
static const uint8_t *fl_attend_page(const fl_attend_tile *t, const uint8_t *from, size_t token) {
    const fl_attend_job *j = t->job;
    return from + fl_kv_offset(j->kv, j->layer, t->kv_head, t->pages[token / FL_PAGE_TOKENS]);
}

/* n rows of a page as floats, without their scales. */
static void fl_attend_widen(const fl_attend_tile *t, const uint8_t *page, size_t n, float *to) {
    const fl_kernels *k = t->job->cpu->kernels;
    folollm_kv_type type = t->job->kv->type;
    size_t d = t->job->kv->head_dim, stride = fl_lanes(d), row_bytes = fl_kv_numbers_bytes(type, d);
    if (!fl_kv_is_scaled(type) && d == stride) {
        k->expand(fl_kv_dtype(type), page, n * d, to);
        return;
    }
    for (size_t i = 0; i < n; i++, page += row_bytes, to += stride) {
        if (fl_kv_is_scaled(type)) {
            k->unpack(type, page, d, to);
        } else {
            k->expand(fl_kv_dtype(type), page, d, to);
        }
    }
}

/* Tokens [begin, begin + n) of the sequence, of K or of V; begin is a multiple of FL_BLOCK_TOKENS. room: for floats. */
static void fl_attend_load(const fl_attend_tile *t, const uint8_t *from, size_t begin, size_t n, float *room,
                           fl_rows *rows) {
    bool few = fl_attend_is_few(t);
    rows->type = few ? t->job->kv->type : FOLOLLM_KV_F32;
    rows->n = fl_lanes(t->job->a->head_dim);
    rows->n_of_part = few ? FL_PAGE_TOKENS : FL_BLOCK_TOKENS;
    rows->parts[0] = (const uint8_t *)room;
    for (size_t i = 0; i < n; i += FL_PAGE_TOKENS) {
        const uint8_t *page = fl_attend_page(t, from, begin + i);
        if (few) {
            rows->parts[i / FL_PAGE_TOKENS] = page;
        } else {
            fl_attend_widen(t, page, fl_min(n - i, FL_PAGE_TOKENS), room + i * rows->n);
        }
    }
}

/* Keys from the i-th of the block on, those of one page at `block`, as strips of sixteen. */
static void fl_attend_strips(fl_attend_tile *t, const uint8_t *block, size_t i) {
    size_t n = 4 * t->dots.n_quads;
    if (FL_STRIP == FL_LANES) {
        for (size_t at = 0; at < FL_PAGE_TOKENS; at += FL_LANES) {
            t->dots.strips[(i + at) / FL_LANES] = block + at * n;
        }
        return;
    }
    uint8_t *strip = (uint8_t *)t->k + i / FL_LANES * FL_LANES * n; /* small pages: put together */
    t->dots.strips[i / FL_LANES] = strip;
    for (size_t quad = 0; quad < t->dots.n_quads; quad++) {
        memcpy(strip + 4 * (quad * FL_LANES + i % FL_LANES), block + 4 * quad * FL_STRIP, 4 * FL_STRIP);
    }
}

/* Keys with scales, which stay where they are, and the scales of their values. */
static void fl_attend_load_scaled(fl_attend_tile *t, size_t begin, size_t n) {
    const fl_attend_job *j = t->job;
    size_t numbers = FL_PAGE_TOKENS * 4 * t->dots.n_quads, scales = FL_PAGE_TOKENS * sizeof(float);
    for (size_t i = 0; i < n; i += FL_PAGE_TOKENS) {
        const uint8_t *k = fl_attend_page(t, j->kv->k, begin + i), *v = fl_attend_page(t, j->kv->v, begin + i);
        memcpy(t->k_scales + i, k + numbers, scales);
        memcpy(t->v_scales + i, v + numbers, scales);
        fl_attend_strips(t, k, i);
    }
    t->dots.n_strips = fl_div_up(n, FL_LANES);
}

/* The keys that the i-th row of the tile sees. */
static void fl_attend_range(const fl_attend_tile *t, size_t i, size_t *begin, size_t *end) {
    size_t window = t->job->a->window;
    *end = t->position + i + 1;
    *begin = window != 0 && *end > window ? *end - window : 0;
}

static void fl_attend_scores(fl_attend_tile *t, size_t block, size_t n_keys) {
    const fl_attend_job *j = t->job;
    const fl_kernels *k = j->cpu->kernels;
    size_t stride = fl_lanes(j->a->head_dim), n = t->n * j->group;
    if (fl_kv_is_scaled(j->kv->type)) {
        fl_attend_load_scaled(t, block, n_keys);
        k->dots(&t->dots);
        return;
    }
    fl_attend_load(t, j->kv->k, block, n_keys, t->k, &t->keys);
    if (fl_attend_is_few(t)) {
        k->scores(t->q, n, &t->keys, n_keys, t->scores);
    } else {
        k->matmul(t->q, stride, n, t->k, stride, n_keys, stride, fl_no_next, t->scores, FL_BLOCK_TOKENS);
    }
}

static void fl_attend_block(fl_attend_tile *t, size_t block, size_t n_keys) {
    const fl_attend_job *j = t->job;
    const fl_kernels *k = j->cpu->kernels;
    size_t stride = fl_lanes(j->a->head_dim), begin, end;
    fl_attend_scores(t, block, n_keys);
    fl_attend_load(t, j->kv->v, block, n_keys, t->v, &t->values);
    for (size_t row = 0; row < t->n; row++) {
        fl_attend_range(t, row, &begin, &end);
        begin = fl_max(begin, block) - block;
        end = fl_min(end, block + FL_BLOCK_TOKENS) - fl_min(end, block);
        if (begin >= end) {
            continue;
        }
        size_t first = row * j->group;
        for (size_t i = first; i < first + j->group; i++) {
            t->factor[i] = k->softmax(t->scores + i * FL_BLOCK_TOKENS, begin, end, j->a->scale, &t->maximum[i],
                                      &t->sum[i]);
            if (fl_kv_is_scaled(j->kv->type)) {
                k->mul(t->v_scales + begin, end - begin, t->scores + i * FL_BLOCK_TOKENS + begin);
            }
        }
        k->gather(t->o + first * stride, t->factor + first, t->scores + first * FL_BLOCK_TOKENS, j->group, &t->values,
                  begin, end);
    }
}

/* A split is over: what it gave joins the total of those before, and the next begins. */
static void fl_attend_end_split(fl_attend_tile *t, size_t split) {
    const fl_attend_job *j = t->job;
    size_t stride = fl_lanes(j->a->head_dim), begin, end;
    for (size_t i = 0; i < t->n * j->group; i++) {
        float *o = t->o + i * stride, *total = t->total + i * stride;
        fl_attend_range(t, i / j->group, &begin, &end);
        if (begin / FL_SPLIT_TOKENS == split) {
            memcpy(total, o, stride * sizeof *o);
            t->total_maximum[i] = t->maximum[i];
            t->total_sum[i] = t->sum[i];
        } else if (begin < split * FL_SPLIT_TOKENS && end > split * FL_SPLIT_TOKENS) {
            j->cpu->kernels->merge(o, t->maximum[i], t->sum[i], stride, total, &t->total_maximum[i], &t->total_sum[i]);
        }
        memset(o, 0, stride * sizeof *o);
        t->maximum[i] = -FLT_MAX;
        t->sum[i] = 0;
    }
}

static void fl_attend_task(void *context, size_t task, size_t slot) {
    const fl_attend_job *j = context;
    fl_attend_tile t = {.job = j, .kv_head = j->kv_head + task % j->n_kv_heads};
    const fl_run *run = j->batch->runs;
    size_t tile = task / j->n_kv_heads, tiles;
    while (tile >= (tiles = fl_div_up(run->n_rows, j->tile_positions))) {
        tile -= tiles;
        run++;
    }
    size_t skip = tile * j->tile_positions;
    t.pages = run->pages;
    t.first_row = run->first_row + skip;
    t.position = run->position + skip;
    t.n = fl_min(run->n_rows - skip, j->tile_positions);
    fl_attend_begin(&t, fl_cpu_scratch(j->cpu, slot));
    size_t begin, end, ignored;
    fl_attend_range(&t, 0, &begin, &ignored);
    fl_attend_range(&t, t.n - 1, &ignored, &end);
    bool one = begin / FL_SPLIT_TOKENS == (end - 1) / FL_SPLIT_TOKENS;
    for (size_t block = begin - begin % FL_BLOCK_TOKENS, next; block < end; block = next) {
        next = block + FL_BLOCK_TOKENS;
        fl_attend_block(&t, block, fl_min(end - block, FL_BLOCK_TOKENS));
        if (!one && (next % FL_SPLIT_TOKENS == 0 || next >= end)) {
            fl_attend_end_split(&t, block / FL_SPLIT_TOKENS);
        }
    }
    size_t d = j->a->head_dim;
    const float *o = one ? t.o : t.total, *sums = one ? t.sum : t.total_sum;
    for (size_t i = 0; i < t.n * j->group; i++) {
        size_t row = t.first_row + i / j->group, head = t.kv_head * j->group + i % j->group;
        j->cpu->kernels->scale(o + i * fl_lanes(d), 1.0f / sums[i], d, j->out + row * j->out_stride + head * d);
    }
}

static void fl_cpu_attend(fl_backend *b, const fl_attention *a, const fl_batch *batch, const fl_kv *kv,
                          size_t layer, size_t kv_head, size_t n, const float *qkv, float *out) {
    size_t group = a->n_heads / a->n_kv_heads, n_tiles = 0;
    size_t qkv_dim = (a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    fl_attend_job job = {fl_cpu_of(b), a,   batch,
                         kv,           layer, qkv,
                         out,          fl_padded(qkv_dim), fl_padded(a->n_heads * a->head_dim),
                         group,        fl_tile_positions(group),
                         kv_head,      n};
    for (size_t i = 0; i < batch->n_runs; i++) {
        n_tiles += fl_div_up(batch->runs[i].n_rows, job.tile_positions);
    }
    fl_pool_run(job.cpu->pool, n_tiles * n, fl_attend_task, &job);
}

/* Every op is done when it returns. */
static bool fl_cpu_begin(fl_backend *b, const fl_batch *batch) {
    (void)b;
    (void)batch;
    return false;
}

static bool fl_cpu_ahead(fl_backend *b, const fl_batch *batch) {
    (void)b;
    (void)batch;
    return false;
}

static void fl_cpu_end(fl_backend *b, float *logits) {
    (void)b;
    (void)logits;
}

static void fl_cpu_wait(fl_backend *b) {
    (void)b;
}

static const fl_ops fl_cpu_ops = {
    fl_cpu_begin,      fl_cpu_ahead,  fl_cpu_end,         fl_cpu_wait,         fl_cpu_embed,  fl_cpu_norm_qkv,
    fl_cpu_rope_store, fl_cpu_attend, fl_cpu_project_add, fl_cpu_norm_gate_up, fl_cpu_norm_head,
};

FL_LOCAL void fl_cpu_init(fl_cpu_backend *cpu, const fl_kernels *kernels, fl_pool *pool) {
    cpu->base.ops = &fl_cpu_ops;
    cpu->base.name = kernels->name;
    cpu->kernels = kernels;
    cpu->pool = pool;
    cpu->ahead = fl_cpu_features().prefetch ? FL_AHEAD : 0;
    cpu->streams = fl_cpu_features().streams;
}
