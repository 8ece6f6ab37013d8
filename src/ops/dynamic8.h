/* ops/dynamic8.h: the codes of AdamW's 8-bit moments: dynamic tree quantisation in blocks (Dettmers, Lewis, Shleifer, Zettlemoyer: 2110.02861).
 *
 * A block of OP_MOMENT_BLOCK values is stored as its largest magnitude and one code for each value relative to it. In a code c the highest bit that is
 * set, k, tells the decade and the bits below it the fraction f, which divides the decade evenly:
 *     value(c) = 10^-(top - k) (0.1 + 0.9 (f + 1) / 2^k),   value(0) = 0
 * with top = 7 for v, which is never negative, and top = 6 for m, whose eighth bit is the sign. So the largest value is exact, the first decade has the finest
 * steps, and 7 or 8 decades are covered. (The paper takes the middles of the steps; then the largest value would shrink by 0.7% in every update.)
 *
 * A value between two codes goes to one of them at random, each as likely as it is near: v moves by a thousandth in a step where codes are percents
 * apart, and rounded to the nearest it would never move. The random number is a hash of element, parameter and step, so a run can be repeated. */
#ifndef OP_OPS_DYNAMIC8_H
#define OP_OPS_DYNAMIC8_H

#include <stdint.h>

enum { OP_MOMENT_BLOCK = 256, OP_DYNAMIC8_SIGN = 0x80, OP_DYNAMIC8_TOP_M = 6, OP_DYNAMIC8_TOP_V = 7 };

/* What a code without its sign stands for, between 0 and 1. */
static inline double op_dynamic8_value(unsigned code, int top)
{
    double decade = 1;
    int k = 0;
    if (!code)
        return 0;
    while (code >> (k + 1))
        k++;
    for (int i = k; i < top; i++)
        decade /= 10;
    unsigned steps = 1u << k;
    return decade * (0.1 + 0.9 * (code - steps + 1) / steps);
}

/* 32 random bits for element i (Wellons' lowbias32): the low half rounds m, the high half v. */
static inline uint32_t op_dynamic8_noise(uint32_t i, uint32_t key)
{
    uint32_t x = i ^ key;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

#endif
