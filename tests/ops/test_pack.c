/* Packing of weights: multiplied by an identity matrix, a weight comes back as its values, rounded to bf16. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/num.h"
#include "base/rng.h"
#include "ops/ops.h"

static const int shapes[][2] = {{1, 1}, {17, 33}, {64, 576}, {191, 64}, {192, 31}, {193, 48}, {400, 96}, {577, 130}, {960, 7}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static float *random_matrix(int N, int K)
{
    float *w = op_alloc_array((size_t)(N * K), sizeof *w);
    for (int i = 0; i < N * K; i++)
        w[i] = (float)op_rng_normal(3, 1, (uint64_t)i);
    return w;
}

static op_bf16 *identity(int n)
{
    op_bf16 *x = op_alloc_zero((size_t)(n * n), sizeof *x);
    for (int i = 0; i < n; i++)
        x[i * n + i] = op_f32_to_bf16(1);
    return x;
}

/* How many values of W, read through both products, are not those of w. */
static int wrong(const op_ops *ops, const op_weight *W, int N, int K, const float *w)
{
    op_bf16 *x = identity(K), *dy = identity(N);
    float *y = op_alloc_array((size_t)(N * K), sizeof *y), *dx = op_alloc_array((size_t)(N * K), sizeof *dx);
    assert_int_equal(ops->matmul(W, K, x, NULL, OP_OUT_F32, y), OP_OK);
    assert_int_equal(ops->matmul_dx(W, N, dy, OP_OUT_F32, dx), OP_OK);
    int bad = 0;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            float want = op_bf16_to_f32(op_f32_to_bf16(w[n * K + k]));
            bad += y[k * N + n] != want;
            bad += dx[n * K + k] != want;
        }
    op_free(x);
    op_free(dy);
    op_free(y);
    op_free(dx);
    return bad;
}

static void a_packed_weight_multiplies_with_its_values_rounded_to_bf16(void **state)
{
    (void)state;
    const op_ops *ops = op_ops_get("cpu", OP_BF16);
    for (int i = 0; i < SHAPES; i++) {
        int N = shapes[i][0], K = shapes[i][1];
        float *w = random_matrix(N, K);
        op_weight *W = ops->weight_new(N, K, true);
        assert_int_equal(ops->weight_pack(W, w), OP_OK);
        assert_int_equal(wrong(ops, W, N, K, w), 0);
        ops->weight_free(W);
        op_free(w);
    }
}

static void rows_packed_by_several_threads_in_any_order_make_the_same_weight(void **state)
{
    (void)state;
    const op_ops *ops = op_ops_get("cpu", OP_BF16);
    op_threads_set(3);
    for (int i = 0; i < SHAPES; i++) {
        int N = shapes[i][0], K = shapes[i][1];
        float *w = random_matrix(N, K);
        op_weight *W = ops->weight_new(N, K, true);
        int step = ops->pack_step(W), parts = (N + step - 1) / step, status = OP_OK;
#pragma omp parallel for schedule(dynamic) reduction(min : status)
        for (int p = 0; p < parts; p++) {
            int first = (parts - 1 - p) * step, n = N - first < step ? N - first : step;
            int one = ops->weight_pack_rows(W, first, n, w + (size_t)first * (size_t)K);
            status = one < status ? one : status;
        }
        assert_int_equal(status, OP_OK);
        assert_int_equal(wrong(ops, W, N, K, w), 0);
        w[(N - 1) * K] += 1; /* one part anew leaves the others as they are */
        int first = (parts - 1) * step;
        assert_int_equal(ops->weight_pack_rows(W, first, N - first, w + (size_t)first * (size_t)K), OP_OK);
        assert_int_equal(wrong(ops, W, N, K, w), 0);
        ops->weight_free(W);
        op_free(w);
    }
    op_threads_set(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_packed_weight_multiplies_with_its_values_rounded_to_bf16),
        cmocka_unit_test(rows_packed_by_several_threads_in_any_order_make_the_same_weight),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    op_ops_release();
    return failed;
}
