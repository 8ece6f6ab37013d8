/* Opening, holding and closing a model: where its tensors live, and how they get there. */
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "model/parts.h"

/* ---- storage ---- */

static void *need(size_t bytes, const char *what, op_status *s, op_error *e)
{
    void *p = *s ? NULL : op_alloc_aligned(bytes);
    if (!p && !*s)
        *s = op_error_set(e, OP_ERR_NOMEM, "out of memory: %zu MiB for %s", bytes >> 20, what);
    return p;
}

static bool is_product(const op_slot *s)
{
    return s->cols > 1 && s->role != OP_ROLE_EMBED && s->role != OP_ROLE_POSITION;
}

/* Float gradients lie as the values do; bf16 ones of matrices apart from the float ones of vectors. */
static op_status place_gradients(op_model *m, op_error *e)
{
    bool act = m->options.grad_dtype == OP_BF16;
    if (act && m->ops->act != OP_BF16)
        return op_error_set(e, OP_ERR_ARG, "gradients in bf16 need products in bf16, found dtype %s", op_dtype_name(m->ops->act));
    m->frozen = m->options.freeze_embedding ? (size_t)m->config.vocab * m->config.width : 0; /* the first slot */
    size_t vectors = 0, matrices = 0, at[2] = {0};
    for (size_t i = 0; i < m->n_slots; i++)
        if (m->slots[i].offset >= m->frozen)
            *(act && m->slots[i].cols > 1 ? &matrices : &vectors) += (size_t)(m->slots[i].rows * m->slots[i].cols);
    op_status s = OP_OK;
    m->grads = need(vectors * sizeof(float), "gradients", &s, e);
    m->grads_act = act ? need(matrices * m->ops->act_size, "gradients", &s, e) : NULL;
    for (size_t i = 0; i < m->n_slots && !s; i++) {
        op_slot *x = &m->slots[i];
        if (x->offset < m->frozen)
            continue;
        x->grad_act = act && x->cols > 1;
        x->grad = x->grad_act ? (char *)m->grads_act + at[1] * m->ops->act_size : (char *)(m->grads + at[0]);
        at[x->grad_act] += (size_t)(x->rows * x->cols);
    }
    return s;
}

/* Places every slot: all of them in one array, or only what is no product. */
static op_status place(op_model *m, op_error *e)
{
    op_status s = OP_OK;
    size_t small = 0;
    for (size_t i = 0; i < m->n_slots; i++)
        if (!is_product(&m->slots[i]) && m->slots[i].role != OP_ROLE_EMBED)
            small += (size_t)(m->slots[i].rows * m->slots[i].cols);
    m->values = need((m->floats ? m->n_values : small) * sizeof(float), "weights", &s, e);
    if (m->options.trainable == OP_TRAIN_ALL)
        s = s ? s : place_gradients(m, e);
    if (s)
        return s;
    size_t at = 0;
    for (size_t i = 0; i < m->n_slots; i++) {
        op_slot *x = &m->slots[i];
        if (m->floats) {
            x->value = m->values + x->offset;
        } else if (!is_product(x) && x->role != OP_ROLE_EMBED) {
            x->value = m->values + at;
            at += (size_t)(x->rows * x->cols);
        }
    }
    return OP_OK;
}

static op_status group_make(op_model *m, op_group *g, size_t first, size_t n, op_error *e)
{
    int64_t N = 0;
    for (size_t i = 0; i < n; i++)
        N += m->slots[first + i].rows;
    *g = (op_group){.first = first, .n = n, .N = (int32_t)N, .K = (int32_t)m->slots[first].cols};
    bool backward = m->options.trainable != OP_TRAIN_NONE, quantised = m->options.weights == OP_WEIGHTS_QUANTISED;
    g->W = quantised ? m->ops->weight_new_quantised(g->N, g->K) : m->ops->weight_new(g->N, g->K, backward);
    return g->W ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for a packed %d x %d matrix", g->N, g->K);
}

static op_status groups_make(op_model *m, op_error *e)
{
    bool gpt2 = m->config.family == OP_GPT2;
    op_status s = OP_OK;
    for (int32_t l = 0; l < m->config.layers && !s; l++) {
        op_layer *y = &m->layers[l];
        if ((s = group_make(m, &y->qkv, y->slot[OP_ROLE_Q], gpt2 ? 1 : 3, e)) ||
            (s = group_make(m, &y->o, y->slot[OP_ROLE_O], 1, e)) ||
            (s = group_make(m, &y->gu, gpt2 ? y->slot[OP_ROLE_UP] : y->slot[OP_ROLE_GATE], gpt2 ? 1 : 2, e)) ||
            (s = group_make(m, &y->down, y->slot[OP_ROLE_DOWN], 1, e)))
            return s;
    }
    return s ? s : group_make(m, &m->head, m->slot[m->config.tied ? OP_ROLE_EMBED : OP_ROLE_HEAD], 1, e);
}

/* Calls fn for every group, the head last. */
static op_status each_group(op_model *m, op_status (*fn)(op_model *, op_group *, void *, op_error *), void *ctx,
                            op_error *e)
{
    op_status s = OP_OK;
    for (int32_t l = 0; l < m->config.layers && !s; l++) {
        op_layer *y = &m->layers[l];
        if ((s = fn(m, &y->qkv, ctx, e)) || (s = fn(m, &y->o, ctx, e)) || (s = fn(m, &y->gu, ctx, e)))
            return s;
        s = fn(m, &y->down, ctx, e);
    }
    return s ? s : fn(m, &m->head, ctx, e);
}

static op_status pack(op_model *m, op_group *g, void *values, op_error *e)
{
    const float *w = values ? values : m->slots[g->first].value;
    return m->ops->weight_pack(g->W, w) ? op_error_set(e, OP_ERR_NOMEM, "out of memory: packing a matrix") : OP_OK;
}

static op_status pack_trained(op_model *m, op_group *g, void *values, op_error *e)
{
    bool frozen = m->frozen && m->slots[g->first].role == OP_ROLE_EMBED;
    return frozen ? OP_OK : pack(m, g, values, e);
}

op_status op_model_updated(op_model *m, op_error *e)
{
    if (m->options.trainable == OP_TRAIN_ADAPTER) {
        op_adapter_refresh(m, &m->adapters[0]);
        return OP_OK;
    }
    return m->floats ? each_group(m, pack_trained, NULL, e) : OP_OK;
}

/* ---- reading weights ---- */

static const op_tensor *find_tensor(const op_tensors *t, const op_slot *x)
{
    if (op_tensors_get_format(t) == OP_GGUF)
        return op_tensors_find(t, x->gguf);
    const op_tensor *found = op_tensors_find(t, x->name);
    if (found)
        return found;
    char prefixed[128]; /* GPT-2 checkpoints come with and without it */
    snprintf(prefixed, sizeof prefixed, "transformer.%s", x->name);
    return op_tensors_find(t, prefixed);
}

static op_status check_finite(const op_slot *x, int64_t first, int64_t n, const float *w, op_error *e)
{
    const uint32_t exponent = 0x7f800000u;
    uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, w + i, 4);
        bad |= (u & exponent) == exponent;
    }
    for (int64_t i = 0; i < n && bad; i++) {
        uint32_t u;
        memcpy(&u, w + i, 4);
        if ((u & exponent) == exponent)
            return op_error_set(e, OP_ERR_FORMAT, "tensor \"%s\": element %lld is not finite", x->name, (long long)(first + i));
    }
    return OP_OK;
}

/* Where llama.cpp stores row r of Q and K of the llama family: the two halves of a head are interleaved. */
static int64_t interleaved(int64_t r, int64_t D)
{
    int64_t i = r % D;
    return r - i + 2 * (i % (D / 2)) + i / (D / 2);
}

/* Rows first..first+n-1 of a matrix that the file holds transposed. */
static op_status read_columns(const op_tensor *t, const op_slot *x, int64_t first, int64_t n, float *w, op_error *e)
{
    enum { AT_ONCE = 256 };
    float part[AT_ONCE];
    op_status s = OP_OK;
    for (int64_t c = 0; c < x->cols; c++)
        for (int64_t r = 0, k; r < n && !s; r += k) {
            k = n - r < AT_ONCE ? n - r : AT_ONCE;
            s = op_tensor_read_f32(t, c * x->rows + first + r, k, part, e);
            for (int64_t i = 0; i < k; i++)
                w[(r + i) * x->cols + c] = part[i];
        }
    return s;
}

/* Rows first..first+n-1 of a slot into w[n, cols]. */
static op_status read_rows(const op_model *m, const op_tensors *t, const op_slot *x, int64_t first, int64_t n, float *w, op_error *e)
{
    const op_tensor *found = find_tensor(t, x);
    bool gguf = op_tensors_get_format(t) == OP_GGUF;
    if (!found)
        return op_error_set(e, OP_ERR_FORMAT, "tensor \"%s\" is missing", gguf ? x->gguf : x->name);
    bool transposed = x->transposed && !gguf;
    int64_t rows = transposed ? x->cols : x->rows, cols = transposed ? x->rows : x->cols;
    bool fits = x->cols == 1 ? found->rank == 1 && found->shape[0] == x->rows
                             : found->rank == 2 && found->shape[0] == rows && found->shape[1] == cols;
    if (!fits)
        return op_error_set(e, OP_ERR_MISMATCH, "tensor \"%s\" has shape [%lld, %lld], expected [%lld, %lld]", found->name,
                            (long long)found->shape[0], (long long)(found->rank > 1 ? found->shape[1] : 1), (long long)rows,
                            (long long)cols);
    bool rope_rows = x->role == OP_ROLE_Q || x->role == OP_ROLE_K || x->role == OP_ROLE_Q_B || x->role == OP_ROLE_K_B;
    op_status s = OP_OK;
    if (transposed)
        s = read_columns(found, x, first, n, w, e);
    else if (!gguf || !rope_rows || m->config.family != OP_LLAMA)
        s = op_tensor_read_f32(found, first * cols, n * cols, w, e);
    else
        for (int64_t r = 0; r < n && !s; r++)
            s = op_tensor_read_f32(found, interleaved(first + r, m->config.head_dim) * cols, cols, w + r * cols, e);
    return s ? s : check_finite(x, first * x->cols, n * x->cols, w, e);
}

/* Some rows of a group's joint matrix, or of a slot that belongs to none: what a thread reads, and packs, at a time. */
typedef struct piece {
    const op_group *group; /* or NULL, and */
    const op_slot *slot;
    int64_t first, n, cols;
} piece;

typedef struct reader {
    op_model *m;
    const op_tensors *tensors;
    piece *pieces;
    size_t n, cap;
    int64_t most; /* values of the largest piece that is packed */
} reader;

static op_status add_pieces(reader *r, const op_group *g, const op_slot *x, int64_t rows, int64_t cols, int64_t step, op_error *e)
{
    for (int64_t first = 0; first < rows; first += step) {
        if (!op_grow(&r->pieces, r->n, &r->cap, sizeof *r->pieces))
            return op_error_set(e, OP_ERR_NOMEM, "out of memory while reading weights");
        int64_t n = rows - first < step ? rows - first : step;
        r->pieces[r->n++] = (piece){g, x, first, n, cols};
        r->most = n * cols > r->most && (g || !x->value) ? n * cols : r->most;
    }
    return OP_OK;
}

static op_status add_group(op_model *m, op_group *g, void *ctx, op_error *e)
{
    return add_pieces(ctx, g, NULL, g->N, g->K, m->ops->pack_step(g->W), e);
}

/* Rows of the embedding into the table that is looked up. */
static void keep_embedding(const op_model *m, const op_slot *x, int64_t first, int64_t n, const float *w)
{
    if (x->role == OP_ROLE_EMBED && m->embed_act)
        m->ops->to_act((size_t)(n * x->cols), w, (char *)m->embed_act + (size_t)(first * x->cols) * m->ops->act_size);
}

/* `room` holds the largest piece. */
static op_status read_piece(const reader *r, const piece *p, float *room, op_error *e)
{
    op_status s = OP_OK;
    if (!p->group) {
        float *w = p->slot->value ? p->slot->value + p->first * p->cols : room;
        s = read_rows(r->m, r->tensors, p->slot, p->first, p->n, w, e);
        if (!s)
            keep_embedding(r->m, p->slot, p->first, p->n, w);
        return s;
    }
    int64_t at = 0; /* of the slot's first row in the group */
    for (size_t i = 0; i < p->group->n && !s; i++) {
        const op_slot *x = &r->m->slots[p->group->first + i];
        int64_t from = p->first > at ? p->first : at, to = p->first + p->n < at + x->rows ? p->first + p->n : at + x->rows;
        if (from < to) {
            float *w = room + (from - p->first) * p->cols;
            s = read_rows(r->m, r->tensors, x, from - at, to - from, w, e);
            if (!s)
                keep_embedding(r->m, x, from - at, to - from, w);
        }
        at += x->rows;
    }
    if (!s && (s = r->m->ops->weight_pack_rows(p->group->W, (int)p->first, (int)p->n, room)))
        op_error_set(e, s, "out of memory: packing a matrix");
    return s;
}

/* Of the errors of several threads the one with the lowest number, whoever comes first. */
typedef struct first_error {
    size_t at;
    op_error error;
} first_error;

static void note_error(first_error *x, size_t at, const op_error *e)
{
#pragma omp critical(op_first_error)
    if (!x->error.code || at < x->at)
        *x = (first_error){at, *e};
}

static op_status tell_error(const first_error *x, op_error *e)
{
    return x->error.code ? op_error_set(e, x->error.code, "%s", x->error.message) : OP_OK;
}

static op_status read_pieces(const reader *r, op_error *e)
{
    first_error why = {0};
    float *room = op_alloc_array((size_t)r->most * (size_t)op_threads(), sizeof *room);
    if (!room)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory while reading weights");
#pragma omp parallel for schedule(dynamic)
    for (size_t k = 0; k < r->n; k++) { /* from the last on: the head's may be the largest */
        op_error mine = {0};
        size_t i = r->n - 1 - k;
        if (read_piece(r, &r->pieces[i], room + r->most * op_thread(), &mine))
            note_error(&why, i, &mine);
    }
    op_free(room);
    return tell_error(&why, e);
}

/* Reads every weight: floats to their places, and what is no float through a room of each thread to where it is packed. */
static op_status read_weights(op_model *m, const op_tensors *t, op_error *e)
{
    enum { ROWS = 256 };
    reader r = {.m = m, .tensors = t};
    op_status s = OP_OK;
    for (size_t i = 0; i < m->n_slots && !s; i++) {
        const op_slot *x = &m->slots[i];
        bool table = x->role == OP_ROLE_EMBED && !m->floats && !m->config.tied; /* the head's group does not bring it along */
        if (x->value || table)
            s = add_pieces(&r, NULL, x, x->rows, x->cols, x->cols > 1 ? ROWS : x->rows, e);
    }
    if (!s && !m->floats)
        s = each_group(m, add_group, &r, e);
    s = s ? s : read_pieces(&r, e);
    if (!s && m->floats)
        s = each_group(m, pack, NULL, e);
    op_free(r.pieces);
    return s;
}

/* ---- life ---- */

static op_status model_alloc(op_model **out, const op_model_config *c, const op_model_options *o, op_error *e)
{
    *out = NULL;
    op_status s = op_model_config_check(c, e);
    if (!s && o->weights == OP_WEIGHTS_QUANTISED && o->trainable != OP_TRAIN_NONE)
        s = op_error_set(e, OP_ERR_ARG, "quantised weights cannot be trained, nor can adapters over them");
    if (s)
        return s;
    op_model *m = op_alloc_zero(1, sizeof *m);
    if (!m)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a model");
    m->config = *c;
    m->options = *o;
    const char *backend = o->backend ? o->backend : "cpu";
    m->ops = op_ops_get(backend, o->act);
    if (!m->ops) {
        op_free(m);
        return op_error_set(e, OP_ERR_UNSUPPORTED, "backend \"%s\" has no %s arithmetic", backend, op_dtype_name(o->act));
    }
    m->options.backend = m->ops->name;
    m->floats = o->weights == OP_WEIGHTS_EXACT && (o->trainable == OP_TRAIN_ALL || m->ops->keeps_f32 || o->act == OP_F32);
    m->rope_rows = c->family == OP_GPT2 ? 0 : c->max_positions;
    size_t table = (size_t)m->rope_rows * (size_t)(c->head_dim / 2) * sizeof(float);
    if (!(s = op_slots_build(m, e)) && !(s = place(m, e)))
        s = groups_make(m, e);
    bool packed_rows = m->config.tied && m->head.W && m->ops->embeds(m->head.W);
    if (!m->floats && !packed_rows)
        m->embed_act = need((size_t)c->vocab * c->width * m->ops->act_size, "the embedding", &s, e);
    m->cos = need(table, "rotary angles", &s, e);
    m->sin = need(table, "rotary angles", &s, e);
    if (!s)
        op_rope_table(c, m->rope_rows, m->cos, m->sin);
    if (!s && m->grads) {
        m->params = op_alloc_zero(m->n_slots, sizeof *m->params);
        if (!m->params)
            s = op_error_set(e, OP_ERR_NOMEM, "out of memory for the parameter table");
        for (size_t i = 0; i < m->n_slots && !s; i++) {
            const op_slot *x = &m->slots[i];
            if (x->grad)
                m->params[m->n_params++] = (op_param){.name = x->name, .offset = x->offset - m->frozen, .n = (size_t)(x->rows * x->cols),
                                      .rows = x->rows, .cols = x->cols, .decay = x->cols > 1, .grad = x->grad, .grad_act = x->grad_act};
        }
    }
    if (s) {
        op_model_free(m);
        return s;
    }
    *out = m;
    return OP_OK;
}

static op_status finish_open(op_model *m, op_error *e)
{
    int32_t id;
    return m->options.trainable == OP_TRAIN_ADAPTER ? op_model_adapter_add(m, &m->options.lora, &id, e) : OP_OK;
}

op_status op_model_new(op_model **out, const op_model_config *c, const op_model_options *o, op_error *e)
{
    op_model_options all = *o;
    if (!(all.trainable == OP_TRAIN_ALL))
        all.act = OP_F32; /* random weights must be float to be made */
    all.weights = OP_WEIGHTS_EXACT;
    op_model *m;
    op_status s = model_alloc(&m, c, &all, e);
    *out = NULL;
    if (s)
        return s;
    for (size_t i = 0; i < m->n_slots; i++) {
        op_slot *x = &m->slots[i];
        size_t n = (size_t)(x->rows * x->cols);
        for (size_t k = 0; k < n; k++)
            x->value[k] = x->cols > 1 ? (float)(0.02 * op_rng_normal(o->seed, OP_STREAM_INIT, x->offset + k)) : 0;
        bool norm_scale = x->role == OP_ROLE_NORM1 || x->role == OP_ROLE_NORM2 || x->role == OP_ROLE_FINAL ||
                          x->role == OP_ROLE_Q_NORM || x->role == OP_ROLE_K_NORM;
        for (size_t k = 0; k < n && norm_scale; k++)
            x->value[k] = 1;
    }
    if ((s = each_group(m, pack, NULL, e)) || (s = finish_open(m, e))) {
        op_model_free(m);
        return s;
    }
    *out = m;
    return OP_OK;
}

static op_status read_config(op_model_config *c, const char *path, const op_tensors *t, op_error *e)
{
    if (op_tensors_get_format(t) == OP_GGUF) {
        op_status s = op_model_config_from_gguf(c, t, e);
        return s ? op_error_prefix(e, "%s", path) : OP_OK;
    }
    char *file = op_path_join(path, "config.json");
    json_t *json = NULL;
    op_status s = file ? op_json_read(&json, file, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    if (!s)
        s = op_model_config_from_json(c, json, file, e);
    json_decref(json);
    op_free(file);
    return s;
}

op_status op_model_base_path(const char *path, char **base, op_error *e)
{
    char *config = op_path_join(path, "adapter_config.json"), *near = NULL;
    json_t *json = NULL;
    const char *name = path;
    op_status s = config ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    if (!s && op_path_exists(config)) {
        s = op_json_read(&json, config, e);
        if (!s)
            s = op_json_get_string(json, "base_model_name_or_path", true, &name, config, e);
        if (!s && !op_path_exists(name)) {
            near = op_path_join(path, name);
            if (!near)
                s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
            else if (!op_path_exists(near))
                s = op_error_set(e, OP_ERR_IO, "%s: the base model \"%s\" is neither here nor beside the adapter", config, name);
            name = near;
        }
    }
    *base = s ? NULL : op_strdup(name);
    if (!s && !*base)
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    op_free(near);
    op_free(config);
    json_decref(json);
    return s;
}

static op_status open_adapter(op_model **out, const char *path, const op_model_options *o, op_error *e)
{
    char *base;
    int32_t id;
    op_status s = op_model_base_path(path, &base, e);
    if (!s)
        s = op_model_open(out, base, o, e);
    if (!s && (s = op_model_adapter_load(*out, path, &id, e))) {
        op_model_free(*out);
        *out = NULL;
    }
    op_free(base);
    return s;
}

op_status op_model_open(op_model **out, const char *path, const op_model_options *o, op_error *e)
{
    *out = NULL;
    char *adapter = op_path_join(path, "adapter_config.json");
    if (!adapter)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    if (op_path_exists(adapter)) {
        op_status s = open_adapter(out, path, o, e);
        op_free(adapter);
        return s;
    }
    op_free(adapter);
    op_tensors *t;
    op_status s = op_tensors_open(&t, path, e);
    if (s)
        return s;
    op_model_config c;
    op_model *m = NULL;
    if (!(s = read_config(&c, path, t, e)) && !(s = model_alloc(&m, &c, o, e)) &&
        (s = read_weights(m, t, e)))
        op_error_prefix(e, "%s", path);
    if (!s && !(m->source = op_strdup(path)))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    op_tensors_close(t);
    if (s || (s = finish_open(m, e))) {
        op_model_free(m);
        return s;
    }
    *out = m;
    return OP_OK;
}

static op_status group_free(op_model *m, op_group *g, void *ctx, op_error *e)
{
    (void)ctx;
    (void)e;
    if (g->W)
        m->ops->weight_free(g->W);
    return OP_OK;
}

void op_model_free(op_model *m)
{
    if (!m)
        return;
    for (int32_t i = 0; i < m->n_adapters; i++)
        op_adapter_release(m, &m->adapters[i]);
    if (m->layers)
        each_group(m, group_free, NULL, NULL);
    op_free_aligned(m->values);
    op_free_aligned(m->grads);
    op_free_aligned(m->grads_act);
    op_free_aligned(m->embed_act);
    op_free_aligned(m->cos);
    op_free_aligned(m->sin);
    op_free(m->adapters);
    op_free(m->layers);
    op_free(m->slots);
    op_free(m->params);
    op_free(m->taps);
    op_free(m->source);
    op_free(m);
}

/* ---- questions ---- */

const op_model_config *op_model_get_config(const op_model *m)
{
    return &m->config;
}

const op_model_options *op_model_get_options(const op_model *m)
{
    return &m->options;
}

op_params op_model_params(op_model *m)
{
    if (m->options.trainable == OP_TRAIN_ALL)
        return (op_params){m->values + m->frozen, m->grads_act ? NULL : m->grads, m->n_values - m->frozen, m->params, m->n_params};
    if (m->options.trainable == OP_TRAIN_ADAPTER) {
        const op_adapter *a = &m->adapters[0];
        return (op_params){a->values, a->grads, a->n, a->table, a->n_table};
    }
    return (op_params){0};
}

int64_t op_model_count(const op_model *m)
{
    return (int64_t)m->n_values;
}

static op_status add_bytes(op_model *m, op_group *g, void *sum, op_error *e)
{
    (void)e;
    *(size_t *)sum += m->ops->weight_bytes(g->W);
    return OP_OK;
}

size_t op_model_bytes(const op_model *m)
{
    size_t n = m->floats ? m->n_values * sizeof(float) : 0;
    for (size_t i = 0; i < m->n_params; i++)
        n += m->params[i].n * (m->params[i].grad_act ? m->ops->act_size : sizeof(float));
    each_group((op_model *)m, add_bytes, &n, NULL);
    n += m->embed_act ? (size_t)m->config.vocab * m->config.width * m->ops->act_size : 0;
    for (int32_t i = 0; i < m->n_adapters; i++)
        n += m->adapters[i].n * (sizeof(float) * (m->adapters[i].grads ? 2 : 1) + m->ops->act_size);
    return n;
}

static op_status hash_slot(const op_model *m, const op_tensors *t, const op_slot *x, char hex[OP_HASH_HEX], op_error *e)
{
    size_t n = (size_t)(x->rows * x->cols);
    if (x->value) {
        op_hash(x->value, n * sizeof *x->value, hex);
        return OP_OK;
    }
    float *room = op_alloc_array(n, sizeof *room);
    op_status s = room ? read_rows(m, t, x, 0, x->rows, room, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory while hashing");
    if (!s)
        op_hash(room, n * sizeof *room, hex);
    op_free(room);
    return s;
}

/* The hash of the hashes of the tensors, each as float, so that no second copy of the model is needed and every thread can help. */
op_status op_model_hash(const op_model *m, char hex[65], op_error *e)
{
    op_tensors *t = NULL;
    op_status s = OP_OK;
    if (!m->floats && (s = op_tensors_open(&t, m->source, e)))
        return s;
    first_error why = {0};
    char(*hashes)[OP_HASH_HEX] = op_alloc_array(m->n_slots, sizeof *hashes);
    if (!hashes)
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory while hashing");
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < m->n_slots; i++) {
        op_error mine = {0};
        if (hashes && hash_slot(m, t, &m->slots[i], hashes[i], &mine))
            note_error(&why, i, &mine);
    }
    s = s ? s : tell_error(&why, e);
    op_hasher h;
    op_hash_begin(&h);
    for (size_t i = 0; i < m->n_slots && !s; i++)
        op_hash_add(&h, hashes[i], OP_HASH_HEX - 1);
    if (!s)
        op_hash_end(&h, hex);
    op_free(hashes);
    op_tensors_close(t);
    return s;
}

static void add_tensor(op_hasher *h, const op_tensor *x)
{
    enum { PIECES = 16, PIECE = 1024 };
    op_hash_add(h, x->name, strlen(x->name));
    op_hash_add(h, &x->dtype, sizeof x->dtype);
    op_hash_add(h, x->shape, (size_t)x->rank * sizeof *x->shape);
    if (x->bytes <= PIECES * PIECE) {
        op_hash_add(h, x->data, x->bytes);
        return;
    }
    for (size_t i = 0; i < PIECES; i++)
        op_hash_add(h, (const char *)x->data + (x->bytes - PIECE) / (PIECES - 1) * i, PIECE);
}

op_status op_model_fingerprint(const op_model *m, char hex[65], op_error *e)
{
    op_tensors *t;
    if (!m->source)
        return op_error_set(e, OP_ERR_ARG, "a model that was not opened from a file has no fingerprint");
    op_status s = op_tensors_open(&t, m->source, e);
    if (s)
        return s;
    op_hasher h;
    op_hash_begin(&h);
    for (size_t i = 0; i < op_tensors_count(t); i++)
        add_tensor(&h, op_tensors_at(t, i));
    for (int32_t i = 0; i < m->n_adapters; i++) {
        const op_adapter *a = &m->adapters[i];
        op_hash_add(&h, &a->scale, sizeof a->scale);
        op_hash_add(&h, &a->options.rank, sizeof a->options.rank);
        op_hash_add(&h, &a->options.targets, sizeof a->options.targets);
        op_hash_add(&h, a->values, a->n * sizeof *a->values);
    }
    op_hash_end(&h, hex);
    op_tensors_close(t);
    return OP_OK;
}

op_status op_model_set_taps(op_model *m, const op_tap *taps, size_t n)
{
    op_tap *room = n > m->n_taps ? op_realloc(m->taps, n * sizeof *room) : m->taps;
    if (n && !room)
        return OP_ERR_NOMEM;
    if (n)
        memmove(room, taps, n * sizeof *room); /* they may be its own */
    m->taps = room;
    m->n_taps = n;
    return OP_OK;
}

const op_tap *op_model_taps(const op_model *m, size_t *n)
{
    *n = m->n_taps;
    return m->taps;
}

void op_model_set_logits_hook(op_model *m, op_logits_fn fn, void *ctx)
{
    m->hook = fn;
    m->hook_ctx = ctx;
}

void op_model_set_gradient_hook(op_model *m, op_gradient_fn fn, void *ctx)
{
    m->gradient_hook = fn;
    m->gradient_ctx = ctx;
}
