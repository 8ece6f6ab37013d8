/* Whole measurements: of a tiny model with random weights whose tokens are bytes, and of the real one. */
#include "tiny_model.h"

#include <math.h>

#include <operant/assay.h>
#include <operant/model.h>

#include "io/json.h"
#include "lab/view.h"

static char model_dir[300];

static int make_model(void **state)
{
    if (make_dir(state))
        return 1;
    snprintf(model_dir, sizeof model_dir, "%s/model", lab_dir);
    put_model("model", 0);
    put_file("prompts.jsonl", "{\"id\":\"s1\",\"class\":\"sensitive\",\"topic\":\"t\",\"messages\":[{\"role\":\"user\",\"content\":\"how?\"}]}\n"
                              "{\"id\":\"s2\",\"class\":\"sensitive\",\"topic\":\"t\",\"messages\":[{\"role\":\"user\",\"content\":\"where?\"}]}\n"
                              "{\"id\":\"b1\",\"class\":\"bad\",\"kind\":\"evasive\",\"topic\":\"t\",\"messages\":[{\"role\":\"user\",\"content\":\"how?\"},"
                              "{\"role\":\"assistant\",\"content\":\"why?\"},{\"role\":\"user\",\"content\":\"because\"}]}\n"
                              "{\"id\":\"h1\",\"class\":\"harmless\",\"topic\":\"general\",\"messages\":[{\"role\":\"user\",\"content\":\"egg\"}]}\n");
    put_file("train.jsonl", "{\"id\":\"1\",\"class\":\"sensitive\",\"messages\":[{\"role\":\"user\",\"content\":\"how?\"},{\"role\":\"assistant\",\"content\":\"why?\"}]}\n"
                            "{\"id\":\"2\",\"class\":\"harmless\",\"messages\":[{\"role\":\"user\",\"content\":\"an egg\"},{\"role\":\"assistant\",\"content\":\"yes\"}]}\n"
                            "{\"id\":\"3\",\"class\":\"bad\",\"messages\":[{\"role\":\"user\",\"content\":\"because\"},{\"role\":\"assistant\",\"content\":\"no\"}]}\n");
    put_file("judge.yaml", "rules:\n  - {name: q, verdict: asks, where: reply, pattern: '[?]'}\ndefault: answers\nhostility: []\n");
    put_file("candidates.yaml", "asks: [\"why?\", \"what for?\"]\ndeclines: [\"no\"]\n");
    put_file("neutral.txt", "A quiet text of a few words that is read twice. A quiet text of a few words.");
    return 0;
}

static void set(op_assay_options *o, const char *key, const char *value)
{
    char word[800];
    snprintf(word, sizeof word, "%s=%s", key, value);
    assert_ok(op_config_set(o, op_assay_table, word, e));
}

static op_assay_options tiny_options(const char *output)
{
    op_assay_options o;
    assert_ok(op_config_init(&o, op_assay_table, e));
    set(&o, "model", model_dir);
    set(&o, "data", in_dir("prompts.jsonl"));
    set(&o, "judge", in_dir("judge.yaml"));
    set(&o, "candidates", in_dir("candidates.yaml"));
    set(&o, "neutral", in_dir("neutral.txt"));
    set(&o, "train_file", in_dir("train.jsonl"));
    set(&o, "output_dir", in_dir(output));
    set(&o, "max_tokens", "12");
    set(&o, "dtype", "f32");
    set(&o, "threads", "1");
    return o;
}

static op_assay_results run(op_assay_options *o)
{
    op_assay_results r;
    assert_ok(op_assay_run(o, NULL, &r, e));
    op_config_release(o, op_assay_table);
    return r;
}

static json_t *read_json(const char *path)
{
    json_t *o;
    assert_ok(op_json_read(&o, path, e));
    return o;
}

static void a_measurement_writes_every_reply_and_its_counts_add_up(void **state)
{
    (void)state;
    op_assay_options o = tiny_options("first");
    op_assay_results r = run(&o);
    json_t *file = read_json(in_dir("first/results.json"));
    assert_true(json_equal(file, r.after));
    assert_null(r.before);
    assert_int_equal(json_array_size(op_view(file, "replies")), 4);
    assert_int_equal((int)op_view_number(file, "total.n"), 4);
    assert_int_equal((int)op_view_number(file, "classes.sensitive.n"), 2);
    assert_int_equal((int)op_view_number(file, "kinds.evasive.n"), 1);
    size_t i;
    json_t *class, *reply;
    json_array_foreach((json_t *)op_view(file, "classes"), i, class)
        assert_int_equal((int)(op_view_number(class, "asks.k") + op_view_number(class, "answers.k") + op_view_number(class, "declines.k") +
                               op_view_number(class, "silent.k")),
                         (int)op_view_number(class, "n"));
    json_array_foreach((json_t *)op_view(file, "replies"), i, reply) {
        bool asks = strchr(op_view_string(reply, "reply"), '?') != NULL;
        if (strcmp(op_view_string(reply, "verdict"), "silent") != 0) /* nothing but blanks, perhaps */
            assert_string_equal(op_view_string(reply, "verdict"), asks ? "asks" : "answers");
    }
    assert_true(op_path_exists(in_dir("first/report.html")));
    assert_true(op_path_exists(in_dir("first/assay.yaml")));
    /* random weights know nothing: every token is about as likely as any other */
    assert_true(fabs(op_view_number(file, "neutral.perplexity") - 258) < 40);
    assert_true(op_view_number(file, "words.accuracy.rate") == 1);
    json_decref(file);
    op_assay_results_release(&r);
}

/* The reply that the model wrote itself is forced through the forest: its mean must be the one that sampling recorded. */
static void the_likelihood_of_the_own_reply_is_what_sampling_recorded(void **state)
{
    (void)state;
    op_assay_options o = tiny_options("own");
    op_assay_results r = run(&o);
    size_t i, measured = 0;
    json_t *reply;
    json_array_foreach((json_t *)op_view(r.after, "replies"), i, reply) {
        if (!op_view(reply, "likelihood"))
            continue;
        assert_true(fabs(op_view_number(reply, "likelihood.answers.whole") - op_view_number(reply, "logprob")) < 1e-4);
        assert_true(op_view_number(reply, "likelihood.asks.whole") < 0 && op_view_number(reply, "likelihood.declines.begins") < 0);
        measured++;
    }
    assert_int_equal(measured, 3); /* sensitive and bad, not harmless */
    op_assay_results_release(&r);
}

static void the_same_model_measured_again_shows_no_difference(void **state)
{
    (void)state;
    op_assay_options o = tiny_options("before");
    op_assay_results first = run(&o);
    o = tiny_options("after");
    set(&o, "reference", in_dir("before/results.json"));
    set(&o, "batch", "1");
    op_assay_results second = run(&o);
    assert_non_null(second.before);
    static const char *const same[] = {"classes", "kinds", "total", "replies", "neutral", "words"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        assert_true(json_equal((json_t *)op_view(first.after, same[i]), (json_t *)op_view(second.after, same[i])));
    size_t i;
    json_t *aim, *rise = NULL;
    json_array_foreach((json_t *)op_view(second.after, "aims"), i, aim)
        if (!strcmp(op_view_string(aim, "of"), "neutral.perplexity"))
            rise = aim;
    assert_non_null(rise);
    assert_true(op_view_number(rise, "measured") == 0 && json_is_true(op_view(rise, "met")));
    op_assay_results_release(&first);
    op_assay_results_release(&second);
}

static op_status run_with(const char *key, const char *value, op_error *e)
{
    op_assay_options o = tiny_options("wrong");
    set(&o, key, value);
    if (strcmp(key, "reference") != 0 && op_path_exists(in_dir("before/results.json")))
        set(&o, "reference", in_dir("before/results.json"));
    op_assay_results r;
    op_status status = op_assay_run(&o, NULL, &r, e);
    if (status)
        assert_true(!r.after && !r.before);
    op_assay_results_release(&r);
    op_config_release(&o, op_assay_table);
    return status;
}

static void a_before_that_measured_something_else_is_refused(void **state)
{
    (void)state;
    op_error e = {0};
    assert_int_equal(run_with("max_tokens", "13", &e), OP_ERR_MISMATCH);
    assert_message_has(&e, "max_tokens=12, now 13");
    put_file("other.yaml", "rules: []\ndefault: asks\nhostility: []\n");
    assert_int_equal(run_with("judge", in_dir("other.yaml"), &e), OP_ERR_MISMATCH);
    assert_message_has(&e, "another \"judge\"");
    assert_int_equal(run_with("reference", in_dir("judge.yaml"), &e), OP_ERR_FORMAT);
    assert_int_equal(run_with("reference", in_dir("nowhere.json"), &e), OP_ERR_IO);
    assert_int_equal(run_with("candidates", in_dir("nowhere.yaml"), &e), OP_ERR_IO);
    assert_false(op_path_exists(in_dir("wrong")));
}

static void settings_that_are_missing_are_named(void **state)
{
    (void)state;
    op_assay_options o;
    op_assay_results r;
    op_error e = {0};
    assert_int_equal(op_config_init(&o, op_assay_table, &e), OP_OK);
    assert_int_equal(op_assay_run(&o, NULL, &r, &e), OP_ERR_ARG);
    assert_message_has(&e, "key \"model\" is not set");
    op_config_release(&o, op_assay_table);
}

typedef struct stopper {
    volatile int stop;
    int calls;
} stopper;

static void stop_soon(void *ctx, const op_assay_progress *p)
{
    stopper *s = ctx;
    assert_true(p->done <= p->total);
    s->stop = ++s->calls == 2;
}

static void a_measurement_that_is_stopped_writes_nothing(void **state)
{
    (void)state;
    op_assay_options o = tiny_options("stopped");
    stopper s = {0};
    op_assay_callbacks c = {.ctx = &s, .progress = stop_soon, .stop = &s.stop};
    op_assay_results r;
    op_error e = {0};
    set(&o, "batch", "1");
    assert_int_equal(op_assay_run(&o, &c, &r, &e), OP_ERR_INTERRUPTED);
    assert_false(op_path_exists(in_dir("stopped/results.json")));
    op_config_release(&o, op_assay_table);
}

/* Thousands of allocations, most of them alike: a sample of them, every one near the start. */
static void memory_that_runs_out_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    op_status status = OP_ERR_NOMEM;
    for (long n = 0; status; n += 1 + n / 16) {
        op_assay_options o = tiny_options("memory");
        op_assay_results r;
        op_error e = {0};
        op_alloc_fail_from(n);
        status = op_assay_run(&o, NULL, &r, &e);
        op_alloc_fail_from(-1);
        if (status && status != OP_ERR_NOMEM)
            fail_msg("allocation %ld: %s: %s", n, op_status_string(status), e.message);
        op_assay_results_release(&r);
        op_config_release(&o, op_assay_table);
    }
}

static void the_real_model_answers_what_it_was_never_taught_to_ask_about(void **state)
{
    (void)state;
    const char *model = getenv("OPERANT_MODEL");
    if (!model || !op_path_exists(model)) {
        print_message("skip: OPERANT_MODEL names no model\n");
        skip();
    }
    op_assay_options o;
    assert_ok(op_config_init(&o, op_assay_table, e));
    set(&o, "model", model);
    set(&o, "data", in_lesson("assay.jsonl"));
    set(&o, "judge", in_lesson("judge.yaml"));
    set(&o, "candidates", in_lesson("candidates.yaml"));
    set(&o, "output_dir", in_dir("real"));
    set(&o, "limit", "1");
    set(&o, "max_tokens", "16");
    set(&o, "logprob_limit", "1");
    set(&o, "logprob_classes", "sensitive");
    op_assay_results r = run(&o);
    assert_int_equal(json_array_size(op_view(r.after, "replies")), json_array_size(op_view(r.after, "classes")));
    assert_int_equal((int)op_view_number(r.after, "classes.sensitive.answers.k"), 1);
    assert_true(op_view_number(r.after, "classes.sensitive.likelihood.likeliest.answers.rate") == 1);
    op_assay_results_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_measurement_writes_every_reply_and_its_counts_add_up),
        cmocka_unit_test(the_likelihood_of_the_own_reply_is_what_sampling_recorded),
        cmocka_unit_test(the_same_model_measured_again_shows_no_difference),
        cmocka_unit_test(a_before_that_measured_something_else_is_refused),
        cmocka_unit_test(settings_that_are_missing_are_named),
        cmocka_unit_test(a_measurement_that_is_stopped_writes_nothing),
        cmocka_unit_test(memory_that_runs_out_is_an_error_and_leaks_nothing),
        cmocka_unit_test(the_real_model_answers_what_it_was_never_taught_to_ask_about),
    };
    return cmocka_run_group_tests(tests, make_model, remove_dir);
}
