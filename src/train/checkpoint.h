/* train/checkpoint.h: the state of a run on disk: parameters, AdamW's moments, counters, and what they belong to.
 *
 * A checkpoint is a directory step-NNNNNNNN with values.safetensors, adam_m.safetensors, adam_v.safetensors (a tensor for every parameter) and
 * state.json, which holds the counters, the updates of the learner, the identity of the run and the size and CRC-32 of the other files. */
#ifndef OP_TRAIN_CHECKPOINT_H
#define OP_TRAIN_CHECKPOINT_H

#include <stdint.h>

#include <jansson.h>

#include <operant/train.h>

typedef struct op_run_state {
    int64_t step;     /* done, of the kind that the run counts: it names the checkpoint */
    int64_t position; /* items taken, over all epochs: with the seed it fixes what comes next */
    int64_t tokens;   /* learned from */
    op_evaluation first, last; /* held-out, NAN: none */
    json_t *extra;    /* whatever else the run must find again, or NULL; borrowed when saved, the caller's when loaded */
} op_run_state;

/* Writes dir/step-NNNNNNNN and then removes the oldest ones so that `keep` remain (0: all). `identity` is a
 * JSON object of strings. Of several ranks each calls it, and rank 0 writes: the same files as one alone would. */
op_status op_checkpoint_save(const char *dir, op_learner *l, const op_run_state *state, json_t *identity, int32_t keep,
                             op_error *e);

/* Reads the checkpoint at `path` into the learner and its model. Nothing of them is changed unless counters, identity and bytes are right. */
op_status op_checkpoint_load(const char *path, op_learner *l, op_run_state *state, json_t *identity, op_error *e);

/* *path is the newest checkpoint in dir (op_free), or NULL if there is none. */
op_status op_checkpoint_newest(const char *dir, char **path, op_error *e);

/* Removes the checkpoints of dir that are past step `after`, newest first, and what is half written or half removed: killed at any moment, it
 * leaves complete ones only. */
op_status op_checkpoint_forget(const char *dir, int64_t after, op_error *e);

#endif
