/* GGUF, versions 2 and 3: one file that holds a model's settings, its tokenizer and its tensors.
 *
 *     "GGUF" | u32 version | u64 tensors | u64 entries
 *     entry:  string key | u32 type | value               string: u64 n | n bytes     array: u32 type | u64 n | values
 *     tensor: string name | u32 dims | u64 sizes, the contiguous one first | u32 type | u64 offset in the data
 *     zeros up to a multiple of general.alignment | data of one tensor after another, each filled up to the alignment
 *
 * Everything before the data is read once and stays in one block; keys, text and arrays point into it. It is walked
 * twice: first to check it and to learn how long it is, then to note where things are. So no count of the file is
 * believed before that many things were seen, and nothing is allocated that the file does not have the bytes for. */
#ifndef FL_GGUF_H
#define FL_GGUF_H

#include "base/map.h"
#include "base/os.h"
#include "formats/safetensors.h"

typedef enum fl_gguf_type {
    FL_GGUF_U8,
    FL_GGUF_I8,
    FL_GGUF_U16,
    FL_GGUF_I16,
    FL_GGUF_U32,
    FL_GGUF_I32,
    FL_GGUF_F32,
    FL_GGUF_BOOL,
    FL_GGUF_STRING,
    FL_GGUF_ARRAY,
    FL_GGUF_U64,
    FL_GGUF_I64,
    FL_GGUF_F64,
    FL_GGUF_TYPE_COUNT
} fl_gguf_type;

typedef struct fl_gguf_value {
    fl_gguf_type type;
    fl_gguf_type of;   /* an array's elements */
    size_t n;          /* bytes of a string, elements of an array */
    const uint8_t *at; /* of a string its text, of an array its first element, not aligned */
} fl_gguf_value;

typedef struct fl_gguf_entry {
    fl_str key;
    fl_gguf_value value;
} fl_gguf_entry;

typedef struct fl_gguf {
    fl_memory *memory;
    fl_file file;
    uint8_t *header; /* the file up to its data, and perhaps some of that */
    size_t header_capacity, header_read;
    fl_gguf_entry *entries; /* (n_entries) in the order of the file */
    fl_tensor *tensors;     /* (n_tensors) in the order of the file; shapes as PyTorch has them, reversed */
    size_t n_entries, n_tensors;
    size_t entries_end;     /* in the file */
    fl_arena arena; /* of entries, tensors and by_key */
    fl_name_map by_key;
} fl_gguf;

/* Is path that of a GGUF file? Its name ends in .gguf or, where files are not the host's, whose hooks need not know
 * of directories, its first bytes say so. Fails for want of memory only. */
FL_LOCAL folollm_status fl_gguf_is_at(fl_memory *m, const char *path, bool *is, folollm_error *error);

/* Open a file and read all but its tensors' data, which is checked to be there. On failure nothing stays open. */
FL_LOCAL folollm_status fl_gguf_open(fl_memory *m, fl_gguf *g, const char *path, folollm_error *error);
FL_LOCAL void fl_gguf_close(fl_gguf *g);

/* Its tensors as a directory like that of a safetensors checkpoint, with files of its own: g may be closed before it.
 * If g is the first file of a split model, NAME-00001-of-00002.gguf, the others are read too. On failure nothing stays
 * open. */
FL_LOCAL folollm_status fl_gguf_tensors(const fl_gguf *g, fl_tensors *t, folollm_error *error);

/* ---- For writing -- */

#define FL_GGUF_NO_NUMBER UINT32_MAX

/* The number that a type has in a file, and the bytes of a row of n; FL_GGUF_NO_NUMBER: the format does not have it, or
 * the row is no whole blocks. */
FL_LOCAL uint32_t fl_gguf_number_of(fl_dtype type, uint64_t n, uint64_t *row_bytes);

/* Where an entry stands in the file, from its key's length to the end of its value. */
FL_LOCAL fl_str fl_gguf_entry_bytes(const fl_gguf *g, size_t i);

/* ---- Entries. Keys are unique. -- */

/* NULL: no such key. */
FL_LOCAL const fl_gguf_value *fl_gguf_find(const fl_gguf *g, const char *key);

/* Values under a key, or `missing` when the key is not there (a string: text at NULL; an array: no elements, of U8).
 * Integers may be of any width; a double, also of any integer type. A value of another type, or an integer that does
 * not fit, is FOLOLLM_E_FORMAT. */
FL_LOCAL folollm_status fl_gguf_u32(const fl_gguf *g, const char *key, uint32_t missing, uint32_t *out,
                                    folollm_error *error);
FL_LOCAL folollm_status fl_gguf_u64(const fl_gguf *g, const char *key, uint64_t missing, uint64_t *out,
                                    folollm_error *error);
FL_LOCAL folollm_status fl_gguf_double(const fl_gguf *g, const char *key, double missing, double *out,
                                       folollm_error *error);
FL_LOCAL folollm_status fl_gguf_bool(const fl_gguf *g, const char *key, bool missing, bool *out, folollm_error *error);
FL_LOCAL folollm_status fl_gguf_string(const fl_gguf *g, const char *key, fl_str *out, folollm_error *error);

/* of: FL_GGUF_STRING, FL_GGUF_BOOL, FL_GGUF_I64 for integers of any type, FL_GGUF_F64 for numbers of any type. */
FL_LOCAL folollm_status fl_gguf_array(const fl_gguf *g, const char *key, fl_gguf_type of, fl_gguf_value *out,
                                      folollm_error *error);

/* Take the first element off an array. False: it is empty, or its elements are arrays, which are checked but not read.
 *     while (fl_gguf_next(&array, &element)) ... */
FL_LOCAL bool fl_gguf_next(fl_gguf_value *array, fl_gguf_value *element);

/* Element i of an array whose elements are numbers or booleans; false: there is none. */
FL_LOCAL bool fl_gguf_at(const fl_gguf_value *array, size_t i, fl_gguf_value *element);

/* What a value is. False, and *out untouched: it has another type, or does not fit. */
FL_LOCAL bool fl_gguf_to_u64(const fl_gguf_value *v, uint64_t *out);
FL_LOCAL bool fl_gguf_to_i64(const fl_gguf_value *v, int64_t *out);
FL_LOCAL bool fl_gguf_to_double(const fl_gguf_value *v, double *out);
FL_LOCAL bool fl_gguf_to_bool(const fl_gguf_value *v, bool *out);
FL_LOCAL bool fl_gguf_to_string(const fl_gguf_value *v, fl_str *out);

#endif
