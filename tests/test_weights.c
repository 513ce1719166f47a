/* Packed weights: what is loaded with options.weights against the same model on the weights that its blocks stand for;
 * the same bits whatever the table, threads, chunk and batch; what 8-bit activations and fewer bits cost, printed and
 * bounded.
 *
 *     cc -O2 -I. -Isrc tests/test_weights.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "random.h"

#include <stdlib.h>

#define MODEL "examples/models/tiny-shakespeare"
#define LENGTH 100

static const fl_dtype types[] = {FL_Q8_0, FL_Q8_ROW, FL_Q4_0, FL_Q4_K, FL_Q5_K, FL_Q6_K, FL_Q4_ZERO};

/* ---- A model in memory, wide enough for blocks of 256 -- */

#define DIM 256u
#define FFN 512u
#define VOCAB 300u
#define LAYERS 2u

typedef struct virtual_file {
    const char *name;
    uint8_t *bytes;
    size_t n;
} virtual_file;

static virtual_file files[4] = {{"model/config.json", NULL, 0},
                                {"model/model.safetensors", NULL, 0},
                                {"packed/config.json", NULL, 0},
                                {"packed/model.safetensors", NULL, 0}};

static void *open_file(void *user, const char *path) {
    (void)user;
    for (size_t i = 0; i < FL_COUNT(files); i++) {
        if (strcmp(files[i].name, path) == 0) {
            return &files[i];
        }
    }
    return NULL;
}

static uint64_t file_size(void *user, void *file) {
    (void)user;
    return ((virtual_file *)file)->n;
}

static int read_file(void *user, void *file, uint64_t offset, void *out, size_t n) {
    (void)user;
    memcpy(out, ((virtual_file *)file)->bytes + offset, n);
    return 0;
}

static void close_file(void *user, void *file) {
    (void)user;
    (void)file;
}

static const void *map_file(void *user, void *file) {
    (void)user;
    return ((virtual_file *)file)->bytes;
}

static const folollm_host in_memory = {
    .file_open = open_file, .file_size = file_size, .file_read = read_file, .file_close = close_file};

typedef struct writer {
    char header[8192];
    size_t n_header, n_data;
    float *data;
} writer;

static void write_tensor(writer *w, const char *name, size_t n_rows, size_t n_cols, float size) {
    size_t n = n_rows * (n_cols != 0 ? n_cols : 1);
    w->n_header += (size_t)snprintf(w->header + w->n_header, sizeof w->header - w->n_header,
                                    "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%zu", w->n_header > 1 ? "," : "", name, n_rows);
    if (n_cols != 0) {
        w->n_header += (size_t)snprintf(w->header + w->n_header, sizeof w->header - w->n_header, ",%zu", n_cols);
    }
    w->n_header += (size_t)snprintf(w->header + w->n_header, sizeof w->header - w->n_header,
                                    "],\"data_offsets\":[%zu,%zu]}", w->n_data * 4, (w->n_data + n) * 4);
    for (size_t i = 0; i < n; i++) {
        w->data[w->n_data++] = n_cols != 0 ? random_float() * size : 1 + 0.1f * random_float();
    }
}

static void make_model(void) {
    static writer w;
    static const char config[] =
        "{\"model_type\":\"qwen3\",\"vocab_size\":300,\"hidden_size\":256,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":64,\"intermediate_size\":512,"
        "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"max_position_embeddings\":512,\"tie_word_embeddings\":true}";
    static const struct {
        const char *name;
        size_t n_rows, n_cols;
    } of_layer[] = {{"input_layernorm", DIM, 0},      {"post_attention_layernorm", DIM, 0},
                    {"self_attn.q_proj", 256, DIM},   {"self_attn.k_proj", 128, DIM},
                    {"self_attn.v_proj", 128, DIM},   {"self_attn.o_proj", DIM, 256},
                    {"self_attn.q_norm", 64, 0},      {"self_attn.k_norm", 64, 0},
                    {"mlp.gate_proj", FFN, DIM},      {"mlp.up_proj", FFN, DIM},
                    {"mlp.down_proj", DIM, FFN}};
    w.data = malloc(4u * 1000 * 1000 * sizeof *w.data);
    w.header[w.n_header++] = '{';
    write_tensor(&w, "model.embed_tokens.weight", VOCAB, DIM, 0.3f);
    write_tensor(&w, "model.norm.weight", DIM, 0, 1);
    for (unsigned l = 0; l < LAYERS; l++) {
        for (size_t i = 0; i < FL_COUNT(of_layer); i++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%u.%s.weight", l, of_layer[i].name);
            write_tensor(&w, name, of_layer[i].n_rows, of_layer[i].n_cols, 0.08f);
        }
    }
    w.header[w.n_header++] = '}';
    while (w.n_header % 8 != 0) {
        w.header[w.n_header++] = ' ';
    }
    files[0].bytes = malloc(sizeof config);
    files[0].n = sizeof config - 1;
    memcpy(files[0].bytes, config, files[0].n);
    files[1].n = 8 + w.n_header + w.n_data * 4;
    files[1].bytes = malloc(files[1].n);
    uint64_t n_header = w.n_header;
    memcpy(files[1].bytes, &n_header, 8);
    memcpy(files[1].bytes + 8, w.header, w.n_header);
    memcpy(files[1].bytes + 8 + w.n_header, w.data, w.n_data * 4);
    free(w.data);
}

static folollm *open_model(const char *path, folollm_options o) {
    folollm_error error;
    folollm *f = NULL;
    if (o.host == NULL && strcmp(path, MODEL) != 0) {
        o.host = &in_memory;
    }
    o.kv = FOLOLLM_KV_F32;
    o.pool_tokens = 4096;
    if (folollm_load(path, &o, &f, &error) != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
    return f;
}

static const char *const paths[] = {"model", MODEL};
static folollm_token prompt[LENGTH];

static void prefill_all(folollm *f, float *logits) {
    folollm_seq seq = 0;
    CHECK(folollm_seq_open(f, NULL, &seq, NULL) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, prompt, LENGTH, logits, NULL) == FOLOLLM_OK);
    CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
}

/* Put what a packed matrix stands for into a model of floats. */
static void copy_values(const folollm *packed, folollm *plain) {
    fl_weights *from = &packed->checkpoint->weights, *to = &plain->checkpoint->weights;
    fl_slab *slab = malloc(sizeof *slab);
    for (size_t at = 0; at < 1 + 4 * (size_t)to->config.n_layers; at++) {
        const fl_layer *a = &from->layers[at > 0 ? (at - 1) / 4 : 0], *b = &to->layers[at > 0 ? (at - 1) / 4 : 0];
        const fl_matrix *source[] = {&a->qkv, &a->o, &a->gate_up, &a->down};
        const fl_matrix *target[] = {&b->qkv, &b->o, &b->gate_up, &b->down};
        const fl_matrix *s = at > 0 ? source[(at - 1) % 4] : &from->embedding;
        const fl_matrix *t = at > 0 ? target[(at - 1) % 4] : &to->embedding;
        for (uint32_t p = 0; p < s->n_parts; p++) {
            CHECK(fl_is_packed(s->parts[p].type) && t->parts[p].type == FL_F32);
            for (size_t row = 0; row < s->parts[p].n_rows; row++) {
                float *y = (float *)(uintptr_t)t->parts[p].data + row * s->n_cols;
                inside_open_rows(&packed->worker.cpu, &s->parts[p], s->n_cols, row, 1, slab, y, 0);
            }
        }
    }
    free(slab);
}

/* With floats, a packed model is to the bit the model of floats on the values of its blocks. */
static void test_float_mode(void) {
    for (size_t m = 0; m < FL_COUNT(paths); m++) {
        for (int w = FOLOLLM_WEIGHTS_Q8; w <= FOLOLLM_WEIGHTS_Q6_K; w++) {
            folollm_options o = {.weights = (folollm_weights)w, .float_activations = 1, .n_threads = 2};
            folollm *packed = open_model(paths[m], o);
            o.weights = FOLOLLM_WEIGHTS_F32;
            folollm *plain = open_model(paths[m], o);
            folollm_info info;
            folollm_get_info(packed, &info);
            float *a = malloc((size_t)LENGTH * info.vocab * sizeof *a), *b = malloc((size_t)LENGTH * info.vocab * sizeof *b);
            copy_values(packed, plain);
            prefill_all(packed, a);
            prefill_all(plain, b);
            CHECK(memcmp(a, b, (size_t)LENGTH * info.vocab * sizeof *a) == 0);
            CHECK(strcmp(info.weights, m == 1 && w >= FOLOLLM_WEIGHTS_Q4_K ? "mixed" : fl_dtype_name(types[w - FOLOLLM_WEIGHTS_Q8])) == 0);
            free(a);
            free(b);
            folollm_free(packed);
            folollm_free(plain);
        }
    }
}

/* The same logits from every table, thread count and chunk; a batch of forks gives what a sequence alone does. */
static void test_bits(void) {
    static const uint32_t chunks[] = {1, 5, 16, 128};
    const size_t every = SANITIZED ? 2 : 1; /* each chunk with every second pair of a type and a table */
    unsigned n = 0;
    for (size_t m = 0; m < FL_COUNT(paths); m++) {
        for (int w = FOLOLLM_WEIGHTS_Q8; w <= FOLOLLM_WEIGHTS_Q6_K; w++) {
            folollm_options o = {.weights = (folollm_weights)w, .n_threads = 1, .chunk = 7, .isa = FOLOLLM_ISA_SCALAR};
            folollm *f = open_model(paths[m], o);
            uint32_t vocab = f->checkpoint->weights.config.vocab;
            size_t bytes = (size_t)LENGTH * vocab * sizeof(float);
            float *first = malloc(bytes), *y = malloc(bytes);
            prefill_all(f, first);
            folollm_free(f);
            for (int isa = FOLOLLM_ISA_AVX2; isa <= FOLOLLM_ISA_NEON; isa++) {
                size_t c = (size_t)(w + isa) % every;
                for (; c < FL_COUNT(chunks) && fl_kernels_of((folollm_isa)isa) != NULL; c += every, n++) {
                    o.isa = (folollm_isa)isa;
                    o.chunk = chunks[c];
                    o.n_threads = 1 + (uint32_t)c % 3;
                    f = open_model(paths[m], o);
                    prefill_all(f, y);
                    CHECK(memcmp(first, y, bytes) == 0);
                    folollm_free(f);
                }
            }
            o = (folollm_options){.weights = (folollm_weights)w, .n_threads = 2, .max_seqs = 24};
            f = open_model(paths[m], o);
            folollm_seq seqs[24];
            folollm_token tokens[24];
            size_t at[24];
            for (uint32_t i = 0; i < 24; i++) {
                at[i] = 1 + random_below(LENGTH - 30);
                CHECK(folollm_seq_open(f, NULL, &seqs[i], NULL) == FOLOLLM_OK);
                CHECK(folollm_prefill(f, seqs[i], prompt, at[i], NULL, NULL) == FOLOLLM_OK);
            }
            for (uint32_t batch = 1; batch <= 24; batch++) {
                for (uint32_t i = 0; i < batch; i++) {
                    tokens[i] = prompt[at[i]];
                }
                CHECK(folollm_decode_step(f, seqs, tokens, batch, NULL) == FOLOLLM_OK);
                for (uint32_t i = 0; i < batch; i++) {
                    const float *logits = NULL;
                    CHECK(folollm_logits(f, seqs[i], &logits, NULL) == FOLOLLM_OK);
                    CHECK(logits != NULL && memcmp(logits, first + at[i] * vocab, vocab * sizeof *logits) == 0);
                    at[i]++;
                }
            }
            folollm_free(f);
            free(first);
            free(y);
        }
    }
    printf("bits: %u engines beside the scalar one\n", n);
}

/* ---- Quantised checkpoints -- */

static unsigned writes_left;

static int append(void *user, const void *bytes, size_t n) {
    virtual_file *file = user;
    if (writes_left-- == 0) {
        writes_left = 0;
        return 1;
    }
    memcpy(file->bytes + file->n, bytes, n);
    file->n += n;
    return 0;
}

/* What folollm_quantize writes loads again, copied and mapped, to the same bits as converting while loading; a host
 * that cannot write is told so; what is damaged is refused. */
static void test_quantize(void) {
    folollm_error error;
    virtual_file *out = &files[3];
    files[2].bytes = files[0].bytes;
    files[2].n = files[0].n;
    out->bytes = malloc(files[1].n + 65536);
    for (int w = FOLOLLM_WEIGHTS_F32; w <= FOLOLLM_WEIGHTS_Q6_K; w++) {
        folollm_options o = {.host = &in_memory, .weights = (folollm_weights)w, .n_threads = 2};
        unsigned n_writes = 0;
        float *a = malloc((size_t)LENGTH * VOCAB * sizeof *a), *b = malloc((size_t)LENGTH * VOCAB * sizeof *b);
        for (writes_left = 0; n_writes < 100; writes_left = ++n_writes) {
            out->n = 0;
            folollm_status status = folollm_quantize("model", &o, append, out, &error);
            if (status == FOLOLLM_OK) {
                break;
            }
            CHECK(status == FOLOLLM_E_IO);
        }
        CHECK(n_writes > 20 && n_writes < 100 && out->n % 64 == 0);
        folollm *f = open_model("model", o);
        prefill_all(f, a);
        folollm_free(f);
        for (int mapped = 0; mapped < 2; mapped++) {
            folollm_host host = in_memory;
            host.file_map = mapped ? map_file : NULL;
            f = open_model("packed", (folollm_options){.host = &host});
            folollm_info info;
            folollm_get_info(f, &info);
            CHECK((info.memory.mapped > 0) == mapped && info.n_params == 1257984);
            prefill_all(f, b);
            CHECK(memcmp(a, b, (size_t)LENGTH * VOCAB * sizeof *a) == 0);
            folollm_free(f);
        }
        if (w >= FOLOLLM_WEIGHTS_Q8) {
            folollm_options other = {.host = &in_memory, .weights = FOLOLLM_WEIGHTS_Q8_ROW};
            CHECK(folollm_load("packed", &other, &f, &error) ==
                  (w == FOLOLLM_WEIGHTS_Q8_ROW ? FOLOLLM_OK : FOLOLLM_E_UNSUPPORTED));
            if (w == FOLOLLM_WEIGHTS_Q8_ROW) {
                folollm_free(f);
            }
            char *shape = strstr((char *)out->bytes + 8, "\"shape\":[");
            shape[9]++; /* another number of panels: also not what the bytes say */
            CHECK(folollm_load("packed", &(folollm_options){.host = &in_memory}, &f, &error) == FOLOLLM_E_FORMAT);
        }
        free(a);
        free(b);
    }
    CHECK(folollm_quantize("model", &(folollm_options){.host = &in_memory}, NULL, NULL, &error) == FOLOLLM_E_ARGUMENT);
    CHECK(folollm_quantize("nothing", &(folollm_options){.host = &in_memory}, append, out, &error) == FOLOLLM_E_IO);
    free(out->bytes);
}

/* ---- Quality -- */

typedef struct quality {
    double nmse, mean, max, same_top;
    unsigned clear; /* other most likely tokens where the first led by more than any logit moved */
} quality;

/* Also the most likely, and by how much it leads. */
static double log_sum(const float *x, uint32_t n, uint32_t *top, double *lead) {
    double sum = 0;
    *top = 0;
    for (uint32_t i = 0; i < n; i++) {
        *top = x[i] > x[*top] ? i : *top;
    }
    *lead = INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        *lead = i != *top && (double)x[*top] - (double)x[i] < *lead ? (double)x[*top] - (double)x[i] : *lead;
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - (double)x[*top]);
    }
    return log(sum) + (double)x[*top];
}

static quality compare(const float *a, const float *b, size_t n_rows, uint32_t vocab) {
    quality q = {0, 0, 0, 0, 0};
    double error = 0, size = 0, moved = 0, lead, ignored;
    for (size_t i = 0; i < n_rows * vocab; i++) {
        double move = fabs((double)a[i] - (double)b[i]);
        moved = move > moved ? move : moved;
    }
    for (size_t r = 0; r < n_rows; r++, a += vocab, b += vocab) {
        uint32_t top_a, top_b;
        double log_a = log_sum(a, vocab, &top_a, &lead), log_b = log_sum(b, vocab, &top_b, &ignored), divergence = 0;
        q.clear += top_a != top_b && lead > moved;
        for (uint32_t i = 0; i < vocab; i++) {
            double p = (double)a[i] - log_a;
            divergence += exp(p) * (p - ((double)b[i] - log_b));
            error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
            size += (double)a[i] * (double)a[i];
        }
        q.mean += divergence / (double)n_rows;
        q.max = divergence > q.max ? divergence : q.max;
        q.same_top += (top_a == top_b) / (double)n_rows;
    }
    q.nmse = error / size;
    return q;
}

#define TEXTS 8
#define WRITTEN 128

/* Logits of an engine over texts that the shipped model wrote itself, at temperature 1, from another first token. */
static void judge(folollm_options o, folollm_token texts[TEXTS][WRITTEN], float *logits) {
    folollm *f = open_model(MODEL, o);
    uint32_t vocab = f->checkpoint->weights.config.vocab;
    for (size_t t = 0; t < TEXTS; t++) {
        folollm_seq seq = 0;
        CHECK(folollm_seq_open(f, NULL, &seq, NULL) == FOLOLLM_OK);
        CHECK(folollm_prefill(f, seq, texts[t], WRITTEN, logits + t * WRITTEN * vocab, NULL) == FOLOLLM_OK);
        CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    }
    folollm_free(f);
}

static void write_texts(folollm_token texts[TEXTS][WRITTEN]) {
    folollm *f = open_model(MODEL, (folollm_options){.n_threads = 2});
    for (size_t t = 0; t < TEXTS; t++) {
        folollm_sampling sampling = {.temperature = 1, .seed = t, .ignore_eos = 1};
        folollm_seq seq = 0;
        CHECK(folollm_seq_open(f, &sampling, &seq, NULL) == FOLOLLM_OK);
        for (size_t i = 0; i < WRITTEN; i++) {
            folollm_sampled s = {.token = (folollm_token)t + 1};
            CHECK(i == 0 || folollm_sample(f, seq, &s, NULL, 0, NULL) == FOLOLLM_OK);
            texts[t][i] = s.token;
            CHECK(folollm_prefill(f, seq, &s.token, 1, NULL, NULL) == FOLOLLM_OK);
        }
        CHECK(folollm_seq_close(f, seq, NULL) == FOLOLLM_OK);
    }
    folollm_free(f);
}

/* Of the texts, each token after those before it. */
static double perplexity(folollm_token texts[TEXTS][WRITTEN], const float *logits, uint32_t vocab) {
    double sum = 0, ignored;
    for (size_t t = 0; t < TEXTS; t++) {
        for (size_t i = 0; i + 1 < WRITTEN; i++) {
            const float *row = logits + (t * WRITTEN + i) * vocab;
            uint32_t top;
            sum += log_sum(row, vocab, &top, &ignored) - (double)row[texts[t][i + 1]];
        }
    }
    return exp(sum / (TEXTS * (WRITTEN - 1)));
}

static void test_quality(void) {
    static folollm_token texts[TEXTS][WRITTEN];
    static const double most[] = {5e-4, 5e-4, 0.04, 0.04, 0.01, 0.002}; /* mean divergence from f32, by type */
    uint32_t vocab = 1024;
    size_t n = TEXTS * WRITTEN;
    float *exact = malloc(n * vocab * sizeof *exact), *floats = malloc(n * vocab * sizeof *floats);
    float *integers = malloc(n * vocab * sizeof *integers);
    write_texts(texts);
    judge((folollm_options){.weights = FOLOLLM_WEIGHTS_F32}, texts, exact);
    double best = perplexity(texts, exact, vocab);
    printf("f32     perplexity %.3f\n", best);
    for (int w = FOLOLLM_WEIGHTS_Q8; w <= FOLOLLM_WEIGHTS_Q6_K; w++) {
        judge((folollm_options){.weights = (folollm_weights)w, .float_activations = 1}, texts, floats);
        judge((folollm_options){.weights = (folollm_weights)w}, texts, integers);
        quality activations = compare(floats, integers, n, vocab), all = compare(exact, integers, n, vocab);
        double confusion = perplexity(texts, integers, vocab);
        printf("%-7s perplexity %.3f; from f32: NMSE %.2g, KLD mean %.2g, max %.2g, same top %.2f %%; by 8-bit activations alone: "
               "NMSE %.2g, KLD mean %.2g, same top %.2f %%\n", fl_dtype_name(types[w - FOLOLLM_WEIGHTS_Q8]), confusion,
               all.nmse, all.mean, all.max, 100 * all.same_top, activations.nmse, activations.mean, 100 * activations.same_top);
        CHECK(activations.nmse <= 1e-3 && activations.mean <= 2e-3 && activations.clear == 0 && activations.same_top >= 0.97);
        CHECK(all.mean <= most[w - FOLOLLM_WEIGHTS_Q8]);
        CHECK(confusion < best * (1 + 2 * most[w - FOLOLLM_WEIGHTS_Q8]));
    }
    free(exact);
    free(floats);
    free(integers);
}

/* Weights of plain types are those of the file, rounded once. */
static void test_plain_types(void) {
    folollm *f32 = open_model("model", (folollm_options){.weights = FOLOLLM_WEIGHTS_AS_STORED});
    static const folollm_weights plain[] = {FOLOLLM_WEIGHTS_F32, FOLOLLM_WEIGHTS_F16, FOLOLLM_WEIGHTS_BF16};
    for (size_t i = 0; i < FL_COUNT(plain); i++) {
        folollm *f = open_model("model", (folollm_options){.weights = plain[i], .n_threads = 3});
        const fl_matrix *a = &f32->checkpoint->weights.layers[1].down, *b = &f->checkpoint->weights.layers[1].down;
        size_t n = a->n_rows * a->n_cols;
        float *y = malloc(n * sizeof *y);
        const float *x = a->parts[0].data;
        fl_to_float(b->parts[0].type, b->parts[0].data, n, y);
        for (size_t k = 0; k < n; k++) {
            float rounded = i == 0   ? x[k]
                            : i == 1 ? fl_float_of_f16(fl_f16_of_float(x[k]))
                                     : fl_float_of_bf16(fl_bf16_of_float(x[k]));
            CHECK(y[k] == rounded);
        }
        free(y);
        folollm_free(f);
    }
    folollm_free(f32);
}

int main(void) {
    make_model();
    for (size_t i = 0; i < LENGTH; i++) {
        prompt[i] = (folollm_token)random_below(VOCAB);
    }
    test_plain_types();
    test_float_mode();
    test_bits();
    test_quantize();
    if (!SANITIZED) { /* how near numbers are, by engines that are as those above */
        test_quality();
    }
    free(files[0].bytes);
    free(files[1].bytes);
    return check_finish();
}
