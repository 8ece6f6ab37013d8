/* A tiny random model with a tokenizer, with and without an adapter and a chat template. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/subject.h>

#include "base/mem.h"
#include "io/file.h"

static char dir[64];
static op_error e[1];
static const op_model_options how = {.act = OP_F32};

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

static void put_tokenizer(const char *tokenizer, const char *config, const char *settings)
{
    const char *fixtures = getenv("FIXTURES");
    op_buf b;
    op_buf_init(&b, 1 << 20);
    char source[512];
    snprintf(source, sizeof source, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    assert_ok(op_file_read(source, &b, e));
    assert_ok(op_file_put(in_dir(tokenizer), b.data, b.len, e));
    assert_ok(op_file_put(in_dir(config), settings, strlen(settings), e));
    op_buf_release(&b);
}

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/operant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_ok(op_dir_make(in_dir("model"), e));
    assert_ok(op_dir_make(in_dir("adapter"), e));
    op_model_config c = {.family = OP_LLAMA, .vocab = 416, .width = 32, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32,
                         .max_positions = 32, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402}, .n_eos = 1};
    op_model *m;
    assert_ok(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e));
    assert_ok(op_model_save(m, in_dir("model"), OP_F32, e));
    op_model_free(m);
    put_tokenizer("model/tokenizer.json", "model/tokenizer_config.json", "{\"eos_token\":\"<|im_end|>\"}");
    assert_ok(op_model_open(&m, in_dir("model"), &(op_model_options){.trainable = OP_TRAIN_ADAPTER, .lora = {.rank = 2, .alpha = 4, .targets = OP_LORA_ALL}}, e));
    assert_ok(op_model_adapter_save(m, 0, in_dir("adapter"), in_dir("model"), e));
    op_model_free(m);
    put_tokenizer("adapter/tokenizer.json", "adapter/tokenizer_config.json",
                  "{\"eos_token\":\"<|im_end|>\",\"chat_template\":\"{{ messages[0].content }}\"}");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return op_path_remove(dir, NULL);
}

static void a_subject_tells_whether_it_has_a_template_and_an_adapter(void **state)
{
    (void)state;
    op_subject s;
    assert_ok(op_subject_open(&s, in_dir("model"), &how, e));
    assert_true(s.model && s.tokenizer && s.chat.tokenizer == s.tokenizer);
    assert_true(!s.tmpl && !s.chat.tmpl);
    assert_int_equal(s.adapter, -1);
    op_subject_close(&s);
    op_subject_close(&s); /* closed already */
    assert_ok(op_subject_open(&s, in_dir("adapter"), &how, e));
    assert_true(s.tmpl && s.chat.tmpl == s.tmpl);
    assert_int_equal(s.adapter, 0);
    op_subject_close(&s);
}

static void words_are_opened_without_the_model(void **state)
{
    (void)state;
    op_subject s;
    assert_ok(op_path_rename(in_dir("model/model.safetensors"), in_dir("away"), e));
    assert_true(op_subject_open(&s, in_dir("model"), &how, e) != OP_OK);
    assert_true(!s.model && !s.tokenizer && !s.chat.tokenizer);
    assert_ok(op_subject_open_words(&s, in_dir("model"), e));
    assert_true(!s.model && s.tokenizer);
    op_subject_close(&s);
    assert_ok(op_path_rename(in_dir("away"), in_dir("model/model.safetensors"), e));
}

static void every_failed_allocation_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    op_status status = OP_ERR_NOMEM;
    for (long n = 0; status; n += 1 + n / 24) {
        op_subject s;
        op_alloc_fail_from(n);
        status = op_subject_open(&s, in_dir("adapter"), &how, e);
        op_alloc_fail_from(-1);
        assert_true(status == OP_OK || status == OP_ERR_NOMEM);
        op_subject_close(&s);
    }
}

static void a_named_backend_or_type_is_not_second_guessed(void **state)
{
    (void)state;
    assert_int_equal(op_subject_dtype(0, "ref"), OP_F32);
    assert_int_equal(op_subject_dtype(1, NULL), OP_F32);
    assert_int_equal(op_subject_dtype(2, "ref"), OP_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_subject_tells_whether_it_has_a_template_and_an_adapter),
        cmocka_unit_test(words_are_opened_without_the_model),
        cmocka_unit_test(every_failed_allocation_comes_back_and_leaks_nothing),
        cmocka_unit_test(a_named_backend_or_type_is_not_second_guessed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
