#include <operant/objective.h>

#include <math.h>

static float largest(int32_t V, const float *x)
{
    float max = x[0];
    for (int32_t v = 1; v < V; v++)
        max = fmaxf(max, x[v]);
    return max;
}

/* With z, r the logits and lse their log-sum-exp: log pi_v - log ref_v = (z_v - r_v) - (lse z - lse r). dlogits holds exp(z - max) on the way. */
double op_full_kl(int32_t V, const float *logits, const float *reference, double weight, float *dlogits)
{
    double top = (double)largest(V, logits), top_ref = (double)largest(V, reference), sum = 0, sum_ref = 0, gap = 0;
    for (int32_t v = 0; v < V; v++) {
        double p = exp((double)logits[v] - top);
        dlogits[v] = (float)p;
        sum += p;
        sum_ref += exp((double)reference[v] - top_ref);
        gap += p * ((double)logits[v] - (double)reference[v]);
    }
    gap /= sum; /* the mean of z - r under pi */
    for (int32_t v = 0; v < V; v++)
        dlogits[v] = (float)(weight * (double)dlogits[v] / sum * ((double)logits[v] - (double)reference[v] - gap));
    double kl = gap - (top + log(sum) - top_ref - log(sum_ref));
    return kl < 0 ? 0 : kl; /* rounding; what is not a number stays so */
}
