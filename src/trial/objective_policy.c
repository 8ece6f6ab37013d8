#include "trial/objective.h"

#include <math.h>

/* A ratio beyond e^20 says that a token is not what the policy does: it is held there, so that one token cannot make the loss infinite. */
static const double far_away = 20;

static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    const op_policy *p = ctx;
    op_status status = op_objective_check_normaliser(s, e);
    if (status)
        return status;
    double sum = 0;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        double A = s->weight[t], rho = 1;
        if (A != 0 && !p->fresh && s->behaviour && !isnan(s->behaviour[t]))
            rho = exp(fmin((double)logp[t] - (double)s->behaviour[t], far_away));
        bool clipped = A > 0 ? rho > 1 + p->clip_high : rho < 1 - p->clip_low; /* the minimum is the clipped side, which is flat */
        slope[t] = clipped || A == 0 ? 0 : (float)(-A * rho / s->normaliser);
        sum -= A * (!clipped ? rho : A > 0 ? 1 + p->clip_high : 1 - p->clip_low);
    }
    if (logp)
        *loss = sum / s->normaliser;
    return OP_OK;
}

op_objective op_objective_policy(const op_policy *p)
{
    return (op_objective){.name = "policy", .ctx = (void *)(uintptr_t)p, .linear = p->fresh, .eval = eval};
}
