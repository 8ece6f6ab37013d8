/* Where prompts lie in the model's own hidden space. */
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"

typedef struct reading {
    float *out; /* [S, C] */
    int32_t width;
} reading;

/* The mean over the tokens of each sequence. */
static op_status read_means(void *ctx, int32_t layer, const op_batch *b, float *resid)
{
    (void)layer;
    reading *r = ctx;
    for (int32_t q = 0; q < b->n_seqs; q++) {
        const op_seq *seq = &b->seqs[q];
        float *mean = r->out + (size_t)q * (size_t)r->width;
        for (int32_t t = 0; t < seq->length; t++)
            for (int32_t c = 0; c < r->width; c++)
                mean[c] += resid[(size_t)(seq->start + t) * (size_t)r->width + (size_t)c] / (float)seq->length;
    }
    return OP_OK;
}

/* Prompts first .. *next-1 in one batch of about a thousand tokens. */
static op_status read_some(const op_subject *subject, op_pass *pass, op_cue *const *cues, size_t n, size_t first, size_t *next, op_error *e)
{
    int32_t tokens = 0, count = 0;
    for (*next = first; *next < n && (*next == first || tokens + cues[*next]->n_prompt <= 1024); (*next)++)
        tokens += cues[*next]->n_prompt;
    int32_t *ids = op_alloc_array((size_t)tokens, sizeof *ids);
    op_seq *seqs = op_alloc_array(*next - first, sizeof *seqs);
    op_status status = ids && seqs ? OP_OK : method_no_memory(e);
    tokens = 0;
    for (size_t i = first; !status && i < *next; i++) {
        memcpy(ids + tokens, cues[i]->prompt, (size_t)cues[i]->n_prompt * sizeof *ids);
        seqs[count++] = (op_seq){.start = tokens, .length = cues[i]->n_prompt, .parent = -1, .adapter = subject->adapter};
        tokens += cues[i]->n_prompt;
    }
    if (!status) {
        const op_batch batch = {.n_tokens = tokens, .n_seqs = count, .ids = ids, .seqs = seqs};
        status = op_model_forward(subject->model, pass, &batch, &(op_how){0}, e);
    }
    op_free(ids);
    op_free(seqs);
    return status;
}

op_status method_hidden(op_session *s, op_cue *const *cues, size_t n, int32_t layer, float *out, op_error *e)
{
    const op_subject *subject = op_session_subject(s);
    const op_model_config *c = op_model_get_config(subject->model);
    if (layer < 0 || layer > c->layers)
        return op_error_set(e, OP_ERR_ARG, "hidden states of layer %d, expected 0..%d", layer, c->layers);
    reading r = {.out = out, .width = c->width};
    const op_tap tap = {.layer = layer, .ctx = &r, .forward = read_means};
    size_t n_before;
    const op_tap *set = op_model_taps(subject->model, &n_before);
    op_tap *before = op_alloc_array(n_before + 1, sizeof *before);
    op_pass *pass = NULL;
    memset(out, 0, n * (size_t)c->width * sizeof *out);
    op_status status = before ? op_pass_new(&pass, subject->model, e) : method_no_memory(e);
    if (!status) {
        if (n_before)
            memcpy(before, set, n_before * sizeof *before);
        status = op_model_set_taps(subject->model, &tap, 1);
        for (size_t i = 0, next; !status && i < n; i = next) {
            status = read_some(subject, pass, cues, n, i, &next, e);
            r.out += (next - i) * (size_t)c->width;
        }
        op_status back = op_model_set_taps(subject->model, before, n_before);
        status = status ? status : back;
    }
    op_pass_free(pass);
    op_free(before);
    return status;
}
