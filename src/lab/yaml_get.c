#include "lab/yaml_get.h"

#include <string.h>

#include <operant/config.h>

#include "io/file.h"

op_status op_yaml_open(yaml_document_t *out, const char *path, op_error *e)
{
    op_buf bytes;
    op_buf_init(&bytes, OP_YAML_BYTES_MAX);
    op_status status = op_file_read(path, &bytes, e);
    if (!status)
        status = op_yaml_load(out, bytes.data, bytes.len, path, e);
    op_buf_release(&bytes);
    if (status)
        return status;
    const yaml_node_t *root = yaml_document_get_root_node(out);
    if (!root || root->type != YAML_MAPPING_NODE) {
        yaml_document_delete(out);
        return op_error_set(e, OP_ERR_FORMAT, "%s: expected a mapping", path);
    }
    return OP_OK;
}

op_status op_yaml_check_keys(yaml_document_t *doc, const yaml_node_t *map, const char *const *keys, const char *name, op_error *e)
{
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
        const yaml_node_t *node = yaml_document_get_node(doc, p->key);
        const char *key = op_yaml_text(node);
        const char *const *known = keys;
        while (*known && strcmp(*known, key) != 0)
            known++;
        if (*known)
            continue;
        const char *near = op_config_nearest(key, keys);
        return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: unknown key \"%.60s\"%s%s%s", name, op_yaml_line(node), key,
                            near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    }
    return OP_OK;
}

op_status op_yaml_get(yaml_document_t *doc, const yaml_node_t *map, const char *key, yaml_node_type_t type, const yaml_node_t **out,
                      const char *name, op_error *e)
{
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
        if (strcmp(op_yaml_text(yaml_document_get_node(doc, p->key)), key) != 0)
            continue;
        *out = yaml_document_get_node(doc, p->value);
        if ((*out)->type == type && (type != YAML_SCALAR_NODE || strlen(op_yaml_text(*out)) == (*out)->data.scalar.length))
            return OP_OK;
        return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: key \"%s\": expected %s", name, op_yaml_line(*out), key,
                            type == YAML_SCALAR_NODE ? "a text" : type == YAML_SEQUENCE_NODE ? "a list" : "a mapping");
    }
    return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: key \"%s\" is missing", name, op_yaml_line(map), key);
}

const char *op_yaml_text(const yaml_node_t *node)
{
    return (const char *)node->data.scalar.value;
}
