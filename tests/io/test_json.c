#include "tools.h"

#include <zlib.h>

#include <operant/jsonl.h>

#include "io/json.h"
#include "io/zip.h"

static json_t *parse(const char *text)
{
    json_t *v;
    op_error e;
    if (op_json_parse(&v, text, strlen(text), "t", &e))
        fail_msg("%s", e.message);
    return v;
}

static void refused(const char *text, size_t n, const char *part)
{
    json_t *v;
    op_error e;
    assert_int_equal(op_json_parse(&v, text, n, "t", &e), OP_ERR_FORMAT);
    assert_null(v);
    assert_message_has(&e, "t: ");
    assert_message_has(&e, part);
}

static void syntax_errors_and_duplicate_keys_are_refused_with_their_offset(void **state)
{
    (void)state;
    refused("{\"a\":1,}", 8, "offset");
    refused("{\"a\":1,\n\"a\":2}", 14, "line 2");
    refused("", 0, "offset 0: expected a value, found the end");
    refused("[1] x", 5, "offset 4: expected the end");
    refused("[1 2]", 5, "offset 3: expected ',' or ']'");
    refused("{\"a\" 1}", 7, "offset 5: expected ':'");
    refused("{a:1}", 5, "offset 1: expected a key in quotes");
    refused("nul", 3, "offset 0: expected a value");
    refused("\"a", 2, "offset 0: the string does not end");
    refused("\"a\\\"", 4, "offset 0: the string does not end");
    refused("\"\n\"", 3, "offset 1: a control character");
    refused("{\"a\\u0000\":1}", 13, "a key with a 0 byte");
    refused("{\"a\\n\":1,\"a\\n\":1}", 17, "offset 9: this key is there twice");
    refused("\"\xff\"", 3, "not UTF-8");
}

static void numbers_follow_the_grammar(void **state)
{
    (void)state;
    static const char *const bad[] = {"-", "01", "+1", ".5", "1.", "1e", "1e+", "--1", "0x10", "NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(bad[i], strlen(bad[i]), "offset");
    json_t *v = parse("[0,-0,9223372036854775807,-9223372036854775808,1.5e-3,0.1,1E+2,9223372036854775808]");
    assert_int_equal(json_integer_value(json_array_get(v, 2)), INT64_MAX);
    assert_int_equal(json_integer_value(json_array_get(v, 3)), INT64_MIN);
    assert_true(json_real_value(json_array_get(v, 4)) == 1.5e-3);
    assert_true(json_real_value(json_array_get(v, 5)) == 0.1);
    assert_true(json_real_value(json_array_get(v, 6)) == 100);
    assert_true(json_real_value(json_array_get(v, 7)) == 9223372036854775808.0);
    json_decref(v);
}

static void escapes_become_their_characters_and_broken_ones_are_refused(void **state)
{
    (void)state;
    json_t *v = parse("\"x\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\ud83d\\ude00y\"");
    assert_string_equal(json_string_value(v), "x\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80y");
    json_decref(v);
    static const char *const bad[] = {"\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud83d\"", "\"\\ude00\"", "\"\\ud83dx\\ude00\"",
                                      "\"\\ud83d\\u0041\"", "\"\\"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(bad[i], strlen(bad[i]), "not a valid escape");
}

static void nesting_beyond_the_limit_is_refused_and_brackets_in_strings_do_not_count(void **state)
{
    (void)state;
    char deep[300];
    memset(deep, '[', 65);
    memset(deep + 65, ']', 65);
    refused(deep, 130, "nested too deep");
    json_t *v;
    assert_int_equal(op_json_parse(&v, deep + 1, 128, "t", NULL), OP_OK);
    json_decref(v);
    memset(deep, '[', 200);
    deep[0] = deep[199] = '"';
    deep[1] = '\\';
    deep[2] = '"';
    assert_int_equal(op_json_parse(&v, deep, 200, "t", NULL), OP_OK);
    json_decref(v);
}

static void an_integer_beyond_64_bits_becomes_a_real(void **state)
{
    (void)state;
    json_t *v = parse("{\"model_max_length\": 1000000000000000019884624838656, \"n\": 3, \"s\": \"11111111111111111111\"}");
    double d = 0;
    int64_t n = 0;
    const char *s = NULL;
    op_error e;
    assert_int_equal(op_json_get_float(v, "model_max_length", true, &d, "t", &e), OP_OK);
    assert_true(d > 0.99e30 && d < 1.01e30);
    assert_int_equal(op_json_get_int(v, "n", true, 0, 9, &n, "t", &e), OP_OK);
    assert_int_equal(op_json_get_string(v, "s", true, &s, "t", &e), OP_OK);
    assert_string_equal(s, "11111111111111111111");
    assert_int_equal(op_json_get_int(v, "model_max_length", true, 0, 9, &n, "t", &e), OP_ERR_FORMAT);
    assert_string_equal(e.message, "t: key \"model_max_length\": found a real number, expected an integer");
    json_decref(v);
    refused("1e999", 5, "too large");
}

static void getters_say_what_they_found_and_what_they_expected(void **state)
{
    (void)state;
    json_t *v = parse("{\"s\":\"x\",\"i\":7,\"f\":1.5,\"b\":true,\"a\":[],\"o\":{},\"z\":null,\"nul\":\"a\\u0000b\"}"), *c;
    op_error e;
    const char *s = "kept";
    int64_t i;
    double f;
    bool b;
    assert_int_equal(op_json_get_string(v, "i", true, &s, "t", &e), OP_ERR_FORMAT);
    assert_string_equal(e.message, "t: key \"i\": found an integer, expected a string");
    assert_int_equal(op_json_get_string(v, "gone", true, &s, "t", &e), OP_ERR_FORMAT);
    assert_string_equal(e.message, "t: key \"gone\": found nothing, expected a string");
    assert_int_equal(op_json_get_string(v, "z", true, &s, "t", &e), OP_ERR_FORMAT);
    assert_int_equal(op_json_get_string(v, "nul", true, &s, "t", &e), OP_ERR_FORMAT);
    assert_int_equal(op_json_get_string(v, "z", false, &s, "t", &e), OP_OK);
    assert_string_equal(s, "kept");
    assert_int_equal(op_json_get_string(v, "s", true, &s, "t", &e), OP_OK);
    assert_string_equal(s, "x");
    assert_int_equal(op_json_get_int(v, "i", true, 8, 9, &i, "t", &e), OP_ERR_FORMAT);
    assert_string_equal(e.message, "t: key \"i\": found 7, expected 8 to 9");
    assert_int_equal(op_json_get_int(v, "f", true, 0, 9, &i, "t", &e), OP_ERR_FORMAT);
    assert_int_equal(op_json_get_int(v, "i", true, 7, 7, &i, "t", &e), OP_OK);
    assert_int_equal(i, 7);
    assert_int_equal(op_json_get_float(v, "i", true, &f, "t", &e), OP_OK);
    assert_true(f == 7);
    assert_int_equal(op_json_get_float(v, "b", true, &f, "t", &e), OP_ERR_FORMAT);
    assert_int_equal(op_json_get_bool(v, "b", true, &b, "t", &e), OP_OK);
    assert_true(b);
    assert_int_equal(op_json_get_bool(v, "i", true, &b, "t", &e), OP_ERR_FORMAT);
    assert_int_equal(op_json_get_array(v, "a", true, &c, "t", &e), OP_OK);
    assert_int_equal(op_json_get_array(v, "o", true, &c, "t", &e), OP_ERR_FORMAT);
    assert_int_equal(op_json_get_object(v, "o", true, &c, "t", &e), OP_OK);
    assert_int_equal(op_json_get_object(v, "a", true, &c, "t", &e), OP_ERR_FORMAT);
    json_decref(v);
}

static void a_value_written_is_read_back_equal(void **state)
{
    (void)state;
    json_t *v = parse("{\"b\":[1,2.5,1e-300,\"\\u0000\\ud83d\\ude00\"],\"a\":{\"x\":null}}"), *w;
    const char *path = in_dir("v.json");
    op_error e;
    assert_int_equal(op_json_write(path, v, &e), OP_OK);
    assert_int_equal(op_json_read(&w, path, &e), OP_OK);
    assert_true(json_equal(v, w));
    json_decref(v);
    json_decref(w);
}

typedef struct seen {
    op_buf text; /* "line:id " for each object */
    int stop_at;
} seen;

static op_status note(void *ctx, json_t *object, int line, op_error *e)
{
    seen *s = ctx;
    if (line == s->stop_at)
        return op_error_set(e, OP_ERR_INTERRUPTED, "stop");
    return op_buf_printf(&s->text, "%d:%lld ", line, (long long)json_integer_value(json_object_get(object, "id")));
}

static void lines_are(const char *bytes, size_t n, op_status expected, const char *text)
{
    seen s = {.stop_at = 99};
    op_error e = {0};
    op_buf_init(&s.text, 1000);
    assert_int_equal(op_json_lines_parse(bytes, n, "t.jsonl", note, &s, &e), expected);
    if (expected)
        assert_message_has(&e, text);
    else
        assert_string_equal(s.text.data ? s.text.data : "", text);
    op_buf_release(&s.text);
}

static void lines_and_arrays_give_their_objects_in_order(void **state)
{
    (void)state;
#define LINES(text, expected) lines_are(text, sizeof text - 1, OP_OK, expected)
    LINES("", "");
    LINES("{\"id\":1}", "1:1 ");
    LINES("{\"id\":1}\n\n  \r\n{\"id\":4}\r\n", "1:1 4:4 ");
    LINES("\xef\xbb\xbf{\"id\":1}\n", "1:1 ");
    LINES(" [{\"id\":5},\n{\"id\":6}]\n", "1:5 2:6 ");
#undef LINES
}

static void a_broken_line_is_an_error_with_its_number(void **state)
{
    (void)state;
#define LINES(text, expected) lines_are(text, sizeof text - 1, OP_ERR_FORMAT, expected)
    LINES("{\"id\":1}\n{\"id\":\n", "t.jsonl: line 2");
    LINES("{\"id\":1}\n[1]\n", "t.jsonl: line 2: found an array, expected an object");
    LINES("[{},3]", "t.jsonl: element 2: found an integer, expected an object");
    LINES("[{}", "t.jsonl: ");
    LINES("{}\0", "line 1");
#undef LINES
}

static void a_status_from_the_callback_ends_the_walk(void **state)
{
    (void)state;
    seen s = {.stop_at = 2};
    op_error e;
    op_buf_init(&s.text, 1000);
    const char *text = "{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n";
    assert_int_equal(op_json_lines_parse(text, strlen(text), "t", note, &s, &e), OP_ERR_INTERRUPTED);
    assert_string_equal(s.text.data, "1:1 ");
    op_buf_release(&s.text);
}

/* Two gzip members, one after the other. */
static const char *put_gzip(const char *name, size_t *n)
{
    const char *path = in_dir(name);
    for (int i = 0; i < 2; i++) {
        gzFile z = gzopen(path, i ? "ab" : "wb");
        for (int k = 0; k < 2000; k++)
            gzprintf(z, "{\"id\":%d}\n", 2000 * i + k);
        gzclose(z);
    }
    op_map m;
    assert_int_equal(op_map_open(&m, path, NULL), OP_OK);
    *n = m.size;
    op_map_close(&m);
    return path;
}

static op_status note_row(void *ctx, json_t *object, int line, op_error *e)
{
    if (op_buf_printf(ctx, "%d:", line) || op_json_append(ctx, object))
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    return OP_OK;
}

static void rows_are(const char *bytes, size_t n, op_status expected, const char *text)
{
    op_error e = {0};
    op_buf b;
    op_buf_init(&b, 1000);
    assert_int_equal(op_json_lines(put_file("t.csv", bytes, n), note_row, &b, &e), expected);
    if (expected)
        assert_message_has(&e, text);
    else
        assert_string_equal(b.data ? b.data : "", text);
    op_buf_release(&b);
}

static void rows_of_a_csv_are_objects_under_the_names_of_the_first(void **state)
{
    (void)state;
#define ROWS(text, expected) rows_are(text, sizeof text - 1, OP_OK, expected)
    ROWS("a", "");
    ROWS("a,b\n1,x\r\n\n,\n", "2:{\"a\":\"1\",\"b\":\"x\"}\n4:{\"a\":\"\",\"b\":\"\"}\n");
    ROWS("\xef\xbb\xbfz,\"a \"\"b\"\"\"\n\"one, two\nthree\",\"\"\n4,\xc3\xa9", "2:{\"z\":\"one, two\\nthree\",\"a \\\"b\\\"\":\"\"}\n4:{\"z\":\"4\",\"a \\\"b\\\"\":\"\xc3\xa9\"}\n");
#undef ROWS
#define ROWS(text, expected) rows_are(text, sizeof text - 1, OP_ERR_FORMAT, expected)
    ROWS("a,b\n1\n", "line 2: found 1 fields, expected 2 as in the first row");
    ROWS("a,a\n", "line 1: two columns are called \"a\"");
    ROWS("a,\n", "line 1: a column without a name");
    ROWS("a\n\"x\ny", "line 2: a quote that is not closed");
    ROWS("a\n\"x\"y\n", "line 2: found something behind a closing quote");
    ROWS("a\n\xff\n", "line 2: expected UTF-8");
    ROWS("a,b\n1, \"no, stop\"\n", "line 2: found a quote in a field that does not begin with one");
    ROWS("a\r\"x\ry\"z\r", "line 3: found something behind a closing quote");
    ROWS("a\nx\0y\n", "found a 0 byte");
#undef ROWS
    char wide[5000];
    memset(wide, ',', sizeof wide);
    rows_are(wide, sizeof wide, OP_ERR_FORMAT, "line 1: found more than 4096 fields");
}

static op_status read_rows(void *ctx, op_error *e)
{
    op_buf b;
    op_buf_init(&b, 1000);
    op_status s = op_json_lines(ctx, note_row, &b, e);
    op_buf_release(&b);
    return s;
}

static op_status count(void *ctx, json_t *object, int line, op_error *e)
{
    (void)e;
    assert_int_equal(json_integer_value(json_object_get(object, "id")), line - 1);
    ++*(int *)ctx;
    return OP_OK;
}

static op_status hash_is_known(void *ctx, json_t *object, int line, op_error *e)
{
    (void)object, (void)line, (void)e;
    assert_int_equal(strlen(ctx), 64);
    return OP_OK;
}

static void the_hash_of_a_file_of_lines_is_that_of_its_bytes_and_known_to_the_first(void **state)
{
    (void)state;
    op_error e;
    char hash[65] = "";
    assert_int_equal(op_json_lines_hashed(put_file("h.jsonl", "{}\n", 3), hash, hash_is_known, hash, &e), OP_OK);
    assert_string_equal(hash, "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356");
}

static void gzipped_lines_are_read_across_members(void **state)
{
    (void)state;
    size_t size;
    int n = 0;
    op_error e;
    assert_int_equal(op_json_lines(put_gzip("a.jsonl.gz", &size), count, &n, &e), OP_OK);
    assert_int_equal(n, 4000);
}

static void the_crc_of_the_check_string_is_the_published_one_in_parts_too(void **state)
{
    (void)state;
    assert_int_equal(op_crc32(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(op_crc32(op_crc32(0, "1234", 4), "56789", 5), 0xcbf43926);
}

static void a_gzip_file_cut_short_or_damaged_is_an_error(void **state)
{
    (void)state;
    size_t size;
    int n = 0;
    op_error e;
    op_buf b;
    op_buf_init(&b, 1 << 20);
    assert_int_equal(op_file_read(put_gzip("b.jsonl.gz", &size), &b, NULL), OP_OK);
    assert_int_equal(op_json_lines(put_file("cut.gz", b.data, size - 5), count, &n, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "it ends too early");
    b.data[size / 2] ^= 0x55;
    assert_int_equal(op_json_lines(put_file("bad.gz", b.data, size), count, &n, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "broken gzip data");
    assert_int_equal(n, 0);
    op_buf_release(&b);
}

static void an_appended_line_is_compact_with_nine_digits_and_keeps_the_order_of_its_keys(void **state)
{
    (void)state;
    json_t *v = parse("{\"z\":0.1,\"a\":[1,-2.5e-10],\"t\":\"\\u00e9\\n\"}");
    op_buf b;
    op_buf_init(&b, 1000);
    assert_int_equal(op_json_append(&b, v), OP_OK);
    assert_string_equal(b.data, "{\"z\":0.1,\"a\":[1,-2.5e-10],\"t\":\"\xc3\xa9\\n\"}\n");
    op_buf_release(&b);
    op_buf_init(&b, 10);
    assert_int_equal(op_buf_puts(&b, "ab\n"), OP_OK);
    assert_int_equal(op_json_append(&b, v), OP_ERR_NOMEM);
    assert_string_equal(b.data, "ab\n");
    op_buf_release(&b);
    json_decref(v);
}

static op_status parse_twice(void *ctx, op_error *e)
{
    json_t *v;
    op_buf b;
    op_buf_init(&b, 1000);
    op_status s = op_json_parse(&v, ctx, strlen(ctx), "t", e);
    if (!s)
        s = op_json_append(&b, v);
    op_buf_release(&b);
    json_decref(v);
    return s;
}

static op_status read_gzip(void *ctx, op_error *e)
{
    int n = 0;
    return op_json_lines(ctx, count, &n, e);
}

static void every_failing_allocation_is_reported(void **state)
{
    (void)state;
    char text[] = "{\"a\":[1,2.5,\"x\\n\",{\"b\\t\":null}],\"long\":12345678901234567890123}";
    assert_true(fail_every_allocation(parse_twice, text) > 10);
    char path[256];
    strcpy(path, in_dir("few.gz"));
    gzFile z = gzopen(path, "wb");
    for (int k = 0; k < 5; k++)
        gzprintf(z, "{\"id\":%d}\n", k);
    gzclose(z);
    assert_true(fail_every_allocation(read_gzip, path) > 10);
    strcpy(path, put_file("few.csv", "a,b\n1,\"two\"\n", 12));
    assert_true(fail_every_allocation(read_rows, path) > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(syntax_errors_and_duplicate_keys_are_refused_with_their_offset),
        cmocka_unit_test(numbers_follow_the_grammar),
        cmocka_unit_test(escapes_become_their_characters_and_broken_ones_are_refused),
        cmocka_unit_test(nesting_beyond_the_limit_is_refused_and_brackets_in_strings_do_not_count),
        cmocka_unit_test(an_integer_beyond_64_bits_becomes_a_real),
        cmocka_unit_test(getters_say_what_they_found_and_what_they_expected),
        cmocka_unit_test(a_value_written_is_read_back_equal),
        cmocka_unit_test(lines_and_arrays_give_their_objects_in_order),
        cmocka_unit_test(a_broken_line_is_an_error_with_its_number),
        cmocka_unit_test(a_status_from_the_callback_ends_the_walk),
        cmocka_unit_test(rows_of_a_csv_are_objects_under_the_names_of_the_first),
        cmocka_unit_test(the_hash_of_a_file_of_lines_is_that_of_its_bytes_and_known_to_the_first),
        cmocka_unit_test(gzipped_lines_are_read_across_members),
        cmocka_unit_test(the_crc_of_the_check_string_is_the_published_one_in_parts_too),
        cmocka_unit_test(a_gzip_file_cut_short_or_damaged_is_an_error),
        cmocka_unit_test(an_appended_line_is_compact_with_nine_digits_and_keeps_the_order_of_its_keys),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
