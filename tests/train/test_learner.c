#include "tools.h"

#include "base/num.h"
#include "train/learner.h"

static op_learner_options usual(void)
{
    return (op_learner_options){.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .block_tokens = 4096};
}

static op_learner *learner_on(op_model *m, const op_learner_options *o)
{
    op_learner *l = NULL;
    assert_ok(op_learner_new(&l, m, o, e));
    return l;
}

/* Largest difference, relative to the largest value. */
static double difference(const float *a, const float *b, size_t n)
{
    double d = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        d = fmax(d, fabs((double)a[i] - (double)b[i]));
        top = fmax(top, fabs((double)b[i]));
    }
    assert_true(top > 0);
    return d / top;
}

static float *gradient_of(op_model *m, const op_learner_options *o, const items *set, double *loss, int32_t *parts)
{
    op_learner *l = learner_on(m, o);
    op_step_stats s;
    assert_ok(op_learner_gradient(l, set->x, set->n, &s, e));
    op_params p = op_model_params(m);
    float *copy = malloc(p.n * sizeof *copy);
    memcpy(copy, p.grads, p.n * sizeof *copy);
    *loss = s.loss;
    if (parts)
        *parts = s.micro_batches;
    op_learner_free(l);
    return copy;
}

/* The gradients of two ways to compute one step agree. Returns the micro-batches of the second. */
static int32_t assert_same_gradient(op_trainable what, const op_learner_options *a, const op_learner_options *b, bool negative)
{
    op_model *m = tiny_model(what, 0);
    items set = random_items(13, 3, negative, 11);
    double loss_a, loss_b;
    int32_t parts;
    if (what == OP_TRAIN_ADAPTER) { /* B = 0 hides the gradient of A */
        op_params p = op_model_params(m);
        for (size_t i = 0; i < p.n; i++)
            p.values[i] += (float)(0.05 * op_rng_normal(3, OP_STREAM_TEST, i));
        assert_ok(op_model_updated(m, e));
    }
    float *x = gradient_of(m, a, &set, &loss_a, NULL), *y = gradient_of(m, b, &set, &loss_b, &parts);
    assert_float_equal(loss_a, loss_b, 2e-6 * fabs(loss_a));
    assert_true(difference(x, y, op_model_params(m).n) < 2e-5);
    free(x);
    free(y);
    items_free(&set);
    op_model_free(m);
    return parts;
}

static void packed_sequences_learn_the_same_as_one_by_one(void **state)
{
    (void)state;
    op_learner_options packed = usual(), single = usual();
    single.block_tokens = 1; /* every sequence is a micro-batch of its own: gradients accumulate over 13 of them */
    assert_int_equal(assert_same_gradient(OP_TRAIN_ALL, &packed, &single, true), 13);
    single.block_tokens = 40;
    assert_true(assert_same_gradient(OP_TRAIN_ALL, &packed, &single, false) > 3);
    assert_same_gradient(OP_TRAIN_ADAPTER, &packed, &single, true);
}

static void shared_beginnings_change_nothing_but_the_number_of_tokens_computed(void **state)
{
    (void)state;
    op_learner_options shared = usual(), apart = usual();
    shared.share_min = 2;
    assert_same_gradient(OP_TRAIN_ALL, &shared, &apart, true);
    assert_same_gradient(OP_TRAIN_ADAPTER, &shared, &apart, true);

    op_model *m = tiny_model(OP_TRAIN_ALL, 0);
    items set = random_items(13, 3, false, 11);
    op_learner *l = learner_on(m, &shared);
    op_step_stats s;
    assert_ok(op_learner_gradient(l, set.x, set.n, &s, e));
    assert_true(s.computed < s.tokens);
    op_learner_free(l);
    items_free(&set);
    op_model_free(m);
}

static void an_objective_that_needs_log_p_first_gives_the_gradient_of_a_linear_one(void **state)
{
    (void)state;
    op_learner_options linear = usual(), general = usual();
    general.objective.linear = false;
    assert_int_equal(assert_same_gradient(OP_TRAIN_ALL, &linear, &general, true), 1);
    general.block_tokens = 50;
    assert_true(assert_same_gradient(OP_TRAIN_ALL, &linear, &general, true) > 1);
}

/* L = (1/2Z) sum_t (w_t log p_t)^2, which no linear objective is. */
static op_status squared(void *ctx, const op_batch *b, const op_signal *s, const float *logp, float *slope, double *loss, op_error *e)
{
    (void)ctx;
    (void)e;
    double sum = 0;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        double y = (double)s->weight[t] * (double)logp[t];
        slope[t] = (float)((double)s->weight[t] * y / s->normaliser);
        sum += y * y / 2;
    }
    *loss = sum / s->normaliser;
    return OP_OK;
}

static double loss_at(op_model *m, op_learner *l, const items *set, float *value, float to)
{
    float was = *value;
    op_step_stats s;
    *value = to;
    assert_ok(op_model_updated(m, e));
    assert_ok(op_learner_gradient(l, set->x, set->n, &s, e));
    *value = was;
    assert_ok(op_model_updated(m, e));
    return s.loss;
}

/* Central differences at the parameters with the largest gradients; tolerance for float forward passes. */
static void assert_gradient_is_the_derivative(const op_learner_options *o, bool negative)
{
    op_model *m = tiny_model(OP_TRAIN_ALL, 0);
    items set = random_items(6, 2, negative, 4);
    op_params p = op_model_params(m);
    double loss;
    float *g = gradient_of(m, o, &set, &loss, NULL);
    op_learner *l = learner_on(m, o);
    for (size_t k = 0; k < p.n_table; k++) {
        size_t best = p.table[k].offset;
        for (size_t i = best; i < p.table[k].offset + p.table[k].n; i++)
            best = fabsf(g[i]) > fabsf(g[best]) ? i : best;
        const float h = 1e-2f;
        float was = p.values[best], up = was + h, down = was - h;
        double slope = (loss_at(m, l, &set, &p.values[best], up) - loss_at(m, l, &set, &p.values[best], down)) / ((double)up - (double)down);
        assert_float_equal(slope, (double)g[best], 0.02 * fabs((double)g[best]) + 2e-4);
    }
    op_learner_free(l);
    free(g);
    items_free(&set);
    op_model_free(m);
}

static void the_gradient_is_the_derivative_of_the_loss(void **state)
{
    (void)state;
    op_learner_options o = usual();
    assert_gradient_is_the_derivative(&o, true);
    o.objective = (op_objective){.name = "squared", .eval = squared};
    o.block_tokens = 40;
    o.share_min = 2;
    assert_gradient_is_the_derivative(&o, true);
}

static void a_loss_is_a_mean_per_trained_weight(void **state)
{
    (void)state;
    op_model *m = tiny_model(OP_TRAIN_ALL, 0);
    items set = random_items(5, 2, false, 8);
    op_learner_options o = usual();
    op_learner *l = learner_on(m, &o);
    op_step_stats s;
    op_evaluation x;
    assert_ok(op_learner_gradient(l, set.x, set.n, &s, e));
    assert_ok(op_learner_evaluate(l, set.x, set.n, &x, e));
    assert_float_equal(s.loss, x.loss, 1e-6);
    assert_float_equal(x.perplexity, exp(x.loss), 1e-9);
    assert_int_equal(x.tokens, s.trained);
    assert_true(fabs(x.loss - log(VOCAB)) < 0.5); /* a random model knows nothing */
    op_learner_free(l);
    items_free(&set);
    op_model_free(m);
}

static double logp_of_last(op_learner *l, const op_item *x)
{
    float *weights = calloc((size_t)x->n, sizeof *weights);
    weights[x->n - 1] = 1;
    op_item only = {.ids = x->ids, .weights = weights, .n = x->n};
    op_evaluation v;
    assert_ok(op_learner_evaluate(l, &only, 1, &v, e));
    free(weights);
    return -v.loss;
}

static void a_negative_weight_makes_its_token_less_likely_and_a_positive_one_more(void **state)
{
    (void)state;
    const int32_t ids[] = {7, 9, 11, 13};
    for (int sign = -1; sign <= 1; sign += 2) {
        const float weights[] = {0, 0, 0, (float)sign};
        const op_item x = {.ids = ids, .weights = weights, .n = 4};
        op_model *m = tiny_model(OP_TRAIN_ALL, 0);
        op_learner_options o = usual();
        op_learner *l = learner_on(m, &o);
        double before = logp_of_last(l, &x);
        for (int i = 0; i < 3; i++) {
            op_step_stats s;
            assert_ok(op_learner_step(l, &x, 1, 1e-3, &s, e));
        }
        double after = logp_of_last(l, &x);
        assert_true(sign * (after - before) > 0.05);
        assert_int_equal(op_learner_steps(l), 3);
        op_learner_free(l);
        op_model_free(m);
    }
}

/* Kingma, Ba: 1412.6980, algorithm 1, with decoupled decay, in double over the gradients that the learner saw. */
static void adamw_over_fifty_steps_is_that_of_double_precision(void **state)
{
    (void)state;
    op_model *m = tiny_model(OP_TRAIN_ALL, 0);
    items set = random_items(8, 2, false, 21);
    op_learner_options o = usual();
    o.weight_decay = 0.1;
    o.max_grad_norm = 1.3;
    op_learner *l = learner_on(m, &o);
    op_params p = op_model_params(m);
    double *x = malloc(p.n * sizeof *x), *mean = calloc(p.n, sizeof *mean), *square = calloc(p.n, sizeof *square);
    for (size_t i = 0; i < p.n; i++)
        x[i] = p.values[i];
    int clipped = 0;
    for (int step = 1; step <= 50; step++) {
        op_step_stats s;
        const double lr = 1e-3;
        assert_ok(op_learner_gradient(l, set.x, set.n, &s, e));
        double norm = 0;
        for (size_t i = 0; i < p.n; i++)
            norm += (double)p.grads[i] * (double)p.grads[i];
        norm = sqrt(norm);
        double scale = norm > 1.3 ? 1.3 / norm : 1;
        clipped += norm > 1.3;
        for (size_t k = 0; k < p.n_table; k++)
            for (size_t i = p.table[k].offset; i < p.table[k].offset + p.table[k].n; i++) {
                double g = (double)p.grads[i] * scale;
                mean[i] = 0.9 * mean[i] + 0.1 * g;
                square[i] = 0.999 * square[i] + 0.001 * g * g;
                double update = mean[i] / (1 - pow(0.9, step)) / (sqrt(square[i] / (1 - pow(0.999, step))) + 1e-8);
                x[i] -= lr * (update + (p.table[k].decay ? 0.1 * x[i] : 0));
            }
        assert_ok(op_learner_update(l, lr, &s, e));
        assert_float_equal(s.grad_norm, norm, 1e-5 * norm);
    }
    assert_true(clipped > 0 && clipped < 50);
    double moved = 0;
    for (size_t i = 0; i < p.n; i++) {
        moved = fmax(moved, fabs(x[i]));
        if (fabs(x[i] - (double)p.values[i]) > 2e-5)
            fail_msg("parameter %zu is %.9g, expected %.9g", i, (double)p.values[i], x[i]);
    }
    assert_true(moved > 0);
    free(x);
    free(mean);
    free(square);
    op_learner_free(l);
    items_free(&set);
    op_model_free(m);
}

/* The held-out loss of forty steps. */
static double learned(op_model *m, op_optim optim)
{
    items set = random_items(40, 4, false, 21), held = random_items(8, 4, false, 22);
    op_learner_options o = usual();
    o.optim = optim;
    o.block_tokens = 100; /* several micro-batches, which add up */
    op_learner *l = learner_on(m, &o);
    for (int step = 0; step < 40; step++) {
        op_step_stats s;
        assert_ok(op_learner_step(l, set.x, set.n, 2e-3, &s, e));
        assert_true(s.micro_batches > 3);
    }
    op_evaluation x;
    assert_ok(op_learner_evaluate(l, set.x, set.n, &x, e));
    op_learner_free(l);
    items_free(&set);
    items_free(&held);
    op_model_free(m);
    return x.loss;
}

static void moments_of_8_bits_and_gradients_in_bf16_learn_nearly_as_much(void **state)
{
    (void)state;
    double whole = learned(low_model(OP_F32), OP_OPTIM_ADAMW), moments = learned(low_model(OP_F32), OP_OPTIM_ADAMW_8BIT);
    double grads = learned(low_model(OP_BF16), OP_OPTIM_ADAMW), both = learned(low_model(OP_BF16), OP_OPTIM_ADAMW_8BIT);
    print_message("[          ] loss %.4f; 8-bit moments %.4f, bf16 gradients %.4f, both %.4f\n", whole, moments, grads, both);
    assert_true(whole < 3);
    assert_true(fabs(moments - whole) < 0.05 * whole && fabs(grads - whole) < 0.05 * whole && fabs(both - whole) < 0.05 * whole);
}

static void gradients_in_bf16_are_those_of_float_rounded(void **state)
{
    (void)state;
    op_model *m[2] = {low_model(OP_F32), low_model(OP_BF16)};
    items set = random_items(13, 3, true, 11);
    op_learner_options o = usual();
    o.block_tokens = 60;
    double norm[2];
    for (int i = 0; i < 2; i++) {
        op_learner *l = learner_on(m[i], &o);
        op_step_stats s;
        assert_ok(op_learner_gradient(l, set.x, set.n, &s, e));
        assert_ok(op_learner_gradient(l, set.x, set.n, &s, e)); /* what was there is forgotten */
        op_learner_free(l);
        op_params p = op_model_params(m[i]), whole = op_model_params(m[0]);
        assert_true(i ? !p.grads : p.grads != NULL);
        norm[i] = 0;
        for (size_t k = 0; k < p.n_table; k++) {
            const op_param *x = &p.table[k];
            const float *want = whole.grads + x->offset;
            double off = 0, top = 0;
            for (size_t j = 0; j < x->n; j++) {
                double g = x->grad_act ? op_bf16_to_f32(((const op_bf16 *)x->grad)[j]) : ((const float *)x->grad)[j];
                norm[i] += g * g;
                off = fmax(off, fabs(g - (double)want[j]));
                top = fmax(top, fabs((double)want[j]));
            }
            if (off > 0.01 * top)
                fail_msg("%s: off by %g of %g", x->name, off, top);
        }
    }
    assert_float_equal(norm[1], norm[0], 0.01 * norm[0]);
    items_free(&set);
    op_model_free(m[0]);
    op_model_free(m[1]);
}

static void gradients_in_bf16_need_products_in_bf16(void **state)
{
    (void)state;
    op_model_config c = tiny_config();
    op_model_options o = {.act = OP_F32, .trainable = OP_TRAIN_ALL, .grad_dtype = OP_BF16};
    op_model *m = NULL;
    op_error e;
    assert_int_equal(op_model_new(&m, &c, &o, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "gradients in bf16 need products in bf16, found dtype F32");
    assert_null(m);
}

static void a_step_without_a_weight_is_an_error(void **state)
{
    (void)state;
    const int32_t ids[] = {7, 9};
    const float weights[] = {1, 0}; /* nothing precedes the first token */
    const op_item x = {.ids = ids, .weights = weights, .n = 2};
    op_model *m = tiny_model(OP_TRAIN_ALL, 0);
    op_learner_options o = usual();
    op_learner *l = learner_on(m, &o);
    op_step_stats s;
    op_error e;
    assert_int_equal(op_learner_step(l, &x, 1, 1e-3, &s, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "none of the 2 tokens of this step has a weight");
    op_learner_free(l);
    op_model_free(m);
}

static void a_frozen_model_has_no_learner(void **state)
{
    (void)state;
    op_model *m = tiny_model(OP_TRAIN_NONE, 0);
    op_learner_options o = usual();
    op_learner *l = NULL;
    op_error e;
    assert_int_equal(op_learner_new(&l, m, &o, &e), OP_ERR_ARG);
    assert_null(l);
    op_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_sequences_learn_the_same_as_one_by_one),
        cmocka_unit_test(shared_beginnings_change_nothing_but_the_number_of_tokens_computed),
        cmocka_unit_test(an_objective_that_needs_log_p_first_gives_the_gradient_of_a_linear_one),
        cmocka_unit_test(the_gradient_is_the_derivative_of_the_loss),
        cmocka_unit_test(a_loss_is_a_mean_per_trained_weight),
        cmocka_unit_test(a_negative_weight_makes_its_token_less_likely_and_a_positive_one_more),
        cmocka_unit_test(adamw_over_fifty_steps_is_that_of_double_precision),
        cmocka_unit_test(moments_of_8_bits_and_gradients_in_bf16_learn_nearly_as_much),
        cmocka_unit_test(gradients_in_bf16_are_those_of_float_rounded),
        cmocka_unit_test(gradients_in_bf16_need_products_in_bf16),
        cmocka_unit_test(a_step_without_a_weight_is_an_error),
        cmocka_unit_test(a_frozen_model_has_no_learner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
