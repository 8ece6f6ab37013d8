/* lab/paired_tests.h: what an experiment may conclude from paired seeds, and how surely. */
#ifndef OP_LAB_PAIRED_TESTS_H
#define OP_LAB_PAIRED_TESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>

/* Mean, and standard deviation with n-1 below the line (NAN for n < 2). n = 0: NAN. */
double op_mean(const double *x, size_t n);
double op_deviation(const double *x, size_t n);

/* The sign-flipping test of paired differences d (Fisher, The Design of Experiments, 1935, section 21). If nothing but chance told the arms apart, each
 * difference could as well have had the other sign: the p value is the share of the 2^n signings whose sum is as far out as the one observed.
 * Exact for n <= OP_SIGNFLIP_EXACT; beyond, OP_SIGNFLIP_DRAWS random signings (by `seed`) stand for all, the observed one among them, so that p is never 0:
 * (1 + as far out) / (1 + draws). Sums closer than rounding count as equal. n = 0: every p is 1. */
enum { OP_SIGNFLIP_EXACT = 20, OP_SIGNFLIP_DRAWS = 100000 };
typedef struct op_signflip {
    double greater, less; /* one-sided: p of a sum this large, this small */
    double two;           /* two-sided: p of a sum this far from 0 */
    bool exact;
    uint64_t signings;    /* looked at */
} op_signflip;

op_signflip op_signflip_test(const double *d, size_t n, uint64_t seed);

/* Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979): the k-th smallest of n p values times n-k+1, never below an earlier one nor
 * above 1. Holds the chance of any false claim whatever the claims share. n <= 64. */
void op_holm(const double *p, size_t n, double *adjusted);

/* Student's t with `df` degrees of freedom > 0. cdf: 1 - I_{df/(df+t^2)}(df/2, 1/2) / 2 for t >= 0, with the regularised incomplete beta function by its
 * continued fraction (DLMF 8.17.22). quantile: its inverse by bisection, 0 < p < 1. Both to 1e-12. */
double op_student_cdf(double t, double df);
double op_student_quantile(double p, double df);

/* The mean of n values with its 95% interval, mean -+ t(0.975, n-1) s / sqrt(n). n < 2: an interval of NAN. */
typedef struct op_interval {
    double mean, low, high;
} op_interval;
op_interval op_mean_interval(const double *x, size_t n);

/* Area under the ROC curve: the chance that a random positive scores above a random negative, ties counting half (Mann-Whitney U over both numbers).
 * NAN when one kind is missing. OP_ERR_NOMEM alone can fail. */
op_status op_auroc(const double *score, const bool *positive, size_t n, double *out);

#endif
