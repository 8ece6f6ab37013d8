#include "base/num.h"

#include <math.h>

float op_f16_to_f32(op_f16 h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float sign = h & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31)
        return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexpf((float)mantissa, -24);
    return sign * ldexpf((float)(mantissa + 1024), exponent - 25);
}

op_f16 op_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    float a = fabsf(f);
    if (isnan(f))
        return sign | 0x7e00;
    if (a >= 65520.0f)
        return sign | 0x7c00;
    if (a < 0x1p-14f)
        return (op_f16)(sign | (uint16_t)lrintf(ldexpf(a, 24)));
    int e;
    float m = frexpf(a, &e);                          /* a = m * 2^e, m in [0.5, 1) */
    uint32_t r = (uint32_t)lrintf(ldexpf(m, 11));     /* 1024..2048; 2048 carries into the exponent by itself */
    return (op_f16)(sign | (((uint32_t)(e + 13) << 10) + r)) ;
}
