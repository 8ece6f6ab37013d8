/* The store: trials in tables. What is SQL is here, and is read by both databases: arguments are numbered in the order of their first use, and an argument
 * whose type no column tells is cast. Feedback (judgements, marks, alternatives) is only ever inserted. */
#include <operant/store.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "trial/store_db.h"

#define SCHEMA_VERSION 1

struct op_store {
    op_db *db;
    int depth; /* op_store_begin without its end: 0 or 1 */
};

#define TRIAL_COLUMNS                                                                                                                                       \
    "prompt, response, logprobs, forced, policy, temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, seed, finish, messages, tags, redo_of, " \
    "redo_at, time"

/* Token ids are 4-byte integers and log-probabilities 4-byte floats, the lowest byte first, in rows of bytes. */
static const char *const schema[] = {
    "CREATE TABLE operant_store (version BIGINT NOT NULL)",
    "CREATE TABLE trials (id %s, key TEXT UNIQUE, prompt BYTEA NOT NULL, response BYTEA NOT NULL, logprobs BYTEA, forced BIGINT NOT NULL, policy TEXT NOT NULL,"
    " temperature DOUBLE PRECISION, top_k BIGINT, top_p DOUBLE PRECISION, min_p DOUBLE PRECISION, repetition_penalty DOUBLE PRECISION, max_tokens BIGINT,"
    " seed BIGINT, finish BIGINT NOT NULL, messages TEXT, tags TEXT NOT NULL, redo_of BIGINT REFERENCES trials(id), redo_at BIGINT NOT NULL, time BIGINT NOT NULL)",
    "CREATE TABLE judgements (id %s, trial BIGINT NOT NULL REFERENCES trials(id), teacher TEXT, reward DOUBLE PRECISION)",
    "CREATE TABLE marks (id %s, trial BIGINT NOT NULL REFERENCES trials(id), from_token BIGINT NOT NULL, to_token BIGINT NOT NULL,"
    " value DOUBLE PRECISION NOT NULL, teacher TEXT, note TEXT)",
    "CREATE TABLE alternatives (id %s, trial BIGINT NOT NULL REFERENCES trials(id), at_token BIGINT NOT NULL, tokens BYTEA NOT NULL, logprob DOUBLE PRECISION,"
    " picked BIGINT NOT NULL, teacher TEXT)",
    "CREATE TABLE tags (id %s, trial BIGINT NOT NULL REFERENCES trials(id), name TEXT NOT NULL, value TEXT NOT NULL)", /* for finding; trials.tags is the truth */
    "CREATE INDEX judgements_trial ON judgements (trial)",
    "CREATE INDEX marks_trial ON marks (trial)",
    "CREATE INDEX alternatives_trial ON alternatives (trial)",
    "CREATE INDEX tags_trial ON tags (trial)",
    "CREATE INDEX tags_value ON tags (name, value, trial)",
    NULL};

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for a stored trial");
}

static op_status no_rows(void *ctx, const op_db_value *columns, op_error *e)
{
    (void)ctx;
    (void)columns;
    (void)e;
    return OP_OK;
}

static op_status one_int(void *ctx, const op_db_value *columns, op_error *e)
{
    (void)e;
    *(int64_t *)ctx = columns[0].i;
    return OP_OK;
}

static op_status run(op_store *s, const char *sql, const op_db_value *args, int n, op_error *e)
{
    return s->db->run(s->db, sql, args, n, no_rows, NULL, e);
}

/* ---- transactions: what the caller began, or one of each call's own; inside of the caller's, a savepoint ---- */

static op_status enter(op_store *s, bool write, op_error *e)
{
    if (!s->depth)
        return s->db->exec(s->db, write ? s->db->begin_write : s->db->begin_read, e);
    return write ? s->db->exec(s->db, "SAVEPOINT inner_write", e) : OP_OK;
}

static op_status leave(op_store *s, bool write, op_status status, op_error *e)
{
    if (!status)
        status = !s->depth ? s->db->exec(s->db, "COMMIT", e) : write ? s->db->exec(s->db, "RELEASE SAVEPOINT inner_write", e) : OP_OK;
    if (status && !s->depth)
        s->db->exec(s->db, "ROLLBACK", NULL);
    else if (status && write && !s->db->exec(s->db, "ROLLBACK TO SAVEPOINT inner_write", NULL))
        s->db->exec(s->db, "RELEASE SAVEPOINT inner_write", NULL);
    return status;
}

op_status op_store_begin(op_store *s, op_error *e)
{
    if (s->depth)
        return op_error_set(e, OP_ERR_ARG, "the store is in a transaction already");
    op_status status = s->db->exec(s->db, s->db->begin_write, e);
    s->depth = !status;
    return status;
}

op_status op_store_commit(op_store *s, op_error *e)
{
    if (!s->depth)
        return op_error_set(e, OP_ERR_ARG, "the store is in no transaction");
    s->depth = 0;
    return leave(s, true, OP_OK, e);
}

void op_store_rollback(op_store *s)
{
    if (s->depth)
        s->db->exec(s->db, "ROLLBACK", NULL);
    s->depth = 0;
}

/* ---- opening ---- */

static op_status is_there(op_store *s, int64_t *found, op_error *e)
{
    *found = 0;
    return s->db->run(s->db, s->db->probe, NULL, 0, one_int, found, e);
}

/* Several processes may come to a new store at once: the first makes the tables, the others find them. */
static op_status make_schema(op_store *s, op_error *e)
{
    int64_t found = 0;
    op_status status = s->db->exec(s->db, s->db->begin_schema, e);
    if (status)
        return status;
    status = is_there(s, &found, e);
    for (int i = 0; !status && !found && schema[i]; i++) {
        char sql[1024];
        snprintf(sql, sizeof sql, schema[i], s->db->id);
        status = s->db->exec(s->db, sql, e);
    }
    const op_db_value version = op_db_int(SCHEMA_VERSION);
    if (!status && !found)
        status = run(s, "INSERT INTO operant_store (version) VALUES ($1)", &version, 1, e);
    return leave(s, true, status, e);
}

/* `make`: one that is not there. */
static op_status open_store(op_store **out, const char *url, bool make, op_error *e)
{
    bool server = url && (!strncmp(url, "postgresql://", 13) || !strncmp(url, "postgres://", 11));
    *out = NULL;
    if (!url || !*url)
        return op_error_set(e, OP_ERR_ARG, "no store: expected a file or postgresql://...");
    const char *path = url + (strncmp(url, "sqlite:", 7) ? 0 : 7);
    if (!make && !server && !op_path_exists(path))
        return OP_OK;
    op_store *s = op_alloc_zero(1, sizeof *s);
    if (!s)
        return no_memory(e);
    int64_t found = 0, version = 0;
    op_status status = server ? op_db_open_postgres(&s->db, url, e) : op_db_open_sqlite(&s->db, path, e);
    status = status ? status : is_there(s, &found, e);
    if (!status && !found && !make) {
        op_store_close(s);
        return OP_OK;
    }
    if (!status && !found)
        status = make_schema(s, e);
    status = status ? status : s->db->run(s->db, "SELECT version FROM operant_store", NULL, 0, one_int, &version, e);
    if (!status && version != SCHEMA_VERSION)
        status = op_error_set(e, OP_ERR_MISMATCH, "the store has version %lld of the tables, expected %d", (long long)version, SCHEMA_VERSION);
    if (status)
        op_store_close(s);
    else
        *out = s;
    return status;
}

op_status op_store_open(op_store **out, const char *url, op_error *e)
{
    return open_store(out, url, true, e);
}

op_status op_store_find(op_store **out, const char *url, op_error *e)
{
    return open_store(out, url, false, e);
}

void op_store_close(op_store *s)
{
    if (s && s->db) {
        op_store_rollback(s);
        s->db->close(s->db);
    }
    op_free(s);
}

/* ---- reading ---- */

static op_status copy_text(char **out, const op_db_value *v, op_error *e)
{
    *out = v->kind == OP_DB_TEXT ? op_strdup(v->bytes) : NULL;
    return v->kind == OP_DB_TEXT && !*out ? no_memory(e) : OP_OK;
}

/* A row of 4-byte numbers. */
static op_status copy_numbers(void *out, int32_t *n, const op_db_value *v, op_error *e)
{
    void *copy = op_alloc(v->n);
    if (!copy)
        return no_memory(e);
    if (v->n % 4 || v->n / 4 > INT32_MAX) {
        op_free(copy);
        return op_error_set(e, OP_ERR_FORMAT, "a stored row of %zu bytes, expected 4 for each token", v->n);
    }
    if (v->n)
        memcpy(copy, v->bytes, v->n);
    memcpy(out, &copy, sizeof copy);
    *n = (int32_t)(v->n / 4);
    return OP_OK;
}

/* A string, or NULL: bytes in a column of text end in no 0. */
static const char *text_of(const op_db_value *v)
{
    return v->kind == OP_DB_TEXT ? v->bytes : NULL;
}

static op_status take_int32(int32_t *out, const op_db_value *v, int32_t max, const char *what, op_error *e)
{
    if (v->i < 0 || v->i > max)
        return op_error_set(e, OP_ERR_FORMAT, "stored %s is %lld, expected 0..%d", what, (long long)v->i, max);
    *out = (int32_t)v->i;
    return OP_OK;
}

static op_status take_json(json_t **out, const op_db_value *v, const char *what, op_error *e)
{
    return v->kind == OP_DB_TEXT ? op_json_parse(out, v->bytes, v->n, what, e) : op_error_set(e, OP_ERR_FORMAT, "%s: found no text, expected JSON", what);
}

static op_status trial_row(void *ctx, const op_db_value *c, op_error *e)
{
    op_trial *t = ctx;
    json_t *tags = NULL;
    int32_t n_logprobs = 0, finish = 0;
    op_status s = copy_numbers(&t->prompt, &t->n_prompt, &c[0], e);
    s = s ? s : copy_numbers(&t->response, &t->n_response, &c[1], e);
    if (!s && c[2].kind == OP_DB_BYTES) {
        s = copy_numbers(&t->logprobs, &n_logprobs, &c[2], e);
        if (!s && n_logprobs != t->n_response)
            s = op_error_set(e, OP_ERR_FORMAT, "%d stored log-probabilities for %d tokens", n_logprobs, t->n_response);
    }
    if (text_of(&c[4]))
        snprintf(t->policy, sizeof t->policy, "%s", text_of(&c[4]));
    t->sampler = (op_sampling){.temperature = c[5].real, .top_p = c[7].real, .min_p = c[8].real, .repetition_penalty = c[9].real, .seed = (uint64_t)c[11].i};
    s = s ? s : take_int32(&t->n_forced, &c[3], t->n_response, "number of forced tokens", e);
    s = s ? s : take_int32(&t->sampler.top_k, &c[6], INT32_MAX, "top_k", e);
    s = s ? s : take_int32(&t->sampler.max_tokens, &c[10], INT32_MAX, "max_tokens", e);
    s = s ? s : take_int32(&finish, &c[12], OP_FINISH_VETO, "reason to finish", e);
    s = s ? s : take_int32(&t->redo_at, &c[16], INT32_MAX, "token to redo from", e);
    t->finish = (op_finish)finish;
    if (!s && c[13].kind != OP_DB_NULL)
        s = take_json(&t->messages, &c[13], "stored messages", e);
    s = s ? s : take_json(&tags, &c[14], "stored tags", e);
    if (!s) {
        json_decref(t->tags);
        t->tags = tags;
    }
    t->redo_of = c[15].i;
    t->time = c[17].i;
    return s;
}

/* The trial is `by` who judged it first; the last reward counts. */
static op_status judgement_row(void *ctx, const op_db_value *c, op_error *e)
{
    op_trial *t = ctx;
    if (c[1].kind == OP_DB_REAL) {
        t->has_reward = true;
        t->reward = c[1].real;
    }
    return t->by ? OP_OK : copy_text(&t->by, &c[0], e);
}

static op_status mark_row(void *ctx, const op_db_value *c, op_error *e)
{
    int32_t from = 0, to = 0;
    op_status s = take_int32(&from, &c[0], INT32_MAX, "beginning of a mark", e);
    s = s ? s : take_int32(&to, &c[1], INT32_MAX, "end of a mark", e);
    return s ? s : op_trial_add_mark(ctx, from, to, c[2].real, text_of(&c[3]), text_of(&c[4]), e);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

static bool same_number(double a, double b)
{
    return a == b || (isnan(a) && isnan(b));
}

/* The same continuation by the same teacher, whatever was thought of it. */
static bool same_alternative(const op_alternative *a, const op_alternative *b)
{
    return a->at == b->at && a->n == b->n && !memcmp(a->ids, b->ids, (size_t)a->n * 4) && same_text(a->by, b->by);
}

/* What came later of the same alternative (it was picked) takes the place of what came before. */
static op_status alternative_row(void *ctx, const op_db_value *c, op_error *e)
{
    op_trial *t = ctx;
    int32_t *ids = NULL, n = 0, at = 0;
    op_status s = take_int32(&at, &c[0], INT32_MAX, "place of an alternative", e);
    s = s ? s : copy_numbers(&ids, &n, &c[1], e);
    s = s ? s : op_trial_add_alternative(t, at, ids, n, c[2].kind == OP_DB_REAL ? c[2].real : NAN, c[3].i, text_of(&c[4]), e);
    op_free(ids);
    op_alternative *last = s ? NULL : &t->alternatives[t->n_alternatives - 1];
    for (op_alternative *a = t->alternatives; !s && a < last; a++)
        if (same_alternative(a, last)) {
            a->picked = last->picked;
            a->logprob = isnan(last->logprob) ? a->logprob : last->logprob;
            op_free(last->ids);
            op_free(last->by);
            t->n_alternatives--;
            break;
        }
    return s;
}

static op_status read_trial(op_store *s, int64_t id, op_trial *t, op_error *e)
{
    const op_db_value key = op_db_int(id);
    op_db *d = s->db;
    op_trial_init(t);
    t->id = id;
    op_status status = t->tags ? OP_OK : no_memory(e);
    status = status ? status : d->run(d, "SELECT " TRIAL_COLUMNS " FROM trials WHERE id = $1", &key, 1, trial_row, t, e);
    if (!status && !t->prompt)
        status = op_error_set(e, OP_ERR_ARG, "there is no trial %lld", (long long)id);
    status = status ? status : d->run(d, "SELECT teacher, reward FROM judgements WHERE trial = $1 ORDER BY id", &key, 1, judgement_row, t, e);
    status = status ? status : d->run(d, "SELECT from_token, to_token, value, teacher, note FROM marks WHERE trial = $1 ORDER BY id", &key, 1, mark_row, t, e);
    status = status ? status
                    : d->run(d, "SELECT at_token, tokens, logprob, picked, teacher FROM alternatives WHERE trial = $1 ORDER BY id", &key, 1, alternative_row, t, e);
    status = status ? status : op_trial_check(t, 0, e);
    if (status == OP_ERR_FORMAT)
        op_error_prefix(e, "trial %lld", (long long)id);
    if (status)
        op_trial_release(t);
    return status;
}

op_status op_store_get(op_store *s, int64_t id, op_trial *out, op_error *e)
{
    *out = (op_trial){0};
    op_status status = enter(s, false, e);
    if (status)
        return status;
    status = leave(s, false, read_trial(s, id, out, e), e);
    if (status)
        op_trial_release(out);
    return status;
}

/* ---- writing ---- */

static op_status write_mark(op_store *s, int64_t trial, const op_mark *m, const char *by, op_error *e)
{
    const op_db_value args[] = {op_db_int(trial), op_db_int(m->start), op_db_int(m->end), op_db_real(m->value), op_db_text(by), op_db_text(m->note)};
    return run(s, "INSERT INTO marks (trial, from_token, to_token, value, teacher, note) VALUES ($1, $2, $3, $4, $5, $6)", args, 6, e);
}

static op_status write_alternative(op_store *s, int64_t trial, const op_alternative *a, op_error *e)
{
    const op_db_value args[] = {op_db_int(trial), op_db_int(a->at), op_db_bytes(a->ids, (size_t)a->n * 4), isnan(a->logprob) ? (op_db_value){0} : op_db_real(a->logprob),
                                op_db_int(a->picked), op_db_text(a->by)};
    return run(s, "INSERT INTO alternatives (trial, at_token, tokens, logprob, picked, teacher) VALUES ($1, $2, $3, $4, $5, $6)", args, 6, e);
}

static op_status write_reward(op_store *s, const op_trial *t, op_error *e)
{
    const op_db_value args[] = {op_db_int(t->id), op_db_text(t->by), t->has_reward ? op_db_real(t->reward) : (op_db_value){0}};
    return run(s, "INSERT INTO judgements (trial, teacher, reward) VALUES ($1, $2, $3)", args, 3, e);
}

static op_status write_tags(op_store *s, const op_trial *t, op_error *e)
{
    const char *name;
    json_t *v;
    op_status status = OP_OK;
    json_object_foreach(t->tags, name, v) {
        char *text = json_is_string(v) ? op_strdup(json_string_value(v)) : json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
        const op_db_value args[] = {op_db_int(t->id), op_db_text(name), op_db_text(text)};
        status = text ? run(s, "INSERT INTO tags (trial, name, value) VALUES ($1, $2, $3)", args, 3, e) : no_memory(e);
        op_free(text);
        if (status)
            break;
    }
    return status;
}

/* *id stays 0 if the key is there already. */
static op_status insert_trial(op_store *s, const op_trial *t, const char *key, int64_t *id, op_error *e)
{
    static const char sql[] = "INSERT INTO trials (key, " TRIAL_COLUMNS ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
                              " ON CONFLICT (key) DO NOTHING RETURNING id";
    char *messages = t->messages ? json_dumps(t->messages, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    char *tags = json_dumps(t->tags, JSON_COMPACT | JSON_REAL_PRECISION(17));
    op_status status = tags && (messages || !t->messages) ? OP_OK : no_memory(e);
    const op_sampling *x = &t->sampler;
    const op_db_value null = {0}, args[] = {
        op_db_text(key), op_db_bytes(t->prompt, (size_t)t->n_prompt * 4), op_db_bytes(t->n_response ? (const void *)t->response : "", (size_t)t->n_response * 4),
        op_db_bytes(t->logprobs, (size_t)t->n_response * 4), op_db_int(t->n_forced), op_db_text(t->policy),
        t->logprobs ? op_db_real(x->temperature) : null, t->logprobs ? op_db_int(x->top_k) : null, t->logprobs ? op_db_real(x->top_p) : null,
        t->logprobs ? op_db_real(x->min_p) : null, t->logprobs ? op_db_real(x->repetition_penalty) : null, t->logprobs ? op_db_int(x->max_tokens) : null,
        t->logprobs ? op_db_int((int64_t)x->seed) : null, op_db_int(t->finish), op_db_text(messages), op_db_text(tags),
        t->redo_of ? op_db_int(t->redo_of) : null, op_db_int(t->redo_at), op_db_int(t->time)};
    *id = 0;
    status = status ? status : s->db->run(s->db, sql, args, sizeof args / sizeof *args, one_int, id, e);
    op_free(messages);
    op_free(tags);
    return status;
}

static op_status add_new(op_store *s, const op_trial *t, op_error *e)
{
    op_status status = write_tags(s, t, e);
    if (!status && (t->has_reward || t->by))
        status = write_reward(s, t, e);
    for (int32_t i = 0; !status && i < t->n_marks; i++)
        status = write_mark(s, t->id, &t->marks[i], t->marks[i].by, e);
    for (int32_t i = 0; !status && i < t->n_alternatives; i++)
        status = write_alternative(s, t->id, &t->alternatives[i], e);
    return status;
}

static bool same_mark(const op_mark *a, const op_mark *b)
{
    return a->start == b->start && a->end == b->end && a->value == b->value && same_text(a->note, b->note);
}

/* Adds what `was`, the stored trial, does not have. Marks of nobody in particular are the trial's own teacher's. */
static op_status add_feedback(op_store *s, const op_trial *t, op_trial *was, op_error *e)
{
    const char *owner = was->by ? was->by : t->by;
    const op_db_value who[] = {op_db_int(t->id), op_db_text(t->by)};
    op_status status = OP_OK;
    if (t->has_reward && (!was->has_reward || !same_number(was->reward, t->reward)))
        status = write_reward(s, t, e);
    else if (t->by && !same_text(t->by, was->by))
        status = run(s, "INSERT INTO judgements (trial, teacher) SELECT CAST($1 AS BIGINT), CAST($2 AS TEXT)"
                        " WHERE NOT EXISTS (SELECT 1 FROM judgements WHERE trial = $1 AND teacher = $2)", who, 2, e);
    int32_t n_marks = was->n_marks, n_alternatives = was->n_alternatives;
    for (int32_t i = 0; !status && i < t->n_marks; i++) {
        const op_mark *m = &t->marks[i];
        const char *by = m->by ? m->by : t->by;
        int32_t k = 0;
        while (k < n_marks && !(same_mark(m, &was->marks[k]) && same_text(by, was->marks[k].by ? was->marks[k].by : owner)))
            k++;
        by = same_text(by, owner) ? m->by : by;
        if (k == n_marks && !(status = write_mark(s, t->id, m, by, e)))
            status = op_trial_add_mark(was, m->start, m->end, m->value, by ? by : owner, m->note, e);
    }
    for (int32_t i = 0; !status && i < t->n_alternatives; i++) {
        const op_alternative *a = &t->alternatives[i], *b = was->alternatives;
        while (b < was->alternatives + n_alternatives && !same_alternative(a, b))
            b++;
        bool there = b < was->alternatives + n_alternatives && a->picked == b->picked && (isnan(a->logprob) || same_number(a->logprob, b->logprob));
        status = there ? OP_OK : write_alternative(s, t->id, a, e);
    }
    if (!status && !was->by && owner && !(was->by = op_strdup(owner))) /* as it will be read */
        status = no_memory(e);
    return status ? status : op_trial_check(was, 0, e); /* with the new marks: no teacher contradicts what it said before */
}

static op_status merge(op_store *s, const op_trial *t, const char *key, op_error *e)
{
    op_trial was;
    const op_db_value id = op_db_int(t->id);
    /* holds the trial's row, so that two that bring the same feedback at once do not both find it missing */
    op_status status = run(s, "UPDATE trials SET time = time WHERE id = $1", &id, 1, e);
    status = status ? status : read_trial(s, t->id, &was, e);
    if (status)
        return status;
    bool same = was.n_response == t->n_response && was.n_prompt == t->n_prompt && !memcmp(was.prompt, t->prompt, (size_t)t->n_prompt * 4) &&
                (!t->n_response || !memcmp(was.response, t->response, (size_t)t->n_response * 4));
    if (!same)
        status = op_error_set(e, OP_ERR_MISMATCH, "trial %lld%s%s%s is stored with other tokens", (long long)t->id, key ? " (key '" : "", key ? key : "", key ? "')" : "");
    status = status ? status : add_feedback(s, t, &was, e);
    op_trial_release(&was);
    return status;
}

op_status op_store_add(op_store *s, op_trial *t, const char *key, op_error *e)
{
    op_status status = op_trial_check(t, 0, e);
    status = status ? status : enter(s, true, e);
    if (status)
        return status;
    op_trial with_id = *t; /* the caller's gets its id once everything is written */
    const op_db_value name = op_db_text(key);
    static const char find[] = "SELECT id FROM trials WHERE key = $1";
    with_id.id = 0;
    status = key ? s->db->run(s->db, find, &name, 1, one_int, &with_id.id, e) : OP_OK; /* first: an insert that finds the key taken uses up an id */
    bool found = !status && with_id.id;
    status = status || found ? status : insert_trial(s, t, key, &with_id.id, e);
    if (!status && !with_id.id) { /* another writer was faster */
        found = true;
        status = s->db->run(s->db, find, &name, 1, one_int, &with_id.id, e);
    }
    status = status ? status : found ? merge(s, &with_id, key, e) : add_new(s, &with_id, e);
    status = leave(s, true, status, e);
    if (!status)
        t->id = with_id.id;
    return status;
}

op_status op_store_feedback(op_store *s, const op_trial *t, op_error *e)
{
    op_status status = op_trial_check(t, 0, e);
    status = status ? status : enter(s, true, e);
    return status ? status : leave(s, true, merge(s, t, NULL, e), e);
}

/* ---- finding ---- */

enum { PAGE = 256 };

typedef struct page {
    op_store_score trials[PAGE]; /* their ids alone, where nobody asks for more */
    int n;
} page;

static op_status id_row(void *ctx, const op_db_value *c, op_error *e)
{
    (void)e;
    page *p = ctx;
    p->trials[p->n++].id = c[0].i;
    return OP_OK;
}

static op_status score_row(void *ctx, const op_db_value *c, op_error *e)
{
    (void)e;
    page *p = ctx;
    p->trials[p->n++] = (op_store_score){.id = c[0].i, .redo_of = c[1].i, .score = c[2].kind == OP_DB_REAL ? c[2].real : NAN};
    return OP_OK;
}

#define JUDGED                                                                                                                                            \
    "(EXISTS (SELECT 1 FROM judgements j WHERE j.trial = t.id) OR EXISTS (SELECT 1 FROM marks m WHERE m.trial = t.id) OR"                                  \
    " EXISTS (SELECT 1 FROM alternatives a WHERE a.trial = t.id AND (a.picked = 1 OR a.teacher <> 'model')))"

#define FOUND                                                                                                                                                 \
    " FROM trials t WHERE t.id > $1"                                                                                                                          \
    " AND (CAST($2 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM judgements j WHERE j.trial = t.id AND j.teacher = $2)"                                           \
    "  OR EXISTS (SELECT 1 FROM marks m WHERE m.trial = t.id AND m.teacher = $2) OR EXISTS (SELECT 1 FROM alternatives a WHERE a.trial = t.id AND a.teacher = $2))" \
    " AND (CAST($3 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM tags g WHERE g.trial = t.id AND g.name = $3 AND (CAST($4 AS TEXT) IS NULL OR g.value = $4)))"   \
    " AND (CAST($5 AS BIGINT) = 0 OR (CAST($5 AS BIGINT) = 1) = " JUDGED ")"                                                                                 \
    " AND (CAST($6 AS TEXT) IS NULL OR SUBSTR(t.key, 1, LENGTH(CAST($6 AS TEXT))) = CAST($6 AS TEXT)) ORDER BY t.id LIMIT 256"

static op_status read_page(op_store *s, const char *sql, op_db_row row, const op_store_query *q, int64_t after, page *p, op_error *e)
{
    const op_db_value args[] = {op_db_int(after), op_db_text(q->by), op_db_text(q->tag), op_db_text(q->tag ? q->value : NULL), op_db_int(q->judged),
                                op_db_text(q->key_prefix)};
    p->n = 0;
    return s->db->run(s->db, sql, args, sizeof args / sizeof *args, row, p, e);
}

/* Calls `visit` with what `row` read of each trial that was found, page by page. */
static op_status each_found(op_store *s, const char *sql, op_db_row row, const op_store_query *q, op_status (*visit)(void *ctx, const op_store_score *x, op_error *e), void *ctx,
                            op_error *e)
{
    static const op_store_query all = {0};
    q = q ? q : &all;
    int64_t after = q->after, left = q->limit ? q->limit : INT64_MAX;
    page p = {.n = PAGE};
    op_status status = OP_OK;
    while (!status && p.n == PAGE && left > 0) {
        status = read_page(s, sql, row, q, after, &p, e);
        for (int i = 0; !status && i < p.n && left > 0; i++, left--) {
            after = p.trials[i].id;
            status = visit(ctx, &p.trials[i], e);
        }
    }
    return status;
}

typedef struct whole_trials {
    op_store *s;
    op_status (*each)(void *ctx, const op_trial *t, op_error *e);
    void *ctx;
} whole_trials;

static op_status visit_whole(void *ctx, const op_store_score *x, op_error *e)
{
    const whole_trials *w = ctx;
    op_trial t;
    op_status status = op_store_get(w->s, x->id, &t, e);
    if (status)
        return status;
    status = w->each(w->ctx, &t, e);
    op_trial_release(&t);
    return status;
}

op_status op_store_each(op_store *s, const op_store_query *q, op_status (*each)(void *ctx, const op_trial *t, op_error *e), void *ctx, op_error *e)
{
    return each_found(s, "SELECT t.id" FOUND, id_row, q, visit_whole, &(whole_trials){s, each, ctx}, e);
}

op_status op_store_each_score(op_store *s, const op_store_query *q, op_status (*each)(void *ctx, const op_store_score *x, op_error *e), void *ctx, op_error *e)
{
    static const char sql[] = "SELECT t.id, t.redo_of, COALESCE((SELECT r.reward FROM judgements r WHERE r.trial = t.id AND r.reward IS NOT NULL ORDER BY r.id DESC LIMIT 1),"
                              " (SELECT SUM(m.value * (m.to_token - m.from_token)) FROM marks m WHERE m.trial = t.id) * 4 / NULLIF(LENGTH(t.response), 0))" FOUND;
    return each_found(s, sql, score_row, q, each, ctx, e);
}

static op_status stats_row(void *ctx, const op_db_value *c, op_error *e)
{
    (void)e;
    *(op_store_stats *)ctx = (op_store_stats){.trials = c[0].i, .judged = c[1].i, .marks = c[2].i, .rewards = c[3].i, .alternatives = c[4].i, .redos = c[5].i,
                                              .tokens = c[6].i, .mean_reward = c[7].kind == OP_DB_REAL ? c[7].real : NAN};
    return OP_OK;
}

op_status op_store_get_stats(op_store *s, op_store_stats *out, op_error *e)
{
#define LAST_REWARDS "FROM judgements r WHERE r.id IN (SELECT MAX(id) FROM judgements WHERE reward IS NOT NULL GROUP BY trial)"
    static const char sql[] = "SELECT (SELECT COUNT(*) FROM trials), (SELECT COUNT(*) FROM trials t WHERE " JUDGED "), (SELECT COUNT(*) FROM marks),"
                              " (SELECT COUNT(*) " LAST_REWARDS "), (SELECT COUNT(*) FROM alternatives), (SELECT COUNT(*) FROM trials WHERE redo_of IS NOT NULL),"
                              " (SELECT CAST(COALESCE(SUM(LENGTH(response)), 0) / 4 AS BIGINT) FROM trials), (SELECT AVG(r.reward) " LAST_REWARDS ")";
    *out = (op_store_stats){.mean_reward = NAN};
    return s->db->run(s->db, sql, NULL, 0, stats_row, out, e);
}
