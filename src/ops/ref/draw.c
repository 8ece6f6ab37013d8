/* The weights of a draw in the reference backend. */
#include <math.h>

#include "ops/ref/ref.h"

static float draw_weights(int V, const float *x, float inverse, float *p, float *top, float *sum)
{
    float most = -INFINITY;
    for (int v = 0; v < V; v++)
        most = fmaxf(most, x[v]);
    if (most == -INFINITY)
        return most;
    for (int from = 0; from < V; from += OP_DRAW_BLOCK) {
        double total = 0, highest = 0;
        for (int v = from; v < V && v < from + OP_DRAW_BLOCK; v++) {
            double w = exp(((double)x[v] - most) * inverse);
            p[v] = (float)w;
            highest = fmax(highest, w);
            total += w;
        }
        top[from / OP_DRAW_BLOCK] = (float)highest;
        sum[from / OP_DRAW_BLOCK] = (float)total;
    }
    return most;
}

void op_ref_draw(op_ops *t)
{
    t->draw_weights = draw_weights;
}
