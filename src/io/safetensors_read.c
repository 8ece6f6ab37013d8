#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/tensors.h"

enum { LENGTH_BYTES = 8, HEADER_MAX = 100000000 };

static const op_dtype plain[] = {OP_F32, OP_F16, OP_BF16, OP_F64, OP_I8, OP_I16, OP_I32, OP_I64,
                                 OP_U8, OP_U16, OP_U32, OP_U64, OP_BOOL};

static op_status no_memory(const char *path, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
}

static bool find_dtype(const char *name, op_dtype *out)
{
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(name, op_dtype_name(plain[i]))) {
            *out = plain[i];
            return true;
        }
    return false;
}

/* The messages of a tensor's entry begin with `where`, "file: tensor "name"". `base` is the file offset of the data. */
static op_status read_shape(op_tensor *t, const json_t *entry, const char *where, op_error *e)
{
    json_t *shape;
    op_status s = op_json_get_array(entry, "shape", true, &shape, where, e);
    if (s)
        return s;
    if (json_array_size(shape) > OP_TENSOR_RANK_MAX)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: found %zu dimensions, expected at most %d", where,
                            json_array_size(shape), OP_TENSOR_RANK_MAX);
    size_t i;
    json_t *v;
    json_array_foreach(shape, i, v) {
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return op_error_set(e, OP_ERR_FORMAT, "%s: size %zu of the shape: found %s, expected an integer from 0 up", where,
                                i, json_is_integer(v) ? "a negative number" : op_json_kind(v));
        t->shape[t->rank++] = json_integer_value(v);
    }
    if (!op_tensor_measure(t))
        return op_error_set(e, OP_ERR_FORMAT, "%s: the shape's product overflows", where);
    return OP_OK;
}

static op_status read_entry(op_tensor *t, json_t *entry, size_t base, size_t room, const unsigned char *file,
                            const char *where, op_error *e)
{
    const char *dtype = NULL;
    json_t *offsets = NULL;
    if (!json_is_object(entry))
        return op_error_set(e, OP_ERR_FORMAT, "%s: found %s, expected an object", where, op_json_kind(entry));
    const char *key;
    json_t *v;
    json_object_foreach(entry, key, v)
        if (strcmp(key, "dtype") && strcmp(key, "shape") && strcmp(key, "data_offsets"))
            return op_error_set(e, OP_ERR_FORMAT, "%s: unknown key \"%s\", expected dtype, shape and data_offsets", where, key);
    op_status s = op_json_get_string(entry, "dtype", true, &dtype, where, e);
    if (s)
        return s;
    if (!find_dtype(dtype, &t->dtype))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: unknown dtype \"%s\"", where, dtype);
    s = read_shape(t, entry, where, e);
    if (!s)
        s = op_json_get_array(entry, "data_offsets", true, &offsets, where, e);
    if (s)
        return s;
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return op_error_set(e, OP_ERR_FORMAT, "%s: data_offsets: expected two integers", where);
    int64_t from = json_integer_value(begin), to = json_integer_value(end);
    if (from < 0 || to < from || (uint64_t)to > room)
        return op_error_set(e, OP_ERR_FORMAT, "%s: data_offsets: found %lld to %lld, out of range: "
                            "the data at offset %zu have %zu bytes", where, (long long)from, (long long)to, base, room);
    if ((size_t)(to - from) != t->bytes)
        return op_error_set(e, OP_ERR_FORMAT, "%s: offset %zu: found %lld bytes, expected %zu for its shape and dtype", where,
                            base + (size_t)from, (long long)(to - from), t->bytes);
    t->data = file + base + (size_t)from;
    return OP_OK;
}

static int by_place(const void *a, const void *b)
{
    const op_tensor *x = *(op_tensor *const *)a, *y = *(op_tensor *const *)b;
    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The tensors must cover the data exactly: no holes, no overlaps. */
static op_status check_cover(op_tensor *tensors, size_t n, const op_map *m, size_t base, const char *path, op_error *e)
{
    op_tensor **order = op_alloc_array(n, sizeof *order);
    if (!order)
        return no_memory(path, e);
    for (size_t i = 0; i < n; i++)
        order[i] = &tensors[i];
    qsort(order, n, sizeof *order, by_place);
    op_status s = OP_OK;
    size_t at = base;
    for (size_t i = 0; i < n && !s; i++) {
        size_t begin = (size_t)((const unsigned char *)order[i]->data - m->data);
        if (begin != at)
            s = op_error_set(e, OP_ERR_FORMAT, "%s: offset %zu: %s before tensor \"%s\" at offset %zu", path,
                             begin < at ? begin : at, begin < at ? "an overlap" : "a hole", order[i]->name, begin);
        at = begin + order[i]->bytes;
    }
    if (!s && at != m->size)
        s = op_error_set(e, OP_ERR_FORMAT, "%s: offset %zu: a hole of %zu bytes after the last tensor", path, at, m->size - at);
    op_free(order);
    return s;
}

static op_status check_metadata(json_t *meta, const char *path, op_error *e)
{
    if (!json_is_object(meta))
        return op_error_set(e, OP_ERR_FORMAT, "%s: key \"__metadata__\": found %s, expected an object", path, op_json_kind(meta));
    const char *key;
    json_t *v;
    json_object_foreach(meta, key, v)
        if (!json_is_string(v))
            return op_error_set(e, OP_ERR_FORMAT, "%s: key \"__metadata__\": \"%s\": found %s, expected a string", path, key,
                                op_json_kind(v));
    return OP_OK;
}

/* Appends the tensors of one file's parsed header. With `chosen`, a weight_map, only those that it places in `shard`. */
static op_status add_tensors(op_tensors *t, json_t *header, const op_map *m, size_t base, const json_t *chosen,
                             const char *shard, const char *path, op_error *e)
{
    size_t n = json_object_size(header);
    op_tensor *all = op_alloc_zero(n, sizeof *all);
    op_tensor *grown = op_realloc(t->tensors, (t->n + n + 1) * sizeof *grown);
    t->tensors = grown ? grown : t->tensors;
    op_status s = all && grown ? OP_OK : no_memory(path, e);
    n = 0;
    const char *key;
    json_t *v;
    json_object_foreach(header, key, v) {
        if (s)
            break;
        if (!strcmp(key, "__metadata__")) {
            s = check_metadata(v, path, e);
            if (!s && !t->metadata)
                t->metadata = json_incref(v);
            continue;
        }
        char where[OP_ERROR_MAX];
        snprintf(where, sizeof where, "%s: tensor \"%s\"", path, key);
        op_tensor *x = &all[n++];
        x->name = op_tensors_copy(t, key, strlen(key));
        s = x->name ? read_entry(x, v, base, m->size - base, m->data, where, e) : no_memory(path, e);
    }
    if (!s)
        s = check_cover(all, n, m, base, path, e);
    for (size_t i = 0; i < n && !s; i++) {
        const char *home = chosen ? json_string_value(json_object_get(chosen, all[i].name)) : NULL;
        if (!chosen || (home && !strcmp(home, shard)))
            t->tensors[t->n++] = all[i];
    }
    op_free(all);
    return s;
}

static op_status parse_file(op_tensors *t, const op_map *m, const char *path, const json_t *chosen, const char *shard,
                            op_error *e)
{
    if (m->size < LENGTH_BYTES)
        return op_error_set(e, OP_ERR_FORMAT, "%s: found %zu bytes, expected at least %d", path, m->size, LENGTH_BYTES);
    uint64_t length;
    memcpy(&length, m->data, sizeof length);
    if (length > HEADER_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "%s: offset 0: found a header of %llu bytes, expected at most %d", path,
                            (unsigned long long)length, HEADER_MAX);
    if (length > m->size - LENGTH_BYTES)
        return op_error_set(e, OP_ERR_FORMAT, "%s: offset 0: found a header of %llu bytes in a file of %zu", path,
                            (unsigned long long)length, m->size);
    const char *text = (const char *)m->data + LENGTH_BYTES;
    if (!length || *text != '{')
        return op_error_set(e, OP_ERR_FORMAT, "%s: offset %d: the header does not begin with '{'", path, LENGTH_BYTES);
    char where[OP_ERROR_MAX];
    snprintf(where, sizeof where, "%s: header", path);
    json_t *header;
    op_status s = op_json_parse(&header, text, length, where, e);
    if (s)
        return s;
    s = add_tensors(t, header, m, LENGTH_BYTES + length, chosen, shard, path, e);
    json_decref(header);
    return s;
}

static op_status index_names(op_tensors *t, const char *path, op_error *e)
{
    if (op_index_init(&t->index, t->n))
        return no_memory(path, e);
    for (size_t i = 0; i < t->n; i++)
        if (!op_index_add(&t->index, t->tensors[i].name, (uint32_t)i))
            return op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is there twice", path, t->tensors[i].name);
    return OP_OK;
}

op_status op_safetensors_parse(op_tensors *t, const op_map *bytes, const char *path, op_error *e)
{
    t->format = OP_SAFETENSORS;
    op_status s = parse_file(t, bytes, path, NULL, NULL, e);
    return s ? s : index_names(t, path, e);
}

/* A shard is a plain file beside the index. */
static bool is_plain_name(const char *name)
{
    return *name && *name != '.' && !strchr(name, '/');
}

static op_status read_shard(op_tensors *t, const char *path, const json_t *map, const char *shard, op_error *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? op_strndup(path, (size_t)(slash - path) + 1) : op_strdup(".");
    char *file = dir ? op_path_join(dir, shard) : NULL;
    const op_map *m;
    op_status s = file ? op_tensors_map(t, file, &m, e) : no_memory(path, e);
    if (!s)
        s = parse_file(t, m, file, map, shard, e);
    op_free(dir);
    op_free(file);
    return s;
}

op_status op_safetensors_read_index(op_tensors *t, const char *path, op_error *e)
{
    t->format = OP_SAFETENSORS;
    json_t *index, *map = NULL, *home;
    op_status s = op_json_read(&index, path, e);
    if (s)
        return s;
    json_t *shards = json_object(); /* the set of shards read so far */
    if (!shards)
        s = no_memory(path, e);
    else
        s = json_is_object(index) ? op_json_get_object(index, "weight_map", true, &map, path, e)
                                  : op_error_set(e, OP_ERR_FORMAT, "%s: found %s, expected an object", path, op_json_kind(index));
    const char *name, *shard;
    if (!s)
        json_object_foreach(map, name, home) {
            shard = json_string_value(home);
            if (!shard || !is_plain_name(shard) || strlen(shard) != json_string_length(home))
                s = op_error_set(e, OP_ERR_FORMAT, "%s: weight_map: tensor \"%s\": expected the name of a file beside the index",
                                 path, name);
            else if (!json_object_get(shards, shard))
                s = json_object_set_new(shards, shard, json_true()) ? no_memory(path, e)
                                                                    : read_shard(t, path, map, shard, e);
            if (s)
                break;
        }
    if (!s)
        s = index_names(t, path, e);
    if (!s)
        json_object_foreach(map, name, home)
            if (op_index_find(&t->index, name) < 0) {
                s = op_error_set(e, OP_ERR_MISMATCH, "%s: weight_map: tensor \"%s\" is not in \"%s\"", path, name,
                                 json_string_value(home));
                break;
            }
    json_decref(shards);
    json_decref(index);
    return s;
}
