#include "trial/objective.h"

#include <math.h>

/* -|w| log(1 - p) has the slope |w| p / (1 - p), which has no bound where p is 1. */
static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    (void)ctx;
    op_status status = op_objective_check_normaliser(s, e);
    if (status)
        return status;
    double sum = 0;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        slope[t] = 0;
        if (!(s->weight[t] < 0))
            continue;
        double w = -(double)s->weight[t], rest = fmax(-expm1((double)logp[t]), 1e-6);
        sum -= w * log(rest);
        slope[t] = (float)(w * (1 - rest) / rest / s->normaliser);
    }
    *loss = sum / s->normaliser;
    return OP_OK;
}

op_objective op_objective_unlikelihood(void)
{
    return (op_objective){.name = "unlikelihood", .eval = eval};
}
