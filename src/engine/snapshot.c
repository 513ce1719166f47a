#include "engine/snapshot.h"

#define FL_SNAPSHOT_MAGIC UINT64_C(0x3153514D4C4C4F46) /* "FOLLMQS1" */
#define FL_SNAPSHOT_VERSION 2u
#define FL_PIECE 8192 /* most bytes of one call of the host's functions; a row of KV, or the sampling, has no more */

/* ---- Checksums, over bytes that come in pieces of any size -- */

typedef struct fl_sum {
    uint64_t h;
    size_t n_tail; /* bytes that are no whole word yet */
    uint8_t tail[8];
} fl_sum;

/* n: bytes in all. */
static void fl_sum_begin(fl_sum *s, uint64_t n) {
    s->h = fl_mix(n + 1);
    s->n_tail = 0;
}

static void fl_sum_word(fl_sum *s, const uint8_t *p) {
    s->h = (s->h ^ fl_load_u64(p)) * 0x9E3779B97F4A7C15u;
    s->h ^= s->h >> 29;
}

static void fl_sum_add(fl_sum *s, const uint8_t *p, size_t n) {
    for (; s->n_tail > 0 && n > 0; p++, n--) {
        s->tail[s->n_tail++] = *p;
        if (s->n_tail == sizeof s->tail) {
            fl_sum_word(s, s->tail);
            s->n_tail = 0;
        }
    }
    for (; n >= 8; p += 8, n -= 8) {
        fl_sum_word(s, p);
    }
    memcpy(s->tail + s->n_tail, p, n);
    s->n_tail += n;
}

static uint64_t fl_sum_end(const fl_sum *s) {
    uint64_t h = s->h;
    for (size_t i = 0; i < s->n_tail; i++) {
        h = (h ^ s->tail[i]) * 0x9E3779B97F4A7C15u;
    }
    return fl_mix(h);
}

static uint64_t fl_checksum(const uint8_t *p, size_t n) {
    fl_sum s;
    fl_sum_begin(&s, n);
    fl_sum_add(&s, p, n);
    return fl_sum_end(&s);
}

/* ---- Pens: everything is put down twice, first to be counted and summed, then to be written -- */

typedef struct fl_pen {
    fl_snapshot_write_hook *write; /* NULL: count and sum */
    void *user;
    bool failed;   /* a write did: nothing is written any more */
    uint64_t n;    /* bytes so far */
    fl_sum sum;
    size_t n_held;
    uint8_t held[FL_PIECE];
} fl_pen;

static void fl_pen_begin(fl_pen *p, uint64_t n_bytes) {
    p->write = NULL;
    p->user = NULL;
    p->failed = false;
    p->n = 0;
    p->n_held = 0;
    fl_sum_begin(&p->sum, n_bytes);
}

static void fl_pen_flush(fl_pen *p) {
    if (p->write != NULL && p->n_held > 0 && !p->failed) {
        p->failed = p->write(p->user, p->held, p->n_held) != 0;
    }
    p->n_held = 0;
}

/* Room for n bytes, at most FL_PIECE; fl_pen_keep says that they are there. */
static uint8_t *fl_pen_room(fl_pen *p, size_t n) {
    if (n > FL_PIECE - p->n_held) {
        fl_pen_flush(p);
    }
    return p->held + p->n_held;
}

static void fl_pen_keep(fl_pen *p, size_t n) {
    if (p->write == NULL) {
        fl_sum_add(&p->sum, p->held + p->n_held, n);
    }
    p->n_held += n;
    p->n += n;
}

static void fl_pen_bytes(fl_pen *p, const void *from, size_t n) {
    const uint8_t *at = from;
    while (n > 0) {
        size_t part = fl_min(n, FL_PIECE);
        memcpy(fl_pen_room(p, part), at, part);
        fl_pen_keep(p, part);
        at += part;
        n -= part;
    }
}

static void fl_pen_u32(fl_pen *p, uint32_t v) {
    fl_pen_bytes(p, &v, sizeof v);
}

static void fl_pen_u64(fl_pen *p, uint64_t v) {
    fl_pen_bytes(p, &v, sizeof v);
}

static void fl_pen_float(fl_pen *p, float v) {
    fl_pen_bytes(p, &v, sizeof v);
}

/* ---- Eyes: what is read past the end is zero and noted -- */

typedef struct fl_eye {
    const uint8_t *at;
    size_t left;
    bool short_of; /* something lay behind the end */
} fl_eye;

static void fl_eye_bytes(fl_eye *e, void *to, size_t n) {
    if (n > e->left) {
        e->short_of = true;
        e->left = 0;
        memset(to, 0, n);
        return;
    }
    memcpy(to, e->at, n);
    e->at += n;
    e->left -= n;
}

static uint32_t fl_eye_u32(fl_eye *e) {
    uint32_t v;
    fl_eye_bytes(e, &v, sizeof v);
    return v;
}

static uint64_t fl_eye_u64(fl_eye *e) {
    uint64_t v;
    fl_eye_bytes(e, &v, sizeof v);
    return v;
}

static float fl_eye_float(fl_eye *e) {
    float v;
    fl_eye_bytes(e, &v, sizeof v);
    return v;
}

/* ---- Sampling -- */

static void fl_put_sampling(fl_pen *p, const fl_sampling *sampling, const fl_generation *g) {
    const folollm_sampling *s = &sampling->s;
    uint32_t n_eos = s->ignore_eos ? 0 : (uint32_t)g->n_eos; /* they stand first and are added again */
    fl_pen_float(p, s->temperature);
    fl_pen_u32(p, s->top_k);
    fl_pen_float(p, s->top_p);
    fl_pen_float(p, s->min_p);
    fl_pen_u32(p, (uint32_t)s->preset);
    for (size_t i = 0; i < FL_STAGES_MAX; i++) {
        fl_pen_u32(p, (uint32_t)s->order[i]);
    }
    fl_pen_float(p, s->repetition_penalty);
    fl_pen_float(p, s->frequency_penalty);
    fl_pen_float(p, s->presence_penalty);
    fl_pen_u64(p, s->seed);
    fl_pen_u32(p, s->min_tokens);
    fl_pen_u32(p, s->max_tokens);
    fl_pen_u32(p, s->ignore_eos != 0);
    fl_pen_u32(p, sampling->n_biases);
    fl_pen_u32(p, sampling->n_stop_ids - n_eos);
    fl_pen_u32(p, sampling->n_stops);
    for (uint32_t i = 0; i < sampling->n_biases; i++) {
        fl_pen_u32(p, (uint32_t)sampling->biases[i].token);
        fl_pen_float(p, sampling->biases[i].bias);
    }
    for (uint32_t i = n_eos; i < sampling->n_stop_ids; i++) {
        fl_pen_u32(p, (uint32_t)sampling->stop_ids[i]);
    }
    for (uint32_t i = 0; i < sampling->n_stops; i++) {
        fl_pen_u32(p, sampling->stop_bytes[i]);
        fl_pen_bytes(p, sampling->stops[i], sampling->stop_bytes[i]);
    }
}

/* The arrays that a folollm_sampling of the snapshot points to. */
typedef struct fl_sampling_arrays {
    folollm_bias biases[FL_BIASES_MAX];
    folollm_token stop_ids[FL_STOP_IDS_MAX];
    folollm_text stops[FL_STOPS_MAX];
} fl_sampling_arrays;

static void fl_get_sampling_lists(fl_eye *e, folollm_sampling *s, fl_sampling_arrays *a) {
    s->n_biases = fl_eye_u32(e);
    s->n_stop_ids = fl_eye_u32(e);
    s->n_stops = fl_eye_u32(e);
    if (s->n_biases > FL_BIASES_MAX || s->n_stop_ids > FL_STOP_IDS_MAX || s->n_stops > FL_STOPS_MAX) {
        e->short_of = true;
        return;
    }
    for (size_t i = 0; i < s->n_biases; i++) {
        a->biases[i].token = (folollm_token)fl_eye_u32(e);
        a->biases[i].bias = fl_eye_float(e);
        a->biases[i].bias = a->biases[i].bias == -FLT_MAX ? fl_float_of_bits(0xFF800000u) : a->biases[i].bias;
    }
    for (size_t i = 0; i < s->n_stop_ids; i++) {
        a->stop_ids[i] = (folollm_token)fl_eye_u32(e);
    }
    for (size_t i = 0; i < s->n_stops && !e->short_of; i++) {
        a->stops[i].n_bytes = fl_eye_u32(e);
        a->stops[i].text = (const char *)e->at;
        if (a->stops[i].n_bytes > e->left) {
            e->short_of = true;
            return;
        }
        e->at += a->stops[i].n_bytes;
        e->left -= a->stops[i].n_bytes;
    }
    s->biases = a->biases;
    s->stop_ids = a->stop_ids;
    s->stops = a->stops;
}

/* Through the same checks as what a host hands in. */
static folollm_status fl_get_sampling(fl_eye *e, fl_sampling *out, const fl_generation *g, uint32_t vocab,
                                      folollm_error *error) {
    fl_sampling_arrays arrays;
    folollm_sampling s;
    memset(&s, 0, sizeof s);
    s.temperature = fl_eye_float(e);
    s.top_k = fl_eye_u32(e);
    s.top_p = fl_eye_float(e);
    s.min_p = fl_eye_float(e);
    s.preset = (folollm_preset)fl_min(fl_eye_u32(e), INT_MAX);
    for (size_t i = 0; i < FL_STAGES_MAX; i++) {
        s.order[i] = (folollm_stage)fl_min(fl_eye_u32(e), INT_MAX);
    }
    s.repetition_penalty = fl_eye_float(e);
    s.frequency_penalty = fl_eye_float(e);
    s.presence_penalty = fl_eye_float(e);
    s.seed = fl_eye_u64(e);
    s.min_tokens = fl_eye_u32(e);
    s.max_tokens = fl_eye_u32(e);
    s.ignore_eos = fl_eye_u32(e) != 0;
    fl_get_sampling_lists(e, &s, &arrays);
    if (e->short_of || e->left != 0 || fl_sampling_init(out, &s, g->eos, g->n_eos, vocab, NULL) != FOLOLLM_OK) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's sampling section contradicts itself");
    }
    return FOLOLLM_OK;
}

/* ---- Keys and values -- */

static uint64_t fl_snapshot_kv_rows(const fl_kv *kv, uint32_t n_tokens) {
    return 2 * (uint64_t)kv->n_layers * kv->n_kv_heads * n_tokens;
}

/* Row i of them, in the order of the snapshot: out of the cache, or with `to_cache` into it. */
static void fl_snapshot_copy_row(fl_worker *w, const uint32_t *pages, uint32_t n_tokens, uint64_t i, uint8_t *row,
                                 bool to_cache) {
    const fl_kv *kv = &w->kv;
    size_t at = (size_t)(i % n_tokens), block = (size_t)(i / n_tokens), head = block % kv->n_kv_heads;
    size_t half = block / kv->n_kv_heads, layer = half / 2;
    bool is_v = half % 2 == 1;
    uint8_t *of_page = fl_worker_visit(w, is_v, fl_kv_offset(kv, layer, head, pages[at / FL_PAGE_TOKENS]), to_cache);
    fl_kv_copy_row(kv, is_v, of_page, at % FL_PAGE_TOKENS, row, to_cache);
}

/* ---- Writing -- */

/* A sequence that is being saved. */
typedef struct fl_saving {
    const fl_sequence *s;
    fl_worker *w;
    const fl_pages *pages;
    const fl_generation *generation;
    uint64_t lengths[FL_SECTIONS], checksums[FL_SECTIONS];
} fl_saving;

static void fl_put_tokens(fl_pen *p, const fl_saving *v) {
    fl_history history = fl_sequence_history(v->s, v->pages);
    for (uint32_t i = 0; i < v->s->n_tokens; i++) {
        fl_pen_u32(p, (uint32_t)fl_history_at(&history, i));
    }
}

static void fl_put_kv(fl_pen *p, const fl_saving *v) {
    const fl_kv *kv = &v->w->kv;
    size_t row_bytes = fl_kv_row_bytes(kv);
    uint64_t n_rows = fl_snapshot_kv_rows(kv, v->s->n_tokens);
    for (uint64_t i = 0; i < n_rows && !p->failed; i++) {
        fl_snapshot_copy_row(v->w, v->s->pages, v->s->n_tokens, i, fl_pen_room(p, row_bytes), false);
        fl_pen_keep(p, row_bytes);
        p->failed = p->failed || fl_worker_failed(v->w);
    }
    fl_worker_leave(v->w);
}

static void fl_put_section(fl_pen *p, const fl_saving *v, size_t section) {
    if (section == FL_SECTION_TOKENS) {
        fl_put_tokens(p, v);
    } else if (section == FL_SECTION_SAMPLING) {
        fl_put_sampling(p, &v->s->sampling, v->generation);
    } else if (section == FL_SECTION_LOGITS) {
        fl_pen_bytes(p, v->s->logits, (size_t)v->lengths[FL_SECTION_LOGITS]);
    } else {
        fl_put_kv(p, v);
    }
}

static void fl_snapshot_lengths(const fl_sequence *s, const fl_worker *w, const fl_generation *generation,
                                uint64_t lengths[FL_SECTIONS]) {
    fl_pen sampling;
    fl_pen_begin(&sampling, 0);
    fl_put_sampling(&sampling, &s->sampling, generation);
    lengths[FL_SECTION_TOKENS] = s->n_tokens * sizeof(folollm_token);
    lengths[FL_SECTION_SAMPLING] = sampling.n;
    lengths[FL_SECTION_LOGITS] = s->has_logits ? w->weights->config.vocab * sizeof(float) : 0;
    lengths[FL_SECTION_KV] = fl_snapshot_kv_rows(&w->kv, s->n_tokens) * fl_kv_row_bytes(&w->kv);
}

FL_LOCAL size_t fl_snapshot_bytes(const fl_sequence *s, const fl_worker *w, const fl_generation *generation) {
    uint64_t lengths[FL_SECTIONS], n = FL_SNAPSHOT_HEADER;
    fl_snapshot_lengths(s, w, generation, lengths);
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        n += lengths[i];
    }
    return (size_t)n;
}

static uint64_t fl_snapshot_fingerprint(const fl_worker *w) {
    uint64_t rope = fl_checksum((const uint8_t *)w->rope.frequencies, w->rope.half * sizeof *w->rope.frequencies);
    return fl_weights_fingerprint(w->weights) ^ rope ^ fl_mix(fl_bits_of_float(w->rope.scale));
}

static void fl_put_header(fl_pen *p, const fl_saving *v) {
    const fl_worker *w = v->w;
    fl_pen_u64(p, FL_SNAPSHOT_MAGIC);
    fl_pen_u32(p, FL_SNAPSHOT_VERSION);
    fl_pen_u32(p, (uint32_t)w->kv.type);
    fl_pen_u64(p, fl_snapshot_fingerprint(w));
    fl_pen_u32(p, (uint32_t)w->kv.n_layers);
    fl_pen_u32(p, (uint32_t)w->kv.n_kv_heads);
    fl_pen_u32(p, (uint32_t)w->kv.head_dim);
    fl_pen_u32(p, w->weights->config.vocab);
    fl_pen_u32(p, v->s->n_tokens);
    fl_pen_u32(p, v->s->n_prompt);
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        fl_pen_u64(p, v->lengths[i]);
        fl_pen_u64(p, v->checksums[i]);
    }
    fl_pen_u64(p, v->s->adapter != NULL ? v->s->adapter->fingerprint : 0);
    fl_pen_u64(p, fl_sum_end(&p->sum));
}

FL_LOCAL bool fl_snapshot_write(const fl_sequence *s, fl_worker *w, const fl_pages *pages,
                                const fl_generation *generation, fl_snapshot_write_hook *write, void *user) {
    fl_saving saving = {s, w, pages, generation, {0}, {0}};
    fl_pen pen;
    fl_snapshot_lengths(s, w, generation, saving.lengths);
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        fl_pen_begin(&pen, saving.lengths[i]);
        fl_put_section(&pen, &saving, i);
        saving.checksums[i] = fl_sum_end(&pen.sum);
    }
    fl_pen_begin(&pen, FL_SNAPSHOT_HEADER - 8);
    fl_put_header(&pen, &saving);
    pen.write = write; /* from here on; the header is still held, and goes with what follows */
    pen.user = user;
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        fl_put_section(&pen, &saving, i);
    }
    fl_pen_flush(&pen);
    return !pen.failed;
}

/* ---- Reading the header -- */

typedef struct fl_snapshot_header {
    uint64_t fingerprint, adapter;
    uint32_t version, kv, n_layers, n_kv_heads, head_dim, vocab;
} fl_snapshot_header;

static folollm_status fl_source_failed(folollm_error *error) {
    return fl_fail(error, FOLOLLM_E_IO, "the host's read failed: it ends within the snapshot, or could not be read");
}

static folollm_status fl_get_header(fl_snapshot *out, fl_snapshot_header *h, const fl_source *source,
                                    folollm_error *error) {
    uint8_t bytes[FL_SNAPSHOT_HEADER];
    fl_eye e = {bytes, sizeof bytes, false};
    if (source->n_bytes < sizeof bytes) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%u bytes are no snapshot: its header alone has %u", source->n_bytes,
                       (uint64_t)sizeof bytes);
    }
    if (source->read(source->user, bytes, sizeof bytes) != 0) {
        return fl_source_failed(error);
    }
    if (fl_eye_u64(&e) != FL_SNAPSHOT_MAGIC) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "these bytes are no snapshot: it begins with FOLLMQS1");
    }
    h->version = fl_eye_u32(&e);
    if (h->version != FL_SNAPSHOT_VERSION) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "the snapshot has version %u; this library reads %u",
                       (uint64_t)h->version, (uint64_t)FL_SNAPSHOT_VERSION);
    }
    h->kv = fl_eye_u32(&e);
    h->fingerprint = fl_eye_u64(&e);
    h->n_layers = fl_eye_u32(&e);
    h->n_kv_heads = fl_eye_u32(&e);
    h->head_dim = fl_eye_u32(&e);
    h->vocab = fl_eye_u32(&e);
    out->n_tokens = fl_eye_u32(&e);
    out->n_prompt = fl_eye_u32(&e);
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        out->lengths[i] = fl_eye_u64(&e);
        out->checksums[i] = fl_eye_u64(&e);
    }
    h->adapter = fl_eye_u64(&e);
    if (fl_eye_u64(&e) != fl_checksum(bytes, FL_SNAPSHOT_HEADER - 8)) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's header is damaged: its checksum differs");
    }
    return FOLOLLM_OK;
}

static folollm_status fl_check_fit(const fl_snapshot_header *h, const fl_worker *w, folollm_error *error) {
    if (h->kv != (uint32_t)w->kv.type) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "the snapshot has KV type %u; the engine has %u", (uint64_t)h->kv,
                       (uint64_t)w->kv.type);
    }
    if (h->n_layers != w->kv.n_layers || h->n_kv_heads != w->kv.n_kv_heads || h->head_dim != w->kv.head_dim ||
        h->vocab != w->weights->config.vocab || h->fingerprint != fl_snapshot_fingerprint(w)) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "the snapshot is of another model: %u layers, %u kv heads of %u, vocabulary %u; this has %u, %u "
                       "of %u, %u, and the weights count too",
                       (uint64_t)h->n_layers, (uint64_t)h->n_kv_heads, (uint64_t)h->head_dim, (uint64_t)h->vocab,
                       (uint64_t)w->kv.n_layers, (uint64_t)w->kv.n_kv_heads, (uint64_t)w->kv.head_dim,
                       (uint64_t)w->weights->config.vocab);
    }
    return FOLOLLM_OK;
}

static const char *fl_section_name(size_t section) {
    static const char *const names[FL_SECTIONS] = {"tokens", "sampling", "logits", "KV"};
    return names[section];
}

/* Each section is as long as it must be, and together they are what there is, where that is known. */
static folollm_status fl_check_lengths(const fl_snapshot *s, const fl_worker *w, uint64_t n_bytes,
                                       folollm_error *error) {
    uint64_t logits = (uint64_t)w->weights->config.vocab * sizeof(float), left = n_bytes - FL_SNAPSHOT_HEADER;
    if (s->n_tokens > w->weights->config.max_context || s->n_prompt > s->n_tokens ||
        s->lengths[FL_SECTION_TOKENS] != s->n_tokens * sizeof(folollm_token) ||
        s->lengths[FL_SECTION_SAMPLING] > FL_PIECE ||
        s->lengths[FL_SECTION_KV] != fl_snapshot_kv_rows(&w->kv, s->n_tokens) * fl_kv_row_bytes(&w->kv) ||
        (s->lengths[FL_SECTION_LOGITS] != 0 && (s->lengths[FL_SECTION_LOGITS] != logits || s->n_tokens == 0))) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's lengths contradict each other");
    }
    for (size_t i = 0; i < FL_SECTIONS && n_bytes != FL_SOURCE_ENDLESS; i++) {
        if (s->lengths[i] > left || (i == FL_SECTIONS - 1 && s->lengths[i] != left)) {
            return fl_fail(error, FOLOLLM_E_FORMAT,
                           "the snapshot is truncated, or something follows it: section %s has %u bytes, and %u are "
                           "left", fl_section_name(i), s->lengths[i], left);
        }
        left -= s->lengths[i];
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_snapshot_open(fl_snapshot *out, const fl_worker *w, const fl_adapters *adapters,
                                         const fl_source *source, folollm_error *error) {
    fl_snapshot_header h;
    memset(&h, 0, sizeof h);
    FL_TRY(fl_get_header(out, &h, source, error));
    FL_TRY(fl_check_fit(&h, w, error));
    out->adapter = h.adapter != 0 ? fl_adapters_with(adapters, h.adapter) : NULL;
    if (h.adapter != 0 && out->adapter == NULL) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "the snapshot's sequence has an adapter that this engine does not hold: load it first, with the "
                       "same scale");
    }
    return fl_check_lengths(out, w, source->n_bytes, error);
}

/* ---- Reading the sections -- */

typedef struct fl_intake {
    const fl_source *source;
    const fl_snapshot *snapshot;
    size_t section;
    fl_sum sum;
    uint8_t bytes[FL_PIECE]; /* what was read last */
} fl_intake;

static void fl_intake_begin(fl_intake *in, size_t section) {
    in->section = section;
    fl_sum_begin(&in->sum, in->snapshot->lengths[section]);
}

static folollm_status fl_intake_read(fl_intake *in, size_t n, folollm_error *error) {
    if (n > 0 && in->source->read(in->source->user, in->bytes, n) != 0) {
        return fl_source_failed(error);
    }
    fl_sum_add(&in->sum, in->bytes, n);
    return FOLOLLM_OK;
}

/* Was it the section that was written? */
static folollm_status fl_intake_end(const fl_intake *in, folollm_error *error) {
    if (fl_sum_end(&in->sum) != in->snapshot->checksums[in->section]) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's section %s is damaged: its checksum differs",
                       fl_section_name(in->section));
    }
    return FOLOLLM_OK;
}

static folollm_status fl_get_tokens(fl_intake *in, fl_sequence *s, fl_pages *pages, uint32_t vocab,
                                    folollm_error *error) {
    uint32_t n_tokens = in->snapshot->n_tokens, piece = FL_PIECE / sizeof(folollm_token);
    fl_intake_begin(in, FL_SECTION_TOKENS);
    for (uint32_t at = 0, n; at < n_tokens; at += n) {
        n = n_tokens - at < piece ? n_tokens - at : piece;
        FL_TRY(fl_intake_read(in, n * sizeof(folollm_token), error));
        for (uint32_t i = at; i < at + n; i++) {
            uint32_t token = fl_load_u32(in->bytes + (i - at) * sizeof token);
            if (token >= vocab) {
                return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's token %u is outside the vocabulary of %u",
                               (uint64_t)i, (uint64_t)vocab);
            }
            if (s != NULL) {
                size_t slot = (size_t)s->pages[i / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + i % FL_PAGE_TOKENS;
                pages->tokens[slot] = (folollm_token)token;
            }
        }
    }
    return fl_intake_end(in, error);
}

static folollm_status fl_get_logits(fl_intake *in, fl_sequence *s, folollm_error *error) {
    size_t n_bytes = (size_t)in->snapshot->lengths[FL_SECTION_LOGITS];
    fl_intake_begin(in, FL_SECTION_LOGITS);
    for (size_t at = 0, n; at < n_bytes; at += n) {
        n = fl_min(n_bytes - at, FL_PIECE);
        FL_TRY(fl_intake_read(in, n, error));
        for (size_t i = 0; i < n; i += sizeof(float)) {
            if (!fl_is_finite(fl_float_of_bits(fl_load_u32(in->bytes + i)))) {
                return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's logits are not finite");
            }
        }
        if (s != NULL) {
            memcpy((uint8_t *)s->logits + at, in->bytes, n);
        }
    }
    return fl_intake_end(in, error);
}

static folollm_status fl_get_kv(fl_intake *in, const fl_sequence *s, fl_worker *w, folollm_error *error) {
    size_t row_bytes = fl_kv_row_bytes(&w->kv), piece = FL_PIECE / row_bytes;
    uint64_t n_rows = fl_snapshot_kv_rows(&w->kv, in->snapshot->n_tokens);
    fl_intake_begin(in, FL_SECTION_KV);
    for (uint64_t at = 0, n; at < n_rows; at += n) {
        n = n_rows - at < piece ? n_rows - at : piece;
        FL_TRY(fl_intake_read(in, (size_t)n * row_bytes, error));
        for (size_t i = 0; i < n && s != NULL; i++) {
            fl_snapshot_copy_row(w, s->pages, in->snapshot->n_tokens, at + i, in->bytes + i * row_bytes, true);
        }
    }
    fl_worker_leave(w);
    FL_TRY(fl_worker_status(w, error));
    return fl_intake_end(in, error);
}

FL_LOCAL folollm_status fl_snapshot_read(const fl_snapshot *snapshot, const fl_source *source,
                                         const fl_generation *generation, fl_worker *w, fl_sequence *s,
                                         fl_pages *pages, folollm_error *error) {
    fl_intake in;
    fl_sampling sampling;
    uint32_t vocab = w->weights->config.vocab;
    size_t n_sampling = (size_t)snapshot->lengths[FL_SECTION_SAMPLING];
    in.source = source;
    in.snapshot = snapshot;
    FL_TRY(fl_get_tokens(&in, s, pages, vocab, error));
    fl_intake_begin(&in, FL_SECTION_SAMPLING);
    FL_TRY(fl_intake_read(&in, n_sampling, error));
    FL_TRY(fl_intake_end(&in, error));
    fl_eye e = {in.bytes, n_sampling, false};
    FL_TRY(fl_get_sampling(&e, &sampling, generation, vocab, error));
    FL_TRY(fl_get_logits(&in, s, error));
    FL_TRY(fl_get_kv(&in, s, w, error));
    if (s != NULL) {
        s->n_tokens = snapshot->n_tokens;
        s->n_prompt = snapshot->n_prompt;
        s->adapter = snapshot->adapter;
        s->sampling = sampling;
        s->has_logits = snapshot->lengths[FL_SECTION_LOGITS] > 0;
        s->logits_away = false;
    }
    return FOLOLLM_OK;
}
