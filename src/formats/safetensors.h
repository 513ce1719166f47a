/* safetensors: one file, or shards with an index, as one directory of named tensors.
 *
 *     u64 n | n bytes of JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end)}} | data
 *
 * Checked before anything is believed: header within the file, names unique, shape times size equal to the byte
 * range, ranges without overlap or hole, the last ending with the file (the rules of the format's reference reader). */
#ifndef FL_SAFETENSORS_H
#define FL_SAFETENSORS_H

#include "base/map.h"
#include "base/os.h"
#include "formats/dtype.h"

#define FL_TENSOR_DIMS 8

typedef struct fl_tensor {
    fl_str name;
    fl_dtype type;
    char type_name[12]; /* as the file spells it */
    uint32_t n_dims;
    uint64_t shape[FL_TENSOR_DIMS];
    uint64_t offset, n_bytes; /* in its file */
    uint32_t file;
    bool bound; /* has been given a role */
} fl_tensor;

typedef struct fl_tensors {
    fl_memory *memory;
    fl_tensor *tensors;
    size_t n_tensors, capacity;
    fl_file *files;
    size_t n_files, files_capacity;
    fl_str *headers; /* (n_files) the text that names point into */
    size_t headers_capacity;
    fl_arena arena; /* of by_name */
    fl_name_map by_name;
} fl_tensors;

/* Open one file of a directory; name NULL: every file of a checkpoint. Headers are read; on failure nothing stays
 * open. */
FL_LOCAL folollm_status fl_tensors_open(fl_memory *m, fl_tensors *t, const char *directory, const char *name,
                                        folollm_error *error);
FL_LOCAL void fl_tensors_close(fl_tensors *t);

/* Make tensors that were put in findable. Two of one name are FOLOLLM_E_FORMAT. */
FL_LOCAL folollm_status fl_tensors_index(fl_tensors *t, folollm_error *error);

/* Give back what only finding needs; the files stay open, and a tensor that was copied stays valid without its name. */
FL_LOCAL void fl_tensors_forget_names(fl_tensors *t);
FL_LOCAL uint64_t fl_tensors_names_bytes(const fl_tensors *t); /* what that gives back */

/* NULL: no tensor of this name. */
FL_LOCAL const fl_tensor *fl_tensors_find(const fl_tensors *t, fl_str name);

#endif
