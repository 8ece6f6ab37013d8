/* Low-rank adapters: y += scale * B A x (Hu et al.: 2106.09685), scale = alpha/rank, or alpha/sqrt(rank) when rank-stabilised
 * (Kalajdzievski: 2312.03732). A starts as Kaiming-uniform with a = sqrt(5), i.e. uniform in +-1/sqrt(in), as PEFT does; B as 0. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/parts.h"

static const char *const target_names[OP_TARGET_COUNT] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
static const char *const target_paths[OP_TARGET_COUNT] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                                          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
static const char *const gpt2_names[OP_TARGET_COUNT] = {"c_attn", NULL, NULL, "attn.c_proj", NULL, "c_fc", "mlp.c_proj"};
static const char *const gpt2_paths[OP_TARGET_COUNT] = {"attn.c_attn", NULL, NULL, "attn.c_proj", NULL, "mlp.c_fc", "mlp.c_proj"};
static const op_role target_roles[OP_TARGET_COUNT] = {OP_ROLE_Q, OP_ROLE_K, OP_ROLE_V, OP_ROLE_O, OP_ROLE_GATE, OP_ROLE_UP, OP_ROLE_DOWN};

static const char *target_name(const op_model *m, int t)
{
    return m->config.family == OP_GPT2 ? gpt2_names[t] : target_names[t];
}

/* The targets that the family has: GPT-2's Q stands for Q, K and V, and it has no gate. */
static unsigned known_targets(const op_model *m, unsigned targets)
{
    for (int t = 0; t < OP_TARGET_COUNT; t++)
        if (!target_name(m, t))
            targets &= ~(1u << t);
    return targets;
}

static void peft_name(const op_model *m, int32_t layer, int t, char side, char name[128])
{
    bool gpt2 = m->config.family == OP_GPT2;
    snprintf(name, 128, gpt2 ? "base_model.model.transformer.h.%d.%s.lora_%c.weight" : "base_model.model.model.layers.%d.%s.lora_%c.weight",
             layer, gpt2 ? gpt2_paths[t] : target_paths[t], side);
}

void op_adapter_release(op_model *m, op_adapter *a)
{
    (void)m;
    op_free_aligned(a->values);
    op_free_aligned(a->grads);
    op_free_aligned(a->act);
    op_free(a->lora);
    op_free(a->table);
    op_free(a->names);
    *a = (op_adapter){0};
}

void op_adapter_refresh(op_model *m, op_adapter *a)
{
    if (a->act)
        m->ops->to_act(a->n, a->values, a->act);
}

static op_status check_options(const op_lora_options *o, op_error *e)
{
    if (o->rank < 1 || o->rank > 512)
        return op_error_set(e, OP_ERR_ARG, "lora rank is %d, expected 1..512", o->rank);
    if (!(o->dropout >= 0 && o->dropout < 1))
        return op_error_set(e, OP_ERR_ARG, "lora dropout is %g, expected 0 or more and less than 1", (double)o->dropout);
    if (!isfinite(o->alpha))
        return op_error_set(e, OP_ERR_ARG, "lora alpha is not finite");
    if (!(o->targets & OP_LORA_ALL))
        return op_error_set(e, OP_ERR_ARG, "lora has no target module");
    return OP_OK;
}

static float lora_scale(const op_lora_options *o)
{
    return o->alpha / (o->rslora ? sqrtf((float)o->rank) : (float)o->rank);
}

static op_status adapter_make(op_model *m, op_adapter *a, const op_lora_options *o, bool trainable, op_error *e)
{
    int32_t L = m->config.layers;
    size_t most = (size_t)L * OP_TARGET_COUNT;
    *a = (op_adapter){.options = *o};
    a->scale = lora_scale(o);
    a->lora = op_alloc_zero(most, sizeof *a->lora);
    a->table = op_alloc_zero(2 * most, sizeof *a->table);
    a->names = op_alloc_zero(2 * most, sizeof *a->names);
    if (!a->lora || !a->table || !a->names)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for an adapter");
    for (size_t i = 0; i < most; i++) {
        int t = (int)(i % OP_TARGET_COUNT);
        const op_slot *x = op_model_slot(m, (int32_t)(i / OP_TARGET_COUNT), target_roles[t]);
        if (!(o->targets >> t & 1) || !x || !target_name(m, t))
            continue;
        op_lora *y = &a->lora[i];
        y->in = (int32_t)x->cols;
        y->out = (int32_t)x->rows;
        for (int side = 0; side < 2; side++) {
            size_t k = a->n_table++;
            peft_name(m, x->layer, t, "AB"[side], a->names[k]);
            int64_t rows = side ? y->out : o->rank, cols = side ? o->rank : y->in;
            a->table[k] = (op_param){.name = a->names[k], .offset = a->n, .n = (size_t)(rows * cols), .rows = rows,
                                     .cols = cols, .decay = true};
            a->n += (size_t)(rows * cols);
        }
    }
    if (!a->n)
        return op_error_set(e, OP_ERR_ARG, "lora targets name no matrix of a %s model", op_family_name(m->config.family));
    a->values = op_alloc_aligned(a->n * sizeof(float));
    a->grads = trainable ? op_alloc_aligned(a->n * sizeof(float)) : NULL;
    a->act = m->ops->act == OP_F32 ? NULL : op_alloc_aligned(a->n * m->ops->act_size);
    if (!a->values || (trainable && !a->grads) || (m->ops->act != OP_F32 && !a->act))
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for an adapter of %zu parameters", a->n);
    for (size_t k = 0; k < a->n_table && trainable; k++)
        a->table[k].grad = a->grads + a->table[k].offset;
    char *act = a->act ? a->act : (void *)a->values;
    size_t at = 0;
    for (size_t i = 0; i < most; i++) {
        op_lora *y = &a->lora[i];
        if (!y->in)
            continue;
        size_t nA = (size_t)o->rank * y->in, nB = (size_t)y->out * o->rank;
        y->A = a->values + at;
        y->B = y->A + nA;
        y->dA = trainable ? a->grads + at : NULL;
        y->dB = trainable ? y->dA + nA : NULL;
        y->A_act = act + at * m->ops->act_size;
        y->B_act = act + (at + nA) * m->ops->act_size;
        double bound = 1 / sqrt((double)y->in);
        for (size_t k = 0; k < nA; k++)
            y->A[k] = (float)(bound * (2 * op_rng_uniform(m->options.seed, OP_STREAM_INIT, at + k) - 1));
        at += nA + nB;
    }
    op_adapter_refresh(m, a);
    return OP_OK;
}

op_status op_model_adapter_add(op_model *m, const op_lora_options *o, int32_t *id, op_error *e)
{
    op_status s = check_options(o, e);
    if (s)
        return s;
    op_adapter *all = op_realloc(m->adapters, (size_t)(m->n_adapters + 1) * sizeof *all);
    if (!all)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for an adapter");
    m->adapters = all;
    bool trainable = m->options.trainable == OP_TRAIN_ADAPTER && m->n_adapters == 0;
    s = adapter_make(m, &all[m->n_adapters], o, trainable, e);
    if (s)
        op_adapter_release(m, &all[m->n_adapters]);
    else
        *id = m->n_adapters++;
    return s;
}

int32_t op_model_adapter_count(const op_model *m)
{
    return m->n_adapters;
}

static op_status read_options(op_lora_options *o, const op_model *m, const json_t *j, const char *file, op_error *e)
{
    *o = (op_lora_options){0};
    const char *type = NULL;
    int64_t rank;
    double alpha, dropout = 0;
    json_t *modules;
    op_status s;
    if ((s = op_json_get_string(j, "peft_type", true, &type, file, e)) ||
        (s = op_json_get_int(j, "r", true, 1, 512, &rank, file, e)) ||
        (s = op_json_get_float(j, "lora_alpha", true, &alpha, file, e)) ||
        (s = op_json_get_float(j, "lora_dropout", false, &dropout, file, e)) ||
        (s = op_json_get_bool(j, "use_rslora", false, &o->rslora, file, e)) ||
        (s = op_json_get_array(j, "target_modules", true, &modules, file, e)))
        return s;
    const json_t *alphas = json_object_get(j, "alpha_pattern"), *ranks = json_object_get(j, "rank_pattern");
    if (json_object_size(alphas) || json_object_size(ranks))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: alpha_pattern and rank_pattern are not supported", file);
    if (strcmp(type, "LORA"))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: peft_type \"%s\", expected LORA", file, type);
    o->rank = (int32_t)rank;
    o->alpha = (float)alpha;
    o->dropout = (float)dropout;
    size_t i;
    const json_t *item;
    json_array_foreach(modules, i, item)
    {
        const char *word = json_string_value(item);
        unsigned bit = 0;
        for (int t = 0; t < OP_TARGET_COUNT; t++) {
            const char *name = target_name(m, t);
            /* GPT-2's "c_proj" alone means both of them */
            if (word && name && (!strcmp(word, name) || (strchr(name, '.') && !strcmp(word, strchr(name, '.') + 1))))
                bit |= 1u << t;
        }
        if (!bit)
            return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: target module \"%s\" is unknown for %s", file, word ? word : "?",
                                op_family_name(m->config.family));
        o->targets |= bit;
    }
    return OP_OK;
}

static op_status read_tensors(op_model *m, op_adapter *a, const char *file, op_error *e)
{
    op_tensors *t;
    op_status s = op_tensors_open(&t, file, e);
    if (s)
        return s;
    for (size_t i = 0; i < a->n_table && !s; i++) {
        const op_param *p = &a->table[i];
        const op_tensor *x = op_tensors_find(t, p->name);
        if (!x)
            s = op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\" is missing", file, p->name);
        else if (x->rank != 2 || x->shape[0] != p->rows || x->shape[1] != p->cols)
            s = op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" has another shape than [%lld, %lld]", file, p->name,
                             (long long)p->rows, (long long)p->cols);
        else
            s = op_tensor_read_f32(x, 0, x->count, a->values + p->offset, e);
    }
    if (!s && op_tensors_count(t) != a->n_table)
        s = op_error_set(e, OP_ERR_FORMAT, "%s: %zu tensors, expected %zu", file, op_tensors_count(t), a->n_table);
    op_tensors_close(t);
    if (!s)
        op_adapter_refresh(m, a);
    return s;
}

op_status op_model_adapter_load(op_model *m, const char *dir, int32_t *id, op_error *e)
{
    char *config = op_path_join(dir, "adapter_config.json"), *file = op_path_join(dir, "adapter_model.safetensors");
    json_t *json = NULL;
    op_lora_options o;
    op_status s = config && file ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    if (!s && !(s = op_json_read(&json, config, e)) && !(s = read_options(&o, m, json, config, e))) {
        /* Training an adapter goes on from the one that is loaded, if it has the same shape. */
        op_adapter *first = m->options.trainable == OP_TRAIN_ADAPTER ? &m->adapters[0] : NULL;
        bool same = first && first->options.rank == o.rank &&
                    known_targets(m, first->options.targets) == known_targets(m, o.targets);
        if (same) { /* the file says what its values mean */
            first->options.alpha = o.alpha;
            first->options.rslora = o.rslora;
            first->scale = lora_scale(&o);
        }
        if (same)
            *id = 0;
        else
            s = op_model_adapter_add(m, &o, id, e);
        if (!s && (s = read_tensors(m, &m->adapters[*id], file, e)) && !same)
            op_adapter_release(m, &m->adapters[--m->n_adapters]);
    }
    json_decref(json);
    op_free(config);
    op_free(file);
    return s;
}

static op_status write_config(const op_model *m, const op_adapter *a, const char *path, const char *base, op_error *e)
{
    json_t *modules = json_array();
    for (int t = 0; t < OP_TARGET_COUNT; t++)
        if (known_targets(m, a->options.targets) >> t & 1)
            json_array_append_new(modules, json_string(target_name(m, t)));
    json_t *j = json_pack("{ss ss ss si sf sf so ss ss sb sb sb}", "peft_type", "LORA", "task_type", "CAUSAL_LM",
                          "base_model_name_or_path", base, "r", a->options.rank, "lora_alpha", (double)a->options.alpha,
                          "lora_dropout", (double)a->options.dropout, "target_modules", modules, "bias", "none",
                          "revision", "main", "inference_mode", 1, "use_rslora", a->options.rslora, "fan_in_fan_out",
                          m->config.family == OP_GPT2);
    op_status s = j ? op_json_write(path, j, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    json_decref(j);
    return s;
}

op_status op_model_adapter_save(const op_model *m, int32_t id, const char *dir, const char *base, op_error *e)
{
    if (id < 0 || id >= m->n_adapters)
        return op_error_set(e, OP_ERR_ARG, "adapter %d, expected 0..%d", id, m->n_adapters - 1);
    const op_adapter *a = &m->adapters[id];
    op_tensor_out *entries = op_alloc_zero(a->n_table, sizeof *entries);
    char *config = op_path_join(dir, "adapter_config.json"), *file = op_path_join(dir, "adapter_model.safetensors");
    op_status s = entries && config && file ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (size_t i = 0; i < a->n_table && !s; i++)
        entries[i] = (op_tensor_out){.name = a->table[i].name, .dtype = OP_F32, .rank = 2,
                                            .shape = {a->table[i].rows, a->table[i].cols}, .data = a->values + a->table[i].offset};
    if (!s && !(s = op_safetensors_write(file, entries, a->n_table, NULL, 0, e)))
        s = write_config(m, a, config, base, e);
    op_free(entries);
    op_free(config);
    op_free(file);
    return s;
}

op_status op_model_adapter_merge(op_model *m, int32_t id, op_error *e)
{
    if (id < 0 || id >= m->n_adapters || !m->floats)
        return op_error_set(e, OP_ERR_ARG, "merging adapter %d needs float weights and an adapter 0..%d", id, m->n_adapters - 1);
    op_adapter *a = &m->adapters[id];
    int32_t r = a->options.rank;
    for (int32_t i = 0; i < m->config.layers * OP_TARGET_COUNT; i++) {
        const op_lora *y = &a->lora[i];
        float *w = y->in ? op_model_value(m, i / OP_TARGET_COUNT, target_roles[i % OP_TARGET_COUNT]) : NULL;
        for (int64_t o = 0; w && o < y->out; o++)
            for (int32_t k = 0; k < r; k++) {
                float b = a->scale * y->B[o * r + k];
                for (int64_t c = 0; c < y->in; c++)
                    w[o * y->in + c] += b * y->A[(int64_t)k * y->in + c];
            }
    }
    memset(a->values, 0, a->n * sizeof *a->values);
    op_adapter_refresh(m, a);
    op_trainable kept = m->options.trainable;
    m->options.trainable = OP_TRAIN_ALL; /* repack the base */
    op_status s = op_model_updated(m, e);
    m->options.trainable = kept;
    return s;
}

/* ---- in a pass ---- */

static uint64_t dropout_stream(int32_t layer, int target)
{
    return OP_STREAM_DROPOUT | (uint64_t)(layer * OP_TARGET_COUNT + target + 1) << 32;
}

/* A key of its own for every step, so that the counter is the element alone. */
static uint64_t dropout_seed(const op_rows *r)
{
    return op_rng_u64(r->seed, OP_STREAM_DROPOUT, r->step);
}

/* x as A sees it: with dropout in training. Rows of `x` from the stretch's first. */
static const void *lora_input(const op_model *m, const op_rows *r, const op_stretch *st, const op_adapter *a, int32_t layer, int target,
                              int32_t in, const void *x, op_lora_scratch *s)
{
    const char *rows = (const char *)x + (size_t)st->first * in * m->ops->act_size;
    if (!(r->dropout_on > 0) || !(a->options.dropout > 0))
        return rows;
    m->ops->dropout((size_t)st->n * in, a->options.dropout, dropout_seed(r), dropout_stream(layer, target),
                    (uint64_t)st->first * (uint64_t)in, rows, s->wide);
    return s->wide;
}

static const op_lora *lora_of(const op_model *m, const op_stretch *st, int32_t layer, int target, const op_adapter **a)
{
    if (st->adapter < 0)
        return NULL;
    *a = &m->adapters[st->adapter];
    const op_lora *y = &(*a)->lora[layer * OP_TARGET_COUNT + target];
    return y->A ? y : NULL;
}

static bool seen_before(const op_rows *r, int32_t stretch)
{
    for (int32_t i = 0; i < stretch; i++)
        if (r->stretch[i].adapter == r->stretch[stretch].adapter)
            return true;
    return false;
}

/* Each adapter computes all M rows; those of others then have h = 0, which adds nothing to them. */
static op_status padded_forward(const op_model *m, const op_rows *r, int32_t layer, int target, const void *x, void *y, int32_t ldy, bool y_f32,
                                op_lora_scratch *s)
{
    op_status status = OP_OK;
    for (int32_t i = 0; i < r->n_stretch && !status; i++) {
        const op_adapter *a;
        const op_lora *l = lora_of(m, &r->stretch[i], layer, target, &a);
        if (!l || seen_before(r, i))
            continue;
        int32_t rank = a->options.rank;
        size_t bytes = (size_t)rank * m->ops->act_size;
        status = m->ops->gemm(false, true, r->M, rank, l->in, 1, x, l->in, l->A_act, l->in, 0, s->h, rank, false);
        for (int32_t k = 0; k < r->n_stretch; k++)
            if (r->stretch[k].adapter != r->stretch[i].adapter)
                memset((char *)s->h + (size_t)r->stretch[k].first * bytes, 0, (size_t)r->stretch[k].n * bytes);
        if (!status)
            status = m->ops->gemm(false, true, r->M, l->out, rank, a->scale, s->h, rank, l->B_act, rank, 1, y, ldy, y_f32);
    }
    return status;
}

op_status op_lora_forward(const op_model *m, const op_rows *r, int32_t layer, int target, const void *x, void *y,
                          int32_t ldy, bool y_f32, op_lora_scratch *s)
{
    if (r->padded)
        return padded_forward(m, r, layer, target, x, y, ldy, y_f32, s);
    op_status status = OP_OK;
    for (int32_t i = 0; i < r->n_stretch && !status; i++) {
        const op_stretch *st = &r->stretch[i];
        const op_adapter *a;
        const op_lora *l = lora_of(m, st, layer, target, &a);
        if (!l)
            continue;
        int32_t rank = a->options.rank;
        const void *in = lora_input(m, r, st, a, layer, target, l->in, x, s);
        char *out = (char *)y + (size_t)st->first * ldy * (y_f32 ? sizeof(float) : m->ops->act_size);
        status = m->ops->gemm(false, true, st->n, rank, l->in, 1, in, l->in, l->A_act, l->in, 0, s->h, rank, false);
        if (!status)
            status = m->ops->gemm(false, true, st->n, l->out, rank, a->scale, s->h, rank, l->B_act, rank, 1, out, ldy, y_f32);
    }
    return status;
}

op_status op_lora_backward(const op_model *m, const op_rows *r, int32_t layer, int target, const void *x,
                           const void *dy, int32_t ldy, void *dx, op_lora_scratch *s)
{
    op_status status = OP_OK;
    for (int32_t i = 0; i < r->n_stretch && !status; i++) {
        const op_stretch *st = &r->stretch[i];
        const op_adapter *a;
        const op_lora *l = lora_of(m, st, layer, target, &a);
        if (!l)
            continue;
        int32_t rank = a->options.rank;
        const char *g = (const char *)dy + (size_t)st->first * ldy * m->ops->act_size;
        char *gx = (char *)dx + (size_t)st->first * l->in * m->ops->act_size;
        /* dh = scale dy B */
        status = m->ops->gemm(false, false, st->n, rank, l->out, a->scale, g, ldy, l->B_act, rank, 0, s->dh, rank, false);
        if (!status && l->dA) {
            const void *in = lora_input(m, r, st, a, layer, target, l->in, x, s);
            /* h again, then dB += scale dy^T h, dA += dh^T x */
            status = m->ops->gemm(false, true, st->n, rank, l->in, 1, in, l->in, l->A_act, l->in, 0, s->h, rank, false);
            if (!status)
                status = m->ops->gemm(true, false, l->out, rank, st->n, a->scale, g, ldy, s->h, rank, 1, l->dB, rank, true);
            if (!status)
                status = m->ops->gemm(true, false, rank, l->in, st->n, 1, s->dh, rank, in, l->in, 1, l->dA, l->in, true);
        }
        if (status)
            return status;
        if (r->dropout_on > 0 && a->options.dropout > 0) {
            status = m->ops->gemm(false, false, st->n, l->in, rank, 1, s->dh, rank, l->A_act, l->in, 0, s->wide, l->in, false);
            m->ops->dropout((size_t)st->n * l->in, a->options.dropout, dropout_seed(r), dropout_stream(layer, target),
                            (uint64_t)st->first * (uint64_t)l->in, s->wide, s->wide);
            m->ops->add((size_t)st->n * l->in, s->wide, gx);
        } else {
            status = m->ops->gemm(false, false, st->n, l->in, rank, 1, s->dh, rank, l->A_act, l->in, 1, gx, l->in, false);
        }
    }
    return status;
}
