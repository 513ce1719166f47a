/* A checkpoint as Hugging Face has them: config.json, and behind a byte 0xFF model.safetensors, quantised or not. It is
 * loaded and computes two tokens. */
#include "fuzz.h"

#include "model.h"
#include "safetensors_mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes weights = {data, size}, config = fuzz_part(&weights);
    fuzz_begin(FUZZ_MODEL_LIMIT(size));
    fuzz_forget_error();
    fuzz_file("mem/config.json", config);
    fuzz_file("mem/model.safetensors", weights);
    fuzz.hooks.file_map = size % 2 == 0 ? fuzz_map : NULL;
    fuzz_load("mem", size % 4 == 0);
    fuzz_end();
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
    static uint8_t config[1024];
    fuzz_bytes rest = {data, size}, first = fuzz_part(&rest);
    size_t n = first.n;
    if (rest.n == 0 || n >= sizeof config) {
        return LLVMFuzzerMutate(data, size, room);
    }
    if (seed % 3 != 0) {
        return n + 1 + safetensors_mutate(data + n + 1, rest.n, room - n - 1, seed / 3);
    }
    memcpy(config, data, n);
    n = LLVMFuzzerMutate(config, n, fl_min(sizeof config, n + room - size));
    memmove(data + n + 1, rest.at, rest.n);
    memcpy(data, config, n);
    data[n] = 0xFF;
    return n + 1 + rest.n;
}
