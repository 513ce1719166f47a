/* What generation_config.json and config.json, or the metadata of a GGUF file, say about stopping and sampling. */
#ifndef FL_GENERATION_H
#define FL_GENERATION_H

#include "formats/gguf_write.h"
#include "text/tokenizer.h"

#define FL_EOS_MAX 32

typedef struct fl_generation {
    folollm_token eos[FL_EOS_MAX]; /* (n_eos) every id that ends a text */
    size_t n_eos;
    folollm_sampling sampling;     /* of the checkpoint; greedy unless it says do_sample */
} fl_generation;

FL_LOCAL folollm_status fl_generation_read(fl_memory *m, fl_generation *g, const char *directory,
                                           folollm_error *error);

/* The same of a GGUF file, which says nothing about sampling and names one or two of the ids that end a text. The
 * others are found by how they are spelled, as llama.cpp does, if its tokenizer t is not NULL. */
FL_LOCAL folollm_status fl_generation_of_gguf(fl_generation *generation, const fl_gguf *g, const fl_tokenizer *t,
                                              folollm_error *error);

/* The ids that end a text as entries of a GGUF file, so that the same ones are read from it, and those that are found
 * by their spelling; sampling is lost. t NULL: there is no tokenizer. */
FL_LOCAL folollm_status fl_generation_put_gguf(const fl_generation *generation, const fl_tokenizer *t, fl_gguf_out *o,
                                               folollm_error *error);

/* Add an id that ends a text; -1 and repetitions are passed over. */
FL_LOCAL void fl_generation_add_eos(fl_generation *g, folollm_token id);

#endif
