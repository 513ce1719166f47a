#include "ops/packed.h"

#include <math.h>

FL_LOCAL bool fl_packs(fl_dtype type, size_t n_cols) {
    bool in_units = type < FL_Q4_K || type == FL_Q4_ZERO;
    return fl_is_packed(type) && (in_units || n_cols % FL_CHUNK == 0);
}

/* Of a row, in types whose units stand alone. */
static size_t fl_unit_bytes(fl_dtype type) {
    return type == FL_Q8_ROW ? FL_UNIT : type == FL_Q8_0 ? 34 : type == FL_Q4_ZERO ? 19 : 18;
}

FL_LOCAL size_t fl_row_bytes(fl_dtype type, size_t n_cols) {
    if (fl_is_plain(type)) {
        return n_cols * fl_dtype_bytes(type);
    }
    if (type == FL_Q8_ROW || type == FL_Q4_ZERO) {
        return (type == FL_Q8_ROW ? sizeof(float) : 0) + fl_units(n_cols) * fl_unit_bytes(type);
    }
    return fl_div_up(n_cols, fl_block_numbers(type)) * fl_block_bytes(type);
}

FL_LOCAL size_t fl_chunk_bytes(fl_dtype type, size_t n_units) {
    switch (type) {
    case FL_Q4_K: return FL_LANES * (4 + 16 + 128);
    case FL_Q5_K: return FL_LANES * (4 + 16 + 128 + 32);
    case FL_Q6_K: return FL_LANES * (2 + 16 + 128 + 64);
    default: return FL_LANES * fl_unit_bytes(type) * n_units;
    }
}

FL_LOCAL size_t fl_panel_head_bytes(fl_dtype type) {
    return type == FL_Q8_ROW ? FL_PANEL * sizeof(float) : 0;
}

FL_LOCAL size_t fl_panel_bytes(fl_dtype type, size_t n_cols) {
    size_t n_units = fl_units(n_cols), rest = n_units % FL_CHUNK_UNITS;
    return fl_panel_head_bytes(type) + n_units / FL_CHUNK_UNITS * 2 * fl_chunk_bytes(type, FL_CHUNK_UNITS) +
           (rest != 0 ? 2 * fl_chunk_bytes(type, rest) : 0);
}

FL_LOCAL size_t fl_matrix_bytes(fl_dtype type, size_t n_rows, size_t n_cols) {
    size_t n = fl_is_packed(type) ? fl_div_up(n_rows, FL_PANEL) : n_rows;
    size_t bytes = fl_is_packed(type) ? fl_panel_bytes(type, n_cols) : n_cols * fl_dtype_bytes(type);
    return bytes != 0 && n > SIZE_MAX / bytes ? SIZE_MAX : n * bytes;
}

/* A row's unit as eight quads of four numbers, at most six bits in each byte: into halves, then n_planes planes. */
FL_INLINE void fl_pack_quads(const uint32_t quads[8], size_t row, uint8_t *halves, uint8_t *planes, size_t n_planes) {
    uint32_t words[2] = {0, 0};
    for (size_t i = 0; i < 4; i++) {
        uint32_t half = (quads[i] & 0x0F0F0F0Fu) | (quads[4 + i] & 0x0F0F0F0Fu) << 4;
        memcpy(halves + i * FL_QUAD_BYTES + row * 4, &half, sizeof half);
    }
    for (size_t i = 0; i < 8; i++) {
        words[n_planes == 2 ? i / 4 : 0] |= (quads[i] >> 4 & 0x03030303u) << (n_planes == 2 ? 2 * (i % 4) : i);
    }
    for (size_t i = 0; i < n_planes; i++) {
        memcpy(planes + i * FL_QUAD_BYTES + row * 4, &words[i], sizeof words[i]);
    }
}

static void fl_pack_q8_unit(const uint8_t *q, size_t row, uint8_t *quads) {
    for (size_t i = 0; i < FL_UNIT; i += 4) {
        uint32_t four;
        memcpy(&four, q + i, sizeof four);
        four ^= 0x80808080u;
        memcpy(quads + i / 4 * FL_QUAD_BYTES + row * 4, &four, sizeof four);
    }
}

static void fl_pack_small(fl_dtype type, const uint8_t *blocks, size_t row, size_t n_units, uint8_t *chunk) {
    uint8_t *zeros = chunk + FL_LANES * 2 * n_units, *units = zeros + (type == FL_Q4_ZERO ? FL_LANES * n_units : 0);
    for (size_t u = 0; u < n_units; u++, blocks += fl_unit_bytes(type)) {
        const uint8_t *numbers = blocks + 2;
        memcpy(chunk + 2 * (u * FL_LANES + row), blocks, 2);
        if (type == FL_Q8_0) {
            fl_pack_q8_unit(numbers, row, units + u * 8 * FL_QUAD_BYTES);
            continue;
        }
        if (type == FL_Q4_ZERO) {
            zeros[u * FL_LANES + row] = *numbers++;
        }
        for (size_t i = 0; i < 16; i += 4) { /* a block has its halves as a unit has */
            memcpy(units + (u * 4 + i / 4) * FL_QUAD_BYTES + row * 4, numbers + i, 4);
        }
    }
}

/* A block of q4_k or q5_k: d, dmin, twelve bytes of scales and minima, of q5_k 32 of fifth bits, then fours. */
static void fl_pack_k(fl_dtype type, const uint8_t *block, size_t row, uint8_t *chunk) {
    uint8_t *scales = chunk + FL_LANES * 4, *mins = scales + FL_LANES * 8, *halves = mins + FL_LANES * 8;
    uint8_t *planes = halves + 8 * 4 * FL_QUAD_BYTES;
    const uint8_t *fifths = block + 16, *fours = block + (type == FL_Q5_K ? 48 : 16);
    uint8_t of_row[8], mins_of_row[8];
    fl_get_sixes(block + 4, of_row, mins_of_row);
    memcpy(chunk + 2 * row, block, 2);
    memcpy(chunk + 2 * (FL_LANES + row), block + 2, 2);
    for (size_t g = 0; g < 8; g++) {
        uint32_t quads[8];
        for (size_t i = 0; i < 8; i++) {
            quads[i] = fl_load_u32(fours + 32 * (g / 2) + 4 * i) >> 4 * (g % 2) & 0x0F0F0F0Fu;
            if (type == FL_Q5_K) {
                quads[i] |= (fl_load_u32(fifths + 4 * i) >> g & 0x01010101u) << 4;
            }
        }
        fl_pack_quads(quads, row, halves + g * 4 * FL_QUAD_BYTES, planes + g * FL_QUAD_BYTES, type == FL_Q5_K);
        scales[g * FL_LANES + row] = of_row[g];
        mins[g * FL_LANES + row] = mins_of_row[g];
    }
}

/* A block of q6_k: fours, twos, sixteen scales, d. */
static void fl_pack_q6_k(const uint8_t *block, size_t row, uint8_t *chunk) {
    uint8_t *scales = chunk + FL_LANES * 2, *halves = scales + FL_LANES * 16, *planes = halves + 8 * 4 * FL_QUAD_BYTES;
    memcpy(chunk + 2 * row, block + 208, 2);
    for (size_t g = 0; g < 8; g++) {
        uint32_t quads[8];
        const uint8_t *fours = block + 64 * (g / 4) + 32 * (g % 2), *twos = block + 128 + 32 * (g / 4);
        for (size_t i = 0; i < 8; i++) {
            quads[i] = (fl_load_u32(fours + 4 * i) >> 4 * (g % 4 / 2) & 0x0F0F0F0Fu) |
                       (fl_load_u32(twos + 4 * i) >> 2 * (g % 4) & 0x03030303u) << 4;
        }
        fl_pack_quads(quads, row, halves + g * 4 * FL_QUAD_BYTES, planes + g * 2 * FL_QUAD_BYTES, 2);
        scales[2 * g * FL_LANES + row] = block[192 + 2 * g];
        scales[(2 * g + 1) * FL_LANES + row] = block[192 + 2 * g + 1];
    }
}

static void fl_pack_chunk(fl_dtype type, const uint8_t *row_bytes, size_t row, size_t unit, size_t n_units,
                          uint8_t *chunk) {
    if (type == FL_Q8_ROW) {
        for (size_t u = 0; u < n_units; u++) {
            fl_pack_q8_unit(row_bytes + sizeof(float) + (unit + u) * FL_UNIT, row, chunk + u * 8 * FL_QUAD_BYTES);
        }
        return;
    }
    if (type == FL_Q8_0 || type == FL_Q4_0 || type == FL_Q4_ZERO) {
        fl_pack_small(type, row_bytes + unit * fl_unit_bytes(type), row, n_units, chunk);
        return;
    }
    const uint8_t *blocks = row_bytes + unit / FL_CHUNK_UNITS * fl_block_bytes(type);
    if (type == FL_Q6_K) {
        fl_pack_q6_k(blocks, row, chunk);
    } else {
        fl_pack_k(type, blocks, row, chunk);
    }
}

FL_LOCAL void fl_pack(fl_dtype type, const uint8_t *rows, size_t n_rows, size_t n_cols, uint8_t *panel) {
    size_t n_units = fl_units(n_cols), row_bytes = fl_row_bytes(type, n_cols);
    if (n_rows < FL_PANEL) { /* rows that are not there */
        memset(panel, 0, fl_panel_bytes(type, n_cols));
    }
    for (size_t row = 0; row < n_rows; row++, rows += row_bytes) {
        uint8_t *chunk = panel + fl_panel_head_bytes(type);
        if (type == FL_Q8_ROW) {
            memcpy(panel + row * sizeof(float), rows, sizeof(float));
        }
        for (size_t u = 0; u < n_units; u += FL_CHUNK_UNITS) {
            size_t n = fl_min(n_units - u, FL_CHUNK_UNITS), bytes = fl_chunk_bytes(type, n);
            fl_pack_chunk(type, rows, row % FL_LANES, u, n, chunk + row / FL_LANES * bytes);
            chunk += 2 * bytes;
        }
    }
}

/* One scale, that of the largest magnitude; a row with a NaN or an infinity in it has a NaN for a scale. */
static void fl_quantise_q8_row(const float *x, size_t n_cols, uint8_t *row) {
    float largest = 0, broken = 0;
    for (size_t i = 0; i < n_cols; i++) {
        float magnitude = x[i] < 0 ? -x[i] : x[i];
        largest = magnitude > largest ? magnitude : largest;
        broken += x[i] * 0.0f;
    }
    float scale = fl_is_finite(broken) ? largest / 127.0f : broken;
    float inverse = fl_is_finite(broken) && largest >= 1e-30f ? 127.0f / largest : 0;
    memset(row, 0, fl_row_bytes(FL_Q8_ROW, n_cols));
    memcpy(row, &scale, sizeof scale);
    for (size_t i = 0; i < n_cols && inverse != 0; i++) {
        row[sizeof scale + i] = (uint8_t)(int32_t)rintf(x[i] * inverse);
    }
}

FL_LOCAL void fl_quantise_row(fl_dtype type, const float *x, size_t n_cols, uint8_t *row) {
    if (type == FL_Q8_ROW) {
        fl_quantise_q8_row(x, n_cols, row);
    } else {
        fl_quantise(type, x, fl_div_up(n_cols, fl_block_numbers(type)) * fl_block_numbers(type), row);
    }
}
