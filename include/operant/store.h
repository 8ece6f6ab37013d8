/* operant/store.h: where trials are kept: SQLite, or PostgreSQL when the URL says so.
 *
 * Several processes may write at once; a killed one loses nothing that op_store_* returned OP_OK for. Feedback is appended, never overwritten. */
#ifndef OPERANT_STORE_H
#define OPERANT_STORE_H

#include <operant/trial.h>

typedef struct op_store op_store;

/* "postgresql://..." or "postgres://...": PostgreSQL; anything else is the path of an SQLite file ("sqlite:PATH" too), made if it is not there. A store may
 * not be used across a fork, nor by two threads at once. */
op_status op_store_open(op_store **out, const char *url, op_error *e);
/* Opens one that is there, and makes nothing: *out is NULL if there is none. */
op_status op_store_find(op_store **out, const char *url, op_error *e);
void op_store_close(op_store *s); /* NULL is fine */

/* Gives the trial an id. `key`, if not NULL, makes it idempotent: a trial with the same key is found again instead of added twice (resume), and gets the
 * feedback of `t` that it does not have yet; OP_ERR_MISMATCH: its tokens are others. */
op_status op_store_add(op_store *s, op_trial *t, const char *key, op_error *e);
/* Adds the marks, alternatives and reward of `t` that are not there yet to trial t->id. The last reward counts; a trial stays `by` who judged it first,
 * and what others add bears their name. OP_ERR_ARG: a teacher contradicts what it said before. */
op_status op_store_feedback(op_store *s, const op_trial *t, op_error *e);
op_status op_store_get(op_store *s, int64_t id, op_trial *out, op_error *e); /* OP_ERR_ARG: no such trial */

typedef struct op_store_query {
    int64_t after;         /* ids greater than this */
    const char *by;        /* feedback from this teacher; NULL: any */
    const char *tag, *value; /* tags with this value; NULL: any */
    const char *key_prefix; /* keys (of op_store_add) that begin so; NULL: any trial */
    int judged;            /* 1: only with feedback; -1: only without; 0: any */
    int64_t limit;         /* 0: none */
} op_store_query;

/* In the order of ids; the trial is borrowed during the call. A status other than OP_OK from `each` ends it. */
op_status op_store_each(op_store *s, const op_store_query *q, op_status (*each)(void *ctx, const op_trial *t, op_error *e), void *ctx, op_error *e);

/* What a trial is known by without reading it. */
typedef struct op_store_score {
    int64_t id, redo_of; /* redo_of: 0: it redoes none */
    double score;        /* the last reward; without one the sum of marks times their tokens over the response's tokens; NAN: nobody spoke */
} op_store_score;
op_status op_store_each_score(op_store *s, const op_store_query *q, op_status (*each)(void *ctx, const op_store_score *x, op_error *e), void *ctx, op_error *e);

typedef struct op_store_stats {
    int64_t trials, judged, marks, rewards, alternatives, redos, tokens;
    double mean_reward; /* NAN: none */
} op_store_stats;
op_status op_store_get_stats(op_store *s, op_store_stats *out, op_error *e);

/* Several writes as one: begin, ..., commit (or rollback). A write that fails in between leaves nothing of its own, and the others as they are. */
op_status op_store_begin(op_store *s, op_error *e);
op_status op_store_commit(op_store *s, op_error *e);
void op_store_rollback(op_store *s);

#endif
