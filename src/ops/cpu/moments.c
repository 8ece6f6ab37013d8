/* AdamW (Loshchilov, Hutter: 1711.05101) with moments of 8 bits, their codes as in ops/dynamic8.h:
 *     m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p = p (1 - lr decay) - lr m / c1 / (sqrt(v / c2) + eps)
 * A block of 256 elements is one turn: its moments are widened into two arrays in the L1 cache, updated together with the parameters, and narrowed again
 * once the block's new largest magnitudes are known. So memory sees each parameter, gradient and code once: 12 bytes an element with
 * float gradients, where moments in float take 28. Blocks depend on nothing but themselves: any number of threads gives the same bits. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/simd.h"
#include "ops/dynamic8.h"

enum { BLOCK = OP_MOMENT_BLOCK };

static float m_values[256], v_values[256];

/* The place of x, 0 <= x <= 1, among the codes: a whole number where it is the value of one. */
static inline float place_of(float x, int top)
{
    float steps = (float)(1 << top);
#pragma GCC unroll 8
    for (int k = 0; k < top; k++) {
        bool below = x <= 0.1f;
        x *= below ? 10 : 1.0f;
        steps *= below ? 0.5f : 1;
    }
    float place = steps - 1 + steps * (x - 0.1f) * (1 / 0.9f);
    return steps > 1 ? place : x;
}

typedef struct rule {
    float keep, rate, root, eps, b1, b2;
    uint32_t noise;
} rule;

/* The n <= BLOCK elements from element `first` of a parameter on. */
static void update(int n, uint32_t first, float *p, const float *g, uint8_t *m, uint8_t *v, float *m_top, float *v_top, const rule *r)
{
    float m1[BLOCK], v1[BLOCK], m_most = 0, v_most = 0, m_scale = *m_top, v_scale = *v_top;
#pragma omp simd reduction(max : m_most, v_most)
    for (int i = 0; i < n; i++) {
        float a = r->b1 * (m_scale * m_values[m[i]]) + (1 - r->b1) * g[i];
        float b = r->b2 * (v_scale * v_values[v[i]]) + (1 - r->b2) * g[i] * g[i];
        p[i] = p[i] * r->keep - r->rate * a / (sqrtf(b) * r->root + r->eps);
        m1[i] = a;
        v1[i] = b;
        m_most = fabsf(a) > m_most ? fabsf(a) : m_most;
        v_most = b > v_most ? b : v_most;
    }
    *m_top = m_most;
    *v_top = v_most;
    float m_part = m_most > 0 ? 1 / m_most : 0, v_part = v_most > 0 ? 1 / v_most : 0;
#pragma omp simd
    for (int i = 0; i < n; i++) {
        uint32_t noise = op_dynamic8_noise(first + (uint32_t)i, r->noise);
        float a = place_of(fabsf(m1[i]) * m_part, OP_DYNAMIC8_TOP_M) + (float)(int)(noise & 0xffff) * 0x1p-16f;
        float b = place_of(v1[i] * v_part, OP_DYNAMIC8_TOP_V) + (float)(int)(noise >> 16) * 0x1p-16f;
        int low = v1[i] > 0 ? 1 : 0; /* a v of 0 beside an m that is not would be a leap */
        int ca = (int)a, cb = (int)b;
        ca = ca > 127 ? 127 : ca;
        cb = cb > 255 ? 255 : cb < low ? low : cb;
        m[i] = (uint8_t)(m1[i] < 0 ? ca | OP_DYNAMIC8_SIGN : ca);
        v[i] = (uint8_t)cb;
    }
}

static void adamw8(size_t n, float *p, const void *g, bool g_act, const op_moments8 *x, const op_adamw *o)
{
    float c1 = (float)(1 - pow(o->beta1, (double)o->step)), c2 = (float)(1 - pow(o->beta2, (double)o->step));
    rule r = {1 - o->lr * o->weight_decay, o->lr / c1, 1 / sqrtf(c2), o->eps, o->beta1, o->beta2, o->noise};
    size_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (size_t b = 0; b < blocks; b++) {
        size_t first = b * BLOCK;
        int count = n - first < BLOCK ? (int)(n - first) : BLOCK;
        float grad[BLOCK];
        if (g_act)
            for (int i = 0; i < count; i++)
                grad[i] = from_act1(((const act *)g)[first + (size_t)i]) * o->grad_scale;
        else
            for (int i = 0; i < count; i++)
                grad[i] = ((const float *)g)[first + (size_t)i] * o->grad_scale;
        update(count, (uint32_t)first, p + first, grad, x->m + first, x->v + first, x->m_top + b, x->v_top + b, &r);
    }
}

void OP_CPU_NAME(moments)(op_ops *t)
{
    for (unsigned c = 0; c < 256; c++) {
        float m = (float)op_dynamic8_value(c & ~(unsigned)OP_DYNAMIC8_SIGN, OP_DYNAMIC8_TOP_M);
        m_values[c] = c & OP_DYNAMIC8_SIGN ? -m : m;
        v_values[c] = (float)op_dynamic8_value(c, OP_DYNAMIC8_TOP_V);
    }
    t->adamw8 = adamw8;
}
