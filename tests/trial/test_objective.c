#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <operant/objective.h>

static void the_weighted_loss_is_minus_the_mean_log_p_and_its_slopes_are_minus_the_weights(void **state)
{
    (void)state;
    const float weight[] = {0, 1, -0.5f, 2}, logp[] = {-7, -1, -2, -0.25f};
    const op_batch b = {.n_tokens = 4};
    const op_signal s = {.weight = weight, .normaliser = 3.5};
    op_objective f = op_objective_weighted();
    float slope[4];
    double loss = 99;
    assert_true(f.linear);
    assert_int_equal(f.eval(f.ctx, &b, &s, NULL, slope, &loss, NULL), OP_OK);
    assert_float_equal(loss, 99, 0); /* not known without log p */
    for (int t = 0; t < 4; t++)
        assert_float_equal(slope[t], -(double)weight[t] / 3.5, 1e-7);
    assert_int_equal(f.eval(f.ctx, &b, &s, logp, slope, &loss, NULL), OP_OK);
    assert_float_equal(loss, -(1 * -1.0 - 0.5 * -2 + 2 * -0.25) / 3.5, 1e-7);
}

static void context_has_no_part_in_the_loss_whatever_its_log_p(void **state)
{
    (void)state;
    const float weight[] = {0, 1}, logp[] = {-INFINITY, -1};
    const op_batch b = {.n_tokens = 2};
    const op_signal s = {.weight = weight, .normaliser = 1};
    op_objective f = op_objective_weighted();
    float slope[2];
    double loss;
    assert_int_equal(f.eval(f.ctx, &b, &s, logp, slope, &loss, NULL), OP_OK);
    assert_float_equal(loss, 1, 0);
    assert_float_equal(slope[0], 0, 0);
}

static void a_normaliser_that_is_not_positive_is_an_error(void **state)
{
    (void)state;
    const float weight[] = {1};
    const op_batch b = {.n_tokens = 1};
    const op_signal s = {.weight = weight};
    op_objective f = op_objective_weighted();
    float slope[1];
    op_error e;
    assert_int_equal(f.eval(f.ctx, &b, &s, NULL, slope, NULL, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "the normaliser is 0, expected more than 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_weighted_loss_is_minus_the_mean_log_p_and_its_slopes_are_minus_the_weights),
        cmocka_unit_test(context_has_no_part_in_the_loss_whatever_its_log_p),
        cmocka_unit_test(a_normaliser_that_is_not_positive_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
