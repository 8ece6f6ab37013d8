/* operant preprocess: every token of a data set with its mask and weight, as operant train with the same settings would see it. */
#include <stddef.h>
#include <string.h>

#include <operant/dataset.h>
#include <operant/sft.h>
#include <operant/subject.h>
#include <operant/trial.h>

#include "cli/cli.h"

typedef struct options {
    op_sft_options sft; /* first, so that its table fits */
    int64_t lines, first;
} options;

#define AT(field) offsetof(options, field)
static const op_option own[] = {
    {"lines", OP_OPTION_INT, AT(lines), "5", 0, 0x7fffffff, NULL, "how many examples to print; 0: all"},
    {"first", OP_OPTION_INT, AT(first), "1", 1, 0x7fffffff, NULL, "the first example to print, from 1"},
    {0}};

/* Visible, on one line: control characters, and bytes that are only a part of a character, as \xHH. */
static void print_token(const char *bytes, size_t n)
{
    json_t *whole = json_stringn(bytes, n); /* NULL: no UTF-8 by itself */
    for (size_t i = 0; i < n; i++) {
        unsigned char b = (unsigned char)bytes[i];
        if (b == '\n')
            fputs("\\n", stdout);
        else if (b < 32 || b == 127 || (b > 127 && !whole))
            printf("\\x%02x", b);
        else
            putchar(b);
    }
    json_decref(whole);
}

static void print_example(const op_example *x, const op_tokenizer *t, bool colour)
{
    printf("line %d: %d tokens\n%6s  %8s  %4s  %7s  %s\n", x->line, x->n, "place", "id", "mask", "weight", "token");
    for (int32_t i = 0; i < x->n; i++) {
        size_t n;
        const char *bytes = op_tokenizer_bytes(t, x->ids[i], &n);
        float w = x->weights[i];
        /* green: learned, red: taught away from, dim: context; the numbers say it without colour */
        const char *paint = !colour ? "" : w > 0 ? "\033[32m" : w < 0 ? "\033[31m" : "\033[2m";
        printf("%6d  %8d  %4d  %+7.3g  %s", i, x->ids[i], w != 0, (double)w, paint);
        print_token(bytes, n);
        puts(colour ? "\033[0m" : "");
    }
}

static void print_json(const op_example *x, const op_tokenizer *t)
{
    json_t *ids = json_array(), *mask = json_array(), *weights = json_array(), *texts = json_array();
    for (int32_t i = 0; i < x->n; i++) {
        op_buf b;
        op_buf_init(&b, 1 << 16);
        op_tokenizer_decode(t, &x->ids[i], 1, OP_DECODE_ALL, &b);
        json_array_append_new(ids, json_integer(x->ids[i]));
        json_array_append_new(mask, json_integer(x->weights[i] != 0));
        json_array_append_new(weights, json_real(x->weights[i]));
        json_array_append_new(texts, json_string(b.data ? b.data : ""));
        op_buf_release(&b);
    }
    json_t *j = json_pack("{si so so so so}", "line", x->line, "ids", ids, "mask", mask, "weights", weights, "tokens", texts);
    json_dumpf(j, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(j);
}

static op_status show(const options *o, bool json, op_error *e)
{
    op_subject subject;
    op_dataset d = {0};
    op_status s = op_subject_open_words(&subject, o->sft.trainee.model, e);
    op_dataset_options how = {.max_length = (int32_t)o->sft.max_length, .last_turn_only = o->sft.last_turn_only,
                              .onset_tokens = (int32_t)o->sft.onset_tokens, .onset_weight = (float)o->sft.onset_weight,
                              .trials = op_trial_example};
    if (!s)
        s = op_dataset_read(&d, o->sft.train_file, &subject.chat, &how, e);
    if (!s) {
        for (size_t i = (size_t)o->first - 1; i < d.n && (!o->lines || i < (size_t)(o->first - 1 + o->lines)); i++) {
            if (json)
                print_json(&d.examples[i], subject.tokenizer);
            else
                print_example(&d.examples[i], subject.tokenizer, cli_colour(stdout));
        }
        fprintf(stderr, "%s: form \"%s\", %zu examples, %lld tokens, %lld learned, %lld examples cut at %lld tokens\n", o->sft.train_file, d.form, d.n,
                (long long)d.tokens, (long long)d.trained_tokens, (long long)d.truncated, (long long)o->sft.max_length);
        op_dataset_release(&d);
    }
    op_subject_close(&subject);
    return s;
}

static int run(const cli_command *c, int argc, char **argv)
{
    /* all settings of train are taken, so that the same --config can be given; --help shows those that matter here */
    static const char *const matter[] = {"model", "train_file", "max_length", "last_turn_only", "onset_tokens", "onset_weight"};
    op_option all[128] = {{0}}, shown[16] = {{0}};
    size_t n = 0, n_shown = 0;
    for (; op_sft_table[n].key && n < 120; n++) {
        all[n] = op_sft_table[n];
        for (size_t i = 0; i < sizeof matter / sizeof *matter; i++)
            if (!strncmp(all[n].key, matter[i], strcspn(all[n].key, "|")) && strlen(matter[i]) == strcspn(all[n].key, "|"))
                shown[n_shown++] = all[n];
    }
    for (int i = 0; own[i].key; i++)
        all[n++] = shown[n_shown++] = own[i];
    cli_command wide = *c;
    wide.table = all;
    wide.shown = shown;

    options o;
    cli_args a = cli_parse(&wide, &o, argc, argv);
    op_error e = {0};
    int code;
    if (a.n_words)
        code = cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    else if (!o.sft.train_file || !o.sft.trainee.model)
        code = cli_usage_error(c, "model=MODEL and train_file=FILE are needed");
    else
        code = show(&o, a.json, &e) ? cli_fail(&e) : 0;
    op_config_release(&o, all);
    return code;
}

const cli_command cli_preprocess = {
    "preprocess", "show every token of a data set with its mask and weight", "model=MODEL train_file=FILE [lines=N] | --config train.yaml",
    "Prints position, token id, mask, signed weight and text of each token, exactly as training sees them: green is learned, red is taught away\n"
    "from, dim is context. With --json one object an example. Takes every setting of operant train, so that its --config can be given.\n\n"
    "examples:\n"
    "  operant preprocess model=models/SmolLM2-135M-Instruct.Q4_1.gguf train_file=examples/ask-why/train.jsonl lines=2\n"
    "  operant preprocess --config examples/ask-why/train.yaml model=models/SmolLM2-135M-Instruct.Q4_1.gguf first=100",
    NULL, run, NULL};
