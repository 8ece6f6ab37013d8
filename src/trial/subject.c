#include <operant/subject.h>

#include <string.h>

#include "ops/ops.h"

op_status op_subject_open_words(op_subject *s, const char *path, op_error *e)
{
    *s = (op_subject){.adapter = -1};
    op_status status = op_tokenizer_open(&s->tokenizer, path, e);
    const char *source = status ? NULL : op_tokenizer_chat_template(s->tokenizer);
    if (source)
        status = op_template_parse(&s->tmpl, source, strlen(source), e);
    if (status)
        op_subject_close(s);
    s->chat = (op_chat){.tokenizer = s->tokenizer, .tmpl = s->tmpl};
    return status;
}

op_status op_subject_open(op_subject *s, const char *path, const op_model_options *o, op_error *e)
{
    op_status status = op_subject_open_words(s, path, e);
    if (status)
        return status;
    status = op_model_open(&s->model, path, o, e);
    if (status)
        op_subject_close(s);
    else
        s->adapter = op_model_adapter_count(s->model) ? 0 : -1;
    return status;
}

void op_subject_close(op_subject *s)
{
    op_model_free(s->model);
    op_template_free(s->tmpl);
    op_tokenizer_free(s->tokenizer);
    *s = (op_subject){.adapter = -1};
}

op_dtype op_subject_dtype(int choice, const char *backend)
{
    enum { AUTO, F32, BF16 };
    return choice == BF16 || (choice == AUTO && !backend && op_ops_native_bf16()) ? OP_BF16 : OP_F32;
}
