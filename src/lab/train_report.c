/* report.html of a training run, from the files of its directory. */
#include <operant/report.h>

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <operant/jsonl.h>
#include <operant/sft.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/page.h"
#include "lab/view.h"

enum { CONFIG_MAX = 1 << 20, SAMPLES = 12 };

typedef struct train_run {
    const char *dir;
    op_sft_options settings, defaults;
    op_buf text, default_text; /* both as YAML, a line each */
    json_t *env;
    json_t *steps, *held;      /* lines of metrics.jsonl: with a loss, and with a held-out loss */
    char *metrics;             /* path */
} train_run;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the report");
}

/* ---- reading ---- */

static op_status read_line(void *ctx, json_t *object, int row, op_error *e)
{
    (void)row;
    train_run *r = ctx;
    json_t *list = isfinite(op_view_number(object, "loss")) ? r->steps : isfinite(op_view_number(object, "eval_loss")) ? r->held : NULL;
    return list && json_array_append(list, object) ? no_memory(e) : OP_OK;
}

static op_status open_run(train_run *r, op_error *e)
{
    char *config = op_path_join(r->dir, "config.yaml"), *env = op_path_join(r->dir, "env.json");
    r->metrics = op_path_join(r->dir, "metrics.jsonl");
    r->steps = json_array();
    r->held = json_array();
    op_status status = config && env && r->metrics && r->steps && r->held ? OP_OK : no_memory(e);
    if (!status)
        status = op_config_load(&r->settings, op_sft_table, config, e);
    if (!status && (op_config_write(&r->settings, op_sft_table, &r->text) || op_config_write(&r->defaults, op_sft_table, &r->default_text)))
        status = no_memory(e);
    if (!status)
        status = op_json_read(&r->env, env, e);
    if (!status)
        status = op_json_lines(r->metrics, read_line, r, e);
    op_free(config);
    op_free(env);
    return status;
}

static void close_run(train_run *r)
{
    op_config_release(&r->settings, op_sft_table);
    op_config_release(&r->defaults, op_sft_table);
    op_buf_release(&r->text);
    op_buf_release(&r->default_text);
    json_decref(r->env);
    json_decref(r->steps);
    json_decref(r->held);
    op_free(r->metrics);
}

static double first_of(const json_t *lines, const char *key)
{
    return op_view_number(json_array_get(lines, 0), key);
}

static double last_of(const json_t *lines, const char *key)
{
    size_t n = json_array_size(lines);
    return n ? op_view_number(json_array_get(lines, n - 1), key) : NAN;
}

/* ---- cells ---- */

/* 134515008 as 134,515,008; "?" when it is not known */
static const char *grouped(double x, char room[32])
{
    char digits[32];
    int n = isfinite(x) ? snprintf(digits, sizeof digits, "%.0f", x) : 0, k = 0;
    for (int i = 0; i < n && k < 30; i++) {
        room[k++] = digits[i];
        if (i < n - 1 && (n - 1 - i) % 3 == 0)
            room[k++] = ',';
    }
    room[k] = 0;
    return n ? room : "?";
}

static void begin_table(op_page *p, const char *heads)
{
    op_page_put(p, "<div class=\"scroll\"><table class=\"wide\"><thead><tr>%s</tr></thead><tbody>\n", heads);
}

static void end_table(op_page *p)
{
    op_page_put(p, "</tbody></table></div>\n");
}

/* Left out when there is nothing to tell. */
static void row_text(op_page *p, const char *name, const char *value)
{
    if (!*value)
        return;
    op_page_put(p, "<tr>");
    op_page_element(p, "td", name);
    op_page_element(p, "td", value);
    op_page_put(p, "</tr>\n");
}

/* Left out when it is not a number. */
static void row_number(op_page *p, const char *name, double x, int digits, const char *unit)
{
    char text[80], room[32];
    if (!isfinite(x))
        return;
    if (digits)
        snprintf(text, sizeof text, "%.*f%s", digits, x, unit);
    else
        snprintf(text, sizeof text, "%s%s", grouped(x, room), unit);
    row_text(p, name, text);
}

static void cell(op_page *p, double x, const char *format)
{
    char text[40];
    snprintf(text, sizeof text, format, x);
    op_page_element(p, "td", isfinite(x) ? text : "–");
}

/* ---- parts of the page ---- */

static void claim(op_page *p, const train_run *r)
{
    const op_sft_options *o = &r->settings;
    char n[32], held[32], of[32];
    double done = fmax(last_of(r->steps, "step"), last_of(r->held, "step")), total = op_view_number(r->env, "steps");
    double before = first_of(r->held, "eval_loss"), after = last_of(r->held, "eval_loss");
    op_page_put(p, "<p class=\"claim\">");
    if (o->trainee.method)
        op_page_put(p, "An adapter (LoRA, rank %" PRId64 ") beside ", o->trainee.lora_r);
    else
        op_page_put(p, "%s of ", o->trainee.freeze_embedding ? "The weights but the embedding" : "Every weight");
    op_page_element(p, "code", o->trainee.model ? o->trainee.model : "");
    op_page_put(p, " learned from %s examples of ", grouped(op_view_number(r->env, "data.items"), n));
    op_page_element(p, "code", o->train_file ? o->train_file : "");
    op_page_put(p, "; %s were held out. ", grouped(op_view_number(r->env, "held_out.items"), held));
    if (done >= total)
        op_page_put(p, "All %.0f steps are done.", total);
    else
        op_page_put(p, "<strong>Not finished</strong>: the log ends at step %.0f of %s; the same command goes on from the newest checkpoint.", isnan(done) ? 0 : done,
                    grouped(total, of));
    op_page_put(p, "</p>\n");
    if (json_array_size(r->held) > 1)
        op_page_put(p, "<p class=\"claim\">The held-out loss went from %.4f to <strong>%.4f</strong> nats a token (perplexity %.4g to %.4g).</p>\n", before, after,
                    exp(before), exp(after));
}

static op_status loss(op_page *p, const train_run *r, op_error *e)
{
    if (!json_array_size(r->steps))
        return OP_OK;
    op_page_put(p, "<h2>Loss</h2>\n<figure>\n");
    op_status status = op_plot_loss(p, r->metrics, e);
    op_page_put(p, "<figcaption>Nats per trained token.</figcaption></figure>\n");
    return status;
}

static void figures(op_page *p, const train_run *r)
{
    double best = NAN, best_step = NAN, memory = NAN, speed = 0;
    size_t i;
    json_t *line;
    json_array_foreach(r->held, i, line) {
        double x = op_view_number(line, "eval_loss");
        best_step = x < best || isnan(best) ? op_view_number(line, "step") : best_step;
        best = fmin(best, x);
    }
    json_array_foreach(r->steps, i, line) {
        memory = fmax(memory, op_view_number(line, "peak_rss_mb"));
        speed += op_view_number(line, "tokens_per_s") / (double)json_array_size(r->steps);
    }
    op_page_put(p, "<h2>Final figures</h2>\n");
    begin_table(p, "<th>what</th><th style=\"text-align:left\">value</th>");
    row_number(p, "steps done", last_of(r->steps, "step"), 0, "");
    row_number(p, "passes over the data", last_of(r->steps, "epoch"), 2, "");
    row_number(p, "training loss, first line of the log", first_of(r->steps, "loss"), 4, " nats a token");
    row_number(p, "training loss, last line of the log", last_of(r->steps, "loss"), 4, " nats a token");
    row_number(p, "held-out loss before", first_of(r->held, "eval_loss"), 4, " nats a token");
    row_number(p, "held-out loss after", last_of(r->held, "eval_loss"), 4, " nats a token");
    if (best < last_of(r->held, "eval_loss")) { /* it learned by heart afterwards */
        row_number(p, "lowest held-out loss", best, 4, " nats a token");
        row_number(p, "… after step", best_step, 0, "");
    }
    row_number(p, "held-out perplexity before", exp(first_of(r->held, "eval_loss")), 2, "");
    row_number(p, "held-out perplexity after", exp(last_of(r->held, "eval_loss")), 2, "");
    row_number(p, "tokens read", last_of(r->steps, "tokens"), 0, "");
    row_number(p, "tokens per second, mean of the log", json_array_size(r->steps) ? speed : NAN, 0, "");
    row_number(p, "peak memory", memory, 0, " MB");
    end_table(p);
}

static void model_and_data(op_page *p, const train_run *r)
{
    const json_t *env = r->env;
    op_page_put(p, "<h2>Model and data</h2>\n");
    begin_table(p, "<th>what</th><th style=\"text-align:left\">value</th>");
    row_text(p, "model", r->settings.trainee.model ? r->settings.trainee.model : "");
    row_text(p, "family", op_view_string(env, "model.family"));
    row_number(p, "layers", op_view_number(env, "model.layers"), 0, "");
    row_number(p, "width", op_view_number(env, "model.width"), 0, "");
    row_number(p, "vocabulary", op_view_number(env, "model.vocab"), 0, " tokens");
    row_number(p, "parameters", op_view_number(env, "model.parameters"), 0, "");
    row_number(p, "parameters trained", op_view_number(env, "parameters_trained"), 0, "");
    row_text(p, "training data", r->settings.train_file ? r->settings.train_file : "");
    row_text(p, "form of the data", op_view_string(env, "form"));
    row_number(p, "examples", op_view_number(env, "data.items"), 0, "");
    row_number(p, "tokens", op_view_number(env, "data.tokens"), 0, "");
    row_number(p, "tokens that are learned", op_view_number(env, "data.trained_tokens"), 0, "");
    row_number(p, "examples cut at the longest length", op_view_number(env, "truncated"), 0, "");
    row_text(p, "held-out data", r->settings.eval_file ? r->settings.eval_file : r->settings.eval_fraction > 0 ? "a share of the training data" : "none");
    row_number(p, "held-out examples", op_view_number(env, "held_out.items"), 0, "");
    row_number(p, "held-out tokens", op_view_number(env, "held_out.tokens"), 0, "");
    end_table(p);
}

/* The value of "key: value" in YAML of a line a key. */
static const char *value_of(const op_buf *yaml, const char *key, size_t n, char room[200])
{
    for (const char *at = yaml->data; at && *at; at += strcspn(at, "\n"), at += *at == '\n')
        if (!strncmp(at, key, n) && at[n] == ':' && at[n + 1] == ' ') {
            snprintf(room, 200, "%.*s", (int)strcspn(at + n + 2, "\n"), at + n + 2);
            return room;
        }
    return "";
}

static bool among(const char *const *words, const char *key, size_t n)
{
    for (; *words; words++)
        if (strlen(*words) == n && !memcmp(*words, key, n))
            return true;
    return false;
}

/* Those that a reader asks for first, and those that somebody changed. */
static void settings(op_page *p, const train_run *r)
{
    static const char *const always[] = {"method", "learning_rate", "lr_scheduler_type", "num_train_epochs", "per_device_train_batch_size", "max_length", "seed",
                                         "lora.r", "lora.alpha", "lora.target_modules", NULL};
    static const char *const elsewhere[] = {"model", "train_file", "eval_file", "output_dir", "resume", NULL};
    char value[200], usual[200];
    op_page_put(p, "<h2>Settings that matter</h2>\n<p class=\"note\">The usual ones and every one that is not at its default; all of them stand at the end.</p>\n");
    begin_table(p, "<th>setting</th><th style=\"text-align:left\">value</th><th style=\"text-align:left\">default</th><th style=\"text-align:left\">meaning</th>");
    for (const op_option *o = op_sft_table; o->key; o++) {
        size_t n = strcspn(o->key, "|");
        value_of(&r->text, o->key, n, value);
        value_of(&r->default_text, o->key, n, usual);
        bool changed = strcmp(value, usual) != 0;
        if (among(elsewhere, o->key, n) || (!changed && !among(always, o->key, n)) || (!r->settings.trainee.method && !strncmp(o->key, "lora.", 5)))
            continue;
        op_page_put(p, "<tr><td><code>");
        snprintf(usual, sizeof usual, "%.*s", (int)n, o->key);
        op_page_text(p, usual);
        op_page_put(p, "</code></td><td>%s", changed ? "<strong>" : "");
        op_page_text(p, value);
        op_page_put(p, "%s</td>", changed ? "</strong>" : "");
        op_page_element(p, "td", value_of(&r->default_text, o->key, n, usual));
        op_page_element(p, "td", o->help);
        op_page_put(p, "</tr>\n");
    }
    end_table(p);
}

static double held_out_at(const json_t *held, double step)
{
    size_t i;
    json_t *line;
    double loss = NAN;
    json_array_foreach((json_t *)held, i, line)
        loss = op_view_number(line, "step") <= step ? op_view_number(line, "eval_loss") : loss;
    return loss;
}

static void samples(op_page *p, const train_run *r)
{
    size_t n = json_array_size(r->steps), shown = n < SAMPLES ? n : SAMPLES;
    if (!n)
        return;
    op_page_put(p, "<h2>Samples of the log</h2>\n<p class=\"note\">%zu of %zu lines of metrics.jsonl, spread evenly, with the held-out loss that was known then.</p>\n"
                   "<div class=\"scroll\"><table><thead><tr><th>step</th><th>epoch</th><th>loss</th><th>held-out loss</th><th>learning rate</th><th>gradient norm</th>"
                   "<th>tokens/s</th><th>peak MB</th></tr></thead><tbody>\n", shown, n);
    for (size_t k = 0; k < shown; k++) {
        const json_t *line = json_array_get(r->steps, shown > 1 ? k * (n - 1) / (shown - 1) : 0);
        op_page_put(p, "<tr>");
        cell(p, op_view_number(line, "step"), "%.0f");
        cell(p, op_view_number(line, "epoch"), "%.2f");
        cell(p, op_view_number(line, "loss"), "%.4f");
        cell(p, held_out_at(r->held, op_view_number(line, "step")), "%.4f");
        cell(p, op_view_number(line, "lr"), "%.3g");
        cell(p, op_view_number(line, "grad_norm"), "%.3g");
        cell(p, op_view_number(line, "tokens_per_s"), "%.0f");
        cell(p, op_view_number(line, "peak_rss_mb"), "%.0f");
        op_page_put(p, "</tr>\n");
    }
    end_table(p);
}

static void provenance(op_page *p, const train_run *r)
{
    static const char *const facts[] = {"operant", "compiler", "simd", "product_isa", "backend", "dtype", "libraries.jansson", "libraries.openssl", "libraries.zlib"};
    const char *key;
    json_t *value;
    op_page_put(p, "<h2>How to repeat it</h2>\n<pre>operant train --config ");
    op_page_text(p, r->dir);
    op_page_put(p, "/config.yaml resume=none</pre>\n<p class=\"note\">The same build, processor features and number of threads give the same bits.</p>\n");
    begin_table(p, "<th>what</th><th style=\"text-align:left\">value</th>");
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        row_text(p, facts[i], op_view_string(r->env, facts[i]));
    row_number(p, "threads", op_view_number(r->env, "threads"), 0, "");
    json_object_foreach((json_t *)op_view(r->env, "identity"), key, value) {
        if (!strstr(key, " hash"))
            continue;
        op_page_put(p, "<tr>");
        op_page_element(p, "td", key);
        op_page_put(p, "<td>");
        op_page_element(p, "code", json_is_string(value) ? json_string_value(value) : "");
        op_page_put(p, "</td></tr>\n");
    }
    end_table(p);
    op_page_put(p, "<h3>All settings</h3>\n");
    op_page_element(p, "pre", r->text.data ? r->text.data : "");
}

static op_status write_page(const train_run *r, op_buf *out, op_error *e)
{
    op_page p = {out, OP_OK};
    const char *name = strrchr(r->dir, '/');
    op_page_begin(&p, "A training run", name && name[1] ? name + 1 : r->dir);
    claim(&p, r);
    op_status status = loss(&p, r, e);
    if (status)
        return status;
    figures(&p, r);
    model_and_data(&p, r);
    settings(&p, r);
    samples(&p, r);
    provenance(&p, r);
    op_page_end(&p);
    return p.status ? op_error_set(e, p.status, "the report does not fit into memory") : OP_OK;
}

op_status op_train_report_html(const char *dir, op_buf *out, op_error *e)
{
    train_run r = {.dir = dir};
    op_buf_init(&r.text, CONFIG_MAX);
    op_buf_init(&r.default_text, CONFIG_MAX);
    op_status status = op_config_init(&r.settings, op_sft_table, e);
    if (!status)
        status = op_config_init(&r.defaults, op_sft_table, e);
    if (!status)
        status = open_run(&r, e);
    if (!status)
        status = write_page(&r, out, e);
    close_run(&r);
    return status;
}

op_status op_train_report_write(const char *dir, op_error *e)
{
    op_buf page;
    op_buf_init(&page, OP_PAGE_MAX);
    char *path = op_path_join(dir, "report.html");
    op_status status = path ? op_train_report_html(dir, &page, e) : no_memory(e);
    if (!status)
        status = op_file_put(path, page.data, page.len, e);
    op_buf_release(&page);
    op_free(path);
    return status;
}
