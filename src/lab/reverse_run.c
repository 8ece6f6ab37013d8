/* The stages of a reversal, one after the other; what each works out is kept by those that work it out (reverse_bench.c, reverse_train.c). */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <operant/clock.h>
#include <operant/vector.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/parts.h"
#include "lab/reverse_parts.h"
#include "lab/view.h"

/* ---- progress ---- */

static void tell(const reverse_run *r)
{
    double spent = op_seconds() - r->began, left = fmax(r->total - r->skipped - r->done, 0);
    op_reverse_progress p = {.what = r->what, .done = r->done / fmax(r->done + left, 1), .eta_s = r->done > 0 ? spent / r->done * left : NAN};
    if (r->callbacks->progress)
        r->callbacks->progress(r->callbacks->ctx, &p);
}

op_status reverse_say(reverse_run *r, op_error *e, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(r->what, sizeof r->what, format, args);
    va_end(args);
    tell(r);
    return r->callbacks->stop && *r->callbacks->stop ? op_error_set(e, OP_ERR_INTERRUPTED, "stopped; the same call goes on from here") : OP_OK;
}

void reverse_count(reverse_run *r, double work, bool there)
{
    *(there ? &r->skipped : &r->done) += work;
    tell(r);
}

/* ---- the plan ---- */

static double trainings(const op_reverse *x)
{
    return (double)x->n_traits * (1 + x->arms[REVERSE_OPPOSITE] + x->arms[REVERSE_ASCENT]);
}

static double train_tokens(const op_reverse *x)
{
    double tokens = 0;
    for (size_t k = 0; k < x->n_traits; k++)
        tokens += reverse_training_tokens(x, &x->probes[k]);
    return tokens * trainings(x) / (double)x->n_traits;
}

/* Of one round. */
static double score_tokens(const op_reverse *x)
{
    double arms = 0, control = (double)x->control_tokens, text = 0, choices = 0, watched = 0, points = 0, ends = 0;
    for (int a = 0; a < REVERSE_ARMS; a++)
        arms += x->arms[a];
    for (size_t k = 0; k < x->n; k++) {
        const reverse_probe *p = &x->probes[k];
        text += reverse_probe_work(x, p, REVERSE_TEXT, x->n_probe) + reverse_probe_work(x, p, REVERSE_OPEN, 0);
        choices += reverse_probe_work(x, p, REVERSE_CHOICES, x->n_choices);
        watched += x->watch_times && !p->chamber ? reverse_probe_work(x, p, REVERSE_TEXT, x->watch_questions) : 0;
        if (!p->trait)
            continue;
        points += (arms * (double)(3 + x->refine) + 1) * (control + reverse_probe_work(x, p, REVERSE_TEXT, x->n_search));
        ends += arms * (control + reverse_probe_work(x, p, REVERSE_TEXT, x->n_probe));
    }
    double traits = (double)x->n_traits, base = 2 * control + text + choices + watched, trained = traits * (control + text),
           after = (traits + 1) * (control + text + choices) + control * (1 + (double)x->refine / 2);
    return base + trained + points + ends + after;
}

/* Free space where `path` lies or will lie; -1: unknown. */
static int64_t free_bytes(const char *path)
{
    char *at = op_strdup(path);
    struct statvfs fs;
    int64_t out = -1;
    while (at && !op_path_exists(at) && strrchr(at, '/') > at)
        *strrchr(at, '/') = 0;
    if (at && !statvfs(op_path_exists(at) ? at : ".", &fs))
        out = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize;
    op_free(at);
    return out;
}

/* Vectors and results of every round stay; of what is in training there is one: its weights with both moments, and the model that comes of it. */
static int64_t disk_needed(const op_reverse *x, int64_t parameters)
{
    int64_t weights = 4 * parameters, traits = (int64_t)x->n_traits, kinds = x->arms[REVERSE_RANDOM] + x->arms[REVERSE_OPPOSITE] + x->arms[REVERSE_ASCENT];
    int64_t stay = x->rounds * (traits + 1 + !!x->settle.train_file), controls = x->keep ? x->rounds * traits * kinds : kinds > 0;
    return weights * (stay + controls + 4) + (16 << 20);
}

/* What earlier calls made of it. */
static int64_t disk_taken(const reverse_run *r, int64_t parameters)
{
    int64_t taken = 0;
    for (size_t i = 0; i < r->x->n_traits * REVERSE_ARMS; i++)
        if (r->vectors[i].path && i % REVERSE_ARMS != REVERSE_OTHER && op_path_exists(r->vectors[i].path))
            taken += 4 * parameters;
    for (int64_t n = 1; n <= r->x->rounds; n++) { /* a round with a result has its vectors, too */
        char name[60];
        snprintf(name, sizeof name, "round-%lld/result", (long long)n);
        char *result = op_path_join(r->x->output, name);
        if (result && op_path_exists(result))
            taken += 4 * parameters * (1 + (n > 1 ? (int64_t)r->x->n_traits : 0));
        op_free(result);
    }
    return taken;
}

static op_status check_disk(const op_reverse *x, const op_reverse_plan *p, op_error *e)
{
    const double mb = 1e6;
    if (p->disk_free < 0 || p->disk_needed <= p->disk_free)
        return OP_OK;
    return op_error_set(e, OP_ERR_IO, "%s: found %.0f MB free on the disk, expected at least %.0f MB: vectors, the model in training and the result of %lld rounds", x->output,
                        (double)p->disk_free / mb, (double)p->disk_needed / mb, (long long)x->rounds);
}

static op_status make_plan(reverse_run *r, op_reverse_plan *p, op_error *e)
{
    const op_reverse *x = r->x;
    *p = (op_reverse_plan){.traits = (int64_t)x->n_traits, .probes = (int64_t)x->n, .rounds = x->rounds, .trainings = (int64_t)trainings(x) * x->rounds,
                           .train_tokens = (int64_t)train_tokens(x) * x->rounds, .score_tokens = (int64_t)score_tokens(x) * x->rounds};
    op_status s = reverse_bench_parameters(r, &p->parameters, e);
    if (s)
        return s;
    p->disk_needed = disk_needed(x, p->parameters) - disk_taken(r, p->parameters);
    p->disk_free = x->disk_free >= 0 ? x->disk_free : free_bytes(x->output);
    r->total = (double)x->rounds * (score_tokens(x) + REVERSE_STEP_COST * train_tokens(x));
    return check_disk(x, p, e);
}

/* ---- beginning and end ---- */

static void end_round(reverse_run *r)
{
    reverse_bench_close(r);
    reverse_vectors_release(r);
    op_free(r->base);
    op_free(r->dir);
    r->base = r->dir = NULL;
}

/* Round `round` from the weights at `base`, which is taken over. */
static op_status begin_round(reverse_run *r, int64_t round, char *base, op_error *e)
{
    char name[40];
    snprintf(name, sizeof name, "round-%lld", (long long)round);
    r->round = round;
    r->base = base;
    r->dir = op_path_join(r->x->output, name);
    return r->base && r->dir ? reverse_vectors_plan(r, e) : reverse_no_memory(e);
}

static op_status begin(reverse_run *r, op_error *e)
{
    char *base = op_strdup(r->x->model);
    op_status s = base ? op_weights_sha256(base, r->base_key, e) : reverse_no_memory(e);
    memcpy(r->model_key, r->base_key, sizeof r->model_key);
    if (!s)
        return begin_round(r, 1, base, e);
    op_free(base);
    return s;
}

op_status op_reverse_tell(const op_reverse *x, op_reverse_plan *out, op_error *e)
{
    const op_reverse_callbacks none = {0};
    reverse_run r = {.x = x, .callbacks = &none, .began = op_seconds()};
    op_status s = begin(&r, e);
    if (!s)
        s = make_plan(&r, out, e);
    end_round(&r);
    return s;
}

/* ---- one round ---- */

/* What was measured of a probe, as it was measured, for what changed. */
typedef struct before {
    json_t *of[REVERSE_FORMS];
} before;

static op_status put(json_t *object, const char *key, json_t *value, op_error *e)
{
    return json_object_set_new(object, key, value) ? reverse_no_memory(e) : OP_OK;
}

/* {control, probes: {name: {text, choices, open}}} of base + terms; with `raw` it keeps in b[n] what was measured, else it tells what changed since. */
static op_status measure(reverse_run *r, const reverse_term *terms, size_t n, bool choices, before *b, bool raw, const char *what, json_t **out, op_error *e)
{
    static const char *const forms[REVERSE_FORMS] = {"text", "choices", "open"};
    const op_reverse *x = r->x;
    const int64_t questions[REVERSE_FORMS] = {x->n_probe, choices ? x->n_choices : 0, 0};
    json_t *control = NULL, *probes = json_object();
    *out = NULL;
    op_status s = probes ? reverse_say(r, e, "round %lld: %s: control", (long long)r->round, what) : reverse_no_memory(e);
    if (!s)
        s = reverse_measure_control(r, terms, n, false, &control, e);
    bool whole = isfinite(op_view_number(control, "perplexity"));
    for (size_t k = 0; k < x->n && !s && whole; k++) {
        json_t *one = json_object();
        s = one ? reverse_say(r, e, "round %lld: %s: probe %s", (long long)r->round, what, x->probes[k].name) : reverse_no_memory(e);
        for (reverse_form f = 0; f < REVERSE_FORMS && !s; f++) {
            json_t *measured = NULL;
            s = reverse_measure_probe(r, terms, n, k, f, questions[f], &measured, e);
            if (!s && (measured || f == REVERSE_TEXT))
                s = put(one, forms[f], reverse_summary(&x->probes[k], measured, raw ? NULL : b[k].of[f]), e);
            if (raw)
                b[k].of[f] = json_incref(measured);
            json_decref(measured);
        }
        if (!s)
            s = put(probes, x->probes[k].name, json_incref(one), e);
        json_decref(one);
    }
    if (!s && !(*out = json_pack("{sO sO}", "control", control, "probes", probes)))
        s = reverse_no_memory(e);
    json_decref(control);
    json_decref(probes);
    return s;
}

/* The small measurements of the base that searching and watching compare with. */
static op_status measure_start(reverse_run *r, json_t **control, op_error *e)
{
    const op_reverse *x = r->x;
    op_status s = reverse_measure_control(r, NULL, 0, true, control, e);
    for (size_t k = 0; k < x->n && !s; k++) {
        json_t *out = NULL;
        if (k < x->n_traits)
            s = reverse_measure_probe(r, NULL, 0, k, REVERSE_TEXT, x->n_search, &out, e);
        json_decref(out);
        out = NULL;
        if (!s && x->watch_times && !x->probes[k].chamber)
            s = reverse_measure_probe(r, NULL, 0, k, REVERSE_TEXT, x->watch_questions, &out, e);
        json_decref(out);
    }
    return s;
}

/* The point of the base on a trait's curves. */
static op_status zero_point(reverse_run *r, size_t k, const json_t *control, json_t *arm, op_error *e)
{
    json_t *measured = NULL, *summary = NULL;
    op_status s = reverse_measure_probe(r, NULL, 0, k, REVERSE_TEXT, r->x->n_search, &measured, e);
    if (!s && !(summary = reverse_summary(&r->x->probes[k], measured, NULL)))
        s = reverse_no_memory(e);
    if (!s && json_array_insert_new(json_object_get(arm, "curve"), 0,
                                    json_pack("{sf sO sf so so so so}", "scale", 0.0, "perplexity", json_object_get(control, "perplexity"), "rise", 0.0, "margin",
                                              op_json_number(op_view_number(summary, "margin")), "low", op_json_number(op_view_number(summary, "low")), "high",
                                              op_json_number(op_view_number(summary, "high")), "rate", op_json_number(op_view_number(summary, "rate")))))
        s = reverse_no_memory(e);
    json_decref(measured);
    json_decref(summary);
    return s;
}

static double cosine(const json_t *gram, size_t a, size_t b)
{
    double ab = json_number_value(json_array_get(json_array_get(gram, a), b)), aa = json_number_value(json_array_get(json_array_get(gram, a), a)),
           bb = json_number_value(json_array_get(json_array_get(gram, b), b));
    return ab / sqrt(aa * bb);
}

/* Searches one arm of trait k, and measures what it does to the trait at its own scale. */
static op_status run_arm(reverse_run *r, size_t k, reverse_arm a, double trait_scale, const json_t *start, const before *b, json_t *arms, op_error *e)
{
    const op_reverse *x = r->x;
    const reverse_vector *v = reverse_vector_of(r, k, a), *own = reverse_vector_of(r, k, REVERSE_TRAIT);
    json_t *arm = NULL, *gram = NULL, *control = NULL, *measured = NULL;
    op_status s = reverse_search_arm(r, k, a, trait_scale, &arm, e);
    if (!s)
        s = zero_point(r, k, start, arm, e);
    if (!s)
        s = reverse_measure_gram(r, (const reverse_vector *[]){own, v}, 2, &gram, e);
    if (!s)
        s = put(arm, "cosine", op_json_number(cosine(gram, 0, 1)), e);
    if (!s)
        s = put(arm, "norm", op_json_number(sqrt(json_number_value(json_array_get(json_array_get(gram, 1), 1)))), e);
    const reverse_term term = {v, reverse_arm_sign(a) * op_view_number(arm, "scale")};
    size_t n = term.scale != 0;
    if (!s)
        s = reverse_measure_control(r, &term, n, false, &control, e);
    if (!s)
        s = reverse_measure_probe(r, &term, n, k, REVERSE_TEXT, x->n_probe, &measured, e);
    if (!s)
        s = put(arm, "control", json_incref(control), e);
    if (!s)
        s = put(arm, "text", reverse_summary(&x->probes[k], measured, b[k].of[REVERSE_TEXT]), e);
    if (!s && json_array_append(arms, arm))
        s = reverse_no_memory(e);
    if (!s)
        s = reverse_vector_drop(r, v, e);
    json_decref(arm);
    json_decref(gram);
    json_decref(control);
    json_decref(measured);
    return s;
}

static json_t *polarity(const int64_t n[3])
{
    return json_pack("{sI sI sI}", "agrees", (json_int_t)n[2], "disagrees", (json_int_t)n[0], "neither", (json_int_t)n[1]);
}

/* How a trait's questions are made up. */
static json_t *describe_probe(const reverse_probe *p)
{
    int64_t kinds[2][3] = {{0}}, longer = 0;
    for (size_t i = 0; i < p->n_train; i++) {
        const reverse_question *q = &p->at[p->train[i]];
        kinds[0][q->agrees + 1]++;
        longer += strlen(q->reply[0]) > strlen(q->reply[1]);
    }
    for (size_t i = 0; i < p->n_held; i++)
        kinds[1][p->at[p->held[i]].agrees + 1]++;
    return json_pack("{sO ss sb sI sI sI sI so so sO}", "name", json_object_get(p->spec, "name"), "says", op_view_string(p->spec, "says"), "trait", p->trait, "trained",
                     (json_int_t)p->n_train, "held_out", (json_int_t)p->n_held, "skipped", (json_int_t)p->skipped, "trained_longer", (json_int_t)longer, "trained_by_polarity",
                     polarity(kinds[0]), "held_out_by_polarity", polarity(kinds[1]), "spec", p->spec);
}

/* {name, trained, watched}: the model with the trait, and what appeared while it was made. */
static op_status train_trait(reverse_run *r, size_t k, before *b, json_t *traits, op_error *e)
{
    const reverse_vector *v = reverse_vector_of(r, k, REVERSE_TRAIT);
    const reverse_term term = {v, 1};
    json_t *trained = NULL, *watched = NULL;
    char what[100];
    snprintf(what, sizeof what, "%.60s: trained for it", r->x->probes[k].name);
    op_status s = reverse_vector_make(r, v, e);
    if (!s)
        s = measure(r, &term, 1, false, b, false, what, &trained, e);
    if (!s)
        s = reverse_watched(r, v, &watched, e);
    if (!s && json_array_append_new(traits, json_pack("{sO sO sO so}", "name", json_object_get(r->x->probes[k].spec, "name"), "trained", trained, "watched", watched, "arms", json_array())))
        s = reverse_no_memory(e);
    json_decref(trained);
    json_decref(watched);
    return s;
}

static op_status cosines(reverse_run *r, json_t **out, op_error *e)
{
    size_t n = r->x->n_traits;
    const reverse_vector **v = op_alloc_array(n, sizeof *v);
    json_t *gram = NULL;
    op_status s = v ? OP_OK : reverse_no_memory(e);
    for (size_t k = 0; k < n && !s; k++)
        v[k] = reverse_vector_of(r, k, REVERSE_TRAIT);
    if (!s)
        s = reverse_measure_gram(r, v, n, &gram, e);
    *out = json_array();
    bool ok = *out;
    for (size_t i = 0; i < n && !s; i++) {
        json_t *row = json_array();
        for (size_t k = 0; k < n; k++)
            ok = ok && !json_array_append_new(row, op_json_number(cosine(gram, i, k)));
        ok = !json_array_append_new(*out, row) && ok;
    }
    json_decref(gram);
    op_free(v);
    return s || ok ? s : reverse_no_memory(e);
}

/* The arms of every trait; terms[k] becomes its vector at the scale found. */
static op_status run_arms(reverse_run *r, const json_t *start, before *b, json_t *traits, reverse_term *terms, op_error *e)
{
    const op_reverse *x = r->x;
    op_status s = OP_OK;
    for (size_t k = 0; k < x->n_traits && !s; k++) {
        json_t *trait = json_array_get(traits, k), *arms = json_object_get(trait, "arms"), *after = NULL;
        s = run_arm(r, k, REVERSE_TRAIT, NAN, start, b, arms, e);
        double scale = op_view_number(json_array_get(arms, 0), "scale");
        terms[k] = (reverse_term){reverse_vector_of(r, k, REVERSE_TRAIT), -scale};
        for (reverse_arm a = REVERSE_RANDOM; a < REVERSE_ARMS && !s; a++)
            if (x->arms[a])
                s = run_arm(r, k, a, scale, start, b, arms, e);
        char what[100];
        snprintf(what, sizeof what, "%.60s: taken away", x->probes[k].name);
        if (!s)
            s = measure(r, &terms[k], scale != 0, true, b, false, what, &after, e);
        if (!s)
            s = put(trait, "subtracted", json_incref(after), e);
        json_decref(after);
    }
    return s;
}

/* Terms without those of scale 0. */
static size_t drop_zeros(reverse_term *terms, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (terms[i].scale != 0)
            terms[kept++] = terms[i];
    return kept;
}

/* Models have names that say nothing of what they were made from: the key lies beside them, in PATH.key. One that was made from something else is removed. */
static op_status find_made(const char *path, const char *key, bool *there, op_error *e)
{
    op_buf name, found;
    op_buf_init(&name, 1 << 16);
    op_buf_init(&found, 1 << 10);
    op_status s = op_buf_printf(&name, "%s.key", path) ? reverse_no_memory(e) : OP_OK;
    *there = !s && op_path_exists(path) && op_path_exists(name.data) && !op_file_read(name.data, &found, NULL) && found.len == strlen(key) && !memcmp(found.data, key, found.len);
    if (!s && !*there)
        s = op_path_remove(path, e);
    op_buf_release(&name);
    op_buf_release(&found);
    return s;
}

static op_status note_made(const char *path, const char *key, op_error *e)
{
    op_buf name;
    op_buf_init(&name, 1 << 16);
    op_status s = op_buf_printf(&name, "%s.key", path) ? reverse_no_memory(e) : op_file_put(name.data, key, strlen(key), e);
    op_buf_release(&name);
    return s;
}

/* All traits at once: searched, measured, written; `next` receives the path of the result. */
static op_status run_joint(reverse_run *r, reverse_term *terms, before *b, json_t *round, char **next, op_error *e)
{
    const op_reverse *x = r->x;
    json_t *joint = NULL, *after = NULL;
    op_vector_term *plain = op_alloc_array(x->n_traits, sizeof *plain);
    size_t n = drop_zeros(terms, x->n_traits);
    op_status s = plain ? reverse_search_joint(r, terms, n, &joint, e) : reverse_no_memory(e);
    double factor = op_view_number(joint, "factor");
    for (size_t i = 0; i < n; i++)
        terms[i].scale *= factor;
    n = s ? 0 : drop_zeros(terms, n);
    if (!s)
        s = measure(r, terms, n, true, b, false, "all traits taken away", &after, e);
    if (!s)
        s = put(joint, "after", json_incref(after), e);
    if (!s)
        s = put(round, "joint", json_incref(joint), e);
    json_t *list = json_array();
    bool ok = list;
    for (size_t i = 0; i < n; i++) {
        plain[i] = (op_vector_term){terms[i].v->path, terms[i].scale};
        ok = ok && !json_array_append_new(list, json_pack("[sf]", terms[i].v->key, terms[i].scale));
    }
    if (!s)
        s = reverse_key(json_pack("{ss sO}", "base", r->base_key, "terms", ok ? list : NULL), r->base_key, e);
    json_decref(list);
    *next = n ? op_path_join(r->dir, "result") : op_strdup(r->base); /* or nothing could be taken away within the budget */
    if (!s && !*next)
        s = reverse_no_memory(e);
    reverse_bench_close(r);
    const op_vector_options how = {.dtype = OP_F32};
    bool there = true;
    if (!s && n)
        s = find_made(*next, r->base_key, &there, e);
    if (!s && !there)
        s = op_vector_add(r->base, plain, n, *next, &how, e);
    if (!s && !there)
        s = note_made(*next, r->base_key, e);
    json_decref(joint);
    json_decref(after);
    op_free(plain);
    return s;
}

/* Trains the result on neutral data, if the file says so; *next becomes that model. */
static op_status settle(reverse_run *r, char **next, op_error *e)
{
    if (!r->x->settle.train_file)
        return OP_OK;
    bool there = true;
    char *to = op_path_join(r->dir, "settled");
    op_status s = to ? reverse_settle_key(r, r->base_key, e) : reverse_no_memory(e);
    if (!s)
        s = find_made(to, r->base_key, &there, e);
    if (!s && !there)
        s = reverse_settle(r, *next, to, r->base_key, e);
    if (!s && !there)
        s = note_made(to, r->base_key, e);
    if (s) {
        op_free(to);
        return s;
    }
    op_free(*next);
    *next = to;
    return OP_OK;
}

/* A path below the run's directory without that directory. */
static const char *within(const char *dir, const char *path)
{
    size_t n = strlen(dir);
    return !strncmp(path, dir, n) && path[n] == '/' ? path + n + 1 : path;
}

static op_status run_round(reverse_run *r, json_t *rounds, char **next, op_error *e)
{
    const op_reverse *x = r->x;
    before *b = op_alloc_zero(x->n, sizeof *b);
    reverse_term *terms = op_alloc_zero(x->n_traits, sizeof *terms);
    json_t *round = json_pack("{sI ss}", "round", (json_int_t)r->round, "base_key", r->base_key), *traits = json_array(), *base = NULL, *start = NULL, *cos = NULL;
    op_status s = b && terms && round && traits ? OP_OK : reverse_no_memory(e);
    if (!s)
        s = measure_start(r, &start, e);
    if (!s)
        s = measure(r, NULL, 0, true, b, true, "before", &base, e);
    if (!s)
        s = put(round, "base", json_incref(base), e);
    for (size_t k = 0; k < x->n_traits && !s; k++)
        s = train_trait(r, k, b, traits, e);
    if (!s)
        s = cosines(r, &cos, e);
    if (!s)
        s = put(round, "cosines", json_incref(cos), e);
    if (!s)
        s = run_arms(r, start, b, traits, terms, e);
    if (!s)
        s = put(round, "traits", json_incref(traits), e);
    if (!s)
        s = run_joint(r, terms, b, round, next, e);
    if (!s)
        s = settle(r, next, e);
    if (!s)
        s = put(round, "result", json_string(within(x->output, *next)), e);
    if (!s && json_array_append(rounds, round))
        s = reverse_no_memory(e);
    for (size_t k = 0; k < x->n && b; k++)
        for (int f = 0; f < REVERSE_FORMS; f++)
            json_decref(b[k].of[f]);
    op_free(b);
    op_free(terms);
    json_decref(round);
    json_decref(traits);
    json_decref(base);
    json_decref(start);
    json_decref(cos);
    return s;
}

/* ---- all rounds ---- */

/* What the last round left, as a base: is all that was done gone or still there? */
static op_status measure_last(reverse_run *r, json_t *results, op_error *e)
{
    before *none = op_alloc_zero(r->x->n, sizeof *none);
    json_t *last = NULL;
    op_status s = none ? measure(r, NULL, 0, true, none, false, "the result", &last, e) : reverse_no_memory(e);
    if (!s)
        s = put(results, "last", last, e);
    op_free(none);
    return s;
}

static op_status describe(const op_reverse *x, json_t **out, op_error *e)
{
    json_t *probes = json_array();
    bool ok = probes;
    for (size_t k = 0; k < x->n; k++)
        ok = ok && !json_array_append_new(probes, describe_probe(&x->probes[k]));
    *out = ok ? json_pack("{ss ss ss sI sO sO s{sI sI sI sI} s{sI sf}}", "kind", "reverse", "version", OPERANT_VERSION, "model", x->model, "seed", (json_int_t)x->seed,
                          "file", x->spec, "probes", probes, "questions", "train", (json_int_t)x->n_train, "probe", (json_int_t)x->n_probe, "search", (json_int_t)x->n_search,
                          "choices", (json_int_t)x->n_choices, "control", "tokens", (json_int_t)x->control_tokens, "budget", x->budget) : NULL;
    json_decref(probes);
    return *out ? OP_OK : reverse_no_memory(e);
}

/* A second process in the same directory would write into the first one's training. */
static op_status take_lock(const op_reverse *x, int *lock, op_error *e)
{
    char *path = op_path_join(x->output, "lock"), *measures = op_path_join(x->output, "measures");
    op_status s = path && measures ? op_dir_make(measures, e) : reverse_no_memory(e);
    *lock = s ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (!s && *lock < 0)
        s = op_error_set(e, OP_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    else if (!s && flock(*lock, LOCK_EX | LOCK_NB))
        s = op_error_set(e, OP_ERR_IO, "%s: another process is at work in this directory", x->output);
    op_free(path);
    op_free(measures);
    return s;
}

static op_status run_all(reverse_run *r, json_t *results, op_error *e)
{
    const op_reverse *x = r->x;
    json_t *rounds = json_object_get(results, "rounds");
    op_status s = OP_OK;
    for (int64_t n = 1; n <= x->rounds && !s; n++) {
        char *next = NULL;
        s = run_round(r, rounds, &next, e);
        if (s) {
            op_free(next);
            break;
        }
        end_round(r);
        s = begin_round(r, n + 1, next, e);
    }
    if (!s && (x->rounds > 1 || x->settle.train_file))
        s = measure_last(r, results, e);
    return s;
}

op_status op_reverse_run(const op_reverse *x, const op_reverse_callbacks *callbacks, json_t **out, op_error *e)
{
    const op_reverse_callbacks none = {0};
    reverse_run r = {.x = x, .callbacks = callbacks ? callbacks : &none, .began = op_seconds()};
    op_reverse_plan plan = {0};
    json_t *results = NULL;
    int lock = -1;
    op_status s = begin(&r, e);
    if (!s)
        s = make_plan(&r, &plan, e);
    if (r.callbacks->plan && plan.parameters) /* also when the disk is too small */
        r.callbacks->plan(r.callbacks->ctx, &plan);
    if (!s)
        s = take_lock(x, &lock, e);
    if (!s)
        s = describe(x, &results, e);
    if (!s)
        s = put(results, "rounds", json_array(), e);
    if (!s)
        s = run_all(&r, results, e);
    char *path = op_path_join(x->output, "results.json");
    if (!s)
        s = path ? op_json_write(path, results, e) : reverse_no_memory(e);
    if (!s)
        s = reverse_report_write(results, x->output, e);
    op_free(path);
    end_round(&r);
    if (lock >= 0)
        close(lock);
    if (out)
        *out = s ? NULL : json_incref(results);
    json_decref(results);
    return s;
}
