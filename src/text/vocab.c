/* The vocabulary's two directions. Its memory is planned by the caller, so that nothing here can fail for want of it;
 * a table is at most three quarters full. A slot's spare bits hold some of the hash, so that a look-up that meets
 * another token's slot goes on without touching that token. */
#include "text/vocab.h"

#include "base/utf8.h"

FL_LOCAL void fl_vocab_layout(fl_vocab *v, fl_arena *arena, size_t n_ids, size_t n_tokens, size_t blob_bytes) {
    size_t slots = 16;
    while (slots / 4 * 3 < n_tokens) {
        slots *= 2;
    }
    v->mask = slots - 1;
    v->pieces = fl_take(arena, n_ids, sizeof *v->pieces);
    v->blob = fl_take(arena, blob_bytes, 1);
    v->slots = fl_take(arena, slots, sizeof *v->slots);
}

FL_LOCAL void fl_vocab_clear(fl_vocab *v) {
    memset(v->slots, 0xFF, (v->mask + 1) * sizeof *v->slots);
    v->n_blob = 0;
    v->n_ids = 0;
}

/* Eight bytes at a time: pieces are short, and every symbol of every merge is looked up once at load. */
static uint64_t fl_vocab_hash(fl_str s, bool raw) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ (s.n << 1 | raw);
    for (size_t i = 0; i < s.n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, s.at + i, fl_min(8, s.n - i));
        h = (h ^ word) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

static uint32_t fl_vocab_tag(uint64_t hash) {
    return (uint32_t)(hash >> 32) & ~FL_VOCAB_IDS_MAX;
}

/* The slot of a piece, or the free one where it belongs. */
static uint32_t *fl_vocab_slot(const fl_vocab *v, fl_str piece, bool raw, uint64_t hash) {
    size_t i = (size_t)hash & v->mask;
    for (; v->slots[i] != FL_VOCAB_NONE; i = (i + 1) & v->mask) {
        uint32_t id = v->slots[i] & FL_VOCAB_IDS_MAX;
        if ((v->slots[i] ^ id) == fl_vocab_tag(hash) && ((v->pieces[id].flags & FL_PIECE_RAW) != 0) == raw &&
            fl_str_equal(fl_vocab_piece(v, id), piece)) {
            break;
        }
    }
    return &v->slots[i];
}

FL_LOCAL bool fl_vocab_put(fl_vocab *v, uint32_t id, fl_str piece, uint8_t flags) {
    bool raw = (flags & FL_PIECE_RAW) != 0;
    uint64_t hash = fl_vocab_hash(piece, raw);
    uint32_t *slot = fl_vocab_slot(v, piece, raw, hash);
    fl_piece *p = &v->pieces[id];
    if (*slot != FL_VOCAB_NONE || (p->flags & FL_PIECE_PRESENT) != 0) {
        return false;
    }
    *slot = fl_vocab_tag(hash) | id;
    p->at = (uint32_t)v->n_blob;
    p->n = (uint32_t)(piece.n & 0xFFFFFF);
    p->flags = (uint8_t)(flags | FL_PIECE_PRESENT);
    if (piece.n > 0) {
        memcpy(v->blob + v->n_blob, piece.at, piece.n);
    }
    v->n_blob += piece.n;
    v->n_ids = id >= v->n_ids ? id + 1 : v->n_ids;
    return true;
}

FL_LOCAL uint32_t fl_vocab_find(const fl_vocab *v, fl_str piece, bool raw) {
    uint32_t slot = *fl_vocab_slot(v, piece, raw, fl_vocab_hash(piece, raw));
    return slot == FL_VOCAB_NONE ? FL_VOCAB_NONE : slot & FL_VOCAB_IDS_MAX;
}

/* The byte that a character of the byte alphabet stands for, or -1: printable Latin-1 is itself, the other 68 bytes
 * are U+0100 and upwards, in order. */
static int fl_vocab_byte_of(uint32_t code) {
    if ((code >= 33 && code <= 126) || (code >= 161 && code <= 255 && code != 173)) {
        return (int)code;
    }
    if (code < 256 || code > 323) {
        return -1;
    }
    code -= 256;
    return (int)(code < 33 ? code : code < 67 ? code + 94 : 173);
}

/* The character of the byte alphabet that stands for a byte. */
static uint32_t fl_vocab_code_of(uint8_t byte) {
    uint32_t code = byte;
    if (fl_vocab_byte_of(code) == byte) {
        return code;
    }
    return 256 + (code < 33 ? code : code == 173 ? 67 : code - 94);
}

FL_LOCAL size_t fl_vocab_spell(const fl_vocab *v, uint32_t id, char *out) {
    fl_str piece = fl_vocab_piece(v, id);
    bool raw = !v->byte_level || (v->pieces[id].flags & FL_PIECE_RAW) != 0;
    size_t n = 0;
    for (size_t i = 0; i < piece.n; i++) {
        if (raw) {
            out[n++] = piece.at[i];
        } else {
            n += fl_utf8_encode(fl_vocab_code_of((uint8_t)piece.at[i]), out + n);
        }
    }
    return n;
}

FL_LOCAL bool fl_vocab_piece_of(bool byte_level, fl_str token, char *out, size_t *n) {
    size_t length = 0;
    for (size_t at = 0; byte_level && at < token.n; at++) {
        uint8_t lead = (uint8_t)token.at[at];
        uint32_t code = lead;
        if (lead >= 0x80) { /* two bytes of UTF-8 are enough for the alphabet; what is longer is not in it */
            at++;
            code = lead < 0xE0 && at < token.n ? (lead & 0x1Fu) << 6 | ((uint8_t)token.at[at] & 0x3Fu) : 0;
        }
        int byte = fl_vocab_byte_of(code);
        if (byte < 0) {
            byte_level = false;
        }
        out[length++] = (char)byte;
    }
    *n = byte_level ? length : token.n;
    if (!byte_level && token.n > 0) {
        memcpy(out, token.at, token.n);
    }
    return !byte_level;
}
