/* imitate: learns the reference answers as they are, without sampling: supervised learning inside a protocol. */
#include <stddef.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

typedef struct settings {
    int64_t onset_tokens;
    double onset_weight;
} settings;

static const op_option table[] = {
    {"onset_tokens", OP_OPTION_INT, offsetof(settings, onset_tokens), "0", 0, 1 << 20, NULL, "first tokens of an answer, which decide what kind of answer it is"},
    {"onset_weight", OP_OPTION_FLOAT, offsetof(settings, onset_weight), "1", 0, 1000, NULL, "they weigh this many times as much as the rest"},
    {0},
};

static op_status imitate(op_session *s, const settings *o, const op_trial *t, op_error *e)
{
    float *w = op_alloc_array((size_t)t->n_response, sizeof *w);
    if (!w)
        return method_no_memory(e);
    for (int32_t i = 0; i < t->n_response; i++)
        w[i] = i < o->onset_tokens ? (float)o->onset_weight : 1;
    op_status status = op_lesson_add_imitation(op_session_lesson(s), t, 0, w, e);
    op_free(w);
    return status;
}

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
            status = imitate(s, stage->settings, t, e);
    }
    return status;
}

const op_method op_method_imitate = {.name = "imitate", .help = "learns the reference answers as they are (supervised)", .table = table,
                                     .settings_size = sizeof(settings), .round = learn_round};
