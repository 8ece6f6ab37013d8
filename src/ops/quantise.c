#include "ops/quantise.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/num.h"

static float as_f16(float x)
{
    return op_f16_to_f32(op_f32_to_f16(x));
}

/* The values as minimum + scale q, the largest q being `steps`. */
static bool on_steps(const float *x, int n, float low, float high, int steps, op_qblock *out)
{
    float minimum = as_f16(low), scale = as_f16((high - low) / (float)steps), inverse = scale > 0 ? 1 / scale : 0;
    if (!isfinite(minimum) || !isfinite(scale))
        return false;
    float most = scale / 64 + fmaxf(fabsf(low), fabsf(high)) * 0x1p-11f; /* that is the rounding of a 16-bit float */
    int bad = 0;
#pragma omp simd reduction(| : bad)
    for (int i = 0; i < n; i++) {
        int q = (int)((x[i] - minimum) * inverse + 0.5f);
        float off = fabsf(minimum + scale * (float)q - x[i]);
        bad |= !(off <= most) | (q < 0) | (q > 15);
        out->q[i] = (uint8_t)q;
    }
    out->minimum = minimum;
    out->scale = scale;
    return !bad;
}

bool op_quantise_4(const float *x, int n, op_qblock *out)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < n; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    memset(out->q, 0, sizeof out->q);
    for (int steps = 15; steps > 0; steps--)
        if (on_steps(x, n, low, high, steps, out))
            return true;
    return false;
}

void op_quantise_8(const float *x, int n, op_qblock *out)
{
    float most = 0;
    for (int i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    memset(out->q, 0, sizeof out->q);
    out->minimum = 0;
    out->scale = fminf(as_f16(most / 127), 65504); /* the largest 16-bit float */
    float inverse = out->scale > 0 ? 1 / out->scale : 0;
    for (int i = 0; i < n; i++) {
        float q = fmaxf(-127, fminf(127, x[i] * inverse));
        out->q[i] = (uint8_t)(int)(q + 128.5f);
    }
}

int op_quantise_bits(int N, int K, const float *w)
{
    op_qblock b;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k += OP_QBLOCK)
            if (!op_quantise_4(w + (size_t)n * (size_t)K + k, K - k < OP_QBLOCK ? K - k : OP_QBLOCK, &b))
                return 8;
    return 4;
}
