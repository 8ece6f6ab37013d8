/* From the configuration to the list of output tensors: which models' tensors make each, and with which parameters. */
#include "vectors/merge.h"

#include <stdio.h>

#include <operant/log.h>

#include "vectors/vector.h"

/* ---- methods ---- */

static const op_merge_method *const families[] = {op_merge_elementwise, op_merge_task, op_merge_sphere, op_merge_agreement, op_merge_averages};
enum { N_FAMILIES = sizeof families / sizeof *families };

const char *const op_merge_method_names[] = {
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear",
    "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "arcee_fusion", "ram", "ramplus_tl", "passthrough", NULL};

const op_merge_method *op_merge_method_find(const char *name)
{
    for (int f = 0; f < N_FAMILIES; f++)
        for (const op_merge_method *m = families[f]; m->name; m++)
            if (!strcmp(m->name, name))
                return m;
    return NULL;
}

/* ---- names ---- */

/* Where the number of the layer stands: the first ".N." of a name. */
typedef struct layer_name {
    size_t before; /* bytes up to the number */
    const char *after;
    int64_t layer; /* -1: outside the layers */
} layer_name;

static layer_name take_apart(const char *name)
{
    for (const char *p = strchr(name, '.'); p; p = strchr(p + 1, '.')) {
        size_t digits = strspn(p + 1, "0123456789");
        if (!digits || digits > 6 || p[1 + digits] != '.')
            continue;
        int64_t layer = 0;
        for (size_t i = 0; i < digits; i++)
            layer = 10 * layer + (p[1 + i] - '0');
        return (layer_name){(size_t)(p + 1 - name), p + 1 + digits, layer};
    }
    return (layer_name){0, NULL, -1};
}

static const char *of_layer(op_arena *arena, const char *name, int64_t layer)
{
    layer_name n = take_apart(name);
    size_t room = strlen(name) + 24;
    char *out = op_arena_alloc(arena, room);
    if (out && n.layer < 0)
        strcpy(out, name);
    else if (out)
        snprintf(out, room, "%.*s%lld%s", (int)n.before, name, (long long)layer, n.after);
    return out;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

bool op_merge_is_vocabulary(const char *name)
{
    static const char *const ends[] = {"embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight", "word_embeddings.weight"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (ends_with(name, ends[i]))
            return true;
    return false;
}

/* What stands before the layers is taken from the first slice, the rest of what is outside from the last. */
static bool is_before(const char *name)
{
    return !ends_with(name, "lm_head.weight") && !strstr(name, "embed_out") && (strstr(name, "embed") || strstr(name, "wte") || strstr(name, "wpe"));
}

/* GPT-2's files come with and without a prefix; mergekit and transformers write it. */
static const char *output_name(op_arena *arena, const char *name, int64_t layer)
{
    const char *out = of_layer(arena, name, layer);
    bool bare = out && (!strncmp(out, "h.", 2) || !strncmp(out, "wte.", 4) || !strncmp(out, "wpe.", 4) || !strncmp(out, "ln_f.", 5));
    if (!bare)
        return out;
    size_t room = strlen(out) + sizeof "transformer.";
    char *full = op_arena_alloc(arena, room);
    if (full)
        snprintf(full, room, "transformer.%s", out);
    return full;
}

/* ---- models ---- */

static int count_layers(const op_weights *w)
{
    int64_t most = 0;
    for (size_t i = 0; i < op_weights_count(w); i++) {
        int64_t layer = take_apart(op_weights_at(w, i)->name).layer + 1;
        most = layer > most ? layer : most;
    }
    return (int)most;
}

static op_status open_models(op_merge_plan *p, const op_merge_config *c, op_error *e)
{
    op_status s = OP_OK;
    p->models = op_alloc_zero((size_t)c->n_models, sizeof *p->models);
    if (!p->models)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (int i = 0; i < c->n_models && !s; i++) {
        op_merge_model *m = &p->models[p->n_models++];
        m->path = c->models[i];
        if (!(s = op_weights_open(&m->weights, m->path, 0, e)))
            m->layers = count_layers(m->weights);
    }
    return s;
}

/* ---- jobs ---- */

typedef struct planner {
    op_merge_plan *p;
    const op_merge_config *c;
    const op_merge_slice *slice;
    uint64_t seed;
    op_error *e;
} planner;

static op_status no_memory(const planner *x)
{
    return op_error_set(x->e, OP_ERR_NOMEM, "%s: out of memory", x->c->name);
}

/* A tied model's output layer is its embedding. */
static const op_weights_tensor *find(const op_weights *w, const char *name)
{
    const op_weights_tensor *t = op_weights_find(w, name);
    if (!t && !strcmp(name, "lm_head.weight") && !(t = op_weights_find(w, "model.embed_tokens.weight")))
        t = op_weights_find(w, "wte.weight");
    return t;
}

static op_status resolve_all(const planner *x, op_merge_job *j, double t)
{
    const op_merge_slice *slice = x->slice;
    const yaml_node_t *shared[] = {slice->parameters, x->c->module, x->c->parameters};
    op_status s = OP_OK;
    for (const op_merge_spec *spec = j->method->params; spec->scope != OP_SCOPE_END && !s; spec++) {
        if (spec->scope == OP_SCOPE_SHARED)
            s = op_merge_resolve(x->c, spec, shared, 3, j->name, t, &j->p[spec->param], x->e);
        for (int i = 0; i < j->n && spec->scope != OP_SCOPE_SHARED && !s; i++) {
            const yaml_node_t *scopes[] = {slice->sources[i].parameters, shared[0], shared[1], shared[2]};
            if (i != j->base || spec->scope == OP_SCOPE_INPUT)
                s = op_merge_resolve(x->c, spec, scopes, 4, j->in[i].tensor->name, t, &j->in[i].p[spec->param], x->e);
        }
    }
    return s;
}

static void show_shape(const op_weights_tensor *t, char out[64])
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < t->rank && n < 48; i++)
        n += (size_t)snprintf(out + n, 64 - n, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
}

static op_status check_shapes(const planner *x, const op_merge_job *j)
{
    const op_weights_tensor *a = j->in[0].tensor;
    for (int i = 1; i < j->n; i++) {
        const op_weights_tensor *b = j->in[i].tensor;
        bool words = j->vocabulary && a->rank == 2 && b->rank == 2 && a->shape[1] == b->shape[1];
        bool same = a->rank == b->rank && !memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape);
        char first[64], second[64];
        if (same || (words && x->p->words))
            continue;
        show_shape(a, first);
        show_shape(b, second);
        if (words)
            return op_error_set(x->e, OP_ERR_MISMATCH, "tensor \"%s\": the vocabularies differ: %lld tokens in \"%s\", %lld in \"%s\"; say tokenizer_source: base or union", j->name,
                                (long long)a->shape[0], j->in[0].model->path, (long long)b->shape[0], j->in[i].model->path);
        return op_error_set(x->e, OP_ERR_MISMATCH, "tensor \"%s\" has shape [%s] in \"%s\" and [%s] in \"%s\"", j->name, first, j->in[0].model->path, second, j->in[i].model->path);
    }
    return OP_OK;
}

/* The type in which torch would compute, of the types as they lie in the files or as `dtype` makes them. */
static op_status find_type(const planner *x, op_merge_job *j)
{
    bool integers = false;
    j->type = OP_DTYPE_COUNT;
    for (int i = 0; i < j->n; i++) {
        op_dtype own = j->in[i].tensor->dtype;
        integers |= own >= OP_I8;
        if (x->c->dtype != OP_DTYPE_COUNT)
            own = x->c->dtype;
        else if (own == OP_F64)
            return op_error_set(x->e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\" is float64: set dtype to float32, float16 or bfloat16", j->in[i].model->path, j->in[i].tensor->name);
        own = own == OP_BF16 || own == OP_F16 ? own : OP_F32;
        j->type = j->type == OP_DTYPE_COUNT || j->type == own ? own : OP_F32;
    }
    j->out = x->c->out_dtype != OP_DTYPE_COUNT ? x->c->out_dtype : j->method->floats ? OP_F32 : j->type;
    if (!integers)
        return OP_OK;
    const op_weights_tensor *a = j->in[0].tensor; /* counters and the like: the same in all, or nobody knows what is meant */
    for (int i = 0; i < j->n; i++) {
        const op_weights_tensor *b = j->in[i].tensor;
        if (!a->plain || !b->plain || a->dtype != b->dtype || memcmp(a->stored->data, b->stored->data, a->stored->bytes))
            return op_error_set(x->e, OP_ERR_MISMATCH, "tensor \"%s\" holds no floats and differs between \"%s\" and \"%s\"", j->name, j->in[0].model->path, j->in[i].model->path);
    }
    j->type = j->out = a->dtype;
    return OP_OK;
}

static void set_shape(op_merge_job *j, int64_t tokens)
{
    const op_weights_tensor *a = j->in[0].tensor;
    j->rank = a->rank;
    memcpy(j->shape, a->shape, sizeof j->shape);
    if (j->vocabulary && tokens)
        j->shape[0] = tokens;
    j->count = 1;
    for (int i = 0; i < j->rank; i++)
        j->count *= j->shape[i];
    j->row = j->rank && j->count ? j->shape[j->rank - 1] : 1;
    j->rows = j->count / j->row;
}

/* One output tensor, named after `like`; `layer` of the output, `offset` from the start of each source. */
static op_status add_job(planner *x, const op_weights_tensor *like, int64_t layer, int64_t offset, double t)
{
    op_merge_plan *p = x->p;
    const op_merge_slice *slice = x->slice;
    if (!op_grow(&p->jobs, p->n_jobs, &p->room, sizeof *p->jobs))
        return no_memory(x);
    op_merge_job *j = &p->jobs[p->n_jobs];
    *j = (op_merge_job){.method = x->c->method, .n = slice->n, .base = -1, .words_base = -1, .seed = x->seed, .stream = p->n_jobs, .line = slice->line, .words = p->words};
    j->name = output_name(&p->arena, like->name, layer);
    j->in = op_arena_alloc(&p->arena, (size_t)slice->n * sizeof *j->in);
    if (!j->name || !j->in)
        return no_memory(x);
    memset(j->in, 0, (size_t)slice->n * sizeof *j->in);
    for (int i = 0; i < slice->n; i++) {
        op_merge_input *in = &j->in[i];
        const char *name = of_layer(&p->arena, like->name, slice->sources[i].first + offset);
        if (!name)
            return no_memory(x);
        in->index = slice->sources[i].model;
        in->model = &p->models[in->index];
        if (!(in->tensor = find(in->model->weights, name)))
            return op_error_set(x->e, OP_ERR_MISMATCH, "%s: tensor \"%s\" is missing (%s, line %d)", in->model->path, name, x->c->name, slice->line);
        if (slice->base == in->index)
            j->words_base = i;
    }
    j->base = x->c->method->base == OP_BASE_IGNORED ? -1 : j->words_base;
    j->vocabulary = op_merge_is_vocabulary(j->name);
    set_shape(j, p->words ? op_merge_words_count(p->words) : 0);
    op_status s = check_shapes(x, j);
    if (!s)
        s = find_type(x, j);
    if (!s)
        s = resolve_all(x, j, t);
    p->n_jobs += !s;
    return s;
}

/* The source whose list of tensors is the output's: the base, or the first. */
static int reference(const op_merge_slice *slice)
{
    for (int i = 0; i < slice->n; i++)
        if (slice->sources[i].model == slice->base)
            return i;
    return 0;
}

static op_status plan_layers(planner *x, int64_t *layer)
{
    const op_merge_slice *slice = x->slice;
    int ref = reference(slice);
    const op_weights *w = x->p->models[slice->sources[ref].model].weights;
    int64_t n = slice->sources[0].end - slice->sources[0].first;
    op_status s = OP_OK;
    for (int64_t k = 0; k < n && !s; k++, ++*layer)
        for (size_t i = 0; i < op_weights_count(w) && !s; i++) {
            const op_weights_tensor *t = op_weights_at(w, i);
            if (take_apart(t->name).layer == slice->sources[ref].first + k && !op_tensor_is_buffer(t->name))
                s = add_job(x, t, *layer, k, n > 1 ? (double)k / (double)(n - 1) : 1);
        }
    return s;
}

/* Tensors outside the layers; an output layer that any source has of its own is made, for the tied ones from their embedding. */
static op_status plan_outside(planner *x, bool before)
{
    const op_merge_slice *slice = x->slice;
    int ref = reference(slice);
    const op_weights *w = x->p->models[slice->sources[ref].model].weights;
    bool head = false;
    op_status s = OP_OK;
    for (size_t i = 0; i < op_weights_count(w) && !s; i++) {
        const op_weights_tensor *t = op_weights_at(w, i);
        if (take_apart(t->name).layer >= 0 || op_tensor_is_buffer(t->name) || is_before(t->name) != before)
            continue;
        head |= !strcmp(t->name, "lm_head.weight");
        s = add_job(x, t, 0, 0, 0);
    }
    for (int i = 0; i < slice->n && !head && !before && !s; i++) {
        const op_weights_tensor *t = op_weights_find(x->p->models[slice->sources[i].model].weights, "lm_head.weight");
        head = t;
        if (t)
            s = add_job(x, t, 0, 0, 0);
    }
    return s;
}

/* mergekit leaves out what an architecture does not name, and so do we; but it is said. */
static void tell_extras(const planner *x)
{
    int ref = reference(x->slice);
    const op_merge_model *known = &x->p->models[x->slice->sources[ref].model];
    for (int i = 0; i < x->slice->n; i++) {
        const op_merge_model *m = &x->p->models[x->slice->sources[i].model];
        for (size_t k = 0; k < op_weights_count(m->weights); k++) {
            const op_weights_tensor *t = op_weights_at(m->weights, k);
            if (take_apart(t->name).layer < 0 && !op_tensor_is_buffer(t->name) && strcmp(t->name, "lm_head.weight") && !op_weights_find(known->weights, t->name))
                op_log(OP_LOG_WARN, "%s: tensor \"%s\" is left out: \"%s\" has none", m->path, t->name, known->path);
        }
    }
}

static op_status set_ranges(const planner *x, op_merge_slice *slice)
{
    for (int i = 0; i < slice->n; i++) {
        op_merge_source *s = &slice->sources[i];
        const op_merge_model *m = &x->p->models[s->model];
        if (s->end < 0)
            s->end = m->layers;
        if (s->end > m->layers)
            return op_error_set(x->e, OP_ERR_ARG, "%s: line %d: layers %lld to %lld of \"%s\", which has %d", x->c->name, slice->line, (long long)s->first, (long long)s->end,
                                m->path, m->layers);
        if (s->end - s->first != slice->sources[0].end - slice->sources[0].first)
            return op_error_set(x->e, OP_ERR_MISMATCH, "\"%s\" has %d layers and \"%s\" %d: say with slices which of them belong together", m->path, m->layers,
                                x->p->models[slice->sources[0].model].path, x->p->models[slice->sources[0].model].layers);
    }
    return OP_OK;
}

op_status op_merge_plan_make(op_merge_plan *p, const op_merge_config *c, uint64_t seed, op_error *e)
{
    int64_t layer = 0;
    *p = (op_merge_plan){0};
    op_arena_init(&p->arena);
    planner x = {.p = p, .c = c, .seed = seed, .e = e};
    op_status s = open_models(p, c, e);
    if (!s)
        s = op_merge_words_make(&p->words, c, p, e);
    for (int i = 0; i < c->n_slices && !s; i++) {
        s = set_ranges(&x, &c->slices[i]);
        x.slice = &c->slices[i];
        if (!s)
            tell_extras(&x);
    }
    x.slice = &c->slices[0];
    if (!s)
        s = plan_outside(&x, true);
    for (int i = 0; i < c->n_slices && !s; i++) {
        x.slice = &c->slices[i];
        s = plan_layers(&x, &layer);
    }
    if (!s)
        s = plan_outside(&x, false);
    p->layers = (int)layer;
    if (s)
        op_merge_plan_release(p);
    return s;
}

void op_merge_plan_release(op_merge_plan *p)
{
    op_merge_words_free(p->words);
    for (int i = 0; i < p->n_models; i++)
        op_weights_close(p->models[i].weights);
    op_free(p->models);
    op_free(p->jobs);
    op_arena_release(&p->arena);
    *p = (op_merge_plan){0};
}
