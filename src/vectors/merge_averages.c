/* Methods that find out by themselves how far to go from the base: model_stock, arcee_fusion. */
#include "vectors/merge.h"

/* ---- model_stock ---- */

/* Model Stock (Jang et al.: 2403.19522): y = t mean(x_i) + (1 - t) base, t = k c / (1 + (k - 1) c) for k models, c the mean cosine between two of the x_i - base, taken
 * over the whole tensor or, with filter_wise, for each row. */
typedef struct stock {
    int in[OP_MERGE_INPUTS_MAX], n;
    bool by_row;
    float *t; /* [rows], or one */
} stock;

static float interpolation(const op_merge_job *j, const stock *s, const double *gram)
{
    op_dtype type = j->type;
    float sum = 0, norm[OP_MERGE_INPUTS_MAX];
    int pairs = 0, k = s->n;
    for (int a = 0; a < k; a++)
        norm[a] = op_round(type, (float)sqrt(gram[a * k + a]));
    for (int a = 0; a < k; a++)
        for (int b = a + 1; b < k; b++, pairs++) {
            float product = op_round(type, norm[a] * norm[b]), least = op_round(type, 1e-6f);
            float c = op_round(type, op_round(type, (float)gram[a * k + b]) / (product < least ? least : product));
            sum += c > 1 ? 1 : c < -1 ? -1 : c;
        }
    float c = op_round(type, sum / (float)pairs), below = op_round(type, 1 + op_round(type, (float)(k - 1) * c));
    return fabsf(below) < 1e-6f ? 0 : op_round(type, op_round(type, (float)k * c) / below);
}

/* Adds the inner products of a stretch of a tile; squares are not rounded, as a norm's are not. */
static void add_gram(const op_merge_job *j, const stock *s, const op_merge_tile *t, int from, int to, double *gram)
{
    float d[OP_MERGE_INPUTS_MAX][OP_MERGE_LANE];
    for (int at = from; at < to; at += OP_MERGE_LANE) {
        int n = op_lane(to, at);
        for (int i = 0; i < s->n; i++)
            op_lane_minus(j->type, t->x[s->in[i]] + at, t->x[j->base] + at, d[i], n);
        for (int a = 0; a < s->n; a++)
            for (int b = a; b < s->n; b++)
                gram[a * s->n + b] += a == b ? op_lane_dot(d[a], d[a], n) : op_lane_dot_rounded(j->type, d[a], d[b], n);
    }
}

static void gather(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    stock *s = j->state;
    double gram[OP_MERGE_INPUTS_MAX * OP_MERGE_INPUTS_MAX];
    if (!s->by_row)
        add_gram(j, s, t, 0, t->n, sums);
    for (int from = 0; from < t->n && s->by_row; from += (int)j->row) {
        memset(gram, 0, (size_t)s->n * (size_t)s->n * sizeof *gram);
        add_gram(j, s, t, from, from + (int)j->row, gram);
        s->t[(t->first + from) / j->row] = interpolation(j, s, gram);
    }
}

static op_status start_stock(op_merge_job *j, op_error *e)
{
    stock *s = op_merge_state(j, 1, sizeof *s, e);
    double *gram = op_merge_state(j, (size_t)j->n * (size_t)j->n, sizeof *gram, e);
    if (!s || !gram)
        return OP_ERR_NOMEM;
    j->state = s;
    s->by_row = j->p[P_FILTER_WISE] != 0;
    for (int i = 0; i < j->n; i++)
        if (i != j->base)
            s->in[s->n++] = i;
    if (s->by_row)
        op_merge_by_rows(j);
    if (!(s->t = op_merge_state(j, s->by_row ? (size_t)j->rows : 1, sizeof *s->t, e)))
        return OP_ERR_NOMEM;
    op_status status = op_merge_sums(j, gather, j, gram, s->n * s->n, e);
    if (!status && !s->by_row)
        s->t[0] = interpolation(j, s, gram);
    return status;
}

static op_status model_stock(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const stock *s = j->state;
    op_dtype type = j->type;
    float mean[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        const float *base = t->x[j->base] + at;
        memset(mean, 0, sizeof mean);
        for (int i = 0; i < s->n; i++)
            op_lane_add(type, t->x[s->in[i]] + at, mean, n);
        op_lane_divide(type, (float)s->n, mean, n);
        for (int k = 0; k < n; k++) {
            float share = s->t[s->by_row ? (t->first + at + k) / j->row : 0];
            t->out[at + k] = op_round(type, op_round(type, share * mean[k]) + op_round(type, op_round(type, 1 - share) * base[k]));
        }
    }
    return OP_OK;
}

/* ---- arcee_fusion ---- */

/* Arcee Fusion (arcee.ai): the elements that matter most are taken from the other model, the rest from the base. How much one matters: |x - base| times the
 * divergence KL(softmax(x) || softmax(base)) of its row; how much is enough: median + 1.5 times the distance between the quartiles. Above a million elements
 * mergekit takes the quartiles of a random million; here they are exact. */
typedef struct fusion {
    float *divergence; /* [rows] */
    float threshold;
} fusion;

static float largest(const float *x, int64_t n)
{
    float most = x[0];
    for (int64_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

static op_status find_divergences(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const fusion *s = j->state;
    op_dtype type = j->type;
    int64_t row = j->row;
    float eps = 1e-8f, *e[2] = {op_alloc_array((size_t)row * 2, sizeof(float))};
    if (!e[0])
        return OP_ERR_NOMEM;
    e[1] = e[0] + row;
    for (int from = 0; from < t->n; from += (int)row) {
        double sum = 0;
        for (int i = 0; i < 2; i++) {
            const float *x = t->x[i ? j->base : !j->base] + from;
            float most = largest(x, row), total = 0;
            for (int64_t k = 0; k < row; k++)
                total += e[i][k] = expf(x[k] - most);
            for (int64_t k = 0; k < row; k++)
                e[i][k] = op_round(type, op_round(type, e[i][k] / total) + eps);
        }
        for (int64_t k = 0; k < row; k++)
            sum += op_round(type, e[0][k] * op_round(type, logf(op_round(type, e[0][k] / e[1][k]))));
        s->divergence[(t->first + from) / row] = op_round(type, (float)sum);
    }
    op_free(e[0]);
    return OP_OK;
}

static float importance(const op_merge_job *j, const op_merge_tile *t, int k)
{
    const fusion *s = j->state;
    float far = fabsf(op_round(j->type, t->x[!j->base][k] - t->x[j->base][k]));
    return op_round(j->type, far * s->divergence[(t->first + k) / j->row]);
}

/* Keys in the order of signed numbers. */
static void importance_keys(void *ctx, const op_merge_tile *t, int stream, uint32_t *key)
{
    (void)stream;
    for (int k = 0; k < t->n; k++) {
        uint32_t u = op_bits(importance(ctx, t, k));
        key[k] = u & 0x80000000u ? ~u : u | 0x80000000u;
    }
}

static float number_of_key(uint32_t key)
{
    return op_unbits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

static op_status start_fusion(op_merge_job *j, op_error *e)
{
    fusion *s = op_merge_state(j, 1, sizeof *s, e);
    if (!s || !(s->divergence = op_merge_state(j, (size_t)j->rows, sizeof *s->divergence, e)))
        return OP_ERR_NOMEM;
    j->state = s;
    op_merge_by_rows(j);
    op_status status = op_merge_pass(j, find_divergences, j, e);
    op_merge_rank ranks[3];
    for (int q = 0; q < 3; q++)
        ranks[q] = (op_merge_rank){.rank = (int64_t)(0.25 * (q + 1) * (double)(j->count - 1)), .key_only = true};
    if (!status)
        status = op_merge_select(j, importance_keys, j, 1, ranks, 3, e);
    float low = number_of_key(ranks[0].at.key), middle = number_of_key(ranks[1].at.key), high = number_of_key(ranks[2].at.key);
    s->threshold = op_round(j->type, middle + op_round(j->type, 1.5f * op_round(j->type, high - low)));
    return status;
}

static op_status arcee_fusion(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const fusion *s = j->state;
    for (int k = 0; k < t->n; k++) {
        float base = t->x[j->base][k], d = op_round(j->type, t->x[!j->base][k] - base);
        t->out[k] = importance(j, t, k) >= s->threshold ? base + d : base;
    }
    return OP_OK;
}

const op_merge_method op_merge_averages[] = {
    {.name = "model_stock", .base = OP_BASE_REQUIRED, .min_inputs = 3, .start = start_stock, .formula = model_stock,
     .params = {{P_FILTER_WISE, OP_SCOPE_SHARED, OP_KIND_BOOL, 0}}},
    {.name = "arcee_fusion", .base = OP_BASE_REQUIRED, .min_inputs = 2, .max_inputs = 2, .start = start_fusion, .formula = arcee_fusion, .floats = true},
    {0}};
