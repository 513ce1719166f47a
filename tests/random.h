/* Numbers that are the same in every run; behind inside.h. */
#ifndef RANDOM_H
#define RANDOM_H

static uint64_t random_state = 1;

static inline uint64_t random_next(void) {
    random_state += 0x9E3779B97F4A7C15u;
    return fl_mix(random_state);
}

static inline uint32_t random_below(uint32_t n) {
    return (uint32_t)(random_next() % n);
}

static inline float random_float(void) { /* roughly normal */
    int32_t sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (int32_t)random_below(65536) - 32768;
    }
    return (float)sum / 32768;
}

/* A row of q4_zero before packing: random bits; with `wild` zero points that no file has, too. */
static inline void random_zero_row(size_t n_cols, bool wild, uint8_t *row) {
    for (size_t u = 0; u < fl_units(n_cols); u++, row += 19) {
        uint16_t scale = fl_f16_of_float(wild ? random_float() : 0.1f + (float)random_below(100) / 100);
        memcpy(row, &scale, sizeof scale);
        row[2] = (uint8_t)random_below(wild ? 128 : 17);
        for (size_t i = 3; i < 19; i++) {
            row[i] = (uint8_t)random_below(256);
        }
    }
}

#endif
