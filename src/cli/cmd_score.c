/* operant score: the log-probability of given responses. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <operant/env.h>
#include <operant/file.h>
#include <operant/import.h>
#include <operant/jsonl.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *input, *output;
    int64_t threads, block_tokens;
    int dtype;
    bool end;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"input", OP_OPTION_STRING, AT(input), NULL, 0, 0, NULL, "JSONL: each line holds \"messages\" or \"prompt\", and \"response\""},
    {"output", OP_OPTION_STRING, AT(output), NULL, 0, 0, NULL, "JSONL: each line with tokens, logprobs, sum and mean added"},
    {"end", OP_OPTION_BOOL, AT(end), "true", 0, 0, NULL, "after messages, score the end-of-turn token too"},
    {"block_tokens", OP_OPTION_INT, AT(block_tokens), "1024", 1, 1 << 24, NULL, "lines are computed together up to this many tokens"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

enum { BLOCK_LINES = 256 };

typedef struct job {
    const options *o;
    cli_subject subject;
    op_pass *pass;
    op_buf out;
    int64_t written;
    /* the lines of the block under way */
    json_t *lines;
    json_t *group; /* answers of the last line's group so far */
    int32_t *ids; /* [n_ids] */
    size_t n_ids, room;
    op_seq seqs[BLOCK_LINES];
    int32_t prompt[BLOCK_LINES]; /* tokens before the response */
} job;

static op_status append(job *j, const int32_t *ids, size_t n, op_error *e)
{
    if (j->n_ids + n > j->room) {
        size_t room = 2 * (j->n_ids + n);
        int32_t *more = realloc(j->ids, room * sizeof *more);
        if (!more)
            return op_error_set(e, OP_ERR_NOMEM, "out of memory");
        j->ids = more;
        j->room = room;
    }
    memcpy(j->ids + j->n_ids, ids, n * sizeof *ids);
    j->n_ids += n;
    return OP_OK;
}

/* Tokens that came with the response and spell it (operant generate writes them) are scored as they are: a new list, or NULL. */
static int32_t *given_tokens(const job *j, json_t *line, size_t *n)
{
    json_t *given = json_object_get(line, "tokens"), *response = json_object_get(line, "response"), *id;
    size_t i;
    *n = json_array_size(given);
    int32_t *list = *n ? malloc(*n * sizeof *list) : NULL;
    bool fits = list != NULL;
    json_array_foreach(given, i, id)
    {
        fits = fits && json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < op_tokenizer_vocab_size(j->subject.tokenizer);
        if (fits)
            list[i] = (int32_t)json_integer_value(id);
    }
    op_buf text;
    op_buf_init(&text, 1 << 26);
    size_t length = json_string_length(response); /* a stop text may have cut the response short */
    fits = fits && op_tokenizer_decode(j->subject.tokenizer, list, *n, OP_DECODE_SKIP_SPECIAL, &text) == OP_OK && text.len >= length &&
           (!length || !memcmp(text.data, json_string_value(response), length));
    op_buf_release(&text);
    if (fits)
        return list;
    free(list);
    return NULL;
}

/* As training sees it: the response is the last assistant turn. Tokens behind its end-of-turn token are left out. */
static op_status encode_turn(const job *j, json_t *line, json_t *response, op_tokens *ids, int32_t *prompt, op_error *e)
{
    json_t *messages = json_copy(json_object_get(line, "messages"));
    json_array_append_new(messages, json_pack("{ss sO}", "role", "assistant", "content", response));
    op_turns turns = {0};
    size_t first = 0, end = 0;
    op_status s = op_chat_encode(&j->subject.chat, messages, json_object_get(line, "tools"), false, ids, &turns, NULL, e);
    for (size_t t = 0; t < turns.n && !s; t++)
        if (turns.turn[t] == (int32_t)json_array_size(messages) - 1) {
            first = end ? first : t;
            end = t + 1;
        }
    if (!s && !end)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "the chat template leaves nothing of the response");
    if (!s) {
        ids->n = end - (!j->o->end && op_tokenizer_is_special(j->subject.tokenizer, ids->ids[end - 1]));
        *prompt = (int32_t)first;
    }
    op_turns_release(&turns);
    json_decref(messages);
    return s;
}

/* Appends prompt and response to the block. */
static op_status encode_line(job *j, json_t *line, int32_t *prompt, op_error *e)
{
    json_t *response = json_object_get(line, "response");
    if (!json_is_string(response))
        return op_error_set(e, OP_ERR_FORMAT, "expected \"response\", a string");
    op_tokens ids;
    op_tokens_init(&ids);
    size_t n = 0;
    int32_t *given = given_tokens(j, line, &n);
    bool chat = json_object_get(line, "messages") != NULL;
    op_status s = chat && !given ? OP_OK : cli_encode_prompt(&j->subject, line, &ids, e);
    *prompt = (int32_t)ids.n;
    if (!s && !given)
        s = chat ? encode_turn(j, line, response, &ids, prompt, e)
                 : op_tokenizer_encode(j->subject.tokenizer, json_string_value(response), json_string_length(response), OP_ENCODE_CONTINUE, &ids, e);
    if (!s)
        s = append(j, ids.ids, ids.n, e);
    if (!s && given)
        s = append(j, given, n, e);
    free(given);
    op_tokens_release(&ids);
    return s;
}

static void add_scores(json_t *line, const int32_t *ids, const float *logp, int32_t n)
{
    json_t *tokens = json_array(), *logprobs = json_array();
    double sum = 0;
    for (int32_t t = 0; t < n; t++) {
        json_array_append_new(tokens, json_integer(ids[t]));
        json_array_append_new(logprobs, json_real(logp[t]));
        sum += logp[t];
    }
    json_object_set_new(line, "tokens", tokens);
    json_object_set_new(line, "logprobs", logprobs);
    json_object_set_new(line, "sum", json_real(sum));
    json_object_set_new(line, "mean", json_real(n ? sum / n : 0));
}

/* What was marked bad, what good, and the rest: the mean log-probability of each. */
static op_status add_marked(const job *j, json_t *line, const float *logp, int32_t n, op_error *e)
{
    static const char *const names[] = {"bad", "rest", "good"};
    op_trial t;
    if (!json_array_size(json_object_get(line, "marks")) || !json_object_get(line, "prompt_tokens"))
        return OP_OK;
    op_status s = op_trial_from_json(&t, line, j->subject.tokenizer, &j->subject.chat, j->o->input, e);
    if (s)
        return s;
    float *m = calloc((size_t)t.n_response + 1, sizeof *m);
    double sum[3] = {0}, count[3] = {0};
    if (m)
        op_trial_token_marks(&t, m);
    for (int32_t i = 0; m && i < n && i < t.n_response; i++) {
        int k = 1 + (m[i] > 0) - (m[i] < 0);
        sum[k] += logp[i];
        count[k]++;
    }
    for (int k = 0; k < 3; k++)
        if (count[k] > 0)
            json_object_set_new(line, names[k], json_real(sum[k] / count[k]));
    s = m ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    free(m);
    op_trial_release(&t);
    return s;
}

static bool better(const json_t *a, const json_t *b)
{
    return op_import_better(&(op_trial){.tags = (json_t *)a}, &(op_trial){.tags = (json_t *)b});
}

/* Beside the answers of its group that came before it: of those that people compared it with, the share in which the better one is the likelier, by the mean
 * of its tokens, and by how much it is. */
static void add_comparisons(job *j, json_t *line)
{
    json_t *tags = json_object_get(line, "tags"), *group = json_object_get(tags, "group"), *other;
    if (!json_is_string(group))
        return;
    if (!json_equal(json_object_get(json_object_get(json_array_get(j->group, 0), "tags"), "group"), group))
        json_array_clear(j->group);
    double mean = json_number_value(json_object_get(line, "mean")), margin = 0, right = 0, pairs = 0;
    size_t i;
    json_array_foreach(j->group, i, other) {
        const json_t *theirs = json_object_get(other, "tags");
        int sign = better(tags, theirs) - better(theirs, tags);
        double more = sign * (mean - json_number_value(json_object_get(other, "mean")));
        pairs += sign != 0;
        right += more > 0;
        margin += more;
    }
    json_array_append_new(j->group, json_pack("{sO sf}", "tags", tags, "mean", mean));
    if (pairs > 0) {
        json_object_set_new(line, "preferred", json_real(right / pairs));
        json_object_set_new(line, "margin", json_real(margin / pairs));
    }
}

/* Computes the block and appends its lines to the output. */
static op_status finish_block(job *j, op_error *e)
{
    int32_t n = (int32_t)json_array_size(j->lines);
    if (!n)
        return OP_OK;
    uint8_t *want = calloc(j->n_ids, 1);
    float *logp = malloc(j->n_ids * sizeof *logp);
    op_batch batch = {(int32_t)j->n_ids, n, j->ids, j->seqs};
    op_status s = want && logp ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (int32_t i = 0; i < n && !s; i++)
        memset(want + j->seqs[i].start + j->prompt[i], 1, (size_t)(j->seqs[i].length - j->prompt[i]));
    if (!s)
        s = op_model_forward(j->subject.model, j->pass, &batch, &(op_how){0}, e);
    if (!s)
        s = op_model_logprobs(j->subject.model, j->pass, want, NULL, logp, e);
    for (int32_t i = 0; i < n && !s; i++) {
        int32_t at = j->seqs[i].start + j->prompt[i];
        json_t *line = json_array_get(j->lines, (size_t)i);
        s = add_marked(j, line, logp + at, j->seqs[i].length - j->prompt[i], e); /* before there are keys in it that no trial has */
        add_scores(line, j->ids + at, logp + at, j->seqs[i].length - j->prompt[i]);
        add_comparisons(j, line);
        if (!s && op_json_append(&j->out, line))
            s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    }
    free(want);
    free(logp);
    json_array_clear(j->lines);
    j->n_ids = 0;
    j->written += n;
    cli_progress(false, "%lld lines", (long long)j->written);
    return s;
}

static op_status score_line(void *ctx, json_t *line, int number, op_error *e)
{
    job *j = ctx;
    size_t i = json_array_size(j->lines), start = j->n_ids, limit = (size_t)op_model_get_config(j->subject.model)->max_positions;
    op_status s = encode_line(j, line, &j->prompt[i], e);
    if (!s && j->n_ids - start > limit)
        s = op_error_set(e, OP_ERR_ARG, "%zu tokens, the model takes %zu", j->n_ids - start, limit);
    if (s)
        return op_error_prefix(e, "%s:%d", j->o->input, number);
    j->seqs[i] = (op_seq){.start = (int32_t)start, .length = (int32_t)(j->n_ids - start), .parent = -1,
                          .adapter = op_model_adapter_count(j->subject.model) - 1};
    json_array_append(j->lines, line);
    if (cli_stop)
        return op_error_set(e, OP_ERR_INTERRUPTED, "interrupted: nothing was written");
    return j->n_ids >= (size_t)j->o->block_tokens || i + 1 == BLOCK_LINES ? finish_block(j, e) : OP_OK;
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
    job j = {.o = &o, .lines = json_array(), .group = json_array()};
    op_error e = {0};
    op_buf_init(&j.out, (size_t)1 << 32);
    op_status s = cli_open(&j.subject, o.model, o.dtype, OP_TRAIN_NONE, &e);
    if (!s)
        s = op_pass_new(&j.pass, j.subject.model, &e);
    if (!s)
        s = op_json_lines(o.input, score_line, &j, &e);
    if (!s)
        s = finish_block(&j, &e);
    if (!s)
        s = op_file_put(o.output, j.out.data ? j.out.data : "", j.out.len, &e);
    if (!s)
        cli_progress(true, "%lld lines", (long long)j.written);
    if (!s && a.json)
        printf("{\"lines\": %lld}\n", (long long)j.written);
    op_buf_release(&j.out);
    free(j.ids);
    json_decref(j.lines);
    json_decref(j.group);
    op_pass_free(j.pass);
    cli_close(&j.subject);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_score = {
    "score", "log-probability of given responses", "model=MODEL input=P.jsonl output=O.jsonl",
    "Each line holds \"messages\" or \"prompt\", and \"response\". After messages the response is encoded as training does, end-of-turn token included;\n"
    "after a prompt it is the continuation of plain text. \"tokens\" that spell the response, such as operant generate writes, are scored as they\n"
    "are. The output line repeats the input and adds tokens, logprobs (natural logarithm, one a token, given all that precedes it), sum and mean.\n"
    "Lines of operant trials export get more: with marks, the mean of the tokens marked bad and good, and of the rest; answers of one group that\n"
    "people compared, preferred (the share of the comparisons in which the better answer has the higher mean) and margin (by how much).\n\n"
    "example:\n  operant score model=runs/ask-why input=replies.jsonl output=scores.jsonl",
    table, run, NULL};
