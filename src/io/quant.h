/* io/quant.h: elements as they stand in files, to and from float.
 *
 * Blocks as ggml lays them out (ggml-common.h; checked against PyPI gguf's gguf.quants). Little-endian. */
#ifndef OP_IO_QUANT_H
#define OP_IO_QUANT_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/tensors.h>

/* bytes[n / block * block_bytes] to out[n]; n is a multiple of the block. False for integer types. */
bool op_dequantize(op_dtype type, const void *bytes, size_t n, float *out);

/* values[n] to F32, F16, BF16 or Q8_0 (n a multiple of 32: per block d = max|x| / 127, q = round(x / d), halves away from
 * zero). False for other types. */
bool op_quantize(op_dtype type, const float *values, size_t n, void *bytes);

#endif
