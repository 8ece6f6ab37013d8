/* Methods that learn from the answers as they come: what rises, what does not. */
#include "methods_tools.h"

static const test_cue one[] = {{.words = "Say."}};

static bool is_even(const op_trial *t, int32_t at)
{
    return t->response[at] % 2 == 0;
}

/* ---- reward, marking, preference ---- */

static void reward_even_and_mark_the_opposite(op_trial *t)
{
    reward(t, is_even(t, 0));
    mark(t, 0, is_even(t, 0) ? -1 : 1);
}

static void the_scalar_baseline_learns_the_reward_whatever_the_marks_say(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    world_teach = reward_even_and_mark_the_opposite;
    run("reward", "method: reward, rounds: 20, prompts: 8, group: 8, max_tokens: 2, lr: 2e-2");
    double before = even_probability("model"), after = even_probability("reward");
    assert_true(before > 0.3 && before < 0.7);
    assert_true(after > before + 0.2);
}

static void mark_even(op_trial *t)
{
    mark(t, 0, is_even(t, 0) ? 1 : -1);
}

static void marks_alone_raise_what_they_stand_on_and_more_where_they_were_put_than_shuffled(void **state)
{
    (void)state;
    world_teach = mark_even;
    run("marks", "method: marking, rounds: 12, prompts: 8, group: 8, max_tokens: 6, lr: 2e-2");
    double given = even_probability("marks"), before = even_probability("model");
    run("shuffled", "method: marking, place: shuffled, rounds: 12, prompts: 8, group: 8, max_tokens: 6, lr: 2e-2");
    assert_true(given > before + 0.2);
    assert_true(given > even_probability("shuffled") + 0.1);
}

static void reward_even(op_trial *t)
{
    reward(t, is_even(t, 0));
}

/* Each alone, its last token's attention read as the model gives it. */
static op_status look_at_shares(op_session *s, const op_stage *stage, op_error *err)
{
    answers a;
    float *share[32] = {0}, all[256];
    op_pass *pass;
    op_model *m = op_session_subject(s)->model;
    assert_int_equal(method_answers(s, stage, &a, err), OP_OK);
    assert_true(a.n == 32 && a.n * (size_t)a.trials[0]->n_prompt > 1024); /* more than a batch */
    assert_int_equal(method_attention(s, a.trials, a.n, share, err), OP_OK);
    assert_int_equal(op_pass_new(&pass, m, err), OP_OK);
    for (size_t i = 0; i < a.n; i++) {
        const op_trial *t = a.trials[i];
        int32_t n = t->n_prompt + t->n_response, ids[256];
        memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
        memcpy(ids + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
        const op_seq seq = {.length = n, .parent = -1, .adapter = -1};
        assert_int_equal(op_model_forward(m, pass, &(op_batch){n, 1, ids, &seq}, &(op_how){0}, err), OP_OK);
        assert_int_equal(op_model_attention(m, pass, n - 1, all, err), OP_OK);
        double sum = 0, given = 0;
        for (int32_t k = 0; k < t->n_response; k++) {
            sum += (double)share[i][k];
            given += (double)all[t->n_prompt + k];
        }
        assert_true(fabs(sum - t->n_response) < 1e-4);
        for (int32_t k = 0; k < t->n_response; k++)
            assert_true(fabs((double)share[i][k] - (double)all[t->n_prompt + k] / given * t->n_response) < 1e-4);
        op_free(share[i]);
    }
    op_pass_free(pass);
    method_answers_release(&a);
    return OP_OK;
}

static void a_share_is_the_last_tokens_attention_to_a_token_of_the_answer_and_their_sum_is_the_answers_length(void **state)
{
    (void)state;
    static const test_cue longer[] = {{.words = "They ask! In the case. They ask! In the case. They ask! In the case. They ask! In the case. They ask! In the case."}};
    world_cues = longer;
    world_n = 1;
    world_teach = mark_even;
    spy = look_at_shares;
    assert_ok(run_stage("shares", "method: spy, rounds: 1, prompts: 8, group: 4, max_tokens: 6", &op_method_reward, NULL));
}

static void a_reward_that_is_spread_by_attention_is_learned(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    world_teach = reward_even;
    run("spread", "method: marking, place: attention, rounds: 20, prompts: 8, group: 8, max_tokens: 2, lr: 2e-2");
    assert_true(even_probability("spread") > even_probability("model") + 0.2);
}

static void every_kind_of_pair_and_each_loss_raises_the_better_answer(void **state)
{
    (void)state;
    static const char *const kinds[] = {"best_worst", "all", "judged", "judged, lesson.desirable: 2, lesson.undesirable: 0.5", "best_worst, lesson.preference: ipo", "best_worst, lesson.preference: hinge"};
    world_teach = reward_even;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char stage[256];
        snprintf(stage, sizeof stage, "method: preference, pairs: %s, rounds: 20, prompts: 8, group: 4, max_tokens: 2, lr: 2e-2", kinds[i]);
        run("pairs", stage);
        if (even_probability("pairs") < even_probability("model") + 0.1)
            fail_msg("%s: from %g to %g", kinds[i], even_probability("model"), even_probability("pairs"));
        assert_ok(op_path_remove(in_dir("pairs"), e));
    }
}

static void a_term_of_no_weight_teaches_nothing(void **state)
{
    (void)state;
    world_teach = reward_even;
    run("weightless", "method: preference, pairs: judged, lesson.kto_weight: 0, rounds: 5, prompts: 8, group: 4, max_tokens: 2, lr: 2e-2");
    assert_true(even_probability("weightless") == even_probability("model"));
}

/* ---- the reference ---- */

static const test_cue asks[] = {{.words = "Say.", .tags = "{\"reference\": \"In the case. They ask! why\"}"},
                                {.words = "Say", .tags = "{\"reference\": \" be\"}", .plain = true}};

static op_trial references[2]; /* as the spy saw them */

static op_status look_at_references(op_session *s, const op_stage *stage, op_error *err)
{
    (void)stage;
    op_cue *const *cues;
    size_t n;
    op_status status = op_session_cues(s, &cues, &n, err);
    for (size_t i = 0; !status && i < 2; i++) {
        op_trial *t;
        status = method_reference(s, cues[i], &t, err);
        if (!status)
            status = op_trial_copy(&references[i], t, err);
    }
    op_trial *t = NULL;
    int32_t *ends = NULL, n_steps = 0;
    if (!status)
        status = method_reference(s, cues[0], &t, err);
    if (!status)
        status = method_steps(s, t, &ends, &n_steps, err);
    if (status)
        return status;
    char *step;
    static const char *const steps[] = {"In the case.", " They ask!", " why"};
    assert_int_equal(n_steps, 3);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(op_trial_text(t, op_session_chat(s)->tokenizer, i ? ends[i - 1] : 0, ends[i], &step, err), OP_OK);
        assert_string_equal(step, steps[i]);
        op_free(step);
    }
    assert_int_equal(ends[2], t->n_response);
    op_free(ends);
    return OP_OK;
}

static void a_reference_is_the_words_and_the_end_token_and_its_sentences_are_its_steps(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 2;
    spy = look_at_references;
    assert_ok(run_stage("references", "method: spy, rounds: 1, prompts: 2", &op_method_reward, NULL));
    for (int i = 0; i < 2; i++) {
        const op_trial *t = &references[i];
        int end = 402; /* ends a turn by the template, and a text by the tokenizer */
        assert_int_equal(t->response[t->n_response - 1], end);
        for (int32_t k = 0; k + 1 < t->n_response; k++)
            assert_true(t->response[k] < WORDS);
    }
    assert_string_equal(references[0].by, "reference");
}

static void imitation_raises_every_token_of_the_reference_in_both_kinds_of_prompt(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 2;
    run("imitate", "method: imitate, rounds: 15, prompts: 2");
    for (int i = 0; i < 2; i++)
        for (int32_t k = 0; k < references[i].n_response; k++)
            assert_true(rise("imitate", &references[i], k) > 0.05);
    assert_int_equal(n_calls, 0); /* nobody was sampled or judged */
}

static void an_onset_that_weighs_more_rises_more_than_without(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 2;
    run("even", "method: imitate, rounds: 2, prompts: 2");
    run("onset", "method: imitate, rounds: 2, prompts: 2, onset_tokens: 1, onset_weight: 20");
    for (int i = 0; i < 2; i++) {
        assert_true(rise("onset", &references[i], 0) > rise("even", &references[i], 0));
        op_trial_release(&references[i]);
    }
}

static void a_cue_without_reference_is_an_error_where_the_method_needs_one(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    assert_int_equal(run_stage("none", "method: imitate, rounds: 1, prompts: 1", NULL, NULL), OP_ERR_ARG);
    assert_non_null(strstr(e->message, "reference"));
    assert_int_equal(run_stage("none2", "method: chaining, rounds: 1, prompts: 1", NULL, NULL), OP_ERR_ARG);
    assert_non_null(strstr(e->message, "reference"));
}

/* ---- redo ---- */

/* The first odd token is wrong; it fails. */
static void mark_first_odd(op_trial *t)
{
    int32_t at = t->n_forced && t->redo_at ? t->redo_at : 0;
    while (at < t->n_response && is_even(t, at))
        at++;
    if (at < t->n_response)
        mark(t, at, -1);
    reward(t, at == t->n_response);
}

static const op_trial *first_failure(void)
{
    for (int i = 0; i < n_seen; i++)
        if (seen_call[i] == 0 && seen[i].n_marks)
            return &seen[i];
    fail_msg("no answer failed");
    return NULL;
}

static void no_redo_raises_a_token_marked_wrong(void **state)
{
    (void)state;
    static const char *const variants[] = {"retry", "rewind", "guide"};
    static const test_cue cues[] = {{.words = "Say.", .tags = "{\"reference\": \"They ask!\"}"}, {.words = "Why ask?", .tags = "{\"reference\": \"In the case.\"}"}};
    world_cues = cues;
    world_n = 2;
    world_teach = mark_first_odd;
    for (int i = 0; i < 9; i++) {
        char name[32], stage[256];
        snprintf(name, sizeof name, "redo%d", i);
        snprintf(stage, sizeof stage, "method: redo, variant: %s, span: %d, rounds: 1, prompts: 2, group: 2, max_tokens: 4, lr: 1e-3", variants[i % 3], i % 2);
        world_seed = i;
        run(name, stage);
        int errors = 0;
        for (int k = 0; k < n_seen; k++)
            if (seen_call[k] == 0 && seen[k].n_marks) {
                double up = rise(name, &seen[k], op_trial_first_error(&seen[k]));
                if (up > 0)
                    fail_msg("%s: %g", stage, up);
                errors++;
            }
        assert_true(errors > 0);
    }
    world_seed = 1;
}

static void a_rewound_answer_keeps_what_stood_before_the_error_and_a_guided_one_has_the_right_token_there(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 1;
    world_teach = mark_first_odd;
    run("rewound", "method: redo, rounds: 1, prompts: 4, group: 4, max_tokens: 5");
    int redos = 0;
    for (int k = 0; k < n_seen; k++) {
        if (seen_call[k] == 0)
            continue;
        const op_trial *t = &seen[k], *first = NULL;
        for (int i = 0, failed = 0; i < n_seen && !first; i++)
            if (seen_call[i] == 0 && seen[i].n_marks && failed++ == redos)
                first = &seen[i];
        assert_non_null(first);
        assert_int_equal(t->redo_at, op_trial_first_error(first));
        assert_int_equal(t->n_forced, t->redo_at);
        assert_memory_equal(t->response, first->response, (size_t)t->redo_at * sizeof *t->response);
        redos++;
    }
    assert_true(redos > 4);
    world_n = 1;
    run("guided", "method: redo, variant: guide, place: 2, rounds: 1, prompts: 4, group: 1, max_tokens: 5");
    for (int k = 0; k < n_seen; k++)
        if (seen_call[k]) {
            const op_trial *t = &seen[k];
            assert_int_equal(t->redo_at, 0);
            assert_int_equal(t->n_forced, 2);
            char *text;
            op_tokenizer *tokenizer;
            assert_ok(op_tokenizer_open(&tokenizer, in_dir("model"), e));
            assert_ok(op_trial_text(t, tokenizer, 0, 2, &text, e));
            assert_int_equal(strncmp("In the case. They ask! why", text, strlen(text)), 0);
            op_free(text);
            op_tokenizer_free(tokenizer);
        }
}

static void a_redo_is_learned_from_where_it_was_rewound_to_and_nothing_is_where_it_gained_nothing(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    world_teach = mark_first_odd;
    run("from", "method: redo, punish: false, branch: false, lesson.mark_weight: 0, rounds: 1, prompts: 4, group: 8, max_tokens: 2");
    int64_t gained = 0;
    for (int k = 0; k < n_seen; k++)
        if (seen_call[k] == 1 && seen[k].reward > 0)
            gained += seen[k].n_response - seen[k].redo_at;
    assert_true(gained > 0);
    assert_int_equal(trained, gained);
}

static void a_delayed_redo_comes_so_many_rounds_after_its_error(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 1;
    world_teach = mark_first_odd;
    run("delayed", "method: redo, delay: 2, rounds: 4, prompts: 2, group: 4, max_tokens: 4");
    int calls[8] = {0}, failed[8] = {0};
    for (int k = 0; k < n_seen; k++) {
        calls[seen_call[k]]++;
        failed[seen_call[k]] += op_trial_first_error(&seen[k]) >= 0;
    }
    assert_int_equal(n_calls, 6); /* rounds 1, 2, 3 and its redos, 4 and its redos */
    assert_int_equal(calls[3], failed[0]);
    assert_int_equal(calls[5], failed[1]);
    for (int k = 0, i = 0; k < n_seen; k++)
        if (seen_call[k] == 3) {
            while (op_trial_first_error(&seen[i]) < 0)
                i++;
            assert_int_equal(seen[k].redo_at, op_trial_first_error(&seen[i]));
            assert_memory_equal(seen[k].response, seen[i].response, (size_t)seen[k].redo_at * sizeof *seen[k].response);
            i++;
        }
}

static void a_redo_that_succeeds_is_preferred_where_it_parts_unless_that_is_switched_off(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    world_teach = mark_first_odd;
    static double up[2];
    for (int off = 0; off < 2; off++) {
        char stage[256];
        snprintf(stage, sizeof stage, "method: redo, variant: retry, punish: false, lesson.outcome_weight: 0, lesson.mark_weight: 0, branch: %s, rounds: 8, prompts: 8, lr: 2e-2, "
                 "group: 4, max_tokens: 1", off ? "false" : "true");
        run(off ? "branch off" : "branch on", stage);
        up[off] = even_probability(off ? "branch off" : "branch on") - even_probability("model");
    }
    assert_true(up[0] > 0.01);
    assert_true(fabs(up[1]) < 1e-6);
}

/* ---- alternatives ---- */

static void the_pick_rises_at_its_place_and_other_places_hardly_move(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    world_teach = mark_first_odd;
    run("alternatives", "method: alternatives, punish: false, rounds: 1, prompts: 1, group: 1, max_tokens: 4, lr: 1e-3");
    const op_trial *first = first_failure();
    int32_t at = op_trial_first_error(first);
    const op_trial *pick = NULL;
    for (int k = 0; k < n_seen; k++)
        if (seen_call[k] == 1) {
            assert_int_equal(seen[k].redo_at, at);
            assert_int_equal(seen[k].n_forced, at + 1);
            assert_int_not_equal(seen[k].response[at], first->response[at]);
            if (!pick || method_score(&seen[k]) > method_score(pick))
                pick = &seen[k];
        }
    assert_non_null(pick);
    assert_true(method_score(pick) > method_score(first));
    double up = rise("alternatives", pick, at), down = rise("alternatives", first, at);
    assert_true(up > 0 && down < 0);
    int others = 0;
    for (int32_t i = 0; i < first->n_response; i++)
        if (i != at && first->response[i] != first->response[at] && first->response[i] != pick->response[at]) {
            assert_true(fabs(rise("alternatives", first, i)) < (up - down) / 4);
            others++;
        }
    assert_true(others > 0);
}

static void whole_answers_and_the_teachers_text_are_preferred_to_the_failure(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 1;
    world_teach = mark_first_odd;
    run("answers", "method: alternatives, from: answers, n: 6, punish: false, rounds: 1, prompts: 1, group: 1, max_tokens: 3");
    const op_trial *first = first_failure(), *best = first;
    int tries = 0;
    for (int k = 0; k < n_seen; k++)
        if (seen_call[k] == 1) {
            assert_int_equal(seen[k].n_forced, 0);
            tries++;
            if (method_score(&seen[k]) > method_score(best))
                best = &seen[k];
        }
    assert_int_equal(tries, 6);
    if (best != first)
        assert_true(rise("answers", best, method_parting(best, first)) > rise("answers", first, method_parting(best, first)));
    run("teacher", "method: alternatives, from: teacher, punish: false, rounds: 3, prompts: 2, group: 2, max_tokens: 3");
    assert_int_equal(n_calls, 3); /* nothing else is tried */
    assert_true(rise("teacher", first_failure(), 0) < 0);
}

static void pick_beforehand(op_trial *t)
{
    const int32_t right[] = {300};
    mark_first_odd(t);
    if (op_trial_first_error(t) >= 0)
        assert_int_equal(op_trial_add_alternative(t, op_trial_first_error(t), right, 1, NAN, true, "ann", NULL), OP_OK);
}

static void what_the_teacher_has_picked_already_is_reinforced_without_asking_again(void **state)
{
    (void)state;
    world_cues = one;
    world_n = 1;
    world_teach = pick_beforehand;
    run("picked", "method: alternatives, punish: false, rounds: 1, prompts: 2, group: 2, max_tokens: 3");
    assert_int_equal(n_calls, 1);
    op_trial t;
    assert_ok(op_trial_copy(&t, first_failure(), e));
    int32_t at = op_trial_first_error(&t);
    assert_true(rise("picked", &t, at) < 0);
    t.response[at] = 300;
    assert_true(rise("picked", &t, at) > 0);
    op_trial_release(&t);
}

/* ---- backtrack ---- */

static void backtracking_teaches_reset_and_reference_but_never_the_wrong_tokens_before(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 1;
    world_teach = mark_first_odd;
    run("backtrack", "method: backtrack, reset: <|endoftext|>, punish: false, rounds: 1, prompts: 1, group: 1, max_tokens: 4");
    op_trial t;
    assert_ok(op_trial_copy(&t, first_failure(), e));
    int32_t error = op_trial_first_error(&t);
    assert_true(t.response[error + 1] >= 0 && error + 1 < t.n_response);
    t.response[error + 1] = 400; /* the reset token, right after the error */
    assert_true(rise("backtrack", &t, error + 1) > 0.01);
    op_trial_release(&t);
    static const char reference[] = "In the case. They ask! why";
    op_tokenizer *k;
    op_tokens tokens;
    op_tokens_init(&tokens);
    assert_ok(op_tokenizer_open(&k, in_dir("model"), e));
    assert_ok(op_tokenizer_encode(k, reference, strlen(reference), 0, &tokens, e));
    assert_int_equal(trained, tokens.n + 2); /* reset, reference, end of turn */
    op_tokens_release(&tokens);
    op_tokenizer_free(k);
    assert_int_equal(run_stage("no reset", "method: backtrack, rounds: 1, prompts: 1", NULL, NULL), OP_ERR_ARG);
    assert_non_null(strstr(e->message, "\"reset\""));
}

static void what_was_taken_back_is_not_heard(void **state)
{
    (void)state;
    world_cues = asks;
    world_n = 1;
    world_teach = mark_first_odd;
    run("learned", "method: backtrack, reset: '!', rounds: 6, prompts: 4, group: 8, max_tokens: 8, lr: 2e-2"); /* "!" soon stands in many an answer */
    int heard = 0;
    for (int i = 0; i < n_seen; i++)
        for (int32_t k = 0; k < seen[i].n_response; k++)
            heard += seen[i].response[k] == 0; /* the tokenizer's "!" */
    assert_int_equal(heard, 0);
    int cut = 0;
    for (int i = 0; i < n_seen; i++)
        cut += !seen[i].logprobs; /* made by hand from what followed a reset */
    assert_true(cut > 0);
}

/* ---- whatever a schedule keeps back ---- */

static void a_probe_is_neither_redone_nor_corrected_nor_learned_from(void **state)
{
    (void)state;
    static const char *const methods[] = {"reward", "marking", "redo", "alternatives", "preference", "shaping"};
    world_cues = one;
    world_n = 1;
    world_teach = mark_first_odd;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        char stage[256], name[32];
        snprintf(name, sizeof name, "probe-%s", methods[i]);
        snprintf(stage, sizeof stage, "method: %s, schedule: {type: continuous, probe: 1}, rounds: 2, prompts: 2, group: 2, max_tokens: 3", methods[i]);
        run(name, stage);
        assert_int_equal(n_calls, 2);
        assert_true(fabs(even_probability(name) - even_probability("model")) < 1e-9);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_scalar_baseline_learns_the_reward_whatever_the_marks_say),
        cmocka_unit_test(marks_alone_raise_what_they_stand_on_and_more_where_they_were_put_than_shuffled),
        cmocka_unit_test(a_share_is_the_last_tokens_attention_to_a_token_of_the_answer_and_their_sum_is_the_answers_length),
        cmocka_unit_test(a_reward_that_is_spread_by_attention_is_learned),
        cmocka_unit_test(every_kind_of_pair_and_each_loss_raises_the_better_answer),
        cmocka_unit_test(a_term_of_no_weight_teaches_nothing),
        cmocka_unit_test(a_reference_is_the_words_and_the_end_token_and_its_sentences_are_its_steps),
        cmocka_unit_test(imitation_raises_every_token_of_the_reference_in_both_kinds_of_prompt),
        cmocka_unit_test(an_onset_that_weighs_more_rises_more_than_without),
        cmocka_unit_test(a_cue_without_reference_is_an_error_where_the_method_needs_one),
        cmocka_unit_test(no_redo_raises_a_token_marked_wrong),
        cmocka_unit_test(a_rewound_answer_keeps_what_stood_before_the_error_and_a_guided_one_has_the_right_token_there),
        cmocka_unit_test(a_redo_is_learned_from_where_it_was_rewound_to_and_nothing_is_where_it_gained_nothing),
        cmocka_unit_test(a_delayed_redo_comes_so_many_rounds_after_its_error),
        cmocka_unit_test(a_redo_that_succeeds_is_preferred_where_it_parts_unless_that_is_switched_off),
        cmocka_unit_test(the_pick_rises_at_its_place_and_other_places_hardly_move),
        cmocka_unit_test(whole_answers_and_the_teachers_text_are_preferred_to_the_failure),
        cmocka_unit_test(what_the_teacher_has_picked_already_is_reinforced_without_asking_again),
        cmocka_unit_test(backtracking_teaches_reset_and_reference_but_never_the_wrong_tokens_before),
        cmocka_unit_test(what_was_taken_back_is_not_heard),
        cmocka_unit_test(a_probe_is_neither_redone_nor_corrected_nor_learned_from),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
