/* lab/experiment_parts.h: the pieces of operant/experiment.h. */
#ifndef OP_LAB_EXPERIMENT_PARTS_H
#define OP_LAB_EXPERIMENT_PARTS_H

#include <operant/experiment.h>

#include "base/hash.h"

/* The file, checked: `spec` has its keys, with scalars as strings but for
 *   seeds, threads: integers;  claims[].against: a string or a number;  claims[].sign: 1 or -1;  measures[].missing: a number or null
 *   prepare, run: lists of commands, each a list of words (an arm may have its own);  vars, set: objects of strings, also of each arm;  templates: name -> path */
struct op_experiment {
    json_t *spec;
    char *path;
    char hash[OP_HASH_HEX]; /* of the file */
    bool small;
};

/* ---- experiment_plan.c ---- */

/* The words of a cell's commands. ${cell} and ${prepared} stay in them: what they stand for follows from the key. The caller decrefs. */
op_status op_cell_commands(const op_experiment *x, const json_t *arm, int64_t seed, const char *which, json_t **out, op_error *e);

/* The files that are made for a cell from templates: name -> text. The caller decrefs. */
op_status op_cell_files(const op_experiment *x, const json_t *arm, int64_t seed, json_t **out, op_error *e);

/* What decides a cell's result. All owned. */
typedef struct op_cell {
    const json_t *arm; /* borrowed from the experiment */
    int64_t seed;
    json_t *prepare, *run; /* commands; prepare may be empty */
    json_t *files;         /* name -> text */
    json_t *inputs;        /* path -> hash */
    char prepare_key[OP_HASH_HEX], key[OP_HASH_HEX];
} op_cell;

/* `hashes` (path -> hash) keeps what was hashed before. */
op_status op_cell_plan(op_cell *out, const op_experiment *x, const json_t *arm, int64_t seed, const char *version, json_t *hashes, op_error *e);
void op_cell_release(op_cell *c);

/* RESULTS/NAME, and RESULTS/NAME/ARM-SEED.json; NULL when memory is out. */
char *op_experiment_dir(const op_experiment *x, const char *results);
char *op_cell_result_path(const op_experiment *x, const char *results, const json_t *arm, int64_t seed);
/* Reads a finished cell's file; *out is NULL when there is none. */
op_status op_cell_read(const op_experiment *x, const char *results, const json_t *arm, int64_t seed, json_t **out, op_error *e);

/* ---- experiment_collect.c ---- */

/* The figures and transcripts that a cell's commands left: {figures, transcripts}. `commands` have their paths filled in; `dir` is ${cell}; `curves`
 * are those of the file: the ones drawn from a metrics.jsonl become figures.curves.NAME. */
op_status op_cell_collect(const json_t *commands, const char *dir, const json_t *curves, json_t **out, op_error *e);
/* The figures of a run: of results.json, of a file of that form, or of metrics.jsonl in a directory. */
op_status op_run_figures(const char *path, json_t **out, op_error *e);

/* ---- experiment_claims.c ---- */

/* What is claimed, how it is measured and what its arms do: the part of the file that must not change once results are known. The caller decrefs; NULL: out
 * of memory. */
json_t *op_experiment_claims(const op_experiment *x);
/* Writes registered.json, with the number of cells that are finished already: claims of one that says more than 0 do not count as registered. One that is
 * there once a cell is finished stays as it is. */
op_status op_experiment_register(const op_experiment *x, const char *results, op_error *e);
/* Reads it; *out is NULL when there is none. */
op_status op_experiment_registered(const op_experiment *x, const char *results, json_t **out, op_error *e);

/* ---- experiment_plots.c ---- */

#include "lab/page.h"

/* The paired differences of each claim, every seed a dot, with mean and interval. */
void op_plot_claims(op_page *p, const json_t *analysis);
/* A measure of every arm: a dot a seed, lines join the same seed. */
void op_plot_measure(op_page *p, const json_t *analysis, const json_t *measure);
/* A curve of every arm: a thin line a seed, a bold one their mean. */
void op_plot_curves(op_page *p, const json_t *analysis, const json_t *curve);

#endif
