/* preference: the better of two answers is preferred as a whole. lesson.preference says how: dpo, ipo or hinge. */
#include <stddef.h>

#include "methods/common.h"
#include "methods/methods.h"

enum { BEST_WORST, ALL, REFERENCE, JUDGED };

typedef struct settings {
    int pairs;
    int64_t span;
} settings;

static const op_option table[] = {
    {"pairs", OP_OPTION_CHOICE, offsetof(settings, pairs), "best_worst", 0, 0, "best_worst|all|reference|judged",
     "the best answer of a group against its worst, every two of unlike reward, the reference against every failure, or each answer alone (KTO)"},
    {"span", OP_OPTION_INT, offsetof(settings, span), "0", 0, 1 << 20, NULL, "tokens from where the two part that count; 0: all"},
    {0},
};

static op_status add_best_worst(op_session *s, op_trial *const *group, size_t n, int32_t span, op_error *e)
{
    const op_trial *best = NULL, *worst = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!group[i]->has_reward)
            continue;
        if (!best || group[i]->reward > best->reward)
            best = group[i];
        if (!worst || group[i]->reward < worst->reward)
            worst = group[i];
    }
    return best && best->reward > worst->reward ? method_prefer(s, best, worst, span, e) : OP_OK;
}

static op_status add_all(op_session *s, op_trial *const *group, size_t n, int32_t span, op_error *e)
{
    op_status status = OP_OK;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; !status && j < n; j++)
            if (group[i]->has_reward && group[j]->has_reward && group[i]->reward > group[j]->reward)
                status = method_prefer(s, group[i], group[j], span, e);
    return status;
}

/* Answers to one cue, by what the settings call a pair. */
static op_status add_group(op_session *s, const settings *o, op_cue *cue, op_trial *const *group, const bool *success, size_t n, op_error *e)
{
    int32_t span = (int32_t)o->span;
    op_trial *reference = NULL;
    op_status status = OP_OK;
    if (o->pairs == BEST_WORST)
        return add_best_worst(s, group, n, span, e);
    if (o->pairs == ALL)
        return add_all(s, group, n, span, e);
    for (size_t i = 0; !status && i < n; i++) {
        const op_trial *t = group[i];
        if (o->pairs == JUDGED && (t->has_reward || t->n_marks))
            status = op_lesson_add_judged(op_session_lesson(s), t, success[i], e);
        if (o->pairs == JUDGED || !method_punished(t, success[i]))
            continue;
        if (!reference)
            status = method_reference(s, cue, &reference, e);
        if (!status && reference)
            status = method_prefer(s, reference, t, span, e);
    }
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    answers a;
    op_status status = method_answers(s, stage, &a, e);
    for (size_t i = 0; !status && i < a.n_cues; i++)
        status = add_group(s, stage->settings, a.cues[i], a.trials + i * a.group, a.success + i * a.group, a.group, e);
    method_answers_release(&a);
    return status;
}

const op_method op_method_preference = {.name = "preference", .help = "the better of two answers is preferred as a whole (DPO, IPO), or each is judged alone (KTO)",
                                        .table = table, .settings_size = sizeof(settings), .round = learn_round};
