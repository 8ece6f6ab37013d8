/* The attention of one row, read out after a forward: the kernels keep no weights, so they are computed once more from q and k. */
#include <math.h>

#include "base/mem.h"
#include "model/parts.h"

/* The rows that precede `token` in its sequence, and itself: row[0 .. n-1], from the root on. */
static int32_t path_of(const op_attention *a, int32_t token, int32_t *row)
{
    int32_t n = 0, s = 0;
    while (token >= a->start[s] + a->length[s])
        s++;
    for (int32_t g = a->first_seg[s]; g < a->first_seg[s + 1]; g++)
        for (int32_t j = 0; j < a->seg[g].length; j++)
            row[n++] = a->seg[g].start + j;
    for (int32_t j = a->start[s]; j <= token; j++)
        row[n++] = j;
    return n;
}

/* score[H, n]: the scaled q k of every head; -inf outside the window. */
static void score_row(const op_model *m, const op_attention *a, const void *qkv, int32_t n, const int32_t *row, float *q, float *k, double *score)
{
    int32_t last = row[n - 1];
    m->ops->from_act((size_t)(a->H * a->D), op_act_column(m, qkv, (int64_t)last * a->ld), q);
    for (int32_t i = 0; i < n; i++) {
        bool seen = a->window == 0 || a->position[row[i]] > a->position[last] - a->window;
        m->ops->from_act((size_t)(a->G * a->D), op_act_column(m, qkv, (int64_t)row[i] * a->ld + a->H * a->D), k);
        for (int h = 0; h < a->H; h++) {
            const float *x = q + h * a->D, *y = k + h / (a->H / a->G) * a->D;
            double sum = 0;
            for (int d = 0; d < a->D; d++)
                sum += (double)x[d] * (double)y[d];
            score[(size_t)h * (size_t)n + (size_t)i] = seen ? (double)a->scale * sum : -INFINITY;
        }
    }
}

/* out[n] += the softmax of score[n], times share. */
static void add_softmax(int32_t n, const double *score, double share, float *out)
{
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++)
        max = fmax(max, score[i]);
    for (int32_t i = 0; i < n; i++)
        sum += exp(score[i] - max);
    for (int32_t i = 0; i < n; i++)
        out[i] += (float)(share * exp(score[i] - max) / sum);
}

op_status op_model_attention(const op_model *m, const op_pass *p, int32_t token, float *out, op_error *e)
{
    const op_attention *a;
    const void *qkv = op_pass_last_qkv(p, &a);
    if (!qkv)
        return op_error_set(e, OP_ERR_ARG, "attention can be read after a forward pass, before its backward");
    if (token < 0 || token >= a->T)
        return op_error_set(e, OP_ERR_ARG, "token %d, expected 0..%d", token, a->T - 1);
    size_t n = (size_t)a->position[token] + 1, H = (size_t)a->H;
    int32_t *row = op_alloc_array(n, sizeof *row);
    float *q = op_alloc_array((H + (size_t)a->G) * (size_t)a->D, sizeof *q);
    double *score = op_alloc_array(H * n, sizeof *score);
    op_status s = row && q && score ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the attention of a token");
    if (!s) {
        score_row(m, a, qkv, path_of(a, token, row), row, q, q + H * (size_t)a->D, score);
        for (size_t i = 0; i < n; i++)
            out[i] = 0;
        for (size_t h = 0; h < H; h++)
            add_softmax((int32_t)n, score + h * n, 1 / (double)H, out);
    }
    op_free(row);
    op_free(q);
    op_free(score);
    return s;
}
