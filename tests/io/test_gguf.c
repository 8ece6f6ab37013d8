#include "tools.h"

#include <math.h>

#include <operant/tensors.h>

#include "io/gguf.h"

/* A GGUF in the making, byte by byte. */
static unsigned char bytes[1 << 16];
static size_t n_bytes;

static void raw(const void *p, size_t n)
{
    memcpy(bytes + n_bytes, p, n);
    n_bytes += n;
}

static void u32(uint32_t v)
{
    raw(&v, 4);
}

static void u64(uint64_t v)
{
    raw(&v, 8);
}

static void str(const char *s)
{
    u64(strlen(s));
    raw(s, strlen(s));
}

static void head(uint32_t version, uint64_t tensors, uint64_t pairs)
{
    n_bytes = 0;
    raw("GGUF", 4);
    u32(version);
    u64(tensors);
    u64(pairs);
}

enum { U8, I8, U16, I16, U32, I32, FLOAT, BOOL, STRING, ARRAY, U64, I64, DOUBLE }; /* types of values */
enum { T_F32 = 0, T_Q4_0 = 2, T_Q2_K = 10 };                                    /* types of tensors */

static void tensor(const char *name, uint32_t rank, uint64_t size, uint32_t type, uint64_t offset)
{
    str(name);
    u32(rank);
    for (uint32_t i = 0; i < rank; i++)
        u64(i ? 1 : size);
    u32(type);
    u64(offset);
}

static void data(size_t n)
{
    while (n_bytes % 32)
        bytes[n_bytes++] = 0;
    memset(bytes + n_bytes, 0, n);
    n_bytes += n;
}

static op_status open_bytes(op_tensors **t, op_error *e)
{
    return op_tensors_open(t, put_file("x.gguf", bytes, n_bytes), e);
}

static void refused(op_status expected, const char *part)
{
    op_tensors *t = (op_tensors *)1;
    op_error e = {0};
    op_status s = open_bytes(&t, &e);
    if (s != expected)
        fail_msg("found %s, expected %s: %s", op_status_string(s), op_status_string(expected), e.message);
    assert_null(t);
    assert_message_has(&e, "x.gguf: ");
    assert_message_has(&e, part);
}

static void an_empty_gguf_of_version_2_or_3_opens(void **state)
{
    (void)state;
    for (uint32_t version = 2; version < 4; version++) {
        op_tensors *t;
        op_error e;
        head(version, 0, 0);
        assert_int_equal(open_bytes(&t, &e), OP_OK);
        assert_int_equal(op_tensors_get_format(t), OP_GGUF);
        assert_int_equal(op_tensors_count(t), 0);
        assert_null(op_tensors_find(t, "x"));
        op_tensors_close(t);
    }
}

static void other_magic_and_other_versions_are_refused(void **state)
{
    (void)state;
    head(3, 0, 0);
    bytes[0] = 'g';
    refused(OP_ERR_FORMAT, "offset 0: expected the magic bytes");
    head(1, 0, 0);
    refused(OP_ERR_UNSUPPORTED, "offset 4: found version 1");
    head(4, 0, 0);
    refused(OP_ERR_UNSUPPORTED, "offset 4: found version 4");
}

static void counts_beyond_what_the_file_could_hold_are_refused(void **state)
{
    (void)state;
    head(3, UINT64_MAX, 0);
    refused(OP_ERR_FORMAT, "offset 8: the number of tensors");
    head(3, 0, UINT64_MAX);
    refused(OP_ERR_FORMAT, "offset 16: the number of keys");
    head(3, 0, 1);
    refused(OP_ERR_FORMAT, "the number of keys: found 1, expected at most 0");
}

/* One of everything. */
static void make_whole(void)
{
    head(3, 2, 5);
    str("general.alignment"), u32(U32), u32(32);
    str("s"), u32(STRING), str("text");
    str("ss"), u32(ARRAY), u32(STRING), u64(2), str("a"), str("bc");
    str("is"), u32(ARRAY), u32(I32), u64(3), u32(1), u32(2), u32(3);
    str("f"), u32(FLOAT), raw(&(float){0.5f}, 4);
    tensor("a", 2, 2, T_F32, 0);
    tensor("b", 1, 32, T_Q4_0, 32);
    data(64);
}

static void a_file_cut_at_any_byte_is_refused(void **state)
{
    (void)state;
    op_tensors *t;
    make_whole();
    assert_int_equal(open_bytes(&t, NULL), OP_OK);
    op_tensors_close(t);
    size_t whole = n_bytes;
    for (n_bytes = 0; n_bytes < whole - 14; n_bytes++) /* the last 14 bytes are padding */
        refused(OP_ERR_FORMAT, "");
    n_bytes = whole - 14;
    assert_int_equal(open_bytes(&t, NULL), OP_OK);
    op_tensors_close(t);
}

#define PAIR_REFUSED(name, status, part, ...)   \
    static void name(void **state)              \
    {                                           \
        (void)state;                            \
        head(3, 0, 1);                          \
        __VA_ARGS__;                            \
        data(64);                               \
        refused(status, part);                  \
    }

PAIR_REFUSED(an_empty_key_is_refused, OP_ERR_FORMAT, "offset 24: a key is empty", (str(""), u32(U32), u32(1)))
PAIR_REFUSED(a_key_of_2000_bytes_is_refused, OP_ERR_FORMAT, "offset 24: a key: found 2000, expected at most 1024",
             (u64(2000), n_bytes += 2000, u32(U32), u32(1)))
PAIR_REFUSED(a_key_that_is_not_printable_is_refused, OP_ERR_FORMAT, "offset 33: a key: found byte 10", (str("a\nb"), u32(U32), u32(1)))
PAIR_REFUSED(an_unknown_type_of_value_is_refused, OP_ERR_FORMAT, "a value's type: found 13", (str("k"), u32(13), u32(1)))
PAIR_REFUSED(an_array_of_arrays_is_refused, OP_ERR_UNSUPPORTED, "key \"k\": arrays of arrays", (str("k"), u32(ARRAY), u32(ARRAY), u64(0)))
PAIR_REFUSED(an_array_longer_than_its_file_is_refused, OP_ERR_FORMAT, "an array's length", (str("k"), u32(ARRAY), u32(U8), u64(UINT64_MAX)))
PAIR_REFUSED(an_array_of_strings_longer_than_its_file_is_refused, OP_ERR_FORMAT, "an array's length",
             (str("k"), u32(ARRAY), u32(STRING), u64(1 << 20)))
PAIR_REFUSED(a_string_longer_than_its_file_is_refused, OP_ERR_FORMAT, "the file ends inside a string", (str("k"), u32(STRING), u64(100000)))
PAIR_REFUSED(a_string_of_17_mib_is_refused, OP_ERR_FORMAT, "a string: found 17825792, expected at most 16777216",
             (str("k"), u32(STRING), u64(17 << 20)))
PAIR_REFUSED(an_alignment_that_is_no_power_of_two_is_refused, OP_ERR_FORMAT, "found 24, expected a power of two",
             (str("general.alignment"), u32(U32), u32(24)))
PAIR_REFUSED(an_alignment_of_0_is_refused, OP_ERR_FORMAT, "found 0, expected a power of two", (str("general.alignment"), u32(U32), u32(0)))
PAIR_REFUSED(a_huge_alignment_is_refused, OP_ERR_FORMAT, "expected a power of two up to", (str("general.alignment"), u32(U32), u32(1u << 31)))

static void a_key_that_is_there_twice_is_refused(void **state)
{
    (void)state;
    head(3, 0, 2);
    str("k"), u32(U8), raw("1", 1);
    str("k"), u32(U8), raw("1", 1);
    refused(OP_ERR_FORMAT, "offset 38: key \"k\" is there twice");
}

#define TENSOR_REFUSED(name, status, part, n, ...)  \
    static void name(void **state)                  \
    {                                               \
        (void)state;                                \
        head(3, n, 0);                              \
        __VA_ARGS__;                                \
        data(64);                                   \
        refused(status, part);                      \
    }
#define NAME_65 "0123456789012345678901234567890123456789012345678901234567890123x"

TENSOR_REFUSED(a_tensor_name_of_65_bytes_is_refused, OP_ERR_FORMAT, "a tensor's name: found 65, expected at most 64", 1,
               tensor(NAME_65, 1, 1, T_F32, 0))
TENSOR_REFUSED(a_tensor_that_is_there_twice_is_refused, OP_ERR_FORMAT, "tensor \"a\" is there twice", 2,
               (tensor("a", 1, 1, T_F32, 0), tensor("a", 1, 1, T_F32, 32)))
TENSOR_REFUSED(a_fifth_dimension_is_refused, OP_ERR_FORMAT, "offset 33: a tensor's rank: found 5, expected at most 4", 1,
               tensor("a", 5, 1, T_F32, 0))
TENSOR_REFUSED(an_element_type_that_is_not_supported_is_refused, OP_ERR_UNSUPPORTED,
               "offset 24: tensor \"a\": element type 10 is not supported", 1, tensor("a", 1, 256, T_Q2_K, 0))
TENSOR_REFUSED(an_overflow_of_the_shape_is_refused, OP_ERR_FORMAT, "its shape overflows", 1, tensor("a", 1, 1ull << 62, T_F32, 0))
TENSOR_REFUSED(a_negative_size_is_refused, OP_ERR_FORMAT, "its shape overflows", 1, tensor("a", 1, UINT64_MAX, T_F32, 0))
TENSOR_REFUSED(a_row_of_half_a_block_is_refused, OP_ERR_FORMAT, "no whole blocks of Q4_0", 1, tensor("a", 1, 48, T_Q4_0, 0))
TENSOR_REFUSED(an_offset_off_the_alignment_is_refused, OP_ERR_FORMAT, "found offset 4, expected a multiple of 32", 1,
               tensor("a", 1, 1, T_F32, 4))
TENSOR_REFUSED(an_offset_out_of_range_is_refused, OP_ERR_FORMAT, "tensor \"a\": 4 bytes from offset 64: out of range", 1,
               tensor("a", 1, 1, T_F32, 64))
TENSOR_REFUSED(a_huge_offset_is_refused, OP_ERR_FORMAT, "out of range", 1, tensor("a", 1, 1, T_F32, UINT64_MAX - 31))
TENSOR_REFUSED(a_tensor_larger_than_its_file_is_refused, OP_ERR_FORMAT, "out of range", 1, tensor("a", 1, 1 << 20, T_F32, 0))
TENSOR_REFUSED(tensors_that_overlap_are_refused, OP_ERR_FORMAT, "tensors \"a\" and \"b\" overlap", 2,
               (tensor("a", 1, 9, T_F32, 0), tensor("b", 1, 1, T_F32, 32)))

static void values_are_converted_where_they_fit_and_else_give_the_fallback(void **state)
{
    (void)state;
    op_tensors *t;
    op_error e;
    head(3, 0, 9);
    str("u64"), u32(U64), u64(UINT64_MAX);
    str("i8"), u32(I8), raw("\xff", 1);
    str("u16"), u32(U16), raw("\xff\xff", 2);
    str("bool"), u32(BOOL), raw("\1", 1);
    str("f32"), u32(FLOAT), raw(&(float){1.5f}, 4);
    str("f64"), u32(DOUBLE), raw(&(double){-2.5}, 8);
    str("inf"), u32(DOUBLE), raw(&(double){INFINITY}, 8);
    str("s"), u32(STRING), str("caf\xc3\xa9");
    str("broken"), u32(STRING), str("\xff\xfe");
    assert_int_equal(open_bytes(&t, &e), OP_OK);
    assert_int_equal(op_tensors_meta_int(t, "u64", -7), -7);
    assert_int_equal(op_tensors_meta_int(t, "i8", 0), -1);
    assert_int_equal(op_tensors_meta_int(t, "u16", 0), 65535);
    assert_int_equal(op_tensors_meta_int(t, "bool", 0), 1);
    assert_int_equal(op_tensors_meta_int(t, "f32", 9), 9);
    assert_int_equal(op_tensors_meta_int(t, "s", 9), 9);
    assert_int_equal(op_tensors_meta_int(t, "gone", 9), 9);
    assert_true(op_tensors_meta_float(t, "f32", 0) == 1.5);
    assert_true(op_tensors_meta_float(t, "f64", 0) == -2.5);
    assert_true(op_tensors_meta_float(t, "i8", 0) == -1);
    assert_true(op_tensors_meta_float(t, "s", 3) == 3);
    size_t n;
    assert_string_equal(op_tensors_meta_string(t, "s", &n), "caf\xc3\xa9");
    assert_int_equal(n, 5);
    assert_null(op_tensors_meta_string(t, "f32", &n));
    assert_int_equal(n, 0);
    assert_int_equal(op_tensors_meta_array(t, "s"), 0);
    json_t *m = op_tensors_meta_json(t, 4);
    char *s = json_dumps(m, JSON_COMPACT);
    assert_string_equal(s, "{\"u64\":1.8446744073709552e19,\"i8\":-1,\"u16\":65535,\"bool\":true,\"f32\":1.5,\"f64\":-2.5,"
                           "\"inf\":null,\"s\":\"caf\xc3\xa9\",\"broken\":{\"bytes\":2}}");
    op_free(s);
    json_decref(m);
    op_tensors_close(t);
}

static void dimensions_come_outermost_first_and_arrays_by_index(void **state)
{
    (void)state;
    op_tensors *t;
    op_error e;
    size_t n;
    make_whole();
    assert_int_equal(open_bytes(&t, &e), OP_OK);
    const op_tensor *a = op_tensors_find(t, "a");
    assert_int_equal(a->rank, 2);
    assert_int_equal(a->shape[0], 1);
    assert_int_equal(a->shape[1], 2);
    assert_int_equal(op_tensors_find(t, "b")->bytes, 18);
    assert_int_equal(op_tensors_meta_array(t, "ss"), 2);
    const char *s = op_tensors_meta_array_string(t, "ss", 1, &n);
    assert_int_equal(n, 2);
    assert_memory_equal(s, "bc", 2);
    assert_null(op_tensors_meta_array_string(t, "ss", 2, &n));
    assert_null(op_tensors_meta_array_string(t, "is", 0, &n));
    assert_int_equal(op_tensors_meta_array_int(t, "is", 2), 3);
    assert_int_equal(op_tensors_meta_array_int(t, "is", 3), 0);
    assert_int_equal(op_tensors_meta_array_int(t, "ss", 0), 0);
    assert_true(op_tensors_meta_array_float(t, "is", 1) == 2);
    json_t *m = op_tensors_meta_json(t, 2);
    assert_int_equal(json_array_size(json_object_get(m, "ss")), 2);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(m, "is"), "array")), 3);
    assert_string_equal(json_string_value(json_object_get(json_object_get(m, "is"), "type")), "i32");
    json_decref(m);
    op_tensors_close(t);
}

static void a_file_of_the_gguf_package_is_read(void **state)
{
    (void)state;
    char path[512];
    op_tensors *t;
    op_error e;
    size_t n;
    snprintf(path, sizeof path, "%s/quants.gguf", getenv("FIXTURES"));
    if (op_tensors_open(&t, path, &e))
        fail_msg("%s", e.message);
    assert_string_equal(op_tensors_meta_string(t, "test.string", NULL), "Gr\xc3\xbc\xc3\x9f"
                                                                        "e");
    assert_int_equal(op_tensors_meta_array(t, "test.strings"), 3);
    assert_memory_equal(op_tensors_meta_array_string(t, "test.strings", 0, &n), "a", 1);
    assert_int_equal(op_tensors_meta_array_int(t, "test.ints", 0), -1);
    assert_true(op_tensors_meta_array_float(t, "test.floats", 1) == -2.25);
    assert_int_equal(op_tensors_meta_int(t, "test.bool", 0), 1);
    assert_int_equal(op_tensors_meta_int(t, "test.u64", 0), 1ll << 40);
    assert_int_equal(op_tensors_meta_int(t, "test.i8", 0), -8);
    assert_true(op_tensors_meta_float(t, "test.f64", 0) == 0.1);
    op_tensors_close(t);
}

static op_status quarters(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    (void)ctx, (void)e;
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)((first + i) % 128) / 4;
    return OP_OK;
}

enum { ROW = 320, ROWS = 200 };

static op_status save_all(const char *path, const op_tensors *from, op_error *e)
{
    static const op_dtype dtypes[] = {OP_F32, OP_F16, OP_BF16, OP_Q8_0};
    static const char *const words[] = {"one", "", "thr\0e"};
    op_gguf_writer *w = op_gguf_writer_new();
    if (!w)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    op_gguf_put_string(w, "general.architecture", "llama", 5);
    op_gguf_put_u32(w, "u32", 4000000000u);
    op_gguf_put_i32(w, "i32", -5);
    op_gguf_put_u64(w, "u64", 1ull << 50);
    op_gguf_put_f32(w, "f32", 0.25f);
    op_gguf_put_bool(w, "bool", true);
    op_gguf_put_i32s(w, "i32s", (const int32_t[]){1, -2}, 2);
    op_gguf_put_f32s(w, "f32s", (const float[]){0.5f}, 1);
    op_gguf_put_strings(w, "strings", words, (const size_t[]){3, 0, 5}, 3);
    op_gguf_put_strings(w, "none", NULL, NULL, 0);
    if (from) {
        op_gguf_put_copy(w, from, "test.strings");
        op_gguf_put_copy(w, from, "test.ints");
        op_gguf_put_copy(w, from, "test.string");
        op_gguf_put_copy(w, from, "test.f64");
    }
    for (size_t i = 0; i < 4; i++)
        op_gguf_add_tensor(w, &(op_tensor_out){.name = op_dtype_name(dtypes[i]), .dtype = dtypes[i], .rank = 2, .shape = {ROWS, ROW},
                                               .source = quarters});
    op_gguf_add_tensor(w, &(op_tensor_out){.name = "odd", .dtype = OP_F32, .rank = 1, .shape = {1}, .data = "1234"});
    op_status s = op_gguf_save(w, path, e);
    op_gguf_writer_free(w);
    return s;
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    char path[512];
    op_tensors *from, *t;
    op_error e;
    size_t n;
    snprintf(path, sizeof path, "%s/quants.gguf", getenv("FIXTURES"));
    assert_int_equal(op_tensors_open(&from, path, &e), OP_OK);
    if (save_all(in_dir("all.gguf"), from, &e) || op_tensors_open(&t, in_dir("all.gguf"), &e))
        fail_msg("%s", e.message);
    op_tensors_close(from);
    assert_string_equal(op_tensors_meta_string(t, "general.architecture", NULL), "llama");
    assert_int_equal(op_tensors_meta_int(t, "u32", 0), 4000000000ll);
    assert_int_equal(op_tensors_meta_int(t, "i32", 0), -5);
    assert_int_equal(op_tensors_meta_int(t, "u64", 0), 1ll << 50);
    assert_true(op_tensors_meta_float(t, "f32", 0) == 0.25);
    assert_int_equal(op_tensors_meta_int(t, "bool", 0), 1);
    assert_int_equal(op_tensors_meta_array_int(t, "i32s", 1), -2);
    assert_true(op_tensors_meta_array_float(t, "f32s", 0) == 0.5);
    assert_memory_equal(op_tensors_meta_array_string(t, "strings", 2, &n), "thr\0e", 5);
    assert_int_equal(n, 5);
    assert_int_equal(op_tensors_meta_array(t, "none"), 0);
    assert_int_equal(op_tensors_meta_array(t, "test.strings"), 3);
    assert_memory_equal(op_tensors_meta_array_string(t, "test.strings", 2, &n), "d\xc3\xa9j\xc3\xa0 vu", 9);
    assert_int_equal(op_tensors_meta_array_int(t, "test.ints", 2), 3);
    assert_true(op_tensors_meta_float(t, "test.f64", 0) == 0.1);
    static float out[ROW * ROWS];
    for (size_t i = 0; i < 4; i++) {
        const op_tensor *x = op_tensors_at(t, i);
        float tolerance = x->dtype == OP_Q8_0 ? 0.13f : 0;
        assert_int_equal(x->shape[0], ROWS);
        assert_int_equal(x->shape[1], ROW);
        assert_int_equal((uintptr_t)x->data % 32, 0);
        assert_int_equal(op_tensor_read_f32(x, 0, x->count, out, &e), OP_OK);
        for (int64_t k = 0; k < x->count; k++)
            assert_true(fabsf(out[k] - (float)(k % 128) / 4) <= tolerance);
    }
    assert_memory_equal(op_tensors_find(t, "odd")->data, "1234", 4);
    op_tensors_close(t);
}

static void what_cannot_be_written_is_refused_and_leaves_no_file(void **state)
{
    (void)state;
    static const struct {
        op_tensor_out t;
        const char *part;
    } bad[] = {
        {{.name = "a b", .dtype = OP_F32, .rank = 1, .shape = {1}, .data = "1234"}, "printable bytes"},
        {{.name = NAME_65, .dtype = OP_F32, .rank = 1, .shape = {1}, .data = "1234"}, "at most 63"},
        {{.name = "a", .dtype = OP_U8, .rank = 1, .shape = {1}, .data = "1"}, "GGUF has no type U8"},
        {{.name = "a", .dtype = OP_Q8_0, .rank = 1, .shape = {33}, .source = quarters}, "shape and type do not fit"},
        {{.name = "a", .dtype = OP_Q4_K, .rank = 1, .shape = {256}, .source = quarters}, "cannot convert to Q4_K"},
        {{.name = "twice", .dtype = OP_F32, .rank = 1, .shape = {1}, .data = "1234"}, "is there twice"},
    };
    op_error e;
    int before = count_files();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        op_gguf_writer *w = op_gguf_writer_new();
        op_gguf_add_tensor(w, &(op_tensor_out){.name = "twice", .dtype = OP_F32, .rank = 0, .data = "1234"});
        op_gguf_add_tensor(w, &bad[i].t);
        assert_true(op_gguf_save(w, in_dir("bad.gguf"), &e) < 0);
        assert_message_has(&e, bad[i].part);
        op_gguf_writer_free(w);
    }
    for (int i = 0; i < 2; i++) {
        op_gguf_writer *w = op_gguf_writer_new();
        op_gguf_put_u32(w, "k", 1);
        op_gguf_put_u32(w, i ? "k" : "a\tb", 1);
        op_gguf_put_u32(w, "", 1);
        assert_int_equal(op_gguf_save(w, in_dir("bad.gguf"), &e), OP_ERR_ARG);
        assert_message_has(&e, i ? "key \"k\" is there twice" : "no printable ASCII");
        op_gguf_writer_free(w);
    }
    assert_int_equal(count_files(), before);
}

static op_status save_plain(void *ctx, op_error *e)
{
    return save_all(ctx, NULL, e);
}

static void a_full_disk_leaves_no_partial_file(void **state)
{
    (void)state;
    op_error e;
    char path[256];
    strcpy(path, in_dir("full.gguf"));
    int before = count_files();
    for (size_t room = 0; room < ROW * ROWS * 9; room += 100000) {
        assert_int_equal(run_on_a_full_disk(save_plain, path, room, &e), OP_ERR_IO);
        assert_int_equal(count_files(), before);
    }
}

static op_status open_it(void *ctx, op_error *e)
{
    op_tensors *t;
    op_status s = op_tensors_open(&t, ctx, e);
    json_t *m = s ? NULL : op_tensors_meta_json(t, 10);
    if (!s && !m)
        s = OP_ERR_NOMEM;
    json_decref(m);
    op_tensors_close(t);
    return s;
}

static void every_failing_allocation_is_reported(void **state)
{
    (void)state;
    char path[256];
    strcpy(path, in_dir("oom.gguf"));
    assert_true(fail_every_allocation(save_plain, path) > 30);
    assert_true(fail_every_allocation(open_it, path) > 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_gguf_of_version_2_or_3_opens),
        cmocka_unit_test(other_magic_and_other_versions_are_refused),
        cmocka_unit_test(counts_beyond_what_the_file_could_hold_are_refused),
        cmocka_unit_test(a_file_cut_at_any_byte_is_refused),
        cmocka_unit_test(an_empty_key_is_refused),
        cmocka_unit_test(a_key_of_2000_bytes_is_refused),
        cmocka_unit_test(a_key_that_is_not_printable_is_refused),
        cmocka_unit_test(an_unknown_type_of_value_is_refused),
        cmocka_unit_test(an_array_of_arrays_is_refused),
        cmocka_unit_test(an_array_longer_than_its_file_is_refused),
        cmocka_unit_test(an_array_of_strings_longer_than_its_file_is_refused),
        cmocka_unit_test(a_string_longer_than_its_file_is_refused),
        cmocka_unit_test(a_string_of_17_mib_is_refused),
        cmocka_unit_test(an_alignment_that_is_no_power_of_two_is_refused),
        cmocka_unit_test(an_alignment_of_0_is_refused),
        cmocka_unit_test(a_huge_alignment_is_refused),
        cmocka_unit_test(a_key_that_is_there_twice_is_refused),
        cmocka_unit_test(a_tensor_name_of_65_bytes_is_refused),
        cmocka_unit_test(a_tensor_that_is_there_twice_is_refused),
        cmocka_unit_test(a_fifth_dimension_is_refused),
        cmocka_unit_test(an_element_type_that_is_not_supported_is_refused),
        cmocka_unit_test(an_overflow_of_the_shape_is_refused),
        cmocka_unit_test(a_negative_size_is_refused),
        cmocka_unit_test(a_row_of_half_a_block_is_refused),
        cmocka_unit_test(an_offset_off_the_alignment_is_refused),
        cmocka_unit_test(an_offset_out_of_range_is_refused),
        cmocka_unit_test(a_huge_offset_is_refused),
        cmocka_unit_test(a_tensor_larger_than_its_file_is_refused),
        cmocka_unit_test(tensors_that_overlap_are_refused),
        cmocka_unit_test(values_are_converted_where_they_fit_and_else_give_the_fallback),
        cmocka_unit_test(dimensions_come_outermost_first_and_arrays_by_index),
        cmocka_unit_test(a_file_of_the_gguf_package_is_read),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(what_cannot_be_written_is_refused_and_leaves_no_file),
        cmocka_unit_test(a_full_disk_leaves_no_partial_file),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
