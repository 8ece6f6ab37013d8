/* operant/config.h: settings structs described by a table, read from YAML and from key=value words.
 *
 * A settings struct of any module comes with an op_option table: one row a field with its key (and aliases), type,
 * default, range, unit and help. From the table come: defaults, YAML loading, command-line words, --help text, the
 * resolved config that a run directory keeps, and the error for an unknown key with the nearest known one.
 * YAML mappings nest with dots: `lora: {r: 16}` sets "lora.r". */
#ifndef OPERANT_CONFIG_H
#define OPERANT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/buf.h>
#include <operant/status.h>

typedef enum op_option_type {
    OP_OPTION_INT,    /* int64_t */
    OP_OPTION_FLOAT,  /* double; also takes 2e-4 and inf */
    OP_OPTION_BOOL,   /* bool: true/false/yes/no/on/off/1/0 */
    OP_OPTION_STRING, /* char *, owned by the settings, NULL when unset */
    OP_OPTION_CHOICE, /* int: index into `choices` */
    OP_OPTION_LIST,   /* char *: comma-separated words (a YAML sequence is joined), owned */
} op_option_type;

typedef struct op_option {
    const char *key;      /* "learning_rate|lr": the first is the name, the others are aliases; NULL ends the table */
    op_option_type type;
    size_t offset;        /* offsetof the field */
    const char *fallback; /* default, as it would be written in YAML; NULL: unset (strings and lists), else 0 */
    double min, max;      /* range of numbers, ends included; both 0: any */
    const char *choices;  /* "none|linear|cosine" */
    const char *help;     /* what it is, with its unit; one line */
} op_option;

/* Sets every field to its default. Fails only when memory is out. Must be called once before load and set. */
op_status op_config_init(void *settings, const op_option *table, op_error *e);
void op_config_release(void *settings, const op_option *table); /* frees strings, sets them to NULL */

/* Reads YAML (at most 1 MiB; anchors, aliases, tags and a setting given twice are errors). null unsets strings and lists, and is
 * no number. Fields read before an error keep what was read. Errors name the file, the line, the key, the value found and what was expected. */
op_status op_config_load(void *settings, const op_option *table, const char *path, op_error *e);
op_status op_config_parse(void *settings, const op_option *table, const char *yaml, size_t n, const char *name,
                          op_error *e);

/* Sets one field from "key=value"; the value null unsets. A field that cannot be set keeps its value. */
op_status op_config_set(void *settings, const op_option *table, const char *assignment, op_error *e);

/* Appends the resolved settings as YAML, or the table as help text (key, default, range, help). */
op_status op_config_write(const void *settings, const op_option *table, op_buf *out);
op_status op_config_help(const op_option *table, op_buf *out);

/* Is `word` one of `words`, which ends with NULL? */
bool op_config_is_among(const char *word, const char *const *words);
/* The known word nearest to `word` by edit distance, or NULL when none is near; `words` ends with NULL. */
const char *op_config_nearest(const char *word, const char *const *words);

#endif
