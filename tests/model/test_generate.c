/* Sampling: equal to the training forward, independent of the batch, and obedient to its settings and callbacks. */
#include "common.h"

#include "base/rng.h"
#include "io/file.h"
#include "ops/ops.h"

static const op_sampling greedy = {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .max_tokens = 12};

static op_request request(const int32_t *prompt, int32_t n, op_sampling o)
{
    return (op_request){.prompt = prompt, .n_prompt = n, .adapter = -1, .share = -1, .sampling = o};
}

static const int32_t prompt[20] = {5, 17, 33, 8, 21, 60, 3, 44, 12, 9, 27, 31, 50, 2, 6, 7, 19, 40, 41, 42};

static void greedy_tokens_and_their_logprobs_are_those_of_the_training_forward(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 2; dtype++)
        for (int f = 0; f < N_FAMILIES; f++) {
            op_model *m = open_fixture_model(families[f], (op_model_options){.act = dtype ? OP_BF16 : OP_F32});
            op_request r = request(prompt, 9, greedy);
            CHECK(op_generate(m, &r, 1, &(op_generate_options){.ignore_eos = true}, e));
            assert_int_equal(r.n, 12);
            int32_t ids[21], rows[21], V = op_model_get_config(m)->vocab;
            memcpy(ids, prompt, 9 * sizeof *ids);
            memcpy(ids + 9, r.tokens, 12 * sizeof *ids);
            op_batch b = {21, 1, ids, &(op_seq){0, 21, -1, 0, -1}};
            op_pass *p;
            CHECK(op_pass_new(&p, m, e));
            float logp[21], *logits = malloc(21 * (size_t)V * sizeof *logits);
            CHECK(op_model_forward(m, p, &b, &(op_how){0}, e));
            CHECK(op_model_logprobs(m, p, NULL, NULL, logp, e));
            for (int32_t t = 0; t < 21; t++)
                rows[t] = t;
            CHECK(op_model_logits(m, p, rows, 21, logits, e));
            for (int32_t t = 9; t < 21; t++) {
                double gap = fabs((double)logp[t] - r.logprobs[t - 9]);
                if (!(gap < (dtype ? 0.15 : 1e-4)))
                    fail_msg("%s: log p of token %d is %g sampled, %g trained", families[f], t, (double)r.logprobs[t - 9], (double)logp[t]);
                if (!dtype) {
                    const float *row = logits + (size_t)(t - 1) * V;
                    for (int32_t v = 0; v < V; v++)
                        assert_true(row[v] <= row[ids[t]] + 1e-5f);
                }
            }
            free(logits);
            op_request_release(&r);
            op_pass_free(p);
            op_model_free(m);
        }
}

/* 44 requests of different lengths and settings, alone and together, in slots of 32 and of 3; adapters i % (n_adapters + 1) - 1. */
static void check_independence(op_model *m)
{
    enum { N = 44 };
    bool by_slot = strncmp(op_ops_product_isa(), "avx2", 4) == 0; /* what generate.h excepts: one slot then */
    op_request all[N], few[N];
    for (int i = 0; i < N; i++) {
        op_sampling o = {.temperature = 0.5 + 0.02 * i, .top_k = i % 3 ? 0 : 20, .top_p = i % 4 ? 1 : 0.9, .min_p = i % 5 ? 0 : 0.02,
                         .repetition_penalty = i % 2 ? 1 : 1.2, .max_tokens = 1 + i % 17, .seed = (uint64_t)i};
        all[i] = request(prompt, 1 + i % 20, o);
        all[i].adapter = i % (op_model_adapter_count(m) + 1) - 1;
        few[i] = all[i];
    }
    CHECK(op_generate(m, all, N, &(op_generate_options){.max_batch = by_slot ? 1 : 32}, e));
    CHECK(op_generate(m, few, N, &(op_generate_options){.max_batch = by_slot ? 1 : 3}, e));
    for (int i = 0; i < N; i++) {
        op_request one = request(prompt, all[i].n_prompt, all[i].sampling);
        one.adapter = all[i].adapter;
        CHECK(op_generate(m, &one, 1, &(op_generate_options){0}, e));
        assert_int_equal(one.n, all[i].n);
        assert_int_equal(few[i].n, all[i].n);
        assert_int_equal(one.finish, all[i].finish);
        assert_memory_equal(one.tokens, all[i].tokens, (size_t)one.n * sizeof *one.tokens);
        assert_memory_equal(one.logprobs, all[i].logprobs, (size_t)one.n * sizeof *one.logprobs);
        assert_memory_equal(few[i].tokens, all[i].tokens, (size_t)one.n * sizeof *one.tokens);
        assert_memory_equal(few[i].logprobs, all[i].logprobs, (size_t)one.n * sizeof *one.logprobs);
        op_request_release(&one);
        op_request_release(&few[i]);
    }
    for (int i = 0; i < N; i++)
        op_request_release(&all[i]);
}

static void a_request_gives_the_same_bits_alone_and_in_any_batch(void **state)
{
    (void)state;
    static const char *const levels[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4"};
    const char *best = op_ops_simd();
    for (int l = 0; l < 3; l++)
        for (int k = 0; k < 4 && op_ops_simd_force(levels[l]); k++) {
            op_model *m = open_fixture_model(k < 2 ? "mistral" : "gpt2", (op_model_options){.act = k % 2 ? OP_BF16 : OP_F32});
            check_independence(m);
            op_model_free(m);
        }
    op_ops_simd_force(best);
}

static char dir[64];

/* An adapter of random values, in PEFT's files. */
static void save_adapter(const char *family, const char *name, int32_t rank)
{
    op_lora_options lora = {.rank = rank, .alpha = 2, .targets = rank == 3 ? OP_LORA_ATTENTION : OP_LORA_ALL};
    op_model *m = open_fixture_model(family, (op_model_options){.act = OP_F32, .trainable = OP_TRAIN_ADAPTER, .lora = lora});
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++)
        p.values[i] = (float)(op_rng_uniform((uint64_t)rank, 1, i) - 0.5);
    CHECK(op_dir_make(name, e));
    CHECK(op_model_adapter_save(m, 0, name, "base", e));
    op_model_free(m);
}

static void so_it_does_beside_requests_with_other_adapters_and_with_none(void **state)
{
    (void)state;
    static const char *const kinds[] = {"llama", "gpt2"};
    strcpy(dir, "/tmp/operant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    for (int k = 0; k < 4; k++) {
        op_model *m = open_fixture_model(kinds[k / 2], (op_model_options){.act = k % 2 ? OP_BF16 : OP_F32});
        op_model *bare = open_fixture_model(kinds[k / 2], (op_model_options){.act = k % 2 ? OP_BF16 : OP_F32});
        for (int32_t rank = 2; rank <= 8; rank += rank - 1) { /* 2, 3, 5 */
            char name[96];
            int32_t id;
            snprintf(name, sizeof name, "%s/%s-%d", dir, kinds[k / 2], rank);
            save_adapter(kinds[k / 2], name, rank);
            CHECK(op_model_adapter_load(m, name, &id, e));
        }
        assert_int_equal(op_model_adapter_count(m), 3);
        check_independence(m);
        /* an adapter changes what it is asked for, and nothing else */
        op_request with[4], without = request(prompt, 9, greedy);
        for (int i = 0; i < 4; i++) {
            with[i] = without;
            with[i].adapter = i - 1;
        }
        CHECK(op_generate(m, with, 4, &(op_generate_options){.ignore_eos = true, .max_batch = 4}, e));
        CHECK(op_generate(bare, &without, 1, &(op_generate_options){.ignore_eos = true}, e));
        assert_memory_equal(with[0].logprobs, without.logprobs, (size_t)without.n * sizeof(float));
        for (int i = 1; i < 4; i++)
            assert_memory_not_equal(with[i].logprobs, without.logprobs, (size_t)without.n * sizeof(float));
        for (int i = 0; i < 4; i++)
            op_request_release(&with[i]);
        op_request_release(&without);
        op_model_free(bare);
        op_model_free(m);
    }
    CHECK(op_path_remove(dir, e));
}

static void a_shared_prefix_changes_nothing_but_the_work(void **state)
{
    (void)state;
    op_model *m = open_fixture_model("qwen3", (op_model_options){.act = OP_F32});
    enum { N = 9 };
    op_request apart[N], shared[N];
    for (int i = 0; i < N; i++) {
        op_sampling o = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = 15, .seed = (uint64_t)i};
        apart[i] = shared[i] = request(prompt, 11 + i % 4, o);
        if (i) {
            shared[i].share = i < 5 ? 0 : i - 1; /* the later ones form a chain */
            shared[i].share_n = i == 4 ? 11 : 7 + i % 2;
        }
    }
    CHECK(op_generate(m, apart, N, &(op_generate_options){.ignore_eos = true}, e));
    CHECK(op_generate(m, shared, N, &(op_generate_options){.ignore_eos = true, .max_batch = 2}, e));
    for (int i = 0; i < N; i++) {
        assert_int_equal(apart[i].n, shared[i].n);
        assert_memory_equal(apart[i].tokens, shared[i].tokens, (size_t)apart[i].n * sizeof *apart[i].tokens);
        for (int32_t t = 0; t < apart[i].n; t++)
            assert_true(fabsf(apart[i].logprobs[t] - shared[i].logprobs[t]) < 1e-4f);
        op_request_release(&apart[i]);
        op_request_release(&shared[i]);
    }
    op_error e = {0};
    shared[1].share_n = 12;
    assert_int_equal(op_generate(m, shared, 2, &(op_generate_options){0}, &e), OP_ERR_ARG);
    assert_non_null(strstr(e.message, "does not begin with"));
    for (int i = 0; i < 2; i++)
        op_request_release(&shared[i]);
    op_model_free(m);
}

typedef struct watcher {
    int32_t forbidden, stop_at;
    int gated, finished;
} watcher;

static op_verdict forbid(void *ctx, size_t i, const int32_t *ids, int32_t n, float *logits)
{
    watcher *w = ctx;
    (void)i;
    (void)ids;
    (void)n;
    w->gated++;
    logits[w->forbidden] = -INFINITY;
    return OP_GO;
}

static op_verdict stop_after(void *ctx, size_t i, const int32_t *tokens, int32_t n, float logprob)
{
    watcher *w = ctx;
    (void)tokens;
    (void)logprob;
    return n < w->stop_at ? OP_GO : i == 0 ? OP_STOP : OP_VETO;
}

static void count_done(void *ctx, size_t i, const op_request *r)
{
    (void)i;
    (void)r;
    ((watcher *)ctx)->finished++;
}

static void gate_and_stop_callbacks_are_obeyed(void **state)
{
    (void)state;
    op_model *m = open_fixture_model("llama", (op_model_options){.act = OP_F32});
    op_request plain = request(prompt, 6, greedy);
    CHECK(op_generate(m, &plain, 1, &(op_generate_options){.ignore_eos = true}, e));
    watcher w = {.forbidden = plain.tokens[2], .stop_at = 5};
    op_request r[2] = {request(prompt, 6, greedy), request(prompt, 6, greedy)};
    op_generate_options o = {.ignore_eos = true, .ctx = &w, .gate = forbid, .stop = stop_after, .done = count_done};
    CHECK(op_generate(m, r, 2, &o, e));
    assert_int_equal(r[0].finish, OP_FINISH_STOP);
    assert_int_equal(r[1].finish, OP_FINISH_VETO);
    assert_int_equal(r[0].n, 5);
    assert_int_equal(r[0].tokens[1], plain.tokens[1]);
    for (int i = 0; i < 5; i++)
        assert_int_not_equal(r[0].tokens[i], w.forbidden);
    assert_int_equal(w.gated, 10);
    assert_int_equal(w.finished, 2);
    const int32_t stop_id = plain.tokens[3];
    op_request ended = request(prompt, 6, greedy);
    CHECK(op_generate(m, &ended, 1, &(op_generate_options){.ignore_eos = true, .stop_ids = &stop_id, .n_stop_ids = 1}, e));
    assert_true(ended.n <= 4);
    assert_int_equal(ended.tokens[ended.n - 1], stop_id);
    assert_int_equal(ended.finish, OP_FINISH_STOP);
    op_request_release(&ended);
    op_request_release(&plain);
    op_request_release(&r[0]);
    op_request_release(&r[1]);
    op_model_free(m);
}

static void draws_follow_the_distribution_and_its_truncations(void **state)
{
    (void)state;
    op_model *m = open_fixture_model("llama", (op_model_options){.act = OP_F32});
    enum { N = 4000, K = 5 };
    op_request *r = malloc(N * sizeof *r);
    op_pass *p;
    CHECK(op_pass_new(&p, m, e));
    float logits[61];
    op_batch b = {6, 1, prompt, &(op_seq){0, 6, -1, 0, -1}};
    CHECK(op_model_forward(m, p, &b, &(op_how){0}, e));
    CHECK(op_model_logits(m, p, (int32_t[]){5}, 1, logits, e));
    double prob[61], total = 0;
    for (int v = 0; v < 61; v++)
        total += prob[v] = exp(logits[v] / 1.5);
    for (int top_k = 0; top_k <= K; top_k += K) {
        for (int i = 0; i < N; i++)
            r[i] = request(prompt, 6, (op_sampling){.temperature = 1.5, .top_k = top_k, .top_p = 1, .repetition_penalty = 1,
                                                    .max_tokens = 1, .seed = (uint64_t)i + 77});
        for (int i = 1; i < N; i++) {
            r[i].share = 0;
            r[i].share_n = 5;
        }
        CHECK(op_generate(m, r, N, &(op_generate_options){0}, e));
        double counts[61] = {0}, chi = 0;
        int kinds = 0;
        for (int i = 0; i < N; i++) {
            counts[r[i].tokens[0]]++;
            op_request_release(&r[i]);
        }
        for (int v = 0; v < 61; v++) {
            kinds += counts[v] > 0;
            double expected = N * prob[v] / total;
            if (!top_k && expected > 5)
                chi += (counts[v] - expected) * (counts[v] - expected) / expected;
        }
        if (top_k)
            assert_int_equal(kinds, K);
        else
            assert_true(chi < 110); /* 60 degrees of freedom: beyond this once in 10,000 */
    }
    free(r);
    op_pass_free(p);
    op_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_tokens_and_their_logprobs_are_those_of_the_training_forward),
        cmocka_unit_test(a_request_gives_the_same_bits_alone_and_in_any_batch),
        cmocka_unit_test(so_it_does_beside_requests_with_other_adapters_and_with_none),
        cmocka_unit_test(a_shared_prefix_changes_nothing_but_the_work),
        cmocka_unit_test(gate_and_stop_callbacks_are_obeyed),
        cmocka_unit_test(draws_follow_the_distribution_and_its_truncations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
