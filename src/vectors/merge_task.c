/* Arithmetic of task vectors: the differences d_i = x_i - base are thinned out, weighted, added where they agree on a sign, and put back on the base.
 *
 *   y = base + lambda * sum_i m_i w_i s(d_i) / sum_i m_i w_i        (the divisor only where `normalize`)
 *
 *   method            s                        m
 *   task_arithmetic   all                      all                 Ilharco et al.: 2212.04089
 *   ties              the largest              majority            Yadav et al.: 2306.01708
 *   dare_linear       random, equal chances    all                 Yu et al.: 2311.03099
 *   dare_ties         random, equal chances    majority
 *   breadcrumbs       neither small nor huge   all                 Davari, Belilovsky: 2312.06795
 *   breadcrumbs_ties  neither small nor huge   majority
 *   della             random, by rank          majority            Deep et al.: 2406.11617
 *   della_linear      random, by rank          all
 *
 * With `rescale` what is left of a vector gets the size it had, by the sum of |d|. int8_mask says how mergekit stores its masks: it changes no number. */
#include "base/rng.h"
#include "vectors/merge.h"

enum { ALL, LARGEST, RANDOM, BAND, RANKED, MAJORITY = 8 };

/* How one vector is thinned out. */
typedef enum thinning { KEEP_ALL, KEEP_NONE, KEEP_ABOVE, KEEP_BETWEEN, KEEP_MASKED } thinning;

typedef struct task {
    thinning how;
    op_merge_cut lower, upper; /* of |d|: ABOVE: `upper` and what is larger; BETWEEN: from lower to below upper */
    uint8_t *mask;             /* [count] */
    float weight, scale;       /* scale: of rescaling, 1: none */
    int input;
} task;

typedef struct tasks {
    task *of; /* [n] */
    int n;
    op_dtype work; /* in which masks and scales are applied: float16 goes through float32 where it is random */
} tasks;

static uint32_t magnitude(float x)
{
    return op_bits(x) & 0x7fffffffu;
}

/* d[n] stays where least <= |d| < below, as bits, and becomes 0 elsewhere. */
static void keep_sizes(float *d, int n, int32_t least, int32_t below)
{
#pragma omp simd
    for (int k = 0; k < n; k++) {
        int32_t key = (int32_t)magnitude(d[k]);
        uint32_t keep = -(uint32_t)((key >= least) & (key < below));
        d[k] = op_unbits(op_bits(d[k]) & keep);
    }
}

/* How many of n elements from `at` stand before a cut's index. */
static int before_cut(const op_merge_cut *cut, int64_t at, int n)
{
    return cut->index <= at ? 0 : cut->index - at < n ? (int)(cut->index - at) : n;
}

/* d[n] = s(d), unscaled; `at` is the place of d[0] in the tensor. */
static void thin_out(const task *x, int64_t at, float *d, int n)
{
    int32_t lower = (int32_t)x->lower.key, upper = (int32_t)x->upper.key;
    int32_t past_lower = lower + (lower < INT32_MAX), past_upper = upper + (upper < INT32_MAX); /* no float has so large a key */
    int first = before_cut(&x->upper, at, n);
    if (x->how == KEEP_NONE) {
        memset(d, 0, (size_t)n * sizeof *d);
    } else if (x->how == KEEP_ABOVE) { /* of the size of the cut, those before its index */
        keep_sizes(d, first, upper, INT32_MAX);
        keep_sizes(d + first, n - first, past_upper, INT32_MAX);
    } else if (x->how == KEEP_BETWEEN) { /* of the size of the lower cut those from its index on, of the upper those before it */
        int second = before_cut(&x->lower, at, n);
        keep_sizes(d, first, 0, past_upper);
        keep_sizes(d + first, n - first, 0, upper);
        keep_sizes(d, second, past_lower, INT32_MAX);
        keep_sizes(d + second, n - second, lower, INT32_MAX);
    } else if (x->how == KEEP_MASKED) {
        const uint8_t *mask = x->mask + at;
#pragma omp simd
        for (int k = 0; k < n; k++)
            d[k] = op_unbits(op_bits(d[k]) & -(uint32_t)mask[k]);
    }
}

static op_status formula(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const tasks *s = j->state;
    bool majority = j->method->variant & MAJORITY, normalize = j->p[P_NORMALIZE] != 0;
    float d[OP_MERGE_INPUTS_MAX][OP_MERGE_LANE], sum[OP_MERGE_LANE], total[OP_MERGE_LANE], sign[OP_MERGE_LANE];
    for (int at = 0; at < t->n; at += OP_MERGE_LANE) {
        int n = op_lane(t->n, at);
        const float *base = t->x[j->base] + at;
        float *out = t->out + at;
        for (int k = 0; k < OP_MERGE_LANE; k++)
            sum[k] = total[k] = 0;
        for (int i = 0; i < s->n; i++) {
            const task *x = &s->of[i];
            op_lane_minus(j->type, t->x[x->input] + at, base, d[i], n);
            thin_out(x, t->first + at, d[i], n);
            if (x->scale != 1)
                op_lane_scale(j->type, x->scale, d[i], n);
            op_lane_scale(j->type, x->weight, d[i], n);
#pragma omp simd
            for (int k = 0; k < n; k++)
                sum[k] += d[i][k];
        }
        op_round_all(j->type, sum, n);
        if (majority) {
#pragma omp simd
            for (int k = 0; k < n; k++) {
                sign[k] = sum[k] >= 0 ? 1.0f : -1.0f;
                sum[k] = 0;
            }
            for (int i = 0; i < s->n; i++) {
                float w = s->of[i].weight;
#pragma omp simd
                for (int k = 0; k < n; k++) {
                    uint32_t agrees = -(uint32_t)(d[i][k] * sign[k] > 0);
                    sum[k] += op_unbits(op_bits(d[i][k]) & agrees);
                    total[k] += op_unbits(op_bits(w) & agrees);
                }
            }
            op_round_all(j->type, sum, n);
            op_round_all(j->type, total, n);
        } else {
            float w = 0;
            for (int i = 0; i < s->n; i++)
                w += s->of[i].weight;
            w = op_round(j->type, w);
            for (int k = 0; k < n; k++)
                total[k] = fabsf(w) < 1e-8f ? 1 : w;
        }
        if (normalize) {
#pragma omp simd
            for (int k = 0; k < n; k++)
                sum[k] /= total[k] + (float)(total[k] == 0);
            op_round_all(j->type, sum, n);
        }
        if (j->p[P_LAMBDA] != 1)
            op_lane_scale(j->type, (float)j->p[P_LAMBDA], sum, n);
#pragma omp simd
        for (int k = 0; k < n; k++)
            out[k] = base[k] + sum[k];
        op_round_all(j->type, out, n);
    }
    return OP_OK;
}

/* ---- what is known before ---- */

static void keys(void *ctx, const op_merge_tile *t, int stream, uint32_t *key)
{
    const op_merge_job *j = ctx;
    const tasks *s = j->state;
    const float *x = t->x[s->of[stream].input], *base = t->x[j->base];
    op_dtype type = j->type;
#pragma omp simd
    for (int k = 0; k < t->n; k++)
        key[k] = magnitude(op_round(type, x[k] - base[k]));
}

/* TIES: the largest density * n elements, at least one. Breadcrumbs: without the largest gamma * n, the next density * n. */
static op_status find_cuts(op_merge_job *j, tasks *s, bool band, op_error *e)
{
    op_merge_rank ranks[2 * OP_MERGE_INPUTS_MAX];
    op_merge_cut *to[2 * OP_MERGE_INPUTS_MAX];
    int n = 0;
    for (int i = 0; i < s->n; i++) {
        task *x = &s->of[i];
        double density = j->in[x->input].p[P_DENSITY];
        int64_t keep = (int64_t)(density * (double)j->count);
        if (density >= 1)
            continue;
        if (!band) {
            x->how = density <= 0 ? KEEP_NONE : KEEP_ABOVE;
            keep = keep < 1 ? 1 : keep;
            if (x->how == KEEP_ABOVE && keep < j->count) {
                to[n] = &x->upper;
                ranks[n++] = (op_merge_rank){.stream = i, .rank = keep, .descending = true};
            } else if (x->how == KEEP_ABOVE) {
                x->how = KEEP_ALL;
            }
            continue;
        }
        keep = keep < 0 ? 0 : keep;
        int64_t huge = (int64_t)(j->in[x->input].p[P_GAMMA] * (double)j->count), first = j->count - keep - huge;
        first = first < 0 ? 0 : first;
        x->how = keep > 0 && first < j->count ? KEEP_BETWEEN : KEEP_NONE;
        x->upper = (op_merge_cut){INT32_MAX, 0};
        if (x->how == KEEP_NONE)
            continue;
        to[n] = &x->lower;
        ranks[n++] = (op_merge_rank){.stream = i, .rank = first};
        if (first + keep < j->count) {
            to[n] = &x->upper;
            ranks[n++] = (op_merge_rank){.stream = i, .rank = first + keep};
        }
    }
    op_status status = n ? op_merge_select(j, keys, j, s->n, ranks, n, e) : OP_OK;
    for (int i = 0; i < n && !status; i++)
        *to[i] = ranks[i].at;
    return status;
}

/* Numbers of element i's chance: the word of its block of four. */
static void draw(const op_merge_job *j, int input, int64_t at, int n, uint32_t *out)
{
    uint64_t stream = (uint64_t)OP_STREAM_MERGE | (j->stream * OP_MERGE_INPUTS_MAX + (uint64_t)input) << 32;
    uint32_t words[4];
    for (int64_t i = at; i < at + n; i++) {
        if (i == at || i % 4 == 0)
            op_rng_block(j->seed, stream, (uint64_t)i / 4, words);
        out[i - at] = words[i % 4];
    }
}

static bool is_drawn(uint32_t word, float chance)
{
    return (double)word * 0x1p-32 < chance;
}

/* DARE: each element is kept with the chance `density`. */
static op_status draw_equal(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const tasks *s = j->state;
    uint32_t words[OP_MERGE_LANE];
    for (int i = 0; i < s->n; i++) {
        const task *x = &s->of[i];
        float chance = op_round(s->work, (float)j->in[x->input].p[P_DENSITY]);
        for (int at = 0; at < t->n && x->how == KEEP_MASKED; at += OP_MERGE_LANE) {
            int n = op_lane(t->n, at);
            draw(j, x->input, t->first + at, n, words);
            for (int k = 0; k < n; k++)
                x->mask[t->first + at + k] = is_drawn(words[k], chance);
        }
    }
    return OP_OK;
}

/* The order of keys[n], the smallest first, equal ones as they stand: four passes of a radix sort over bytes. room: n places more for both. */
static void sort_places(uint32_t *key, uint32_t *place, uint32_t *key_room, uint32_t *place_room, int64_t n)
{
    for (int shift = 0; shift < 32; shift += 8) {
        uint32_t start[257] = {0};
        for (int64_t i = 0; i < n; i++)
            start[(key[i] >> shift & 255) + 1]++;
        for (int b = 0; b < 256; b++)
            start[b + 1] += start[b];
        for (int64_t i = 0; i < n; i++) {
            uint32_t to = start[key[i] >> shift & 255]++;
            key_room[to] = key[i];
            place_room[to] = place[i];
        }
        uint32_t *other = key;
        key = key_room;
        key_room = other;
        other = place;
        place = place_room;
        place_room = other;
    }
}

/* DELLA: the chance grows with the rank of |d| within its row, from density - epsilon to density + epsilon. */
static op_status draw_ranked(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const tasks *s = j->state;
    int64_t row = j->row;
    uint32_t *room = op_alloc_array((size_t)row * 5, sizeof *room), words[OP_MERGE_LANE];
    if (!room)
        return OP_ERR_NOMEM;
    uint32_t *key = room, *place = room + row;
    float *chance = (float *)(room + 4 * row);
    for (int i = 0; i < s->n; i++)
        for (int64_t from = 0; from < t->n && s->of[i].how == KEEP_MASKED; from += row) {
            const task *x = &s->of[i];
            const float *a = t->x[x->input] + from, *base = t->x[j->base] + from;
            float least = op_round(s->work, (float)(j->in[x->input].p[P_DENSITY] - j->in[x->input].p[P_EPSILON]));
            float twice = (float)j->in[x->input].p[P_EPSILON], span = op_round(s->work, op_round(s->work, (float)row) - 1);
            for (int64_t k = 0; k < row; k++) {
                key[k] = magnitude(op_round(j->type, a[k] - base[k]));
                place[k] = (uint32_t)k;
            }
            sort_places(key, place, room + 2 * row, room + 3 * row, row);
            for (int64_t k = 0; k < row; k++) {
                float rank = op_round(s->work, op_round(s->work, (float)k) + 1);
                float share = span > 0 ? op_round(s->work, op_round(s->work, rank - 1) / span) : 0;
                share = share > 1 ? 1 : share;
                chance[place[k]] = op_round(s->work, least + op_round(s->work, op_round(s->work, share * 2) * twice));
            }
            for (int64_t at = 0; at < row; at += OP_MERGE_LANE) {
                int n = (int)(row - at < OP_MERGE_LANE ? row - at : OP_MERGE_LANE);
                draw(j, x->input, t->first + from + at, n, words);
                for (int k = 0; k < n; k++)
                    x->mask[t->first + from + at + k] = is_drawn(words[k], chance[at + k]);
            }
        }
    op_free(room);
    return OP_OK;
}

static op_status make_masks(op_merge_job *j, tasks *s, bool ranked, op_error *e)
{
    bool any = false;
    if (ranked && j->rank > 2)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "tensor \"%s\": method \"%s\" takes matrices and vectors, found %d dimensions", j->name, j->method->name, j->rank);
    for (int i = 0; i < s->n; i++) {
        task *x = &s->of[i];
        double density = j->in[x->input].p[P_DENSITY], epsilon = j->in[x->input].p[P_EPSILON];
        if (density >= 1)
            continue;
        x->how = density <= 0 ? KEEP_NONE : KEEP_MASKED;
        if (ranked && density > 0 && (density + epsilon >= 1 || density - epsilon <= 0))
            return op_error_set(e, OP_ERR_ARG, "tensor \"%s\": density %g and epsilon %g: expected both their sum and their difference between 0 and 1", j->name, density,
                                epsilon);
        if (x->how == KEEP_MASKED && !(x->mask = op_merge_state(j, (size_t)j->count, 1, e)))
            return OP_ERR_NOMEM;
        any |= x->how == KEEP_MASKED;
    }
    return any ? op_merge_pass(j, ranked ? draw_ranked : draw_equal, j, e) : OP_OK;
}

/* Of every vector: the sum of |d| before and after. */
static void sizes(void *ctx, const op_merge_tile *t, double *sums)
{
    const op_merge_job *j = ctx;
    const tasks *s = j->state;
    float d[OP_MERGE_LANE];
    for (int i = 0; i < s->n; i++)
        for (int at = 0; at < t->n && s->of[i].how != KEEP_ALL; at += OP_MERGE_LANE) {
            int n = op_lane(t->n, at);
            op_lane_minus(j->type, t->x[s->of[i].input] + at, t->x[j->base] + at, d, n);
            for (int k = 0; k < n; k++)
                sums[2 * i] += fabsf(d[k]);
            thin_out(&s->of[i], t->first + at, d, n);
            for (int k = 0; k < n; k++)
                sums[2 * i + 1] += fabsf(d[k]);
        }
}

static op_status find_scales(op_merge_job *j, tasks *s, op_error *e)
{
    double sums[2 * OP_MERGE_INPUTS_MAX];
    op_status status = op_merge_sums(j, sizes, j, sums, 2 * s->n, e);
    for (int i = 0; i < s->n && !status; i++) {
        float before = op_round(s->work, (float)sums[2 * i]), after = op_round(s->work, (float)sums[2 * i + 1]);
        if (s->of[i].how != KEEP_ALL && before >= 1e-7f && after >= 1e-7f)
            s->of[i].scale = op_round(s->work, before / after);
    }
    return status;
}

static op_status start(op_merge_job *j, op_error *e)
{
    int how = j->method->variant & ~MAJORITY;
    tasks *s = op_merge_state(j, 1, sizeof *s, e);
    task *of = s ? op_merge_state(j, (size_t)j->n, sizeof *of, e) : NULL;
    if (!of)
        return OP_ERR_NOMEM;
    *s = (tasks){.of = of, .work = (how == RANDOM || how == RANKED) && j->type == OP_F16 ? OP_F32 : j->type};
    j->state = s;
    for (int i = 0; i < j->n; i++)
        if (i != j->base)
            s->of[s->n++] = (task){.input = i, .scale = 1, .weight = op_round(j->type, (float)j->in[i].p[P_WEIGHT])};
    if (how == RANKED)
        op_merge_by_rows(j);
    op_status status = how == LARGEST || how == BAND    ? find_cuts(j, s, how == BAND, e)
                       : how == RANDOM || how == RANKED ? make_masks(j, s, how == RANKED, e)
                                                        : OP_OK;
    bool thinned = false;
    for (int i = 0; i < s->n; i++)
        thinned |= s->of[i].how != KEEP_ALL;
    return status || !thinned || j->p[P_RESCALE] == 0 ? status : find_scales(j, s, e);
}

#define COMMON(normalize, rescale)                                                                                                                   \
    {P_INT8_MASK, OP_SCOPE_SHARED, OP_KIND_BOOL, 0}, {P_NORMALIZE, OP_SCOPE_SHARED, OP_KIND_BOOL, normalize}, {P_RESCALE, OP_SCOPE_SHARED, OP_KIND_BOOL, rescale}, \
        {P_LAMBDA, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1}, {P_WEIGHT, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, OP_MERGE_REQUIRED},                              \
        {P_DENSITY, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, 1}
#define METHOD(NAME, VARIANT, ...) \
    {.name = NAME, .base = OP_BASE_REQUIRED, .min_inputs = 1, .start = start, .formula = formula, .variant = VARIANT, .params = {__VA_ARGS__}}
#define GAMMA {P_GAMMA, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, 0.01}
#define EPSILON {P_EPSILON, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, 0.15}

const op_merge_method op_merge_task[] = {
    METHOD("task_arithmetic", ALL, COMMON(0, 0)),
    METHOD("ties", LARGEST | MAJORITY, COMMON(1, 0)),
    METHOD("dare_linear", RANDOM, COMMON(0, 1)),
    METHOD("dare_ties", RANDOM | MAJORITY, COMMON(0, 1)),
    METHOD("breadcrumbs", BAND, COMMON(0, 0), GAMMA),
    METHOD("breadcrumbs_ties", BAND | MAJORITY, COMMON(0, 0), GAMMA),
    METHOD("della", RANKED | MAJORITY, COMMON(1, 1), EPSILON),
    METHOD("della_linear", RANKED, COMMON(0, 1), EPSILON),
    {0}};
