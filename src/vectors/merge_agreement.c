/* Methods that look at which task vectors d_i = x_i - base touch an element, and how: sce, ram, ramplus_tl. */
#include "vectors/merge.h"

/* Inputs other than the base, in their order. */
typedef struct others {
    int in[OP_MERGE_INPUTS_MAX], n;
} others;

static void find_others(const op_merge_job *j, others *o)
{
    for (int i = 0; i < j->n; i++)
        if (i != j->base)
            o->in[o->n++] = i;
}

/* ---- sce ---- */

/* SCE (Wan et al.: 2408.07990): select the elements in which the d_i vary most, calculate a weight per vector, w_i ~ mean d_i^2, erase what is against the
 * majority's sign: y = base + sum_i m_i w_i d_i / sum_i m_i w_i. */
typedef struct sce_state {
    others o;
    float weight[OP_MERGE_INPUTS_MAX];
    bool select, nothing;
    op_merge_cut cut; /* elements of the variances before it are kept, the largest first */
} sce_state;

/* The population variance of a column of d, by Welford's recurrence in double as torch has it. */
static float variance(const op_merge_job *j, const others *o, const op_merge_tile *t, int k)
{
    double mean = 0, squares = 0;
    for (int i = 0; i < o->n; i++) {
        double d = op_round(j->type, t->x[o->in[i]][k] - t->x[j->base][k]), off = d - mean;
        mean += off / (i + 1);
        squares += off * (d - mean);
    }
    return op_round(j->type, (float)(squares / o->n));
}

static void variance_keys(void *ctx, const op_merge_tile *t, int stream, uint32_t *key)
{
    const op_merge_job *j = ctx;
    const sce_state *s = j->state;
    (void)stream;
    for (int k = 0; k < t->n; k++)
        key[k] = op_bits(variance(j, &s->o, t, k)) & 0x7fffffffu;
}

static void count_varying(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const sce_state *s = j->state;
    for (int k = 0; k < t->n; k++)
        sums[0] += variance(j, &s->o, t, k) != 0;
}

/* d[n][LANE] of the selected elements; the others are 0. */
static void selected(const op_merge_job *j, const op_merge_tile *t, int at, int n, float d[][OP_MERGE_LANE])
{
    const sce_state *s = j->state;
    for (int i = 0; i < s->o.n; i++)
        op_lane_minus(j->type, t->x[s->o.in[i]] + at, t->x[j->base] + at, d[i], n);
    for (int k = 0; k < n && s->select; k++) {
        uint32_t key = s->nothing ? 0 : op_bits(variance(j, &s->o, t, at + k)) & 0x7fffffffu;
        bool keep = !s->nothing && (key > s->cut.key || (key == s->cut.key && t->first + at + k < s->cut.index));
        for (int i = 0; i < s->o.n && !keep; i++)
            d[i][k] = 0;
    }
}

static void mean_squares(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const sce_state *s = j->state;
    float d[OP_MERGE_INPUTS_MAX][OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        selected(j, t, at, n, d);
        for (int i = 0; i < s->o.n; i++)
            sums[i] += op_lane_dot_rounded(j->type, d[i], d[i], n);
    }
}

static op_status start_sce(op_merge_job *j, op_error *e)
{
    double sums[OP_MERGE_INPUTS_MAX], density = j->p[P_SELECT_TOPK];
    sce_state *s = op_merge_state(j, 1, sizeof *s, e);
    if (!s)
        return OP_ERR_NOMEM;
    j->state = s;
    find_others(j, &s->o);
    op_status status = OP_OK;
    s->select = density < 1;
    s->nothing = density <= 0;
    if (s->select && !s->nothing && !(status = op_merge_sums(j, count_varying, j, sums, 1, e))) {
        int64_t keep = (int64_t)(sums[0] * density);
        s->nothing = !keep;
        op_merge_rank rank = {.rank = keep, .descending = true};
        if (keep && keep < j->count)
            status = op_merge_select(j, variance_keys, j, 1, &rank, 1, e);
        s->cut = rank.at;
    }
    if (!status)
        status = op_merge_sums(j, mean_squares, j, sums, s->o.n, e);
    float total = 0;
    for (int i = 0; i < s->o.n && !status; i++)
        total += s->weight[i] = op_round(j->type, (float)(sums[i] / (double)j->count));
    total = op_round(j->type, total);
    for (int i = 0; i < s->o.n; i++)
        s->weight[i] = op_round(j->type, fabsf(total) < 1e-6f ? 1.0f / (float)s->o.n : s->weight[i] / total);
    return status;
}

static op_status sce(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const sce_state *s = j->state;
    float d[OP_MERGE_INPUTS_MAX][OP_MERGE_LANE], least = op_round(j->type, 1e-6f);
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        selected(j, t, at, n, d);
        for (int k = 0; k < n; k++) {
            float sum = 0, total = 0, sign = 0, base = t->x[j->base][at + k];
            for (int i = 0; i < s->o.n; i++)
                sign += d[i][k];
            sign = op_round(j->type, sign) >= 0 ? 1 : -1;
            for (int i = 0; i < s->o.n; i++)
                if (d[i][k] * sign > 0) {
                    sum += op_round(j->type, d[i][k] * s->weight[i]);
                    total += s->weight[i];
                }
            sum = op_round(j->type, sum);
            total = op_round(j->type, total);
            t->out[at + k] = op_round(j->type, base + op_round(j->type, sum / (total < least ? least : total)));
        }
    }
    return OP_OK;
}

/* ---- ram ---- */

/* Reinforced Agent Merging (2601.13572): an element that one vector alone moves (|d| > epsilon) is taken from it, one that several move is their mean.
 * ramplus_tl makes the lone ones larger by 1 + r min(alpha, shared_i / alone_i), the numbers of such elements of the vector in this tensor. */
typedef struct ram_state {
    others o;
    float larger[OP_MERGE_INPUTS_MAX], epsilon;
    bool plus;
} ram_state;

/* How many vectors move each element of a lane. */
static void count_movers(const op_merge_job *j, const op_merge_tile *t, int at, int n, float d[][OP_MERGE_LANE], int *count)
{
    const ram_state *s = j->state;
    float least = s->epsilon;
    memset(count, 0, (size_t)n * sizeof *count);
    for (int i = 0; i < s->o.n; i++) {
        op_lane_minus(j->type, t->x[s->o.in[i]] + at, t->x[j->base] + at, d[i], n);
        for (int k = 0; k < n; k++) {
            d[i][k] = fabsf(d[i][k]) > least ? d[i][k] : 0;
            count[k] += d[i][k] != 0;
        }
    }
}

static void count_shared(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const ram_state *s = j->state;
    float d[OP_MERGE_INPUTS_MAX][OP_MERGE_LANE];
    int count[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        count_movers(j, t, at, n, d, count);
        for (int i = 0; i < s->o.n; i++)
            for (int k = 0; k < n; k++) {
                sums[2 * i] += d[i][k] != 0 && count[k] > 1;
                sums[2 * i + 1] += d[i][k] != 0 && count[k] == 1;
            }
    }
}

static op_status start_ram(op_merge_job *j, op_error *e)
{
    double sums[2 * OP_MERGE_INPUTS_MAX];
    ram_state *s = op_merge_state(j, 1, sizeof *s, e);
    if (!s)
        return OP_ERR_NOMEM;
    j->state = s;
    s->plus = j->method->variant;
    s->epsilon = op_round(j->type, (float)j->p[P_EPSILON]);
    find_others(j, &s->o);
    for (int i = 0; i < s->o.n; i++)
        s->larger[i] = 1;
    op_status status = s->plus ? op_merge_sums(j, count_shared, j, sums, 2 * s->o.n, e) : OP_OK;
    for (int i = 0; i < s->o.n && s->plus && !status; i++) {
        float alone = (float)sums[2 * i + 1], share, most = (float)j->p[P_ALPHA];
        alone = alone < (float)j->p[P_EPSILON] ? (float)j->p[P_EPSILON] : alone;
        share = (float)sums[2 * i] / alone;
        s->larger[i] = 1 + (float)j->p[P_R] * (share < 0 ? 0 : share > most ? most : share);
    }
    return status;
}

static op_status ram(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const ram_state *s = j->state;
    op_dtype late = s->plus ? OP_F32 : j->type; /* the factor of ramplus_tl is float32, and makes everything after it so */
    float d[OP_MERGE_INPUTS_MAX][OP_MERGE_LANE];
    int count[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        count_movers(j, t, at, n, d, count);
        for (int k = 0; k < n; k++) {
            float sum = 0;
            for (int i = 0; i < s->o.n; i++)
                sum += count[k] == 1 ? d[i][k] * s->larger[i] : op_round(j->type, d[i][k] / (float)(count[k] ? count[k] : 1));
            t->out[at + k] = op_round(late, t->x[j->base][at + k] + op_round(late, sum));
        }
    }
    return OP_OK;
}

const op_merge_method op_merge_agreement[] = {
    {.name = "sce", .base = OP_BASE_REQUIRED, .min_inputs = 1, .start = start_sce, .formula = sce,
     .params = {{P_INT8_MASK, OP_SCOPE_SHARED, OP_KIND_BOOL, 0}, {P_SELECT_TOPK, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1}}},
    {.name = "ram", .base = OP_BASE_REQUIRED, .min_inputs = 1, .start = start_ram, .formula = ram, .params = {{P_EPSILON, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1e-5}}},
    {.name = "ramplus_tl", .base = OP_BASE_REQUIRED, .min_inputs = 1, .start = start_ram, .formula = ram, .variant = 1, .floats = true,
     .params = {{P_R, OP_SCOPE_SHARED, OP_KIND_FLOAT, 0.1}, {P_ALPHA, OP_SCOPE_SHARED, OP_KIND_FLOAT, 0.2}, {P_EPSILON, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1e-5}}},
    {0}};
