/* The CUDA backend: ops.h over the kernels of folollm_kernels.cu (device.h). It gives the bits of the CPU backend,
 * unless fl_cuda_options.n_pieces says otherwise.
 *
 * An op only starts its kernels: they run one after the other in the device's stream, and fl_ops.end waits. A failure
 * is kept until fl_cuda_status asks for it, and makes everything until then do nothing. Steps that only decode are
 * recorded as CUDA graphs when the backend is opened, one for each number of rows and of splits of the attention,
 * rounded up, and then take one launch; those with adapters when the first of them comes. Nothing else is allocated
 * after opening. */
#ifndef FL_CUDA_H
#define FL_CUDA_H

#include "ops/device.h"
#include "ops/packed.h"

typedef struct fl_cuda { /* an open device */
    const fl_device_api *api;
    fl_device *device; /* api->device_bytes */
    fl_device_info info;
    uint32_t ordinal;
    int error;  /* of the runtime; 0: none since fl_cuda_status */
    bool lost;  /* nothing works on this device any more */
} fl_cuda;

/* stream: of the host, or NULL. FOLOLLM_E_UNSUPPORTED: built without FOLOLLM_CUDA, or of two versions.
 * FOLOLLM_E_DEVICE: there is no such device, or it fails. */
FL_LOCAL folollm_status fl_cuda_open(fl_memory *m, fl_cuda *c, uint32_t ordinal, void *stream, folollm_error *error);
FL_LOCAL void fl_cuda_close(fl_memory *m, fl_cuda *c);

/* Bytes of the host that an open device takes; 0: this build has none. */
FL_LOCAL size_t fl_cuda_host_bytes(void);
FL_LOCAL folollm_status fl_no_cuda(folollm_error *error);

/* Return when what was started has been done. What fails is kept for fl_cuda_status. */
FL_LOCAL void fl_cuda_wait(fl_cuda *c);

/* What failed since the last time, as far as it was waited for; it can be tried again unless the device is lost. */
FL_LOCAL folollm_status fl_cuda_status(fl_cuda *c, folollm_error *error);

/* To the device, before what is started next; between the host and the device, which has done it when they return; and
 * within it, `height` pieces of `width` bytes that lie `pitch` apart. What fails is kept for fl_cuda_status. */
FL_LOCAL void fl_cuda_upload(fl_cuda *c, void *to, const void *from, size_t n_bytes);
FL_LOCAL void fl_cuda_read(fl_cuda *c, void *to, const void *from, size_t n_bytes);
FL_LOCAL void fl_cuda_write(fl_cuda *c, void *to, const void *from, size_t n_bytes);
FL_LOCAL void fl_cuda_copy(fl_cuda *c, void *to, const void *from, size_t pitch, size_t width, size_t height);

/* As fl_arena_open and fl_arena_close, on the device: what is taken is for its kernels and must not be touched here. */
FL_LOCAL folollm_status fl_cuda_arena_open(fl_cuda *c, fl_arena *a, const char *what, folollm_error *error);
FL_LOCAL void fl_cuda_arena_close(fl_cuda *c, fl_arena *a);

/* Bytes of a matrix, or of a part of it, on the device: plain ones come in chunks of columns. Saturates. */
FL_LOCAL size_t fl_cuda_matrix_bytes(fl_dtype type, size_t n_rows, size_t n_cols);

/* Rows of a part of a matrix to the device; piece: room there of FL_CUDA_PIECE bytes. Fails as fl_cuda_status. */
#define FL_CUDA_PIECE ((size_t)32 << 20)
FL_LOCAL void fl_cuda_upload_part(fl_cuda *c, const fl_part *part, size_t n_cols, void *piece, void *to);

/* The low ranks of an adapter, n of them, and all that they point to lie in an arena of the host. That is copied;
 * theirs become pointers on the device, and *bound is what is to stand in an fl_run. fl_cuda_release gives it back. */
FL_LOCAL folollm_status fl_cuda_upload_low_ranks(fl_cuda *c, const fl_arena *arena, fl_low_rank *low_ranks, size_t n,
                                                 const fl_low_rank **bound, folollm_error *error);
FL_LOCAL void fl_cuda_release(fl_cuda *c, const void *bound);

typedef struct fl_cuda_options {
    fl_limits limits;
    size_t vocab, context, n_heads;
    size_t n_wanted; /* rows of logits of a batch, at most */
    size_t n_kept;   /* places for rows of logits */
    uint32_t n_pieces; /* of floats that meet bf16 weights, or keys and values; 0: they give the bits of the CPU */
    folollm_kv_type kv;
} fl_cuda_options;

/* What a batch is on the device: the same offsets from both ends of the copy. */
typedef struct fl_cuda_shape {
    size_t rows, tiles; /* at most; the device has the numbers of the batch at hand */
    uint32_t queries, n_splits;
    fl_device_counts *counts;
    folollm_token *tokens;
    uint32_t *positions, *slots, *wanted, *pages;
    const fl_low_rank **adapters;
    fl_device_choice *choices;
    fl_device_tile *tile;
    uint32_t *done; /* (rows that are split, n_kv_heads) 0: see device.h */
} fl_cuda_shape;

/* A batch between its begin and its end. There are two, as one may begin behind another. */
typedef struct fl_cuda_turn {
    uint8_t *staging;          /* page-locked: what it is copied from, */
    fl_device_chosen *brought; /* (n_wanted) and where what was chosen comes to */
    size_t n_wanted;           /* rows of logits to bring back, */
    const fl_device_choice *choices; /* or what was chosen from them: of the batch */
    fl_device_chosen *chosen;
    bool marked; /* everything was chosen, and is on its way: until the mark of this turn */
} fl_cuda_turn;

typedef struct fl_cuda_backend {
    fl_backend base; /* first: an fl_backend * points here */
    fl_cuda *cuda;   /* not owned */
    fl_cuda_options o;
    float *normed, *apart, *logits; /* (n_rows, dim), (n_rows, dim or ffn_dim), (n_wanted, vocab) */
    float *kept;   /* (n_kept, vocab) */
    float *narrow; /* (n_rows, rank) rows times the a of their adapters */
    fl_device_integers integers[FL_PARTS_MAX]; /* one for each order of columns */
    fl_device_pieces pieces;
    float *parts, *part_limits;  /* of attention: see device.h */
    uint8_t *staged;             /* the batch on the device */
    size_t staging_bytes;
    void *host_memory;           /* page-locked: that of the turns */
    fl_cuda_turn turns[FL_DEVICE_MARKS];
    size_t turn;                 /* whose end comes next */
    bool ahead;                  /* the other one has begun behind it */
    fl_device_chosen *chosen;    /* (n_wanted) on the device */
    float *angles;               /* (context, head_dim) on the device */
    fl_cuda_shape shape;         /* on the device */
    uint32_t most_queries;       /* of an attention tile: as many as fit the device's shared memory */
    size_t n_steps[2];           /* recorded: without adapters, and with them */
    uint32_t *banned;            /* (vocab) bits */
    bool adapts;                 /* have some rows adapters? */
} fl_cuda_backend;

/* Lay out memory of the device for batches up to the limits (dry, then real). */
FL_LOCAL void fl_cuda_layout(fl_cuda_backend *b, fl_arena *arena, const fl_cuda_options *o);

/* After the real layout; on failure, too, fl_cuda_stop gives back what it takes. */
FL_LOCAL folollm_status fl_cuda_start(fl_cuda_backend *b, fl_cuda *cuda, folollm_error *error);
FL_LOCAL void fl_cuda_stop(fl_cuda_backend *b);

/* These ids (n), in order, are never chosen. */
FL_LOCAL void fl_cuda_ban(fl_cuda_backend *b, const folollm_token *ids, size_t n);

/* Keep n rows, from row i on, of the logits of the last batch at places from `place` on, and bring what is kept at one.
 * What fails is kept for fl_cuda_status. */
FL_LOCAL void fl_cuda_keep(fl_cuda_backend *b, size_t i, size_t n, size_t place);
FL_LOCAL void fl_cuda_kept(fl_cuda_backend *b, size_t place, float *logits);

/* After fl_cuda_start, before the first batch: compute the angles of all positions, which are then not asked of
 * batches. frequencies (head_dim / 2), scale: see rope.h. What fails is kept for fl_cuda_status. */
FL_LOCAL void fl_cuda_angles(fl_cuda_backend *b, const float *frequencies, float scale);

/* Recording steps, in which some rows have adapters or none has: until false, there is another one. Between begin and
 * end its ops are to be called for *batch, whose arrays stand for those of any batch. What fails is kept for
 * fl_cuda_status; then the next begin goes on with the same step. */
FL_LOCAL bool fl_cuda_record_begin(fl_cuda_backend *b, bool adapts, fl_batch *batch);
FL_LOCAL void fl_cuda_record_end(fl_cuda_backend *b, bool adapts);

#endif
