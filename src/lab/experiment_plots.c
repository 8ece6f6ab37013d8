/* The plots of an experiment's report. Every seed is visible. */
#include <math.h>
#include <string.h>

#include "lab/experiment_parts.h"
#include "lab/parts.h"
#include "lab/svg.h"
#include "lab/view.h"

enum { LEFT = 200, RIGHT = 24, TOP = 8, ROW = 36, COLOURS = 8 };

typedef struct axis {
    double low, high, from, to; /* values, and where they lie on the page */
} axis;

static double at(const axis *a, double x)
{
    return a->from + (a->to - a->from) * (x - a->low) / (a->high - a->low);
}

static void widen(axis *a, double x)
{
    if (isfinite(x)) {
        a->low = fmin(a->low, x);
        a->high = fmax(a->high, x);
    }
}

/* Ends on round numbers; false: nothing to show. */
static bool settle(axis *a)
{
    if (!(a->low <= a->high))
        return false;
    if (a->low == a->high) {
        double room = a->low != 0 ? fabs(a->low) : 1;
        a->low -= room;
        a->high += room;
    }
    double step = op_svg_tick(a->high - a->low);
    a->low = step * floor(a->low / step);
    a->high = step * ceil(a->high / step);
    return true;
}

static void ticks(op_page *p, const axis *x, double top, double bottom)
{
    double step = op_svg_tick(x->high - x->low);
    for (double v = x->low; v <= x->high + step / 2; v += step) {
        char text[24];
        snprintf(text, sizeof text, "%.4g", fabs(v) < step / 2 ? 0 : v);
        op_svg_line(p, "grid", at(x, v), top, at(x, v), bottom);
        op_svg_text(p, at(x, v), bottom + 16, "tick", "middle", text);
    }
}

/* A mean with its interval. */
static void bar(op_page *p, const axis *x, const json_t *of, const char *mean, double y)
{
    double m = op_view_number(of, mean), low = op_view_number(of, "low"), high = op_view_number(of, "high");
    char text[100];
    if (isnan(m))
        return;
    snprintf(text, sizeof text, "mean %.4g (%.4g to %.4g)", m, low, high);
    op_page_put(p, "<g><title>%s</title>\n", text);
    if (!isnan(low))
        op_svg_line(p, "after-line", at(x, fmax(low, x->low)), y, at(x, fmin(high, x->high)), y);
    op_svg_line(p, "mean", at(x, m), y - 9, at(x, m), y + 9);
    op_page_put(p, "</g>\n");
}

static void seed_dot(op_page *p, const axis *x, const json_t *value, double y)
{
    char text[80];
    snprintf(text, sizeof text, "seed %.0f: %.4g", op_view_number(value, "seed"), op_view_number(value, "value"));
    op_page_put(p, "<circle class=\"seed\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>%s</title></circle>\n", at(x, op_view_number(value, "value")), y, text);
}

static void widen_all(axis *x, const json_t *values)
{
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)values, i, v)
        widen(x, op_view_number(v, "value"));
}

void op_plot_claims(op_page *p, const json_t *analysis)
{
    size_t i, k;
    json_t *claim, *value;
    json_array_foreach((json_t *)op_view(analysis, "claims"), i, claim) {
        axis x = {0, 0, LEFT, OP_SVG_WIDTH - RIGHT};
        widen_all(&x, op_view(claim, "differences"));
        widen(&x, op_view_number(claim, "low"));
        widen(&x, op_view_number(claim, "high"));
        if (!json_array_size(op_view(claim, "differences")) || !settle(&x))
            continue;
        char text[160];
        snprintf(text, sizeof text, "differences of claim %zu, seed by seed", i + 1);
        op_svg_begin(p, TOP + ROW + 44, text);
        ticks(p, &x, TOP, TOP + ROW);
        op_svg_line(p, "zero", at(&x, 0), TOP, at(&x, 0), TOP + ROW);
        op_svg_text(p, LEFT - 12, TOP + ROW / 2 + 4, "name", "end", op_view_string(claim, "measure"));
        bar(p, &x, claim, "difference", TOP + ROW / 2 + 8);
        json_array_foreach((json_t *)op_view(claim, "differences"), k, value)
            seed_dot(p, &x, value, TOP + ROW / 2 - 6);
        const char *against = op_view_string(claim, "against");
        snprintf(text, sizeof text, "%.50s less %.50s%s%.30s", op_view_string(claim, "arm"), *against ? against : "the named value",
                 *op_view_string(claim, "unit") ? ", " : "", op_view_string(claim, "unit"));
        op_svg_text(p, OP_SVG_WIDTH - RIGHT, TOP + ROW + 34, "tick", "end", text);
        op_page_put(p, "</svg>\n");
    }
}

static const json_t *measure_of(const json_t *arm, const json_t *measure)
{
    return op_list_find(op_view(arm, "measures"), "name", op_view_string(measure, "name"));
}

/* A line for each seed through the arms that have it. */
static void pairs(op_page *p, const json_t *analysis, const json_t *measure, const axis *x)
{
    size_t s, i, k;
    json_t *seed, *arm, *value;
    json_array_foreach((json_t *)op_view(analysis, "seeds"), s, seed) {
        op_page_put(p, "<polyline class=\"pair\" points=\"");
        json_array_foreach((json_t *)op_view(analysis, "arms"), i, arm)
            json_array_foreach((json_t *)op_view(measure_of(arm, measure), "values"), k, value)
                if (op_view_number(value, "seed") == json_number_value(seed))
                    op_page_put(p, "%.1f,%.1f ", at(x, op_view_number(value, "value")), TOP + ROW * ((double)i + 0.5) - 5);
        op_page_put(p, "\"/>\n");
    }
}

void op_plot_measure(op_page *p, const json_t *analysis, const json_t *measure)
{
    const json_t *arms = op_view(analysis, "arms");
    axis x = {INFINITY, -INFINITY, LEFT, OP_SVG_WIDTH - RIGHT};
    size_t i, k;
    json_t *arm, *value;
    json_array_foreach((json_t *)arms, i, arm)
        widen_all(&x, op_view(measure_of(arm, measure), "values"));
    if (!settle(&x))
        return;
    double bottom = TOP + ROW * (double)json_array_size(arms);
    op_svg_begin(p, (int)bottom + 44, op_view_string(measure, "says"));
    ticks(p, &x, TOP, bottom);
    pairs(p, analysis, measure, &x);
    json_array_foreach((json_t *)arms, i, arm) {
        double y = TOP + ROW * ((double)i + 0.5);
        op_svg_text(p, LEFT - 12, y + 4, "name", "end", op_view_string(arm, "name"));
        bar(p, &x, measure_of(arm, measure), "mean", y + 9);
        json_array_foreach((json_t *)op_view(measure_of(arm, measure), "values"), k, value)
            seed_dot(p, &x, value, y - 5);
    }
    char text[120];
    snprintf(text, sizeof text, "%.60s%s%.40s", op_view_string(measure, "says"), *op_view_string(measure, "unit") ? ", " : "", op_view_string(measure, "unit"));
    op_svg_text(p, OP_SVG_WIDTH - RIGHT, bottom + 34, "tick", "end", text);
    op_page_put(p, "</svg>\n");
}

/* ---- curves ---- */

static const json_t *lines_of(const json_t *arm, const json_t *curve)
{
    return op_view(op_list_find(op_view(arm, "curves"), "name", op_view_string(curve, "name")), "lines");
}

static double part(const json_t *point, size_t i)
{
    return json_number_value(json_array_get(point, i));
}

static void draw(op_page *p, const json_t *points, const axis *x, const axis *y, const char *class, size_t colour, const char *title)
{
    size_t i;
    json_t *point;
    op_page_put(p, "<polyline class=\"%s c%zu\" points=\"", class, colour % COLOURS);
    json_array_foreach((json_t *)points, i, point)
        op_page_put(p, "%.1f,%.1f ", at(x, part(point, 0)), at(y, part(point, 1)));
    op_page_put(p, "\"><title>");
    op_page_text(p, title);
    op_page_put(p, "</title></polyline>\n");
}

/* The mean over the seeds at each x that all of them have. */
static json_t *mean_line(const json_t *lines)
{
    json_t *out = json_array(), *point, *line, *other;
    size_t i, k, j;
    json_array_foreach((json_t *)op_view(json_array_get(lines, 0), "points"), i, point) {
        double sum = 0;
        size_t n = 0;
        json_array_foreach((json_t *)lines, k, line)
            json_array_foreach((json_t *)op_view(line, "points"), j, other)
                if (part(other, 0) == part(point, 0)) {
                    sum += part(other, 1);
                    n++;
                    break;
                }
        if (n == json_array_size(lines))
            json_array_append_new(out, json_pack("[ff]", part(point, 0), sum / (double)n));
    }
    return out;
}

static void levels(op_page *p, const axis *y)
{
    double step = op_svg_tick(y->high - y->low);
    for (double v = y->low; v <= y->high + step / 2; v += step) {
        char text[24];
        snprintf(text, sizeof text, "%.4g", fabs(v) < step / 2 ? 0 : v);
        op_svg_line(p, "grid", 56, at(y, v), OP_SVG_WIDTH - RIGHT, at(y, v));
        op_svg_text(p, 48, at(y, v) + 4, "tick", "end", text);
    }
}

void op_plot_curves(op_page *p, const json_t *analysis, const json_t *curve)
{
    enum { HEIGHT = 260, KEYS = 3 };
    const json_t *arms = op_view(analysis, "arms");
    axis x = {INFINITY, -INFINITY, 56, OP_SVG_WIDTH - RIGHT}, y = {INFINITY, -INFINITY, TOP + HEIGHT, TOP};
    size_t i, k, j, n = json_array_size(arms);
    json_t *arm, *line, *point;
    json_array_foreach((json_t *)arms, i, arm)
        json_array_foreach((json_t *)lines_of(arm, curve), k, line)
            json_array_foreach((json_t *)op_view(line, "points"), j, point) {
                widen(&x, part(point, 0));
                widen(&y, part(point, 1));
            }
    if (!settle(&x) || !settle(&y))
        return;
    op_svg_begin(p, TOP + HEIGHT + 48 + 20 * (int)((n + KEYS - 1) / KEYS), op_view_string(curve, "says"));
    levels(p, &y);
    ticks(p, &x, TOP, TOP + HEIGHT);
    op_svg_text(p, OP_SVG_WIDTH - RIGHT, TOP + HEIGHT + 34, "tick", "end", op_view_string(curve, "x_says"));
    json_array_foreach((json_t *)arms, i, arm) {
        const json_t *lines = lines_of(arm, curve);
        char title[120];
        json_array_foreach((json_t *)lines, k, line) {
            snprintf(title, sizeof title, "%.60s, seed %.0f", op_view_string(arm, "name"), op_view_number(line, "seed"));
            draw(p, op_view(line, "points"), &x, &y, "thin", i, title);
        }
    }
    json_array_foreach((json_t *)arms, i, arm) {
        json_t *mean = mean_line(lines_of(arm, curve));
        double left = 56 + 220 * (double)(i % KEYS), top = TOP + HEIGHT + 52 + 20 * (double)(i / KEYS);
        draw(p, mean, &x, &y, i < COLOURS ? "bold" : "bold dash", i, op_view_string(arm, "name"));
        json_decref(mean);
        op_page_put(p, "<polyline class=\"%s c%zu\" points=\"%.1f,%.1f %.1f,%.1f\"/>\n", i < COLOURS ? "bold" : "bold dash", i % COLOURS, left, top, left + 26, top);
        op_svg_text(p, left + 34, top + 4, "tick", "start", op_view_string(arm, "name"));
    }
    op_page_put(p, "</svg>\n");
}
