/* Where the end of an answer looks: the attention that its last token pays to each of its tokens, in the last layer of the model. */
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"

/* The answer's part of the attention of its last token, scaled to a mean of 1. */
static op_status read_share(const op_model *m, const op_pass *pass, const op_seq *seq, int32_t n_response, float **share, op_error *e)
{
    float *all = op_alloc_array((size_t)seq->length, sizeof *all);
    float *out = *share = op_alloc_array((size_t)n_response, sizeof **share);
    op_status status = all && out ? op_model_attention(m, pass, seq->start + seq->length - 1, all, e) : method_no_memory(e);
    double sum = 0;
    for (int32_t t = 0; !status && t < n_response; t++)
        sum += (double)all[seq->length - n_response + t];
    for (int32_t t = 0; !status && t < n_response; t++)
        out[t] = (float)((double)all[seq->length - n_response + t] * n_response / sum);
    op_free(all);
    return status;
}

/* Trials first .. *next-1 in one batch of about a thousand tokens. */
static op_status read_some(const op_subject *subject, op_pass *pass, op_trial *const *trials, size_t n, size_t first, size_t *next, float **share, op_error *e)
{
    int32_t tokens = 0, count = 0;
    for (*next = first; *next < n && (*next == first || tokens + trials[*next]->n_prompt + trials[*next]->n_response <= 1024); (*next)++)
        tokens += trials[*next]->n_prompt + trials[*next]->n_response;
    int32_t *ids = op_alloc_array((size_t)tokens, sizeof *ids);
    op_seq *seqs = op_alloc_array(*next - first, sizeof *seqs);
    op_status status = ids && seqs ? OP_OK : method_no_memory(e);
    tokens = 0;
    for (size_t i = first; !status && i < *next; i++) {
        const op_trial *t = trials[i];
        seqs[count++] = (op_seq){.start = tokens, .length = t->n_prompt + t->n_response, .parent = -1, .adapter = subject->adapter};
        memcpy(ids + tokens, t->prompt, (size_t)t->n_prompt * sizeof *ids);
        if (t->n_response)
            memcpy(ids + tokens + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
        tokens += t->n_prompt + t->n_response;
    }
    if (!status) {
        const op_batch batch = {.n_tokens = tokens, .n_seqs = count, .ids = ids, .seqs = seqs};
        status = op_model_forward(subject->model, pass, &batch, &(op_how){0}, e);
    }
    for (size_t i = first; !status && i < *next; i++)
        if (trials[i]->n_response)
            status = read_share(subject->model, pass, &seqs[i - first], trials[i]->n_response, &share[i], e);
    op_free(ids);
    op_free(seqs);
    return status;
}

op_status method_attention(op_session *s, op_trial *const *trials, size_t n, float **share, op_error *e)
{
    const op_subject *subject = op_session_subject(s);
    op_pass *pass = NULL;
    op_status status = op_pass_new(&pass, subject->model, e);
    for (size_t i = 0, next; !status && i < n; i = next)
        status = read_some(subject, pass, trials, n, i, &next, share, e);
    op_pass_free(pass);
    return status;
}
