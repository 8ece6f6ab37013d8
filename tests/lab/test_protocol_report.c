#include "tools.h"
#include "well_formed.h"

#include <math.h>

#include <operant/report.h>
#include <operant/store.h>

#define EVIL "</p><script>alert(1)</script> & \\\"quoted\\\""

static const char metrics[] =
    "{\"step\":1,\"stage\":\"marks " EVIL "\",\"stage_round\":1,\"trials\":4,\"sampled_tokens\":40,\"success\":0.25,\"reward\":0.1,\"policy_loss\":0.5,\"kl\":null,\"seconds\":1}\n"
    "{\"step\":2,\"stage\":\"marks\",\"stage_round\":2,\"trials\":8,\"sampled_tokens\":80,\"success\":0.5,\"reward\":0.2,\"policy_loss\":null,\"entropy\":1.5,\"seconds\":1}\n"
    "{\"step\":3,\"stage\":\"again\",\"stage_round\":1,\"trials\":20,\"sampled_tokens\":95,\"success\":0.75,\"reward\":null,\"policy_loss\":0.25,\"entropy\":1.25,\"seconds\":2}\n";

/* A trial of three tokens, the second one marked. */
static int64_t add(op_store *s, double reward, double mark, int64_t redo_of)
{
    op_trial t;
    op_trial_init(&t);
    t.prompt = op_alloc_zero(1, sizeof *t.prompt);
    t.response = op_alloc_zero(3, sizeof *t.response);
    t.n_prompt = 1;
    t.n_response = 3;
    for (int32_t i = 0; i < 3; i++)
        t.response[i] = 70 + i;
    t.messages = json_pack("[{ssss}]", "role", "user", "content", "</p><script> & \"why\"");
    t.has_reward = true;
    t.reward = reward;
    t.redo_of = redo_of;
    t.redo_at = redo_of ? 1 : 0;
    assert_ok(op_trial_add_mark(&t, 1, 2, mark, "<ann>", NULL, e));
    t.by = op_strdup("<ann>");
    assert_ok(op_store_add(s, &t, NULL, e));
    int64_t id = t.id;
    op_trial_release(&t);
    return id;
}

static void make_run(void)
{
    op_store *s;
    assert_ok(op_store_open(&s, in_dir("trials.db"), e));
    int64_t first = 0;
    for (int i = 0; i < 9; i++) {
        int64_t id = add(s, i, i < 5 ? -0.5 : 1, 0);
        first = i == 4 ? id : first;
    }
    add(s, 4.5, 0.25, first);
    op_store_close(s);
    put_file("metrics.jsonl", metrics);
    put_file("protocol.json", "{\"model\":\"none & <such>\",\"stages\":[{\"method\":\"marking\"},{\"method\":\"redo\"}]}");
}

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (; (text = strstr(text, part)); text++)
        n++;
    return n;
}

static void a_protocols_report_shows_stages_curves_and_coloured_transcripts_and_escapes_every_text(void **state)
{
    (void)state;
    op_buf page;
    op_buf_init(&page, 1 << 20);
    make_run();
    assert_ok(op_protocol_report_html(in_dir("."), "operant train 'a <b>'", &page, e));
    check_well_formed(page.data);
    assert_int_equal(count(page.data, "<script"), 0);
    assert_int_equal(count(page.data, "http"), 0);
    assert_int_equal(count(page.data, "<svg"), 4); /* success, reward, policy loss, entropy: the others have no numbers */
    assert_int_equal(count(page.data, "<td>marking</td><td>2</td><td>8</td><td>80</td>"), 1);
    assert_int_equal(count(page.data, "<td>redo</td><td>1</td><td>12</td><td>15</td>"), 1);
    assert_int_equal(count(page.data, "Not finished"), 1);
    assert_int_equal(count(page.data, "operant train &#39;a &lt;b&gt;&#39;"), 1);
    assert_int_equal(count(page.data, "class=\"talk\""), 7);
    assert_int_equal(count(page.data, "redoes trial 5 from token 1"), 1);
    assert_int_equal(count(page.data, "<mark class=\"down\" title=\"-0.50\">71</mark>"), 4); /* the worst three, and what was redone */
    assert_int_equal(count(page.data, "<mark class=\"up\" title=\"+1.00\">71</mark>"), 3);
    const char *best = strstr(page.data, "trial 9, reward 8"), *next = strstr(page.data, "trial 8, reward 7");
    assert_true(best && next && best < next);
    op_buf_release(&page);
    assert_ok(op_protocol_report_write(in_dir("."), NULL, e));
    assert_true(op_path_exists(in_dir("report.html")));
}

static op_status write_page(void *ctx, op_error *e)
{
    op_buf page;
    op_buf_init(&page, 1 << 20);
    op_status s = op_protocol_report_html(ctx, "x", &page, e);
    op_buf_release(&page);
    return s;
}

static void a_report_without_memory_fails_and_leaks_nothing(void **state)
{
    (void)state;
    char dir[300];
    snprintf(dir, sizeof dir, "%s", in_dir("."));
    for (long n = 0;; n += 1 + n / 50) {
        op_error e = {0};
        op_alloc_fail_from(n);
        op_status s = write_page(dir, &e);
        op_alloc_fail_from(-1);
        if (!s)
            break;
        if (s != OP_ERR_NOMEM)
            fail_msg("allocation %ld: %s", n, e.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_protocols_report_shows_stages_curves_and_coloured_transcripts_and_escapes_every_text),
        cmocka_unit_test(a_report_without_memory_fails_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
