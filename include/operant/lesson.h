/* operant/lesson.h: one update of the learner from trials: L = policy term + kl KL(pi || pi_ref) + preference terms.
 *
 *   policy      -(1/Z) sum_t min(A_t rho_t, A_t clip(rho_t, 1 - clip_low, 1 + clip_high)), rho_t = pi / pi_behaviour; Z a constant
 *               (Dr.GRPO: 2503.20783; clip-higher: 2503.14476). A trial without log-probabilities uses rho = pi / stopgrad(pi).
 *   advantage   A_t = outcome_weight (R - baseline) + mark_weight m_t, m_t from the trial's marks
 *   preference  -log sigmoid(beta [sum_t w_t (log pi - log pi_ref)(good) - the same of bad]) over two items that part at a token (DPO: 2305.18290 when
 *               all of both counts; branch preference when only the parting tokens do), or IPO's square (2310.12036)
 * Signed per-token weights reach every term. */
#ifndef OPERANT_LESSON_H
#define OPERANT_LESSON_H

#include <operant/train.h>
#include <operant/trial.h>

typedef enum op_baseline { OP_BASELINE_NONE, OP_BASELINE_GROUP, OP_BASELINE_LEAVE_ONE_OUT, OP_BASELINE_RUNNING } op_baseline;
#define OP_BASELINE_CHOICES "none|group|leave_one_out|running"

typedef struct op_lesson_options {
    double outcome_weight, mark_weight; /* default 1, 1 */
    op_baseline baseline;               /* default group; a group of one uses the running one */
    bool divide_by_deviation;           /* GRPO (2402.03300); default false */
    double clip_low, clip_high;         /* default 0.2, 0.28 */
    double kl;                          /* beta of the KL term; default 0 */
    double constant_length;             /* Z = trials * this; 0: the sum over trained tokens */
    bool per_sequence_mean;             /* GRPO: every response weighs the same, whatever its length; default false */
    double beta;                        /* of preferences; default 0.1 */
    double preference_weight;           /* default 1 */
    int preference;                     /* 0 dpo (log sigmoid), 1 ipo, 2 hinge */
    double imitation_weight;            /* of op_imitate items; default 1 */
} op_lesson_options;

typedef struct op_lesson op_lesson; /* what one update learns from; everything added is copied */

op_status op_lesson_new(op_lesson **out, const op_lesson_options *o, op_error *e);
void op_lesson_free(op_lesson *l);
void op_lesson_clear(op_lesson *l);

/* A group is the answers to one prompt; baselines are taken within it. Trials whose A_t are all zero are left out (and counted). */
op_status op_lesson_add_group(op_lesson *l, const op_trial *const *trials, size_t n, op_error *e);
/* The same with advantages already known: a[n_response]. */
op_status op_lesson_add_advantages(op_lesson *l, const op_trial *t, const float *a, op_error *e);
/* The response of `good` is preferred to that of `bad`; both have the same prompt and the same first `at` response tokens. `span` tokens after the
 * parting count (0: all). Marks, if either trial has any, weigh their tokens. */
op_status op_lesson_add_preference(op_lesson *l, const op_trial *good, const op_trial *bad, int32_t at, int32_t span, op_error *e);
/* Learns response tokens from .. n_response-1 as they are, with signed weights w[n_response] (NULL: 1): supervised learning, or away from them. */
op_status op_lesson_add_imitation(op_lesson *l, const op_trial *t, int32_t from, const float *w, op_error *e);

size_t op_lesson_items(const op_lesson *l);

typedef struct op_lesson_stats {
    op_step_stats step;
    double policy_loss, preference_loss, imitation_loss;
    double entropy;       /* of the policy at the trained tokens, nats; sampled estimate -mean log p */
    double kl;            /* to the reference, NAN without; to the behaviour: */
    double behaviour_kl;
    double clip_fraction; /* of policy tokens */
    double zero_variance; /* share of groups whose rewards are all equal */
    double marks_per_trial, preference_accuracy;
    int64_t skipped;      /* trials with every A_t zero */
} op_lesson_stats;

/* Recomputes behaviour log-probabilities with the training forward for trials whose policy is `policy` (the hash or name of the weights now), computes the
 * reference's when kl or preferences need it, and takes one step. `reference` NULL: the model without its adapter when an adapter is trained, else
 * kl must be 0 and preferences are without reference. */
op_status op_lesson_learn(op_lesson *l, op_learner *learner, op_model *reference, const char *policy, double lr, op_lesson_stats *stats, op_error *e);

#endif
