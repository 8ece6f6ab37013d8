/* chaining: the steps (sentences) of the reference answer are learned one after another.
 *
 *   forward    answers from the beginning; the first step is enough at first, then the first two, ... Nothing is learned beyond the steps asked for.
 *   backward   all but the last step are placed, then all but the last two, ... The answer goes on from there; nothing is learned of what was placed. */
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { FORWARD, BACKWARD };

typedef struct settings {
    int direction;
    double criterion;
    int64_t over;
} settings;

static const op_option table[] = {
    {"direction", OP_OPTION_CHOICE, offsetof(settings, direction), "forward", 0, 0, "forward|backward", "from the first step on, or from the last one back"},
    {"criterion", OP_OPTION_FLOAT, offsetof(settings, criterion), "0.8", 0, 1, NULL, "share of answers that must be right before a step is added"},
    {"over", OP_OPTION_INT, offsetof(settings, over), "32", 1, 1 << 20, NULL, "answers by which that is judged"},
    {0},
};

static op_status reference_of(op_session *s, const op_stage *stage, const op_cue *cue, op_trial **t, int32_t **ends, int32_t *n, op_error *e)
{
    op_status status = method_reference(s, cue, t, e);
    if (!status && !*t)
        status = op_error_set(e, OP_ERR_ARG, "stage \"%s\": a cue has no \"reference\", whose steps method chaining needs", stage->name);
    return status ? status : method_steps(s, *t, ends, n, e);
}

typedef struct tally {
    int64_t right, tried, longest; /* longest: steps of the longest reference */
} tally;

/* ---- forward ---- */

static op_status same_words(op_session *s, const op_trial *a, int32_t to_a, const op_trial *b, int32_t to_b, bool *same, op_error *e)
{
    const op_tokenizer *k = op_session_chat(s)->tokenizer;
    char *x = NULL, *y = NULL;
    op_status status = op_trial_text(a, k, 0, to_a, &x, e);
    if (!status)
        status = op_trial_text(b, k, 0, to_b, &y, e);
    *same = !status && !strcmp(x, y);
    op_free(x);
    op_free(y);
    return status;
}

/* The first `steps` steps of the answer: as the marks say, or where there are none, word for word the reference's. */
static op_status judge(op_session *s, const op_trial *t, const op_trial *right, int32_t right_to, int32_t steps, view *out, bool *done, op_error *e)
{
    int32_t *ends, n, error = op_trial_first_error(t);
    op_status status = method_steps(s, t, &ends, &n, e);
    if (status)
        return status;
    int32_t to = n < steps ? t->n_response : ends[steps - 1];
    *done = n >= steps && (error < 0 || error >= to);
    if (*done && !t->n_marks)
        status = same_words(s, t, to, right, right_to, done, e);
    if (!status)
        status = method_view(out, t, 0, to, e);
    out->t.reward = *done;
    op_free(ends);
    return status;
}

static op_status forward(op_session *s, const op_stage *stage, int64_t steps, tally *sum, op_error *e)
{
    answers a;
    op_status status = method_answers(s, stage, &a, e);
    view *views = op_alloc_zero(a.group + 1, sizeof *views);
    if (!status && !views)
        status = method_no_memory(e);
    for (size_t i = 0; !status && i < a.n_cues; i++) {
        op_trial *right;
        int32_t *ends = NULL, n = 0;
        status = reference_of(s, stage, a.cues[i], &right, &ends, &n, e);
        int32_t asked = n < steps ? n : (int32_t)steps;
        for (size_t k = 0; !status && k < a.group; k++) {
            bool done = false;
            const op_trial *t = a.trials[i * a.group + k];
            status = judge(s, t, right, ends[asked - 1], asked, &views[k], &done, e);
            sum->right += done && (t->has_reward || t->n_marks);
            sum->tried += t->has_reward || t->n_marks;
        }
        status = method_add_views(s, views, a.group, status, e);
        sum->longest = n > sum->longest ? n : sum->longest;
        op_free(ends);
    }
    op_free(views);
    method_answers_release(&a);
    return status;
}

/* ---- backward ---- */

/* Plans `group` answers to each cue that go on where the last `steps` steps begin. */
static op_status place(op_session *s, const op_stage *stage, op_cue *const *cues, size_t n_cues, int64_t steps, plan *p, tally *sum, op_error *e)
{
    op_status status = OP_OK;
    for (size_t i = 0; !status && i < n_cues; i++) {
        op_trial *right;
        int32_t *ends = NULL, n = 0;
        status = reference_of(s, stage, cues[i], &right, &ends, &n, e);
        for (int64_t k = 0; !status && k < stage->group; k++)
            status = method_plan_add(p, right, n > steps ? ends[n - steps - 1] : 0, NULL, 0, e);
        sum->longest = n > sum->longest ? n : sum->longest;
        op_free(ends);
    }
    return status;
}

static op_status learn_rest(op_session *s, const op_stage *stage, const plan *p, tally *sum, op_error *e)
{
    op_trial **trials;
    size_t group = (size_t)stage->group;
    bool *success = op_alloc_zero(p->n + 1, sizeof *success);
    view *views = op_alloc_zero(group, sizeof *views);
    op_status status = success && views ? op_session_redo(s, p->trials, p->n, p->at, NULL, NULL, &trials, e) : method_no_memory(e);
    if (!status)
        status = op_session_teach(s, trials, p->n, success, e);
    for (size_t i = 0; !status && i < p->n; i++) {
        sum->right += success[i];
        sum->tried++;
        status = method_view(&views[i % group], trials[i], p->at[i], trials[i]->n_response, e);
        if (status || (i + 1) % group == 0)
            status = method_add_views(s, views, group, status, e);
    }
    op_free(views);
    op_free(success);
    return status;
}

static op_status backward(op_session *s, const op_stage *stage, int64_t steps, tally *sum, op_error *e)
{
    op_cue *const *cues;
    size_t n;
    plan p = {0};
    op_status status = op_session_cues(s, &cues, &n, e);
    if (!status)
        status = place(s, stage, cues, n, steps, &p, sum, e);
    if (!status)
        status = learn_rest(s, stage, &p, sum, e);
    method_plan_release(&p);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    int64_t steps = 1 + method_level(s);
    tally sum = {0};
    op_status status = o->direction == FORWARD ? forward(s, stage, steps, &sum, e) : backward(s, stage, steps, &sum, e);
    return status ? status : method_climb(s, sum.right, sum.tried, o->criterion, o->over, steps < sum.longest ? INT64_MAX : 0, e);
}

const op_method op_method_chaining = {.name = "chaining", .help = "the steps of the reference are learned one after another, forwards or backwards", .table = table,
                                      .settings_size = sizeof(settings), .round = learn_round};
