#include "io/quant.h"

#include <math.h>
#include <string.h>

#include "base/num.h"

/* As op_f16_to_f32, without branches on the value: exponent and mantissa are moved into a float's place and the
 * exponent's bias is corrected by a multiplication, which also makes halves' denormals right. */
static inline float half(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    uint32_t u = (uint32_t)(h & 0x7fff) << 13;
    float f;
    memcpy(&f, &u, sizeof f);
    f *= 0x1p112f;
    memcpy(&u, &f, sizeof f);
    if ((h & 0x7c00) == 0x7c00)
        u |= 0x7f800000;
    u |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* restrict: without it nothing below becomes SIMD, since bytes may alias anything.
 * x = d (q - 8); 16 bytes of nibbles: the low ones are elements 0..15, the high ones 16..31. Likewise below. */
static void block_q4_0(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((b[2 + i] & 15) - 8);
        x[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

/* x = d q + m */
static void block_q4_1(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b), m = half(b + 2);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)(b[4 + i] & 15) + m;
        x[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

/* The fifth bits of the 32 elements stand together. */
static void block_q5_0(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b);
    uint32_t high;
    memcpy(&high, b + 2, 4);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((int)((b[6 + i] & 15) | ((high >> i & 1) << 4)) - 16);
        x[i + 16] = d * (float)((int)((b[6 + i] >> 4) | ((high >> (i + 16) & 1) << 4)) - 16);
    }
}

static void block_q5_1(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b), m = half(b + 2);
    uint32_t high;
    memcpy(&high, b + 4, 4);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((b[8 + i] & 15) | ((high >> i & 1) << 4)) + m;
        x[i + 16] = d * (float)((b[8 + i] >> 4) | ((high >> (i + 16) & 1) << 4)) + m;
    }
}

static void block_q8_0(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b);
    for (int i = 0; i < 32; i++)
        x[i] = d * (float)(signed char)b[2 + i];
}

/* Q4_K and Q5_K: eight groups of 32 in a block of 256, each with a 6-bit scale and a 6-bit minimum in 12 bytes: the first
 * four groups in the low bits of bytes 0..7, the others split between bytes 8..11 and the high bits of 0..7. */
static void scale_and_minimum(const unsigned char *s, int group, float *scale, float *minimum)
{
    if (group < 4) {
        *scale = (float)(s[group] & 63);
        *minimum = (float)(s[group + 4] & 63);
    } else {
        *scale = (float)((s[group + 4] & 15) | (s[group - 4] >> 6) << 4);
        *minimum = (float)((s[group + 4] >> 4) | (s[group] >> 6) << 4);
    }
}

/* x = d scale q - dmin minimum; two groups share 32 bytes of nibbles. */
static void block_q4_k(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b), dmin = half(b + 2);
    const unsigned char *q = b + 16;
    for (int g = 0; g < 8; g++) {
        float scale, minimum;
        scale_and_minimum(b + 4, g, &scale, &minimum);
        scale *= d;
        minimum *= dmin;
        for (int i = 0; i < 32; i++)
            x[32 * g + i] = scale * (float)(q[g / 2 * 32 + i] >> g % 2 * 4 & 15) - minimum;
    }
}

/* As Q4_K; bit g of high[i] is the fifth bit of element i of group g. */
static void block_q5_k(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b), dmin = half(b + 2);
    const unsigned char *high = b + 16, *q = b + 48;
    for (int g = 0; g < 8; g++) {
        float scale, minimum;
        scale_and_minimum(b + 4, g, &scale, &minimum);
        scale *= d;
        minimum *= dmin;
        for (int i = 0; i < 32; i++)
            x[32 * g + i] = scale * (float)((q[g / 2 * 32 + i] >> g % 2 * 4 & 15) | (high[i] >> g & 1) << 4) - minimum;
    }
}

/* Two halves of 128: 64 bytes of nibbles, 32 bytes that each hold the upper two bits of four elements, and eight signed
 * scales, one for 16 elements. x = d scale (q - 32). */
static void block_q6_k(const unsigned char *restrict b, float *restrict x)
{
    float d = half(b + 208);
    for (int h = 0; h < 2; h++) {
        const unsigned char *low = b + 64 * h, *high = b + 128 + 32 * h, *scales = b + 192 + 8 * h;
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 32; i++) {
                int q = (low[part % 2 * 32 + i] >> part / 2 * 4 & 15) | (high[i] >> 2 * part & 3) << 4;
                x[128 * h + 32 * part + i] = d * (float)(signed char)scales[2 * part + i / 16] * (float)(q - 32);
            }
    }
}

#define BLOCKS(decode)                                                            \
    do {                                                                          \
        for (size_t i = 0; i < n / block; i++)                                    \
            decode(b + i * step, out + i * block);                                \
        return true;                                                              \
    } while (0)

bool op_dequantize(op_dtype type, const void *bytes, size_t n, float *out)
{
    const unsigned char *b = bytes;
    size_t block = op_dtype_block(type), step = op_dtype_block_bytes(type);
    switch (type) {
    case OP_F32:
        if (n)
            memcpy(out, b, n * sizeof *out);
        return true;
    case OP_F16:
        for (size_t i = 0; i < n; i++)
            out[i] = half(b + 2 * i);
        return true;
    case OP_BF16:
        for (size_t i = 0; i < n; i++) {
            op_bf16 h;
            memcpy(&h, b + 2 * i, sizeof h);
            out[i] = op_bf16_to_f32(h);
        }
        return true;
    case OP_F64:
        for (size_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, b + 8 * i, sizeof v);
            out[i] = (float)v;
        }
        return true;
    case OP_Q4_0: BLOCKS(block_q4_0);
    case OP_Q4_1: BLOCKS(block_q4_1);
    case OP_Q5_0: BLOCKS(block_q5_0);
    case OP_Q5_1: BLOCKS(block_q5_1);
    case OP_Q8_0: BLOCKS(block_q8_0);
    case OP_Q4_K: BLOCKS(block_q4_k);
    case OP_Q5_K: BLOCKS(block_q5_k);
    case OP_Q6_K: BLOCKS(block_q6_k);
    default: return false;
    }
}

static void encode_q8_0(const float *x, unsigned char *b)
{
    float most = 0;
    for (int i = 0; i < 32; i++)
        most = fmaxf(most, fabsf(x[i]));
    float d = most / 127, inverse = d ? 1 / d : 0;
    op_f16 h = op_f32_to_f16(d);
    memcpy(b, &h, sizeof h);
    for (int i = 0; i < 32; i++)
        b[2 + i] = (unsigned char)(signed char)roundf(x[i] * inverse);
}

bool op_quantize(op_dtype type, const float *values, size_t n, void *bytes)
{
    unsigned char *b = bytes;
    switch (type) {
    case OP_F32:
        if (n)
            memcpy(b, values, n * sizeof *values);
        return true;
    case OP_F16:
        for (size_t i = 0; i < n; i++)
            memcpy(b + 2 * i, &(op_f16){op_f32_to_f16(values[i])}, 2);
        return true;
    case OP_BF16:
        for (size_t i = 0; i < n; i++)
            memcpy(b + 2 * i, &(op_bf16){op_f32_to_bf16(values[i])}, 2);
        return true;
    case OP_Q8_0:
        for (size_t i = 0; i < n / 32; i++)
            encode_q8_0(values + 32 * i, b + 34 * i);
        return true;
    default: return false;
    }
}
