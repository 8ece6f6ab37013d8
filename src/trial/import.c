/* Lines of feedback: their form, told by their keys, and what the forms share. */
#include <operant/import.h>

#include <string.h>

#include <operant/config.h>

#include "base/mem.h"
#include "trial/import_parts.h"
#include "trial/trial_parts.h"

#define COMMON "id", "tags", "topic", "class", "kind"
#define KEYS(...) (const char *const[]){__VA_ARGS__, NULL}

typedef struct form {
    const char *name;
    const char *const *keys; /* the first `required` must be there, then those that may; NULL: checked elsewhere */
    int required;
    op_import_form build; /* NULL: the own form */
} form;

static const form forms[] = {
    {"fine-grained", KEYS("question", "passages", "prediction 1", "feedback", "prediction 2", "prediction 3", "prediction 4", "gold", "preference", COMMON), 4, op_import_fine_grained},
    {"prm800k", KEYS("question", "label", "labeler", "timestamp", "generation", "is_quality_control_question", "is_initial_screening_question", COMMON), 2, op_import_prm800k},
    {"label-studio", KEYS("data", "annotations", "predictions", "drafts", "file_upload", "created_at", "updated_at", "meta", "inner_id", "total_annotations",
                          "cancelled_annotations", "total_predictions", "comment_count", "unresolved_comment_count", "last_comment_updated_at", "project",
                          "updated_by", "comment_authors", "allow_skip", "precomputed_agreement", COMMON), 2, op_import_label_studio},
    {"preference", KEYS("chosen", "rejected", "prompt", COMMON), 2, op_import_preference},
    {"stepwise", KEYS("prompt", "completions", "labels", COMMON), 3, op_import_stepwise},
    {"unpaired", KEYS("prompt", "completion", "label", COMMON), 3, op_import_unpaired},
    {"evals", KEYS("question", "answer_matching_behavior", "answer_not_matching_behavior", COMMON), 3, op_import_evals},
    {"own", KEYS("response"), 1, NULL},
    {"own", KEYS("tokens"), 1, NULL},
    {NULL, NULL, 0, NULL}};

static const form *detect(const json_t *line)
{
    for (const form *f = forms; f->name; f++) {
        int found = 0;
        while (found < f->required && json_object_get(line, f->keys[found]))
            found++;
        if (found == f->required)
            return f;
    }
    return NULL;
}

static op_status check_keys(const op_importer *m, const form *f)
{
    const char *key;
    json_t *value;
    json_object_foreach(m->line, key, value) {
        int i = 0;
        while (f->keys[i] && strcmp(f->keys[i], key) != 0)
            i++;
        const char *near = f->keys[i] ? NULL : op_config_nearest(key, f->keys);
        if (!f->keys[i])
            return op_error_set(m->e, OP_ERR_FORMAT, "%s: unknown key '%.64s' in the form %s%s%s%s", m->name, key, f->name, near ? ", did you mean '" : "",
                                near ? near : "", near ? "'?" : "");
    }
    return OP_OK;
}

/* Tags that a line of any form may carry. */
static op_status carry(const op_importer *m)
{
    json_t *tags = json_object_get(m->line, "tags");
    static const char *const names[] = {"topic", "class", "kind"};
    for (size_t i = 0; i < m->n; i++) {
        if (json_is_object(tags) && json_object_update(m->trials[i].tags, tags))
            return op_import_fail(m, OP_ERR_NOMEM, "out of memory");
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            json_t *v = json_object_get(m->line, names[k]);
            if (json_is_string(v) && json_object_set(m->trials[i].tags, names[k], v))
                return op_import_fail(m, OP_ERR_NOMEM, "out of memory");
        }
    }
    return OP_OK;
}

op_status op_import_line(op_trial **out, size_t *n, const char **form_name, const json_t *line, const op_chat *chat, const op_import_options *o, const char *name,
                         const char *group, op_error *e)
{
    static const op_import_options defaults = {.passages = -1};
    op_importer m = {.line = (json_t *)(uintptr_t)line, .chat = chat, .o = o ? o : &defaults, .name = name, .group = group, .e = e};
    const form *f = detect(line);
    *out = NULL;
    *n = 0;
    *form_name = f ? f->name : NULL;
    if (!f) {
        const char *first = json_object_iter_key(json_object_iter(m.line));
        return op_error_set(e, OP_ERR_FORMAT, "%s: no known form of feedback: the first key is '%.64s'", name, first ? first : "none");
    }
    op_status s = OP_OK;
    if (f->build) {
        s = check_keys(&m, f);
        s = s ? s : f->build(&m);
        s = s ? s : carry(&m);
        for (size_t i = 0; !s && i < m.n; i++)
            if ((s = op_trial_check(&m.trials[i], op_tokenizer_vocab_size(chat->tokenizer), e)))
                op_error_prefix(e, "%s", name);
    } else {
        m.trials = op_alloc_zero(1, sizeof *m.trials);
        s = m.trials ? op_trial_from_json(m.trials, line, chat->tokenizer, chat, name, e) : op_import_fail(&m, OP_ERR_NOMEM, "out of memory");
        m.n = !s;
    }
    if (s)
        op_import_release(m.trials, m.n);
    else {
        *out = m.trials;
        *n = m.n;
    }
    return s;
}

void op_import_release(op_trial *trials, size_t n)
{
    for (size_t i = 0; i < n; i++)
        op_trial_release(&trials[i]);
    op_free(trials);
}

/* ---- what forms share ---- */

op_status op_import_fail(const op_importer *m, op_status s, const char *what)
{
    return op_error_set(m->e, s, "%s: %s", m->name, what);
}

static op_status located(const op_importer *m, op_status s)
{
    return s ? op_error_prefix(m->e, "%s", m->name), s : s;
}

op_status op_import_tag(const op_importer *m, op_trial *t, const char *key, json_t *value)
{
    return json_object_set_new(t->tags, key, value) ? op_import_fail(m, OP_ERR_NOMEM, "out of memory") : OP_OK;
}

op_status op_import_by(const op_importer *m, op_trial *t, const char *by)
{
    t->by = op_strdup(by);
    return t->by ? OP_OK : op_import_fail(m, OP_ERR_NOMEM, "out of memory");
}

op_status op_import_add(op_importer *m, json_t *messages, const json_t *prompt, const json_t *response, const char *answer)
{
    if (m->n == m->cap) {
        size_t cap = m->cap ? 2 * m->cap : 4;
        op_trial *more = op_realloc(m->trials, cap * sizeof *more);
        if (!more)
            return op_import_fail(m, OP_ERR_NOMEM, "out of memory");
        m->trials = more;
        m->cap = cap;
    }
    op_trial *t = &m->trials[m->n++];
    op_trial_init(t);
    if (!t->tags || (messages && !(t->messages = json_deep_copy(messages))))
        return op_import_fail(m, OP_ERR_NOMEM, "out of memory");
    op_status s = located(m, op_trial_encode(t, messages, prompt, response, true, m->chat, m->e));
    if (!s && answer)
        s = op_import_tag(m, t, "group", json_string(m->group));
    if (!s && answer)
        s = op_import_tag(m, t, "answer", json_string(answer));
    return s;
}

static op_status append(const op_importer *m, op_trial *t, const char *key, const op_trial *other)
{
    const char *now = json_string_value(json_object_get(t->tags, key)), *name = json_string_value(json_object_get(other->tags, "answer"));
    return op_import_tag(m, t, key, now ? json_sprintf("%s,%s", now, name) : json_string(name));
}

op_status op_import_prefer(const op_importer *m, size_t a, size_t b)
{
    op_status s = append(m, &m->trials[a], "better_than", &m->trials[b]);
    return s ? s : append(m, &m->trials[b], "worse_than", &m->trials[a]);
}

op_status op_import_mark(const op_importer *m, op_trial *t, const json_t *text, int64_t from, int64_t to, double value, const char *by, const char *note)
{
    return located(m, op_trial_mark_text(t, m->chat->tokenizer, text, from, to, value, by, note, m->e));
}

void op_import_redo(op_importer *m, size_t later, size_t first)
{
    op_trial *a = &m->trials[later], *b = &m->trials[first];
    a->redo_of = -(int64_t)first - 1;
    while (a->redo_at < a->n_response && a->redo_at < b->n_response && a->response[a->redo_at] == b->response[a->redo_at])
        a->redo_at++;
}

op_status op_import_question(const op_importer *m, json_t *text, json_t **out)
{
    *out = json_is_string(text) ? json_pack("[{s:s,s:O}]", "role", "user", "content", text) : NULL;
    return *out ? OP_OK : json_is_string(text) ? op_import_fail(m, OP_ERR_NOMEM, "out of memory") : op_import_fail(m, OP_ERR_FORMAT, "the question is not a string");
}

/* Does the list "a,b,c" hold `name`? */
static bool lists(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (!strncmp(p, name, n) && (!p[n] || p[n] == ','))
            return true;
    return false;
}

bool op_import_better(const op_trial *a, const op_trial *b)
{
    const char *group = json_string_value(json_object_get(a->tags, "group")), *other = json_string_value(json_object_get(b->tags, "group"));
    const char *list = json_string_value(json_object_get(a->tags, "better_than")), *name = json_string_value(json_object_get(b->tags, "answer"));
    return group && other && list && name && !strcmp(group, other) && lists(list, name);
}
