/* Vectors from models, and from vectors. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/file.h>
#include <operant/log.h>
#include <operant/model.h>
#include <operant/tokenizer.h>

#include "base/mem.h"
#include "base/num.h"
#include "base/rng.h"
#include "io/tensors.h"
#include "vectors/vector.h"

static op_status no_memory(const char *what, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", what);
}

/* ---- the file ---- */

/* What is about to be written: specs of tensors, and what stands in the metadata. */
typedef struct draft {
    op_weights_spec *specs;
    size_t n;
    const char *base, *base_sha256, *model, *model_sha256, *made; /* model and its hash may be NULL */
    const op_vector_options *o;
    size_t done;
    op_weights_fn fn;
    void *ctx;
} draft;

static op_dtype vector_dtype(const op_vector_options *o)
{
    return o->dtype == OP_DTYPE_COUNT ? OP_F32 : o->dtype;
}

static void add_spec(draft *d, const char *name, int rank, const int64_t *shape)
{
    op_weights_spec *s = &d->specs[d->n++];
    *s = (op_weights_spec){.name = name, .dtype = vector_dtype(d->o), .rank = rank};
    memcpy(s->shape, shape, (size_t)rank * sizeof *shape);
}

static int64_t count_of(const op_weights_spec *s)
{
    int64_t n = 1;
    for (int i = 0; i < s->rank; i++)
        n *= s->shape[i];
    return n;
}

/* Between the file and what fills it: checks every tensor, and tells who watches. */
static op_status fill_checked(void *ctx, size_t i, float *out, op_error *e)
{
    draft *d = ctx;
    op_status s = op_vector_watched(d->o, d->done++, d->n, e);
    if (!s)
        s = d->fn(d->ctx, i, out, e);
    return s ? s : op_values_fit(d->specs[i].name, out, count_of(&d->specs[i]), d->specs[i].dtype, e);
}

static bool is_safetensors(const char *path)
{
    size_t n = strlen(path);
    return n > 12 && !strcmp(path + n - 12, ".safetensors");
}

static op_status check_output(const char *output, op_error *e)
{
    return is_safetensors(output) ? OP_OK : op_error_set(e, OP_ERR_ARG, "output \"%s\": a vector's name ends in .safetensors", output);
}

static op_status write_draft(draft *d, const char *output, op_error *e)
{
    const op_safetensors_meta all[] = {{"operant.kind", "vector"}, {"operant.base.sha256", d->base_sha256}, {"operant.base", d->base}, {"operant.made", d->made},
                                       {"operant.model", d->model}, {"operant.model.sha256", d->model_sha256}};
    op_status s = op_weights_write(output, d->specs, d->n, fill_checked, d, all, d->model ? 6 : 4, e);
    return s ? s : op_vector_watched(d->o, d->n, d->n, e);
}

/* ---- extract ---- */

typedef struct difference {
    const op_weights *model, *base;
    const op_weights_tensor **a, **b; /* [n] of the model and of the base */
    size_t n;
    float *room; /* the largest tensor, twice */
    double energy, rounding; /* squares of the vector, and of what it would be if the model were the base in the type that it is stored in */
} difference;

/* Old files of tied models hold the embedding once more as the output layer. */
static bool is_tied_copy(const op_weights *w, const op_weights_tensor *t)
{
    const op_weights_tensor *embed = op_weights_find(w, "model.embed_tokens.weight");
    embed = embed ? embed : op_weights_find(w, "wte.weight");
    return !strcmp(t->name, "lm_head.weight") && embed && t->stored && embed->stored && t->plain && embed->plain && t->stored->bytes == embed->stored->bytes &&
           !memcmp(t->stored->data, embed->stored->data, t->stored->bytes);
}

static bool may_lack(const op_weights *has, const op_weights_tensor *t)
{
    return op_tensor_is_buffer(t->name) || is_tied_copy(has, t);
}

static op_status pair_up(difference *d, const op_weights_tensor *b, op_error *e)
{
    const char *model = op_weights_path(d->model), *base = op_weights_path(d->base);
    const op_weights_tensor *a = op_weights_find(d->model, b->name);
    if (!a)
        return may_lack(d->base, b) ? OP_OK : op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" of \"%s\" is missing", model, b->name, base);
    bool same = a->rank == b->rank && !memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape);
    bool words = a->rank == 2 && b->rank == 2 && a->shape[1] == b->shape[1] && (strstr(b->name, "embed") || strstr(b->name, "wte") || strstr(b->name, "lm_head"));
    if (!same && words)
        return op_error_set(e, OP_ERR_MISMATCH, "%s: the vocabulary has %lld tokens, that of \"%s\" %lld (tensor \"%s\")", model, (long long)a->shape[0], base,
                            (long long)b->shape[0], b->name);
    if (!same)
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" has another shape than in \"%s\"", model, b->name, base);
    if (op_tensor_is_buffer(b->name))
        return OP_OK;
    if (!op_tensor_is_float(a) || !op_tensor_is_float(b))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "tensor \"%s\" is of type %s in \"%s\" and %s in \"%s\", expected floats", b->name, op_dtype_name(a->dtype), model,
                            op_dtype_name(b->dtype), base);
    d->a[d->n] = a;
    d->b[d->n++] = b;
    return OP_OK;
}

static op_status pair_all(difference *d, op_error *e)
{
    op_status s = OP_OK;
    size_t largest = 0;
    for (size_t i = 0; i < op_weights_count(d->base) && !s; i++)
        s = pair_up(d, op_weights_at(d->base, i), e);
    for (size_t i = 0; i < op_weights_count(d->model) && !s; i++) {
        const op_weights_tensor *a = op_weights_at(d->model, i);
        if (!op_weights_find(d->base, a->name) && !may_lack(d->model, a))
            s = op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" of \"%s\" is missing", op_weights_path(d->base), a->name, op_weights_path(d->model));
    }
    for (size_t i = 0; i < d->n; i++)
        largest = (size_t)d->b[i]->count > largest ? (size_t)d->b[i]->count : largest;
    d->room = s ? NULL : op_alloc_array(2 * largest + 1, sizeof *d->room);
    return s || d->room ? s : no_memory(op_weights_path(d->model), e);
}

static op_status read_pair(const difference *d, size_t i, float *a, float *b, op_error *e)
{
    op_status s = op_weights_read(d->model, d->a[i], a, e);
    return s ? s : op_weights_read(d->base, d->b[i], b, e);
}

/* Keeps the chosen tensors in which something changed. */
static op_status keep_changed(difference *d, draft *out, op_error *e)
{
    size_t kept = 0;
    for (size_t i = 0; i < d->n; i++) {
        const op_weights_tensor *b = d->b[i];
        float *other = d->room + b->count;
        if (!op_vector_chosen(out->o, b->name))
            continue;
        op_status s = read_pair(d, i, d->room, other, e);
        if (s)
            return s;
        if (!memcmp(d->room, other, (size_t)b->count * sizeof *other))
            continue;
        d->a[kept] = d->a[i];
        d->b[kept++] = b;
        add_spec(out, b->name, b->rank, b->shape);
    }
    d->n = kept;
    return kept ? OP_OK : op_error_set(e, OP_ERR_ARG, "\"%s\" and \"%s\" have the same weights%s: there is no vector between them", op_weights_path(d->model),
                                       op_weights_path(d->base), out->o->layers || out->o->kinds ? " in the layers and kinds asked for" : "");
}

static double rounding_of(const float *x, int64_t n, op_dtype dtype)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double lost = (double)x[i] - (dtype == OP_BF16 ? op_bf16_to_f32(op_f32_to_bf16(x[i])) : op_f16_to_f32(op_f32_to_f16(x[i])));
        sum += lost * lost;
    }
    return sum;
}

static op_status fill_difference(void *ctx, size_t i, float *out, op_error *e)
{
    difference *d = ctx;
    op_dtype stored = d->a[i]->dtype;
    int64_t n = d->b[i]->count;
    op_status s = read_pair(d, i, out, d->room, e);
    if (!s && (stored == OP_BF16 || stored == OP_F16))
        d->rounding += rounding_of(d->room, n, stored);
    for (int64_t k = 0; k < n && !s; k++)
        out[k] -= d->room[k];
    d->energy += s ? 0 : op_dot(out, out, n);
    return s;
}

/* A model saved in 16 bits differs from its base in every element, however little it learned. */
static void warn_of_rounding(const difference *d)
{
    if (d->rounding > 0.05 * d->energy)
        op_log(OP_LOG_WARN, "of the vector's norm of %.3g, %.3g is the rounding with which \"%s\" was saved: save what is trained for a vector in f32",
               sqrt(d->energy), sqrt(fmin(d->rounding, d->energy)), op_weights_path(d->model));
}

/* The tokens of both, where both have a tokenizer. */
static op_status same_words(const char *a, const char *b, op_error *e)
{
    op_tokenizer *x = NULL, *y = NULL;
    op_status s = op_tokenizer_open(&x, a, e);
    if (!s)
        s = op_tokenizer_open(&y, b, e);
    s = s == OP_ERR_NOMEM ? s : OP_OK; /* without words there is nothing to compare */
    if (x && y && op_tokenizer_vocab_size(x) != op_tokenizer_vocab_size(y))
        s = op_error_set(e, OP_ERR_MISMATCH, "\"%s\" knows %d tokens and \"%s\" %d: their vocabularies differ", a, op_tokenizer_vocab_size(x), b, op_tokenizer_vocab_size(y));
    for (int32_t i = 0; x && y && !s && i < op_tokenizer_vocab_size(x); i++) {
        size_t n, m;
        const char *p = op_tokenizer_bytes(x, i, &n), *q = op_tokenizer_bytes(y, i, &m);
        if (n != m || memcmp(p, q, n))
            s = op_error_set(e, OP_ERR_MISMATCH, "token %d is another in \"%s\" than in \"%s\": their vocabularies differ", i, a, b);
    }
    op_tokenizer_free(x);
    op_tokenizer_free(y);
    return s;
}

static op_status extract_difference(draft *out, const char *output, op_error *e)
{
    op_weights *model = NULL, *base = NULL;
    difference d = {0};
    char base_hash[65], model_hash[65];
    op_status s = op_weights_open(&model, out->model, 0, e);
    if (!s)
        s = op_weights_open(&base, out->base, 0, e);
    size_t most = s ? 0 : op_weights_count(base);
    d = (difference){.model = model, .base = base, .a = op_alloc_zero(most + 1, sizeof *d.a), .b = op_alloc_zero(most + 1, sizeof *d.b)};
    out->specs = op_alloc_zero(most + 1, sizeof *out->specs);
    if (!s && (!d.a || !d.b || !out->specs))
        s = no_memory(output, e);
    if (!s && !(s = pair_all(&d, e)) && !out->o->force)
        s = same_words(out->model, out->base, e);
    if (!s && !(s = keep_changed(&d, out, e)) && !(s = op_weights_hash(base, base_hash, e)) && !(s = op_weights_hash(model, model_hash, e))) {
        out->base_sha256 = base_hash;
        out->model_sha256 = model_hash;
        out->fn = fill_difference;
        out->ctx = &d;
        s = write_draft(out, output, e);
        if (!s)
            warn_of_rounding(&d);
    }
    op_free(d.room);
    op_free(d.a);
    op_free(d.b);
    op_weights_close(model);
    op_weights_close(base);
    return s;
}

/* ---- extract, of an adapter over its own base: the factors ---- */

typedef struct factors {
    const op_weights_tensor **of; /* [n / 2]; spec 2i is lora_A, 2i + 1 lora_B */
    char (*names)[160];
    float *room;
} factors;

/* With X = scale (B A)^T = (scale A)^T B^T the factors change places. The scale goes into lora_B. */
static op_status fill_factor(void *ctx, size_t i, float *out, op_error *e)
{
    const factors *f = ctx;
    const op_weights_tensor *t = f->of[i / 2];
    bool left = i % 2, turned = t->product_turned;
    const op_tensor *x = left != turned ? t->B : t->A;
    op_status s = op_tensor_read_f32(x, 0, x->count, turned ? f->room : out, e);
    int64_t rows = x->shape[0], cols = x->shape[1];
    for (int64_t k = 0; turned && k < x->count && !s; k++)
        out[k % cols * rows + k / cols] = f->room[k];
    for (int64_t k = 0; left && k < x->count && !s; k++)
        out[k] = (float)(t->scale * out[k]);
    return s;
}

static void add_factors(draft *out, factors *f, const op_weights_tensor *t)
{
    int64_t rank = t->A->shape[0];
    f->of[out->n / 2] = t;
    for (int left = 0; left < 2; left++) {
        char *name = f->names[out->n];
        snprintf(name, sizeof f->names[0], "%s.lora_%c", t->name, "AB"[left]);
        add_spec(out, name, 2, left ? (int64_t[]){t->shape[0], rank} : (int64_t[]){rank, t->shape[1]});
    }
}

static op_status extract_factors(draft *out, const char *output, op_error *e)
{
    op_weights *w;
    char base_hash[65], model_hash[65];
    op_status s = op_weights_open(&w, out->model, OP_WEIGHTS_DELTA, e);
    if (s)
        return s;
    size_t most = op_weights_count(w), largest = 0;
    factors f = {op_alloc_zero(most + 1, sizeof *f.of), op_alloc_zero(2 * most + 1, sizeof *f.names), NULL};
    out->specs = op_alloc_zero(2 * most + 1, sizeof *out->specs);
    if (!f.of || !f.names || !out->specs)
        s = no_memory(output, e);
    for (size_t i = 0; i < most && !s; i++) {
        const op_weights_tensor *t = op_weights_at(w, i);
        if (strlen(t->name) + sizeof ".lora_A" > sizeof f.names[0])
            s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: the name \"%.60s...\" is too long", out->model, t->name);
        else if (op_vector_chosen(out->o, t->name))
            add_factors(out, &f, t);
        size_t n = (size_t)(t->A->count > t->B->count ? t->A->count : t->B->count);
        largest = n > largest ? n : largest;
    }
    if (!s && !out->n)
        s = op_error_set(e, OP_ERR_ARG, "\"%s\" adapts nothing in the layers and kinds asked for", out->model);
    if (!s && !(f.room = op_alloc_array(largest + 1, sizeof *f.room)))
        s = no_memory(output, e);
    if (!s && !(s = op_weights_sha256(out->base, base_hash, e)) && !(s = op_weights_sha256(out->model, model_hash, e))) {
        out->base_sha256 = base_hash;
        out->model_sha256 = model_hash;
        out->fn = fill_factor;
        out->ctx = &f;
        s = write_draft(out, output, e);
    }
    op_free(f.room);
    op_free(f.of);
    op_free(f.names);
    op_weights_close(w);
    return s;
}

op_status op_vector_extract(const char *model, const char *base, const char *output, const op_vector_options *o, op_error *e)
{
    char *own = NULL;
    op_status s = op_vector_options_check(o, e);
    if (!s)
        s = check_output(output, e);
    if (!s)
        s = op_model_base_path(model, &own, e);
    if (s)
        return s;
    bool adapter = strcmp(own, model) != 0;
    draft d = {.base = base ? base : own, .model = model, .made = "extract", .o = o};
    if (!adapter && !base)
        s = op_error_set(e, OP_ERR_ARG, "\"%s\" is a whole model: its base is needed", model);
    else
        s = adapter && (!base || op_path_same(base, own)) ? extract_factors(&d, output, e) : extract_difference(&d, output, e);
    op_free(d.specs);
    op_free(own);
    return s;
}

/* ---- combine ---- */

typedef struct combination {
    op_vector *v; /* [n] */
    op_joint joint;
    double *scales; /* [n] */
    float *room;
} combination;

static op_status fill_combination(void *ctx, size_t i, float *out, op_error *e)
{
    combination *c = ctx;
    size_t n = c->joint.n_vectors;
    int64_t count = c->joint.any[i]->count;
    memset(out, 0, (size_t)count * sizeof *out);
    for (size_t k = 0; k < n; k++) {
        const op_weights_tensor *t = c->joint.at[i * n + k];
        op_status s = t ? op_weights_read(c->v[k].w, t, c->room, e) : OP_OK;
        if (s)
            return s;
        if (t)
            op_axpy(c->scales[k], c->room, out, count);
    }
    return OP_OK;
}

static op_status gram_of(const op_vector *v, const op_joint *j, double *gram, const op_vector_options *o, op_error *e)
{
    size_t n = j->n_vectors;
    float *room = op_alloc_array((size_t)j->largest * n + 1, sizeof *room);
    const float **x = op_alloc_zero(n + 1, sizeof *x);
    op_status s = room && x ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", n);
    memset(gram, 0, n * n * sizeof *gram);
    for (size_t i = 0; i < j->n && !s; i++) {
        if ((s = op_vector_watched(o, i, j->n, e)) || (s = op_joint_read(j, v, i, room, x, e)))
            break;
        for (size_t a = 0; a < n; a++)
            for (size_t b = 0; b <= a; b++)
                if (x[a] && x[b])
                    gram[b * n + a] = gram[a * n + b] += op_dot(x[a], x[b], j->any[i]->count);
    }
    op_free(room);
    op_free(x);
    return s;
}

op_status op_vector_gram(const char *const *paths, size_t n, double *gram, const op_vector_options *o, op_error *e)
{
    op_vector *v = NULL;
    op_joint j = {0};
    op_status s = op_vector_options_check(o, e);
    if (!s)
        s = op_vectors_open(&v, paths, n, e);
    if (!s && !(s = op_joint_make(&j, v, n, o, e)))
        s = gram_of(v, &j, gram, o, e);
    op_joint_release(&j);
    op_vectors_close(v, n);
    return s;
}

/* Scales of the last m vectors, so that the sum has no part in their span: m normal equations, by elimination of the largest pivot.
 * What depends on the others (a pivot of rounding's size) gets the scale 0. */
static op_status project_out(double *scales, size_t n, size_t m, const double *gram, op_error *e)
{
    size_t all = n + m;
    double *M = op_alloc_zero(m * (m + 1) + 1, sizeof *M);
    if (!M)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu vectors", all);
#define AT(r, c) M[(r) * (m + 1) + (c)]
    for (size_t r = 0; r < m; r++) {
        for (size_t c = 0; c < m; c++)
            AT(r, c) = gram[(n + r) * all + n + c];
        for (size_t k = 0; k < n; k++)
            AT(r, m) -= scales[k] * gram[(n + r) * all + k];
    }
    for (size_t p = 0; p < m; p++) {
        bool fresh = AT(p, p) > 1e-10 * gram[(n + p) * all + n + p];
        for (size_t r = 0; r < m; r++) {
            double f = r == p ? 0 : fresh ? AT(r, p) / AT(p, p) : 0;
            for (size_t c = 0; c <= m && f != 0; c++)
                AT(r, c) -= f * AT(p, c);
            if (!fresh)
                AT(r, p) = 0;
        }
    }
    for (size_t p = 0; p < m; p++)
        scales[n + p] = AT(p, p) > 0 ? AT(p, m) / AT(p, p) : 0;
#undef AT
    op_free(M);
    return OP_OK;
}

static op_status same_parent(op_vector *v, size_t n, const op_vector_options *o, op_error *e)
{
    op_status s = op_vector_parent(&v[0], e);
    for (size_t k = 1; k < n && !s && !o->force; k++) {
        s = op_vector_parent(&v[k], e);
        if (!s && strcmp(v[k].base, v[0].base))
            s = op_error_set(e, OP_ERR_MISMATCH, "\"%s\" belongs to another base (%.12s...) than \"%s\" (%.12s...)", op_weights_path(v[k].w), v[k].base,
                             op_weights_path(v[0].w), v[0].base);
    }
    return s;
}

static const char *base_name(const op_vector *v)
{
    const char *base = op_weights_is_adapter(v->w) ? op_weights_base_path(v->w) : op_tensors_meta_string(op_weights_tensors(v->w), "operant.base", NULL);
    return base ? base : "";
}

static op_status say_made(op_buf *out, const op_vector_term *terms, size_t n, const char *const *against, size_t n_against)
{
    op_status s = OP_OK;
    for (size_t k = 0; k < n && !s; k++)
        s = op_buf_printf(out, "%s%.17g * %s", k ? " + " : "", terms[k].scale, terms[k].path);
    for (size_t k = 0; k < n_against && !s; k++)
        s = op_buf_printf(out, "%s%s", k ? ", " : ", orthogonal to ", against[k]);
    return s;
}

static op_status combine(combination *c, const op_vector_term *terms, size_t n, const char *const *against, size_t m, const char *output, const op_vector_options *o,
                         op_buf *made, op_error *e)
{
    size_t all = n + m;
    const char **paths = op_alloc_zero(all + 1, sizeof *paths);
    double *gram = op_alloc_zero(all * all + 1, sizeof *gram);
    c->scales = op_alloc_zero(all + 1, sizeof *c->scales);
    op_status s = paths && gram && c->scales && !say_made(made, terms, n, against, m) ? OP_OK : no_memory(output, e);
    for (size_t k = 0; k < all && !s; k++) {
        paths[k] = k < n ? terms[k].path : against[k - n];
        c->scales[k] = k < n ? terms[k].scale : 0;
    }
    if (!s && !(s = op_vectors_open(&c->v, paths, all, e)) && !(s = same_parent(c->v, all, o, e)))
        s = op_joint_make(&c->joint, c->v, all, o, e);
    if (!s && m && !(s = gram_of(c->v, &c->joint, gram, o, e)))
        s = project_out(c->scales, n, m, gram, e);
    draft d = {.base = s ? "" : base_name(&c->v[0]), .base_sha256 = s ? "" : c->v[0].base, .made = made->data, .o = o, .fn = fill_combination, .ctx = c};
    if (!s && (!(d.specs = op_alloc_zero(c->joint.n + 1, sizeof *d.specs)) || !(c->room = op_alloc_array((size_t)c->joint.largest + 1, sizeof *c->room))))
        s = no_memory(output, e);
    for (size_t i = 0; i < c->joint.n && !s; i++)
        add_spec(&d, c->joint.any[i]->name, c->joint.any[i]->rank, c->joint.any[i]->shape);
    if (!s)
        s = write_draft(&d, output, e);
    op_free(d.specs);
    op_free(paths);
    op_free(gram);
    op_joint_release(&c->joint);
    op_vectors_close(c->v, all);
    return s;
}

op_status op_vector_combine(const op_vector_term *terms, size_t n, const char *const *against, size_t n_against, const char *output,
                            const op_vector_options *o, op_error *e)
{
    combination c = {0};
    op_buf made;
    op_buf_init(&made, 1 << 20);
    op_status s = op_vector_options_check(o, e);
    if (!s)
        s = check_output(output, e);
    for (size_t k = 0; k < n && !s; k++)
        if (!isfinite(terms[k].scale))
            s = op_error_set(e, OP_ERR_ARG, "the scale of \"%s\" is not finite", terms[k].path);
    if (!s && !n)
        s = op_error_set(e, OP_ERR_ARG, "no vector to combine");
    if (!s)
        s = combine(&c, terms, n, against, n_against, output, o, &made, e);
    op_free(c.room);
    op_free(c.scales);
    op_buf_release(&made);
    return s;
}

/* ---- random ---- */

typedef struct noise {
    op_vector *v;
    op_joint joint;
    uint64_t seed;
} noise;

enum { STREAM_VECTOR = 0x7665 };

/* A stream for each name, so that a tensor's numbers do not depend on which others are there (FNV-1a). */
static uint64_t stream_of(const char *name)
{
    uint32_t h = 2166136261u;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    return STREAM_VECTOR | (uint64_t)h << 32;
}

static op_status fill_noise(void *ctx, size_t i, float *out, op_error *e)
{
    noise *z = ctx;
    const op_weights_tensor *t = z->joint.any[i];
    op_status s = op_weights_read(z->v->w, t, out, e);
    if (s)
        return s;
    double norm = sqrt(op_dot(out, out, t->count)), own;
    uint64_t stream = stream_of(t->name);
    for (int64_t k = 0; k < t->count; k++)
        out[k] = (float)op_rng_normal(z->seed, stream, (uint64_t)k);
    own = sqrt(op_dot(out, out, t->count));
    for (int64_t k = 0; k < t->count; k++)
        out[k] = own > 0 ? (float)(out[k] * (norm / own)) : 0;
    return OP_OK;
}

op_status op_vector_random(const char *like, uint64_t seed, const char *output, const op_vector_options *o, op_error *e)
{
    noise z = {.seed = seed};
    op_buf made;
    op_buf_init(&made, 1 << 16);
    op_status s = op_vector_options_check(o, e);
    if (!s)
        s = check_output(output, e);
    if (!s && op_buf_printf(&made, "random, seed %llu, of the norms of %s", (unsigned long long)seed, like))
        s = no_memory(output, e);
    if (!s && !(s = op_vectors_open(&z.v, &like, 1, e)) && !(s = op_vector_parent(z.v, e)))
        s = op_joint_make(&z.joint, z.v, 1, o, e);
    draft d = {.base = s ? "" : base_name(z.v), .base_sha256 = s ? "" : z.v->base, .made = made.data, .o = o, .fn = fill_noise, .ctx = &z};
    if (!s && !(d.specs = op_alloc_zero(z.joint.n + 1, sizeof *d.specs)))
        s = no_memory(output, e);
    for (size_t i = 0; i < z.joint.n && !s; i++)
        add_spec(&d, z.joint.any[i]->name, z.joint.any[i]->rank, z.joint.any[i]->shape);
    if (!s)
        s = write_draft(&d, output, e);
    op_free(d.specs);
    op_joint_release(&z.joint);
    op_vectors_close(z.v, 1);
    op_buf_release(&made);
    return s;
}
