#include "tools.h"

#include <operant/tensors.h>

#include "base/num.h"
#include "io/json.h"
#include "io/safetensors.h"

/* A file of the given header and `data` bytes of 1, 2, 3, ...; `length` overrides the header's length. */
static const char *put(const char *header, uint64_t length, size_t data)
{
    static unsigned char bytes[1 << 16];
    size_t n = strlen(header);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < data; i++)
        bytes[8 + n + i] = (unsigned char)(i + 1);
    return put_file("x.safetensors", bytes, 8 + n + data);
}

static void refuse(const char *path, const char *part)
{
    op_tensors *t = (op_tensors *)1;
    op_error e;
    op_status s = op_tensors_open(&t, path, &e);
    assert_true(s == OP_ERR_FORMAT || s == OP_ERR_UNSUPPORTED || s == OP_ERR_MISMATCH);
    assert_null(t);
    assert_message_has(&e, "safetensors");
    assert_message_has(&e, part);
}

#define REFUSED(name, header, data, part)                       \
    static void name(void **state)                              \
    {                                                           \
        (void)state;                                            \
        refuse(put(header, strlen(header), data), part);        \
    }
#define F32(shape, begin, end) "{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

REFUSED(a_header_that_does_not_begin_with_a_brace_is_refused, " {}", 0, "offset 8: the header does not begin with '{'")
REFUSED(an_empty_header_is_refused, "", 8, "offset 8: the header does not begin")
REFUSED(a_header_that_is_no_json_is_refused, "{\"a\":}", 0, "header: offset 5: expected a value")
REFUSED(a_hole_between_tensors_is_refused, "{\"a\":" F32("[1]", 0, 4) ",\"b\":" F32("[1]", 8, 12) "}", 12,
        "a hole before tensor \"b\"")
REFUSED(a_hole_before_the_first_tensor_is_refused, "{\"a\":" F32("[1]", 4, 8) "}", 8, "a hole before tensor \"a\"")
REFUSED(a_hole_after_the_last_tensor_is_refused, "{\"a\":" F32("[1]", 0, 4) "}", 5, "a hole of 1 bytes after the last tensor")
REFUSED(an_overlap_is_refused, "{\"a\":" F32("[2]", 0, 8) ",\"b\":" F32("[1]", 4, 8) "}", 8, "an overlap before tensor \"b\"")
REFUSED(a_duplicate_name_is_refused, "{\"a\":" F32("[1]", 0, 4) ",\"a\":" F32("[1]", 4, 8) "}", 8, "twice")
REFUSED(data_offsets_out_of_range_are_refused, "{\"a\":" F32("[2]", 0, 8) "}", 4, "found 0 to 8, out of range")
REFUSED(data_offsets_that_run_backwards_are_refused, "{\"a\":" F32("[1]", 4, 0) "}", 4, "found 4 to 0, out of range")
REFUSED(negative_data_offsets_are_refused, "{\"a\":" F32("[1]", -4, 0) "}", 4, "found -4 to 0, out of range")
REFUSED(huge_data_offsets_are_refused, "{\"a\":" F32("[1]", 0, 99999999999999999999) "}", 4, "expected two integers")
REFUSED(data_offsets_of_three_numbers_are_refused, "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4,4]}}", 4,
        "expected two integers")
REFUSED(a_byte_count_that_contradicts_the_shape_is_refused, "{\"a\":" F32("[3]", 0, 8) "}", 8, "found 8 bytes, expected 12")
REFUSED(an_unknown_dtype_is_refused, "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
        "unknown dtype \"F8_E4M3\"")
REFUSED(a_quantised_dtype_is_refused, "{\"a\":{\"dtype\":\"Q4_0\",\"shape\":[32],\"data_offsets\":[0,18]}}", 18,
        "unknown dtype \"Q4_0\"")
REFUSED(a_fifth_dimension_is_refused, "{\"a\":" F32("[1,1,1,1,1]", 0, 4) "}", 4, "found 5 dimensions, expected at most 4")
REFUSED(a_negative_size_is_refused, "{\"a\":" F32("[-1]", 0, 4) "}", 4, "found a negative number")
REFUSED(a_fractional_size_is_refused, "{\"a\":" F32("[1.0]", 0, 4) "}", 4, "found a real number")
REFUSED(an_overflow_of_the_shape_is_refused, "{\"a\":" F32("[4294967296,4294967296]", 0, 0) "}", 0, "overflows")
REFUSED(an_overflow_of_the_bytes_is_refused, "{\"a\":" F32("[4611686018427387904]", 0, 0) "}", 0, "overflows")
REFUSED(metadata_that_are_no_strings_are_refused, "{\"__metadata__\":{\"a\":1}}", 0, "\"a\": found an integer, expected a string")
REFUSED(metadata_that_are_no_object_are_refused, "{\"__metadata__\":[]}", 0, "found an array, expected an object")
REFUSED(an_unknown_key_of_a_tensor_is_refused,
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"x\":0}}", 4, "unknown key \"x\"")
REFUSED(a_missing_dtype_is_refused, "{\"a\":{\"shape\":[],\"data_offsets\":[0,4]}}", 4, "\"dtype\": found nothing, expected a string")
REFUSED(a_missing_shape_is_refused, "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "\"shape\": found nothing")
REFUSED(missing_data_offsets_are_refused, "{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "\"data_offsets\": found nothing")
REFUSED(a_tensor_that_is_no_object_is_refused, "{\"a\":[]}", 0, "found an array, expected an object")

static void a_header_longer_than_100_million_bytes_is_refused(void **state)
{
    (void)state;
    refuse(put("{}", 100000001, 0), "offset 0: found a header of 100000001 bytes, expected at most 100000000");
    refuse(put("{}", UINT64_MAX, 0), "expected at most 100000000");
}

static void a_header_longer_than_its_file_is_refused(void **state)
{
    (void)state;
    refuse(put("{}", 3, 0), "offset 0: found a header of 3 bytes in a file of 10");
}

static void a_file_shorter_than_a_length_is_refused(void **state)
{
    (void)state;
    refuse(put_file("x.safetensors", "1234567", 7), "found 7 bytes, expected at least 8");
    refuse(put_file("x.safetensors", "", 0), "found 0 bytes");
}

static void scalars_and_empty_tensors_are_read(void **state)
{
    (void)state;
    const char *header = "{\"s\":" F32("[]", 0, 4) ",\"none\":" F32("[0,7]", 4, 4)
                         ",\"i\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[4,6]}}  ";
    op_tensors *t;
    op_error e;
    assert_int_equal(op_tensors_open(&t, put(header, strlen(header), 6), &e), OP_OK);
    assert_int_equal(op_tensors_count(t), 3);
    const op_tensor *s = op_tensors_find(t, "s"), *none = op_tensors_find(t, "none");
    assert_int_equal(s->rank, 0);
    assert_int_equal(s->count, 1);
    assert_int_equal(none->count, 0);
    assert_int_equal(op_tensor_read_f32(none, 0, 0, NULL, &e), OP_OK);
    assert_int_equal(op_tensors_find(t, "i")->bytes, 2);
    assert_null(op_tensors_find(t, "x"));
    assert_null(op_tensors_meta_string(t, "format", NULL));
    assert_null(op_tensors_at(t, 3));
    op_tensors_close(t);
}

/* Three tensors: one of bytes, two from floats i / 4 in 16 bits and in 32. */
static op_status quarters(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    (void)e;
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(first + i) / 4;
    *(int *)ctx += 1;
    return OP_OK;
}

enum { LONG = 40000 };
static int calls;
static const uint8_t truths[3] = {1, 0, 1};
static const op_tensor_out three[] = {
    {.name = "truths", .dtype = OP_BOOL, .rank = 1, .shape = {3}, .data = truths},
    {.name = "short \"é\"", .dtype = OP_BF16, .rank = 2, .shape = {3, 5}, .source = quarters, .ctx = &calls},
    {.name = "long", .dtype = OP_F32, .rank = 3, .shape = {2, 1, LONG / 2}, .source = quarters, .ctx = &calls},
};
static const op_safetensors_meta meta[] = {{"lesson", "why"}};

static void check_three(const op_tensors *t)
{
    static float out[LONG];
    assert_int_equal(op_tensors_get_format(t), OP_SAFETENSORS);
    assert_int_equal(op_tensors_count(t), 3);
    for (int i = 1; i < 3; i++) {
        const op_tensor *x = op_tensors_find(t, three[i].name);
        assert_non_null(x);
        assert_int_equal(x->dtype, three[i].dtype);
        assert_int_equal(x->rank, three[i].rank);
        assert_memory_equal(x->shape, three[i].shape, (size_t)x->rank * sizeof *x->shape);
        assert_int_equal((uintptr_t)x->data % op_dtype_block_bytes(x->dtype), 0);
        assert_int_equal(op_tensor_read_f32(x, 0, x->count, out, NULL), OP_OK);
        for (int64_t k = 0; k < x->count; k++)
            assert_true(out[k] == (float)k / 4);
    }
    assert_memory_equal(op_tensors_find(t, "truths")->data, truths, 3);
    assert_string_equal(op_tensors_meta_string(t, "lesson", NULL), "why");
    assert_string_equal(op_tensors_meta_string(t, "format", NULL), "pt");
}

static void what_is_written_is_read_back_with_its_header_padded_to_8(void **state)
{
    (void)state;
    op_tensors *t;
    op_error e;
    char path[256];
    strcpy(path, in_dir("three.safetensors"));
    calls = 0;
    assert_int_equal(op_safetensors_write(path, three, 3, meta, 1, &e), OP_OK);
    assert_true(calls > 2);
    assert_int_equal(op_tensors_open(&t, path, &e), OP_OK);
    check_three(t);
    json_t *m = op_tensors_meta_json(t, 10);
    assert_int_equal(json_object_size(m), 2);
    json_decref(m);
    op_tensors_close(t);
    op_map map;
    uint64_t length;
    assert_int_equal(op_map_open(&map, path, &e), OP_OK);
    memcpy(&length, map.data, 8);
    assert_int_equal(length % 8, 0);
    assert_int_equal(map.size, 8 + length + 3 + 30 + LONG * 4);
    op_map_close(&map);
}

static void shards_are_written_with_an_index_and_read_as_one(void **state)
{
    (void)state;
    char dir[256], index[256];
    strcpy(dir, in_dir("shards"));
    strcpy(index, in_dir("shards/model.safetensors.index.json"));
    op_tensors *t;
    op_error e;
    assert_int_equal(op_dir_make(dir, &e), OP_OK);
    assert_int_equal(op_safetensors_write_dir(dir, three, 3, meta, 1, 40, &e), OP_OK);
    assert_true(op_path_exists(in_dir("shards/model-00001-of-00002.safetensors")));
    assert_true(op_path_exists(in_dir("shards/model-00002-of-00002.safetensors")));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(op_tensors_open(&t, i ? index : dir, &e), OP_OK);
        check_three(t);
        op_tensors_close(t);
    }
    json_t *v, *m;
    int64_t total;
    assert_int_equal(op_json_read(&v, index, &e), OP_OK);
    assert_int_equal(op_json_get_object(v, "metadata", true, &m, "index", &e), OP_OK);
    assert_int_equal(op_json_get_int(m, "total_size", true, 0, INT64_MAX, &total, "index", &e), OP_OK);
    assert_int_equal(total, 3 + 30 + LONG * 4);
    json_decref(v);
    assert_int_equal(op_safetensors_write_dir(dir, three, 3, meta, 1, 1 << 30, &e), OP_OK);
    assert_false(op_path_exists(index));
    assert_int_equal(op_tensors_open(&t, dir, &e), OP_OK);
    check_three(t);
    op_tensors_close(t);
}

static void refuse_index(const char *text, const char *part)
{
    refuse(put_file("m.safetensors.index.json", text, strlen(text)), part);
}

static void a_broken_index_is_refused(void **state)
{
    (void)state;
    const char *header = "{\"a\":" F32("[1]", 0, 4) "}";
    put(header, strlen(header), 4);
    refuse_index("[]", "found an array, expected an object");
    refuse_index("{}", "\"weight_map\": found nothing");
    refuse_index("{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "expected the name of a file beside the index");
    refuse_index("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "expected the name of a file beside the index");
    refuse_index("{\"weight_map\":{\"a\":3}}", "expected the name of a file beside the index");
    refuse_index("{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}}", "tensor \"b\" is not in \"x.safetensors\"");
    op_tensors *t;
    op_error e;
    const char *gone = "{\"weight_map\":{\"a\":\"gone.safetensors\"}}";
    assert_int_equal(op_tensors_open(&t, put_file("m.safetensors.index.json", gone, strlen(gone)), &e), OP_ERR_IO);
    assert_message_has(&e, "gone.safetensors");
}

static void a_directory_without_a_model_is_an_error_that_says_what_was_expected(void **state)
{
    (void)state;
    op_tensors *t;
    op_error e;
    assert_int_equal(op_dir_make(in_dir("bare"), &e), OP_OK);
    assert_int_equal(op_tensors_open(&t, in_dir("bare"), &e), OP_ERR_IO);
    assert_message_has(&e, "expected model.safetensors.index.json, model.safetensors");
}

static void what_cannot_be_written_is_refused_and_leaves_no_file(void **state)
{
    (void)state;
    op_error e;
    int before = count_files();
    op_tensor_out bad[2] = {three[0], three[0]};
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 2, NULL, 0, &e), OP_ERR_ARG);
    assert_message_has(&e, "tensor \"truths\" is there twice");
    bad[0].name = "__metadata__";
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_ARG);
    bad[0].name = "\xff";
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_ARG);
    bad[0] = three[0];
    bad[0].data = NULL;
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_ARG);
    assert_message_has(&e, "there are no data");
    bad[0].source = quarters;
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_UNSUPPORTED);
    bad[0] = three[0];
    bad[0].dtype = OP_Q8_0;
    bad[0].shape[0] = 32;
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_UNSUPPORTED);
    assert_message_has(&e, "safetensors has no type Q8_0");
    bad[0].shape[0] = 31;
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_ARG);
    bad[0] = three[0];
    bad[0].rank = 5;
    assert_int_equal(op_safetensors_write(in_dir("b"), bad, 1, NULL, 0, &e), OP_ERR_ARG);
    assert_int_equal(count_files(), before);
}

static op_status no_numbers(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    (void)ctx, (void)first, (void)n, (void)out;
    return op_error_set(e, OP_ERR_INTERRUPTED, "stopped");
}

static void a_source_that_fails_ends_the_writing_and_leaves_no_file(void **state)
{
    (void)state;
    op_error e;
    int before = count_files();
    op_tensor_out bad = three[2];
    bad.source = no_numbers;
    assert_int_equal(op_safetensors_write(in_dir("b"), &bad, 1, NULL, 0, &e), OP_ERR_INTERRUPTED);
    assert_int_equal(count_files(), before);
}

static op_status write_three(void *ctx, op_error *e)
{
    return op_safetensors_write(ctx, three, 3, meta, 1, e);
}

static void a_full_disk_leaves_no_partial_file(void **state)
{
    (void)state;
    op_error e;
    char path[256];
    strcpy(path, in_dir("full.safetensors"));
    int before = count_files();
    for (size_t room = 0; room < LONG * 4; room += 30000) {
        assert_int_equal(run_on_a_full_disk(write_three, path, room, &e), OP_ERR_IO);
        assert_message_has(&e, path);
        assert_int_equal(count_files(), before);
    }
}

static op_status write_dir(void *ctx, op_error *e)
{
    return op_safetensors_write_dir(ctx, three, 3, meta, 1, 40, e);
}

static op_status open_it(void *ctx, op_error *e)
{
    op_tensors *t;
    op_status s = op_tensors_open(&t, ctx, e);
    json_t *m = s ? NULL : op_tensors_meta_json(t, 3);
    if (!s && !m)
        s = OP_ERR_NOMEM;
    json_decref(m);
    op_tensors_close(t);
    return s;
}

static void every_failing_allocation_is_reported(void **state)
{
    (void)state;
    char dir[256];
    strcpy(dir, in_dir("oom"));
    assert_int_equal(op_dir_make(dir, NULL), OP_OK);
    assert_true(fail_every_allocation(write_dir, dir) > 50);
    assert_true(fail_every_allocation(open_it, dir) > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_that_does_not_begin_with_a_brace_is_refused),
        cmocka_unit_test(an_empty_header_is_refused),
        cmocka_unit_test(a_header_that_is_no_json_is_refused),
        cmocka_unit_test(a_hole_between_tensors_is_refused),
        cmocka_unit_test(a_hole_before_the_first_tensor_is_refused),
        cmocka_unit_test(a_hole_after_the_last_tensor_is_refused),
        cmocka_unit_test(an_overlap_is_refused),
        cmocka_unit_test(a_duplicate_name_is_refused),
        cmocka_unit_test(data_offsets_out_of_range_are_refused),
        cmocka_unit_test(data_offsets_that_run_backwards_are_refused),
        cmocka_unit_test(negative_data_offsets_are_refused),
        cmocka_unit_test(huge_data_offsets_are_refused),
        cmocka_unit_test(data_offsets_of_three_numbers_are_refused),
        cmocka_unit_test(a_byte_count_that_contradicts_the_shape_is_refused),
        cmocka_unit_test(an_unknown_dtype_is_refused),
        cmocka_unit_test(a_quantised_dtype_is_refused),
        cmocka_unit_test(a_fifth_dimension_is_refused),
        cmocka_unit_test(a_negative_size_is_refused),
        cmocka_unit_test(a_fractional_size_is_refused),
        cmocka_unit_test(an_overflow_of_the_shape_is_refused),
        cmocka_unit_test(an_overflow_of_the_bytes_is_refused),
        cmocka_unit_test(metadata_that_are_no_strings_are_refused),
        cmocka_unit_test(metadata_that_are_no_object_are_refused),
        cmocka_unit_test(an_unknown_key_of_a_tensor_is_refused),
        cmocka_unit_test(a_missing_dtype_is_refused),
        cmocka_unit_test(a_missing_shape_is_refused),
        cmocka_unit_test(missing_data_offsets_are_refused),
        cmocka_unit_test(a_tensor_that_is_no_object_is_refused),
        cmocka_unit_test(a_header_longer_than_100_million_bytes_is_refused),
        cmocka_unit_test(a_header_longer_than_its_file_is_refused),
        cmocka_unit_test(a_file_shorter_than_a_length_is_refused),
        cmocka_unit_test(scalars_and_empty_tensors_are_read),
        cmocka_unit_test(what_is_written_is_read_back_with_its_header_padded_to_8),
        cmocka_unit_test(shards_are_written_with_an_index_and_read_as_one),
        cmocka_unit_test(a_broken_index_is_refused),
        cmocka_unit_test(a_directory_without_a_model_is_an_error_that_says_what_was_expected),
        cmocka_unit_test(what_cannot_be_written_is_refused_and_leaves_no_file),
        cmocka_unit_test(a_source_that_fails_ends_the_writing_and_leaves_no_file),
        cmocka_unit_test(a_full_disk_leaves_no_partial_file),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
