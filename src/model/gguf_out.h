/* model/gguf_out.h: a model's part of a GGUF file. The tokenizer's part comes from text/; src/export joins them. */
#ifndef OP_MODEL_GGUF_OUT_H
#define OP_MODEL_GGUF_OUT_H

#include <operant/model.h>

#include "io/gguf.h"

/* Adds the architecture's keys and every tensor: matrices as `dtype` (F32, F16, BF16 or Q8_0), vectors as F32. Rows of Q and K of the llama
 * family are interleaved as llama.cpp wants them. The model must hold float weights and outlive the save. On success *sources is a
 * block that the caller frees (op_free) after op_gguf_save. */
op_status op_model_put_gguf(const op_model *m, op_gguf_writer *w, op_dtype dtype, void **sources, op_error *e);

#endif
