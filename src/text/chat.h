/* Chat formats: messages to the text that the checkpoint's own Jinja template makes of them, for the template
 * families that are known here. The template is recognised, never executed. */
#ifndef FL_CHAT_H
#define FL_CHAT_H

#include "text/unicode.h"

typedef enum fl_chat_format {
    FL_CHAT_NONE,    /* no template, or one that is not known */
    FL_CHAT_CHATML,  /* <|im_start|>role ... <|im_end|>, perhaps with a default system message (Qwen2, SmolLM2) */
    FL_CHAT_QWEN3,   /* ChatML, reasoning of earlier turns left out, think block on request */
    FL_CHAT_LLAMA3,  /* <|start_header_id|>role<|end_header_id|> */
    FL_CHAT_MISTRAL  /* [INST] ... [/INST] */
} fl_chat_format;

/* Variants: bits of each format. */
enum { FL_CHATML_BOS = 1 };
enum { FL_QWEN3_OPEN_THINK = 1 };                          /* the prompt ends inside <think> */
enum { FL_LLAMA3_DATES = 1, FL_LLAMA3_ALWAYS_PROMPT = 2 }; /* 3.1 and later; the first release of 3 */
enum {
    FL_MISTRAL_LEAD = 1,           /* " [INST]" */
    FL_MISTRAL_OPEN_SPACE = 2,     /* "[INST] " */
    FL_MISTRAL_CLOSE_SPACE = 4,    /* " [/INST]" */
    FL_MISTRAL_ANSWER_SPACE = 8,   /* " " before an answer */
    FL_MISTRAL_ANSWER_TRIM = 16,
    FL_MISTRAL_EOS_SPACE = 32,     /* EOS and " " after an answer */
    FL_MISTRAL_SYSTEM_FIRST = 64,  /* the system message goes into the first user message */
    FL_MISTRAL_SYSTEM_LAST = 128,  /* into the last message, if that is a user's */
    FL_MISTRAL_SYSTEM_PROMPT = 256 /* has tags of its own and may stand anywhere, as may the others */
};

/* What rendering needs beside the messages; made at load, immutable. */
typedef struct fl_chat_template {
    fl_chat_format format;
    uint32_t variant;       /* bits of the format */
    char bos[64], eos[64];  /* as the template writes them; NUL-terminated */
    char default_system[512]; /* NUL-terminated; "" for none */
} fl_chat_template;

/* Where needle begins in text, at or after from; SIZE_MAX: nowhere. */
FL_LOCAL size_t fl_chat_find(fl_str text, size_t from, fl_str needle);

/* Recognise the template of a directory: chat_template.jinja, else chat_template of tokenizer_config.json (a
 * string, or the entry named "default" of a list). A missing or unknown template is no error: format NONE. */
FL_LOCAL folollm_status fl_chat_open(fl_memory *m, const char *directory, fl_chat_template *out,
                                     folollm_error *error);

/* The same of a template at hand, with the spellings of BOS and EOS that it writes. */
FL_LOCAL folollm_status fl_chat_read(fl_memory *m, fl_str source, fl_str bos, fl_str eos, fl_chat_template *out,
                                     folollm_error *error);

/* Append the template of a directory to *out, as it stands there; nothing if there is none. */
FL_LOCAL folollm_status fl_chat_source(fl_memory *m, const char *directory, fl_text_buffer *out,
                                       folollm_error *error);

FL_LOCAL const char *fl_chat_format_name(fl_chat_format format); /* "chatml", "llama3", "mistral" or "" */

/* As folollm_chat. A date that the caller gives is no more trusted than a message. FOLOLLM_E_ARGUMENT for no
 * messages, unknown roles, and an order of roles that the template refuses. */
FL_LOCAL folollm_status fl_chat_render(const fl_chat_template *c, const folollm_message *messages,
                                       size_t n_messages, const char *date, unsigned flags, char *text,
                                       size_t *n_bytes, folollm_span *trusted, size_t *n_trusted,
                                       folollm_error *error);

#endif
