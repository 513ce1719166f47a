#include "engine/sampler.h"

#include "base/math.h"
#include "base/utf8.h"

#define FL_LLAMACPP_WINDOW 64 /* tokens that llama.cpp's penalties look back by default */
#define FL_BANNED (-FLT_MAX)

/* ---- Options -- */

static const folollm_stage fl_preset_orders[][FL_STAGES_MAX] = {
    {FOLOLLM_STAGE_TEMPERATURE, FOLOLLM_STAGE_MIN_P, FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TOP_P},
    {FOLOLLM_STAGE_TEMPERATURE, FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_MIN_P},
    {FOLOLLM_STAGE_TOP_K, FOLOLLM_STAGE_TOP_P, FOLOLLM_STAGE_MIN_P, FOLOLLM_STAGE_TEMPERATURE},
};

static folollm_status fl_sampling_number(const char *name, float value, double low, double high,
                                         folollm_error *error) {
    if (!fl_is_finite(value) || value < low || value > high) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.%s must be from %g to %g; it is %g", name, low, high,
                       fl_is_finite(value) ? (double)value : (double)FLT_MAX * 10);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_sampling_order(fl_sampling *out, const folollm_sampling *in, folollm_error *error) {
    unsigned seen = 0;
    if ((unsigned)in->preset >= FL_COUNT(fl_preset_orders)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.preset is none of FOLOLLM_PRESET_*: %d",
                       (int64_t)in->preset);
    }
    memcpy(out->order, fl_preset_orders[in->preset], sizeof out->order);
    if (in->order[0] == FOLOLLM_STAGE_END) {
        return FOLOLLM_OK;
    }
    memset(out->order, 0, sizeof out->order);
    for (size_t i = 0; i < FL_STAGES_MAX && in->order[i] != FOLOLLM_STAGE_END; i++) {
        unsigned stage = (unsigned)in->order[i];
        if (stage > FOLOLLM_STAGE_TOP_P || (seen >> stage & 1u)) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.order[%u] is unknown or there twice: %u", (uint64_t)i,
                           (uint64_t)stage);
        }
        seen |= 1u << stage;
        out->order[i] = in->order[i];
    }
    return FOLOLLM_OK;
}

static folollm_status fl_sampling_stop_ids(fl_sampling *out, const folollm_sampling *in, const folollm_token *eos,
                                           size_t n_eos, uint32_t vocab, folollm_error *error) {
    n_eos = in->ignore_eos ? 0 : n_eos;
    if (in->n_stop_ids > FL_STOP_IDS_MAX - n_eos || (in->n_stop_ids > 0 && in->stop_ids == NULL)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.stop_ids: %u given; at most %u, and not NULL",
                       (uint64_t)in->n_stop_ids, (uint64_t)(FL_STOP_IDS_MAX - n_eos));
    }
    for (size_t i = 0; i < in->n_stop_ids + n_eos; i++) {
        folollm_token id = i < n_eos ? eos[i] : in->stop_ids[i - n_eos];
        if (i >= n_eos && (id < 0 || (uint32_t)id >= vocab)) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.stop_ids[%u] is %d; the vocabulary has %u",
                           (uint64_t)(i - n_eos), (int64_t)id, (uint64_t)vocab);
        }
        out->stop_ids[out->n_stop_ids++] = id;
    }
    return FOLOLLM_OK;
}

static folollm_status fl_sampling_lists(fl_sampling *out, const folollm_sampling *in, uint32_t vocab,
                                        folollm_error *error) {
    if (in->n_biases > FL_BIASES_MAX || (in->n_biases > 0 && in->biases == NULL)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.biases: %u given; at most %u, and not NULL",
                       (uint64_t)in->n_biases, (uint64_t)FL_BIASES_MAX);
    }
    for (size_t i = 0; i < in->n_biases; i++) {
        folollm_bias bias = in->biases[i];
        bool banned = fl_bits_of_float(bias.bias) == 0xFF800000u;
        if (bias.token < 0 || (uint32_t)bias.token >= vocab || (!banned && !fl_is_finite(bias.bias))) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.biases[%u]: token %d of %u, or a bias of NaN or +inf",
                           (uint64_t)i, (int64_t)bias.token, (uint64_t)vocab);
        }
        bias.bias = banned ? FL_BANNED : bias.bias;
        out->biases[out->n_biases++] = bias;
    }
    if (in->n_stops > FL_STOPS_MAX || (in->n_stops > 0 && in->stops == NULL)) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.stops: %u given; at most %u, and not NULL",
                       (uint64_t)in->n_stops, (uint64_t)FL_STOPS_MAX);
    }
    for (size_t i = 0; i < in->n_stops; i++) {
        const folollm_text *stop = &in->stops[i];
        if (stop->text == NULL || stop->n_bytes == 0 || stop->n_bytes > FL_STOP_BYTES) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.stops[%u] has %u bytes; 1 to %u are allowed",
                           (uint64_t)i, (uint64_t)stop->n_bytes, (uint64_t)FL_STOP_BYTES);
        }
        if (fl_utf8_valid_prefix(stop->text, stop->n_bytes) != stop->n_bytes) {
            return fl_fail(error, FOLOLLM_E_ENCODING, "sampling.stops[%u] is not UTF-8", (uint64_t)i);
        }
        memcpy(out->stops[i], stop->text, stop->n_bytes);
        out->stop_bytes[i] = (uint8_t)stop->n_bytes;
        out->n_stops++;
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_sampling_init(fl_sampling *out, const folollm_sampling *in, const folollm_token *eos,
                                         size_t n_eos, uint32_t vocab, folollm_error *error) {
    static const folollm_sampling greedy;
    in = in != NULL ? in : &greedy;
    memset(out, 0, sizeof *out);
    if (in->struct_size != 0 && in->struct_size != sizeof *in) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.struct_size is %u; this library's is %u",
                       (uint64_t)in->struct_size, (uint64_t)sizeof *in);
    }
    FL_TRY(fl_sampling_number("temperature", in->temperature, 0, 100, error));
    FL_TRY(fl_sampling_number("top_p", in->top_p, 0, 1, error));
    FL_TRY(fl_sampling_number("min_p", in->min_p, 0, 1, error));
    FL_TRY(fl_sampling_number("repetition_penalty", in->repetition_penalty, 0, 100, error));
    FL_TRY(fl_sampling_number("frequency_penalty", in->frequency_penalty, -100, 100, error));
    FL_TRY(fl_sampling_number("presence_penalty", in->presence_penalty, -100, 100, error));
    FL_TRY(fl_sampling_order(out, in, error));
    FL_TRY(fl_sampling_stop_ids(out, in, eos, n_eos, vocab, error));
    FL_TRY(fl_sampling_lists(out, in, vocab, error));
    if (in->max_tokens != 0 && in->min_tokens > in->max_tokens) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "sampling.min_tokens is %u, above max_tokens %u",
                       (uint64_t)in->min_tokens, (uint64_t)in->max_tokens);
    }
    out->s = *in;
    return FOLOLLM_OK;
}

FL_LOCAL bool fl_sampling_stops_at(const fl_sampling *s, folollm_token id) {
    for (uint32_t i = 0; i < s->n_stop_ids; i++) {
        if (s->stop_ids[i] == id) {
            return true;
        }
    }
    return false;
}

FL_LOCAL void fl_sampler_layout(fl_sampler *s, fl_arena *arena, uint32_t vocab) {
    s->vocab = vocab;
    s->logits = fl_take(arena, vocab, sizeof *s->logits);
    s->counts = fl_take(arena, vocab, sizeof *s->counts);
    s->candidates = fl_take(arena, vocab, sizeof *s->candidates);
}

/* ---- Draws -- */

/* Philox 4x32-10 (Salmon et al., 2011): a counter and a key to 53 uniform bits, as a number in [0, 1). */
static double fl_uniform(uint64_t seed, uint64_t position) {
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1,
                            (uint32_t)a};
        memcpy(c, next, sizeof c);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)((uint64_t)c[0] << 21 ^ c[1] >> 11) * (1.0 / 9007199254740992.0);
}

/* ---- Penalties, biases, bans -- */

static void fl_count(fl_sampler *s, const fl_history *h, uint32_t from) {
    for (uint32_t i = from; i < h->n_tokens; i++) {
        s->counts[fl_history_at(h, i)]++;
    }
}

static void fl_penalise_repetition(fl_sampler *s, const fl_sampling *o, const fl_history *h, uint32_t from) {
    float penalty = o->s.repetition_penalty;
    fl_count(s, h, from);
    for (uint32_t i = from; i < h->n_tokens; i++) {
        folollm_token id = fl_history_at(h, i);
        if (s->counts[id] != 0) { /* once per id */
            s->logits[id] = s->logits[id] > 0 ? s->logits[id] / penalty : s->logits[id] * penalty;
            s->counts[id] = 0;
        }
    }
}

static void fl_penalise_count(fl_sampler *s, const fl_sampling *o, const fl_history *h, uint32_t from) {
    fl_count(s, h, from);
    for (uint32_t i = from; i < h->n_tokens; i++) {
        folollm_token id = fl_history_at(h, i);
        if (s->counts[id] != 0) {
            s->logits[id] -= (float)s->counts[id] * o->s.frequency_penalty;
            s->logits[id] -= o->s.presence_penalty;
            s->counts[id] = 0;
        }
    }
}

static void fl_apply_penalties(fl_sampler *s, const fl_sampling *o, const fl_history *h) {
    bool llamacpp = o->s.preset == FOLOLLM_PRESET_LLAMACPP;
    uint32_t recent = h->n_tokens > FL_LLAMACPP_WINDOW ? h->n_tokens - FL_LLAMACPP_WINDOW : 0;
    if (o->s.repetition_penalty != 0 && o->s.repetition_penalty != 1) {
        fl_penalise_repetition(s, o, h, llamacpp ? recent : 0);
    }
    if (o->s.frequency_penalty != 0 || o->s.presence_penalty != 0) {
        fl_penalise_count(s, o, h, llamacpp ? recent : h->n_prompt);
    }
}

/* Before the penalties, as the engines of all three presets do. A ban may not meet arithmetic: it comes last. */
static void fl_apply_biases(fl_sampler *s, const fl_sampling *o) {
    for (uint32_t i = 0; i < o->n_biases; i++) {
        s->logits[o->biases[i].token] += o->biases[i].bias > FL_BANNED ? o->biases[i].bias : 0;
    }
}

static float fl_clamped(float x) {
    x = x < FLT_MAX ? x : FLT_MAX;
    return x > FL_BANNED ? x : FL_BANNED;
}

static void fl_apply_bans(fl_sampler *s, const fl_sampling *o, const fl_history *h) {
    for (uint32_t i = 0; i < s->vocab; i++) {
        s->logits[i] = fl_clamped(s->logits[i]);
    }
    for (uint32_t i = 0; i < o->n_biases; i++) {
        if (o->biases[i].bias == FL_BANNED) {
            s->logits[o->biases[i].token] = FL_BANNED;
        }
    }
    for (size_t i = 0; i < s->n_holes; i++) {
        s->logits[s->holes[i]] = FL_BANNED;
    }
    for (uint32_t i = 0; h->n_tokens - h->n_prompt < o->s.min_tokens && i < o->n_stop_ids; i++) {
        if ((uint32_t)o->stop_ids[i] < s->vocab) {
            s->logits[o->stop_ids[i]] = FL_BANNED;
        }
    }
}

/* ---- Stages: each shortens (or scales) the list of candidates -- */

static bool fl_before(fl_candidate a, fl_candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void fl_heap_sink(fl_candidate *a, size_t root, size_t n) {
    fl_candidate moved = a[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        child += child + 1 < n && fl_before(a[child + 1], a[child]);
        if (!fl_before(a[child], moved)) {
            break;
        }
        a[root] = a[child];
    }
    a[root] = moved;
}

static void fl_heap_make(fl_candidate *a, size_t n) {
    for (size_t i = n / 2; i-- > 0;) {
        fl_heap_sink(a, i, n);
    }
}

/* The best of the heap a (n) goes behind its end. */
static void fl_heap_pop(fl_candidate *a, size_t n) {
    fl_candidate best = a[0];
    a[0] = a[n - 1];
    a[n - 1] = best;
    fl_heap_sink(a, 0, n - 1);
}

/* What was popped stands at the end of a (n), the best last: bring it to the front, best first. */
static void fl_heap_collect(fl_candidate *a, size_t n) {
    for (size_t i = 0; i < n / 2; i++) {
        fl_candidate c = a[i];
        a[i] = a[n - 1 - i];
        a[n - 1 - i] = c;
    }
}

static float fl_highest(const fl_candidate *a, size_t n) {
    float highest = a[0].logit;
    for (size_t i = 1; i < n; i++) {
        highest = a[i].logit > highest ? a[i].logit : highest;
    }
    return highest;
}

static double fl_weight(fl_candidate c, float highest) {
    return fl_exp((double)c.logit - (double)highest);
}

static double fl_total_weight(const fl_candidate *a, size_t n, float highest) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        total += fl_weight(a[i], highest);
    }
    return total;
}

/* Where a tiny temperature would make the best infinite, the differences to it are scaled: they order alike. */
static size_t fl_stage_temperature(fl_candidate *a, size_t n, float temperature) {
    float highest = fl_highest(a, n), shift = fl_is_finite(highest / temperature) ? 0 : highest;
    for (size_t i = 0; i < n; i++) {
        a[i].logit = fl_clamped((a[i].logit - shift) / temperature);
    }
    return n;
}

static size_t fl_stage_min_p(fl_candidate *a, size_t n, float min_p) {
    double limit = (double)fl_highest(a, n) + fl_log(min_p);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (a[i].logit >= limit) {
            a[kept++] = a[i];
        }
    }
    return kept;
}

/* The k best, best first; with ties, also all that equal the last of them. */
static size_t fl_stage_top_k(fl_candidate *a, size_t n, uint32_t k, bool ties) {
    size_t left = n;
    fl_heap_make(a, n);
    while (left > 0 && (n - left < k || (ties && a[0].logit == a[left].logit))) {
        fl_heap_pop(a, left--);
    }
    fl_heap_collect(a, n);
    return n - left;
}

/* The shortest list of the best whose probabilities add up to p. */
static size_t fl_stage_top_p(fl_candidate *a, size_t n, float p) {
    float highest = fl_highest(a, n);
    double wanted = fl_total_weight(a, n, highest) * (double)p, sum = 0;
    size_t left = n;
    fl_heap_make(a, n);
    do {
        sum += fl_weight(a[0], highest);
        fl_heap_pop(a, left--);
    } while (left > 0 && sum < wanted);
    fl_heap_collect(a, n);
    return n - left;
}

static size_t fl_run_stages(fl_candidate *a, size_t n, const fl_sampling *o) {
    bool ties = o->s.preset != FOLOLLM_PRESET_LLAMACPP;
    for (size_t i = 0; i < FL_STAGES_MAX && o->order[i] != FOLOLLM_STAGE_END; i++) {
        if (o->order[i] == FOLOLLM_STAGE_TEMPERATURE && o->s.temperature != 1) {
            n = fl_stage_temperature(a, n, o->s.temperature);
        } else if (o->order[i] == FOLOLLM_STAGE_MIN_P && o->s.min_p > 0) {
            n = fl_stage_min_p(a, n, o->s.min_p);
        } else if (o->order[i] == FOLOLLM_STAGE_TOP_K && o->s.top_k > 0 && o->s.top_k < n) {
            n = fl_stage_top_k(a, n, o->s.top_k, ties);
        } else if (o->order[i] == FOLOLLM_STAGE_TOP_P && o->s.top_p > 0 && o->s.top_p < 1) {
            n = fl_stage_top_p(a, n, o->s.top_p);
        }
    }
    return n;
}

/* ---- Choosing -- */

/* The most likely by raw logit, best first, lowest id first among equals. */
static void fl_pick_top(const float *logits, uint32_t vocab, folollm_logprob *top, size_t n_top) {
    size_t n = 0;
    for (uint32_t id = 0; id < vocab; id++) {
        if (n == n_top && (n == 0 || !(logits[id] > top[n - 1].raw))) {
            continue;
        }
        size_t at = n < n_top ? n++ : n - 1;
        for (; at > 0 && logits[id] > top[at - 1].raw; at--) {
            top[at] = top[at - 1];
        }
        top[at].token = (folollm_token)id;
        top[at].raw = logits[id];
    }
}

static uint32_t fl_argmax(const float *logits, uint32_t vocab) {
    uint32_t best = 0;
    for (uint32_t id = 1; id < vocab; id++) {
        best = logits[id] > logits[best] ? id : best;
    }
    return best;
}

static folollm_token fl_draw(const fl_candidate *a, size_t n, float highest, double total, double uniform) {
    double left = uniform * total;
    size_t last = 0;
    for (size_t i = 0; i < n; i++) {
        double weight = fl_weight(a[i], highest);
        last = weight > 0 ? i : last;
        if (left < weight) {
            return a[i].id;
        }
        left -= weight;
    }
    return a[last].id;
}

/* Everything that is not banned, in order of id. */
static size_t fl_list_candidates(const fl_sampler *s) {
    size_t n = 0;
    for (uint32_t id = 0; id < s->vocab; id++) {
        if (s->logits[id] > FL_BANNED) {
            s->candidates[n].logit = s->logits[id];
            s->candidates[n++].id = (folollm_token)id;
        }
    }
    return n;
}

/* The difference first: beside a huge maximum the logarithm of the sum would be lost. */
static float fl_logprob(float logit, float highest, double log_total) {
    return (float)((double)logit - (double)highest - log_total);
}

static float fl_logprob_of(const fl_candidate *a, size_t n, folollm_token id, float highest, double log_total) {
    for (size_t i = 0; i < n; i++) {
        if (a[i].id == id) {
            return fl_logprob(a[i].logit, highest, log_total);
        }
    }
    return -FLT_MAX;
}

static void fl_choose_greedy(fl_sampler *s, fl_backend *backend, folollm_logprob *chosen, folollm_logprob *top,
                             size_t n_top) {
    float max, sum;
    backend->ops->softmax_stats(backend, s->logits, s->vocab, &max, &sum);
    double log_total = fl_log(sum);
    chosen->token = (folollm_token)fl_argmax(s->logits, s->vocab);
    chosen->processed = fl_logprob(max, max, log_total);
    for (size_t i = 0; i < n_top; i++) {
        float logit = s->logits[top[i].token];
        top[i].processed = logit > FL_BANNED ? fl_logprob(logit, max, log_total) : -FLT_MAX;
    }
}

static void fl_choose_drawn(fl_sampler *s, const fl_sampling *o, uint64_t position, folollm_logprob *chosen,
                            folollm_logprob *top, size_t n_top) {
    fl_candidate *a = s->candidates;
    size_t n = fl_run_stages(a, fl_list_candidates(s), o);
    float highest = fl_highest(a, n);
    double total = fl_total_weight(a, n, highest), log_total = fl_log(total);
    chosen->token = fl_draw(a, n, highest, total, fl_uniform(o->s.seed, position));
    chosen->processed = fl_logprob_of(a, n, chosen->token, highest, log_total);
    for (size_t i = 0; i < n_top; i++) {
        top[i].processed = fl_logprob_of(a, n, top[i].token, highest, log_total);
    }
}

FL_LOCAL bool fl_sampler_choose(fl_sampler *s, fl_backend *backend, const fl_sampling *o, const float *logits,
                                const fl_history *h, folollm_logprob *chosen, folollm_logprob *top, size_t n_top) {
    float max, sum;
    memcpy(s->logits, logits, s->vocab * sizeof *logits);
    fl_apply_biases(s, o);
    fl_apply_penalties(s, o, h);
    fl_apply_bans(s, o, h);
    if (!(s->logits[fl_argmax(s->logits, s->vocab)] > FL_BANNED)) {
        return false;
    }
    fl_pick_top(logits, s->vocab, top, n_top);
    if (o->s.temperature > 0) {
        fl_choose_drawn(s, o, h->n_tokens, chosen, top, n_top);
    } else {
        fl_choose_greedy(s, backend, chosen, top, n_top);
    }
    backend->ops->softmax_stats(backend, logits, s->vocab, &max, &sum);
    double log_total = fl_log(sum);
    chosen->raw = fl_logprob(logits[chosen->token], max, log_total);
    for (size_t i = 0; i < n_top; i++) {
        top[i].raw = fl_logprob(top[i].raw, max, log_total);
    }
    return true;
}
