/* The page that writes a method from scratch: its listing, as it stands there, is compiled beside this file. */
#include "methods_tools.h"

extern const op_method op_method_fading;

static const test_cue cues[] = {{.words = "Say.", .tags = "{\"reference\": \"In the case. They ask.\"}"}};

static void all_right(op_trial *t)
{
    reward(t, 1);
}

static op_status as_listed(op_session *s, const op_stage *stage, op_error *err)
{
    return op_method_fading.round(s, stage, err);
}

static void the_method_of_the_page_places_one_token_less_in_every_round(void **state)
{
    (void)state;
    world_cues = cues;
    world_n = 1;
    world_teach = all_right;
    spy = as_listed;
    assert_ok(run_stage("fading", "method: spy, tokens: 3, rounds: 5, prompts: 1, group: 2, max_tokens: 8", &op_method_fading, NULL));
    assert_int_equal(n_seen, 10);
    for (int i = 0; i < n_seen; i++)
        assert_int_equal(seen[i].n_forced, seen_call[i] < 3 ? 3 - seen_call[i] : 0);
}

/* A page that names every method and every key, and none that is not there. */
static void the_page_names_every_method_and_every_key(void **state)
{
    (void)state;
    op_buf page;
    char path[512], word[64];
    op_buf_init(&page, 1 << 20);
    snprintf(path, sizeof path, "%s", getenv("PAGE") ? getenv("PAGE") : "docs/methods.md");
    assert_ok(op_file_read(path, &page, e));
    for (size_t i = 0; op_methods[i]; i++) {
        snprintf(word, sizeof word, "\n## %s\n", op_methods[i]->name);
        const char *section = strstr(page.data, word);
        if (!section)
            fail_msg("no section on %s", op_methods[i]->name);
        char *end = strstr(section + 1, "\n## ");
        char kept = *end;
        *end = 0;
        for (const op_option *o = op_methods[i]->table; o && o->key; o++) {
            snprintf(word, sizeof word, "`%s`", o->key);
            if (!strstr(section, word))
                fail_msg("%s: nothing on %s", op_methods[i]->name, o->key);
        }
        *end = kept;
    }
    op_buf_release(&page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_method_of_the_page_places_one_token_less_in_every_round),
        cmocka_unit_test(the_page_names_every_method_and_every_key),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
