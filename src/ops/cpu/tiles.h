/* ops/cpu/tiles.h: the arithmetic of attention's tiles of BQ queries by BK keys.
 *
 * All products are C[M, N] (+)= A[M, K] B[K, N] with B's rows contiguous and A read by broadcasts through any strides, so that P and its
 * transpose are the same kernel; GROUP rows by PANEL vectors of C stay in registers. Columns are padded to whole vectors, and what stands in
 * the padding never reaches a result. Every element of C is one chain of sums over K in order: its bits do not depend on the tile's size.
 *
 * Where the processor has AVX512-BF16 and activations are bf16, products of two activations (scores, dout v) take pairs of elements as they
 * came: such products are exact, sums are float, and a step does twice the work. A pair is one unit of 32 bits, elsewhere a unit is a float, so that the
 * kernel and the transposition are the same. Products with weights of keys stay in float, which bf16 would round. */
#ifndef OP_OPS_CPU_TILES_H
#define OP_OPS_CPU_TILES_H

#include <immintrin.h>
#include <math.h>

#include "ops/cpu/simd.h"

#if defined(__AVX512F__)
enum { LANES = 16, PANEL = 4 }; /* a panel is PANEL vectors of C's columns */
#elif defined(__AVX__)
enum { LANES = 8, PANEL = 2 };
#else
enum { LANES = 4, PANEL = 2 };
#endif
enum { BQ = 48, BK = 64, GROUP = 6 };

#if OP_ACT_BF16 && defined(__AVX512BF16__)
#define PAIRS 1
#else
#define PAIRS 0
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

static inline int min(int a, int b)
{
    return a < b ? a : b;
}

static inline int max(int a, int b)
{
    return a > b ? a : b;
}

/* The units of a row of D elements. */
static inline int units(int D)
{
    return PAIRS ? (D + 1) / 2 : D;
}

/* ---- vectors ---- */

/* The larger of two; b where one is no number. */
static inline vec larger(vec a, vec b)
{
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return (vec)_mm_max_ps((__m128)a, (__m128)b);
#endif
}

static inline vec plus(vec a, vec b)
{
    return a + b;
}

/* exp1 of simd.h for x <= 88. */
static inline vec exp_of(vec x)
{
    const float magic = 12582912.0f;
    vec z = larger((vec){0} - 87.0f, x);
    vec t = z * 1.44269504088896341f + magic, n = t - magic;
    vec r = z - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vec power = (vec)(((ints)t << 23) + 0x3f800000);
    return (vec)((ints)(p * power) & ~(ints)(x < -87.0f));
}

/* MERGED(fold, a, b, m) folds neighbouring runs of m lanes of a and of b and interleaves the results: lane l takes those of a where l is even. After
 * merging x[i] with x[i + n/2] for n = LANES, LANES/2 .. 2 and m = 1, 2, 4 .. lane i holds the fold of x[i], for each in the same order. */
#define FIRST(l, m) ((l) % 2 * LANES + (l) / (2 * (m)) * (2 * (m)) + (l) % (2 * (m)) / 2)
#define SECOND(l, m) (FIRST(l, m) + (m))
#define LOW(l, m) ((l) % 2 * LANES + (l) / 2)
#define HIGH(l, m) (LOW(l, m) + LANES / 2)
#define FOUR(F, l, m) F(l, m), F(l + 1, m), F(l + 2, m), F(l + 3, m)
#if defined(__AVX512F__)
#define LANES_OF(F, m) FOUR(F, 0, m), FOUR(F, 4, m), FOUR(F, 8, m), FOUR(F, 12, m)
#elif defined(__AVX__)
#define LANES_OF(F, m) FOUR(F, 0, m), FOUR(F, 4, m)
#else
#define LANES_OF(F, m) FOUR(F, 0, m)
#endif
#define MERGED(fold, a, b, m) fold(__builtin_shufflevector(a, b, LANES_OF(FIRST, m)), __builtin_shufflevector(a, b, LANES_OF(SECOND, m)))
#define MERGE_ALL(fold, count, m)                                                                                      \
    _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++) x[i] = MERGED(fold, x[i], x[i + (count)], m);
#if defined(__AVX512F__)
#define FOLD(fold) MERGE_ALL(fold, 8, 1) MERGE_ALL(fold, 4, 2) MERGE_ALL(fold, 2, 4) MERGE_ALL(fold, 1, 8)
#elif defined(__AVX__)
#define FOLD(fold) MERGE_ALL(fold, 4, 1) MERGE_ALL(fold, 2, 2) MERGE_ALL(fold, 1, 4)
#else
#define FOLD(fold) MERGE_ALL(fold, 2, 1) MERGE_ALL(fold, 1, 2)
#endif

/* The sums of LANES vectors as one; x is used up. */
static inline vec sums_of(vec *x)
{
    FOLD(plus)
    return x[0];
}

static inline vec maxima_of(vec *x)
{
    FOLD(larger)
    return x[0];
}

/* The n rows of units x[n, ld] as the columns of xt[columns, BK], `columns` rounded up to LANES; the other columns are 0. Interleaving rows i and
 * i + LANES/2 turns the bits of (row, column) by one: after log2(LANES) turns they have changed places. */
static inline void transpose(int n, int columns, const float *x, size_t ld, float *xt)
{
    for (int d = 0; d < columns; d += LANES)
        for (int i0 = 0; i0 < BK; i0 += LANES) {
            vec a[LANES], b[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                a[i] = i0 + i < n ? *(const vec *)(x + (size_t)(i0 + i) * ld + d) : (vec){0};
#pragma GCC unroll 4
            for (int turn = 1; turn < LANES; turn *= 2) {
#pragma GCC unroll 8
                for (int i = 0; i < LANES / 2; i++) {
                    b[2 * i] = __builtin_shufflevector(a[i], a[i + LANES / 2], LANES_OF(LOW, 0));
                    b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + LANES / 2], LANES_OF(HIGH, 0));
                }
#pragma GCC unroll 16
                for (int i = 0; i < LANES; i++)
                    a[i] = b[i];
            }
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                *(vec *)(xt + (size_t)(d + i) * BK + i0) = a[i];
        }
}

/* ---- the product kernel ---- */

static inline __attribute__((always_inline)) vec multiply_add(bool pairs, float a, vec b, vec c)
{
#if PAIRS
    if (pairs)
        return (vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
    (void)pairs;
    return c + a * b;
}

/* The same of two vectors of units */
static inline vec multiply_units(vec a, vec b, vec c)
{
#if PAIRS
    return (vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
    return c + a * b;
#endif
}

/* R rows by P vectors of C, both constant where this is inlined, so that acc lives in registers. */
static inline __attribute__((always_inline)) void block(bool pairs, int R, int P, int K, const float *A, size_t ar, size_t ak,
                                                        const float *B, size_t ldb, float *C, size_t ldc, bool add)
{
    vec acc[GROUP][PANEL];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            acc[r][p] = add ? *(const vec *)(C + r * ldc + p * LANES) : (vec){0};
    for (int k = 0; k < K; k++) {
        vec b[PANEL];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            b[p] = *(const vec *)(B + k * ldb + p * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float a = A[r * ar + k * ak];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
                acc[r][p] = multiply_add(pairs, a, b[p], acc[r][p]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            *(vec *)(C + r * ldc + p * LANES) = acc[r][p];
}

#define ROWS(P)                                                                                                        \
    switch (R) {                                                                                                       \
    case 6: block(pairs, 6, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                              \
    case 5: block(pairs, 5, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                              \
    case 4: block(pairs, 4, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                              \
    case 3: block(pairs, 3, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                              \
    case 2: block(pairs, 2, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                              \
    default: block(pairs, 1, P, K, A, ar, ak, B, ldb, C, ldc, add); break;                                             \
    }

static inline __attribute__((always_inline)) void rows_any(bool pairs, int R, int N, int K, const float *A, size_t ar, size_t ak,
                                                           const float *B, size_t ldb, float *C, size_t ldc, bool add)
{
    for (; N > 0; N -= PANEL * LANES, B += PANEL * LANES, C += PANEL * LANES)
        switch (min((N + LANES - 1) / LANES, PANEL)) {
#if defined(__AVX512F__)
        case 4: ROWS(4) break;
        case 3: ROWS(3) break;
#endif
        case 2: ROWS(2) break;
        default: ROWS(1) break;
        }
}

/* R <= GROUP rows of C over N columns, rounded up to whole vectors */
static void rows(int R, int N, int K, const float *A, size_t ar, size_t ak, const float *B, size_t ldb, float *C,
                 size_t ldc, bool add)
{
    rows_any(false, R, N, K, A, ar, ak, B, ldb, C, ldc, add);
}

/* The same with A and B in units, their rows as long as K units. */
static void rows_of_units(int R, int N, int K, const float *A, size_t lda, const float *B, size_t ldb, float *C, size_t ldc)
{
    rows_any(PAIRS, R, N, K, A, lda, 1, B, ldb, C, ldc, false);
}

/* ---- activations ---- */

static inline void load_row(int D, const act *x, float *y)
{
#pragma omp simd
    for (int d = 0; d < D; d++)
        y[d] = from_act1(x[d]);
}

/* D elements as units */
static inline void load_units(int D, const act *x, float *y)
{
#if PAIRS
    memcpy(y, x, (size_t)D * sizeof *x);
    if (D % 2)
        memset((char *)y + (size_t)D * sizeof *x, 0, sizeof *x);
#else
    load_row(D, x, y);
#endif
}

static inline void store(int n, int D, float scale, const float *x, size_t ldx, act *y, size_t ldy)
{
    for (int i = 0; i < n; i++)
#pragma omp simd
        for (int d = 0; d < D; d++)
            y[i * ldy + d] = to_act1(x[i * ldx + d] * scale);
}

#endif
