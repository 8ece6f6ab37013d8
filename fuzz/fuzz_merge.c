/* A merge's YAML, and every parameter of it at some tensors and places between the layers. */
#include <stdlib.h>

#include "vectors/merge.h"

/* In the place of the families of methods, which need no parsing: one of each kind of parameter and of base. */
static const op_merge_method methods[] = {
    {.name = "linear", .base = OP_BASE_IGNORED, .min_inputs = 1,
     .params = {{P_WEIGHT, OP_SCOPE_INPUT, OP_KIND_FLOAT, OP_MERGE_REQUIRED}, {P_NORMALIZE, OP_SCOPE_SHARED, OP_KIND_BOOL, 1}}},
    {.name = "ties", .base = OP_BASE_REQUIRED, .min_inputs = 1,
     .params = {{P_WEIGHT, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, OP_MERGE_REQUIRED}, {P_DENSITY, OP_SCOPE_NON_BASE, OP_KIND_FLOAT, 1}, {P_LAMBDA, OP_SCOPE_SHARED, OP_KIND_FLOAT, 1}}},
    {.name = "karcher", .base = OP_BASE_OPTIONAL, .min_inputs = 1, .min_others = 1, .max_others = 2, .params = {{P_MAX_ITER, OP_SCOPE_SHARED, OP_KIND_INT, 10}}}};
const char *const op_merge_method_names[] = {"linear", "ties", "karcher", NULL};

const op_merge_method *op_merge_method_find(const char *name)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (!strcmp(methods[i].name, name))
            return &methods[i];
    return NULL;
}

static void resolve(const op_merge_config *c, const op_merge_slice *s, int source)
{
    static const char *const tensors[] = {"model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight", ""};
    const yaml_node_t *scopes[] = {s->sources[source].parameters, s->parameters, c->module, c->parameters};
    for (const op_merge_spec *spec = c->method->params; spec->scope != OP_SCOPE_END; spec++)
        for (int i = 0; i < 9; i++) {
            op_error e = {0};
            double x;
            op_status status = op_merge_resolve(c, spec, scopes, 4, tensors[i / 3], (i % 3) * 0.5, &x, &e);
            if (status ? !*e.message : isnan(x) || isinf(x))
                abort();
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    op_merge_config c;
    op_error e = {0};
    char *text = malloc(n + 1);
    memcpy(text, data, n);
    text[n] = 0;
    if (op_merge_config_read(&c, text, n, "x.yaml", &e)) {
        if (!*e.message)
            abort();
    } else {
        for (int i = 0; i < c.n_slices; i++)
            for (int k = 0; k < c.slices[i].n; k++)
                resolve(&c, &c.slices[i], k);
        op_merge_config_release(&c);
    }
    free(text);
    return 0;
}
