/* operant lab: experiments with arms and seeds (operant/experiment.h). */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/experiment.h>
#include <operant/file.h>

#include "cli/cli.h"

extern char **environ;

static void show_progress(void *ctx, const op_experiment_progress *p)
{
    (void)ctx;
    char eta[32];
    if (p->failure) {
        cli_progress(true, "FAILED: %s, seed %lld: %s", p->arm, (long long)p->seed, p->failure);
        return;
    }
    cli_progress(p->done + p->failed == p->total, "%zu/%zu cells, %zu running, %zu failed  ETA %s", p->done, p->total, p->running, p->failed, cli_eta(p->eta_s, eta));
}

/* Draws report.html and shows the table, or the analysis as JSON. */
static op_status show(const op_experiment *x, const op_experiment_options *o, bool json, op_error *e)
{
    enum { PAGE_MAX = 1 << 26 };
    char beside[4096];
    snprintf(beside, sizeof beside, "%s/%s/report.html", o->results, op_experiment_name(x));
    const char *path = o->report ? o->report : beside;
    json_t *analysis = NULL;
    op_buf page, table;
    op_buf_init(&page, PAGE_MAX);
    op_buf_init(&table, PAGE_MAX);
    op_status s = op_experiment_analyse(x, o->results, &analysis, e);
    if (!s)
        s = op_experiment_write_html(analysis, &page, e);
    if (!s)
        s = op_file_put(path, page.data, page.len, e);
    if (!s && (s = op_experiment_write_table(analysis, &table)))
        op_error_set(e, s, "out of memory for the table");
    if (!s && json)
        cli_print_json(analysis);
    else if (!s)
        printf("%s\nreport: %s\n", table.data, path);
    op_buf_release(&page);
    op_buf_release(&table);
    json_decref(analysis);
    return s;
}

static int run_or_report(const char *file, bool run, bool json, op_experiment_options *o)
{
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    o->program = program;
    o->version = OPERANT_VERSION;
    o->environment = environ;
    op_experiment_callbacks callbacks = {.progress = show_progress, .stop = &cli_stop};
    cli_stop_words = "\ninterrupted: the cells under way are asked to stop (again: stop at once)\n";
    op_experiment *x = NULL;
    op_error e = {0}, run_error = {0};
    op_status s = op_experiment_read(&x, file, o->small, &e);
    op_status ran = !s && run ? op_experiment_run(x, o, &callbacks, &run_error) : OP_OK;
    if (!s && (!ran || ran == OP_ERR_MISMATCH)) /* with failed cells too: the others are worth seeing */
        s = show(x, o, json, &e);
    op_experiment_free(x);
    return s ? cli_fail(&e) : ran ? cli_fail(&run_error) : 0;
}

/* ---- list ---- */

static bool is_yaml(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && !strcmp(name + n - 5, ".yaml");
}

static void list_one(const char *path, const op_experiment_options *o)
{
    op_experiment *x = NULL;
    json_t *analysis = NULL, *claim;
    op_error e = {0};
    size_t i;
    if (op_experiment_read(&x, path, false, &e) || op_experiment_analyse(x, o->results, &analysis, &e)) {
        printf("%s\n  %s\n", path, e.message);
    } else {
        printf("%s  %.0f of %zu cells\n  %s\n", path, json_number_value(json_object_get(json_object_get(analysis, "cells"), "finished")),
               op_experiment_cells(x), op_experiment_question(x));
        if (json_number_value(json_object_get(json_object_get(analysis, "cells"), "finished")) > 0)
            json_array_foreach(json_object_get(analysis, "claims"), i, claim)
                printf("  %s: %s\n", json_string_value(json_object_get(claim, "verdict")), json_string_value(json_object_get(claim, "says")));
    }
    json_decref(analysis);
    op_experiment_free(x);
}

static int list(const char *dir, const op_experiment_options *o)
{
    struct dirent **names;
    int n = scandir(dir, &names, NULL, alphasort);
    op_error e = {0};
    if (n < 0) {
        op_error_set(&e, OP_ERR_IO, "%s: cannot read this directory", dir);
        return cli_fail(&e);
    }
    for (int i = 0; i < n; i++) {
        char path[4096];
        if (is_yaml(names[i]->d_name) && snprintf(path, sizeof path, "%s/%s", dir, names[i]->d_name) < (int)sizeof path)
            list_one(path, o);
        free(names[i]);
    }
    free(names);
    return 0;
}

static int compare(const char *a, const char *b)
{
    op_buf out;
    op_error e = {0};
    op_buf_init(&out, 1 << 26);
    op_status s = op_experiment_compare(a, b, &out, &e);
    if (!s)
        printf("A: %s\nB: %s\n%s", a, b, out.data ? out.data : "");
    op_buf_release(&out);
    return s ? cli_fail(&e) : 0;
}

static int run(const cli_command *c, int argc, char **argv)
{
    op_experiment_options o = {0};
    cli_args a = cli_parse(c, &o, argc, argv);
    const char *what = a.n_words ? a.words[0] : "";
    int status;
    if ((!strcmp(what, "run") || !strcmp(what, "report")) && a.n_words == 2)
        status = run_or_report(a.words[1], !strcmp(what, "run"), a.json, &o);
    else if (!strcmp(what, "compare") && a.n_words == 3)
        status = compare(a.words[1], a.words[2]);
    else if (!strcmp(what, "list") && a.n_words <= 2)
        status = list(a.n_words == 2 ? a.words[1] : "experiments", &o);
    else
        status = cli_usage_error(c, "expected run FILE, report FILE, compare A B or list [DIRECTORY]");
    op_config_release(&o, c->table);
    return status;
}

const cli_command cli_lab = {
    "lab", "run experiments with arms and seeds, and compare", "run FILE.yaml | report FILE.yaml | compare A B | list [DIRECTORY]   [key=value ...]",
    "run      runs every cell (an arm with a seed) that is not finished, several at once, and draws the report. Stopped or killed, the same\n"
    "         command goes on. A finished cell is a small file among the results and is never run again\n"
    "report   draws report.html from the results alone\n"
    "compare  two runs (directories or results.json), or the results of two experiments, figure by figure\n"
    "list     the experiments of a directory, how far they are, and what became of their claims\n\n"
    "examples:\n"
    "  operant lab run experiments/marking.yaml\n"
    "  operant lab run experiments/marking.yaml small=true results=runs/lab-results\n"
    "  operant lab compare runs/before runs/after",
    op_experiment_table, run, NULL};
