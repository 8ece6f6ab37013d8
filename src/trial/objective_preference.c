#include "trial/objective.h"

#include <math.h>

#include "base/mem.h"

/* Loss of a pair with margin d, and its slope in d. */
static double pair_loss(const op_preference *p, double d, double *slope)
{
    double x = p->beta * d;
    switch (p->type) {
    case OP_PREFERENCE_IPO: {
        double short_of = d - 1 / (2 * p->beta);
        *slope = 2 * short_of;
        return short_of * short_of;
    }
    case OP_PREFERENCE_HINGE:
        *slope = x < 1 ? -p->beta : 0;
        return fmax(0, 1 - x);
    default: /* log(1 + e^-x), written so that nothing overflows */
        *slope = -p->beta / (1 + exp(x));
        return fmax(0, -x) + log1p(exp(-fabs(x)));
    }
}

static double share(const op_preference *p, const double *size, int32_t item)
{
    return p->mean && size[item] > 0 ? 1 / size[item] : 1;
}

static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    const op_preference *p = ctx;
    op_status status = op_objective_check_normaliser(s, e);
    if (status)
        return status;
    double *sum = op_alloc_zero(p->n_items, 3 * sizeof *sum);
    if (!sum)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu items", p->n_items);
    double *size = sum + p->n_items, *slopes = size + p->n_items;
    status = op_item_sums(b, s, logp, p->n_items, sum, size, e);
    double total = 0;
    for (size_t k = 0; !status && k < p->n_pairs; k++) {
        int32_t good = p->pairs[k].good, bad = p->pairs[k].bad;
        double g = share(p, size, good), h = share(p, size, bad), d = g * sum[good] - h * sum[bad], at;
        total += pair_loss(p, d, &at);
        slopes[good] += g * at / s->normaliser; /* an item may stand in several pairs */
        slopes[bad] -= h * at / s->normaliser;
        if (p->margin)
            p->margin[k] = d;
    }
    if (!status) {
        op_item_slopes(b, s, slopes, slope);
        *loss = total / s->normaliser;
    }
    op_free(sum);
    return status;
}

op_objective op_objective_preference(const op_preference *p)
{
    return (op_objective){.name = "preference", .ctx = (void *)(uintptr_t)p, .eval = eval};
}
