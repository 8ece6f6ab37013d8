/* base/num.h: element types of tensors, and the conversions between 16-bit and 32-bit floats. */
#ifndef OP_BASE_NUM_H
#define OP_BASE_NUM_H

#include <stdint.h>
#include <string.h>

typedef uint16_t op_bf16; /* the upper half of a float */
typedef uint16_t op_f16;  /* IEEE 754 binary16 */

static inline float op_bf16_to_f32(op_bf16 h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Rounds to nearest even; a NaN stays a NaN. */
static inline op_bf16 op_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (op_bf16)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

float op_f16_to_f32(op_f16 h);
op_f16 op_f32_to_f16(float f); /* nearest even; overflow gives infinity */

#endif
