#include "tools.h"
#include "well_formed.h"

#include <operant/report.h>

#include "lab/page.h"

static json_t *rate(double x)
{
    return json_pack("{si si sf sf sf}", "k", (int)(x * 100), "n", 100, "rate", x, "low", x / 2, "high", (1 + x) / 2);
}

static json_t *class(const char *name, const char *right, double correct)
{
    return json_pack("{ss ss si so so so so so so so so}", "name", name, "right", right, "n", 100, "asks", rate(0.5), "answers", rate(0.25), "declines",
                     rate(0.25), "silent", rate(0), "correct", rate(correct), "hostile", rate(0), "loops", rate(0), "cut", rate(0));
}

#define EVIL "</p><script>alert(1)</script> & \"quoted\" 'single' \001"

static json_t *reply(const char *id, const char *verdict)
{
    return json_pack("{ss ss ss s[{ssss}] ss s[i] sf ss ss ss s[s] sb}", "id", id, "class", "sensitive", "topic", EVIL, "messages", "role", "user", "content",
                     "how " EVIL, "reply", EVIL, "tokens", 1, "logprob", -0.5, "finish", "stop", "verdict", verdict, "rule", EVIL, "hostile", EVIL, "loops", 0);
}

static json_t *results(double correct, const char *verdict)
{
    return json_pack("{s{ss ss si} s{ss ss} s{si ss} s{ss} ss s[oo] s[] s{si so so so so sf sf} s{sf sf} s[{ss ss sf sf sf sf sb sb}] s{si sosf s[{ss si sf}] s{si sf sf}} s[oo]}",
                     "model", "path", "m/" EVIL, "hash", "00", "parameters", 5, "data", "path", EVIL, "hash", "11", "settings", "scope", 0, "x", EVIL,
                     "versions", "operant", "0", "command", "operant assay " EVIL, "classes", class("sensitive", "asks", correct), class("good", "answers", 0.5),
                     "kinds", "total", "n", 200, "correct", rate(correct), "hostile", rate(0), "loops", rate(0), "cut", rate(0.1), "tokens", 20.0, "balanced", correct,
                     "neutral", "perplexity", 20.0, "logprob", -3.0, "aims", "name", EVIL, "of", "classes.sensitive.asks", "measured", correct, "low", 0.1, "high",
                     0.9, "aim", 0.9, "at_least", 1, "met", correct >= 0.9, "words", "texts", 10, "accuracy", rate(0.7), "balanced", 0.7, "classes", "name",
                     "sensitive", "n", 100, "correct", 0.7, "shuffled", "shuffles", 10, "accuracy", 0.4, "balanced", 0.4, "replies", reply("a", verdict),
                     reply("b", "answers"));
}

static op_assay_results make_results(void)
{
    op_assay_results r = {results(0.95, "asks"), results(0.05, "answers")};
    assert_non_null(r.after);
    assert_non_null(r.before);
    return r;
}

static const char *make_metrics(void)
{
    return put_file("metrics.jsonl", "{\"step\":0,\"eval_loss\":3.0}\n{\"step\":1,\"loss\":3.1,\"lr\":1e-3}\n{\"step\":2,\"loss\":2.5,\"lr\":1e-3}\n"
                                     "{\"step\":2,\"eval_loss\":2.6}\n");
}

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (; (text = strstr(text, part)); text++)
        n++;
    return n;
}

static void a_report_escapes_every_text_and_is_well_formed(void **state)
{
    (void)state;
    op_assay_results r = make_results();
    op_buf page;
    op_buf_init(&page, 1 << 20);
    put_file("config.yaml", "");
    assert_ok(op_report_html(&r, make_metrics(), &page, e));
    assert_int_equal(count(page.data, "/config.yaml resume=none"), 1);
    check_well_formed(page.data);
    assert_int_equal(count(page.data, "<script"), 0);
    assert_int_equal(count(page.data, "http"), 0); /* nothing is fetched */
    assert_true(count(page.data, "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot; &#39;single&#39; ") > 10);
    assert_int_equal(count(page.data, "<svg"), 3);
    assert_int_equal(count(page.data, "✓ met"), 1);
    op_buf_release(&page);
    op_assay_results_release(&r);
}

static void a_report_of_a_first_measurement_is_well_formed_too(void **state)
{
    (void)state;
    op_assay_results r = make_results();
    json_decref(r.before);
    r.before = NULL;
    op_buf page;
    op_buf_init(&page, 1 << 20);
    assert_ok(op_report_html(&r, NULL, &page, e));
    check_well_formed(page.data);
    assert_int_equal(count(page.data, "<svg"), 2);
    /* results that lack nearly everything */
    json_decref(r.after);
    r.after = json_pack("{s[] s[]}", "classes", "replies");
    op_buf_clear(&page);
    assert_ok(op_report_html(&r, NULL, &page, e));
    check_well_formed(page.data);
    op_buf_release(&page);
    op_assay_results_release(&r);
}

static void a_training_log_that_is_broken_is_an_error(void **state)
{
    (void)state;
    op_assay_results r = make_results();
    op_buf page;
    op_error e = {0};
    op_buf_init(&page, 1 << 20);
    assert_int_equal(op_report_html(&r, put_file("broken.jsonl", "{\"step\":1,\n"), &page, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "broken.jsonl");
    op_buf_release(&page);
    op_assay_results_release(&r);
}

static void a_loss_plot_bears_one_point_and_no_point(void **state)
{
    (void)state;
    op_buf out;
    op_buf_init(&out, 1 << 20);
    op_page p = {&out, OP_OK};
    assert_ok(op_plot_loss(&p, put_file("one.jsonl", "{\"step\":1,\"loss\":2}\n"), e));
    assert_int_equal(p.status, OP_OK);
    assert_non_null(strstr(out.data, "<polyline"));
    assert_null(strstr(out.data, "nan"));
    assert_null(strstr(out.data, "inf"));
    op_buf_clear(&out);
    assert_ok(op_plot_loss(&p, put_file("none.jsonl", "{\"step\":1}\n"), e));
    assert_int_equal(out.len, 0);
    op_buf_release(&out);
}

static void the_table_fits_a_hundred_columns_and_names_what_was_missed(void **state)
{
    (void)state;
    op_assay_results r = make_results();
    op_buf text;
    op_buf_init(&text, 1 << 20);
    assert_int_equal(op_assay_write_table(&r, &text), OP_OK);
    for (const char *at = text.data; *at; at += strcspn(at, "\n") + 1)
        if (strcspn(at, "\n") > 100)
            fail_msg("too wide: %.*s", (int)strcspn(at, "\n"), at);
    assert_non_null(strstr(text.data, "at least 90%  met"));
    assert_non_null(strstr(text.data, "5% (2-52)"));
    assert_non_null(strstr(text.data, "95% (48-98)"));
    op_buf_clear(&text);
    assert_int_equal(op_assay_write_transcript(&r, &text), OP_OK);
    assert_non_null(strstr(text.data, "BEFORE"));
    assert_non_null(strstr(text.data, "AFTER"));
    op_buf_release(&text);
    op_assay_results_release(&r);
}

/* A run of 40 logged steps of 50, with an evaluation every 20, whose strings are not to be trusted. Returns its directory. */
static const char *make_run(int steps, const char *more_settings)
{
    op_buf b;
    op_buf_init(&b, 1 << 20);
    assert_ok(op_dir_make(in_dir("run"), e));
    op_buf_printf(&b, "model: \"m/<b>&'x'\"\ntrain_file: \"d\\\"<i>.jsonl\"\noutput_dir: \"run\"\n%s", more_settings);
    put_file("run/config.yaml", b.data);
    op_buf_clear(&b);
    for (int i = 0; i <= steps; i++) {
        if (i)
            op_buf_printf(&b, "{\"step\":%d,\"epoch\":%g,\"loss\":%g,\"lr\":1e-4,\"grad_norm\":1.5,\"tokens\":%d,\"tokens_per_s\":500,\"peak_rss_mb\":%d}\n", i,
                          i / 10.0, 3.0 - i * 0.05, i * 1000, 900 + i);
        if (i % 20 == 0)
            op_buf_printf(&b, "{\"step\":%d,\"eval_loss\":%g,\"eval_perplexity\":20}\n", i, i == 20 ? 1.25 : 3.0 - i * 0.04);
    }
    put_file("run/metrics.jsonl", b.data ? b.data : "");
    op_buf_release(&b);
    put_file("run/env.json", "{\"operant\":\"0\",\"compiler\":\"<cc>\",\"libraries\":{\"zlib\":\"1\"},\"dtype\":\"f32\",\"threads\":2,\"steps\":50,"
                             "\"form\":\"messages\",\"truncated\":3,\"data\":{\"items\":1500,\"tokens\":1234567,\"trained_tokens\":7},\"held_out\":{\"items\":31},"
                             "\"model\":{\"family\":\"llama\",\"parameters\":134515008},\"identity\":{\"the base model with hash\":\"abc\",\"seed\":\"1\"}}");
    return in_dir("run");
}

static const char *train_page(op_buf *page, const char *dir)
{
    op_buf_clear(page);
    assert_ok(op_train_report_html(dir, page, e));
    check_well_formed(page->data);
    assert_null(strstr(page->data, "nan"));
    assert_int_equal(count(page->data, "<b>") + count(page->data, "<i>") + count(page->data, "<cc>") + count(page->data, "http"), 0);
    return page->data;
}

static void a_run_report_holds_figures_settings_samples_and_the_command(void **state)
{
    (void)state;
    op_buf b;
    op_buf_init(&b, 1 << 20);
    const char *page = train_page(&b, make_run(40, "learning_rate: 0.0001\nmethod: lora\nlora.r: 8\nweight_decay: 0.25\n"));
    static const char *const holds[] = {
        "An adapter (LoRA, rank 8) beside <code>m/&lt;b&gt;&amp;&#39;x&#39;</code>", "1,500 examples", "the log ends at step 40 of 50",
        "from 3.0000 to <strong>1.4000</strong>", "<td>lowest held-out loss</td><td>1.2500 nats a token</td>", "<td>… after step</td><td>20</td>",
        "<td>peak memory</td><td>940 MB</td>", "<td>parameters</td><td>134,515,008</td>", "<td>tokens</td><td>1,234,567</td>",
        "<code>weight_decay</code></td><td><strong>0.25</strong></td><td>0</td>", "<code>lora.r</code></td><td><strong>8</strong></td><td>16</td>",
        "/run/config.yaml resume=none</pre>", "<td>the base model with hash</td><td><code>abc</code>", "12 of 40 lines", "prefers-color-scheme:dark", "@media print"};
    for (size_t i = 0; i < sizeof holds / sizeof *holds; i++)
        if (!strstr(page, holds[i]))
            fail_msg("the page has no %s", holds[i]);
    assert_int_equal(count(page, "<svg"), 1);
    assert_null(strstr(page, "<code>adam_beta2</code>")); /* at its default, and nobody asks for it first */
    op_buf_release(&b);
}

static void a_run_without_a_step_or_with_all_of_them_has_a_report_too(void **state)
{
    (void)state;
    op_buf b;
    op_buf_init(&b, 1 << 20);
    const char *page = train_page(&b, make_run(0, ""));
    assert_non_null(strstr(page, "the log ends at step 0 of 50"));
    assert_int_equal(count(page, "<svg"), 0);
    page = train_page(&b, make_run(50, "freeze_embedding: true\n"));
    assert_non_null(strstr(page, "The weights but the embedding of "));
    assert_non_null(strstr(page, "All 50 steps are done."));
    assert_null(strstr(page, "<code>lora.r</code>"));
    page = train_page(&b, make_run(1, ""));
    assert_non_null(strstr(page, "1 of 1 lines"));
    put_file("run/env.json", "{}"); /* of an older version */
    train_page(&b, in_dir("run"));
    op_buf_release(&b);
}

static void a_directory_that_is_no_run_has_no_report(void **state)
{
    (void)state;
    op_error why = {0};
    assert_ok(op_dir_make(in_dir("empty"), e));
    assert_int_equal(op_train_report_write(in_dir("empty"), &why), OP_ERR_IO);
    assert_message_has(&why, "config.yaml");
    assert_false(op_path_exists(in_dir("empty/report.html")));
}

static op_status write_run_page(void *ctx, op_error *e)
{
    return op_train_report_write(ctx, e);
}

static void every_failed_allocation_of_a_run_report_comes_back(void **state)
{
    (void)state;
    char dir[300];
    snprintf(dir, sizeof dir, "%s", make_run(3, ""));
    fail_every_allocation(write_run_page, dir);
    assert_true(op_path_exists(in_dir("run/report.html")));
}

static op_status write_page(void *ctx, op_error *e)
{
    op_buf page;
    op_buf_init(&page, 1 << 20);
    op_status status = op_report_html(ctx, in_dir("metrics.jsonl"), &page, e);
    op_buf_release(&page);
    return status;
}

static void memory_that_runs_out_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    op_assay_results r = make_results();
    make_metrics();
    fail_every_allocation(write_page, &r);
    op_assay_results_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_report_holds_figures_settings_samples_and_the_command),
        cmocka_unit_test(a_run_without_a_step_or_with_all_of_them_has_a_report_too),
        cmocka_unit_test(a_directory_that_is_no_run_has_no_report),
        cmocka_unit_test(every_failed_allocation_of_a_run_report_comes_back),
        cmocka_unit_test(a_report_escapes_every_text_and_is_well_formed),
        cmocka_unit_test(a_report_of_a_first_measurement_is_well_formed_too),
        cmocka_unit_test(a_training_log_that_is_broken_is_an_error),
        cmocka_unit_test(a_loss_plot_bears_one_point_and_no_point),
        cmocka_unit_test(the_table_fits_a_hundred_columns_and_names_what_was_missed),
        cmocka_unit_test(memory_that_runs_out_is_an_error_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
