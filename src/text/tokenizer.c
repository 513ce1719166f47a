/* Encoding: the stages of tokenizer.h, one stretch of text at a time.
 *
 *     text | added token | text ...          cut in the raw text
 *            text | added token | text       cut again in what the normaliser made of a stretch
 *                   word word word           each merged by itself
 *
 * Nothing is kept for a whole text but its ids; every stage hands its parts to the next as it finds them. */
#include "text/tokenizer_impl.h"

#include "base/utf8.h"

#define FL_ENCODE_BYTES_MAX ((size_t)1 << 31)

typedef struct fl_encode {
    const fl_tokenizer *t;
    folollm_error *error;
    const folollm_span *trusted;
    size_t n_trusted;
    fl_bpe_run run;
    fl_text_buffer normal[2], rewritten;
} fl_encode;

static folollm_status fl_encode_id(fl_encode *e, uint32_t id) {
    return fl_bpe_push(&e->run, id) ? FOLOLLM_OK : fl_no_memory(e->error, "token ids", e->run.n_ids * sizeof id);
}

/* Text without added tokens. */
static folollm_status fl_encode_words(fl_encode *e, fl_str text, bool at_start) {
    fl_pretok_walk walk;
    fl_str word;
    bool ok = fl_pretok_begin(&walk, &e->t->pretokenizer, text, at_start, &e->rewritten);
    while (ok && (ok = fl_pretok_next(&walk, &word)) && word.n > 0) {
        FL_TRY(fl_bpe_encode(&e->t->bpe, &e->run, word, e->error));
    }
    return ok ? FOLOLLM_OK : fl_no_memory(e->error, "pre-tokenized text", text.n);
}

/* Do the bytes [begin, begin + n) of the text lie in one trusted span? */
static bool fl_encode_trusts(const fl_encode *e, size_t begin, size_t n) {
    for (size_t i = 0; i < e->n_trusted && e->trusted[i].begin <= begin; i++) {
        if (begin + n <= e->trusted[i].end) {
            return true;
        }
    }
    return false;
}

/* Text between added tokens that were found in the raw text, at `offset` of the whole. Where the normaliser changed
 * something, its tokens are looked for only if all of the stretch is trusted: bytes no longer tell whose they are. */
static folollm_status fl_encode_stretch(fl_encode *e, fl_str text, size_t offset) {
    fl_str normal, part;
    if (!fl_norm_apply(&e->t->normalizer, text, e->normal, &normal)) {
        return fl_no_memory(e->error, "normalized text", text.n);
    }
    bool same = normal.at == text.at && normal.n == text.n;
    folollm_span all = {offset, offset + normal.n};
    const folollm_span *trusted = same ? e->trusted : &all;
    size_t n_trusted = same ? e->n_trusted : fl_encode_trusts(e, offset, text.n);
    fl_added_walk walk;
    const fl_added_token *token;
    fl_added_begin(&walk, &e->t->added, FL_ADDED_NORMALIZED, normal, offset, trusted, n_trusted);
    while (fl_added_next(&walk, &part, &token)) {
        FL_TRY(token != NULL ? fl_encode_id(e, token->id)
                             : fl_encode_words(e, part, offset == 0 && part.at == normal.at));
    }
    return FOLOLLM_OK;
}

static folollm_status fl_encode_text(fl_encode *e, fl_str text, unsigned flags) {
    const fl_tokenizer *t = e->t;
    bool plain = (flags & FOLOLLM_TOKENIZE_PLAIN) != 0;
    for (size_t i = 0; !plain && i < t->n_before; i++) {
        FL_TRY(fl_encode_id(e, t->before[i]));
    }
    fl_added_walk walk;
    const fl_added_token *token;
    fl_str part;
    fl_added_begin(&walk, &t->added, FL_ADDED_RAW, text, 0, e->trusted, e->n_trusted);
    while (fl_added_next(&walk, &part, &token)) {
        FL_TRY(token != NULL ? fl_encode_id(e, token->id)
                             : fl_encode_stretch(e, part, (size_t)(part.at - text.at)));
    }
    for (size_t i = 0; !plain && i < t->n_after; i++) {
        FL_TRY(fl_encode_id(e, t->after[i]));
    }
    return FOLOLLM_OK;
}

static folollm_status fl_encode_check(fl_str text, const folollm_span *trusted, size_t n_trusted, unsigned flags,
                                      folollm_error *error) {
    if ((flags & ~(unsigned)FOLOLLM_TOKENIZE_PLAIN) != 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "tokenize: flags %u are not FOLOLLM_TOKENIZE_*", (uint64_t)flags);
    }
    if (text.n > FL_ENCODE_BYTES_MAX) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "tokenize: %u bytes of text; at most %u at once", (uint64_t)text.n,
                       (uint64_t)FL_ENCODE_BYTES_MAX);
    }
    for (size_t i = 0, end = 0; i < n_trusted; i++) {
        if (trusted[i].begin < end || trusted[i].end < trusted[i].begin || trusted[i].end > text.n) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "tokenize: trusted span %u is [%u, %u); spans must ascend, apart "
                                                      "from each other, within %u bytes", (uint64_t)i,
                           (uint64_t)trusted[i].begin, (uint64_t)trusted[i].end, (uint64_t)text.n);
        }
        end = trusted[i].end;
    }
    size_t valid = fl_utf8_valid_prefix(text.at, text.n);
    if (valid < text.n) {
        return fl_fail(error, FOLOLLM_E_ENCODING, "tokenize: byte %u of the text is not UTF-8", (uint64_t)valid);
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_tokenizer_encode(const fl_tokenizer *t, fl_memory *m, fl_str text,
                                            const folollm_span *trusted, size_t n_trusted, unsigned flags,
                                            folollm_token *tokens, size_t *n_tokens, folollm_error *error) {
    FL_TRY(fl_encode_check(text, trusted, n_trusted, flags, error));
    fl_encode e = {.t = t, .error = error, .trusted = trusted, .n_trusted = n_trusted};
    e.run.memory = e.normal[0].memory = e.normal[1].memory = e.rewritten.memory = m;
    folollm_status status = fl_encode_text(&e, text, flags);
    if (status == FOLOLLM_OK) {
        size_t room = *n_tokens;
        *n_tokens = e.run.n_ids;
        if (e.run.n_ids > room) {
            status = fl_fail(error, FOLOLLM_E_BUFFER, "tokenize: %u tokens do not fit into room for %u",
                             (uint64_t)e.run.n_ids, (uint64_t)room);
        }
        for (size_t i = 0; status == FOLOLLM_OK && i < e.run.n_ids; i++) {
            tokens[i] = (folollm_token)e.run.ids[i];
        }
    }
    fl_bpe_run_free(&e.run);
    fl_text_free(&e.normal[0]);
    fl_text_free(&e.normal[1]);
    fl_text_free(&e.rewritten);
    return status;
}

/* ---- Looking things up -- */

FL_LOCAL uint32_t fl_tokenizer_n_ids(const fl_tokenizer *t) {
    return t->vocab.n_ids;
}

FL_LOCAL size_t fl_tokenizer_max_piece_bytes(const fl_tokenizer *t) {
    return t->max_piece_bytes;
}

FL_LOCAL bool fl_tokenizer_has_id(const fl_tokenizer *t, folollm_token id) {
    return id >= 0 && (uint32_t)id < t->vocab.n_ids && (t->vocab.pieces[id].flags & FL_PIECE_PRESENT) != 0;
}

FL_LOCAL bool fl_tokenizer_is_special(const fl_tokenizer *t, folollm_token id) {
    return fl_tokenizer_has_id(t, id) && (t->vocab.pieces[id].flags & FL_PIECE_SPECIAL) != 0;
}

FL_LOCAL folollm_token fl_tokenizer_find(const fl_tokenizer *t, fl_str token) {
    char buffer[1024];
    fl_str piece = {buffer, 0};
    if (token.n > sizeof buffer) {
        return -1;
    }
    bool raw = fl_vocab_piece_of(t->vocab.byte_level, token, buffer, &piece.n);
    uint32_t id = fl_vocab_find(&t->vocab, piece, raw);
    return id == FL_VOCAB_NONE ? -1 : (folollm_token)id;
}

FL_LOCAL folollm_token fl_tokenizer_bos(const fl_tokenizer *t) {
    return t->bos;
}

FL_LOCAL folollm_token fl_tokenizer_eos(const fl_tokenizer *t) {
    return t->eos;
}
