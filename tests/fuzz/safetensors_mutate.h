/* Mutation of safetensors files: mostly the header alone is changed, and the file's two lengths then follow from it.
 * Behind fuzz.h. */
#ifndef FUZZ_SAFETENSORS_MUTATE_H
#define FUZZ_SAFETENSORS_MUTATE_H

#define SAFETENSORS_ROOM 16384

/* The largest number that ends a range in the header. */
static size_t safetensors_end(const uint8_t *header, size_t n) {
    static const char key[] = "\"data_offsets\":[";
    size_t last = 0;
    for (size_t i = 0; i + sizeof key <= n; i++) {
        if (memcmp(header + i, key, sizeof key - 1) != 0) {
            continue;
        }
        const uint8_t *comma = memchr(header + i, ',', n - i);
        size_t end = 0;
        for (const uint8_t *c = comma != NULL ? comma + 1 : header + n; c < header + n && *c >= '0' && *c <= '9'; c++) {
            end = end < 1u << 20 ? end * 10 + (size_t)(*c - '0') : end;
        }
        last = end > last ? end : last;
    }
    return last;
}

static size_t safetensors_mutate(uint8_t *data, size_t size, size_t room, unsigned seed) {
    static uint8_t kept[SAFETENSORS_ROOM];
    uint64_t n = size >= 8 ? fl_load_u64(data) : 0;
    if (seed % 8 == 0 || size < 10 || n > size - 8 || n == 0 || room < 64 || size > sizeof kept) {
        return LLVMFuzzerMutate(data, size, room);
    }
    size_t header = (size_t)n, n_kept = size - 8 - header;
    memcpy(kept, data + 8 + header, n_kept);
    if (seed % 8 == 1 && n_kept > 0) {
        LLVMFuzzerMutate(kept, n_kept, n_kept);
    } else {
        header = LLVMFuzzerMutate(data + 8, header, room - 8);
    }
    size_t end = safetensors_end(data + 8, header);
    for (size_t i = 0; i < 8; i++) {
        data[i] = (uint8_t)((uint64_t)header >> (8 * i));
    }
    end = end <= room - 8 - header ? end : 0;
    for (size_t i = 0; i < end; i++) {
        data[8 + header + i] = i < n_kept ? kept[i] : (uint8_t)(seed >> 8);
    }
    return 8 + header + end;
}

#endif
