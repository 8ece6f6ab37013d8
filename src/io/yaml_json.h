/* io/yaml_json.h: a YAML file as a JSON value, for files whose shape is a tree (protocols, experiments) and not a table of settings.
 *
 * Mappings become objects, sequences lists, quoted scalars strings. A plain scalar is null (empty, ~, null), true or false (true, false), an
 * integer or a float where all of it reads as one, and otherwise a string, as in YAML's core schema; yes, no, on and off are strings. Limits are those of
 * io/yaml_doc.h. */
#ifndef OP_IO_YAML_JSON_H
#define OP_IO_YAML_JSON_H

#include <jansson.h>

#include <operant/status.h>

/* The caller decrefs *out. An empty file is null. `name` stands in messages. */
op_status op_yaml_to_json(json_t **out, const char *bytes, size_t n, const char *name, op_error *e);
op_status op_yaml_read_json(json_t **out, const char *path, op_error *e);

#endif
