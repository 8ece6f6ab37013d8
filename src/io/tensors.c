#include "io/tensors.h"

#include <string.h>

#include "io/quant.h"

static const struct {
    const char *name;
    size_t block, bytes;
} types[OP_DTYPE_COUNT] = {
    [OP_F32] = {"F32", 1, 4},        [OP_F16] = {"F16", 1, 2},        [OP_BF16] = {"BF16", 1, 2},
    [OP_F64] = {"F64", 1, 8},        [OP_Q4_0] = {"Q4_0", 32, 18},    [OP_Q4_1] = {"Q4_1", 32, 20},
    [OP_Q5_0] = {"Q5_0", 32, 22},    [OP_Q5_1] = {"Q5_1", 32, 24},    [OP_Q8_0] = {"Q8_0", 32, 34},
    [OP_Q4_K] = {"Q4_K", 256, 144},  [OP_Q5_K] = {"Q5_K", 256, 176},  [OP_Q6_K] = {"Q6_K", 256, 210},
    [OP_I8] = {"I8", 1, 1},          [OP_I16] = {"I16", 1, 2},        [OP_I32] = {"I32", 1, 4},
    [OP_I64] = {"I64", 1, 8},        [OP_U8] = {"U8", 1, 1},          [OP_U16] = {"U16", 1, 2},
    [OP_U32] = {"U32", 1, 4},        [OP_U64] = {"U64", 1, 8},        [OP_BOOL] = {"BOOL", 1, 1},
};

const char *op_dtype_name(op_dtype t)
{
    return t < OP_DTYPE_COUNT ? types[t].name : "unknown";
}

size_t op_dtype_block(op_dtype t)
{
    return types[t].block;
}

size_t op_dtype_block_bytes(op_dtype t)
{
    return types[t].bytes;
}

bool op_tensor_measure(op_tensor *t)
{
    size_t block = op_dtype_block(t->dtype);
    t->count = 1;
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] < 0 || __builtin_mul_overflow(t->count, t->shape[i], &t->count))
            return false;
    int64_t row = t->rank ? t->shape[t->rank - 1] : 1;
    return row % (int64_t)block == 0 &&
           !__builtin_mul_overflow((size_t)t->count / block, op_dtype_block_bytes(t->dtype), &t->bytes);
}

char *op_tensors_copy(op_tensors *t, const char *s, size_t n)
{
    char *copy = op_arena_alloc(&t->arena, n + 1);
    if (!copy)
        return NULL;
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

op_status op_tensors_map(op_tensors *t, const char *path, const op_map **m, op_error *e)
{
    op_map *grown = op_realloc(t->maps, (t->n_maps + 1) * sizeof *grown);
    if (!grown)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    t->maps = grown;
    *m = &t->maps[t->n_maps];
    op_status s = op_map_open(&t->maps[t->n_maps], path, e);
    t->n_maps += !s;
    return s;
}

/* By content: the name says nothing that the first bytes do not. */
static op_status parse(op_tensors *t, const op_map *m, const char *path, op_error *e)
{
    bool gguf = m->size >= 4 && !memcmp(m->data, "GGUF", 4);
    return gguf || ends_with(path, ".gguf") ? op_gguf_parse(t, m, path, e) : op_safetensors_parse(t, m, path, e);
}

static op_status open_file(op_tensors *t, const char *path, op_error *e)
{
    if (ends_with(path, ".json"))
        return op_safetensors_read_index(t, path, e);
    const op_map *m;
    op_status s = op_tensors_map(t, path, &m, e);
    return s ? s : parse(t, m, path, e);
}

static op_status open_dir(op_tensors *t, const char *path, op_error *e)
{
    static const char *const names[] = {"model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *file = op_path_join(path, names[i]);
        if (!file)
            return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
        bool there = op_path_exists(file);
        op_status s = there ? open_file(t, file, e) : OP_OK;
        op_free(file);
        if (there)
            return s;
    }
    return op_error_set(e, OP_ERR_IO, "%s: found no model in this directory, expected %s, %s or %s", path, names[0],
                        names[1], names[2]);
}

/* Takes over t, which is NULL when memory was out, and the status of filling it. */
static op_status finish(op_tensors **out, op_tensors *t, op_status s)
{
    *out = s ? NULL : t;
    if (s)
        op_tensors_close(t);
    return s;
}

op_status op_tensors_open(op_tensors **out, const char *path, op_error *e)
{
    op_tensors *t = op_alloc_zero(1, sizeof *t);
    if (!t)
        return finish(out, t, op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path));
    return finish(out, t, op_path_is_dir(path) ? open_dir(t, path, e) : open_file(t, path, e));
}

op_status op_tensors_parse(op_tensors **out, const void *bytes, size_t n, const char *name, op_error *e)
{
    op_tensors *t = op_alloc_zero(1, sizeof *t);
    if (!t)
        return finish(out, t, op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name));
    return finish(out, t, parse(t, &(op_map){bytes, n}, name, e));
}

void op_tensors_close(op_tensors *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_maps; i++)
        op_map_close(&t->maps[i]);
    for (size_t i = 0; i < t->n_pairs; i++)
        op_free(t->pairs[i].strings);
    op_free(t->maps);
    op_free(t->tensors);
    op_free(t->pairs);
    op_index_release(&t->index);
    op_index_release(&t->keys);
    op_arena_release(&t->arena);
    json_decref(t->metadata);
    op_free(t);
}

op_tensors_format op_tensors_get_format(const op_tensors *t)
{
    return t->format;
}

size_t op_tensors_count(const op_tensors *t)
{
    return t->n;
}

const op_tensor *op_tensors_at(const op_tensors *t, size_t i)
{
    return i < t->n ? &t->tensors[i] : NULL;
}

const op_tensor *op_tensors_find(const op_tensors *t, const char *name)
{
    int64_t i = op_index_find(&t->index, name);
    return i < 0 ? NULL : &t->tensors[i];
}

op_status op_tensor_read_f32(const op_tensor *t, int64_t first, int64_t n, float *out, op_error *e)
{
    int64_t block = (int64_t)op_dtype_block(t->dtype);
    if (first < 0 || n < 0 || first > t->count || n > t->count - first)
        return op_error_set(e, OP_ERR_ARG, "tensor \"%s\": elements %lld to %lld asked for, it has %lld", t->name,
                            (long long)first, (long long)first + (long long)n - 1, (long long)t->count);
    if (first % block || n % block)
        return op_error_set(e, OP_ERR_ARG, "tensor \"%s\": %lld elements from %lld asked for, %s comes in blocks of %lld",
                            t->name, (long long)n, (long long)first, op_dtype_name(t->dtype), (long long)block);
    const unsigned char *bytes = (const unsigned char *)t->data + (size_t)(first / block) * op_dtype_block_bytes(t->dtype);
    if (op_dequantize(t->dtype, bytes, (size_t)n, out))
        return OP_OK;
    return op_error_set(e, OP_ERR_UNSUPPORTED, "tensor \"%s\": found %s, expected floating-point numbers", t->name,
                        op_dtype_name(t->dtype));
}
