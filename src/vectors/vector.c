#include "vectors/vector.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/tensors.h"

/* ---- opening ---- */

op_status op_weights_sha256(const char *model, char hex[65], op_error *e)
{
    op_weights *w;
    op_status s = op_weights_open(&w, model, 0, e);
    if (!s)
        s = op_weights_hash(w, hex, e);
    op_weights_close(w);
    return s;
}

static op_status open_one(op_vector *v, const char *path, op_error *e)
{
    op_status s = op_weights_open(&v->w, path, OP_WEIGHTS_DELTA, e);
    if (s || op_weights_is_adapter(v->w))
        return s;
    const op_tensors *t = op_weights_tensors(v->w);
    const char *kind = op_tensors_meta_string(t, "operant.kind", NULL), *base = op_tensors_meta_string(t, "operant.base.sha256", NULL);
    if (!kind || strcmp(kind, "vector"))
        return op_error_set(e, OP_ERR_FORMAT, "%s: found a model, expected a vector (operant.kind in the metadata) or an adapter's directory", path);
    if (!base || strlen(base) != 64)
        return op_error_set(e, OP_ERR_FORMAT, "%s: metadata \"operant.base.sha256\" is missing or no hash", path);
    memcpy(v->base, base, sizeof v->base);
    return OP_OK;
}

op_status op_vectors_open(op_vector **out, const char *const *paths, size_t n, op_error *e)
{
    op_vector *v = op_alloc_zero(n + 1, sizeof *v);
    op_status s = v ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", n);
    for (size_t i = 0; i < n && !s; i++)
        s = open_one(&v[i], paths[i], e);
    *out = s ? NULL : v;
    if (s)
        op_vectors_close(v, n);
    return s;
}

void op_vectors_close(op_vector *v, size_t n)
{
    for (size_t i = 0; v && i < n; i++)
        op_weights_close(v[i].w);
    op_free(v);
}

op_status op_vector_parent(op_vector *v, op_error *e)
{
    return v->base[0] ? OP_OK : op_weights_sha256(op_weights_base_path(v->w), v->base, e);
}

op_status op_vector_base(const char *path, char hex[65], op_error *e)
{
    op_vector *v;
    op_status s = op_vectors_open(&v, &path, 1, e);
    if (!s && !(s = op_vector_parent(v, e)))
        memcpy(hex, v->base, sizeof v->base);
    op_vectors_close(v, 1);
    return s;
}

/* ---- which tensors ---- */

int op_tensor_layer(const char *name, char kind[OP_KIND_MAX])
{
    static const char *const prefixes[] = {"transformer.", "model.", "layers.", "h."};
    int layer = -1;
    for (int i = 0; i < 4; i++) {
        size_t n = strlen(prefixes[i]);
        char *end = NULL;
        if (strncmp(name, prefixes[i], n))
            continue;
        long number = i < 2 ? 0 : strtol(name + n, &end, 10);
        if (i < 2) {
            name += n;
        } else if (isdigit((unsigned char)name[n]) && *end == '.') {
            layer = (int)number;
            name = end + 1;
        }
    }
    size_t n = strlen(name);
    if (n > 7 && !strcmp(name + n - 7, ".weight"))
        n -= 7;
    n = n < OP_KIND_MAX ? n : OP_KIND_MAX - 1;
    memcpy(kind, name, n);
    kind[n] = 0;
    return layer;
}

/* "0-7,12": is `layer` among them? -1: nonsense. */
static int in_ranges(const char *s, int layer)
{
    int found = 0;
    while (*s) {
        char *end;
        if (!isdigit((unsigned char)*s))
            return -1;
        long first = strtol(s, &end, 10), last = first;
        if (*end == '-') {
            if (!isdigit((unsigned char)end[1]))
                return -1;
            last = strtol(end + 1, &end, 10);
        }
        if (last < first || (*end && *end != ','))
            return -1;
        found |= layer >= first && layer <= last;
        s = end + (*end == ',');
    }
    return found;
}

op_status op_vector_options_check(const op_vector_options *o, op_error *e)
{
    if (o->layers && in_ranges(o->layers, 0) < 0)
        return op_error_set(e, OP_ERR_ARG, "layers \"%s\": expected numbers and ranges such as 0-7,12", o->layers);
    if (o->dtype != OP_F32 && o->dtype != OP_F16 && o->dtype != OP_BF16 && o->dtype != OP_DTYPE_COUNT)
        return op_error_set(e, OP_ERR_ARG, "dtype %s: expected f32, bf16 or f16", op_dtype_name(o->dtype));
    return OP_OK;
}

bool op_vector_chosen(const op_vector_options *o, const char *name)
{
    char kind[OP_KIND_MAX], word[OP_KIND_MAX];
    int layer = op_tensor_layer(name, kind);
    if (o->layers && (layer < 0 || in_ranges(o->layers, layer) != 1))
        return false;
    for (const char *s = o->kinds; s && *s; s += strspn(s, ",")) {
        size_t n = strcspn(s, ",");
        memcpy(word, s, n < sizeof word ? n : 0);
        word[n < sizeof word ? n : 0] = 0;
        if (n && n < sizeof word && strstr(kind, word))
            return true;
        s += n;
    }
    return !o->kinds;
}

bool op_tensor_is_buffer(const char *name)
{
    static const char *const ends[] = {".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"};
    size_t n = strlen(name);
    for (int i = 0; i < 3; i++)
        if (n >= strlen(ends[i]) && !strcmp(name + n - strlen(ends[i]), ends[i]))
            return true;
    return false;
}

bool op_tensor_is_float(const op_weights_tensor *t)
{
    return t->dtype < OP_I8;
}

op_status op_values_fit(const char *name, const float *x, int64_t n, op_dtype dtype, op_error *e)
{
    const float most = dtype == OP_F16 ? 65504 : dtype == OP_BF16 ? 0x1.fep127f : FLT_MAX;
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) <= most))
            return op_error_set(e, OP_ERR_FORMAT, "tensor \"%s\": element %lld is %g, which %s cannot hold", name, (long long)i, (double)x[i], op_dtype_name(dtype));
    return OP_OK;
}

op_status op_vector_watched(const op_vector_options *o, size_t done, size_t total, op_error *e)
{
    return o->watch && !o->watch(o->ctx, done, total) ? op_error_set(e, OP_ERR_INTERRUPTED, "interrupted") : OP_OK;
}

/* ---- several vectors ---- */

static op_status same_shape(const op_vector *v, size_t k, const op_weights_tensor *a, const op_weights_tensor *b, op_error *e)
{
    if (a->rank == b->rank && !memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape))
        return OP_OK;
    return op_error_set(e, OP_ERR_MISMATCH, "tensor \"%s\" has another shape in \"%s\" than in the vectors before it", b->name, op_weights_path(v[k].w));
}

op_status op_joint_make(op_joint *j, const op_vector *v, size_t n, const op_vector_options *o, op_error *e)
{
    size_t most = 0;
    for (size_t k = 0; k < n; k++)
        most += op_weights_count(v[k].w);
    *j = (op_joint){.n_vectors = n, .at = op_alloc_zero(most * n + 1, sizeof *j->at), .any = op_alloc_zero(most + 1, sizeof *j->any)};
    op_status s = j->at && j->any ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the tensors of %zu vectors", n);
    for (size_t k = 0; k < n && !s; k++)
        for (size_t i = 0; i < op_weights_count(v[k].w) && !s; i++) {
            const op_weights_tensor *t = op_weights_at(v[k].w, i);
            bool seen = false;
            for (size_t b = 0; b < k && !seen; b++)
                seen = op_weights_find(v[b].w, t->name);
            if (seen || !op_vector_chosen(o, t->name))
                continue;
            for (size_t b = k; b < n && !s; b++) {
                const op_weights_tensor *x = b == k ? t : op_weights_find(v[b].w, t->name);
                s = x ? same_shape(v, b, t, x, e) : OP_OK;
                j->at[j->n * n + b] = x;
            }
            j->any[j->n++] = t;
            j->largest = t->count > j->largest ? t->count : j->largest;
        }
    if (!s && !j->n)
        s = op_error_set(e, OP_ERR_ARG, "the layers and kinds asked for leave no tensor of \"%s\"", op_weights_path(v[0].w));
    if (s)
        op_joint_release(j);
    return s;
}

void op_joint_release(op_joint *j)
{
    op_free(j->at);
    op_free(j->any);
    *j = (op_joint){0};
}

op_status op_joint_read(const op_joint *j, const op_vector *v, size_t i, float *room, const float **values, op_error *e)
{
    op_status s = OP_OK;
    for (size_t k = 0; k < j->n_vectors && !s; k++) {
        const op_weights_tensor *t = j->at[i * j->n_vectors + k];
        float *to = room + (size_t)j->largest * k;
        values[k] = t ? to : NULL;
        s = t ? op_weights_read(v[k].w, t, to, e) : OP_OK;
    }
    return s;
}

/* ---- arithmetic ---- */

/* Eight sums at a time: one alone waits for each addition. */
double op_dot(const float *a, const float *b, int64_t n)
{
    double s[8] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += (double)a[i + k] * b[i + k];
    for (; i < n; i++)
        s[0] += (double)a[i] * b[i];
    for (int k = 0; k < 8; k++)
        sum += s[k];
    return sum;
}

void op_axpy(double s, const float *x, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)(y[i] + s * x[i]);
}

static uint32_t magnitude(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u & 0x7fffffffu;
}

/* The bin in which the k-th largest lies, and what is left of k within it. */
static uint32_t find_bin(const int64_t *bins, uint32_t n, int64_t *k)
{
    uint32_t b = n - 1;
    while (b && *k > bins[b])
        *k -= bins[b--];
    return b;
}

uint32_t op_magnitude_rank(const float *x, int64_t n, int64_t k)
{
    enum { HIGH = 1 << 11, MIDDLE = 1 << 10, LOW = 1 << 10 };
    int64_t bins[HIGH] = {0};
    for (int64_t i = 0; i < n; i++)
        bins[magnitude(x[i]) >> 20]++;
    uint32_t high = find_bin(bins, HIGH, &k);
    memset(bins, 0, sizeof bins);
    for (int64_t i = 0; i < n; i++)
        if (magnitude(x[i]) >> 20 == high)
            bins[magnitude(x[i]) >> 10 & (MIDDLE - 1)]++;
    uint32_t middle = find_bin(bins, MIDDLE, &k) | high << 10;
    memset(bins, 0, sizeof bins);
    for (int64_t i = 0; i < n; i++)
        if (magnitude(x[i]) >> 10 == middle)
            bins[magnitude(x[i]) & (LOW - 1)]++;
    return find_bin(bins, LOW, &k) | middle << 10;
}
