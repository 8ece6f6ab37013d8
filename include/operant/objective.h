/* operant/objective.h: what turns log-probabilities into a loss.
 *
 * The model's forward gives log p of every token; an objective gives the loss and its slope, d loss / d log p, for each; the backward
 * consumes the slopes. Signed per-token weights (advantages, marks, masks) reach every objective through op_signal.
 *
 * Legend: w weight, A = w as an advantage, Z the normaliser, pi the model now, b the policy that produced the tokens, ref the reference model,
 * s(i) = sum_t w_t (log pi_t - log ref_t) over the tokens of item i; an unknown log ref counts as 0. The contexts that the functions below take
 * are borrowed. */
#ifndef OPERANT_OBJECTIVE_H
#define OPERANT_OBJECTIVE_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/model.h>
#include <operant/status.h>

/* What is known of the tokens of a batch beside their ids. Arrays are [T], parallel to batch->ids. */
typedef struct op_signal {
    const float *weight;    /* signed weight or advantage; 0: context */
    const float *behaviour; /* log p under the policy that produced the token, NAN: unknown; or NULL */
    const float *reference; /* log p under the reference model, NAN: unknown; or NULL */
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
    /* Told of every micro-batch that is learned from, after its forward pass and before its log p: its tokens are first .. of those that eval has seen. For what
     * needs whole distributions (op_model_set_logits_hook). NULL: not told. */
    op_status (*part)(void *ctx, const op_batch *b, int32_t first, op_error *e);
} op_objective;

/* The simplest objective: L = -(1/Z) sum_t weight_t log p_t. With weights 0 and 1 it is supervised fine-tuning; a negative weight teaches away. */
op_objective op_objective_weighted(void);

/* Clipped policy gradient (PPO: 1707.06347; two bounds: DAPO, 2503.14476):
 *   L = -(1/Z) sum_t min(A rho, A clip(rho, 1 - clip_low, 1 + clip_high)),  rho = pi / b, or pi / stopgrad(pi) where b is unknown.
 * `fresh` says that no b is known, which makes the objective linear: L = -(1/Z) sum_t A_t, slope -A_t / Z. */
typedef struct op_policy {
    double clip_low, clip_high; /* >= 0; clip_low <= 1 */
    bool fresh;
} op_policy;
op_objective op_objective_policy(const op_policy *p);

/* L = (1/Z) sum_t w_t (ref/pi - log(ref/pi) - 1): an estimate of KL(pi || ref) from the tokens that pi drew (Schulman's k3, as in GRPO: 2402.03300).
 * Tokens whose reference is unknown are left out. */
op_objective op_objective_kl(void);

/* The same divergence exactly, of one token from the logits [V] of both: returns KL = sum_v pi_v (log pi_v - log ref_v), and
 * dlogits[v] = weight d KL / d logit_v = weight pi_v (log pi_v - log ref_v - KL). It has no variance; it costs the reference's logits. */
double op_full_kl(int32_t V, const float *logits, const float *reference, double weight, float *dlogits);

/* L = -(1/Z) sum_t |w_t| log(1 - pi_t) (unlikelihood: 1908.04319); only negative weights count. Beyond pi = 1 - 1e-6 it is
 * a straight line. */
op_objective op_objective_unlikelihood(void);

/* Which of two items is better, for d = s(good) - s(bad):
 *   dpo    -log sigmoid(beta d)            (2305.18290)
 *   ipo    (d - 1/(2 beta))^2              (2310.12036)
 *   hinge  max(0, 1 - beta d)              (SLiC: 2305.10425)
 * L = (1/Z) sum over pairs. The weights say which tokens count; a negative one turns its token around. */
typedef enum op_preference_type { OP_PREFERENCE_DPO, OP_PREFERENCE_IPO, OP_PREFERENCE_HINGE } op_preference_type;
#define OP_PREFERENCE_CHOICES "dpo|ipo|hinge"

typedef struct op_pair {
    int32_t good, bad; /* items */
} op_pair;

typedef struct op_preference {
    op_preference_type type;
    double beta;        /* > 0 */
    bool mean;          /* s(i) is divided by the sum of |w| of item i, so that length does not count */
    const op_pair *pairs;
    size_t n_pairs, n_items;
    double *margin;     /* [n_pairs] out: d, or NULL */
} op_preference;
op_objective op_objective_preference(const op_preference *p);

/* Items judged one by one (KTO: 2402.01306):
 *   L = (1/Z) sum_i c_i (1 - sigmoid(beta v_i)),  v = s - z0 for a desirable item, z0 - s for another, c its class's weight,
 *   z0 = max(0, mean of s over `points`), without a gradient: items that stand for what the policy does anyway; 0 without points. */
typedef struct op_judged {
    int32_t item;
    bool desirable;
} op_judged;

typedef struct op_kto {
    double beta;                   /* > 0 */
    double desirable, undesirable; /* weights of the two classes */
    const op_judged *judged;
    size_t n_judged;
    const int32_t *points;         /* items */
    size_t n_points, n_items;
} op_kto;
op_objective op_objective_kto(const op_kto *k);

/* L = sum of scale x term. Each term sees only its own items, with weights and normaliser of its own: the batch's are not looked at. */
typedef struct op_objective_term {
    op_objective objective;
    double scale;                /* 0: left out */
    double normaliser;           /* its Z */
    const float *const *weights; /* [n_items] of the whole item's tokens, shared beginnings included; NULL: not an item of this term */
    double loss;                 /* out: of the latest eval with log p, before scaling */
} op_objective_term;

typedef struct op_objective_sum {
    op_objective_term *terms;
    size_t n_terms, n_items;
} op_objective_sum;
op_objective op_objective_sum_of(op_objective_sum *s); /* linear if all its terms are */

#endif
