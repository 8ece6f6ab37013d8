/* ops/cpu/cpu.h: the processor backend.
 *
 * products.c holds everything that oneDNN does; it picks its own instruction set at run time. decode_*.c multiply the
 * few rows of generation (decode.h) and draw tokens. rows.c, vocabulary.c, moments.c, decode_draw.c and attention.c are plain loops that the
 * compiler vectorises; they are compiled once for each activation type and each x86-64 level, and each compilation fills its part of a table
 * through the functions declared by OP_CPU_LEVEL. */
#ifndef OP_OPS_CPU_CPU_H
#define OP_OPS_CPU_CPU_H

#include "base/num.h"
#include "ops/ops.h"

void op_cpu_products(op_ops *t); /* by t->act */
void op_cpu_products_release(void);
const char *op_cpu_onednn_version(void); /* "2.6.3" */

#define OP_CPU_LEVEL(act, level)                                                                                       \
    void op_cpu_rows_##act##_##level(op_ops *t);                                                                       \
    void op_cpu_vocabulary_##act##_##level(op_ops *t);                                                                 \
    void op_cpu_moments_##act##_##level(op_ops *t);                                                                    \
    void op_cpu_draw_##act##_##level(op_ops *t);                                                                       \
    void op_cpu_attention_##act##_##level(op_ops *t);
OP_CPU_LEVEL(f32, v2)
OP_CPU_LEVEL(f32, v3)
OP_CPU_LEVEL(f32, v4)
OP_CPU_LEVEL(bf16, v2)
OP_CPU_LEVEL(bf16, v3)
OP_CPU_LEVEL(bf16, v4)
void op_cpu_attention_bf16_v4bf16(op_ops *t);

/* decode_bf16.c: a packed weight [N, K], seen by the kernel of generation; its layout is described there. */
typedef struct op_panels {
    int N, K;
    size_t panel;        /* elements of 64 columns */
    const op_bf16 *data; /* NULL: packed otherwise, or the processor lacks AVX512-BF16 */
} op_panels;
void op_cpu_decode_bf16(const op_panels *w, int M, const void *x, const float *bias, op_out out, void *y);

/* Working memory that outlives the call: 64-byte aligned, grown when needed, never shrunk. The content is whatever the
 * last user of the slot left. One caller thread at a time, as for all ops. NULL when memory is out. */
typedef enum op_scratch_slot {
    OP_SCRATCH_DNNL,
    OP_SCRATCH_TILES,
    OP_SCRATCH_WIDE_A, /* bf16 operands as floats, where oneDNN lacks bf16 */
    OP_SCRATCH_WIDE_B,
    OP_SCRATCH_WIDE_C,
    OP_SCRATCH_ROUNDED, /* activations in 8 bits */
    OP_SCRATCH_COUNT
} op_scratch_slot;
void *op_cpu_scratch(op_scratch_slot slot, size_t bytes);
void op_cpu_scratch_release(void);

#endif
