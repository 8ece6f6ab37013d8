/* The transport over MPI: a module of its own (transport.h). Requests are places in a table. */
#include <mpi.h>
#include <stdbool.h>

#include "train/transport.h"

enum { REQUESTS = 16 };

static MPI_Request requests[REQUESTS];
static bool taken[REQUESTS];

static int take(void)
{
    for (int i = 0; i < REQUESTS; i++)
        if (!taken[i]) {
            taken[i] = true;
            return i;
        }
    return -1;
}

/* The thread that starts MPI is the only one that uses it. */
static int start(int *rank, int *size)
{
    int level;
    return MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) || level < MPI_THREAD_FUNNELED || MPI_Comm_rank(MPI_COMM_WORLD, rank) ||
           MPI_Comm_size(MPI_COMM_WORLD, size);
}

static int exchange(const void *send, const int *send_n, const int *send_at, void *receive, const int *receive_n, const int *receive_at)
{
    int i = take();
    if (i >= 0)
        MPI_Ialltoallv(send, send_n, send_at, MPI_BYTE, receive, receive_n, receive_at, MPI_BYTE, MPI_COMM_WORLD, &requests[i]);
    return i;
}

static int share(void *all, const int *n, const int *at)
{
    int i = take();
    if (i >= 0)
        MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, all, n, at, MPI_BYTE, MPI_COMM_WORLD, &requests[i]);
    return i;
}

static int sum(float *x, int n)
{
    int i = take();
    if (i >= 0)
        MPI_Iallreduce(MPI_IN_PLACE, x, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &requests[i]);
    return i;
}

static int done(int i)
{
    int flag = 0;
    MPI_Test(&requests[i], &flag, MPI_STATUS_IGNORE);
    taken[i] = !flag;
    return flag;
}

static void finish(void)
{
    MPI_Finalize();
}

static void end(int code)
{
    MPI_Abort(MPI_COMM_WORLD, code);
}

extern __attribute__((visibility("default"))) const op_transport op_transport_module;
const op_transport op_transport_module = {OP_TRANSPORT_VERSION, start, exchange, share, sum, done, finish, end};
