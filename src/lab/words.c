/* What words alone give away: a bag-of-words classifier taught by the training data, tried on the prompts. */
#include <string.h>

#include <operant/jsonl.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/json.h"
#include "lab/bow.h"
#include "lab/parts.h"
#include "lab/stats.h"

enum { SHUFFLES = 10, TEXT_MAX = 1 << 20 };

typedef struct lessons {
    char **text; /* [n] owned */
    int *verdict; /* [n] */
    size_t n, cap;
    const op_lab *lab;
} lessons;

/* All that the user says, one turn after the other. */
static op_status user_text(const json_t *messages, char **out, op_error *e)
{
    op_buf text;
    op_buf_init(&text, TEXT_MAX);
    size_t i;
    json_t *message;
    op_status status = op_buf_puts(&text, "");
    json_array_foreach((json_t *)messages, i, message) {
        const char *role = json_string_value(json_object_get(message, "role")), *content = json_string_value(json_object_get(message, "content"));
        if (!status && role && content && !strcmp(role, "user"))
            status = op_buf_printf(&text, "%s\n", content);
    }
    *out = status ? NULL : op_buf_take(&text);
    op_buf_release(&text);
    return *out ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the bag of words");
}

static op_status add_lesson(void *ctx, json_t *object, int line, op_error *e)
{
    lessons *s = ctx;
    const char *class = NULL, *path = s->lab->o->train_file;
    json_t *messages = NULL;
    char name[300];
    snprintf(name, sizeof name, "%.250s: line %d", path, line);
    op_status status = op_json_get_string(object, "class", false, &class, name, e);
    if (!status && !class)
        return OP_OK; /* not part of the lesson */
    if (!status)
        status = op_json_get_array(object, "messages", true, &messages, name, e);
    if (status)
        return status;
    op_reply right = op_class_right(class, s->lab->o->scope);
    if (right == OP_REPLY_COUNT)
        return op_error_set(e, OP_ERR_FORMAT, "%s: unknown class \"%.40s\"", name, class);
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 1024;
        char **text = op_realloc(s->text, cap * sizeof *text);
        s->text = text ? text : s->text;
        int *verdict = op_realloc(s->verdict, cap * sizeof *verdict);
        s->verdict = verdict ? verdict : s->verdict;
        if (!text || !verdict)
            return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
        s->cap = cap;
    }
    s->verdict[s->n] = (int)right;
    status = user_text(messages, &s->text[s->n], e);
    s->n += !status;
    return status;
}

/* Teaches `bow` with the verdict of text i taken from place order[i]. */
static void teach(op_bow *bow, const lessons *s, const uint32_t *order)
{
    op_bow_clear(bow);
    for (size_t i = 0; i < s->n; i++)
        op_bow_learn(bow, s->text[i], s->verdict[order ? order[i] : i]);
}

typedef struct score {
    int64_t correct, n;
    double balanced;
} score;

/* `classes`, if not NULL, receives {name, correct} for each class. */
static score try(const op_bow *bow, const op_lab *l, char **texts, json_t *classes, bool *ok)
{
    score s = {0};
    double n_classes = 0;
    const char *name;
    for (size_t k = 0; (name = op_class_name(k)); k++) {
        int64_t n = 0, correct = 0;
        for (size_t i = 0; i < l->cases.n; i++)
            if (!strcmp(l->cases.at[i].class, name)) {
                n++;
                correct += op_bow_classify(bow, texts[i]) == (int)l->cases.at[i].right;
            }
        if (!n)
            continue;
        s.n += n;
        s.correct += correct;
        s.balanced += (double)correct / (double)n;
        n_classes++;
        if (classes && json_array_append_new(classes, json_pack("{ss sI sf}", "name", name, "n", (json_int_t)n, "correct", (double)correct / (double)n)))
            *ok = false;
    }
    s.balanced /= n_classes;
    return s;
}

static json_t *rate(const score *s)
{
    op_rate r = op_rate_of(s->correct, s->n);
    return json_pack("{sI sI sf sf sf}", "k", (json_int_t)r.k, "n", (json_int_t)r.n, "rate", r.rate, "low", r.low, "high", r.high);
}

static op_status measure(op_lab *l, const lessons *s, char **texts, json_t **out, op_error *e)
{
    op_bow *bow = NULL;
    op_status status = op_bow_new(&bow, e);
    uint32_t *order = op_alloc_array(s->n, sizeof *order);
    json_t *classes = json_array();
    bool ok = order && classes && !status;
    if (ok) {
        teach(bow, s, NULL);
        score real = try(bow, l, texts, classes, &ok), control = {0};
        for (uint64_t k = 0; k < SHUFFLES; k++) {
            op_rng_permute((uint64_t)l->o->seed + k, OP_STREAM_SHUFFLE, (uint32_t)s->n, order);
            teach(bow, s, order);
            score once = try(bow, l, texts, NULL, &ok);
            control.correct += once.correct;
            control.n += once.n;
            control.balanced += once.balanced / SHUFFLES;
        }
        *out = json_pack("{sI so sf sO s{si sf sf}}", "texts", (json_int_t)s->n, "accuracy", rate(&real), "balanced", real.balanced, "classes", classes,
                         "shuffled", "shuffles", SHUFFLES, "accuracy", (double)control.correct / (double)control.n, "balanced", control.balanced);
        ok = ok && *out;
    }
    json_decref(classes);
    op_free(order);
    op_bow_free(bow);
    if (ok)
        return OP_OK;
    json_decref(*out);
    *out = NULL;
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the bag of words");
}

op_status op_lab_words(op_lab *l, json_t **out, op_error *e)
{
    *out = NULL;
    lessons s = {.lab = l};
    op_status status = op_json_lines(l->o->train_file, add_lesson, &s, e);
    if (!status && !s.n)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: no line has a \"class\"", l->o->train_file);
    char **texts = op_alloc_zero(l->cases.n, sizeof *texts);
    if (!status && !texts)
        status = op_error_set(e, OP_ERR_NOMEM, "out of memory for the bag of words");
    for (size_t i = 0; !status && i < l->cases.n; i++)
        status = user_text(l->cases.at[i].messages, &texts[i], e);
    if (!status)
        status = measure(l, &s, texts, out, e);
    for (size_t i = 0; texts && i < l->cases.n; i++)
        op_free(texts[i]);
    op_free(texts);
    for (size_t i = 0; i < s.n; i++)
        op_free(s.text[i]);
    op_free(s.text);
    op_free(s.verdict);
    return status;
}
