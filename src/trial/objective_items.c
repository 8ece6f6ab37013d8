/* Objectives over whole items: from log p of tokens to sums over items, and from slopes of items back to tokens. */
#include "trial/objective.h"

#include <math.h>

op_status op_objective_check_normaliser(const op_signal *s, op_error *e)
{
    return s->normaliser > 0 ? OP_OK : op_error_set(e, OP_ERR_ARG, "the normaliser is %g, expected more than 0", s->normaliser);
}

op_status op_item_sums(const op_batch *b, const op_signal *s, const float *logp, size_t n_items, double *sum, double *size, op_error *e)
{
    for (size_t i = 0; i < n_items; i++) {
        sum[i] = 0;
        if (size)
            size[i] = 0;
    }
    for (int32_t q = 0; q < b->n_seqs; q++) {
        int32_t i = op_item_of(s, q), first = b->seqs[q].start;
        if (i < 0)
            continue;
        if ((size_t)i >= n_items)
            return op_error_set(e, OP_ERR_ARG, "item %d of the batch, expected 0..%zu", i, n_items - 1);
        for (int32_t t = first; t < first + b->seqs[q].length; t++) {
            double w = s->weight[t];
            if (w == 0)
                continue;
            bool known = s->reference && !isnan(s->reference[t]);
            sum[i] += w * ((double)logp[t] - (known ? (double)s->reference[t] : 0));
            if (size)
                size[i] += fabs(w);
        }
    }
    return OP_OK;
}

void op_item_slopes(const op_batch *b, const op_signal *s, const double *slope_of_item, float *slope)
{
    for (int32_t q = 0; q < b->n_seqs; q++) {
        int32_t i = op_item_of(s, q), first = b->seqs[q].start;
        for (int32_t t = first; t < first + b->seqs[q].length; t++)
            slope[t] = i < 0 ? 0 : (float)(slope_of_item[i] * (double)s->weight[t]);
    }
}
