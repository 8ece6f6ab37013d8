/* Every objective against PyTorch's numbers (oracle_objectives.py), against its own finite differences, and against each other. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <operant/objective.h>

#include "base/mem.h"

#include "objectives_expected.h"

static op_seq seqs[ITEMS];
static op_batch batch = {.n_tokens = TOKENS, .n_seqs = ITEMS, .seqs = seqs};
static const op_policy policy_with_behaviour = {clip_low, clip_high, false}, policy_fresh = {clip_low, clip_high, true};
static const op_kto kto = {beta, desirable, undesirable, judged, 3, points, 2, ITEMS}, kto_alone = {beta, desirable, undesirable, judged, 3, NULL, 0, ITEMS};
static op_preference dpo = {.type = OP_PREFERENCE_DPO}, ipo = {.type = OP_PREFERENCE_IPO}, hinge = {.type = OP_PREFERENCE_HINGE},
                     ipo_mean = {.type = OP_PREFERENCE_IPO, .mean = true};

typedef struct objective_case {
    const char *name;
    op_objective f;
    const double *expected; /* [1 + TOKENS] */
    bool without_reference;
} objective_case;

enum { CASES = 11 };
static objective_case cases[CASES];

static int setup(void **state)
{
    (void)state;
    for (int32_t i = 0, at = 0; i < ITEMS; at += lengths[i++])
        seqs[i] = (op_seq){.start = at, .length = lengths[i], .parent = -1, .adapter = -1};
    op_preference *all[] = {&dpo, &ipo, &hinge, &ipo_mean};
    for (int i = 0; i < 4; i++) {
        all[i]->beta = beta;
        all[i]->pairs = pairs;
        all[i]->n_pairs = 3;
        all[i]->n_items = ITEMS;
    }
    const objective_case list[CASES] = {
        {"weighted", op_objective_weighted(), expected_weighted, false},
        {"policy", op_objective_policy(&policy_with_behaviour), expected_policy, false},
        {"kl", op_objective_kl(), expected_kl, false},
        {"unlikelihood", op_objective_unlikelihood(), expected_unlikelihood, false},
        {"dpo", op_objective_preference(&dpo), expected_dpo, false},
        {"ipo", op_objective_preference(&ipo), expected_ipo, false},
        {"hinge", op_objective_preference(&hinge), expected_hinge, false},
        {"dpo without reference", op_objective_preference(&dpo), expected_dpo_without_reference, true},
        {"ipo of means", op_objective_preference(&ipo_mean), expected_ipo_mean, false},
        {"kto", op_objective_kto(&kto), expected_kto, false},
        {"kto without points", op_objective_kto(&kto_alone), expected_kto_without_points, false},
    };
    memcpy(cases, list, sizeof list);
    return 0;
}

static op_signal signal_of(bool without_reference)
{
    return (op_signal){.weight = weight, .behaviour = behaviour, .reference = without_reference ? NULL : reference, .normaliser = normaliser};
}

static double eval(const op_objective *f, const op_signal *s, const float *at, float *slope)
{
    double loss = NAN;
    op_error e = {0};
    if (f->eval(f->ctx, &batch, s, at, slope, &loss, &e))
        fail_msg("%s: %s", f->name, e.message);
    return loss;
}

static void assert_near(const char *name, int t, double found, double expected)
{
    if (!(fabs(found - expected) <= 1e-6 * fabs(expected) + 1e-12))
        fail_msg("%s, token %d: %.9g, expected %.9g", name, t, found, expected);
}

static void losses_and_slopes_are_those_of_pytorch_to_a_millionth(void **state)
{
    (void)state;
    for (int k = 0; k < CASES; k++) {
        float slope[TOKENS];
        op_signal s = signal_of(cases[k].without_reference);
        assert_near(cases[k].name, -1, eval(&cases[k].f, &s, logp, slope), cases[k].expected[0]);
        for (int t = 0; t < TOKENS; t++)
            assert_near(cases[k].name, t, slope[t], cases[k].expected[1 + t]);
    }
}

static void the_exact_divergence_and_its_slopes_are_those_of_pytorch(void **state)
{
    (void)state;
    float slope[KL_VOCAB];
    for (int i = 0; i < KL_ROWS; i++) {
        double kl = op_full_kl(KL_VOCAB, kl_logits + i * KL_VOCAB, kl_reference + i * KL_VOCAB, kl_weights[i], slope);
        assert_true(kl >= 0);
        assert_float_equal(kl, expected_full_kl[i], 1e-6 * expected_full_kl[i] + 1e-14);
        for (int v = 0; v < KL_VOCAB; v++)
            assert_float_equal(slope[v], expected_full_kl_slopes[i * KL_VOCAB + v], 1e-6 * fabs(expected_full_kl_slopes[i * KL_VOCAB + v]) + 1e-14);
    }
    const float far[] = {3e4f, -3e4f, 0}, other[] = {-3e4f, 3e4f, 0};
    assert_float_equal(op_full_kl(3, far, other, 1, slope), 6e4, 1e-3);
    for (int v = 0; v < 3; v++)
        assert_true(isfinite(slope[v]));
}

/* KTO's point of reference has no gradient by definition: the items of `points` are left out there. */
static void slopes_are_the_derivatives_of_the_losses(void **state)
{
    (void)state;
    for (int k = 0; k < CASES; k++) {
        op_signal s = signal_of(cases[k].without_reference);
        float slope[TOKENS], dropped[TOKENS], at[TOKENS];
        eval(&cases[k].f, &s, logp, slope);
        for (int t = 0; t < TOKENS; t++) {
            bool point = cases[k].f.ctx == &kto && ((t >= 16 && t < 22) || t >= 30); /* items 3 and 5 */
            bool stopped = !strcmp(cases[k].name, "policy") && isnan(behaviour[t]);  /* pi / stopgrad(pi) is 1 whatever pi is */
            if (point || stopped || logp[t] > -1e-3f) /* and log p cannot go up from 0 */
                continue;
            const float h = 1.f / 512;
            memcpy(at, logp, sizeof at);
            at[t] = logp[t] + h;
            double up = eval(&cases[k].f, &s, at, dropped), x = at[t];
            at[t] = logp[t] - h;
            double difference = (up - eval(&cases[k].f, &s, at, dropped)) / (x - (double)at[t]);
            if (!(fabs(difference - (double)slope[t]) <= 1e-3 * fabs(difference) + 1e-6))
                fail_msg("%s, token %d: slope %.9g, difference %.9g", cases[k].name, t, (double)slope[t], difference);
        }
    }
}

static void where_the_behaviour_is_unknown_or_the_policy_itself_the_policy_gradient_is_the_weighted_one_bit_for_bit(void **state)
{
    (void)state;
    op_objective plain = op_objective_weighted(), fresh = op_objective_policy(&policy_fresh), known = op_objective_policy(&policy_with_behaviour);
    op_signal s = signal_of(false);
    float a[TOKENS], b[TOKENS];
    eval(&plain, &s, logp, a);
    assert_true(fresh.linear && !known.linear);
    eval(&fresh, &s, logp, b);
    for (int t = 0; t < TOKENS; t++)
        assert_true(a[t] == b[t]);
    s.behaviour = logp;
    eval(&known, &s, logp, b);
    for (int t = 0; t < TOKENS; t++)
        assert_true(a[t] == b[t]);
    s.behaviour = NULL;
    eval(&known, &s, logp, b);
    for (int t = 0; t < TOKENS; t++)
        assert_true(a[t] == b[t]);
}

static void a_sum_of_terms_that_see_the_same_items_is_the_sum_of_their_losses_and_slopes(void **state)
{
    (void)state;
    const float *rows[ITEMS];
    for (int i = 0; i < ITEMS; i++)
        rows[i] = weight + seqs[i].start;
    op_objective_term terms[CASES];
    double loss = 0, slopes[TOKENS] = {0};
    op_signal s = signal_of(false), nothing = s;
    float slope[TOKENS];
    int n = 0;
    for (int k = 0; k < CASES; k++) {
        if (cases[k].without_reference)
            continue;
        terms[n++] = (op_objective_term){cases[k].f, 1 + k, normaliser, rows, NAN};
        loss += (1 + k) * eval(&cases[k].f, &s, logp, slope);
        for (int t = 0; t < TOKENS; t++)
            slopes[t] += (1 + k) * (double)slope[t];
    }
    op_objective_sum all = {terms, (size_t)n, ITEMS};
    op_objective f = op_objective_sum_of(&all);
    const float none[TOKENS] = {0};
    nothing.weight = none; /* the batch's own weights do not matter */
    assert_false(f.linear);
    assert_near("sum", -1, eval(&f, &nothing, logp, slope), loss);
    for (int t = 0; t < TOKENS; t++)
        assert_float_equal(slope[t], slopes[t], 1e-5 * fmax(1, fabs(slopes[t])));
}

static void a_term_sees_its_own_items_only_and_at_their_own_places_after_a_shared_beginning(void **state)
{
    (void)state;
    /* a beginning of 2 tokens, and two items that go on from it */
    const op_seq forest[] = {{.length = 2, .parent = -1}, {.start = 2, .length = 3, .parent = 0, .branch = 2}, {.start = 5, .length = 2, .parent = 0, .branch = 2}};
    const op_batch b = {.n_tokens = 7, .n_seqs = 3, .seqs = forest};
    const int32_t item[] = {-1, 1, 0};
    const float of_0[] = {9, 9, 1, 2}, of_1[] = {9, 9, 3, 4, 5}, lp[] = {-1, -1, -1, -1, -1, -1, -1};
    const float *first[] = {of_0, NULL}, *second[] = {NULL, of_1};
    op_objective_term terms[] = {{op_objective_weighted(), 1, 1, first, NAN}, {op_objective_weighted(), 10, 2, second, NAN}, {op_objective_kl(), 0, 0, NULL, NAN}};
    op_objective_sum all = {terms, 3, 2};
    op_objective f = op_objective_sum_of(&all);
    op_signal s = {.item = item, .normaliser = 1};
    float slope[7];
    double loss = 0;
    assert_true(f.linear); /* a term of scale 0 is not there */
    assert_int_equal(f.eval(f.ctx, &b, &s, lp, slope, &loss, NULL), OP_OK);
    const float expected[] = {0, 0, -15, -20, -25, -1, -2};
    assert_memory_equal(slope, expected, sizeof expected);
    assert_float_equal(terms[0].loss, 3, 0);
    assert_float_equal(terms[1].loss, 6, 0);
    assert_float_equal(loss, 63, 0);
}

static void no_loss_or_slope_is_infinite_however_far_the_policies_are_apart(void **state)
{
    (void)state;
    float far[TOKENS], near[TOKENS], slope[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        far[t] = -3000.f - (float)t;
        near[t] = -1e-30f;
    }
    for (int k = 0; k < CASES; k++)
        for (int turn = 0; turn < 2; turn++) {
            op_signal s = signal_of(false);
            s.behaviour = s.reference = turn ? near : far;
            assert_true(isfinite(eval(&cases[k].f, &s, turn ? far : near, slope)));
            for (int t = 0; t < TOKENS; t++)
                assert_true(isfinite(slope[t]));
        }
}

static void a_failed_allocation_or_an_item_out_of_range_is_an_error(void **state)
{
    (void)state;
    const float *rows[ITEMS] = {0};
    op_objective_term terms[] = {{op_objective_preference(&dpo), 1, normaliser, rows, NAN}};
    op_objective_sum all = {terms, 1, ITEMS};
    op_objective fs[] = {op_objective_preference(&dpo), op_objective_kto(&kto), op_objective_sum_of(&all)};
    op_signal s = signal_of(false);
    float slope[TOKENS];
    double loss;
    for (int k = 0; k < 3; k++) {
        op_alloc_fail_from(0);
        op_status status = fs[k].eval(fs[k].ctx, &batch, &s, logp, slope, &loss, NULL);
        op_alloc_fail_from(-1);
        assert_int_equal(status, OP_ERR_NOMEM);
    }
    op_alloc_fail_from(1); /* the term within the sum */
    op_status status = fs[2].eval(fs[2].ctx, &batch, &s, logp, slope, &loss, NULL);
    op_alloc_fail_from(-1);
    assert_int_equal(status, OP_ERR_NOMEM);
    const int32_t item[ITEMS] = {0, 1, 2, 3, 4, 77};
    op_error e;
    s.item = item;
    assert_int_equal(fs[0].eval(fs[0].ctx, &batch, &s, logp, slope, &loss, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "item 77 of the batch, expected 0..5");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_slopes_are_those_of_pytorch_to_a_millionth),
        cmocka_unit_test(the_exact_divergence_and_its_slopes_are_those_of_pytorch),
        cmocka_unit_test(slopes_are_the_derivatives_of_the_losses),
        cmocka_unit_test(where_the_behaviour_is_unknown_or_the_policy_itself_the_policy_gradient_is_the_weighted_one_bit_for_bit),
        cmocka_unit_test(a_sum_of_terms_that_see_the_same_items_is_the_sum_of_their_losses_and_slopes),
        cmocka_unit_test(a_term_sees_its_own_items_only_and_at_their_own_places_after_a_shared_beginning),
        cmocka_unit_test(no_loss_or_slope_is_infinite_however_far_the_policies_are_apart),
        cmocka_unit_test(a_failed_allocation_or_an_item_out_of_range_is_an_error),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
