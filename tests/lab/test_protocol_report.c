#include "tools.h"
#include "well_formed.h"

#include <math.h>

#include <operant/report.h>
#include <operant/store.h>

#include "base/hash.h"

#define EVIL "</p><script>alert(1)</script> & \\\"quoted\\\""

static const char metrics[] =
    "{\"step\":1,\"stage\":\"marks " EVIL "\",\"stage_round\":1,\"trials\":4,\"sampled_tokens\":40,\"success\":0.25,\"reward\":0.1,\"policy_loss\":0.5,\"kl\":null,\"seconds\":1}\n"
    "{\"step\":2,\"stage\":\"marks\",\"stage_round\":2,\"trials\":8,\"sampled_tokens\":80,\"success\":0.5,\"reward\":0.2,\"policy_loss\":null,\"entropy\":1.5,\"seconds\":1}\n"
    "{\"step\":3,\"stage\":\"again\",\"stage_round\":1,\"trials\":20,\"sampled_tokens\":95,\"success\":0.75,\"reward\":null,\"policy_loss\":0.25,\"entropy\":1.25,\"seconds\":2}\n";

/* A trial of three tokens, the second one marked. */
static int64_t add(op_store *s, const char *key, double reward, double mark, int64_t redo_of)
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
    assert_ok(op_store_add(s, &t, key, e));
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
        int64_t id = add(s, NULL, i, i < 5 ? -0.5 : 1, 0);
        first = i == 4 ? id : first;
    }
    add(s, NULL, 4.5, 0.25, first);
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

static op_buf report_of(const char *command)
{
    op_buf page;
    op_buf_init(&page, 1 << 20);
    assert_ok(op_protocol_report_html(in_dir("."), command, &page, e));
    check_well_formed(page.data);
    return page;
}

static void only_the_runs_own_trials_are_shown_of_a_store_that_others_use_too(void **state)
{
    (void)state;
    static const char identity[] = "{\"a\":\"1\",\"b\":\"2\"}"; /* as the keys of its trials have it: sorted, without blanks */
    char text[600], hex[OP_HASH_HEX], key[64];
    op_store *s;
    op_hash(identity, strlen(identity), hex);
    assert_ok(op_store_open(&s, in_dir("shared.db"), e));
    add(s, NULL, 99, 1, 0);
    add(s, "0123456789abcdef0123456789abcdef/1/1", 98, 1, 0);
    for (int i = 0; i < 2; i++) {
        snprintf(key, sizeof key, "%.32s/1/%d", hex, i);
        add(s, key, i, 1, 0);
    }
    op_store_close(s);
    snprintf(text, sizeof text, "{\"model_name_or_path\":\"some/model\",\"store\":\"%s\",\"stages\":[{\"method\":\"marking\"}]}", in_dir("shared.db"));
    put_file("protocol.json", text);
    put_file("metrics.jsonl", metrics);
    op_buf page = report_of(NULL);
    assert_int_equal(count(page.data, "class=\"talk\""), 0); /* nothing tells whose they are */
    assert_int_equal(count(page.data, "None: <span>the run has no checkpoint"), 1);
    op_buf_release(&page);
    assert_ok(op_dir_make(in_dir("checkpoints/step-00000002"), e));
    put_file("checkpoints/step-00000002/state.json", "{\"identity\": {\"b\": \"2\", \"a\": \"1\"}}");
    page = report_of(NULL);
    assert_int_equal(count(page.data, "class=\"talk\""), 4); /* two, as the best and as the worst */
    assert_int_equal(count(page.data, "reward 1,"), 2);
    assert_int_equal(count(page.data, "reward 9"), 0);
    assert_int_equal(count(page.data, "<code>some/model</code> learned"), 1);
    op_buf_release(&page);
    put_file("results.json", "{\"model\":\"other/model\"}");
    page = report_of(NULL);
    assert_int_equal(count(page.data, "<code>other/model</code> learned"), 1);
    assert_int_equal(count(page.data, "Not finished"), 0);
    op_buf_release(&page);
    assert_ok(op_path_remove(in_dir("shared.db"), e));
    page = report_of(NULL);
    assert_int_equal(count(page.data, "None: <span>the store is not there"), 1);
    assert_false(op_path_exists(in_dir("shared.db")));
    op_buf_release(&page);
    assert_ok(op_path_remove(in_dir("results.json"), e));
}

static void a_report_tells_no_password(void **state)
{
    (void)state;
    put_file("protocol.json", "{\"model\":\"m\",\"store\":\"postgresql://ann:geheim@/db?host=/nowhere/at/all&password=geheim&nonsense=1\",\"more\":[\"http://host:80/a@b\"],\"stages\":[]}");
    put_file("metrics.jsonl", metrics);
    op_buf page = report_of("operant train p.yaml 'store=postgresql://ann:geheim@host/db' store=postgres://ann:geheim@h password=kept");
    assert_int_equal(count(page.data, "geheim"), 0);
    assert_int_equal(count(page.data, "postgresql://ann:...@/db?host=/nowhere/at/all&amp;password=...&amp;nonsense=1&quot;"), 1);
    assert_int_equal(count(page.data, "store=postgresql://ann:...@host/db&#39; store=postgres://ann:...@h password=kept</pre>"), 1);
    assert_int_equal(count(page.data, "http://host:80/a@b"), 1);
    assert_int_equal(count(page.data, "None: <span>postgresql: "), 1); /* which does not like nonsense, and says so with the whole URL */
    op_buf_release(&page);
    assert_ok(op_path_remove(in_dir("checkpoints"), e));
    make_run();
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
        cmocka_unit_test(only_the_runs_own_trials_are_shown_of_a_store_that_others_use_too),
        cmocka_unit_test(a_report_tells_no_password),
        cmocka_unit_test(a_report_without_memory_fails_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
