/* Attention in tiles of BQ queries by BK keys (Dao: 2307.08691). A tile of keys and values is converted to floats once and
 * serves every query head of its group. All products are C[M, N] (+)= A[M, K] B[K, N] with B's rows contiguous and A read
 * by broadcasts through any strides, so that P and its transpose are the same kernel; columns are padded to whole vectors,
 * and what stands in the padding never reaches a result.
 *
 * Forward tasks are (tile of queries, key-value head); backward tasks are (tree, key-value head), because the gradients of
 * shared keys collect from the whole tree. A task's result depends on nothing but the task. */
#include <math.h>
#include <omp.h>

#include "base/mem.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/simd.h"

#if defined(__AVX512F__)
enum { LANES = 16, PANEL = 4 }; /* a panel is PANEL vectors of C's columns */
#elif defined(__AVX__)
enum { LANES = 8, PANEL = 2 };
#else
enum { LANES = 4, PANEL = 2 };
#endif
enum { BQ = 48, BK = 64, GROUP = 6 }; /* GROUP rows x PANEL vectors of C fill the registers */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

static int min(int a, int b)
{
    return a < b ? a : b;
}

static int max(int a, int b)
{
    return a > b ? a : b;
}

/* ---- the product kernel ---- */

/* R rows by P vectors of C, both constant where this is inlined, so that acc lives in registers. */
static inline __attribute__((always_inline)) void block(int R, int P, int K, const float *A, size_t ar, size_t ak,
                                                        const float *B, size_t ldb, float *C, size_t ldc, bool add)
{
    vec acc[GROUP][PANEL];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            acc[r][p] = add ? *(const vec *)(C + r * ldc + p * LANES) : (vec){0};
    for (int k = 0; k < K; k++) {
        vec b[PANEL];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            b[p] = *(const vec *)(B + k * ldb + p * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float a = A[r * ar + k * ak];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
                acc[r][p] += a * b[p];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            *(vec *)(C + r * ldc + p * LANES) = acc[r][p];
}

#define ROWS(P)                                                                                                        \
    switch (R) {                                                                                                       \
    case 6: block(6, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                                     \
    case 5: block(5, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                                     \
    case 4: block(4, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                                     \
    case 3: block(3, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                                     \
    case 2: block(2, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                                     \
    default: block(1, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                                    \
    }

/* R <= GROUP rows of C over N columns, rounded up to whole vectors */
static void rows(int R, int N, int K, const float *A, size_t ar, size_t ak, const float *B, size_t ldb, float *C,
                 size_t ldc, bool add)
{
    for (; N > 0; N -= PANEL * LANES, B += PANEL * LANES, C += PANEL * LANES)
        switch (min((N + LANES - 1) / LANES, PANEL)) {
#if defined(__AVX512F__)
        case 4: ROWS(4) break;
        case 3: ROWS(3) break;
#endif
        case 2: ROWS(2) break;
        default: ROWS(1) break;
        }
}

/* ---- tiles ---- */

/* The visible part of a tile: row r sees columns 0 .. min(n, r + diagonal + 1) - 1 (a window cuts further, in the scores). */
typedef struct tile {
    int m, n;     /* queries and keys in it */
    int diagonal; /* first query - first key where both are of one sequence; BK where every key is seen */
} tile;

static int seen(const tile *x, int r)
{
    return max(min(x->n, r + x->diagonal + 1), 0);
}

/* S[m, BK] = Q[m, D] Kt[D, BK], where visible */
static void scores(const tile *x, int D, const float *Q, size_t ldq, const float *Kt, float *S)
{
    for (int r = 0; r < x->m; r += GROUP) {
        int R = min(x->m - r, GROUP);
        rows(R, seen(x, r + R - 1), D, Q + r * ldq, ldq, 1, Kt, BK, S + r * BK, BK, false);
    }
}

/* O[m, D] += P[m, BK] V[n, D]; P is 0 where not visible */
static void weigh(const tile *x, int D, const float *P, const float *V, float *O, size_t ld)
{
    for (int r = 0; r < x->m; r += GROUP) {
        int R = min(x->m - r, GROUP);
        rows(R, D, seen(x, r + R - 1), P + r * BK, BK, 1, V, ld, O + r * ld, ld, true);
    }
}

/* dV[n, D] += P[m, BK]^T dO[m, D]: only the queries that see the first key of a group of rows */
static void collect(const tile *x, int D, const float *P, const float *dO, float *dV, size_t ld)
{
    for (int c = 0; c < x->n; c += GROUP) {
        int first = max(c - x->diagonal, 0);
        if (first < x->m)
            rows(min(x->n - c, GROUP), D, x->m - first, P + first * BK + c, 1, BK, dO + first * ld, ld, dV + c * ld, ld,
                 true);
    }
}

/* n act rows as floats times `scale` */
static void load(int n, int D, float scale, const act *x, size_t ldx, float *y, size_t ldy)
{
    for (int i = 0; i < n; i++)
#pragma omp simd
        for (int d = 0; d < D; d++)
            y[i * ldy + d] = from_act1(x[i * ldx + d]) * scale;
}

static void store(int n, int D, float scale, const float *x, size_t ldx, act *y, size_t ldy)
{
    for (int i = 0; i < n; i++)
#pragma omp simd
        for (int d = 0; d < D; d++)
            y[i * ldy + d] = to_act1(x[i * ldx + d] * scale);
}

/* The n rows of x[n, ld] as the columns of xt[D, BK]; the other columns are 0. */
static void transpose(int n, int D, const float *x, size_t ld, float *xt)
{
    for (int d = 0; d < D; d++) {
        for (int i = 0; i < n; i++)
            xt[d * BK + i] = x[i * ld + d];
        for (int i = n; i < BK; i++)
            xt[d * BK + i] = 0;
    }
}

/* Sets what row r does not see to -infinity, up to the first column of the tile that no row computes. */
static void mask_row(const tile *x, int r, int width, const int32_t *key_position, int first_position, float *s)
{
    for (int c = seen(x, r); c < width; c++)
        s[c] = -INFINITY;
    if (key_position)
        for (int c = 0; c < seen(x, r); c++)
            s[c] = key_position[c] < first_position ? -INFINITY : s[c];
}

/* ---- the keys of a sequence ---- */

/* Walks over the tiles of keys that the queries i0 .. i0+m-1 of sequence s see. */
typedef struct walk {
    const op_attention *a;
    int s, i0, m;
    int piece, at; /* segment (the last is the sequence itself) and row within it */
    int row;       /* of the batch: the tile's first key */
    tile x;
} walk;

static bool walk_next(walk *w)
{
    const op_attention *a = w->a;
    int own = a->first_seg[w->s + 1];
    for (; w->piece <= own; w->piece++, w->at = 0) {
        op_segment g = w->piece < own ? a->seg[w->piece] : (op_segment){a->start[w->s], w->i0 + w->m};
        if (w->at >= g.length)
            continue;
        w->row = g.start + w->at;
        w->x = (tile){w->m, min(g.length - w->at, BK), w->piece < own ? BK : w->i0 - w->at};
        w->at += BK;
        return true;
    }
    return false;
}

static walk walk_of(const op_attention *a, int s, int i0)
{
    return (walk){.a = a, .s = s, .i0 = i0, .m = min(a->length[s] - i0, BQ), .piece = a->first_seg[s]};
}

/* With a window: do the queries from `query` on see anything of this tile? */
static bool in_window(const walk *w, int query)
{
    const int32_t *p = w->a->position;
    int lowest = p[query], highest = p[w->row];
    for (int r = 1; r < w->m; r++)
        lowest = min(lowest, p[query + r]);
    for (int c = 1; c < w->x.n; c++)
        highest = max(highest, p[w->row + c]);
    return highest > lowest - w->a->window;
}

/* ---- forward ---- */

typedef struct shape {
    int heads, D, ld; /* query heads a group; head width, and the same padded to whole vectors */
    size_t key, value, width; /* columns of the first key and value head, and of a row */
} shape;

static shape shape_of(const op_attention *a)
{
    size_t key = (size_t)a->H * a->D, value = key + (size_t)a->G * a->D;
    return (shape){a->H / a->G, a->D, round_up(a->D, 16), key, value, value + (size_t)a->G * a->D};
}

/* Rows of the batch that belong to no sequence get zeros, so that they do no harm in products over all rows. */
static bool has_gaps(const op_attention *a)
{
    int rows_owned = 0;
    for (int s = 0; s < a->n_seqs; s++)
        rows_owned += a->length[s];
    return rows_owned < a->T;
}

/* The running softmax of one row: s becomes exp(s - max); *max and *sum move on; returns what older terms shrink by. */
static float softmax_step(int width, float *s, float *highest, float *sum)
{
    float top = *highest, total = 0;
#pragma omp simd reduction(max : top)
    for (int c = 0; c < width; c++)
        top = s[c] > top ? s[c] : top;
    float off = top == -INFINITY ? 0 : top;
#pragma omp simd reduction(+ : total)
    for (int c = 0; c < width; c++) {
        s[c] = exp1(s[c] - off);
        total += s[c];
    }
    float shrink = exp1(*highest - off);
    *highest = top;
    *sum = *sum * shrink + total;
    return shrink;
}

static size_t forward_floats(const shape *z)
{
    size_t ld = (size_t)z->ld, heads = (size_t)z->heads;
    return 2 * BK * ld + ld * BK + BQ * BK + heads * BQ * (2 * ld + 2);
}

static void forward_task(const op_attention *a, const shape *z, int s, int i0, int g, const act *qkv, act *out,
                         float *lse, float *scratch)
{
    size_t ld = (size_t)z->ld, lda = (size_t)a->ld, D = (size_t)z->D;
    float *K = scratch, *V = K + BK * ld, *Kt = V + BK * ld, *S = Kt + ld * BK, *Q = S + BQ * BK;
    float *O = Q + z->heads * BQ * ld, *highest = O + z->heads * BQ * ld, *sum = highest + z->heads * BQ;
    walk w = walk_of(a, s, i0);
    size_t query = (size_t)(a->start[s] + i0), head = (size_t)g * z->heads;
    for (int h = 0; h < z->heads; h++) {
        load(w.m, z->D, a->scale, qkv + query * lda + (head + h) * D, lda, Q + h * BQ * ld, ld);
        for (int r = 0; r < BQ; r++) {
            highest[h * BQ + r] = -INFINITY;
            sum[h * BQ + r] = 0;
        }
    }
    memset(O, 0, (size_t)z->heads * BQ * ld * sizeof *O);
    while (walk_next(&w)) {
        if (a->window && !in_window(&w, (int)query))
            continue;
        const act *key = qkv + w.row * lda + z->key + g * D;
        load(w.x.n, z->D, 1, key, lda, K, ld);
        load(w.x.n, z->D, 1, key + (z->value - z->key), lda, V, ld);
        transpose(w.x.n, z->D, K, ld, Kt);
        for (int h = 0; h < z->heads; h++) {
            float *o = O + h * BQ * ld;
            scores(&w.x, z->D, Q + h * BQ * ld, ld, Kt, S);
            for (int r = 0; r < w.m; r++) {
                int width = round_up(seen(&w.x, min(w.m, r / GROUP * GROUP + GROUP) - 1), LANES);
                if (width == 0)
                    continue;
                mask_row(&w.x, r, width, a->window ? a->position + w.row : NULL,
                         a->position[query + r] - a->window + 1, S + r * BK);
                float shrink = softmax_step(width, S + r * BK, &highest[h * BQ + r], &sum[h * BQ + r]);
                if (shrink != 1)
#pragma omp simd
                    for (size_t d = 0; d < ld; d++)
                        o[r * ld + d] *= shrink;
            }
            weigh(&w.x, z->D, S, V, o, ld);
        }
    }
    for (int h = 0; h < z->heads; h++)
        for (int r = 0; r < w.m; r++) {
            size_t at = (query + r) * a->H + head + h;
            float total = sum[h * BQ + r];
            store(1, z->D, total > 0 ? 1 / total : 0, O + (h * BQ + r) * ld, ld, out + at * D, D);
            if (lse)
                lse[at] = highest[h * BQ + r] + logf(total);
        }
}

static op_status attention(const op_attention *a, const void *qkv, void *out, float *lse)
{
    shape z = shape_of(a);
    size_t floats = (forward_floats(&z) + 15) / 16 * 16;
    float *scratch = op_cpu_scratch(OP_SCRATCH_TILES, (size_t)omp_get_max_threads() * floats * sizeof *scratch);
    if (!scratch)
        return OP_ERR_NOMEM;
    if (has_gaps(a))
        memset(out, 0, (size_t)a->T * a->H * z.D * sizeof(act));
    int tiles = 0;
    for (int s = 0; s < a->n_seqs; s++)
        tiles += (a->length[s] + BQ - 1) / BQ;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < tiles * a->G; task++) {
        int left = tiles - 1 - task / a->G, s = 0; /* the last tile of a sequence is the longest */
        for (; left >= (a->length[s] + BQ - 1) / BQ; s++)
            left -= (a->length[s] + BQ - 1) / BQ;
        forward_task(a, &z, s, left * BQ, task % a->G, qkv, out, lse, scratch + omp_get_thread_num() * floats);
    }
    return OP_OK;
}

/* ---- backward ---- */

static size_t backward_floats(const shape *z, int tree_rows)
{
    size_t ld = (size_t)z->ld, heads = (size_t)z->heads;
    return BK * ld + 2 * ld * BK + 2 * BQ * BK + heads * BQ * (3 * ld + 2) + 2 * (size_t)tree_rows * ld + BK * ld;
}

/* The rows of the batch from the first to the last of a tree. */
static op_segment tree_rows(const op_attention *a, int tree)
{
    int from = a->T, to = 0;
    for (int s = a->tree_first[tree]; s < a->tree_first[tree + 1]; s++) {
        from = min(from, a->start[s]);
        to = max(to, a->start[s] + a->length[s]);
        for (int e = a->first_seg[s]; e < a->first_seg[s + 1]; e++) {
            from = min(from, a->seg[e].start);
            to = max(to, a->seg[e].start + a->seg[e].length);
        }
    }
    return (op_segment){from, max(to - from, 0)};
}

/* One row: S becomes P = exp(S - lse) and dP becomes dS = P (dP - delta). */
static void softmax_backward(int width, float *s, float *dp, float lse, float delta)
{
    float off = lse == -INFINITY ? 0 : lse;
#pragma omp simd
    for (int c = 0; c < width; c++) {
        s[c] = exp1(s[c] - off);
        dp[c] = s[c] * (dp[c] - delta);
    }
}

typedef struct gradients {
    const act *qkv, *out, *dout;
    const float *lse;
    act *dqkv;
} gradients;

/* The gradients of BQ queries of one sequence and of all keys and values that they see. dK and dV are of the tree. */
static void backward_tile(const op_attention *a, const shape *z, int s, int i0, int g, const gradients *t,
                          int tree_start, float *dK, float *dV, float *scratch)
{
    size_t ld = (size_t)z->ld, lda = (size_t)a->ld, D = (size_t)z->D, all = (size_t)z->heads * BQ;
    float *K = scratch, *Kt = K + BK * ld, *Vt = Kt + ld * BK, *S = Vt + ld * BK, *dS = S + BQ * BK;
    float *Q = dS + BQ * BK, *dO = Q + all * ld, *dQ = dO + all * ld, *delta = dQ + all * ld, *lse = delta + all;
    float *V = lse + all;
    walk w = walk_of(a, s, i0);
    size_t query = (size_t)(a->start[s] + i0), head = (size_t)g * z->heads;
    for (int h = 0; h < z->heads; h++) {
        load(w.m, z->D, a->scale, t->qkv + query * lda + (head + h) * D, lda, Q + h * BQ * ld, ld);
        load(w.m, z->D, 1, t->dout + (query * a->H + head + h) * D, a->H * D, dO + h * BQ * ld, ld);
        for (int r = 0; r < w.m; r++) {
            size_t at = (query + r) * a->H + head + h;
            const act *out = t->out + at * D;
            const float *dout = dO + (h * BQ + r) * ld;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < z->D; d++)
                sum += dout[d] * from_act1(out[d]);
            delta[h * BQ + r] = sum;
            lse[h * BQ + r] = t->lse[at];
        }
    }
    memset(dQ, 0, all * ld * sizeof *dQ);
    while (walk_next(&w)) {
        if (a->window && !in_window(&w, (int)query))
            continue;
        const act *key = t->qkv + w.row * lda + z->key + g * D;
        load(w.x.n, z->D, 1, key, lda, K, ld);
        load(w.x.n, z->D, 1, key + (z->value - z->key), lda, V, ld);
        transpose(w.x.n, z->D, K, ld, Kt);
        transpose(w.x.n, z->D, V, ld, Vt);
        float *dk = dK + (w.row - tree_start) * ld, *dv = dV + (w.row - tree_start) * ld;
        for (int h = 0; h < z->heads; h++) {
            float *q = Q + h * BQ * ld, *d = dO + h * BQ * ld;
            scores(&w.x, z->D, q, ld, Kt, S);
            scores(&w.x, z->D, d, ld, Vt, dS);
            for (int r = 0; r < w.m; r++) {
                int width = round_up(seen(&w.x, min(w.m, r / GROUP * GROUP + GROUP) - 1), LANES);
                mask_row(&w.x, r, width, a->window ? a->position + w.row : NULL,
                         a->position[query + r] - a->window + 1, S + r * BK);
                softmax_backward(width, S + r * BK, dS + r * BK, lse[h * BQ + r], delta[h * BQ + r]);
                for (int c = width; c < BK; c++)
                    S[r * BK + c] = dS[r * BK + c] = 0;
            }
            collect(&w.x, z->D, S, d, dv, ld);
            collect(&w.x, z->D, dS, q, dk, ld);
            weigh(&w.x, z->D, dS, K, dQ + h * BQ * ld, ld);
        }
    }
    for (int h = 0; h < z->heads; h++)
        store(w.m, z->D, a->scale, dQ + h * BQ * ld, ld, t->dqkv + query * lda + (head + h) * D, lda);
}

static op_status attention_backward(const op_attention *a, const void *qkv, const void *out, const float *lse,
                                    const void *dout, void *dqkv)
{
    shape z = shape_of(a);
    int longest = 0;
    for (int tree = 0; tree < a->n_trees; tree++)
        longest = max(longest, tree_rows(a, tree).length);
    size_t fixed = backward_floats(&z, 0), floats = (backward_floats(&z, longest) + 15) / 16 * 16;
    float *scratch = op_cpu_scratch(OP_SCRATCH_TILES, (size_t)omp_get_max_threads() * floats * sizeof *scratch);
    if (!scratch)
        return OP_ERR_NOMEM;
    gradients t = {qkv, out, dout, lse, dqkv};
    if (has_gaps(a))
        memset(dqkv, 0, (size_t)a->T * a->ld * sizeof(act));
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < a->n_trees * a->G; task++) {
        int tree = task / a->G, g = task % a->G;
        op_segment span = tree_rows(a, tree);
        float *mine = scratch + omp_get_thread_num() * floats, *dK = mine + fixed;
        size_t ld = (size_t)z.ld, area = (size_t)span.length * ld;
        memset(dK, 0, 2 * area * sizeof *dK);
        for (int s = a->tree_first[tree]; s < a->tree_first[tree + 1]; s++)
            for (int i0 = 0; i0 < a->length[s]; i0 += BQ)
                backward_tile(a, &z, s, i0, g, &t, span.start, dK, dK + area, mine);
        for (int s = a->tree_first[tree]; s < a->tree_first[tree + 1]; s++) {
            const float *dk = dK + (a->start[s] - span.start) * ld;
            act *key = t.dqkv + (size_t)a->start[s] * a->ld + z.key + g * (size_t)z.D;
            store(a->length[s], z.D, 1, dk, ld, key, (size_t)a->ld);
            store(a->length[s], z.D, 1, dk + area, ld, key + (z.value - z.key), (size_t)a->ld);
        }
    }
    return OP_OK;
}

/* ---- generation ---- */

/* MERGE(a, b, m) adds neighbouring runs of m lanes of a and of b and interleaves the sums: lane l takes those of a where l is even. After
 * merging x[i] with x[i + n/2] for n = LANES, LANES/2 .. 2 and m = 1, 2, 4 .. lane i holds the sum of x[i], for each added in the same order. */
#define FIRST(l, m) ((l) % 2 * LANES + (l) / (2 * (m)) * (2 * (m)) + (l) % (2 * (m)) / 2)
#define SECOND(l, m) (FIRST(l, m) + (m))
#define FOUR(F, l, m) F(l, m), F(l + 1, m), F(l + 2, m), F(l + 3, m)
#if defined(__AVX512F__)
#define LANES_OF(F, m) FOUR(F, 0, m), FOUR(F, 4, m), FOUR(F, 8, m), FOUR(F, 12, m)
#elif defined(__AVX__)
#define LANES_OF(F, m) FOUR(F, 0, m), FOUR(F, 4, m)
#else
#define LANES_OF(F, m) FOUR(F, 0, m)
#endif
#define MERGE(a, b, m) (__builtin_shufflevector(a, b, LANES_OF(FIRST, m)) + __builtin_shufflevector(a, b, LANES_OF(SECOND, m)))

/* The sums of LANES vectors as one; x is used up. */
static inline vec sums_of(vec *x)
{
    for (int i = 0; i < LANES / 2; i++)
        x[i] = MERGE(x[i], x[i + LANES / 2], 1);
    for (int i = 0; i < LANES / 4; i++)
        x[i] = MERGE(x[i], x[i + LANES / 4], 2);
#if defined(__AVX__)
    for (int i = 0; i < LANES / 8; i++)
        x[i] = MERGE(x[i], x[i + LANES / 8], 4);
#endif
#if defined(__AVX512F__)
    x[0] = MERGE(x[0], x[1], 8);
#endif
    return x[0];
}

/* p[i] = q K[i], n keys rounded up to LANES, vectors of a row: constant where this is inlined, so that q stays in registers. */
static inline __attribute__((always_inline)) void dots(int vectors, int n, const float *q, const float *K, size_t ld, float *p)
{
    for (int i0 = 0; i0 < n; i0 += LANES) {
        vec x[LANES];
        for (int i = 0; i < LANES; i++) {
            const float *k = K + (i0 + i) * ld;
            x[i] = (vec){0};
            for (int j = 0; j < vectors; j++)
                x[i] += *(const vec *)(q + j * LANES) * *(const vec *)(k + j * LANES);
        }
        *(vec *)(p + i0) = sums_of(x);
    }
}

/* The cache rows that row r sees, in order; returns how many. */
static int visible_keys(const op_cached_attention *a, int r, int32_t *key)
{
    int n = 0;
    for (int e = a->first_seg[r]; e < a->first_seg[r + 1]; e++)
        for (int j = a->seg[e].start; j < a->seg[e].start + a->seg[e].length; j++)
            if (a->window == 0 || a->key_position[j] > a->position[r] - a->window)
                key[n++] = j;
    return n;
}

static size_t cached_floats(int heads, int ld, int keys)
{
    return ((size_t)heads * (2 * (size_t)ld + (size_t)keys) + BK * (size_t)ld + (size_t)keys + 15) / 16 * 16; /* keys: a multiple of 16 */
}

/* Rows first .. first + count - 1 of the list, as floats. The cache's rows are G D apart, which no prefetcher guesses: each is asked for before its turn. */
static void load_keys(int D, const act *cache, size_t ld_cache, const int32_t *key, int n, int first, int count, float *out, int ld)
{
    enum { SOON = 12 };
    for (int j = first; j < first + count; j++) {
        const act *soon = cache + (size_t)key[min(j + SOON, n - 1)] * ld_cache;
        for (int d = 0; d < D; d += 64 / (int)sizeof(act))
            __builtin_prefetch(soon + d);
        load(1, D, 1, cache + (size_t)key[j] * ld_cache, 0, out + (j - first) * ld, 0);
    }
}

/* One row and one key-value head. Sums run over the keys one by one, whatever tile they are in, so that the result is the
 * same however the cache is cut into segments. P[heads, keys] holds scores, then weights; O[heads, ld] the sums. */
static void cached_task(const op_cached_attention *a, int keys, int r, int g, const act *q, const act *k, const act *v,
                        act *out, float *scratch)
{
    int D = a->D, ld = round_up(D, 16), heads = a->H / a->G;
    float *Q = scratch, *O = Q + heads * ld, *V = O + heads * ld, *P = V + BK * ld;
    int32_t *key = (int32_t *)(P + (size_t)heads * keys);
    int n = visible_keys(a, r, key);
    memset(Q, 0, (size_t)(heads * 2 + BK) * ld * sizeof *Q); /* dots run over the padding of D, and over old keys behind the last */
    load(heads, D, a->scale, q + (size_t)r * a->ldq + (size_t)g * heads * D, (size_t)D, Q, (size_t)ld);
    for (int j0 = 0; j0 < n; j0 += BK) {
        int count = min(n - j0, BK);
        load_keys(D, k + (size_t)g * D, (size_t)a->ldkv, key, n, j0, count, V, ld);
        for (int h = 0; h < heads; h++)
            if (ld == 64)
                dots(64 / LANES, count, Q + h * ld, V, (size_t)ld, P + (size_t)h * keys + j0);
            else
                dots(ld / LANES, count, Q + h * ld, V, (size_t)ld, P + (size_t)h * keys + j0);
    }
    for (int h = 0; h < heads; h++) {
        float highest = -INFINITY, sum = 0, *p = P + (size_t)h * keys;
        softmax_step(n, p, &highest, &sum);
        float share = sum > 0 ? 1 / sum : 0;
        for (int j = 0; j < n; j++)
            p[j] *= share;
    }
    for (int j0 = 0; j0 < n; j0 += BK) {
        int count = min(n - j0, BK);
        load_keys(D, v + (size_t)g * D, (size_t)a->ldkv, key, n, j0, count, V, ld);
        for (int h = 0; h < heads; h += GROUP)
            rows(min(heads - h, GROUP), D, count, P + (size_t)h * keys + j0, (size_t)keys, 1, V, (size_t)ld,
                 O + h * ld, (size_t)ld, true);
    }
    store(heads, D, 1, O, (size_t)ld, out + ((size_t)r * a->H + (size_t)g * heads) * D, (size_t)D);
}

static op_status attention_cached(const op_cached_attention *a, const void *q, const void *k, const void *v, void *out)
{
    int most = 0;
    for (int r = 0; r < a->R; r++) {
        int keys = 0;
        for (int e = a->first_seg[r]; e < a->first_seg[r + 1]; e++)
            keys += a->seg[e].length;
        most = max(most, keys);
    }
    most = round_up(most, 16);
    size_t floats = cached_floats(a->H / a->G, round_up(a->D, 16), most);
    float *scratch = op_cpu_scratch(OP_SCRATCH_TILES, (size_t)omp_get_max_threads() * floats * sizeof *scratch);
    if (!scratch)
        return OP_ERR_NOMEM;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < a->R * a->G; task++)
        cached_task(a, most, task / a->G, task % a->G, q, k, v, out, scratch + omp_get_thread_num() * floats);
    return OP_OK;
}

void OP_CPU_NAME(attention)(op_ops *t)
{
    t->attention = attention;
    t->attention_backward = attention_backward;
    t->attention_cached = attention_cached;
}
