#include "io/safetensors.h"

#include <stdio.h>
#include <string.h>

#include <operant/jsonl.h>

#include "io/json.h"
#include "io/tensors.h"
#include "io/utf8.h"

static op_status no_memory(const char *path, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
}

/* The tensors of a file in their order: by size of element, the largest first, else as given. */
static void sort_by_element(const op_tensor_out *tensors, size_t n, const op_tensor_out **order)
{
    for (size_t size = 8, at = 0; size; size /= 2)
        for (size_t i = 0; i < n; i++)
            if (op_dtype_block_bytes(tensors[i].dtype) == size)
                order[at++] = &tensors[i];
}

static op_status check(const op_tensor_out *t, size_t *bytes, const char *path, op_error *e)
{
    op_status s = op_tensor_out_check(t, bytes, path, e);
    if (!s && op_dtype_block(t->dtype) != 1)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\": safetensors has no type %s", path, t->name,
                         op_dtype_name(t->dtype));
    return s;
}

static json_t *entry(const op_tensor_out *t, size_t begin, size_t end)
{
    json_t *shape = json_array();
    for (int i = 0; shape && i < t->rank; i++)
        if (json_array_append_new(shape, json_integer(t->shape[i]))) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s,s:o,s:[I,I]}", "dtype", op_dtype_name(t->dtype), "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)end);
}

static op_status add_meta(json_t *header, const op_safetensors_meta *meta, size_t n, const char *path, op_error *e)
{
    json_t *m = json_pack("{s:s}", "format", "pt");
    op_status s = m ? OP_OK : no_memory(path, e);
    for (size_t i = 0; i < n && !s; i++)
        if (!op_utf8_valid(meta[i].key) || !op_utf8_valid(meta[i].value))
            s = op_error_set(e, OP_ERR_ARG, "%s: metadata entry %zu is not UTF-8", path, i);
        else if (json_object_set_new(m, meta[i].key, json_string(meta[i].value)))
            s = no_memory(path, e);
    if (!s)
        return json_object_set_new(header, "__metadata__", m) ? no_memory(path, e) : OP_OK;
    json_decref(m);
    return s;
}

static op_status make_header(const op_tensor_out *const *order, size_t n, const op_safetensors_meta *meta, size_t n_meta,
                             op_buf *out, const char *path, op_error *e)
{
    json_t *header = json_object();
    op_status s = header ? add_meta(header, meta, n_meta, path, e) : no_memory(path, e);
    size_t at = 0, bytes = 0;
    for (size_t i = 0; i < n && !s; i++, at += bytes) {
        const op_tensor_out *t = order[i];
        s = check(t, &bytes, path, e);
        if (!s && json_object_get(header, t->name))
            s = op_error_set(e, OP_ERR_ARG, "%s: tensor \"%s\" is there twice", path, t->name);
        if (!s && json_object_set_new(header, t->name, entry(t, at, at + bytes)))
            s = no_memory(path, e);
    }
    if (!s)
        s = op_json_append(out, header) ? no_memory(path, e) : OP_OK;
    json_decref(header);
    if (s)
        return s;
    out->data[out->len - 1] = ' '; /* in place of the line end */
    while (out->len % 8 && !s)
        s = op_buf_puts(out, " ") ? no_memory(path, e) : OP_OK;
    return s;
}

static op_status write_file(const char *path, const op_tensor_out *const *order, size_t n, const op_buf *header, op_error *e)
{
    op_file f;
    uint64_t length = header->len;
    op_status s = op_file_create(&f, path, e);
    if (!s)
        s = op_file_write(&f, &length, sizeof length, e);
    if (!s)
        s = op_file_write(&f, header->data, header->len, e);
    for (size_t i = 0; i < n && !s; i++)
        s = op_tensor_out_write(order[i], &f, e);
    if (!s)
        return op_file_commit(&f, e);
    op_file_abort(&f);
    return s;
}

op_status op_safetensors_write(const char *path, const op_tensor_out *tensors, size_t n, const op_safetensors_meta *meta,
                               size_t n_meta, op_error *e)
{
    enum { HEADER_MAX = 100000000 };
    size_t bytes;
    for (size_t i = 0; i < n; i++) {
        op_status s = check(&tensors[i], &bytes, path, e);
        if (s)
            return s;
    }
    const op_tensor_out **order = op_alloc_array(n, sizeof *order);
    if (!order)
        return no_memory(path, e);
    sort_by_element(tensors, n, order);
    op_buf header;
    op_buf_init(&header, HEADER_MAX);
    op_status s = make_header(order, n, meta, n_meta, &header, path, e);
    if (!s)
        s = write_file(path, order, n, &header, e);
    op_buf_release(&header);
    op_free(order);
    return s;
}

/* The end of the shard that begins with tensor `from`. */
static op_status shard_end(const op_tensor_out *tensors, size_t n, size_t from, uint64_t most, size_t *end, const char *dir,
                           op_error *e)
{
    uint64_t sum = 0;
    size_t i = from, bytes;
    for (; i < n; i++) {
        op_status s = check(&tensors[i], &bytes, dir, e);
        if (s)
            return s;
        if (i > from && (bytes > most || sum > most - bytes))
            break;
        sum += bytes;
    }
    *end = i;
    return OP_OK;
}

static op_status write_index(const char *dir, json_t *map, uint64_t total, op_error *e)
{
    json_t *index = json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *path = op_path_join(dir, "model.safetensors.index.json");
    op_status s = index && path ? op_json_write(path, index, e) : no_memory(dir, e);
    op_free(path);
    json_decref(index);
    return s;
}

static op_status write_shards(const char *dir, const op_tensor_out *tensors, size_t n, const op_safetensors_meta *meta,
                              size_t n_meta, uint64_t shard_bytes, size_t count, op_error *e)
{
    json_t *map = json_object();
    op_status s = map ? OP_OK : no_memory(dir, e);
    uint64_t total = 0;
    for (size_t k = 0, from = 0, end = 0; k < count && !s; k++, from = end) {
        char name[64];
        snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", k + 1, count);
        char *path = op_path_join(dir, name);
        s = path ? shard_end(tensors, n, from, shard_bytes, &end, dir, e) : no_memory(dir, e);
        for (size_t i = from, bytes = 0; i < end && !s; i++) {
            if (json_object_get(map, tensors[i].name))
                s = op_error_set(e, OP_ERR_ARG, "%s: tensor \"%s\" is there twice", dir, tensors[i].name);
            else if (json_object_set_new(map, tensors[i].name, json_string(name)))
                s = no_memory(dir, e);
            else
                s = check(&tensors[i], &bytes, dir, e);
            total += bytes;
        }
        if (!s)
            s = op_safetensors_write(path, tensors + from, end - from, meta, n_meta, e);
        op_free(path);
    }
    if (!s)
        s = write_index(dir, map, total, e);
    json_decref(map);
    return s;
}

static op_status remove_other(const char *dir, const char *name, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status s = path ? op_path_remove(path, e) : no_memory(dir, e);
    op_free(path);
    return s;
}

op_status op_safetensors_write_dir(const char *dir, const op_tensor_out *tensors, size_t n, const op_safetensors_meta *meta,
                                   size_t n_meta, uint64_t shard_bytes, op_error *e)
{
    size_t count = 0;
    for (size_t from = 0; from < n; count++) {
        op_status s = shard_end(tensors, n, from, shard_bytes, &from, dir, e);
        if (s)
            return s;
    }
    if (count > 1) {
        op_status s = write_shards(dir, tensors, n, meta, n_meta, shard_bytes, count, e);
        return s ? s : remove_other(dir, "model.safetensors", e);
    }
    char *path = op_path_join(dir, "model.safetensors");
    op_status s = path ? op_safetensors_write(path, tensors, n, meta, n_meta, e) : no_memory(dir, e);
    op_free(path);
    return s ? s : remove_other(dir, "model.safetensors.index.json", e);
}
