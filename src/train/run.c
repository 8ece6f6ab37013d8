#include <operant/train.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/clock.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "io/zip.h"
#include "ops/ops.h"
#include "train/checkpoint.h"
#include "train/journal.h"
#include "train/parallel.h"

typedef struct run {
    const op_train_options *o;
    op_model *model;
    const op_item *items, *held;
    size_t n, n_held;
    op_learner *learner;
    op_run_state state;
    json_t *identity;
    op_parallel *parallel;
    bool writes;        /* this is rank 0 */
    op_journal journal;
    char *checkpoints;  /* directory */
    op_item *step_items; /* [sequences] */
    uint32_t *order;    /* [n] the items of epoch `order_epoch` */
    int64_t order_epoch;
    int64_t saved;      /* step of the newest checkpoint, -1: none */
    double sum_loss, sum_weight; /* since the last line of metrics */
    int64_t tokens;     /* learned from by this process */
    op_train_result *result;
    op_train_progress progress;
} run;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the run");
}

/* ---- what the run is ---- */

static void hash_items(const op_item *items, size_t n, char hex[OP_HASH_HEX])
{
    op_hasher h;
    op_hash_begin(&h);
    for (size_t i = 0; i < n; i++) {
        const op_item *x = &items[i];
        op_hash_add(&h, &x->n, sizeof x->n);
        op_hash_add(&h, x->ids, (size_t)x->n * sizeof *x->ids);
        op_hash_add(&h, x->weights, (size_t)x->n * sizeof *x->weights);
    }
    op_hash_end(&h, hex);
}

/* The values that an adapter starts from; those of a whole model have the model's hash. */
static void start_hash(const run *r, char hex[OP_HASH_HEX])
{
    op_params p = op_model_params(r->model);
    op_hash(p.values, op_model_get_options(r->model)->trainable == OP_TRAIN_ADAPTER ? p.n * sizeof *p.values : 0, hex);
}

/* The caller's settings, and what the caller could get wrong: the tokens themselves, the base weights and what "auto" meant. */
static op_status make_identity(run *r, op_error *e)
{
    char data[OP_HASH_HEX], held[OP_HASH_HEX], model[OP_HASH_HEX], start[OP_HASH_HEX];
    op_status status = op_model_hash(r->model, model, e);
    if (status)
        return status;
    hash_items(r->items, r->n, data);
    hash_items(r->held, r->n_held, held);
    start_hash(r, start);
    const char *const ours[][2] = {{"the training data with hash", data}, {"the held-out data with hash", held}, {"the base model with hash", model},
                                   {"the first adapter with hash", start},
                                   {"dtype", op_dtype_name(op_model_get_options(r->model)->act)},
                                   {"optim", r->o->learner.optim == OP_OPTIM_ADAMW_8BIT ? "adamw_8bit" : "adamw"},
                                   {"grad_dtype", op_model_params(r->model).grads ? "f32" : "bf16"}};
    r->identity = r->o->identity ? json_copy(r->o->identity) : json_object();
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!r->identity || json_object_set_new(r->identity, ours[i][0], json_string(ours[i][1])))
            return no_memory(e);
    return OP_OK;
}

static op_status write_text(const char *dir, const char *name, const char *text, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status status = path ? op_file_put(path, text, strlen(text), e) : no_memory(e);
    op_free(path);
    return status;
}

/* Tokens of all items, and those with a weight. */
static json_t *count_tokens(const op_item *items, size_t n)
{
    json_int_t tokens = 0, trained = 0;
    for (size_t i = 0; i < n; i++) {
        tokens += items[i].n;
        for (int32_t t = 1; t < items[i].n; t++)
            trained += items[i].weights[t] != 0;
    }
    return json_pack("{sI sI sI}", "items", (json_int_t)n, "tokens", tokens, "trained_tokens", trained);
}

static op_status write_environment(const run *r, op_error *e)
{
    const op_model_options *m = op_model_get_options(r->model);
    const op_model_config *c = op_model_get_config(r->model);
    char *path = op_path_join(r->o->dir, "env.json");
    json_t *root = json_pack(
        "{ss ss s{ss ss ss} ss ss ss ss si si sI sI so so s{ss si si si sI sI} sO}", "operant", OPERANT_VERSION, "compiler", __VERSION__, "libraries",
        "jansson", JANSSON_VERSION, "openssl", op_hash_version(), "zlib", op_zip_version(), "simd", op_ops_simd(),
        "product_isa", op_ops_product_isa(), "backend", m->backend ? m->backend : "cpu", "dtype", op_dtype_name(m->act), "threads",
        op_threads(), "ranks", op_parallel_size(r->parallel), "seed", (json_int_t)r->o->seed, "steps", (json_int_t)r->o->schedule.total, "data", count_tokens(r->items, r->n),
        "held_out", count_tokens(r->held, r->n_held), "model", "family", op_family_name(c->family), "layers", (int)c->layers, "width",
        (int)c->width, "vocab", (int)c->vocab, "parameters", (json_int_t)op_model_count(r->model), "parameters_trained",
        (json_int_t)op_model_params(r->model).n, "identity", r->identity);
    bool added = root && (!r->o->facts || !json_object_update(root, r->o->facts));
    op_status status = path && added ? op_json_write(path, root, e) : no_memory(e);
    json_decref(root);
    op_free(path);
    return status;
}

/* ---- beginning ---- */

static op_status check_options(const op_train_options *o, size_t n, op_error *e)
{
    if (!n)
        return op_error_set(e, OP_ERR_ARG, "there is nothing to learn from: no items");
    if (o->sequences < 1 || o->schedule.total < 1 || o->log_steps < 1 || o->learner.block_tokens < 1 || !o->dir)
        return op_error_set(e, OP_ERR_ARG,
                            "found %d sequences a step, %lld steps, a log line every %lld steps, %d tokens a block; expected 1 or more of each",
                            o->sequences, (long long)o->schedule.total, (long long)o->log_steps, o->learner.block_tokens);
    return OP_OK;
}

static op_status allocate(run *r, op_error *e)
{
    r->checkpoints = op_path_join(r->o->dir, "checkpoints");
    r->step_items = op_alloc_array((size_t)r->o->sequences, sizeof *r->step_items);
    r->order = op_alloc_array(r->n, sizeof *r->order);
    r->order_epoch = -1;
    if (!r->checkpoints || !r->step_items || !r->order)
        return no_memory(e);
    return op_learner_new(&r->learner, r->model, &r->o->learner, e);
}

/* Finds and reads the checkpoint to go on from, if any, and removes what is past it. */
static op_status resume(run *r, op_error *e)
{
    const char *how = r->o->resume ? r->o->resume : "auto";
    char *newest = NULL;
    const char *path = NULL;
    op_status status = OP_OK;
    if (!strcmp(how, "auto")) {
        status = op_checkpoint_newest(r->checkpoints, &newest, e);
        path = newest;
    } else if (strcmp(how, "none") != 0) {
        path = how;
    }
    r->saved = -1;
    if (!status && path)
        status = op_checkpoint_load(path, r->learner, &r->state, r->identity, e);
    if (!status && path)
        r->result->resumed_from = r->state.step;
    size_t n = strlen(r->checkpoints);
    if (!status && path && !strncmp(path, r->checkpoints, n) && path[n] == '/')
        r->saved = r->state.step;
    if (!status && r->writes)
        status = op_checkpoint_forget(r->checkpoints, path ? r->state.step : -1, e);
    op_free(newest);
    return status;
}

/* Whatever differs between ranks would make one of them learn something else. */
static op_status check_ranks(run *r, op_error *e)
{
    char *text = json_dumps(r->identity, JSON_SORT_KEYS), step[32];
    snprintf(step, sizeof step, "%lld", (long long)r->state.step);
    op_status status = text ? op_parallel_same(r->parallel, text, "their settings, data or model", e) : no_memory(e);
    op_free(text);
    return status ? status : op_parallel_same(r->parallel, step, "the checkpoint that they found: they must see the same output_dir", e);
}

static op_status open_directory(run *r, op_error *e)
{
    op_status status = r->o->config ? write_text(r->o->dir, "config.yaml", r->o->config, e) : OP_OK;
    if (!status)
        status = write_environment(r, e);
    return status ? status : op_journal_open(&r->journal, r->o->dir, r->state.step ? r->state.step : -1, e);
}

static op_status begin(run *r, op_error *e)
{
    op_status status = check_options(r->o, r->n, e);
    if (!status)
        status = allocate(r, e);
    if (!status)
        status = make_identity(r, e);
    if (!status && r->writes)
        status = op_dir_make(r->checkpoints, e);
    if (!status)
        status = resume(r, e);
    if (!status)
        status = check_ranks(r, e);
    return !status && r->writes ? open_directory(r, e) : status;
}

static void end(run *r)
{
    op_journal_close(&r->journal);
    op_learner_free(r->learner);
    json_decref(r->identity);
    op_free(r->checkpoints);
    op_free(r->step_items);
    op_free(r->order);
}

/* ---- steps ---- */

static int32_t choose_items(run *r)
{
    int32_t count = 0;
    for (; count < r->o->sequences; count++) {
        int64_t at = r->state.position + count, epoch = at / (int64_t)r->n;
        if (epoch != r->order_epoch) {
            op_rng_permute(r->o->seed, (uint64_t)epoch << 32 | OP_STREAM_SHUFFLE, (uint32_t)r->n, r->order);
            r->order_epoch = epoch;
        }
        r->step_items[count] = r->items[r->order[at % (int64_t)r->n]];
    }
    return count;
}

static void report(run *r, bool evaluated)
{
    op_train_progress *p = &r->progress;
    const op_train_result *x = r->result;
    p->step = r->state.step;
    p->total = r->o->schedule.total;
    p->epoch = (double)r->state.position / (double)r->n;
    int64_t done = p->step - x->resumed_from;
    p->eta_s = done ? x->seconds / (double)done * (double)(p->total - p->step) : NAN;
    p->tokens_per_s = x->tokens_per_s;
    p->eval_loss = r->state.last.loss;
    p->eval_perplexity = r->state.last.perplexity;
    p->evaluated = evaluated;
    p->peak_rss_mb = op_peak_rss_mb();
    if (r->o->callbacks.progress)
        r->o->callbacks.progress(r->o->callbacks.ctx, p);
}

static op_status evaluate(run *r, op_error *e)
{
    if (!r->n_held)
        return OP_OK;
    op_status status = op_learner_evaluate(r->learner, r->held, r->n_held, &r->state.last, e);
    if (status)
        return status;
    if (!isfinite(r->state.last.loss))
        return op_error_set(e, OP_ERR_ARG, "the held-out loss after step %lld is %g", (long long)r->state.step, r->state.last.loss);
    if (r->writes)
        status = op_journal_add(&r->journal, json_pack("{sI sf sf}", "step", (json_int_t)r->state.step, "eval_loss", r->state.last.loss,
                                                       "eval_perplexity", fmin(r->state.last.perplexity, 1e30)), e);
    report(r, true);
    return status;
}

static op_status save(run *r, op_error *e)
{
    if (r->saved == r->state.step)
        return OP_OK;
    op_status status = op_checkpoint_save(r->checkpoints, r->learner, &r->state, r->identity, r->o->save_keep, e);
    if (!status)
        r->saved = r->state.step;
    return status;
}

static op_status log_step(run *r, const op_step_stats *s, double seconds, op_error *e)
{
    r->sum_loss += s->loss * s->weight;
    r->sum_weight += s->weight;
    if (!r->writes)
        return OP_OK;
    if (r->state.step % r->o->log_steps && r->state.step != r->o->schedule.total)
        return OP_OK;
    json_t *line = json_pack("{sI sf sf sf sf sI sI si sf sf}", "step", (json_int_t)r->state.step, "epoch",
                             (double)r->state.position / (double)r->n, "loss", r->sum_loss / r->sum_weight, "lr", r->progress.lr,
                             "grad_norm", s->grad_norm, "tokens", (json_int_t)r->state.tokens, "computed_tokens",
                             (json_int_t)s->computed, "micro_batches", s->micro_batches, "tokens_per_s",
                             (double)s->tokens / fmax(seconds, 1e-9), "peak_rss_mb", op_peak_rss_mb());
    r->sum_loss = r->sum_weight = 0;
    return op_journal_add(&r->journal, line, e);
}

static op_status train_step(run *r, op_error *e)
{
    op_step_stats s;
    double start = op_seconds(), lr = op_schedule_lr(&r->o->schedule, r->state.step);
    int32_t count = choose_items(r);
    op_status status = op_learner_step(r->learner, r->step_items, (size_t)count, lr, &s, e);
    if (status)
        return status;
    double seconds = op_seconds() - start;
    r->state.step++;
    r->state.position += count;
    r->state.tokens += s.tokens;
    op_train_result *x = r->result;
    x->loss = s.loss;
    x->seconds += seconds;
    r->tokens += s.tokens;
    x->tokens_per_s = (double)r->tokens / fmax(x->seconds, 1e-9);
    r->progress.loss = s.loss;
    r->progress.lr = lr;
    r->progress.grad_norm = s.grad_norm;
    report(r, false);
    return log_step(r, &s, seconds, e);
}

/* An evaluation or checkpoint is due after the current step. */
static bool due(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

static bool ends_epoch(const run *r)
{
    return r->state.position / (int64_t)r->n != (r->state.position - r->o->sequences) / (int64_t)r->n;
}

static bool stopped(const run *r)
{
    return op_parallel_any(r->parallel, r->o->callbacks.stop && *r->o->callbacks.stop);
}

static op_status train(run *r, op_error *e)
{
    const int64_t total = r->o->schedule.total;
    op_status status = r->state.step ? OP_OK : evaluate(r, e);
    if (!r->state.step)
        r->state.first = r->state.last;
    while (!status && r->state.step < total && !stopped(r)) {
        status = train_step(r, e);
        bool last = r->state.step == total;
        if (!status && (last || (r->o->eval_steps ? due(r->state.step, r->o->eval_steps) : ends_epoch(r))))
            status = evaluate(r, e);
        if (!status && due(r->state.step, r->o->save_steps))
            status = save(r, e);
    }
    if (!status)
        status = save(r, e);
    if (!status && r->state.step < total)
        status = op_error_set(e, OP_ERR_INTERRUPTED, "stopped after step %lld of %lld; resume=auto goes on from there",
                              (long long)r->state.step, (long long)total);
    return status;
}

op_status op_train_run(op_model *m, const op_train_options *o, const op_item *items, size_t n, const op_item *held,
                       size_t n_held, op_train_result *result, op_error *e)
{
    const op_evaluation none = {.loss = NAN, .perplexity = NAN};
    *result = (op_train_result){.loss = NAN, .first = none, .last = none};
    run r = {.o = o, .model = m, .items = items, .held = held, .n = n, .n_held = n_held, .result = result,
             .parallel = o->learner.parallel, .writes = op_parallel_rank(o->learner.parallel) == 0,
             .state = {.first = none, .last = none}, .journal = {-1, -1}, .progress = {.loss = NAN, .lr = NAN, .grad_norm = NAN}};
    op_status status = begin(&r, e);
    if (!status)
        status = train(&r, e);
    result->step = r.state.step;
    result->tokens = r.state.tokens;
    result->first = r.state.first;
    result->last = r.state.last;
    result->peak_rss_mb = op_peak_rss_mb();
    end(&r);
    return status;
}
