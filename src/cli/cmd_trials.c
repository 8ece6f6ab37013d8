/* operant trials: what lies in a store of trials, shown, taken in and given out. */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <operant/file.h>
#include <operant/import.h>
#include <operant/subject.h>

#include "cli/cli.h"

typedef struct options {
    char *store, *model, *by, *tag, *value;
    int judged;
    int64_t after, limit, passages;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"store", OP_OPTION_STRING, AT(store), NULL, 0, 0, NULL, "a file (trials.db of a run) or postgresql://..."},
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "whose tokenizer and chat template to use; without one, tokens are shown as numbers"},
    {"tag", OP_OPTION_STRING, AT(tag), NULL, 0, 0, NULL, "only trials that have this tag"},
    {"value", OP_OPTION_STRING, AT(value), NULL, 0, 0, NULL, "... with this value"},
    {"by", OP_OPTION_STRING, AT(by), NULL, 0, 0, NULL, "only trials with feedback from this teacher"},
    {"judged", OP_OPTION_CHOICE, AT(judged), "any", 0, 0, "any|yes|no", "only trials with feedback, or without"},
    {"after", OP_OPTION_INT, AT(after), "0", 0, (double)(1LL << 53), NULL, "only trials with a greater number than this"},
    {"limit", OP_OPTION_INT, AT(limit), "0", 0, (double)(1LL << 53), NULL, "at most so many trials; 0: all"},
    {"passages", OP_OPTION_INT, AT(passages), "-1", -1, 1000, NULL, "import of fine-grained feedback: passages of context in the prompt; -1: all"},
    {0}};

typedef struct desk {
    const options *o;
    op_store *store;
    op_subject words;   /* without a model: all zeros */
    bool json, colour;
    FILE *out;
    op_buf line;
} desk;

static const op_tokenizer *tokenizer_of(const desk *d)
{
    return d->words.tokenizer;
}

/* ---- pieces of text ---- */

/* On one line: line ends as \n, other control characters and bytes that are no characters as \xHH. At most `most` bytes, 0: all. */
static void put_visible(FILE *f, const char *s, size_t n, size_t most)
{
    json_t *whole = json_stringn(s, n); /* NULL: no UTF-8 by itself */
    size_t shown = most && n > most ? most : n;
    while (shown < n && shown && ((unsigned char)s[shown] & 0xc0) == 0x80)
        shown--;
    for (size_t i = 0; i < shown; i++) {
        unsigned char b = (unsigned char)s[i];
        if (b == '\n')
            fputs("\\n", f);
        else if (b < 32 || b == 127 || (b > 127 && !whole))
            fprintf(f, "\\x%02x", b);
        else
            putc(b, f);
    }
    if (shown < n)
        fputs("...", f);
    json_decref(whole);
}

static void put_token(const desk *d, int32_t id)
{
    size_t n = 0;
    const char *bytes = tokenizer_of(d) && id < op_tokenizer_vocab_size(tokenizer_of(d)) ? op_tokenizer_bytes(tokenizer_of(d), id, &n) : NULL;
    if (bytes)
        put_visible(stdout, bytes, n, 0);
    else
        printf("<%d>", id);
}

static void put_time(int64_t ms)
{
    time_t seconds = (time_t)(ms / 1000);
    struct tm t;
    char text[32];
    if (ms && gmtime_r(&seconds, &t) && strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &t))
        printf("  %s UTC", text);
}

static void put_tags(FILE *f, const json_t *tags)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)tags, key, v) {
        char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        fprintf(f, "  %s=", key);
        if (json_is_string(v))
            put_visible(f, json_string_value(v), json_string_length(v), 60);
        else
            fputs(text ? text : "?", f);
        free(text);
    }
}

/* ---- list, export, stats ---- */

static op_status print_line(desk *d, const op_trial *t, op_error *e)
{
    op_buf_clear(&d->line);
    op_status s = op_trial_append(t, tokenizer_of(d), &d->line, e);
    if (!s && fwrite(d->line.data, 1, d->line.len, d->out) != d->line.len)
        s = op_error_set(e, OP_ERR_IO, "the output could not be written");
    return s;
}

static op_status list_one(void *ctx, const op_trial *t, op_error *e)
{
    desk *d = ctx;
    char *text = NULL;
    if (d->json)
        return print_line(d, t, e);
    if (tokenizer_of(d)) {
        op_status s = op_trial_check(t, op_tokenizer_vocab_size(tokenizer_of(d)), e);
        s = s ? s : op_trial_text(t, tokenizer_of(d), 0, t->n_response, &text, e);
        if (s)
            return s;
    }
    printf("%6" PRId64 "  %4d tokens", t->id, t->n_response);
    if (t->has_reward)
        printf("  reward %+-6.3g", t->reward);
    printf("  %2d marks  %2d alternatives", t->n_marks, t->n_alternatives);
    if (t->redo_of)
        printf("  redoes %" PRId64, t->redo_of);
    if (t->by)
        printf("  by %s", t->by);
    put_tags(stdout, t->tags);
    if (text) {
        fputs("  | ", stdout);
        put_visible(stdout, text, strlen(text), 80);
    }
    putchar('\n');
    free(text);
    return OP_OK;
}

static op_status export_one(void *ctx, const op_trial *t, op_error *e)
{
    return print_line(ctx, t, e);
}

static op_status each(desk *d, op_status (*fn)(void *, const op_trial *, op_error *), op_error *e)
{
    static const int judged[] = {0, 1, -1};
    const options *o = d->o;
    op_store_query q = {.after = o->after, .by = o->by, .tag = o->tag, .value = o->value, .judged = judged[o->judged], .limit = o->limit};
    return op_store_each(d->store, &q, fn, d, e);
}

static op_status stats(desk *d, op_error *e)
{
    op_store_stats x;
    op_status s = op_store_get_stats(d->store, &x, e);
    if (s)
        return s;
    if (d->json) {
        json_t *o = json_pack("{sI sI sI sI sI sI sI so}", "trials", (json_int_t)x.trials, "judged", (json_int_t)x.judged, "tokens", (json_int_t)x.tokens, "marks",
                              (json_int_t)x.marks, "rewards", (json_int_t)x.rewards, "alternatives", (json_int_t)x.alternatives, "redos", (json_int_t)x.redos, "mean_reward",
                              isnan(x.mean_reward) ? json_null() : json_real(x.mean_reward));
        cli_print_json(o);
        json_decref(o);
        return OP_OK;
    }
    printf("trials        %10" PRId64 "\n  judged      %10" PRId64 "\n  redos       %10" PRId64 "\ntokens        %10" PRId64 "\nmarks         %10" PRId64
           "\nalternatives  %10" PRId64 "\nrewards       %10" PRId64, x.trials, x.judged, x.redos, x.tokens, x.marks, x.alternatives, x.rewards);
    if (!isnan(x.mean_reward))
        printf("   mean %.4g", x.mean_reward);
    putchar('\n');
    return OP_OK;
}

/* ---- show ---- */

/* The response as it reads: marked tokens green or red, or in [+...+] and [-...-]; forced ones dim. */
static void show_text(const desk *d, const op_trial *t, const float *marks)
{
    int now = 0;
    for (int32_t i = 0; i <= t->n_response; i++) {
        int sign = i < t->n_response ? (marks[i] > 0) - (marks[i] < 0) : 0;
        if (sign != now && now)
            fputs(d->colour ? "\033[0m" : now > 0 ? "+]" : "-]", stdout);
        if (sign != now && sign)
            fputs(d->colour ? sign > 0 ? "\033[1;32m" : "\033[1;31m" : sign > 0 ? "[+" : "[-", stdout);
        if (i < t->n_response)
            put_token(d, t->response[i]);
        now = sign;
    }
    putchar('\n');
}

static void show_alternatives(const desk *d, const op_trial *t, int32_t at)
{
    for (int32_t i = 0; i < t->n_alternatives; i++) {
        const op_alternative *a = &t->alternatives[i];
        if (a->at != at)
            continue;
        printf("%16s%s ", "", a->picked ? "=>" : " >");
        if (isnan(a->logprob))
            printf("%8s  ", "");
        else
            printf("%8.3f  ", a->logprob);
        for (int32_t k = 0; k < a->n; k++)
            put_token(d, a->ids[k]);
        printf("%s%s%s\n", a->by ? "  (" : "", a->by ? a->by : "", a->by ? ")" : "");
    }
}

static void show_tokens(const desk *d, const op_trial *t, const float *marks)
{
    printf("%6s  %7s  %8s  %s\n", "token", "mark", "log p", "text (> an alternative, => the one picked)");
    for (int32_t i = 0; i < t->n_response; i++) {
        const char *paint = !d->colour ? "" : marks[i] > 0 ? "\033[1;32m" : marks[i] < 0 ? "\033[1;31m" : i < t->n_forced ? "\033[2m" : "";
        printf("%6d  ", i);
        if (marks[i] != 0)
            printf("%+7.3g  ", (double)marks[i]);
        else
            printf("%7s  ", "");
        if (t->logprobs && !isnan(t->logprobs[i]))
            printf("%8.3f  ", (double)t->logprobs[i]);
        else
            printf("%8s  ", i < t->n_forced ? "forced" : "");
        fputs(paint, stdout);
        put_token(d, t->response[i]);
        puts(*paint ? "\033[0m" : "");
        show_alternatives(d, t, i);
    }
    show_alternatives(d, t, t->n_response);
}

static op_status show_trial(const desk *d, const op_trial *t, op_error *e)
{
    float *marks = calloc((size_t)t->n_response + 1, sizeof *marks);
    if (!marks)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for trial %" PRId64, t->id);
    op_trial_token_marks(t, marks);
    printf("trial %" PRId64, t->id);
    put_time(t->time);
    if (t->redo_of)
        printf("  redoes %" PRId64 " from token %d", t->redo_of, t->redo_at);
    if (t->policy[0])
        printf("  policy %.12s", t->policy);
    if (t->by)
        printf("  judged by %s", t->by);
    if (t->has_reward)
        printf("  reward %g", t->reward);
    putchar('\n');
    if (json_object_size(t->tags)) {
        fputs("tags  ", stdout);
        put_tags(stdout, t->tags);
        putchar('\n');
    }
    fputs("prompt: ", stdout);
    for (int32_t i = 0; i < t->n_prompt; i++)
        put_token(d, t->prompt[i]);
    fputs("\nresponse: ", stdout);
    show_text(d, t, marks);
    show_tokens(d, t, marks);
    for (int32_t i = 0; i < t->n_marks; i++) {
        const op_mark *m = &t->marks[i];
        const char *by = m->by ? m->by : t->by;
        printf("mark %+g on tokens %d..%d%s%s%s%s\n", m->value, m->start, m->end - 1, by ? " by " : "", by ? by : "", m->note ? ": " : "", m->note ? m->note : "");
    }
    free(marks);
    return OP_OK;
}

static op_status show(desk *d, const char *const *ids, int n, op_error *e)
{
    op_status s = OP_OK;
    for (int i = 0; !s && i < n; i++) {
        char *end;
        op_trial t;
        int64_t id = strtoll(ids[i], &end, 10);
        if (end == ids[i] || *end)
            return op_error_set(e, OP_ERR_ARG, "\"%s\" is not the number of a trial", ids[i]);
        s = op_store_get(d->store, id, &t, e);
        if (s)
            return s;
        if (i && !d->json)
            putchar('\n');
        s = d->json ? print_line(d, &t, e) : show_trial(d, &t, e);
        op_trial_release(&t);
    }
    return s;
}

/* ---- import ---- */

static op_status import_files(desk *d, const char *const *paths, int n, op_error *e)
{
    op_import_options o = {.passages = (int32_t)d->o->passages};
    op_status s = OP_OK;
    for (int i = 0; !s && i < n; i++) {
        op_import_result r;
        s = op_import_file(d->store, paths[i], &d->words.chat, &o, &r, e);
        if (!s && d->json) {
            json_t *x = json_pack("{ss ss sI sI sI}", "file", paths[i], "form", r.form, "lines", (json_int_t)r.lines, "trials", (json_int_t)r.trials, "marks", (json_int_t)r.marks);
            cli_print_json(x);
            json_decref(x);
        } else if (!s)
            printf("%s: form %s, %" PRId64 " lines, %" PRId64 " trials, %" PRId64 " marks\n", paths[i], r.form, r.lines, r.trials, r.marks);
    }
    return s;
}

static op_status export_to(desk *d, const char *path, op_error *e)
{
    if (path && !(d->out = fopen(path, "wx")))
        return op_error_set(e, OP_ERR_IO, "%s: %s", path, op_path_exists(path) ? "is there already" : "could not be written");
    op_status s = each(d, export_one, e);
    if (path && fclose(d->out) && !s)
        s = op_error_set(e, OP_ERR_IO, "%s: could not be written", path);
    d->out = stdout;
    return s;
}

static bool is_server(const char *url)
{
    return !strncmp(url, "postgresql://", 13) || !strncmp(url, "postgres://", 11);
}

static op_status act(desk *d, const char *verb, const char *const *words, int n, op_error *e)
{
    const char *path = d->o->store;
    bool importing = !strcmp(verb, "import");
    if (!importing && !is_server(path) && !op_path_exists(path + (strncmp(path, "sqlite:", 7) ? 0 : 7)))
        return op_error_set(e, OP_ERR_ARG, "%s: there is no such store", path); /* only import makes one */
    op_status s = d->o->model ? op_subject_open_words(&d->words, d->o->model, e) : OP_OK;
    s = s ? s : op_store_open(&d->store, path, e);
    if (s)
        return s;
    if (importing)
        return import_files(d, words, n, e);
    if (!strcmp(verb, "show"))
        return show(d, words, n, e);
    if (!strcmp(verb, "export"))
        return export_to(d, n ? words[0] : NULL, e);
    return !strcmp(verb, "list") ? each(d, list_one, e) : stats(d, e);
}

static int run(const cli_command *c, int argc, char **argv)
{
    static const struct {
        const char *name;
        int least, most; /* words after it */
    } verbs[] = {{"list", 0, 0}, {"show", 1, 7}, {"import", 1, 7}, {"export", 0, 1}, {"stats", 0, 0}};
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    int v = 0, code;
    while (v < 5 && (!a.n_words || strcmp(a.words[0], verbs[v].name) != 0))
        v++;
    op_error e = {0};
    if (v == 5)
        code = cli_usage_error(c, "%s%s%s: expected list, show, import, export or stats", a.n_words ? "unknown action \"" : "no action", a.n_words ? a.words[0] : "",
                               a.n_words ? "\"" : "");
    else if (a.n_words - 1 < verbs[v].least)
        code = cli_usage_error(c, "%s wants %s", verbs[v].name, v == 1 ? "the numbers of trials" : "files");
    else if (a.n_words - 1 > verbs[v].most)
        code = cli_usage_error(c, "unexpected argument \"%s\"", a.words[verbs[v].most + 1]);
    else if (!o.store)
        code = cli_usage_error(c, "store=FILE or store=postgresql://... is needed");
    else if (v == 2 && !o.model)
        code = cli_usage_error(c, "import needs model=MODEL, whose tokenizer turns text into tokens");
    else {
        desk d = {.o = &o, .json = a.json, .colour = cli_colour(stdout), .out = stdout};
        op_buf_init(&d.line, (size_t)1 << 30);
        code = act(&d, verbs[v].name, a.words + 1, a.n_words - 1, &e) ? cli_fail(&e) : 0;
        op_buf_release(&d.line);
        op_store_close(d.store);
        op_subject_close(&d.words);
    }
    op_config_release(&o, table);
    return code;
}

const cli_command cli_trials = {
    "trials", "list, show, import and export trials and feedback",
    "list|stats store=STORE [tag=NAME value=VALUE ...] | show ID... store=STORE model=MODEL | import FILE... store=STORE model=MODEL | export [FILE] store=STORE",
    "A trial is one response with what was said about it: marks on tokens, a reward, alternatives, what it redoes. A run keeps its trials in\n"
    "trials.db; STORE is such a file, or postgresql://user@host/database. show prints every token with its mark, log-probability and\n"
    "alternatives: green was marked good, red bad ([+good+] and [-bad-] without colour), dim tokens were placed by the teacher. import takes\n"
    "operant's own lines, fine-grained feedback, PRM800K, Label Studio, hh-rlhf, model-written evals and TRL's preference forms, plain or gzipped,\n"
    "and tells them by their keys; the same file twice is there once. export writes JSON lines that import takes back without loss (docs/trials.md); with model=MODEL they have text\n"
    "beside the tokens.\n\n"
    "examples:\n"
    "  operant trials import feedback.json store=trials.db model=models/SmolLM2-135M-Instruct.Q4_1.gguf\n"
    "  operant trials list store=trials.db judged=yes limit=20\n"
    "  operant trials show 17 18 store=trials.db model=models/SmolLM2-135M-Instruct.Q4_1.gguf\n"
    "  operant trials export marked.jsonl store=trials.db by=ann model=models/SmolLM2-135M-Instruct.Q4_1.gguf\n"
    "  operant trials stats store=postgresql://operant@localhost/lab --json",
    table, run, NULL};
