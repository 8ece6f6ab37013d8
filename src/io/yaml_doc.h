/* io/yaml_doc.h: YAML through libyaml's document API, without the parts of YAML that surprise.
 *
 * One document of at most 1 MiB, nested at most 32 deep; anchors, aliases, tags and duplicate keys are errors. Errors name the
 * source, the line and what was found. libyaml has no hook for memory: its allocations are not op_alloc's. */
#ifndef OP_IO_YAML_DOC_H
#define OP_IO_YAML_DOC_H

#include <stddef.h>

#include <yaml.h>

#include <operant/status.h>

#define OP_YAML_BYTES_MAX ((size_t)1 << 20)
#define OP_YAML_DEPTH_MAX 32

/* The caller ends a loaded document with yaml_document_delete. An empty source gives a document without a root node. */
op_status op_yaml_load(yaml_document_t *out, const char *bytes, size_t n, const char *name, op_error *e);

/* The line of a node, from 1. */
int op_yaml_line(const yaml_node_t *node);

#endif
