/* operant assay: measures what a model was taught (operant/assay.h). */
#include <operant/assay.h>

#include "cli/cli.h"

static void show_progress(void *ctx, const op_assay_progress *p)
{
    (void)ctx;
    char eta[32];
    cli_progress(p->done == p->total, "%s %lld/%lld  %.0f tokens/s  ETA %s", p->what, (long long)p->done, (long long)p->total, p->tokens_per_s,
                 cli_eta(p->eta_s, eta));
}

static int run(const cli_command *c, int argc, char **argv)
{
    op_assay_options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    }
    op_assay_callbacks callbacks = {.progress = show_progress, .stop = &cli_stop};
    op_assay_results r = {0};
    op_error e = {0};
    op_status s = op_assay_run(&o, &callbacks, &r, &e);
    op_buf text;
    op_buf_init(&text, 1 << 24);
    if (!s && a.json)
        cli_print_json(r.after);
    else if (!s && !(s = op_assay_write_table(&r, &text)) && !(s = op_buf_puts(&text, "\n")) && !(s = op_assay_write_transcript(&r, &text)))
        printf("%s\nreport: %s/report.html\n", text.data, o.output_dir);
    op_buf_release(&text);
    op_assay_results_release(&r);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_assay = {
    "assay", "measure what a model was taught", "--config FILE.yaml [key=value ...]",
    "Lets the model answer prompts of known classes, judges each reply by written rules and by log-probabilities, and reports rates with\n"
    "95% intervals, hostility and perplexity: results.json and report.html in output_dir. With reference=BEFORE/results.json it\n"
    "compares with an earlier measurement.\n\n"
    "examples:\n"
    "  operant assay --config examples/ask-why/assay.yaml model=models/SmolLM2-135M-Instruct.Q4_1.gguf output_dir=runs/before\n"
    "  operant assay --config examples/ask-why/assay.yaml model=runs/ask-why output_dir=runs/after reference=runs/before/results.json limit=20",
    op_assay_table, run, NULL};
