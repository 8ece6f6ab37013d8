/* The decorated table of a profile: complete, transparent, and its formulas on shapes that can be counted by hand. */
#include <operant/profile.h>

#include "help.h"

static void a_profile_that_is_off_is_not_there(void **state)
{
    (void)state;
    const op_ops *plain = op_ops_get("cpu", OP_F32);
    op_profile_start();
    assert_ptr_not_equal(op_ops_get("cpu", OP_F32), plain);
    assert_ptr_equal(op_ops_get("cpu", OP_F32), op_ops_get("cpu", OP_F32));
    op_profile_stop();
    assert_ptr_equal(op_ops_get("cpu", OP_F32), plain);
}

static void one_backend_is_profiled_at_a_time(void **state)
{
    (void)state;
    const op_ops *other = op_ops_get("ref", OP_F32);
    op_profile_start();
    const op_ops *first = op_ops_get("cpu", OP_BF16);
    assert_ptr_equal(op_ops_get("cpu", OP_BF16), first);
    assert_ptr_equal(op_ops_get("ref", OP_F32), other);
    assert_null(op_ops_get("abacus", OP_F32));
    op_profile_stop();
}

/* Who adds an op to the table adds it to ops/profile.c: compared word by word, so that the test knows new ones. */
static void every_op_of_the_table_is_timed(void **state)
{
    (void)state;
    /* questions, freeing, and what several threads call at once */
    static const size_t untimed[] = {offsetof(op_ops, weight_free), offsetof(op_ops, keeps_f32), offsetof(op_ops, decodes), offsetof(op_ops, embeds),
                                     offsetof(op_ops, weight_pack_rows), offsetof(op_ops, pack_step), offsetof(op_ops, weight_bytes),
                                     offsetof(op_ops, draw_weights)};
    const op_ops *plain = op_ops_get("cpu", OP_BF16);
    op_profile_start();
    const op_ops *timed = op_ops_get("cpu", OP_BF16);
    op_profile_stop();
    size_t missing = 0;
    for (size_t at = offsetof(op_ops, weight_new); at + sizeof(void *) <= sizeof(op_ops); at += sizeof(void *)) {
        const char *a = (const char *)plain + at, *b = (const char *)timed + at;
        bool work = memcmp(a, &(void *){NULL}, sizeof(void *)) != 0;
        for (size_t i = 0; i < sizeof untimed / sizeof *untimed; i++)
            work = work && at != untimed[i];
        if (work && !memcmp(a, b, sizeof(void *))) {
            print_message("the op at word %zu of op_ops is not in ops/profile.c\n", at / sizeof(void *));
            missing++;
        }
    }
    assert_int_equal(missing, 0);
}

static const op_profile_line *line(const char *op)
{
    const op_profile_line *lines;
    size_t n = op_profile_read(&lines);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(lines[i].op, op))
            return &lines[i];
    fail_msg("no line %s", op);
    return NULL;
}

static void a_product_counts_each_operand_once(void **state)
{
    (void)state;
    enum { M = 8, N = 32, K = 16 };
    float *w = noise(N * K, 1), *x = noise(M * K, 1), *plain_y = zeros(M * N), *y = zeros(M * N);
    const op_ops *plain = op_ops_get("cpu", OP_F32);
    op_profile_start();
    const op_ops *ops = op_ops_get("cpu", OP_F32);
    op_weight *W = ops->weight_new(N, K, true);
    assert_non_null(W);
    assert_int_equal(ops->weight_pack(W, w), OP_OK);
    op_profile_clear();
    assert_int_equal(ops->matmul(W, M, x, NULL, OP_OUT_ACT, y), OP_OK);
    assert_int_equal(plain->matmul(W, M, x, NULL, OP_OUT_ACT, plain_y), OP_OK);
    assert_memory_equal(y, plain_y, M * N * sizeof *y);
    assert_int_equal(ops->matmul(W, M, x, NULL, OP_OUT_F32_ADD, y), OP_OK);
    const op_profile_line *l = line("matmul");
    assert_int_equal(l->N, N);
    assert_int_equal(l->K, K);
    assert_int_equal(l->calls, 2);
    assert_true(l->flop == 2.0 * 2 * M * N * K);
    assert_true(l->bytes == 2 * 4.0 * (M * K + N * K) + 4.0 * M * N + 8.0 * M * N);
    assert_true(l->seconds > 0);
    ops->weight_free(W);
    op_profile_stop();
}

static void a_row_attends_to_its_whole_path_or_its_window(void **state)
{
    (void)state;
    enum { T = 6, H = 2, D = 4, LD = H * D + 2 * D };
    /* a root of 4 rows and a child of 2 that branches after 3: rows see 1, 2, 3, 4 and 4, 5 keys */
    const int32_t start[] = {0, 4}, length[] = {4, 2}, first_seg[] = {0, 0, 1}, tree_first[] = {0, 2}, position[] = {0, 1, 2, 3, 3, 4};
    const op_segment seg[] = {{0, 3}};
    op_attention a = {.T = T, .H = H, .G = 1, .D = D, .ld = LD, .scale = 0.5f, .n_seqs = 2, .n_trees = 1, .start = start, .length = length,
                      .first_seg = first_seg, .seg = seg, .tree_first = tree_first, .position = position};
    float *qkv = noise(T * LD, 1), *out = zeros(T * H * D), *lse = zeros(T * H);
    op_profile_start();
    const op_ops *ops = op_ops_get("cpu", OP_F32);
    assert_int_equal(ops->attention(&a, qkv, out, lse), OP_OK);
    assert_true(line("attention")->flop == 4.0 * H * D * (1 + 2 + 3 + 4 + 4 + 5));
    op_profile_clear();
    a.window = 2;
    assert_int_equal(ops->attention(&a, qkv, out, lse), OP_OK);
    assert_true(line("attention")->flop == 4.0 * H * D * (1 + 2 + 2 + 2 + 2 + 2));
    op_profile_stop();
}

static void many_shapes_end_in_one_line(void **state)
{
    (void)state;
    float *dy = noise(1, 1), *x = noise(2 * OP_PROFILE_LINES, 1), *dw = zeros(2 * OP_PROFILE_LINES);
    const op_profile_line *lines;
    op_profile_start();
    const op_ops *ops = op_ops_get("ref", OP_F32);
    for (int K = 1; K <= OP_PROFILE_LINES + 2; K++)
        assert_int_equal(ops->matmul_dw(1, 1, K, dy, x, dw), OP_OK);
    assert_int_equal(op_profile_read(&lines), OP_PROFILE_LINES + 1);
    assert_int_equal(line("others")->calls, 2);
    op_profile_stop();
}

/* Also after a test that failed half-way. */
static int stop(void **state)
{
    op_profile_stop();
    return drop_all(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_profile_that_is_off_is_not_there, stop),
        cmocka_unit_test_teardown(one_backend_is_profiled_at_a_time, stop),
        cmocka_unit_test_teardown(every_op_of_the_table_is_timed, stop),
        cmocka_unit_test_teardown(a_product_counts_each_operand_once, stop),
        cmocka_unit_test_teardown(a_row_attends_to_its_whole_path_or_its_window, stop),
        cmocka_unit_test_teardown(many_shapes_end_in_one_line, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
