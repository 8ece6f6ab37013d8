#include <operant/sft.h>

#include <math.h>
#include <stddef.h>
#include <string.h>

#include <operant/trial.h>

#include "base/mem.h"
#include "base/rng.h"
#include "ops/ops.h"

#define AT(field) offsetof(op_sft_options, field)

const op_option op_sft_table[] = {
    OP_TRAINEE_ROWS(AT(trainee)),
    {"train_file|data", OP_OPTION_STRING, AT(train_file), NULL, 0, 0, NULL, "training data: .jsonl or .json, or either with .gz; the form is detected"},
    {"eval_file|eval_data", OP_OPTION_STRING, AT(eval_file), NULL, 0, 0, NULL, "held-out data in any form; without it eval_fraction of the training data is held out"},
    {"replay_file", OP_OPTION_STRING, AT(replay_file), NULL, 0, 0, NULL, "data mixed in among the others, in any form: what the model should stay good at; none of it is held out"},
    {"eval_fraction", OP_OPTION_FLOAT, AT(eval_fraction), "0.02", 0, 0.9, NULL, "share of the training data that is held out, chosen by the seed; 0: none"},
    {"max_length|max_seq_length", OP_OPTION_INT, AT(max_length), "1024", 2, 1 << 24, NULL, "tokens of an example, longer ones are cut at the end; never more than the model's positions"},
    {"last_turn_only", OP_OPTION_BOOL, AT(last_turn_only), "false", 0, 0, NULL, "learn only the last assistant turn of a dialogue"},
    {"onset_tokens", OP_OPTION_INT, AT(onset_tokens), "0", 0, 1 << 20, NULL, "this many first tokens of every learned turn, which decide what kind of reply it is, weigh onset_weight times as much"},
    {"onset_weight", OP_OPTION_FLOAT, AT(onset_weight), "1", 0, 1000, NULL, "the onset_tokens weigh this many times as much as the rest of their turn"},
    {"lr_scheduler_type", OP_OPTION_CHOICE, AT(lr_scheduler_type), "cosine", 0, 0, OP_SCHEDULE_CHOICES, "how the learning rate falls after the warm-up"},
    {"warmup_ratio", OP_OPTION_FLOAT, AT(warmup_ratio), "0.03", 0, 1, NULL, "share of the steps in which the rate rises"},
    {"warmup_steps", OP_OPTION_INT, AT(warmup_steps), "0", 0, 1 << 30, NULL, "steps in which the rate rises; 0: by warmup_ratio"},
    {"min_lr_ratio", OP_OPTION_FLOAT, AT(min_lr_ratio), "0", 0, 1, NULL, "the rate never falls below this share of the highest"},
    {"wsd_decay_ratio", OP_OPTION_FLOAT, AT(wsd_decay_ratio), "0.2", 0, 1, NULL, "wsd: share of the steps, at the end, in which the rate falls"},
    {"num_train_epochs|epochs", OP_OPTION_FLOAT, AT(num_train_epochs), "3", 0, 1e6, NULL, "passes over the training data"},
    {"max_steps", OP_OPTION_INT, AT(max_steps), "0", 0, 1 << 30, NULL, "steps, whatever num_train_epochs says; 0: by num_train_epochs"},
    {"per_device_train_batch_size|batch_size", OP_OPTION_INT, AT(batch_size), "8", 1, 1 << 20, NULL, "examples"},
    {"gradient_accumulation_steps", OP_OPTION_INT, AT(gradient_accumulation_steps), "1", 1, 1 << 20, NULL, "a step learns from this many times batch_size examples"},
    {"eval_steps", OP_OPTION_INT, AT(eval_steps), "0", 0, 1 << 30, NULL, "steps between measurements of the held-out loss; 0: after every epoch"},
    {"save_steps", OP_OPTION_INT, AT(save_steps), "0", 0, 1 << 30, NULL, "steps between checkpoints; 0: only at the end or when stopped"},
    {"logging_steps", OP_OPTION_INT, AT(logging_steps), "1", 1, 1 << 30, NULL, "steps between lines of metrics.jsonl"},
    {0},
};

/* Besides what op_trainee_identity leaves out: these do not change what is learned, or a hash stands for them. */
static const char *const free_keys[] = {"train_file", "eval_file", "replay_file", "eval_steps", "save_steps", "logging_steps", NULL};

typedef struct sft {
    const op_sft_options *o;
    op_subject subject;
    op_dataset data, replay, eval_data;
    op_item *all;           /* items, then held */
    op_item *items, *held;
    size_t n, n_held;
    json_t *identity, *facts;
    op_buf config;
} sft;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the set-up of the run");
}

/* ---- data ---- */

static op_item item_of(const op_example *x)
{
    return (op_item){.ids = x->ids, .weights = x->weights, .n = x->n};
}

static void add_items(op_item *items, size_t *n, const op_dataset *d)
{
    for (size_t i = 0; i < d->n; i++)
        items[(*n)++] = item_of(&d->examples[i]);
}

/* Holds out the examples that come first in a permutation drawn by the seed. */
static op_status split(sft *s, size_t n_held, op_error *e)
{
    size_t n = s->data.n;
    uint32_t *order = op_alloc_array(n, sizeof *order);
    uint8_t *held = op_alloc_zero(n, 1);
    op_status status = order && held ? OP_OK : no_memory(e);
    if (!status) {
        op_rng_permute((uint64_t)s->o->trainee.seed, OP_STREAM_SPLIT, (uint32_t)n, order);
        for (size_t i = 0; i < n_held; i++)
            held[order[i]] = 1;
        for (size_t i = 0; i < n; i++) {
            op_item *to = held[i] ? &s->held[s->n_held++] : &s->items[s->n++];
            *to = item_of(&s->data.examples[i]);
        }
    }
    op_free(order);
    op_free(held);
    return status;
}

/* What is learned: the training data without what is held out, then the replay. */
static op_status make_items(sft *s, op_error *e)
{
    size_t n = s->data.n, n_held = 0;
    if (!s->o->eval_file && s->o->eval_fraction > 0) {
        n_held = (size_t)(s->o->eval_fraction * (double)n + 0.5);
        n_held = n_held || n < 2 ? n_held : 1;
    }
    s->all = op_alloc_array(n + s->replay.n + s->eval_data.n, sizeof *s->all);
    if (!s->all)
        return no_memory(e);
    s->items = s->all;
    s->held = s->all + n + s->replay.n - n_held;
    op_status status = split(s, n_held, e);
    add_items(s->items, &s->n, &s->replay);
    add_items(s->held, &s->n_held, &s->eval_data);
    return status;
}

static op_status read_data(sft *s, op_error *e)
{
    const op_sft_options *o = s->o;
    int64_t longest = op_model_get_config(s->subject.model)->max_positions;
    op_dataset_options how = {.max_length = (int32_t)(o->max_length < longest ? o->max_length : longest),
                              .last_turn_only = o->last_turn_only, .onset_tokens = (int32_t)o->onset_tokens,
                              .onset_weight = (float)o->onset_weight, .trials = op_trial_example};
    op_status status = op_dataset_read(&s->data, o->train_file, &s->subject.chat, &how, e);
    if (!status && o->eval_file)
        status = op_dataset_read(&s->eval_data, o->eval_file, &s->subject.chat, &how, e);
    how.onset_tokens = 0; /* a replay decides nothing */
    if (!status && o->replay_file)
        status = op_dataset_read(&s->replay, o->replay_file, &s->subject.chat, &how, e);
    if (!status && !s->data.trained_tokens)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: none of its %zu examples has a trained token", o->train_file, s->data.n);
    if (status)
        return status;
    return make_items(s, e);
}

/* ---- settings of the run ---- */

static op_status make_identity(sft *s, op_error *e)
{
    s->identity = json_object();
    if (!s->identity || json_object_set_new(s->identity, "train_file, with hash", json_string(s->data.hash)) ||
        (s->o->eval_file && json_object_set_new(s->identity, "eval_file, with hash", json_string(s->eval_data.hash))) ||
        (s->o->replay_file && json_object_set_new(s->identity, "replay_file, with hash", json_string(s->replay.hash))))
        return no_memory(e);
    return op_trainee_identity(s->identity, s->o, op_sft_table, free_keys, e);
}

/* What a reader of the run would want to know of the data besides their numbers. */
static op_status make_facts(sft *s, op_error *e)
{
    s->facts = json_pack("{ss sI sI}", "form", s->data.form, "truncated", (json_int_t)s->data.truncated, "left_out", (json_int_t)s->data.left_out);
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
        .learner = op_trainee_learner(&o->trainee),
        .schedule = {.type = (op_schedule_type)o->lr_scheduler_type, .lr = o->trainee.learning_rate, .total = total, .warmup = warmup,
                     .decay_ratio = o->wsd_decay_ratio, .min_ratio = o->min_lr_ratio},
        .dir = o->trainee.output_dir, .config = s->config.data, .identity = s->identity, .facts = s->facts, .seed = (uint64_t)o->trainee.seed,
        .sequences = (int32_t)sequences, .eval_steps = o->eval_steps, .save_steps = o->save_steps,
        .save_keep = (int32_t)o->trainee.save_total_limit, .log_steps = o->logging_steps, .resume = o->trainee.resume};
    t.learner.objective = op_objective_weighted();
    if (callbacks) {
        t.callbacks = (op_train_callbacks){callbacks->ctx, callbacks->progress, callbacks->stop};
        t.learner.parallel = callbacks->parallel;
    }
    return t;
}

static void tell_plan(const sft *s, const op_train_options *t, int threads, const op_sft_callbacks *callbacks)
{
    if (!callbacks || !callbacks->plan)
        return;
    op_sft_plan plan = {.parameters = op_model_count(s->subject.model), .trained_parameters = (int64_t)op_model_params(s->subject.model).n,
                        .examples = (int64_t)s->n, .held_out = (int64_t)s->n_held, .tokens = s->data.tokens + s->replay.tokens,
                        .trained_tokens = s->data.trained_tokens + s->replay.trained_tokens, .truncated = s->data.truncated + s->replay.truncated, .steps = t->schedule.total,
                        .form = s->data.form, .dtype = op_dtype_name(op_model_get_options(s->subject.model)->act), .threads = threads};
    callbacks->plan(callbacks->ctx, &plan);
}

/* ---- run ---- */

static op_status check_settings(const op_sft_options *o, op_error *e)
{
    op_status status = op_trainee_check(&o->trainee, e);
    if (status)
        return status;
    if (!o->train_file)
        return op_error_set(e, OP_ERR_ARG, "key \"train_file\" is not set");
    if (o->batch_size * o->gradient_accumulation_steps > 1 << 20)
        return op_error_set(e, OP_ERR_ARG, "batch_size times gradient_accumulation_steps is %lld, expected at most %d",
                            (long long)(o->batch_size * o->gradient_accumulation_steps), 1 << 20);
    return OP_OK;
}

static void release(sft *s)
{
    op_subject_close(&s->subject);
    op_dataset_release(&s->data);
    op_dataset_release(&s->replay);
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
    op_parallel *parallel = callbacks ? callbacks->parallel : NULL;
    int threads = op_threads_set(op_parallel_threads(parallel, (int)o->trainee.threads));
    sft s = {.o = o};
    op_buf_init(&s.config, 1 << 20);
    status = op_trainee_open(&s.subject, &o->trainee, e);
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
    if (!status && op_parallel_rank(parallel) == 0)
        status = op_trainee_save(&s.subject, &o->trainee, e);
    release(&s);
    return status;
}
