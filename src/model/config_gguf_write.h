/* Hyper-parameters as the metadata of a GGUF file: what config_gguf.h reads. */
#ifndef FL_CONFIG_GGUF_WRITE_H
#define FL_CONFIG_GGUF_WRITE_H

#include "formats/gguf_write.h"
#include "model/config.h"

/* Entries for what was read from a config.json. mistral becomes llama. Numbers are rounded to float32, as they are
 * everywhere in this format. FOLOLLM_E_UNSUPPORTED names what the format has no key for (RoPE scaled by NTK, YaRN that
 * does not round) and what llama.cpp does not load with an architecture. Written all the same, as llama.cpp's converter
 * writes them or has them for other architectures, are keys that llama.cpp passes over for these: sliding windows,
 * and of YaRN the attention factor and both betas. */
FL_LOCAL folollm_status fl_config_put_gguf(const fl_config *c, fl_gguf_out *o, folollm_error *error);

/* Are rows of Q and K there in the order for rotating neighbours? */
FL_LOCAL bool fl_config_turns_in_gguf(const fl_config *c);

#endif
