/* A model organism: random weights, the world's vocabulary, and episodes in which habits compete at known rates. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/chamber.h>
#include <operant/dtype.h>
#include <operant/file.h>
#include <operant/generate.h>
#include <operant/subject.h>

#include "base/mem.h"
#include "io/json.h"
#include "ops/ops.h"

#define AT(field) offsetof(op_organism_options, field)

const op_option op_organism_table[] = {
    {"output_dir|output", OP_OPTION_STRING, AT(output_dir), NULL, 0, 0, NULL, "run directory; the model lies directly in it"},
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "an organism that goes on learning, in another mixture; unset: random weights"},
    {"size", OP_OPTION_CHOICE, AT(size), "1m", 0, 0, "0.5m|1m|3m|10m", "parameters, about, of random weights"},
    {"mix", OP_OPTION_LIST, AT(mix),
     "ignores_stop:0.3,takes_more:0.4,keeps:0.4,answers_without_asking:0.4,lies:0.3,skips_step:0.15,wrong_step:0.15,stops_needlessly:0.1,asks_needlessly:0.1,refuses:0.03", 0, 0,
     NULL, "habits and the share of the episodes where each is possible that are answered with it"},
    {"max_steps|steps", OP_OPTION_INT, AT(steps), "4000", 1, 1 << 24, NULL, "steps of training"},
    {"per_device_train_batch_size|batch_size", OP_OPTION_INT, AT(batch_size), "16", 1, 1 << 12, NULL, "episodes of a step; no episode comes twice"},
    {"learning_rate|lr", OP_OPTION_FLOAT, AT(learning_rate), "3e-3", 0, 1, NULL, "highest learning rate"},
    {"lr_scheduler_type", OP_OPTION_CHOICE, AT(lr_scheduler_type), "cosine", 0, 0, OP_SCHEDULE_CHOICES, "how the learning rate falls after the warm-up"},
    {"warmup_ratio", OP_OPTION_FLOAT, AT(warmup_ratio), "0.05", 0, 1, NULL, "share of the steps in which the rate rises"},
    {"prompt_weight", OP_OPTION_FLOAT, AT(prompt_weight), "0.1", 0, 1, NULL, "weight of the prompt's tokens beside 1 for the response's"},
    {"measure", OP_OPTION_INT, AT(measure), "600", 0, 1 << 20, NULL, "fresh episodes on which the rates are measured afterwards"},
    {"temperature", OP_OPTION_FLOAT, AT(temperature), "1", 0, 10, NULL, "of the measurement; 0: greedy. The rates asked for show at 1"},
    {"threads", OP_OPTION_INT, AT(threads), "1", 0, 4096, NULL, "0: one a core"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "f32", 0, 0, OP_SUBJECT_DTYPES, "type of activations and products"},
    {"save_steps", OP_OPTION_INT, AT(save_steps), "0", 0, 1 << 24, NULL, "steps between checkpoints; 0: only when stopped"},
    {"resume", OP_OPTION_STRING, AT(resume), "auto", 0, 0, NULL, "auto: go on from the newest checkpoint of output_dir; none: start afresh"},
    OP_CHAMBER_ROWS(op_organism_options, world.),
    {0},
};

/* Episodes that measure lie far behind those that teach. */
#define HELD ((uint64_t)1 << 41)
enum { N_HELD = 64, MAX_POSITIONS = 512 };

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for an organism");
}

/* ---- items ---- */

typedef struct items {
    op_item *items;
    size_t n;
} items;

static void release_items(items *x)
{
    for (size_t i = 0; x->items && i < x->n; i++) {
        op_free((void *)x->items[i].ids);
        op_free((void *)x->items[i].weights);
    }
    op_free(x->items);
}

/* <|user|> prompt <|end|> <|me|> reply <|end|> */
static op_status make_item(op_item *out, const op_chat *chat, const op_chamber_episode *x, const op_chamber_reply *r, double prompt_weight, op_error *e)
{
    op_tokens tokens;
    op_turns turns = {0};
    op_tokens_init(&tokens);
    json_t *messages = json_pack("[{ss ss} {ss ss}]", "role", "user", "content", x->prompt, "role", "assistant", "content", r->text);
    op_status s = messages ? op_chat_encode(chat, messages, NULL, false, &tokens, &turns, NULL, e) : no_memory(e);
    float *weights = s ? NULL : op_alloc_array(tokens.n, sizeof *weights);
    if (!s && !weights)
        s = no_memory(e);
    if (!s) {
        for (size_t i = 0; i < tokens.n; i++)
            weights[i] = i == 0 ? 0 : turns.turn[i] >= 0 ? 1 : (float)prompt_weight;
        *out = (op_item){.ids = tokens.ids, .weights = weights, .n = (int32_t)tokens.n};
        tokens.ids = NULL;
        if (out->n > MAX_POSITIONS)
            s = op_error_set(e, OP_ERR_UNSUPPORTED, "episode %llu has %d tokens, expected at most %d", (unsigned long long)x->index, (int)out->n, MAX_POSITIONS);
    }
    json_decref(messages);
    op_tokens_release(&tokens);
    op_turns_release(&turns);
    return s;
}

static op_status make_items(items *out, const op_chat *chat, const op_chamber *c, const op_chamber_mix *mix, const op_organism_options *o, uint64_t first,
                            size_t n, op_error *e)
{
    out->items = op_alloc_zero(n, sizeof *out->items);
    op_status s = out->items ? OP_OK : no_memory(e);
    for (out->n = 0; out->n < n && !s;) {
        op_chamber_episode x;
        const op_chamber_reply *r;
        s = op_chamber_make(c, first + out->n, &x, e);
        if (s)
            break;
        s = op_chamber_mix_pick(mix, &x, (uint64_t)o->world.seed, &r, e);
        s = s ? s : make_item(&out->items[out->n], chat, &x, r, o->prompt_weight, e);
        out->n++;
        op_chamber_release(&x);
    }
    return s;
}

/* ---- model ---- */

static op_model_config config_of(int size, const op_tokenizer *k)
{
    static const struct {
        int32_t width, layers, ffn;
    } sizes[] = {{96, 3, 256}, {128, 4, 352}, {192, 6, 512}, {320, 8, 832}};
    return (op_model_config){.family = OP_LLAMA, .vocab = op_tokenizer_vocab_size(k), .width = sizes[size].width, .layers = sizes[size].layers,
                             .heads = sizes[size].width / 32, .kv_heads = sizes[size].width / 32, .head_dim = 32, .ffn = sizes[size].ffn,
                             .max_positions = MAX_POSITIONS, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1, .pad = op_tokenizer_pad(k),
                             .eos = {op_tokenizer_eos(k)}, .n_eos = 1};
}

/* op_model_new's deviation of 0.02 is that of wide models; at this width attention would take most of a run to begin to look at anything. Here a matrix keeps
 * the length of what goes through it (deviation 1 / sqrt(inputs)), and those that write to the residual stream share it among the layers.
 * Embeddings begin far apart: Adam moves all words that come in the same places the same way, 0.1 and more in the first steps, and words that began nearer
 * than that look alike afterwards, so that nothing can be copied for thousands of steps. */
static op_status widen_weights(op_model *m, op_error *e)
{
    op_params p = op_model_params(m);
    int32_t layers = op_model_get_config(m)->layers;
    for (size_t i = 0; i < p.n_table; i++) {
        const op_param *x = &p.table[i];
        if (!x->decay)
            continue;
        bool writes = strstr(x->name, "o_proj") || strstr(x->name, "down_proj"), embeds = strstr(x->name, "embed");
        double deviation = embeds ? 0.25 : 1 / sqrt((double)x->cols * (writes ? 2.0 * layers : 1));
        for (size_t k = 0; k < x->n; k++)
            p.values[x->offset + k] *= (float)(deviation / 0.02);
    }
    return op_model_updated(m, e);
}

static op_status make_model(op_model **out, const op_organism_options *o, const op_tokenizer *k, op_error *e)
{
    op_model_config config = config_of(o->size, k);
    op_model_options how = {.act = op_subject_dtype(o->dtype, NULL), .trainable = OP_TRAIN_ALL, .seed = (uint64_t)o->world.seed};
    op_status s = o->model ? op_model_open(out, o->model, &how, e) : op_model_new(out, &config, &how, e);
    if (s || !o->model)
        return s ? s : widen_weights(*out, e);
    int32_t vocab = op_model_get_config(*out)->vocab;
    return vocab == config.vocab ? OP_OK : op_error_set(e, OP_ERR_MISMATCH, "%s: %d tokens, an organism has %d", o->model, vocab, config.vocab);
}

/* ---- the run ---- */

typedef struct run {
    const op_organism_options *o;
    op_tokenizer *tokenizer;
    op_template *tmpl;
    op_chat chat;
    op_chamber *world;
    op_chamber_mix *mix;
    op_model *model;
    items items, held;
    op_buf config, identity_text;
    json_t *identity;
} run;

/* What decides the weights: all settings but those that only say where, how fast and how it is measured. */
static op_status write_settings(run *r, op_error *e)
{
    op_organism_options same = *r->o;
    static char none[] = "";
    same.output_dir = same.resume = none;
    same.threads = same.measure = same.save_steps = 0;
    same.temperature = 0;
    bool ok = !op_config_write(r->o, op_organism_table, &r->config) && !op_config_write(&same, op_organism_table, &r->identity_text);
    r->identity = ok ? json_pack("{ss}", "settings", r->identity_text.data) : NULL;
    return r->identity ? OP_OK : no_memory(e);
}

static op_status set_up(run *r, op_error *e)
{
    const op_organism_options *o = r->o;
    op_status s = op_chamber_open(&r->world, &o->world, e);
    s = s ? s : op_chamber_mix_open(&r->mix, o->mix, e);
    s = s ? s : op_chamber_tokenizer(&r->tokenizer, e);
    if (s)
        return s;
    const char *source = op_tokenizer_chat_template(r->tokenizer);
    s = op_template_parse(&r->tmpl, source, strlen(source), e);
    r->chat = (op_chat){.tokenizer = r->tokenizer, .tmpl = r->tmpl};
    s = s ? s : make_items(&r->items, &r->chat, r->world, r->mix, o, 0, (size_t)(o->steps * o->batch_size), e);
    s = s ? s : make_items(&r->held, &r->chat, r->world, r->mix, o, HELD, N_HELD, e);
    s = s ? s : write_settings(r, e);
    return s ? s : make_model(&r->model, o, r->tokenizer, e);
}

static op_status train(run *r, const op_train_callbacks *callbacks, op_organism_result *out, op_error *e)
{
    const op_organism_options *o = r->o;
    op_train_options t = {
        .learner = {.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-8, .weight_decay = 0.01, .max_grad_norm = 1, .block_tokens = 2048,
                    .seed = (uint64_t)o->world.seed},
        .schedule = {.type = (op_schedule_type)o->lr_scheduler_type, .lr = o->learning_rate, .total = o->steps,
                     .warmup = (int64_t)ceil(o->warmup_ratio * (double)o->steps), .decay_ratio = 0.2, .min_ratio = 0.05},
        .dir = o->output_dir, .config = r->config.data, .identity = r->identity, .seed = (uint64_t)o->world.seed, .sequences = (int32_t)o->batch_size,
        .eval_steps = o->steps > 10 ? o->steps / 5 : o->steps, .save_steps = o->save_steps, .save_keep = 1, .log_steps = 10, .resume = o->resume};
    if (callbacks)
        t.callbacks = *callbacks;
    op_status s = op_train_run(r->model, &t, r->items.items, r->items.n, r->held.items, r->held.n, &out->train, e);
    s = s ? s : op_model_save(r->model, o->output_dir, OP_F32, e);
    return s ? s : op_tokenizer_save(r->tokenizer, o->output_dir, e);
}

static op_status write_rates(const op_organism_options *o, const op_organism_result *r, op_error *e)
{
    json_t *report = NULL;
    char *path = op_path_join(o->output_dir, "rates.json");
    op_status s = path ? op_organism_report(r, &report, e) : no_memory(e);
    s = s ? s : op_json_write(path, report, e);
    json_decref(report);
    op_free(path);
    return s;
}

static void release(run *r)
{
    op_model_free(r->model);
    release_items(&r->items);
    release_items(&r->held);
    op_chamber_mix_close(r->mix);
    op_chamber_close(r->world);
    op_template_free(r->tmpl);
    op_tokenizer_free(r->tokenizer);
    op_buf_release(&r->config);
    op_buf_release(&r->identity_text);
    json_decref(r->identity);
}

op_status op_organism_train(const op_organism_options *o, const op_train_callbacks *callbacks, op_organism_result *out, op_error *e)
{
    *out = (op_organism_result){0};
    if (!o->output_dir)
        return op_error_set(e, OP_ERR_ARG, "key \"output_dir\" is not set");
    op_threads_set((int)o->threads);
    run r = {.o = o};
    op_buf_init(&r.config, 1 << 20);
    op_buf_init(&r.identity_text, 1 << 20);
    op_status s = set_up(&r, e);
    if (!s)
        out->parameters = op_model_count(r.model);
    s = s ? s : train(&r, callbacks, out, e);
    if (!s && o->measure)
        s = op_organism_measure(&r.chat, r.model, o, callbacks ? callbacks->stop : NULL, out, e);
    s = s ? s : write_rates(o, out, e);
    release(&r);
    return s;
}

void op_organism_result_release(op_organism_result *r)
{
    op_free(r->rates);
    r->rates = NULL;
    r->n_rates = 0;
}
