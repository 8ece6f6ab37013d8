/* A command as a process of its own, which does not outlive the lab. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <operant/clock.h>

#include "base/mem.h"
#include "lab/experiment_jobs.h"

enum { PATIENCE_S = 20 };

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
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

op_status op_job_start_process(lab *l, job *j, op_error *e)
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

void op_jobs_nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = OP_JOBS_NAP_MS * 1000000L}, NULL);
}

void op_jobs_stop(lab *l)
{
    size_t alive = 1;
    for (size_t i = 0; i < l->n; i++)
        if (l->jobs[i].pid > 0)
            kill(-l->jobs[i].pid, SIGTERM);
    for (double from = op_seconds(); alive; op_jobs_nap()) {
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
