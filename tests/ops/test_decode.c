/* The ops of generation against ref, on odd shapes and at every level of SIMD that the processor has. */
#include "help.h"

#include "ops/quantise.h"

static const op_ops *ref;

static void everywhere(void (*check)(const op_ops *ops))
{
    static const char *const levels[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4 bf16"};
    ref = op_ops_get("ref", OP_F32);
    const char *best = op_ops_simd();
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        if (!op_ops_simd_force(levels[l])) {
            print_message("[          ] this processor lacks %s\n", levels[l]);
            continue;
        }
        for (int dtype = 0; dtype < 2; dtype++) {
            check(op_ops_get("cpu", dtype ? OP_BF16 : OP_F32));
            drop_all(NULL);
        }
    }
    op_ops_simd_force(best);
}

static const int shapes[][2] = {{33, 65}, {64, 576}, {100, 48}, {40, 1}, {7, 31}, {200, 257}};
static const int counts[] = {1, 2, 3, 7, 13, 33};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_COUNTS = sizeof counts / sizeof *counts };

/* Can decode multiply by W? Says so if not: bf16 weights need AVX512-BF16, and a layout of oneDNN's that it knows. */
static bool decodes(const op_ops *ops, const op_weight *W, int N, int K)
{
    bool can = ops->decodes(W, 1);
    if (!can)
        print_message("[          ] no decode by %s weights of %d x %d with products of %s\n", ops->act == OP_BF16 ? "bf16" : "f32", N, K,
                      op_ops_product_isa());
    return can;
}

static void assert_product(const op_ops *ops, const op_weight *W, const op_weight *R, int M, int N, const void *xa, const float *x, double part)
{
    float *bias = noise((size_t)N, 1);
    for (int with_bias = 0; with_bias < 2; with_bias++)
        for (op_out out = OP_OUT_ACT; out <= OP_OUT_F32_ADD; out++) {
            size_t n = (size_t)M * N;
            float *want = noise(n, 3), *got = zeros(n + 1);
            memcpy(got, want, n * sizeof *got);
            assert_int_equal(ref->decode(R, M, x, with_bias ? bias : NULL, out, want), OP_OK);
            assert_int_equal(ops->decode(W, M, xa, with_bias ? bias : NULL, out, got), OP_OK);
            if (out == OP_OUT_ACT)
                assert_act(ops, "decode", n, got, want, part);
            else
                assert_close("decode to float", n, got, want, part, 0);
            assert_true(got[n] == 0);
        }
}

static void check_decode(const op_ops *ops)
{
    for (int i = 0; i < N_SHAPES * N_COUNTS; i++) {
        int N = shapes[i / N_COUNTS][0], K = shapes[i / N_COUNTS][1], M = counts[i % N_COUNTS];
        float *x = noise((size_t)M * K, 1), *w = noise((size_t)N * K, 1);
        void *xa = as_act(ops, (size_t)M * K, x);
        if (ops->act == OP_BF16)
            as_act(ops, (size_t)N * K, w);
        op_weight *W = ops->weight_new(N, K, false), *R = ref->weight_new(N, K, false);
        assert_int_equal(ops->weight_pack(W, w), OP_OK);
        assert_int_equal(ref->weight_pack(R, w), OP_OK);
        if (i % N_COUNTS == 0 ? decodes(ops, W, N, K) : ops->decodes(W, 1))
            assert_product(ops, W, R, M, N, xa, x, 2e-6);
        ops->weight_free(W);
        ref->weight_free(R);
        drop_all(NULL);
    }
}

static void products_of_a_few_rows_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_decode);
}

/* Rows of 32 on 16 even steps of their own, as Q4_1 would have them; the last row of `other` values. */
static float *steps(int N, int K)
{
    float *w = noise((size_t)N * K, 1), *q = noise((size_t)N * K, 4), *least = noise((size_t)N * K, 0.3);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            size_t first = (size_t)n * K + (size_t)k / 32 * 32;
            float step = op_f16_to_f32(op_f32_to_f16(0.01f + fabsf(least[first + (first + 1 < (size_t)N * K)]))), low = op_f16_to_f32(op_f32_to_f16(least[first]));
            w[(size_t)n * K + k] = low + step * fminf(15, floorf(fabsf(q[(size_t)n * K + k])));
        }
    return w;
}

static void check_quantised(const op_ops *ops)
{
    for (int i = 0; i < N_SHAPES * N_COUNTS * 2; i++) {
        int four = i % 2, N = shapes[i / 2 / N_COUNTS][0], K = shapes[i / 2 / N_COUNTS][1], M = counts[i / 2 % N_COUNTS];
        float *x = noise((size_t)M * K, 1), *w = four ? steps(N, K) : noise((size_t)N * K, 1);
        for (int k = 0; k < K && k < 64; k++)
            x[k] = 0; /* blocks without a scale */
        void *xa = as_act(ops, (size_t)M * K, x);
        op_weight *W = ops->weight_new_quantised(N, K), *R = ref->weight_new_quantised(N, K);
        for (int twice = 0; twice < 2; twice++) {
            assert_int_equal(ops->weight_pack(W, w), OP_OK);
            assert_int_equal(ref->weight_pack(R, w), OP_OK);
        }
        assert_true(ops->decodes(W, 1) && ops->decodes(W, 128) && ops->embeds(W));
        assert_int_equal(op_quantise_bits(N, K, w), four || K == 1 ? 4 : 8);
        assert_product(ops, W, R, M, N, xa, x, 3e-6);
        int32_t ids[] = {N - 1, 0, N / 2};
        float *got = zeros(3 * (size_t)K), *want = zeros(3 * (size_t)K);
        ops->embed_weight(W, 3, ids, got);
        ref->embed_weight(R, 3, ids, want);
        assert_close("embed_weight", 3 * (size_t)K, got, want, 1e-6, 0);
        for (int r = 0; r < 3 && four; r++)
            assert_close("what 4 bits hold", (size_t)K, got + (size_t)r * K, w + (size_t)ids[r] * K, 0.002, 0);
        ops->weight_free(W);
        ref->weight_free(R);
        drop_all(NULL);
    }
}

static void products_with_quantised_weights_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_quantised);
}

/* A row alone, and the same among others, in every place; on one thread and on three. */
static void assert_own(const op_ops *ops, const op_weight *W, int N, int K)
{
    enum { M = 37 };
    size_t row = (size_t)K * ops->act_size;
    char *x = as_act(ops, (size_t)M * K, noise((size_t)M * K, 1));
    float *y = zeros((size_t)M * N), *one = zeros((size_t)N);
    int threads = op_threads();
    op_threads_set(3);
    assert_int_equal(ops->decode(W, M, x, NULL, OP_OUT_F32, y), OP_OK);
    op_threads_set(1);
    for (int m = 0; m < M; m++) {
        assert_int_equal(ops->decode(W, 1, x + (size_t)m * row, NULL, OP_OUT_F32, one), OP_OK);
        assert_memory_equal(one, y + (size_t)m * N, (size_t)N * sizeof *one);
    }
    op_threads_set(threads);
}

static void check_own(const op_ops *ops)
{
    static const int large[][2] = {{192, 576}, {577, 130}};
    for (int i = 0; i < 2; i++) {
        int N = large[i][0], K = large[i][1];
        float *w = noise((size_t)N * K, 1);
        op_weight *W = ops->weight_new(N, K, false), *Q = ops->weight_new_quantised(N, K), *F = ops->weight_new_quantised(N, K);
        assert_int_equal(ops->weight_pack(W, w), OP_OK);
        assert_int_equal(ops->weight_pack(Q, w), OP_OK);
        assert_int_equal(ops->weight_pack(F, steps(N, K)), OP_OK);
        if (decodes(ops, W, N, K))
            assert_own(ops, W, N, K);
        assert_own(ops, Q, N, K);
        assert_own(ops, F, N, K);
        ops->weight_free(W);
        ops->weight_free(Q);
        ops->weight_free(F);
        drop_all(NULL);
    }
}

static void a_row_depends_on_no_other_row_and_on_no_number_of_threads(void **state)
{
    (void)state;
    everywhere(check_own);
}

static void what_llama_cpp_calls_q8_0_is_kept_as_it_is(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        float *x = noise(32, 2), back[32];
        op_qblock first, second;
        op_quantise_8(x, 32, &first);
        for (int k = 0; k < 32; k++)
            back[k] = first.scale * (float)(first.q[k] - 128);
        op_quantise_8(back, 32, &second);
        assert_memory_equal(&first, &second, sizeof first);
        assert_false(op_quantise_4(x, 32, &second));
        drop_all(NULL);
    }
}

static void weights_beyond_what_8_bits_hold_become_the_largest_that_they_do(void **state)
{
    (void)state;
    op_qblock b;
    float x[4] = {7e4f, -7e4f, 100, 0};
    assert_false(op_quantise_4(x, 4, &b));
    op_quantise_8(x, 4, &b);
    for (int i = 0; i < 4; i++)
        assert_true(fabsf(b.scale * (float)(b.q[i] - 128) - x[i]) <= b.scale * 0.51f);
    float most = 65504.0f * 127, far[4] = {3e38f, -INFINITY, 9e6f, 1};
    assert_false(op_quantise_4(far, 4, &b));
    op_quantise_8(far, 4, &b);
    for (int i = 0; i < 4; i++)
        assert_true(b.scale * (float)(b.q[i] - 128) == (i == 3 ? 0 : copysignf(most, far[i])));
}

static void check_draw(const op_ops *ops)
{
    static const int sizes[] = {1, 255, 256, 1000, 4099};
    for (int i = 0; i < 15; i++) {
        int V = sizes[i / 3], blocks = (V + OP_DRAW_BLOCK - 1) / OP_DRAW_BLOCK;
        float *x = noise((size_t)V, 5), *p = zeros((size_t)V), *want = zeros((size_t)V), inverse = i % 3 == 0 ? 1 : i % 3 == 1 ? 0.3f : 50;
        float *top = zeros((size_t)blocks), *sum = zeros((size_t)blocks), *top2 = zeros((size_t)blocks), *sum2 = zeros((size_t)blocks);
        if (V > 2)
            x[2] = -INFINITY;
        float most = ref->draw_weights(V, x, inverse, want, top2, sum2);
        assert_true(most == ops->draw_weights(V, x, inverse, p, top, sum));
        assert_close("weights", (size_t)V, p, want, 1e-6, 2e-6);
        assert_close("largest", (size_t)blocks, top, top2, 1e-6, 2e-6);
        assert_close("sums", (size_t)blocks, sum, sum2, 1e-5, 1e-5);
        assert_true(V < 3 || p[2] == 0);
        for (int b = 0; b < blocks; b++) {
            float highest = 0;
            for (int v = b * OP_DRAW_BLOCK; v < V && v < (b + 1) * OP_DRAW_BLOCK; v++)
                highest = fmaxf(highest, p[v]);
            assert_true(top[b] == highest); /* the sampler compares them */
        }
        assert_true(ops->draw_weights(V, x, inverse, x, top, sum) == most);
        assert_memory_equal(x, p, (size_t)V * sizeof *x);
        for (int v = 0; v < V; v++)
            x[v] = -INFINITY;
        assert_true(ops->draw_weights(V, x, inverse, p, top, sum) == -INFINITY);
        drop_all(NULL);
    }
}

static void the_weights_of_a_draw_agree_with_ref(void **state)
{
    (void)state;
    everywhere(check_draw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(products_of_a_few_rows_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(products_with_quantised_weights_agree_with_ref, drop_all),
        cmocka_unit_test_teardown(a_row_depends_on_no_other_row_and_on_no_number_of_threads, drop_all),
        cmocka_unit_test_teardown(what_llama_cpp_calls_q8_0_is_kept_as_it_is, drop_all),
        cmocka_unit_test(weights_beyond_what_8_bits_hold_become_the_largest_that_they_do),
        cmocka_unit_test_teardown(the_weights_of_a_draw_agree_with_ref, drop_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
