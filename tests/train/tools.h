/* What the tests of this folder share: a tiny model and items over its vocabulary. */
#ifndef TESTS_TRAIN_TOOLS_H
#define TESTS_TRAIN_TOOLS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/train.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"

enum { VOCAB = 64 };

/* Fails the test with the message of the error. */
#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        op_error error_ = {0};                                                                                         \
        op_error *e = &error_;                                                                                         \
        if (call)                                                                                                      \
            fail_msg("%s", error_.message);                                                                            \
    } while (0)

static inline op_model_config tiny_config(void)
{
    return (op_model_config){.family = OP_LLAMA, .vocab = VOCAB, .width = 32, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 16,
                             .ffn = 64, .max_positions = 128, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1,
                             .pad = -1, .eos = {0}, .n_eos = 1};
}

static inline op_model *tiny_model(op_trainable what, float dropout)
{
    op_model_config c = tiny_config();
    op_model_options o = {.act = OP_F32, .trainable = what, .seed = 5,
                          .lora = {.rank = 4, .alpha = 8, .dropout = dropout, .targets = OP_LORA_ALL}};
    op_model *m = NULL;
    assert_ok(op_model_new(&m, &c, &o, e));
    return m;
}

/* Wide enough for moments of 8 bits, with gradients in bf16. */
static inline op_model *low_model(op_dtype grad_dtype)
{
    op_model_config c = tiny_config();
    c.width = 64;
    c.ffn = 96;
    op_model_options o = {.act = OP_BF16, .trainable = OP_TRAIN_ALL, .seed = 5, .grad_dtype = grad_dtype};
    op_model *m = NULL;
    assert_ok(op_model_new(&m, &c, &o, e));
    return m;
}

/* Items of 3..24 tokens. Those of one `family` (i % families) begin with the same context; the rest has weights. */
typedef struct items {
    op_item *x;
    size_t n;
} items;

static inline items random_items(size_t n, uint32_t families, bool negative, uint64_t seed)
{
    items set = {calloc(n, sizeof *set.x), n};
    for (size_t i = 0; i < n; i++) {
        uint64_t family = i % families;
        int32_t length = 3 + (int32_t)op_rng_below(seed, OP_STREAM_TEST, i, 22);
        int32_t shared = 2 + (int32_t)op_rng_below(seed, OP_STREAM_TEST, 1000 + family, 12);
        shared = shared < length - 1 ? shared : length - 1;
        int32_t *ids = malloc((size_t)length * sizeof *ids);
        float *weights = calloc((size_t)length, sizeof *weights);
        for (int32_t t = 0; t < length; t++) {
            uint64_t who = t < shared ? 500000 + family : i;
            ids[t] = (int32_t)op_rng_below(seed, OP_STREAM_TEST, 100000 + who * 64 + (uint64_t)t, VOCAB);
            if (t >= shared && (t == length - 1 || op_rng_uniform(seed, OP_STREAM_TEST, 900000 + i * 64 + (uint64_t)t) < 0.7))
                weights[t] = negative && t % 3 == 0 ? -0.5f : 1;
        }
        set.x[i] = (op_item){.ids = ids, .weights = weights, .n = length};
    }
    return set;
}

static inline void items_free(items *set)
{
    for (size_t i = 0; i < set->n; i++) {
        free((void *)(uintptr_t)set->x[i].ids);
        free((void *)(uintptr_t)set->x[i].weights);
    }
    free(set->x);
}

/* A new empty directory, in memory where that is possible: checkpoints sync often. */
static inline char *temp_dir(void)
{
    char *path = strdup(access("/dev/shm", W_OK) ? "/tmp/operant-test-XXXXXX" : "/dev/shm/operant-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void remove_dir(char *path)
{
    assert_ok(op_path_remove(path, e));
    free(path);
}

#endif
