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
    static const char *const levels[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4 bf16"};
    const char *best = op_ops_simd();
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++)
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

static int32_t likeliest_of(const float *logits, int32_t V)
{
    int32_t best = 0;
    for (int32_t v = 1; v < V; v++)
        best = logits[v] > logits[best] ? v : best;
    return best;
}

static void a_repetition_penalty_reaches_the_end_of_a_text_longer_than_the_vocabulary(void **state)
{
    (void)state;
    enum { V = 8, N = 20 };
    op_model_config c = {.family = OP_LLAMA, .vocab = V, .width = 32, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 64,
                         .max_positions = 64, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1, .pad = -1};
    op_model *m;
    op_pass *pass;
    int changed = 0;
    CHECK(op_model_new(&m, &c, &(op_model_options){.act = OP_F32, .seed = 3}, e));
    CHECK(op_pass_new(&pass, m, e));
    for (int32_t k = 1; k < V; k++) {
        int32_t ids[N] = {0};
        float logits[V];
        op_sampling o = greedy;
        o.repetition_penalty = 100;
        o.max_tokens = 1;
        for (int t = N / 2; t < N; t++)
            ids[t] = k;
        CHECK(op_model_forward(m, pass, &(op_batch){N, 1, ids, &(op_seq){0, N, -1, 0, -1}}, &(op_how){0}, e));
        CHECK(op_model_logits(m, pass, (int32_t[]){N - 1}, 1, logits, e));
        int32_t before = likeliest_of(logits, V);
        for (int32_t v = 0; v <= k; v += k)
            logits[v] *= logits[v] > 0 ? 0.01f : 100;
        changed += before != likeliest_of(logits, V);
        op_request r = request(ids, N, o);
        CHECK(op_generate(m, &r, 1, &(op_generate_options){0}, e));
        assert_int_equal(r.tokens[0], likeliest_of(logits, V));
        op_request_release(&r);
    }
    assert_true(changed > 1);
    op_pass_free(pass);
    op_model_free(m);
}

/* The tokens that the settings leave, by the definition: sorted, cut, cut again; p[V] becomes their probabilities. */
static void truncate_plainly(int32_t V, double *p, const op_sampling *o)
{
    double total = 0, sum = 0, least = 0, most = 0;
    for (int32_t k = 0; k < V; k++) { /* the k-th likeliest is the largest that is smaller than `limit` */
        double limit = k ? least : INFINITY, next = 0;
        for (int32_t v = 0; v < V; v++)
            next = p[v] < limit && p[v] > next ? p[v] : next;
        if ((o->top_k && k >= o->top_k) || next <= 0)
            break;
        least = next;
        most = k ? most : next;
        total += next;
    }
    double all = total, floor_k = least;
    least = INFINITY;
    for (bool more = o->top_p < 1; more && sum < o->top_p * all;) {
        double next = 0;
        for (int32_t v = 0; v < V; v++)
            next = p[v] < least && p[v] > next ? p[v] : next;
        sum += least = next;
    }
    least = o->top_p < 1 ? least : floor_k;
    least = fmax(least, o->min_p * most);
    total = 0;
    for (int32_t v = 0; v < V; v++)
        total += p[v] = p[v] >= least * (1 - 1e-5) ? p[v] : 0;
    for (int32_t v = 0; v < V; v++)
        p[v] /= total;
}

static void truncations_keep_what_their_definitions_say(void **state)
{
    (void)state;
    enum { V = 1000, N = 600, SETTINGS = 9 };
    static const op_sampling settings[SETTINGS] = {
        {.top_p = 1}, {.top_k = 1, .top_p = 1}, {.top_k = 3, .top_p = 1}, {.top_k = 200, .top_p = 1}, {.top_p = 0.2}, {.top_p = 0.95},
        {.top_p = 1, .min_p = 0.3}, {.top_k = 150, .top_p = 0.7}, {.top_k = 100, .top_p = 0.8, .min_p = 0.1}};
    op_model_config c = {.family = OP_LLAMA, .vocab = V, .width = 32, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 64,
                         .max_positions = 64, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1, .pad = -1};
    op_model *m;
    op_pass *pass;
    CHECK(op_model_new(&m, &c, &(op_model_options){.act = OP_F32, .seed = 3}, e));
    CHECK(op_pass_new(&pass, m, e));
    float logits[V];
    CHECK(op_model_forward(m, pass, &(op_batch){6, 1, prompt, &(op_seq){0, 6, -1, 0, -1}}, &(op_how){0}, e));
    CHECK(op_model_logits(m, pass, (int32_t[]){5}, 1, logits, e));
    op_request *r = malloc(N * sizeof *r);
    for (int k = 0; k < SETTINGS; k++) {
        op_sampling o = settings[k];
        o.temperature = 0.05;
        o.repetition_penalty = o.max_tokens = 1;
        double p[V], expected = 0, variance = 0, seen = 0;
        for (int v = 0; v < V; v++)
            p[v] = exp((double)logits[v] / o.temperature);
        truncate_plainly(V, p, &o);
        for (int i = 0; i < N; i++) {
            o.seed = (uint64_t)(1000 * k + i);
            r[i] = request(prompt, 6, o);
            r[i].share = i ? 0 : -1;
            r[i].share_n = i ? 5 : 0;
        }
        CHECK(op_generate(m, r, N, &(op_generate_options){0}, e));
        for (int v = 0; v < V; v++) { /* the mean of a number that goes with the token is as the probabilities say */
            expected += p[v] * sin(v);
            variance += p[v] * sin(v) * sin(v);
        }
        for (int i = 0; i < N; i++) {
            if (!(p[r[i].tokens[0]] > 0))
                fail_msg("setting %d: token %d was drawn", k, r[i].tokens[0]);
            seen += sin(r[i].tokens[0]) / N;
            op_request_release(&r[i]);
        }
        variance -= expected * expected;
        if (!(fabs(seen - expected) <= 4.5 * sqrt(fmax(variance, 0) / N) + 1e-9)) /* beyond this once in 100,000 */
            fail_msg("setting %d: mean %g, expected %g", k, seen, expected);
    }
    free(r);
    op_pass_free(pass);
    op_model_free(m);
}

static void quantised_weights_keep_a_request_its_own_and_give_its_logprobs_again(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        op_model *m = open_fixture_model(k < 2 ? "qwen3" : "gpt2", (op_model_options){.act = k % 2 ? OP_BF16 : OP_F32, .weights = OP_WEIGHTS_QUANTISED});
        check_independence(m);
        op_request r = request(prompt, 9, greedy);
        CHECK(op_generate(m, &r, 1, &(op_generate_options){.ignore_eos = true}, e));
        int32_t ids[21];
        memcpy(ids, prompt, 9 * sizeof *ids);
        memcpy(ids + 9, r.tokens, 12 * sizeof *ids);
        op_pass *p;
        float logp[21];
        CHECK(op_pass_new(&p, m, e));
        CHECK(op_model_forward(m, p, &(op_batch){21, 1, ids, &(op_seq){0, 21, -1, 0, -1}}, &(op_how){0}, e));
        CHECK(op_model_logprobs(m, p, NULL, NULL, logp, e));
        for (int t = 9; t < 21; t++)
            assert_true(fabs((double)logp[t] - r.logprobs[t - 9]) < 0.2);
        op_request_release(&r);
        op_pass_free(p);
        op_model_free(m);
    }
    char path[512];
    op_model *m;
    op_error e = {0};
    snprintf(path, sizeof path, "%s/llama", FIXTURES);
    assert_int_equal(op_model_open(&m, path, &(op_model_options){.trainable = OP_TRAIN_ADAPTER, .weights = OP_WEIGHTS_QUANTISED, .lora = {.rank = 2}}, &e), OP_ERR_ARG);
    assert_non_null(strstr(e.message, "cannot be trained"));
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
        cmocka_unit_test(a_repetition_penalty_reaches_the_end_of_a_text_longer_than_the_vocabulary),
        cmocka_unit_test(truncations_keep_what_their_definitions_say),
        cmocka_unit_test(quantised_weights_keep_a_request_its_own_and_give_its_logprobs_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
