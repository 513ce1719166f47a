/* What folollm.c and folollm_kernels.cu say to each other: plain structures and one exported function, so that neither
 * sees the headers of the other's compiler. folollm.c decides what is computed, on what, and where it lies;
 * folollm_kernels.cu has the kernels and speaks to the CUDA runtime.
 *
 * Every kernel adds in the order of the scalar kernels (kernels.inc), so a device gives the bits of the CPU; but for
 * those with pieces (cuda_tensor.cuh, cuda_flash.cuh), which only give the same bits for any number of rows. Counts of
 * rows lie on the device, where a step that was recorded once finds those of its turn; grids are made for `most`. */
#ifndef FL_DEVICE_H
#define FL_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef FOLOLLM_PREFIX
#define FL_DEVICE_JOIN2(a, b) a##b
#define FL_DEVICE_JOIN(a, b) FL_DEVICE_JOIN2(a, b)
#define folollm_kernels FL_DEVICE_JOIN(FOLOLLM_PREFIX, folollm_kernels)
#endif

#define FL_DEVICE_STEPS 256   /* steps that are recorded, at most */
#define FL_DEVICE_MARKS 2
#define FL_DEVICE_CHUNK 128   /* columns of a plain matrix that lie together: [lane of 16][8 steps] */
#define FL_DEVICE_QUERIES 16  /* query rows of an attention tile, at most */
#define FL_DEVICE_FLASH_QUERIES 64 /* the same on tensor cores */
#define FL_DEVICE_HEAD_DIM 256 /* at most */

/* So many rows, at most, a product makes ready itself, every block of threads anew: a kernel in front of it would take
 * longer. Two, as half a warp sums the squares of a row and one warp does it, and as rows of 4096 floats and their
 * integers take 21 KiB of shared memory each: with two, four blocks still share a multiprocessor that has 228. */
#define FL_DEVICE_FUSED_ROWS 2

enum { /* as fl_dtype numbers them */
    FL_DEVICE_F32,
    FL_DEVICE_F16,
    FL_DEVICE_BF16,
    FL_DEVICE_Q8,
    FL_DEVICE_Q8_ROW,
    FL_DEVICE_Q4,
    FL_DEVICE_Q4_K,
    FL_DEVICE_Q5_K,
    FL_DEVICE_Q6_K,
    FL_DEVICE_Q4_ZERO
};

enum { /* as folollm_kv_type numbers them */
    FL_DEVICE_KV_F16,
    FL_DEVICE_KV_F32,
    FL_DEVICE_KV_BF16,
    FL_DEVICE_KV_Q8,
    FL_DEVICE_KV_Q4
};

enum { /* as folollm_stage numbers them */
    FL_DEVICE_TEMPERATURE = 1,
    FL_DEVICE_MIN_P,
    FL_DEVICE_TOP_K,
    FL_DEVICE_TOP_P
};

typedef struct fl_device fl_device; /* one CUDA device, one stream */

typedef struct fl_device_info {
    char name[64];
    uint64_t total_bytes, free_bytes;
    uint64_t shared_bytes; /* that a block of threads may have */
    int multiplies_bf16;   /* on tensor cores, as the kernels were compiled */
} fl_device_info;

/* Of a batch, on the device. */
typedef struct fl_device_counts {
    uint32_t n_rows, n_wanted, n_tiles, unused;
} fl_device_counts;

/* Rows of a matrix of plain numbers as they lie in a file, to chunks. */
typedef struct fl_device_pack {
    int type;
    const void *from; /* (n_rows, n_cols) */
    void *to;         /* (n_rows, chunks, 16, 8) */
    size_t n_rows;
    uint32_t n_cols;
} fl_device_pack;

/* Rows as integers: a scale for every unit of 32. */
typedef struct fl_device_integers {
    int8_t *q;      /* (rows, units, 32) */
    float *scales;  /* (rows, units) */
    float *minus;   /* (rows, units) -scale times the sum of a unit */
} fl_device_integers;

/* Rows as sums of bf16: the nearest numbers, then the nearest of what is left. */
typedef struct fl_device_pieces {
    uint16_t *piece[2]; /* (rows, chunks, 16, 8) */
} fl_device_pieces;

/* Rows to be made ready for a product: normed, as pieces, as integers, any or none of it. */
typedef struct fl_device_rows {
    const float *x; /* (rows, stride) */
    size_t stride;  /* an odd multiple of sixteen: two rows meet different banks of shared memory */
    const uint32_t *which; /* rows of x, or NULL: all of them */
    const uint32_t *n;     /* on the device */
    uint32_t most, n_cols;
    const float *norm; /* (n_cols), or NULL */
    float epsilon;
    float *normed; /* (rows, stride), or NULL */
    fl_device_integers integers; /* q NULL: none */
    const uint32_t *order;       /* of their columns; NULL: their own */
    uint32_t n_pieces;           /* 0: none */
    fl_device_pieces pieces;     /* those for bf16 weights on tensor cores */
} fl_device_rows;

typedef struct fl_device_part {
    const void *data;
    const float *bias; /* or NULL */
    uint32_t n_rows;
} fl_device_part;

enum { FL_DEVICE_STORE, FL_DEVICE_ADD, FL_DEVICE_GATE_UP }; /* see cpu.c */

/* y = epilogue of x W^T. All parts have one type. Rows that are ready have no norm, and integers for packed types, or
 * pieces for bf16 if n_pieces is not 0, which then meet the weights on tensor cores, unlike on the CPU; up to
 * FL_DEVICE_FUSED_ROWS of them are made ready by what is missing. */
typedef struct fl_device_product {
    int type, epilogue;
    fl_device_part parts[3];
    uint32_t n_parts;
    fl_device_rows rows;
    float *y; /* (rows, y_stride) */
    size_t y_stride;
} fl_device_product;

/* y (rows, n_cols) = y + u, or with FL_DEVICE_GATE_UP silu(y) * u: the epilogues of what was stored apart. */
typedef struct fl_device_combine {
    int epilogue;
    const uint32_t *n;
    uint32_t most, n_cols;
    float *y;
    const float *u;
    size_t stride;
} fl_device_combine;

typedef struct fl_device_low_rank { /* as fl_low_rank */
    uint32_t rank;
    const float *a, *b;
} fl_device_low_rank;

/* y (rows, n_outs) += b (a x), by the adapter of each row. */
typedef struct fl_device_adapt {
    const fl_device_low_rank *const *adapters; /* (rows) those of all matrices, or NULL */
    uint32_t index;                            /* which is this matrix's */
    const uint32_t *n;
    uint32_t most, n_cols, n_outs;
    const float *x; /* (rows, x_stride) */
    size_t x_stride;
    float *narrow; /* (rows, narrow_stride) */
    size_t narrow_stride;
    float *y; /* (rows, y_stride) */
    size_t y_stride;
} fl_device_adapt;

typedef struct fl_device_kv { /* of one layer: ops.h */
    uint8_t *k, *v;
    int type;
    uint32_t page_tokens, n_kv_heads, head_dim;
    size_t n_pages;
} fl_device_kv;

/* Of all positions, as rope.c has them. */
typedef struct fl_device_angles {
    const float *frequencies; /* (half) radians per position */
    uint32_t half, context;
    float scale;   /* of cosines and sines */
    float *angles; /* (context, 2 * half): cosines, then sines */
} fl_device_angles;

/* The heads of a batch's rows, and what becomes of them: those of q and k are normed and turned, k and v stored. */
typedef struct fl_device_heads {
    fl_device_kv kv;
    const fl_device_counts *counts;
    uint32_t most, n_heads;
    const uint32_t *slots;
    const float *q_norm, *k_norm; /* or NULL */
    float epsilon;
    const uint32_t *positions; /* (rows) */
    const float *angles; /* (context, head_dim) of positions: cosines, then sines */
    const float *qkv;    /* (rows, qkv_stride) */
    size_t qkv_stride;
} fl_device_heads;

typedef struct fl_device_rope {
    fl_device_heads heads;
    float *q; /* (rows, qkv_stride) where those of q go: may be qkv */
} fl_device_rope;

/* Consecutive queries of one run: query i is head i % group of row i / group. */
typedef struct fl_device_tile {
    uint32_t first_row, position; /* of the run */
    uint32_t pages;               /* where its page table begins */
    uint32_t first, n;            /* queries */
} fl_device_tile;

typedef struct fl_device_attend {
    fl_device_heads heads;
    uint32_t decodes; /* 1: every tile has all queries of one row, and what becomes of the heads is done here, too; 0:
                         rope_store has done it in qkv */
    uint32_t most_tiles;
    uint32_t queries; /* of a tile, at most; a power of two */
    uint32_t n_pieces; /* 0: the bits of the CPU. Else on tensor cores, queries and weights as so many numbers: only for
                          caches of f16 or bf16 and a head_dim of 64 or 128 */
    uint32_t kv_head, n_kv_heads; /* the first of those that are computed, and how many */
    uint32_t n_splits; /* 1: one block of threads takes all keys of a tile; else each takes a split, and parts are
                          merged in order */
    uint32_t split_tokens, window;
    float scale;
    const fl_device_tile *tiles;
    const uint32_t *pages;
    float *out; /* (rows, out_stride) */
    size_t out_stride;
    float *parts;  /* (rows, n_heads, n_splits, head_dim) */
    float *limits; /* (rows, n_heads, n_splits, 2): maximum and sum */
    uint32_t *done; /* (rows, kv.n_kv_heads) if it decodes in splits: 0, before and after */
} fl_device_attend;

/* How a token is chosen from a row of logits: sampler.h. */
typedef struct fl_device_choice {
    uint32_t asked; /* 0: not by a device */
    uint32_t draws; /* 0: the most likely */
    uint32_t n_stages;
    int32_t stages[4];
    float temperature, top_p;
    uint32_t top_k, ties; /* ties: those that equal the last of the k best stay too */
    double log_min_p;
    double uniform; /* in [0, 1) */
} fl_device_choice;

typedef struct fl_device_chosen {
    uint32_t broken; /* are some logits not finite? */
    int32_t token;   /* -1: all are banned */
    float raw, raw_highest;
    uint64_t raw_total; /* of weights of all logits, relative to the highest */
    float logit, highest; /* as the stages left them, of the token and of all that were left */
    uint64_t total;       /* of the weights of these */
} fl_device_chosen;

typedef struct fl_device_embed {
    int type;
    const void *table; /* packed as its type is */
    uint32_t n_cols, most;
    const fl_device_counts *counts;
    const int32_t *tokens;          /* those below 0 are */
    const fl_device_chosen *chosen; /* what was chosen here last: token -1 is that of the first row, and so on */
    float *x; /* (rows, x_stride) */
    size_t x_stride;
} fl_device_embed;

typedef struct fl_device_choose {
    const fl_device_counts *counts;
    uint32_t most, vocab;
    const float *logits;    /* (n_wanted, vocab) */
    const uint32_t *banned; /* (vocab) bits */
    const fl_device_choice *choices; /* (n_wanted) */
    fl_device_chosen *chosen;        /* the same */
} fl_device_choose;

/* All return 0 or an error of the CUDA runtime. What takes an fl_device is done in its stream, in order; calls return
 * before it is done, unless they say otherwise. */
typedef struct fl_device_api {
    const char *source_hash; /* equal to folollm_source_hash() when both files come from the same sources */
    size_t device_bytes;     /* of an fl_device, zeroed by the caller */
    const char *(*error_text)(int error);
    int (*count)(int *n_devices);

    int (*open)(fl_device *d, int ordinal, void *stream); /* NULL: one of its own */
    void (*close)(fl_device *d); /* allowed after an open that failed */
    int (*about)(fl_device *d, fl_device_info *info);
    size_t (*attend_bytes)(uint32_t queries, uint32_t head_dim); /* of shared memory */
    size_t (*product_bytes)(const fl_device_rows *a); /* of shared memory, at most, where a product makes them ready */

    int (*alloc)(fl_device *d, size_t n_bytes, void **out);
    void (*release)(fl_device *d, void *p);
    int (*alloc_host)(fl_device *d, size_t n_bytes, void **out); /* memory that copies read without waiting */
    void (*release_host)(fl_device *d, void *p);
    int (*upload)(fl_device *d, void *to, const void *from, size_t n_bytes);
    int (*download)(fl_device *d, void *to, const void *from, size_t n_bytes);
    int (*copy)(fl_device *d, void *to, const void *from, size_t pitch, size_t width, size_t height);
    int (*wait)(fl_device *d); /* until all is done; the error of what failed meanwhile */
    int (*mark)(fl_device *d, size_t which);  /* of FL_DEVICE_MARKS: here; */
    int (*reach)(fl_device *d, size_t which); /* as wait, but only for what stands before the mark */

    int (*pack)(fl_device *d, const fl_device_pack *a);
    int (*embed)(fl_device *d, const fl_device_embed *a);
    int (*rows)(fl_device *d, const fl_device_rows *a);
    int (*product)(fl_device *d, const fl_device_product *a);
    int (*combine)(fl_device *d, const fl_device_combine *a);
    int (*adapt)(fl_device *d, const fl_device_adapt *a);
    int (*angles)(fl_device *d, const fl_device_angles *a);
    int (*rope_store)(fl_device *d, const fl_device_rope *a);
    int (*attend)(fl_device *d, const fl_device_attend *a);
    int (*choose)(fl_device *d, const fl_device_choose *a);

    int (*record)(fl_device *d);                /* from here on nothing runs, until */
    int (*recorded)(fl_device *d, size_t step); /* it has become a step (a CUDA graph), which can be */
    int (*replay)(fl_device *d, size_t step);   /* run */
} fl_device_api;

#ifdef __cplusplus
extern "C"
#endif
const fl_device_api *folollm_kernels(void);

#endif
