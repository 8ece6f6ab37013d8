/* stored: learns from trials of a file (operant trials export), with what people or programs said of them; nothing is sampled and no teacher is asked. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <operant/import.h>
#include <operant/jsonl.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { MARKS, REWARD, PREFERENCE, IMITATION };

typedef struct settings {
    char *file, *answers;
    int learn;
} settings;

static const op_option table[] = {
    {"file", OP_OPTION_STRING, offsetof(settings, file), NULL, 0, 0, NULL, "trials as operant trials export writes them; those of one tag \"group\", one after the other, belong together"},
    {"learn", OP_OPTION_CHOICE, offsetof(settings, learn), "marks", 0, 0, "marks|reward|preference|imitation",
     "from the reward and the marks, from the reward alone, the best answer of a group against its worst, or every answer as it is"},
    {"answers", OP_OPTION_LIST, offsetof(settings, answers), NULL, 0, 0, NULL, "only answers with one of these for the tag \"answer\"; unset: all"},
    {0},
};

/* The trials of the file that are wanted. */
typedef struct pile {
    const settings *o;
    const op_chat *chat;
    const char *path;
    op_trial *at;
    size_t n, cap;
} pile;

static const char *tag(const op_trial *t, const char *key)
{
    return json_string_value(json_object_get(t->tags, key));
}

/* Is `word` one of a list with commas? */
static bool among(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && !strncmp(at, word, n))
            return true;
    return false;
}

static op_status read_trial(void *ctx, json_t *line, int number, op_error *e)
{
    pile *p = ctx;
    char name[300];
    snprintf(name, sizeof name, "%.250s: line %d", p->path, number);
    if (!op_grow(&p->at, p->n, &p->cap, sizeof *p->at))
        return method_no_memory(e);
    op_trial *t = &p->at[p->n];
    op_status status = op_trial_from_json(t, line, p->chat->tokenizer, p->chat, name, e);
    if (status)
        return status;
    const char *answer = tag(t, "answer");
    if (p->o->answers && !(answer && among(p->o->answers, answer)))
        op_trial_release(t);
    else
        p->n++;
    return OP_OK;
}

/* Where the group ends that begins with trial i. */
static size_t end_of_group(const pile *p, size_t i)
{
    const char *group = tag(&p->at[i], "group");
    size_t end = i + 1;
    while (group && end < p->n && tag(&p->at[end], "group") && !strcmp(group, tag(&p->at[end], "group")))
        end++;
    return end;
}

/* Its reward; without one, where people compared the answers, the share of the others that it is better than minus that of those that are better. */
static bool standing(const op_trial *group, size_t n, const op_trial *t, double *out)
{
    int64_t better = 0, worse = 0;
    for (size_t i = 0; i < n; i++) {
        better += op_import_better(t, &group[i]);
        worse += op_import_better(&group[i], t);
    }
    *out = t->has_reward ? t->reward : n > 1 ? (double)(better - worse) / (double)(n - 1) : 0;
    return t->has_reward || better || worse;
}

static op_status reinforce(op_session *s, const op_trial *group, size_t n, bool marks, op_error *e)
{
    view *views = op_alloc_zero(n, sizeof *views);
    if (!views)
        return method_no_memory(e);
    for (size_t i = 0; i < n; i++) {
        op_trial *t = &views[i].t;
        *t = group[i];
        t->has_reward = standing(group, n, &group[i], &t->reward);
        t->n_marks = marks ? t->n_marks : 0;
    }
    op_status status = method_add_views(s, views, n, OP_OK, e);
    op_free(views);
    return status;
}

static op_status prefer(op_session *s, const op_trial *group, size_t n, op_error *e)
{
    const op_trial *best = NULL, *worst = NULL;
    double high = 0, low = 0, x;
    for (size_t i = 0; i < n; i++) {
        if (!standing(group, n, &group[i], &x))
            continue;
        if (!best || x > high)
            best = &group[i], high = x;
        if (!worst || x < low)
            worst = &group[i], low = x;
    }
    return best && high > low ? method_prefer(s, best, worst, 0, e) : OP_OK;
}

static op_status learn_group(op_session *s, int how, const op_trial *group, size_t n, op_error *e)
{
    op_status status = OP_OK;
    if (how == PREFERENCE)
        return prefer(s, group, n, e);
    if (how != IMITATION)
        return reinforce(s, group, n, how == MARKS, e);
    for (size_t i = 0; !status && i < n; i++)
        status = op_lesson_add_imitation(op_session_lesson(s), &group[i], 0, NULL, e);
    return status;
}

/* `prompts` groups, drawn without replacement. */
static op_status learn_some(op_session *s, const op_stage *stage, const pile *p, op_error *e)
{
    const settings *o = stage->settings;
    size_t *first = op_alloc_array(p->n + 1, sizeof *first), groups = 0;
    op_status status = first ? OP_OK : method_no_memory(e);
    for (size_t i = 0; first && i < p->n; i = end_of_group(p, i))
        first[groups++] = i;
    for (size_t k = 0; !status && k < groups && k < (size_t)stage->prompts; k++) {
        size_t drawn = k + (size_t)(op_session_random(s, 3) % (uint64_t)(groups - k)), i = first[drawn];
        first[drawn] = first[k];
        status = learn_group(s, o->learn, p->at + i, end_of_group(p, i) - i, e);
    }
    op_free(first);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    if (!o->file)
        return op_error_set(e, OP_ERR_ARG, "key \"file\" is not set, which holds the trials");
    char *path = NULL;
    op_status status = op_session_path(s, o->file, &path, e);
    pile p = {.o = o, .chat = op_session_chat(s), .path = path};
    if (!status)
        status = op_json_lines(path, read_trial, &p, e);
    if (!status && !p.n)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: no trial%s", path, o->answers ? " of these answers" : "");
    if (!status)
        status = learn_some(s, stage, &p, e);
    for (size_t i = 0; i < p.n; i++)
        op_trial_release(&p.at[i]);
    op_free(p.at);
    op_free(path);
    return status;
}

const op_method op_method_stored = {.name = "stored", .help = "learns from trials of a file, with the feedback that they have; nothing is sampled", .table = table,
                                    .settings_size = sizeof(settings), .asks_nothing = true, .round = learn_round};
