/* vectors/tensors.h: the weights of a model as one list of named tensors, whatever holds them, and their way into a new model directory.
 *
 * An op_weights is a read-only view of a model directory (or one .safetensors, or the index of shards), a .gguf file or an adapter's
 * directory. Names and layouts are always Hugging Face's: GGUF's names are translated, the rows of Q and K put back, GPT-2's matrices
 * turned. An adapter is folded into its base tensor by tensor, W + scale B A (2106.09685), or shown alone as scale B A with
 * OP_WEIGHTS_DELTA. Nothing is held but the memory maps: op_weights_read makes one tensor at a time.
 *
 * A file may also hold a tensor X as two factors, X.lora_B [rows, rank] and X.lora_A [rank, cols]: it is then listed as X, their product. */
#ifndef OP_VECTORS_TENSORS_H
#define OP_VECTORS_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/tensors.h>

#include "io/safetensors.h"

typedef struct op_weights_tensor {
    const char *name;                  /* Hugging Face's; lives as long as the op_weights */
    op_dtype dtype;                    /* as stored; of a pure product OP_F32 */
    int rank;
    int64_t shape[OP_TENSOR_RANK_MAX]; /* outermost first */
    int64_t count;
    const op_tensor *stored; /* NULL: nothing but a product */
    bool plain;              /* the elements are those of `stored` in the same order, so that its bytes may be copied */
    /* how `stored` becomes this tensor */
    int64_t head_dim;  /* rows of Q or K whose head halves llama.cpp interleaved; 0: none */
    bool turned;       /* stored as its transpose */
    const op_tensor *A, *B; /* + scale B A; NULL: none */
    double scale;
    bool product_turned; /* + scale (B A)^T, for GPT-2's [in, out] */
} op_weights_tensor;

typedef struct op_weights op_weights;

enum { OP_WEIGHTS_DELTA = 1 }; /* of an adapter only what it adds */

/* Opens `path`. Errors name the file and the tensor. On failure *out is NULL. */
op_status op_weights_open(op_weights **out, const char *path, unsigned flags, op_error *e);
void op_weights_close(op_weights *w); /* NULL is fine */

const char *op_weights_path(const op_weights *w);      /* as it was opened */
const char *op_weights_base_path(const op_weights *w); /* the same, or the path of an adapter's base */
bool op_weights_is_adapter(const op_weights *w);
/* The file's metadata (op_tensors_meta_...); of an adapter the base's, with OP_WEIGHTS_DELTA its own. */
const op_tensors *op_weights_tensors(const op_weights *w);

size_t op_weights_count(const op_weights *w);
const op_weights_tensor *op_weights_at(const op_weights *w, size_t i);
/* A name without GPT-2's "transformer.". */
const char *op_weights_bare_name(const char *name);
/* By name, where GPT-2's "transformer." may be left out on either side; NULL if there is none. */
const op_weights_tensor *op_weights_find(const op_weights *w, const char *name);

/* out[count]. A type that is no float is OP_ERR_UNSUPPORTED, a value that is not finite OP_ERR_FORMAT. */
op_status op_weights_read(const op_weights *w, const op_weights_tensor *t, float *out, op_error *e);

/* The identity of the weights, the same in every file format that keeps the values: SHA-256 over the lines "NAME [SHAPE] SHA256\n" of
 * all float tensors, sorted by name (without "transformer."), SHA256 being that of the tensor's elements as little-endian floats. */
op_status op_weights_hash(const op_weights *w, char hex[65], op_error *e);

/* ---- writing ---- */

/* Fills out[count] with tensor i, in whatever order the file wants them, each once. */
typedef op_status (*op_weights_fn)(void *ctx, size_t i, float *out, op_error *e);

typedef struct op_weights_spec {
    const char *name;
    op_dtype dtype; /* OP_F32, OP_F16 or OP_BF16 */
    int rank;
    int64_t shape[OP_TENSOR_RANK_MAX];
} op_weights_spec;

/* Writes n tensors, one in memory at a time, into the existing directory `path` (model.safetensors, or shards of 5 GiB) or, if `path`
 * ends in ".safetensors", into that file (atomically). */
op_status op_weights_write(const char *path, const op_weights_spec *t, size_t n, op_weights_fn fn, void *ctx, const op_safetensors_meta *meta,
                           size_t n_meta, op_error *e);

/* The rest of a model directory: config.json with `dtype` as the type, generation_config.json, and the tokenizer's files: copied from
 * the model at `from`, or made from a .gguf (an adapter's base: the caller passes op_weights_base_path). */
op_status op_weights_write_rest(const char *from, const char *dir, op_dtype dtype, op_error *e);

/* A directory in the making: write into `temp`, then commit, which gives it its name; abort, or a commit that fails, leaves nothing.
 * A name that is taken, by anything but an empty directory, is refused at the start. Both end its life; abort after either is harmless. */
typedef struct op_dir_out {
    char *path, *temp;
} op_dir_out;

op_status op_dir_out_begin(op_dir_out *d, const char *path, op_error *e); /* on failure *d is empty */
op_status op_dir_out_commit(op_dir_out *d, op_error *e);
void op_dir_out_abort(op_dir_out *d);

#endif
