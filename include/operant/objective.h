/* operant/objective.h: what turns log-probabilities into a loss.
 *
 * The model's forward gives log p of every token; an objective gives the loss and its slope, d loss / d log p, for each; the backward
 * consumes the slopes. Signed per-token weights (advantages, marks, masks) reach every objective through op_signal. */
#ifndef OPERANT_OBJECTIVE_H
#define OPERANT_OBJECTIVE_H

#include <stdbool.h>

#include <operant/model.h>
#include <operant/status.h>

/* What is known of the tokens of a batch beside their ids. Arrays are [T], parallel to batch->ids. */
typedef struct op_signal {
    const float *weight;    /* signed weight or advantage; 0: context */
    const float *behaviour; /* log p under the policy that produced the token, or NULL */
    const float *reference; /* log p under the reference model, or NULL */
    const int32_t *item;    /* [S] the trial or example whose end sequence s is, -1: a beginning that several share; NULL: s itself */
    double normaliser;      /* Z: the loss of the whole step is a sum over its micro-batches divided by this */
} op_signal;

typedef struct op_objective {
    const char *name;
    void *ctx;
    bool linear; /* slopes do not depend on log p: eval may be called with logp NULL, before the forward */
    /* Fills slope[T] and *loss (this micro-batch's share of the step's loss; NaN-free). With logp NULL loss is left alone. */
    op_status (*eval)(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss,
                      op_error *e);
} op_objective;

/* The simplest objective: L = -(1/Z) sum_t weight_t log p_t. With weights 0 and 1 it is supervised fine-tuning; a negative weight teaches away. */
op_objective op_objective_weighted(void);

#endif
