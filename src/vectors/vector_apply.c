/* Vectors onto a model that is open. */
#include <string.h>

#include "base/mem.h"
#include "model/parts.h"
#include "vectors/vector.h"

static const op_slot *slot_of(const op_model *m, const char *name)
{
    for (size_t i = 0; i < m->n_slots; i++)
        if (!strcmp(m->slots[i].name, op_weights_bare_name(name)))
            return &m->slots[i];
    return NULL;
}

static op_status check_model(const op_model *m, op_error *e)
{
    if (!m->floats)
        return op_error_set(e, OP_ERR_ARG, "vectors need float weights: open the model with dtype f32, or to train all of it");
    return m->frozen ? op_error_set(e, OP_ERR_ARG, "vectors need a model whose embedding is not frozen") : OP_OK;
}

static op_status check_vector(const op_model *m, op_vector *v, const char *own, const op_vector_options *o, size_t *largest, op_error *e)
{
    const char *path = op_weights_path(v->w);
    op_status s = own ? op_vector_parent(v, e) : OP_OK;
    if (!s && own && strcmp(own, v->base))
        s = op_error_set(e, OP_ERR_MISMATCH, "\"%s\" was taken from other weights (sha256 %.12s...) than the model's (%.12s...)", path, v->base, own);
    for (size_t i = 0; i < op_weights_count(v->w) && !s; i++) {
        const op_weights_tensor *t = op_weights_at(v->w, i);
        const op_slot *x = slot_of(m, t->name);
        if (!op_vector_chosen(o, t->name))
            continue;
        int64_t rows = x && x->transposed ? x->cols : x ? x->rows : 0, cols = x && x->transposed ? x->rows : x ? x->cols : 0;
        if (!x)
            s = op_error_set(e, OP_ERR_MISMATCH, "the model has no tensor \"%s\" as \"%s\" has", t->name, path);
        else if (t->shape[0] != rows || t->count != rows * cols)
            s = op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" has another shape than in the model", path, t->name);
        *largest = (size_t)t->count > *largest ? (size_t)t->count : *largest;
    }
    return s;
}

static op_status apply(op_model *m, const op_vector *v, double scale, const op_vector_options *o, float *room, op_error *e)
{
    for (size_t i = 0; i < op_weights_count(v->w); i++) {
        const op_weights_tensor *t = op_weights_at(v->w, i);
        const op_slot *x = slot_of(m, t->name);
        if (!op_vector_chosen(o, t->name))
            continue;
        op_status s = op_weights_read(v->w, t, room, e);
        if (s)
            return s;
        if (!x->transposed)
            op_axpy(scale, room, x->value, t->count);
        for (int64_t k = 0; x->transposed && k < t->count; k++) {
            float *w = &x->value[k % x->rows * x->cols + k / x->rows];
            *w = (float)(*w + scale * room[k]);
        }
    }
    return OP_OK;
}

op_status op_vector_apply(op_model *m, const op_vector_term *terms, size_t n, const op_vector_options *o, op_error *e)
{
    op_vector *v = NULL;
    float *room = NULL;
    size_t largest = 0;
    char own[65];
    const char **paths = op_alloc_zero(n + 1, sizeof *paths);
    op_status s = paths ? op_vector_options_check(o, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", n);
    if (!s)
        s = check_model(m, e);
    for (size_t k = 0; k < n && !s; k++)
        paths[k] = terms[k].path;
    if (!s)
        s = op_vectors_open(&v, paths, n, e);
    bool known = m->source && !o->force;
    if (!s && known)
        s = op_weights_sha256(m->source, own, e);
    for (size_t k = 0; k < n && !s; k++)
        s = check_vector(m, &v[k], known ? own : NULL, o, &largest, e);
    if (!s && !(room = op_alloc_array(largest + 1, sizeof *room)))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", n);
    for (size_t k = 0; k < n && !s; k++)
        s = apply(m, &v[k], terms[k].scale, o, room, e);
    op_trainable kept = m->options.trainable;
    m->options.trainable = OP_TRAIN_ALL; /* pack the base again, whatever is trained */
    if (!s)
        s = op_model_updated(m, e);
    m->options.trainable = kept;
    op_free(room);
    op_vectors_close(v, n);
    op_free(paths);
    return s;
}
