/* operant/subject.h: a model with its words: tokenizer, chat template and weights of one path, opened and closed together. */
#ifndef OPERANT_SUBJECT_H
#define OPERANT_SUBJECT_H

#include <operant/chat.h>
#include <operant/dtype.h>
#include <operant/model.h>
#include <operant/tokenizer.h>

typedef struct op_subject {
    op_model *model;    /* NULL: only the words were opened */
    op_tokenizer *tokenizer;
    op_template *tmpl;  /* NULL: there is no chat template */
    op_chat chat;       /* of the two above */
    int32_t adapter;    /* what sequences are to use: the first adapter, 0, or -1: the model has none */
} op_subject;

/* Opens what lies at `path` (as op_model_open and op_tokenizer_open take it). On failure nothing is held. */
op_status op_subject_open(op_subject *s, const char *path, const op_model_options *o, op_error *e);
/* The same without the model. */
op_status op_subject_open_words(op_subject *s, const char *path, op_error *e);
void op_subject_close(op_subject *s); /* one that is all zeros, or was closed, is fine */

/* The choices of a setting "dtype". */
#define OP_SUBJECT_DTYPES "auto|f32|bf16"
/* The type of activations and products for such a choice: auto is bf16 where the processor multiplies it, unless a backend was named (NULL: none). */
op_dtype op_subject_dtype(int choice, const char *backend);

#endif
