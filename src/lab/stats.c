#include "lab/stats.h"

#include <math.h>

op_rate op_rate_of(int64_t k, int64_t n)
{
    if (!n)
        return (op_rate){0, 0, NAN, 0, 1};
    const double z = 1.959964, z2 = z * z, K = (double)k, N = (double)n;
    double middle = K + z2 / 2, half = z * sqrt(K * (N - K) / N + z2 / 4);
    /* at the ends rounding must not leave 0..1, nor the rate its own interval */
    double low = k ? (middle - half) / (N + z2) : 0, high = k < n ? (middle + half) / (N + z2) : 1;
    return (op_rate){k, n, K / N, low, high};
}
