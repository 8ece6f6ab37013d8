/* The defining property of every schedule of reinforcement, over many simulated trials. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <operant/reinforce.h>

#include "base/mem.h"
#include "base/rng.h"

static op_error e[1];

static op_reinforce *new_schedule(op_reinforce_type type, double n)
{
    op_reinforce_options o = op_reinforce_defaults();
    o.type = type;
    o.n = n;
    o.seed = 7;
    op_reinforce *r;
    assert_int_equal(op_reinforce_new(&r, &o, e), OP_OK);
    return r;
}

static op_reinforce *with(op_reinforce_options o)
{
    op_reinforce *r;
    o.seed = 7;
    assert_int_equal(op_reinforce_new(&r, &o, e), OP_OK);
    return r;
}

static op_consequence next(op_reinforce *r, bool success)
{
    double size;
    op_consequence c = op_reinforce_next(r, success, &size);
    assert_float_equal(size, 1, 0);
    return c;
}

/* Is trial k a success, of a subject that succeeds with probability p? */
static bool success(uint64_t k, double p)
{
    return op_rng_uniform(3, OP_STREAM_TEST, k) < p;
}

static void continuous_reinforcement_follows_every_success(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_CONTINUOUS, 1);
    for (int k = 0; k < 100; k++)
        assert_int_equal(next(r, true), OP_FEEDBACK);
    op_reinforce_free(r);
}

static void a_fixed_ratio_reinforces_every_nth_success_whatever_the_failures_between(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_FIXED_RATIO, 5);
    int successes = 0;
    for (uint64_t k = 0; k < 1000; k++) {
        bool good = success(k, 0.4);
        op_consequence c = next(r, good);
        assert_int_equal(c, !good || ++successes % 5 == 0 ? OP_FEEDBACK : OP_NOTHING);
    }
    op_reinforce_free(r);
}

static void a_broken_fixed_ratio_holds_on_average(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_FIXED_RATIO, 2.5);
    int given = 0;
    for (int k = 0; k < 1000; k++)
        given += next(r, true) == OP_FEEDBACK;
    assert_int_equal(given, 400);
    op_reinforce_free(r);
}

/* Lengths of the runs that end in a reinforcement, of a subject that always succeeds. */
typedef struct runs {
    double mean;
    int least, most, n, first;
} runs;

static runs runs_of(op_reinforce *r, int trials)
{
    runs a = {.least = 1 << 30};
    int length = 0, sum = 0;
    for (int k = 0; k < trials; k++) {
        length++;
        if (next(r, true) != OP_FEEDBACK)
            continue;
        if (!a.n++)
            a.first = length;
        a.least = length < a.least ? length : a.least;
        a.most = length > a.most ? length : a.most;
        sum += length;
        length = 0;
    }
    a.mean = (double)sum / a.n;
    return a;
}

static void a_variable_ratio_takes_1_to_2n_minus_1_successes_and_n_on_average(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_VARIABLE_RATIO, 4);
    runs a = runs_of(r, 40000);
    assert_int_equal(a.least, 1);
    assert_int_equal(a.most, 7);
    assert_float_equal(a.mean, 4, 0.1); /* deviation 2 / sqrt(10000) = 0.02 */
    op_reinforce_free(r);
    r = new_schedule(OP_REINFORCE_VARIABLE_RATIO, 1.25);
    assert_float_equal(runs_of(r, 40000).mean, 1.25, 0.02);
    op_reinforce_free(r);
}

static void a_fixed_interval_reinforces_the_first_success_after_n_trials(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_FIXED_INTERVAL, 6);
    int since = 0, given = 0;
    for (uint64_t k = 0; k < 2000; k++) {
        bool good = success(k, 0.5);
        op_consequence c = next(r, good);
        since++;
        if (!good)
            continue;
        assert_int_equal(c, since >= 6 ? OP_FEEDBACK : OP_NOTHING);
        if (c == OP_FEEDBACK) {
            since = 0;
            given++;
        }
    }
    assert_true(given > 200); /* about one in seven */
    op_reinforce_free(r);
}

static void a_variable_interval_pays_no_more_to_a_subject_that_succeeds_more_often(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_VARIABLE_INTERVAL, 5);
    runs a = runs_of(r, 20000);
    assert_int_equal(a.least, 1);
    assert_int_equal(a.most, 9);
    assert_float_equal(a.mean, 5, 0.15);
    op_reinforce_free(r);
    double rate[2];
    for (int i = 0; i < 2; i++) {
        r = new_schedule(OP_REINFORCE_VARIABLE_INTERVAL, 20);
        int given = 0;
        for (uint64_t k = 0; k < 20000; k++) {
            bool good = success(k, i ? 1 : 0.5);
            given += next(r, good) == OP_FEEDBACK && good;
        }
        rate[i] = given / 20000.0;
        op_reinforce_free(r);
    }
    assert_true(rate[1] < 1.1 * rate[0]); /* a ratio would pay twice as much */
}

static void random_reinforcement_is_given_with_probability_1_over_n(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_RANDOM, 10);
    runs a = runs_of(r, 50000);
    assert_float_equal(a.mean, 10, 0.5);
    assert_int_equal(a.least, 1);
    assert_true(a.most > 40); /* without a limit, unlike a variable ratio */
    op_reinforce_free(r);
}

static void weaning_grows_only_with_success_and_never_beyond_n(void **state)
{
    (void)state;
    op_reinforce_options o = op_reinforce_defaults();
    o.type = OP_REINFORCE_WEANING;
    o.n = 10;
    o.growth = 2;
    o.window = 20;
    op_reinforce *r = with(o);
    for (uint64_t k = 0; k < 500; k++)
        next(r, success(k, 0.3));
    assert_float_equal(op_reinforce_ratio(r), 1, 0);
    double before = 1;
    int grown_at[8], grown = 0;
    for (int k = 0; k < 400; k++) {
        next(r, true);
        double ratio = op_reinforce_ratio(r);
        assert_true(ratio >= before && ratio <= 10);
        if (ratio > before)
            grown_at[grown++] = k;
        before = ratio;
    }
    assert_int_equal(grown, 4); /* 2, 4, 8, 10 */
    assert_float_equal(before, 10, 0);
    for (int i = 1; i < grown; i++)
        assert_int_equal(grown_at[i] - grown_at[i - 1], 20); /* a window of its own for each */
    assert_float_equal(runs_of(r, 40000).mean, 10, 0.5);
    op_reinforce_free(r);
}

static void extinction_gives_nothing_neither_for_success_nor_for_failure(void **state)
{
    (void)state;
    op_reinforce *r = new_schedule(OP_REINFORCE_NONE, 1);
    for (int k = 0; k < 100; k++)
        assert_int_equal(next(r, k % 2), OP_NOTHING);
    op_reinforce_free(r);
}

static void failures_are_answered_always_as_scheduled_or_never(void **state)
{
    (void)state;
    const int expected[] = {1000, 100, 0};
    for (int f = 0; f < 3; f++) {
        op_reinforce_options o = op_reinforce_defaults();
        o.type = OP_REINFORCE_FIXED_RATIO;
        o.n = 10;
        o.failures = (op_reinforce_failures)f;
        op_reinforce *r = with(o);
        int given = 0;
        for (int k = 0; k < 1000; k++)
            given += next(r, false) == OP_FEEDBACK;
        assert_int_equal(given, expected[f]);
        op_reinforce_free(r);
    }
}

static void probes_come_at_their_rate_are_foretold_and_leave_the_ratio_alone(void **state)
{
    (void)state;
    op_reinforce_options o = op_reinforce_defaults();
    o.type = OP_REINFORCE_FIXED_RATIO;
    o.n = 3;
    o.probe = 0.2;
    op_reinforce *r = with(o);
    int probes = 0, counted = 0;
    for (int k = 0; k < 10000; k++) {
        bool probe = op_reinforce_is_probe(r);
        op_consequence c = next(r, true);
        assert_int_equal(c == OP_PROBE, probe);
        probes += probe;
        if (!probe)
            assert_int_equal(c, ++counted % 3 == 0 ? OP_FEEDBACK : OP_NOTHING);
    }
    assert_in_range(probes, 1850, 2150); /* deviation 40 */
    op_reinforce_free(r);
}

static void jackpots_are_a_share_of_reinforced_successes_only(void **state)
{
    (void)state;
    op_reinforce_options o = op_reinforce_defaults();
    o.type = OP_REINFORCE_VARIABLE_RATIO;
    o.n = 2;
    o.jackpot = 0.1;
    o.jackpot_size = 8;
    op_reinforce *r = with(o);
    int given = 0, jackpots = 0;
    for (uint64_t k = 0; k < 20000; k++) {
        double size;
        bool good = success(k, 0.7);
        op_consequence c = op_reinforce_next(r, good, &size);
        assert_true(size == 1 || (size == 8 && good && c == OP_FEEDBACK));
        given += good && c == OP_FEEDBACK;
        jackpots += size == 8;
    }
    assert_float_equal((double)jackpots / given, 0.1, 0.015);
    op_reinforce_free(r);
}

static void a_saved_schedule_goes_on_as_it_would_have(void **state)
{
    (void)state;
    for (int type = 0; type <= OP_REINFORCE_NONE; type++) {
        op_reinforce_options o = op_reinforce_defaults();
        o.type = (op_reinforce_type)type;
        o.n = 7.5;
        o.probe = o.jackpot = 0.1;
        o.window = 16;
        o.criterion = 0.6;
        o.seed = 99;
        op_reinforce *a, *b;
        assert_int_equal(op_reinforce_new(&a, &o, e), OP_OK);
        assert_int_equal(op_reinforce_new(&b, &o, e), OP_OK);
        double size, other;
        uint64_t k = 0;
        for (; k < 333; k++)
            op_reinforce_next(a, success(k, 0.7), &size);
        json_t *saved;
        assert_int_equal(op_reinforce_save(a, &saved, e), OP_OK);
        char *text = json_dumps(saved, JSON_REAL_PRECISION(9));
        json_decref(saved);
        saved = json_loads(text, 0, NULL); /* through a file */
        op_free(text);
        assert_int_equal(op_reinforce_load(b, saved, e), OP_OK);
        json_decref(saved);
        for (; k < 1000; k++) {
            assert_int_equal(op_reinforce_next(a, success(k, 0.7), &size), op_reinforce_next(b, success(k, 0.7), &other));
            assert_float_equal(size, other, 0);
            assert_float_equal(op_reinforce_ratio(a), op_reinforce_ratio(b), 0);
        }
        op_reinforce_free(a);
        op_reinforce_free(b);
    }
}

static void the_state_of_another_schedule_is_refused(void **state)
{
    (void)state;
    op_reinforce *a = new_schedule(OP_REINFORCE_RANDOM, 2), *b = new_schedule(OP_REINFORCE_WEANING, 2);
    json_t *saved;
    assert_int_equal(op_reinforce_save(a, &saved, e), OP_OK);
    assert_int_equal(op_reinforce_load(b, saved, e), OP_ERR_MISMATCH);
    assert_string_equal(e->message, "state of the schedule of reinforcement: found type random, expected weaning");
    json_object_set_new(saved, "window", json_string("012"));
    assert_int_equal(op_reinforce_load(a, saved, e), OP_ERR_FORMAT);
    json_decref(saved);
    op_reinforce_free(a);
    op_reinforce_free(b);
}

static op_status read(const char *text, op_reinforce_options *o)
{
    json_t *settings = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(settings);
    op_status s = op_reinforce_from_json(o, settings, 5, e);
    json_decref(settings);
    return s;
}

static void settings_are_read_and_mistakes_in_them_are_named(void **state)
{
    (void)state;
    op_reinforce_options o;
    assert_int_equal(read("{\"type\":\"weaning\",\"n\":12,\"window\":8,\"failures\":\"scheduled\",\"seed\":3}", &o), OP_OK);
    assert_true(o.type == OP_REINFORCE_WEANING && o.n == 12 && o.window == 8 && o.failures == OP_FAILURES_SCHEDULED && o.seed == 3 && o.growth == 1.5);
    assert_int_equal(read("\"fixed_interval\"", &o), OP_OK);
    assert_true(o.type == OP_REINFORCE_FIXED_INTERVAL && o.seed == 5);
    assert_int_equal(read("{\"typ\":\"none\"}", &o), OP_ERR_FORMAT);
    assert_string_equal(e->message, "schedule of reinforcement: unknown key \"typ\", did you mean \"type\"");
    assert_int_equal(read("{\"type\":\"often\"}", &o), OP_ERR_FORMAT);
    assert_non_null(strstr(e->message, "found \"often\", expected one of continuous|fixed_ratio"));
    assert_int_equal(read("{\"n\":0.5}", &o), OP_ERR_ARG);
    assert_string_equal(e->message, "schedule of reinforcement: key \"n\": found 0.5, expected 1..1e6");
    assert_int_equal(read("{\"probe\":1.5}", &o), OP_ERR_ARG);
    assert_int_equal(read("3", &o), OP_ERR_FORMAT);
}

static void every_failed_allocation_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    json_t *settings = json_loads("\"random\"", JSON_DECODE_ANY, NULL);
    op_status s = OP_ERR_NOMEM;
    for (long n = 0; s; n++) {
        op_reinforce_options o;
        op_reinforce *r = NULL;
        json_t *saved = NULL;
        op_alloc_fail_from(n);
        s = op_reinforce_from_json(&o, settings, 1, e);
        if (!s)
            s = op_reinforce_new(&r, &o, e);
        if (!s)
            s = op_reinforce_save(r, &saved, e);
        op_alloc_fail_from(-1);
        assert_true(s == OP_OK || s == OP_ERR_NOMEM);
        json_decref(saved);
        op_reinforce_free(r);
    }
    json_decref(settings);
}

int main(void)
{
    json_set_alloc_funcs(op_alloc, op_free);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(continuous_reinforcement_follows_every_success),
        cmocka_unit_test(a_fixed_ratio_reinforces_every_nth_success_whatever_the_failures_between),
        cmocka_unit_test(a_broken_fixed_ratio_holds_on_average),
        cmocka_unit_test(a_variable_ratio_takes_1_to_2n_minus_1_successes_and_n_on_average),
        cmocka_unit_test(a_fixed_interval_reinforces_the_first_success_after_n_trials),
        cmocka_unit_test(a_variable_interval_pays_no_more_to_a_subject_that_succeeds_more_often),
        cmocka_unit_test(random_reinforcement_is_given_with_probability_1_over_n),
        cmocka_unit_test(weaning_grows_only_with_success_and_never_beyond_n),
        cmocka_unit_test(extinction_gives_nothing_neither_for_success_nor_for_failure),
        cmocka_unit_test(failures_are_answered_always_as_scheduled_or_never),
        cmocka_unit_test(probes_come_at_their_rate_are_foretold_and_leave_the_ratio_alone),
        cmocka_unit_test(jackpots_are_a_share_of_reinforced_successes_only),
        cmocka_unit_test(a_saved_schedule_goes_on_as_it_would_have),
        cmocka_unit_test(the_state_of_another_schedule_is_refused),
        cmocka_unit_test(settings_are_read_and_mistakes_in_them_are_named),
        cmocka_unit_test(every_failed_allocation_comes_back_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
