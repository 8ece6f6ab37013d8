/* ops/cpu/simd.h: what the files that are compiled several times share: the activation type and the exponential.
 *
 * The build defines OP_ACT (f32 or bf16), OP_ACT_BF16 (0 or 1) and OP_LEVEL (v2, v3, v4; vnni for decode_quantised.c alone, v4bf16 for
 * attention.c alone). */
#ifndef OP_OPS_CPU_SIMD_H
#define OP_OPS_CPU_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/num.h"

#define OP_JOIN_(a, b, c) op_cpu_##a##_##b##_##c
#define OP_JOIN(a, b, c) OP_JOIN_(a, b, c)
#define OP_CPU_NAME(part) OP_JOIN(part, OP_ACT, OP_LEVEL)

#if OP_ACT_BF16
typedef op_bf16 act;
static inline float from_act1(act x)
{
    return op_bf16_to_f32(x);
}
static inline act to_act1(float x)
{
    return op_f32_to_bf16(x);
}
#else
typedef float act;
static inline float from_act1(act x)
{
    return x;
}
static inline act to_act1(float x)
{
    return x;
}
#endif

/* Elements from which a second thread pays for itself. */
enum { PARALLEL_FROM = 1 << 14 };

/* e^x within 2 units in the last place (the polynomial of Cephes' expf). 0 below -87, also for -infinity; stays at
 * e^88 above 88; NaN stays NaN. Adding 1.5 2^23 rounds to an integer n, whose bits then become the exponent. */
static inline float exp1(float x)
{
    const float magic = 12582912.0f;
    float z = x < -87.0f ? -87.0f : x;
    z = z > 88.0f ? 88.0f : z;
    float t = z * 1.44269504088896341f + magic, n = t - magic;
    float r = z - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &t, 4);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

#endif
