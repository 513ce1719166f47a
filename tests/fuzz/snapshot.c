/* Snapshots: the engine below saves a sequence, the fuzzer changes it, and the engine restores it or refuses, from
 * memory and from a stream alike. Restoring allocates nothing; what was refused leaves the pages as they were; what was
 * restored is saved to the same bytes as often as it is restored from them, and goes on. Most inputs get right
 * checksums, so that the checks behind those are met. */
#include "fuzz.h"

#define VOCAB 12u
#define CONTEXT 40u

static const char config[] =
    "{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":2,\"num_attention_heads\":1,"
    "\"num_key_value_heads\":1,\"head_dim\":2,\"intermediate_size\":1,\"vocab_size\":12,"
    "\"max_position_embeddings\":64,\"tie_word_embeddings\":true}";

static const char tokenizer[] =
    "{\"added_tokens\":[{\"id\":11,\"content\":\"<e>\",\"special\":true}],\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"\\u00c3\":3,\"\\u00a9\":4,\"d\":5,\"e\":6,"
    "\"f\":7,\"g\":8,\"h\":9,\"ab\":10},\"merges\":[\"a b\"]}}";

static const struct {
    const char *name;
    unsigned rows, cols; /* cols 0: a vector */
} shapes[] = {
    {"embed_tokens", VOCAB, 2}, {"layers.0.input_layernorm", 2, 0}, {"layers.0.self_attn.q_proj", 2, 2},
    {"layers.0.self_attn.k_proj", 2, 2}, {"layers.0.self_attn.v_proj", 2, 2}, {"layers.0.self_attn.o_proj", 2, 2},
    {"layers.0.post_attention_layernorm", 2, 0}, {"layers.0.mlp.gate_proj", 1, 2}, {"layers.0.mlp.up_proj", 1, 2},
    {"layers.0.mlp.down_proj", 2, 1}, {"norm", 2, 0},
};

static folollm *engine;
static uint8_t saved[16384]; /* what a sequence of some tokens is saved to */
static size_t n_saved;
static uint32_t n_free;

static size_t put_weights(uint8_t *out, size_t room) {
    size_t n = 8, at = 0;
    for (size_t i = 0; i < FL_COUNT(shapes); i++) {
        size_t bytes = 4u * shapes[i].rows * (shapes[i].cols != 0 ? shapes[i].cols : 1);
        n += (size_t)snprintf((char *)out + n, room - n, "%s\"model.%s.weight\":{\"dtype\":\"F32\",\"shape\":[%u%s",
                              i == 0 ? "{" : ",", shapes[i].name, shapes[i].rows,
                              shapes[i].cols == 0 ? "" : shapes[i].cols == 1 ? ",1" : ",2");
        n += (size_t)snprintf((char *)out + n, room - n, "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    out[n++] = '}';
    for (size_t i = 0; i < 8; i++) {
        out[i] = (uint8_t)((n - 8) >> (8 * i));
    }
    for (size_t i = 0; i < at; i += 4) {
        float value = (float)(i * 37 % 101) / 101 - 0.4f;
        memcpy(out + n + i, &value, sizeof value);
    }
    return n + at;
}

static void must(folollm_status status) {
    FUZZ_CHECK(status == FOLOLLM_OK);
}

/* A sequence of two pages with everything that sampling has. */
static void save_one(void) {
    static const folollm_bias biases[] = {{1, 0.5f}, {2, -1}};
    static const folollm_token stop_ids[] = {3};
    static const folollm_text stops[] = {{"ba", 2}, {"xyz", 3}};
    const folollm_sampling sampling = {.temperature = 0.7f, .top_k = 5, .top_p = 0.9f, .min_p = 0.01f, .seed = 7,
                                       .repetition_penalty = 1.1f, .frequency_penalty = 0.1f, .presence_penalty = 0.1f,
                                       .biases = biases, .n_biases = 2, .stop_ids = stop_ids, .n_stop_ids = 1,
                                       .stops = stops, .n_stops = 2, .min_tokens = 1, .max_tokens = 30};
    folollm_token tokens[FL_PAGE_TOKENS + 3];
    folollm_seq seq;
    for (size_t i = 0; i < FL_COUNT(tokens); i++) {
        tokens[i] = (folollm_token)(i * 5 % VOCAB);
    }
    must(folollm_seq_open(engine, &sampling, &seq, &fuzz_error));
    must(folollm_prefill(engine, seq, tokens, FL_COUNT(tokens) - 2, NULL, &fuzz_error));
    must(folollm_decode_step(engine, &seq, tokens, 1, &fuzz_error));
    n_saved = sizeof saved;
    must(folollm_seq_save(engine, seq, saved, &n_saved, &fuzz_error));
    must(folollm_seq_close(engine, seq, &fuzz_error));
    n_free = engine->pages.n_free;
}

static void open_engine(void) {
    static uint8_t weights[4096];
    folollm_options o = {.host = &fuzz.hooks, .context = CONTEXT, .pool_tokens = 2 * CONTEXT + 2 * FL_PAGE_TOKENS,
                         .max_seqs = 2, .max_requests = 1, .max_running = 1, .chunk = 4, .n_threads = 1,
                         .isa = FOLOLLM_ISA_SCALAR, .kv = FOLOLLM_KV_F32};
    fuzz_begin(1024 * FUZZ_KIB);
    fuzz_file("mem/config.json", (fuzz_bytes){(const uint8_t *)config, sizeof config - 1});
    fuzz_file("mem/tokenizer.json", (fuzz_bytes){(const uint8_t *)tokenizer, sizeof tokenizer - 1});
    fuzz_file("mem/model.safetensors", (fuzz_bytes){weights, put_weights(weights, sizeof weights)});
    must(folollm_load("mem", &o, &engine, &fuzz_error));
    save_one();
}

/* ---- An execution -- */

static int read_input(void *user, void *bytes, size_t n) {
    fuzz_bytes *in = user;
    FUZZ_CHECK(n >= 1 && n <= 8192);
    if (n > in->n) {
        return 1;
    }
    memcpy(bytes, in->at, n);
    in->at += n;
    in->n -= n;
    return 0;
}

/* Saved twice it is the same; then a token is chosen and computed. */
static void use(folollm_seq seq) {
    static uint8_t first[sizeof saved], second[sizeof saved];
    size_t n_first = sizeof first, n_second = sizeof second;
    folollm_seq again;
    folollm_sampled next;
    must(folollm_seq_save(engine, seq, first, &n_first, &fuzz_error));
    must(folollm_seq_restore(engine, first, n_first, &again, &fuzz_error));
    must(folollm_seq_save(engine, again, second, &n_second, &fuzz_error));
    FUZZ_CHECK(n_first == n_second && memcmp(first, second, n_first) == 0);
    must(folollm_seq_close(engine, again, &fuzz_error));
    folollm_status status = fuzz_status(folollm_sample(engine, seq, &next, NULL, 0, &fuzz_error));
    if (status == FOLOLLM_OK) {
        FUZZ_CHECK(next.token >= 0 && (uint32_t)next.token < VOCAB);
        FUZZ_CHECK(fl_utf8_valid_prefix(next.text, next.n_bytes) == next.n_bytes);
        fuzz_status(folollm_decode_step(engine, &seq, &next.token, 1, &fuzz_error));
    }
}

static void check_engine(void) {
    FUZZ_CHECK(engine->pages.n_free == n_free && engine->pages.n_shared == 0 && engine->sequences.n_open == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (engine == NULL) {
        open_engine();
    }
    fuzz_begin(0);
    fuzz_forget_error();
    folollm_seq seq = 0, streamed = 0;
    fuzz_bytes stream = {data, size};
    folollm_status status = fuzz_status(folollm_seq_restore(engine, data, size, &seq, &fuzz_error));
    if (status == FOLOLLM_OK) {
        use(seq);
        must(folollm_seq_close(engine, seq, &fuzz_error));
    }
    check_engine();
    folollm_status other = fuzz_status(folollm_seq_restore_from(engine, read_input, &stream, &streamed, &fuzz_error));
    FUZZ_CHECK(status != FOLOLLM_OK || (other == FOLOLLM_OK && stream.n == 0)); /* a stream may go on, or end early */
    if (other == FOLOLLM_OK) {
        must(folollm_seq_close(engine, streamed, &fuzz_error));
    }
    check_engine();
    fuzz_end();
    return 0;
}

/* ---- Mutation -- */

static void put_u64(uint8_t *at, uint64_t value) {
    for (size_t i = 0; i < 8; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

/* Lengths, the model's fingerprint and checksums as they follow from the rest. */
static void repair(uint8_t *data, size_t size, unsigned seed) {
    const size_t sections = 8 + 4 + 4 + 8 + 6 * 4, behind = sections + FL_SECTIONS * 16;
    size_t at = FL_SNAPSHOT_HEADER;
    memcpy(data, saved, sections - 8); /* up to the number of tokens */
    memcpy(data + behind, saved + behind, FL_SNAPSHOT_HEADER - behind);
    for (size_t i = 0; i < FL_SECTIONS; i++) {
        uint8_t *section = data + sections + 16 * i;
        uint64_t n = fl_load_u64(section);
        if (i == FL_SECTION_TOKENS && seed % 2 == 0) {
            n = 4 * (uint64_t)fl_load_u32(data + sections - 8);
        }
        n = n > size - at || (i == FL_SECTIONS - 1 && seed % 4 != 0) ? size - at : n;
        put_u64(section, n);
        put_u64(section + 8, fl_checksum(data + at, (size_t)n));
        at += (size_t)n;
    }
    put_u64(data + FL_SNAPSHOT_HEADER - 8, fl_checksum(data, FL_SNAPSHOT_HEADER - 8));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
    const size_t sampling = FL_SNAPSHOT_HEADER + 4 * (FL_PAGE_TOKENS + 2), head = FL_SNAPSHOT_HEADER;
    if (engine == NULL) {
        open_engine();
    }
    if (size < head || seed % 64 == 0) { /* begin with one that is right */
        size = n_saved <= room ? n_saved : size;
        memcpy(data, saved, size);
    }
    if (size < head || seed % 8 == 1) {
        size = LLVMFuzzerMutate(data, size, room);
    } else if (seed % 8 == 2) { /* the numbers of tokens and the lengths */
        LLVMFuzzerMutate(data + 40, head - 8 - 40, head - 8 - 40);
    } else if (seed % 8 < 6 && size > sampling + 150) { /* how it is sampled */
        LLVMFuzzerMutate(data + sampling, 150, 150);
    } else {
        size = head + LLVMFuzzerMutate(data + head, size - head, room - head);
    }
    if (size >= head && seed % 16 != 1) {
        repair(data, size, seed / 64);
    }
    return size;
}
