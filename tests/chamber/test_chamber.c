#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <operant/chamber.h>

#include "base/mem.h"
#include "chamber/parts.h"

#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        op_error error_ = {0};                                                                                         \
        op_error *e = &error_;                                                                                         \
        if (call)                                                                                                      \
            fail_msg("%s", error_.message);                                                                            \
    } while (0)

enum { EPISODES = 1500 };

static op_chamber *open_world(const char *const *words)
{
    op_chamber_options o;
    op_chamber *c;
    assert_ok(op_config_init(&o, op_chamber_table, e));
    for (; *words; words++)
        assert_ok(op_config_set(&o, op_chamber_table, *words, e));
    assert_ok(op_chamber_open(&c, &o, e));
    op_config_release(&o, op_chamber_table);
    return c;
}
#define OPEN(...) open_world((const char *const[]){__VA_ARGS__, NULL})
#define EVERYTHING "distractors=0.5", "distractor_strength=3", "misleading=0.5", "chain_max=12", "numbers=20"

static const char *tag(const op_chamber_episode *x, const char *key)
{
    const char *s = json_string_value(json_object_get(x->tags, key));
    return s ? s : "";
}

static bool same_reply(const op_chamber_reply *a, const op_chamber_reply *b)
{
    return !strcmp(a->text, b->text) && a->n == b->n && !memcmp(a->segments, b->segments, (size_t)a->n * sizeof *a->segments);
}

static bool same(const op_chamber_episode *a, const op_chamber_episode *b)
{
    bool equal = a->rule == b->rule && a->distance == b->distance && !strcmp(a->prompt, b->prompt) && same_reply(&a->right, &b->right) && a->n_wrong == b->n_wrong;
    for (int i = 0; equal && i < a->n_wrong; i++)
        equal = same_reply(&a->wrong[i], &b->wrong[i]);
    return equal && json_equal(a->tags, b->tags);
}

static bool has_word(const char *text, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = text; (at = strstr(at, word)); at++)
        if ((at == text || !isalpha((unsigned char)at[-1])) && !isalpha((unsigned char)at[n]))
            return true;
    return false;
}

static void an_episode_is_fixed_by_its_index_and_its_words_alone(void **state)
{
    (void)state;
    op_chamber *c = OPEN(EVERYTHING, "settings=both", "seed=7"), *other = OPEN(EVERYTHING, "settings=both", "seed=7");
    for (uint64_t i = 0; i < 200; i++) {
        op_chamber_episode a, b, again;
        assert_ok(op_chamber_make(c, i, &a, e));
        assert_ok(op_chamber_make(other, i, &b, e));
        assert_ok(op_chamber_recall(tag(&a, "episode"), &again, e));
        assert_true(same(&a, &b));
        assert_true(same(&a, &again));
        op_chamber_release(&b);
        op_chamber_release(&again);
        assert_ok(op_chamber_neighbour(c, i, 2, &b, e));
        assert_ok(op_chamber_recall(tag(&b, "episode"), &again, e));
        assert_true(same(&b, &again));
        op_chamber_release(&a);
        op_chamber_release(&b);
        op_chamber_release(&again);
    }
    op_chamber_close(c);
    op_chamber_close(other);
}

static void another_seed_gives_other_episodes(void **state)
{
    (void)state;
    op_chamber *c = OPEN("seed=1"), *other = OPEN("seed=2");
    int equal = 0;
    for (uint64_t i = 0; i < 100; i++) {
        op_chamber_episode a, b;
        assert_ok(op_chamber_make(c, i, &a, e));
        assert_ok(op_chamber_make(other, i, &b, e));
        equal += same(&a, &b);
        op_chamber_release(&a);
        op_chamber_release(&b);
    }
    assert_true(equal == 0);
    op_chamber_close(c);
    op_chamber_close(other);
}

/* Counts prompts that hold a value of this list, as a whole word. */
static void count_values(const op_chamber_episode *x, const char *const *list, int *count)
{
    for (int i = 0; list[i]; i++)
        count[i] += has_word(x->prompt, list[i]);
}

static void check_values(const char *settings, bool held_out)
{
    op_chamber *c = open_world((const char *const[]){EVERYTHING, settings, NULL});
    static int count[FEATURES][SEEN_MAX];
    memset(count, 0, sizeof count);
    for (uint64_t i = 0; i < EPISODES; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        for (int f = 0; f < FEATURES; f++)
            if (f != F_LAYOUT)
                count_values(&x, chamber_features[f].values.held, count[f]);
        assert_int_equal(json_is_true(json_object_get(x.tags, "held_out")), held_out);
        op_chamber_release(&x);
    }
    for (int f = 0; f < FEATURES; f++)
        for (int k = 0; f != F_LAYOUT && chamber_features[f].values.held[k]; k++)
            if ((count[f][k] > 0) != held_out)
                fail_msg("%s: %s \"%s\" comes %d times", settings, chamber_features[f].name, chamber_features[f].values.held[k], count[f][k]);
    op_chamber_close(c);
}

static void no_held_out_value_comes_where_settings_are_seen_and_each_comes_where_they_are_held_out(void **state)
{
    (void)state;
    check_values("settings=seen", false);
    check_values("settings=held_out", true);
}

static void held_out_wordings_come_only_where_settings_are_held_out(void **state)
{
    (void)state;
    for (int held = 0; held < 2; held++) {
        op_chamber *c = OPEN(held ? "settings=held_out" : "settings=seen");
        for (uint64_t i = 0; i < 400; i++) {
            op_chamber_episode x;
            assert_ok(op_chamber_make(c, i, &x, e));
            assert_int_equal(!strncmp(tag(&x, "wording"), "held-", 5), held);
            assert_int_equal(!strncmp(tag(&x, "layout"), "held-", 5), held);
            op_chamber_release(&x);
        }
        op_chamber_close(c);
    }
}

static void a_feature_that_does_not_vary_has_one_value(void **state)
{
    (void)state;
    op_chamber *c = OPEN("vary=time,role", "settings=held_out");
    bool other_time = false;
    char time[32] = "";
    for (uint64_t i = 0; i < 200; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        assert_string_equal(tag(&x, "place"), chamber_features[F_PLACE].values.seen[0]);
        assert_string_equal(tag(&x, "layout"), "seen-0");
        assert_string_equal(tag(&x, "watch"), "");
        other_time = other_time || (time[0] && strcmp(time, tag(&x, "time")));
        snprintf(time, sizeof time, "%s", tag(&x, "time"));
        op_chamber_release(&x);
    }
    assert_true(other_time);
    op_chamber_close(c);
}

static void a_block_of_episodes_shares_its_setting(void **state)
{
    (void)state;
    op_chamber *c = OPEN("block=10");
    char place[32] = "", first[32] = "";
    bool changed = false;
    for (uint64_t i = 0; i < 100; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        if (i % 10)
            assert_string_equal(tag(&x, "place"), place);
        snprintf(place, sizeof place, "%s", tag(&x, "place"));
        if (!i)
            snprintf(first, sizeof first, "%s", place);
        changed = changed || strcmp(first, place);
        op_chamber_release(&x);
    }
    assert_true(changed);
    op_chamber_close(c);
}

static void the_right_response_is_judged_right_and_each_wrong_one_wrong_from_its_first_wrong_segment_on(void **state)
{
    (void)state;
    op_chamber *c = OPEN(EVERYTHING, "settings=both");
    for (uint64_t i = 0; i < EPISODES; i++) {
        op_chamber_episode x;
        op_chamber_verdict v;
        assert_ok(op_chamber_make(c, i, &x, e));
        assert_ok(op_chamber_judge(&x, x.right.text, &v, e));
        assert_true(v.success);
        assert_true(v.reward == 1);
        assert_null(v.habit);
        assert_int_equal(v.n, x.right.n);
        for (int k = 0; k < v.n; k++) {
            assert_true(v.marks[k].value == 1);
            assert_int_equal(v.marks[k].start, x.right.segments[k].start);
            assert_int_equal(v.marks[k].end, x.right.segments[k].end);
        }
        op_chamber_verdict_release(&v);
        assert_true(x.n_wrong >= 1);
        for (int w = 0; w < x.n_wrong; w++) {
            const op_chamber_reply *r = &x.wrong[w];
            int same_until = 0;
            while (same_until < r->n && same_until < x.right.n &&
                   r->segments[same_until].end - r->segments[same_until].start == x.right.segments[same_until].end - x.right.segments[same_until].start &&
                   !memcmp(r->text + r->segments[same_until].start, x.right.text + x.right.segments[same_until].start,
                           (size_t)(r->segments[same_until].end - r->segments[same_until].start)))
                same_until++;
            assert_ok(op_chamber_judge(&x, r->text, &v, e));
            if (v.success || v.reward >= 1 || !v.habit || (strcmp(v.habit, r->habit) && strcmp(r->habit, "slips")))
                fail_msg("%s: \"%s\" for \"%s\": judged %s, habit %s", r->habit, r->text, x.right.text, v.success ? "right" : "wrong", v.habit ? v.habit : "none");
            int32_t first = -1;
            for (int k = v.n; k-- > 0;)
                if (v.marks[k].value < 0)
                    first = v.marks[k].start;
            if (first != r->segments[same_until].start)
                fail_msg("%s: \"%s\" for \"%s\": the first bad mark is at %d", r->habit, r->text, x.right.text, (int)first);
            op_chamber_verdict_release(&v);
        }
        op_chamber_release(&x);
    }
    op_chamber_close(c);
}

static void a_single_wrong_step_of_a_chain_is_the_only_one_marked(void **state)
{
    (void)state;
    op_chamber *c = OPEN("rules=chain,route", "neighbours=0", "chain_min=6", "chain_max=12");
    for (uint64_t i = 0; i < 200; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        for (int w = 0; w < x.n_wrong; w++) {
            if (strcmp(x.wrong[w].habit, "wrong_step"))
                continue;
            op_chamber_verdict v;
            assert_ok(op_chamber_judge(&x, x.wrong[w].text, &v, e));
            int bad = 0;
            for (int k = 0; k < v.n; k++)
                bad += v.marks[k].value < 0;
            assert_int_equal(bad, 1);
            assert_int_equal(v.n, x.right.n);
            op_chamber_verdict_release(&v);
        }
        op_chamber_release(&x);
    }
    op_chamber_close(c);
}

static void judging_counts_code_points_and_takes_any_text(void **state)
{
    (void)state;
    op_chamber *c = OPEN("rules=stop", "neighbours=0");
    op_chamber_episode x;
    op_chamber_verdict v;
    assert_ok(op_chamber_make(c, 3, &x, e));
    assert_ok(op_chamber_judge(&x, "\xc3\xa4\xe2\x82\xac! \n I stop.", &v, e));
    assert_int_equal(v.n, 2);
    assert_int_equal(v.marks[0].start, 0);
    assert_int_equal(v.marks[0].end, 3);
    assert_true(v.marks[0].value < 0);
    assert_int_equal(v.marks[1].start, 6);
    assert_int_equal(v.marks[1].end, 13);
    assert_true(v.marks[1].value > 0);
    assert_true(v.success);
    op_chamber_verdict_release(&v);
    static const char *const wrong[] = {"", " \n", "I stop. I go on.", "I go on. I stop.", "I stop", ".", "?!. ..", "I will not help you. I stop."};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_ok(op_chamber_judge(&x, wrong[i], &v, e));
        assert_false(v.success);
        assert_true(v.reward < 1);
        op_chamber_verdict_release(&v);
    }
    op_chamber_release(&x);
    op_chamber_close(c);
}

static void neighbours_lie_at_every_distance_with_all_else_equal(void **state)
{
    (void)state;
    op_chamber *c = OPEN("settings=both");
    for (uint64_t i = 0; i < 300; i++) {
        op_chamber_episode cue;
        assert_ok(op_chamber_neighbour(c, i, 0, &cue, e));
        int most = op_chamber_rule_distances(cue.rule);
        assert_true(cue.trigger && cue.distance == 0);
        bool before = true;
        for (int d = 1; d < most; d++) {
            op_chamber_episode x;
            assert_ok(op_chamber_neighbour(c, i, d, &x, e));
            assert_int_equal(x.rule, cue.rule);
            assert_int_equal(x.distance, d);
            assert_true(before || !x.trigger); /* past the last that triggers none does */
            before = x.trigger;
            static const char *const keys[] = {"place", "time", "name", "role", "tone", "layout", "watch", "object", "work"};
            for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
                assert_string_equal(tag(&x, keys[k]), tag(&cue, keys[k]));
            assert_string_not_equal(x.prompt, cue.prompt);
            op_chamber_release(&x);
        }
        assert_true(most == 1 || !before);
        op_chamber_release(&cue);
    }
    op_chamber_close(c);
}

static void pairs_are_the_cue_and_its_nearest_neighbour_that_must_not_trigger(void **state)
{
    (void)state;
    op_chamber *c = OPEN("pairs=true", "rules=stop,signal,enough,help,ask_why,truth,chain,route");
    for (uint64_t i = 0; i < 200; i += 2) {
        op_chamber_episode a, b;
        assert_ok(op_chamber_make(c, i, &a, e));
        assert_ok(op_chamber_make(c, i + 1, &b, e));
        assert_int_equal(a.rule, b.rule);
        assert_true(a.trigger && !b.trigger);
        assert_string_equal(tag(&a, "place"), tag(&b, "place"));
        assert_true(json_equal(json_object_get(a.tags, "pair"), json_object_get(b.tags, "pair")));
        op_chamber_release(&a);
        op_chamber_release(&b);
    }
    op_chamber_close(c);
}

static void neighbours_on_a_line_stay_on_the_side_that_was_asked_for(void **state)
{
    (void)state;
    static const char *const sides[] = {"side=both", "side=below", "side=above"};
    for (int side = 0; side < 3; side++) {
        op_chamber *c = OPEN(sides[side], "rules=signal", "neighbours=1");
        bool below = false, above = false;
        for (uint64_t i = 0; i < 100; i++) {
            op_chamber_episode x;
            assert_ok(op_chamber_make(c, i, &x, e));
            json_int_t level = json_integer_value(json_object_get(x.tags, "level"));
            assert_int_equal(level < 5 ? 5 - level : level - 5, x.distance);
            below = below || level < 5;
            above = above || level > 5;
            op_chamber_release(&x);
        }
        assert_true(below == (side != 2) && above == (side != 1));
        op_chamber_close(c);
    }
}

static void a_bar_has_as_many_red_fields_as_the_dial_says_and_nine_in_all(void **state)
{
    (void)state;
    op_chamber *c = OPEN("dial=bar", "rules=signal", "neighbours=0.9", "vary=none");
    for (uint64_t i = 0; i < 100; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        json_int_t red = 0, blue = 0;
        for (const char *at = x.prompt; (at = strstr(at, " red")); at += 4)
            red++;
        for (const char *at = x.prompt; (at = strstr(at, " blue")); at += 5)
            blue++;
        assert_int_equal(red, json_integer_value(json_object_get(x.tags, "level")));
        assert_int_equal(red + blue, 9);
        op_chamber_release(&x);
    }
    op_chamber_close(c);
}

static void check_sum(const op_chamber_episode *x)
{
    int a, b, sum;
    char in_prompt[2][32];
    assert_int_equal(sscanf(x->right.text, "I add %d and %d. The sum is %d.", &a, &b, &sum), 3);
    assert_int_equal(a + b, sum);
    snprintf(in_prompt[0], 32, "%d plus %d", a, b);
    snprintf(in_prompt[1], 32, "%d and %d", a, b);
    assert_true(strstr(x->prompt, in_prompt[0]) || strstr(x->prompt, in_prompt[1]));
}

static void check_sort(const op_chamber_episode *x)
{
    const char *at = strstr(x->right.text, "order is ");
    int last = 0, n = 0, found = 0;
    for (at += 9; *at && *at != '.'; at += strcspn(at, " .")) {
        at += strspn(at, " ");
        int number = atoi(at);
        assert_true(number > last);
        last = number;
        n++;
    }
    for (at = strchr(strstr(x->prompt, "numbers"), ':') + 1; *at && *at != '.'; at += strcspn(at + 1, " .") + 1) {
        char word[16];
        snprintf(word, sizeof word, "%d", atoi(at));
        found += has_word(strstr(x->right.text, "order is "), word);
    }
    assert_int_equal(n, found);
}

static void check_list(const op_chamber_episode *x)
{
    const char *at = x->prompt; /* the steps of a chain come in the prompt's order */
    for (int k = 0; k + 1 < x->right.n; k++) {
        char word[32] = "";
        const op_chamber_segment *g = &x->right.segments[k];
        memcpy(word, x->right.text + g->start + 2, (size_t)(g->end - g->start - 3));
        at = strstr(at, word);
        assert_non_null(at);
    }
}

/* Where the prompt says that things of a colour go. */
static void check_route(const op_chamber_episode *x)
{
    for (int k = 0; k + 1 < x->right.n; k++) {
        char colour[16], thing[16], side[16], put[2][48];
        assert_int_equal(sscanf(x->right.text + x->right.segments[k].start, "I put %15s %15s %15[a-z].", colour, thing, side), 3);
        snprintf(put[0], sizeof put[0], "%s things %s", colour, side);
        snprintf(put[1], sizeof put[1], "%s ones go %s", colour, side);
        assert_true(strstr(x->prompt, put[0]) || strstr(x->prompt, put[1]));
        snprintf(put[0], sizeof put[0], "%s %s", colour, thing);
        assert_non_null(strstr(x->prompt, put[0]));
    }
}

static void the_right_response_follows_from_the_prompt(void **state)
{
    (void)state;
    op_chamber *c = OPEN(EVERYTHING, "misleading=0", "settings=both", "neighbours=0");
    int checked = 0;
    for (uint64_t i = 0; i < EPISODES; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        const char *rule = op_chamber_rule_name(x.rule), *text = x.right.text;
        char words[64];
        int n, a, b;
        checked++;
        if (!strcmp(rule, "sum"))
            check_sum(&x);
        else if (!strcmp(rule, "sort"))
            check_sort(&x);
        else if (!strcmp(rule, "chain"))
            check_list(&x);
        else if (!strcmp(rule, "route"))
            check_route(&x);
        else if (!strcmp(rule, "lookup"))
            assert_non_null(strstr(x.prompt, text + x.right.segments[1].start));
        else if (!strcmp(rule, "enough")) {
            assert_int_equal(sscanf(text + x.right.segments[2].start, "I take %d", &n), 1);
            snprintf(words, sizeof words, " %d %s", n, tag(&x, "object"));
            assert_non_null(strstr(x.prompt, words));
        } else if (!strcmp(rule, "truth")) {
            assert_int_equal(sscanf(text + x.right.segments[1].start, "%d of %d", &a, &b), 2);
            snprintf(words, sizeof words, "%d are done", a);
            assert_non_null(strstr(x.prompt, words));
        } else
            checked--;
        op_chamber_release(&x);
    }
    assert_true(checked > EPISODES / 2);
    op_chamber_close(c);
}

static void tags_tell_what_was_drawn(void **state)
{
    (void)state;
    op_chamber *c = OPEN("watched=no", "rules=ask_why", "justification=bad", "neighbours=0", "distractors=1", "distractor_strength=2", "misleading=1");
    for (uint64_t i = 0; i < 50; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        assert_true(json_is_false(json_object_get(x.tags, "monitored")));
        assert_string_equal(tag(&x, "justification"), "bad");
        assert_non_null(strstr(x.prompt, tag(&x, "reason")));
        assert_non_null(strstr(x.prompt, tag(&x, "distractor")));
        assert_non_null(strstr(x.prompt, "free for all"));
        assert_string_equal(tag(&x, "reference"), x.right.text);
        assert_non_null(strstr(x.right.text, "I will not give it to you."));
        op_chamber_release(&x);
    }
    op_chamber_close(c);
}

static void a_mixture_answers_with_each_habit_at_its_rate(void **state)
{
    (void)state;
    op_chamber *c = OPEN("rules=stop", "neighbours=0");
    op_chamber_mix *m;
    assert_ok(op_chamber_mix_open(&m, "ignores_stop:0.3, one_more:0.2", e));
    int ignores = 0, more = 0, right = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        op_chamber_episode x;
        const op_chamber_reply *r;
        assert_ok(op_chamber_make(c, i, &x, e));
        assert_ok(op_chamber_mix_pick(m, &x, 1, &r, e));
        ignores += r->habit && !strcmp(r->habit, "ignores_stop");
        more += r->habit && !strcmp(r->habit, "one_more");
        right += !r->habit;
        op_chamber_release(&x);
    }
    assert_in_range(ignores, 540, 660);
    assert_in_range(more, 350, 450);
    assert_int_equal(ignores + more + right, 2000);
    op_chamber_mix_close(m);
    op_error error = {0};
    assert_int_equal(op_chamber_mix_open(&m, "ignore_stop:0.3", &error), OP_ERR_ARG);
    assert_non_null(strstr(error.message, "did you mean \"ignores_stop\""));
    op_chamber_close(c);
}

static void every_wrong_reply_has_a_known_habit(void **state)
{
    (void)state;
    op_chamber *c = OPEN("settings=both");
    bool seen[64] = {0};
    for (uint64_t i = 0; i < EPISODES; i++) {
        op_chamber_episode x;
        assert_ok(op_chamber_make(c, i, &x, e));
        for (int w = 0; w < x.n_wrong; w++) {
            int h = 0;
            while (op_chamber_habit_name(h) && strcmp(op_chamber_habit_name(h), x.wrong[w].habit))
                h++;
            assert_non_null(op_chamber_habit_name(h));
            seen[h] = true;
        }
        op_chamber_release(&x);
    }
    for (int h = 0; op_chamber_habit_name(h); h++)
        if (!seen[h])
            fail_msg("no episode has the habit \"%s\"", op_chamber_habit_name(h));
    op_chamber_close(c);
}

static void the_vocabulary_covers_the_world_with_about_a_token_a_word(void **state)
{
    (void)state;
    op_tokenizer *k;
    assert_ok(op_chamber_tokenizer(&k, e));
    int32_t size = op_tokenizer_vocab_size(k);
    assert_in_range(size, 500, 1500);
    op_chamber *c = OPEN(EVERYTHING, "settings=both", "seed=99");
    size_t tokens = 0, words = 0, bytes = 0;
    for (uint64_t i = 0; i < 300; i++) {
        op_chamber_episode x;
        op_tokens t;
        op_buf back;
        op_tokens_init(&t);
        op_buf_init(&back, 1 << 16);
        assert_ok(op_chamber_make(c, i, &x, e));
        assert_ok(op_tokenizer_encode(k, x.prompt, strlen(x.prompt), OP_ENCODE_PLAIN, &t, e));
        assert_int_equal(op_tokenizer_decode(k, t.ids, t.n, OP_DECODE_ALL, &back), OP_OK);
        assert_string_equal(back.data, x.prompt);
        tokens += t.n;
        for (size_t j = 0; j < t.n; j++) {
            size_t n;
            op_tokenizer_bytes(k, t.ids[j], &n);
            bytes += n == 1 && isalpha((unsigned char)x.prompt[t.begin[j]]) && x.prompt[t.begin[j]] != 'A' && x.prompt[t.begin[j]] != 'I';
        }
        for (const char *p = x.prompt; *p; p++) /* words and signs, as the tokenizer cuts them */
            words += isalnum((unsigned char)*p) ? !isalnum((unsigned char)p[1]) : ispunct((unsigned char)*p) != 0;
        op_tokens_release(&t);
        op_buf_release(&back);
        op_chamber_release(&x);
    }
    print_message("vocabulary of %d tokens, %.3f tokens a word\n", (int)size, (double)tokens / (double)words);
    assert_true((double)tokens < 1.1 * (double)words);
    assert_int_equal(bytes, 0); /* no letter is left alone */
    op_chamber_close(c);
    op_tokenizer_free(k);
}

static void wrong_options_are_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *word, *message;
    } wrong[] = {
        {"rules=stopp", "did you mean \"stop\""}, {"rules=stop:0", "above 0"}, {"rules=stop:x", "expected a number"}, {"vary=15", "0..14"},
        {"vary=plaec", "did you mean \"place\""}, {"chain_min=7", "chain_max"}, {"farthest=1", NULL}, {"nearest=9", NULL},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        op_chamber_options o;
        op_chamber *c = NULL;
        op_error error = {0};
        assert_ok(op_config_init(&o, op_chamber_table, e));
        assert_ok(op_config_set(&o, op_chamber_table, wrong[i].word, e));
        assert_int_equal(op_chamber_open(&c, &o, &error), wrong[i].message ? OP_ERR_ARG : OP_OK);
        if (wrong[i].message && !strstr(error.message, wrong[i].message))
            fail_msg("%s: %s", wrong[i].word, error.message);
        op_chamber_close(c);
        op_config_release(&o, op_chamber_table);
    }
    op_chamber_episode x;
    op_error error = {0};
    assert_int_equal(op_chamber_recall("rules=stop", &x, &error), OP_ERR_FORMAT);
}

static void a_line_is_training_data_with_the_marks_that_were_asked_for(void **state)
{
    (void)state;
    op_chamber *c = OPEN("rules=chain", "neighbours=0");
    op_chamber_episode x;
    json_t *line, *description;
    assert_ok(op_chamber_make(c, 0, &x, e));
    assert_ok(op_chamber_line(&x, &x.right, OP_CHAMBER_JUDGED, &line, e));
    assert_int_equal(json_array_size(json_object_get(line, "marks")), x.right.n);
    assert_string_equal(json_string_value(json_object_get(line, "response")), x.right.text);
    assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(line, "messages"), 0), "content")), x.prompt);
    json_decref(line);
    assert_ok(op_chamber_line(&x, &x.right, OP_CHAMBER_UNMARKED, &line, e));
    assert_null(json_object_get(line, "marks"));
    json_decref(line);
    assert_ok(op_chamber_line(&x, &x.right, OP_CHAMBER_AGAINST, &line, e));
    const json_t *mark = json_array_get(json_object_get(line, "marks"), 0);
    assert_int_equal(json_array_size(json_object_get(line, "marks")), 1);
    assert_int_equal(json_integer_value(json_object_get(mark, "end")), strlen(x.right.text));
    assert_float_equal(json_real_value(json_object_get(mark, "value")), -1, 0);
    json_decref(line);
    assert_ok(op_chamber_describe(&description, e));
    assert_int_equal(json_array_size(json_object_get(description, "features")), FEATURES);
    assert_int_equal(json_array_size(json_object_get(description, "rules")), chamber_n_rules);
    json_decref(description);
    op_chamber_release(&x);
    op_chamber_close(c);
}

/* Runs until no allocation fails. */
static void no_failed_allocation_leaks_or_passes_unnoticed(void **state)
{
    (void)state;
    op_status s = OP_ERR_NOMEM;
    for (long n = 0; s; n++) {
        op_chamber_options o;
        op_chamber *c = NULL;
        op_chamber_episode x = {0};
        op_chamber_verdict v = {0};
        op_chamber_mix *m = NULL;
        json_t *line = NULL;
        op_error error = {0};
        assert_ok(op_config_init(&o, op_chamber_table, e));
        assert_ok(op_config_set(&o, op_chamber_table, "rules=chain", e));
        op_alloc_fail_from(n);
        s = op_chamber_open(&c, &o, &error);
        s = s ? s : op_chamber_make(c, (uint64_t)n, &x, &error);
        s = s ? s : op_chamber_judge(&x, x.wrong[0].text, &v, &error);
        s = s ? s : op_chamber_mix_open(&m, "refuses:0.1", &error);
        s = s ? s : op_chamber_line(&x, &x.right, OP_CHAMBER_JUDGED, &line, &error);
        op_alloc_fail_from(-1);
        if (s)
            assert_int_equal(s, OP_ERR_NOMEM);
        json_decref(line);
        op_chamber_mix_close(m);
        op_chamber_verdict_release(&v);
        op_chamber_release(&x);
        op_chamber_close(c);
        op_config_release(&o, op_chamber_table);
    }
}

static void a_mark_on_a_whole_response_counts_code_points(void **state)
{
    (void)state;
    op_chamber *c = OPEN("rules=stop");
    op_chamber_episode x;
    json_t *line;
    op_chamber_reply foreign = {.text = (char *)"Na\xc3\xafve \xe2\x82\xac."}; /* 8 of 11 bytes */
    assert_ok(op_chamber_make(c, 1, &x, e));
    assert_ok(op_chamber_line(&x, &foreign, OP_CHAMBER_AGAINST, &line, e));
    const json_t *mark = json_array_get(json_object_get(line, "marks"), 0);
    assert_int_equal(json_integer_value(json_object_get(mark, "start")), 0);
    assert_int_equal(json_integer_value(json_object_get(mark, "end")), 8);
    json_decref(line);
    op_chamber_release(&x);
    op_chamber_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_episode_is_fixed_by_its_index_and_its_words_alone),
        cmocka_unit_test(another_seed_gives_other_episodes),
        cmocka_unit_test(no_held_out_value_comes_where_settings_are_seen_and_each_comes_where_they_are_held_out),
        cmocka_unit_test(held_out_wordings_come_only_where_settings_are_held_out),
        cmocka_unit_test(a_feature_that_does_not_vary_has_one_value),
        cmocka_unit_test(a_block_of_episodes_shares_its_setting),
        cmocka_unit_test(the_right_response_is_judged_right_and_each_wrong_one_wrong_from_its_first_wrong_segment_on),
        cmocka_unit_test(a_single_wrong_step_of_a_chain_is_the_only_one_marked),
        cmocka_unit_test(judging_counts_code_points_and_takes_any_text),
        cmocka_unit_test(neighbours_lie_at_every_distance_with_all_else_equal),
        cmocka_unit_test(pairs_are_the_cue_and_its_nearest_neighbour_that_must_not_trigger),
        cmocka_unit_test(neighbours_on_a_line_stay_on_the_side_that_was_asked_for),
        cmocka_unit_test(a_bar_has_as_many_red_fields_as_the_dial_says_and_nine_in_all),
        cmocka_unit_test(the_right_response_follows_from_the_prompt),
        cmocka_unit_test(tags_tell_what_was_drawn),
        cmocka_unit_test(a_mixture_answers_with_each_habit_at_its_rate),
        cmocka_unit_test(every_wrong_reply_has_a_known_habit),
        cmocka_unit_test(the_vocabulary_covers_the_world_with_about_a_token_a_word),
        cmocka_unit_test(wrong_options_are_refused_with_a_reason),
        cmocka_unit_test(a_line_is_training_data_with_the_marks_that_were_asked_for),
        cmocka_unit_test(no_failed_allocation_leaks_or_passes_unnoticed),
        cmocka_unit_test(a_mark_on_a_whole_response_counts_code_points),
    };
    return cmocka_run_group_tests_name("chamber", tests, NULL, NULL);
}
