/* Metadata of both formats: safetensors' strings and GGUF's typed values. */
#include <math.h>
#include <string.h>

#include "io/tensors.h"

static const op_gguf_pair *find_pair(const op_tensors *t, const char *key)
{
    int64_t i = op_index_find(&t->keys, key);
    return i < 0 ? NULL : &t->pairs[i];
}

const op_gguf_pair *op_gguf_array(const op_tensors *t, const char *key)
{
    const op_gguf_pair *p = find_pair(t, key);
    return p && p->type == GGUF_ARRAY ? p : NULL;
}

/* Element i of an array of `type`, if that is an integer (or a truth value) that fits. */
static bool load_int(op_gguf_type type, const unsigned char *data, size_t i, int64_t *out)
{
#define CASE(tag, ctype)                               \
    case tag: {                                        \
        ctype v;                                       \
        memcpy(&v, data + i * sizeof v, sizeof v);     \
        *out = (int64_t)v;                             \
        return true;                                   \
    }
    switch (type) {
    CASE(GGUF_U8, uint8_t)
    CASE(GGUF_I8, int8_t)
    CASE(GGUF_U16, uint16_t)
    CASE(GGUF_I16, int16_t)
    CASE(GGUF_U32, uint32_t)
    CASE(GGUF_I32, int32_t)
    CASE(GGUF_BOOL, uint8_t)
    CASE(GGUF_I64, int64_t)
    case GGUF_U64:
        memcpy(out, data + i * sizeof *out, sizeof *out);
        return *out >= 0; /* not what is beyond INT64_MAX */
    default: return false;
    }
#undef CASE
}

static bool load_float(op_gguf_type type, const unsigned char *data, size_t i, double *out)
{
    int64_t whole;
    float single;
    if (type == GGUF_F64) {
        memcpy(out, data + i * sizeof *out, sizeof *out);
    } else if (type == GGUF_F32) {
        memcpy(&single, data + i * sizeof single, sizeof single);
        *out = (double)single;
    } else {
        if (!load_int(type, data, i, &whole))
            return false;
        *out = (double)whole;
    }
    return true;
}

const char *op_tensors_meta_string(const op_tensors *t, const char *key, size_t *len)
{
    const op_gguf_pair *p = find_pair(t, key);
    const char *s = p && p->type == GGUF_STRING ? (const char *)p->data : NULL;
    size_t n = s ? p->n : 0;
    if (t->format == OP_SAFETENSORS) {
        const json_t *v = json_object_get(t->metadata, key);
        s = json_string_value(v);
        n = json_string_length(v);
    }
    if (len)
        *len = n;
    return s;
}

int64_t op_tensors_meta_int(const op_tensors *t, const char *key, int64_t fallback)
{
    const op_gguf_pair *p = find_pair(t, key);
    int64_t v;
    return p && load_int(p->type, p->data, 0, &v) ? v : fallback;
}

double op_tensors_meta_float(const op_tensors *t, const char *key, double fallback)
{
    const op_gguf_pair *p = find_pair(t, key);
    double v;
    return p && load_float(p->type, p->data, 0, &v) ? v : fallback;
}

size_t op_tensors_meta_array(const op_tensors *t, const char *key)
{
    const op_gguf_pair *p = op_gguf_array(t, key);
    return p ? p->n : 0;
}

static const char *string_at(const op_gguf_pair *p, size_t i, size_t *len)
{
    uint64_t n;
    memcpy(&n, p->strings[i], sizeof n);
    *len = n;
    return (const char *)p->strings[i] + sizeof n;
}

const char *op_gguf_array_string(const op_gguf_pair *p, size_t i, size_t *len)
{
    *len = 0;
    return p && p->strings && i < p->n ? string_at(p, i, len) : NULL;
}

const char *op_tensors_meta_array_string(const op_tensors *t, const char *key, size_t i, size_t *len)
{
    return op_gguf_array_string(op_gguf_array(t, key), i, len);
}

int64_t op_gguf_array_int(const op_gguf_pair *p, size_t i)
{
    int64_t v;
    return p && i < p->n && load_int(p->item, p->data, i, &v) ? v : 0;
}

int64_t op_tensors_meta_array_int(const op_tensors *t, const char *key, size_t i)
{
    return op_gguf_array_int(op_gguf_array(t, key), i);
}

double op_tensors_meta_array_float(const op_tensors *t, const char *key, size_t i)
{
    const op_gguf_pair *p = op_gguf_array(t, key);
    double v;
    return p && i < p->n && load_float(p->item, p->data, i, &v) ? v : 0;
}

/* A string that is no UTF-8 cannot stand in JSON: its length does. */
static json_t *string_json(const char *s, size_t n)
{
    json_t *v = json_stringn(s, n);
    return v ? v : json_pack("{s:I}", "bytes", (json_int_t)n);
}

static json_t *value_json(op_gguf_type type, const unsigned char *data, size_t i)
{
    int64_t whole;
    double real;
    uint64_t big;
    if (type == GGUF_BOOL)
        return json_boolean(data[i]);
    if (load_int(type, data, i, &whole))
        return json_integer(whole);
    if (type == GGUF_U64) {
        memcpy(&big, data + i * sizeof big, sizeof big);
        return json_real((double)big);
    }
    load_float(type, data, i, &real);
    return isfinite(real) ? json_real(real) : json_null();
}

static json_t *array_json(const op_gguf_pair *p, size_t longest)
{
    static const char *const names[GGUF_TYPE_COUNT] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string",
                                                       "array", "u64", "i64", "f64"};
    if (p->n > longest)
        return json_pack("{s:I,s:s}", "array", (json_int_t)p->n, "type", names[p->item]);
    json_t *array = json_array();
    for (size_t i = 0; array && i < p->n; i++) {
        size_t len;
        const char *s = p->strings ? string_at(p, i, &len) : NULL;
        if (json_array_append_new(array, s ? string_json(s, len) : value_json(p->item, p->data, i))) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

json_t *op_tensors_meta_json(const op_tensors *t, size_t longest)
{
    if (t->format == OP_SAFETENSORS)
        return t->metadata ? json_copy(t->metadata) : json_object();
    json_t *object = json_object();
    for (size_t i = 0; object && i < t->n_pairs; i++) {
        const op_gguf_pair *p = &t->pairs[i];
        json_t *v = p->type == GGUF_ARRAY    ? array_json(p, longest)
                    : p->type == GGUF_STRING ? string_json((const char *)p->data, p->n)
                                             : value_json(p->type, p->data, 0);
        if (json_object_set_new(object, p->key, v)) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}
