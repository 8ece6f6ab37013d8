/* train/pack.h: items of a step packed into micro-batches.
 *
 * Whole items go into parts of at most block_tokens tokens (first fit, longest first: Johnson 1973), or for several ranks into equally full ones, a
 * multiple of the ranks (longest first into the emptiest: Graham 1969). Within a part, items that begin alike become a tree:
 * each common beginning of context tokens is one sequence, and what follows are its children. Only context (weight 0) is shared, so a token that
 * carries a signal belongs to exactly one item. Packed items cannot see each other. */
#ifndef OP_TRAIN_PACK_H
#define OP_TRAIN_PACK_H

#include <operant/train.h>

#include "base/mem.h"

typedef struct op_part {
    int32_t token, n_tokens; /* its place in the pack's token arrays */
    int32_t seq, n_seqs;
} op_part;

/* All arrays live in the arena until the next build. */
typedef struct op_pack {
    op_arena arena;
    int32_t n_tokens, n_seqs, n_parts;
    int32_t *ids;                          /* [n_tokens] */
    float *weight;                         /* [n_tokens] */
    float *behaviour, *reference;          /* [n_tokens] or NULL; NAN where unknown */
    op_seq *seqs;                          /* [n_seqs] places counted from the part's beginning */
    op_seq *whole;                         /* [n_seqs] the same counted from the pack's */
    int32_t *item;                         /* [n_seqs] the item that a sequence ends, -1: a shared beginning */
    op_part *parts;                        /* [n_parts] */
    int64_t item_tokens, trained;
    double z;                              /* sum of |weight| */
} op_pack;

typedef struct op_pack_options {
    int32_t block_tokens, share_min; /* as in op_learner_options */
    int32_t adapter;                 /* of every sequence */
    int32_t ranks;                   /* parts are to keep this many busy for equally long; 0 or 1: as few parts as possible */
} op_pack_options;

void op_pack_init(op_pack *p);
void op_pack_release(op_pack *p);
op_status op_pack_build(op_pack *p, const op_item *items, size_t n, const op_pack_options *o, op_error *e);

op_batch op_pack_part(const op_pack *p, int32_t part);
op_batch op_pack_whole(const op_pack *p);
op_signal op_pack_signal(const op_pack *p); /* of the whole pack */

#endif
