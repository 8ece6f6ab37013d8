/* operant generate: answers many prompts at once. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/env.h>
#include <operant/file.h>
#include <operant/jsonl.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *input, *output, *stop;
    cli_sampling sampling;
    int64_t batch, threads;
    int dtype, weights;
    bool resume;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"input", OP_OPTION_STRING, AT(input), NULL, 0, 0, NULL, "JSONL: each line holds \"messages\" or \"prompt\""},
    {"output", OP_OPTION_STRING, AT(output), NULL, 0, 0, NULL, "JSONL: each input line with response, tokens, logprobs, finish_reason added"},
    CLI_SAMPLING(AT(sampling), "128", "0.7", "line n draws with seed + n, whatever runs beside it"),
    {"stop", OP_OPTION_LIST, AT(stop), NULL, 0, 0, NULL,
     "texts that end a response and are not part of it: words with commas between them, or a JSON list: [\"a, b\", \"\\n\\n\"]"},
    {"batch", OP_OPTION_INT, AT(batch), "32", 1, 32, NULL, "responses written at the same time"},
    {"resume", OP_OPTION_BOOL, AT(resume), "false", 0, 0, NULL, "keep the lines that an earlier run of the same model and settings left"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    CLI_WEIGHTS(AT(weights)),
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

enum { STOPS = 16, STOP_BYTES = 1024 };

/* The text of one response while its tokens come. */
typedef struct words {
    op_decoder decoder;
    op_buf text;
    size_t end;     /* of the response: where a stop text begins */
    bool stopped;
} words;

typedef struct job {
    const options *o;
    cli_subject subject;
    json_t *lines;          /* the input, in order */
    size_t n, skip;         /* of them; those that an earlier run already answered */
    op_tokens *prompts;     /* [n] */
    op_request *requests;   /* [n]; the first `skip` stay empty */
    words *words;           /* [n] */
    bool *ready;            /* [n] */
    json_t *stops;          /* strings */
    FILE *part;
    size_t next, finished;  /* the first line not yet written; answered by this run */
    int64_t tokens;
    double started;
    bool failed;
} job;

/* ---- stop texts ---- */

static op_status add_stop(json_t *list, json_t *text, op_error *e)
{
    size_t n = json_string_length(text);
    if (!json_is_string(text) || !n || n > STOP_BYTES)
        op_error_set(e, OP_ERR_ARG, "stop: text %zu %s, expected 1 to %d bytes", json_array_size(list) + 1,
                     !json_is_string(text) ? "is no string" : n ? "is longer" : "is empty", STOP_BYTES);
    else if (json_array_size(list) == STOPS)
        op_error_set(e, OP_ERR_ARG, "stop: more than %d texts", STOPS);
    else
        json_array_append(list, text);
    json_decref(text);
    return e->code;
}

static op_status read_stops(json_t *list, char *setting, op_error *e)
{
    size_t i;
    json_t *text;
    if (setting && setting[0] == '[' && setting[1 + strspn(setting + 1, " \n")] == '"') {
        json_error_t why;
        json_t *given = json_loads(setting, 0, &why);
        if (!given)
            return op_error_set(e, OP_ERR_ARG, "stop: byte %d of the JSON list: %s", why.position, why.text);
        json_array_foreach(given, i, text)
            if (add_stop(list, json_incref(text), e))
                break;
        json_decref(given);
        return e->code;
    }
    for (char *w = setting ? strtok(setting, ",") : NULL; w; w = strtok(NULL, ","))
        if (add_stop(list, json_string(w), e))
            break;
    return e->code;
}

/* Looks for the earliest stop text that ends within the bytes after `from`. */
static void look_for_stops(const job *j, words *w, size_t from)
{
    size_t i;
    json_t *stop;
    w->end = w->text.len;
    json_array_foreach(j->stops, i, stop)
    {
        size_t n = json_string_length(stop), start = from >= n ? from - n + 1 : 0;
        const char *hit = w->text.len > start ? memmem(w->text.data + start, w->text.len - start, json_string_value(stop), n) : NULL;
        if (hit && (size_t)(hit - w->text.data) < w->end) {
            w->end = (size_t)(hit - w->text.data);
            w->stopped = true;
        }
    }
}

static void show(const job *j, bool last)
{
    double seconds = cli_now() - j->started;
    size_t todo = j->n - j->skip;
    char eta[32];
    cli_progress(last, "%zu/%zu  %.0f tokens/s  ETA %s", j->finished + j->skip, j->n, (double)j->tokens / seconds,
                 cli_eta(seconds / (double)j->finished * (double)(todo - j->finished), eta));
}

/* After every token: counts it and looks for stop texts. */
static op_verdict after_token(void *ctx, size_t i, const int32_t *tokens, int32_t n, float logprob)
{
    job *j = ctx;
    words *w = &j->words[i + j->skip];
    (void)logprob;
    j->tokens++;
    show(j, false);
    if (n == 1) {
        w->decoder = (op_decoder){.tokenizer = j->subject.tokenizer, .flags = OP_DECODE_SKIP_SPECIAL};
        op_buf_init(&w->text, 1 << 26);
    }
    size_t before = w->text.len;
    if (op_decoder_push(&w->decoder, tokens[n - 1], &w->text)) {
        j->failed = true;
        return OP_VETO;
    }
    look_for_stops(j, w, before);
    return w->stopped ? OP_STOP : OP_GO;
}

static op_status write_line(job *j, size_t i)
{
    const op_request *r = &j->requests[i];
    json_t *line = json_array_get(j->lines, i), *ids = json_array(), *logprobs = json_array();
    words *w = &j->words[i];
    op_buf out;
    op_buf_init(&out, 1 << 28);
    op_status s = OP_OK;
    if (!w->stopped) {
        s = op_decoder_finish(&w->decoder, &w->text);
        w->end = w->text.len;
    }
    for (int32_t t = 0; t < r->n; t++) {
        json_array_append_new(ids, json_integer(r->tokens[t]));
        json_array_append_new(logprobs, json_real(r->logprobs[t]));
    }
    json_object_set_new(line, "response", json_stringn(w->text.data ? w->text.data : "", w->end));
    json_object_set_new(line, "tokens", ids);
    json_object_set_new(line, "logprobs", logprobs);
    json_object_set_new(line, "finish_reason", json_string(r->finish == OP_FINISH_LENGTH ? "length" : "stop"));
    if (!s)
        s = op_json_append(&out, line);
    if (!s && fwrite(out.data, 1, out.len, j->part) != out.len)
        s = OP_ERR_IO;
    op_buf_release(&w->text);
    op_buf_release(&out);
    return s;
}

/* Lines are written in order, as soon as all before them are there. */
static void done(void *ctx, size_t i, const op_request *r)
{
    job *j = ctx;
    (void)r;
    j->finished++;
    j->ready[i + j->skip] = true;
    for (; j->next < j->n && j->ready[j->next]; j->next++)
        if (write_line(j, j->next))
            j->failed = true;
    if (fflush(j->part))
        j->failed = true;
    show(j, j->finished + j->skip == j->n);
}

/* ---- what makes the lines: OUTPUT.run.json ---- */

static op_status describe_run(const job *j, json_t **out, op_error *e)
{
    const cli_sampling *a = &j->o->sampling;
    char model[65];
    op_status s = op_model_fingerprint(j->subject.model, model, e);
    if (s)
        return s;
    *out = json_pack("{ss ss ss sI sf sI sf sf sf sI sO}", "model", model, "dtype",
                     cli_dtype(j->o->dtype) == OP_BF16 ? "bf16" : "f32", "weights", j->o->weights ? "quantised" : "exact", "max_tokens", (json_int_t)a->max_tokens, "temperature", a->temperature, "top_k",
                     (json_int_t)a->top_k, "top_p", a->top_p, "min_p", a->min_p, "repetition_penalty", a->repetition_penalty, "seed",
                     (json_int_t)a->seed, "stop", j->stops);
    return *out ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
}

/* Everything that decides what a line's response is must be as it was. */
static op_status compare_run(const json_t *now, const char *path, op_error *e)
{
    json_error_t why;
    json_t *was = json_load_file(path, 0, &why), *value;
    const char *key;
    if (!was)
        return op_error_set(e, OP_ERR_MISMATCH, "%s: %s, so that nobody knows what made the lines that are there; resume=false starts afresh", path, why.text);
    json_object_foreach((json_t *)now, key, value)
    {
        json_t *old = json_object_get(was, key);
        if (e->code || (old && json_equal(old, value)))
            continue;
        char *a = json_dumps(old, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)), *b = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        op_error_set(e, OP_ERR_MISMATCH, "%s: %s%s was %.80s, now it is %.80s; resume=false starts afresh", path, key,
                     strcmp(key, "model") ? "" : " (a fingerprint of the weights)", a ? a : "not there", b ? b : "?");
        free(a);
        free(b);
    }
    json_decref(was);
    return e->code;
}

static op_status save_run(const json_t *now, const char *path, op_error *e)
{
    char *text = json_dumps(now, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    op_status s = text ? op_file_put(path, text, strlen(text), e) : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    free(text);
    return s;
}

/* Opens the part file behind the kept lines. A new one is empty before the record changes: no line is ever beside another run's. */
static op_status open_part(job *j, const char *part, op_error *e)
{
    char path[4096];
    json_t *now = NULL;
    snprintf(path, sizeof path, "%s.run.json", j->o->output);
    op_status s = describe_run(j, &now, e);
    if (!s && j->skip)
        s = compare_run(now, path, e);
    if (!s && !(j->part = fopen(part, j->skip ? "a" : "w")))
        s = op_error_set(e, OP_ERR_IO, "%s: cannot be written", part);
    if (!s && !j->skip)
        s = save_run(now, path, e);
    json_decref(now);
    return s;
}

/* ---- the lines that an earlier run left ---- */

static op_status keep_line(void *ctx, json_t *line, int number, op_error *e)
{
    (void)number;
    return json_array_append(ctx, line) ? op_error_set(e, OP_ERR_NOMEM, "out of memory") : OP_OK;
}

/* Cuts a file behind its last line end: a line that was cut short is made again. */
static op_status cut_to_lines(const char *path, op_error *e)
{
    FILE *f = fopen(path, "r+");
    long whole = 0;
    if (!f)
        return OP_OK;
    int c;
    for (long at = 1; (c = fgetc(f)) != EOF; at++)
        whole = c == '\n' ? at : whole;
    bool failed = ferror(f) || ftruncate(fileno(f), whole);
    fclose(f);
    return failed ? op_error_set(e, OP_ERR_IO, "%s: cannot be cut to its complete lines", path) : OP_OK;
}

/* Counts the kept lines, each of which must answer the input line in its place. */
static op_status count_kept(job *j, const char *part, op_error *e)
{
    json_t *kept = json_array();
    op_status s = cut_to_lines(part, e);
    if (!s && op_path_exists(part))
        s = op_json_lines(part, keep_line, kept, e);
    j->skip = json_array_size(kept);
    if (!s && j->skip > j->n)
        s = op_error_set(e, OP_ERR_MISMATCH, "%s has %zu lines, %s only %zu", part, j->skip, j->o->input, j->n);
    static const char *const keys[] = {"messages", "prompt"};
    for (size_t i = 0; i < j->skip && !s; i++)
        for (int k = 0; k < 2 && !s; k++) {
            json_t *a = json_object_get(json_array_get(kept, i), keys[k]), *b = json_object_get(json_array_get(j->lines, i), keys[k]);
            if (a != b && !json_equal(a, b))
                s = op_error_set(e, OP_ERR_MISMATCH, "%s:%zu: \"%s\" is not that of %s; resume=false starts afresh", part, i + 1, keys[k], j->o->input);
        }
    json_decref(kept);
    return s;
}

/* ---- requests ---- */

enum { HEADS = 8, SHARE_MIN = 8 };

/* A prompt that begins like an earlier one, as those with the same system message do, has that beginning computed once. The
 * earlier ones are a few heads: what is shared stays in memory to the end. */
static void share_beginning(job *j, size_t i, size_t heads[HEADS], int *n_heads)
{
    const op_tokens *p = &j->prompts[i];
    op_request *r = &j->requests[i];
    for (int h = 0; h < *n_heads; h++) {
        const op_tokens *q = &j->prompts[heads[h]];
        int32_t same = 0;
        while (same < (int32_t)p->n - 1 && same < (int32_t)q->n - 1 && p->ids[same] == q->ids[same])
            same++;
        if (same >= SHARE_MIN && same > r->share_n) {
            r->share = (int32_t)(heads[h] - j->skip);
            r->share_n = same;
        }
    }
    if (r->share < 0 && *n_heads < HEADS)
        heads[(*n_heads)++] = i;
}

static op_status prepare(job *j, op_error *e)
{
    size_t heads[HEADS];
    int n_heads = 0;
    int32_t limit = op_model_get_config(j->subject.model)->max_positions;
    j->prompts = calloc(j->n + 1, sizeof *j->prompts);
    j->requests = calloc(j->n + 1, sizeof *j->requests);
    j->ready = calloc(j->n + 1, sizeof *j->ready);
    j->words = calloc(j->n + 1, sizeof *j->words);
    if (!j->prompts || !j->requests || !j->ready || !j->words)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (size_t i = j->skip; i < j->n; i++) {
        json_t *line = json_array_get(j->lines, i);
        static const char *const ours[] = {"response", "tokens", "logprobs", "finish_reason"};
        for (int k = 0; k < 4; k++)
            json_object_del(line, ours[k]);
        if (cli_encode_prompt(&j->subject, line, &j->prompts[i], e))
            return op_error_prefix(e, "%s:%zu", j->o->input, i + 1);
        if (j->prompts[i].n >= (size_t)limit)
            return op_error_set(e, OP_ERR_ARG, "%s:%zu: a prompt of %zu tokens, the model takes at most %d", j->o->input, i + 1, j->prompts[i].n, limit - 1);
        j->requests[i] = (op_request){.prompt = j->prompts[i].ids, .n_prompt = (int32_t)j->prompts[i].n, .share = -1,
                                      .adapter = op_model_adapter_count(j->subject.model) - 1,
                                      .sampling = cli_sampling_of(&j->o->sampling, (int64_t)i + 1)};
        share_beginning(j, i, heads, &n_heads);
    }
    return OP_OK;
}

static op_status answer(job *j, const char *part, op_error *e)
{
    op_status s = prepare(j, e);
    s = s ? s : open_part(j, part, e);
    if (s) {
        if (j->part)
            fclose(j->part);
        return s;
    }
    j->next = j->skip;
    j->started = cli_now();
    op_generate_options g = {.max_batch = (int32_t)j->o->batch, .ctx = j, .stop = after_token, .done = done, .interrupt = &cli_stop};
    s = op_generate(j->subject.model, j->requests + j->skip, j->n - j->skip, &g, e);
    if (s == OP_ERR_INTERRUPTED)
        fprintf(stderr, "%zu of %zu lines are in %s; the same command with resume=true goes on\n", j->next, j->n, part);
    bool failed = fclose(j->part) || j->failed;
    j->part = NULL;
    return !s && failed ? op_error_set(e, OP_ERR_IO, "%s: cannot be written", part) : s;
}

static op_status work(job *j, op_error *e)
{
    char part[4096];
    if (snprintf(part, sizeof part, "%s.part", j->o->output) >= (int)sizeof part)
        return op_error_set(e, OP_ERR_ARG, "output: the name is too long");
    op_status s = op_json_lines(j->o->input, keep_line, j->lines, e);
    j->n = json_array_size(j->lines);
    /* a finished output whose input has grown goes on as well */
    if (!s && j->o->resume && !op_path_exists(part) && op_path_exists(j->o->output))
        s = op_path_rename(j->o->output, part, e);
    if (!s && j->o->resume)
        s = count_kept(j, part, e);
    if (!s)
        s = cli_open_weights(&j->subject, j->o->model, j->o->dtype, j->o->weights, e);
    if (!s)
        s = answer(j, part, e);
    return s ? s : op_path_rename(part, j->o->output, e);
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words || !o.input || !o.output) {
        int code = a.n_words ? cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]) : cli_usage_error(c, "input=P.jsonl and output=O.jsonl are needed");
        op_config_release(&o, c->table);
        return code;
    }
    op_env_threads((int)o.threads);
    op_error e = {0};
    job j = {.o = &o, .lines = json_array(), .stops = json_array()};
    op_status s = read_stops(j.stops, o.stop, &e);
    if (!s)
        s = work(&j, &e);
    for (size_t i = 0; j.requests && i < j.n; i++)
        op_request_release(&j.requests[i]);
    for (size_t i = 0; j.words && i < j.n; i++)
        op_buf_release(&j.words[i].text);
    for (size_t i = 0; j.prompts && i < j.n; i++)
        op_tokens_release(&j.prompts[i]);
    if (!s && a.json)
        printf("{\"lines\": %zu, \"tokens\": %lld, \"tokens_per_s\": %.6g}\n", j.n, (long long)j.tokens,
               j.tokens ? (double)j.tokens / (cli_now() - j.started) : 0);
    free(j.requests);
    free(j.prompts);
    free(j.ready);
    free(j.words);
    json_decref(j.lines);
    json_decref(j.stops);
    cli_close(&j.subject);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_generate = {
    "generate", "answer many prompts at once", "model=MODEL input=P.jsonl output=O.jsonl [key=value ...]",
    "Each input line holds \"messages\" (through the model's chat template) or \"prompt\" (plain text, with the tokens that the tokenizer adds around\n"
    "a text, without a template). The output line repeats it and adds response, tokens, logprobs (of each token, under the model itself),\n"
    "finish_reason (stop or length). A line's result depends on its prompt, the settings and the seed only, not on the other lines.\n\n"
    "A stop text may be up to 1024 bytes long, and there may be 16; write a comma in one, or a line end, as a JSON list: stop='[\"a, b\", \"\\n\\n\"]'.\n"
    "Special tokens written in messages are plain text; in a prompt, which is yours, they are the tokens that they name.\n"
    "Lines are collected in OUTPUT.part; OUTPUT.run.json says what makes them (a fingerprint of the weights, the settings), and resume=true refuses\n"
    "to go on with anything else.\n\n"
    "examples:\n"
    "  operant generate model=runs/ask-why input=prompts.jsonl output=replies.jsonl temperature=0 max_tokens=80\n"
    "  operant generate model=runs/ask-why input=prompts.jsonl output=replies.jsonl resume=true",
    table, run, NULL};
