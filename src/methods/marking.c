/* marking: marks on the tokens that did it, with the reward where there is one. As controls the same marks may be put elsewhere. */
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { GIVEN, SENTENCE, WHOLE, SHUFFLED, ATTENTION };

typedef struct settings {
    int place;
} settings;

static const op_option table[] = {
    {"place", OP_OPTION_CHOICE, offsetof(settings, place), "given", 0, 0, "given|sentence|whole|shuffled|attention",
     "where a mark acts: where it was put; spread over its sentence, or over the whole answer, as their mean; or, as a control, on tokens drawn by chance; "
     "attention: marks where they were put, and the reward where the answer's last token looks"},
    {0},
};

/* Every token from .. to-1 gets their mean. */
static void level(float *m, int32_t from, int32_t to)
{
    float sum = 0;
    for (int32_t i = from; i < to; i++)
        sum += m[i];
    for (int32_t i = from; i < to; i++)
        m[i] = sum / (float)(to - from);
}

static void shuffle(op_session *s, float *m, int32_t n)
{
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t j = (int32_t)(op_session_random(s, 1) % (uint64_t)(i + 1));
        float x = m[i];
        m[i] = m[j];
        m[j] = x;
    }
}

static op_status put(op_session *s, int place, const op_trial *t, view *out, op_error *e)
{
    float *m = op_alloc_zero((size_t)t->n_response + 1, sizeof *m);
    int32_t *ends = NULL, n = 0;
    op_status status = m ? OP_OK : method_no_memory(e);
    if (!status)
        op_trial_token_marks(t, m);
    if (!status && place == SENTENCE)
        status = method_steps(s, t, &ends, &n, e);
    for (int32_t i = 0; i < n; i++)
        level(m, i ? ends[i - 1] : 0, ends[i]);
    if (!status && place == WHOLE)
        level(m, 0, t->n_response);
    if (!status && place == SHUFFLED)
        shuffle(s, m, t->n_response);
    if (!status)
        status = method_view_marks(out, t, m, e);
    op_free(ends);
    op_free(m);
    return status;
}

static op_status learn(op_session *s, int place, const answers *a, op_error *e)
{
    view *views = op_alloc_zero(a->group, sizeof *views);
    op_status status = views ? OP_OK : method_no_memory(e);
    for (size_t i = 0; !status && i < a->n; i += a->group) {
        for (size_t k = 0; !status && k < a->group; k++)
            status = put(s, place, a->trials[i + k], &views[k], e);
        status = method_add_views(s, views, a->group, status, e);
    }
    op_free(views);
    return status;
}

/* The outcome of an answer on the tokens that its end attends to (2402.00782): the sum is that of the outcome on every token. */
static op_status learn_by_attention(op_session *s, const answers *a, op_error *e)
{
    float **share = op_alloc_zero(a->n + 1, sizeof *share);
    op_status status = share ? method_attention(s, a->trials, a->n, share, e) : method_no_memory(e);
    for (size_t i = 0; !status && i < a->n; i += a->group)
        status = op_lesson_add_spread(op_session_lesson(s), (const op_trial *const *)a->trials + i, (const float *const *)share + i, a->group, e);
    for (size_t i = 0; share && i < a->n; i++)
        op_free(share[i]);
    op_free(share);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    answers a;
    const settings *o = stage->settings;
    op_status status = method_answers(s, stage, &a, e);
    if (!status)
        status = o->place == GIVEN ? method_add_groups(s, &a, e) : o->place == ATTENTION ? learn_by_attention(s, &a, e) : learn(s, o->place, &a, e);
    method_answers_release(&a);
    return status;
}

const op_method op_method_marking = {.name = "marking", .help = "marks on the tokens that did it, with the reward where there is one", .table = table,
                                     .settings_size = sizeof(settings), .round = learn_round};
