/* Rules, reference answers, programs, and several teachers side by side, on a small tokenizer. */
#include <unistd.h>

#include <operant/teacher.h>

#include "trial_tools.h"

static op_teacher *open_as(const char *settings)
{
    op_teacher *t;
    json_t *v = parse(settings);
    assert_ok(op_teacher_open(&t, v, &(op_classroom){.chat = &chat, .dir = dir, .seed = 4}, NULL, e));
    json_decref(v);
    return t;
}

static void refuses(const char *settings, const char *part)
{
    op_teacher *t;
    json_t *v = parse(settings);
    assert_true(op_teacher_open(&t, v, &(op_classroom){.chat = &chat, .dir = dir}, NULL, e) != OP_OK);
    assert_null(t);
    json_decref(v);
    assert_says(part);
}

/* A trial whose response is these words and, if ended, the end token. */
static void say(op_trial *t, const char *words, bool ended)
{
    op_tokens ids;
    op_tokens_init(&ids);
    assert_ok(op_tokenizer_encode(tokenizer, words, strlen(words), OP_ENCODE_CONTINUE, &ids, e));
    op_trial_init(t);
    t->id = 17;
    t->prompt = op_alloc_zero(1, 4);
    t->n_prompt = 1;
    t->n_response = (int32_t)ids.n + ended;
    t->response = op_alloc_array(ids.n + 1, 4);
    if (ids.n)
        memcpy(t->response, ids.ids, ids.n * 4);
    if (ended)
        t->response[ids.n] = op_tokenizer_find(tokenizer, "<|im_end|>");
    op_tokens_release(&ids);
}

static void ask(op_teacher *teacher, op_trial *t)
{
    assert_ok(teacher->teach(teacher, &t, 1, e));
    assert_ok(op_trial_check(t, op_tokenizer_vocab_size(tokenizer), e));
}

static void assert_span(const op_trial *t, int32_t start, int32_t end, const char *words)
{
    char *text;
    assert_ok(op_trial_text(t, tokenizer, start, end, &text, e));
    if (!strstr(text, words)) /* tokens are marked whole */
        fail_msg("'%s' lacks '%s'", text, words);
    assert_true(strlen(text) <= strlen(words) + 8);
    op_free(text);
}

/* ---- rules ---- */

static void put(const char *name, const char *text)
{
    assert_ok(op_file_put(in_dir(name), text, strlen(text), e));
}

static void rules_mark_every_match_and_only_it(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"rules\",\"rules\":[{\"name\":\"x\",\"pattern\":\"z\\u00e9ro+\",\"mark\":-0.5}]}");
    op_trial t;
    say(&t, "all is Z\u00c9ROOO and fine, then z\u00e9ro comes", true);
    ask(teacher, &t);
    assert_int_equal(t.n_marks, 2);
    assert_span(&t, t.marks[0].start, t.marks[0].end, "Z\u00c9ROOO");
    assert_span(&t, t.marks[1].start, t.marks[1].end, "z\u00e9ro");
    assert_float_equal(t.marks[0].value, -0.5, 0);
    assert_string_equal(t.marks[0].by, "rules/x");
    assert_false(t.has_reward);
    op_trial_release(&t);
    say(&t, "nothing here", true);
    ask(teacher, &t);
    assert_true(!t.n_marks && !t.by);
    op_trial_release(&t);
    op_teacher_close(teacher);
}

static const char polite[] = "name: polite\n"
                             "otherwise: 0.25\n"
                             "rules:\n"
                             "  - name: rude\n"
                             "    pattern: \\b(stupid|idiot)\\b\n"
                             "    reward: -1\n"
                             "    mark: -1\n"
                             "    span: 1\n"
                             "  - name: asks\n"
                             "    pattern: \\?\\s*$\n"
                             "    where: last_line\n"
                             "    if: {tags: {class: [sensitive, private]}, not: [rude]}\n"
                             "    reward: 1\n"
                             "  - name: glad\n"
                             "    pattern: glad\n"
                             "    if: {rules: [asks]}\n"
                             "    reward: 0.5\n"
                             "  - name: plain\n"
                             "    pattern: https?://\n"
                             "    absent: true\n"
                             "    span: whole\n"
                             "    mark: 0.1\n";

static void rules_of_a_file_hold_by_tag_and_by_one_another(void **state)
{
    (void)state;
    put("polite.yaml", polite);
    op_teacher *teacher = open_as("{\"type\":\"rules\",\"file\":\"polite.yaml\"}");
    const struct {
        const char *words, *class;
        double reward;
        int marks;
    } cases[] = {{"glad you came.\nwhy?", "sensitive", 1.5, 1}, {"why?", "plain", 0.25, 1},        {"why?\nI see", "private", 0.25, 1},
                 {"you idiot, why?", "private", -1, 2},          {"see http://a.b", "plain", 0.25, 0}, {"", "sensitive", 0.25, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        op_trial t;
        say(&t, cases[i].words, false);
        json_object_set_new(t.tags, "class", json_string(cases[i].class));
        ask(teacher, &t);
        assert_true(t.has_reward);
        assert_float_equal(t.reward, cases[i].reward, 1e-12);
        assert_int_equal(t.n_marks, cases[i].marks);
        assert_string_equal(t.by, "polite");
        op_trial_release(&t);
    }
    op_teacher_close(teacher);
}

static void a_rule_can_look_at_the_question(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"rules\",\"rules\":[{\"name\":\"lock\",\"where\":\"prompt\",\"pattern\":\"lock\"},"
                                  "{\"name\":\"tells\",\"pattern\":\"pin\",\"if\":{\"rules\":[\"lock\"]},\"reward\":-1}]}");
    op_trial t;
    say(&t, "take a pin", true);
    t.messages = parse("[{\"role\":\"user\",\"content\":\"how do I pick a Lock?\"},{\"role\":\"assistant\",\"content\":\"pin\"}]");
    ask(teacher, &t);
    assert_float_equal(t.reward, -1, 0);
    op_trial_release(&t);
    say(&t, "take a pin", true);
    t.messages = parse("[{\"role\":\"user\",\"content\":\"how do I fix a hem?\"}]");
    ask(teacher, &t);
    assert_false(t.has_reward);
    op_trial_release(&t);
    op_teacher_close(teacher);
}

static void mistakes_in_rules_are_named_with_file_and_key(void **state)
{
    (void)state;
    put("bad.yaml", "rules:\n  - name: a\n    patern: x\n");
    refuses("{\"type\":\"rules\",\"file\":\"bad.yaml\"}", "bad.yaml: rules[0]: unknown key \"patern\", did you mean \"pattern\"");
    refuses("{\"type\":\"rules\",\"file\":\"none.yaml\"}", "none.yaml");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"(\"}]}", "rules: rule \"a\": key \"pattern\": offset 1: missing closing parenthesis");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"x\",\"mark\":2}]}", "rules[0]: key \"mark\": found 2, expected -1..1");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"x\",\"where\":\"end\"}]}", "key \"where\": found \"end\", expected one of response|first_line");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"x\",\"if\":{\"rules\":[\"b\"]}},{\"name\":\"b\",\"pattern\":\"x\"}]}",
            "no earlier rule is named \"b\"");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"x\"},{\"name\":\"a\",\"pattern\":\"y\"}]}", "\"a\" is rules[0] already");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"x\",\"span\":1,\"mark\":1}]}", "found 1, but the pattern has 0 groups");
    refuses("{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"x\",\"absent\":true,\"mark\":1}]}", "absent has no place in the response to mark");
    refuses("{\"type\":\"rules\",\"rules\":[]}", "found 0 rules, expected 1..64");
}

static void a_pattern_without_end_is_an_error_that_names_rule_and_trial(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"rules\",\"rules\":[{\"name\":\"slow\",\"pattern\":\"(a+)+$\"}]}");
    op_trial t, *list = &t;
    say(&t, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", false);
    assert_int_equal(teacher->teach(teacher, &list, 1, e), OP_ERR_FORMAT);
    assert_says("rules: trial 17: rule \"slow\": match limit exceeded");
    op_trial_release(&t);
    op_teacher_close(teacher);
}

/* ---- reference ---- */

static void known(op_trial *t, const char *words, bool ended, const char *answer)
{
    say(t, words, ended);
    json_object_set_new(t->tags, "reference", json_string(answer));
}

/* The words that the alternative makes of the response. */
static void assert_corrected(const op_trial *t, const char *words, bool ended)
{
    const op_alternative *a = &t->alternatives[0];
    assert_int_equal(t->n_alternatives, 1);
    assert_true(a->picked && a->at <= t->n_response);
    op_buf b;
    op_buf_init(&b, 1000);
    assert_ok(op_tokenizer_decode(tokenizer, t->response, (size_t)a->at, OP_DECODE_ALL, &b));
    assert_ok(op_tokenizer_decode(tokenizer, a->ids, (size_t)a->n, OP_DECODE_SKIP_SPECIAL, &b));
    assert_string_equal(b.data, words);
    assert_int_equal(op_tokenizer_is_special(tokenizer, a->ids[a->n - 1]), ended);
    op_buf_release(&b);
}

static void a_right_answer_is_rewarded_and_left_alone(void **state)
{
    (void)state;
    const char *const settings[] = {"{\"type\":\"reference\"}", "{\"type\":\"reference\",\"match\":\"prefix\"}", "{\"type\":\"reference\",\"match\":\"first_line\"}",
                                    "{\"type\":\"reference\",\"match\":\"contains\"}", "{\"type\":\"reference\",\"ignore_case\":true}"};
    const char *const words[] = {" the sea \n", "the sea is blue", "the sea\nor the lake", "I say the sea!", "The SEA"};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 5; k++) {
            op_teacher *teacher = open_as(settings[i]);
            op_trial t;
            known(&t, words[k], true, " the sea");
            ask(teacher, &t);
            bool right = k == i || k == 0 || (i == 1 && k == 2) || (i == 3 && k <= 2);
            assert_float_equal(t.reward, right, 0);
            assert_int_equal(t.n_marks, !right && i != 3);
            assert_int_equal(t.n_alternatives, !right && i != 3);
            op_trial_release(&t);
            op_teacher_close(teacher);
        }
}

static void the_first_token_that_differs_is_marked_and_put_right(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"reference\",\"mark_right\":0.5}");
    const struct {
        const char *words, *answer, *corrected;
        bool ended;
    } cases[] = {{"one two three four", "one two five", "one two five", true}, {"one two", "one two three", "one two three", true},
                 {"one two three", "one two", "one two", true},                {"caf\u00e9", "caf\u00e8 noir", "caf\u00e8 noir", false},
                 {" \u2713 yes", "\u2717 no", " \u2717 no", true},              {"", "one", "one", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        op_trial t;
        known(&t, cases[i].words, cases[i].ended, cases[i].answer);
        ask(teacher, &t);
        assert_float_equal(t.reward, 0, 0);
        assert_corrected(&t, cases[i].corrected, cases[i].ended);
        int32_t at = t.alternatives[0].at;
        assert_int_equal(op_trial_first_error(&t), at < t.n_response ? at : -1);
        float *m = op_alloc_array((size_t)t.n_response + 1, sizeof *m);
        op_trial_token_marks(&t, m);
        for (int32_t k = 0; k < t.n_response; k++)
            assert_float_equal(m[k], k < at ? 0.5 : k == at ? -1 : 0, 0);
        op_free(m);
        op_trial_release(&t);
    }
    op_teacher_close(teacher);
}

static void a_trial_without_a_known_answer_is_left_alone(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"reference\"}");
    op_trial t, *list = &t;
    say(&t, "who knows", true);
    ask(teacher, &t);
    assert_true(!t.has_reward && !t.n_marks && !t.by);
    json_object_set_new(t.tags, "reference", json_integer(42));
    ask(teacher, &t);
    assert_corrected(&t, "42", true);
    json_object_set_new(t.tags, "reference", json_true());
    assert_int_equal(teacher->teach(teacher, &list, 1, e), OP_ERR_FORMAT);
    assert_says("reference: trial 17: tag \"reference\": found");
    op_trial_release(&t);
    op_teacher_close(teacher);
    refuses("{\"type\":\"reference\",\"match\":\"suffix\"}", "reference: key \"match\": found \"suffix\", expected one of exact|prefix|first_line|contains");
}

/* ---- programs ---- */

static void a_program_gives_reward_marks_and_alternatives(void **state)
{
    (void)state;
    put("grade.sh", "while read -r line; do\n"
                    "case $line in\n"
                    "*rude*) echo '{\"reward\":-2,\"marks\":[{\"start\":4,\"end\":8,\"value\":-1,\"note\":\"tone\"}],"
                    "\"alternatives\":[{\"at_token\":1,\"text\":\" kind\",\"picked\":true}]}';;\n"
                    "*) echo '{}';;\nesac\ndone\n");
    op_teacher *teacher = open_as("{\"type\":\"program\",\"command\":[\"sh\",\"grade.sh\"],\"name\":\"grader\",\"timeout\":20}");
    for (int i = 0; i < 3; i++) {
        op_trial t[2], *list[] = {&t[0], &t[1]};
        say(&t[0], "not rude", true);
        say(&t[1], "fine", true);
        assert_ok(teacher->teach(teacher, list, 2, e));
        assert_true(t[0].has_reward && t[0].reward == -2 && t[0].n_marks == 1 && t[0].n_alternatives == 1);
        assert_span(&t[0], t[0].marks[0].start, t[0].marks[0].end, "rude");
        assert_string_equal(t[0].marks[0].by, "grader");
        assert_string_equal(t[0].marks[0].note, "tone");
        assert_true(t[0].alternatives[0].picked);
        assert_true(!t[1].has_reward && !t[1].n_marks && !t[1].by);
        op_trial_release(&t[0]);
        op_trial_release(&t[1]);
    }
    op_teacher_close(teacher);
}

static void a_line_longer_than_a_pipe_passes_both_ways(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"program\",\"shell\":\"while read -r line; do printf '{\\\"reward\\\":1%300000s}\\\\n' ' '; done\"}");
    op_trial t;
    char *words = op_alloc(400001);
    memset(words, 'a', 400000);
    words[400000] = 0;
    say(&t, "x", false);
    t.messages = json_pack("[{ss ss}]", "role", "user", "content", words);
    ask(teacher, &t);
    assert_float_equal(t.reward, 1, 0);
    op_trial_release(&t);
    op_free(words);
    op_teacher_close(teacher);
}

static void fails(const char *shell, const char *part)
{
    char settings[400];
    snprintf(settings, sizeof settings, "{\"type\":\"program\",\"shell\":\"%s\",\"timeout\":0.5}", shell);
    op_teacher *teacher = open_as(settings);
    op_trial t, *list = &t;
    say(&t, "not rude", true);
    assert_true(teacher->teach(teacher, &list, 1, e) != OP_OK);
    assert_says(part);
    assert_true(!t.has_reward && !t.n_marks);
    op_trial_release(&t);
    op_teacher_close(teacher);
}

static void a_program_that_fails_is_an_error_that_names_it(void **state)
{
    (void)state;
    fails("exit 3", "program \"exit 3\": ended with status 3 before it answered trial 17");
    fails("read line; kill -9 $$", "killed by signal 9 before it answered trial 17");
    fails("sleep 20", "program \"sleep 20\": no answer to trial 17 within 0.5 s");
    fails("read line; echo hello; cat >/dev/null", "program \"read line; echo hello; cat >/dev/null\": answer to trial 17");
    fails("echo '{\\\"rewards\\\":1}'; cat >/dev/null", "unknown key \"rewards\", did you mean \"reward\"");
    fails("echo '{\\\"error\\\":\\\"no disk\\\"}'; cat >/dev/null", "it says: no disk");
    fails("echo '{\\\"marks\\\":[{\\\"start\\\":5,\\\"end\\\":99,\\\"value\\\":1}]}'; cat >/dev/null", "trial 17");
    refuses("{\"type\":\"program\",\"command\":[\"/no/such/program\"]}", "program \"/no/such/program\": cannot be started: No such file or directory");
    refuses("{\"type\":\"program\"}", "expected one of the keys \"command\" and \"shell\"");
}

/* ---- several ---- */

static void each_of_several_teachers_keeps_its_own_schedule(void **state)
{
    (void)state;
    op_teacher *teacher = open_as("{\"type\":\"several\",\"teachers\":["
                                  "{\"teacher\":{\"type\":\"rules\",\"name\":\"click\",\"rules\":[{\"name\":\"good\",\"pattern\":\"good\",\"mark\":1}]}},"
                                  "{\"teacher\":{\"type\":\"rules\",\"name\":\"food\",\"rules\":[{\"name\":\"good\",\"pattern\":\"good\",\"reward\":1}]},"
                                  "\"schedule\":{\"type\":\"fixed_ratio\",\"n\":10}}]}");
    int rewards = 0, marks = 0;
    for (int k = 0; k < 100; k++) {
        op_trial t;
        say(&t, "a good word", true);
        ask(teacher, &t);
        rewards += t.has_reward;
        marks += t.n_marks;
        op_trial_release(&t);
    }
    assert_int_equal(marks, 100);
    assert_int_equal(rewards, 10);
    op_teacher_close(teacher);
}

static void a_mark_beside_a_reward_does_not_decide_about_success(void **state)
{
    (void)state;
    static const char click[] = "{\"teacher\":{\"type\":\"rules\",\"name\":\"click\",\"rules\":[{\"name\":\"odd\",\"pattern\":\"odd\",\"mark\":-1}]}}",
                      food[] = ",{\"teacher\":{\"type\":\"rules\",\"name\":\"food\",\"otherwise\":0,\"rules\":[{\"name\":\"good\",\"pattern\":\"good\",\"reward\":1}]},"
                               "\"schedule\":\"none\"}";
    static const struct {
        const char *more, *says;
        bool success;
    } cases[] = {{food, "a good odd word", true}, {food, "an odd word", false}, {"", "a good odd word", false}, {"", "a good word", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char settings[512];
        snprintf(settings, sizeof settings, "{\"type\":\"several\",\"teachers\":[%s%s]}", click, cases[i].more);
        op_teacher *teacher = open_as(settings);
        op_trial t;
        say(&t, cases[i].says, true);
        ask(teacher, &t);
        assert_false(t.has_reward); /* kept back, and yet: */
        assert_int_equal(json_is_true(json_object_get(t.tags, "verdict")), cases[i].success);
        op_trial_release(&t);
        op_teacher_close(teacher);
    }
}

static void a_careless_teacher_turns_its_share_of_marks_around_and_resumes(void **state)
{
    (void)state;
    const char *settings = "{\"type\":\"several\",\"teachers\":[{\"wrong\":0.25,\"teacher\":{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"good\",\"mark\":1}]}}]}";
    op_teacher *a = open_as(settings), *b = open_as(settings);
    int wrong = 0;
    for (int k = 0; k < 2000; k++) {
        op_trial t, u;
        say(&t, "good", true);
        say(&u, "good", true);
        ask(a, &t);
        if (k == 500) {
            json_t *saved;
            op_teacher_close(b);
            b = open_as(settings);
            assert_ok(a->save(a, &saved, e));
            assert_ok(b->load(b, saved, e));
            json_decref(saved);
        } else if (k > 500) {
            ask(b, &u);
            assert_float_equal(t.marks[0].value, u.marks[0].value, 0);
        }
        wrong += t.marks[0].value < 0;
        op_trial_release(&t);
        op_trial_release(&u);
    }
    assert_in_range(wrong, 440, 560); /* deviation 19 */
    op_teacher_close(a);
    op_teacher_close(b);
}

static void every_failed_allocation_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    const char *const settings[] = {
        "{\"type\":\"rules\",\"rules\":[{\"name\":\"a\",\"pattern\":\"(go+)d\",\"mark\":1,\"reward\":1},{\"name\":\"b\",\"pattern\":\"x\",\"if\":{\"not\":[\"a\"],\"tags\":{\"q\":1}}}]}",
        "{\"type\":\"reference\",\"mark_right\":1}",
        "{\"type\":\"several\",\"teachers\":[{\"teacher\":{\"type\":\"reference\"},\"schedule\":\"continuous\"}]}"};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        json_t *v = parse(settings[i]);
        op_status s = OP_ERR_NOMEM;
        for (long n = 0; s; n++) {
            op_teacher *t = NULL;
            op_trial trial, *list = &trial;
            known(&trial, "a good one", true, "a good two");
            op_alloc_fail_from(n);
            s = op_teacher_open(&t, v, &(op_classroom){.chat = &chat}, NULL, e);
            if (!s)
                s = t->teach(t, &list, 1, e);
            op_alloc_fail_from(-1);
            if (s && s != OP_ERR_NOMEM)
                fail_msg("%s", e->message);
            op_teacher_close(t);
            op_trial_release(&trial);
        }
        json_decref(v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_mark_every_match_and_only_it),
        cmocka_unit_test(rules_of_a_file_hold_by_tag_and_by_one_another),
        cmocka_unit_test(a_rule_can_look_at_the_question),
        cmocka_unit_test(mistakes_in_rules_are_named_with_file_and_key),
        cmocka_unit_test(a_pattern_without_end_is_an_error_that_names_rule_and_trial),
        cmocka_unit_test(a_right_answer_is_rewarded_and_left_alone),
        cmocka_unit_test(the_first_token_that_differs_is_marked_and_put_right),
        cmocka_unit_test(a_trial_without_a_known_answer_is_left_alone),
        cmocka_unit_test(a_program_gives_reward_marks_and_alternatives),
        cmocka_unit_test(a_line_longer_than_a_pipe_passes_both_ways),
        cmocka_unit_test(a_program_that_fails_is_an_error_that_names_it),
        cmocka_unit_test(each_of_several_teachers_keeps_its_own_schedule),
        cmocka_unit_test(a_mark_beside_a_reward_does_not_decide_about_success),
        cmocka_unit_test(a_careless_teacher_turns_its_share_of_marks_around_and_resumes),
        cmocka_unit_test(every_failed_allocation_comes_back_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, open_words, close_words);
}
