/* lab/stats.h: intervals. */
#ifndef OP_LAB_STATS_H
#define OP_LAB_STATS_H

#include <stdint.h>

/* A share of n cases with its 95% interval by Wilson's score (JASA 22, 1927):
 *   (k + z^2/2 -+ z sqrt(k (n-k) / n + z^2/4)) / (n + z^2),  z = 1.959964
 * n = 0 gives rate NAN in 0..1. */
typedef struct op_rate {
    int64_t k, n;
    double rate, low, high;
} op_rate;

op_rate op_rate_of(int64_t k, int64_t n);

#endif
