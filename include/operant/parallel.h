/* operant/parallel.h: several processes, the ranks of a job, that train one model together (data parallel).
 *
 * Every rank holds the whole model and all the data, computes the micro-batches whose turn it is, and owns a share of the parameters: it
 * keeps their optimiser state, adds up their gradients and sends everyone the new values. Rank 0 alone writes. docs/parallel.md tells how to start
 * them, what goes over the wire and when it pays.
 *
 * A learner whose options name an op_parallel makes every call together with the learners of all other ranks, in the same order, with the
 * same items. When a call fails on one rank the others wait for it: the job must then be ended with op_parallel_abort.
 *
 * NULL stands for one process alone wherever an op_parallel is asked for. */
#ifndef OPERANT_PARALLEL_H
#define OPERANT_PARALLEL_H

#include <operant/status.h>

typedef struct op_parallel op_parallel;

/* Joins this process to its job through a module (a shared object, src/train/transport.h), once in the life of a process. OP_ERR_UNSUPPORTED if the
 * module cannot be opened or cannot start. */
op_status op_parallel_start(op_parallel **out, const char *module, op_error *e);
/* Waits for all ranks and leaves the job. Learners must be freed before. */
void op_parallel_end(op_parallel *p);
/* Ends the processes of all ranks, this one included, with exit status `code`. Alone it returns. */
void op_parallel_abort(op_parallel *p, int code);

int op_parallel_rank(const op_parallel *p); /* 0 .. size-1 */
int op_parallel_size(const op_parallel *p);

/* How many threads this rank should use: `asked`, or for 0 its share of the processors that it may run on. With NULL returns `asked`. */
int op_parallel_threads(op_parallel *p, int asked);

#endif
