#include "formats/gguf_write.h"

#define FL_GGUF_OUT_PIECE 65536u
#define FL_GGUF_OUT_ALIGN 32u

/* ---- Bytes -- */

static folollm_status fl_gguf_out_host(fl_gguf_out *o, const void *bytes, size_t n_bytes) {
    if (n_bytes > 0 && o->write(o->user, bytes, n_bytes) != 0) {
        return fl_fail(o->error, FOLOLLM_E_IO, "the host could not write %u bytes of a GGUF file", (uint64_t)n_bytes);
    }
    return FOLOLLM_OK;
}

static folollm_status fl_gguf_out_flush(fl_gguf_out *o) {
    size_t n = o->n_piece;
    o->n_piece = 0;
    return fl_gguf_out_host(o, o->piece, n);
}

FL_LOCAL folollm_status fl_gguf_out_bytes(fl_gguf_out *o, const void *bytes, size_t n_bytes) {
    if (!o->begun || n_bytes == 0) {
        return FOLOLLM_OK;
    }
    if (n_bytes > FL_GGUF_OUT_PIECE - o->n_piece) {
        FL_TRY(fl_gguf_out_flush(o));
    }
    o->n_written += n_bytes;
    if (n_bytes > FL_GGUF_OUT_PIECE) {
        return fl_gguf_out_host(o, bytes, n_bytes);
    }
    memcpy(o->piece + o->n_piece, bytes, n_bytes);
    o->n_piece += n_bytes;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_gguf_out_number(fl_gguf_out *o, uint64_t bits, size_t n_bytes) {
    uint8_t bytes[8];
    for (size_t i = 0; i < n_bytes; i++) {
        bytes[i] = (uint8_t)(bits >> (8 * i));
    }
    return fl_gguf_out_bytes(o, bytes, n_bytes);
}

FL_LOCAL folollm_status fl_gguf_out_text(fl_gguf_out *o, fl_str value) {
    FL_TRY(fl_gguf_out_number(o, value.n, 8));
    return fl_gguf_out_bytes(o, value.at, value.n);
}

FL_LOCAL folollm_status fl_gguf_out_fill(fl_gguf_out *o) {
    static const uint8_t zeros[FL_GGUF_OUT_ALIGN];
    return fl_gguf_out_bytes(o, zeros, (size_t)(0 - o->n_written) % FL_GGUF_OUT_ALIGN);
}

/* ---- From open to close -- */

FL_LOCAL folollm_status fl_gguf_out_open(fl_gguf_out *o) {
    o->piece = fl_alloc_raw(o->memory, FL_GGUF_OUT_PIECE);
    return o->piece != NULL ? FOLOLLM_OK : fl_no_memory(o->error, "a piece of a GGUF file", FL_GGUF_OUT_PIECE);
}

FL_LOCAL folollm_status fl_gguf_out_begin(fl_gguf_out *o) {
    o->begun = true;
    o->n_data = 0;
    FL_TRY(fl_gguf_out_bytes(o, "GGUF", 4));
    FL_TRY(fl_gguf_out_number(o, 3, 4));
    FL_TRY(fl_gguf_out_number(o, o->n_tensors, 8));
    return fl_gguf_out_number(o, o->n_entries, 8);
}

FL_LOCAL folollm_status fl_gguf_out_finish(fl_gguf_out *o) {
    return fl_gguf_out_flush(o);
}

FL_LOCAL void fl_gguf_out_close(fl_gguf_out *o) {
    fl_free(o->memory, o->piece, FL_GGUF_OUT_PIECE);
    o->piece = NULL;
}

/* ---- Entries -- */

static folollm_status fl_gguf_out_key(fl_gguf_out *o, const char *key, fl_gguf_type type) {
    o->n_entries += !o->begun;
    FL_TRY(fl_gguf_out_text(o, fl_str_of(key)));
    return fl_gguf_out_number(o, (uint64_t)type, 4);
}

FL_LOCAL folollm_status fl_gguf_out_u32(fl_gguf_out *o, const char *key, uint32_t value) {
    FL_TRY(fl_gguf_out_key(o, key, FL_GGUF_U32));
    return fl_gguf_out_number(o, value, 4);
}

FL_LOCAL folollm_status fl_gguf_out_f32(fl_gguf_out *o, const char *key, double value) {
    FL_TRY(fl_gguf_out_key(o, key, FL_GGUF_F32));
    return fl_gguf_out_number(o, fl_bits_of_float((float)value), 4);
}

FL_LOCAL folollm_status fl_gguf_out_bool(fl_gguf_out *o, const char *key, bool value) {
    FL_TRY(fl_gguf_out_key(o, key, FL_GGUF_BOOL));
    return fl_gguf_out_number(o, value, 1);
}

FL_LOCAL folollm_status fl_gguf_out_string(fl_gguf_out *o, const char *key, fl_str value) {
    FL_TRY(fl_gguf_out_key(o, key, FL_GGUF_STRING));
    return fl_gguf_out_text(o, value);
}

FL_LOCAL folollm_status fl_gguf_out_array(fl_gguf_out *o, const char *key, fl_gguf_type of, uint64_t n) {
    FL_TRY(fl_gguf_out_key(o, key, FL_GGUF_ARRAY));
    FL_TRY(fl_gguf_out_number(o, (uint64_t)of, 4));
    return fl_gguf_out_number(o, n, 8);
}

FL_LOCAL folollm_status fl_gguf_out_entry(fl_gguf_out *o, const fl_gguf *g, size_t i) {
    fl_str bytes = fl_gguf_entry_bytes(g, i);
    o->n_entries += !o->begun;
    return fl_gguf_out_bytes(o, bytes.at, bytes.n);
}

/* ---- Tensors -- */

FL_LOCAL folollm_status fl_gguf_out_tensor(fl_gguf_out *o, const char *name, fl_dtype type, uint64_t n_rows,
                                           uint64_t n_cols) {
    uint64_t row = n_cols != 0 ? n_cols : n_rows, rows = n_cols != 0 ? n_rows : 1, bytes;
    uint32_t number = fl_gguf_number_of(type, row, &bytes);
    uint64_t most = (uint64_t)INT64_MAX - FL_GGUF_OUT_ALIGN - o->n_data;
    if (number == FL_GGUF_NO_NUMBER || (bytes != 0 && rows > most / bytes)) {
        return fl_fail(o->error, FOLOLLM_E_UNSUPPORTED, "tensor \"%s\" of %u x %u as %s is none that GGUF can have",
                       name, n_rows, n_cols, fl_dtype_name(type));
    }
    o->n_tensors += !o->begun;
    FL_TRY(fl_gguf_out_text(o, fl_str_of(name)));
    FL_TRY(fl_gguf_out_number(o, n_cols != 0 ? 2 : 1, 4));
    if (n_cols != 0) {
        FL_TRY(fl_gguf_out_number(o, n_cols, 8));
    }
    FL_TRY(fl_gguf_out_number(o, n_rows, 8));
    FL_TRY(fl_gguf_out_number(o, number, 4));
    FL_TRY(fl_gguf_out_number(o, o->n_data, 8));
    o->n_data = (o->n_data + rows * bytes + FL_GGUF_OUT_ALIGN - 1) / FL_GGUF_OUT_ALIGN * FL_GGUF_OUT_ALIGN;
    return FOLOLLM_OK;
}
