#include "trial/objective.h"

#include <math.h>

/* With x = log ref - log pi: loss e^x - x - 1, slope 1 - e^x. x is held at 20, so that one token cannot make the loss infinite. */
static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    (void)ctx;
    op_status status = op_objective_check_normaliser(s, e);
    if (status)
        return status;
    double sum = 0;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        double w = s->weight[t];
        bool counts = w != 0 && s->reference && !isnan(s->reference[t]);
        double x = counts ? fmin((double)s->reference[t] - (double)logp[t], 20) : 0, less = -expm1(x);
        slope[t] = counts ? (float)(w * less / s->normaliser) : 0;
        sum -= counts ? w * (less + x) : 0;
    }
    *loss = sum / s->normaliser;
    return OP_OK;
}

op_objective op_objective_kl(void)
{
    return (op_objective){.name = "kl", .eval = eval};
}
