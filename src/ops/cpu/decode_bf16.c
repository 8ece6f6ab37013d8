/* y[M, N] = x[M, K] W^T for the few rows of a step of generation, with AVX512-BF16.
 *
 * W lies as oneDNN packs it for 512 rows (BA16a64b2a), so that both multiply the same bytes: panels of 64 columns one after the
 * other, each with its K in pairs: panel[pair][column][2], 256 bytes a pair, K rounded up to 32 with zeros. One vdpbf16ps adds a pair of
 * 16 columns. A block of R <= 6 rows by P <= 4 vectors of columns keeps its sums in registers (24 of them, 4 for W, 1 for x), so that
 * a pair costs P + R loads for R P products. The panel (73 KB for K = 576) comes from memory once and stays in the L2 cache for the other
 * blocks of rows; meanwhile the next panel is asked for, a line a pair.
 *
 * Every element is one chain of sums over the pairs in order: its bits depend on its row of x and its column of W alone, not on M,
 * nor on the number of threads. Threads share the vectors of columns. */
#include <immintrin.h>
#include <omp.h>
#include <string.h>

#include "ops/cpu/cpu.h"

enum { PANEL = 4, GROUP = 6, LANES = 16 };

typedef struct product {
    const op_panels *w;
    const op_bf16 *x;
    const float *bias;
    op_out out;
    void *y;
} product;

static inline __m512bh pair_of(const op_bf16 *x)
{
    int32_t both;
    memcpy(&both, x, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

static inline void store(const product *z, int row, int column, __m512 sum)
{
    int left = z->w->N - column;
    size_t at = (size_t)row * (size_t)z->w->N + (size_t)column;
    __mmask16 mask = (__mmask16)(left >= LANES ? 0xffff : (1 << left) - 1);
    if (z->bias)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, z->bias + column));
    if (z->out == OP_OUT_ACT) {
        _mm256_mask_storeu_epi16((op_bf16 *)z->y + at, mask, (__m256i)_mm512_cvtneps_pbh(sum));
        return;
    }
    float *y = (float *)z->y + at;
    if (z->out == OP_OUT_F32_ADD)
        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
    _mm512_mask_storeu_ps(y, mask, sum);
}

/* R rows from `row` by P vectors from vector v; both are constants where this is inlined. */
static inline __attribute__((always_inline)) void block(int R, int P, const product *z, int row, int v, const char *ahead)
{
    size_t K = (size_t)z->w->K;
    const op_bf16 *w = z->w->data + (size_t)(v / PANEL) * z->w->panel + (size_t)(v % PANEL) * 2 * LANES;
    const op_bf16 *x = z->x + (size_t)row * K;
    __m512 sum[GROUP][PANEL];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            sum[r][p] = _mm512_setzero_ps();
    for (size_t k = 0; k + 1 < K; k += 2, w += 2 * LANES * PANEL, ahead += 64) {
        __m512bh b[PANEL];
        _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            b[p] = (__m512bh)_mm512_loadu_si512(w + 2 * LANES * p);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m512bh a = pair_of(x + (size_t)r * K + k);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
                sum[r][p] = _mm512_dpbf16_ps(sum[r][p], a, b[p]);
        }
    }
    for (int r = 0; r < R && K % 2; r++) { /* the last element has no partner */
        __m512bh a = pair_of((op_bf16[2]){x[(size_t)r * K + K - 1], 0});
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            sum[r][p] = _mm512_dpbf16_ps(sum[r][p], a, (__m512bh)_mm512_loadu_si512(w + 2 * LANES * p));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            store(z, row + r, (v + p) * LANES, sum[r][p]);
}

#define ROWS(P)                                                                                                        \
    switch (R) {                                                                                                       \
    case 6: block(6, P, z, row, v, ahead); break;                                                                      \
    case 5: block(5, P, z, row, v, ahead); break;                                                                      \
    case 4: block(4, P, z, row, v, ahead); break;                                                                      \
    case 3: block(3, P, z, row, v, ahead); break;                                                                      \
    case 2: block(2, P, z, row, v, ahead); break;                                                                      \
    default: block(1, P, z, row, v, ahead); break;                                                                     \
    }

/* The vectors [v, v + P) of one panel, all M rows in blocks of about equal size. */
static void columns(int P, int M, const product *z, int v)
{
    const char *ahead = (const char *)(z->w->data + (size_t)(v / PANEL + 1) * z->w->panel);
    int blocks = (M + GROUP - 1) / GROUP;
    for (int i = 0; i < blocks; i++, ahead += z->w->K * 32) {
        int row = M * i / blocks, R = M * (i + 1) / blocks - row;
        switch (P) {
        case 4: ROWS(4) break;
        case 3: ROWS(3) break;
        case 2: ROWS(2) break;
        default: ROWS(1) break;
        }
    }
}

void op_cpu_decode_bf16(const op_panels *w, int M, const void *x, const float *bias, op_out out, void *y)
{
    product z = {w, x, bias, out, y};
    int vectors = (w->N + LANES - 1) / LANES;
#pragma omp parallel if ((size_t)w->N * (size_t)w->K >= 1 << 15)
    {
        int i = omp_get_thread_num(), n = omp_get_num_threads();
        int end = (int)((int64_t)vectors * (i + 1) / n);
        for (int v = (int)((int64_t)vectors * i / n), P; v < end; v += P) {
            P = PANEL - v % PANEL;
            P = P < end - v ? P : end - v;
            columns(P, M, &z, v);
        }
    }
}
