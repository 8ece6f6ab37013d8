#include <operant/sft.h>

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <operant/dataset.h>
#include <operant/subject.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "ops/ops.h"

enum { METHOD_FULL, METHOD_LORA };

#define AT(field) offsetof(op_sft_options, field)

const op_option op_sft_table[] = {
    {"model|model_name_or_path", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "what to start from: a model directory, an adapter directory or a .gguf file"},
    {"train_file|data", OP_OPTION_STRING, AT(train_file), NULL, 0, 0, NULL, "training data: .jsonl or .json, or either with .gz; the form is detected"},
    {"eval_file|eval_data", OP_OPTION_STRING, AT(eval_file), NULL, 0, 0, NULL, "held-out data in any form; without it eval_fraction of the training data is held out"},
    {"eval_fraction", OP_OPTION_FLOAT, AT(eval_fraction), "0.02", 0, 0.9, NULL, "share of the training data that is held out, chosen by the seed; 0: none"},
    {"output_dir|output", OP_OPTION_STRING, AT(output_dir), NULL, 0, 0, NULL, "run directory; the result lies directly in it"},
    {"max_length|max_seq_length", OP_OPTION_INT, AT(max_length), "1024", 2, 1 << 24, NULL, "tokens of an example, longer ones are cut at the end; never more than the model's positions"},
    {"last_turn_only", OP_OPTION_BOOL, AT(last_turn_only), "false", 0, 0, NULL, "learn only the last assistant turn of a dialogue"},
    {"onset_tokens", OP_OPTION_INT, AT(onset_tokens), "0", 0, 1 << 20, NULL, "the first tokens of every turn that is learned, where it is decided what kind of reply this is, ..."},
    {"onset_weight", OP_OPTION_FLOAT, AT(onset_weight), "1", 0, 1000, NULL, "... weigh this many times as much"},
    {"method", OP_OPTION_CHOICE, AT(method), "full", 0, 0, "full|lora", "train every weight, or an adapter beside frozen weights"},
    {"lora.r|lora_r", OP_OPTION_INT, AT(lora_r), "16", 1, 512, NULL, "rank of the adapter"},
    {"lora.alpha|lora_alpha", OP_OPTION_FLOAT, AT(lora_alpha), "32", 0, 1e6, NULL, "the adapter's output is scaled by alpha / r"},
    {"lora.dropout|lora_dropout", OP_OPTION_FLOAT, AT(lora_dropout), "0", 0, 0.99, NULL, "probability that an input of the adapter is dropped"},
    {"lora.target_modules|lora_target_modules", OP_OPTION_LIST, AT(lora_target_modules), "all-linear", 0, 0, NULL, "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or all-linear"},
    {"lora.rslora|lora.use_rslora|use_rslora", OP_OPTION_BOOL, AT(lora_rslora), "false", 0, 0, NULL, "scale by alpha / sqrt(r) instead"},
    {"learning_rate|lr", OP_OPTION_FLOAT, AT(learning_rate), "2e-5", 0, 10, NULL, "highest learning rate"},
    {"lr_scheduler_type", OP_OPTION_CHOICE, AT(lr_scheduler_type), "cosine", 0, 0, OP_SCHEDULE_CHOICES, "how the learning rate falls after the warm-up"},
    {"warmup_ratio", OP_OPTION_FLOAT, AT(warmup_ratio), "0.03", 0, 1, NULL, "share of the steps in which the rate rises"},
    {"warmup_steps", OP_OPTION_INT, AT(warmup_steps), "0", 0, 1 << 30, NULL, "steps in which the rate rises; 0: by warmup_ratio"},
    {"min_lr_ratio", OP_OPTION_FLOAT, AT(min_lr_ratio), "0", 0, 1, NULL, "the rate never falls below this share of the highest"},
    {"wsd_decay_ratio", OP_OPTION_FLOAT, AT(wsd_decay_ratio), "0.2", 0, 1, NULL, "wsd: share of the steps, at the end, in which the rate falls"},
    {"num_train_epochs|epochs", OP_OPTION_FLOAT, AT(num_train_epochs), "3", 0, 1e6, NULL, "passes over the training data"},
    {"max_steps", OP_OPTION_INT, AT(max_steps), "0", 0, 1 << 30, NULL, "steps, whatever num_train_epochs says; 0: by num_train_epochs"},
    {"per_device_train_batch_size|batch_size", OP_OPTION_INT, AT(batch_size), "8", 1, 1 << 20, NULL, "examples"},
    {"gradient_accumulation_steps", OP_OPTION_INT, AT(gradient_accumulation_steps), "1", 1, 1 << 20, NULL, "a step learns from this many times batch_size examples"},
    {"adam_beta1", OP_OPTION_FLOAT, AT(adam_beta1), "0.9", 0, 0.99999, NULL, "decay of AdamW's mean of gradients"},
    {"adam_beta2", OP_OPTION_FLOAT, AT(adam_beta2), "0.999", 0, 0.9999999, NULL, "decay of AdamW's mean of squared gradients"},
    {"adam_epsilon", OP_OPTION_FLOAT, AT(adam_epsilon), "1e-8", 0, 1, NULL, "added to AdamW's denominator"},
    {"weight_decay", OP_OPTION_FLOAT, AT(weight_decay), "0", 0, 10, NULL, "of matrices, per step and unit of learning rate"},
    {"max_grad_norm", OP_OPTION_FLOAT, AT(max_grad_norm), "1", 0, 1e9, NULL, "the gradient is scaled down to this length; 0: never"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, OP_SUBJECT_DTYPES, "type of activations and products; auto: bf16 where the processor multiplies it"},
    {"backend", OP_OPTION_STRING, AT(backend), NULL, 0, 0, NULL, "\"cpu\", or \"ref\" for plain C"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {"block_tokens", OP_OPTION_INT, AT(block_tokens), "512", 1, 1 << 24, NULL, "tokens of a micro-batch: decides memory, not the result"},
    {"share_prefix", OP_OPTION_INT, AT(share_prefix), "16", 0, 1 << 24, NULL, "examples of a micro-batch that begin with this many equal tokens compute them once; 0: never"},
    {"freeze_embedding", OP_OPTION_BOOL, AT(freeze_embedding), "false", 0, 0, NULL, "method=full without the embedding (and the output layer tied to it): forgets less, runs faster"},
    {"recompute|gradient_checkpointing", OP_OPTION_BOOL, AT(recompute), "false", 0, 0, NULL, "keep only the input of each layer and compute the rest again: less memory, more time"},
    {"seed", OP_OPTION_INT, AT(seed), "1", 0, 0, NULL, "of the held-out split, the order of the data, the adapter and dropout"},
    {"eval_steps", OP_OPTION_INT, AT(eval_steps), "0", 0, 1 << 30, NULL, "steps between measurements of the held-out loss; 0: after every epoch"},
    {"save_steps", OP_OPTION_INT, AT(save_steps), "0", 0, 1 << 30, NULL, "steps between checkpoints; 0: only at the end or when stopped"},
    {"save_total_limit", OP_OPTION_INT, AT(save_total_limit), "1", 0, 1 << 20, NULL, "checkpoints kept; 0: all"},
    {"logging_steps", OP_OPTION_INT, AT(logging_steps), "1", 1, 1 << 30, NULL, "steps between lines of metrics.jsonl"},
    {"resume|resume_from_checkpoint", OP_OPTION_STRING, AT(resume), "auto", 0, 0, NULL, "auto: go on from the newest checkpoint of output_dir; none: start afresh; or a checkpoint's path"},
    {"save_dtype", OP_OPTION_CHOICE, AT(save_dtype), "bf16", 0, 0, "bf16|f32|f16", "type of the saved weights (method=full)"},
    {0},
};

/* Settings that may differ between a checkpoint and its resume: they do not change what is learned, or a hash stands for them. */
static const char *const free_keys[] = {
    "model", "train_file", "eval_file", "output_dir", "threads", "recompute", "eval_steps", "save_steps", "save_total_limit",
    "logging_steps", "resume", "save_dtype", NULL,
};

typedef struct sft {
    const op_sft_options *o;
    op_subject subject;
    op_dataset data, eval_data;
    op_item *items, *held; /* both in `all` or over eval_data */
    op_item *all;
    size_t n, n_held;
    json_t *identity, *facts;
    op_buf config;
} sft;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the set-up of the run");
}

/* ---- model ---- */

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
    if (method == METHOD_LORA && n != 1)
        return op_error_set(e, OP_ERR_MISMATCH, "the adapter to go on from has another rank or other modules than the settings under \"lora\"");
    for (int32_t i = 0; !status && method == METHOD_FULL && i < n; i++)
        status = op_model_adapter_merge(m, i, e);
    return status;
}

static op_status open_subject(sft *s, op_error *e)
{
    const op_sft_options *o = s->o;
    op_model_options how = {
        .backend = o->backend, .act = op_subject_dtype(o->dtype, o->backend), .seed = (uint64_t)o->seed, .recompute = o->recompute, .freeze_embedding = o->freeze_embedding,
        .trainable = o->method == METHOD_LORA ? OP_TRAIN_ADAPTER : OP_TRAIN_ALL,
        .lora = {.rank = (int32_t)o->lora_r, .alpha = (float)o->lora_alpha, .dropout = (float)o->lora_dropout, .rslora = o->lora_rslora}};
    op_status status = o->method == METHOD_LORA ? parse_targets(o->lora_target_modules, &how.lora.targets, e) : OP_OK;
    if (!status)
        status = op_subject_open(&s->subject, o->model, &how, e);
    return status ? status : use_given_adapters(s->subject.model, o->method, e);
}

/* ---- data ---- */

static op_item item_of(const op_example *x)
{
    return (op_item){.ids = x->ids, .weights = x->weights, .n = x->n};
}

static op_status use_eval_file(sft *s, op_error *e)
{
    s->all = op_alloc_array(s->data.n + s->eval_data.n, sizeof *s->all);
    if (!s->all)
        return no_memory(e);
    s->items = s->all;
    s->held = s->all + s->data.n;
    for (; s->n < s->data.n; s->n++)
        s->items[s->n] = item_of(&s->data.examples[s->n]);
    for (; s->n_held < s->eval_data.n; s->n_held++)
        s->held[s->n_held] = item_of(&s->eval_data.examples[s->n_held]);
    return OP_OK;
}

/* Holds out the examples that come first in a permutation drawn by the seed. */
static op_status split(sft *s, op_error *e)
{
    size_t n = s->data.n, n_held = (size_t)(s->o->eval_fraction * (double)n + 0.5);
    if (s->o->eval_fraction > 0 && !n_held && n > 1)
        n_held = 1;
    uint32_t *order = op_alloc_array(n, sizeof *order);
    uint8_t *held = op_alloc_zero(n, 1);
    s->all = op_alloc_array(n, sizeof *s->all);
    op_status status = order && held && s->all ? OP_OK : no_memory(e);
    if (!status) {
        op_rng_permute((uint64_t)s->o->seed, OP_STREAM_SPLIT, (uint32_t)n, order);
        for (size_t i = 0; i < n_held; i++)
            held[order[i]] = 1;
        s->items = s->all;
        s->held = s->all + n - n_held;
        for (size_t i = 0; i < n; i++) {
            op_item *to = held[i] ? &s->held[s->n_held++] : &s->items[s->n++];
            *to = item_of(&s->data.examples[i]);
        }
    }
    op_free(order);
    op_free(held);
    return status;
}

static op_status read_data(sft *s, op_error *e)
{
    const op_sft_options *o = s->o;
    int64_t longest = op_model_get_config(s->subject.model)->max_positions;
    op_dataset_options how = {.max_length = (int32_t)(o->max_length < longest ? o->max_length : longest),
                              .last_turn_only = o->last_turn_only, .onset_tokens = (int32_t)o->onset_tokens,
                              .onset_weight = (float)o->onset_weight};
    op_status status = op_dataset_read(&s->data, o->train_file, &s->subject.chat, &how, e);
    if (!status && o->eval_file)
        status = op_dataset_read(&s->eval_data, o->eval_file, &s->subject.chat, &how, e);
    if (!status && !s->data.trained_tokens)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: none of its %zu examples has a trained token", o->train_file, s->data.n);
    if (status)
        return status;
    return o->eval_file ? use_eval_file(s, e) : split(s, e);
}

/* ---- settings of the run ---- */

/* Every setting that decides what is learned, as the text that config.yaml has for it. */
static op_status make_identity(sft *s, op_error *e)
{
    op_buf text;
    op_buf_init(&text, 1 << 16);
    s->identity = json_object();
    bool made = s->identity && !json_object_set_new(s->identity, "train_file, with hash", json_string(s->data.hash)) &&
                (!s->o->eval_file || !json_object_set_new(s->identity, "eval_file, with hash", json_string(s->eval_data.hash)));
    op_status status = made ? OP_OK : no_memory(e);
    for (const op_option *row = op_sft_table; !status && row->key; row++) {
        char key[64];
        size_t n = strcspn(row->key, "|");
        memcpy(key, row->key, n);
        key[n] = 0;
        const char *const *skip = free_keys;
        while (*skip && strcmp(*skip, key) != 0)
            skip++;
        if (*skip)
            continue;
        const op_option alone[] = {*row, {0}};
        op_buf_clear(&text);
        if (op_config_write(s->o, alone, &text)) {
            status = no_memory(e);
            break;
        }
        const char *value = strstr(text.data, ": "); /* "key: value" or "group:\n  key: value" */
        value = value ? value + 2 : "";
        if (json_object_set_new(s->identity, key, json_stringn(value, strcspn(value, "\n"))))
            status = no_memory(e);
    }
    op_buf_release(&text);
    return status;
}

/* What a reader of the run would want to know of the data besides their numbers. */
static op_status make_facts(sft *s, op_error *e)
{
    s->facts = json_pack("{ss sI}", "form", s->data.form, "truncated", (json_int_t)s->data.truncated);
    return s->facts ? OP_OK : no_memory(e);
}

static op_train_options train_options(const sft *s, const op_sft_callbacks *callbacks)
{
    const op_sft_options *o = s->o;
    int64_t sequences = o->batch_size * o->gradient_accumulation_steps;
    int64_t total = o->max_steps ? o->max_steps : (int64_t)ceil((double)s->n * o->num_train_epochs / (double)sequences);
    total = total ? total : 1;
    int64_t warmup = o->warmup_steps ? o->warmup_steps : (int64_t)ceil(o->warmup_ratio * (double)total);
    op_train_options t = {
        .learner = {.objective = op_objective_weighted(), .beta1 = o->adam_beta1, .beta2 = o->adam_beta2, .eps = o->adam_epsilon,
                    .weight_decay = o->weight_decay, .max_grad_norm = o->max_grad_norm, .block_tokens = (int32_t)o->block_tokens,
                    .share_min = (int32_t)o->share_prefix, .seed = (uint64_t)o->seed},
        .schedule = {.type = (op_schedule_type)o->lr_scheduler_type, .lr = o->learning_rate, .total = total, .warmup = warmup,
                     .decay_ratio = o->wsd_decay_ratio, .min_ratio = o->min_lr_ratio},
        .dir = o->output_dir, .config = s->config.data, .identity = s->identity, .facts = s->facts, .seed = (uint64_t)o->seed,
        .sequences = (int32_t)sequences, .eval_steps = o->eval_steps, .save_steps = o->save_steps,
        .save_keep = (int32_t)o->save_total_limit, .log_steps = o->logging_steps, .resume = o->resume};
    if (callbacks)
        t.callbacks = (op_train_callbacks){callbacks->ctx, callbacks->progress, callbacks->stop};
    return t;
}

static void tell_plan(const sft *s, const op_train_options *t, int threads, const op_sft_callbacks *callbacks)
{
    if (!callbacks || !callbacks->plan)
        return;
    op_sft_plan plan = {.parameters = op_model_count(s->subject.model), .trained_parameters = (int64_t)op_model_params(s->subject.model).n,
                        .examples = (int64_t)s->n, .held_out = (int64_t)s->n_held, .tokens = s->data.tokens,
                        .trained_tokens = s->data.trained_tokens, .truncated = s->data.truncated, .steps = t->schedule.total,
                        .form = s->data.form, .dtype = op_dtype_name(op_model_get_options(s->subject.model)->act), .threads = threads};
    callbacks->plan(callbacks->ctx, &plan);
}

/* ---- result ---- */

static op_status remove_file(const char *dir, const char *name, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status status = path ? op_path_remove(path, e) : no_memory(e);
    op_free(path);
    return status;
}

static op_status save_adapter(const sft *s, const char *dir, op_error *e)
{
    char *named, base[PATH_MAX];
    op_status status = op_model_base_path(s->o->model, &named, e);
    if (!status && !realpath(named, base))
        status = op_error_set(e, OP_ERR_IO, "cannot find the base model \"%s\"", named);
    op_free(named);
    return status ? status : op_model_adapter_save(s->subject.model, 0, dir, base, e);
}

/* A directory is a model or an adapter: what an earlier run of the other method left must not be found first. */
static op_status save_result(const sft *s, op_error *e)
{
    static const op_dtype dtypes[] = {OP_BF16, OP_F32, OP_F16};
    const char *dir = s->o->output_dir;
    bool lora = s->o->method == METHOD_LORA;
    op_status status = remove_file(dir, lora ? "config.json" : "adapter_config.json", e);
    if (!status)
        status = remove_file(dir, lora ? "model.safetensors" : "adapter_model.safetensors", e);
    if (!status)
        status = lora ? save_adapter(s, dir, e) : op_model_save(s->subject.model, dir, dtypes[s->o->save_dtype], e);
    return status ? status : op_tokenizer_save(s->subject.tokenizer, dir, e);
}

/* ---- run ---- */

/* Saving would overwrite or remove the weights that were started from. */
static op_status check_output(const op_sft_options *o, op_error *e)
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

static op_status check_settings(const op_sft_options *o, op_error *e)
{
    const char *missing = !o->model ? "model" : !o->train_file ? "train_file" : !o->output_dir ? "output_dir" : NULL;
    if (missing)
        return op_error_set(e, OP_ERR_ARG, "key \"%s\" is not set", missing);
    if (o->batch_size * o->gradient_accumulation_steps > 1 << 20)
        return op_error_set(e, OP_ERR_ARG, "batch_size times gradient_accumulation_steps is %lld, expected at most %d",
                            (long long)(o->batch_size * o->gradient_accumulation_steps), 1 << 20);
    return check_output(o, e);
}

static void release(sft *s)
{
    op_subject_close(&s->subject);
    op_dataset_release(&s->data);
    op_dataset_release(&s->eval_data);
    op_free(s->all);
    json_decref(s->identity);
    json_decref(s->facts);
    op_buf_release(&s->config);
}

op_status op_sft_run(const op_sft_options *o, const op_sft_callbacks *callbacks, op_train_result *result, op_error *e)
{
    *result = (op_train_result){.loss = NAN};
    op_status status = check_settings(o, e);
    if (status)
        return status;
    int threads = op_threads_set((int)o->threads);
    sft s = {.o = o};
    op_buf_init(&s.config, 1 << 20);
    status = open_subject(&s, e);
    if (!status)
        status = read_data(&s, e);
    if (!status)
        status = make_identity(&s, e);
    if (!status)
        status = make_facts(&s, e);
    if (!status && op_config_write(o, op_sft_table, &s.config))
        status = no_memory(e);
    if (!status) {
        op_train_options t = train_options(&s, callbacks);
        tell_plan(&s, &t, threads, callbacks);
        status = op_train_run(s.subject.model, &t, s.items, s.n, s.held, s.n_held, result, e);
    }
    if (!status)
        status = save_result(&s, e);
    release(&s);
    return status;
}
