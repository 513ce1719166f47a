#include "ops/cuda.h"

#define FL_STEP_ROWS 32       /* up to here attention is split, so that few rows still fill a device */
#define FL_STEP_ROWS_MAX 512u /* of recorded steps */
#define FL_STEPS (FL_DEVICE_STEPS / 2) /* those without adapters; behind them are those with */
#define FL_NO_STEP SIZE_MAX

static const fl_device_api *fl_cuda_api(void) {
#if defined(FOLOLLM_CUDA)
    return folollm_kernels();
#else
    return NULL;
#endif
}

/* Unless something failed before. */
#define FL_CUDA_DO(cuda, call)                                        \
    do {                                                              \
        if ((cuda)->error == 0) {                                     \
            (cuda)->error = (cuda)->api->call;                        \
        }                                                             \
    } while (0)

/* ---- The device -- */

static folollm_status fl_cuda_failed(const fl_cuda *c, const char *what, int code, folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_DEVICE, "CUDA device %u: %s: %s", (uint64_t)c->ordinal, what,
                   c->api->error_text(code));
}

FL_LOCAL folollm_status fl_no_cuda(folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                   "options.device: this build computes on the CPU only; compile folollm.c with -DFOLOLLM_CUDA, and "
                   "link folollm_kernels.cu");
}

FL_LOCAL folollm_status fl_cuda_open(fl_memory *m, fl_cuda *c, uint32_t ordinal, void *stream, folollm_error *error) {
    int n_devices = 0;
    memset(c, 0, sizeof *c);
    c->ordinal = ordinal;
    c->api = fl_cuda_api();
    if (c->api == NULL) {
        return fl_no_cuda(error);
    }
    if (strcmp(c->api->source_hash, FOLOLLM_SOURCE_HASH) != 0) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "folollm.c and folollm_kernels.cu are of different versions: compile both from one copy");
    }
    int code = c->api->count(&n_devices);
    if (code != 0) {
        return fl_cuda_failed(c, "the runtime did not start", code, error);
    }
    if ((int64_t)ordinal >= n_devices) {
        return fl_fail(error, FOLOLLM_E_DEVICE, "CUDA device %u is asked for; there are %u", (uint64_t)ordinal,
                       (uint64_t)n_devices);
    }
    c->device = fl_alloc(m, c->api->device_bytes);
    if (c->device == NULL) {
        return fl_no_memory(error, "a device", c->api->device_bytes);
    }
    code = c->api->open(c->device, (int)ordinal, stream);
    if (code == 0) {
        code = c->api->about(c->device, &c->info);
    }
    return code == 0 ? FOLOLLM_OK : fl_cuda_failed(c, "it could not be opened", code, error);
}

FL_LOCAL size_t fl_cuda_host_bytes(void) {
    const fl_device_api *api = fl_cuda_api();
    return api != NULL ? api->device_bytes : 0;
}

FL_LOCAL void fl_cuda_close(fl_memory *m, fl_cuda *c) {
    if (c->device != NULL) {
        c->api->close(c->device);
        fl_free(m, c->device, c->api->device_bytes);
    }
    memset(c, 0, sizeof *c);
}

FL_LOCAL void fl_cuda_wait(fl_cuda *c) {
    FL_CUDA_DO(c, wait(c->device));
}

FL_LOCAL folollm_status fl_cuda_status(fl_cuda *c, folollm_error *error) {
    int code = c->error;
    if (code == 0) {
        return FOLOLLM_OK;
    }
    c->lost = c->lost || c->api->wait(c->device) != 0; /* does it still answer? */
    c->error = c->lost ? code : 0;
    const char *what = c->lost ? "it is lost, and with it all engines on it" : "a step failed and was undone";
    return fl_cuda_failed(c, what, code, error);
}

FL_LOCAL void fl_cuda_upload(fl_cuda *c, void *to, const void *from, size_t n_bytes) {
    FL_CUDA_DO(c, upload(c->device, to, from, n_bytes));
}

FL_LOCAL void fl_cuda_read(fl_cuda *c, void *to, const void *from, size_t n_bytes) {
    FL_CUDA_DO(c, download(c->device, to, from, n_bytes));
    fl_cuda_wait(c);
}

FL_LOCAL void fl_cuda_write(fl_cuda *c, void *to, const void *from, size_t n_bytes) {
    fl_cuda_upload(c, to, from, n_bytes);
    fl_cuda_wait(c);
}

FL_LOCAL void fl_cuda_copy(fl_cuda *c, void *to, const void *from, size_t pitch, size_t width, size_t height) {
    FL_CUDA_DO(c, copy(c->device, to, from, pitch, width, height));
}

FL_LOCAL folollm_status fl_cuda_arena_open(fl_cuda *c, fl_arena *a, const char *what, folollm_error *error) {
    if (a->overflow) {
        return fl_fail(error, FOLOLLM_E_MEMORY, "%s would need more bytes than a device can address", what);
    }
    if (a->at == 0) {
        return FOLOLLM_OK;
    }
    int code = c->api->alloc(c->device, a->at, &a->block);
    if (code != 0) {
        a->block = NULL;
        return fl_fail(error, FOLOLLM_E_MEMORY,
                       "CUDA device %u: %u bytes for %s: %s; %u of %u were free when it was opened",
                       (uint64_t)c->ordinal, (uint64_t)a->at, what, c->api->error_text(code), c->info.free_bytes,
                       c->info.total_bytes);
    }
    a->base = a->block;
    a->size = a->at;
    a->at = 0;
    return FOLOLLM_OK;
}

FL_LOCAL void fl_cuda_arena_close(fl_cuda *c, fl_arena *a) {
    if (a->block != NULL) {
        c->api->release(c->device, a->block);
    }
    memset(a, 0, sizeof *a);
}

FL_LOCAL size_t fl_cuda_matrix_bytes(fl_dtype type, size_t n_rows, size_t n_cols) {
    size_t columns = fl_is_packed(type) ? n_cols : fl_div_up(n_cols, FL_DEVICE_CHUNK) * FL_DEVICE_CHUNK;
    return fl_matrix_bytes(type, n_rows, columns);
}

FL_LOCAL void fl_cuda_upload_part(fl_cuda *c, const fl_part *part, size_t n_cols, void *piece, void *to) {
    size_t row_bytes = fl_row_bytes(part->type, n_cols), most = fl_max(FL_CUDA_PIECE / row_bytes, 1);
    if (fl_is_packed(part->type)) {
        fl_cuda_upload(c, to, part->data, fl_matrix_bytes(part->type, part->n_rows, n_cols));
        return;
    }
    for (size_t row = 0, n; row < part->n_rows; row += n) {
        n = fl_min(part->n_rows - row, most);
        fl_device_pack pack = {(int)part->type, piece,
                               (uint8_t *)to + fl_cuda_matrix_bytes(part->type, row, n_cols), n, (uint32_t)n_cols};
        fl_cuda_upload(c, piece, (const uint8_t *)part->data + row * row_bytes, n * row_bytes);
        FL_CUDA_DO(c, pack(c->device, &pack));
    }
}

FL_LOCAL folollm_status fl_cuda_upload_low_ranks(fl_cuda *c, const fl_arena *arena, fl_low_rank *low_ranks, size_t n,
                                                 const fl_low_rank **bound, folollm_error *error) {
    fl_arena copy = {.at = arena->size};
    FL_TRY(fl_cuda_arena_open(c, &copy, "an adapter", error));
    for (size_t i = 0; i < n; i++) {
        if (low_ranks[i].rank != 0) {
            low_ranks[i].a = (const float *)(void *)(copy.base + ((const uint8_t *)low_ranks[i].a - arena->base));
            low_ranks[i].b = (const float *)(void *)(copy.base + ((const uint8_t *)low_ranks[i].b - arena->base));
        }
    }
    fl_cuda_write(c, copy.base, arena->base, arena->size);
    folollm_status status = fl_cuda_status(c, error);
    if (status != FOLOLLM_OK) {
        fl_cuda_arena_close(c, &copy);
        return status;
    }
    *bound = (const fl_low_rank *)(void *)(copy.base + ((uint8_t *)low_ranks - arena->base));
    return FOLOLLM_OK;
}

FL_LOCAL void fl_cuda_release(fl_cuda *c, const void *bound) {
    c->api->release(c->device, (void *)(uintptr_t)bound);
}

/* ---- Layout -- */

static fl_cuda_backend *fl_cuda_of(fl_backend *b) {
    return (fl_cuda_backend *)(void *)b;
}

static size_t fl_cuda_widest(const fl_limits *l) {
    return fl_max(fl_max(l->dim, l->attention_dim), l->ffn_dim);
}

static size_t fl_cuda_splits(size_t n_keys) {
    return fl_div_up(n_keys, FL_SPLIT_TOKENS);
}

static size_t fl_cuda_split_rows(const fl_cuda_backend *b) {
    return fl_min(b->o.n_wanted, FL_STEP_ROWS);
}

/* Tiles of a batch, at most. */
static size_t fl_cuda_tiles(size_t n_rows, size_t n_runs, size_t group, size_t queries) {
    return n_rows * group / queries + n_runs;
}

static size_t fl_cuda_kv_heads(const fl_cuda_backend *b) {
    return b->o.n_heads / b->o.limits.group;
}

/* Where the arrays of a batch begin in `base`, which may be NULL; returns what comes behind them. */
static size_t fl_cuda_place(fl_cuda_shape *s, const fl_cuda_backend *b, uint8_t *base) {
    fl_arena a = {.base = base, .size = base != NULL ? b->staging_bytes : 0};
    s->counts = fl_take(&a, 1, sizeof *s->counts);
    s->tokens = fl_take(&a, s->rows, sizeof *s->tokens);
    s->positions = fl_take(&a, s->rows, sizeof *s->positions);
    s->slots = fl_take(&a, s->rows, sizeof *s->slots);
    s->wanted = fl_take(&a, s->rows, sizeof *s->wanted);
    s->adapters = fl_take(&a, s->rows, sizeof *s->adapters);
    s->choices = fl_take(&a, s->rows, sizeof *s->choices);
    s->tile = fl_take(&a, s->tiles, sizeof *s->tile);
    s->done = fl_take(&a, fl_min(s->rows, FL_STEP_ROWS), fl_cuda_kv_heads(b) * sizeof *s->done);
    size_t at = a.at;
    s->pages = fl_take(&a, 0, sizeof *s->pages);
    return at;
}

/* What the turns have of the host's memory at `base`, which may be NULL; returns how much. */
static size_t fl_cuda_place_turns(fl_cuda_backend *b, void *base) {
    fl_arena a = {.base = base, .size = base != NULL ? SIZE_MAX : 0};
    for (size_t i = 0; i < FL_DEVICE_MARKS; i++) {
        b->turns[i].staging = fl_take(&a, b->staging_bytes, 1);
        b->turns[i].brought = fl_take(&a, b->o.n_wanted, sizeof *b->turns[i].brought);
    }
    return a.at;
}

static size_t fl_cuda_ban_words(const fl_cuda_options *o) {
    return fl_div_up(o->vocab, 32);
}

FL_LOCAL void fl_cuda_layout(fl_cuda_backend *b, fl_arena *arena, const fl_cuda_options *o) {
    const fl_limits *l = &o->limits;
    size_t n = l->n_rows, units = fl_units(fl_cuda_widest(l));
    b->o = *o;
    b->normed = fl_take(arena, n, fl_padded(l->dim) * sizeof(float));
    b->apart = fl_take(arena, n, fl_padded(fl_max(l->dim, l->ffn_dim)) * sizeof(float));
    b->narrow = fl_take(arena, n, fl_padded(l->rank) * sizeof(float));
    b->logits = fl_take(arena, o->n_wanted, o->vocab * sizeof(float));
    b->kept = fl_take(arena, o->n_kept, o->vocab * sizeof(float));
    b->banned = fl_take(arena, fl_cuda_ban_words(o), sizeof *b->banned);
    b->chosen = fl_take(arena, o->n_wanted, sizeof *b->chosen);
    for (size_t i = 0; i < (l->packed ? l->ordered ? FL_PARTS_MAX : 1 : 0); i++) {
        fl_device_integers *to = &b->integers[i];
        to->q = fl_take(arena, n, units * FL_UNIT);
        to->scales = fl_take(arena, n, units * sizeof(float));
        to->minus = fl_take(arena, n, units * sizeof(float));
    }
    size_t widest = fl_div_up(fl_cuda_widest(l), FL_DEVICE_CHUNK) * FL_DEVICE_CHUNK;
    for (size_t i = 0; i < o->n_pieces; i++) {
        b->pieces.piece[i] = fl_take(arena, n, widest * sizeof *b->pieces.piece[i]);
    }
    size_t parts = fl_cuda_split_rows(b) * o->n_heads * fl_cuda_splits(2 * o->context);
    b->parts = fl_take(arena, parts, l->head_dim * sizeof(float));
    b->part_limits = fl_take(arena, parts, 2 * sizeof(float));
    fl_cuda_shape most = {.rows = n, .tiles = fl_cuda_tiles(n, n, l->group, 1)};
    size_t pages = n * fl_div_up(o->context, FL_PAGE_TOKENS) * sizeof(uint32_t);
    b->staging_bytes = fl_max(fl_cuda_place(&most, b, NULL) + pages, fl_cuda_ban_words(o) * sizeof *b->banned);
    b->staging_bytes = fl_max(b->staging_bytes, l->head_dim * sizeof(float));
    b->staged = fl_take(arena, b->staging_bytes, 1);
    b->angles = fl_take(arena, o->context, l->head_dim * sizeof(float));
}

FL_LOCAL void fl_cuda_ban(fl_cuda_backend *b, const folollm_token *ids, size_t n) {
    uint32_t *words = (uint32_t *)(void *)b->turns[0].staging;
    size_t bytes = fl_cuda_ban_words(&b->o) * sizeof *words;
    memset(words, 0, bytes);
    for (size_t i = 0; i < n; i++) {
        words[(uint32_t)ids[i] / 32] |= 1u << (uint32_t)ids[i] % 32;
    }
    fl_cuda_write(b->cuda, b->banned, words, bytes);
}

FL_LOCAL void fl_cuda_keep(fl_cuda_backend *b, size_t i, size_t n, size_t place) {
    size_t vocab = b->o.vocab, bytes = n * vocab * sizeof(float);
    fl_cuda_copy(b->cuda, b->kept + place * vocab, b->logits + i * vocab, bytes, bytes, 1);
}

FL_LOCAL void fl_cuda_kept(fl_cuda_backend *b, size_t place, float *logits) {
    fl_cuda_read(b->cuda, logits, b->kept + place * b->o.vocab, b->o.vocab * sizeof(float));
}

FL_LOCAL void fl_cuda_angles(fl_cuda_backend *b, const float *frequencies, float scale) {
    fl_cuda *c = b->cuda;
    size_t half = b->o.limits.head_dim / 2;
    float *there = (float *)(void *)b->staged; /* no batch is there yet */
    fl_device_angles a = {there, (uint32_t)half, (uint32_t)b->o.context, scale, b->angles};
    memcpy(b->turns[0].staging, frequencies, half * sizeof *frequencies);
    fl_cuda_upload(c, there, b->turns[0].staging, half * sizeof *frequencies);
    FL_CUDA_DO(c, angles(c->device, &a));
    fl_cuda_wait(c);
}

/* ---- Batches -- */

/* Is attention done on tensor cores? */
static bool fl_cuda_flashes(const fl_cuda_options *o) {
    bool halves = o->kv == FOLOLLM_KV_F16 || o->kv == FOLOLLM_KV_BF16;
    return o->n_pieces > 0 && halves && (o->limits.head_dim == 64 || o->limits.head_dim == 128);
}

/* The smallest power of two that is not below n, and its logarithm. */
static size_t fl_log2_above(size_t n) {
    size_t log2 = 0;
    while ((size_t)1 << log2 < n) {
        log2++;
    }
    return log2;
}

static size_t fl_power_above(size_t n) {
    return (size_t)1 << fl_log2_above(n);
}

/* How many powers of two of rows are recorded with splits, and how many of splits. */
static size_t fl_cuda_split_steps(const fl_cuda_backend *b) {
    return fl_log2_above(fl_cuda_split_rows(b) + 1);
}

static size_t fl_cuda_split_kinds(const fl_cuda_backend *b) {
    return fl_log2_above(fl_cuda_splits(b->o.context)) + 1;
}

/* Which shapes are recorded: rows 1, 2, 4 ... each with splits 1, 2, 4 ... as far as they are split. False: no more. */
static bool fl_cuda_step_shape(const fl_cuda_backend *b, size_t step, fl_cuda_shape *s) {
    size_t kinds = fl_cuda_split_kinds(b), with_splits = fl_cuda_split_steps(b) * kinds;
    bool is_split = step < with_splits;
    size_t log2 = is_split ? step / kinds : fl_cuda_split_steps(b) + step - with_splits;
    memset(s, 0, sizeof *s);
    s->rows = (size_t)1 << log2;
    s->n_splits = is_split ? 1u << step % kinds : 1;
    s->queries = (uint32_t)fl_min(fl_power_above(b->o.limits.group), b->most_queries);
    s->tiles = s->rows * fl_div_up(b->o.limits.group, s->queries);
    return step < FL_STEPS && s->rows <= fl_min(b->o.n_wanted, FL_STEP_ROWS_MAX);
}

/* The recorded step for a batch that only decodes, or FL_NO_STEP. */
static size_t fl_cuda_step_of(const fl_cuda_backend *b, const fl_batch *batch, size_t n_splits) {
    size_t rows = fl_log2_above(batch->n_rows), split_steps = fl_cuda_split_steps(b), kinds = fl_cuda_split_kinds(b);
    size_t step = rows < split_steps ? rows * kinds + fl_log2_above(n_splits)
                                     : split_steps * kinds + rows - split_steps;
    bool decodes = batch->n_runs == batch->n_rows && batch->n_wanted == batch->n_rows;
    return decodes && step < b->n_steps[b->adapts] ? step : FL_NO_STEP;
}

static size_t fl_cuda_number_of(bool adapts, size_t step) {
    return adapts ? FL_STEPS + step : step;
}

/* Splits of the longest run. */
static size_t fl_cuda_longest(const fl_batch *batch) {
    size_t longest = 0;
    for (size_t i = 0; i < batch->n_runs; i++) {
        longest = fl_max(longest, batch->runs[i].position + batch->runs[i].n_rows);
    }
    return fl_cuda_splits(longest);
}

static fl_cuda_shape fl_cuda_shape_of(const fl_cuda_backend *b, const fl_batch *batch, size_t n_splits) {
    size_t group = b->o.limits.group, most = 0;
    for (size_t i = 0; i < batch->n_runs; i++) {
        most = fl_max(most, batch->runs[i].n_rows * group);
    }
    fl_cuda_shape s = {.rows = batch->n_rows};
    s.queries = (uint32_t)fl_min(fl_power_above(most), b->most_queries);
    s.n_splits = batch->n_rows <= fl_cuda_split_rows(b) ? (uint32_t)n_splits : 1;
    s.tiles = fl_cuda_tiles(batch->n_rows, batch->n_runs, group, s.queries);
    return s;
}

/* The batch as it is copied to the device; returns its end. */
static size_t fl_cuda_stage(fl_cuda_backend *b, const fl_batch *batch, const fl_cuda_shape *shape, uint8_t *staging) {
    fl_cuda_shape s = *shape;
    size_t end = fl_cuda_place(&s, b, staging), n_pages = 0, n_tiles = 0, group = b->o.limits.group;
    for (size_t i = 0; i < batch->n_runs; i++) {
        const fl_run *run = &batch->runs[i];
        size_t pages = fl_div_up(run->position + run->n_rows, FL_PAGE_TOKENS), queries = run->n_rows * group;
        for (size_t first = 0; first < queries; first += s.queries) {
            fl_device_tile tile = {(uint32_t)run->first_row, run->position, (uint32_t)n_pages, (uint32_t)first,
                                   (uint32_t)fl_min(queries - first, s.queries)};
            s.tile[n_tiles++] = tile;
        }
        for (size_t row = run->first_row; row < run->first_row + run->n_rows; row++) {
            s.adapters[row] = run->low_ranks;
        }
        memcpy(s.pages + n_pages, run->pages, pages * sizeof *s.pages);
        n_pages += pages;
    }
    fl_device_counts counts = {(uint32_t)batch->n_rows, (uint32_t)batch->n_wanted, (uint32_t)n_tiles, 0};
    *s.counts = counts;
    memcpy(s.tokens, batch->tokens, batch->n_rows * sizeof *s.tokens);
    memcpy(s.positions, batch->positions, batch->n_rows * sizeof *s.positions);
    memcpy(s.slots, batch->slots, batch->n_rows * sizeof *s.slots);
    memcpy(s.wanted, batch->wanted, batch->n_wanted * sizeof *s.wanted);
    if (batch->choices != NULL) {
        memcpy(s.choices, batch->choices, batch->n_wanted * sizeof *s.choices);
    } else {
        memset(s.choices, 0, batch->n_wanted * sizeof *s.choices);
    }
    memset(s.done, 0, fl_min(s.rows, FL_STEP_ROWS) * fl_cuda_kv_heads(b) * sizeof *s.done);
    return end + n_pages * sizeof *s.pages;
}

static bool fl_cuda_is_asked(const fl_cuda_turn *t, size_t row) {
    return t->choices != NULL && t->choices[row].asked != 0;
}

/* Everything of this turn was started: if it was all chosen, that is what comes back, whatever begins behind it. */
static void fl_cuda_bring(fl_cuda_backend *b, size_t turn) {
    fl_cuda *c = b->cuda;
    fl_cuda_turn *t = &b->turns[turn];
    t->marked = t->n_wanted > 0;
    for (size_t row = 0; row < t->n_wanted; row++) {
        t->marked = t->marked && fl_cuda_is_asked(t, row);
    }
    if (t->marked) {
        FL_CUDA_DO(c, download(c->device, t->brought, b->chosen, t->n_wanted * sizeof *t->brought));
        FL_CUDA_DO(c, mark(c->device, turn));
    }
}

/* The recorded step for a batch, or FL_NO_STEP, and what the batch is on the device. */
static size_t fl_cuda_find_step(fl_cuda_backend *b, const fl_batch *batch, fl_cuda_shape *shape) {
    b->adapts = false;
    for (size_t i = 0; i < batch->n_runs; i++) {
        b->adapts = b->adapts || batch->runs[i].low_ranks != NULL;
    }
    size_t n_splits = fl_cuda_longest(batch), step = fl_cuda_step_of(b, batch, n_splits);
    if (step == FL_NO_STEP || !fl_cuda_step_shape(b, step, shape)) {
        *shape = fl_cuda_shape_of(b, batch, n_splits);
    }
    return step;
}

/* The batch to the device, as the one of this turn, and its recorded step, if there is one. */
static void fl_cuda_send(fl_cuda_backend *b, size_t turn, const fl_batch *batch, size_t step,
                         const fl_cuda_shape *shape) {
    fl_cuda *c = b->cuda;
    fl_cuda_turn *t = &b->turns[turn];
    size_t bytes = fl_cuda_stage(b, batch, shape, t->staging);
    b->shape = *shape;
    fl_cuda_place(&b->shape, b, b->staged);
    t->n_wanted = batch->n_wanted;
    t->choices = batch->choices;
    t->chosen = batch->chosen;
    t->marked = false;
    fl_cuda_upload(c, b->staged, t->staging, bytes);
    if (step != FL_NO_STEP) {
        FL_CUDA_DO(c, replay(c->device, fl_cuda_number_of(b->adapts, step)));
        fl_cuda_bring(b, turn);
    }
}

/* True: a recorded step does all of it. */
static bool fl_cuda_begin(fl_backend *backend, const fl_batch *batch) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_cuda_shape shape;
    size_t step = fl_cuda_find_step(b, batch, &shape);
    if (b->cuda->error != 0) {
        return false;
    }
    fl_cuda_send(b, b->turn, batch, step, &shape);
    return step != FL_NO_STEP;
}

static bool fl_cuda_ahead(fl_backend *backend, const fl_batch *batch) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_cuda_shape shape;
    size_t step = fl_cuda_find_step(b, batch, &shape);
    if (b->cuda->error != 0 || !b->turns[b->turn].marked || step == FL_NO_STEP) {
        return false;
    }
    fl_cuda_send(b, b->turn ^ 1, batch, step, &shape);
    b->ahead = b->cuda->error == 0;
    return b->ahead;
}

static void fl_cuda_end(fl_backend *backend, float *logits) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_cuda *c = b->cuda;
    const fl_cuda_turn *t = &b->turns[b->turn];
    size_t vocab = b->o.vocab;
    if (t->marked) {
        FL_CUDA_DO(c, reach(c->device, b->turn));
        b->turn ^= b->ahead;
        b->ahead = false;
    } else {
        for (size_t row = 0; row < t->n_wanted; row++) {
            if (!fl_cuda_is_asked(t, row)) {
                FL_CUDA_DO(c, download(c->device, logits + row * vocab, b->logits + row * vocab,
                                       vocab * sizeof *logits));
            }
        }
        if (t->choices != NULL) {
            FL_CUDA_DO(c, download(c->device, t->brought, b->chosen, t->n_wanted * sizeof *t->brought));
        }
        fl_cuda_wait(c);
    }
    if (t->choices != NULL) {
        memcpy(t->chosen, t->brought, t->n_wanted * sizeof *t->brought);
    }
}

static void fl_cuda_wait_for_ops(fl_backend *backend) {
    fl_cuda_wait(fl_cuda_of(backend)->cuda);
}

/* ---- Products -- */

/* The first packed part of a matrix with the order of columns of this one, which is packed. */
static size_t fl_cuda_first_of_order(const fl_matrix *w, size_t part) {
    size_t first = 0;
    while (!fl_is_packed(w->parts[first].type) || w->parts[first].order != w->parts[part].order) {
        first++;
    }
    return first;
}

/* The integers that a part meets, if it is packed. Without orders there is only one kind of them. */
static fl_device_integers fl_cuda_integers_of(const fl_cuda_backend *b, const fl_matrix *w, size_t part) {
    bool one = !fl_is_packed(w->parts[part].type) || !b->o.limits.ordered;
    return b->integers[one ? 0 : fl_cuda_first_of_order(w, part)];
}

/* Do products make these rows ready themselves? */
static bool fl_cuda_is_fused(const fl_cuda *c, const fl_device_rows *in) {
    return in->most <= FL_DEVICE_FUSED_ROWS && c->api->product_bytes(in) <= c->info.shared_bytes;
}

/* As how many pieces rows meet a part; 0: not as pieces. */
static uint32_t fl_cuda_pieces_of(const fl_cuda_backend *b, const fl_matrix *w, size_t part) {
    return w->parts[part].type == FL_BF16 ? b->o.n_pieces : 0;
}

/* Rows as the parts of w want them, as far as products do not make them ready themselves: normed, as pieces, and as
 * integers. Afterwards in->x are those for other plain parts and adapters, and in->pieces.piece[0] and in->integers.q
 * tell whether there are pieces and integers. */
static void fl_cuda_prepare(fl_cuda_backend *b, fl_device_rows *in, const fl_matrix *w) {
    fl_cuda *c = b->cuda;
    bool fused = fl_cuda_is_fused(c, in), normed = b->adapts;
    if (fused && !b->adapts) {
        return;
    }
    fl_device_rows rows = *in;
    for (size_t i = 0; i < w->n_parts; i++) {
        bool pieces = fl_cuda_pieces_of(b, w, i) > 0 && in->most > FL_DEVICE_FUSED_ROWS;
        if (pieces) {
            rows.n_pieces = b->o.n_pieces;
            in->pieces = rows.pieces = b->pieces;
        }
        normed = normed || (!fl_is_packed(w->parts[i].type) && !pieces);
    }
    rows.normed = normed && in->norm != NULL ? b->normed : NULL;
    for (size_t i = 0; i < w->n_parts && !fused; i++) {
        if (fl_is_packed(w->parts[i].type) && fl_cuda_first_of_order(w, i) == i) {
            in->integers = rows.integers = fl_cuda_integers_of(b, w, i);
            rows.order = w->parts[i].order;
            FL_CUDA_DO(c, rows(c->device, &rows));
            rows.normed = NULL;
            rows.n_pieces = 0;
            memset(&rows.integers, 0, sizeof rows.integers);
        }
    }
    if (rows.normed != NULL || rows.n_pieces > 0) {
        FL_CUDA_DO(c, rows(c->device, &rows));
    }
    if (in->norm != NULL) {
        in->x = b->normed;
        in->norm = NULL;
        in->which = NULL;
    }
}

/* Parts [first, end) of w, all of one type and order, to y. */
static void fl_cuda_product_parts(fl_cuda_backend *b, const fl_device_rows *in, const fl_matrix *w, size_t first,
                                  size_t end, int epilogue, float *y, size_t y_stride) {
    fl_cuda *c = b->cuda;
    fl_device_product p = {.type = (int)w->parts[first].type, .epilogue = epilogue, .n_parts = (uint32_t)(end - first),
                           .rows = *in, .y = y, .y_stride = y_stride};
    if (in->integers.q != NULL) {
        p.rows.integers = fl_cuda_integers_of(b, w, first);
    }
    p.rows.order = w->parts[first].order;
    p.rows.n_pieces = fl_cuda_pieces_of(b, w, first);
    for (size_t i = first; i < end; i++) {
        fl_device_part part = {w->parts[i].data, w->parts[i].bias, (uint32_t)w->parts[i].n_rows};
        p.parts[i - first] = part;
    }
    FL_CUDA_DO(c, product(c->device, &p));
}

/* y += what the rows' adapters have for a part of w. */
static void fl_cuda_adapt(fl_cuda_backend *b, const fl_device_rows *in, const fl_matrix *w, size_t part, float *y,
                          size_t y_stride) {
    fl_cuda *c = b->cuda;
    fl_device_adapt adapt = {(const fl_device_low_rank *const *)(const void *)b->shape.adapters,
                             (uint32_t)(w->low_rank + part), in->n, in->most, in->n_cols,
                             (uint32_t)w->parts[part].n_rows, in->x, in->stride, b->narrow,
                             fl_padded(b->o.limits.rank), y, y_stride};
    FL_CUDA_DO(c, adapt(c->device, &adapt));
}

/* y (rows, n) = the epilogue of y and b->apart */
static void fl_cuda_combine(fl_cuda_backend *b, const fl_device_rows *in, int epilogue, size_t n, float *y) {
    fl_cuda *c = b->cuda;
    fl_device_combine combine = {epilogue, in->n, in->most, (uint32_t)n, y, b->apart, fl_padded(n)};
    FL_CUDA_DO(c, combine(c->device, &combine));
}

static bool fl_cuda_alike(const fl_part *a, const fl_part *b) {
    return a->type == b->type && a->order == b->order;
}

/* y = x W^T + bias, or added to it; of adapters nothing. */
static void fl_cuda_product(fl_cuda_backend *b, const fl_device_rows *in, const fl_matrix *w, int epilogue, float *y,
                            size_t y_stride) {
    for (size_t first = 0, end, column = 0; first < w->n_parts; first = end) {
        size_t begin = column;
        for (end = first; end < w->n_parts && fl_cuda_alike(&w->parts[first], &w->parts[end]); end++) {
            column += w->parts[end].n_rows;
        }
        fl_cuda_product_parts(b, in, w, first, end, epilogue, y + begin, y_stride);
    }
}

static fl_device_rows fl_cuda_rows_of(const fl_cuda_backend *b, const float *x, size_t n_cols, const float *norm,
                                      float epsilon) {
    fl_device_rows rows = {.x = x, .stride = fl_padded(n_cols), .n = &b->shape.counts->n_rows,
                           .most = (uint32_t)b->shape.rows, .n_cols = (uint32_t)n_cols, .norm = norm,
                           .epsilon = epsilon};
    return rows;
}

/* ---- Ops -- */

static bool fl_cuda_recording(const fl_batch *batch) {
    return batch->tokens == NULL;
}

static void fl_cuda_embed(fl_backend *backend, const fl_matrix *table, const fl_batch *batch, float *x) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_device_embed e = {(int)table->parts[0].type, table->parts[0].data, (uint32_t)table->n_cols,
                         (uint32_t)b->shape.rows, b->shape.counts, b->shape.tokens, b->chosen, x,
                         fl_padded(table->n_cols)};
    (void)batch;
    FL_CUDA_DO(b->cuda, embed(b->cuda->device, &e));
}

static void fl_cuda_norm_qkv(fl_backend *backend, const fl_batch *batch, const float *x, const float *norm,
                             float epsilon, const fl_matrix *w, float *qkv) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_device_rows rows = fl_cuda_rows_of(b, x, w->n_cols, norm, epsilon);
    (void)batch;
    fl_cuda_prepare(b, &rows, w);
    fl_cuda_product(b, &rows, w, FL_DEVICE_STORE, qkv, fl_padded(w->n_rows));
    for (size_t i = 0; i < w->n_parts && b->adapts; i++) {
        fl_cuda_adapt(b, &rows, w, i, qkv, fl_padded(w->n_rows));
        qkv += w->parts[i].n_rows;
    }
}

static void fl_cuda_project_add(fl_backend *backend, const fl_batch *batch, const float *in, const fl_matrix *w,
                                float *x) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_device_rows rows = fl_cuda_rows_of(b, in, w->n_cols, NULL, 0);
    (void)batch;
    size_t stride = fl_padded(w->n_rows);
    fl_cuda_prepare(b, &rows, w);
    if (!b->adapts) {
        fl_cuda_product(b, &rows, w, FL_DEVICE_ADD, x, stride);
        return;
    }
    fl_cuda_product(b, &rows, w, FL_DEVICE_STORE, b->apart, stride);
    fl_cuda_adapt(b, &rows, w, 0, b->apart, stride);
    fl_cuda_combine(b, &rows, FL_DEVICE_ADD, w->n_rows, x);
}

static void fl_cuda_norm_gate_up(fl_backend *backend, const fl_batch *batch, const float *x, const float *norm,
                                 float epsilon, const fl_matrix *w, float *h) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_device_rows rows = fl_cuda_rows_of(b, x, w->n_cols, norm, epsilon);
    size_t n = w->parts[0].n_rows, stride = fl_padded(n);
    (void)batch;
    fl_cuda_prepare(b, &rows, w);
    if (fl_cuda_alike(&w->parts[0], &w->parts[1]) && !b->adapts) {
        fl_cuda_product_parts(b, &rows, w, 0, 2, FL_DEVICE_GATE_UP, h, stride);
        return;
    }
    for (size_t i = 0; i < 2; i++) {
        float *to = i == 0 ? h : b->apart;
        fl_cuda_product_parts(b, &rows, w, i, i + 1, FL_DEVICE_STORE, to, stride);
        if (b->adapts) {
            fl_cuda_adapt(b, &rows, w, i, to, stride);
        }
    }
    fl_cuda_combine(b, &rows, FL_DEVICE_GATE_UP, n, h);
}

static void fl_cuda_choose(fl_cuda_backend *b, size_t n_wanted) {
    const fl_cuda_shape *s = &b->shape;
    fl_device_choose choose = {s->counts, (uint32_t)n_wanted, (uint32_t)b->o.vocab, b->logits, b->banned, s->choices,
                               b->chosen};
    FL_CUDA_DO(b->cuda, choose(b->cuda->device, &choose));
}

static void fl_cuda_norm_head(fl_backend *backend, const fl_batch *batch, const float *x, const float *norm,
                              float epsilon, const fl_matrix *head, size_t first, size_t n, float *logits) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_device_rows rows = fl_cuda_rows_of(b, x, head->n_cols, norm, epsilon);
    fl_matrix part = *head; /* one part, as every head */
    size_t before = fl_cuda_matrix_bytes(head->parts[0].type, first, head->n_cols);
    (void)logits; /* brought there by fl_cuda_end */
    b->adapts = false; /* the head has none */
    rows.n = &b->shape.counts->n_wanted;
    rows.which = b->shape.wanted;
    rows.most = (uint32_t)batch->n_wanted;
    part.n_rows = part.parts[0].n_rows = n;
    part.parts[0].data = (const uint8_t *)head->parts[0].data + before;
    fl_cuda_prepare(b, &rows, &part);
    fl_cuda_product(b, &rows, &part, FL_DEVICE_STORE, b->logits + first, b->o.vocab);
    bool records = fl_cuda_recording(batch); /* for whoever will ask */
    if (first + n == head->n_rows && (records || batch->choices != NULL)) {
        fl_cuda_choose(b, batch->n_wanted);
        if (!records) {
            fl_cuda_bring(b, b->turn);
        }
    }
}

static fl_device_kv fl_cuda_kv(const fl_kv *kv, size_t layer) {
    size_t at = fl_kv_offset(kv, layer, 0, 0);
    fl_device_kv of = {kv->k + at, kv->v + at, (int)kv->type, FL_PAGE_TOKENS, (uint32_t)kv->n_kv_heads,
                       (uint32_t)kv->head_dim, kv->n_pages};
    return of;
}

static fl_device_heads fl_cuda_heads(const fl_cuda_backend *b, const fl_attention *a, const fl_kv *kv, size_t layer,
                                     const float *qkv) {
    size_t qkv_dim = (a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    fl_device_heads heads = {fl_cuda_kv(kv, layer), b->shape.counts, (uint32_t)b->shape.rows, (uint32_t)a->n_heads,
                             b->shape.slots, a->q_norm, a->k_norm, a->norm_epsilon, b->shape.positions, b->angles,
                             qkv, fl_padded(qkv_dim)};
    return heads;
}

/* Of a step that is recorded, every run has one row: its attention does all from qkv on if a tile holds a row's
 * queries. */
static bool fl_cuda_decodes(const fl_cuda_backend *b, const fl_batch *batch) {
    return fl_cuda_recording(batch) && b->o.limits.group <= fl_min(b->shape.queries, FL_DEVICE_QUERIES);
}

static void fl_cuda_rope_store(fl_backend *backend, const fl_attention *a, const fl_batch *batch, const float *angles,
                               fl_kv *kv, size_t layer, float *qkv) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    fl_device_rope rope = {fl_cuda_heads(b, a, kv, layer, qkv), qkv};
    (void)angles; /* NULL: fl_cuda_angles had them */
    if (!fl_cuda_decodes(b, batch)) {
        FL_CUDA_DO(b->cuda, rope_store(b->cuda->device, &rope));
    }
}

static void fl_cuda_attend(fl_backend *backend, const fl_attention *a, const fl_batch *batch, const fl_kv *kv,
                           size_t layer, size_t kv_head, size_t n, const float *qkv, float *out) {
    fl_cuda_backend *b = fl_cuda_of(backend);
    const fl_cuda_shape *s = &b->shape;
    fl_device_attend attend = {.heads = fl_cuda_heads(b, a, kv, layer, qkv), .decodes = fl_cuda_decodes(b, batch),
                               .most_tiles = (uint32_t)s->tiles, .queries = s->queries,
                               .n_pieces = fl_cuda_flashes(&b->o) ? b->o.n_pieces : 0, .kv_head = (uint32_t)kv_head,
                               .n_kv_heads = (uint32_t)n, .n_splits = s->n_splits, .split_tokens = FL_SPLIT_TOKENS,
                               .window = a->window, .scale = a->scale, .tiles = s->tile, .pages = s->pages,
                               .out = out,
                               .out_stride = fl_padded(a->n_heads * a->head_dim), .parts = b->parts,
                               .limits = b->part_limits, .done = s->done};
    FL_CUDA_DO(b->cuda, attend(b->cuda->device, &attend));
}

/* ---- Recording -- */

FL_LOCAL bool fl_cuda_record_begin(fl_cuda_backend *b, bool adapts, fl_batch *batch) {
    fl_cuda *c = b->cuda;
    if (c->error != 0 || !fl_cuda_step_shape(b, b->n_steps[adapts], &b->shape)) {
        return false;
    }
    b->adapts = adapts;
    fl_cuda_place(&b->shape, b, b->staged);
    memset(batch, 0, sizeof *batch);
    batch->n_rows = batch->n_runs = batch->n_wanted = b->shape.rows;
    FL_CUDA_DO(c, record(c->device));
    return true;
}

FL_LOCAL void fl_cuda_record_end(fl_cuda_backend *b, bool adapts) {
    fl_cuda *c = b->cuda;
    size_t number = fl_cuda_number_of(adapts, b->n_steps[adapts]);
    int code = c->api->recorded(c->device, number); /* ends recording even if an op failed */
    c->error = c->error != 0 ? c->error : code;
    b->n_steps[adapts] += c->error == 0;
}

static const fl_ops fl_cuda_ops = {
    fl_cuda_begin,      fl_cuda_ahead,  fl_cuda_end,         fl_cuda_wait_for_ops, fl_cuda_embed,  fl_cuda_norm_qkv,
    fl_cuda_rope_store, fl_cuda_attend, fl_cuda_project_add, fl_cuda_norm_gate_up, fl_cuda_norm_head,
};

FL_LOCAL folollm_status fl_cuda_start(fl_cuda_backend *b, fl_cuda *cuda, folollm_error *error) {
    size_t host_bytes = fl_cuda_place_turns(b, NULL);
    b->base.ops = &fl_cuda_ops;
    b->base.name = "cuda";
    b->base.chooses = true;
    b->cuda = cuda;
    int code = cuda->api->alloc_host(cuda->device, host_bytes, &b->host_memory);
    if (code != 0) {
        b->host_memory = NULL;
        return fl_fail(error, FOLOLLM_E_MEMORY, "CUDA device %u: %u bytes of page-locked memory: %s",
                       (uint64_t)cuda->ordinal, (uint64_t)host_bytes, cuda->api->error_text(code));
    }
    fl_cuda_place_turns(b, b->host_memory);
    if (b->o.n_pieces > 0 && !cuda->info.multiplies_bf16) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "options.device_floats: on CUDA device %u, %s, there are no tensor cores for bf16: it, or what "
                       "folollm_kernels.cu was compiled for, is below compute capability 8.0",
                       (uint64_t)cuda->ordinal, cuda->info.name);
    }
    size_t head_dim = b->o.limits.head_dim, room = (size_t)cuda->info.shared_bytes;
    bool flashes = fl_cuda_flashes(&b->o); /* with less memory than any device has that can */
    b->most_queries = flashes ? FL_DEVICE_FLASH_QUERIES : FL_DEVICE_QUERIES;
    while (!flashes && b->most_queries > 0 &&
           cuda->api->attend_bytes(b->most_queries, (uint32_t)head_dim) > room) {
        b->most_queries /= 2;
    }
    if (b->most_queries == 0 || head_dim > FL_DEVICE_HEAD_DIM) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "CUDA device %u: attention with a head_dim of %u does not fit: at most %u are computed, and %u "
                       "bytes of shared memory are there", (uint64_t)cuda->ordinal, (uint64_t)head_dim,
                       (uint64_t)FL_DEVICE_HEAD_DIM, (uint64_t)room);
    }
    return FOLOLLM_OK;
}

FL_LOCAL void fl_cuda_stop(fl_cuda_backend *b) {
    if (b->host_memory != NULL) {
        b->cuda->api->wait(b->cuda->device);
        b->cuda->api->release_host(b->cuda->device, b->host_memory);
        b->host_memory = NULL;
    }
}
