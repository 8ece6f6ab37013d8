/* Row-wise ops of the reference backend. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "ops/ref/ref.h"

static void copy(size_t n, const float *x, void *y)
{
    memcpy(y, x, n * sizeof *x);
}

static void copy_back(size_t n, const void *x, float *y)
{
    memcpy(y, x, n * sizeof *y);
}

static void add_f32(size_t n, const float *x, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void add(size_t n, const void *x, void *y)
{
    add_f32(n, x, y);
}

static void embed(int T, int C, const int32_t *ids, const void *table, bool table_act, float *out)
{
    (void)table_act;
    for (int t = 0; t < T; t++)
        memcpy(out + (size_t)t * C, (const float *)table + (size_t)ids[t] * C, (size_t)C * sizeof *out);
}

static void embed_backward(int T, int C, const int32_t *ids, const float *dout, float *dtable)
{
    for (int t = 0; t < T; t++)
        add_f32((size_t)C, dout + (size_t)t * C, dtable + (size_t)ids[t] * C);
}

/* The activations of this backend are floats. */
static void embed_backward_act(int T, int C, const int32_t *ids, const float *dout, void *dtable)
{
    embed_backward(T, C, ids, dout, dtable);
}

/* Both norms are y = (x - mean) rstd g + b; for the RMS norm mean and b are 0. Returns rstd. */
static double norm_row(int C, const float *x, double mean, const float *g, const float *b, double eps, float *y)
{
    double sum = 0;
    for (int c = 0; c < C; c++)
        sum += (x[c] - mean) * (x[c] - mean);
    double r = 1 / sqrt(sum / C + eps);
    for (int c = 0; c < C; c++)
        y[c] = (float)((x[c] - mean) * r * g[c] + (b ? b[c] : 0));
    return r;
}

/* With u = (x - mean) rstd and d = g dy:  dx = rstd (d - u mean(d u) - mean(d)), the last term only where a mean was
 * taken off; dg = dy u. add: dx += instead of =. dx may be dy. */
static void norm_row_backward(int C, const float *x, double mean, double r, bool centred, const float *g,
                              const float *dy, bool add_dx, float *dx, float *dg, float *db)
{
    double du = 0, d = 0;
    for (int c = 0; c < C; c++) {
        double e = (double)g[c] * dy[c];
        du += e * (x[c] - mean) * r;
        d += e;
    }
    for (int c = 0; c < C; c++) {
        double u = (x[c] - mean) * r, e = dy[c];
        if (dg)
            dg[c] += (float)(e * u);
        if (db)
            db[c] += (float)e;
        dx[c] = (float)(r * (g[c] * e - u * du / C - (centred ? d / C : 0)) + (add_dx ? dx[c] : 0));
    }
}

static void rmsnorm(int T, int C, const float *x, const float *g, float eps, void *y, float *rstd)
{
    for (int t = 0; t < T; t++) {
        double r = norm_row(C, x + (size_t)t * C, 0, g, NULL, eps, (float *)y + (size_t)t * C);
        if (rstd)
            rstd[t] = (float)r;
    }
}

static void rmsnorm_backward(int T, int C, const float *x, const float *g, const float *rstd, const void *dy,
                             float *dx, float *dg)
{
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * C;
        norm_row_backward(C, x + at, 0, rstd[t], false, g, (const float *)dy + at, true, dx + at, dg, NULL);
    }
}

static void layernorm(int T, int C, const float *x, const float *g, const float *b, float eps, void *y, float *mean,
                      float *rstd)
{
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * C;
        double m = 0;
        for (int c = 0; c < C; c++)
            m += x[at + c];
        m /= C;
        double r = norm_row(C, x + at, m, g, b, eps, (float *)y + at);
        if (mean)
            mean[t] = (float)m;
        if (rstd)
            rstd[t] = (float)r;
    }
}

static void layernorm_backward(int T, int C, const float *x, const float *g, const float *mean, const float *rstd,
                               const void *dy, float *dx, float *dg, float *db)
{
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * C;
        norm_row_backward(C, x + at, mean[t], rstd[t], true, g, (const float *)dy + at, true, dx + at, dg, db);
    }
}

static void headnorm(int T, int H, int D, int ld, void *x, const float *g, float eps, float *rstd)
{
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++) {
            float *row = (float *)x + (size_t)t * ld + h * D;
            double r = norm_row(D, row, 0, g, NULL, eps, row);
            if (rstd)
                rstd[(size_t)t * H + h] = (float)r;
        }
}

static void headnorm_backward(int T, int H, int D, const void *x, const float *g, const float *rstd, int ld, void *d,
                              float *dg)
{
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++) {
            float *row = (float *)d + (size_t)t * ld + h * D;
            size_t head = (size_t)t * H + h;
            norm_row_backward(D, (const float *)x + head * D, 0, rstd[head], false, g, row, false, row, dg, NULL);
        }
}

static void rope(int T, int H, int D, int ld, const int32_t *position, const float *cosines, const float *sines,
                 bool inverse, void *x)
{
    int half = D / 2;
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++)
            for (int i = 0; i < half; i++) {
                float *a = (float *)x + (size_t)t * ld + h * D + i, *b = a + half;
                size_t at = (size_t)position[t] * half + i;
                double c = cosines[at], s = inverse ? -sines[at] : sines[at], a0 = *a, b0 = *b;
                *a = (float)(a0 * c - b0 * s);
                *b = (float)(b0 * c + a0 * s);
            }
}

static void swiglu(int T, int F, const void *gu, void *y)
{
    for (int t = 0; t < T; t++) {
        const float *g = (const float *)gu + (size_t)t * 2 * F, *u = g + F;
        for (int f = 0; f < F; f++)
            ((float *)y)[(size_t)t * F + f] = (float)(g[f] / (1 + exp(-(double)g[f])) * u[f]);
    }
}

/* d silu(g)/dg = s (1 + g (1 - s)), s the logistic function of g */
static void swiglu_backward(int T, int F, const void *gu, const void *dy, void *dgu)
{
    for (int t = 0; t < T; t++) {
        const float *g = (const float *)gu + (size_t)t * 2 * F, *u = g + F;
        float *dg = (float *)dgu + (size_t)t * 2 * F, *du = dg + F;
        for (int f = 0; f < F; f++) {
            double s = 1 / (1 + exp(-(double)g[f])), d = ((const float *)dy)[(size_t)t * F + f], g0 = g[f], u0 = u[f];
            dg[f] = (float)(d * u0 * s * (1 + g0 * (1 - s)));
            du[f] = (float)(d * g0 * s);
        }
    }
}

static const double gelu_a = 0.79788456080286535588, gelu_b = 0.044715; /* sqrt(2/pi) and the cubic's weight */

static void gelu(size_t n, const void *x, void *y)
{
    for (size_t i = 0; i < n; i++) {
        double v = ((const float *)x)[i];
        ((float *)y)[i] = (float)(0.5 * v * (1 + tanh(gelu_a * (v + gelu_b * v * v * v))));
    }
}

static void gelu_backward(size_t n, const void *x, const void *dy, void *dx)
{
    for (size_t i = 0; i < n; i++) {
        double v = ((const float *)x)[i], t = tanh(gelu_a * (v + gelu_b * v * v * v));
        double slope = 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * gelu_a * (1 + 3 * gelu_b * v * v);
        ((float *)dx)[i] = (float)(((const float *)dy)[i] * slope);
    }
}

static void dropout(size_t n, float p, uint64_t seed, uint64_t stream, uint64_t first, const void *x, void *y)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t w[4];
        uint64_t e = first + i;
        op_rng_block(seed, stream, e / 64 * 16 + e % 16, w);
        bool keep = w[e % 64 / 16] >= p * 0x1p32;
        ((float *)y)[i] = keep ? (float)(((const float *)x)[i] / (1.0 - p)) : 0;
    }
}

void op_ref_rows(op_ops *t)
{
    t->to_act = copy;
    t->from_act = copy_back;
    t->add = add;
    t->add_f32 = add_f32;
    t->embed = embed;
    t->embed_backward = embed_backward;
    t->embed_backward_act = embed_backward_act;
    t->rmsnorm = rmsnorm;
    t->rmsnorm_backward = rmsnorm_backward;
    t->layernorm = layernorm;
    t->layernorm_backward = layernorm_backward;
    t->headnorm = headnorm;
    t->headnorm_backward = headnorm_backward;
    t->rope = rope;
    t->swiglu = swiglu;
    t->swiglu_backward = swiglu_backward;
    t->gelu = gelu;
    t->gelu_backward = gelu_backward;
    t->dropout = dropout;
}
