#include "trial/objective.h"

#include <math.h>

#include "base/mem.h"

static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    const op_kto *k = ctx;
    op_status status = op_objective_check_normaliser(s, e);
    if (status)
        return status;
    double *sum = op_alloc_zero(k->n_items, 2 * sizeof *sum);
    if (!sum)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu items", k->n_items);
    double *slopes = sum + k->n_items;
    status = op_item_sums(b, s, logp, k->n_items, sum, NULL, e);
    double z0 = 0, total = 0;
    for (size_t i = 0; !status && i < k->n_points; i++)
        z0 += sum[k->points[i]] / (double)k->n_points;
    z0 = fmax(0, z0);
    for (size_t i = 0; !status && i < k->n_judged; i++) {
        const op_judged *j = &k->judged[i];
        double side = j->desirable ? 1 : -1, weight = j->desirable ? k->desirable : k->undesirable;
        double x = k->beta * side * (sum[j->item] - z0);
        double wrong = 1 / (1 + exp(x)), right = 1 / (1 + exp(-x)); /* 1 - sigmoid(x), sigmoid(x) */
        total += weight * wrong;
        slopes[j->item] -= weight * k->beta * side * wrong * right / s->normaliser;
    }
    if (!status) {
        op_item_slopes(b, s, slopes, slope);
        *loss = total / s->normaliser;
    }
    op_free(sum);
    return status;
}

op_objective op_objective_kto(const op_kto *k)
{
    return (op_objective){.name = "kto", .ctx = (void *)(uintptr_t)k, .eval = eval};
}
