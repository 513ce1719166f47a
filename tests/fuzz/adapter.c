/* A LoRA adapter of a small model: adapter_config.json, and behind a byte 0xFF adapter_model.safetensors. What is
 * accepted is finite, has the shapes of the model, and zeros where rows are filled up. */
#include "fuzz.h"

static const fl_config model = {.n_layers = 2, .dim = 4, .n_heads = 2, .n_kv_heads = 1, .head_dim = 2, .ffn_dim = 3};

static void check_rows(const float *x, size_t n_rows, size_t n) {
    for (size_t row = 0; row < n_rows; row++, x += fl_padded(n)) {
        for (size_t i = 0; i < fl_padded(n); i++) {
            FUZZ_CHECK(i < n ? fl_is_finite(x[i]) : x[i] == 0);
        }
    }
}

static void check_adapter(const fl_adapter *a) {
    const size_t shapes[FL_LINEARS][2] = {{4, 4}, {2, 4}, {2, 4}, {4, 4}, {3, 4}, {3, 4}, {4, 3}};
    size_t n = 0;
    for (size_t i = 0; i < model.n_layers * FL_LINEARS; i++) {
        const fl_low_rank *l = &a->low_ranks[i];
        FUZZ_CHECK(l->rank <= 8);
        n += l->rank;
        check_rows(l->a, l->rank, shapes[i % FL_LINEARS][1]);
        check_rows(l->b, l->rank > 0 ? shapes[i % FL_LINEARS][0] : 0, l->rank);
    }
    FUZZ_CHECK(n > 0 && a->fingerprint != 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes rest = {data, size}, first = fuzz_part(&rest);
    fl_memory m;
    fl_adapter a;
    fuzz_begin(64 * size + 16 * FUZZ_KIB);
    fuzz_forget_error();
    fuzz_file("mem/adapter_config.json", first);
    fuzz_file("mem/adapter_model.safetensors", rest);
    fl_memory_init(&m, &fuzz.hooks);
    if (fuzz_status(fl_adapter_open(&m, &a, &model, "mem", 0.5f, 8, &fuzz_error)) == FOLOLLM_OK) {
        check_adapter(&a);
        fl_adapter_close(&m, &a);
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
