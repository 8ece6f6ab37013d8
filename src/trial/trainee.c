#include <operant/trainee.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the set-up of the run");
}

/* ---- opening ---- */

static op_status parse_targets(const char *list, unsigned *targets, op_error *e)
{
    static const struct {
        const char *name;
        unsigned bits;
    } known[] = {
        {"all-linear", OP_LORA_ALL}, {"q_proj", OP_LORA_Q}, {"k_proj", OP_LORA_K}, {"v_proj", OP_LORA_V}, {"o_proj", OP_LORA_O},
        {"gate_proj", OP_LORA_GATE}, {"up_proj", OP_LORA_UP}, {"down_proj", OP_LORA_DOWN},
        {"c_attn", OP_LORA_Q | OP_LORA_K | OP_LORA_V}, {"c_fc", OP_LORA_UP}, {"c_proj", OP_LORA_O | OP_LORA_DOWN},
    };
    *targets = 0;
    for (const char *word = list; word && *word;) {
        word += strspn(word, ", ");
        size_t n = strcspn(word, ", "), i = 0;
        while (i < sizeof known / sizeof *known && (strlen(known[i].name) != n || memcmp(known[i].name, word, n) != 0))
            i++;
        if (n && i == sizeof known / sizeof *known)
            return op_error_set(e, OP_ERR_ARG, "key \"lora.target_modules\": unknown module \"%.*s\"", (int)n, word);
        if (n)
            *targets |= known[i].bits;
        word += n;
    }
    return *targets ? OP_OK : op_error_set(e, OP_ERR_ARG, "key \"lora.target_modules\": found no module, expected one or more");
}

/* A model given as an adapter over a base: training an adapter goes on from it, training everything first folds it in. */
static op_status use_given_adapters(op_model *m, int method, op_error *e)
{
    op_status status = OP_OK;
    int32_t n = op_model_adapter_count(m);
    if (method == OP_METHOD_LORA && n != 1)
        return op_error_set(e, OP_ERR_MISMATCH, "the adapter to go on from has another rank or other modules than the settings under \"lora\"");
    for (int32_t i = 0; !status && method == OP_METHOD_FULL && i < n; i++)
        status = op_model_adapter_merge(m, i, e);
    return status;
}

op_status op_trainee_open(op_subject *out, const op_trainee_options *o, op_error *e)
{
    op_model_options how = {
        .backend = o->backend, .grad_dtype = o->grad_dtype ? OP_BF16 : OP_F32, .act = op_subject_dtype(o->dtype, o->backend), .seed = (uint64_t)o->seed, .recompute = o->recompute, .freeze_embedding = o->freeze_embedding,
        .trainable = o->method == OP_METHOD_LORA ? OP_TRAIN_ADAPTER : OP_TRAIN_ALL,
        .lora = {.rank = (int32_t)o->lora_r, .alpha = (float)o->lora_alpha, .dropout = (float)o->lora_dropout, .rslora = o->lora_rslora}};
    op_status status = o->method == OP_METHOD_LORA ? parse_targets(o->lora_target_modules, &how.lora.targets, e) : OP_OK;
    if (!status && o->grad_dtype && o->method == OP_METHOD_LORA)
        status = op_error_set(e, OP_ERR_ARG, "grad_dtype bf16 is for method full: the gradients of an adapter are float");
    if (!status)
        status = op_subject_open(out, o->model, &how, e);
    if (!status && (status = use_given_adapters(out->model, o->method, e)))
        op_subject_close(out);
    return status;
}

op_learner_options op_trainee_learner(const op_trainee_options *o)
{
    return (op_learner_options){.optim = (op_optim)o->optim, .beta1 = o->adam_beta1, .beta2 = o->adam_beta2, .eps = o->adam_epsilon, .weight_decay = o->weight_decay,
                                .max_grad_norm = o->max_grad_norm, .block_tokens = (int32_t)o->block_tokens,
                                .share_min = (int32_t)o->share_prefix, .seed = (uint64_t)o->seed};
}

/* ---- result ---- */

/* Saving would overwrite or remove the weights that were started from. */
static op_status check_output(const op_trainee_options *o, op_error *e)
{
    char *base;
    if (!op_path_exists(o->output_dir)) /* what is wrong with the model is told when it is opened */
        return OP_OK;
    if (op_path_same(o->model, o->output_dir))
        return op_error_set(e, OP_ERR_ARG, "output_dir \"%s\" is the directory of the model itself", o->output_dir);
    op_status status = op_model_base_path(o->model, &base, e);
    if (!status && op_path_same(base, o->output_dir))
        status = op_error_set(e, OP_ERR_ARG, "output_dir \"%s\" is the directory of the adapter's base model", o->output_dir);
    op_free(base);
    return status;
}

op_status op_trainee_check(const op_trainee_options *o, op_error *e)
{
    const char *missing = !o->model ? "model" : !o->output_dir ? "output_dir" : NULL;
    return missing ? op_error_set(e, OP_ERR_ARG, "key \"%s\" is not set", missing) : check_output(o, e);
}

static op_status remove_file(const char *dir, const char *name, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status status = path ? op_path_remove(path, e) : no_memory(e);
    op_free(path);
    return status;
}

static op_status save_adapter(const op_subject *s, const char *model, const char *dir, op_error *e)
{
    char *named, base[PATH_MAX];
    op_status status = op_model_base_path(model, &named, e);
    if (!status && !realpath(named, base))
        status = op_error_set(e, OP_ERR_IO, "cannot find the base model \"%s\"", named);
    op_free(named);
    return status ? status : op_model_adapter_save(s->model, 0, dir, base, e);
}

op_status op_trainee_save(const op_subject *s, const op_trainee_options *o, op_error *e)
{
    static const op_dtype dtypes[] = {OP_BF16, OP_F32, OP_F16};
    const char *dir = o->output_dir;
    bool lora = o->method == OP_METHOD_LORA;
    op_status status = remove_file(dir, lora ? "config.json" : "adapter_config.json", e);
    if (!status)
        status = remove_file(dir, lora ? "model.safetensors" : "adapter_model.safetensors", e);
    if (!status)
        status = lora ? save_adapter(s, o->model, dir, e) : op_model_save(s->model, dir, dtypes[o->save_dtype], e);
    return status ? status : op_tokenizer_save(s->tokenizer, dir, e);
}

/* ---- identity ---- */

op_status op_trainee_identity(json_t *out, const void *settings, const op_option *table, const char *const *leave_out, op_error *e)
{
    static const char *const free_keys[] = {"model", "output_dir", "threads", "recompute", "resume", "save_total_limit", "save_dtype", NULL};
    op_status status = OP_OK;
    op_buf text;
    op_buf_init(&text, 1 << 16);
    for (const op_option *row = table; !status && row->key; row++) {
        char key[64];
        size_t n = strcspn(row->key, "|");
        memcpy(key, row->key, n);
        key[n] = 0;
        if (op_config_is_among(key, free_keys) || (leave_out && op_config_is_among(key, leave_out)))
            continue;
        const op_option alone[] = {*row, {0}};
        op_buf_clear(&text);
        if (op_config_write(settings, alone, &text)) {
            status = no_memory(e);
            break;
        }
        const char *value = strstr(text.data, ": "); /* "key: value" or "group:\n  key: value" */
        value = value ? value + 2 : "";
        if (json_object_set_new(out, key, json_stringn(value, strcspn(value, "\n"))))
            status = no_memory(e);
    }
    op_buf_release(&text);
    return status;
}
