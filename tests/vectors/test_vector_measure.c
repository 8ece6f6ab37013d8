/* What is said of vectors, against what is known of them. */
#include "tools.h"

static double number(const json_t *j, const char *key)
{
    const json_t *x = json_object_get(j, key);
    if (!json_is_number(x))
        fail_msg("\"%s\" is no number", key);
    return json_number_value(x);
}

static void assert_close(double found, double expected, double most)
{
    if (!(fabs(found - expected) <= most))
        fail_msg("found %.9g, expected %.9g within %g", found, expected, most);
}

static json_t *info_of(const char *path, int singular)
{
    json_t *j;
    op_vector_options o = plain();
    assert_ok(op_vector_info(path, NULL, singular, &o, &j, e));
    return j;
}

/* ---- ranks ---- */

/* Rows of noise made orthonormal: q[n, m]. */
static void orthonormal_rows(double *q, int n, int m, uint64_t seed)
{
    for (int i = 0; i < n; i++) {
        double norm = 0;
        for (int k = 0; k < m; k++)
            q[i * m + k] = op_rng_normal(seed, OP_STREAM_TEST, (uint64_t)(i * m + k));
        for (int j = 0; j < 2 * i; j++) {
            double dot = 0;
            for (int k = 0; k < m; k++)
                dot += q[i * m + k] * q[j % i * m + k];
            for (int k = 0; k < m; k++)
                q[i * m + k] -= dot * q[j % i * m + k];
        }
        for (int k = 0; k < m; k++)
            norm += q[i * m + k] * q[i * m + k];
        for (int k = 0; k < m; k++)
            q[i * m + k] /= sqrt(norm);
    }
}

/* sum of s[i] u_i v_i^T, with size in front. */
static void matrix_with(const double *s, int n, int rows, int cols, double size, float *out)
{
    double *u = malloc(sizeof *u * (size_t)(n * rows)), *v = malloc(sizeof *v * (size_t)(n * cols));
    orthonormal_rows(u, n, rows, 1);
    orthonormal_rows(v, n, cols, 2);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            double x = 0;
            for (int i = 0; i < n; i++)
                x += s[i] * u[i * rows + r] * v[i * cols + c];
            out[r * cols + c] = (float)(size * x);
        }
    free(u);
    free(v);
}

static void ranks_are_those_of_the_singular_values(void **state)
{
    (void)state;
    static const int shapes[][2] = {{70, 110}, {110, 70}, {600, 40}, {40, 600}};
    static float a[600 * 110];
    double s[40];
    for (int shape = 0; shape < 4; shape++)
        for (int kind = 0; kind < 3; kind++)
            for (int small = 0; small < 2; small++) {
                double energy = 0, fourth = 0, top[3] = {0};
                for (int i = 0; i < 40; i++) {
                    s[i] = kind == 0 ? 1.0 / (1 + i) : kind == 1 ? 1 : i < 3 ? 3 - i : 0; /* falling, flat, of rank 3 */
                    energy += s[i] * s[i];
                    fourth += pow(s[i], 4);
                    for (int t = 0; t < 3; t++)
                        top[t] += i < (t == 0 ? 1 : t == 1 ? 4 : 16) ? s[i] * s[i] : 0;
                }
                op_ranks r;
                matrix_with(s, 40, shapes[shape][0], shapes[shape][1], small ? 1e-15 : 1, a);
                assert_ok(op_matrix_ranks(a, shapes[shape][0], shapes[shape][1], 16, &r, e));
                assert_close(r.stable, energy / (s[0] * s[0]), 1e-3 * energy / (s[0] * s[0]));
                assert_close(r.participation, energy * energy / fourth, 1e-4 * energy * energy / fourth);
                assert_close(r.top_1, top[0] / energy, 2e-3);
                assert_close(r.top_4, top[1] / energy, 2e-3);
                assert_close(r.top_16, top[2] / energy, 2e-3);
            }
    op_ranks r;
    assert_ok(op_matrix_ranks(a, 40, 600, 2, &r, e));
    assert_true(isfinite(r.top_1) && isnan(r.top_4) && isnan(r.top_16)); /* not looked for */
    assert_ok(op_matrix_ranks(a, 3, 5, 16, &r, e));
    assert_close(r.top_16, 1, 1e-6);
}

/* ---- info ---- */

static void sizes_and_shares_are_those_of_the_elements(void **state)
{
    (void)state;
    static float big[200 * 4], small[4] = {0, 3, 0, 4};
    for (int i = 0; i < 800; i++)
        big[i] = i % 2 ? 1 : 0;
    big[17] = -10; /* of the eight largest of 800, one is 10 and the others are 1 */
    put_vector("v.safetensors", SOME_BASE, (given[]){{"model.layers.1.mlp.up_proj.weight", 200, 4, big}, {"model.layers.0.input_layernorm.weight", 4, 0, small}}, 2);
    json_t *j = info_of(at("v.safetensors"), 0), *layers = json_object_get(j, "layers"), *kinds = json_object_get(j, "kinds"), *up;
    assert_close(number(j, "norm"), sqrt(399 + 100 + 25), 1e-9);
    assert_close(number(j, "elements"), 804, 0);
    assert_close(number(j, "zeros"), 402 / 804.0, 1e-9);
    assert_close(number(j, "max"), 10, 0);
    assert_int_equal(json_array_size(layers), 2);
    assert_close(number(json_array_get(layers, 0), "layer"), 0, 0);
    assert_close(number(json_array_get(layers, 0), "norm"), 5, 1e-9);
    assert_close(number(json_array_get(layers, 0), "share") + number(json_array_get(layers, 1), "share"), 1, 1e-9);
    assert_int_equal(json_array_size(kinds), 2);
    up = json_array_get(kinds, strcmp(json_string_value(json_object_get(json_array_get(kinds, 0), "kind")), "mlp.up_proj") ? 1 : 0);
    assert_close(number(up, "concentration"), (100 + 7) / 499.0, 1e-9);
    assert_null(json_object_get(up, "stable_rank"));
    assert_string_equal(json_string_value(json_object_get(json_object_get(j, "base"), "sha256")), SOME_BASE);
    json_decref(j);
    j = info_of(at("v.safetensors"), 4);
    up = json_array_get(json_object_get(j, "list"), 0);
    assert_true(number(up, "stable_rank") >= 1 && number(up, "stable_rank") <= 4);
    json_decref(j);
}

static void relative_sizes_need_the_base_that_it_belongs_to(void **state)
{
    (void)state;
    save_model(new_model(tiny(OP_LLAMA), 1), "base", OP_F32);
    op_model *m = new_model(tiny(OP_LLAMA), 1);
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++)
        p.values[i] *= 1.25f;
    save_model(m, "more", OP_F32);
    op_vector_options o = plain();
    json_t *j;
    assert_ok(op_vector_extract(at("more"), at("base"), at("v.safetensors"), &o, e));
    assert_ok(op_vector_info(at("v.safetensors"), at("base"), 0, &o, &j, e));
    assert_close(number(j, "relative"), 0.25, 1e-6);
    assert_close(number(json_array_get(json_object_get(j, "kinds"), 0), "relative"), 0.25, 1e-6);
    json_decref(j);
    assert_fails(op_vector_info(at("v.safetensors"), at("more"), 0, &o, &j, e), OP_ERR_MISMATCH, "was taken from other weights");
}

static void names_tell_layer_and_kind(void **state)
{
    (void)state;
    static const struct {
        const char *name, *kind;
        int layer;
    } cases[] = {{"model.layers.12.self_attn.q_proj.weight", "self_attn.q_proj", 12}, {"transformer.h.3.attn.c_attn.bias", "attn.c_attn.bias", 3}, {"h.0.ln_1.weight", "ln_1", 0},
                 {"model.embed_tokens.weight", "embed_tokens", -1}, {"lm_head.weight", "lm_head", -1}, {"model.norm.weight", "norm", -1}, {"layers.x.weight", "layers.x", -1}};
    char kind[OP_KIND_MAX];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(op_tensor_layer(cases[i].name, kind), cases[i].layer);
        assert_string_equal(kind, cases[i].kind);
    }
}

static int larger_first(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static void the_kth_magnitude_is_that_of_sorting(void **state)
{
    (void)state;
    enum { N = 3000 };
    static float x[N], sorted[N];
    for (int ties = 0; ties < 2; ties++) {
        for (int i = 0; i < N; i++) {
            double z = op_rng_normal(4, OP_STREAM_TEST, (uint64_t)i);
            x[i] = (float)(ties ? rint(3 * z) : ldexp(z, (int)(i % 250) - 150));
            sorted[i] = fabsf(x[i]);
        }
        qsort(sorted, N, sizeof *sorted, larger_first);
        for (int k = 1; k <= N; k += k < 20 ? 1 : 97) {
            uint32_t bits = op_magnitude_rank(x, N, k);
            float found;
            memcpy(&found, &bits, 4);
            assert_true(found == sorted[k - 1]);
        }
    }
}

/* ---- compare ---- */

static double at_of(const json_t *j, const char *key, size_t a, size_t b)
{
    const json_t *x = json_array_get(json_array_get(json_object_get(j, key), a), b);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

static json_t *compare_three(double top)
{
    static float a[100], b[100], c[100];
    for (int i = 0; i < 100; i++) {
        a[i] = (float)(i + 1);
        b[i] = i < 30 ? -a[i] : a[i]; /* 30 of 100 signs turned */
        c[i] = i < 50 ? 0 : a[i];
    }
    put_vector("a.safetensors", SOME_BASE, (given[]){{"model.layers.0.mlp.up_proj.weight", 10, 10, a}, {"model.norm.weight", 100, 0, a}}, 2);
    put_vector("b.safetensors", SOME_BASE, (given[]){{"model.layers.0.mlp.up_proj.weight", 10, 10, b}}, 1);
    put_vector("c.safetensors", SOME_BASE, (given[]){{"model.layers.0.mlp.up_proj.weight", 10, 10, c}}, 1);
    const char *paths[] = {at("a.safetensors"), at("b.safetensors"), at("c.safetensors")};
    json_t *j;
    op_vector_options o = plain();
    assert_ok(op_vector_compare(paths, 3, top, &o, &j, e));
    return j;
}

static void cosines_conflicts_and_overlaps_are_those_of_the_elements(void **state)
{
    (void)state;
    double square = 100.0 * 101 * 201 / 6, below = 30.0 * 31 * 61 / 6, half = 50.0 * 51 * 101 / 6;
    json_t *j = compare_three(0.1);
    assert_close(at_of(j, "cosine", 0, 0), 1, 0);
    assert_close(at_of(j, "cosine", 0, 1), (square - 2 * below) / sqrt(2 * square * square), 1e-9);
    assert_close(at_of(j, "cosine", 1, 2), (square - half) / sqrt(square * (square - half)), 1e-9);
    assert_close(at_of(j, "cosine", 2, 1), at_of(j, "cosine", 1, 2), 0);
    assert_close(at_of(j, "sign_conflict", 0, 1), 0.3, 1e-9); /* only where both have the tensor */
    assert_close(at_of(j, "sign_conflict", 1, 2), 0, 0);
    assert_close(at_of(j, "overlap", 0, 2), 1, 1e-9);
    json_t *layer = json_array_get(json_object_get(j, "layers"), 1);
    assert_close(number(layer, "layer"), 0, 0);
    assert_close(at_of(layer, "cosine", 0, 1), 1 - 2 * below / square, 1e-9);
    assert_true(isnan(at_of(json_array_get(json_object_get(j, "layers"), 0), "cosine", 0, 1)));
    assert_true(json_is_true(json_object_get(j, "same_base")));
    json_decref(j);
    j = compare_three(0.8); /* the largest 80 of 100, of which the third has only 50 */
    assert_close(at_of(j, "overlap", 0, 1), 1, 1e-9);
    assert_close(at_of(j, "overlap", 1, 2), 1, 1e-9);
    json_decref(j);
}

static void independent_vectors_are_at_what_chance_says(void **state)
{
    (void)state;
    enum { N = 200 };
    static float a[N * N], b[N * N];
    for (int i = 0; i < N * N; i++) {
        a[i] = (float)op_rng_normal(1, OP_STREAM_TEST, (uint64_t)i);
        b[i] = (float)op_rng_normal(2, OP_STREAM_TEST, (uint64_t)i);
    }
    put_vector("a.safetensors", SOME_BASE, (given[]){{"w", N, N, a}}, 1);
    put_vector("b.safetensors", SOME_BASE, (given[]){{"w", N, N, b}}, 1);
    const char *paths[] = {at("a.safetensors"), at("b.safetensors")};
    json_t *j;
    op_vector_options o = plain();
    assert_ok(op_vector_compare(paths, 2, 0.1, &o, &j, e));
    assert_close(at_of(j, "cosine", 0, 1), 0, 0.02);
    assert_close(at_of(j, "sign_conflict", 0, 1), 0.5, 0.01);
    assert_close(at_of(j, "overlap", 0, 1), 0.1, 0.02);
    json_decref(j);
    assert_fails(op_vector_compare(paths, 1, 0.1, &o, &j, e), OP_ERR_ARG, "two vectors or more");
    assert_fails(op_vector_compare(paths, 2, 0, &o, &j, e), OP_ERR_ARG, "top is 0");
    put_vector("other.safetensors", SOME_BASE, (given[]){{"w", N / 2, 2 * N, b}}, 1);
    const char *unlike[] = {paths[0], at("other.safetensors")};
    assert_fails(op_vector_compare(unlike, 2, 0.1, &o, &j, e), OP_ERR_MISMATCH, "another shape in");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_are_those_of_the_singular_values),
        cmocka_unit_test(sizes_and_shares_are_those_of_the_elements),
        cmocka_unit_test(relative_sizes_need_the_base_that_it_belongs_to),
        cmocka_unit_test(names_tell_layer_and_kind),
        cmocka_unit_test(the_kth_magnitude_is_that_of_sorting),
        cmocka_unit_test(cosines_conflicts_and_overlaps_are_those_of_the_elements),
        cmocka_unit_test(independent_vectors_are_at_what_chance_says),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
