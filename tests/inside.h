/* The insides of folollm.c, for tests. inside.c holds them, compiled once for all programs of a kind, because the
 * unrolled kernels take longer to compile than all tests together; here they are declared. */
#ifndef INSIDE_H
#define INSIDE_H

#define FL_LOCAL /* nothing is static but what one file of src/ keeps to itself */
#include "api/engine.h"
#include "base/math.h"
#include "base/utf8.h"
#include "model/config_gguf.h"
#include "model/config_gguf_write.h"
#include "text/tokenizer_build.h"
#include "text/tokenizer_gguf_write.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

/* Under AddressSanitizer everything takes many times as long, and what it looks for does not depend on how often. */
#if defined(__has_feature) /* clang's */
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif
#if !defined(SANITIZED)
#define SANITIZED 0
#endif

/* What no header of src/ has. */
#define INSIDE_TABLES 5

typedef struct inside_dtype { /* a type of tensors in GGUF files; one that is not any more has no name */
    const char *name;
    uint16_t numbers, bytes; /* of a block */
    fl_dtype type;
} inside_dtype;

extern const uint32_t inside_snapshot_version, inside_shards_max, inside_gguf_depth, inside_gguf_n_dtypes;

inside_dtype inside_gguf_dtype(uint32_t number);
uint8_t inside_gguf_bytes(fl_gguf_type type); /* of a value; 0: as long as it says itself */
uint32_t inside_pool_threads(const fl_pool *pool); /* of its own that run */

/* The tables of kernels of this processor, how many; those of AVX2 and AVX-512 are two, of NEON three.
 * The last is the best. */
size_t inside_tables(const fl_kernels *tables[INSIDE_TABLES]);
uint64_t inside_checksum(const uint8_t *p, size_t n);
double inside_uniform(uint64_t seed, uint64_t position);
size_t inside_rotation(size_t head_dim);
void inside_pack_row(const fl_kv *kv, bool is_v, const int8_t *q, float scale, uint8_t *row);
void inside_open_rows(const fl_cpu_backend *cpu, const fl_part *part, size_t n_cols, size_t first, size_t n,
                      fl_slab *slab, float *y, size_t stride);

#endif
