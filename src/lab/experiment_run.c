/* Runs the cells of an experiment, several processes at once. */
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <operant/clock.h>

#include "base/mem.h"
#include "io/file.h"
#include "lab/experiment_jobs.h"

#define AT(field) offsetof(op_experiment_options, field)

const op_option op_experiment_table[] = {
    {"results", OP_OPTION_STRING, AT(results), "experiments/results", 0, 0, NULL, "where finished cells lie, each experiment in a directory of its name"},
    {"work", OP_OPTION_STRING, AT(work), "runs/lab", 0, 0, NULL, "where cells work, with their logs"},
    {"jobs", OP_OPTION_INT, AT(jobs), "0", 0, 1024, NULL, "processes at once; 0: cores / threads of a cell"},
    {"arms", OP_OPTION_LIST, AT(arms), NULL, 0, 0, NULL, "run only these arms; unset: all"},
    {"small", OP_OPTION_BOOL, AT(small), "false", 0, 0, NULL, "the smallest version of the file, to test the machinery"},
    {"keep", OP_OPTION_BOOL, AT(keep), "false", 0, 0, NULL, "keep what finished cells wrote; false: their log and results.json alone"},
    {"report", OP_OPTION_STRING, AT(report), NULL, 0, 0, NULL, "the page to write; unset: report.html beside the results"},
    {0},
};

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
}

static int64_t threads_of(const op_experiment *x)
{
    return json_integer_value(json_object_get(x->spec, "threads"));
}

static bool is_ready(const lab *l, const job *j)
{
    return j->state == WAITING && (j->needs < 0 || l->jobs[j->needs].state == DONE);
}

static op_status start_more(lab *l, op_error *e)
{
    op_status status = OP_OK;
    size_t running = 0;
    for (size_t i = 0; i < l->n; i++)
        running += l->jobs[i].state == RUNNING;
    for (size_t i = 0; i < l->n && !status && running < l->at_once; i++) {
        job *j = &l->jobs[i];
        if (j->state == WAITING && j->needs >= 0 && l->jobs[j->needs].state == FAILED) {
            op_free(j->log); /* the reason is there */
            j->log = op_strdup(l->jobs[j->needs].log);
            j->state = FAILED;
            if (!j->log)
                return no_memory(e);
            op_error why = {0};
            op_error_set(&why, OP_ERR_MISMATCH, "its preparation failed; log: %.300s", j->log);
            op_jobs_tell(l, j, why.message);
        } else if (is_ready(l, j)) {
            status = op_job_start(l, j, e);
            running += j->state == RUNNING;
        }
    }
    return status;
}

static op_status look_at_children(lab *l, op_error *e)
{
    op_status status = OP_OK;
    for (size_t i = 0; i < l->n && !status; i++) {
        int how;
        job *j = &l->jobs[i];
        if (j->pid > 0 && waitpid(j->pid, &how, WNOHANG) == j->pid)
            status = op_job_end_command(l, j, how, e);
    }
    return status;
}

static op_status work(lab *l, op_error *e)
{
    op_status status = OP_OK;
    double told = -1;
    for (bool busy = true; busy && !status;) {
        if (l->callbacks && l->callbacks->stop && *l->callbacks->stop)
            return op_error_set(e, OP_ERR_INTERRUPTED, "stopped; the same command goes on from there");
        status = look_at_children(l, e);
        if (!status)
            status = start_more(l, e);
        busy = false;
        for (size_t i = 0; i < l->n; i++)
            busy |= l->jobs[i].state == RUNNING || is_ready(l, &l->jobs[i]);
        if (busy && op_seconds() - told > 0.2) {
            op_jobs_tell(l, NULL, NULL);
            told = op_seconds();
        }
        if (busy && !status)
            op_jobs_nap();
    }
    return status;
}

/* A child of a killed lab may hold the lock for a moment, until it becomes its command or dies. */
static bool lock_file(int file)
{
    for (int waited = 0; flock(file, LOCK_EX | LOCK_NB); waited += OP_JOBS_NAP_MS) {
        if (waited >= 1000)
            return false;
        op_jobs_nap();
    }
    return true;
}

static op_status take_lock(lab *l, op_error *e)
{
    char *path = op_path_join(l->work, "lock");
    op_status status = path ? op_dir_make(l->work, e) : no_memory(e);
    if (!status) {
        l->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (l->lock < 0 || !lock_file(l->lock))
            status = op_error_set(e, OP_ERR_IO, "%s: another process is running this experiment", path);
    }
    op_free(path);
    return status;
}

/* The caller's environment with OMP_NUM_THREADS as the file has it. */
static op_status make_environment(lab *l, op_error *e)
{
    size_t n = 0, kept = 0;
    while (l->o->environment && l->o->environment[n])
        n++;
    l->environment = op_alloc_zero(n + 2, sizeof *l->environment);
    if (!l->environment)
        return no_memory(e);
    for (size_t i = 0; i < n; i++)
        if (strncmp(l->o->environment[i], "OMP_NUM_THREADS=", 16))
            l->environment[kept++] = l->o->environment[i];
    snprintf(l->threads, sizeof l->threads, "OMP_NUM_THREADS=%lld", (long long)threads_of(l->x));
    l->environment[kept] = l->threads;
    return OP_OK;
}

static size_t cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n > 0 ? (size_t)n : 1;
}

static op_status sum_up(lab *l, op_error *e)
{
    size_t failed = 0, waiting = 0;
    const job *one = NULL;
    op_status status = OP_OK;
    for (size_t i = 0; i < l->n; i++) {
        const job *j = &l->jobs[i];
        failed += j->state == FAILED && !j->prepares;
        waiting += j->state == WAITING && !j->prepares;
        one = j->state == FAILED && !one ? j : one;
    }
    for (size_t i = 0; i < l->n && !failed && !waiting && !status && !l->o->keep; i++)
        if (l->jobs[i].prepares)
            status = op_jobs_discard(l, l->jobs[i].dir, e);
    if (status || !one)
        return status;
    return op_error_set(e, OP_ERR_MISMATCH, "%zu cells failed; the log of the first: %.300s", failed, one->log);
}

static void release(lab *l)
{
    op_jobs_stop(l);
    op_jobs_release(l);
    op_free(l->environment);
    op_free(l->work);
    if (l->lock >= 0)
        close(l->lock);
}

op_status op_experiment_run(const op_experiment *x, const op_experiment_options *o, const op_experiment_callbacks *callbacks, op_error *e)
{
    lab l = {.x = x, .o = o, .callbacks = callbacks, .lock = -1};
    l.at_once = o->jobs ? (size_t)o->jobs : cores() / (size_t)threads_of(x);
    l.at_once = l.at_once ? l.at_once : 1;
    l.work = op_experiment_dir(x, o->work);
    op_status status = l.work ? take_lock(&l, e) : no_memory(e);
    if (!status)
        status = op_jobs_discard(&l, NULL, e); /* what a kill left of the last one */
    if (!status)
        status = op_jobs_plan(&l, e);
    if (!status)
        status = op_experiment_register(x, o->results, e);
    if (!status)
        status = make_environment(&l, e);
    if (!status)
        status = work(&l, e);
    if (!status)
        status = sum_up(&l, e);
    release(&l);
    return status;
}
