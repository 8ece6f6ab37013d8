/* operant/vector.h: task vectors: what training changed, as a thing to measure, to add and to take away.
 *
 * A vector is tau = W_trained - W_base, one tensor for each that differs (Ilharco et al.: 2212.04089); a base W takes it up as
 * W + s tau, with a negative s to unlearn. On disk it is a .safetensors with Hugging Face's names, in whose metadata stand
 *     operant.kind            "vector"
 *     operant.base.sha256     the weights it was taken from (op_weights_sha256): every other base is refused unless forced
 *     operant.model.sha256    the weights it leads to; absent in what was computed from vectors
 *     operant.base, .model, .made   their paths and how it was made, for people only
 * A tensor that did not change is left out: absent is zero. The vector of an adapter keeps its factors, X.lora_B [rows, rank] and
 * X.lora_A [rank, cols] with X = B A, and is as small as the adapter; wherever a vector is wanted, an adapter's directory will do too.
 * Everything goes tensor by tensor: memory holds as many tensors as there are vectors, and one more. Outputs are atomic: complete under
 * their name, or not there.
 *
 * Exactness, with u = 2^-24 and vector and result in f32: extracting and adding at +1 gives back W_trained with an error of at most
 * 2u (|W_trained| + |W_base|) per element, and the very bits where W_base / 2 <= W_trained <= 2 W_base; taking away and adding again gives
 * back W with at most 2u (|W| + |tau|). A result in bf16 adds 2^-8 |W|, in f16 2^-11 |W|, and the vector's own type as much of |tau|. */
#ifndef OPERANT_VECTOR_H
#define OPERANT_VECTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/dtype.h>
#include <operant/model.h>
#include <operant/status.h>

typedef struct op_vector_options {
    op_dtype dtype;     /* of what is written: OP_F32, OP_BF16, OP_F16; OP_DTYPE_COUNT: of a vector f32, of a model each tensor as in the
                           base, f32 where that is quantised */
    const char *layers; /* "0-7,12": only tensors of these layers; NULL: all, with those outside the layers */
    const char *kinds;  /* "mlp,q_proj": only tensors whose kind contains one of the words; NULL: all. The kind is the name without its
                           layer: self_attn.q_proj, mlp.down_proj, input_layernorm, embed_tokens, lm_head */
    bool force;         /* do it although the base is another than the vector's, or the vocabularies differ */
    /* Called for every tensor done; false stops with OP_ERR_INTERRUPTED. NULL: nobody watches. */
    bool (*watch)(void *ctx, size_t done, size_t total);
    void *ctx;
} op_vector_options;

/* SHA-256 of a model's weights (directory, .safetensors, .gguf, adapter folded in), the same in every format that keeps the values: over the lines
 * "NAME [SHAPE] SHA256\n" of all float tensors sorted by name, SHA256 being that of the elements as little-endian floats. */
op_status op_weights_sha256(const char *model, char hex[65], op_error *e);

/* The SHA-256 of the weights that the vector (or adapter) at `path` belongs to. OP_ERR_FORMAT if it is no vector. */
op_status op_vector_base(const char *path, char hex[65], op_error *e);

/* The layer of a tensor by its name, -1 outside the layers, and its kind. */
enum { OP_KIND_MAX = 96 };
int op_tensor_layer(const char *name, char kind[OP_KIND_MAX]);

/* ---- making vectors; `output` is a .safetensors, which is replaced ---- */

/* model - base. base NULL: that of an adapter's directory. OP_ERR_MISMATCH when a tensor is missing on either side, has another shape, or the vocabularies
 * differ; OP_ERR_ARG when nothing differs. A model saved in 16 bits differs from a finer base by its rounding, which may be larger than what it learned: a warning
 * (operant/log.h) says so. */
op_status op_vector_extract(const char *model, const char *base, const char *output, const op_vector_options *o, op_error *e);

typedef struct op_vector_term {
    const char *path; /* a vector or an adapter's directory */
    double scale;
} op_vector_term;

/* sum of scale * vector, over the tensors chosen by the options; then, if n_against, less its projection onto the span of the vectors at
 * against[] (each taken as one long array over the chosen tensors). With one term: scale, restrict, make orthogonal. The vectors must have one base, unless forced. */
op_status op_vector_combine(const op_vector_term *terms, size_t n, const char *const *against, size_t n_against, const char *output,
                            const op_vector_options *o, op_error *e);

/* Independent normal elements, each tensor scaled to the norm that it has in the vector at `like`: the control for its size. The same seed gives the same bits. */
op_status op_vector_random(const char *like, uint64_t seed, const char *output, const op_vector_options *o, op_error *e);

/* ---- using them ---- */

/* W_base + sum of scale * vector, as a model directory (with configuration and tokenizer) that operant and transformers load. `base` may be a model directory,
 * a .gguf or an adapter's directory. A name that is taken is refused. OP_ERR_MISMATCH when a vector has another base or a tensor that the base lacks;
 * OP_ERR_FORMAT when a sum is not finite in the type it is written in. */
op_status op_vector_add(const char *base, const op_vector_term *terms, size_t n, const char *output, const op_vector_options *o, op_error *e);

/* The same onto the weights of a model that is open, in memory: for trying many scales without writing a model each. The model must have float weights (f32, or
 * OP_TRAIN_ALL without freeze_embedding). Its base is that of the file it was opened from, however it has been changed since; one made by op_model_new has none to compare. When a
 * vector does not fit, the model is as it was; after a failure to read one (OP_ERR_FORMAT) or for lack of memory it is not to be used any more. o->dtype says nothing here. */
op_status op_vector_apply(op_model *m, const op_vector_term *terms, size_t n, const op_vector_options *o, op_error *e);

/* gram[i*n + j] = the inner product of vectors i and j over the chosen tensors. */
op_status op_vector_gram(const char *const *paths, size_t n, double *gram, const op_vector_options *o, op_error *e);

/* What a vector is like. `singular`: how many of the largest singular values of each matrix are estimated; 0: no ranks. `base`, which may be NULL, is
 * for the relative sizes. The caller decrefs *out:
 *   {path, made, base: {path, sha256}, model: {path, sha256}, tensors, elements, norm, max, zeros, concentration, relative?,
 *    layers: [{layer, tensors, elements, norm, share, relative?}], kinds: [{kind, and the same, rms, zeros, concentration, ranks...}],
 *    list: [{name, layer, kind, shape, ...}]}
 * norm: of Frobenius; share: of the whole energy, the sum of squares; relative: norm / norm of the same tensors of the base;
 * zeros: share of elements that are exactly 0; concentration: share of the energy in the 1% largest elements of each tensor;
 * of matrices: stable_rank = |A|_F^2 / |A|_2^2 (Rudelson, Vershynin: math/0503442), participation = (sum s^2)^2 / sum s^4 over the singular
 * values s, computed without them as |A|_F^4 / |A A^T|_F^2, top_1, top_4, top_16: share of the energy in the largest 1, 4, 16 singular values,
 * those found by randomised subspace iteration (Halko, Martinsson, Tropp: 0909.4061, algorithm 4.4). Kinds and layers: means weighted by energy. */
op_status op_vector_info(const char *path, const char *base, int singular, const op_vector_options *o, json_t **out, op_error *e);

/* n >= 2 vectors against one another. top, 0 < top <= 1: the share of elements that count as large. The caller decrefs *out:
 *   {vectors: [{path, norm, tensors, base_sha256}], same_base, top, elements, cosine, sign_conflict, overlap,
 *    layers: [{layer, norms, cosine}], kinds: [{kind, norms, cosine}]}
 * Each matrix is a list of n lists. cosine: a.b / |a||b|, null when one is zero; sign_conflict: share of opposite signs among the elements that neither has at
 * 0 (Yadav et al.: 2306.01708; chance: one half); overlap: share of one's largest `top` of each tensor that are among the other's (chance: `top`). */
op_status op_vector_compare(const char *const *paths, size_t n, double top, const op_vector_options *o, json_t **out, op_error *e);

#endif
