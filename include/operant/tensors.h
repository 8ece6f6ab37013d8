/* operant/tensors.h: named tensors in files, whatever the format.
 *
 * An op_tensors is a read-only view of one model's tensors: a .safetensors file, a sharded set (a directory or its
 * model.safetensors.index.json: exactly the tensors of its weight_map) or a .gguf file. The data stay in memory maps; nothing is copied until a tensor is read.
 * Lifecycle: open, find/read, close. All pointers handed out live until op_tensors_close. */
#ifndef OPERANT_TENSORS_H
#define OPERANT_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/dtype.h>
#include <operant/status.h>

const char *op_dtype_name(op_dtype t);             /* "F32", "Q4_1", ... */
size_t op_dtype_block(op_dtype t);                 /* elements per block: 1, 32 or 256 */
size_t op_dtype_block_bytes(op_dtype t);           /* bytes per block */

#define OP_TENSOR_RANK_MAX 4

typedef struct op_tensor {
    const char *name;                  /* as in the file */
    op_dtype dtype;
    int rank;                          /* 0..4 */
    int64_t shape[OP_TENSOR_RANK_MAX]; /* row-major, outermost first (GGUF's reversed order is already undone) */
    int64_t count;                     /* product of shape */
    const void *data;                  /* in the map; may be unaligned */
    size_t bytes;
} op_tensor;

typedef enum op_tensors_format { OP_SAFETENSORS, OP_GGUF } op_tensors_format;

typedef struct op_tensors op_tensors;

/* Opens a file, or a directory that holds model.safetensors.index.json, model.safetensors or adapter_model.safetensors. On failure *out is NULL and *e names the file and the offset or key. */
op_status op_tensors_open(op_tensors **out, const char *path, op_error *e);
void op_tensors_close(op_tensors *t); /* NULL is fine */

op_tensors_format op_tensors_get_format(const op_tensors *t);
size_t op_tensors_count(const op_tensors *t);
const op_tensor *op_tensors_at(const op_tensors *t, size_t i);
const op_tensor *op_tensors_find(const op_tensors *t, const char *name); /* NULL if there is none; hashed */

/* Converts (dequantises) elements first..first+n-1 into out[n]. For quantised types `first` and `n` are multiples of
 * the block. Integer types are refused. */
op_status op_tensor_read_f32(const op_tensor *t, int64_t first, int64_t n, float *out, op_error *e);

/* Metadata: safetensors' __metadata__ (all strings) or GGUF's key-value pairs. An absent key, a value of another type and
 * an integer beyond int64_t give NULL or the fallback. Strings end in a 0 byte (`len` may be NULL); those of arrays do not. */
const char *op_tensors_meta_string(const op_tensors *t, const char *key, size_t *len);
int64_t op_tensors_meta_int(const op_tensors *t, const char *key, int64_t fallback);
double op_tensors_meta_float(const op_tensors *t, const char *key, double fallback);
/* Arrays (GGUF only): number of elements, or 0. Elements by index, checked. */
size_t op_tensors_meta_array(const op_tensors *t, const char *key);
const char *op_tensors_meta_array_string(const op_tensors *t, const char *key, size_t i, size_t *len);
int64_t op_tensors_meta_array_int(const op_tensors *t, const char *key, size_t i);
double op_tensors_meta_array_float(const op_tensors *t, const char *key, size_t i);
/* Everything as a new JSON object (caller decrefs); arrays longer than `longest` become {"array": n, "type": "..."}. */
json_t *op_tensors_meta_json(const op_tensors *t, size_t longest);

#endif
