#include "model/convert.h"

#ifndef FL_CONVERT_BYTES
#define FL_CONVERT_BYTES ((size_t)1 << 22) /* read at once, or a panel of rows if these are more */
#endif

/* slot: [ a row of floats in whole units | FL_PANEL rows of blocks ] */
static size_t fl_slot_floats(size_t n_cols) {
    return fl_units(n_cols) * FL_UNIT + FL_CHUNK;
}

static void fl_converter_layout(fl_converter *c, size_t n_cols, size_t quantised_bytes, uint32_t n_threads) {
    size_t row_bytes = sizeof(float) + fl_slot_floats(n_cols) / FL_UNIT * 34; /* of the widest packed type */
    c->arena.raw = true;
    c->raw_bytes = fl_max(fl_max(FL_CONVERT_BYTES, FL_PANEL * sizeof(float) * n_cols), quantised_bytes);
    c->slot_bytes = fl_lanes(fl_slot_floats(n_cols) + FL_PANEL * row_bytes / sizeof(float) + 1) * sizeof(float);
    c->raw = fl_take(&c->arena, c->raw_bytes, 1);
    c->slots = fl_take(&c->arena, n_threads, c->slot_bytes);
}

FL_LOCAL uint64_t fl_converter_bytes(size_t n_cols, size_t quantised_bytes, uint32_t n_threads) {
    fl_converter c;
    memset(&c, 0, sizeof c);
    fl_converter_layout(&c, n_cols, quantised_bytes, n_threads);
    return (uint64_t)fl_arena_bytes(&c.arena) + fl_pool_bytes(n_threads);
}

FL_LOCAL folollm_status fl_converter_open(fl_memory *m, fl_converter *c, size_t n_cols, size_t quantised_bytes,
                                          uint32_t n_threads, folollm_error *error) {
    memset(c, 0, sizeof *c);
    fl_converter_layout(c, n_cols, quantised_bytes, n_threads);
    folollm_status status = fl_arena_open(m, &c->arena, "converting the weights", error);
    if (status == FOLOLLM_OK) {
        fl_converter_layout(c, n_cols, quantised_bytes, n_threads);
        c->kernels = fl_kernels_of(FOLOLLM_ISA_BEST);
        status = fl_pool_open(m, n_threads, &c->pool, error);
    }
    if (status != FOLOLLM_OK) {
        fl_converter_close(m, c);
    }
    return status;
}

FL_LOCAL void fl_converter_close(fl_memory *m, fl_converter *c) {
    fl_pool_close(m, c->pool);
    fl_arena_close(m, &c->arena);
    c->pool = NULL;
}

typedef struct fl_convert_job {
    const fl_converter *c;
    const uint8_t *in;             /* plain rows or rows of blocks of the type `from` */
    const fl_quantised *quantised; /* instead, or NULL */
    fl_dtype from, to;
    size_t first;          /* row of the matrix that `in` begins with */
    size_t n_rows, n_cols; /* of what is there */
    const fl_merged *merged;
    fl_rows_out how;
    uint8_t *out; /* of the whole matrix */
} fl_convert_job;

static void fl_convert_plain(fl_dtype to, const float *x, size_t n, uint8_t *out) {
    uint16_t half;
    if (to == FL_F32) {
        memcpy(out, x, n * sizeof *x);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        half = to == FL_F16 ? fl_f16_of_float(x[i]) : fl_bf16_of_float(x[i]);
        memcpy(out + i * sizeof half, &half, sizeof half);
    }
}

/* A row, as floats. */
static void fl_read_row(const fl_convert_job *j, size_t row, float *x) {
    if (j->quantised != NULL) {
        fl_quantised_floats(j->quantised, row, x);
        return;
    }
    const uint8_t *from = j->in + row * fl_row_bytes(j->from, j->n_cols);
    if (!fl_is_plain(j->from)) {
        fl_dequantise(j->from, from, fl_div_up(j->n_cols, fl_block_numbers(j->from)) * fl_block_numbers(j->from), x);
    } else {
        fl_to_float(j->from, from, j->n_cols, x);
    }
}

/* x += row `row` of what the adapters add. x: room for whole vectors, and for one more. */
static void fl_merge_row(const fl_converter *c, const fl_merged *merged, size_t row, size_t n, float *x) {
    const float one = 1;
    for (size_t i = 0; i < merged->n; i++) {
        const fl_low_rank *l = &merged->adapters[i].low_ranks[merged->index];
        for (size_t k = 0; k < l->rank; k += FL_BLOCK_TOKENS) { /* a weighted sum of rows, as attention has it */
            fl_rows a = {FOLOLLM_KV_F32, fl_padded(n), FL_BLOCK_TOKENS, {(const uint8_t *)(l->a + k * fl_padded(n))}};
            c->kernels->gather(x, &one, l->b + row * fl_padded(l->rank) + k, 1, &a, 0,
                               fl_min(l->rank - k, FL_BLOCK_TOKENS));
        }
    }
}

/* A row into blocks, or what a plain row is in memory: moved if no number changes. x: room for the
 * row's numbers, zeros behind them. */
static void fl_convert_row(const fl_convert_job *j, size_t row, float *x, uint8_t *out) {
    bool moves = j->to == fl_computed_type(j->from) && j->merged->n == 0;
    if (moves && j->quantised != NULL) {
        fl_quantised_row(j->quantised, row, (uint8_t *)x, out);
        return;
    }
    if (moves) {
        fl_move_blocks(j->from, j->in + row * fl_row_bytes(j->from, j->n_cols), j->n_cols, out);
        return;
    }
    fl_read_row(j, row, x);
    fl_merge_row(j->c, j->merged, j->first + row, j->n_cols, x);
    if (fl_is_packed(j->to)) {
        fl_quantise_row(j->to, x, j->n_cols, out);
    } else {
        fl_convert_plain(j->to, x, j->n_cols, out);
    }
}

/* Where row `row` of the matrix goes, or the panel that it begins. */
static uint8_t *fl_convert_at(const fl_convert_job *j, size_t row) {
    size_t d = j->how.head_dim, in_head = d != 0 ? row % d : 0, half = d / 2;
    if (j->how.pack) {
        return j->out + fl_matrix_bytes(j->to, row, j->n_cols);
    }
    row += d != 0 ? in_head % half * 2 + in_head / half - in_head : 0;
    return j->out + row * fl_row_bytes(j->to, j->n_cols);
}

/* The rows of a panel. */
static void fl_convert_task(void *context, size_t task, size_t slot) {
    const fl_convert_job *j = context;
    size_t first = task * FL_PANEL, n = fl_min(j->n_rows - first, FL_PANEL);
    size_t row_bytes = fl_row_bytes(j->to, j->n_cols);
    float *x = (float *)(void *)(j->c->slots + slot * j->c->slot_bytes);
    uint8_t *rows = (uint8_t *)(x + fl_slot_floats(j->n_cols));
    bool packs = fl_is_packed(j->to) && j->how.pack;
    bool as_it_is = j->from == j->to && j->quantised == NULL && j->merged->n == 0;
    memset(x + j->n_cols, 0, (fl_slot_floats(j->n_cols) - j->n_cols) * sizeof *x);
    for (size_t r = first; r < first + n; r++) {
        uint8_t *out = packs ? rows + (r - first) * row_bytes : fl_convert_at(j, j->first + r);
        if (!as_it_is) {
            fl_convert_row(j, r, x, out);
        } else if (!packs) {
            memcpy(out, j->in + r * row_bytes, row_bytes);
        }
    }
    if (packs) {
        fl_pack(j->to, as_it_is ? j->in + first * row_bytes : rows, n, j->n_cols, fl_convert_at(j, j->first + first));
    }
}

FL_LOCAL folollm_status fl_read_rows(const fl_rows_in_file *rows, size_t first, size_t n_rows, void *out,
                                     folollm_error *error) {
    size_t d = rows->head_dim, half = d / 2;
    if (d == 0) {
        return fl_file_read(rows->file, rows->offset + first * rows->row_bytes, out, n_rows * rows->row_bytes, error);
    }
    for (size_t i = 0; i < n_rows; i++) {
        size_t head = (first + i) / d, row = (first + i) % d, from = head * d + row % half * 2 + row / half;
        FL_TRY(fl_file_read(rows->file, rows->offset + from * rows->row_bytes, (uint8_t *)out + i * rows->row_bytes,
                            rows->row_bytes, error));
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_convert(fl_converter *c, const fl_rows_in_file *rows, fl_dtype from, size_t n_rows,
                                   size_t n_cols, const fl_merged *merged, fl_dtype to, fl_rows_out how, void *out,
                                   folollm_error *error) {
    fl_convert_job job = {c, rows->file->map, NULL, from, to, 0, n_rows, n_cols, merged, how, out};
    if (job.in != NULL && rows->head_dim == 0) {
        job.in += rows->offset;
        fl_pool_run(c->pool, fl_div_up(n_rows, FL_PANEL), fl_convert_task, &job);
        fl_file_forget(rows->file, rows->offset, (uint64_t)n_rows * rows->row_bytes);
        return FOLOLLM_OK;
    }
    size_t most = c->raw_bytes / rows->row_bytes / FL_PANEL * FL_PANEL;
    for (job.in = c->raw; job.first < n_rows; job.first += most) {
        job.n_rows = fl_min(n_rows - job.first, most);
        FL_TRY(fl_read_rows(rows, job.first, job.n_rows, c->raw, error));
        fl_pool_run(c->pool, fl_div_up(job.n_rows, FL_PANEL), fl_convert_task, &job);
    }
    return FOLOLLM_OK;
}

FL_LOCAL void fl_convert_quantised(fl_converter *c, const fl_quantised *q, bool exact, const fl_merged *merged,
                                   fl_dtype to, fl_rows_out how, void *out) {
    fl_convert_job job = {c, NULL, q, exact ? to : FL_DTYPE_OTHER, to, 0, q->n_rows, q->n_cols, merged, how, out};
    fl_pool_run(c->pool, fl_div_up(q->n_rows, FL_PANEL), fl_convert_task, &job);
}
