#include <operant/export.h>

#include <string.h>

#include <operant/file.h>
#include <operant/model.h>
#include <operant/tokenizer.h>

#include "base/mem.h"
#include "io/gguf.h"
#include "model/gguf_out.h"
#include "text/gguf_out.h"

static op_status write_gguf(const op_model *m, const op_tokenizer *t, const char *path, op_dtype dtype, op_error *e)
{
    op_gguf_writer *w = op_gguf_writer_new();
    if (!w)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    void *sources = NULL;
    op_status s = op_model_put_gguf(m, w, dtype, &sources, e);
    if (!s)
        s = op_tokenizer_put_gguf(t, w, op_model_get_config(m)->vocab, e);
    if (!s)
        s = op_gguf_save(w, path, e);
    op_free(sources);
    op_gguf_writer_free(w);
    return s;
}

static op_status write_peft(const op_model *m, const char *model, const char *dir, op_error *e)
{
    char *base = NULL;
    op_status s = op_model_base_path(model, &base, e);
    if (!s)
        s = op_model_adapter_save(m, op_model_adapter_count(m) - 1, dir, base, e);
    op_free(base);
    return s;
}

/* Writing over what is read, or beside what would be found first when the result is opened. */
static op_status check_output(const char *model, op_export_format format, const char *output, op_error *e)
{
    static const char *const others[][4] = {[OP_EXPORT_HF] = {"adapter_config.json", "adapter_model.safetensors"},
                                            [OP_EXPORT_PEFT] = {"config.json", "model.safetensors", "model.safetensors.index.json"}};
    char *base = NULL;
    op_status s = OP_OK;
    if (!op_path_exists(output))
        return OP_OK;
    if (format == OP_EXPORT_GGUF ? op_path_is_dir(output) : !op_path_is_dir(output))
        return op_error_set(e, OP_ERR_ARG, "output \"%s\": found a %s, expected the name of a %s", output, op_path_is_dir(output) ? "directory" : "file",
                            format == OP_EXPORT_GGUF ? "file" : "directory");
    if (op_path_same(model, output))
        return op_error_set(e, OP_ERR_ARG, "output \"%s\" is the model itself", output);
    for (size_t i = 0; format != OP_EXPORT_GGUF && others[format][i]; i++) {
        char *path = op_path_join(output, others[format][i]);
        if (!path)
            return op_error_set(e, OP_ERR_NOMEM, "out of memory");
        if (op_path_exists(path))
            s = op_error_set(e, OP_ERR_ARG, "output \"%s\" holds %s (\"%s\"), which would be taken for the result: name another directory", output,
                             format == OP_EXPORT_HF ? "an adapter" : "a model", others[format][i]);
        op_free(path);
        if (s)
            return s;
    }
    s = op_model_base_path(model, &base, e);
    if (!s && op_path_same(base, output))
        s = op_error_set(e, OP_ERR_ARG, "output \"%s\" is the base model of the adapter \"%s\"", output, model);
    op_free(base);
    return s;
}

op_status op_export(const char *model, op_export_format format, const char *output, op_dtype dtype, op_error *e)
{
    if (dtype != OP_F32 && dtype != OP_F16 && dtype != OP_BF16 && !(dtype == OP_Q8_0 && format == OP_EXPORT_GGUF))
        return op_error_set(e, OP_ERR_ARG, "type of the weights: expected f32, f16 or bf16, or q8_0 for gguf");
    op_model *m = NULL;
    op_tokenizer *t = NULL;
    op_status s = check_output(model, format, output, e);
    if (!s)
        s = op_tokenizer_open(&t, model, e);
    if (!s)
        s = op_model_open(&m, model, &(op_model_options){.act = OP_F32}, e);
    if (!s && format == OP_EXPORT_PEFT && !op_model_adapter_count(m))
        s = op_error_set(e, OP_ERR_ARG, "%s: holds no adapter; format peft wants the run directory of a LoRA training", model);
    if (!s && format != OP_EXPORT_PEFT)
        for (int32_t i = 0; i < op_model_adapter_count(m) && !s; i++)
            s = op_model_adapter_merge(m, i, e);
    if (!s && format != OP_EXPORT_GGUF)
        s = op_dir_make(output, e);
    if (!s)
        s = format == OP_EXPORT_HF     ? op_model_save(m, output, dtype, e)
            : format == OP_EXPORT_PEFT ? write_peft(m, model, output, e)
                                       : write_gguf(m, t, output, dtype, e);
    if (!s && format != OP_EXPORT_GGUF)
        s = op_tokenizer_save(t, output, e);
    op_model_free(m);
    op_tokenizer_free(t);
    return s;
}
