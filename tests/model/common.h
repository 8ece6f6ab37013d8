/* What the tests of the model share: a fixture (a tiny model and what PyTorch computed with it), and comparisons. */
#ifndef OP_TESTS_MODEL_COMMON_H
#define OP_TESTS_MODEL_COMMON_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <operant/generate.h>
#include <operant/model.h>

static const char *const families[] = {"llama", "llama3", "mistral", "qwen2", "qwen3", "gpt2"};
enum { N_FAMILIES = 6 };

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        op_error e_ = {0};                                                                                             \
        op_error *e = &e_;                                                                                             \
        if ((call) != OP_OK)                                                                                           \
            fail_msg("%s: %s", #call, e_.message);                                                                     \
    } while (0)

typedef struct fixture {
    op_model *model;
    op_tensors *expected;
    int32_t T, V, n_seqs;
    int32_t *ids;
    float *weight;
    op_seq *seqs;
    op_batch batch;
} fixture;

static inline float *read_floats(const op_tensors *t, const char *name, int64_t *n)
{
    const op_tensor *x = op_tensors_find(t, name);
    if (!x)
        return NULL;
    float *out = malloc((size_t)x->count * sizeof *out);
    CHECK(op_tensor_read_f32(x, 0, x->count, out, e));
    if (n)
        *n = x->count;
    return out;
}

static inline op_model *open_fixture_model(const char *family, op_model_options o)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", FIXTURES, family);
    op_model *m;
    CHECK(op_model_open(&m, path, &o, e));
    return m;
}

static inline fixture open_fixture(const char *family, op_model_options o)
{
    fixture f = {.model = open_fixture_model(family, o)};
    char path[512];
    snprintf(path, sizeof path, "%s/%s/expected.safetensors", FIXTURES, family);
    CHECK(op_tensors_open(&f.expected, path, e));
    const op_tensor *ids = op_tensors_find(f.expected, "ids"), *lengths = op_tensors_find(f.expected, "lengths");
    f.T = (int32_t)ids->count;
    f.V = op_model_get_config(f.model)->vocab;
    f.n_seqs = (int32_t)lengths->count;
    f.ids = malloc((size_t)f.T * sizeof *f.ids);
    memcpy(f.ids, ids->data, (size_t)f.T * sizeof *f.ids);
    f.weight = read_floats(f.expected, "weight", NULL);
    f.seqs = calloc((size_t)f.n_seqs, sizeof *f.seqs);
    int32_t at = 0, n[8];
    memcpy(n, lengths->data, (size_t)f.n_seqs * sizeof *n);
    int32_t adapter = o.trainable == OP_TRAIN_ADAPTER ? 0 : -1;
    for (int32_t s = 0; s < f.n_seqs; at += n[s++])
        f.seqs[s] = (op_seq){.start = at, .length = n[s], .parent = -1, .adapter = adapter};
    f.batch = (op_batch){f.T, f.n_seqs, f.ids, f.seqs};
    return f;
}

static inline void close_fixture(fixture *f)
{
    op_model_free(f->model);
    op_tensors_close(f->expected);
    free(f->ids);
    free(f->weight);
    free(f->seqs);
}

/* max|a-b| / max|b| */
static inline double relative_error(const float *a, const float *b, size_t n)
{
    double d = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        double x = fabs((double)a[i] - b[i]);
        d = x > d || isnan(x) ? x : d;
        top = fabs((double)b[i]) > top ? fabs((double)b[i]) : top;
    }
    return top > 0 ? d / top : d;
}

/* The loss -sum weight log p of a batch, and its gradients into the model. */
static inline double loss_and_gradients(op_model *m, op_pass *p, const op_batch *b, const float *weight, bool slopes_first, float *logp)
{
    op_params params = op_model_params(m);
    memset(params.grads, 0, params.n * sizeof *params.grads);
    float *slope = malloc((size_t)b->n_tokens * sizeof *slope);
    for (int32_t t = 0; t < b->n_tokens; t++)
        slope[t] = -weight[t];
    CHECK(op_model_forward(m, p, b, &(op_how){.keep = true}, e));
    CHECK(op_model_logprobs(m, p, NULL, slopes_first ? slope : NULL, logp, e));
    CHECK(op_model_backward(m, p, slopes_first ? NULL : slope, e));
    double loss = 0;
    for (int32_t t = 0; t < b->n_tokens; t++)
        loss -= (double)weight[t] * logp[t];
    free(slope);
    return loss;
}

#endif
