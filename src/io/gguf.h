/* io/gguf.h: writing GGUF v3 (reading: operant/tensors.h).
 *
 * Lifecycle: new, put keys and add tensors in any order, save, free. Alignment 32. Tensor types are those that can be read;
 * from floats F32, F16, BF16 and Q8_0. Keys and tensor names are printable ASCII, names at most 63 bytes (llama.cpp's limit). */
#ifndef OP_IO_GGUF_H
#define OP_IO_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/tensor_out.h"

typedef struct op_gguf_writer op_gguf_writer;

op_gguf_writer *op_gguf_writer_new(void); /* NULL when memory is out */
void op_gguf_writer_free(op_gguf_writer *w);

/* Values are copied. A put that fails is remembered: save returns the first failure, so puts need no check of their own. */
void op_gguf_put_string(op_gguf_writer *w, const char *key, const char *s, size_t n);
void op_gguf_put_u32(op_gguf_writer *w, const char *key, uint32_t v);
void op_gguf_put_i32(op_gguf_writer *w, const char *key, int32_t v);
void op_gguf_put_u64(op_gguf_writer *w, const char *key, uint64_t v);
void op_gguf_put_f32(op_gguf_writer *w, const char *key, float v);
void op_gguf_put_bool(op_gguf_writer *w, const char *key, bool v);
void op_gguf_put_i32s(op_gguf_writer *w, const char *key, const int32_t *v, size_t n);
void op_gguf_put_f32s(op_gguf_writer *w, const char *key, const float *v, size_t n);
/* An array of n strings; lengths NULL: they end in a 0 byte. */
void op_gguf_put_strings(op_gguf_writer *w, const char *key, const char *const *strings, const size_t *lengths, size_t n);
/* Copies one key, of any type, from a GGUF that was read. An absent key is OP_ERR_ARG. */
void op_gguf_put_copy(op_gguf_writer *w, const op_tensors *from, const char *key);

void op_gguf_add_tensor(op_gguf_writer *w, const op_tensor_out *t); /* *t is copied, what it points to is borrowed */

op_status op_gguf_save(op_gguf_writer *w, const char *path, op_error *e);

#endif
