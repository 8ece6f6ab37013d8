/* operant train: supervised fine-tuning with signed token weights (operant/sft.h). */
#include <math.h>

#include <operant/report.h>
#include <operant/sft.h>

#include "cli/cli.h"
#include "cli/protocol.h"

/* JSON has no NaN: null says that there was nothing to measure. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static void show_plan(void *ctx, const op_sft_plan *p)
{
    (void)ctx;
    char ranks[32] = "";
    if (cli_ranks() > 1)
        snprintf(ranks, sizeof ranks, " of each of %d ranks", cli_ranks());
    fprintf(stderr, "%lld of %lld parameters, %lld examples (%lld held out), %lld tokens of which %lld are learned%s, %lld steps, %s on %d threads%s\n",
            (long long)p->trained_parameters, (long long)p->parameters, (long long)p->examples, (long long)p->held_out, (long long)p->tokens,
            (long long)p->trained_tokens, p->truncated ? " (some examples were cut at max_length)" : "", (long long)p->steps, p->dtype, p->threads, ranks);
}

static void show_progress(void *ctx, const op_train_progress *p)
{
    (void)ctx;
    char eta[32], held_out[32] = "";
    if (!isnan(p->eval_loss))
        snprintf(held_out, sizeof held_out, ", held-out %.4f", p->eval_loss);
    bool last = p->step == p->total && (p->evaluated || isnan(p->eval_loss)); /* with nothing held out no evaluation follows */
    cli_progress(last, "step %lld/%lld  loss %.4f%s  %.0f tokens/s  ETA %s", (long long)p->step,
                 (long long)p->total, p->loss, held_out, p->tokens_per_s, cli_eta(p->eta_s, eta));
}

static op_status report(const op_sft_options *o, op_status status, op_error *e)
{
    if (!status)
        return op_train_report_write(o->trainee.output_dir, e);
    if (status == OP_ERR_INTERRUPTED) {
        op_train_report_write(o->trainee.output_dir, NULL); /* of what there is; that it was stopped is the news */
        fprintf(stderr, "stopped; the same command goes on from the checkpoint in \"%s\"\n", o->trainee.output_dir);
    }
    return status;
}

static void print_result(const op_sft_options *o, const op_train_result *r, bool json)
{
    if (json) {
        json_t *j = json_pack("{ss sI so so so so so}", "output_dir", o->trainee.output_dir, "steps", (json_int_t)r->step, "loss", number(r->loss), "eval_loss_before",
                              number(r->first.loss), "eval_loss", number(r->last.loss), "tokens_per_s", number(r->tokens_per_s), "peak_rss_mb",
                              number(r->peak_rss_mb));
        cli_print_json(j);
        json_decref(j);
        return;
    }
    printf("trained: %s (%lld steps, %.0f tokens/s, peak memory %.0f MB)\n", o->trainee.output_dir, (long long)r->step, r->tokens_per_s, r->peak_rss_mb);
    if (isfinite(r->last.loss))
        printf("held-out loss: %.4f before, %.4f after\n", r->first.loss, r->last.loss);
    printf("report: %s/report.html\n", o->trainee.output_dir);
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *protocol = cli_protocol_file(argc, argv);
    cli_ranks_hush(true);
    if (protocol && cli_ranks() > 1)
        return cli_usage_error(c, "a protocol runs in one process, found %d: only training from data runs in several", cli_ranks());
    if (protocol)
        return cli_protocol_run(c, protocol, argc, argv);
    op_sft_options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    }
    cli_ranks_hush(false);
    op_sft_callbacks callbacks = {.stop = &cli_stop};
    op_train_result r = {0};
    op_error e = {0};
    op_status status = cli_ranks_join(&callbacks.parallel, &e);
    bool speaks = op_parallel_rank(callbacks.parallel) == 0;
    if (speaks) {
        callbacks.plan = show_plan;
        callbacks.progress = show_progress;
    }
    if (!status)
        status = op_sft_run(&o, &callbacks, &r, &e);
    if (speaks)
        status = report(&o, status, &e);
    if (speaks && !status)
        print_result(&o, &r, a.json);
    op_config_release(&o, c->table);
    return cli_ranks_leave(callbacks.parallel, status, &e);
}

const cli_command cli_train = {
    "train", "teach a model from data", "--config FILE.yaml [key=value ...]",
    "Fine-tunes a model (method=full) or an adapter beside it (method=lora) on dialogues, completions or plain text; every token may carry\n"
    "a signed weight. The result lies directly in output_dir and loads in transformers (or PEFT). Ctrl-C leaves a run that the same\n"
    "command resumes; so does a crash, if save_steps is set.\n\n"
    "A YAML file with stages is a protocol: the model answers, a teacher marks and rewards, and methods such as marking, redo or\n"
    "alternatives turn its trials into lessons (docs/methods.md, docs/teachers.md); its settings are overridden in the same way.\n\n"
    "examples:\n"
    "  operant train --config examples/ask-why/train.yaml model=models/SmolLM2-135M-Instruct.Q4_1.gguf lr=2e-4\n"
    "  operant train model=runs/ask-why train_file=mine.jsonl output_dir=runs/mine method=lora lora.r=16 epochs=2\n"
    "  mpirun -n 4 --bind-to none operant train model=runs/ask-why train_file=mine.jsonl output_dir=runs/mine",
    op_sft_table, run, NULL};
