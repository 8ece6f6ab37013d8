#include "trial/objective.h"

#include "base/mem.h"

/* The weights of the batch's tokens as a term sees them. */
static void spread(const op_objective_sum *f, const op_objective_term *term, const op_batch *b, const op_signal *s, float *weight)
{
    for (int32_t q = 0; q < b->n_seqs; q++) {
        const op_seq *x = &b->seqs[q];
        int32_t i = op_item_of(s, q);
        const float *w = i >= 0 && (size_t)i < f->n_items ? term->weights[i] : NULL;
        for (int32_t k = 0; k < x->length; k++)
            weight[x->start + k] = w ? w[x->branch + k] : 0;
    }
}

static op_status eval(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    op_objective_sum *f = ctx;
    size_t n = (size_t)b->n_tokens;
    float *weight = op_alloc_array(n, 2 * sizeof *weight);
    if (!weight)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu tokens", n);
    float *part = weight + n;
    for (size_t t = 0; t < n; t++)
        slope[t] = 0;
    double total = 0;
    op_status status = OP_OK;
    for (size_t k = 0; !status && k < f->n_terms; k++) {
        op_objective_term *term = &f->terms[k];
        if (term->scale == 0)
            continue;
        spread(f, term, b, s, weight);
        op_signal own = *s;
        own.weight = weight;
        own.normaliser = term->normaliser;
        status = term->objective.eval(term->objective.ctx, b, &own, logp, part, &term->loss, e);
        for (size_t t = 0; !status && t < n; t++)
            slope[t] += (float)(term->scale * (double)part[t]);
        total += logp ? term->scale * term->loss : 0;
    }
    if (logp && !status)
        *loss = total;
    op_free(weight);
    return status;
}

op_objective op_objective_sum_of(op_objective_sum *f)
{
    bool linear = true;
    for (size_t k = 0; k < f->n_terms; k++)
        linear &= f->terms[k].scale == 0 || f->terms[k].objective.linear;
    return (op_objective){.name = "sum", .ctx = f, .linear = linear, .eval = eval};
}
