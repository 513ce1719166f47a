/* folollm: the command-line tool. It is to the library what the shell is to SQLite: everything that it does goes
 * through folollm.h, so each subcommand is also an example of the calls that it is named after.
 *
 * Text goes to stdout and everything else to stderr. An error is one line "folollm: error: ..." and exit status 1;
 * bad usage exits with 2. Because the process ends at the first error, nothing here unwinds: die() is the only way
 * out, and it removes the one file that may be half written.
 *
 * Top to bottom: errors and output, options, the engine, text and tokens, then one section per subcommand. */
#define _POSIX_C_SOURCE 200809L
#include "folollm.h"
#include "jsonl.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef __GNUC__
#define ENDS_LIKE_PRINTF(text, first) __attribute__((noreturn, format(printf, text, first)))
#define LIKE_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define ENDS_LIKE_PRINTF(text, first)
#define LIKE_PRINTF(text, first)
#endif

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define NOT_GIVEN UINT32_MAX /* of an option that counts; one that is a real number is negative then */

/* ---- Errors and output --------------------------------------------------------------------------- */

static char *half_written; /* the file to remove if the program ends now, or NULL */

static void print_error(const char *format, va_list arguments)
{
    fputs("folollm: error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

ENDS_LIKE_PRINTF(1, 2)
static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_error(format, arguments);
    va_end(arguments);
    if (half_written != NULL) {
        remove(half_written);
    }
    exit(1);
}

static void check(folollm_status status, const folollm_error *error)
{
    if (status != FOLOLLM_OK) {
        die("%s", error->text[0] != '\0' ? error->text : folollm_status_text(status));
    }
}

/* Resize a block to n elements; NULL begins one. Never returns NULL. */
static void *resize(void *block, size_t n, size_t element_bytes)
{
    if (n > SIZE_MAX / element_bytes) {
        die("out of memory");
    }
    block = realloc(block, n * element_bytes + 1); /* + 1: never 0 bytes, and room for a NUL after text */
    if (block == NULL) {
        die("out of memory");
    }
    return block;
}

/* Text is flushed as it comes: it is read while it is written, and a full disk or a closed pipe ends the work. */
static void write_text(const char *text, size_t n_bytes)
{
    if (fwrite(text, 1, n_bytes, stdout) != n_bytes || fflush(stdout) != 0) {
        die("cannot write the output: %s", strerror(errno));
    }
}

/* The prompt of a shell belongs on a line of its own; a file or a pipe gets the exact bytes. */
static void end_line_on_terminal(void)
{
    if (isatty(STDOUT_FILENO)) {
        write_text("\n", 1);
    }
}

static uint64_t microseconds(void *user)
{
    struct timespec now;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static double seconds(void)
{
    return (double)microseconds(NULL) * 1e-6;
}

typedef struct bar { /* a progress bar; zeroed it has not begun */
    const char *label;
    double begun, drawn; /* seconds */
} bar;

/* Draws nothing in the first second: what is quick shall not flicker. */
static void draw_bar(bar *b, uint64_t done, uint64_t total)
{
    static const char full[] = "##############################";
    double now = seconds(), part = total > 0 ? (double)done / (double)total : 1;
    if (b->begun <= 0) {
        b->begun = now;
    }
    if (now - b->begun < 1 || now - b->drawn < 0.1 || !isatty(STDERR_FILENO)) {
        return;
    }
    b->drawn = now;
    fprintf(stderr, "\r%s [%-30.*s] %3.0f %%", b->label, (int)(part * 30), full, part * 100);
}

static void erase_bar(const bar *b)
{
    if (b->drawn > 0) {
        fputs("\r\033[K", stderr);
    }
}

/* ---- Options ------------------------------------------------------------------------------------- */

enum { /* subcommands, as bits */
    GENERATE = 1, CHAT = 2, TOKENIZE = 4, LOGITS = 8, BENCH = 16, PERPLEXITY = 32, INFO = 64, BATCH = 128, QUANTIZE = 256,
    READERS = GENERATE | TOKENIZE | PERPLEXITY,
    SAMPLING = GENERATE | CHAT | BATCH,
    ADAPTED = GENERATE | CHAT | LOGITS | PERPLEXITY | BATCH,
    ALL = 511
};

typedef struct counts {
    uint32_t at[64];
    size_t n;
} counts;

typedef struct stop_list {
    folollm_text at[16];
    size_t n;
} stop_list;

typedef struct merge_list {
    folollm_merge at[16];
    size_t n;
} merge_list;

typedef struct settings {
    unsigned command;
    const char *model, *text, *file, *output, *ids, *decode, *system, *adapter;
    folollm_options engine;
    merge_list merges;
    double temperature, top_p, min_p, repeat_penalty, adapter_scale;
    uint32_t n, top_k, call_tokens, logprobs, prompt, repeats;
    uint64_t seed;
    stop_list stops;
    counts batches, depths;
    int print_ids, ignore_eos, no_think, plain, json, log_steps;
} settings;

typedef enum kind {
    KIND_FLAG,   /* int, becomes 1; takes no value */
    KIND_TEXT,   /* const char * */
    KIND_COUNT,  /* uint32_t in [low, high] */
    KIND_REAL,   /* double in [low, high] */
    KIND_SEED,   /* uint64_t */
    KIND_COUNTS, /* counts, each in [low, high] */
    KIND_STOP,   /* stop_list, one more */
    KIND_MERGE,  /* merge_list, one more */
    KIND_KV,     /* folollm_kv_type */
    KIND_FLOATS, /* folollm_floats */
    KIND_ISA,    /* folollm_isa */
    KIND_DEVICE, /* checked, not kept */
    KIND_WEIGHTS /* folollm_weights */
} kind;

typedef struct option {
    const char *name, *value; /* value: what the help calls it */
    unsigned commands;        /* that take it; a name may stand twice with different ones */
    kind kind;
    size_t offset;            /* in settings */
    double low, high;
    const char *help;
} option;

#define AT(field) offsetof(settings, field)
#define MOST 4294967294.0 /* one below NOT_GIVEN */

static const option options[] = {
    {"-m", "PATH", ALL, KIND_TEXT, AT(model), 0, 0, "the checkpoint's directory, or a GGUF file"},
    {"-p", "TEXT", GENERATE | TOKENIZE, KIND_TEXT, AT(text), 0, 0, "the text; special tokens are recognised"},
    {"-f", "FILE", READERS, KIND_TEXT, AT(file), 0, 0, "the text, byte for byte; - for stdin"},
    {"-f", "FILE", BATCH, KIND_TEXT, AT(file), 0, 0, "the requests, one JSON object per line; - for stdin"},
    {"-n", "N", GENERATE, KIND_COUNT, AT(n), 0, MOST, "most tokens; 0: until the context is full (128)"},
    {"-n", "N", CHAT, KIND_COUNT, AT(n), 0, MOST, "most tokens in one answer; 0: until the context is full (0)"},
    {"-n", "N", BATCH, KIND_COUNT, AT(n), 0, MOST, "max_tokens of lines without; 0: until the context is full (128)"},
    {"--max-seqs", "N", BATCH, KIND_COUNT, AT(engine.max_running), 1, 4096, "most answers written at once (16)"},
    {"--pool", "N", BATCH, KIND_COUNT, AT(engine.pool_tokens), 1, MOST, "tokens of KV cache for all (context x these)"},
    {"--no-prefix-cache", NULL, BATCH, KIND_FLAG, AT(engine.no_prefix_cache), 0, 0, "compute every prompt whole"},
    {"--log-steps", NULL, BATCH, KIND_FLAG, AT(log_steps), 0, 0,
     "to stderr what each step chose; an answer is called by its line, as 12/0"},
    {"--system", "TEXT", CHAT, KIND_TEXT, AT(system), 0, 0, "the system message"},
    {"--no-think", NULL, CHAT, KIND_FLAG, AT(no_think), 0, 0, "answer at once, without a think block"},
    {"--temp", "X", SAMPLING, KIND_REAL, AT(temperature), 0, 100, "temperature; 0: greedy (the checkpoint's)"},
    {"--top-k", "K", SAMPLING, KIND_COUNT, AT(top_k), 0, MOST, "the K most likely; 0: off (the checkpoint's)"},
    {"--top-p", "P", SAMPLING, KIND_REAL, AT(top_p), 0, 1, "keep probability P; 0 or 1: off (the checkpoint's)"},
    {"--min-p", "P", SAMPLING, KIND_REAL, AT(min_p), 0, 1, "keep P of the highest; 0: off (the checkpoint's)"},
    {"--repeat-penalty", "R", SAMPLING, KIND_REAL, AT(repeat_penalty), 0, 100, "1: off (the checkpoint's)"},
    {"--seed", "S", SAMPLING, KIND_SEED, AT(seed), 0, 0, "same seed, same text (0)"},
    {"--stop", "TEXT", SAMPLING, KIND_STOP, AT(stops), 0, 0, "end before TEXT; up to 16 times"},
    {"--ignore-eos", NULL, GENERATE | BATCH, KIND_FLAG, AT(ignore_eos), 0, 0, "go on after the end of text"},
    {"--ids", NULL, GENERATE, KIND_FLAG, AT(print_ids), 0, 0, "print token ids instead of text"},
    {"--logprobs", "N", GENERATE, KIND_COUNT, AT(logprobs), 0, 1024,
     "per token to stderr: id, raw and processed log probability; also of the N most likely"},
    {"--decode", "IDS", TOKENIZE, KIND_TEXT, AT(decode), 0, 0, "ids to text instead; - for stdin"},
    {"--plain", NULL, TOKENIZE, KIND_FLAG, AT(plain), 0, 0, "no BOS or EOS, and special tokens are plain text"},
    {"--ids", "IDS", LOGITS, KIND_TEXT, AT(ids), 0, 0, "the tokens, as 1,2,3; - for stdin"},
    {"-o", "FILE", LOGITS, KIND_TEXT, AT(output), 0, 0, "float32, little-endian, (ids, vocab)"},
    {"-o", "PATH", QUANTIZE, KIND_TEXT, AT(output), 0, 0,
     "a GGUF file, if it ends in .gguf; else a directory, made if it is not there"},
    {"--chunk", "N", LOGITS, KIND_COUNT, AT(call_tokens), 1, MOST, "feed N tokens per call (all in one)"},
    {"-p", "N", BENCH, KIND_COUNT, AT(prompt), 0, MOST, "tokens of a prompt; 0: no prefill test (512)"},
    {"-n", "N", BENCH, KIND_COUNT, AT(n), 0, MOST, "tokens to generate; 0: no decode test (128)"},
    {"-b", "LIST", BENCH, KIND_COUNTS, AT(batches), 1, 4096, "sequences decoded together, as 1,8,32 (1)"},
    {"--depth", "LIST", BENCH, KIND_COUNTS, AT(depths), 0, MOST, "tokens already cached, as 0,4096 (0)"},
    {"-r", "N", BENCH, KIND_COUNT, AT(repeats), 1, 10000, "repeats; 1 leaves out the untimed one before (5)"},
    {"--json", NULL, BENCH, KIND_FLAG, AT(json), 0, 0, "one JSON object per row and repeat"},
    {"--adapter", "DIR", ADAPTED, KIND_TEXT, AT(adapter), 0, 0, "a LoRA adapter; in batch, of lines without one"},
    {"--adapter-scale", "X", ADAPTED, KIND_REAL, AT(adapter_scale), -1000, 1000, "times what it was trained with (1)"},
    {"--merge", "DIR", ALL, KIND_MERGE, AT(merges), 0, 0, "a LoRA adapter made part of the weights; up to 16 times"},
    {"-t", "N", ALL, KIND_COUNT, AT(engine.n_threads), 1, 4096, "threads (all cores)"},
    {"--device", "NAME", ALL, KIND_DEVICE, AT(engine.device), 0, 0, "cpu, cuda or cuda:N (cpu)"},
    {"--device-floats", "HOW", ALL, KIND_FLOATS, AT(engine.device_floats), 0, 0,
     "with bf16 weights on a device: exact, split or bf16: bits of the CPU, close, fastest (exact)"},
    {"--weights", "TYPE", ALL, KIND_WEIGHTS, AT(engine.weights), 0, 0,
     "convert while loading: f32, f16, bf16, q8, q8_row, q4, q4_k, q5_k or q6_k (as stored)"},
    {"--float", NULL, ALL, KIND_FLAG, AT(engine.float_activations), 0, 0, "with q types: activations stay floats; slow"},
    {"--kv", "TYPE", ALL, KIND_KV, AT(engine.kv), 0, 0, "keys and values: f16, f32, bf16, q8 or q4 (f16)"},
    {"--isa", "NAME", ALL, KIND_ISA, AT(engine.isa), 0, 0, "scalar, avx2, avx512 or neon (the best there is)"},
    {"--context", "N", ALL, KIND_COUNT, AT(engine.context), 1, MOST, "most tokens of a sequence (4096 at most)"},
    {"--chunk", "N", ALL & ~LOGITS, KIND_COUNT, AT(engine.chunk), 1, MOST, "most rows in a forward pass (128)"},
    {"--copy-weights", NULL, ALL, KIND_FLAG, AT(engine.copy_weights), 0, 0, "read the weights, map nothing"},
};

typedef struct command {
    const char *name;
    unsigned bit;
    void (*run)(settings *s);
    const char *usage, *help;
} command;

static void run_generate(settings *s);
static void run_chat(settings *s);
static void run_tokenize(settings *s);
static void run_logits(settings *s);
static void run_bench(settings *s);
static void run_perplexity(settings *s);
static void run_batch(settings *s);
static void run_info(settings *s);
static void run_quantize(settings *s);

static const command commands[] = {
    {"generate", GENERATE, run_generate, "-m PATH (-p TEXT | -f FILE) [-n N]", "continue a text"},
    {"chat", CHAT, run_chat, "-m PATH [--system TEXT]", "talk; Ctrl-C stops an answer, Ctrl-D ends"},
    {"tokenize", TOKENIZE, run_tokenize, "-m PATH (-p TEXT | -f FILE | --decode IDS) [--plain]", "text to ids"},
    {"logits", LOGITS, run_logits, "-m PATH --ids 1,2,3 -o FILE [--chunk N]", "the logits after each token"},
    {"batch", BATCH, run_batch, "-m PATH -f prompts.jsonl [--max-seqs N]", "answer many prompts together"},
    {"bench", BENCH, run_bench, "-m PATH [-p 512] [-n 128] [-b 1,8,32] [--depth 0,4096] [-r 5] [--json]",
     "measure the speed"},
    {"perplexity", PERPLEXITY, run_perplexity, "-m PATH -f FILE [--context N]", "how well a text is predicted"},
    {"info", INFO, run_info, "-m PATH", "architecture, sizes, memory plan"},
    {"quantize", QUANTIZE, run_quantize, "-m PATH -o PATH --weights TYPE", "write a converted checkpoint"},
};

static const command *find_command(const char *name)
{
    for (size_t i = 0; i < LENGTH(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

static void print_usage(FILE *out, unsigned bits)
{
    for (size_t i = 0; i < LENGTH(commands); i++) {
        if (commands[i].bit & bits) {
            fprintf(out, "usage: folollm %s %s\n", commands[i].name, commands[i].usage);
        }
    }
}

/* Bad usage: say what is wrong and how it goes. */
ENDS_LIKE_PRINTF(2, 3)
static void misuse(unsigned bits, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_error(format, arguments);
    va_end(arguments);
    if (bits != ALL) {
        print_usage(stderr, bits);
    } else {
        fputs("usage: folollm COMMAND -m PATH [OPTIONS]; folollm --help lists them\n", stderr);
    }
    exit(2);
}

static void print_help(const command *only)
{
    unsigned bits = only != NULL ? only->bit : ALL;
    print_usage(stdout, bits);
    if (only == NULL) {
        puts("\nfolollm COMMAND --help explains the options of one. The commands:");
        for (size_t i = 0; i < LENGTH(commands); i++) {
            printf("  %-12s%s\n", commands[i].name, commands[i].help);
        }
        return;
    }
    puts("\nOptions, with their defaults in parentheses:");
    for (size_t i = 0; i < LENGTH(options); i++) {
        if ((options[i].commands & bits) && options[i].help != NULL) {
            const char *value = options[i].value != NULL ? options[i].value : "";
            printf("  %s %-*s %s\n", options[i].name, 20 - (int)strlen(options[i].name), value, options[i].help);
        }
    }
}

static const option *find_option(unsigned command_bit, const char *name)
{
    for (size_t i = 0; i < LENGTH(options); i++) {
        if ((options[i].commands & command_bit) && strcmp(options[i].name, name) == 0) {
            return &options[i];
        }
    }
    misuse(command_bit, "unknown option %s", name);
}

static uint32_t parse_count(unsigned bit, const option *o, const char *text, const char **end)
{
    char *stop;
    errno = 0;
    unsigned long long value = strtoull(text, &stop, 10);
    if (*text < '0' || *text > '9' || errno != 0 || (double)value < o->low || (double)value > o->high) {
        misuse(bit, "%s %s: not a whole number from %.0f to %.0f", o->name, text, o->low, o->high);
    }
    *end = stop;
    return (uint32_t)value;
}

static uint64_t parse_seed(unsigned bit, const option *o, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0) {
        misuse(bit, "%s %s: not a whole number of 64 bits", o->name, text);
    }
    return value;
}

static double parse_real(unsigned bit, const option *o, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= o->low && value <= o->high)) {
        misuse(bit, "%s %s: not a number from %g to %g", o->name, text, o->low, o->high);
    }
    return value;
}

static void parse_counts(unsigned bit, const option *o, const char *text, counts *list)
{
    list->n = 0;
    for (;;) {
        if (list->n == LENGTH(list->at)) {
            misuse(bit, "%s: more than %zu numbers", o->name, LENGTH(list->at));
        }
        list->at[list->n++] = parse_count(bit, o, text, &text);
        if (*text == '\0') {
            return;
        }
        if (*text++ != ',') {
            misuse(bit, "%s: numbers are separated by commas", o->name);
        }
    }
}

static void add_stop(unsigned bit, const char *text, stop_list *stops)
{
    if (stops->n == LENGTH(stops->at)) {
        misuse(bit, "--stop: more than %zu texts", LENGTH(stops->at));
    }
    stops->at[stops->n].text = text;
    stops->at[stops->n++].n_bytes = strlen(text);
}

static void add_merge(unsigned bit, const char *path, merge_list *merges)
{
    if (merges->n == LENGTH(merges->at)) {
        misuse(bit, "--merge: more than %zu adapters", LENGTH(merges->at));
    }
    merges->at[merges->n++] = (folollm_merge){path, 1};
}

/* The place of a word in a list of n. */
static int parse_word(unsigned bit, const option *o, const char *text, const char *const *words, int n)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(words[i], text) == 0) {
            return i;
        }
    }
    misuse(bit, "%s %s: %s", o->name, text, o->help);
}

static const char *const kv_names[] = {"f16", "f32", "bf16", "q8", "q4"}; /* by folollm_kv_type */
static const char *const floats_names[] = {"exact", "split", "bf16"}; /* by folollm_floats */
static const char *const weights_names[] = {"stored", "f32",  "f16",  "bf16", "q8",
                                            "q8_row", "q4",   "q4_k", "q5_k", "q6_k"}; /* by folollm_weights */
static const char *const isa_names[] = {"best", "scalar", "avx2", "avx512", "neon"};   /* by folollm_isa */

/* As folollm_options numbers them. */
static uint32_t parse_device(unsigned bit, const option *o, const char *text)
{
    static const char *const devices[] = {"cpu", "cuda"};
    static const option number = {.name = "--device cuda:N", .high = 63};
    const char *end = "";
    if (strncmp(text, "cuda:", 5) == 0) {
        uint32_t n = parse_count(bit, &number, text + 5, &end);
        if (*end != '\0') {
            misuse(bit, "--device %s: %s", text, o->help);
        }
        return n + 1;
    }
    return (uint32_t)parse_word(bit, o, text, devices, 2);
}

static void set_option(settings *s, const option *o, const char *text)
{
    char *field = (char *)s + o->offset;
    const char *end = "";
    switch (o->kind) {
    case KIND_FLAG: *(int *)(void *)field = 1; break;
    case KIND_TEXT: *(const char **)(void *)field = text; break;
    case KIND_COUNT: *(uint32_t *)(void *)field = parse_count(s->command, o, text, &end); break;
    case KIND_REAL: *(double *)(void *)field = parse_real(s->command, o, text); break;
    case KIND_SEED: *(uint64_t *)(void *)field = parse_seed(s->command, o, text); break;
    case KIND_COUNTS: parse_counts(s->command, o, text, (counts *)(void *)field); break;
    case KIND_STOP: add_stop(s->command, text, (stop_list *)(void *)field); break;
    case KIND_MERGE: add_merge(s->command, text, (merge_list *)(void *)field); break;
    case KIND_FLOATS:
        s->engine.device_floats = (folollm_floats)parse_word(s->command, o, text, floats_names, 3);
        break;
    case KIND_KV: s->engine.kv = (folollm_kv_type)parse_word(s->command, o, text, kv_names, 5); break;
    case KIND_ISA: s->engine.isa = (folollm_isa)parse_word(s->command, o, text, isa_names, 5); break;
    case KIND_DEVICE: *(uint32_t *)(void *)field = parse_device(s->command, o, text); break;
    case KIND_WEIGHTS:
        s->engine.weights =
            (folollm_weights)parse_word(s->command, o, text, weights_names, LENGTH(weights_names));
        break;
    }
    if (*end != '\0') {
        misuse(s->command, "%s %s: not a whole number", o->name, text);
    }
}

static void parse_options(settings *s, char **argv)
{
    while (*argv != NULL) {
        const option *o = find_option(s->command, *argv++);
        if (o->kind == KIND_FLAG) {
            set_option(s, o, NULL);
        } else if (*argv == NULL) {
            misuse(s->command, "%s needs a value", o->name);
        } else {
            set_option(s, o, *argv++);
        }
    }
    if (s->model == NULL) {
        misuse(s->command, "-m PATH is missing");
    }
    s->engine.merges = s->merges.at;
    s->engine.n_merges = s->merges.n;
}

/* ---- The engine ---------------------------------------------------------------------------------- */

static int show_loading(void *user, uint64_t done, uint64_t total)
{
    draw_bar(user, done, total);
    return 0;
}

static void show_log(void *user, const char *text)
{
    (void)user;
    fprintf(stderr, "folollm: %s\n", text);
}

static void show_step(void *user, const char *text)
{
    (void)user;
    fprintf(stderr, "%s\n", text);
}

static folollm *open_engine(settings *s)
{
    static bar loading = {"loading", 0, 0}; /* static: the engine keeps the address */
    folollm_host host = {.user = &loading, .progress = show_loading, .log = show_log, .clock = microseconds};
    folollm *engine;
    folollm_error error;
    host.log_step = s->log_steps ? show_step : NULL;
    s->engine.struct_size = sizeof s->engine;
    s->engine.host = &host;
    if (!(s->command & (BATCH | INFO))) { /* nothing is submitted: take no memory for it */
        s->engine.max_requests = s->engine.max_running = 1;
    }
    loading.begun = seconds();
    folollm_status status = folollm_load(s->model, &s->engine, &engine, &error);
    erase_bar(&loading);
    check(status, &error);
    return engine;
}

/* A sequence, with the adapter that the command line names. */
static folollm_seq open_sequence(folollm *engine, const settings *s, const folollm_sampling *sampling)
{
    folollm_adapter adapter;
    folollm_error error;
    folollm_seq seq;
    check(folollm_seq_open(engine, sampling, &seq, &error), &error);
    if (s->adapter != NULL) {
        check(folollm_adapter_load(engine, s->adapter, (float)s->adapter_scale, &adapter, &error), &error);
        check(folollm_seq_set_adapter(engine, seq, adapter, &error), &error);
    }
    return seq;
}

/* The checkpoint's own sampling, and over it what the command line says. */
static folollm_sampling choose_sampling(const folollm *engine, const settings *s)
{
    folollm_sampling out = {0};
    folollm_default_sampling(engine, &out);
    out.struct_size = sizeof out;
    out.temperature = s->temperature >= 0 ? (float)s->temperature : out.temperature;
    out.top_p = s->top_p >= 0 ? (float)s->top_p : out.top_p;
    out.min_p = s->min_p >= 0 ? (float)s->min_p : out.min_p;
    out.repetition_penalty = s->repeat_penalty >= 0 ? (float)s->repeat_penalty : out.repetition_penalty;
    out.top_k = s->top_k != NOT_GIVEN ? s->top_k : out.top_k;
    out.seed = s->seed;
    out.stops = s->stops.at;
    out.n_stops = s->stops.n;
    out.max_tokens = s->n;
    out.ignore_eos = s->ignore_eos;
    return out;
}

/* ---- Text and tokens ----------------------------------------------------------------------------- */

typedef struct bytes {
    char *data; /* (n), a NUL after it */
    size_t n;
} bytes;

typedef struct ids {
    folollm_token *data; /* (n) */
    size_t n;
} ids;

static void append(bytes *b, const char *data, size_t n)
{
    if (n == 0) {
        return;
    }
    b->data = resize(b->data, b->n + n, 1);
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static bytes read_file(const char *path)
{
    char piece[65536];
    size_t n;
    bytes out = {resize(NULL, 0, 1), 0};
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (file == NULL) {
        die("%s: %s", path, strerror(errno));
    }
    while ((n = fread(piece, 1, sizeof piece, file)) > 0) {
        append(&out, piece, n);
    }
    if (ferror(file)) {
        die("%s: %s", path, strerror(errno));
    }
    if (file != stdin) {
        fclose(file);
    }
    return out;
}

/* What -p or -f gives, exactly one of them. */
static bytes input_text(const settings *s)
{
    bytes out = {NULL, 0};
    if ((s->text != NULL) == (s->file != NULL)) {
        misuse(s->command, "one of -p and -f is needed");
    }
    if (s->file != NULL) {
        return read_file(s->file);
    }
    out.data = resize(NULL, 0, 1);
    append(&out, s->text, strlen(s->text));
    return out;
}

/* Ids separated by commas or white space; "-" reads them from stdin. */
static ids parse_ids(const char *argument)
{
    static const char separators[] = ", \t\r\n";
    ids out = {NULL, 0};
    bytes input = {NULL, 0};
    if (strcmp(argument, "-") == 0) {
        input = read_file(argument);
        input.data[input.n] = '\0';
    }
    const char *text = input.data != NULL ? input.data : argument;
    out.data = resize(NULL, strlen(text) / 2 + 1, sizeof *out.data);
    for (text += strspn(text, separators); *text != '\0'; text += strspn(text, separators)) {
        char *end;
        long long id = strtoll(text, &end, 10);
        if (end == text || id < 0 || id > INT32_MAX || (*end != '\0' && strchr(separators, *end) == NULL)) {
            die("not a token id: %.*s", (int)strcspn(text, separators), text);
        }
        out.data[out.n++] = (folollm_token)id;
        text = end;
    }
    free(input.data);
    return out;
}

static ids tokenize(folollm *engine, bytes text, const folollm_span *trusted, size_t n_trusted, unsigned flags)
{
    folollm_error error;
    ids out = {NULL, text.n / 2 + 16}; /* a guess; the call says how many it needs */
    folollm_status status;
    do {
        out.data = resize(out.data, out.n, sizeof *out.data);
        status = folollm_tokenize(engine, text.data, text.n, trusted, n_trusted, flags, out.data, &out.n, &error);
    } while (status == FOLOLLM_E_BUFFER);
    check(status, &error);
    return out;
}

static ids tokenize_trusted(folollm *engine, bytes text)
{
    folollm_span all = {0, text.n};
    return tokenize(engine, text, &all, text.n > 0, 0);
}

static void print_id(folollm_token id, int first)
{
    char text[16];
    int n = snprintf(text, sizeof text, "%s%d", first ? "" : " ", (int)id);
    write_text(text, (size_t)n);
}

/* ---- generate ------------------------------------------------------------------------------------ */

static volatile sig_atomic_t interrupted; /* Ctrl-C in chat and batch */

static void print_logprob(const folollm_logprob *p)
{
    double processed = p->processed > -FLT_MAX ? (double)p->processed : -HUGE_VAL;
    fprintf(stderr, " %d %.6f %.6f", (int)p->token, (double)p->raw, processed);
}

static void print_logprobs(const folollm_sampled *next, const folollm_logprob *top, size_t n_top)
{
    fputs("logprobs:", stderr);
    print_logprob(&next->chosen);
    for (size_t i = 0; i < n_top; i++) {
        fputs(i == 0 ? " |" : ",", stderr);
        print_logprob(&top[i]);
    }
    fputc('\n', stderr);
}

/* Sample and print until the sequence finishes or Ctrl-C. Returns the number of tokens, and the text in *kept. */
static size_t answer(folollm *engine, folollm_seq seq, const settings *s, bytes *kept)
{
    size_t n_top = s->logprobs != NOT_GIVEN ? s->logprobs : 0;
    folollm_logprob *top = resize(NULL, n_top, sizeof *top);
    folollm_sampled next = {0};
    folollm_error error;
    size_t n = 0;
    while (next.finish == FOLOLLM_FINISH_NONE && !interrupted) {
        if (n > 0) {
            check(folollm_decode_step(engine, &seq, &next.token, 1, &error), &error);
        }
        check(folollm_sample(engine, seq, &next, n_top > 0 ? top : NULL, n_top, &error), &error);
        if (s->print_ids) {
            print_id(next.token, n == 0);
        } else {
            write_text(next.text, next.n_bytes);
        }
        if (s->logprobs != NOT_GIVEN) {
            print_logprobs(&next, top, n_top);
        }
        append(kept, next.text, next.n_bytes);
        n++;
    }
    free(top);
    return n;
}

static void print_speed(const char *what, size_t n_tokens, double time)
{
    fprintf(stderr, "%s: %zu tokens in %.2f s, %.1f tokens/s\n", what, n_tokens, time, (double)n_tokens / time);
}

static void run_generate(settings *s)
{
    bytes text = input_text(s), kept = {NULL, 0};
    folollm_error error;
    s->engine.max_seqs = 1;
    s->n = s->n != NOT_GIVEN ? s->n : 128;
    folollm *engine = open_engine(s);
    ids prompt = tokenize_trusted(engine, text);
    if (prompt.n == 0) {
        die("the text has no tokens to begin with");
    }
    folollm_sampling sampling = choose_sampling(engine, s);
    folollm_seq seq = open_sequence(engine, s, &sampling);
    double begin = seconds();
    check(folollm_prefill(engine, seq, prompt.data, prompt.n, NULL, &error), &error);
    double middle = seconds();
    size_t n = answer(engine, seq, s, &kept);
    double end = seconds();
    if (s->print_ids) {
        write_text("\n", 1);
    } else {
        end_line_on_terminal();
    }
    print_speed("prompt", prompt.n, middle - begin);
    print_speed("answer", n, end - middle);
    free(kept.data);
    free(prompt.data);
    free(text.data);
    folollm_free(engine);
}

/* ---- chat ---------------------------------------------------------------------------------------- */

typedef struct conversation {
    folollm *engine;
    const settings *s;
    folollm_seq seq;
    uint32_t context, chunk;
    folollm_message *messages; /* (n); their texts are ours */
    size_t n, n_system;        /* n_system: 1 if the first is the system message, which is never dropped */
} conversation;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

/* Without SA_RESTART, so that Ctrl-C also ends the wait for a line. */
static void catch_interrupts(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

static void add_message(conversation *c, const char *role, const char *text, size_t n_bytes)
{
    bytes copy = {resize(NULL, 0, 1), 0};
    append(&copy, text, n_bytes);
    c->messages = resize(c->messages, c->n + 1, sizeof *c->messages);
    c->messages[c->n++] = (folollm_message){role, copy.data, copy.n};
}

static void drop_messages(conversation *c, size_t first, size_t n)
{
    for (size_t i = first; i < first + n; i++) {
        free((char *)c->messages[i].text);
    }
    memmove(c->messages + first, c->messages + first + n, (c->n - first - n) * sizeof *c->messages);
    c->n -= n;
}

/* The tokens of the whole conversation. Only what the template wrote is trusted: no message can forge a turn. */
static ids render(const conversation *c)
{
    unsigned flags = c->s->no_think ? FOLOLLM_CHAT_NO_THINKING : 0;
    bytes text = {NULL, 4096};
    folollm_span *trusted = NULL;
    size_t n_trusted = 4 * c->n + 16;
    folollm_error error;
    folollm_status status;
    do {
        text.data = resize(text.data, text.n, 1);
        trusted = resize(trusted, n_trusted, sizeof *trusted);
        status = folollm_chat(c->engine, c->messages, c->n, NULL, flags, text.data, &text.n, trusted, &n_trusted,
                              &error);
    } while (status == FOLOLLM_E_BUFFER);
    check(status, &error);
    ids out = tokenize(c->engine, text, trusted, n_trusted, FOLOLLM_TOKENIZE_PLAIN);
    free(trusted);
    free(text.data);
    return out;
}

/* Render, and leave out the oldest turns until a quarter of the context is free for the answer. The last message
 * must then fit at all; returns no tokens if it does not. */
static ids render_to_fit(conversation *c)
{
    ids out = render(c);
    while (out.n > c->context - c->context / 4 && c->n >= c->n_system + 3) {
        fputs("folollm: the context is full: the oldest turn is forgotten\n", stderr);
        drop_messages(c, c->n_system, 2);
        free(out.data);
        out = render(c);
    }
    if (out.n >= c->context) {
        fprintf(stderr, "folollm: %zu tokens do not fit the context of %u\n", out.n, (unsigned)c->context);
        out.n = 0;
    }
    return out;
}

/* Make the sequence hold exactly these tokens: keep what it already has of them, from the start. The last one is
 * always computed, because its logits begin the answer. Small calls let Ctrl-C through. */
static void feed(const conversation *c, ids prompt)
{
    ids have = {resize(NULL, c->context, sizeof *have.data), c->context};
    folollm_error error;
    size_t same = 0;
    check(folollm_seq_tokens(c->engine, c->seq, have.data, &have.n, &error), &error);
    while (same < have.n && same + 1 < prompt.n && have.data[same] == prompt.data[same]) {
        same++;
    }
    free(have.data);
    check(folollm_seq_truncate(c->engine, c->seq, same, &error), &error);
    while (same < prompt.n && !interrupted) {
        size_t n = prompt.n - same < c->chunk ? prompt.n - same : c->chunk;
        check(folollm_prefill(c->engine, c->seq, prompt.data + same, n, NULL, &error), &error);
        same += n;
    }
}

/* Answer the last message. A stopped answer stays in the conversation; a question without any answer does not. */
static void reply(conversation *c)
{
    bytes text = {NULL, 0};
    ids prompt = render_to_fit(c);
    if (prompt.n > 0) {
        feed(c, prompt);
    }
    if (prompt.n > 0 && !interrupted) {
        answer(c->engine, c->seq, c->s, &text);
        write_text("\n", 1);
    }
    if (text.n > 0) {
        add_message(c, "assistant", text.data, text.n);
    } else {
        drop_messages(c, c->n - 1, 1);
    }
    free(prompt.data);
    free(text.data);
}

/* One line from stdin without its end. Returns 0 at the end of the input and after Ctrl-C. */
static int read_line(bytes *line)
{
    size_t room = 0;
    free(line->data);
    line->data = NULL;
    interrupted = 0;
    if (isatty(STDIN_FILENO)) {
        fputs("> ", stderr);
    }
    ssize_t n = getline(&line->data, &room, stdin);
    if (n < 0) {
        if (isatty(STDIN_FILENO)) {
            fputc('\n', stderr);
        }
        return 0;
    }
    line->n = n > 0 && line->data[n - 1] == '\n' ? (size_t)n - 1 : (size_t)n;
    return 1;
}

static void run_chat(settings *s)
{
    conversation c = {.s = s};
    bytes line = {NULL, 0};
    folollm_info info;
    s->engine.max_seqs = 1;
    s->n = s->n != NOT_GIVEN ? s->n : 0;
    c.engine = open_engine(s);
    folollm_get_info(c.engine, &info);
    if (info.chat_format[0] == '\0') {
        die("%s: no chat template, or one that is not known here", s->model);
    }
    c.context = info.context;
    c.chunk = info.chunk;
    folollm_sampling sampling = choose_sampling(c.engine, s);
    c.seq = open_sequence(c.engine, s, &sampling);
    if (s->system != NULL) {
        add_message(&c, "system", s->system, strlen(s->system));
        c.n_system = 1;
    }
    catch_interrupts();
    while (read_line(&line)) {
        if (line.n > 0) {
            add_message(&c, "user", line.data, line.n);
            reply(&c);
        }
    }
    drop_messages(&c, 0, c.n);
    free(c.messages);
    free(line.data);
    folollm_free(c.engine);
}

/* ---- tokenize ------------------------------------------------------------------------------------ */

static void decode_ids(folollm *engine, const char *argument)
{
    ids input = parse_ids(argument);
    bytes out = {NULL, 8 * input.n + 16}; /* a guess; the call says how many it needs */
    folollm_error error;
    folollm_status status;
    do {
        out.data = resize(out.data, out.n, 1);
        status = folollm_detokenize(engine, input.data, input.n, 0, out.data, &out.n, &error);
    } while (status == FOLOLLM_E_BUFFER);
    check(status, &error);
    write_text(out.data, out.n);
    end_line_on_terminal();
    free(out.data);
    free(input.data);
}

static void encode_text(folollm *engine, const settings *s)
{
    bytes text = input_text(s);
    ids out = s->plain ? tokenize(engine, text, NULL, 0, FOLOLLM_TOKENIZE_PLAIN) : tokenize_trusted(engine, text);
    for (size_t i = 0; i < out.n; i++) {
        printf("%s%d", i > 0 ? " " : "", (int)out.data[i]);
    }
    write_text("\n", 1);
    free(out.data);
    free(text.data);
}

static void run_tokenize(settings *s)
{
    if (s->decode != NULL && (s->text != NULL || s->file != NULL || s->plain)) {
        misuse(s->command, "--decode stands without -p, -f and --plain");
    }
    if (s->decode == NULL && (s->text != NULL) == (s->file != NULL)) {
        misuse(s->command, "one of -p, -f and --decode is needed");
    }
    s->engine.tokenizer_only = 1;
    folollm *engine = open_engine(s);
    if (s->decode != NULL) {
        decode_ids(engine, s->decode);
    } else {
        encode_text(engine, s);
    }
    folollm_free(engine);
}

/* ---- logits -------------------------------------------------------------------------------------- */

/* A device or a pipe must be written where it is: renaming a file over it would replace it. */
static int is_special(const char *path)
{
    struct stat found;
    return lstat(path, &found) == 0 && !S_ISREG(found.st_mode);
}

/* A file is written beside and renamed at the end: whoever sees it sees all of it. */
static void save_floats(const char *path, const float *data, size_t n)
{
    size_t room = strlen(path) + sizeof ".part";
    char *part = resize(NULL, room, 1);
    snprintf(part, room, "%s%s", path, is_special(path) ? "" : ".part");
    FILE *file = fopen(part, "wb");
    if (file == NULL) {
        die("%s: %s", part, strerror(errno));
    }
    half_written = is_special(path) ? NULL : part;
    size_t written = fwrite(data, sizeof *data, n, file);
    if (fclose(file) != 0 || written != n || (half_written != NULL && rename(part, path) != 0)) {
        die("%s: %s", path, strerror(errno));
    }
    half_written = NULL;
    free(part);
}

static void run_logits(settings *s)
{
    if (s->ids == NULL || s->output == NULL) {
        misuse(s->command, "--ids and -o are needed");
    }
    ids prompt = parse_ids(s->ids);
    folollm_info info;
    folollm_error error;
    if (prompt.n == 0 || prompt.n > UINT32_MAX) {
        die("--ids: no tokens, or too many");
    }
    s->engine.max_seqs = 1;
    if (s->engine.context == 0) {
        s->engine.context = (uint32_t)prompt.n;
    }
    folollm *engine = open_engine(s);
    folollm_get_info(engine, &info);
    float *logits = resize(NULL, prompt.n, info.vocab * sizeof *logits); /* (ids, vocab) */
    size_t step = s->call_tokens > 0 ? s->call_tokens : prompt.n;
    folollm_seq seq = open_sequence(engine, s, NULL);
    for (size_t i = 0; i < prompt.n; i += step) {
        size_t n = prompt.n - i < step ? prompt.n - i : step;
        check(folollm_prefill(engine, seq, prompt.data + i, n, logits + i * info.vocab, &error), &error);
    }
    save_floats(s->output, logits, prompt.n * info.vocab);
    free(logits);
    free(prompt.data);
    folollm_free(engine);
}

/* ---- batch --------------------------------------------------------------------------------------- */

typedef struct request { /* one line of the input, where its texts lie */
    const char *key;     /* the one that is being read; NULL: none, or an unknown one */
    unsigned seen;       /* keys with a value, as bits by their place in request_keys */
    folollm_text id;     /* its string, or else its number as it is written, or "null" */
    int id_is_string;
    folollm_text prompt, adapter; /* adapter.text NULL: that of the command line */
    ids prompt_ids;
    stop_list stops;
    folollm_sampling sampling;
    uint32_t n_top;
    int32_t priority;
    char problem[256];   /* what is wrong with the line, or "" */
} request;

typedef struct request_key {
    const char *name;
    enum {
        KEY_ID, KEY_PROMPT, KEY_PROMPT_IDS, KEY_STOP, KEY_PRIORITY, KEY_SEED, KEY_TOP, KEY_ADAPTER, KEY_COUNT, KEY_REAL
    } kind;
    size_t offset; /* of KEY_COUNT and KEY_REAL, in folollm_sampling */
    double high;
} request_key;

static const request_key request_keys[] = {
    {"id", KEY_ID, 0, 0},
    {"prompt", KEY_PROMPT, 0, 0},
    {"prompt_ids", KEY_PROMPT_IDS, 0, 0},
    {"stop", KEY_STOP, 0, 0},
    {"priority", KEY_PRIORITY, 0, 0},
    {"seed", KEY_SEED, 0, 0},
    {"top_logprobs", KEY_TOP, 0, 0},
    {"adapter", KEY_ADAPTER, 0, 0},
    {"max_tokens", KEY_COUNT, offsetof(folollm_sampling, max_tokens), 0},
    {"top_k", KEY_COUNT, offsetof(folollm_sampling, top_k), 0},
    {"temperature", KEY_REAL, offsetof(folollm_sampling, temperature), 100},
    {"top_p", KEY_REAL, offsetof(folollm_sampling, top_p), 1},
    {"min_p", KEY_REAL, offsetof(folollm_sampling, min_p), 1},
};

enum { SEEN_ID = 1, SEEN_PROMPT = 2, SEEN_IDS = 4 }; /* 1 << place */

/* Keep the first thing that is wrong; reading goes on, because the id may still come. */
LIKE_PRINTF(2, 3)
static void complain(request *r, const char *format, ...)
{
    va_list arguments;
    if (r->problem[0] == '\0') {
        va_start(arguments, format);
        vsnprintf(r->problem, sizeof r->problem, format, arguments);
        va_end(arguments);
    }
}

/* A whole number from -lowest to highest, in two's complement. */
static uint64_t read_whole(json *j, request *r, uint64_t lowest, uint64_t highest)
{
    folollm_text text = json_number(j);
    int negative = text.n_bytes > 0 && text.text[0] == '-';
    char *end = (char *)text.text;
    errno = 0;
    uint64_t value = j->problem == NULL ? strtoull(text.text + negative, &end, 10) : 0;
    if (end != text.text + text.n_bytes || errno != 0 || value > (negative ? lowest : highest)) {
        complain(r, "\"%s\": not a whole number from %s%llu to %llu", r->key, lowest > 0 ? "-" : "",
                 (unsigned long long)lowest, (unsigned long long)highest);
        return 0;
    }
    return negative ? 0 - value : value;
}

static float read_real(json *j, request *r, double high)
{
    folollm_text text = json_number(j);
    double value = j->problem == NULL ? strtod(text.text, NULL) : 0;
    if (value < 0 || value > high) {
        complain(r, "\"%s\": not a number from 0 to %g", r->key, high);
        return 0;
    }
    return (float)value;
}

static ids read_ids(json *j, request *r)
{
    ids out = {NULL, 0};
    size_t room = 0;
    for (int more = json_open(j, '['); more; more = json_more(j, ']')) {
        if (out.n == room) {
            room = 2 * room + 64;
            out.data = resize(out.data, room, sizeof *out.data);
        }
        out.data[out.n++] = (folollm_token)read_whole(j, r, 0, INT32_MAX);
    }
    return out;
}

/* One string, or a list of them. */
static void read_stops(json *j, request *r)
{
    int is_list = json_peek(j) != '"';
    r->stops.n = 0;
    for (int more = !is_list || json_open(j, '['); more; more = is_list && json_more(j, ']')) {
        folollm_text text = json_string(j);
        if (r->stops.n == LENGTH(r->stops.at)) {
            complain(r, "\"stop\": more than %zu texts", LENGTH(r->stops.at));
        } else {
            r->stops.at[r->stops.n++] = text;
        }
    }
}

static void read_id(json *j, request *r)
{
    r->id_is_string = json_peek(j) == '"';
    r->id = r->id_is_string ? json_string(j) : json_number(j);
    if (j->problem != NULL) {
        r->id = (folollm_text){"null", 4};
        r->id_is_string = 0;
    }
}

static void read_value(json *j, request *r, const request_key *k)
{
    char *field = (char *)&r->sampling + k->offset;
    switch (k->kind) {
    case KEY_ID: read_id(j, r); break;
    case KEY_PROMPT: r->prompt = json_string(j); break;
    case KEY_ADAPTER: r->adapter = json_string(j); break;
    case KEY_PROMPT_IDS: r->prompt_ids = read_ids(j, r); break;
    case KEY_STOP: read_stops(j, r); break;
    case KEY_PRIORITY: r->priority = (int32_t)(int64_t)read_whole(j, r, INT32_MAX, INT32_MAX); break;
    case KEY_SEED: r->sampling.seed = read_whole(j, r, 0, UINT64_MAX); break;
    case KEY_TOP: r->n_top = (uint32_t)read_whole(j, r, 0, FOLOLLM_TOP_MAX); break;
    case KEY_COUNT: *(uint32_t *)(void *)field = (uint32_t)read_whole(j, r, 0, UINT32_MAX); break;
    case KEY_REAL: *(float *)(void *)field = read_real(j, r, k->high); break;
    }
}

/* What a value begins with tells its type; NULL if it is that of the key, else what should stand there. */
static const char *wrong_type(json *j, const request_key *k)
{
    char c = json_peek(j);
    int is_string = c == '"', is_list = c == '[', is_number = c == '-' || (c >= '0' && c <= '9');
    switch (k->kind) {
    case KEY_ID: return is_string || is_number ? NULL : "a string or a number expected";
    case KEY_PROMPT:
    case KEY_ADAPTER: return is_string ? NULL : "a string expected";
    case KEY_PROMPT_IDS: return is_list ? NULL : "a list of numbers expected";
    case KEY_STOP: return is_string || is_list ? NULL : "a string or a list of strings expected";
    default: return is_number ? NULL : "a number expected";
    }
}

static const request_key *find_key(folollm_text name)
{
    for (size_t i = 0; i < LENGTH(request_keys); i++) {
        const request_key *k = &request_keys[i];
        if (strlen(k->name) == name.n_bytes && memcmp(k->name, name.text, name.n_bytes) == 0) {
            return k;
        }
    }
    return NULL;
}

/* One key and its value. null stands for a value that is not given; a key that means nothing here is refused, because
 * it is more often a slip than something to overlook. */
static void read_member(json *j, request *r)
{
    folollm_text name = json_key(j);
    const request_key *k = j->problem == NULL ? find_key(name) : NULL;
    unsigned bit = k != NULL ? 1u << (k - request_keys) : 0;
    const char *expected = k != NULL ? wrong_type(j, k) : NULL;
    r->key = k != NULL ? k->name : NULL;
    if (j->problem != NULL || json_null(j)) {
        return;
    } else if (k == NULL) {
        complain(r, "unknown key \"%.*s\"", name.n_bytes < 64 ? (int)name.n_bytes : 64, name.text);
    } else if (expected != NULL) {
        complain(r, "\"%s\": %s", k->name, expected);
    } else if (r->seen & bit) {
        complain(r, "\"%s\": given twice", k->name);
    } else {
        r->seen |= bit;
        read_value(j, r, k);
        return;
    }
    json_skip(j);
}

static request read_request(const folollm_sampling *defaults, const stop_list *stops, char *line, size_t n_bytes)
{
    request r = {.id = {"null", 4}, .sampling = *defaults, .stops = *stops};
    json j = json_begin(line, n_bytes);
    for (int more = json_open(&j, '{'); more; more = json_more(&j, '}')) {
        read_member(&j, &r);
        r.key = j.problem == NULL ? NULL : r.key;
    }
    json_end(&j);
    if (j.problem != NULL) {
        complain(&r, "%s%s%s%s", r.key != NULL ? "\"" : "", r.key != NULL ? r.key : "", r.key != NULL ? "\": " : "",
                 j.problem);
    } else if (!(r.seen & SEEN_ID)) {
        complain(&r, "\"id\" is missing");
    } else if (!(r.seen & SEEN_PROMPT) == !(r.seen & SEEN_IDS)) {
        complain(&r, "one of \"prompt\" and \"prompt_ids\" is needed");
    }
    return r;
}

typedef struct writing { /* an answer on its way */
    folollm_seq seq; /* 0: this place is free */
    size_t line;
    folollm_text id;
    int id_is_string;
    bytes text;
    ids tokens;
    uint32_t n_top;
    folollm_logprob *top; /* (tokens.n, n_top) */
} writing;

typedef struct named_adapter {
    char *path;
    folollm_adapter handle;
} named_adapter;

typedef struct batch_run {
    folollm *engine;
    named_adapter *adapters; /* (n_adapters) that lines have named */
    size_t n_adapters;
    const settings *s;
    folollm_sampling defaults;
    char *at, *end;       /* what is left of the input */
    size_t line, n_failed;
    writing *answers;     /* (n_places) */
    size_t n_places, n_open;
    uint64_t n_tokens;    /* generated, of all that is finished */
} batch_run;

static void print_metrics(const folollm_metrics *m)
{
    double total = (double)m->last_token_us * 1e-3;
    printf(", \"metrics\": {\"prompt_tokens\": %u, \"cached_tokens\": %u, \"output_tokens\": %u, \"preemptions\": %u, ",
           (unsigned)m->prompt_tokens, (unsigned)m->cached_tokens, (unsigned)m->output_tokens,
           (unsigned)m->preemptions);
    printf("\"wait_ms\": %.3f, \"first_token_ms\": %.3f, \"total_ms\": %.3f, \"tokens_per_s\": %.3f}}",
           (double)m->wait_us * 1e-3, (double)m->first_token_us * 1e-3, total,
           total > 0 ? m->output_tokens / total * 1e3 : 0);
}

/* Per token the most likely: [id, log probability, the same as sampled from or null if that cannot be]. */
static void print_top(const writing *w)
{
    fputs(", \"top_logprobs\": [", stdout);
    for (size_t i = 0; i < w->tokens.n * w->n_top; i++) {
        const folollm_logprob *t = &w->top[i];
        printf("%s[%d, %.9g, ", i % w->n_top != 0 ? ", " : i > 0 ? "], [" : "[", (int)t->token, (double)t->raw);
        printf(t->processed > -FLT_MAX ? "%.9g]" : "null]", (double)t->processed);
    }
    fputs(w->tokens.n > 0 ? "]]" : "]", stdout);
}

/* One line of the output; problem: NULL, or why there is not more of it. Times count from the submission on, and
 * tokens_per_s is over all of it. */
static void print_answer(batch_run *b, const writing *w, folollm_finish finish, const char *problem,
                         const folollm_metrics *metrics)
{
    static const char *const reasons[] = {"", "stop", "stop", "length", "cancelled", "deadline", "error"};
    fputs("{\"id\": ", stdout);
    if (w->id_is_string) {
        json_write_string(stdout, w->id);
    } else {
        fwrite(w->id.text, 1, w->id.n_bytes, stdout);
    }
    fputs(", \"token_ids\": [", stdout);
    for (size_t i = 0; i < w->tokens.n; i++) {
        printf("%s%d", i > 0 ? ", " : "", (int)w->tokens.data[i]);
    }
    fputs("], \"text\": ", stdout);
    json_write_string(stdout, (folollm_text){w->text.data, w->text.n});
    if (w->n_top > 0) {
        print_top(w);
    }
    printf(", \"finish_reason\": \"%s\"", reasons[finish]);
    if (problem != NULL) {
        char text[320];
        int n = snprintf(text, sizeof text, "line %zu: %s", w->line, problem);
        fputs(", \"error\": ", stdout);
        json_write_string(stdout, (folollm_text){text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1});
        b->n_failed++;
    }
    print_metrics(metrics);
    write_text("\n", 1);
}

/* The adapter of a path, loaded when it is named first; "": none. 0 with the problem in r: it is no adapter. */
static folollm_adapter find_adapter(batch_run *b, request *r, const char *path, size_t n)
{
    folollm_error error;
    named_adapter a = {NULL, 0};
    for (size_t i = 0; i < b->n_adapters; i++) {
        if (strlen(b->adapters[i].path) == n && memcmp(b->adapters[i].path, path, n) == 0) {
            return b->adapters[i].handle;
        }
    }
    if (n == 0) {
        return 0;
    }
    a.path = resize(NULL, n, 1);
    memcpy(a.path, path, n);
    a.path[n] = '\0';
    if (folollm_adapter_load(b->engine, a.path, (float)b->s->adapter_scale, &a.handle, &error) != FOLOLLM_OK) {
        complain(r, "%s", error.text);
        free(a.path);
        return 0;
    }
    b->adapters = resize(b->adapters, b->n_adapters + 1, sizeof *b->adapters);
    b->adapters[b->n_adapters++] = a;
    return a.handle;
}

/* Hand a request to the engine. Returns its sequence, or 0 and the problem in r. */
static folollm_seq submit_request(batch_run *b, request *r)
{
    folollm_error error;
    folollm_seq seq = 0;
    bytes text = {(char *)r->prompt.text, r->prompt.n_bytes};
    ids prompt = r->seen & SEEN_IDS ? r->prompt_ids : tokenize_trusted(b->engine, text);
    r->sampling.stops = r->stops.at;
    r->sampling.n_stops = r->stops.n;
    if (r->adapter.text == NULL && b->s->adapter != NULL) {
        r->adapter = (folollm_text){b->s->adapter, strlen(b->s->adapter)};
    }
    folollm_adapter adapter = find_adapter(b, r, r->adapter.text, r->adapter.n_bytes);
    folollm_submission submission = {.prompt = prompt.data, .n_prompt = prompt.n, .sampling = &r->sampling,
                                     .priority = r->priority, .tag = b->line, .n_top = r->n_top, .adapter = adapter};
    if (r->problem[0] != '\0') {
        seq = 0; /* no such adapter */
    } else if (prompt.n == 0) {
        complain(r, "the prompt has no tokens to begin with");
    } else if (folollm_submit(b->engine, &submission, &seq, &error) != FOLOLLM_OK) {
        complain(r, "%s", error.text);
    }
    if (prompt.data != r->prompt_ids.data) {
        free(prompt.data);
    }
    return seq;
}

/* The answer of this sequence; 0: a free place. */
static writing *find_answer(const batch_run *b, folollm_seq seq)
{
    writing *w = b->answers;
    while (w->seq != seq) {
        w++;
    }
    return w;
}

/* The next line of the input, whatever it holds. */
static void begin_line(batch_run *b)
{
    char *line = b->at, *end = memchr(line, '\n', (size_t)(b->end - line));
    end = end != NULL ? end : b->end;
    b->at = end < b->end ? end + 1 : end;
    b->line++;
    if (line + strspn(line, " \t\r") >= end) {
        return; /* a blank one */
    }
    request r = read_request(&b->defaults, &b->s->stops, line, (size_t)(end - line));
    writing w = {.line = b->line, .id = r.id, .id_is_string = r.id_is_string, .n_top = r.n_top};
    w.seq = r.problem[0] == '\0' ? submit_request(b, &r) : 0;
    if (w.seq != 0) {
        *find_answer(b, 0) = w;
        b->n_open++;
    } else {
        print_answer(b, &w, FOLOLLM_FINISH_ERROR, r.problem, &(folollm_metrics){0});
    }
    free(r.prompt_ids.data);
}

static void take_event(batch_run *b, const folollm_event *e)
{
    writing *w = find_answer(b, e->seq);
    append(&w->text, e->text, e->n_bytes);
    if (e->token >= 0) {
        w->tokens.data = resize(w->tokens.data, w->tokens.n + 1, sizeof *w->tokens.data);
        w->tokens.data[w->tokens.n++] = e->token;
    }
    if (e->n_top > 0) {
        w->top = resize(w->top, w->tokens.n * w->n_top, sizeof *w->top);
        memcpy(w->top + (w->tokens.n - 1) * w->n_top, e->top, e->n_top * sizeof *e->top);
    }
    if (e->finish == FOLOLLM_FINISH_NONE) {
        return;
    }
    const char *problem = e->finish == FOLOLLM_FINISH_ERROR ? folollm_status_text(e->status) : NULL;
    print_answer(b, w, e->finish, problem, &e->metrics);
    b->n_tokens += w->tokens.n;
    b->n_open--;
    free(w->text.data);
    free(w->tokens.data);
    free(w->top);
    memset(w, 0, sizeof *w);
}

/* Ctrl-C: what is there is printed, with "cancelled"; what was not begun is left out. The next Ctrl-C ends at once. */
static void stop_batch(batch_run *b)
{
    signal(SIGINT, SIG_DFL);
    b->at = b->end;
    for (size_t i = 0; i < b->n_places; i++) {
        if (b->answers[i].seq != 0) {
            folollm_cancel(b->engine, b->answers[i].seq, NULL);
        }
    }
}

static void answer_all(batch_run *b)
{
    folollm_event *events = resize(NULL, b->n_places, sizeof *events);
    folollm_error error;
    int stopped = 0;
    for (;;) {
        if (interrupted && !stopped) {
            stop_batch(b);
            stopped = 1;
        }
        while (b->at < b->end && b->n_open < b->n_places) {
            begin_line(b);
        }
        if (b->n_open == 0) {
            break;
        }
        size_t n = b->n_places;
        check(folollm_step(b->engine, NULL, events, &n, &error), &error);
        for (size_t i = 0; i < n; i++) {
            take_event(b, &events[i]);
        }
    }
    free(events);
}

/* Twice as many requests as run may wait, so that a place never stays empty. Without --pool there is KV cache for a
 * whole context each; how long that is, the model says, so it is opened with a page first. */
static folollm *open_for_batch(settings *s)
{
    enum { RUNNING = 16, CHUNK = 128, REQUESTS_MIN = 64, REQUESTS_MAX = 4096, ADAPTERS_MAX = 1024 };
    folollm_options wanted = s->engine;
    folollm_info info;
    folollm_error error;
    folollm *first, *engine;
    wanted.struct_size = sizeof wanted;
    wanted.max_seqs = 1;
    wanted.max_adapters = ADAPTERS_MAX;
    wanted.max_running = wanted.max_running != 0 ? wanted.max_running : RUNNING;
    wanted.max_requests = 3 * wanted.max_running < REQUESTS_MIN ? REQUESTS_MIN : 3 * wanted.max_running;
    wanted.max_requests = wanted.max_requests < REQUESTS_MAX ? wanted.max_requests : REQUESTS_MAX;
    if (wanted.chunk == 0 && wanted.max_running > CHUNK) {
        wanted.chunk = wanted.max_running; /* or else fewer would run */
    }
    s->engine.pool_tokens = s->engine.max_seqs = s->engine.max_requests = s->engine.max_running = s->engine.chunk = 1;
    first = open_engine(s);
    folollm_get_info(first, &info);
    if (wanted.pool_tokens == 0) {
        uint64_t pool = (uint64_t)info.context * wanted.max_running;
        wanted.pool_tokens = pool < UINT32_MAX / 2 ? (uint32_t)pool : UINT32_MAX / 2;
    }
    check(folollm_share(first, &wanted, &engine, &error), &error);
    folollm_free(first);
    return engine;
}

static void run_batch(settings *s)
{
    static const char mark[] = "\xef\xbb\xbf"; /* some editors begin a file with it */
    if (s->file == NULL) {
        misuse(s->command, "-f FILE is missing");
    }
    s->n = s->n != NOT_GIVEN ? s->n : 128;
    bytes input = read_file(s->file);
    batch_run b = {.s = s, .at = input.data, .end = input.data + input.n};
    folollm_info info;
    input.data[input.n] = '\0';
    b.at += strncmp(b.at, mark, 3) == 0 ? 3 : 0;
    b.engine = open_for_batch(s);
    folollm_get_info(b.engine, &info);
    b.defaults = choose_sampling(b.engine, s);
    b.n_places = info.max_requests;
    b.answers = resize(NULL, b.n_places, sizeof *b.answers);
    memset(b.answers, 0, b.n_places * sizeof *b.answers);
    catch_interrupts();
    double begin = seconds();
    answer_all(&b);
    print_speed("batch", b.n_tokens, seconds() - begin);
    for (size_t i = 0; i < b.n_adapters; i++) {
        free(b.adapters[i].path);
    }
    free(b.adapters);
    free(b.answers);
    free(input.data);
    folollm_free(b.engine);
    if (interrupted) {
        die("interrupted");
    }
    if (b.n_failed > 0) {
        die("%zu of %zu lines failed", b.n_failed, b.line);
    }
}

/* ---- bench --------------------------------------------------------------------------------------- */

typedef struct bench {
    const settings *s;
    folollm *engine;
    folollm_info info;
    folollm_seq *seqs;     /* (n_seqs), open all the time: a test adds to them, the next one cuts them back */
    uint32_t *lengths;     /* (n_seqs), tokens that each has now */
    size_t n_seqs;
    folollm_token *tokens; /* room for a prompt, a depth or a batch */
    double *rates, *firsts; /* (repeats), tokens per second; seconds to the first token */
    uint64_t random;
} bench;

typedef struct bench_row {
    int decode;
    uint32_t prompt, generate, batch, depth;
} bench_row;

/* SplitMix64 (Steele, Lea, Flood 2014) from a fixed seed: each run feeds the same ids. */
static void fill_random(bench *b, size_t n)
{
    uint32_t n_ids = b->info.n_tokens != 0 ? b->info.n_tokens : b->info.vocab; /* without a tokenizer every id counts */
    for (size_t i = 0; i < n; i++) {
        uint64_t x = b->random += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        b->tokens[i] = (folollm_token)((x ^ (x >> 31)) % n_ids);
    }
}

static void bench_prefill(bench *b, size_t i, uint32_t n)
{
    folollm_error error;
    check(folollm_prefill(b->engine, b->seqs[i], b->tokens, n, NULL, &error), &error);
    b->lengths[i] += n;
}

static void set_depth(bench *b, size_t i, uint32_t depth)
{
    folollm_error error;
    if (b->lengths[i] > depth) {
        check(folollm_seq_truncate(b->engine, b->seqs[i], depth, &error), &error);
        b->lengths[i] = depth;
    } else if (b->lengths[i] < depth) {
        fill_random(b, depth - b->lengths[i]);
        bench_prefill(b, i, depth - b->lengths[i]);
    }
}

/* The first token is there when it has been sampled. */
static void time_prefill(bench *b, const bench_row *row, double *rate, double *first)
{
    folollm_sampled sampled;
    folollm_error error;
    set_depth(b, 0, row->depth);
    fill_random(b, row->prompt);
    double begin = seconds();
    bench_prefill(b, 0, row->prompt);
    *rate = row->prompt / (seconds() - begin);
    check(folollm_sample(b->engine, b->seqs[0], &sampled, NULL, 0, &error), &error);
    *first = seconds() - begin;
}

/* On a device the tokens are those that it chose, which is part of its step and tells it what the next one is. On a CPU
 * they are random: choosing is a row of the sampler's own, and llama-bench does not do it either. */
static void time_decode(bench *b, const bench_row *row, double *rate)
{
    folollm_sampled sampled;
    folollm_error error;
    double time = 0;
    for (size_t i = 0; i < row->batch; i++) {
        set_depth(b, i, row->depth);
    }
    for (uint32_t n = 0; n < row->generate; n++) {
        fill_random(b, row->batch);
        double begin = seconds();
        for (size_t i = 0; i < row->batch && n > 0 && b->s->engine.device != 0; i++) {
            check(folollm_sample(b->engine, b->seqs[i], &sampled, NULL, 0, &error), &error);
            b->tokens[i] = sampled.token;
        }
        check(folollm_decode_step(b->engine, b->seqs, b->tokens, row->batch, &error), &error);
        time += seconds() - begin;
    }
    for (size_t i = 0; i < row->batch; i++) {
        b->lengths[i] += row->generate;
    }
    *rate = (double)row->batch * row->generate / time;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_json(const bench *b, const bench_row *row, double rate)
{
    printf("{\"test\": \"%s\", \"prompt\": %u, \"generate\": %u, \"batch\": %u, \"depth\": %u, \"threads\": %u, "
           "\"weights\": \"%s\", \"kv\": \"%s\", \"device\": \"%s\", \"tokens_per_s\": %.3f}",
           row->decode ? "decode" : "prefill", (unsigned)row->prompt, (unsigned)row->generate,
           (unsigned)row->batch, (unsigned)row->depth, (unsigned)b->info.n_threads, b->info.weights,
           kv_names[b->s->engine.kv], b->s->engine.device != 0 ? "cuda" : "cpu", rate);
    write_text("\n", 1);
}

/* Medians over the repeats, and the range of the speed. */
static void print_row(const bench *b, const bench_row *row)
{
    uint32_t n = b->s->repeats;
    qsort(b->rates, n, sizeof *b->rates, compare_doubles);
    qsort(b->firsts, n, sizeof *b->firsts, compare_doubles);
    double rate = b->rates[n / 2];
    char first[32] = "-", range[64];
    if (!row->decode) {
        snprintf(first, sizeof first, "%.1f", b->firsts[n / 2] * 1e3);
    }
    snprintf(range, sizeof range, "%.1f-%.1f", b->rates[0], b->rates[n - 1]);
    printf("%-8s %7u %5u %7u %10.1f %12.1f %19s %10s", row->decode ? "decode" : "prefill",
           (unsigned)(row->decode ? row->generate : row->prompt), (unsigned)row->batch, (unsigned)row->depth, rate,
           rate / row->batch, range, first);
    write_text("\n", 1);
}

static void run_row(bench *b, const bench_row *row)
{
    uint32_t untimed = b->s->repeats > 1;
    for (uint32_t i = 0; i < b->s->repeats + untimed; i++) {
        uint32_t at = i < untimed ? 0 : i - untimed; /* the first timed one overwrites the untimed one */
        if (row->decode) {
            time_decode(b, row, &b->rates[at]);
        } else {
            time_prefill(b, row, &b->rates[at], &b->firsts[at]);
        }
        if (b->s->json && i >= untimed) {
            print_json(b, row, b->rates[at]);
        }
    }
    if (!b->s->json) {
        print_row(b, row);
    }
}

static uint32_t most(const counts *list)
{
    uint32_t out = 0;
    for (size_t i = 0; i < list->n; i++) {
        out = list->at[i] > out ? list->at[i] : out;
    }
    return out;
}

enum { WARM_UP_TOKENS = 8 };

/* Room for all rows at once: every sequence of the largest batch at the greatest depth, and a prompt on one.
 * Lengths are rounded up, because a sequence takes whole pages. */
static void size_for_bench(settings *s)
{
    const uint64_t page = 64;
    uint64_t depth = most(&s->depths), batch = most(&s->batches);
    uint64_t tail = s->prompt > s->n ? s->prompt : s->n;
    uint64_t context = depth + (tail > WARM_UP_TOKENS ? tail : WARM_UP_TOKENS + 1);
    uint64_t pool = batch * ((depth + s->n) / page + 1) * page + (tail / page + 2) * page;
    if (context > UINT32_MAX || pool > UINT32_MAX) {
        die("the batches and depths need a KV cache of more tokens than there can be");
    }
    s->engine.max_seqs = (uint32_t)batch;
    s->engine.context = s->engine.context != 0 ? s->engine.context : (uint32_t)context;
    s->engine.pool_tokens = (uint32_t)pool;
}

/* Open everything, and touch all weights once: a mapped file is read at first use, which is no part of any row. */
static bench open_bench(settings *s)
{
    bench b = {.s = s, .random = 1};
    uint32_t depth = most(&s->depths), batch = most(&s->batches);
    uint32_t most_tokens = depth > s->prompt ? depth : s->prompt;
    folollm_error error;
    size_for_bench(s);
    b.engine = open_engine(s);
    folollm_get_info(b.engine, &b.info);
    b.n_seqs = batch;
    b.seqs = resize(NULL, batch, sizeof *b.seqs);
    b.lengths = resize(NULL, batch, sizeof *b.lengths);
    b.tokens = resize(NULL, (size_t)most_tokens + batch + WARM_UP_TOKENS, sizeof *b.tokens);
    b.rates = resize(NULL, s->repeats, sizeof *b.rates);
    b.firsts = resize(NULL, s->repeats, sizeof *b.firsts);
    for (size_t i = 0; i < batch; i++) {
        b.lengths[i] = 0;
        b.firsts[0] = 0;
        check(folollm_seq_open(b.engine, NULL, &b.seqs[i], &error), &error);
    }
    set_depth(&b, 0, WARM_UP_TOKENS);
    check(folollm_decode_step(b.engine, b.seqs, b.tokens, 1, &error), &error);
    b.lengths[0]++;
    return b;
}

static void print_bench_head(const bench *b)
{
    const folollm_memory *m = &b->info.memory;
    printf("%s, %s weights, %s KV, %u threads, %s kernels, chunk %u; %.1f MiB allocated, %.1f MiB mapped\n",
           b->info.architecture, b->info.weights, kv_names[b->s->engine.kv], (unsigned)b->info.n_threads,
           b->info.kernels, (unsigned)b->info.chunk, (double)m->allocated / 1048576, (double)m->mapped / 1048576);
    printf("%-8s %7s %5s %7s %10s %12s %19s %10s\n", "test", "tokens", "batch", "depth", "tokens/s",
           "per sequence", "range", "first ms");
}

static void run_bench(settings *s)
{
    s->n = s->n != NOT_GIVEN ? s->n : 128;
    bench b = open_bench(s);
    if (!s->json) {
        print_bench_head(&b);
    }
    for (size_t d = 0; d < s->depths.n; d++) {
        bench_row prefill = {0, s->prompt, 0, 1, s->depths.at[d]};
        if (s->prompt > 0) {
            run_row(&b, &prefill);
        }
        for (size_t i = 0; i < s->batches.n && s->n > 0; i++) {
            bench_row decode = {1, 0, s->n, s->batches.at[i], s->depths.at[d]};
            run_row(&b, &decode);
        }
    }
    free(b.seqs);
    free(b.lengths);
    free(b.tokens);
    free(b.rates);
    free(b.firsts);
    folollm_free(b.engine);
}

/* ---- perplexity ---------------------------------------------------------------------------------- */

/* Minus the natural log of the probability of a token, in double: over a long text float errors add up. */
static double surprise(const float *logits, size_t vocab, folollm_token token)
{
    double highest = (double)logits[0], sum = 0;
    for (size_t i = 1; i < vocab; i++) {
        highest = (double)logits[i] > highest ? (double)logits[i] : highest;
    }
    for (size_t i = 0; i < vocab; i++) {
        sum += exp((double)logits[i] - highest);
    }
    return highest + log(sum) - (double)logits[token];
}

typedef struct perplexity {
    folollm *engine;
    folollm_seq seq;
    size_t vocab, chunk;
    float *logits; /* (chunk, vocab) */
    double nats;   /* of all tokens scored so far */
} perplexity;

/* Read text.data[begin, end) as one window, and score those of its tokens that stand at `scored` or after. */
static void read_window(perplexity *p, ids text, size_t begin, size_t scored, size_t end)
{
    folollm_error error;
    size_t unscored = scored - 1; /* the logits after token i score token i + 1 */
    check(folollm_seq_truncate(p->engine, p->seq, 0, &error), &error);
    if (unscored > begin) {
        check(folollm_prefill(p->engine, p->seq, text.data + begin, unscored - begin, NULL, &error), &error);
    }
    for (size_t i = unscored; i + 1 < end;) {
        size_t n = end - 1 - i < p->chunk ? end - 1 - i : p->chunk;
        check(folollm_prefill(p->engine, p->seq, text.data + i, n, p->logits, &error), &error);
        for (size_t row = 0; row < n; row++) {
            p->nats += surprise(p->logits + row * p->vocab, p->vocab, text.data[i + row + 1]);
        }
        i += n;
    }
}

/* Windows as long as the context, each beginning in the middle of the one before: every token but the first is
 * scored once, and past the first window it has seen at least half a context. */
static void run_perplexity(settings *s)
{
    if (s->file == NULL) {
        misuse(s->command, "-f FILE is missing");
    }
    bytes input = read_file(s->file);
    bar reading = {"reading", 0, 0};
    folollm_info info;
    s->engine.max_seqs = 1;
    folollm *engine = open_engine(s);
    folollm_get_info(engine, &info);
    ids text = tokenize_trusted(engine, input);
    if (text.n < 2 || info.context < 2) {
        die("there is nothing to predict: it takes a text and a context of two tokens or more");
    }
    perplexity p = {.engine = engine, .vocab = info.vocab, .chunk = info.chunk};
    p.logits = resize(NULL, p.chunk, p.vocab * sizeof *p.logits);
    p.seq = open_sequence(engine, s, NULL);
    for (size_t begin = 0, scored = 1; scored < text.n; begin = scored - info.context / 2) {
        size_t end = text.n - begin < info.context ? text.n : begin + info.context;
        read_window(&p, text, begin, scored, end);
        scored = end;
        draw_bar(&reading, scored, text.n);
    }
    erase_bar(&reading);
    double mean = p.nats / (double)(text.n - 1);
    printf("perplexity %.6f\nnats per token %.6f\ntokens %zu\n", exp(mean), mean, text.n - 1);
    write_text("", 0);
    free(p.logits);
    free(text.data);
    free(input.data);
    folollm_free(engine);
}

/* ---- info ---------------------------------------------------------------------------------------- */

static void print_bytes(const char *name, uint64_t n)
{
    printf("  %-12s%14llu bytes  %10.1f MiB\n", name, (unsigned long long)n, (double)n / 1048576);
}

static void print_memory(const folollm_memory *m)
{
    puts("memory");
    print_bytes("mapped", m->mapped);
    print_bytes("weights", m->weights);
    print_bytes("tokenizer", m->tokenizer);
    print_bytes("KV cache", m->kv_cache);
    print_bytes("scratch", m->scratch);
    print_bytes("sequences", m->sequences);
    print_bytes("allocated", m->allocated);
    print_bytes("temporary", m->temporary);
    if (m->device != 0) {
        print_bytes("on the device", m->device);
    }
}

static void print_count(const char *name, uint64_t n)
{
    printf("%-16s%llu\n", name, (unsigned long long)n);
}

static void print_model(const folollm_info *i)
{
    printf("%-16s%s\n", "architecture", i->architecture);
    printf("%-16s%s\n", "weights", i->weights);
    printf("%-16s%s\n", "stored", i->stored);
    if (i->quantised[0] != 0) {
        printf("%-16s%s\n", "quantised", i->quantised);
    }
    printf("%-16s%s\n", "chat format", i->chat_format[0] != '\0' ? i->chat_format : "none that is known");
    print_count("parameters", i->n_params);
    print_count("layers", i->n_layers);
    print_count("dim", i->dim);
    print_count("heads", i->n_heads);
    print_count("KV heads", i->n_kv_heads);
    print_count("head dim", i->head_dim);
    print_count("FFN dim", i->ffn_dim);
    print_count("vocabulary", i->vocab);
    print_count("tokens known", i->n_tokens);
    printf("%-16s%d\n%-16s%d\n", "BOS", (int)i->bos, "EOS", (int)i->eos);
    print_count("model context", i->model_context);
}

/* The plan comes first: it is what one wants to know of a model that then does not fit. */
static void run_info(settings *s)
{
    folollm_memory memory;
    folollm_info info;
    folollm_error error;
    s->engine.struct_size = sizeof s->engine;
    check(folollm_plan(s->model, &s->engine, &memory, &error), &error);
    print_memory(&memory);
    folollm *engine = open_engine(s);
    folollm_get_info(engine, &info);
    print_model(&info);
    print_count("context", info.context);
    print_count("sequences", info.max_seqs);
    print_count("chunk", info.chunk);
    print_count("threads", info.n_threads);
    printf("%-16s%s\n", "kernels", info.kernels);
    if (info.device[0] != 0) {
        printf("%-16s%s\n", "device", info.device);
    }
    printf("%-16s%u x %u tokens, %s\n", "KV pages", (unsigned)info.n_pages, (unsigned)info.page_tokens,
           kv_names[s->engine.kv]);
    print_count("KV per token", info.kv_token_bytes);
    write_text("", 0);
    folollm_free(engine);
}

/* ---- quantize ------------------------------------------------------------------------------------ */

static char *join(const char *a, const char *between, const char *b)
{
    size_t n = strlen(a) + strlen(between) + strlen(b) + 1;
    char *path = malloc(n);
    if (path == NULL) {
        die("no memory for a path");
    }
    snprintf(path, n, "%s%s%s", a, between, b);
    return path;
}

static void copy_file(const char *from, const char *to, const char *name)
{
    static char piece[65536];
    char *source_path = join(from, "/", name), *target_path = join(to, "/", name);
    FILE *source = fopen(source_path, "rb");
    if (source != NULL) {
        FILE *target = fopen(target_path, "wb");
        size_t n = 1;
        while (target != NULL && n > 0 && (n = fread(piece, 1, sizeof piece, source)) > 0) {
            if (fwrite(piece, 1, n, target) != n) {
                die("cannot write %s", target_path);
            }
        }
        if (target == NULL || ferror(source) || fclose(target) != 0) {
            die("cannot copy %s to %s", source_path, target_path);
        }
        fclose(source);
    }
    free(source_path);
    free(target_path);
}

static int write_piece(void *user, const void *piece, size_t n)
{
    return fwrite(piece, 1, n, user) != n;
}

/* The weights go to a file of another name first: what is called model.safetensors, or as asked for, is whole. */
static void run_quantize(settings *s)
{
    static const char *const others[] = {"config.json", "generation_config.json", "tokenizer.json",
                                         "tokenizer_config.json", "chat_template.jinja"};
    folollm_error error;
    if (s->output == NULL || s->engine.weights == FOLOLLM_WEIGHTS_AS_STORED) {
        misuse(s->command, "quantize needs -o PATH and --weights TYPE");
    }
    size_t n = strlen(s->output);
    s->engine.gguf = n >= 5 && strcmp(s->output + n - 5, ".gguf") == 0;
    if (!s->engine.gguf && mkdir(s->output, 0777) != 0 && errno != EEXIST) {
        die("cannot make the directory %s", s->output);
    }
    char *whole = s->engine.gguf ? join(s->output, "", "") : join(s->output, "/", "model.safetensors");
    char *part = join(whole, "", ".part");
    FILE *out = fopen(part, "wb");
    if (out == NULL) {
        die("cannot write %s", part);
    }
    s->engine.struct_size = sizeof s->engine;
    folollm_status status = folollm_quantize(s->model, &s->engine, write_piece, out, &error);
    int closed = fclose(out);
    if (status != FOLOLLM_OK || closed != 0) {
        remove(part);
        check(status, &error);
        die("cannot write %s", part);
    }
    for (size_t i = 0; !s->engine.gguf && i < LENGTH(others); i++) {
        copy_file(s->model, s->output, others[i]);
    }
    if (rename(part, whole) != 0) {
        die("cannot rename %s to %s", part, whole);
    }
    free(part);
    free(whole);
}

/* ---- main ---------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    settings s = {.temperature = -1, .top_p = -1, .min_p = -1, .repeat_penalty = -1, .adapter_scale = 1};
    s.n = s.top_k = s.logprobs = NOT_GIVEN;
    s.prompt = 512;
    s.repeats = 5;
    s.batches = (counts){{1}, 1};
    s.depths = (counts){{0}, 1};
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a write error, with its message */

    const char *name = argc > 1 ? argv[1] : "";
    const command *c = find_command(name);
    if (strcmp(name, "--version") == 0) {
        printf("folollm %s\n", folollm_version());
    } else if (strcmp(name, "--help") == 0 || (c != NULL && argc > 2 && strcmp(argv[2], "--help") == 0)) {
        print_help(c);
    } else if (c == NULL) {
        misuse(ALL, name[0] != '\0' ? "unknown command %s" : "no command%s", name);
    } else {
        s.command = c->bit;
        parse_options(&s, argv + 2);
        c->run(&s);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        die("cannot write the output: %s", strerror(errno));
    }
    return 0;
}
