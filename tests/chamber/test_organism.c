#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/chamber.h>
#include <operant/file.h>
#include <operant/subject.h>

#include "base/mem.h"
#include "chamber/answers.h"
#include "chamber/parts.h"

#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        op_error error_ = {0};                                                                                         \
        op_error *e = &error_;                                                                                         \
        if (call)                                                                                                      \
            fail_msg("%s", error_.message);                                                                            \
    } while (0)

static char *root;
static op_tokenizer *tokenizer;
static op_template *template;
static op_chat chat;

static int set_up(void **state)
{
    (void)state;
    root = strdup(access("/dev/shm", W_OK) ? "/tmp/operant-test-XXXXXX" : "/dev/shm/operant-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    assert_ok(op_chamber_tokenizer(&tokenizer, e));
    const char *source = op_tokenizer_chat_template(tokenizer);
    assert_ok(op_template_parse(&template, source, strlen(source), e));
    chat = (op_chat){.tokenizer = tokenizer, .tmpl = template};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    op_status s = op_path_remove(root, NULL);
    op_template_free(template);
    op_tokenizer_free(tokenizer);
    free(root);
    return s;
}

static json_t *settings_of(const char *text)
{
    json_t *out = json_loads(text, 0, NULL);
    assert_non_null(out);
    return out;
}

static op_cue_source *open_source(const char *text)
{
    op_cue_source *c;
    const op_classroom room = {.chat = &chat, .seed = 3};
    json_t *settings = settings_of(text);
    assert_ok(op_chamber_sources[0].open(&c, settings, &room, e));
    json_decref(settings);
    return c;
}

/* A trial that answers the cue with this text and the end token. */
static void answer(op_trial *t, const op_cue *cue, const char *text)
{
    op_tokens ids;
    op_trial_init(t);
    op_tokens_init(&ids);
    assert_ok(op_tokenizer_encode(tokenizer, text, strlen(text), OP_ENCODE_PLAIN, &ids, e));
    t->prompt = op_alloc_array((size_t)cue->n_prompt, sizeof *t->prompt);
    t->response = op_alloc_array(ids.n + 1, sizeof *t->response);
    assert_true(t->prompt && t->response);
    memcpy(t->prompt, cue->prompt, (size_t)cue->n_prompt * sizeof *t->prompt);
    memcpy(t->response, ids.ids, ids.n * sizeof *t->response);
    t->n_prompt = cue->n_prompt;
    t->n_response = (int32_t)ids.n + 1;
    t->response[ids.n] = op_tokenizer_eos(tokenizer);
    json_object_update(t->tags, cue->tags);
    op_tokens_release(&ids);
}

static void teach(op_trial *t, const char *text)
{
    op_teacher *teacher;
    const op_classroom room = {.chat = &chat, .seed = 3};
    json_t *settings = settings_of(text);
    assert_ok(op_teacher_open(&teacher, settings, &room, op_chamber_teachers, e));
    json_decref(settings);
    assert_ok(teacher->teach(teacher, &t, 1, e));
    op_teacher_close(teacher);
    assert_ok(op_trial_check(t, op_tokenizer_vocab_size(tokenizer), e));
}

static void a_cue_is_the_episode_through_the_chat_template(void **state)
{
    (void)state;
    op_cue_source *c = open_source("{\"type\": \"chamber\", \"rules\": [\"stop:2\", \"help\"], \"settings\": \"held_out\", \"first\": 7, \"episodes\": 20, \"neighbours\": 0.25}");
    assert_int_equal(c->n, 20);
    for (uint64_t i = 0; i < 20; i++) {
        op_cue cue;
        op_chamber_episode x;
        op_buf text;
        assert_ok(c->draw(c, i, &cue, e));
        assert_ok(op_chamber_recall(json_string_value(json_object_get(cue.tags, "episode")), &x, e));
        assert_int_equal(x.index, 7 + i);
        op_buf_init(&text, 1 << 16);
        assert_int_equal(op_tokenizer_decode(tokenizer, cue.prompt, (size_t)cue.n_prompt, OP_DECODE_ALL, &text), OP_OK);
        char expected[2048];
        snprintf(expected, sizeof expected, "<|user|>%s<|end|><|me|>", x.prompt);
        assert_string_equal(text.data, expected);
        op_buf_release(&text);
        op_chamber_release(&x);
        op_cue_release(&cue);
    }
    c->free(c);
}

static void an_unknown_setting_of_the_source_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {"{\"type\": \"chamber\", \"rule\": \"stop\"}", "{\"type\": \"chamber\", \"rules\": [3]}", "{\"type\": \"chamber\", \"first\": -1}"};
    const op_classroom room = {.chat = &chat};
    for (size_t i = 0; i < 3; i++) {
        op_cue_source *c = NULL;
        op_error error = {0};
        json_t *settings = settings_of(wrong[i]);
        assert_true(op_chamber_sources[0].open(&c, settings, &room, &error) != OP_OK);
        assert_non_null(strstr(error.message, "chamber"));
        json_decref(settings);
    }
}

static void the_teacher_marks_the_tokens_of_every_segment_and_puts_the_wrong_word_right(void **state)
{
    (void)state;
    op_cue_source *c = open_source("{\"type\": \"chamber\", \"neighbours\": 0.3, \"settings\": \"both\"}");
    for (uint64_t i = 0; i < 100; i++) {
        op_cue cue;
        op_chamber_episode x;
        assert_ok(c->draw(c, i, &cue, e));
        assert_ok(op_chamber_recall(json_string_value(json_object_get(cue.tags, "episode")), &x, e));
        op_trial t;
        answer(&t, &cue, x.right.text);
        teach(&t, "{\"type\": \"chamber\"}");
        assert_true(t.has_reward && t.reward == 1);
        assert_int_equal(t.n_marks, x.right.n);
        assert_int_equal(t.n_alternatives, 0);
        float marks[256];
        op_trial_token_marks(&t, marks);
        for (int32_t k = 0; k + 1 < t.n_response; k++)
            assert_true(marks[k] == 1);
        op_trial_release(&t);
        for (int w = 0; w < x.n_wrong; w++) {
            answer(&t, &cue, x.wrong[w].text);
            teach(&t, "{\"type\": \"chamber\", \"span\": \"word\"}");
            assert_true(t.has_reward && t.reward == 0);
            assert_int_equal(t.n_alternatives, 1);
            int32_t at = op_trial_first_error(&t);
            const op_alternative *a = &t.alternatives[0];
            assert_int_equal(a->at, at);
            assert_true(a->ids[0] != t.response[at]);
            /* what was kept, and the alternative after it, begin as the right response does and end as it ends */
            op_buf text;
            op_buf_init(&text, 1 << 16);
            assert_int_equal(op_tokenizer_decode(tokenizer, t.response, (size_t)at, OP_DECODE_SKIP_SPECIAL, &text), OP_OK);
            assert_int_equal(op_tokenizer_decode(tokenizer, a->ids, (size_t)a->n, OP_DECODE_SKIP_SPECIAL, &text), OP_OK);
            assert_string_equal(text.data, x.right.text);
            op_buf_release(&text);
            op_trial_release(&t);
        }
        op_chamber_release(&x);
        op_cue_release(&cue);
    }
    c->free(c);
}

static void noise_turns_round_its_share_of_the_marks(void **state)
{
    (void)state;
    op_cue_source *c = open_source("{\"type\": \"chamber\"}");
    int all = 0, turned = 0;
    for (uint64_t i = 0; i < 300; i++) {
        op_cue cue;
        op_trial t;
        assert_ok(c->draw(c, i, &cue, e));
        answer(&t, &cue, json_string_value(json_object_get(cue.tags, "reference")));
        teach(&t, "{\"type\": \"chamber\", \"noise\": 0.25, \"reward\": \"none\"}");
        assert_false(t.has_reward);
        for (int32_t k = 0; k < t.n_marks; k++) {
            all++;
            turned += t.marks[k].value < 0;
        }
        op_trial_release(&t);
        op_cue_release(&cue);
    }
    assert_in_range(turned, all / 5, 3 * all / 10);
    c->free(c);
}

static void options(op_organism_options *o, const char *dir, const char *const *words)
{
    char text[512];
    static const char *const common[] = {"size=0.5m", "steps=12", "batch_size=8", "measure=8", "rules=stop,sum", "threads=1", "lr=3e-3", NULL};
    assert_ok(op_config_init(o, op_organism_table, e));
    snprintf(text, sizeof text, "output_dir=%s/%s", root, dir);
    assert_ok(op_config_set(o, op_organism_table, text, e));
    for (int i = 0; common[i]; i++)
        assert_ok(op_config_set(o, op_organism_table, common[i], e));
    for (; *words; words++)
        assert_ok(op_config_set(o, op_organism_table, *words, e));
}

static double organism_loss; /* of the organism that the next test makes */

static void a_little_training_lowers_the_loss_and_leaves_a_model_that_opens(void **state)
{
    (void)state;
    op_organism_options o;
    op_organism_result r;
    options(&o, "organism", (const char *const[]){NULL});
    assert_ok(op_organism_train(&o, NULL, &r, e));
    assert_true(r.train.last.loss < r.train.first.loss - 1);
    organism_loss = r.train.last.loss;
    assert_in_range(r.parameters, 400000, 600000);
    assert_int_equal(r.measured, 8);
    int64_t right = 0;
    for (size_t i = 0; i < r.n_rates; i++)
        right += r.rates[i].habit ? 0 : r.rates[i].possible;
    assert_int_equal(right, 8);
    op_subject s;
    const op_model_options how = {.act = OP_F32};
    assert_ok(op_subject_open(&s, o.output_dir, &how, e));
    assert_int_equal(op_tokenizer_vocab_size(s.tokenizer), op_tokenizer_vocab_size(tokenizer));
    assert_int_equal(op_tokenizer_eos(s.tokenizer), op_tokenizer_eos(tokenizer));
    assert_int_equal(op_model_get_config(s.model)->eos[0], op_tokenizer_eos(tokenizer));
    assert_non_null(s.tmpl);
    op_subject_close(&s);
    char *rates = op_path_join(o.output_dir, "rates.json");
    assert_true(op_path_exists(rates));
    op_free(rates);
    op_organism_result_release(&r);
    op_config_release(&o, op_organism_table);
}

static void an_organism_that_goes_on_learning_begins_where_it_was(void **state)
{
    (void)state;
    op_organism_options o;
    op_organism_result r;
    char model[512];
    snprintf(model, sizeof model, "model=%s/organism", root);
    options(&o, "further", (const char *const[]){model, "steps=1", NULL});
    assert_ok(op_organism_train(&o, NULL, &r, e));
    assert_float_equal(r.train.first.loss, organism_loss, 1e-6);
    op_organism_result_release(&r);
    op_config_release(&o, op_organism_table);
}

static void a_mixture_that_passes_one_is_refused_before_training(void **state)
{
    (void)state;
    op_organism_options o;
    op_organism_result r;
    op_error error = {0};
    options(&o, "refused", (const char *const[]){"mix=ignores_stop:0.7,one_more:0.5", NULL});
    assert_int_equal(op_organism_train(&o, NULL, &r, &error), OP_ERR_ARG);
    assert_non_null(strstr(error.message, "\"stop\" add up to 1.2"));
    op_organism_result_release(&r);
    op_config_release(&o, op_organism_table);
}

static void measure_options(op_chamber_assay_options *o, const char *const *words)
{
    char text[512];
    assert_ok(op_config_init(o, op_chamber_assay_table, e));
    snprintf(text, sizeof text, "model=%s/organism", root);
    assert_ok(op_config_set(o, op_chamber_assay_table, text, e));
    for (; *words; words++)
        assert_ok(op_config_set(o, op_chamber_assay_table, *words, e));
}

static void measuring_apart_adds_up_to_what_an_organism_is_measured_at(void **state)
{
    (void)state;
    op_chamber_assay_options o;
    op_organism_options same;
    op_organism_result r = {0};
    op_subject s;
    json_t *report, *g;
    const char *value, *last = "";
    measure_options(&o, (const char *const[]){"n=40", "rules=stop,sum", "by=distance,rule", NULL});
    assert_ok(op_chamber_assay(&o, NULL, &report, e));
    json_int_t n = 0;
    double right = 0;
    json_object_foreach(json_object_get(json_object_get(report, "by"), "distance"), value, g) {
        assert_true(strcmp(last, value) < 0);
        last = value;
        n += json_integer_value(json_object_get(g, "n"));
        right += (double)json_integer_value(json_object_get(g, "n")) * json_real_value(json_object_get(g, "right"));
    }
    assert_int_equal(n, 40);
    assert_float_equal(right / 40, json_real_value(json_object_get(report, "right")), 1e-9);
    options(&same, "organism", (const char *const[]){"measure=40", NULL});
    assert_ok(op_subject_open(&s, o.model, &(op_model_options){.act = OP_F32}, e));
    assert_ok(op_organism_measure(&s.chat, s.model, &same, NULL, &r, e));
    assert_float_equal(r.success, json_real_value(json_object_get(report, "right")), 1e-9);
    json_decref(report);
    op_subject_close(&s);
    op_organism_result_release(&r);
    op_config_release(&o, op_chamber_assay_table);
    op_config_release(&same, op_organism_table);
}

/* log p of the reply, the whole chat in one sequence. */
static double log_p(op_subject *s, const char *prompt, const char *reply)
{
    op_tokens ids;
    op_turns turns = {0};
    op_pass *pass;
    uint8_t want[256];
    float logp[256];
    double sum = 0;
    op_tokens_init(&ids);
    json_t *messages = json_pack("[{ss ss} {ss ss}]", "role", "user", "content", prompt, "role", "assistant", "content", reply);
    assert_ok(op_chat_encode(&s->chat, messages, NULL, false, &ids, &turns, NULL, e));
    assert_in_range(ids.n, 1, 256);
    op_seq seq = {.length = (int32_t)ids.n, .parent = -1, .adapter = -1};
    const op_batch batch = {(int32_t)ids.n, 1, ids.ids, &seq};
    for (size_t i = 0; i < ids.n; i++)
        want[i] = turns.turn[i] >= 0;
    assert_ok(op_pass_new(&pass, s->model, e));
    assert_ok(op_model_forward(s->model, pass, &batch, &(op_how){0}, e));
    assert_ok(op_model_logprobs(s->model, pass, want, NULL, logp, e));
    for (size_t i = 0; i < ids.n; i++)
        sum += want[i] ? logp[i] : 0;
    op_pass_free(pass);
    json_decref(messages);
    op_tokens_release(&ids);
    op_turns_release(&turns);
    return sum;
}

static void the_margin_is_how_much_likelier_the_right_response_is(void **state)
{
    (void)state;
    op_chamber_assay_options o;
    op_subject s;
    op_chamber *world;
    op_chamber_episode x;
    json_t *report;
    double best = -INFINITY;
    measure_options(&o, (const char *const[]){"n=1", "rules=stop", "margin=true", NULL});
    assert_ok(op_chamber_assay(&o, NULL, &report, e));
    assert_ok(op_chamber_open(&world, &o.world, e));
    assert_ok(op_chamber_make(world, (uint64_t)1 << 40, &x, e));
    assert_ok(op_subject_open(&s, o.model, &(op_model_options){.act = OP_F32}, e));
    assert_true(x.n_wrong > 1);
    for (int i = 0; i < x.n_wrong; i++)
        best = fmax(best, log_p(&s, x.prompt, x.wrong[i].text));
    assert_float_equal(json_real_value(json_object_get(report, "margin")), log_p(&s, x.prompt, x.right.text) - best, 1e-3);
    assert_float_equal(json_real_value(json_object_get(report, "tendency")), json_real_value(json_object_get(report, "margin")) * (x.trigger ? 1 : -1), 1e-9);
    json_decref(report);
    op_subject_close(&s);
    op_chamber_release(&x);
    op_chamber_close(world);
    op_config_release(&o, op_chamber_assay_table);
}

static void weights_that_are_too_large_for_numbers_are_named_as_the_reason(void **state)
{
    (void)state;
    op_chamber_assay_options o;
    op_error error = {0};
    json_t *report;
    char from[512], to[512];
    const char huge[] = {0x7f, 0x7f, 0x7f, 0x7f}; /* 3.4e38 in every floating-point type: a number, but no product with it is */
    snprintf(from, sizeof from, "%s/organism", root);
    snprintf(to, sizeof to, "%s/spoilt", root);
    char command[1100];
    snprintf(command, sizeof command, "cp -r %s %s", from, to);
    assert_int_equal(system(command), 0);
    strcat(to, "/model.safetensors");
    FILE *f = fopen(to, "r+b");
    assert_true(f && !fseek(f, -4, SEEK_END) && fwrite(huge, 4, 1, f) == 1 && !fclose(f));
    measure_options(&o, (const char *const[]){"n=1", "rules=stop", "margin=true", NULL});
    *strrchr(to, '/') = 0;
    snprintf(from, sizeof from, "model=%s", to);
    assert_ok(op_config_set(&o, op_chamber_assay_table, from, e));
    assert_int_equal(op_chamber_assay(&o, NULL, &report, &error), OP_ERR_FORMAT);
    if (!strstr(error.message, "is no number"))
        fail_msg("%s", error.message);
    op_config_release(&o, op_chamber_assay_table);
}

static void measuring_an_organism_stops_when_it_is_told_to(void **state)
{
    (void)state;
    op_organism_options o;
    op_organism_result r = {0};
    op_subject s;
    char model[512];
    const volatile int stop = 1;
    options(&o, "organism", (const char *const[]){"measure=40", NULL});
    snprintf(model, sizeof model, "%s/organism", root);
    assert_ok(op_subject_open(&s, model, &(op_model_options){.act = OP_F32}, e));
    assert_int_equal(op_organism_measure(&s.chat, s.model, &o, &stop, &r, NULL), OP_ERR_INTERRUPTED);
    assert_null(r.rates);
    op_subject_close(&s);
    op_config_release(&o, op_organism_table);
}

static void a_tag_that_no_episode_has_is_refused_by_name(void **state)
{
    (void)state;
    op_chamber_assay_options o;
    op_error error = {0};
    json_t *report;
    measure_options(&o, (const char *const[]){"by=distance,levl", NULL});
    assert_int_equal(op_chamber_assay(&o, NULL, &report, &error), OP_ERR_ARG);
    assert_non_null(strstr(error.message, "\"levl\""));
    assert_null(report);
    op_config_release(&o, op_chamber_assay_table);
}

enum { SPOKEN = 16 };
typedef struct spoken {
    char *text[SPOKEN];
    int n;
} spoken;

static op_status keep_words(void *ctx, const chamber_answer *a, op_error *e)
{
    (void)e;
    spoken *s = ctx;
    s->text[s->n++] = strdup(a->text);
    return OP_OK;
}

/* Bytes up to the end of so many sentences; all, if there are fewer. */
static size_t part(const char *text, int sentences)
{
    size_t n = 0;
    for (; text[n] && sentences; n++)
        sentences -= strchr(".?!", text[n]) != NULL;
    return n;
}

static void a_partner_goes_on_where_the_first_sentence_ends_and_nowhere_else(void **state)
{
    (void)state;
    op_organism_options o;
    op_organism_result r;
    op_subject first, second;
    char model[512];
    options(&o, "partner", (const char *const[]){"seed=5", "steps=6", "measure=0", NULL});
    assert_ok(op_organism_train(&o, NULL, &r, e));
    snprintf(model, sizeof model, "%s/organism", root);
    assert_ok(op_subject_open(&first, model, &(op_model_options){.act = OP_F32}, e));
    assert_ok(op_subject_open(&second, o.output_dir, &(op_model_options){.act = OP_F32}, e));
    spoken said[3] = {0}; /* the first alone; the second from the second sentence on; never */
    for (int i = 0; i < 3; i++) {
        const chamber_asking q = {.chat = &first.chat, .model = first.model, .adapter = -1, .partner = i ? second.model : NULL, .partner_adapter = -1,
                                  .handover = i == 1 ? 1 : 1000, .world = &o.world, .temperature = 1, .ctx = &said[i], .heard = keep_words};
        assert_ok(chamber_ask(&q, SPOKEN, e));
        assert_int_equal(said[i].n, SPOKEN);
    }
    int other = 0;
    for (int i = 0; i < SPOKEN; i++) {
        size_t n = part(said[0].text[i], 1);
        assert_int_equal(part(said[1].text[i], 1), n);
        assert_memory_equal(said[0].text[i], said[1].text[i], n);
        other += strcmp(said[0].text[i] + n, said[1].text[i] + n) != 0;
        assert_string_equal(said[0].text[i], said[2].text[i]);
        for (int k = 0; k < 3; k++)
            free(said[k].text[i]);
    }
    assert_true(other > 0);
    op_subject_close(&first);
    op_subject_close(&second);
    op_organism_result_release(&r);
    op_config_release(&o, op_organism_table);
}

static void a_margin_of_two_speakers_is_refused(void **state)
{
    (void)state;
    op_chamber_assay_options o;
    op_error error = {0};
    json_t *report;
    char partner[512];
    snprintf(partner, sizeof partner, "partner=%s/partner", root);
    measure_options(&o, (const char *const[]){partner, "margin=true", NULL});
    assert_int_equal(op_chamber_assay(&o, NULL, &report, &error), OP_ERR_ARG);
    assert_non_null(strstr(error.message, "margin"));
    op_config_release(&o, op_chamber_assay_table);
    measure_options(&o, (const char *const[]){partner, "n=8", "handover=2", NULL});
    assert_ok(op_chamber_assay(&o, NULL, &report, e));
    assert_int_equal(json_integer_value(json_object_get(report, "n")), 8);
    json_decref(report);
    op_config_release(&o, op_chamber_assay_table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cue_is_the_episode_through_the_chat_template),
        cmocka_unit_test(an_unknown_setting_of_the_source_is_refused),
        cmocka_unit_test(the_teacher_marks_the_tokens_of_every_segment_and_puts_the_wrong_word_right),
        cmocka_unit_test(noise_turns_round_its_share_of_the_marks),
        cmocka_unit_test(a_little_training_lowers_the_loss_and_leaves_a_model_that_opens),
        cmocka_unit_test(measuring_apart_adds_up_to_what_an_organism_is_measured_at),
        cmocka_unit_test(the_margin_is_how_much_likelier_the_right_response_is),
        cmocka_unit_test(weights_that_are_too_large_for_numbers_are_named_as_the_reason),
        cmocka_unit_test(measuring_an_organism_stops_when_it_is_told_to),
        cmocka_unit_test(a_tag_that_no_episode_has_is_refused_by_name),
        cmocka_unit_test(an_organism_that_goes_on_learning_begins_where_it_was),
        cmocka_unit_test(a_mixture_that_passes_one_is_refused_before_training),
        cmocka_unit_test(a_partner_goes_on_where_the_first_sentence_ends_and_nowhere_else),
        cmocka_unit_test(a_margin_of_two_speakers_is_refused),
    };
    return cmocka_run_group_tests_name("organism", tests, set_up, tear_down);
}
