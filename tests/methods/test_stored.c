/* Learning from trials that lie in a file: two answers to one prompt, the second held better, the first with one wrong word. */
#include "methods_tools.h"

enum { WORD = 20, WRONG = 1 };
static op_trial answers_of[2];

/* in_dir("trials.jsonl"), and in_dir("marked.jsonl"), where nobody compared the answers. */
static int write_trials(void **state)
{
    if (set_up(state))
        return -1;
    for (int compared = 0; compared < 2; compared++) {
        op_buf out;
        op_buf_init(&out, 1 << 20);
        for (int i = 0; i < 2; i++) {
            op_trial *t = &answers_of[i];
            op_trial_release(t);
            op_trial_init(t);
            t->prompt = op_alloc_zero(3, sizeof *t->prompt);
            t->response = op_alloc_zero(4, sizeof *t->response);
            t->n_prompt = 3;
            t->n_response = 4;
            for (int k = 0; k < 4; k++) {
                t->prompt[k % 3] = 10 + k % 3;
                t->response[k] = WORD + 4 * i + k;
            }
            json_object_set_new(t->tags, "group", json_string("a"));
            json_object_set_new(t->tags, "answer", json_string(i ? "corrected" : "1"));
            if (compared)
                json_object_set_new(t->tags, i ? "better_than" : "worse_than", json_string(i ? "2,1" : "corrected"));
            if (!i)
                assert_ok(op_trial_add_mark(t, WRONG, WRONG + 1, -1, "people", NULL, e));
            assert_ok(op_trial_append(t, NULL, &out, e));
        }
        assert_ok(op_file_put(in_dir(compared ? "trials.jsonl" : "marked.jsonl"), out.data, out.len, e));
        op_buf_release(&out);
    }
    return 0;
}

static int forget_trials(void **state)
{
    op_trial_release(&answers_of[0]);
    op_trial_release(&answers_of[1]);
    return tear_down(state);
}

/* By how much log p of a whole answer rose. */
static double rise_of(const char *name, int answer)
{
    double sum = 0;
    for (int32_t k = 0; k < 4; k++)
        sum += rise(name, &answers_of[answer], k);
    return sum;
}

static void the_better_answer_is_preferred_to_the_worse(void **state)
{
    (void)state;
    run("preferred", "method: stored, file: trials.jsonl, learn: preference, rounds: 10");
    assert_true(rise_of("preferred", 1) > rise_of("preferred", 0) + 0.5);
}

static void without_rewards_the_standing_among_the_answers_is_the_reward(void **state)
{
    (void)state;
    run("rewarded", "method: stored, file: trials.jsonl, learn: reward, rounds: 10");
    assert_true(rise_of("rewarded", 1) > 0.2);
    assert_true(rise_of("rewarded", 0) < -0.2);
}

static void a_mark_acts_on_its_token_and_a_scalar_does_not_see_it(void **state)
{
    (void)state;
    run("marked", "method: stored, file: marked.jsonl, rounds: 10");
    double wrong = rise("marked", &answers_of[0], WRONG);
    for (int32_t k = 0; k < 4; k++)
        assert_true(k == WRONG || rise("marked", &answers_of[0], k) > wrong + 0.2);
    run("unseen", "method: stored, file: marked.jsonl, learn: reward, rounds: 2");
    assert_true(rise_of("unseen", 0) == 0);
}

static void only_the_named_answers_are_imitated(void **state)
{
    (void)state;
    run("imitated", "method: stored, file: trials.jsonl, learn: imitation, answers: [corrected], rounds: 3");
    assert_true(trained == 4);
    assert_true(rise_of("imitated", 1) > 0.2);
}

static void no_sample_is_drawn_and_no_teacher_asked(void **state)
{
    (void)state;
    run("quiet", "method: stored, file: trials.jsonl, rounds: 2");
    assert_int_equal(n_calls, 0);
}

static void a_file_without_these_answers_and_a_stage_without_a_file_are_errors(void **state)
{
    (void)state;
    assert_int_equal(run_stage("wrong", "method: stored, file: trials.jsonl, answers: [7]", NULL, NULL), OP_ERR_FORMAT);
    assert_non_null(strstr(e->message, "no trial of these answers"));
    assert_int_equal(run_stage("wrong", "method: stored", NULL, NULL), OP_ERR_ARG);
    assert_non_null(strstr(e->message, "\"file\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_better_answer_is_preferred_to_the_worse),
        cmocka_unit_test(without_rewards_the_standing_among_the_answers_is_the_reward),
        cmocka_unit_test(a_mark_acts_on_its_token_and_a_scalar_does_not_see_it),
        cmocka_unit_test(only_the_named_answers_are_imitated),
        cmocka_unit_test(no_sample_is_drawn_and_no_teacher_asked),
        cmocka_unit_test(a_file_without_these_answers_and_a_stage_without_a_file_are_errors),
    };
    return cmocka_run_group_tests(tests, write_trials, forget_trials);
}
