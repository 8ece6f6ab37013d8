/* Log-probabilities over the vocabulary and the optimiser's pass over the parameters. */
#include <math.h>
#include <omp.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/simd.h"

static void logprob(int n, int V, const float *logits, const int32_t *target, float *lse, float *logp)
{
#pragma omp parallel for schedule(static) if ((size_t)n * V >= PARALLEL_FROM)
    for (int i = 0; i < n; i++) {
        const float *x = logits + (size_t)i * V;
        float max = -INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
        for (int v = 0; v < V; v++)
            max = x[v] > max ? x[v] : max;
        float off = max == -INFINITY ? 0 : max;
#pragma omp simd reduction(+ : sum)
        for (int v = 0; v < V; v++)
            sum += exp1(x[v] - off);
        float l = logf(sum);
        lse[i] = off + l;
        if (logp) /* the maximum goes first: lse has lost digits of a small logp */
            logp[i] = x[target[i]] == -INFINITY ? -INFINITY : x[target[i]] - off - l;
    }
}

static void logprob_backward(int n, int V, const float *logits, const float *lse, const int32_t *target,
                             const float *dlogp, const float *extra, void *dlogits)
{
#pragma omp parallel for schedule(static) if ((size_t)n * V >= PARALLEL_FROM)
    for (int i = 0; i < n; i++) {
        const float *x = logits + (size_t)i * V, *e = extra ? extra + (size_t)i * V : NULL;
        act *d = (act *)dlogits + (size_t)i * V;
        float l = lse[i] == -INFINITY ? 0 : lse[i], w = -dlogp[i];
        int hit = target[i];
        float at_hit = w * exp1(x[hit] - l) - w + (e ? e[hit] : 0);
        if (e)
#pragma omp simd
            for (int v = 0; v < V; v++)
                d[v] = to_act1(w * exp1(x[v] - l) + e[v]);
        else
#pragma omp simd
            for (int v = 0; v < V; v++)
                d[v] = to_act1(w * exp1(x[v] - l));
        d[hit] = to_act1(at_hit);
    }
}

static inline __attribute__((always_inline)) void adamw_any(size_t n, float *p, const void *g, bool g_act, float *m, float *v, const op_adamw *o)
{
    float c1 = (float)(1 - pow(o->beta1, (double)o->step)), c2 = (float)(1 - pow(o->beta2, (double)o->step));
    float keep = 1 - o->lr * o->weight_decay, rate = o->lr / c1, root = 1 / sqrtf(c2), eps = o->eps;
    float b1 = o->beta1, b2 = o->beta2, scale = o->grad_scale;
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++) {
        float grad = (g_act ? from_act1(((const act *)g)[i]) : ((const float *)g)[i]) * scale;
        float m1 = b1 * m[i] + (1 - b1) * grad, v1 = b2 * v[i] + (1 - b2) * grad * grad;
        m[i] = m1;
        v[i] = v1;
        p[i] = p[i] * keep - rate * m1 / (sqrtf(v1) * root + eps);
    }
}

static void adamw(size_t n, float *p, const float *g, float *m, float *v, const op_adamw *o)
{
    adamw_any(n, p, g, false, m, v, o);
}

static void adamw_act(size_t n, float *p, const void *g, float *m, float *v, const op_adamw *o)
{
    adamw_any(n, p, g, true, m, v, o);
}

/* One partial sum a thread, added in the order of the threads. */
static inline __attribute__((always_inline)) double sum_any(size_t n, const void *x, bool x_act)
{
    enum { MOST = 256 };
    double part[MOST] = {0}, sum = 0;
    int threads = omp_get_max_threads() < MOST ? omp_get_max_threads() : MOST;
#pragma omp parallel num_threads(threads) if (n >= PARALLEL_FROM)
    {
        size_t i = (size_t)omp_get_thread_num(), k = (size_t)omp_get_num_threads();
        double s = 0;
#pragma omp simd reduction(+ : s)
        for (size_t j = n / k * i + (n % k) * i / k; j < n / k * (i + 1) + (n % k) * (i + 1) / k; j++)
        {
            double y = x_act ? from_act1(((const act *)x)[j]) : ((const float *)x)[j];
            s += y * y;
        }
        part[i] = s;
    }
    for (int i = 0; i < threads; i++)
        sum += part[i];
    return sum;
}

static double sum_squares(size_t n, const float *x)
{
    return sum_any(n, x, false);
}

static double sum_squares_act(size_t n, const void *x)
{
    return sum_any(n, x, true);
}

void OP_CPU_NAME(vocabulary)(op_ops *t)
{
    t->logprob = logprob;
    t->logprob_backward = logprob_backward;
    t->adamw = adamw;
    t->adamw_act = adamw_act;
    t->sum_squares = sum_squares;
    t->sum_squares_act = sum_squares_act;
}
