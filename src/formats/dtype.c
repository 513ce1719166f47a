#include "formats/dtype.h"

FL_LOCAL size_t fl_dtype_bytes(fl_dtype type) {
    return type == FL_F32 ? 4 : 2;
}

FL_LOCAL const char *fl_dtype_name(fl_dtype type) {
    static const char *const names[] = {"f32",     "f16",  "bf16", "q8",   "q8_row", "q4",   "q4_k",   "q5_k",
                                        "q6_k",    "q4_zero", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k",  "iq4_nl",
                                        "iq4_xs",  "mxfp4"};
    return type < FL_DTYPE_COUNT ? names[type] : "other";
}

FL_LOCAL void fl_to_float(fl_dtype type, const void *from, size_t n, float *to) {
    const uint8_t *bytes = from;
    if (type == FL_F32) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, sizeof half);
        to[i] = type == FL_F16 ? fl_float_of_f16(half) : fl_float_of_bf16(half);
    }
}
