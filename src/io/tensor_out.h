/* io/tensor_out.h: a tensor on its way into a file, whatever the format. */
#ifndef OP_IO_TENSOR_OUT_H
#define OP_IO_TENSOR_OUT_H

#include <operant/tensors.h>

#include "io/file.h"

/* Gives elements first..first+n-1 of a tensor as floats. Called in order, never past the count; whole blocks of 256 except
 * at the end, so op_tensor_read_f32 on a tensor of any type can serve as one. */
typedef op_status (*op_tensor_source)(void *ctx, int64_t first, int64_t n, float *out, op_error *e);

/* Everything is borrowed until the file is written. */
typedef struct op_tensor_out {
    const char *name;
    op_dtype dtype;
    int rank;
    int64_t shape[OP_TENSOR_RANK_MAX]; /* outermost first */
    const void *data;        /* the bytes as they shall stand in the file, or NULL: */
    op_tensor_source source; /* floats, converted to F32, F16, BF16 or Q8_0 */
    void *ctx;               /* of source */
} op_tensor_out;

/* Checks name, rank, shape and that there are data; tells the bytes. `name` of the file is for messages. */
op_status op_tensor_out_check(const op_tensor_out *t, size_t *bytes, const char *file, op_error *e);
op_status op_tensor_out_write(const op_tensor_out *t, op_file *f, op_error *e);

/* A source whose ctx is a `const op_tensor *`: converts what another file holds. */
op_status op_tensor_as_source(void *ctx, int64_t first, int64_t n, float *out, op_error *e);

#endif
