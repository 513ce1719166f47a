/* The tokenizer, the chat template and the ids that end a text in the metadata of a GGUF file. "text" in it is a text
 * for the tokenizer. What holds of a tokenizer.json holds here: tokenizer.c. */
#include "fuzz.h"

#include "gguf_mutate.h"
#include "text.h"

/* The header and its entries; the vocabulary, and cuts of pieces with their map. */
#define READING (160 * size + 64 * FUZZ_KIB)
#define USING (FUZZ_TEXT * 2 * FUZZ_KIB)

static void use(fl_memory *m, const fl_gguf *g, fl_tokenizer *t, size_t size) {
    fl_chat_template chat;
    fl_generation generation;
    fl_str text;
    folollm_status status = fuzz_status(fl_gguf_string(g, "text", &text, &fuzz_error));
    bool found = status == FOLOLLM_OK && text.n > 0;
    fuzz_bytes own = {(const uint8_t *)(found ? text.at : ""), found ? text.n : 0};
    fuzz_status(fl_chat_open_gguf(m, g, t, &chat, &fuzz_error));
    fuzz_status(fl_generation_of_gguf(&generation, g, t, &fuzz_error));
    fuzz.limit = fuzz.live + USING + 4 * size;
    fuzz_use_tokenizer(t, m, own);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes input = {data, size};
    fl_memory m;
    fl_gguf g;
    fl_tokenizer *t = NULL;
    uint64_t kept = 0, header = 0;
    fuzz_begin(READING);
    fuzz_forget_error();
    fuzz_file("mem/m.gguf", input);
    fl_memory_init(&m, &fuzz.hooks);
    if (fuzz_status(fl_gguf_open(&m, &g, "mem/m.gguf", &fuzz_error)) == FOLOLLM_OK) {
        header = m.live;
        if (fl_tokenizer_in_gguf(&g) &&
            fuzz_status(fl_tokenizer_open_gguf(&m, &g, &t, &kept, &fuzz_error)) == FOLOLLM_OK) {
            FUZZ_CHECK(kept == m.live - header);
            use(&m, &g, t, size);
            FUZZ_CHECK(kept == m.live - header);
            fl_tokenizer_close(&m, t);
        }
        fl_gguf_close(&g);
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
