/* operant/experiment.h: experiments with arms and seeds: `operant lab`.
 *
 * An experiment is one YAML file (docs/experiments.md has every key):
 *
 *   name: marking                       results lie in RESULTS/marking
 *   question: do marks on the wrong step teach faster than a reward at the end?
 *   subject: an organism of 2 million parameters
 *   seeds: 10                           1 .. 10, or a list
 *   vars: {steps: 600}                  ${steps} in commands
 *   set: {lesson.clip_low: 0.2}         settings of every arm; ${set} becomes key=value words
 *   prepare: [operant chamber train seed=${seed} output_dir=${prepared}]          done once for all arms that ask for the same
 *   templates: {protocol.yaml: experiments/marking/protocol.yaml}                 its text, variables filled in, becomes ${cell}/protocol.yaml
 *   run: [operant train ${cell}/protocol.yaml model=${prepared} ${set} seed=${seed} threads=${threads} output_dir=${cell}/run]
 *   arms: [{name: scalar, says: one reward at the end, vars: {marks: none}, set: {...}}, {name: marks, ...}]
 *   measures: [{name: trials, path: trials_to_criterion, says: trials to criterion, better: lower, missing: 5000}]
 *   claims: [{says: marks need fewer trials than a scalar, measure: trials, arm: marks, against: scalar, direction: less}]
 *   compute: {tokens: total.tokens}     what must be equal across the arms
 *   curves: [{name: learning, path: curve, x: trials, y: right}]
 *   small: {seeds: 2, vars: {steps: 4}} what another size of it changes, to test the machinery
 *
 * A cell is an arm with a seed: its commands one after the other, each a process of this program. It leaves results.json in the output_dir of its
 * last command (${cell} when that has none); metrics.jsonl and the output=*.jsonl of its commands are read too. A finished cell is one file,
 * RESULTS/NAME/ARM-SEED.json, with its key: the SHA-256 of its commands, of the bytes of the files that these name, and of the version. A cell whose
 * file has the right key is never run again. Reports are drawn from these files alone.
 *
 * Claims are registered (RESULTS/NAME/registered.json) before the first cell runs; what is claimed later counts as exploratory.
 *
 * The work directory WORK/NAME/ARM-SEED-KEY of an unfinished cell stays: a command that is through is not repeated, and the one that was stopped or
 * killed is called again with the same words, so that a verb with checkpoints goes on from its newest. */
#ifndef OPERANT_EXPERIMENT_H
#define OPERANT_EXPERIMENT_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/buf.h>
#include <operant/config.h>
#include <operant/status.h>

enum { OP_CLAIMS_MAX = 8, OP_ARMS_MAX = 32, OP_SEEDS_MAX = 100 };

typedef struct op_experiment op_experiment;

/* Reads and checks the file; errors name the line. `small`: the smallest version, whose name ends in "-small". */
op_status op_experiment_read(op_experiment **out, const char *path, bool small, op_error *e);
void op_experiment_free(op_experiment *x); /* NULL is fine */

const char *op_experiment_name(const op_experiment *x);
const char *op_experiment_question(const op_experiment *x);
size_t op_experiment_cells(const op_experiment *x); /* arms times seeds */

/* Filled through op_experiment_table (operant/config.h). */
typedef struct op_experiment_options {
    char *results, *work; /* directories; each experiment has one of its name inside */
    char *arms;           /* run only these; NULL: all */
    int64_t jobs;         /* processes at once; 0: cores / threads of a cell */
    bool small, keep;
    char *report;         /* NULL: report.html beside the results */
    /* not of the table */
    const char *program;      /* what "operant" stands for in commands */
    const char *version;      /* of it, part of every key */
    char *const *environment; /* of the children, ends with NULL; OMP_NUM_THREADS is set for them */
} op_experiment_options;

extern const op_option op_experiment_table[];

typedef struct op_experiment_progress {
    size_t done, total, running, failed; /* cells; `done` counts those of earlier runs too */
    double eta_s;                        /* NAN: not known yet */
    const char *arm;                     /* a cell that has just ended, or NULL */
    int64_t seed;
    const char *failure; /* why it failed, with the path of its log; NULL: it is finished */
} op_experiment_progress;

typedef struct op_experiment_callbacks {
    void *ctx;
    void (*progress)(void *ctx, const op_experiment_progress *p); /* some times a second, and for each cell that ends */
    const volatile int *stop; /* becomes non-zero: the children are asked to stop, then OP_ERR_INTERRUPTED; NULL: never */
} op_experiment_callbacks;

/* Runs every cell that is not finished. Cells that fail do not stop the others; then OP_ERR_MISMATCH names how many failed and one log. A second run of the
 * same experiment at the same time is refused. If this process is killed its children are killed with it. */
op_status op_experiment_run(const op_experiment *x, const op_experiment_options *o, const op_experiment_callbacks *callbacks, op_error *e);

/* What the finished cells say, as JSON (the caller decrefs); nothing is run. Keys:
 *   name, question, subject, file, hash, seeds, threads, small, command
 *   cells     {expected, finished, missing: [{arm, seed}], stale: [{arm, seed}]}: stale ones were made by other commands than the file now has
 *   claims    [{says, measure, arm, against, direction, registered, n, mean_arm, mean_against, differences: [{seed, value}], difference, low, high (paired t, 95%),
 *             p (sign-flipping, two-sided), exact, signings, adjusted (Holm), verdict}]; verdict: "supported", "not supported", "contradicted" at 5%
 *   arms      [{name, says, n, seconds, measures: [{name, mean, low, high, min, max, values: [{seed, value}]}], compute: [{name, mean, min, max}],
 *             curves: [{name, lines: [{seed, points: [[x, y]]}]}], transcripts, commands}]
 *   contrasts [{measure, arm, against, n, difference, low, high, claimed}]: every arm against the first; exploratory unless claimed
 *   measures, curves (as in the file), compute: [{name, spread, equal}], warnings: [text] */
op_status op_experiment_analyse(const op_experiment *x, const char *results, json_t **out, op_error *e);

/* Appends the analysis as text of at most 100 columns; as report.html, which needs no script and no network. */
op_status op_experiment_write_table(const json_t *analysis, op_buf *out);
op_status op_experiment_write_html(const json_t *analysis, op_buf *out, op_error *e);

/* Appends a table of the figures that two runs share, with their differences. Each is a results.json, a run's directory, or the results directory of
 * an experiment (then arm by arm, with paired intervals over the seeds that both have). */
op_status op_experiment_compare(const char *a, const char *b, op_buf *out, op_error *e);

#endif
