#include "tools.h"

static op_status render(const char *source, json_t *vars, op_buf *out, op_error *e)
{
    op_template *t;
    op_status s = op_template_parse(&t, source, strlen(source), e);
    op_buf_clear(out);
    s = s ? s : op_template_render(t, vars, out, e);
    op_template_free(t);
    return s;
}

typedef struct walk_state {
    json_t *vars;
    op_buf out;
    int lines;
} walk_state;

static op_status check_line(void *ctx, json_t *object, int line, op_error *e)
{
    (void)e;
    walk_state *w = ctx;
    op_error error = {0};
    const char *source = json_string_value(json_object_get(object, "template")), *want = json_string_value(json_object_get(object, "want"));
    op_status s = render(source, w->vars, &w->out, &error);
    w->lines++;
    if (s && want)
        fail_msg("line %d, '%s': %s", line, source, error.message);
    if (!s && !want)
        fail_msg("line %d, '%s': gave '%s', the reference an error", line, source, w->out.data);
    if (want && strcmp(w->out.data ? w->out.data : "", want) != 0 && !strstr(want, "\x7f"))
        fail_msg("line %d, '%s': gave\n'%s'\nthe reference\n'%s'", line, source, w->out.data, want);
    return OP_OK;
}

static void every_construct_renders_as_the_reference_does(void **state)
{
    (void)state;
    op_error e;
    walk_state w = {0};
    op_buf_init(&w.out, 1 << 20);
    check(op_json_read(&w.vars, fixture("variables.json"), &e), &e);
    check(op_json_lines(fixture("templates.jsonl"), check_line, &w, &e), &e);
    assert_true(w.lines > 80);
    json_decref(w.vars);
    op_buf_release(&w.out);
}

static void refused(const char *source, op_status status, const char *part)
{
    op_error e = {0};
    op_buf out;
    json_t *vars = parse_json("{\"s\":\"abc\",\"n\":3,\"list\":[1,2],\"date_string\":\"1 May 2001\"}");
    op_buf_init(&out, 100000);
    op_status s = render(source, vars, &out, &e);
    if (s != status)
        fail_msg("'%.100s': status %d, '%s'", source, s, s ? e.message : out.data);
    assert_message_has(&e, part);
    json_decref(vars);
    op_buf_release(&out);
}

static void what_is_outside_the_subset_is_named_with_its_line(void **state)
{
    (void)state;
    refused("\n\n{% include 'x' %}", OP_ERR_UNSUPPORTED, "line 3: tag 'include' is not supported");
    refused("{{ 1 }}\n{{ s|groupby('x') }}", OP_ERR_UNSUPPORTED, "line 2: filter 'groupby' is not supported");
    refused("{{ s is escaped }}", OP_ERR_UNSUPPORTED, "line 1: test 'escaped' is not supported");
    refused("\n{{ s.encode('x') }}", OP_ERR_UNSUPPORTED, "line 2: method 'encode' of str is not supported");
    refused("{{ list.append(3) }}", OP_ERR_UNSUPPORTED, "method 'append' of list is not supported");
    refused("{{ lipsum() }}", OP_ERR_UNSUPPORTED, "'lipsum' is undefined, or a function that is not supported");
    refused("{% for i in list recursive %}{% endfor %}", OP_ERR_UNSUPPORTED, "'recursive' loops");
    refused("{{ f(*list) }}", OP_ERR_FORMAT, "'*' and '**' are not supported");
    refused("{{ list|map('nope')|list }}", OP_ERR_UNSUPPORTED, "filter 'nope'");
    refused("{% break %}", OP_ERR_UNSUPPORTED, "tag 'break' is not supported here");
}

static void broken_source_is_an_error_with_its_line(void **state)
{
    (void)state;
    refused("a\n{{ 1 +", OP_ERR_FORMAT, "line 2: a tag is not closed with '}}'");
    refused("{% if n %}x", OP_ERR_FORMAT, "found the end of the template");
    refused("{% if n %}x{% endfor %}", OP_ERR_UNSUPPORTED, "tag 'endfor'");
    refused("{{ 'abc }}", OP_ERR_FORMAT, "a string is not closed");
    refused("{# abc", OP_ERR_FORMAT, "a comment is not closed");
    refused("{% raw %} x", OP_ERR_FORMAT, "'raw' is not closed");
    refused("{{ (1, 2] }}", OP_ERR_FORMAT, "']' closes nothing");
    refused("{{ 1 2 }}", OP_ERR_FORMAT, "expected '}}', found '2'");
    refused("{{ $ }}", OP_ERR_FORMAT, "'$' does not belong");
    refused("{{ }}", OP_ERR_FORMAT, "expected an expression");
    refused("{% set %}", OP_ERR_FORMAT, "expected a name");
    refused("{{ '\\x4' }}", OP_ERR_FORMAT, "is no escape");
    refused("{{ 99999999999999999999 }}", OP_ERR_UNSUPPORTED, "is too large");
    refused("\xff", OP_ERR_FORMAT, "byte 0 is not valid UTF-8");
}

static void what_python_would_raise_is_an_error_with_its_line(void **state)
{
    (void)state;
    refused("\n{{ raise_exception('no ' ~ n) }}", OP_ERR_ARG, "line 2: no 3");
    refused("{{ missing.x }}", OP_ERR_ARG, "'missing' is undefined");
    refused("{{ s + n }}", OP_ERR_ARG, "+ cannot be used with str and int");
    refused("{{ n / 0 }}", OP_ERR_ARG, "division by zero");
    refused("{{ s < n }}", OP_ERR_ARG, "str and int have no order");
    refused("{% for i in n %}{% endfor %}", OP_ERR_ARG, "a value of type int cannot be looped over");
    refused("{% for a, b in [[1]] %}{% endfor %}", OP_ERR_ARG, "1 values for 2 names");
    refused("{% set s.x = 1 %}", OP_ERR_ARG, "'s' is no namespace");
    refused("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", OP_ERR_ARG, "macro 'm' takes 1 arguments");
    refused("{{ 9223372036854775807 + 1 }}", OP_ERR_ARG, "beyond 64 bits");
    refused("{{ s() }}", OP_ERR_ARG, "cannot be called");
}

static void no_template_runs_away(void **state)
{
    (void)state;
    refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", OP_ERR_UNSUPPORTED, "nested deeper");
    refused("{% set r = range(9000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", OP_ERR_UNSUPPORTED, "steps");
    refused("{% for a in range(200000) %}{% endfor %}", OP_ERR_UNSUPPORTED, "a range of more than 100000");
    refused("{{ 'x' * 9000000000000 }}", OP_ERR_NOMEM, "a repetition");
    refused("{% for a in range(50000) %}abc{% endfor %}", OP_ERR_NOMEM, "bytes of output");
    refused("{% set ns = namespace(s='ab') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", OP_ERR_NOMEM, "bytes of values");
    op_error e;
    op_template *t;
    size_t n = 50000;
    char *deep = test_malloc(n);
    static const char *const parts[] = {"{{ ((((((((", "{{ [[[[[[[[", "{{ not not not not ", "{{ - - - - - - ", "{% if 1 %}{% if 1 %}", "{% if 1 %}{% elif 1 %}"};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        size_t m = strlen(parts[k]), start = k < 4 ? 3 : 0;
        for (size_t i = 0; i < n; i++)
            deep[i] = i < start ? parts[k][i] : parts[k][start + (i - start) % (m - start)];
        assert_int_not_equal(op_template_parse(&t, deep, n, &e), OP_OK);
        assert_null(t);
    }
    strcpy(deep, "{{ 1");
    for (size_t i = 4; i + 8 < n; i += 4)
        memcpy(deep + i, " + 1", 5);
    strcat(deep, " }}");
    refused(deep, OP_ERR_UNSUPPORTED, "nested deeper than 1000");
    test_free(deep);
}

static void a_failed_rendering_leaves_the_output_as_it_was(void **state)
{
    (void)state;
    op_error e;
    op_buf out;
    op_buf_init(&out, 1000);
    assert_int_equal(op_buf_puts(&out, "kept"), OP_OK);
    op_template *t = parse_template("more {{ 1 / 0 }}");
    json_t *vars = parse_json("{}");
    assert_int_equal(op_template_render(t, vars, &out, &e), OP_ERR_ARG);
    assert_string_equal(out.data, "kept");
    json_decref(vars);
    op_template_free(t);
    op_buf_release(&out);
}

static void the_date_is_the_one_that_is_given(void **state)
{
    (void)state;
    op_error e;
    op_buf out;
    op_buf_init(&out, 1000);
    json_t *vars = parse_json("{\"date_string\":\"1 May 2001\"}"), *none = parse_json("{}");
    check(render("{{ strftime_now('%d %b %Y') }}", vars, &out, &e), &e);
    assert_string_equal(out.data, "1 May 2001");
    check(render("{{ strftime_now('%Y') }}", none, &out, &e), &e);
    assert_int_equal(out.len, 4);
    json_decref(vars);
    json_decref(none);
    op_buf_release(&out);
}

static const char everything[] =
    "{% macro m(a, b='x') %}{{ a ~ b }}{% endmacro %}{% set ns = namespace(n=0) %}{% set t %}in{% endset %}"
    "{% for k, v in d.items() if v %}{% set ns.n = ns.n + 1 %}{{ loop.index }}{{ m(k, b=v) }}{% else %}none{% endfor %}"
    "{{ d|tojson(indent=2) }}{{ words|join(', ')|upper }}{{ words|map('length')|list }}{{ 'a,b'.split(',')[::-1]|join }}"
    "{{ s|replace('a', 'b')|trim|title|indent }}{{ [1, 'a', {'k': none}] }}{{ words|sort|first }}{{ 'a' 'b\\n' }}{{ s[1:] * 2 }}";

typedef struct rendering {
    op_template *t;
    json_t *vars;
} rendering;

static op_status parse_everything(void *ctx, op_error *e)
{
    (void)ctx;
    op_template *t;
    op_status s = op_template_parse(&t, everything, sizeof everything - 1, e);
    op_template_free(t);
    return s;
}

static op_status render_everything(void *ctx, op_error *e)
{
    rendering *r = ctx;
    op_buf out;
    op_buf_init(&out, 10000);
    op_status s = op_template_render(r->t, r->vars, &out, e);
    op_buf_release(&out);
    return s;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    assert_true(fail_every_allocation(parse_everything, NULL) > 3);
    rendering r = {.t = parse_template(everything), .vars = parse_json("{\"d\":{\"a\":1,\"b\":0},\"words\":[\"x\",\"y\"],\"s\":\" abc\\nd\"}")};
    assert_true(fail_every_allocation(render_everything, &r) > 3);
    op_template_free(r.t);
    json_decref(r.vars);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_construct_renders_as_the_reference_does),
        cmocka_unit_test(what_is_outside_the_subset_is_named_with_its_line),
        cmocka_unit_test(broken_source_is_an_error_with_its_line),
        cmocka_unit_test(what_python_would_raise_is_an_error_with_its_line),
        cmocka_unit_test(no_template_runs_away),
        cmocka_unit_test(a_failed_rendering_leaves_the_output_as_it_was),
        cmocka_unit_test(the_date_is_the_one_that_is_given),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
