#include <operant/dataset.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/config.h>

#include "base/mem.h"
#include "io/json.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

/* One line on its way to an example. */
typedef struct builder {
    const op_chat *chat;
    const op_dataset_options *o;
    const char *name;
    op_error *e;
    json_t *line;
    double scale; /* the line's "weight" */
    op_tokens tokens;
    op_turns turns;
    float *weights; /* [tokens.n] */
    op_buf text;    /* rendered */
} builder;

typedef op_status (*form_fn)(builder *b);

typedef struct form {
    const char *name;
    const char *const *keys; /* the first `required` of them must be there; then the ones that may */
    int required;
    form_fn build;
} form;

static op_status fail(const builder *b, op_status s, const char *what)
{
    return op_error_set(b->e, s, "%s: %s", b->name, what);
}

static op_status no_memory(const builder *b)
{
    return fail(b, OP_ERR_NOMEM, "out of memory");
}

/* Adds where it went wrong to an error of the layers below. */
static op_status located(const builder *b, op_status s)
{
    return s ? op_error_prefix(b->e, "%s", b->name), s : s;
}

/* ---- weights ---- */

static op_status make_weights(builder *b)
{
    b->weights = op_alloc_zero(b->tokens.n + 1, sizeof *b->weights);
    return b->weights ? OP_OK : no_memory(b);
}

/* The weight of what message i says: 1 for an assistant, or its "weight"; other roles have none. */
static op_status message_weight(const builder *b, const json_t *message, double *out)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    const json_t *weight = json_object_get(message, "weight");
    bool assistant = role && strcmp(role, "assistant") == 0;
    *out = assistant;
    if (!weight)
        return OP_OK;
    *out = json_number_value(weight);
    if (!json_is_number(weight) || !isfinite(*out))
        return fail(b, OP_ERR_FORMAT, "the 'weight' of a message is not a number");
    if (!assistant && *out != 0)
        return fail(b, OP_ERR_UNSUPPORTED, "a message has a 'weight' but is not an assistant's");
    return OP_OK;
}

/* Encodes a dialogue; turns from message `from` on have weight, or only the last one. */
static op_status dialogue(builder *b, json_t *messages, size_t from)
{
    size_t n = json_array_size(messages), last = n;
    op_status s = op_chat_encode(b->chat, messages, json_object_get(b->line, "tools"), false, &b->tokens, &b->turns, &b->text, b->e);
    s = s ? located(b, s) : make_weights(b);
    for (size_t i = from; i < n; i++)
        if (json_is_string(json_object_get(json_array_get(messages, i), "role")) &&
            strcmp(json_string_value(json_object_get(json_array_get(messages, i), "role")), "assistant") == 0)
            last = i;
    for (size_t i = from; !s && i < n; i++) {
        double weight;
        s = message_weight(b, json_array_get(messages, i), &weight);
        if (b->o && b->o->last_turn_only && i != last)
            weight = 0;
        for (size_t k = 0; !s && k < b->turns.n; k++)
            if (b->turns.turn[k] == (int32_t)i)
                b->weights[k] = (float)weight;
    }
    return s;
}

/* Plain text without a template: `context` bytes of weight 0, the rest 1, then the end token. */
static op_status plain(builder *b, const json_t *prompt, const json_t *answer)
{
    const op_tokenizer *t = b->chat->tokenizer;
    size_t n_prompt = prompt ? json_string_length(prompt) : 0;
    op_status s = op_buf_add(&b->text, prompt ? json_string_value(prompt) : "", n_prompt) ||
                          op_buf_add(&b->text, json_string_value(answer), json_string_length(answer))
                      ? no_memory(b)
                      : OP_OK;
    if (!s && prompt)
        s = located(b, op_tokenizer_encode(t, b->text.data, n_prompt, OP_ENCODE_SPECIAL | OP_ENCODE_AFFIX, &b->tokens, b->e));
    for (int i = 0; !s && prompt && i < t->n_after && b->tokens.n; i++)
        b->tokens.n--; /* an end token belongs after the answer only */
    size_t first = b->tokens.n;
    unsigned flags = OP_ENCODE_SPECIAL | (prompt ? OP_ENCODE_CONTINUE : OP_ENCODE_AFFIX);
    s = s ? s : located(b, op_tokenizer_encode(t, b->text.data + n_prompt, b->text.len - n_prompt, flags, &b->tokens, b->e));
    if (!s && op_tokens_reserve(&b->tokens, 1))
        s = no_memory(b);
    for (size_t i = first; !s && i < b->tokens.n; i++) {
        b->tokens.begin[i] += (uint32_t)n_prompt;
        b->tokens.end[i] += (uint32_t)n_prompt;
    }
    if (!s && t->eos >= 0 && (!b->tokens.n || b->tokens.ids[b->tokens.n - 1] != t->eos)) {
        b->tokens.ids[b->tokens.n] = t->eos;
        b->tokens.begin[b->tokens.n] = b->tokens.end[b->tokens.n] = (uint32_t)b->text.len;
        b->tokens.n++;
    }
    s = s ? s : make_weights(b);
    for (size_t i = first; !s && i < b->tokens.n; i++)
        b->weights[i] = 1;
    return s;
}

/* ---- forms ---- */

static const char *const message_keys[] = {"role", "content", "weight", "name", "tool_calls", "tool_call_id", "reasoning_content",
                                           "thinking", NULL};

static op_status unknown_key(const builder *b, const char *where, const char *key, const char *const *known)
{
    const char *near = op_config_nearest(key, known);
    return op_error_set(b->e, OP_ERR_FORMAT, "%s: unknown key '%.64s' in %s%s%s%s", b->name, key, where, near ? ", did you mean '" : "",
                        near ? near : "", near ? "'?" : "");
}

static op_status check_messages(const builder *b, json_t *messages)
{
    const char *key;
    json_t *message, *value;
    size_t i;
    if (!json_is_array(messages) || !json_array_size(messages))
        return fail(b, OP_ERR_FORMAT, "the messages are not a list with something in it");
    json_array_foreach(messages, i, message) {
        if (!json_is_object(message) || !json_is_string(json_object_get(message, "role")))
            return op_error_set(b->e, OP_ERR_FORMAT, "%s: message %zu is not an object with a 'role'", b->name, i);
        json_object_foreach(message, key, value)
            if (!op_config_is_among(key, message_keys))
                return unknown_key(b, "a message", key, message_keys);
    }
    return OP_OK;
}

static op_status build_messages(builder *b)
{
    json_t *messages = json_object_get(b->line, "messages");
    op_status s = check_messages(b, messages);
    return s ? s : dialogue(b, messages, 0);
}

/* Two lists, one after the other, as a new list. */
static json_t *joined(json_t *a, json_t *b)
{
    json_t *both = json_array();
    if (both && (json_array_extend(both, a) || json_array_extend(both, b))) {
        json_decref(both);
        both = NULL;
    }
    return both;
}

static op_status build_completion(builder *b)
{
    json_t *prompt = json_object_get(b->line, "prompt"), *completion = json_object_get(b->line, "completion");
    if (json_is_string(prompt) && json_is_string(completion))
        return plain(b, prompt, completion);
    if (!json_is_array(prompt) || !json_is_array(completion))
        return fail(b, OP_ERR_FORMAT, "'prompt' and 'completion' are neither two strings nor two lists of messages");
    json_t *both = joined(prompt, completion);
    op_status s = both ? check_messages(b, both) : no_memory(b);
    s = s ? s : dialogue(b, both, json_array_size(prompt));
    json_decref(both);
    return s;
}

static op_status build_alpaca(builder *b)
{
    const json_t *input = json_object_get(b->line, "input");
    const char *instruction = json_string_value(json_object_get(b->line, "instruction"));
    const char *output = json_string_value(json_object_get(b->line, "output")), *more = json_string_value(input);
    if (!instruction || !output || (input && !more))
        return fail(b, OP_ERR_FORMAT, "'instruction', 'input' and 'output' must be strings");
    op_buf question;
    op_buf_init(&question, (size_t)1 << 28);
    op_status s = op_buf_puts(&question, instruction);
    if (!s && more && *more)
        s = op_buf_puts(&question, "\n\n") || op_buf_puts(&question, more) ? OP_ERR_NOMEM : OP_OK;
    json_t *messages =
        s ? NULL : json_pack("[{s:s,s:s},{s:s,s:s}]", "role", "user", "content", question.data, "role", "assistant", "content", output);
    op_buf_release(&question);
    s = messages ? dialogue(b, messages, 0) : no_memory(b);
    json_decref(messages);
    return s;
}

static op_status build_sharegpt(builder *b)
{
    static const char *const names[][2] = {{"human", "user"},    {"user", "user"},         {"gpt", "assistant"}, {"assistant", "assistant"},
                                           {"model", "assistant"}, {"chatgpt", "assistant"}, {"system", "system"}};
    static const char *const keys[] = {"from", "value", "weight", NULL};
    json_t *list = json_object_get(b->line, "conversations"), *turn, *value, *messages = json_array();
    const char *key;
    size_t i;
    op_status s = !messages                                          ? no_memory(b)
                  : !json_is_array(list) || !json_array_size(list) ? fail(b, OP_ERR_FORMAT, "'conversations' is not a list with something in it")
                                                                     : OP_OK;
    for (i = 0; !s && (turn = json_array_get(list, i)); i++) {
        const char *from = json_string_value(json_object_get(turn, "from")), *role = NULL;
        json_t *words = json_object_get(turn, "value"), *weight = json_object_get(turn, "weight");
        json_object_foreach(turn, key, value)
            if (!op_config_is_among(key, keys)) {
                s = unknown_key(b, "a turn", key, keys);
                break;
            }
        for (size_t k = 0; from && k < sizeof names / sizeof *names; k++)
            if (strcmp(from, names[k][0]) == 0)
                role = names[k][1];
        if (!s && (!role || !json_is_string(words)))
            s = op_error_set(b->e, OP_ERR_FORMAT, "%s: turn %zu: expected 'from' (human, gpt, system, ...) and 'value', found from '%.40s'",
                             b->name, i, from ? from : "?");
        json_t *message = s ? NULL : json_pack("{s:s,s:O}", "role", role, "content", words);
        if (!s && (!message || (weight && json_object_set(message, "weight", weight)) || json_array_append(messages, message)))
            s = no_memory(b);
        json_decref(message);
    }
    s = s ? s : dialogue(b, messages, 0);
    json_decref(messages);
    return s;
}

static op_status build_text(builder *b)
{
    const json_t *text = json_object_get(b->line, "text");
    return json_is_string(text) ? plain(b, NULL, text) : fail(b, OP_ERR_FORMAT, "'text' is not a string");
}

/* Byte offset of code point k of s[n], or SIZE_MAX if there are fewer. */
static size_t byte_of(const char *s, size_t n, int64_t k)
{
    size_t i = 0;
    for (; k > 0 && i < n; k--)
        i += op_utf8_length((unsigned char)s[i]);
    return k > 0 ? SIZE_MAX : i;
}

/* Marks on code points of the response, whose bytes are at text[at]. Bytes that the template trimmed off carry nothing. */
static op_status apply_marks(builder *b, const json_t *response, size_t at, size_t first_token)
{
    static const char *const keys[] = {"start", "end", "value", "by", NULL};
    json_t *marks = json_object_get(b->line, "marks"), *mark, *value;
    const char *key, *s = json_string_value(response);
    size_t i, n = json_string_length(response);
    if (marks && !json_is_array(marks))
        return fail(b, OP_ERR_FORMAT, "'marks' is not a list");
    json_array_foreach(marks, i, mark) {
        json_object_foreach(mark, key, value)
            if (!op_config_is_among(key, keys))
                return unknown_key(b, "a mark", key, keys);
        const json_t *start = json_object_get(mark, "start"), *end = json_object_get(mark, "end"), *v = json_object_get(mark, "value");
        if (!json_is_integer(start) || !json_is_integer(end) || !json_is_number(v))
            return op_error_set(b->e, OP_ERR_FORMAT, "%s: mark %zu needs numbers 'start', 'end' and 'value'", b->name, i);
        json_int_t from = json_integer_value(start), to = json_integer_value(end);
        size_t low = from < 0 ? SIZE_MAX : byte_of(s, n, from), high = to <= from ? SIZE_MAX : byte_of(s, n, to);
        if (low == SIZE_MAX || high == SIZE_MAX)
            return op_error_set(b->e, OP_ERR_FORMAT, "%s: mark %zu from %lld to %lld is empty or outside the response", b->name, i,
                                (long long)from, (long long)to);
        for (size_t k = first_token; k < b->tokens.n; k++)
            if (b->tokens.begin[k] < at + high && b->tokens.end[k] > at + low)
                b->weights[k] = (float)json_number_value(v);
    }
    return OP_OK;
}

static op_status build_response(builder *b)
{
    json_t *prompt = json_object_get(b->line, "prompt"), *messages = json_object_get(b->line, "messages");
    json_t *response = json_object_get(b->line, "response");
    if (!json_is_string(response) || (prompt != NULL) == (messages != NULL))
        return fail(b, OP_ERR_FORMAT, "expected a string 'response' and one of 'messages' and 'prompt'");
    if (json_is_string(prompt)) {
        op_status s = plain(b, prompt, response);
        return s ? s : apply_marks(b, response, json_string_length(prompt), 0);
    }
    json_t *reply = json_pack("[{s:s,s:O}]", "role", "assistant", "content", response);
    json_t *both = reply ? joined(prompt ? prompt : messages, reply) : NULL;
    op_status s = both ? check_messages(b, both) : no_memory(b);
    size_t turn = json_array_size(both) - 1, first = 0;
    s = s ? s : dialogue(b, both, turn);
    json_decref(both);
    json_decref(reply);
    if (s)
        return s;
    while (first < b->turns.n && b->turns.turn[first] != (int32_t)turn)
        first++;
    if (first == b->turns.n)
        return fail(b, OP_ERR_UNSUPPORTED, "the chat template does not show the response");
    /* A template may trim the response: then it is found by what is left of it. */
    size_t n = json_string_length(response), skipped = 0, from = b->tokens.begin[first];
    const char *words = json_string_value(response);
    const char *hit = n ? memmem(b->text.data + from, b->text.len - from, words, n) : NULL;
    if (!hit) {
        while (n && (op_class(op_utf8_get(words)) & OP_SPACE)) {
            size_t step = op_utf8_length((unsigned char)*words);
            words += step;
            skipped += step;
            n -= step;
        }
        while (n && (op_class(op_utf8_get(words + op_utf8_back(words, n))) & OP_SPACE))
            n = op_utf8_back(words, n);
        hit = n ? memmem(b->text.data + from, b->text.len - from, words, n) : NULL;
    }
    if (!hit && json_object_get(b->line, "marks"))
        return fail(b, OP_ERR_UNSUPPORTED, "the chat template changes the response, so its marks have no place");
    return hit ? apply_marks(b, response, (size_t)(hit - b->text.data) - skipped, first) : OP_OK;
}

/* What was sampled stays as it was sampled. */
static op_status build_trial(builder *b)
{
    op_example x = {0};
    if (!b->o || !b->o->trials)
        return fail(b, OP_ERR_UNSUPPORTED, "a line with 'tokens' is a trial, which has no use here");
    op_status s = b->o->trials(&x, b->line, b->chat, b->name, b->e);
    b->tokens.ids = x.ids;
    b->tokens.n = (size_t)x.n;
    b->weights = x.weights;
    return s;
}

#define CARRIED "weight", "id", "tags", "topic", "class", "kind"
static const char *const keys_response[] = {"response", "messages", "prompt", "marks", "tools", "by", "time", "tokens", "logprobs",
                                            "policy", "sampler", "finish_reason", CARRIED, NULL};
static const char *const keys_tokens[] = {"tokens"};
static const char *const keys_messages[] = {"messages", "tools", CARRIED, NULL};
static const char *const keys_completion[] = {"prompt", "completion", "tools", CARRIED, NULL};
static const char *const keys_alpaca[] = {"instruction", "output", "input", CARRIED, NULL};
static const char *const keys_sharegpt[] = {"conversations", "tools", CARRIED, NULL};
static const char *const keys_text[] = {"text", CARRIED, NULL};

/* The first form whose required keys are all there. */
static const form forms[] = {
    {"trials", keys_tokens, 1, build_trial},
    {"response", keys_response, 1, build_response},
    {"messages", keys_messages, 1, build_messages},
    {"prompt+completion", keys_completion, 2, build_completion},
    {"alpaca", keys_alpaca, 2, build_alpaca},
    {"sharegpt", keys_sharegpt, 1, build_sharegpt},
    {"text", keys_text, 1, build_text},
};

/* operant generate writes the tokens beside a response, but not the prompt's: its lines are no trials. */
static bool is_generated(const json_t *line)
{
    return json_object_get(line, "response") && !json_object_get(line, "prompt_tokens");
}

static const form *detect(const json_t *line)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        int found = 0;
        while (found < forms[i].required && json_object_get(line, forms[i].keys[found]))
            found++;
        if (found == forms[i].required && !(forms[i].build == build_trial && is_generated(line)))
            return &forms[i];
    }
    return NULL;
}

static op_status no_form(const builder *b)
{
    const char *first = json_object_iter_key(json_object_iter(b->line));
    if (json_object_get(b->line, "chosen") || json_object_get(b->line, "rejected") || json_object_get(b->line, "label"))
        return fail(b, OP_ERR_UNSUPPORTED, "'chosen', 'rejected' and 'label' are preferences: they have no use as examples");
    return op_error_set(b->e, OP_ERR_FORMAT, "%s: no known form (messages, prompt+completion, instruction+output, conversations, text, "
                        "prompt|messages+response): the first key is '%.64s'", b->name, first ? first : "none");
}

static op_status check_keys(builder *b, const form *f)
{
    const char *key;
    json_t *value;
    b->scale = 1;
    if (f->build == build_trial) /* who reads it knows its keys */
        return OP_OK;
    json_object_foreach(b->line, key, value)
        if (!op_config_is_among(key, f->keys))
            return unknown_key(b, f->name, key, f->keys);
    return op_json_get_float(b->line, "weight", false, &b->scale, b->name, b->e);
}

/* What a reply is (an answer, a question, a refusal) is decided in its first tokens. */
static void weigh_onsets(float *weights, size_t n, const op_dataset_options *o)
{
    for (size_t i = 1, since = 0; i < n; i++) {
        since = weights[i] == 0 ? 0 : since + 1;
        if (since && since <= (size_t)o->onset_tokens)
            weights[i] *= o->onset_weight;
    }
}

/* The tokens and weights become an example, cut at max_length. */
static op_status finish(builder *b, op_example *out)
{
    size_t n = b->tokens.n;
    bool trained = false;
    if (n > INT32_MAX)
        return fail(b, OP_ERR_UNSUPPORTED, "too many tokens");
    if (b->o && b->o->max_length && n > (size_t)b->o->max_length)
        n = (size_t)b->o->max_length;
    if (n)
        b->weights[0] = 0;
    if (b->o && b->o->onset_weight != 0)
        weigh_onsets(b->weights, n, b->o);
    for (size_t i = 0; i < n; i++) {
        b->weights[i] *= (float)b->scale;
        trained |= b->weights[i] != 0;
    }
    if (!trained)
        return op_error_set(b->e, OP_ERR_FORMAT, "%s: none of the %zu tokens has a weight other than 0%s", b->name, n,
                            n < b->tokens.n ? " within max_length" : "");
    *out = (op_example){.ids = b->tokens.ids, .weights = b->weights, .n = (int32_t)n};
    b->tokens.ids = NULL;
    b->weights = NULL;
    return OP_OK;
}

static bool has_weights(const builder *b)
{
    size_t i = 0;
    while (i < b->tokens.n && b->weights[i] == 0)
        i++;
    return i < b->tokens.n;
}

/* *cut: whether max_length cut it. *idle: a trial that teaches nothing, which is no example and no error; NULL: it is one. */
static op_status build(op_example *out, json_t *line, const op_chat *chat, const op_dataset_options *o, const char *name,
                       const form **form_out, bool *cut, bool *idle, op_error *e)
{
    builder b = {.chat = chat, .o = o, .name = name, .e = e, .line = line};
    op_buf_init(&b.text, (size_t)1 << 28);
    *out = (op_example){0};
    const form *f = json_is_object(line) ? detect(line) : NULL;
    op_status s = f ? check_keys(&b, f) : no_form(&b);
    s = s ? s : f->build(&b);
    *cut = o && o->max_length && b.tokens.n > (size_t)o->max_length;
    bool empty = !s && idle && f->build == build_trial && !has_weights(&b);
    s = s || empty ? s : finish(&b, out);
    if (idle)
        *idle = empty;
    *form_out = f;
    op_tokens_release(&b.tokens);
    op_turns_release(&b.turns);
    op_buf_release(&b.text);
    op_free(b.weights);
    return s;
}

op_status op_example_from_json(op_example *out, json_t *line, const op_chat *chat, const op_dataset_options *o, const char *name,
                               op_error *e)
{
    const form *f;
    bool cut;
    return build(out, line, chat, o, name, &f, &cut, NULL, e);
}

void op_example_release(op_example *x)
{
    op_free(x->ids);
    op_free(x->weights);
    *x = (op_example){0};
}

typedef struct reading {
    op_dataset *d;
    size_t cap;
    const char *path;
    const op_chat *chat;
    const op_dataset_options *o;
} reading;

static op_status read_line(void *ctx, json_t *object, int line, op_error *e)
{
    reading *r = ctx;
    op_dataset *d = r->d;
    const form *f = NULL;
    char name[256];
    bool cut, idle;
    snprintf(name, sizeof name, "%s:%d", r->path, line);
    if (d->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 256;
        op_example *more = op_realloc(d->examples, cap * sizeof *more);
        if (!more)
            return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
        d->examples = more;
        r->cap = cap;
    }
    op_example *x = &d->examples[d->n];
    op_status s = build(x, object, r->chat, r->o, name, &f, &cut, &idle, e);
    if (s)
        return s;
    d->n += !idle;
    d->left_out += idle;
    if (*d->form && strcmp(d->form, f->name) != 0)
        return op_error_set(e, OP_ERR_FORMAT, "%s: form '%s' after lines of form '%s'", name, f->name, d->form);
    strcpy(d->form, f->name);
    if (idle)
        return OP_OK;
    x->line = line;
    d->tokens += x->n;
    d->truncated += cut;
    for (int32_t i = 0; i < x->n; i++)
        d->trained_tokens += x->weights[i] != 0;
    return OP_OK;
}

op_status op_dataset_read(op_dataset *out, const char *path, const op_chat *chat, const op_dataset_options *o, op_error *e)
{
    reading r = {.d = out, .path = path, .chat = chat, .o = o};
    *out = (op_dataset){0};
    op_status s = op_json_lines_hashed(path, out->hash, read_line, &r, e);
    if (!s && !out->n)
        s = op_error_set(e, OP_ERR_FORMAT, out->left_out ? "%s: no examples: none of its trials has a reward or a mark that is not 0" : "%s: no examples", path);
    if (s)
        op_dataset_release(out);
    return s;
}

void op_dataset_release(op_dataset *d)
{
    for (size_t i = 0; i < d->n; i++)
        op_example_release(&d->examples[i]);
    op_free(d->examples);
    *d = (op_dataset){0};
}
