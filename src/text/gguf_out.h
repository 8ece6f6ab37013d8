/* text/gguf_out.h: a tokenizer's part of a GGUF file. The model's part comes from model/gguf_out.h. */
#ifndef OP_TEXT_GGUF_OUT_H
#define OP_TEXT_GGUF_OUT_H

#include <operant/tokenizer.h>

#include "io/gguf.h"

/* Puts tokenizer.ggml.* and tokenizer.chat_template. Ids from the tokenizer's size up to n_vocab, the rows of the model's
 * embedding, become unused "[PAD<id>]" tokens. OP_ERR_UNSUPPORTED: llama.cpp has no name for this pre-tokenizer. */
op_status op_tokenizer_put_gguf(const op_tokenizer *t, op_gguf_writer *w, int32_t n_vocab, op_error *e);

#endif
