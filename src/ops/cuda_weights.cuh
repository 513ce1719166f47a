/* How weights lie on the device. Packed ones as on the CPU (packed.h). Plain ones so that a thread, which has one of
 * the sixteen lanes of a sum, finds eight of its numbers side by side:
 *
 *     [row][chunk of 128 columns][lane][step]      column = 128 * chunk + 16 * step + lane, zeros behind the last
 */
#ifndef FL_CUDA_WEIGHTS_CUH
#define FL_CUDA_WEIGHTS_CUH

#include "ops/cuda_base.cuh"

namespace {

#define FL_STEPS (FL_DEVICE_CHUNK / FL_LANES)
#define FL_PANEL 32       /* rows of a packed panel */
#define FL_CHUNK_UNITS 8  /* units of its chunks */
#define FL_QUAD_BYTES 64

__host__ __device__ __forceinline__ uint32_t fl_chunks(uint32_t n_cols) { /* of a row of plain numbers */
    return (n_cols + FL_DEVICE_CHUNK - 1) / FL_DEVICE_CHUNK;
}

__host__ __device__ __forceinline__ uint32_t fl_units(uint32_t n_cols) {
    return (n_cols + FL_UNIT - 1) / FL_UNIT;
}

/* ---- Plain -- */

template <int TYPE>
__device__ __forceinline__ constexpr size_t fl_plain_bytes() {
    return TYPE == FL_DEVICE_F32 ? 4 : 2;
}

/* Where a column lies in its row. */
__host__ __device__ __forceinline__ uint32_t fl_chunk_place(uint32_t column) {
    uint32_t in = column % FL_DEVICE_CHUNK;
    return column - in + in % FL_LANES * FL_STEPS + in / FL_LANES;
}

/* The eight numbers of a lane. */
template <int TYPE>
__device__ __forceinline__ void fl_plain_load(const unsigned char *at, float w[FL_STEPS]) {
    if (TYPE == FL_DEVICE_F32) {
        float4 a = *(const float4 *)at, b = *(const float4 *)(at + 16);
        w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
        w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        return;
    }
    uint4 words = *(const uint4 *)at;
    uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low = pairs[i] & 0xFFFFu, high = pairs[i] >> 16;
        w[2 * i] = TYPE == FL_DEVICE_BF16 ? fl_bf16(low) : fl_f16(low);
        w[2 * i + 1] = TYPE == FL_DEVICE_BF16 ? fl_bf16(high) : fl_f16(high);
    }
}

template <class T>
__global__ void fl_pack_kernel(fl_device_pack a) {
    fl_follow();
    size_t row = blockIdx.x, chunks = fl_chunks(a.n_cols);
    const T *from = (const T *)a.from + row * a.n_cols;
    T *to = (T *)a.to + row * chunks * FL_DEVICE_CHUNK;
    for (uint32_t column = threadIdx.x; column < chunks * FL_DEVICE_CHUNK; column += blockDim.x) {
        to[fl_chunk_place(column)] = column < a.n_cols ? from[column] : (T)0;
    }
}

int fl_pack(fl_device *d, const fl_device_pack *a) {
    dim3 grid((unsigned)a->n_rows, 1, 1);
    return a->type == FL_DEVICE_F32 ? fl_launch(d, fl_pack_kernel<uint32_t>, grid, 128, 0, *a)
                                    : fl_launch(d, fl_pack_kernel<uint16_t>, grid, 128, 0, *a);
}

/* One number of a plain matrix. */
__device__ __forceinline__ float fl_plain_at(int type, const void *data, uint32_t n_cols, size_t row, uint32_t column) {
    size_t at = row * fl_chunks(n_cols) * FL_DEVICE_CHUNK + fl_chunk_place(column);
    if (type == FL_DEVICE_F32) {
        return ((const float *)data)[at];
    }
    uint32_t bits = ((const unsigned short *)data)[at];
    return type == FL_DEVICE_BF16 ? fl_bf16(bits) : fl_f16(bits);
}

/* ---- Packed -- */

__host__ __device__ constexpr bool fl_is_wide(int type) {
    return type == FL_DEVICE_Q8 || type == FL_DEVICE_Q8_ROW;
}

__host__ __device__ constexpr bool fl_is_k(int type) { /* has chunks of 256 columns only */
    return type == FL_DEVICE_Q4_K || type == FL_DEVICE_Q5_K || type == FL_DEVICE_Q6_K;
}

__host__ __device__ constexpr int fl_halves(int type) { /* of a unit, that have a scale each */
    return type == FL_DEVICE_Q6_K ? 2 : 1;
}

__host__ __device__ constexpr bool fl_has_mins(int type) {
    return type == FL_DEVICE_Q4_K || type == FL_DEVICE_Q5_K || type == FL_DEVICE_Q4_ZERO;
}

/* Bytes of sixteen rows of n units: of scales and all else in front of the quads, and of these. */
__host__ __device__ constexpr size_t fl_head_bytes(int type, uint32_t n_units) {
    return type == FL_DEVICE_Q8_ROW  ? 0
           : type == FL_DEVICE_Q6_K ? FL_LANES * (2 + 16)
           : fl_is_k(type)          ? FL_LANES * (4 + 16)
                                     : (size_t)FL_LANES * n_units * (type == FL_DEVICE_Q4_ZERO ? 3 : 2);
}

__host__ __device__ constexpr size_t fl_unit_bytes(int type) {
    return FL_QUAD_BYTES * (fl_is_wide(type)          ? 8
                            : type == FL_DEVICE_Q5_K ? 5
                            : type == FL_DEVICE_Q6_K ? 6
                                                      : 4);
}

__host__ __device__ constexpr size_t fl_slab_bytes(int type, uint32_t n_units) {
    return fl_head_bytes(type, n_units) + n_units * fl_unit_bytes(type);
}

/* Sixteen rows of one unit. */
struct fl_unit {
    const unsigned char *slab; /* its chunk, of these rows */
    const float *row_scales;   /* q8_row: of these rows */
    uint32_t n_units, unit;    /* of the chunk, and which */
};

/* slab: which sixteen rows of the matrix. */
__device__ __forceinline__ fl_unit fl_unit_of(int type, const void *data, uint32_t n_cols, size_t slab, uint32_t unit) {
    uint32_t units = fl_units(n_cols), rest = units % FL_CHUNK_UNITS, chunk = unit / FL_CHUNK_UNITS;
    size_t head = type == FL_DEVICE_Q8_ROW ? FL_PANEL * sizeof(float) : 0;
    size_t whole = 2 * fl_slab_bytes(type, FL_CHUNK_UNITS);
    size_t panel = head + units / FL_CHUNK_UNITS * whole + (rest != 0 ? 2 * fl_slab_bytes(type, rest) : 0);
    const unsigned char *at = (const unsigned char *)data + slab / 2 * panel;
    fl_unit u;
    u.row_scales = (const float *)at + slab % 2 * FL_LANES;
    u.n_units = units - chunk * FL_CHUNK_UNITS < FL_CHUNK_UNITS ? rest : FL_CHUNK_UNITS;
    u.unit = unit % FL_CHUNK_UNITS;
    u.slab = at + head + chunk * whole + slab % 2 * fl_slab_bytes(type, u.n_units);
    return u;
}

__device__ __forceinline__ uint32_t fl_word(const unsigned char *at) {
    return *(const uint32_t *)at;
}

__device__ __forceinline__ uint32_t fl_short(const unsigned char *at, uint32_t i) {
    return ((const unsigned short *)at)[i];
}

/* One row of a unit as it lies. */
template <int TYPE>
struct fl_unit_row {
    uint32_t words[fl_unit_bytes(TYPE) / FL_QUAD_BYTES]; /* of quads or halves, then of planes */
    uint32_t scale;   /* q8_row: a float; others: f16, and of q4_k and q5_k above it dmin */
    uint32_t factors; /* bytes: scale and min, the scales of two half units, or the zero point */
};

template <int TYPE>
__device__ __forceinline__ fl_unit_row<TYPE> fl_unit_load(const fl_unit &u, uint32_t row) {
    constexpr int whole = fl_is_wide(TYPE) ? 8 : 4, all = (int)(fl_unit_bytes(TYPE) / FL_QUAD_BYTES);
    const unsigned char *quads = u.slab + fl_head_bytes(TYPE, u.n_units) + row * 4, *bytes = u.slab + row;
    fl_unit_row<TYPE> r;
#pragma unroll
    for (int i = 0; i < whole; i++) {
        r.words[i] = fl_word(quads + (u.unit * whole + i) * FL_QUAD_BYTES);
    }
#pragma unroll
    for (int i = whole; i < all; i++) { /* planes stand behind the halves of all units of a chunk */
        r.words[i] = fl_word(quads + (FL_CHUNK_UNITS * whole + u.unit * (all - whole) + i - whole) * FL_QUAD_BYTES);
    }
    r.factors = 0;
    switch (TYPE) {
    case FL_DEVICE_Q8_ROW: r.scale = __float_as_uint(u.row_scales[row]); break;
    case FL_DEVICE_Q4_K:
    case FL_DEVICE_Q5_K:
        r.scale = fl_short(u.slab, row) | fl_short(u.slab, FL_LANES + row) << 16;
        r.factors = bytes[(4 + u.unit) * FL_LANES] | (uint32_t)bytes[(12 + u.unit) * FL_LANES] << 8;
        break;
    case FL_DEVICE_Q6_K:
        r.scale = fl_short(u.slab, row);
        r.factors = bytes[(2 + 2 * u.unit) * FL_LANES] | (uint32_t)bytes[(3 + 2 * u.unit) * FL_LANES] << 8;
        break;
    default:
        r.scale = fl_short(u.slab, u.unit * FL_LANES + row);
        if (TYPE == FL_DEVICE_Q4_ZERO) {
            r.factors = bytes[(2 * u.n_units + u.unit) * FL_LANES];
        }
    }
    return r;
}

/* Its quads: four numbers each, signed bytes. What unsigned ones have too much goes in each byte; none carries. */
template <int TYPE>
__device__ __forceinline__ void fl_unit_open(const fl_unit_row<TYPE> &r, uint32_t words[8]) {
    constexpr int offset = TYPE == FL_DEVICE_Q4 ? 8 : TYPE == FL_DEVICE_Q6_K ? 32 : 0;
    constexpr int planes = (int)(fl_unit_bytes(TYPE) / FL_QUAD_BYTES) - 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (fl_is_wide(TYPE)) {
            words[i] = r.words[i] ^ 0x80808080u;
            continue;
        }
        words[i] = r.words[i % 4] >> i / 4 * 4 & 0x0F0F0F0Fu;
        if (planes == 1) {
            words[i] |= (r.words[4 * (planes == 1)] >> i & 0x01010101u) << 4;
        } else if (planes == 2) {
            words[i] |= (r.words[planes == 2 ? 4 + i / 4 : 0] >> i % 4 * 2 & 0x03030303u) << 4;
        }
        if (offset != 0) {
            words[i] = (words[i] + (128 - offset) * 0x01010101u) ^ 0x80808080u;
        }
    }
}

__device__ __forceinline__ float fl_factor(uint32_t factors, uint32_t i) {
    return (float)(signed char)(factors >> 8 * i & 255u);
}

template <int TYPE>
__device__ __forceinline__ float fl_unit_scale(const fl_unit_row<TYPE> &r, uint32_t half) {
    if (TYPE == FL_DEVICE_Q8_ROW) {
        return __uint_as_float(r.scale);
    }
    float scale = fl_f16(r.scale & 0xFFFFu);
    return fl_is_k(TYPE) ? __fmul_rn(scale, fl_factor(r.factors, half)) : scale;
}

/* What is taken off. */
template <int TYPE>
__device__ __forceinline__ float fl_unit_min(const fl_unit_row<TYPE> &r) {
    constexpr int zero = TYPE == FL_DEVICE_Q4_ZERO;
    return __fmul_rn(fl_f16(zero ? r.scale & 0xFFFFu : r.scale >> 16), fl_factor(r.factors, zero ? 0 : 1));
}

/* One number of a packed matrix. */
template <int TYPE>
__device__ __forceinline__ float fl_packed_at(const void *data, uint32_t n_cols, size_t row, uint32_t column) {
    fl_unit u = fl_unit_of(TYPE, data, n_cols, row / FL_LANES, column / FL_UNIT);
    uint32_t words[8], in = column % FL_UNIT, lane = (uint32_t)(row % FL_LANES);
    fl_unit_row<TYPE> r = fl_unit_load<TYPE>(u, lane);
    fl_unit_open<TYPE>(r, words);
    uint32_t word = 0;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        word = i == in / 4 ? words[i] : word;
    }
    float y = __fmul_rn(fl_factor(word, in % 4), fl_unit_scale<TYPE>(r, fl_halves(TYPE) == 2 ? in / 16 : 0));
    return fl_has_mins(TYPE) ? __fsub_rn(y, fl_unit_min<TYPE>(r)) : y;
}

__device__ __forceinline__ float fl_weight_at(int type, const void *data, uint32_t n_cols, size_t row,
                                              uint32_t column) {
    switch (type) {
    case FL_DEVICE_Q8: return fl_packed_at<FL_DEVICE_Q8>(data, n_cols, row, column);
    case FL_DEVICE_Q8_ROW: return fl_packed_at<FL_DEVICE_Q8_ROW>(data, n_cols, row, column);
    case FL_DEVICE_Q4: return fl_packed_at<FL_DEVICE_Q4>(data, n_cols, row, column);
    case FL_DEVICE_Q4_K: return fl_packed_at<FL_DEVICE_Q4_K>(data, n_cols, row, column);
    case FL_DEVICE_Q5_K: return fl_packed_at<FL_DEVICE_Q5_K>(data, n_cols, row, column);
    case FL_DEVICE_Q6_K: return fl_packed_at<FL_DEVICE_Q6_K>(data, n_cols, row, column);
    case FL_DEVICE_Q4_ZERO: return fl_packed_at<FL_DEVICE_Q4_ZERO>(data, n_cols, row, column);
    default: return fl_plain_at(type, data, n_cols, row, column);
    }
}

} /* namespace */

#endif
