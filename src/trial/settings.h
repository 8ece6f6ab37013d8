/* trial/settings.h: what the JSON settings of teachers and schedules of reinforcement are read with. */
#ifndef OP_TRIAL_SETTINGS_H
#define OP_TRIAL_SETTINGS_H

#include <stdbool.h>

#include <jansson.h>

#include <operant/status.h>

/* `settings` must be an object, and every key of it among `keys` (NULL-terminated): the error names the key and the nearest known one. */
op_status op_settings_check(const json_t *settings, const char *const *keys, const char *name, op_error *e);
/* One of the words of `choices` ("a|b|c"): *out becomes its index. A missing key leaves *out as it is. */
op_status op_settings_choice(const json_t *settings, const char *key, const char *choices, int *out, const char *name, op_error *e);
/* A number in min .. max. A missing key leaves *out as it is. */
op_status op_settings_number(const json_t *settings, const char *key, double min, double max, double *out, const char *name, op_error *e);
/* The same from a string or an array of strings: `each` is called for every one. At least one if required. */
op_status op_settings_words(const json_t *settings, const char *key, bool required, op_status (*each)(void *ctx, const char *word, op_error *e), void *ctx,
                            const char *name, op_error *e);
/* "dir/path" as a new string (op_free), or `path` alone where it is absolute, dir is NULL, or only the working directory has it. */
op_status op_settings_path(char **out, const char *dir, const char *path, op_error *e);

#endif
