/* Whether mpirun or srun started this process as one of several, and joining them (operant/parallel.h). */
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/log.h>

#include "cli/cli.h"

#define MODULE "operant-mpi.so"

/* The first of these variables that is set, as a number; -1: none is. */
static int number(const char *const *names)
{
    for (; *names; names++)
        if (getenv(*names))
            return atoi(getenv(*names));
    return -1;
}

static int rank_given(void)
{
    return number((const char *const[]){"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", NULL});
}

int cli_ranks(void)
{
    int n = number((const char *const[]){"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", NULL});
    return n > 1 ? n : 1;
}

static bool hushed;

/* mpirun ends all ranks when the first one fails: rank 0 must be the one, or nobody says why. */
static void let_rank_0_speak(void)
{
    if (hushed)
        sleep(1);
}

void cli_ranks_hush(bool hush)
{
    static int words = -1;
    if (rank_given() < 1)
        return;
    hushed = hush;
    if (hush) {
        atexit(let_rank_0_speak);
        int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        words = dup(STDERR_FILENO);
        if (nowhere < 0 || words < 0) /* then every rank speaks */
            return;
        dup2(nowhere, STDERR_FILENO);
        dup2(nowhere, STDOUT_FILENO);
        close(nowhere);
    } else if (words >= 0) {
        dup2(words, STDERR_FILENO);
        close(words);
        words = -1;
    }
}

/* The module lies beside the program in a build, in a directory of its own where operant is installed. */
static const char *find_module(char path[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof MODULE);
    char *slash = n > 0 ? memrchr(path, '/', (size_t)n) : NULL;
    if (slash) {
        strcpy(slash + 1, MODULE);
        if (!access(path, R_OK))
            return path;
    }
    strcpy(path, OPERANT_MODULES "/" MODULE);
    return access(path, R_OK) ? NULL : path;
}

op_status cli_ranks_join(op_parallel **out, op_error *e)
{
    char path[PATH_MAX];
    int n = cli_ranks(), rank = rank_given();
    *out = NULL;
    if (n == 1)
        return OP_OK;
    if (rank < 0)
        return op_error_set(e, OP_ERR_ARG, "srun started %d tasks that cannot find one another: use srun --mpi=pmix, or mpirun", n);
    const char *module = find_module(path);
    if (!module)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "this is rank %d of %d, but \"" MODULE "\" is neither beside the program nor in \"" OPERANT_MODULES
                            "\": was operant built without Open MPI", rank, n);
    op_status status = op_parallel_start(out, module, e);
    if (!status && rank > 0)
        op_log_set(NULL, NULL);
    /* mpirun sends the same signal to those who are left when one rank dies. */
    cli_stop_words = rank > 0 ? "" : "\ntold to stop: after this step, with a checkpoint (if a rank has died, at once: the same command goes on from the newest one)\n";
    return status;
}

int cli_ranks_leave(op_parallel *p, op_status status, const op_error *e)
{
    int rank = op_parallel_rank(p);
    if (status == OP_OK || status == OP_ERR_INTERRUPTED) {
        op_parallel_end(p);
        return !status ? 0 : rank == 0 ? cli_fail(e) : 130;
    }
    if (!p)
        return cli_fail(e);
    if (rank > 0)
        sleep(1); /* what fails on every rank is told once: rank 0 has the others stopped before they speak */
    if (rank == 0 || !cli_stop)
        fprintf(stderr, "operant: rank %d of %d: %s\n", rank, op_parallel_size(p), e->message);
    op_parallel_abort(p, 1);
    return 1;
}
