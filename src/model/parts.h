/* model/parts.h: what the files of this folder know of one another. Legend as in operant/model.h.
 *
 * Every base tensor is an op_slot. With float weights (training everything, or f32 products) all slots lie one after the other in
 * model->values; otherwise only vectors and position tables do, and matrices live in their packed form alone. Slots whose products
 * share an input are neighbours (q|k|v, gate|up), so that one packed matrix serves them. */
#ifndef OP_MODEL_PARTS_H
#define OP_MODEL_PARTS_H

#include <jansson.h>

#include <operant/model.h>

#include "ops/ops.h"

typedef enum op_role {
    OP_ROLE_EMBED, OP_ROLE_POSITION,
    OP_ROLE_NORM1, OP_ROLE_NORM1_B,
    OP_ROLE_Q, OP_ROLE_K, OP_ROLE_V, OP_ROLE_Q_B, OP_ROLE_K_B, OP_ROLE_V_B, OP_ROLE_Q_NORM, OP_ROLE_K_NORM,
    OP_ROLE_O, OP_ROLE_O_B,
    OP_ROLE_NORM2, OP_ROLE_NORM2_B,
    OP_ROLE_GATE, OP_ROLE_UP, OP_ROLE_UP_B, OP_ROLE_DOWN, OP_ROLE_DOWN_B,
    OP_ROLE_FINAL, OP_ROLE_FINAL_B, OP_ROLE_HEAD,
    OP_ROLE_COUNT
} op_role;

typedef struct op_slot {
    char name[96];      /* Hugging Face's name; GPT-2's without the leading "transformer." */
    char gguf[64];      /* llama.cpp's name */
    op_role role;
    int32_t layer;      /* -1: outside the layers */
    int64_t rows, cols; /* cols 1 for vectors */
    size_t offset;      /* in values, when all weights are float */
    float *value;       /* NULL where not kept */
    void *grad;         /* NULL where not kept; of matrices in the activation type if grad_act, else float */
    bool grad_act;
    bool transposed;    /* stored [cols, rows] in Hugging Face's file (GPT-2's Conv1D) */
} op_slot;

/* One packed matrix over `n` neighbouring slots. */
typedef struct op_group {
    size_t first, n;
    int32_t N, K;
    op_weight *W;
} op_group;

typedef struct op_layer {
    op_group qkv, o, gu, down; /* gu: gate|up, or GPT-2's c_fc */
    size_t slot[OP_ROLE_COUNT]; /* index of the layer's slot of a role; SIZE_MAX: none */
} op_layer;

enum { OP_TARGET_COUNT = 7 }; /* q k v o gate up down, in the order of the OP_LORA_* bits */

typedef struct op_lora {
    int32_t in, out;
    float *A, *B;   /* A [rank, in], B [out, rank]; A == NULL: not a target */
    float *dA, *dB; /* gradients, NULL when frozen */
    void *A_act, *B_act; /* the same in the activation type (A, B themselves for f32) */
} op_lora;

typedef struct op_adapter {
    op_lora_options options;
    float scale;
    float *values, *grads; /* all A and B, layer by layer */
    size_t n;
    void *act;             /* their copy in the activation type, NULL for f32 */
    op_lora *lora;         /* [layers * OP_TARGET_COUNT] */
    op_param *table;       /* PEFT names */
    char (*names)[128];
    size_t n_table;
} op_adapter;

struct op_model {
    op_model_config config;
    op_model_options options;
    const op_ops *ops;
    char *source;      /* path it was opened from, or NULL */
    bool floats;       /* every slot has a float value */
    op_slot *slots;
    size_t n_slots, n_values;
    float *values, *grads; /* grads: of vectors alone when the matrices' are in grads_act */
    void *grads_act;
    size_t frozen;     /* floats at the start of values that have no gradient: the embedding's, or 0 */
    op_layer *layers;
    size_t slot[OP_ROLE_COUNT]; /* those outside the layers */
    void *embed_act;   /* [V, C] in the activation type when !floats, unless the head is tied to it and gives rows back */
    op_group head;     /* over the embedding or its own slot */
    float *cos, *sin;  /* [max_positions, D/2] */
    int32_t rope_rows;
    op_adapter *adapters;
    int32_t n_adapters;
    op_param *params;  /* of the base: those with a gradient */
    size_t n_params;
    op_tap *taps;
    size_t n_taps;
    op_logits_fn hook;
    void *hook_ctx;
    op_gradient_fn gradient_hook;
    void *gradient_ctx;
};

/* config.c */
op_status op_model_config_from_json(op_model_config *c, const json_t *json, const char *name, op_error *e);
op_status op_model_config_from_gguf(op_model_config *c, const op_tensors *t, op_error *e);
json_t *op_model_config_to_json(const op_model_config *c, op_dtype dtype); /* NULL when memory is out */
/* save.c: config.json and generation_config.json into an existing directory. */
op_status op_model_config_save(const op_model_config *c, const char *dir, op_dtype dtype, op_error *e);
op_status op_model_config_check(const op_model_config *c, op_error *e);

/* rope.c: fills cos, sin [rows, D/2] */
void op_rope_table(const op_model_config *c, int32_t rows, float *cos, float *sin);
double op_rope_frequency(const op_model_config *c, int32_t pair);
op_status op_rope_from_gguf(op_model_config *c, const op_tensors *t, op_error *e);

/* slots.c: the table of tensors */
op_status op_slots_build(op_model *m, op_error *e);

/* adapter.c */
void op_adapter_release(op_model *m, op_adapter *a);
void op_adapter_refresh(op_model *m, op_adapter *a); /* float to activation type */

static inline const op_slot *op_model_slot(const op_model *m, int32_t layer, op_role role)
{
    size_t i = layer < 0 ? m->slot[role] : m->layers[layer].slot[role];
    return i == SIZE_MAX ? NULL : &m->slots[i];
}

static inline float *op_model_value(const op_model *m, int32_t layer, op_role role)
{
    const op_slot *s = op_model_slot(m, layer, role);
    return s ? s->value : NULL;
}

static inline float *op_model_grad(const op_model *m, int32_t layer, op_role role)
{
    const op_slot *s = op_model_slot(m, layer, role);
    return s ? s->grad : NULL;
}

/* adapter.c in a pass */

/* Rows that run through the layers together, with the adapter of each stretch of rows. */
typedef struct op_stretch {
    int32_t first, n, adapter;
} op_stretch;

typedef struct op_rows {
    int32_t T;                  /* rows in use */
    int32_t M;                  /* rows that products compute: T, or more when padded */
    bool decode;                /* base weights multiply by op_ops.decode: the T rows alone */
    bool padded;                /* adapters' products compute M rows as well, so that a row's result does not depend on the others */
    const op_stretch *stretch;
    int32_t n_stretch;
    const int32_t *position;    /* [M] */
    float dropout_on;           /* 0 or 1 */
    uint64_t seed, step;
} op_rows;

/* Scratch for adapters: h [M, rank], wide [M, max width]; both act. */
typedef struct op_lora_scratch {
    void *h, *dh, *wide;
} op_lora_scratch;

/* Adds scale B A x of the rows' adapters to y; y is act, or float when y_f32; ldy between rows. x, y have M rows when padded. */
op_status op_lora_forward(const op_model *m, const op_rows *r, int32_t layer, int target, const void *x, void *y,
                          int32_t ldy, bool y_f32, op_lora_scratch *s);
/* Given dy (act, ldy), adds to dA, dB and to dx [M, in] (act). */
op_status op_lora_backward(const op_model *m, const op_rows *r, int32_t layer, int target, const void *x,
                           const void *dy, int32_t ldy, void *dx, op_lora_scratch *s);

/* layer.c: the parts of a layer, for rows of training and of generation alike */

/* q|k|v of some rows. Without head norms qk_raw and the rstds are NULL. */
typedef struct op_qkv {
    void *qkv;              /* [T, (H+2G) D] act */
    void *qk_raw;           /* [T, (H+G) D] before the head norms (Qwen3) */
    float *q_rstd, *k_rstd; /* [T, H], [T, G] */
} op_qkv;

int32_t op_joint_width(const op_model_config *c); /* (H+2G) D */
int32_t op_gu_width(const op_model_config *c);    /* 2F, or F without a gate */
int32_t op_lora_rank(const op_model *m);          /* the largest of all adapters, 0 without */
char *op_act_column(const op_model *m, const void *rows, int64_t first); /* element `first` of an act array */

void op_layer_embed(const op_model *m, int32_t T, const int32_t *ids, const int32_t *position, float *out);
/* y = norm(x); role NORM1 or NORM2 of a layer, or FINAL with layer -1 */
void op_norm_forward(const op_model *m, int32_t layer, op_role role, int32_t T, const float *x, void *y, float *mean,
                     float *rstd);
/* q|k|v of the normed stream x, with biases, adapters, head norms and rotation */
op_status op_layer_qkv(const op_model *m, const op_rows *r, int32_t l, const void *x, op_qkv *k, op_lora_scratch *lora);
/* resid += O att */
op_status op_layer_attention_out(const op_model *m, const op_rows *r, int32_t l, const void *att, float *resid,
                                 op_lora_scratch *lora);
/* gu = gate|up of the normed stream x; h = its activation; resid += down h */
op_status op_layer_mlp_in(const op_model *m, const op_rows *r, int32_t l, const void *x, void *gu, op_lora_scratch *lora);
void op_layer_activation(const op_model *m, int32_t T, const void *gu, void *h);
op_status op_layer_mlp_out(const op_model *m, const op_rows *r, int32_t l, const void *h, float *resid, op_lora_scratch *lora);
/* pass.c: q|k|v [T, (H+2G) D] of the last layer in the last forward, act, after the rotation, and which rows see which; NULL: there was none, or a backward
 * came after it. */
const void *op_pass_last_qkv(const op_pass *p, const op_attention **how);
op_status op_taps_forward(op_model *m, int32_t layer, const op_batch *b, float *resid);

#endif
