/* Chat formats: messages to the text that the checkpoint's own Jinja template makes of them, for the template
 * families that are known here. The template is recognised, never executed. */
#ifndef FL_CHAT_H
#define FL_CHAT_H

#include "base/memory.h"

typedef enum fl_chat_format {
    FL_CHAT_NONE,    /* no template, or one that is not known */
    FL_CHAT_CHATML,  /* <|im_start|>role ... <|im_end|>, perhaps with a default system message (Qwen2, SmolLM2) */
    FL_CHAT_QWEN3,   /* ChatML, reasoning of earlier turns left out, think block on request */
    FL_CHAT_LLAMA3,  /* <|start_header_id|>role<|end_header_id|> */
    FL_CHAT_MISTRAL  /* [INST] ... [/INST] */
} fl_chat_format;

/* What rendering needs beside the messages; made at load, immutable. */
typedef struct fl_chat_template {
    fl_chat_format format;
    uint32_t variant;       /* bits of the format: see chat.c */
    char bos[64], eos[64];  /* as the template writes them; NUL-terminated */
    char default_system[512]; /* NUL-terminated; "" for none */
} fl_chat_template;

/* Recognise the template of a directory: chat_template.jinja, else chat_template of tokenizer_config.json (a
 * string, or the entry named "default" of a list). A missing or unknown template is no error: format NONE. */
FL_LOCAL folollm_status fl_chat_open(fl_memory *m, const char *directory, fl_chat_template *out,
                                     folollm_error *error);

FL_LOCAL const char *fl_chat_format_name(fl_chat_format format); /* "chatml", "llama3", "mistral" or "" */

/* As folollm_chat. A date that the caller gives is no more trusted than a message. FOLOLLM_E_ARGUMENT for no
 * messages, unknown roles, and an order of roles that the template refuses. */
FL_LOCAL folollm_status fl_chat_render(const fl_chat_template *c, const folollm_message *messages,
                                       size_t n_messages, const char *date, unsigned flags, char *text,
                                       size_t *n_bytes, folollm_span *trusted, size_t *n_trusted,
                                       folollm_error *error);

#endif
