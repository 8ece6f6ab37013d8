#include "io/json.h"

#include <string.h>

#include "base/mem.h"
#include "io/file.h"

__attribute__((constructor)) static void use_our_memory(void)
{
    json_set_alloc_funcs(op_alloc, op_free);
}

op_status op_json_read(json_t **out, const char *path, op_error *e)
{
    op_buf bytes;
    op_buf_init(&bytes, OP_JSON_BYTES_MAX);
    *out = NULL;
    op_status s = op_file_read(path, &bytes, e);
    if (!s)
        s = op_json_parse(out, bytes.data, bytes.len, path, e);
    op_buf_release(&bytes);
    return s;
}

op_status op_json_write(const char *path, const json_t *value, op_error *e)
{
    char *text = json_dumps(value, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (!text)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the final 0: op_file_put counts */
    op_status s = op_file_put(path, text, n + 1, e);
    op_free(text);
    return s;
}

const char *op_json_kind(const json_t *value)
{
    if (!value)
        return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a real number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "an unknown value";
}

static op_status wrong(const char *key, const json_t *found, const char *expected, const char *name, op_error *e)
{
    return op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": found %s, expected %s", name, key, op_json_kind(found), expected);
}

/* OP_OK with *value NULL when the key may be and is absent. */
static op_status look_up(const json_t *object, const char *key, bool required, const char *expected, json_t **value,
                         const char *name, op_error *e)
{
    *value = json_object_get(object, key);
    if (json_is_null(*value) && !required)
        *value = NULL;
    return *value || !required ? OP_OK : wrong(key, *value, expected, name, e);
}

op_status op_json_get_string(const json_t *object, const char *key, bool required, const char **out, const char *name,
                             op_error *e)
{
    json_t *v;
    op_status s = look_up(object, key, required, "a string", &v, name, e);
    if (s || !v)
        return s;
    if (!json_is_string(v))
        return wrong(key, v, "a string", name, e);
    if (strlen(json_string_value(v)) != json_string_length(v))
        return op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": found a string with a 0 byte, expected none", name, key);
    *out = json_string_value(v);
    return OP_OK;
}

op_status op_json_get_int(const json_t *object, const char *key, bool required, int64_t min, int64_t max, int64_t *out,
                          const char *name, op_error *e)
{
    json_t *v;
    op_status s = look_up(object, key, required, "an integer", &v, name, e);
    if (s || !v)
        return s;
    if (!json_is_integer(v))
        return wrong(key, v, "an integer", name, e);
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return op_error_set(e, OP_ERR_FORMAT, "%s: key \"%s\": found %lld, expected %lld to %lld", name, key, (long long)i,
                            (long long)min, (long long)max);
    *out = i;
    return OP_OK;
}

op_status op_json_get_float(const json_t *object, const char *key, bool required, double *out, const char *name,
                            op_error *e)
{
    json_t *v;
    op_status s = look_up(object, key, required, "a number", &v, name, e);
    if (s || !v)
        return s;
    if (!json_is_number(v))
        return wrong(key, v, "a number", name, e);
    *out = json_number_value(v);
    return OP_OK;
}

op_status op_json_get_bool(const json_t *object, const char *key, bool required, bool *out, const char *name,
                           op_error *e)
{
    json_t *v;
    op_status s = look_up(object, key, required, "true or false", &v, name, e);
    if (s || !v)
        return s;
    if (!json_is_boolean(v))
        return wrong(key, v, "true or false", name, e);
    *out = json_is_true(v);
    return OP_OK;
}

op_status op_json_get_array(const json_t *object, const char *key, bool required, json_t **out, const char *name,
                            op_error *e)
{
    json_t *v;
    op_status s = look_up(object, key, required, "an array", &v, name, e);
    if (s || !v)
        return s;
    if (!json_is_array(v))
        return wrong(key, v, "an array", name, e);
    *out = v;
    return OP_OK;
}

op_status op_json_get_object(const json_t *object, const char *key, bool required, json_t **out, const char *name,
                             op_error *e)
{
    json_t *v;
    op_status s = look_up(object, key, required, "an object", &v, name, e);
    if (s || !v)
        return s;
    if (!json_is_object(v))
        return wrong(key, v, "an object", name, e);
    *out = v;
    return OP_OK;
}
