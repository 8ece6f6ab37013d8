/* Trials kept for a later round, in the session's memory: their number in the run, tokens, marks and reward, as JSON. */
#include <stdio.h>

#include "base/mem.h"
#include "methods/common.h"

static json_t *list_of(op_session *s, int64_t round)
{
    char key[32];
    snprintf(key, sizeof key, "kept %lld", (long long)round);
    json_t *memory = op_session_memory(s), *list = json_object_get(memory, key);
    if (!list && !json_object_set_new(memory, key, json_array()))
        list = json_object_get(memory, key);
    return list;
}

static int64_t round_now(op_session *s)
{
    return json_integer_value(json_object_get(op_session_memory(s), "round"));
}

op_status method_keep(op_session *s, const op_trial *t, int64_t rounds, op_error *e)
{
    json_t *line = NULL, *list = list_of(s, round_now(s) + rounds);
    op_status status = op_trial_to_json(t, NULL, &line, e);
    if (status)
        return status;
    line = json_pack("{sI so}", "number", (json_int_t)op_session_number(s, t), "trial", line);
    return !line || json_array_append_new(list, line) ? method_no_memory(e) : OP_OK;
}

/* A trial and its cue again, as the session's of this round. */
static op_status again(op_session *s, op_trial *t, op_trial **out, op_error *e)
{
    op_cue cue = {.prompt = t->prompt, .n_prompt = t->n_prompt, .messages = json_incref(t->messages), .tags = json_incref(t->tags)};
    const op_cue *at;
    t->prompt = NULL;
    op_status status = op_session_add_cue(s, &cue, &at, e);
    if (!status)
        status = op_session_trial(s, at, t->response, t->n_response, t->by, out, e);
    for (int32_t i = 0; !status && i < t->n_marks; i++)
        status = op_trial_add_mark(*out, t->marks[i].start, t->marks[i].end, t->marks[i].value, t->marks[i].by, t->marks[i].note, e);
    for (int32_t i = 0; !status && i < t->n_alternatives; i++) {
        const op_alternative *x = &t->alternatives[i];
        status = op_trial_add_alternative(*out, x->at, x->ids, x->n, x->logprob, x->picked, x->by, e);
    }
    if (!status) {
        (*out)->has_reward = t->has_reward;
        (*out)->reward = t->reward;
    }
    return status;
}

op_status method_recall(op_session *s, op_trial ***out, size_t *n, op_error *e)
{
    int64_t round = round_now(s) + 1;
    char key[32];
    snprintf(key, sizeof key, "kept %lld", (long long)round);
    json_t *memory = op_session_memory(s), *line, *list = json_incref(json_object_get(memory, key));
    size_t i;
    op_status status = json_object_set_new(memory, "round", json_integer(round)) ? method_no_memory(e) : OP_OK;
    json_object_del(memory, key);
    *out = op_alloc_array(json_array_size(list) + 1, sizeof **out);
    *n = 0;
    if (!*out)
        status = method_no_memory(e);
    json_array_foreach(list, i, line) {
        op_trial t;
        if (status || (status = op_trial_from_json(&t, json_object_get(line, "trial"), NULL, NULL, "a trial kept for later", e)))
            break;
        status = again(s, &t, &(*out)[*n], e);
        if (!status)
            op_session_is(s, (*out)[(*n)++], json_integer_value(json_object_get(line, "number")));
        op_trial_release(&t);
    }
    json_decref(list);
    return status;
}
