/* shaping: successive approximation. What counts is a graded reward's passing a criterion that starts low and rises as it is met. */
#include <stddef.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

typedef struct settings {
    double start, step, goal, criterion;
    int64_t over;
    bool graded;
} settings;

static const op_option table[] = {
    {"start", OP_OPTION_FLOAT, offsetof(settings, start), "0.1", -1e9, 1e9, NULL, "the reward that is enough at first"},
    {"step", OP_OPTION_FLOAT, offsetof(settings, step), "0.1", 0, 1e9, NULL, "by how much more is asked for each time"},
    {"goal", OP_OPTION_FLOAT, offsetof(settings, goal), "1", -1e9, 1e9, NULL, "the most that is ever asked for"},
    {"criterion", OP_OPTION_FLOAT, offsetof(settings, criterion), "0.6", 0, 1, NULL, "share of trials that must meet it before more is asked for"},
    {"over", OP_OPTION_INT, offsetof(settings, over), "64", 1, 1 << 20, NULL, "trials by which that is judged"},
    {"graded", OP_OPTION_BOOL, offsetof(settings, graded), "false", 0, 0, NULL, "a trial that meets the criterion earns its reward, instead of 1"},
    {0},
};

static op_status learn(op_session *s, const settings *o, const answers *a, double enough, int64_t *met, int64_t *tried, op_error *e)
{
    view *views = op_alloc_zero(a->group, sizeof *views);
    op_status status = views ? OP_OK : method_no_memory(e);
    for (size_t i = 0; !status && i < a->n; i += a->group) {
        for (size_t k = 0; k < a->group; k++) {
            const op_trial *t = a->trials[i + k];
            bool passed = t->has_reward && t->reward >= enough - 1e-9;
            views[k].t = *t;
            views[k].t.reward = !passed ? 0 : o->graded ? t->reward : 1;
            *met += passed;
            *tried += t->has_reward;
        }
        status = method_add_views(s, views, a->group, OP_OK, e);
    }
    op_free(views);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    double enough = o->start + (double)method_level(s) * o->step;
    int64_t met = 0, tried = 0;
    answers a;
    op_status status = method_answers(s, stage, &a, e);
    if (!status)
        status = learn(s, o, &a, enough < o->goal ? enough : o->goal, &met, &tried, e);
    if (!status)
        status = method_climb(s, met, tried, o->criterion, o->over, enough < o->goal ? INT64_MAX : 0, e);
    method_answers_release(&a);
    return status;
}

const op_method op_method_shaping = {.name = "shaping", .help = "successive approximation: the reward that is enough rises as it is met", .table = table,
                                     .settings_size = sizeof(settings), .round = learn_round};
