/* What decides the outcome of a run, as a checkpoint and its resume must share it: settings, weights, and what the files that are named say. */
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/file.h"
#include "trial/session_parts.h"
#include "trial/settings.h"
#include "trial/teachers.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the session");
}

/* The bytes of every file that settings name under "file" or "labelled": what it says is part of the run. */
static op_status hash_files(const char *dir, const json_t *x, op_hasher *h, op_error *e)
{
    op_status status = OP_OK;
    const char *key;
    json_t *value;
    size_t i;
    json_array_foreach((json_t *)x, i, value)
        status = status ? status : hash_files(dir, value, h, e);
    json_object_foreach((json_t *)x, key, value) {
        char *path = NULL;
        op_map map = {0};
        if ((strcmp(key, "file") != 0 && strcmp(key, "labelled") != 0) || !json_is_string(value)) {
            status = status ? status : hash_files(dir, value, h, e);
            continue;
        }
        status = status ? status : op_settings_path(&path, dir, json_string_value(value), e);
        if (!status)
            status = op_map_open(&map, path, e);
        if (!status)
            op_hash_add(h, map.data, map.size);
        op_map_close(&map);
        op_free(path);
    }
    return status;
}

/* The weights of every judge among the teachers; *n counts them. */
static op_status hash_judges(const char *dir, const json_t *x, op_hasher *h, int *n, op_error *e)
{
    op_status status = OP_OK;
    const char *key, *type = json_string_value(json_object_get(x, "type"));
    json_t *value;
    size_t i;
    if (type && !strcmp(type, "judge")) {
        char hex[OP_HASH_HEX];
        status = op_judge_weights(x, dir, hex, e);
        if (!status)
            op_hash_add(h, hex, strlen(hex));
        ++*n;
    }
    json_array_foreach((json_t *)x, i, value)
        status = status ? status : hash_judges(dir, value, h, n, e);
    json_object_foreach((json_t *)x, key, value)
        status = status ? status : hash_judges(dir, value, h, n, e);
    return status;
}

/* The stages, with the defaults that they take from the top. */
static json_t *stages_of(const op_protocol *p)
{
    static const char *const parts[] = {"stages", "cues", "teacher", "schedule"};
    json_t *all = json_object();
    bool ok = all;
    for (size_t i = 0; ok && i < sizeof parts / sizeof *parts; i++)
        if (json_object_get(p->root, parts[i]))
            ok = !json_object_set(all, parts[i], json_object_get(p->root, parts[i]));
    if (!ok) {
        json_decref(all);
        all = NULL;
    }
    return all;
}

static op_status hash_text(const json_t *x, op_hasher *h, op_error *e)
{
    char *text = json_dumps(x, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return no_memory(e);
    op_hash_add(h, text, strlen(text));
    op_free(text);
    return OP_OK;
}

/* Of the stages and of the files that they name; and of their judges, "" where there are none. */
static op_status hash_stages(const op_protocol *p, const char *dir, char stages[OP_HASH_HEX], char judges[OP_HASH_HEX], op_error *e)
{
    json_t *all = stages_of(p);
    op_status status = all ? OP_OK : no_memory(e);
    op_hasher h, of_judges;
    int n = 0;
    op_hash_begin(&h);
    op_hash_begin(&of_judges);
    if (!status)
        status = hash_text(all, &h, e);
    if (!status)
        status = hash_files(dir, all, &h, e);
    if (!status)
        status = hash_judges(dir, all, &of_judges, &n, e);
    op_hash_end(&h, stages);
    op_hash_end(&of_judges, judges);
    if (!n)
        *judges = 0;
    json_decref(all);
    return status;
}

static bool put(json_t *identity, const char *what, const char *hex)
{
    return !*hex || !json_object_set_new(identity, what, json_string(hex));
}

op_status op_session_identity(const op_session *s, const op_protocol *p, const char *dir, json_t **identity, char run_id[OP_HASH_HEX], op_error *e)
{
    static const char *const leave_out[] = {"store", "reference", "save_rounds", "keep_probes", NULL};
    char model[OP_HASH_HEX], reference[OP_HASH_HEX] = "none", stages[OP_HASH_HEX], judges[OP_HASH_HEX];
    json_t *all = *identity = json_object();
    op_status status = all ? op_model_hash(s->subject.model, model, e) : no_memory(e);
    if (!status && s->reference.model)
        status = op_model_hash(s->reference.model, reference, e);
    if (!status)
        status = op_trainee_identity(all, &p->o, op_protocol_table, leave_out, e);
    if (!status)
        status = hash_stages(p, dir, stages, judges, e);
    if (!status && (!put(all, "stages with hash", stages) || !put(all, "the judges with hash", judges) || !put(all, "the reference model with hash", reference) ||
                    !put(all, "the base model with hash", model)))
        status = no_memory(e);
    op_hasher h;
    op_hash_begin(&h);
    if (!status)
        status = hash_text(all, &h, e);
    op_hash_end(&h, run_id);
    return status;
}
