/* The vocabulary: id -> piece, piece -> id.
 *
 *     pieces[id]: at, n, flags   ->   blob: ... bytes ...         slots: open addressing, ids by hash of their bytes
 *
 * In a byte-level vocabulary a token is spelled in an alphabet of 256 characters that stand for bytes, and its piece
 * is those bytes; one that has other characters too is kept as it is spelled (FL_PIECE_RAW). Bytes and that flag
 * together name a token. */
#ifndef FL_VOCAB_H
#define FL_VOCAB_H

#include "base/memory.h"

enum {
    FL_PIECE_PRESENT = 1,
    FL_PIECE_SPECIAL = 2,
    FL_PIECE_ADDED = 4,  /* in added_tokens, and not in the model's vocabulary */
    FL_PIECE_RAW = 8,
    FL_PIECE_BYTE = 16   /* "<0xHH>" of a byte-fallback decoder */
};

#define FL_VOCAB_ID_BITS 22
#define FL_VOCAB_IDS_MAX (((uint32_t)1 << FL_VOCAB_ID_BITS) - 1)
#define FL_PIECE_BYTES_MAX ((size_t)1 << 24)
#define FL_VOCAB_NONE UINT32_MAX

typedef struct fl_piece {
    uint32_t at, n : 24, flags : 8;
} fl_piece;

typedef struct fl_vocab {
    fl_piece *pieces; /* (n_ids) */
    char *blob;
    uint32_t *slots;  /* (mask + 1) id, and above it bits of its hash; FL_VOCAB_NONE: free */
    size_t mask, n_blob;
    uint32_t n_ids;
    bool byte_level;
} fl_vocab;

FL_LOCAL void fl_vocab_layout(fl_vocab *v, fl_arena *arena, size_t n_ids, size_t n_tokens, size_t blob_bytes);
FL_LOCAL void fl_vocab_clear(fl_vocab *v); /* before the first put */

/* Add a token; false if its id or its spelling is taken. */
FL_LOCAL bool fl_vocab_put(fl_vocab *v, uint32_t id, fl_str piece, uint8_t flags);

/* The id of a piece; raw says how it is kept. FL_VOCAB_NONE: there is none. */
FL_LOCAL uint32_t fl_vocab_find(const fl_vocab *v, fl_str piece, bool raw);

/* What a token spelled `token` is kept as: out has room for token.n. Returns whether it is raw. */
FL_LOCAL bool fl_vocab_piece_of(bool byte_level, fl_str token, char *out, size_t *n);

/* How a token is spelled, the opposite: returns the bytes written. out has room for twice its piece. */
FL_LOCAL size_t fl_vocab_spell(const fl_vocab *v, uint32_t id, char *out);

FL_INLINE fl_str fl_vocab_piece(const fl_vocab *v, uint32_t id) {
    fl_str s = {v->blob + v->pieces[id].at, v->pieces[id].n};
    return s;
}

#endif
