/* Row-wise ops: memory-bound loops, one pass where one is enough, parallel over rows. Sums over rows (gradients of norm
 * weights, of biases and of the embedding) are parallel over columns instead: no partial sums, and the same bits for
 * every number of threads. */
#include <math.h>
#include <omp.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/simd.h"

static void to_act(size_t n, const float *x, void *y_)
{
    act *y = y_;
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++)
        y[i] = to_act1(x[i]);
}

static void from_act(size_t n, const void *x_, float *y)
{
    const act *x = x_;
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++)
        y[i] = from_act1(x[i]);
}

static void add(size_t n, const void *x_, void *y_)
{
    const act *x = x_;
    act *y = y_;
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++)
        y[i] = to_act1(from_act1(y[i]) + from_act1(x[i]));
}

static void add_f32(size_t n, const float *x, float *y)
{
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void embed(int T, int C, const int32_t *ids, const void *table, bool table_act, float *out)
{
#pragma omp parallel for schedule(static) if ((size_t)T * C >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        float *o = out + (size_t)t * C;
        size_t at = (size_t)ids[t] * C;
        if (!table_act) {
            memcpy(o, (const float *)table + at, (size_t)C * sizeof *o);
            continue;
        }
        const act *row = (const act *)table + at;
#pragma omp simd
        for (int c = 0; c < C; c++)
            o[c] = from_act1(row[c]);
    }
}

/* The columns [*from, *to) of C that thread i of n owns, in whole cache lines of floats. */
static void columns(int C, int i, int n, int *from, int *to)
{
    int lines = (C + 15) / 16;
    *from = lines * i / n * 16;
    *to = lines * (i + 1) / n * 16;
    if (*to > C)
        *to = C;
}

static void embed_backward(int T, int C, const int32_t *ids, const float *dout, float *dtable)
{
#pragma omp parallel if ((size_t)T * C >= PARALLEL_FROM)
    {
        int from, to;
        columns(C, omp_get_thread_num(), omp_get_num_threads(), &from, &to);
        for (int t = 0; t < T; t++) {
            const float *d = dout + (size_t)t * C;
            float *row = dtable + (size_t)ids[t] * C;
#pragma omp simd
            for (int c = from; c < to; c++)
                row[c] += d[c];
        }
    }
}

/* The first row of each id collects those that follow. Looking for them costs T^2 / 2 comparisons of integers: less than the sums, up to thousands of rows. */
static void embed_backward_act(int T, int C, const int32_t *ids, const float *dout, void *dtable)
{
    enum { PART = 64 };
#pragma omp parallel for schedule(static) if ((size_t)T * C >= PARALLEL_FROM)
    for (int part = 0; part < (C + PART - 1) / PART; part++) {
        int from = part * PART, n = C - from < PART ? C - from : PART;
        for (int t = 0; t < T; t++) {
            float sum[PART] = {0};
            bool seen = false;
            for (int u = 0; u < t; u++)
                seen |= ids[u] == ids[t];
            for (int u = t; u < T && !seen; u++)
                for (int c = 0; c < n && ids[u] == ids[t]; c++)
                    sum[c] += dout[(size_t)u * C + from + c];
            act *row = (act *)dtable + (size_t)ids[t] * C + from;
            for (int c = 0; c < n && !seen; c++)
                row[c] = to_act1(from_act1(row[c]) + sum[c]);
        }
    }
}

static void bias_backward(int M, int N, const void *dy, int ld, float *db)
{
#pragma omp parallel if ((size_t)M * N >= PARALLEL_FROM)
    {
        int from, to;
        columns(N, omp_get_thread_num(), omp_get_num_threads(), &from, &to);
        for (int m = 0; m < M; m++) {
            const act *d = (const act *)dy + (size_t)m * ld;
#pragma omp simd
            for (int n = from; n < to; n++)
                db[n] += from_act1(d[n]);
        }
    }
}

static void rmsnorm(int T, int C, const float *x, const float *g, float eps, void *y, float *rstd)
{
#pragma omp parallel for schedule(static) if ((size_t)T * C >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        const float *row = x + (size_t)t * C;
        act *out = (act *)y + (size_t)t * C;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++)
            sum += row[c] * row[c];
        float r = 1 / sqrtf(sum / (float)C + eps);
#pragma omp simd
        for (int c = 0; c < C; c++)
            out[c] = to_act1(row[c] * r * g[c]);
        if (rstd)
            rstd[t] = r;
    }
}

/* dx += rstd (d - u mean(d u) - mean(d)) with u = (x - mean) rstd and d = g dy; the RMS norm has no means. */
static inline void norm_backward_row(int C, const float *x, float mean, float r, bool centred, const float *g,
                                     const act *dy, float *dx)
{
    float du = 0, sum = 0;
#pragma omp simd reduction(+ : du, sum)
    for (int c = 0; c < C; c++) {
        float d = g[c] * from_act1(dy[c]);
        du += d * (x[c] - mean);
        sum += d;
    }
    float a = r * r * r * du / (float)C, b = centred ? r * sum / (float)C : 0;
#pragma omp simd
    for (int c = 0; c < C; c++)
        dx[c] += r * g[c] * from_act1(dy[c]) - (x[c] - mean) * a - b;
}

/* dg += sum over rows of dy (x - mean) rstd, db += sum of dy; mean and db may be NULL */
static void norm_backward_weights(int T, int C, const float *x, const float *mean, const float *rstd, const void *dy,
                                  float *dg, float *db)
{
#pragma omp parallel if ((size_t)T * C >= PARALLEL_FROM)
    {
        int from, to;
        columns(C, omp_get_thread_num(), omp_get_num_threads(), &from, &to);
        for (int t = 0; t < T; t++) {
            const float *row = x + (size_t)t * C;
            const act *d = (const act *)dy + (size_t)t * C;
            float m = mean ? mean[t] : 0, r = rstd[t];
#pragma omp simd
            for (int c = from; c < to; c++)
                dg[c] += from_act1(d[c]) * (row[c] - m) * r;
            if (!db)
                continue;
#pragma omp simd
            for (int c = from; c < to; c++)
                db[c] += from_act1(d[c]);
        }
    }
}

static void rmsnorm_backward(int T, int C, const float *x, const float *g, const float *rstd, const void *dy,
                             float *dx, float *dg)
{
#pragma omp parallel for schedule(static) if ((size_t)T * C >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * C;
        norm_backward_row(C, x + at, 0, rstd[t], false, g, (const act *)dy + at, dx + at);
    }
    if (dg)
        norm_backward_weights(T, C, x, NULL, rstd, dy, dg, NULL);
}

static void layernorm(int T, int C, const float *x, const float *g, const float *b, float eps, void *y, float *mean,
                      float *rstd)
{
#pragma omp parallel for schedule(static) if ((size_t)T * C >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        const float *row = x + (size_t)t * C;
        act *out = (act *)y + (size_t)t * C;
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++)
            sum += row[c];
        float m = sum / (float)C;
#pragma omp simd reduction(+ : squares)
        for (int c = 0; c < C; c++)
            squares += (row[c] - m) * (row[c] - m);
        float r = 1 / sqrtf(squares / (float)C + eps);
#pragma omp simd
        for (int c = 0; c < C; c++)
            out[c] = to_act1((row[c] - m) * r * g[c] + b[c]);
        if (mean)
            mean[t] = m;
        if (rstd)
            rstd[t] = r;
    }
}

static void layernorm_backward(int T, int C, const float *x, const float *g, const float *mean, const float *rstd,
                               const void *dy, float *dx, float *dg, float *db)
{
#pragma omp parallel for schedule(static) if ((size_t)T * C >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * C;
        norm_backward_row(C, x + at, mean[t], rstd[t], true, g, (const act *)dy + at, dx + at);
    }
    if (dg)
        norm_backward_weights(T, C, x, mean, rstd, dy, dg, db);
}

static void headnorm(int T, int H, int D, int ld, void *x, const float *g, float eps, float *rstd)
{
#pragma omp parallel for schedule(static) if ((size_t)T * H * D >= PARALLEL_FROM)
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++) {
            act *row = (act *)x + (size_t)t * ld + h * D;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < D; d++)
                sum += from_act1(row[d]) * from_act1(row[d]);
            float r = 1 / sqrtf(sum / (float)D + eps);
#pragma omp simd
            for (int d = 0; d < D; d++)
                row[d] = to_act1(from_act1(row[d]) * r * g[d]);
            if (rstd)
                rstd[(size_t)t * H + h] = r;
        }
}

/* dg first: it needs dy, which the second pass turns into dx. */
static void headnorm_backward(int T, int H, int D, const void *x, const float *g, const float *rstd, int ld, void *d_,
                              float *dg)
{
#pragma omp parallel if (dg && (size_t)T * H * D >= PARALLEL_FROM)
    {
        int from = 0, to = 0;
        if (dg)
            columns(D, omp_get_thread_num(), omp_get_num_threads(), &from, &to);
        for (int t = 0; t < T; t++)
            for (int h = 0; h < H; h++) {
                const act *row = (const act *)x + ((size_t)t * H + h) * D, *dy = (act *)d_ + (size_t)t * ld + h * D;
                float r = rstd[(size_t)t * H + h];
#pragma omp simd
                for (int d = from; d < to; d++)
                    dg[d] += from_act1(dy[d]) * from_act1(row[d]) * r;
            }
    }
#pragma omp parallel for schedule(static) if ((size_t)T * H * D >= PARALLEL_FROM)
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++) {
            const act *row = (const act *)x + ((size_t)t * H + h) * D;
            act *dy = (act *)d_ + (size_t)t * ld + h * D;
            float r = rstd[(size_t)t * H + h], du = 0;
#pragma omp simd reduction(+ : du)
            for (int d = 0; d < D; d++)
                du += g[d] * from_act1(dy[d]) * from_act1(row[d]);
            float a = r * r * r * du / (float)D;
#pragma omp simd
            for (int d = 0; d < D; d++)
                dy[d] = to_act1(r * g[d] * from_act1(dy[d]) - from_act1(row[d]) * a);
        }
}

static void rope(int T, int H, int D, int ld, const int32_t *position, const float *cosines, const float *sines,
                 bool inverse, void *x)
{
    int half = D / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) if ((size_t)T * H * D >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        const float *c = cosines + (size_t)position[t] * half, *s = sines + (size_t)position[t] * half;
        for (int h = 0; h < H; h++) {
            act *a = (act *)x + (size_t)t * ld + h * D, *b = a + half;
#pragma omp simd
            for (int i = 0; i < half; i++) {
                float u = from_act1(a[i]), v = from_act1(b[i]), w = sign * s[i];
                a[i] = to_act1(u * c[i] - v * w);
                b[i] = to_act1(v * c[i] + u * w);
            }
        }
    }
}

static void swiglu(int T, int F, const void *gu, void *y)
{
#pragma omp parallel for schedule(static) if ((size_t)T * F >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        const act *g = (const act *)gu + (size_t)t * 2 * F, *u = g + F;
        act *out = (act *)y + (size_t)t * F;
#pragma omp simd
        for (int f = 0; f < F; f++) {
            float v = from_act1(g[f]);
            out[f] = to_act1(v / (1 + exp1(-v)) * from_act1(u[f]));
        }
    }
}

/* d silu(g)/dg = s (1 + g (1 - s)), s the logistic function of g */
static void swiglu_backward(int T, int F, const void *gu, const void *dy, void *dgu)
{
#pragma omp parallel for schedule(static) if ((size_t)T * F >= PARALLEL_FROM)
    for (int t = 0; t < T; t++) {
        const act *g = (const act *)gu + (size_t)t * 2 * F, *u = g + F, *d = (const act *)dy + (size_t)t * F;
        act *dg = (act *)dgu + (size_t)t * 2 * F, *du = dg + F;
#pragma omp simd
        for (int f = 0; f < F; f++) {
            float v = from_act1(g[f]), w = from_act1(u[f]), e = from_act1(d[f]), s = 1 / (1 + exp1(-v));
            dg[f] = to_act1(e * w * s * (1 + v * (1 - s)));
            du[f] = to_act1(e * v * s);
        }
    }
}

/* 0.5 (1 + tanh(u)) is the logistic function of 2u, u = sqrt(2/pi) (v + 0.044715 v^3). */
static void gelu(size_t n, const void *x_, void *y_)
{
    const act *x = x_;
    act *y = y_;
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++) {
        float v = from_act1(x[i]);
        y[i] = to_act1(v / (1 + exp1(-1.5957691216f * (v + 0.044715f * v * v * v))));
    }
}

static void gelu_backward(size_t n, const void *x_, const void *dy_, void *dx_)
{
    const act *x = x_, *dy = dy_;
    act *dx = dx_;
#pragma omp parallel for simd schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++) {
        float v = from_act1(x[i]), s = 1 / (1 + exp1(-1.5957691216f * (v + 0.044715f * v * v * v)));
        float slope = s + v * s * (1 - s) * 1.5957691216f * (1 + 0.134145f * v * v);
        dx[i] = to_act1(from_act1(dy[i]) * slope);
    }
}

/* op_rng_block for the counters first .. first + 15: word[16 i + j] is word i of counter first + j. */
static void random_words(uint64_t seed, uint64_t stream, uint64_t first, uint32_t word[64])
{
    uint64_t c0[16], c1[16], c2[16], c3[16]; /* as wide as their products, which vectorises best */
    for (uint64_t j = 0; j < 16; j++) {
        c0[j] = (uint32_t)(first + j);
        c1[j] = (first + j) >> 32;
        c2[j] = (uint32_t)stream;
        c3[j] = stream >> 32;
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
#pragma omp simd
        for (int j = 0; j < 16; j++) {
            uint64_t p0 = 0xD2511F53u * c0[j], p1 = 0xCD9E8D57u * c2[j];
            c0[j] = p1 >> 32 ^ c1[j] ^ k0;
            c2[j] = p0 >> 32 ^ c3[j] ^ k1;
            c1[j] = (uint32_t)p1;
            c3[j] = (uint32_t)p0;
        }
    for (int j = 0; j < 16; j++) {
        word[j] = (uint32_t)c0[j];
        word[16 + j] = (uint32_t)c1[j];
        word[32 + j] = (uint32_t)c2[j];
        word[48 + j] = (uint32_t)c3[j];
    }
}

/* In each block of 64 elements, element e takes word e / 16 of counter e % 16 of the block's 16 counters. */
static void dropout(size_t n, float p, uint64_t seed, uint64_t stream, uint64_t first, const void *x_, void *y_)
{
    const act *x = x_;
    act *y = y_;
    uint64_t block = first / 64, end = (first + n + 63) / 64;
    float up = 1 / (1 - p);
    uint32_t bound = (uint32_t)ceil((double)p * 0x1p32);
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (uint64_t b = block; b < end; b++) {
        uint32_t word[64];
        random_words(seed, stream, b * 16, word);
        uint64_t from = b * 64 < first ? first : b * 64, to = b * 64 + 64 > first + n ? first + n : b * 64 + 64;
        const uint32_t *w = word + from % 64;
        const act *in = x + (from - first);
        act *out = y + (from - first);
#pragma omp simd
        for (uint64_t i = 0; i < to - from; i++)
            out[i] = to_act1(w[i] >= bound ? from_act1(in[i]) * up : 0);
    }
}

void OP_CPU_NAME(rows)(op_ops *t)
{
    t->to_act = to_act;
    t->from_act = from_act;
    t->add = add;
    t->add_f32 = add_f32;
    t->embed = embed;
    t->embed_backward = embed_backward;
    t->embed_backward_act = embed_backward_act;
    t->bias_backward = bias_backward;
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
