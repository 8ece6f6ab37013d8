/* What a lesson is made of: from trials to sequences with signed weights. */
#include "trial/lesson_parts.h"

#include <math.h>
#include <string.h>

op_lesson_options op_lesson_defaults(void)
{
    return (op_lesson_options){.outcome_weight = 1, .mark_weight = 1, .baseline = OP_BASELINE_GROUP, .clip_low = 0.2, .clip_high = 0.28,
                               .beta = 0.1, .preference_weight = 1, .kto_weight = 1, .desirable = 1, .undesirable = 1, .imitation_weight = 1};
}

static op_status check(const op_lesson_options *o, op_error *e)
{
    const struct {
        const char *name;
        double value, min, max;
    } rules[] = {
        {"outcome_weight", o->outcome_weight, -INFINITY, INFINITY},
        {"mark_weight", o->mark_weight, -INFINITY, INFINITY},
        {"clip_low", o->clip_low, 0, 1},
        {"clip_high", o->clip_high, 0, INFINITY},
        {"kl", o->kl, 0, INFINITY},
        {"constant_length", o->constant_length, 0, INFINITY},
        {"beta", o->beta, 1e-9, INFINITY},
        {"preference_weight", o->preference_weight, 0, INFINITY},
        {"kto_weight", o->kto_weight, 0, INFINITY},
        {"desirable", o->desirable, 0, INFINITY},
        {"undesirable", o->undesirable, 0, INFINITY},
        {"imitation_weight", o->imitation_weight, 0, INFINITY},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!isfinite(rules[i].value) || rules[i].value < rules[i].min || rules[i].value > rules[i].max)
            return op_error_set(e, OP_ERR_ARG, "lesson: %s is %g, expected %g..%g", rules[i].name, rules[i].value, rules[i].min, rules[i].max);
    if (o->constant_length > 0 && o->per_sequence_mean)
        return op_error_set(e, OP_ERR_ARG, "lesson: constant_length and per_sequence_mean are both set, expected one of them");
    return OP_OK;
}

op_status op_lesson_new(op_lesson **out, const op_lesson_options *o, op_error *e)
{
    *out = NULL;
    op_status status = check(o, e);
    if (status)
        return status;
    op_lesson *l = op_alloc_zero(1, sizeof *l);
    if (!l)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a lesson");
    l->options = *o;
    op_arena_init(&l->arena);
    op_arena_init(&l->step);
    *out = l;
    return OP_OK;
}

void op_lesson_free(op_lesson *l)
{
    if (!l)
        return;
    op_arena_release(&l->arena);
    op_arena_release(&l->step);
    op_free(l->items);
    op_free(l->pairs);
    op_free(l->judged);
    op_free(l->points);
    op_free(l);
}

void op_lesson_clear(op_lesson *l)
{
    op_arena_reset(&l->arena);
    l->n_items = l->n_pairs = l->n_judged = l->n_points = 0;
    l->trials = l->skipped = l->marks = l->groups = l->equal_groups = 0;
    l->policy_tokens = l->kl_tokens = l->imitation_size = 0;
}

size_t op_lesson_items(const op_lesson *l)
{
    return l->n_items;
}

op_running op_lesson_running(const op_lesson *l)
{
    return l->running;
}

void op_lesson_set_running(op_lesson *l, op_running r)
{
    l->running = r;
}

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for a lesson");
}

static op_status grow(void *array, size_t n, size_t *cap, size_t size, op_error *e)
{
    return op_grow(array, n, cap, size) ? OP_OK : no_memory(e);
}

static float *floats(op_lesson *l, int32_t n, float value)
{
    float *x = op_arena_alloc(&l->arena, (size_t)n * sizeof *x);
    for (int32_t i = 0; x && i < n; i++)
        x[i] = value;
    return x;
}

/* Appends a sequence that no term sees yet; its index is n_items - 1. */
static op_status add_item(op_lesson *l, const op_trial *t, const int32_t *response, int32_t n_response, op_error *e)
{
    op_status status = grow(&l->items, l->n_items, &l->cap_items, sizeof *l->items, e);
    if (status)
        return status;
    lesson_item x = {.n = t->n_prompt + n_response, .n_prompt = t->n_prompt};
    x.ids = op_arena_alloc(&l->arena, (size_t)x.n * sizeof *x.ids);
    x.want = floats(l, x.n, 0);
    x.logp = floats(l, x.n, 0);
    if (!x.ids || !x.want || !x.logp)
        return no_memory(e);
    memcpy(x.ids, t->prompt, (size_t)t->n_prompt * sizeof *x.ids);
    memcpy(x.ids + t->n_prompt, response, (size_t)n_response * sizeof *x.ids);
    l->items[l->n_items++] = x;
    return OP_OK;
}

/* The weights of the response of the newest item for one term, all 0. NULL: out of memory. */
static float *add_term(op_lesson *l, lesson_term term)
{
    lesson_item *x = &l->items[l->n_items - 1];
    x->weight[term] = floats(l, x->n, 0);
    return x->weight[term] ? x->weight[term] + x->n_prompt : NULL;
}

/* Once all weights of the newest item are set. */
static void set_want(op_lesson *l)
{
    lesson_item *x = &l->items[l->n_items - 1];
    for (int32_t i = 0; i < x->n; i++)
        for (int k = 0; k < TERM_COUNT; k++)
            if (x->weight[k] && x->weight[k][i] != 0)
                x->want[i] = 1;
}

/* ---- policy ---- */

static op_status add_behaviour(op_lesson *l, const op_trial *t, op_error *e)
{
    lesson_item *x = &l->items[l->n_items - 1];
    if (!t->logprobs)
        return OP_OK;
    x->behaviour = floats(l, x->n, NAN);
    if (!x->behaviour)
        return no_memory(e);
    for (int32_t i = t->n_forced; i < t->n_response; i++) /* the policy did not choose the forced ones */
        x->behaviour[t->n_prompt + i] = t->logprobs[i];
    memcpy(x->policy, t->policy, sizeof x->policy);
    return OP_OK;
}

static op_status add_policy(op_lesson *l, const op_trial *t, const float *a, op_error *e)
{
    int32_t n = t->n_response;
    int64_t tokens = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!isfinite(a[i]))
            return op_error_set(e, OP_ERR_ARG, "trial %lld: the advantage of token %d is not finite", (long long)t->id, i);
        tokens += a[i] != 0;
    }
    l->trials++;
    l->marks += t->n_marks;
    if (!tokens) {
        l->skipped++;
        return OP_OK;
    }
    op_status status = add_item(l, t, t->response, n, e);
    if (status)
        return status;
    bool kl = l->options.kl > 0;
    float *w = add_term(l, TERM_POLICY), *k = kl ? add_term(l, TERM_KL) : NULL;
    if (!w || (kl && !k))
        return no_memory(e);
    float share = l->options.per_sequence_mean ? 1 / (float)n : 1;
    for (int32_t i = 0; i < n; i++) {
        w[i] = a[i] * share;
        if (kl)
            k[i] = share;
    }
    l->policy_tokens += (double)tokens;
    l->kl_tokens += n;
    set_want(l);
    return add_behaviour(l, t, e);
}

op_status op_lesson_add_advantages(op_lesson *l, const op_trial *t, const float *a, op_error *e)
{
    op_status status = op_trial_check(t, 0, e);
    return status ? status : add_policy(l, t, a, e);
}

/* What is known of the rewards of a group. */
typedef struct outcomes {
    size_t n;
    double sum, deviation;
    bool equal;
} outcomes;

static outcomes outcomes_of(const op_trial *const *trials, size_t n)
{
    outcomes o = {.equal = true};
    double first = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        if (!trials[i]->has_reward)
            continue;
        if (!o.n++)
            first = trials[i]->reward;
        o.sum += trials[i]->reward;
        o.equal &= trials[i]->reward == first;
    }
    for (size_t i = 0; i < n; i++)
        if (trials[i]->has_reward)
            squares += pow(trials[i]->reward - o.sum / (double)o.n, 2);
    o.deviation = o.n > 1 ? sqrt(squares / (double)(o.n - 1)) : 0;
    return o;
}

static double outcome_advantage(const op_lesson *l, const outcomes *o, double reward)
{
    op_baseline how = l->options.baseline;
    if (how == OP_BASELINE_RUNNING || (how != OP_BASELINE_NONE && o->n == 1))
        return reward - l->running.mean;
    double a = reward;
    if (how != OP_BASELINE_NONE && o->equal)
        return 0; /* exactly, whatever the mean was rounded to */
    if (how == OP_BASELINE_GROUP)
        a -= o->sum / (double)o->n;
    if (how == OP_BASELINE_LEAVE_ONE_OUT)
        a -= (o->sum - reward) / (double)(o->n - 1);
    return l->options.divide_by_deviation && o->n > 1 ? a / (o->deviation + 1e-4) : a;
}

static void run_on(op_running *r, double reward)
{
    r->count++;
    r->mean += (reward - r->mean) * fmax(1 / (double)(r->count + 1), 0.05);
}

static op_status add_answer(op_lesson *l, const op_trial *t, const outcomes *o, const float *share, op_error *e)
{
    float *a = floats(l, t->n_response, 0);
    if (!a)
        return no_memory(e);
    op_trial_token_marks(t, a);
    double whole = t->has_reward ? l->options.outcome_weight * outcome_advantage(l, o, t->reward) : 0;
    for (int32_t i = 0; i < t->n_response; i++)
        a[i] = (float)(whole * (share ? (double)share[i] : 1) + l->options.mark_weight * (double)a[i]);
    return add_policy(l, t, a, e);
}

op_status op_lesson_add_spread(op_lesson *l, const op_trial *const *trials, const float *const *share, size_t n, op_error *e)
{
    op_status status = OP_OK;
    for (size_t i = 0; !status && i < n; i++)
        status = op_trial_check(trials[i], 0, e);
    if (status)
        return status;
    outcomes o = outcomes_of(trials, n);
    for (size_t i = 0; !status && i < n; i++)
        status = add_answer(l, trials[i], &o, share ? share[i] : NULL, e);
    for (size_t i = 0; !status && i < n; i++)
        if (trials[i]->has_reward)
            run_on(&l->running, trials[i]->reward);
    l->groups += o.n > 1;
    l->equal_groups += o.n > 1 && o.equal;
    return status;
}

op_status op_lesson_add_group(op_lesson *l, const op_trial *const *trials, size_t n, op_error *e)
{
    return op_lesson_add_spread(l, trials, NULL, n, e);
}

/* ---- preferences and judgements ---- */

/* Adds a trial whose response tokens from .. to-1 count: as marked, times side, if any of them is; else 1 each. */
static op_status add_counted(op_lesson *l, const op_trial *t, int32_t from, int32_t to, float side, lesson_term term, op_error *e)
{
    op_status status = add_item(l, t, t->response, t->n_response, e);
    if (status)
        return status;
    float *w = add_term(l, term);
    if (!w)
        return no_memory(e);
    bool marked = false;
    op_trial_token_marks(t, w);
    for (int32_t i = from; i < to; i++)
        marked |= w[i] != 0;
    for (int32_t i = 0; i < t->n_response; i++)
        w[i] = i < from || i >= to ? 0 : marked ? side * w[i] : 1;
    set_want(l);
    return OP_OK;
}

op_status op_lesson_add_preference(op_lesson *l, const op_trial *good, const op_trial *bad, int32_t at, int32_t span, op_error *e)
{
    op_status status = op_trial_check(good, 0, e);
    if (!status)
        status = op_trial_check(bad, 0, e);
    if (!status)
        status = grow(&l->pairs, l->n_pairs, &l->cap_pairs, sizeof *l->pairs, e);
    if (status)
        return status;
    long long a = good->id, b = bad->id;
    if (at < 0 || at >= good->n_response || at >= bad->n_response || span < 0)
        return op_error_set(e, OP_ERR_ARG, "trials %lld and %lld part at token %d, expected one that both responses (%d and %d tokens) have", a, b, at,
                            good->n_response, bad->n_response);
    if (good->n_prompt != bad->n_prompt || memcmp(good->prompt, bad->prompt, (size_t)good->n_prompt * sizeof *good->prompt))
        return op_error_set(e, OP_ERR_MISMATCH, "trials %lld and %lld have different prompts", a, b);
    if (memcmp(good->response, bad->response, (size_t)at * sizeof *good->response))
        return op_error_set(e, OP_ERR_MISMATCH, "trials %lld and %lld part before token %d", a, b, at);
    const op_trial *sides[] = {good, bad};
    for (int k = 0; !status && k < 2; k++) {
        int32_t n = sides[k]->n_response, to = span && span < n - at ? at + span : n;
        status = add_counted(l, sides[k], at, to, k ? -1 : 1, TERM_PREFERENCE, e);
    }
    if (!status)
        l->pairs[l->n_pairs++] = (op_pair){(int32_t)l->n_items - 2, (int32_t)l->n_items - 1};
    return status;
}

/* The response of the judged trial before after this one's prompt: what the policy thinks of a text that was not meant for it. One that was
 * meant for the same prompt is no such text. */
static op_status add_point(op_lesson *l, const op_trial *t, op_error *e)
{
    const lesson_item *other = &l->items[l->judged[l->n_judged - 1].item];
    if (other->n_prompt == t->n_prompt && !memcmp(other->ids, t->prompt, (size_t)t->n_prompt * sizeof *t->prompt))
        return OP_OK;
    int32_t n = t->n_prompt + t->n_response, room = (n > other->n ? n : other->n) - t->n_prompt, n_other = other->n - other->n_prompt;
    int32_t length = n_other < room ? n_other : room;
    op_status status = grow(&l->points, l->n_points, &l->cap_points, sizeof *l->points, e);
    if (!status)
        status = add_item(l, t, other->ids + other->n_prompt, length, e);
    if (status)
        return status;
    float *w = add_term(l, TERM_KTO);
    if (!w)
        return no_memory(e);
    for (int32_t i = 0; i < length; i++)
        w[i] = 1;
    set_want(l);
    l->points[l->n_points++] = (int32_t)l->n_items - 1;
    return OP_OK;
}

op_status op_lesson_add_judged(op_lesson *l, const op_trial *t, bool desirable, op_error *e)
{
    op_status status = op_trial_check(t, 0, e);
    if (status)
        return status;
    if (!t->n_response) {
        l->skipped++;
        return OP_OK;
    }
    status = grow(&l->judged, l->n_judged, &l->cap_judged, sizeof *l->judged, e);
    if (!status && l->n_judged)
        status = add_point(l, t, e);
    if (!status)
        status = add_counted(l, t, 0, t->n_response, desirable ? 1 : -1, TERM_KTO, e);
    if (!status)
        l->judged[l->n_judged++] = (op_judged){(int32_t)l->n_items - 1, desirable};
    return status;
}

/* ---- imitation ---- */

op_status op_lesson_add_imitation(op_lesson *l, const op_trial *t, int32_t from, const float *w, op_error *e)
{
    op_status status = op_trial_check(t, 0, e);
    if (status)
        return status;
    if (from < 0 || from > t->n_response)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: imitation from token %d, expected 0..%d", (long long)t->id, from, t->n_response);
    double size = 0;
    for (int32_t i = from; i < t->n_response; i++)
        size += w ? fabs((double)w[i]) : 1;
    if (!isfinite(size))
        return op_error_set(e, OP_ERR_ARG, "trial %lld: a weight is not finite", (long long)t->id);
    if (size == 0) {
        l->skipped++;
        return OP_OK;
    }
    status = add_item(l, t, t->response, t->n_response, e);
    if (status)
        return status;
    float *towards = add_term(l, TERM_IMITATION), *away = l->options.unlikelihood ? add_term(l, TERM_UNLIKELIHOOD) : towards;
    if (!towards || !away)
        return no_memory(e);
    for (int32_t i = from; i < t->n_response; i++) {
        float x = w ? w[i] : 1;
        *(x < 0 ? &away[i] : &towards[i]) = x;
    }
    l->imitation_size += size;
    set_want(l);
    return OP_OK;
}
