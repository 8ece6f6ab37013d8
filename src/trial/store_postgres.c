/* The store on PostgreSQL. Arguments and columns travel in binary: integers and doubles as 8 bytes, the highest first. */
#include "trial/store_db.h"

#include <endian.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <libpq-fe.h>

#include "base/mem.h"

enum { STATEMENTS = 32 };
enum { INT8 = 20, FLOAT8 = 701, BYTEA = 17 }; /* pg_type.oid */

typedef struct server {
    op_db db;
    PGconn *link;
    const char *cache[STATEMENTS]; /* statement i is called "s<i>" */
} server;

/* The server's message in one line, without the URL, which may hold a password. */
static op_status failed(const char *message, op_error *e)
{
    char line[300];
    snprintf(line, sizeof line, "%s", message && *message ? message : "no reason given");
    for (char *p = line; *p; p++)
        if (*p == '\n')
            *p = p[1] ? ' ' : 0;
    return op_error_set(e, strstr(line, "out of memory") ? OP_ERR_NOMEM : OP_ERR_IO, "postgresql: %s", line);
}

static op_status done(const server *v, PGresult *r, op_error *e)
{
    ExecStatusType status = PQresultStatus(r);
    op_status s = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ? OP_OK : failed(r ? PQresultErrorMessage(r) : PQerrorMessage(v->link), e);
    PQclear(r);
    return s;
}

static op_status exec(op_db *d, const char *sql, op_error *e)
{
    server *v = (server *)d;
    return done(v, PQexec(v->link, sql), e);
}

static op_status prepared(server *v, const char *sql, char name[16], op_error *e)
{
    for (int i = 0; i < STATEMENTS; i++) {
        snprintf(name, 16, "s%d", i);
        if (v->cache[i] == sql)
            return OP_OK;
        if (v->cache[i])
            continue;
        op_status s = done(v, PQprepare(v->link, name, sql, 0, NULL), e);
        v->cache[i] = s ? NULL : sql;
        return s;
    }
    return op_error_set(e, OP_ERR_ARG, "postgresql: more than %d different statements", STATEMENTS);
}

static uint64_t bits_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

static op_db_value column(const PGresult *r, int row, int i)
{
    const char *bytes = PQgetvalue(r, row, i);
    size_t n = (size_t)PQgetlength(r, row, i);
    uint64_t u = 0;
    double x;
    if (PQgetisnull(r, row, i))
        return (op_db_value){0};
    switch (PQftype(r, i)) {
    case INT8:
    case FLOAT8:
        memcpy(&u, bytes, n == 8 ? 8 : 0);
        u = be64toh(u);
        memcpy(&x, &u, 8);
        return PQftype(r, i) == INT8 ? op_db_int((int64_t)u) : op_db_real(x);
    case BYTEA: return op_db_bytes(bytes, n);
    default: return op_db_text(bytes);
    }
}

static op_status run(op_db *d, const char *sql, const op_db_value *args, int n, op_db_row row, void *ctx, op_error *e)
{
    server *v = (server *)d;
    char name[16];
    uint64_t wide[OP_DB_COLUMNS];
    const char *values[OP_DB_COLUMNS];
    int lengths[OP_DB_COLUMNS], formats[OP_DB_COLUMNS];
    op_status s = prepared(v, sql, name, e);
    if (s)
        return s;
    for (int i = 0; i < n; i++) {
        bool number = args[i].kind == OP_DB_INT || args[i].kind == OP_DB_REAL;
        wide[i] = htobe64(args[i].kind == OP_DB_INT ? (uint64_t)args[i].i : bits_of(args[i].real));
        values[i] = number ? (const char *)&wide[i] : args[i].bytes;
        lengths[i] = number ? 8 : (int)args[i].n;
        formats[i] = args[i].kind != OP_DB_TEXT;
    }
    PGresult *r = PQexecPrepared(v->link, name, n, values, lengths, formats, 1);
    op_db_value columns[OP_DB_COLUMNS];
    for (int i = 0; !s && i < PQntuples(r); i++) {
        for (int k = 0; k < PQnfields(r); k++)
            columns[k] = column(r, i, k);
        s = row(ctx, columns, e);
    }
    if (s)
        PQclear(r);
    return s ? s : done(v, r, e);
}

static void close_link(op_db *d)
{
    server *v = (server *)d;
    PQfinish(v->link);
    op_free(v);
}

op_status op_db_open_postgres(op_db **out, const char *url, op_error *e)
{
    static const op_db methods = {.id = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
                                  .probe = "SELECT COUNT(*) FROM pg_tables WHERE tablename = 'operant_store' AND schemaname = ANY (current_schemas(false))",
                                  .begin_read = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
                                  .begin_write = "BEGIN", .begin_schema = "BEGIN; SELECT pg_advisory_xact_lock(797465)", .exec = exec, .run = run, .close = close_link};
    server *v = op_alloc_zero(1, sizeof *v);
    *out = NULL;
    if (!v)
        return op_error_set(e, OP_ERR_NOMEM, "postgresql: out of memory");
    v->db = methods;
    v->link = PQconnectdb(url);
    op_status s = PQstatus(v->link) == CONNECTION_OK ? OP_OK : failed(PQerrorMessage(v->link), e);
    s = s ? s : exec(&v->db, "SET client_min_messages = warning", e); /* no notices: the library never prints */
    s = s ? s : exec(&v->db, "SET client_encoding = 'UTF8'", e);
    if (s)
        close_link(&v->db);
    else
        *out = &v->db;
    return s;
}
