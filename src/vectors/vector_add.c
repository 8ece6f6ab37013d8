/* A base and vectors to a new model. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "vectors/vector.h"

typedef struct sum {
    const op_vector_options *o;
    const op_vector_term *terms;
    op_vector *v; /* [n] */
    size_t n;
    op_weights *base;
    const op_weights_tensor **of; /* [n_specs] of the base */
    op_weights_spec *specs;
    size_t n_specs, done;
    float *room; /* the largest tensor */
} sum;

static op_status no_memory(const char *what, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", what);
}

/* Is the base that at which the vector was taken? A base that is read for it is hashed once. */
static op_status check_parent(sum *x, size_t k, char own[65], op_error *e)
{
    op_vector *v = &x->v[k];
    if (x->o->force || (op_weights_is_adapter(v->w) && op_path_same(op_weights_base_path(v->w), op_weights_path(x->base))))
        return OP_OK;
    op_status s = own[0] ? OP_OK : op_weights_hash(x->base, own, e);
    if (!s)
        s = op_vector_parent(v, e);
    if (!s && strcmp(own, v->base))
        s = op_error_set(e, OP_ERR_MISMATCH, "\"%s\" was taken from other weights (sha256 %.12s...) than those of \"%s\" (%.12s...)", op_weights_path(v->w), v->base,
                         op_weights_path(x->base), own);
    return s;
}

static op_status check_tensors(const sum *x, size_t k, op_error *e)
{
    const op_weights *w = x->v[k].w;
    size_t chosen = 0;
    for (size_t i = 0; i < op_weights_count(w); i++) {
        const op_weights_tensor *t = op_weights_at(w, i), *b = op_weights_find(x->base, t->name);
        if (!op_vector_chosen(x->o, t->name))
            continue;
        chosen++;
        if (!b)
            return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" of \"%s\" is missing", op_weights_path(x->base), t->name, op_weights_path(w));
        if (b->rank != t->rank || memcmp(b->shape, t->shape, (size_t)t->rank * sizeof *t->shape))
            return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" has another shape than in \"%s\"", op_weights_path(w), t->name, op_weights_path(x->base));
    }
    return chosen ? OP_OK : op_error_set(e, OP_ERR_ARG, "the layers and kinds asked for leave no tensor of \"%s\"", op_weights_path(w));
}

static op_dtype dtype_for(const op_vector_options *o, const op_weights_tensor *t)
{
    bool kept = t->dtype == OP_F32 || t->dtype == OP_F16 || t->dtype == OP_BF16;
    return o->dtype != OP_DTYPE_COUNT ? o->dtype : kept ? t->dtype : OP_F32;
}

/* The tensors of the result. *most: the type of most elements. */
static op_status make_specs(sum *x, op_dtype *most, op_error *e)
{
    size_t n = op_weights_count(x->base);
    int64_t elements[OP_DTYPE_COUNT] = {0}, largest = 0;
    x->of = op_alloc_zero(n + 1, sizeof *x->of);
    x->specs = op_alloc_zero(n + 1, sizeof *x->specs);
    if (!x->of || !x->specs)
        return no_memory(op_weights_path(x->base), e);
    for (size_t i = 0; i < n; i++) {
        const op_weights_tensor *t = op_weights_at(x->base, i);
        if (op_tensor_is_buffer(t->name))
            continue;
        if (!op_tensor_is_float(t))
            return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\" is of type %s, expected floats", op_weights_path(x->base), t->name, op_dtype_name(t->dtype));
        op_weights_spec *s = &x->specs[x->n_specs];
        *s = (op_weights_spec){.name = t->name, .dtype = dtype_for(x->o, t), .rank = t->rank};
        memcpy(s->shape, t->shape, sizeof s->shape);
        x->of[x->n_specs++] = t;
        elements[s->dtype] += t->count;
        largest = t->count > largest ? t->count : largest;
    }
    *most = elements[OP_F32] >= elements[OP_BF16] && elements[OP_F32] >= elements[OP_F16] ? OP_F32 : elements[OP_BF16] >= elements[OP_F16] ? OP_BF16 : OP_F16;
    x->room = op_alloc_array((size_t)largest + 1, sizeof *x->room);
    return x->room ? OP_OK : no_memory(op_weights_path(x->base), e);
}

static op_status fill_sum(void *ctx, size_t i, float *out, op_error *e)
{
    sum *x = ctx;
    const op_weights_tensor *b = x->of[i];
    op_status s = op_vector_watched(x->o, x->done++, x->n_specs, e);
    if (!s)
        s = op_weights_read(x->base, b, out, e);
    bool chosen = op_vector_chosen(x->o, b->name);
    for (size_t k = 0; k < x->n && chosen && !s; k++) {
        const op_weights_tensor *t = op_weights_find(x->v[k].w, b->name);
        s = t ? op_weights_read(x->v[k].w, t, x->room, e) : OP_OK;
        if (t && !s)
            op_axpy(x->terms[k].scale, x->room, out, b->count);
    }
    return s ? s : op_values_fit(b->name, out, b->count, x->specs[i].dtype, e);
}

static op_status add(sum *x, const char *base, const char *temp, op_error *e)
{
    char own[65] = "";
    op_dtype most = OP_F32;
    op_status s = op_weights_open(&x->base, base, 0, e);
    for (size_t k = 0; k < x->n && !s; k++)
        if (!(s = check_tensors(x, k, e)))
            s = check_parent(x, k, own, e);
    if (!s && !(s = make_specs(x, &most, e)) && !(s = op_weights_write(temp, x->specs, x->n_specs, fill_sum, x, NULL, 0, e)) &&
        !(s = op_weights_write_rest(op_weights_base_path(x->base), temp, most, e)))
        s = op_vector_watched(x->o, x->n_specs, x->n_specs, e);
    return s;
}

op_status op_vector_add(const char *base, const op_vector_term *terms, size_t n, const char *output, const op_vector_options *o, op_error *e)
{
    sum x = {.o = o, .terms = terms, .n = n};
    op_dir_out out = {0};
    const char **paths = op_alloc_zero(n + 1, sizeof *paths);
    op_status s = op_vector_options_check(o, e);
    if (!s && !n)
        s = op_error_set(e, OP_ERR_ARG, "no vector to add");
    for (size_t k = 0; k < n && !s; k++)
        if (!isfinite(terms[k].scale))
            s = op_error_set(e, OP_ERR_ARG, "the scale of \"%s\" is not finite", terms[k].path);
        else if (paths)
            paths[k] = terms[k].path;
    if (!s && !paths)
        s = no_memory(output, e);
    if (!s && !(s = op_vectors_open(&x.v, paths, n, e)) && !(s = op_dir_out_begin(&out, output, e)))
        s = add(&x, base, out.temp, e);
    if (!s)
        s = op_dir_out_commit(&out, e);
    op_dir_out_abort(&out);
    op_free(x.room);
    op_free(x.of);
    op_free(x.specs);
    op_weights_close(x.base);
    op_vectors_close(x.v, n);
    op_free(paths);
    return s;
}
