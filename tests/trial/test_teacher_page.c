/* The teacher that docs/teachers.md writes from scratch, compiled from the page, opened and asked. */
#include <operant/teacher.h>

#include "trial_tools.h"

op_status op_teacher_brevity_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);

static const op_teacher_type more[] = {{"brevity", "short answers", op_teacher_brevity_open}, {0}};

static op_status open_teacher(op_teacher **t, const char *settings)
{
    json_t *v = parse(settings);
    op_status s = op_teacher_open(t, v, &(op_classroom){.chat = &chat}, more, e);
    json_decref(v);
    return s;
}

static void the_teacher_of_the_page_prefers_short_answers(void **state)
{
    (void)state;
    op_teacher *teacher;
    assert_ok(open_teacher(&teacher, "{\"type\":\"brevity\",\"limit\":4}"));
    for (int32_t n = 2; n <= 6; n += 4) {
        op_trial t, *list = &t;
        op_trial_init(&t);
        t.response = op_alloc_zero((size_t)n, 4);
        t.n_response = n;
        assert_ok(teacher->teach(teacher, &list, 1, e));
        assert_true(t.has_reward);
        assert_float_equal(t.reward, n == 2 ? 0.5 : -0.5, 1e-12);
        assert_int_equal(t.n_marks, n == 6);
        if (t.n_marks)
            assert_true(t.marks[0].start == 4 && t.marks[0].end == 6 && t.marks[0].value == -1);
        op_trial_release(&t);
    }
    op_teacher_close(teacher);
}

static void its_mistakes_are_named_as_those_of_any_other(void **state)
{
    (void)state;
    op_teacher *teacher;
    assert_int_equal(open_teacher(&teacher, "{\"type\":\"brevity\",\"limits\":4}"), OP_ERR_FORMAT);
    assert_string_equal(e->message, "brevity: unknown key \"limits\", did you mean \"limit\"");
    assert_int_equal(open_teacher(&teacher, "{\"type\":\"bravity\"}"), OP_ERR_ARG);
    assert_string_equal(e->message, "teacher: key \"type\": found \"bravity\", expected one of rules reference judge marker program several brevity");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_teacher_of_the_page_prefers_short_answers),
        cmocka_unit_test(its_mistakes_are_named_as_those_of_any_other),
    };
    return cmocka_run_group_tests(tests, open_words, close_words);
}
