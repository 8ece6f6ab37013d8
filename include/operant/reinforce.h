/* operant/reinforce.h: schedules of reinforcement: which responses get feedback (Ferster, Skinner: Schedules of Reinforcement, 1957).
 *
 * Deterministic by seed: the decision for trial k depends on the settings, the seed, k, and the successes told so far. All of that is in what
 * op_reinforce_save writes, so a schedule that was loaded goes on exactly as the saved one would have.
 *
 * Time is counted in trials. A probe stands outside: time passes, but it is no response that the schedule counts. */
#ifndef OPERANT_REINFORCE_H
#define OPERANT_REINFORCE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/status.h>

typedef enum op_reinforce_type {
    OP_REINFORCE_CONTINUOUS,        /* every success */
    OP_REINFORCE_FIXED_RATIO,       /* every n-th success; for a broken n the successes that pass a multiple of n */
    OP_REINFORCE_VARIABLE_RATIO,    /* after 1 .. 2n-1 successes, all equally likely, n on average */
    OP_REINFORCE_FIXED_INTERVAL,    /* the first success at least n trials after the last reinforcement (or the beginning) */
    OP_REINFORCE_VARIABLE_INTERVAL, /* the same with intervals of 1 .. 2n-1 trials, n on average */
    OP_REINFORCE_RANDOM,            /* each success with probability 1/n */
    OP_REINFORCE_WEANING,           /* a variable ratio that starts at 1 and is multiplied by `growth` after every `window` trials of which at least the share
                                       `criterion` were successes, up to n; the trials of a full window are counted once, those of one that fell short slide on */
    OP_REINFORCE_NONE,              /* extinction: nothing */
} op_reinforce_type;
#define OP_REINFORCE_CHOICES "continuous|fixed_ratio|variable_ratio|fixed_interval|variable_interval|random|weaning|none"

/* What follows a failure. A schedule thins out reinforcement, not correction, unless it is told otherwise. */
typedef enum op_reinforce_failures {
    OP_FAILURES_ALWAYS,    /* it gets its feedback whatever the schedule; with type none nothing does */
    OP_FAILURES_SCHEDULED, /* it counts as a success does: the schedule thins out all feedback alike */
    OP_FAILURES_NEVER,
} op_reinforce_failures;
#define OP_FAILURES_CHOICES "always|scheduled|never"

typedef struct op_reinforce_options {
    op_reinforce_type type;
    double n;              /* 1 .. 1e6; default 1 */
    double growth;         /* weaning: > 1; default 1.5 */
    double criterion;      /* weaning: 0..1; default 0.8 */
    int32_t window;        /* weaning: 1 .. 256 trials; default 32 */
    double probe;          /* share of trials that are never reinforced and never learned from, to measure; 0..1; default 0 */
    double jackpot;        /* share of reinforced successes whose feedback counts `jackpot_size` times; 0..1; default 0 */
    double jackpot_size;   /* >= 1; default 5 */
    op_reinforce_failures failures; /* default always */
    uint64_t seed;
} op_reinforce_options;

typedef struct op_reinforce op_reinforce;

typedef enum op_consequence { OP_NOTHING, OP_FEEDBACK, OP_PROBE } op_consequence;

op_reinforce_options op_reinforce_defaults(void); /* continuous */
op_status op_reinforce_new(op_reinforce **out, const op_reinforce_options *o, op_error *e);
void op_reinforce_free(op_reinforce *r); /* NULL is fine */
/* Is the next trial a probe? Asked before it is judged. */
bool op_reinforce_is_probe(const op_reinforce *r);
/* What follows the next trial, which was a success or not. *size is 1, or jackpot_size. Counts the trial. */
op_consequence op_reinforce_next(op_reinforce *r, bool success, double *size);
double op_reinforce_ratio(const op_reinforce *r); /* of a weaning schedule now; else n */

/* The state as a JSON object of whole numbers and words. Loading one of another type is OP_ERR_MISMATCH. */
op_status op_reinforce_save(const op_reinforce *r, json_t **state, op_error *e);
op_status op_reinforce_load(op_reinforce *r, const json_t *state, op_error *e);
/* {"type": ..., "n": ..., ...} with the names of op_reinforce_options, or the type alone as a string; unknown keys are errors. `seed` is what
 * out->seed becomes where the settings have none. */
op_status op_reinforce_from_json(op_reinforce_options *out, const json_t *settings, uint64_t seed, op_error *e);

#endif
