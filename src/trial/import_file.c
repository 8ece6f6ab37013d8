/* A file of feedback into a store. */
#include <operant/import.h>

#include <stdio.h>
#include <string.h>

#include <operant/jsonl.h>

#include "base/hash.h"
#include "base/mem.h"

typedef struct reading {
    op_store *store;
    const char *path;
    char hash[OP_HASH_HEX];
    const op_chat *chat;
    const op_import_options *o;
    op_import_result *result;
    int64_t (*ids)[2]; /* of the own form: the file's and the store's, in the order of the lines */
    size_t n_ids, cap_ids;
} reading;

static op_status remember(reading *r, int64_t old, int64_t new, const char *name, op_error *e)
{
    if (r->n_ids == r->cap_ids) {
        size_t cap = r->cap_ids ? 2 * r->cap_ids : 256;
        int64_t(*more)[2] = op_realloc(r->ids, cap * sizeof *more);
        if (!more)
            return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
        r->ids = more;
        r->cap_ids = cap;
    }
    r->ids[r->n_ids][0] = old;
    r->ids[r->n_ids++][1] = new;
    return OP_OK;
}

/* From a place in the line, or from the file's ids, to the store's. */
static op_status find_redone(const reading *r, op_trial *t, const op_trial *trials, const char *name, op_error *e)
{
    if (!t->redo_of)
        return OP_OK;
    if (t->redo_of < 0) {
        t->redo_of = trials[-t->redo_of - 1].id;
        return OP_OK;
    }
    for (size_t i = r->n_ids; i-- > 0;)
        if (r->ids[i][0] == t->redo_of) {
            t->redo_of = r->ids[i][1];
            return OP_OK;
        }
    return op_error_set(e, OP_ERR_FORMAT, "%s: redoes trial %lld, which no earlier line has as its 'id'", name, (long long)t->redo_of);
}

static op_status import_line(void *ctx, json_t *line, int number, op_error *e)
{
    reading *r = ctx;
    char name[OP_ERROR_MAX / 2], group[64], key[96];
    op_trial *trials;
    size_t n;
    const char *found;
    snprintf(name, sizeof name, "%s: line %d", r->path, number);
    snprintf(group, sizeof group, "%.12s:%d", r->hash, number);
    op_status s = op_import_line(&trials, &n, &found, line, r->chat, r->o, name, group, e);
    if (!s && r->result->lines && strcmp(r->result->form, found) != 0)
        s = op_error_set(e, OP_ERR_FORMAT, "%s: form %s after lines of form %s", name, found, r->result->form);
    for (size_t i = 0; !s && i < n; i++) {
        int64_t old = trials[i].id;
        snprintf(key, sizeof key, "import:%.32s:%d:%zu", r->hash, number, i);
        s = find_redone(r, &trials[i], trials, name, e);
        if (!s && (s = op_store_add(r->store, &trials[i], key, e)))
            op_error_prefix(e, "%s", name);
        if (!s && old)
            s = remember(r, old, trials[i].id, name, e);
        r->result->marks += trials[i].n_marks;
    }
    if (!s) {
        snprintf(r->result->form, sizeof r->result->form, "%s", found);
        r->result->lines++;
        r->result->trials += (int64_t)n;
    }
    op_import_release(trials, n);
    return s;
}

op_status op_import_file(op_store *s, const char *path, const op_chat *chat, const op_import_options *o, op_import_result *out, op_error *e)
{
    reading r = {.store = s, .path = path, .chat = chat, .o = o, .result = out};
    *out = (op_import_result){0};
    op_status status = op_store_begin(s, e);
    if (status)
        return status;
    status = op_json_lines_hashed(path, r.hash, import_line, &r, e);
    if (!status && !out->lines)
        status = op_error_set(e, OP_ERR_FORMAT, "%s: no lines", path);
    if (status)
        op_store_rollback(s);
    else
        status = op_store_commit(s, e);
    op_free(r.ids);
    return status;
}
