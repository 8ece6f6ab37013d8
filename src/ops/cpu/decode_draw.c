/* What a draw from a row of logits needs, in two passes over the row: its maximum, then p = exp((x - max) / temperature) with the largest p
 * and the sum of every block of OP_DRAW_BLOCK. The blocks spare the sampler a third pass: it looks for its token, or for the few tokens that
 * top-k, top-p or min-p leave, in the blocks that can hold them. One row is one thread's. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/simd.h"

static float draw_weights(int V, const float *x, float inverse, float *p, float *top, float *sum)
{
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int v = 0; v < V; v++)
        most = x[v] > most ? x[v] : most;
    if (most == -INFINITY)
        return most;
    for (int from = 0; from < V; from += OP_DRAW_BLOCK) {
        int to = from + OP_DRAW_BLOCK < V ? from + OP_DRAW_BLOCK : V;
        float highest = 0, total = 0;
#pragma omp simd reduction(max : highest) reduction(+ : total)
        for (int v = from; v < to; v++) {
            float w = exp1((x[v] - most) * inverse);
            p[v] = w;
            highest = w > highest ? w : highest;
            total += w;
        }
        top[from / OP_DRAW_BLOCK] = highest;
        sum[from / OP_DRAW_BLOCK] = total;
    }
    return most;
}

void OP_CPU_NAME(draw)(op_ops *t)
{
    t->draw_weights = draw_weights;
}
