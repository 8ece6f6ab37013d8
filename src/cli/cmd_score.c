/* operant score: the log-probability of given responses. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <operant/env.h>
#include <operant/file.h>
#include <operant/jsonl.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *input, *output;
    int64_t threads;
    int dtype;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"input", OP_OPTION_STRING, AT(input), NULL, 0, 0, NULL, "JSONL: each line holds \"messages\" or \"prompt\", and \"response\""},
    {"output", OP_OPTION_STRING, AT(output), NULL, 0, 0, NULL, "JSONL: each line with tokens, logprobs, sum and mean added"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

typedef struct job {
    cli_subject subject;
    op_pass *pass;
    op_buf out;
    int64_t lines;
} job;

/* The response's ids: those given as "tokens", or its words and, after a chat prompt, the end token. */
static op_status response_ids(const job *j, json_t *line, op_tokens *ids, op_error *e)
{
    json_t *response = json_object_get(line, "response");
    if (!json_is_string(response))
        return op_error_set(e, OP_ERR_FORMAT, "expected \"response\", a string");
    op_status s = op_tokenizer_encode(j->subject.tokenizer, json_string_value(response), json_string_length(response), OP_ENCODE_PLAIN, ids, e);
    int32_t eos = op_tokenizer_eos(j->subject.tokenizer);
    char end[64];
    if (s || !json_object_get(line, "messages") || eos < 0)
        return s;
    size_t n;
    const char *bytes = op_tokenizer_bytes(j->subject.tokenizer, eos, &n);
    snprintf(end, sizeof end, "%.*s", (int)n, bytes);
    return op_tokenizer_encode(j->subject.tokenizer, end, strlen(end), OP_ENCODE_SPECIAL, ids, e);
}

static op_status score_line(void *ctx, json_t *line, int number, op_error *e)
{
    job *j = ctx;
    op_tokens ids;
    op_tokens_init(&ids);
    op_status s = cli_encode_prompt(&j->subject, line, &ids, e);
    size_t prompt = ids.n;
    if (!s)
        s = response_ids(j, line, &ids, e);
    float *logp = s ? NULL : malloc(ids.n * sizeof *logp);
    if (!s && !logp)
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    op_seq seq = {.length = (int32_t)ids.n, .parent = -1, .adapter = op_model_adapter_count(j->subject.model) - 1};
    op_batch batch = {(int32_t)ids.n, 1, ids.ids, &seq};
    if (!s)
        s = op_model_forward(j->subject.model, j->pass, &batch, &(op_how){0}, e);
    if (!s)
        s = op_model_logprobs(j->subject.model, j->pass, NULL, NULL, logp, e);
    if (!s) {
        json_t *tokens = json_array(), *logprobs = json_array();
        double sum = 0;
        for (size_t t = prompt; t < ids.n; t++) {
            json_array_append_new(tokens, json_integer(ids.ids[t]));
            json_array_append_new(logprobs, json_real(logp[t]));
            sum += logp[t];
        }
        json_object_set_new(line, "tokens", tokens);
        json_object_set_new(line, "logprobs", logprobs);
        json_object_set_new(line, "sum", json_real(sum));
        json_object_set_new(line, "mean", json_real(ids.n > prompt ? sum / (double)(ids.n - prompt) : 0));
        if (op_json_append(&j->out, line))
            s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
        cli_progress(false, "%lld lines", (long long)++j->lines);
    }
    free(logp);
    op_tokens_release(&ids);
    if (!s && cli_stop)
        s = op_error_set(e, OP_ERR_INTERRUPTED, "interrupted: nothing was written");
    return s ? op_error_prefix(e, "line %d", number) : OP_OK;
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words || !o.input || !o.output) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, a.n_words ? "unexpected argument \"%s\"" : "input=FILE.jsonl and output=FILE.jsonl are needed%s", a.n_words ? a.words[0] : "");
    }
    op_env_threads((int)o.threads);
    job j = {0};
    op_error e = {0};
    op_buf_init(&j.out, (size_t)1 << 32);
    op_status s = cli_open(&j.subject, o.model, o.dtype, OP_TRAIN_NONE, &e);
    if (!s)
        s = op_pass_new(&j.pass, j.subject.model, &e);
    if (!s && (s = op_json_lines(o.input, score_line, &j, &e)) && !strstr(e.message, o.input))
        op_error_prefix(&e, "%s", o.input);
    if (!s)
        s = op_file_put(o.output, j.out.data ? j.out.data : "", j.out.len, &e);
    if (!s && a.json)
        printf("{\"lines\": %lld}\n", (long long)j.lines);
    op_buf_release(&j.out);
    op_pass_free(j.pass);
    cli_close(&j.subject);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_score = {
    "score", "log-probability of given responses", "model=MODEL input=P.jsonl output=O.jsonl",
    "Each line holds \"messages\" or \"prompt\", and \"response\"; after a chat prompt the response is scored with its end-of-turn token. The output\n"
    "line repeats it and adds tokens, logprobs (natural logarithm, one a token), sum and mean.\n\n"
    "example:\n  operant score model=runs/ask-why input=replies.jsonl output=scores.jsonl",
    table, run};
