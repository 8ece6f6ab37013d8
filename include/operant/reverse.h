/* operant/reverse.h: train for traits, then reverse them: what `operant reverse` runs (docs/reverse.md has the file's keys).
 *
 * For each trait the model is trained towards it, and the change of the weights is the trait's vector tau_i (operant/vector.h). Then
 *     W' = W - f sum_i lambda_i tau_i
 * with lambda_i the largest scale at which the perplexity of a control text rises by no more than the budget, found by a search, and f <= 1 the largest common
 * factor at which the sum keeps to it (Ilharco et al.: 2212.04089). Every trait and probe is measured before, in the trained models, after each subtraction and
 * after all of them; beside the trait's vector stand the controls: a random vector of the same norm in every tensor, another trait's vector, gradient ascent
 * on the trait, training on the opposite answers, and nothing. W' can be trained on neutral data and is what the next round starts from.
 *
 * Everything that was worked out lies in a file of output_dir under a name made of what it was worked out from, and is written atomically: a run that
 * was stopped or killed goes on from there when it is called again, and ends in the same results.json, bit for bit (same build, processor and threads):
 *     measures/KEY.json             one measurement of one model
 *     round-N/data/NAME-KEY.jsonl   what a model is trained on
 *     round-N/training/             the training under way; removed once its vector is there
 *     round-N/vectors/NAME-KEY.safetensors   vectors of the traits; those of controls are removed once they are measured
 *     round-N/result                W', a model directory
 *     results.json, report.html */
#ifndef OPERANT_REVERSE_H
#define OPERANT_REVERSE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/buf.h>
#include <operant/config.h>
#include <operant/status.h>

/* What may be said beside the file and then counts in its place. Filled through op_reverse_table. */
typedef struct op_reverse_options {
    char *model, *data, *output_dir; /* NULL: as the file says */
    int64_t seed, rounds, threads;   /* negative: as the file says */
    int64_t train, probe, search, choices; /* questions; negative: as the file says */
    int64_t control_tokens;          /* negative: as the file says */
    int64_t disk_free;               /* bytes to take for free; negative: what the system says */
    bool plan;                       /* the caller's: only show the plan */
} op_reverse_options;

extern const op_option op_reverse_table[];

typedef struct op_reverse op_reverse;

/* Reads and checks the file and all questions that it names. Errors name the file and the key, or the file of the questions and its line. */
op_status op_reverse_read(op_reverse **out, const char *path, const op_reverse_options *o, op_error *e);
void op_reverse_free(op_reverse *x); /* NULL is fine */

/* What is known before anything is done. */
typedef struct op_reverse_plan {
    int64_t parameters;      /* of the model */
    int64_t traits, probes, rounds, trainings; /* trainings: of all rounds, those of controls among them */
    int64_t train_tokens, score_tokens; /* about how many are trained on and scored in all, those of earlier calls among them */
    int64_t disk_needed, disk_free;     /* bytes: at most needed at one time beyond what lies there already; free now */
} op_reverse_plan;

typedef struct op_reverse_progress {
    const char *what;  /* "round 1: power: random at 0.5"; valid during the call */
    double done;       /* share of the work that is left when the run begins, 0..1 */
    double eta_s;      /* seconds left; NAN at first */
} op_reverse_progress;

typedef struct op_reverse_callbacks {
    void *ctx;
    void (*plan)(void *ctx, const op_reverse_plan *p);         /* NULL: none; before anything is written */
    void (*progress)(void *ctx, const op_reverse_progress *p); /* NULL: none */
    const volatile int *stop; /* becomes non-zero: OP_ERR_INTERRUPTED, and the same call goes on */
} op_reverse_callbacks;

/* The plan alone: opens the model and tells. OP_ERR_IO when the disk has too little room. */
op_status op_reverse_tell(const op_reverse *x, op_reverse_plan *out, op_error *e);

/* Runs what is not done yet, writes results.json and report.html. `callbacks` may be NULL; *results may be NULL, else the caller decrefs. Refuses with
 * OP_ERR_IO before anything is written when the disk has too little room; OP_ERR_MISMATCH when the file's alarm went off while a vector was made (what
 * was measured stays; a higher threshold goes on); OP_ERR_FORMAT when the model's log-probabilities are no numbers. */
op_status op_reverse_run(const op_reverse *x, const op_reverse_callbacks *callbacks, json_t **results, op_error *e);

/* The page of a results.json, and its summary as plain text. */
op_status op_reverse_write_html(const json_t *results, op_buf *out, op_error *e);
op_status op_reverse_write_table(const json_t *results, op_buf *out);

#endif
