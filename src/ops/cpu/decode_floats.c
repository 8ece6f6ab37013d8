/* y[M, N] = x[M, K] W^T for the few rows of a step of generation, W being the caller's own rows of floats.
 *
 * Both operands are contiguous along K, so vectors run along K: a tile of R rows by COLUMNS rows of W keeps R COLUMNS vectors of sums, which are
 * added across their lanes at the end, and the last K % LANES products one by one. The tile's part of W (9 KB for K = 576) stays in the L1 cache for
 * all rows. An element's sums depend on nothing but its row of x and its row of W. Threads share the rows of W. Activations in bf16 are
 * widened first. */
#include <omp.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/decode.h"
#include "ops/cpu/simd.h"

#if defined(__AVX512F__)
enum { LANES = 16, GROUP = 6 };
#elif defined(__AVX__)
enum { LANES = 8, GROUP = 3 };
#else
enum { LANES = 4, GROUP = 3 };
#endif
enum { COLUMNS = 4 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct product {
    int N, K;
    const float *w, *x, *bias;
    op_out out;
    void *y;
} product;

static inline float sum_lanes(vec v)
{
    float sum[LANES];
    memcpy(sum, &v, sizeof sum);
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            sum[i] += sum[i + n];
    return sum[0];
}

static inline void store(const product *z, int row, int column, float sum)
{
    size_t at = (size_t)row * (size_t)z->N + (size_t)column;
    sum += z->bias ? z->bias[column] : 0;
    if (z->out == OP_OUT_ACT)
        ((act *)z->y)[at] = to_act1(sum);
    else
        ((float *)z->y)[at] = z->out == OP_OUT_F32_ADD ? ((float *)z->y)[at] + sum : sum;
}

/* R rows by C columns; both are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(int R, int C, const product *z, int row, int column)
{
    size_t K = (size_t)z->K, whole = K / LANES * LANES;
    const float *x = z->x + (size_t)row * K, *w = z->w + (size_t)column * K;
    vec sum[GROUP][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            sum[r][c] = (vec){0};
    for (size_t k = 0; k < whole; k += LANES) {
        vec b[COLUMNS];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            b[c] = *(const vec *)(w + (size_t)c * K + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vec a = *(const vec *)(x + (size_t)r * K + k);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                sum[r][c] += a * b[c];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            float total = sum_lanes(sum[r][c]);
            for (size_t k = whole; k < K; k++)
                total += x[(size_t)r * K + k] * w[(size_t)c * K + k];
            store(z, row + r, column + c, total);
        }
}

static inline __attribute__((always_inline)) void columns(int C, int M, const product *z, int column)
{
    int row = 0;
    for (; row + GROUP <= M; row += GROUP)
        tile(GROUP, C, z, row, column);
    for (; row + 2 <= M; row += 2)
        tile(2, C, z, row, column);
    for (; row < M; row++)
        tile(1, C, z, row, column);
}

op_status OP_CPU_NAME(floats)(int N, int K, const float *w, int M, const void *x, const float *bias, op_out out, void *y)
{
    size_t n = (size_t)M * (size_t)K;
    float *wide = sizeof(act) == sizeof(float) ? NULL : op_cpu_scratch(OP_SCRATCH_WIDE_A, n * sizeof *wide);
    if (sizeof(act) != sizeof(float) && !wide)
        return OP_ERR_NOMEM;
    for (size_t i = 0; wide && i < n; i++)
        wide[i] = from_act1(((const act *)x)[i]);
    product z = {N, K, w, wide ? wide : x, bias, out, y};
#pragma omp parallel if ((size_t)N * (size_t)K >= 1 << 15)
    {
        int i = omp_get_thread_num(), threads = omp_get_num_threads();
        int from = (int)((int64_t)N * i / threads), to = (int)((int64_t)N * (i + 1) / threads);
        for (; from + COLUMNS <= to; from += COLUMNS)
            columns(COLUMNS, M, &z, from);
        for (; from < to; from++)
            columns(1, M, &z, from);
    }
    return OP_OK;
}
