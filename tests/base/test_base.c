#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <operant/buf.h>
#include <operant/clock.h>
#include "base/hash.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/rng.h"
#include <operant/log.h>

/* Known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds). */
static void philox_gives_the_published_vectors(void **state)
{
    (void)state;
    uint32_t w[4];
    op_rng_block(0, 0, 0, w);
    assert_int_equal(w[0], 0x6627e8d5);
    assert_int_equal(w[1], 0xe169c58d);
    assert_int_equal(w[2], 0xbc57ac4c);
    assert_int_equal(w[3], 0x9b00dbd8);
    op_rng_block(UINT64_MAX, UINT64_MAX, UINT64_MAX, w);
    assert_int_equal(w[0], 0x408f276d);
    op_rng_block(0x299f31d0a4093822ull, 0x0370734413198a2eull, 0x85a308d3243f6a88ull, w);
    assert_int_equal(w[0], 0xd16cfe09);
    assert_int_equal(w[1], 0x94fdcceb);
    assert_int_equal(w[2], 0x5001e420);
    assert_int_equal(w[3], 0x24126ea1);
}

static void a_permutation_holds_every_index_once(void **state)
{
    (void)state;
    uint32_t order[257], seen[257] = {0};
    op_rng_permute(7, OP_STREAM_TEST, 257, order);
    int moved = 0;
    for (uint32_t i = 0; i < 257; i++) {
        seen[order[i]]++;
        moved += order[i] != i;
    }
    for (int i = 0; i < 257; i++)
        assert_int_equal(seen[i], 1);
    assert_true(moved > 200);
}

static void normal_numbers_have_mean_0_and_variance_1(void **state)
{
    (void)state;
    double sum = 0, squares = 0;
    const int n = 100000;
    for (int i = 0; i < n; i++) {
        double x = op_rng_normal(3, OP_STREAM_TEST, (uint64_t)i);
        sum += x;
        squares += x * x;
    }
    assert_true(fabs(sum / n) < 0.02);
    assert_true(fabs(squares / n - 1) < 0.02);
}

static void a_buffer_refuses_to_pass_its_maximum_and_keeps_what_it_has(void **state)
{
    (void)state;
    op_buf b;
    op_buf_init(&b, 5);
    assert_int_equal(op_buf_puts(&b, "abcd"), OP_OK);
    assert_int_equal(op_buf_printf(&b, "%d", 42), OP_ERR_NOMEM);
    assert_string_equal(b.data, "abcd");
    assert_int_equal(op_buf_printf(&b, "%d", 7), OP_OK);
    assert_string_equal(b.data, "abcd7");
    op_buf_release(&b);
}

static void every_half_float_survives_the_way_through_float(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = op_f16_to_f32((op_f16)h);
        if (!isnan(f))
            assert_int_equal(op_f32_to_f16(f), h);
        float g = op_bf16_to_f32((op_bf16)h);
        if (!isnan(g))
            assert_int_equal(op_f32_to_bf16(g), h);
        else
            assert_true(isnan(op_bf16_to_f32(op_f32_to_bf16(g))));
    }
    assert_int_equal(op_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(op_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(op_f32_to_f16(1.0f + 0x1p-11f), 0x3c00);
    assert_int_equal(op_f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
    assert_int_equal(op_f32_to_bf16(1.0f + 0x1.8p-8f), 0x3f81);
}

static void sha256_of_abc_is_the_published_one(void **state)
{
    (void)state;
    char hex[OP_HASH_HEX];
    op_hash("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void aligned_blocks_of_every_size_are_zero_wherever_one_looks(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 64, 65, 4096, 128 << 10, 999999, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, (5 << 20) + 77};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (int round = 0; round < 2; round++) { /* the second one may get what the first one left */
        unsigned char *blocks[SIZES];
        for (int i = 0; i < SIZES; i++) {
            blocks[i] = op_alloc_aligned(sizes[i]);
            assert_non_null(blocks[i]);
            assert_int_equal((uintptr_t)blocks[i] % (sizes[i] < 2 << 20 ? 64 : 2 << 20), 0);
            for (size_t k = 0; k < sizes[i]; k++)
                if (blocks[i][k])
                    fail_msg("byte %zu of %zu is %d", k, sizes[i], blocks[i][k]);
            memset(blocks[i], 255, sizes[i]);
        }
        for (int i = 0; i < SIZES; i++)
            op_free_aligned(blocks[i]);
    }
    op_free_aligned(NULL);
}

static void aligned_blocks_do_not_overlap_whatever_is_freed_between(void **state)
{
    (void)state;
    enum { BLOCKS = 60, BYTES = 1 << 20, ROUNDS = 300 };
    unsigned char *blocks[BLOCKS] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        int i = round * 37 % BLOCKS;
        size_t n = BYTES - (size_t)(i * 12345);
        op_free_aligned(blocks[i]);
        blocks[i] = op_alloc_aligned(n);
        assert_non_null(blocks[i]);
        assert_int_equal(blocks[i][0] + blocks[i][n / 2] + blocks[i][n - 1], 0);
        blocks[i][0] = blocks[i][n / 2] = blocks[i][n - 1] = (unsigned char)(i + 1);
        for (int k = 0; k < BLOCKS; k++) {
            size_t m = BYTES - (size_t)(k * 12345);
            if (blocks[k] && (blocks[k][0] != k + 1 || blocks[k][m / 2] != k + 1 || blocks[k][m - 1] != k + 1))
                fail_msg("block %d was written by another in round %d", k, round);
        }
    }
    for (int i = 0; i < BLOCKS; i++)
        op_free_aligned(blocks[i]);
}

static void an_arena_hands_out_aligned_memory_and_merges_after_growth(void **state)
{
    (void)state;
    op_arena a;
    op_arena_init(&a);
    for (int round = 0; round < 3; round++) {
        for (int i = 1; i < 50; i++) {
            unsigned char *p = op_arena_alloc(&a, (size_t)i * 4099);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            memset(p, i, (size_t)i * 4099);
        }
        op_arena_reset(&a);
        assert_int_equal(a.used, 0);
    }
    assert_true(a.peak >= 49 * 50 / 2 * 4099);
    op_alloc_fail_from(0);
    op_arena b;
    op_arena_init(&b);
    assert_null(op_arena_alloc(&b, 10));
    op_alloc_fail_from(-1);
    op_arena_release(&a);
    op_arena_release(&b);
}

static void an_error_keeps_its_code_through_a_prefix(void **state)
{
    (void)state;
    op_error e;
    assert_int_equal(op_error_set(&e, OP_ERR_FORMAT, "key \"%s\" is missing", "dim"), OP_ERR_FORMAT);
    assert_int_equal(op_error_prefix(&e, "a.gguf"), OP_ERR_FORMAT);
    assert_string_equal(e.message, "a.gguf: key \"dim\" is missing");
}

static void count_log(void *ctx, op_log_level level, const char *message)
{
    assert_int_equal(level, OP_LOG_WARN);
    assert_string_equal(message, "two 2");
    ++*(int *)ctx;
}

static void the_log_goes_to_the_callback_alone(void **state)
{
    (void)state;
    int n = 0;
    op_log_set(count_log, &n);
    op_log(OP_LOG_WARN, "two %d", 2);
    op_log_set(NULL, NULL);
    op_log(OP_LOG_WARN, "unheard");
    assert_int_equal(n, 1);
}

static void a_hash_of_parts_is_that_of_the_whole(void **state)
{
    (void)state;
    char text[300], whole[OP_HASH_HEX], parts[OP_HASH_HEX];
    memset(text, 'x', sizeof text);
    op_hash(text, sizeof text, whole);
    op_hasher h;
    op_hash_begin(&h);
    for (size_t at = 0, n = 0; at < sizeof text; at += n++)
        op_hash_add(&h, text + at, at + n > sizeof text ? sizeof text - at : n);
    op_hash_end(&h, parts);
    assert_string_equal(whole, parts);
}

static void the_clock_goes_forward_and_memory_is_counted_in_mib(void **state)
{
    (void)state;
    enum { MIB = 64 };
    double begin = op_seconds(), before = op_peak_rss_mb();
    char *held = op_alloc((size_t)MIB << 20);
    assert_non_null(held);
    memset(held, 1, (size_t)MIB << 20);
    assert_true(op_seconds() > begin);
    assert_true(before > 0.5 && op_peak_rss_mb() >= before && op_peak_rss_mb() > MIB);
    op_free(held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_vectors),
        cmocka_unit_test(a_permutation_holds_every_index_once),
        cmocka_unit_test(normal_numbers_have_mean_0_and_variance_1),
        cmocka_unit_test(a_buffer_refuses_to_pass_its_maximum_and_keeps_what_it_has),
        cmocka_unit_test(every_half_float_survives_the_way_through_float),
        cmocka_unit_test(sha256_of_abc_is_the_published_one),
        cmocka_unit_test(a_hash_of_parts_is_that_of_the_whole),
        cmocka_unit_test(the_clock_goes_forward_and_memory_is_counted_in_mib),
        cmocka_unit_test(aligned_blocks_of_every_size_are_zero_wherever_one_looks),
        cmocka_unit_test(aligned_blocks_do_not_overlap_whatever_is_freed_between),
        cmocka_unit_test(an_arena_hands_out_aligned_memory_and_merges_after_growth),
        cmocka_unit_test(an_error_keeps_its_code_through_a_prefix),
        cmocka_unit_test(the_log_goes_to_the_callback_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
