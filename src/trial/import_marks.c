/* Feedback on parts of responses: fine-grained feedback, PRM800K, Label Studio. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/import_parts.h"
#include "trial/trial_parts.h"

static op_status no_memory(const op_importer *m)
{
    return op_import_fail(m, OP_ERR_NOMEM, "out of memory");
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* ---- fine-grained feedback (Wu et al.: 2306.01693) ---- */

/* Title and sentences of the passages, then the question. */
static op_status write_question(const op_importer *m, op_buf *out)
{
    json_t *passages = NULL, *passage, *sentence;
    const char *question = NULL;
    size_t i, k;
    op_status s = op_json_get_string(m->line, "question", true, &question, m->name, m->e);
    s = s ? s : op_json_get_array(m->line, "passages", true, &passages, m->name, m->e);
    json_array_foreach(passages, i, passage) {
        if (s || (m->o->passages >= 0 && i >= (size_t)m->o->passages))
            break;
        const char *title = json_string_value(json_array_get(passage, 0));
        size_t n = title ? strlen(title) : 0;
        json_array_foreach(passage, k, sentence) {
            const char *words = json_string_value(sentence);
            if (!words)
                return op_import_fail(m, OP_ERR_FORMAT, "a passage is not a list of strings");
            if (k && n && !strncmp(words, title, n) && !strncmp(words + n, "\n\n", 2))
                words += n + 2; /* a first sentence has the title once more */
            if (op_buf_puts(out, k > 1 ? " " : k ? "\n" : "") || op_buf_puts(out, words))
                return no_memory(m);
        }
        if (op_buf_puts(out, "\n\n"))
            return no_memory(m);
    }
    return s ? s : op_buf_puts(out, question) ? no_memory(m) : OP_OK;
}

static op_status mark_errors(const op_importer *m, json_t *feedback, const json_t *response)
{
    json_t *errors = NULL, *x;
    size_t i;
    op_status s = op_json_get_array(feedback, "errors", true, &errors, m->name, m->e);
    json_array_foreach(errors, i, x) {
        int64_t from = 0, to = 0;
        const char *kind = NULL;
        s = s ? s : op_json_get_int(x, "start", true, INT32_MIN, INT32_MAX, &from, m->name, m->e);
        s = s ? s : op_json_get_int(x, "end", true, INT32_MIN, INT32_MAX, &to, m->name, m->e);
        s = s ? s : op_json_get_string(x, "error type", true, &kind, m->name, m->e);
        s = s ? s : op_import_mark(m, &m->trials[0], response, from, to, -1, NULL, kind);
    }
    return s;
}

/* "preference": of the pairs (1,2), (1,3), ... (3,4) of predictions, which is better: 1 the first, 2 the second, 0 neither. */
static op_status prefer_predictions(const op_importer *m, size_t n)
{
    const json_t *list = json_object_get(m->line, "preference");
    size_t pair = 0;
    op_status s = OP_OK;
    if (list && json_array_size(list) != n * (n - 1) / 2)
        return op_error_set(m->e, OP_ERR_FORMAT, "%s: key \"preference\": %zu entries for %zu predictions", m->name, json_array_size(list), n);
    for (size_t a = 0; !s && list && a < n; a++)
        for (size_t b = a + 1; !s && b < n; b++) {
            json_int_t better = json_integer_value(json_array_get(list, pair++));
            s = better == 1 ? op_import_prefer(m, a, b) : better == 2 ? op_import_prefer(m, b, a) : OP_OK;
        }
    return s;
}

op_status op_import_fine_grained(op_importer *m)
{
    op_buf question;
    json_t *feedback = NULL, *first = json_object_get(m->line, "prediction 1");
    op_buf_init(&question, OP_TRIAL_TEXT_MAX);
    op_status s = write_question(m, &question);
    json_t *messages = NULL, *words = s ? NULL : json_stringn(question.data ? question.data : "", question.len);
    s = s ? s : words ? op_import_question(m, words, &messages) : no_memory(m);
    json_decref(words);
    op_buf_release(&question);
    s = s ? s : op_json_get_object(m->line, "feedback", true, &feedback, m->name, m->e);
    size_t n = 0;
    for (char key[16], name[4]; !s && n < 4; n++) {
        snprintf(name, sizeof name, "%zu", n + 1);
        snprintf(key, sizeof key, "prediction %s", name);
        json_t *prediction = json_object_get(m->line, key);
        if (!prediction)
            break;
        s = json_is_string(prediction) ? op_import_add(m, messages, NULL, prediction, name) : op_import_fail(m, OP_ERR_FORMAT, "a prediction is not a string");
        s = s ? s : op_import_by(m, &m->trials[n], "people");
    }
    s = s ? s : mark_errors(m, feedback, first);
    s = s ? s : prefer_predictions(m, n);
    const json_t *corrected = json_object_get(feedback, "corrected-prediction");
    if (!s && json_string_length(corrected) && !json_equal(corrected, first)) {
        s = op_import_add(m, messages, NULL, corrected, "corrected");
        s = s ? s : op_import_by(m, &m->trials[n], "people");
        s = s ? s : op_import_prefer(m, n, 0);
        if (!s)
            op_import_redo(m, n, 0);
    }
    json_decref(messages);
    return s;
}

/* ---- PRM800K (Lightman et al.: 2305.20050) ---- */

/* "2022-07-17T16:56:51.323252" as ms since 1970; 0: not a time. */
static int64_t read_time(const char *s)
{
    struct tm t = {0};
    const char *rest = s ? strptime(s, "%Y-%m-%dT%H:%M:%S", &t) : NULL;
    return rest ? (int64_t)timegm(&t) * 1000 + (*rest == '.' ? (int64_t)(strtod(rest, NULL) * 1000) : 0) : 0;
}

/* `before` and one more step: a new trial, with the rating as a mark on that step (NULL: none). */
static op_status add_step(op_importer *m, json_t *messages, const op_buf *before, const char *step, const json_t *rating, const char *name)
{
    op_buf whole;
    op_buf_init(&whole, OP_TRIAL_TEXT_MAX);
    json_t *response = NULL;
    op_status s = op_buf_add(&whole, before->data ? before->data : "", before->len) || op_buf_puts(&whole, step) ? no_memory(m) : OP_OK;
    if (!s && !(response = json_stringn(whole.data ? whole.data : "", whole.len)))
        s = no_memory(m);
    int32_t from = before->len ? op_code_points(before->data, before->len) : 0;
    s = s ? s : op_import_add(m, messages, NULL, response, name);
    if (!s && json_is_number(rating) && *step)
        s = op_import_mark(m, &m->trials[m->n - 1], response, from, from + op_code_points(step, strlen(step)), json_number_value(rating), NULL, NULL);
    json_decref(response);
    op_buf_release(&whole);
    return s;
}

/* The completion that the labeler went on from, or the one that stands for a step where none was good; -1: a person wrote it. */
static int64_t chosen_of(const json_t *step)
{
    const json_t *chosen = json_object_get(step, "chosen_completion");
    if (json_is_integer(chosen))
        return json_integer_value(chosen);
    return text_of(json_object_get(step, "human_completion"), "text") ? -1 : 0;
}

/* Trial 0 is all chosen steps; their ratings are marked once it is whole. */
static op_status mark_chosen(op_importer *m, const json_t *steps, const json_t *response)
{
    int64_t at = 0;
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < json_array_size(steps); i++) {
        const json_t *step = json_array_get(steps, i);
        int64_t c = chosen_of(step);
        const json_t *x = c < 0 ? json_object_get(step, "human_completion") : json_array_get(json_object_get(step, "completions"), (size_t)c);
        const char *text = text_of(x, "text");
        int32_t n = op_code_points(text, strlen(text));
        const json_t *rating = json_object_get(x, "rating");
        if (n && json_is_number(rating))
            s = op_import_mark(m, &m->trials[0], response, at, at + n, json_number_value(rating), NULL, NULL);
        at += n + 1;
    }
    return s;
}

static op_status prm800k_steps(op_importer *m, json_t *messages, const json_t *steps)
{
    op_buf before;
    op_buf_init(&before, OP_TRIAL_TEXT_MAX);
    json_t *whole = NULL;
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < json_array_size(steps); i++) {
        const json_t *step = json_array_get(steps, i), *all = json_object_get(step, "completions");
        int64_t chosen = chosen_of(step);
        const char *text = chosen < 0 ? text_of(json_object_get(step, "human_completion"), "text") : text_of(json_array_get(all, (size_t)chosen), "text");
        if (!text)
            s = op_error_set(m->e, OP_ERR_FORMAT, "%s: step %zu has no chosen completion", m->name, i);
        else if ((i && op_buf_puts(&before, "\n")) || op_buf_puts(&before, text))
            s = no_memory(m);
    }
    if (!s && !(whole = json_stringn(before.data ? before.data : "", before.len)))
        s = no_memory(m);
    s = s ? s : op_import_add(m, messages, NULL, whole, "chosen");
    s = s ? s : mark_chosen(m, steps, whole);
    op_buf_clear(&before);
    for (size_t i = 0; !s && i < json_array_size(steps); i++) {
        const json_t *step = json_array_get(steps, i), *all = json_object_get(step, "completions"), *x;
        int64_t chosen = chosen_of(step);
        if (i && op_buf_puts(&before, "\n"))
            s = no_memory(m);
        for (size_t k = 0; !s && (x = json_array_get(all, k)); k++) {
            char name[64];
            snprintf(name, sizeof name, "step %zu completion %zu", i + 1, k + 1);
            const char *text = text_of(x, "text");
            if ((int64_t)k == chosen)
                continue;
            s = text ? add_step(m, messages, &before, text, json_object_get(x, "rating"), name) : op_import_fail(m, OP_ERR_FORMAT, "a completion has no 'text'");
            if (!s)
                op_import_redo(m, m->n - 1, 0);
        }
        const char *text = chosen < 0 ? text_of(json_object_get(step, "human_completion"), "text") : text_of(json_array_get(all, (size_t)chosen), "text");
        if (!s && op_buf_puts(&before, text))
            s = no_memory(m);
    }
    json_decref(whole);
    op_buf_release(&before);
    return s;
}

op_status op_import_prm800k(op_importer *m)
{
    json_t *question = NULL, *label = NULL, *steps = NULL;
    const char *who = NULL, *when = NULL, *answer = NULL, *finish = NULL;
    op_status s = op_json_get_object(m->line, "question", true, &question, m->name, m->e);
    s = s ? s : op_json_get_object(m->line, "label", true, &label, m->name, m->e);
    s = s ? s : op_json_get_array(label, "steps", true, &steps, m->name, m->e);
    s = s ? s : op_json_get_string(question, "ground_truth_answer", false, &answer, m->name, m->e);
    s = s ? s : op_json_get_string(label, "finish_reason", false, &finish, m->name, m->e);
    s = s ? s : op_json_get_string(m->line, "labeler", false, &who, m->name, m->e);
    s = s ? s : op_json_get_string(m->line, "timestamp", false, &when, m->name, m->e);
    json_t *messages = NULL;
    s = s ? s : op_import_question(m, json_object_get(question, "problem"), &messages);
    s = s ? s : prm800k_steps(m, messages, steps);
    for (size_t i = 0; !s && i < m->n; i++) {
        op_trial *t = &m->trials[i];
        t->time = read_time(when);
        s = op_import_by(m, t, who ? who : "people");
        if (!s && answer)
            s = op_import_tag(m, t, "reference", json_string(answer));
        if (!s && finish)
            s = op_import_tag(m, t, "finish", json_string(finish));
    }
    json_decref(messages);
    return s;
}

/* ---- Label Studio ---- */

/* Whether a label is known, and its value. */
static bool label_value(const char *label, double *out)
{
    static const struct {
        const char *name;
        double value;
    } names[] = {{"good", 1}, {"correct", 1}, {"positive", 1}, {"right", 1}, {"bad", -1}, {"wrong", -1}, {"error", -1}, {"incorrect", -1}, {"negative", -1}, {"neutral", 0}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(names[i].name, label)) {
            *out = names[i].value;
            return true;
        }
    char *end;
    *out = strtod(label, &end);
    return end != label && !*end && *out >= -1 && *out <= 1;
}

/* Place `units` of the text in code points, where places count UTF-16 units, as a browser does. */
static int64_t from_utf16(const char *text, int64_t units)
{
    int64_t points = 0;
    for (const char *p = text; *p && units > 0; p++)
        if (((unsigned char)*p & 0xc0) != 0x80) {
            units -= (unsigned char)*p >= 0xf0 ? 2 : 1;
            points++;
        }
    return points;
}

/* Do code points from .. to-1 of `text` read `words`? */
static bool reads(const char *text, int64_t from, int64_t to, const char *words)
{
    size_t n = strlen(words);
    int64_t left = from;
    for (; *text && left > 0; text++)
        left -= ((unsigned char)text[1] & 0xc0) != 0x80;
    return left == 0 && op_code_points(words, n) == to - from && !strncmp(text, words, n);
}

static op_status label_span(const op_importer *m, const json_t *value, const json_t *response, const char *by)
{
    int64_t from = 0, to = 0;
    const char *words = NULL, *text = json_string_value(response);
    json_t *labels = NULL, *label;
    size_t i;
    op_status s = op_json_get_int(value, "start", true, INT32_MIN, INT32_MAX, &from, m->name, m->e);
    s = s ? s : op_json_get_int(value, "end", true, INT32_MIN, INT32_MAX, &to, m->name, m->e);
    s = s ? s : op_json_get_string(value, "text", false, &words, m->name, m->e);
    s = s ? s : op_json_get_array(value, "labels", true, &labels, m->name, m->e);
    if (!s && words && !reads(text, from, to, words)) {
        from = from_utf16(text, from);
        to = from_utf16(text, to);
        if (!reads(text, from, to, words))
            s = op_error_set(m->e, OP_ERR_FORMAT, "%s: a label's span does not read \"%.60s\", as it says", m->name, words);
    }
    json_array_foreach(labels, i, label) {
        double v = 0;
        const char *name = json_string_value(label);
        if (!s && (!name || !label_value(name, &v)))
            s = op_error_set(m->e, OP_ERR_FORMAT, "%s: label \"%.60s\" has no known value: good, bad, neutral, ... or a number from -1 to 1", m->name, name ? name : "?");
        s = s ? s : op_import_mark(m, &m->trials[0], response, from, to, v, by, name);
    }
    return s;
}

static op_status label_annotation(const op_importer *m, const json_t *annotation, const json_t *response)
{
    json_t *results = NULL, *x, *value = NULL;
    const json_t *who = json_object_get(annotation, "completed_by");
    const char *email = text_of(who, "email");
    char by[128] = "people";
    size_t i;
    if (json_is_true(json_object_get(annotation, "was_cancelled")))
        return OP_OK;
    if (json_is_integer(who))
        snprintf(by, sizeof by, "annotator %lld", (long long)json_integer_value(who));
    else if (email)
        snprintf(by, sizeof by, "%s", email);
    op_status s = op_json_get_array(annotation, "result", true, &results, m->name, m->e);
    json_array_foreach(results, i, x) {
        const char *type = text_of(x, "type");
        if (!s && (!type || strcmp(type, "labels") != 0))
            s = op_error_set(m->e, OP_ERR_UNSUPPORTED, "%s: a result of type \"%.40s\", expected labels", m->name, type ? type : "?");
        s = s ? s : op_json_get_object(x, "value", true, &value, m->name, m->e);
        s = s ? s : label_span(m, value, response, by);
    }
    return s;
}

op_status op_import_label_studio(op_importer *m)
{
    json_t *data = NULL, *annotations = NULL, *x;
    size_t i;
    op_status s = op_json_get_object(m->line, "data", true, &data, m->name, m->e);
    s = s ? s : op_json_get_array(m->line, "annotations", true, &annotations, m->name, m->e);
    json_t *response = json_object_get(data, "response"), *prompt = json_object_get(data, "prompt"), *messages = json_object_get(data, "messages");
    if (!s && (!json_is_string(response) || !messages == !prompt || (messages && !json_is_array(messages)) || (prompt && !json_is_string(prompt))))
        s = op_import_fail(m, OP_ERR_FORMAT, "'data' needs a string 'response', and a string 'prompt' or a list 'messages'");
    s = s ? s : op_import_add(m, messages, prompt, response, NULL);
    json_array_foreach(annotations, i, x)
        s = s ? s : label_annotation(m, x, response);
    return s;
}
