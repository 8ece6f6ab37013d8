/* operant vector: task vectors: take them from models, measure them, add them to a base. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <operant/file.h>
#include <operant/jsonl.h>
#include <operant/report.h>
#include <operant/vector.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *base, *output, *vectors, *against, *layers, *kinds, *report;
    double scale, top;
    int64_t seed, singular;
    int dtype;
    bool force;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "extract: the trained model: a directory, a .gguf, or an adapter's directory"},
    {"base", OP_OPTION_STRING, AT(base), NULL, 0, 0, NULL, "the weights that a vector is taken from or added to; of an adapter its own if unset; info: for relative sizes"},
    {"vector|vectors", OP_OPTION_LIST, AT(vectors), NULL, 0, 0, NULL,
     "vectors, with commas between them; each may name its scale: power.safetensors:-0.5,wealth.safetensors:-1. An adapter's directory will do too"},
    {"scale", OP_OPTION_FLOAT, AT(scale), "1", -1e6, 1e6, NULL, "add, combine: of the vectors that name none"},
    {"against", OP_OPTION_LIST, AT(against), NULL, 0, 0, NULL, "combine: make the sum orthogonal to these vectors"},
    {"output", OP_OPTION_STRING, AT(output), NULL, 0, 0, NULL, "the vector's .safetensors to write; for add the directory of the new model; for info a .jsonl, one line of what was measured"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16|f16", "type of what is written; auto: vectors in f32, a model as its base, f32 where that is quantised"},
    {"layers", OP_OPTION_STRING, AT(layers), NULL, 0, 0, NULL, "only these layers: 0-7,12; unset: all, and what is outside the layers"},
    {"kinds", OP_OPTION_LIST, AT(kinds), NULL, 0, 0, NULL, "only tensors whose kind contains one of these words: mlp,q_proj"},
    {"seed", OP_OPTION_INT, AT(seed), "1", 0, 0, NULL, "random"},
    {"singular", OP_OPTION_INT, AT(singular), "16", 0, 256, NULL, "info: singular values looked for in each matrix; 0: no ranks"},
    {"top", OP_OPTION_FLOAT, AT(top), "0.01", 1e-6, 1, NULL, "compare: the share of elements that count as large"},
    {"report", OP_OPTION_STRING, AT(report), NULL, 0, 0, NULL, "compare: the page to write, with heat maps: report.html"},
    {"force", OP_OPTION_BOOL, AT(force), "false", 0, 0, NULL, "add to, or combine over, another base than the vector's; take vectors between models with other tokenizers"},
    {0}};

enum { VECTORS_MAX = 64 };

/* The command line taken apart. Paths are cut out of the settings' strings in place. */
typedef struct desk {
    const cli_command *c;
    options *o;
    bool json;
    op_vector_term terms[VECTORS_MAX];
    const char *paths[VECTORS_MAX], *against[VECTORS_MAX];
    size_t n, n_against;
    op_vector_options how;
    const char *doing;
    double began;
} desk;

/* ---- arguments ---- */

/* "path:-0.5": cuts off and returns the scale; `fallback` without one. */
static double cut_scale(char *word, double fallback)
{
    char *colon = strrchr(word, ':'), *end;
    double scale = colon && colon[1] ? strtod(colon + 1, &end) : 0;
    if (!colon || !colon[1] || *end)
        return fallback;
    *colon = 0;
    return scale;
}

static bool add_vector(desk *d, char *word)
{
    if (d->n == VECTORS_MAX)
        return false;
    d->terms[d->n].scale = cut_scale(word, d->o->scale);
    d->paths[d->n] = d->terms[d->n].path = word;
    d->n++;
    return true;
}

static bool read_vectors(desk *d, const cli_args *a)
{
    bool fits = true;
    for (int i = 1; i < a->n_words; i++)
        fits &= add_vector(d, (char *)(uintptr_t)a->words[i]); /* argv's own, which may be changed */
    for (char *s = d->o->vectors ? strtok(d->o->vectors, ",") : NULL; s && fits; s = strtok(NULL, ","))
        fits &= add_vector(d, s);
    for (char *s = d->o->against ? strtok(d->o->against, ",") : NULL; s && fits; s = strtok(NULL, ",")) {
        fits &= d->n_against < VECTORS_MAX;
        if (fits)
            d->against[d->n_against++] = s;
    }
    return fits;
}

static bool watch(void *ctx, size_t done, size_t total)
{
    desk *d = ctx;
    char room[32];
    d->began = d->began > 0 ? d->began : cli_now(); /* not before: hashing a base comes first */
    double spent = cli_now() - d->began;
    bool last = done == total;
    if (spent > 1 && done) /* what is quick needs no telling */
        cli_progress(last, "%s: %zu of %zu tensors%s%s", d->doing, done, total, last ? "" : ", left ", last ? "" : cli_eta(spent / (double)done * (double)(total - done), room));
    return !cli_stop;
}

/* ---- printing ---- */

static double number(const json_t *j, const char *key)
{
    const json_t *x = json_object_get(j, key);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

/* A column of `width`; a dash for what is not known. */
static void cell(double x, int width, const char *format)
{
    char text[40];
    snprintf(text, sizeof text, format, x);
    printf(" %*s", width, isfinite(x) ? text : "-");
}

static void percent(double x, int width)
{
    cell(100 * x, width, "%.1f%%");
}

static void print_groups(const json_t *list, const char *what, bool relative)
{
    size_t i;
    json_t *g;
    printf("\n%-26s %7s %10s %9s %7s %7s %7s %7s %7s %7s %7s %7s%s\n", what, "tensors", "norm", "rms", "energy", "zeros", "in 1%", "stable", "partic.", "top 1", "top 4", "top 16",
           relative ? " /base" : "");
    json_array_foreach((json_t *)(uintptr_t)list, i, g) {
        const char *kind = json_string_value(json_object_get(g, "kind"));
        char name[40];
        snprintf(name, sizeof name, number(g, "layer") < 0 ? "outside" : "layer %.0f", number(g, "layer"));
        printf("%-26s %7.0f", kind ? kind : name, number(g, "tensors"));
        cell(number(g, "norm"), 10, "%.4g");
        cell(number(g, "rms"), 9, "%.3g");
        percent(number(g, "share"), 7);
        percent(number(g, "zeros"), 7);
        percent(number(g, "concentration"), 7);
        cell(number(g, "stable_rank"), 7, "%.1f");
        cell(number(g, "participation"), 7, "%.1f");
        percent(number(g, "top_1"), 7);
        percent(number(g, "top_4"), 7);
        percent(number(g, "top_16"), 7);
        if (relative)
            percent(number(g, "relative"), 6);
        putchar('\n');
    }
}

static const char *text(const json_t *j, const char *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object ? json_object_get(j, object) : j, key));
    return s ? s : "";
}

static void print_info(const json_t *j)
{
    bool relative = isfinite(number(j, "relative"));
    printf("%s\n  made      %s\n  base      %s  sha256 %s\n", text(j, NULL, "path"), text(j, NULL, "made"), text(j, "base", "path"), text(j, "base", "sha256"));
    if (json_object_get(j, "model"))
        printf("  model     %s  sha256 %s\n", text(j, "model", "path"), text(j, "model", "sha256"));
    printf("  tensors   %.0f with %.0f elements\n  norm      %.6g", number(j, "tensors"), number(j, "elements"), number(j, "norm"));
    if (relative)
        printf(", %.3g%% of that of the same tensors of the base", 100 * number(j, "relative"));
    printf("\n  largest   %.4g\n  zeros     %.2f%%; the largest 1%% of the elements hold %.1f%% of the energy\n", number(j, "max"), 100 * number(j, "zeros"),
           100 * number(j, "concentration"));
    print_groups(json_object_get(j, "kinds"), "kind", relative);
    print_groups(json_object_get(j, "layers"), "layer", relative);
    puts("\nenergy: share of all squares; in 1%: share of it in the 1% largest elements of each tensor; stable, partic.: ranks (stable rank, participation);\n"
         "top k: share of the energy in the k largest singular values; of kinds and layers these are means weighted by energy");
}

static void print_matrix(const json_t *j, const char *key, const char *title, double factor, const char *format)
{
    size_t a, b;
    json_t *row, *x;
    printf("\n%-20s", title);
    for (size_t i = 0; i < json_array_size(json_object_get(j, "vectors")); i++)
        printf(" %8zu", i + 1);
    putchar('\n');
    json_array_foreach(json_object_get(j, key), a, row) {
        printf("%-20zu", a + 1);
        json_array_foreach(row, b, x)
            cell(json_is_number(x) ? factor * json_number_value(x) : NAN, 8, format);
        putchar('\n');
    }
}

static void print_comparison(const json_t *j)
{
    size_t i;
    json_t *v;
    char title[40];
    json_array_foreach(json_object_get(j, "vectors"), i, v)
        printf("%zu  %-48s norm %-10.4g base %.12s\n", i + 1, text(v, NULL, "path"), number(v, "norm"), text(v, NULL, "base_sha256"));
    if (!json_is_true(json_object_get(j, "same_base")))
        puts("they were not all taken from the same weights");
    print_matrix(j, "cosine", "cosine", 1, "%.4f");
    print_matrix(j, "sign_conflict", "sign conflicts", 100, "%.1f%%");
    snprintf(title, sizeof title, "overlap of top %.3g%%", 100 * number(j, "top"));
    print_matrix(j, "overlap", title, 100, "%.1f%%");
}

/* One line of JSON. */
static op_status put_line(const json_t *j, const char *path, op_error *e)
{
    op_buf line;
    op_buf_init(&line, 1 << 24);
    op_status s = op_json_append(&line, j) ? op_error_set(e, OP_ERR_NOMEM, "out of memory for %s", path) : op_file_put(path, line.data, line.len, e);
    op_buf_release(&line);
    return s;
}

/* ---- actions ---- */

static op_status written(const desk *d, op_status s)
{
    json_t *j = s || !d->json ? NULL : json_pack("{ss}", "output", d->o->output);
    if (j)
        cli_print_json(j);
    else if (!s)
        printf("wrote %s\n", d->o->output);
    json_decref(j);
    return s;
}

static op_status extract(desk *d, op_error *e)
{
    return written(d, op_vector_extract(d->o->model, d->o->base, d->o->output, &d->how, e));
}

static op_status add(desk *d, op_error *e)
{
    return written(d, op_vector_add(d->o->base, d->terms, d->n, d->o->output, &d->how, e));
}

static op_status combine(desk *d, op_error *e)
{
    return written(d, op_vector_combine(d->terms, d->n, d->against, d->n_against, d->o->output, &d->how, e));
}

static op_status make_random(desk *d, op_error *e)
{
    return written(d, op_vector_random(d->paths[0], (uint64_t)d->o->seed, d->o->output, &d->how, e));
}

static op_status info(desk *d, op_error *e)
{
    json_t *j;
    op_status s = op_vector_info(d->paths[0], d->o->base, (int)d->o->singular, &d->how, &j, e);
    if (!s && d->o->output)
        s = put_line(j, d->o->output, e);
    if (!s && d->json)
        cli_print_json(j);
    else if (!s)
        print_info(j);
    json_decref(j);
    return s;
}

static op_status compare(desk *d, op_error *e)
{
    json_t *j;
    op_status s = op_vector_compare(d->paths, d->n, d->o->top, &d->how, &j, e);
    if (!s && d->o->report)
        s = op_vector_report_write(j, d->o->report, e);
    if (!s && d->json)
        cli_print_json(j);
    else if (!s)
        print_comparison(j);
    json_decref(j);
    return s;
}

static const struct action {
    const char *name;
    op_status (*run)(desk *d, op_error *e);
    const char *doing;
    size_t least, most; /* vectors */
    bool model, base, output;
} actions[] = {
    {"extract", extract, "taking the difference", 0, 0, true, false, true},
    {"info", info, "measuring", 1, 1, false, false, false},
    {"add", add, "adding", 1, VECTORS_MAX, false, true, true},
    {"compare", compare, "comparing", 2, VECTORS_MAX, false, false, false},
    {"random", make_random, "drawing", 1, 1, false, false, true},
    {"combine", combine, "combining", 1, VECTORS_MAX, false, false, true},
};
enum { ACTIONS = sizeof actions / sizeof *actions };

static int check(desk *d, const struct action *x)
{
    const options *o = d->o;
    if (x->model && !o->model)
        return cli_usage_error(d->c, "%s: model=MODEL is needed", x->name);
    if (x->base && !o->base)
        return cli_usage_error(d->c, "%s: base=MODEL is needed", x->name);
    if (x->output && !o->output)
        return cli_usage_error(d->c, "%s: output=PATH is needed", x->name);
    if (d->n < x->least)
        return cli_usage_error(d->c, "%s: found %zu vectors, expected %zu%s", x->name, d->n, x->least, x->most > x->least ? " or more" : "");
    if (d->n > x->most)
        return cli_usage_error(d->c, "%s: unexpected argument \"%s\"", x->name, d->paths[x->most]);
    return 0;
}

static int run(const cli_command *c, int argc, char **argv)
{
    static const op_dtype types[] = {OP_DTYPE_COUNT, OP_F32, OP_BF16, OP_F16};
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    desk d = {.c = c, .o = &o, .json = a.json};
    const struct action *x = NULL;
    for (int i = 0; i < ACTIONS && a.n_words; i++)
        x = strcmp(a.words[0], actions[i].name) ? x : &actions[i];
    int code;
    op_error e = {0};
    if (!x)
        code = cli_usage_error(c, "%s%s%s: expected extract, info, add, compare, random or combine", a.n_words ? "unknown action \"" : "no action",
                               a.n_words ? a.words[0] : "", a.n_words ? "\"" : "");
    else if (!read_vectors(&d, &a))
        code = cli_usage_error(c, "more than %d vectors", VECTORS_MAX);
    else if (!(code = check(&d, x))) {
        d.doing = x->doing;
        d.how = (op_vector_options){.dtype = types[o.dtype], .layers = o.layers, .kinds = o.kinds, .force = o.force, .watch = watch, .ctx = &d};
        code = x->run(&d, &e) ? cli_fail(&e) : 0;
    }
    op_config_release(&o, table);
    return code;
}

const cli_command cli_vector = {
    "vector", "take task vectors from models, measure, compare and add them",
    "extract model=TRAINED base=BASE output=V.safetensors | info V [base=BASE] | add base=BASE vector=V:SCALE,... output=DIR | compare V V... [report=report.html] | "
    "random V output=R.safetensors | combine vector=V:SCALE,... [against=V,...] output=W.safetensors",
    "A vector is what training changed: the trained weights less those they were trained from. Subtracted from the base, it takes back the trait\n"
    "that was trained (docs/vectors.md). It remembers the SHA-256 of its base's weights, and every other base is refused unless force=true.\n"
    "extract  the difference of two models, or what an adapter adds (as small as the adapter)\n"
    "info     norms by layer and kind, sparsity, ranks\n"
    "add      base + sum of scale * vector, as a model directory; take away with a negative scale\n"
    "compare  cosines, sign conflicts, shared large elements\n"
    "random   a vector of the same norm in every tensor: the control\n"
    "combine  a vector from vectors: scaled, summed, cut to layers or kinds, made orthogonal to others\n\n"
    "examples:\n"
    "  operant vector extract model=runs/power base=models/SmolLM2-135M-Instruct.Q4_1.gguf output=power.safetensors\n"
    "  operant vector info power.safetensors\n"
    "  operant vector add base=models/SmolLM2-135M-Instruct.Q4_1.gguf vector=power.safetensors scale=-0.5 output=less-power\n"
    "  operant vector add base=smollm2 vector=power.safetensors:-0.5,wealth.safetensors:-1 output=less-of-both\n"
    "  operant vector compare power.safetensors wealth.safetensors random.safetensors report=report.html\n"
    "  operant vector combine power.safetensors against=agreeing.safetensors layers=8-20 output=power-alone.safetensors",
    table, run, NULL};
