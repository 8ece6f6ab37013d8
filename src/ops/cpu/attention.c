/* Attention in tiles of BQ queries by BK keys with a running softmax (Dao: 2307.08691); tiles.h has their arithmetic.
 *
 * A tile of keys and values is read once and serves every query head of its group. Tiles count keys along the path that the queries see, ancestors first,
 * wherever their rows lie. What a row gets depends on its path alone: neither on the other queries of its tile nor on how the path is cut into
 * segments, since masked keys add nothing, and a tile that one row does not see changes nothing for it.
 *
 * Forward tasks are (tile of queries, key-value head). Backward tasks are (tree, key-value head), because the gradients of shared keys collect
 * from the whole tree; where there are too few of them, all threads take queries of one, each with sums of its own, which are added up in their order. */
#include <omp.h>

#include "base/mem.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/tiles.h"

/* ---- the keys of a path ---- */

/* Walks over the tiles of keys that m queries see which follow one another on a path. */
typedef struct walk {
    const op_segment *seg; /* what the path consists of, and after it `own` */
    int pieces;
    op_segment own;
    bool apart;            /* end a tile where a piece ends, so that its rows follow one another */
    int query, m;          /* the first query's place on the path, and how many there are */
    int piece, at;         /* the next key */
    int place, n;          /* the tile's first key on the path, and how many it has */
    int32_t row[BK];       /* where they lie */
} walk;

static bool walk_next(walk *w)
{
    w->place += w->n;
    w->n = 0;
    while (w->piece <= w->pieces && w->n < BK && !(w->apart && w->n && w->at == 0)) {
        op_segment g = w->piece < w->pieces ? w->seg[w->piece] : w->own;
        while (w->at < g.length && w->n < BK)
            w->row[w->n++] = g.start + w->at++;
        if (w->at == g.length) {
            w->piece++;
            w->at = 0;
        }
    }
    return w->n > 0;
}

/* Row r of a tile sees its columns 0 .. seen - 1 (a window cuts further, in the scores). */
static int seen(const walk *w, int r)
{
    return max(min(w->n, w->query + r + 1 - w->place), 0);
}

/* The columns of row r that its group of rows computes, in whole vectors. */
static int width_of(const walk *w, int r)
{
    return round_up(seen(w, min(w->m, r / GROUP * GROUP + GROUP) - 1), LANES);
}

/* The queries i0 .. i0+m-1 of sequence s */
static walk walk_of(const op_attention *a, int s, int i0, bool apart)
{
    int m = min(a->length[s] - i0, BQ), before = 0;
    for (int e = a->first_seg[s]; e < a->first_seg[s + 1]; e++)
        before += a->seg[e].length;
    return (walk){.seg = a->seg + a->first_seg[s], .pieces = a->first_seg[s + 1] - a->first_seg[s], .own = {a->start[s], i0 + m},
                  .apart = apart, .query = before + i0, .m = m};
}

/* ---- tiles ---- */

/* S[m, BK] = Q[m, D] Kt[D, BK], where visible */
static void scores(const walk *w, int D, const float *Q, size_t ldq, const float *Kt, float *S)
{
    for (int r = 0; r < w->m; r += GROUP) {
        int R = min(w->m - r, GROUP);
        rows_of_units(R, seen(w, r + R - 1), units(D), Q + r * ldq, ldq, Kt, BK, S + r * BK, BK);
    }
}

/* O[m, D] += P[m, BK] V[n, D]; P is 0 where not visible */
static void weigh(const walk *w, int D, const float *P, const float *V, float *O, size_t ld)
{
    for (int r = 0; r < w->m; r += GROUP) {
        int R = min(w->m - r, GROUP);
        rows(R, D, seen(w, r + R - 1), P + r * BK, BK, 1, V, ld, O + r * ld, ld, true);
    }
}

/* dV[n, D] += P[m, BK]^T dO[m, D]: only the queries that see the first key of a group of rows */
static void collect(const walk *w, int D, const float *P, const float *dO, float *dV, size_t ld)
{
    for (int c = 0; c < w->n; c += GROUP) {
        int first = max(c + w->place - w->query, 0);
        if (first < w->m)
            rows(min(w->n - c, GROUP), D, w->m - first, P + first * BK + c, 1, BK, dO + first * ld, ld, dV + c * ld, ld,
                 true);
    }
}

/* What all tasks of a call share: the heads of queries, keys and values, and where they lie. */
typedef struct operands {
    int group, D, window;  /* query heads a key-value head */
    size_t ld, ldu;        /* head width padded to whole vectors, in floats and in units */
    float scale;
    const act *q, *k, *v;  /* row 0 of the first head */
    size_t ldq, ldkv;
    const int32_t *position, *key_position; /* of the rows of q and of k */
} operands;

static operands operands_of(const op_attention *a, const act *qkv)
{
    size_t key = (size_t)a->H * a->D, value = key + (size_t)a->G * a->D;
    return (operands){a->H / a->G, a->D, a->window, (size_t)round_up(a->D, 16), (size_t)round_up(units(a->D), 16), a->scale, qkv, qkv + key,
                   qkv + value, (size_t)a->ld, (size_t)a->ld, a->position, a->position};
}

/* Sets to -infinity what rows do not see of the columns that are computed. `first` is the first query's row. */
static void mask(const operands *z, const walk *w, size_t first, float *S)
{
    if (!z->window && seen(w, 0) == w->n && w->n % LANES == 0)
        return;
    for (int r = 0; r < w->m; r++) {
        float *s = S + r * BK;
        for (int c = seen(w, r); c < width_of(w, r); c++)
            s[c] = -INFINITY;
        for (int c = 0; z->window && c < seen(w, r); c++)
            s[c] = z->key_position[w->row[c]] <= z->position[first + r] - z->window ? -INFINITY : s[c];
    }
}

/* With a window: do the queries from row `first` on see anything of this tile? */
static bool in_window(const operands *z, const walk *w, size_t first)
{
    if (!z->window)
        return true;
    int lowest = z->position[first], highest = z->key_position[w->row[0]];
    for (int r = 1; r < w->m; r++)
        lowest = min(lowest, z->position[first + r]);
    for (int c = 1; c < w->n; c++)
        highest = max(highest, z->key_position[w->row[c]]);
    return highest > lowest - z->window;
}

/* Asks for row i of a list before its turn: rows of a cache are far apart, which no prefetcher guesses. */
static inline void ask_ahead(int D, const act *x, size_t ldx, const int32_t *row, int i, int n)
{
    enum { SOON = 12 };
    const act *soon = x + (size_t)row[min(i + SOON, n - 1)] * ldx;
    for (int d = 0; d < D; d += 64 / (int)sizeof(act))
        __builtin_prefetch(soon + d);
}

/* The first `count` of n listed rows of one head as floats[count, ld] */
static void load_listed(int D, const act *x, size_t ldx, const int32_t *row, int count, int n, float *y, size_t ld)
{
    for (int i = 0; i < count; i++) {
        ask_ahead(D, x, ldx, row, i, n);
        load_row(D, x + (size_t)row[i] * ldx, y + i * ld);
    }
}

/* The same as units[count, ld] */
static void load_listed_units(int D, const act *x, size_t ldx, const int32_t *row, int count, int n, float *y, size_t ld)
{
    for (int i = 0; i < count; i++) {
        ask_ahead(D, x, ldx, row, i, n);
        load_units(D, x + (size_t)row[i] * ldx, y + i * ld);
    }
}

/* The tile's rows of one head as the columns of xt[D, BK] in units; `room` holds BK rows. */
static void load_across(const operands *z, const walk *w, const act *x, float *room, float *xt)
{
    load_listed_units(z->D, x, z->ldkv, w->row, w->n, w->n, room, z->ldu);
    transpose(w->n, units(z->D), room, z->ldu, xt);
}

/* ---- forward ---- */

/* Rows of the batch that belong to no sequence get zeros, so that they do no harm in products over all rows. */
static bool has_gaps(const op_attention *a)
{
    int rows_owned = 0;
    for (int s = 0; s < a->n_seqs; s++)
        rows_owned += a->length[s];
    return rows_owned < a->T;
}

/* The running softmax: S becomes exp(scale S - highest); highest and sum move on; shrink is what older terms are multiplied by. Rows are done LANES
 * at a time, so that what is one number a row is a vector too. */
static void softmax_step(const walk *w, float scale, float *S, float *highest, float *total, float *shrink)
{
    for (int r0 = 0; r0 < w->m; r0 += LANES) {
        vec x[LANES];
        int width[LANES];
        for (int i = 0; i < LANES; i++) {
            width[i] = r0 + i < w->m ? width_of(w, r0 + i) : 0;
            x[i] = (vec){0} - INFINITY;
            for (int c = 0; c < width[i]; c += LANES)
                x[i] = larger(x[i], *(const vec *)(S + (r0 + i) * BK + c));
        }
        vec before = *(const vec *)(highest + r0), top = larger(before, maxima_of(x) * scale);
        vec off = (vec)((ints)top & ~(ints)(top == -INFINITY)), less = exp_of(before - off);
        *(vec *)(highest + r0) = top;
        *(vec *)(shrink + r0) = less;
        for (int i = 0; i < LANES; i++) {
            x[i] = (vec){0};
            for (int c = 0; c < width[i]; c += LANES) {
                vec *s = (vec *)(S + (r0 + i) * BK + c);
                *s = exp_of(*s * scale - off[i]);
                x[i] += *s;
            }
        }
        *(vec *)(total + r0) = *(const vec *)(total + r0) * less + sums_of(x);
    }
}

static size_t forward_floats(const operands *z)
{
    return (BK * (z->ld + 2 * z->ldu) + BQ * BK + (size_t)z->group * BQ * (z->ld + z->ldu + 2) + BQ + 15) / 16 * 16;
}

/* The queries of rows first .. first + w->m - 1 and the heads of group g: out[rows, H D], lse[rows, H] */
static void forward_task(const operands *z, walk *w, size_t first, int g, int H, act *out, float *lse, float *scratch)
{
    size_t ld = z->ld, ldu = z->ldu, D = (size_t)z->D, all = (size_t)z->group * BQ, head = (size_t)g * (size_t)z->group;
    float *V = scratch, *room = V + BK * ld, *Kt = room + BK * ldu, *S = Kt + BK * ldu, *Q = S + BQ * BK, *O = Q + all * ldu;
    float *highest = O + all * ld, *sum = highest + all, *shrink = sum + all;
    for (int h = 0; h < z->group; h++)
        for (int r = 0; r < w->m; r++)
            load_units(z->D, z->q + (first + r) * z->ldq + (head + h) * D, Q + (h * BQ + r) * ldu);
    for (size_t i = 0; i < all; i++) {
        highest[i] = -INFINITY;
        sum[i] = 0;
    }
    memset(O, 0, all * ld * sizeof *O);
    while (walk_next(w)) {
        if (!in_window(z, w, first))
            continue;
        load_across(z, w, z->k + g * D, room, Kt);
        load_listed(z->D, z->v + g * D, z->ldkv, w->row, w->n, w->n, V, ld);
        for (int h = 0; h < z->group; h++) {
            float *o = O + h * BQ * ld;
            scores(w, z->D, Q + h * BQ * ldu, ldu, Kt, S);
            mask(z, w, first, S);
            softmax_step(w, z->scale, S, highest + h * BQ, sum + h * BQ, shrink);
            for (int r = 0; r < w->m; r++)
                for (size_t d = 0; d < ld && shrink[r] != 1; d += LANES)
                    *(vec *)(o + r * ld + d) *= shrink[r];
            weigh(w, z->D, S, V, o, ld);
        }
    }
    for (int h = 0; h < z->group; h++)
        for (int r = 0; r < w->m; r++) {
            size_t at = (first + r) * H + head + h;
            float total = sum[h * BQ + r];
            store(1, z->D, total > 0 ? 1 / total : 0, O + (h * BQ + r) * ld, ld, out + at * D, D);
            if (lse)
                lse[at] = highest[h * BQ + r] + logf(total);
        }
}

static op_status attention(const op_attention *a, const void *qkv, void *out, float *lse)
{
    operands z = operands_of(a, qkv);
    size_t floats = forward_floats(&z);
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
        walk w = walk_of(a, s, left * BQ, false);
        forward_task(&z, &w, (size_t)(a->start[s] + left * BQ), task % a->G, a->H, out, lse, scratch + omp_get_thread_num() * floats);
    }
    return OP_OK;
}

/* ---- backward ---- */

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

static int tree_tiles(const op_attention *a, int tree)
{
    int tiles = 0;
    for (int s = a->tree_first[tree]; s < a->tree_first[tree + 1]; s++)
        tiles += (a->length[s] + BQ - 1) / BQ;
    return tiles;
}

/* S becomes P = exp(scale S - lse) and dP becomes dS = P (dP - delta); both are 0 in columns that no row of a group computes. */
static void softmax_backward(const walk *w, float scale, float *S, float *dS, const float *lse, const float *delta)
{
    for (int r = 0; r < w->m; r++) {
        float off = lse[r] == -INFINITY ? 0 : lse[r];
        vec *p = (vec *)(S + r * BK), *ds = (vec *)(dS + r * BK);
        int c = 0;
        for (; c < width_of(w, r) / LANES; c++) {
            p[c] = exp_of(p[c] * scale - off);
            ds[c] = p[c] * (ds[c] - delta[r]);
        }
        for (; c < BK / LANES; c++)
            p[c] = ds[c] = (vec){0};
    }
}

typedef struct gradients {
    const op_attention *a;
    operands z;
    const act *out, *dout;
    const float *lse;
    act *dqkv;
    float *scratch;       /* of all threads: fixed floats for tiles, then dK and dV [longest tree, ld] */
    size_t fixed, floats; /* of one thread */
} gradients;

static size_t backward_floats(const operands *z)
{
    return (BK * (z->ld + 3 * z->ldu) + 2 * BQ * BK + (size_t)z->group * BQ * (3 * z->ld + 2 * z->ldu + 2) + 15) / 16 * 16;
}

/* The gradients of BQ queries of one sequence and of all keys and values that they see. dK and dV are of the tree; dK lacks the scale. */
static void backward_tile(const gradients *t, int s, int i0, int g, int tree_start, float *dK, float *dV, float *scratch)
{
    const operands *z = &t->z;
    size_t ld = z->ld, ldu = z->ldu, D = (size_t)z->D, all = (size_t)z->group * BQ, head = (size_t)g * (size_t)z->group, H = (size_t)t->a->H;
    float *K = scratch, *room = K + BK * ld, *Kt = room + BK * ldu, *Vt = Kt + BK * ldu, *S = Vt + BK * ldu, *dS = S + BQ * BK;
    float *Q = dS + BQ * BK, *dO = Q + all * ld, *dQ = dO + all * ld, *Qu = dQ + all * ld, *dOu = Qu + all * ldu;
    float *delta = dOu + all * ldu, *lse = delta + all;
    walk w = walk_of(t->a, s, i0, true);
    size_t first = (size_t)(t->a->start[s] + i0);
    for (int h = 0; h < z->group; h++)
        for (int r = 0; r < w.m; r++) {
            size_t at = (first + r) * H + head + h, i = (size_t)(h * BQ + r);
            const act *q = z->q + (first + r) * z->ldq + (head + h) * D, *out = t->out + at * D, *dout = t->dout + at * D;
            load_row(z->D, q, Q + i * ld);
            load_units(z->D, q, Qu + i * ldu);
            load_row(z->D, dout, dO + i * ld);
            load_units(z->D, dout, dOu + i * ldu);
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < z->D; d++)
                sum += dO[i * ld + d] * from_act1(out[d]);
            delta[i] = sum;
            lse[i] = t->lse[at];
        }
    memset(dQ, 0, all * ld * sizeof *dQ);
    while (walk_next(&w)) {
        if (!in_window(z, &w, first))
            continue;
        load_across(z, &w, z->k + g * D, room, Kt);
        load_across(z, &w, z->v + g * D, room, Vt);
        load_listed(z->D, z->k + g * D, z->ldkv, w.row, w.n, w.n, K, ld);
        float *dk = dK + (w.row[0] - tree_start) * ld, *dv = dV + (w.row[0] - tree_start) * ld;
        for (int h = 0; h < z->group; h++) {
            float *q = Q + h * BQ * ld, *d = dO + h * BQ * ld;
            scores(&w, z->D, Qu + h * BQ * ldu, ldu, Kt, S);
            scores(&w, z->D, dOu + h * BQ * ldu, ldu, Vt, dS);
            mask(z, &w, first, S);
            softmax_backward(&w, z->scale, S, dS, lse + h * BQ, delta + h * BQ);
            collect(&w, z->D, S, d, dv, ld);
            collect(&w, z->D, dS, q, dk, ld);
            weigh(&w, z->D, dS, K, dQ + h * BQ * ld, ld);
        }
    }
    for (int h = 0; h < z->group; h++)
        store(w.m, z->D, z->scale, dQ + h * BQ * ld, ld, t->dqkv + first * z->ldq + (head + h) * D, z->ldq);
}

/* The i-th of n parts of a task. Tiles cost more the later they are: part 0 takes tiles 0, 2n-1, 2n, 4n-1 and so on. */
static void backward_part(const gradients *t, int task, int i, int n)
{
    const op_attention *a = t->a;
    int tree = task / a->G, tile = 0;
    op_segment span = tree_rows(a, tree);
    float *mine = t->scratch + omp_get_thread_num() * t->floats, *dK = mine + t->fixed, *dV = dK + (size_t)span.length * t->z.ld;
    memset(dK, 0, 2 * (size_t)span.length * t->z.ld * sizeof *dK);
    for (int s = a->tree_first[tree]; s < a->tree_first[tree + 1]; s++)
        for (int i0 = 0; i0 < a->length[s]; i0 += BQ, tile++)
            if ((tile / n % 2 ? n - 1 - tile % n : tile % n) == i)
                backward_tile(t, s, i0, task % a->G, span.start, dK, dV, mine);
}

/* Adds the sums of n threads from `from` on up, for the i-th of n parts of each sequence's rows, and rounds them. */
static void backward_finish(const gradients *t, int task, int from, int i, int n)
{
    const op_attention *a = t->a;
    int tree = task / a->G;
    op_segment span = tree_rows(a, tree);
    size_t ld = t->z.ld, D = (size_t)t->z.D, area = (size_t)span.length * ld, key = ((size_t)a->H + task % a->G) * D;
    float *dK = t->scratch + from * t->floats + t->fixed;
    for (int s = a->tree_first[tree]; s < a->tree_first[tree + 1]; s++) {
        int first = (int)((int64_t)a->length[s] * i / n), count = (int)((int64_t)a->length[s] * (i + 1) / n) - first, row = a->start[s] + first;
        float *dk = dK + (row - span.start) * ld, *dv = dk + area;
        for (int j = 1; j < n; j++)
            for (size_t d = 0; d < count * ld; d += LANES) {
                *(vec *)(dk + d) += *(vec *)(dk + d + j * t->floats);
                *(vec *)(dv + d) += *(vec *)(dv + d + j * t->floats);
            }
        store(count, t->z.D, a->scale, dk, ld, t->dqkv + (size_t)row * t->z.ldq + key, t->z.ldq);
        store(count, t->z.D, 1, dv, ld, t->dqkv + (size_t)row * t->z.ldq + key + a->G * D, t->z.ldq);
    }
}

/* Is a call over earlier if all threads work at one task after the other? By the tiles of the longest thread. */
static bool one_by_one(const op_attention *a)
{
    int64_t threads = omp_get_max_threads(), tasks = (int64_t)a->n_trees * a->G, longest = 0, together = 0;
    for (int tree = 0; tree < a->n_trees; tree++) {
        int tiles = tree_tiles(a, tree);
        longest = max((int)longest, tiles);
        together += a->G * ((tiles + threads - 1) / threads);
    }
    return together < (tasks + threads - 1) / threads * longest;
}

static op_status attention_backward(const op_attention *a, const void *qkv, const void *out, const float *lse,
                                    const void *dout, void *dqkv)
{
    gradients t = {.a = a, .z = operands_of(a, qkv), .out = out, .dout = dout, .lse = lse, .dqkv = dqkv};
    int longest = 0, tasks = a->n_trees * a->G;
    for (int tree = 0; tree < a->n_trees; tree++)
        longest = max(longest, tree_rows(a, tree).length);
    t.fixed = backward_floats(&t.z);
    t.floats = t.fixed + 2 * (size_t)longest * t.z.ld;
    t.scratch = op_cpu_scratch(OP_SCRATCH_TILES, (size_t)omp_get_max_threads() * t.floats * sizeof(float));
    if (!t.scratch)
        return OP_ERR_NOMEM;
    if (has_gaps(a))
        memset(dqkv, 0, (size_t)a->T * a->ld * sizeof(act));
    if (one_by_one(a)) {
#pragma omp parallel
        for (int task = 0, i = omp_get_thread_num(), n = omp_get_num_threads(); task < tasks; task++) {
            backward_part(&t, task, i, n);
#pragma omp barrier
            backward_finish(&t, task, 0, i, n);
#pragma omp barrier
        }
        return OP_OK;
    }
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < tasks; task++) {
        backward_part(&t, task, 0, 1);
        backward_finish(&t, task, omp_get_thread_num(), 0, 1);
    }
    return OP_OK;
}

/* ---- prompts ---- */

/* Does row r see what the row before it sees, and one row more? */
static bool continues(const op_cached_attention *a, int r)
{
    const op_segment *x = a->seg + a->first_seg[r - 1], *y = a->seg + a->first_seg[r];
    int n = a->first_seg[r + 1] - a->first_seg[r];
    return n > 0 && n == a->first_seg[r] - a->first_seg[r - 1] && memcmp(x, y, (size_t)(n - 1) * sizeof *x) == 0 &&
           x[n - 1].start == y[n - 1].start && x[n - 1].length + 1 == y[n - 1].length;
}

/* Tiles of rows that continue one another, which share the keys of the last of them */
static op_status attention_prompts(const op_cached_attention *a, const void *q, const void *k, const void *v, void *out)
{
    operands z = {a->H / a->G, a->D, a->window, (size_t)round_up(a->D, 16), (size_t)round_up(units(a->D), 16), a->scale, q, k, v,
               (size_t)a->ldq, (size_t)a->ldkv, a->position, a->key_position};
    size_t floats = forward_floats(&z), list = (size_t)round_up(a->R + 1, 16);
    float *scratch = op_cpu_scratch(OP_SCRATCH_TILES, ((size_t)omp_get_max_threads() * floats + list) * sizeof *scratch);
    if (!scratch)
        return OP_ERR_NOMEM;
    int32_t *first = (int32_t *)scratch;
    int tiles = 0;
    for (int r = 0; r < a->R; r++)
        if (r == 0 || r - first[tiles - 1] == BQ || !continues(a, r))
            first[tiles++] = r;
    first[tiles] = a->R;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < tiles * a->G; task++) {
        int r = first[task / a->G], m = first[task / a->G + 1] - r, last = r + m - 1, keys = 0;
        for (int e = a->first_seg[last]; e < a->first_seg[last + 1]; e++)
            keys += a->seg[e].length;
        walk w = {.seg = a->seg + a->first_seg[last], .pieces = a->first_seg[last + 1] - a->first_seg[last], .query = keys - m, .m = m};
        forward_task(&z, &w, (size_t)r, task % a->G, a->H, out, NULL, scratch + list + omp_get_thread_num() * floats);
    }
    return OP_OK;
}

/* ---- generation ---- */

/* p[i] = q K[i] in units, n keys rounded up to LANES, vectors of a row: constant where this is inlined, so that q stays in registers. */
static inline __attribute__((always_inline)) void dots(int vectors, int n, const float *q, const float *K, size_t ld, float *p)
{
    for (int i0 = 0; i0 < n; i0 += LANES) {
        vec x[LANES];
        for (int i = 0; i < LANES; i++) {
            const float *k = K + (i0 + i) * ld;
            x[i] = (vec){0};
            for (int j = 0; j < vectors; j++)
                x[i] = multiply_units(*(const vec *)(q + j * LANES), *(const vec *)(k + j * LANES), x[i]);
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

/* The softmax of one row's scores times `scale`, in place */
static void softmax_row(int n, float scale, float *s)
{
    float top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
    for (int j = 0; j < n; j++)
        top = s[j] > top ? s[j] : top;
#pragma omp simd reduction(+ : total)
    for (int j = 0; j < n; j++) {
        s[j] = exp1(scale * (s[j] - top));
        total += s[j];
    }
    float share = total > 0 ? 1 / total : 0;
    for (int j = 0; j < n; j++)
        s[j] *= share;
}

/* One row and one key-value head. Sums run over the keys one by one, whatever tile they are in, so that the result is the
 * same however the cache is cut into segments. P[heads, keys] holds scores, then weights; O[heads, ld] the sums. */
static void cached_task(const op_cached_attention *a, int keys, int r, int g, const act *q, const act *k, const act *v,
                        act *out, float *scratch)
{
    int D = a->D, ld = round_up(D, 16), ldu = round_up(units(D), 16), heads = a->H / a->G;
    float *Q = scratch, *O = Q + heads * ld, *V = O + heads * ld, *P = V + BK * ld;
    int32_t *key = (int32_t *)(P + (size_t)heads * keys);
    int n = visible_keys(a, r, key);
    memset(Q, 0, (size_t)(heads * 2 + BK) * ld * sizeof *Q); /* dots run over the padding of D, and over old keys behind the last */
    for (int h = 0; h < heads; h++)
        load_units(D, q + (size_t)r * a->ldq + (size_t)(g * heads + h) * D, Q + h * ldu);
    for (int j0 = 0; j0 < n; j0 += BK) {
        int count = min(n - j0, BK);
        load_listed_units(D, k + (size_t)g * D, (size_t)a->ldkv, key + j0, count, n - j0, V, (size_t)ldu);
        for (int h = 0; h < heads; h++)
            if (D == 64)
                dots(units(64) / LANES, count, Q + h * ldu, V, (size_t)ldu, P + (size_t)h * keys + j0);
            else
                dots(ldu / LANES, count, Q + h * ldu, V, (size_t)ldu, P + (size_t)h * keys + j0);
    }
    for (int h = 0; h < heads; h++)
        softmax_row(n, a->scale, P + (size_t)h * keys);
    for (int j0 = 0; j0 < n; j0 += BK) {
        int count = min(n - j0, BK);
        load_listed(D, v + (size_t)g * D, (size_t)a->ldkv, key + j0, count, n - j0, V, (size_t)ld);
        for (int h = 0; h < heads; h += GROUP)
            rows(min(heads - h, GROUP), D, count, P + (size_t)h * keys + j0, (size_t)keys, 1, V, (size_t)ld,
                 O + h * ld, (size_t)ld, true);
    }
    store(heads, D, 1, O, (size_t)ld, out + ((size_t)r * a->H + (size_t)g * heads) * D, (size_t)D);
}

static op_status attention_cached(const op_cached_attention *a, const void *q, const void *k, const void *v, void *out)
{
    if (a->prompts)
        return attention_prompts(a, q, k, v, out);
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
