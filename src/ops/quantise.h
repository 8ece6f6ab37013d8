/* ops/quantise.h: matrices in blocks of 32 along K, the coding that both backends share.
 *
 * A block is 4 bits with a scale and a minimum, x = minimum + scale q, where that loses next to nothing: where its values lie on 16 even
 * steps, as those read from llama.cpp's Q4_0, Q4_1 and Q4_K do. A matrix with any other block has 8 bits, x = scale (q - 128), q in 1..255: what
 * Q8_0 holds, unchanged. Scales and minima are rounded to 16-bit floats. Weights beyond 127 times the largest of those, 8.3 million, become that. */
#ifndef OP_OPS_QUANTISE_H
#define OP_OPS_QUANTISE_H

#include <stdbool.h>
#include <stdint.h>

enum { OP_QBLOCK = 32 };

typedef struct op_qblock {
    float scale, minimum; /* numbers that a 16-bit float holds; minimum is 0 for 8 bits */
    uint8_t q[OP_QBLOCK];
} op_qblock;

/* The n <= 32 values of x; behind them q is 0. False if one would be off by more than 1/64 of a step (and the rounding of 16-bit
 * floats, 2^-11 of the largest). */
bool op_quantise_4(const float *x, int n, op_qblock *out);
void op_quantise_8(const float *x, int n, op_qblock *out);
/* The bits that the matrix w[N, K] needs: 4 or 8. */
int op_quantise_bits(int N, int K, const float *w);

#endif
