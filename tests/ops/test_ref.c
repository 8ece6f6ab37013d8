/* The backward ops of ref against central differences of its forward ops. The loss is sum(w * outputs) in double; inputs are
 * multiples of 2^-10 and steps are powers of two, so that x + h is exact; two step sizes remove the error of order h^2. */
#include "base/rng.h"
#include "help.h"

static const op_ops *ref;

enum { MOST = 4096 };

/* An op from inputs x[n] to outputs y[m], with everything else in ctx. */
typedef void op_forward(void *ctx, const float *x, float *y);

static float *grid(size_t n, double scale)
{
    float *x = noise(n, scale);
    for (size_t i = 0; i < n; i++)
        x[i] = rintf(x[i] * 1024) / 1024;
    return x;
}

static double loss(op_forward *f, void *ctx, const float *x, size_t m, const float *w)
{
    static float y[MOST];
    assert_true(m <= MOST);
    memset(y, 0, sizeof y);
    f(ctx, x, y);
    double sum = 0;
    for (size_t i = 0; i < m; i++)
        sum += (double)w[i] * y[i];
    return sum;
}

static double slope(op_forward *f, void *ctx, float *x, size_t i, float h, size_t m, const float *w)
{
    float old = x[i];
    x[i] = old + h;
    double up = loss(f, ctx, x, m, w);
    x[i] = old - h;
    double down = loss(f, ctx, x, m, w);
    x[i] = old;
    return (up - down) / (2 * (double)h);
}

/* dx must be d loss / d x within 2e-4 of its largest element. */
static void assert_gradient(const char *what, op_forward *f, void *ctx, size_t n, float *x, size_t m, const float *w,
                            const float *dx)
{
    double most = largest(n, dx);
    assert_true(most > 0);
    for (size_t i = 0; i < n; i++) {
        double want = (4 * slope(f, ctx, x, i, 0x1p-6f, m, w) - slope(f, ctx, x, i, 0x1p-5f, m, w)) / 3;
        if (!(fabs(dx[i] - want) <= 2e-4 * most))
            fail_msg("%s: derivative %zu of %zu is %.9g, differences give %.9g (max %.3g)", what, i, n, dx[i], want,
                     most);
    }
}

/* ---- products ---- */

enum { M = 3, N = 5, K = 7 };

typedef struct product {
    const float *x, *w;
} product;

static void product_of_x(void *ctx, const float *x, float *y)
{
    const product *p = ctx;
    op_weight *W = ref->weight_new(N, K, true);
    ref->weight_pack(W, p->w ? p->w : x);
    assert_int_equal(ref->matmul(W, M, p->x ? p->x : x, NULL, OP_OUT_ACT, y), OP_OK);
    ref->weight_free(W);
}

static void bias_of_x(void *ctx, const float *x, float *y)
{
    const product *p = ctx;
    op_weight *W = ref->weight_new(N, K, true);
    ref->weight_pack(W, p->w);
    assert_int_equal(ref->matmul(W, M, p->x, x, OP_OUT_ACT, y), OP_OK);
    ref->weight_free(W);
}

static void products_have_the_gradients_that_differences_give(void **state)
{
    (void)state;
    float *x = grid(M * K, 1), *w = grid(N * K, 1), *dy = noise(M * N, 1), *b = grid(N, 1);
    float *dx = zeros(M * K), *dw = zeros(N * K), *db = zeros(N);
    op_weight *W = ref->weight_new(N, K, true);
    ref->weight_pack(W, w);
    assert_int_equal(ref->matmul_dx(W, M, dy, OP_OUT_ACT, dx), OP_OK);
    assert_int_equal(ref->matmul_dw(M, N, K, dy, x, dw), OP_OK);
    ref->bias_backward(M, N, dy, N, db);
    assert_gradient("matmul_dx", product_of_x, &(product){NULL, w}, M * K, x, M * N, dy, dx);
    assert_gradient("matmul_dw", product_of_x, &(product){x, NULL}, N * K, w, M * N, dy, dw);
    assert_gradient("bias_backward", bias_of_x, &(product){x, w}, N, b, M * N, dy, db);
    ref->weight_free(W);
}

static void a_general_product_is_alpha_a_b_plus_beta_c_in_every_orientation(void **state)
{
    (void)state;
    for (int flags = 0; flags < 8; flags++) {
        bool ta = flags & 1, tb = flags & 2;
        float beta = flags & 4 ? 1 : 0;
        float *A = noise(64, 1), *B = noise(64, 1), *C = noise(M * 6, 1), *want = zeros(M * 6);
        memcpy(want, C, M * 6 * sizeof *C);
        int lda = 8, ldb = 8;
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) {
                double sum = 0;
                for (int k = 0; k < K; k++)
                    sum += (double)(ta ? A[k * lda + m] : A[m * lda + k]) * (tb ? B[n * ldb + k] : B[k * ldb + n]);
                want[m * 6 + n] = (float)(0.7 * sum + beta * C[m * 6 + n]);
            }
        assert_int_equal(ref->gemm(ta, tb, M, N, K, 0.7f, A, lda, B, ldb, beta, C, 6, true), OP_OK);
        assert_close("gemm", M * 6, C, want, 1e-6, 0);
    }
}

/* ---- rows ---- */

enum { T = 3, C = 6, H = 2, D = 4, HEADS = T * H * D };

typedef struct rows {
    const float *x, *g, *b; /* the one that is NULL is what the derivative is by */
    const int32_t *ids;
    const float *cosines, *sines;
    bool layer;
} rows;

static void norm(void *ctx, const float *x, float *y)
{
    const rows *r = ctx;
    const float *in = r->x ? r->x : x, *g = r->g ? r->g : x, *b = r->b ? r->b : x;
    if (r->layer)
        ref->layernorm(T, C, in, g, b, 1e-2f, y, NULL, NULL);
    else
        ref->rmsnorm(T, C, in, g, 1e-2f, y, NULL);
}

static void norms_have_the_gradients_that_differences_give(void **state)
{
    (void)state;
    float *x = grid(T * C, 1), *g = grid(C, 1), *b = grid(C, 1), *dy = noise(T * C, 1), *y = zeros(T * C);
    float *mean = zeros(T), *rstd = zeros(T);
    for (int layer = 0; layer < 2; layer++) {
        float *dx = zeros(T * C), *dg = zeros(C), *db = zeros(C);
        if (layer) {
            ref->layernorm(T, C, x, g, b, 1e-2f, y, mean, rstd);
            ref->layernorm_backward(T, C, x, g, mean, rstd, dy, dx, dg, db);
        } else {
            ref->rmsnorm(T, C, x, g, 1e-2f, y, rstd);
            ref->rmsnorm_backward(T, C, x, g, rstd, dy, dx, dg);
        }
        assert_gradient("norm dx", norm, &(rows){.g = g, .b = b, .layer = layer}, T * C, x, T * C, dy, dx);
        assert_gradient("norm dg", norm, &(rows){.x = x, .b = b, .layer = layer}, C, g, T * C, dy, dg);
        if (layer)
            assert_gradient("norm db", norm, &(rows){.x = x, .g = g, .layer = true}, C, b, T * C, dy, db);
        float *more = zeros(T * C);
        memcpy(more, dx, T * C * sizeof *dx);
        if (layer)
            ref->layernorm_backward(T, C, x, g, mean, rstd, dy, more, NULL, NULL);
        else
            ref->rmsnorm_backward(T, C, x, g, rstd, dy, more, NULL);
        for (int i = 0; i < T * C; i++)
            dx[i] *= 2;
        assert_close("a second norm dx is added", T * C, more, dx, 1e-6, 0);
    }
}

static void head_norm(void *ctx, const float *x, float *y)
{
    const rows *r = ctx;
    memcpy(y, r->x ? r->x : x, HEADS * sizeof *y);
    ref->headnorm(T, H, D, H * D, y, r->g ? r->g : x, 1e-2f, NULL);
}

static void rotate(void *ctx, const float *x, float *y)
{
    const rows *r = ctx;
    memcpy(y, x, HEADS * sizeof *y);
    ref->rope(T, H, D, H * D, r->ids, r->cosines, r->sines, false, y);
}

static void head_norm_and_rotary_embedding_have_the_gradients_that_differences_give(void **state)
{
    (void)state;
    float *x = grid(HEADS, 1), *g = grid(D, 1), *dy = noise(HEADS, 1), *y = zeros(HEADS), *rstd = zeros(T * H);
    float *dx = zeros(HEADS), *dg = zeros(D);
    memcpy(y, x, HEADS * sizeof *x);
    ref->headnorm(T, H, D, H * D, y, g, 1e-2f, rstd);
    memcpy(dx, dy, HEADS * sizeof *dx);
    ref->headnorm_backward(T, H, D, x, g, rstd, H * D, dx, dg);
    assert_gradient("headnorm dx", head_norm, &(rows){.g = g}, HEADS, x, HEADS, dy, dx);
    assert_gradient("headnorm dg", head_norm, &(rows){.x = x}, D, g, HEADS, dy, dg);

    static const int32_t position[T] = {2, 0, 1};
    float *cosines = zeros(3 * D / 2), *sines = zeros(3 * D / 2);
    for (int i = 0; i < 3 * D / 2; i++) {
        cosines[i] = cosf((float)i);
        sines[i] = sinf((float)i);
    }
    memcpy(dx, dy, HEADS * sizeof *dx);
    ref->rope(T, H, D, H * D, position, cosines, sines, true, dx);
    assert_gradient("rope", rotate, &(rows){.ids = position, .cosines = cosines, .sines = sines}, HEADS, x, HEADS, dy,
                    dx);
    memcpy(y, x, HEADS * sizeof *x);
    ref->rope(T, H, D, H * D, position, cosines, sines, false, y);
    ref->rope(T, H, D, H * D, position, cosines, sines, true, y);
    assert_close("rope forth and back", HEADS, y, x, 1e-6, 0);
}

static void gated(void *ctx, const float *x, float *y)
{
    (void)ctx;
    ref->swiglu(T, C, x, y);
}

static void smooth(void *ctx, const float *x, float *y)
{
    (void)ctx;
    ref->gelu(T * C, x, y);
}

static void look_up(void *ctx, const float *x, float *y)
{
    ref->embed(T, C, ((rows *)ctx)->ids, x, false, y);
}

static void activations_and_embedding_have_the_gradients_that_differences_give(void **state)
{
    (void)state;
    float *x = grid(T * 2 * C, 1.5), *dy = noise(T * C, 1), *dx = zeros(T * 2 * C);
    ref->swiglu_backward(T, C, x, dy, dx);
    assert_gradient("swiglu", gated, NULL, T * 2 * C, x, T * C, dy, dx);
    ref->gelu_backward(T * C, x, dy, dx);
    assert_gradient("gelu", smooth, NULL, T * C, x, T * C, dy, dx);
    static const int32_t ids[T] = {4, 1, 4};
    float *table = grid(5 * C, 1), *dtable = zeros(5 * C);
    ref->embed_backward(T, C, ids, dy, dtable);
    assert_gradient("embed", look_up, &(rows){.ids = ids}, 5 * C, table, T * C, dy, dtable);
}

static void dropout_keeps_the_expected_share_and_the_same_elements_every_time(void **state)
{
    (void)state;
    enum { MANY = 20000 };
    float *x = zeros(MANY), *y = zeros(MANY), *z = zeros(MANY);
    for (int i = 0; i < MANY; i++)
        x[i] = 3;
    ref->dropout(MANY, 0.25f, 7, OP_STREAM_DROPOUT, 100, x, y);
    int kept = 0;
    for (int i = 0; i < MANY; i++) {
        assert_true(y[i] == 0 || fabsf(y[i] - 4) < 1e-6f);
        kept += y[i] != 0;
    }
    assert_in_range(kept, MANY * 0.75 - 250, MANY * 0.75 + 250); /* four standard deviations */
    ref->dropout(MANY - 77, 0.25f, 7, OP_STREAM_DROPOUT, 177, x, z);
    assert_memory_equal(z, y + 77, (MANY - 77) * sizeof *y);
    ref->dropout(MANY, 0, 7, OP_STREAM_DROPOUT, 0, x, y);
    assert_memory_equal(y, x, MANY * sizeof *x);
}

/* ---- attention ---- */

static void attend(void *ctx, const float *x, float *y)
{
    assert_int_equal(ref->attention(ctx, x, y, NULL), OP_OK);
}

/* Two trees: 5 rows, a branch of 3 after row 3 of it, one of 2 after row 2 of that; and one row alone. */
static op_attention small_forest(int window)
{
    static const int32_t start[] = {0, 5, 8, 10}, length[] = {5, 3, 2, 1}, first_seg[] = {0, 0, 1, 3, 3};
    static const int32_t tree_first[] = {0, 3, 4}, position[] = {0, 1, 2, 3, 4, 3, 4, 5, 5, 6, 0};
    static const op_segment seg[] = {{0, 3}, {0, 3}, {5, 2}};
    return (op_attention){.T = 11, .H = 4, .G = 2, .D = 3, .ld = 25, .window = window, .scale = 0.6f, .n_seqs = 4,
                          .n_trees = 2, .start = start, .length = length, .first_seg = first_seg, .seg = seg,
                          .tree_first = tree_first, .position = position};
}

static void attention_has_the_gradients_that_differences_give_with_branches_and_windows(void **state)
{
    (void)state;
    for (int window = 0; window < 5; window += 2) {
        op_attention a = small_forest(window);
        size_t n = 11 * 25, m = 11 * 12;
        float *x = grid(n, 1), *dy = noise(m, 1), *out = zeros(m), *lse = zeros(11 * 4), *dx = zeros(n);
        assert_int_equal(ref->attention(&a, x, out, lse), OP_OK);
        assert_int_equal(ref->attention_backward(&a, x, out, lse, dy, dx), OP_OK);
        assert_gradient("attention", attend, &a, n, x, m, dy, dx);
    }
}

static void a_branch_attends_as_the_whole_sequence_written_out_would(void **state)
{
    (void)state;
    op_attention a = small_forest(0);
    float *x = noise(11 * 25, 1), *out = zeros(11 * 12), *whole = zeros(7 * 25), *want = zeros(7 * 12);
    assert_int_equal(ref->attention(&a, x, out, NULL), OP_OK);
    static const int rows_of[] = {0, 1, 2, 5, 6, 8, 9}; /* the third sequence */
    for (int i = 0; i < 7; i++)
        memcpy(whole + i * 25, x + rows_of[i] * 25, 25 * sizeof *x);
    static const int32_t start[] = {0}, length[] = {7}, none[] = {0, 0}, tree[] = {0, 1};
    a.T = 7;
    a.n_seqs = a.n_trees = 1;
    a.start = start;
    a.length = length;
    a.first_seg = none;
    a.tree_first = tree;
    assert_int_equal(ref->attention(&a, whole, want, NULL), OP_OK);
    assert_close("branch", 12, out + 8 * 12, want + 5 * 12, 1e-6, 0);
    assert_close("branch", 12, out + 9 * 12, want + 6 * 12, 1e-6, 0);

    static const int32_t first[] = {0, 3}, position[] = {6};
    static const op_segment seg[] = {{0, 3}, {5, 2}, {8, 2}};
    op_cached_attention c = {1, 4, 2, 3, 25, 25, 0, 0.6f, first, seg, position, NULL, false};
    float *cached = zeros(12);
    assert_int_equal(ref->attention_cached(&c, x + 9 * 25, x + 12, x + 18, cached), OP_OK);
    assert_close("cached", 12, cached, want + 6 * 12, 1e-6, 0);
}

/* ---- vocabulary ---- */

enum { ROWS = 3, V = 7 };
static const int32_t target[ROWS] = {6, 0, 2};

static void log_prob(void *ctx, const float *x, float *y)
{
    (void)ctx;
    float lse[ROWS];
    ref->logprob(ROWS, V, x, target, lse, y);
}

static void log_probabilities_have_the_gradients_that_differences_give(void **state)
{
    (void)state;
    float *x = grid(ROWS * V, 2), *w = noise(ROWS, 1), *lse = zeros(ROWS), *logp = zeros(ROWS), *dx = zeros(ROWS * V);
    float *extra = noise(ROWS * V, 1), *with = zeros(ROWS * V);
    ref->logprob(ROWS, V, x, target, lse, logp);
    ref->logprob_backward(ROWS, V, x, lse, target, w, NULL, dx);
    assert_gradient("logprob", log_prob, NULL, ROWS * V, x, ROWS, w, dx);
    ref->logprob_backward(ROWS, V, x, lse, target, w, extra, with);
    ref->add_f32(ROWS * V, extra, dx);
    assert_close("extra", ROWS * V, with, dx, 1e-6, 0);
}

static void forbidden_tokens_have_probability_0_and_no_gradient(void **state)
{
    (void)state;
    float x[V] = {1, -INFINITY, 2, -INFINITY, 0, 1, 1}, lse, logp, dx[V], one = 1;
    int32_t hit = 2, forbidden = 1;
    ref->logprob(1, V, x, &hit, &lse, &logp);
    assert_true(fabs(lse - log(exp(2) + 3 * exp(1) + 1)) < 1e-6);
    ref->logprob_backward(1, V, x, &lse, &hit, &one, NULL, dx);
    assert_true(dx[1] == 0 && dx[3] == 0 && dx[2] > 0);
    ref->logprob(1, V, x, &forbidden, &lse, &logp);
    assert_true(logp == -INFINITY);
}

/* One step by hand: lr 0.1, betas 0.9 and 0.5, decay 0.2, gradient halved. */
static void adamw_moves_by_the_published_rule(void **state)
{
    (void)state;
    float p = 2, g = 3, m = 0.4f, v = 0.8f;
    op_adamw o = {0.1f, 0.9f, 0.5f, 1e-3f, 0.2f, 0.5f, 2, 0};
    ref->adamw(1, &p, &g, &m, &v, &o);
    double m1 = 0.9 * 0.4 + 0.1 * 1.5, v1 = 0.5 * 0.8 + 0.5 * 2.25;
    double want = 2 - 0.1 * 0.2 * 2 - 0.1 * (m1 / (1 - 0.81)) / (sqrt(v1 / (1 - 0.25)) + 1e-3);
    assert_true(fabs(m - m1) < 1e-6 && fabs(v - v1) < 1e-6 && fabs(p - want) < 1e-6);
}

static void a_backend_or_type_that_is_not_there_gives_no_table(void **state)
{
    (void)state;
    assert_null(op_ops_get("ref", OP_BF16));
    assert_null(op_ops_get("cpu", OP_F16));
    assert_null(op_ops_get("abacus", OP_F32));
    assert_false(op_ops_simd_force("x86-64-v9"));
}

int main(void)
{
    ref = op_ops_get("ref", OP_F32);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(products_have_the_gradients_that_differences_give, drop_all),
        cmocka_unit_test_teardown(a_general_product_is_alpha_a_b_plus_beta_c_in_every_orientation, drop_all),
        cmocka_unit_test_teardown(norms_have_the_gradients_that_differences_give, drop_all),
        cmocka_unit_test_teardown(head_norm_and_rotary_embedding_have_the_gradients_that_differences_give, drop_all),
        cmocka_unit_test_teardown(activations_and_embedding_have_the_gradients_that_differences_give, drop_all),
        cmocka_unit_test_teardown(dropout_keeps_the_expected_share_and_the_same_elements_every_time, drop_all),
        cmocka_unit_test_teardown(attention_has_the_gradients_that_differences_give_with_branches_and_windows, drop_all),
        cmocka_unit_test_teardown(a_branch_attends_as_the_whole_sequence_written_out_would, drop_all),
        cmocka_unit_test_teardown(log_probabilities_have_the_gradients_that_differences_give, drop_all),
        cmocka_unit_test_teardown(forbidden_tokens_have_probability_0_and_no_gradient, drop_all),
        cmocka_unit_test(a_backend_or_type_that_is_not_there_gives_no_table),
        cmocka_unit_test_teardown(adamw_moves_by_the_published_rule, drop_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
