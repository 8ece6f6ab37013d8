#include "tools.h"

static op_tokenizer *tokenizer;
static op_template *tmpl;
static op_chat chat;

static int open_chat(void **state)
{
    (void)state;
    tokenizer = open_kind("smollm");
    tmpl = parse_template(CHATML);
    chat = (op_chat){.tokenizer = tokenizer, .tmpl = tmpl};
    return make_test_dir(state);
}

static int close_chat(void **state)
{
    op_tokenizer_free(tokenizer);
    op_template_free(tmpl);
    return remove_test_dir(state);
}

/* "text{weight}" for every stretch of tokens of one weight; stretches of weight 0 are shown as their last 8 bytes. */
static void show(const op_example *x, char *out, size_t size)
{
    size_t used = 0;
    op_buf run;
    op_buf_init(&run, 100000);
    out[0] = 0;
    for (int32_t i = 0; i < x->n; i++) {
        size_t n;
        const char *bytes = op_tokenizer_bytes(tokenizer, x->ids[i], &n);
        assert_int_equal(op_buf_add(&run, bytes, n), OP_OK);
        if (i + 1 < x->n && x->weights[i + 1] == x->weights[i])
            continue;
        const char *s = run.data;
        if (x->weights[i] == 0 && run.len > 8)
            s = run.data + run.len - 8;
        used += (size_t)snprintf(out + used, size - used, "%s{%g}", s, (double)x->weights[i]);
        op_buf_clear(&run);
    }
    op_buf_release(&run);
}

static void assert_example_with(const char *line, const op_dataset_options *o, const char *want)
{
    op_error e;
    op_example x;
    char got[1000];
    json_t *object = parse_json(line);
    check(op_example_from_json(&x, object, &chat, o, "test", &e), &e);
    show(&x, got, sizeof got);
    assert_string_equal(got, want);
    op_example_release(&x);
    json_decref(object);
}

static void assert_example(const char *line, const char *want)
{
    assert_example_with(line, NULL, want);
}

static void assert_refused(const char *line, op_status status, const char *part)
{
    op_error e;
    op_example x;
    json_t *object = parse_json(line);
    if (op_example_from_json(&x, object, &chat, NULL, "file:7", &e) != status)
        fail_msg("'%s': '%s'", line, e.message);
    assert_message_has(&e, "file:7: ");
    assert_message_has(&e, part);
    assert_null(x.ids);
    json_decref(object);
}

static void every_public_form_trains_what_the_assistant_says(void **state)
{
    (void)state;
    assert_example("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"an answer\"}],\"id\":3,\"topic\":\"t\"}",
                   "sistant\n{0}an answer<|im_end|>{1}\n{0}");
    assert_example("{\"conversations\":[{\"from\":\"system\",\"value\":\"s\"},{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\"}]}",
                   "sistant\n{0}a<|im_end|>{1}\n{0}");
    assert_example("{\"instruction\":\"do\",\"input\":\"it\",\"output\":\"done\"}", "sistant\n{0}done<|im_end|>{1}\n{0}");
    assert_example("{\"instruction\":\"do\",\"input\":\"\",\"output\":\"done\"}", "sistant\n{0}done<|im_end|>{1}\n{0}");
    assert_example("{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"old\"},{\"role\":\"user\",\"content\":\"r\"}],"
                   "\"completion\":[{\"role\":\"assistant\",\"content\":\"new\"}]}",
                   "sistant\n{0}new<|im_end|>{1}\n{0}");
}

static void text_outside_a_template_ends_with_the_end_token_once_it_has_one(void **state)
{
    (void)state;
    assert_example("{\"prompt\":\"2 + 2 =\",\"completion\":\" 4\"}", "2 + 2 ={0} 4{1}");
    assert_example("{\"text\":\"the reason\"}", "th{0}e reason{1}");
    op_error e;
    op_buf json;
    op_tokenizer *bare = tokenizer;
    op_buf_init(&json, 1 << 20);
    check(op_file_read(fixture("smollm.json"), &json, &e), &e);
    put_text("tokenizer.json", json.data);
    put_text("tokenizer_config.json", "{\"eos_token\":\"<|endoftext|>\"}");
    check(op_tokenizer_open(&tokenizer, test_dir, &e), &e);
    chat.tokenizer = tokenizer;
    assert_example("{\"prompt\":\"2 + 2 =\",\"completion\":\" 4\"}", "2 + 2 ={0} 4<|endoftext|>{1}");
    assert_example("{\"text\":\"the reason<|endoftext|>\"}", "th{0}e reason<|endoftext|>{1}");
    op_tokenizer_free(tokenizer);
    chat.tokenizer = tokenizer = bare;
    op_buf_release(&json);
}

static void a_weight_multiplies_a_line_and_stands_for_a_turn(void **state)
{
    (void)state;
    assert_example("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\",\"weight\":-0.5},"
                   "{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"content\":\"b\"},{\"role\":\"user\",\"content\":\"s\"},"
                   "{\"role\":\"assistant\",\"content\":\"c\",\"weight\":0}],\"weight\":2}",
                   "sistant\n{0}a<|im_end|>{-1}sistant\n{0}b<|im_end|>{2}m_end|>\n{0}");
}

static void marks_set_the_weight_of_the_tokens_they_touch(void **state)
{
    (void)state;
    assert_example("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"response\":\"a b \xc3\xa9 d\","
                   "\"marks\":[{\"start\":2,\"end\":3,\"value\":-1,\"by\":\"me\"},{\"start\":4,\"end\":5,\"value\":0.5}]}",
                   "sistant\n{0}a{1} b{-1} {1}\xc3\xa9{0.5} d<|im_end|>{1}\n{0}");
    assert_example("{\"prompt\":\"q:\",\"response\":\"abc\",\"marks\":[{\"start\":0,\"end\":1,\"value\":-1}],\"weight\":3}", "q:{0}a{-3}bc{3}");
    /* what operant generate writes is no trial: it lacks the prompt's tokens */
    assert_example("{\"prompt\":\"q:\",\"response\":\"abc\",\"tokens\":[1,2],\"logprobs\":[-1,-2],\"weight\":2}", "q:{0}abc{2}");
}

static void marks_follow_a_response_that_the_template_trims(void **state)
{
    (void)state;
    op_template *plain = tmpl;
    tmpl = parse_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}"
                          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
    chat.tmpl = tmpl;
    assert_example("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"response\":\"  a b \",\"marks\":[{\"start\":4,\"end\":5,\"value\":-1}]}",
                   "sistant\n{0}a{1} b{-1}<|im_end|>{1}\n{0}");
    op_template_free(tmpl);
    chat.tmpl = tmpl = plain;
}

static void only_the_last_turn_is_trained_on_request(void **state)
{
    (void)state;
    const op_dataset_options last = {.last_turn_only = 1};
    assert_example_with("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"},"
                        "{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
                        &last, "sistant\n{0}b<|im_end|>{1}\n{0}");
}

static void the_first_tokens_of_every_learned_turn_weigh_more_on_request(void **state)
{
    (void)state;
    const op_dataset_options onset = {.onset_tokens = 1, .onset_weight = 4};
    assert_example_with("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"},"
                        "{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"content\":\"b\",\"weight\":-2}]}",
                        &onset, "sistant\n{0}a{4}<|im_end|>{1}sistant\n{0}b{-8}<|im_end|>{-2}\n{0}");
}

static void what_is_not_understood_is_an_error_with_its_place(void **state)
{
    (void)state;
    assert_refused("{\"mesages\":[]}", OP_ERR_FORMAT, "the first key is 'mesages'");
    assert_refused("{}", OP_ERR_FORMAT, "no known form");
    assert_refused("[]", OP_ERR_FORMAT, "no known form");
    assert_refused("{\"text\":\"a b\",\"wieght\":1}", OP_ERR_FORMAT, "unknown key 'wieght' in text, did you mean 'weight'?");
    assert_refused("{\"text\":7}", OP_ERR_FORMAT, "'text' is not a string");
    assert_refused("{\"text\":\"a\",\"weight\":\"1\"}", OP_ERR_FORMAT, "weight");
    assert_refused("{\"messages\":[]}", OP_ERR_FORMAT, "not a list with something in it");
    assert_refused("{\"messages\":[{\"content\":\"x\"}]}", OP_ERR_FORMAT, "message 0 is not an object with a 'role'");
    assert_refused("{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"wight\":1}]}", OP_ERR_FORMAT, "unknown key 'wight' in a message");
    assert_refused("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", OP_ERR_FORMAT, "has a weight other than 0");
    assert_refused("{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"weight\":1}]}", OP_ERR_UNSUPPORTED, "not an assistant's");
    assert_refused("{\"prompt\":\"x\",\"completion\":[]}", OP_ERR_FORMAT, "neither two strings nor two lists");
    assert_refused("{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":\"z\"}", OP_ERR_UNSUPPORTED, "preferences");
    assert_refused("{\"conversations\":[{\"from\":\"robot\",\"value\":\"x\"}]}", OP_ERR_FORMAT, "from 'robot'");
    assert_refused("{\"instruction\":\"x\",\"output\":3}", OP_ERR_FORMAT, "must be strings");
    assert_refused("{\"prompt\":\"x\",\"response\":\"abc\",\"marks\":[{\"start\":1,\"end\":4,\"value\":1}]}", OP_ERR_FORMAT, "mark 0 from 1 to 4");
    assert_refused("{\"prompt\":\"x\",\"response\":\"abc\",\"marks\":[{\"start\":1,\"end\":1,\"value\":1}]}", OP_ERR_FORMAT, "empty or outside");
    assert_refused("{\"prompt\":\"x\",\"response\":\"abc\",\"marks\":[{\"start\":-1,\"end\":1,\"value\":1}]}", OP_ERR_FORMAT, "empty or outside");
    assert_refused("{\"prompt\":\"x\",\"response\":\"abc\",\"marks\":[{\"start\":0,\"end\":1}]}", OP_ERR_FORMAT, "needs numbers");
    assert_refused("{\"prompt\":\"x\",\"response\":\"abc\",\"reward\":1}", OP_ERR_FORMAT, "unknown key 'reward'");
    assert_refused("{\"response\":\"abc\"}", OP_ERR_FORMAT, "one of 'messages' and 'prompt'");
}

static const char lines[] = "{\"text\":\"the reason why\"}\n{\"text\":\"one two three four five six\"}\n";

static void a_file_is_read_in_order_and_counted(void **state)
{
    (void)state;
    op_error e;
    op_dataset d;
    const char *path = put_text("a.jsonl", lines);
    check(op_dataset_read(&d, path, &chat, NULL, &e), &e);
    assert_int_equal(d.n, 2);
    assert_string_equal(d.form, "text");
    assert_int_equal(d.examples[1].line, 2);
    assert_int_equal(d.tokens, d.examples[0].n + d.examples[1].n);
    assert_int_equal(d.trained_tokens, d.tokens - 2);
    assert_int_equal(d.truncated, 0);
    assert_string_equal(d.hash, "8f5597fd13cd2de48654bcdfde215a2cf0c2ddc3f8eb1422d48c7c8c1438d67a");
    op_dataset_release(&d);
}

static void examples_are_cut_at_max_length_and_counted(void **state)
{
    (void)state;
    op_error e;
    op_dataset d;
    const op_dataset_options four = {.max_length = 4};
    const char *path = put_text("a.jsonl", lines);
    check(op_dataset_read(&d, path, &chat, &four, &e), &e);
    assert_int_equal(d.examples[1].n, 4);
    assert_int_equal(d.truncated, 2 - (d.examples[0].n < 4));
    op_dataset_release(&d);
    path = put_text("b.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}");
    assert_int_equal(op_dataset_read(&d, path, &chat, &four, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "b.jsonl:1: none of the 4 tokens has a weight other than 0 within max_length");
}

static void a_file_holds_one_form_and_something(void **state)
{
    (void)state;
    op_error e;
    op_dataset d;
    const char *path = put_text("a.jsonl", "{\"text\":\"a b\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n");
    assert_int_equal(op_dataset_read(&d, path, &chat, NULL, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "a.jsonl:2: form 'prompt+completion' after lines of form 'text'");
    assert_int_equal(op_dataset_read(&d, put_text("b.jsonl", "\n"), &chat, NULL, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "b.jsonl: no examples");
    assert_int_equal(op_dataset_read(&d, path_in(test_dir, "none.jsonl"), &chat, NULL, &e), OP_ERR_IO);
}

static op_status read_once(void *ctx, op_error *e)
{
    op_dataset d;
    op_status s = op_dataset_read(&d, ctx, &chat, NULL, e);
    if (s)
        assert_null(d.examples);
    op_dataset_release(&d);
    return s;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char *const files[] = {
        lines, "{\"prompt\":\"x\",\"completion\":\"y z\"}", "{\"instruction\":\"do\",\"input\":\"x\",\"output\":\"done\"}",
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\",\"weight\":2}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"response\":\"a b\",\"marks\":[{\"start\":0,\"end\":1,\"value\":-1}]}"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[256];
        strcpy(path, put_text("f.jsonl", files[i]));
        assert_true(fail_every_allocation(read_once, path) > 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_public_form_trains_what_the_assistant_says),
        cmocka_unit_test(text_outside_a_template_ends_with_the_end_token_once_it_has_one),
        cmocka_unit_test(a_weight_multiplies_a_line_and_stands_for_a_turn),
        cmocka_unit_test(marks_set_the_weight_of_the_tokens_they_touch),
        cmocka_unit_test(marks_follow_a_response_that_the_template_trims),
        cmocka_unit_test(only_the_last_turn_is_trained_on_request),
        cmocka_unit_test(the_first_tokens_of_every_learned_turn_weigh_more_on_request),
        cmocka_unit_test(what_is_not_understood_is_an_error_with_its_place),
        cmocka_unit_test(a_file_is_read_in_order_and_counted),
        cmocka_unit_test(examples_are_cut_at_max_length_and_counted),
        cmocka_unit_test(a_file_holds_one_form_and_something),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, open_chat, close_chat);
}
