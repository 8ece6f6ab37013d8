/* operant/model.h: transformer language models: load, run forward and backward, save.
 *
 * One description (op_model_config) covers Llama (SmolLM2, TinyLlama, Llama 3.x), Mistral, Qwen2, Qwen3 and GPT-2.
 * A model knows token ids, never text. Three seams are here for everything that builds on it:
 *   - a batch is a ragged forest of sequences (op_batch) with an adapter for each sequence;
 *   - residual taps (op_tap) read or add to the residual stream, with gradients both ways;
 *   - the loss sees log-probabilities: forward, logprobs, (an objective), backward.
 *
 * A training step, for each micro-batch:
 *     op_model_forward(m, pass, batch, &how, e)           hidden states; activations kept
 *     op_model_logprobs(m, pass, slope_or_NULL, logp, e)  log p of every token given what precedes it
 *     op_model_backward(m, pass, slope, e)                adds to the gradients; slope[t] = d loss / d log p of token t
 * then the optimiser changes the values and calls op_model_updated.
 *
 * Legend: T tokens of a batch, S sequences, C width, L layers, V vocabulary. Calls come from one thread of the
 * process at a time, whatever the model: the products' kernels are shared. */
#ifndef OPERANT_MODEL_H
#define OPERANT_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>
#include <operant/tensors.h>

typedef enum op_family { OP_LLAMA, OP_MISTRAL, OP_QWEN2, OP_QWEN3, OP_GPT2, OP_FAMILY_COUNT } op_family;

/* Rotary frequencies changed for long contexts; type "none", "linear" or "llama3" (formulas in src/model/rope.c). */
typedef enum op_rope_scaling { OP_ROPE_PLAIN, OP_ROPE_LINEAR, OP_ROPE_LLAMA3 } op_rope_scaling;

typedef struct op_model_config {
    op_family family;
    int32_t vocab;         /* V */
    int32_t width;         /* C */
    int32_t layers;        /* L */
    int32_t heads;         /* H, query heads */
    int32_t kv_heads;      /* G, key-value heads; divides H */
    int32_t head_dim;      /* D */
    int32_t ffn;           /* F */
    int32_t max_positions; /* longest sequence */
    int32_t window;        /* sliding attention window, 0: none */
    float norm_eps;
    double rope_theta;
    op_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq, rope_high_freq;
    int32_t rope_original_positions;
    bool tied;     /* the output layer is the embedding */
    bool qkv_bias; /* Qwen2, GPT-2 */
    bool out_bias; /* GPT-2: the other linear layers too */
    bool qk_norm;  /* Qwen3 */
    int32_t bos, pad;      /* -1: none */
    int32_t eos[8], n_eos; /* any of them ends a text */
} op_model_config;

const char *op_family_name(op_family f); /* "llama", ... as model_type in config.json */

/* ---- adapters: LoRA (Hu et al.: 2106.09685), rank-stabilised on wish (2312.03732) ---- */

enum {
    OP_LORA_Q = 1, OP_LORA_K = 2, OP_LORA_V = 4, OP_LORA_O = 8, OP_LORA_GATE = 16, OP_LORA_UP = 32, OP_LORA_DOWN = 64,
    OP_LORA_ATTENTION = 15, OP_LORA_ALL = 127,
};

typedef struct op_lora_options {
    int32_t rank;     /* 1..512; default 16 */
    float alpha;      /* scale = alpha / rank, or alpha / sqrt(rank) when rslora */
    float dropout;    /* 0..1, on the input of A; training only */
    unsigned targets; /* OP_LORA_* bits; GPT-2's c_attn is Q|K|V together */
    bool rslora;
} op_lora_options;

/* ---- opening ---- */

typedef enum op_trainable {
    OP_TRAIN_NONE,    /* weights are kept only in the form that products need */
    OP_TRAIN_ALL,     /* float master weights and gradients of every parameter */
    OP_TRAIN_ADAPTER, /* base frozen; parameters are adapter 0's */
} op_trainable;

/* How the matrices of a model that is only run are kept. */
typedef enum op_weight_form {
    OP_WEIGHTS_EXACT,     /* in the type of the activations */
    OP_WEIGHTS_QUANTISED, /* OP_TRAIN_NONE only: in blocks of 32 with a scale, in 4 bits where the file's values allow it (Q4_0, Q4_1, Q4_K), else in 8; each product
                             rounds its activations to 8 bits. A third of the memory and a multiple of the speed for one text at a time; log-probabilities
                             differ from those of exact weights (SmolLM2-135M from Q4_1, 1,475 tokens drawn at temperature 0.7: by 0.048 on average, 0.45 at most),
                             but a forward pass of this model gives them again. */
} op_weight_form;

typedef struct op_model_options {
    const char *backend;    /* "cpu" (default when NULL) or "ref" */
    op_dtype act;           /* OP_F32 or OP_BF16: activations and products; sums, norms and masters are always float */
    op_trainable trainable;
    op_lora_options lora;   /* for OP_TRAIN_ADAPTER */
    uint64_t seed;          /* of initial weights (adapters, op_model_new) */
    bool freeze_embedding;  /* OP_TRAIN_ALL without the embedding (and the output layer, if that is tied to it): Adam moves the rows of rare
                               tokens as far as those of frequent ones, which costs more of the old model than it teaches of the new */
    op_weight_form weights;
    bool recompute;         /* keep only each layer's input and run the layer again in the backward pass */
    op_dtype grad_dtype;    /* OP_F32, or for OP_TRAIN_ALL with bf16 products OP_BF16: gradients of matrices are kept, and added up over micro-batches, in
                               bf16 (each product still adds up in float); those of norms and biases stay float */
} op_model_options;

typedef struct op_model op_model;

/* Opens a Hugging Face directory (config.json + safetensors), a directory with an adapter (adapter_config.json, whose base
 * it names), or a .gguf file. The file can be closed (deleted, even) afterwards. */
op_status op_model_open(op_model **out, const char *path, const op_model_options *o, op_error *e);
/* The path of the weights under `path`: an adapter directory's base, as it names it or, where that does not exist, relative to the directory;
 * any other path is its own. *base is the caller's (free). */
op_status op_model_base_path(const char *path, char **base, op_error *e);
/* Random weights: normal with deviation 0.02, norms 1, biases 0. Without OP_TRAIN_ALL the model is f32, whatever o->act says. */
op_status op_model_new(op_model **out, const op_model_config *c, const op_model_options *o, op_error *e);
void op_model_free(op_model *m);

const op_model_config *op_model_get_config(const op_model *m);
const op_model_options *op_model_get_options(const op_model *m);
/* SHA-256 over every base weight as float in table order, as 64 hexadecimal digits: the identity of the weights. */
op_status op_model_hash(const op_model *m, char hex[65], op_error *e);
/* As quick as opening: SHA-256 over all adapters and, of the file that the model was opened from, each tensor's name, type, shape and
 * up to 16 KiB in evenly spread pieces. Training changes it; a change of a few rows by hand may not. */
op_status op_model_fingerprint(const op_model *m, char hex[65], op_error *e);
size_t op_model_bytes(const op_model *m); /* memory held by weights, gradients and packed forms */
int64_t op_model_count(const op_model *m); /* parameters, trainable or not, tied ones once */

/* ---- parameters: those that may be trained form one contiguous array ---- */

typedef struct op_param {
    const char *name;   /* Hugging Face (or PEFT) name */
    size_t offset, n;   /* its place in values[] and grads[] */
    int64_t rows, cols; /* cols 1 for vectors */
    bool decay;         /* weight decay applies: matrices yes; norms and biases no */
    void *grad;         /* [n] float, or in the activation type if grad_act */
    bool grad_act;
} op_param;

typedef struct op_params {
    float *values, *grads; /* [n] owned by the model; grads NULL when gradients are bf16: each parameter then has its own */
    size_t n;
    const op_param *table;
    size_t n_table;
} op_params;

op_params op_model_params(op_model *m); /* n == 0 with OP_TRAIN_NONE */
/* Must follow every change of values: refreshes the packed forms. */
op_status op_model_updated(op_model *m, op_error *e);

/* ---- batches: a packed ragged forest ---- */

typedef struct op_seq {
    int32_t start, length; /* its own tokens are ids[start .. start+length-1]; length >= 1 */
    int32_t parent;        /* an earlier sequence of the batch whose first `branch` tokens (counted from the root) precede this
                              one's, or -1 */
    int32_t branch;        /* 1 .. whole length of the parent; 0 for a root */
    int32_t adapter;       /* adapter of the model, or -1: none */
} op_seq;

typedef struct op_batch {
    int32_t n_tokens, n_seqs; /* T, S; sequences lie in order, without gaps, those of one tree adjacent */
    const int32_t *ids;       /* [T] */
    const op_seq *seqs;       /* [S] */
} op_batch;

/* ---- forward and backward ---- */

typedef struct op_pass op_pass; /* the buffers of one forward and backward; grows to the largest batch seen */

op_status op_pass_new(op_pass **out, op_model *m, op_error *e);
void op_pass_free(op_pass *p);
size_t op_pass_bytes(const op_pass *p);

typedef struct op_how {
    bool keep;             /* keep activations: a backward follows */
    bool train;            /* dropout is on */
    uint64_t seed;         /* of dropout: together with `step` it fixes every mask */
    uint64_t step;
} op_how;

op_status op_model_forward(op_model *m, op_pass *p, const op_batch *b, const op_how *how, op_error *e);

/* logp[t] = log p(token t | what precedes it in its sequence) for every t with want[t] != 0 (want NULL: all); 0 for the others
 * and for a root's first token, which nothing precedes. The logits exist only a chunk of rows at a time.
 * `slope`, if not NULL, is d loss / d log p known in advance (a linear objective): the backward of the output layer is done in
 * the same pass over the chunks, tokens with slope 0 are left out unless wanted, and op_model_backward is then called with slope NULL. */
op_status op_model_logprobs(op_model *m, op_pass *p, const uint8_t *want, const float *slope, float *logp, op_error *e);

/* Adds d loss / d parameter to the gradients. */
op_status op_model_backward(op_model *m, op_pass *p, const float *slope, op_error *e);

/* The logits [n, V] that follow rows[0..n-1] of the last forward (float, caller-owned). */
op_status op_model_logits(op_model *m, op_pass *p, const int32_t *rows, int32_t n, float *logits, op_error *e);

/* Where the last layer looked in the last forward: out[i], i = 0 .. the position of batch token `token` in its sequence, is the attention that it pays to the
 * i-th token of that sequence (beginnings shared with a parent included): softmax of the scaled q k, the mean over the query heads, 1 in sum. After a
 * backward there is nothing to read. */
op_status op_model_attention(const op_model *m, const op_pass *p, int32_t token, float *out, op_error *e);

/* ---- seams ---- */

/* A residual tap. `layer` l is the stream that enters layer l (0: the embeddings), L the one that leaves the last.
 * forward sees resid[T, C] and may add to it. backward sees dresid[T, C], the gradient at the same place (after the
 * additions), may add to it, and is called in reverse order. Either may be NULL. A status other than OP_OK ends the pass. */
typedef struct op_tap {
    int32_t layer;
    void *ctx;
    op_status (*forward)(void *ctx, int32_t layer, const op_batch *b, float *resid);
    op_status (*backward)(void *ctx, int32_t layer, const op_batch *b, float *dresid);
} op_tap;
/* Replaces the taps; the array is copied. Called in the order given within a layer. In generation, batches hold one new token a row.
 * Fails only where memory is out and there are more than before. */
op_status op_model_set_taps(op_model *m, const op_tap *taps, size_t n);
/* The taps that are set, borrowed until the next call of op_model_set_taps: who needs the model for a moment puts a copy back. */
const op_tap *op_model_taps(const op_model *m, size_t *n);

/* Sees every chunk of logits [n, V] that op_model_logprobs computes; tokens[i] is the batch index of the token predicted by row i. In a
 * pass with a backward dlogits [n, V] (zeroed) may receive d loss / d logits to be added; otherwise it is NULL. */
typedef op_status (*op_logits_fn)(void *ctx, int32_t n, const int32_t *tokens, const float *logits, float *dlogits);
void op_model_set_logits_hook(op_model *m, op_logits_fn fn, void *ctx);

/* Called during every backward pass, from its thread, when a layer is done: of this pass's gradients those of the parameters from `first` on (op_params) are
 * complete. NULL: nobody. */
typedef void (*op_gradient_fn)(void *ctx, size_t first);
void op_model_set_gradient_hook(op_model *m, op_gradient_fn fn, void *ctx);

/* ---- adapters ---- */

op_status op_model_adapter_add(op_model *m, const op_lora_options *o, int32_t *id, op_error *e); /* B = 0; not trainable */
op_status op_model_adapter_load(op_model *m, const char *dir, int32_t *id, op_error *e);          /* PEFT's files */
op_status op_model_adapter_save(const op_model *m, int32_t id, const char *dir, const char *base, op_error *e);
int32_t op_model_adapter_count(const op_model *m);
/* Folds an adapter into the base weights (needs float weights: OP_TRAIN_ALL or an f32 model) and removes none. */
op_status op_model_adapter_merge(op_model *m, int32_t id, op_error *e);

/* ---- saving ---- */

/* config.json, generation_config.json, model.safetensors into an existing directory, dtype OP_F32, OP_BF16 or OP_F16. */
op_status op_model_save(const op_model *m, const char *dir, op_dtype dtype, op_error *e);

#endif
