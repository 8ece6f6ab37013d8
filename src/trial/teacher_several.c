/* Teachers side by side, each with a schedule of reinforcement of its own: a click on every step whose reward comes only now and then, say.
 *
 * Settings: {"type": "several", "teachers": [{"teacher": {...}, ...}, ...]}, 1 .. 16 of them, each with
 *     teacher   needed: the settings of a teacher
 *     schedule  as in operant/reinforce.h; default continuous. A success is what op_teacher_success calls one, of this teacher's feedback alone;
 *               on a probe it is silent; a jackpot multiplies its reward
 *     wrong     share of its marks that are turned around, 0 .. 1; default 0: how much does a careless teacher harm?
 * They speak in their order; their rewards add up, and so do their marks. The tag "verdict" of a trial says whether all that reward it found it a success, also
 * those that their schedules kept silent; where none rewards, whether all did. (Marks beside a reward help to find the way: a marker that clicks at a wrong
 * place has not made a success a failure.) */
#include "trial/teachers.h"

#include <string.h>

#include <operant/reinforce.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/json.h"
#include "trial/settings.h"

static const char name[] = "several";

enum { MEMBERS_MAX = 16, STREAM_WRONG = 0x7277 };

typedef struct member {
    op_teacher *teacher;
    op_reinforce *schedule;
    double wrong;
    uint64_t marks; /* so far */
} member;

typedef struct several {
    member member[MEMBERS_MAX];
    int n;
    uint64_t seed;
} several;

static void turn_around(const several *v, int i, member *m, op_trial *t, int32_t from)
{
    for (int32_t k = from; k < t->n_marks; k++)
        if (op_rng_uniform(v->seed, STREAM_WRONG + ((uint64_t)i << 32), m->marks++) < m->wrong)
            t->marks[k].value = -t->marks[k].value;
}

/* What of `told` is new since `t` goes into t; both are the same trial. */
static op_status hand_over(op_trial *t, const op_trial *told, double size, const char *by, op_error *e)
{
    op_status s = OP_OK;
    for (int32_t k = 0; !s && k < told->n_marks; k++)
        s = op_trial_add_mark(t, told->marks[k].start, told->marks[k].end, told->marks[k].value, told->marks[k].by ? told->marks[k].by : by, told->marks[k].note, e);
    for (int32_t k = 0; !s && k < told->n_alternatives; k++) {
        const op_alternative *a = &told->alternatives[k];
        s = op_trial_add_alternative(t, a->at, a->ids, a->n, a->logprob, a->picked, a->by, e);
    }
    return s || !told->has_reward ? s : op_teacher_reward(t, size * told->reward, by, e);
}

/* The trial as if nobody had spoken of it yet. */
static op_status bare_copy(op_trial *out, const op_trial *t, op_error *e)
{
    op_trial bare = *t;
    bare.n_marks = bare.n_alternatives = 0;
    bare.has_reward = false;
    bare.reward = 0;
    bare.by = NULL;
    return op_trial_copy(out, &bare, e);
}

/* What they think of a trial, whether they are heard or not: those that reward it, and the others. */
typedef struct opinions {
    bool rewarded, success, approved;
} opinions;

static op_status teach_one(several *v, int i, op_trial *t, bool asked, opinions *o, op_error *e)
{
    member *m = &v->member[i];
    op_trial copy, *told = &copy;
    op_status s = bare_copy(&copy, t, e);
    if (s)
        return s;
    s = m->teacher->teach(m->teacher, &told, 1, e);
    double size = 1;
    o->rewarded |= copy.has_reward;
    *(copy.has_reward ? &o->success : &o->approved) &= op_teacher_success(&copy);
    if (!s && (asked || op_reinforce_next(m->schedule, op_teacher_success(&copy), &size) == OP_FEEDBACK)) {
        turn_around(v, i, m, &copy, 0);
        s = hand_over(t, &copy, size, m->teacher->name, e);
    }
    op_trial_release(&copy);
    return s;
}

static op_status teach(op_teacher *teacher, op_trial *const *trials, size_t n, op_error *e)
{
    several *v = teacher->ctx;
    op_status s = OP_OK;
    for (size_t k = 0; !s && k < n; k++) {
        opinions o = {.success = true, .approved = true};
        for (int i = 0; !s && i < v->n; i++)
            s = teach_one(v, i, trials[k], teacher->asked, &o, e);
        if (!s && json_object_set_new(trials[k]->tags, "verdict", json_boolean(o.rewarded ? o.success : o.approved)))
            s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    }
    return s;
}

static op_status learn(op_teacher *teacher, op_trial *const *trials, size_t n, op_error *e)
{
    several *v = teacher->ctx;
    op_status s = OP_OK;
    for (int i = 0; !s && i < v->n; i++)
        s = v->member[i].teacher->learn ? v->member[i].teacher->learn(v->member[i].teacher, trials, n, e) : OP_OK;
    return s;
}

/* ---- state: {"members": [{"marks", "schedule", "teacher" if it has one}, ...]} ---- */

static op_status save_member(const member *m, json_t *list, op_error *e)
{
    json_t *schedule = NULL, *inner = NULL;
    op_status s = op_reinforce_save(m->schedule, &schedule, e);
    if (!s && m->teacher->save)
        s = m->teacher->save(m->teacher, &inner, e);
    if (!s && json_array_append_new(list, json_pack("{sI sO sO*}", "marks", (json_int_t)m->marks, "schedule", schedule, "teacher", inner)))
        s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    json_decref(schedule);
    json_decref(inner);
    return s;
}

static op_status save(op_teacher *teacher, json_t **state, op_error *e)
{
    const several *v = teacher->ctx;
    json_t *list = json_array();
    op_status s = list ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    for (int i = 0; !s && i < v->n; i++)
        s = save_member(&v->member[i], list, e);
    *state = s ? NULL : json_pack("{sO}", "members", list);
    json_decref(list);
    return s || *state ? s : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
}

static op_status load(op_teacher *teacher, const json_t *state, op_error *e)
{
    several *v = teacher->ctx;
    json_t *list = NULL, *schedule = NULL, *inner = NULL;
    op_status s = op_json_get_array(state, "members", true, &list, name, e);
    if (!s && json_array_size(list) != (size_t)v->n)
        s = op_error_set(e, OP_ERR_MISMATCH, "%s: the state has %zu teachers, the settings %d", name, json_array_size(list), v->n);
    for (int i = 0; !s && i < v->n; i++) {
        member *m = &v->member[i];
        const json_t *from = json_array_get(list, (size_t)i);
        int64_t marks = 0;
        inner = NULL;
        s = op_json_get_int(from, "marks", true, 0, INT64_MAX, &marks, name, e);
        m->marks = (uint64_t)marks;
        s = s ? s : op_json_get_object(from, "schedule", true, &schedule, name, e);
        s = s ? s : op_reinforce_load(m->schedule, schedule, e);
        s = s ? s : op_json_get_object(from, "teacher", m->teacher->load != NULL, &inner, name, e);
        if (!s && m->teacher->load)
            s = m->teacher->load(m->teacher, inner, e);
    }
    return s;
}

/* ---- opening ---- */

static op_status open_member(several *v, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"teacher", "schedule", "wrong", NULL};
    json_t *inner = NULL;
    op_reinforce_options o = op_reinforce_defaults();
    member *m = &v->member[v->n++];
    op_status s = op_settings_check(settings, keys, name, e);
    s = s ? s : op_json_get_object(settings, "teacher", true, &inner, name, e);
    s = s ? s : op_settings_number(settings, "wrong", 0, 1, &m->wrong, name, e);
    o.seed = room->seed + (uint64_t)v->n;
    if (!s && json_object_get(settings, "schedule"))
        s = op_reinforce_from_json(&o, json_object_get(settings, "schedule"), o.seed, e);
    s = s ? s : op_reinforce_new(&m->schedule, &o, e);
    return s ? s : op_teacher_open(&m->teacher, inner, room, room->more, e);
}

static void free_several(op_teacher *teacher)
{
    several *v = teacher->ctx;
    for (int i = 0; i < v->n; i++) {
        op_teacher_close(v->member[i].teacher);
        op_reinforce_free(v->member[i].schedule);
    }
}

op_status op_teacher_several_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "teachers", NULL};
    json_t *list = NULL;
    op_teacher *t;
    op_status s = op_teacher_new(&t, name, sizeof(several), e);
    if (s)
        return s;
    several *v = t->ctx;
    v->seed = room->seed;
    t->teach = teach;
    t->learn = learn;
    t->save = save;
    t->load = load;
    t->free = free_several;
    s = op_settings_check(settings, keys, name, e);
    s = s ? s : op_json_get_array(settings, "teachers", true, &list, name, e);
    if (!s && (!json_array_size(list) || json_array_size(list) > MEMBERS_MAX))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: key \"teachers\": found %zu, expected 1..%d", name, json_array_size(list), MEMBERS_MAX);
    for (size_t i = 0; !s && i < json_array_size(list); i++)
        s = open_member(v, json_array_get(list, i), room, e);
    if (s) {
        op_teacher_close(t);
        return s;
    }
    *out = t;
    return OP_OK;
}
