/* trial/lesson_parts.h: a lesson as its two files see it: lesson.c fills it, lesson_learn.c learns from it. */
#ifndef OP_TRIAL_LESSON_PARTS_H
#define OP_TRIAL_LESSON_PARTS_H

#include <operant/lesson.h>

#include "base/mem.h"

typedef enum lesson_term {
    TERM_POLICY, TERM_KL, TERM_PREFERENCE, TERM_KTO, TERM_IMITATION, TERM_UNLIKELIHOOD, TERM_COUNT
} lesson_term;

/* One sequence: a prompt and a response. Arrays are [n], in the lesson's arena; those of log p are NAN where nothing is known. */
typedef struct lesson_item {
    int32_t *ids, n, n_prompt;
    float *weight[TERM_COUNT]; /* NULL: this term does not see the item */
    float *want;               /* 1: some term looks at the token; 0: context */
    float *behaviour;          /* NULL: unknown */
    float *reference;          /* NULL: not computed */
    float *logp;               /* of the latest update, before it */
    char policy[65];           /* that the stored behaviour is of */
    bool recomputed;           /* behaviour is the training forward's */
} lesson_item;

struct op_lesson {
    op_lesson_options options;
    op_running running;
    op_arena arena, step; /* until clear; until the next update */
    lesson_item *items;
    size_t n_items, cap_items;
    op_pair *pairs;
    size_t n_pairs, cap_pairs;
    op_judged *judged;
    size_t n_judged, cap_judged;
    int32_t *points;      /* of KTO */
    size_t n_points, cap_points;
    int64_t trials, skipped, marks, groups, equal_groups; /* trials and marks: of the policy term */
    double policy_tokens, kl_tokens, imitation_size;      /* what the terms are divided by, unless the options say otherwise */
};

/* ---- lesson_full_kl.c ---- */

/* The exact KL term during one update. */
typedef struct full_kl {
    op_model *learning, *reference; /* may be one and the same: then the reference is it without its adapter */
    int32_t adapter;     /* of the reference */
    op_pass *pass;       /* of the reference over the micro-batch at work */
    int32_t first;       /* that micro-batch's first token among those of the step */
    const float *weight; /* [T] of the step; NULL: not known yet */
    int32_t *before;     /* [T] the row that predicts each token of the micro-batch */
    op_seq *seqs;
    float *logits;       /* [cap, V] the reference's */
    int32_t *rows, cap;  /* [cap] */
    double *kl;          /* [cap] */
    double loss, sum;    /* out: weighted, and of the KL itself */
    int64_t tokens;
} full_kl;

/* `reference` as op_lesson_learn takes it. Ended also after a failure. */
op_status full_kl_begin(full_kl *f, op_learner *learner, op_model *reference, op_error *e);
void full_kl_end(full_kl *f);
/* What every token of the step weighs: `scale` times its weight in the KL term. */
op_status full_kl_weigh(full_kl *f, op_lesson *l, const op_batch *b, const op_signal *s, double scale, op_error *e);
/* op_objective.part */
op_status full_kl_part(full_kl *f, const op_batch *b, int32_t first, op_error *e);

#endif
