/* The cue source "data": a file of dialogues or prompts. */
#include <stdio.h>
#include <string.h>

#include <operant/jsonl.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/session_parts.h"
#include "trial/settings.h"

void op_cue_release(op_cue *c)
{
    op_free(c->prompt);
    json_decref(c->messages);
    json_decref(c->tags);
    *c = (op_cue){0};
}

/* settings: {"type": "data", "file": PATH, "classes": [..]?, "only": {KEY: text, ..}?, "limit": n?, "chat": bool?}; the file lies beside the protocol or in the working directory. A line has "messages",
 * or "prompt" (a text that stands alone, without the chat template; with "chat" it is what the user says). Only lines are taken whose "class" is among the classes and whose other keys are as in "only". Where the dialogue ends with an assistant's turn, that turn (or "completion", "response", "reference") is the tag "reference": the right
 * answer as far as the file knows. "id", "class", "kind", "topic" and the members of "tags" become tags. */
typedef struct data {
    op_cue_source base;
    const op_chat *chat;
    op_cue *cues;
    size_t cap;
    char *path;
    const json_t *classes, *only;
    int64_t limit;
    bool in_chat;
} data;

static bool wanted(const data *d, const json_t *line)
{
    size_t i;
    json_t *class, *value;
    const char *key;
    json_object_foreach((json_t *)d->only, key, value)
        if (!json_equal(value, json_object_get(line, key)))
            return false;
    if (!d->classes)
        return true;
    json_array_foreach((json_t *)d->classes, i, class)
        if (json_equal(class, json_object_get(line, "class")))
            return true;
    return false;
}

static op_status tags_of(op_cue *c, json_t *line, op_error *e)
{
    static const char *const carried[] = {"id", "class", "kind", "topic", "reference"};
    json_t *given = json_object_get(line, "tags");
    bool ok = (c->tags = json_object());
    if (ok && json_is_object(given))
        ok = !json_object_update(c->tags, given);
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(c->tags, next, key, value)
        if (!json_is_string(value) && !json_is_number(value) && !json_is_boolean(value))
            json_object_del(c->tags, key); /* a tag is one word or number */
    for (size_t i = 0; ok && i < sizeof carried / sizeof *carried; i++)
        if (json_is_string(json_object_get(line, carried[i])) || json_is_number(json_object_get(line, carried[i])))
            ok = !json_object_set(c->tags, carried[i], json_object_get(line, carried[i]));
    const char *answers[] = {"completion", "response"};
    for (size_t i = 0; ok && i < 2; i++)
        if (json_is_string(json_object_get(line, answers[i])))
            ok = !json_object_set(c->tags, "reference", json_object_get(line, answers[i]));
    return ok ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the cues");
}

static json_t *said_by_user(const char *prompt)
{
    return json_pack("[{ssss}]", "role", "user", "content", prompt);
}

/* Everything before a last assistant's turn, which becomes the reference; roles and words only. */
static op_status dialogue_of(op_cue *c, const json_t *messages, const char *name, op_error *e)
{
    size_t n = json_array_size(messages), i;
    json_t *message;
    if (!(c->messages = json_array()))
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the cues");
    json_array_foreach((json_t *)messages, i, message) {
        const char *role = NULL, *content = NULL;
        op_status status = op_json_get_string(message, "role", true, &role, name, e);
        if (!status)
            status = op_json_get_string(message, "content", true, &content, name, e);
        if (status)
            return status;
        int failed;
        if (i + 1 == n && !strcmp(role, "assistant"))
            failed = json_object_set(c->tags, "reference", json_object_get(message, "content"));
        else
            failed = json_array_append_new(c->messages, json_pack("{ssss}", "role", role, "content", content));
        if (failed)
            return op_error_set(e, OP_ERR_NOMEM, "out of memory for the cues");
    }
    return json_array_size(c->messages) ? OP_OK : op_error_set(e, OP_ERR_FORMAT, "%s: key \"messages\": nobody asks anything", name);
}

static op_status encode(op_cue *c, const op_chat *chat, const char *prompt, const char *name, op_error *e)
{
    op_tokens tokens;
    op_tokens_init(&tokens);
    op_status status;
    if (!prompt && !chat->tmpl)
        status = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: the model has no chat template for \"messages\"", name);
    else if (prompt)
        status = op_tokenizer_encode(chat->tokenizer, prompt, strlen(prompt), OP_ENCODE_AFFIX, &tokens, e);
    else
        status = op_chat_encode(chat, c->messages, NULL, true, &tokens, NULL, NULL, e);
    if (!status && !tokens.n)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: the prompt has no tokens", name);
    if (!status) {
        c->prompt = tokens.ids;
        c->n_prompt = (int32_t)tokens.n;
        tokens.ids = NULL;
    }
    op_tokens_release(&tokens);
    return status;
}

static op_status read_line(void *ctx, json_t *line, int number, op_error *e)
{
    data *d = ctx;
    char name[300];
    snprintf(name, sizeof name, "%.250s: line %d", d->path, number);
    if (!wanted(d, line) || (d->limit && d->base.n == (uint64_t)d->limit))
        return OP_OK;
    if (!op_grow(&d->cues, d->base.n, &d->cap, sizeof *d->cues))
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    op_cue c = {0};
    json_t *messages = NULL;
    const char *prompt = NULL;
    op_status status = tags_of(&c, line, e);
    if (!status)
        status = op_json_get_array(line, "messages", false, &messages, name, e);
    if (!status && !messages)
        status = op_json_get_string(line, "prompt", true, &prompt, name, e);
    bool asked = prompt && d->in_chat;
    if (!status && asked && !(messages = said_by_user(prompt)))
        status = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    if (!status && messages)
        status = dialogue_of(&c, messages, name, e);
    if (!status)
        status = encode(&c, d->chat, asked ? NULL : prompt, name, e);
    if (asked)
        json_decref(messages);
    if (status)
        op_cue_release(&c);
    else
        d->cues[d->base.n++] = c;
    return status;
}

static op_status draw(op_cue_source *s, uint64_t index, op_cue *out, op_error *e)
{
    const data *d = s->ctx;
    const op_cue *c = &d->cues[index];
    *out = (op_cue){.prompt = op_alloc_array((size_t)c->n_prompt, sizeof *out->prompt), .n_prompt = c->n_prompt, .messages = json_incref(c->messages),
                    .tags = json_incref(c->tags)};
    if (!out->prompt) {
        op_cue_release(out);
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a cue");
    }
    memcpy(out->prompt, c->prompt, (size_t)c->n_prompt * sizeof *out->prompt);
    return OP_OK;
}

static void release(op_cue_source *s)
{
    data *d = s->ctx;
    for (uint64_t i = 0; i < d->base.n; i++)
        op_cue_release(&d->cues[i]);
    op_free(d->cues);
    op_free(d->path);
    op_free(d);
}

op_status op_cues_from_data(op_cue_source **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "file", "classes", "only", "limit", "chat", NULL};
    const char *path = NULL;
    data *d = op_alloc_zero(1, sizeof *d);
    if (!d)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the cues");
    d->base = (op_cue_source){.ctx = d, .draw = draw, .free = release};
    d->chat = room->chat;
    json_t *classes = NULL, *only = NULL;
    op_status status = op_settings_check(settings, keys, "cues", e);
    if (!status)
        status = op_json_get_string(settings, "file", true, &path, "cues", e);
    if (!status)
        status = op_settings_path(&d->path, room->dir, path, e);
    if (!status)
        status = op_json_get_array(settings, "classes", false, &classes, "cues", e);
    if (!status)
        status = op_json_get_int(settings, "limit", false, 0, INT32_MAX, &d->limit, "cues", e);
    if (!status)
        status = op_json_get_object(settings, "only", false, &only, "cues", e);
    if (!status)
        status = op_json_get_bool(settings, "chat", false, &d->in_chat, "cues", e);
    d->classes = classes;
    d->only = only;
    if (!status)
        status = op_json_lines(d->path, read_line, d, e);
    if (!status && !d->base.n)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: no cue%s", d->path, classes ? " of these classes" : only ? " of these" : "");
    d->classes = d->only = NULL; /* borrowed from the settings */
    if (status)
        release(&d->base);
    else
        *out = &d->base;
    return status;
}
