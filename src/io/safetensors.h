/* io/safetensors.h: writing safetensors (reading: operant/tensors.h).
 *
 * A file is written atomically. The types of safetensors are F32, F16, BF16, F64 and the integers; larger elements
 * come first, so that every tensor is aligned to its element. */
#ifndef OP_IO_SAFETENSORS_H
#define OP_IO_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "io/tensor_out.h"

/* An entry of __metadata__; {"format": "pt"} is always written and need not be given. */
typedef struct op_safetensors_meta {
    const char *key, *value;
} op_safetensors_meta;

op_status op_safetensors_write(const char *path, const op_tensor_out *tensors, size_t n, const op_safetensors_meta *meta,
                               size_t n_meta, op_error *e);

/* Writes dir/model.safetensors, or, if the tensors have more than shard_bytes, shards of at most that (and at least one
 * tensor each) and then dir/model.safetensors.index.json. A model in `dir` that the other form left there is removed. */
op_status op_safetensors_write_dir(const char *dir, const op_tensor_out *tensors, size_t n, const op_safetensors_meta *meta,
                                   size_t n_meta, uint64_t shard_bytes, op_error *e);

#endif
