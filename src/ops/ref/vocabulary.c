/* Log-probabilities and the optimiser of the reference backend. */
#include <math.h>

#include "ops/dynamic8.h"
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

/* The activations of this backend are floats. */
static void adamw_act(size_t n, float *p, const void *g, float *m, float *v, const op_adamw *o)
{
    adamw(n, p, g, m, v, o);
}

static double sum_squares_act(size_t n, const void *x)
{
    return sum_squares(n, x);
}

/* The code of x, 0 <= x <= 1: that of its lower or its upper neighbour, as near as it is. */
static unsigned code_of(double x, int top, double random)
{
    unsigned last = (2u << top) - 1, c = 0;
    while (c < last && op_dynamic8_value(c + 1, top) <= x)
        c++;
    if (c == last)
        return c;
    double low = op_dynamic8_value(c, top), high = op_dynamic8_value(c + 1, top);
    return (x - low) / (high - low) + random >= 1 ? c + 1 : c;
}

static void adamw8(size_t n, float *p, const void *g_, bool g_act, const op_moments8 *x, const op_adamw *o)
{
    (void)g_act;
    const float *g = g_;
    double c1 = 1 - pow(o->beta1, (double)o->step), c2 = 1 - pow(o->beta2, (double)o->step);
    for (size_t b = 0; b < n; b += OP_MOMENT_BLOCK) {
        double m[OP_MOMENT_BLOCK], v[OP_MOMENT_BLOCK], m_most = 0, v_most = 0;
        size_t count = n - b < OP_MOMENT_BLOCK ? n - b : OP_MOMENT_BLOCK;
        float *m_top = &x->m_top[b / OP_MOMENT_BLOCK], *v_top = &x->v_top[b / OP_MOMENT_BLOCK];
        for (size_t i = 0; i < count; i++) {
            double grad = (double)g[b + i] * o->grad_scale, sign = x->m[b + i] & OP_DYNAMIC8_SIGN ? -1 : 1;
            double old_m = sign * *m_top * op_dynamic8_value(x->m[b + i] & 127, OP_DYNAMIC8_TOP_M);
            double old_v = *v_top * op_dynamic8_value(x->v[b + i], OP_DYNAMIC8_TOP_V);
            m[i] = o->beta1 * old_m + (1.0 - o->beta1) * grad;
            v[i] = o->beta2 * old_v + (1.0 - o->beta2) * grad * grad;
            p[b + i] = (float)(p[b + i] * (1.0 - (double)o->lr * o->weight_decay) - o->lr * (m[i] / c1) / (sqrt(v[i] / c2) + o->eps));
            m_most = fmax(m_most, fabs(m[i]));
            v_most = fmax(v_most, v[i]);
        }
        *m_top = (float)m_most;
        *v_top = (float)v_most;
        for (size_t i = 0; i < count; i++) {
            uint32_t noise = op_dynamic8_noise((uint32_t)(b + i), o->noise);
            unsigned cm = m_most > 0 ? code_of(fabs(m[i]) / m_most, OP_DYNAMIC8_TOP_M, (noise & 0xffff) / 65536.0) : 0;
            unsigned cv = v_most > 0 ? code_of(v[i] / v_most, OP_DYNAMIC8_TOP_V, (double)(noise >> 16) / 65536.0) : 0;
            x->m[b + i] = (uint8_t)(m[i] < 0 ? cm | OP_DYNAMIC8_SIGN : cm);
            x->v[b + i] = (uint8_t)(v[i] > 0 && !cv ? 1 : cv);
        }
    }
}

void op_ref_vocabulary(op_ops *t)
{
    t->logprob = logprob;
    t->logprob_backward = logprob_backward;
    t->adamw = adamw;
    t->adamw_act = adamw_act;
    t->adamw8 = adamw8;
    t->sum_squares = sum_squares;
    t->sum_squares_act = sum_squares_act;
}
