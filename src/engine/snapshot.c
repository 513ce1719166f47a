#include "engine/snapshot.h"

#define FL_SNAPSHOT_MAGIC UINT64_C(0x3153514D4C4C4F46) /* "FOLLMQS1" */
#define FL_SNAPSHOT_VERSION 1u

enum { FL_SECTION_TOKENS, FL_SECTION_SAMPLING, FL_SECTION_LOGITS, FL_SECTION_KV, FL_SECTIONS };

/* magic, version, KV type, fingerprint of the model, layers, kv heads, head_dim, vocab, tokens, prompt; sections;
 * checksum */
#define FL_SNAPSHOT_HEADER (8 + 4 + 4 + 8 + 6 * 4 + FL_SECTIONS * 16 + 8)

/* ---- Pens: what is written with `at` NULL is only counted; what is read past the end is zero and noted -- */

typedef struct fl_pen {
    uint8_t *at;
    size_t n;
} fl_pen;

static void fl_pen_bytes(fl_pen *p, const void *from, size_t n) {
    if (p->at != NULL && n > 0) {
        memcpy(p->at + p->n, from, n);
    }
    p->n += n;
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

static uint64_t fl_checksum(const uint8_t *p, size_t n) {
    uint64_t h = fl_mix(n + 1);
    for (; n >= 8; p += 8, n -= 8) {
        h = (h ^ fl_load_u64(p)) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    for (; n > 0; p++, n--) {
        h = (h ^ *p) * 0x9E3779B97F4A7C15u;
    }
    return fl_mix(h);
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

static size_t fl_snapshot_kv_bytes(const fl_worker *w, uint32_t n_tokens) {
    return 2 * w->kv.n_layers * w->kv.n_kv_heads * n_tokens * fl_kv_row_bytes(&w->kv);
}

/* All rows: out of the cache, or with `to_cache` into it. */
static void fl_snapshot_copy_kv(fl_kv *kv, const uint32_t *pages, uint32_t n_tokens, uint8_t *bytes, bool to_cache) {
    size_t row_bytes = fl_kv_row_bytes(kv);
    for (size_t i = 0; i < 2 * kv->n_layers * kv->n_kv_heads; i++) {
        size_t layer = i / (2 * kv->n_kv_heads), head = i % kv->n_kv_heads;
        bool is_v = i / kv->n_kv_heads % 2 == 1;
        for (uint32_t at = 0; at < n_tokens; at++, bytes += row_bytes) {
            uint8_t *block = (is_v ? kv->v : kv->k) + fl_kv_offset(kv, layer, pages[at / FL_PAGE_TOKENS], head);
            fl_kv_copy_row(kv, is_v, block, at % FL_PAGE_TOKENS, bytes, to_cache);
        }
    }
}

/* ---- Writing -- */

static void fl_snapshot_lengths(const fl_sequence *s, const fl_worker *w, size_t sampling_bytes,
                                size_t lengths[FL_SECTIONS]) {
    lengths[FL_SECTION_TOKENS] = s->n_tokens * sizeof(folollm_token);
    lengths[FL_SECTION_SAMPLING] = sampling_bytes;
    lengths[FL_SECTION_LOGITS] = s->has_logits ? w->weights->config.vocab * sizeof(float) : 0;
    lengths[FL_SECTION_KV] = fl_snapshot_kv_bytes(w, s->n_tokens);
}

FL_LOCAL size_t fl_snapshot_bytes(const fl_sequence *s, const fl_worker *w, const fl_generation *generation) {
    size_t lengths[FL_SECTIONS], n = FL_SNAPSHOT_HEADER;
    fl_pen sampling = {NULL, 0};
    fl_put_sampling(&sampling, &s->sampling, generation);
    fl_snapshot_lengths(s, w, sampling.n, lengths);
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        n += lengths[i];
    }
    return n;
}

static uint64_t fl_snapshot_fingerprint(const fl_worker *w) {
    uint64_t rope = fl_checksum((const uint8_t *)w->rope.frequencies, w->rope.half * sizeof *w->rope.frequencies);
    return fl_weights_fingerprint(w->weights) ^ rope ^ fl_mix(fl_bits_of_float(w->rope.scale));
}

static void fl_put_header(fl_pen *p, const fl_sequence *s, const fl_worker *w, const size_t lengths[FL_SECTIONS],
                          const uint8_t *sections) {
    const uint8_t *header = p->at;
    fl_pen_u64(p, FL_SNAPSHOT_MAGIC);
    fl_pen_u32(p, FL_SNAPSHOT_VERSION);
    fl_pen_u32(p, (uint32_t)w->kv.type);
    fl_pen_u64(p, fl_snapshot_fingerprint(w));
    fl_pen_u32(p, (uint32_t)w->kv.n_layers);
    fl_pen_u32(p, (uint32_t)w->kv.n_kv_heads);
    fl_pen_u32(p, (uint32_t)w->kv.head_dim);
    fl_pen_u32(p, w->weights->config.vocab);
    fl_pen_u32(p, s->n_tokens);
    fl_pen_u32(p, s->n_prompt);
    for (size_t i = 0; i < FL_SECTIONS; sections += lengths[i++]) {
        fl_pen_u64(p, lengths[i]);
        fl_pen_u64(p, fl_checksum(sections, lengths[i]));
    }
    fl_pen_u64(p, fl_checksum(header, p->n));
}

FL_LOCAL void fl_snapshot_write(const fl_sequence *s, fl_worker *w, const fl_pages *pages,
                                const fl_generation *generation, uint8_t *to) {
    size_t lengths[FL_SECTIONS];
    fl_pen header = {to, 0}, body = {to + FL_SNAPSHOT_HEADER, 0};
    fl_history history = fl_sequence_history(s, pages);
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        fl_pen_u32(&body, (uint32_t)fl_history_at(&history, i));
    }
    size_t before = body.n;
    fl_put_sampling(&body, &s->sampling, generation);
    fl_snapshot_lengths(s, w, body.n - before, lengths);
    fl_pen_bytes(&body, s->logits, lengths[FL_SECTION_LOGITS]);
    fl_snapshot_copy_kv(&w->kv, s->pages, s->n_tokens, body.at + body.n, false);
    fl_put_header(&header, s, w, lengths, body.at);
}

/* ---- Reading -- */

typedef struct fl_snapshot_header {
    uint64_t fingerprint;
    uint32_t version, kv, n_layers, n_kv_heads, head_dim, vocab;
    uint64_t lengths[FL_SECTIONS], checksums[FL_SECTIONS];
} fl_snapshot_header;

static folollm_status fl_get_header(fl_snapshot *out, fl_snapshot_header *h, const uint8_t *bytes, size_t n_bytes,
                                    folollm_error *error) {
    fl_eye e = {bytes, n_bytes < FL_SNAPSHOT_HEADER ? 0 : FL_SNAPSHOT_HEADER, false};
    if (fl_eye_u64(&e) != FL_SNAPSHOT_MAGIC) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%u bytes that are no snapshot: it begins with FOLLMQS1",
                       (uint64_t)n_bytes);
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
        h->lengths[i] = fl_eye_u64(&e);
        h->checksums[i] = fl_eye_u64(&e);
    }
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
                       "the snapshot is of another model: %u layers, %u kv heads of %u, vocabulary %u; this has %u, %u of "
                       "%u, %u, and the weights count too",
                       (uint64_t)h->n_layers, (uint64_t)h->n_kv_heads, (uint64_t)h->head_dim, (uint64_t)h->vocab,
                       (uint64_t)w->kv.n_layers, (uint64_t)w->kv.n_kv_heads, (uint64_t)w->kv.head_dim,
                       (uint64_t)w->weights->config.vocab);
    }
    return FOLOLLM_OK;
}

/* The sections follow each other to the end, each as long as it must be and as it was when written. */
static folollm_status fl_check_sections(const fl_snapshot *s, const fl_snapshot_header *h, const fl_worker *w,
                                        const uint8_t *bytes, size_t n_bytes, const uint8_t *at[FL_SECTIONS],
                                        folollm_error *error) {
    static const char *const names[FL_SECTIONS] = {"tokens", "sampling", "logits", "KV"};
    uint64_t logits = (uint64_t)w->weights->config.vocab * sizeof(float), left = n_bytes - FL_SNAPSHOT_HEADER;
    bytes += FL_SNAPSHOT_HEADER;
    if (s->n_tokens > w->weights->config.max_context || s->n_prompt > s->n_tokens ||
        h->lengths[FL_SECTION_TOKENS] != s->n_tokens * sizeof(folollm_token) ||
        h->lengths[FL_SECTION_KV] != fl_snapshot_kv_bytes(w, s->n_tokens) ||
        (h->lengths[FL_SECTION_LOGITS] != 0 && (h->lengths[FL_SECTION_LOGITS] != logits || s->n_tokens == 0))) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's lengths contradict each other");
    }
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        if (h->lengths[i] > left || (i == FL_SECTIONS - 1 && h->lengths[i] != left)) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot is truncated, or something follows it: section %s has "
                           "%u bytes, and %u are left", names[i], h->lengths[i], left);
        }
        if (fl_checksum(bytes, (size_t)h->lengths[i]) != h->checksums[i]) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's section %s is damaged: its checksum differs", names[i]);
        }
        at[i] = bytes;
        bytes += h->lengths[i];
        left -= h->lengths[i];
    }
    return FOLOLLM_OK;
}

static folollm_status fl_check_numbers(const fl_snapshot *s, uint32_t vocab, folollm_error *error) {
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        if (fl_load_u32(s->tokens + i * sizeof(folollm_token)) >= vocab) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's token %u is outside the vocabulary of %u", (uint64_t)i,
                           (uint64_t)vocab);
        }
    }
    for (uint32_t i = 0; s->logits != NULL && i < vocab; i++) {
        if (!fl_is_finite(fl_float_of_bits(fl_load_u32(s->logits + i * sizeof(float))))) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "the snapshot's logits are not finite");
        }
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_snapshot_check(fl_snapshot *out, const fl_worker *w, const fl_generation *generation,
                                          const uint8_t *bytes, size_t n_bytes, folollm_error *error) {
    const uint8_t *at[FL_SECTIONS];
    uint32_t vocab = w->weights->config.vocab;
    fl_snapshot_header h;
    memset(&h, 0, sizeof h);
    FL_TRY(fl_get_header(out, &h, bytes, n_bytes, error));
    FL_TRY(fl_check_fit(&h, w, error));
    FL_TRY(fl_check_sections(out, &h, w, bytes, n_bytes, at, error));
    out->tokens = at[FL_SECTION_TOKENS];
    out->logits = h.lengths[FL_SECTION_LOGITS] > 0 ? at[FL_SECTION_LOGITS] : NULL;
    out->kv = at[FL_SECTION_KV];
    FL_TRY(fl_check_numbers(out, vocab, error));
    fl_eye e = {at[FL_SECTION_SAMPLING], (size_t)h.lengths[FL_SECTION_SAMPLING], false};
    return fl_get_sampling(&e, &out->sampling, generation, vocab, error);
}

FL_LOCAL void fl_snapshot_read(const fl_snapshot *snapshot, fl_sequence *s, fl_worker *w, fl_pages *pages) {
    fl_sequence_reserve(s, pages, snapshot->n_tokens);
    for (uint32_t i = 0; i < snapshot->n_tokens; i++) {
        size_t slot = (size_t)s->pages[i / FL_PAGE_TOKENS] * FL_PAGE_TOKENS + i % FL_PAGE_TOKENS;
        pages->tokens[slot] = (folollm_token)fl_load_u32(snapshot->tokens + i * sizeof(folollm_token));
    }
    fl_snapshot_copy_kv(&w->kv, s->pages, snapshot->n_tokens, (uint8_t *)(uintptr_t)snapshot->kv, true);
    s->n_tokens = snapshot->n_tokens;
    s->n_prompt = snapshot->n_prompt;
    s->sampling = snapshot->sampling;
    s->has_logits = snapshot->logits != NULL;
    if (s->has_logits) {
        memcpy(s->logits, snapshot->logits, w->weights->config.vocab * sizeof(float));
    }
}
