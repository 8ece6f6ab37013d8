/* report.html of a protocol's run, from the files of its directory. */
#include <operant/report.h>

#include <math.h>
#include <string.h>

#include <operant/jsonl.h>
#include <operant/store.h>
#include <operant/subject.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/page.h"
#include "lab/svg.h"
#include "lab/view.h"
#include "train/checkpoint.h"

enum { SHOWN = 3 /* transcripts of each kind */ };

typedef enum kind { BEST, WORST, REDONE, KINDS } kind;

typedef struct run {
    const char *dir, *command;
    json_t *protocol, *results, *rounds; /* results: NULL until the run is finished; rounds: lines of metrics.jsonl */
    op_subject words;          /* tokenizer; NULL: transcripts are token ids */
    op_store *store;           /* NULL: `why` tells */
    char why[OP_ERROR_MAX], key_prefix[40]; /* of the run's trials; "": not known */
    int64_t shown[KINDS][SHOWN];
    double rank[KINDS][SHOWN]; /* how much a trial is of its kind; falling */
    size_t n[KINDS];
} run;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the report");
}

/* The text of an element, without the passwords of URLs: user:PASSWORD@ and ?password=PASSWORD. */
static op_status discreet(op_page *p, const char *tag, const char *text, op_error *e)
{
    static const char scheme[] = "://", word[] = "password=";
    const char *start = text;
    op_buf shown;
    op_buf_init(&shown, OP_PAGE_MAX);
    op_status status = OP_OK;
    while (!status) {
        const char *url = strstr(text, scheme), *named = strstr(text, word), *to;
        bool is_url = url && (!named || url < named);
        if (!url && !named)
            break;
        const char *from = is_url ? url + strlen(scheme) : named + strlen(word);
        if (is_url) {
            const char *at = memrchr(from, '@', strcspn(from, "/ \t\n\"'")), *colon = at ? memchr(from, ':', (size_t)(at - from)) : NULL;
            from = colon ? colon + 1 : from;
            to = colon ? at : from;
        } else {
            bool is_one = named > start && strchr("?&", named[-1]);
            to = from + (is_one ? strcspn(from, "& \t\n\"'") : 0);
        }
        status = op_buf_add(&shown, text, (size_t)(from - text));
        if (!status && to > from)
            status = op_buf_puts(&shown, "...");
        text = to;
    }
    if (!status)
        status = op_buf_puts(&shown, text);
    if (!status)
        op_page_element(p, tag, shown.data ? shown.data : "");
    op_buf_release(&shown);
    return status ? no_memory(e) : OP_OK;
}

/* ---- reading ---- */

static op_status read_line(void *ctx, json_t *object, int row, op_error *e)
{
    (void)row;
    return json_array_append(((run *)ctx)->rounds, object) ? no_memory(e) : OP_OK;
}

/* Keeps the SHOWN trials of highest rank. */
static void consider(run *r, kind k, int64_t id, double rank)
{
    size_t at = r->n[k];
    while (at && r->rank[k][at - 1] < rank)
        at--;
    if (at == SHOWN || isnan(rank))
        return;
    r->n[k] += r->n[k] < SHOWN;
    for (size_t i = r->n[k] - 1; i > at; i--) {
        r->shown[k][i] = r->shown[k][i - 1];
        r->rank[k][i] = r->rank[k][i - 1];
    }
    r->shown[k][at] = id;
    r->rank[k][at] = rank;
}

static op_status rank_trial(void *ctx, const op_store_score *x, op_error *e)
{
    (void)e;
    consider(ctx, BEST, x->id, x->score);
    consider(ctx, WORST, x->id, -x->score);
    if (x->redo_of) /* what nobody scored comes last */
        consider(ctx, REDONE, x->id, isnan(x->score) ? -1e300 : x->score);
    return OP_OK;
}

/* The run's name in the keys of its trials is the beginning of the hash of what it is, which every checkpoint says. */
static op_status name_run(run *r, op_error *e)
{
    char hex[OP_HASH_HEX], *newest = NULL, *checkpoints = op_path_join(r->dir, "checkpoints"), *path = NULL, *text = NULL;
    json_t *state = NULL;
    op_status status = checkpoints ? op_checkpoint_newest(checkpoints, &newest, e) : no_memory(e);
    if (!status && newest) {
        path = op_path_join(newest, "state.json");
        status = path ? op_json_read(&state, path, e) : no_memory(e);
    }
    if (!status && state && json_object_get(state, "identity")) {
        text = json_dumps(json_object_get(state, "identity"), JSON_COMPACT | JSON_SORT_KEYS);
        status = text ? OP_OK : no_memory(e);
        if (!status) {
            op_hash(text, strlen(text), hex);
            snprintf(r->key_prefix, sizeof r->key_prefix, "%.32s/", hex);
        }
    }
    json_decref(state);
    op_free(text);
    op_free(path);
    op_free(newest);
    op_free(checkpoints);
    return status;
}

/* protocol.json has dots for the password of a server, which then asks the environment or ~/.pgpass. */
static char *store_path(const run *r)
{
    const char *named = op_view_string(r->protocol, "store");
    char *path = *named ? op_strdup(named) : op_path_join(r->dir, "trials.db"), *dots = path && strstr(path, "://") ? strstr(path, ":...@") : NULL;
    if (dots)
        memmove(dots, dots + 4, strlen(dots + 4) + 1);
    return path;
}

/* Without the store there are no transcripts, and the rest of the report is as good. */
static op_status read_trials(run *r, op_error *e)
{
    op_error why = {0};
    bool shared = *op_view_string(r->protocol, "store");
    char *path = store_path(r);
    op_status status = path ? name_run(r, e) : no_memory(e);
    if (!status && shared && !*r->key_prefix)
        snprintf(r->why, sizeof r->why, "the run has no checkpoint, which would tell its trials from others of the store");
    else if (!status) {
        op_status found = op_store_find(&r->store, path, &why);
        if (found || !r->store)
            snprintf(r->why, sizeof r->why, "%s", found ? why.message : "the store is not there");
        if (found == OP_ERR_NOMEM)
            status = no_memory(e);
    }
    const op_store_query own = {.key_prefix = *r->key_prefix ? r->key_prefix : NULL};
    if (!status && r->store)
        status = op_store_each_score(r->store, &own, rank_trial, r, e);
    op_free(path);
    return status;
}

/* Also where the protocol has it under its other name. */
static const char *model_of(const run *r)
{
    const char *names[] = {op_view_string(r->results, "model"), op_view_string(r->protocol, "model"), op_view_string(r->protocol, "model_name_or_path")};
    return *names[0] ? names[0] : *names[1] ? names[1] : names[2];
}

static op_status open_run(run *r, op_error *e)
{
    char *protocol = op_path_join(r->dir, "protocol.json"), *metrics = op_path_join(r->dir, "metrics.jsonl"), *results = op_path_join(r->dir, "results.json");
    r->rounds = json_array();
    op_status status = protocol && metrics && results && r->rounds ? op_json_read(&r->protocol, protocol, e) : no_memory(e);
    if (!status)
        status = op_json_lines(metrics, read_line, r, e);
    if (!status && op_path_exists(results))
        status = op_json_read(&r->results, results, e);
    if (!status && op_subject_open_words(&r->words, r->results ? r->dir : model_of(r), e))
        r->words = (op_subject){0};
    if (!status)
        status = read_trials(r, e);
    op_free(protocol);
    op_free(metrics);
    op_free(results);
    return status;
}

static void close_run(run *r)
{
    json_decref(r->protocol);
    json_decref(r->results);
    json_decref(r->rounds);
    op_store_close(r->store);
    op_subject_close(&r->words);
}

/* ---- stages ---- */

static const json_t *round_at(const run *r, size_t i)
{
    return json_array_get(r->rounds, i);
}

/* The first round past those of the stage that round i belongs to. */
static size_t end_of_stage(const run *r, size_t i)
{
    size_t n = json_array_size(r->rounds);
    for (i++; i < n && op_view_number(round_at(r, i), "stage_round") > 1; i++)
        ;
    return i;
}

static void cell(op_page *p, double x, const char *format)
{
    char text[40];
    snprintf(text, sizeof text, format, x);
    op_page_element(p, "td", isfinite(x) ? text : "–");
}

static void stages(op_page *p, const run *r)
{
    size_t n = json_array_size(r->rounds), number = 0;
    double trials = 0, tokens = 0;
    op_page_put(p, "<h2>Stages</h2>\n<div class=\"scroll\"><table><thead><tr><th>stage</th><th>method</th><th>rounds</th><th>answers</th><th>sampled tokens</th>"
                   "<th>success at first</th><th>success at last</th><th>reward at first</th><th>reward at last</th><th>seconds</th></tr></thead><tbody>\n");
    for (size_t i = 0, end; i < n; i = end, number++) {
        end = end_of_stage(r, i);
        const json_t *first = round_at(r, i), *last = round_at(r, end - 1);
        double seconds = 0;
        for (size_t k = i; k < end; k++)
            seconds += op_view_number(round_at(r, k), "seconds");
        op_page_put(p, "<tr>");
        op_page_element(p, "td", op_view_string(first, "stage"));
        op_page_element(p, "td", op_view_string(json_array_get(op_view(r->protocol, "stages"), number), "method"));
        cell(p, (double)(end - i), "%.0f");
        cell(p, op_view_number(last, "trials") - trials, "%.0f");
        cell(p, op_view_number(last, "sampled_tokens") - tokens, "%.0f");
        cell(p, 100 * op_view_number(first, "success"), "%.0f%%");
        cell(p, 100 * op_view_number(last, "success"), "%.0f%%");
        cell(p, op_view_number(first, "reward"), "%.3f");
        cell(p, op_view_number(last, "reward"), "%.3f");
        cell(p, seconds, "%.1f");
        op_page_put(p, "</tr>\n");
        trials = op_view_number(last, "trials");
        tokens = op_view_number(last, "sampled_tokens");
    }
    op_page_put(p, "</tbody></table></div>\n<p class=\"note\">Success is the share over the last until.over answers that the teacher looked at; rewards are means of one round.</p>\n");
}

/* ---- curves ---- */

enum { LEFT = 64, RIGHT = 16, TOP = 30, HEIGHT = 130 };

typedef struct frame {
    double n, low, high; /* rounds, values */
} frame;

static double to_x(const frame *f, double round)
{
    return LEFT + (OP_SVG_WIDTH - RIGHT - LEFT) * (f->n > 1 ? (round - 1) / (f->n - 1) : 0.5);
}

static double to_y(const frame *f, double y)
{
    return TOP + HEIGHT * (f->high - y) / (f->high - f->low);
}

/* false: the run has no such number. */
static bool frame_of(const run *r, const char *key, frame *f)
{
    size_t i;
    json_t *line;
    *f = (frame){(double)json_array_size(r->rounds), INFINITY, -INFINITY};
    json_array_foreach(r->rounds, i, line) {
        double y = op_view_number(line, key);
        f->low = y < f->low ? y : f->low;
        f->high = y > f->high ? y : f->high;
    }
    if (!isfinite(f->low) || !isfinite(f->high))
        return false;
    double step = op_svg_tick(f->high > f->low ? f->high - f->low : fmax(fabs(f->high), 1));
    f->low = step * floor(f->low / step);
    f->high = step * ceil(f->high / step);
    f->high += f->high == f->low ? step : 0;
    return true;
}

static void axes(op_page *p, const run *r, const frame *f)
{
    char text[32];
    double step = op_svg_tick(f->high - f->low);
    for (double y = f->low; y <= f->high + step / 2; y += step) {
        snprintf(text, sizeof text, "%.4g", fabs(y) < step / 2 ? 0 : y);
        op_svg_line(p, "grid", LEFT, to_y(f, y), OP_SVG_WIDTH - RIGHT, to_y(f, y));
        op_svg_text(p, LEFT - 8, to_y(f, y) + 4, "tick", "end", text);
    }
    for (size_t i = 0; i < json_array_size(r->rounds); i = end_of_stage(r, i)) { /* where a stage begins */
        double x = i ? (to_x(f, (double)i) + to_x(f, (double)i + 1)) / 2 : LEFT;
        op_svg_line(p, "grid dash", x, TOP, x, TOP + HEIGHT);
        op_svg_text(p, x + 4, TOP + HEIGHT + 16, "tick", "start", op_view_string(round_at(r, i), "stage"));
    }
    snprintf(text, sizeof text, "%.0f rounds", f->n);
    op_svg_text(p, OP_SVG_WIDTH - RIGHT, TOP + HEIGHT + 30, "tick", "end", text);
}

/* A gap where a round has no such number. */
static void curve(op_page *p, const run *r, const frame *f, const char *key)
{
    size_t i;
    json_t *line;
    bool open = false;
    json_array_foreach(r->rounds, i, line) {
        double y = op_view_number(line, key);
        if (isnan(y) && open)
            op_page_put(p, "\"/>\n");
        if (!isnan(y))
            op_page_put(p, "%s%.1f,%.1f ", open ? "" : "<polyline class=\"loss\" points=\"", to_x(f, (double)i + 1), to_y(f, y));
        bool alone = !open && !isnan(y) && isnan(op_view_number(round_at(r, i + 1), key));
        open = !isnan(y);
        if (alone) { /* a line of one point is not seen */
            op_page_put(p, "\"/>\n");
            op_svg_dot(p, "after", to_x(f, (double)i + 1), to_y(f, y), key);
            open = false;
        }
    }
    if (open)
        op_page_put(p, "\"/>\n");
}

static void curves(op_page *p, const run *r)
{
    static const char *const plots[][2] = {
        {"success", "share of successes, over the last until.over answers that the teacher looked at"}, {"reward", "mean reward of the round"},
        {"policy_loss", "loss of the policy term"}, {"preference_loss", "loss of preferences"}, {"preference_accuracy", "share of preferred pairs that the policy had right before"},
        {"imitation_loss", "loss of what is learned as it is"}, {"entropy", "entropy of the policy, nats a token"}, {"kl", "KL divergence from the reference, nats a token"},
        {"clip_fraction", "share of policy tokens that were clipped"}, {"zero_variance", "share of groups whose rewards are all equal"}, {"marks_per_trial", "marks a trial"}};
    frame f;
    op_page_put(p, "<h2>By round</h2>\n");
    for (size_t i = 0; i < sizeof plots / sizeof *plots; i++) {
        if (!frame_of(r, plots[i][0], &f))
            continue;
        op_page_put(p, "<figure>\n");
        op_svg_begin(p, TOP + HEIGHT + 36, plots[i][1]);
        op_svg_text(p, LEFT, 16, "name", "start", plots[i][1]);
        axes(p, r, &f);
        curve(p, r, &f, plots[i][0]);
        op_page_put(p, "</svg></figure>\n");
    }
}

/* ---- transcripts ---- */

static op_status text_of(const run *r, const op_trial *t, int32_t from, int32_t to, char **out, op_error *e)
{
    op_buf b;
    if (r->words.tokenizer)
        return op_trial_text(t, r->words.tokenizer, from, to, out, e);
    op_buf_init(&b, 1 << 20);
    op_status status = OP_OK;
    for (int32_t i = from; !status && i < to; i++)
        status = op_buf_printf(&b, "%s%d", i > from ? " " : "", t->response[i]);
    status = status ? status : op_buf_add(&b, "", 0);
    *out = status ? NULL : op_buf_take(&b);
    if (status)
        op_buf_release(&b);
    return status ? no_memory(e) : OP_OK;
}

/* Runs of tokens with one mark, coloured by it. */
static op_status response(op_page *p, const run *r, const op_trial *t, op_error *e)
{
    float *m = op_alloc_zero((size_t)t->n_response + 1, sizeof *m);
    op_status status = m ? OP_OK : no_memory(e);
    if (!status)
        op_trial_token_marks(t, m);
    for (int32_t i = 0, end; !status && i < t->n_response; i = end) {
        char *text;
        for (end = i + 1; end < t->n_response && m[end] == m[i] && end != t->n_forced; end++)
            ;
        status = text_of(r, t, i, end, &text, e);
        if (status)
            break;
        if (m[i] != 0)
            op_page_put(p, "<mark class=\"%s\" title=\"%+.2f\">", m[i] > 0 ? "up" : "down", (double)m[i]);
        op_page_put(p, end <= t->n_forced ? "<i>" : "");
        op_page_text(p, text);
        op_page_put(p, "%s%s", end <= t->n_forced ? "</i>" : "", m[i] != 0 ? "</mark>" : "");
        op_free(text);
    }
    op_free(m);
    return status;
}

static op_status reply(op_page *p, const run *r, const op_trial *t, const char *class, op_error *e)
{
    op_page_put(p, "<p class=\"reply %s\"><span class=\"who\">trial %lld", class, (long long)t->id);
    if (t->has_reward)
        op_page_put(p, ", reward %.3g", t->reward);
    if (t->redo_of)
        op_page_put(p, ", redoes trial %lld from token %d", (long long)t->redo_of, t->redo_at);
    if (t->by) {
        op_page_put(p, ", judged by ");
        op_page_text(p, t->by);
    }
    op_page_put(p, "</span>");
    op_status status = response(p, r, t, e);
    op_page_put(p, "</p>\n");
    return status;
}

static op_status transcript(op_page *p, const run *r, const op_trial *t, op_error *e)
{
    size_t n = json_array_size(t->messages);
    op_status status = OP_OK;
    op_page_put(p, "<div class=\"talk\">\n");
    if (n) {
        op_page_put(p, "<p><span class=\"who\">");
        op_page_text(p, op_view_string(json_array_get(t->messages, n - 1), "role"));
        op_page_put(p, "</span>");
        op_page_text(p, op_view_string(json_array_get(t->messages, n - 1), "content"));
        op_page_put(p, "</p>\n");
    }
    op_trial first;
    if (t->redo_of && !(status = op_store_get(r->store, t->redo_of, &first, e))) {
        status = reply(p, r, &first, "", e);
        op_trial_release(&first);
    }
    if (!status)
        status = reply(p, r, t, "now", e);
    op_page_put(p, "</div>\n");
    return status;
}

static op_status transcripts(op_page *p, const run *r, op_error *e)
{
    static const char *const names[] = {"The best", "The worst", "Done again, with what it redid"};
    op_status status = OP_OK;
    op_page_put(p, "<h2>Transcripts</h2>\n<p class=\"note\">From all answers of the run, by reward (or, without one, by the mean of the marks). Marked "
                   "<mark class=\"up\">good</mark> and <mark class=\"down\">bad</mark>; <i>italic</i> tokens were placed or kept, not sampled.</p>\n");
    if (!r->store) {
        op_page_put(p, "<p>None: ");
        status = discreet(p, "span", r->why, e);
        op_page_put(p, "</p>\n");
    }
    for (int k = 0; k < KINDS; k++) {
        if (r->n[k])
            op_page_element(p, "h3", names[k]);
        for (size_t i = 0; !status && i < r->n[k]; i++) {
            op_trial t;
            status = op_store_get(r->store, r->shown[k][i], &t, e);
            if (status)
                break;
            status = transcript(p, r, &t, e);
            op_trial_release(&t);
        }
    }
    return status;
}

/* ---- the page ---- */

static void claim(op_page *p, const run *r)
{
    size_t n = json_array_size(r->rounds);
    const json_t *first = round_at(r, 0), *last = n ? round_at(r, n - 1) : NULL;
    op_page_put(p, "<p class=\"claim\">");
    op_page_element(p, "code", model_of(r));
    op_page_put(p, " learned in %zu rounds of %zu stages from %.0f answers. ", n, json_array_size(op_view(r->protocol, "stages")), n ? op_view_number(last, "trials") : 0);
    if (!r->results)
        op_page_put(p, "<strong>Not finished</strong>: the same command goes on from the newest checkpoint. ");
    if (n > 1 && isfinite(op_view_number(first, "success")) && isfinite(op_view_number(last, "success")))
        op_page_put(p, "Success went from %.0f%% to <strong>%.0f%%</strong>.", 100 * op_view_number(first, "success"), 100 * op_view_number(last, "success"));
    op_page_put(p, "</p>\n");
}

static op_status provenance(op_page *p, const run *r, op_error *e)
{
    op_status status = OP_OK;
    char *text = json_dumps(r->protocol, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    if (!text)
        return no_memory(e);
    if (r->command) {
        op_page_put(p, "<h2>How to repeat it</h2>\n");
        status = discreet(p, "pre", r->command, e);
        op_page_put(p, "<p class=\"note\">In another output_dir, or with resume=none. The same build, processor features and number of threads give the same bits.</p>\n");
    }
    op_page_put(p, "<h3>The protocol as it ran</h3>\n");
    status = status ? status : discreet(p, "pre", text, e);
    op_free(text);
    return status;
}

op_status op_protocol_report_html(const char *dir, const char *command, op_buf *out, op_error *e)
{
    run r = {.dir = dir, .command = command};
    op_page p = {out, OP_OK};
    const char *name = strrchr(dir, '/');
    op_status status = open_run(&r, e);
    if (!status) {
        op_page_begin(&p, "A protocol", name && name[1] ? name + 1 : dir);
        claim(&p, &r);
        stages(&p, &r);
        curves(&p, &r);
        status = transcripts(&p, &r, e);
    }
    if (!status)
        status = provenance(&p, &r, e);
    op_page_end(&p);
    close_run(&r);
    return status || !p.status ? status : op_error_set(e, p.status, "the report does not fit into memory");
}

op_status op_protocol_report_write(const char *dir, const char *command, op_error *e)
{
    op_buf page;
    op_buf_init(&page, OP_PAGE_MAX);
    char *path = op_path_join(dir, "report.html");
    op_status status = path ? op_protocol_report_html(dir, command, &page, e) : no_memory(e);
    if (!status)
        status = op_file_put(path, page.data, page.len, e);
    op_buf_release(&page);
    op_free(path);
    return status;
}
