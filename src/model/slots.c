/* The table of a model's tensors: names, shapes and order for every family. */
#include <stdarg.h>
#include <stdio.h>

#include "base/mem.h"
#include "model/parts.h"

typedef struct builder {
    op_model *m;
    size_t capacity;
    bool full;
} builder;

static void add(builder *b, int32_t layer, op_role role, int64_t rows, int64_t cols, const char *hf, const char *gguf)
{
    op_model *m = b->m;
    if (m->n_slots == b->capacity) {
        b->full = true;
        return;
    }
    size_t i = m->n_slots++;
    op_slot *s = &m->slots[i];
    *s = (op_slot){.role = role, .layer = layer, .rows = rows, .cols = cols, .offset = m->n_values};
    if (layer < 0) {
        snprintf(s->name, sizeof s->name, "%s", hf);
        snprintf(s->gguf, sizeof s->gguf, "%s", gguf);
        m->slot[role] = i;
    } else {
        snprintf(s->name, sizeof s->name, m->config.family == OP_GPT2 ? "h.%d.%s" : "model.layers.%d.%s", layer, hf);
        snprintf(s->gguf, sizeof s->gguf, "blk.%d.%s", layer, gguf);
        m->layers[layer].slot[role] = i;
    }
    m->n_values += (size_t)(rows * cols);
}

static void add_gpt2_layer(builder *b, int32_t l)
{
    const op_model_config *c = &b->m->config;
    size_t first = b->m->n_slots;
    add(b, l, OP_ROLE_NORM1, c->width, 1, "ln_1.weight", "attn_norm.weight");
    add(b, l, OP_ROLE_NORM1_B, c->width, 1, "ln_1.bias", "attn_norm.bias");
    add(b, l, OP_ROLE_Q, 3 * c->width, c->width, "attn.c_attn.weight", "attn_qkv.weight");
    add(b, l, OP_ROLE_Q_B, 3 * c->width, 1, "attn.c_attn.bias", "attn_qkv.bias");
    add(b, l, OP_ROLE_O, c->width, c->width, "attn.c_proj.weight", "attn_output.weight");
    add(b, l, OP_ROLE_O_B, c->width, 1, "attn.c_proj.bias", "attn_output.bias");
    add(b, l, OP_ROLE_NORM2, c->width, 1, "ln_2.weight", "ffn_norm.weight");
    add(b, l, OP_ROLE_NORM2_B, c->width, 1, "ln_2.bias", "ffn_norm.bias");
    add(b, l, OP_ROLE_UP, c->ffn, c->width, "mlp.c_fc.weight", "ffn_up.weight");
    add(b, l, OP_ROLE_UP_B, c->ffn, 1, "mlp.c_fc.bias", "ffn_up.bias");
    add(b, l, OP_ROLE_DOWN, c->width, c->ffn, "mlp.c_proj.weight", "ffn_down.weight");
    add(b, l, OP_ROLE_DOWN_B, c->width, 1, "mlp.c_proj.bias", "ffn_down.bias");
    for (size_t i = first; i < b->m->n_slots; i++)
        b->m->slots[i].transposed = b->m->slots[i].cols > 1;
}

static void add_llama_layer(builder *b, int32_t l)
{
    const op_model_config *c = &b->m->config;
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    add(b, l, OP_ROLE_NORM1, c->width, 1, "input_layernorm.weight", "attn_norm.weight");
    add(b, l, OP_ROLE_Q, q, c->width, "self_attn.q_proj.weight", "attn_q.weight");
    add(b, l, OP_ROLE_K, kv, c->width, "self_attn.k_proj.weight", "attn_k.weight");
    add(b, l, OP_ROLE_V, kv, c->width, "self_attn.v_proj.weight", "attn_v.weight");
    if (c->qkv_bias) {
        add(b, l, OP_ROLE_Q_B, q, 1, "self_attn.q_proj.bias", "attn_q.bias");
        add(b, l, OP_ROLE_K_B, kv, 1, "self_attn.k_proj.bias", "attn_k.bias");
        add(b, l, OP_ROLE_V_B, kv, 1, "self_attn.v_proj.bias", "attn_v.bias");
    }
    if (c->qk_norm) {
        add(b, l, OP_ROLE_Q_NORM, c->head_dim, 1, "self_attn.q_norm.weight", "attn_q_norm.weight");
        add(b, l, OP_ROLE_K_NORM, c->head_dim, 1, "self_attn.k_norm.weight", "attn_k_norm.weight");
    }
    add(b, l, OP_ROLE_O, c->width, q, "self_attn.o_proj.weight", "attn_output.weight");
    add(b, l, OP_ROLE_NORM2, c->width, 1, "post_attention_layernorm.weight", "ffn_norm.weight");
    add(b, l, OP_ROLE_GATE, c->ffn, c->width, "mlp.gate_proj.weight", "ffn_gate.weight");
    add(b, l, OP_ROLE_UP, c->ffn, c->width, "mlp.up_proj.weight", "ffn_up.weight");
    add(b, l, OP_ROLE_DOWN, c->width, c->ffn, "mlp.down_proj.weight", "ffn_down.weight");
}

op_status op_slots_build(op_model *m, op_error *e)
{
    const op_model_config *c = &m->config;
    builder b = {.m = m, .capacity = (size_t)c->layers * 14 + 8};
    m->slots = op_alloc_zero(b.capacity, sizeof *m->slots);
    m->layers = op_alloc_zero((size_t)c->layers, sizeof *m->layers);
    if (!m->slots || !m->layers)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the table of tensors");
    for (int r = 0; r < OP_ROLE_COUNT; r++) {
        m->slot[r] = SIZE_MAX;
        for (int32_t l = 0; l < c->layers; l++)
            m->layers[l].slot[r] = SIZE_MAX;
    }
    bool gpt2 = c->family == OP_GPT2;
    add(&b, -1, OP_ROLE_EMBED, c->vocab, c->width, gpt2 ? "wte.weight" : "model.embed_tokens.weight", "token_embd.weight");
    if (gpt2)
        add(&b, -1, OP_ROLE_POSITION, c->max_positions, c->width, "wpe.weight", "position_embd.weight");
    for (int32_t l = 0; l < c->layers; l++) {
        if (gpt2)
            add_gpt2_layer(&b, l);
        else
            add_llama_layer(&b, l);
    }
    add(&b, -1, OP_ROLE_FINAL, c->width, 1, gpt2 ? "ln_f.weight" : "model.norm.weight", "output_norm.weight");
    if (gpt2)
        add(&b, -1, OP_ROLE_FINAL_B, c->width, 1, "ln_f.bias", "output_norm.bias");
    if (!c->tied)
        add(&b, -1, OP_ROLE_HEAD, c->vocab, c->width, "lm_head.weight", "output.weight");
    if (b.full)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "more tensors a layer than the table holds");
    return OP_OK;
}
