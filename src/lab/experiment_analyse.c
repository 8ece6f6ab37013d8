/* From finished cells to what may be concluded. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/paired_tests.h"
#include "lab/parts.h"
#include "lab/view.h"

/* A difference of this share between arms counts as unequal compute. */
#define UNEQUAL 0.01
#define LEVEL 0.05

typedef struct analysis {
    const op_experiment *x;
    const json_t *arms, *seeds, *measures; /* of the file */
    json_t **cells;                        /* [arm][seed], owned; NULL: not finished */
    size_t n_arms, n_seeds;
    json_t *registered, *out, *warnings;
    bool ok;                               /* false: out of memory */
} analysis;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the analysis");
}

static const json_t *cell_at(const analysis *a, size_t arm, size_t seed)
{
    return a->cells[arm * a->n_seeds + seed];
}

static int64_t seed_at(const analysis *a, size_t seed)
{
    return json_integer_value(json_array_get(a->seeds, seed));
}

static void set(analysis *a, json_t *object, const char *key, json_t *value)
{
    a->ok = !json_object_set_new(object, key, value) && a->ok;
}

static void append(analysis *a, json_t *list, json_t *value)
{
    a->ok = !json_array_append_new(list, value) && a->ok;
}

static void warn(analysis *a, json_t *text)
{
    append(a, a->warnings, text);
}

/* The figure at a path; NAN when it is not there. A truth counts as 1 or 0. */
static double figure(const json_t *cell, const char *path)
{
    const json_t *v = op_view(json_object_get(cell, "figures"), path);
    return json_is_boolean(v) ? json_is_true(v) : json_is_number(v) ? json_number_value(v) : NAN;
}

/* The figure at a path, or the mean of those at a list of paths. */
static double mean_figure(const json_t *cell, const json_t *paths)
{
    size_t n = json_array_size(paths);
    double sum = n ? 0 : figure(cell, json_string_value(paths));
    for (size_t i = 0; i < n; i++)
        sum += figure(cell, json_string_value(json_array_get(paths, i))) / (double)n;
    return sum;
}

static double value_of(const analysis *a, const json_t *measure, size_t arm, size_t seed)
{
    const json_t *cell = cell_at(a, arm, seed);
    double x = cell ? mean_figure(cell, json_object_get(measure, "path")) : NAN;
    if (cell && json_object_get(measure, "minus"))
        x -= mean_figure(cell, json_object_get(measure, "minus"));
    return cell && isnan(x) ? op_view_number(measure, "missing") : x;
}

/* ---- cells ---- */

static op_status read_cells(analysis *a, const char *results, op_error *e)
{
    json_t *stale = json_array(), *missing = json_array();
    json_int_t finished = 0;
    op_status status = stale && missing ? OP_OK : no_memory(e);
    for (size_t i = 0; i < a->n_arms && !status; i++)
        for (size_t k = 0; k < a->n_seeds && !status; k++) {
            const json_t *arm = json_array_get(a->arms, i);
            json_t **cell = &a->cells[i * a->n_seeds + k], *run = NULL, *files = NULL;
            status = op_cell_read(a->x, results, arm, seed_at(a, k), cell, e);
            if (!status)
                status = op_cell_commands(a->x, arm, seed_at(a, k), "run", &run, e);
            if (!status)
                status = op_cell_files(a->x, arm, seed_at(a, k), &files, e);
            const json_t *then = json_object_get(*cell, "files");
            if (!status && !*cell)
                append(a, missing, json_pack("{ss sI}", "arm", op_view_string(arm, "name"), "seed", (json_int_t)seed_at(a, k)));
            else if (!status && (!json_equal(run, json_object_get(*cell, "run")) || (then && !json_equal(files, (json_t *)then))))
                append(a, stale, json_pack("{ss sI}", "arm", op_view_string(arm, "name"), "seed", (json_int_t)seed_at(a, k)));
            finished += *cell != NULL;
            json_decref(run);
            json_decref(files);
        }
    if (json_array_size(missing))
        warn(a, json_sprintf("%zu of %zu cells are not finished (or failed): what follows rests on the others", json_array_size(missing), a->n_arms * a->n_seeds));
    if (json_array_size(stale))
        warn(a, json_sprintf("%zu finished cells were made by other commands than the file now has: run them again", json_array_size(stale)));
    set(a, a->out, "cells", json_pack("{sI sI so so}", "expected", (json_int_t)(a->n_arms * a->n_seeds), "finished", finished, "missing", missing, "stale", stale));
    return status;
}

/* ---- arms ---- */

static json_t *measure_of_arm(analysis *a, const json_t *measure, size_t arm)
{
    double x[OP_SEEDS_MAX], low = INFINITY, high = -INFINITY;
    size_t n = 0;
    json_t *values = json_array();
    for (size_t k = 0; k < a->n_seeds; k++) {
        double v = value_of(a, measure, arm, k);
        if (isnan(v))
            continue;
        append(a, values, json_pack("{sI sf}", "seed", (json_int_t)seed_at(a, k), "value", v));
        x[n++] = v;
        low = fmin(low, v);
        high = fmax(high, v);
    }
    op_interval i = op_mean_interval(x, n);
    return json_pack("{sO sI so so so so so so}", "name", json_object_get(measure, "name"), "n", (json_int_t)n, "mean", op_json_number(i.mean), "low",
                     op_json_number(i.low), "high", op_json_number(i.high), "min", op_json_number(n ? low : NAN), "max", op_json_number(n ? high : NAN), "values",
                     values);
}

static json_t *compute_of_arm(analysis *a, const json_t *compute, size_t arm)
{
    double sum = 0, low = INFINITY, high = -INFINITY, n = 0;
    for (size_t k = 0; k < a->n_seeds; k++) {
        double v = cell_at(a, arm, k) ? figure(cell_at(a, arm, k), op_view_string(compute, "path")) : NAN;
        if (isnan(v))
            continue;
        n++;
        sum += v;
        low = fmin(low, v);
        high = fmax(high, v);
    }
    return json_pack("{sO so so so}", "name", json_object_get(compute, "name"), "mean", op_json_number(n > 0 ? sum / n : NAN), "min",
                     op_json_number(n > 0 ? low : NAN), "max", op_json_number(n > 0 ? high : NAN));
}

/* A point of a curve is [x, y] or an object with the keys that the file names. */
static double coordinate(const json_t *point, const char *key, size_t index)
{
    const json_t *v = json_is_array(point) ? json_array_get(point, index) : op_view(point, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static json_t *curve_of_arm(analysis *a, const json_t *curve, size_t arm)
{
    json_t *lines = json_array();
    for (size_t k = 0; k < a->n_seeds; k++) {
        json_t *points = json_array(), *point;
        size_t i;
        const json_t *figures = json_object_get(cell_at(a, arm, k), "figures"), *list = json_object_get(json_object_get(figures, "curves"), op_view_string(curve, "name"));
        if (!list)
            list = op_view(figures, op_view_string(curve, "path"));
        json_array_foreach((json_t *)list, i, point) {
            double x = coordinate(point, op_view_string(curve, "x"), 0), y = coordinate(point, op_view_string(curve, "y"), 1);
            if (isfinite(x) && isfinite(y))
                append(a, points, json_pack("[ff]", x, y));
        }
        if (json_array_size(points))
            append(a, lines, json_pack("{sI sO}", "seed", (json_int_t)seed_at(a, k), "points", points));
        json_decref(points);
    }
    return json_pack("{sO so}", "name", json_object_get(curve, "name"), "lines", lines);
}

/* The transcript with the highest score of an arm and the one with the lowest; without scores, the first of each cell, at most two. */
static json_t *transcripts_of_arm(analysis *a, size_t arm)
{
    json_t *out = json_array(), *t;
    const json_t *best[2] = {0};
    int64_t seed[2] = {0};
    size_t i;
    for (size_t k = 0; k < a->n_seeds; k++)
        json_array_foreach(json_object_get(cell_at(a, arm, k), "transcripts"), i, t) {
            double score = op_view_number(t, "score");
            for (int which = 0; which < 2; which++) {
                double known = op_view_number(best[which], "score");
                bool better = isnan(score) ? !best[which] && (!which || best[0] != t) : isnan(known) || (which ? score < known : score > known);
                if (!better)
                    continue;
                best[which] = t;
                seed[which] = seed_at(a, k);
                if (isnan(score))
                    break;
            }
        }
    for (int which = 0; which < 2; which++) {
        if (!best[which] || (which && best[1] == best[0]))
            continue;
        json_t *copy = json_copy((json_t *)best[which]);
        if (copy) {
            set(a, copy, "seed", json_integer(seed[which]));
            if (!isnan(op_view_number(copy, "score")))
                set(a, copy, "which", json_string(which ? "lowest score" : "highest score"));
        }
        append(a, out, copy);
    }
    return out;
}

static void add_arms(analysis *a)
{
    json_t *arms = json_array();
    for (size_t i = 0; i < a->n_arms; i++) {
        const json_t *arm = json_array_get(a->arms, i);
        json_t *measures = json_array(), *compute = json_array(), *curves = json_array(), *run = NULL, *entry;
        json_int_t n = 0;
        double seconds = 0;
        size_t k;
        for (k = 0; k < a->n_seeds; k++) {
            n += cell_at(a, i, k) != NULL;
            seconds += cell_at(a, i, k) ? op_view_number(cell_at(a, i, k), "seconds") : 0;
        }
        json_array_foreach((json_t *)a->measures, k, entry)
            append(a, measures, measure_of_arm(a, entry, i));
        json_array_foreach(json_object_get(a->x->spec, "compute"), k, entry)
            append(a, compute, compute_of_arm(a, entry, i));
        json_array_foreach(json_object_get(a->x->spec, "curves"), k, entry)
            append(a, curves, curve_of_arm(a, entry, i));
        if (op_cell_commands(a->x, arm, seed_at(a, 0), "run", &run, NULL))
            a->ok = false;
        append(a, arms, json_pack("{sO sO sI so so so so so so*}", "name", json_object_get(arm, "name"), "says", json_object_get(arm, "says"), "n", n, "seconds",
                                  op_json_number(n ? seconds / (double)n : NAN), "measures", measures, "compute", compute, "curves", curves, "transcripts",
                                  transcripts_of_arm(a, i), "commands", run));
    }
    set(a, a->out, "arms", arms);
}

/* ---- pairs ---- */

static size_t index_of(const json_t *list, const char *name)
{
    size_t i;
    json_t *entry;
    json_array_foreach((json_t *)list, i, entry)
        if (!strcmp(op_view_string(entry, "name"), name))
            break;
    return i;
}

/* The differences of the seeds that both arms have; `against` is an arm or a constant. Their number. */
static size_t differences(analysis *a, const json_t *measure, size_t arm, const json_t *against, double d[OP_SEEDS_MAX], int64_t seeds[OP_SEEDS_MAX], double means[2])
{
    size_t n = 0;
    means[0] = means[1] = 0;
    for (size_t k = 0; k < a->n_seeds; k++) {
        double x = value_of(a, measure, arm, k);
        double y = json_is_number(against) ? json_number_value(against) : value_of(a, measure, index_of(a->arms, json_string_value(against)), k);
        if (isnan(x) || isnan(y))
            continue;
        seeds[n] = seed_at(a, k);
        d[n++] = x - y;
        means[0] += x;
        means[1] += y;
    }
    means[0] = n ? means[0] / (double)n : NAN;
    means[1] = n ? means[1] / (double)n : NAN;
    return n;
}

/* ---- claims ---- */

static bool was_registered(const analysis *a, const json_t *claims, size_t i)
{
    size_t k;
    json_t *known;
    if (!a->registered || op_view_number(a->registered, "finished") > 0)
        return false;
    json_array_foreach(json_object_get(a->registered, "claims"), k, known)
        if (json_equal(known, json_array_get(claims, i)))
            return true;
    return false;
}

/* What is wrong with the registration itself. */
static void warn_of_registration(analysis *a)
{
    double late = op_view_number(a->registered, "finished");
    json_t *seeds = json_object_get(a->registered, "seeds");
    if (!a->registered && op_view_number(a->out, "cells.finished") > 0)
        warn(a, json_string("cells are finished, but registered.json is missing: no claim counts as named before the first result"));
    if (late > 0)
        warn(a, json_sprintf("registered.json was missing when %.0f cells were finished already: no claim counts as named before the first result", late));
    if (a->registered && !json_equal(seeds, (json_t *)(uintptr_t)a->seeds)) {
        char *then = json_dumps(seeds, JSON_COMPACT);
        warn(a, then ? json_sprintf("the claims were registered with other seeds than the file now has: %s", then) : NULL);
        op_free(then);
    }
}

static const char *verdict(double adjusted, double difference, double sign)
{
    if (!(adjusted <= LEVEL) || difference == 0)
        return "not supported";
    return difference * sign > 0 ? "supported" : "contradicted";
}

static void add_claims(analysis *a)
{
    json_t *list = json_object_get(a->x->spec, "claims"), *out = json_array(), *claims = op_experiment_claims(a->x), *claim;
    double p[OP_CLAIMS_MAX], adjusted[OP_CLAIMS_MAX];
    size_t i, fewest = OP_SEEDS_MAX, unregistered = 0;
    json_array_foreach(list, i, claim) {
        double d[OP_SEEDS_MAX], means[2];
        int64_t seeds[OP_SEEDS_MAX];
        const json_t *measure = op_list_find(a->measures, "name", op_view_string(claim, "measure")), *against = json_object_get(claim, "against");
        size_t n = differences(a, measure, index_of(a->arms, op_view_string(claim, "arm")), against, d, seeds, means);
        op_signflip s = op_signflip_test(d, n, 1);
        op_interval interval = op_mean_interval(d, n);
        json_t *each = json_array(), *entry = json_copy(claim);
        for (size_t k = 0; k < n; k++)
            append(a, each, json_pack("{sI sf}", "seed", (json_int_t)seeds[k], "value", d[k]));
        bool registered = claims && was_registered(a, claims, i);
        unregistered += !registered;
        fewest = n < fewest ? n : fewest;
        p[i] = s.two;
        a->ok = a->ok && entry;
        json_t *figures = json_pack("{sb sI so so so so so so sf sb sI sO}", "registered", registered, "n", (json_int_t)n, "mean_arm", op_json_number(means[0]),
                                    "mean_against", op_json_number(means[1]), "differences", each, "difference", op_json_number(interval.mean), "low",
                                    op_json_number(interval.low), "high", op_json_number(interval.high), "p", s.two, "exact", s.exact, "signings",
                                    (json_int_t)s.signings, "unit", json_object_get(measure, "unit"));
        a->ok = a->ok && figures && !json_object_update(entry, figures);
        json_decref(figures);
        append(a, out, entry);
    }
    op_holm(p, json_array_size(list), adjusted);
    json_array_foreach(out, i, claim) {
        set(a, claim, "adjusted", json_real(adjusted[i]));
        set(a, claim, "verdict", json_string(verdict(adjusted[i], op_view_number(claim, "difference"), op_view_number(claim, "sign"))));
    }
    size_t n = json_array_size(list);
    if (n && fewest && (double)n * ldexp(2, -(int)fewest) > LEVEL)
        warn(a, json_sprintf("with so few pairs (%zu) for the claims of the file (%zu) no result could be significant at 5%%: the smallest possible adjusted p is %.2g", fewest, n,
                             fmin(1, (double)n * ldexp(2, -(int)fewest))));
    if (unregistered)
        warn(a, json_sprintf("%zu of the claims were not named before the first result: they count as exploratory", unregistered));
    if (n)
        warn_of_registration(a);
    json_decref(claims);
    set(a, a->out, "claims", out);
}

static bool is_claimed(const analysis *a, const char *measure, const char *arm, const char *against)
{
    size_t i;
    json_t *claim;
    json_array_foreach(json_object_get(a->x->spec, "claims"), i, claim) {
        const char *one = op_view_string(claim, "arm"), *two = op_view_string(claim, "against");
        if (!strcmp(op_view_string(claim, "measure"), measure) && ((!strcmp(one, arm) && !strcmp(two, against)) || (!strcmp(one, against) && !strcmp(two, arm))))
            return true;
    }
    return false;
}

/* Every arm against the first, on every measure. */
static void add_contrasts(analysis *a)
{
    json_t *out = json_array(), *measure;
    const json_t *first = json_object_get(json_array_get(a->arms, 0), "name");
    size_t m;
    json_array_foreach((json_t *)a->measures, m, measure)
        for (size_t i = 1; i < a->n_arms; i++) {
            double d[OP_SEEDS_MAX], means[2];
            int64_t seeds[OP_SEEDS_MAX];
            size_t n = differences(a, measure, i, first, d, seeds, means);
            op_interval interval = op_mean_interval(d, n);
            const char *name = op_view_string(measure, "name"), *arm = op_view_string(json_array_get(a->arms, i), "name");
            append(a, out, json_pack("{ss ss sO sI so so so sb}", "measure", name, "arm", arm, "against", first, "n", (json_int_t)n, "difference",
                                     op_json_number(interval.mean), "low", op_json_number(interval.low), "high", op_json_number(interval.high), "claimed",
                                     is_claimed(a, name, arm, json_string_value(first))));
        }
    set(a, a->out, "contrasts", out);
}

/* ---- compute ---- */

static void add_compute(analysis *a)
{
    json_t *out = json_array(), *entry;
    size_t c;
    json_array_foreach(json_object_get(a->x->spec, "compute"), c, entry) {
        double low = INFINITY, high = -INFINITY;
        bool known = true;
        for (size_t i = 0; i < a->n_arms; i++) {
            char path[160];
            snprintf(path, sizeof path, "compute.%.80s.mean", op_view_string(entry, "name"));
            double mean = op_view_number(json_array_get(json_object_get(a->out, "arms"), i), path);
            known = known && !isnan(mean);
            low = fmin(low, mean);
            high = fmax(high, mean);
        }
        double spread = !known ? NAN : high > low ? (high - low) / fmax(fabs(high), fabs(low)) : 0;
        bool equal = spread <= UNEQUAL;
        append(a, out, json_pack("{sO so sb}", "name", json_object_get(entry, "name"), "spread", op_json_number(spread), "equal", equal));
        if (known && !equal)
            warn(a, json_sprintf("the arms did not have equal compute: %s differs by %.1f%%", op_view_string(entry, "name"), 100 * spread));
        else if (!known)
            warn(a, json_sprintf("whether the arms had equal compute is not known: a cell has no figure for %s", op_view_string(entry, "name")));
    }
    if (!json_array_size(out))
        warn(a, json_string("the file does not say what compute must be equal across the arms"));
    set(a, a->out, "compute", out);
}

/* ---- */

static void describe(analysis *a)
{
    const json_t *spec = a->x->spec;
    static const char *const same[] = {"name", "question", "subject", "seeds", "threads", "measures", "curves"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        set(a, a->out, same[i], json_incref(json_object_get(spec, same[i])));
    set(a, a->out, "file", json_string(a->x->path));
    set(a, a->out, "hash", json_string(a->x->hash));
    set(a, a->out, "small", json_boolean(a->x->small));
    set(a, a->out, "command", json_sprintf("operant lab run %s%s", a->x->path, a->x->small ? " small=true" : ""));
    if (a->registered)
        set(a, a->out, "registered", json_incref(a->registered));
    if (a->x->small)
        warn(a, json_string("this is the smallest version: it tests the machinery, not the claims"));
}

op_status op_experiment_analyse(const op_experiment *x, const char *results, json_t **out, op_error *e)
{
    analysis a = {.x = x, .arms = json_object_get(x->spec, "arms"), .seeds = json_object_get(x->spec, "seeds"), .measures = json_object_get(x->spec, "measures"),
                  .out = json_object(), .warnings = json_array()};
    a.n_arms = json_array_size(a.arms);
    a.n_seeds = json_array_size(a.seeds);
    a.cells = op_alloc_zero(a.n_arms * a.n_seeds, sizeof *a.cells);
    a.ok = a.out && a.warnings && a.cells;
    op_status status = a.ok ? op_experiment_registered(x, results, &a.registered, e) : no_memory(e);
    if (!status) {
        describe(&a);
        status = read_cells(&a, results, e);
    }
    if (!status) {
        add_arms(&a);
        add_claims(&a);
        add_contrasts(&a);
        add_compute(&a);
        set(&a, a.out, "warnings", json_incref(a.warnings));
        status = a.ok ? OP_OK : no_memory(e);
    }
    for (size_t i = 0; a.cells && i < a.n_arms * a.n_seeds; i++)
        json_decref(a.cells[i]);
    op_free(a.cells);
    json_decref(a.registered);
    json_decref(a.warnings);
    if (status)
        json_decref(a.out);
    *out = status ? NULL : a.out;
    return status;
}
