/* A tiny model with a tokenizer, written in each form and read again. What other programs make of the files: tests/peers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/export.h>
#include <operant/model.h>
#include <operant/tokenizer.h>

#include "base/mem.h"
#include "io/file.h"

static char dir[64];
static op_error e[1];

static const char *in_dir(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void assert_ok(op_status s)
{
    if (s)
        fprintf(stderr, "%s\n", e->message);
    assert_int_equal(s, OP_OK);
}

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/operant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_ok(op_dir_make(in_dir("model"), e));
    op_model_config c = {.family = OP_LLAMA, .vocab = 416, .width = 32, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 8, .ffn = 64,
                         .max_positions = 64, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402}, .n_eos = 1};
    op_model *m;
    assert_ok(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e));
    assert_ok(op_model_save(m, in_dir("model"), OP_F32, e));
    op_model_free(m);

    op_buf b;
    op_buf_init(&b, 1 << 20);
    const char *fixtures = getenv("FIXTURES");
    char source[512];
    snprintf(source, sizeof source, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    assert_ok(op_file_read(source, &b, e));
    assert_ok(op_file_put(in_dir("model/tokenizer.json"), b.data, b.len, e));
    op_buf_release(&b);
    static const char config[] = "{\"bos_token\":\"<|im_start|>\",\"eos_token\":\"<|im_end|>\",\"chat_template\":\"{{ messages[0].content }}\"}";
    assert_ok(op_file_put(in_dir("model/tokenizer_config.json"), config, strlen(config), e));

    /* the same with an adapter that changes something */
    op_model_options lora = {.trainable = OP_TRAIN_ADAPTER, .lora = {.rank = 2, .alpha = 4, .targets = OP_LORA_ALL}};
    assert_ok(op_model_open(&m, in_dir("model"), &lora, e));
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++)
        p.values[i] += 0.01f * (float)(i % 7);
    assert_ok(op_dir_make(in_dir("adapter"), e));
    assert_ok(op_model_adapter_save(m, 0, in_dir("adapter"), in_dir("model"), e));
    op_model_free(m);
    op_tokenizer *t;
    assert_ok(op_tokenizer_open(&t, in_dir("model"), e));
    assert_ok(op_tokenizer_save(t, in_dir("adapter"), e));
    op_tokenizer_free(t);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return op_path_remove(dir, NULL);
}

/* log p of some tokens: one number for everything that a model computes. */
static float likelihood(const char *path)
{
    static const int32_t ids[] = {401, 5, 250, 33, 33, 7, 402};
    op_model *m;
    op_pass *p;
    float logp[7], sum = 0;
    assert_ok(op_model_open(&m, path, &(op_model_options){.act = OP_F32}, e));
    assert_ok(op_pass_new(&p, m, e));
    op_seq s = {.length = 7, .parent = -1, .adapter = op_model_adapter_count(m) - 1};
    assert_ok(op_model_forward(m, p, &(op_batch){7, 1, ids, &s}, &(op_how){0}, e));
    assert_ok(op_model_logprobs(m, p, NULL, NULL, logp, e));
    for (int t = 0; t < 7; t++)
        sum += logp[t];
    op_pass_free(p);
    op_model_free(m);
    return sum;
}

static void says_as_before(const char *path)
{
    op_tokenizer *t;
    assert_ok(op_tokenizer_open(&t, path, e));
    assert_int_equal(op_tokenizer_bos(t), 401);
    assert_int_equal(op_tokenizer_eos(t), 402);
    assert_string_equal(op_tokenizer_chat_template(t), "{{ messages[0].content }}");
    op_tokenizer_free(t);
}

static void a_directory_and_a_gguf_hold_the_same_model_and_words(void **state)
{
    (void)state;
    float expected = likelihood(in_dir("model"));
    assert_ok(op_export(in_dir("model"), OP_EXPORT_HF, in_dir("hf"), OP_F32, e));
    assert_float_equal(likelihood(in_dir("hf")), expected, 0);
    says_as_before(in_dir("hf"));
    assert_ok(op_export(in_dir("model"), OP_EXPORT_GGUF, in_dir("m.gguf"), OP_F32, e));
    assert_float_equal(likelihood(in_dir("m.gguf")), expected, 0);
    says_as_before(in_dir("m.gguf"));
    assert_ok(op_export(in_dir("m.gguf"), OP_EXPORT_HF, in_dir("back"), OP_F32, e));
    assert_float_equal(likelihood(in_dir("back")), expected, 0);
}

static void smaller_types_are_near(void **state)
{
    (void)state;
    float expected = likelihood(in_dir("model"));
    static const op_dtype types[] = {OP_F16, OP_BF16, OP_Q8_0};
    for (int i = 0; i < 3; i++) {
        assert_ok(op_export(in_dir("model"), OP_EXPORT_GGUF, in_dir("small.gguf"), types[i], e));
        assert_float_equal(likelihood(in_dir("small.gguf")), expected, 0.01);
    }
    assert_ok(op_export(in_dir("model"), OP_EXPORT_HF, in_dir("half"), OP_F16, e));
    assert_float_equal(likelihood(in_dir("half")), expected, 0.01);
}

static void an_adapter_is_folded_in_or_kept_apart(void **state)
{
    (void)state;
    float base = likelihood(in_dir("model")), expected = likelihood(in_dir("adapter"));
    assert_true(base - expected > 0.1f || expected - base > 0.1f);
    assert_ok(op_export(in_dir("adapter"), OP_EXPORT_HF, in_dir("folded"), OP_F32, e));
    assert_false(op_path_exists(in_dir("folded/adapter_config.json")));
    assert_float_equal(likelihood(in_dir("folded")), expected, 1e-3);
    assert_ok(op_export(in_dir("adapter"), OP_EXPORT_GGUF, in_dir("folded.gguf"), OP_F32, e));
    assert_float_equal(likelihood(in_dir("folded.gguf")), expected, 1e-3);
    assert_ok(op_export(in_dir("adapter"), OP_EXPORT_PEFT, in_dir("peft"), OP_F32, e));
    assert_float_equal(likelihood(in_dir("peft")), expected, 0);
    says_as_before(in_dir("peft"));
}

static void what_cannot_be_written_is_refused_before_anything_is(void **state)
{
    (void)state;
    assert_int_equal(op_export(in_dir("model"), OP_EXPORT_PEFT, in_dir("none"), OP_F32, e), OP_ERR_ARG);
    assert_int_equal(op_export(in_dir("model"), OP_EXPORT_HF, in_dir("none"), OP_Q8_0, e), OP_ERR_ARG);
    assert_int_equal(op_export(in_dir("model"), OP_EXPORT_GGUF, in_dir("none"), OP_Q4_1, e), OP_ERR_ARG);
    assert_int_equal(op_export(in_dir("nowhere"), OP_EXPORT_HF, in_dir("none"), OP_F32, e), OP_ERR_IO);
    assert_non_null(strstr(e->message, "nowhere"));
    assert_false(op_path_exists(in_dir("none")));
}

static void refused(const char *from, op_export_format format, const char *to, const char *says)
{
    assert_int_equal(op_export(from, format, to, OP_F32, e), OP_ERR_ARG);
    if (!strstr(e->message, says))
        fail_msg("%s", e->message);
}

static void neither_the_source_nor_another_kind_of_result_is_written_over(void **state)
{
    (void)state;
    float model = likelihood(in_dir("model")), adapter = likelihood(in_dir("adapter"));
    refused(in_dir("model"), OP_EXPORT_HF, in_dir("./model"), "is the model itself");
    refused(in_dir("adapter"), OP_EXPORT_PEFT, in_dir("adapter"), "is the model itself");
    refused(in_dir("adapter"), OP_EXPORT_HF, in_dir("adapter"), "is the model itself");
    refused(in_dir("adapter"), OP_EXPORT_HF, in_dir("model"), "is the base model of the adapter");
    refused(in_dir("model"), OP_EXPORT_HF, in_dir("adapter"), "holds an adapter (\"adapter_config.json\")");
    assert_ok(op_export(in_dir("model"), OP_EXPORT_HF, in_dir("again"), OP_F32, e));
    assert_ok(op_export(in_dir("model"), OP_EXPORT_HF, in_dir("again"), OP_BF16, e)); /* the same kind is replaced */
    refused(in_dir("adapter"), OP_EXPORT_PEFT, in_dir("again"), "holds a model (\"config.json\")");
    refused(in_dir("model"), OP_EXPORT_GGUF, in_dir("again"), "found a directory, expected the name of a file");
    assert_ok(op_export(in_dir("model"), OP_EXPORT_GGUF, in_dir("self.gguf"), OP_F32, e));
    refused(in_dir("self.gguf"), OP_EXPORT_GGUF, in_dir("self.gguf"), "is the model itself");
    refused(in_dir("model"), OP_EXPORT_HF, in_dir("self.gguf"), "found a file, expected the name of a directory");
    assert_float_equal(likelihood(in_dir("model")), model, 0);
    assert_float_equal(likelihood(in_dir("adapter")), adapter, 0);
}

static void a_failed_allocation_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    for (int format = OP_EXPORT_HF; format <= OP_EXPORT_GGUF; format++) {
        char from[256], to[256];
        snprintf(from, sizeof from, "%s", in_dir("adapter"));
        snprintf(to, sizeof to, "%s", in_dir("fails"));
        op_status s = OP_ERR_NOMEM;
        for (long n = 0; s; n += 1 + n / 24) {
            op_alloc_fail_from(n);
            s = op_export(from, (op_export_format)format, to, OP_F32, e);
            op_alloc_fail_from(-1);
            assert_true(s == OP_OK || s == OP_ERR_NOMEM);
        }
        op_path_remove(to, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_and_a_gguf_hold_the_same_model_and_words),
        cmocka_unit_test(smaller_types_are_near),
        cmocka_unit_test(an_adapter_is_folded_in_or_kept_apart),
        cmocka_unit_test(what_cannot_be_written_is_refused_before_anything_is),
        cmocka_unit_test(neither_the_source_nor_another_kind_of_result_is_written_over),
        cmocka_unit_test(a_failed_allocation_is_an_error_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
