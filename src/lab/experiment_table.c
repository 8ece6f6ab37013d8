/* An analysis, and the comparison of two runs, as text for a terminal of 100 columns. */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/paired_tests.h"
#include "lab/parts.h"
#include "lab/view.h"

enum { WIDTH = 100 };

/* Like op_page: the first failure sticks. */
typedef struct sheet {
    op_buf *out;
    op_status status;
} sheet;

static void put(sheet *s, const char *format, ...) OP_PRINTF(2, 3);
static void put(sheet *s, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (!s->status)
        s->status = op_buf_puts(s->out, line);
}

static const char *number(double x, char room[32])
{
    if (isnan(x))
        return "-";
    snprintf(room, 32, "%.4g", x);
    return room;
}

/* "0.31 (0.2 to 0.42)" */
static const char *interval(const json_t *object, const char *middle, char room[128])
{
    char a[32], b[32], c[32];
    double low = op_view_number(object, "low");
    if (isnan(low))
        snprintf(room, 128, "%s", number(op_view_number(object, middle), a));
    else
        snprintf(room, 128, "%s (%s to %s)", number(op_view_number(object, middle), a), number(low, b), number(op_view_number(object, "high"), c));
    return room;
}

/* Words wrapped with an indent; cut by bytes, which is too soon by little. */
static void wrapped(sheet *s, const char *first, const char *text)
{
    size_t indent = strlen(first), column = indent;
    put(s, "%s", first);
    while (*(text += strspn(text, " \t\n\r"))) {
        size_t n = strcspn(text, " \t\n\r");
        if (column > indent && column + 1 + n > WIDTH) {
            put(s, "\n%*s", (int)indent, "");
            column = indent;
        } else if (column > indent) {
            put(s, " ");
            column++;
        }
        put(s, "%.*s", (int)n, text);
        column += n;
        text += n;
    }
    put(s, "\n");
}

static void claims(sheet *s, const json_t *a)
{
    size_t i;
    json_t *claim;
    json_array_foreach((json_t *)op_view(a, "claims"), i, claim) {
        char room[128], text[400], against[40], one[32], two[32];
        const char *other = op_view_string(claim, "against");
        if (!*other)
            other = number(op_view_number(claim, "against"), against);
        snprintf(text, sizeof text, "%s%s: ", json_is_true(op_view(claim, "registered")) ? "" : "exploratory, ", op_view_string(claim, "verdict"));
        char *line = NULL;
        op_buf full;
        op_buf_init(&full, 1 << 16);
        if (!op_buf_puts(&full, text) && !op_buf_puts(&full, op_view_string(claim, "says")))
            line = full.data;
        wrapped(s, "  ", line ? line : text);
        op_buf_release(&full);
        put(s, "    %.30s: %.30s %s, %.30s %s; difference %s\n", op_view_string(claim, "measure"), op_view_string(claim, "arm"),
            number(op_view_number(claim, "mean_arm"), one), other, number(op_view_number(claim, "mean_against"), two), interval(claim, "difference", room));
        put(s, "    adjusted p %.3g (p %.3g, %s %.0f signings, %.0f pairs)\n", op_view_number(claim, "adjusted"), op_view_number(claim, "p"),
            json_is_true(op_view(claim, "exact")) ? "all" : "", op_view_number(claim, "signings"), op_view_number(claim, "n"));
    }
}

static void measures(sheet *s, const json_t *a)
{
    size_t i, k;
    json_t *measure, *arm;
    json_array_foreach((json_t *)op_view(a, "measures"), i, measure) {
        put(s, "\n%.60s%s%.30s\n", op_view_string(measure, "says"), *op_view_string(measure, "unit") ? ", " : "", op_view_string(measure, "unit"));
        json_array_foreach((json_t *)op_view(a, "arms"), k, arm) {
            char room[128], one[32], two[32];
            const json_t *m = op_list_find(op_view(arm, "measures"), "name", op_view_string(measure, "name"));
            put(s, "  %-28.28s %-36s %s .. %s, n = %.0f\n", op_view_string(arm, "name"), interval(m, "mean", room), number(op_view_number(m, "min"), one),
                number(op_view_number(m, "max"), two), op_view_number(m, "n"));
        }
    }
}

op_status op_experiment_write_table(const json_t *a, op_buf *out)
{
    sheet s = {.out = out};
    size_t i;
    json_t *text;
    wrapped(&s, "", op_view_string(a, "question"));
    put(&s, "\n%.0f of %.0f cells; means with their 95%% intervals over the seeds\n", op_view_number(a, "cells.finished"), op_view_number(a, "cells.expected"));
    json_array_foreach((json_t *)op_view(a, "warnings"), i, text)
        wrapped(&s, "! ", json_string_value(text));
    put(&s, json_array_size(op_view(a, "claims")) ? "\nCLAIMS\n" : "");
    claims(&s, a);
    measures(&s, a);
    return s.status;
}

/* ---- two runs ---- */

/* Calls for every number in a tree; lists of objects count by their names. */
static void walk(sheet *s, const json_t *a, const json_t *b, const char *path)
{
    char next[200], x[32], y[32], d[32];
    if (json_is_number(a) && json_is_number(b)) {
        double p = json_number_value(a), q = json_number_value(b);
        put(s, "  %-50.50s %12s %12s %12s\n", path, number(p, x), number(q, y), number(q - p, d));
        return;
    }
    const char *key;
    json_t *value;
    size_t i;
    if (json_is_object(a) && json_is_object(b))
        json_object_foreach((json_t *)a, key, value) {
            snprintf(next, sizeof next, "%.120s%s%.70s", path, *path ? "." : "", key);
            walk(s, value, json_object_get(b, key), next);
        }
    if (json_is_array(a) && json_is_array(b))
        json_array_foreach((json_t *)a, i, value) {
            const char *name = op_view_string(value, "name");
            snprintf(next, sizeof next, "%.120s%s%.70s", path, *path ? "." : "", name);
            if (*name)
                walk(s, value, op_list_find(b, "name", name), next);
        }
}

static op_status compare_runs(sheet *s, const char *a, const char *b, op_error *e)
{
    json_t *x = NULL, *y = NULL;
    op_status status = op_run_figures(a, &x, e);
    if (!status)
        status = op_run_figures(b, &y, e);
    if (!status) {
        put(s, "  %-50s %12s %12s %12s\n", "", "A", "B", "B - A");
        walk(s, x, y, "");
    }
    json_decref(x);
    json_decref(y);
    return status;
}

/* ---- two experiments ---- */

/* The cells of a results directory: {"arm": {"seed": figures}}. */
static op_status read_cells(const char *dir, json_t **out, op_error *e)
{
    struct dirent **names;
    int n = scandir(dir, &names, NULL, alphasort);
    *out = json_object();
    op_status status = n < 0 ? op_error_set(e, OP_ERR_IO, "%s: cannot read this directory", dir) : *out ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (int i = 0; i < n; i++) {
        char *path = op_path_join(dir, names[i]->d_name);
        size_t length = strlen(names[i]->d_name);
        json_t *cell = NULL;
        if (!status && !path)
            status = op_error_set(e, OP_ERR_NOMEM, "out of memory");
        if (!status && length > 5 && !strcmp(names[i]->d_name + length - 5, ".json"))
            status = op_json_read(&cell, path, e);
        const char *arm = op_view_string(cell, "arm");
        char seed[32];
        snprintf(seed, sizeof seed, "%.0f", op_view_number(cell, "seed"));
        if (!status && *arm && json_is_object(json_object_get(cell, "figures"))) {
            if (!json_object_get(*out, arm) && json_object_set_new(*out, arm, json_object()))
                status = op_error_set(e, OP_ERR_NOMEM, "out of memory");
            if (!status && json_object_set(json_object_get(*out, arm), seed, json_object_get(cell, "figures")))
                status = op_error_set(e, OP_ERR_NOMEM, "out of memory");
        }
        json_decref(cell);
        op_free(path);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    return status;
}

/* One figure over the seeds of both; `like` shows which figures there are. */
static void compare_figure(sheet *s, const json_t *like, const json_t *a, const json_t *b, const char *path)
{
    const char *key;
    json_t *value;
    size_t i;
    char next[200];
    if (json_is_object(like))
        json_object_foreach((json_t *)like, key, value) {
            snprintf(next, sizeof next, "%.120s%s%.70s", path, *path ? "." : "", key);
            compare_figure(s, value, a, b, next);
        }
    if (json_is_array(like))
        json_array_foreach((json_t *)like, i, value) {
            snprintf(next, sizeof next, "%.120s%s%.70s", path, *path ? "." : "", op_view_string(value, "name"));
            if (*op_view_string(value, "name"))
                compare_figure(s, value, a, b, next);
        }
    if (!json_is_number(like))
        return;
    double d[OP_SEEDS_MAX], p = 0, q = 0;
    size_t n = 0;
    json_object_foreach((json_t *)a, key, value) {
        double x = op_view_number(value, path), y = op_view_number(json_object_get(b, key), path);
        if (isnan(x) || isnan(y) || n == OP_SEEDS_MAX)
            continue;
        p += x;
        q += y;
        d[n++] = y - x;
    }
    char one[32], two[32], three[32], low[32], high[32];
    op_interval i95 = op_mean_interval(d, n);
    if (n)
        put(s, "  %-40.40s %10s %10s %10s (%s to %s)\n", path, number(p / (double)n, one), number(q / (double)n, two), number(i95.mean, three), number(i95.low, low),
            number(i95.high, high));
}

static op_status compare_experiments(sheet *s, const char *a, const char *b, op_error *e)
{
    json_t *x = NULL, *y = NULL, *cells;
    const char *arm;
    op_status status = read_cells(a, &x, e);
    if (!status)
        status = read_cells(b, &y, e);
    if (!status)
        put(s, "  %-40s %10s %10s %10s (95%%, paired)\n", "", "A", "B", "B - A");
    json_object_foreach(x, arm, cells)
        if (!status && json_object_get(y, arm)) {
            put(s, "%s\n", arm);
            compare_figure(s, json_object_iter_value(json_object_iter(cells)), cells, json_object_get(y, arm), "");
        }
    json_decref(x);
    json_decref(y);
    return status;
}

static bool is_experiment(const char *dir)
{
    char path[4096];
    return snprintf(path, sizeof path, "%s/registered.json", dir) < (int)sizeof path && op_path_exists(path);
}

op_status op_experiment_compare(const char *a, const char *b, op_buf *out, op_error *e)
{
    sheet s = {.out = out};
    bool one = is_experiment(a), two = is_experiment(b);
    if (one != two)
        return op_error_set(e, OP_ERR_ARG, "%s holds an experiment's results and %s does not", one ? a : b, one ? b : a);
    op_status status = one ? compare_experiments(&s, a, b, e) : compare_runs(&s, a, b, e);
    return !status && s.status ? op_error_set(e, s.status, "out of memory for the comparison") : status;
}
