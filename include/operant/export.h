/* operant/export.h: writing a model for other programs. */
#ifndef OPERANT_EXPORT_H
#define OPERANT_EXPORT_H

#include <operant/dtype.h>
#include <operant/status.h>

typedef enum op_export_format {
    OP_EXPORT_HF,   /* a directory that transformers loads; an adapter is folded into the weights */
    OP_EXPORT_PEFT, /* a directory that PEFT loads; the model must be an adapter's run directory */
    OP_EXPORT_GGUF, /* one file that llama.cpp loads; an adapter is folded in */
} op_export_format;

/* Writes the model at `model` (a model directory, an adapter's run directory, a .gguf) with its tokenizer to `output`, a directory or, for GGUF, a
 * file. dtype: OP_F32, OP_F16, OP_BF16, for GGUF also OP_Q8_0. An earlier export of the same kind is replaced; OP_ERR_ARG when the output is the model
 * (or the base of the adapter) that is read, or a directory that holds the other kind of result. */
op_status op_export(const char *model, op_export_format format, const char *output, op_dtype dtype, op_error *e);

#endif
