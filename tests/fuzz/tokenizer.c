/* tokenizer.json; behind a byte 0xFF tokenizer_config.json; behind another one a text. A tokenizer that opens takes
 * what was planned, turns texts into ids that it has, makes no control token of a text that nobody vouches for, and
 * needs no more room for a piece than it says. */
#include "fuzz.h"

#include "text.h"

/* Nodes of JSON, and the maps of the vocabulary and the merges; ids that may be far apart; the tables of merging. */
#define READING (128 * size + 640 * FUZZ_KIB)
/* Replace may make a text 32 times as long, a normal form 11 times; ids, links and a heap for each of its bytes. */
#define USING (FUZZ_TEXT * 16 * FUZZ_KIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes text = {data, size}, json = fuzz_part(&text), config = fuzz_part(&text);
    fl_memory m;
    fl_tokenizer *t = NULL;
    uint64_t planned = 0, kept = 0;
    fuzz_begin(READING);
    fuzz_forget_error();
    fuzz_file("mem/tokenizer.json", json);
    if (config.n > 0) {
        fuzz_file("mem/tokenizer_config.json", config);
    }
    fl_memory_init(&m, &fuzz.hooks);
    folollm_status status = fuzz_status(fl_tokenizer_open(&m, "mem", &t, &kept, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT || status == FOLOLLM_E_UNSUPPORTED);
    if (status == FOLOLLM_OK) {
        FUZZ_CHECK(kept == m.live);
        fuzz.limit = fuzz.live + USING;
        fuzz_use_tokenizer(t, &m, text);
        FUZZ_CHECK(kept == m.live);
        fl_tokenizer_close(&m, t);
        if (size % 8 == 0) {
            FUZZ_CHECK(fl_tokenizer_open(&m, "mem", NULL, &planned, NULL) == FOLOLLM_OK && planned == kept);
        }
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
