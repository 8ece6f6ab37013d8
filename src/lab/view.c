#include "lab/view.h"

#include <math.h>
#include <string.h>

#include "lab/parts.h"

const json_t *op_view(const json_t *root, const char *path)
{
    char key[64];
    while (root && *path) {
        size_t n = strcspn(path, ".");
        if (n >= sizeof key)
            return NULL;
        memcpy(key, path, n);
        key[n] = 0;
        root = json_is_array(root) ? op_list_find(root, "name", key) : json_object_get(root, key);
        path += n + (path[n] == '.');
    }
    return json_is_null(root) ? NULL : root;
}

double op_view_number(const json_t *root, const char *path)
{
    const json_t *v = op_view(root, path);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

const char *op_view_string(const json_t *root, const char *path)
{
    const char *s = json_string_value(op_view(root, path));
    return s ? s : "";
}

const json_t *op_view_before(const op_assay_results *r, const json_t *reply)
{
    return op_list_find(op_view(r->before, "replies"), "id", op_view_string(reply, "id"));
}

bool op_view_correct(const json_t *results, const json_t *reply)
{
    const json_t *class = op_list_find(op_view(results, "classes"), "name", op_view_string(reply, "class"));
    return class && !strcmp(op_view_string(class, "right"), op_view_string(reply, "verdict"));
}

const json_t *op_view_surest(const op_assay_results *r, const char *class, bool correct, bool changed)
{
    const json_t *best = NULL;
    double best_logprob = -INFINITY;
    size_t i;
    json_t *reply;
    json_array_foreach((json_t *)op_view(r->after, "replies"), i, reply) {
        double logprob = op_view_number(reply, "logprob");
        if ((class && strcmp(class, op_view_string(reply, "class")) != 0) || op_view_correct(r->after, reply) != correct || !(logprob > best_logprob))
            continue;
        if (correct && json_is_true(op_view(reply, "loops"))) /* loops are what a model is surest of */
            continue;
        const json_t *before = changed ? op_view_before(r, reply) : NULL;
        if (changed && (!before || !strcmp(op_view_string(before, "verdict"), op_view_string(reply, "verdict"))))
            continue;
        best = reply;
        best_logprob = logprob;
    }
    return best;
}
