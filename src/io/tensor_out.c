#include "io/tensor_out.h"

#include "io/quant.h"
#include "io/tensors.h"
#include "io/utf8.h"

enum { PART = 1 << 15 }; /* elements converted at a time; a multiple of every block */

static bool measure(const op_tensor_out *t, op_tensor *m)
{
    *m = (op_tensor){.dtype = t->dtype, .rank = t->rank};
    if (t->dtype >= OP_DTYPE_COUNT || t->rank < 0 || t->rank > OP_TENSOR_RANK_MAX)
        return false;
    for (int i = 0; i < t->rank; i++)
        m->shape[i] = t->shape[i];
    return op_tensor_measure(m);
}

op_status op_tensor_out_check(const op_tensor_out *t, size_t *bytes, const char *file, op_error *e)
{
    op_tensor m;
    if (!t->name || !*t->name)
        return op_error_set(e, OP_ERR_ARG, "%s: a tensor has no name", file);
    if (!op_utf8_valid(t->name))
        return op_error_set(e, OP_ERR_ARG, "%s: a tensor's name is not UTF-8", file);
    if (!measure(t, &m))
        return op_error_set(e, OP_ERR_ARG, "%s: tensor \"%s\": its shape and type do not fit", file, t->name);
    if (m.bytes && !t->data && !t->source)
        return op_error_set(e, OP_ERR_ARG, "%s: tensor \"%s\": there are no data", file, t->name);
    if (!t->data && t->dtype != OP_F32 && t->dtype != OP_F16 && t->dtype != OP_BF16 && t->dtype != OP_Q8_0)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\": cannot convert to %s", file, t->name,
                            op_dtype_name(t->dtype));
    *bytes = m.bytes;
    return OP_OK;
}

op_status op_tensor_out_write(const op_tensor_out *t, op_file *f, op_error *e)
{
    op_tensor m;
    size_t bytes;
    op_status s = op_tensor_out_check(t, &bytes, f->path, e);
    if (s || t->data)
        return s ? s : op_file_write(f, t->data, bytes, e);
    measure(t, &m);
    size_t n = m.count < PART ? (size_t)m.count : PART;
    float *values = op_alloc_array(n, sizeof *values);
    unsigned char *encoded = op_alloc_array(n, sizeof *values); /* no type that is written is larger than a float */
    if (!values || !encoded)
        s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", f->path);
    for (int64_t at = 0; at < m.count && !s; at += (int64_t)n) {
        n = m.count - at < PART ? (size_t)(m.count - at) : PART;
        s = t->source(t->ctx, at, (int64_t)n, values, e);
        if (!s) {
            op_quantize(t->dtype, values, n, encoded);
            s = op_file_write(f, encoded, n / op_dtype_block(t->dtype) * op_dtype_block_bytes(t->dtype), e);
        }
    }
    op_free(values);
    op_free(encoded);
    return s;
}

op_status op_tensor_as_source(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    return op_tensor_read_f32(ctx, first, n, out, e);
}
