/* The decorated backend table of operant/profile.h: each op with its clock and, in one place, the formulas of its bytes and operations.
 *
 * A is the size of an activation; the formulas count each operand once: what a call reads plus what it writes (a sum that is added to: both). */
#include <operant/profile.h>

#include <string.h>

#include <operant/clock.h>

#include "ops/ops.h"

static bool on;
static const op_ops *inner; /* the backend that is profiled; NULL: none has been asked for yet */
static op_ops timed;        /* its decorated copy */

/* ---- lines ---- */

static op_profile_line lines[OP_PROFILE_LINES + 1];
static size_t n_lines;

static op_profile_line *line_of(const char *op, int N, int K)
{
    for (size_t i = 0; i < n_lines; i++)
        if (lines[i].op == op && lines[i].N == N && lines[i].K == K)
            return &lines[i];
    if (n_lines == OP_PROFILE_LINES) {
        lines[n_lines].op = "others";
        return &lines[n_lines];
    }
    lines[n_lines] = (op_profile_line){.op = op, .N = N, .K = K};
    return &lines[n_lines++];
}

static void count(const char *op, int N, int K, double start, double bytes, double flop)
{
    double seconds = op_seconds() - start;
    op_profile_line *l = line_of(op, N, K);
    l->calls++;
    l->seconds += seconds;
    l->bytes += bytes;
    l->flop += flop;
}

void op_profile_clear(void)
{
    memset(lines, 0, sizeof lines);
    n_lines = 0;
}

size_t op_profile_read(const op_profile_line **out)
{
    *out = lines;
    return n_lines + (lines[OP_PROFILE_LINES].calls > 0);
}

/* ---- the shapes of weights, which their handles do not tell ---- */

enum { WEIGHTS = 4096 };
typedef struct shape {
    const op_weight *W;
    int N, K;
    bool backward, quantised;
} shape;
static shape shapes[WEIGHTS]; /* open addressing by the handle's address; a handle that was freed stays until its address comes again */
static size_t n_shapes;

static shape *shape_of(const op_weight *W)
{
    size_t i = (size_t)((uintptr_t)W >> 4) * 2654435761u % WEIGHTS;
    while (shapes[i].W && shapes[i].W != W)
        i = (i + 1) % WEIGHTS;
    return &shapes[i];
}

static op_weight *note(op_weight *W, shape s)
{
    if (W && n_shapes < WEIGHTS - 1) { /* one place stays empty, so that every search ends */
        shape *at = shape_of(W);
        n_shapes += !at->W;
        *at = s;
        at->W = W;
    }
    return W;
}

static op_weight *weight_new(int N, int K, bool backward)
{
    return note(inner->weight_new(N, K, backward), (shape){.N = N, .K = K, .backward = backward});
}

static op_weight *weight_new_quantised(int N, int K)
{
    return note(inner->weight_new_quantised(N, K), (shape){.N = N, .K = K, .quantised = true});
}

/* ---- ops ---- */

#define A ((double)inner->act_size)

/* An op without a result: its parameters, its arguments, its bytes, its operations. */
#define ROWS(op, parameters, arguments, bytes, flop) \
    static void op parameters                        \
    {                                                \
        double start = op_seconds();                 \
        inner->op arguments;                         \
        count(#op, 0, 0, start, bytes, flop);        \
    }

/* An op with a status that works on a matrix of N rows and K columns (0, 0: on none). */
#define STATUS(op, parameters, arguments, N_, K_, bytes, flop) \
    static op_status op parameters                             \
    {                                                          \
        double start = op_seconds();                           \
        op_status s = inner->op arguments;                     \
        count(#op, N_, K_, start, bytes, flop);                \
        return s;                                              \
    }

static double product(double M, double N, double K)
{
    return 2 * M * N * K;
}

/* Bytes of a weight as a product reads it. */
static double weight_size(const shape *s)
{
    return s->quantised ? (double)inner->weight_bytes(s->W) : (double)inner->act_size * s->N * s->K;
}

static double out_size(op_out out)
{
    return out == OP_OUT_ACT ? A : out == OP_OUT_F32 ? 4 : 8;
}

static op_status weight_pack(op_weight *W, const float *w)
{
    double start = op_seconds();
    op_status status = inner->weight_pack(W, w);
    shape s = *shape_of(W);
    double n = (double)s.N * s.K, packed = weight_size(&s) * (s.backward ? 2 : 1);
    count("weight_pack", s.N, s.K, start, inner->keeps_f32 && !s.quantised ? 0 : 4 * n + packed, 0);
    return status;
}

static op_status matmul(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y)
{
    double start = op_seconds();
    op_status status = inner->matmul(W, M, x, bias, out, y);
    shape s = *shape_of(W);
    count("matmul", s.N, s.K, start, weight_size(&s) + A * M * s.K + out_size(out) * M * s.N, product(M, s.N, s.K));
    return status;
}

static op_status decode(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y)
{
    double start = op_seconds();
    op_status status = inner->decode(W, M, x, bias, out, y);
    shape s = *shape_of(W);
    count("decode", s.N, s.K, start, weight_size(&s) + A * M * s.K + out_size(out) * M * s.N, product(M, s.N, s.K));
    return status;
}

static op_status matmul_dx(const op_weight *W, int M, const void *dy, op_out out, void *dx)
{
    double start = op_seconds();
    op_status status = inner->matmul_dx(W, M, dy, out, dx);
    shape s = *shape_of(W);
    count("matmul_dx", s.N, s.K, start, weight_size(&s) + A * M * s.N + out_size(out) * M * s.K, product(M, s.N, s.K));
    return status;
}

STATUS(matmul_dw, (int M, int N, int K, const void *dy, const void *x, float *dw), (M, N, K, dy, x, dw), N, K,
       A * M * ((double)N + K) + 8.0 * N * K, product(M, N, K))
STATUS(gemm,
       (bool ta, bool tb, int M, int N, int K, float alpha, const void *a, int lda, const void *b, int ldb, float beta, void *c, int ldc, bool c_f32),
       (ta, tb, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc, c_f32), 0, 0,
       A * ((double)M + N) * K + (c_f32 ? 4 : A) * (beta != 0 ? 2 : 1) * M * N, product(M, N, K))
ROWS(bias_backward, (int M, int N, const void *dy, int ld, float *db), (M, N, dy, ld, db), A * M * N + 8.0 * N, 1.0 * M * N)

ROWS(to_act, (size_t n, const float *x, void *y), (n, x, y), (4 + A) * (double)n, 0)
ROWS(from_act, (size_t n, const void *x, float *y), (n, x, y), (4 + A) * (double)n, 0)
ROWS(add, (size_t n, const void *x, void *y), (n, x, y), 3 * A * (double)n, (double)n)
ROWS(add_f32, (size_t n, const float *x, float *y), (n, x, y), 12.0 * (double)n, (double)n)
ROWS(embed, (int T, int C, const int32_t *ids, const void *table, bool table_act, float *out), (T, C, ids, table, table_act, out),
     ((table_act ? A : 4) + 4) * T * C, 0)
ROWS(embed_weight, (const op_weight *W, int T, const int32_t *ids, float *out), (W, T, ids, out), (A + 4) * T * shape_of(W)->K, 0)
ROWS(embed_backward, (int T, int C, const int32_t *ids, const float *dout, float *dtable), (T, C, ids, dout, dtable), 12.0 * T * C, 1.0 * T * C)
ROWS(embed_backward_act, (int T, int C, const int32_t *ids, const float *dout, void *dtable), (T, C, ids, dout, dtable), (4 + 2 * A) * T * C, 1.0 * T * C)
ROWS(rmsnorm, (int T, int C, const float *x, const float *g, float eps, void *y, float *rstd), (T, C, x, g, eps, y, rstd), (4 + A) * T * C, 4.0 * T * C)
ROWS(rmsnorm_backward, (int T, int C, const float *x, const float *g, const float *rstd, const void *dy, float *dx, float *dg),
     (T, C, x, g, rstd, dy, dx, dg), (12 + A) * T * C, (dg ? 11.0 : 9.0) * T * C)
ROWS(layernorm, (int T, int C, const float *x, const float *g, const float *b, float eps, void *y, float *mean, float *rstd),
     (T, C, x, g, b, eps, y, mean, rstd), (4 + A) * T * C, 7.0 * T * C)
ROWS(layernorm_backward,
     (int T, int C, const float *x, const float *g, const float *mean, const float *rstd, const void *dy, float *dx, float *dg, float *db),
     (T, C, x, g, mean, rstd, dy, dx, dg, db), (12 + A) * T * C, (dg ? 15.0 : 12.0) * T * C)
ROWS(headnorm, (int T, int H, int D, int ld, void *x, const float *g, float eps, float *rstd), (T, H, D, ld, x, g, eps, rstd), 2 * A * T * H * D, 4.0 * T * H * D)
ROWS(headnorm_backward, (int T, int H, int D, const void *x, const float *g, const float *rstd, int ld, void *d, float *dg),
     (T, H, D, x, g, rstd, ld, d, dg), 3 * A * T * H * D, 11.0 * T * H * D)
ROWS(rope, (int T, int H, int D, int ld, const int32_t *position, const float *cos_, const float *sin_, bool inverse, void *x),
     (T, H, D, ld, position, cos_, sin_, inverse, x), 2 * A * T * H * D, 3.0 * T * H * D)
ROWS(swiglu, (int T, int F, const void *gu, void *y), (T, F, gu, y), 3 * A * T * F, 5.0 * T * F)
ROWS(swiglu_backward, (int T, int F, const void *gu, const void *dy, void *dgu), (T, F, gu, dy, dgu), 5 * A * T * F, 11.0 * T * F)
ROWS(gelu, (size_t n, const void *x, void *y), (n, x, y), 2 * A * (double)n, 9.0 * (double)n)
ROWS(gelu_backward, (size_t n, const void *x, const void *dy, void *dx), (n, x, dy, dx), 3 * A * (double)n, 16.0 * (double)n)
ROWS(dropout, (size_t n, float p, uint64_t seed, uint64_t stream, uint64_t first, const void *x, void *y), (n, p, seed, stream, first, x, y),
     2 * A * (double)n, (double)n)

/* Pairs of a row and a key that it sees. A row sees all of its path, whose length its position tells, as far as the window reaches. */
static double pairs(const op_attention *a)
{
    double sum = 0;
    for (int s = 0; s < a->n_seqs; s++)
        for (int t = a->start[s]; t < a->start[s] + a->length[s]; t++)
            sum += a->window && a->position[t] >= a->window ? a->window : a->position[t] + 1;
    return sum;
}

static double cached_pairs(const op_cached_attention *a)
{
    double sum = 0;
    for (int r = 0; r < a->R; r++) {
        int n = 0;
        for (int g = a->first_seg[r]; g < a->first_seg[r + 1]; g++)
            n += a->seg[g].length;
        sum += a->window && n > a->window ? a->window : n;
    }
    return sum;
}

/* Forward: q k and p v, 2 D each for a pair and head. Backward: the scores again, dv, dp, dq, dk. */
STATUS(attention, (const op_attention *a, const void *qkv, void *out, float *lse), (a, qkv, out, lse), 0, 0,
       A * a->T * a->D * (2.0 * a->H + 2 * a->G), 4 * pairs(a) * a->H * a->D)
STATUS(attention_backward, (const op_attention *a, const void *qkv, const void *out, const float *lse, const void *dout, void *dqkv),
       (a, qkv, out, lse, dout, dqkv), 0, 0, A * a->T * a->D * (4.0 * a->H + 4 * a->G), 10 * pairs(a) * a->H * a->D)
/* Every row reads its keys and values: rows of a shared beginning are counted once for each that sees them. */
STATUS(attention_cached, (const op_cached_attention *a, const void *q, const void *k, const void *v, void *out), (a, q, k, v, out), 0, 0,
       A * a->D * (2.0 * a->R * a->H + 2 * cached_pairs(a) * a->G), 4 * cached_pairs(a) * a->H * a->D)

ROWS(logprob, (int n, int V, const float *logits, const int32_t *target, float *lse, float *logp), (n, V, logits, target, lse, logp), 4.0 * n * V, 3.0 * n * V)
ROWS(logprob_backward,
     (int n, int V, const float *logits, const float *lse, const int32_t *target, const float *dlogp, const float *extra, void *dlogits),
     (n, V, logits, lse, target, dlogp, extra, dlogits), (4 + A + (extra ? 4 : 0)) * n * V, 3.0 * n * V)

ROWS(adamw, (size_t n, float *p, const float *g, float *m, float *v, const op_adamw *o), (n, p, g, m, v, o), 28.0 * (double)n, 15.0 * (double)n)

ROWS(adamw_act, (size_t n, float *p, const void *g, float *m, float *v, const op_adamw *o), (n, p, g, m, v, o), (24 + A) * (double)n, 15.0 * (double)n)
ROWS(adamw8, (size_t n, float *p, const void *g, bool g_act, const op_moments8 *x, const op_adamw *o), (n, p, g, g_act, x, o),
     (12 + (g_act ? A : 4)) * (double)n, 15.0 * (double)n) /* rounding to the codes is not counted */

static double sum_squares(size_t n, const float *x)
{
    double start = op_seconds(), sum = inner->sum_squares(n, x);
    count("sum_squares", 0, 0, start, 4.0 * (double)n, 2.0 * (double)n);
    return sum;
}

static double sum_squares_act(size_t n, const void *x)
{
    double start = op_seconds(), sum = inner->sum_squares_act(n, x);
    count("sum_squares_act", 0, 0, start, A * (double)n, 2.0 * (double)n);
    return sum;
}

/* ---- the table ---- */

/* Not timed: questions, freeing, and what several threads call at once (weight_pack_rows, draw_weights), whose time is unaccounted. */
static void decorate(void)
{
    timed = *inner;
#define TIMED(op) timed.op = inner->op ? op : NULL
    TIMED(weight_new), TIMED(weight_new_quantised), TIMED(weight_pack), TIMED(matmul), TIMED(decode), TIMED(matmul_dx), TIMED(matmul_dw), TIMED(gemm), TIMED(bias_backward);
    TIMED(to_act), TIMED(from_act), TIMED(add), TIMED(add_f32), TIMED(embed), TIMED(embed_weight), TIMED(embed_backward), TIMED(embed_backward_act);
    TIMED(rmsnorm), TIMED(rmsnorm_backward), TIMED(layernorm), TIMED(layernorm_backward), TIMED(headnorm), TIMED(headnorm_backward);
    TIMED(rope), TIMED(swiglu), TIMED(swiglu_backward), TIMED(gelu), TIMED(gelu_backward), TIMED(dropout);
    TIMED(attention), TIMED(attention_backward), TIMED(attention_cached), TIMED(logprob), TIMED(logprob_backward);
    TIMED(adamw), TIMED(adamw_act), TIMED(adamw8), TIMED(sum_squares), TIMED(sum_squares_act);
#undef TIMED
}

void op_profile_start(void)
{
    on = true;
    op_profile_clear();
}

void op_profile_stop(void)
{
    on = false;
    inner = NULL;
    memset(shapes, 0, sizeof shapes);
    n_shapes = 0;
}

const op_ops *op_profile_table(const op_ops *t)
{
    if (!on || !t || (inner && inner != t))
        return t;
    if (!inner) {
        inner = t;
        decorate();
    }
    return &timed;
}
