/* mergekit's YAML: keys and meanings as in mergekit 0.1.5 (docs/merge.md), read from libyaml's document so that every message has its line. */
#include "vectors/merge.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include <operant/config.h>
#include <operant/file.h>
#include <operant/log.h>

const char *const op_merge_param_names[P_COUNT + 1] = {
    [P_WEIGHT] = "weight", [P_NORMALIZE] = "normalize", [P_T] = "t", [P_ROW_WISE] = "nuslerp_row_wise", [P_FLATTEN] = "nuslerp_flatten",
    [P_NORMALIZE_WEIGHTS] = "normalize_weights", [P_EPS] = "eps", [P_MAX_ITER] = "max_iter", [P_TOL] = "tol", [P_INT8_MASK] = "int8_mask",
    [P_RESCALE] = "rescale", [P_LAMBDA] = "lambda", [P_DENSITY] = "density", [P_GAMMA] = "gamma", [P_EPSILON] = "epsilon",
    [P_SELECT_TOPK] = "select_topk", [P_FILTER_WISE] = "filter_wise", [P_SCALE] = "scale", [P_R] = "r", [P_ALPHA] = "alpha"};

typedef struct reader {
    op_merge_config *c;
    op_error *e;
} reader;

static op_status wrong(const reader *r, const yaml_node_t *at, const char *format, ...) OP_PRINTF(3, 4);

static op_status wrong(const reader *r, const yaml_node_t *at, const char *format, ...)
{
    char text[OP_ERROR_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: %s", r->c->name, op_yaml_line(at), text);
}

static op_status no_memory(const reader *r)
{
    return op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->c->name);
}

static void *room(const reader *r, size_t n, size_t size)
{
    void *p = op_arena_alloc(&r->c->arena, n * size + 1);
    if (p)
        memset(p, 0, n * size + 1);
    return p;
}

/* ---- nodes ---- */

static const yaml_node_t *node_at(const op_merge_config *c, int index)
{
    return yaml_document_get_node((yaml_document_t *)&c->doc, index);
}

static const char *text_of(const yaml_node_t *node)
{
    return (const char *)node->data.scalar.value;
}

/* A plain scalar that says nothing. */
static bool is_null(const yaml_node_t *n)
{
    static const char *const none[] = {"", "~", "null", "Null", "NULL", NULL};
    return n->type == YAML_SCALAR_NODE && n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && op_config_is_among(text_of(n), none);
}

/* The value of a key, NULL if it is absent or null. */
static const yaml_node_t *get(const op_merge_config *c, const yaml_node_t *map, const char *key)
{
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++)
        if (!strcmp(text_of(node_at(c, p->key)), key)) {
            const yaml_node_t *value = node_at(c, p->value);
            return is_null(value) ? NULL : value;
        }
    return NULL;
}

static op_status expect(const reader *r, const yaml_node_t *node, yaml_node_type_t type, const char *what)
{
    static const char *const names[] = {[YAML_SCALAR_NODE] = "a plain value", [YAML_SEQUENCE_NODE] = "a list", [YAML_MAPPING_NODE] = "a mapping"};
    if (node->type == type && (type != YAML_SCALAR_NODE || strlen(text_of(node)) == node->data.scalar.length))
        return OP_OK;
    return wrong(r, node, "%s: found %s, expected %s", what, names[node->type], names[type]);
}

static op_status check_keys(const reader *r, const yaml_node_t *map, const char *const *keys, const char *what)
{
    op_status s = expect(r, map, YAML_MAPPING_NODE, what);
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; !s && p < map->data.mapping.pairs.top; p++) {
        const yaml_node_t *node = node_at(r->c, p->key);
        if (op_config_is_among(text_of(node), keys))
            continue;
        const char *near = op_config_nearest(text_of(node), keys);
        s = wrong(r, node, "%s: unknown key \"%.60s\"%s%s%s", what, text_of(node), near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    }
    return s;
}

static op_status get_text(const reader *r, const yaml_node_t *map, const char *key, const char **out)
{
    const yaml_node_t *node = get(r->c, map, key);
    *out = NULL;
    op_status s = node ? expect(r, node, YAML_SCALAR_NODE, key) : OP_OK;
    if (node && !s)
        *out = text_of(node);
    return s;
}

static bool number_of(const char *s, double *out)
{
    char *end;
    if (!*s || strspn(s, "+-.0123456789eE") != strlen(s))
        return false;
    *out = strtod(s, &end);
    return !*end && isfinite(*out);
}

static bool integer_of(const char *s, int64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoll(s, &end, 10);
    return *s && !*end && !errno && strspn(s, "+-0123456789") == strlen(s);
}

/* As pydantic takes a bool. */
static bool bool_of(const char *s, double *out)
{
    static const char *const yes[] = {"true", "yes", "on", "y", "t", "1"}, *const no[] = {"false", "no", "off", "n", "f", "0"};
    for (int i = 0; i < 6; i++)
        if (!strcasecmp(s, yes[i]) || !strcasecmp(s, no[i])) {
            *out = !strcasecmp(s, yes[i]);
            return true;
        }
    return false;
}

/* ---- parameters ---- */

static op_status value_of(const reader *r, const op_merge_spec *spec, const yaml_node_t *node, double *out)
{
    const char *name = op_merge_param_names[spec->param], *s = node->type == YAML_SCALAR_NODE ? text_of(node) : "";
    if (spec->kind == OP_KIND_BOOL)
        return bool_of(s, out) ? OP_OK : wrong(r, node, "parameter \"%s\": found \"%.40s\", expected true or false", name, s);
    static const char *const truth[] = {"true", "True", "TRUE", "false", "False", "FALSE", NULL};
    bool ok = number_of(s, out) || (op_config_is_among(s, truth) && bool_of(s, out));
    if (ok && spec->kind == OP_KIND_INT)
        ok = *out == floor(*out) && fabs(*out) < 1e9;
    return ok ? OP_OK : wrong(r, node, "parameter \"%s\": found \"%.40s\", expected %s", name, s, spec->kind == OP_KIND_INT ? "a whole number" : "a number");
}

static bool is_gradient(const op_merge_config *c, const yaml_node_t *list)
{
    for (const yaml_node_item_t *i = list->data.sequence.items.start; i < list->data.sequence.items.top; i++)
        if (node_at(c, *i)->type != YAML_SCALAR_NODE)
            return false;
    return true;
}

/* The value at t of a list that runs over the layers: numbers are interpolated, truths are not. */
static op_status gradient(const reader *r, const op_merge_spec *spec, const yaml_node_t *list, double t, double *out)
{
    const yaml_node_item_t *items = list->data.sequence.items.start;
    int64_t n = list->data.sequence.items.top - items;
    double at = t * (double)(n - 1), lower, upper;
    int64_t i = (int64_t)at, next = i + 1 < n ? i + 1 : n - 1;
    op_status s = value_of(r, spec, node_at(r->c, items[i]), &lower);
    if (!s)
        s = value_of(r, spec, node_at(r->c, items[next]), &upper);
    if (s)
        return s;
    double fraction = at - (double)i;
    *out = spec->kind == OP_KIND_BOOL ? lower : (1 - fraction) * lower + fraction * upper;
    if (spec->kind == OP_KIND_INT && *out != floor(*out))
        return wrong(r, list, "parameter \"%s\": %g between two layers' values, expected whole numbers only", op_merge_param_names[spec->param], *out);
    return OP_OK;
}

/* *found false: no filter matches. */
static op_status evaluate(const reader *r, const op_merge_spec *spec, const yaml_node_t *setting, const char *tensor, double t, bool *found, double *out)
{
    const yaml_node_t *value, *filter;
    *found = true;
    if (setting->type == YAML_SCALAR_NODE)
        return value_of(r, spec, setting, out);
    if (setting->type == YAML_MAPPING_NODE) {
        value = get(r->c, setting, "value");
        filter = get(r->c, setting, "filter");
        if (!filter || !strcmp(text_of(filter), "*") || strstr(tensor, text_of(filter)))
            return evaluate(r, spec, value, tensor, t, found, out);
        *found = false;
        return OP_OK;
    }
    *found = setting->data.sequence.items.top > setting->data.sequence.items.start;
    if (*found && is_gradient(r->c, setting))
        return gradient(r, spec, setting, t, out);
    *found = false;
    op_status s = OP_OK;
    for (const yaml_node_item_t *i = setting->data.sequence.items.start; !s && !*found && i < setting->data.sequence.items.top; i++)
        s = evaluate(r, spec, node_at(r->c, *i), tensor, t, found, out);
    return s;
}

op_status op_merge_resolve(const op_merge_config *c, const op_merge_spec *spec, const yaml_node_t *const *scopes, int n_scopes, const char *tensor, double t,
                           double *out, op_error *e)
{
    const reader r = {(op_merge_config *)c, e};
    const char *name = op_merge_param_names[spec->param];
    for (int i = 0; i < n_scopes; i++) {
        const yaml_node_t *setting = scopes[i] ? get(c, scopes[i], name) : NULL;
        bool found = false;
        op_status s = setting ? evaluate(&r, spec, setting, tensor, t, &found, out) : OP_OK;
        if (s || found)
            return s;
    }
    *out = spec->fallback;
    return isnan(*out) && spec->param != P_SCALE ? op_error_set(e, OP_ERR_ARG, "%s: method \"%s\" needs the parameter \"%s\" for tensor \"%s\"", c->name, c->method->name,
                                                                name, tensor) : OP_OK;
}

/* A value, a list of values, a mapping {value, filter} or a list of those. */
static op_status check_setting(const reader *r, const op_merge_spec *spec, const yaml_node_t *node, int depth)
{
    static const char *const keys[] = {"value", "filter", NULL};
    const char *name = op_merge_param_names[spec->param];
    double value;
    op_status s = OP_OK;
    if (node->type == YAML_SCALAR_NODE)
        return value_of(r, spec, node, &value);
    if (node->type == YAML_MAPPING_NODE) {
        if (depth > 1)
            return wrong(r, node, "parameter \"%s\": a filter inside another", name);
        if ((s = check_keys(r, node, keys, name)))
            return s;
        const yaml_node_t *filter = get(r->c, node, "filter"), *inner = get(r->c, node, "value");
        if (!inner)
            return wrong(r, node, "parameter \"%s\": key \"value\" is missing", name);
        if (filter && (s = expect(r, filter, YAML_SCALAR_NODE, "filter")))
            return s;
        return check_setting(r, spec, inner, 2);
    }
    bool plain = is_gradient(r->c, node);
    for (const yaml_node_item_t *i = node->data.sequence.items.start; !s && i < node->data.sequence.items.top; i++) {
        const yaml_node_t *item = node_at(r->c, *i);
        if (!plain && (item->type != YAML_MAPPING_NODE || depth))
            return wrong(r, item, "parameter \"%s\": expected a list of values, or one of mappings with \"value\" and \"filter\"", name);
        s = check_setting(r, spec, item, 1);
    }
    return s;
}

static const op_merge_spec *spec_of(const op_merge_method *m, const char *name)
{
    for (const op_merge_spec *s = m->params; s->scope != OP_SCOPE_END; s++)
        if (!strcmp(op_merge_param_names[s->param], name))
            return s;
    return NULL;
}

static op_status read_parameters(const reader *r, const yaml_node_t *map, const yaml_node_t **out)
{
    *out = get(r->c, map, "parameters");
    op_status s = *out ? check_keys(r, *out, op_merge_param_names, "parameters") : OP_OK;
    for (const yaml_node_pair_t *p = *out ? (*out)->data.mapping.pairs.start : NULL; p && !s && p < (*out)->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = node_at(r->c, p->key), *value = node_at(r->c, p->value);
        const op_merge_spec *spec = spec_of(r->c->method, text_of(key));
        if (is_null(value))
            s = wrong(r, value, "parameter \"%s\" has no value", text_of(key));
        else if (spec)
            s = check_setting(r, spec, value, 0);
        else
            op_log(OP_LOG_WARN, "%s: line %d: method \"%s\" makes no use of parameter \"%s\"", r->c->name, op_yaml_line(key), r->c->method->name, text_of(key));
    }
    return s;
}

/* ---- models ---- */

/* Adds a path, or finds it: "MODEL" or "MODEL+ADAPTER", of which the adapter is what is opened. */
static op_status add_model(const reader *r, const yaml_node_t *at, const char *model, const char *adapter, int *out)
{
    op_merge_config *c = r->c;
    if (!op_path_exists(adapter ? adapter : model))
        return wrong(r, at, "model \"%s\" is not here: operant merges local models (a directory, a .gguf file) and downloads nothing", adapter ? adapter : model);
    const char *path = adapter ? adapter : model;
    for (*out = 0; *out < c->n_models; ++*out)
        if (!strcmp(c->models[*out], path))
            return OP_OK;
    if (c->n_models == OP_MERGE_INPUTS_MAX)
        return wrong(r, at, "more than %d models", OP_MERGE_INPUTS_MAX);
    char *copy = room(r, strlen(path) + 1, 1);
    if (!copy)
        return no_memory(r);
    strcpy(copy, path);
    c->models[c->n_models++] = copy;
    return OP_OK;
}

static op_status split_model(const reader *r, const yaml_node_t *at, const char *text, int *out)
{
    const char *plus = strrchr(text, '+');
    if (!*text)
        return wrong(r, at, "a model without a name");
    if (op_path_exists(text) || !plus)
        return add_model(r, at, text, NULL, out);
    char *model = room(r, strlen(text) + 1, 1);
    if (!model)
        return no_memory(r);
    memcpy(model, text, (size_t)(plus - text));
    return add_model(r, at, model, plus + 1, out);
}

/* One part of a reference that is written as a mapping: a text, or {path, revision}. */
static op_status path_of(const reader *r, const yaml_node_t *node, const char **out)
{
    static const char *const keys[] = {"path", "revision", NULL};
    if (node->type == YAML_SCALAR_NODE) {
        *out = text_of(node);
        return expect(r, node, YAML_SCALAR_NODE, "model");
    }
    op_status s = check_keys(r, node, keys, "model");
    if (!s)
        s = get_text(r, node, "path", out);
    return s || *out ? s : wrong(r, node, "model: key \"path\" is missing");
}

/* A reference: a text, or {model, lora, override_architecture}. */
static op_status read_model(const reader *r, const yaml_node_t *node, int *out)
{
    static const char *const keys[] = {"model", "lora", "override_architecture", NULL};
    const char *model = NULL, *lora = NULL;
    if (node->type == YAML_SCALAR_NODE) {
        op_status s = expect(r, node, YAML_SCALAR_NODE, "model");
        return s ? s : split_model(r, node, text_of(node), out);
    }
    op_status s = check_keys(r, node, keys, "model");
    if (!s && !get(r->c, node, "model"))
        s = wrong(r, node, "model: key \"model\" is missing");
    if (!s)
        s = path_of(r, get(r->c, node, "model"), &model);
    if (!s && get(r->c, node, "lora"))
        s = path_of(r, get(r->c, node, "lora"), &lora);
    return s ? s : add_model(r, node, model, lora, out);
}

static op_status need_model(const reader *r, const yaml_node_t *map, int *out)
{
    const yaml_node_t *node = get(r->c, map, "model");
    return node ? read_model(r, node, out) : wrong(r, map, "key \"model\" is missing");
}

static op_status read_base(const reader *r, const yaml_node_t *map, int *out)
{
    const yaml_node_t *node = get(r->c, map, "base_model");
    *out = -1;
    return node ? read_model(r, node, out) : OP_OK;
}

/* ---- slices ---- */

/* mergekit knows a method's needs of its inputs as a contract; the base counts as one of them. */
static op_status check_inputs(const reader *r, const op_merge_slice *s, const yaml_node_t *at)
{
    const op_merge_method *m = r->c->method;
    bool has_base = false;
    for (int i = 0; i < s->n; i++) {
        has_base |= m->base != OP_BASE_IGNORED && s->sources[i].model == s->base;
        for (int k = 0; k < i; k++)
            if (s->sources[i].model == s->sources[k].model)
                return wrong(r, at, "model \"%s\" is there twice", r->c->models[s->sources[i].model]);
    }
    if (m->base != OP_BASE_IGNORED && s->base >= 0 && !has_base)
        return wrong(r, at, "base_model \"%s\" is not among the sources of this slice", r->c->models[s->base]);
    if (m->base == OP_BASE_REQUIRED && !has_base)
        return wrong(r, at, "method \"%s\" needs a base_model", m->name);
    int others = s->n - has_base;
    if (s->n < m->min_inputs || (m->max_inputs && s->n > m->max_inputs))
        return wrong(r, at, "method \"%s\" takes %s%d models%s, found %d", m->name, m->max_inputs == m->min_inputs ? "" : s->n < m->min_inputs ? "at least " : "at most ",
                     s->n < m->min_inputs ? m->min_inputs : m->max_inputs, m->base == OP_BASE_IGNORED ? "" : " with the base", s->n);
    if (others < m->min_others || (m->max_others && others > m->max_others))
        return wrong(r, at, "method \"%s\" takes %s%d models besides the base, found %d", m->name, m->max_others == m->min_others ? "" : "at least ", m->min_others, others);
    return OP_OK;
}

static op_status read_range(const reader *r, const yaml_node_t *map, op_merge_source *out)
{
    const yaml_node_t *node = get(r->c, map, "layer_range");
    if (!node)
        return wrong(r, map, "key \"layer_range\" is missing");
    op_status s = expect(r, node, YAML_SEQUENCE_NODE, "layer_range");
    if (s)
        return s;
    const yaml_node_item_t *items = node->data.sequence.items.start;
    int64_t *to[] = {&out->first, &out->end};
    bool ok = node->data.sequence.items.top - items == 2;
    for (int i = 0; i < 2 && ok; i++)
        ok = node_at(r->c, items[i])->type == YAML_SCALAR_NODE && integer_of(text_of(node_at(r->c, items[i])), to[i]);
    return ok && out->first >= 0 && out->first < out->end && out->end <= 100000
               ? OP_OK : wrong(r, node, "layer_range: expected [first, end], two whole numbers, the second larger");
}

static op_status read_slice(const reader *r, const yaml_node_t *node, op_merge_slice *out)
{
    static const char *const keys[] = {"sources", "base_model", "residual_weight", "parameters", NULL};
    static const char *const source_keys[] = {"model", "layer_range", "parameters", NULL};
    op_status s = check_keys(r, node, keys, "slice");
    const yaml_node_t *list = s ? NULL : get(r->c, node, "sources");
    if (s || !list)
        return s ? s : wrong(r, node, "slice: key \"sources\" is missing");
    if ((s = expect(r, list, YAML_SEQUENCE_NODE, "sources")) || (s = read_parameters(r, node, &out->parameters)) || (s = read_base(r, node, &out->base)))
        return s;
    if (get(r->c, node, "residual_weight"))
        op_log(OP_LOG_WARN, "%s: line %d: residual_weight has no effect, as in mergekit 0.1.5", r->c->name, op_yaml_line(node));
    out->base = out->base < 0 ? r->c->base : out->base;
    out->line = op_yaml_line(node);
    int64_t n = list->data.sequence.items.top - list->data.sequence.items.start;
    if (n < 1 || n > OP_MERGE_INPUTS_MAX)
        return wrong(r, list, "sources: found %lld, expected 1 to %d", (long long)n, OP_MERGE_INPUTS_MAX);
    if (!(out->sources = room(r, (size_t)n, sizeof *out->sources)))
        return no_memory(r);
    for (int i = 0; i < n && !s; i++, out->n++) {
        const yaml_node_t *item = node_at(r->c, list->data.sequence.items.start[i]);
        op_merge_source *x = &out->sources[i];
        if (!(s = check_keys(r, item, source_keys, "source")) && !(s = need_model(r, item, &x->model)) && !(s = read_range(r, item, x)))
            s = read_parameters(r, item, &x->parameters);
        if (!s && x->end - x->first != out->sources[0].end - out->sources[0].first)
            s = wrong(r, item, "%lld layers, but the slice's first source has %lld", (long long)(x->end - x->first),
                      (long long)(out->sources[0].end - out->sources[0].first));
    }
    return s ? s : check_inputs(r, out, node);
}

static op_status read_slices(const reader *r, const yaml_node_t *list)
{
    op_status s = expect(r, list, YAML_SEQUENCE_NODE, "slices");
    if (s)
        return s;
    int64_t n = list->data.sequence.items.top - list->data.sequence.items.start;
    if (n < 1 || n > 4096)
        return wrong(r, list, "slices: found %lld, expected 1 to 4096", (long long)n);
    if (!(r->c->slices = room(r, (size_t)n, sizeof *r->c->slices)))
        return no_memory(r);
    for (int i = 0; i < n && !s; i++)
        s = read_slice(r, node_at(r->c, list->data.sequence.items.start[i]), &r->c->slices[r->c->n_slices++]);
    return s;
}

/* models: one slice of all layers, with the base as a last source where it is not among them. */
static op_status read_models(const reader *r, const yaml_node_t *list)
{
    static const char *const keys[] = {"model", "parameters", NULL};
    op_merge_config *c = r->c;
    op_status s = expect(r, list, YAML_SEQUENCE_NODE, "models");
    int64_t n = s ? 0 : list->data.sequence.items.top - list->data.sequence.items.start;
    if (!s && (n < 1 || n >= OP_MERGE_INPUTS_MAX))
        s = wrong(r, list, "models: found %lld, expected 1 to %d", (long long)n, OP_MERGE_INPUTS_MAX - 1);
    if (s)
        return s;
    op_merge_slice *slice = c->slices = room(r, 1, sizeof *c->slices);
    if (!slice || !(slice->sources = room(r, (size_t)n + 1, sizeof *slice->sources)))
        return no_memory(r);
    c->n_slices = 1;
    c->whole = true;
    *slice = (op_merge_slice){.sources = slice->sources, .base = c->base, .line = op_yaml_line(list)};
    bool has_base = c->base < 0;
    for (int i = 0; i < n && !s; i++) {
        const yaml_node_t *item = node_at(c, list->data.sequence.items.start[i]);
        op_merge_source *x = &slice->sources[slice->n++];
        x->end = -1;
        if (!(s = check_keys(r, item, keys, "model")) && !(s = need_model(r, item, &x->model)))
            s = read_parameters(r, item, &x->parameters);
        has_base |= x->model == c->base;
    }
    if (!s && !has_base)
        slice->sources[slice->n++] = (op_merge_source){.model = c->base, .end = -1};
    return s ? s : check_inputs(r, slice, list);
}

/* slices or models, of a module or of the whole file. */
static op_status read_content(const reader *r, const yaml_node_t *map)
{
    const yaml_node_t *slices = get(r->c, map, "slices"), *models = get(r->c, map, "models");
    if (!slices == !models)
        return wrong(r, map, "expected either \"models\" or \"slices\"");
    return slices ? read_slices(r, slices) : read_models(r, models);
}

static op_status read_modules(const reader *r, const yaml_node_t *map)
{
    static const char *const keys[] = {"slices", "models", "parameters", NULL};
    op_status s = expect(r, map, YAML_MAPPING_NODE, "modules");
    const yaml_node_t *module = s ? NULL : get(r->c, map, "default");
    if (!s && (!module || map->data.mapping.pairs.top - map->data.mapping.pairs.start != 1))
        s = wrong(r, map, "modules: expected \"default\" alone: language models have no other");
    if (!s && !(s = check_keys(r, module, keys, "module")) && !(s = read_parameters(r, module, &r->c->module)))
        s = read_content(r, module);
    return s;
}

/* ---- tokens ---- */

static op_status read_token_source(const reader *r, const yaml_node_t *node, op_merge_token *out)
{
    static const char *const keys[] = {"kind", "model", "token_id", "token", NULL};
    const char *kind = NULL, *id = NULL;
    if (node->type != YAML_MAPPING_NODE || !get(r->c, node, "kind"))
        return read_model(r, node, &out->model);
    op_status s = check_keys(r, node, keys, "source");
    if (!s)
        s = get_text(r, node, "kind", &kind);
    if (!s && !strcmp(kind, "zero")) {
        out->model = -1;
        return OP_OK;
    }
    if (!s && strcmp(kind, "model_token"))
        s = wrong(r, node, "kind: found \"%.40s\", expected zero or model_token", kind);
    if (!s && !(s = need_model(r, node, &out->model)) && !(s = get_text(r, node, "token", &out->other)))
        s = get_text(r, node, "token_id", &id);
    if (!s && !id == !out->other)
        s = wrong(r, node, "expected either \"token\" or \"token_id\"");
    if (!s && id && (!integer_of(id, &out->id) || out->id < 0))
        s = wrong(r, node, "token_id: found \"%.40s\", expected the number of a token", id);
    return s;
}

static op_status read_tokens(const reader *r, const yaml_node_t *map)
{
    static const char *const keys[] = {"source", "force", NULL};
    op_status s = expect(r, map, YAML_MAPPING_NODE, "tokens");
    size_t n = s ? 0 : (size_t)(map->data.mapping.pairs.top - map->data.mapping.pairs.start);
    if (!s && !(r->c->tokens = room(r, n, sizeof *r->c->tokens)))
        s = no_memory(r);
    for (size_t i = 0; i < n && !s; i++) {
        const yaml_node_pair_t *p = &map->data.mapping.pairs.start[i];
        const yaml_node_t *node = node_at(r->c, p->value), *source;
        op_merge_token *t = &r->c->tokens[r->c->n_tokens++];
        *t = (op_merge_token){.text = text_of(node_at(r->c, p->key)), .model = -2, .id = -1, .line = op_yaml_line(node)};
        const char *force = NULL;
        double yes = 0;
        if ((s = check_keys(r, node, keys, t->text)) || (s = get_text(r, node, "force", &force)))
            return s;
        if (force && !bool_of(force, &yes))
            return wrong(r, node, "force: found \"%.40s\", expected true or false", force);
        t->force = yes != 0;
        source = get(r->c, node, "source");
        s = source ? read_token_source(r, source, t) : OP_OK;
    }
    return s;
}

static op_status read_vocabulary(const reader *r, const yaml_node_t *node)
{
    op_merge_config *c = r->c;
    const char *text = node->type == YAML_SCALAR_NODE ? text_of(node) : "";
    c->vocabulary = !strcmp(text, "union") ? OP_VOCABULARY_UNION : !strcmp(text, "base") ? OP_VOCABULARY_BASE : OP_VOCABULARY_MODEL;
    return c->vocabulary == OP_VOCABULARY_MODEL ? read_model(r, node, &c->vocabulary_model) : OP_OK;
}

static op_status read_tokenizer(const reader *r, const yaml_node_t *root)
{
    static const char *const keys[] = {"source", "tokens", "pad_to_multiple_of", NULL};
    const yaml_node_t *plain = get(r->c, root, "tokenizer_source"), *map = get(r->c, root, "tokenizer"), *node;
    const char *pad = NULL;
    if (plain && map)
        return wrong(r, map, "either \"tokenizer_source\" or \"tokenizer\", not both");
    if (plain)
        return read_vocabulary(r, plain);
    if (!map)
        return OP_OK;
    op_status s = check_keys(r, map, keys, "tokenizer");
    r->c->vocabulary = OP_VOCABULARY_UNION;
    if (!s && (node = get(r->c, map, "source")))
        s = read_vocabulary(r, node);
    if (!s && (node = get(r->c, map, "tokens")))
        s = read_tokens(r, node);
    if (!s && !(s = get_text(r, map, "pad_to_multiple_of", &pad)) && pad && (!integer_of(pad, &r->c->pad_to) || r->c->pad_to < 1 || r->c->pad_to > 1 << 20))
        s = wrong(r, map, "pad_to_multiple_of: found \"%.40s\", expected a whole number from 1", pad);
    return s;
}

/* ---- the file ---- */

static op_status read_dtype(const reader *r, const yaml_node_t *root, const char *key, op_dtype *out)
{
    const char *text;
    op_status s = get_text(r, root, key, &text);
    *out = OP_DTYPE_COUNT;
    if (s || !text)
        return s;
    const char *name = strncmp(text, "torch.", 6) ? text : text + 6;
    *out = !strcmp(name, "float32") ? OP_F32 : !strcmp(name, "float16") ? OP_F16 : !strcmp(name, "bfloat16") ? OP_BF16 : OP_DTYPE_COUNT;
    return *out != OP_DTYPE_COUNT ? OP_OK : wrong(r, get(r->c, root, key), "%s: found \"%.40s\", expected float32, float16 or bfloat16", key, text);
}

static op_status read_root(const reader *r)
{
    static const char *const keys[] = {"merge_method", "models", "slices", "modules", "base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template",
                                       "parameters", NULL};
    op_merge_config *c = r->c;
    const yaml_node_t *root = yaml_document_get_root_node(&c->doc), *modules;
    const char *method;
    if (!root)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: the file is empty", c->name);
    op_status s = check_keys(r, root, keys, "merge");
    if (!s)
        s = get_text(r, root, "merge_method", &method);
    if (s)
        return s;
    if (!method)
        return wrong(r, root, "key \"merge_method\" is missing");
    if (!(c->method = op_merge_method_find(method))) {
        const char *near = op_config_nearest(method, op_merge_method_names);
        return wrong(r, get(c, root, "merge_method"), "unknown merge_method \"%.40s\"%s%s%s", method, near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    }
    if (!(c->models = room(r, OP_MERGE_INPUTS_MAX, sizeof *c->models)))
        return no_memory(r);
    if ((s = read_base(r, root, &c->base)) || (s = read_parameters(r, root, &c->parameters)) || (s = read_dtype(r, root, "dtype", &c->dtype)) ||
        (s = read_dtype(r, root, "out_dtype", &c->out_dtype)))
        return s;
    modules = get(c, root, "modules");
    if (modules && (get(c, root, "slices") || get(c, root, "models")))
        return wrong(r, root, "expected one of \"models\", \"slices\" and \"modules\"");
    s = modules ? read_modules(r, modules) : read_content(r, root);
    if (!s && !(s = read_tokenizer(r, root)))
        s = get_text(r, root, "chat_template", &c->chat_template);
    return s;
}

op_status op_merge_config_read(op_merge_config *c, const char *yaml, size_t n, const char *name, op_error *e)
{
    const reader r = {c, e};
    *c = (op_merge_config){.name = name, .base = -1};
    op_arena_init(&c->arena);
    op_status s = op_yaml_load(&c->doc, yaml, n, name, e);
    c->loaded = !s;
    if (!s)
        s = read_root(&r);
    if (s)
        op_merge_config_release(c);
    return s;
}

void op_merge_config_release(op_merge_config *c)
{
    if (c->loaded)
        yaml_document_delete(&c->doc);
    op_arena_release(&c->arena);
    *c = (op_merge_config){0};
}
