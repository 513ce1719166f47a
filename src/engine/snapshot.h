/* Snapshots: a sequence as bytes, and back. A snapshot may come from anywhere: all of it is checked before anything is
 * taken.
 *
 *     header (FL_SNAPSHOT_HEADER bytes): magic, version, what it fits, lengths; per section its length and checksum;
 *                                        the checksum of all this
 *     tokens    (n_tokens) u32
 *     sampling  field by field
 *     logits    (vocab) float, if the sequence has any
 *     KV        [layer][K, V][kv_head][token] rows as the cache holds them, independent of pages
 *
 * Everything is little-endian. The text stream is not in it: it follows from the tokens. */
#ifndef FL_SNAPSHOT_H
#define FL_SNAPSHOT_H

#include "engine/sequences.h"
#include "engine/worker.h"
#include "model/generation.h"

typedef struct fl_snapshot {
    uint32_t n_tokens, n_prompt;
    fl_sampling sampling;
    const uint8_t *tokens, *logits, *kv; /* within the bytes; logits NULL: none */
} fl_snapshot;

FL_LOCAL size_t fl_snapshot_bytes(const fl_sequence *s, const fl_worker *w, const fl_generation *generation);

/* to: room for fl_snapshot_bytes. */
FL_LOCAL void fl_snapshot_write(const fl_sequence *s, fl_worker *w, const fl_pages *pages,
                                const fl_generation *generation, uint8_t *to);

FL_LOCAL folollm_status fl_snapshot_check(fl_snapshot *snapshot, const fl_worker *w, const fl_generation *generation,
                                          const uint8_t *bytes, size_t n_bytes, folollm_error *error);

/* Fill a sequence that was just opened; there are pages for it. */
FL_LOCAL void fl_snapshot_read(const fl_snapshot *snapshot, fl_sequence *s, fl_worker *w, fl_pages *pages);

#endif
