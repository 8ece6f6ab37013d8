/* What a cell's commands left, reduced to what is worth keeping. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include <operant/jsonl.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/parts.h"
#include "lab/view.h"

enum { LONGEST_TEXT = 400, LONGEST_LIST = 400, TRANSCRIPTS = 4, LONGEST_REPLY = 4000, FIGURES_MAX = 1 << 20 };

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the figures of a cell");
}

/* ---- numbers of JSON lines ---- */

typedef struct summary {
    json_t *keys; /* key -> {first, last, min, max, mean, n} */
    int64_t lines;
} summary;

static op_status add_line(void *ctx, json_t *object, int row, op_error *e)
{
    (void)row;
    summary *s = ctx;
    const char *key;
    json_t *value;
    s->lines++;
    json_object_foreach(object, key, value) {
        if (!json_is_number(value))
            continue;
        double x = json_number_value(value);
        json_t *k = json_object_get(s->keys, key);
        bool bad;
        if (!k) {
            bad = json_object_set_new(s->keys, key, json_pack("{sf sf sf sf sf si}", "first", x, "last", x, "min", x, "max", x, "mean", x, "n", 1));
        } else {
            double n = op_view_number(k, "n") + 1, mean = op_view_number(k, "mean");
            bad = json_object_set_new(k, "last", json_real(x)) | json_object_set_new(k, "min", json_real(fmin(x, op_view_number(k, "min")))) |
                  json_object_set_new(k, "max", json_real(fmax(x, op_view_number(k, "max")))) | json_object_set_new(k, "mean", json_real(mean + (x - mean) / n)) |
                  json_object_set_new(k, "n", json_integer((json_int_t)n));
        }
        if (bad)
            return no_memory(e);
    }
    return OP_OK;
}

/* figures.name = what the numbers of a file's lines come to, and their count as "lines". */
static op_status add_lines_of(json_t *figures, const char *name, const char *path, op_error *e)
{
    summary s = {.keys = json_object()};
    op_status status = s.keys ? op_json_lines(path, add_line, &s, e) : no_memory(e);
    if (!status && (json_object_set_new(s.keys, "lines", json_integer(s.lines)) || json_object_set(figures, name, s.keys)))
        status = no_memory(e);
    json_decref(s.keys);
    return status;
}

static op_status add_metrics(json_t *figures, const char *dir, op_error *e)
{
    char *path = op_path_join(dir, "metrics.jsonl");
    op_status status = !path ? no_memory(e) : op_path_exists(path) ? add_lines_of(figures, "metrics", path, e) : OP_OK;
    op_free(path);
    return status;
}

/* ---- results.json, without what is only for reading ---- */

/* What is kept of a value; NULL: nothing, and *ok turns false when memory is out. */
static json_t *pruned(const json_t *value, bool *ok);

static json_t *pruned_list(const json_t *list, bool *ok)
{
    json_t *out = json_array(), *v;
    size_t i;
    *ok = *ok && out;
    json_array_foreach((json_t *)list, i, v) {
        json_t *kept = pruned(v, ok);
        if (kept && json_array_append_new(out, kept))
            *ok = false;
    }
    return out;
}

static json_t *pruned_object(const json_t *object, bool *ok)
{
    json_t *out = json_object(), *v;
    const char *key;
    *ok = *ok && out;
    json_object_foreach((json_t *)object, key, v) {
        json_t *kept = strcmp(key, "replies") && strcmp(key, "transcripts") ? pruned(v, ok) : NULL;
        if (kept && json_object_set_new(out, key, kept))
            *ok = false;
    }
    return out;
}

/* Where things lay, also in a command, says nothing about another machine. */
static bool names_path(const char *text)
{
    for (const char *at = strchr(text, '/'); at; at = strchr(at + 1, '/'))
        if ((at == text || strchr(" ='\":", at[-1])) && at[1] && !strchr(" /", at[1]))
            return true;
    return false;
}

static json_t *pruned(const json_t *value, bool *ok)
{
    if (json_is_object(value))
        return pruned_object(value, ok);
    if (json_is_array(value))
        return json_array_size(value) > LONGEST_LIST ? NULL : pruned_list(value, ok);
    const char *text = json_string_value(value);
    return (text && names_path(text)) || json_string_length(value) > LONGEST_TEXT ? NULL : json_incref((json_t *)value);
}

/* ---- transcripts ---- */

static json_t *cut_text(const char *s, bool *ok)
{
    size_t n = strlen(s) > LONGEST_REPLY ? LONGEST_REPLY : strlen(s);
    while (n < strlen(s) && n && ((unsigned char)s[n] & 0xc0) == 0x80)
        n--;
    json_t *text = json_sprintf("%.*s%s", (int)n, s, s[n] ? " …" : "");
    *ok = *ok && text;
    return text;
}

static json_t *cut_messages(const json_t *messages, bool *ok)
{
    json_t *out = json_array(), *m;
    size_t i;
    json_array_foreach((json_t *)messages, i, m)
        if (json_array_append_new(out, json_pack("{ss so}", "role", op_view_string(m, "role"), "content", cut_text(op_view_string(m, "content"), ok))))
            *ok = false;
    return out;
}

static json_t *cut_transcript(const json_t *t, bool *ok)
{
    json_t *out = json_object(), *v;
    const char *key;
    json_object_foreach((json_t *)t, key, v) {
        json_t *kept = json_is_string(v) ? cut_text(json_string_value(v), ok) : json_is_array(v) ? cut_messages(v, ok) : json_incref(v);
        if (json_object_set_new(out, key, kept))
            *ok = false;
    }
    *ok = *ok && out;
    return out;
}

/* The best and the worst by score, and the first ones. */
static json_t *cut_transcripts(const json_t *all, bool *ok)
{
    json_t *out = json_array(), *t;
    size_t i, best = 0, worst = 0, n = json_array_size(all);
    *ok = *ok && out;
    json_array_foreach((json_t *)all, i, t) {
        double score = op_view_number(t, "score");
        best = score > op_view_number(json_array_get(all, best), "score") ? i : best;
        worst = score < op_view_number(json_array_get(all, worst), "score") ? i : worst;
    }
    json_array_foreach((json_t *)all, i, t)
        if (json_is_object(t) && (n <= TRANSCRIPTS || i == best || i == worst || i < TRANSCRIPTS - 2) && json_array_append_new(out, cut_transcript(t, ok)))
            *ok = false;
    return out;
}

/* ---- a cell ---- */

/* The value of the command's word KEY=VALUE, or NULL. */
static const char *word_of(const json_t *command, const char *key)
{
    size_t i, n = strlen(key);
    json_t *word;
    const char *value = NULL;
    json_array_foreach((json_t *)command, i, word) {
        const char *s = json_string_value(word);
        if (!strncmp(s, key, n) && s[n] == '=')
            value = s + n + 1;
    }
    return value;
}

static op_status read_json(const char *dir, const char *name, json_t **out, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status status = !path ? no_memory(e) : op_path_exists(path) ? op_json_read(out, path, e) : OP_OK;
    op_free(path);
    return status;
}

/* Adds the figures of a directory to an object: the keys of results.json, and as "rates" and "metrics" those of rates.json and metrics.jsonl. The
 * transcripts of results.json go to *transcripts, if that is not NULL. */
static op_status add_dir(json_t *figures, const char *dir, json_t **transcripts, op_error *e)
{
    json_t *results = NULL, *rates = NULL, *kept = NULL;
    bool ok = true;
    op_status status = read_json(dir, "results.json", &results, e);
    if (!status)
        status = read_json(dir, "rates.json", &rates, e);
    if (!status && json_is_object(results)) {
        kept = pruned(results, &ok);
        ok = ok && !json_object_update(figures, kept);
        if (transcripts)
            *transcripts = cut_transcripts(json_object_get(results, "transcripts"), &ok);
        json_decref(kept);
    }
    if (!status && rates && (kept = pruned(rates, &ok)) && json_object_set_new(figures, "rates", kept))
        ok = false;
    json_decref(results);
    json_decref(rates);
    return status ? status : ok ? add_metrics(figures, dir, e) : no_memory(e);
}

/* add_dir; transcripts that are there take the place of those before. */
static op_status add_dir_told(json_t *figures, const char *dir, json_t **transcripts, op_error *e)
{
    json_t *told = NULL;
    op_status status = add_dir(figures, dir, &told, e);
    if (!json_array_size(told)) {
        json_decref(told);
        return status;
    }
    json_decref(*transcripts);
    *transcripts = told;
    return status;
}

/* What an earlier command left goes under the name of its directory. */
static op_status add_earlier(json_t *figures, const char *dir, json_t **transcripts, op_error *e)
{
    const char *slash = strrchr(dir, '/');
    json_t *inside = json_object();
    op_status status = inside ? add_dir_told(inside, dir, transcripts, e) : no_memory(e);
    if (!status && json_object_size(inside) && json_object_set(figures, slash ? slash + 1 : dir, inside))
        status = no_memory(e);
    json_decref(inside);
    return status;
}

/* The lines of a command's output=PATH/NAME.jsonl go under NAME, and the last command's under "output" too. */
static op_status add_output(json_t *figures, const char *file, op_error *e)
{
    const char *slash = strrchr(file, '/'), *base = slash ? slash + 1 : file;
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)(strlen(base) - strlen(".jsonl")), base);
    op_status status = add_lines_of(figures, name, file, e);
    return status || !json_object_set(figures, "output", json_object_get(figures, name)) ? status : no_memory(e);
}

static const char *last_dir(const json_t *commands, const char *cell)
{
    const char *dir = word_of(json_array_get(commands, json_array_size(commands) - 1), "output_dir");
    return dir ? dir : cell;
}

static op_status add_all(json_t *figures, const json_t *commands, const char *cell, json_t **transcripts, op_error *e)
{
    size_t i;
    json_t *command;
    op_status status = OP_OK;
    const char *last = last_dir(commands, cell);
    json_array_foreach((json_t *)commands, i, command) {
        const char *dir = word_of(command, "output_dir"), *file = word_of(command, "output");
        if (!status && dir && strcmp(dir, last) != 0)
            status = add_earlier(figures, dir, transcripts, e);
        size_t n = file ? strlen(file) : 0;
        if (!status && n > 6 && !strcmp(file + n - 6, ".jsonl") && op_path_exists(file))
            status = add_output(figures, file, e);
    }
    if (!status)
        status = add_dir_told(figures, last, transcripts, e);
    return status || json_object_size(figures)
               ? status : op_error_set(e, OP_ERR_FORMAT, "%s/results.json: expected the figures of the cell's last command, found none", last);
}

/* ---- curves out of metrics.jsonl ---- */

typedef struct series {
    const char *x, *y;
    json_t *points;
} series;

static op_status add_point(void *ctx, json_t *object, int row, op_error *e)
{
    (void)row;
    series *s = ctx;
    double x = op_view_number(object, s->x), y = op_view_number(object, s->y);
    return isnan(x) || isnan(y) || !json_array_append_new(s->points, json_pack("[ff]", x, y)) ? OP_OK : no_memory(e);
}

/* At most LONGEST_LIST points, evenly chosen, the last among them. */
static json_t *thinned(const json_t *points)
{
    size_t n = json_array_size(points), every = (n + LONGEST_LIST - 1) / LONGEST_LIST;
    json_t *out = json_array();
    for (size_t i = 0; i < n && out; i++)
        if ((n - 1 - i) % every == 0 && json_array_append(out, json_array_get(points, i))) {
            json_decref(out);
            out = NULL;
        }
    return out;
}

/* figures.curves.NAME for each curve of the file that is drawn from this metrics.jsonl; `as` is what the file calls it. */
static op_status add_curves(json_t *figures, const json_t *curves, const char *as, const char *metrics, op_error *e)
{
    size_t i;
    json_t *curve;
    op_status status = OP_OK;
    json_array_foreach((json_t *)curves, i, curve) {
        if (status || strcmp(op_view_string(curve, "path"), as))
            continue;
        series s = {op_view_string(curve, "x"), op_view_string(curve, "y"), json_array()};
        status = s.points ? op_json_lines(metrics, add_point, &s, e) : no_memory(e);
        if (!status && !json_object_get(figures, "curves") && json_object_set_new(figures, "curves", json_object()))
            status = no_memory(e);
        if (!status && json_object_set_new(json_object_get(figures, "curves"), op_view_string(curve, "name"), thinned(s.points)))
            status = no_memory(e);
        json_decref(s.points);
    }
    return status;
}

static op_status add_all_curves(json_t *figures, const json_t *curves, const json_t *commands, const char *cell, op_error *e)
{
    size_t i;
    json_t *command;
    op_status status = OP_OK;
    const char *last = last_dir(commands, cell);
    json_array_foreach((json_t *)commands, i, command) {
        const char *dir = word_of(command, "output_dir"), *slash = dir ? strrchr(dir, '/') : NULL;
        char as[200];
        if (!dir || status)
            continue;
        snprintf(as, sizeof as, "%.150s%smetrics", strcmp(dir, last) ? slash ? slash + 1 : dir : "", strcmp(dir, last) ? "." : "");
        char *path = op_path_join(dir, "metrics.jsonl");
        status = !path ? no_memory(e) : op_path_exists(path) ? add_curves(figures, curves, as, path, e) : OP_OK;
        op_free(path);
    }
    return status;
}

op_status op_cell_collect(const json_t *commands, const char *dir, const json_t *curves, json_t **out, op_error *e)
{
    *out = NULL;
    json_t *figures = json_object(), *transcripts = NULL;
    op_status status = figures ? add_all(figures, commands, dir, &transcripts, e) : no_memory(e);
    if (!status)
        status = add_all_curves(figures, curves, commands, dir, e);
    if (!status && !transcripts && !(transcripts = json_array()))
        status = no_memory(e);
    size_t size = status ? 0 : json_dumpb(figures, NULL, 0, JSON_COMPACT);
    if (size > FIGURES_MAX)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: found %zu bytes of figures, expected at most %d", dir, size, FIGURES_MAX);
    if (!status && !(*out = json_pack("{sO sO}", "figures", figures, "transcripts", transcripts)))
        status = no_memory(e);
    json_decref(figures);
    json_decref(transcripts);
    return status;
}

op_status op_run_figures(const char *path, json_t **out, op_error *e)
{
    *out = NULL;
    bool ok = true;
    json_t *results = NULL, *figures = NULL;
    op_status status = OP_OK;
    if (op_path_is_dir(path)) {
        figures = json_object();
        status = figures ? add_dir(figures, path, NULL, e) : no_memory(e);
    } else if (!(status = op_json_read(&results, path, e))) {
        figures = pruned(results, &ok);
        status = figures && ok ? OP_OK : no_memory(e);
    }
    json_decref(results);
    if (!status && !json_object_size(figures))
        status = op_error_set(e, OP_ERR_FORMAT, "%s: expected a run with results.json or metrics.jsonl", path);
    if (status)
        json_decref(figures);
    else
        *out = figures;
    return status;
}
