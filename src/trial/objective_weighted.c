#include <operant/objective.h>

/* L = -(1/Z) sum_t w_t log p_t, so the slope of token t is -w_t / Z whatever its log p. */
static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss,
                      op_error *e)
{
    (void)ctx;
    if (!(s->normaliser > 0))
        return op_error_set(e, OP_ERR_ARG, "the normaliser is %g, expected more than 0", s->normaliser);
    double sum = 0;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        slope[t] = (float)(-(double)s->weight[t] / s->normaliser);
        if (logp && s->weight[t] != 0)
            sum -= (double)s->weight[t] * (double)logp[t];
    }
    if (logp)
        *loss = sum / s->normaliser;
    return OP_OK;
}

op_objective op_objective_weighted(void)
{
    return (op_objective){.name = "weighted", .linear = true, .eval = eval};
}
