#include "train/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <operant/buf.h>
#include <operant/jsonl.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "train/events.h"

#define LINES "metrics.jsonl"
#define EVENTS "events.out.tfevents.operant"

enum { BYTES_MAX = 1 << 30 };

static op_status add_events(op_buf *out, const json_t *line)
{
    double time = json_number_value(json_object_get(line, "time"));
    int64_t step = json_integer_value(json_object_get(line, "step"));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)line, key, value) {
        if (!json_is_number(value) || !strcmp(key, "step") || !strcmp(key, "time"))
            continue;
        op_status status = op_event_scalar(out, time, step, key, (float)json_number_value(value));
        if (status)
            return status;
    }
    return OP_OK;
}

typedef struct cut {
    int64_t step;
    op_buf lines, events;
} cut;

static op_status keep_line(cut *c, const char *bytes, size_t n, op_error *e)
{
    json_t *line;
    op_status status = op_json_parse(&line, bytes, n, LINES, e);
    if (status)
        return status == OP_ERR_FORMAT ? OP_OK : status; /* a kill cut it short */
    json_t *step = json_object_get(line, "step");
    if (json_is_integer(step) && json_integer_value(step) <= c->step) {
        status = op_buf_add(&c->lines, bytes, n);
        if (!status)
            status = add_events(&c->events, line);
        if (status)
            op_error_set(e, status, "out of memory for " LINES);
    }
    json_decref(line);
    return status;
}

static op_status keep_lines(cut *c, const char *path, op_error *e)
{
    op_buf old;
    op_buf_init(&old, BYTES_MAX);
    op_status status = op_path_exists(path) ? op_file_read(path, &old, e) : OP_OK;
    for (size_t i = 0; !status && i < old.len;) {
        const char *end = memchr(old.data + i, '\n', old.len - i);
        if (!end)
            break;
        size_t n = (size_t)(end + 1 - (old.data + i));
        status = keep_line(c, old.data + i, n, e);
        i += n;
    }
    op_buf_release(&old);
    return status;
}

static op_status replace_and_open(int *fd, const char *path, const op_buf *content, op_error *e)
{
    op_status status = op_file_put(path, content->data ? content->data : "", content->len, e);
    if (status)
        return status;
    *fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return *fd < 0 ? op_error_set(e, OP_ERR_IO, "cannot open \"%s\": %s", path, strerror(errno)) : OP_OK;
}

op_status op_journal_open(op_journal *j, const char *dir, int64_t step, op_error *e)
{
    *j = (op_journal){.lines = -1, .events = -1};
    cut c = {.step = step};
    op_buf_init(&c.lines, BYTES_MAX);
    op_buf_init(&c.events, BYTES_MAX);
    char *lines = op_path_join(dir, LINES), *events = op_path_join(dir, EVENTS);
    op_status status = lines && events && !op_event_version(&c.events, (double)time(NULL))
                           ? keep_lines(&c, lines, e)
                           : op_error_set(e, OP_ERR_NOMEM, "out of memory for the metrics of \"%s\"", dir);
    if (!status)
        status = replace_and_open(&j->lines, lines, &c.lines, e);
    if (!status)
        status = replace_and_open(&j->events, events, &c.events, e);
    if (status)
        op_journal_close(j);
    op_free(lines);
    op_free(events);
    op_buf_release(&c.lines);
    op_buf_release(&c.events);
    return status;
}

static op_status append(int fd, const op_buf *b, const char *name, op_error *e)
{
    size_t done = 0;
    while (done < b->len) {
        ssize_t n = write(fd, b->data + done, b->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return op_error_set(e, OP_ERR_IO, "cannot write %s: %s", name, strerror(errno));
        done += (size_t)n;
    }
    return OP_OK;
}

op_status op_journal_add(op_journal *j, json_t *line, op_error *e)
{
    op_buf text, events;
    op_buf_init(&text, 1 << 20);
    op_buf_init(&events, 1 << 20);
    op_status status = OP_ERR_NOMEM;
    if (line && !json_object_set_new(line, "time", json_integer((json_int_t)time(NULL))))
        status = op_json_append(&text, line);
    if (!status)
        status = add_events(&events, line);
    if (status)
        op_error_set(e, status, "out of memory for a line of metrics");
    if (!status)
        status = append(j->lines, &text, LINES, e);
    if (!status)
        status = append(j->events, &events, EVENTS, e);
    json_decref(line);
    op_buf_release(&text);
    op_buf_release(&events);
    return status;
}

void op_journal_close(op_journal *j)
{
    if (j->lines >= 0)
        close(j->lines);
    if (j->events >= 0)
        close(j->events);
    *j = (op_journal){.lines = -1, .events = -1};
}
