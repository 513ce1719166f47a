/* Opening: check everything, plan, then take what was planned. */
#include "api/engine.h"

#define FL_CONTEXT_DEFAULT 4096u
#define FL_SEQS_DEFAULT 8u
#define FL_OWN_SEQS_MAX 4096u
#define FL_REQUESTS_DEFAULT 64u
#define FL_RUNNING_DEFAULT 16u
#define FL_ADAPTERS_DEFAULT 8u
#define FL_MERGES_MAX 64u
#define FL_RANK_DEFAULT 64u
#define FL_RANK_MAX 1024u
#define FL_CHUNK_DEFAULT 128u
#define FL_CHUNK_DEVICE 512u
#define FL_WANTED_DEVICE 128u /* rows of logits that a device has room for, unless more answers are written at once */
#define FL_CHUNK_MAX 8192u
#define FL_DEVICE_MAX 64u
#define FL_THREADS_MAX 256u

/* ---- Options -- */

static folollm_status fl_check_options(const folollm_options *o, folollm_error *error) {
    if (o->struct_size != 0 && o->struct_size != sizeof *o) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.struct_size is %u; this library's is %u",
                       (uint64_t)o->struct_size, (uint64_t)sizeof *o);
    }
    const folollm_host *h = o->host;
    bool some = h != NULL && (h->file_open != NULL || h->file_size != NULL || h->file_read != NULL ||
                              h->file_close != NULL || h->file_map != NULL);
    if (some && (h->file_open == NULL || h->file_size == NULL || h->file_read == NULL || h->file_close == NULL)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "options.host: file_open, file_size, file_read and file_close must be set together");
    }
    if (o->max_seqs > FL_OWN_SEQS_MAX || o->chunk > FL_CHUNK_MAX || o->n_threads > FL_THREADS_MAX) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options: at most %u max_seqs, %u chunk, %u n_threads",
                       (uint64_t)FL_OWN_SEQS_MAX, (uint64_t)FL_CHUNK_MAX, (uint64_t)FL_THREADS_MAX);
    }
    if (o->device > FL_DEVICE_MAX) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.device is %u: at most %u", (uint64_t)o->device,
                       (uint64_t)FL_DEVICE_MAX);
    }
    if (o->device != 0 && fl_cuda_host_bytes() == 0) {
        return fl_no_cuda(error);
    }
    if (o->device != 0 && o->float_activations != 0) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "options.float_activations is of the CPU alone");
    }
    if ((unsigned)o->device_floats > FOLOLLM_FLOATS_BF16) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.device_floats is none of its constants");
    }
    if (o->device == 0 && (o->device_floats != FOLOLLM_FLOATS_EXACT || o->device_stream != NULL)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "options.device_floats and device_stream are of a device, and options.device is 0: the CPU");
    }
    if (o->max_requests > FL_REQUESTS_MAX || o->max_running > FL_REQUESTS_MAX) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options: at most %u max_requests, and as many max_running",
                       (uint64_t)FL_REQUESTS_MAX);
    }
    if (o->max_adapters > FL_ADAPTERS_MAX || o->max_rank > FL_RANK_MAX) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options: at most %u max_adapters, %u max_rank",
                       (uint64_t)FL_ADAPTERS_MAX, (uint64_t)FL_RANK_MAX);
    }
    if ((unsigned)o->kv > FOLOLLM_KV_Q4 || (unsigned)o->isa > FOLOLLM_ISA_NEON) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.kv or options.isa is none of its constants");
    }
    bool merges_ok = o->n_merges <= FL_MERGES_MAX && (o->n_merges == 0 || o->merges != NULL);
    for (size_t i = 0; i < o->n_merges && merges_ok; i++) {
        const folollm_merge *merge = &o->merges[i];
        merges_ok = merge->path != NULL && merge->path[0] != 0 && fl_is_finite(merge->scale);
    }
    if (!merges_ok) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.merges: at most %u, each with a path and a finite scale",
                       (uint64_t)FL_MERGES_MAX);
    }
    if ((unsigned)o->weights > FOLOLLM_WEIGHTS_Q6_K) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.weights is none of its constants");
    }
    if (fl_kernels_of(o->isa) == NULL) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "this processor does not have the instructions of options.isa");
    }
    return FOLOLLM_OK;
}

FL_LOCAL uint32_t fl_threads_of(const folollm_options *o) {
    uint32_t n = o->n_threads != 0 ? o->n_threads : fl_n_cores();
    return n < FL_THREADS_MAX ? n : FL_THREADS_MAX;
}

static folollm_status fl_settle_options(folollm *f, const folollm_options *o, folollm_error *error) {
    const fl_config *c = &f->checkpoint->weights.config;
    fl_worker_options *s = &f->settings;
    uint32_t context = o->context;
    if (context == 0) {
        context = c->max_positions < FL_CONTEXT_DEFAULT ? c->max_positions : FL_CONTEXT_DEFAULT;
    }
    if (context > c->max_context) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.context is %u; the model's own limit is %u positions",
                       (uint64_t)context, (uint64_t)c->max_context);
    }
    uint64_t n_pages = fl_div_up(o->pool_tokens != 0 ? o->pool_tokens : context, FL_PAGE_TOKENS);
    if (n_pages > UINT32_MAX / FL_PAGE_TOKENS) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "options.pool_tokens is %u: too many", (uint64_t)o->pool_tokens);
    }
    s->n_pages = (uint32_t)n_pages;
    s->context = context;
    s->n_rows = o->chunk != 0 ? o->chunk : o->device != 0 ? FL_CHUNK_DEVICE : FL_CHUNK_DEFAULT;
    s->n_rows = (uint32_t)fl_min(s->n_rows, fl_max(context, o->pool_tokens)); /* of one sequence, or of many */
    s->n_threads = fl_threads_of(o);
    s->device = o->device;
    s->device_stream = o->device_stream;
    s->floats = o->device_floats;
    s->rank = o->max_rank != 0 ? o->max_rank : FL_RANK_DEFAULT;
    s->kv = o->kv;
    s->float_activations = o->float_activations != 0;
    s->kernels = fl_kernels_of(o->isa);
    f->max_seqs = o->max_seqs != 0 ? o->max_seqs : FL_SEQS_DEFAULT;
    f->max_requests = o->max_requests != 0 ? o->max_requests : FL_REQUESTS_DEFAULT;
    f->max_running = o->max_running != 0 ? o->max_running : FL_RUNNING_DEFAULT;
    f->max_running = f->max_running < f->max_requests ? f->max_running : f->max_requests;
    f->max_running = f->max_running < s->n_rows ? f->max_running : s->n_rows;
    s->n_wanted = f->max_running > FL_WANTED_DEVICE ? f->max_running : FL_WANTED_DEVICE;
    s->n_wanted = o->device != 0 && s->n_wanted < s->n_rows ? s->n_wanted : s->n_rows;
    s->n_kept = o->device != 0 ? 2 * f->max_seqs : 0;
    f->max_adapters = o->max_adapters != 0 ? o->max_adapters : FL_ADAPTERS_DEFAULT;
    f->driver.no_prefix_cache = o->no_prefix_cache != 0;
    return FOLOLLM_OK;
}

/* ---- The checkpoint -- */

static void fl_checkpoint_release(fl_checkpoint *c) {
    if (c == NULL || fl_atomic_add(&c->engines, (size_t)-1) != 1) {
        return;
    }
    fl_tokenizer_close(&c->memory, c->tokenizer);
    if (c->has_config) {
        fl_upload_close(&c->memory, &c->upload);
        fl_weights_close(&c->memory, &c->weights);
    }
    fl_free(&c->memory, c, sizeof *c);
}

static folollm_status fl_checkpoint_has_tokenizer(fl_checkpoint *c, const char *path, bool *found,
                                                  folollm_error *error) {
    fl_file file;
    FL_TRY(fl_file_open(&c->memory, &file, path, "tokenizer.json", found, error));
    if (*found) {
        fl_file_close(&file);
    } else if (c->tokenizer_only) {
        return fl_fail(error, FOLOLLM_E_IO, "%s holds no tokenizer.json", path);
    }
    return FOLOLLM_OK;
}

/* Ids that the head computes and no token has: they must never be sampled. */
static folollm_status fl_checkpoint_vocabulary(fl_checkpoint *c, const char *path, const char *part,
                                               folollm_error *error) {
    uint32_t vocab = c->weights.config.vocab, n_ids = fl_tokenizer_n_ids(c->tokenizer);
    if (c->tokenizer_only) {
        return FOLOLLM_OK;
    }
    if (n_ids > vocab) {
        return fl_fail(error, FOLOLLM_E_FORMAT,
                       "%s: %s has ids up to %u, but the embedding has %u rows", path, part, (uint64_t)n_ids - 1,
                       (uint64_t)vocab);
    }
    for (uint32_t id = 0; id < vocab; id++) {
        c->n_holes += id >= n_ids || !fl_tokenizer_has_id(c->tokenizer, (folollm_token)id);
    }
    return FOLOLLM_OK;
}

/* What will stay allocated when the weights are loaded, and what reading took beside it. */
static void fl_checkpoint_account(fl_checkpoint *c) {
    uint64_t kept = c->memory.live - (c->has_config ? fl_weights_passing_bytes(&c->weights) : 0);
    c->temporary_bytes = c->memory.peak - kept;
    c->weights_bytes = kept - c->tokenizer_bytes + (c->has_config ? fl_arena_bytes(&c->weights.arena) : 0);
}

static folollm_status fl_checkpoint_read_directory(fl_checkpoint *c, const char *path, const folollm_options *o,
                                                   folollm_error *error) {
    bool has_tokenizer;
    if (!c->tokenizer_only) {
        FL_TRY(fl_weights_open(&c->memory, &c->weights, path, NULL, o, error));
        c->has_config = true;
    }
    FL_TRY(fl_generation_read(&c->memory, &c->generation, path, error));
    FL_TRY(fl_checkpoint_has_tokenizer(c, path, &has_tokenizer, error));
    if (!has_tokenizer) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_tokenizer_open(&c->memory, path, &c->tokenizer, &c->tokenizer_bytes, error));
    FL_TRY(fl_checkpoint_vocabulary(c, path, "tokenizer.json", error));
    fl_generation_add_eos(&c->generation, fl_tokenizer_eos(c->tokenizer));
    return fl_chat_open(&c->memory, path, &c->chat, error);
}

static folollm_status fl_checkpoint_read_gguf(fl_checkpoint *c, const fl_gguf *g, const folollm_options *o,
                                              folollm_error *error) {
    if (!c->tokenizer_only) {
        FL_TRY(fl_weights_open(&c->memory, &c->weights, NULL, g, o, error));
        c->has_config = true;
    }
    if (fl_tokenizer_in_gguf(g)) {
        FL_TRY(fl_tokenizer_open_gguf(&c->memory, g, &c->tokenizer, &c->tokenizer_bytes, error));
        FL_TRY(fl_checkpoint_vocabulary(c, g->file.path, "the tokenizer", error));
        FL_TRY(fl_chat_open_gguf(&c->memory, g, c->tokenizer, &c->chat, error));
    } else if (c->tokenizer_only) {
        return fl_fail(error, FOLOLLM_E_IO, "%s holds no tokenizer", g->file.path);
    }
    return fl_generation_of_gguf(&c->generation, g, c->tokenizer, error);
}

static folollm_status fl_checkpoint_read(fl_checkpoint *c, const char *path, const folollm_options *o,
                                         folollm_error *error) {
    fl_gguf gguf;
    bool is_gguf;
    FL_TRY(fl_gguf_is_at(&c->memory, path, &is_gguf, error));
    if (!is_gguf) {
        return fl_checkpoint_read_directory(c, path, o, error);
    }
    FL_TRY(fl_gguf_open(&c->memory, &gguf, path, error));
    folollm_status status = fl_checkpoint_read_gguf(c, &gguf, o, error);
    fl_gguf_close(&gguf);
    return status;
}

static folollm_status fl_checkpoint_open(const char *path, const folollm_options *o, fl_checkpoint **out,
                                         folollm_error *error) {
    fl_memory memory;
    fl_memory_init(&memory, o->host);
    fl_checkpoint *c = fl_alloc(&memory, sizeof *c); /* counted in memory, which moves into it */
    if (c == NULL) {
        return fl_no_memory(error, "a checkpoint", sizeof *c);
    }
    c->memory = memory;
    c->engines = 1;
    c->tokenizer_only = o->tokenizer_only != 0;
    folollm_status status = fl_checkpoint_read(c, path, o, error);
    if (status != FOLOLLM_OK) {
        fl_checkpoint_release(c);
        return status;
    }
    fl_checkpoint_account(c);
    *out = c;
    return FOLOLLM_OK;
}

/* ---- The engine -- */

static void fl_layout_holes(folollm *f, fl_arena *arena) {
    const fl_checkpoint *c = f->checkpoint;
    folollm_token *holes = fl_take(arena, c->n_holes, sizeof *holes);
    uint32_t vocab = c->weights.config.vocab;
    for (uint32_t id = 0; holes != NULL && id < vocab && f->sampler.n_holes < c->n_holes; id++) {
        if (id >= fl_tokenizer_n_ids(c->tokenizer) || !fl_tokenizer_has_id(c->tokenizer, (folollm_token)id)) {
            holes[f->sampler.n_holes++] = (folollm_token)id;
        }
    }
    f->sampler.holes = holes;
}

/* Everything of an engine but the worker's memory, dry or real. */
static void fl_engine_layout(folollm *f) {
    const fl_checkpoint *c = f->checkpoint;
    uint32_t vocab = c->weights.config.vocab;
    size_t piece = c->tokenizer != NULL ? fl_tokenizer_max_piece_bytes(c->tokenizer) : 0;
    fl_pages_layout(&f->pages, &f->arena, f->settings.n_pages);
    fl_adapters_layout(&f->adapters, &f->arena, f->max_adapters);
    fl_sequences_layout(&f->sequences, &f->arena, f->max_seqs, f->max_requests, f->settings.context, vocab,
                        fl_stream_room(piece));
    fl_sampler_layout(&f->sampler, &f->arena, vocab);
    fl_layout_holes(f, &f->arena);
    fl_executor_layout(&f->executor, &f->arena, f->settings.n_rows, f->max_seqs,
                       f->max_seqs > f->max_running ? f->max_seqs : f->max_running, vocab);
    fl_driver_layout(&f->driver, &f->arena, f->max_requests, f->max_running, f->settings.context,
                     f->memory.host.log_step != NULL);
}

/* owner: of the checkpoint; an engine made by folollm_share takes only its own part. */
static void fl_engine_plan(folollm *f, bool owner) {
    const fl_checkpoint *c = f->checkpoint;
    folollm_memory *p = &f->plan;
    if (owner) {
        p->tokenizer = c->tokenizer_bytes;
        p->weights = c->weights_bytes;
        p->mapped = c->has_config ? c->weights.mapped_bytes : 0;
        p->temporary = c->temporary_bytes;
        if (c->has_config) {
            uint64_t loading = fl_weights_temporary_bytes(&c->weights, f->settings.n_threads);
            p->temporary = loading > p->temporary ? loading : p->temporary;
        }
    }
    p->scratch = fl_arena_bytes(&f->worker.scratch);
    if (f->settings.device != 0) {
        p->scratch += fl_cuda_host_bytes();
        p->weights += owner ? fl_upload_host_bytes(&c->weights) : 0;
        p->device = f->worker.device_scratch.at + f->worker.cache.at + (owner ? c->upload.arena.at : 0);
    } else {
        p->scratch += fl_pool_bytes(f->settings.n_threads);
        p->kv_cache = fl_arena_bytes(&f->worker.cache);
    }
    p->sequences = fl_arena_bytes(&f->arena) + sizeof *f;
    p->allocated = p->tokenizer + p->weights + p->scratch + p->kv_cache + p->sequences;
}

/* An engine with its plan made and nothing of it taken. */
static folollm_status fl_engine_new(fl_checkpoint *c, const folollm_options *o, bool owner, folollm **out,
                                    folollm_error *error) {
    fl_memory memory;
    fl_memory_init(&memory, &c->memory.host);
    folollm *f = fl_alloc(&memory, sizeof *f);
    if (f == NULL) {
        return fl_no_memory(error, "an engine", sizeof *f);
    }
    f->memory = memory;
    f->checkpoint = c;
    folollm_status status = FOLOLLM_OK;
    if (!c->tokenizer_only) {
        status = fl_settle_options(f, o, error);
    }
    if (status == FOLOLLM_OK && !c->tokenizer_only) {
        fl_engine_layout(f);
        fl_worker_layout(&f->worker, &c->weights, &f->settings);
        if (f->settings.device != 0 && owner) {
            fl_upload_layout(&c->upload, &c->weights);
        }
    }
    fl_engine_plan(f, owner);
    if (status == FOLOLLM_OK && o->memory_limit != 0 && f->plan.allocated > o->memory_limit) {
        status = fl_fail(error, FOLOLLM_E_MEMORY, "the plan takes %u bytes, above options.memory_limit of %u",
                         f->plan.allocated, o->memory_limit);
    }
    if (status != FOLOLLM_OK) {
        fl_free(&memory, f, sizeof *f);
        return status;
    }
    *out = f;
    return FOLOLLM_OK;
}

/* The device's copy of the weights must be there, and on this engine's device. */
static folollm_status fl_check_upload(const folollm *f, folollm_error *error) {
    const fl_cuda *cuda = &f->checkpoint->upload.cuda;
    uint32_t has = cuda->device != NULL ? cuda->ordinal + 1 : 0;
    if (f->settings.device != 0 && f->settings.device != has) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "options.device is %u; the engine that is shared was loaded with %u, and its weights are not on "
                       "others",
                       (uint64_t)f->settings.device, (uint64_t)has);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_engine_start(folollm *f, folollm_error *error) {
    if (f->checkpoint->tokenizer_only) {
        return FOLOLLM_OK;
    }
    FL_TRY(fl_check_upload(f, error));
    FL_TRY(fl_arena_open(&f->memory, &f->arena, "the sequences", error));
    FL_TRY(fl_worker_open(&f->memory, &f->worker, &f->settings, &f->checkpoint->upload, error));
    fl_engine_layout(f);
    fl_pages_init(&f->pages);
    f->executor.worker = &f->worker;
    f->executor.pages = &f->pages;
    f->executor.sequences = &f->sequences;
    f->executor.tokenizer = f->checkpoint->tokenizer;
    f->executor.context = f->settings.context;
    f->executor.max_wanted = f->settings.n_wanted;
    f->chooser.sampler = &f->sampler;
    f->sampler.kernels = f->worker.cpu.kernels;
    f->chooser.pages = &f->pages;
    f->chooser.tokenizer = f->checkpoint->tokenizer;
    f->chooser.limit = f->settings.context;
    fl_driver_init(&f->driver, &f->executor, &f->chooser, &f->memory.host);
    fl_worker_ban(&f->worker, f->sampler.holes, f->sampler.n_holes);
    return fl_worker_status(&f->worker, error);
}

/* Take the checkpoint (the caller's reference is used up, on failure too) and make an engine over it. */
static folollm_status fl_engine_open(fl_checkpoint *c, const folollm_options *o, bool load, folollm **out,
                                     folollm_error *error) {
    folollm *f = NULL;
    folollm_status status = fl_engine_new(c, o, load, &f, error);
    if (status != FOLOLLM_OK) {
        fl_checkpoint_release(c);
        return status;
    }
    if (load && c->has_config) {
        status = fl_weights_load(&c->memory, &c->weights, f->settings.n_threads, error);
        if (status == FOLOLLM_OK && f->settings.device != 0) {
            status = fl_upload_open(&c->memory, &c->upload, &c->weights, f->settings.device - 1, error);
        }
    }
    if (status == FOLOLLM_OK) {
        status = fl_engine_start(f, error);
    }
    if (status != FOLOLLM_OK) {
        folollm_free(f);
        return status;
    }
    *out = f;
    return FOLOLLM_OK;
}

/* ---- Public -- */

static const folollm_options fl_default_options;

FL_LOCAL folollm_status fl_open_arguments(const char *path, const folollm_options **o, const void *out,
                                          folollm_error *error) {
    if (path == NULL || path[0] == 0 || out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "a path and a place for the result are needed");
    }
    *o = *o != NULL ? *o : &fl_default_options;
    return fl_check_options(*o, error);
}

FOLOLLM_API folollm_status folollm_plan(const char *path, const folollm_options *options, folollm_memory *memory,
                                        folollm_error *error) {
    fl_checkpoint *c;
    folollm *f;
    FL_TRY(fl_open_arguments(path, &options, memory, error));
    FL_TRY(fl_checkpoint_open(path, options, &c, error));
    folollm_status status = fl_engine_new(c, options, true, &f, error);
    if (status == FOLOLLM_OK) {
        *memory = f->plan;
        fl_free(&f->memory, f, sizeof *f);
    }
    fl_checkpoint_release(c);
    return status;
}

FOLOLLM_API folollm_status folollm_load(const char *path, const folollm_options *options, folollm **out,
                                        folollm_error *error) {
    fl_checkpoint *c;
    FL_TRY(fl_open_arguments(path, &options, out, error));
    FL_TRY(fl_checkpoint_open(path, options, &c, error));
    return fl_engine_open(c, options, true, out, error);
}

FOLOLLM_API folollm_status folollm_share(folollm *engine, const folollm_options *options, folollm **out,
                                         folollm_error *error) {
    if (engine == NULL || out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "an engine and a place for the result are needed");
    }
    options = options != NULL ? options : &fl_default_options;
    FL_TRY(fl_check_options(options, error));
    fl_atomic_add(&engine->checkpoint->engines, (size_t)1);
    return fl_engine_open(engine->checkpoint, options, false, out, error);
}

FOLOLLM_API void folollm_free(folollm *engine) {
    if (engine == NULL) {
        return;
    }
    fl_checkpoint *c = engine->checkpoint;
    for (uint32_t i = 0; engine->adapters.slots != NULL && i < engine->adapters.n_slots; i++) {
        fl_worker_unbind(&engine->worker, &engine->adapters.slots[i]);
    }
    fl_worker_close(&engine->memory, &engine->worker);
    fl_adapters_close(&engine->memory, &engine->adapters);
    fl_arena_close(&engine->memory, &engine->arena);
    fl_free(&engine->memory, engine, sizeof *engine);
    fl_checkpoint_release(c);
}
