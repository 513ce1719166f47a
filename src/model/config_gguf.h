/* The hyper-parameters of a GGUF file: from its metadata, and from which tensors it has. */
#ifndef FL_CONFIG_GGUF_H
#define FL_CONFIG_GGUF_H

#include "formats/gguf.h"
#include "model/config.h"

/* Architectures llama (mistral is written so too), qwen2 and qwen3. FOLOLLM_E_UNSUPPORTED names what is not computed
 * here. */
FL_LOCAL folollm_status fl_config_of_gguf(fl_config *c, const fl_gguf *g, const fl_tensors *t,
                                          folollm_error *error);

#endif
