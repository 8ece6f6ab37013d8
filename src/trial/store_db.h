/* trial/store_db.h: what a database is to the store: statements with arguments, rows with values. store.c holds the SQL, which both databases read as it
 * is ($1, $2, ... in the order of their first use; see the notes there). */
#ifndef OP_TRIAL_STORE_DB_H
#define OP_TRIAL_STORE_DB_H

#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>

typedef enum op_db_kind { OP_DB_NULL, OP_DB_INT, OP_DB_REAL, OP_DB_TEXT, OP_DB_BYTES } op_db_kind;

/* An argument or a column. Pointers are borrowed: an argument's for the call, a column's for the call of the row. */
typedef struct op_db_value {
    op_db_kind kind;
    int64_t i;
    double real;
    const void *bytes; /* text ends in a 0 byte too */
    size_t n;
} op_db_value;

static inline op_db_value op_db_int(int64_t i)
{
    return (op_db_value){.kind = OP_DB_INT, .i = i};
}

static inline op_db_value op_db_real(double x)
{
    return (op_db_value){.kind = OP_DB_REAL, .real = x};
}

/* NULL is a null; likewise below. */
static inline op_db_value op_db_text(const char *s)
{
    return s ? (op_db_value){.kind = OP_DB_TEXT, .bytes = s, .n = __builtin_strlen(s)} : (op_db_value){0};
}

static inline op_db_value op_db_bytes(const void *bytes, size_t n)
{
    return bytes ? (op_db_value){.kind = OP_DB_BYTES, .bytes = bytes, .n = n} : (op_db_value){0};
}

/* Called for every row; a status other than OP_OK ends the statement and is returned. It must not use the database. */
typedef op_status (*op_db_row)(void *ctx, const op_db_value *columns, op_error *e);

typedef struct op_db op_db;
struct op_db {
    const char *id;         /* how a column `id` that numbers itself is declared */
    const char *probe;      /* a query for the number of tables called operant_store */
    const char *begin_read, *begin_write, *begin_schema;
    op_status (*exec)(op_db *d, const char *sql, op_error *e); /* statements without arguments and rows */
    op_status (*run)(op_db *d, const char *sql, const op_db_value *args, int n, op_db_row row, void *ctx, op_error *e); /* sql lives as long as the program */
    void (*close)(op_db *d);
};

#define OP_DB_COLUMNS 24 /* at most, of arguments and of columns */

op_status op_db_open_sqlite(op_db **out, const char *path, op_error *e);
op_status op_db_open_postgres(op_db **out, const char *url, op_error *e);

#endif
