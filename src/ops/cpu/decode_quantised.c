/* y[M, N] = x[M, K] W^T with weights of 4 or 8 bits and whole numbers inside the blocks of 32 (as llama.cpp multiplies).
 *
 * x is rounded a block at a time: x = dx qx, qx in -127..127. The sum over a block of x w is then
 *   8 bits: dx d sum(qx (q - 128));   4 bits: dx d sum(qx q) + m dx sum(qx)
 * where the sums are exact in 32 bits, so that their order does not matter; the blocks add up in order, in float. A row's bits depend
 * on the row alone. decode.h has the layout: 16 columns side by side, 4 elements of K in each lane of 32 bits, so that no sum
 * crosses lanes. A tile is some rows by one unit of 16 columns: rows share the unpacked block, and W is read once, front to back (four units side
 * by side, to have more sums in flight, took 1.5 times as long from memory). AVX512-VNNI adds four products a lane (u8 x s8); AVX2 does with pairs,
 * where |w| and the sign of w on x keep 16 bits from overflowing (127 127 2 < 2^15); elsewhere plain C. */
#include <math.h>
#include <omp.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/decode.h"
#include "ops/cpu/simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* ---- 16 columns at once ---- */

#if defined(__AVX512VNNI__)
enum { ROWS_AT_ONCE = 8 };
typedef __m512i bytes;
typedef __m512i ints;
typedef __m512 floats;
static inline bytes load(const uint8_t *p)
{
    return _mm512_load_si512(p);
}
static inline bytes low(bytes b)
{
    return _mm512_and_si512(b, _mm512_set1_epi8(15));
}
static inline bytes high(bytes b)
{
    return _mm512_and_si512(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(15));
}
static inline bytes centred(bytes b)
{
    return b; /* 128 too large, which start() takes off */
}
static inline ints start(bool centre, int sum)
{
    return _mm512_set1_epi32(centre ? -128 * sum : 0);
}
static inline ints dot(ints s, bool centre, bytes w, int32_t x)
{
    (void)centre;
    return _mm512_dpbusd_epi32(s, w, _mm512_set1_epi32(x));
}
static inline floats zero(void)
{
    return _mm512_setzero_ps();
}
static inline floats scales(const op_f16 *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline floats times(floats a, float b)
{
    return _mm512_mul_ps(a, _mm512_set1_ps(b));
}
static inline floats add_ints(floats sum, floats scale, ints s)
{
    return _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(s), sum);
}
static inline floats add_times(floats sum, floats a, float b)
{
    return _mm512_fmadd_ps(a, _mm512_set1_ps(b), sum);
}
static inline void put(float *p, floats x)
{
    _mm512_storeu_ps(p, x);
}
#elif defined(__AVX2__)
enum { ROWS_AT_ONCE = 4 };
typedef struct bytes {
    __m256i v[2];
} bytes;
typedef bytes ints;
typedef struct floats {
    __m256 v[2];
} floats;
#define BOTH(type, expression) ((type){{expression(0), expression(1)}})
static inline bytes load(const uint8_t *p)
{
#define AT(i) _mm256_load_si256((const __m256i *)p + i)
    return BOTH(bytes, AT);
#undef AT
}
static inline bytes low(bytes b)
{
#define AT(i) _mm256_and_si256(b.v[i], _mm256_set1_epi8(15))
    return BOTH(bytes, AT);
#undef AT
}
static inline bytes high(bytes b)
{
#define AT(i) _mm256_and_si256(_mm256_srli_epi16(b.v[i], 4), _mm256_set1_epi8(15))
    return BOTH(bytes, AT);
#undef AT
}
static inline bytes centred(bytes b)
{
#define AT(i) _mm256_xor_si256(b.v[i], _mm256_set1_epi8(-128))
    return BOTH(bytes, AT);
#undef AT
}
static inline ints start(bool centre, int sum)
{
    (void)centre;
    (void)sum;
    return (ints){{_mm256_setzero_si256(), _mm256_setzero_si256()}};
}
static inline ints dot(ints s, bool centre, bytes w, int32_t x)
{
    __m256i q = _mm256_set1_epi32(x), one = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++) {
        __m256i pairs = centre ? _mm256_maddubs_epi16(_mm256_abs_epi8(w.v[i]), _mm256_sign_epi8(q, w.v[i])) : _mm256_maddubs_epi16(w.v[i], q);
        s.v[i] = _mm256_add_epi32(s.v[i], _mm256_madd_epi16(pairs, one));
    }
    return s;
}
static inline floats zero(void)
{
    return (floats){{_mm256_setzero_ps(), _mm256_setzero_ps()}};
}
static inline floats scales(const op_f16 *p)
{
#define AT(i) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + i))
    return BOTH(floats, AT);
#undef AT
}
static inline floats times(floats a, float b)
{
#define AT(i) _mm256_mul_ps(a.v[i], _mm256_set1_ps(b))
    return BOTH(floats, AT);
#undef AT
}
static inline floats add_ints(floats sum, floats scale, ints s)
{
#define AT(i) _mm256_fmadd_ps(scale.v[i], _mm256_cvtepi32_ps(s.v[i]), sum.v[i])
    return BOTH(floats, AT);
#undef AT
}
static inline floats add_times(floats sum, floats a, float b)
{
#define AT(i) _mm256_fmadd_ps(a.v[i], _mm256_set1_ps(b), sum.v[i])
    return BOTH(floats, AT);
#undef AT
}
static inline void put(float *p, floats x)
{
    _mm256_storeu_ps(p, x.v[0]);
    _mm256_storeu_ps(p + 8, x.v[1]);
}
#else
enum { ROWS_AT_ONCE = 2 };
#define PLAIN static __attribute__((noinline)) /* unrolled, these loops take the compiler minutes */
typedef struct bytes {
    int8_t v[64];
} bytes;
typedef struct ints {
    int32_t v[16];
} ints;
typedef struct floats {
    float v[16];
} floats;
PLAIN bytes load(const uint8_t *p)
{
    bytes b;
    memcpy(&b, p, sizeof b);
    return b;
}
PLAIN bytes low(bytes b)
{
    for (int i = 0; i < 64; i++)
        b.v[i] = b.v[i] & 15;
    return b;
}
PLAIN bytes high(bytes b)
{
    for (int i = 0; i < 64; i++)
        b.v[i] = (int8_t)((uint8_t)b.v[i] >> 4);
    return b;
}
PLAIN bytes centred(bytes b)
{
    for (int i = 0; i < 64; i++)
        b.v[i] = (int8_t)((uint8_t)b.v[i] ^ 128);
    return b;
}
PLAIN ints start(bool centre, int sum)
{
    (void)centre;
    (void)sum;
    return (ints){{0}};
}
PLAIN ints dot(ints s, bool centre, bytes w, int32_t x)
{
    (void)centre;
    int8_t q[4];
    memcpy(q, &x, sizeof q);
    for (int c = 0; c < 16; c++)
        s.v[c] += w.v[4 * c] * q[0] + w.v[4 * c + 1] * q[1] + w.v[4 * c + 2] * q[2] + w.v[4 * c + 3] * q[3];
    return s;
}
PLAIN floats zero(void)
{
    return (floats){{0}};
}
PLAIN floats scales(const op_f16 *p)
{
    floats s;
    for (int c = 0; c < 16; c++)
        s.v[c] = op_f16_to_f32(p[c]);
    return s;
}
PLAIN floats times(floats a, float b)
{
    for (int c = 0; c < 16; c++)
        a.v[c] *= b;
    return a;
}
PLAIN floats add_ints(floats sum, floats scale, ints s)
{
    for (int c = 0; c < 16; c++)
        sum.v[c] += scale.v[c] * (float)s.v[c];
    return sum;
}
PLAIN floats add_times(floats sum, floats a, float b)
{
    for (int c = 0; c < 16; c++)
        sum.v[c] += a.v[c] * b;
    return sum;
}
PLAIN void put(float *p, floats x)
{
    memcpy(p, &x, sizeof x);
}
#endif

/* ---- rows of x ---- */

typedef struct rounded {
    int32_t *q;   /* [M, blocks, 8] four elements each */
    float *scale; /* [M, blocks] */
    int32_t *sum; /* [M, blocks] of q */
} rounded;

static void round_row(const act *x, int K, int blocks, int32_t *q, float *scale, int32_t *sum)
{
    for (int b = 0; b < blocks; b++) {
        float v[OP_QBLOCK] = {0}, most = 0;
        int8_t whole[OP_QBLOCK];
        int n = K - b * OP_QBLOCK < OP_QBLOCK ? K - b * OP_QBLOCK : OP_QBLOCK, total = 0;
        for (int i = 0; i < n; i++)
            v[i] = from_act1(x[b * OP_QBLOCK + i]);
#pragma omp simd reduction(max : most)
        for (int i = 0; i < OP_QBLOCK; i++)
            most = fabsf(v[i]) > most ? fabsf(v[i]) : most;
        float inverse = most > 1e-30f ? 127 / most : 0;
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < OP_QBLOCK; i++) {
            int r = (int)rintf(v[i] * inverse);
            whole[i] = (int8_t)r;
            total += r;
        }
        memcpy(q + 8 * b, whole, sizeof whole);
        scale[b] = most / 127;
        sum[b] = total;
    }
}

/* ---- tiles ---- */

typedef struct product {
    const op_quantised *w;
    rounded x;
    const float *bias;
    op_out out;
    void *y;
} product;

static inline void store(const product *z, int row, int unit, floats sum)
{
    float v[16];
    int n = z->w->N - unit * 16 < 16 ? z->w->N - unit * 16 : 16;
    size_t at = (size_t)row * (size_t)z->w->N + (size_t)unit * 16;
    put(v, sum);
    for (int c = 0; z->bias && c < n; c++)
        v[c] += z->bias[unit * 16 + c];
    for (int c = 0; c < n; c++)
        if (z->out == OP_OUT_ACT)
            ((act *)z->y)[at + (size_t)c] = to_act1(v[c]);
        else
            ((float *)z->y)[at + (size_t)c] = z->out == OP_OUT_F32_ADD ? ((float *)z->y)[at + (size_t)c] + v[c] : v[c];
}

/* R rows by one unit; R and bits are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(int R, int bits, const product *z, int row, int unit)
{
    size_t blocks = (size_t)z->w->blocks, one_scale = bits == 4 ? 32 : 16;
    const uint8_t *quanta = z->w->quanta + (size_t)unit * blocks * (size_t)(64 * bits);
    const op_f16 *s = z->w->scales + (size_t)unit * blocks * one_scale;
    floats sum[ROWS_AT_ONCE];
    for (int r = 0; r < R; r++)
        sum[r] = zero();
    for (size_t b = 0; b < blocks; b++, quanta += 64 * bits, s += one_scale) {
        floats scale = scales(s), minimum = bits == 4 ? scales(s + 16) : scale;
        bytes w[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            w[i] = bits == 8 ? centred(load(quanta + 64 * i)) : i < 4 ? low(load(quanta + 64 * i)) : high(load(quanta + 64 * (i - 4)));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            size_t place = (size_t)(row + r) * blocks + b;
            const int32_t *q = z->x.q + 8 * place;
            ints s32 = start(bits == 8, z->x.sum[place]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                s32 = dot(s32, bits == 8, w[i], q[i]);
            sum[r] = add_ints(sum[r], times(scale, z->x.scale[place]), s32);
            if (bits == 4)
                sum[r] = add_times(sum[r], minimum, z->x.scale[place] * (float)z->x.sum[place]);
        }
    }
    for (int r = 0; r < R; r++)
        store(z, row + r, unit, sum[r]);
}

/* All rows of the units [from, to). */
static inline __attribute__((always_inline)) void units(int bits, int M, const product *z, int from, int to)
{
    for (int u = from; u < to; u++) {
        int row = 0;
        for (; row + ROWS_AT_ONCE <= M; row += ROWS_AT_ONCE)
            tile(ROWS_AT_ONCE, bits, z, row, u);
        for (; row + 2 <= M; row += 2)
            tile(2, bits, z, row, u);
        for (; row < M; row++)
            tile(1, bits, z, row, u);
    }
}

op_status OP_CPU_NAME(quantised)(const op_quantised *w, int M, const void *x, const float *bias, op_out out, void *y)
{
    size_t all = (size_t)M * (size_t)w->blocks;
    int32_t *room = op_cpu_scratch(OP_SCRATCH_ROUNDED, all * 10 * sizeof *room);
    if (!room)
        return OP_ERR_NOMEM;
    product z = {w, {room, (float *)(room + 9 * all), room + 8 * all}, bias, out, y};
#pragma omp parallel if ((size_t)w->N * (size_t)w->K >= 1 << 15)
    {
        int i = omp_get_thread_num(), n = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int m = 0; m < M; m++) {
            size_t at = (size_t)m * (size_t)w->blocks;
            round_row((const act *)x + (size_t)m * (size_t)w->K, w->K, w->blocks, z.x.q + 8 * at, z.x.scale + at, z.x.sum + at);
        }
        int from = (int)((int64_t)w->units * i / n), to = (int)((int64_t)w->units * (i + 1) / n);
        if (w->bits == 4)
            units(4, M, &z, from, to);
        else
            units(8, M, &z, from, to);
    }
    return OP_OK;
}
