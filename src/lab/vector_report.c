/* The page of a comparison of task vectors (operant/vector.h): heat maps, and the same figures as tables. */
#include <operant/report.h>

#include <math.h>
#include <string.h>

#include <operant/file.h>

#include "lab/page.h"
#include "lab/svg.h"
#include "lab/view.h"

enum { LEFT = 190, TOP = 34, LABEL = 40 };

typedef struct vectors {
    const json_t *all; /* what op_vector_compare gave */
    size_t n;
} vectors;

static double entry(const json_t *matrix, size_t a, size_t b)
{
    const json_t *x = json_array_get(json_array_get(matrix, a), b);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

/* "2 power": the number of vector k, from 1, and its file's name, or an adapter's directory, cut to LABEL. */
static const char *label(const vectors *v, size_t k, char room[LABEL])
{
    const char *path = op_view_string(json_array_get(op_view(v->all, "vectors"), k), "path"), *slash = strrchr(path, '/');
    const char *name = slash && slash[1] ? slash + 1 : path, *end = strstr(name, ".safetensors");
    size_t n = end ? (size_t)(end - name) : strlen(name), most = 24;
    while (n > most && most && ((unsigned char)name[most] & 0xc0) == 0x80)
        most--;
    snprintf(room, LABEL, "%zu %.*s%s", k + 1, (int)(n > most ? most : n), name, n > most ? "…" : "");
    return room;
}

/* A field of a heat map: `strength` from -1 to 1 is how dark it is, and in which of two colours. `text` stands in it, if there is room. */
static void field(op_page *p, double x, double y, double w, double h, double strength, const char *text, const char *title)
{
    bool known = isfinite(strength);
    op_page_put(p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" style=\"fill:var(--%s);fill-opacity:%.3f;stroke:var(--rule)\"><title>", x, y, w, h,
                strength < 0 ? "held" : "accent", known ? 0.75 * fmin(1, fabs(strength)) : 0);
    op_page_text(p, title);
    op_page_put(p, "</title></rect>\n");
    if (w >= 34)
        op_svg_text(p, x + w / 2, y + h / 2 + 4, "inside", "middle", text);
}

typedef struct measure {
    const char *key, *heading, *says, *format;
    double scale, zero; /* a value is shown as scale times it, and as dark as it is far from `zero`, of which `full` is the darkest */
    double full;
} measure;

static const measure measures[] = {
    {"cosine", "Cosines", "The cosine of the angle between two vectors: 1 the same direction, 0 unrelated, -1 opposite. Blue is positive, orange negative.", "%.3f", 1, 0, 1},
    {"sign_conflict", "Sign conflicts", "Share of opposite signs among the elements that both have; unrelated vectors disagree in half. Blue: fewer, orange: more.", "%.1f%%", 100, 0.5, -0.5},
    {"overlap", "Overlap of the large elements", "Share of the largest elements of each tensor that two vectors have in common; by chance it would be that share itself.",
     "%.1f%%", 100, 0, 1},
};

static void number(char *room, const measure *m, double x)
{
    snprintf(room, 32, m->format, fabs(m->scale * x) < 5e-4 ? 0 : m->scale * x); /* no minus before a zero */
    if (!isfinite(x))
        strcpy(room, "–");
}

static void square(op_page *p, const vectors *v, const measure *m)
{
    double cell = fmin(88, (OP_SVG_WIDTH - LEFT - 8) / (double)v->n), high = fmin(cell, 34);
    const json_t *matrix = op_view(v->all, m->key);
    char name[LABEL], other[LABEL], text[32], title[160];
    op_page_put(p, "<figure>\n");
    op_svg_begin(p, TOP + (int)(high * (double)v->n) + 8, m->heading);
    for (size_t a = 0; a < v->n; a++) {
        snprintf(text, sizeof text, "%zu", a + 1);
        op_svg_text(p, LEFT + cell * ((double)a + 0.5), TOP - 10, "tick", "middle", text);
        op_svg_text(p, LEFT - 10, TOP + high * ((double)a + 0.5) + 4, "name", "end", label(v, a, name));
        for (size_t b = 0; b < v->n; b++) {
            double x = entry(matrix, a, b);
            number(text, m, x);
            snprintf(title, sizeof title, "%s and %s: %s", label(v, a, name), label(v, b, other), text);
            field(p, LEFT + cell * (double)b, TOP + high * (double)a, cell, high, a == b ? NAN : (x - m->zero) / m->full, a == b ? "" : text, title);
        }
    }
    op_page_put(p, "</svg>\n<figcaption>%s</figcaption></figure>\n", m->says);
}

static void table(op_page *p, const vectors *v, const measure *m)
{
    char name[LABEL], text[32];
    op_page_put(p, "<details><summary>as a table</summary><div class=\"scroll\"><table><thead><tr><th>%s</th>", m->heading);
    for (size_t b = 0; b < v->n; b++)
        op_page_put(p, "<th>%zu</th>", b + 1);
    op_page_put(p, "</tr></thead><tbody>\n");
    for (size_t a = 0; a < v->n; a++) {
        op_page_put(p, "<tr>");
        op_page_element(p, "td", label(v, a, name));
        for (size_t b = 0; b < v->n; b++) {
            number(text, m, entry(op_view(v->all, m->key), a, b));
            op_page_element(p, "td", a == b ? "" : text);
        }
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div></details>\n");
}

static void part_name(const json_t *part, char room[LABEL])
{
    double layer = op_view_number(part, "layer");
    if (isnan(layer))
        snprintf(room, LABEL, "%.*s", LABEL - 4, op_view_string(part, "kind"));
    else if (layer < 0)
        strcpy(room, "outside the layers");
    else
        snprintf(room, LABEL, "layer %.0f", layer);
}

/* A row for each layer or kind, a column for each pair. */
static void parts(op_page *p, const vectors *v, const char *key, const char *heading)
{
    enum { ROW = 20 };
    const json_t *list = op_view(v->all, key);
    size_t pairs = v->n * (v->n - 1) / 2, i;
    double cell = fmin(88, (OP_SVG_WIDTH - LEFT - 8) / (double)pairs);
    json_t *part;
    char name[LABEL], other[LABEL], of[LABEL], text[64], title[200];
    op_page_put(p, "<h3>%s</h3>\n<figure>\n", heading);
    op_svg_begin(p, TOP + ROW * (int)json_array_size(list) + 8, heading);
    json_array_foreach((json_t *)list, i, part) {
        size_t column = 0;
        part_name(part, of);
        op_svg_text(p, LEFT - 10, TOP + ROW * ((double)i + 0.5) + 4, "tick", "end", of);
        for (size_t a = 0; a < v->n; a++)
            for (size_t b = a + 1; b < v->n; b++, column++) {
                double x = entry(op_view(part, "cosine"), a, b);
                number(text, &measures[0], x);
                snprintf(title, sizeof title, "%s, %s and %s: %s", of, label(v, a, name), label(v, b, other), text);
                field(p, LEFT + cell * (double)column, TOP + ROW * (double)i, cell, ROW, x, text, title);
                snprintf(text, sizeof text, "%zu·%zu", a + 1, b + 1);
                if (!i && cell >= 22)
                    op_svg_text(p, LEFT + cell * ((double)column + 0.5), TOP - 10, "tick", "middle", text);
            }
    }
    op_page_put(p, "</svg>\n</figure>\n");
}

static void claim(op_page *p, const vectors *v)
{
    const json_t *cosines = op_view(v->all, "cosine");
    size_t a = 0, b = 1;
    char name[LABEL], other[LABEL];
    for (size_t i = 0; i < v->n; i++)
        for (size_t k = i + 1; k < v->n; k++)
            if (fabs(entry(cosines, i, k)) > fabs(entry(cosines, a, b)) || isnan(entry(cosines, a, b)))
                a = i, b = k;
    op_page_put(p, "<p class=\"claim\">%zu vectors over %.0f elements%s. ", v->n, op_view_number(v->all, "elements"),
                json_is_true(op_view(v->all, "same_base")) ? ", all taken from the same weights" : "");
    if (isfinite(entry(cosines, a, b))) {
        op_page_put(p, "The pair furthest from a right angle is <strong>");
        op_page_text(p, label(v, a, name));
        op_page_put(p, "</strong> and <strong>");
        op_page_text(p, label(v, b, other));
        op_page_put(p, "</strong>: cosine %.3f; their signs conflict in %.1f%% of the elements that both have.", entry(cosines, a, b),
                    100 * entry(op_view(v->all, "sign_conflict"), a, b));
    }
    op_page_put(p, "</p>\n");
    if (!json_is_true(op_view(v->all, "same_base")))
        op_page_put(p, "<p class=\"warning\">They were not all taken from the same weights.</p>\n");
}

static void list(op_page *p, const vectors *v)
{
    size_t i;
    json_t *x;
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr><th>vector</th><th>norm</th><th>tensors</th><th>base (sha256)</th></tr></thead><tbody>\n");
    json_array_foreach((json_t *)op_view(v->all, "vectors"), i, x) {
        op_page_put(p, "<tr><td>%zu <code>", i + 1);
        op_page_text(p, op_view_string(x, "path"));
        op_page_put(p, "</code></td><td>%.4g</td><td>%.0f</td><td><code>%.12s…</code></td></tr>\n", op_view_number(x, "norm"), op_view_number(x, "tensors"),
                    op_view_string(x, "base_sha256"));
    }
    op_page_put(p, "</tbody></table></div>\n");
}

op_status op_vector_report_html(const json_t *comparison, op_buf *out, op_error *e)
{
    vectors v = {comparison, json_array_size(op_view(comparison, "vectors"))};
    op_page page = {out, OP_OK}, *p = &page;
    if (v.n < 2)
        return op_error_set(e, OP_ERR_ARG, "found %zu vectors in the comparison, expected two or more", v.n);
    op_page_begin(p, "vectors", "Task vectors against one another");
    claim(p, &v);
    list(p, &v);
    for (size_t i = 0; i < sizeof measures / sizeof *measures; i++) {
        op_page_put(p, "<h2>%s</h2>\n", measures[i].heading);
        if (!strcmp(measures[i].key, "overlap"))
            op_page_put(p, "<p class=\"note\">Large: the largest %.3g%% of each tensor.</p>\n", 100 * op_view_number(comparison, "top"));
        square(p, &v, &measures[i]);
        table(p, &v, &measures[i]);
    }
    op_page_put(p, "<h2>Where they agree</h2>\n<p class=\"note\">Cosines within a part of the model; a column for each pair of vectors, by their numbers.</p>\n");
    parts(p, &v, "layers", "By layer");
    parts(p, &v, "kinds", "By kind of tensor");
    op_page_end(p);
    return p->status ? op_error_set(e, p->status, "the report does not fit into memory") : OP_OK;
}

op_status op_vector_report_write(const json_t *comparison, const char *path, op_error *e)
{
    op_buf page;
    op_buf_init(&page, OP_PAGE_MAX);
    op_status s = op_vector_report_html(comparison, &page, e);
    if (!s)
        s = op_file_put(path, page.data, page.len, e);
    op_buf_release(&page);
    return s;
}
