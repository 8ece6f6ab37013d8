/* Importing other people's feedback: small lines of every form, and the real data where they are (OPERANT_DATA). */
#include "trial_tools.h"

#include <dirent.h>

#include <operant/import.h>

static op_trial *trials;
static size_t n_trials;
static const char *form;

static op_status import_text(const char *text)
{
    json_t *v = parse(text);
    op_status s = op_import_line(&trials, &n_trials, &form, v, &chat, NULL, "x.jsonl: line 2", "g:2", e);
    json_decref(v);
    return s;
}

static void expect(const char *text, const char *want_form, size_t n)
{
    assert_ok(import_text(text));
    assert_string_equal(form, want_form);
    assert_int_equal(n_trials, n);
    for (size_t i = 0; i < n; i++)
        assert_null(trials[i].logprobs);
}

static void done(void)
{
    op_import_release(trials, n_trials);
}

static void expect_refused(const char *text, const char *part)
{
    assert_true(import_text(text) != OP_OK);
    assert_says("x.jsonl: line 2");
    assert_says(part);
    assert_null(trials);
}

static void expect_text(const op_trial *t, int32_t from, int32_t to, const char *want)
{
    char *text;
    assert_ok(op_trial_text(t, tokenizer, from, to, &text, e));
    assert_string_equal(text, want);
    op_free(text);
}

static void expect_response(const op_trial *t, const char *want)
{
    expect_text(t, 0, t->n_response, want);
}

static const char *tag(const op_trial *t, const char *key)
{
    const char *s = json_string_value(json_object_get(t->tags, key));
    return s ? s : "";
}

static void both_sides_of_a_preference_name_each_other(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"prompt\":\"a b\",\"chosen\":\"yes\",\"rejected\":\"no\"}",
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"a b\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"yes\"}],\"rejected\":[{\"role\":\"assistant\",\"content\":\"no\"}]}",
        ("{\"chosen\":[{\"role\":\"user\",\"content\":\"a b\"},{\"role\":\"assistant\",\"content\":\"yes\"}],"
         "\"rejected\":[{\"role\":\"user\",\"content\":\"a b\"},{\"role\":\"assistant\",\"content\":\"no\"}]}"),
        "{\"chosen\":\"\\n\\nHuman: a b\\n\\nAssistant: yes\",\"rejected\":\"\\n\\nHuman: a b\\n\\nAssistant: no\"}"};
    for (int i = 0; i < 4; i++) {
        expect(lines[i], "preference", 2);
        expect_response(&trials[0], "yes");
        expect_response(&trials[1], "no");
        assert_int_equal(trials[0].n_prompt, trials[1].n_prompt);
        assert_memory_equal(trials[0].prompt, trials[1].prompt, (size_t)trials[0].n_prompt * 4);
        assert_true(trials[0].has_reward && trials[0].reward == 1 && trials[1].reward == -1);
        assert_string_equal(tag(&trials[0], "group"), "g:2");
        assert_string_equal(tag(&trials[0], "better_than"), "rejected");
        assert_string_equal(tag(&trials[1], "worse_than"), "chosen");
        assert_true(op_import_better(&trials[0], &trials[1]) && !op_import_better(&trials[1], &trials[0]));
        done();
    }
}

static void a_dialogue_keeps_its_turns(void **state)
{
    (void)state;
    expect("{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant: b\\n\\nc\\n\\nHuman: d\\n\\nAssistant:\",\"rejected\":\"\\n\\nHuman: a\\n\\nAssistant: x\"}", "preference", 2);
    json_t *want = parse("[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\\n\\nc\"},{\"role\":\"user\",\"content\":\"d\"}]");
    assert_true(json_equal(trials[0].messages, want));
    expect_response(&trials[0], "");
    json_decref(want);
    done();
}

static void labels_and_steps_become_rewards_and_marks(void **state)
{
    (void)state;
    expect("{\"prompt\":\"a\",\"completion\":\"b c\",\"label\":false}", "unpaired", 1);
    assert_true(trials[0].has_reward && trials[0].reward == -1);
    done();
    expect("{\"prompt\":\"a\",\"completions\":[\"one\",\"tw\xc3\xb6\"],\"labels\":[true,false],\"topic\":\"sums\"}", "stepwise", 1);
    expect_response(&trials[0], "one\ntw\xc3\xb6");
    assert_int_equal(trials[0].n_marks, 2);
    expect_text(&trials[0], trials[0].marks[0].start, trials[0].marks[0].end, "one");
    expect_text(&trials[0], trials[0].marks[1].start, trials[0].marks[1].end, "tw\xc3\xb6");
    assert_true(trials[0].marks[0].value == 1 && trials[0].marks[1].value == -1);
    assert_string_equal(tag(&trials[0], "topic"), "sums");
    done();
}

static void answers_to_a_question_of_behaviour_have_no_reward(void **state)
{
    (void)state;
    expect("{\"question\":\"May we?\",\"answer_matching_behavior\":\" (A)\",\"answer_not_matching_behavior\":[\" (B)\",\" (C)\"]}", "evals", 3);
    expect_response(&trials[0], " (A)");
    expect_response(&trials[2], " (C)");
    assert_string_equal(tag(&trials[0], "answer"), "matching");
    assert_string_equal(tag(&trials[2], "answer"), "not matching 2");
    assert_false(trials[0].has_reward || op_import_better(&trials[0], &trials[1]));
    done();
}

static void spans_and_corrections_of_people_find_their_tokens(void **state)
{
    (void)state;
    expect("{\"question\":\"Q?\",\"passages\":[[\"T\",\"T\\n\\nfirst.\",\"second.\"],[\"U\",\"x\"]],\"prediction 1\":\"the \xc3\xa9nd was bad\",\"prediction 2\":\"the end\","
           "\"feedback\":{\"errors\":[{\"error type\":\"Irrelevant\",\"explanation\":\"\",\"start\":8,\"end\":11}],\"missing-info\":[],\"corrected-prediction\":\"the \xc3\xa9nd is\"},"
           "\"preference\":[2],\"gold\":\"\"}", "fine-grained", 3);
    assert_int_equal(trials[0].n_marks, 1);
    char *marked;
    assert_ok(op_trial_text(&trials[0], tokenizer, trials[0].marks[0].start, trials[0].marks[0].end, &marked, e));
    assert_non_null(strstr(marked, "was"));
    op_free(marked);
    assert_string_equal(trials[0].marks[0].note, "Irrelevant");
    assert_true(op_import_better(&trials[1], &trials[0]) && op_import_better(&trials[2], &trials[0]));
    assert_string_equal(tag(&trials[0], "worse_than"), "2,corrected");
    assert_int_equal(trials[2].redo_of, -1);
    expect_text(&trials[2], 0, trials[2].redo_at, "the \xc3\xa9nd"); /* the space belongs to the next token */
    const char *words = json_string_value(json_object_get(json_array_get(trials[0].messages, 0), "content"));
    assert_string_equal(words, "T\nfirst. second.\n\nU\nx\n\nQ?");
    done();
}

#define PRM "{\"labeler\":\"l1\",\"timestamp\":\"2022-07-17T16:56:51.5\",\"question\":{\"problem\":\"1+1?\",\"ground_truth_answer\":\"2\"},\"label\":{\"finish_reason\":\"solution\",\"steps\":["

static void every_completion_of_a_step_is_a_trial(void **state)
{
    (void)state;
    expect(PRM "{\"completions\":[{\"text\":\"add\",\"rating\":1},{\"text\":\"subtract\",\"rating\":-1}],\"chosen_completion\":0,\"human_completion\":null},"
               "{\"completions\":[{\"text\":\"3\",\"rating\":-1}],\"chosen_completion\":null,\"human_completion\":{\"text\":\"2\",\"rating\":null}}]}}", "prm800k", 3);
    expect_response(&trials[0], "add\n2");
    expect_response(&trials[1], "subtract");
    expect_response(&trials[2], "add\n3");
    assert_int_equal(trials[0].n_marks, 1);
    assert_true(trials[0].marks[0].value == 1 && trials[1].marks[0].value == -1);
    expect_text(&trials[2], trials[2].marks[0].start, trials[2].marks[0].end, "3");
    assert_int_equal(trials[2].redo_of, -1);
    expect_text(&trials[2], 0, trials[2].redo_at, "add\n");
    assert_string_equal(trials[0].by, "l1");
    assert_int_equal(trials[0].time, 1658077011500);
    assert_string_equal(tag(&trials[0], "reference"), "2");
    done();
}

#define STUDIO "{\"id\":5,\"data\":{\"prompt\":\"a\",\"response\":\"\xf0\x9f\x98\x80 ab cd\"},\"annotations\":[{\"id\":1,\"completed_by\":3,\"result\":[{\"type\":\"labels\",\"value\":"

static void labels_of_a_browser_count_utf16_units(void **state)
{
    (void)state;
    expect(STUDIO "{\"start\":3,\"end\":5,\"text\":\"ab\",\"labels\":[\"bad\"]}}]}]}", "label-studio", 1); /* the smiley is two units */
    char *marked;
    assert_ok(op_trial_text(&trials[0], tokenizer, trials[0].marks[0].start, trials[0].marks[0].end, &marked, e));
    assert_non_null(strstr(marked, "ab"));
    assert_true(trials[0].marks[0].value == -1);
    assert_string_equal(trials[0].marks[0].by, "annotator 3");
    op_free(marked);
    done();
    expect(STUDIO "{\"start\":2,\"end\":4,\"text\":\"ab\",\"labels\":[\"0.5\"]}}]}]}", "label-studio", 1); /* code points */
    assert_true(trials[0].marks[0].value == 0.5);
    done();
    expect_refused(STUDIO "{\"start\":2,\"end\":4,\"text\":\"cd\",\"labels\":[\"bad\"]}}]}]}", "does not read \"cd\"");
    expect_refused(STUDIO "{\"start\":2,\"end\":4,\"labels\":[\"Person\"]}}]}]}", "label \"Person\" has no known value");
}

static void what_is_not_known_is_refused_and_not_guessed(void **state)
{
    (void)state;
    expect_refused("{\"text\":\"a\"}", "no known form of feedback: the first key is 'text'");
    expect_refused("{\"chosen\":\"a\",\"rejected\":\"b\"}", "without a prompt");
    expect_refused("{\"prompt\":\"a\",\"chosen\":\"a\",\"rejected\":\"b\",\"scor\":1}", "unknown key 'scor' in the form preference");
    expect_refused("{\"chosen\":\"\\n\\nHuman: a\",\"rejected\":\"\\n\\nHuman: b\"}", "does not end with the assistant");
    expect_refused("{\"prompt\":\"a\",\"completions\":[\"a\"],\"labels\":[]}", "1 completions and 0 labels");
    expect_refused("{\"prompt\":\"a\",\"completion\":\"a\",\"label\":1}", "key \"label\": found an integer");
    expect_refused("{\"question\":\"Q?\",\"passages\":[],\"prediction 1\":\"ab\",\"feedback\":{\"errors\":[{\"error type\":\"I\",\"start\":1,\"end\":3}]}}", "code points 1..3, expected");
    expect_refused(PRM "{\"completions\":[],\"chosen_completion\":0}]}}", "step 0 has no chosen completion");
}

static int64_t import_to(const char *db, const char *path, op_import_result *r)
{
    op_store *s;
    op_store_stats stats;
    assert_ok(op_store_open(&s, db, e));
    for (int i = 0; i < 2; i++) { /* the second time adds nothing */
        assert_ok(op_import_file(s, path, &chat, NULL, r, e));
        assert_ok(op_store_get_stats(s, &stats, e));
        assert_int_equal(stats.trials, r->trials);
        assert_int_equal(stats.marks, r->marks);
    }
    op_store_close(s);
    assert_ok(op_path_remove(db, e));
    return stats.redos;
}

static void a_file_goes_in_whole_or_not_at_all(void **state)
{
    (void)state;
    op_store *s;
    op_store_stats stats;
    op_import_result r;
    static const char good[] = "{\"id\":9,\"prompt\":\"a\",\"response\":\"b\"}\n{\"id\":10,\"prompt\":\"a\",\"response\":\"bc\",\"redo\":{\"of\":9,\"at\":1}}\n";
    static const char bad[] = "{\"id\":9,\"prompt\":\"a\",\"response\":\"b\"}\n{\"prompt\":\"a\",\"response\":\"bc\",\"redo\":{\"of\":8,\"at\":1}}\n";
    assert_ok(op_file_put(in_dir("bad.jsonl"), bad, strlen(bad), e));
    assert_ok(op_file_put(in_dir("good.jsonl"), good, strlen(good), e));
    assert_ok(op_store_open(&s, in_dir("own.db"), e));
    assert_int_equal(op_import_file(s, in_dir("bad.jsonl"), &chat, NULL, &r, e), OP_ERR_FORMAT);
    assert_says("bad.jsonl: line 2: redoes trial 8");
    assert_ok(op_store_get_stats(s, &stats, e));
    assert_int_equal(stats.trials, 0);
    op_store_close(s);
    assert_int_equal(import_to(in_dir("own2.db"), in_dir("good.jsonl"), &r), 1);
    assert_string_equal(r.form, "own");
}

static op_status import_all(void *ctx)
{
    op_status s = op_import_line(&trials, &n_trials, &form, ctx, &chat, NULL, "line", "g", e);
    if (!s)
        done();
    return s;
}

static void every_failed_allocation_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"chosen\":\"\\n\\nHuman: a b\\n\\nAssistant: yes\",\"rejected\":\"\\n\\nHuman: a b\\n\\nAssistant: no\",\"tags\":{\"a\":1}}",
        PRM "{\"completions\":[{\"text\":\"add\",\"rating\":1},{\"text\":\"subtract\",\"rating\":-1}],\"chosen_completion\":0}]}}",
        STUDIO "{\"start\":3,\"end\":5,\"text\":\"ab\",\"labels\":[\"bad\"]}}]}]}",
        "{\"prompt\":\"a\",\"completions\":[\"one\",\"two\"],\"labels\":[true,false],\"topic\":\"sums\"}",
        ("{\"question\":\"Q?\",\"passages\":[[\"T\",\"first.\"]],\"prediction 1\":\"the end\",\"feedback\":{\"errors\":[{\"error type\":\"I\",\"start\":1,"
         "\"end\":3}],\"corrected-prediction\":\"the\"}}")};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        json_t *v = parse(lines[i]);
        fail_every_allocation(import_all, v);
        json_decref(v);
    }
}

/* ---- the real data ---- */

static const char *data(const char *name)
{
    static char path[512];
    const char *root = getenv("OPERANT_DATA");
    snprintf(path, sizeof path, "%s/%s", root ? root : "", name);
    if (root && op_path_exists(path))
        return path;
    print_message("skip: importing the real %s (%s)\n", name, root ? "it is not under OPERANT_DATA" : "OPERANT_DATA is not set");
    skip();
    return NULL;
}

static void the_fine_grained_feedback_imports_with_all_its_errors(void **state)
{
    (void)state;
    op_import_result r;
    int64_t redos = import_to(in_dir("fg.db"), data("fine-grained-feedback/feedback.json"), &r);
    assert_string_equal(r.form, "fine-grained");
    assert_int_equal(r.lines, 350);
    assert_int_equal(r.marks, 958); /* as many as `errors` in the file */
    assert_int_equal(redos, 336);   /* 350 less 4 corrections that change nothing and 10 that are empty */
    assert_int_equal(r.trials, 4 * 350 + redos);
}

static void hh_rlhf_imports_gzipped(void **state)
{
    (void)state;
    op_import_result r;
    import_to(in_dir("hh.db"), data("hh-rlhf/harmless-base.jsonl.gz"), &r);
    assert_string_equal(r.form, "preference");
    assert_true(r.lines == 1500 && r.trials == 3000 && r.marks == 0);
}

static void the_model_written_evals_import(void **state)
{
    (void)state;
    char dir_path[512];
    snprintf(dir_path, sizeof dir_path, "%s", data("model-written-evals"));
    DIR *d = opendir(dir_path);
    int64_t lines = 0;
    for (struct dirent *x; (x = readdir(d));) {
        char path[800];
        op_import_result r;
        if (!strstr(x->d_name, "corrigible"))
            continue;
        snprintf(path, sizeof path, "%s/%s", dir_path, x->d_name);
        import_to(in_dir("evals.db"), path, &r);
        assert_string_equal(r.form, "evals");
        assert_int_equal(r.trials, 2 * r.lines);
        lines += r.lines;
    }
    closedir(d);
    assert_int_equal(lines, 2468);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_of_a_preference_name_each_other),
        cmocka_unit_test(a_dialogue_keeps_its_turns),
        cmocka_unit_test(labels_and_steps_become_rewards_and_marks),
        cmocka_unit_test(answers_to_a_question_of_behaviour_have_no_reward),
        cmocka_unit_test(spans_and_corrections_of_people_find_their_tokens),
        cmocka_unit_test(every_completion_of_a_step_is_a_trial),
        cmocka_unit_test(labels_of_a_browser_count_utf16_units),
        cmocka_unit_test(what_is_not_known_is_refused_and_not_guessed),
        cmocka_unit_test(a_file_goes_in_whole_or_not_at_all),
        cmocka_unit_test(every_failed_allocation_comes_back_and_leaks_nothing),
        cmocka_unit_test(the_fine_grained_feedback_imports_with_all_its_errors),
        cmocka_unit_test(hh_rlhf_imports_gzipped),
        cmocka_unit_test(the_model_written_evals_import),
    };
    return cmocka_run_group_tests(tests, open_words, close_words);
}
