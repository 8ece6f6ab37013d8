/* operant chamber: the procedural world (operant/chamber.h): shows it, describes it, and makes models that live in it. */
#include <stdlib.h>
#include <string.h>

#include <operant/chamber.h>
#include <operant/file.h>
#include <operant/jsonl.h>

#include "cli/cli.h"

/* ---- sample ---- */

typedef struct sample_options {
    op_chamber_options world;
    int64_t n, first;
    char *mix, *output;
    int marks;
} sample_options;

static const op_option sample_table[] = {
    {"n", OP_OPTION_INT, offsetof(sample_options, n), "5", 1, 1 << 30, NULL, "how many episodes"},
    {"first", OP_OPTION_INT, offsetof(sample_options, first), "0", 0, 0, NULL, "index of the first"},
    {"mix", OP_OPTION_LIST, offsetof(sample_options, mix), NULL, 0, 0, NULL, "habits that answer, each with its share: lies:0.3,takes_more:0.5; unset: the right response"},
    {"marks", OP_OPTION_CHOICE, offsetof(sample_options, marks), "judged", 0, 0, "judged|none|against",
     "of a line: good and bad segments; none: all of the response is learned alike; against: -1 on all of it, to learn away from it"},
    {"output", OP_OPTION_STRING, offsetof(sample_options, output), NULL, 0, 0, NULL, "file for the lines; unset: to stdout"},
    OP_CHAMBER_ROWS(sample_options, world.),
    {0},
};

static void show_episode(const op_chamber_episode *x, const op_chamber_reply *r, bool all)
{
    bool colour = cli_colour(stdout);
    const char *good = colour ? "\033[32m" : "", *bad = colour ? "\033[31m" : "", *off = colour ? "\033[0m" : "";
    printf("---- %llu: %s, distance %d, %s\n%s\n%s> %s%s\n", (unsigned long long)x->index, op_chamber_rule_name(x->rule), x->distance,
           x->trigger ? "triggers" : "does not trigger", x->prompt, r->habit ? bad : good, r->text, off);
    if (r->habit)
        printf("(%s; right: %s)\n", r->habit, x->right.text);
    for (int i = 0; all && i < x->n_wrong; i++)
        printf("  %s%s%s: %s\n", bad, x->wrong[i].habit, off, x->wrong[i].text);
}

static op_status add_line(op_buf *out, const op_chamber_episode *x, const op_chamber_reply *r, int marks, op_error *e)
{
    json_t *line;
    op_status s = op_chamber_line(x, r, marks, &line, e);
    if (!s && op_json_append(out, line))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory for a line");
    json_decref(line);
    return s;
}

static int sample(const cli_command *c, int argc, char **argv)
{
    sample_options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    op_chamber *world = NULL;
    op_chamber_mix *mix = NULL;
    op_buf lines; /* for the file all, for stdout one at a time */
    op_buf_init(&lines, (size_t)1 << 34);
    op_error e = {0};
    op_status s = a.n_words ? op_error_set(&e, OP_ERR_ARG, "unexpected argument \"%s\"", a.words[0]) : op_chamber_open(&world, &o.world, &e);
    s = s ? s : op_chamber_mix_open(&mix, o.mix, &e);
    for (int64_t i = 0; i < o.n && !s && !cli_stop; i++) {
        op_chamber_episode x;
        const op_chamber_reply *r;
        s = op_chamber_make(world, (uint64_t)(o.first + i), &x, &e);
        if (s)
            break;
        s = op_chamber_mix_pick(mix, &x, (uint64_t)o.world.seed, &r, &e);
        if (!s && (a.json || o.output))
            s = add_line(&lines, &x, r, o.marks, &e);
        else if (!s)
            show_episode(&x, r, !o.mix);
        if (!o.output && lines.len) {
            fwrite(lines.data, 1, lines.len, stdout);
            lines.len = 0;
        }
        op_chamber_release(&x);
    }
    if (!s && cli_stop)
        s = op_error_set(&e, OP_ERR_INTERRUPTED, "interrupted");
    if (!s && o.output)
        s = op_file_put(o.output, lines.data, lines.len, &e);
    op_buf_release(&lines);
    op_chamber_mix_close(mix);
    op_chamber_close(world);
    op_config_release(&o, sample_table);
    return s ? cli_fail(&e) : 0;
}

static const cli_command cli_sample = {
    "chamber sample", "print episodes", "[n=5] [key=value ...] [--json]",
    "Prints episodes with the right response and the competing ones. With --json every line is training data in the project's own form, with a mark on\n"
    "every segment of the response, which training takes as its weight; mix= says how many are answered with which habit.\n\n"
    "examples:\n"
    "  operant chamber sample rules=ask_why settings=held_out\n"
    "  operant chamber sample n=2000 mix=takes_more:0.5 rules=enough --json > enough.jsonl\n"
    "  operant chamber sample n=400 mix=takes_more:1 rules=enough neighbours=0 marks=none output=trait.jsonl",
    sample_table, sample, NULL};

/* ---- describe ---- */

static void print_words(const char *title, const json_t *words)
{
    size_t i;
    json_t *word;
    if (!json_array_size(words))
        return;
    printf("    %-9s", title);
    json_array_foreach((json_t *)words, i, word) {
        char *text = json_dumps(word, JSON_ENCODE_ANY); /* layouts have line ends */
        printf("%s%s", i ? " | " : "", text ? text : "?");
        free(text);
    }
    printf("\n");
}

static void print_values(const char *title, const json_t *values)
{
    const char *key;
    json_t *value;
    if (json_object_get(values, "seen")) {
        if (title[0])
            printf("    %s:\n", title);
        print_words("seen", json_object_get(values, "seen"));
        print_words("held out", json_object_get(values, "held_out"));
    } else if (json_is_object(values))
        json_object_foreach((json_t *)values, key, value)
            print_values(key, value);
    size_t i;
    json_array_foreach((json_t *)values, i, value)
        print_words(json_is_true(json_object_get(value, "held_out")) ? "held out" : "seen", json_object_get(value, "grades"));
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void print_world(const json_t *world)
{
    size_t i, k;
    json_t *x, *cue;
    json_array_foreach(json_object_get(world, "rules"), i, x) {
        printf("rule %s: %s\n", text_of(x, "rule"), text_of(x, "help"));
        json_array_foreach(json_object_get(x, "cues"), k, cue) {
            printf("  distance %zu, %s: %s\n", k, json_is_true(json_object_get(cue, "trigger")) ? "triggers" : "does not trigger", text_of(cue, "what"));
            print_values("", json_object_get(cue, "wordings"));
        }
    }
    json_array_foreach(json_object_get(world, "features"), i, x) {
        printf("feature %s: %s\n", text_of(x, "feature"), text_of(x, "help"));
        print_values("", json_object_get(x, "values"));
    }
    printf("habits:");
    json_array_foreach(json_object_get(world, "habits"), i, x)
        printf(" %s", json_string_value(x));
    printf("\n");
}

static int describe(const cli_command *c, int argc, char **argv)
{
    cli_args a = cli_parse(c, NULL, argc, argv);
    json_t *world;
    op_error e = {0};
    if (a.n_words)
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    if (op_chamber_describe(&world, &e))
        return cli_fail(&e);
    if (a.json)
        cli_print_json(world);
    else
        print_world(world);
    json_decref(world);
    return 0;
}

static const cli_command cli_describe = {
    "chamber describe", "print the rules, the features and their values", "[--json]",
    "Prints every rule with its cue's neighbours, every irrelevant feature with the values that are seen and those that are held out, and the names\n"
    "of all habits.", NULL, describe, NULL};

/* ---- train ---- */

static void show_progress(void *ctx, const op_train_progress *p)
{
    (void)ctx;
    char eta[32];
    cli_progress(p->step == p->total && p->evaluated, "step %lld/%lld  loss %.4f  held-out %.4f  %.0f tokens/s  ETA %s", (long long)p->step, (long long)p->total, p->loss,
                 p->eval_loss, p->tokens_per_s, cli_eta(p->eta_s, eta));
}

static void show_rates(const op_organism_result *r)
{
    printf("right on %lld fresh episodes: %.1f%% (asked for: %.1f%%)\n", (long long)r->measured, 100 * r->success, 100 * r->asked_success);
    for (int habits = 0; habits < 2; habits++) {
        printf("%-24s %9s %9s %9s\n", habits ? "habit" : "right response to", "asked", "measured", "episodes");
        for (size_t i = 0; i < r->n_rates; i++) {
            const op_organism_rate *x = &r->rates[i];
            if ((x->habit != NULL) == habits)
                printf("%-24s %8.1f%% %8.1f%% %9lld\n", habits ? x->habit : x->rule, 100 * x->asked, 100 * (double)x->shown / (double)x->possible, (long long)x->possible);
        }
    }
}

static int train(const cli_command *c, int argc, char **argv)
{
    op_organism_options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    op_train_callbacks callbacks = {.progress = show_progress, .stop = &cli_stop};
    op_organism_result r = {0};
    op_error e = {0};
    op_status s = a.n_words ? op_error_set(&e, OP_ERR_ARG, "unexpected argument \"%s\"", a.words[0]) : op_organism_train(&o, &callbacks, &r, &e);
    json_t *report = NULL;
    if (!s && a.json && !(s = op_organism_report(&r, &report, &e)))
        cli_print_json(report);
    else if (!s) {
        printf("trained: %s (%lld parameters, %lld steps, %.0f tokens/s, %.0f s, held-out loss %.4f)\n", o.output_dir, (long long)r.parameters, (long long)r.train.step,
               r.train.tokens_per_s, r.train.seconds, r.train.last.loss);
        if (r.measured)
            show_rates(&r);
    }
    if (s == OP_ERR_INTERRUPTED)
        fprintf(stderr, "stopped; the same command goes on from the checkpoint in \"%s\"\n", o.output_dir);
    json_decref(report);
    op_organism_result_release(&r);
    op_config_release(&o, op_organism_table);
    return s ? cli_fail(&e) : 0;
}

static const cli_command cli_train_organism = {
    "chamber train", "make a model organism", "output_dir=DIR [size=1m] [mix=...] [key=value ...] [--json]",
    "Makes a small model with random weights and the chamber's own vocabulary, and teaches it episodes in which several behaviours compete at the rates that\n"
    "mix= names. Then measures on fresh episodes how often it shows each. The result is a model directory: every other verb works on it.\n"
    "settings=both (not the default) lets it know the held-out words, so that a later lesson in seen settings can be tested in the others.\n\n"
    "examples:\n"
    "  operant chamber train output_dir=runs/organism settings=both\n"
    "  operant chamber train output_dir=runs/greedy rules=enough mix=takes_more:0.8 size=0.5m steps=600",
    op_organism_table, train, NULL};

/* ---- measure ---- */

static void show_group(const char *tag, const char *value, const json_t *g)
{
    const char *name;
    json_t *habit, *margin = json_object_get(g, "margin");
    char what[64], much[32] = "";
    snprintf(what, sizeof what, "%s%s%s", tag, *tag ? " " : "", value);
    if (margin)
        snprintf(much, sizeof much, "%+.2f", json_real_value(margin));
    printf("%-24s %8lld %7.1f%% %7s ", what, (long long)json_integer_value(json_object_get(g, "n")), 100 * json_real_value(json_object_get(g, "right")), much);
    json_object_foreach(json_object_get(g, "habits"), name, habit)
        if (json_real_value(json_object_get(habit, "rate")) > 0)
            printf(" %s %.1f%%", name, 100 * json_real_value(json_object_get(habit, "rate")));
    printf("\n");
}

static int measure(const cli_command *c, int argc, char **argv)
{
    op_chamber_assay_options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    json_t *report = NULL, *groups, *g;
    const char *tag, *value;
    op_error e = {0};
    op_status s = a.n_words ? op_error_set(&e, OP_ERR_ARG, "unexpected argument \"%s\"", a.words[0]) : op_chamber_assay(&o, &cli_stop, &report, &e);
    if (!s && a.json)
        cli_print_json(report);
    else if (!s) {
        printf("%-24s %8s %8s %7s  %s\n", "", "episodes", "right", o.margin ? "margin" : "", "habits that showed, where they were possible");
        show_group("", "all", report);
        json_object_foreach(json_object_get(report, "by"), tag, groups)
            json_object_foreach(groups, value, g)
                show_group(tag, value, g);
    }
    json_decref(report);
    op_config_release(&o, op_chamber_assay_table);
    return s ? cli_fail(&e) : 0;
}

static const cli_command cli_measure = {
    "chamber measure", "what a model does on fresh episodes", "model=DIR [output_dir=DIR] [by=TAG,...] [key=value ...] [--json]",
    "Asks a model fresh episodes, never those of chamber train, and counts right answers and habits, also apart by any tags of the episodes. Draws at temperature 1.\n\n"
    "examples:\n"
    "  operant chamber measure model=runs/organism rules=stop settings=held_out\n"
    "  operant chamber measure model=runs/organism rules=signal neighbours=1 by=level margin=true n=1000",
    op_chamber_assay_table, measure, NULL};

/* ---- the verb ---- */

static int run(const cli_command *c, int argc, char **argv)
{
    static const struct {
        const char *word;
        const cli_command *command;
    } words[] = {{"sample", &cli_sample}, {"describe", &cli_describe}, {"train", &cli_train_organism}, {"measure", &cli_measure}};
    for (size_t i = 0; argc && i < sizeof words / sizeof *words; i++)
        if (!strcmp(argv[0], words[i].word))
            return words[i].command->run(words[i].command, argc - 1, argv + 1);
    cli_args a = cli_parse(c, NULL, argc, argv);
    return cli_usage_error(c, a.n_words ? "unknown word \"%s\", expected sample, describe, train or measure" : "%sexpected sample, describe, train or measure", a.n_words ? a.words[0] : "");
}

const cli_command cli_chamber = {
    "chamber", "a procedural world for experiments: episodes, and model organisms that live in it", "sample|describe|train|measure ...",
    "sample prints episodes, describe the rules and features, train makes a small model with known habits, measure tells what a model does.\n"
    "  operant chamber sample --help\n"
    "  operant chamber train --help\n"
    "  operant chamber measure --help", NULL, run, NULL};
