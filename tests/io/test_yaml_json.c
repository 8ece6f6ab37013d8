#include "tools.h"


#include "io/yaml_json.h"

static void assert_reads(const char *yaml, const char *want)
{
    op_error e = {0};
    json_t *value, *expected = json_loads(want, JSON_DECODE_ANY, NULL);
    assert_non_null(expected);
    if (op_yaml_to_json(&value, yaml, strlen(yaml), "f.yaml", &e))
        fail_msg("%s", e.message);
    assert_true(json_equal(value, expected));
    json_decref(value);
    json_decref(expected);
}

static void a_tree_keeps_its_shape_and_its_types(void **state)
{
    (void)state;
    assert_reads("stages:\n  - name: a\n    lr: 1e-4\n    n: 12\n    on: yes\n    quoted: \"7\"\n    ok: true\n    none: ~\n  - [x, -3, .5]\n",
                 "{\"stages\":[{\"name\":\"a\",\"lr\":0.0001,\"n\":12,\"on\":\"yes\",\"quoted\":\"7\",\"ok\":true,\"none\":null},[\"x\",-3,0.5]]}");
    assert_reads("", "null");
    assert_reads("inf", "\"inf\"");
    assert_reads("0x10", "\"0x10\"");
    assert_reads("2026-01-02", "\"2026-01-02\"");
    assert_reads("99999999999999999999", "1e20");
}

static void an_anchor_is_an_error_with_its_line(void **state)
{
    (void)state;
    op_error e = {0};
    json_t *value;
    const char *yaml = "a: 1\nb: &x 2\n";
    assert_int_equal(op_yaml_to_json(&value, yaml, strlen(yaml), "f.yaml", &e), OP_ERR_FORMAT);
    assert_non_null(strstr(e.message, "f.yaml: line 2"));
    assert_null(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_keeps_its_shape_and_its_types),
        cmocka_unit_test(an_anchor_is_an_error_with_its_line),
    };
    return cmocka_run_group_tests_name("io yaml_json", tests, NULL, NULL);
}
