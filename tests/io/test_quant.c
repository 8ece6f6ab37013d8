#include "tools.h"

#include <math.h>

#include <operant/clock.h>
#include <operant/tensors.h>

#include "base/num.h"
#include "base/rng.h"
#include "io/quant.h"

/* quants.gguf and quants.safetensors: see make_fixtures.py. */
static op_tensors *fixture(const char *name)
{
    char path[512];
    op_tensors *t;
    op_error e;
    snprintf(path, sizeof path, "%s/%s", getenv("FIXTURES"), name);
    if (op_tensors_open(&t, path, &e))
        fail_msg("%s", e.message);
    return t;
}

static void blocks_of_every_type_become_the_floats_that_the_gguf_package_makes(void **state)
{
    (void)state;
    op_tensors *given = fixture("quants.gguf"), *expected = fixture("quants.safetensors");
    assert_int_equal(op_tensors_count(given), 13);
    assert_int_equal(op_tensors_count(expected), 13);
    float a[2048], b[2048];
    op_error e;
    for (size_t i = 0; i < op_tensors_count(given); i++) {
        const op_tensor *x = op_tensors_at(given, i), *y = op_tensors_find(expected, x->name);
        assert_non_null(y);
        assert_int_equal(x->rank, 2);
        assert_int_equal(x->shape[0], y->shape[0]);
        assert_int_equal(x->shape[1], y->shape[1]);
        assert_int_equal(op_tensor_read_f32(x, 0, x->count, a, &e), OP_OK);
        assert_int_equal(op_tensor_read_f32(y, 0, y->count, b, &e), OP_OK);
        for (int64_t k = 0; k < x->count; k++)
            if (!(fabsf(a[k] - b[k]) <= 1e-6f * fabsf(b[k])))
                fail_msg("%s element %d: found %.9g, expected %.9g", x->name, (int)k, (double)a[k], (double)b[k]);
    }
    op_tensors_close(given);
    op_tensors_close(expected);
}

static void a_part_of_a_tensor_reads_as_that_part_of_the_whole(void **state)
{
    (void)state;
    op_tensors *t = fixture("quants.gguf");
    float all[2048], part[256];
    for (size_t i = 0; i < op_tensors_count(t); i++) {
        const op_tensor *x = op_tensors_at(t, i);
        int64_t block = (int64_t)op_dtype_block(x->dtype), last = x->count - block;
        assert_int_equal(op_tensor_read_f32(x, 0, x->count, all, NULL), OP_OK);
        assert_int_equal(op_tensor_read_f32(x, last, block, part, NULL), OP_OK);
        assert_memory_equal(part, all + last, (size_t)block * sizeof *part);
    }
    op_tensors_close(t);
}

static void reading_past_the_end_or_inside_a_block_is_refused(void **state)
{
    (void)state;
    op_tensors *t = fixture("quants.gguf");
    const op_tensor *x = op_tensors_find(t, "Q4_K");
    float out[256];
    op_error e;
    assert_int_equal(op_tensor_read_f32(x, x->count, 256, out, &e), OP_ERR_ARG);
    assert_int_equal(op_tensor_read_f32(x, 0, INT64_MAX, out, &e), OP_ERR_ARG);
    assert_int_equal(op_tensor_read_f32(x, -256, 256, out, &e), OP_ERR_ARG);
    assert_int_equal(op_tensor_read_f32(x, 0, -1, out, &e), OP_ERR_ARG);
    assert_int_equal(op_tensor_read_f32(x, 32, 256, out, &e), OP_ERR_ARG);
    assert_message_has(&e, "Q4_K comes in blocks of 256");
    assert_int_equal(op_tensor_read_f32(x, 256, 32, out, &e), OP_ERR_ARG);
    assert_int_equal(op_tensor_read_f32(x, x->count, 0, out, &e), OP_OK);
    op_tensors_close(t);
}

static void integers_are_not_read_as_floats(void **state)
{
    (void)state;
    op_tensor t = {.name = "ids", .dtype = OP_I64, .rank = 1, .shape = {1}, .count = 1, .data = "12345678", .bytes = 8};
    float out;
    op_error e;
    assert_int_equal(op_tensor_read_f32(&t, 0, 1, &out, &e), OP_ERR_UNSUPPORTED);
    assert_string_equal(e.message, "tensor \"ids\": found I64, expected floating-point numbers");
}

static void every_half_float_reads_as_the_slow_conversion_says(void **state)
{
    (void)state;
    uint16_t *halves = malloc(65536 * sizeof *halves);
    float *out = malloc(65536 * sizeof *out);
    for (int i = 0; i < 65536; i++)
        halves[i] = (uint16_t)i;
    assert_true(op_dequantize(OP_F16, halves, 65536, out));
    for (int i = 0; i < 65536; i++) {
        float slow = op_f16_to_f32((op_f16)i);
        assert_true(isnan(slow) ? isnan(out[i]) : out[i] == slow && !signbit(out[i]) == !signbit(slow));
    }
    free(halves);
    free(out);
}

static void q8_0_is_quantised_to_the_bytes_of_the_gguf_package(void **state)
{
    (void)state;
    op_tensors *t = fixture("quants.gguf");
    const op_tensor *values = op_tensors_find(t, "F32"), *expected = op_tensors_find(t, "from_f32");
    float f[256];
    unsigned char bytes[34 * 8];
    assert_int_equal(expected->bytes, sizeof bytes);
    assert_int_equal(op_tensor_read_f32(values, 0, 256, f, NULL), OP_OK);
    assert_true(op_quantize(OP_Q8_0, f, 256, bytes));
    assert_memory_equal(bytes, expected->data, sizeof bytes);
    op_tensors_close(t);
}

static void halves_are_rounded_to_nearest(void **state)
{
    (void)state;
    op_tensors *t = fixture("quants.gguf");
    float f[256];
    uint16_t h[256];
    assert_int_equal(op_tensor_read_f32(op_tensors_find(t, "F32"), 0, 256, f, NULL), OP_OK);
    assert_true(op_quantize(OP_F16, f, 256, h));
    assert_memory_equal(h, op_tensors_find(t, "F16")->data, sizeof h);
    assert_true(op_quantize(OP_BF16, f, 256, h));
    assert_memory_equal(h, op_tensors_find(t, "BF16")->data, sizeof h);
    assert_false(op_quantize(OP_Q4_0, f, 256, h));
    op_tensors_close(t);
}

static void the_real_model_opens_within_50_ms_and_holds_finite_numbers(void **state)
{
    (void)state;
    const char *path = getenv("OPERANT_MODEL");
    op_tensors *t;
    op_error e;
    if (!path || !op_path_exists(path)) {
        print_message("skipped: OPERANT_MODEL does not name a model\n");
        skip();
    }
    double start = op_seconds();
    if (op_tensors_open(&t, path, &e))
        fail_msg("%s", e.message);
    double opened = op_seconds() - start;
    assert_true(opened < 0.05);
    const op_tensor *x = op_tensors_find(t, "token_embd.weight");
    if (op_tensors_get_format(t) == OP_GGUF && x) {
        size_t n;
        const char *first = op_tensors_meta_array_string(t, "tokenizer.ggml.tokens", 0, &n);
        assert_non_null(first);
        assert_int_equal((int64_t)op_tensors_meta_array(t, "tokenizer.ggml.tokens"), x->shape[0]);
    }
    int64_t most = 0;
    for (size_t i = 0; i < op_tensors_count(t); i++)
        most = op_tensors_at(t, i)->count > most ? op_tensors_at(t, i)->count : most;
    float *out = malloc((size_t)most * sizeof *out);
    for (size_t i = 0; i < op_tensors_count(t); i++) {
        x = op_tensors_at(t, i);
        if (op_tensor_read_f32(x, 0, x->count, out, &e))
            fail_msg("%s", e.message);
        for (int64_t k = 0; k < x->count; k += 97)
            assert_true(isfinite(out[k]));
    }
    print_message("opened in %.1f ms, read in %.0f ms\n", 1e3 * opened, 1e3 * (op_seconds() - start - opened));
    free(out);
    op_tensors_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_every_type_become_the_floats_that_the_gguf_package_makes),
        cmocka_unit_test(a_part_of_a_tensor_reads_as_that_part_of_the_whole),
        cmocka_unit_test(reading_past_the_end_or_inside_a_block_is_refused),
        cmocka_unit_test(integers_are_not_read_as_floats),
        cmocka_unit_test(every_half_float_reads_as_the_slow_conversion_says),
        cmocka_unit_test(q8_0_is_quantised_to_the_bytes_of_the_gguf_package),
        cmocka_unit_test(halves_are_rounded_to_nearest),
        cmocka_unit_test(the_real_model_opens_within_50_ms_and_holds_finite_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
