/* safetensors: a file, or, where the input's first byte is '{', an index of shards "a" and "b" that are sound. What is
 * accepted covers the file without hole or overlap, and is found by its names. */
#include "fuzz.h"

#include "safetensors_mutate.h"

static const char shard_a[] = "\x33\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}a";
static const char shard_b[] = "\x33\0\0\0\0\0\0\0{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}b";

static void check_tensors(const fl_tensors *t) {
    uint64_t end[2] = {0, 0}, n_bytes[2] = {0, 0};
    FUZZ_CHECK(t->n_files >= 1 && t->n_files <= 2);
    for (size_t i = 0; i < t->n_tensors; i++) {
        const fl_tensor *tensor = &t->tensors[i];
        FUZZ_CHECK(tensor->file < t->n_files && tensor->n_dims <= FL_TENSOR_DIMS);
        FUZZ_CHECK(fl_within(tensor->offset, tensor->n_bytes, t->files[tensor->file].size));
        FUZZ_CHECK(memchr(tensor->type_name, 0, sizeof tensor->type_name) != NULL);
        FUZZ_CHECK(fl_tensors_find(t, tensor->name) == tensor);
        n_bytes[tensor->file] += tensor->n_bytes;
        end[tensor->file] = tensor->offset + tensor->n_bytes > end[tensor->file] ? tensor->offset + tensor->n_bytes
                                                                                : end[tensor->file];
    }
    for (size_t i = 0; i < t->n_files; i++) {
        FUZZ_CHECK(n_bytes[i] == 0 || end[i] == t->files[i].size);
        FUZZ_CHECK(n_bytes[i] == t->files[i].size - 8 - t->headers[i].n);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes input = {data, size}, a = {(const uint8_t *)shard_a, sizeof shard_a - 1};
    fuzz_bytes b = {(const uint8_t *)shard_b, sizeof shard_b - 1};
    bool index = size > 0 && data[0] == '{';
    fl_memory m;
    fl_tensors t;
    fuzz_begin((index ? 40 : 24) * size + 8 * FUZZ_KIB);
    fuzz_forget_error();
    fuzz_file(index ? "mem/model.safetensors.index.json" : "mem/model.safetensors", input);
    if (index) {
        fuzz_file("mem/a", a);
        fuzz_file("mem/b", b);
    }
    fl_memory_init(&m, &fuzz.hooks);
    folollm_status status = fuzz_status(fl_tensors_open(&m, &t, "mem", NULL, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT || (index && status == FOLOLLM_E_IO));
    if (status == FOLOLLM_OK) {
        check_tensors(&t);
        fl_tensors_forget_names(&t);
        fl_tensors_close(&t);
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
    return size > 0 && data[0] == '{' ? LLVMFuzzerMutate(data, size, room) : safetensors_mutate(data, size, room, seed);
}
