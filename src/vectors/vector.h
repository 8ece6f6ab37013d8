/* vectors/vector.h: what the files of the vectors share. */
#ifndef OP_VECTORS_VECTOR_H
#define OP_VECTORS_VECTOR_H

#include <operant/vector.h>

#include "vectors/tensors.h"

typedef struct op_vector {
    op_weights *w;
    char base[65]; /* of an adapter "" until op_vector_parent */
} op_vector;

/* Opens n vectors or adapters (as what they add). On failure all are closed. */
op_status op_vectors_open(op_vector **out, const char *const *paths, size_t n, op_error *e);
void op_vectors_close(op_vector *v, size_t n); /* NULL is fine */
/* Finds the hash of the base, which for an adapter means reading its base. */
op_status op_vector_parent(op_vector *v, op_error *e);

/* ---- which tensors ---- */

op_status op_vector_options_check(const op_vector_options *o, op_error *e);
bool op_vector_chosen(const op_vector_options *o, const char *name);
/* Tensors that are no weights: masks and frequencies that old checkpoints carry along. */
bool op_tensor_is_buffer(const char *name);
bool op_tensor_is_float(const op_weights_tensor *t);
/* OP_ERR_FORMAT, naming the element, if one is not finite or becomes so in `dtype`. */
op_status op_values_fit(const char *name, const float *x, int64_t n, op_dtype dtype, op_error *e);
op_status op_vector_watched(const op_vector_options *o, size_t done, size_t total, op_error *e);

/* The chosen tensors of several vectors, each once: at[i * n_vectors + k] is tensor i of vector k, NULL where it has none. */
typedef struct op_joint {
    const op_weights_tensor **at, **any; /* any[i]: the first that is there */
    size_t n, n_vectors;
    int64_t largest; /* elements */
} op_joint;

op_status op_joint_make(op_joint *j, const op_vector *v, size_t n, const op_vector_options *o, op_error *e);
void op_joint_release(op_joint *j);

/* Reads tensor i of every vector into values[k], NULL where it is absent; room holds n_vectors * largest floats. */
op_status op_joint_read(const op_joint *j, const op_vector *v, size_t i, float *room, const float **values, op_error *e);

/* ---- arithmetic ---- */

double op_dot(const float *a, const float *b, int64_t n);
/* y += s x, each rounded once */
void op_axpy(double s, const float *x, float *y, int64_t n);
/* The size of the k-th largest |x| as the bits of a float; 1 <= k <= n. Exact, in three passes. */
uint32_t op_magnitude_rank(const float *x, int64_t n, int64_t k);

/* vector_svd.c */
typedef struct op_ranks {
    double stable, participation, top_1, top_4, top_16; /* top: NAN beyond the singular values asked for */
} op_ranks;

/* Of a[rows, cols], which is not zero, from its `singular` largest singular values. */
op_status op_matrix_ranks(const float *a, int64_t rows, int64_t cols, int singular, op_ranks *out, op_error *e);

#endif
