#include "io/yaml_doc.h"

#include <string.h>

static op_status refuse(const yaml_parser_t *p, const char *name, op_error *e)
{
    if (p->error == YAML_MEMORY_ERROR)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    if (p->error == YAML_READER_ERROR)
        return op_error_set(e, OP_ERR_FORMAT, "%s: offset %zu: %s", name, p->problem_offset, p->problem);
    return op_error_set(e, OP_ERR_FORMAT, "%s: line %zu, column %zu: %s", name, p->problem_mark.line + 1,
                        p->problem_mark.column + 1, p->problem ? p->problem : "not YAML");
}

/* What an event may not have. libyaml's documents no longer show anchors and tags, so the events are looked at first. */
static const char *surprise(const yaml_event_t *v)
{
    switch (v->type) {
    case YAML_ALIAS_EVENT: return "an alias";
    case YAML_SCALAR_EVENT: return v->data.scalar.anchor ? "an anchor" : v->data.scalar.tag ? "a tag" : NULL;
    case YAML_SEQUENCE_START_EVENT:
        return v->data.sequence_start.anchor ? "an anchor" : v->data.sequence_start.tag ? "a tag" : NULL;
    case YAML_MAPPING_START_EVENT:
        return v->data.mapping_start.anchor ? "an anchor" : v->data.mapping_start.tag ? "a tag" : NULL;
    default: return NULL;
    }
}

static op_status check_events(yaml_parser_t *p, const char *name, op_error *e)
{
    int depth = 0, documents = 0;
    yaml_event_type_t type = YAML_NO_EVENT;
    op_status s = OP_OK;
    while (!s && type != YAML_STREAM_END_EVENT) {
        yaml_event_t v;
        if (!yaml_parser_parse(p, &v))
            return refuse(p, name, e);
        type = v.type;
        depth += type == YAML_SEQUENCE_START_EVENT || type == YAML_MAPPING_START_EVENT;
        depth -= type == YAML_SEQUENCE_END_EVENT || type == YAML_MAPPING_END_EVENT;
        documents += type == YAML_DOCUMENT_START_EVENT;
        size_t line = v.start_mark.line + 1;
        if (surprise(&v))
            s = op_error_set(e, OP_ERR_FORMAT, "%s: line %zu: found %s, which is not allowed here", name, line, surprise(&v));
        else if (depth > OP_YAML_DEPTH_MAX)
            s = op_error_set(e, OP_ERR_FORMAT, "%s: line %zu: nested deeper than %d levels", name, line, OP_YAML_DEPTH_MAX);
        else if (documents > 1)
            s = op_error_set(e, OP_ERR_FORMAT, "%s: line %zu: found a second document, expected one", name, line);
        yaml_event_delete(&v);
    }
    return s;
}

/* Sorting would be faster, but a mapping written by hand is short. */
static op_status check_keys(yaml_document_t *doc, const char *name, op_error *e)
{
    enum { KEYS_MAX = 4096 };
    yaml_node_t *node;
    for (int i = 1; (node = yaml_document_get_node(doc, i)); i++) {
        if (node->type != YAML_MAPPING_NODE)
            continue;
        yaml_node_pair_t *start = node->data.mapping.pairs.start, *top = node->data.mapping.pairs.top;
        if (top - start > KEYS_MAX)
            return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: found %td keys, expected at most %d", name,
                                op_yaml_line(node), top - start, KEYS_MAX);
        for (yaml_node_pair_t *a = start; a < top; a++) {
            yaml_node_t *key = yaml_document_get_node(doc, a->key);
            if (key->type != YAML_SCALAR_NODE || strlen((char *)key->data.scalar.value) != key->data.scalar.length)
                return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: found a key that is no plain word", name,
                                    op_yaml_line(key));
            for (yaml_node_pair_t *b = start; b < a; b++) {
                yaml_node_t *other = yaml_document_get_node(doc, b->key);
                if (!strcmp((char *)key->data.scalar.value, (char *)other->data.scalar.value))
                    return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: key \"%s\" stands on line %d already", name,
                                        op_yaml_line(key), (char *)key->data.scalar.value, op_yaml_line(other));
            }
        }
    }
    return OP_OK;
}

op_status op_yaml_load(yaml_document_t *out, const char *bytes, size_t n, const char *name, op_error *e)
{
    if (n > OP_YAML_BYTES_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "%s: found %zu bytes of YAML, expected at most %zu", name, n, OP_YAML_BYTES_MAX);
    op_status s = OP_OK;
    for (int pass = 0; pass < 2 && !s; pass++) {
        yaml_parser_t p;
        if (!yaml_parser_initialize(&p))
            return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
        yaml_parser_set_input_string(&p, (const unsigned char *)bytes, n);
        if (pass == 0)
            s = check_events(&p, name, e);
        else if (!yaml_parser_load(&p, out))
            s = refuse(&p, name, e);
        yaml_parser_delete(&p);
    }
    if (!s) {
        s = check_keys(out, name, e);
        if (s)
            yaml_document_delete(out);
    }
    return s;
}

int op_yaml_line(const yaml_node_t *node)
{
    return (int)node->start_mark.line + 1;
}
