/* tests/ops/help.h: buffers of noise, activations of either type, and comparison. */
#ifndef TESTS_OPS_HELP_H
#define TESTS_OPS_HELP_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/num.h"
#include "ops/ops.h"

/* Buffers live until the end of the test that asked for them. */
static void *held[512];
static int n_held;

static inline void *hold(size_t bytes)
{
    assert_true(n_held < (int)(sizeof held / sizeof *held));
    void *p = op_alloc_aligned(bytes);
    assert_non_null(p);
    return held[n_held++] = p;
}

static inline int drop_all(void **state)
{
    (void)state;
    while (n_held > 0)
        op_free_aligned(held[--n_held]);
    return 0;
}

static inline float *zeros(size_t n)
{
    return hold(n * sizeof(float));
}

static uint64_t noise_state = 1;

/* Roughly normal numbers (the sum of four uniform ones) of standard deviation `scale`. */
static inline float *noise(size_t n, double scale)
{
    float *x = zeros(n);
    for (size_t i = 0; i < n; i++) {
        noise_state = noise_state * 6364136223846793005u + 1442695040888963407u;
        uint64_t u = noise_state ^ noise_state >> 29;
        double sum = 0;
        for (int j = 0; j < 4; j++)
            sum += (double)(u >> (16 * j) & 0xffff) / 65536 - 0.5;
        x[i] = (float)(sum * 1.7320508 * scale);
    }
    return x;
}

/* x as activations of `ops`; x itself is rounded to what they can hold. */
static inline void *as_act(const op_ops *ops, size_t n, float *x)
{
    void *a = hold(n * ops->act_size);
    if (ops->act == OP_F32) {
        memcpy(a, x, n * sizeof *x);
        return a;
    }
    for (size_t i = 0; i < n; i++) {
        ((op_bf16 *)a)[i] = op_f32_to_bf16(x[i]);
        x[i] = op_bf16_to_f32(((op_bf16 *)a)[i]);
    }
    return a;
}

static inline float *as_f32(const op_ops *ops, size_t n, const void *a)
{
    float *x = zeros(n);
    for (size_t i = 0; i < n; i++)
        x[i] = ops->act == OP_F32 ? ((const float *)a)[i] : op_bf16_to_f32(((const op_bf16 *)a)[i]);
    return x;
}

static inline double largest(size_t n, const float *x)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        if (isfinite(x[i]))
            most = fmax(most, fabs((double)x[i]));
    return most;
}

/* |got - want| <= part max|want| + each |want|, for every element; equal infinities are equal. */
static inline void assert_close(const char *what, size_t n, const float *got, const float *want, double part, double each)
{
    double most = largest(n, want);
    for (size_t i = 0; i < n; i++) {
        if (got[i] == want[i])
            continue;
        double off = fabs((double)got[i] - want[i]);
        if (!(off <= part * most + each * fabs((double)want[i])))
            fail_msg("%s: element %zu of %zu is %.9g, expected %.9g (max %.3g)", what, i, n, got[i], want[i], most);
    }
}

/* Activations against floats: `part` of the maximum, and half a unit of bf16 (doubled: a rounding on each side). */
static inline void assert_act(const op_ops *ops, const char *what, size_t n, const void *got, const float *want,
                              double part)
{
    assert_close(what, n, as_f32(ops, n, got), want, part, ops->act == OP_BF16 ? 0x1p-8 : 0);
}

/* A ragged forest: trees of sequences with branches, lengths beyond one tile, and rows of no sequence at the end. */
typedef struct forest {
    op_attention a;
    int32_t start[8], length[8], first_seg[9], tree_first[5], position[512];
    op_segment seg[8];
} forest;

static inline forest *forest_new(int H, int G, int D, int window)
{
    static const struct {
        int length, parent, branch; /* parent -1: a new tree */
    } plan[] = {{70, -1, 0}, {33, 0, 50}, {5, 1, 20}, {1, -1, 0}, {150, -1, 0}, {17, -1, 0}, {65, 5, 17}};
    forest *f = hold(sizeof *f);
    int T = 0, segs = 0, trees = 0, n = (int)(sizeof plan / sizeof *plan);
    for (int s = 0; s < n; s++) {
        f->start[s] = T;
        f->length[s] = plan[s].length;
        f->first_seg[s] = segs;
        int at = 0, p = plan[s].parent;
        if (p < 0)
            f->tree_first[trees++] = s;
        else {
            for (int e = f->first_seg[p]; e < f->first_seg[p + 1]; e++)
                f->seg[segs++] = f->seg[e];
            f->seg[segs++] = (op_segment){f->start[p], plan[s].branch};
        }
        for (int e = f->first_seg[s]; e < segs; e++)
            at += f->seg[e].length;
        for (int i = 0; i < plan[s].length; i++)
            f->position[T++] = at + i;
        f->first_seg[s + 1] = segs;
    }
    f->tree_first[trees] = n;
    f->a = (op_attention){.T = T + 3, .H = H, .G = G, .D = D, .ld = (H + 2 * G) * D, .window = window,
                          .scale = 1 / sqrtf((float)D), .n_seqs = n, .n_trees = trees, .start = f->start,
                          .length = f->length, .first_seg = f->first_seg, .seg = f->seg, .tree_first = f->tree_first,
                          .position = f->position};
    return f;
}

#endif
