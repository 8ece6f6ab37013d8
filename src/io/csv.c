#include "io/csv.h"

#include <stdbool.h>
#include <string.h>

#include "io/json.h"
#include "io/utf8.h"

enum { COLUMNS_MAX = 4096 };

typedef struct reader {
    const char *at, *end, *name;
    int line;
    op_buf field;
    op_error *e;
} reader;

static op_status complain(const reader *r, int line, const char *what)
{
    return op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: %s", r->name, line, what);
}

static op_status keep(reader *r, const char *bytes, size_t n)
{
    op_status s = op_buf_add(&r->field, bytes, n);
    return s ? op_error_set(r->e, s, "%s: line %d: a field: %s", r->name, r->line, op_status_string(s)) : OP_OK;
}

static const char *text_of(const reader *r)
{
    return r->field.len ? r->field.data : "";
}

/* What stands between quotes, where two are one. */
static op_status read_quoted(reader *r)
{
    int begun = r->line;
    op_status s = OP_OK;
    for (r->at++; !s && r->at < r->end; r->at++) {
        if (*r->at == '"' && (++r->at == r->end || *r->at != '"'))
            return r->at == r->end || strchr(",\r\n", *r->at) ? OP_OK : complain(r, r->line, "found something behind a closing quote, expected a comma or the end of the line");
        r->line += *r->at == '\n' || (*r->at == '\r' && (r->at + 1 == r->end || r->at[1] != '\n'));
        s = keep(r, r->at, 1);
    }
    return s ? s : complain(r, begun, "a quote that is not closed");
}

/* The next field of the row; *more: another follows. */
static op_status read_field(reader *r, bool *more)
{
    op_status s = OP_OK;
    op_buf_clear(&r->field);
    if (r->at < r->end && *r->at == '"') {
        s = read_quoted(r);
    } else {
        const char *from = r->at;
        while (r->at < r->end && !strchr(",\r\n", *r->at))
            r->at++;
        s = memchr(from, '"', (size_t)(r->at - from)) ? complain(r, r->line, "found a quote in a field that does not begin with one") : keep(r, from, (size_t)(r->at - from));
    }
    *more = r->at < r->end && *r->at == ',';
    r->at += *more;
    return s || op_utf8_valid(text_of(r)) ? s : complain(r, r->line, "expected UTF-8");
}

/* \n, \r\n, or \r by itself */
static void end_line(reader *r)
{
    const char *from = r->at;
    r->at += r->at < r->end && *r->at == '\r';
    r->at += r->at < r->end && *r->at == '\n';
    r->line += r->at > from;
}

static op_status read_row(reader *r, json_t *row)
{
    bool more = true;
    op_status s = OP_OK;
    while (!s && more) {
        if (json_array_size(row) == COLUMNS_MAX)
            return complain(r, r->line, "found more than 4096 fields");
        s = read_field(r, &more);
        if (!s && json_array_append_new(row, json_string(text_of(r))))
            s = op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    }
    if (!s)
        end_line(r);
    return s;
}

static op_status check_keys(const reader *r, const json_t *keys, int line)
{
    size_t n = json_array_size(keys);
    for (size_t i = 0; i < n; i++) {
        if (!json_string_length(json_array_get(keys, i)))
            return complain(r, line, "a column without a name");
        for (size_t k = 0; k < i; k++)
            if (json_equal(json_array_get(keys, i), json_array_get(keys, k)))
                return op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: two columns are called \"%.100s\"", r->name, line, json_string_value(json_array_get(keys, i)));
    }
    return OP_OK;
}

static op_status visit(const reader *r, const json_t *keys, const json_t *row, int line, op_json_line_fn fn, void *ctx)
{
    size_t n = json_array_size(keys), found = json_array_size(row);
    if (found != n)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: found %zu fields, expected %zu as in the first row", r->name, line, found, n);
    json_t *object = json_object();
    bool ok = object;
    for (size_t i = 0; ok && i < n; i++)
        ok = !json_object_set(object, json_string_value(json_array_get(keys, i)), json_array_get(row, i));
    op_status s = ok ? fn(ctx, object, line, r->e) : op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    json_decref(object);
    return s;
}

op_status op_csv_parse(const char *bytes, size_t n, const char *name, op_json_line_fn fn, void *ctx, op_error *e)
{
    bool mark = n >= 3 && !memcmp(bytes, "\xef\xbb\xbf", 3);
    reader r = {.at = bytes + 3 * mark, .end = bytes + n, .name = name, .line = 1, .e = e};
    json_t *keys = NULL;
    op_status s = n && memchr(bytes, 0, n) ? op_error_set(e, OP_ERR_FORMAT, "%s: found a 0 byte, expected text", name) : OP_OK; /* from here on bytes are texts */
    op_buf_init(&r.field, OP_JSON_BYTES_MAX);
    while (!s && r.at < r.end) {
        if (strchr("\r\n", *r.at)) {
            end_line(&r);
            continue;
        }
        int line = r.line;
        json_t *row = json_array();
        s = row ? read_row(&r, row) : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
        if (!s && !keys)
            s = check_keys(&r, keys = json_incref(row), line);
        else if (!s)
            s = visit(&r, keys, row, line, fn, ctx);
        json_decref(row);
    }
    json_decref(keys);
    op_buf_release(&r.field);
    return s;
}
