/* What the tests of the vectors share: tiny models in a directory of their own, changed and saved. */
#ifndef OP_TESTS_VECTORS_TOOLS_H
#define OP_TESTS_VECTORS_TOOLS_H

#include <dirent.h>
#include <math.h>

#include <operant/file.h>
#include <operant/model.h>
#include <operant/vector.h>

#include "base/rng.h"
#include "../common.h"
#include "io/safetensors.h"
#include "io/tensors.h"
#include "vectors/vector.h"

static op_error e[1];

/* As in_dir, good for much longer. */
static inline const char *at(const char *name)
{
    static char paths[128][256];
    static int next;
    char *path = paths[next++ % 128];
    snprintf(path, sizeof paths[0], "%s/%s", test_dir, name);
    return path;
}

static inline void assert_ok(op_status s)
{
    if (s)
        fail_msg("%s", e->message);
}

static inline void assert_fails(op_status s, op_status expected, const char *says)
{
    if (s != expected)
        fail_msg("found \"%s\" (%s), expected %s", op_status_string(s), e->message, op_status_string(expected));
    assert_message_has(e, says);
}

static inline op_model_config tiny(op_family family)
{
    bool gpt2 = family == OP_GPT2;
    return (op_model_config){.family = family, .vocab = 48, .width = 32, .layers = 3, .heads = 4, .kv_heads = gpt2 ? 4 : 2, .head_dim = 8, .ffn = 64, .max_positions = 32,
                             .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .qkv_bias = gpt2 || family == OP_QWEN2, .out_bias = gpt2, .qk_norm = family == OP_QWEN3,
                             .bos = 1, .pad = 0, .eos = {2}, .n_eos = 1};
}

static inline op_model *new_model(op_model_config c, uint64_t seed)
{
    op_model *m;
    assert_ok(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = seed}, e));
    return m;
}

/* Saves and frees. */
static inline const char *save_model(op_model *m, const char *name, op_dtype dtype)
{
    const char *dir = at(name);
    assert_ok(op_dir_make(dir, e));
    assert_ok(op_model_save(m, dir, dtype, e));
    op_model_free(m);
    return dir;
}

/* Adds normal noise of deviation `size` to every parameter whose name contains `where`. */
static inline void disturb(op_model *m, double size, uint64_t seed, const char *where)
{
    op_params p = op_model_params(m);
    for (size_t k = 0; k < p.n_table; k++)
        for (size_t i = 0; i < p.table[k].n && strstr(p.table[k].name, where); i++)
            p.values[p.table[k].offset + i] += (float)(size * op_rng_normal(seed, OP_STREAM_TEST, p.table[k].offset + i));
}

static inline op_vector_options plain(void)
{
    return (op_vector_options){.dtype = OP_DTYPE_COUNT};
}

static inline op_vector_options forced(op_dtype dtype)
{
    return (op_vector_options){.dtype = dtype, .force = true};
}

/* All elements of a model's or vector's tensor, to be freed. */
static inline float *tensor_of(const char *path, const char *name, int64_t *n)
{
    op_weights *w;
    assert_ok(op_weights_open(&w, path, OP_WEIGHTS_DELTA, e));
    const op_weights_tensor *t = op_weights_find(w, name);
    if (!t)
        fail_msg("%s has no \"%s\"", path, name);
    float *x = malloc((size_t)t->count * sizeof *x + 1);
    assert_ok(op_weights_read(w, t, x, e));
    if (n)
        *n = t->count;
    op_weights_close(w);
    return x;
}

/* The names in the tests' directory, to see that nothing was left behind. */
static inline int entries(void)
{
    DIR *d = opendir(test_dir);
    int n = 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* A vector file with the tensors given, of which each is f32 and has 1 or 2 dimensions (cols 0: one). */
typedef struct given {
    const char *name;
    int64_t rows, cols;
    const float *values;
} given;

static inline const char *put_vector(const char *name, const char *base, const given *g, size_t n)
{
    op_tensor_out out[8];
    op_safetensors_meta meta[] = {{"operant.kind", "vector"}, {"operant.base.sha256", base}};
    const char *path = at(name);
    for (size_t i = 0; i < n; i++)
        out[i] = (op_tensor_out){.name = g[i].name, .dtype = OP_F32, .rank = g[i].cols ? 2 : 1, .shape = {g[i].rows, g[i].cols}, .data = g[i].values};
    assert_ok(op_safetensors_write(path, out, n, meta, 2, e));
    return path;
}

#define SOME_BASE "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

#endif
