/* The stages of a tokenizer.json beside its model, from JSON to the structures that run them.
 *
 * Every part is either understood in full or refused by name: a stage that is skipped would give other ids than the
 * tokenizers library, and nobody would see it. */
#include "text/tokenizer_impl.h"

#define FL_PARTS_GROWTH 32 /* a text may become so many times longer by what Replace puts into it */

typedef struct fl_parts {
    const fl_json *doc;
    fl_tokenizer *t;
    folollm_error *error;
    uint32_t decoder_rank; /* 1 + the last decoder's place in the fixed order; 0: none yet */
    uint32_t n_templates;
    size_t growth; /* of all Replace normalizers so far */
} fl_parts;

typedef folollm_status (*fl_parts_reader)(fl_parts *p, uint32_t node);

static folollm_status fl_parts_unsupported(const fl_parts *p, const char *part, uint32_t node) {
    fl_str found = fl_json_found(p->doc, node);
    return fl_fail(p->error, FOLOLLM_E_UNSUPPORTED, "%s: %s %S is not supported", p->doc->name, part, &found);
}

static folollm_status fl_parts_bad(const fl_parts *p, const char *key, const char *expected) {
    return fl_fail(p->error, FOLOLLM_E_FORMAT, "%s: \"%s\" must be %s", p->doc->name, key, expected);
}

static bool fl_parts_is(const fl_parts *p, uint32_t node, const char *type) {
    return fl_json_is(p->doc, fl_json_get(p->doc, node, "type"), type);
}

/* A string of at most 31 bytes under a key. */
static folollm_status fl_parts_short(const fl_parts *p, uint32_t node, const char *key, fl_short_text *out) {
    char buffer[6 * sizeof out->at]; /* as \u escapes it is up to six times as long */
    uint32_t value = fl_json_get(p->doc, node, key);
    if (fl_json_type_of(p->doc, value) != FL_JSON_STRING) {
        return fl_parts_bad(p, key, "a string");
    }
    if (p->doc->nodes[value].n > sizeof buffer) {
        return fl_parts_unsupported(p, "the long string", value);
    }
    fl_str s = fl_json_string(p->doc, value, buffer);
    if (s.n > sizeof out->at) {
        return fl_parts_unsupported(p, "the long string", value);
    }
    memcpy(out->at, s.at, s.n);
    out->n = (uint8_t)s.n;
    return FOLOLLM_OK;
}

/* "pattern": {"String": ...}; a Regex is refused. */
static folollm_status fl_parts_literal(const fl_parts *p, uint32_t node, const char *what, fl_short_text *out) {
    uint32_t pattern = fl_json_get(p->doc, node, "pattern"), regex = fl_json_get(p->doc, pattern, "Regex");
    if (regex != FL_JSON_NONE) {
        return fl_parts_unsupported(p, what, regex);
    }
    return fl_parts_short(p, pattern, "String", out);
}

/* Call `read` for a part, or for the elements of a Sequence, in order; null has none. */
static folollm_status fl_parts_each(fl_parts *p, const char *key, const char *list_key, fl_parts_reader read) {
    uint32_t node = fl_json_get(p->doc, 0, key);
    if (fl_json_type_of(p->doc, node) == FL_JSON_NULL) {
        return FOLOLLM_OK;
    }
    if (fl_json_type_of(p->doc, node) != FL_JSON_OBJECT) {
        return fl_parts_bad(p, key, "an object or null");
    }
    if (!fl_parts_is(p, node, "Sequence")) {
        return read(p, node);
    }
    uint32_t list = fl_json_get(p->doc, node, list_key);
    if (fl_json_type_of(p->doc, list) != FL_JSON_ARRAY) {
        return fl_parts_bad(p, list_key, "a list");
    }
    for (uint32_t i = list + 1; i < p->doc->nodes[list].next; i = p->doc->nodes[i].next) {
        FL_TRY(read(p, i));
    }
    return FOLOLLM_OK;
}

/* ---- Normalisers -- */

static folollm_status fl_parts_norm_fields(fl_parts *p, uint32_t node, fl_norm_step *step) {
    static const struct {
        const char *type;
        fl_uni_form form;
    } forms[] = {{"NFC", FL_UNI_NFC}, {"NFD", FL_UNI_NFD}, {"NFKC", FL_UNI_NFKC}, {"NFKD", FL_UNI_NFKD}};
    for (size_t i = 0; i < FL_COUNT(forms); i++) {
        if (fl_parts_is(p, node, forms[i].type)) {
            step->kind = FL_NORM_FORM;
            step->form = forms[i].form;
            return FOLOLLM_OK;
        }
    }
    if (fl_parts_is(p, node, "Prepend")) {
        step->kind = FL_NORM_PREPEND;
        return fl_parts_short(p, node, "prepend", &step->to);
    }
    if (fl_parts_is(p, node, "Replace")) {
        step->kind = FL_NORM_REPLACE;
        FL_TRY(fl_parts_literal(p, node, "a Replace normalizer with the regular expression", &step->from));
        return fl_parts_short(p, node, "content", &step->to);
    }
    if (fl_parts_is(p, node, "Strip")) {
        step->kind = FL_NORM_STRIP;
        FL_TRY(fl_json_bool(p->doc, node, "strip_left", false, &step->left, p->error));
        return fl_json_bool(p->doc, node, "strip_right", false, &step->right, p->error);
    }
    if (fl_parts_is(p, node, "Lowercase")) {
        step->kind = FL_NORM_LOWERCASE;
        return FOLOLLM_OK;
    }
    return fl_parts_unsupported(p, "the normalizer", fl_json_get(p->doc, node, "type"));
}

static folollm_status fl_parts_norm(fl_parts *p, uint32_t node) {
    fl_normalizer *norm = &p->t->normalizer;
    if (norm->n_steps == FL_NORM_STEPS) {
        return fl_fail(p->error, FOLOLLM_E_UNSUPPORTED, "%s: more than %u normalizers are not supported",
                       p->doc->name, (uint64_t)FL_NORM_STEPS);
    }
    fl_norm_step *step = &norm->steps[norm->n_steps++];
    FL_TRY(fl_parts_norm_fields(p, node, step));
    if (step->kind == FL_NORM_REPLACE && step->from.n > 0 && step->to.n > step->from.n) {
        p->growth *= fl_div_up(step->to.n, step->from.n);
    }
    if (p->growth > FL_PARTS_GROWTH) { /* eight that make 31 bytes of one would make a terabyte of a byte */
        return fl_fail(p->error, FOLOLLM_E_UNSUPPORTED, "%s: normalizers that together make a text more than %u times "
                                                        "as long are not supported", p->doc->name,
                       (uint64_t)FL_PARTS_GROWTH);
    }
    return FOLOLLM_OK;
}

/* ---- Pre-tokenizers -- */

static folollm_status fl_parts_split(fl_parts *p, uint32_t node, fl_pretok_step *step) {
    uint32_t behavior = fl_json_get(p->doc, node, "behavior"), pattern = fl_json_get(p->doc, node, "pattern");
    uint32_t regex = fl_json_get(p->doc, pattern, "Regex");
    bool invert;
    FL_TRY(fl_json_bool(p->doc, node, "invert", false, &invert, p->error));
    if (invert) {
        return fl_parts_unsupported(p, "an inverted Split by", pattern);
    }
    bool isolated = fl_json_is(p->doc, behavior, "Isolated");
    if (regex == FL_JSON_NONE) {
        step->kind = FL_PRETOK_LITERAL;
        step->join = fl_json_is(p->doc, behavior, "MergedWithNext") ? FL_PRETOK_WITH_NEXT
                     : isolated                                     ? FL_PRETOK_ISOLATED
                                                                    : FL_PRETOK_WITH_PREVIOUS;
        if (step->join == FL_PRETOK_WITH_PREVIOUS && !fl_json_is(p->doc, behavior, "MergedWithPrevious")) {
            return fl_parts_unsupported(p, "a Split with behavior", behavior);
        }
        FL_TRY(fl_parts_literal(p, node, "", &step->literal));
        return step->literal.n > 0 ? FOLOLLM_OK : fl_parts_bad(p, "String", "a string that is not empty");
    }
    char buffer[1024];
    bool fits = fl_json_type_of(p->doc, regex) == FL_JSON_STRING && p->doc->nodes[regex].n <= sizeof buffer;
    if (!fits || !fl_pretok_find(fl_json_string(p->doc, regex, buffer), step)) {
        return fl_parts_unsupported(p, "the pre_tokenizer pattern", regex);
    }
    return isolated ? FOLOLLM_OK : fl_parts_unsupported(p, "a Split with behavior", behavior);
}

static folollm_status fl_parts_byte_level(fl_parts *p, uint32_t node, fl_pretok_step *step) {
    bool prefix, regex;
    FL_TRY(fl_json_bool(p->doc, node, "add_prefix_space", true, &prefix, p->error));
    FL_TRY(fl_json_bool(p->doc, node, "use_regex", true, &regex, p->error));
    step->kind = regex ? FL_PRETOK_WORDS : FL_PRETOK_WHOLE;
    step->pattern = fl_pretok_known(FL_PRETOK_GPT2);
    step->prefix = prefix ? FL_PRETOK_PREFIX_ALWAYS : FL_PRETOK_PREFIX_NEVER;
    p->t->pretokenizer.byte_level = true;
    return FOLOLLM_OK;
}

/* prepend_scheme is new; add_prefix_space says the same in old files, and may only agree with it. */
static folollm_status fl_parts_metaspace_prefix(fl_parts *p, uint32_t node, fl_pretok_prefix *prefix) {
    uint32_t scheme = fl_json_get(p->doc, node, "prepend_scheme");
    bool add;
    FL_TRY(fl_json_bool(p->doc, node, "add_prefix_space", true, &add, p->error));
    *prefix = FL_PRETOK_PREFIX_ALWAYS;
    if (fl_json_is(p->doc, scheme, "first")) {
        *prefix = FL_PRETOK_PREFIX_FIRST;
    } else if (fl_json_is(p->doc, scheme, "never")) {
        *prefix = FL_PRETOK_PREFIX_NEVER;
    } else if (scheme != FL_JSON_NONE && !fl_json_is(p->doc, scheme, "always")) {
        return fl_parts_bad(p, "prepend_scheme", "\"first\", \"always\" or \"never\"");
    }
    if (!add && *prefix != FL_PRETOK_PREFIX_NEVER) {
        return fl_parts_bad(p, "add_prefix_space", "as prepend_scheme says");
    }
    return FOLOLLM_OK;
}

static folollm_status fl_parts_metaspace(fl_parts *p, uint32_t node, fl_pretok_step *step) {
    bool split;
    FL_TRY(fl_parts_short(p, node, "replacement", &step->literal));
    FL_TRY(fl_parts_metaspace_prefix(p, node, &step->prefix));
    FL_TRY(fl_json_bool(p->doc, node, "split", true, &split, p->error));
    fl_str literal = fl_short_str(&step->literal);
    if (literal.n == 0 || fl_uni_peek(literal, 0).n != literal.n) {
        return fl_parts_bad(p, "replacement", "one character");
    }
    step->kind = split ? FL_PRETOK_LITERAL : FL_PRETOK_WHOLE;
    step->join = FL_PRETOK_WITH_NEXT;
    step->spaces = true;
    return FOLOLLM_OK;
}

static folollm_status fl_parts_pretok(fl_parts *p, uint32_t node) {
    fl_pretokenizer *pre = &p->t->pretokenizer;
    fl_pretok_step *step = &pre->steps[pre->n_steps];
    bool byte_level = fl_parts_is(p, node, "ByteLevel"), metaspace = fl_parts_is(p, node, "Metaspace");
    bool rewritten = pre->byte_level;
    if (pre->n_steps == FL_PRETOK_STEPS) {
        return fl_fail(p->error, FOLOLLM_E_UNSUPPORTED, "%s: more than %u pre_tokenizers are not supported",
                       p->doc->name, (uint64_t)FL_PRETOK_STEPS);
    }
    for (size_t i = 0; i < pre->n_steps; i++) {
        rewritten = rewritten || (pre->steps[i].spaces && (byte_level || metaspace));
    }
    if (rewritten) { /* it would see the byte alphabet, or text that was already rewritten */
        return fl_parts_unsupported(p, "after another pre_tokenizer that changes the text, the pre_tokenizer",
                                    fl_json_get(p->doc, node, "type"));
    }
    if (byte_level) {
        FL_TRY(fl_parts_byte_level(p, node, step));
    } else if (metaspace) {
        FL_TRY(fl_parts_metaspace(p, node, step));
    } else if (fl_parts_is(p, node, "Split")) {
        FL_TRY(fl_parts_split(p, node, step));
    } else if (fl_parts_is(p, node, "Digits")) {
        bool individual;
        FL_TRY(fl_json_bool(p->doc, node, "individual_digits", false, &individual, p->error));
        step->kind = FL_PRETOK_NUMBERS;
        step->n_digits = individual;
    } else {
        return fl_parts_unsupported(p, "the pre_tokenizer", fl_json_get(p->doc, node, "type"));
    }
    pre->n_steps += step->kind != FL_PRETOK_WHOLE || step->spaces || step->prefix != FL_PRETOK_PREFIX_NEVER;
    return FOLOLLM_OK;
}

/* ---- Decoders -- */

static folollm_status fl_parts_strip(fl_parts *p, uint32_t node, fl_decoder *d) {
    uint32_t start, stop;
    FL_TRY(fl_parts_short(p, node, "content", &d->strip));
    FL_TRY(fl_json_u32(p->doc, node, "start", 0, &start, p->error));
    FL_TRY(fl_json_u32(p->doc, node, "stop", 0, &stop, p->error));
    fl_str strip = fl_short_str(&d->strip);
    if (strip.n == 0 || fl_uni_peek(strip, 0).n != strip.n) {
        return fl_parts_bad(p, "content", "one character");
    }
    if (stop != 0 || start > 250) {
        return fl_parts_unsupported(p, "a Strip decoder at the end, or of many characters, with",
                                    fl_json_get(p->doc, node, "content"));
    }
    d->n_strip = (uint8_t)start;
    return FOLOLLM_OK;
}

/* Decoders are run in one fixed order: Replace or Metaspace, ByteFallback, Fuse, Strip. */
static folollm_status fl_parts_decoder(fl_parts *p, uint32_t node) {
    static const char *const order[] = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip", "ByteLevel"};
    fl_decoder *d = &p->t->decoder;
    size_t kind = 0;
    while (kind < FL_COUNT(order) && !fl_parts_is(p, node, order[kind])) {
        kind++;
    }
    bool alone = kind == 5 && p->decoder_rank > 0;
    if (kind == FL_COUNT(order) || kind + 1 <= p->decoder_rank || (kind == 1 && d->from.n > 0) || alone ||
        (kind == 4 && p->decoder_rank != 4)) {
        return fl_parts_unsupported(p, "here the decoder", fl_json_get(p->doc, node, "type"));
    }
    p->decoder_rank = (uint32_t)kind + 1;
    if (kind == 0) {
        FL_TRY(fl_parts_literal(p, node, "a Replace decoder with the regular expression", &d->from));
        return fl_parts_short(p, node, "content", &d->to);
    }
    if (kind == 1) {
        fl_pretok_prefix prefix;
        FL_TRY(fl_parts_short(p, node, "replacement", &d->from));
        FL_TRY(fl_parts_metaspace_prefix(p, node, &prefix));
        d->drop_first = prefix != FL_PRETOK_PREFIX_NEVER;
        d->to.n = 1;
        d->to.at[0] = ' ';
    }
    d->byte_fallback = d->byte_fallback || kind == 2;
    d->byte_level = kind == 5;
    return kind == 4 ? fl_parts_strip(p, node, d) : FOLOLLM_OK;
}

/* ---- Post-processors -- */

/* Append the ids of special_tokens[name] of a template. */
static folollm_status fl_parts_template_ids(fl_parts *p, uint32_t node, uint32_t piece, uint32_t *ids, size_t *n) {
    char buffer[256];
    uint32_t name = fl_json_get(p->doc, piece, "id"), entry = FL_JSON_NONE;
    uint32_t table = fl_json_get(p->doc, node, "special_tokens");
    if (fl_json_type_of(p->doc, name) == FL_JSON_STRING && p->doc->nodes[name].n < sizeof buffer) {
        fl_str key = fl_json_string(p->doc, name, buffer);
        buffer[key.n] = 0;
        if (key.at != buffer) {
            memcpy(buffer, key.at, key.n);
        }
        entry = fl_json_get(p->doc, fl_json_get(p->doc, table, buffer), "ids");
    }
    if (fl_json_type_of(p->doc, entry) != FL_JSON_ARRAY || p->doc->nodes[entry].n_children == 0) {
        return fl_parts_bad(p, "special_tokens", "an object with the ids of every SpecialToken of the template");
    }
    for (uint32_t i = entry + 1; i < p->doc->nodes[entry].next; i = p->doc->nodes[i].next) {
        uint64_t id;
        if (*n == FL_TEMPLATE_IDS || !fl_json_integer(p->doc, i, FL_VOCAB_IDS_MAX - 1, &id)) {
            return fl_parts_bad(p, "ids", "a list of at most 8 token ids");
        }
        ids[(*n)++] = (uint32_t)id;
    }
    return FOLOLLM_OK;
}

static folollm_status fl_parts_template(fl_parts *p, uint32_t node) {
    uint32_t single = fl_json_get(p->doc, node, "single"), n_texts = 0;
    if (fl_json_type_of(p->doc, single) != FL_JSON_ARRAY) {
        return fl_parts_bad(p, "single", "a list");
    }
    for (uint32_t i = single + 1; i < p->doc->nodes[single].next; i = p->doc->nodes[i].next) {
        uint32_t special = fl_json_get(p->doc, i, "SpecialToken"), text = fl_json_get(p->doc, i, "Sequence");
        if (special != FL_JSON_NONE) {
            fl_tokenizer *t = p->t;
            FL_TRY(fl_parts_template_ids(p, node, special, n_texts == 0 ? t->before : t->after,
                                         n_texts == 0 ? &t->n_before : &t->n_after));
        } else if (fl_json_is(p->doc, fl_json_get(p->doc, text, "id"), "A")) {
            n_texts++;
        } else {
            return fl_parts_bad(p, "single", "a list of SpecialToken and Sequence A");
        }
    }
    return n_texts == 1 ? FOLOLLM_OK : fl_parts_bad(p, "single", "a list with one Sequence A");
}

static folollm_status fl_parts_post(fl_parts *p, uint32_t node) {
    if (fl_parts_is(p, node, "ByteLevel")) {
        return FOLOLLM_OK; /* it trims offsets, which nobody asks for here */
    }
    if (!fl_parts_is(p, node, "TemplateProcessing") || p->n_templates++ > 0) {
        return fl_parts_unsupported(p, "here the post_processor", fl_json_get(p->doc, node, "type"));
    }
    return fl_parts_template(p, node);
}

FL_LOCAL folollm_status fl_tokenizer_parts(const fl_json *doc, fl_tokenizer *t, folollm_error *error) {
    fl_parts p = {doc, t, error, 0, 0, 1};
    FL_TRY(fl_parts_each(&p, "normalizer", "normalizers", fl_parts_norm));
    FL_TRY(fl_parts_each(&p, "pre_tokenizer", "pretokenizers", fl_parts_pretok));
    FL_TRY(fl_parts_each(&p, "decoder", "decoders", fl_parts_decoder));
    FL_TRY(fl_parts_each(&p, "post_processor", "processors", fl_parts_post));
    if (p.decoder_rank == 0 || t->decoder.byte_level != t->pretokenizer.byte_level) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "%s: a decoder that does not undo the pre_tokenizer is not supported: both or neither must be "
                       "ByteLevel", doc->name);
    }
    t->vocab.byte_level = t->decoder.byte_level;
    return FOLOLLM_OK;
}
