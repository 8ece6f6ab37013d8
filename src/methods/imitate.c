/* imitate: learns the reference answers as they are, without sampling: supervised learning inside a protocol. */
#include "methods/common.h"
#include "methods/methods.h"

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    op_cue *const *cues;
    size_t n;
    op_status status = op_session_cues(s, &cues, &n, e);
    for (size_t i = 0; !status && i < n; i++) {
        op_trial *t;
        status = method_reference(s, cues[i], &t, e);
        if (!status && !t)
            status = op_error_set(e, OP_ERR_ARG, "stage \"%s\": a cue has no \"reference\", which method imitate learns", stage->name);
        if (!status)
            status = op_lesson_add_imitation(op_session_lesson(s), t, 0, NULL, e);
    }
    return status;
}

const op_method op_method_imitate = {.name = "imitate", .help = "learns the reference answers as they are (supervised)", .round = learn_round};
