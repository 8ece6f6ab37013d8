/* alternatives: where a punished answer first went wrong (its first token, if nothing was marked), others are tried, the teacher picks the best, and the
 * pick is preferred to what was said there. A pick that the teacher made beforehand counts at once. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { TOKENS, ANSWERS, TEACHER };

typedef struct settings {
    int from;
    int64_t n, span;
    bool punish;
} settings;

static const op_option table[] = {
    {"from", OP_OPTION_CHOICE, offsetof(settings, from), "tokens", 0, 0, "tokens|answers|teacher",
     "the model's likeliest tokens there, each with how it goes on; whole answers sampled anew; or the teacher's own text, the reference"},
    {"n", OP_OPTION_INT, offsetof(settings, n), "10", 1, 64, NULL, "tokens or answers to pick from"},
    {"span", OP_OPTION_INT, offsetof(settings, span), "1", 0, 1 << 20, NULL, "tokens from where pick and answer part that count; 0: all"},
    {"punish", OP_OPTION_BOOL, offsetof(settings, punish), "true", 0, 0, NULL, "learn from the first answers too, as method marking does"},
    {0},
};

/* Plans what is tried for t: each alternative placed where it went wrong, or the whole answer again. */
static op_status plan_tries(op_session *s, const settings *o, op_trial *t, plan *p, op_error *e)
{
    int32_t at = op_trial_first_error(t), had = t->n_alternatives;
    at = at < 0 ? 0 : at;
    op_status status = o->from == TOKENS ? op_session_alternatives(s, &t, 1, &at, (int32_t)o->n, e) : OP_OK;
    for (int32_t i = 0; !status && i < o->n; i++) {
        const op_alternative *x = o->from == TOKENS ? &t->alternatives[had + i] : NULL;
        if (!x)
            status = method_plan_add(p, t, 0, NULL, 0, e);
        else if (x->ids[0] != t->response[at])
            status = method_plan_add(p, t, at, x->ids, x->n, e);
    }
    return status;
}

/* Notes in t what was picked, for the record, and prefers it. */
static op_status reinforce(op_session *s, const settings *o, op_trial *t, const op_trial *pick, const char *by, op_error *e)
{
    int32_t at = method_parting(pick, t);
    if (at < 0)
        return OP_OK;
    for (int32_t i = 0; i < t->n_alternatives; i++)
        if (t->alternatives[i].at == at && t->alternatives[i].ids[0] == pick->response[at]) {
            t->alternatives[i].picked = true;
            return method_prefer(s, pick, t, (int32_t)o->span, e);
        }
    op_status status = op_trial_add_alternative(t, at, pick->response + at, pick->n_response - at, pick->logprobs ? (double)pick->logprobs[at] : (double)NAN,
                                                true, by, e);
    return status ? status : method_prefer(s, pick, t, (int32_t)o->span, e);
}

/* Of what was tried for one trial after another, reinforces the best where it is better than the trial. */
static op_status pick_best(op_session *s, const settings *o, const plan *p, op_error *e)
{
    op_trial **tried;
    op_status status = method_plan_run(s, p, &tried, e);
    for (size_t i = 0, end; !status && i < p->n; i = end) {
        const op_trial *best = p->trials[i];
        for (end = i; end < p->n && p->trials[end] == p->trials[i]; end++)
            if (method_score(tried[end]) > method_score(best))
                best = tried[end];
        if (best != p->trials[i])
            status = reinforce(s, o, p->trials[i], best, "model", e);
    }
    return status;
}

static op_status take_reference(op_session *s, const settings *o, op_trial *t, op_error *e)
{
    op_trial *right;
    op_status status = method_reference(s, op_session_cue_of(s, t), &right, e);
    return status || !right ? status : reinforce(s, o, t, right, "reference", e);
}

/* The answer up to the place, and then what the teacher picked there. */
static op_status take_pick(op_session *s, const settings *o, op_trial *t, const op_alternative *x, op_error *e)
{
    op_trial *pick;
    int32_t *ids = op_alloc_array((size_t)(x->at + x->n), sizeof *ids);
    if (!ids)
        return method_no_memory(e);
    memcpy(ids, t->response, (size_t)x->at * sizeof *ids);
    memcpy(ids + x->at, x->ids, (size_t)x->n * sizeof *ids);
    op_status status = op_session_trial(s, op_session_cue_of(s, t), ids, x->at + x->n, x->by, &pick, e);
    op_free(ids);
    return status ? status : reinforce(s, o, t, pick, x->by, e);
}

/* What is known already is reinforced, the rest planned. */
static op_status correct(op_session *s, const settings *o, op_trial *t, plan *p, op_error *e)
{
    for (int32_t i = 0; i < t->n_alternatives; i++)
        if (t->alternatives[i].picked)
            return take_pick(s, o, t, &t->alternatives[i], e);
    if (o->from == TEACHER)
        return take_reference(s, o, t, e);
    return t->n_response ? plan_tries(s, o, t, p, e) : OP_OK;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    answers a;
    plan p = {0};
    op_status status = method_answers(s, stage, &a, e);
    if (!status && o->punish)
        status = method_add_groups(s, &a, e);
    for (size_t i = 0; !status && i < a.n; i++)
        if (method_punished(a.trials[i], a.success[i]))
            status = correct(s, o, a.trials[i], &p, e);
    if (!status)
        status = pick_best(s, o, &p, e);
    method_plan_release(&p);
    method_answers_release(&a);
    return status;
}

const op_method op_method_alternatives = {.name = "alternatives", .help = "at the first wrong token others are tried, the teacher picks, and the pick is preferred",
                                          .table = table, .settings_size = sizeof(settings), .round = learn_round};
