/* The handle: what a checkpoint gives, shared by all engines over it, and what one engine owns. */
#ifndef FL_ENGINE_H
#define FL_ENGINE_H

#include "engine/driver.h"
#include "engine/snapshot.h"
#include "model/generation.h"
#include "text/tokenizer_gguf.h"

/* Immutable once loaded; freed with its last engine. */
typedef struct fl_checkpoint {
    fl_memory memory;
    size_t engines; /* atomic: references */
    bool tokenizer_only, has_config;
    fl_weights weights;
    fl_upload upload; /* the same on a device, if an engine was loaded for one */
    fl_tokenizer *tokenizer; /* NULL: the directory has none */
    fl_chat_template chat;
    fl_generation generation;
    uint32_t n_holes;
    uint64_t tokenizer_bytes, weights_bytes; /* once loaded */
    uint64_t temporary_bytes;                /* most held beside them on the way there */
} fl_checkpoint;

struct folollm {
    fl_memory memory;
    fl_checkpoint *checkpoint;
    fl_arena arena; /* sequences, sampler, page table */
    fl_worker worker;
    fl_pages pages;
    fl_adapters adapters;
    fl_sequences sequences;
    fl_sampler sampler;
    fl_executor executor;
    fl_driver driver;
    fl_chooser chooser;
    fl_worker_options settings;
    uint32_t max_seqs, max_requests, max_running, max_adapters;
    folollm_memory plan;
};

/* Check what opening is called with; *o NULL becomes the defaults. */
FL_LOCAL folollm_status fl_open_arguments(const char *path, const folollm_options **o, const void *out,
                                          folollm_error *error);
FL_LOCAL uint32_t fl_threads_of(const folollm_options *o);

#endif
