/* dump MODEL IN.safetensors OUT.safetensors f32|bf16: what tests/model/oracle.py compares with PyTorch on a real model.
 * IN holds ids, lengths, weight as a fixture does; OUT gets logits, logp, attention (what each token pays to those of its sequence in the
 * last layer, [T, longest]) and the gradients under "grad:NAME". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <operant/model.h>

#include "io/safetensors.h"

static void check(op_status s, const op_error *e)
{
    if (s) {
        fprintf(stderr, "%s\n", e->message);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    op_error e;
    op_model *m;
    op_tensors *in;
    op_pass *p;
    check(op_tensors_open(&in, argv[2], &e), &e);
    op_model_options o = {.act = strcmp(argv[4], "bf16") ? OP_F32 : OP_BF16, .trainable = OP_TRAIN_ALL};
    check(op_model_open(&m, argv[1], &o, &e), &e);
    check(op_pass_new(&p, m, &e), &e);
    const op_tensor *ids = op_tensors_find(in, "ids"), *lengths = op_tensors_find(in, "lengths"), *w = op_tensors_find(in, "weight");
    int32_t T = (int32_t)ids->count, S = (int32_t)lengths->count, V = op_model_get_config(m)->vocab;
    float *slope = malloc((size_t)T * sizeof *slope), *logp = malloc((size_t)T * sizeof *logp), *logits = malloc((size_t)T * V * sizeof *logits);
    op_seq *seqs = calloc((size_t)S, sizeof *seqs);
    int32_t *rows = malloc((size_t)T * sizeof *rows), at = 0, longest = 0;
    for (int32_t s = 0; s < S; s++) {
        int32_t n;
        memcpy(&n, (const char *)lengths->data + 4 * s, 4);
        seqs[s] = (op_seq){.start = at, .length = n, .parent = -1, .adapter = -1};
        at += n;
        longest = n > longest ? n : longest;
    }
    memcpy(slope, w->data, (size_t)T * sizeof *slope);
    for (int32_t t = 0; t < T; t++) {
        slope[t] = -slope[t];
        rows[t] = t;
    }
    op_batch b = {T, S, ids->data, seqs};
    check(op_model_forward(m, p, &b, &(op_how){.keep = true}, &e), &e);
    check(op_model_logprobs(m, p, NULL, NULL, logp, &e), &e);
    check(op_model_logits(m, p, rows, T, logits, &e), &e);
    float *attention = calloc((size_t)T * (size_t)longest, sizeof *attention);
    for (int32_t t = 0; t < T; t++)
        check(op_model_attention(m, p, t, attention + (size_t)t * (size_t)longest, &e), &e);
    check(op_model_backward(m, p, slope, &e), &e);
    op_params params = op_model_params(m);
    op_tensor_out *out = calloc(params.n_table + 3, sizeof *out);
    char (*names)[160] = calloc(params.n_table, sizeof *names);
    for (size_t i = 0; i < params.n_table; i++) {
        const op_param *x = &params.table[i];
        snprintf(names[i], sizeof names[i], "grad:%s", x->name);
        out[i] = (op_tensor_out){.name = names[i], .dtype = OP_F32, .rank = x->cols > 1 ? 2 : 1, .shape = {x->rows, x->cols},
                                 .data = params.grads + x->offset};
    }
    out[params.n_table] = (op_tensor_out){.name = "logp", .dtype = OP_F32, .rank = 1, .shape = {T}, .data = logp};
    out[params.n_table + 1] = (op_tensor_out){.name = "logits", .dtype = OP_F32, .rank = 2, .shape = {T, V}, .data = logits};
    out[params.n_table + 2] = (op_tensor_out){.name = "attention", .dtype = OP_F32, .rank = 2, .shape = {T, longest}, .data = attention};
    check(op_safetensors_write(argv[3], out, params.n_table + 3, NULL, 0, &e), &e);
    op_pass_free(p);
    op_model_free(m);
    op_tensors_close(in);
    free(out);
    free(names);
    free(attention);
    free(slope);
    free(logp);
    free(logits);
    free(seqs);
    free(rows);
    return 0;
}
