#include <operant/jsonl.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "io/csv.h"
#include "io/file.h"
#include "io/json.h"
#include "io/zip.h"

static op_status visit(json_t *v, const char *name, const char *unit, int line, op_json_line_fn fn, void *ctx, op_error *e)
{
    if (!json_is_object(v))
        return op_error_set(e, OP_ERR_FORMAT, "%s: %s %d: found %s, expected an object", name, unit, line, op_json_kind(v));
    return fn(ctx, v, line, e);
}

static op_status walk_array(const char *bytes, size_t n, const char *name, op_json_line_fn fn, void *ctx, op_error *e)
{
    json_t *array;
    op_status s = op_json_parse(&array, bytes, n, name, e);
    if (s)
        return s;
    size_t i;
    json_t *v;
    json_array_foreach(array, i, v) {
        s = visit(v, name, "element", (int)i + 1, fn, ctx, e);
        if (s)
            break;
    }
    json_decref(array);
    return s;
}

static size_t blanks(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && strchr(" \t\r\n", s[i]) && s[i])
        i++;
    return i;
}

op_status op_json_lines_parse(const char *bytes, size_t n, const char *name, op_json_line_fn fn, void *ctx, op_error *e)
{
    if (n >= 3 && !memcmp(bytes, "\xef\xbb\xbf", 3)) { /* a byte order mark, as some editors write */
        bytes += 3;
        n -= 3;
    }
    size_t start = blanks(bytes, n);
    if (start < n && bytes[start] == '[')
        return walk_array(bytes, n, name, fn, ctx, e);
    op_status s = OP_OK;
    int line = 1;
    for (size_t i = 0, len; i < n && !s; i += len + 1, line++) {
        const char *end = memchr(bytes + i, '\n', n - i);
        len = end ? (size_t)(end - (bytes + i)) : n - i;
        if (blanks(bytes + i, len) == len)
            continue;
        char where[OP_ERROR_MAX];
        snprintf(where, sizeof where, "%s: line %d", name, line);
        json_t *v;
        s = op_json_parse(&v, bytes + i, len, where, e);
        if (!s)
            s = visit(v, name, "line", line, fn, ctx, e);
        json_decref(v);
    }
    return s;
}

static op_status parse(const char *bytes, size_t n, const char *path, op_json_line_fn fn, void *ctx, op_error *e)
{
    size_t length = strlen(path);
    bool csv = length > 4 && !strcmp(path + length - 4, ".csv");
    return (csv ? op_csv_parse : op_json_lines_parse)(bytes, n, path, fn, ctx, e);
}

op_status op_json_lines_hashed(const char *path, char *hash, op_json_line_fn fn, void *ctx, op_error *e)
{
    op_map m;
    op_status s = op_map_open(&m, path, e);
    if (s)
        return s;
    if (hash)
        op_hash(m.data, m.size, hash);
    op_buf unpacked;
    op_buf_init(&unpacked, OP_JSON_BYTES_MAX);
    if (m.size > OP_JSON_BYTES_MAX)
        s = op_error_set(e, OP_ERR_FORMAT, "%s: found %zu bytes, expected at most %zu", path, m.size, OP_JSON_BYTES_MAX);
    else if (m.size >= 2 && m.data[0] == 0x1f && m.data[1] == 0x8b) {
        s = op_gunzip(m.data, m.size, &unpacked, path, e);
        if (!s)
            s = parse(unpacked.data, unpacked.len, path, fn, ctx, e);
    } else
        s = parse((const char *)m.data, m.size, path, fn, ctx, e);
    op_buf_release(&unpacked);
    op_map_close(&m);
    return s;
}

op_status op_json_lines(const char *path, op_json_line_fn fn, void *ctx, op_error *e)
{
    return op_json_lines_hashed(path, NULL, fn, ctx, e);
}

static int add_text(const char *bytes, size_t n, void *out)
{
    return op_buf_add(out, bytes, n) ? -1 : 0;
}

op_status op_json_append(op_buf *out, const json_t *object)
{
    size_t before = out->len;
    if (!json_dump_callback(object, add_text, out, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) &&
        !op_buf_add(out, "\n", 1))
        return OP_OK;
    out->len = before; /* a line is appended whole or not at all */
    if (out->data)
        out->data[before] = 0;
    return OP_ERR_NOMEM;
}
