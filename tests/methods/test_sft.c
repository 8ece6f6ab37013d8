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
#include <jansson.h>

#include <operant/chat.h>
#include <operant/generate.h>
#include <operant/sft.h>
#include <operant/tokenizer.h>

#include "base/mem.h"
#include "io/file.h"

#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        op_error error_ = {0};                                                                                         \
        op_error *e = &error_;                                                                                         \
        if (call)                                                                                                      \
            fail_msg("%s", error_.message);                                                                            \
    } while (0)

enum { VOCAB = 264, END = 257 };

static char *root;    /* temporary directory of the whole program */
static char *base;    /* root/base: a tiny random model with a tokenizer of single bytes and a chat template */
static char *data;    /* root/data.jsonl */

static char *join(const char *dir, const char *name)
{
    char *path = op_path_join(dir, name);
    assert_non_null(path);
    return path;
}

static void put(const char *dir, const char *name, const char *text)
{
    char *path = join(dir, name);
    assert_ok(op_file_put(path, text, strlen(text), e));
    op_free(path);
}

static bool exists(const char *dir, const char *name)
{
    char *path = join(dir, name);
    bool there = op_path_exists(path);
    op_free(path);
    return there;
}

/* Byte-level BPE without merges: GPT-2 writes byte b as itself if it prints in Latin-1, else as the next free letter from U+0100. */
static void put_tokenizer(const char *dir)
{
    op_buf b;
    op_buf_init(&b, 1 << 20);
    op_buf_puts(&b, "{\"version\":\"1.0\",\"added_tokens\":[");
    static const char *const special[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"};
    for (int i = 0; i < 3; i++)
        op_buf_printf(&b, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}",
                      i ? "," : "", 256 + i, special[i]);
    op_buf_puts(&b, "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
                    "\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{");
    for (int byte = 0, extra = 256; byte < 256; byte++) {
        bool prints = (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte != 173);
        op_buf_printf(&b, "%s\"\\u%04x\":%d", byte ? "," : "", prints ? byte : extra, byte);
        extra += !prints;
    }
    op_buf_puts(&b, "},\"merges\":[]}}");
    put(dir, "tokenizer.json", b.data);
    op_buf_release(&b);
    put(dir, "tokenizer_config.json",
        "{\"tokenizer_class\":\"GPT2Tokenizer\",\"eos_token\":\"<|im_end|>\",\"pad_token\":\"<|endoftext|>\",\"chat_template\":"
        "\"{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"}");
}

static int set_up(void **state)
{
    (void)state;
    root = strdup(access("/dev/shm", W_OK) ? "/tmp/operant-test-XXXXXX" : "/dev/shm/operant-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    base = join(root, "base");
    data = join(root, "data.jsonl");
    assert_ok(op_dir_make(base, e));
    op_model_config c = {.family = OP_LLAMA, .vocab = VOCAB, .width = 32, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 16,
                         .ffn = 64, .max_positions = 128, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1, .pad = 258,
                         .eos = {END}, .n_eos = 1};
    op_model_options o = {.act = OP_F32, .trainable = OP_TRAIN_ALL, .seed = 5};
    op_model *m;
    assert_ok(op_model_new(&m, &c, &o, e));
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.table[0].n; i++) /* longer embeddings, so that an adapter alone can be sure of a token */
        p.values[p.table[0].offset + i] *= 20;
    assert_ok(op_model_save(m, base, OP_F32, e));
    op_model_free(m);
    put_tokenizer(base);
    op_buf b;
    op_buf_init(&b, 1 << 20);
    for (int i = 0; i < 12; i++)
        op_buf_printf(&b, "{\"messages\":[{\"role\":\"system\",\"content\":\"You are terse.\"},{\"role\":\"user\",\"content\":\"say %c\"},"
                          "{\"role\":\"assistant\",\"content\":\"why?\"}]}\n", 'a' + i);
    put(root, "data.jsonl", b.data);
    op_buf_release(&b);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    op_status status = op_path_remove(root, NULL);
    free(root);
    op_free(base);
    op_free(data);
    return status;
}

/* Settings as a command line gives them: words, ended by NULL, over those that every test shares. */
static void settings(op_sft_options *o, const char *dir, const char *const *words)
{
    char text[4096];
    assert_ok(op_config_init(o, op_sft_table, e));
    static const char *const common[] = {"threads=1", "dtype=f32", "lr=1e-2", "batch_size=4", "max_steps=12", "save_dtype=f32",
                                         "eval_fraction=0.2", "share_prefix=4", NULL};
    snprintf(text, sizeof text, "model=%s", base);
    assert_ok(op_config_set(o, op_sft_table, text, e));
    snprintf(text, sizeof text, "data=%s", data);
    assert_ok(op_config_set(o, op_sft_table, text, e));
    snprintf(text, sizeof text, "output_dir=%s", dir);
    assert_ok(op_config_set(o, op_sft_table, text, e));
    for (size_t i = 0; common[i]; i++)
        assert_ok(op_config_set(o, op_sft_table, common[i], e));
    for (; words && *words; words++)
        assert_ok(op_config_set(o, op_sft_table, *words, e));
}

static op_status run(const char *dir, const char *const *words, op_train_result *result, op_error *e)
{
    op_sft_options o;
    settings(&o, dir, words);
    op_status status = op_sft_run(&o, NULL, result, e);
    op_config_release(&o, op_sft_table);
    return status;
}

/* The greedy answer of the model in `dir` to "say a", decoded with the tokenizer that lies there. */
static char *answer(const char *dir)
{
    op_model *m;
    op_tokenizer *t;
    op_template *tmpl;
    op_model_options o = {.act = OP_F32};
    assert_ok(op_model_open(&m, dir, &o, e));
    assert_ok(op_tokenizer_open(&t, dir, e));
    const char *source = op_tokenizer_chat_template(t);
    assert_ok(op_template_parse(&tmpl, source, strlen(source), e));
    const op_chat chat = {.tokenizer = t, .tmpl = tmpl};
    json_t *messages = json_pack("[{ssss},{ssss}]", "role", "system", "content", "You are terse.", "role", "user", "content", "say a");
    op_tokens prompt;
    op_tokens_init(&prompt);
    assert_ok(op_chat_encode(&chat, messages, NULL, true, &prompt, NULL, NULL, e));
    op_request r = {.prompt = prompt.ids, .n_prompt = (int32_t)prompt.n, .adapter = op_model_adapter_count(m) ? 0 : -1, .share = -1,
                    .sampling = {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .max_tokens = 20}};
    op_generate_options g = {.max_batch = 1};
    assert_ok(op_generate(m, &r, 1, &g, e));
    op_buf text;
    op_buf_init(&text, 1 << 16);
    assert_int_equal(op_tokenizer_decode(t, r.tokens, (size_t)r.n, OP_DECODE_SKIP_SPECIAL, &text), OP_OK);
    op_request_release(&r);
    op_tokens_release(&prompt);
    json_decref(messages);
    op_template_free(tmpl);
    op_tokenizer_free(t);
    op_model_free(m);
    return op_buf_take(&text);
}

static void full_training_teaches_an_answer_and_leaves_a_model_directory(void **state)
{
    (void)state;
    char *dir = join(root, "full");
    static const char *const words[] = {"max_steps=80", "eval_fraction=0", NULL};
    op_train_result result;
    assert_ok(run(dir, words, &result, e));
    assert_int_equal(result.step, 80);
    assert_true(result.loss < 0.1);
    assert_true(exists(dir, "config.json") && exists(dir, "model.safetensors") && exists(dir, "tokenizer.json"));
    assert_true(exists(dir, "config.yaml") && exists(dir, "env.json") && exists(dir, "metrics.jsonl"));
    char *text = answer(dir);
    assert_string_equal(text, "why?");
    op_free(text);
    op_free(dir);
}

typedef struct watch {
    int plans, calls;
    volatile int stop;
    op_sft_plan plan;
} watch;

static void on_plan(void *ctx, const op_sft_plan *p)
{
    watch *w = ctx;
    w->plans++;
    w->plan = *p;
}

/* 119, 104, 121, 63 are the bytes of "why?", 110, 111 of "no". */
static void exported_trials_teach_by_their_rewards_and_those_without_feedback_nothing(void **state)
{
    (void)state;
    char *dir = join(root, "trials"), words[512];
    op_buf b;
    op_buf_init(&b, 1 << 20);
    for (int i = 0; i < 24; i++)
        op_buf_printf(&b, "{\"id\":%d,\"messages\":[{\"role\":\"system\",\"content\":\"You are terse.\"},{\"role\":\"user\",\"content\":\"say %c\"}],\"tokens\":[%s,257],"
                          "\"policy\":\"p\",\"forced\":1%s}\n", i + 1, 'a' + i / 2, i % 2 ? "110,111" : "119,104,121,63", i % 2 ? "" : ",\"reward\":1");
    put(root, "trials.jsonl", b.data);
    op_buf_release(&b);
    snprintf(words, sizeof words, "data=%s/trials.jsonl", root);
    const char *const list[] = {words, "max_steps=80", "eval_fraction=0", NULL};
    op_sft_options o;
    settings(&o, dir, list);
    watch w = {0};
    const op_sft_callbacks callbacks = {.ctx = &w, .plan = on_plan};
    op_train_result result;
    assert_ok(op_sft_run(&o, &callbacks, &result, e));
    op_config_release(&o, op_sft_table);
    assert_int_equal(w.plan.examples, 12);
    assert_int_equal(w.plan.trained_tokens, 12 * 5);
    char *text = answer(dir);
    assert_string_equal(text, "why?");
    op_free(text);
    op_free(dir);
}

static void an_adapter_teaches_an_answer_and_finds_its_base(void **state)
{
    (void)state;
    char *dir = join(root, "lora");
    static const char *const words[] = {"max_steps=200", "eval_fraction=0", "method=lora", "lora.r=16", "lr=2e-2", NULL};
    op_train_result result;
    assert_ok(run(dir, words, &result, e));
    assert_true(exists(dir, "adapter_config.json") && exists(dir, "adapter_model.safetensors") && exists(dir, "tokenizer.json"));
    assert_false(exists(dir, "model.safetensors"));
    char *text = answer(dir);
    assert_string_equal(text, "why?");
    op_free(text);
    op_free(dir);
}

static void the_held_out_loss_is_measured_before_and_after_and_falls(void **state)
{
    (void)state;
    char *dir = join(root, "held");
    op_train_result result, again;
    assert_ok(run(dir, NULL, &result, e));
    assert_true(result.first.loss > 4 && result.last.loss < result.first.loss - 1);
    assert_true(result.first.tokens > 0);
    assert_ok(run(dir, NULL, &again, e)); /* it is finished: nothing is trained, the numbers are those of before */
    assert_int_equal(again.resumed_from, 12);
    assert_float_equal(again.first.loss, result.first.loss, 0);
    assert_float_equal(again.last.loss, result.last.loss, 0);
    op_free(dir);
}

static void on_progress(void *ctx, const op_train_progress *p)
{
    watch *w = ctx;
    w->calls++;
    w->stop = p->step == 5;
}

static void a_stopped_run_says_so_and_goes_on_to_the_same_weights(void **state)
{
    (void)state;
    char *dir = join(root, "stopped"), *whole = join(root, "whole");
    op_sft_options o;
    static const char *const words[] = {"dtype=bf16", "threads=2", NULL};
    settings(&o, dir, words);
    watch w = {0};
    const op_sft_callbacks callbacks = {&w, on_plan, on_progress, &w.stop, NULL};
    op_train_result result;
    op_error bad;
    assert_int_equal(op_sft_run(&o, &callbacks, &result, &bad), OP_ERR_INTERRUPTED);
    op_config_release(&o, op_sft_table);
    assert_int_equal(w.plans, 1);
    assert_int_equal(w.plan.examples, 10);
    assert_int_equal(w.plan.held_out, 2);
    assert_int_equal(w.plan.steps, 12);
    assert_int_equal(result.step, 5);
    assert_false(exists(dir, "model.safetensors"));
    assert_ok(run(dir, words, &result, e));
    assert_int_equal(result.resumed_from, 5);
    assert_ok(run(whole, words, &result, e));
    char *a = join(dir, "model.safetensors"), *b = join(whole, "model.safetensors");
    op_map x, y;
    assert_ok(op_map_open(&x, a, e));
    assert_ok(op_map_open(&y, b, e));
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    op_map_close(&x);
    op_map_close(&y);
    op_free(a);
    op_free(b);
    op_free(dir);
    op_free(whole);
}

static void what_changed_between_save_and_resume_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *word, *says;
    } cases[] = {{"lr=2e-2", "learning_rate \"0.01\", now it is \"0.02\""},
                 {"seed=4", "seed \"1\", now it is \"4\""},
                 {"method=lora", "method \"full\", now it is \"lora\""},
                 {"lora.r=3", "lora.r \"16\", now it is \"3\""}};
    char *dir = join(root, "changed");
    op_train_result result;
    op_error bad;
    assert_ok(run(dir, NULL, &result, e));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const words[] = {cases[i].word, NULL};
        assert_int_equal(run(dir, words, &result, &bad), OP_ERR_MISMATCH);
        if (!strstr(bad.message, cases[i].says))
            fail_msg("%s", bad.message);
    }
    static const char *const harmless[] = {"save_steps=5", "logging_steps=3", NULL};
    assert_ok(run(dir, harmless, &result, e));
    char *other = join(root, "other.jsonl");
    put(root, "other.jsonl", "{\"text\":\"something else\"}\n{\"text\":\"and more\"}\n");
    char word[4096];
    snprintf(word, sizeof word, "data=%s", other);
    const char *const words[] = {word, NULL};
    assert_int_equal(run(dir, words, &result, &bad), OP_ERR_MISMATCH);
    assert_non_null(strstr(bad.message, "train_file, with hash"));
    snprintf(word, sizeof word, "eval_file=%s", other);
    char *measured = join(root, "measured");
    assert_ok(run(measured, words, &result, e));
    put(root, "other.jsonl", "{\"text\":\"something else again\"}\n");
    assert_int_equal(run(measured, words, &result, &bad), OP_ERR_MISMATCH);
    assert_non_null(strstr(bad.message, "eval_file, with hash"));
    op_free(measured);
    op_free(other);
    op_free(dir);
}

static void see_plan(void *ctx, const op_sft_plan *p)
{
    *(op_sft_plan *)ctx = *p;
}

static op_sft_plan plan_of(const char *dir, const char *const *words)
{
    op_sft_options o;
    op_sft_plan plan = {0};
    op_train_result result;
    settings(&o, dir, words);
    const op_sft_callbacks callbacks = {.ctx = &plan, .plan = see_plan};
    assert_ok(op_sft_run(&o, &callbacks, &result, e));
    op_config_release(&o, op_sft_table);
    return plan;
}

static void a_replay_in_another_form_is_learned_and_never_held_out(void **state)
{
    (void)state;
    char *dir = join(root, "replay"), *other = join(root, "replay.jsonl"), word[4096];
    put(root, "replay.jsonl", "{\"text\":\"what it was\"}\n{\"text\":\"and is\"}\n");
    snprintf(word, sizeof word, "replay_file=%s", other);
    const char *const without[] = {"max_steps=1", "resume=none", NULL}, *const with[] = {"max_steps=1", "resume=none", word, NULL};
    op_sft_plan plain = plan_of(dir, without), mixed = plan_of(dir, with);
    assert_int_equal(mixed.examples, plain.examples + 2);
    assert_int_equal(mixed.held_out, plain.held_out);
    assert_true(mixed.trained_tokens > plain.trained_tokens);
    const char *const again[] = {"max_steps=1", word, NULL};
    op_train_result result;
    op_error bad;
    put(root, "replay.jsonl", "{\"text\":\"what it never was\"}\n");
    assert_int_equal(run(dir, again, &result, &bad), OP_ERR_MISMATCH);
    assert_non_null(strstr(bad.message, "replay_file, with hash"));
    op_free(other);
    op_free(dir);
}

static json_t *json_of(const char *dir, const char *name)
{
    char *path = join(dir, name);
    json_t *j = json_load_file(path, 0, NULL);
    assert_non_null(j);
    op_free(path);
    return j;
}

static void training_goes_on_from_an_adapter_or_folds_it_in(void **state)
{
    (void)state;
    char *first = join(root, "first"), *second = join(root, "second"), *folded = join(root, "folded");
    char word[4096];
    static const char *const lora[] = {"method=lora", "lr=2e-2", "max_steps=30", NULL};
    op_train_result before, after;
    op_error bad;
    assert_ok(run(first, lora, &before, e));
    snprintf(word, sizeof word, "model=%s", first);
    const char *const more[] = {"method=lora", word, NULL}, *const full[] = {word, NULL};
    const char *const other[] = {"method=lora", "lora.r=3", word, NULL};
    assert_ok(run(second, more, &after, e));
    assert_float_equal(after.first.loss, before.last.loss, 1e-5);
    json_t *config = json_of(second, "adapter_config.json");
    char base_path[4096];
    assert_non_null(realpath(base, base_path));
    assert_string_equal(json_string_value(json_object_get(config, "base_model_name_or_path")), base_path);
    json_decref(config);
    assert_ok(run(folded, full, &after, e));
    assert_float_equal(after.first.loss, before.last.loss, 1e-4);
    assert_int_equal(run(root, other, &after, &bad), OP_ERR_MISMATCH);
    assert_int_equal(run(base, more, &after, &bad), OP_ERR_ARG); /* would remove the weights that the adapter needs */
    assert_non_null(strstr(bad.message, "is the directory of the adapter's base model"));
    op_free(first);
    op_free(second);
    op_free(folded);
}

static void settings_that_cannot_be_meant_are_errors(void **state)
{
    (void)state;
    char *dir = join(root, "wrong");
    op_train_result result;
    op_error bad;
    static const char *const targets[] = {"method=lora", "lora.target_modules=q_proj,z_proj", NULL};
    assert_int_equal(run(dir, targets, &result, &bad), OP_ERR_ARG);
    assert_string_equal(bad.message, "key \"lora.target_modules\": unknown module \"z_proj\"");
    assert_int_equal(run(base, NULL, &result, &bad), OP_ERR_ARG);
    assert_non_null(strstr(bad.message, "is the directory of the model itself"));
    op_sft_options o;
    assert_ok(op_config_init(&o, op_sft_table, e));
    assert_int_equal(op_sft_run(&o, NULL, &result, &bad), OP_ERR_ARG);
    assert_string_equal(bad.message, "key \"model\" is not set");
    assert_int_equal(op_config_set(&o, op_sft_table, "learning_rat=1", &bad), OP_ERR_ARG);
    assert_non_null(strstr(bad.message, "learning_rate"));
    op_config_release(&o, op_sft_table);
    put(root, "mute.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n");
    char word[4096];
    snprintf(word, sizeof word, "data=%s/mute.jsonl", root);
    const char *const mute[] = {word, NULL};
    assert_true(run(dir, mute, &result, &bad) != OP_OK);
    assert_non_null(strstr(bad.message, "mute.jsonl"));
    op_free(dir);
}

static void every_failed_allocation_of_the_set_up_comes_back_as_an_error(void **state)
{
    (void)state;
    char *dir = join(root, "memory");
    char word[4096];
    snprintf(word, sizeof word, "data=%s/two.jsonl", root);
    put(root, "two.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\"}\n"); /* few, so that there are few allocations */
    const char *const words[] = {"max_steps=1", "method=lora", "resume=none", word, NULL};
    op_sft_options o;
    settings(&o, dir, words);
    op_train_result result;
    op_error bad;
    op_alloc_fail_from(-1);
    assert_ok(op_sft_run(&o, NULL, &result, e));
    long all = op_alloc_count();
    op_alloc_fail_from(-1);
    for (long n = 0; n < all; n++) {
        op_alloc_fail_from(n);
        op_status status = op_sft_run(&o, NULL, &result, &bad);
        op_alloc_fail_from(-1);
        if (status != OP_ERR_NOMEM)
            fail_msg("allocation %ld of %ld: %s", n, all, status ? bad.message : "the run went on");
    }
    op_config_release(&o, op_sft_table);
    op_free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_training_teaches_an_answer_and_leaves_a_model_directory),
        cmocka_unit_test(exported_trials_teach_by_their_rewards_and_those_without_feedback_nothing),
        cmocka_unit_test(an_adapter_teaches_an_answer_and_finds_its_base),
        cmocka_unit_test(the_held_out_loss_is_measured_before_and_after_and_falls),
        cmocka_unit_test(a_stopped_run_says_so_and_goes_on_to_the_same_weights),
        cmocka_unit_test(what_changed_between_save_and_resume_is_named),
        cmocka_unit_test(a_replay_in_another_form_is_learned_and_never_held_out),
        cmocka_unit_test(training_goes_on_from_an_adapter_or_folds_it_in),
        cmocka_unit_test(settings_that_cannot_be_meant_are_errors),
        cmocka_unit_test(every_failed_allocation_of_the_set_up_comes_back_as_an_error),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
