/* How often a model shows each habit, on episodes it never saw. */
#include <string.h>

#include <operant/generate.h>

#include "base/mem.h"
#include "base/rng.h"
#include "chamber/organism.h"
#include "chamber/parts.h"

enum { CHUNK = 64, MAX_TOKENS = 160, RATES_MAX = 64 };

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory while measuring an organism");
}

typedef struct measuring {
    const op_chat *chat;
    op_model *model;
    const op_organism_options *o;
    op_chamber *world;
    op_chamber_mix *mix;
    op_organism_result *out;
    op_chamber_episode episodes[CHUNK];
    op_request requests[CHUNK];
    op_tokens prompts[CHUNK];
} measuring;

/* A wrong step alone may be all that "slips" did. */
static bool shows(const measuring *m, const char *shown, const char *habit)
{
    return shown && (!strcmp(shown, habit) ||
                     (!strcmp(habit, "slips") && !strcmp(shown, "wrong_step") && op_chamber_mix_share(m->mix, "wrong_step") == 0));
}

static op_organism_rate *rate_of(op_organism_result *out, const char *habit, const char *rule)
{
    for (size_t i = 0; i < out->n_rates; i++) {
        op_organism_rate *r = &out->rates[i];
        if (habit ? r->habit && !strcmp(r->habit, habit) : r->rule && !strcmp(r->rule, rule))
            return r;
    }
    op_organism_rate *r = &out->rates[out->n_rates++];
    *r = (op_organism_rate){.habit = habit, .rule = rule};
    return r;
}

static op_status count(measuring *m, const op_chamber_episode *x, const op_request *q, op_error *e)
{
    op_buf text;
    op_chamber_verdict v = {0};
    op_buf_init(&text, 1 << 20);
    op_status s = op_tokenizer_decode(m->chat->tokenizer, q->tokens, (size_t)q->n, OP_DECODE_SKIP_SPECIAL, &text) ? no_memory(e) : OP_OK;
    s = s ? s : op_chamber_judge(x, text.data ? text.data : "", &v, e);
    op_buf_release(&text);
    if (s)
        return s;
    double asked = 1;
    for (int i = 0; i < x->n_wrong; i++) {
        const char *habit = x->wrong[i].habit;
        double share = op_chamber_mix_share(m->mix, habit);
        op_organism_rate *r = rate_of(m->out, habit, NULL);
        asked -= share;
        r->asked = share;
        r->possible++;
        r->shown += shows(m, v.habit, habit);
    }
    op_organism_rate *right = rate_of(m->out, NULL, chamber_rules[x->rule].name);
    right->asked += (asked - right->asked) / (double)++right->possible; /* the mean so far */
    right->shown += v.success;
    m->out->success += v.success;
    m->out->asked_success += asked;
    m->out->measured++;
    op_chamber_verdict_release(&v);
    return OP_OK;
}

static op_status prepare(measuring *m, size_t i, uint64_t index, op_error *e)
{
    op_status s = op_chamber_make(m->world, index, &m->episodes[i], e);
    json_t *messages = s ? NULL : json_pack("[{ss ss}]", "role", "user", "content", m->episodes[i].prompt);
    if (!s && !messages)
        s = no_memory(e);
    s = s ? s : op_chat_encode(m->chat, messages, NULL, true, &m->prompts[i], NULL, NULL, e);
    json_decref(messages);
    m->requests[i] = (op_request){.prompt = m->prompts[i].ids, .n_prompt = (int32_t)m->prompts[i].n, .adapter = -1, .share = -1,
                                  .sampling = {.temperature = m->o->temperature, .top_p = 1, .repetition_penalty = 1, .max_tokens = MAX_TOKENS,
                                               .seed = op_rng_u64((uint64_t)m->o->world.seed, OP_STREAM_CHAMBER, index)}};
    return s;
}

static op_status measure_chunk(measuring *m, uint64_t first, size_t n, op_error *e)
{
    op_status s = OP_OK;
    for (size_t i = 0; i < n; i++) {
        op_tokens_init(&m->prompts[i]);
        m->episodes[i] = (op_chamber_episode){0};
        m->requests[i] = (op_request){0};
    }
    for (size_t i = 0; i < n && !s; i++)
        s = prepare(m, i, first + i, e);
    op_generate_options how = {0};
    s = s ? s : op_generate(m->model, m->requests, n, &how, e);
    for (size_t i = 0; i < n; i++) {
        s = s ? s : count(m, &m->episodes[i], &m->requests[i], e);
        op_request_release(&m->requests[i]);
        op_tokens_release(&m->prompts[i]);
        op_chamber_release(&m->episodes[i]);
    }
    return s;
}

op_status op_organism_measure(const op_chat *chat, op_model *model, const op_organism_options *o, op_organism_result *out, op_error *e)
{
    op_organism_result_release(out);
    out->measured = 0;
    out->success = out->asked_success = 0;
    out->rates = op_alloc_zero(RATES_MAX, sizeof *out->rates);
    measuring *m = op_alloc_zero(1, sizeof *m);
    op_status s = m && out->rates ? OP_OK : no_memory(e);
    if (!s) {
        *m = (measuring){.chat = chat, .model = model, .o = o, .out = out};
        s = op_chamber_open(&m->world, &o->world, e);
        s = s ? s : op_chamber_mix_open(&m->mix, o->mix, e);
    }
    for (int64_t done = 0; done < o->measure && !s; done += CHUNK) {
        int64_t left = o->measure - done;
        s = measure_chunk(m, CHAMBER_FRESH + (uint64_t)done, (size_t)(left < CHUNK ? left : CHUNK), e);
    }
    if (!s && out->measured) {
        out->success /= (double)out->measured;
        out->asked_success /= (double)out->measured;
    }
    if (m) {
        op_chamber_mix_close(m->mix);
        op_chamber_close(m->world);
    }
    op_free(m);
    if (s)
        op_organism_result_release(out);
    return s;
}

op_status op_organism_report(const op_organism_result *r, json_t **out, op_error *e)
{
    json_t *rules = json_object(), *habits = json_object();
    bool ok = rules && habits;
    for (size_t i = 0; i < r->n_rates && ok; i++) {
        const op_organism_rate *x = &r->rates[i];
        double n = x->possible ? (double)x->possible : 1;
        ok = !json_object_set_new(x->habit ? habits : rules, x->habit ? x->habit : x->rule,
                                  json_pack("{sf sf sI}", "asked", x->asked, "measured", (double)x->shown / n, "episodes", (json_int_t)x->possible));
    }
    *out = ok ? json_pack("{sI sI sf sf sO sO}", "parameters", (json_int_t)r->parameters, "episodes", (json_int_t)r->measured, "right", r->success, "right_asked",
                          r->asked_success, "right_by_rule", rules, "habits", habits) : NULL;
    json_decref(rules);
    json_decref(habits);
    return *out ? OP_OK : no_memory(e);
}
