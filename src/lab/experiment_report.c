/* report.html of an experiment: the claims in words first, then what they rest on. */
#include <math.h>
#include <string.h>

#include "lab/experiment_parts.h"
#include "lab/parts.h"
#include "lab/view.h"

static void number(op_page *p, double x)
{
    if (isnan(x))
        op_page_put(p, "–");
    else
        op_page_put(p, "%.4g", x);
}

/* "0.31 (0.2 to 0.42)" */
static void interval(op_page *p, const json_t *of, const char *middle)
{
    number(p, op_view_number(of, middle));
    if (isnan(op_view_number(of, "low")))
        return;
    op_page_put(p, " <span class=\"note\">(");
    number(p, op_view_number(of, "low"));
    op_page_put(p, " to ");
    number(p, op_view_number(of, "high"));
    op_page_put(p, ")</span>");
}

static void begin_table(op_page *p, const char *heads)
{
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr>%s</tr></thead><tbody>\n", heads);
}

static void end_table(op_page *p)
{
    op_page_put(p, "</tbody></table></div>\n");
}

/* ---- claims ---- */

static void against(op_page *p, const json_t *claim)
{
    if (*op_view_string(claim, "against"))
        op_page_text(p, op_view_string(claim, "against"));
    else
        number(p, op_view_number(claim, "against"));
}

static void one_claim(op_page *p, const json_t *claim)
{
    const char *verdict = op_view_string(claim, "verdict");
    bool registered = json_is_true(op_view(claim, "registered"));
    op_page_put(p, "<p class=\"claim\"><strong class=\"%s\">%s%s.</strong> “", !strcmp(verdict, "supported") ? "met" : !strcmp(verdict, "contradicted") ? "missed" : "open",
                registered ? "" : "Exploratory: ", verdict);
    op_page_text(p, op_view_string(claim, "says"));
    op_page_put(p, "”</p>\n<p class=\"note\">");
    op_page_text(p, op_view_string(claim, "measure"));
    op_page_put(p, ": ");
    op_page_text(p, op_view_string(claim, "arm"));
    op_page_put(p, " ");
    number(p, op_view_number(claim, "mean_arm"));
    op_page_put(p, ", ");
    against(p, claim);
    if (*op_view_string(claim, "against")) {
        op_page_put(p, " ");
        number(p, op_view_number(claim, "mean_against"));
    }
    op_page_put(p, "; paired difference ");
    interval(p, claim, "difference");
    op_page_put(p, " ");
    op_page_text(p, op_view_string(claim, "unit"));
    op_page_put(p, ", claimed: %s. Adjusted p %.3g; p %.3g from %s%.0f signings of %.0f pairs.</p>\n", op_view_string(claim, "direction"),
                op_view_number(claim, "adjusted"), op_view_number(claim, "p"), json_is_true(op_view(claim, "exact")) ? "all " : "random ",
                op_view_number(claim, "signings"), op_view_number(claim, "n"));
}

static void claims(op_page *p, const json_t *a)
{
    size_t i;
    json_t *claim, *text;
    if (*op_view_string(a, "subject")) {
        op_page_put(p, "<p>Subject: ");
        op_page_text(p, op_view_string(a, "subject"));
        op_page_put(p, "</p>\n");
    }
    json_array_foreach((json_t *)op_view(a, "claims"), i, claim)
        one_claim(p, claim);
    if (!json_array_size(op_view(a, "claims")))
        op_page_put(p, "<p class=\"claim\">Nothing is claimed: everything here is exploratory.</p>\n");
    json_array_foreach((json_t *)op_view(a, "warnings"), i, text) {
        op_page_put(p, "<p class=\"warning\">⚠ ");
        op_page_text(p, json_string_value(text));
        op_page_put(p, ".</p>\n");
    }
    if (!json_array_size(op_view(a, "claims")))
        return;
    op_page_put(p, "<figure>\n");
    op_plot_claims(p, a);
    op_page_put(p, "<figcaption>What each claim rests on: the difference of every seed (dots), their mean and its paired-t 95%% interval. The test is exact "
                   "sign-flipping of the pairs, two-sided, with Holm’s correction over the claims of the file; a claim is supported, or contradicted, at an adjusted "
                   "p of at most 0.05.</figcaption></figure>\n");
}

/* ---- measures ---- */

static bool is_claimed(const json_t *a, const char *measure)
{
    return op_list_find(op_view(a, "claims"), "measure", measure);
}

static void measures(op_page *p, const json_t *a)
{
    size_t i;
    json_t *m;
    op_page_put(p, "<h2>Every seed</h2>\n");
    json_array_foreach((json_t *)op_view(a, "measures"), i, m) {
        bool claimed = is_claimed(a, op_view_string(m, "name"));
        op_page_put(p, "<h3>");
        op_page_text(p, op_view_string(m, "says"));
        op_page_put(p, "%s</h3>\n<figure>\n", claimed ? "" : " <span class=\"note\">(exploratory)</span>");
        op_plot_measure(p, a, m);
        op_page_put(p, "<figcaption>Dots: seeds; thin lines join the same seed; bars: means with 95%% intervals. Better is %s.", op_view_string(m, "better"));
        if (!isnan(op_view_number(m, "missing")))
            op_page_put(p, " Cells without a figure count as %.4g.", op_view_number(m, "missing"));
        op_page_put(p, "</figcaption></figure>\n");
    }
    json_array_foreach((json_t *)op_view(a, "curves"), i, m) {
        op_page_put(p, "<h3>");
        op_page_text(p, op_view_string(m, "says"));
        op_page_put(p, " <span class=\"note\">(exploratory)</span></h3>\n<figure>\n");
        op_plot_curves(p, a, m);
        op_page_put(p, "<figcaption>");
        op_page_text(p, op_view_string(m, "y_says"));
        op_page_put(p, " by ");
        op_page_text(p, op_view_string(m, "x_says"));
        op_page_put(p, ": a thin line a seed, a bold one their mean.</figcaption></figure>\n");
    }
}

static void arm_table(op_page *p, const json_t *a)
{
    size_t i, k;
    json_t *arm, *m;
    op_page_put(p, "<h2>Numbers</h2>\n");
    begin_table(p, "<th>arm</th><th style=\"text-align:left\">what it is</th><th>seeds</th><th>seconds a cell</th>");
    json_array_foreach((json_t *)op_view(a, "arms"), i, arm) {
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(arm, "name"));
        op_page_element(p, "td style=\"text-align:left;white-space:normal\"", op_view_string(arm, "says"));
        op_page_put(p, "<td>%.0f</td><td>", op_view_number(arm, "n"));
        number(p, op_view_number(arm, "seconds"));
        op_page_put(p, "</td></tr>\n");
    }
    end_table(p);
    json_array_foreach((json_t *)op_view(a, "measures"), k, m) {
        op_page_element(p, "h3", op_view_string(m, "says"));
        begin_table(p, "<th>arm</th><th>mean (95% interval)</th><th>least</th><th>most</th><th>against the first arm, paired</th><th></th>");
        json_array_foreach((json_t *)op_view(a, "arms"), i, arm) {
            const json_t *v = op_list_find(op_view(arm, "measures"), "name", op_view_string(m, "name")), *contrast = NULL;
            size_t c;
            json_t *entry;
            json_array_foreach((json_t *)op_view(a, "contrasts"), c, entry)
                if (!strcmp(op_view_string(entry, "measure"), op_view_string(m, "name")) && !strcmp(op_view_string(entry, "arm"), op_view_string(arm, "name")))
                    contrast = entry;
            op_page_put(p, "<tr>");
            op_page_element(p, "td", op_view_string(arm, "name"));
            op_page_put(p, "<td>");
            interval(p, v, "mean");
            op_page_put(p, "</td><td>");
            number(p, op_view_number(v, "min"));
            op_page_put(p, "</td><td>");
            number(p, op_view_number(v, "max"));
            op_page_put(p, "</td><td>");
            if (contrast)
                interval(p, contrast, "difference");
            op_page_put(p, "</td><td>%s</td></tr>\n", !contrast ? "" : json_is_true(op_view(contrast, "claimed")) ? "claimed" : "exploratory");
        }
        end_table(p);
    }
    op_page_put(p, "<p class=\"note\">Intervals of exploratory contrasts are not corrected for how many there are: they suggest what to claim next, and show nothing.</p>\n");
}

static void compute_table(op_page *p, const json_t *a)
{
    size_t i, k;
    json_t *arm, *c;
    if (!json_array_size(op_view(a, "compute")))
        return;
    op_page_put(p, "<h2>Equal compute</h2>\n");
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr><th>arm</th>");
    json_array_foreach((json_t *)op_view(a, "compute"), k, c)
        op_page_element(p, "th", op_view_string(c, "name"));
    op_page_put(p, "</tr></thead><tbody>\n");
    json_array_foreach((json_t *)op_view(a, "arms"), i, arm) {
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(arm, "name"));
        json_array_foreach((json_t *)op_view(arm, "compute"), k, c) {
            double low = op_view_number(c, "min"), high = op_view_number(c, "max");
            op_page_put(p, "<td>");
            number(p, op_view_number(c, "mean"));
            if (low < high)
                op_page_put(p, " <span class=\"note\">(%.4g–%.4g)</span>", low, high);
            op_page_put(p, "</td>");
        }
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "<tr><td>equal?</td>");
    json_array_foreach((json_t *)op_view(a, "compute"), k, c) {
        double spread = op_view_number(c, "spread");
        if (isnan(spread))
            op_page_put(p, "<td class=\"missed\">not known</td>");
        else if (json_is_true(op_view(c, "equal")))
            op_page_put(p, "<td class=\"met\">✓ within %.2g%%</td>", 100 * spread);
        else
            op_page_put(p, "<td class=\"missed\">✗ differs by %.3g%%</td>", 100 * spread);
    }
    op_page_put(p, "</tr>\n");
    end_table(p);
    op_page_put(p, "<p class=\"note\">Means over the seeds (and their range); equal means within 1%%.</p>\n");
}

/* ---- transcripts ---- */

static void spoken(op_page *p, const char *class, const char *who, const char *words)
{
    op_page_put(p, "<p class=\"%s\"><span class=\"who\">", class);
    op_page_text(p, who);
    op_page_put(p, "</span>");
    op_page_text(p, *words ? words : "(nothing)");
    op_page_put(p, "</p>\n");
}

static void transcript(op_page *p, const json_t *t)
{
    size_t i;
    json_t *m;
    op_page_put(p, "<div class=\"talk\"><strong>");
    op_page_text(p, op_view_string(t, "title"));
    op_page_put(p, "</strong> <span class=\"note\">seed %.0f%s", op_view_number(t, "seed"), *op_view_string(t, "which") ? ", " : "");
    op_page_text(p, op_view_string(t, "which"));
    if (!isnan(op_view_number(t, "score")))
        op_page_put(p, " (%.4g)", op_view_number(t, "score"));
    op_page_put(p, "</span>\n");
    json_array_foreach((json_t *)op_view(t, "messages"), i, m)
        spoken(p, !strcmp(op_view_string(m, "role"), "assistant") ? "reply now" : "turn", op_view_string(m, "role"), op_view_string(m, "content"));
    if (*op_view_string(t, "prompt"))
        spoken(p, "turn", "prompt", op_view_string(t, "prompt"));
    if (json_is_string(op_view(t, "response")))
        spoken(p, "reply now", "response", op_view_string(t, "response"));
    if (*op_view_string(t, "note"))
        spoken(p, "turn", "note", op_view_string(t, "note"));
    op_page_put(p, "</div>\n");
}

static void transcripts(op_page *p, const json_t *a)
{
    size_t i, k;
    json_t *arm, *t;
    bool any = false;
    json_array_foreach((json_t *)op_view(a, "arms"), i, arm) {
        if (!json_array_size(op_view(arm, "transcripts")))
            continue;
        if (!any)
            op_page_put(p, "<h2>Transcripts</h2>\n<p class=\"note\">Chosen by rule, not by hand: of each arm, over all seeds, the one with the highest score and the one "
                           "with the lowest (without scores, the first two).</p>\n");
        any = true;
        op_page_element(p, "h3", op_view_string(arm, "name"));
        json_array_foreach((json_t *)op_view(arm, "transcripts"), k, t)
            transcript(p, t);
    }
}

/* ---- how to repeat it ---- */

static void commands(op_page *p, const json_t *arm)
{
    size_t i, k;
    json_t *command, *word;
    op_page_element(p, "h3", op_view_string(arm, "name"));
    op_page_put(p, "<pre>");
    json_array_foreach((json_t *)op_view(arm, "commands"), i, command) {
        json_array_foreach(command, k, word) {
            const char *s = json_string_value(word);
            bool quote = !*s || strpbrk(s, " \t\n\"'$&;|<>()*");
            op_page_put(p, "%s%s", k ? " " : "", quote ? "'" : "");
            op_page_text(p, s);
            op_page_put(p, "%s", quote ? "'" : "");
        }
        op_page_put(p, "\n");
    }
    op_page_put(p, "</pre>\n");
}

static void fact(op_page *p, const char *name, const char *value)
{
    op_page_put(p, "<tr>");
    op_page_element(p, "td", name);
    op_page_put(p, "<td><code>");
    op_page_text(p, value);
    op_page_put(p, "</code></td></tr>\n");
}

static void provenance(op_page *p, const json_t *a)
{
    size_t i;
    json_t *v;
    op_page_put(p, "<h2>How to repeat it</h2>\n<pre>");
    op_page_text(p, op_view_string(a, "command"));
    op_page_put(p, "</pre>\n<div class=\"scroll\"><table class=\"wide\"><tbody>\n");
    fact(p, "experiment file", op_view_string(a, "file"));
    fact(p, "its SHA-256", op_view_string(a, "hash"));
    bool late = op_view_number(a, "registered.finished") > 0;
    fact(p, late ? "claims written down, after the first result" : "claims registered", *op_view_string(a, "registered.when") ? op_view_string(a, "registered.when") : "never");
    fact(p, "SHA-256 of the file then", op_view_string(a, "registered.hash"));
    op_page_put(p, "<tr><td>seeds</td><td><code>");
    json_array_foreach((json_t *)op_view(a, "seeds"), i, v)
        op_page_put(p, "%s%.0f", i ? " " : "", json_number_value(v));
    op_page_put(p, "</code></td></tr>\n<tr><td>threads of a cell</td><td><code>%.0f</code></td></tr>\n", op_view_number(a, "threads"));
    end_table(p);
    op_page_put(p, "<p class=\"note\">What a cell of each arm runs, with its first seed (the hashes of the files that these name are in each cell’s result):</p>\n");
    json_array_foreach((json_t *)op_view(a, "arms"), i, v)
        commands(p, v);
}

op_status op_experiment_write_html(const json_t *a, op_buf *out, op_error *e)
{
    op_page p = {out, OP_OK};
    op_page_begin(&p, "an experiment", op_view_string(a, "question"));
    claims(&p, a);
    measures(&p, a);
    arm_table(&p, a);
    compute_table(&p, a);
    transcripts(&p, a);
    provenance(&p, a);
    op_page_end(&p);
    return p.status ? op_error_set(e, p.status, "the report does not fit into memory") : OP_OK;
}
