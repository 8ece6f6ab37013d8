/* Methods that look at one element at a time: linear, nearswap, passthrough. */
#include "vectors/merge.h"

/* y += w x with one rounding, as torch's addcmul does it. Without such an instruction libm does it, slowly. */
#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void add_fused_fast(float w, const float *x, float *y, int n)
{
#pragma omp simd
    for (int k = 0; k < n; k++)
        y[k] = __builtin_fmaf(x[k], w, y[k]);
}
#endif

static void add_fused(float w, const float *x, float *y, int n)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        add_fused_fast(w, x, y, n);
        return;
    }
#endif
    for (int k = 0; k < n; k++)
        y[k] = fmaf(x[k], w, y[k]);
}

/* Linear (model soups; Wortsman et al.: 2203.05482): y = sum_i w_i x_i, divided by sum_i w_i where `normalize`. In float32 throughout, rounded once. */
static op_status linear(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    float total = 0;
    memset(t->out, 0, (size_t)t->n * sizeof *t->out);
    for (int i = 0; i < j->n; i++) {
        float w = (float)j->in[i].p[P_WEIGHT];
        total += w;
        add_fused(w, t->x[i], t->out, t->n);
    }
    if (j->p[P_NORMALIZE] != 0)
        op_lane_divide(j->type, total, t->out, t->n);
    else
        op_round_all(j->type, t->out, t->n);
    return OP_OK;
}

static op_status check_linear(op_merge_job *j, op_error *e)
{
    float total = 0;
    for (int i = 0; i < j->n; i++)
        total += (float)j->in[i].p[P_WEIGHT];
    return total != 0 || j->p[P_NORMALIZE] == 0
               ? OP_OK : op_error_set(e, OP_ERR_ARG, "tensor \"%s\": the weights add up to 0 and cannot be normalized: change them, or set normalize to false", j->name);
}

/* NearSwap (alchemonaut, QuartetAnemoi-70B-t0.0001): where base a and other b are near, b; y = c b + (1 - c) a with c = t / |a - b| cut to 0..1. */
static op_status nearswap(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    const float *a = t->x[j->base], *b = t->x[!j->base];
    float near = (float)j->p[P_T], least = op_round(j->type, 1e-6f);
    op_dtype type = j->type;
#pragma omp simd
    for (int k = 0; k < t->n; k++) {
        float far = fabsf(op_round(type, a[k] - b[k]));
        float c = op_round(type, op_round(type, 1.0f / (far < least ? least : far)) * near); /* torch divides a number by a tensor so */
        c = c < 0 ? 0 : c > 1 ? 1 : c;
        t->out[k] = op_round(type, op_round(type, c * b[k]) + op_round(type, op_round(type, 1.0f - c) * a[k]));
    }
    return OP_OK;
}

/* Passthrough: the one input, times `scale` where it is given. */
static op_status passthrough(void *ctx, const op_merge_tile *t)
{
    const op_merge_job *j = ctx;
    memcpy(t->out, t->x[0], (size_t)t->n * sizeof *t->out);
    if (!isnan(j->in[0].p[P_SCALE]))
        op_lane_scale(j->type, (float)j->in[0].p[P_SCALE], t->out, t->n);
    return OP_OK;
}

const op_merge_method op_merge_elementwise[] = {
    {.name = "linear", .base = OP_BASE_IGNORED, .min_inputs = 1, .start = check_linear, .formula = linear,
     .params = {{P_WEIGHT, OP_SCOPE_INPUT, OP_KIND_FLOAT, OP_MERGE_REQUIRED}, {P_NORMALIZE, OP_SCOPE_SHARED, OP_KIND_BOOL, 1}}},
    {.name = "nearswap", .base = OP_BASE_REQUIRED, .min_inputs = 2, .max_inputs = 2, .formula = nearswap,
     .params = {{P_T, OP_SCOPE_SHARED, OP_KIND_FLOAT, OP_MERGE_REQUIRED}}},
    {.name = "passthrough", .base = OP_BASE_IGNORED, .min_inputs = 1, .max_inputs = 1, .formula = passthrough,
     .params = {{P_SCALE, OP_SCOPE_INPUT, OP_KIND_FLOAT, NAN}}},
    {0}};
