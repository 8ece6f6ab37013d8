/* Methods that take tensors as directions: slerp, nuslerp, multislerp, karcher. */
#include "vectors/merge.h"

/* ---- slerp ---- */

typedef struct arc {
    float from, to; /* what the two ends weigh */
} arc;

static void dots_of_two(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const float *a = t->x[j->base], *b = t->x[!j->base];
    sums[0] += op_lane_dot(a, a, t->n);
    sums[1] += op_lane_dot(b, b, t->n);
    sums[2] += op_lane_dot(a, b, t->n);
}

/* Shoemake, Animating rotation with quaternion curves (1985): y = (sin((1-t) th) a + sin(t th) b) / sin th, th the angle between base a and b as flat vectors;
 * on one line (|cos th| > 0.9995) y = (1-t) a + t b. In float32, rounded once. */
static op_status start_slerp(op_merge_job *j, op_error *e)
{
    double sums[3];
    float t = (float)j->p[P_T];
    op_status s = op_merge_sums(j, dots_of_two, j, sums, 3, e);
    arc *c = s ? NULL : op_merge_state(j, 1, sizeof *c, e);
    if (!c)
        return s ? s : OP_ERR_NOMEM;
    double a = sqrt(sums[0]), b = sqrt(sums[1]);
    float cosine = (float)(sums[2] / ((a > 1e-8 ? a : 1) * (b > 1e-8 ? b : 1)));
    cosine = cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
    *c = (arc){1.0f - t, t};
    if (fabsf(cosine) <= 0.9995f) {
        float angle = (float)acos(cosine);
        *c = (arc){(float)sin((1.0f - t) * angle) / (float)sin(angle), (float)sin(t * angle) / (float)sin(angle)};
    }
    j->state = c;
    return OP_OK;
}

static op_status slerp(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const arc *c = j->state;
    const float *a = t->x[j->base], *b = t->x[!j->base], from = c->from, to = c->to;
#pragma omp simd
    for (int k = 0; k < t->n; k++)
        t->out[k] = from * a[k] + to * b[k];
    op_round_all(j->type, t->out, t->n);
    return OP_OK;
}

/* ---- nuslerp ---- */

/* One angle for the whole tensor, each row (its last dimension) or each column (the first). */
typedef struct nuslerp_state {
    int a, b; /* the two inputs */
    int64_t groups, columns; /* columns: elements between two of a column, 0: not by columns */
    bool whole;
    double *norms;   /* [groups, 2] sums of squares */
    double *dots;    /* [groups] */
    float *sine, *from, *to; /* [groups]; sine 0: on one line */
} nuslerp_state;

static int64_t group_of(const nuslerp_state *s, const op_merge_job *j, int64_t at)
{
    return s->whole ? 0 : s->columns ? at % s->columns : at / j->row;
}

/* a and b less the base, where there is one. */
static void two_ends(const op_merge_job *j, const nuslerp_state *s, const op_merge_tile *t, int at, int n, float *a, float *b)
{
    const float *x[2] = {t->x[s->a] + at, t->x[s->b] + at};
    float *to[2] = {a, b};
    for (int i = 0; i < 2; i++)
        if (j->base >= 0)
            op_lane_minus(j->type, x[i], t->x[j->base] + at, to[i], n);
        else
            memcpy(to[i], x[i], (size_t)n * sizeof *a);
}

static void squares_of_groups(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    nuslerp_state *s = j->state;
    float a[OP_MERGE_LANE], b[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        two_ends(j, s, t, at, n, a, b);
        for (int k = 0; k < n; k++) {
            double *to = s->whole ? sums : s->norms + 2 * group_of(s, j, t->first + at + k);
            to[0] += (double)a[k] * a[k];
            to[1] += (double)b[k] * b[k];
        }
    }
}

static void dots_of_groups(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    nuslerp_state *s = j->state;
    float a[OP_MERGE_LANE], b[OP_MERGE_LANE], least = op_round(j->type, 1e-7f);
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        two_ends(j, s, t, at, n, a, b);
        for (int k = 0; k < n; k++) {
            int64_t g = group_of(s, j, t->first + at + k);
            float na = op_round(j->type, (float)sqrt(s->norms[2 * g])), nb = op_round(j->type, (float)sqrt(s->norms[2 * g + 1]));
            float ua = op_round(j->type, a[k] / (na < least ? least : na)), ub = op_round(j->type, b[k] / (nb < least ? least : nb));
            *(s->whole ? sums : s->dots + g) += op_round(j->type, ua * ub);
        }
    }
}

/* Sums of groups; columns run through all tiles and are summed by one thread. */
static op_status group_sums(op_merge_job *j, op_merge_sum_fn fn, double *sums, int n, op_error *e)
{
    const nuslerp_state *s = j->state;
    double all[2];
    op_status status = OP_OK;
    if (!s->columns) {
        status = op_merge_sums(j, fn, j, all, n, e);
        if (s->whole)
            memcpy(sums, all, (size_t)n * sizeof *all);
        return status;
    }
    int64_t tile = j->tile;
    j->tile = j->count; /* one tile, one worker */
    op_free(j->scratch);
    j->scratch = NULL;
    status = op_merge_sums(j, fn, j, all, n, e);
    op_free(j->scratch);
    j->scratch = NULL;
    j->tile = tile;
    return status;
}

/* Slerp between weights w_a and w_b, t = w_b / (w_a + w_b) (mergekit's NuSLERP), between a - base and b - base where a base is given. */
static op_status start_nuslerp(op_merge_job *j, op_error *e)
{
    nuslerp_state *s = op_merge_state(j, 1, sizeof *s, e);
    if (!s)
        return OP_ERR_NOMEM;
    j->state = s;
    s->a = j->base == 0;
    s->b = s->a + 1 == j->base ? s->a + 2 : s->a + 1;
    double total = j->in[s->a].p[P_WEIGHT] + j->in[s->b].p[P_WEIGHT];
    double t = fabs(total) < 1e-6 ? 0.5 : j->in[s->b].p[P_WEIGHT] / total;
    s->whole = j->p[P_FLATTEN] != 0;
    bool columns = !s->whole && j->p[P_ROW_WISE] != 0 && j->rank > 1;
    s->columns = columns ? j->count / j->shape[0] : 0;
    s->groups = s->whole ? 1 : columns ? s->columns : j->rows;
    if (!s->whole && !columns)
        op_merge_by_rows(j);
    size_t n = (size_t)s->groups;
    if (!(s->norms = op_merge_state(j, 3 * n, sizeof *s->norms, e)) || !(s->sine = op_merge_state(j, 3 * n, sizeof *s->sine, e)))
        return OP_ERR_NOMEM;
    s->dots = s->norms + 2 * n;
    s->from = s->sine + n;
    s->to = s->from + n;
    op_status status = group_sums(j, squares_of_groups, s->norms, 2, e);
    if (!status)
        status = group_sums(j, dots_of_groups, s->dots, 1, e);
    for (int64_t g = 0; g < s->groups && !status; g++) {
        float cosine = op_round(j->type, (float)s->dots[g]);
        cosine = cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
        float off = op_round(j->type, 1 - op_round(j->type, cosine * cosine));
        bool line = off <= (float)(1e-8 * 1e-8);
        float theta = op_round(j->type, (float)acos(cosine));
        s->sine[g] = line ? 0 : op_round(j->type, (float)sin(theta));
        s->from[g] = line ? (float)(1 - t) : op_round(j->type, (float)sin(op_round(j->type, (float)(1 - t) * theta)));
        s->to[g] = line ? (float)t : op_round(j->type, (float)sin(op_round(j->type, (float)t * theta)));
    }
    return status;
}

static op_status nuslerp(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const nuslerp_state *s = j->state;
    float a[OP_MERGE_LANE], b[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        two_ends(j, s, t, at, n, a, b);
        for (int k = 0; k < n; k++) {
            int64_t g = group_of(s, j, t->first + at + k);
            float y = op_round(j->type, op_round(j->type, s->from[g] * a[k]) + op_round(j->type, s->to[g] * b[k]));
            t->out[at + k] = s->sine[g] == 0 ? y : op_round(j->type, y / s->sine[g]);
        }
        if (j->base >= 0)
            op_lane_add(j->type, t->x[j->base] + at, t->out + at, n);
    }
    return OP_OK;
}

/* ---- multislerp ---- */

/* Goddard, Multi-SLERP (goddard.blog/posts/multislerp-wow-what-a-cool-idea): directions u_i = d_i / |d_i| are taken to the tangent space of the sphere
 * at their weighted mean m, averaged there (T), and taken back: y = |d| (cos|T| m + sin|T| T / |T|), |d| the weighted mean length. */
typedef struct multi {
    int in[OP_MERGE_INPUTS_MAX], n;
    float weight[OP_MERGE_INPUTS_MAX], norm[OP_MERGE_INPUTS_MAX], dot[OP_MERGE_INPUTS_MAX];
    float eps, mean_norm, tangent, length;
    bool linear; /* two opposite ends: their plain mean */
} multi;

/* d_i of a lane. */
static void ends(const op_merge_job *j, const op_merge_tile *t, int input, int at, int n, float *d)
{
    if (j->base >= 0)
        op_lane_minus(j->type, t->x[input] + at, t->x[j->base] + at, d, n);
    else
        memcpy(d, t->x[input] + at, (size_t)n * sizeof *d);
}

static void directions(const op_merge_job *j, const op_merge_tile *t, int i, int at, int n, float *u)
{
    const multi *s = j->state;
    ends(j, t, s->in[i], at, n, u);
    op_lane_divide(j->type, op_round(j->type, s->norm[i] + s->eps), u, n);
}

/* sum += w x, each product rounded. */
static void add_weighted(op_dtype type, float w, const float *x, float *sum, int n)
{
#pragma omp simd
    for (int k = 0; k < n; k++)
        sum[k] += op_round(type, x[k] * w);
}

static void mean_of(const op_merge_job *j, const op_merge_tile *t, int at, int n, float *m)
{
    const multi *s = j->state;
    float u[OP_MERGE_LANE];
    memset(m, 0, (size_t)n * sizeof *m);
    for (int i = 0; i < s->n; i++) {
        directions(j, t, i, at, n, u);
        add_weighted(j->type, s->weight[i], u, m, n);
    }
    op_round_all(j->type, m, n);
    if (s->mean_norm > 0)
        op_lane_divide(j->type, s->mean_norm, m, n);
}

static void tangent_of(const op_merge_job *j, const op_merge_tile *t, int at, int n, const float *m, float *T)
{
    const multi *s = j->state;
    float u[OP_MERGE_LANE];
    memset(T, 0, (size_t)n * sizeof *T);
    for (int i = 0; i < s->n; i++) {
        float dot = s->dot[i];
        op_dtype type = j->type;
        directions(j, t, i, at, n, u);
#pragma omp simd
        for (int k = 0; k < n; k++)
            u[k] = op_round(type, u[k] - op_round(type, dot * m[k]));
        add_weighted(type, s->weight[i], u, T, n);
    }
    op_round_all(j->type, T, n);
}

static void end_norms(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const multi *s = j->state;
    float d[OP_MERGE_LANE];
    for (int i = 0; i < s->n; i++)
        for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
            int n = op_lane(t->n, at);
            ends(j, t, s->in[i], at, n, d);
            sums[i] += op_lane_dot(d, d, n);
        }
}

static void mean_norms(void *ctx, const op_merge_tile *t, double *sums)
{
    float m[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        mean_of(ctx, t, at, n, m);
        sums[0] += op_lane_dot(m, m, n);
    }
}

static void mean_dots(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const multi *s = j->state;
    float m[OP_MERGE_LANE], u[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        mean_of(j, t, at, n, m);
        for (int i = 0; i < s->n; i++) {
            directions(j, t, i, at, n, u);
            sums[i] += op_lane_dot_rounded(j->type, u, m, n);
        }
    }
}

static void tangent_norms(void *ctx, const op_merge_tile *t, double *sums)
{
    float m[OP_MERGE_LANE], T[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        mean_of(ctx, t, at, n, m);
        tangent_of(ctx, t, at, n, m, T);
        sums[0] += op_lane_dot(T, T, n);
    }
}

static op_status start_multislerp(op_merge_job *j, op_error *e)
{
    double sums[OP_MERGE_INPUTS_MAX];
    multi *s = op_merge_state(j, 1, sizeof *s, e);
    if (!s)
        return OP_ERR_NOMEM;
    j->state = s;
    s->eps = (float)j->p[P_EPS];
    float total = 0, length = 0;
    for (int i = 0; i < j->n; i++)
        if (i != j->base) {
            s->in[s->n] = i;
            total += s->weight[s->n++] = op_round(j->type, (float)j->in[i].p[P_WEIGHT]);
        }
    total = op_round(j->type, total);
    if (s->n == 1)
        return OP_OK;
    if (j->p[P_NORMALIZE_WEIGHTS] != 0 && total == 0)
        return op_error_set(e, OP_ERR_ARG, "tensor \"%s\": the weights add up to 0 and cannot be normalized", j->name);
    for (int i = 0; i < s->n && j->p[P_NORMALIZE_WEIGHTS] != 0; i++)
        s->weight[i] = op_round(j->type, s->weight[i] / total);
    op_status status = op_merge_sums(j, end_norms, j, sums, s->n, e);
    for (int i = 0; i < s->n && !status; i++) {
        s->norm[i] = op_round(j->type, (float)sqrt(sums[i]));
        length += op_round(j->type, s->norm[i] * s->weight[i]);
    }
    s->length = op_round(j->type, length);
    if (!status)
        status = op_merge_sums(j, mean_norms, j, sums, 1, e);
    if (status)
        return status;
    s->mean_norm = op_round(j->type, (float)sqrt(sums[0]));
    s->linear = s->mean_norm < s->eps && s->n == 2;
    if (s->linear)
        return OP_OK;
    if (s->mean_norm < s->eps)
        return op_error_set(e, OP_ERR_ARG, "tensor \"%s\": the weighted sum of the directions is 0: take other weights", j->name);
    status = op_merge_sums(j, mean_dots, j, sums, s->n, e);
    for (int i = 0; i < s->n && !status; i++)
        s->dot[i] = op_round(j->type, (float)sums[i]);
    if (!status)
        status = op_merge_sums(j, tangent_norms, j, sums, 1, e);
    s->tangent = status ? 0 : op_round(j->type, op_round(j->type, (float)sqrt(sums[0])) + s->eps);
    return status;
}

static op_status multislerp(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const multi *s = j->state;
    op_dtype type = j->type;
    float m[OP_MERGE_LANE], T[OP_MERGE_LANE];
    float cosine = op_round(type, (float)cos(s->tangent));
    float sine = s->tangent > 0 ? op_round(type, op_round(type, (float)sin(s->tangent)) / s->tangent) : 1;
    if (s->n == 1) {
        memcpy(t->out, t->x[s->in[0]], (size_t)t->n * sizeof *t->out);
        return OP_OK;
    }
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        float *out = t->out + at;
        if (s->linear) {
            ends(j, t, s->in[0], at, n, m);
            ends(j, t, s->in[1], at, n, T);
            float a = s->weight[0], b = s->weight[1];
#pragma omp simd
            for (int k = 0; k < n; k++)
                out[k] = op_round(type, op_round(type, m[k] * a) + op_round(type, T[k] * b));
        } else {
            float length = s->length;
            mean_of(j, t, at, n, m);
            tangent_of(j, t, at, n, m, T);
#pragma omp simd
            for (int k = 0; k < n; k++)
                out[k] = op_round(type, op_round(type, op_round(type, m[k] * cosine) + op_round(type, T[k] * sine)) * length);
        }
        if (j->base >= 0)
            op_lane_add(type, t->x[j->base] + at, out, n);
    }
    return OP_OK;
}

/* ---- karcher ---- */

/* The Karcher mean of the directions on the unit sphere (Karcher 1977; for merging: 2603.04972), times the mean length: from their plain mean m, step by step
 * m <- cos|T| m + sin|T| T / |T| with T = sum_i a_i th_i / sin th_i (u_i - cos th_i m), th_i the angle between m and u_i, until |T| < tol. */
typedef struct karcher_state {
    int n, max_iter;
    float tol, norm[OP_MERGE_INPUTS_MAX], alpha[OP_MERGE_INPUTS_MAX], dot[OP_MERGE_INPUTS_MAX], push[OP_MERGE_INPUTS_MAX]; /* alpha 0: too short */
    float divide;          /* the mean's length, still to be divided by; 1: done */
    float cosine, sine, T; /* of the step */
    float scale;
    bool first_only;       /* the plain mean is 0 */
} karcher_state;

static void unit(const op_merge_job *j, const op_merge_tile *t, int i, int at, int n, float *u)
{
    const karcher_state *s = j->state;
    memcpy(u, t->x[i] + at, (size_t)n * sizeof *u);
    op_lane_divide(j->type, s->norm[i], u, n);
}

static void squares(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    for (int i = 0; i < j->n; i++)
        sums[i] += op_lane_dot(t->x[i], t->x[i], t->n);
}

static void plain_mean(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const karcher_state *s = j->state;
    op_dtype type = j->type;
    float u[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        float *m = j->kept + t->first + at;
        memset(m, 0, (size_t)n * sizeof *m);
        for (int i = 0; i < j->n; i++) {
            float a = s->alpha[i];
            if (a == 0)
                continue;
            unit(j, t, i, at, n, u);
            if (s->first_only) {
                memcpy(m, u, (size_t)n * sizeof *m);
                break;
            }
#pragma omp simd
            for (int k = 0; k < n; k++)
                m[k] = op_round(type, m[k] + op_round(type, a * u[k]));
        }
        sums[0] += op_lane_dot(m, m, n);
    }
}

/* Divides the mean by its length, and gathers the cosines of its angles with the directions. */
static void cosines(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const karcher_state *s = j->state;
    float u[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        float *m = j->kept + t->first + at;
        if (s->divide != 1)
            op_lane_divide(j->type, s->divide, m, n);
        for (int i = 0; i < j->n; i++)
            if (s->alpha[i] != 0) {
                unit(j, t, i, at, n, u);
                sums[i] += op_lane_dot(u, m, n);
            }
    }
}

static void push(const op_merge_job *j, const op_merge_tile *t, int at, int n, float *T)
{
    const karcher_state *s = j->state;
    const float *m = j->kept + t->first + at;
    op_dtype type = j->type;
    float u[OP_MERGE_LANE];
    memset(T, 0, (size_t)n * sizeof *T);
    for (int i = 0; i < j->n; i++) {
        float dot = s->dot[i], by = s->push[i];
        if (by == 0)
            continue;
        unit(j, t, i, at, n, u);
#pragma omp simd
        for (int k = 0; k < n; k++)
            T[k] = op_round(type, T[k] + op_round(type, by * op_round(type, u[k] - op_round(type, dot * m[k]))));
    }
}

static void push_norm(void *ctx, const op_merge_tile *t, double *sums)
{
    float T[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        push(ctx, t, at, n, T);
        sums[0] += op_lane_dot(T, T, n);
    }
}

static void step(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const karcher_state *s = j->state;
    op_dtype type = j->type;
    float T[OP_MERGE_LANE], cosine = s->cosine, sine = s->sine, norm = s->T;
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        float *m = j->kept + t->first + at;
        push(j, t, at, n, T);
#pragma omp simd
        for (int k = 0; k < n; k++)
            m[k] = op_round(type, op_round(type, cosine * m[k]) + op_round(type, sine * op_round(type, T[k] / norm)));
        sums[0] += op_lane_dot(m, m, n);
    }
}

/* One turn. *done: the mean is found. */
static op_status iterate(op_merge_job *j, karcher_state *s, bool *done, op_error *e)
{
    double sums[OP_MERGE_INPUTS_MAX];
    op_status status = op_merge_sums(j, cosines, j, sums, j->n, e);
    s->divide = 1;
    for (int i = 0; i < j->n && !status; i++) {
        s->push[i] = 0;
        if (s->alpha[i] == 0)
            continue;
        float dot = op_round(j->type, (float)sums[i]);
        s->dot[i] = dot = dot > 1 ? 1 : dot < -1 ? -1 : dot;
        float angle = op_round(j->type, (float)acos(dot)), sine = op_round(j->type, (float)sin(angle));
        if (angle >= s->tol)
            s->push[i] = op_round(j->type, s->alpha[i] * op_round(j->type, angle / sine));
    }
    if (!status)
        status = op_merge_sums(j, push_norm, j, sums, 1, e);
    s->T = status ? 0 : (float)sqrt(sums[0]);
    *done = s->T < s->tol;
    if (status || *done)
        return status;
    s->cosine = op_round(j->type, (float)cos(s->T)); /* a number to the left of a tensor gets its type in torch, one to its right keeps float32 */
    s->sine = op_round(j->type, (float)sin(s->T));
    status = op_merge_sums(j, step, j, sums, 1, e);
    if (!status && (float)sqrt(sums[0]) > s->tol)
        s->divide = (float)sqrt(sums[0]);
    return status;
}

static op_status start_karcher(op_merge_job *j, op_error *e)
{
    double sums[OP_MERGE_INPUTS_MAX];
    karcher_state *s = op_merge_state(j, 1, sizeof *s, e);
    if (!s)
        return OP_ERR_NOMEM;
    j->state = s;
    s->tol = (float)j->p[P_TOL];
    if (j->n == 1)
        return OP_OK;
    op_status status = op_merge_sums(j, squares, j, sums, j->n, e);
    double share = 1.0 / j->n, total = 0;
    for (int i = 0; i < j->n && !status; i++) {
        s->norm[i] = (float)sqrt(sums[i]);
        s->scale += (float)share * s->norm[i];
        if (s->norm[i] > s->tol) {
            s->n++;
            total += share;
        }
    }
    for (int i = 0; i < j->n; i++)
        s->alpha[i] = s->norm[i] > s->tol ? (float)(share / total) : 0;
    if (status || !s->n)
        return status;
    if (!(j->kept = op_alloc_array((size_t)j->count, sizeof *j->kept)))
        return op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
    status = op_merge_sums(j, plain_mean, j, sums, 1, e);
    s->divide = status ? 1 : (float)sqrt(sums[0]);
    if (!status && s->divide < s->tol) {
        s->first_only = true;
        s->divide = 1;
        status = op_merge_sums(j, plain_mean, j, sums, 1, e);
    }
    bool done = false;
    for (int i = 0; i < (int)j->p[P_MAX_ITER] && !done && !status; i++)
        status = iterate(j, s, &done, e);
    return status;
}

static op_status karcher(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const karcher_state *s = j->state;
    memcpy(t->out, j->kept ? j->kept + t->first : t->x[0], (size_t)t->n * sizeof *t->out);
    if (j->kept && s->divide != 1)
        op_lane_divide(j->type, s->divide, t->out, t->n);
    if (j->n > 1)
        op_lane_scale(j->type, j->kept ? op_round(j->type, s->scale) : 0, t->out, t->n);
    return OP_OK;
}

const op_merge_method op_merge_sphere[] = {
    {.name = "slerp", .base = OP_BASE_REQUIRED, .min_inputs = 2, .max_inputs = 2, .start = start_slerp, .formula = slerp,
     .params = {{P_T, OP_SCOPE_SHARED, OP_KIND_FLOAT, OP_MERGE_REQUIRED}}},
    {.name = "nuslerp", .base = OP_BASE_OPTIONAL, .min_inputs = 1, .min_others = 2, .max_others = 2, .start = start_nuslerp, .formula = nuslerp,
     .params = {{P_WEIGHT, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, OP_MERGE_REQUIRED}, {P_ROW_WISE, OP_SCOPE_SHARED, OP_KIND_BOOL, 0},
                {P_FLATTEN, OP_SCOPE_SHARED, OP_KIND_BOOL, 1}}},
    {.name = "multislerp", .base = OP_BASE_OPTIONAL, .min_inputs = 1, .min_others = 1, .start = start_multislerp, .formula = multislerp,
     .params = {{P_WEIGHT, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, OP_MERGE_REQUIRED}, {P_NORMALIZE_WEIGHTS, OP_SCOPE_SHARED, OP_KIND_BOOL, 1},
                {P_EPS, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1e-8}}},
    {.name = "karcher", .base = OP_BASE_IGNORED, .min_inputs = 1, .start = start_karcher, .formula = karcher,
     .params = {{P_MAX_ITER, OP_SCOPE_SHARED, OP_KIND_INT, 10}, {P_TOL, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1e-5}}},
    {0}};
