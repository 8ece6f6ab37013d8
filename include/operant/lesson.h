/* operant/lesson.h: one update of the learner from trials: L = policy term + kl KL(pi || pi_ref) + preference terms + KTO + imitation.
 *
 *   policy      -(1/Z) sum_t min(A_t rho_t, A_t clip(rho_t, 1 - clip_low, 1 + clip_high)), rho_t = pi / pi_behaviour; Z a constant
 *               (Dr.GRPO: 2503.20783; clip-higher: 2503.14476). Tokens without a log-probability (typed, imported, forced: NAN) use
 *               rho = pi / stopgrad(pi).
 *   advantage   A_t = outcome_weight (R - baseline) + mark_weight m_t, m_t from the trial's marks
 *   preference  -log sigmoid(beta [sum_t w_t (log pi - log pi_ref)(good) - the same of bad]) over two items that part at a token (DPO: 2305.18290 when
 *               all of both counts; branch preference when only the parting tokens do), or IPO's square (2310.12036), or a hinge; a mean over pairs
 *   KTO         see operant/objective.h; a mean over judged trials
 *   imitation   -(1/sum |w|) sum_t w_t log pi; with `unlikelihood` a negative w counts -|w| log(1 - pi) instead
 * Signed per-token weights reach every term. Known methods are settings:
 *
 *   SFT            op_lesson_add_imitation, weights NULL
 *   unlikelihood   op_lesson_add_imitation with negative weights, unlikelihood = true
 *   DPO, IPO       op_lesson_add_preference with at = span = 0, preference
 *   KTO            op_lesson_add_judged
 *   GRPO           op_lesson_add_group, divide_by_deviation, per_sequence_mean, clip_high 0.2, kl 0.04
 *   Dr.GRPO        op_lesson_add_group, constant_length = the longest response that sampling allows
 *   RLOO           op_lesson_add_group, baseline leave_one_out */
#ifndef OPERANT_LESSON_H
#define OPERANT_LESSON_H

#include <operant/objective.h>
#include <operant/train.h>
#include <operant/trial.h>

typedef enum op_baseline { OP_BASELINE_NONE, OP_BASELINE_GROUP, OP_BASELINE_LEAVE_ONE_OUT, OP_BASELINE_RUNNING } op_baseline;
#define OP_BASELINE_CHOICES "none|group|leave_one_out|running"

typedef enum op_kl_kind { OP_KL_SAMPLED, OP_KL_FULL } op_kl_kind;
#define OP_KL_CHOICES "sampled|full"

typedef struct op_lesson_options {
    double outcome_weight, mark_weight; /* default 1, 1 */
    op_baseline baseline;               /* default group; a group with one reward uses the running one */
    bool divide_by_deviation;           /* GRPO (2402.03300): by the group's deviation (n - 1) + 1e-4; default false */
    double clip_low, clip_high;         /* default 0.2, 0.28 */
    double kl;                          /* beta of the KL term, over all response tokens of the trials learned from; default 0 */
    op_kl_kind kl_kind;                 /* estimated from the sampled token (k3), or exact over the vocabulary, for one more pass of the reference; default sampled */
    double constant_length;             /* Z = trials * this; 0: the number of tokens with an advantage */
    bool per_sequence_mean;             /* GRPO: a mean over each response, then over trials: its length does not count; default false */
    op_preference_type preference;      /* default dpo */
    double beta;                        /* of preferences and KTO; default 0.1 */
    bool preference_mean;               /* log-ratios are means over tokens instead of sums; default false */
    double preference_weight;           /* default 1 */
    double kto_weight, desirable, undesirable; /* of the term, and of its two classes; default 1, 1, 1 */
    double imitation_weight;            /* default 1 */
    bool unlikelihood;                  /* of negative imitation weights; default false: -w log pi, which has no lower bound */
} op_lesson_options;

op_lesson_options op_lesson_defaults(void);

typedef struct op_lesson op_lesson; /* what one update learns from; everything added is copied */

op_status op_lesson_new(op_lesson **out, const op_lesson_options *o, op_error *e);
void op_lesson_free(op_lesson *l);  /* NULL is fine */
void op_lesson_clear(op_lesson *l); /* forgets what was added; the running baseline stays */

/* A group is the answers to one prompt; baselines are taken within it. A trial without a reward has no outcome. Trials whose A_t are all zero are left
 * out, but count as trials in Z (and in stats->skipped). */
op_status op_lesson_add_group(op_lesson *l, const op_trial *const *trials, size_t n, op_error *e);
/* The same with the outcome of trial i spread over its tokens: token t earns share[i][t] times it (share[i] NULL: each of them once). */
op_status op_lesson_add_spread(op_lesson *l, const op_trial *const *trials, const float *const *share, size_t n, op_error *e);
/* The same with advantages already known: a[n_response]. */
op_status op_lesson_add_advantages(op_lesson *l, const op_trial *t, const float *a, op_error *e);
/* The response of `good` is preferred to that of `bad`; both have the same prompt and the same first `at` response tokens, and a token there. `span`
 * tokens after the parting count (0: all). Where the counted tokens of a trial have marks, they weigh as marked (in `bad`: as the marks turned around). */
op_status op_lesson_add_preference(op_lesson *l, const op_trial *good, const op_trial *bad, int32_t at, int32_t span, op_error *e);
/* The response as a whole was desirable, or was not (KTO). Marks weigh as in a preference. If the trial judged before
 * this one had another prompt, its response is also tried after this one, as the point of reference z0 (cut to the longer of the two); without
 * any such point z0 is 0. */
op_status op_lesson_add_judged(op_lesson *l, const op_trial *t, bool desirable, op_error *e);
/* Learns response tokens from .. n_response-1 as they are, with signed weights w[n_response] (NULL: 1): supervised learning, or away from them. */
op_status op_lesson_add_imitation(op_lesson *l, const op_trial *t, int32_t from, const float *w, op_error *e);

size_t op_lesson_items(const op_lesson *l); /* sequences to learn from */

/* The running baseline: the mean of the rewards seen, later ones at least 1/20 each. It begins as one reward of 0. Kept by whoever resumes. */
typedef struct op_running {
    double mean;
    int64_t count;
} op_running;
op_running op_lesson_running(const op_lesson *l);
void op_lesson_set_running(op_lesson *l, op_running r);

typedef struct op_lesson_stats {
    op_step_stats step;   /* weight: the tokens whose log p mattered */
    double policy_loss, preference_loss, kto_loss, imitation_loss; /* before their weights; NAN without */
    double entropy;       /* of the policy at the tokens of the policy term, nats; sampled estimate -mean log p; NAN without */
    double kl;            /* to the reference (mean k3, or exact), NAN without; to the behaviour: */
    double behaviour_kl;  /* NAN if it is not known */
    double sampling_gap;  /* mean |log p of the sampler - log p of the training forward| of trials recomputed in this update, NAN without */
    double clip_fraction; /* of policy tokens */
    double zero_variance; /* share of groups (of two rewards or more) whose rewards are all equal */
    double marks_per_trial, preference_accuracy; /* share of pairs with a positive margin, before this update */
    int64_t trials;       /* of the policy term, with those skipped */
    int64_t skipped;      /* trials with every A_t or weight zero */
} op_lesson_stats;

/* Takes one step of the learner, whose own objective is left alone. Behaviour log-probabilities of trials sampled by `policy` (the hash or name of
 * the weights now; NULL: of none) are those of the training forward, taken in this very step: their ratio is exactly 1 now, and further updates from
 * the same lesson are measured against it. The reference's log-probabilities are computed once an item, when kl, preferences or judged trials need them.
 * `reference` NULL: the model without its adapter when an adapter is trained; else kl must be 0, and preferences and judged trials are without
 * reference. With kl_kind full the learner's model has no logits hook afterwards. A lesson without items takes no step and is no error (stats->step is all zero). */
op_status op_lesson_learn(op_lesson *l, op_learner *learner, op_model *reference, const char *policy, double lr, op_lesson_stats *stats, op_error *e);

#endif
