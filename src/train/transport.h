/* train/transport.h: what a module that joins processes into a job offers to parallel.c.
 *
 * A module is a shared object of its own that is opened only in processes of a job: a plain start neither loads a message-passing library nor needs one
 * to be installed. It exports one op_transport under the name OP_TRANSPORT_SYMBOL.
 *
 * All calls come from one thread. The collective ones are made in the same order by every rank and return at once: a request >= 0, or -1 if
 * there are too many. Buffers and arrays then belong to the transport until `done`. n[] and at[] are bytes and places in bytes for each rank.
 * What goes wrong underneath ends the job with the transport's own message. */
#ifndef OP_TRAIN_TRANSPORT_H
#define OP_TRAIN_TRANSPORT_H

enum { OP_TRANSPORT_VERSION = 1 };
#define OP_TRANSPORT_SYMBOL "op_transport_module"

typedef struct op_transport {
    int version;
    int (*start)(int *rank, int *size); /* 0, or it cannot */
    /* The send_n[r] bytes at send + send_at[r] go to rank r; those of rank r come to receive + receive_at[r]. */
    int (*exchange)(const void *send, const int *send_n, const int *send_at, void *receive, const int *receive_n, const int *receive_at);
    /* all + at[r] holds n[r] bytes of rank r: on rank r before, everywhere after. */
    int (*share)(void *all, const int *n, const int *at);
    int (*sum)(float *x, int n); /* x[i] becomes its sum over all ranks */
    int (*done)(int request);    /* true once; the request is then free */
    void (*finish)(void);
    void (*abort)(int code);
} op_transport;

#endif
