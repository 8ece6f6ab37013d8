/* The plots of a report, as SVG whose colours and type come from the page's style sheet. */
#include <math.h>
#include <string.h>

#include <operant/jsonl.h>

#include "base/mem.h"
#include "lab/page.h"
#include "lab/parts.h"
#include "lab/svg.h"
#include "lab/view.h"

enum { WIDTH = OP_SVG_WIDTH, LEFT = 232, RIGHT = 16, TOP = 30, PLOT = WIDTH - LEFT - RIGHT };

static void percent_axis(op_page *p, int height)
{
    for (int k = 0; k <= 100; k += 25) {
        char text[16];
        snprintf(text, sizeof text, "%d%%", k);
        double x = LEFT + PLOT * k / 100.0;
        op_svg_line(p, "grid", x, TOP, x, height);
        op_svg_text(p, x, height + 16, "tick", k == 100 ? "end" : "middle", text);
    }
}

/* ---- rates ---- */

static void rate_mark(op_page *p, const json_t *rate, const char *when, double y)
{
    double x = op_view_number(rate, "rate"), low = op_view_number(rate, "low"), high = op_view_number(rate, "high");
    if (isnan(x))
        return;
    char text[80], class[24];
    snprintf(text, sizeof text, "%s: %.0f%% (%.0f to %.0f)", when, 100 * x, 100 * low, 100 * high);
    snprintf(class, sizeof class, "%s-line", when);
    op_svg_line(p, class, LEFT + PLOT * low, y, LEFT + PLOT * high, y);
    op_svg_dot(p, when, LEFT + PLOT * x, y, text);
}

static void rate_legend(op_page *p, const char *when, double x, const char *text)
{
    char class[24];
    snprintf(class, sizeof class, "%s-line", when);
    op_svg_line(p, class, x, 12, x + 28, 12);
    op_svg_dot(p, when, x + 14, 12, text);
    op_svg_text(p, x + 36, 16, "tick", "start", text);
}

void op_plot_rates(op_page *p, const op_assay_results *r)
{
    enum { ROW = 34 };
    const json_t *classes = op_view(r->after, "classes");
    int height = TOP + ROW * (int)json_array_size(classes);
    op_svg_begin(p, height + 24, "share of right replies by class, with 95% intervals");
    percent_axis(p, height);
    if (r->before)
        rate_legend(p, "before", LEFT, "before");
    rate_legend(p, "after", LEFT + (r->before ? 110 : 0), r->before ? "after training" : "measured");
    size_t i;
    json_t *class;
    json_array_foreach((json_t *)classes, i, class) {
        double y = TOP + ROW * ((double)i + 0.5);
        char path[80];
        snprintf(path, sizeof path, "classes.%s.correct", op_view_string(class, "name"));
        op_svg_text(p, LEFT - 12, y - 1, "name", "end", op_class_meaning(op_view_string(class, "name")));
        op_svg_text(p, LEFT - 12, y + 12, "tick", "end", op_view_string(class, "right"));
        rate_mark(p, op_view(r->before, path), "before", y - (r->before ? 6 : 0));
        rate_mark(p, op_view(class, "correct"), "after", y + (r->before ? 6 : 0));
    }
    op_page_put(p, "</svg>\n");
}

/* ---- verdicts ---- */

static const char *const verdicts[] = {"asks", "answers", "declines", "silent"};

static void bar(op_page *p, const json_t *class, double y, double height, const char *when)
{
    double x = LEFT;
    for (int k = 0; k < 4; k++) {
        char path[24], text[80];
        snprintf(path, sizeof path, "%s.rate", verdicts[k]);
        double share = op_view_number(class, path), w = PLOT * share;
        if (!(share > 0))
            continue;
        snprintf(text, sizeof text, "%s: %s %.0f%%", when, verdicts[k], 100 * share);
        op_page_put(p, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>", verdicts[k], x, y, w, height);
        op_page_text(p, text);
        op_page_put(p, "</title></rect>\n");
        snprintf(text, sizeof text, "%s %.0f%%", verdicts[k], 100 * share);
        if (w >= 72)
            op_svg_text(p, x + w / 2, y + height / 2 + 4, "inside", "middle", text);
        x += w;
    }
}

void op_plot_verdicts(op_page *p, const op_assay_results *r)
{
    enum { BAR = 18 };
    const int row = r->before ? 2 * BAR + 14 : BAR + 12;
    const json_t *classes = op_view(r->after, "classes");
    int height = TOP + row * (int)json_array_size(classes);
    op_svg_begin(p, height + 24, "what the replies of each class did");
    percent_axis(p, height);
    for (int k = 0; k < 4; k++) {
        op_page_put(p, "<rect class=\"%s\" x=\"%d\" y=\"5\" width=\"14\" height=\"14\"/>\n", verdicts[k], LEFT + 100 * k);
        op_svg_text(p, LEFT + 100 * k + 20, 16, "tick", "start", verdicts[k]);
    }
    size_t i;
    json_t *class;
    json_array_foreach((json_t *)classes, i, class) {
        double y = TOP + row * (double)i + 6;
        const json_t *before = op_list_find(op_view(r->before, "classes"), "name", op_view_string(class, "name"));
        op_svg_text(p, LEFT - 56, y + 13, "name", "end", op_class_meaning(op_view_string(class, "name")));
        if (r->before) {
            op_svg_text(p, LEFT - 8, y + 13, "tick", "end", "before");
            op_svg_text(p, LEFT - 8, y + BAR + 15, "tick", "end", "after");
            bar(p, before, y, BAR, "before");
        }
        bar(p, class, y + (r->before ? BAR + 2 : 0), BAR, r->before ? "after" : "measured");
    }
    op_page_put(p, "</svg>\n");
}

/* ---- loss ---- */

typedef struct points {
    double *x, *y;
    size_t n, cap;
} points;

typedef struct curves {
    points train, held;
} curves;

static op_status add_point(points *s, double x, double y)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 256;
        double *xs = op_realloc(s->x, cap * sizeof *xs);
        s->x = xs ? xs : s->x;
        double *ys = op_realloc(s->y, cap * sizeof *ys);
        s->y = ys ? ys : s->y;
        if (!xs || !ys)
            return OP_ERR_NOMEM;
        s->cap = cap;
    }
    s->x[s->n] = x;
    s->y[s->n++] = y;
    return OP_OK;
}

static op_status read_metric(void *ctx, json_t *object, int row, op_error *e)
{
    (void)row;
    curves *c = ctx;
    double step = op_view_number(object, "step"), loss = op_view_number(object, "loss"), held = op_view_number(object, "eval_loss");
    op_status status = isnan(step) || isnan(loss) ? OP_OK : add_point(&c->train, step, loss);
    if (!status && !isnan(step) && !isnan(held))
        status = add_point(&c->held, step, held);
    return status ? op_error_set(e, status, "out of memory for the loss plot") : OP_OK;
}

typedef struct frame {
    double x_max, y_min, y_max;
} frame;

enum { LOSS_LEFT = 56, LOSS_HEIGHT = 250 };

static double to_x(const frame *f, double x)
{
    return LOSS_LEFT + (WIDTH - RIGHT - LOSS_LEFT) * x / f->x_max;
}

static double to_y(const frame *f, double y)
{
    return TOP + LOSS_HEIGHT * (f->y_max - y) / (f->y_max - f->y_min);
}

static frame frame_of(const curves *c)
{
    frame f = {1, INFINITY, -INFINITY};
    for (int k = 0; k < 2; k++) {
        const points *s = k ? &c->held : &c->train;
        for (size_t i = 0; i < s->n; i++) {
            f.x_max = fmax(f.x_max, s->x[i]);
            f.y_min = fmin(f.y_min, s->y[i]);
            f.y_max = fmax(f.y_max, s->y[i]);
        }
    }
    double step = op_svg_tick(fmax(f.y_max - f.y_min, 1e-3));
    f.y_min = step * floor(f.y_min / step);
    f.y_max = step * ceil(f.y_max / step);
    f.y_max += f.y_max == f.y_min ? step : 0;
    return f;
}

static void loss_axes(op_page *p, const frame *f)
{
    char text[24];
    double step = op_svg_tick(f->y_max - f->y_min);
    for (double y = f->y_min; y <= f->y_max + step / 2; y += step) {
        snprintf(text, sizeof text, "%.3g", fabs(y) < step / 2 ? 0 : y);
        op_svg_line(p, "grid", LOSS_LEFT, to_y(f, y), WIDTH - RIGHT, to_y(f, y));
        op_svg_text(p, LOSS_LEFT - 8, to_y(f, y) + 4, "tick", "end", text);
    }
    step = fmax(op_svg_tick(f->x_max), 1);
    for (double x = 0; x <= f->x_max; x += step) {
        snprintf(text, sizeof text, "%.0f", x);
        op_svg_text(p, to_x(f, x), TOP + LOSS_HEIGHT + 18, "tick", "middle", text);
    }
    op_svg_text(p, WIDTH - RIGHT, TOP + LOSS_HEIGHT + 36, "tick", "end", "step");
}

static void curve(op_page *p, const frame *f, const points *s, const char *class, double smoothing)
{
    op_page_put(p, "<polyline class=\"%s\" points=\"", class);
    double y = s->n ? s->y[0] : 0;
    for (size_t i = 0; i < s->n; i++) {
        y = smoothing * y + (1 - smoothing) * s->y[i];
        op_page_put(p, "%.1f,%.1f ", to_x(f, s->x[i]), to_y(f, y));
    }
    op_page_put(p, "\"/>\n");
}

static void draw_loss(op_page *p, const curves *c)
{
    frame f = frame_of(c);
    op_svg_begin(p, TOP + LOSS_HEIGHT + 44, "training loss and held-out loss by step");
    loss_axes(p, &f);
    curve(p, &f, &c->train, "loss-raw", 0);
    curve(p, &f, &c->train, "loss", 0.9);
    curve(p, &f, &c->held, "held", 0);
    for (size_t i = 0; i < c->held.n; i++) {
        char text[64];
        snprintf(text, sizeof text, "held-out loss %.4f at step %.0f", c->held.y[i], c->held.x[i]);
        op_svg_dot(p, "held-dot", to_x(&f, c->held.x[i]), to_y(&f, c->held.y[i]), text);
    }
    op_svg_line(p, "loss", LOSS_LEFT + 4, 12, LOSS_LEFT + 32, 12);
    op_svg_text(p, LOSS_LEFT + 40, 16, "tick", "start", "training loss (thin: each line of the log; bold: smoothed)");
    if (c->held.n) {
        op_svg_line(p, "held", LOSS_LEFT + 404, 12, LOSS_LEFT + 432, 12);
        op_svg_dot(p, "held-dot", LOSS_LEFT + 418, 12, "held-out loss");
        op_svg_text(p, LOSS_LEFT + 440, 16, "tick", "start", "held-out loss");
    }
    op_page_put(p, "</svg>\n");
}

op_status op_plot_loss(op_page *p, const char *metrics, op_error *e)
{
    curves c = {0};
    op_status status = op_json_lines(metrics, read_metric, &c, e);
    if (!status && c.train.n)
        draw_loss(p, &c);
    op_free(c.train.x);
    op_free(c.train.y);
    op_free(c.held.x);
    op_free(c.held.y);
    return status;
}
