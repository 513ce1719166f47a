/* GGUF's block formats: what blocks decode to, bit by bit, and how well rows are encoded, against gguf and llama.cpp
 * (vectors/blocks.txt, made by oracle/make_blocks.py); what is decoded and encoded again; zeros, broken numbers, any
 * bits at all; several blocks at odd addresses; and that the bytes are the same on every machine.
 *
 *     cc -O2 tests/test_blocks.c -lutf8proc -lm -lpthread && ./a.out     (from the root of the repository)
 */
#include "../folollm.c"

#include "check.h"
#include "host.h"

#include <math.h>

#define SEED 20240117u
#define N_ROW 32768 /* numbers */
#define GUARD 0x5A

static const fl_dtype types[] = {FL_Q8_0, FL_Q4_0, FL_Q4_K, FL_Q5_K, FL_Q6_K};
static const char *const kinds[] = {"normal", "heavy", "outliers", "shifted", "tiny"};

static float row[N_ROW], decoded[N_ROW];
static uint8_t encoded[N_ROW * 2];

static uint64_t random_state;

static uint64_t random_bits(void) { /* SplitMix64, as make_blocks.py */
    random_state += 0x9E3779B97F4A7C15u;
    uint64_t z = random_state;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static float random_normal(void) {
    int32_t sum = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t r = random_bits();
        sum += (int32_t)(r & 65535) + (int32_t)(r >> 16 & 65535) + (int32_t)(r >> 32 & 65535) + (int32_t)(r >> 48);
    }
    return (float)(sum - 393210) / 65536;
}

static void make_row(const char *kind) {
    random_state = SEED;
    for (size_t i = 0; i < N_ROW; i++) {
        volatile float product; /* not a * (b * c), whatever the flags */
        float a = random_normal(), b = random_normal(), c = random_normal();
        product = a * b;
        bool outlier = random_bits() % 64 == 0;
        float all[] = {a, product * c, outlier ? a * 16 : a, a + 1, a * (1.0f / 262144)};
        for (size_t k = 0; k < FL_COUNT(kinds); k++) {
            row[i] = strcmp(kind, kinds[k]) == 0 ? all[k] : row[i];
        }
    }
}

static double row_error(fl_dtype type) {
    double sum = 0;
    fl_quantise(type, row, N_ROW, encoded);
    fl_dequantise(type, encoded, N_ROW, decoded);
    for (size_t i = 0; i < N_ROW; i++) {
        double off = (double)decoded[i] - (double)row[i];
        sum += off * off;
    }
    return sum / N_ROW;
}

static uint64_t fnv(const uint8_t *bytes, size_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ bytes[i]) * 0x100000001B3u;
    }
    return h;
}

/* ---- The vectors --------------------------------------------------------------------------------- */

static char *vectors; /* the rest of the line */

static const char *next_word(void) {
    char *word = vectors;
    vectors += strcspn(vectors, " ");
    if (*vectors != 0) {
        *vectors++ = 0;
    }
    return word;
}

static fl_dtype next_type(void) {
    const char *name = next_word();
    for (size_t i = 0; i < FL_COUNT(types); i++) {
        if (strcmp(name, fl_dtype_name(types[i])) == 0) {
            return types[i];
        }
    }
    CHECK_TEXT(0, name);
    return FL_DTYPE_OTHER;
}

static bool read_bytes(const char *digits, uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char two[3] = {digits[2 * i], digits[2 * i] == 0 ? (char)0 : digits[2 * i + 1], 0};
        if (two[1] == 0) {
            return false;
        }
        bytes[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    return digits[2 * n] == 0;
}

static void check_decode(void) {
    fl_dtype type = next_type();
    uint8_t bytes[1 + 256] = {GUARD};
    float y[256];
    size_t numbers = fl_block_numbers(type);
    if (!CHECK(read_bytes(next_word(), bytes + 1, fl_block_bytes(type)))) {
        return;
    }
    fl_dequantise(type, bytes + 1, numbers, y);
    if (strcmp(next_word(), "hash") == 0) {
        CHECK(strtoull(next_word(), NULL, 16) == fnv((const uint8_t *)y, numbers * sizeof *y));
        return;
    }
    for (size_t i = 0; i < numbers; i++) {
        uint32_t bits = (uint32_t)strtoul(next_word(), NULL, 16);
        CHECK(memcmp(&bits, y + i, sizeof bits) == 0);
    }
}

static void check_error(void) {
    fl_dtype type = next_type();
    const char *kind = next_word();
    double theirs = strtod(next_word(), NULL);
    make_row(kind);
    double ours = row_error(type);
    CHECK_TEXT(ours > 0 && ours <= theirs * 1.001, kind);
    printf("%s %s: mean squared error %.4g, %.3f of llama.cpp's\n", fl_dtype_name(type), kind, ours, ours / theirs);
}

static void test_vectors(void) {
    size_t n, n_decoded = 0, n_errors = 0;
    char *file = (char *)host_slurp("tests/vectors/blocks.txt", &n);
    if (!CHECK_TEXT(file != NULL, "tests/vectors/blocks.txt is there")) {
        return;
    }
    file[n] = 0; /* host_slurp leaves room for it */
    for (char *line = file, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        vectors = line;
        if (strcmp(next_word(), "decode") == 0) {
            check_decode();
            n_decoded++;
        } else {
            check_error();
            n_errors++;
        }
    }
    CHECK(n_decoded == 40 * FL_COUNT(types) && n_errors == FL_COUNT(kinds) * FL_COUNT(types));
    free(file);
}

/* ---- What no file says --------------------------------------------------------------------------- */

static void test_sizes(void) {
    static const size_t bytes[] = {34, 18, 144, 176, 210};
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        CHECK(fl_block_bytes(types[t]) == bytes[t] && fl_block_numbers(types[t]) == (t < 2 ? 32u : 256u));
    }
    CHECK(strcmp(fl_dtype_name(FL_Q8_ROW), "q8_row") == 0 && strcmp(fl_dtype_name(FL_DTYPE_OTHER), "other") == 0);
}

/* The same bytes from every compiler and processor: those of the first machine that ran this. */
static void test_same_bytes(void) {
    static const uint64_t hashes[] = {0x199171936cd882d1, 0x8e2c9af879e26d08, 0x88b3d250a4f67757, 0xfe9e0769a7225c92,
                                      0xf739bbec891132cf};
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        make_row("heavy");
        fl_quantise(types[t], row, N_ROW, encoded);
        uint64_t hash = fnv(encoded, N_ROW / fl_block_numbers(types[t]) * fl_block_bytes(types[t]));
        if (!CHECK(hash == hashes[t])) {
            printf("%s: %016llx\n", fl_dtype_name(types[t]), (unsigned long long)hash);
        }
    }
}

/* Q8_0: encoding what was decoded gives the same numbers, where the scales are not too small. */
static void test_again(void) {
    static float first[N_ROW];
    for (size_t k = 0; k + 1 < FL_COUNT(kinds); k++) {
        make_row(kinds[k]);
        fl_quantise(FL_Q8_0, row, N_ROW, encoded);
        fl_dequantise(FL_Q8_0, encoded, N_ROW, first);
        fl_quantise(FL_Q8_0, first, N_ROW, encoded);
        fl_dequantise(FL_Q8_0, encoded, N_ROW, decoded);
        CHECK(memcmp(first, decoded, sizeof first) == 0);
    }
}

/* One row of blocks at odd addresses is what its blocks are one by one, and nothing beyond it is touched. */
static void test_rows(void) {
    make_row("outliers");
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        size_t numbers = fl_block_numbers(types[t]), bytes = fl_block_bytes(types[t]);
        uint8_t at_once[5 * 210 + 3], alone[210];
        float together[5 * 256 + 1], one[256];
        memset(at_once, GUARD, sizeof at_once);
        together[5 * numbers] = 7;
        fl_quantise(types[t], row, 5 * numbers, at_once + 1);
        fl_dequantise(types[t], at_once + 1, 5 * numbers, together);
        CHECK(at_once[0] == GUARD && at_once[1 + 5 * bytes] == GUARD && together[5 * numbers] == 7);
        for (size_t i = 0; i < 5; i++) {
            fl_quantise(types[t], row + i * numbers, numbers, alone);
            fl_dequantise(types[t], alone, numbers, one);
            CHECK(memcmp(alone, at_once + 1 + i * bytes, bytes) == 0);
            CHECK(memcmp(one, together + i * numbers, numbers * sizeof *one) == 0);
        }
        fl_quantise(types[t], row, 0, at_once);
        CHECK(at_once[0] == GUARD);
    }
}

static void fill(float x) {
    for (size_t i = 0; i < 256; i++) {
        row[i] = x;
    }
}

static void test_constants(void) {
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        static const float zeros[] = {0, -0.0f, 1e-40f, -1e-12f}, others[] = {1, -3, 0.02f, -60000, 65504, 1e-3f};
        float nothing[256] = {0};
        for (size_t i = 0; i < FL_COUNT(zeros); i++) {
            fill(zeros[i]);
            fl_quantise(types[t], row, 256, encoded);
            fl_dequantise(types[t], encoded, 256, decoded);
            CHECK(memcmp(decoded, nothing, sizeof nothing) == 0);
        }
        for (size_t i = 0; i < FL_COUNT(others); i++) {
            fill(others[i]);
            fl_quantise(types[t], row, 256, encoded);
            fl_dequantise(types[t], encoded, 256, decoded);
            for (size_t j = 0; j < 256; j++) {
                CHECK(fabsf(decoded[j] - row[j]) <= 1e-2f * fabsf(row[j]));
            }
        }
    }
}

/* Groups so narrow that the steps of a K type vanish beside its minima. */
static void test_narrow(void) {
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        for (int round = 0; round < 8; round++) {
            float scale = 1.0f / (float)(1 << 4 * round);
            for (size_t i = 0; i < 256; i++) {
                row[i] = -1000 + 37 * (float)(i / 32) + random_normal() * scale;
            }
            fl_quantise(types[t], row, 256, encoded);
            fl_dequantise(types[t], encoded, 256, decoded);
            for (size_t i = 0; i < 256; i++) {
                CHECK(fabsf(decoded[i] - row[i]) < 20);
            }
        }
    }
}

/* Infinities and what is too large count as 65504, NaN as 0. */
static void test_broken(void) {
    static const uint32_t broken[][2] = {
        {0x7F800000, 0x477FE000}, {0xFF800000, 0xC77FE000}, {0x7FC00000, 0},          {0xFFC00001, 0}, {0x7F800001, 0},
        {0x7F7FFFFF, 0x477FE000}, {0xFF7FFFFF, 0xC77FE000}, {0x47800000, 0x477FE000}, {1, 0},          {0x80000001, 0},
    };
    uint8_t expected[8 * 34];
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        size_t bytes = 256 / fl_block_numbers(types[t]) * fl_block_bytes(types[t]);
        for (size_t i = 0; i < FL_COUNT(broken) * 16; i++) {
            const uint32_t *pair = broken[i / 16];
            for (size_t j = 0; j < 256; j++) {
                row[j] = random_normal();
            }
            size_t at = (size_t)(random_bits() % 256);
            row[at] = fl_float_of_bits(pair[1]);
            fl_quantise(types[t], row, 256, expected);
            row[at] = fl_float_of_bits(pair[0]);
            fl_quantise(types[t], row, 256, encoded);
            CHECK(memcmp(encoded, expected, bytes) == 0);
        }
    }
}

/* Any bits at all are encoded, and decode to finite numbers not much larger than the largest. */
static void test_any_bits(void) {
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        for (int round = 0; round < 64; round++) {
            for (size_t i = 0; i < 256; i++) {
                uint64_t r = random_bits();
                row[i] = fl_float_of_bits((uint32_t)(round % 2 ? r : r & 0x83FFFFFF) | (uint32_t)(round % 32) << 26);
            }
            fl_quantise(types[t], row, 256, encoded);
            fl_dequantise(types[t], encoded, 256, decoded);
            for (size_t i = 0; i < 256; i++) {
                CHECK(fl_is_finite(decoded[i]) && fabsf(decoded[i]) < 2 * 65504.0f);
            }
        }
    }
}

int main(void) {
    test_sizes();
    test_vectors();
    test_same_bytes();
    test_again();
    test_rows();
    test_constants();
    test_narrow();
    test_broken();
    test_any_bits();
    return check_finish();
}
