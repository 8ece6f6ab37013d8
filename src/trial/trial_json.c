/* Trials as JSON lines. Tokens are the truth; text and code points are a view of them, and must be theirs when both are given. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <operant/config.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/trial_parts.h"

static const char *const finishes[] = {"stop", "length", "veto"};

/* ---- out ---- */

static json_t *ids_json(const int32_t *ids, int32_t n)
{
    json_t *list = json_array();
    for (int32_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, json_integer(ids[i]))) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

/* json_object_set_new as a chain: stays false once memory was out. `value` is taken. */
static bool put(bool ok, json_t *object, const char *key, json_t *value)
{
    if (ok && object)
        return !json_object_set_new(object, key, value);
    json_decref(value);
    return false;
}

static bool put_text(bool ok, json_t *object, const char *key, const char *text)
{
    return text ? put(ok, object, key, json_string(text)) : ok;
}

/* The text of a list of tokens: without special tokens as a response's is, or with them. */
static bool put_view(bool ok, json_t *object, const char *key, const int32_t *ids, int32_t n, bool all, const op_tokenizer *k)
{
    op_trial view = {.response = (int32_t *)(uintptr_t)ids, .n_response = n};
    op_buf b;
    op_buf_init(&b, OP_TRIAL_TEXT_MAX);
    ok = ok && !(all ? op_tokenizer_decode(k, ids, (size_t)n, OP_DECODE_ALL, &b) : op_trial_view(&view, k, 0, n, &b));
    ok = put(ok, object, key, ok ? json_stringn(b.data ? b.data : "", b.len) : NULL);
    op_buf_release(&b);
    return ok;
}

static json_t *logprobs_json(const float *x, int32_t n)
{
    json_t *list = json_array();
    for (int32_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, isnan(x[i]) ? json_null() : json_real((double)x[i]))) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

static json_t *sampler_json(const op_sampling *x)
{
    char seed[32];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)x->seed);
    json_t *o = json_object();
    bool ok = put(o != NULL, o, "temperature", json_real(x->temperature));
    ok = put(ok, o, "top_k", json_integer(x->top_k));
    ok = put(ok, o, "top_p", json_real(x->top_p));
    ok = put(ok, o, "min_p", json_real(x->min_p));
    ok = put(ok, o, "repetition_penalty", json_real(x->repetition_penalty));
    ok = put(ok, o, "max_tokens", json_integer(x->max_tokens));
    /* JSON's readers hold integers to 63 bits */
    ok = put(ok, o, "seed", x->seed > INT64_MAX ? json_string(seed) : json_integer((json_int_t)x->seed));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

/* The tokens that touch the code points of tokens from .. to-1, which are more than those where tokens share a character. */
static bool is_exact(const op_trial *t, const int32_t *begin, const int32_t *end, int32_t from, int32_t to)
{
    int32_t low = begin[from], high = low;
    for (int32_t i = from; i < to; i++)
        high = end[i] > high ? end[i] : high;
    for (int32_t i = 0; i < t->n_response; i++)
        if ((begin[i] < high && end[i] > low && begin[i] != end[i]) != (i >= from && i < to))
            return false;
    return true;
}

static json_t *mark_json(const op_trial *t, const op_mark *m, const int32_t *begin, const int32_t *end)
{
    json_t *o = json_object();
    bool ok = o != NULL;
    if (begin) {
        int32_t last = begin[m->start];
        for (int32_t i = m->start; i < m->end; i++)
            last = end[i] > last ? end[i] : last;
        ok = put(ok, o, "start", json_integer(begin[m->start]));
        ok = put(ok, o, "end", json_integer(last));
    }
    ok = put(ok, o, "value", json_real(m->value));
    ok = put_text(ok, o, "by", m->by);
    ok = put_text(ok, o, "note", m->note);
    if (!begin || !is_exact(t, begin, end, m->start, m->end))
        ok = put(ok, o, "tokens", json_pack("[ii]", m->start, m->end));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

static json_t *marks_json(const op_trial *t, const op_tokenizer *k)
{
    int32_t *begin = op_alloc_array((size_t)t->n_response + 1, 2 * sizeof *begin), *end = begin + t->n_response + 1;
    json_t *list = begin ? json_array() : NULL;
    bool ok = list && (!k || !op_trial_offsets(t, k, begin, end, NULL));
    for (int32_t i = 0; ok && i < t->n_marks; i++)
        ok = !json_array_append_new(list, mark_json(t, &t->marks[i], k ? begin : NULL, end));
    op_free(begin);
    if (!ok)
        json_decref(list);
    return ok ? list : NULL;
}

static json_t *alternative_json(const op_alternative *a, const op_tokenizer *k)
{
    json_t *o = json_object();
    bool ok = put(o != NULL, o, "at_token", json_integer(a->at));
    ok = a->n == 1 ? put(ok, o, "id", json_integer(a->ids[0])) : put(ok, o, "ids", ids_json(a->ids, a->n));
    ok = k ? put_view(ok, o, "text", a->ids, a->n, true, k) : ok;
    ok = isnan(a->logprob) ? ok : put(ok, o, "logprob", json_real(a->logprob));
    ok = a->picked ? put(ok, o, "picked", json_true()) : ok;
    ok = put_text(ok, o, "by", a->by);
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

static json_t *alternatives_json(const op_trial *t, const op_tokenizer *k)
{
    json_t *list = json_array();
    bool ok = list != NULL;
    for (int32_t i = 0; ok && i < t->n_alternatives; i++)
        ok = !json_array_append_new(list, alternative_json(&t->alternatives[i], k));
    if (!ok)
        json_decref(list);
    return ok ? list : NULL;
}

op_status op_trial_to_json(const op_trial *t, const op_tokenizer *k, json_t **out, op_error *e)
{
    op_status s = op_trial_check(t, k ? op_tokenizer_vocab_size(k) : 0, e);
    *out = NULL;
    if (s)
        return s;
    json_t *o = json_object();
    bool ok = o != NULL;
    if (t->id)
        ok = put(ok, o, "id", json_integer(t->id));
    if (t->messages)
        ok = put(ok, o, "messages", json_deep_copy(t->messages));
    else if (k)
        ok = put_view(ok, o, "prompt", t->prompt, t->n_prompt, true, k);
    if (k)
        ok = put_view(ok, o, "response", t->response, t->n_response, false, k);
    ok = put(ok, o, "prompt_tokens", ids_json(t->prompt, t->n_prompt));
    ok = put(ok, o, "tokens", ids_json(t->response, t->n_response));
    if (t->logprobs) {
        ok = put(ok, o, "logprobs", logprobs_json(t->logprobs, t->n_response));
        ok = put(ok, o, "sampler", sampler_json(&t->sampler));
    }
    if (t->n_forced)
        ok = put(ok, o, "forced", json_integer(t->n_forced));
    if (t->policy[0])
        ok = put_text(ok, o, "policy", t->policy);
    ok = put_text(ok, o, "finish_reason", finishes[t->finish]);
    if (t->n_marks)
        ok = put(ok, o, "marks", marks_json(t, k));
    if (t->has_reward)
        ok = put(ok, o, "reward", json_real(t->reward));
    if (t->n_alternatives)
        ok = put(ok, o, "alternatives", alternatives_json(t, k));
    if (json_object_size(t->tags))
        ok = put(ok, o, "tags", json_deep_copy(t->tags));
    if (t->redo_of)
        ok = put(ok, o, "redo", json_pack("{sIsi}", "of", (json_int_t)t->redo_of, "at", t->redo_at));
    ok = put_text(ok, o, "by", t->by);
    if (t->time)
        ok = put(ok, o, "time", json_integer(t->time));
    if (!ok) {
        json_decref(o);
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the JSON of trial %lld", (long long)t->id);
    }
    *out = o;
    return OP_OK;
}

static int add_text(const char *bytes, size_t n, void *out)
{
    return op_buf_add(out, bytes, n) ? -1 : 0;
}

op_status op_trial_append(const op_trial *t, const op_tokenizer *k, op_buf *out, op_error *e)
{
    json_t *o;
    size_t before = out->len;
    op_status s = op_trial_to_json(t, k, &o, e);
    if (s)
        return s;
    /* 17 digits, with which a double is read back as the same one */
    if (json_dump_callback(o, add_text, out, JSON_COMPACT | JSON_REAL_PRECISION(17)) || op_buf_add(out, "\n", 1)) {
        out->len = before; /* a line is appended whole or not at all */
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory for the JSON of trial %lld", (long long)t->id);
    }
    json_decref(o);
    return s;
}

/* ---- in ---- */

typedef struct reader {
    op_trial *t;
    const json_t *line;
    const op_tokenizer *k;
    const op_chat *chat;
    const char *where; /* file, line and trial */
    op_error *e;
    json_t *response; /* as given, or NULL */
} reader;

static op_status no_memory(const reader *r)
{
    return op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->where);
}

static op_status located(const reader *r, op_status s)
{
    return s ? op_error_prefix(r->e, "%s", r->where), s : s;
}

static op_status check_keys(const reader *r, const json_t *object, const char *what, const char *const *known)
{
    for (void *i = json_object_iter((json_t *)(uintptr_t)object); i; i = json_object_iter_next((json_t *)(uintptr_t)object, i)) {
        const char *key = json_object_iter_key(i);
        size_t n = 0;
        while (known[n] && strcmp(known[n], key) != 0)
            n++;
        if (known[n])
            continue;
        const char *near = op_config_nearest(key, known);
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: unknown key '%.64s' in %s%s%s%s", r->where, key, what, near ? ", did you mean '" : "", near ? near : "",
                            near ? "'?" : "");
    }
    return OP_OK;
}

static op_status get_int32(const reader *r, const json_t *object, const char *key, bool required, int32_t min, int32_t *out)
{
    int64_t v = *out;
    op_status s = op_json_get_int(object, key, required, min, INT32_MAX, &v, r->where, r->e);
    *out = (int32_t)v;
    return s;
}

/* A list of token ids as a new array; a missing one leaves *out NULL. */
static op_status get_ids(const reader *r, const json_t *object, const char *key, int32_t **out, int32_t *n)
{
    json_t *list = NULL, *v;
    size_t i;
    op_status s = op_json_get_array(object, key, false, &list, r->where, r->e);
    if (s || !list)
        return s;
    int32_t *ids = op_alloc_array(json_array_size(list), sizeof *ids);
    if (!ids)
        return no_memory(r);
    json_array_foreach(list, i, v) {
        ids[i] = (int32_t)json_integer_value(v);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX) {
            op_free(ids);
            return op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"%s\": place %zu holds %s, expected token ids", r->where, key, i, op_json_kind(v));
        }
    }
    op_free(*out);
    *out = ids;
    *n = (int32_t)json_array_size(list);
    return OP_OK;
}

static op_status get_copy(const reader *r, const json_t *object, const char *key, char **out)
{
    const char *v = NULL;
    op_status s = op_json_get_string(object, key, false, &v, r->where, r->e);
    if (!s && v && !(*out = op_strdup(v)))
        s = no_memory(r);
    return s;
}

/* Ids that a decoder may be given. */
static op_status check_vocabulary(const reader *r, const int32_t *ids, int32_t n, const char *what)
{
    int32_t vocab = r->k ? op_tokenizer_vocab_size(r->k) : INT32_MAX;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] >= vocab)
            return op_error_set(r->e, OP_ERR_FORMAT, "%s: token %d of the %s is %d, expected 0..%d: is this the model's tokenizer?", r->where, i, what, ids[i], vocab - 1);
    return OP_OK;
}

static op_status check_view(const reader *r)
{
    op_buf b;
    op_buf_init(&b, OP_TRIAL_TEXT_MAX);
    op_status s = op_trial_view(r->t, r->k, 0, r->t->n_response, &b) ? no_memory(r) : OP_OK;
    if (!s && (b.len != json_string_length(r->response) || (b.len && memcmp(b.data, json_string_value(r->response), b.len) != 0)))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: 'response' is not the text of its tokens, which is \"%.60s\"", r->where, b.data ? b.data : "");
    op_buf_release(&b);
    return s;
}

static op_status read_words(reader *r)
{
    json_t *messages = NULL, *prompt = json_object_get(r->line, "prompt");
    const char *finish = NULL;
    op_trial *t = r->t;
    op_status s = op_json_get_array(r->line, "messages", false, &messages, r->where, r->e);
    if (!s && prompt && !json_is_string(prompt))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"prompt\": found %s, expected a string", r->where, op_json_kind(prompt));
    if (!s && r->response && !json_is_string(r->response))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"response\": found %s, expected a string", r->where, op_json_kind(r->response));
    s = s ? s : op_json_get_string(r->line, "finish_reason", false, &finish, r->where, r->e);
    for (t->finish = OP_FINISH_STOP; !s && finish && strcmp(finish, finishes[t->finish]) != 0; t->finish++)
        if (t->finish == OP_FINISH_VETO)
            return op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"finish_reason\": found \"%.20s\", expected stop, length or veto", r->where, finish);
    s = s ? s : get_ids(r, r->line, "prompt_tokens", &t->prompt, &t->n_prompt);
    s = s ? s : get_ids(r, r->line, "tokens", &t->response, &t->n_response);
    if (!s && messages && !(t->messages = json_deep_copy(messages)))
        s = no_memory(r);
    if (s)
        return s;
    if (!t->prompt && !messages == !prompt)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: expected one of 'messages' and 'prompt', or 'prompt_tokens'", r->where);
    if (!t->response && !r->response)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: expected 'response' or 'tokens'", r->where);
    if (!t->response && t->prompt)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: 'prompt_tokens' without 'tokens'", r->where);
    if (!t->response)
        return located(r, op_trial_encode(t, messages, prompt, r->response, t->finish == OP_FINISH_STOP, r->chat, r->e));
    if (!t->prompt)
        s = located(r, op_trial_encode_prompt(t, messages, prompt, r->chat, r->e));
    s = s ? s : check_vocabulary(r, t->prompt, t->n_prompt, "prompt");
    s = s ? s : check_vocabulary(r, t->response, t->n_response, "response");
    return s || !r->k || !r->response ? s : check_view(r);
}

static op_status read_sampler(const reader *r)
{
    static const char *const keys[] = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed", NULL};
    json_t *o = NULL;
    op_sampling *x = &r->t->sampler;
    op_status s = op_json_get_object(r->line, "sampler", false, &o, r->where, r->e);
    if (s || !o)
        return s;
    json_t *seed = json_object_get(o, "seed");
    char *stop = NULL;
    s = check_keys(r, o, "'sampler'", keys);
    s = s ? s : op_json_get_float(o, "temperature", false, &x->temperature, r->where, r->e);
    s = s ? s : op_json_get_float(o, "top_p", false, &x->top_p, r->where, r->e);
    s = s ? s : op_json_get_float(o, "min_p", false, &x->min_p, r->where, r->e);
    s = s ? s : op_json_get_float(o, "repetition_penalty", false, &x->repetition_penalty, r->where, r->e);
    s = s ? s : get_int32(r, o, "top_k", false, 0, &x->top_k);
    s = s ? s : get_int32(r, o, "max_tokens", false, 0, &x->max_tokens);
    if (json_is_string(seed))
        x->seed = strtoull(json_string_value(seed), &stop, 10);
    else
        x->seed = (uint64_t)json_integer_value(seed);
    if (!s && seed && (stop ? *stop != 0 || !*json_string_value(seed) : !json_is_integer(seed)))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"seed\": found %s, expected an integer", r->where, op_json_kind(seed));
    return s;
}

static op_status read_logprobs(const reader *r)
{
    json_t *list = NULL, *v;
    size_t i;
    op_status s = op_json_get_array(r->line, "logprobs", false, &list, r->where, r->e);
    if (s || !list)
        return s;
    if (!json_object_get(r->line, "tokens"))
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: 'logprobs' without 'tokens': only what was sampled has them", r->where);
    if (json_array_size(list) != (size_t)r->t->n_response)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: %zu log-probabilities for %d response tokens", r->where, json_array_size(list), r->t->n_response);
    r->t->logprobs = op_alloc_array(json_array_size(list), sizeof *r->t->logprobs);
    if (!r->t->logprobs)
        return no_memory(r);
    json_array_foreach(list, i, v) {
        if (!json_is_number(v) && !json_is_null(v))
            return op_error_set(r->e, OP_ERR_FORMAT, "%s: log-probability %zu is %s, expected a number or null", r->where, i, op_json_kind(v));
        r->t->logprobs[i] = json_is_null(v) ? NAN : (float)json_number_value(v);
    }
    return OP_OK;
}

/* By token indexes, by code points, or both: then they must name the same tokens, unless these are a part of the code points' own. */
static op_status read_mark(const reader *r, const json_t *mark, size_t i)
{
    static const char *const keys[] = {"start", "end", "value", "by", "note", "tokens", NULL};
    int64_t from = -1, to = -1;
    double value = 0;
    const char *by = NULL, *note = NULL;
    json_t *span = NULL;
    if (!json_is_object(mark))
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: mark %zu is %s, expected an object", r->where, i, op_json_kind(mark));
    op_status s = check_keys(r, mark, "a mark", keys);
    s = s ? s : op_json_get_float(mark, "value", true, &value, r->where, r->e);
    s = s ? s : op_json_get_string(mark, "by", false, &by, r->where, r->e);
    s = s ? s : op_json_get_string(mark, "note", false, &note, r->where, r->e);
    s = s ? s : op_json_get_array(mark, "tokens", false, &span, r->where, r->e);
    s = s ? s : op_json_get_int(mark, "start", !span, INT32_MIN, INT32_MAX, &from, r->where, r->e);
    s = s ? s : op_json_get_int(mark, "end", !span, INT32_MIN, INT32_MAX, &to, r->where, r->e);
    if (s || !span) {
        if (!s && !r->k)
            s = op_error_set(r->e, OP_ERR_ARG, "%s: mark %zu is on code points, which need a model's tokenizer", r->where, i);
        else if (!s && (!r->response || !json_is_string(r->response)))
            s = op_error_set(r->e, OP_ERR_FORMAT, "%s: mark %zu is on code points, but there is no 'response'", r->where, i);
        if (!s && (s = op_trial_mark_text(r->t, r->k, r->response, from, to, value, by, note, r->e)))
            op_error_prefix(r->e, "%s: mark %zu", r->where, i);
        return s;
    }
    const json_t *a = json_array_get(span, 0), *b = json_array_get(span, 1);
    if (json_array_size(span) != 2 || !json_is_integer(a) || !json_is_integer(b))
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: mark %zu: 'tokens' is not a pair of integers", r->where, i);
    json_int_t first = json_integer_value(a), last = json_integer_value(b);
    if (first < 0 || first >= last || last > r->t->n_response)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: mark %zu on tokens %lld..%lld, expected a span within 0..%d: the others were never sampled", r->where, i,
                            (long long)first, (long long)last, r->t->n_response);
    return located(r, op_trial_add_mark(r->t, (int32_t)first, (int32_t)last, value, by, note, r->e));
}

static op_status read_marks(const reader *r)
{
    json_t *list = NULL;
    op_status s = op_json_get_array(r->line, "marks", false, &list, r->where, r->e);
    for (size_t i = 0; !s && i < json_array_size(list); i++)
        s = read_mark(r, json_array_get(list, i), i);
    return s;
}

static op_status read_alternative(const reader *r, const json_t *v)
{
    static const char *const keys[] = {"at_token", "id", "ids", "text", "logprob", "picked", "by", NULL};
    int32_t at = 0, one = -1, n = 0, *ids = NULL;
    double logprob = NAN;
    bool picked = false;
    const char *by = NULL;
    json_t *text = json_object_get(v, "text");
    op_tokens written = {0};
    op_status s = json_is_object(v) ? check_keys(r, v, "an alternative", keys)
                                    : op_error_set(r->e, OP_ERR_FORMAT, "%s: an alternative is %s, expected an object", r->where, op_json_kind(v));
    s = s ? s : get_int32(r, v, "at_token", true, 0, &at);
    s = s ? s : get_int32(r, v, "id", false, 0, &one);
    s = s ? s : get_ids(r, v, "ids", &ids, &n);
    s = s ? s : op_json_get_float(v, "logprob", false, &logprob, r->where, r->e);
    s = s ? s : op_json_get_bool(v, "picked", false, &picked, r->where, r->e);
    s = s ? s : op_json_get_string(v, "by", false, &by, r->where, r->e);
    const int32_t *use = ids ? ids : &one;
    n = ids ? n : 1;
    if (!s && !ids && one < 0) {
        if (!json_is_string(text) || !r->k)
            s = op_error_set(r->e, OP_ERR_FORMAT, "%s: an alternative needs 'id', 'ids' or (with a model's tokenizer) 'text'", r->where);
        else
            s = located(r, op_tokenizer_encode(r->k, json_string_value(text), json_string_length(text), OP_ENCODE_CONTINUE, &written, r->e));
        use = written.ids;
        n = (int32_t)written.n;
    }
    s = s ? s : check_vocabulary(r, use, n, "alternative");
    s = s ? s : located(r, op_trial_add_alternative(r->t, at, use, n, logprob, picked, by, r->e));
    op_free(ids);
    op_tokens_release(&written);
    return s;
}

static op_status read_alternatives(const reader *r)
{
    json_t *list = NULL;
    op_status s = op_json_get_array(r->line, "alternatives", false, &list, r->where, r->e);
    for (size_t i = 0; !s && i < json_array_size(list); i++)
        s = read_alternative(r, json_array_get(list, i));
    return s;
}

/* "tags", and what data sets carry at the top of a line. */
static op_status read_tags(const reader *r)
{
    static const char *const carried[] = {"topic", "class", "kind", NULL};
    json_t *tags = NULL, *v;
    const char *key;
    op_status s = op_json_get_object(r->line, "tags", false, &tags, r->where, r->e);
    json_object_foreach(tags, key, v)
        if (!s && (json_is_object(v) || json_is_array(v) || json_is_null(v)))
            s = op_error_set(r->e, OP_ERR_FORMAT, "%s: tag '%.64s' is %s, expected a string, a number or a boolean", r->where, key, op_json_kind(v));
    if (!s && tags && json_object_update(r->t->tags, tags))
        s = no_memory(r);
    for (int i = 0; !s && carried[i]; i++) {
        const char *text = NULL;
        s = op_json_get_string(r->line, carried[i], false, &text, r->where, r->e);
        if (!s && text && json_object_set(r->t->tags, carried[i], json_object_get(r->line, carried[i])))
            s = no_memory(r);
    }
    return s;
}

static op_status read_rest(const reader *r)
{
    static const char *const redo_keys[] = {"of", "at", NULL};
    op_trial *t = r->t;
    json_t *redo = NULL;
    const char *policy = NULL;
    op_status s = read_logprobs(r);
    s = s ? s : read_sampler(r);
    s = s ? s : get_int32(r, r->line, "forced", false, 0, &t->n_forced);
    s = s ? s : op_json_get_string(r->line, "policy", false, &policy, r->where, r->e);
    if (!s && policy && strlen(policy) >= sizeof t->policy)
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"policy\": found %zu characters, expected at most %zu", r->where, strlen(policy), sizeof t->policy - 1);
    else if (!s && policy)
        strcpy(t->policy, policy);
    s = s ? s : get_copy(r, r->line, "by", &t->by);
    s = s ? s : op_json_get_int(r->line, "time", false, INT64_MIN, INT64_MAX, &t->time, r->where, r->e);
    s = s ? s : op_json_get_float(r->line, "reward", false, &t->reward, r->where, r->e);
    t->has_reward = json_is_number(json_object_get(r->line, "reward"));
    s = s ? s : op_json_get_object(r->line, "redo", false, &redo, r->where, r->e);
    if (!s && redo) {
        s = check_keys(r, redo, "'redo'", redo_keys);
        s = s ? s : op_json_get_int(redo, "of", true, 1, INT64_MAX, &t->redo_of, r->where, r->e);
        s = s ? s : get_int32(r, redo, "at", true, 0, &t->redo_at);
    }
    s = s ? s : read_tags(r);
    s = s ? s : read_marks(r);
    return s ? s : read_alternatives(r);
}

op_status op_trial_from_json(op_trial *out, const json_t *line, const op_tokenizer *k, const op_chat *chat, const char *name, op_error *e)
{
    static const char *const keys[] = {"id", "messages", "prompt", "response", "prompt_tokens", "tokens", "logprobs", "sampler", "forced", "policy", "finish_reason",
                                       "marks", "reward", "alternatives", "tags", "redo", "by", "time", "topic", "class", "kind", NULL};
    char where[OP_ERROR_MAX / 2];
    reader r = {.t = out, .line = line, .k = k, .chat = chat, .where = where, .e = e, .response = json_object_get(line, "response")};
    op_trial_init(out);
    snprintf(where, sizeof where, "%s", name);
    if (json_is_null(r.response))
        r.response = NULL;
    op_status s = json_is_object(line) ? OP_OK : op_error_set(e, OP_ERR_FORMAT, "%s: found %s, expected an object", name, op_json_kind(line));
    s = s ? s : op_json_get_int(line, "id", false, 0, INT64_MAX, &out->id, name, e);
    if (!s && out->id)
        snprintf(where, sizeof where, "%.200s: trial %lld", name, (long long)out->id);
    s = s ? s : out->tags ? check_keys(&r, line, "a trial", keys) : no_memory(&r);
    s = s ? s : read_words(&r);
    s = s ? s : read_rest(&r);
    if (!s && (s = op_trial_check(out, k ? op_tokenizer_vocab_size(k) : 0, e)))
        op_error_prefix(e, "%s", name);
    if (s)
        op_trial_release(out);
    return s;
}
