/* The weights of a model on a device: the same roles, and pointers that only its kernels can follow. Immutable, and
 * shared by all engines on that device. */
#ifndef FL_UPLOAD_H
#define FL_UPLOAD_H

#include "model/weights.h"
#include "ops/cuda.h"

typedef struct fl_upload {
    fl_cuda cuda;       /* device NULL: there are none */
    fl_arena arena;     /* on the device */
    fl_weights weights; /* config, and what has a place there */
    size_t layers_bytes;
} fl_upload;

/* Bytes of the host that they take. */
FL_LOCAL size_t fl_upload_host_bytes(const fl_weights *w);

/* Count what they take on a device: u->arena, dry. */
FL_LOCAL void fl_upload_layout(fl_upload *u, const fl_weights *w);

/* After a dry layout: open the device, take its memory, and copy. On failure fl_upload_close gives everything back. */
FL_LOCAL folollm_status fl_upload_open(fl_memory *m, fl_upload *u, const fl_weights *w, uint32_t ordinal,
                                       folollm_error *error);
FL_LOCAL void fl_upload_close(fl_memory *m, fl_upload *u);

#endif
