/* Ops: the contract between the forward pass and a backend.
 *
 * The runner speaks in coarse steps over many rows (a row is one token of one sequence), so that a backend keeps room
 * to fuse, and one forward pass serves one row or a thousand. Matrices are (n_rows, n_cols) row-major as a checkpoint
 * stores them: y = x W^T. Merged ones (QKV, gate and up) are one matrix of several parts.
 *
 * Keys and values live in pages of FL_PAGE_TOKENS tokens, layer by layer and head by head, K and V apart: attention
 * reads one head after the other, and consecutive pages of a sequence are then one stretch of memory, which is read at
 * more than twice the rate of blocks that lie apart.
 *
 *     k: [layer][kv_head][page][token of the page][head_dim]      slot = page * FL_PAGE_TOKENS + token of the page
 *
 * The types of 8 and 4 bits keep a float beside the integers of a row, and the keys of FL_STRIP tokens side by side, so
 * that one vector of sixteen sums holds the scores of sixteen keys and is never added up across. A block is then
 *
 *     k: [strip][quad][token of the strip][4 bytes]  v: [token of the page][4 * n_quads bytes]  both: [token] scales
 *
 * where a row of integers, filled up with zeros to quads of four bytes, is
 *
 *     q8: x_0 x_1 ...    q4: in byte i, x_i in the low and x_(head_dim / 2 + i) in the high half
 *
 * What every entry computes, and in which order it adds, is defined by the scalar kernels. */
#ifndef FL_OPS_H
#define FL_OPS_H

#include "base/memory.h"
#include "formats/dtype.h"

#define FL_LANES 16 /* lanes of every sum */

#ifndef FL_SPLIT_TOKENS
#define FL_SPLIT_TOKENS 256 /* keys after which attention begins a new softmax, at multiples of this: backends may
                               compute these apart, and merge them in order. A multiple of FL_BLOCK_TOKENS */
#endif

typedef struct fl_part {
    const void *data;  /* (n_rows, n_cols) of type, aligned to the type; or packed (packed.h) */
    size_t n_rows;
    fl_dtype type;
    const float *bias; /* (n_rows), or NULL */
    const uint32_t *order; /* (n_cols) of a packed part: which column of the input the i-th is; NULL: the i-th. Equal
                              ones are one */
} fl_part;

#define FL_PARTS_MAX 3

typedef struct fl_matrix {
    size_t n_rows, n_cols; /* n_rows: of all parts */
    uint32_t n_parts;
    fl_part parts[FL_PARTS_MAX];
    size_t low_rank; /* index of its first part in fl_run.low_ranks */
} fl_matrix;

/* What an adapter adds to a part: y += b (a x) (LoRA; Hu et al., 2021). */
typedef struct fl_low_rank {
    uint32_t rank;  /* 0: nothing */
    const float *a; /* (rank, n_cols) padded */
    const float *b; /* (n_rows, rank) padded, the adapter's scale in it */
} fl_low_rank;

/* Consecutive rows of a batch that are consecutive tokens of one sequence. */
typedef struct fl_run {
    size_t first_row, n_rows;
    uint32_t position;     /* of the first row */
    const uint32_t *pages; /* the sequence's page table */
    const fl_low_rank *low_ranks; /* of its adapter, for every part of every layer; NULL: it has none */
} fl_run;

typedef struct fl_batch {
    size_t n_rows;
    const folollm_token *tokens; /* (n_rows) */
    const uint32_t *positions;   /* (n_rows) */
    const uint32_t *slots;       /* (n_rows) where each row's K and V go */
    const fl_run *runs;
    size_t n_runs;
    const uint32_t *wanted; /* (n_wanted) rows whose logits are wanted, ascending */
    size_t n_wanted;
    const struct fl_device_choice *choices; /* (n_wanted) what a backend that chooses is to choose; NULL: nothing */
    struct fl_device_chosen *chosen;        /* (n_wanted) and there is what it chose: such logits stay with it */
} fl_batch;

typedef struct fl_kv {
    folollm_kv_type type;
    uint8_t *k, *v;
    size_t n_layers, n_pages, n_kv_heads, head_dim;
} fl_kv;

#define FL_STRIP (FL_PAGE_TOKENS < FL_LANES ? FL_PAGE_TOKENS : FL_LANES)

/* Integers with a scale? */
FL_INLINE bool fl_kv_is_scaled(folollm_kv_type type) {
    return type == FOLOLLM_KV_Q8 || type == FOLOLLM_KV_Q4;
}

/* Of the numbers of a cache without scales. */
FL_INLINE fl_dtype fl_kv_dtype(folollm_kv_type type) {
    return type == FOLOLLM_KV_F32 ? FL_F32 : type == FOLOLLM_KV_BF16 ? FL_BF16 : FL_F16;
}

/* Bytes of the n numbers of one row. */
FL_INLINE size_t fl_kv_numbers_bytes(folollm_kv_type type, size_t n) {
    if (fl_kv_is_scaled(type)) {
        return 4 * fl_div_up(n, type == FOLOLLM_KV_Q8 ? 4 : 8);
    }
    return n * fl_dtype_bytes(fl_kv_dtype(type));
}

/* Bytes of one row of K, or of V, the scale included. */
FL_INLINE size_t fl_kv_row_bytes(const fl_kv *kv) {
    return fl_kv_numbers_bytes(kv->type, kv->head_dim) + (fl_kv_is_scaled(kv->type) ? sizeof(float) : 0);
}

/* Bytes of the block of a page, for one head of one layer. */
FL_INLINE size_t fl_kv_block_bytes(const fl_kv *kv) {
    return FL_PAGE_TOKENS * fl_kv_row_bytes(kv);
}

/* Bytes from the start of k or v to the block of [layer][kv_head][page]. */
FL_INLINE size_t fl_kv_offset(const fl_kv *kv, size_t layer, size_t kv_head, size_t page) {
    return ((layer * kv->n_kv_heads + kv_head) * kv->n_pages + page) * fl_kv_block_bytes(kv);
}

/* Copy one row of the block at k, or of the one at v (is_v): out of the cache, or with `to_cache` into it. `row`
 * (fl_kv_row_bytes) holds the numbers one after the other, then the scale. */
FL_INLINE void fl_kv_copy_row(const fl_kv *kv, bool is_v, uint8_t *block, size_t token, uint8_t *row, bool to_cache) {
    size_t n = fl_kv_numbers_bytes(kv->type, kv->head_dim), piece = n, stride = 0;
    uint8_t *at = block + token * n;
    if (fl_kv_is_scaled(kv->type)) {
        uint8_t *scale = block + FL_PAGE_TOKENS * n + token * sizeof(float);
        memcpy(to_cache ? scale : row + n, to_cache ? row + n : scale, sizeof(float));
        if (!is_v) {
            piece = 4;
            stride = 4 * FL_STRIP;
            at = block + token / FL_STRIP * FL_STRIP * n + token % FL_STRIP * 4;
        }
    }
    for (size_t i = 0; i < n; i += piece, at += stride) {
        memcpy(to_cache ? at : row + i, to_cache ? row + i : at, piece);
    }
}

typedef struct fl_attention { /* of one layer */
    size_t n_heads, n_kv_heads, head_dim;
    const float *q_norm, *k_norm; /* (head_dim) or NULL */
    float norm_epsilon;
    float scale;     /* of the scores */
    uint32_t window; /* keys a row sees, itself included; 0: all before it */
} fl_attention;

/* The widest shapes that a backend must be ready for. */
typedef struct fl_limits {
    size_t n_rows; /* of a batch */
    size_t dim, qkv_dim, attention_dim, ffn_dim, head_dim, group; /* group: query heads per kv head */
    bool packed; /* are there packed weights? */
    size_t rank; /* of adapters */
    bool ordered; /* with columns in an order of their own? */
} fl_limits;

/* n in whole vectors. */
FL_INLINE size_t fl_lanes(size_t n) {
    return (n + FL_LANES - 1) / FL_LANES * FL_LANES;
}

/* The stride of rows of n floats: an odd number of cache lines, because rows that lie a power of two apart would
 * compete for the same few lines of a cache. */
FL_INLINE size_t fl_padded(size_t n) {
    return ((n + FL_LANES - 1) / FL_LANES | 1) * FL_LANES;
}

typedef struct fl_backend fl_backend;

/* Activations are float; (n_rows, n) means a stride of fl_padded(n) and zeros after the n. n_rows are those of the
 * batch, and x W^T stands for the product and what the adapters of its runs add to it. No entry allocates. */
typedef struct fl_ops {
    /* A batch begins; what all its ops need has been computed where the backend keeps it. True: the backend has started
     * everything itself, as a step that it recorded; of the ops, only end is left to be called. */
    bool (*begin)(fl_backend *b, const fl_batch *batch);
    /* Between the last op and the end of a batch of which everything is chosen here: begin the next one behind it, if
     * that is a step that was recorded. Its tokens below 0 are not known yet: -1 is what is chosen for the first row of
     * logits, and so on. The end of the first batch comes next, then that of this one; instead of which `wait` forgets
     * it. False: nothing was begun. */
    bool (*ahead)(fl_backend *b, const fl_batch *batch);
    /* The last op was called: when this returns, the logits that norm_head was given are there, or what was chosen from
     * them. */
    void (*end)(fl_backend *b, float *logits);
    /* Return when what was started has been done. */
    void (*wait)(fl_backend *b);
    /* x (n_rows, dim) = rows of table */
    void (*embed)(fl_backend *b, const fl_matrix *table, const fl_batch *batch, float *x);
    /* qkv (n_rows, qkv_dim) = RMSNorm(x) W^T + bias */
    void (*norm_qkv)(fl_backend *b, const fl_batch *batch, const float *x, const float *norm, float epsilon,
                     const fl_matrix *w, float *qkv);
    /* In qkv: RMSNorm per head of q and k, then rotation by angles (n_rows, head_dim): cosines, then sines, of each
     * half; k and v into their slots. Rotate-half pairs: (i, i + head_dim / 2). */
    void (*rope_store)(fl_backend *b, const fl_attention *a, const fl_batch *batch, const float *angles, fl_kv *kv,
                       size_t layer, float *qkv);
    /* out (n_rows, n_heads * head_dim): each row against the keys of its sequence up to its own position; only the
     * query heads of the n kv heads from kv_head on */
    void (*attend)(fl_backend *b, const fl_attention *a, const fl_batch *batch, const fl_kv *kv, size_t layer,
                   size_t kv_head, size_t n, const float *qkv, float *out);
    /* x (n_rows, w.n_rows) += in (n_rows, w.n_cols) W^T + bias */
    void (*project_add)(fl_backend *b, const fl_batch *batch, const float *in, const fl_matrix *w, float *x);
    /* h (n_rows, ffn_dim) = silu(g) * u, with [g, u] = RMSNorm(x) W^T + bias */
    void (*norm_gate_up)(fl_backend *b, const fl_batch *batch, const float *x, const float *norm, float epsilon,
                         const fl_matrix *w, float *h);
    /* logits (n_wanted, head.n_rows), not padded = RMSNorm(x of the wanted rows) W^T, without adapters; only the n
     * columns from `first` on, a multiple of 2 * FL_LANES */
    void (*norm_head)(fl_backend *b, const fl_batch *batch, const float *x, const float *norm, float epsilon,
                      const fl_matrix *head, size_t first, size_t n, float *logits);
} fl_ops;

struct fl_backend {
    const fl_ops *ops;
    const char *name; /* of the kernels, as in folollm_info */
    bool chooses;     /* tokens, where their logits are */
};

#endif
