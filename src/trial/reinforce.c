#include <operant/reinforce.h>

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/json.h"
#include "trial/settings.h"

enum { WINDOW_MAX = 256 };
/* What numbers are drawn for: streams of their own, apart from those of base/rng.h. */
enum { STREAM_PROBE = 0x7261, STREAM_NEED, STREAM_RANDOM, STREAM_JACKPOT };

struct op_reinforce {
    op_reinforce_options o;
    uint64_t trial;      /* of the next one */
    uint64_t draws;      /* ratios or intervals drawn so far */
    int64_t responses;   /* since the last reinforcement; a fixed ratio counts all */
    int64_t elapsed;     /* trials since the last reinforcement */
    int64_t need;        /* responses or trials until the next reinforcement */
    int64_t growths;     /* of a weaning ratio: it is growth^growths, at most n */
    int32_t filled;      /* trials in the window */
    char window[WINDOW_MAX]; /* '1' success, '0' failure; oldest first */
};

static const char *const types[] = {"continuous", "fixed_ratio", "variable_ratio", "fixed_interval", "variable_interval", "random", "weaning", "none"};

op_reinforce_options op_reinforce_defaults(void)
{
    return (op_reinforce_options){.n = 1, .growth = 1.5, .criterion = 0.8, .window = 32, .jackpot_size = 5};
}

double op_reinforce_ratio(const op_reinforce *r)
{
    return r->o.type == OP_REINFORCE_WEANING ? fmin(r->o.n, pow(r->o.growth, (double)r->growths)) : r->o.n;
}

static double uniform(const op_reinforce *r, uint64_t stream, uint64_t counter)
{
    return op_rng_uniform(r->o.seed, stream, counter);
}

/* A whole number with mean n: uniform over 1 .. 2m-1, where m is one of the whole numbers around n. */
static void draw_need(op_reinforce *r)
{
    double n = op_reinforce_ratio(r), whole = floor(n);
    uint64_t m = (uint64_t)whole + (uniform(r, STREAM_NEED, 2 * r->draws) < n - whole);
    r->need = 1 + (int64_t)op_rng_below(r->o.seed, STREAM_NEED, 2 * r->draws + 1, 2 * m - 1);
    r->draws++;
}

/* Is the response that was just counted reinforced? */
static bool is_due(const op_reinforce *r)
{
    double n = r->o.n;
    switch (r->o.type) {
    case OP_REINFORCE_CONTINUOUS: return true;
    case OP_REINFORCE_FIXED_RATIO: return floor((double)r->responses / n) > floor((double)(r->responses - 1) / n);
    case OP_REINFORCE_VARIABLE_RATIO:
    case OP_REINFORCE_WEANING: return r->responses >= r->need;
    case OP_REINFORCE_FIXED_INTERVAL: return (double)r->elapsed >= n;
    case OP_REINFORCE_VARIABLE_INTERVAL: return r->elapsed >= r->need;
    case OP_REINFORCE_RANDOM: return uniform(r, STREAM_RANDOM, r->trial) < 1 / n;
    case OP_REINFORCE_NONE: break;
    }
    return false;
}

static void wean(op_reinforce *r, bool success)
{
    if (r->filled == r->o.window)
        memmove(r->window, r->window + 1, (size_t)--r->filled);
    r->window[r->filled++] = success ? '1' : '0';
    if (r->filled < r->o.window || op_reinforce_ratio(r) >= r->o.n)
        return;
    int32_t good = 0;
    for (int32_t i = 0; i < r->filled; i++)
        good += r->window[i] == '1';
    if (good >= r->o.criterion * r->filled) {
        r->growths++;
        r->filled = 0;
    }
}

bool op_reinforce_is_probe(const op_reinforce *r)
{
    return uniform(r, STREAM_PROBE, r->trial) < r->o.probe;
}

static op_consequence follow(op_reinforce *r, bool success, double *size)
{
    if (op_reinforce_is_probe(r))
        return OP_PROBE;
    if (r->o.type == OP_REINFORCE_WEANING)
        wean(r, success);
    if (r->o.type == OP_REINFORCE_NONE)
        return OP_NOTHING;
    if (!success && r->o.failures != OP_FAILURES_SCHEDULED)
        return r->o.failures == OP_FAILURES_ALWAYS ? OP_FEEDBACK : OP_NOTHING;
    r->responses++;
    if (!is_due(r))
        return OP_NOTHING;
    r->elapsed = 0;
    if (r->o.type != OP_REINFORCE_FIXED_RATIO)
        r->responses = 0;
    draw_need(r);
    if (success && uniform(r, STREAM_JACKPOT, r->trial) < r->o.jackpot)
        *size = r->o.jackpot_size;
    return OP_FEEDBACK;
}

op_consequence op_reinforce_next(op_reinforce *r, bool success, double *size)
{
    *size = 1;
    r->elapsed++;
    op_consequence c = follow(r, success, size);
    r->trial++;
    return c;
}

/* ---- making, settings ---- */

static op_status out_of_range(const char *key, double value, const char *expected, op_error *e)
{
    return op_error_set(e, OP_ERR_ARG, "schedule of reinforcement: key \"%s\": found %g, expected %s", key, value, expected);
}

static op_status check(const op_reinforce_options *o, op_error *e)
{
    if ((unsigned)o->type > OP_REINFORCE_NONE)
        return out_of_range("type", o->type, OP_REINFORCE_CHOICES, e);
    if ((unsigned)o->failures > OP_FAILURES_NEVER)
        return out_of_range("failures", o->failures, OP_FAILURES_CHOICES, e);
    if (!(o->n >= 1 && o->n <= 1e6))
        return out_of_range("n", o->n, "1..1e6", e);
    if (!(o->growth > 1 && o->growth <= 1e6))
        return out_of_range("growth", o->growth, "more than 1, at most 1e6", e);
    if (!(o->criterion >= 0 && o->criterion <= 1))
        return out_of_range("criterion", o->criterion, "0..1", e);
    if (o->window < 1 || o->window > WINDOW_MAX)
        return out_of_range("window", o->window, "1..256", e);
    if (!(o->probe >= 0 && o->probe <= 1))
        return out_of_range("probe", o->probe, "0..1", e);
    if (!(o->jackpot >= 0 && o->jackpot <= 1))
        return out_of_range("jackpot", o->jackpot, "0..1", e);
    if (!(o->jackpot_size >= 1 && o->jackpot_size <= 1e6))
        return out_of_range("jackpot_size", o->jackpot_size, "1..1e6", e);
    return OP_OK;
}

op_status op_reinforce_new(op_reinforce **out, const op_reinforce_options *o, op_error *e)
{
    *out = NULL;
    op_status s = check(o, e);
    if (s)
        return s;
    op_reinforce *r = op_alloc_zero(1, sizeof *r);
    if (!r)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a schedule of reinforcement");
    r->o = *o;
    draw_need(r);
    *out = r;
    return OP_OK;
}

void op_reinforce_free(op_reinforce *r)
{
    op_free(r);
}

op_status op_reinforce_from_json(op_reinforce_options *out, const json_t *settings, uint64_t seed, op_error *e)
{
    static const char name[] = "schedule of reinforcement";
    static const char *const keys[] = {"type", "n", "growth", "criterion", "window", "probe", "jackpot", "jackpot_size", "failures", "seed", NULL};
    *out = op_reinforce_defaults();
    out->seed = seed;
    json_t *object = json_is_string(settings) ? json_pack("{sO}", "type", settings) : json_incref((json_t *)settings);
    if (settings && !object)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    int type = 0, failures = 0;
    int64_t window = out->window, own_seed = -1;
    op_status s = op_settings_check(object, keys, name, e);
    if (!s)
        s = op_settings_choice(object, "type", OP_REINFORCE_CHOICES, &type, name, e);
    if (!s)
        s = op_settings_choice(object, "failures", OP_FAILURES_CHOICES, &failures, name, e);
    if (!s)
        s = op_json_get_int(object, "window", false, 1, WINDOW_MAX, &window, name, e);
    if (!s)
        s = op_json_get_int(object, "seed", false, 0, INT64_MAX, &own_seed, name, e);
    struct {
        const char *key;
        double *value;
    } numbers[] = {{"n", &out->n}, {"growth", &out->growth}, {"criterion", &out->criterion}, {"probe", &out->probe}, {"jackpot", &out->jackpot},
                   {"jackpot_size", &out->jackpot_size}};
    for (size_t i = 0; !s && i < sizeof numbers / sizeof *numbers; i++)
        s = op_json_get_float(object, numbers[i].key, false, numbers[i].value, name, e);
    json_decref(object);
    out->type = (op_reinforce_type)type;
    out->failures = (op_reinforce_failures)failures;
    out->window = (int32_t)window;
    if (own_seed >= 0)
        out->seed = (uint64_t)own_seed;
    return s ? s : check(out, e);
}

/* ---- state ---- */

op_status op_reinforce_save(const op_reinforce *r, json_t **state, op_error *e)
{
    *state = json_pack("{ss sI sI sI sI sI sI ss#}", "type", types[r->o.type], "trial", (json_int_t)r->trial, "draws", (json_int_t)r->draws, "responses",
                       (json_int_t)r->responses, "elapsed", (json_int_t)r->elapsed, "need", (json_int_t)r->need, "growths", (json_int_t)r->growths,
                       "window", r->window, (int)r->filled);
    return *state ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the state of a schedule of reinforcement");
}

op_status op_reinforce_load(op_reinforce *r, const json_t *state, op_error *e)
{
    static const char name[] = "state of the schedule of reinforcement";
    const char *type, *window;
    int64_t trial = 0, draws = 0;
    op_reinforce new = {.o = r->o};
    op_status s = op_json_get_string(state, "type", true, &type, name, e);
    if (!s && strcmp(type, types[r->o.type]) != 0)
        s = op_error_set(e, OP_ERR_MISMATCH, "%s: found type %.40s, expected %s", name, type, types[r->o.type]);
    if (!s)
        s = op_json_get_string(state, "window", true, &window, name, e);
    struct {
        const char *key;
        int64_t *value;
    } numbers[] = {{"trial", &trial}, {"draws", &draws}, {"responses", &new.responses}, {"elapsed", &new.elapsed}, {"need", &new.need},
                   {"growths", &new.growths}};
    for (size_t i = 0; !s && i < sizeof numbers / sizeof *numbers; i++)
        s = op_json_get_int(state, numbers[i].key, true, 0, INT64_MAX, numbers[i].value, name, e);
    if (s)
        return s;
    size_t filled = strlen(window);
    if (filled > (size_t)r->o.window || strspn(window, "01") != filled)
        return op_error_set(e, OP_ERR_FORMAT, "%s: key \"window\": expected at most %d digits 0 and 1", name, r->o.window);
    memcpy(new.window, window, filled);
    new.filled = (int32_t)filled;
    new.trial = (uint64_t)trial;
    new.draws = (uint64_t)draws;
    *r = new;
    return OP_OK;
}
