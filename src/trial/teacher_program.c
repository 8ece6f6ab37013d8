/* Any program that speaks JSON lines: a trial as docs/trials.md describes it goes to its standard input, one line of feedback comes back on its
 * standard output, in turn. It runs from the opening of the teacher to its closing, when its input ends.
 *
 * Settings: {"type": "program", ...}
 *     command  ["PROGRAM", "ARGUMENT", ...], found through PATH and run without a shell, in the directory of the settings
 *     shell    instead of it: a line for /bin/sh
 *     timeout  seconds for one answer, 0.01 .. 86400; default 60
 *     name     what the feedback is signed with; default "program"
 * Feedback: {"reward": NUMBER, "marks": [...], "alternatives": [...]}, each of them optional, marks and alternatives as in a trial's line; {} says nothing;
 * {"error": TEXT} ends the training with these words. A program that ends, is silent for too long, or writes anything else is an error that names it. */
#include "trial/teachers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <operant/clock.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/settings.h"

enum { WORDS_MAX = 64, ANSWER_MAX = 1 << 24 };

typedef struct program {
    json_t *settings;   /* keeps the strings alive */
    const char *words[WORDS_MAX + 1];
    int n;
    const char *title;  /* for messages */
    double timeout;
    const op_chat *chat;
    pid_t pid;          /* 0: it has ended */
    int fd;             /* both its standard input and its standard output; -1: closed */
    op_buf in;          /* bytes that came and are not yet answers */
} program;

extern char **environ;

/* ---- the process ---- */

static op_status start(program *p, const char *dir, op_error *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) /* a socket, because writing to one whose reader is gone need not be a signal */
        return op_error_set(e, OP_ERR_IO, "program \"%s\": socketpair: %s", p->title, strerror(errno));
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    sigset_t signals, none;
    sigemptyset(&none);
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGPIPE);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&how);
    int rc = posix_spawn_file_actions_adddup2(&files, pair[1], STDIN_FILENO);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(&files, pair[1], STDOUT_FILENO);
    rc = rc ? rc : dir ? posix_spawn_file_actions_addchdir_np(&files, dir) : 0;
    posix_spawnattr_setpgroup(&how, 0); /* a group of its own: Ctrl-C is for the training, which ends the program in its own time */
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setsigdefault(&how, &signals);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    rc = rc ? rc : posix_spawnp(&p->pid, p->words[0], &files, &how, (char *const *)(uintptr_t)p->words, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    close(pair[1]);
    if (rc) {
        p->pid = 0;
        close(pair[0]);
        return op_error_set(e, rc == ENOMEM ? OP_ERR_NOMEM : OP_ERR_IO, "program \"%s\": cannot be started: %s", p->title, strerror(rc));
    }
    p->fd = pair[0];
    fcntl(p->fd, F_SETFL, O_NONBLOCK);
    return OP_OK;
}

/* Waits up to `seconds` for the end of the process. */
static bool has_ended(program *p, double seconds, int *status)
{
    for (double until = op_seconds() + seconds;;) {
        pid_t rc = waitpid(p->pid, status, WNOHANG);
        if (rc == p->pid || (rc < 0 && errno != EINTR)) {
            p->pid = 0;
            return true;
        }
        if (op_seconds() >= until)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}

static void stop(program *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    int status;
    pid_t group = p->pid;
    if (!p->pid || has_ended(p, 1, &status))
        return;
    kill(-group, SIGKILL);
    has_ended(p, 10, &status);
}

/* Why the program does not answer any more. */
static op_status gone(program *p, const op_trial *t, op_error *e)
{
    int status = 0;
    bool ended = p->pid && has_ended(p, 1, &status);
    if (ended && WIFSIGNALED(status))
        op_error_set(e, OP_ERR_IO, "program \"%s\": killed by signal %d before it answered trial %lld", p->title, WTERMSIG(status), (long long)t->id);
    else if (ended)
        op_error_set(e, OP_ERR_IO, "program \"%s\": ended with status %d before it answered trial %lld", p->title, WEXITSTATUS(status), (long long)t->id);
    else
        op_error_set(e, OP_ERR_IO, "program \"%s\": closed its output before it answered trial %lld", p->title, (long long)t->id);
    stop(p);
    return OP_ERR_IO;
}

/* ---- one question and its answer ---- */

static bool is_later(int rc)
{
    return rc < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

/* Sends the question and waits for a whole line, reading and writing as the program lets it, so that neither waits for the other. */
static op_status ask(program *p, const op_trial *t, const op_buf *question, size_t *answer, op_error *e)
{
    size_t sent = 0;
    double until = op_seconds() + p->timeout;
    const char *end = NULL;
    while (!(end = p->in.len ? memchr(p->in.data, '\n', p->in.len) : NULL)) {
        double left = until - op_seconds();
        struct pollfd f = {.fd = p->fd, .events = (short)(POLLIN | (sent < question->len ? POLLOUT : 0))};
        if (left <= 0) {
            stop(p);
            return op_error_set(e, OP_ERR_IO, "program \"%s\": no answer to trial %lld within %g s", p->title, (long long)t->id, p->timeout);
        }
        if (poll(&f, 1, (int)(left * 1000) + 1) < 0 && errno != EINTR)
            return op_error_set(e, OP_ERR_IO, "program \"%s\": poll: %s", p->title, strerror(errno));
        if (f.revents & POLLOUT) {
            ssize_t n = send(p->fd, question->data + sent, question->len - sent, MSG_NOSIGNAL);
            if (n < 0 && !is_later((int)n))
                return gone(p, t, e);
            sent += n > 0 ? (size_t)n : 0;
        }
        if (f.revents & (POLLIN | POLLHUP | POLLERR)) {
            char bytes[1 << 14];
            ssize_t n = recv(p->fd, bytes, sizeof bytes, 0);
            if (n == 0 || (n < 0 && !is_later((int)n)))
                return gone(p, t, e);
            if (n > 0 && op_buf_add(&p->in, bytes, (size_t)n))
                return op_error_set(e, OP_ERR_NOMEM, "program \"%s\": its answer to trial %lld is too long", p->title, (long long)t->id);
        }
    }
    *answer = (size_t)(end - p->in.data);
    return OP_OK;
}

/* What the feedback adds to the trial. `full` is the trial's own line with the feedback in place of its own: read as any trial is, with the same checks. */
static op_status take(program *p, op_trial *t, const json_t *full, const char *name, op_error *e)
{
    op_trial told;
    char where[200];
    snprintf(where, sizeof where, "program \"%.100s\": trial %lld", p->title, (long long)t->id);
    op_status s = op_trial_from_json(&told, full, p->chat->tokenizer, p->chat, where, e);
    if (s)
        return s;
    for (int32_t i = 0; !s && i < told.n_marks; i++) {
        const op_mark *m = &told.marks[i];
        s = op_trial_add_mark(t, m->start, m->end, m->value, m->by ? m->by : name, m->note, e);
    }
    for (int32_t i = 0; !s && i < told.n_alternatives; i++) {
        const op_alternative *a = &told.alternatives[i];
        s = op_trial_add_alternative(t, a->at, a->ids, a->n, a->logprob, a->picked, a->by ? a->by : name, e);
    }
    if (!s && told.has_reward)
        s = op_teacher_reward(t, told.reward, name, e);
    op_trial_release(&told);
    return s;
}

static op_status read_answer(program *p, op_trial *t, json_t *line, size_t n, const char *name, op_error *e)
{
    static const char *const keys[] = {"reward", "marks", "alternatives", "error", NULL};
    char where[200];
    const char *complaint = NULL;
    json_t *answer;
    snprintf(where, sizeof where, "program \"%.100s\": answer to trial %lld", p->title, (long long)t->id);
    op_status s = op_json_parse(&answer, p->in.data, n, where, e);
    if (s)
        return s;
    s = op_settings_check(answer, keys, where, e);
    s = s ? s : op_json_get_string(answer, "error", false, &complaint, where, e);
    if (!s && complaint)
        s = op_error_set(e, OP_ERR_IO, "%s: it says: %.300s", where, complaint);
    for (int i = 0; i < 3; i++)
        json_object_del(line, keys[i]);
    if (!s && json_object_update(line, answer))
        s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", where);
    s = s ? s : take(p, t, line, name, e);
    json_decref(answer);
    return s;
}

static op_status teach_one(op_teacher *teacher, op_trial *t, op_error *e)
{
    program *p = teacher->ctx;
    op_buf question;
    op_buf_init(&question, ANSWER_MAX);
    json_t *line = NULL;
    size_t answer = 0;
    op_status s = p->fd < 0 ? op_error_set(e, OP_ERR_IO, "program \"%s\": is not running any more", p->title) : OP_OK;
    s = s ? s : op_trial_to_json(t, p->chat->tokenizer, &line, e);
    s = s ? s : op_trial_append(t, p->chat->tokenizer, &question, e);
    s = s ? s : ask(p, t, &question, &answer, e);
    if (!s) {
        s = read_answer(p, t, line, answer, teacher->name, e);
        memmove(p->in.data, p->in.data + answer + 1, p->in.len - answer - 1);
        p->in.len -= answer + 1;
    }
    json_decref(line);
    op_buf_release(&question);
    return s;
}

static op_status teach(op_teacher *t, op_trial *const *trials, size_t n, op_error *e)
{
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++)
        s = teach_one(t, trials[i], e);
    return s;
}

/* ---- opening ---- */

static op_status add_word(void *ctx, const char *word, op_error *e)
{
    program *p = ctx;
    if (p->n == WORDS_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "program: key \"command\": expected at most %d words", WORDS_MAX);
    p->words[p->n++] = word;
    return OP_OK;
}

static op_status read_settings(op_teacher *t, op_error *e)
{
    static const char *const keys[] = {"type", "command", "shell", "timeout", "name", NULL};
    program *p = t->ctx;
    const char *line = NULL;
    op_status s = op_settings_check(p->settings, keys, "program", e);
    s = s ? s : op_settings_number(p->settings, "timeout", 0.01, 86400, &p->timeout, "program", e);
    s = s ? s : op_json_get_string(p->settings, "name", false, &t->name, "program", e);
    s = s ? s : op_json_get_string(p->settings, "shell", false, &line, "program", e);
    if (s)
        return s;
    if (!line == !json_object_get(p->settings, "command"))
        return op_error_set(e, OP_ERR_FORMAT, "program: expected one of the keys \"command\" and \"shell\"");
    if (line) {
        p->words[0] = "/bin/sh";
        p->words[1] = "-c";
        p->words[2] = p->title = line;
        return OP_OK;
    }
    s = op_settings_words(p->settings, "command", true, add_word, p, "program", e);
    p->title = p->words[0];
    return s;
}

static void free_program(op_teacher *t)
{
    program *p = t->ctx;
    stop(p);
    op_buf_release(&p->in);
    json_decref(p->settings);
}

op_status op_teacher_program_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    op_teacher *t;
    op_status s = op_teacher_new(&t, "program", sizeof(program), e);
    if (s)
        return s;
    program *p = t->ctx;
    *p = (program){.timeout = 60, .chat = room->chat, .fd = -1, .settings = json_deep_copy(settings)};
    op_buf_init(&p->in, ANSWER_MAX);
    t->teach = teach;
    t->free = free_program;
    s = p->settings ? read_settings(t, e) : op_error_set(e, OP_ERR_NOMEM, "program: out of memory");
    s = s ? s : start(p, room->dir, e);
    if (s) {
        op_teacher_close(t);
        return s;
    }
    *out = t;
    return OP_OK;
}
