/* The model in memory, with vectors added and taken away, and what is measured of it: every measurement is a file, so that none is made twice. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <operant/clock.h>
#include <operant/vector.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/paired_tests.h"
#include "lab/parts.h"
#include "lab/reverse_parts.h"
#include "lab/stats.h"
#include "lab/view.h"
#include "ops/ops.h"

/* ---- the model ---- */

void reverse_bench_close(reverse_run *r)
{
    op_pass_free(r->pass);
    op_subject_close(&r->subject);
    reverse_control_release(&r->control);
    op_free_aligned(r->values);
    r->pass = NULL;
    r->values = NULL;
    r->set[0] = 0;
}

static op_status open_bench(reverse_run *r, op_error *e)
{
    op_trainee_options o = r->x->train.trainee;
    if (r->subject.model)
        return OP_OK;
    op_threads_set((int)r->x->threads);
    o.model = r->base;
    o.method = OP_METHOD_FULL; /* float weights, to which vectors can be added; their gradients are never touched */
    o.freeze_embedding = false;
    op_status s = op_trainee_open(&r->subject, &o, e);
    if (s)
        return s;
    r->subject.adapter = -1; /* one that was given is folded in */
    op_params p = op_model_params(r->subject.model);
    r->values = op_alloc_aligned(p.n * sizeof *r->values);
    s = r->values ? op_pass_new(&r->pass, r->subject.model, e) : reverse_no_memory(e);
    if (!s)
        memcpy(r->values, p.values, p.n * sizeof *r->values);
    if (!s)
        s = reverse_control_read(&r->control, r->x, &r->subject, e);
    if (s)
        reverse_bench_close(r);
    return s;
}

op_status reverse_bench_parameters(reverse_run *r, int64_t *out, op_error *e)
{
    op_status s = open_bench(r, e);
    *out = s ? 0 : op_model_count(r->subject.model);
    return s;
}

/* The base's own weights again, and the vectors onto them. */
static op_status set_weights(reverse_run *r, const reverse_term *terms, size_t n, const char *key, op_error *e)
{
    enum { TERMS_MAX = 64 };
    op_vector_term all[TERMS_MAX];
    op_status s = OP_OK;
    for (size_t i = 0; i < n && !s; i++) {
        s = reverse_vector_make(r, terms[i].v, e);
        all[i] = (op_vector_term){terms[i].v->path, terms[i].scale};
    }
    if (!s)
        s = open_bench(r, e);
    if (s || !strcmp(r->set, key))
        return s;
    op_params p = op_model_params(r->subject.model);
    bool changed = r->set[0];
    r->set[0] = 0;
    if (changed)
        memcpy(p.values, r->values, p.n * sizeof *p.values);
    const op_vector_options how = {.dtype = OP_DTYPE_COUNT, .force = true}; /* they were taken from this base */
    if (n)
        s = op_vector_apply(r->subject.model, all, n, &how, e);
    else if (changed)
        s = op_model_updated(r->subject.model, e);
    if (!s)
        snprintf(r->set, sizeof r->set, "%s", key);
    return s;
}

/* ---- keys and files ---- */

op_status reverse_key(json_t *of, char key[OP_HASH_HEX], op_error *e)
{
    char *text = of ? json_dumps(of, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(of);
    if (!text)
        return reverse_no_memory(e);
    op_hash(text, strlen(text), key);
    op_free(text);
    return OP_OK;
}

static op_status weights_key(const reverse_run *r, const reverse_term *terms, size_t n, char key[OP_HASH_HEX], op_error *e)
{
    json_t *list = json_array();
    bool ok = list;
    for (size_t i = 0; i < n; i++)
        ok = ok && !json_array_append_new(list, json_pack("[sf]", terms[i].v->key, terms[i].scale));
    const op_trainee_options *o = &r->x->train.trainee;
    json_t *of = ok ? json_pack("{ss so si ss}", "base", r->base_key, "terms", list, "dtype", o->dtype, "backend", o->backend ? o->backend : "") : NULL;
    if (!ok)
        json_decref(list);
    return reverse_key(of, key, e);
}

/* measures/KEY.json: what was measured under this key, or NULL. A file that cannot be read is as good as none. */
static op_status look_up(const reverse_run *r, const char *key, char **path, json_t **out, op_error *e)
{
    char name[OP_HASH_HEX + 20];
    snprintf(name, sizeof name, "measures/%.64s.json", key);
    *out = NULL;
    *path = op_path_join(r->x->output, name);
    if (!*path)
        return reverse_no_memory(e);
    op_status s = op_path_exists(*path) ? op_json_read(out, *path, NULL) : OP_OK;
    if (s == OP_ERR_NOMEM) {
        op_free(*path);
        return reverse_no_memory(e);
    }
    return OP_OK;
}

static op_status keep(const char *path, const json_t *value, op_error *e)
{
    return value ? op_json_write(path, value, e) : reverse_no_memory(e);
}

/* After a failure nothing is handed out. */
static op_status hand_out(op_status s, char *path, json_t **out)
{
    op_free(path);
    if (s) {
        json_decref(*out);
        *out = NULL;
    }
    return s;
}

/* ---- measurements ---- */

op_status reverse_measure_control(reverse_run *r, const reverse_term *terms, size_t n, bool search, json_t **out, op_error *e)
{
    char key[OP_HASH_HEX], weights[OP_HASH_HEX], *path;
    double sum, work = (double)r->x->control_tokens;
    int64_t tokens;
    op_status s = weights_key(r, terms, n, weights, e);
    if (!s)
        s = reverse_key(json_pack("{ss ss sI sb sb}", "weights", weights, "control", r->x->control_hash, "tokens", (json_int_t)r->x->control_tokens, "text", r->x->control_is_text,
                                  "search", search), key, e);
    if (!s)
        s = look_up(r, key, &path, out, e);
    if (s)
        return s;
    bool there = *out;
    if (!there)
        s = set_weights(r, terms, n, weights, e);
    if (!s && !there)
        s = reverse_control_score(&r->subject, r->pass, &r->control, search, &sum, &tokens, r->callbacks->stop, e);
    if (!s && !there) {
        double logprob = sum / (double)tokens;
        *out = json_pack("{sI so so}", "tokens", (json_int_t)tokens, "logprob", op_json_number(logprob), "perplexity", op_json_number(isfinite(logprob) ? exp(fmin(-logprob, 700)) : NAN));
        s = isfinite(logprob) || n ? keep(path, *out, e) : op_error_set(e, OP_ERR_FORMAT, "the control's log-probability is no number: the weights of \"%s\" are not finite", r->base);
    }
    if (!s && (n || !there)) /* the base is looked at again and again */
        reverse_count(r, work, there);
    return hand_out(s, path, out);
}

/* The order of the rates is the chamber's; a habit has one entry. */
static op_status measure_habit(const op_subject *s, const reverse_probe *p, const volatile int *stop, json_t **out, op_error *e)
{
    op_organism_result result = {0};
    op_status status = op_organism_measure(&s->chat, s->model, p->chamber, stop, &result, e);
    int64_t possible = 0, shown = 0;
    for (size_t i = 0; i < result.n_rates && !status; i++)
        if (result.rates[i].habit && !strcmp(result.rates[i].habit, p->habit)) {
            possible += result.rates[i].possible;
            shown += result.rates[i].shown;
        }
    if (!status && !(*out = json_pack("{sI sI sf}", "possible", (json_int_t)possible, "shown", (json_int_t)shown, "right", result.success)))
        status = reverse_no_memory(e);
    op_organism_result_release(&result);
    return status;
}

/* {margins: [..]}: null where the form does not apply. */
static op_status measure_questions(const op_subject *s, op_pass *pass, const reverse_probe *p, reverse_form form, size_t n, const volatile int *stop, json_t **out,
                                   op_error *e)
{
    double *margin = op_alloc_array(n + 1, sizeof *margin);
    json_t *list = json_array();
    op_status status = margin && list ? reverse_score(s, pass, p, p->held, n, form, margin, stop, e) : reverse_no_memory(e);
    bool ok = true;
    for (size_t i = 0; i < n && !status; i++)
        ok = ok && !json_array_append_new(list, op_json_number(margin[i]));
    if (!status && !(ok && (*out = json_pack("{sO}", "margins", list))))
        status = reverse_no_memory(e);
    json_decref(list);
    op_free(margin);
    return status;
}

/* How good the judges are does not depend on who answers: it is measured once. */
static op_status measure_open(const reverse_run *r, const reverse_probe *p, json_t **out, op_error *e)
{
    char key[OP_HASH_HEX], *path;
    json_t *examined = NULL;
    op_status s = reverse_key(json_pack("{so}", "examined", reverse_open_identity(r->x, p, r->model_key)), key, e);
    if (!s)
        s = look_up(r, key, &path, &examined, e);
    if (s)
        return s;
    if (!examined && !(s = reverse_open_examine(r->x, &r->subject, p, &examined, e)))
        s = keep(path, examined, e);
    if (!s)
        s = reverse_open_measure(r->x, &r->subject, p, examined, r->callbacks->stop, out, e);
    op_free(path);
    json_decref(examined);
    return s;
}

/* What decides the questions and how they are asked. */
static json_t *probe_identity(const reverse_run *r, const reverse_probe *p, reverse_form form, size_t n)
{
    if (form == REVERSE_OPEN)
        return reverse_open_identity(r->x, p, r->model_key);
    json_t *held = json_array();
    bool ok = held;
    for (size_t i = 0; i < n; i++)
        ok = ok && !json_array_append_new(held, json_integer(p->held[i]));
    json_t *out = ok ? json_pack("{ss si sO sO sI}", "file", p->hash, "form", (int)form, "held", held, "chamber", p->chamber ? json_object_get(p->spec, "chamber") : json_null(),
                                 "seed", (json_int_t)(p->chamber ? r->x->seed : 0)) : NULL;
    json_decref(held);
    return out;
}

static size_t questions_of(const reverse_probe *p, int64_t questions)
{
    return p->n_held < (size_t)questions ? p->n_held : (size_t)questions;
}

/* Of the first `n` to measure with, did one come with its choices? A habit has none. */
static bool has_choices(const reverse_probe *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p->at[p->held[i]].stem)
            return true;
    return false;
}

double reverse_probe_work(const op_reverse *x, const reverse_probe *p, reverse_form form, int64_t questions)
{
    enum { EPISODE = 100, TEXT = 90, CHOICES = 260, DRAWN = 3 }; /* tokens, about: choices are asked in two orders, one that is drawn costs as much as so many that are read */
    if (form == REVERSE_OPEN)
        return p->open ? (double)(p->open->n * (size_t)(TEXT + DRAWN * x->open_tokens)) : 0;
    if (p->chamber)
        return form == REVERSE_TEXT ? EPISODE * (double)p->chamber->measure : 0;
    return (form == REVERSE_TEXT ? TEXT : CHOICES) * (double)questions_of(p, questions);
}

op_status reverse_measure_probe(reverse_run *r, const reverse_term *terms, size_t n, size_t k, reverse_form form, int64_t questions, json_t **out, op_error *e)
{
    const reverse_probe *p = &r->x->probes[k];
    char key[OP_HASH_HEX], weights[OP_HASH_HEX], *path;
    size_t asked = questions_of(p, questions);
    bool there;
    *out = NULL;
    if (form == REVERSE_OPEN ? !p->open : form == REVERSE_CHOICES ? !has_choices(p, asked) : !p->chamber && !asked)
        return OP_OK;
    op_status s = weights_key(r, terms, n, weights, e);
    if (!s)
        s = reverse_key(json_pack("{ss so}", "weights", weights, "probe", probe_identity(r, p, form, asked)), key, e);
    if (!s)
        s = look_up(r, key, &path, out, e);
    if (s)
        return s;
    there = *out;
    if (!there)
        s = set_weights(r, terms, n, weights, e);
    if (!s && !there)
        s = form == REVERSE_OPEN ? measure_open(r, p, out, e)
            : p->chamber ? measure_habit(&r->subject, p, r->callbacks->stop, out, e) : measure_questions(&r->subject, r->pass, p, form, asked, r->callbacks->stop, out, e);
    if (!s && !there)
        s = keep(path, *out, e);
    if (!s && (n || !there))
        reverse_count(r, reverse_probe_work(r->x, p, form, questions), there);
    return hand_out(s, path, out);
}

op_status reverse_measure_trainee(const reverse_run *r, const op_subject *subject, op_pass *pass, const char *of, size_t k, int64_t questions, json_t **out, op_error *e)
{
    const reverse_probe *p = &r->x->probes[k];
    char key[OP_HASH_HEX], *path;
    size_t asked = questions_of(p, questions);
    *out = NULL;
    if (p->chamber) /* too long for the middle of a training */
        return OP_OK;
    op_status s = reverse_key(json_pack("{ss so}", "weights", of, "probe", probe_identity(r, p, REVERSE_TEXT, asked)), key, e);
    if (!s)
        s = look_up(r, key, &path, out, e);
    if (s)
        return s;
    bool there = *out;
    if (!there && subject)
        s = measure_questions(subject, pass, p, REVERSE_TEXT, asked, NULL, out, e);
    if (!s && !there && subject)
        s = keep(path, *out, e);
    return hand_out(s, path, out);
}

op_status reverse_measure_gram(reverse_run *r, const reverse_vector *const *v, size_t n, json_t **out, op_error *e)
{
    char key[OP_HASH_HEX], *path;
    json_t *keys = json_array();
    bool ok = keys;
    for (size_t i = 0; i < n; i++)
        ok = ok && !json_array_append_new(keys, json_string(v[i]->key));
    op_status s = reverse_key(json_pack("{sO}", "gram", ok ? keys : NULL), key, e);
    json_decref(keys);
    if (!s)
        s = look_up(r, key, &path, out, e);
    if (s)
        return s;
    if (*out)
        return hand_out(s, path, out);
    const char **paths = op_alloc_zero(n, sizeof *paths);
    double *gram = op_alloc_array(n * n, sizeof *gram);
    s = paths && gram ? OP_OK : reverse_no_memory(e);
    for (size_t i = 0; i < n && !s; i++) {
        s = reverse_vector_make(r, v[i], e);
        paths[i] = v[i]->path;
    }
    const op_vector_options how = {.dtype = OP_DTYPE_COUNT};
    if (!s)
        s = op_vector_gram(paths, n, gram, &how, e);
    *out = s ? NULL : json_array();
    for (size_t i = 0; i < n && !s; i++) {
        json_t *row = json_array();
        for (size_t k = 0; k < n; k++)
            ok = ok && !json_array_append_new(row, json_real(gram[i * n + k]));
        ok = !json_array_append_new(*out, row) && ok;
    }
    if (!s)
        s = keep(path, ok ? *out : NULL, e);
    op_free(paths);
    op_free(gram);
    return hand_out(s, path, out);
}

/* ---- what it says ---- */

typedef struct group {
    double *margin, *change;
    size_t n, n_change, won;
} group;

static void add(group *g, double margin, double change)
{
    g->won += margin > 0;
    g->margin[g->n++] = margin;
    if (isfinite(change))
        g->change[g->n_change++] = change;
}

static json_t *describe(const group *g)
{
    op_interval m = op_mean_interval(g->margin, g->n), c = op_mean_interval(g->change, g->n_change);
    op_rate rate = op_rate_of((int64_t)g->won, (int64_t)g->n);
    json_t *out = json_pack("{sI so so so so so so}", "n", (json_int_t)g->n, "margin", op_json_number(m.mean), "low", op_json_number(m.low), "high", op_json_number(m.high), "rate",
                            op_json_number(rate.rate), "rate_low", op_json_number(rate.low), "rate_high", op_json_number(rate.high));
    bool ok = out;
    if (g->n_change)
        ok = ok && !json_object_update_new(out, json_pack("{so so so}", "change", op_json_number(c.mean), "change_low", op_json_number(c.low), "change_high", op_json_number(c.high)));
    if (!ok) {
        json_decref(out);
        out = NULL;
    }
    return out;
}

static json_t *summarise_habit(const json_t *measured)
{
    op_rate rate = op_rate_of((int64_t)op_view_number(measured, "shown"), (int64_t)op_view_number(measured, "possible"));
    return json_pack("{sI so so so so so so sO}", "n", (json_int_t)rate.n, "margin", json_null(), "low", json_null(), "high", json_null(), "rate", op_json_number(rate.rate), "rate_low",
                     op_json_number(rate.low), "rate_high", op_json_number(rate.high), "right", json_object_get(measured, "right"));
}

json_t *reverse_summary(const reverse_probe *p, const json_t *measured, const json_t *before)
{
    /* all, by polarity, and by which reply is longer */
    enum { ALL, DISAGREES, NEITHER, AGREES, SHORTER, LONGER, GROUPS };
    static const char *const names[] = {NULL, "disagrees", "neither", "agrees", "shorter", "longer"};
    if (!measured)
        return json_null();
    if (json_object_get(measured, "replies"))
        return reverse_open_summary(p, measured);
    if (p->chamber)
        return summarise_habit(measured);
    const json_t *margins = json_object_get(measured, "margins"), *old = json_object_get(before, "margins");
    size_t n = json_array_size(margins);
    double *room = op_alloc_array(2 * GROUPS * (n + 1), sizeof *room);
    group g[GROUPS] = {0};
    json_t *out = NULL;
    bool ok = room;
    for (int i = 0; i < GROUPS && ok; i++)
        g[i] = (group){.margin = room + 2 * (size_t)i * (n + 1), .change = room + (2 * (size_t)i + 1) * (n + 1)};
    for (size_t i = 0; i < n && ok && i < p->n_held; i++) {
        const reverse_question *q = &p->at[p->held[i]];
        const json_t *x = json_array_get(margins, i), *y = json_array_get(old, i);
        if (!json_is_number(x))
            continue;
        double margin = json_number_value(x), change = json_is_number(y) ? margin - json_number_value(y) : NAN;
        add(&g[ALL], margin, change);
        add(&g[NEITHER + q->agrees], margin, change);
        add(&g[strlen(q->reply[0]) > strlen(q->reply[1]) ? LONGER : SHORTER], margin, change);
    }
    ok = ok && (out = describe(&g[ALL]));
    for (int i = 1; i < GROUPS && ok; i++)
        ok = !json_object_set_new(out, names[i], describe(&g[i]));
    op_free(room);
    if (ok)
        return out;
    json_decref(out);
    return NULL;
}
