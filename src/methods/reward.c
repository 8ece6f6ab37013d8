/* reward: the scalar baseline. Each answer is reinforced by its reward against the mean of its group; what was marked within it is not looked at. */
#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

static op_status learn(op_session *s, const answers *a, op_error *e)
{
    view *views = op_alloc_zero(a->group, sizeof *views);
    op_status status = views ? OP_OK : method_no_memory(e);
    for (size_t i = 0; !status && i < a->n; i += a->group) {
        for (size_t k = 0; k < a->group; k++) {
            views[k].t = *a->trials[i + k];
            views[k].t.n_marks = 0;
        }
        status = method_add_views(s, views, a->group, OP_OK, e);
    }
    op_free(views);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    answers a;
    op_status status = method_answers(s, stage, &a, e);
    if (!status)
        status = learn(s, &a, e);
    method_answers_release(&a);
    return status;
}

const op_method op_method_reward = {.name = "reward", .help = "the scalar baseline: every answer is reinforced as a whole", .round = learn_round};
