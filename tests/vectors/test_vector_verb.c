/* operant vector, as a user calls it. */
#include "tools.h"
#include "../verb.h"

static int call(const char *words)
{
    return call_verb(test_dir, "vector", words);
}

static int set_up(void **state)
{
    if (make_test_dir(state))
        return -1;
    save_model(new_model(tiny(OP_LLAMA), 1), "base", OP_F32);
    for (int i = 0; i < 2; i++) {
        op_model *m = new_model(tiny(OP_LLAMA), 1);
        disturb(m, 0.01, 2 + (uint64_t)i, i ? "mlp" : "");
        save_model(m, i ? "wealth" : "power", OP_F32);
    }
    return 0;
}

static void vectors_are_taken_measured_and_added(void **state)
{
    (void)state;
    assert_int_equal(call("extract model=power base=base output=p.safetensors"), 0);
    assert_shows("wrote p.safetensors");
    assert_int_equal(call("extract model=wealth base=base output=w.safetensors --json"), 0);
    assert_shows("\"output\": \"w.safetensors\"");
    assert_int_equal(call("info p.safetensors base=base"), 0);
    assert_shows("self_attn.q_proj");
    assert_shows("layer 2");
    assert_int_equal(call("info vector=p.safetensors singular=0 --json"), 0);
    assert_shows("\"concentration\"");
    assert_int_equal(call("info p.safetensors singular=0 output=info.jsonl"), 0);
    json_t *line = json_load_file(at("info.jsonl"), 0, NULL);
    assert_true(json_number_value(json_object_get(line, "norm")) > 0);
    json_decref(line);
    assert_int_equal(call("random p.safetensors output=r.safetensors seed=3"), 0);
    assert_int_equal(call("compare p.safetensors w.safetensors r.safetensors report=report.html"), 0);
    assert_shows("sign conflicts");
    assert_true(op_path_exists(at("report.html")));
    assert_int_equal(call("combine p.safetensors:2 against=w.safetensors layers=1 output=c.safetensors"), 0);
    assert_int_equal(call("add base=base vector=p.safetensors scale=-0.5 output=less"), 0);
    assert_int_equal(call("extract model=less base=base output=n.safetensors"), 0);
    assert_int_equal(call("compare n.safetensors p.safetensors"), 0);
    assert_shows("-1.0000"); /* opposite */
    assert_shows("100.0%");
}

static void scales_stand_behind_the_vectors_or_apart(void **state)
{
    (void)state;
    char x[65], y[65];
    assert_int_equal(call("add base=base vector=p.safetensors:0.25,w.safetensors:-1 output=one"), 0);
    assert_int_equal(call("add base=base p.safetensors:0.25 w.safetensors scale=-1 output=two"), 0);
    assert_ok(op_weights_sha256(at("one"), x, e));
    assert_ok(op_weights_sha256(at("two"), y, e));
    assert_string_equal(x, y);
}

static void mistakes_are_told_with_the_exit_status(void **state)
{
    (void)state;
    assert_int_equal(call("add base=power vector=p.safetensors output=x"), 1);
    assert_shows("was taken from other weights");
    assert_int_equal(call("add base=power vector=p.safetensors output=x force=true"), 0);
    assert_int_equal(call("add base=base vector=p.safetensors output=x"), 1);
    assert_shows("is there already");
    assert_int_equal(call("add base=base vector=p.safetensors"), 2);
    assert_shows("output=PATH is needed");
    assert_int_equal(call("subtract base=base vector=p.safetensors"), 2);
    assert_shows("unknown action \"subtract\"");
    assert_int_equal(call("compare p.safetensors"), 2);
    assert_shows("found 1 vectors, expected 2 or more");
    assert_int_equal(call("info p.safetensors w.safetensors"), 2);
    assert_shows("unexpected argument \"w.safetensors\"");
    assert_int_equal(call("info base"), 1);
    assert_shows("found a model, expected a vector");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_are_taken_measured_and_added),
        cmocka_unit_test(scales_stand_behind_the_vectors_or_apart),
        cmocka_unit_test(mistakes_are_told_with_the_exit_status),
    };
    return cmocka_run_group_tests(tests, set_up, remove_test_dir);
}
