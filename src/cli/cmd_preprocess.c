/* operant preprocess: every token of a data set with its weight. */
#include <stddef.h>
#include <string.h>

#include <operant/dataset.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *data;
    int64_t lines, first, max_length;
    bool last_turn_only;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model|tokenizer", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "whose tokenizer and chat template are used"},
    {"data|train_file", OP_OPTION_STRING, AT(data), NULL, 0, 0, NULL, "data set in any form that train reads"},
    {"lines", OP_OPTION_INT, AT(lines), "5", 0, 0, NULL, "how many examples to print; 0: all"},
    {"first", OP_OPTION_INT, AT(first), "1", 1, 0x7fffffff, NULL, "the first example to print, from 1"},
    {"max_length|max_seq_length", OP_OPTION_INT, AT(max_length), "1024", 0, 1 << 24, NULL, "longer examples are cut; 0: never"},
    {"last_turn_only", OP_OPTION_BOOL, AT(last_turn_only), "false", 0, 0, NULL, "weight only the last assistant turn"},
    {0}};

/* Visible, on one line: control characters and what is no UTF-8 by itself as \xHH. */
static void print_token(const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char b = (unsigned char)bytes[i];
        if (b == '\n')
            fputs("\\n", stdout);
        else if (b < 32 || b == 127)
            printf("\\x%02x", b);
        else
            putchar(b);
    }
}

static void print_example(const op_example *x, const op_tokenizer *t, bool colour)
{
    printf("line %d: %d tokens\n", x->line, x->n);
    for (int32_t i = 0; i < x->n; i++) {
        size_t n;
        const char *bytes = op_tokenizer_bytes(t, x->ids[i], &n);
        float w = x->weights[i];
        /* green: learned, red: taught away from, dim: context; the number says it without colour */
        const char *paint = !colour ? "" : w > 0 ? "\033[32m" : w < 0 ? "\033[31m" : "\033[2m";
        printf("%6d  %8d  %+7.3g  %s", i, x->ids[i], (double)w, paint);
        print_token(bytes, n);
        puts(colour ? "\033[0m" : "");
    }
}

static void print_json(const op_example *x, const op_tokenizer *t)
{
    json_t *ids = json_array(), *weights = json_array(), *texts = json_array();
    for (int32_t i = 0; i < x->n; i++) {
        op_buf b;
        op_buf_init(&b, 1 << 16);
        op_tokenizer_decode(t, &x->ids[i], 1, OP_DECODE_ALL, &b);
        json_array_append_new(ids, json_integer(x->ids[i]));
        json_array_append_new(weights, json_real(x->weights[i]));
        json_array_append_new(texts, json_string(b.data ? b.data : ""));
        op_buf_release(&b);
    }
    json_t *j = json_pack("{si so so so}", "line", x->line, "ids", ids, "weights", weights, "tokens", texts);
    json_dumpf(j, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(j);
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (!o.data || !o.model || a.n_words) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, a.n_words ? "unexpected argument \"%s\"" : "model=MODEL and data=FILE are needed%s", a.n_words ? a.words[0] : "");
    }
    op_error e = {0};
    op_tokenizer *t = NULL;
    op_template *tmpl = NULL;
    op_dataset d = {0};
    op_status s = op_tokenizer_open(&t, o.model, &e);
    const char *source = s ? NULL : op_tokenizer_chat_template(t);
    if (source)
        s = op_template_parse(&tmpl, source, strlen(source), &e);
    op_chat chat = {.tokenizer = t, .tmpl = tmpl};
    if (!s)
        s = op_dataset_read(&d, o.data, &chat, &(op_dataset_options){.max_length = (int32_t)o.max_length, .last_turn_only = o.last_turn_only}, &e);
    if (!s) {
        for (size_t i = (size_t)o.first - 1; i < d.n && (!o.lines || i < (size_t)(o.first - 1 + o.lines)); i++) {
            if (a.json)
                print_json(&d.examples[i], t);
            else
                print_example(&d.examples[i], t, cli_colour(stdout));
        }
        fprintf(stderr, "%s: form \"%s\", %zu examples, %lld tokens, %lld learned, %lld examples cut at %lld tokens\n", o.data, d.form, d.n,
                (long long)d.tokens, (long long)d.trained_tokens, (long long)d.truncated, (long long)o.max_length);
        op_dataset_release(&d);
    }
    op_template_free(tmpl);
    op_tokenizer_free(t);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_preprocess = {
    "preprocess", "show every token of a data set with its weight", "model=MODEL data=FILE [lines=N]",
    "Prints position, token id, signed weight and text of each token, exactly as training sees them: green is learned, red is taught away from, dim\n"
    "is context. With --json one object an example.\n\n"
    "example:\n  operant preprocess model=models/SmolLM2-135M-Instruct.Q4_1.gguf data=examples/ask-why/train.jsonl lines=2",
    table, run};
