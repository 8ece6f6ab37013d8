/* train/learner.h: what the checkpoint sees of a learner. */
#ifndef OP_TRAIN_LEARNER_H
#define OP_TRAIN_LEARNER_H

#include <operant/train.h>

#include "ops/ops.h"
#include "train/moments.h"
#include "train/pack.h"
#include "train/parallel.h"

struct op_learner {
    op_model *model; /* borrowed */
    op_pass *pass;
    const op_ops *ops;
    op_learner_options options;
    op_pack pack;
    op_pack_options packing;
    op_params params;
    op_shard shard; /* what this rank owns of the parameters */
    float *m, *v; /* [shard.own] AdamW's moments; NULL with optim adamw_8bit, which has: */
    op_moments moments;
    int64_t steps;
};

#endif
