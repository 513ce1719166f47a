/* Writing a checkpoint: as packed safetensors, or as GGUF. */
#include "api/engine.h"

#include "base/utf8.h"
#include "model/config_gguf_write.h"
#include "text/tokenizer_gguf_write.h"

typedef struct fl_quantize {
    fl_memory *memory;
    const char *path;
    const folollm_options *options;
    folollm_error *error;
    const fl_gguf *source; /* NULL: a directory */
    fl_weights *weights;
    fl_tokenizer *tokenizer; /* of a directory; NULL: it has none */
    fl_generation generation;
    fl_text_buffer chat;
    fl_gguf_out *out;
} fl_quantize;

/* ---- The head of a GGUF file -- */

/* The last part of the path, as far as a name goes. */
static fl_str fl_quantize_name(const char *path) {
    fl_str name = fl_str_of(path);
    while (name.n > 0 && (name.at[name.n - 1] == '/' || name.at[name.n - 1] == '\\')) {
        name.n--;
    }
    for (size_t i = name.n; i > 0; i--) {
        if (name.at[i - 1] == '/' || name.at[i - 1] == '\\') {
            name.at += i;
            name.n -= i;
            break;
        }
    }
    name.n = fl_utf8_valid_prefix(name.at, name.n);
    return name;
}

/* What llama.cpp calls a file whose matrices are mostly of one type; without this it counts them. */
static folollm_status fl_quantize_put_file_type(const fl_quantize *q) {
    static const struct {
        folollm_weights asked;
        fl_dtype stored;
        uint32_t number;
    } files[] = {{FOLOLLM_WEIGHTS_F32, FL_F32, 0},    {FOLOLLM_WEIGHTS_F16, FL_F16, 1},
                 {FOLOLLM_WEIGHTS_BF16, FL_BF16, 32}, {FOLOLLM_WEIGHTS_Q8, FL_Q8_0, 7},
                 {FOLOLLM_WEIGHTS_Q4, FL_Q4_0, 2},    {FOLOLLM_WEIGHTS_Q4_K, FL_Q4_K, 14},
                 {FOLOLLM_WEIGHTS_Q5_K, FL_Q5_K, 16}, {FOLOLLM_WEIGHTS_Q6_K, FL_Q6_K, 18}};
    folollm_weights asked = q->options->weights;
    fl_dtype stored = fl_weights_type(q->weights);
    for (size_t i = 0; i < FL_COUNT(files); i++) {
        if (asked != FOLOLLM_WEIGHTS_AS_STORED ? files[i].asked == asked : files[i].stored == stored) {
            return fl_gguf_out_u32(q->out, "general.file_type", files[i].number);
        }
    }
    return FOLOLLM_OK;
}

/* Are the types of a GGUF file kept? */
static bool fl_quantize_keeps_types(const fl_quantize *q) {
    return q->source != NULL && q->options->weights == FOLOLLM_WEIGHTS_AS_STORED;
}

static folollm_status fl_quantize_put_general(const fl_quantize *q) {
    if (!fl_quantize_keeps_types(q)) {
        FL_TRY(fl_quantize_put_file_type(q));
    }
    FL_TRY(fl_gguf_out_u32(q->out, "general.quantization_version", 2));
    return fl_gguf_out_u32(q->out, "general.alignment", 32);
}

static folollm_status fl_quantize_copy_entries(const fl_quantize *q) {
    static const char *const own[] = {"general.quantization_version", "general.alignment", "split.no", "split.count",
                                      "split.tensors.count"};
    for (size_t i = 0; i < q->source->n_entries; i++) {
        fl_str key = q->source->entries[i].key;
        bool drop = fl_str_is(key, "general.file_type") && !fl_quantize_keeps_types(q);
        for (size_t k = 0; k < FL_COUNT(own); k++) {
            drop = drop || fl_str_is(key, own[k]);
        }
        if (!drop) {
            FL_TRY(fl_gguf_out_entry(q->out, q->source, i));
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quantize_put_entries(const fl_quantize *q) {
    FL_TRY(fl_config_put_gguf(&q->weights->config, q->out, q->error));
    FL_TRY(fl_gguf_out_string(q->out, "general.type", fl_str_of("model")));
    FL_TRY(fl_gguf_out_string(q->out, "general.name", fl_quantize_name(q->path)));
    FL_TRY(fl_tokenizer_put_gguf(q->tokenizer, q->weights->config.vocab, q->out, q->error));
    FL_TRY(fl_generation_put_gguf(&q->generation, q->tokenizer, q->out, q->error));
    return q->chat.n > 0 ? fl_gguf_out_string(q->out, "tokenizer.chat_template", fl_text_of(&q->chat)) : FOLOLLM_OK;
}

static folollm_status fl_quantize_put_head(const fl_quantize *q) {
    FL_TRY(q->source != NULL ? fl_quantize_copy_entries(q) : fl_quantize_put_entries(q));
    FL_TRY(fl_quantize_put_general(q));
    return fl_weights_announce_gguf(q->weights, q->out, q->error);
}

/* Once to count, once to write. */
static folollm_status fl_quantize_write_head(const fl_quantize *q) {
    FL_TRY(fl_quantize_put_head(q));
    FL_TRY(fl_gguf_out_begin(q->out));
    return fl_quantize_put_head(q);
}

/* ---- What the head is made of -- */

static folollm_status fl_quantize_read_tokenizer(fl_quantize *q) {
    uint64_t bytes;
    fl_file file;
    bool found;
    FL_TRY(fl_file_open(q->memory, &file, q->path, "tokenizer.json", &found, q->error));
    if (!found) {
        return FOLOLLM_OK;
    }
    fl_file_close(&file);
    FL_TRY(fl_tokenizer_open(q->memory, q->path, &q->tokenizer, &bytes, q->error));
    uint32_t n_ids = fl_tokenizer_n_ids(q->tokenizer), vocab = q->weights->config.vocab;
    if (n_ids > vocab) {
        return fl_fail(q->error, FOLOLLM_E_FORMAT, "%s: tokenizer.json has ids up to %u, but the embedding has %u rows",
                       q->path, (uint64_t)n_ids - 1, (uint64_t)vocab);
    }
    FL_TRY(fl_chat_source(q->memory, q->path, &q->chat, q->error));
    size_t valid = fl_utf8_valid_prefix(q->chat.at, q->chat.n);
    return valid == q->chat.n ? FOLOLLM_OK
                              : fl_fail(q->error, FOLOLLM_E_FORMAT, "%s: the chat template is not UTF-8 at byte %u",
                                        q->path, (uint64_t)valid);
}

static folollm_status fl_quantize_head(fl_quantize *q) {
    folollm_status status = FOLOLLM_OK;
    q->chat.memory = q->memory;
    if (q->source == NULL) {
        status = fl_generation_read(q->memory, &q->generation, q->path, q->error);
        status = status == FOLOLLM_OK ? fl_quantize_read_tokenizer(q) : status;
    }
    if (status == FOLOLLM_OK) {
        status = fl_quantize_write_head(q);
    }
    fl_tokenizer_close(q->memory, q->tokenizer);
    fl_text_free(&q->chat);
    return status;
}

/* ---- Both ways -- */

static folollm_status fl_quantize_to_gguf(fl_quantize *q, fl_gguf_out *out) {
    q->out = out;
    FL_TRY(fl_gguf_out_open(out));
    folollm_status status = fl_quantize_head(q);
    if (status == FOLOLLM_OK) {
        status = fl_weights_write_gguf(q->weights, fl_threads_of(q->options), out, q->error);
    }
    if (status == FOLOLLM_OK) {
        status = fl_gguf_out_finish(out);
    }
    fl_gguf_out_close(out);
    return status;
}

static folollm_status fl_quantize_to_safetensors(const fl_quantize *q, fl_tensors_out *out) {
    folollm_status status = fl_weights_write(q->memory, q->weights, fl_threads_of(q->options), out, q->error);
    fl_tensors_out_close(out);
    return status;
}

static folollm_status fl_quantize_check(const char *path, const folollm_options *o, bool is_gguf,
                                        folollm_error *error) {
    if (is_gguf && o->gguf == 0) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "%s is a GGUF file; it becomes another one (options.gguf), not a directory", path);
    }
    if (o->gguf != 0 && o->weights == FOLOLLM_WEIGHTS_Q8_ROW) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED, "q8_row is no type of GGUF");
    }
    return FOLOLLM_OK;
}

static folollm_status fl_quantize_from(fl_memory *m, const char *path, const folollm_options *o, const fl_gguf *source,
                                       int (*write)(void *user, const void *bytes, size_t n_bytes), void *user,
                                       folollm_error *error) {
    fl_weights weights;
    fl_quantize q = {.memory = m, .path = path, .options = o, .error = error, .source = source, .weights = &weights};
    fl_gguf_out gguf = {.memory = m, .write = write, .user = user, .error = error};
    fl_tensors_out tensors = {.memory = m, .write = write, .user = user};
    folollm_options read = *o;
    read.copy_weights = 1;
    FL_TRY(fl_weights_open(m, &weights, path, source, &read, error));
    folollm_status status = o->gguf != 0 ? fl_quantize_to_gguf(&q, &gguf) : fl_quantize_to_safetensors(&q, &tensors);
    fl_weights_close(m, &weights);
    return status;
}

FOLOLLM_API folollm_status folollm_quantize(const char *path, const folollm_options *options,
                                            int (*write)(void *user, const void *bytes, size_t n_bytes), void *user,
                                            folollm_error *error) {
    fl_memory memory;
    fl_gguf source;
    bool is_gguf;
    FL_TRY(fl_open_arguments(path, &options, (const void *)path, error));
    if (write == NULL) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "folollm_quantize needs somewhere to write to");
    }
    fl_memory_init(&memory, options->host);
    FL_TRY(fl_gguf_is_at(&memory, path, &is_gguf, error));
    FL_TRY(fl_quantize_check(path, options, is_gguf, error));
    if (!is_gguf) {
        return fl_quantize_from(&memory, path, options, NULL, write, user, error);
    }
    FL_TRY(fl_gguf_open(&memory, &source, path, error));
    folollm_status status = fl_quantize_from(&memory, path, options, &source, write, user, error);
    fl_gguf_close(&source);
    return status;
}
