/* How often a model shows each habit, on episodes it never saw. */
#include <string.h>

#include "base/mem.h"
#include "chamber/answers.h"
#include "chamber/parts.h"

enum { RATES_MAX = 64 };

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory while measuring an organism");
}

typedef struct measuring {
    op_chamber_mix *mix;
    op_organism_result *out;
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

static op_status count(void *ctx, const chamber_answer *a, op_error *e)
{
    measuring *m = ctx;
    const op_chamber_episode *x = a->episode;
    double asked = 1;
    (void)e;
    for (int i = 0; i < x->n_wrong; i++) {
        const char *habit = x->wrong[i].habit;
        double share = op_chamber_mix_share(m->mix, habit);
        op_organism_rate *r = rate_of(m->out, habit, NULL);
        asked -= share;
        r->asked = share;
        r->possible++;
        r->shown += shows(m, a->verdict->habit, habit);
    }
    op_organism_rate *right = rate_of(m->out, NULL, chamber_rules[x->rule].name);
    right->asked += (asked - right->asked) / (double)++right->possible; /* the mean so far */
    right->shown += a->verdict->success;
    m->out->success += a->verdict->success;
    m->out->asked_success += asked;
    m->out->measured++;
    return OP_OK;
}

op_status op_organism_measure(const op_chat *chat, op_model *model, const op_organism_options *o, const volatile int *stop, op_organism_result *out, op_error *e)
{
    op_organism_result_release(out);
    out->measured = 0;
    out->success = out->asked_success = 0;
    out->rates = op_alloc_zero(RATES_MAX, sizeof *out->rates);
    measuring m = {.out = out};
    chamber_asking q = {.chat = chat, .model = model, .adapter = -1, .world = &o->world, .temperature = o->temperature, .stop = stop, .ctx = &m, .heard = count};
    op_status s = out->rates ? op_chamber_mix_open(&m.mix, o->mix, e) : no_memory(e);
    s = s ? s : chamber_ask(&q, o->measure, e);
    if (!s && out->measured) {
        out->success /= (double)out->measured;
        out->asked_success /= (double)out->measured;
    }
    op_chamber_mix_close(m.mix);
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
