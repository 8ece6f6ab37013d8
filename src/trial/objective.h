/* trial/objective.h: what the objectives share. */
#ifndef OP_TRIAL_OBJECTIVE_H
#define OP_TRIAL_OBJECTIVE_H

#include <operant/objective.h>

/* The item that sequence s of the batch ends, -1: none. Its token k is token seqs[s].branch + k of the item. */
static inline int32_t op_item_of(const op_signal *s, int32_t sequence)
{
    return s->item ? s->item[sequence] : sequence;
}

op_status op_objective_check_normaliser(const op_signal *s, op_error *e);

/* For every item: s = sum_t w_t (log p_t - log ref_t) and, if size is not NULL, size = sum_t |w_t|. Items beyond n_items are an error. */
op_status op_item_sums(const op_batch *b, const op_signal *s, const float *logp, size_t n_items, double *sum, double *size, op_error *e);
/* slope_t = slope_of_item w_t. */
void op_item_slopes(const op_batch *b, const op_signal *s, const double *slope_of_item, float *slope);

#endif
