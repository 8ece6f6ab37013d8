/* The exact KL term of a lesson. The reference runs over each micro-batch beside the model that learns; where the model's logits come by, the reference's for
 * the same tokens are computed, and the divergence sends its gradient straight to the logits. */
#include <string.h>

#include "trial/lesson_parts.h"
#include "trial/objective.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the KL term of a lesson");
}

/* A chunk of logits on its way back. */
static op_status see_logits(void *ctx, int32_t n, const int32_t *tokens, const float *logits, float *dlogits)
{
    full_kl *f = ctx;
    if (!dlogits)
        return OP_OK;
    int32_t V = op_model_get_config(f->reference)->vocab;
    if (n > f->cap) {
        float *more = op_realloc(f->logits, (size_t)n * (size_t)V * sizeof *more);
        if (!more)
            return OP_ERR_NOMEM;
        f->logits = more;
        int32_t *rows = op_realloc(f->rows, (size_t)n * sizeof *rows);
        double *kl = rows ? op_realloc(f->kl, (size_t)n * sizeof *kl) : NULL;
        f->rows = rows ? rows : f->rows;
        f->kl = kl ? kl : f->kl;
        if (!rows || !kl)
            return OP_ERR_NOMEM;
        f->cap = n;
    }
    for (int32_t i = 0; i < n; i++)
        f->rows[i] = f->before[tokens[i]];
    op_status status = op_model_logits(f->reference, f->pass, f->rows, n, f->logits, NULL);
    if (status)
        return status;
    const float *weight = f->weight + f->first;
#pragma omp parallel for schedule(static)
    for (int32_t i = 0; i < n; i++)
        if (weight[tokens[i]] != 0)
            f->kl[i] = op_full_kl(V, logits + (size_t)i * (size_t)V, f->logits + (size_t)i * (size_t)V, (double)weight[tokens[i]], dlogits + (size_t)i * (size_t)V);
    for (int32_t i = 0; i < n; i++)
        if (weight[tokens[i]] != 0) {
            f->loss += (double)weight[tokens[i]] * f->kl[i];
            f->sum += f->kl[i];
            f->tokens++;
        }
    return OP_OK;
}

op_status full_kl_begin(full_kl *f, op_learner *learner, op_model *reference, op_error *e)
{
    op_model *m = op_learner_model(learner);
    *f = (full_kl){.learning = m, .reference = reference ? reference : m, .adapter = reference && op_model_adapter_count(reference) ? 0 : -1};
    if (reference && op_model_get_config(reference)->vocab != op_model_get_config(m)->vocab)
        return op_error_set(e, OP_ERR_MISMATCH, "the reference has %d tokens, the model that learns %d", op_model_get_config(reference)->vocab,
                            op_model_get_config(m)->vocab);
    op_model_set_logits_hook(m, see_logits, f);
    return op_pass_new(&f->pass, f->reference, e);
}

void full_kl_end(full_kl *f)
{
    op_model_set_logits_hook(f->learning, NULL, NULL);
    op_pass_free(f->pass);
    op_free(f->logits);
    op_free(f->rows);
    op_free(f->kl);
}

op_status full_kl_weigh(full_kl *f, op_lesson *l, const op_batch *b, const op_signal *s, double scale, op_error *e)
{
    if (f->weight)
        return OP_OK;
    float *weight = op_arena_alloc(&l->step, (size_t)b->n_tokens * sizeof *weight);
    f->before = op_arena_alloc(&l->step, (size_t)b->n_tokens * sizeof *f->before);
    f->seqs = op_arena_alloc(&l->step, (size_t)b->n_seqs * sizeof *f->seqs);
    if (!weight || !f->before || !f->seqs)
        return no_memory(e);
    for (int32_t q = 0; q < b->n_seqs; q++) {
        const op_seq *x = &b->seqs[q];
        int32_t i = op_item_of(s, q);
        const float *w = i >= 0 ? l->items[i].weight[TERM_KL] : NULL;
        for (int32_t k = 0; k < x->length; k++)
            weight[x->start + k] = w ? (float)(scale * (double)w[x->branch + k]) : 0;
    }
    f->weight = weight;
    return OP_OK;
}

/* The row of the batch that holds token `place` of sequence q, counted from the root. */
static int32_t row_of(const op_batch *b, int32_t q, int32_t place)
{
    while (place < b->seqs[q].branch)
        q = b->seqs[q].parent;
    return b->seqs[q].start + place - b->seqs[q].branch;
}

op_status full_kl_part(full_kl *f, const op_batch *b, int32_t first, op_error *e)
{
    op_batch same = *b;
    f->first = first;
    memcpy(f->seqs, b->seqs, (size_t)b->n_seqs * sizeof *b->seqs);
    same.seqs = f->seqs;
    for (int32_t q = 0; q < b->n_seqs; q++) {
        const op_seq *x = &b->seqs[q];
        f->seqs[q].adapter = f->adapter;
        for (int32_t k = 0; k < x->length; k++)
            f->before[x->start + k] = x->branch + k ? row_of(b, q, x->branch + k - 1) : 0;
    }
    return op_model_forward(f->reference, f->pass, &same, &(op_how){0}, e);
}
