#include "vectors/tensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/model.h>
#include <operant/tokenizer.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/json.h"
#include "io/tensors.h"
#include "model/parts.h"

struct op_weights {
    char *path, *base_path;
    bool adapter;
    op_tensors *base, *delta; /* delta: the adapter's file; base NULL with OP_WEIGHTS_DELTA */
    op_weights_tensor *list;  /* [n] */
    size_t n;
    op_index index; /* names without "transformer." */
    op_arena names;
};

static op_status no_memory(const char *path, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
}

const char *op_weights_bare_name(const char *name)
{
    static const char prefix[] = "transformer.";
    return strncmp(name, prefix, sizeof prefix - 1) ? name : name + sizeof prefix - 1;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* The first n characters of s and then `tail`, in w's arena; NULL when memory is out. */
static const char *name_of(op_weights *w, const char *s, size_t n, const char *tail)
{
    char *name = op_arena_alloc(&w->names, n + strlen(tail) + 1);
    if (name) {
        memcpy(name, s, n);
        strcpy(name + n, tail);
    }
    return name;
}

static void flip(op_weights_tensor *t)
{
    int64_t first = t->shape[0];
    t->shape[0] = t->shape[1];
    t->shape[1] = first;
}

static void take(op_weights *w, const op_weights_tensor *t)
{
    w->list[w->n++] = *t;
}

static op_weights_tensor as_stored(const char *name, const op_tensor *x)
{
    op_weights_tensor t = {.name = name, .dtype = x->dtype, .rank = x->rank, .count = x->count, .stored = x, .plain = true};
    memcpy(t.shape, x->shape, sizeof t.shape);
    return t;
}

/* X = B A, whose factors are A [rank, cols] and B [rows, rank]. */
static op_status set_product(op_weights_tensor *t, const op_tensor *A, const op_tensor *B, const char *path, op_error *e)
{
    if (A->rank != 2 || B->rank != 2 || A->shape[0] != B->shape[1])
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensors \"%s\" and \"%s\" are no factors of one matrix", path, A->name, B->name);
    t->A = A;
    t->B = B;
    return OP_OK;
}

static op_status list_safetensors(op_weights *w, op_error *e)
{
    size_t n = op_tensors_count(w->base);
    op_status s = OP_OK;
    for (size_t i = 0; i < n && !s; i++) {
        const op_tensor *x = op_tensors_at(w->base, i);
        op_weights_tensor t = as_stored(x->name, x);
        if (ends_with(x->name, ".lora_A")) {
            size_t stem = strlen(x->name) - strlen(".lora_A");
            const char *b = name_of(w, x->name, stem, ".lora_B");
            const op_tensor *B = b ? op_tensors_find(w->base, b) : NULL;
            if (!b || !(t.name = name_of(w, x->name, stem, "")))
                return no_memory(w->path, e);
            if (!B)
                return op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is missing", w->path, b);
            if ((s = set_product(&t, x, B, w->path, e)))
                return s;
            t = (op_weights_tensor){.name = t.name, .dtype = OP_F32, .rank = 2, .shape = {B->shape[0], x->shape[1]},
                                    .count = B->shape[0] * x->shape[1], .A = x, .B = B, .scale = 1};
        } else if (ends_with(x->name, ".lora_B")) {
            const char *a = name_of(w, x->name, strlen(x->name) - 1, "A");
            if (!a)
                return no_memory(w->path, e);
            if (!op_tensors_find(w->base, a))
                return op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is missing", w->path, a);
            continue;
        }
        take(w, &t);
    }
    return s;
}

static op_status list_slot(op_weights *w, const op_model_config *c, const op_slot *x, op_error *e)
{
    const op_tensor *found = op_tensors_find(w->base, x->gguf);
    if (!found)
        return op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is missing", w->path, x->gguf);
    bool fits = x->cols == 1 ? found->rank == 1 && found->shape[0] == x->rows
                             : found->rank == 2 && found->shape[0] == x->rows && found->shape[1] == x->cols;
    if (!fits)
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" has another shape than [%lld, %lld]", w->path, x->gguf,
                            (long long)x->rows, (long long)x->cols);
    bool prefixed = c->family == OP_GPT2 && x->role != OP_ROLE_HEAD;
    const char *name = prefixed ? name_of(w, "transformer.", strlen("transformer."), x->name) : name_of(w, x->name, strlen(x->name), "");
    if (!name)
        return no_memory(w->path, e);
    op_weights_tensor t = as_stored(name, found);
    bool rotated = x->role == OP_ROLE_Q || x->role == OP_ROLE_K || x->role == OP_ROLE_Q_B || x->role == OP_ROLE_K_B;
    t.head_dim = rotated && c->family == OP_LLAMA ? c->head_dim : 0;
    t.turned = x->transposed;
    t.plain = !t.head_dim && !t.turned;
    if (t.turned)
        flip(&t);
    take(w, &t);
    return OP_OK;
}

static op_status list_gguf(op_weights *w, op_error *e)
{
    op_model *m = op_alloc_zero(1, sizeof *m); /* only for its table of tensors */
    if (!m)
        return no_memory(w->path, e);
    op_status s = op_model_config_from_gguf(&m->config, w->base, e);
    if (s)
        op_error_prefix(e, "%s", w->path);
    else
        s = op_slots_build(m, e);
    for (size_t i = 0; i < m->n_slots && !s; i++)
        s = list_slot(w, &m->config, &m->slots[i], e);
    op_model_free(m);
    return s;
}

/* ---- adapters ---- */

typedef struct adapter_settings {
    double alpha;
    bool rslora, turned;
} adapter_settings;

static op_status read_settings(adapter_settings *a, const char *dir, op_error *e)
{
    json_t *j = NULL;
    const char *type = NULL;
    char *file = op_path_join(dir, "adapter_config.json");
    op_status s = file ? op_json_read(&j, file, e) : no_memory(dir, e);
    *a = (adapter_settings){0};
    if (!s && !(s = op_json_get_string(j, "peft_type", true, &type, file, e)) &&
        !(s = op_json_get_float(j, "lora_alpha", true, &a->alpha, file, e)) &&
        !(s = op_json_get_bool(j, "use_rslora", false, &a->rslora, file, e)))
        s = op_json_get_bool(j, "fan_in_fan_out", false, &a->turned, file, e);
    if (!s && strcmp(type, "LORA"))
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: peft_type \"%s\", expected LORA", file, type);
    if (!s && (json_object_size(json_object_get(j, "alpha_pattern")) || json_object_size(json_object_get(j, "rank_pattern"))))
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: alpha_pattern and rank_pattern are not supported", file);
    json_decref(j);
    op_free(file);
    return s;
}

/* Adds scale B A of one pair of factors to the tensor that it belongs to, or lists it alone. */
static op_status add_factors(op_weights *w, const adapter_settings *a, const op_tensor *A, op_error *e)
{
    static const char before[] = "base_model.model.", after[] = ".lora_A.weight";
    size_t length = strlen(A->name), skip = sizeof before - 1, tail = sizeof after - 1;
    if (strncmp(A->name, before, skip) || length <= skip + tail)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\", expected base_model.model.NAME.lora_A.weight", w->path, A->name);
    const char *name = name_of(w, A->name + skip, length - skip - tail, ".weight");
    const char *other = name_of(w, A->name, length - tail, ".lora_B.weight");
    if (!name || !other)
        return no_memory(w->path, e);
    const op_tensor *B = op_tensors_find(w->delta, other);
    if (!B)
        return op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is missing", w->path, other);
    op_weights_tensor pure = {.name = name, .dtype = OP_F32, .rank = 2}, *t = &pure;
    if (w->base && !(t = (op_weights_tensor *)op_weights_find(w, name)))
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" adapts \"%s\", which \"%s\" does not have", w->path, A->name, name, w->base_path);
    op_status s = set_product(t, A, B, w->path, e);
    if (s)
        return s;
    int64_t rows = a->turned ? A->shape[1] : B->shape[0], cols = a->turned ? B->shape[0] : A->shape[1], rank = A->shape[0];
    if (w->base && (t->rank != 2 || t->shape[0] != rows || t->shape[1] != cols))
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" makes [%lld, %lld], but \"%s\" of \"%s\" has another shape", w->path, A->name,
                            (long long)rows, (long long)cols, name, w->base_path);
    t->scale = rank ? a->alpha / (a->rslora ? sqrt((double)rank) : (double)rank) : 0;
    t->product_turned = a->turned;
    t->plain = false;
    if (w->base)
        return OP_OK;
    t->shape[0] = rows;
    t->shape[1] = cols;
    t->count = rows * cols;
    take(w, t);
    return OP_OK;
}

static op_status add_adapter(op_weights *w, op_error *e)
{
    adapter_settings a;
    op_status s = read_settings(&a, w->path, e);
    for (size_t i = 0; i < op_tensors_count(w->delta) && !s; i++) {
        const op_tensor *x = op_tensors_at(w->delta, i);
        if (ends_with(x->name, ".lora_A.weight"))
            s = add_factors(w, &a, x, e);
        else if (!ends_with(x->name, ".lora_B.weight"))
            s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\" is no factor of a LoRA matrix", w->path, x->name);
    }
    return s;
}

/* ---- life ---- */

static op_status make_index(op_weights *w, op_error *e)
{
    if (op_index_init(&w->index, w->n))
        return no_memory(w->path, e);
    for (size_t i = 0; i < w->n; i++)
        if (!op_index_add(&w->index, op_weights_bare_name(w->list[i].name), (uint32_t)i))
            return op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is there twice", w->path, w->list[i].name);
    return OP_OK;
}

static op_status fill(op_weights *w, const char *path, unsigned flags, op_error *e)
{
    w->path = op_strdup(path);
    char *config = op_path_join(path, "adapter_config.json");
    w->adapter = config && op_path_exists(config);
    op_free(config);
    if (!w->path || !config)
        return no_memory(path, e);
    op_status s = op_model_base_path(path, &w->base_path, e);
    if (!s && w->adapter)
        s = op_tensors_open(&w->delta, path, e);
    if (!s && !(w->adapter && flags & OP_WEIGHTS_DELTA))
        s = op_tensors_open(&w->base, w->base_path, e);
    if (s)
        return s;
    size_t most = (w->base ? op_tensors_count(w->base) : 0) + (w->delta ? op_tensors_count(w->delta) : 0);
    if (!(w->list = op_alloc_zero(most + 1, sizeof *w->list)))
        return no_memory(path, e);
    if (w->base && (s = op_tensors_get_format(w->base) == OP_GGUF ? list_gguf(w, e) : list_safetensors(w, e)))
        return s;
    if (!w->base && (s = add_adapter(w, e)))
        return s;
    s = make_index(w, e);
    return s || !w->base || !w->adapter ? s : add_adapter(w, e);
}

op_status op_weights_open(op_weights **out, const char *path, unsigned flags, op_error *e)
{
    *out = NULL;
    op_weights *w = op_alloc_zero(1, sizeof *w);
    if (!w)
        return no_memory(path, e);
    op_arena_init(&w->names);
    op_status s = fill(w, path, flags, e);
    if (s)
        op_weights_close(w);
    else
        *out = w;
    return s;
}

void op_weights_close(op_weights *w)
{
    if (!w)
        return;
    op_tensors_close(w->base);
    op_tensors_close(w->delta);
    op_index_release(&w->index);
    op_arena_release(&w->names);
    op_free(w->list);
    op_free(w->base_path);
    op_free(w->path);
    op_free(w);
}

const char *op_weights_path(const op_weights *w)
{
    return w->path;
}

const char *op_weights_base_path(const op_weights *w)
{
    return w->base_path;
}

bool op_weights_is_adapter(const op_weights *w)
{
    return w->adapter;
}

const op_tensors *op_weights_tensors(const op_weights *w)
{
    return w->base ? w->base : w->delta;
}

size_t op_weights_count(const op_weights *w)
{
    return w->n;
}

const op_weights_tensor *op_weights_at(const op_weights *w, size_t i)
{
    return &w->list[i];
}

const op_weights_tensor *op_weights_find(const op_weights *w, const char *name)
{
    int64_t i = op_index_find(&w->index, op_weights_bare_name(name));
    return i < 0 ? NULL : &w->list[i];
}

/* ---- reading ---- */

/* Row r of ours, j D/2 + i of its head, stands at row 2i + j of the head in llama.cpp's file. */
static void put_back_rows(const op_weights_tensor *t, const float *from, float *out)
{
    int64_t D = t->head_dim, cols = t->rank > 1 ? t->shape[1] : 1;
    for (int64_t r = 0; r < t->shape[0]; r++) {
        int64_t head = r / D, k = r % D, j = k / (D / 2), i = k % (D / 2);
        memcpy(out + r * cols, from + (head * D + 2 * i + j) * cols, (size_t)cols * sizeof *out);
    }
}

static op_status read_stored(const op_weights_tensor *t, float *out, op_error *e)
{
    if (t->plain || (!t->head_dim && !t->turned))
        return op_tensor_read_f32(t->stored, 0, t->count, out, e);
    float *raw = op_alloc_array((size_t)t->count, sizeof *raw);
    op_status s = raw ? op_tensor_read_f32(t->stored, 0, t->count, raw, e) : op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", t->name);
    if (!s && t->head_dim)
        put_back_rows(t, raw, out);
    for (int64_t r = 0; t->turned && r < t->shape[0] && !s; r++)
        for (int64_t c = 0; c < t->shape[1]; c++)
            out[r * t->shape[1] + c] = raw[c * t->shape[0] + r];
    op_free(raw);
    return s;
}

static op_status add_product(const op_weights_tensor *t, float *out, op_error *e)
{
    int64_t rank = t->A->shape[0], in = t->A->shape[1], rows = t->B->shape[0];
    float *A = op_alloc_array((size_t)(t->A->count + t->B->count), sizeof *A), *B = A + (A ? t->A->count : 0);
    op_status s = A ? op_tensor_read_f32(t->A, 0, t->A->count, A, e) : op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", t->name);
    if (!s)
        s = op_tensor_read_f32(t->B, 0, t->B->count, B, e);
    for (int64_t o = 0; o < rows && !s; o++)
        for (int64_t k = 0; k < rank; k++) {
            float b = (float)t->scale * B[o * rank + k];
            for (int64_t c = 0; c < in; c++)
                out[t->product_turned ? c * rows + o : o * in + c] += b * A[k * in + c];
        }
    op_free(A);
    return s;
}

/* An exponent of all ones is an infinity or no number; the test by bits runs several numbers at a time. */
static op_status check_finite(const op_weights_tensor *t, const float *w, op_error *e)
{
    for (int64_t i = 0; i < t->count; i++) {
        uint32_t u;
        memcpy(&u, w + i, 4);
        if ((u & 0x7f800000u) == 0x7f800000u)
            return op_error_set(e, OP_ERR_FORMAT, "tensor \"%s\": element %lld is not finite", t->name, (long long)i);
    }
    return OP_OK;
}

op_status op_weights_read(const op_weights *w, const op_weights_tensor *t, float *out, op_error *e)
{
    op_status s = OP_OK;
    if (t->stored)
        s = read_stored(t, out, e);
    else
        memset(out, 0, (size_t)t->count * sizeof *out);
    if (!s && t->A)
        s = add_product(t, out, e);
    if (!s)
        s = check_finite(t, out, e);
    return s ? op_error_prefix(e, "%s", w->path) : OP_OK;
}

static bool is_float(op_dtype t)
{
    return t < OP_I8;
}

static int by_bare_name(const void *a, const void *b)
{
    const op_weights_tensor *const *x = a, *const *y = b;
    return strcmp(op_weights_bare_name((*x)->name), op_weights_bare_name((*y)->name));
}

static op_status hash_tensor(const op_weights *w, const op_weights_tensor *t, float *room, op_hasher *all, op_error *e)
{
    char hex[OP_HASH_HEX];
    op_buf line;
    op_status s = op_weights_read(w, t, room, e);
    if (s)
        return s;
    op_hash(room, (size_t)t->count * sizeof *room, hex);
    op_buf_init(&line, 1 << 20);
    s = op_buf_printf(&line, "%s [", op_weights_bare_name(t->name));
    for (int i = 0; i < t->rank && !s; i++)
        s = op_buf_printf(&line, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    if (!s)
        s = op_buf_printf(&line, "] %s\n", hex);
    if (!s)
        op_hash_add(all, line.data, line.len);
    op_buf_release(&line);
    return s ? no_memory(w->path, e) : OP_OK;
}

op_status op_weights_hash(const op_weights *w, char hex[65], op_error *e)
{
    const op_weights_tensor **order = op_alloc_array(w->n + 1, sizeof *order);
    size_t n = 0, largest = 0;
    for (size_t i = 0; i < w->n && order; i++)
        if (is_float(w->list[i].dtype)) {
            order[n++] = &w->list[i];
            largest = (size_t)w->list[i].count > largest ? (size_t)w->list[i].count : largest;
        }
    float *room = op_alloc_array(largest + 1, sizeof *room);
    op_hasher all;
    op_hash_begin(&all);
    op_status s = order && room ? OP_OK : no_memory(w->path, e);
    if (!s)
        qsort(order, n, sizeof *order, by_bare_name);
    for (size_t i = 0; i < n && !s; i++)
        s = hash_tensor(w, order[i], room, &all, e);
    if (!s)
        op_hash_end(&all, hex);
    op_free(order);
    op_free(room);
    return s;
}

/* ---- writing ---- */

/* One tensor in memory, that which is being written. */
typedef struct writing {
    op_weights_fn fn;
    void *ctx;
    float *room;
} writing;

typedef struct out_tensor {
    writing *all;
    size_t i;
    op_weights_spec spec;
} out_tensor;

static op_status give(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    const out_tensor *t = ctx;
    op_status s = first ? OP_OK : t->all->fn(t->all->ctx, t->i, t->all->room, e);
    if (!s)
        memcpy(out, t->all->room + first, (size_t)n * sizeof *out);
    return s;
}

op_status op_weights_write(const char *path, const op_weights_spec *t, size_t n, op_weights_fn fn, void *ctx, const op_safetensors_meta *meta,
                           size_t n_meta, op_error *e)
{
    size_t largest = 0;
    op_tensor_out *out = op_alloc_zero(n + 1, sizeof *out);
    out_tensor *sources = op_alloc_zero(n + 1, sizeof *sources);
    writing all = {.fn = fn, .ctx = ctx};
    for (size_t i = 0; i < n && out && sources; i++) {
        sources[i] = (out_tensor){.all = &all, .i = i};
        out[i] = (op_tensor_out){.name = t[i].name, .dtype = t[i].dtype, .rank = t[i].rank, .source = give, .ctx = &sources[i]};
        memcpy(out[i].shape, t[i].shape, sizeof out[i].shape);
        size_t count = 1;
        for (int k = 0; k < t[i].rank; k++)
            count *= (size_t)t[i].shape[k];
        largest = count > largest ? count : largest;
    }
    all.room = op_alloc_array(largest + 1, sizeof *all.room);
    op_status s = out && sources && all.room ? OP_OK : no_memory(path, e);
    if (!s)
        s = ends_with(path, ".safetensors") ? op_safetensors_write(path, out, n, meta, n_meta, e)
                                            : op_safetensors_write_dir(path, out, n, meta, n_meta, (uint64_t)5 << 30, e);
    op_free(all.room);
    op_free(sources);
    op_free(out);
    return s;
}

static op_status copy_file(const char *from, const char *dir, const char *name, op_error *e)
{
    char *source = op_path_join(from, name), *target = op_path_join(dir, name);
    op_status s = source && target ? OP_OK : no_memory(dir, e);
    op_map m = {0};
    if (!s && op_path_exists(source) && !(s = op_map_open(&m, source, e)))
        s = op_file_put(target, m.data, m.size, e);
    op_map_close(&m);
    op_free(source);
    op_free(target);
    return s;
}

static op_status copy_config(const char *from, const char *dir, op_dtype dtype, op_error *e)
{
    const char *type = dtype == OP_F32 ? "float32" : dtype == OP_F16 ? "float16" : "bfloat16";
    char *source = op_path_join(from, "config.json"), *target = op_path_join(dir, "config.json");
    json_t *j = NULL;
    op_status s = source && target ? OP_OK : no_memory(dir, e);
    if (!s && op_path_exists(source)) {
        s = op_json_read(&j, source, e);
        if (!s && !json_is_object(j))
            s = op_error_set(e, OP_ERR_FORMAT, "%s: found %s, expected an object", source, op_json_kind(j));
        if (!s && (json_object_set_new(j, "dtype", json_string(type)) || json_object_set_new(j, "torch_dtype", json_string(type))))
            s = no_memory(source, e);
        if (!s)
            s = op_json_write(target, j, e);
    }
    json_decref(j);
    op_free(source);
    op_free(target);
    return s;
}

static op_status from_gguf(const op_tensors *t, const char *from, const char *dir, op_dtype dtype, op_error *e)
{
    op_model_config c;
    op_tokenizer *words = NULL;
    op_status s = op_model_config_from_gguf(&c, t, e);
    if (s)
        return op_error_prefix(e, "%s", from);
    s = op_model_config_save(&c, dir, dtype, e);
    if (!s && op_tensors_meta_string(t, "tokenizer.ggml.model", NULL)) {
        s = op_tokenizer_from_gguf(&words, t, e);
        if (!s)
            s = op_tokenizer_save(words, dir, e);
    }
    op_tokenizer_free(words);
    return s;
}

op_status op_weights_write_rest(const char *from, const char *dir, op_dtype dtype, op_error *e)
{
    static const char *const names[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"};
    op_status s = OP_OK;
    if (!op_path_is_dir(from)) {
        op_tensors *t;
        if ((s = op_tensors_open(&t, from, e)))
            return s;
        if (op_tensors_get_format(t) == OP_GGUF)
            s = from_gguf(t, from, dir, dtype, e);
        op_tensors_close(t);
        return s;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names && !s; i++)
        s = copy_file(from, dir, names[i], e);
    return s ? s : copy_config(from, dir, dtype, e);
}

/* ---- a directory in the making ---- */

op_status op_dir_out_begin(op_dir_out *d, const char *path, op_error *e)
{
    *d = (op_dir_out){0};
    if (op_path_exists(path) && (!op_path_is_dir(path) || rmdir(path)))
        return op_error_set(e, OP_ERR_ARG, "output \"%s\" is there already: remove it or name another", path);
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    char id[32];
    snprintf(id, sizeof id, ".tmp-%d", (int)getpid());
    d->path = op_strndup(path, n);
    d->temp = op_alloc(n + sizeof id);
    op_status s = d->path && d->temp ? OP_OK : no_memory(path, e);
    if (!s) {
        snprintf(d->temp, n + sizeof id, "%s%s", d->path, id);
        if (!(s = op_path_remove(d->temp, e)))
            s = op_dir_make(d->temp, e);
    }
    if (s)
        op_dir_out_abort(d);
    return s;
}

op_status op_dir_out_commit(op_dir_out *d, op_error *e)
{
    op_status s = op_path_rename(d->temp, d->path, e);
    if (!s) {
        op_free(d->temp);
        d->temp = NULL;
    }
    op_dir_out_abort(d);
    return s;
}

void op_dir_out_abort(op_dir_out *d)
{
    if (d->temp)
        op_path_remove(d->temp, NULL);
    op_free(d->temp);
    op_free(d->path);
    *d = (op_dir_out){0};
}
