/* Arguments, messages, progress, and opening a model. */
#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/clock.h>

volatile int cli_stop;
const char *cli_stop_words = "\ninterrupted: finishing what is under way, then stopping (again: stop at once)\n";

bool cli_colour(FILE *f)
{
    const char *no = getenv("NO_COLOR");
    return isatty(fileno(f)) && !(no && no[0]);
}

int cli_fail(const op_error *e)
{
    fprintf(stderr, "operant: %s\n", e->message[0] ? e->message : op_status_string(e->code));
    return e->code == OP_ERR_INTERRUPTED ? 130 : 1;
}

int cli_usage_error(const cli_command *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("operant: ", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\ntry: operant %s --help\n", c->name);
    return 2;
}

void cli_print_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(1) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    putchar('\n');
}

void cli_print_help(const cli_command *c, FILE *out)
{
    fprintf(out, "operant %s: %s\n\nusage: operant %s %s\n\n%s\n", c->name, c->summary, c->name, c->usage, c->help);
    const op_option *table = c->shown ? c->shown : c->table;
    if (!table)
        return;
    op_buf b;
    op_buf_init(&b, 1 << 20);
    if (op_config_help(table, &b) == OP_OK)
        fprintf(out, "\nsettings (key=value, --key value, or in a YAML file with --config):\n%s", b.data);
    op_buf_release(&b);
}

static void quit(const cli_command *c, void *settings, const op_error *e)
{
    if (c->table)
        op_config_release(settings, c->table);
    exit(cli_usage_error(c, "%s", e->message));
}

/* A full disk shows when the last bytes are written. */
void cli_check_stdout(void)
{
    errno = 0;
    bool failed = fflush(stdout) || ferror(stdout);
    int why = errno;
    if (!failed)
        return;
    struct pollfd p = {.fd = STDOUT_FILENO};
    if (why == EPIPE || (poll(&p, 1, 0) == 1 && p.revents & POLLERR))
        _exit(141);
    fprintf(stderr, "operant: standard output cannot be written%s%s\n", why ? ": " : "", why ? strerror(why) : "");
    _exit(1);
}

cli_args cli_parse(const cli_command *c, void *settings, int argc, char **argv)
{
    cli_args a = {0};
    op_error e = {0};
    if (c->table && op_config_init(settings, c->table, &e))
        quit(c, settings, &e);
    for (int i = 0; i < argc; i++) {
        const char *w = argv[i];
        if (!strcmp(w, "--help") || !strcmp(w, "-h")) {
            cli_print_help(c, stdout);
            if (c->table)
                op_config_release(settings, c->table);
            exit(0);
        }
        if (!strcmp(w, "--json")) {
            a.json = true;
            continue;
        }
        if (!strcmp(w, "--config")) {
            if (!c->table || i + 1 == argc)
                op_error_set(&e, OP_ERR_ARG, c->table ? "--config wants a file" : "this verb takes no settings");
            else
                op_config_load(settings, c->table, argv[++i], &e);
            if (e.code)
                quit(c, settings, &e);
            continue;
        }
        if (!strncmp(w, "--", 2) || (c->table && strchr(w, '='))) {
            char assignment[4096];
            const char *key = w + (strncmp(w, "--", 2) ? 0 : 2);
            bool pair = !strchr(key, '=');
            if (pair && i + 1 == argc)
                op_error_set(&e, OP_ERR_ARG, "\"%s\" wants a value", w);
            else if (snprintf(assignment, sizeof assignment, pair ? "%s=%s" : "%s", key, pair ? argv[++i] : "") >= (int)sizeof assignment)
                op_error_set(&e, OP_ERR_ARG, "\"%.40s...\" is too long", w);
            else if (c->table)
                op_config_set(settings, c->table, assignment, &e);
            else
                op_error_set(&e, OP_ERR_ARG, "unknown option \"%s\"", w);
            if (e.code)
                quit(c, settings, &e);
            continue;
        }
        if (a.n_words == 8) {
            op_error_set(&e, OP_ERR_ARG, "too many arguments, from \"%s\" on", w);
            quit(c, settings, &e);
        }
        a.words[a.n_words++] = w;
    }
    return a;
}

double cli_now(void)
{
    return op_seconds();
}

const char *cli_eta(double seconds, char room[32])
{
    if (!isfinite(seconds) || seconds < 0)
        return "?";
    long s = lround(seconds);
    if (s >= 3600)
        snprintf(room, 32, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(room, 32, "%ldm%02lds", s / 60, s % 60);
    else
        snprintf(room, 32, "%lds", s);
    return room;
}

void cli_progress(bool last, const char *format, ...)
{
    static double shown;
    bool terminal = isatty(STDERR_FILENO);
    double now = op_seconds();
    if (!last && now - shown < (terminal ? 0.2 : 15))
        return;
    shown = now;
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (terminal)
        fprintf(stderr, "\r%s\033[K%s", line, last ? "\n" : "");
    else
        fprintf(stderr, "%s\n", line);
    fflush(stderr);
}

op_sampling cli_sampling_of(const cli_sampling *s, int64_t n)
{
    return (op_sampling){.temperature = s->temperature, .top_k = (int32_t)s->top_k, .top_p = s->top_p, .min_p = s->min_p,
                         .repetition_penalty = s->repetition_penalty, .max_tokens = (int32_t)s->max_tokens, .seed = (uint64_t)(s->seed + n)};
}

op_dtype cli_dtype(int dtype)
{
    return op_subject_dtype(dtype, NULL);
}

op_status cli_open_weights(cli_subject *s, const char *path, int dtype, int weights, op_error *e)
{
    *s = (cli_subject){0};
    if (!path)
        return op_error_set(e, OP_ERR_ARG, "no model: give model=PATH (a model directory, a run directory or a .gguf file)");
    op_model_options o = {.act = cli_dtype(dtype), .trainable = OP_TRAIN_NONE, .weights = (op_weight_form)weights};
    return op_subject_open(s, path, &o, e);
}

op_status cli_open(cli_subject *s, const char *path, int dtype, op_trainable trainable, op_error *e)
{
    *s = (cli_subject){0};
    if (!path)
        return op_error_set(e, OP_ERR_ARG, "no model: give model=PATH (a model directory, a run directory or a .gguf file)");
    op_model_options o = {.act = cli_dtype(dtype), .trainable = trainable};
    return op_subject_open(s, path, &o, e);
}

void cli_close(cli_subject *s)
{
    op_subject_close(s);
}

op_status cli_encode_prompt(const cli_subject *s, json_t *line, op_tokens *out, op_error *e)
{
    json_t *messages = json_object_get(line, "messages"), *prompt = json_object_get(line, "prompt");
    if (json_is_array(messages) && !s->tmpl)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "\"messages\" need a chat template, which this model does not have; give \"prompt\"");
    if (!json_is_array(messages) && !json_is_string(prompt))
        return op_error_set(e, OP_ERR_FORMAT, "expected \"messages\" (an array) or \"prompt\" (a string)");
    size_t before = out->n;
    op_status status =
        json_is_array(messages)
            ? op_chat_encode(&s->chat, messages, json_object_get(line, "tools"), true, out, NULL, NULL, e)
            : op_tokenizer_encode(s->tokenizer, json_string_value(prompt), json_string_length(prompt), OP_ENCODE_SPECIAL | OP_ENCODE_AFFIX, out, e);
    return !status && out->n == before ? op_error_set(e, OP_ERR_FORMAT, "the prompt is empty") : status;
}
