/* Attention of the reference backend: row by row, every visible key in turn, scores recomputed instead of kept. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "ops/ref/ref.h"

enum { D_MAX = 1024 };

static double dot(int D, const float *a, const float *b)
{
    double sum = 0;
    for (int d = 0; d < D; d++)
        sum += (double)a[d] * b[d];
    return sum;
}

/* One query over the keys row[0..n-1]: out[D] and the log of the sum of exp of the scaled scores. No key: 0 and -inf. */
static double attend(int D, double scale, const float *q, int n, const int32_t *row, const float *k, const float *v,
                     size_t ld, float *out)
{
    double max = -INFINITY, sum = 0, acc[D_MAX] = {0};
    for (int j = 0; j < n; j++)
        max = fmax(max, scale * dot(D, q, k + row[j] * ld));
    for (int j = 0; j < n; j++) {
        double p = exp(scale * dot(D, q, k + row[j] * ld) - max);
        sum += p;
        for (int d = 0; d < D; d++)
            acc[d] += p * v[row[j] * ld + d];
    }
    for (int d = 0; d < D; d++)
        out[d] = n ? (float)(acc[d] / sum) : 0;
    return n ? max + log(sum) : -INFINITY;
}

/* The rows that row i of sequence s sees, into row[]; returns how many. */
static int visible(const op_attention *a, int s, int i, int32_t *row)
{
    int n = 0, query = a->start[s] + i;
    for (int e = a->first_seg[s]; e < a->first_seg[s + 1]; e++)
        for (int j = 0; j < a->seg[e].length; j++)
            row[n++] = a->seg[e].start + j;
    for (int j = 0; j <= i; j++)
        row[n++] = a->start[s] + j;
    if (a->window == 0)
        return n;
    int kept = 0;
    for (int j = 0; j < n; j++)
        if (a->position[row[j]] > a->position[query] - a->window)
            row[kept++] = row[j];
    return kept;
}

static op_status attention(const op_attention *a, const void *qkv, void *out, float *lse)
{
    if (a->D > D_MAX)
        return OP_ERR_UNSUPPORTED;
    int32_t *row = op_alloc_array((size_t)a->T, sizeof *row);
    if (!row)
        return OP_ERR_NOMEM;
    const float *x = qkv;
    memset(out, 0, (size_t)a->T * a->H * a->D * sizeof(float));
    for (int s = 0; s < a->n_seqs; s++)
        for (int i = 0; i < a->length[s]; i++) {
            size_t t = (size_t)(a->start[s] + i);
            int n = visible(a, s, i, row);
            for (int h = 0; h < a->H; h++) {
                const float *k = x + (a->H + h / (a->H / a->G)) * a->D, *v = k + a->G * a->D;
                double l = attend(a->D, a->scale, x + t * a->ld + h * a->D, n, row, k, v, (size_t)a->ld,
                                  (float *)out + (t * a->H + h) * a->D);
                if (lse)
                    lse[t * a->H + h] = (float)l;
            }
        }
    op_free(row);
    return OP_OK;
}

/* p = exp(scale q k - lse); dp = dout v; ds = p (dp - dout out); dq = scale ds k, dk = scale ds q, dv = p dout */
static void attend_backward(const op_attention *a, int h, size_t t, int n, const int32_t *row, const float *x,
                            const float *out, double lse, const float *dout, double *dx)
{
    int D = a->D, key = (a->H + h / (a->H / a->G)) * D, value = key + a->G * D;
    size_t ld = (size_t)a->ld, q = t * ld + (size_t)(h * D);
    double delta = dot(D, dout, out);
    for (int j = 0; j < n; j++) {
        size_t k = row[j] * ld + key, v = row[j] * ld + value;
        double p = exp(a->scale * dot(D, x + q, x + k) - lse), ds = p * (dot(D, dout, x + v) - delta) * a->scale;
        for (int d = 0; d < D; d++) {
            dx[q + d] += ds * x[k + d];
            dx[k + d] += ds * x[q + d];
            dx[v + d] += p * dout[d];
        }
    }
}

static op_status attention_backward(const op_attention *a, const void *qkv, const void *out, const float *lse,
                                    const void *dout, void *dqkv)
{
    int32_t *row = op_alloc_array((size_t)a->T, sizeof *row);
    double *dx = op_alloc_zero((size_t)a->T * (size_t)a->ld, sizeof *dx);
    if (!row || !dx) {
        op_free(row);
        op_free(dx);
        return OP_ERR_NOMEM;
    }
    for (int s = 0; s < a->n_seqs; s++)
        for (int i = 0; i < a->length[s]; i++) {
            size_t t = (size_t)(a->start[s] + i);
            int n = visible(a, s, i, row);
            for (int h = 0; h < a->H; h++) {
                size_t at = t * a->H + h;
                attend_backward(a, h, t, n, row, qkv, (const float *)out + at * a->D, lse[at],
                                (const float *)dout + at * a->D, dx);
            }
        }
    size_t width = (size_t)(a->H + 2 * a->G) * a->D;
    for (size_t t = 0; t < (size_t)a->T; t++)
        for (size_t i = 0; i < width; i++)
            ((float *)dqkv)[t * a->ld + i] = (float)dx[t * a->ld + i];
    op_free(row);
    op_free(dx);
    return OP_OK;
}

static op_status attention_cached(const op_cached_attention *a, const void *q, const void *k, const void *v, void *out)
{
    if (a->D > D_MAX)
        return OP_ERR_UNSUPPORTED;
    size_t most = 0;
    for (int r = 0; r < a->R; r++) {
        size_t n = 0;
        for (int e = a->first_seg[r]; e < a->first_seg[r + 1]; e++)
            n += (size_t)a->seg[e].length;
        most = n > most ? n : most;
    }
    int32_t *row = op_alloc_array(most, sizeof *row);
    if (!row)
        return OP_ERR_NOMEM;
    for (int r = 0; r < a->R; r++) {
        int n = 0;
        for (int e = a->first_seg[r]; e < a->first_seg[r + 1]; e++)
            for (int j = a->seg[e].start; j < a->seg[e].start + a->seg[e].length; j++)
                if (a->window == 0 || a->key_position[j] > a->position[r] - a->window)
                    row[n++] = j;
        for (int h = 0; h < a->H; h++) {
            size_t group = (size_t)(h / (a->H / a->G)) * a->D;
            attend(a->D, a->scale, (const float *)q + (size_t)r * a->ldq + (size_t)h * a->D, n, row,
                   (const float *)k + group, (const float *)v + group, (size_t)a->ldkv,
                   (float *)out + ((size_t)r * a->H + h) * a->D);
        }
    }
    op_free(row);
    return OP_OK;
}

void op_ref_attention(op_ops *t)
{
    t->attention = attention;
    t->attention_backward = attention_backward;
    t->attention_cached = attention_cached;
}
