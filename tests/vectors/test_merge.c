/* Merges of tiny models whose results can be worked out by hand; beside mergekit itself: compare_mergekit.py. */
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <operant/export.h>
#include <operant/file.h>
#include <operant/merge.h>
#include <operant/model.h>
#include <operant/tensors.h>

#include "../common.h"
#include "base/num.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "ops/ops.h"
#include "vectors/merge.h"

enum { LAYERS = 2, WORDS = 3, WIDTH = 2 };

static op_error e[1];
static op_merge_report report;

/* ---- models: an embedding [3, 2], two layers with a vector [2] each and a matrix [2, 2] each, and a last vector [2] ---- */

typedef struct tiny {
    float embed[WORDS * WIDTH], vector[LAYERS][WIDTH], matrix[LAYERS][4], norm[WIDTH];
} tiny;

static tiny filled(float x)
{
    tiny t;
    float *v = (float *)&t;
    for (size_t i = 0; i < sizeof t / sizeof *v; i++)
        v[i] = x;
    return t;
}

static void put_config(const char *dir, const char *more)
{
    char text[512], path[64];
    snprintf(text, sizeof text, "{\"model_type\": \"llama\", \"num_hidden_layers\": %d, \"vocab_size\": %d, \"tie_word_embeddings\": true%s}", LAYERS, WORDS, more);
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(op_file_put(path, text, strlen(text), e), OP_OK);
}

static void put_model(const char *dir, const tiny *t, op_dtype dtype)
{
    op_bf16 half[sizeof *t / sizeof(float)];
    for (size_t i = 0; i < sizeof *t / sizeof(float); i++)
        half[i] = op_f32_to_bf16(((const float *)t)[i]);
    const char *data = dtype == OP_BF16 ? (const char *)half : (const char *)t;
    size_t size = dtype == OP_BF16 ? 2 : 4;
    op_tensor_out out[] = {
        {.name = "model.embed_tokens.weight", .rank = 2, .shape = {WORDS, WIDTH}, .data = data},
        {.name = "model.layers.0.ln.weight", .rank = 1, .shape = {WIDTH}, .data = data + size * 6},
        {.name = "model.layers.1.ln.weight", .rank = 1, .shape = {WIDTH}, .data = data + size * 8},
        {.name = "model.layers.0.mlp.weight", .rank = 2, .shape = {2, 2}, .data = data + size * 10},
        {.name = "model.layers.1.mlp.weight", .rank = 2, .shape = {2, 2}, .data = data + size * 14},
        {.name = "model.norm.weight", .rank = 1, .shape = {WIDTH}, .data = data + size * 18},
    };
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        out[i].dtype = dtype;
    assert_int_equal(op_dir_make(dir, e), OP_OK);
    assert_int_equal(op_safetensors_write_dir(dir, out, sizeof out / sizeof *out, NULL, 0, 1 << 30, e), OP_OK);
    put_config(dir, "");
}

/* base: all 1; m1: matrices 1.5, 1, 1.25, 0; m2: 2, 1, 0.5, 0.5 in both layers, else as the base; half: m1 in bfloat16 */
static int set_up(void **state)
{
    static const float one[] = {1.5f, 1, 1.25f, 0}, two[] = {2, 1, 0.5f, 0.5f};
    if (make_test_dir(state) || chdir(test_dir))
        return -1;
    tiny t = filled(1);
    put_model("base", &t, OP_F32);
    for (int l = 0; l < LAYERS; l++)
        memcpy(t.matrix[l], one, sizeof one);
    put_model("m1", &t, OP_F32);
    put_model("half", &t, OP_BF16);
    for (int l = 0; l < LAYERS; l++)
        memcpy(t.matrix[l], two, sizeof two);
    put_model("m2", &t, OP_F32);
    return 0;
}

static int tear_down(void **state)
{
    return chdir("/") || remove_test_dir(state);
}

static op_status merge_seeded(const char *yaml, uint64_t seed)
{
    *e = (op_error){0};
    op_path_remove("out", NULL);
    return op_merge_text(yaml, strlen(yaml), "t.yaml", "out", &(op_merge_options){.seed = seed}, &report, e);
}

static void merge(const char *yaml)
{
    if (merge_seeded(yaml, 0))
        fail_msg("%s", e->message);
}

static void read_from(const char *dir, const char *name, float *out, int n)
{
    op_tensors *t;
    assert_int_equal(op_tensors_open(&t, dir, e), OP_OK);
    const op_tensor *x = op_tensors_find(t, name);
    if (!x)
        fail_msg("no tensor %s", name);
    assert_int_equal(x->count, n);
    assert_int_equal(op_tensor_read_f32(x, 0, n, out, e), OP_OK);
    op_tensors_close(t);
}

static void assert_tensor(const char *name, int n, const float *expected, double within)
{
    float got[16];
    read_from("out", name, got, n);
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - expected[i]) <= within))
            fail_msg("%s[%d] is %.9g, expected %.9g", name, i, (double)got[i], (double)expected[i]);
}

#define ASSERT_MATRIX(layer, within, ...) assert_tensor("model.layers." #layer ".mlp.weight", 4, (const float[]){__VA_ARGS__}, within)

/* Nothing of a failed merge is left, under any name. */
static void assert_nothing_left(void)
{
    DIR *d = opendir(".");
    for (struct dirent *x; (x = readdir(d));)
        if (!strncmp(x->d_name, "out", 3))
            fail_msg("%s is left", x->d_name);
    closedir(d);
}

static void assert_refused(const char *yaml, op_status status, const char *words)
{
    op_status s = merge_seeded(yaml, 0);
    if (s != status)
        fail_msg("status %d (%s), expected %d with \"%s\"", s, e->message, status, words);
    assert_message_has(e, words);
    assert_nothing_left();
}

#define TWO "models:\n- {model: m1, parameters: {weight: 0.5%s}}\n- {model: m2, parameters: {weight: 0.25%s}}\nbase_model: base\n"

static const char *two(const char *method, const char *each, const char *more)
{
    static char yaml[1024];
    int n = snprintf(yaml, sizeof yaml, "merge_method: %s\n", method);
    n += snprintf(yaml + n, sizeof yaml - (size_t)n, TWO, each, each);
    snprintf(yaml + n, sizeof yaml - (size_t)n, "%s", more);
    return yaml;
}

/* ---- formulas ---- */

static void linear_is_the_weighted_mean_and_without_normalize_the_weighted_sum(void **state)
{
    (void)state;
    merge("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 3}}\n- {model: m2, parameters: {weight: 1}}\n");
    ASSERT_MATRIX(0, 0, 1.625f, 1, 1.0625f, 0.125f);
    merge("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\n- {model: m2, parameters: {weight: -1}}\nparameters: {normalize: false}\n");
    ASSERT_MATRIX(1, 0, -0.5f, 0, 0.75f, -0.5f);
    assert_tensor("model.norm.weight", 2, (const float[]){0, 0}, 0);
}

static void task_vectors_are_weighted_added_and_scaled(void **state)
{
    (void)state;
    merge(two("task_arithmetic", "", "parameters: {lambda: 2}\n"));
    ASSERT_MATRIX(0, 0, 2, 1, 1, -0.25f); /* 1 + 2 (0.5 d1 + 0.25 d2) */
    merge(two("task_arithmetic", "", "parameters: {normalize: true}\n"));
    ASSERT_MATRIX(0, 1e-7, 1 + 0.5f / 0.75f, 1, 1, 1 - 0.625f / 0.75f);
}

static void ties_keeps_the_largest_and_those_with_the_majoritys_sign(void **state)
{
    (void)state;
    merge(two("ties", ", density: 0.5", "")); /* d1: 0.5 . . -1; d2: 1 . -0.5 .  or the later -0.5: the earlier of equals is kept */
    ASSERT_MATRIX(0, 1e-7, 1 + (0.25f + 0.25f) / 0.75f, 1, 0.5f, 0);
    merge(two("ties", "", "")); /* all kept; the third: 0.125 against -0.125, a tie of signs is positive */
    ASSERT_MATRIX(0, 1e-7, 1 + 0.5f / 0.75f, 1, 1.25f, 1 - 0.625f / 0.75f);
}

static void breadcrumbs_leave_out_the_largest_too(void **state)
{
    (void)state;
    merge(two("breadcrumbs", ", density: 0.5, gamma: 0.25", ""));
    /* by size d1: 0, 0.25, 0.5, 1 and d2: 0, 0.5, 0.5, 1: the middle two of each stay */
    ASSERT_MATRIX(0, 0, 1.25f, 1, 1, 0.875f);
}

static void what_was_thinned_out_gets_its_size_back(void **state)
{
    (void)state;
    merge(two("ties", ", density: 0.25", "parameters: {rescale: true, normalize: false}\n"));
    /* d1 keeps -1 of 1.75 in all, d2 keeps 1 of 2 in all */
    ASSERT_MATRIX(0, 1e-6, 1 + 0.25f * 2, 1, 1, 1 - 0.5f * 1.75f);
}

static void a_slerp_goes_along_the_arc_and_between_parallel_tensors_straight(void **state)
{
    (void)state;
    tiny a = filled(1), b = filled(1);
    memcpy(a.matrix[0], (const float[]){1, 0, 0, 0}, 16);
    memcpy(b.matrix[0], (const float[]){0, 1, 0, 0}, 16);
    memcpy(b.matrix[1], (const float[]){3, 3, 3, 3}, 16);
    put_model("a", &a, OP_F32);
    put_model("b", &b, OP_F32);
    merge("merge_method: slerp\nbase_model: a\nmodels:\n- model: b\nparameters: {t: 0.25}\n");
    ASSERT_MATRIX(0, 1e-6, (float)cos(M_PI / 8), (float)sin(M_PI / 8), 0, 0);
    ASSERT_MATRIX(1, 1e-6, 1.5f, 1.5f, 1.5f, 1.5f);
    merge("merge_method: nuslerp\nmodels:\n- {model: a, parameters: {weight: 3}}\n- {model: b, parameters: {weight: 1}}\n");
    ASSERT_MATRIX(0, 1e-6, (float)cos(M_PI / 8), (float)sin(M_PI / 8), 0, 0);
    merge("merge_method: multislerp\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n");
    ASSERT_MATRIX(0, 1e-6, (float)sqrt(0.5), (float)sqrt(0.5), 0, 0);
    ASSERT_MATRIX(1, 1e-6, 2, 2, 2, 2);
    merge("merge_method: karcher\nmodels:\n- model: a\n- model: b\n");
    ASSERT_MATRIX(0, 1e-6, (float)sqrt(0.5), (float)sqrt(0.5), 0, 0);
}

static void nuslerp_by_rows_turns_each_row_by_itself(void **state)
{
    (void)state;
    tiny a = filled(1), b = filled(1);
    memcpy(a.matrix[0], (const float[]){1, 0, 0, 2}, 16);
    memcpy(b.matrix[0], (const float[]){0, 1, 0, 4}, 16);
    put_model("a", &a, OP_F32);
    put_model("b", &b, OP_F32);
    const char *models = "merge_method: nuslerp\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n";
    char yaml[512];
    snprintf(yaml, sizeof yaml, "%sparameters: {nuslerp_flatten: false}\n", models);
    merge(yaml); /* the second row's ends are parallel */
    ASSERT_MATRIX(0, 1e-6, (float)sqrt(0.5), (float)sqrt(0.5), 0, 3);
    snprintf(yaml, sizeof yaml, "%sparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n", models);
    merge(yaml); /* columns (1, 0) and (0, 0); (0, 2) and (1, 4) */
    double angle = acos(4 / sqrt(17)), by = sin(angle / 2) / sin(angle);
    ASSERT_MATRIX(0, 1e-6, (float)sqrt(0.5), (float)by, 0, (float)(6 * by));
}

static void model_stock_goes_the_farther_the_more_the_models_agree(void **state)
{
    (void)state;
    merge("merge_method: model_stock\nbase_model: base\nmodels:\n- model: m1\n- model: m2\n");
    double c = (0.5 * 1 - 0.25 * 0.5 + 1 * 0.5) / (sqrt(0.25 + 0.0625 + 1) * sqrt(1 + 0.25 + 0.25)), t = 2 * c / (1 + c);
    ASSERT_MATRIX(0, 1e-6, (float)(t * 1.75 + 1 - t), 1, (float)(t * 0.875 + 1 - t), (float)(t * 0.25 + 1 - t));
    merge("merge_method: model_stock\nbase_model: base\nmodels:\n- model: m1\n- model: m2\nparameters: {filter_wise: true}\n");
    c = (-0.25 * 0.5 + 0.5) / (sqrt(0.0625 + 1) * sqrt(0.5));
    t = 2 * c / (1 + c);
    ASSERT_MATRIX(0, 1e-6, 1.75f, 1, (float)(t * 0.875 + 1 - t), (float)(t * 0.25 + 1 - t));
}

static void sce_weighs_a_vector_by_its_mean_square(void **state)
{
    (void)state;
    merge("merge_method: sce\nbase_model: base\nmodels:\n- model: m1\n- model: m2\n");
    float w1 = 1.3125f / 2.8125f, w2 = 1.5f / 2.8125f;
    ASSERT_MATRIX(0, 1e-6, 1 + 0.5f * w1 + w2, 1, 0.5f, 1 - w1 - 0.5f * w2);
    merge("merge_method: sce\nbase_model: base\nmodels:\n- model: m1\n- model: m2\nparameters: {select_topk: 0.4}\n");
    ASSERT_MATRIX(0, 1e-6, 1, 1, 0.5f, 1); /* of the three that vary the third varies most; of it, the larger vector is the majority */
}

static void ram_shares_what_several_move_and_keeps_what_one_moves(void **state)
{
    (void)state;
    merge("merge_method: ram\nbase_model: base\nmodels:\n- model: m1\n- model: m2\nparameters: {epsilon: 0.4}\n");
    ASSERT_MATRIX(0, 1e-6, 1.75f, 1, 0.5f, 0.25f); /* the third is moved by m2 alone: 0.25 is below epsilon */
    merge("merge_method: ramplus_tl\nbase_model: base\nmodels:\n- model: m1\n- model: m2\nparameters: {epsilon: 0.4, r: 0.5, alpha: 0.2}\n");
    ASSERT_MATRIX(0, 1e-6, 1.75f, 1, 1 - 0.5f * 1.1f, 0.25f);
}

static void nearswap_takes_what_is_near_and_fusion_what_matters(void **state)
{
    (void)state;
    merge("merge_method: nearswap\nbase_model: base\nmodels:\n- model: m1\nparameters: {t: 0.25}\n");
    ASSERT_MATRIX(0, 1e-6, 1.25f, 1, 1.25f, 0.75f);
    merge("merge_method: arcee_fusion\nbase_model: base\nmodels:\n- model: m1\n");
    static const float other[] = {1.5f, 1, 1.25f, 0};
    float got[4];
    read_from("out", "model.layers.0.mlp.weight", got, 4);
    for (int i = 0; i < 4; i++)
        assert_true(got[i] == 1 || got[i] == other[i]);
    assert_true(got[3] == 0); /* the largest step in the row that differs most */
}

/* ---- random methods ---- */

static void random_methods_depend_on_the_seed_alone_and_keep_the_mean(void **state)
{
    (void)state;
    enum { N = 96 * 512 };
    static float base[N], big[N], got[2][N];
    for (int i = 0; i < N; i++)
        big[i] = base[i] + (float)(i % 97 - 48) / 64;
    for (int m = 0; m < 2; m++) {
        op_tensor_out out[] = {{.name = "model.layers.0.mlp.weight", .dtype = OP_F32, .rank = 2, .shape = {96, 512}, .data = m ? big : base}};
        op_dir_make(m ? "big" : "zero", e);
        assert_int_equal(op_safetensors_write_dir(m ? "big" : "zero", out, 1, NULL, 0, 1 << 30, e), OP_OK);
    }
    static const char *const methods[] = {"dare_linear", "dare_ties", "della", "della_linear"};
    for (int k = 0; k < 4; k++) {
        char yaml[256];
        snprintf(yaml, sizeof yaml, "merge_method: %s\nbase_model: zero\nmodels:\n- {model: big, parameters: {weight: 1, density: 0.4}}\n", methods[k]);
        int threads = op_threads();
        for (int i = 0; i < 2; i++) {
            op_threads_set(i ? 1 : 3);
            assert_int_equal(merge_seeded(yaml, 5), OP_OK);
            read_from("out", "model.layers.0.mlp.weight", got[i], N);
        }
        op_threads_set(threads);
        assert_memory_equal(got[0], got[1], sizeof got[0]);
        int kept = 0, zeros = 0, small = 0, large = 0;
        double size = 0, all = 0;
        for (int i = 0; i < N; i++) {
            zeros += big[i] == 0;
            kept += got[0][i] != 0;
            small += got[0][i] != 0 && fabsf(big[i]) < 0.375f;
            large += got[0][i] != 0 && fabsf(big[i]) > 0.375f;
            size += fabsf(got[0][i]);
            all += fabsf(big[i]);
        }
        assert_true(fabs((double)kept / (N - zeros) - 0.4) < 0.02);
        assert_true(fabs(size / all - 1) < 1e-4); /* rescaled */
        assert_true(k < 2 ? abs(small - large) < N / 50 : large > small * 3 / 2); /* della prefers the large */
        assert_int_equal(merge_seeded(yaml, 6), OP_OK);
        read_from("out", "model.layers.0.mlp.weight", got[1], N);
        assert_memory_not_equal(got[0], got[1], sizeof got[0]);
    }
}

/* ---- the configuration ---- */

static void the_first_filter_that_matches_and_the_place_between_the_layers_make_a_parameter(void **state)
{
    (void)state;
    merge("merge_method: task_arithmetic\nbase_model: base\nmodels:\n- model: m1\n  parameters:\n    weight:\n    - {filter: mlp, value: [0, 1]}\n    - value: 5\n");
    ASSERT_MATRIX(0, 0, 1, 1, 1, 1);
    ASSERT_MATRIX(1, 0, 1.5f, 1, 1.25f, 0);
    merge("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: {filter: layers.0, value: 1.0}}}\n- {model: m2, parameters: {weight: 1e-0}}\n"
          "parameters: {weight: 3}\n"); /* a filter that does not match leaves it to the next scope */
    ASSERT_MATRIX(0, 0, 1.75f, 1, 0.875f, 0.25f);
    ASSERT_MATRIX(1, 0, 1.625f, 1, 1.0625f, 0.125f);
}

static void slices_stack_layers_of_several_models(void **state)
{
    (void)state;
    put_config("m1", ", \"layer_types\": [\"a\", \"b\"]");
    merge("merge_method: passthrough\nslices:\n- sources:\n  - {model: m1, layer_range: [0, 2]}\n- sources:\n  - {model: m2, layer_range: [1, 2]}\n");
    put_config("m1", "");
    ASSERT_MATRIX(1, 0, 1.5f, 1, 1.25f, 0);
    ASSERT_MATRIX(2, 0, 2, 1, 0.5f, 0.5f);
    assert_int_equal(report.layers, 3);
    json_t *j;
    assert_int_equal(op_json_read(&j, "out/config.json", e), OP_OK);
    assert_int_equal(json_integer_value(json_object_get(j, "num_hidden_layers")), 3);
    assert_string_equal(json_string_value(json_array_get(json_object_get(j, "layer_types"), 2)), "b");
    json_decref(j);
    assert_true(op_path_exists("out/mergekit_config.yml"));
}

static void types_are_those_of_the_files_unless_one_is_named(void **state)
{
    (void)state;
    op_tensors *t;
    static const struct {
        const char *more;
        op_dtype expected;
    } cases[] = {{"", OP_F32}, {"dtype: bfloat16\n", OP_BF16}, {"dtype: float32\nout_dtype: torch.float16\n", OP_F16}};
    for (int i = 0; i < 3; i++) {
        char yaml[256];
        snprintf(yaml, sizeof yaml, "merge_method: linear\nmodels:\n- {model: half, parameters: {weight: 1}}\n- {model: m2, parameters: {weight: 2}}\n%s", cases[i].more);
        merge(yaml);
        assert_int_equal(op_tensors_open(&t, "out", e), OP_OK);
        assert_int_equal(op_tensors_find(t, "model.norm.weight")->dtype, cases[i].expected);
        op_tensors_close(t);
    }
    merge("merge_method: linear\nmodels:\n- {model: half, parameters: {weight: 1}}\n");
    assert_int_equal(op_tensors_open(&t, "out", e), OP_OK);
    assert_int_equal(op_tensors_find(t, "model.norm.weight")->dtype, OP_BF16);
    op_tensors_close(t);
}

static void vocabularies_are_brought_into_one_order(void **state)
{
    (void)state;
    static const char one[] = "{\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2}}, \"added_tokens\": []}";
    static const char other[] = "{\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"c\": 0, \"a\": 1, \"d\": 2}}, \"added_tokens\": []}";
    tiny a = filled(1), b = filled(1);
    memcpy(a.embed, (const float[]){1, 1, 2, 2, 3, 3}, 24);
    memcpy(b.embed, (const float[]){30, 30, 10, 10, 40, 40}, 24);
    put_model("a", &a, OP_F32);
    put_model("b", &b, OP_F32);
    op_file_put("a/tokenizer.json", one, strlen(one), e);
    op_file_put("b/tokenizer.json", other, strlen(other), e);
    static const char models[] = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n";
    char yaml[512];
    snprintf(yaml, sizeof yaml, "%stokenizer_source: union\n", models);
    merge(yaml); /* b is only in the first, d only in the second */
    assert_tensor("model.embed_tokens.weight", 8, (const float[]){5.5f, 5.5f, 2, 2, 16.5f, 16.5f, 40, 40}, 0);
    json_t *j;
    assert_int_equal(op_json_read(&j, "out/tokenizer.json", e), OP_OK);
    assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(j, "added_tokens"), 0), "content")), "d");
    json_decref(j);
    assert_int_equal(op_json_read(&j, "out/config.json", e), OP_OK);
    assert_int_equal(json_integer_value(json_object_get(j, "vocab_size")), 4);
    json_decref(j);
    snprintf(yaml, sizeof yaml, "%stokenizer_source: b\n", models);
    merge(yaml);
    assert_tensor("model.embed_tokens.weight", 6, (const float[]){16.5f, 16.5f, 5.5f, 5.5f, 40, 40}, 0);
    snprintf(yaml, sizeof yaml, "%stokenizer: {source: base, pad_to_multiple_of: 4, tokens: {b: {source: {kind: zero}}, c: {source: b, force: true}}}\n", models);
    merge(yaml);
    assert_tensor("model.embed_tokens.weight", 8, (const float[]){5.5f, 5.5f, 1, 1, 30, 30, 12.166667f, 12.166667f}, 1e-5);
}

static void a_gguf_and_its_directory_are_the_same_model(void **state)
{
    (void)state;
    op_model_config c = {.family = OP_LLAMA, .vocab = 416, .width = 32, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 8, .ffn = 64, .max_positions = 64,
                         .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402}, .n_eos = 1};
    op_model *m;
    op_buf b;
    assert_int_equal(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e), OP_OK);
    assert_int_equal(op_dir_make("dir", e), OP_OK);
    assert_int_equal(op_model_save(m, "dir", OP_F32, e), OP_OK);
    op_model_free(m);
    op_buf_init(&b, 1 << 20);
    assert_int_equal(op_file_read(FIXTURES "/smollm.json", &b, e), OP_OK);
    assert_int_equal(op_file_put("dir/tokenizer.json", b.data, b.len, e), OP_OK);
    op_buf_release(&b);
    assert_int_equal(op_export("dir", OP_EXPORT_GGUF, "m.gguf", OP_F32, e), OP_OK);
    merge("merge_method: passthrough\nmodels:\n- model: m.gguf\n");
    op_tensors *x, *y;
    assert_int_equal(op_tensors_open(&x, "dir", e), OP_OK);
    assert_int_equal(op_tensors_open(&y, "out", e), OP_OK);
    assert_int_equal(op_tensors_count(x), op_tensors_count(y));
    for (size_t i = 0; i < op_tensors_count(x); i++) {
        const op_tensor *t = op_tensors_at(x, i), *u = op_tensors_find(y, t->name);
        assert_non_null(u);
        assert_int_equal(t->bytes, u->bytes);
        assert_memory_equal(t->data, u->data, t->bytes);
    }
    op_tensors_close(x);
    op_tensors_close(y);
    assert_true(op_path_exists("out/tokenizer.json"));
    /* and both at once: the mean of a model with itself */
    merge("merge_method: linear\nmodels:\n- {model: m.gguf, parameters: {weight: 1}}\n- {model: dir, parameters: {weight: 1}}\n");
}

/* ---- what goes wrong ---- */

static void mistakes_in_the_file_are_named_with_their_line(void **state)
{
    (void)state;
    assert_refused("merge_method: [ties\n", OP_ERR_FORMAT, "line");
    assert_refused("", OP_ERR_FORMAT, "empty");
    assert_refused("models:\n- {model: m1}\n", OP_ERR_FORMAT, "merge_method");
    assert_refused("merge_method: tie\nmodels:\n- {model: m1}\n", OP_ERR_FORMAT, "did you mean \"ties\"");
    assert_refused("merge_method: linear\nmodel:\n- {model: m1}\n", OP_ERR_FORMAT, "line 2: merge: unknown key \"model\", did you mean \"models\"");
    assert_refused("merge_method: linear\nmodels:\n- model: m1\n  parameters: {wieght: 1}\n", OP_ERR_FORMAT, "line 4: parameters: unknown key \"wieght\", did you mean \"weight\"");
    assert_refused("merge_method: linear\nmodels:\n- {model: nowhere, parameters: {weight: 1}}\n", OP_ERR_FORMAT, "line 3: model \"nowhere\" is not here");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: heavy}}\n", OP_ERR_FORMAT, "\"heavy\", expected a number");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: [1, {value: 2}]}}\n", OP_ERR_FORMAT, "list of values");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1}\n", OP_ERR_ARG, "needs the parameter \"weight\"");
    assert_refused("merge_method: ties\nmodels:\n- {model: m1, parameters: {weight: 1}}\n", OP_ERR_FORMAT, "needs a base_model");
    assert_refused("merge_method: slerp\nbase_model: base\nmodels:\n- {model: m1}\n- {model: m2}\nparameters: {t: 1}\n", OP_ERR_FORMAT, "takes 2 models");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\n- {model: m1, parameters: {weight: 1}}\n", OP_ERR_FORMAT, "twice");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\nslices: []\n", OP_ERR_FORMAT, "either \"models\" or \"slices\"");
    assert_refused("merge_method: linear\ndtype: int7\nmodels:\n- {model: m1, parameters: {weight: 1}}\n", OP_ERR_FORMAT, "expected float32");
    assert_refused("merge_method: passthrough\nslices:\n- sources:\n  - {model: m1, layer_range: [1, 1]}\n", OP_ERR_FORMAT, "line 4: layer_range");
    assert_refused("merge_method: passthrough\nslices:\n- sources:\n  - {model: m1, layer_range: [0, 3]}\n", OP_ERR_ARG, "which has 2");
    assert_refused("merge_method: della\nbase_model: base\nmodels:\n- {model: m1, parameters: {weight: 1, density: 0.9}}\n", OP_ERR_ARG, "epsilon");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\n- {model: m2, parameters: {weight: -1}}\n", OP_ERR_ARG, "add up to 0");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\nchat_template: llama9\n", OP_ERR_UNSUPPORTED, "llama9");
    assert_refused("merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\ntokenizer_source: base\n", OP_ERR_UNSUPPORTED, "tokenizer.json");
}

static void models_that_do_not_fit_are_named_with_the_tensor(void **state)
{
    (void)state;
    static const float zero[8];
    tiny t = filled(1);
    put_model("odd", &t, OP_F32);
    op_tensor_out out[] = {{.name = "model.embed_tokens.weight", .dtype = OP_F32, .rank = 2, .shape = {4, 2}, .data = zero},
                           {.name = "model.layers.1.ln.weight", .dtype = OP_F32, .rank = 1, .shape = {2}, .data = zero},
                           {.name = "model.layers.0.ln.weight", .dtype = OP_F32, .rank = 1, .shape = {3}, .data = zero}};
    const char *yaml = "merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\n- {model: odd, parameters: {weight: 1}}\n";
    assert_int_equal(op_safetensors_write_dir("odd", out, 3, NULL, 0, 1 << 30, e), OP_OK);
    assert_refused(yaml, OP_ERR_MISMATCH, "the vocabularies differ: 3 tokens in \"m1\", 4 in \"odd\"");
    out[0].shape[0] = 3;
    assert_int_equal(op_safetensors_write_dir("odd", out, 3, NULL, 0, 1 << 30, e), OP_OK);
    assert_refused(yaml, OP_ERR_MISMATCH, "has shape [2] in \"m1\" and [3] in \"odd\"");
    out[2].shape[0] = 2;
    assert_int_equal(op_safetensors_write_dir("odd", out, 3, NULL, 0, 1 << 30, e), OP_OK);
    assert_refused(yaml, OP_ERR_MISMATCH, "odd: tensor \"model.layers.0.mlp.weight\" is missing");
    out[1].name = "model.norm.weight";
    assert_int_equal(op_safetensors_write_dir("odd", out, 3, NULL, 0, 1 << 30, e), OP_OK);
    assert_refused(yaml, OP_ERR_MISMATCH, "\"odd\" has 1 layers and \"m1\" 2: say with slices");
    static const char *const methods[] = {"linear", "ties", "slerp", "karcher"};
    t.matrix[1][2] = NAN;
    put_model("odd", &t, OP_F32);
    for (int i = 0; i < 4; i++) {
        char text[256];
        snprintf(text, sizeof text, "merge_method: %s\nbase_model: base\nmodels:\n- {model: odd, parameters: {weight: 1}}\n%sparameters: {t: 0.5, density: 0.5, weight: 1}\n", methods[i],
                 i ? "" : "- {model: base, parameters: {weight: 1}}\n");
        assert_refused(text, OP_ERR_FORMAT, "odd: tensor \"model.layers.1.mlp.weight\": element 2 is not finite");
    }
    t = filled(1);
    t.matrix[0][0] = 3e38f;
    put_model("odd", &t, OP_F32);
    assert_refused("merge_method: passthrough\nmodels:\n- {model: odd, parameters: {scale: 10}}\n", OP_ERR_FORMAT, "element 0 of the result is not finite");
}

static void an_output_that_is_taken_is_left_alone(void **state)
{
    (void)state;
    const char *yaml = "merge_method: passthrough\nmodels:\n- model: m1\n";
    op_merge_options o = {0};
    assert_int_equal(op_merge_text(yaml, strlen(yaml), "t.yaml", "m1", &o, NULL, e), OP_ERR_ARG);
    assert_message_has(e, "one of the models");
    assert_int_equal(op_merge_text(yaml, strlen(yaml), "t.yaml", "m2", &o, NULL, e), OP_ERR_ARG);
    assert_message_has(e, "there already");
    assert_true(op_path_exists("m2/model.safetensors"));
}

static void a_disk_that_fills_up_leaves_nothing(void **state)
{
    (void)state;
    struct rlimit old, small = {64, 64};
    op_path_remove("out", NULL);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const char *yaml = "merge_method: passthrough\nmodels:\n- model: m1\n";
    op_status s = op_merge_text(yaml, strlen(yaml), "t.yaml", "out", &(op_merge_options){0}, NULL, e);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    assert_int_equal(s, OP_ERR_IO);
    assert_message_has(e, "cannot write");
    assert_nothing_left();
}

static bool stop_after_two(void *ctx, size_t done, size_t total)
{
    (void)ctx, (void)total;
    return done < 2;
}

static void an_interrupted_merge_leaves_nothing(void **state)
{
    (void)state;
    const char *yaml = "merge_method: passthrough\nmodels:\n- model: m1\n";
    op_path_remove("out", NULL);
    assert_int_equal(op_merge_text(yaml, strlen(yaml), "t.yaml", "out", &(op_merge_options){.watch = stop_after_two}, NULL, e), OP_ERR_INTERRUPTED);
    assert_nothing_left();
}

static op_status merge_again(void *ctx, op_error *error)
{
    op_path_remove("out", NULL);
    return op_merge_text(ctx, strlen(ctx), "t.yaml", "out", &(op_merge_options){0}, NULL, error);
}

static void memory_that_runs_out_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    static const char *const methods[] = {"ties", "della", "karcher", "model_stock", "sce", "arcee_fusion", "nuslerp"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        char yaml[512];
        snprintf(yaml, sizeof yaml, "merge_method: %s\nbase_model: base\ndtype: bfloat16\nmodels:\n- model: m1\n%sparameters: {weight: 1, density: 0.5, select_topk: 0.5}\n", methods[i],
                 strcmp(methods[i], "arcee_fusion") ? "- model: m2\n" : "");
        op_threads_set(1);
        fail_every_allocation(merge_again, yaml);
        op_threads_set(0);
    }
}

/* ---- parts ---- */

static void rounding_is_to_the_nearest_number_of_the_type(void **state)
{
    (void)state;
    for (uint32_t u = 1; u < 0x7f000000u; u += 7919 * 131) {
        float x = op_unbits(u);
        assert_true(op_round_bf16(x) == op_bf16_to_f32(op_f32_to_bf16(x)));
        assert_true(op_round_f16(x) == op_f16_to_f32(op_f32_to_f16(x)));
        assert_true(op_round_f16(-x) == op_f16_to_f32(op_f32_to_f16(-x)));
    }
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float x = op_f16_to_f32((op_f16)h), y = op_f16_to_f32((op_f16)(h + 1));
        assert_true(op_round_f16(x) == x);
        float middle = x + (isfinite(y) ? (y - x) / 2 : 16);
        assert_true(op_round_f16(middle) == op_f16_to_f32(op_f32_to_f16(middle)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_is_the_weighted_mean_and_without_normalize_the_weighted_sum),
        cmocka_unit_test(task_vectors_are_weighted_added_and_scaled),
        cmocka_unit_test(ties_keeps_the_largest_and_those_with_the_majoritys_sign),
        cmocka_unit_test(breadcrumbs_leave_out_the_largest_too),
        cmocka_unit_test(what_was_thinned_out_gets_its_size_back),
        cmocka_unit_test(a_slerp_goes_along_the_arc_and_between_parallel_tensors_straight),
        cmocka_unit_test(nuslerp_by_rows_turns_each_row_by_itself),
        cmocka_unit_test(model_stock_goes_the_farther_the_more_the_models_agree),
        cmocka_unit_test(sce_weighs_a_vector_by_its_mean_square),
        cmocka_unit_test(ram_shares_what_several_move_and_keeps_what_one_moves),
        cmocka_unit_test(nearswap_takes_what_is_near_and_fusion_what_matters),
        cmocka_unit_test(random_methods_depend_on_the_seed_alone_and_keep_the_mean),
        cmocka_unit_test(the_first_filter_that_matches_and_the_place_between_the_layers_make_a_parameter),
        cmocka_unit_test(slices_stack_layers_of_several_models),
        cmocka_unit_test(types_are_those_of_the_files_unless_one_is_named),
        cmocka_unit_test(vocabularies_are_brought_into_one_order),
        cmocka_unit_test(a_gguf_and_its_directory_are_the_same_model),
        cmocka_unit_test(mistakes_in_the_file_are_named_with_their_line),
        cmocka_unit_test(models_that_do_not_fit_are_named_with_the_tensor),
        cmocka_unit_test(an_output_that_is_taken_is_left_alone),
        cmocka_unit_test(a_disk_that_fills_up_leaves_nothing),
        cmocka_unit_test(an_interrupted_merge_leaves_nothing),
        cmocka_unit_test(memory_that_runs_out_is_an_error_and_leaks_nothing),
        cmocka_unit_test(rounding_is_to_the_nearest_number_of_the_type),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
