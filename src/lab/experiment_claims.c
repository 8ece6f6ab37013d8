/* What is claimed is written down before the first result. */
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/parts.h"
#include "lab/view.h"

/* A claim with the path of its measure, and what its two arms do: what decides whether it is still the same claim. Its wording may change. */
static json_t *claim_of(const op_experiment *x, const json_t *claim)
{
    const json_t *arms = json_object_get(x->spec, "arms"), *measures = json_object_get(x->spec, "measures");
    const json_t *measure = op_list_find(measures, "name", op_view_string(claim, "measure"));
    const json_t *arm = op_list_find(arms, "name", op_view_string(claim, "arm")), *against = op_list_find(arms, "name", op_view_string(claim, "against"));
    return json_pack("{sO sO* sO sO sO sO* sO*}", "path", json_object_get(measure, "path"), "missing", json_object_get(measure, "missing"), "direction",
                     json_object_get(claim, "direction"), "arm", json_object_get(claim, "arm"), "against", json_object_get(claim, "against"), "arm_set",
                     json_object_get(arm, "set"), "against_set", json_object_get(against, "set"));
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

static bool any_finished(const op_experiment *x, const char *results)
{
    size_t i, k;
    json_t *arm, *seed;
    bool any = false;
    json_array_foreach(json_object_get(x->spec, "arms"), i, arm)
        json_array_foreach(json_object_get(x->spec, "seeds"), k, seed) {
            char *path = any ? NULL : op_cell_result_path(x, results, arm, json_integer_value(seed));
            any = any || (path && op_path_exists(path));
            op_free(path);
        }
    return any;
}

op_status op_experiment_register(const op_experiment *x, const char *results, op_error *e)
{
    char *path = registered_path(x, results), *dir = op_experiment_dir(x, results);
    op_status status = path && dir ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
    if (!status && !(op_path_exists(path) && any_finished(x, results))) {
        char when[32] = "";
        time_t now = time(NULL);
        struct tm tm;
        if (gmtime_r(&now, &tm))
            strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        json_t *j = json_pack("{ss ss ss sO so}", "when", when, "file", x->path, "hash", x->hash, "seeds", json_object_get(x->spec, "seeds"), "claims",
                              op_experiment_claims(x));
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
