/* operant generate: answers many prompts at once. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <operant/env.h>
#include <operant/generate.h>
#include <operant/jsonl.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *input, *output, *stop;
    int64_t max_tokens, top_k, seed, batch, threads;
    double temperature, top_p, min_p, repetition_penalty;
    int dtype;
    bool resume;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"input", OP_OPTION_STRING, AT(input), NULL, 0, 0, NULL, "JSONL: each line holds \"messages\" or \"prompt\""},
    {"output", OP_OPTION_STRING, AT(output), NULL, 0, 0, NULL, "JSONL: each input line with response, tokens, logprobs, finish_reason added"},
    {"max_tokens|max_new_tokens", OP_OPTION_INT, AT(max_tokens), "128", 1, 1 << 20, NULL, "new tokens of a response"},
    {"temperature", OP_OPTION_FLOAT, AT(temperature), "0.7", 0, 100, NULL, "0: always the likeliest token"},
    {"top_k", OP_OPTION_INT, AT(top_k), "0", 0, 1 << 24, NULL, "draw from this many likeliest tokens; 0: all"},
    {"top_p", OP_OPTION_FLOAT, AT(top_p), "0.95", 0.000001, 1, NULL, "draw from the likeliest tokens that together weigh this much"},
    {"min_p", OP_OPTION_FLOAT, AT(min_p), "0", 0, 1, NULL, "draw from tokens at least this likely beside the likeliest"},
    {"repetition_penalty", OP_OPTION_FLOAT, AT(repetition_penalty), "1", 0.01, 100, NULL, "divides the logits of tokens that already occurred; 1: off"},
    {"stop", OP_OPTION_LIST, AT(stop), NULL, 0, 0, NULL, "texts that end a response, comma-separated; they are not part of it"},
    {"seed", OP_OPTION_INT, AT(seed), "1", 0, 0, NULL, "line n draws with seed + n, whatever runs beside it"},
    {"batch", OP_OPTION_INT, AT(batch), "32", 1, 32, NULL, "responses written at the same time"},
    {"resume", OP_OPTION_BOOL, AT(resume), "false", 0, 0, NULL, "keep the complete lines that an interrupted run left in output.part"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

typedef struct job {
    const options *o;
    cli_subject subject;
    json_t *lines;          /* array: the input, in order */
    op_tokens *prompts;
    op_request *requests;
    char *stops[16];
    int n_stops;
    FILE *part;
    size_t next;            /* the first line not yet written */
    size_t finished;
    int64_t tokens;
    double started;
    bool failed;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static op_status keep_line(void *ctx, json_t *line, int number, op_error *e)
{
    (void)number;
    return json_array_append(ctx, line) ? op_error_set(e, OP_ERR_NOMEM, "out of memory") : OP_OK;
}

/* Where the earliest stop text begins in `text`, or its length. */
static size_t stop_at(const job *j, const char *text, size_t n)
{
    for (int i = 0; i < j->n_stops; i++) {
        const char *found = strstr(text, j->stops[i]);
        if (found && (size_t)(found - text) < n)
            n = (size_t)(found - text);
    }
    return n;
}

static op_verdict check_stop(void *ctx, size_t i, const int32_t *tokens, int32_t n, float logprob)
{
    const job *j = ctx;
    (void)i;
    (void)logprob;
    if (!j->n_stops)
        return OP_GO;
    op_buf text;
    op_buf_init(&text, 1 << 20);
    int32_t from = n > 64 ? n - 64 : 0; /* a stop text is shorter than that */
    bool stop = op_tokenizer_decode(j->subject.tokenizer, tokens + from, (size_t)(n - from), OP_DECODE_SKIP_SPECIAL, &text) == OP_OK && text.data &&
                stop_at(j, text.data, text.len) < text.len;
    op_buf_release(&text);
    return stop ? OP_STOP : OP_GO;
}

static op_status write_line(job *j, size_t i)
{
    const op_request *r = &j->requests[i];
    json_t *line = json_array_get(j->lines, i), *ids = json_array(), *logprobs = json_array();
    op_buf text, out;
    op_buf_init(&text, 1 << 26);
    op_buf_init(&out, 1 << 28);
    op_status s = op_tokenizer_decode(j->subject.tokenizer, r->tokens, (size_t)r->n, OP_DECODE_SKIP_SPECIAL, &text);
    for (int32_t t = 0; t < r->n; t++) {
        json_array_append_new(ids, json_integer(r->tokens[t]));
        json_array_append_new(logprobs, json_real(r->logprobs[t]));
    }
    size_t n = text.data ? stop_at(j, text.data, text.len) : 0;
    json_object_set_new(line, "response", json_stringn(text.data ? text.data : "", n));
    json_object_set_new(line, "tokens", ids);
    json_object_set_new(line, "logprobs", logprobs);
    json_object_set_new(line, "finish_reason", json_string(r->finish == OP_FINISH_LENGTH ? "length" : "stop"));
    if (!s)
        s = op_json_append(&out, line);
    if (!s && fwrite(out.data, 1, out.len, j->part) != out.len)
        s = OP_ERR_IO;
    op_buf_release(&text);
    op_buf_release(&out);
    return s;
}

/* Lines are written in order, as soon as all before them are there. */
static void done(void *ctx, size_t i, const op_request *r)
{
    job *j = ctx;
    size_t n = json_array_size(j->lines);
    j->requests[i].n = r->n;
    j->finished++;
    j->tokens += r->n;
    json_object_set_new(json_array_get(j->lines, i), "finish_reason", json_null()); /* marks it as finished */
    while (j->next < n && json_object_get(json_array_get(j->lines, j->next), "finish_reason"))
        if (write_line(j, j->next++))
            j->failed = true;
    fflush(j->part);
    double seconds = now() - j->started;
    char eta[32];
    cli_progress(j->next == n, "%zu/%zu  %.0f tokens/s  ETA %s", j->finished, n, (double)j->tokens / seconds,
                 cli_eta(seconds / (double)j->finished * (double)(n - j->finished), eta));
}

/* Encodes every prompt; one that begins like an earlier one shares that beginning. */
static op_status prepare(job *j, size_t skip, op_error *e)
{
    size_t n = json_array_size(j->lines);
    for (size_t i = 0; i < n; i++) {
        json_t *line = json_array_get(j->lines, i);
        static const char *const ours[] = {"response", "tokens", "logprobs", "finish_reason"};
        for (int k = 0; k < 4; k++)
            json_object_del(line, ours[k]);
        op_status s = cli_encode_prompt(&j->subject, line, &j->prompts[i], e);
        if (s)
            return op_error_prefix(e, "%s:%zu", j->o->input, i + 1);
        const op_tokens *p = &j->prompts[i], *first = &j->prompts[skip];
        op_request *r = &j->requests[i];
        *r = (op_request){.prompt = p->ids, .n_prompt = (int32_t)p->n, .adapter = op_model_adapter_count(j->subject.model) - 1, .share = -1,
                          .sampling = {.temperature = j->o->temperature, .top_k = (int32_t)j->o->top_k, .top_p = j->o->top_p, .min_p = j->o->min_p,
                                       .repetition_penalty = j->o->repetition_penalty, .max_tokens = (int32_t)j->o->max_tokens,
                                       .seed = (uint64_t)j->o->seed + i + 1}};
        int32_t same = 0;
        while (i > skip && same < (int32_t)p->n - 1 && same < (int32_t)first->n - 1 && p->ids[same] == first->ids[same])
            same++;
        if (same >= 8) {
            r->share = 0;
            r->share_n = same;
        }
    }
    return OP_OK;
}

static op_status count_line(void *ctx, json_t *line, int number, op_error *e)
{
    (void)number;
    (void)e;
    *(size_t *)ctx += json_object_get(line, "response") != NULL;
    return OP_OK;
}

static op_status open_part(job *j, const char *part, size_t *skip, op_error *e)
{
    *skip = 0;
    if (j->o->resume) {
        FILE *old = fopen(part, "r+");
        long good = 0;
        int c;
        for (long at = 1; old && (c = fgetc(old)) != EOF; at++)
            if (c == '\n')
                good = at; /* a line that was cut short is dropped */
        if (old && ftruncate(fileno(old), good)) {
            fclose(old);
            return op_error_set(e, OP_ERR_IO, "%s: cannot be cut to its complete lines", part);
        }
        if (old)
            fclose(old);
        if (good && op_json_lines(part, count_line, skip, e))
            return e->code;
    }
    j->part = fopen(part, *skip ? "a" : "w");
    return j->part ? OP_OK : op_error_set(e, OP_ERR_IO, "%s: cannot be written", part);
}

static op_status work(job *j, op_error *e)
{
    char part[4096];
    size_t skip;
    if (!j->o->input || !j->o->output)
        return op_error_set(e, OP_ERR_ARG, "input=FILE.jsonl and output=FILE.jsonl are needed");
    snprintf(part, sizeof part, "%s.part", j->o->output);
    op_status s = op_json_lines(j->o->input, keep_line, j->lines, e);
    size_t n = json_array_size(j->lines);
    if (s || (s = open_part(j, part, &skip, e)) || (s = cli_open(&j->subject, j->o->model, j->o->dtype, OP_TRAIN_NONE, e)))
        return s;
    if (skip > n)
        return op_error_set(e, OP_ERR_MISMATCH, "%s has %zu lines, %s only %zu", part, skip, j->o->input, n);
    j->prompts = calloc(n + 1, sizeof *j->prompts);
    j->requests = calloc(n + 1, sizeof *j->requests);
    if (!j->prompts || !j->requests)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    if ((s = prepare(j, skip, e)))
        return s;
    /* the lines that are already there are left out */
    memmove(j->requests, j->requests + skip, (n - skip) * sizeof *j->requests);
    for (size_t i = 0; i < skip; i++)
        json_array_remove(j->lines, 0);
    j->started = now();
    op_generate_options g = {.max_batch = (int32_t)j->o->batch, .ctx = j, .stop = j->n_stops ? check_stop : NULL, .done = done, .interrupt = &cli_stop};
    s = op_generate(j->subject.model, j->requests, n - skip, &g, e);
    if (fclose(j->part) || j->failed)
        s = op_error_set(e, OP_ERR_IO, "%s: writing failed", part);
    j->part = NULL;
    if (!s && rename(part, j->o->output))
        s = op_error_set(e, OP_ERR_IO, "%s: cannot be renamed to %s", part, j->o->output);
    if (s == OP_ERR_INTERRUPTED)
        fprintf(stderr, "%zu of %zu lines are in %s; the same command with resume=true goes on\n", j->next + skip, n, part);
    return s;
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    op_error e = {0};
    job j = {.o = &o, .lines = json_array()};
    if (a.n_words)
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    op_env_threads((int)o.threads);
    for (char *w = o.stop ? strtok(o.stop, ",") : NULL; w && j.n_stops < 16; w = strtok(NULL, ","))
        j.stops[j.n_stops++] = w;
    op_status s = work(&j, &e);
    size_t n = json_array_size(j.lines);
    for (size_t i = 0; j.requests && i < n; i++)
        op_request_release(&j.requests[i]);
    for (size_t i = 0; j.prompts && i < n; i++)
        op_tokens_release(&j.prompts[i]);
    if (j.part)
        fclose(j.part);
    if (!s && a.json)
        printf("{\"lines\": %zu, \"tokens\": %lld, \"tokens_per_s\": %.6g}\n", n, (long long)j.tokens, (double)j.tokens / (now() - j.started));
    free(j.requests);
    free(j.prompts);
    json_decref(j.lines);
    cli_close(&j.subject);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_generate = {
    "generate", "answer many prompts at once", "model=MODEL input=P.jsonl output=O.jsonl [key=value ...]",
    "Each input line holds \"messages\" (through the model's chat template) or \"prompt\" (plain text, with the tokens that the tokenizer adds around\n"
    "a text, without a template). The output line repeats it and adds response, tokens, logprobs (of each token, under the model itself),\n"
    "finish_reason (stop or length). A line's result depends on its prompt, the settings and the seed only, not on the other lines.\n\n"
    "examples:\n"
    "  operant generate model=runs/ask-why input=prompts.jsonl output=replies.jsonl temperature=0 max_tokens=80\n"
    "  operant generate model=runs/ask-why input=prompts.jsonl output=replies.jsonl resume=true",
    table, run};
