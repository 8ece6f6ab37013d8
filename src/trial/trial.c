/* A trial in memory: making, copying, checking, adding feedback. */
#include <operant/trial.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

void op_trial_init(op_trial *t)
{
    *t = (op_trial){.tags = json_object()};
}

void op_trial_release(op_trial *t)
{
    op_free(t->prompt);
    op_free(t->response);
    op_free(t->logprobs);
    json_decref(t->messages);
    json_decref(t->tags);
    for (int32_t i = 0; i < t->n_marks; i++) {
        op_free(t->marks[i].by);
        op_free(t->marks[i].note);
    }
    op_free(t->marks);
    for (int32_t i = 0; i < t->n_alternatives; i++) {
        op_free(t->alternatives[i].ids);
        op_free(t->alternatives[i].by);
    }
    op_free(t->alternatives);
    op_free(t->by);
    *t = (op_trial){0};
}

/* Each of these turns nothing into nothing; *ok becomes false when memory is out. */
static void *copied(const void *from, size_t bytes, bool *ok)
{
    void *to = from ? op_alloc(bytes) : NULL;
    if (to && bytes)
        memcpy(to, from, bytes);
    *ok &= !from || to;
    return to;
}

static char *copied_text(const char *from, bool *ok)
{
    return copied(from, from ? strlen(from) + 1 : 0, ok);
}

static json_t *copied_json(const json_t *from, bool *ok)
{
    json_t *to = from ? json_deep_copy(from) : NULL;
    *ok &= !from || to;
    return to;
}

static op_status no_memory(const op_trial *t, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for trial %lld", (long long)t->id);
}

op_status op_trial_copy(op_trial *out, const op_trial *t, op_error *e)
{
    bool ok = true;
    *out = *t;
    out->n_marks = out->n_alternatives = 0; /* grow as their strings are copied, so that release always fits */
    out->prompt = copied(t->prompt, (size_t)t->n_prompt * sizeof *t->prompt, &ok);
    out->response = copied(t->response, (size_t)t->n_response * sizeof *t->response, &ok);
    out->logprobs = copied(t->logprobs, (size_t)t->n_response * sizeof *t->logprobs, &ok);
    out->messages = copied_json(t->messages, &ok);
    out->tags = t->tags ? copied_json(t->tags, &ok) : json_object();
    ok &= out->tags != NULL;
    out->by = copied_text(t->by, &ok);
    out->marks = copied(t->marks, (size_t)t->n_marks * sizeof *t->marks, &ok);
    out->alternatives = copied(t->alternatives, (size_t)t->n_alternatives * sizeof *t->alternatives, &ok);
    for (int32_t i = 0; ok && i < t->n_marks; i++) {
        op_mark *m = &out->marks[out->n_marks++];
        m->by = copied_text(t->marks[i].by, &ok);
        m->note = copied_text(t->marks[i].note, &ok);
    }
    for (int32_t i = 0; ok && i < t->n_alternatives; i++) {
        op_alternative *a = &out->alternatives[out->n_alternatives++];
        a->ids = copied(t->alternatives[i].ids, (size_t)a->n * sizeof *a->ids, &ok);
        a->by = copied_text(t->alternatives[i].by, &ok);
    }
    if (ok)
        return OP_OK;
    op_trial_release(out);
    return no_memory(t, e);
}

static op_status check_ids(const op_trial *t, const int32_t *ids, int32_t n, const char *what, int32_t vocab, op_error *e)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (vocab && ids[i] >= vocab))
            return op_error_set(e, OP_ERR_ARG, "trial %lld: token %d of the %s is %d, expected 0..%d", (long long)t->id, i, what, ids[i],
                                vocab ? vocab - 1 : INT32_MAX);
    return OP_OK;
}

static op_status check_mark(const op_trial *t, const op_mark *m, op_error *e)
{
    if (m->start < 0 || m->start >= m->end || m->end > t->n_response)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: a mark on tokens %d..%d, expected a span within 0..%d", (long long)t->id, m->start, m->end,
                            t->n_response);
    if (!(m->value >= -1 && m->value <= 1))
        return op_error_set(e, OP_ERR_ARG, "trial %lld: a mark of %g, expected -1..1", (long long)t->id, m->value);
    for (int32_t i = m->start < t->n_forced ? t->n_forced : m->start; t->logprobs && i < m->end; i++)
        if (isnan(t->logprobs[i]))
            return op_error_set(e, OP_ERR_ARG, "trial %lld: a mark on token %d, which was never sampled", (long long)t->id, i);
    return OP_OK;
}

static op_status check_mark_count(const op_trial *t, int64_t n, op_error *e)
{
    int64_t most = OP_TRIAL_MARKS_MAX(t->n_response);
    return n <= most ? OP_OK : op_error_set(e, OP_ERR_ARG, "trial %lld: %lld marks on %d tokens, expected at most %lld", (long long)t->id, (long long)n, t->n_response, (long long)most);
}

/* A mark and whose it is. */
typedef struct said {
    const char *by; /* "": nobody */
    const op_mark *mark;
} said;

static int by_teacher_and_start(const void *a, const void *b)
{
    const said *x = a, *y = b;
    int order = strcmp(x->by, y->by);
    return order ? order : (x->mark->start > y->mark->start) - (x->mark->start < y->mark->start);
}

/* In the order of their starts a mark contradicts one before it if that one, of the other sign, reaches beyond its start. */
static op_status check_contradictions(const op_trial *t, op_error *e)
{
    op_status status = OP_OK;
    int32_t reach[2] = {0}; /* of bad marks, of good ones */
    said *all = op_alloc_array((size_t)t->n_marks, sizeof *all);
    if (!all)
        return no_memory(t, e);
    for (int32_t i = 0; i < t->n_marks; i++) {
        const op_mark *m = &t->marks[i];
        all[i] = (said){m->by ? m->by : t->by ? t->by : "", m};
    }
    qsort(all, (size_t)t->n_marks, sizeof *all, by_teacher_and_start);
    for (int32_t i = 0; !status && i < t->n_marks; i++) {
        const op_mark *m = all[i].mark;
        bool good = m->value > 0;
        if (!i || strcmp(all[i - 1].by, all[i].by) != 0)
            reach[0] = reach[1] = 0;
        if (m->value == 0)
            continue;
        if (reach[!good] > m->start)
            status = op_error_set(e, OP_ERR_ARG, "trial %lld: token %d is marked good and bad by the same teacher", (long long)t->id, m->start);
        reach[good] = m->end > reach[good] ? m->end : reach[good];
    }
    op_free(all);
    return status;
}

static op_status check_marks(const op_trial *t, op_error *e)
{
    op_status status = check_mark_count(t, t->n_marks, e);
    for (int32_t i = 0; !status && i < t->n_marks; i++)
        status = check_mark(t, &t->marks[i], e);
    return status || t->n_marks < 2 ? status : check_contradictions(t, e);
}

static op_status check_alternative(const op_trial *t, const op_alternative *a, int32_t vocab, op_error *e)
{
    if (a->n < 1)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: an alternative without tokens", (long long)t->id);
    if (a->at < 0 || a->at > t->n_response)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: an alternative at token %d, expected 0..%d", (long long)t->id, a->at, t->n_response);
    return check_ids(t, a->ids, a->n, "alternative", vocab, e);
}

op_status op_trial_check(const op_trial *t, int32_t vocab, op_error *e)
{
    long long id = t->id;
    if (t->n_prompt < 1 || !t->prompt)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: no prompt, expected at least one token", id);
    if (t->n_response < 0 || (t->n_response && !t->response))
        return op_error_set(e, OP_ERR_ARG, "trial %lld: a response of %d tokens without them", id, t->n_response);
    if (t->n_forced < 0 || t->n_forced > t->n_response)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: %d forced tokens, expected 0..%d", id, t->n_forced, t->n_response);
    if (t->has_reward && !isfinite(t->reward))
        return op_error_set(e, OP_ERR_ARG, "trial %lld: the reward is not finite", id);
    for (int32_t i = 0; t->logprobs && i < t->n_response; i++) /* NAN: not known, as of a forced token; rounding may pass 0 */
        if (t->logprobs[i] > 1e-3f)
            return op_error_set(e, OP_ERR_ARG, "trial %lld: the log-probability of token %d is %g, expected 0 or less", id, i, (double)t->logprobs[i]);
    op_status s = check_ids(t, t->prompt, t->n_prompt, "prompt", vocab, e);
    if (!s)
        s = check_ids(t, t->response, t->n_response, "response", vocab, e);
    if (!s)
        s = check_marks(t, e);
    for (int32_t i = 0; !s && i < t->n_alternatives; i++)
        s = check_alternative(t, &t->alternatives[i], vocab, e);
    return s;
}

op_status op_trial_add_mark(op_trial *t, int32_t start, int32_t end, double value, const char *by, const char *note, op_error *e)
{
    bool ok = true;
    op_mark m = {.start = start, .end = end, .value = value};
    op_status s = check_mark_count(t, (int64_t)t->n_marks + 1, e);
    s = s ? s : check_mark(t, &m, e);
    if (s)
        return s;
    op_mark *marks = op_realloc(t->marks, (size_t)(t->n_marks + 1) * sizeof *marks);
    if (marks)
        t->marks = marks;
    m.by = copied_text(by, &ok);
    m.note = copied_text(note, &ok);
    if (!marks || !ok) {
        op_free(m.by);
        op_free(m.note);
        return no_memory(t, e);
    }
    t->marks[t->n_marks++] = m;
    return OP_OK;
}

op_status op_trial_add_alternative(op_trial *t, int32_t at, const int32_t *ids, int32_t n, double logprob, bool picked, const char *by, op_error *e)
{
    bool ok = true;
    op_alternative a = {.at = at, .ids = (int32_t *)(uintptr_t)ids, .n = n, .logprob = logprob, .picked = picked};
    op_status s = check_alternative(t, &a, 0, e);
    if (s)
        return s;
    op_alternative *all = op_realloc(t->alternatives, (size_t)(t->n_alternatives + 1) * sizeof *all);
    if (all)
        t->alternatives = all;
    a.ids = copied(ids, (size_t)n * sizeof *ids, &ok);
    a.by = copied_text(by, &ok);
    if (!all || !ok) {
        op_free(a.ids);
        op_free(a.by);
        return no_memory(t, e);
    }
    t->alternatives[t->n_alternatives++] = a;
    return OP_OK;
}

void op_trial_token_marks(const op_trial *t, float *m)
{
    for (int32_t i = 0; i < t->n_response; i++) {
        double sum = 0;
        for (int32_t k = 0; k < t->n_marks; k++)
            if (t->marks[k].start <= i && i < t->marks[k].end)
                sum += t->marks[k].value;
        m[i] = (float)fmax(-1, fmin(1, sum));
    }
}

int32_t op_trial_first_error(const op_trial *t)
{
    int32_t first = -1;
    for (int32_t k = 0; k < t->n_marks; k++)
        if (t->marks[k].value < 0 && (first < 0 || t->marks[k].start < first))
            first = t->marks[k].start;
    return first;
}
