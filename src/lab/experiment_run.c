/* Runs the cells of an experiment, several processes at once. Everything that must outlive a kill is a file: finished commands in the cell's work
 * directory, finished cells among the results. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <operant/clock.h>
#include <operant/jsonl.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/view.h"

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

enum { SLEEP_MS = 20, PATIENCE_S = 20 };

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

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
}

static int64_t threads_of(const op_experiment *x)
{
    return json_integer_value(json_object_get(x->spec, "threads"));
}

/* ---- planning ---- */

/* Appends a text with ${cell} and ${prepared} filled in; false when memory is out. */
static bool fill_text(const char *s, const char *cell, const char *prepared, op_buf *out)
{
    while (*s) {
        const char *a = strstr(s, "${cell}"), *b = strstr(s, "${prepared}"), *mark = !a || (b && b < a) ? b : a;
        if (!mark)
            return !op_buf_puts(out, s);
        if (op_buf_add(out, s, (size_t)(mark - s)) || op_buf_puts(out, mark == a ? cell : prepared))
            return false;
        s = strchr(mark, '}') + 1;
    }
    return true;
}

static op_status fill_paths(const json_t *commands, const char *cell, const char *prepared, json_t **out, op_error *e)
{
    size_t i, k;
    json_t *command, *word;
    *out = json_array();
    bool ok = *out;
    json_array_foreach((json_t *)commands, i, command) {
        json_t *words = json_array();
        ok = ok && words && !json_array_append_new(*out, words);
        json_array_foreach(command, k, word) {
            op_buf text;
            op_buf_init(&text, 1 << 16);
            ok = ok && fill_text(json_string_value(word), cell, prepared, &text) && !json_array_append_new(words, json_string(text.data ? text.data : ""));
            op_buf_release(&text);
        }
    }
    if (ok)
        return OP_OK;
    json_decref(*out);
    *out = NULL;
    return no_memory(e);
}

static char *join_name(const char *dir, const char *name, int64_t seed, const char *key)
{
    char text[140];
    if (seed < 0)
        snprintf(text, sizeof text, "%s-%.8s", name, key);
    else
        snprintf(text, sizeof text, "%s-%lld-%.8s", name, (long long)seed, key);
    return op_path_join(dir, text);
}

static op_status place(const lab *l, job *j, op_error *e)
{
    j->prepared = join_name(l->work, "prepared", -1, j->cell.prepare_key);
    j->dir = j->prepares ? j->prepared ? op_strdup(j->prepared) : NULL : join_name(l->work, op_view_string(j->cell.arm, "name"), j->cell.seed, j->cell.key);
    j->log = j->dir ? op_path_join(j->dir, "log.txt") : NULL;
    if (!j->log || !j->prepared)
        return no_memory(e);
    return fill_paths(j->prepares ? j->cell.prepare : j->cell.run, j->dir, j->prepared, &j->commands, e);
}

static op_status look_for_result(const lab *l, job *j, op_error *e)
{
    json_t *result = NULL;
    op_status status = op_cell_read(l->x, l->o->results, j->cell.arm, j->cell.seed, &result, NULL);
    if (status == OP_ERR_NOMEM)
        return no_memory(e);
    if (!strcmp(op_view_string(result, "key"), j->cell.key)) { /* one that cannot be read is made again */
        j->state = DONE;
        j->given = true;
        j->seconds = op_view_number(result, "seconds");
    }
    json_decref(result);
    return OP_OK;
}

/* The index of the preparation of this key; l->n: there is none yet. */
static size_t find_preparation(const lab *l, const char *key)
{
    size_t i = 0;
    while (i < l->n && !(l->jobs[i].prepares && !strcmp(l->jobs[i].cell.prepare_key, key)))
        i++;
    return i;
}

static bool is_wanted(const lab *l, const char *arm)
{
    size_t n = strlen(arm);
    for (const char *at = l->o->arms; at && *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
        at += strspn(at, " ");
        if (strcspn(at, ",") == n && !strncmp(at, arm, n))
            return true;
    }
    return !l->o->arms;
}

/* Adds a cell, and before it what it needs and nobody before it needed. */
static op_status add_cell(lab *l, const json_t *arm, int64_t seed, json_t *hashes, op_error *e)
{
    job j = {.needs = -1};
    op_status status = op_cell_plan(&j.cell, l->x, arm, seed, l->o->version, hashes, e);
    if (!status)
        status = look_for_result(l, &j, e);
    if (!status && j.state == WAITING && json_array_size(j.cell.prepare)) {
        j.needs = (ptrdiff_t)find_preparation(l, j.cell.prepare_key);
        if ((size_t)j.needs == l->n) {
            job *p = &l->jobs[l->n++];
            *p = (job){.needs = -1, .prepares = true};
            status = op_cell_plan(&p->cell, l->x, arm, seed, l->o->version, hashes, e);
            if (!status)
                status = place(l, p, e);
        }
    }
    job *to = &l->jobs[l->n++];
    *to = j;
    return status ? status : place(l, to, e);
}

static op_status check_arms(const lab *l, op_error *e)
{
    size_t i, found = 0, wanted = 0;
    json_t *arm;
    json_array_foreach(json_object_get(l->x->spec, "arms"), i, arm)
        found += is_wanted(l, op_view_string(arm, "name"));
    for (const char *at = l->o->arms; at && *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ','))
        wanted++;
    return l->o->arms && found != wanted ? op_error_set(e, OP_ERR_ARG, "arms=%.200s: expected names of arms of %s", l->o->arms, l->x->path) : OP_OK;
}

static op_status plan(lab *l, op_error *e)
{
    json_t *hashes = json_object(), *arm, *seed;
    l->jobs = op_alloc_zero(2 * op_experiment_cells(l->x), sizeof *l->jobs);
    op_status status = l->jobs && hashes ? check_arms(l, e) : no_memory(e);
    size_t i, k;
    json_array_foreach(json_object_get(l->x->spec, "seeds"), k, seed) /* seed by seed: pairs are complete early */
        json_array_foreach(json_object_get(l->x->spec, "arms"), i, arm)
            if (!status && is_wanted(l, op_view_string(arm, "name")))
                status = add_cell(l, arm, json_integer_value(seed), hashes, e);
    json_decref(hashes);
    return status;
}

/* ---- one process ---- */

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

static void write_command(int log, const json_t *command)
{
    size_t i;
    json_t *word;
    op_buf line;
    op_buf_init(&line, 1 << 20);
    op_status status = op_buf_puts(&line, "$");
    json_array_foreach((json_t *)command, i, word)
        if (!status)
            status = op_buf_printf(&line, " %s", json_string_value(word));
    if (!status && !op_buf_puts(&line, "\n")) {
        ssize_t ignored = write(log, line.data, line.len);
        (void)ignored;
    }
    op_buf_release(&line);
}

/* The child; never returns. Only calls that are safe between fork and exec. */
static void become(const char *program, char **argv, char **environment, int log, pid_t parent)
{
    setpgid(0, 0); /* Ctrl-C is for the lab, which passes it on */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before that */
        _exit(127);
    int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvpe(program, argv, environment);
    static const char why[] = "the program could not be started\n";
    ssize_t ignored = write(STDERR_FILENO, why, sizeof why - 1);
    (void)ignored;
    _exit(127);
}

static op_status start_command(lab *l, job *j, op_error *e)
{
    const json_t *command = json_array_get(j->commands, j->command);
    size_t n = json_array_size(command);
    char **argv = op_alloc_zero(n + 1, sizeof *argv);
    int log = open(j->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    op_status status = !argv ? no_memory(e) : log < 0 ? op_error_set(e, OP_ERR_IO, "%s: cannot open: %s", j->log, strerror(errno)) : OP_OK;
    if (!status) {
        for (size_t i = 0; i < n; i++)
            argv[i] = (char *)(uintptr_t)json_string_value(json_array_get(command, i));
        const char *program = strcmp(argv[0], "operant") ? argv[0] : l->o->program;
        write_command(log, command);
        pid_t parent = getpid();
        j->pid = fork();
        if (!j->pid)
            become(program, argv, l->environment, log, parent);
        if (j->pid < 0) {
            j->pid = 0;
            status = op_error_set(e, OP_ERR_IO, "cannot start a process: %s", strerror(errno));
        } else
            setpgid(j->pid, j->pid);
        j->started = op_seconds();
        j->state = RUNNING;
    }
    if (log >= 0)
        close(log);
    op_free(argv);
    return status;
}

/* ---- a cell's end ---- */

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
static op_status discard(const lab *l, const char *dir, op_error *e)
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
        status = discard(l, j->dir, e);
    op_free(aside[0]);
    op_free(aside[1]);
    return status;
}

static void tell(const lab *l, const job *ended, const char *failure)
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
    tell(l, j, what.message);
}

/* The next command, or the end. Only out of memory and a full disk stop the whole experiment. */
static op_status go_on(lab *l, job *j, op_error *e)
{
    op_error why = {0};
    if (j->command < json_array_size(j->commands))
        return start_command(l, j, e);
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
        tell(l, j, NULL);
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
        if (!status && (!path || !fill_text(json_string_value(text), j->dir, j->prepared, &filled)))
            status = no_memory(e);
        if (!status)
            status = op_file_put(path, filled.data ? filled.data : "", filled.len, e);
        op_buf_release(&filled);
        op_free(path);
    }
    return status;
}

static op_status start_job(lab *l, job *j, op_error *e)
{
    op_status status = op_dir_make(j->dir, e);
    if (!status)
        status = read_done(j, e);
    if (!status && !j->prepares)
        status = write_files(j, e);
    return status ? status : go_on(l, j, e);
}

static op_status command_ended(lab *l, job *j, int how, op_error *e)
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

/* ---- all of them ---- */

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
            tell(l, j, why.message);
        } else if (is_ready(l, j)) {
            status = start_job(l, j, e);
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
            status = command_ended(l, j, how, e);
    }
    return status;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = SLEEP_MS * 1000000L}, NULL);
}

/* Asks every child to stop, which lets it save where it is; after a while makes it. */
static void stop_children(lab *l)
{
    size_t alive = 1;
    for (size_t i = 0; i < l->n; i++)
        if (l->jobs[i].pid > 0)
            kill(-l->jobs[i].pid, SIGTERM);
    for (double from = op_seconds(); alive; nap()) {
        alive = 0;
        for (size_t i = 0; i < l->n; i++) {
            job *j = &l->jobs[i];
            if (j->pid > 0 && op_seconds() - from > PATIENCE_S)
                kill(-j->pid, SIGKILL);
            if (j->pid > 0 && waitpid(j->pid, NULL, WNOHANG) == j->pid)
                j->pid = 0;
            alive += j->pid > 0;
        }
        if (!alive)
            break;
    }
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
            tell(l, NULL, NULL);
            told = op_seconds();
        }
        if (busy && !status)
            nap();
    }
    return status;
}

/* A child of a killed lab may hold the lock for a moment, until it becomes its command or dies. */
static bool lock_file(int file)
{
    for (int waited = 0; flock(file, LOCK_EX | LOCK_NB); waited += SLEEP_MS) {
        if (waited >= 1000)
            return false;
        nap();
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
            status = discard(l, l->jobs[i].dir, e);
    if (status || !one)
        return status;
    return op_error_set(e, OP_ERR_MISMATCH, "%zu cells failed; the log of the first: %.300s", failed, one->log);
}

static void release(lab *l)
{
    stop_children(l);
    for (size_t i = 0; i < l->n; i++) {
        job *j = &l->jobs[i];
        op_cell_release(&j->cell);
        json_decref(j->commands);
        op_free(j->dir);
        op_free(j->prepared);
        op_free(j->log);
    }
    op_free(l->jobs);
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
        status = discard(&l, NULL, e); /* what a kill left of the last one */
    if (!status)
        status = plan(&l, e);
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
