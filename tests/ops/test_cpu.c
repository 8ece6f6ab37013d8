/* Every op of cpu/f32 and cpu/bf16 against ref, on odd shapes and at every level of SIMD that the processor has. */
#include <stdlib.h>

#define OP_ACT_BF16 0
#include "help.h"
#include "ops/cpu/simd.h"
#include "ops/dynamic8.h"

static const op_ops *ref;

/* Runs a check for both activation types and every level; the last, which differs from the one before it in attention alone, sees its numbers. */
static void everywhere(void (*check)(const op_ops *ops))
{
    static const char *const levels[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4 bf16"};
    ref = op_ops_get("ref", OP_F32);
    const char *best = op_ops_simd();
    enum { LEVELS = sizeof levels / sizeof *levels };
    uint64_t numbers = noise_state;
    for (int l = 0; l < LEVELS; l++) {
        if (!op_ops_simd_force(levels[l])) {
            print_message("[          ] this processor lacks %s\n", levels[l]);
            continue;
        }
        if (l == LEVELS - 1)
            noise_state = numbers;
        numbers = noise_state;
        check(op_ops_get("cpu", OP_F32));
        drop_all(NULL);
        check(op_ops_get("cpu", OP_BF16));
        drop_all(NULL);
    }
    op_ops_simd_force(best);
}

static void the_exponential_is_within_2_units_in_the_last_place(void **state)
{
    (void)state;
    for (int i = -87000; i <= 88000; i++) {
        float x = (float)i / 1000;
        double want = exp((double)x);
        assert_true(fabs(exp1(x) - want) <= 2 * 0x1p-23 * want);
    }
    assert_true(exp1(-INFINITY) == 0 && exp1(-100) == 0 && exp1(0) == 1 && isnan(exp1(NAN)));
    assert_true(isfinite(exp1(INFINITY)) && exp1(100) == exp1(88));
}

/* ---- products ---- */

static const int products[][3] = {{1, 33, 65}, {3, 64, 576}, {17, 100, 48}, {65, 576, 130}, {128, 40, 1}, {530, 96, 64}};
enum { N_PRODUCTS = sizeof products / sizeof *products };

static op_weight *weight(const op_ops *ops, int N, int K, const float *w)
{
    op_weight *W = ops->weight_new(N, K, true);
    assert_non_null(W);
    assert_int_equal(ops->weight_pack(W, w), OP_OK);
    return W;
}

static void check_matmul(const op_ops *ops)
{
    for (int i = 0; i < N_PRODUCTS; i++) {
        int M = products[i][0], N = products[i][1], K = products[i][2];
        float *x = noise((size_t)M * K, 1), *w = noise((size_t)N * K, 1), *bias = noise((size_t)N, 1);
        float *dy = noise((size_t)M * N, 1);
        void *xa = as_act(ops, (size_t)M * K, x), *dya = as_act(ops, (size_t)M * N, dy);
        if (ops->act == OP_BF16)
            as_act(ops, (size_t)N * K, w);
        op_weight *W = weight(ops, N, K, w), *R = weight(ref, N, K, w);
        for (int with_bias = 0; with_bias < 2; with_bias++)
            for (op_out out = OP_OUT_ACT; out <= OP_OUT_F32_ADD; out++) {
                float *want = noise((size_t)M * N, 3), *got = zeros((size_t)M * N + 1);
                memcpy(got, want, (size_t)M * N * sizeof *got);
                assert_int_equal(ref->matmul(R, M, x, with_bias ? bias : NULL, out, want), OP_OK);
                assert_int_equal(ops->matmul(W, M, xa, with_bias ? bias : NULL, out, got), OP_OK);
                if (out == OP_OUT_ACT)
                    assert_act(ops, "matmul", (size_t)M * N, got, want, 1e-6);
                else
                    assert_close("matmul to float", (size_t)M * N, got, want, 2e-6, 0);
                assert_true(got[(size_t)M * N] == 0);
            }
        for (op_out out = OP_OUT_ACT; out <= OP_OUT_F32_ADD; out++) {
            float *want = noise((size_t)M * K, 3), *got = zeros((size_t)M * K);
            memcpy(got, want, (size_t)M * K * sizeof *got);
            assert_int_equal(ref->matmul_dx(R, M, dy, out, want), OP_OK);
            assert_int_equal(ops->matmul_dx(W, M, dya, out, got), OP_OK);
            if (out == OP_OUT_ACT)
                assert_act(ops, "matmul_dx", (size_t)M * K, got, want, 1e-6);
            else
                assert_close("matmul_dx to float", (size_t)M * K, got, want, 2e-6, 0);
        }
        float *want = noise((size_t)N * K, 1), *got = zeros((size_t)N * K);
        memcpy(got, want, (size_t)N * K * sizeof *got);
        assert_int_equal(ref->matmul_dw(M, N, K, dy, x, want), OP_OK);
        assert_int_equal(ops->matmul_dw(M, N, K, dya, xa, got), OP_OK);
        assert_close("matmul_dw", (size_t)N * K, got, want, 2e-6, 0);
        ops->weight_free(W);
        ref->weight_free(R);
        drop_all(NULL);
    }
}

static void products_with_weights_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_matmul);
}

static void check_gemm(const op_ops *ops)
{
    static const int shapes[][3] = {{37, 8, 100}, {8, 96, 37}, {65, 64, 16}, {1, 1, 1}, {5, 3, 300}};
    for (int i = 0; i < 5; i++)
        for (int flags = 0; flags < 16; flags++) {
            bool ta = flags & 1, tb = flags & 2, c_f32 = flags & 4;
            float beta = flags & 8 ? 1 : 0;
            int M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
            int lda = (ta ? M : K) + 3, ldb = (tb ? K : N) + 5, ldc = N + 2;
            size_t na = (size_t)(ta ? K : M) * lda, nb = (size_t)(tb ? N : K) * ldb, nc = (size_t)M * ldc;
            float *A = noise(na, 1), *B = noise(nb, 1), *C = noise(nc, 1);
            void *Aa = as_act(ops, na, A), *Ba = as_act(ops, nb, B), *Ca = as_act(ops, nc, C);
            if (c_f32) {
                Ca = zeros(nc);
                memcpy(Ca, C, nc * sizeof *C);
            }
            assert_int_equal(ref->gemm(ta, tb, M, N, K, 0.7f, A, lda, B, ldb, beta, C, ldc, c_f32), OP_OK);
            assert_int_equal(ops->gemm(ta, tb, M, N, K, 0.7f, Aa, lda, Ba, ldb, beta, Ca, ldc, c_f32), OP_OK);
            if (c_f32)
                assert_close("gemm to float", nc, Ca, C, 2e-6, 0);
            else
                assert_act(ops, "gemm", nc, Ca, C, 1e-6);
            drop_all(NULL);
        }
}

static void general_products_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_gemm);
}

/* The same row in another place, among other rows. */
static void check_independence(const op_ops *ops, int N, int K)
{
    float *w = noise((size_t)N * K, 1);
    op_weight *W = weight(ops, N, K, w);
    static const int counts[] = {32, 128, 512};
    for (int i = 0; i < (N > 10000 ? 2 : 3); i++) {
        size_t M = (size_t)counts[i], row = (size_t)K * ops->act_size;
        char *x = as_act(ops, M * K, noise(M * K, 1)), *other = as_act(ops, M * K, noise(M * K, 1));
        float *y = zeros(M * N), *z = zeros(M * N);
        assert_int_equal(ops->matmul(W, (int)M, x, NULL, OP_OUT_F32, y), OP_OK);
        for (size_t from = 0; from < M; from += 7)
            memcpy(other + (from * 5 + 3) % M * row, x + from * row, row);
        assert_int_equal(ops->matmul(W, (int)M, other, NULL, OP_OUT_F32, z), OP_OK);
        for (size_t from = 0; from < M; from += 7)
            if (memcmp(other + (from * 5 + 3) % M * row, x + from * row, row) == 0)
                assert_memory_equal(z + (from * 5 + 3) % M * N, y + from * N, (size_t)N * sizeof *y);
    }
    ops->weight_free(W);
    drop_all(NULL);
}

/* An adapter's product into some columns of wider rows takes another path through oneDNN. */
static void check_strided_independence(const op_ops *ops)
{
    enum { N = 192, K = 16, LD = 960 };
    for (size_t M = 32; M <= 128; M *= 4) {
        size_t row = K * ops->act_size, width = LD * ops->act_size;
        char *h = as_act(ops, M * K, noise(M * K, 1)), *y = hold(M * width);
        void *B = as_act(ops, N * K, noise(N * K, 1));
        for (size_t m = 1; m < M; m += 3)
            memcpy(h + m * row, h, row);
        assert_int_equal(ops->gemm(false, true, (int)M, N, K, 2, h, K, B, K, 1, y, LD, false), OP_OK);
        for (size_t m = 1; m < M; m += 3)
            assert_memory_equal(y + m * width, y, N * ops->act_size);
    }
    drop_all(NULL);
}

static void a_row_of_a_product_depends_on_no_other_row_nor_on_its_place(void **state)
{
    (void)state;
    if (strncmp(op_ops_product_isa(), "avx2", 4) == 0) {
        print_message("[          ] not promised for products with %s\n", op_ops_product_isa());
        skip();
    }
    check_strided_independence(op_ops_get("cpu", OP_F32));
    check_strided_independence(op_ops_get("cpu", OP_BF16));
    static const int shapes[][2] = {{960, 576}, {576, 576}, {3072, 576}, {576, 1536}, {49152, 576}, {100, 90}};
    for (int i = 0; i < 6; i++) {
        check_independence(op_ops_get("cpu", OP_F32), shapes[i][0], shapes[i][1]);
        check_independence(op_ops_get("cpu", OP_BF16), shapes[i][0], shapes[i][1]);
    }
}

static void more_shapes_than_are_kept_still_give_right_products(void **state)
{
    (void)state;
    ref = op_ops_get("ref", OP_F32);
    const op_ops *ops = op_ops_get("cpu", OP_F32);
    float *x = noise(600 * 8, 1), *w = noise(8 * 8, 1), *got = zeros(600 * 8), *want = zeros(600 * 8);
    op_weight *W = weight(ops, 8, 8, w), *R = weight(ref, 8, 8, w);
    assert_int_equal(ref->matmul(R, 512, x, NULL, OP_OUT_ACT, want), OP_OK);
    for (int round = 0; round < 2; round++)
        for (int M = 1; M <= 512; M += round ? 100 : 1) {
            assert_int_equal(ops->matmul(W, M, x, NULL, OP_OUT_ACT, got), OP_OK);
            for (int T = 0; T < 2 && !round && M > 500; T++)
                assert_int_equal(ops->gemm(false, true, M, 8, 8, 0.5f + (float)T, x, 8, w, 8, 0, got, 8, true), OP_OK);
            assert_int_equal(ops->matmul(W, M, x, NULL, OP_OUT_ACT, got), OP_OK);
            assert_close("matmul", (size_t)M * 8, got, want, 2e-6, 0);
        }
    ops->weight_free(W);
    ref->weight_free(R);
}

/* ---- rows ---- */

static const int shapes[][2] = {{1, 5}, {3, 64}, {17, 100}, {65, 33}, {130, 576}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void check_elements(const op_ops *ops)
{
    static const size_t sizes[] = {1, 7, 65, 20011};
    for (int i = 0; i < 4; i++) {
        size_t n = sizes[i];
        float *x = noise(n, 3), *y = noise(n, 1), *want = zeros(n), *sum = noise(n, 1);
        if (n > 8)
            x[0] = 200, x[1] = -200, x[2] = 0;
        void *got = hold(n * ops->act_size);
        ops->to_act(n, x, got);
        assert_act(ops, "to_act", n, got, x, 0);
        void *xa = as_act(ops, n, x), *ya = as_act(ops, n, y);
        ops->from_act(n, xa, want);
        assert_memory_equal(want, x, n * sizeof *x);
        ref->gelu(n, x, want);
        ops->gelu(n, xa, got);
        assert_act(ops, "gelu", n, got, want, 1e-6);
        ref->gelu_backward(n, x, y, want);
        ops->gelu_backward(n, xa, ya, got);
        assert_act(ops, "gelu_backward", n, got, want, 2e-6);
        for (int k = 0; k < 2; k++) {
            ref->dropout(n, 0.3f, 5, 9, k ? 1000003 : 0, x, want);
            ops->dropout(n, 0.3f, 5, 9, k ? 1000003 : 0, xa, got);
            assert_act(ops, "dropout", n, got, want, 1e-6);
        }
        memcpy(want, sum, n * sizeof *sum);
        ref->add_f32(n, x, want);
        ops->add_f32(n, x, sum);
        assert_close("add_f32", n, sum, want, 1e-7, 0);
        ref->add(n, x, y);
        ops->add(n, xa, ya);
        assert_act(ops, "add", n, ya, y, 1e-7);
        double a = ref->sum_squares(n, x), b = ops->sum_squares(n, x);
        assert_true(fabs(a - b) <= 1e-12 * a);
    }
}

static void elementwise_ops_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_elements);
}

static void check_norms(const op_ops *ops)
{
    for (int i = 0; i < N_SHAPES; i++) {
        int T = shapes[i][0], C = shapes[i][1];
        size_t n = (size_t)T * C, c = (size_t)C, t = (size_t)T;
        float *x = noise(n, 2), *g = noise(c, 1), *b = noise(c, 1), *dy = noise(n, 1), *want = zeros(n);
        float *rstd = zeros(t), *rstd2 = zeros(t), *mean = zeros(t), *mean2 = zeros(t);
        void *dya = as_act(ops, n, dy), *got = hold(n * ops->act_size);
        float *dx = noise(n, 1), *dx2 = zeros(n), *dg = noise(c, 1), *dg2 = zeros(c), *db = noise(c, 1), *db2 = zeros(c);
        memcpy(dx2, dx, n * 4);
        memcpy(dg2, dg, c * 4);
        memcpy(db2, db, c * 4);

        ref->rmsnorm(T, C, x, g, 1e-5f, want, rstd);
        ops->rmsnorm(T, C, x, g, 1e-5f, got, rstd2);
        assert_act(ops, "rmsnorm", n, got, want, 1e-6);
        assert_close("rstd", t, rstd2, rstd, 1e-6, 0);
        ref->rmsnorm_backward(T, C, x, g, rstd, dy, dx, dg);
        ops->rmsnorm_backward(T, C, x, g, rstd, dya, dx2, dg2);
        assert_close("rmsnorm dx", n, dx2, dx, 1e-6, 0);
        assert_close("rmsnorm dg", c, dg2, dg, 2e-6, 0);
        ref->rmsnorm_backward(T, C, x, g, rstd, dy, dx, NULL);
        ops->rmsnorm_backward(T, C, x, g, rstd, dya, dx2, NULL);
        assert_close("rmsnorm dx without dg", n, dx2, dx, 1e-6, 0);

        for (size_t k = 0; k < n; k++)
            x[k] += 3;
        ref->layernorm(T, C, x, g, b, 1e-5f, want, mean, rstd);
        ops->layernorm(T, C, x, g, b, 1e-5f, got, mean2, rstd2);
        assert_act(ops, "layernorm", n, got, want, 4e-6);
        assert_close("mean", t, mean2, mean, 3e-6, 0);
        ref->layernorm_backward(T, C, x, g, mean, rstd, dy, dx, dg, db);
        ops->layernorm_backward(T, C, x, g, mean, rstd, dya, dx2, dg2, db2);
        assert_close("layernorm dx", n, dx2, dx, 4e-6, 0);
        assert_close("layernorm dg", c, dg2, dg, 4e-6, 0);
        assert_close("layernorm db", c, db2, db, 4e-6, 0);

        ref->bias_backward(T, C - 2, dy + 1, C, db);
        ops->bias_backward(T, C - 2, (char *)dya + ops->act_size, C, db2);
        assert_close("bias_backward", c, db2, db, 4e-6, 0);
    }
}

static void norms_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_norms);
}

static void check_heads(const op_ops *ops)
{
    static const int heads[][3] = {{1, 2, 32}, {17, 3, 64}, {65, 9, 80}, {3, 1, 10}};
    for (int i = 0; i < 4; i++) {
        int T = heads[i][0], H = heads[i][1], D = heads[i][2], ld = H * D + 6;
        size_t n = (size_t)T * ld, dense = (size_t)T * H * D;
        float *x = noise(n, 2), *g = noise((size_t)D, 1), *raw = noise(dense, 2), *d = noise(n, 1);
        float *rstd = zeros((size_t)T * H), *rstd2 = zeros((size_t)T * H);
        float *dg = zeros((size_t)D), *dg2 = zeros((size_t)D);
        void *xa = as_act(ops, n, x), *rawa = as_act(ops, dense, raw), *da = as_act(ops, n, d);
        ref->headnorm(T, H, D, ld, x, g, 1e-6f, rstd);
        ops->headnorm(T, H, D, ld, xa, g, 1e-6f, rstd2);
        assert_act(ops, "headnorm", n, xa, x, 1e-6);
        assert_close("headnorm rstd", (size_t)T * H, rstd2, rstd, 1e-6, 0);
        ref->headnorm_backward(T, H, D, raw, g, rstd, ld, d, dg);
        ops->headnorm_backward(T, H, D, rawa, g, rstd, ld, da, dg2);
        assert_act(ops, "headnorm_backward", n, da, d, 2e-6);
        assert_close("headnorm dg", (size_t)D, dg2, dg, 4e-6, 0);
        int32_t position[65];
        for (int t = 0; t < T; t++)
            position[t] = (t * 7) % 65;
        float *cosines = noise((size_t)65 * D / 2, 1), *sines = noise((size_t)65 * D / 2, 1);
        for (int inverse = 0; inverse < 2; inverse++) {
            x = as_f32(ops, n, xa);
            ref->rope(T, H, D, ld, position, cosines, sines, inverse, x);
            ops->rope(T, H, D, ld, position, cosines, sines, inverse, xa);
            assert_act(ops, "rope", n, xa, x, 1e-6);
        }
    }
}

static void head_norms_and_rotary_embeddings_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_heads);
}

static void check_feed_forward(const op_ops *ops)
{
    for (int i = 0; i < N_SHAPES; i++) {
        int T = shapes[i][0], F = shapes[i][1], V = 50;
        size_t n = (size_t)T * F;
        float *gu = noise(2 * n, 3), *dy = noise(n, 1), *want = zeros(2 * n), *table = noise((size_t)V * F, 1);
        gu[0] = 150;
        gu[F > 5 ? 1 : 0] = -150;
        void *gua = as_act(ops, 2 * n, gu), *dya = as_act(ops, n, dy), *got = hold(2 * n * ops->act_size);
        ref->swiglu(T, F, gu, want);
        ops->swiglu(T, F, gua, got);
        assert_act(ops, "swiglu", n, got, want, 1e-6);
        ref->swiglu_backward(T, F, gu, dy, want);
        ops->swiglu_backward(T, F, gua, dya, got);
        assert_act(ops, "swiglu_backward", 2 * n, got, want, 1e-6);

        int32_t ids[130];
        for (int t = 0; t < T; t++)
            ids[t] = t * t % V;
        float *e = zeros(n), *dt = zeros((size_t)V * F), *dt2 = zeros((size_t)V * F);
        ops->embed(T, F, ids, table, false, e);
        ref->embed(T, F, ids, table, false, want);
        assert_memory_equal(e, want, n * 4);
        void *ta = as_act(ops, (size_t)V * F, table);
        ops->embed(T, F, ids, ta, true, e);
        ref->embed(T, F, ids, table, true, want);
        assert_memory_equal(e, want, n * 4);
        ref->embed_backward(T, F, ids, e, dt);
        ops->embed_backward(T, F, ids, e, dt2);
        assert_memory_equal(dt, dt2, (size_t)V * F * 4);
    }
}

static void feed_forward_and_embedding_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_feed_forward);
}

/* ---- attention ---- */

static const int attentions[][4] = {{9, 3, 64, 0}, {2, 2, 32, 7}, {4, 1, 80, 60}, {2, 1, 128, 0}, {1, 1, 10, 100}};

static void check_attention(const op_ops *ops)
{
    for (int i = 0; i < 5; i++) {
        int H = attentions[i][0], G = attentions[i][1], D = attentions[i][2];
        forest *f = forest_new(H, G, D, attentions[i][3]);
        size_t T = (size_t)f->a.T, n = T * (size_t)f->a.ld, m = T * H * D;
        float *qkv = noise(n, 1.5), *out = zeros(m), *dout = noise(m, 1), *lse = zeros(T * H), *lse2 = zeros(T * H);
        float *dqkv = zeros(n);
        void *a = as_act(ops, n, qkv), *da = as_act(ops, m, dout), *got = hold(m * ops->act_size);
        void *dgot = hold(n * ops->act_size);
        assert_int_equal(ref->attention(&f->a, qkv, out, lse), OP_OK);
        assert_int_equal(ops->attention(&f->a, a, got, lse2), OP_OK);
        assert_act(ops, "attention", m, got, out, 3e-6);
        assert_close("attention lse", (T - 3) * H, lse2, lse, 2e-6, 0);
        /* The same outputs go into both, so that their rounding does not count. */
        void *out_act = as_act(ops, m, out);
        assert_int_equal(ref->attention_backward(&f->a, qkv, out, lse, dout, dqkv), OP_OK);
        assert_int_equal(ops->attention_backward(&f->a, a, out_act, lse, da, dgot), OP_OK);
        assert_act(ops, "attention_backward", n, dgot, dqkv, 5e-6);
        drop_all(NULL);
    }
}

static void attention_over_ragged_forests_agrees_with_ref(void **state)
{
    (void)state;
    everywhere(check_attention);
}

static void check_cached(const op_ops *ops)
{
    static const op_segment segs[] = {{0, 40}, {90, 1}, {0, 40}, {41, 30}, {91, 2}, {95, 1}};
    static const int32_t first[] = {0, 2, 5, 6, 6}, position[] = {40, 71, 3, 9};
    int32_t key_position[100];
    for (int j = 0; j < 100; j++)
        key_position[j] = j < 80 ? j : j == 95 ? 3 : j == 90 ? 40 : j == 91 ? 70 : 71;
    for (int i = 0; i < 5; i++) {
        int H = attentions[i][0], G = attentions[i][1], D = attentions[i][2], ldkv = G * D + 5;
        op_cached_attention c = {4, H, G, D, H * D + 2, ldkv, attentions[i][3], 0.3f, first, segs, position, key_position, false};
        size_t nq = 4 * (size_t)c.ldq, nk = 100 * (size_t)ldkv, m = 4 * (size_t)(H * D);
        float *q = noise(nq, 1), *k = noise(nk, 1), *v = noise(nk, 1), *want = zeros(m);
        void *qa = as_act(ops, nq, q), *ka = as_act(ops, nk, k), *va = as_act(ops, nk, v), *got = hold(m * ops->act_size);
        assert_int_equal(ref->attention_cached(&c, q, k, v, want), OP_OK);
        assert_int_equal(ops->attention_cached(&c, qa, ka, va, got), OP_OK);
        assert_act(ops, "attention_cached", m, got, want, 2e-6);
        drop_all(NULL);
    }
}

static void attention_against_a_cache_agrees_with_ref(void **state)
{
    (void)state;
    everywhere(check_cached);
}

static void cached_attention_gives_the_same_bits_however_the_cache_is_cut(void **state)
{
    (void)state;
    const op_ops *ops = op_ops_get("cpu", OP_BF16);
    static const op_segment whole[] = {{0, 90}}, cut[] = {{0, 13}, {13, 70}, {83, 7}, {0, 90}};
    static const int32_t first_whole[] = {0, 1}, first_cut[] = {0, 3, 4}, position[] = {89, 89};
    size_t n = 90 * 192, m = 2 * 576;
    void *q = as_act(ops, m, noise(m, 1)), *k = as_act(ops, n, noise(n, 1)), *v = as_act(ops, n, noise(n, 1));
    void *a = hold(m * 2), *b = hold(m * 2);
    op_cached_attention c = {1, 9, 3, 64, 576, 192, 0, 0.125f, first_whole, whole, position, NULL, false};
    assert_int_equal(ops->attention_cached(&c, q, k, v, a), OP_OK);
    c = (op_cached_attention){2, 9, 3, 64, 576, 192, 0, 0.125f, first_cut, cut, position, NULL, false};
    assert_int_equal(ops->attention_cached(&c, q, k, v, b), OP_OK);
    assert_memory_equal(a, b, 576 * 2);
}

/* Two texts in one cache: places 60..159 of one, and of one that shares its first 40 the places from there on. In tiles, and then each row alone with its
 * keys cut elsewhere. */
static void check_prompts(const op_ops *ops)
{
    enum { FIRST = 100, R = 130, ROWS = 240 };
    op_segment seg[2 * R], alone[3];
    int32_t first[R + 1], position[R], key_position[ROWS];
    for (int j = 0; j < ROWS; j++)
        key_position[j] = j < 200 ? j : j - 160;
    for (int r = 0; r <= R; r++) {
        first[r] = r < FIRST ? r : 2 * r - FIRST;
        if (r == R)
            break;
        position[r] = r < FIRST ? r + 60 : r - FIRST + 40;
        seg[first[r]] = (op_segment){0, r < FIRST ? r + 61 : 40};
        if (r >= FIRST)
            seg[first[r] + 1] = (op_segment){200, r - FIRST + 1};
    }
    for (int i = 0; i < 5; i++) {
        int H = attentions[i][0], G = attentions[i][1], D = attentions[i][2], ldkv = G * D + 5;
        op_cached_attention c = {R, H, G, D, H * D + 2, ldkv, attentions[i][3], 0.3f, first, seg, position, key_position, true};
        size_t nq = R * (size_t)c.ldq, nk = ROWS * (size_t)ldkv, row = (size_t)(H * D), m = R * row;
        float *q = noise(nq, 1), *k = noise(nk, 1), *v = noise(nk, 1), *want = zeros(m);
        char *qa = as_act(ops, nq, q), *ka = as_act(ops, nk, k), *va = as_act(ops, nk, v), *got = hold(m * ops->act_size), *one = hold(row * ops->act_size);
        assert_int_equal(ref->attention_cached(&c, q, k, v, want), OP_OK);
        assert_int_equal(ops->attention_cached(&c, qa, ka, va, got), OP_OK);
        assert_act(ops, "attention of prompts", m, got, want, 3e-6);
        for (int r = 0; r < R; r++) {
            int n = 0;
            for (int e = first[r]; e < first[r + 1]; e++) {
                int cut = e == first[r] ? 7 + r % 30 : 0;
                if (cut)
                    alone[n++] = (op_segment){seg[e].start, cut};
                alone[n++] = (op_segment){seg[e].start + cut, seg[e].length - cut};
            }
            int32_t all[] = {0, n};
            c = (op_cached_attention){1, H, G, D, H * D + 2, ldkv, attentions[i][3], 0.3f, all, alone, position + r, key_position, true};
            assert_int_equal(ops->attention_cached(&c, qa + (size_t)r * (size_t)c.ldq * ops->act_size, ka, va, one), OP_OK);
            assert_memory_equal(one, got + (size_t)r * row * ops->act_size, row * ops->act_size);
        }
        drop_all(NULL);
    }
}

static void attention_of_prompts_agrees_with_ref_and_a_row_depends_on_its_keys_alone(void **state)
{
    (void)state;
    everywhere(check_prompts);
}

static void check_backward_threads(const op_ops *ops)
{
    int threads = op_threads();
    for (int i = 0; i < 3; i++) {
        forest *f = forest_new(6, 3, 40, i == 2 ? 60 : 0);
        size_t T = (size_t)f->a.T, n = T * (size_t)f->a.ld, m = T * 240;
        float *qkv = noise(n, 1.5), *out = zeros(m), *dout = noise(m, 1), *lse = zeros(T * 6), *want = zeros(n);
        void *a = as_act(ops, n, qkv), *da = as_act(ops, m, dout), *got = hold(n * ops->act_size), *again = hold(n * ops->act_size);
        assert_int_equal(ref->attention(&f->a, qkv, out, lse), OP_OK);
        void *out_act = as_act(ops, m, out);
        assert_int_equal(ref->attention_backward(&f->a, qkv, out, lse, dout, want), OP_OK);
        op_threads_set((int[]){1, 3, 7}[i]);
        assert_int_equal(ops->attention_backward(&f->a, a, out_act, lse, da, got), OP_OK);
        assert_act(ops, "attention_backward", n, got, want, 5e-6);
        assert_int_equal(ops->attention_backward(&f->a, a, out_act, lse, da, again), OP_OK);
        assert_memory_equal(got, again, n * ops->act_size);
        op_threads_set(threads);
        drop_all(NULL);
    }
}

static void the_backward_of_attention_agrees_with_ref_on_any_number_of_threads(void **state)
{
    (void)state;
    everywhere(check_backward_threads);
}

/* ---- vocabulary and parameters ---- */

static void check_vocabulary(const op_ops *ops)
{
    static const int sizes[][2] = {{1, 3}, {5, 1000}, {40, 769}};
    for (int i = 0; i < 3; i++) {
        int n = sizes[i][0], V = sizes[i][1];
        size_t all = (size_t)n * V, rows = (size_t)n;
        float *logits = noise(all, 8), *extra = noise(all, 0.01), *dlogp = noise(rows, 1), *want = zeros(all);
        float *lse = zeros(rows), *lse2 = zeros(rows), *logp = zeros(rows), *logp2 = zeros(rows);
        void *got = hold(all * ops->act_size);
        int32_t target[40];
        for (int r = 0; r < n; r++)
            target[r] = r * 37 % V;
        logits[2] = -INFINITY;
        if (n > 4) {
            for (int v = 0; v < V; v++)
                logits[V + v] = v == 3 ? 1 : -INFINITY; /* one way left */
            logits[2 * V + target[2]] = -INFINITY;      /* a forbidden target */
            logits[3 * V] = 100;
            logits[3 * V + 1] = -100;
        }
        ref->logprob(n, V, logits, target, lse, logp);
        ops->logprob(n, V, logits, target, lse2, logp2);
        assert_close("lse", rows, lse2, lse, 1e-6, 0);
        for (int r = 0; r < n; r++)
            assert_false(isnan(logp2[r]));
        for (int r = 0; r < n; r++)
            assert_true(logp2[r] == logp[r] || fabsf(logp2[r] - logp[r]) <= 5e-7f + 5e-7f * fabsf(logp[r]));
        for (int with = 0; with < 2; with++) {
            ref->logprob_backward(n, V, logits, lse, target, dlogp, with ? extra : NULL, want);
            ops->logprob_backward(n, V, logits, lse, target, dlogp, with ? extra : NULL, got);
            assert_act(ops, "logprob_backward", all, got, want, 2e-6 * largest(rows, dlogp) / largest(all, want));
        }
    }
    for (int64_t step = 1; step < 2000; step += 999) {
        size_t n = 20003;
        float *p = noise(n, 1), *g = noise(n, 1), *m = noise(n, 0.1), *v = noise(n, 0.1), *p2 = zeros(n), *m2 = zeros(n);
        float *v2 = zeros(n);
        for (size_t k = 0; k < n; k++)
            v[k] = fabsf(v[k]);
        memcpy(p2, p, n * 4);
        memcpy(m2, m, n * 4);
        memcpy(v2, v, n * 4);
        op_adamw o = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step, 0};
        ref->adamw(n, p, g, m, v, &o);
        ops->adamw(n, p2, g, m2, v2, &o);
        assert_close("adamw p", n, p2, p, 1e-6, 1e-6);
        assert_close("adamw m", n, m2, m, 1e-6, 0);
        assert_close("adamw v", n, v2, v, 1e-6, 0);
    }
}

/* ---- moments in 8 bits, gradients in the activation type ---- */

typedef struct moments {
    op_moments8 x;
    size_t n, blocks;
} moments;

static moments moments_new(size_t n)
{
    size_t blocks = (n + OP_MOMENT_BLOCK - 1) / OP_MOMENT_BLOCK;
    return (moments){{hold(n), hold(n), zeros(blocks), zeros(blocks)}, n, blocks};
}

static void moments_copy(moments *to, const moments *from)
{
    memcpy(to->x.m, from->x.m, from->n);
    memcpy(to->x.v, from->x.v, from->n);
    memcpy(to->x.m_top, from->x.m_top, from->blocks * sizeof(float));
    memcpy(to->x.v_top, from->x.v_top, from->blocks * sizeof(float));
}

/* A value right between the codes may go to either; never further. */
static void assert_same_codes(const char *what, size_t n, const uint8_t *got, const uint8_t *want)
{
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        differ += got[i] != want[i];
        if (abs(got[i] - want[i]) > 1)
            fail_msg("%s: code %zu is %d, expected %d", what, i, got[i], want[i]);
    }
    if (differ > n / 500 + 1)
        fail_msg("%s: %zu of %zu codes differ", what, differ, n);
}

static void check_moments8(const op_ops *ops)
{
    static const size_t sizes[] = {1, 255, 256, 513, 20003};
    for (int i = 0; i < 5; i++)
        for (int g_act = 0; g_act < 2; g_act++) {
            size_t n = sizes[i];
            moments got = moments_new(n), want = moments_new(n);
            float *p = noise(n, 1), *p2 = zeros(n);
            for (int step = 1; step <= 3; step++) {
                float *g = noise(n, 1e-3);
                for (size_t k = 0; k < n; k += 7)
                    g[k] *= k % 2 ? 1e-4f : 0;
                void *a = as_act(ops, n, g);
                op_adamw o = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step, 77u * (uint32_t)step};
                moments_copy(&want, &got);
                memcpy(p2, p, n * sizeof *p);
                ref->adamw8(n, p, g, false, &want.x, &o);
                ops->adamw8(n, p2, g_act ? a : (const void *)g, g_act, &got.x, &o);
                assert_close("adamw8 p", n, p2, p, 1e-6, 1e-5);
                assert_close("adamw8 largest m", got.blocks, got.x.m_top, want.x.m_top, 1e-6, 0);
                assert_close("adamw8 largest v", got.blocks, got.x.v_top, want.x.v_top, 1e-6, 0);
                assert_same_codes("adamw8 m", n, got.x.m, want.x.m);
                assert_same_codes("adamw8 v", n, got.x.v, want.x.v);
            }
        }
}

static void adamw_with_moments_of_8_bits_agrees_with_ref(void **state)
{
    (void)state;
    everywhere(check_moments8);
}

/* With beta 0 the moments are the gradient and its square: what they hold is told by their codes. */
static void the_rounding_of_8_bit_moments_is_right_on_average_and_exact_for_the_largest(void **state)
{
    (void)state;
    enum { N = 256, TIMES = 4000 };
    const op_ops *ops = op_ops_get("cpu", OP_F32);
    moments x = moments_new(N);
    float *p = zeros(N), *g = zeros(N);
    double m[N] = {0}, v[N] = {0};
    for (int i = 0; i < N; i++)
        g[i] = (i % 3 ? 1.0f : -1.0f) * powf(10, -2.6f * (float)i / N);
    for (int k = 0; k < TIMES; k++) {
        op_adamw o = {0, 0, 0, 1e-8f, 0, 1, 1, 12345u * (uint32_t)k};
        ops->adamw8(N, p, g, false, &x.x, &o);
        for (int i = 0; i < N; i++) {
            double size = (double)x.x.m_top[0] * op_dynamic8_value(x.x.m[i] & 127, OP_DYNAMIC8_TOP_M);
            m[i] += (x.x.m[i] & OP_DYNAMIC8_SIGN ? -size : size) / TIMES;
            v[i] += (double)x.x.v_top[0] * op_dynamic8_value(x.x.v[i], OP_DYNAMIC8_TOP_V) / TIMES;
        }
    }
    assert_float_equal(m[0], (double)g[0], 1e-6);
    assert_float_equal(v[0], (double)g[0] * (double)g[0], 1e-6);
    for (int i = 0; i < N; i++) {
        double want = (double)g[i];
        if (fabs(m[i] - want) > 0.02 * fabs(want) || fabs(v[i] - want * want) > 0.04 * want * want)
            fail_msg("element %d: m %g, expected %g; v %g, expected %g", i, m[i], want, v[i], want * want);
    }
}

static void check_gradients_in_act(const op_ops *ops)
{
    static const size_t sizes[] = {1, 100, 20011};
    for (int i = 0; i < 3; i++) {
        size_t n = sizes[i];
        float *p = noise(n, 1), *g = noise(n, 1), *m = noise(n, 0.1), *v = zeros(n), *p2 = zeros(n), *m2 = zeros(n), *v2 = zeros(n);
        void *a = as_act(ops, n, g);
        memcpy(p2, p, n * 4);
        memcpy(m2, m, n * 4);
        op_adamw o = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 3, 0};
        ref->adamw_act(n, p, g, m, v, &o);
        ops->adamw_act(n, p2, a, m2, v2, &o);
        assert_close("adamw_act p", n, p2, p, 1e-6, 1e-6);
        assert_close("adamw_act m", n, m2, m, 1e-6, 0);
        assert_close("adamw_act v", n, v2, v, 1e-6, 0);
        double x = ref->sum_squares_act(n, g), y = ops->sum_squares_act(n, a);
        assert_true(fabs(x - y) <= 1e-12 * x);
    }
    for (int i = 0; i < N_SHAPES; i++) {
        enum { V = 50 };
        int T = shapes[i][0], C = shapes[i][1];
        int32_t ids[130];
        for (int t = 0; t < T; t++)
            ids[t] = t * t % V;
        float *d = noise((size_t)T * C, 1), *table = noise((size_t)V * C, 3);
        void *a = as_act(ops, (size_t)V * C, table);
        ref->embed_backward_act(T, C, ids, d, table);
        ops->embed_backward_act(T, C, ids, d, a);
        assert_act(ops, "embed_backward_act", (size_t)V * C, a, table, 1e-6);
    }
}

static void gradients_in_the_activation_type_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_gradients_in_act);
}

static void check_embed_weight(const op_ops *ops)
{
    static const int sizes[][2] = {{33, 65}, {100, 48}, {200, 576}, {1, 2}};
    for (int i = 0; i < 4; i++) {
        int N = sizes[i][0], K = sizes[i][1];
        float *w = noise((size_t)N * K, 1), *got = zeros(40 * (size_t)K);
        op_weight *W = weight(ops, N, K, w);
        int32_t ids[40];
        for (int t = 0; t < 40; t++)
            ids[t] = t * 7 % N;
        if (ops->act == OP_BF16)
            as_act(ops, (size_t)N * K, w);
        if (ops->embeds(W)) {
            ops->embed_weight(W, 40, ids, got);
            for (int t = 0; t < 40; t++)
                assert_memory_equal(got + (size_t)t * K, w + (size_t)ids[t] * K, (size_t)K * sizeof *w);
        } else {
            print_message("[          ] %d x %d is packed in a way that gives no rows back\n", N, K);
        }
        ops->weight_free(W);
    }
}

static void a_packed_weight_gives_its_rows_back(void **state)
{
    (void)state;
    everywhere(check_embed_weight);
}

static void log_probabilities_and_adamw_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_vocabulary);
}

static void the_same_call_gives_the_same_bits(void **state)
{
    (void)state;
    const op_ops *ops = op_ops_get("cpu", OP_BF16);
    forest *f = forest_new(9, 3, 64, 0);
    size_t T = (size_t)f->a.T, n = T * (size_t)f->a.ld, m = T * 576;
    void *qkv = as_act(ops, n, noise(n, 1)), *dout = as_act(ops, m, noise(m, 1));
    void *out[2], *d[2];
    float *lse = zeros(T * 9), *dw[2];
    for (int i = 0; i < 2; i++) {
        out[i] = hold(m * 2);
        d[i] = hold(n * 2);
        dw[i] = zeros(576 * 960);
        assert_int_equal(ops->attention(&f->a, qkv, out[i], lse), OP_OK);
        assert_int_equal(ops->attention_backward(&f->a, qkv, out[i], lse, dout, d[i]), OP_OK);
        assert_int_equal(ops->matmul_dw((int)T, 576, 960, out[i], d[i], dw[i]), OP_OK);
    }
    assert_memory_equal(out[0], out[1], m * 2);
    assert_memory_equal(d[0], d[1], n * 2);
    assert_memory_equal(dw[0], dw[1], 576 * 960 * 4);
}

static void running_out_of_memory_is_reported_and_leaves_the_ops_usable(void **state)
{
    (void)state;
    const op_ops *ops = op_ops_get("cpu", OP_BF16);
    forest *f = forest_new(2, 1, 64, 0);
    size_t T = (size_t)f->a.T, n = T * (size_t)f->a.ld, m = T * 128;
    void *qkv = as_act(ops, n, noise(n, 1)), *out = hold(m * 2), *d = hold(n * 2);
    float *w = noise(128 * 128, 1), *lse = zeros(T * 2);
    op_weight *W = NULL;
    bool through = false;
    for (long k = 0; !through; k++) {
        op_ops_release();
        op_alloc_fail_from(k);
        W = ops->weight_new(128, 128, true);
        through = W && !ops->weight_pack(W, w) && !ops->matmul(W, 100, qkv, NULL, OP_OUT_ACT, out) &&
                  !ops->attention(&f->a, qkv, out, lse) && !ops->attention_backward(&f->a, qkv, out, lse, out, d);
        op_alloc_fail_from(-1);
        ops->weight_free(W);
        assert_true(k < 50);
    }
}

int main(void)
{
    print_message("[          ] products: %s, loops: %s\n", op_ops_product_isa(), op_ops_simd());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_exponential_is_within_2_units_in_the_last_place),
        cmocka_unit_test_teardown(products_with_weights_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(general_products_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(a_row_of_a_product_depends_on_no_other_row_nor_on_its_place, drop_all),
        cmocka_unit_test_teardown(more_shapes_than_are_kept_still_give_right_products, drop_all),
        cmocka_unit_test_teardown(elementwise_ops_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(norms_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(head_norms_and_rotary_embeddings_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(feed_forward_and_embedding_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(attention_over_ragged_forests_agrees_with_ref, drop_all),
        cmocka_unit_test_teardown(attention_against_a_cache_agrees_with_ref, drop_all),
        cmocka_unit_test_teardown(cached_attention_gives_the_same_bits_however_the_cache_is_cut, drop_all),
        cmocka_unit_test_teardown(log_probabilities_and_adamw_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(adamw_with_moments_of_8_bits_agrees_with_ref, drop_all),
        cmocka_unit_test_teardown(the_rounding_of_8_bit_moments_is_right_on_average_and_exact_for_the_largest, drop_all),
        cmocka_unit_test_teardown(gradients_in_the_activation_type_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(a_packed_weight_gives_its_rows_back, drop_all),
        cmocka_unit_test_teardown(the_same_call_gives_the_same_bits, drop_all),
        cmocka_unit_test_teardown(attention_of_prompts_agrees_with_ref_and_a_row_depends_on_its_keys_alone, drop_all),
        cmocka_unit_test_teardown(the_backward_of_attention_agrees_with_ref_on_any_number_of_threads, drop_all),
        cmocka_unit_test_teardown(running_out_of_memory_is_reported_and_leaves_the_ops_usable, drop_all),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    op_ops_release();
    return failed;
}
