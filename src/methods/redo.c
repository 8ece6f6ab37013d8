/* redo: an answer that was punished is done again, and what goes better is reinforced where it parted from the first.
 *
 *   retry    the same prompt from its beginning
 *   rewind   back to just before the first token marked wrong
 *   guide    back to there, with the right token placed (a picked alternative, or what the reference says where the two part); then it goes on
 *
 * The redo is shown to the teacher outside the schedule and earns lesson.outcome_weight times its gain over the first answer, if it gained, and its own
 * marks, on the tokens from where it was rewound to; tokens marked wrong never earn anything. Where the redo succeeded, it is preferred to the first
 * answer at the token where they part. */
#include <stddef.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { RETRY, REWIND, GUIDE };

typedef struct settings {
    int variant;
    int64_t delay, span, place;
    bool branch, punish;
} settings;

static const op_option table[] = {
    {"variant", OP_OPTION_CHOICE, offsetof(settings, variant), "rewind", 0, 0, "retry|rewind|guide", "from the beginning, from just before the error, or from there with the right token placed"},
    {"delay", OP_OPTION_INT, offsetof(settings, delay), "0", 0, 1000, NULL, "rounds between the error and its redo; 0: at once"},
    {"place", OP_OPTION_INT, offsetof(settings, place), "1", 1, 4096, NULL, "guide: tokens of the reference that are placed"},
    {"branch", OP_OPTION_BOOL, offsetof(settings, branch), "true", 0, 0, NULL, "prefer a redo that succeeded at the token where the two part"},
    {"span", OP_OPTION_INT, offsetof(settings, span), "1", 0, 1 << 20, NULL, "tokens of that preference; 0: all from there"},
    {"punish", OP_OPTION_BOOL, offsetof(settings, punish), "true", 0, 0, NULL, "learn from the first answers too, as method marking does"},
    {0},
};

/* The token to place, from where; none: *placed stays NULL. */
static op_status find_right(op_session *s, const op_trial *t, int32_t *at, const int32_t **placed, int32_t *n, op_error *e)
{
    for (int32_t i = 0; i < t->n_alternatives; i++)
        if (t->alternatives[i].picked) {
            *at = t->alternatives[i].at;
            *placed = t->alternatives[i].ids;
            *n = t->alternatives[i].n;
            return OP_OK;
        }
    op_trial *right;
    op_status status = method_reference(s, op_session_cue_of(s, t), &right, e);
    int32_t parting = !status && right ? method_parting(right, t) : -1;
    if (parting >= 0) {
        *at = parting;
        *placed = right->response + parting;
        *n = right->n_response - parting;
    }
    return status;
}

static op_status plan_redo(op_session *s, const settings *o, op_trial *t, plan *p, op_error *e)
{
    const int32_t *placed = NULL;
    int32_t at = op_trial_first_error(t), n = 0;
    op_status status = OP_OK;
    if (o->variant == RETRY || at < 0)
        at = 0;
    if (o->variant == GUIDE)
        status = find_right(s, t, &at, &placed, &n, e);
    return status ? status : method_plan_add(p, t, at, placed, n < o->place ? n : (int32_t)o->place, e);
}

/* ---- what a redo earns ---- */

static op_status add_redo(op_session *s, const op_stage *stage, const op_trial *redo, const op_trial *first, op_error *e)
{
    const settings *o = stage->settings;
    double gain = redo->has_reward && first->has_reward ? redo->reward - first->reward : 0;
    gain = gain > 0 ? gain * stage->lesson.outcome_weight : 0;
    float *a = op_alloc_zero((size_t)redo->n_response + 1, sizeof *a);
    if (!a)
        return method_no_memory(e);
    op_trial_token_marks(redo, a);
    for (int32_t i = 0; i < redo->n_response; i++) {
        double mark = stage->lesson.mark_weight * (double)a[i];
        a[i] = i < redo->redo_at ? 0 : (float)(a[i] < 0 ? mark : mark + gain);
    }
    op_status status = op_lesson_add_advantages(op_session_lesson(s), redo, a, e);
    op_free(a);
    return !status && o->branch && method_succeeded(stage, redo) ? method_prefer(s, redo, first, (int32_t)o->span, e) : status;
}

/* ---- the round ---- */

/* Of this round's answers, and of those kept for this round: what is redone now. */
static op_status make_plan(op_session *s, const settings *o, const answers *a, plan *p, op_error *e)
{
    op_trial **due = NULL;
    size_t n_due = 0;
    op_status status = o->delay ? method_recall(s, &due, &n_due, e) : OP_OK;
    for (size_t i = 0; !status && i < n_due; i++)
        status = plan_redo(s, o, due[i], p, e);
    for (size_t i = 0; !status && i < a->n; i++)
        if (method_punished(a->trials[i], a->success[i]))
            status = o->delay ? method_keep(s, a->trials[i], o->delay, e) : plan_redo(s, o, a->trials[i], p, e);
    op_free(due);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    answers a;
    plan p = {0};
    op_trial **redos = NULL;
    op_status status = method_answers(s, stage, &a, e);
    if (!status && o->punish)
        status = method_add_groups(s, &a, e);
    if (!status)
        status = make_plan(s, o, &a, &p, e);
    if (!status)
        status = method_plan_run(s, &p, &redos, e);
    for (size_t i = 0; !status && i < p.n; i++)
        status = add_redo(s, stage, redos[i], p.trials[i], e);
    method_plan_release(&p);
    method_answers_release(&a);
    return status;
}

const op_method op_method_redo = {.name = "redo", .help = "a punished answer is done again: retried, rewound to the error, or guided past it", .table = table,
                                  .settings_size = sizeof(settings), .round = learn_round};
