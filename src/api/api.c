/* The public entries but loading: check the arguments, call down. */
#include "api/engine.h"

FOLOLLM_API const char *folollm_version(void) {
    return FOLOLLM_VERSION;
}

FOLOLLM_API const char *folollm_source_hash(void) {
    return FOLOLLM_SOURCE_HASH;
}

FOLOLLM_API const char *folollm_status_text(folollm_status status) {
    static const char *const texts[] = {
        "success",
        "the call contradicts the documentation",
        "there is not enough memory",
        "a file could not be opened or read",
        "a file is damaged or contradicts itself",
        "this is not supported",
        "the sequence is closed, stale or was never opened",
        "more tokens than the context holds",
        "no free page of KV cache, or no free sequence slot",
        "the logits are not finite",
        "the buffer is too small",
        "the text is not valid UTF-8",
        "not possible in this state",
        "cancelled by the host",
        "the device is not there, or failed",
    };
    int index = -(int)status;
    return index >= 0 && index < (int)FL_COUNT(texts) ? texts[index] : "an unknown status";
}

static void fl_copy_name(char *to, size_t n, const char *from) {
    size_t length = fl_min(strlen(from), n - 1);
    memcpy(to, from, length);
    to[length] = 0;
}

static const char *fl_weights_name(const fl_weights *w) {
    fl_dtype type = fl_weights_type(w);
    return type != FL_DTYPE_OTHER ? fl_dtype_name(type) : "mixed";
}

/* "gptq, 4 bits, groups of 128: q4" */
static void fl_info_quantised(const fl_weights *w, char *text, size_t room) {
    if (w->quantised_loss != NULL) {
        size_t n = fl_quantisation_text(&w->config.quantised, text, room);
        fl_format(text + n, room - n, ": %s%s", fl_dtype_name(w->quantised_type), w->quantised_loss);
    }
}

/* "bf16 as q4 and q6_k", "q3_k as q6_k, q4_k": what matrices are in the file and, if it is not the same, as what they
 * are computed. */
static void fl_stored_names(const fl_weights *w, char *out, size_t room) {
    size_t n = 0;
    for (unsigned i = 0; i < FL_DTYPE_COUNT; i++) {
        const char *before = " as ";
        uint32_t computed = w->stored[i];
        if (computed != 0) {
            n += fl_format(out + n, room - n, "%s%s", n > 0 ? ", " : "", fl_dtype_name((fl_dtype)i));
        }
        for (unsigned to = 0; to < FL_DTYPE_COUNT && computed != 1u << i; to++) {
            if ((computed >> to & 1) != 0) {
                n += fl_format(out + n, room - n, "%s%s", before, fl_dtype_name((fl_dtype)to));
                before = " and ";
            }
        }
    }
}

static void fl_info_model(const folollm *f, folollm_info *info) {
    const fl_weights *w = &f->checkpoint->weights;
    const fl_config *c = &w->config;
    fl_copy_name(info->architecture, sizeof info->architecture, c->architecture);
    fl_copy_name(info->weights, sizeof info->weights, fl_weights_name(w));
    fl_info_quantised(w, info->quantised, sizeof info->quantised);
    fl_stored_names(w, info->stored, sizeof info->stored);
    bool on_device = f->settings.device != 0;
    fl_copy_name(info->kernels, sizeof info->kernels, on_device ? "cuda" : f->settings.kernels->name);
    fl_copy_name(info->device, sizeof info->device, on_device ? f->worker.cuda.info.name : "");
    info->n_params = w->n_params;
    info->n_layers = c->n_layers;
    info->dim = c->dim;
    info->n_heads = c->n_heads;
    info->n_kv_heads = c->n_kv_heads;
    info->head_dim = c->head_dim;
    info->ffn_dim = c->ffn_dim;
    info->vocab = c->vocab;
    info->model_context = c->max_context;
    info->context = f->settings.context;
    info->max_seqs = f->max_seqs;
    info->n_pages = f->settings.n_pages;
    info->page_tokens = FL_PAGE_TOKENS;
    info->chunk = f->settings.n_rows;
    info->n_threads = f->settings.n_threads;
    info->max_requests = f->max_requests;
    info->max_running = f->max_running;
    info->max_adapters = f->max_adapters;
    info->max_rank = f->settings.rank;
    info->kv = f->settings.kv;
    info->kv_token_bytes = 2 * (uint64_t)c->n_layers * c->n_kv_heads * fl_kv_row_bytes(&f->worker.kv);
}

FOLOLLM_API void folollm_get_info(const folollm *f, folollm_info *info) {
    const fl_tokenizer *t = f->checkpoint->tokenizer;
    memset(info, 0, sizeof *info);
    if (!f->checkpoint->tokenizer_only) {
        fl_info_model(f, info);
    }
    fl_copy_name(info->chat_format, sizeof info->chat_format, fl_chat_format_name(f->checkpoint->chat.format));
    info->n_tokens = t != NULL ? fl_tokenizer_n_ids(t) : 0;
    info->bos = t != NULL ? fl_tokenizer_bos(t) : -1;
    info->eos = f->checkpoint->generation.n_eos > 0 ? f->checkpoint->generation.eos[0] : -1;
    info->memory = f->plan;
}

FOLOLLM_API void folollm_get_stats(const folollm *f, folollm_stats *stats) {
    *stats = f->executor.stats;
    stats->pages_free = f->pages.n_free;
    stats->pages_used = f->pages.n_pages - f->pages.n_free;
    stats->pages_shared = f->pages.n_shared;
    stats->pages_cached = f->pages.n_cached;
    stats->pages_evicted = f->pages.n_evicted;
    stats->seqs_open = f->sequences.n_open;
    for (uint32_t i = 0; i < f->driver.scheduler.n_used; i++) {
        fl_request_state state = f->driver.scheduler.requests[i].state;
        stats->requests_waiting += state == FL_REQUEST_WAITING;
        stats->requests_running += state == FL_REQUEST_RUNNING || state == FL_REQUEST_OVER;
    }
}

/* ---- Text -- */

static folollm_status fl_need_tokenizer(const folollm *f, folollm_error *error) {
    if (f == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "an engine is needed");
    }
    if (f->checkpoint->tokenizer == NULL) {
        return fl_fail(error, FOLOLLM_E_STATE, "the checkpoint has no tokenizer.json");
    }
    return FOLOLLM_OK;
}

static folollm_status fl_check_spans(const folollm_span *spans, size_t n, size_t n_bytes, folollm_error *error) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (spans[i].begin < at || spans[i].end < spans[i].begin || spans[i].end > n_bytes) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT,
                           "trusted[%u] is [%u, %u): spans must ascend, not overlap, and end within %u bytes",
                           (uint64_t)i, (uint64_t)spans[i].begin, (uint64_t)spans[i].end, (uint64_t)n_bytes);
        }
        at = spans[i].end;
    }
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_tokenize(folollm *f, const char *text, size_t n_bytes, const folollm_span *trusted,
                                            size_t n_trusted, unsigned flags, folollm_token *tokens, size_t *n_tokens,
                                            folollm_error *error) {
    FL_TRY(fl_need_tokenizer(f, error));
    if ((text == NULL && n_bytes > 0) || (trusted == NULL && n_trusted > 0) || n_tokens == NULL ||
        (tokens == NULL && *n_tokens > 0) || (flags & ~(unsigned)FOLOLLM_TOKENIZE_PLAIN) != 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "tokenize: a NULL that must not be one, or an unknown flag");
    }
    FL_TRY(fl_check_spans(trusted, n_trusted, n_bytes, error));
    fl_str s = {n_bytes > 0 ? text : "", n_bytes};
    return fl_tokenizer_encode(f->checkpoint->tokenizer, &f->memory, s, trusted, n_trusted, flags, tokens, n_tokens,
                               error);
}

/* Feed all ids, into text or, with text NULL, only counting. */
static size_t fl_detokenize_all(const fl_tokenizer *t, const folollm_token *tokens, size_t n_tokens, unsigned flags,
                                char *piece, char *text) {
    fl_detokenizer d;
    size_t n = 0;
    memset(&d, 0, sizeof d);
    for (size_t i = 0; i <= n_tokens; i++) {
        if (i < n_tokens) { /* tokens may be NULL when there are none */
            fl_detokenizer_look_ahead(&d, t, tokens + i, n_tokens - i, flags);
        }
        size_t length = i < n_tokens ? fl_detokenizer_feed(&d, t, tokens[i], flags, piece)
                                     : fl_detokenizer_finish(&d, piece);
        if (text != NULL) {
            memcpy(text + n, piece, length);
        }
        n += length;
    }
    return n;
}

FOLOLLM_API folollm_status folollm_detokenize(folollm *f, const folollm_token *tokens, size_t n_tokens,
                                              unsigned flags, char *text, size_t *n_bytes, folollm_error *error) {
    FL_TRY(fl_need_tokenizer(f, error));
    const fl_tokenizer *t = f->checkpoint->tokenizer;
    if ((tokens == NULL && n_tokens > 0) || n_bytes == NULL || (text == NULL && *n_bytes > 0) ||
        (flags & ~(unsigned)FOLOLLM_DETOKENIZE_SKIP_SPECIAL) != 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "detokenize: a NULL that must not be one, or an unknown flag");
    }
    uint32_t n_ids = fl_tokenizer_n_ids(t), vocab = f->checkpoint->weights.config.vocab;
    n_ids = vocab > n_ids ? vocab : n_ids;
    for (size_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= n_ids) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "tokens[%u] is %d; the vocabulary has %u", (uint64_t)i,
                           (int64_t)tokens[i], (uint64_t)n_ids);
        }
    }
    size_t room = fl_tokenizer_max_piece_bytes(t) + FL_DETOKENIZE_SLACK;
    char *piece = fl_alloc(&f->memory, room);
    if (piece == NULL) {
        return fl_no_memory(error, "detokenisation", room);
    }
    size_t n = fl_detokenize_all(t, tokens, n_tokens, flags, piece, NULL), capacity = *n_bytes;
    *n_bytes = n;
    if (n <= capacity) {
        fl_detokenize_all(t, tokens, n_tokens, flags, piece, text);
    }
    fl_free(&f->memory, piece, room);
    return n <= capacity ? FOLOLLM_OK
                         : fl_fail(error, FOLOLLM_E_BUFFER, "the text has %u bytes; there is room for %u", (uint64_t)n,
                                   (uint64_t)capacity);
}

FOLOLLM_API folollm_status folollm_chat(folollm *f, const folollm_message *messages, size_t n_messages,
                                        const char *date, unsigned flags, char *text, size_t *n_bytes,
                                        folollm_span *trusted, size_t *n_trusted, folollm_error *error) {
    FL_TRY(fl_need_tokenizer(f, error));
    if ((messages == NULL && n_messages > 0) || n_bytes == NULL || n_trusted == NULL ||
        (text == NULL && *n_bytes > 0) || (trusted == NULL && *n_trusted > 0) ||
        (flags & ~(unsigned)(FOLOLLM_CHAT_CONTINUE | FOLOLLM_CHAT_NO_THINKING)) != 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "chat: a NULL that must not be one, or an unknown flag");
    }
    for (size_t i = 0; i < n_messages; i++) {
        if (messages[i].role == NULL || (messages[i].text == NULL && messages[i].n_bytes > 0)) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "messages[%u] has no role or no text", (uint64_t)i);
        }
    }
    return fl_chat_render(&f->checkpoint->chat, messages, n_messages, date, flags, text, n_bytes, trusted, n_trusted,
                          error);
}

/* ---- Adapters -- */

static folollm_status fl_need_weights(const folollm *f, folollm_error *error) {
    if (f == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "an engine is needed");
    }
    if (f->checkpoint->tokenizer_only) {
        return fl_fail(error, FOLOLLM_E_STATE, "the engine was loaded with tokenizer_only: it has no weights");
    }
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_adapter_load(folollm *f, const char *path, float scale, folollm_adapter *out,
                                                folollm_error *error) {
    FL_TRY(fl_need_weights(f, error));
    if (path == NULL || path[0] == 0 || out == NULL || !fl_is_finite(scale)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "adapter_load: a path, a finite scale, and a place for the adapter are needed");
    }
    folollm_adapter handle = 0;
    fl_adapter *a = NULL;
    FL_TRY(fl_adapters_load(&f->memory, &f->adapters, &f->checkpoint->weights.config, path, scale, f->settings.rank,
                            &handle, error));
    FL_TRY(fl_adapters_find(&f->adapters, handle, &a, error));
    folollm_status status = fl_worker_bind(&f->worker, a, error);
    if (status != FOLOLLM_OK) {
        fl_adapter_close(&f->memory, a);
        return status;
    }
    *out = handle;
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_adapter_free(folollm *f, folollm_adapter adapter, folollm_error *error) {
    fl_adapter *a = NULL;
    FL_TRY(fl_need_weights(f, error));
    FL_TRY(fl_adapters_find(&f->adapters, adapter, &a, error));
    if (a != NULL && fl_sequences_use(&f->sequences, a)) {
        return fl_fail(error, FOLOLLM_E_STATE, "adapter %u belongs to sequences that are open: close them first",
                       (uint64_t)adapter);
    }
    if (a != NULL) {
        fl_worker_unbind(&f->worker, a);
        fl_adapter_close(&f->memory, a);
    }
    return FOLOLLM_OK;
}

/* ---- Sequences -- */

static folollm_status fl_need_sequence(folollm *f, folollm_seq seq, fl_sequence **out, folollm_error *error) {
    FL_TRY(fl_need_weights(f, error));
    return fl_sequence_find_own(&f->sequences, seq, out, error);
}

static folollm_status fl_check_tokens(const folollm *f, const folollm_token *tokens, size_t n, folollm_error *error) {
    uint32_t vocab = f->checkpoint->weights.config.vocab;
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "tokens[%u] is %d; the vocabulary has %u", (uint64_t)i,
                           (int64_t)tokens[i], (uint64_t)vocab);
        }
    }
    return FOLOLLM_OK;
}

FOLOLLM_API void folollm_default_sampling(const folollm *f, folollm_sampling *out) {
    *out = f->checkpoint->generation.sampling;
}

static folollm_status fl_read_sampling(const folollm *f, const folollm_sampling *in, fl_sampling *out,
                                       folollm_error *error) {
    const fl_generation *g = &f->checkpoint->generation;
    return fl_sampling_init(out, in, g->eos, g->n_eos, f->checkpoint->weights.config.vocab, error);
}

static folollm_status fl_no_slot(const folollm *f, folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_POOL, "all %u sequences are open: close one, or load with more max_seqs",
                   (uint64_t)f->max_seqs);
}

/* A free slot, or a status that says how many there are. */
static folollm_status fl_take_slot(folollm *f, fl_sequence **s, folollm_seq *id, folollm_error *error) {
    *s = fl_sequence_open(&f->sequences, false, id);
    return *s != NULL ? FOLOLLM_OK : fl_no_slot(f, error);
}

FOLOLLM_API folollm_status folollm_seq_open(folollm *f, const folollm_sampling *sampling, folollm_seq *out,
                                            folollm_error *error) {
    fl_sampling checked;
    fl_sequence *s = NULL;
    FL_TRY(fl_need_weights(f, error));
    if (out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "seq_open: a place for the sequence is needed");
    }
    FL_TRY(fl_read_sampling(f, sampling, &checked, error));
    FL_TRY(fl_take_slot(f, &s, out, error));
    s->sampling = checked;
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_seq_set_adapter(folollm *f, folollm_seq seq, folollm_adapter adapter,
                                                   folollm_error *error) {
    fl_sequence *s = NULL;
    fl_adapter *a = NULL;
    FL_TRY(fl_need_sequence(f, seq, &s, error));
    FL_TRY(fl_adapters_find(&f->adapters, adapter, &a, error));
    if (s->n_tokens > 0 && s->adapter != a) {
        return fl_fail(error, FOLOLLM_E_STATE,
                       "sequence %u has %u tokens that were computed with another adapter: truncate it to 0 first",
                       (uint64_t)seq, (uint64_t)s->n_tokens);
    }
    s->adapter = a;
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_seq_fork(folollm *f, folollm_seq seq, const folollm_sampling *sampling,
                                            folollm_seq *out, folollm_error *error) {
    fl_sampling checked;
    fl_sequence *from = NULL, *to = NULL;
    FL_TRY(fl_need_sequence(f, seq, &from, error));
    if (out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "seq_fork: a place for the sequence is needed");
    }
    if (sampling != NULL) {
        FL_TRY(fl_read_sampling(f, sampling, &checked, error));
    }
    FL_TRY(fl_executor_bring(&f->executor, from, error));
    FL_TRY(fl_take_slot(f, &to, out, error));
    fl_sequence_fork(to, from, &f->pages, f->checkpoint->weights.config.vocab);
    if (sampling != NULL) {
        to->sampling = checked;
        fl_sequence_replay(to, &f->pages, f->checkpoint->tokenizer);
    }
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_seq_truncate(folollm *f, folollm_seq seq, size_t n_tokens, folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_sequence(f, seq, &s, error));
    if (n_tokens > s->n_tokens) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sequence %u has %u tokens and cannot be truncated to %u",
                       (uint64_t)seq, (uint64_t)s->n_tokens, (uint64_t)n_tokens);
    }
    if (n_tokens < s->n_tokens) {
        fl_sequence_cut(s, &f->pages, (uint32_t)n_tokens);
        s->has_logits = false;
        fl_sequence_replay(s, &f->pages, f->checkpoint->tokenizer);
    }
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_seq_tokens(folollm *f, folollm_seq seq, folollm_token *tokens, size_t *n_tokens,
                                              folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_weights(f, error));
    FL_TRY(fl_sequence_find(&f->sequences, seq, &s, error));
    if (n_tokens == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "seq_tokens: a place for the length is needed");
    }
    size_t room = *n_tokens;
    *n_tokens = s->n_tokens;
    if (tokens == NULL) {
        return FOLOLLM_OK;
    }
    if (room < s->n_tokens) {
        return fl_fail(error, FOLOLLM_E_BUFFER, "the sequence has %u tokens; there is room for %u",
                       (uint64_t)s->n_tokens, (uint64_t)room);
    }
    fl_history h = fl_sequence_history(s, &f->pages);
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        tokens[i] = fl_history_at(&h, i);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_save(folollm *f, fl_sequence *s, fl_snapshot_write_hook *write, void *user,
                              folollm_error *error) {
    FL_TRY(fl_executor_bring(&f->executor, s, error));
    if (!fl_snapshot_write(s, &f->worker, &f->pages, &f->checkpoint->generation, write, user)) {
        FL_TRY(fl_worker_status(&f->worker, error));
        return fl_fail(error, FOLOLLM_E_IO, "the host's write failed: the snapshot is not whole");
    }
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_seq_save_to(folollm *f, folollm_seq seq, fl_snapshot_write_hook *write, void *user,
                                               folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_sequence(f, seq, &s, error));
    if (write == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "seq_save_to: a function that writes is needed");
    }
    return fl_save(f, s, write, user, error);
}

static int fl_write_memory(void *user, const void *bytes, size_t n) {
    uint8_t **at = user;
    memcpy(*at, bytes, n);
    *at += n;
    return 0;
}

FOLOLLM_API folollm_status folollm_seq_save(folollm *f, folollm_seq seq, void *buffer, size_t *n_bytes,
                                            folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_sequence(f, seq, &s, error));
    if (n_bytes == NULL || (buffer == NULL && *n_bytes > 0)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "seq_save: a place for the length, and room of it, are needed");
    }
    size_t room = *n_bytes;
    *n_bytes = fl_snapshot_bytes(s, &f->worker, &f->checkpoint->generation);
    if (buffer == NULL) {
        return FOLOLLM_OK;
    }
    if (room < *n_bytes) {
        return fl_fail(error, FOLOLLM_E_BUFFER, "the snapshot has %u bytes; there is room for %u", (uint64_t)*n_bytes,
                       (uint64_t)room);
    }
    uint8_t *at = buffer;
    return fl_save(f, s, fl_write_memory, &at, error);
}

/* Open the sequence whose header was read. Its pages are taken from those of no use to anybody, as long as there are
 * such; they are given back in the order in which a failure leaves the ring as it was. */
static folollm_status fl_restore(folollm *f, const fl_snapshot *snapshot, const fl_source *source, folollm_seq *out,
                                 folollm_error *error) {
    size_t n_pages = fl_div_up(snapshot->n_tokens, FL_PAGE_TOKENS);
    fl_executor_rest(&f->executor);
    if (snapshot->n_tokens > f->settings.context) {
        return fl_fail(error, FOLOLLM_E_CONTEXT, "the snapshot has %u tokens; the context has %u",
                       (uint64_t)snapshot->n_tokens, (uint64_t)f->settings.context);
    }
    if (n_pages > f->pages.n_free) {
        return fl_fail(error, FOLOLLM_E_POOL, "the snapshot needs %u pages of KV cache and %u of %u are free",
                       (uint64_t)n_pages, (uint64_t)f->pages.n_free, (uint64_t)f->pages.n_pages);
    }
    fl_sequence *s = fl_sequence_vacant(&f->sequences, false);
    if (s == NULL) {
        return fl_no_slot(f, error);
    }
    fl_sequence_reserve(s, &f->pages, snapshot->n_tokens);
    folollm_status status =
        fl_snapshot_read(snapshot, source, &f->checkpoint->generation, &f->worker, s, &f->pages, error);
    if (status != FOLOLLM_OK) {
        fl_sequence_cut(s, &f->pages, 0);
        return status;
    }
    fl_sequence_replay(s, &f->pages, f->checkpoint->tokenizer);
    *out = fl_sequence_occupy(&f->sequences, s);
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_seq_restore_from(folollm *f, fl_snapshot_read_hook *read, void *user,
                                                    folollm_seq *out, folollm_error *error) {
    const fl_source source = {read, user, FL_SOURCE_ENDLESS};
    fl_snapshot snapshot;
    FL_TRY(fl_need_weights(f, error));
    if (read == NULL || out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "seq_restore_from: a function that reads, and a place for the sequence, are needed");
    }
    FL_TRY(fl_snapshot_open(&snapshot, &f->worker, &f->adapters, &source, error));
    return fl_restore(f, &snapshot, &source, out, error);
}

/* Never asked for more than there is: the header's lengths were compared with it. */
static int fl_read_memory(void *user, void *bytes, size_t n) {
    const uint8_t **at = user;
    memcpy(bytes, *at, n);
    *at += n;
    return 0;
}

/* What lies in memory can be read twice: so that it is checked first, and a damaged snapshot touches nothing. */
FOLOLLM_API folollm_status folollm_seq_restore(folollm *f, const void *bytes, size_t n_bytes, folollm_seq *out,
                                               folollm_error *error) {
    const uint8_t *at = bytes;
    const fl_source source = {fl_read_memory, &at, n_bytes};
    fl_snapshot snapshot;
    FL_TRY(fl_need_weights(f, error));
    if (bytes == NULL || out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "seq_restore: bytes, and a place for the sequence, are needed");
    }
    FL_TRY(fl_snapshot_open(&snapshot, &f->worker, &f->adapters, &source, error));
    FL_TRY(fl_snapshot_read(&snapshot, &source, &f->checkpoint->generation, &f->worker, NULL, NULL, error));
    at = (const uint8_t *)bytes + FL_SNAPSHOT_HEADER;
    return fl_restore(f, &snapshot, &source, out, error);
}

FOLOLLM_API folollm_status folollm_seq_close(folollm *f, folollm_seq seq, folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_sequence(f, seq, &s, error));
    fl_sequence_close(&f->sequences, s, &f->pages);
    return FOLOLLM_OK;
}

/* ---- The loop -- */

FOLOLLM_API folollm_status folollm_prefill(folollm *f, folollm_seq seq, const folollm_token *tokens, size_t n_tokens,
                                           float *all_logits, folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_sequence(f, seq, &s, error));
    if (tokens == NULL || n_tokens == 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "prefill: an empty prompt has no logits; at least one token is needed");
    }
    FL_TRY(fl_check_tokens(f, tokens, n_tokens, error));
    fl_driver_settle(&f->driver);
    return fl_executor_prefill(&f->executor, s, tokens, n_tokens, all_logits, error);
}

FOLOLLM_API folollm_status folollm_decode_step(folollm *f, const folollm_seq *seqs, const folollm_token *tokens,
                                               size_t n, folollm_error *error) {
    FL_TRY(fl_need_weights(f, error));
    if (n > 0 && (seqs == NULL || tokens == NULL)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "decode_step: sequences and tokens are needed");
    }
    FL_TRY(fl_check_tokens(f, tokens, n, error));
    fl_driver_settle(&f->driver);
    return fl_executor_decode(&f->executor, seqs, tokens, n, error);
}

static folollm_status fl_need_logits(folollm *f, folollm_seq seq, fl_sequence **s, folollm_error *error) {
    FL_TRY(fl_need_sequence(f, seq, s, error));
    if (!(*s)->has_logits) {
        return fl_fail(error, FOLOLLM_E_STATE, "sequence %u has no logits: prefill or step it first", (uint64_t)seq);
    }
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_logits(folollm *f, folollm_seq seq, const float **logits, folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_logits(f, seq, &s, error));
    if (logits == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "logits: a place for the pointer is needed");
    }
    FL_TRY(fl_executor_bring(&f->executor, s, error));
    *logits = s->logits;
    return FOLOLLM_OK;
}

FOLOLLM_API folollm_status folollm_sample(folollm *f, folollm_seq seq, folollm_sampled *out, folollm_logprob *top,
                                          size_t n_top, folollm_error *error) {
    fl_sequence *s = NULL;
    FL_TRY(fl_need_logits(f, seq, &s, error));
    uint32_t vocab = f->checkpoint->weights.config.vocab;
    if (out == NULL || (top == NULL && n_top > 0) || n_top > vocab) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "sample: a place for the result is needed, and at most %u top entries", (uint64_t)vocab);
    }
    fl_stream after;
    if (n_top > 0) {
        FL_TRY(fl_executor_bring(&f->executor, s, error));
    }
    const fl_device_chosen *made = s->logits_away ? &s->chosen : NULL;
    if (!fl_sequence_choose(s, &f->chooser, made, s->logits, &after, out, top, n_top)) {
        return fl_fail(error, FOLOLLM_E_STATE, "sequence %u: biases and min_tokens ban every token", (uint64_t)seq);
    }
    return FOLOLLM_OK;
}

/* ---- Requests -- */

static folollm_status fl_check_submission(folollm *f, const folollm_submission *in, folollm_error *error) {
    if (in->struct_size != 0 && in->struct_size != sizeof *in) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "submission.struct_size is %u; this library's is %u",
                       (uint64_t)in->struct_size, (uint64_t)sizeof *in);
    }
    if (in->prompt == NULL || in->n_prompt == 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "submission.prompt: at least one token is needed");
    }
    if (in->weight > FL_WEIGHT_MAX || in->n_answers > f->max_requests) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "submission: at most %u weight, and %u n_answers (max_requests)",
                       (uint64_t)FL_WEIGHT_MAX, (uint64_t)f->max_requests);
    }
    if (in->n_top > FOLOLLM_TOP_MAX || in->n_top > f->checkpoint->weights.config.vocab) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT,
                       "submission.n_top is %u; at most %u are given, and no more than there are",
                       (uint64_t)in->n_top, (uint64_t)FOLOLLM_TOP_MAX);
    }
    if (in->deadline != 0 && f->memory.host.clock == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "submission.deadline: options.host has no clock");
    }
    if (in->n_prompt > f->settings.context) {
        return fl_fail(error, FOLOLLM_E_CONTEXT, "submission.prompt has %u tokens; the context has %u",
                       (uint64_t)in->n_prompt, (uint64_t)f->settings.context);
    }
    if (fl_div_up(in->n_prompt, FL_PAGE_TOKENS) > f->settings.n_pages) {
        return fl_fail(error, FOLOLLM_E_POOL, "submission.prompt has %u tokens; the whole pool has %u",
                       (uint64_t)in->n_prompt, (uint64_t)f->settings.n_pages * FL_PAGE_TOKENS);
    }
    return fl_check_tokens(f, in->prompt, in->n_prompt, error);
}

FOLOLLM_API folollm_status folollm_submit(folollm *f, const folollm_submission *submission, folollm_seq *out,
                                          folollm_error *error) {
    fl_sampling sampling;
    fl_adapter *adapter = NULL;
    FL_TRY(fl_need_weights(f, error));
    if (submission == NULL || out == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "submit: a submission, and a place for its sequences, are needed");
    }
    FL_TRY(fl_check_submission(f, submission, error));
    FL_TRY(fl_read_sampling(f, submission->sampling, &sampling, error));
    FL_TRY(fl_adapters_find(&f->adapters, submission->adapter, &adapter, error));
    return fl_driver_submit(&f->driver, submission, &sampling, adapter, out, error);
}

FOLOLLM_API folollm_status folollm_step(folollm *f, const folollm_budget *budget, folollm_event *events,
                                        size_t *n_events, folollm_error *error) {
    const folollm_budget whole = {f != NULL ? f->settings.n_rows : 0, 0};
    FL_TRY(fl_need_weights(f, error));
    if (events == NULL || n_events == NULL || *n_events == 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "step: room for one event at least is needed");
    }
    budget = budget != NULL ? budget : &whole;
    if (budget->tokens == 0 && budget->microseconds == 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "step: a budget of nothing; NULL is one whole step");
    }
    if (budget->microseconds != 0 && f->memory.host.clock == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "budget.microseconds: options.host has no clock");
    }
    return fl_driver_step(&f->driver, budget, events, n_events, error);
}

FOLOLLM_API folollm_status folollm_cancel(folollm *f, folollm_seq seq, folollm_error *error) {
    FL_TRY(fl_need_weights(f, error));
    return fl_sequence_cancel(&f->sequences, seq, error);
}
