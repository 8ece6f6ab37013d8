#include "tools.h"

#include <operant/buf.h>

#include "train/events.h"
#include "train/journal.h"
#include "train/pack.h"

static void the_warm_up_rises_to_the_peak_in_equal_steps(void **state)
{
    (void)state;
    for (int type = 0; type < 4; type++) {
        op_schedule s = {.type = (op_schedule_type)type, .lr = 0.5, .total = 100, .warmup = 10, .decay_ratio = 0.2};
        for (int64_t i = 0; i < 10; i++)
            assert_float_equal(op_schedule_lr(&s, i), 0.05 * (double)(i + 1), 1e-12);
        assert_float_equal(op_schedule_lr(&s, 10), 0.5, 1e-12);
    }
}

static void schedules_follow_their_closed_forms(void **state)
{
    (void)state;
    op_schedule s = {.lr = 2, .total = 110, .warmup = 10, .decay_ratio = 0.2, .min_ratio = 0.1};
    for (int64_t i = 10; i < 110; i++) {
        double p = (double)(i - 10) / 100;
        s.type = OP_SCHEDULE_CONSTANT;
        assert_float_equal(op_schedule_lr(&s, i), 2, 1e-12);
        s.type = OP_SCHEDULE_LINEAR;
        assert_float_equal(op_schedule_lr(&s, i), 2 * (1 - 0.9 * p), 1e-12);
        s.type = OP_SCHEDULE_COSINE;
        assert_float_equal(op_schedule_lr(&s, i), 0.2 + 0.9 * (1 + cos(M_PI * p)), 1e-12);
        s.type = OP_SCHEDULE_WSD;
        assert_float_equal(op_schedule_lr(&s, i), i < 88 ? 2 : 0.2 + 1.8 * (double)(110 - i) / 22, 1e-12);
    }
}

static void a_schedule_without_warm_up_starts_at_the_peak(void **state)
{
    (void)state;
    for (int type = 0; type < 4; type++) {
        op_schedule s = {.type = (op_schedule_type)type, .lr = 1, .total = 1};
        assert_float_equal(op_schedule_lr(&s, 0), 1, 0);
    }
}

/* The check value of CRC-32C for "123456789" is e3069283 (RFC 3720); the beginning of an event file is that of TensorFlow's own. */
static void an_event_file_has_the_bytes_that_tensorboard_expects(void **state)
{
    (void)state;
    uint32_t crc = 0xe3069283u;
    assert_int_equal(op_crc32c_masked("123456789", 9), (uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8u));
    op_buf b;
    op_buf_init(&b, 1000);
    assert_int_equal(op_event_version(&b, 1.5), OP_OK);
    static const unsigned char version[] = "\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\x09\0\0\0\0\0\0\xf8\x3f\x1a\x0d" "brain.Event:2";
    assert_int_equal(b.len, 8 + 4 + 24 + 4);
    assert_memory_equal(b.data, version, sizeof version - 1);
    op_buf_clear(&b);
    assert_int_equal(op_event_scalar(&b, 0, 300, "loss", 2), OP_OK);
    static const unsigned char scalar[] = "\x09\0\0\0\0\0\0\0\0\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x40";
    assert_int_equal(b.len, 12 + sizeof scalar - 1 + 4);
    assert_memory_equal(b.data + 12, scalar, sizeof scalar - 1);
    uint32_t sum;
    memcpy(&sum, b.data + b.len - 4, 4);
    assert_int_equal(sum, op_crc32c_masked(scalar, sizeof scalar - 1));
    op_buf_release(&b);
}

/* Tokens and weights of the item that sequence s of a batch ends, collected from its ancestors. Returns their number. */
static int32_t unroll(const op_batch *b, const float *weight, int32_t s, int32_t *ids, float *weights)
{
    const op_seq *x = &b->seqs[s];
    int32_t before = 0;
    if (x->parent >= 0) {
        assert_true(x->parent < s);
        int32_t whole = unroll(b, weight, x->parent, ids, weights);
        assert_true(x->branch >= 1 && x->branch <= whole);
        before = x->branch;
    } else {
        assert_int_equal(x->branch, 0);
    }
    memcpy(ids + before, b->ids + x->start, (size_t)x->length * sizeof *ids);
    memcpy(weights + before, weight + x->start, (size_t)x->length * sizeof *weights);
    return before + x->length;
}

static void check_batch(const op_batch *b, const float *weight, const int32_t *item, const items *set, int *seen)
{
    int32_t at = 0;
    for (int32_t s = 0; s < b->n_seqs; s++) {
        assert_int_equal(b->seqs[s].start, at);
        assert_true(b->seqs[s].length >= 1);
        at += b->seqs[s].length;
        if (item[s] < 0)
            continue;
        int32_t ids[64];
        float weights[64];
        const op_item *x = &set->x[item[s]];
        assert_int_equal(unroll(b, weight, s, ids, weights), x->n);
        assert_memory_equal(ids, x->ids, (size_t)x->n * sizeof *ids);
        assert_memory_equal(weights, x->weights, (size_t)x->n * sizeof *weights);
        seen[item[s]]++;
    }
    assert_int_equal(at, b->n_tokens);
}

static void check_pack(const op_pack *p, const items *set, int32_t block)
{
    int seen[100] = {0}, seen_whole[100] = {0};
    int32_t tokens = 0;
    for (int32_t k = 0; k < p->n_parts; k++) {
        op_batch b = op_pack_part(p, k);
        assert_true(b.n_tokens <= block || b.n_seqs == 1);
        check_batch(&b, p->weight + p->parts[k].token, p->item + p->parts[k].seq, set, seen);
        tokens += b.n_tokens;
    }
    assert_int_equal(tokens, p->n_tokens);
    op_batch whole = op_pack_whole(p);
    check_batch(&whole, p->weight, p->item, set, seen_whole);
    double z = 0;
    for (size_t i = 0; i < set->n; i++) {
        assert_int_equal(seen[i], 1);
        assert_int_equal(seen_whole[i], 1);
        for (int32_t t = 0; t < set->x[i].n; t++)
            z += fabs((double)set->x[i].weights[t]);
    }
    assert_float_equal(z, p->z, 1e-9);
}

static void every_item_is_whole_and_once_in_the_pack_however_it_is_shared(void **state)
{
    (void)state;
    op_pack p;
    op_pack_init(&p);
    for (uint64_t seed = 0; seed < 40; seed++) {
        items set = random_items(1 + seed, 1 + (uint32_t)seed % 7, true, seed);
        for (int32_t share = 0; share < 5; share += 2) {
            op_pack_options o = {.block_tokens = 20 + 10 * (int32_t)seed, .share_min = share, .adapter = -1, .ranks = (int32_t)seed % 4};
            assert_ok(op_pack_build(&p, set.x, set.n, &o, e));
            check_pack(&p, &set, o.block_tokens);
            if (!share)
                assert_int_equal(p.n_seqs, (int)set.n);
        }
        items_free(&set);
    }
    op_pack_release(&p);
}

static void parts_for_several_ranks_take_equally_long_on_each(void **state)
{
    (void)state;
    const int32_t ids[10] = {0};
    const float weights[10] = {0, 1};
    op_item x[12];
    for (int i = 0; i < 12; i++)
        x[i] = (op_item){.ids = ids, .weights = weights, .n = 10};
    op_pack p;
    op_pack_init(&p);
    op_pack_options o = {.block_tokens = 40, .adapter = -1, .ranks = 2};
    assert_ok(op_pack_build(&p, x, 12, &o, e)); /* 40 + 40 + 40 would leave one rank idle for a third of the time */
    assert_int_equal(p.n_parts, 4);
    for (int32_t k = 0; k < 4; k++)
        assert_int_equal(p.parts[k].n_tokens, 30);
    o.ranks = 5;
    assert_ok(op_pack_build(&p, x, 3, &o, e)); /* more ranks than items: no part is empty */
    assert_int_equal(p.n_parts, 3);
    op_pack_release(&p);
}

static void a_common_beginning_is_there_once_and_never_holds_a_weight(void **state)
{
    (void)state;
    const int32_t a[] = {1, 2, 3, 4, 5, 9}, b[] = {1, 2, 3, 4, 6, 9}, c[] = {1, 2, 7}, d[] = {1, 2, 3, 4, 5, 8};
    const float late[] = {0, 0, 0, 0, 0, 1}, early[] = {0, 0, 1};
    const op_item x[] = {{a, late, NULL, NULL, 6}, {b, late, NULL, NULL, 6}, {c, early, NULL, NULL, 3}, {d, late, NULL, NULL, 6}};
    op_pack_options o = {.block_tokens = 100, .share_min = 2, .adapter = 3};
    op_pack p;
    op_pack_init(&p);
    assert_ok(op_pack_build(&p, x, 4, &o, e));
    /* 1 2 | 3 4 | 5 9, 5 8 (a single token is not worth sharing), 6 9 | 7 */
    assert_int_equal(p.n_tokens, 2 + 2 + 2 + 2 + 2 + 1);
    assert_int_equal(p.n_seqs, 6);
    for (int32_t s = 0; s < p.n_seqs; s++) {
        assert_int_equal(p.seqs[s].adapter, 3);
        for (int32_t t = 0; p.item[s] < 0 && t < p.seqs[s].length; t++)
            assert_float_equal(p.weight[p.seqs[s].start + t], 0, 0);
    }
    op_pack_release(&p);
}

static void log_probabilities_of_other_policies_travel_with_their_tokens(void **state)
{
    (void)state;
    const int32_t ids[] = {1, 2, 3};
    const float weights[] = {0, 0, 1}, behaviour[] = {0, 0, -0.25f};
    const op_item x[] = {{ids, weights, NULL, NULL, 3}, {ids, weights, behaviour, NULL, 3}};
    op_pack_options o = {.block_tokens = 100, .share_min = 1, .adapter = -1};
    op_pack p;
    op_pack_init(&p);
    assert_ok(op_pack_build(&p, x, 2, &o, e));
    op_signal s = op_pack_signal(&p);
    assert_int_equal(p.n_tokens, 4);
    assert_null(s.reference);
    assert_true(isnan(s.behaviour[2])); /* unknown */
    assert_float_equal(s.behaviour[3], -0.25, 0);
    op_pack_release(&p);
}

static char *read_all(const char *dir, const char *name)
{
    char *path = op_path_join(dir, name);
    op_buf b;
    op_buf_init(&b, 1 << 20);
    assert_ok(op_file_read(path, &b, e));
    op_free(path);
    return op_buf_take(&b);
}

static void metrics_are_cut_back_to_the_step_that_a_run_resumes_from(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_journal j;
    assert_ok(op_journal_open(&j, dir, -1, e));
    for (int step = 1; step <= 5; step++)
        assert_ok(op_journal_add(&j, json_pack("{sisf}", "step", step, "loss", 1.0 / step), e));
    op_journal_close(&j);
    char *path = op_path_join(dir, "metrics.jsonl");
    FILE *f = fopen(path, "a"); /* what a kill leaves */
    fputs("{\"step\": 3, \"lo", f);
    fclose(f);
    assert_ok(op_journal_open(&j, dir, 3, e));
    assert_ok(op_journal_add(&j, json_pack("{sisf}", "step", 4, "loss", 9.0), e));
    op_journal_close(&j);
    char *text = read_all(dir, "metrics.jsonl");
    int lines = 0;
    for (char *c = text; *c; c++)
        lines += *c == '\n';
    assert_int_equal(lines, 4);
    assert_non_null(strstr(text, "{\"step\":4,\"loss\":9.0"));
    assert_null(strstr(text, "\"step\":5"));
    op_free(text);
    op_free(path);
    remove_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_warm_up_rises_to_the_peak_in_equal_steps),
        cmocka_unit_test(schedules_follow_their_closed_forms),
        cmocka_unit_test(a_schedule_without_warm_up_starts_at_the_peak),
        cmocka_unit_test(an_event_file_has_the_bytes_that_tensorboard_expects),
        cmocka_unit_test(every_item_is_whole_and_once_in_the_pack_however_it_is_shared),
        cmocka_unit_test(parts_for_several_ranks_take_equally_long_on_each),
        cmocka_unit_test(a_common_beginning_is_there_once_and_never_holds_a_weight),
        cmocka_unit_test(log_probabilities_of_other_policies_travel_with_their_tokens),
        cmocka_unit_test(metrics_are_cut_back_to_the_step_that_a_run_resumes_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
