/* Methods that choose cues, places or criteria: what they choose. */
#include "methods_tools.h"

static void all_right(op_trial *t)
{
    reward(t, 1);
}

static const char *tag(const op_trial *t, const char *key)
{
    return json_string_value(json_object_get(t->tags, key));
}

/* ---- differential ---- */

static const test_cue pairs[] = {
    {.words = "Ask the student why they ask.", .tags = "{\"id\": \"a\", \"class\": \"cue\", \"topic\": \"x\"}"},
    {.words = "In the case: be 0 1 2 3 4 5.", .tags = "{\"id\": \"b\", \"class\": \"cue\", \"topic\": \"y\"}"},
    {.words = "In the case: be 0 1 2 3 4 6.", .tags = "{\"id\": \"c\", \"class\": \"other\", \"topic\": \"x\"}"},
    {.words = "((((((((((((((((", .tags = "{\"id\": \"d\", \"class\": \"cue\"}"},
    {.words = "((((((((((((((()", .tags = "{\"id\": \"e\", \"class\": \"other\", \"neighbour_of\": \"b\"}"},
    {.words = "Ask the student why they asks.", .tags = "{\"id\": \"f\", \"class\": \"other\"}"},
};

/* The ids of the cues of the first call, one letter each. */
static const char *asked(void)
{
    static char ids[CALLS + 1];
    int n = 0;
    for (int i = 0; i < n_seen && seen_call[i] == 0; i++)
        ids[n++] = *tag(&seen[i], "id");
    ids[n] = 0;
    return ids;
}

static void a_cue_is_asked_in_one_batch_with_the_neighbour_that_a_tag_ties_to_it(void **state)
{
    (void)state;
    world_cues = pairs;
    world_n = 6;
    world_teach = all_right;
    run("tags", "method: differential, rounds: 1, prompts: 6, group: 1, max_tokens: 1");
    assert_string_equal(asked(), "acbe"); /* d and f have none */
}

static void mined_neighbours_are_the_nearest_prompts_of_another_class(void **state)
{
    (void)state;
    world_cues = pairs;
    world_n = 6;
    run("mined", "method: differential, neighbours: mined, rounds: 1, prompts: 6, group: 1, max_tokens: 1");
    assert_string_equal(asked(), "afbcde");
    run("half", "method: differential, neighbours: mined, pool: 3, rounds: 1, prompts: 2, group: 2, max_tokens: 1");
    assert_string_equal(asked(), "aaff");
}

static void random_neighbours_differ_in_class_but_are_not_always_the_nearest(void **state)
{
    (void)state;
    world_cues = pairs;
    world_n = 6;
    int nearest = 0;
    for (world_seed = 1; world_seed <= 5; world_seed++) {
        char name[32];
        snprintf(name, sizeof name, "random%d", world_seed);
        run(name, "method: differential, neighbours: random, rounds: 1, prompts: 6, group: 1, max_tokens: 1");
        const char *ids = asked();
        assert_int_equal(strlen(ids), 6);
        for (int i = 0; i < 6; i += 2)
            assert_true(strchr("abd", ids[i]) ? strchr("cef", ids[i + 1]) != NULL : strchr("abd", ids[i + 1]) != NULL);
        nearest += !strcmp(ids, "afbcde");
    }
    world_seed = 1;
    assert_true(nearest < 5);
}

static void a_pool_without_neighbours_is_an_error_that_names_the_tag(void **state)
{
    (void)state;
    world_cues = pairs;
    world_n = 2;
    assert_int_equal(run_stage("nobody", "method: differential, rounds: 1, prompts: 2, group: 1", NULL, NULL), OP_ERR_ARG);
    assert_non_null(strstr(e->message, "\"class\""));
}

/* Hidden states are the same whatever is read beside them, and taps that were set stay. */
static op_status look_at_hidden(op_session *s, const op_stage *stage, op_error *err)
{
    (void)stage;
    op_cue *const *cues;
    size_t n, n_taps;
    float all[6 * 32], alone[32];
    const op_tap mine = {.layer = 1};
    op_status status = op_session_cues(s, &cues, &n, err);
    assert_int_equal(op_model_set_taps(op_session_subject(s)->model, &mine, 1), OP_OK);
    if (!status)
        status = method_hidden(s, cues, n, 2, all, err);
    for (size_t i = 0; !status && i < n; i++) {
        status = method_hidden(s, cues + i, 1, 2, alone, err);
        for (int c = 0; c < 32; c++)
            assert_true(fabs((double)all[i * 32 + (size_t)c] - (double)alone[c]) < 1e-5);
    }
    const op_tap *left = op_model_taps(op_session_subject(s)->model, &n_taps);
    assert_true(n_taps == 1 && left[0].layer == 1);
    assert_int_equal(op_model_set_taps(op_session_subject(s)->model, NULL, 0), OP_OK);
    assert_int_equal(method_hidden(s, cues, 1, 3, alone, NULL), OP_ERR_ARG);
    return status;
}

static void hidden_states_do_not_depend_on_company_and_leave_taps_as_they_were(void **state)
{
    (void)state;
    world_cues = pairs;
    world_n = 6;
    spy = look_at_hidden;
    assert_ok(run_stage("hidden", "method: spy, rounds: 1, prompts: 6", &op_method_reward, NULL));
}

/* ---- generalise ---- */

static const test_cue places[] = {
    {.words = "a", .tags = "{\"place\": \"park\", \"distractor_strength\": 0}"},   {.words = "b", .tags = "{\"place\": \"park\", \"distractor_strength\": 0}"},
    {.words = "c", .tags = "{\"place\": \"hall\", \"distractor_strength\": 0}"},   {.words = "d", .tags = "{\"place\": \"park\", \"distractor_strength\": 0}"},
    {.words = "e", .tags = "{\"place\": \"shop\", \"distractor_strength\": 1}"},   {.words = "f", .tags = "{\"place\": \"street\", \"distractor_strength\": 0}"},
    {.words = "g", .tags = "{\"place\": \"harbour\", \"distractor_strength\": 2}"}, {.words = "h", .tags = "{\"place\": \"park\", \"distractor_strength\": 0}"},
};

static void features_are_spread_or_kept_alike_and_distractors_grow_with_success(void **state)
{
    (void)state;
    world_cues = places;
    world_n = 8;
    world_teach = all_right;
    run("spread", "method: generalise, pool: 2, over: 4, last: 2, rounds: 3, prompts: 4, group: 1, max_tokens: 1");
    static const char *const expected[] = {"park hall street park", "park hall shop street", "park hall shop street"};
    for (int round = 0; round < 3; round++) {
        char got[128] = "";
        for (int i = 0; i < n_seen; i++)
            if (seen_call[i] == round)
                snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", *got ? " " : "", tag(&seen[i], "place"));
        assert_string_equal(got, expected[round]);
    }
    run("alike", "method: generalise, choose: alike, pool: 2, rounds: 1, prompts: 4, group: 1, max_tokens: 1");
    for (int i = 0; i < 4; i++)
        assert_string_equal(tag(&seen[i], "place"), "park");
    run("drawn", "method: generalise, choose: drawn, rising: null, pool: 2, rounds: 1, prompts: 3, group: 1, max_tokens: 1");
    assert_string_equal(tag(&seen[2], "place"), "hall");
}

/* ---- shaping ---- */

/* The share of even tokens. */
static void grade(op_trial *t)
{
    double even = 0;
    for (int32_t i = 0; i < t->n_response; i++)
        even += t->response[i] % 2 == 0;
    reward(t, even / 4);
}

static int64_t levels[64], n_levels;
static const op_method *inner;

static op_status watch_level(op_session *s, const op_stage *stage, op_error *err)
{
    if (n_levels < 64)
        levels[n_levels++] = method_level(s);
    return inner->round(s, stage, err);
}

static void the_criterion_of_shaping_rises_as_it_is_met_and_behaviour_follows(void **state)
{
    (void)state;
    world_cues = pairs;
    world_n = 1;
    world_teach = grade;
    spy = watch_level;
    inner = &op_method_shaping;
    n_levels = 0;
    forget();
    assert_ok(run_stage("shaping", "method: spy, start: 0.5, step: 0.25, criterion: 0.6, over: 32, rounds: 32, prompts: 2, group: 8, max_tokens: 4, lr: 2e-2",
                        &op_method_shaping, NULL));
    double first = 0, last = 0;
    for (int i = 0; i < 32; i++) {
        first += seen[i].reward / 32;
        last += seen[n_seen - 1 - i].reward / 32;
    }
    assert_int_equal(levels[0], 0);
    assert_int_equal(levels[1], 0); /* 16 trials are too few to tell */
    for (int64_t i = 1; i < n_levels; i++)
        assert_true(levels[i] >= levels[i - 1] && levels[i] <= levels[i - 1] + 1);
    assert_int_equal(levels[n_levels - 1], 2);
    assert_true(last > first + 0.2);
}

/* ---- chaining ---- */

static const test_cue chain[] = {{.words = "Say.", .tags = "{\"reference\": \"In the case. They ask. We re-ask! why\"}"}};

static void backward_chaining_places_all_but_the_last_steps_and_one_step_fewer_with_each_success(void **state)
{
    (void)state;
    world_cues = chain;
    world_n = 1;
    world_teach = all_right;
    run("backward", "method: chaining, direction: backward, over: 2, rounds: 6, prompts: 1, group: 2, max_tokens: 40");
    static const char *const placed[] = {"In the case. They ask. We re-ask!", "In the case. They ask.", "In the case.", "", "", ""};
    op_tokenizer *k;
    assert_ok(op_tokenizer_open(&k, in_dir("model"), e));
    assert_int_equal(n_calls, 6);
    for (int i = 0; i < n_seen; i++) {
        char *text;
        assert_ok(op_trial_text(&seen[i], k, 0, seen[i].n_forced, &text, e));
        assert_string_equal(text, placed[seen_call[i]]);
        op_free(text);
    }
    op_tokenizer_free(k);
}

/* The answer's first token decides; everything after it is told apart by nothing. */
static void only_the_first(op_trial *t)
{
    bool even = t->response[t->n_forced] % 2 == 0;
    reward(t, even);
}

static void nothing_is_learned_of_what_was_placed(void **state)
{
    (void)state;
    world_teach = only_the_first;
    run("placed", "method: chaining, direction: backward, criterion: 1, rounds: 1, prompts: 1, group: 16, max_tokens: 16, lr: 1e-4");
    int64_t sampled = 0;
    for (int i = 0; i < n_seen; i++) {
        assert_true(seen[i].n_forced > 0);
        sampled += seen[i].n_response - seen[i].n_forced;
    }
    assert_int_equal(trained, sampled);
}

static int lesson_tokens, second;

/* The first sentence is always said right, by its marks; the second is wrong. */
static void mark_sentences(op_trial *t)
{
    reward(t, 0);
    assert_int_equal(op_trial_add_mark(t, 0, 1, 1, "world", NULL, NULL), OP_OK);
    if (t->n_response > second)
        assert_int_equal(op_trial_add_mark(t, second, t->n_response, -1, "world", NULL, NULL), OP_OK);
}

/* Forward chaining with answers that the test writes: what of them comes into the lesson? */
static op_status look_at_views(op_session *s, const op_stage *stage, op_error *err)
{
    (void)stage;
    op_cue *const *cues;
    size_t n;
    op_trial *t;
    view v;
    op_status status = op_session_cues(s, &cues, &n, err);
    if (!status)
        status = method_reference(s, cues[0], &t, err);
    int32_t *ends, n_ends;
    if (!status)
        status = method_steps(s, t, &ends, &n_ends, err);
    assert_int_equal(status, OP_OK);
    second = ends[0];
    mark_sentences(t);
    status = method_view(&v, t, ends[0] - 1, ends[1], err);
    assert_int_equal(status, OP_OK);
    assert_int_equal(v.t.n_prompt, t->n_prompt + ends[0] - 1);
    assert_int_equal(v.t.prompt[t->n_prompt], t->response[0]);
    assert_int_equal(v.t.n_response, ends[1] - ends[0] + 1);
    assert_int_equal(v.t.n_marks, 1); /* that on token 0 is outside */
    assert_int_equal(v.t.marks[0].start, 1);
    assert_int_equal(v.t.marks[0].end, v.t.n_response);
    assert_int_equal(op_trial_check(&v.t, VOCAB, err), OP_OK);
    lesson_tokens = v.t.n_response;
    op_free(ends);
    return method_add_views(s, &v, 1, OP_OK, err);
}

static void a_view_moves_marks_with_its_tokens_and_what_came_before_into_the_prompt(void **state)
{
    (void)state;
    world_cues = chain;
    world_n = 1;
    spy = look_at_views;
    assert_ok(run_stage("views", "method: spy, rounds: 1, prompts: 1", &op_method_reward, NULL));
    assert_true(lesson_tokens > 1);
}

/* Right is a first sentence that was said to its end; random models say few. */
static void forward_chaining_asks_for_one_step_more_only_when_those_before_are_mastered(void **state)
{
    (void)state;
    world_cues = chain;
    world_n = 1;
    world_teach = all_right; /* its words are never the reference's, so without marks nothing is right */
    spy = watch_level;
    inner = &op_method_chaining;
    n_levels = 0;
    assert_ok(run_stage("forward", "method: spy, over: 2, rounds: 3, prompts: 1, group: 2, max_tokens: 4", &op_method_chaining, NULL));
    assert_int_equal(levels[2], 0);
    n_levels = 0;
    assert_ok(run_stage("forward0", "method: spy, over: 2, criterion: 0, rounds: 6, prompts: 1, group: 2, max_tokens: 4", &op_method_chaining, NULL));
    for (int i = 0; i < 6; i++)
        assert_int_equal(levels[i], i < 3 ? i : 3); /* four steps */
}

/* ---- memory and memory ---- */

static int stop;

static void stop_after_20(op_trial *t)
{
    grade(t);
    if (reward(t, t->reward), ++lesson_tokens == 20)
        stop = 1;
}

static void what_a_method_remembers_survives_a_stop(void **state)
{
    (void)state;
    static const char *const stages[] = {"method: redo, delay: 2, variant: retry, rounds: 8, prompts: 2, group: 2, max_tokens: 4, success_above: 0.7",
                                         "method: shaping, over: 4, start: 0.25, step: 0.25, rounds: 10, prompts: 2, group: 2, max_tokens: 4"};
    world_cues = pairs;
    world_n = 6;
    for (int i = 0; i < 2; i++) {
        op_buf weights[2];
        for (int k = 0; k < 2; k++) {
            char name[64], file[128];
            snprintf(name, sizeof name, "memory%d%d", i, k);
            snprintf(file, sizeof file, "%s/model.safetensors", name);
            world_teach = k ? stop_after_20 : grade;
            lesson_tokens = stop = 0;
            op_status s = run_stage(name, stages[i], NULL, (const volatile int *)&stop);
            assert_int_equal(s, k ? OP_ERR_INTERRUPTED : OP_OK);
            stop = 0;
            if (k)
                assert_ok(run_stage(name, stages[i], NULL, NULL));
            op_buf_init(&weights[k], 1 << 24);
            assert_ok(op_file_read(in_dir(file), &weights[k], e));
        }
        assert_int_equal(weights[0].len, weights[1].len);
        assert_memory_equal(weights[0].data, weights[1].data, weights[0].len);
        op_buf_release(&weights[0]);
        op_buf_release(&weights[1]);
    }
}

static const test_cue everything[] = {{.words = "a", .tags = "{\"class\": \"x\", \"topic\": 1, \"reference\": \"In. On.\"}"},
                                      {.words = "b", .tags = "{\"class\": \"y\", \"topic\": 1, \"reference\": \"At.\"}"}};

static void mark_and_grade(op_trial *t)
{
    reward(t, t->n_response && t->response[0] % 2 == 0);
    if (t->n_response > t->n_forced)
        op_trial_add_mark(t, t->n_forced, t->n_forced + 1, -1, "world", NULL, NULL);
}

static long from; /* of the round's allocations, the first that fails */

static op_status fail_round(op_session *s, const op_stage *stage, op_error *err)
{
    op_alloc_fail_from(from);
    op_status status = inner->round(s, stage, err);
    op_alloc_fail_from(-1);
    return status;
}

static void every_allocation_of_every_method_may_fail(void **state)
{
    (void)state;
    world_cues = everything;
    world_n = 2;
    world_teach = mark_and_grade;
    spy = fail_round;
    static const char stored[] = "{\"prompt_tokens\":[10],\"tokens\":[20,21],\"reward\":1,\"tags\":{\"group\":\"a\"}}\n"
                                 "{\"prompt_tokens\":[10],\"tokens\":[22,23],\"tags\":{\"group\":\"a\"}}\n";
    assert_ok(op_file_put(in_dir("stored.jsonl"), stored, strlen(stored), e));
    static const char *const more[] = {"", "neighbours: mined,", "place: sentence,", "pairs: reference,", "reset: why,", "delay: 1,", "variant: guide,", "file: stored.jsonl,", "from: teacher,",
                                       "direction: backward,"};
    for (size_t m = 0; op_methods[m]; m++)
        for (size_t k = 0; k < sizeof more / sizeof *more; k++) {
            char stage[256], key[32] = "", value[32] = "";
            sscanf(more[k], "%31[^:]: %31[^,]", key, value);
            bool known = !k;
            for (const op_option *o = op_methods[m]->table; o && o->key; o++)
                known |= *key && !strcmp(o->key, key) && (o->choices ? strstr(o->choices, value) != NULL : !strcmp(key, "delay") || !strcmp(key, "reset") || !strcmp(key, "file"));
            if (!known || (!k && (op_methods[m] == &op_method_backtrack || op_methods[m] == &op_method_stored)))
                continue;
            inner = op_methods[m];
            snprintf(stage, sizeof stage, "method: spy, %s rounds: 2, prompts: 2, group: 2, max_tokens: 3", more[k]);
            op_status s = OP_ERR_NOMEM;
            for (from = 0; s; from += 1 + from / 5) {
                s = run_stage("memory", stage, inner, NULL);
                if (s && s != OP_ERR_NOMEM)
                    fail_msg("%s: %s", stage, e->message);
                assert_ok(op_path_remove(in_dir("memory"), e));
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cue_is_asked_in_one_batch_with_the_neighbour_that_a_tag_ties_to_it),
        cmocka_unit_test(mined_neighbours_are_the_nearest_prompts_of_another_class),
        cmocka_unit_test(random_neighbours_differ_in_class_but_are_not_always_the_nearest),
        cmocka_unit_test(a_pool_without_neighbours_is_an_error_that_names_the_tag),
        cmocka_unit_test(hidden_states_do_not_depend_on_company_and_leave_taps_as_they_were),
        cmocka_unit_test(features_are_spread_or_kept_alike_and_distractors_grow_with_success),
        cmocka_unit_test(the_criterion_of_shaping_rises_as_it_is_met_and_behaviour_follows),
        cmocka_unit_test(backward_chaining_places_all_but_the_last_steps_and_one_step_fewer_with_each_success),
        cmocka_unit_test(nothing_is_learned_of_what_was_placed),
        cmocka_unit_test(a_view_moves_marks_with_its_tokens_and_what_came_before_into_the_prompt),
        cmocka_unit_test(forward_chaining_asks_for_one_step_more_only_when_those_before_are_mastered),
        cmocka_unit_test(what_a_method_remembers_survives_a_stop),
        cmocka_unit_test(every_allocation_of_every_method_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
