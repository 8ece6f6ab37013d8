#include "tools.h"

#include <sys/stat.h>

static void a_file_put_is_read_and_mapped_as_it_was(void **state)
{
    (void)state;
    const char *path = in_dir("a");
    assert_int_equal(op_file_put(path, "x\0y", 3, NULL), OP_OK);
    op_buf b;
    op_buf_init(&b, 3);
    op_map m;
    assert_int_equal(op_file_read(path, &b, NULL), OP_OK);
    assert_int_equal(b.len, 3);
    assert_memory_equal(b.data, "x\0y", 3);
    assert_int_equal(op_map_open(&m, path, NULL), OP_OK);
    assert_int_equal(m.size, 3);
    assert_memory_equal(m.data, "x\0y", 3);
    op_map_close(&m);
    op_buf_release(&b);
}

static void an_empty_file_reads_as_an_empty_string(void **state)
{
    (void)state;
    const char *path = put_file("empty", "", 0);
    op_buf b;
    op_buf_init(&b, 0);
    op_map m;
    assert_int_equal(op_file_read(path, &b, NULL), OP_OK);
    assert_string_equal(b.data, "");
    assert_int_equal(op_map_open(&m, path, NULL), OP_OK);
    assert_non_null(m.data);
    assert_int_equal(m.size, 0);
    op_map_close(&m);
    op_buf_release(&b);
}

static void a_file_larger_than_the_maximum_is_refused(void **state)
{
    (void)state;
    op_error e;
    op_buf b;
    op_buf_init(&b, 3);
    assert_int_equal(op_file_read(put_file("four", "1234", 4), &b, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "found 4 bytes, expected at most 3");
    op_buf_release(&b);
}

static void a_missing_file_and_a_directory_are_named_in_the_error(void **state)
{
    (void)state;
    op_error e;
    op_map m;
    assert_int_equal(op_map_open(&m, in_dir("nothing"), &e), OP_ERR_IO);
    assert_message_has(&e, in_dir("nothing"));
    assert_message_has(&e, "No such file");
    assert_int_equal(op_map_open(&m, test_dir, &e), OP_ERR_IO);
    assert_message_has(&e, "found a directory");
}

static void an_abandoned_file_leaves_the_old_one_and_nothing_else(void **state)
{
    (void)state;
    const char *path = put_file("kept", "old", 3);
    int before = count_files();
    op_file f;
    assert_int_equal(op_file_create(&f, path, NULL), OP_OK);
    assert_int_equal(op_file_write(&f, "new and longer", 14, NULL), OP_OK);
    assert_int_equal(count_files(), before + 1);
    op_file_abort(&f);
    op_file_abort(&f);
    assert_int_equal(count_files(), before);
    op_map m;
    assert_int_equal(op_map_open(&m, path, NULL), OP_OK);
    assert_memory_equal(m.data, "old", 3);
    op_map_close(&m);
}

static op_status put_a_megabyte(void *ctx, op_error *e)
{
    static char bytes[1 << 20];
    return op_file_put(ctx, bytes, sizeof bytes, e);
}

static void a_full_disk_leaves_no_partial_file(void **state)
{
    (void)state;
    int before = count_files();
    op_error e;
    char *path = strdup(in_dir("big"));
    assert_int_equal(run_on_a_full_disk(put_a_megabyte, path, 1 << 16, &e), OP_ERR_IO);
    assert_message_has(&e, "too large");
    assert_int_equal(count_files(), before);
    free(path);
}

static void a_file_in_a_missing_directory_cannot_be_made(void **state)
{
    (void)state;
    op_error e;
    assert_int_equal(op_file_put(in_dir("no/such"), "", 0, &e), OP_ERR_IO);
    assert_message_has(&e, "no/such: cannot create");
}

static void directories_are_made_with_their_parents_and_removed_with_their_contents(void **state)
{
    (void)state;
    op_error e;
    assert_int_equal(op_dir_make(in_dir("d/e//f/"), &e), OP_OK);
    assert_int_equal(op_dir_make(in_dir("d/e/f"), &e), OP_OK);
    assert_true(op_path_is_dir(in_dir("d/e/f")));
    put_file("d/e/f/x", "1", 1);
    assert_int_equal(symlink("/", in_dir("d/link")), 0);
    assert_int_equal(op_dir_make(in_dir("d/e/f/x/y"), &e), OP_ERR_IO);
    assert_int_equal(op_path_remove(in_dir("d"), &e), OP_OK);
    assert_false(op_path_exists(in_dir("d")));
    assert_int_equal(op_path_remove(in_dir("d"), &e), OP_OK);
}

static op_status all_of_it(void *ctx, op_error *e)
{
    (void)ctx;
    char path[256];
    snprintf(path, sizeof path, "%s/some", test_dir);
    op_buf b;
    op_buf_init(&b, 100);
    op_status s = op_dir_make(test_dir, e);
    if (!s)
        s = op_file_put(path, "abc", 3, e);
    if (!s)
        s = op_file_read(path, &b, e);
    op_buf_release(&b);
    return s;
}

static void a_path_is_the_same_under_any_of_its_names(void **state)
{
    (void)state;
    char file[256], other[256], link[256], around[256];
    snprintf(file, sizeof file, "%s", put_file("one", "1", 1));
    snprintf(other, sizeof other, "%s", put_file("two", "1", 1));
    snprintf(link, sizeof link, "%s", in_dir("link"));
    snprintf(around, sizeof around, "%s", in_dir("./one"));
    assert_int_equal(symlink(file, link), 0);
    assert_true(op_path_same(file, file) && op_path_same(file, link) && op_path_same(around, link));
    assert_false(op_path_same(file, other) || op_path_same(file, in_dir("nowhere")) || op_path_same(in_dir("nowhere"), in_dir("nowhere")));
}

static void every_failing_allocation_is_reported(void **state)
{
    (void)state;
    /* The parent's name for the directory's sync is the one allocation whose failure does no harm. */
    assert_true(fail_every_allocation(all_of_it, NULL) >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_put_is_read_and_mapped_as_it_was),
        cmocka_unit_test(an_empty_file_reads_as_an_empty_string),
        cmocka_unit_test(a_file_larger_than_the_maximum_is_refused),
        cmocka_unit_test(a_missing_file_and_a_directory_are_named_in_the_error),
        cmocka_unit_test(an_abandoned_file_leaves_the_old_one_and_nothing_else),
        cmocka_unit_test(a_full_disk_leaves_no_partial_file),
        cmocka_unit_test(a_file_in_a_missing_directory_cannot_be_made),
        cmocka_unit_test(directories_are_made_with_their_parents_and_removed_with_their_contents),
        cmocka_unit_test(a_path_is_the_same_under_any_of_its_names),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
