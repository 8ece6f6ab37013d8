/* operant/reinforce.h: schedules of reinforcement: which responses get feedback (Ferster, Skinner: Schedules of Reinforcement, 1957).
 *
 * Deterministic by seed: the decision for trial k depends on the settings, the seed, k, and the successes and times told so far, all of which are in
 * op_reinforce, so that saving the struct saves the schedule. */
#ifndef OPERANT_REINFORCE_H
#define OPERANT_REINFORCE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/status.h>

typedef enum op_reinforce_type {
    OP_REINFORCE_CONTINUOUS,     /* every success */
    OP_REINFORCE_FIXED_RATIO,    /* every n-th success */
    OP_REINFORCE_VARIABLE_RATIO, /* after 1 .. 2n-1 successes, n on average */
    OP_REINFORCE_FIXED_INTERVAL, /* the first success after n trials since the last reinforcement (time is counted in trials) */
    OP_REINFORCE_VARIABLE_INTERVAL,
    OP_REINFORCE_RANDOM,         /* each success with probability 1/n */
    OP_REINFORCE_WEANING,        /* a variable ratio that starts at 1 and grows by `growth` whenever the rate of success over `window` trials is at least `criterion`, up to n */
    OP_REINFORCE_NONE,           /* extinction */
} op_reinforce_type;
#define OP_REINFORCE_CHOICES "continuous|fixed_ratio|variable_ratio|fixed_interval|variable_interval|random|weaning|none"

typedef struct op_reinforce_options {
    op_reinforce_type type;
    double n;              /* >= 1 */
    double growth;         /* weaning: > 1; default 1.5 */
    double criterion;      /* weaning: 0..1; default 0.8 */
    int32_t window;        /* weaning: trials; default 32, at most 256 */
    double probe;          /* share of trials that are never reinforced and never learned from, to measure; 0..1 */
    double jackpot;        /* share of reinforced successes whose feedback counts `jackpot_size` times; 0..1 */
    double jackpot_size;   /* default 5 */
    bool punish_all;       /* failures get their feedback whatever the schedule (default true): a schedule thins out reinforcement, not correction */
    uint64_t seed;
} op_reinforce_options;

typedef struct op_reinforce op_reinforce;

typedef enum op_consequence { OP_NOTHING, OP_FEEDBACK, OP_PROBE } op_consequence;

op_status op_reinforce_new(op_reinforce **out, const op_reinforce_options *o, op_error *e);
void op_reinforce_free(op_reinforce *r);
/* Is the next trial a probe? Asked before it is judged. */
bool op_reinforce_is_probe(const op_reinforce *r);
/* What follows the next trial, which was a success or not. *size is 1, or jackpot_size. Counts the trial. */
op_consequence op_reinforce_next(op_reinforce *r, bool success, double *size);
double op_reinforce_ratio(const op_reinforce *r); /* of a weaning schedule now; else n */

op_status op_reinforce_save(const op_reinforce *r, json_t **state, op_error *e);
op_status op_reinforce_load(op_reinforce *r, const json_t *state, op_error *e);
/* {"type": ..., "n": ..., ...}; unknown keys are errors. */
op_status op_reinforce_from_json(op_reinforce_options *out, const json_t *settings, op_error *e);

#endif
