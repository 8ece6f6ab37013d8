/* lab/yaml_get.h: what the lab's own YAML files (rules, candidates) are made of: mappings with known keys, lists, texts. */
#ifndef OP_LAB_YAML_GET_H
#define OP_LAB_YAML_GET_H

#include "io/yaml_doc.h"

/* Reads and loads a file; its root must be a mapping. The caller ends *out with yaml_document_delete. */
op_status op_yaml_open(yaml_document_t *out, const char *path, op_error *e);

/* Every key of `map` must be among `keys` (NULL-terminated). */
op_status op_yaml_check_keys(yaml_document_t *doc, const yaml_node_t *map, const char *const *keys, const char *name, op_error *e);
/* The value of a key, of this type (YAML_SCALAR_NODE, ...). A missing one is an error. Borrowed from the document. */
op_status op_yaml_get(yaml_document_t *doc, const yaml_node_t *map, const char *key, yaml_node_type_t type, const yaml_node_t **out,
                      const char *name, op_error *e);
/* The text of a scalar node, which holds no 0 byte. */
const char *op_yaml_text(const yaml_node_t *node);

#endif
