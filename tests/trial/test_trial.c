/* Trials in memory and as JSON lines. */
#include "trial_tools.h"

#include <time.h>

static void round_trip(const op_trial *t, const op_tokenizer *k, op_trial *back)
{
    op_buf line;
    json_t *v;
    op_buf_init(&line, 1 << 20);
    assert_ok(op_trial_append(t, k, &line, e));
    assert_ok(op_json_parse(&v, line.data, line.len, "line", e));
    assert_ok(op_trial_from_json(back, v, k, NULL, "line", e));
    json_decref(v);
    op_buf_release(&line);
}

static void a_random_trial_comes_back_from_json_as_it_was(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 600; seed++) {
        op_trial t, back;
        random_trial(&t, seed);
        t.id = (int64_t)seed;
        if (seed % 3 == 0) {
            t.redo_of = (int64_t)seed - 1;
            t.redo_at = t.n_response / 2;
        }
        round_trip(&t, seed % 2 ? tokenizer : NULL, &back); /* without a tokenizer: tokens alone */
        assert_same_trial(&t, &back);
        assert_int_equal(back.id, t.id);
        op_trial_release(&back);
        op_trial_release(&t);
    }
}

static void make(op_trial *t, const int32_t *ids, int32_t n)
{
    op_trial_init(t);
    t->prompt = op_alloc(4);
    t->prompt[0] = 5;
    t->n_prompt = 1;
    t->response = op_alloc_array((size_t)n, 4);
    memcpy(t->response, ids, (size_t)n * 4);
    t->n_response = n;
}

static void halves_of_a_character_keep_their_own_marks(void **state)
{
    (void)state;
    /* "a", U+00E9 in two halves, "b": the halves share code point 1 */
    int32_t ids[] = {token_of("a", 1), token_of("\xc3", 1), token_of("\xa9", 1), token_of("b", 1)}, begin[4], end[4], from, to;
    op_trial t, back;
    char *text;
    make(&t, ids, 4);
    assert_ok(op_trial_text(&t, tokenizer, 0, 4, &text, e));
    assert_string_equal(text, "a\xc3\xa9" "b");
    op_free(text);
    assert_ok(op_trial_text(&t, tokenizer, 0, 2, &text, e));
    assert_string_equal(text, "a\xef\xbf\xbd");
    op_free(text);
    assert_ok(op_trial_offsets(&t, tokenizer, begin, end, e));
    int32_t want_begin[] = {0, 1, 1, 2}, want_end[] = {1, 2, 2, 3};
    assert_memory_equal(begin, want_begin, sizeof begin);
    assert_memory_equal(end, want_end, sizeof end);
    assert_ok(op_trial_span(&t, tokenizer, 1, 2, &from, &to, e));
    assert_true(from == 1 && to == 3);
    assert_int_equal(op_trial_span(&t, tokenizer, 2, 4, &from, &to, e), OP_ERR_ARG);
    assert_ok(op_trial_add_mark(&t, 2, 3, -1, "ann", NULL, e));
    round_trip(&t, tokenizer, &back);
    assert_same_trial(&t, &back);
    op_trial_release(&back);
    op_trial_release(&t);
}

static void a_first_half_without_its_second_is_a_code_point_of_its_own(void **state)
{
    (void)state;
    int32_t ids[] = {token_of("\xc3", 1), token_of("a", 1), token_of("\xc3", 1)}, begin[3], end[3];
    op_trial t;
    make(&t, ids, 3);
    assert_ok(op_trial_offsets(&t, tokenizer, begin, end, e));
    assert_true(begin[0] == 0 && end[0] == 1 && begin[1] == 1 && end[1] == 2 && begin[2] == 2 && end[2] == 3);
    op_trial_release(&t);
}

static void ids_survive_a_text_that_tokenises_differently(void **state)
{
    (void)state;
    /* " the" letter by letter; the tokenizer itself would write fewer tokens */
    int32_t ids[] = {token_of(" ", 1), token_of("t", 1), token_of("h", 1), token_of("e", 1)};
    op_tokens again = {0};
    op_trial t, back;
    assert_ok(op_tokenizer_encode(tokenizer, " the", 4, OP_ENCODE_CONTINUE, &again, e));
    assert_true(again.n < 4);
    op_tokens_release(&again);
    make(&t, ids, 4);
    assert_ok(op_trial_add_mark(&t, 1, 2, 1, "ann", "t", e));
    round_trip(&t, tokenizer, &back);
    assert_same_trial(&t, &back);
    op_trial_release(&back);
    op_trial_release(&t);
}

static op_status read_text(op_trial *t, const char *text)
{
    json_t *v = parse(text);
    op_status s = op_trial_from_json(t, v, tokenizer, &chat, "x.jsonl:7", e);
    json_decref(v);
    return s;
}

static const op_dataset_options as_trials = {.trials = op_trial_example};

static void an_example_of_a_trial_has_its_ids_as_they_are_and_weighs_reward_plus_marks(void **state)
{
    (void)state;
    op_dataset d;
    op_buf lines;
    op_trial t[60];
    size_t at = 0;
    int64_t nothing = 0;
    op_buf_init(&lines, 1 << 22);
    for (int i = 0; i < 60; i++) {
        random_trial(&t[i], (uint64_t)(i + 1));
        assert_ok(op_trial_append(&t[i], i % 3 ? tokenizer : NULL, &lines, e)); /* exported with text, or without a model */
    }
    assert_ok(op_file_put(in_dir("trials.jsonl"), lines.data, lines.len, e));
    assert_ok(op_dataset_read(&d, in_dir("trials.jsonl"), &chat, &as_trials, e));
    assert_string_equal(d.form, "trials");
    for (int i = 0; i < 60; i++) {
        float m[16] = {0};
        bool teaches = false;
        op_trial_token_marks(&t[i], m);
        for (int32_t k = 0; k < t[i].n_response; k++) {
            m[k] += t[i].has_reward ? (float)t[i].reward : 0;
            teaches |= m[k] != 0;
        }
        nothing += !teaches;
        if (teaches) {
            const op_example *x = &d.examples[at++];
            assert_int_equal(x->line, i + 1);
            assert_int_equal(x->n, t[i].n_prompt + t[i].n_response);
            assert_memory_equal(x->ids, t[i].prompt, (size_t)t[i].n_prompt * sizeof *x->ids);
            assert_memory_equal(x->ids + t[i].n_prompt, t[i].response, (size_t)t[i].n_response * sizeof *x->ids);
            for (int32_t k = 0; k < t[i].n_prompt; k++)
                assert_true(x->weights[k] == 0);
            assert_memory_equal(x->weights + t[i].n_prompt, m, (size_t)t[i].n_response * sizeof *m);
        }
        op_trial_release(&t[i]);
    }
    assert_true(at > 20 && nothing > 5);
    assert_int_equal(d.n, at);
    assert_int_equal(d.left_out, nothing);
    op_dataset_release(&d);
    op_buf_release(&lines);
}

static void assert_no_examples(const char *text, const op_dataset_options *o, const char *part)
{
    op_dataset d;
    assert_ok(op_file_put(in_dir("bad.jsonl"), text, strlen(text), e));
    assert_int_not_equal(op_dataset_read(&d, in_dir("bad.jsonl"), &chat, o, e), OP_OK);
    assert_says(part);
}

static void trials_that_cannot_be_examples_say_why(void **state)
{
    (void)state;
    static const char one[] = "{\"prompt_tokens\":[5],\"tokens\":[6,7],\"reward\":1}\n";
    assert_no_examples(one, NULL, "bad.jsonl:1: a line with 'tokens' is a trial, which has no use here");
    assert_no_examples("{\"prompt_tokens\":[5],\"tokens\":[6,7]}\n", &as_trials, "none of its trials has a reward or a mark that is not 0");
    assert_no_examples("{\"id\":9,\"prompt_tokens\":[5],\"tokens\":[6,7],\"marks\":[{\"tokens\":[1,3],\"value\":1}]}\n", &as_trials, "bad.jsonl:1: trial 9");
    assert_no_examples("{\"prompt_tokens\":[5],\"tokens\":[6,7],\"reward\":1}\n{\"text\":\"a b c\"}\n", &as_trials, "bad.jsonl:2: form 'text' after lines of form 'trials'");
    assert_no_examples("{\"prompt_tokens\":[5],\"tokens\":[6,7],\"weight\":2}\n", &as_trials, "unknown key 'weight'");
    const op_dataset_options one_token = {.max_length = 1, .trials = op_trial_example};
    assert_no_examples(one, &one_token, "within max_length");
}

static op_status example_again(void *ctx)
{
    op_example x;
    op_status s = op_trial_example(&x, ctx, &chat, "test", e);
    op_example_release(&x);
    return s;
}

static void every_failed_allocation_of_an_example_comes_back(void **state)
{
    (void)state;
    json_t *line = parse("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tokens\":[6,7],\"reward\":1,\"marks\":[{\"tokens\":[1,2],\"value\":1}]}");
    fail_every_allocation(example_again, line);
    json_decref(line);
}

static void words_become_the_tokens_that_training_on_the_dialogue_sees(void **state)
{
    (void)state;
    op_trial t;
    op_tokens whole = {0};
    json_t *both = parse("[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"the end\"}]");
    assert_ok(op_chat_encode(&chat, both, NULL, false, &whole, NULL, NULL, e));
    assert_ok(read_text(&t, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"response\":\"the end\",\"marks\":[{\"start\":4,\"end\":7,\"value\":-1}],\"topic\":\"x\"}"));
    assert_memory_equal(whole.ids, t.prompt, (size_t)t.n_prompt * 4);
    assert_memory_equal(whole.ids + t.n_prompt, t.response, (size_t)t.n_response * 4);
    assert_int_equal(t.response[t.n_response - 1], op_tokenizer_find(tokenizer, "<|im_end|>"));
    char *marked;
    assert_ok(op_trial_text(&t, tokenizer, t.marks[0].start, t.marks[0].end, &marked, e));
    assert_true(strstr(marked, "end") && t.marks[0].end == t.n_response - 1);
    assert_string_equal(json_string_value(json_object_get(t.tags, "topic")), "x");
    op_free(marked);
    op_trial_release(&t);
    op_tokens_release(&whole);
    json_decref(both);
}

static void a_response_cut_by_length_has_no_end_token(void **state)
{
    (void)state;
    op_trial t;
    assert_ok(read_text(&t, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"response\":\"the\",\"finish_reason\":\"length\"}"));
    assert_false(op_tokenizer_is_special(tokenizer, t.response[t.n_response - 1]));
    op_trial_release(&t);
}

static void assert_refused(const char *text, const char *part)
{
    op_trial t;
    assert_true(read_text(&t, text) != OP_OK);
    assert_says("x.jsonl:7");
    assert_says(part);
}

static void a_wrong_line_names_file_line_trial_and_fault(void **state)
{
    (void)state;
#define T "{\"id\":17,\"prompt\":\"a\",\"response\":\"abc\","
    assert_refused(T "\"marks\":[{\"start\":1,\"end\":4,\"value\":1}]}", "trial 17: mark 0: a mark on code points 1..4, expected");
    assert_refused(T "\"marks\":[{\"start\":-1,\"end\":2,\"value\":1}]}", "code points -1..2");
    assert_refused(T "\"marks\":[{\"start\":1,\"end\":1,\"value\":1}]}", "not empty");
    assert_refused(T "\"marks\":[{\"start\":0,\"end\":1,\"value\":2}]}", "trial 17: a mark of 2");
    assert_refused(T "\"marks\":[{\"start\":0,\"end\":1,\"value\":1,\"by\":\"ann\"},{\"start\":0,\"end\":2,\"value\":-1,\"by\":\"ann\"}]}", "trial 17: token 0 is marked good and bad");
    assert_refused(T "\"marks\":[{\"tokens\":[0,99],\"value\":1}]}", "trial 17: mark 0 on tokens 0..99, expected a span within");
    assert_refused(T "\"marks\":[{\"tokens\":[-1,1],\"value\":1}]}", "never sampled");
    assert_refused(T "\"rewards\":1}", "did you mean 'reward'");
    assert_refused(T "\"tags\":{\"a\":[]}}", "tag 'a' is an array");
    assert_refused(T "\"tokens\":[1,2]}", "not the text of its tokens");
    assert_refused(T "\"logprobs\":[-1,-1]}", "'logprobs' without 'tokens'");
    assert_refused(T "\"finish_reason\":\"tired\"}", "expected stop, length or veto");
    assert_refused("{\"prompt\":\"a\"}", "'response' or 'tokens'");
    assert_refused("{\"response\":\"a\"}", "one of 'messages' and 'prompt'");
    assert_refused("{\"prompt_tokens\":[1],\"tokens\":[5000]}", "token 0 of the response is 5000");
    assert_refused("{\"id\":3,\"prompt_tokens\":[1],\"tokens\":[5,6,7],\"logprobs\":[-1,null,-1],\"marks\":[{\"tokens\":[0,2],\"value\":1}]}", "trial 3: a mark on token 1, which was never sampled");
}

static void marks_beyond_the_maximum_are_refused_and_as_many_as_that_are_checked_fast(void **state)
{
    (void)state;
    enum { N = 30000 };
    op_trial t;
    op_trial_init(&t);
    t.n_prompt = 1;
    t.n_response = N;
    t.prompt = op_alloc_zero(1, 4);
    t.response = op_alloc_zero(N, 4);
    t.n_marks = (int32_t)OP_TRIAL_MARKS_MAX(N);
    t.marks = op_alloc_zero((size_t)t.n_marks, sizeof *t.marks);
    for (int32_t i = 0; i < t.n_marks; i++) /* all overlap: 7 * 10^9 pairs */
        t.marks[i] = (op_mark){.start = (int32_t)((int64_t)i * 7919 % N), .end = N, .value = -1};
    clock_t start = clock();
    assert_ok(op_trial_check(&t, 0, e));
    assert_true(clock() - start < 2 * CLOCKS_PER_SEC);
    assert_int_equal(op_trial_add_mark(&t, 0, 1, -1, NULL, NULL, e), OP_ERR_ARG);
    assert_says("121025 marks on 30000 tokens, expected at most 121024");
    t.marks[777].value = 1;
    assert_int_equal(op_trial_check(&t, 0, e), OP_ERR_ARG);
    assert_says("marked good and bad");
    t.marks[777].value = -1;
    t.n_response--;
    assert_int_equal(op_trial_check(&t, 0, e), OP_ERR_ARG);
    assert_says("121024 marks on 29999 tokens, expected at most 121020");
    op_trial_release(&t);
}

static void teachers_may_disagree_but_one_may_not_contradict_itself(void **state)
{
    (void)state;
    int32_t ids[] = {1, 2, 3};
    float m[3];
    op_trial t;
    make(&t, ids, 3);
    assert_ok(op_trial_add_mark(&t, 0, 2, 1, "ann", NULL, e));
    assert_ok(op_trial_add_mark(&t, 1, 3, -0.5, "bob", NULL, e));
    assert_ok(op_trial_check(&t, 0, e));
    op_trial_token_marks(&t, m);
    assert_true(m[0] == 1 && m[1] == 0.5f && m[2] == -0.5f);
    assert_int_equal(op_trial_first_error(&t), 1);
    t.id = 9;
    assert_ok(op_trial_add_mark(&t, 1, 2, -1, "ann", NULL, e));
    assert_int_equal(op_trial_check(&t, 0, e), OP_ERR_ARG);
    assert_says("trial 9: token 1");
    op_trial_release(&t);
}

static op_status copy_and_back(void *ctx)
{
    op_trial copy, back;
    op_buf line;
    json_t *v = NULL;
    op_status s = op_trial_copy(&copy, ctx, e);
    if (s)
        return s;
    op_buf_init(&line, 1 << 20);
    s = op_trial_append(&copy, tokenizer, &line, e);
    s = s ? s : op_json_parse(&v, line.data, line.len, "line", e);
    s = s ? s : op_trial_from_json(&back, v, tokenizer, &chat, "line", e);
    if (!s) {
        assert_same_trial(ctx, &back);
        op_trial_release(&back);
    }
    json_decref(v);
    op_buf_release(&line);
    op_trial_release(&copy);
    return s;
}

static op_status read_words(void *ctx)
{
    op_trial t;
    op_status s = op_trial_from_json(&t, ctx, tokenizer, &chat, "line", e);
    if (!s)
        op_trial_release(&t);
    return s;
}

static void every_failed_allocation_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    op_trial t;
    uint64_t seed = 1; /* one with everything in it */
    for (;; seed++) {
        random_trial(&t, seed);
        if (t.n_marks > 1 && t.n_alternatives > 1 && t.logprobs && t.messages && t.by)
            break;
        op_trial_release(&t);
    }
    fail_every_allocation(copy_and_back, &t);
    op_trial_release(&t);
    json_t *v = parse("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"response\":\"the end\",\"marks\":[{\"start\":4,\"end\":7,\"value\":-1,\"note\":\"n\"}],"
                      "\"alternatives\":[{\"at_token\":1,\"text\":\"ab\"}]}");
    fail_every_allocation(read_words, v);
    json_decref(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_random_trial_comes_back_from_json_as_it_was),
        cmocka_unit_test(halves_of_a_character_keep_their_own_marks),
        cmocka_unit_test(a_first_half_without_its_second_is_a_code_point_of_its_own),
        cmocka_unit_test(ids_survive_a_text_that_tokenises_differently),
        cmocka_unit_test(an_example_of_a_trial_has_its_ids_as_they_are_and_weighs_reward_plus_marks),
        cmocka_unit_test(trials_that_cannot_be_examples_say_why),
        cmocka_unit_test(every_failed_allocation_of_an_example_comes_back),
        cmocka_unit_test(words_become_the_tokens_that_training_on_the_dialogue_sees),
        cmocka_unit_test(a_response_cut_by_length_has_no_end_token),
        cmocka_unit_test(a_wrong_line_names_file_line_trial_and_fault),
        cmocka_unit_test(marks_beyond_the_maximum_are_refused_and_as_many_as_that_are_checked_fast),
        cmocka_unit_test(teachers_may_disagree_but_one_may_not_contradict_itself),
        cmocka_unit_test(every_failed_allocation_comes_back_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, open_words, close_words);
}
