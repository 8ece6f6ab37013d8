#include "train/learner.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"

static op_status float_moments(op_learner *l, op_error *e)
{
    l->m = op_alloc_aligned(l->shard.own * sizeof(float));
    l->v = op_alloc_aligned(l->shard.own * sizeof(float));
    return l->m && l->v ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the optimiser of %zu parameters", l->shard.own);
}

op_status op_learner_new(op_learner **out, op_model *m, const op_learner_options *o, op_error *e)
{
    *out = NULL;
    op_params params = op_model_params(m);
    if (!params.n)
        return op_error_set(e, OP_ERR_ARG, "the model was opened without trainable parameters");
    const op_model_options *how = op_model_get_options(m);
    const op_ops *ops = op_ops_get(how->backend ? how->backend : "cpu", how->act);
    if (!ops)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "no backend \"%s\" for %s", how->backend ? how->backend : "cpu",
                            op_dtype_name(how->act));
    op_parallel *parallel = op_parallel_size(o->parallel) > 1 ? o->parallel : NULL; /* a job of one rank is one process alone */
    if (parallel && (o->optim == OP_OPTIM_ADAMW_8BIT || !params.grads))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s learns in one process, found %d: each then holds its share of float moments",
                            o->optim == OP_OPTIM_ADAMW_8BIT ? "optim adamw_8bit" : "grad_dtype bf16", op_parallel_size(o->parallel));
    op_learner *l = op_alloc_zero(1, sizeof *l);
    if (!l)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the learner");
    l->model = m;
    l->ops = ops;
    l->options = *o;
    l->options.parallel = parallel;
    l->params = params;
    l->packing = (op_pack_options){.block_tokens = o->block_tokens, .share_min = o->share_min, .ranks = op_parallel_size(o->parallel),
                                   .adapter = how->trainable == OP_TRAIN_ADAPTER ? 0 : -1};
    op_pack_init(&l->pack);
    op_status status = op_shard_init(&l->shard, parallel, params.n, e);
    if (!status)
        status = o->optim == OP_OPTIM_ADAMW_8BIT ? op_moments_init(&l->moments, &params, e) : float_moments(l, e);
    if (!status)
        status = op_pass_new(&l->pass, m, e);
    if (status)
        op_learner_free(l);
    else
        *out = l;
    return status;
}

void op_learner_free(op_learner *l)
{
    if (!l)
        return;
    op_shard_release(&l->shard);
    op_pass_free(l->pass);
    op_pack_release(&l->pack);
    op_moments_release(&l->moments);
    op_free_aligned(l->m);
    op_free_aligned(l->v);
    op_free(l);
}

int64_t op_learner_steps(const op_learner *l)
{
    return l->steps;
}

op_model *op_learner_model(const op_learner *l)
{
    return l->model;
}

op_objective op_learner_set_objective(op_learner *l, op_objective f)
{
    op_objective was = l->options.objective;
    l->options.objective = f;
    return was;
}

/* The arrays of a step beside its pack, in the pack's arena. */
typedef struct scratch {
    uint8_t *want;                 /* [T] tokens whose log p matters */
    float *logp, *slope, *dropped; /* [T] */
} scratch;

static op_status scratch_new(scratch *s, op_pack *p, op_error *e)
{
    size_t t = (size_t)p->n_tokens;
    s->want = op_arena_alloc(&p->arena, t);
    s->logp = op_arena_alloc(&p->arena, t * sizeof(float));
    s->slope = op_arena_alloc(&p->arena, t * sizeof(float));
    s->dropped = op_arena_alloc(&p->arena, t * sizeof(float));
    if (!s->want || !s->logp || !s->slope || !s->dropped)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a step of %zu tokens", t);
    for (size_t i = 0; i < t; i++) {
        s->want[i] = p->weight[i] != 0;
        s->logp[i] = s->slope[i] = 0;
    }
    return OP_OK;
}

/* Forward of one part, then log p of its tokens; with `learn`, the slopes are known and the backward follows. */
static op_status run_part(op_learner *l, int32_t part, const op_how *how, const scratch *s, bool learn, op_error *e)
{
    op_batch b = op_pack_part(&l->pack, part);
    int32_t at = l->pack.parts[part].token;
    const op_objective *f = &l->options.objective;
    op_status status = op_model_forward(l->model, l->pass, &b, how, e);
    if (!status && learn && f->part)
        status = f->part(f->ctx, &b, at, e);
    if (!status)
        status = op_model_logprobs(l->model, l->pass, s->want + at, learn ? s->slope + at : NULL, s->logp + at, e);
    if (!status && learn)
        status = op_model_backward(l->model, l->pass, NULL, e);
    return status;
}

/* Every part of a step has dropout masks of its own; both forwards of a part have the same. */
static op_how how_to_learn(const op_learner *l, int32_t part, bool keep)
{
    return (op_how){.keep = keep, .train = true, .seed = l->options.seed, .step = (uint64_t)l->steps << 24 | (uint64_t)part};
}

/* ---- the ranks take turns: part k belongs to rank k % size ---- */

static int32_t first_part(const op_learner *l)
{
    return op_parallel_rank(l->options.parallel);
}

static int32_t next_part(const op_learner *l, int32_t k)
{
    return k + op_parallel_size(l->options.parallel);
}

/* log p of the own parts becomes that of all. */
static void share_logprobs(op_learner *l, const scratch *s)
{
    op_parallel_sum(l->options.parallel, s->logp, (size_t)l->pack.n_tokens);
}

static void gradients_ready(void *ctx, size_t first)
{
    op_shard_ready(ctx, first);
}

/* While the last part's backward runs, what it has completed is reduced. */
static op_status learn_parts(op_learner *l, const scratch *s, op_error *e)
{
    op_status status = OP_OK;
    op_shard_reduce_begin(&l->shard, l->params.grads);
    for (int32_t k = first_part(l); !status && k < l->pack.n_parts; k = next_part(l, k)) {
        op_how how = how_to_learn(l, k, true);
        if (l->shard.parallel && next_part(l, k) >= l->pack.n_parts)
            op_model_set_gradient_hook(l->model, gradients_ready, &l->shard);
        status = run_part(l, k, &how, s, true, e);
    }
    op_model_set_gradient_hook(l->model, NULL, NULL);
    if (!status)
        op_shard_end(&l->shard);
    return status;
}

static op_status learn_linear(op_learner *l, const scratch *s, double *loss, op_error *e)
{
    const op_objective *f = &l->options.objective;
    op_batch whole = op_pack_whole(&l->pack);
    op_signal signal = op_pack_signal(&l->pack);
    op_status status = f->eval(f->ctx, &whole, &signal, NULL, s->slope, NULL, e);
    if (!status)
        status = learn_parts(l, s, e);
    if (status)
        return status;
    share_logprobs(l, s);
    return f->eval(f->ctx, &whole, &signal, s->logp, s->dropped, loss, e);
}

/* The slopes depend on every log p of the step, so these come first; the activations are still there if the step is one part (which an
 * objective that looks at whole distributions has not seen yet). */
static op_status learn_general(op_learner *l, const scratch *s, double *loss, op_error *e)
{
    const op_objective *f = &l->options.objective;
    op_batch whole = op_pack_whole(&l->pack);
    op_signal signal = op_pack_signal(&l->pack);
    bool once = l->pack.n_parts == 1 && !f->part && op_parallel_size(l->options.parallel) == 1;
    op_status status = OP_OK;
    for (int32_t k = first_part(l); !status && k < l->pack.n_parts; k = next_part(l, k)) {
        op_how how = how_to_learn(l, k, once);
        status = run_part(l, k, &how, s, false, e);
    }
    if (status)
        return status;
    share_logprobs(l, s);
    status = f->eval(f->ctx, &whole, &signal, s->logp, s->slope, loss, e);
    if (!status && once)
        return op_model_backward(l->model, l->pass, s->slope, e);
    return status ? status : learn_parts(l, s, e);
}

/* Half a gigabyte for a model of 135M: all threads share it. */
static void clear(char *p, size_t bytes)
{
    const size_t part = (size_t)1 << 20;
#pragma omp parallel for schedule(static) if (bytes > part)
    for (size_t first = 0; first < bytes; first += part)
        memset(p + first, 0, bytes - first < part ? bytes - first : part);
}

static void clear_gradients(op_learner *l)
{
    const op_params *p = &l->params;
    if (p->grads)
        clear((char *)p->grads, p->n * sizeof *p->grads);
    for (size_t i = 0; i < p->n_table && !p->grads; i++)
        clear(p->table[i].grad, p->table[i].n * (p->table[i].grad_act ? l->ops->act_size : sizeof(float)));
}

op_status op_learner_gradient(op_learner *l, const op_item *items, size_t n, op_step_stats *stats, op_error *e)
{
    op_status status = op_pack_build(&l->pack, items, n, &l->packing, e);
    if (status)
        return status;
    const op_pack *p = &l->pack;
    *stats = (op_step_stats){.weight = p->z, .tokens = p->item_tokens, .computed = p->n_tokens, .trained = p->trained,
                             .micro_batches = p->n_parts};
    if (!p->trained)
        return op_error_set(e, OP_ERR_ARG, "none of the %lld tokens of this step has a weight", (long long)p->item_tokens);
    scratch s;
    status = scratch_new(&s, &l->pack, e);
    if (status)
        return status;
    clear_gradients(l);
    status = l->options.objective.linear ? learn_linear(l, &s, &stats->loss, e) : learn_general(l, &s, &stats->loss, e);
    if (!status && !isfinite(stats->loss))
        status = op_error_set(e, OP_ERR_ARG, "the loss of step %lld is %g: lower the learning rate", (long long)l->steps + 1, stats->loss);
    return status;
}

/* AdamW on what this rank owns of one chunk. */
static void update_span(op_learner *l, op_span own, op_adamw how)
{
    const op_params *p = &l->params;
    size_t last = own.first + own.n;
    for (size_t i = 0; i < p->n_table;) { /* neighbours with the same decay go together */
        size_t first = p->table[i].offset, end = first;
        bool decay = p->table[i].decay;
        for (; i < p->n_table && p->table[i].decay == decay && p->table[i].offset == end; i++)
            end += p->table[i].n;
        first = first > own.first ? first : own.first;
        end = end < last ? end : last;
        if (first >= end)
            continue;
        size_t at = own.local + (first - own.first);
        how.weight_decay = decay ? (float)l->options.weight_decay : 0;
        l->ops->adamw(end - first, p->values + first, p->grads + first, l->m + at, l->v + at, &how);
    }
}

/* AdamW parameter by parameter, with gradients or moments that are not all float. */
static void update_low(op_learner *l, op_adamw how)
{
    const op_params *p = &l->params;
    for (size_t i = 0; i < p->n_table; i++) {
        const op_param *x = &p->table[i];
        const op_param_moments *own = l->moments.of ? &l->moments.of[i] : NULL;
        float *m = own ? own->m : l->m + x->offset, *v = own ? own->v : l->v + x->offset;
        how.weight_decay = x->decay ? (float)l->options.weight_decay : 0;
        how.noise = (uint32_t)op_rng_u64(l->options.seed, OP_STREAM_ROUNDING, (uint64_t)l->steps << 20 | i);
        if (!m)
            l->ops->adamw8(x->n, p->values + x->offset, x->grad, x->grad_act, &own->codes, &how);
        else if (x->grad_act)
            l->ops->adamw_act(x->n, p->values + x->offset, x->grad, m, v, &how);
        else
            l->ops->adamw(x->n, p->values + x->offset, x->grad, m, v, &how);
    }
}

static double grad_norm(op_learner *l)
{
    double own = 0;
    for (size_t i = 0; i < l->params.n_table && !l->params.grads; i++) {
        const op_param *x = &l->params.table[i];
        own += x->grad_act ? l->ops->sum_squares_act(x->n, x->grad) : l->ops->sum_squares(x->n, x->grad);
    }
    if (!l->params.grads)
        return sqrt(own);
    for (size_t c = 0; c < l->shard.n_chunks; c++) {
        op_span x = op_shard_span(&l->shard, c);
        own += l->ops->sum_squares(x.n, l->params.grads + x.first);
    }
    return sqrt(op_parallel_total(l->options.parallel, own));
}

/* What each rank has updated goes to the others while it updates the next. */
static void update_shards(op_learner *l, op_adamw how)
{
    op_shard_share_begin(&l->shard, l->params.values);
    for (size_t c = l->shard.n_chunks; c-- > 0;) {
        update_span(l, op_shard_span(&l->shard, c), how);
        op_shard_ready(&l->shard, c * l->shard.chunk);
    }
    op_shard_end(&l->shard);
}

op_status op_learner_update(op_learner *l, double lr, op_step_stats *stats, op_error *e)
{
    const op_learner_options *o = &l->options;
    double norm = grad_norm(l);
    stats->grad_norm = norm;
    if (!isfinite(norm))
        return op_error_set(e, OP_ERR_ARG, "the gradient of step %lld is not finite: lower the learning rate", (long long)l->steps + 1);
    double scale = o->max_grad_norm > 0 && norm > o->max_grad_norm ? o->max_grad_norm / norm : 1;
    op_adamw how = {.lr = (float)lr, .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .eps = (float)o->eps,
                    .grad_scale = (float)scale, .step = l->steps + 1};
    if (l->moments.of || !l->params.grads)
        update_low(l, how);
    else
        update_shards(l, how);
    l->steps++;
    return op_model_updated(l->model, e);
}

op_status op_learner_step(op_learner *l, const op_item *items, size_t n, double lr, op_step_stats *stats, op_error *e)
{
    op_status status = op_learner_gradient(l, items, n, stats, e);
    return status ? status : op_learner_update(l, lr, stats, e);
}

op_status op_learner_evaluate(op_learner *l, const op_item *items, size_t n, op_evaluation *out, op_error *e)
{
    enum { SLICE = 256 }; /* items packed at a time */
    const op_how how = {.seed = l->options.seed};
    double loss = 0, z = 0;
    *out = (op_evaluation){.loss = NAN, .perplexity = NAN};
    for (size_t i = 0; i < n; i += SLICE) {
        op_status status = op_pack_build(&l->pack, items + i, n - i < SLICE ? n - i : SLICE, &l->packing, e);
        scratch s;
        if (!status)
            status = scratch_new(&s, &l->pack, e);
        for (int32_t k = first_part(l); !status && k < l->pack.n_parts; k = next_part(l, k))
            status = run_part(l, k, &how, &s, false, e);
        if (status)
            return status;
        share_logprobs(l, &s);
        for (int32_t t = 0; t < l->pack.n_tokens; t++) {
            double w = l->pack.weight[t];
            if (w > 0) {
                loss -= w * (double)s.logp[t];
                z += w;
                out->tokens++;
            }
        }
    }
    if (z > 0) {
        out->loss = loss / z;
        out->perplexity = exp(out->loss);
    }
    return OP_OK;
}

static void to_items(const op_pack *p, const float *from, float *const *logp)
{
    for (int32_t q = 0; q < p->n_seqs; q++) {
        const op_seq *s = &p->whole[q];
        for (int32_t k = 0; p->item[q] >= 0 && k < s->length; k++)
            if (p->weight[s->start + k] != 0)
                logp[p->item[q]][s->branch + k] = from[s->start + k];
    }
}

op_status op_learner_logprobs(op_learner *l, op_model *other, const op_item *items, size_t n, float *const *logp, op_error *e)
{
    op_pack_options packing = l->packing;
    packing.adapter = other && op_model_adapter_count(other) ? 0 : -1;
    op_model *m = other ? other : l->model;
    op_pass *pass = l->pass;
    scratch s;
    op_status status = other ? op_pass_new(&pass, other, e) : OP_OK;
    if (status)
        return status;
    status = op_pack_build(&l->pack, items, n, &packing, e);
    if (!status)
        status = scratch_new(&s, &l->pack, e);
    for (int32_t k = first_part(l); !status && k < l->pack.n_parts; k = next_part(l, k)) {
        op_batch b = op_pack_part(&l->pack, k);
        int32_t at = l->pack.parts[k].token;
        status = op_model_forward(m, pass, &b, &(op_how){0}, e);
        if (!status)
            status = op_model_logprobs(m, pass, s.want + at, NULL, s.logp + at, e);
    }
    if (!status)
        share_logprobs(l, &s);
    if (!status)
        to_items(&l->pack, s.logp, logp);
    if (other)
        op_pass_free(pass);
    return status;
}
