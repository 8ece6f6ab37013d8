/* What a vector is like: sizes, sparsity and ranks of its tensors, by layer and by kind. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "vectors/vector.h"

/* Of one tensor, or summed over several. */
typedef struct figures {
    size_t tensors;
    double elements, energy, zeros, max, concentrated; /* concentrated: energy of the 1% largest */
    double base;                                       /* energy of the same tensors of the base */
    double ranked, stable, participation, top_1, top_4, top_16; /* energy of those with ranks, and ranks times energy */
} figures;

static void gather(figures *to, const figures *x)
{
    to->tensors += x->tensors;
    to->elements += x->elements;
    to->energy += x->energy;
    to->zeros += x->zeros;
    to->max = fmax(to->max, x->max);
    to->concentrated += x->concentrated;
    to->base += x->base;
    to->ranked += x->ranked;
    to->stable += x->stable;
    to->participation += x->participation;
    to->top_1 += x->top_1;
    to->top_4 += x->top_4;
    to->top_16 += x->top_16;
}

/* A group of tensors, by the layer or the kind. */
typedef struct group {
    int layer;
    char kind[OP_KIND_MAX];
    figures f;
} group;

typedef struct looking {
    op_vector *v;
    op_weights *base; /* or NULL */
    op_joint joint;
    int singular;
    float *room, *other;
    group *layers, *kinds, *list; /* [joint.n], of which: */
    size_t n_layers, n_kinds;
    figures all;
} looking;

static op_status look(looking *l, const op_weights_tensor *t, figures *f, op_error *e)
{
    float *x = l->room;
    op_status s = op_weights_read(l->v->w, t, x, e);
    if (s)
        return s;
    *f = (figures){.tensors = 1, .elements = (double)t->count, .energy = op_dot(x, x, t->count)};
    int64_t large = t->count / 100 ? t->count / 100 : 1;
    uint32_t bits = t->count ? op_magnitude_rank(x, t->count, large) : 0;
    float least;
    memcpy(&least, &bits, 4);
    double above = 0; /* elements larger than the least of the large ones; the rest of them equal it */
    for (int64_t i = 0; i < t->count; i++) {
        double m = fabs((double)x[i]);
        f->zeros += m == 0;
        f->max = fmax(f->max, m);
        above += m > (double)least;
        f->concentrated += m > (double)least ? m * m : 0;
    }
    f->concentrated += ((double)large - above) * least * least;
    const op_weights_tensor *b = l->base ? op_weights_find(l->base, t->name) : NULL;
    if (l->base && (!b || b->count != t->count))
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" of \"%s\" is missing or has another shape", op_weights_path(l->base), t->name,
                            op_weights_path(l->v->w));
    if (b && (s = op_weights_read(l->base, b, l->other, e)))
        return s;
    f->base = b ? op_dot(l->other, l->other, b->count) : 0;
    if (!l->singular || t->rank != 2 || t->shape[0] < 2 || t->shape[1] < 2 || !(f->energy > 0) || t->shape[0] > INT32_MAX || t->shape[1] > INT32_MAX)
        return OP_OK;
    op_ranks r;
    if ((s = op_matrix_ranks(x, t->shape[0], t->shape[1], l->singular, &r, e)))
        return s;
    f->ranked = f->energy;
    f->stable = r.stable * f->energy;
    f->participation = r.participation * f->energy;
    f->top_1 = r.top_1 * f->energy;
    f->top_4 = r.top_4 * f->energy;
    f->top_16 = r.top_16 * f->energy;
    return OP_OK;
}

static void gather_in(group *groups, size_t *n, const group *x, bool by_kind)
{
    size_t i = 0;
    while (i < *n && (by_kind ? strcmp(groups[i].kind, x->kind) != 0 : groups[i].layer != x->layer))
        i++;
    if (i == *n) {
        (*n)++;
        groups[i].layer = x->layer;
        memcpy(groups[i].kind, x->kind, sizeof x->kind);
    }
    gather(&groups[i].f, &x->f);
}

static int by_layer(const void *a, const void *b)
{
    return ((const group *)a)->layer - ((const group *)b)->layer;
}

static op_status look_at_all(looking *l, const op_vector_options *o, op_error *e)
{
    size_t n = l->joint.n;
    l->layers = op_alloc_zero(n + 1, sizeof *l->layers);
    l->kinds = op_alloc_zero(n + 1, sizeof *l->kinds);
    l->list = op_alloc_zero(n + 1, sizeof *l->list);
    l->room = op_alloc_array((size_t)l->joint.largest + 1, sizeof *l->room);
    l->other = l->base ? op_alloc_array((size_t)l->joint.largest + 1, sizeof *l->other) : NULL;
    if (!l->layers || !l->kinds || !l->list || !l->room || (l->base && !l->other))
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", op_weights_path(l->v->w));
    for (size_t i = 0; i < n; i++) {
        group *g = &l->list[i];
        g->layer = op_tensor_layer(l->joint.any[i]->name, g->kind);
        op_status s = op_vector_watched(o, i, n, e);
        if (!s)
            s = look(l, l->joint.any[i], &g->f, e);
        if (s)
            return s;
        gather(&l->all, &g->f);
        gather_in(l->layers, &l->n_layers, g, false);
        gather_in(l->kinds, &l->n_kinds, g, true);
    }
    qsort(l->layers, l->n_layers, sizeof *l->layers, by_layer);
    return op_vector_watched(o, n, n, e);
}

/* ---- as JSON; a NULL anywhere makes jansson's calls fail, which `put` remembers ---- */

static void put(json_t *j, const char *key, json_t *value, bool *failed)
{
    *failed |= json_object_set_new(j, key, value) != 0;
}

static void put_number(json_t *j, const char *key, double x, bool *failed)
{
    if (isfinite(x))
        put(j, key, json_real(x), failed);
}

static void put_figures(json_t *j, const figures *f, const figures *all, bool has_base, bool *failed)
{
    put(j, "tensors", json_integer((json_int_t)f->tensors), failed);
    put(j, "elements", json_integer((json_int_t)f->elements), failed);
    put_number(j, "norm", sqrt(f->energy), failed);
    put_number(j, "rms", sqrt(f->energy / f->elements), failed);
    put_number(j, "max", f->max, failed);
    put_number(j, "share", f->energy / all->energy, failed);
    put_number(j, "zeros", f->zeros / f->elements, failed);
    put_number(j, "concentration", f->concentrated / f->energy, failed);
    if (has_base)
        put_number(j, "relative", sqrt(f->energy / f->base), failed);
    if (!(f->ranked > 0))
        return;
    put_number(j, "stable_rank", f->stable / f->ranked, failed);
    put_number(j, "participation", f->participation / f->ranked, failed);
    put_number(j, "top_1", f->top_1 / f->ranked, failed);
    put_number(j, "top_4", f->top_4 / f->ranked, failed);
    put_number(j, "top_16", f->top_16 / f->ranked, failed);
}

static json_t *one(const looking *l, const group *g, bool layer, bool kind, const op_weights_tensor *t, bool *failed)
{
    json_t *j = json_object();
    if (t)
        put(j, "name", json_string(t->name), failed);
    if (layer)
        put(j, "layer", json_integer(g->layer), failed);
    if (kind)
        put(j, "kind", json_string(g->kind), failed);
    json_t *shape = t ? json_array() : NULL;
    for (int i = 0; t && i < t->rank; i++)
        *failed |= json_array_append_new(shape, json_integer(t->shape[i])) != 0;
    if (t)
        put(j, "shape", shape, failed);
    put_figures(j, &g->f, &l->all, l->base != NULL, failed);
    return j;
}

static json_t *parent(const char *path, const char *sha256)
{
    json_t *j = json_object();
    bool failed = json_object_set_new(j, "path", json_string(path ? path : "")) || (sha256 && json_object_set_new(j, "sha256", json_string(sha256)));
    if (!failed)
        return j;
    json_decref(j);
    return NULL;
}

static op_status to_json(const looking *l, json_t **out, op_error *e)
{
    bool failed = false;
    json_t *j = json_object(), *layers = json_array(), *kinds = json_array(), *list = json_array();
    const op_tensors *t = op_weights_tensors(l->v->w);
    const char *model = op_tensors_meta_string(t, "operant.model", NULL), *made = op_tensors_meta_string(t, "operant.made", NULL),
               *base = op_tensors_meta_string(t, "operant.base", NULL);
    bool adapter = op_weights_is_adapter(l->v->w);
    put(j, "path", json_string(op_weights_path(l->v->w)), &failed);
    put(j, "made", json_string(adapter ? "adapter" : made ? made : ""), &failed);
    put(j, "base", parent(adapter ? op_weights_base_path(l->v->w) : base, l->v->base), &failed);
    if (model)
        put(j, "model", parent(model, op_tensors_meta_string(t, "operant.model.sha256", NULL)), &failed);
    put_figures(j, &l->all, &l->all, l->base != NULL, &failed);
    for (size_t i = 0; i < l->n_layers; i++)
        failed |= json_array_append_new(layers, one(l, &l->layers[i], true, false, NULL, &failed)) != 0;
    for (size_t i = 0; i < l->n_kinds; i++)
        failed |= json_array_append_new(kinds, one(l, &l->kinds[i], false, true, NULL, &failed)) != 0;
    for (size_t i = 0; i < l->joint.n; i++)
        failed |= json_array_append_new(list, one(l, &l->list[i], true, true, l->joint.any[i], &failed)) != 0;
    put(j, "layers", layers, &failed);
    put(j, "kinds", kinds, &failed);
    put(j, "list", list, &failed);
    *out = failed ? NULL : j;
    if (failed)
        json_decref(j);
    return failed ? op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", op_weights_path(l->v->w)) : OP_OK;
}

op_status op_vector_info(const char *path, const char *base, int singular, const op_vector_options *o, json_t **out, op_error *e)
{
    looking l = {.singular = singular};
    *out = NULL;
    op_status s = op_vector_options_check(o, e);
    if (!s)
        s = op_vectors_open(&l.v, &path, 1, e);
    if (!s)
        s = op_vector_parent(l.v, e);
    if (!s && base)
        s = op_weights_open(&l.base, base, 0, e);
    if (!s && base && !o->force) {
        char own[65];
        if (!(s = op_weights_hash(l.base, own, e)) && strcmp(own, l.v->base))
            s = op_error_set(e, OP_ERR_MISMATCH, "\"%s\" was taken from other weights (sha256 %.12s...) than those of \"%s\" (%.12s...)", path, l.v->base, base, own);
    }
    if (!s && !(s = op_joint_make(&l.joint, l.v, 1, o, e)) && !(s = look_at_all(&l, o, e)))
        s = to_json(&l, out, e);
    op_free(l.layers);
    op_free(l.kinds);
    op_free(l.list);
    op_free(l.room);
    op_free(l.other);
    op_joint_release(&l.joint);
    op_weights_close(l.base);
    op_vectors_close(l.v, 1);
    return s;
}
