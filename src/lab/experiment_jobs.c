/* What there is to do: the cells of an experiment that are wanted, and what has to be prepared for them. */
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "lab/experiment_jobs.h"
#include "lab/view.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
}

bool op_jobs_fill_text(const char *s, const char *cell, const char *prepared, op_buf *out)
{
    while (*s) {
        const char *a = strstr(s, "${cell}"), *b = strstr(s, "${prepared}"), *mark = !a || (b && b < a) ? b : a;
        if (!mark)
            return !op_buf_puts(out, s);
        if (op_buf_add(out, s, (size_t)(mark - s)) || op_buf_puts(out, mark == a ? cell : prepared))
            return false;
        s = strchr(mark, '}') + 1;
    }
    return true;
}

static op_status fill_paths(const json_t *commands, const char *cell, const char *prepared, json_t **out, op_error *e)
{
    size_t i, k;
    json_t *command, *word;
    *out = json_array();
    bool ok = *out;
    json_array_foreach((json_t *)commands, i, command) {
        json_t *words = json_array();
        ok = ok && words && !json_array_append_new(*out, words);
        json_array_foreach(command, k, word) {
            op_buf text;
            op_buf_init(&text, 1 << 16);
            ok = ok && op_jobs_fill_text(json_string_value(word), cell, prepared, &text) && !json_array_append_new(words, json_string(text.data ? text.data : ""));
            op_buf_release(&text);
        }
    }
    if (ok)
        return OP_OK;
    json_decref(*out);
    *out = NULL;
    return no_memory(e);
}

static char *join_name(const char *dir, const char *name, int64_t seed, const char *key)
{
    char text[140];
    if (seed < 0)
        snprintf(text, sizeof text, "%s-%.8s", name, key);
    else
        snprintf(text, sizeof text, "%s-%lld-%.8s", name, (long long)seed, key);
    return op_path_join(dir, text);
}

static op_status place(const lab *l, job *j, op_error *e)
{
    j->prepared = join_name(l->work, "prepared", -1, j->cell.prepare_key);
    j->dir = j->prepares ? j->prepared ? op_strdup(j->prepared) : NULL : join_name(l->work, op_view_string(j->cell.arm, "name"), j->cell.seed, j->cell.key);
    j->log = j->dir ? op_path_join(j->dir, "log.txt") : NULL;
    if (!j->log || !j->prepared)
        return no_memory(e);
    return fill_paths(j->prepares ? j->cell.prepare : j->cell.run, j->dir, j->prepared, &j->commands, e);
}

static op_status look_for_result(const lab *l, job *j, op_error *e)
{
    json_t *result = NULL;
    op_status status = op_cell_read(l->x, l->o->results, j->cell.arm, j->cell.seed, &result, NULL);
    if (status == OP_ERR_NOMEM)
        return no_memory(e);
    if (!strcmp(op_view_string(result, "key"), j->cell.key)) { /* one that cannot be read is made again */
        j->state = DONE;
        j->given = true;
        j->seconds = op_view_number(result, "seconds");
    }
    json_decref(result);
    return OP_OK;
}

/* The index of the preparation of this key; l->n: there is none yet. */
static size_t find_preparation(const lab *l, const char *key)
{
    size_t i = 0;
    while (i < l->n && !(l->jobs[i].prepares && !strcmp(l->jobs[i].cell.prepare_key, key)))
        i++;
    return i;
}

static bool is_wanted(const lab *l, const char *arm)
{
    size_t n = strlen(arm);
    for (const char *at = l->o->arms; at && *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
        at += strspn(at, " ");
        if (strcspn(at, ",") == n && !strncmp(at, arm, n))
            return true;
    }
    return !l->o->arms;
}

/* Adds a cell, and before it what it needs and nobody before it needed. */
static op_status add_cell(lab *l, const json_t *arm, int64_t seed, json_t *hashes, op_error *e)
{
    job j = {.needs = -1};
    op_status status = op_cell_plan(&j.cell, l->x, arm, seed, l->o->version, hashes, e);
    if (!status)
        status = look_for_result(l, &j, e);
    if (!status && j.state == WAITING && json_array_size(j.cell.prepare)) {
        j.needs = (ptrdiff_t)find_preparation(l, j.cell.prepare_key);
        if ((size_t)j.needs == l->n) {
            job *p = &l->jobs[l->n++];
            *p = (job){.needs = -1, .prepares = true};
            status = op_cell_plan(&p->cell, l->x, arm, seed, l->o->version, hashes, e);
            if (!status)
                status = place(l, p, e);
        }
    }
    job *to = &l->jobs[l->n++];
    *to = j;
    return status ? status : place(l, to, e);
}

static op_status check_arms(const lab *l, op_error *e)
{
    size_t i, found = 0, wanted = 0;
    json_t *arm;
    json_array_foreach(json_object_get(l->x->spec, "arms"), i, arm)
        found += is_wanted(l, op_view_string(arm, "name"));
    for (const char *at = l->o->arms; at && *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ','))
        wanted++;
    return l->o->arms && found != wanted ? op_error_set(e, OP_ERR_ARG, "arms=%.200s: expected names of arms of %s", l->o->arms, l->x->path) : OP_OK;
}

op_status op_jobs_plan(lab *l, op_error *e)
{
    json_t *hashes = json_object(), *arm, *seed;
    l->jobs = op_alloc_zero(2 * op_experiment_cells(l->x), sizeof *l->jobs);
    op_status status = l->jobs && hashes ? check_arms(l, e) : no_memory(e);
    size_t i, k;
    json_array_foreach(json_object_get(l->x->spec, "seeds"), k, seed) /* seed by seed: pairs are complete early */
        json_array_foreach(json_object_get(l->x->spec, "arms"), i, arm)
            if (!status && is_wanted(l, op_view_string(arm, "name")))
                status = add_cell(l, arm, json_integer_value(seed), hashes, e);
    json_decref(hashes);
    return status;
}

void op_jobs_release(lab *l)
{
    for (size_t i = 0; i < l->n; i++) {
        job *j = &l->jobs[i];
        op_cell_release(&j->cell);
        json_decref(j->commands);
        op_free(j->dir);
        op_free(j->prepared);
        op_free(j->log);
    }
    op_free(l->jobs);
}
