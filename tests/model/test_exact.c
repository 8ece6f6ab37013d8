/* Against PyTorch: logits, log-probabilities and every gradient of every family, on packed sequences. */
#include "common.h"

static const char *const backends[] = {"ref", "cpu"};

/* |a - b| / |b|, the sensible measure where single elements are rounded to 8 bits. */
static double norm_error(const float *a, const float *b, size_t n)
{
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(d / norm);
}

static void compare(const char *family, op_model_options o, double tolerance, double (*distance)(const float *, const float *, size_t))
{
    fixture f = open_fixture(family, o);
    op_pass *p;
    CHECK(op_pass_new(&p, f.model, e));
    float *logp = malloc((size_t)f.T * sizeof *logp), *logits = malloc((size_t)f.T * f.V * sizeof *logits);
    loss_and_gradients(f.model, p, &f.batch, f.weight, false, logp);
    float *want = read_floats(f.expected, "logp", NULL);
    double d = distance(logp, want, (size_t)f.T);
    if (!(d <= tolerance))
        fail_msg("%s %s: log p differs by %g", family, o.backend, d);
    free(want);
    int32_t *rows = malloc((size_t)f.T * sizeof *rows);
    for (int32_t t = 0; t < f.T; t++)
        rows[t] = t;
    CHECK(op_model_logits(f.model, p, rows, f.T, logits, e));
    want = read_floats(f.expected, "logits", NULL);
    d = distance(logits, want, (size_t)f.T * f.V);
    if (!(d <= tolerance))
        fail_msg("%s %s: logits differ by %g", family, o.backend, d);
    free(want);
    op_params params = op_model_params(f.model);
    for (size_t i = 0; i < params.n_table; i++) {
        const op_param *x = &params.table[i];
        char name[160];
        snprintf(name, sizeof name, "grad:%s%s", !strcmp(family, "gpt2") ? "transformer." : "", x->name);
        int64_t n;
        want = read_floats(f.expected, name, &n);
        assert_non_null(want);
        assert_int_equal(n, x->n);
        float *got = malloc(x->n * sizeof *got);
        const float *g = params.grads + x->offset;
        bool transposed = !strcmp(family, "gpt2") && x->cols > 1 && strncmp(x->name, "wte", 3) && strncmp(x->name, "wpe", 3);
        for (int64_t r = 0; r < x->rows; r++)
            for (int64_t c = 0; c < x->cols; c++)
                got[transposed ? c * x->rows + r : r * x->cols + c] = g[r * x->cols + c];
        d = distance(got, want, x->n);
        if (!(d <= tolerance))
            fail_msg("%s %s: gradient of %s differs by %g", family, o.backend, x->name, d);
        free(got);
        free(want);
    }
    free(rows);
    free(logp);
    free(logits);
    op_pass_free(p);
    close_fixture(&f);
}

static void logits_and_gradients_equal_those_of_pytorch_in_f32(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < N_FAMILIES; i++)
            compare(families[i], (op_model_options){.backend = backends[b], .act = OP_F32, .trainable = OP_TRAIN_ALL}, 1e-4, relative_error);
}

/* bf16 rounds to 8 bits (2^-9 = 0.2%) some dozen times here, and the fixtures have large weights (deviation 0.4) that carry it on. */
static void bf16_stays_within_its_rounding_of_pytorch(void **state)
{
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++)
        compare(families[i], (op_model_options){.backend = "cpu", .act = OP_BF16, .trainable = OP_TRAIN_ALL}, 0.1, norm_error);
}

static void gradients_are_the_same_with_slopes_known_first_and_with_recomputation(void **state)
{
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        float *reference = NULL;
        size_t n = 0;
        for (int variant = 0; variant < 3; variant++) {
            fixture f = open_fixture(families[i], (op_model_options){.backend = "cpu", .act = OP_F32, .trainable = OP_TRAIN_ALL,
                                                                     .recompute = variant == 2});
            op_pass *p;
            CHECK(op_pass_new(&p, f.model, e));
            float *logp = malloc((size_t)f.T * sizeof *logp);
            loss_and_gradients(f.model, p, &f.batch, f.weight, variant == 1, logp);
            op_params params = op_model_params(f.model);
            if (!reference) {
                n = params.n;
                reference = malloc(n * sizeof *reference);
                memcpy(reference, params.grads, n * sizeof *reference);
            } else {
                double d = relative_error(params.grads, reference, n);
                if (!(d <= (variant == 2 ? 0 : 1e-6)))
                    fail_msg("%s variant %d differs by %g", families[i], variant, d);
            }
            free(logp);
            op_pass_free(p);
            close_fixture(&f);
        }
        free(reference);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_and_gradients_equal_those_of_pytorch_in_f32),
        cmocka_unit_test(bf16_stays_within_its_rounding_of_pytorch),
        cmocka_unit_test(gradients_are_the_same_with_slopes_known_first_and_with_recomputation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
