/* ops/ref/ref.h: the reference backend: plain C on floats, every sum in double. Each file fills its part of the table. */
#ifndef OP_OPS_REF_REF_H
#define OP_OPS_REF_REF_H

#include "ops/ops.h"

void op_ref_products(op_ops *t);
void op_ref_rows(op_ops *t);
void op_ref_attention(op_ops *t);
void op_ref_vocabulary(op_ops *t);
void op_ref_draw(op_ops *t);

#endif
