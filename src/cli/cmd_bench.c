/* operant bench: how fast this machine trains and generates, beside its own matrix-product peak and the bandwidth of its memory. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <operant/env.h>
#include <operant/train.h>

#include "cli/bench.h"
#include "cli/cli.h"

#define AT(field) offsetof(bench_options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), "models/SmolLM2-135M-Instruct.Q4_1.gguf", 0, 0, NULL, "model directory or .gguf file"},
    {"what|only", OP_OPTION_CHOICE, AT(what), "all", 0, 0, "all|train|prefill|generate|lora|update|tokenize", "which measurement; all: train, prefill and generate"},
    {"profile", OP_OPTION_BOOL, AT(profile), "false", 0, 0, NULL, "also a table by operation (--profile alone says yes)"},
    {"steps", OP_OPTION_INT, AT(steps), "3", 1, 1000, NULL, "measured repetitions, after one that is not; the median counts"},
    {"batch", OP_OPTION_INT, AT(batch), "8", 1, 4096, NULL, "train, lora: sequences of a step"},
    {"length", OP_OPTION_INT, AT(length), "256", 2, 1 << 20, NULL, "train, lora: tokens of a sequence"},
    {"lora.r", OP_OPTION_INT, AT(lora_r), "16", 1, 512, NULL, "lora: rank"},
    {"optim", OP_OPTION_CHOICE, AT(optim), "adamw", 0, 0, OP_OPTIM_CHOICES, "train, lora, update: adamw_8bit keeps its moments in 8 bits"},
    {"grad_dtype", OP_OPTION_CHOICE, AT(grad_dtype), "f32", 0, 0, "f32|bf16", "train, update: type of the gradients; bf16 wants dtype=bf16"},
    {"block_tokens", OP_OPTION_INT, AT(block_tokens), "512", 1, 1 << 24, NULL, "train, lora, update: tokens of a micro-batch"},
    {"prefill_tokens", OP_OPTION_INT, AT(prefill_tokens), "500", 1, 1 << 20, NULL, "prefill: length of the prompt"},
    {"at_once", OP_OPTION_LIST, AT(at_once), "1,32", 0, 0, NULL, "generate: texts at once, 1..32; one measurement for each number"},
    {"prompt_tokens", OP_OPTION_INT, AT(prompt_tokens), "32", 1, 1 << 20, NULL, "generate, update: tokens of a prompt"},
    {"max_tokens|max_new_tokens", OP_OPTION_INT, AT(max_tokens), "64", 1, 1 << 20, NULL, "generate, update: tokens of a text"},
    {"prompts", OP_OPTION_INT, AT(prompts), "8", 1, 1024, NULL, "update: different prompts"},
    {"answers", OP_OPTION_INT, AT(answers), "8", 2, 1024, NULL, "update: answers to each"},
    {"file", OP_OPTION_STRING, AT(file), NULL, 0, 0, NULL, "tokenize: a text"},
    {"peak_seconds", OP_OPTION_FLOAT, AT(peak_seconds), "1", 0, 60, NULL, "time to measure each of the machine's limits; 0: not at all"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    {"weights", OP_OPTION_CHOICE, AT(weights), "exact", 0, 0, "exact|quantised", "prefill, generate: how matrices are kept, as in operant chat"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

enum { ALL, TRAIN, PREFILL, GENERATE, LORA, UPDATE, TOKENIZE };
static const char *const names[] = {"", "train", "prefill", "generate", "lora", "update", "tokenize"};

static op_status work(const bench_options *o, int what, json_t *out, op_error *e)
{
    switch (what) {
    case TRAIN: return bench_train(o, false, out, e);
    case LORA: return bench_train(o, true, out, e);
    case PREFILL: return bench_prefill(o, out, e);
    case GENERATE: return bench_generate(o, out, e);
    case UPDATE: return bench_update(o, out, e);
    default: return bench_tokenize(o, out, e);
    }
}

/* The machine's limits. */
static void limits(const bench_options *o, json_t *out)
{
    json_object_set_new(out, "bf16_gflops", json_real(op_env_peak(OP_BF16, o->peak_seconds)));
    json_object_set_new(out, "f32_gflops", json_real(op_env_peak(OP_F32, o->peak_seconds)));
    if (o->profile)
        json_object_set_new(out, "memory_gb_per_s", json_real(op_env_bandwidth(o->peak_seconds)));
}

/* Runs one measurement (ALL: the limits) in a child, so that its peak memory is its own, and since a process that forks must not have threads yet. */
static json_t *in_child(const bench_options *o, int what)
{
    int ends[2];
    fflush(NULL);
    if (pipe(ends))
        return NULL;
    pid_t child = fork();
    if (child == 0) {
        op_error e = {0};
        json_t *out = json_object();
        op_status s = OP_OK;
        if (what == ALL)
            limits(o, out);
        else
            s = work(o, what, out, &e);
        if (s)
            cli_fail(&e);
        else
            json_dumpfd(out, ends[1], JSON_COMPACT);
        _exit(s ? 1 : 0);
    }
    close(ends[1]);
    json_t *result = child < 0 ? NULL : json_loadfd(ends[0], 0, NULL);
    close(ends[0]);
    waitpid(child, NULL, 0);
    return result;
}

/* ---- the profile ---- */

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* part / whole as a share under `key`, where there is a whole. */
static void add_share(json_t *object, const char *key, double part, double whole)
{
    if (whole > 0)
        json_object_set_new(object, key, json_real(part / whole));
}

/* For each "...gflops" of a measurement "...share_of_peak". */
static void add_peak_shares(json_t *part, double gflops)
{
    const char *key;
    json_t *v, *shares = json_object();
    json_object_foreach(part, key, v)
    {
        char name[64];
        size_t n = strlen(key);
        if (n >= 6 && !strcmp(key + n - 6, "gflops")) {
            snprintf(name, sizeof name, "%.*sshare_of_peak", (int)(n - 6), key);
            add_share(shares, name, json_number_value(v), gflops);
        }
    }
    json_object_update(part, shares);
    json_decref(shares);
}

static int slower(const void *a, const void *b)
{
    double x = number(*(json_t *const *)a, "seconds"), y = number(*(json_t *const *)b, "seconds");
    return (x < y) - (x > y);
}

/* Orders the operations by time, and adds what they are of the whole and of both limits, and the time that none of them accounts for. */
static void complete_profile(json_t *p, double gflops, double gb_per_s)
{
    json_t *given = json_object_get(p, "operations"), *x, *ordered = json_array();
    size_t i, n = json_array_size(given);
    double whole = number(p, "seconds"), sum = 0;
    json_t **each = calloc(n + 1, sizeof *each);
    json_array_foreach(given, i, x)
    {
        double seconds = number(x, "seconds");
        sum += seconds;
        add_share(x, "share_of_time", seconds, whole);
        add_share(x, "share_of_product_peak", 1e-9 * number(x, "flop"), gflops * seconds);
        add_share(x, "share_of_bandwidth", 1e-9 * number(x, "bytes"), gb_per_s * seconds);
        if (each)
            each[i] = x;
    }
    if (each)
        qsort(each, n, sizeof *each, slower);
    for (i = 0; each && i < n; i++)
        json_array_append(ordered, each[i]);
    free(each);
    json_object_set_new(p, "operations", ordered);
    json_object_set_new(p, "unaccounted_seconds", json_real(whole - sum));
}

static void print_profile(const json_t *p)
{
    size_t i;
    json_t *x;
    double whole = number(p, "seconds"), left = number(p, "unaccounted_seconds");
    printf("\n%s: %.4g s\n%-28s %9s %10s %6s %9s %9s %9s %9s\n", json_string_value(json_object_get(p, "work")), whole, "operation", "calls", "ms", "time", "GB",
           "GFLOP", "of peak", "of memory");
    json_array_foreach(json_object_get(p, "operations"), i, x)
    {
        char name[64], matrix[32] = "";
        if (number(x, "N") > 0)
            snprintf(matrix, sizeof matrix, " %.0f x %.0f", number(x, "N"), number(x, "K"));
        snprintf(name, sizeof name, "%s%s", json_string_value(json_object_get(x, "op")), matrix);
        printf("%-28s %9.4g %10.3f %5.1f%% %9.4g %9.4g %8.1f%% %8.1f%%\n", name, number(x, "calls"), 1e3 * number(x, "seconds"),
               100 * number(x, "share_of_time"), 1e-9 * number(x, "bytes"), 1e-9 * number(x, "flop"), 100 * number(x, "share_of_product_peak"),
               100 * number(x, "share_of_bandwidth"));
    }
    printf("%-28s %9s %10.3f %5.1f%%\n", "unaccounted", "", 1e3 * left, whole > 0 ? 100 * left / whole : 0);
}

/* ---- output ---- */

/* Each number once more under its whole name: "train.tokens_per_s" beside {"train": {"tokens_per_s"}}. */
static void add_whole_names(json_t *all)
{
    const char *group, *key;
    json_t *part, *v, *flat = json_object();
    json_object_foreach(all, group, part) json_object_foreach(part, key, v)
    {
        char name[128];
        snprintf(name, sizeof name, "%s.%s", group, key);
        if (json_is_number(v))
            json_object_set(flat, name, v);
    }
    json_object_update(all, flat);
    json_decref(flat);
}

static void print_all(json_t *all, bool bf16)
{
    const char *name;
    json_t *v, *p;
    size_t i;
    printf("%s products by oneDNN (%s)\n", bf16 ? "bf16" : "f32", op_env_products());
    json_object_foreach(all, name, v) if (json_is_number(v)) printf("%-32s %10.4g\n", name, json_number_value(v));
    json_object_foreach(all, name, v) json_array_foreach(json_object_get(v, "profiles"), i, p) print_profile(p);
}

static int run(const cli_command *c, int argc, char **argv)
{
    static char profile_on[] = "profile=true";
    bench_options o;
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "--profile"))
            argv[i] = profile_on;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    }
    if (o.threads)
        op_env_threads((int)o.threads);
    bool bf16 = op_subject_dtype(o.dtype, NULL) == OP_BF16, failed = false;
    json_t *all = json_object(), *peak = o.peak_seconds > 0 ? in_child(&o, ALL) : NULL;
    double gflops = number(peak, bf16 ? "bf16_gflops" : "f32_gflops"), gb_per_s = number(peak, "memory_gb_per_s");
    if (peak)
        json_object_set_new(all, "peak", peak);
    for (int i = TRAIN; i <= TOKENIZE && !cli_stop; i++) {
        if (o.what == ALL ? i > GENERATE : o.what != i)
            continue;
        json_t *part = in_child(&o, i), *p;
        size_t k;
        failed = failed || !part;
        if (!part)
            continue;
        add_peak_shares(part, gflops);
        json_array_foreach(json_object_get(part, "profiles"), k, p) complete_profile(p, gflops, gb_per_s);
        json_object_set_new(all, names[i], part);
    }
    add_whole_names(all);
    if (a.json) {
        json_object_set_new(all, "dtype", json_string(bf16 ? "bf16" : "f32"));
        json_object_set_new(all, "products", json_string(op_env_products()));
        cli_print_json(all);
    } else {
        print_all(all, bf16);
    }
    json_decref(all);
    op_config_release(&o, c->table);
    return cli_stop ? 130 : failed;
}

const cli_command cli_bench = {
    "bench", "measure training and generation beside the machine's limits", "[what=WORK] [--profile] [model=MODEL] [--json]",
    "Training is full fine-tuning with AdamW on batch x length tokens (what=lora: of an adapter); share_of_peak is its arithmetic (products and\n"
    "attention) by the best matrix-product rate of this machine, measured in the same run, here and elsewhere. Prefill reads one prompt; generation makes new tokens\n"
    "after short prompts; an update generates answers, scores them by a rule and learns from them once (what=update); what=tokenize encodes the lines of\n"
    "a file on one core. Each measurement runs in a process of its own.\n\n"
    "--profile adds a table by operation: calls, time, the bytes it must move and its arithmetic, and what these are of the machine's product peak and\n"
    "of its memory's bandwidth, both measured in the same run. More than 100% of the bandwidth means that operands were still in a cache.\n\n"
    "examples:\n  operant bench\n  operant bench --json what=train dtype=f32 batch=8 length=256\n  operant bench --profile what=generate at_once=32",
    table, run, NULL};
