/* From words to a trial's tokens, for trials that come from outside: imported, or written by hand. */
#include <string.h>

#include "base/mem.h"
#include "trial/trial_parts.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the tokens of a trial");
}

static op_status taken(const op_tokens *from, size_t first, size_t n, int32_t **ids, int32_t *count, op_error *e)
{
    int32_t *copy = n > INT32_MAX ? NULL : op_alloc_array(n, sizeof *copy);
    if (!copy)
        return no_memory(e);
    if (n)
        memcpy(copy, from->ids + first, n * sizeof *copy);
    op_free(*ids);
    *ids = copy;
    *count = (int32_t)n;
    return OP_OK;
}

static op_status chat_there(const op_chat *chat, op_error *e)
{
    return chat && chat->tokenizer && chat->tmpl ? OP_OK
                                                 : op_error_set(e, OP_ERR_UNSUPPORTED, "'messages' need a model with a chat template, which this one does not have");
}

/* The whole dialogue, cut where the reply begins. */
static op_status encode_chat(op_trial *t, json_t *messages, const json_t *response, bool ended, const op_chat *chat, op_error *e)
{
    op_tokens all = {0};
    op_turns turns = {0};
    op_status s = chat_there(chat, e);
    json_t *both = s ? NULL : json_array(), *reply = both ? json_pack("{s:s,s:O}", "role", "assistant", "content", response) : NULL;
    if (!s && (!reply || json_array_extend(both, messages) || json_array_append(both, reply)))
        s = no_memory(e);
    s = s ? s : op_chat_encode(chat, both, NULL, false, &all, &turns, NULL, e);
    size_t first = 0, end, turn = json_array_size(messages);
    while (first < turns.n && turns.turn[first] != (int32_t)turn)
        first++;
    for (end = first; end < turns.n && turns.turn[end] == (int32_t)turn; end++) {}
    if (!s && (!first || first == turns.n))
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "the chat template does not show the response");
    while (!s && !ended && end > first && op_tokenizer_is_special(chat->tokenizer, all.ids[end - 1]))
        end--;
    s = s ? s : taken(&all, 0, first, &t->prompt, &t->n_prompt, e);
    s = s ? s : taken(&all, first, end - first, &t->response, &t->n_response, e);
    json_decref(both);
    json_decref(reply);
    op_tokens_release(&all);
    op_turns_release(&turns);
    return s;
}

static op_status encode_reply(op_trial *t, const json_t *response, bool ended, const op_tokenizer *k, op_error *e)
{
    op_tokens x = {0};
    op_status s = op_tokenizer_encode(k, json_string_value(response), json_string_length(response), OP_ENCODE_CONTINUE, &x, e);
    s = s ? s : taken(&x, 0, x.n, &t->response, &t->n_response, e);
    int32_t eos = op_tokenizer_eos(k);
    if (!s && ended && eos >= 0) {
        int32_t *more = op_realloc(t->response, (x.n + 1) * sizeof *more);
        if (more) {
            more[t->n_response++] = eos;
            t->response = more;
        } else
            s = no_memory(e);
    }
    op_tokens_release(&x);
    return s;
}

op_status op_trial_encode_prompt(op_trial *t, json_t *messages, const json_t *prompt, const op_chat *chat, op_error *e)
{
    op_tokens x = {0};
    op_status s = messages ? chat_there(chat, e) : chat ? OP_OK : op_error_set(e, OP_ERR_ARG, "text needs a model's tokenizer");
    if (!s && messages)
        s = op_chat_encode(chat, messages, NULL, true, &x, NULL, NULL, e);
    else if (!s) {
        size_t n = json_string_length(prompt);
        s = op_tokenizer_encode(chat->tokenizer, json_string_value(prompt), n, OP_ENCODE_SPECIAL | OP_ENCODE_AFFIX, &x, e);
        while (!s && n && x.n && x.begin[x.n - 1] == n)
            x.n--; /* what the affix adds behind the text, an end token, belongs after the response */
    }
    if (!s && !x.n)
        s = op_error_set(e, OP_ERR_FORMAT, "the prompt has no tokens");
    s = s ? s : taken(&x, 0, x.n, &t->prompt, &t->n_prompt, e);
    op_tokens_release(&x);
    return s;
}

op_status op_trial_encode(op_trial *t, json_t *messages, const json_t *prompt, const json_t *response, bool ended, const op_chat *chat, op_error *e)
{
    if (messages)
        return encode_chat(t, messages, response, ended, chat, e);
    op_status s = op_trial_encode_prompt(t, NULL, prompt, chat, e);
    return s ? s : encode_reply(t, response, ended, chat->tokenizer, e);
}

op_status op_trial_mark_text(op_trial *t, const op_tokenizer *k, const json_t *text, int64_t from, int64_t to, double value, const char *by, const char *note,
                             op_error *e)
{
    const char *whole = json_string_value(text);
    size_t n = json_string_length(text);
    int32_t all = op_code_points(whole, n), start, end;
    if (from < 0 || from >= to || to > all)
        return op_error_set(e, OP_ERR_FORMAT, "a mark on code points %lld..%lld, expected a span that is not empty within 0..%d", (long long)from, (long long)to, all);
    op_buf own;
    op_buf_init(&own, OP_TRIAL_TEXT_MAX);
    op_status s = op_trial_view(t, k, 0, t->n_response, &own) ? no_memory(e) : OP_OK;
    const char *hit = s ? NULL : own.len ? memmem(whole, n, own.data, own.len) : whole;
    if (!s && !hit)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "the response's tokens do not spell it, so its marks have no place");
    if (!s) {
        int32_t skipped = op_code_points(whole, (size_t)(hit - whole)), shown = op_code_points(own.data, own.len);
        from = from - skipped < 0 ? 0 : from - skipped;
        to = to - skipped > shown ? shown : to - skipped;
        s = op_trial_span(t, k, from, to, &start, &end, e);
    }
    op_buf_release(&own);
    return s ? s : op_trial_add_mark(t, start, end, value, by, note, e);
}
