/* The store on SQLite: one file, many processes. Journal in WAL mode, every commit on the disk before it is acknowledged. */
#include "trial/store_db.h"

#include <stdbool.h>
#include <string.h>

#include <sqlite3.h>

#include "base/mem.h"

enum { STATEMENTS = 32, WAIT_MS = 60000 };

typedef struct lite {
    op_db db;
    sqlite3 *file;
    char *path;
    struct {
        const char *sql;
        sqlite3_stmt *statement;
    } cache[STATEMENTS];
} lite;

static op_status failed(const lite *l, op_error *e)
{
    int code = sqlite3_extended_errcode(l->file);
    op_status s = (code & 0xff) == SQLITE_NOMEM ? OP_ERR_NOMEM : (code & 0xff) == SQLITE_NOTADB || (code & 0xff) == SQLITE_CORRUPT ? OP_ERR_FORMAT : OP_ERR_IO;
    return op_error_set(e, s, "%s: %s", l->path, sqlite3_errmsg(l->file));
}

static op_status exec(op_db *d, const char *sql, op_error *e)
{
    lite *l = (lite *)d;
    return sqlite3_exec(l->file, sql, NULL, NULL, NULL) ? failed(l, e) : OP_OK;
}

static op_status prepared(lite *l, const char *sql, sqlite3_stmt **out, op_error *e)
{
    for (int i = 0; i < STATEMENTS; i++) {
        if (l->cache[i].sql == sql) {
            *out = l->cache[i].statement;
            return OP_OK;
        }
        if (l->cache[i].sql)
            continue;
        if (sqlite3_prepare_v3(l->file, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL))
            return failed(l, e);
        l->cache[i].sql = sql;
        l->cache[i].statement = *out;
        return OP_OK;
    }
    return op_error_set(e, OP_ERR_ARG, "%s: more than %d different statements", l->path, STATEMENTS);
}

static int bind(sqlite3_stmt *q, int i, const op_db_value *v)
{
    switch (v->kind) {
    case OP_DB_INT: return sqlite3_bind_int64(q, i, v->i);
    case OP_DB_REAL: return sqlite3_bind_double(q, i, v->real);
    case OP_DB_TEXT: return sqlite3_bind_text64(q, i, v->bytes, v->n, SQLITE_STATIC, SQLITE_UTF8);
    case OP_DB_BYTES: return v->n ? sqlite3_bind_blob64(q, i, v->bytes, v->n, SQLITE_STATIC) : sqlite3_bind_zeroblob(q, i, 0);
    default: return sqlite3_bind_null(q, i);
    }
}

/* false: memory was out when the text was fetched. */
static bool column(sqlite3_stmt *q, int i, op_db_value *v)
{
    switch (sqlite3_column_type(q, i)) {
    case SQLITE_INTEGER: *v = op_db_int(sqlite3_column_int64(q, i)); return true;
    case SQLITE_FLOAT: *v = op_db_real(sqlite3_column_double(q, i)); return true;
    case SQLITE_NULL: *v = (op_db_value){0}; return true;
    case SQLITE_TEXT: *v = op_db_text((const char *)sqlite3_column_text(q, i)); return v->bytes;
    default:
        *v = op_db_bytes(sqlite3_column_blob(q, i), (size_t)sqlite3_column_bytes(q, i));
        if (!v->bytes && !v->n)
            *v = op_db_bytes("", 0);
        return v->bytes;
    }
}

static op_status run(op_db *d, const char *sql, const op_db_value *args, int n, op_db_row row, void *ctx, op_error *e)
{
    lite *l = (lite *)d;
    sqlite3_stmt *q;
    op_status s = prepared(l, sql, &q, e);
    if (s)
        return s;
    op_db_value columns[OP_DB_COLUMNS];
    int step = SQLITE_OK;
    for (int i = 0; !step && i < n; i++)
        step = bind(q, i + 1, &args[i]);
    while (!s && !step && (step = sqlite3_step(q)) == SQLITE_ROW) {
        step = SQLITE_OK;
        for (int i = 0; !s && i < sqlite3_column_count(q); i++)
            s = column(q, i, &columns[i]) ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", l->path);
        s = s ? s : row(ctx, columns, e);
    }
    if (!s && step != SQLITE_DONE)
        s = failed(l, e);
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
    return s;
}

static void close_file(op_db *d)
{
    lite *l = (lite *)d;
    for (int i = 0; i < STATEMENTS; i++)
        sqlite3_finalize(l->cache[i].statement);
    sqlite3_close(l->file);
    op_free(l->path);
    op_free(l);
}

/* Changing to WAL wants the file for itself, and does not wait by itself. */
static op_status set_up(lite *l, op_error *e)
{
    static const char pragmas[] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;";
    int code = sqlite3_busy_timeout(l->file, WAIT_MS);
    for (int waited = 0; !code && waited < WAIT_MS; waited += 20) {
        if ((code = sqlite3_exec(l->file, pragmas, NULL, NULL, NULL)) != SQLITE_BUSY)
            break;
        sqlite3_sleep(20);
        code = SQLITE_OK;
    }
    return code ? failed(l, e) : OP_OK;
}

op_status op_db_open_sqlite(op_db **out, const char *path, op_error *e)
{
    static const op_db methods = {.id = "INTEGER PRIMARY KEY AUTOINCREMENT", .probe = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'operant_store'",
                                  .begin_read = "BEGIN", .begin_write = "BEGIN IMMEDIATE", .begin_schema = "BEGIN IMMEDIATE", .exec = exec, .run = run, .close = close_file};
    lite *l = op_alloc_zero(1, sizeof *l);
    *out = NULL;
    if (!l || !(l->path = op_strdup(path))) {
        op_free(l);
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    }
    l->db = methods;
    op_status s = sqlite3_open_v2(path, &l->file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL) ? failed(l, e) : set_up(l, e);
    if (s)
        close_file(&l->db);
    else
        *out = &l->db;
    return s;
}
