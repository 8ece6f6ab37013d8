#include "io/yaml_json.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <operant/buf.h>
#include <operant/config.h>

#include "io/file.h"
#include "io/utf8.h"
#include "io/yaml_doc.h"

typedef struct reading {
    yaml_document_t *doc;
    const char *name;
    op_error *e;
} reading;

/* Of a plain scalar. */
static json_t *value_of(const char *s)
{
    static const char *const none[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const yes[] = {"true", "True", "TRUE", NULL}, *const no[] = {"false", "False", "FALSE", NULL};
    char *end;
    if (op_config_is_among(s, none))
        return json_null();
    if (op_config_is_among(s, yes))
        return json_true();
    if (op_config_is_among(s, no))
        return json_false();
    if (strspn(s, "+-.0123456789eE") != strlen(s)) /* no inf, nan or hexadecimal: JSON cannot say them */
        return json_string(s);
    errno = 0;
    long long i = strtoll(s, &end, 10);
    if (!*end && !errno)
        return json_integer(i);
    double x = strtod(s, &end);
    return *end ? json_string(s) : json_real(x); /* NULL if it is too large for one */
}

static json_t *scalar(const reading *r, const yaml_node_t *node)
{
    const char *s = (const char *)node->data.scalar.value;
    if (strlen(s) != node->data.scalar.length) {
        op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: a text with a 0 byte", r->name, op_yaml_line(node));
        return NULL;
    }
    json_t *value = node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? value_of(s) : json_string(s);
    if (!value && op_utf8_valid(s) && !isinf(strtod(s, NULL)))
        op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    else if (!value)
        op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: \"%s\" has no place in JSON", r->name, op_yaml_line(node), s);
    return value;
}

/* NULL after an error. Depth is limited by op_yaml_load. */
static json_t *convert(const reading *r, int index)
{
    const yaml_node_t *node = yaml_document_get_node(r->doc, index);
    if (node->type == YAML_SCALAR_NODE)
        return scalar(r, node);
    bool list = node->type == YAML_SEQUENCE_NODE, ok = true;
    json_t *out = list ? json_array() : json_object();
    if (!out)
        op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    for (yaml_node_item_t *i = node->data.sequence.items.start; out && ok && list && i < node->data.sequence.items.top; i++) {
        json_t *value = convert(r, *i);
        ok = value && !json_array_append_new(out, value);
    }
    for (yaml_node_pair_t *p = node->data.mapping.pairs.start; out && ok && !list && p < node->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = yaml_document_get_node(r->doc, p->key);
        json_t *value = convert(r, p->value);
        ok = value && !json_object_set_new(out, (const char *)key->data.scalar.value, value);
    }
    if (out && !ok) {
        json_decref(out);
        out = NULL;
        if (!r->e->code)
            op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    }
    return out;
}

op_status op_yaml_to_json(json_t **out, const char *bytes, size_t n, const char *name, op_error *e)
{
    yaml_document_t doc;
    *out = NULL;
    op_status status = op_yaml_load(&doc, bytes, n, name, e);
    if (status)
        return status;
    op_error mine = {0};
    const reading r = {&doc, name, &mine};
    *out = yaml_document_get_root_node(&doc) ? convert(&r, 1) : json_null();
    yaml_document_delete(&doc);
    return *out ? OP_OK : op_error_set(e, mine.code, "%s", mine.message);
}

op_status op_yaml_read_json(json_t **out, const char *path, op_error *e)
{
    op_buf bytes;
    *out = NULL;
    op_buf_init(&bytes, OP_YAML_BYTES_MAX);
    op_status status = op_file_read(path, &bytes, e);
    if (!status)
        status = op_yaml_to_json(out, bytes.data, bytes.len, path, e);
    op_buf_release(&bytes);
    return status;
}
