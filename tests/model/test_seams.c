/* The three seams and the adapters: forests, taps, the logits hook, LoRA, each against finite differences or an equal computation. */
#include "common.h"

#include "base/mem.h"
#include "base/rng.h"

static const op_model_options all_f32 = {.backend = "ref", .act = OP_F32, .trainable = OP_TRAIN_ALL};

static double loss_of(op_model *m, op_pass *p, const op_batch *b, const float *weight)
{
    float *logp = malloc((size_t)b->n_tokens * sizeof *logp);
    CHECK(op_model_forward(m, p, b, &(op_how){.keep = false}, e));
    CHECK(op_model_logprobs(m, p, NULL, NULL, logp, e));
    double loss = 0;
    for (int32_t t = 0; t < b->n_tokens; t++)
        loss -= (double)weight[t] * logp[t];
    free(logp);
    return loss;
}

/* ---- forests ---- */

/* One tree: root of 9 tokens; children branch after 4 and 9 tokens; a grandchild branches inside the root's part and one inside the
 * child's. The same paths as separate sequences must give the same log p and the same gradients. */
static void a_forest_gives_what_its_unfolded_paths_give(void **state)
{
    (void)state;
    static const op_seq tree[] = {{0, 9, -1, 0, -1}, {9, 5, 0, 4, -1}, {14, 6, 0, 9, -1}, {20, 3, 1, 2, -1}, {23, 4, 1, 7, -1}, {27, 2, -1, 0, -1}};
    enum { S = 6, T = 29 };
    int32_t ids[T];
    float weight[T];
    for (int t = 0; t < T; t++) {
        ids[t] = (int32_t)op_rng_below(5, OP_STREAM_TEST, (uint64_t)t, 61);
        weight[t] = (float)op_rng_normal(6, OP_STREAM_TEST, (uint64_t)t);
    }
    weight[0] = weight[27] = 0;
    /* unfold: path of each sequence; a token's weight counts in its own sequence alone */
    int32_t flat[256], owner[256], n = 0;
    float flat_weight[256];
    op_seq flat_seqs[S];
    for (int s = 0; s < S; s++) {
        int32_t path[64], from[64], length = 0, chain[8], depth = 0;
        for (int k = s; k >= 0; k = tree[k].parent)
            chain[depth++] = k;
        while (depth-- > 0) {
            const op_seq *q = &tree[chain[depth]];
            length = q->branch;
            for (int32_t i = 0; i < q->length; i++) {
                path[length] = ids[q->start + i];
                from[length++] = q->start + i;
            }
        }
        flat_seqs[s] = (op_seq){n, length, -1, 0, -1};
        for (int32_t i = 0; i < length; i++) {
            bool own = from[i] >= tree[s].start && from[i] < tree[s].start + tree[s].length;
            flat[n] = path[i];
            owner[n] = own ? from[i] : -1;
            flat_weight[n++] = own ? weight[from[i]] : 0;
        }
    }
    op_batch folded = {T, S, ids, tree}, unfolded = {n, S, flat, flat_seqs};
    for (int f = 0; f < N_FAMILIES; f++) {
        op_model *m = open_fixture_model(families[f], all_f32);
        op_pass *p;
        CHECK(op_pass_new(&p, m, e));
        float logp[T], flat_logp[256];
        double a = loss_and_gradients(m, p, &unfolded, flat_weight, false, flat_logp);
        op_params params = op_model_params(m);
        float *grads = malloc(params.n * sizeof *grads);
        memcpy(grads, params.grads, params.n * sizeof *grads);
        double b = loss_and_gradients(m, p, &folded, weight, true, logp);
        assert_true(fabs(a - b) < 1e-4 * fabs(a));
        for (int32_t i = 0; i < n; i++)
            if (owner[i] >= 0)
                assert_true(fabs((double)logp[owner[i]] - flat_logp[i]) < 1e-4);
        double d = relative_error(params.grads, grads, params.n);
        if (!(d < 1e-5))
            fail_msg("%s: gradients differ by %g", families[f], d);
        free(grads);
        op_pass_free(p);
        op_model_free(m);
    }
}

static void a_malformed_batch_is_refused_with_its_reason(void **state)
{
    (void)state;
    op_model *m = open_fixture_model("llama", all_f32);
    op_pass *p;
    CHECK(op_pass_new(&p, m, e));
    int32_t ids[80] = {1, 2, 3, 4, 5, 6};
    const struct {
        int32_t T, S;
        op_seq seqs[3];
        const char *says;
    } bad[] = {
        {0, 0, {{0}}, "is empty"},
        {4, 1, {{0, 3, -1, 0, -1}}, "hold 3 tokens"},
        {4, 2, {{0, 2, -1, 0, -1}, {3, 1, -1, 0, -1}}, "expected to start at 2"},
        {4, 2, {{0, 2, -1, 0, -1}, {2, 2, 1, 1, -1}}, "parent 1"},
        {4, 2, {{0, 2, -1, 0, -1}, {2, 2, 0, 3, -1}}, "past the end"},
        {4, 1, {{0, 4, -1, 0, 0}}, "adapter 0"},
        {6, 3, {{0, 2, -1, 0, -1}, {2, 2, -1, 0, -1}, {4, 2, 0, 1, -1}}, "does not follow the tree"},
        {65, 1, {{0, 65, -1, 0, -1}}, "the model takes 64"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        op_error e = {0};
        op_batch b = {bad[i].T, bad[i].S, ids, bad[i].seqs};
        assert_int_equal(op_model_forward(m, p, &b, &(op_how){0}, &e), OP_ERR_ARG);
        if (!strstr(e.message, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", e.message, bad[i].says);
    }
    op_error e = {0};
    ids[2] = 61;
    op_batch b = {4, 1, ids, &(op_seq){0, 4, -1, 0, -1}};
    assert_int_equal(op_model_forward(m, p, &b, &(op_how){0}, &e), OP_ERR_ARG);
    assert_non_null(strstr(e.message, "expected 0..60"));
    op_pass_free(p);
    op_model_free(m);
}

/* ---- taps ---- */

typedef struct adder {
    float add[16];
    double gradient[16];
    int calls;
} adder;

static op_status add_forward(void *ctx, int32_t layer, const op_batch *b, float *resid)
{
    adder *a = ctx;
    (void)layer;
    a->calls++;
    for (int32_t t = 0; t < b->n_tokens; t++)
        for (int c = 0; c < 16; c++)
            resid[t * 16 + c] += a->add[c];
    return OP_OK;
}

static op_status add_backward(void *ctx, int32_t layer, const op_batch *b, float *d_resid)
{
    adder *a = ctx;
    (void)layer;
    for (int32_t t = 0; t < b->n_tokens; t++)
        for (int c = 0; c < 16; c++)
            a->gradient[c] += d_resid[t * 16 + c];
    return OP_OK;
}

/* A tap that reads: adds 0.01/2 |resid|^2 to the loss, which the model's weights must feel. */
typedef struct reader {
    float copy[64 * 16];
    double loss;
} reader;

static op_status square_forward(void *ctx, int32_t layer, const op_batch *b, float *resid)
{
    reader *r = ctx;
    (void)layer;
    r->loss = 0;
    for (int32_t i = 0; i < b->n_tokens * 16; i++) {
        r->copy[i] = resid[i];
        r->loss += 0.005 * (double)resid[i] * resid[i];
    }
    return OP_OK;
}

static op_status square_backward(void *ctx, int32_t layer, const op_batch *b, float *d_resid)
{
    reader *r = ctx;
    (void)layer;
    for (int32_t i = 0; i < b->n_tokens * 16; i++)
        d_resid[i] += 0.01f * r->copy[i];
    return OP_OK;
}

static void a_tap_that_adds_gets_the_gradient_of_what_it_added(void **state)
{
    (void)state;
    for (int32_t layer = 0; layer <= 2; layer++) {
        fixture f = open_fixture("llama", all_f32);
        op_pass *p;
        CHECK(op_pass_new(&p, f.model, e));
        adder a = {.add = {0.3f, -0.2f}};
        op_tap tap = {layer, &a, add_forward, add_backward};
        assert_int_equal(op_model_set_taps(f.model, &tap, 1), OP_OK);
        float *logp = malloc((size_t)f.T * sizeof *logp);
        loss_and_gradients(f.model, p, &f.batch, f.weight, false, logp);
        for (int c = 0; c < 3; c++) {
            const float h = 2e-3f, kept = a.add[c];
            a.add[c] = kept + h;
            double up = loss_of(f.model, p, &f.batch, f.weight);
            a.add[c] = kept - h;
            double down = loss_of(f.model, p, &f.batch, f.weight);
            a.add[c] = kept;
            double slope = (up - down) / (2 * (double)h);
            if (!(fabs(slope - a.gradient[c]) < 0.02 * (1 + fabs(slope))))
                fail_msg("layer %d: gradient %g, finite difference %g", layer, a.gradient[c], slope);
        }
        assert_int_equal(a.calls, 7);
        free(logp);
        op_pass_free(p);
        close_fixture(&f);
    }
}

static void a_tap_that_reads_sends_its_gradient_to_the_weights_below(void **state)
{
    (void)state;
    fixture f = open_fixture("qwen2", all_f32);
    op_pass *p;
    CHECK(op_pass_new(&p, f.model, e));
    reader r;
    op_tap tap = {1, &r, square_forward, square_backward};
    assert_int_equal(op_model_set_taps(f.model, &tap, 1), OP_OK);
    float *zero = calloc((size_t)f.T, sizeof *zero), *logp = malloc((size_t)f.T * sizeof *logp);
    loss_and_gradients(f.model, p, &f.batch, zero, false, logp);
    op_params params = op_model_params(f.model);
    int below = 0;
    for (size_t i = 0; i < params.n_table; i++) {
        const op_param *x = &params.table[i];
        bool above = strstr(x->name, "layers.1.") || strstr(x->name, "model.norm");
        size_t k = x->offset + x->n / 2;
        if (above) {
            assert_true(params.grads[k] == 0);
            continue;
        }
        const float h = 1e-3f, kept = params.values[k];
        params.values[k] = kept + h;
        CHECK(op_model_updated(f.model, e));
        loss_of(f.model, p, &f.batch, zero);
        double up = r.loss;
        params.values[k] = kept - h;
        CHECK(op_model_updated(f.model, e));
        loss_of(f.model, p, &f.batch, zero);
        double slope = (up - r.loss) / (2 * (double)h);
        params.values[k] = kept;
        if (!(fabs(slope - params.grads[k]) < 0.01 * (0.05 + fabs(slope))))
            fail_msg("%s: gradient %g, finite difference %g", x->name, (double)params.grads[k], slope);
        below++;
    }
    assert_true(below >= 10);
    free(zero);
    free(logp);
    op_pass_free(p);
    close_fixture(&f);
}

/* ---- the logits hook ---- */

static op_status entropy_like(void *ctx, int32_t n, const int32_t *tokens, const float *logits, float *d_logits)
{
    double *loss = ctx;
    (void)tokens;
    for (int32_t i = 0; i < n * 61; i++) {
        *loss += 0.005 * (double)logits[i] * logits[i];
        if (d_logits)
            d_logits[i] = 0.01f * logits[i];
    }
    return OP_OK;
}

static void the_logits_hook_sees_every_row_and_its_gradient_reaches_the_weights(void **state)
{
    (void)state;
    fixture f = open_fixture("llama3", all_f32);
    op_pass *p;
    CHECK(op_pass_new(&p, f.model, e));
    double loss = 0;
    op_model_set_logits_hook(f.model, entropy_like, &loss);
    float *tiny = malloc((size_t)f.T * sizeof *tiny), *logp = malloc((size_t)f.T * sizeof *logp);
    for (int32_t t = 0; t < f.T; t++)
        tiny[t] = 1e-12f; /* not 0: tokens of weight 0 are left out */
    loss_and_gradients(f.model, p, &f.batch, tiny, true, logp);
    op_params params = op_model_params(f.model);
    for (size_t i = 0; i < params.n_table; i += 3) {
        const op_param *x = &params.table[i];
        size_t k = x->offset + x->n / 3;
        const float h = 1e-3f, kept = params.values[k];
        double at[2];
        for (int side = 0; side < 2; side++) {
            params.values[k] = side ? kept - h : kept + h;
            CHECK(op_model_updated(f.model, e));
            loss = 0;
            loss_of(f.model, p, &f.batch, tiny);
            at[side] = loss;
        }
        params.values[k] = kept;
        double slope = (at[0] - at[1]) / (2 * (double)h);
        if (!(fabs(slope - params.grads[k]) < 0.02 * (0.1 + fabs(slope))))
            fail_msg("%s: gradient %g, finite difference %g", x->name, (double)params.grads[k], slope);
    }
    free(tiny);
    free(logp);
    op_pass_free(p);
    close_fixture(&f);
}

/* ---- adapters ---- */

static void randomise(op_params params, uint64_t seed)
{
    for (size_t i = 0; i < params.n; i++)
        params.values[i] = (float)(0.1 * op_rng_normal(seed, OP_STREAM_TEST, i));
}

static void adapter_gradients_equal_finite_differences_with_dropout_too(void **state)
{
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        op_model_options o = {.backend = "ref", .act = OP_F32, .trainable = OP_TRAIN_ADAPTER,
                              .lora = {.rank = 3, .alpha = 4, .dropout = 0.25f, .targets = OP_LORA_ALL, .rslora = f % 2}};
        fixture x = open_fixture(families[f], o);
        op_params params = op_model_params(x.model);
        randomise(params, 3);
        CHECK(op_model_updated(x.model, e));
        op_pass *p;
        CHECK(op_pass_new(&p, x.model, e));
        op_how how = {.keep = true, .train = true, .seed = 11, .step = 5};
        float *slope = malloc((size_t)x.T * sizeof *slope), *logp = malloc((size_t)x.T * sizeof *logp);
        for (int32_t t = 0; t < x.T; t++)
            slope[t] = -x.weight[t];
        CHECK(op_model_forward(x.model, p, &x.batch, &how, e));
        CHECK(op_model_logprobs(x.model, p, NULL, slope, logp, e));
        CHECK(op_model_backward(x.model, p, NULL, e));
        for (size_t i = 0; i < params.n_table; i++) {
            size_t k = params.table[i].offset + params.table[i].n / 2;
            const float h = 2e-3f, kept = params.values[k];
            double at[2] = {0, 0};
            for (int side = 0; side < 2; side++) {
                params.values[k] = side ? kept - h : kept + h;
                CHECK(op_model_updated(x.model, e));
                CHECK(op_model_forward(x.model, p, &x.batch, &how, e));
                CHECK(op_model_logprobs(x.model, p, NULL, NULL, logp, e));
                for (int32_t t = 0; t < x.T; t++)
                    at[side] -= (double)x.weight[t] * logp[t];
            }
            params.values[k] = kept;
            double d = (at[0] - at[1]) / (2 * (double)h);
            if (!(fabs(d - params.grads[k]) < 0.03 * (0.1 + fabs(d))))
                fail_msg("%s %s: gradient %g, finite difference %g", families[f], params.table[i].name, (double)params.grads[k], d);
        }
        free(slope);
        free(logp);
        op_pass_free(p);
        close_fixture(&x);
    }
}

static void each_sequence_runs_with_its_own_adapter(void **state)
{
    (void)state;
    op_lora_options lora = {.rank = 2, .alpha = 2, .targets = OP_LORA_ALL};
    op_model_options o = {.backend = "cpu", .act = OP_F32, .trainable = OP_TRAIN_ADAPTER, .lora = lora};
    fixture f = open_fixture("llama", o);
    randomise(op_model_params(f.model), 1);
    CHECK(op_model_updated(f.model, e));
    op_pass *p;
    CHECK(op_pass_new(&p, f.model, e));
    float with[64], without[64], mixed[64];
    const int32_t which[3] = {0, -1, 0};
    float *out[2] = {with, without};
    for (int k = 0; k < 3; k++) {
        for (int s = 0; s < f.n_seqs; s++)
            f.seqs[s].adapter = k < 2 ? which[k] : which[s % 2];
        CHECK(op_model_forward(f.model, p, &f.batch, &(op_how){0}, e));
        CHECK(op_model_logprobs(f.model, p, NULL, NULL, k < 2 ? out[k] : mixed, e));
    }
    int differ = 0;
    for (int s = 0; s < f.n_seqs; s++)
        for (int32_t t = f.seqs[s].start; t < f.seqs[s].start + f.seqs[s].length; t++) {
            assert_true(fabsf(mixed[t] - (s % 2 ? without : with)[t]) < 1e-5f);
            differ += fabsf(with[t] - without[t]) > 1e-2f;
        }
    assert_true(differ > 10);
    op_pass_free(p);
    close_fixture(&f);
}

static void a_merged_adapter_gives_the_logits_of_the_adapter_beside_the_base(void **state)
{
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        op_model_options o = {.backend = "cpu", .act = OP_F32, .trainable = OP_TRAIN_ADAPTER,
                              .lora = {.rank = 4, .alpha = 8, .targets = OP_LORA_ALL}};
        fixture x = open_fixture(families[f], o);
        randomise(op_model_params(x.model), 9);
        CHECK(op_model_updated(x.model, e));
        op_pass *p;
        CHECK(op_pass_new(&p, x.model, e));
        float before[64], after[64];
        CHECK(op_model_forward(x.model, p, &x.batch, &(op_how){0}, e));
        CHECK(op_model_logprobs(x.model, p, NULL, NULL, before, e));
        CHECK(op_model_adapter_merge(x.model, 0, e));
        for (int s = 0; s < x.n_seqs; s++)
            x.seqs[s].adapter = -1;
        CHECK(op_model_forward(x.model, p, &x.batch, &(op_how){0}, e));
        CHECK(op_model_logprobs(x.model, p, NULL, NULL, after, e));
        assert_true(relative_error(after, before, (size_t)x.T) < 1e-5);
        op_pass_free(p);
        close_fixture(&x);
    }
}

/* ---- a frozen embedding ---- */

static void a_frozen_embedding_has_no_gradient_and_changes_no_other(void **state)
{
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        op_model_options half = all_f32;
        half.freeze_embedding = true;
        fixture whole = open_fixture(families[f], all_f32), part = open_fixture(families[f], half);
        op_pass *p, *q;
        CHECK(op_pass_new(&p, whole.model, e));
        CHECK(op_pass_new(&q, part.model, e));
        float logp[64];
        loss_and_gradients(whole.model, p, &whole.batch, whole.weight, false, logp);
        loss_and_gradients(part.model, q, &part.batch, part.weight, true, logp);
        op_params a = op_model_params(whole.model), b = op_model_params(part.model);
        size_t left_out = a.n - b.n;
        assert_int_equal(left_out, 61 * 16);
        assert_int_equal(a.n_table, b.n_table + 1);
        assert_string_equal(a.table[1].name, b.table[0].name);
        assert_int_equal(b.table[0].offset, 0);
        assert_true(relative_error(b.grads, a.grads + left_out, b.n) < 1e-6);
        b.values[0] += 1;
        CHECK(op_model_updated(part.model, e));
        op_pass_free(p);
        op_pass_free(q);
        close_fixture(&whole);
        close_fixture(&part);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frozen_embedding_has_no_gradient_and_changes_no_other),
        cmocka_unit_test(a_forest_gives_what_its_unfolded_paths_give),
        cmocka_unit_test(a_malformed_batch_is_refused_with_its_reason),
        cmocka_unit_test(a_tap_that_adds_gets_the_gradient_of_what_it_added),
        cmocka_unit_test(a_tap_that_reads_sends_its_gradient_to_the_weights_below),
        cmocka_unit_test(the_logits_hook_sees_every_row_and_its_gradient_reaches_the_weights),
        cmocka_unit_test(adapter_gradients_equal_finite_differences_with_dropout_too),
        cmocka_unit_test(each_sequence_runs_with_its_own_adapter),
        cmocka_unit_test(a_merged_adapter_gives_the_logits_of_the_adapter_beside_the_base),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
