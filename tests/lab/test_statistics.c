/* The statistics of experiments, against numbers computed apart (mpmath with 30 digits; signings counted in exact fractions). */
#include "tools.h"

#include <math.h>

#include "base/rng.h"
#include "lab/paired_tests.h"

static void close_to(double a, double b, double tolerance)
{
    if (!(fabs(a - b) <= tolerance))
        fail_msg("%.15g is not within %g of %.15g", a, tolerance, b);
}

static const double sample[10] = {1.2, -0.3, 0.8, 2.1, 0.4, -0.1, 1.7, 0.9, 0.6, -0.5};

static void the_sign_flipping_test_counts_every_signing(void **state)
{
    (void)state;
    op_signflip s = op_signflip_test(sample, 10, 0);
    assert_true(s.exact);
    assert_int_equal(s.signings, 1024);
    close_to(s.greater, 19 / 1024.0, 1e-15);
    close_to(s.less, 1010 / 1024.0, 1e-15);
    close_to(s.two, 38 / 1024.0, 1e-15);
    /* five of one sign cannot go below 2/32, six reach 2/64 */
    static const double ones[] = {1, 2, 3, 4, 5, 6};
    close_to(op_signflip_test(ones, 5, 0).two, 0.0625, 1e-15);
    close_to(op_signflip_test(ones, 6, 0).two, 0.03125, 1e-15);
    close_to(op_signflip_test(ones, 6, 0).greater, 1 / 64.0, 1e-15);
    close_to(op_signflip_test(ones, 6, 0).less, 1, 1e-15);
    static const double none[] = {0, 0, 0};
    close_to(op_signflip_test(none, 3, 0).two, 1, 0);
    close_to(op_signflip_test(none, 0, 0).two, 1, 0);
}

static void equal_sums_count_as_equal_whatever_the_rounding(void **state)
{
    (void)state;
    /* 0.1 + 0.2 - 0.3 is not 0 in binary; the signings + + - and - - + tie with one another and with nothing else */
    static const double d[] = {0.1, 0.2, -0.3};
    close_to(op_signflip_test(d, 3, 0).two, 1, 1e-15);
    close_to(op_signflip_test(d, 3, 0).greater, 5 / 8.0, 1e-15);
}

static void beyond_twenty_pairs_random_signings_come_close_to_the_exact_value(void **state)
{
    (void)state;
    double d[40];
    for (int i = 0; i < 40; i++)
        d[i] = 0.25 + op_rng_normal(3, OP_STREAM_TEST, (uint64_t)i);
    op_signflip s = op_signflip_test(d, 21, 1), again = op_signflip_test(d, 21, 1), other = op_signflip_test(d, 21, 2);
    assert_false(s.exact);
    assert_int_equal(s.signings, OP_SIGNFLIP_DRAWS + 1);
    assert_true(s.two == again.two && s.two != other.two);
    /* all 2^21 signings, counted here */
    double observed = 0, far = 0;
    for (int i = 0; i < 21; i++)
        observed += d[i];
    for (uint32_t signs = 0; signs < 1u << 21; signs++) {
        double sum = 0;
        for (int i = 0; i < 21; i++)
            sum += signs >> i & 1 ? d[i] : -d[i];
        far += fabs(sum) >= fabs(observed) - 1e-9;
    }
    close_to(s.two, far / (1 << 21), 0.005);
    double one_sided[70];
    for (int i = 0; i < 70; i++)
        one_sided[i] = 1;
    s = op_signflip_test(one_sided, 70, 1); /* more than one word of signs; p is never 0 */
    close_to(s.two, 1.0 / (OP_SIGNFLIP_DRAWS + 1), 1e-15);
}

/* Whatever the sizes of the differences: of all the signs that chance could give them, at most 5% are significant at 5%. */
static void of_all_signings_at_most_five_of_a_hundred_are_significant(void **state)
{
    (void)state;
    for (uint64_t k = 0; k < 5; k++) {
        int two = 0, greater = 0;
        for (unsigned signs = 0; signs < 1024; signs++) {
            double d[10];
            for (uint64_t i = 0; i < 10; i++)
                d[i] = (k ? pow(op_rng_uniform(k, OP_STREAM_TEST, i), (double)k) : 1) * (signs >> i & 1 ? 1 : -1);
            op_signflip s = op_signflip_test(d, 10, 0);
            two += s.two <= 0.05;
            greater += s.greater <= 0.05;
        }
        assert_in_range(two, k ? 50 : 22, 51); /* equal sizes tie, and fewer signings are that far out */
        assert_in_range(greater, k ? 51 : 11, 51);
    }
}

/* Eight pairs without an effect, forty thousand times: noise of a bell, and noise of which one pair in ten is twenty times as large. 12 of 256
 * signings can be significant, 4.7%; the standard error of that is 0.1%. */
static void without_an_effect_the_test_is_significant_in_at_most_five_of_a_hundred(void **state)
{
    (void)state;
    for (int heavy = 0; heavy < 2; heavy++) {
        int two = 0, greater = 0;
        for (uint64_t k = 0; k < 40000; k++) {
            double d[8];
            for (uint64_t i = 0; i < 8; i++)
                d[i] = op_rng_normal(7 + (uint64_t)heavy, OP_STREAM_TEST, 8 * k + i) *
                       (heavy && op_rng_below(9, OP_STREAM_TEST, 8 * k + i, 10) == 0 ? 20 : 1);
            op_signflip s = op_signflip_test(d, 8, 0);
            two += s.two <= 0.05;
            greater += s.greater <= 0.05;
        }
        print_message("of 40000 without an effect: %d two-sided, %d one-sided\n", two, greater);
        assert_in_range(two, 1700, 2000);
        assert_in_range(greater, 1700, 2000);
    }
}

static void holm_corrects_step_by_step(void **state)
{
    (void)state;
    static const double p[] = {0.01, 0.04, 0.03, 0.005};
    double adjusted[4];
    op_holm(p, 4, adjusted); /* 4*0.005, 3*0.01, 2*0.03, then 0.04 is not below 0.06 */
    close_to(adjusted[3], 0.02, 1e-15);
    close_to(adjusted[0], 0.03, 1e-15);
    close_to(adjusted[2], 0.06, 1e-15);
    close_to(adjusted[1], 0.06, 1e-15);
    static const double large[] = {0.9, 0.6};
    op_holm(large, 2, adjusted);
    assert_true(adjusted[0] == 1 && adjusted[1] == 1);
    op_holm(p, 1, adjusted);
    assert_true(adjusted[0] == 0.01);
}

static void students_t_has_the_known_values(void **state)
{
    (void)state;
    static const struct {
        double df, quantile, cdf;
    } known[] = {
        {1, 12.7062047361747, 0.812832958189001}, {2, 4.30265272974946, 0.863803437554499}, {5, 2.57058183563632, 0.903048159878763},
        {9, 2.26215716279821, 0.916074671971463}, {19, 2.09302405440831, 0.924975734628864}, {100, 1.98397151852355, 0.931617470937656},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        close_to(op_student_quantile(0.975, known[i].df), known[i].quantile, 1e-11);
        close_to(op_student_quantile(0.025, known[i].df), -known[i].quantile, 1e-11);
        close_to(op_student_cdf(1.5, known[i].df), known[i].cdf, 1e-13);
        close_to(op_student_cdf(-1.5, known[i].df), 1 - known[i].cdf, 1e-13);
    }
    close_to(op_student_quantile(0.995, 9), 3.24983554159213, 1e-11);
    close_to(op_student_quantile(0.5, 9), 0, 1e-12);
}

static void an_interval_of_paired_differences_has_the_known_ends(void **state)
{
    (void)state;
    op_interval i = op_mean_interval(sample, 10);
    close_to(i.mean, 0.68, 1e-15);
    close_to(op_deviation(sample, 10), 0.845642425089417, 1e-14);
    close_to(i.low, 0.0750638512305045, 1e-12);
    close_to(i.high, 1.2849361487695, 1e-12);
    i = op_mean_interval(sample, 1);
    assert_true(i.mean == 1.2 && isnan(i.low) && isnan(i.high));
    assert_true(isnan(op_mean(sample, 0)));
}

static void auroc_counts_the_pairs_in_the_right_order(void **state)
{
    (void)state;
    static const double score[] = {0.1, 0.4, 0.35, 0.8, 0.4};
    static const bool positive[] = {false, false, true, true, true};
    double area;
    assert_int_equal(op_auroc(score, positive, 5, &area), OP_OK); /* of 6 pairs 4 are right, one ties, one is wrong */
    close_to(area, 4.5 / 6, 1e-15);
    assert_int_equal(op_auroc(score, positive, 2, &area), OP_OK);
    assert_true(isnan(area));
    static const double odd[] = {NAN, NAN, 1};
    assert_int_equal(op_auroc(odd, positive, 3, &area), OP_OK); /* comes to an end */
    op_alloc_fail_from(0);
    assert_int_equal(op_auroc(score, positive, 5, &area), OP_ERR_NOMEM);
    op_alloc_fail_from(-1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sign_flipping_test_counts_every_signing),
        cmocka_unit_test(equal_sums_count_as_equal_whatever_the_rounding),
        cmocka_unit_test(beyond_twenty_pairs_random_signings_come_close_to_the_exact_value),
        cmocka_unit_test(of_all_signings_at_most_five_of_a_hundred_are_significant),
        cmocka_unit_test(without_an_effect_the_test_is_significant_in_at_most_five_of_a_hundred),
        cmocka_unit_test(holm_corrects_step_by_step),
        cmocka_unit_test(students_t_has_the_known_values),
        cmocka_unit_test(an_interval_of_paired_differences_has_the_known_ends),
        cmocka_unit_test(auroc_counts_the_pairs_in_the_right_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
