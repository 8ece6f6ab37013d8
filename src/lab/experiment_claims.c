/* What is claimed is written down before the first result. */
#include <dirent.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/parts.h"
#include "lab/view.h"

/* What an arm does: its own settings and commands, or those of the file. NULL: no arm has this name, or memory is out. */
static json_t *deeds_of(const op_experiment *x, const char *name)
{
    const json_t *arm = op_list_find(json_object_get(x->spec, "arms"), "name", name), *commands[2];
    static const char *const which[] = {"prepare", "run"};
    for (int i = 0; i < 2; i++) {
        commands[i] = json_object_get(arm, which[i]);
        commands[i] = commands[i] ? commands[i] : json_object_get(x->spec, which[i]);
    }
    return arm ? json_pack("{sO sO* sO* sO* sO*}", "name", json_object_get(arm, "name"), "vars", json_object_get(arm, "vars"), "set", json_object_get(arm, "set"), "prepare",
                           commands[0], "run", commands[1])
               : NULL;
}

/* A claim with the path of its measure, and all that its two arms do: what decides whether it is still the same claim. Its wording may change. */
static json_t *claim_of(const op_experiment *x, const json_t *claim)
{
    const json_t *measure = op_list_find(json_object_get(x->spec, "measures"), "name", op_view_string(claim, "measure")), *number = json_object_get(claim, "against");
    json_t *arm = deeds_of(x, op_view_string(claim, "arm")), *against = json_is_number(number) ? json_deep_copy(number) : deeds_of(x, op_view_string(claim, "against"));
    if (!arm || !against) {
        json_decref(arm);
        json_decref(against);
        return NULL;
    }
    return json_pack("{sO sO* sO* sO so so sO* sO* sO*}", "path", json_object_get(measure, "path"), "minus", json_object_get(measure, "minus"), "missing",
                     json_object_get(measure, "missing"), "direction", json_object_get(claim, "direction"), "arm", arm, "against", against, "vars",
                     json_object_get(x->spec, "vars"), "set", json_object_get(x->spec, "set"), "templates", json_object_get(x->spec, "templates"));
}

json_t *op_experiment_claims(const op_experiment *x)
{
    json_t *out = json_array(), *claim;
    size_t i;
    bool ok = out;
    json_array_foreach(json_object_get(x->spec, "claims"), i, claim)
        ok = ok && !json_array_append_new(out, claim_of(x, claim));
    if (ok)
        return out;
    json_decref(out);
    return NULL;
}

static char *registered_path(const op_experiment *x, const char *results)
{
    char *dir = op_experiment_dir(x, results), *path = dir ? op_path_join(dir, "registered.json") : NULL;
    op_free(dir);
    return path;
}

/* Finished cells, also those of other arms and seeds than the file now has: who changes these has seen the results too. */
static json_int_t count_finished(const char *dir)
{
    json_int_t n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *x; d && (x = readdir(d));) {
        const char *dot = strrchr(x->d_name, '.');
        n += dot && !strcmp(dot, ".json") && strcmp(x->d_name, "registered.json") != 0;
    }
    if (d)
        closedir(d);
    return n;
}

op_status op_experiment_register(const op_experiment *x, const char *results, op_error *e)
{
    char *path = registered_path(x, results), *dir = op_experiment_dir(x, results);
    op_status status = path && dir ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
    json_int_t finished = status ? 0 : count_finished(dir);
    if (!status && !(op_path_exists(path) && finished)) {
        char when[32] = "";
        time_t now = time(NULL);
        struct tm tm;
        if (gmtime_r(&now, &tm))
            strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        json_t *j = json_pack("{ss ss ss sI sO so}", "when", when, "file", x->path, "hash", x->hash, "finished", finished, "seeds", json_object_get(x->spec, "seeds"),
                              "claims", op_experiment_claims(x));
        status = j ? op_dir_make(dir, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
        if (!status)
            status = op_json_write(path, j, e);
        json_decref(j);
    }
    op_free(path);
    op_free(dir);
    return status;
}

op_status op_experiment_registered(const op_experiment *x, const char *results, json_t **out, op_error *e)
{
    *out = NULL;
    char *path = registered_path(x, results);
    op_status status = !path ? op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment") : op_path_exists(path) ? op_json_read(out, path, e) : OP_OK;
    op_free(path);
    return status;
}
