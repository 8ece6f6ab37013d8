/* operant chat: a dialogue in the terminal, through the model's own template. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/env.h>
#include <operant/file.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *system;
    cli_sampling sampling;
    int64_t threads;
    int dtype, weights;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"system", OP_OPTION_STRING, AT(system), NULL, 0, 0, NULL, "system message; without one the template's own"},
    CLI_SAMPLING(AT(sampling), "256", "0.4", "reply n draws with seed + n"),
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    CLI_WEIGHTS(AT(weights)),
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

typedef struct talk {
    const options *o;
    cli_subject subject;
    json_t *messages;
    op_decoder decoder;
    op_buf reply;     /* the words so far */
    size_t shown;
    int turn;
    bool quiet;       /* --json: replies are printed as JSON lines */
} talk;

/* Appends a message. Words that are no UTF-8 are an error that names the byte. */
static op_status say(talk *t, const char *role, const char *words, size_t n, op_error *e)
{
    op_tokens ids;
    op_tokens_init(&ids);
    op_status s = op_tokenizer_encode(t->subject.tokenizer, words, n, OP_ENCODE_PLAIN, &ids, e);
    op_tokens_release(&ids);
    if (!s && json_array_append_new(t->messages, json_pack("{ss ss%}", "role", role, "content", words, n)))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    return s;
}

static op_status forget(talk *t, const char *system, op_error *e)
{
    json_array_clear(t->messages);
    return system ? say(t, "system", system, strlen(system), e) : OP_OK;
}

/* Shows what came since the last time. Control characters could command the terminal: they become question marks. */
static void show(talk *t)
{
    for (; !t->quiet && t->shown < t->reply.len; t->shown++) {
        unsigned char b = (unsigned char)t->reply.data[t->shown];
        putchar((b < 32 && b != '\n' && b != '\t') || b == 127 ? '?' : b);
    }
    fflush(stdout);
}

static op_verdict stream(void *ctx, size_t i, const int32_t *tokens, int32_t n, float logprob)
{
    talk *t = ctx;
    (void)i;
    (void)logprob;
    if (cli_stop)
        return OP_STOP;
    op_decoder_push(&t->decoder, tokens[n - 1], &t->reply);
    show(t);
    return OP_GO;
}

static op_status answer(talk *t, const char *words, size_t n, op_error *e)
{
    op_tokens ids;
    op_tokens_init(&ids);
    op_status s = say(t, "user", words, n, e);
    if (s)
        return s;
    s = op_chat_encode(&t->subject.chat, t->messages, NULL, true, &ids, NULL, NULL, e);
    const op_model_config *c = op_model_get_config(t->subject.model);
    if (!s && ids.n + 8 > (size_t)c->max_positions)
        s = op_error_set(e, OP_ERR_ARG, "the dialogue has %zu tokens, the model takes %d; /reset starts afresh", ids.n, c->max_positions);
    op_buf_clear(&t->reply);
    t->shown = 0;
    t->decoder = (op_decoder){.tokenizer = t->subject.tokenizer, .flags = OP_DECODE_SKIP_SPECIAL};
    op_request r = {.prompt = ids.ids, .n_prompt = (int32_t)ids.n, .adapter = op_model_adapter_count(t->subject.model) - 1, .share = -1,
                    .sampling = cli_sampling_of(&t->o->sampling, t->turn++)};
    if (!s)
        s = op_generate(t->subject.model, &r, 1, &(op_generate_options){.max_batch = 1, .ctx = t, .stop = stream}, e);
    if (!s) {
        op_decoder_finish(&t->decoder, &t->reply);
        if (t->quiet) {
            json_t *j = json_pack("{ss ss si}", "role", "assistant", "content", t->reply.data ? t->reply.data : "", "tokens", r.n);
            json_dumpf(j, stdout, JSON_COMPACT);
            json_decref(j);
        }
        show(t);
        putchar('\n');
        fflush(stdout);
        json_array_append_new(t->messages, json_pack("{ssss}", "role", "assistant", "content", t->reply.data ? t->reply.data : ""));
    } else {
        json_array_remove(t->messages, json_array_size(t->messages) - 1);
    }
    cli_stop = 0;
    op_request_release(&r);
    op_tokens_release(&ids);
    return s;
}

static const char commands[] = "/reset forget the dialogue   /system TEXT set the system message and forget   /save FILE write the dialogue as JSON\n"
                               "/help this   /quit leave (also Ctrl-D)   Ctrl-C cuts a reply short\n";

/* Returns false when the user leaves. */
static bool command(talk *t, char *line, op_error *e)
{
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit"))
        return false;
    if (!strcmp(line, "/reset")) {
        forget(t, t->o->system, e);
    } else if (!strncmp(line, "/system ", 8)) {
        forget(t, line + 8, e);
    } else if (!strncmp(line, "/save ", 6)) {
        char *text = json_dumps(t->messages, JSON_INDENT(1));
        if (text)
            op_file_put(line + 6, text, strlen(text), e);
        free(text);
    } else {
        fputs(commands, stderr);
    }
    return true;
}

/* True if every line was answered. */
static bool loop(talk *t)
{
    bool terminal = isatty(STDIN_FILENO), colour = cli_colour(stdout) && !t->quiet;
    char *line = NULL;
    size_t room = 0;
    bool leave = false, failed = false;
    if (terminal)
        fprintf(stderr, "%s: type your message; /help lists the commands\n", t->o->model);
    for (int number = 1; !leave && !ferror(stdout); number++) {
        op_error e = {0};
        if (terminal)
            fputs(colour ? "\033[1myou:\033[0m " : "you: ", stdout), fflush(stdout);
        cli_stop = 0;
        ssize_t n = getline(&line, &room, stdin);
        if (n < 0)
            break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (!n)
            continue;
        if (terminal && line[0] != '/')
            fputs(colour ? "\033[1mmodel:\033[0m " : "model: ", stdout);
        if (line[0] == '/')
            leave = !command(t, line, &e);
        else
            answer(t, line, (size_t)n, &e);
        if (e.code)
            fprintf(stderr, "operant: line %d: %s\n", number, e.message);
        failed = failed || e.code;
    }
    if (terminal)
        putchar('\n');
    free(line);
    return !failed || terminal;
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    }
    op_env_threads((int)o.threads);
    talk t = {.o = &o, .messages = json_array(), .quiet = a.json};
    op_buf_init(&t.reply, 1 << 24);
    op_error e = {0};
    op_status s = cli_open_weights(&t.subject, o.model, o.dtype, o.weights, &e);
    if (!s && !t.subject.tmpl)
        s = op_error_set(&e, OP_ERR_UNSUPPORTED, "%s: this model has no chat template; operant generate continues plain text", o.model);
    if (!s) {
        cli_stop_words = "";        /* Ctrl-C ends a reply, not the program */
        signal(SIGTERM, SIG_DFL);
        s = forget(&t, o.system, &e);
    }
    bool answered = s || loop(&t);
    op_buf_release(&t.reply);
    json_decref(t.messages);
    cli_close(&t.subject);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : !answered;
}

const cli_command cli_chat = {
    "chat", "talk to a model in the terminal", "model=MODEL [key=value ...]",
    "A dialogue through the model's own chat template; replies stream. From a pipe, each line is one turn; with --json each reply is a JSON line;\n"
    "a line that could not be answered, such as one that is not UTF-8, is named, and the exit status is then 1. Special tokens that you type\n"
    "are plain text to the model.\n"
    "Commands: /reset, /system TEXT, /save FILE, /help, /quit.\n\n"
    "examples:\n  operant chat model=runs/ask-why\n  echo \"how do I pick a lock?\" | operant chat model=runs/ask-why temperature=0",
    table, run, NULL};
