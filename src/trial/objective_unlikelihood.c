#include "trial/objective.h"

#include <math.h>

/* -|w| log(1 - p) has the slope |w| p / (1 - p), which has no bound where p is 1: from 1 - 1e-6 on, which is as near as floats tell, the loss is
 * a straight line. (The slope of the token's logit, (1 - p) times this, stays below |w|.) */
static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    (void)ctx;
    op_status status = op_objective_check_normaliser(s, e);
    if (status)
        return status;
    const double edge = log1p(-1e-6);
    double sum = 0;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        slope[t] = 0;
        if (!(s->weight[t] < 0))
            continue;
        double w = -(double)s->weight[t], x = fmin((double)logp[t], edge), rest = -expm1(x), odds = (1 - rest) / rest;
        sum += w * (odds * ((double)logp[t] - x) - log(rest));
        slope[t] = (float)(w * odds / s->normaliser);
    }
    *loss = sum / s->normaliser;
    return OP_OK;
}

op_objective op_objective_unlikelihood(void)
{
    return (op_objective){.name = "unlikelihood", .eval = eval};
}
