#include "lab/paired_tests.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/rng.h"

double op_mean(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return n ? sum / (double)n : NAN;
}

double op_deviation(const double *x, size_t n)
{
    if (n < 2)
        return NAN;
    double mean = op_mean(x, n), sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    return sqrt(sum / (double)(n - 1));
}

/* ---- signs ---- */

typedef struct tally {
    double observed, slack;
    uint64_t greater, less, two;
} tally;

static void look(tally *t, double sum)
{
    t->greater += sum >= t->observed - t->slack;
    t->less += sum <= t->observed + t->slack;
    t->two += fabs(sum) >= fabs(t->observed) - t->slack;
}

/* out[s]: the sum of d whose i-th value is taken with a minus where bit i of s is 0. */
static void all_sums(const double *d, size_t n, double *out)
{
    for (size_t s = 0; s < (size_t)1 << n; s++) {
        out[s] = 0;
        for (size_t i = 0; i < n; i++)
            out[s] += s >> i & 1 ? d[i] : -d[i];
    }
}

static void look_at_all(tally *t, const double *d, size_t n)
{
    double low[1 << (OP_SIGNFLIP_EXACT / 2)], high[1 << (OP_SIGNFLIP_EXACT / 2)];
    size_t half = n / 2;
    all_sums(d, half, low);
    all_sums(d + half, n - half, high);
    for (size_t i = 0; i < (size_t)1 << half; i++)
        for (size_t j = 0; j < (size_t)1 << (n - half); j++)
            look(t, low[i] + high[j]);
}

static void look_at_some(tally *t, const double *d, size_t n, uint64_t seed)
{
    uint64_t words = (n + 63) / 64;
    for (uint64_t k = 0; k < OP_SIGNFLIP_DRAWS; k++) {
        double sum = 0;
        uint64_t bits = 0;
        for (size_t i = 0; i < n; i++, bits >>= 1) {
            if (i % 64 == 0)
                bits = op_rng_u64(seed, OP_STREAM_BOOTSTRAP, k * words + i / 64);
            sum += bits & 1 ? d[i] : -d[i];
        }
        look(t, sum);
    }
    look(t, t->observed);
}

op_signflip op_signflip_test(const double *d, size_t n, uint64_t seed)
{
    tally t = {0};
    double size = 0;
    for (size_t i = 0; i < n; i++) {
        t.observed += d[i];
        size += fabs(d[i]);
    }
    t.slack = 1e-12 * size;
    bool exact = n <= OP_SIGNFLIP_EXACT;
    if (exact)
        look_at_all(&t, d, n);
    else
        look_at_some(&t, d, n, seed);
    uint64_t signings = exact ? (uint64_t)1 << n : (uint64_t)OP_SIGNFLIP_DRAWS + 1;
    double all = (double)signings;
    return (op_signflip){(double)t.greater / all, (double)t.less / all, (double)t.two / all, exact, signings};
}

void op_holm(const double *p, size_t n, double *adjusted)
{
    bool done[64] = {false};
    double most = 0;
    for (size_t k = 0; k < n && k < 64; k++) {
        size_t next = n;
        for (size_t i = 0; i < n; i++)
            if (!done[i] && (next == n || p[i] < p[next]))
                next = i;
        done[next] = true;
        most = fmax(most, fmin(1, (double)(n - k) * p[next]));
        adjusted[next] = most;
    }
}

/* ---- Student's t ---- */

/* The continued fraction of I_x(a, b), by Lentz's method; converges fast for x < (a+1)/(a+b+2). */
static double beta_fraction(double x, double a, double b)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double value = d;
    for (int k = 1; k < 500; k++) {
        double even = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k));
        double odd = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1));
        double step = 1;
        for (int i = 0; i < 2; i++) {
            double term = i ? odd : even;
            d = 1 + term * d;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = 1 + term / c;
            c = fabs(c) < tiny ? tiny : c;
            step = c * d;
            value *= step;
        }
        if (fabs(step - 1) < 1e-16)
            break;
    }
    return value;
}

static double incomplete_beta(double x, double a, double b)
{
    if (x <= 0 || x >= 1)
        return x <= 0 ? 0 : 1;
    if (x > (a + 1) / (a + b + 2))
        return 1 - incomplete_beta(1 - x, b, a);
    int sign;
    double log_beta = lgamma_r(a, &sign) + lgamma_r(b, &sign) - lgamma_r(a + b, &sign);
    return exp(a * log(x) + b * log1p(-x) - log_beta) / a * beta_fraction(x, a, b);
}

double op_student_cdf(double t, double df)
{
    double tail = incomplete_beta(df / (df + t * t), df / 2, 0.5) / 2;
    return t >= 0 ? 1 - tail : tail;
}

double op_student_quantile(double p, double df)
{
    if (p < 0.5)
        return -op_student_quantile(1 - p, df);
    double low = 0, high = 1;
    while (op_student_cdf(high, df) < p && high < 1e300)
        high *= 2;
    for (int i = 0; i < 200 && low < high; i++) {
        double middle = low + (high - low) / 2;
        if (middle == low || middle == high)
            break;
        if (op_student_cdf(middle, df) < p)
            low = middle;
        else
            high = middle;
    }
    return low + (high - low) / 2;
}

op_interval op_mean_interval(const double *x, size_t n)
{
    double mean = op_mean(x, n);
    if (n < 2)
        return (op_interval){mean, NAN, NAN};
    double half = op_student_quantile(0.975, (double)(n - 1)) * op_deviation(x, n) / sqrt((double)n);
    return (op_interval){mean, mean - half, mean + half};
}

/* ---- AUROC ---- */

typedef struct scored {
    double score;
    bool positive;
} scored;

static int by_score(const void *a, const void *b)
{
    double x = ((const scored *)a)->score, y = ((const scored *)b)->score;
    return (x > y) - (x < y);
}

op_status op_auroc(const double *score, const bool *positive, size_t n, double *out)
{
    *out = NAN;
    scored *s = op_alloc_array(n, sizeof *s);
    if (!s)
        return OP_ERR_NOMEM;
    for (size_t i = 0; i < n; i++)
        s[i] = (scored){score[i], positive[i]};
    qsort(s, n, sizeof *s, by_score);
    double wins = 0, negatives = 0, positives = 0;
    for (size_t i = 0, end; i < n; i = end) { /* a run of equal scores at a time */
        double p = 0, q = 0;
        end = i;
        do {
            p += s[end].positive;
            q += !s[end].positive;
        } while (++end < n && s[end].score == s[i].score);
        wins += p * (negatives + q / 2);
        positives += p;
        negatives += q;
    }
    if (positives > 0 && negatives > 0)
        *out = wins / (positives * negatives);
    op_free(s);
    return OP_OK;
}
