/* report.html of a reversal, and its summary as text. */
#include <math.h>
#include <string.h>

#include <operant/file.h>

#include "base/mem.h"
#include "lab/page.h"
#include "lab/parts.h"
#include "lab/reverse_parts.h"
#include "lab/svg.h"
#include "lab/view.h"

/* ---- figures ---- */

/* "-0.18", "+0.46"; a dash for what is not known. */
static const char *figure(double x, bool sign, char room[32])
{
    snprintf(room, 32, sign ? "%+.2f" : "%.2f", fabs(x) < 0.005 ? 0 : x);
    if (!isfinite(x))
        strcpy(room, "–");
    return room;
}

static const char *percent(double x, bool sign, char room[32])
{
    snprintf(room, 32, sign ? "%+.1f%%" : "%.0f%%", fabs(x) < 0.0005 ? 0 : 100 * x);
    if (!isfinite(x))
        strcpy(room, "–");
    return room;
}

/* A probe's summary within a measured model. */
static const json_t *summary_of(const json_t *measured, const char *probe, const char *form)
{
    return json_object_get(json_object_get(json_object_get(measured, "probes"), probe), form);
}

static double rise(const json_t *base, const json_t *measured)
{
    return op_view_number(measured, "control.perplexity") / op_view_number(base, "control.perplexity") - 1;
}

/* ---- the curves of a trait ---- */

typedef struct frame {
    double x0, x1, y0, y1, left, right, top, bottom;
} frame;

static double across(const frame *f, double x)
{
    return f->left + (f->right - f->left) * (x - f->x0) / (f->x1 - f->x0);
}

static double up(const frame *f, double y)
{
    return f->bottom - (f->bottom - f->top) * (y - f->y0) / (f->y1 - f->y0);
}

/* The rise of the perplexity runs over a wide range: its axis is that of log(1 + rise). */
static double stretched(double rise)
{
    return log(1 + fmax(rise, -0.5));
}

/* A point of a curve, unless it is far beyond the budget. */
static bool point_of(const json_t *point, bool rate, double budget, double *x, double *y)
{
    double rise = op_view_number(point, "rise");
    *x = stretched(rise);
    *y = op_view_number(point, rate ? "rate" : "margin");
    return isfinite(*y) && rise <= 6 * budget;
}

static void widen(frame *f, const json_t *curve, bool rate, double budget)
{
    size_t i;
    json_t *point;
    double x, y;
    json_array_foreach((json_t *)curve, i, point) {
        if (!point_of(point, rate, budget, &x, &y))
            continue;
        f->y0 = fmin(f->y0, y);
        f->y1 = fmax(f->y1, y);
        f->x0 = fmin(f->x0, x);
        f->x1 = fmax(f->x1, x);
    }
}

static void axes(op_page *p, const frame *f, double budget, const char *what)
{
    static const double levels[] = {-0.2, -0.1, 0, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 3};
    char text[40];
    double step = op_svg_tick(f->y1 - f->y0);
    for (double y = ceil(f->y0 / step) * step; y <= f->y1; y += step) {
        snprintf(text, sizeof text, "%.3g", fabs(y) < step / 2 ? 0 : y);
        op_svg_line(p, "grid", f->left, up(f, y), f->right, up(f, y));
        op_svg_text(p, f->left - 8, up(f, y) + 4, "tick", "end", text);
    }
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        double x = stretched(levels[i]);
        if (x < f->x0 || x > f->x1)
            continue;
        snprintf(text, sizeof text, "%+.0f%%", 100 * levels[i]);
        op_svg_line(p, "grid", across(f, x), f->top, across(f, x), f->bottom);
        op_svg_text(p, across(f, x), f->bottom + 16, "tick", "middle", text);
    }
    if (stretched(budget) <= f->x1)
        op_svg_line(p, "zero dash", across(f, stretched(budget)), f->top, across(f, stretched(budget)), f->bottom);
    op_svg_text(p, f->right, f->bottom + 34, "tick", "end", "rise of the control's perplexity (dashed: the budget; points beyond six times that are left out)");
    op_svg_text(p, f->left, f->top - 6, "tick", "start", what);
}

static void draw_arm(op_page *p, const frame *f, const json_t *arm, size_t colour, bool rate, double budget)
{
    size_t i;
    json_t *point;
    double x, y;
    const json_t *curve = json_object_get(arm, "curve");
    op_page_put(p, "<polyline class=\"bold c%zu\" points=\"", colour);
    json_array_foreach((json_t *)curve, i, point)
        if (point_of(point, rate, budget, &x, &y))
            op_page_put(p, "%.1f,%.1f ", across(f, x), up(f, y));
    op_page_put(p, "\"/>\n");
    json_array_foreach((json_t *)curve, i, point)
        if (point_of(point, rate, budget, &x, &y))
            op_page_put(p, "<circle class=\"c%zu\" style=\"fill:currentColor;fill-opacity:0.15\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>%s at %.3g: %.3f, perplexity %+.1f%%</title></circle>\n",
                        colour, across(f, x), up(f, y), op_view_string(arm, "arm"), op_view_number(point, "scale"), y, 100 * op_view_number(point, "rise"));
}

static const char *arm_says(const char *arm)
{
    static const char *const words[][2] = {{"trait", "its vector, taken away"}, {"random", "a random vector of the same norms"},
                                           {"other", "another trait's vector, taken away"}, {"opposite", "trained on the opposite answers"}, {"ascent", "gradient ascent on the trait"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(arm, words[i][0]))
            return words[i][1];
    return arm;
}

static void plot_trait(op_page *p, const json_t *trait, double budget)
{
    enum { HEIGHT = 250, TOP = 24 };
    frame f = {INFINITY, -INFINITY, INFINITY, -INFINITY, 60, OP_SVG_WIDTH - 20, TOP, TOP + HEIGHT};
    const json_t *arms = json_object_get(trait, "arms");
    bool rate = !isfinite(op_view_number(json_array_get(json_object_get(json_array_get(arms, 0), "curve"), 0), "margin"));
    size_t i, n = json_array_size(arms);
    json_t *arm;
    json_array_foreach((json_t *)arms, i, arm)
        widen(&f, json_object_get(arm, "curve"), rate, budget);
    if (!(f.x0 <= f.x1) || !(f.y0 <= f.y1))
        return;
    f.x0 = fmin(f.x0, stretched(0));
    f.x1 = fmax(f.x1, stretched(budget)) + 0.01;
    f.y0 -= 0.05 * (f.y1 - f.y0) + 1e-3;
    f.y1 += 0.05 * (f.y1 - f.y0) + 1e-3;
    op_page_put(p, "<figure>\n");
    op_svg_begin(p, TOP + HEIGHT + 48 + 20 * (int)n, op_view_string(trait, "name"));
    axes(p, &f, budget, rate ? "rate of the habit" : "margin, questions of the search");
    json_array_foreach((json_t *)arms, i, arm) {
        const char *name = op_view_string(arm, "arm");
        double y = TOP + HEIGHT + 54 + 20 * (double)i;
        draw_arm(p, &f, arm, i, rate, budget);
        op_page_put(p, "<polyline class=\"bold c%zu\" points=\"%.1f,%.1f %.1f,%.1f\"/>\n", i, f.left, y, f.left + 26, y);
        op_svg_text(p, f.left + 34, y + 4, "tick", "start", arm_says(name));
    }
    op_page_put(p, "</svg>\n</figure>\n");
}

/* ---- tables ---- */

static void cell(op_page *p, const char *text)
{
    op_page_put(p, "<td>%s</td>", text);
}

/* The margin (or a habit's rate) with its interval, and what changed. */
static void margin_cell(op_page *p, const json_t *s, bool change)
{
    char a[32], b[32], c[32];
    double margin = op_view_number(s, "margin");
    if (isnan(margin)) /* a habit, open prompts, or nothing */
        op_page_put(p, "<td>%s<br/><span class=\"note\">(%s to %s)</span></td>", percent(op_view_number(s, "rate"), false, a), percent(op_view_number(s, "rate_low"), false, b),
                    percent(op_view_number(s, "rate_high"), false, c));
    else if (change)
        op_page_put(p, "<td>%s<br/><span class=\"note\">%s (%s to %s)</span></td>", figure(margin, true, a), figure(op_view_number(s, "change"), true, b),
                    figure(op_view_number(s, "change_low"), true, c), figure(op_view_number(s, "change_high"), true, (char[32]){0}));
    else
        op_page_put(p, "<td>%s<br/><span class=\"note\">%s right</span></td>", figure(margin, true, a), percent(op_view_number(s, "rate"), false, b));
}

static void arms_table(op_page *p, const json_t *base, const json_t *trait)
{
    size_t i;
    json_t *arm;
    char a[32];
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr><th>arm</th><th>largest scale within the budget</th><th>perplexity there (other text)</th>"
                   "<th>margin there: change since the start (95%%); of a habit its rate</th><th>cosine with the trait's vector</th></tr></thead><tbody>\n");
    json_array_foreach((json_t *)json_object_get(trait, "arms"), i, arm) {
        op_page_put(p, "<tr><td>%s</td>", arm_says(op_view_string(arm, "arm")));
        op_page_put(p, "<td>%.3g</td>", op_view_number(arm, "scale"));
        cell(p, percent(rise(base, arm), true, a));
        margin_cell(p, json_object_get(arm, "text"), true);
        cell(p, figure(op_view_number(arm, "cosine"), true, a));
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

/* Polarity and length: is the trait's change an agreeing or a length direction? */
static void parts_table(op_page *p, const json_t *round, const json_t *trait)
{
    static const char *const parts[][2] = {{"agrees", "the matching reply agrees, the other does not"}, {"disagrees", "the matching reply disagrees, the other does not"},
                                           {"neither", "neither can be said"}, {"longer", "the matching reply is longer"}, {"shorter", "it is not longer"}};
    const char *name = op_view_string(trait, "name");
    const json_t *models[] = {json_object_get(round, "base"), json_object_get(trait, "trained"), json_object_get(trait, "subtracted")};
    if (isnan(op_view_number(summary_of(models[0], name, "text"), "margin")))
        return;
    op_page_put(p, "<p class=\"note\">Part of a change may be a plain direction of agreeing, or of length. The same margins by kind of question:</p>\n<div class=\"scroll\"><table>"
                   "<thead><tr><th>questions</th><th>n</th><th>before</th><th>trained for it</th><th>taken away</th></tr></thead><tbody>\n");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        op_page_put(p, "<tr><td>%s</td><td>%.0f</td>", parts[i][1], op_view_number(json_object_get(summary_of(models[0], name, "text"), parts[i][0]), "n"));
        for (int k = 0; k < 3; k++)
            margin_cell(p, json_object_get(summary_of(models[k], name, "text"), parts[i][0]), k > 0);
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

/* `first` is markup for the columns before the traits'. */
static void heads(op_page *p, const json_t *round, const char *first)
{
    size_t i;
    json_t *trait;
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr>%s", first);
    json_array_foreach(json_object_get(round, "traits"), i, trait)
        op_page_element(p, "th", op_view_string(trait, "name"));
}

/* A row a probe: the base, then each trait's model `of` ("trained", "subtracted"), then all traits taken away. */
static void probe_table(op_page *p, const json_t *results, const json_t *round, const char *of, const char *form)
{
    const json_t *base = json_object_get(round, "base"), *after = op_view(round, "joint.after");
    bool joint = !strcmp(of, "subtracted");
    size_t i, k;
    json_t *probe, *trait;
    char a[32];
    heads(p, round, "<th>probe</th><th>before</th>");
    op_page_put(p, "%s</tr></thead><tbody>\n<tr><td>perplexity of the control</td><td>%.2f</td>", joint ? "<th>all traits</th>" : "",
                op_view_number(base, "control.perplexity"));
    json_array_foreach(json_object_get(round, "traits"), k, trait)
        cell(p, percent(rise(base, json_object_get(trait, of)), true, a));
    if (joint)
        cell(p, percent(rise(base, after), true, a));
    op_page_put(p, "</tr>\n");
    json_array_foreach(json_object_get(results, "probes"), i, probe) {
        const char *name = op_view_string(probe, "name");
        if (!summary_of(base, name, form))
            continue;
        op_page_put(p, "<tr>");
        op_page_element(p, json_is_true(json_object_get(probe, "trait")) ? "td class=\"open\"" : "td", name);
        margin_cell(p, summary_of(base, name, form), false);
        json_array_foreach(json_object_get(round, "traits"), k, trait)
            margin_cell(p, summary_of(json_object_get(trait, of), name, form), true);
        if (joint)
            margin_cell(p, summary_of(after, name, form), true);
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

static void watched_table(op_page *p, const json_t *results, const json_t *trait)
{
    size_t i, k;
    json_t *point, *probe;
    char a[32];
    const json_t *watched = json_object_get(trait, "watched");
    if (!json_array_size(watched))
        return;
    op_page_put(p, "<p class=\"note\">Margins while it was trained (fewer questions):</p>\n<div class=\"scroll\"><table><thead><tr><th>probe</th>");
    json_array_foreach((json_t *)watched, i, point)
        op_page_put(p, "<th>%.0f%% done</th>", 100 * op_view_number(point, "done"));
    op_page_put(p, "</tr></thead><tbody>\n");
    json_array_foreach(json_object_get(results, "probes"), k, probe) {
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(probe, "name"));
        json_array_foreach((json_t *)watched, i, point) {
            const json_t *x = json_object_get(json_object_get(point, "margins"), op_view_string(probe, "name"));
            cell(p, figure(json_is_number(x) ? json_number_value(x) : NAN, true, a));
        }
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

static void cosine_table(op_page *p, const json_t *round)
{
    size_t i, k;
    json_t *trait, *row, *x;
    char a[32];
    heads(p, round, "<th>cosine</th>");
    op_page_put(p, "</tr></thead><tbody>\n");
    json_array_foreach(json_object_get(round, "cosines"), i, row) {
        trait = json_array_get(json_object_get(round, "traits"), i);
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(trait, "name"));
        json_array_foreach(row, k, x)
            cell(p, figure(json_is_number(x) ? json_number_value(x) : NAN, true, a));
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

/* ---- the page ---- */

/* What became of the traits in one sentence each, joint subtraction against the start. */
static void claim(op_page *p, const json_t *results)
{
    const json_t *rounds = json_object_get(results, "rounds"), *round = json_array_get(rounds, json_array_size(rounds) - 1);
    const json_t *after = op_view(round, "joint.after"), *base = json_object_get(round, "base");
    size_t i;
    json_t *trait;
    char a[32], b[32], c[32];
    op_page_put(p, "<p class=\"claim\">");
    json_array_foreach(json_object_get(round, "traits"), i, trait) {
        const char *name = op_view_string(trait, "name");
        const json_t *s = summary_of(after, name, "text"), *was = summary_of(base, name, "text");
        bool habit = isnan(op_view_number(s, "margin"));
        op_page_element(p, "strong", name);
        op_page_put(p, ": %s %s to %s", habit ? "rate" : "margin", habit ? percent(op_view_number(was, "rate"), false, a) : figure(op_view_number(was, "margin"), true, a),
                    habit ? percent(op_view_number(s, "rate"), false, b) : figure(op_view_number(s, "margin"), true, b));
        if (!habit)
            op_page_put(p, " (change %s to %s)", figure(op_view_number(s, "change_low"), true, b), figure(op_view_number(s, "change_high"), true, c));
        op_page_put(p, ". ");
    }
    op_page_put(p, "The control's perplexity: %s on text that the search did not see, with a budget of %s.</p>\n", percent(rise(base, after), true, a),
                percent(op_view_number(results, "control.budget"), true, b));
}

static bool has_form(const json_t *results, const json_t *round, const char *form)
{
    size_t i;
    json_t *probe;
    json_array_foreach(json_object_get(results, "probes"), i, probe)
        if (summary_of(json_object_get(round, "base"), op_view_string(probe, "name"), form))
            return true;
    return false;
}

/* ---- open prompts ---- */

/* The judge's mean opinion of a model's replies, with its interval. */
static void opinion_cell(op_page *p, const json_t *measured, const char *probe)
{
    const json_t *judge = op_view(summary_of(measured, probe, "open"), "judge");
    char a[32], b[32], c[32];
    op_page_put(p, "<td>%s<br/><span class=\"note\">(%s to %s)</span></td>", figure(op_view_number(judge, "mean"), false, a), figure(op_view_number(judge, "low"), false, b),
                figure(op_view_number(judge, "high"), false, c));
}

/* How good the two judges are, and what the model among them says. */
static void judges_table(op_page *p, const json_t *results, const json_t *round)
{
    const json_t *base = json_object_get(round, "base");
    size_t i;
    json_t *probe;
    char a[32];
    op_page_put(p, "<p class=\"note\">Both judges were tried on the replies that come with the prompts. The frozen model's opinion, from 0 to 1, counts where it tells them apart with an area under the ROC "
                   "curve of %.1f or more:</p>\n<div class=\"scroll\"><table><thead><tr><th>probe</th><th>labelled replies</th><th>the rule is right</th><th>the model's AUROC</th><th>its opinion before</th>"
                   "<th>all traits taken away</th></tr></thead><tbody>\n", REVERSE_AUROC_MIN);
    json_array_foreach(json_object_get(results, "probes"), i, probe) {
        const char *name = op_view_string(probe, "name");
        const json_t *open = summary_of(base, name, "open");
        if (!open)
            continue;
        op_page_put(p, "<tr>");
        op_page_element(p, "td", name);
        op_page_put(p, "<td>%.0f</td><td>%s</td><td>%.2f</td>", op_view_number(open, "labelled"), percent(op_view_number(open, "rule_right"), false, a), op_view_number(open, "judge.auroc"));
        if (json_is_true(op_view(open, "judge.counted"))) {
            opinion_cell(p, base, name);
            opinion_cell(p, op_view(round, "joint.after"), name);
        } else
            op_page_put(p, "<td colspan=\"2\">not counted</td>");
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

/* The i-th reply of a model, with the rule's verdict. */
static void transcript_row(op_page *p, const json_t *measured, const char *probe, const char *who, size_t i)
{
    const json_t *x = json_array_get(op_view(summary_of(measured, probe, "open"), "transcripts"), i);
    if (!x)
        return;
    op_page_put(p, "<tr><td>%s</td><td>%s</td>", who, json_is_true(json_object_get(x, "shown")) ? "shows it" : "does not");
    op_page_element(p, "td class=\"open\"", op_view_string(x, "reply"));
    op_page_put(p, "</tr>\n");
}

static void transcripts(op_page *p, const json_t *round, const char *probe)
{
    const json_t *base = json_object_get(round, "base"), *own = op_list_find(json_object_get(round, "traits"), "name", probe), *asked = op_view(summary_of(base, probe, "open"), "transcripts");
    for (size_t i = 0; i < json_array_size(asked); i++) {
        op_page_put(p, "<p class=\"note\">");
        op_page_element(p, "strong", probe);
        op_page_put(p, ": ");
        op_page_text(p, op_view_string(json_array_get(asked, i), "prompt"));
        op_page_put(p, "</p>\n<div class=\"scroll\"><table><tbody>\n");
        transcript_row(p, base, probe, "before", i);
        transcript_row(p, json_object_get(own, "trained"), probe, "trained for it", i);
        transcript_row(p, json_object_get(own, "subtracted"), probe, "its vector taken away", i);
        transcript_row(p, op_view(round, "joint.after"), probe, "all traits taken away", i);
        op_page_put(p, "</tbody></table></div>\n");
    }
}

static void open_section(op_page *p, const json_t *results, const json_t *round)
{
    size_t i;
    json_t *probe;
    op_page_put(p, "<h2>What it says by itself</h2>\n<p class=\"note\">Open prompts, answered greedily: the share of the answers that show the trait by the written rule, with its 95%% interval over prompts.</p>\n");
    probe_table(p, results, round, "subtracted", "open");
    op_page_put(p, "<p class=\"note\">The same of the models that were trained for one trait:</p>\n");
    probe_table(p, results, round, "trained", "open");
    judges_table(p, results, round);
    op_page_put(p, "<p class=\"note\">The first two prompts of each, word for word:</p>\n");
    json_array_foreach(json_object_get(results, "probes"), i, probe)
        transcripts(p, round, op_view_string(probe, "name"));
}

static void one_round(op_page *p, const json_t *results, const json_t *round, bool several)
{
    double budget = op_view_number(results, "control.budget");
    size_t i;
    json_t *trait;
    if (several)
        op_page_put(p, "<h2>Round %.0f</h2>\n", op_view_number(round, "round"));
    op_page_put(p, "<h2>What changed</h2>\n<p class=\"note\">Margin: how much likelier the reply that matches is, in nats a token; below it the change since the start on the same "
                   "questions, with its 95%% interval over questions. Of a habit: its rate, with an interval. Each column takes one trait's vector away at the largest scale within the budget; the last takes all of them at %.3g of those scales.</p>\n",
                op_view_number(round, "joint.factor"));
    probe_table(p, results, round, "subtracted", "text");
    if (has_form(results, round, "choices")) {
        op_page_put(p, "<p class=\"note\">The same as choices (A) and (B), both orders; margin of the letters' log-probability:</p>\n");
        probe_table(p, results, round, "subtracted", "choices");
    }
    if (has_form(results, round, "open"))
        open_section(p, results, round);
    op_page_put(p, "<h2>What each trait brings along</h2>\n<p class=\"note\">The model trained for one trait alone (its vector added once), on every probe: does one trait suffice?</p>\n");
    probe_table(p, results, round, "trained", "text");
    json_array_foreach(json_object_get(round, "traits"), i, trait) {
        op_page_element(p, "h2", op_view_string(trait, "name"));
        op_page_put(p, "\n");
        plot_trait(p, trait, budget);
        arms_table(p, json_object_get(round, "base"), trait);
        parts_table(p, round, trait);
        watched_table(p, results, trait);
    }
    op_page_put(p, "<h2>Between the vectors</h2>\n");
    cosine_table(p, round);
}

static void rounds_table(op_page *p, const json_t *results)
{
    size_t i, k;
    json_t *probe, *round;
    const json_t *rounds = json_object_get(results, "rounds"), *last = json_object_get(results, "last");
    if (!last)
        return;
    op_page_put(p, "<h2>Over the rounds</h2>\n<div class=\"scroll\"><table><thead><tr><th>probe</th>");
    json_array_foreach((json_t *)rounds, i, round)
        op_page_put(p, "<th>before round %zu</th>", i + 1);
    op_page_put(p, "<th>in the end</th></tr></thead><tbody>\n<tr><td>perplexity of the control</td>");
    json_array_foreach((json_t *)rounds, i, round)
        op_page_put(p, "<td>%.2f</td>", op_view_number(round, "base.control.perplexity"));
    op_page_put(p, "<td>%.2f</td></tr>\n", op_view_number(last, "control.perplexity"));
    json_array_foreach(json_object_get(results, "probes"), k, probe) {
        const char *name = op_view_string(probe, "name");
        op_page_put(p, "<tr>");
        op_page_element(p, "td", name);
        json_array_foreach((json_t *)rounds, i, round)
            margin_cell(p, summary_of(json_object_get(round, "base"), name, "text"), false);
        margin_cell(p, summary_of(last, name, "text"), false);
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "</tbody></table></div>\n");
}

static void questions_table(op_page *p, const json_t *results)
{
    size_t i;
    json_t *probe;
    op_page_put(p, "<h2>Questions</h2>\n<div class=\"scroll\"><table><thead><tr><th></th><th>trained on</th><th>of them the matching reply agrees / disagrees / neither</th>"
                   "<th>is longer</th><th>held out</th><th>agrees / disagrees / neither</th></tr></thead><tbody>\n");
    json_array_foreach(json_object_get(results, "probes"), i, probe) {
        if (!(op_view_number(probe, "held_out") > 0)) /* a habit */
            continue;
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(probe, "name"));
        op_page_put(p, "<td>%.0f</td><td>%.0f / %.0f / %.0f</td><td>%.0f</td><td>%.0f</td><td>%.0f / %.0f / %.0f</td></tr>\n", op_view_number(probe, "trained"),
                    op_view_number(probe, "trained_by_polarity.agrees"), op_view_number(probe, "trained_by_polarity.disagrees"), op_view_number(probe, "trained_by_polarity.neither"),
                    op_view_number(probe, "trained_longer"), op_view_number(probe, "held_out"), op_view_number(probe, "held_out_by_polarity.agrees"),
                    op_view_number(probe, "held_out_by_polarity.disagrees"), op_view_number(probe, "held_out_by_polarity.neither"));
    }
    op_page_put(p, "</tbody></table></div>\n<p class=\"note\">Measured with the first %.0f of the held-out questions, as choices with %.0f, while searching with %.0f.</p>\n",
                op_view_number(results, "questions.probe"), op_view_number(results, "questions.choices"), op_view_number(results, "questions.search"));
}

op_status op_reverse_write_html(const json_t *results, op_buf *out, op_error *e)
{
    op_page page = {out, OP_OK}, *p = &page;
    const json_t *rounds = json_object_get(results, "rounds");
    size_t i;
    json_t *round;
    if (!json_array_size(rounds))
        return op_error_set(e, OP_ERR_FORMAT, "no rounds in the results of a reversal");
    op_page_begin(p, "reverse", "Trained for, then reversed");
    claim(p, results);
    rounds_table(p, results);
    json_array_foreach((json_t *)rounds, i, round)
        one_round(p, results, round, json_array_size(rounds) > 1);
    questions_table(p, results);
    char *file = json_dumps(json_object_get(results, "file"), JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    op_page_put(p, "<h2>Settings</h2>\n<p>Model <code>");
    op_page_text(p, op_view_string(results, "model"));
    op_page_put(p, "</code>, seed %.0f, operant %s.</p>\n", op_view_number(results, "seed"), op_view_string(results, "version"));
    op_page_element(p, "pre", file ? file : "");
    op_free(file);
    op_page_end(p);
    return p->status ? op_error_set(e, p->status, "the report does not fit into memory") : OP_OK;
}

op_status reverse_report_write(const json_t *results, const char *dir, op_error *e)
{
    op_buf page;
    op_buf_init(&page, OP_PAGE_MAX);
    char *path = op_path_join(dir, "report.html");
    op_status s = path ? op_reverse_write_html(results, &page, e) : reverse_no_memory(e);
    if (!s)
        s = op_file_put(path, page.data, page.len, e);
    op_buf_release(&page);
    op_free(path);
    return s;
}

/* ---- as text ---- */

/* The margin; of a habit and of open prompts the rate. */
static const char *value(const json_t *summary, char room[32])
{
    double margin = op_view_number(summary, "margin");
    return isnan(margin) ? percent(op_view_number(summary, "rate"), false, room) : figure(margin, true, room);
}

/* What changed, from .. to; of a rate its own interval. */
static const char *interval(const json_t *summary, char room[80])
{
    char a[32], b[32];
    bool rate = isnan(op_view_number(summary, "margin"));
    snprintf(room, 80, "%s to %s", rate ? percent(op_view_number(summary, "rate_low"), false, a) : figure(op_view_number(summary, "change_low"), true, a),
             rate ? percent(op_view_number(summary, "rate_high"), false, b) : figure(op_view_number(summary, "change_high"), true, b));
    return room;
}

static op_status write_traits(op_buf *out, const json_t *round)
{
    const json_t *base = json_object_get(round, "base");
    size_t i, k;
    json_t *trait, *arm;
    char a[32], b[32], c[80];
    op_status s = op_buf_printf(out, "%-12s %-38s %6s %10s %8s  %s\n", "trait", "arm", "scale", "perplexity", "margin", "change (95%)");
    json_array_foreach(json_object_get(round, "traits"), i, trait) {
        const char *name = op_view_string(trait, "name");
        s = s ? s : op_buf_printf(out, "%-12.12s %-38s %6s %10s %8s\n", name, "nothing done", "0", "+0.0%", value(summary_of(base, name, "text"), a));
        json_array_foreach(json_object_get(trait, "arms"), k, arm) {
            const json_t *text = json_object_get(arm, "text");
            s = s ? s : op_buf_printf(out, "%-12.12s %-38s %6.3g %10s %8s  %s\n", name, arm_says(op_view_string(arm, "arm")), op_view_number(arm, "scale"),
                                      percent(rise(base, arm), true, a), value(text, b), interval(text, c));
        }
    }
    return s;
}

static op_status write_probes(op_buf *out, const json_t *results, const json_t *round)
{
    static const char *const forms[REVERSE_FORMS] = {"text", "choices", "open"};
    const json_t *base = json_object_get(round, "base"), *after = op_view(round, "joint.after");
    size_t i;
    json_t *probe;
    char a[32], b[32], c[80];
    op_status s = op_buf_printf(out, "\nall traits taken away (at %.3g of these scales; perplexity %s)\n%-24s %-8s %8s %8s  %s\n", op_view_number(round, "joint.factor"),
                                percent(rise(base, after), true, a), "probe", "form", "before", "after", "change (95%)");
    json_array_foreach(json_object_get(results, "probes"), i, probe)
        for (int form = 0; form < REVERSE_FORMS && !s; form++) {
            const char *name = op_view_string(probe, "name");
            const json_t *was = summary_of(base, name, forms[form]), *is = summary_of(after, name, forms[form]);
            if (was && is)
                s = op_buf_printf(out, "%-24.24s %-8s %8s %8s  %s\n", name, forms[form], value(was, a), value(is, b), interval(is, c));
        }
    return s;
}

op_status op_reverse_write_table(const json_t *results, op_buf *out)
{
    size_t n;
    json_t *round;
    op_status s = OP_OK;
    json_array_foreach(json_object_get(results, "rounds"), n, round) {
        s = s ? s : op_buf_printf(out, "%sround %zu: margin of the matching reply, nats a token (of a habit, and of open prompts, the rate and its interval)\n", n ? "\n" : "", n + 1);
        s = s ? s : write_traits(out, round);
        s = s ? s : write_probes(out, results, round);
    }
    return s;
}
