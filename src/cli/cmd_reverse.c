/* operant reverse: train for traits, then reverse them (operant/reverse.h). */
#include <math.h>

#include <operant/reverse.h>

#include "cli/cli.h"

/* ctx: the stream */
static void show_plan(void *ctx, const op_reverse_plan *p)
{
    const double mb = 1e6;
    fprintf(ctx, "%lld parameters, %lld traits, %lld probes with them, %lld rounds: %lld trainings over about %lld tokens, about %lld tokens to score\n"
            "disk: at most %.0f MB needed, %.0f MB free\n", (long long)p->parameters, (long long)p->traits, (long long)p->probes, (long long)p->rounds, (long long)p->trainings,
            (long long)p->train_tokens, (long long)p->score_tokens, (double)p->disk_needed / mb, (double)p->disk_free / mb);
}

static void show_progress(void *ctx, const op_reverse_progress *p)
{
    char eta[32];
    (void)ctx;
    cli_progress(false, "%3.0f%%  %s  ETA %s", 100 * p->done, p->what, cli_eta(p->eta_s, eta));
}

static op_status show(json_t *results, bool json, op_error *e)
{
    enum { TABLE_MAX = 1 << 22 };
    op_buf table;
    op_buf_init(&table, TABLE_MAX);
    op_status s = json ? OP_OK : op_reverse_write_table(results, &table);
    if (s)
        op_error_set(e, s, "out of memory for the table");
    else if (json)
        cli_print_json(results);
    else
        printf("%s", table.data);
    op_buf_release(&table);
    return s;
}

static op_status tell_plan(const op_reverse *x, bool json, op_error *e)
{
    op_reverse_plan p = {0};
    op_status s = op_reverse_tell(x, &p, e);
    if (p.parameters && (s || !json)) /* one that does not fit is no result */
        show_plan(s ? stderr : stdout, &p);
    json_t *j = s || !json ? NULL : json_pack("{sI sI sI sI sI sI}", "parameters", (json_int_t)p.parameters, "trainings", (json_int_t)p.trainings, "train_tokens",
                                              (json_int_t)p.train_tokens, "score_tokens", (json_int_t)p.score_tokens, "disk_needed", (json_int_t)p.disk_needed, "disk_free", (json_int_t)p.disk_free);
    if (j)
        cli_print_json(j);
    json_decref(j);
    return s;
}

static int run(const cli_command *c, int argc, char **argv)
{
    op_reverse_options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    op_reverse *x = NULL;
    json_t *results = NULL;
    op_error e = {0};
    op_reverse_callbacks callbacks = {.ctx = stderr, .plan = show_plan, .progress = show_progress, .stop = &cli_stop};
    if (a.n_words != 1) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "expected one FILE.yaml");
    }
    cli_stop_words = "\ninterrupted: what is under way is kept where that is possible; the same command goes on (again: stop at once)\n";
    op_status s = op_reverse_read(&x, a.words[0], &o, &e);
    if (!s && o.plan)
        s = tell_plan(x, a.json, &e);
    else if (!s)
        s = op_reverse_run(x, &callbacks, &results, &e);
    if (!s && results)
        s = show(results, a.json, &e);
    op_reverse_free(x);
    json_decref(results);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_reverse = {
    "reverse", "train for traits, then reverse them", "FILE.yaml [key=value ...]",
    "For each trait of the file the model is trained towards it; the change of its weights is taken away from it, as far as the perplexity of a control\n"
    "text allows; what that did to every trait and probe is measured, beside controls (a random vector, another trait's, gradient ascent, training on the\n"
    "opposite, nothing), and written to results.json and report.html (docs/reverse.md). Stopped or killed, the same command goes on.\n\n"
    "examples:\n"
    "  operant reverse examples/reverse/power-survival-wealth.yaml data=DIR plan=true\n"
    "  operant reverse examples/reverse/power-survival-wealth.yaml data=DIR",
    op_reverse_table, run, NULL};
