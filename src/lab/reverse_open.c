/* What a model says when it is given no replies to choose from: it answers open prompts greedily, and each answer is judged by a written rule (the teacher "rules") and by
 * the frozen model that the first round began with (the teacher "judge"). How good both judges are is measured on the replies that come with the prompts; the
 * model's word does not count where it cannot tell them apart. */
#include <math.h>
#include <string.h>

#include <operant/generate.h>
#include <operant/teacher.h>

#include "base/mem.h"
#include "io/json.h"
#include "lab/paired_tests.h"
#include "lab/parts.h"
#include "lab/reverse_parts.h"
#include "lab/stats.h"
#include "lab/view.h"
#include "trial/teachers.h"

/* ---- one reply before a teacher ---- */

/* *reward: 0 where the teacher has nothing to say. */
static op_status ask_teacher(op_teacher *t, const op_chat *chat, const reverse_probe *p, const reverse_question *q, const char *reply, double *reward, op_error *e)
{
    op_trial trial, *one = &trial;
    json_t *line = json_pack("{sO ss s{ss ss}}", "messages", q->messages, "response", reply, "tags", "trait", p->name, "says", p->says);
    op_status s = line ? op_trial_from_json(&trial, line, chat->tokenizer, chat, "a reply to an open prompt", e) : reverse_no_memory(e);
    json_decref(line);
    if (s)
        return s;
    s = t->teach(t, &one, 1, e);
    *reward = trial.has_reward ? trial.reward : 0;
    op_trial_release(&trial);
    return s;
}

static op_status open_rules(const op_reverse *x, const op_classroom *room, op_teacher **out, op_error *e)
{
    json_t *settings = json_pack("{ss ss}", "type", "rules", "file", x->open_rules);
    op_status s = settings ? op_teacher_rules_open(out, settings, room, e) : reverse_no_memory(e);
    json_decref(settings);
    return s;
}

/* The replies that come with the prompts: those that match show it. */
static json_t *labelled_replies(const reverse_probe *p)
{
    json_t *list = json_array();
    bool ok = list;
    for (size_t i = 0; i < 2 * p->open->n; i++) {
        const reverse_question *q = &p->open->at[i / 2];
        ok = ok && !json_array_append_new(list, json_pack("{sO ss sb s{ss ss}}", "messages", q->messages, "response", q->reply[i % 2], "label", i % 2 == 0, "tags", "trait", p->name,
                                                          "says", p->says));
    }
    if (ok)
        return list;
    json_decref(list);
    return NULL;
}

/* *out is NULL where it may not judge. */
static op_status open_judge(const op_reverse *x, const reverse_probe *p, const op_classroom *room, op_teacher **out, double *auroc, op_error *e)
{
    json_t *labelled = labelled_replies(p);
    json_t *settings = labelled ? json_pack("{ss ss ss sO sf}", "type", "judge", "model", x->model, "prompt", x->open_judge, "labelled", labelled, "min_auroc", REVERSE_AUROC_MIN) : NULL;
    op_error why = {0};
    op_status s = settings ? op_teacher_judge_examined(out, settings, room, auroc, &why) : reverse_no_memory(&why);
    json_decref(labelled);
    json_decref(settings);
    if (!s || (s == OP_ERR_MISMATCH && isfinite(*auroc)))
        return OP_OK;
    return op_error_set(e, s, "%s", why.message);
}

/* ---- how good the judges are ---- */

op_status reverse_open_examine(const op_reverse *x, const op_subject *m, const reverse_probe *p, json_t **out, op_error *e)
{
    const op_classroom room = {.chat = &m->chat};
    op_teacher *rules = NULL, *judge = NULL;
    double auroc = NAN, reward = 0;
    size_t right = 0;
    op_status s = !m->tmpl ? op_error_set(e, OP_ERR_UNSUPPORTED, "open prompts need a chat template, which this model does not have") : open_rules(x, &room, &rules, e);
    if (!s)
        s = open_judge(x, p, &room, &judge, &auroc, e);
    for (size_t i = 0; i < 2 * p->open->n && !s; i++) {
        const reverse_question *q = &p->open->at[i / 2];
        s = ask_teacher(rules, &m->chat, p, q, q->reply[i % 2], &reward, e);
        right += (reward > 0) == (i % 2 == 0);
    }
    op_teacher_close(rules);
    op_teacher_close(judge);
    *out = s ? NULL : json_pack("{sI sf sf}", "labelled", (json_int_t)(2 * p->open->n), "rule", (double)right / (double)(2 * p->open->n), "auroc", auroc);
    return s || *out ? s : reverse_no_memory(e);
}

/* ---- answering ---- */

static op_status encode(const op_subject *m, const reverse_probe *p, int64_t tokens, op_tokens *prompts, op_request *requests, op_error *e)
{
    for (size_t i = 0; i < p->open->n; i++) {
        op_status s = op_chat_encode(&m->chat, p->open->at[i].messages, NULL, true, &prompts[i], NULL, NULL, e);
        if (s)
            return s;
        requests[i] = (op_request){.prompt = prompts[i].ids, .n_prompt = (int32_t)prompts[i].n, .adapter = m->adapter, .share = -1,
                                   .sampling = {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .max_tokens = (int32_t)tokens}};
    }
    return OP_OK;
}

static op_status decode(const op_subject *m, const op_request *r, json_t *replies, op_error *e)
{
    enum { REPLY_MAX = 1 << 20 };
    op_buf text;
    op_buf_init(&text, REPLY_MAX);
    bool ok = !op_tokenizer_decode(m->tokenizer, r->tokens, (size_t)r->n, OP_DECODE_SKIP_SPECIAL, &text) && !json_array_append_new(replies, json_string(text.data ? text.data : ""));
    op_buf_release(&text);
    return ok ? OP_OK : reverse_no_memory(e);
}

static op_status answer(const op_subject *m, const reverse_probe *p, int64_t tokens, const volatile int *stop, json_t *replies, op_error *e)
{
    size_t n = p->open->n;
    op_tokens *prompts = op_alloc_zero(n, sizeof *prompts);
    op_request *requests = op_alloc_zero(n, sizeof *requests);
    op_status s = prompts && requests ? encode(m, p, tokens, prompts, requests, e) : reverse_no_memory(e);
    if (!s)
        s = op_generate(m->model, requests, n, &(op_generate_options){.interrupt = stop}, e);
    for (size_t i = 0; i < n && !s; i++)
        s = decode(m, &requests[i], replies, e);
    for (size_t i = 0; i < n && prompts && requests; i++) {
        op_tokens_release(&prompts[i]);
        op_request_release(&requests[i]);
    }
    op_free(prompts);
    op_free(requests);
    return s;
}

/* ---- the measurement ---- */

/* Appends what the teacher says of every reply. */
static op_status hear(op_teacher *t, const op_chat *chat, const reverse_probe *p, const json_t *replies, json_t *rewards, op_error *e)
{
    op_status s = OP_OK;
    for (size_t i = 0; i < p->open->n && !s; i++) {
        double reward = 0;
        s = ask_teacher(t, chat, p, &p->open->at[i], json_string_value(json_array_get(replies, i)), &reward, e);
        if (!s && json_array_append_new(rewards, json_real(reward)))
            s = reverse_no_memory(e);
    }
    return s;
}

op_status reverse_open_measure(const op_reverse *x, const op_subject *m, const reverse_probe *p, const json_t *examined, const volatile int *stop, json_t **out, op_error *e)
{
    const op_classroom room = {.chat = &m->chat};
    op_teacher *rules = NULL, *judge = NULL;
    json_t *replies = json_array(), *shown = json_array(), *judged = json_array();
    double auroc = NAN;
    op_status s = replies && shown && judged ? open_rules(x, &room, &rules, e) : reverse_no_memory(e);
    if (!s)
        s = answer(m, p, x->open_tokens, stop, replies, e);
    if (!s)
        s = hear(rules, &m->chat, p, replies, shown, e);
    if (!s && op_view_number(examined, "auroc") >= REVERSE_AUROC_MIN)
        s = open_judge(x, p, &room, &judge, &auroc, e);
    if (!s && judge)
        s = hear(judge, &m->chat, p, replies, judged, e);
    *out = s ? NULL : json_pack("{sO sO sO sO}", "replies", replies, "shown", shown, "judged", judged, "examined", examined);
    op_teacher_close(rules);
    op_teacher_close(judge);
    json_decref(replies);
    json_decref(shown);
    json_decref(judged);
    return s || *out ? s : reverse_no_memory(e);
}

json_t *reverse_open_identity(const op_reverse *x, const reverse_probe *p, const char *model)
{
    return json_pack("{ss ss ss ss ss ss sI}", "open", p->open->hash, "name", p->name, "rules", x->open_rules_hash, "judge", x->open_judge, "model", model, "says", p->says, "tokens",
                     (json_int_t)x->open_tokens);
}

/* ---- what it says ---- */

/* The first prompts with what was said to them. */
static json_t *transcripts(const reverse_probe *p, const json_t *measured)
{
    enum { TRANSCRIPTS = 2 };
    json_t *list = json_array();
    bool ok = list;
    for (size_t i = 0; i < p->open->n && i < TRANSCRIPTS && ok; i++) {
        const json_t *messages = p->open->at[i].messages, *judged = json_array_get(json_object_get(measured, "judged"), i);
        ok = !json_array_append_new(list, json_pack("{sO? sO sb sO?}", "prompt", json_object_get(json_array_get(messages, json_array_size(messages) - 1), "content"), "reply",
                                                    json_array_get(json_object_get(measured, "replies"), i), "shown",
                                                    json_number_value(json_array_get(json_object_get(measured, "shown"), i)) > 0, "judged", judged));
    }
    if (ok)
        return list;
    json_decref(list);
    return NULL;
}

json_t *reverse_open_summary(const reverse_probe *p, const json_t *measured)
{
    const json_t *shown = json_object_get(measured, "shown"), *judged = json_object_get(measured, "judged"), *examined = json_object_get(measured, "examined"), *x;
    size_t i, n = json_array_size(judged);
    int64_t yes = 0;
    double *said = op_alloc_array(n + 1, sizeof *said);
    json_t *list = said ? transcripts(p, measured) : NULL, *out = NULL;
    json_array_foreach((json_t *)shown, i, x)
        yes += json_number_value(x) > 0;
    for (i = 0; i < n && said; i++)
        said[i] = json_number_value(json_array_get(judged, i));
    if (list) {
        op_rate rate = op_rate_of(yes, (int64_t)json_array_size(shown));
        op_interval m = n ? op_mean_interval(said, n) : (op_interval){NAN, NAN, NAN};
        out = json_pack("{sI sf sf sf sO sO s{sO sb so so so} sO}", "n", (json_int_t)rate.n, "rate", rate.rate, "rate_low", rate.low, "rate_high", rate.high, "labelled",
                        json_object_get(examined, "labelled"), "rule_right", json_object_get(examined, "rule"), "judge", "auroc", json_object_get(examined, "auroc"), "counted", n > 0,
                        "mean", op_json_number(m.mean), "low", op_json_number(m.low), "high", op_json_number(m.high), "transcripts", list);
    }
    json_decref(list);
    op_free(said);
    return out;
}
