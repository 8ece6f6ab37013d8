/* operant trials, as a user calls it. */
#include "trial_tools.h"
#include "../verb.h"

static int call(const char *words)
{
    return call_verb(dir, "trials", words);
}

static const char line[] = "{\"prompt\":\"a\",\"response\":\"the\",\"prompt_tokens\":[5],\"tokens\":[%d,%d,%d],\"logprobs\":[-0.5,-1.25,-3],"
                           "\"marks\":[{\"tokens\":[1,2],\"value\":-1,\"by\":\"ann\",\"note\":\"dull\"}],\"alternatives\":[{\"at_token\":1,\"id\":%d,\"logprob\":-2,\"picked\":true}],\"by\":\"ann\"}\n";

static void put_files(void)
{
    char text[1024], tokenizer_path[512];
    const char *fixtures = getenv("FIXTURES");
    op_buf b;
    op_buf_init(&b, 1 << 22);
    snprintf(tokenizer_path, sizeof tokenizer_path, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    assert_ok(op_file_read(tokenizer_path, &b, e));
    assert_ok(op_file_put(in_dir("tokenizer.json"), b.data, b.len, e));
    op_buf_release(&b);
    int n = snprintf(text, sizeof text, line, token_of("t", 1), token_of("h", 1), token_of("e", 1), token_of("o", 1));
    assert_ok(op_file_put(in_dir("in.jsonl"), text, (size_t)n, e));
}

static void what_goes_in_comes_out_the_same(void **state)
{
    (void)state;
    put_files();
    assert_int_equal(call("import in.jsonl store=t.db model=tokenizer.json"), 0);
    assert_shows("in.jsonl: form own, 1 lines, 1 trials, 1 marks");
    assert_int_equal(call("export one.jsonl store=t.db model=tokenizer.json && $OPERANT trials import one.jsonl store=u.db model=tokenizer.json"), 0);
    assert_int_equal(call("export two.jsonl store=u.db model=tokenizer.json && cmp one.jsonl two.jsonl"), 0);
    assert_int_equal(call("export one.jsonl store=t.db"), 1);
    assert_shows("is there already");
}

static void show_marks_tokens_with_signs_where_there_is_no_colour(void **state)
{
    (void)state;
    assert_int_equal(call("show 1 store=t.db model=tokenizer.json"), 0);
    assert_shows("response: t[-h-]e\n");
    assert_shows("-1    -1.250  h");
    assert_shows("=>   -2.000  o");
    assert_shows("mark -1 on tokens 1..1 by ann: dull");
    assert_int_equal(call("show 1 store=t.db"), 0); /* tokens alone */
    assert_shows("[-<");
    assert_int_equal(call("show 2 store=t.db"), 1);
    assert_shows("operant: there is no trial 2");
}

static void list_and_stats_count(void **state)
{
    (void)state;
    assert_int_equal(call("list store=t.db by=ann"), 0);
    assert_shows("3 tokens");
    assert_int_equal(call("list store=t.db by=bob"), 0);
    assert_string_equal(shown, "");
    assert_int_equal(call("stats store=t.db --json"), 0);
    assert_shows("\"marks\": 1");
    assert_int_equal(call("list store=nothing.db"), 1);
    assert_shows("there is no such store");
    assert_int_equal(call("lst store=t.db"), 2);
    assert_int_equal(call("import in.jsonl store=t.db"), 2);
    assert_shows("import needs model=MODEL");
}

static void an_export_is_training_data_token_for_token(void **state)
{
    (void)state;
    char want[128];
    assert_int_equal(call_verb(dir, "preprocess", "model=tokenizer.json train_file=one.jsonl --json"), 0);
    snprintf(want, sizeof want, "\"ids\":[5,%d,%d,%d],\"mask\":[0,0,1,0],\"weights\":[0.0,0.0,-1.0,0.0]", token_of("t", 1), token_of("h", 1), token_of("e", 1));
    assert_shows(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_in_comes_out_the_same),
        cmocka_unit_test(show_marks_tokens_with_signs_where_there_is_no_colour),
        cmocka_unit_test(list_and_stats_count),
        cmocka_unit_test(an_export_is_training_data_token_for_token),
    };
    return cmocka_run_group_tests(tests, open_words, close_words);
}
