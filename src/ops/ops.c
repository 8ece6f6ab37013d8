#include "ops/ops.h"

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <string.h>

#include <operant/clock.h>

#include "base/mem.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/decode.h"
#include "ops/ref/ref.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static op_ops ref_f32, cpu_f32, cpu_bf16;

typedef void fill_fn(op_ops *t);

enum { PARTS = 5 };

/* The levels of the x86-64 psABI, and the last with AVX512-BF16, which only attention needs. Each has rows, vocabulary, moments, draws and attention
 * for f32 and for bf16, and the products of generation. */
#define PARTS_OF(act, v, attention) {op_cpu_rows_##act##_##v, op_cpu_vocabulary_##act##_##v, op_cpu_moments_##act##_##v, op_cpu_draw_##act##_##v, attention}
#define KERNELS(v) {{op_cpu_quantised_f32_##v, op_cpu_quantised_bf16_##v}, {op_cpu_floats_f32_##v, op_cpu_floats_bf16_##v}}
#define LEVEL(name, v, attention) {name, PARTS_OF(f32, v, op_cpu_attention_f32_##v), PARTS_OF(bf16, v, attention), KERNELS(v)}
static const struct level {
    const char *name;
    fill_fn *f32[PARTS], *bf16[PARTS];
    op_kernels kernels;
} levels[] = {LEVEL("x86-64-v2", v2, op_cpu_attention_bf16_v2), LEVEL("x86-64-v3", v3, op_cpu_attention_bf16_v3),
              LEVEL("x86-64-v4", v4, op_cpu_attention_bf16_v4), LEVEL("x86-64-v4 bf16", v4, op_cpu_attention_bf16_v4bf16)};

static int level; /* index of levels */

static int level_supported(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
        return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512cd") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
}

static void use_level(int i)
{
    level = i;
    for (int part = 0; part < PARTS; part++) {
        levels[i].f32[part](&cpu_f32);
        levels[i].bf16[part](&cpu_bf16);
    }
    op_kernels k = levels[i].kernels;
    if (i >= 2 && __builtin_cpu_supports("avx512vnni")) {
        k.quantised[0] = op_cpu_quantised_f32_vnni;
        k.quantised[1] = op_cpu_quantised_bf16_vnni;
    }
    op_cpu_products_use(k);
}

static void fill(void)
{
    ref_f32 = (op_ops){.name = "ref", .act = OP_F32, .act_size = 4};
    op_ref_products(&ref_f32);
    op_ref_rows(&ref_f32);
    op_ref_attention(&ref_f32);
    op_ref_vocabulary(&ref_f32);
    op_ref_draw(&ref_f32);
    cpu_f32 = (op_ops){.name = "cpu", .act = OP_F32, .act_size = 4};
    cpu_bf16 = (op_ops){.name = "cpu", .act = OP_BF16, .act_size = 2};
    op_cpu_products(&cpu_f32);
    op_cpu_products(&cpu_bf16);
    use_level(level_supported());
}

static const op_ops *table_of(const char *name, op_dtype act)
{
    if (strcmp(name, "ref") == 0)
        return act == OP_F32 ? &ref_f32 : NULL;
    if (strcmp(name, "cpu") == 0)
        return act == OP_F32 ? &cpu_f32 : act == OP_BF16 ? &cpu_bf16 : NULL;
    return NULL;
}

const op_ops *op_ops_get(const char *name, op_dtype act)
{
    pthread_once(&once, fill);
    return op_profile_table(table_of(name, act));
}

bool op_ops_native_bf16(void)
{
    const char *isa = op_ops_product_isa();
    return strcmp(isa, "avx512_core_bf16") == 0 || strcmp(isa, "avx512_core_amx") == 0;
}

const char *op_ops_simd(void)
{
    pthread_once(&once, fill);
    return levels[level].name;
}

bool op_ops_simd_force(const char *name)
{
    pthread_once(&once, fill);
    for (int i = 0; i <= level_supported(); i++)
        if (strcmp(levels[i].name, name) == 0) {
            use_level(i);
            return true;
        }
    return false;
}

int op_threads_set(int n)
{
    omp_set_num_threads(n > 0 ? n : omp_get_num_procs());
    return omp_get_max_threads();
}

int op_threads(void)
{
    return omp_get_max_threads();
}

int op_thread(void)
{
    return omp_get_thread_num();
}

void op_ops_release(void)
{
    op_cpu_products_release();
    op_cpu_scratch_release();
}

double op_ops_peak(const op_ops *ops, int M, int N, int K, double seconds)
{
    size_t m = (size_t)M, n = (size_t)N, k = (size_t)K;
    op_weight *W = ops->weight_new(N, K, false);
    float *w = op_alloc_aligned(n * k * sizeof *w);
    void *x = op_alloc_aligned(m * k * ops->act_size), *y = op_alloc_aligned(m * n * ops->act_size);
    double best = INFINITY;
    for (size_t i = 0; w && i < n * k; i++) /* numbers, not zeros: multiplying zeros heats less and clocks higher */
        w[i] = (float)(i % 251) / 251 - 0.5f;
    for (size_t i = 0; w && x && i < m; i++)
        ops->to_act(k, w + (i % n) * k, (char *)x + i * k * ops->act_size);
    if (W && w && x && y && !ops->weight_pack(W, w))
        for (double end = op_seconds() + seconds, t = op_seconds(); t < end || best == INFINITY;) {
            if (ops->matmul(W, M, x, NULL, OP_OUT_ACT, y))
                break;
            double after = op_seconds();
            best = fmin(best, after - t);
            t = after;
        }
    ops->weight_free(W);
    op_free_aligned(w);
    op_free_aligned(x);
    op_free_aligned(y);
    return best < INFINITY ? 2e-9 * (double)M * N * K / best : 0;
}

double op_ops_bandwidth(double seconds)
{
    const size_t n = (size_t)32 << 20;
    float *a = op_alloc_aligned(n * sizeof *a), *bc = op_alloc_aligned(2 * n * sizeof *bc), *b = bc, *c = bc ? bc + n : NULL;
    double triad = INFINITY, reading = INFINITY;
    float sum = 0;
    if (a && bc) {
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < 2 * n; i++) /* memory that was never written is one page of zeros */
            bc[i] = (float)(i % 251);
        for (double end = op_seconds() + seconds, t = op_seconds(); t < end || triad == INFINITY;) {
#pragma omp parallel for simd schedule(static)
            for (size_t i = 0; i < n; i++)
                a[i] = b[i] + 3 * c[i];
            double between = op_seconds();
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
            for (size_t i = 0; i < 2 * n; i++)
                sum += bc[i];
            double after = op_seconds();
            triad = fmin(triad, between - t);
            reading = fmin(reading, after - between);
            t = after;
        }
        a[0] = sum; /* so that the sum is needed */
    }
    op_free_aligned(a);
    op_free_aligned(bc);
    return triad < INFINITY ? 1e-9 * (double)n * fmax(12 / triad, 8 / reading) : 0;
}
