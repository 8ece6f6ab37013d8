/* operant/jsonl.h: files of JSON objects, one a line (.jsonl), or one array of them (.json), plain or gzipped; or rows of texts under a row of their keys (.csv). */
#ifndef OPERANT_JSONL_H
#define OPERANT_JSONL_H

#include <stddef.h>

#include <jansson.h>

#include <operant/buf.h>
#include <operant/status.h>

/* Reads the whole file (at most 1 GiB after unpacking) and calls fn for each object, in order, with its line from 1
 * (for an array: its index from 1; a row of a .csv may go on over several). `object` is borrowed. A status other than OP_OK from fn ends the walk and is returned. */
typedef op_status (*op_json_line_fn)(void *ctx, json_t *object, int line, op_error *e);
op_status op_json_lines(const char *path, op_json_line_fn fn, void *ctx, op_error *e);
/* The same, and before the first call hash[65] receives the SHA-256 of the file's bytes, as they lie on the disk. */
op_status op_json_lines_hashed(const char *path, char *hash, op_json_line_fn fn, void *ctx, op_error *e);
op_status op_json_lines_parse(const char *bytes, size_t n, const char *name, op_json_line_fn fn, void *ctx, op_error *e);

/* Appends one object, compact, with a line end. Keys keep their order; floats are written with up to 9 significant digits. */
op_status op_json_append(op_buf *out, const json_t *object);

#endif
