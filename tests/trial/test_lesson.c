/* A lesson: known methods as its settings, against gradients put together by hand from single forwards. */
#include "../train/tools.h"

#include <operant/lesson.h>

enum { PROMPT = 6 };

static op_trial trials[8]; /* made by setup: one prompt, responses of 3..10 tokens that begin with the same 2 */

static op_trial make_trial(int k, int32_t n)
{
    op_trial t;
    op_trial_init(&t);
    t.id = k + 1;
    t.n_prompt = PROMPT;
    t.n_response = n;
    t.prompt = op_alloc_array(PROMPT, sizeof *t.prompt);
    t.response = op_alloc_array((size_t)n, sizeof *t.response);
    t.logprobs = op_alloc_array((size_t)n, sizeof *t.logprobs);
    for (int32_t i = 0; i < PROMPT; i++)
        t.prompt[i] = (int32_t)op_rng_below(1, OP_STREAM_TEST, (uint64_t)i, VOCAB);
    for (int32_t i = 0; i < n; i++) {
        t.response[i] = (int32_t)op_rng_below(2, OP_STREAM_TEST, i < 2 ? (uint64_t)i : (uint64_t)(100 * (k + 1) + i), VOCAB);
        t.logprobs[i] = -4.1f - 0.01f * (float)i;
    }
    strcpy(t.policy, "now");
    return t;
}

static int setup(void **state)
{
    (void)state;
    for (int k = 0; k < 8; k++)
        trials[k] = make_trial(k, 3 + k);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int k = 0; k < 8; k++)
        op_trial_release(&trials[k]);
    return 0;
}

/* Trial k with a reward, sharing the tokens of trials[k]. */
static op_trial rewarded(int k, double reward)
{
    op_trial t = trials[k];
    t.has_reward = true;
    t.reward = reward;
    return t;
}

static op_lesson *lesson_of(op_lesson_options o)
{
    op_lesson *l = NULL;
    assert_ok(op_lesson_new(&l, &o, e));
    return l;
}

static op_learner *learner_of(op_model *m, int32_t share_min)
{
    op_learner_options o = {.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .block_tokens = 4096, .share_min = share_min};
    op_learner *l = NULL;
    assert_ok(op_learner_new(&l, m, &o, e));
    return l;
}

/* A tiny model whose adapter, if that is what it trains, is no longer the identity. */
static op_model *subject(op_trainable what)
{
    op_model *m = tiny_model(what, 0);
    op_params p = op_model_params(m);
    for (size_t i = 0; what == OP_TRAIN_ADAPTER && i < p.n; i++)
        p.values[i] += (float)(0.05 * op_rng_normal(3, OP_STREAM_TEST, i));
    assert_ok(op_model_updated(m, e));
    return m;
}

static float *copy_of(const float *x, size_t n)
{
    float *y = malloc(n * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

/* The gradient of one update with the rate 0, which changes no weight. Caller frees. */
static float *gradient(op_lesson *l, op_model *m, int32_t share_min, op_lesson_stats *s)
{
    op_learner *learner = learner_of(m, share_min);
    op_lesson_stats dropped;
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0, s ? s : &dropped, e));
    op_learner_free(learner);
    op_params p = op_model_params(m);
    return copy_of(p.grads, p.n);
}

/* d/dparameters of sum_t w[t] log p_t of one trial's response, from a forward of its own, added times `times` to sum. Returns the sum itself. */
static double add_gradient(op_model *m, const op_trial *t, const float *w, double times, double *sum)
{
    int32_t n = t->n_prompt + t->n_response;
    int32_t *ids = calloc((size_t)n, sizeof *ids);
    float *weights = calloc((size_t)n, sizeof *weights);
    memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
    memcpy(ids + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
    memcpy(weights + t->n_prompt, w, (size_t)t->n_response * sizeof *weights);
    op_item item = {.ids = ids, .weights = weights, .n = n};
    op_learner *learner = learner_of(m, 0);
    op_step_stats s;
    assert_ok(op_learner_gradient(learner, &item, 1, &s, e));
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++)
        sum[i] -= times * s.weight * (double)p.grads[i]; /* the loss is -(1/weight) times the sum */
    op_learner_free(learner);
    free(ids);
    free(weights);
    return -s.loss * s.weight;
}

static void assert_same(const float *found, const double *expected, size_t n)
{
    double top = 0, off = 0;
    for (size_t i = 0; i < n; i++) {
        top = fmax(top, fabs(expected[i]));
        off = fmax(off, fabs(expected[i] - (double)found[i]));
    }
    assert_true(top > 0);
    if (!(off < 2e-5 * top))
        fail_msg("off by %g of %g", off, top);
}

static const float ones[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* ---- imitation ---- */

static void imitation_of_everything_is_supervised_learning_bit_for_bit(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ALL);
    op_lesson *l = lesson_of(op_lesson_defaults());
    op_item plainly[4];
    for (int k = 0; k < 4; k++) {
        const op_trial *t = &trials[k];
        int32_t n = t->n_prompt + t->n_response, *ids = malloc((size_t)n * sizeof *ids);
        float *w = calloc((size_t)n, sizeof *w);
        memcpy(ids, t->prompt, PROMPT * sizeof *ids);
        memcpy(ids + PROMPT, t->response, (size_t)t->n_response * sizeof *ids);
        for (int32_t i = PROMPT + 1; i < n; i++)
            w[i] = 1;
        plainly[k] = (op_item){.ids = ids, .weights = w, .n = n};
        assert_ok(op_lesson_add_imitation(l, t, 1, NULL, e));
    }
    op_lesson_stats s;
    float *found = gradient(l, m, 2, &s);
    op_learner *learner = learner_of(m, 2);
    op_step_stats plain;
    assert_ok(op_learner_gradient(learner, plainly, 4, &plain, e));
    op_params p = op_model_params(m);
    assert_memory_equal(found, p.grads, p.n * sizeof *found);
    assert_float_equal(s.imitation_loss, plain.loss, 0);
    assert_float_equal(s.step.loss, plain.loss, 0);
    assert_true(isnan(s.policy_loss) && isnan(s.entropy));
    assert_true(plain.computed < plain.tokens);
    for (int k = 0; k < 4; k++) {
        free((void *)(uintptr_t)plainly[k].ids);
        free((void *)(uintptr_t)plainly[k].weights);
    }
    free(found);
    op_learner_free(learner);
    op_lesson_free(l);
    op_model_free(m);
}

static double response_logp(op_model *m, const op_trial *t)
{
    op_params p = op_model_params(m);
    double *dropped = calloc(p.n, sizeof *dropped);
    double sum = add_gradient(m, t, ones, 1, dropped);
    free(dropped);
    return sum;
}

static void unlikelihood_teaches_away_with_a_loss_that_has_a_bottom(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ALL);
    op_learner *learner = learner_of(m, 0);
    op_lesson_options o = op_lesson_defaults();
    o.unlikelihood = true;
    op_lesson *l = lesson_of(o);
    const float away[] = {-1, -1, -1, -1, -1, -1};
    op_lesson_stats s;
    assert_ok(op_lesson_add_imitation(l, &trials[2], 0, NULL, e));
    for (int i = 0; i < 30; i++)
        assert_ok(op_lesson_learn(l, learner, NULL, NULL, 0.01, &s, e));
    assert_true(response_logp(m, &trials[2]) > -3);
    op_lesson_clear(l);
    assert_ok(op_lesson_add_imitation(l, &trials[2], 0, away, e));
    double first = NAN;
    for (int i = 0; i < 60; i++) {
        assert_ok(op_lesson_learn(l, learner, NULL, NULL, 0.003, &s, e));
        first = i ? first : s.imitation_loss;
        assert_true(s.imitation_loss >= 0);
    }
    assert_true(s.imitation_loss < first / 10);
    assert_true(response_logp(m, &trials[2]) < -20);
    op_lesson_free(l);
    op_learner_free(learner);
    op_model_free(m);
}

/* ---- policy ---- */

/* What the lesson makes of four answers with rewards 1, 0, 0, 0.5, against advantages written out by hand. */
static void assert_group(op_lesson_options o, const double *advantage, double z, bool per_sequence)
{
    op_model *m = subject(OP_TRAIN_ADAPTER);
    op_params p = op_model_params(m);
    op_lesson *l = lesson_of(o);
    const double rewards[] = {1, 0, 0, 0.5};
    op_trial t[4];
    const op_trial *group[4];
    for (int k = 0; k < 4; k++) {
        t[k] = rewarded(k, rewards[k]);
        group[k] = &t[k];
    }
    assert_ok(op_lesson_add_group(l, group, 4, e));
    op_lesson_stats s;
    float *found = gradient(l, m, 2, &s);
    double *expected = calloc(p.n, sizeof *expected), loss = 0;
    for (int k = 0; k < 4; k++) {
        double times = -advantage[k] / z / (per_sequence ? t[k].n_response : 1);
        add_gradient(m, &t[k], ones, times, expected);
        loss += times * t[k].n_response;
    }
    assert_same(found, expected, p.n);
    assert_float_equal(s.policy_loss, loss, 1e-6);
    assert_int_equal(s.trials, 4);
    assert_float_equal(s.clip_fraction, 0, 0);
    free(found);
    free(expected);
    op_lesson_free(l);
    op_model_free(m);
}

static void grpo_dr_grpo_and_rloo_are_settings(void **state)
{
    (void)state;
    const double tokens = 3 + 4 + 5 + 6, mean = 0.375;
    const double centred[] = {1 - mean, -mean, -mean, 0.5 - mean};
    double squares = 0, grpo[4], rloo[4];
    for (int k = 0; k < 4; k++) {
        squares += centred[k] * centred[k];
        rloo[k] = centred[k] * 4 / 3;
    }
    for (int k = 0; k < 4; k++)
        grpo[k] = centred[k] / (sqrt(squares / 3) + 1e-4);
    op_lesson_options o = op_lesson_defaults();
    assert_group(o, centred, tokens, false);
    o.constant_length = 16; /* Dr.GRPO */
    assert_group(o, centred, 4 * 16, false);
    o.baseline = OP_BASELINE_LEAVE_ONE_OUT; /* RLOO */
    assert_group(o, rloo, 4 * 16, false);
    o = op_lesson_defaults();
    o.divide_by_deviation = o.per_sequence_mean = true; /* GRPO */
    assert_group(o, grpo, 4, true);
    o = op_lesson_defaults();
    o.baseline = OP_BASELINE_NONE;
    const double plain[] = {1, 0, 0, 0.5};
    assert_group(o, plain, 3 + 6, false); /* the two without an advantage are left out */
}

static void an_outcome_that_is_spread_earns_each_token_its_share_and_marks_stay_where_they_are(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ADAPTER);
    op_params p = op_model_params(m);
    op_lesson *spread = lesson_of(op_lesson_defaults()), *known = lesson_of(op_lesson_defaults());
    const float share[] = {2.5f, 0.25f, 0.25f, 1}, *shares[] = {share, NULL};
    op_trial t[2] = {rewarded(1, 1), rewarded(0, 0)};
    op_mark mark = {.start = 2, .end = 3, .value = -0.5};
    t[0].marks = &mark;
    t[0].n_marks = 1;
    const op_trial *group[] = {&t[0], &t[1]};
    const float first[] = {1.25f, 0.125f, 0.125f - 0.5f, 0.5f}, second[] = {-0.5f, -0.5f, -0.5f};
    assert_ok(op_lesson_add_spread(spread, group, shares, 2, e));
    assert_ok(op_lesson_add_advantages(known, &t[0], first, e));
    assert_ok(op_lesson_add_advantages(known, &t[1], second, e));
    float *a = gradient(spread, m, 2, NULL), *b = gradient(known, m, 2, NULL);
    assert_memory_equal(a, b, p.n * sizeof *a);
    free(a);
    free(b);
    op_lesson_free(spread);
    op_lesson_free(known);
    op_model_free(m);
}

static void marks_that_are_all_the_same_are_a_reward(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ALL);
    op_params p = op_model_params(m);
    op_lesson_options o = op_lesson_defaults();
    o.baseline = OP_BASELINE_NONE;
    o.mark_weight = 2;
    op_lesson *marked = lesson_of(o), *paid = lesson_of(o), *told = lesson_of(o);
    float a[10];
    for (int k = 0; k < 4; k++) {
        double value = k % 2 ? -0.25 : 0.5;
        op_trial t, r = rewarded(k, 2 * value);
        const op_trial *one = &t, *other = &r;
        assert_ok(op_trial_copy(&t, &trials[k], e));
        assert_ok(op_trial_add_mark(&t, 0, 2, value, "a", NULL, e));
        assert_ok(op_trial_add_mark(&t, 2, t.n_response, value, "a", NULL, e));
        assert_ok(op_lesson_add_group(marked, &one, 1, e));
        assert_ok(op_lesson_add_group(paid, &other, 1, e));
        for (int32_t i = 0; i < r.n_response; i++)
            a[i] = (float)(2 * value);
        assert_ok(op_lesson_add_advantages(told, &r, a, e));
        op_trial_release(&t);
    }
    op_lesson_stats s, s2;
    float *x = gradient(marked, m, 2, &s), *y = gradient(told, m, 2, NULL), *z = gradient(paid, m, 2, &s2);
    assert_memory_equal(x, y, p.n * sizeof *x);
    assert_float_equal(s.marks_per_trial, 2, 0);
    assert_float_equal(s2.marks_per_trial, 0, 0);
    /* with baseline none a single trial's reward is its advantage */
    assert_memory_equal(x, z, p.n * sizeof *x);
    free(x);
    free(y);
    free(z);
    op_lesson_free(marked);
    op_lesson_free(paid);
    op_lesson_free(told);
    op_model_free(m);
}

static void the_first_update_has_a_ratio_of_1_and_later_ones_are_measured_against_it(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ALL);
    op_learner *learner = learner_of(m, 0);
    op_lesson *l = lesson_of(op_lesson_defaults());
    const float up[] = {1, 1, 1, 1, 1, 1}, down[] = {-1, -1, -1, -1, -1};
    op_lesson_stats s;
    assert_ok(op_lesson_add_advantages(l, &trials[3], up, e));
    assert_ok(op_lesson_add_advantages(l, &trials[2], down, e));
    double before = response_logp(m, &trials[3]) + response_logp(m, &trials[2]);
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.02, &s, e));
    assert_float_equal(s.policy_loss, -(6.0 - 5.0) / 11, 1e-12); /* every ratio exactly 1 */
    assert_float_equal(s.clip_fraction, 0, 0);
    assert_float_equal(s.behaviour_kl, 0, 0);
    assert_float_equal(s.entropy, -before / 11, 1e-5);
    assert_true(s.sampling_gap > 0 && s.sampling_gap < 2); /* the stored numbers are made up */
    for (int i = 0; i < 3; i++)
        assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.02, &s, e)); /* the same name: recomputed once all the same */
    assert_true(isnan(s.sampling_gap));
    assert_true(s.behaviour_kl > 0.01);
    assert_true(s.clip_fraction > 0.5);
    assert_true(s.policy_loss < -(6.0 - 5.0) / 11);
    op_lesson_free(l);
    op_learner_free(learner);
    op_model_free(m);
}

static void trials_of_an_older_policy_keep_their_log_probabilities(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ALL);
    op_lesson *l = lesson_of(op_lesson_defaults());
    op_trial t;
    assert_ok(op_trial_copy(&t, &trials[3], e));
    strcpy(t.policy, "older");
    for (int32_t i = 0; i < t.n_response; i++)
        t.logprobs[i] = i < 2 ? -20 : -0.001f; /* far less likely then; far likelier */
    op_lesson_stats s;
    assert_ok(op_lesson_add_advantages(l, &t, ones, e));
    free(gradient(l, m, 0, &s));
    assert_float_equal(s.clip_fraction, 2.0 / 6, 1e-12); /* an advantage of 1 clips from above only */
    assert_true(isnan(s.sampling_gap));
    assert_true(s.behaviour_kl > 1);
    op_lesson_clear(l);
    t.n_forced = 2; /* the teacher placed them: no ratio */
    assert_ok(op_lesson_add_advantages(l, &t, ones, e));
    free(gradient(l, m, 0, &s));
    assert_float_equal(s.clip_fraction, 0, 0);
    op_lesson_clear(l);
    t.n_forced = 0;
    for (int32_t i = 0; i < t.n_response; i++)
        t.logprobs[i] = -20;
    assert_ok(op_lesson_add_advantages(l, &t, ones, e));
    assert_ok(op_lesson_add_advantages(l, &trials[2], ones, e)); /* of now, beside it */
    free(gradient(l, m, 0, &s));
    assert_float_equal(s.policy_loss, -(6 * 1.28 + 5) / 11, 1e-12);
    op_trial_release(&t);
    op_lesson_free(l);
    op_model_free(m);
}

static void trials_without_log_probabilities_learn_like_those_just_sampled(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ALL);
    op_params p = op_model_params(m);
    op_lesson *typed = lesson_of(op_lesson_defaults()), *sampled = lesson_of(op_lesson_defaults());
    op_lesson_stats s;
    for (int k = 0; k < 3; k++) {
        op_trial t = trials[k];
        t.logprobs = NULL;
        t.policy[0] = 0;
        assert_ok(op_lesson_add_advantages(typed, &t, ones, e));
        assert_ok(op_lesson_add_advantages(sampled, &trials[k], ones, e));
    }
    float *x = gradient(typed, m, 2, &s), *y = gradient(sampled, m, 2, NULL);
    assert_memory_equal(x, y, p.n * sizeof *x);
    assert_true(isnan(s.behaviour_kl));
    free(x);
    x = gradient(typed, m, 2, &s); /* and so they do ever after */
    assert_memory_equal(x, y, p.n * sizeof *x);
    free(x);
    free(y);
    op_lesson_free(typed);
    op_lesson_free(sampled);
    op_model_free(m);
}

static void groups_without_variance_teach_nothing_and_are_counted(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ADAPTER);
    op_lesson *l = lesson_of(op_lesson_defaults());
    op_trial a = rewarded(0, 0.1), b = rewarded(1, 0.1), c = rewarded(2, 0.1), d = rewarded(3, 0.7);
    const op_trial *same[] = {&a, &b, &c}, *different[] = {&a, &d};
    assert_ok(op_lesson_add_group(l, same, 3, e));
    assert_int_equal(op_lesson_items(l), 0);
    op_lesson_stats s;
    op_learner *learner = learner_of(m, 0);
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.1, &s, e)); /* nothing to learn is no error and no step */
    assert_int_equal(op_learner_steps(learner), 0);
    assert_int_equal(s.step.tokens, 0);
    assert_ok(op_lesson_add_group(l, different, 2, e));
    assert_int_equal(op_lesson_items(l), 2);
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.1, &s, e));
    assert_float_equal(s.zero_variance, 0.5, 0);
    assert_int_equal(s.skipped, 3);
    assert_int_equal(s.trials, 5);
    op_learner_free(learner);
    op_lesson_free(l);
    op_model_free(m);
}

static void a_single_answer_is_measured_against_the_mean_of_those_before_it(void **state)
{
    (void)state;
    op_lesson *l = lesson_of(op_lesson_defaults());
    op_trial t = rewarded(0, 1);
    const op_trial *one = &t;
    assert_ok(op_lesson_add_group(l, &one, 1, e)); /* 1 - 0 */
    assert_float_equal(op_lesson_running(l).mean, 0.5, 1e-12);
    op_lesson_clear(l);
    assert_float_equal(op_lesson_running(l).mean, 0.5, 1e-12);
    for (int i = 0; i < 400; i++)
        assert_ok(op_lesson_add_group(l, &one, 1, e));
    assert_float_equal(op_lesson_running(l).mean, 1, 1e-6);
    assert_int_equal(op_lesson_running(l).count, 401);
    op_lesson_set_running(l, (op_running){1, 50});
    op_lesson_clear(l);
    assert_ok(op_lesson_add_group(l, &one, 1, e));
    assert_int_equal(op_lesson_items(l), 0); /* exactly as expected: nothing to learn */
    op_lesson_free(l);
}

static void the_kl_term_is_measured_from_the_model_without_its_adapter_and_pulls_back_to_it(void **state)
{
    (void)state;
    op_model *m = tiny_model(OP_TRAIN_ADAPTER, 0);
    op_learner *learner = learner_of(m, 2);
    op_lesson_options o = op_lesson_defaults();
    o.kl = 0.5;
    op_lesson *l = lesson_of(o);
    op_lesson_stats s;
    const float some[] = {0, 0, 0, 0, 0, 1}; /* the KL of the others counts too */
    assert_ok(op_lesson_add_advantages(l, &trials[3], some, e));
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0, &s, e));
    assert_float_equal(s.kl, 0, 1e-6); /* a new adapter changes nothing */
    assert_int_equal(s.step.trained, 6);
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++)
        p.values[i] += (float)(0.05 * op_rng_normal(3, OP_STREAM_TEST, i));
    assert_ok(op_model_updated(m, e));
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.003, &s, e));
    double first = s.kl;
    assert_true(first > 1e-4);
    assert_float_equal(s.step.loss, s.policy_loss + 0.5 * s.kl, 1e-9); /* six tokens each */
    op_lesson_clear(l);
    const float hardly[] = {0, 0, 0, 0, 0, 1e-9f};
    assert_ok(op_lesson_add_advantages(l, &trials[3], hardly, e));
    for (int i = 0; i < 40; i++)
        assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.003, &s, e));
    assert_true(s.kl < first / 4);
    op_lesson_free(l);
    op_learner_free(learner);
    op_model_free(m);
}

/* KL(m || reference) at the tokens of two answers with a common beginning, summed, and its gradient times `times`: every token of the vocabulary is put in the
 * place of the sampled one, since d KL = sum_v pi_v (log pi_v - log ref_v) d log pi_v. */
static double divergence_by_hand(op_model *m, op_model *reference, double times, double *gradient)
{
    double *dropped = calloc(op_model_params(m).n + op_model_params(reference).n, sizeof *dropped), all = 0;
    for (int k = 0; k < 2; k++)
        for (int32_t at = 0; at < trials[k].n_response; at++)
            for (int32_t v = 0; v < VOCAB; v++) {
                int32_t ids[8];
                float w[8] = {0};
                op_trial t = trials[k];
                memcpy(ids, t.response, (size_t)at * sizeof *ids);
                ids[at] = v;
                w[at] = 1;
                t.response = ids;
                t.n_response = at + 1;
                double pi = add_gradient(m, &t, w, 0, dropped), gap = pi - add_gradient(reference, &t, w, 0, dropped);
                add_gradient(m, &t, w, times * exp(pi) * gap, gradient);
                all += exp(pi) * gap;
            }
    free(dropped);
    return all;
}

static void the_exact_kl_term_has_the_gradient_of_a_sum_over_the_vocabulary_however_the_step_is_cut(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ADAPTER), *base = tiny_model(OP_TRAIN_ADAPTER, 0), *other = tiny_model(OP_TRAIN_ADAPTER, 0);
    op_params p = op_model_params(m), q = op_model_params(other);
    for (size_t i = 0; i < q.n; i++)
        q.values[i] += (float)(0.05 * op_rng_normal(9, OP_STREAM_TEST, i));
    assert_ok(op_model_updated(other, e));
    op_lesson_options o = op_lesson_defaults();
    o.kl = 0.5;
    o.kl_kind = OP_KL_FULL;
    const float hardly[] = {1e-12f, 1e-12f, 0, 0}; /* the KL of every token counts */
    for (int with = 0; with < 2; with++) {
        double *expected = calloc(p.n, sizeof *expected), kl = divergence_by_hand(m, with ? other : base, 0.5 / 7, expected) / 7;
        assert_true(kl > 1e-4);
        for (int way = 0; way < 4; way++) { /* one micro-batch or many; a policy that is fresh, and one that needs log p first */
            op_learner_options how = {.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .block_tokens = way % 2 ? 1 : 4096, .share_min = 2};
            op_learner *learner = NULL;
            op_lesson *l = lesson_of(o);
            op_lesson_stats s;
            assert_ok(op_learner_new(&learner, m, &how, e));
            for (int k = 0; k < 2; k++)
                assert_ok(op_lesson_add_advantages(l, &trials[k], hardly, e));
            assert_ok(op_lesson_learn(l, learner, with ? other : NULL, way < 2 ? "now" : "later", 0, &s, e));
            assert_int_equal(s.step.micro_batches, way % 2 ? 2 : 1);
            assert_same(p.grads, expected, p.n);
            assert_float_equal(s.kl, kl, 1e-4 * kl);
            assert_float_equal(s.step.loss, s.policy_loss + 0.5 * s.kl, 1e-9);
            op_lesson_free(l);
            op_learner_free(learner);
        }
        free(expected);
    }
    op_model_free(m);
    op_model_free(base);
    op_model_free(other);
}

/* ---- preferences ---- */

/* The gradient of a preference between trials[3] and trials[5] over tokens from .. to-1 with these signed weights, one forward at a time. */
static double *preference_by_hand(op_model *m, op_model *reference, const float *good, const float *bad, double beta, double *loss)
{
    op_params p = op_model_params(m);
    double *dropped = calloc(p.n + op_model_params(reference).n, sizeof *dropped), *sum = calloc(p.n, sizeof *sum);
    double d = add_gradient(m, &trials[3], good, 0, dropped) - add_gradient(m, &trials[5], bad, 0, dropped);
    d -= add_gradient(reference, &trials[3], good, 0, dropped) - add_gradient(reference, &trials[5], bad, 0, dropped);
    double slope = -beta / (1 + exp(beta * d));
    add_gradient(m, &trials[3], good, slope, sum);
    add_gradient(m, &trials[5], bad, -slope, sum);
    *loss = log1p(exp(-beta * d));
    free(dropped);
    return sum;
}

static void preferences_over_a_shared_beginning_have_the_gradient_of_two_separate_forwards(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ADAPTER), *base = tiny_model(OP_TRAIN_ALL, 0); /* the same seed: the same base weights */
    op_params p = op_model_params(m);
    op_lesson_options o = op_lesson_defaults();
    o.beta = 0.7;
    op_lesson *l = lesson_of(o);
    const float whole[] = {1, 1, 1, 1, 1, 1, 1, 1}, parting[] = {0, 0, 1, 1, 0, 0, 0, 0};
    for (int branch = 0; branch < 2; branch++) {
        op_lesson_clear(l);
        assert_ok(op_lesson_add_preference(l, &trials[3], &trials[5], branch ? 2 : 0, branch ? 2 : 0, e));
        double loss, *expected = preference_by_hand(m, base, branch ? parting : whole, branch ? parting : whole, 0.7, &loss);
        op_lesson_stats s;
        float *found = gradient(l, m, 2, &s);
        assert_same(found, expected, p.n);
        assert_float_equal(s.preference_loss, loss, 1e-5);
        assert_int_equal(s.step.computed, s.step.tokens - (branch ? PROMPT + 2 : PROMPT)); /* context is computed once */
        assert_int_equal(s.step.trained, branch ? 4 : 6 + 8);
        free(found);
        free(expected);
    }
    op_lesson_free(l);
    op_model_free(base);
    op_model_free(m);
}

static void marks_weigh_the_tokens_of_a_preference_with_their_signs(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ADAPTER), *base = tiny_model(OP_TRAIN_ALL, 0);
    op_params p = op_model_params(m);
    op_lesson *l = lesson_of(op_lesson_defaults());
    op_trial bad;
    assert_ok(op_trial_copy(&bad, &trials[5], e));
    assert_ok(op_trial_add_mark(&bad, 4, 6, -1, "a", NULL, e));
    assert_ok(op_trial_add_mark(&bad, 7, 8, 0.5, "a", "this was good", e));
    assert_ok(op_lesson_add_preference(l, &trials[3], &bad, 2, 0, e));
    const float good_w[] = {0, 0, 1, 1, 1, 1}, bad_w[] = {0, 0, 0, 0, 1, 1, 0, -0.5f};
    double loss, *expected = preference_by_hand(m, base, good_w, bad_w, 0.1, &loss);
    op_lesson_stats s;
    float *found = gradient(l, m, 2, &s);
    assert_same(found, expected, p.n);
    assert_float_equal(s.preference_loss, loss, 1e-6);
    free(found);
    free(expected);
    op_trial_release(&bad);
    op_lesson_free(l);
    op_model_free(base);
    op_model_free(m);
}

static void dpo_ipo_and_the_hinge_come_to_prefer_what_they_are_shown(void **state)
{
    (void)state;
    for (int type = 0; type < 3; type++) {
        op_model *m = tiny_model(OP_TRAIN_ADAPTER, 0);
        op_learner *learner = learner_of(m, 2);
        op_lesson_options o = op_lesson_defaults();
        o.preference = (op_preference_type)type;
        op_lesson *l = lesson_of(o);
        op_lesson_stats s;
        assert_ok(op_lesson_add_preference(l, &trials[3], &trials[5], 2, 0, e));
        assert_ok(op_lesson_add_preference(l, &trials[4], &trials[5], 2, 0, e));
        assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.01, &s, e));
        const double at_0[] = {log(2), 25, 1}; /* a new adapter is its own reference: the margin is 0 */
        assert_float_equal(s.preference_loss, at_0[type], 1e-4);
        for (int i = 0; i < 30; i++)
            assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.01, &s, e));
        assert_true(s.preference_loss < 0.7 * at_0[type]);
        assert_float_equal(s.preference_accuracy, 1, 0);
        op_lesson_free(l);
        op_learner_free(learner);
        op_model_free(m);
    }
}

static void kto_learns_from_trials_that_are_judged_one_by_one(void **state)
{
    (void)state;
    op_model *m = tiny_model(OP_TRAIN_ADAPTER, 0);
    op_learner *learner = learner_of(m, 2);
    op_lesson *l = lesson_of(op_lesson_defaults());
    double good = response_logp(m, &trials[3]), bad = response_logp(m, &trials[5]);
    op_lesson_stats s;
    op_trial elsewhere = trials[5];
    elsewhere.n_prompt--; /* another prompt */
    assert_ok(op_lesson_add_judged(l, &trials[3], true, e));
    assert_ok(op_lesson_add_judged(l, &trials[5], false, e));
    assert_int_equal(op_lesson_items(l), 2);
    assert_ok(op_lesson_add_judged(l, &elsewhere, false, e));
    assert_int_equal(op_lesson_items(l), 4); /* and a point of reference */
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.01, &s, e));
    assert_float_equal(s.kto_loss, 0.5, 1e-5);
    for (int i = 0; i < 30; i++)
        assert_ok(op_lesson_learn(l, learner, NULL, "now", 0.01, &s, e));
    assert_true(s.kto_loss < 0.42);
    assert_true(response_logp(m, &trials[3]) > good + 1);
    assert_true(response_logp(m, &trials[5]) < bad - 1);
    op_lesson_free(l);
    op_learner_free(learner);
    op_model_free(m);
}

/* ---- all of it ---- */

static op_status add_everything(op_lesson *l, op_error *e)
{
    op_trial a = rewarded(0, 1), b = rewarded(1, 0);
    const op_trial *group[] = {&a, &b};
    op_status s = op_lesson_add_group(l, group, 2, e);
    if (!s)
        s = op_lesson_add_preference(l, &trials[3], &trials[5], 2, 0, e);
    if (!s)
        s = op_lesson_add_judged(l, &trials[6], true, e);
    if (!s)
        s = op_lesson_add_judged(l, &trials[7], false, e);
    op_trial elsewhere = trials[5];
    elsewhere.n_prompt--;
    if (!s)
        s = op_lesson_add_judged(l, &elsewhere, true, e);
    return s ? s : op_lesson_add_imitation(l, &trials[2], 0, (const float[]){1, -1, 1, 0, 1}, e);
}

static op_lesson_options everything(void)
{
    op_lesson_options o = op_lesson_defaults();
    o.kl = 0.3;
    o.unlikelihood = true;
    o.preference_weight = 2;
    o.kto_weight = 3;
    o.imitation_weight = 4;
    return o;
}

static void terms_of_one_lesson_add_up_and_each_sees_its_own_trials(void **state)
{
    (void)state;
    op_model *m = subject(OP_TRAIN_ADAPTER);
    op_params p = op_model_params(m);
    op_lesson *l = lesson_of(everything());
    assert_ok(add_everything(l, e));
    op_lesson_stats s, part;
    float *found = gradient(l, m, 2, &s);
    double *sum = calloc(p.n, sizeof *sum);
    for (int k = 0; k < 4; k++) {
        op_trial a = rewarded(0, 1), b = rewarded(1, 0);
        const op_trial *group[] = {&a, &b};
        op_lesson *own = lesson_of(everything());
        if (k == 0)
            assert_ok(op_lesson_add_group(own, group, 2, e));
        if (k == 1)
            assert_ok(op_lesson_add_preference(own, &trials[3], &trials[5], 2, 0, e));
        op_trial elsewhere = trials[5];
        elsewhere.n_prompt--;
        if (k == 2)
            assert_ok(op_lesson_add_judged(own, &trials[6], true, e) || op_lesson_add_judged(own, &trials[7], false, e) ||
                      op_lesson_add_judged(own, &elsewhere, true, e));
        if (k == 3)
            assert_ok(op_lesson_add_imitation(own, &trials[2], 0, (const float[]){1, -1, 1, 0, 1}, e));
        float *g = gradient(own, m, 0, &part);
        for (size_t i = 0; i < p.n; i++)
            sum[i] += (double)g[i];
        const double whole[] = {s.policy_loss, s.preference_loss, s.kto_loss, s.imitation_loss};
        const double alone[] = {part.policy_loss, part.preference_loss, part.kto_loss, part.imitation_loss};
        assert_float_equal(whole[k], alone[k], 1e-5);
        free(g);
        op_lesson_free(own);
    }
    assert_same(found, sum, p.n);
    assert_float_equal(s.step.loss, s.policy_loss + 0.3 * s.kl + 2 * s.preference_loss + 3 * s.kto_loss + 4 * s.imitation_loss, 1e-6);
    free(found);
    free(sum);
    op_lesson_free(l);
    op_model_free(m);
}

static void in_many_micro_batches(op_lesson_options terms)
{
    op_model *m = subject(OP_TRAIN_ADAPTER);
    op_params p = op_model_params(m);
    op_lesson *l = lesson_of(terms);
    assert_ok(add_everything(l, e));
    op_lesson_stats s;
    float *one = gradient(l, m, 2, &s);
    assert_int_equal(s.step.micro_batches, 1);
    op_learner_options o = {.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .block_tokens = 1};
    op_learner *learner = NULL;
    assert_ok(op_learner_new(&learner, m, &o, e));
    assert_ok(op_lesson_learn(l, learner, NULL, "now", 0, &s, e)); /* the two of a pair never meet in a forward */
    assert_int_equal(s.step.micro_batches, op_lesson_items(l));
    double *expected = calloc(p.n, sizeof *expected);
    for (size_t i = 0; i < p.n; i++)
        expected[i] = (double)one[i];
    assert_same(p.grads, expected, p.n);
    free(one);
    free(expected);
    op_learner_free(learner);
    op_lesson_free(l);
    op_model_free(m);
}

static void a_lesson_in_many_micro_batches_has_the_gradient_of_one(void **state)
{
    (void)state;
    op_lesson_options o = everything();
    in_many_micro_batches(o);
    o.kl_kind = OP_KL_FULL;
    in_many_micro_batches(o);
}

static void what_does_not_fit_together_is_refused(void **state)
{
    (void)state;
    op_lesson_options o = op_lesson_defaults();
    op_lesson *l = NULL;
    op_error e;
    o.clip_low = 1.5;
    assert_int_equal(op_lesson_new(&l, &o, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "lesson: clip_low is 1.5, expected 0..1");
    assert_null(l);
    o = op_lesson_defaults();
    o.per_sequence_mean = true;
    o.constant_length = 8;
    assert_int_equal(op_lesson_new(&l, &o, &e), OP_ERR_ARG);
    o = op_lesson_defaults();
    o.kl = 0.1;
    l = lesson_of(o);
    assert_int_equal(op_lesson_add_preference(l, &trials[3], &trials[5], 3, 0, &e), OP_ERR_MISMATCH);
    assert_string_equal(e.message, "trials 4 and 6 part before token 3");
    assert_int_equal(op_lesson_add_preference(l, &trials[3], &trials[5], 6, 0, &e), OP_ERR_ARG);
    op_trial other = trials[5];
    other.n_prompt--;
    assert_int_equal(op_lesson_add_preference(l, &trials[3], &other, 0, 0, &e), OP_ERR_MISMATCH);
    assert_string_equal(e.message, "trials 4 and 6 have different prompts");
    const float bad[] = {1, NAN, 1, 1, 1, 1};
    assert_int_equal(op_lesson_add_advantages(l, &trials[3], bad, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "trial 4: the advantage of token 1 is not finite");
    assert_int_equal(op_lesson_add_imitation(l, &trials[3], 7, NULL, &e), OP_ERR_ARG);
    assert_int_equal(op_lesson_items(l), 0);
    assert_int_equal(op_lesson_add_advantages(l, &trials[3], ones, &e), OP_OK);
    op_model *m = subject(OP_TRAIN_ALL);
    op_learner *learner = learner_of(m, 0);
    op_lesson_stats s;
    assert_int_equal(op_lesson_learn(l, learner, NULL, "now", 0.1, &s, &e), OP_ERR_ARG);
    assert_string_equal(e.message, "lesson: kl is 0.1 without a reference model, expected 0");
    assert_int_equal(op_learner_steps(learner), 0);
    assert_int_equal(op_lesson_learn(l, learner, m, "now", 0, &s, &e), OP_OK); /* itself will do */
    assert_float_equal(s.kl, 0, 1e-6);
    op_learner_free(learner);
    op_lesson_free(l);
    op_model_free(m);
}

static void fail_every_allocation(op_kl_kind kind)
{
    op_model *m = subject(OP_TRAIN_ADAPTER), *other = tiny_model(OP_TRAIN_NONE, 0);
    op_lesson_options o = everything();
    o.kl_kind = kind;
    bool done = false;
    int failures = 0;
    op_learner *learner = learner_of(m, 2);
    for (long k = 0; !done && k < 2000; k++) {
        op_lesson *l = NULL;
        op_lesson_stats s;
        op_alloc_fail_from(k);
        op_status status = op_lesson_new(&l, &o, NULL);
        if (!status)
            status = add_everything(l, NULL);
        if (!status)
            status = op_lesson_learn(l, learner, other, "now", 0, &s, NULL);
        op_alloc_fail_from(-1);
        assert_true(status == OP_OK || status == OP_ERR_NOMEM);
        done = status == OP_OK;
        failures += !done;
        op_lesson_free(l);
    }
    assert_true(done && failures >= 20);
    op_learner_free(learner);
    op_model_free(other);
    op_model_free(m);
}

static void every_failed_allocation_is_reported_and_nothing_leaks(void **state)
{
    (void)state;
    fail_every_allocation(OP_KL_SAMPLED);
    fail_every_allocation(OP_KL_FULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(imitation_of_everything_is_supervised_learning_bit_for_bit),
        cmocka_unit_test(unlikelihood_teaches_away_with_a_loss_that_has_a_bottom),
        cmocka_unit_test(grpo_dr_grpo_and_rloo_are_settings),
        cmocka_unit_test(an_outcome_that_is_spread_earns_each_token_its_share_and_marks_stay_where_they_are),
        cmocka_unit_test(marks_that_are_all_the_same_are_a_reward),
        cmocka_unit_test(the_first_update_has_a_ratio_of_1_and_later_ones_are_measured_against_it),
        cmocka_unit_test(trials_of_an_older_policy_keep_their_log_probabilities),
        cmocka_unit_test(trials_without_log_probabilities_learn_like_those_just_sampled),
        cmocka_unit_test(groups_without_variance_teach_nothing_and_are_counted),
        cmocka_unit_test(a_single_answer_is_measured_against_the_mean_of_those_before_it),
        cmocka_unit_test(the_kl_term_is_measured_from_the_model_without_its_adapter_and_pulls_back_to_it),
        cmocka_unit_test(the_exact_kl_term_has_the_gradient_of_a_sum_over_the_vocabulary_however_the_step_is_cut),
        cmocka_unit_test(preferences_over_a_shared_beginning_have_the_gradient_of_two_separate_forwards),
        cmocka_unit_test(marks_weigh_the_tokens_of_a_preference_with_their_signs),
        cmocka_unit_test(dpo_ipo_and_the_hinge_come_to_prefer_what_they_are_shown),
        cmocka_unit_test(kto_learns_from_trials_that_are_judged_one_by_one),
        cmocka_unit_test(terms_of_one_lesson_add_up_and_each_sees_its_own_trials),
        cmocka_unit_test(a_lesson_in_many_micro_batches_has_the_gradient_of_one),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
        cmocka_unit_test(every_failed_allocation_is_reported_and_nothing_leaks),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
