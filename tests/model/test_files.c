/* Models on disk: what is saved is what opens again, and what is broken is refused with its name. */
#include "common.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"
#include "io/gguf.h"
#include "model/gguf_out.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/operant-model-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return op_path_remove(dir, NULL);
}

static void logprobs_of(op_model *m, float logp[20])
{
    int32_t ids[20];
    for (int i = 0; i < 20; i++)
        ids[i] = (i * 7 + 3) % 61;
    op_batch b = {20, 1, ids, &(op_seq){0, 20, -1, 0, op_model_adapter_count(m) - 1}};
    op_pass *p;
    CHECK(op_pass_new(&p, m, e));
    CHECK(op_model_forward(m, p, &b, &(op_how){0}, e));
    CHECK(op_model_logprobs(m, p, NULL, NULL, logp, e));
    op_pass_free(p);
}

static void assert_same_model(op_model *a, op_model *b)
{
    float x[20], y[20];
    logprobs_of(a, x);
    logprobs_of(b, y);
    assert_memory_equal(x, y, sizeof x);
}

static void a_saved_directory_and_a_gguf_open_as_the_same_model(void **state)
{
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        op_model *m = open_fixture_model(families[f], (op_model_options){.act = OP_F32}), *again;
        CHECK(op_model_save(m, dir, OP_F32, e));
        CHECK(op_model_open(&again, dir, &(op_model_options){.act = OP_F32}, e));
        assert_same_model(m, again);
        char one[65], two[65];
        CHECK(op_model_hash(m, one, e));
        CHECK(op_model_hash(again, two, e));
        assert_string_equal(one, two);
        op_model_free(again);
        char path[128];
        snprintf(path, sizeof path, "%s/m.gguf", dir);
        op_gguf_writer *w = op_gguf_writer_new();
        void *sources;
        op_error e2 = {0};
        op_status s = op_model_put_gguf(m, w, OP_F32, &sources, &e2);
        if (op_model_get_config(m)->window) {
            assert_int_equal(s, OP_ERR_UNSUPPORTED);
        } else if (strcmp(families[f], "llama3")) { /* its scaling is not one of the published settings that GGUF can be read back to */
            assert_int_equal(s, OP_OK);
            CHECK(op_gguf_save(w, path, e));
            CHECK(op_model_open(&again, path, &(op_model_options){.act = OP_F32}, e));
            assert_same_model(m, again);
            op_model_free(again);
        }
        op_free(sources);
        op_gguf_writer_free(w);
        op_model_free(m);
    }
}

static void an_adapter_saved_in_pefts_form_opens_with_its_base(void **state)
{
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        op_model_options o = {.act = OP_F32, .trainable = OP_TRAIN_ADAPTER, .lora = {.rank = 3, .alpha = 6, .targets = OP_LORA_ATTENTION | OP_LORA_UP}};
        op_model *m = open_fixture_model(families[f], o), *again;
        op_params p = op_model_params(m);
        for (size_t i = 0; i < p.n; i++)
            p.values[i] = (float)op_rng_normal(1, OP_STREAM_TEST, i) * 0.1f;
        CHECK(op_model_updated(m, e));
        char base[256];
        snprintf(base, sizeof base, "%s/%s", FIXTURES, families[f]);
        CHECK(op_model_adapter_save(m, 0, dir, base, e));
        CHECK(op_model_open(&again, dir, &(op_model_options){.act = OP_F32}, e));
        assert_int_equal(op_model_adapter_count(again), 1);
        assert_same_model(m, again);
        op_model_free(again);
        CHECK(op_model_open(&again, dir, &o, e)); /* to train on */
        assert_int_equal(op_model_adapter_count(again), 1);
        assert_memory_equal(op_model_params(again).values, p.values, p.n * sizeof *p.values);
        op_model_free(again);
        op_model_free(m);
        char path[128];
        snprintf(path, sizeof path, "%s/adapter_config.json", dir);
        unlink(path);
    }
}

static void a_fingerprint_is_of_the_base_and_its_adapters(void **state)
{
    (void)state;
    op_lora_options lora = {.rank = 3, .alpha = 6, .targets = OP_LORA_ALL};
    op_model *plain = open_fixture_model("llama", (op_model_options){.act = OP_F32}), *again = open_fixture_model("llama", (op_model_options){.act = OP_BF16});
    op_model *other = open_fixture_model("qwen2", (op_model_options){.act = OP_F32});
    op_model *m = open_fixture_model("llama", (op_model_options){.act = OP_F32, .trainable = OP_TRAIN_ADAPTER, .lora = lora});
    char a[65], b[65], c[65], with[65], changed[65];
    CHECK(op_model_fingerprint(plain, a, e));
    CHECK(op_model_fingerprint(again, b, e));
    CHECK(op_model_fingerprint(other, c, e));
    CHECK(op_model_fingerprint(m, with, e));
    op_model_params(m).values[5] += 1;
    CHECK(op_model_fingerprint(m, changed, e));
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    assert_string_not_equal(a, with);
    assert_string_not_equal(with, changed);
    op_model_free(plain);
    op_model_free(again);
    op_model_free(other);
    op_model_free(m);
}

static void write_config(const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", dir);
    CHECK(op_file_put(path, text, strlen(text), e));
}

static void a_broken_model_is_refused_with_the_reason(void **state)
{
    (void)state;
    op_model *m = open_fixture_model("llama", (op_model_options){.act = OP_F32}), *again;
    CHECK(op_model_save(m, dir, OP_F32, e));
    op_model_free(m);
    static const struct {
        const char *config, *says;
    } bad[] = {
        {"[]", "model_type"},
        {"{\"model_type\": \"bert\"}", "model_type \"bert\""},
        {"{\"model_type\": \"llama\", \"vocab_size\": 61}", "hidden_size"},
        {"{\"model_type\": \"llama\", \"vocab_size\": \"61\"}", "vocab_size"},
        {"{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_attention_heads\": 3,"
         "\"num_key_value_heads\": 2, \"intermediate_size\": 24}", "no multiple"},
        {"{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
         "\"num_key_value_heads\": 2, \"intermediate_size\": 32, \"tie_word_embeddings\": true}", "expected [32, 16]"},
        {"{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 3, \"num_attention_heads\": 4,"
         "\"num_key_value_heads\": 2, \"intermediate_size\": 24, \"tie_word_embeddings\": true}", "\"model.layers.2."},
        {"{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
         "\"num_key_value_heads\": 2, \"intermediate_size\": 24, \"rope_scaling\": {\"rope_type\": \"yarn\"}}", "\"yarn\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        op_error e = {0};
        write_config(bad[i].config);
        assert_int_not_equal(op_model_open(&again, dir, &(op_model_options){.act = OP_F32}, &e), OP_OK);
        assert_null(again);
        if (!strstr(e.message, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", e.message, bad[i].says);
    }
    op_error e = {0};
    assert_int_equal(op_model_open(&again, "/nowhere/at/all", &(op_model_options){.act = OP_F32}, &e), OP_ERR_IO);
    assert_non_null(strstr(e.message, "/nowhere/at/all"));
}

static void opening_survives_a_failure_of_every_allocation(void **state)
{
    (void)state;
    op_model_options o = {.act = OP_F32, .trainable = OP_TRAIN_ADAPTER, .lora = {.rank = 2, .alpha = 2, .targets = OP_LORA_ALL}};
    char path[512];
    snprintf(path, sizeof path, "%s/qwen3", FIXTURES);
    long n = 0;
    for (;; n++) {
        op_model *m;
        op_error e = {0};
        op_alloc_fail_from(n);
        op_status s = op_model_open(&m, path, &o, &e);
        op_alloc_fail_from(-1);
        if (!s) {
            op_model_free(m);
            break;
        }
        assert_null(m);
        assert_true(e.message[0]);
    }
    assert_true(n > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_saved_directory_and_a_gguf_open_as_the_same_model, make_dir, remove_dir),
        cmocka_unit_test(a_fingerprint_is_of_the_base_and_its_adapters),
        cmocka_unit_test_setup_teardown(an_adapter_saved_in_pefts_form_opens_with_its_base, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_broken_model_is_refused_with_the_reason, make_dir, remove_dir),
        cmocka_unit_test(opening_survives_a_failure_of_every_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
