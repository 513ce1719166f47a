/* Snapshots: a sequence as bytes, and back. They go through functions of the host in pieces, so that nobody needs to
 * hold them whole. A snapshot may come from anywhere: nothing of it is visible before all of it was checked.
 *
 *     header (FL_SNAPSHOT_HEADER bytes): magic, version, what it fits, lengths; per section its length and checksum;
 *                                        the checksum of all this
 *     tokens    (n_tokens) u32
 *     sampling  field by field
 *     logits    (vocab) float, if the sequence has any
 *     KV        [layer][K, V][kv_head][token] rows as the cache holds them, independent of pages
 *
 * The checksums stand in front, so that a reader knows from the header alone what is to come; a writer goes through the
 * sequence twice. Everything is little-endian. The text stream is not in it: it follows from the tokens. */
#ifndef FL_SNAPSHOT_H
#define FL_SNAPSHOT_H

#include "engine/adapters.h"
#include "engine/sequences.h"
#include "engine/worker.h"
#include "model/generation.h"

enum { FL_SECTION_TOKENS, FL_SECTION_SAMPLING, FL_SECTION_LOGITS, FL_SECTION_KV, FL_SECTIONS };

/* magic, version, KV type, fingerprint of the model, layers, kv heads, head_dim, vocab, tokens, prompt; sections;
 * fingerprint of the adapter, 0: none; checksum */
#define FL_SNAPSHOT_HEADER (8 + 4 + 4 + 8 + 6 * 4 + FL_SECTIONS * 16 + 8 + 8)

/* 0, or non-zero for a failure; see folollm_seq_save_to and folollm_seq_restore_from. */
typedef int fl_snapshot_write_hook(void *user, const void *bytes, size_t n);
typedef int fl_snapshot_read_hook(void *user, void *bytes, size_t n);

#define FL_SOURCE_ENDLESS UINT64_MAX

typedef struct fl_source {
    fl_snapshot_read_hook *read;
    void *user;
    uint64_t n_bytes; /* a snapshot and nothing else has so many; FL_SOURCE_ENDLESS: not known */
} fl_source;

typedef struct fl_snapshot { /* what the header says, checked */
    uint32_t n_tokens, n_prompt;
    const fl_adapter *adapter;
    uint64_t lengths[FL_SECTIONS], checksums[FL_SECTIONS];
} fl_snapshot;

FL_LOCAL size_t fl_snapshot_bytes(const fl_sequence *s, const fl_worker *w, const fl_generation *generation);

/* False: a write failed, or the worker. */
FL_LOCAL bool fl_snapshot_write(const fl_sequence *s, fl_worker *w, const fl_pages *pages,
                                const fl_generation *generation, fl_snapshot_write_hook *write, void *user);

/* Read the header. adapters: among which the sequence's own is looked for. */
FL_LOCAL folollm_status fl_snapshot_open(fl_snapshot *snapshot, const fl_worker *w, const fl_adapters *adapters,
                                         const fl_source *source, folollm_error *error);

/* Read the rest and check it. s NULL: no more than that. Else an empty slot that is not open, with pages reserved for
 * all tokens: they and its logits are filled on the way; what else it is changes only on success. */
FL_LOCAL folollm_status fl_snapshot_read(const fl_snapshot *snapshot, const fl_source *source,
                                         const fl_generation *generation, fl_worker *w, fl_sequence *s,
                                         fl_pages *pages, folollm_error *error);

#endif
