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

#endif
