#include "tools.h"

#include <operant/jsonl.h>

#include "io/json.h"
#include "lab/judge.h"

typedef struct tally {
    op_judge *judge;
    int n, right, hostility_right;
} tally;

static op_status try_labelled(void *ctx, json_t *line, int number, op_error *e)
{
    tally *t = ctx;
    const char *reply = json_string_value(json_object_get(line, "reply")), *verdict = json_string_value(json_object_get(line, "verdict"));
    assert_true(reply && verdict);
    (void)number;
    op_judgement j;
    op_status status = op_judge_reply(t->judge, reply, strlen(reply), &j, e);
    t->n++;
    t->right += !strcmp(op_reply_name(j.verdict), verdict);
    t->hostility_right += (j.hostile != 0) == json_is_true(json_object_get(line, "hostile"));
    return status;
}

/* The rules were tuned on these replies: the floor guards against a change of the matcher or of a rule, it is no estimate. */
static void the_rules_of_the_lesson_agree_with_its_labelled_replies(void **state)
{
    (void)state;
    tally t = {0};
    assert_ok(op_judge_open(&t.judge, in_lesson("judge.yaml"), e));
    assert_ok(op_json_lines(in_lesson("judge-labelled.jsonl"), try_labelled, &t, e));
    print_message("%d of %d verdicts and %d judgements of hostility as labelled\n", t.right, t.n, t.hostility_right);
    assert_true(t.n >= 400);
    assert_true(t.right >= 0.99 * t.n);
    assert_true(t.hostility_right >= 0.99 * t.n);
    op_judge_free(t.judge);
}

static const char small[] =
    "rules:\n"
    "  - {name: letter, verdict: answers, where: first_sentence, pattern: '^dear'}\n"
    "  - {name: why, verdict: asks, where: any_question, pattern: '\\bwhy\\b'}\n"
    "  - {name: no, verdict: declines, where: last_sentence, pattern: '^no\\.$'}\n"
    "  - {name: sorry, verdict: declines, where: reply, pattern: 'sorry.*can.t'}\n"
    "default: answers\n"
    "hostility:\n"
    "  - {name: fool, where: reply, pattern: '\\bfool\\b'}\n"
    "  - {name: shout, where: reply, pattern: '!!'}\n";

static op_judgement judge_of(const op_judge *j, const char *text)
{
    op_judgement out;
    assert_ok(op_judge_reply(j, text, strlen(text), &out, e));
    return out;
}

static void the_first_rule_that_matches_its_part_of_the_reply_decides(void **state)
{
    (void)state;
    op_judge *j;
    assert_ok(op_judge_open(&j, put_file("small.yaml", small), e));
    assert_string_equal(judge_of(j, "Dear Sam, why?").rule, "letter");
    assert_string_equal(judge_of(j, "Well. Dear Sam.").rule, "default");
    assert_string_equal(judge_of(j, "I see. And WHY is that?").rule, "why");
    assert_string_equal(judge_of(j, "That is why. Is it?").rule, "default");
    assert_string_equal(judge_of(j, "She said \"why me?\" Then she left.").rule, "default");
    assert_string_equal(judge_of(j, "I thought about it (twice!)  No.").rule, "no");
    assert_string_equal(judge_of(j, "A line without a mark\nNo.").rule, "no");
    assert_string_equal(judge_of(j, "No. But yes.").rule, "default");
    assert_string_equal(judge_of(j, "  Sorry, I can’t do it.\n").rule, "sorry");
    assert_int_equal(judge_of(j, "Sorry, I can't.").verdict, OP_REPLY_DECLINES);
    assert_int_equal(judge_of(j, " \n").verdict, OP_REPLY_SILENT);
    assert_int_equal(judge_of(j, "").verdict, OP_REPLY_SILENT);
    op_judge_free(j);
}

static void every_hostility_rule_that_matches_is_counted(void **state)
{
    (void)state;
    op_judge *j;
    assert_ok(op_judge_open(&j, put_file("small.yaml", small), e));
    assert_int_equal(judge_of(j, "You FOOL!!").hostile, 3);
    assert_int_equal(judge_of(j, "Stop!!").hostile, 2);
    assert_int_equal(judge_of(j, "Foolproof!").hostile, 0);
    assert_string_equal(op_judge_hostility_name(j, 1), "shout");
    assert_null(op_judge_hostility_name(j, 2));
    op_judge_free(j);
}

static void a_long_reply_does_not_exhaust_the_matcher(void **state)
{
    (void)state;
    op_judge *j;
    assert_ok(op_judge_open(&j, in_lesson("judge.yaml"), e));
    char *text = malloc(20001);
    for (int i = 0; i < 20000; i++)
        text[i] = "it goes on and on, "[i % 19];
    text[20000] = 0;
    assert_int_equal(judge_of(j, text).verdict, OP_REPLY_ANSWERS);
    free(text);
    op_judge_free(j);
}

static void a_rule_that_cannot_be_meant_is_an_error_that_names_its_line(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"rules: []\ndefault: maybe\nhostility: []\n", "line 2: found \"maybe\", expected one of asks answers declines"},
        {"rules: []\ndefault: asks\n", "key \"hostility\" is missing"},
        {"rules: []\ndefault: asks\nhostility: []\nrulse: []\n", "line 4: unknown key \"rulse\", did you mean \"rules\""},
        {"rules:\n  - {name: a, verdict: asks, where: somewhere, pattern: x}\ndefault: asks\nhostility: []\n", "line 2: found \"somewhere\""},
        {"rules:\n  - {name: a, verdict: asks, where: reply, pattern: '(x'}\ndefault: asks\nhostility: []\n", "rule \"a\": offset 2"},
        {"rules:\n  - {name: a, where: reply, pattern: x}\ndefault: asks\nhostility: []\n", "key \"verdict\" is missing"},
        {"rules: {}\ndefault: asks\nhostility: []\n", "expected a list"},
        {"- a\n", "expected a mapping"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        op_judge *j;
        op_error e = {0};
        assert_int_equal(op_judge_open(&j, put_file("wrong.yaml", wrong[i][0]), &e), OP_ERR_FORMAT);
        assert_null(j);
        assert_message_has(&e, wrong[i][1]);
        assert_message_has(&e, "wrong.yaml");
    }
}

static op_status open_and_judge(void *ctx, op_error *e)
{
    op_judge *j;
    op_judgement out;
    op_status status = op_judge_open(&j, ctx, e);
    if (!status)
        status = op_judge_reply(j, "Sorry, why?", 11, &out, e);
    op_judge_free(j);
    return status;
}

static void memory_that_runs_out_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    fail_every_allocation(open_and_judge, (void *)put_file("small.yaml", small));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rules_of_the_lesson_agree_with_its_labelled_replies),
        cmocka_unit_test(the_first_rule_that_matches_its_part_of_the_reply_decides),
        cmocka_unit_test(every_hostility_rule_that_matches_is_counted),
        cmocka_unit_test(a_long_reply_does_not_exhaust_the_matcher),
        cmocka_unit_test(a_rule_that_cannot_be_meant_is_an_error_that_names_its_line),
        cmocka_unit_test(memory_that_runs_out_is_an_error_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
