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
    s->ids = fl_take(arena, vocab, sizeof *s->ids);
    s->weights = fl_take(arena, vocab, sizeof *s->weights);
    s->counts = fl_take(arena, vocab, sizeof *s->counts);
    s->bins = fl_take(arena, FL_BINS, sizeof *s->bins);
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

static float fl_clamped(float x) {
    x = x < FLT_MAX ? x : FLT_MAX;
    return x > FL_BANNED ? x : FL_BANNED;
}

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
            s->logits[id] = fl_clamped(s->logits[id] > 0 ? s->logits[id] / penalty : s->logits[id] * penalty);
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
            s->logits[id] = fl_clamped(s->logits[id] - o->s.presence_penalty);
            s->counts[id] = 0;
        }
    }
}

static bool fl_penalises_repetition(const fl_sampling *o) {
    return o->s.repetition_penalty != 0 && o->s.repetition_penalty != 1;
}

static bool fl_penalises_count(const fl_sampling *o) {
    return o->s.frequency_penalty != 0 || o->s.presence_penalty != 0;
}

static void fl_apply_penalties(fl_sampler *s, const fl_sampling *o, const fl_history *h) {
    bool llamacpp = o->s.preset == FOLOLLM_PRESET_LLAMACPP;
    uint32_t recent = h->n_tokens > FL_LLAMACPP_WINDOW ? h->n_tokens - FL_LLAMACPP_WINDOW : 0;
    if (fl_penalises_repetition(o)) {
        fl_penalise_repetition(s, o, h, llamacpp ? recent : 0);
    }
    if (fl_penalises_count(o)) {
        fl_penalise_count(s, o, h, llamacpp ? recent : h->n_prompt);
    }
}

/* Before the penalties, as the engines of all three presets do. A ban may not meet arithmetic: it comes last. */
static void fl_apply_biases(fl_sampler *s, const fl_sampling *o) {
    for (uint32_t i = 0; i < o->n_biases; i++) {
        float *logit = &s->logits[o->biases[i].token];
        *logit = fl_clamped(*logit + (o->biases[i].bias > FL_BANNED ? o->biases[i].bias : 0));
    }
}

static bool fl_bans_stops(const fl_sampling *o, const fl_history *h) {
    return h->n_tokens - h->n_prompt < o->s.min_tokens && o->n_stop_ids > 0;
}

static bool fl_adjusts(const fl_sampling *o, const fl_history *h) {
    return o->n_biases > 0 || fl_penalises_repetition(o) || fl_penalises_count(o) || fl_bans_stops(o, h);
}

static void fl_apply_bans(fl_sampler *s, const fl_sampling *o, const fl_history *h) {
    for (uint32_t i = 0; i < o->n_biases; i++) {
        if (o->biases[i].bias == FL_BANNED) {
            s->logits[o->biases[i].token] = FL_BANNED;
        }
    }
    for (size_t i = 0; i < s->n_holes; i++) {
        s->logits[s->holes[i]] = FL_BANNED;
    }
    for (uint32_t i = 0; fl_bans_stops(o, h) && i < o->n_stop_ids; i++) {
        if ((uint32_t)o->stop_ids[i] < s->vocab) {
            s->logits[o->stop_ids[i]] = FL_BANNED;
        }
    }
}

/* The logits that the stages begin with: those of the model, or in s->logits what becomes of them. */
static const float *fl_adjust(fl_sampler *s, const fl_sampling *o, const fl_history *h, const float *logits) {
    if (s->n_holes == 0 && !fl_adjusts(o, h)) {
        return logits;
    }
    memcpy(s->logits, logits, s->vocab * sizeof *logits);
    fl_apply_biases(s, o);
    fl_apply_penalties(s, o, h);
    fl_apply_bans(s, o, h);
    return s->logits;
}

/* ---- Stages: each shortens (or scales) the list of candidates -- */

/* In order of id. */
typedef struct fl_candidates {
    const float *logits;      /* (n) FL_BANNED: it is none */
    const folollm_token *ids; /* (n) NULL: the i-th has the id i */
    size_t n;
} fl_candidates;

/* The best are those above a logit, and the first n of those that equal it. */
typedef struct fl_threshold {
    float logit;
    uint64_t n_equal;
} fl_threshold;

static folollm_token fl_candidate_id(const fl_candidates *c, size_t i) {
    return c->ids != NULL ? c->ids[i] : (folollm_token)i;
}

/* A larger float has a larger key; both zeros have one. */
static uint32_t fl_key_of_float(float x) {
    uint32_t bits = fl_bits_of_float(x);
    bits = bits == 0x80000000u ? 0 : bits;
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

static float fl_float_of_key(uint32_t key) {
    return fl_float_of_bits(key >> 31 != 0 ? key & 0x7FFFFFFFu : ~key);
}

/* Where the weights of the best add up to `wanted` (not 0, nor more than all have); weights NULL: each is 1. By three
 * histograms of keys, each of those that share the leading bits found by the one before. */
static fl_threshold fl_find_threshold(const fl_sampler *s, const fl_candidates *c, const uint32_t *weights,
                                      uint64_t wanted) {
    static const unsigned shifts[] = {21, 10, 0}, n_bins[] = {FL_BINS, FL_BINS, FL_BINS / 2};
    uint32_t found = 0;
    for (size_t pass = 0; pass < 3; pass++) {
        uint32_t last = n_bins[pass] - 1, bin = last;
        memset(s->bins, 0, n_bins[pass] * sizeof *s->bins);
        for (size_t i = 0; i < c->n; i++) {
            uint32_t key = fl_key_of_float(c->logits[i]);
            if (pass == 0 || key >> shifts[pass - 1] == found) {
                s->bins[key >> shifts[pass] & last] += weights != NULL ? weights[i] : 1;
            }
        }
        for (; bin > 0 && s->bins[bin] < wanted; bin--) {
            wanted -= s->bins[bin];
        }
        found = found * n_bins[pass] + bin;
    }
    fl_threshold cut = {fl_float_of_key(found), wanted};
    if (weights != NULL) {
        size_t first = 0;
        while (c->logits[first] != cut.logit) {
            first++;
        }
        cut.n_equal = fl_div_up(wanted, weights[first]);
    }
    return cut;
}

static void fl_keep(fl_sampler *s, fl_candidates *c, fl_threshold cut) {
    float limit = cut.logit > FL_LOWEST ? cut.logit : FL_LOWEST;
    size_t n = s->kernels->at_least(c->logits, c->n, limit, s->weights), kept = 0;
    for (size_t i = 0; i < n; i++) {
        size_t at = s->weights[i];
        float logit = c->logits[at];
        if (logit == cut.logit && cut.n_equal == 0) {
            continue;
        }
        cut.n_equal -= logit == cut.logit;
        s->ids[kept] = fl_candidate_id(c, at);
        s->logits[kept++] = logit;
    }
    c->logits = s->logits;
    c->ids = s->ids;
    c->n = kept;
}

static float fl_highest(const fl_sampler *s, const float *logits, size_t n) {
    float highest;
    s->kernels->largest(logits, n, &highest);
    return highest;
}

/* Returns the highest logit as it is now. Where a tiny temperature would make it infinite, the differences to it are
 * scaled: they order alike. */
static float fl_stage_temperature(fl_sampler *s, fl_candidates *c, float highest, float temperature) {
    float shift = fl_is_finite(highest / temperature) ? 0 : highest;
    s->kernels->temper(c->logits, c->n, shift, temperature, s->logits);
    s->kernels->temper(&highest, 1, shift, temperature, &highest);
    c->logits = s->logits;
    return highest;
}

static void fl_stage_min_p(fl_sampler *s, fl_candidates *c, float highest, float min_p) {
    double limit = (double)highest + fl_log(min_p);
    fl_threshold cut = {limit > (double)FL_LOWEST ? (float)limit : FL_LOWEST, UINT64_MAX};
    if ((double)cut.logit < limit) { /* the smallest float that is not below it */
        cut.logit = fl_float_of_key(fl_key_of_float(cut.logit) + 1);
    }
    fl_keep(s, c, cut);
}

/* The k best; with ties, also all that equal the last of them. */
static void fl_stage_top_k(fl_sampler *s, fl_candidates *c, uint32_t k, bool ties) {
    fl_threshold cut = fl_find_threshold(s, c, NULL, k);
    cut.n_equal = ties ? UINT64_MAX : cut.n_equal;
    fl_keep(s, c, cut);
}

/* The shortest list of the best whose probabilities add up to p. */
static void fl_stage_top_p(fl_sampler *s, fl_candidates *c, float highest, float p) {
    double wanted = (double)s->kernels->weigh(c->logits, c->n, highest, s->weights) * (double)p;
    uint64_t whole = (uint64_t)wanted;
    whole += (double)whole < wanted || whole == 0;
    fl_keep(s, c, fl_find_threshold(s, c, s->weights, whole));
}

static bool fl_keeps_ties(const fl_sampling *o) {
    return o->s.preset != FOLOLLM_PRESET_LLAMACPP;
}

/* Does a stage do anything? */
static bool fl_stage_acts(const fl_sampling *o, folollm_stage stage) {
    switch (stage) {
    case FOLOLLM_STAGE_TEMPERATURE: return o->s.temperature != 1;
    case FOLOLLM_STAGE_MIN_P: return o->s.min_p > 0;
    case FOLOLLM_STAGE_TOP_K: return o->s.top_k > 0;
    case FOLOLLM_STAGE_TOP_P: return o->s.top_p > 0 && o->s.top_p < 1;
    default: return false;
    }
}

/* highest: of the candidates; every stage keeps it. */
static void fl_run_stages(fl_sampler *s, fl_candidates *c, const fl_sampling *o, float highest) {
    for (size_t i = 0; i < FL_STAGES_MAX && o->order[i] != FOLOLLM_STAGE_END; i++) {
        if (!fl_stage_acts(o, o->order[i])) {
            continue;
        }
        if (o->order[i] == FOLOLLM_STAGE_TEMPERATURE) {
            highest = fl_stage_temperature(s, c, highest, o->s.temperature);
        } else if (o->order[i] == FOLOLLM_STAGE_MIN_P) {
            fl_stage_min_p(s, c, highest, o->s.min_p);
        } else if (o->order[i] == FOLOLLM_STAGE_TOP_P) {
            fl_stage_top_p(s, c, highest, o->s.top_p);
        } else if (o->s.top_k < c->n) {
            fl_stage_top_k(s, c, o->s.top_k, fl_keeps_ties(o));
        }
    }
}

/* ---- Choosing -- */

/* The most likely by raw logit, best first, lowest id first among equals. */
static void fl_pick_top(const float *logits, uint32_t vocab, folollm_logprob *top, size_t n_top) {
    size_t n = 0;
    for (uint32_t id = 0; n_top > 0 && id < vocab; id++) {
        if (n == n_top && !(logits[id] > top[n - 1].raw)) {
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

/* What a probability is computed from: the difference comes first, for beside a huge maximum the logarithm of the sum
 * would be lost. */
typedef struct fl_distribution {
    float highest;
    uint64_t total; /* of weights */
    double log_total;
} fl_distribution;

static fl_distribution fl_distribution_from(float highest, uint64_t total) {
    fl_distribution d = {highest, total, fl_log((double)total / (double)FL_WEIGHT_ONE)};
    return d;
}

static fl_distribution fl_distribution_of(const fl_sampler *s, const float *logits, size_t n, uint32_t *weights) {
    float highest = fl_highest(s, logits, n);
    return fl_distribution_from(highest, s->kernels->weigh(logits, n, highest, weights));
}

static float fl_logprob(const fl_distribution *d, float logit) {
    return (float)((double)logit - (double)d->highest - d->log_total);
}

/* That of a token, if it is a candidate. */
static float fl_logprob_of(const fl_distribution *d, const fl_candidates *c, folollm_token id) {
    size_t low = 0, high = c->n;
    while (low + 1 < high) {
        size_t middle = (low + high) / 2;
        low = fl_candidate_id(c, middle) <= id ? middle : low;
        high = fl_candidate_id(c, middle) <= id ? high : middle;
    }
    bool there = fl_candidate_id(c, low) == id && c->logits[low] > FL_BANNED;
    return there ? fl_logprob(d, c->logits[low]) : -FLT_MAX;
}

/* A candidate as often as it weighs. uniform: in [0, 1). */
static size_t fl_draw(const fl_sampler *s, uint64_t total, double uniform) {
    uint64_t left = fl_min((uint64_t)(uniform * (double)total), total - 1);
    size_t i = 0;
    while (left >= s->weights[i]) {
        left -= s->weights[i++];
    }
    return i;
}

FL_LOCAL bool fl_sampler_ask(const fl_sampling *o, const fl_history *h, fl_device_choice *out) {
    memset(out, 0, sizeof *out);
    if (fl_adjusts(o, h)) {
        return false;
    }
    out->asked = 1;
    out->draws = o->s.temperature > 0;
    for (size_t i = 0; out->draws && i < FL_STAGES_MAX && o->order[i] != FOLOLLM_STAGE_END; i++) {
        if (fl_stage_acts(o, o->order[i])) {
            out->stages[out->n_stages++] = (int32_t)o->order[i];
        }
    }
    out->temperature = o->s.temperature;
    out->top_p = o->s.top_p;
    out->top_k = o->s.top_k;
    out->ties = fl_keeps_ties(o);
    out->log_min_p = o->s.min_p > 0 ? fl_log(o->s.min_p) : 0;
    out->uniform = fl_uniform(o->s.seed, h->n_tokens);
    return true;
}

FL_LOCAL bool fl_sampler_accept(const fl_device_chosen *made, folollm_logprob *chosen) {
    if (made->token < 0) {
        return false;
    }
    fl_distribution raw = fl_distribution_from(made->raw_highest, made->raw_total);
    fl_distribution left = fl_distribution_from(made->highest, made->total);
    chosen->token = made->token;
    chosen->raw = fl_logprob(&raw, made->raw);
    chosen->processed = fl_logprob(&left, made->logit);
    return true;
}

FL_LOCAL bool fl_sampler_choose(fl_sampler *s, const fl_sampling *o, const float *logits, const fl_history *h,
                                folollm_logprob *chosen, folollm_logprob *top, size_t n_top) {
    fl_candidates c = {fl_adjust(s, o, h, logits), NULL, s->vocab};
    float highest = fl_highest(s, c.logits, c.n);
    if (!(highest > FL_BANNED)) {
        return false;
    }
    fl_pick_top(logits, s->vocab, top, n_top);
    bool draws = o->s.temperature > 0;
    if (draws) {
        fl_run_stages(s, &c, o, highest);
    }
    fl_distribution d = fl_distribution_of(s, c.logits, c.n, draws ? s->weights : NULL);
    if (draws) {
        chosen->token = fl_candidate_id(&c, fl_draw(s, d.total, fl_uniform(o->s.seed, h->n_tokens)));
    } else {
        s->kernels->at_least(c.logits, c.n, d.highest, s->weights);
        chosen->token = (folollm_token)s->weights[0];
    }
    chosen->processed = fl_logprob_of(&d, &c, chosen->token);
    for (size_t i = 0; i < n_top; i++) {
        top[i].processed = fl_logprob_of(&d, &c, top[i].token);
    }
    d = fl_distribution_of(s, logits, s->vocab, NULL);
    chosen->raw = fl_logprob(&d, logits[chosen->token]);
    for (size_t i = 0; i < n_top; i++) {
        top[i].raw = fl_logprob(&d, top[i].raw);
    }
    return true;
}
