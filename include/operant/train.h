/* operant/train.h: from sequences with signed weights to changed parameters.
 *
 * Three levels, each usable alone:
 *   - op_schedule_lr        the learning rate of a step;
 *   - op_learner            one update from any set of items: packs them, runs the model and an objective, applies AdamW;
 *   - op_train_run          a whole run over a fixed set of items in a run directory, with held-out loss, checkpoints and resume.
 *
 * A run directory holds
 *   config.yaml             the resolved settings, as given in op_train_options.config
 *   env.json                versions, processor features, threads, seed, steps, sizes and hashes of model and data
 *   metrics.jsonl           one object a line: step, loss, lr, grad_norm, tokens, tokens_per_s, ... or step, eval_loss, eval_perplexity
 *   events.out.tfevents.operant   the same numbers for TensorBoard
 *   checkpoints/step-NNNNNNNN/    state.json, values.safetensors, adam_m.safetensors, adam_v.safetensors
 * A checkpoint is written under another name, made durable and then renamed, so one with this name is complete. Everything random is
 * drawn by (seed, purpose, counter) and the counters follow from the step: a run that is killed and resumed gives the same bits as one that
 * never was, for the same build, processor features and number of threads. */
#ifndef OPERANT_TRAIN_H
#define OPERANT_TRAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/model.h>
#include <operant/objective.h>
#include <operant/parallel.h>
#include <operant/status.h>

/* ---- learning rate ---- */

typedef enum op_schedule_type { OP_SCHEDULE_CONSTANT, OP_SCHEDULE_LINEAR, OP_SCHEDULE_COSINE, OP_SCHEDULE_WSD } op_schedule_type;
#define OP_SCHEDULE_CHOICES "constant|linear|cosine|wsd"

typedef struct op_schedule {
    op_schedule_type type;
    double lr;          /* peak, > 0 */
    int64_t total;      /* steps of the run */
    int64_t warmup;     /* steps; step s < warmup has lr (s + 1) / warmup */
    double decay_ratio; /* wsd: share of all steps at the end that decay, 0..1; default 0.2 */
    double min_ratio;   /* the rate never falls below lr min_ratio; 0..1; default 0 */
} op_schedule;

/* The rate of step s = 0 .. total-1. With p = (s - warmup) / (total - warmup) and m = min_ratio, after the warm-up:
 *   constant lr;  linear lr (m + (1-m)(1-p));  cosine lr (m + (1-m)(1 + cos(pi p)) / 2)   (Loshchilov, Hutter: 1608.03983)
 *   wsd      lr until the last `decay_ratio` of all steps, then linear down to lr m       (Hu et al.: 2404.06395) */
double op_schedule_lr(const op_schedule *s, int64_t step);

/* ---- learner ---- */

/* One sequence to learn from. Everything borrowed. */
typedef struct op_item {
    const int32_t *ids;     /* [n] */
    const float *weights;   /* [n] signed weight or advantage of token i; 0: context. weights[0] counts as 0: nothing precedes it */
    const float *behaviour; /* [n] or NULL: log p under the policy that produced the tokens */
    const float *reference; /* [n] or NULL: log p under the reference model */
    int32_t n;              /* 1 or more */
} op_item;

/* adamw keeps both moments of every parameter as floats (8 bytes), adamw_8bit in 8 bits each (2 bytes; Dettmers et al.: 2110.02861, src/ops/dynamic8.h). */
typedef enum op_optim { OP_OPTIM_ADAMW, OP_OPTIM_ADAMW_8BIT } op_optim;
#define OP_OPTIM_CHOICES "adamw|adamw_8bit"

typedef struct op_learner_options {
    op_objective objective;
    op_optim optim;         /* adamw_8bit, like a model with bf16 gradients, learns in one process alone */
    double beta1, beta2;    /* decay of AdamW's moments, 0..1; usual 0.9, 0.999 */
    double eps;             /* usual 1e-8 */
    double weight_decay;    /* per step and unit of learning rate; matrices only */
    double max_grad_norm;   /* the gradient is scaled down to this length; 0: never */
    int32_t block_tokens;   /* tokens of a micro-batch; a longer sequence is a micro-batch of its own */
    int32_t share_min;      /* beginnings of at least this many tokens that sequences of a micro-batch share are computed once; 0: never */
    uint64_t seed;          /* of dropout */
    op_parallel *parallel;  /* the processes that learn together; borrowed, NULL: this one alone */
} op_learner_options;

typedef struct op_step_stats {
    double loss;      /* of the objective; for weighted items a mean per trained weight */
    double grad_norm; /* before clipping */
    double weight;    /* Z: the sum of |weight| */
    int64_t tokens;   /* of the items */
    int64_t computed; /* of the micro-batches: fewer when beginnings were shared */
    int64_t trained;  /* tokens with a weight other than 0 */
    int32_t micro_batches;
} op_step_stats;

typedef struct op_evaluation {
    double loss;       /* -sum_t w_t log p_t / sum_t w_t, over tokens of positive weight */
    double perplexity; /* exp(loss) */
    int64_t tokens;    /* how many these were */
} op_evaluation;

typedef struct op_learner op_learner;

/* The model is borrowed and must have been opened with trainable parameters. With OP_TRAIN_ADAPTER every sequence uses adapter 0. */
op_status op_learner_new(op_learner **out, op_model *m, const op_learner_options *o, op_error *e);
void op_learner_free(op_learner *l); /* NULL is fine */

/* Sets the model's gradients (with several ranks: of the parameters that this one owns) to those of one step over all items, in as many
 * micro-batches as they need. A linear objective takes one forward and backward for each; another one takes a forward over all of them first.
 * OP_ERR_ARG if no token has a weight; a loss that is not finite is an error. */
op_status op_learner_gradient(op_learner *l, const op_item *items, size_t n, op_step_stats *stats, op_error *e);
/* Clips, applies AdamW with this rate and counts the step. Sets stats->grad_norm. */
op_status op_learner_update(op_learner *l, double lr, op_step_stats *stats, op_error *e);
/* Both. */
op_status op_learner_step(op_learner *l, const op_item *items, size_t n, double lr, op_step_stats *stats, op_error *e);

/* Without dropout and without touching gradients. */
op_status op_learner_evaluate(op_learner *l, const op_item *items, size_t n, op_evaluation *out, op_error *e);

/* logp[i][t] = log p of token t of item i, for the tokens with a weight other than 0, packed as a step packs them but without dropout: under `other`
 * (with its first adapter, if it has any), or NULL: under the learner's model without its adapter. */
op_status op_learner_logprobs(op_learner *l, op_model *other, const op_item *items, size_t n, float *const *logp, op_error *e);

int64_t op_learner_steps(const op_learner *l); /* updates so far */
op_model *op_learner_model(const op_learner *l);
/* From now on learns by f; returns what it learned by until now. */
op_objective op_learner_set_objective(op_learner *l, op_objective f);

/* ---- run ---- */

typedef struct op_train_progress {
    int64_t step, total;     /* done, of all */
    double epoch;            /* passes over the items so far */
    double loss, lr, grad_norm;
    double tokens_per_s;     /* tokens of the items, mean since the run (or its resume) began, without evaluation and saving */
    double eta_s;            /* seconds left */
    double eval_loss;        /* the latest held-out loss, NAN before the first */
    double eval_perplexity;
    bool evaluated;          /* this call reports a new held-out loss */
    double peak_rss_mb;
} op_train_progress;

/* Called after every step and every evaluation, from the thread of op_train_run. */
typedef struct op_train_callbacks {
    void *ctx;
    void (*progress)(void *ctx, const op_train_progress *p); /* NULL: none */
    const volatile int *stop; /* becomes non-zero: the step is finished, a checkpoint written, OP_ERR_INTERRUPTED; NULL: never */
} op_train_callbacks;

typedef struct op_train_options {
    op_learner_options learner;
    op_schedule schedule;   /* its `total` is the length of the run */
    const char *dir;        /* run directory; made if it is not there */
    const char *config;     /* text of config.yaml, or NULL */
    json_t *identity;       /* object of strings: the settings that must not differ between a checkpoint and its resume; borrowed, may be NULL */
    json_t *facts;          /* object: what else env.json should tell of the run; borrowed, may be NULL */
    uint64_t seed;          /* of the order of the items */
    int32_t sequences;      /* items of one step, 1 or more */
    int64_t eval_steps;     /* steps between evaluations; 0: after every pass over the items. Also before the first step and after the last */
    int64_t save_steps;     /* steps between checkpoints; 0: only after the last (or when stopped) */
    int32_t save_keep;      /* checkpoints kept, 1 or more; 0: all */
    int64_t log_steps;      /* steps between lines of metrics.jsonl, 1 or more */
    const char *resume;     /* "auto" (NULL): the newest checkpoint of dir, if any; "none": forget what dir holds; else a checkpoint's path */
    op_train_callbacks callbacks;
} op_train_options;

typedef struct op_train_result {
    int64_t step;              /* of the state the model is in now */
    int64_t resumed_from;      /* 0: from the start */
    int64_t tokens;            /* learned from, over the whole run */
    double loss;               /* of the last step done here, NAN if none was */
    op_evaluation first, last; /* held-out, before the first step of the run and at the latest evaluation; NAN without held-out items */
    double seconds;            /* in training steps of this process */
    double tokens_per_s, peak_rss_mb;
} op_train_result;

/* Items are taken in a new random order every epoch, `sequences` a step, across the ends of epochs. On OP_ERR_INTERRUPTED the result is valid.
 * OP_ERR_MISMATCH when a checkpoint was made with other settings, data or base model: the message says which. A checkpoint that lacks a file,
 * or whose bytes changed, is OP_ERR_FORMAT. */
op_status op_train_run(op_model *m, const op_train_options *o, const op_item *items, size_t n, const op_item *held,
                       size_t n_held, op_train_result *result, op_error *e);

#endif
