/* Vectors against one another: angles, opposite signs, shared large elements. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "vectors/vector.h"

/* Inner products within a layer or a kind. */
typedef struct part {
    int layer;
    char kind[OP_KIND_MAX];
    double *dots; /* [n, n] */
} part;

typedef struct comparison {
    op_vector *v;
    size_t n;
    op_joint joint;
    double top;
    float *room;
    const float **x;   /* [n] of the tensor at hand */
    uint64_t *bits;    /* [n, 3, words]: which elements are above 0, below 0, large */
    size_t words;
    part *layers, *kinds; /* [joint.n] */
    size_t n_layers, n_kinds;
    double *dots;                    /* [n, n] */
    double *both, *opposite;         /* [n, n] elements that neither has at 0, of these the ones with opposite signs */
    double *large, *shared, *fewer;  /* [n] large ones; [n, n] of both; [n, n] those of whoever has fewer */
    double elements;
} comparison;

enum { ABOVE, BELOW, LARGE };

static uint64_t *bits_of(const comparison *c, size_t k, int which)
{
    return c->bits + (k * 3 + (size_t)which) * c->words;
}

/* Which of vector k's elements are positive, negative, among the largest; how many are large. */
static double mark(comparison *c, size_t k, int64_t n)
{
    const float *x = c->x[k];
    uint64_t *above = bits_of(c, k, ABOVE), *below = bits_of(c, k, BELOW), *large = bits_of(c, k, LARGE);
    size_t words = (size_t)(n + 63) / 64;
    double count = 0;
    memset(above, 0, words * sizeof *above);
    memset(below, 0, words * sizeof *below);
    memset(large, 0, words * sizeof *large);
    if (!x || !n)
        return 0;
    int64_t rank = (int64_t)llround(c->top * (double)n);
    uint32_t least = op_magnitude_rank(x, n, rank < 1 ? 1 : rank);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        uint64_t bit = (uint64_t)1 << (i % 64);
        memcpy(&u, &x[i], 4);
        above[i / 64] |= x[i] > 0 ? bit : 0;
        below[i / 64] |= x[i] < 0 ? bit : 0;
        bool is_large = (u & 0x7fffffffu) >= least && x[i] != 0;
        large[i / 64] |= is_large ? bit : 0;
        count += is_large;
    }
    return count;
}

static void compare_bits(comparison *c, size_t a, size_t b, size_t words)
{
    const uint64_t *up = bits_of(c, a, ABOVE), *down = bits_of(c, a, BELOW), *large = bits_of(c, a, LARGE);
    const uint64_t *up2 = bits_of(c, b, ABOVE), *down2 = bits_of(c, b, BELOW), *large2 = bits_of(c, b, LARGE);
    int64_t both = 0, opposite = 0, shared = 0;
    for (size_t i = 0; i < words; i++) {
        both += __builtin_popcountll((up[i] | down[i]) & (up2[i] | down2[i]));
        opposite += __builtin_popcountll((up[i] & down2[i]) | (down[i] & up2[i]));
        shared += __builtin_popcountll(large[i] & large2[i]);
    }
    size_t at = a * c->n + b;
    c->both[at] += (double)both;
    c->opposite[at] += (double)opposite;
    c->shared[at] += (double)shared;
    c->fewer[at] += fmin(c->large[a], c->large[b]);
}

static part *part_of(part *parts, size_t *n, int layer, const char *kind, size_t width)
{
    size_t i = 0;
    while (i < *n && (kind ? strcmp(parts[i].kind, kind) != 0 : parts[i].layer != layer))
        i++;
    if (i < *n)
        return &parts[i];
    parts[i].layer = layer;
    if (kind)
        strcpy(parts[i].kind, kind);
    parts[i].dots = op_alloc_zero(width * width, sizeof(double));
    return parts[i].dots ? &parts[(*n)++] : NULL;
}

static op_status compare_tensor(comparison *c, size_t i, op_error *e)
{
    const op_weights_tensor *t = c->joint.any[i];
    char kind[OP_KIND_MAX];
    int layer = op_tensor_layer(t->name, kind);
    part *l = part_of(c->layers, &c->n_layers, layer, NULL, c->n), *k = part_of(c->kinds, &c->n_kinds, 0, kind, c->n);
    op_status s = l && k ? op_joint_read(&c->joint, c->v, i, c->room, c->x, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", c->n);
    for (size_t a = 0; a < c->n && !s; a++)
        c->large[a] = mark(c, a, t->count);
    for (size_t a = 0; a < c->n && !s; a++)
        for (size_t b = 0; b < c->n; b++) {
            double dot = c->x[a] && c->x[b] && b <= a ? op_dot(c->x[a], c->x[b], t->count) : 0;
            if (b <= a) {
                double *const to[] = {c->dots, l->dots, k->dots};
                for (int j = 0; j < 3; j++)
                    to[j][b * c->n + a] = to[j][a * c->n + b] += dot;
            }
            compare_bits(c, a, b, (size_t)(t->count + 63) / 64);
        }
    c->elements += (double)t->count;
    return s;
}

static int by_layer(const void *a, const void *b)
{
    return ((const part *)a)->layer - ((const part *)b)->layer;
}

static op_status compare_all(comparison *c, const op_vector_options *o, op_error *e)
{
    size_t n = c->n, square = n * n + 1;
    c->words = (size_t)(c->joint.largest + 63) / 64;
    c->room = op_alloc_array((size_t)c->joint.largest * n + 1, sizeof *c->room);
    c->x = op_alloc_zero(n, sizeof *c->x);
    c->bits = op_alloc_zero(c->words * n * 3 + 1, sizeof *c->bits);
    c->layers = op_alloc_zero(c->joint.n + 1, sizeof *c->layers);
    c->kinds = op_alloc_zero(c->joint.n + 1, sizeof *c->kinds);
    c->dots = op_alloc_zero(square, sizeof *c->dots);
    c->both = op_alloc_zero(square, sizeof *c->both);
    c->opposite = op_alloc_zero(square, sizeof *c->opposite);
    c->large = op_alloc_zero(n, sizeof *c->large);
    c->shared = op_alloc_zero(square, sizeof *c->shared);
    c->fewer = op_alloc_zero(square, sizeof *c->fewer);
    if (!c->room || !c->x || !c->bits || !c->layers || !c->kinds || !c->dots || !c->both || !c->opposite || !c->large || !c->shared || !c->fewer)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", n);
    op_status s = OP_OK;
    for (size_t i = 0; i < c->joint.n && !s; i++)
        if (!(s = op_vector_watched(o, i, c->joint.n, e)))
            s = compare_tensor(c, i, e);
    qsort(c->layers, c->n_layers, sizeof *c->layers, by_layer);
    return s ? s : op_vector_watched(o, c->joint.n, c->joint.n, e);
}

static void comparison_release(comparison *c)
{
    for (size_t i = 0; i < c->n_layers; i++)
        op_free(c->layers[i].dots);
    for (size_t i = 0; i < c->n_kinds; i++)
        op_free(c->kinds[i].dots);
    op_free(c->room);
    op_free(c->x);
    op_free(c->bits);
    op_free(c->layers);
    op_free(c->kinds);
    op_free(c->dots);
    op_free(c->both);
    op_free(c->opposite);
    op_free(c->large);
    op_free(c->shared);
    op_free(c->fewer);
    op_joint_release(&c->joint);
    op_vectors_close(c->v, c->n);
}

/* ---- as JSON ---- */

static double cosine(const double *dots, size_t n, size_t a, size_t b)
{
    return a == b && dots[a * n + a] > 0 ? 1 : dots[a * n + b] / sqrt(dots[a * n + a] * dots[b * n + b]);
}

/* above[i, j] / below[i, j], or cosines where `below` is NULL; null where that is no number. NULL when memory is out. */
static json_t *matrix(const double *above, const double *below, size_t n)
{
    json_t *rows = json_array();
    for (size_t a = 0; a < n; a++) {
        json_t *row = json_array();
        bool failed = !row;
        for (size_t b = 0; b < n; b++) {
            double x = below ? above[a * n + b] / below[a * n + b] : cosine(above, n, a, b);
            failed |= json_array_append_new(row, isfinite(x) ? json_real(x) : json_null()) != 0;
        }
        if (failed || json_array_append_new(rows, row)) {
            if (failed)
                json_decref(row);
            json_decref(rows);
            return NULL;
        }
    }
    return rows;
}

static json_t *norms_of(const double *dots, size_t n)
{
    json_t *row = json_array();
    for (size_t a = 0; a < n; a++)
        if (json_array_append_new(row, json_real(sqrt(dots[a * n + a])))) {
            json_decref(row);
            return NULL;
        }
    return row;
}

static void put(json_t *j, const char *key, json_t *value, bool *failed)
{
    *failed |= json_object_set_new(j, key, value) != 0;
}

static json_t *list_parts(const part *parts, size_t n_parts, size_t n, bool by_kind, bool *failed)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n_parts; i++) {
        json_t *j = json_object();
        put(j, by_kind ? "kind" : "layer", by_kind ? json_string(parts[i].kind) : json_integer(parts[i].layer), failed);
        put(j, "norms", norms_of(parts[i].dots, n), failed);
        put(j, "cosine", matrix(parts[i].dots, NULL, n), failed);
        *failed |= json_array_append_new(list, j) != 0;
    }
    return list;
}

static op_status to_json(const comparison *c, json_t **out, op_error *e)
{
    bool failed = false, same = true;
    size_t n = c->n;
    json_t *j = json_object(), *vectors = json_array();
    for (size_t k = 0; k < n; k++) {
        json_t *v = json_object();
        size_t tensors = 0;
        for (size_t i = 0; i < c->joint.n; i++)
            tensors += c->joint.at[i * n + k] != NULL;
        put(v, "path", json_string(op_weights_path(c->v[k].w)), &failed);
        put(v, "norm", json_real(sqrt(c->dots[k * n + k])), &failed);
        put(v, "tensors", json_integer((json_int_t)tensors), &failed);
        put(v, "base_sha256", json_string(c->v[k].base), &failed);
        failed |= json_array_append_new(vectors, v) != 0;
        same &= !strcmp(c->v[k].base, c->v[0].base);
    }
    put(j, "vectors", vectors, &failed);
    put(j, "same_base", json_boolean(same), &failed);
    put(j, "top", json_real(c->top), &failed);
    put(j, "elements", json_integer((json_int_t)c->elements), &failed);
    put(j, "cosine", matrix(c->dots, NULL, n), &failed);
    put(j, "sign_conflict", matrix(c->opposite, c->both, n), &failed);
    put(j, "overlap", matrix(c->shared, c->fewer, n), &failed);
    put(j, "layers", list_parts(c->layers, c->n_layers, n, false, &failed), &failed);
    put(j, "kinds", list_parts(c->kinds, c->n_kinds, n, true, &failed), &failed);
    *out = failed ? NULL : j;
    if (failed)
        json_decref(j);
    return failed ? op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", n) : OP_OK;
}

op_status op_vector_compare(const char *const *paths, size_t n, double top, const op_vector_options *o, json_t **out, op_error *e)
{
    comparison c = {.n = n, .top = top};
    *out = NULL;
    op_status s = op_vector_options_check(o, e);
    if (!s && n < 2)
        s = op_error_set(e, OP_ERR_ARG, "comparing needs two vectors or more");
    if (!s && !(top > 0 && top <= 1))
        s = op_error_set(e, OP_ERR_ARG, "top is %g, expected more than 0 and at most 1", top);
    if (!s)
        s = op_vectors_open(&c.v, paths, n, e);
    for (size_t k = 0; k < n && !s; k++)
        s = op_vector_parent(&c.v[k], e);
    if (!s && !(s = op_joint_make(&c.joint, c.v, n, o, e)) && !(s = compare_all(&c, o, e)))
        s = to_json(&c, out, e);
    comparison_release(&c);
    return s;
}
