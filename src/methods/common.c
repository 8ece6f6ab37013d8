#include "methods/common.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

op_status method_no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for a method's round");
}

/* ---- answers ---- */

op_status method_answers_to(op_session *s, const op_stage *stage, op_cue *const *cues, size_t n, answers *out, op_error *e)
{
    *out = (answers){.cues = cues, .n_cues = n, .group = (size_t)stage->group, .n = n * (size_t)stage->group};
    out->success = op_alloc_zero(out->n + 1, sizeof *out->success);
    if (!out->success)
        return method_no_memory(e);
    op_status status = op_session_sample(s, (const op_cue *const *)cues, n, stage->group, &out->trials, e);
    return status ? status : op_session_teach(s, out->trials, out->n, out->success, e);
}

op_status method_answers(op_session *s, const op_stage *stage, answers *out, op_error *e)
{
    op_cue *const *cues;
    size_t n;
    *out = (answers){0};
    op_status status = op_session_cues(s, &cues, &n, e);
    return status ? status : method_answers_to(s, stage, cues, n, out, e);
}

void method_answers_release(answers *a)
{
    op_free(a->success);
    a->success = NULL;
}

op_status method_add_groups(op_session *s, const answers *a, op_error *e)
{
    op_status status = OP_OK;
    for (size_t i = 0; !status && i < a->n; i += a->group)
        status = op_lesson_add_group(op_session_lesson(s), (const op_trial *const *)a->trials + i, a->group, e);
    return status;
}

/* ---- what was said of a trial ---- */

bool method_punished(const op_trial *t, bool success)
{
    return !success && (t->has_reward || t->n_marks);
}

bool method_succeeded(const op_stage *stage, const op_trial *t)
{
    if (t->has_reward)
        return t->reward > stage->success_above;
    return t->n_marks && op_trial_first_error(t) < 0;
}

double method_score(const op_trial *t)
{
    double marks = 0;
    for (int32_t i = 0; i < t->n_marks; i++)
        marks += t->marks[i].value * (t->marks[i].end - t->marks[i].start);
    return (t->has_reward ? t->reward : 0) + (t->n_marks ? marks / t->n_response : 0);
}

int32_t method_parting(const op_trial *a, const op_trial *b)
{
    int32_t n = a->n_response < b->n_response ? a->n_response : b->n_response, i = 0;
    while (i < n && a->response[i] == b->response[i])
        i++;
    return i < n ? i : -1;
}

op_status method_prefer(op_session *s, const op_trial *good, const op_trial *bad, int32_t span, op_error *e)
{
    int32_t at = method_parting(good, bad);
    return at < 0 ? OP_OK : op_lesson_add_preference(op_session_lesson(s), good, bad, at, span, e);
}

/* ---- the right answer ---- */

/* Of a dialogue: its words and the token that ends them, as the template has them. */
static op_status encode_reply(const op_chat *chat, const op_cue *cue, const char *text, op_tokens *out, op_error *e)
{
    op_turns turns = {0};
    op_tokens all;
    op_tokens_init(&all);
    size_t n = json_array_size(cue->messages);
    json_t *messages = json_copy(cue->messages);
    op_status status = OP_OK;
    if (!messages || json_array_append_new(messages, json_pack("{ssss}", "role", "assistant", "content", text)))
        status = method_no_memory(e);
    if (!status)
        status = op_chat_encode(chat, messages, NULL, false, &all, &turns, NULL, e);
    for (size_t i = 0; !status && i < all.n; i++)
        if (turns.turn[i] == (int32_t)n)
            all.ids[out->n++] = all.ids[i];
    out->ids = all.ids;
    all.ids = NULL;
    op_tokens_release(&all);
    op_turns_release(&turns);
    json_decref(messages);
    return status;
}

/* Of a text that stands alone: the words that go on, and the end of text. */
static op_status encode_rest(const op_chat *chat, const char *text, op_tokens *out, op_error *e)
{
    int32_t eos = op_tokenizer_eos(chat->tokenizer), *ids;
    op_status status = op_tokenizer_encode(chat->tokenizer, text, strlen(text), OP_ENCODE_CONTINUE, out, e);
    if (status || eos < 0)
        return status;
    ids = op_realloc(out->ids, (out->n + 1) * sizeof *ids);
    if (!ids)
        return method_no_memory(e);
    out->ids = ids;
    ids[out->n++] = eos;
    return OP_OK;
}

op_status method_reference(op_session *s, const op_cue *cue, op_trial **out, op_error *e)
{
    const char *text = json_string_value(json_object_get(cue->tags, "reference"));
    *out = NULL;
    if (!text)
        return OP_OK;
    op_tokens tokens;
    op_tokens_init(&tokens);
    op_status status = cue->messages ? encode_reply(op_session_chat(s), cue, text, &tokens, e) : encode_rest(op_session_chat(s), text, &tokens, e);
    if (!status && tokens.n)
        status = op_session_trial(s, cue, tokens.ids, (int32_t)tokens.n, "reference", out, e);
    op_tokens_release(&tokens);
    return status;
}

/* ---- steps ---- */

static bool ends_sentence(const char *p)
{
    return (strchr(".?!", *p) && (!p[1] || strchr(" \t\r\n", p[1]))) || *p == '\n';
}

op_status method_steps(const op_session *s, const op_trial *t, int32_t **ends, int32_t *n, op_error *e)
{
    const op_tokenizer *k = op_session_chat(s)->tokenizer;
    size_t size = (size_t)t->n_response + 1;
    char *text = NULL;
    int32_t *begin = op_alloc_array(size, sizeof *begin), *end = op_alloc_array(size, sizeof *end), *list = op_alloc_array(size, sizeof *list);
    op_status status = begin && end && list ? op_trial_text(t, k, 0, t->n_response, &text, e) : method_no_memory(e);
    if (!status)
        status = op_trial_offsets(t, k, begin, end, e);
    int32_t count = 0, point = 0, token = 0;
    bool words = false; /* since the last step */
    for (const char *p = text; !status && *p; p++) {
        point += ((unsigned char)*p & 0xc0) != 0x80;
        words |= !strchr(" \t\r\n", *p);
        if (!words || !ends_sentence(p))
            continue;
        while (token < t->n_response && begin[token] < point)
            token++;
        if (!count || token > list[count - 1])
            list[count++] = token;
        words = false;
    }
    if (!status && t->n_response) { /* an end token belongs to the last step */
        count += !count || (words && list[count - 1] < t->n_response);
        list[count - 1] = t->n_response;
    }
    op_free(text);
    op_free(begin);
    op_free(end);
    if (status)
        op_free(list);
    *ends = status ? NULL : list;
    *n = count;
    return status;
}

/* ---- views ---- */

op_status method_view(view *out, const op_trial *t, int32_t from, int32_t to, op_error *e)
{
    *out = (view){.t = *t};
    op_trial *v = &out->t;
    out->prompt = op_alloc_array((size_t)(t->n_prompt + from), sizeof *out->prompt);
    out->marks = op_alloc_array((size_t)t->n_marks + 1, sizeof *out->marks);
    if (!out->prompt || !out->marks)
        return method_no_memory(e);
    memcpy(out->prompt, t->prompt, (size_t)t->n_prompt * sizeof *t->prompt);
    memcpy(out->prompt + t->n_prompt, t->response, (size_t)from * sizeof *t->response);
    v->prompt = out->prompt;
    v->n_prompt += from;
    v->response += from;
    v->n_response = to - from;
    v->logprobs = t->logprobs ? t->logprobs + from : NULL;
    v->n_forced = t->n_forced <= from ? 0 : t->n_forced < to ? t->n_forced - from : to - from;
    v->n_alternatives = v->n_marks = 0;
    v->marks = out->marks;
    for (int32_t i = 0; i < t->n_marks; i++) {
        op_mark m = t->marks[i];
        m.start = (m.start > from ? m.start : from) - from;
        m.end = (m.end < to ? m.end : to) - from;
        if (m.start < m.end)
            out->marks[v->n_marks++] = m;
    }
    return OP_OK;
}

op_status method_view_marks(view *out, const op_trial *t, const float *m, op_error *e)
{
    *out = (view){.t = *t, .marks = op_alloc_array((size_t)t->n_response + 1, sizeof *out->marks)};
    if (!out->marks)
        return method_no_memory(e);
    out->t.marks = out->marks;
    out->t.n_marks = 0;
    for (int32_t i = 0; i < t->n_response; i++)
        if (m[i] != 0)
            out->marks[out->t.n_marks++] = (op_mark){.start = i, .end = i + 1, .value = (double)m[i]};
    return OP_OK;
}

op_status method_add_views(op_session *s, view *views, size_t n, op_status status, op_error *e)
{
    const op_trial **list = op_alloc_array(n + 1, sizeof *list);
    if (!status && !list)
        status = method_no_memory(e);
    for (size_t i = 0; list && i < n; i++)
        list[i] = &views[i].t;
    if (!status)
        status = op_lesson_add_group(op_session_lesson(s), list, n, e);
    for (size_t i = 0; i < n; i++) {
        op_free(views[i].prompt);
        op_free(views[i].marks);
        views[i] = (view){0};
    }
    op_free(list);
    return status;
}

/* ---- doing again ---- */

op_status method_plan_add(plan *p, op_trial *t, int32_t at, const int32_t *forced, int32_t n_forced, op_error *e)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        op_trial **trials = op_realloc(p->trials, cap * sizeof *trials);
        p->trials = trials ? trials : p->trials;
        int32_t *ats = op_realloc(p->at, cap * sizeof *ats), *counts = op_realloc(p->n_forced, cap * sizeof *counts);
        p->at = ats ? ats : p->at;
        p->n_forced = counts ? counts : p->n_forced;
        const int32_t **placed = op_realloc(p->forced, cap * sizeof *placed);
        p->forced = placed ? placed : p->forced;
        if (!trials || !ats || !counts || !placed)
            return method_no_memory(e);
        p->cap = cap;
    }
    p->trials[p->n] = t;
    p->at[p->n] = at;
    p->forced[p->n] = forced;
    p->n_forced[p->n++] = n_forced;
    return OP_OK;
}

op_status method_plan_run(op_session *s, const plan *p, op_trial ***out, op_error *e)
{
    *out = NULL;
    op_status status = p->n ? op_session_redo(s, p->trials, p->n, p->at, p->forced, p->n_forced, out, e) : OP_OK;
    return status || !p->n ? status : op_session_ask(s, *out, p->n, e);
}

void method_plan_release(plan *p)
{
    op_free(p->trials);
    op_free(p->at);
    op_free(p->n_forced);
    op_free(p->forced);
    *p = (plan){0};
}

/* ---- levels ---- */

static int64_t remembered(op_session *s, const char *key)
{
    return json_integer_value(json_object_get(op_session_memory(s), key));
}

int64_t method_level(op_session *s)
{
    return remembered(s, "level");
}

op_status method_climb(op_session *s, int64_t right, int64_t tried, double criterion, int64_t over, int64_t top, op_error *e)
{
    json_t *memory = op_session_memory(s);
    int64_t level = remembered(s, "level");
    right += remembered(s, "right");
    tried += remembered(s, "tried");
    if (tried >= over) { /* a window is judged once, then the next begins */
        level += (double)right >= criterion * (double)tried && level < top;
        right = tried = 0;
    }
    bool failed = json_object_set_new(memory, "level", json_integer(level)) || json_object_set_new(memory, "right", json_integer(right)) ||
                  json_object_set_new(memory, "tried", json_integer(tried));
    return failed ? method_no_memory(e) : OP_OK;
}

/* ---- cues to choose from ---- */

op_status method_pool(op_session *s, int64_t times, op_cue ***cues, size_t *n, op_error *e)
{
    op_status status = OP_OK;
    *cues = NULL;
    *n = 0;
    for (int64_t k = 0; !status && k < times; k++) {
        op_cue *const *more;
        size_t n_more;
        status = op_session_cues(s, &more, &n_more, e);
        op_cue **all = status ? NULL : op_realloc(*cues, (*n + n_more + 1) * sizeof **cues);
        if (!all) {
            status = status ? status : method_no_memory(e);
            break;
        }
        *cues = all;
        memcpy(all + *n, more, n_more * sizeof *more);
        *n += n_more;
    }
    if (status) {
        op_free(*cues);
        *cues = NULL;
    }
    return status;
}
