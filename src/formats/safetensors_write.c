#include "formats/safetensors_write.h"

static folollm_status fl_tensors_out_text(fl_tensors_out *o, const char *text, size_t n, folollm_error *error) {
    void *p = o->header;
    if (!fl_grow(o->memory, &p, &o->capacity, o->n_header + n, 1)) {
        return fl_no_memory(error, "the header of a safetensors file", o->n_header + n);
    }
    o->header = p;
    memcpy(o->header + o->n_header, text, n);
    o->n_header += n;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_tensors_out_announce(fl_tensors_out *o, const char *name, const char *dtype, uint64_t n_rows,
                                                uint64_t n_cols, uint64_t n_bytes, folollm_error *error) {
    char entry[512];
    size_t n = fl_format(entry, sizeof entry, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", o->n_header == 0 ? "{" : ",",
                         name, dtype, n_rows);
    if (n_cols != 0) {
        n += fl_format(entry + n, sizeof entry - n, ",%u", n_cols);
    }
    n += fl_format(entry + n, sizeof entry - n, "],\"data_offsets\":[%u,%u]}", o->n_data, o->n_data + n_bytes);
    o->n_data += n_bytes;
    return fl_tensors_out_text(o, entry, n, error);
}

FL_LOCAL folollm_status fl_tensors_out_data(fl_tensors_out *o, const void *bytes, size_t n_bytes,
                                            folollm_error *error) {
    if (o->write(o->user, bytes, n_bytes) != 0) {
        return fl_fail(error, FOLOLLM_E_IO, "the host could not write %u bytes of tensors", (uint64_t)n_bytes);
    }
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_tensors_out_header(fl_tensors_out *o, folollm_error *error) {
    uint8_t length[8];
    FL_TRY(fl_tensors_out_text(o, "}", 1, error));
    while ((sizeof length + o->n_header) % FL_ALIGN != 0) {
        FL_TRY(fl_tensors_out_text(o, " ", 1, error));
    }
    uint64_t n = o->n_header;
    memcpy(length, &n, sizeof length);
    FL_TRY(fl_tensors_out_data(o, length, sizeof length, error));
    return fl_tensors_out_data(o, o->header, o->n_header, error);
}

FL_LOCAL void fl_tensors_out_close(fl_tensors_out *o) {
    fl_free(o->memory, o->header, o->capacity);
}
