/* Vectors from models and back. */
#include "tools.h"

#include <signal.h>
#include <sys/resource.h>

#include <operant/log.h>

#include "io/gguf.h"
#include "model/gguf_out.h"

/* A base model, and trained ones, in the directory. */
static void make_models(op_family family)
{
    save_model(new_model(tiny(family), 1), "base", OP_F32);
    op_model *m = new_model(tiny(family), 1);
    disturb(m, 0.01, 2, "");
    save_model(m, "trained", OP_F32);
}

static int set_up(void **state)
{
    if (make_test_dir(state))
        return -1;
    make_models(OP_LLAMA);
    return 0;
}

static void clear(const char *name)
{
    assert_ok(op_path_remove(at(name), e));
}

static void hash_of(const char *name, char hex[65])
{
    assert_ok(op_weights_sha256(at(name), hex, e));
}

static void assert_same_weights(const char *a, const char *b)
{
    char x[65], y[65];
    hash_of(a, x);
    hash_of(b, y);
    assert_string_equal(x, y);
}

/* ---- reading ---- */

static void save_gguf(op_model *m, const char *name)
{
    op_gguf_writer *w = op_gguf_writer_new();
    void *sources;
    assert_ok(op_model_put_gguf(m, w, OP_F32, &sources, e));
    assert_ok(op_gguf_save(w, at(name), e));
    free(sources);
    op_gguf_writer_free(w);
}

static void a_directory_and_a_gguf_of_the_same_weights_have_the_same_hash(void **state)
{
    (void)state;
    static const op_family families[] = {OP_LLAMA, OP_QWEN2, OP_QWEN3, OP_GPT2};
    for (int i = 0; i < 4; i++) {
        op_model *m = new_model(tiny(families[i]), 5);
        disturb(m, 0.1, 6, "");
        save_gguf(m, "m.gguf");
        save_model(m, "dir", OP_F32);
        assert_same_weights("dir", "m.gguf");
        clear("dir");
        clear("m.gguf");
    }
}

static void one_changed_element_changes_the_hash(void **state)
{
    (void)state;
    op_model *m = new_model(tiny(OP_LLAMA), 1);
    op_params p = op_model_params(m);
    p.values[p.n - 1] = nextafterf(p.values[p.n - 1], 2);
    save_model(m, "near", OP_F32);
    char x[65], y[65];
    hash_of("near", x);
    hash_of("base", y);
    assert_string_not_equal(x, y);
    clear("near");
}

static void make_adapter(const char *base, const char *name, bool rslora)
{
    op_model *m;
    op_model_options o = {.trainable = OP_TRAIN_ADAPTER, .lora = {.rank = 3, .alpha = 5, .targets = OP_LORA_ALL, .rslora = rslora}, .seed = 4};
    assert_ok(op_model_open(&m, at(base), &o, e));
    disturb(m, 0.05, 7, "");
    assert_ok(op_dir_make(at(name), e));
    assert_ok(op_model_adapter_save(m, 0, at(name), at(base), e));
    op_model_free(m);
}

static void fold(const char *adapter, const char *name)
{
    op_model *m;
    assert_ok(op_model_open(&m, at(adapter), &(op_model_options){.act = OP_F32}, e));
    assert_ok(op_model_adapter_merge(m, 0, e));
    save_model(m, name, OP_F32);
}

/* All tensors of two models or vectors within `most` of one another. */
static void assert_near(const char *a, const char *b, double most)
{
    op_weights *x, *y;
    assert_ok(op_weights_open(&x, at(a), 0, e));
    assert_ok(op_weights_open(&y, at(b), 0, e));
    assert_int_equal(op_weights_count(x), op_weights_count(y));
    for (size_t i = 0; i < op_weights_count(x); i++) {
        const op_weights_tensor *t = op_weights_at(x, i), *u = op_weights_find(y, t->name);
        assert_non_null(u);
        assert_int_equal(t->count, u->count);
        float *p = malloc((size_t)t->count * sizeof *p), *q = malloc((size_t)t->count * sizeof *q);
        assert_ok(op_weights_read(x, t, p, e));
        assert_ok(op_weights_read(y, u, q, e));
        for (int64_t k = 0; k < t->count; k++)
            if (!(fabs((double)p[k] - q[k]) <= most))
                fail_msg("%s and %s differ in %s at %lld: %g and %g", a, b, t->name, (long long)k, (double)p[k], (double)q[k]);
        free(p);
        free(q);
    }
    op_weights_close(x);
    op_weights_close(y);
}

static void an_adapter_reads_as_the_model_that_has_it_folded_in(void **state)
{
    (void)state;
    static const op_family families[] = {OP_LLAMA, OP_GPT2};
    for (int i = 0; i < 2; i++) {
        save_model(new_model(tiny(families[i]), 1), "plain", OP_F32);
        make_adapter("plain", "lora", i);
        fold("lora", "folded");
        assert_near("lora", "folded", 1e-7);
        clear("plain");
        clear("lora");
        clear("folded");
    }
}

/* ---- extract and add ---- */

static void extract(const char *model, const char *base, const char *output, op_dtype dtype)
{
    assert_ok(op_vector_extract(at(model), at(base), at(output), &(op_vector_options){.dtype = dtype}, e));
}

static void add(const char *base, const char *vector, double scale, const char *output, op_vector_options o)
{
    op_vector_term t = {at(vector), scale};
    assert_ok(op_vector_add(at(base), &t, 1, at(output), &o, e));
}

/* Weights of all sizes, and a training that changes some a little, some wholly, some in sign, and leaves some as they are. */
static void spread(op_model *m, bool trained)
{
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++) {
        double size = ldexp(op_rng_normal(8, OP_STREAM_TEST, i), -(int)(i % 37));
        double how = op_rng_uniform(9, OP_STREAM_TEST, i), noise = op_rng_normal(10, OP_STREAM_TEST, i);
        p.values[i] = (float)size;
        if (trained)
            p.values[i] = (float)(how < 0.4 ? size * (1 + 1e-3 * noise) : how < 0.6 ? size + noise : how < 0.7 ? -size : how < 0.8 ? ldexp(noise, -60) : how < 0.9 ? 0 : size);
    }
}

/* Each element of `found` against that of `expected`, with the bounds of operant/vector.h: u(|a| + |b|) of two others, and the rounding of `dtype`. */
static void assert_restored(const char *found, const char *expected, const char *base, double rounding, bool bits)
{
    op_weights *x, *y, *z;
    assert_ok(op_weights_open(&x, at(found), 0, e));
    assert_ok(op_weights_open(&y, at(expected), 0, e));
    assert_ok(op_weights_open(&z, at(base), 0, e));
    size_t exact = 0, all = 0;
    for (size_t i = 0; i < op_weights_count(y); i++) {
        const op_weights_tensor *t = op_weights_at(y, i);
        float *f = malloc((size_t)t->count * sizeof *f), *w = malloc((size_t)t->count * sizeof *w), *b = malloc((size_t)t->count * sizeof *b);
        assert_ok(op_weights_read(x, op_weights_find(x, t->name), f, e));
        assert_ok(op_weights_read(y, t, w, e));
        assert_ok(op_weights_read(z, op_weights_find(z, t->name), b, e));
        for (int64_t k = 0; k < t->count; k++, all++) {
            double W = w[k], B = b[k], bound = ldexp(fabs(W) + fabs(B), -23) + rounding * (fabs(W) + fabs(W - B));
            if (!(fabs(f[k] - W) <= bound))
                fail_msg("%s %lld: %.9g, expected %.9g within %g", t->name, (long long)k, (double)f[k], W, bound);
            bool close = B * W >= 0 && fabs(B) / 2 <= fabs(W) && fabs(W) <= 2 * fabs(B);
            if (bits && close && memcmp(&f[k], &w[k], 4))
                fail_msg("%s %lld: %.9g is not the very %.9g", t->name, (long long)k, (double)f[k], W);
            exact += f[k] == w[k];
        }
        free(f);
        free(w);
        free(b);
    }
    if (bits && exact * 2 < all)
        fail_msg("only %zu of %zu are exact: the test does not test", exact, all);
    op_weights_close(x);
    op_weights_close(y);
    op_weights_close(z);
}

static void extracting_and_adding_restores_the_weights_within_the_bound(void **state)
{
    (void)state;
    static const op_family families[] = {OP_LLAMA, OP_GPT2};
    for (int i = 0; i < 2; i++) {
        for (int trained = 0; trained < 2; trained++) {
            op_model *m = new_model(tiny(families[i]), 1);
            spread(m, trained);
            save_model(m, trained ? "after" : "before", OP_F32);
        }
        extract("after", "before", "v.safetensors", OP_F32);
        add("before", "v.safetensors", 1, "again", plain());
        assert_restored("again", "after", "before", 0, true);
        extract("after", "before", "half.safetensors", OP_BF16);
        add("before", "half.safetensors", 1, "rough", forced(OP_BF16));
        assert_restored("rough", "after", "before", 0x1p-8, false);
        clear("before");
        clear("after");
        clear("again");
        clear("rough");
    }
}

/* base - tau + tau: the error is at most 2u (|base| + |tau|), and |tau| <= |trained| + |base|, so that twice the bound holds. */
static void taking_away_and_adding_again_restores_the_weights_within_the_bound(void **state)
{
    (void)state;
    for (int trained = 0; trained < 2; trained++) {
        op_model *m = new_model(tiny(OP_LLAMA), 1);
        spread(m, trained);
        save_model(m, trained ? "after" : "before", OP_F32);
    }
    extract("after", "before", "v.safetensors", OP_F32);
    add("before", "v.safetensors", -1, "less", plain());
    add("less", "v.safetensors", 1, "again", forced(OP_DTYPE_COUNT));
    op_weights *w;
    assert_ok(op_weights_open(&w, at("before"), 0, e));
    for (size_t i = 0; i < op_weights_count(w); i++) {
        const char *name = op_weights_at(w, i)->name;
        int64_t n;
        float *b = tensor_of(at("before"), name, &n), *f = tensor_of(at("again"), name, NULL), *a = tensor_of(at("after"), name, NULL);
        for (int64_t k = 0; k < n; k++) {
            double bound = ldexp(fabs((double)b[k]) + fabs((double)a[k] - b[k]), -23);
            if (!(fabs((double)f[k] - b[k]) <= bound))
                fail_msg("%s %lld: %.9g, expected %.9g within %g", name, (long long)k, (double)f[k], (double)b[k], bound);
        }
        free(a);
        free(b);
        free(f);
    }
    op_weights_close(w);
    clear("before");
    clear("after");
    clear("less");
    clear("again");
}

static void the_result_is_a_model_that_opens_with_the_base_s_configuration(void **state)
{
    (void)state;
    op_model *m;
    extract("trained", "base", "v.safetensors", OP_F32);
    add("base", "v.safetensors", 0.5, "half", plain());
    assert_ok(op_model_open(&m, at("half"), &(op_model_options){.act = OP_F32}, e));
    assert_int_equal(op_model_get_config(m)->layers, 3);
    assert_int_equal(op_model_get_config(m)->eos[0], 2);
    op_model_free(m);
    clear("half");
    op_model *g = new_model(tiny(OP_LLAMA), 1);
    save_gguf(g, "base.gguf");
    op_model_free(g);
    add("base.gguf", "v.safetensors", 1, "from-gguf", plain());
    assert_near("from-gguf", "trained", 1e-7);
    assert_ok(op_model_open(&m, at("from-gguf"), &(op_model_options){.act = OP_F32}, e));
    op_model_free(m);
    clear("from-gguf");
    clear("base.gguf");
}

static void several_vectors_add_up_with_their_scales(void **state)
{
    (void)state;
    op_model *m = new_model(tiny(OP_LLAMA), 1);
    disturb(m, 0.02, 3, "mlp");
    save_model(m, "other", OP_F32);
    extract("trained", "base", "v.safetensors", OP_F32);
    extract("other", "base", "w.safetensors", OP_F32);
    op_vector_term t[] = {{at("v.safetensors"), 0.5}, {at("w.safetensors"), -2}};
    op_vector_options o = plain();
    assert_ok(op_vector_add(at("base"), t, 2, at("sum"), &o, e));
    int64_t n;
    const char *name = "model.layers.1.mlp.up_proj.weight";
    float *b = tensor_of(at("base"), name, &n), *v = tensor_of(at("trained"), name, NULL), *w = tensor_of(at("other"), name, NULL),
          *s = tensor_of(at("sum"), name, NULL);
    for (int64_t k = 0; k < n; k++)
        assert_float_equal(s[k], b[k] + 0.5 * (v[k] - b[k]) - 2 * (w[k] - b[k]), 1e-6);
    free(b);
    free(v);
    free(w);
    free(s);
    clear("sum");
    clear("other");
}

static void what_did_not_change_is_left_out(void **state)
{
    (void)state;
    op_model *m = new_model(tiny(OP_LLAMA), 1);
    disturb(m, 0.02, 3, "layers.1.mlp");
    save_model(m, "other", OP_F32);
    extract("other", "base", "w.safetensors", OP_F32);
    op_tensors *t;
    assert_ok(op_tensors_open(&t, at("w.safetensors"), e));
    assert_int_equal(op_tensors_count(t), 3);
    assert_non_null(op_tensors_find(t, "model.layers.1.mlp.gate_proj.weight"));
    char base[65];
    hash_of("base", base);
    assert_string_equal(op_tensors_meta_string(t, "operant.base.sha256", NULL), base);
    hash_of("other", base);
    assert_string_equal(op_tensors_meta_string(t, "operant.model.sha256", NULL), base);
    op_tensors_close(t);
    op_vector_options o = plain();
    assert_fails(op_vector_extract(at("base"), at("base"), at("none.safetensors"), &o, e), OP_ERR_ARG, "there is no vector between them");
    clear("other");
}

static void only_the_layers_and_kinds_asked_for_are_taken(void **state)
{
    (void)state;
    op_vector_options o = plain();
    o.layers = "0,2-9";
    o.kinds = "q_proj,mlp";
    assert_ok(op_vector_extract(at("trained"), at("base"), at("some.safetensors"), &o, e));
    op_tensors *t;
    assert_ok(op_tensors_open(&t, at("some.safetensors"), e));
    assert_int_equal(op_tensors_count(t), 8);
    assert_null(op_tensors_find(t, "model.layers.1.mlp.up_proj.weight"));
    assert_non_null(op_tensors_find(t, "model.layers.2.self_attn.q_proj.weight"));
    op_tensors_close(t);
    o.layers = "5";
    assert_fails(op_vector_extract(at("trained"), at("base"), at("none.safetensors"), &o, e), OP_ERR_ARG, "in the layers and kinds asked for");
    o.layers = "3-1";
    assert_fails(op_vector_extract(at("trained"), at("base"), at("none.safetensors"), &o, e), OP_ERR_ARG, "layers \"3-1\"");
    assert_false(op_path_exists(at("none.safetensors")));
}

static char logged[1024];

static void keep_log(void *ctx, op_log_level level, const char *message)
{
    (void)ctx, (void)level;
    snprintf(logged, sizeof logged, "%s", message);
}

static void a_vector_that_is_mostly_rounding_is_told_of(void **state)
{
    (void)state;
    static const struct {
        double learned;
        op_dtype dtype;
        const char *says;
    } cases[] = {{1e-5, OP_BF16, "is the rounding with which"}, {1e-5, OP_F16, "is the rounding with which"}, {1e-5, OP_F32, ""}, {1e-2, OP_BF16, ""}};
    op_log_set(keep_log, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        op_model *m = new_model(tiny(OP_LLAMA), 1);
        disturb(m, cases[i].learned, 2, "");
        save_model(m, "m", cases[i].dtype);
        *logged = 0;
        extract("m", "base", "x.safetensors", OP_F32);
        if (!strstr(logged, cases[i].says) || !*cases[i].says != !*logged)
            fail_msg("case %zu: found \"%s\", expected \"%s\"", i, logged, cases[i].says);
        clear("m");
        clear("x.safetensors");
    }
    op_log_set(NULL, NULL);
}

static void applying_in_memory_gives_what_adding_writes(void **state)
{
    (void)state;
    static const op_family families[] = {OP_LLAMA, OP_GPT2};
    for (int i = 0; i < 2; i++) {
        op_model *m = new_model(tiny(families[i]), 3);
        save_model(m, "from", OP_F32);
        m = new_model(tiny(families[i]), 3);
        disturb(m, 0.01, 2, "");
        save_model(m, "to", OP_F32);
        extract("to", "from", "a.safetensors", OP_F32);
        add("from", "a.safetensors", -0.75, "less", plain());
        op_vector_term t = {at("a.safetensors"), -0.75};
        op_vector_options o = plain();
        assert_ok(op_model_open(&m, at("from"), &(op_model_options){.trainable = OP_TRAIN_ALL}, e));
        assert_ok(op_vector_apply(m, &t, 1, &o, e));
        save_model(m, "applied", OP_F32);
        assert_same_weights("applied", "less");
        assert_ok(op_model_open(&m, at("to"), &(op_model_options){.act = OP_F32}, e));
        assert_fails(op_vector_apply(m, &t, 1, &o, e), OP_ERR_MISMATCH, "was taken from other weights");
        op_model_free(m);
        clear("from");
        clear("to");
        clear("less");
        clear("applied");
    }
}

/* ---- adapters ---- */

static void the_vector_of_an_adapter_is_small_and_leads_to_the_folded_model(void **state)
{
    (void)state;
    static const op_family families[] = {OP_LLAMA, OP_GPT2};
    for (int i = 0; i < 2; i++) {
        save_model(new_model(tiny(families[i]), 1), "plain", OP_F32);
        make_adapter("plain", "lora", false);
        fold("lora", "folded");
        op_vector_options o = plain();
        assert_ok(op_vector_extract(at("lora"), NULL, at("lora.safetensors"), &o, e));
        op_tensors *t;
        assert_ok(op_tensors_open(&t, at("lora.safetensors"), e));
        assert_non_null(op_tensors_find(t, i ? "transformer.h.0.mlp.c_fc.weight.lora_B" : "model.layers.0.mlp.up_proj.weight.lora_B"));
        op_tensors_close(t);
        add("plain", "lora.safetensors", 1, "sum", plain());
        assert_near("sum", "folded", 1e-6);
        clear("sum");
        add("plain", "lora", 1, "sum", plain()); /* the directory itself */
        assert_near("sum", "folded", 1e-6);
        clear("sum");
        add("lora", "lora.safetensors", -1, "sum", forced(OP_F32)); /* taken away from the adapted model */
        assert_near("sum", "plain", 1e-6);
        clear("sum");
        clear("plain");
        clear("lora");
        clear("folded");
    }
}

/* ---- combine and random ---- */

static double gram_at(const char *a, const char *b)
{
    const char *paths[] = {at(a), at(b)};
    double g[4];
    op_vector_options o = plain();
    assert_ok(op_vector_gram(paths, 2, g, &o, e));
    assert_float_equal(g[1], g[2], 0);
    return g[1];
}

static void a_combination_is_scaled_and_orthogonal_to_what_it_is_told(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        char name[32];
        op_model *m = new_model(tiny(OP_LLAMA), 1);
        disturb(m, 0.01, 20, "");
        disturb(m, 0.01, 30 + (uint64_t)k, k == 2 ? "self_attn" : "");
        save_model(m, "m", OP_F32);
        snprintf(name, sizeof name, "%d.safetensors", k);
        extract("m", "base", name, OP_F32);
        clear("m");
    }
    op_vector_term t[] = {{at("0.safetensors"), 3}};
    const char *against[] = {at("1.safetensors"), at("2.safetensors"), at("1.safetensors")}; /* one of them twice: a dependent direction */
    op_vector_options o = plain();
    assert_ok(op_vector_combine(t, 1, NULL, 0, at("c.safetensors"), &o, e));
    assert_true(fabs(gram_at("c.safetensors", "0.safetensors") / (3 * gram_at("0.safetensors", "0.safetensors")) - 1) < 1e-6);
    assert_true(gram_at("0.safetensors", "1.safetensors") > 0.3 * gram_at("0.safetensors", "0.safetensors"));
    assert_ok(op_vector_combine(t, 1, against, 3, at("c.safetensors"), &o, e));
    double size = gram_at("c.safetensors", "c.safetensors");
    assert_true(size > 0);
    assert_true(fabs(gram_at("c.safetensors", "1.safetensors")) < 1e-6 * size);
    assert_true(fabs(gram_at("c.safetensors", "2.safetensors")) < 1e-6 * size);
    add("base", "c.safetensors", 1, "sum", plain()); /* its base is the same */
    clear("sum");
}

static void a_random_vector_has_the_norm_of_each_tensor_and_its_seed_s_bits(void **state)
{
    (void)state;
    extract("trained", "base", "v.safetensors", OP_F32);
    op_vector_options o = plain();
    assert_ok(op_vector_random(at("v.safetensors"), 1, at("r.safetensors"), &o, e));
    assert_ok(op_vector_random(at("v.safetensors"), 1, at("again.safetensors"), &o, e));
    assert_ok(op_vector_random(at("v.safetensors"), 2, at("s.safetensors"), &o, e));
    assert_same_weights("r.safetensors", "again.safetensors");
    op_weights *w;
    assert_ok(op_weights_open(&w, at("v.safetensors"), 0, e));
    for (size_t i = 0; i < op_weights_count(w); i++) {
        int64_t n;
        float *v = tensor_of(at("v.safetensors"), op_weights_at(w, i)->name, &n), *r = tensor_of(at("r.safetensors"), op_weights_at(w, i)->name, NULL);
        assert_true(fabs(op_dot(r, r, n) / op_dot(v, v, n) - 1) < 1e-5);
        free(v);
        free(r);
    }
    op_weights_close(w);
    double all = gram_at("v.safetensors", "v.safetensors");
    assert_true(fabs(gram_at("r.safetensors", "v.safetensors")) < 0.05 * all);
    assert_true(fabs(gram_at("r.safetensors", "s.safetensors")) < 0.05 * all);
}

/* ---- refusals ---- */

static void another_base_is_refused_unless_forced(void **state)
{
    (void)state;
    extract("trained", "base", "v.safetensors", OP_F32);
    op_vector_term t = {at("v.safetensors"), 1};
    op_vector_options o = plain();
    int before = entries();
    assert_fails(op_vector_add(at("trained"), &t, 1, at("out"), &o, e), OP_ERR_MISMATCH, "was taken from other weights");
    assert_int_equal(entries(), before);
    o.force = true;
    assert_ok(op_vector_add(at("trained"), &t, 1, at("out"), &o, e));
    clear("out");
    json_t *j;
    o.force = false;
    assert_fails(op_vector_info(at("v.safetensors"), at("trained"), 4, &o, &j, e), OP_ERR_MISMATCH, "was taken from other weights");
    put_vector("stray.safetensors", SOME_BASE, (given[]){{"model.norm.weight", 32, 0, (float[32]){1}}}, 1);
    op_vector_term two[] = {{at("v.safetensors"), 1}, {at("stray.safetensors"), 1}};
    assert_fails(op_vector_combine(two, 2, NULL, 0, at("c.safetensors"), &o, e), OP_ERR_MISMATCH, "belongs to another base (0123456789ab...)");
}

/* A copy of "base" whose safetensors lacks or changes one tensor. */
static void make_broken(const char *name, const char *which, int how)
{
    enum { DROP, RESHAPE, NOT_A_NUMBER };
    op_tensors *t;
    op_tensor_out out[64];
    size_t n = 0;
    static float bad[64 * 64];
    assert_ok(op_dir_make(at(name), e));
    assert_ok(op_tensors_open(&t, at("base"), e));
    for (size_t i = 0; i < op_tensors_count(t); i++) {
        const op_tensor *x = op_tensors_at(t, i);
        op_tensor_out o = {.name = x->name, .dtype = x->dtype, .rank = x->rank, .shape = {x->shape[0], x->shape[1]}, .data = x->data};
        bool it = !strcmp(x->name, which);
        if (it && how == DROP)
            continue;
        if (it && how == RESHAPE) {
            o.shape[0] += 1;
            o.data = bad;
        }
        if (it && how == NOT_A_NUMBER) {
            memcpy(bad, x->data, x->bytes);
            bad[5] = NAN;
            o.data = bad;
        }
        out[n++] = o;
    }
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors", at(name));
    assert_ok(op_safetensors_write(path, out, n, NULL, 0, e));
    op_tensors_close(t);
}

static void missing_tensors_other_shapes_and_what_is_no_number_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        int how;
        op_status status;
        const char *says, *adding;
    } cases[] = {
        {"model.layers.1.mlp.up_proj.weight", 0, OP_ERR_MISMATCH, "tensor \"model.layers.1.mlp.up_proj.weight\"", "is missing"},
        {"model.layers.2.self_attn.k_proj.weight", 1, OP_ERR_MISMATCH, "tensor \"model.layers.2.self_attn.k_proj.weight\" has another shape", "another shape"},
        {"model.embed_tokens.weight", 1, OP_ERR_MISMATCH, "the vocabulary has 4", "another shape"},
        {"model.layers.0.self_attn.q_proj.weight", 2, OP_ERR_FORMAT, "element 5 is not finite", "element 5 is not finite"},
    };
    extract("trained", "base", "v.safetensors", OP_F32);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        op_vector_options o = forced(OP_DTYPE_COUNT);
        op_vector_term t = {at("v.safetensors"), 1};
        make_broken("broken", cases[i].tensor, cases[i].how);
        int before = entries();
        assert_fails(op_vector_extract(at("broken"), at("base"), at("x.safetensors"), &o, e), cases[i].status, cases[i].says);
        assert_fails(op_vector_extract(at("base"), at("broken"), at("x.safetensors"), &o, e), cases[i].status, cases[i].says);
        assert_fails(op_vector_add(at("broken"), &t, 1, at("out"), &o, e), cases[i].status, cases[i].adding);
        assert_int_equal(entries(), before);
        clear("broken");
    }
}

static void what_is_no_vector_and_names_that_are_taken_are_refused(void **state)
{
    (void)state;
    op_vector_options o = plain();
    extract("trained", "base", "v.safetensors", OP_F32);
    op_vector_term model = {at("trained"), 1}, v = {at("v.safetensors"), 1}, far = {v.path, INFINITY};
    assert_fails(op_vector_add(at("base"), &model, 1, at("out"), &o, e), OP_ERR_FORMAT, "found a model, expected a vector");
    assert_fails(op_vector_add(at("base"), &v, 1, at("base"), &o, e), OP_ERR_ARG, "is there already");
    assert_fails(op_vector_add(at("base"), &v, 1, at("v.safetensors"), &o, e), OP_ERR_ARG, "is there already");
    assert_fails(op_vector_add(at("base"), &far, 1, at("out"), &o, e), OP_ERR_ARG, "is not finite");
    assert_fails(op_vector_extract(at("trained"), at("base"), at("v"), &o, e), OP_ERR_ARG, "ends in .safetensors");
    assert_fails(op_vector_extract(at("trained"), NULL, at("x.safetensors"), &o, e), OP_ERR_ARG, "its base is needed");
    assert_fails(op_vector_extract(at("nowhere"), at("base"), at("x.safetensors"), &o, e), OP_ERR_IO, "nowhere");
    far.scale = 1e9;
    o.dtype = OP_F16;
    assert_fails(op_vector_add(at("base"), &far, 1, at("out"), &o, e), OP_ERR_FORMAT, "F16 cannot hold");
    assert_false(op_path_exists(at("out")));
    assert_false(op_path_exists(at("x.safetensors")));
}

static void put_words(const char *model, const char *fixture)
{
    char path[512];
    op_buf b;
    op_buf_init(&b, 1 << 22);
    snprintf(path, sizeof path, "%s/%s", FIXTURES, fixture);
    assert_ok(op_file_read(path, &b, e));
    snprintf(path, sizeof path, "%s/tokenizer.json", at(model));
    assert_ok(op_file_put(path, b.data, b.len, e));
    op_buf_release(&b);
}

static void models_with_other_words_have_no_vector_between_them(void **state)
{
    (void)state;
    op_vector_options o = plain();
    int before = entries();
    put_words("base", "smollm.json");
    put_words("trained", "qwen2.json");
    assert_fails(op_vector_extract(at("trained"), at("base"), at("x.safetensors"), &o, e), OP_ERR_MISMATCH, "their vocabularies differ");
    assert_int_equal(entries(), before);
    put_words("trained", "smollm.json");
    assert_ok(op_vector_extract(at("trained"), at("base"), at("x.safetensors"), &o, e));
    clear("x.safetensors");
    clear("base/tokenizer.json");
    clear("trained/tokenizer.json");
}

static void a_full_disk_leaves_nothing_behind(void **state)
{
    (void)state;
    extract("trained", "base", "v.safetensors", OP_F32);
    op_vector_options o = plain();
    op_vector_term t = {at("v.safetensors"), 1};
    int before = entries();
    struct rlimit kept, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &kept), 0);
    small = (struct rlimit){50000, kept.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    op_status taken = op_vector_extract(at("trained"), at("base"), at("x.safetensors"), &o, e), added = op_vector_add(at("base"), &t, 1, at("out"), &o, e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &kept), 0);
    assert_int_equal(taken, OP_ERR_IO);
    assert_fails(added, OP_ERR_IO, "cannot write");
    assert_int_equal(entries(), before);
}

static bool stop_at_the_fifth(void *ctx, size_t done, size_t total)
{
    (void)total;
    *(size_t *)ctx = done;
    return done < 5;
}

static void who_watches_may_stop_it_and_nothing_is_left(void **state)
{
    (void)state;
    extract("trained", "base", "v.safetensors", OP_F32);
    size_t done = 0;
    op_vector_options o = {.dtype = OP_F32, .watch = stop_at_the_fifth, .ctx = &done};
    op_vector_term t = {at("v.safetensors"), 1};
    int before = entries();
    assert_fails(op_vector_add(at("base"), &t, 1, at("out"), &o, e), OP_ERR_INTERRUPTED, "interrupted");
    assert_int_equal(done, 5);
    assert_fails(op_vector_extract(at("trained"), at("base"), at("x.safetensors"), &o, e), OP_ERR_INTERRUPTED, "interrupted");
    assert_int_equal(entries(), before);
}

/* ---- memory ---- */

static op_status everything(void *ctx, op_error *err)
{
    (void)ctx;
    op_vector_options o = plain();
    json_t *j = NULL;
    const char *v = at("m.safetensors"), *a = at("lora"), *r = at("mr.safetensors");
    op_vector_term t[] = {{v, 1}, {a, 0.5}};
    const char *paths[] = {v, a}, *against[] = {a};
    op_path_remove(at("mo"), NULL);
    op_status s = op_vector_extract(at("trained"), at("base"), v, &o, err);
    if (!s)
        s = op_vector_extract(a, NULL, at("ma.safetensors"), &o, err);
    if (!s)
        s = op_vector_random(v, 1, r, &o, err);
    if (!s)
        s = op_vector_combine(t, 2, against, 1, r, &o, err);
    if (!s)
        s = op_vector_add(at("base"), t, 2, at("mo"), &o, err);
    if (!s && !(s = op_vector_info(v, at("base"), 2, &o, &j, err)))
        json_decref(j);
    if (!s && !(s = op_vector_compare(paths, 2, 0.1, &o, &j, err)))
        json_decref(j);
    return s;
}

static void a_failed_allocation_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    make_adapter("base", "lora", false);
    op_status s = OP_ERR_NOMEM;
    for (long n = 0; s; n += 1 + n / 24) {
        op_alloc_fail_from(n);
        s = everything(NULL, e);
        op_alloc_fail_from(-1);
        if (s && s != OP_ERR_NOMEM)
            fail_msg("allocation %ld: %s", n, e->message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_and_a_gguf_of_the_same_weights_have_the_same_hash),
        cmocka_unit_test(one_changed_element_changes_the_hash),
        cmocka_unit_test(an_adapter_reads_as_the_model_that_has_it_folded_in),
        cmocka_unit_test(extracting_and_adding_restores_the_weights_within_the_bound),
        cmocka_unit_test(taking_away_and_adding_again_restores_the_weights_within_the_bound),
        cmocka_unit_test(the_result_is_a_model_that_opens_with_the_base_s_configuration),
        cmocka_unit_test(several_vectors_add_up_with_their_scales),
        cmocka_unit_test(what_did_not_change_is_left_out),
        cmocka_unit_test(only_the_layers_and_kinds_asked_for_are_taken),
        cmocka_unit_test(a_vector_that_is_mostly_rounding_is_told_of),
        cmocka_unit_test(applying_in_memory_gives_what_adding_writes),
        cmocka_unit_test(the_vector_of_an_adapter_is_small_and_leads_to_the_folded_model),
        cmocka_unit_test(a_combination_is_scaled_and_orthogonal_to_what_it_is_told),
        cmocka_unit_test(a_random_vector_has_the_norm_of_each_tensor_and_its_seed_s_bits),
        cmocka_unit_test(another_base_is_refused_unless_forced),
        cmocka_unit_test(missing_tensors_other_shapes_and_what_is_no_number_are_named),
        cmocka_unit_test(what_is_no_vector_and_names_that_are_taken_are_refused),
        cmocka_unit_test(models_with_other_words_have_no_vector_between_them),
        cmocka_unit_test(a_full_disk_leaves_nothing_behind),
        cmocka_unit_test(who_watches_may_stop_it_and_nothing_is_left),
        cmocka_unit_test(a_failed_allocation_is_an_error_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, remove_test_dir);
}
