/* The page of a comparison of task vectors. */
#include <operant/report.h>

#include "../lab/well_formed.h"

static const char comparison[] =
    "{\"vectors\": [{\"path\": \"runs/power.safetensors\", \"norm\": 2.5, \"tensors\": 3, \"base_sha256\": \"0123456789abcdef\"},"
    " {\"path\": \"w<e>alth & \\u00e4 very long name of a vector indeed.safetensors\", \"norm\": 1, \"tensors\": 1, \"base_sha256\": \"0123456789abcdef\"},"
    " {\"path\": \"none\", \"norm\": 0, \"tensors\": 0, \"base_sha256\": \"ffff\"}],"
    " \"same_base\": false, \"top\": 0.01, \"elements\": 1000,"
    " \"cosine\": [[1, -0.25, null], [-0.25, 1, null], [null, null, null]], \"sign_conflict\": [[0, 0.3, null], [0.3, 0, null], [null, null, null]],"
    " \"overlap\": [[1, 0.02, null], [0.02, 1, null], [null, null, null]],"
    " \"layers\": [{\"layer\": -1, \"norms\": [1, 1, 0], \"cosine\": [[1, null, null], [null, 1, null], [null, null, null]]},"
    " {\"layer\": 7, \"norms\": [1, 1, 0], \"cosine\": [[1, -0.5, null], [-0.5, 1, null], [null, null, null]]}],"
    " \"kinds\": [{\"kind\": \"mlp.up_proj\", \"norms\": [1, 1, 0], \"cosine\": [[1, -0.5, null], [-0.5, 1, null], [null, null, null]]}]}";

static json_t *three(void)
{
    json_t *j = json_loads(comparison, 0, NULL);
    assert_non_null(j);
    return j;
}

static void the_page_is_well_formed_and_shows_each_figure(void **state)
{
    (void)state;
    json_t *j = three();
    op_buf page;
    op_buf_init(&page, 1 << 22);
    assert_ok(op_vector_report_html(j, &page, e));
    check_well_formed(page.data);
    static const char *const shown[] = {"1 power", "2 w&lt;e&gt;alth", "30.0%", "-0.250", "layer 7", "outside the layers", "mlp.up_proj", "1·2", "They were not all taken", "2.5"};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
        if (!strstr(page.data, shown[i]))
            fail_msg("the page has no \"%s\"", shown[i]);
    assert_null(strstr(page.data, "<script"));
    assert_null(strstr(page.data, "http"));
    assert_null(strstr(page.data, "nan"));
    op_buf_release(&page);
    json_decref(j);
}

static void a_failed_allocation_is_an_error(void **state)
{
    (void)state;
    json_t *j = three();
    op_status s = OP_ERR_NOMEM;
    for (long n = 0; s; n++) {
        op_buf page;
        op_buf_init(&page, 1 << 22);
        op_alloc_fail_from(n);
        s = op_vector_report_html(j, &page, NULL);
        op_alloc_fail_from(-1);
        op_buf_release(&page);
        assert_true(s == OP_OK || s == OP_ERR_NOMEM);
    }
    json_decref(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_page_is_well_formed_and_shows_each_figure),
        cmocka_unit_test(a_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
