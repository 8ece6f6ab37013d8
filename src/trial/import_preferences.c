/* Feedback on whole responses: preferences, labels, steps, and answers to questions about behaviour. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/import_parts.h"
#include "trial/trial_parts.h"

#define HUMAN "\n\nHuman:"
#define ASSISTANT "\n\nAssistant:"

static op_status no_memory(const op_importer *m)
{
    return op_import_fail(m, OP_ERR_NOMEM, "out of memory");
}

static op_status judged(const op_importer *m, op_trial *t, bool good)
{
    t->has_reward = true;
    t->reward = good ? 1 : -1;
    return op_import_by(m, t, "people");
}

/* Cuts a "\n\nHuman: ...\n\nAssistant: ..." dialogue into the messages before the last reply, and that reply. */
static op_status cut_dialogue(const op_importer *m, const char *text, json_t **messages, json_t **reply)
{
    *messages = json_array();
    *reply = NULL;
    op_status s = *messages ? OP_OK : no_memory(m);
    bool assistant = false;
    while (!s && *text) {
        assistant = !strncmp(text, ASSISTANT, strlen(ASSISTANT));
        text += strlen(assistant ? ASSISTANT : HUMAN);
        text += *text == ' ';
        const char *a = strstr(text, HUMAN), *b = strstr(text, ASSISTANT), *end = a && (!b || a < b) ? a : b ? b : text + strlen(text);
        json_t *words = json_stringn(text, (size_t)(end - text));
        if (!*end && assistant)
            *reply = words;
        else if (!words || json_array_append_new(*messages, json_pack("{s:s,s:o}", "role", assistant ? "assistant" : "user", "content", words)))
            s = no_memory(m);
        text = end;
    }
    if (!s && !*reply)
        s = assistant ? no_memory(m) : op_import_fail(m, OP_ERR_FORMAT, "a dialogue that does not end with the assistant");
    return s;
}

static op_status add_dialogue(op_importer *m, const char *text, const char *answer)
{
    json_t *messages, *reply;
    op_status s = cut_dialogue(m, text, &messages, &reply);
    s = s ? s : op_import_add(m, messages, NULL, reply, answer);
    json_decref(messages);
    json_decref(reply);
    return s;
}

/* `answer` as messages: all but the last go behind the prompt's, the last is what the assistant said. */
static op_status add_messages(op_importer *m, json_t *prompt, json_t *answer, const char *name)
{
    size_t n = json_array_size(answer);
    const json_t *last = json_array_get(answer, n - 1), *role = json_object_get(last, "role"), *content = json_object_get(last, "content");
    if (!n || !json_is_string(role) || strcmp(json_string_value(role), "assistant") != 0 || !json_is_string(content))
        return op_import_fail(m, OP_ERR_FORMAT, "an answer given as messages must end with the assistant's, whose 'content' is a string");
    json_t *before = json_array();
    op_status s = before && (!prompt || !json_array_extend(before, prompt)) && !json_array_extend(before, answer) ? OP_OK : no_memory(m);
    if (!s)
        json_array_remove(before, json_array_size(before) - 1);
    if (!s && !json_array_size(before))
        s = op_import_fail(m, OP_ERR_FORMAT, "there is no message before the answer");
    s = s ? s : op_import_add(m, before, NULL, content, name);
    json_decref(before);
    return s;
}

static op_status add_answer(op_importer *m, json_t *prompt, json_t *answer, const char *name)
{
    if (json_is_array(answer) && (!prompt || json_is_array(prompt)))
        return add_messages(m, prompt, answer, name);
    if (json_is_string(answer) && json_is_string(prompt))
        return op_import_add(m, NULL, prompt, answer, name);
    if (json_is_string(answer) && !prompt && !strncmp(json_string_value(answer), HUMAN, strlen(HUMAN)))
        return add_dialogue(m, json_string_value(answer), name);
    return op_import_fail(m, OP_ERR_FORMAT, prompt ? "prompt and answer are neither two strings nor two lists of messages"
                                                   : "without a prompt, an answer is a list of messages or a dialogue that begins with \"\\n\\nHuman:\"");
}

op_status op_import_preference(op_importer *m)
{
    json_t *prompt = json_object_get(m->line, "prompt");
    op_status s = add_answer(m, prompt, json_object_get(m->line, "chosen"), "chosen");
    s = s ? s : add_answer(m, prompt, json_object_get(m->line, "rejected"), "rejected");
    s = s ? s : judged(m, &m->trials[0], true);
    s = s ? s : judged(m, &m->trials[1], false);
    return s ? s : op_import_prefer(m, 0, 1);
}

op_status op_import_unpaired(op_importer *m)
{
    bool label = false;
    op_status s = op_json_get_bool(m->line, "label", true, &label, m->name, m->e);
    s = s ? s : add_answer(m, json_object_get(m->line, "prompt"), json_object_get(m->line, "completion"), NULL);
    return s ? s : judged(m, &m->trials[0], label);
}

/* The steps stand one a line, which is TRL's own default. */
op_status op_import_stepwise(op_importer *m)
{
    json_t *steps = NULL, *labels = NULL, *step, *label;
    op_buf whole;
    size_t i;
    op_status s = op_json_get_array(m->line, "completions", true, &steps, m->name, m->e);
    s = s ? s : op_json_get_array(m->line, "labels", true, &labels, m->name, m->e);
    if (!s && (json_array_size(steps) != json_array_size(labels) || !json_array_size(steps)))
        s = op_error_set(m->e, OP_ERR_FORMAT, "%s: %zu completions and %zu labels", m->name, json_array_size(steps), json_array_size(labels));
    op_buf_init(&whole, OP_TRIAL_TEXT_MAX);
    for (i = 0; !s && (step = json_array_get(steps, i)); i++) {
        label = json_array_get(labels, i);
        if (!json_is_string(step) || !json_is_boolean(label))
            s = op_error_set(m->e, OP_ERR_FORMAT, "%s: step %zu is %s with label %s, expected a string and true or false", m->name, i, op_json_kind(step), op_json_kind(label));
        else if ((i && op_buf_puts(&whole, "\n")) || op_buf_add(&whole, json_string_value(step), json_string_length(step)))
            s = no_memory(m);
    }
    json_t *response = s ? NULL : json_stringn(whole.data, whole.len);
    s = s ? s : response ? add_answer(m, json_object_get(m->line, "prompt"), response, NULL) : no_memory(m);
    int64_t at = 0;
    for (i = 0; !s && (step = json_array_get(steps, i)); i++) {
        int32_t n = op_code_points(json_string_value(step), json_string_length(step));
        s = n ? op_import_mark(m, &m->trials[0], response, at, at + n, json_is_true(json_array_get(labels, i)) ? 1 : -1, NULL, NULL) : OP_OK;
        at += n + 1;
    }
    json_decref(response);
    op_buf_release(&whole);
    return s ? s : op_import_by(m, &m->trials[0], "people");
}

/* One answer, or a list of them. */
static op_status add_answers(op_importer *m, json_t *messages, const char *key, const char *name)
{
    json_t *answers = json_object_get(m->line, key);
    size_t n = json_is_array(answers) ? json_array_size(answers) : 1;
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++) {
        json_t *answer = json_is_array(answers) ? json_array_get(answers, i) : answers;
        char label[64];
        snprintf(label, sizeof label, n > 1 ? "%s %zu" : "%s", name, i + 1);
        s = json_is_string(answer) ? op_import_add(m, messages, NULL, answer, label)
                                   : op_error_set(m->e, OP_ERR_FORMAT, "%s: key \"%s\": found %s, expected a string", m->name, key, op_json_kind(answer));
    }
    return s;
}

op_status op_import_evals(op_importer *m)
{
    json_t *messages;
    op_status s = op_import_question(m, json_object_get(m->line, "question"), &messages);
    s = s ? s : add_answers(m, messages, "answer_matching_behavior", "matching");
    s = s ? s : add_answers(m, messages, "answer_not_matching_behavior", "not matching");
    json_decref(messages);
    return s;
}
