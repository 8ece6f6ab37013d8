/* backtrack: the comparison for redo (2409.14586). The model learns to stop in the middle of a wrong answer, say a reset token and begin anew: after a
 * punished answer it imitates reset and reference in the wrong answer's place, never the wrong tokens before them. What stands before the last reset is taken
 * back: the teacher hears only what follows. */
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

typedef struct settings {
    char *reset;
    bool punish;
} settings;

static const op_option table[] = {
    {"reset", OP_OPTION_STRING, offsetof(settings, reset), NULL, 0, 0, NULL, "the text that takes back what was said: best a special token that is used for nothing else there"},
    {"punish", OP_OPTION_BOOL, offsetof(settings, punish), "true", 0, 0, NULL, "learn from the answers themselves too, as method marking does"},
    {0},
};

/* Where the response begins that counts: after its last reset. */
static int32_t after_reset(const op_trial *t, const op_tokens *reset)
{
    int32_t n = (int32_t)reset->n;
    for (int32_t at = t->n_response - n; at >= 0; at--)
        if (!memcmp(t->response + at, reset->ids, reset->n * sizeof *reset->ids))
            return at + n;
    return 0;
}

/* The wrong answer up to the end of its first error (all of it but its end, if nothing is marked), reset, reference. */
static op_status add_lesson(op_session *s, const op_trial *t, const op_trial *heard, const op_tokens *reset, op_error *e)
{
    const op_cue *cue = op_session_cue_of(s, t);
    op_trial *right, *whole;
    op_status status = method_reference(s, cue, &right, e);
    if (status || !right)
        return status;
    int32_t cut = t->n_response - (t->finish == OP_FINISH_STOP), error = op_trial_first_error(heard), n = (int32_t)reset->n;
    for (int32_t i = 0; error >= 0 && i < heard->n_marks; i++)
        if (heard->marks[i].start == error && heard->marks[i].value < 0)
            cut = t->n_response - heard->n_response + heard->marks[i].end;
    int32_t *ids = op_alloc_array((size_t)(cut + n + right->n_response), sizeof *ids);
    if (!ids)
        return method_no_memory(e);
    memcpy(ids, t->response, (size_t)cut * sizeof *ids);
    memcpy(ids + cut, reset->ids, (size_t)n * sizeof *ids);
    memcpy(ids + cut + n, right->response, (size_t)right->n_response * sizeof *ids);
    status = op_session_trial(s, cue, ids, cut + n + right->n_response, "backtrack", &whole, e);
    op_free(ids);
    return status ? status : op_lesson_add_imitation(op_session_lesson(s), whole, cut, NULL, e);
}

/* The group as it was sampled, with what was said of the parts that were heard. */
static op_status add_group(op_session *s, op_trial *const *trials, op_trial *const *heard, size_t n, op_error *e)
{
    view *views = op_alloc_zero(n, sizeof *views);
    op_status status = views ? OP_OK : method_no_memory(e);
    for (size_t i = 0; !status && i < n; i++) {
        const op_trial *t = trials[i], *h = heard[i];
        float *m = op_alloc_zero((size_t)t->n_response + 1, sizeof *m);
        if (m)
            op_trial_token_marks(h, m + t->n_response - h->n_response);
        status = m ? method_view_marks(&views[i], t, m, e) : method_no_memory(e);
        views[i].t.has_reward = h->has_reward;
        views[i].t.reward = h->reward;
        op_free(m);
    }
    status = views ? method_add_views(s, views, n, status, e) : status;
    op_free(views);
    return status;
}

static op_status learn_from(op_session *s, const op_stage *stage, op_trial *const *trials, op_trial **heard, bool *success, size_t n, const op_tokens *reset,
                            op_error *e)
{
    const settings *o = stage->settings;
    op_status status = OP_OK;
    for (size_t i = 0; !status && i < n; i++) {
        int32_t from = after_reset(trials[i], reset);
        heard[i] = trials[i];
        if (from)
            status = op_session_trial(s, op_session_cue_of(s, trials[i]), trials[i]->response + from, trials[i]->n_response - from, NULL, &heard[i], e);
    }
    if (!status)
        status = op_session_teach(s, heard, n, success, e);
    for (size_t i = 0; !status && i < n; i++) {
        if (o->punish && i % (size_t)stage->group == 0)
            status = add_group(s, trials + i, heard + i, (size_t)stage->group, e);
        if (!status && method_punished(heard[i], success[i]))
            status = add_lesson(s, trials[i], heard[i], reset, e);
    }
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    if (!o->reset || !*o->reset)
        return op_error_set(e, OP_ERR_ARG, "stage \"%s\": key \"reset\" is not set", stage->name);
    op_cue *const *cues;
    op_trial **trials;
    size_t n;
    op_tokens reset;
    op_tokens_init(&reset);
    op_status status = op_tokenizer_encode(op_session_chat(s)->tokenizer, o->reset, strlen(o->reset), OP_ENCODE_CONTINUE | OP_ENCODE_SPECIAL, &reset, e);
    if (!status && !reset.n)
        status = op_error_set(e, OP_ERR_ARG, "stage \"%s\": key \"reset\": \"%s\" has no tokens", stage->name, o->reset);
    if (!status)
        status = op_session_cues(s, &cues, &n, e);
    if (!status)
        status = op_session_sample(s, (const op_cue *const *)cues, n, stage->group, &trials, e);
    n = status ? 0 : n * (size_t)stage->group;
    op_trial **heard = op_alloc_array(n + 1, sizeof *heard);
    bool *success = op_alloc_zero(n + 1, sizeof *success);
    if (!status)
        status = heard && success ? learn_from(s, stage, trials, heard, success, n, &reset, e) : method_no_memory(e);
    op_free(heard);
    op_free(success);
    op_tokens_release(&reset);
    return status;
}

const op_method op_method_backtrack = {.name = "backtrack", .help = "learns to take a wrong answer back with a reset token and to begin anew", .table = table,
                                       .settings_size = sizeof(settings), .round = learn_round};
