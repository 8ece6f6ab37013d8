/* The parts of a layer that training (pass.c) and generation (generate.c) share. Each works on rows, whatever they are rows of. */
#include <string.h>

#include "model/parts.h"

int32_t op_joint_width(const op_model_config *c)
{
    return (c->heads + 2 * c->kv_heads) * c->head_dim;
}

int32_t op_gu_width(const op_model_config *c)
{
    return c->family == OP_GPT2 ? c->ffn : 2 * c->ffn;
}

int32_t op_lora_rank(const op_model *m)
{
    int32_t rank = 0;
    for (int32_t i = 0; i < m->n_adapters; i++)
        rank = m->adapters[i].options.rank > rank ? m->adapters[i].options.rank : rank;
    return rank;
}

void op_norm_forward(const op_model *m, int32_t layer, op_role role, int32_t T, const float *x, void *y, float *mean,
                     float *rstd)
{
    const float *g = op_model_value(m, layer, role);
    if (m->config.family == OP_GPT2)
        m->ops->layernorm(T, m->config.width, x, g, op_model_value(m, layer, role + 1), m->config.norm_eps, y, mean, rstd);
    else
        m->ops->rmsnorm(T, m->config.width, x, g, m->config.norm_eps, y, rstd);
}

op_status op_taps_forward(op_model *m, int32_t layer, const op_batch *b, float *resid)
{
    for (size_t i = 0; i < m->n_taps; i++)
        if (m->taps[i].layer == layer && m->taps[i].forward) {
            op_status s = m->taps[i].forward(m->taps[i].ctx, layer, b, resid);
            if (s)
                return s;
        }
    return OP_OK;
}

void op_layer_embed(const op_model *m, int32_t T, const int32_t *ids, const int32_t *position, float *out)
{
    int32_t C = m->config.width;
    const float *table = op_model_value(m, -1, OP_ROLE_EMBED);
    if (table || m->embed_act)
        m->ops->embed(T, C, ids, table ? (const void *)table : m->embed_act, !table, out);
    else
        m->ops->embed_weight(m->head.W, T, ids, out);
    const float *places = op_model_value(m, -1, OP_ROLE_POSITION);
    for (int32_t t = 0; places && t < T; t++)
        m->ops->add_f32((size_t)C, places + (size_t)position[t] * C, out + (size_t)t * C);
}

char *op_act_column(const op_model *m, const void *rows, int64_t first)
{
    return (char *)rows + (size_t)first * m->ops->act_size;
}

static op_status product(const op_model *m, const op_rows *r, const op_group *g, const void *x, const float *bias, op_out out, void *y)
{
    return r->decode ? m->ops->decode(g->W, r->T, x, bias, out, y) : m->ops->matmul(g->W, r->M, x, bias, out, y);
}

op_status op_layer_qkv(const op_model *m, const op_rows *r, int32_t l, const void *x, op_qkv *k, op_lora_scratch *lora)
{
    const op_model_config *c = &m->config;
    int32_t D = c->head_dim, q = c->heads * D, kv = c->kv_heads * D, ld = q + 2 * kv;
    const int32_t first[3] = {0, q, q + kv};
    op_status s = product(m, r, &m->layers[l].qkv, x, op_model_value(m, l, OP_ROLE_Q_B), OP_OUT_ACT, k->qkv);
    for (int t = 0; t < 3 && !s; t++)
        s = op_lora_forward(m, r, l, t, x, op_act_column(m, k->qkv, first[t]), ld, false, lora);
    if (s || c->family == OP_GPT2)
        return s;
    if (c->qk_norm) {
        size_t bytes = (size_t)(q + kv) * m->ops->act_size;
        for (int32_t t = 0; t < r->T; t++)
            memcpy((char *)k->qk_raw + (size_t)t * bytes, op_act_column(m, k->qkv, (int64_t)t * ld), bytes);
        m->ops->headnorm(r->T, c->heads, D, ld, k->qkv, op_model_value(m, l, OP_ROLE_Q_NORM), c->norm_eps, k->q_rstd);
        m->ops->headnorm(r->T, c->kv_heads, D, ld, op_act_column(m, k->qkv, q), op_model_value(m, l, OP_ROLE_K_NORM), c->norm_eps, k->k_rstd);
    }
    m->ops->rope(r->T, c->heads + c->kv_heads, D, ld, r->position, m->cos, m->sin, false, k->qkv);
    return OP_OK;
}

op_status op_layer_attention_out(const op_model *m, const op_rows *r, int32_t l, const void *att, float *resid, op_lora_scratch *lora)
{
    op_status s = product(m, r, &m->layers[l].o, att, op_model_value(m, l, OP_ROLE_O_B), OP_OUT_F32_ADD, resid);
    return s ? s : op_lora_forward(m, r, l, 3, att, resid, m->config.width, true, lora);
}

void op_layer_activation(const op_model *m, int32_t T, const void *gu, void *h)
{
    if (m->config.family == OP_GPT2)
        m->ops->gelu((size_t)T * m->config.ffn, gu, h);
    else
        m->ops->swiglu(T, m->config.ffn, gu, h);
}

op_status op_layer_mlp_in(const op_model *m, const op_rows *r, int32_t l, const void *x, void *gu, op_lora_scratch *lora)
{
    int32_t F = m->config.ffn;
    op_status s = product(m, r, &m->layers[l].gu, x, op_model_value(m, l, OP_ROLE_UP_B), OP_OUT_ACT, gu);
    if (!s && m->config.family != OP_GPT2)
        s = op_lora_forward(m, r, l, 4, x, gu, 2 * F, false, lora);
    if (!s)
        s = m->config.family == OP_GPT2 ? op_lora_forward(m, r, l, 5, x, gu, F, false, lora)
                                        : op_lora_forward(m, r, l, 5, x, op_act_column(m, gu, F), 2 * F, false, lora);
    return s;
}

op_status op_layer_mlp_out(const op_model *m, const op_rows *r, int32_t l, const void *h, float *resid, op_lora_scratch *lora)
{
    op_status s = product(m, r, &m->layers[l].down, h, op_model_value(m, l, OP_ROLE_DOWN_B), OP_OUT_F32_ADD, resid);
    return s ? s : op_lora_forward(m, r, l, 6, h, resid, m->config.width, true, lora);
}

