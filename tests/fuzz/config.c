/* config.json, and behind a byte 0xFF generation_config.json. What is accepted is within the limits that everything
 * behind it relies on, and its rotations are finite. */
#include "fuzz.h"

static float frequencies[512], angles[1024];

static void check_rope(const fl_config *c, uint32_t context) {
    fl_rope rope = {.frequencies = frequencies, .half = c->head_dim / 2};
    fl_rope_init(&rope, c, context);
    FUZZ_CHECK(fl_is_finite(rope.scale));
    for (size_t i = 0; i < rope.half; i++) {
        FUZZ_CHECK(fl_is_finite(frequencies[i]) && frequencies[i] >= 0 && frequencies[i] <= 1);
    }
    fl_rope_angles(&rope, context - 1, angles);
    for (size_t i = 0; i < 2 * rope.half; i++) {
        FUZZ_CHECK(fl_is_finite(angles[i]));
    }
}

static void check_config(const fl_config *c) {
    const uint32_t sizes[][2] = {{c->n_layers, FL_LAYERS_MAX}, {c->dim, 1u << 17},     {c->n_heads, 4096},
                                 {c->n_kv_heads, 4096},        {c->head_dim, 1024},    {c->ffn_dim, 1u << 20},
                                 {c->vocab, 1u << 24},         {c->max_positions, 1u << 26},
                                 {c->max_context, 1u << 26}};
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        FUZZ_CHECK(sizes[i][0] >= 1 && sizes[i][0] <= sizes[i][1]);
    }
    FUZZ_CHECK(c->n_heads % c->n_kv_heads == 0 && c->head_dim % 2 == 0);
    FUZZ_CHECK(c->norm_epsilon >= 0 && c->norm_epsilon <= 1);
    FUZZ_CHECK(memchr(c->architecture, 0, sizeof c->architecture) != NULL);
    for (uint32_t layer = c->n_layers; layer < FL_LAYERS_MAX; layer++) {
        FUZZ_CHECK((c->sliding[layer / 32] >> (layer % 32) & 1) == 0);
    }
    check_rope(c, 1);
    check_rope(c, c->max_context);
}

static void check_generation(const fl_generation *g) {
    const folollm_sampling *s = &g->sampling;
    FUZZ_CHECK(g->n_eos <= FL_EOS_MAX);
    for (size_t i = 0; i < g->n_eos; i++) {
        FUZZ_CHECK(g->eos[i] >= 0);
    }
    FUZZ_CHECK(s->temperature >= 0 && s->temperature <= 100 && s->top_p >= 0 && s->top_p <= 1);
    FUZZ_CHECK(s->min_p >= 0 && s->min_p <= 1 && s->repetition_penalty >= 0 && s->repetition_penalty <= 100);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes rest = {data, size}, first = fuzz_part(&rest);
    fl_memory m;
    fl_config c;
    fl_generation g;
    fuzz_begin(21 * size + 4 * FUZZ_KIB);
    fuzz_forget_error();
    fuzz_file("mem/config.json", first);
    if (rest.n > 0) {
        fuzz_file("mem/generation_config.json", rest);
    }
    fl_memory_init(&m, &fuzz.hooks);
    if (fuzz_status(fl_config_read(&m, &c, "mem", &fuzz_error)) == FOLOLLM_OK) {
        check_config(&c);
    }
    if (fuzz_status(fl_generation_read(&m, &g, "mem", &fuzz_error)) == FOLOLLM_OK) {
        check_generation(&g);
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
