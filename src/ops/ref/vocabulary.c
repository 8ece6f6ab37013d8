/* Log-probabilities and the optimiser of the reference backend. */
#include <math.h>

#include "ops/ref/ref.h"

static void logprob(int n, int V, const float *logits, const int32_t *target, float *lse, float *logp)
{
    for (int i = 0; i < n; i++) {
        const float *x = logits + (size_t)i * V;
        double max = -INFINITY, sum = 0;
        for (int v = 0; v < V; v++)
            max = fmax(max, x[v]);
        for (int v = 0; v < V; v++)
            sum += x[v] == -INFINITY ? 0 : exp(x[v] - max);
        double l = sum > 0 ? max + log(sum) : -INFINITY;
        lse[i] = (float)l;
        if (logp)
            logp[i] = x[target[i]] == -INFINITY ? -INFINITY : (float)(x[target[i]] - l);
    }
}

static void logprob_backward(int n, int V, const float *logits, const float *lse, const int32_t *target,
                             const float *dlogp, const float *extra, void *dlogits)
{
    for (int i = 0; i < n; i++)
        for (int v = 0; v < V; v++) {
            size_t at = (size_t)i * V + v;
            double p = logits[at] == -INFINITY ? 0 : exp((double)logits[at] - lse[i]);
            ((float *)dlogits)[at] = (float)(dlogp[i] * ((v == target[i]) - p) + (extra ? extra[at] : 0));
        }
}

static void adamw(size_t n, float *p, const float *g, float *m, float *v, const op_adamw *o)
{
    double c1 = 1 - pow(o->beta1, (double)o->step), c2 = 1 - pow(o->beta2, (double)o->step);
    for (size_t i = 0; i < n; i++) {
        double grad = (double)g[i] * o->grad_scale;
        double m1 = o->beta1 * (double)m[i] + (1.0 - o->beta1) * grad;
        double v1 = o->beta2 * (double)v[i] + (1.0 - o->beta2) * grad * grad;
        m[i] = (float)m1;
        v[i] = (float)v1;
        p[i] = (float)(p[i] * (1.0 - (double)o->lr * o->weight_decay) - o->lr * (m1 / c1) / (sqrt(v1 / c2) + o->eps));
    }
}

static double sum_squares(size_t n, const float *x)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

void op_ref_vocabulary(op_ops *t)
{
    t->logprob = logprob;
    t->logprob_backward = logprob_backward;
    t->adamw = adamw;
    t->sum_squares = sum_squares;
}
