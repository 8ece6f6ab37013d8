/* io/json.h: JSON as jansson's values, with limits and with errors that say where.
 *
 * Duplicate keys are refused, keys keep their order, integers beyond 64 bits become reals (tokenizer_config.json has
 * them). All of jansson's memory comes from op_alloc. In messages, `name` is the file or other source of the bytes. */
#ifndef OP_IO_JSON_H
#define OP_IO_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/status.h>

#define OP_JSON_BYTES_MAX ((size_t)1 << 30)
#define OP_JSON_DEPTH_MAX 64

/* Parses any JSON value of at most OP_JSON_BYTES_MAX bytes nested at most OP_JSON_DEPTH_MAX deep. The caller decrefs. */
op_status op_json_parse(json_t **out, const char *bytes, size_t n, const char *name, op_error *e);
op_status op_json_read(json_t **out, const char *path, op_error *e);

/* Writes one value, indented for people, atomically. */
op_status op_json_write(const char *path, const json_t *value, op_error *e);

/* "a string", "an object", ... for messages. */
const char *op_json_kind(const json_t *value);

/* The value of object's key as a C type. A missing or null key leaves *out as it is and is an error only if `required`.
 * A value of another type is OP_ERR_FORMAT and names key, found and expected. Pointers are borrowed from the object.
 * An integer is taken where a float is asked for; a string must hold no 0 byte. */
op_status op_json_get_string(const json_t *object, const char *key, bool required, const char **out, const char *name,
                             op_error *e);
op_status op_json_get_int(const json_t *object, const char *key, bool required, int64_t min, int64_t max, int64_t *out,
                          const char *name, op_error *e);
op_status op_json_get_float(const json_t *object, const char *key, bool required, double *out, const char *name,
                            op_error *e);
op_status op_json_get_bool(const json_t *object, const char *key, bool required, bool *out, const char *name,
                           op_error *e);
op_status op_json_get_array(const json_t *object, const char *key, bool required, json_t **out, const char *name,
                            op_error *e);
op_status op_json_get_object(const json_t *object, const char *key, bool required, json_t **out, const char *name,
                             op_error *e);

#endif
