/* What a person said about the trial at hand: a list of actions, kept in a draft file from the first key to the last. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/file.h>

#include "cli/teach.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory");
}

op_status teach_desk_init(teach_desk *d, const char *by, const char *draft, op_error *e)
{
    *d = (teach_desk){.by = by, .draft = strdup(draft), .actions = calloc(TEACH_ACTIONS_MAX, sizeof *d->actions)};
    op_trial_init(&d->trial);
    return d->draft && d->actions ? OP_OK : no_memory(e);
}

static void forget(teach_desk *d)
{
    while (d->n_actions)
        free(d->actions[--d->n_actions].ids);
}

void teach_desk_release(teach_desk *d)
{
    if (d->actions)
        forget(d);
    free(d->actions);
    free(d->draft);
    op_trial_release(&d->trial);
}

void teach_desk_lay(teach_desk *d, op_trial *t)
{
    forget(d);
    op_trial_release(&d->trial);
    d->trial = *t;
}

/* ---- the draft: {"trial", "actions": [{"what", "start", "end", "value", "ids", "typed"}]} ---- */

static const char *const names[] = {"mark", "alternative", "reward"};

static op_status write_draft(const teach_desk *d, op_error *e)
{
    if (!d->n_actions)
        return op_path_remove(d->draft, e);
    json_t *list = json_array();
    for (int i = 0; i < d->n_actions; i++) {
        const teach_action *a = &d->actions[i];
        json_t *ids = json_array();
        for (int32_t k = 0; k < a->n; k++)
            json_array_append_new(ids, json_integer(a->ids[k]));
        json_array_append_new(list, json_pack("{ss si si so* so sb}", "what", names[a->what], "start", a->start, "end", a->end, "value",
                                              isnan(a->value) ? NULL : json_real(a->value), "ids", ids, "typed", a->typed));
    }
    json_t *all = json_pack("{sI so}", "trial", (json_int_t)d->trial.id, "actions", list);
    char *text = all ? json_dumps(all, JSON_INDENT(1)) : NULL;
    op_status s = text ? op_file_put(d->draft, text, strlen(text), e) : no_memory(e);
    free(text);
    json_decref(all);
    return s;
}

static op_status read_draft(const teach_desk *d, json_t **out, op_error *e)
{
    json_error_t why;
    *out = NULL;
    if (!op_path_exists(d->draft))
        return OP_OK;
    *out = json_load_file(d->draft, JSON_REJECT_DUPLICATES, &why);
    return json_is_integer(json_object_get(*out, "trial")) ? OP_OK
                                                           : op_error_set(e, OP_ERR_FORMAT, "%s: line %d: no draft of operant teach: %s", d->draft, *out ? 0 : why.line,
                                                                          *out ? "a trial is missing" : why.text);
}

op_status teach_desk_find_draft(const teach_desk *d, int64_t *trial, op_error *e)
{
    json_t *all;
    op_status s = read_draft(d, &all, e);
    *trial = s ? 0 : json_integer_value(json_object_get(all, "trial"));
    json_decref(all);
    return s;
}

static op_status add(teach_desk *d, const teach_action *a, op_error *e)
{
    if (d->n_actions == TEACH_ACTIONS_MAX)
        return op_error_set(e, OP_ERR_ARG, "%d things were said about this trial: accept them first", TEACH_ACTIONS_MAX);
    teach_action *to = &d->actions[d->n_actions];
    *to = *a;
    to->ids = a->n ? malloc((size_t)a->n * sizeof *to->ids) : NULL;
    if (a->n && !to->ids)
        return no_memory(e);
    if (a->n)
        memcpy(to->ids, a->ids, (size_t)a->n * sizeof *to->ids);
    d->n_actions++;
    return OP_OK;
}

static op_status take_up(teach_desk *d, const json_t *from, op_error *e)
{
    json_t *ids = json_object_get(from, "ids"), *value = json_object_get(from, "value");
    const char *what = json_string_value(json_object_get(from, "what"));
    teach_action a = {.start = (int32_t)json_integer_value(json_object_get(from, "start")), .end = (int32_t)json_integer_value(json_object_get(from, "end")),
                      .value = json_is_number(value) ? json_number_value(value) : NAN, .n = (int32_t)json_array_size(ids),
                      .typed = json_is_true(json_object_get(from, "typed"))};
    int n = d->trial.n_response, which = 0;
    while (what && which < 3 && strcmp(what, names[which]) != 0)
        which++;
    a.what = which;
    if (!what || which == 3 || a.start < 0 || a.start > n || (which == TEACH_MARK && (a.end <= a.start || a.end > n)) || (which == TEACH_ALTERNATIVE && !a.n))
        return op_error_set(e, OP_ERR_FORMAT, "%s: action %d does not fit trial %lld", d->draft, d->n_actions, (long long)d->trial.id);
    a.ids = a.n ? malloc((size_t)a.n * sizeof *a.ids) : NULL;
    for (int32_t k = 0; a.ids && k < a.n; k++)
        a.ids[k] = (int32_t)json_integer_value(json_array_get(ids, (size_t)k));
    op_status s = a.n && !a.ids ? no_memory(e) : add(d, &a, e);
    free(a.ids);
    return s;
}

op_status teach_desk_take_up(teach_desk *d, op_error *e)
{
    json_t *all, *one;
    size_t i;
    op_status s = read_draft(d, &all, e);
    json_t *list = json_object_get(all, "actions");
    json_array_foreach(list, i, one)
        s = s ? s : take_up(d, one, e);
    json_decref(all);
    return s;
}

/* ---- actions ---- */

op_status teach_desk_do(teach_desk *d, const teach_action *a, op_error *e)
{
    op_status s = add(d, a, e);
    return s ? s : write_draft(d, e);
}

op_status teach_desk_undo(teach_desk *d, op_error *e)
{
    if (!d->n_actions)
        return OP_OK;
    free(d->actions[--d->n_actions].ids);
    return write_draft(d, e);
}

void teach_desk_marks(const teach_desk *d, float *value)
{
    memset(value, 0, (size_t)d->trial.n_response * sizeof *value);
    for (int i = 0; i < d->n_actions; i++)
        for (int32_t k = d->actions[i].start; d->actions[i].what == TEACH_MARK && k < d->actions[i].end; k++)
            value[k] = (float)d->actions[i].value;
}

static bool is_last(const teach_desk *d, int i)
{
    for (int k = i + 1; k < d->n_actions; k++)
        if (d->actions[k].what == d->actions[i].what && d->actions[k].start == d->actions[i].start)
            return false;
    return true;
}

const teach_action *teach_desk_alternative(const teach_desk *d, int32_t at)
{
    for (int i = d->n_actions; i-- > 0;)
        if (d->actions[i].what == TEACH_ALTERNATIVE && d->actions[i].start == at)
            return &d->actions[i];
    return NULL;
}

const teach_action *teach_desk_reward(const teach_desk *d)
{
    for (int i = d->n_actions; i-- > 0;)
        if (d->actions[i].what == TEACH_REWARD)
            return &d->actions[i];
    return NULL;
}

static op_status add_marks(const teach_desk *d, op_trial *t, op_error *e)
{
    float *value = calloc((size_t)t->n_response + 1, sizeof *value);
    op_status s = value ? OP_OK : no_memory(e);
    if (value)
        teach_desk_marks(d, value);
    for (int32_t i = 0, end; !s && i < t->n_response; i = end) { /* neighbours with the same mark are one span */
        for (end = i + 1; end < t->n_response && value[end] == value[i];)
            end++;
        if (value[i] != 0)
            s = op_trial_add_mark(t, i, end, (double)value[i], d->by, NULL, e);
    }
    free(value);
    return s;
}

op_status teach_desk_accept(teach_desk *d, op_store *store, op_error *e)
{
    op_trial t;
    if (!d->n_actions)
        return OP_OK;
    op_status s = op_trial_copy(&t, &d->trial, e);
    if (s)
        return s;
    s = add_marks(d, &t, e);
    for (int i = 0; !s && i < d->n_actions; i++) {
        const teach_action *a = &d->actions[i];
        if (a->what == TEACH_ALTERNATIVE && is_last(d, i))
            s = op_trial_add_alternative(&t, a->start, a->ids, a->n, a->value, true, a->typed ? d->by : "model", e);
    }
    const teach_action *reward = teach_desk_reward(d);
    if (!s && reward) {
        t.has_reward = true;
        t.reward = reward->value;
    }
    if (!s && !t.by) {
        t.by = strdup(d->by);
        s = t.by ? OP_OK : no_memory(e);
    }
    s = s ? s : op_trial_check(&t, 0, e);
    s = s ? s : op_store_feedback(store, &t, e);
    s = s ? s : op_path_remove(d->draft, e);
    if (!s)
        forget(d);
    op_trial_release(&t);
    return s;
}
