/* The attention of one row, as it is read out after a forward, against PyTorch's. */
#include "common.h"

#include "base/mem.h"

enum { LONGEST = 23 }; /* of the fixtures' sequences: the columns of what PyTorch gave */

/* The largest difference, over every token of the fixture. */
static double distance(const char *family, op_model_options o, bool keep)
{
    fixture f = open_fixture(family, o);
    op_pass *p;
    CHECK(op_pass_new(&p, f.model, e));
    CHECK(op_model_forward(f.model, p, &f.batch, &(op_how){.keep = keep}, e));
    float *want = read_floats(f.expected, "attention", NULL), got[LONGEST];
    double most = 0;
    for (int s = 0; s < f.n_seqs; s++)
        for (int32_t i = 0; i < f.seqs[s].length; i++) {
            int32_t t = f.seqs[s].start + i;
            CHECK(op_model_attention(f.model, p, t, got, e));
            for (int32_t k = 0; k <= i; k++)
                most = fmax(most, fabs((double)got[k] - (double)want[t * LONGEST + k]));
        }
    free(want);
    op_pass_free(p);
    close_fixture(&f);
    return most;
}

static void the_attention_of_every_token_is_that_of_pytorch(void **state)
{
    (void)state;
    static const struct {
        op_model_options o;
        bool keep;
        double tolerance;
    } ways[] = {
        {{.backend = "ref", .act = OP_F32}, false, 1e-5},
        {{.backend = "cpu", .act = OP_F32}, false, 1e-5},
        {{.backend = "cpu", .act = OP_F32, .trainable = OP_TRAIN_ALL}, true, 1e-5},
        {{.backend = "cpu", .act = OP_F32, .trainable = OP_TRAIN_ALL, .recompute = true}, true, 1e-5},
        {{.backend = "cpu", .act = OP_BF16}, false, 0.05}, /* scores of the fixtures reach 10, and 8 bits are left of q and k */
    };
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
        for (int i = 0; i < N_FAMILIES; i++) {
            double d = distance(families[i], ways[w].o, ways[w].keep);
            if (!(d <= ways[w].tolerance))
                fail_msg("%s, way %zu: differs by %g", families[i], w, d);
        }
}

/* A root of 9 tokens, a branch of 5 after its fourth, and one of 3 after the second of those. */
static void a_token_sees_the_beginning_that_its_sequence_shares(void **state)
{
    (void)state;
    static const op_seq tree[] = {{0, 9, -1, 0, -1}, {9, 5, 0, 4, -1}, {14, 3, 1, 6, -1}}, path[] = {{0, 9, -1, 0, -1}};
    static const int32_t ids[] = {4, 8, 15, 16, 23, 42, 7, 3, 9, 11, 12, 13, 14, 17, 18, 19, 20}, own[] = {4, 8, 15, 16, 11, 12, 18, 19, 20};
    for (int i = 0; i < N_FAMILIES; i++) {
        op_model *m = open_fixture_model(families[i], (op_model_options){.backend = "ref"});
        op_pass *p;
        float folded[9], unfolded[9];
        CHECK(op_pass_new(&p, m, e));
        CHECK(op_model_forward(m, p, &(op_batch){17, 3, ids, tree}, &(op_how){0}, e));
        CHECK(op_model_attention(m, p, 16, folded, e));
        CHECK(op_model_forward(m, p, &(op_batch){9, 1, own, path}, &(op_how){0}, e));
        CHECK(op_model_attention(m, p, 8, unfolded, e));
        double sum = 0;
        for (int k = 0; k < 9; k++) {
            assert_true(fabs((double)folded[k] - (double)unfolded[k]) < 1e-5);
            sum += (double)folded[k];
        }
        assert_true(fabs(sum - 1) < 1e-5);
        op_pass_free(p);
        op_model_free(m);
    }
}

static void what_is_not_there_is_not_read(void **state)
{
    (void)state;
    fixture f = open_fixture("llama", (op_model_options){.backend = "ref", .trainable = OP_TRAIN_ALL});
    op_pass *p;
    op_error e = {0};
    float out[LONGEST], logp[64];
    assert_int_equal(op_pass_new(&p, f.model, &e), OP_OK);
    assert_int_equal(op_model_attention(f.model, p, 0, out, &e), OP_ERR_ARG);
    assert_int_equal(op_model_forward(f.model, p, &f.batch, &(op_how){0}, &e), OP_OK);
    assert_int_equal(op_model_attention(f.model, p, f.T, out, &e), OP_ERR_ARG);
    assert_non_null(strstr(e.message, "expected 0..40"));
    assert_int_equal(op_model_attention(f.model, p, -1, out, &e), OP_ERR_ARG);
    for (long n = 0; n < 3; n++) {
        op_alloc_fail_from(n);
        op_status s = op_model_attention(f.model, p, 20, out, &e);
        op_alloc_fail_from(-1);
        assert_int_equal(s, OP_ERR_NOMEM);
    }
    loss_and_gradients(f.model, p, &f.batch, f.weight, false, logp);
    assert_int_equal(op_model_attention(f.model, p, 0, out, &e), OP_ERR_ARG);
    assert_non_null(strstr(e.message, "before its backward"));
    op_pass_free(p);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_attention_of_every_token_is_that_of_pytorch),
        cmocka_unit_test(a_token_sees_the_beginning_that_its_sequence_shares),
        cmocka_unit_test(what_is_not_there_is_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
