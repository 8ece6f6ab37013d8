/* train/parallel.h: how the ranks of operant/parallel.h share the work of a step: what the learner and the run need to know of one another's processes.
 *
 * Parameters are cut into chunks, and each chunk into one piece for every rank: rank r owns the r-th piece of each. A backward pass completes gradients from the
 * last parameter to the first, so chunk after chunk can be reduced while it goes on: every rank sends each piece to its owner, who adds them up
 * in the order of the ranks. The sum is thus the same bits in every run with as many ranks. A thread of its own carries the bytes.
 *
 * With parallel NULL there is one chunk, owned here, and nothing to wait for. */
#ifndef OP_TRAIN_PARALLEL_H
#define OP_TRAIN_PARALLEL_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/parallel.h>

typedef struct op_shard {
    op_parallel *parallel; /* borrowed */
    size_t n;              /* parameters */
    size_t piece, chunk;   /* parameters of each: chunk = piece x ranks; the last chunk may be cut short */
    size_t n_chunks, own;  /* own: parameters of this rank, of all chunks */
} op_shard;

/* A stretch of parameters that this rank owns. */
typedef struct op_span {
    size_t first, n; /* of all parameters */
    size_t local;    /* where it starts among those owned */
} op_span;

/* OP_ERR_NOMEM leaves nothing behind. One shard of a job exists at a time. */
op_status op_shard_init(op_shard *s, op_parallel *p, size_t n, op_error *e);
/* A reduction that was begun and not ended is given up: the job can only be aborted then. */
void op_shard_release(op_shard *s);
op_span op_shard_span(const op_shard *s, size_t chunk);

/* Two transfers, each of them: begin; calls of op_shard_ready, which say that the array is complete here from parameter `first` on; and end, which says so of
 * the rest and waits. Reducing gradients [n]: what this rank owns becomes the sum over all ranks, the rest is of no use then.
 * Sharing values [n]: what each rank owns goes to everyone; only what is owned need be complete. */
void op_shard_reduce_begin(op_shard *s, float *grads);
void op_shard_share_begin(op_shard *s, float *values);
void op_shard_ready(op_shard *s, size_t first);
void op_shard_end(op_shard *s);

/* local [own] of every rank becomes whole [n]; ranks that do not want it pass NULL. */
op_status op_shard_collect(op_shard *s, const float *local, float *whole, op_error *e);

/* x[i] becomes its sum over all ranks. The same bits in every run if at most one rank has a value other than 0. */
void op_parallel_sum(op_parallel *p, float *x, size_t n);
double op_parallel_total(op_parallel *p, double mine); /* added in the order of the ranks */
bool op_parallel_any(op_parallel *p, bool mine);       /* true on any rank */
/* OP_ERR_MISMATCH if `text` is not the same on all ranks; `what` says what it stands for. */
op_status op_parallel_same(op_parallel *p, const char *text, const char *what, op_error *e);

#endif
