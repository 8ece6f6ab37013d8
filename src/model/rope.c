/* Rotary frequencies (Su et al.: 2104.09864): pair i of a head turns by position * theta^(-2i/D).
 * "linear" divides every frequency by the factor (Chen et al.: 2306.15595). "llama3" (Llama 3.1's model card and code) leaves wavelengths
 * shorter than original/high as they are, divides those longer than original/low by the factor, and blends between. */
#include <math.h>
#include <string.h>

#include "model/parts.h"

static const double PI = 3.14159265358979323846;

static double llama3_factor(const op_model_config *c, double frequency)
{
    double wavelength = 2 * PI / frequency, original = c->rope_original_positions;
    if (wavelength < original / c->rope_high_freq)
        return 1;
    if (wavelength > original / c->rope_low_freq)
        return c->rope_factor;
    double smooth = (original / wavelength - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    return 1 / ((1 - smooth) / c->rope_factor + smooth);
}

double op_rope_frequency(const op_model_config *c, int32_t pair)
{
    double f = pow(c->rope_theta, -2.0 * pair / c->head_dim);
    if (c->rope_scaling == OP_ROPE_LINEAR)
        return f / c->rope_factor;
    if (c->rope_scaling == OP_ROPE_LLAMA3)
        return f / llama3_factor(c, f);
    return f;
}

void op_rope_table(const op_model_config *c, int32_t rows, float *cos_table, float *sin_table)
{
    int32_t half = c->head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        /* The reference rounds the frequency to float and multiplies in float. */
        float f = (float)op_rope_frequency(c, i);
        for (int32_t t = 0; t < rows; t++) {
            float angle = (float)t * f;
            cos_table[(size_t)t * half + i] = (float)cos(angle);
            sin_table[(size_t)t * half + i] = (float)sin(angle);
        }
    }
}

/* llama.cpp stores the llama3 factors themselves as rope_freqs.weight; the published settings that give them are found again. */
op_status op_rope_from_gguf(op_model_config *c, const op_tensors *t, op_error *e)
{
    const op_tensor *f = op_tensors_find(t, "rope_freqs.weight");
    if (!f)
        return OP_OK;
    int32_t half = c->head_dim / 2;
    float factors[256];
    if (f->count != half || half > 256)
        return op_error_set(e, OP_ERR_MISMATCH, "tensor \"%s\" has %lld elements, expected head_dim/2 = %d", f->name,
                            (long long)f->count, half);
    op_status s = op_tensor_read_f32(f, 0, half, factors, e);
    if (s)
        return s;
    double largest = 1;
    for (int32_t i = 0; i < half; i++)
        largest = factors[i] > largest ? factors[i] : largest;
    if (largest == 1)
        return OP_OK;
    op_model_config plain = *c;
    c->rope_scaling = OP_ROPE_LLAMA3;
    c->rope_factor = largest;
    c->rope_low_freq = 1;
    c->rope_high_freq = 4;
    c->rope_original_positions = 8192;
    for (int32_t i = 0; i < half; i++) {
        double factor = llama3_factor(c, op_rope_frequency(&plain, i));
        if (fabs(factor - factors[i]) > 1e-3 * factor)
            return op_error_set(e, OP_ERR_UNSUPPORTED,
                                "tensor \"%s\": factor %g of pair %d is not llama3 scaling by %g (expected %g)", f->name,
                                (double)factors[i], i, largest, factor);
    }
    return OP_OK;
}
