/* lab/experiment_jobs.h: an experiment while it runs. Its cells, and what is prepared for them, are jobs: experiment_jobs.c plans them, experiment_job.c takes one
 * from its start to its end, experiment_process.c is a command of one as a process, experiment_run.c lets as many run at once as there is room for. */
#ifndef OP_LAB_EXPERIMENT_JOBS_H
#define OP_LAB_EXPERIMENT_JOBS_H

#include <stddef.h>
#include <sys/types.h>

#include "lab/experiment_parts.h"

typedef enum job_state { WAITING, RUNNING, DONE, FAILED } job_state;

/* A cell, or what is prepared for some of them. */
typedef struct job {
    op_cell cell;       /* of a preparation: of the first cell that needs it */
    bool prepares;
    ptrdiff_t needs;    /* index of the preparation; -1: none */
    char *dir, *prepared; /* what ${cell} and ${prepared} stand for */
    char *log;
    json_t *commands;   /* with every path filled in */
    job_state state;
    bool given;         /* finished in an earlier run */
    size_t command;     /* at work on, or next */
    double seconds, started;
    pid_t pid;          /* 0: no process */
} job;

typedef struct lab {
    const op_experiment *x;
    const op_experiment_options *o;
    const op_experiment_callbacks *callbacks;
    job *jobs;
    size_t n, at_once;
    char **environment; /* [.. NULL], borrowed but for `threads` */
    char threads[40];
    char *work;
    int lock;
} lab;

/* ---- experiment_jobs.c ---- */

/* Fills l->jobs (zeroed): every cell that is wanted, those of earlier runs as done, and before each what it needs. */
op_status op_jobs_plan(lab *l, op_error *e);
void op_jobs_release(lab *l);
/* Appends a text with ${cell} and ${prepared} filled in; false when memory is out. */
bool op_jobs_fill_text(const char *s, const char *cell, const char *prepared, op_buf *out);

/* ---- experiment_job.c ---- */

/* Starts the first command that is not through; a job of which nothing is left ends here. */
op_status op_job_start(lab *l, job *j, op_error *e);
/* Its process has ended with the status `how` (wait): the next command, or the end. Only out of memory and a full disk stop the whole experiment. */
op_status op_job_end_command(lab *l, job *j, int how, op_error *e);
/* Removes a work directory (NULL: only what a kill left of another one). */
op_status op_jobs_discard(const lab *l, const char *dir, op_error *e);
/* Tells the progress; `ended` (may be NULL) is a job that has just ended, `failure` why it failed. */
void op_jobs_tell(const lab *l, const job *ended, const char *failure);

/* ---- experiment_process.c ---- */

/* The job's next command becomes a process, its output goes to the log. */
op_status op_job_start_process(lab *l, job *j, op_error *e);
/* Asks every process to stop, which lets it save where it is; after a while makes it. */
void op_jobs_stop(lab *l);
enum { OP_JOBS_NAP_MS = 20 };
void op_jobs_nap(void);

#endif
