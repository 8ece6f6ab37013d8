/* operant/dtype.h: element types of tensors, in files and in arithmetic. */
#ifndef OPERANT_DTYPE_H
#define OPERANT_DTYPE_H

typedef enum op_dtype {
    OP_F32, OP_F16, OP_BF16, OP_F64,
    OP_Q4_0, OP_Q4_1, OP_Q5_0, OP_Q5_1, OP_Q8_0, OP_Q4_K, OP_Q5_K, OP_Q6_K, /* llama.cpp's blocks */
    OP_I8, OP_I16, OP_I32, OP_I64, OP_U8, OP_U16, OP_U32, OP_U64, OP_BOOL,
    OP_DTYPE_COUNT
} op_dtype;

#endif
