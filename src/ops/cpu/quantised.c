/* Packing of quantised weights. */
#include "ops/cpu/decode.h"

#include <string.h>

#include "base/mem.h"

static size_t quanta_bytes(const op_quantised *z, int bits)
{
    return (size_t)z->units * (size_t)z->blocks * (size_t)(64 * bits);
}

size_t op_quantised_bytes(const op_quantised *z)
{
    return z->bits ? quanta_bytes(z, z->bits) + (size_t)z->units * (size_t)z->blocks * (z->bits == 4 ? 64 : 32) : 0;
}

void op_quantised_release(op_quantised *z)
{
    op_free_aligned(z->quanta);
    z->quanta = NULL;
    z->bits = 0;
}

/* 16 columns from column n by the block from k on. False if they do not fit into `bits`. */
static bool pack_unit(const op_quantised *z, int bits, const float *w, int n, int k, uint8_t *quanta, op_f16 *scales)
{
    int count = z->K - k < OP_QBLOCK ? z->K - k : OP_QBLOCK;
    for (int c = 0; c < 16 && n + c < z->N; c++) {
        const float *x = w + (size_t)(n + c) * (size_t)z->K + k;
        op_qblock b;
        uint32_t q[8];
        if (bits == 8)
            op_quantise_8(x, count, &b);
        else if (!op_quantise_4(x, count, &b))
            return false;
        memcpy(q, b.q, sizeof q);
        for (int quad = 0; quad < bits; quad++) {
            uint32_t four = bits == 8 ? q[quad] : q[quad] | q[quad + 4] << 4;
            memcpy(quanta + quad * 64 + c * 4, &four, sizeof four);
        }
        scales[c] = op_f32_to_f16(b.scale);
        if (bits == 4)
            scales[16 + c] = op_f32_to_f16(b.minimum);
    }
    return true;
}

static op_status pack(op_quantised *z, int bits, const float *w, bool *fits)
{
    size_t one = (size_t)(64 * bits), scales = bits == 4 ? 32 : 16;
    op_quantised_release(z);
    z->quanta = op_alloc_aligned(quanta_bytes(z, bits) + (size_t)z->units * (size_t)z->blocks * scales * sizeof *z->scales);
    if (!z->quanta)
        return OP_ERR_NOMEM;
    z->bits = bits;
    z->scales = (op_f16 *)(z->quanta + quanta_bytes(z, bits));
    int failed = 0;
#pragma omp parallel for schedule(static)
    for (int u = 0; u < z->units; u++)
        for (int b = 0; b < z->blocks; b++) {
            int stop;
#pragma omp atomic read
            stop = failed;
            size_t at = (size_t)u * (size_t)z->blocks + (size_t)b;
            if (!stop && !pack_unit(z, bits, w, 16 * u, OP_QBLOCK * b, z->quanta + at * one, z->scales + at * scales))
#pragma omp atomic write
                failed = 1;
        }
    *fits = !failed;
    return OP_OK;
}

op_status op_quantised_pack(op_quantised *z, const float *w)
{
    bool fits;
    z->units = (z->N + 15) / 16;
    z->blocks = (z->K + OP_QBLOCK - 1) / OP_QBLOCK;
    op_status s = pack(z, 4, w, &fits);
    return s || fits ? s : pack(z, 8, w, &fits);
}

void op_quantised_row(const op_quantised *z, int n, float *out)
{
    for (int k0 = 0; k0 < z->K; k0 += OP_QBLOCK) {
        size_t at = (size_t)(n / 16) * (size_t)z->blocks + (size_t)(k0 / OP_QBLOCK);
        const uint8_t *quanta = z->quanta + at * (size_t)(64 * z->bits) + n % 16 * 4;
        const op_f16 *s = z->scales + at * (z->bits == 4 ? 32 : 16) + n % 16;
        float scale = op_f16_to_f32(s[0]), minimum = z->bits == 4 ? op_f16_to_f32(s[16]) : -128 * scale;
        for (int k = 0; k < OP_QBLOCK && k0 + k < z->K; k++) {
            int quad = k / 4, byte = quanta[quad % z->bits * 64 + k % 4];
            out[k0 + k] = minimum + scale * (float)(z->bits == 8 ? byte : quad < 4 ? byte & 15 : byte >> 4);
        }
    }
}
