/* The table of teachers, and what they share. */
#include "trial/teachers.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"

const op_teacher_type op_teacher_types[] = {
    {"rules", "patterns on the words, each with a reward or a mark", op_teacher_rules_open},
    {"reference", "the right answer is known", op_teacher_reference_open},
    {"judge", "another, frozen model says yes or no", op_teacher_judge_open},
    {"marker", "a small head on the hidden states that learns to foresee the reward and clicks where it jumps", op_teacher_marker_open},
    {"program", "any program that speaks JSON lines", op_teacher_program_open},
    {"several", "teachers side by side, each with a schedule of its own", op_teacher_several_open},
    {0}};

static const op_teacher_type *find(const op_teacher_type *types, const char *name)
{
    for (; types && types->name; types++)
        if (!strcmp(types->name, name))
            return types;
    return NULL;
}

static void list(op_error *e, const op_teacher_type *types)
{
    for (; e && types && types->name; types++) {
        size_t used = strlen(e->message);
        snprintf(e->message + used, sizeof e->message - used, " %s", types->name);
    }
}

op_status op_teacher_open(op_teacher **out, const json_t *settings, const op_classroom *room, const op_teacher_type *more, op_error *e)
{
    *out = NULL;
    const char *name;
    if (!json_is_object(settings))
        return op_error_set(e, OP_ERR_FORMAT, "teacher: found %s, expected an object with a \"type\"", op_json_kind(settings));
    op_status s = op_json_get_string(settings, "type", true, &name, "teacher", e);
    if (s)
        return s;
    const op_teacher_type *type = find(more, name);
    type = type ? type : find(op_teacher_types, name);
    if (type)
        return type->open(out, settings, room, e);
    op_error_set(e, OP_ERR_ARG, "teacher: key \"type\": found \"%.40s\", expected one of", name);
    list(e, op_teacher_types);
    list(e, more);
    return OP_ERR_ARG;
}

void op_teacher_close(op_teacher *t)
{
    if (t && t->free)
        t->free(t);
    op_free(t);
}

op_status op_teacher_new(op_teacher **out, const char *name, size_t bytes, op_error *e)
{
    size_t head = (sizeof(op_teacher) + 15) / 16 * 16; /* ctx lies behind the teacher, aligned for anything */
    op_teacher *t = op_alloc_zero(1, head + bytes);
    *out = t;
    if (!t)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    t->name = name;
    t->ctx = (char *)t + head;
    return OP_OK;
}

op_status op_teacher_reward(op_trial *t, double reward, const char *by, op_error *e)
{
    if (!t->by && !(t->by = op_strdup(by)))
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", by);
    t->reward = t->has_reward ? t->reward + reward : reward;
    t->has_reward = true;
    return OP_OK;
}

bool op_teacher_success(const op_trial *t)
{
    return t->has_reward ? t->reward > 0 : op_trial_first_error(t) < 0;
}
