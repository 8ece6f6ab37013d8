/* operant merge: several models into one. */
#include <stddef.h>

#include <operant/merge.h>

#include "cli/cli.h"

typedef struct options {
    int64_t seed;
} options;

static const op_option table[] = {
    {"seed|random_seed", OP_OPTION_INT, offsetof(options, seed), "0", 0, 0, NULL, "of methods that draw at random (dare_*, della*): the same seed gives the same bits"},
    {0}};

static bool watch(void *ctx, size_t done, size_t total)
{
    double *start = ctx, now = cli_now();
    char eta[32];
    if (done && done < total)
        cli_progress(false, "merge: tensor %zu of %zu, %s left", done, total, cli_eta((now - *start) / (double)done * (double)(total - done), eta));
    else if (done)
        cli_progress(true, "merge: %zu tensors in %.1f s", total, now - *start);
    return !cli_stop;
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    op_error e = {0};
    op_merge_report report;
    double start = cli_now();
    if (a.n_words != 2)
        return cli_usage_error(c, a.n_words < 2 ? "a YAML file and the directory to write are needed" : "unexpected argument \"%s\"", a.words[2]);
    if (op_merge(a.words[0], a.words[1], &(op_merge_options){.seed = (uint64_t)o.seed, .watch = watch, .ctx = &start}, &report, &e))
        return cli_fail(&e);
    if (a.json) {
        json_t *j = json_pack("{ss ss sI sI si}", "output", a.words[1], "method", report.method, "tensors", (json_int_t)report.tensors, "elements",
                              (json_int_t)report.elements, "layers", report.layers);
        cli_print_json(j);
        json_decref(j);
    } else {
        printf("wrote %s: %s, %zu tensors, %.1f million elements\n", a.words[1], report.method, report.tensors, (double)report.elements / 1e6);
    }
    return 0;
}

const cli_command cli_merge = {
    "merge", "several models into one, as mergekit's YAML says", "FILE.yaml OUTPUT [seed=N]",
    "FILE.yaml is mergekit's, unchanged: linear, slerp, nuslerp, multislerp, karcher, task_arithmetic, ties, dare_linear, dare_ties, della,\n"
    "della_linear, breadcrumbs, breadcrumbs_ties, sce, model_stock, nearswap, arcee_fusion, ram, ramplus_tl and passthrough, with slices, gradients\n"
    "and filters, tokenizer_source, dtype and out_dtype. Models are directories, .gguf files or MODEL+ADAPTER. OUTPUT is a new model directory;\n"
    "on failure nothing is left of it. docs/merge.md has the methods and their formulas.\n\n"
    "examples:\n"
    "  operant merge ties.yaml merged\n"
    "  operant merge dare.yaml merged seed=7 --json",
    table, run, NULL};
