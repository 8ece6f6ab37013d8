#include "trial/settings.h"

#include <string.h>

#include <operant/config.h>
#include <operant/file.h>

#include "base/mem.h"
#include "io/json.h"

op_status op_settings_check(const json_t *settings, const char *const *keys, const char *name, op_error *e)
{
    if (!json_is_object(settings))
        return op_error_set(e, OP_ERR_FORMAT, "%s: found %s, expected an object", name, op_json_kind(settings));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)settings, key, value) {
        const char *const *known = keys;
        while (*known && strcmp(*known, key) != 0)
            known++;
        if (*known)
            continue;
        const char *near = op_config_nearest(key, keys);
        return op_error_set(e, OP_ERR_FORMAT, "%s: unknown key \"%.60s\"%s%s%s", name, key, near ? ", did you mean \"" : "", near ? near : "",
                            near ? "\"" : "");
    }
    return OP_OK;
}

op_status op_settings_choice(const json_t *settings, const char *key, const char *choices, int *out, const char *name, op_error *e)
{
    const char *word = NULL;
    op_status s = op_json_get_string(settings, key, false, &word, name, e);
    if (s || !word)
        return s;
    const char *at = choices;
    for (int i = 0;; i++) {
        size_t n = strcspn(at, "|");
        if (strlen(word) == n && !memcmp(at, word, n)) {
            *out = i;
            return OP_OK;
        }
        if (!at[n])
            return op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": found \"%.40s\", expected one of %s", name, key, word, choices);
        at += n + 1;
    }
}

op_status op_settings_number(const json_t *settings, const char *key, double min, double max, double *out, const char *name, op_error *e)
{
    double x = *out;
    op_status s = op_json_get_float(settings, key, false, &x, name, e);
    if (!s && !(x >= min && x <= max))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": found %g, expected %g..%g", name, key, x, min, max);
    if (!s)
        *out = x;
    return s;
}

op_status op_settings_words(const json_t *settings, const char *key, bool required, op_status (*each)(void *ctx, const char *word, op_error *e), void *ctx,
                            const char *name, op_error *e)
{
    json_t *value = json_object_get(settings, key);
    size_t n = json_is_array(value) ? json_array_size(value) : value ? 1 : 0;
    if (required && !n)
        return op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": expected a string or an array of strings", name, key);
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++) {
        json_t *word = json_is_array(value) ? json_array_get(value, i) : value;
        const char *text = json_string_value(word);
        s = !text || strlen(text) != json_string_length(word)
                ? op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": found %s, expected a string or an array of strings", name, key, op_json_kind(word))
                : each(ctx, text, e);
    }
    return s;
}

op_status op_settings_path(char **out, const char *dir, const char *path, op_error *e)
{
    *out = dir && path[0] != '/' ? op_path_join(dir, path) : op_strdup(path);
    if (*out && dir && !op_path_exists(*out) && op_path_exists(path)) {
        op_free(*out);
        *out = op_strdup(path);
    }
    return *out ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
}
