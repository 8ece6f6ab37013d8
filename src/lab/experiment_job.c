/* One cell, or one preparation, from its start to its end. What must outlive a kill is a file: finished commands in its work directory, a finished cell among the
 * results. */
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <operant/clock.h>
#include <operant/jsonl.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_jobs.h"
#include "lab/view.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
}

/* done.json of a work directory: how many commands are through, and the seconds that they took. */
static op_status write_done(const job *j, op_error *e)
{
    char *path = op_path_join(j->dir, "done.json");
    json_t *done = json_pack("{sI sf}", "commands", (json_int_t)j->command, "seconds", j->seconds);
    op_status status = path && done ? op_json_write(path, done, e) : no_memory(e);
    json_decref(done);
    op_free(path);
    return status;
}

static op_status read_done(job *j, op_error *e)
{
    char *path = op_path_join(j->dir, "done.json");
    json_t *done = NULL;
    op_status status = path ? OP_OK : no_memory(e);
    if (!status && op_path_exists(path) && !op_json_read(&done, path, NULL)) {
        double commands = op_view_number(done, "commands"), seconds = op_view_number(done, "seconds");
        j->command = commands >= 0 && commands <= (double)json_array_size(j->commands) ? (size_t)commands : 0;
        j->seconds = seconds > 0 ? seconds : 0;
    }
    json_decref(done);
    op_free(path);
    return status;
}

static op_status write_result(const lab *l, const job *j, op_error *e)
{
    json_t *left = NULL, *result = NULL;
    op_buf line; /* these files are many, and for programs */
    op_buf_init(&line, OP_JSON_BYTES_MAX);
    char *path = op_cell_result_path(l->x, l->o->results, j->cell.arm, j->cell.seed);
    op_status status = path ? op_cell_collect(j->commands, j->dir, json_object_get(l->x->spec, "curves"), &left, e) : no_memory(e);
    if (!status) {
        result = json_pack("{ss sO sI ss ss sO sO sO sO sO sf sO sO}", "experiment", op_experiment_name(l->x), "arm", json_object_get(j->cell.arm, "name"), "seed",
                           (json_int_t)j->cell.seed, "key", j->cell.key, "version", l->o->version, "threads", json_object_get(l->x->spec, "threads"), "prepare",
                           j->cell.prepare, "run", j->cell.run, "files", j->cell.files, "inputs", j->cell.inputs, "seconds", j->seconds, "figures", json_object_get(left, "figures"),
                           "transcripts", json_object_get(left, "transcripts"));
        status = result && !op_json_append(&line, result) ? op_file_put(path, line.data, line.len, e) : no_memory(e);
    }
    op_buf_release(&line);
    json_decref(result);
    json_decref(left);
    op_free(path);
    return status;
}

/* A directory loses its name before its files: what done.json says in it holds to the last. */
op_status op_jobs_discard(const lab *l, const char *dir, op_error *e)
{
    char *doomed = op_path_join(l->work, "removing");
    op_status status = doomed ? op_path_remove(doomed, e) : no_memory(e);
    if (!status && dir && op_path_exists(dir)) {
        status = op_path_rename(dir, doomed, e);
        if (!status)
            status = op_path_remove(doomed, e);
    }
    op_free(doomed);
    return status;
}

/* Everything in the work directory but the log and results.json, which are small, is weights and what led to them. */
static op_status tidy(const lab *l, const job *j, op_error *e)
{
    if (l->o->keep)
        return OP_OK;
    static const char *const kept[] = {"log.txt", "results.json"};
    char *aside[2] = {0};
    op_status status = OP_OK;
    for (int i = 0; i < 2 && !status; i++) {
        char *from = op_path_join(j->dir, kept[i]);
        aside[i] = op_alloc(strlen(j->dir) + 32);
        if (!from || !aside[i])
            status = no_memory(e);
        else {
            sprintf(aside[i], "%s.%s", j->dir, kept[i]);
            if (op_path_exists(from))
                status = op_path_rename(from, aside[i], e);
        }
        op_free(from);
    }
    if (!status)
        status = op_jobs_discard(l, j->dir, e);
    op_free(aside[0]);
    op_free(aside[1]);
    return status;
}

void op_jobs_tell(const lab *l, const job *ended, const char *failure)
{
    if (!l->callbacks || !l->callbacks->progress)
        return;
    op_experiment_progress p = {.failure = failure};
    double spent = 0, known = 0, old = 0, n_old = 0, under_way = 0;
    for (size_t i = 0; i < l->n; i++) {
        const job *j = &l->jobs[i];
        p.running += j->state == RUNNING;
        if (j->state == RUNNING)
            under_way += op_seconds() - j->started;
        if (j->prepares)
            continue;
        p.total++;
        p.done += j->state == DONE;
        p.failed += j->state == FAILED;
        if (j->state == DONE && !j->given) {
            spent += j->seconds;
            known++;
        } else if (j->state == DONE && isfinite(j->seconds)) {
            old += j->seconds;
            n_old++;
        }
    }
    double each = known > 0 ? spent / known : n_old > 0 ? old / n_old : NAN;
    double left = each * (double)(p.total - p.done - p.failed) - under_way;
    p.eta_s = isnan(left) ? NAN : fmax(left, 0) / (double)l->at_once;
    if (ended && !ended->prepares) {
        p.arm = op_view_string(ended->cell.arm, "name");
        p.seed = ended->cell.seed;
    } else if (ended) {
        p.arm = "preparation for";
        p.seed = ended->cell.seed;
    }
    l->callbacks->progress(l->callbacks->ctx, &p);
}

static void fail_job(lab *l, job *j, const char *why)
{
    op_error what = {0};
    op_error_set(&what, OP_ERR_MISMATCH, "%.200s; log: %.280s", why, j->log);
    j->state = FAILED;
    int log = open(j->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (log >= 0) {
        dprintf(log, "%s\n", why);
        close(log);
    }
    op_jobs_tell(l, j, what.message);
}

/* The next command, or the end. Only out of memory and a full disk stop the whole experiment. */
static op_status go_on(lab *l, job *j, op_error *e)
{
    op_error why = {0};
    if (j->command < json_array_size(j->commands))
        return op_job_start_process(l, j, e);
    op_status status = j->prepares ? OP_OK : write_result(l, j, &why);
    if (status == OP_ERR_NOMEM || status == OP_ERR_IO)
        return op_error_set(e, status, "%s", why.message);
    if (status) {
        fail_job(l, j, why.message);
        return OP_OK;
    }
    j->state = DONE;
    status = j->prepares ? OP_OK : tidy(l, j, e);
    if (!j->prepares)
        op_jobs_tell(l, j, NULL);
    return status;
}

static op_status write_files(const job *j, op_error *e)
{
    const char *name;
    json_t *text;
    op_status status = OP_OK;
    json_object_foreach(j->cell.files, name, text) {
        char *path = op_path_join(j->dir, name);
        op_buf filled;
        op_buf_init(&filled, OP_JSON_BYTES_MAX);
        if (!status && (!path || !op_jobs_fill_text(json_string_value(text), j->dir, j->prepared, &filled)))
            status = no_memory(e);
        if (!status)
            status = op_file_put(path, filled.data ? filled.data : "", filled.len, e);
        op_buf_release(&filled);
        op_free(path);
    }
    return status;
}

op_status op_job_start(lab *l, job *j, op_error *e)
{
    op_status status = op_dir_make(j->dir, e);
    if (!status)
        status = read_done(j, e);
    if (!status && !j->prepares)
        status = write_files(j, e);
    return status ? status : go_on(l, j, e);
}

op_status op_job_end_command(lab *l, job *j, int how, op_error *e)
{
    char why[80];
    j->seconds += op_seconds() - j->started;
    j->pid = 0;
    if (WIFEXITED(how) && !WEXITSTATUS(how)) {
        j->command++;
        op_status status = write_done(j, e);
        return status ? status : go_on(l, j, e);
    }
    snprintf(why, sizeof why, WIFEXITED(how) ? "command %zu of %zu ended with status %d" : "command %zu of %zu was ended by signal %d", j->command + 1,
             json_array_size(j->commands), WIFEXITED(how) ? WEXITSTATUS(how) : WTERMSIG(how));
    fail_job(l, j, why);
    return OP_OK;
}
