/* One update from a lesson. */
#include "trial/lesson_parts.h"

#include <math.h>
#include <string.h>

#include "trial/objective.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for a lesson");
}

static bool needs_reference(const op_lesson *l, const lesson_item *x)
{
    return (x->weight[TERM_KL] && l->options.kl_kind == OP_KL_SAMPLED) || x->weight[TERM_PREFERENCE] || x->weight[TERM_KTO];
}

/* log p under the reference of the items that need it and do not have it yet. */
static op_status add_reference(op_lesson *l, op_learner *learner, op_model *reference, op_error *e)
{
    bool own = op_model_get_options(op_learner_model(learner))->trainable == OP_TRAIN_ADAPTER;
    if (!reference && !own)
        return l->options.kl > 0 ? op_error_set(e, OP_ERR_ARG, "lesson: kl is %g without a reference model, expected 0", l->options.kl) : OP_OK;
    size_t n = 0;
    op_item *items = op_arena_alloc(&l->step, l->n_items * sizeof *items);
    float **logp = op_arena_alloc(&l->step, l->n_items * sizeof *logp);
    lesson_item **of = op_arena_alloc(&l->step, l->n_items * sizeof *of);
    if (!items || !logp || !of)
        return no_memory(e);
    for (size_t i = 0; i < l->n_items; i++) {
        lesson_item *x = &l->items[i];
        if (x->reference || !needs_reference(l, x))
            continue;
        of[n] = x;
        logp[n] = op_arena_alloc(&l->arena, (size_t)x->n * sizeof **logp);
        if (!logp[n])
            return no_memory(e);
        for (int32_t t = 0; t < x->n; t++)
            logp[n][t] = NAN;
        items[n++] = (op_item){.ids = x->ids, .weights = x->want, .n = x->n};
    }
    op_status status = n ? op_learner_logprobs(learner, reference, items, n, logp, e) : OP_OK;
    for (size_t k = 0; !status && k < n; k++)
        of[k]->reference = logp[k];
    return status;
}

/* ---- the objective of a lesson: the sum of its terms, which leaves log p behind ---- */

typedef struct update {
    op_lesson *lesson;
    op_objective sum;
    op_policy policy;
    op_preference preference;
    op_kto kto;
    op_objective_term terms[TERM_COUNT];
    op_objective_sum all;
    full_kl *full; /* NULL: no such term */
    double full_scale;
} update;

static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    update *u = ctx;
    for (int32_t q = 0; logp && q < b->n_seqs; q++) {
        int32_t i = op_item_of(s, q);
        if (i >= 0)
            memcpy(u->lesson->items[i].logp + b->seqs[q].branch, logp + b->seqs[q].start, (size_t)b->seqs[q].length * sizeof *logp);
    }
    op_status status = u->full ? full_kl_weigh(u->full, u->lesson, b, s, u->full_scale, e) : OP_OK;
    return status ? status : u->sum.eval(u->sum.ctx, b, s, logp, slope, loss, e);
}

static op_status part(void *ctx, const op_batch *b, int32_t first, op_error *e)
{
    update *u = ctx;
    return full_kl_part(u->full, b, first, e);
}

/* Scale and normaliser of every term; a term that sees no item is left out. */
static void set_terms(update *u, const op_lesson *l)
{
    const op_lesson_options *o = &l->options;
    double trials = (double)l->trials, constant = o->constant_length > 0 ? trials * o->constant_length : o->per_sequence_mean ? trials : 0;
    u->terms[TERM_POLICY] = (op_objective_term){op_objective_policy(&u->policy), 1, constant > 0 ? constant : l->policy_tokens, NULL, NAN};
    bool full = o->kl_kind == OP_KL_FULL;
    u->terms[TERM_KL] = (op_objective_term){op_objective_kl(), full ? 0 : o->kl, constant > 0 ? constant : l->kl_tokens, NULL, NAN};
    u->full_scale = full && l->kl_tokens > 0 ? o->kl / u->terms[TERM_KL].normaliser : 0;
    u->terms[TERM_PREFERENCE] =
        (op_objective_term){op_objective_preference(&u->preference), o->preference_weight, (double)l->n_pairs, NULL, NAN};
    u->terms[TERM_KTO] = (op_objective_term){op_objective_kto(&u->kto), o->kto_weight, (double)l->n_judged, NULL, NAN};
    u->terms[TERM_IMITATION] = (op_objective_term){op_objective_weighted(), o->imitation_weight, l->imitation_size, NULL, NAN};
    u->terms[TERM_UNLIKELIHOOD] = (op_objective_term){op_objective_unlikelihood(), o->imitation_weight, l->imitation_size, NULL, NAN};
}

static op_status make_update(update *u, op_lesson *l, bool fresh, op_error *e)
{
    const op_lesson_options *o = &l->options;
    double *margin = op_arena_alloc(&l->step, l->n_pairs * sizeof *margin);
    if (!margin)
        return no_memory(e);
    *u = (update){.lesson = l, .policy = {o->clip_low, o->clip_high, fresh}};
    u->preference = (op_preference){.type = o->preference, .beta = o->beta, .mean = o->preference_mean, .pairs = l->pairs, .n_pairs = l->n_pairs,
                                    .n_items = l->n_items, .margin = margin};
    u->kto = (op_kto){.beta = o->beta, .desirable = o->desirable, .undesirable = o->undesirable, .judged = l->judged, .n_judged = l->n_judged,
                      .points = l->points, .n_points = l->n_points, .n_items = l->n_items};
    set_terms(u, l);
    for (int k = 0; k < TERM_COUNT; k++) {
        const float **weights = op_arena_alloc(&l->step, l->n_items * sizeof *weights);
        bool seen = false;
        if (!weights)
            return no_memory(e);
        for (size_t i = 0; i < l->n_items; i++) {
            weights[i] = l->items[i].weight[k];
            seen |= weights[i] != NULL;
        }
        u->terms[k].weights = weights;
        if (!seen)
            u->terms[k].scale = 0;
    }
    u->all = (op_objective_sum){u->terms, TERM_COUNT, l->n_items};
    u->sum = op_objective_sum_of(&u->all);
    return OP_OK;
}

/* ---- statistics ---- */

typedef struct mean {
    double sum;
    int64_t n;
} mean;

static void add(mean *m, double x)
{
    m->sum += x;
    m->n++;
}

static double value(mean m)
{
    return m.n ? m.sum / (double)m.n : NAN;
}

/* KL(p || q) from a token that p drew, x = log q - log p. */
static double k3(double x)
{
    return expm1(x) - x;
}

static void token_stats(const op_lesson *l, op_lesson_stats *s)
{
    mean entropy = {0}, kl = {0}, behaviour = {0}, clipped = {0};
    for (size_t i = 0; i < l->n_items; i++) {
        const lesson_item *x = &l->items[i];
        const float *w = x->weight[TERM_POLICY];
        for (int32_t t = 0; t < x->n; t++) {
            double logp = x->logp[t], gone;
            if (x->weight[TERM_KL] && x->weight[TERM_KL][t] != 0 && x->reference && l->options.kl_kind == OP_KL_SAMPLED)
                add(&kl, k3((double)x->reference[t] - logp));
            if (!w || w[t] == 0)
                continue;
            add(&entropy, -logp);
            bool known = x->behaviour && !isnan(x->behaviour[t]);
            gone = known ? logp - (double)x->behaviour[t] : 0;
            add(&clipped, w[t] > 0 ? exp(gone) > 1 + l->options.clip_high : exp(gone) < 1 - l->options.clip_low);
            if (known)
                add(&behaviour, k3(gone));
        }
    }
    s->entropy = value(entropy);
    s->kl = kl.n ? value(kl) : s->kl;
    s->behaviour_kl = value(behaviour);
    s->clip_fraction = clipped.n ? value(clipped) : 0;
}

static void term_stats(const op_lesson *l, const update *u, op_lesson_stats *s)
{
    const op_objective_term *t = u->terms;
    double towards = t[TERM_IMITATION].loss, away = t[TERM_UNLIKELIHOOD].loss;
    mean right = {0};
    for (size_t k = 0; t[TERM_PREFERENCE].scale > 0 && k < l->n_pairs; k++)
        add(&right, u->preference.margin[k] > 0);
    s->policy_loss = t[TERM_POLICY].loss;
    s->preference_loss = t[TERM_PREFERENCE].loss;
    s->kto_loss = t[TERM_KTO].loss;
    s->imitation_loss = isnan(away) ? towards : towards + away;
    s->preference_accuracy = value(right);
}

/* The behaviour of trials that the policy of now has sampled becomes the log p of this update's forward. */
static double recompute(op_lesson *l, const bool *fresh)
{
    mean gap = {0};
    for (size_t i = 0; i < l->n_items; i++) {
        lesson_item *x = &l->items[i];
        for (int32_t t = 0; fresh[i] && t < x->n; t++) {
            if (isnan(x->behaviour[t]))
                continue;
            if (x->want[t] != 0)
                add(&gap, fabs((double)x->behaviour[t] - (double)x->logp[t]));
            x->behaviour[t] = x->want[t] != 0 ? x->logp[t] : NAN;
        }
        x->recomputed |= fresh[i];
    }
    return value(gap);
}

/* ---- */

/* The step, with the exact KL term if the lesson has one. */
static op_status step(update *u, op_learner *learner, op_model *reference, const op_item *items, double lr, op_lesson_stats *stats, op_error *e)
{
    full_kl full;
    op_status status = OP_OK;
    if (u->full_scale > 0) {
        u->full = &full;
        status = full_kl_begin(&full, learner, reference, e);
    }
    op_objective own = op_learner_set_objective(learner, (op_objective){.name = "lesson", .ctx = u, .linear = u->sum.linear, .eval = eval, .part = u->full ? part : NULL});
    if (!status)
        status = op_learner_step(learner, items, u->lesson->n_items, lr, &stats->step, e);
    op_learner_set_objective(learner, own);
    if (u->full) {
        stats->step.loss += full.loss;
        stats->kl = full.tokens ? full.sum / (double)full.tokens : NAN;
        full_kl_end(&full);
    }
    return status;
}

static op_status learn(op_lesson *l, op_learner *learner, op_model *reference, const char *policy, double lr, op_lesson_stats *stats, op_error *e)
{
    op_item *items = op_arena_alloc(&l->step, l->n_items * sizeof *items);
    bool *fresh = op_arena_alloc(&l->step, l->n_items * sizeof *fresh), all_fresh = true;
    update u;
    if (!items || !fresh)
        return no_memory(e);
    for (size_t i = 0; i < l->n_items; i++) {
        lesson_item *x = &l->items[i];
        fresh[i] = x->behaviour && !x->recomputed && policy && *policy && !strcmp(policy, x->policy);
        all_fresh &= fresh[i] || !x->behaviour;
        items[i] = (op_item){.ids = x->ids, .weights = x->want, .n = x->n, .behaviour = fresh[i] ? NULL : x->behaviour, .reference = x->reference};
    }
    op_status status = make_update(&u, l, all_fresh, e);
    if (status)
        return status;
    status = step(&u, learner, reference, items, lr, stats, e);
    if (status)
        return status;
    stats->sampling_gap = recompute(l, fresh);
    token_stats(l, stats);
    term_stats(l, &u, stats);
    return OP_OK;
}

op_status op_lesson_learn(op_lesson *l, op_learner *learner, op_model *reference, const char *policy, double lr, op_lesson_stats *stats, op_error *e)
{
    *stats = (op_lesson_stats){.policy_loss = NAN, .preference_loss = NAN, .kto_loss = NAN, .imitation_loss = NAN, .entropy = NAN, .kl = NAN,
                               .behaviour_kl = NAN, .sampling_gap = NAN, .preference_accuracy = NAN, .trials = l->trials, .skipped = l->skipped};
    stats->zero_variance = l->groups ? (double)l->equal_groups / (double)l->groups : 0;
    stats->marks_per_trial = l->trials ? (double)l->marks / (double)l->trials : 0;
    if (!l->n_items)
        return OP_OK;
    op_arena_reset(&l->step);
    op_status status = add_reference(l, learner, reference, e);
    return status ? status : learn(l, learner, reference, policy, lr, stats, e);
}
