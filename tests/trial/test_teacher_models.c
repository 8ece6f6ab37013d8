/* The teachers that need a model: the frozen judge and the learned marker, on a tiny random one. */
#include <operant/subject.h>
#include <operant/teacher.h>

#include "trial_tools.h"

static op_model *model;

static int set_up(void **state)
{
    open_words(state);
    op_model_config c = {.family = OP_LLAMA, .vocab = 416, .width = 32, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32,
                         .max_positions = 128, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402}, .n_eos = 1};
    assert_ok(op_dir_make(in_dir("model"), e));
    assert_ok(op_model_new(&model, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e));
    op_params p = op_model_params(model);
    for (size_t i = 0; i < p.n; i++)
        p.values[i] *= i < p.table[0].n ? 20 : 3; /* surer of its tokens than a fresh model */
    assert_ok(op_model_updated(model, e));
    assert_ok(op_model_save(model, in_dir("model"), OP_F32, e));
    assert_ok(op_tokenizer_save(tokenizer, in_dir("model"), e));
    return 0;
}

static int tear_down(void **state)
{
    op_model_free(model);
    return close_words(state);
}

/* ---- the judge ---- */

/* log P(text after `before`) of the tokens of `word`, each sequence on its own, without branches. */
static double log_p(const char *before, const char *word)
{
    op_tokens ids;
    op_pass *pass;
    op_tokens_init(&ids);
    assert_ok(op_tokenizer_encode(tokenizer, before, strlen(before), OP_ENCODE_AFFIX, &ids, e));
    size_t n = ids.n;
    assert_ok(op_tokenizer_encode(tokenizer, word, strlen(word), OP_ENCODE_CONTINUE, &ids, e));
    op_seq seq = {.length = (int32_t)ids.n, .parent = -1, .adapter = -1};
    float logp[256];
    double sum = 0;
    assert_ok(op_pass_new(&pass, model, e));
    assert_ok(op_model_forward(model, pass, &(op_batch){(int32_t)ids.n, 1, ids.ids, &seq}, &(op_how){0}, e));
    assert_ok(op_model_logprobs(model, pass, NULL, NULL, logp, e));
    for (size_t i = n; i < ids.n; i++)
        sum += (double)logp[i];
    op_pass_free(pass);
    op_tokens_release(&ids);
    return sum;
}

static double p_yes(const char *question, const char *response)
{
    char prompt[500];
    snprintf(prompt, sizeof prompt, "Q %s A %s good?", question, response);
    double yes = exp(log_p(prompt, " yes")) + exp(log_p(prompt, " indeed so")), no = exp(log_p(prompt, " no"));
    return yes / (yes + no);
}

static const char *const replies[] = {"blue", "the sea", "no idea", "why do you ask", "seven", "go away", "ten or so", "fine"};
enum { REPLIES = sizeof replies / sizeof *replies };

/* Labels that agree with the judge, or are turned around. */
static void put_labels(const char *name, bool agree)
{
    double p[REPLIES], sorted[REPLIES];
    for (int i = 0; i < REPLIES; i++)
        p[i] = p_yes("what?", replies[i]);
    for (int i = 0; i < REPLIES; i++) {
        int rank = 0;
        for (int k = 0; k < REPLIES; k++)
            rank += p[k] < p[i];
        sorted[rank] = p[i];
    }
    op_buf b;
    op_buf_init(&b, 1 << 16);
    for (int i = 0; i < REPLIES; i++)
        op_buf_printf(&b, "{\"messages\":[{\"role\":\"user\",\"content\":\"what?\"}],\"response\":\"%s\",\"label\":%s}\n", replies[i],
                      (p[i] >= sorted[REPLIES / 2]) == agree ? "true" : "false");
    assert_ok(op_file_put(in_dir(name), b.data, b.len, e));
    op_buf_release(&b);
}

static op_status open_judge(op_teacher **t, const char *labels, const char *more)
{
    char settings[600];
    snprintf(settings, sizeof settings,
             "{\"type\":\"judge\",\"model\":\"model\",\"labelled\":\"%s\",\"raw\":true,\"dtype\":\"f32\",\"prompt\":\"Q {question} A {response} good?\","
             "\"yes\":[\" yes\",\" indeed so\"],\"no\":\" no\"%s}",
             labels, more);
    json_t *v = parse(settings);
    op_status s = op_teacher_open(t, v, &(op_classroom){.chat = &chat, .dir = dir}, NULL, e);
    json_decref(v);
    return s;
}

static void say(op_trial *t, const char *words)
{
    op_tokens ids;
    op_tokens_init(&ids);
    assert_ok(op_tokenizer_encode(tokenizer, words, strlen(words), OP_ENCODE_CONTINUE, &ids, e));
    op_trial_init(t);
    t->prompt = op_alloc_zero(1, 4);
    t->n_prompt = 1;
    t->response = op_alloc_array(ids.n, 4);
    t->n_response = (int32_t)ids.n;
    memcpy(t->response, ids.ids, ids.n * 4);
    op_tokens_release(&ids);
}

static void a_judge_rewards_by_the_probability_of_its_verdict(void **state)
{
    (void)state;
    put_labels("agree.jsonl", true);
    op_teacher *teacher;
    assert_ok(open_judge(&teacher, "agree.jsonl", ",\"low\":-1,\"name\":\"owl\""));
    for (int i = 0; i < REPLIES; i++) {
        op_trial t, *list = &t;
        say(&t, replies[i]);
        t.messages = parse("[{\"role\":\"user\",\"content\":\"what else?\"}]");
        assert_ok(teacher->teach(teacher, &list, 1, e));
        assert_true(t.has_reward);
        assert_float_equal(t.reward, 2 * p_yes("what else?", replies[i]) - 1, 1e-4);
        assert_string_equal(t.by, "owl");
        op_trial_release(&t);
    }
    json_t *saved;
    assert_ok(teacher->save(teacher, &saved, e));
    assert_float_equal(json_number_value(json_object_get(saved, "auroc")), 1, 1e-12);
    assert_ok(teacher->load(teacher, saved, e));
    json_object_set_new(saved, "hash", json_string("beef"));
    assert_int_equal(teacher->load(teacher, saved, e), OP_ERR_MISMATCH);
    json_decref(saved);
    op_teacher_close(teacher);
}

static void a_judge_that_cannot_tell_good_from_bad_may_not_teach(void **state)
{
    (void)state;
    put_labels("against.jsonl", false);
    op_teacher *teacher;
    assert_int_equal(open_judge(&teacher, "against.jsonl", ""), OP_ERR_MISMATCH);
    assert_says("judge model: AUROC 0.000 on the 8 labelled replies of");
    assert_says("expected at least 0.7: it may not teach");
    assert_true(open_judge(&teacher, "agree.jsonl", ",\"min_auroc\":0.5") != OP_OK); /* the bar cannot be lowered */
    assert_says("key \"min_auroc\": found 0.5, expected 0.7..1");
    const char *one = "{\"prompt\":\"what?\",\"response\":\"blue\",\"label\":true}\n";
    assert_ok(op_file_put(in_dir("one.jsonl"), one, strlen(one), e));
    assert_true(open_judge(&teacher, "one.jsonl", "") != OP_OK);
    assert_says("1 replies, 1 of them good: expected some good and some bad");
}

static void a_judge_must_see_the_response_and_nothing_unknown(void **state)
{
    (void)state;
    const char *const prompts[][2] = {{"is {question} good?", "{response} is missing"}, {"{response} {answer}", "found {answer}, expected {question}, {dialogue}"}};
    for (int i = 0; i < 2; i++) {
        op_teacher *teacher;
        json_t *v = json_pack("{ss ss ss ss}", "type", "judge", "model", "model", "labelled", "agree.jsonl", "prompt", prompts[i][0]);
        assert_true(op_teacher_open(&teacher, v, &(op_classroom){.chat = &chat, .dir = dir}, NULL, e) != OP_OK);
        assert_says(prompts[i][1]);
        json_decref(v);
    }
}

/* ---- the marker ---- */

enum { GOOD = 50, BAD = 60, LENGTH = 6 };

/* Fillers, and at the end the token that decides. */
static void random_words(op_trial *t, uint64_t seed, bool good)
{
    op_trial_init(t);
    t->id = (int64_t)seed;
    t->prompt = op_alloc_zero(3, 4);
    t->n_prompt = 3;
    t->response = op_alloc_array(LENGTH, 4);
    t->n_response = LENGTH;
    for (int i = 0; i < LENGTH; i++)
        t->response[i] = 100 + (int32_t)op_rng_below(seed, OP_STREAM_TEST, (uint64_t)i, 6);
    t->response[LENGTH - 1] = good ? GOOD : BAD;
}

static op_teacher *open_marker(const char *more)
{
    char settings[300];
    snprintf(settings, sizeof settings, "{\"type\":\"marker\",\"threshold\":0.25%s}", more);
    json_t *v = parse(settings);
    op_teacher *t;
    assert_ok(op_teacher_open(&t, v, &(op_classroom){.chat = &chat, .model = model, .seed = 8}, NULL, e));
    json_decref(v);
    return t;
}

static void lesson(op_teacher *marker, uint64_t from, uint64_t to)
{
    for (uint64_t k = from; k < to; k++) {
        op_trial t, *list = &t;
        random_words(&t, k, k % 2);
        t.has_reward = k % 5 != 0; /* some go without, and teach nothing */
        t.reward = k % 2;
        assert_ok(marker->learn(marker, &list, 1, e));
        op_trial_release(&t);
    }
}

typedef struct clicks {
    int hits;      /* of 100 new trials: the deciding token is clicked with the right sign */
    int elsewhere; /* of their 500 other tokens: clicked */
} clicks;

static clicks clicks_of(op_teacher *marker)
{
    clicks c = {0};
    for (uint64_t k = 10000; k < 10100; k++) {
        op_trial t, *list = &t;
        random_words(&t, k, k % 2);
        assert_ok(marker->teach(marker, &list, 1, e));
        for (int i = 0; i < t.n_marks; i++) {
            bool decides = t.marks[i].start == LENGTH - 1;
            c.hits += decides && t.marks[i].value == (k % 2 ? 1 : -1);
            c.elsewhere += !decides;
        }
        op_trial_release(&t);
    }
    return c;
}

/* Chance alone, with 1200 rewarded trials and a linear head, gives the other jumps a deviation of 0.5 sqrt(2 * 32 / 1200) = 0.12. */
static void a_marker_clicks_where_the_reward_is_decided_once_it_has_learned(void **state)
{
    (void)state;
    const char *const heads[] = {"", ",\"hidden\":32", ",\"layer\":0"};
    for (int i = 0; i < 3; i++) {
        op_teacher *marker = open_marker(heads[i]);
        lesson(marker, 0, 1500);
        clicks c = clicks_of(marker);
        if (c.hits < 85 || c.elsewhere > 20)
            fail_msg("%s: %d of 100 hit, %d of 500 elsewhere", heads[i], c.hits, c.elsewhere);
        op_teacher_close(marker);
    }
}

static void a_marker_is_silent_until_it_has_seen_enough_rewards(void **state)
{
    (void)state;
    op_teacher *marker = open_marker(",\"after\":200,\"layer\":0");
    lesson(marker, 0, 240); /* 192 of them rewarded */
    clicks c = clicks_of(marker);
    assert_true(!c.hits && !c.elsewhere);
    lesson(marker, 240, 300);
    assert_true(clicks_of(marker).hits > 80);
    op_teacher_close(marker);
}

static void a_marker_goes_on_from_its_saved_state_to_the_same_bits(void **state)
{
    (void)state;
    op_teacher *a = open_marker(",\"hidden\":4,\"graded\":true"), *b = open_marker(",\"hidden\":4,\"graded\":true");
    json_t *saved, *other;
    lesson(a, 0, 60);
    assert_ok(a->save(a, &saved, e));
    assert_ok(b->load(b, saved, e));
    json_decref(saved);
    lesson(a, 60, 80);
    lesson(b, 60, 80);
    assert_ok(a->save(a, &saved, e));
    assert_ok(b->save(b, &other, e));
    assert_true(json_equal(saved, other));
    op_teacher *c = open_marker("");
    assert_int_equal(c->load(c, saved, e), OP_ERR_MISMATCH);
    json_decref(saved);
    json_decref(other);
    op_teacher_close(a);
    op_teacher_close(b);
    op_teacher_close(c);
}

static op_status count(void *ctx, int32_t layer, const op_batch *b, float *resid)
{
    (void)layer;
    (void)b;
    (void)resid;
    ++*(int *)ctx;
    return OP_OK;
}

static void a_marker_leaves_the_taps_of_others_in_place(void **state)
{
    (void)state;
    int calls = 0;
    size_t n;
    op_tap tap = {.layer = 1, .ctx = &calls, .forward = count};
    assert_ok(op_model_set_taps(model, &tap, 1));
    op_teacher *marker = open_marker("");
    lesson(marker, 1, 2);
    assert_int_equal(calls, 1); /* the states are kept for all passes */
    assert_true(op_model_taps(model, &n)[0].ctx == &calls && n == 1);
    assert_ok(op_model_set_taps(model, NULL, 0));
    op_teacher_close(marker);
}

static void a_marker_without_a_model_is_an_error(void **state)
{
    (void)state;
    op_teacher *t;
    json_t *v = parse("{\"type\":\"marker\"}");
    assert_int_equal(op_teacher_open(&t, v, &(op_classroom){.chat = &chat}, NULL, e), OP_ERR_ARG);
    json_decref(v);
}

static void every_failed_allocation_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    json_t *v[] = {parse("{\"type\":\"marker\",\"hidden\":2,\"after\":0,\"threshold\":0}"),
                   parse("{\"type\":\"judge\",\"model\":\"model\",\"labelled\":\"agree.jsonl\",\"raw\":true,\"dtype\":\"f32\",\"prompt\":\"Q {question} A {response} good?\","
                         "\"yes\":[\" yes\",\" indeed so\"],\"no\":\" no\"}")};
    for (int i = 0; i < 2; i++) {
        op_status s = OP_ERR_NOMEM;
        for (long n = 0; s; n += 1 + n / 4) {
            op_teacher *t = NULL;
            op_trial trial, *list = &trial;
            json_t *saved = NULL;
            random_words(&trial, 1, true);
            trial.has_reward = true;
            op_alloc_fail_from(n);
            s = op_teacher_open(&t, v[i], &(op_classroom){.chat = &chat, .model = model, .dir = dir}, NULL, e);
            if (!s && t->learn)
                s = t->learn(t, &list, 1, e);
            if (!s)
                s = t->teach(t, &list, 1, e);
            if (!s)
                s = t->save(t, &saved, e);
            op_alloc_fail_from(-1);
            if (s && s != OP_ERR_NOMEM)
                fail_msg("%s", e->message);
            json_decref(saved);
            op_teacher_close(t);
            op_trial_release(&trial);
        }
        json_decref(v[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_judge_rewards_by_the_probability_of_its_verdict),
        cmocka_unit_test(a_judge_that_cannot_tell_good_from_bad_may_not_teach),
        cmocka_unit_test(a_judge_must_see_the_response_and_nothing_unknown),
        cmocka_unit_test(a_marker_clicks_where_the_reward_is_decided_once_it_has_learned),
        cmocka_unit_test(a_marker_is_silent_until_it_has_seen_enough_rewards),
        cmocka_unit_test(a_marker_goes_on_from_its_saved_state_to_the_same_bits),
        cmocka_unit_test(a_marker_leaves_the_taps_of_others_in_place),
        cmocka_unit_test(a_marker_without_a_model_is_an_error),
        cmocka_unit_test(every_failed_allocation_comes_back_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
