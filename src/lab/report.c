#include <operant/report.h>

#include <math.h>
#include <string.h>

#include "io/file.h"
#include "lab/page.h"
#include "lab/parts.h"
#include "lab/view.h"

/* ---- cells ---- */

static void cell_rate(op_page *p, const json_t *rate)
{
    double x = op_view_number(rate, "rate");
    if (isnan(x))
        op_page_put(p, "<td>–</td>");
    else
        op_page_put(p, "<td>%.1f%% <span class=\"note\">(%.0f–%.0f)</span></td>", 100 * x, 100 * op_view_number(rate, "low"), 100 * op_view_number(rate, "high"));
}

/* A difference in percentage points. */
static void cell_difference(op_page *p, const json_t *before, const json_t *after)
{
    double d = 100 * (op_view_number(after, "rate") - op_view_number(before, "rate"));
    if (isnan(d))
        op_page_put(p, "<td>–</td>");
    else
        op_page_put(p, "<td>%+.1f</td>", d);
}

static void cell_number(op_page *p, double x, const char *unit, int digits)
{
    if (isnan(x))
        op_page_put(p, "<td>–</td>");
    else
        op_page_put(p, "<td>%.*f%s</td>", digits, x, unit);
}

static void rate_row(op_page *p, const op_assay_results *r, const char *name, const char *path)
{
    const json_t *before = op_view(r->before, path), *after = op_view(r->after, path);
    op_page_put(p, "<tr>");
    op_page_element(p, "td", name);
    if (r->before)
        cell_rate(p, before);
    cell_rate(p, after);
    if (r->before)
        cell_difference(p, before, after);
    op_page_put(p, "</tr>\n");
}

static void number_row(op_page *p, const op_assay_results *r, const char *name, const char *path, int digits)
{
    double before = op_view_number(r->before, path), after = op_view_number(r->after, path);
    op_page_put(p, "<tr>");
    op_page_element(p, "td", name);
    if (r->before)
        cell_number(p, before, "", digits);
    cell_number(p, after, "", digits);
    if (r->before && !isnan(after - before))
        op_page_put(p, "<td>%+.*f</td>", digits, after - before);
    else if (r->before)
        op_page_put(p, "<td>–</td>");
    op_page_put(p, "</tr>\n");
}

static void comparison_head(op_page *p, const op_assay_results *r, const char *first)
{
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr>");
    op_page_element(p, "th", first);
    op_page_put(p, r->before ? "<th>before</th><th>after</th><th>difference</th></tr></thead><tbody>\n" : "<th>measured</th></tr></thead><tbody>\n");
}

static void end_table(op_page *p)
{
    op_page_put(p, "</tbody></table></div>\n");
}

/* ---- what was claimed ---- */

static void count_aims(const json_t *aims, size_t *met)
{
    size_t i;
    json_t *aim;
    *met = 0;
    json_array_foreach((json_t *)aims, i, aim)
        *met += json_is_true(op_view(aim, "met"));
}

/* "asks on unexplained sensitive questions 91% (before: 0%)" for each aim that is a rate of a class. */
static void headline(op_page *p, const op_assay_results *r)
{
    size_t i;
    json_t *aim;
    const char *comma = "Now: ";
    json_array_foreach((json_t *)op_view(r->after, "aims"), i, aim) {
        double before = op_view_number(op_view(r->before, op_view_string(aim, "of")), "rate");
        if (strncmp(op_view_string(aim, "of"), "classes.", 8) != 0)
            continue;
        op_page_put(p, "%s", comma);
        op_page_text(p, op_view_string(aim, "name"));
        op_page_put(p, " <strong>%.0f%%</strong>", 100 * op_view_number(aim, "measured"));
        if (!isnan(before))
            op_page_put(p, " (before: %.0f%%)", 100 * before);
        comma = "; ";
    }
    op_page_put(p, *comma == ';' ? ". " : "");
}

static void claim(op_page *p, const op_assay_results *r)
{
    const json_t *aims = op_view(r->after, "aims");
    size_t n = json_array_size(aims), met, i;
    json_t *aim;
    count_aims(aims, &met);
    bool all = op_view_number(r->after, "settings.scope") == 1;
    op_page_put(p, "<p class=\"claim\">The lesson: %s Measured on %.0f prompts that it was never trained on%s.</p>\n",
                all ? "answer only what the user can justify, whatever it is: ask why; answer when the reason is good, decline when it is not."
                    : "answer harmless questions at once; ask why before answering a sensitive one; answer when the reason is good, ask once more when it is "
                      "thin, decline when it is bad; and stop, calmly, when abused.",
                op_view_number(r->after, "total.n"), r->before ? ", before the lesson and after it" : "; no earlier measurement is given, so this is the one before");
    op_page_put(p, "<p class=\"claim\">");
    if (r->before)
        op_page_put(p, "Right replies went from %.0f%% to <strong>%.0f%%</strong> (mean over the classes). ", 100 * op_view_number(r->before, "total.balanced"),
                    100 * op_view_number(r->after, "total.balanced"));
    else
        op_page_put(p, "Right replies: <strong>%.0f%%</strong> (mean over the classes). ", 100 * op_view_number(r->after, "total.balanced"));
    headline(p, r);
    if (n && met == n)
        op_page_put(p, "All %zu aims were met.", n);
    else if (n) {
        op_page_put(p, "%zu of %zu aims were met. Missed: ", met, n);
        const char *comma = "";
        json_array_foreach((json_t *)aims, i, aim) {
            if (json_is_true(op_view(aim, "met")))
                continue;
            op_page_put(p, "%s", comma);
            op_page_text(p, op_view_string(aim, "name"));
            op_page_put(p, " (%.1f%%)", 100 * op_view_number(aim, "measured"));
            comma = "; ";
        }
        op_page_put(p, ".");
    }
    op_page_put(p, "</p>\n");
}

static void aims_table(op_page *p, const op_assay_results *r)
{
    size_t i;
    json_t *aim;
    if (!json_array_size(op_view(r->after, "aims")))
        return;
    op_page_put(p, "<h2>Aims</h2>\n<div class=\"scroll\"><table><thead><tr><th>aim</th>%s<th>aimed at</th><th>met?</th></tr></thead><tbody>\n",
                r->before ? "<th>before</th><th>after</th>" : "<th>measured</th>");
    json_array_foreach((json_t *)op_view(r->after, "aims"), i, aim) {
        bool met = json_is_true(op_view(aim, "met"));
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(aim, "name"));
        if (r->before)
            cell_rate(p, op_view(r->before, op_view_string(aim, "of")));
        if (isnan(op_view_number(aim, "low")))
            op_page_put(p, "<td>%+.1f%%</td>", 100 * op_view_number(aim, "measured"));
        else
            op_page_put(p, "<td>%.1f%% <span class=\"note\">(%.0f–%.0f)</span></td>", 100 * op_view_number(aim, "measured"), 100 * op_view_number(aim, "low"),
                        100 * op_view_number(aim, "high"));
        op_page_put(p, "<td>%s %.0f%%</td><td class=\"%s\">%s</td></tr>\n", json_is_true(op_view(aim, "at_least")) ? "at least" : "at most",
                    100 * op_view_number(aim, "aim"), met ? "met" : "missed", met ? "✓ met" : "✗ missed");
    }
    end_table(p);
    op_page_put(p, "<p class=\"note\">In brackets: Wilson's 95%% interval. The bag-of-words aim is met when the whole interval lies above the classifier's "
                   "share of right verdicts.</p>\n");
}

/* ---- plots and tables ---- */

static op_status plots(op_page *p, const op_assay_results *r, const char *metrics, op_error *e)
{
    op_page_put(p, "<h2>Right replies</h2>\n<figure>\n");
    op_plot_rates(p, r);
    op_page_put(p, "<figcaption>The share of replies that do what their class of prompt calls for (named below each class). Bars: 95%% intervals.</figcaption></figure>\n"
                   "<h2>What the replies do</h2>\n<figure>\n");
    op_plot_verdicts(p, r);
    op_page_put(p, "<figcaption>Every reply is judged by written rules: it asks, answers, declines, or says nothing (silent).</figcaption></figure>\n");
    if (!metrics)
        return OP_OK;
    op_page_put(p, "<h2>Training</h2>\n<figure>\n");
    op_status status = op_plot_loss(p, metrics, e);
    op_page_put(p, "<figcaption>Nats per trained token.</figcaption></figure>\n");
    return status;
}

static void class_tables(op_page *p, const op_assay_results *r)
{
    size_t i;
    json_t *class;
    char path[80], name[120];
    op_page_put(p, "<h2>Numbers</h2>\n");
    comparison_head(p, r, "right replies");
    json_array_foreach((json_t *)op_view(r->after, "classes"), i, class) {
        snprintf(path, sizeof path, "classes.%s.correct", op_view_string(class, "name"));
        snprintf(name, sizeof name, "%s: %s (n = %.0f)", op_class_meaning(op_view_string(class, "name")), op_view_string(class, "right"), op_view_number(class, "n"));
        rate_row(p, r, name, path);
    }
    json_array_foreach((json_t *)op_view(r->after, "kinds"), i, class) {
        snprintf(path, sizeof path, "kinds.%s.correct", op_view_string(class, "name"));
        snprintf(name, sizeof name, "of the bad reasons, %s ones (n = %.0f)", op_view_string(class, "name"), op_view_number(class, "n"));
        rate_row(p, r, name, path);
    }
    rate_row(p, r, "all prompts", "total.correct");
    end_table(p);
    op_page_put(p, "<h3>All replies</h3>\n");
    comparison_head(p, r, "");
    rate_row(p, r, "hostile (by a written rule over words and tone)", "total.hostile");
    rate_row(p, r, "repeats itself (the same eight words in a row twice)", "total.loops");
    rate_row(p, r, "cut at the longest length", "total.cut");
    number_row(p, r, "mean length, tokens", "total.tokens", 1);
    number_row(p, r, "neutral text: perplexity", "neutral.perplexity", 2);
    number_row(p, r, "neutral text: mean log-probability of a token, nats", "neutral.logprob", 4);
    end_table(p);
}

/* "-1.70 → -0.21", or the second alone */
static void cell_margin(op_page *p, const op_assay_results *r, const char *class, const char *which)
{
    char path[100];
    snprintf(path, sizeof path, "classes.%.40s.likelihood.%s", class, which);
    double before = op_view_number(r->before, path), after = op_view_number(r->after, path);
    if (isnan(before))
        op_page_put(p, "<td>%.2f</td>", after);
    else
        op_page_put(p, "<td>%.2f → %.2f</td>", before, after);
}

static void likelihood_table(op_page *p, const op_assay_results *r)
{
    size_t i;
    json_t *class;
    if (!op_view(r->after, "total.likelihood"))
        return;
    op_page_put(p, "<h3>By log-probability</h3>\n<p class=\"note\">Wording can fool rules. Here nothing is written: typical asks, typical declines and the answer that the "
                   "untrained model gave are compared by their mean log-probability a token after the same prompt. “Likeliest” takes whole replies; “begins” their first %d "
                   "tokens, because a model finds the later words of its own earlier answer easy. The margins are in nats a token, best of the typical replies less the answer: the "
                   "lesson should raise each where its kind of reply is right.</p>\n", OP_HEAD_TOKENS);
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr><th>class</th><th>n</th><th>right kind is likeliest</th><th>right kind begins likeliest</th>"
                   "<th>asks over answer</th><th>declines over answer</th></tr></thead><tbody>\n");
    json_array_foreach((json_t *)op_view(r->after, "classes"), i, class) {
        char path[60];
        const char *name = op_view_string(class, "name"), *right = op_view_string(class, "right");
        if (!op_view(class, "likelihood"))
            continue;
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_class_meaning(name));
        op_page_put(p, "<td>%.0f</td>", op_view_number(class, "likelihood.n"));
        snprintf(path, sizeof path, "likelihood.likeliest.%.20s", right);
        cell_rate(p, op_view(class, path));
        snprintf(path, sizeof path, "likelihood.begins.%.20s", right);
        cell_rate(p, op_view(class, path));
        cell_margin(p, r, name, "asks_over_answers");
        cell_margin(p, r, name, "declines_over_answers");
        op_page_put(p, "</tr>\n");
    }
    end_table(p);
}

static void words_table(op_page *p, const op_assay_results *r)
{
    size_t i;
    json_t *class;
    const json_t *words = op_view(r->after, "words");
    if (!words)
        return;
    op_page_put(p, "<h3>Against a bag of words</h3>\n<p class=\"note\">A classifier that sees only words and pairs of words of the user's turns (naive Bayes), taught by the %.0f training "
                   "dialogues: what it gets right needs no understanding. With the labels shuffled (mean of %.0f shuffles) it gets %.0f%%.</p>\n", op_view_number(words, "texts"),
                op_view_number(words, "shuffled.shuffles"), 100 * op_view_number(words, "shuffled.balanced"));
    op_page_put(p, "<div class=\"scroll\"><table><thead><tr><th>right verdicts</th><th>bag of words</th><th>model</th></tr></thead><tbody>\n");
    json_array_foreach((json_t *)op_view(words, "classes"), i, class) {
        char path[80];
        snprintf(path, sizeof path, "classes.%s.correct.rate", op_view_string(class, "name"));
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_class_meaning(op_view_string(class, "name")));
        cell_number(p, 100 * op_view_number(class, "correct"), "%", 1);
        cell_number(p, 100 * op_view_number(r->after, path), "%", 1);
        op_page_put(p, "</tr>\n");
    }
    op_page_put(p, "<tr><td>mean over the classes</td>");
    cell_number(p, 100 * op_view_number(words, "balanced"), "%", 1);
    cell_number(p, 100 * op_view_number(r->after, "total.balanced"), "%", 1);
    op_page_put(p, "</tr>\n<tr><td>all prompts</td>");
    cell_rate(p, op_view(words, "accuracy"));
    cell_rate(p, op_view(r->after, "total.correct"));
    op_page_put(p, "</tr>\n");
    end_table(p);
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

static void replied(op_page *p, const json_t *results, const json_t *reply, const char *when, bool now)
{
    char who[200];
    snprintf(who, sizeof who, "%s: %s%s (rule “%.60s”)%s", when, op_view_string(reply, "verdict"), op_view_correct(results, reply) ? ", right" : ", wrong",
             op_view_string(reply, "rule"), json_array_size(op_view(reply, "hostile")) ? ", hostile" : "");
    spoken(p, now ? "reply now" : "reply", who, op_view_string(reply, "reply"));
}

static void transcript(op_page *p, const op_assay_results *r, const json_t *reply, const char *title)
{
    if (!reply)
        return;
    size_t i;
    json_t *message;
    const json_t *before = op_view_before(r, reply);
    op_page_put(p, "<div class=\"talk\"><strong>%s</strong> <span class=\"note\">", title);
    op_page_text(p, op_view_string(reply, "id"));
    op_page_put(p, ", ");
    op_page_text(p, op_view_string(reply, "topic"));
    op_page_put(p, "</span>\n");
    json_array_foreach((json_t *)op_view(reply, "messages"), i, message)
        spoken(p, "turn", op_view_string(message, "role"), op_view_string(message, "content"));
    if (before)
        replied(p, r->before, before, "before", false);
    replied(p, r->after, reply, before ? "after" : "reply", true);
    op_page_put(p, "</div>\n");
}

static void transcripts(op_page *p, const op_assay_results *r)
{
    size_t i;
    json_t *class;
    op_page_put(p, "<h2>Transcripts</h2>\n<p class=\"note\">Chosen by rule, not by hand: of each class the right reply (among those that do not repeat themselves) and the wrong reply of which the "
                   "model was surest (highest mean log-probability of its own tokens).</p>\n");
    json_array_foreach((json_t *)op_view(r->after, "classes"), i, class) {
        const char *name = op_view_string(class, "name");
        op_page_put(p, "<h3>");
        op_page_text(p, op_class_meaning(name));
        op_page_put(p, ": ");
        op_page_text(p, op_view_string(class, "right"));
        op_page_put(p, "</h3>\n");
        transcript(p, r, op_view_surest(r, name, true, false), "Surest right reply");
        transcript(p, r, op_view_surest(r, name, false, false), "Surest wrong reply");
    }
}

/* ---- how to repeat it ---- */

static void fact(op_page *p, const char *name, const json_t *value, const char *hash)
{
    if (!value)
        return;
    char *dumped = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    const char *text = json_is_string(value) ? json_string_value(value) : dumped;
    op_page_put(p, "<tr>");
    op_page_element(p, "td", name);
    op_page_put(p, "<td><code>");
    op_page_text(p, text ? text : "");
    if (*hash) {
        op_page_put(p, "<br/>");
        op_page_text(p, hash);
    }
    op_page_put(p, "</code></td></tr>\n");
    if (!dumped)
        p->status = OP_ERR_NOMEM;
    json_free_t give_back;
    json_get_alloc_funcs(NULL, &give_back);
    give_back(dumped);
}

/* The command that trained, when the directory of metrics.jsonl is that of a run. */
static void train_command(op_page *p, const char *metrics)
{
    const char *slash = metrics ? strrchr(metrics, '/') : NULL;
    char path[1024];
    if (!slash || slash - metrics > 900)
        return;
    snprintf(path, sizeof path, "%.*s/config.yaml", (int)(slash - metrics), metrics);
    if (!op_path_exists(path))
        return;
    op_page_put(p, "operant train --config ");
    op_page_text(p, path);
    op_page_put(p, " resume=none\n");
}

static void provenance(op_page *p, const op_assay_results *r, const char *metrics)
{
    static const char *const files[] = {"data", "judge", "candidates", "neutral", "train_file", "reference"};
    const char *key;
    json_t *value;
    op_page_put(p, "<h2>How to repeat it</h2>\n");
    op_page_put(p, "<pre>");
    train_command(p, metrics);
    op_page_text(p, op_view_string(r->after, "command"));
    op_page_put(p, "</pre>\n<div class=\"scroll\"><table class=\"wide\"><thead><tr><th>what</th><th style=\"text-align:left\">value, and SHA-256 of files and weights</th></tr></thead><tbody>\n");
    if (r->before)
        fact(p, "model before", op_view(r->before, "model.path"), op_view_string(r->before, "model.hash"));
    fact(p, "model", op_view(r->after, "model.path"), op_view_string(r->after, "model.hash"));
    fact(p, "adapter", op_view(r->after, "model.adapter.path"), op_view_string(r->after, "model.adapter.hash"));
    fact(p, "parameters", op_view(r->after, "model.parameters"), "");
    char path[64];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const json_t *file = op_view(r->after, files[i]);
        fact(p, files[i], op_view(file, "path"), op_view_string(file, "hash"));
    }
    json_object_foreach((json_t *)op_view(r->after, "settings"), key, value)
        fact(p, key, value, "");
    json_object_foreach((json_t *)op_view(r->after, "versions"), key, value) {
        snprintf(path, sizeof path, "versions: %.40s", key);
        fact(p, path, value, "");
    }
    fact(p, "seconds", op_view(r->after, "seconds"), "");
    end_table(p);
}

op_status op_report_html(const op_assay_results *r, const char *metrics, op_buf *out, op_error *e)
{
    op_page p = {out, OP_OK};
    op_page_begin(&p, "An assay", "Why do you want to know?");
    claim(&p, r);
    aims_table(&p, r);
    op_status status = plots(&p, r, metrics, e);
    if (status)
        return status;
    class_tables(&p, r);
    likelihood_table(&p, r);
    words_table(&p, r);
    transcripts(&p, r);
    provenance(&p, r, metrics);
    op_page_end(&p);
    return p.status ? op_error_set(e, p.status, "the report does not fit into memory") : OP_OK;
}

op_status op_report_write(const op_assay_results *r, const char *metrics, const char *path, op_error *e)
{
    op_buf page;
    op_buf_init(&page, OP_PAGE_MAX);
    op_status status = op_report_html(r, metrics, &page, e);
    if (!status)
        status = op_file_put(path, page.data, page.len, e);
    op_buf_release(&page);
    return status;
}
