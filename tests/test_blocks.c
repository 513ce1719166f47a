/* GGUF's block formats: what blocks decode to, bit by bit, and how well rows are encoded, against gguf and llama.cpp
 * (vectors/blocks.txt, made by oracle/make_blocks.py); what is decoded and encoded again; zeros, broken numbers, any
 * bits at all; several blocks at odd addresses; and that the bytes are the same on every machine. Of the types that are
 * in files only: what they become stands for the same numbers, or, where it cannot, is as near as it is said to be.
 *
 *     cc -O2 -I. -Isrc tests/test_blocks.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "host.h"

#include <math.h>

#define SEED 20240117u
#define N_ROW 32768 /* numbers */
#define GUARD 0x5A

static const fl_dtype types[] = {FL_Q8_0, FL_Q4_0, FL_Q4_K, FL_Q5_K, FL_Q6_K};
static const fl_dtype file_types[] = {FL_Q4_1, FL_Q5_0, FL_Q5_1, FL_Q2_K, FL_Q3_K, FL_IQ4_NL, FL_IQ4_XS, FL_MXFP4};
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
    for (size_t i = 0; i < FL_COUNT(file_types); i++) {
        if (strcmp(name, fl_dtype_name(file_types[i])) == 0) {
            return file_types[i];
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
    CHECK(n_decoded == 40 * (FL_COUNT(types) + FL_COUNT(file_types)) && n_errors == FL_COUNT(kinds) * FL_COUNT(types));
    free(file);
}

/* ---- What no file says --------------------------------------------------------------------------- */

static void test_sizes(void) {
    static const size_t bytes[] = {34, 18, 144, 176, 210};
    for (size_t t = 0; t < FL_COUNT(types); t++) {
        CHECK(fl_block_bytes(types[t]) == bytes[t] && fl_block_numbers(types[t]) == (t < 2 ? 32u : 256u));
        CHECK(fl_computed_type(types[t]) == types[t]);
    }
    for (size_t t = 0; t < FL_COUNT(file_types); t++) {
        static const size_t file_bytes[] = {20, 22, 24, 84, 110, 18, 136, 17};
        bool wide = file_types[t] == FL_Q2_K || file_types[t] == FL_Q3_K || file_types[t] == FL_IQ4_XS;
        CHECK(fl_block_bytes(file_types[t]) == file_bytes[t]);
        CHECK(fl_block_numbers(file_types[t]) == (wide ? 256u : 32u));
        CHECK(fl_computed_type(file_types[t]) == (file_types[t] == FL_Q3_K ? FL_Q6_K : FL_Q8_0));
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

/* ---- Types that are in files only ---------------------------------------------------------------- */

static void set_half(uint8_t *p, float value) {
    uint16_t half = fl_f16_of_float(value);
    p[0] = (uint8_t)half;
    p[1] = (uint8_t)(half >> 8);
}

/* Any integers, under scales that make numbers about as large as `size`. */
static void random_block(fl_dtype type, float size, uint8_t *b) {
    float u = 0.75f + (float)(random_bits() % 4096) / 8192, v = 0.75f + (float)(random_bits() % 4096) / 8192;
    for (size_t i = 0; i < fl_block_bytes(type); i++) {
        b[i] = (uint8_t)random_bits();
    }
    switch (type) {
    case FL_Q4_1:
    case FL_Q5_1:
        set_half(b, size * u / (type == FL_Q4_1 ? 8 : 16));
        set_half(b + 2, -size * v);
        break;
    case FL_Q2_K:
        set_half(b + 80, size * u / 24);
        set_half(b + 82, size * v / 16);
        break;
    case FL_Q3_K:
        set_half(b + 108, size * u / 128 * (random_bits() % 2 ? 1.0f : -1.0f));
        break;
    case FL_MXFP4:
        b[0] = (uint8_t)(104 + random_bits() % 43); /* what f16 and eight bits can hold */
        break;
    default:
        set_half(b, size * u / (type == FL_Q5_0 ? -16 : type == FL_IQ4_NL ? 128 : 4096));
        break;
    }
}

/* Blocks at odd addresses, moved: what they stand for then, and nothing beyond them. */
static void move(fl_dtype type, const uint8_t *blocks, size_t n, float *before, float *after) {
    uint8_t moved[4 * 8 * 34 + 2];
    fl_dtype to = fl_computed_type(type);
    size_t bytes = n / fl_block_numbers(to) * fl_block_bytes(to);
    memset(moved, GUARD, sizeof moved);
    fl_move_blocks(type, blocks, n, moved + 1);
    CHECK(moved[0] == GUARD && moved[1 + bytes] == GUARD);
    fl_dequantise(type, blocks, n, before);
    fl_dequantise(to, moved + 1, n, after);
}

static void test_same_numbers(void) {
    static const fl_dtype exact[] = {FL_Q5_0, FL_IQ4_NL, FL_Q3_K, FL_MXFP4};
    static const float size_of[] = {1e-6f, 1e-3f, 0.05f, 7, 60000};
    for (size_t t = 0; t < FL_COUNT(exact); t++) {
        for (size_t i = 0; i < 64 * FL_COUNT(size_of); i++) {
            uint8_t blocks[4 * 110 + 1];
            float before[4 * 256], after[4 * 256];
            size_t numbers = fl_block_numbers(exact[t]);
            for (size_t k = 0; k < 4; k++) {
                random_block(exact[t], size_of[i / 64], blocks + 1 + k * fl_block_bytes(exact[t]));
            }
            move(exact[t], blocks + 1, 4 * numbers, before, after);
            CHECK(memcmp(before, after, 4 * numbers * sizeof *before) == 0);
        }
    }
}

/* Every scale with every level. */
static void test_powers(void) {
    for (unsigned e = 0; e < 256; e++) {
        uint8_t block[17] = {(uint8_t)e};
        float before[32], after[32];
        for (unsigned i = 0; i < 16; i++) {
            block[1 + i] = (uint8_t)(i | (15 - i) << 4);
        }
        move(FL_MXFP4, block, 32, before, after);
        for (size_t i = 0; i < 32; i++) {
            bool same = memcmp(before + i, after + i, sizeof *after) == 0;
            bool near = fabsf(after[i] - before[i]) <= 2.98023223876953125e-8f; /* 2^-25 */
            CHECK(e < 104 ? near : e <= 146 ? same : !fl_is_finite(after[i]));
        }
    }
}

/* Those that lose something, as each type that is computed with: the one that they become loses least. */
static void test_least(void) {
    static const fl_dtype lossy[] = {FL_Q4_1, FL_Q5_1, FL_Q2_K, FL_IQ4_XS};
    static const fl_dtype others[] = {FL_Q8_0, FL_Q6_K, FL_Q5_K, FL_Q4_K};
    for (size_t t = 0; t < FL_COUNT(lossy); t++) {
        double squares = 0, sum[1 + FL_COUNT(others)] = {0}, most[1 + FL_COUNT(others)] = {0};
        for (int round = 0; round < 256; round++) {
            uint8_t blocks[8 * 24 + 136];
            float before[256], after[1 + FL_COUNT(others)][256];
            for (size_t k = 0; k < 256 / fl_block_numbers(lossy[t]); k++) {
                random_block(lossy[t], 0.05f, blocks + k * fl_block_bytes(lossy[t]));
            }
            move(lossy[t], blocks, 256, before, after[0]);
            for (size_t k = 0; k < FL_COUNT(others); k++) {
                fl_quantise(others[k], before, 256, encoded);
                fl_dequantise(others[k], encoded, 256, after[1 + k]);
            }
            for (size_t i = 0; i < 256; i++) {
                squares += (double)before[i] * before[i];
                for (size_t k = 0; k < 1 + FL_COUNT(others); k++) {
                    double off = fabs((double)after[k][i] - before[i]);
                    sum[k] += off * off;
                    most[k] = off > most[k] ? off : most[k];
                }
                CHECK(lossy[t] != FL_IQ4_XS || fabsf(after[0][i] - before[i]) <= fabsf(before[i]) / 2048);
            }
        }
        for (size_t k = 0; k < 1 + FL_COUNT(others); k++) {
            printf("%s as %s: error %.2g of the numbers' size (root of mean squares), at most %.2g\n",
                   fl_dtype_name(lossy[t]), k == 0 ? "loaded" : fl_dtype_name(others[k - 1]), sqrt(sum[k] / squares),
                   most[k] / sqrt(squares / (256 * 256)));
            CHECK(sum[0] <= sum[k] && most[0] <= most[k]);
        }
        CHECK(sum[0] < 1e-4 * squares);
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
    test_same_numbers();
    test_powers();
    test_least();
    return check_finish();
}
