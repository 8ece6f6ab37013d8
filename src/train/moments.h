/* train/moments.h: AdamW's moments in 8 bits (optim adamw_8bit): codes and blocks as in ops/dynamic8.h.
 *
 * Blocks do not cross parameters. Parameters of fewer than OP_MOMENTS_SMALL elements, which are norms and biases, keep float moments: they weigh nothing, and
 * are the ones whose moments differ most from their neighbours' (as Dettmers et al. do). */
#ifndef OP_TRAIN_MOMENTS_H
#define OP_TRAIN_MOMENTS_H

#include <operant/model.h>

#include "io/tensor_out.h"
#include "ops/ops.h"

enum { OP_MOMENTS_SMALL = 4096 };

/* The moments of one parameter: codes, or floats when `m` is not NULL. */
typedef struct op_param_moments {
    op_moments8 codes;
    float *m, *v;
    int64_t blocks;
} op_param_moments;

typedef struct op_moments {
    op_param_moments *of; /* [n_table] */
    uint8_t *bytes;       /* what they point into */
    char (*names)[160];   /* [n_table] of the blocks' largest magnitudes, in a checkpoint */
} op_moments;

/* All moments 0. OP_ERR_NOMEM leaves nothing behind. */
op_status op_moments_init(op_moments *x, const op_params *p, op_error *e);
void op_moments_release(op_moments *x);

/* The tensors of m (or, when `second`, of v) in a file: U8 codes under the parameter's name and F32 "NAME.top" [blocks], or F32 moments. tensors [2 n_table];
 * returns how many there are. */
size_t op_moments_tensors(const op_moments *x, const op_params *p, bool second, op_tensor_out *tensors);
/* Reads them; with `dry`, only checks that they are there. */
op_status op_moments_read(op_moments *x, const op_params *p, bool second, const char *path, bool dry, op_error *e);

#endif
