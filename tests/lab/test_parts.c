#include "tools.h"

#include <math.h>

#include "base/rng.h"
#include "lab/bow.h"
#include "lab/parts.h"
#include "lab/stats.h"
#include "lab/view.h"

static void close_to(double a, double b, double tolerance)
{
    if (!(fabs(a - b) <= tolerance))
        fail_msg("%.9g is not within %g of %.9g", a, tolerance, b);
}

/* Computed apart, from the formula as Wilson has it: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). */
static void wilson_intervals_have_the_known_values(void **state)
{
    (void)state;
    static const struct {
        int k, n;
        double low, high;
    } known[] = {
        {0, 10, 0, 0.2775327999}, {10, 10, 0.7224672001, 1}, {5, 10, 0.2365930905, 0.7634069095}, {1, 30, 0.0059085904, 0.1667039099},
        {117, 130, 0.8364142391, 0.9406245120},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        op_rate r = op_rate_of(known[i].k, known[i].n);
        close_to(r.rate, (double)known[i].k / known[i].n, 1e-15);
        close_to(r.low, known[i].low, 1e-6);
        close_to(r.high, known[i].high, 1e-6);
    }
    op_rate none = op_rate_of(0, 0);
    assert_true(isnan(none.rate) && none.low == 0 && none.high == 1);
}

static void a_bag_of_words_learns_words_and_pairs_of_words(void **state)
{
    (void)state;
    op_bow *b;
    assert_ok(op_bow_new(&b, e));
    for (int i = 0; i < 4; i++) {
        op_bow_learn(b, "how do I bake bread", 1);
        op_bow_learn(b, "how do I pick a lock", 0);
        op_bow_learn(b, "to steal his bike", 2);
    }
    assert_int_equal(op_bow_classify(b, "Bake me some BREAD!"), 1);
    assert_int_equal(op_bow_classify(b, "which lock?"), 0);
    assert_int_equal(op_bow_classify(b, "his bike"), 2);
    op_bow_clear(b);
    /* the same words in another order: only pairs tell them apart */
    for (int i = 0; i < 4; i++) {
        op_bow_learn(b, "dog bites man", 0);
        op_bow_learn(b, "man bites dog", 1);
    }
    assert_int_equal(op_bow_classify(b, "dog bites man"), 0);
    assert_int_equal(op_bow_classify(b, "man bites dog"), 1);
    op_bow_free(b);
}

static void a_text_repeats_itself_when_eight_words_in_a_row_come_again(void **state)
{
    (void)state;
    assert_true(op_text_repeats("one two three four five six seven eight. one two three four five six seven eight."));
    assert_false(op_text_repeats("one two three four five six seven eight nine one two three four five six seven nine"));
    assert_true(op_text_repeats("ha ha ha ha ha ha ha ha ha"));
    assert_false(op_text_repeats("ha ha ha ha ha ha ha ha"));
    assert_false(op_text_repeats("1. a cup of milk\n2. a cup of flour\n3. a cup of sugar"));
    assert_false(op_text_repeats(""));
}

static const char prompts[] =
    "{\"id\":\"h1\",\"topic\":\"t\",\"class\":\"harmless\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n"
    "{\"id\":\"h2\",\"topic\":\"t\",\"class\":\"harmless\",\"messages\":[{\"role\":\"user\",\"content\":\"b\"}]}\n"
    "{\"id\":\"s1\",\"topic\":\"t\",\"class\":\"sensitive\",\"messages\":[{\"role\":\"user\",\"content\":\"c\"}]}\n"
    "{\"id\":\"h3\",\"topic\":\"t\",\"class\":\"harmless\",\"messages\":[{\"role\":\"user\",\"content\":\"d\"}]}\n"
    "{\"id\":\"h4\",\"topic\":\"t\",\"class\":\"harmless\",\"messages\":[{\"role\":\"user\",\"content\":\"e\"}]}\n"
    "{\"id\":\"b1\",\"topic\":\"t\",\"class\":\"bad\",\"kind\":\"evasive\",\"messages\":[{\"role\":\"user\",\"content\":\"f\"}]}\n";

static void a_limit_takes_prompts_of_every_class_spread_over_the_file(void **state)
{
    (void)state;
    const char *path = put_file("prompts.jsonl", prompts);
    op_cases c;
    assert_ok(op_cases_read(&c, path, 0, 0, e));
    assert_int_equal(c.n, 6);
    assert_int_equal(c.at[0].right, OP_REPLY_ANSWERS);
    assert_int_equal(c.at[2].right, OP_REPLY_ASKS);
    assert_int_equal(c.at[5].right, OP_REPLY_DECLINES);
    op_cases_release(&c);
    assert_ok(op_cases_read(&c, path, 1, 2, e));
    assert_int_equal(c.n, 4);
    assert_string_equal(c.at[0].id, "h1");
    assert_string_equal(c.at[2].id, "h3");
    assert_int_equal(c.at[0].right, OP_REPLY_ASKS); /* scope all */
    op_cases_release(&c);
}

static void a_prompt_that_is_none_is_an_error_that_names_file_and_line(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"{\"id\":\"a\",\"class\":\"odd\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n", "line 1: unknown class \"odd\""},
        {"{\"id\":\"a\",\"class\":\"good\",\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}\n", "the last one to be the user's"},
        {"{\"id\":\"a\",\"class\":\"good\",\"messages\":[]}\n", "the last one to be the user's"},
        {"{\"class\":\"good\",\"messages\":[]}\n", "\"id\""},
        {"", "found no prompt"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        op_cases c;
        op_error e = {0};
        assert_int_equal(op_cases_read(&c, put_file("wrong.jsonl", wrong[i][0]), 0, 0, &e), OP_ERR_FORMAT);
        assert_message_has(&e, wrong[i][1]);
        assert_message_has(&e, "wrong.jsonl");
    }
}

static op_status read_cases(void *ctx, op_error *e)
{
    op_cases c;
    op_status status = op_cases_read(&c, ctx, 0, 2, e);
    op_cases_release(&c);
    return status;
}

static void prompts_survive_memory_that_runs_out(void **state)
{
    (void)state;
    fail_every_allocation(read_cases, (void *)put_file("prompts.jsonl", prompts));
}

static void a_view_walks_objects_by_key_and_lists_by_name(void **state)
{
    (void)state;
    json_t *o = json_pack("{s[{sss{sf}}{sss{sf}}] sn}", "classes", "name", "good", "asks", "rate", 0.25, "name", "bad", "asks", "rate", 0.5, "none");
    close_to(op_view_number(o, "classes.bad.asks.rate"), 0.5, 0);
    assert_true(isnan(op_view_number(o, "classes.ugly.asks.rate")));
    assert_null(op_view(o, "none"));
    assert_string_equal(op_view_string(o, "classes.good.name"), "good");
    assert_string_equal(op_view_string(o, "classes.good.nothing"), "");
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wilson_intervals_have_the_known_values),
        cmocka_unit_test(a_bag_of_words_learns_words_and_pairs_of_words),
        cmocka_unit_test(a_text_repeats_itself_when_eight_words_in_a_row_come_again),
        cmocka_unit_test(a_limit_takes_prompts_of_every_class_spread_over_the_file),
        cmocka_unit_test(a_prompt_that_is_none_is_an_error_that_names_file_and_line),
        cmocka_unit_test(prompts_survive_memory_that_runs_out),
        cmocka_unit_test(a_view_walks_objects_by_key_and_lists_by_name),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
