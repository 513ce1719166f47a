/* folollm: an LLM inference engine that a program contains.
 *
 *     folollm *llm;
 *     folollm_error error;
 *     if (folollm_load("models/qwen3-0.6b", NULL, &llm, &error) != FOLOLLM_OK) puts(error.text);
 *
 * Copy folollm.h and folollm.c into a program and build: cc app.c folollm.c -lutf8proc -lm -lpthread
 * folollm.c may also be included into another C file, before any system header if that is compiled with -std=c99.
 * For NVIDIA GPUs: nvcc -c folollm_kernels.cu, compile folollm.c with -DFOLOLLM_CUDA, link both and -lcudart.
 * What is not in this file is not API. The comments here are the reference manual.
 *
 * The contract:
 *   - No call ends the process, prints, reads the environment or the clock, or touches a global.
 *   - Every fallible call returns a folollm_status. On failure its outputs are untouched and the handle
 *     stays usable, unless the entry says otherwise.
 *   - A folollm handle serves one thread at a time; only folollm_cancel may be called from any other. Handles made by
 *     folollm_share read the same weights and may run in other threads at the same time.
 *   - The logits of a sequence are the same bits whatever runs beside it in a batch, however its prompt was cut into
 *     calls and chunks or found in the prefix cache, preempted, saved and restored or not, for any number of threads,
 *     on the CPU and, unless options.device_floats allows others, on CUDA devices.
 *   - A step is a transaction: when prefill or decode_step fails, every sequence is as it was before.
 *   - A step is bounded: folollm_step stops at its budget of tokens or microseconds and goes on in the next call.
 *   - A step allocates nothing: all memory is taken at load, as much as folollm_plan said.
 *   - Options structures are zeroed for the defaults, which stand beside each field.
 *   - Text is UTF-8 with a length; it may hold NUL bytes. Bytes that are not UTF-8 are an error.
 */
#ifndef FOLOLLM_H
#define FOLOLLM_H

#include <stddef.h>
#include <stdint.h>

#define FOLOLLM_VERSION "0.1.0"
#define FOLOLLM_VERSION_NUMBER 100 /* major * 10000 + minor * 100 + patch */

/* FOLOLLM_PREFIX renames every exported function, so that two copies link into one program:
 * -DFOLOLLM_PREFIX=game_ exports game_folollm_load and so on, and this header calls them so. */
#ifdef FOLOLLM_PREFIX
#define FOLOLLM_JOIN2(a, b) a##b
#define FOLOLLM_JOIN(a, b) FOLOLLM_JOIN2(a, b)
#define folollm_version FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_version)
#define folollm_source_hash FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_source_hash)
#define folollm_status_text FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_status_text)
#define folollm_plan FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_plan)
#define folollm_load FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_load)
#define folollm_quantize FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_quantize)
#define folollm_share FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_share)
#define folollm_get_info FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_get_info)
#define folollm_free FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_free)
#define folollm_tokenize FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_tokenize)
#define folollm_detokenize FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_detokenize)
#define folollm_chat FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_chat)
#define folollm_default_sampling FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_default_sampling)
#define folollm_adapter_load FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_adapter_load)
#define folollm_adapter_free FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_adapter_free)
#define folollm_seq_open FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_open)
#define folollm_seq_set_adapter FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_set_adapter)
#define folollm_seq_fork FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_fork)
#define folollm_seq_truncate FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_truncate)
#define folollm_seq_tokens FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_tokens)
#define folollm_seq_save FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_save)
#define folollm_seq_restore FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_restore)
#define folollm_seq_save_to FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_save_to)
#define folollm_seq_restore_from FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_restore_from)
#define folollm_seq_close FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_seq_close)
#define folollm_prefill FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_prefill)
#define folollm_decode_step FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_decode_step)
#define folollm_logits FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_logits)
#define folollm_sample FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_sample)
#define folollm_submit FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_submit)
#define folollm_step FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_step)
#define folollm_cancel FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_cancel)
#define folollm_get_stats FOLOLLM_JOIN(FOLOLLM_PREFIX, folollm_get_stats)
#endif

#ifndef FOLOLLM_API
#define FOLOLLM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Types --------------------------------------------------------------------------------------- */

typedef struct folollm folollm; /* an engine over one model */
typedef int32_t folollm_token;  /* an index into the vocabulary */
typedef uint32_t folollm_seq;   /* a sequence: slot and generation, so a stale one is an error; 0 is none */
typedef uint32_t folollm_adapter; /* a LoRA adapter of an engine, the same; 0 is none */

/* Pinned numbers: new ones are added, none changes. */
typedef enum folollm_status {
    FOLOLLM_OK = 0,
    FOLOLLM_E_ARGUMENT = -1,    /* the call contradicts this header */
    FOLOLLM_E_MEMORY = -2,      /* the host's allocator refused */
    FOLOLLM_E_IO = -3,          /* a file could not be opened, sized, read or mapped; or a stream of the host failed */
    FOLOLLM_E_FORMAT = -4,      /* a file is damaged or contradicts itself */
    FOLOLLM_E_UNSUPPORTED = -5, /* well-formed, but nothing here computes it */
    FOLOLLM_E_SEQUENCE = -6,    /* a closed, stale or never opened sequence */
    FOLOLLM_E_CONTEXT = -7,     /* more tokens than the context holds */
    FOLOLLM_E_POOL = -8,        /* no free page of KV cache, or no free sequence slot */
    FOLOLLM_E_NUMERIC = -9,     /* logits that are not finite: the step was undone */
    FOLOLLM_E_BUFFER = -10,     /* the caller's buffer is too small; the needed length was written */
    FOLOLLM_E_ENCODING = -11,   /* text that is not UTF-8 */
    FOLOLLM_E_STATE = -12,      /* not now: no logits yet, no weights loaded, a sequence that folollm_step drives */
    FOLOLLM_E_CANCELLED = -13,  /* folollm_cancel, or the host's progress hook, said stop */
    FOLOLLM_E_DEVICE = -14      /* the device is not there, or failed: the step was undone. If it is lost, as error.text
                                   then says, every later step fails so, and engines on the CPU go on */
} folollm_status;

/* What went wrong, for a person: what was being read, where, what was expected, what was found. Caller-owned;
 * every parameter of this type may be NULL. Written only on failure. */
typedef struct folollm_error {
    folollm_status status;
    char text[256]; /* NUL-terminated */
} folollm_error;

/* The host's own memory, files, threads, log. Every hook may be NULL and then has the default named beside it.
 * `user` is handed to each. Hooks are called from the thread that called folollm, save `task` bodies run by
 * parallel_for. The structure is copied at load; what `user` points to must outlive every handle. */
typedef struct folollm_host {
    void *user;
    /* Allocate (ptr NULL), resize or free (new_size 0) a block; old_size is what was asked for before. Returns
     * memory aligned for any C object, or NULL when there is none. Default: realloc and free of the C library. */
    void *(*realloc)(void *user, void *ptr, size_t old_size, size_t new_size);
    /* Run task(context, i) for every i in [0, n), in any order and on any threads, and return when all are done.
     * Default: a pool of n_threads - 1 threads of our own. */
    void (*parallel_for)(void *user, size_t n, void (*task)(void *context, size_t i), void *context);
    /* Files. If file_open is set, all of file_open, file_size, file_read and file_close must be, and no path
     * reaches the operating system: names are the path given to load, '/' and a file name, or that of a GGUF file.
     * file_open returns a handle, or NULL, which counts as: there is no such file. file_read fills all n_bytes from
     * offset and returns 0, or returns non-zero. */
    void *(*file_open)(void *user, const char *path);
    uint64_t (*file_size)(void *user, void *file);
    int (*file_read)(void *user, void *file, uint64_t offset, void *out, size_t n_bytes);
    void (*file_close)(void *user, void *file);
    /* Optional with the file hooks: the whole file as memory that stays valid and unchanged until file_close, or
     * NULL. Weights are then used where they lie. */
    const void *(*file_map)(void *user, void *file);
    /* Called between tensors while loading, 0 <= done <= total bytes. Non-zero cancels: FOLOLLM_E_CANCELLED. */
    int (*progress)(void *user, uint64_t done, uint64_t total);
    /* One line of plain text about something worth knowing that is no error. Default: silence. */
    void (*log)(void *user, const char *text);
    /* Microseconds of a clock that never goes back. Read only by folollm_submit and folollm_step, for budgets in time,
     * deadlines and metrics. Default: none; the first two are then refused, and metrics hold no times. */
    uint64_t (*clock)(void *user);
    /* One line of plain text about each step that folollm_step plans: what was there, then what was chosen, in order.
     *     step 9: up to 24 rows, 2 of 16 run, 2 wait, 1 pages free, 0 of them cached; 5/0 writes at 57;
     *     6/1 preempted at 40 for 5/0; 7/0 waits: 6 pages wanted, 3 free, 0 promised
     * An answer is called by its tag and number. It `writes` (the row of its last token, at that position) or `reads`
     * (from a position, so many of those it knows and lacks); is `admitted` with what the prefix cache had, or what it
     * holds already; is `preempted`; `waits`, or `stays` though it runs, because pages are missing. The same
     * submissions, cancels and calls with budgets in tokens give the same text, by the same version. Valid during the
     * call. Default: none, and nothing is written or allocated for it. */
    void (*log_step)(void *user, const char *text);
} folollm_host;

typedef enum folollm_kv_type {
    FOLOLLM_KV_F16 = 0, /* default */
    FOLOLLM_KV_F32 = 1,
    FOLOLLM_KV_BF16 = 2,
    FOLOLLM_KV_Q8 = 3, /* 8 bits, and a scale per token and head: about half the bytes of f16 */
    FOLOLLM_KV_Q4 = 4  /* 4 bits, the same: about a quarter. Costs quality: README says how much */
} folollm_kv_type;

/* What the matrices of a model are computed as. Each is converted while loading, so that no two copies of a model are
 * there at once; what folollm_quantize packed stays as it is (another type: FOLOLLM_E_UNSUPPORTED). Packed types, q8
 * and below, are multiplied with activations of 8 bits, a scale for every 32 of them.
 *
 * GGUF's F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K are computed as stored. Its Q5_0, IQ4_NL and MXFP4 become q8
 * and Q3_K becomes q6_k, the same numbers in more bits (MXFP4: where f16 holds the scales); IQ4_XS becomes q8 with
 * scales rounded to f16; Q4_1, Q5_1 and Q2_K become q8, the nearest. All of them become any type that is asked for by
 * name. Other types are FOLOLLM_E_UNSUPPORTED. */
typedef enum folollm_weights {
    FOLOLLM_WEIGHTS_AS_STORED = 0, /* default: as the checkpoint has them, or nearest to it; in place where they can be
                                      mapped */
    FOLOLLM_WEIGHTS_F32 = 1,
    FOLOLLM_WEIGHTS_F16 = 2,
    FOLOLLM_WEIGHTS_BF16 = 3,
    FOLOLLM_WEIGHTS_Q8 = 4,     /* 8.5 bits a weight: 8, and a scale for 32 (GGUF's Q8_0) */
    FOLOLLM_WEIGHTS_Q8_ROW = 5, /* 8 bits, one scale a row */
    FOLOLLM_WEIGHTS_Q4 = 6,     /* 4.5: 4, and a scale for 32 (Q4_0); embedding and head are q6_k */
    FOLOLLM_WEIGHTS_Q4_K = 7,   /* 4.6: 4, a scale and a minimum for 32 (Q4_K); the same */
    FOLOLLM_WEIGHTS_Q5_K = 8,   /* 5.6: 5, the same (Q5_K) */
    FOLOLLM_WEIGHTS_Q6_K = 9    /* 6.6: 6, and a scale for 16 (Q6_K). Rows that are no multiple of 256 are q8 instead
                                   of any K type */
} folollm_weights;

typedef enum folollm_isa { /* which kernels compute; all of them give the same bits */
    FOLOLLM_ISA_BEST = 0,  /* default: the widest that this processor has */
    FOLOLLM_ISA_SCALAR = 1,
    FOLOLLM_ISA_AVX2 = 2,
    FOLOLLM_ISA_AVX512 = 3,
    FOLOLLM_ISA_NEON = 4
} folollm_isa;

/* How a device multiplies floats of a forward pass with bf16 weights, and with keys and values of f16 or bf16 where
 * head_dim is 64 or 128. Other types are not touched: packed weights are multiplied as integers, exactly. With SPLIT
 * and BF16 logits are no longer the bits of the CPU; on one kind of device they are still the same for any batch, chunk,
 * prefix hit and so on, in every engine with the same floats. */
typedef enum folollm_floats {
    FOLOLLM_FLOATS_EXACT = 0, /* default: the same bits as the CPU */
    FOLOLLM_FLOATS_SPLIT = 1, /* on tensor cores, each float as the sum of two bf16 (or f16), 16 bits of its 24: fast
                                 for many rows. FOLOLLM_E_UNSUPPORTED, as BF16, where the device, or what the kernels
                                 were compiled for, is below compute capability 8.0 */
    FOLOLLM_FLOATS_BF16 = 2   /* on tensor cores, each float rounded to one, as other engines do: half the work */
} folollm_floats;

typedef struct folollm_merge {
    const char *path; /* a directory of PEFT, as for folollm_adapter_load */
    float scale;      /* 1: as it was trained */
} folollm_merge;

typedef struct folollm_options {
    size_t struct_size;        /* sizeof(folollm_options) of the caller; 0: of this header */
    const folollm_host *host;  /* NULL: the C library and the operating system */
    uint32_t context;          /* most tokens in one sequence; 0: the model's own limit, at most 4096 */
    uint32_t max_seqs;         /* most sequences open at once; 0: 8. At most 4096 */
    uint32_t pool_tokens;      /* tokens of KV cache that all sequences and requests share, rounded up to pages;
                                  0: context */
    uint32_t chunk;            /* most rows in one forward pass; 0: 128, on a device 512. More: faster prefill, more
                                  scratch. At most what the context or pool_tokens hold */
    uint32_t n_threads;        /* threads that compute, the caller included; 0: all cores; 1 creates none */
    folollm_kv_type kv;        /* how keys and values are stored */
    folollm_isa isa;
    int tokenizer_only;        /* 1: read no weights; tokenize, detokenize, chat and get_info work */
    int copy_weights;          /* 0: weights are mapped where the kernels can read them as they lie in the file,
                                  which must then not shrink or change while loaded (the operating system would
                                  raise SIGBUS). 1: read them into memory: for files that others may write */
    uint64_t memory_limit;     /* refuse to load (FOLOLLM_E_MEMORY) if the plan's allocated total is above; 0: none */
    uint32_t max_requests;     /* most answers submitted and not yet finished; 0: 64. At most 4096 */
    uint32_t max_running;      /* most of them in one step; 0: 16. The others wait */
    int no_prefix_cache;       /* 1: submitted prompts find nothing of what was computed before */
    folollm_weights weights;   /* folollm_share ignores it */
    uint32_t max_adapters;     /* most of folollm_adapter_load at once; 0: 8. At most 1024 */
    uint32_t max_rank;         /* most rank of these; 0: 64. At most 1024. Takes 3 x chunk x max_rank floats */
    const folollm_merge *merges; /* (n_merges) LoRA adapters that become part of the weights while loading, one after
                                    the other; matrices they touch are copied. folollm_share ignores them */
    size_t n_merges;
    int float_activations;     /* 1: packed weights are multiplied as floats: slow, to see what integers cost */
    int gguf;                  /* 1: folollm_quantize writes a GGUF file */
    uint32_t device;           /* 0: the CPU. n: CUDA device n - 1, in a build with FOLOLLM_CUDA; weights are copied
                                  there, and the logits are the same bits. Not with float_activations.
                                  For folollm_share 0 or what the first engine has */
    folollm_floats device_floats; /* only with a device */
    void *device_stream;       /* only with a device: a cudaStream_t of it, not the default one, in which the engine's
                                  steps run, also one that was begun ahead when a call has returned; it must outlive
                                  the engine, and no graph may be captured in it during a call. NULL: one of the
                                  engine's own, of the lowest priority */
} folollm_options;

/* Bytes by class. `allocated` is what the handle takes from the host's allocator and keeps until it is freed;
 * `mapped` is file content used in place; `temporary` is the most that planning or loading holds beyond that and
 * gives back. */
typedef struct folollm_memory {
    uint64_t mapped;
    uint64_t weights;   /* converted, copied or misaligned tensors, and the tensor table */
    uint64_t tokenizer;
    uint64_t kv_cache;  /* 2 x layers x kv_heads x pool tokens x bytes per head and token */
    uint64_t scratch;   /* activations of one forward pass, per-thread tiles */
    uint64_t sequences; /* page tables, logits rows, samplers, text buffers */
    uint64_t allocated; /* weights + tokenizer + kv_cache + scratch + sequences */
    uint64_t temporary;
    uint64_t device;    /* on the device: weights, KV cache and activations. Loading takes up to 32 MiB more for a while.
                           The driver's own share, recorded steps and page-locked copies of batches are not in it */
} folollm_memory;

typedef struct folollm_info {
    char architecture[32]; /* model_type of config.json, general.architecture of GGUF (mistral is llama there) */
    char weights[8];       /* what matrices are computed as: "bf16", "f16", "f32", "q8", "q8_row", "q4", "q4_k", "q5_k",
                              "q6_k", "q4_zero"; "mixed" if the checkpoint is. A head that options.weights left at more
                              bits does not count */
    char stored[128];      /* what they are in the file, each type with what it became if that is another: "bf16",
                              "q6_k, q3_k as q6_k", "f16 as q4 and q6_k". GGUF's Q8_0 is q8, its Q4_0 q4 */
    char quantised[96];    /* how a quantised directory holds the others and what they are computed as:
                              "gptq, 4 bits, groups of 128: q4", ", rounded" behind it if not as they are; or "" */
    char kernels[8];       /* "scalar", "avx2", "avx512", "neon", "cuda" */
    char chat_format[16];  /* "chatml", "llama3", "mistral", or "" when the template is none of these */
    uint64_t n_params;     /* numbers in the checkpoint's bound tensors; a tied head counts once */
    uint32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim;
    uint32_t vocab;        /* rows of logits; ids that no token has are never sampled */
    uint32_t n_tokens;     /* ids that the tokenizer knows */
    uint32_t model_context; /* the checkpoint's limit */
    uint32_t context, max_seqs, n_pages, page_tokens, chunk, n_threads, max_requests, max_running, max_adapters,
        max_rank; /* as opened */
    folollm_kv_type kv;
    uint64_t kv_token_bytes; /* of KV cache, all layers */
    folollm_token bos, eos; /* -1: none */
    folollm_memory memory;
    char device[64];       /* its name; "": the CPU */
} folollm_info;

/* ---- Library and model --------------------------------------------------------------------------- */

/* FOLOLLM_VERSION of the compiled folollm.c, to compare with this header. */
FOLOLLM_API const char *folollm_version(void);

/* Hexadecimal SHA-256 of the sources that folollm.c was generated from; the kernels file carries the same. */
FOLOLLM_API const char *folollm_source_hash(void);

/* One English sentence for a status; never NULL. */
FOLOLLM_API const char *folollm_status_text(folollm_status status);

/* What loading would take, from headers alone: reads no weights and keeps nothing.
 * path: a Hugging Face checkpoint directory, or a GGUF file. options: NULL for defaults.
 * Fails as folollm_load does for a file that is missing, damaged or unsupported. */
FOLOLLM_API folollm_status folollm_plan(const char *path, const folollm_options *options, folollm_memory *memory,
                                        folollm_error *error);

/* Open a checkpoint: config.json, model.safetensors (or shards with model.safetensors.index.json),
 * tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja. Or a GGUF file, the first if it
 * is split; its name ends in .gguf or, without file hooks, its first bytes say so. Matrices that a directory holds
 * quantised (gptq, awq, compressed-tensors, fp8, bitsandbytes: README says which) keep their integers where a packed
 * type has room for them, and become the nearest type otherwise; q4_zero is one of 4 bits with a scale and a zero point
 * for 32, which nothing else becomes. Everything is checked before the first weight is read, but for what quantised
 * tensors hold. *out is set only on success and is freed with folollm_free. */
FOLOLLM_API folollm_status folollm_load(const char *path, const folollm_options *options, folollm **out,
                                        folollm_error *error);

/* Write the weights of a checkpoint directory, as load with options->weights would have them, as one safetensors file
 * to the host, front to back: write gets the next n_bytes and returns 0, or else this call fails with FOLOLLM_E_IO.
 * Beside the directory's other files this is a checkpoint that loads without converting anything. Matrices of 8 bits
 * and less are tensors NAME.TYPE of bytes, packed as the kernels read them, and used where they lie when mapped.
 *
 * With options->gguf, from a directory or a GGUF file, write gets a GGUF file (version 3) with the configuration, the
 * tokenizer and the chat template, for this library and for llama.cpp. All types but q8_row; rows that are no multiple
 * of 32 are f16 instead of any packed type. mistral becomes llama. From a GGUF file all metadata is kept; from a
 * directory, what generation_config.json says about sampling is lost, and what the format or llama.cpp cannot say is
 * FOLOLLM_E_UNSUPPORTED by name, before the first write: RoPE of type ntk or dynamic, llama3 in qwen models, a tokenizer
 * that would give other ids, packed tensors. llama.cpp passes over sliding windows and some settings of yarn, which
 * this library reads back.
 *
 * Columns of quantised directories that have an order of their own (act-order) are not written as they are, nor is
 * q4_zero to GGUF: FOLOLLM_E_UNSUPPORTED, another type must be asked for. Of options, host, n_threads, weights, merges
 * and gguf count. Holds one tensor at a time, and first the tokenizer. */
FOLOLLM_API folollm_status folollm_quantize(const char *path, const folollm_options *options,
                                            int (*write)(void *user, const void *bytes, size_t n_bytes), void *user,
                                            folollm_error *error);

/* A second engine over the weights and tokenizer of `engine`, for another thread, with its own KV cache, sequences
 * and options (host, tokenizer_only, copy_weights are those of the first). Either may be freed first. */
FOLOLLM_API folollm_status folollm_share(folollm *engine, const folollm_options *options, folollm **out,
                                         folollm_error *error);

/* Read a LoRA adapter as PEFT saves it: a directory with adapter_config.json and adapter_model.safetensors (F32, F16 or
 * BF16), for any of the seven linear layers of a layer; rank_pattern, alpha_pattern and rsLoRA count. Sequences that
 * have it are computed with W + scale * alpha / rank * B A, in one batch with others that have another or none, and W
 * may be of any type. scale: 1 as it was trained. Takes memory, as much as the file in floats, beside that of load;
 * reads through the host's file hooks. The adapter belongs to this engine and is freed with it.
 * FOLOLLM_E_UNSUPPORTED for what is not computed (DoRA, modules_to_save, embeddings, biases, a rank above max_rank) and
 * FOLOLLM_E_FORMAT for shapes that do not fit the model, both with the name; FOLOLLM_E_POOL above max_adapters. */
FOLOLLM_API folollm_status folollm_adapter_load(folollm *engine, const char *path, float scale, folollm_adapter *out,
                                                folollm_error *error);

/* Give it back. FOLOLLM_E_STATE while a sequence has it; 0 is allowed. */
FOLOLLM_API folollm_status folollm_adapter_free(folollm *engine, folollm_adapter adapter, folollm_error *error);

/* What was opened. Neither may be NULL. */
FOLOLLM_API void folollm_get_info(const folollm *engine, folollm_info *info);

/* Give everything back, open sequences included. NULL is allowed. */
FOLOLLM_API void folollm_free(folollm *engine);

/* ---- Text and tokens ----------------------------------------------------------------------------- */

typedef struct folollm_span { /* bytes [begin, end) of a text */
    size_t begin, end;
} folollm_span;

enum {
    FOLOLLM_TOKENIZE_PLAIN = 1 /* add no BOS or EOS */
};

/* Text to the ids that Hugging Face's tokenizer gives for the same checkpoint.
 * text: n_bytes of UTF-8. trusted: where special tokens may be recognised, n_trusted spans, ascending and apart;
 * text outside stays text, whatever it spells. NULL with n_trusted 0: nowhere. flags: FOLOLLM_TOKENIZE_*.
 * tokens: room for *n_tokens ids, may be NULL when that is 0. *n_tokens becomes the number of ids; if the room was
 * too small, FOLOLLM_E_BUFFER. Allocates and frees temporary memory in proportion to n_bytes. */
FOLOLLM_API folollm_status folollm_tokenize(folollm *engine, const char *text, size_t n_bytes,
                                            const folollm_span *trusted, size_t n_trusted, unsigned flags,
                                            folollm_token *tokens, size_t *n_tokens, folollm_error *error);

enum {
    FOLOLLM_DETOKENIZE_SKIP_SPECIAL = 1 /* leave out special tokens */
};

/* Ids to text, as Hugging Face decodes them (without clean-up of spaces). Bytes that do not form UTF-8 become
 * U+FFFD. text: room for *n_bytes, no NUL is added; *n_bytes becomes the length; FOLOLLM_E_BUFFER if it was too
 * small. An id outside the vocabulary is FOLOLLM_E_ARGUMENT; one without a string is empty. */
FOLOLLM_API folollm_status folollm_detokenize(folollm *engine, const folollm_token *tokens, size_t n_tokens,
                                              unsigned flags, char *text, size_t *n_bytes, folollm_error *error);

typedef struct folollm_message {
    const char *role; /* "system", "user" or "assistant", NUL-terminated */
    const char *text;
    size_t n_bytes;
} folollm_message;

enum {
    FOLOLLM_CHAT_CONTINUE = 1,   /* no header for the assistant's next answer at the end */
    FOLOLLM_CHAT_NO_THINKING = 2 /* Qwen3: an empty think block, so that the answer starts at once */
};

/* Messages to the text that the checkpoint's own chat template makes of them, and the spans of it that the template
 * wrote: hand both to folollm_tokenize (with FOLOLLM_TOKENIZE_PLAIN: BOS is in the text) and nothing that a user
 * typed becomes a special token. date: "26 Jul 2024" for templates that print it, or NULL for their own default.
 * text: room for *n_bytes; trusted: room for *n_trusted; both become the lengths; FOLOLLM_E_BUFFER if one was too
 * small. FOLOLLM_E_UNSUPPORTED if the checkpoint has no template or one that is not known here. */
FOLOLLM_API folollm_status folollm_chat(folollm *engine, const folollm_message *messages, size_t n_messages,
                                        const char *date, unsigned flags, char *text, size_t *n_bytes,
                                        folollm_span *trusted, size_t *n_trusted, folollm_error *error);

/* ---- Sequences ----------------------------------------------------------------------------------- */

/* The stages that cut the candidates down, in the order in which they run. */
typedef enum folollm_stage {
    FOLOLLM_STAGE_END = 0,
    FOLOLLM_STAGE_TEMPERATURE = 1,
    FOLOLLM_STAGE_MIN_P = 2,
    FOLOLLM_STAGE_TOP_K = 3,
    FOLOLLM_STAGE_TOP_P = 4
} folollm_stage;

typedef enum folollm_preset { /* whose meaning the numbers have */
    FOLOLLM_PRESET_VLLM = 0,     /* temperature, min-p, top-k, top-p. Repetition over prompt and output;
                                    frequency and presence over output */
    FOLOLLM_PRESET_HF = 1,       /* temperature, top-k, top-p, min-p. Penalties as above */
    FOLOLLM_PRESET_LLAMACPP = 2  /* top-k, top-p, min-p, temperature. Penalties over the last 64 tokens */
} folollm_preset;

typedef struct folollm_bias {
    folollm_token token;
    float bias; /* added to the logit; -INFINITY is allowed and bans the token */
} folollm_bias;

typedef struct folollm_text {
    const char *text;
    size_t n_bytes;
} folollm_text;

/* How a sequence is sampled. Zeroed: greedy, until the checkpoint's EOS. Copied by seq_open, arrays too. */
typedef struct folollm_sampling {
    size_t struct_size;  /* 0: of this header */
    float temperature;   /* 0: greedy, the lowest id among equals. Up to 100 */
    uint32_t top_k;      /* 0: off */
    float top_p;         /* 0 or 1: off; the token that crosses p stays */
    float min_p;         /* 0: off; keeps what has at least min_p times the highest probability */
    folollm_preset preset;
    folollm_stage order[8]; /* first not END: this order instead of the preset's; each stage at most once */
    float repetition_penalty; /* 0 or 1: off; l > 0 ? l / r : l * r */
    float frequency_penalty;  /* 0: off; subtracted once per occurrence */
    float presence_penalty;   /* 0: off; subtracted once if it occurs */
    uint64_t seed;       /* a draw depends on seed and position alone */
    const folollm_bias *biases; /* at most 256 */
    size_t n_biases;
    const folollm_token *stop_ids; /* beside the checkpoint's EOS ids; at most 64 in all */
    size_t n_stop_ids;
    const folollm_text *stops; /* stop strings, at most 16 of 1 to 128 bytes; cut from the text, across tokens too */
    size_t n_stops;
    uint32_t min_tokens; /* no stop id is sampled, and no stop string looked for, before so many output tokens */
    uint32_t max_tokens; /* 0: until the context is full */
    int ignore_eos;      /* 1: the checkpoint's EOS ids do not stop */
} folollm_sampling;

/* What the checkpoint's generation_config.json asks for: temperature, top_k, top_p, min_p, repetition_penalty, or
 * greedy. Everything else is zeroed. Neither may be NULL. */
FOLOLLM_API void folollm_default_sampling(const folollm *engine, folollm_sampling *out);

/* An empty sequence. sampling: NULL for greedy. FOLOLLM_E_POOL if max_seqs are open. */
FOLOLLM_API folollm_status folollm_seq_open(folollm *engine, const folollm_sampling *sampling, folollm_seq *out,
                                            folollm_error *error);

/* From here on `seq` is computed with this adapter, or with none (0). It must be empty, or have it already
 * (FOLOLLM_E_STATE): its keys and values depend on it. Forks have the same; a saved sequence is restored with the same
 * adapter, which the engine must hold. */
FOLOLLM_API folollm_status folollm_seq_set_adapter(folollm *engine, folollm_seq seq, folollm_adapter adapter,
                                                   folollm_error *error);

/* A second sequence with the same tokens, adapter, sampling and logits; full pages of KV are shared, a page is copied
 * when one of the two writes to it. sampling: NULL keeps that of `seq`; else it replaces it (another seed, say), and the
 * text goes on as if it had been there from the start of the output. */
FOLOLLM_API folollm_status folollm_seq_fork(folollm *engine, folollm_seq seq, const folollm_sampling *sampling,
                                            folollm_seq *out, folollm_error *error);

/* Forget all tokens after the first n_tokens. The sequence has no logits until its next prefill or step, unless
 * n_tokens is its length. FOLOLLM_E_ARGUMENT if it is shorter. */
FOLOLLM_API folollm_status folollm_seq_truncate(folollm *engine, folollm_seq seq, size_t n_tokens,
                                                folollm_error *error);

/* The tokens whose keys and values are cached, in order. tokens: room for *n_tokens, or NULL to ask only for the
 * length; *n_tokens becomes the length; FOLOLLM_E_BUFFER if the room was too small. */
FOLOLLM_API folollm_status folollm_seq_tokens(folollm *engine, folollm_seq seq, folollm_token *tokens,
                                              size_t *n_tokens, folollm_error *error);

/* Write all that the sequence is to a buffer: tokens, keys and values, sampling, logits. buffer: room for *n_bytes, or
 * NULL with 0 to ask for the length; *n_bytes becomes the length; FOLOLLM_E_BUFFER if the room was too small. The
 * bytes are the same for the same sequence, and fit every engine of the same model, KV type and version. Saving and
 * restoring allocate nothing. */
FOLOLLM_API folollm_status folollm_seq_save(folollm *engine, folollm_seq seq, void *buffer, size_t *n_bytes,
                                            folollm_error *error);

/* Open a sequence as it was saved; it goes on, bit for bit, as if nothing had happened. Everything is checked before
 * anything is taken: FOLOLLM_E_FORMAT for bytes that are truncated, damaged or no snapshot, FOLOLLM_E_UNSUPPORTED for
 * one of another version, model or KV type, FOLOLLM_E_CONTEXT or FOLOLLM_E_POOL where it does not fit. The checksums
 * in it find accidents; they do not stop someone who forges keys and values on purpose. */
FOLOLLM_API folollm_status folollm_seq_restore(folollm *engine, const void *bytes, size_t n_bytes, folollm_seq *out,
                                               folollm_error *error);

/* The same bytes, without holding them whole. write: called with `user` and the next n bytes, 1 to 8192, valid during
 * the call; returns 0, or non-zero to give up: FOLOLLM_E_IO, and what was written is no snapshot. It must not call this
 * engine. The length: ask folollm_seq_save. */
FOLOLLM_API folollm_status folollm_seq_save_to(folollm *engine, folollm_seq seq,
                                               int (*write)(void *user, const void *bytes, size_t n), void *user,
                                               folollm_error *error);

/* The reverse. read: fills the next n bytes, 1 to 8192, and returns 0, or returns non-zero: FOLOLLM_E_IO. It must not
 * call this engine. Exactly the snapshot's bytes are asked for: what follows them is the host's. Other failures are
 * those of folollm_seq_restore; where the stream then stands is unspecified. The sequence does not exist before its last
 * byte was checked. Until then it fills free pages, and a failure leaves them free and all else as it was; only if it
 * needs more than the pages of no use to anybody, cached prefixes are forgotten, the longest unused first. */
FOLOLLM_API folollm_status folollm_seq_restore_from(folollm *engine, int (*read)(void *user, void *bytes, size_t n),
                                                    void *user, folollm_seq *out, folollm_error *error);

/* Free the sequence and its pages. */
FOLOLLM_API folollm_status folollm_seq_close(folollm *engine, folollm_seq seq, folollm_error *error);

/* ---- The custom loop ----------------------------------------------------------------------------- */

/* Append n_tokens (at least one) to the prompt of `seq`, in chunks of the engine's own choice; then its logits are
 * those after the last, and all tokens so far count as prompt: max_tokens, penalties over output, and the text that
 * sample gives start anew. all_logits: NULL, or room for (n_tokens, vocab) floats: the logits after every token;
 * on failure its content is unspecified.
 * FOLOLLM_E_CONTEXT if it would not fit the context, FOLOLLM_E_POOL if pages are missing, FOLOLLM_E_NUMERIC,
 * FOLOLLM_E_CANCELLED. If a step of folollm_step rests half done, it is finished first, here and in decode_step. */
FOLOLLM_API folollm_status folollm_prefill(folollm *engine, folollm_seq seq, const folollm_token *tokens,
                                           size_t n_tokens, float *all_logits, folollm_error *error);

/* Append one token to each of n sequences, all different, in one forward pass (more, if n is above the chunk). A
 * sequence may be empty before. seqs, tokens: (n). All or none advance; the error names the sequence that could not.
 * On a device, a loop that passes on the tokens that sample gave finds its next step begun when it asks for it, so that
 * the device does not wait for the host; if it asks for something else, or the logits, that step is given up or waited
 * for. It shows nowhere but in time, and in stats.ahead. */
FOLOLLM_API folollm_status folollm_decode_step(folollm *engine, const folollm_seq *seqs, const folollm_token *tokens,
                                               size_t n, folollm_error *error);

/* The logits after the last token: vocab floats, owned by the engine, valid until the sequence's next prefill,
 * step, truncate or close. FOLOLLM_E_STATE if there are none. A device keeps them until they are asked for here, by
 * a fork, a save, or a sample that cannot do without: then these too may fail with FOLOLLM_E_DEVICE. */
FOLOLLM_API folollm_status folollm_logits(folollm *engine, folollm_seq seq, const float **logits,
                                          folollm_error *error);

typedef enum folollm_finish {
    FOLOLLM_FINISH_NONE = 0,
    FOLOLLM_FINISH_STOP_ID = 1,     /* the token is EOS or a stop id; it adds no text */
    FOLOLLM_FINISH_STOP_STRING = 2, /* a stop string is complete; the text ends before it */
    FOLOLLM_FINISH_LENGTH = 3,      /* max_tokens reached, or the context is full */
    FOLOLLM_FINISH_CANCELLED = 4,   /* of a request: folollm_cancel */
    FOLOLLM_FINISH_DEADLINE = 5,    /* of a request: its deadline passed */
    FOLOLLM_FINISH_ERROR = 6        /* of a request: it cannot go on; the event's status says why */
} folollm_finish;

typedef struct folollm_logprob {
    folollm_token token;
    float raw;       /* natural log of the softmax of the model's logits */
    float processed; /* the same after penalties, biases and stages; -FLT_MAX: removed */
} folollm_logprob;

typedef struct folollm_sampled {
    folollm_token token;
    folollm_finish finish;
    int stop_index;         /* which stop string, or -1 */
    folollm_logprob chosen; /* of the token */
    const char *text;       /* what this token adds to the output: whole code points, never part of a stop string.
                               Owned by the engine, valid until the next call that names this sequence */
    size_t n_bytes;
} folollm_sampled;

/* Choose the next token of `seq` from its logits. Changes nothing: the same call again gives the same answer, and
 * the token becomes part of the sequence by decode_step (after which `text` of the next sample continues this one).
 * top: NULL, or room for n_top entries: the most likely tokens by raw probability, with both logprobs. */
FOLOLLM_API folollm_status folollm_sample(folollm *engine, folollm_seq seq, folollm_sampled *out,
                                          folollm_logprob *top, size_t n_top, folollm_error *error);

/* ---- Many requests: continuous batching ---------------------------------------------------------- */

enum {
    FOLOLLM_TOP_MAX = 20
};

/* A prompt to be answered by folollm_step, beside all others. */
typedef struct folollm_submission {
    size_t struct_size;          /* 0: of this header */
    const folollm_token *prompt; /* (n_prompt), copied */
    size_t n_prompt;             /* at least 1 */
    const folollm_sampling *sampling; /* copied; NULL: greedy, until the checkpoint's EOS */
    uint32_t n_answers;   /* 0: 1. The prompt is computed once for all; answer i draws with seed + i */
    int32_t priority;     /* lower is served first, whatever the others have waited */
    uint64_t deadline;    /* on host.clock: the answer ends there. Of equal priority the earlier is served first; 0:
                             none, served last */
    uint32_t flow;        /* who asks. Of equal priority and deadline, flows share the steps by their weights */
    uint32_t weight;      /* of the flow, from now on; 0: 1. At most 1000 */
    uint64_t cache_space; /* only prompts of the same space share cached pages: one per user hides what others asked */
    int no_prefix_cache;  /* 1: compute this prompt whole, and leave nothing of it to others */
    uint64_t tag;         /* handed back in every event */
    uint32_t n_top;       /* so many of the most likely tokens with every event; 0: none. At most FOLOLLM_TOP_MAX */
    folollm_adapter adapter; /* of all answers. Cached pages are shared only by prompts of the same adapter */
} folollm_submission;

/* Queue a request and return at once. out: room for n_answers handles, one per answer; each is valid until the event
 * that ends it was handed out. Such a sequence is driven by folollm_step: of the calls above only seq_tokens takes it,
 * the others say FOLOLLM_E_STATE. A prompt that can never be answered is refused: FOLOLLM_E_CONTEXT above the context,
 * FOLOLLM_E_POOL above the whole pool. FOLOLLM_E_POOL too if max_requests are there: step, then try again. */
FOLOLLM_API folollm_status folollm_submit(folollm *engine, const folollm_submission *submission, folollm_seq *out,
                                          folollm_error *error);

typedef struct folollm_budget { /* at least one of the two */
    uint32_t tokens;       /* most rows that the step computes; 0: as many as the chunk */
    uint32_t microseconds; /* by host.clock: go back to the host rather than begin what would end later. A forward pass
                              rests between two operations and goes on in the next call; 0: as long as it takes */
} folollm_budget;

typedef struct folollm_metrics { /* of one answer, so far; times in microseconds since submit, 0 without a clock */
    uint32_t prompt_tokens, output_tokens;
    uint32_t cached_tokens; /* of the prompt, found in the prefix cache or shared with the other answers */
    uint32_t preemptions;   /* how often its pages were taken away and computed again */
    uint64_t wait_us;       /* until it first had a row in a step */
    uint64_t first_token_us, last_token_us;
} folollm_metrics;

typedef struct folollm_event {
    folollm_seq seq;
    uint32_t answer;        /* 0 to n_answers - 1 */
    uint64_t tag;
    folollm_token token;    /* the next token of the answer; -1: this event only ends it */
    folollm_finish finish;  /* not NONE: the last event of this answer; its pages are free */
    folollm_status status;  /* FOLOLLM_OK, or why it ends: FOLOLLM_E_CANCELLED, _NUMERIC, _STATE (all tokens banned) */
    int stop_index;         /* which stop string, or -1 */
    folollm_logprob chosen; /* of the token */
    const char *text;       /* what this adds to the answer, as sample gives it. Owned by the engine, valid until the
                               next step, submit, prefill or decode_step */
    size_t n_bytes;
    const folollm_logprob *top; /* (n_top) the most likely tokens where `token` was chosen, by raw probability, as
                                   sample gives them. Owned by the engine, valid as long as text */
    size_t n_top;           /* submission.n_top; 0 where there is no token */
    folollm_metrics metrics;
} folollm_event;

/* One bounded step over all requests: choose rows (answers that are being written first, a token each; then prompts,
 * in pieces), run them in one forward pass, sample. budget: NULL for one whole step of at most the chunk's rows.
 * events: room for *n_events, at least 1; *n_events becomes how many were written. What finds no room is handed out by
 * the next calls, and its sequence waits so long. With a budget in time alone it goes on to further steps until there
 * are events; zero events with FOLOLLM_OK then mean that the time is used up, or that nothing is there to do
 * (folollm_get_stats: requests_waiting and requests_running). In other cases they may also mean that only a piece of a
 * prompt was computed.
 * On a device, when this returns and only answers are being written, their next step may have been begun already (never
 * with a budget in microseconds): a request that comes meanwhile gets its first row in the step behind it.
 * FOLOLLM_E_POOL: nothing can move, because sequences of the host's own loop hold the pages. FOLOLLM_E_DEVICE: the
 * requests of the step are computed again from what is known of them, as after a preemption, and give the same. */
FOLOLLM_API folollm_status folollm_step(folollm *engine, const folollm_budget *budget, folollm_event *events,
                                        size_t *n_events, folollm_error *error);

/* From any thread, at any time, without a lock. A request ends at its last token, with an event, by the next step;
 * a step that runs returns after the operation at hand. For a sequence of the host's loop, the prefill or decode_step
 * that runs (or else the next one) is undone and says FOLOLLM_E_CANCELLED. FOLOLLM_E_SEQUENCE if it is closed. */
FOLOLLM_API folollm_status folollm_cancel(folollm *engine, folollm_seq seq, folollm_error *error);

/* ---- Counters ------------------------------------------------------------------------------------ */

typedef struct folollm_stats {
    uint64_t prompt_tokens;    /* rows of prompts, or computed again after a preemption */
    uint64_t generated_tokens; /* rows of tokens that were generated */
    uint64_t forwards;         /* forward passes; */
    uint64_t ahead;            /* of these, begun on a device before the one in front was over, and not in vain */
    uint64_t undone;           /* calls of prefill and decode_step, and steps, that failed and were undone */
    uint64_t pages_copied;     /* on write, after a fork */
    uint32_t pages_used, pages_free, pages_shared; /* now; shared: with more than one owner */
    uint32_t seqs_open;        /* of the host's own loop */
    uint32_t requests_waiting, requests_running; /* answers, now; an answer that is over counts until its last event */
    uint64_t requests_finished, requests_cancelled; /* answers; cancelled ones are finished too */
    uint64_t steps;            /* of folollm_step that computed rows */
    uint64_t slices;           /* times that such a step rested half done */
    uint64_t preemptions;
    uint64_t prefix_asked_tokens, prefix_found_tokens; /* of prompts, by the prefix cache */
    uint64_t pages_evicted;    /* from the prefix cache, to be used for something else */
    uint32_t pages_cached;     /* now: free, but their content can still be found */
    uint64_t schedule_hash;    /* of every choice of rows so far: the same submissions, cancels and budgets in tokens
                                  give the same */
} folollm_stats;

/* Neither may be NULL. */
FOLOLLM_API void folollm_get_stats(const folollm *engine, folollm_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
