/* ops_bench: the speed of each op on the shapes of SmolLM2-135M (C=576, F=1536, H=9, G=3, D=64, V=49152).
 * Products print GFLOP/s and their share of the best one of the same type; passes over memory print GB/s of the bytes that they
 * must move. Each line is the best of the runs that fit in its time: ops_bench [seconds a line, 0.1] [all|products|rows] [threads]. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <operant/clock.h>

#include "base/mem.h"
#include "ops/ops.h"

enum { C = 576, F = 1536, H = 9, G = 3, D = 64, V = 49152, QKV = (H + 2 * G) * D, T = 2048, SEQ = 256 };

static double seconds = 0.1;

/* Sets `best` to the shortest time of CALL. */
#define TIME(best, CALL)                                                                                               \
    do {                                                                                                               \
        best = INFINITY;                                                                                               \
        CALL;                                                                                                          \
        for (double end = op_seconds() + seconds, t_ = op_seconds(); t_ < end;) {                                                    \
            CALL;                                                                                                      \
            double after_ = op_seconds();                                                                                     \
            best = fmin(best, after_ - t_);                                                                            \
            t_ = after_;                                                                                               \
        }                                                                                                              \
    } while (0)

static void *memory(size_t bytes)
{
    void *p = op_alloc_aligned(bytes);
    if (!p)
        exit(1);
    return p;
}

/* Activations with small values of mixed sign, so that nothing overflows or is denormal. */
static void *activations(const op_ops *ops, size_t n)
{
    float *x = memory(n * sizeof *x);
    void *a = memory(n * ops->act_size);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 16) % 2001) / 1000.0f - 1.0f;
    ops->to_act(n, x, a);
    op_free_aligned(x);
    return a;
}

static void product_line(const char *what, int M, int N, int K, double t, double peak)
{
    double rate = 2e-9 * M * N * K / t;
    printf("  %-24s M %5d N %5d K %5d %9.1f GFLOP/s %5.0f%%\n", what, M, N, K, rate, 100 * rate / peak);
}

static double layer_products; /* seconds of a layer's products, forward and backward, for 2048 rows */

static void products(const op_ops *ops)
{
    static const struct {
        const char *name;
        int N, K;
    } shapes[] = {{"qkv", QKV, C}, {"attention out", C, H * D}, {"gate and up", 2 * F, C}, {"down", C, F}, {"logits", V, C}};
    static const int counts[] = {32, 128, 512, 1024};
    double peak = fmax(op_ops_peak(ops, 512, 1536, 576, 3 * seconds), op_ops_peak(ops, 512, 576, 1536, 3 * seconds));
    printf("%s: peak %.1f GFLOP/s\n", ops->act == OP_BF16 ? "bf16" : "f32", peak);
    layer_products = 0;
    for (int i = 0; i < 5; i++) {
        int N = shapes[i].N, K = shapes[i].K;
        float *w = memory((size_t)N * K * sizeof *w), *dw = memory((size_t)N * K * sizeof *dw);
        for (size_t k = 0; k < (size_t)N * K; k++)
            w[k] = (float)(k % 97) / 97 - 0.5f;
        void *x = activations(ops, (size_t)1024 * K), *dy = activations(ops, (size_t)(N == V ? 256 : 1024) * N);
        float *y = memory((size_t)(N == V ? 256 : 1024) * N * sizeof *y);
        float *r = memory((size_t)1024 * K * sizeof *r);
        op_weight *W = ops->weight_new(N, K, true);
        double t, each = 0;
        TIME(t, ops->weight_pack(W, w));
        if (!ops->keeps_f32)
            printf("  %-24s %.2f ms, %.1f GB/s read\n", shapes[i].name, t * 1e3, 4e-9 * N * K / t);
        for (int j = 0; j < 4; j++) {
            int M = counts[j];
            if (N == V && M > 256)
                M = 256;
            TIME(t, ops->matmul(W, M, x, NULL, N == V ? OP_OUT_F32 : OP_OUT_ACT, y));
            product_line(shapes[i].name, M, N, K, t, peak);
            each += M == 1024 ? t : 0;
            if (M < 128)
                continue;
            TIME(t, ops->matmul(W, M, x, NULL, OP_OUT_F32_ADD, y));
            product_line("  added to float", M, N, K, t, peak);
            TIME(t, ops->matmul_dx(W, M, dy, OP_OUT_ACT, r));
            product_line("  dx", M, N, K, t, peak);
            each += M == 1024 ? t : 0;
            TIME(t, ops->matmul_dw(M, N, K, dy, x, dw));
            product_line("  dw", M, N, K, t, peak);
            each += M == 1024 ? t : 0;
            if (M == 256)
                break;
        }
        layer_products += 2 * each;
        ops->weight_free(W);
        void *all[] = {w, dw, x, dy, y, r};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            op_free_aligned(all[k]);
    }
    void *x = activations(ops, (size_t)T * C), *small = activations(ops, (size_t)T * 64), *a = activations(ops, 64 * C);
    float *dw = memory(64 * C * sizeof *dw);
    for (int rank = 8; rank <= 64; rank *= 2) {
        double t;
        TIME(t, ops->gemm(false, true, T, rank, C, 1, x, C, a, C, 0, small, rank, false));
        product_line("lora x A^T", T, rank, C, t, peak);
        TIME(t, ops->gemm(false, false, T, C, rank, 2, small, rank, a, C, 1, x, C, false));
        product_line("lora h B, added", T, C, rank, t, peak);
        TIME(t, ops->gemm(true, false, rank, C, T, 1, small, rank, x, C, 1, dw, C, true));
        product_line("lora dA", rank, C, T, t, peak);
    }
    op_free_aligned(x);
    op_free_aligned(small);
    op_free_aligned(a);
    op_free_aligned(dw);
}

static void row_line(const char *what, double bytes, double t)
{
    printf("  %-24s %8.3f ms %8.1f GB/s\n", what, t * 1e3, bytes / t * 1e-9);
}

static void attention(const op_ops *ops, int length)
{
    enum { MOST = 64 };
    int32_t start[MOST], lengths[MOST], first_seg[MOST + 1] = {0}, tree_first[MOST + 1], position[T];
    int n = T / length;
    for (int s = 0; s <= n; s++)
        tree_first[s] = s;
    for (int s = 0; s < n; s++) {
        start[s] = s * length;
        lengths[s] = length;
    }
    for (int t = 0; t < T; t++)
        position[t] = t % length;
    op_attention a = {.T = T, .H = H, .G = G, .D = D, .ld = QKV, .scale = 0.125f, .n_seqs = n, .n_trees = n,
                      .start = start, .length = lengths, .first_seg = first_seg, .tree_first = tree_first,
                      .position = position};
    void *qkv = activations(ops, (size_t)T * QKV), *out = activations(ops, (size_t)T * H * D);
    void *dout = activations(ops, (size_t)T * H * D), *d = activations(ops, (size_t)T * QKV);
    float *lse = memory((size_t)T * H * sizeof *lse);
    double t, t2, flops = 2e-9 * n * H * D * length * (length + 1.0);
    TIME(t, ops->attention(&a, qkv, out, lse));
    TIME(t2, ops->attention_backward(&a, qkv, out, lse, dout, d));
    printf("  attention %2d x %4d       %8.3f ms %7.1f GFLOP/s; backward %8.3f ms %7.1f GFLOP/s", n, length, t * 1e3,
           flops / t, t2 * 1e3, 2.5 * flops / t2);
    if (layer_products > 0)
        printf("; %.1f%% of the layer's products (%.1f ms)", 100 * (t + t2) / layer_products, layer_products * 1e3);
    printf("\n");
    op_free_aligned(qkv);
    op_free_aligned(out);
    op_free_aligned(dout);
    op_free_aligned(d);
    op_free_aligned(lse);
}

static void cached(const op_ops *ops, int R, int length)
{
    size_t rows = (size_t)R * length;
    int32_t first[129], position[128];
    op_segment seg[128];
    for (int r = 0; r <= R; r++)
        first[r] = r;
    for (int r = 0; r < R; r++) {
        seg[r] = (op_segment){r * length, length};
        position[r] = length;
    }
    op_cached_attention a = {R, H, G, D, QKV, G * D, 0, 0.125f, first, seg, position, NULL, false};
    void *q = activations(ops, (size_t)R * QKV), *k = activations(ops, rows * G * D), *v = activations(ops, rows * G * D);
    void *out = activations(ops, (size_t)R * H * D);
    double t;
    TIME(t, ops->attention_cached(&a, q, k, v, out));
    char what[64];
    snprintf(what, sizeof what, "cached %d x %d keys", R, length);
    row_line(what, 2.0 * (double)rows * G * D * (double)ops->act_size, t);
    op_free_aligned(q);
    op_free_aligned(k);
    op_free_aligned(v);
    op_free_aligned(out);
}

static void rows(const op_ops *ops)
{
    double act = (double)ops->act_size, t;
    printf("%s: rows of %d tokens, loops %s\n", ops->act == OP_BF16 ? "bf16" : "f32", T, op_ops_simd());
    float *x = memory((size_t)T * C * 4), *dx = memory((size_t)T * C * 4), *g = memory(C * 4), *rstd = memory(T * 4);
    void *a = activations(ops, (size_t)T * 2 * F), *b = activations(ops, (size_t)T * 2 * F);
    void *c = activations(ops, (size_t)T * F);
    float *table = memory((size_t)SEQ * 32 * 4);
    int32_t *ids = memory(T * 4);
    ops->from_act((size_t)T * C, a, x);
    ops->from_act(C, a, g);
    for (int i = 0; i < T; i++)
        ids[i] = i % SEQ;
    TIME(t, ops->rmsnorm(T, C, x, g, 1e-5f, a, rstd));
    row_line("rmsnorm", (4 + act) * T * C, t);
    TIME(t, ops->rmsnorm_backward(T, C, x, g, rstd, a, dx, g));
    row_line("rmsnorm_backward", (12 + act) * T * C, t);
    TIME(t, ops->rope(T, H + G, D, QKV, ids, table, table, false, a));
    row_line("rope", 2 * act * T * (H + G) * D, t);
    TIME(t, ops->swiglu(T, F, b, c));
    row_line("swiglu", 3 * act * T * F, t);
    TIME(t, ops->swiglu_backward(T, F, b, c, a));
    row_line("swiglu_backward", 5 * act * T * F, t);
    TIME(t, ops->dropout((size_t)T * C, 0.1f, 1, 3, 0, b, c));
    row_line("dropout", 2 * act * T * C, t);
    TIME(t, ops->gelu((size_t)T * F, b, c));
    row_line("gelu", 2 * act * T * F, t);
    attention(ops, 64);
    attention(ops, SEQ);
    attention(ops, T);
    cached(ops, 1, 256);
    cached(ops, 32, 256);
    enum { CHUNK = 256 };
    float *logits = memory((size_t)CHUNK * V * 4);
    for (size_t i = 0; i < (size_t)CHUNK * V; i++)
        logits[i] = (float)(i % 1013) / 100;
    void *dlogits = memory((size_t)CHUNK * V * ops->act_size);
    TIME(t, ops->logprob(CHUNK, V, logits, ids, rstd, dx));
    row_line("logprob", 4.0 * CHUNK * V, t);
    TIME(t, ops->logprob_backward(CHUNK, V, logits, rstd, ids, g, NULL, dlogits));
    row_line("logprob_backward", (4 + act) * CHUNK * V, t);
    op_free_aligned(logits);
    op_free_aligned(dlogits);
    size_t n = (size_t)V * C;
    float *p = memory(n * 4), *grad = memory(n * 4), *m = memory(n * 4), *v = memory(n * 4);
    op_adamw o = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 10, 0};
    TIME(t, ops->adamw(n, p, grad, m, v, &o));
    row_line("adamw", 28.0 * (double)n, t);
    volatile double sum;
    TIME(t, sum = ops->sum_squares(n, grad));
    (void)sum;
    row_line("sum_squares", 4.0 * (double)n, t);
    void *all[] = {x, dx, g, rstd, a, b, c, table, ids, p, grad, m, v};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        op_free_aligned(all[k]);
}

int main(int argc, char **argv)
{
    const char *part = argc > 2 ? argv[2] : "all";
    if (argc > 1)
        seconds = atof(argv[1]);
    op_threads_set(argc > 3 ? atoi(argv[3]) : 0);
    printf("oneDNN %s, loops %s, %d threads\n", op_ops_product_isa(), op_ops_simd(), op_threads());
    for (int i = 0; i < 2; i++) {
        const op_ops *ops = op_ops_get("cpu", i ? OP_F32 : OP_BF16);
        layer_products = 0;
        if (strcmp(part, "rows") != 0)
            products(ops);
        if (strcmp(part, "products") != 0)
            rows(ops);
    }
    op_ops_release();
    return 0;
}
