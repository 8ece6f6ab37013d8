/* operant chat: a dialogue in the terminal, through the model's own template. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/env.h>
#include <operant/file.h>
#include <operant/generate.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *system;
    int64_t max_tokens, top_k, seed, threads;
    double temperature, top_p, min_p, repetition_penalty;
    int dtype;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"system", OP_OPTION_STRING, AT(system), NULL, 0, 0, NULL, "system message; without one the template's own"},
    {"max_tokens", OP_OPTION_INT, AT(max_tokens), "256", 1, 1 << 20, NULL, "new tokens of a reply"},
    {"temperature", OP_OPTION_FLOAT, AT(temperature), "0.4", 0, 100, NULL, "0: always the likeliest token"},
    {"top_k", OP_OPTION_INT, AT(top_k), "0", 0, 1 << 24, NULL, "draw from this many likeliest tokens; 0: all"},
    {"top_p", OP_OPTION_FLOAT, AT(top_p), "0.95", 0.000001, 1, NULL, "draw from the likeliest tokens that together weigh this much"},
    {"min_p", OP_OPTION_FLOAT, AT(min_p), "0", 0, 1, NULL, "draw from tokens at least this likely beside the likeliest"},
    {"repetition_penalty", OP_OPTION_FLOAT, AT(repetition_penalty), "1", 0.01, 100, NULL, "1: off"},
    {"seed", OP_OPTION_INT, AT(seed), "1", 0, 0, NULL, "reply n draws with seed + n"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
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

static void forget(talk *t)
{
    json_array_clear(t->messages);
    if (t->o->system)
        json_array_append_new(t->messages, json_pack("{ssss}", "role", "system", "content", t->o->system));
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

static op_status answer(talk *t, const char *words, op_error *e)
{
    op_tokens ids;
    op_tokens_init(&ids);
    json_array_append_new(t->messages, json_pack("{ssss}", "role", "user", "content", words));
    op_status s = op_chat_encode(&t->subject.chat, t->messages, NULL, true, &ids, NULL, NULL, e);
    const op_model_config *c = op_model_get_config(t->subject.model);
    if (!s && ids.n + 8 > (size_t)c->max_positions)
        s = op_error_set(e, OP_ERR_ARG, "the dialogue has %zu tokens, the model takes %d; /reset starts afresh", ids.n, c->max_positions);
    op_buf_clear(&t->reply);
    t->shown = 0;
    t->decoder = (op_decoder){.tokenizer = t->subject.tokenizer, .flags = OP_DECODE_SKIP_SPECIAL};
    op_request r = {.prompt = ids.ids, .n_prompt = (int32_t)ids.n, .adapter = op_model_adapter_count(t->subject.model) - 1, .share = -1,
                    .sampling = {.temperature = t->o->temperature, .top_k = (int32_t)t->o->top_k, .top_p = t->o->top_p, .min_p = t->o->min_p,
                                 .repetition_penalty = t->o->repetition_penalty, .max_tokens = (int32_t)t->o->max_tokens,
                                 .seed = (uint64_t)(t->o->seed + t->turn++)}};
    if (!s)
        s = op_generate(t->subject.model, &r, 1, &(op_generate_options){.ctx = t, .stop = stream}, e);
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
static bool command(talk *t, char *line)
{
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit"))
        return false;
    if (!strcmp(line, "/reset")) {
        forget(t);
    } else if (!strncmp(line, "/system ", 8)) {
        json_array_clear(t->messages);
        json_array_append_new(t->messages, json_pack("{ssss}", "role", "system", "content", line + 8));
    } else if (!strncmp(line, "/save ", 6)) {
        char *text = json_dumps(t->messages, JSON_INDENT(1));
        op_error e = {0};
        if (!text || op_file_put(line + 6, text, strlen(text), &e))
            fprintf(stderr, "%s\n", e.message);
        free(text);
    } else {
        fputs(commands, stderr);
    }
    return true;
}

static void loop(talk *t)
{
    bool terminal = isatty(STDIN_FILENO), colour = cli_colour(stdout) && !t->quiet;
    char *line = NULL;
    size_t room = 0;
    op_error e = {0};
    if (terminal)
        fprintf(stderr, "%s: type your message; /help lists the commands\n", t->o->model);
    for (;;) {
        if (terminal)
            fputs(colour ? "\033[1myou:\033[0m " : "you: ", stdout), fflush(stdout);
        cli_stop = 0;
        ssize_t n = getline(&line, &room, stdin);
        if (n < 0)
            break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (line[0] == '/') {
            if (!command(t, line))
                break;
            continue;
        }
        if (!n)
            continue;
        if (terminal)
            fputs(colour ? "\033[1mmodel:\033[0m " : "model: ", stdout);
        if (answer(t, line, &e))
            fprintf(stderr, "operant: %s\n", e.message);
    }
    if (terminal)
        putchar('\n');
    free(line);
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
    op_status s = cli_open(&t.subject, o.model, o.dtype, OP_TRAIN_NONE, &e);
    if (!s && !t.subject.tmpl)
        s = op_error_set(&e, OP_ERR_UNSUPPORTED, "%s: this model has no chat template; operant generate continues plain text", o.model);
    if (!s) {
        cli_stop_words = "";        /* Ctrl-C ends a reply, not the program */
        signal(SIGTERM, SIG_DFL);
        forget(&t);
        loop(&t);
    }
    op_buf_release(&t.reply);
    json_decref(t.messages);
    cli_close(&t.subject);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_chat = {
    "chat", "talk to a model in the terminal", "model=MODEL [key=value ...]",
    "A dialogue through the model's own chat template; replies stream. From a pipe, each line is one turn; with --json each reply is a JSON line.\n"
    "Commands: /reset, /system TEXT, /save FILE, /help, /quit.\n\n"
    "examples:\n  operant chat model=runs/ask-why\n  echo \"how do I pick a lock?\" | operant chat model=runs/ask-why temperature=0",
    table, run, NULL};
