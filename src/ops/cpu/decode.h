/* ops/cpu/decode.h: the products of generation (decode_*.c), and quantised weights as they read them. A unit is 16 columns (rows of W) by one block of
 * 32 along K; units lie block after block, 16 columns after 16 columns, so that a product reads memory once and in order.
 *   quanta, 8 bits: [quad 8][column 16][4], 512 bytes;  4 bits: [4][16][4], 256 bytes, quad i in the low and i + 4 in the high halves
 *   scales, 16-bit floats: [16], for 4 bits [2][16], the minima second */
#ifndef OP_OPS_CPU_DECODE_H
#define OP_OPS_CPU_DECODE_H

#include "base/num.h"
#include "ops/ops.h"
#include "ops/quantise.h"

typedef struct op_quantised {
    int N, K, bits;  /* bits 0: not packed yet */
    int units, blocks; /* ceil(N / 16), ceil(K / 32) */
    uint8_t *quanta; /* owned; scales lie behind */
    op_f16 *scales;
} op_quantised;

op_status op_quantised_pack(op_quantised *z, const float *w); /* z->N, K set; again after every change of w */
void op_quantised_release(op_quantised *z);
size_t op_quantised_bytes(const op_quantised *z);
/* Row n of W */
void op_quantised_row(const op_quantised *z, int n, float *out);

/* decode_quantised.c and decode_floats.c, compiled for each level and activation type: y = x W^T, by quantised weights and by floats w[N, K]. */
typedef op_status op_quantised_product(const op_quantised *z, int M, const void *x, const float *bias, op_out out, void *y);
typedef op_status op_floats_product(int N, int K, const float *w, int M, const void *x, const float *bias, op_out out, void *y);
#define OP_CPU_DECODE(level)                            \
    op_quantised_product op_cpu_quantised_f32_##level;  \
    op_quantised_product op_cpu_quantised_bf16_##level; \
    op_floats_product op_cpu_floats_f32_##level;        \
    op_floats_product op_cpu_floats_bf16_##level;
OP_CPU_DECODE(v2)
OP_CPU_DECODE(v3)
OP_CPU_DECODE(v4)
OP_CPU_DECODE(vnni) /* quantised only */

/* The kernels that products.c is to use from now on; [1] for activations in bf16. */
typedef struct op_kernels {
    op_quantised_product *quantised[2];
    op_floats_product *floats[2];
} op_kernels;
void op_cpu_products_use(op_kernels k);

#endif
