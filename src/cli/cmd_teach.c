/* operant teach: a person at the terminal looks at trials and says what of them was good. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <operant/env.h>
#include <operant/generate.h>

#include "cli/teach.h"

typedef struct options {
    char *model, *store, *by, *tag, *draft;
    bool all;
    int64_t max_tokens, seed, threads;
    double temperature;
    int dtype;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"store", OP_OPTION_STRING, AT(store), "trials.db", 0, 0, NULL, "where the trials are: an SQLite file or a postgresql:// URL"},
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "the model whose trials they are: for its words, its alternatives and another try"},
    {"by", OP_OPTION_STRING, AT(by), NULL, 0, 0, NULL, "who you are: signs the feedback; default your user name"},
    {"all", OP_OPTION_BOOL, AT(all), "false", 0, 0, NULL, "also trials that somebody judged already"},
    {"tag", OP_OPTION_STRING, AT(tag), NULL, 0, 0, NULL, "only trials with this tag: name=value"},
    {"draft", OP_OPTION_STRING, AT(draft), NULL, 0, 0, NULL, "where feedback lies until it is accepted; default STORE.draft"},
    {"max_tokens", OP_OPTION_INT, AT(max_tokens), "128", 1, 1 << 20, NULL, "new tokens when the model tries again"},
    {"temperature", OP_OPTION_FLOAT, AT(temperature), "1", 0, 100, NULL, "of another try; 0: always the likeliest token"},
    {"seed", OP_OPTION_INT, AT(seed), "1", 0, 0, NULL, "of other tries"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, OP_SUBJECT_DTYPES, "type of activations and products"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

typedef struct lesson {
    const options *o;
    cli_subject subject;
    op_store *store;
    op_pass *pass;
    float *logits;       /* [V] */
    teach_desk desk;
    teach_view view;
    int64_t *ids;        /* trials to be shown */
    size_t n_ids, room, next;
    char typed[1000];
    char message[400];
    char policy[65];
    uint64_t tries;
} lesson;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory");
}

/* ---- the trials ---- */

static op_status note_id(void *ctx, const op_trial *t, op_error *e)
{
    lesson *l = ctx;
    if (l->n_ids == l->room) {
        l->room = l->room ? 2 * l->room : 64;
        int64_t *ids = realloc(l->ids, l->room * sizeof *ids);
        if (!ids)
            return no_memory(e);
        l->ids = ids;
    }
    l->ids[l->n_ids++] = t->id;
    return OP_OK;
}

static op_status find_trials(lesson *l, op_error *e)
{
    char tag[300];
    op_store_query q = {.judged = l->o->all ? 0 : -1};
    if (l->o->tag) {
        snprintf(tag, sizeof tag, "%s", l->o->tag);
        char *value = strchr(tag, '=');
        if (!value)
            return op_error_set(e, OP_ERR_ARG, "tag: found \"%.60s\", expected name=value", tag);
        *value = 0;
        q.tag = tag;
        q.value = value + 1;
    }
    int64_t draft = 0;
    op_status s = teach_desk_find_draft(&l->desk, &draft, e);
    if (!s && draft) /* first what was left unfinished */
        s = note_id(l, &(op_trial){.id = draft}, e);
    s = s ? s : op_store_each(l->store, &q, note_id, l, e);
    for (size_t i = 1, n = l->n_ids; draft && i < n; i++)
        if (l->ids[i] == draft) {
            memmove(l->ids + i, l->ids + i + 1, (--l->n_ids - i) * sizeof *l->ids);
            break;
        }
    return s;
}

/* What the model finds likeliest at the cursor. */
static op_status look(lesson *l, op_error *e)
{
    const op_trial *t = &l->desk.trial;
    teach_view *v = &l->view;
    int32_t V = op_model_get_config(l->subject.model)->vocab, row = t->n_prompt - 1 + v->cursor;
    v->n_top = 0;
    op_status s = op_model_logits(l->subject.model, l->pass, &row, 1, l->logits, e);
    if (s)
        return s;
    float most = l->logits[0];
    double sum = 0;
    for (int32_t i = 1; i < V; i++)
        most = l->logits[i] > most ? l->logits[i] : most;
    for (int32_t i = 0; i < V; i++)
        sum += exp((double)(l->logits[i] - most));
    for (int32_t i = 0; i < V; i++) { /* insertion into a short sorted list */
        int k = v->n_top < TEACH_TOP ? v->n_top++ : TEACH_TOP;
        for (; k > 0 && l->logits[i] > l->logits[v->top[k - 1].id]; k--)
            if (k < TEACH_TOP)
                v->top[k] = v->top[k - 1];
        if (k < TEACH_TOP)
            v->top[k].id = i;
    }
    for (int k = 0; k < v->n_top; k++)
        v->top[k].logprob = (float)((double)(l->logits[v->top[k].id] - most) - log(sum));
    return OP_OK;
}

static op_status show(lesson *l, op_trial *t, op_error *e)
{
    const op_model_config *c = op_model_get_config(l->subject.model);
    int32_t n = t->n_prompt + t->n_response;
    op_status s = op_trial_check(t, c->vocab, e);
    if (!s && n > c->max_positions)
        s = op_error_set(e, OP_ERR_ARG, "trial %lld has %d tokens, the model takes %d", (long long)t->id, n, c->max_positions);
    int32_t *ids = s ? NULL : malloc((size_t)n * sizeof *ids);
    if (!s && !ids)
        s = no_memory(e);
    if (!s) {
        memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
        if (t->n_response)
            memcpy(ids + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
        op_seq seq = {.length = n, .parent = -1, .adapter = l->subject.adapter};
        s = op_model_forward(l->subject.model, l->pass, &(op_batch){n, 1, ids, &seq}, &(op_how){0}, e);
    }
    free(ids);
    if (s) {
        op_trial_release(t);
        return s;
    }
    teach_desk_lay(&l->desk, t);
    l->view.cursor = 0;
    l->view.anchor = -1;
    l->view.all_ten = l->view.help = false;
    return look(l, e);
}

/* The next trial of the list; *done when there is none. */
static op_status go_on(lesson *l, bool *done, op_error *e)
{
    op_trial t;
    *done = l->next == l->n_ids;
    if (*done)
        return OP_OK;
    op_status s = op_store_get(l->store, l->ids[l->next++], &t, e);
    s = s ? s : show(l, &t, e);
    l->view.place = (long)l->next;
    l->view.of = (long)l->n_ids;
    return s;
}

/* ---- another try ---- */

static op_status try_again(lesson *l, op_error *e)
{
    const op_trial *t = &l->desk.trial;
    const teach_action *a = teach_desk_alternative(&l->desk, l->view.cursor);
    int32_t kept = l->view.cursor, placed = a ? a->n : 0, forced = kept + placed, n = t->n_prompt + forced;
    op_trial again = {0};
    op_request r = {.adapter = l->subject.adapter, .share = -1};
    int32_t *prompt = malloc((size_t)n * sizeof *prompt);
    if (!prompt)
        return no_memory(e);
    memcpy(prompt, t->prompt, (size_t)t->n_prompt * sizeof *prompt);
    if (kept)
        memcpy(prompt + t->n_prompt, t->response, (size_t)kept * sizeof *prompt);
    if (placed)
        memcpy(prompt + t->n_prompt + kept, a->ids, (size_t)placed * sizeof *prompt);
    op_trial bare = *t; /* the same cue */
    bare.response = NULL;
    bare.logprobs = NULL;
    bare.n_response = bare.n_forced = bare.n_marks = bare.n_alternatives = 0;
    bare.has_reward = false;
    bare.by = NULL;
    op_status s = op_trial_copy(&again, &bare, e);
    if (!s && !l->policy[0])
        s = op_model_hash(l->subject.model, l->policy, e);
    r.prompt = prompt;
    r.n_prompt = n;
    r.sampling = (op_sampling){.temperature = l->o->temperature, .top_p = 1, .repetition_penalty = 1, .max_tokens = (int32_t)l->o->max_tokens,
                               .seed = (uint64_t)l->o->seed + 1000003 * (uint64_t)t->id + l->tries++};
    bool ended = forced && op_tokenizer_is_special(l->subject.tokenizer, prompt[n - 1]);
    if (!s && !ended)
        s = op_generate(l->subject.model, &r, 1, &(op_generate_options){.max_batch = 1, .interrupt = &cli_stop}, e);
    if (!s) {
        again.n_response = forced + r.n;
        again.n_forced = forced;
        again.response = malloc((size_t)again.n_response * sizeof *again.response + 1);
        again.logprobs = malloc((size_t)again.n_response * sizeof *again.logprobs + 1);
        s = again.response && again.logprobs ? OP_OK : no_memory(e);
    }
    if (!s) {
        for (int32_t i = 0; i < again.n_response; i++) {
            again.response[i] = i < forced ? prompt[t->n_prompt + i] : r.tokens[i - forced];
            again.logprobs[i] = i < forced ? NAN : r.logprobs[i - forced];
        }
        memcpy(again.policy, l->policy, sizeof again.policy);
        again.sampler = r.sampling;
        again.finish = ended ? OP_FINISH_STOP : r.finish;
        again.id = 0;
        again.redo_of = t->id;
        again.redo_at = kept;
        again.time = (int64_t)time(NULL) * 1000;
        s = op_store_add(l->store, &again, NULL, e);
    }
    s = s ? s : teach_desk_accept(&l->desk, l->store, e);
    if (!s)
        s = show(l, &again, e);
    else
        op_trial_release(&again);
    op_request_release(&r);
    free(prompt);
    return s;
}

/* ---- keys ---- */

static op_status mark(lesson *l, double value, op_error *e)
{
    teach_view *v = &l->view;
    int32_t from = v->anchor < 0 || v->cursor < v->anchor ? v->cursor : v->anchor, to = (v->anchor > v->cursor ? v->anchor : v->cursor) + 1;
    to = to < l->desk.trial.n_response ? to : l->desk.trial.n_response;
    v->anchor = -1;
    if (from >= to)
        return op_error_set(e, OP_ERR_ARG, "there is no token here to mark");
    return teach_desk_do(&l->desk, &(teach_action){.what = TEACH_MARK, .start = from, .end = to, .value = value}, e);
}

static op_status take(lesson *l, int which, op_error *e)
{
    teach_choice *c = &l->view.top[which];
    l->view.all_ten = false;
    if (which >= l->view.n_top)
        return OP_OK;
    return teach_desk_do(&l->desk, &(teach_action){.what = TEACH_ALTERNATIVE, .start = l->view.cursor, .ids = &c->id, .n = 1, .value = fmin((double)c->logprob, 0)}, e);
}

/* A line typed at the foot of the screen; false: given up. */
static bool type_line(lesson *l)
{
    size_t n = 0;
    l->typed[0] = 0;
    for (;;) {
        l->view.typing = l->typed;
        teach_screen_draw(&l->view);
        int key = teach_screen_key();
        if (key == '\r' || key == '\n' || key == TEACH_ESCAPE || key == TEACH_STOPPED) {
            l->view.typing = NULL;
            return n && (key == '\r' || key == '\n');
        }
        if (key == 127 || key == 8) {
            while (n && ((unsigned char)l->typed[--n] & 0xc0) == 0x80)
                ;
        } else if (key >= 32 && key < 256 && n + 1 < sizeof l->typed) {
            l->typed[n++] = (char)key;
        }
        l->typed[n] = 0;
    }
}

static op_status type_continuation(lesson *l, op_error *e)
{
    op_tokens ids;
    if (!type_line(l))
        return OP_OK;
    op_tokens_init(&ids);
    op_status s = op_tokenizer_encode(l->subject.tokenizer, l->typed, strlen(l->typed), OP_ENCODE_CONTINUE, &ids, e);
    if (!s)
        s = teach_desk_do(&l->desk, &(teach_action){.what = TEACH_ALTERNATIVE, .start = l->view.cursor, .ids = ids.ids, .n = (int32_t)ids.n, .value = NAN, .typed = true}, e);
    op_tokens_release(&ids);
    return s;
}

static op_status move_to(lesson *l, int32_t where, op_error *e)
{
    int32_t last = l->desk.trial.n_response;
    where = where < 0 ? 0 : where > last ? last : where;
    if (where == l->view.cursor)
        return OP_OK;
    l->view.cursor = where;
    return look(l, e);
}

static op_status reward(lesson *l, double value, op_error *e)
{
    return teach_desk_do(&l->desk, &(teach_action){.what = TEACH_REWARD, .value = value}, e);
}

/* One key. An error of the person's is told at the foot of the screen. */
static op_status press(lesson *l, int key, bool *done, op_error *e)
{
    teach_view *v = &l->view;
    if (v->help) {
        v->help = false;
        return OP_OK;
    }
    if (v->all_ten && key == '0')
        return take(l, 9, e);
    if (key >= '1' && key <= '9')
        return take(l, key - '1', e);
    v->all_ten = false;
    op_status s = OP_OK;
    switch (key) {
    case TEACH_LEFT: return move_to(l, v->cursor - 1, e);
    case TEACH_RIGHT: return move_to(l, v->cursor + 1, e);
    case TEACH_UP: return move_to(l, v->cursor - 10, e);
    case TEACH_DOWN: return move_to(l, v->cursor + 10, e);
    case TEACH_HOME: return move_to(l, 0, e);
    case TEACH_END: return move_to(l, l->desk.trial.n_response, e);
    case TEACH_ESCAPE: v->anchor = -1; return OP_OK;
    case '+':
    case '=': return mark(l, 1, e);
    case '-': return mark(l, -1, e);
    case '0': return mark(l, 0, e);
    case 'v': v->anchor = v->anchor < 0 ? v->cursor : -1; return OP_OK;
    case 'a': v->all_ten = true; return OP_OK;
    case 'g': return reward(l, 1, e);
    case 'b': return reward(l, -1, e);
    case 'n': return reward(l, 0, e);
    case 't': return type_continuation(l, e);
    case 'r': return try_again(l, e);
    case 'u': return teach_desk_undo(&l->desk, e);
    case '?': v->help = true; return OP_OK;
    case '\r':
    case '\n':
        s = teach_desk_accept(&l->desk, l->store, e);
        return s ? s : go_on(l, done, e);
    case 's':
        if (l->desk.n_actions)
            return op_error_set(e, OP_ERR_ARG, "there is a draft: Enter accepts it, u takes it back");
        return go_on(l, done, e);
    default: return OP_OK;
    }
}

static op_status loop(lesson *l, op_error *e)
{
    static const char usual[] = "+ - mark  1-9 take  t type  r again  g b whole  Enter accept  u undo  ? help  q leave";
    bool done = false;
    op_status s = go_on(l, &done, e);
    s = s || done ? s : teach_desk_take_up(&l->desk, e);
    snprintf(l->message, sizeof l->message, "%s%s", l->desk.n_actions ? "the draft was taken up again.  " : "", usual);
    while (!s && !done) {
        l->view.message = l->message;
        teach_screen_draw(&l->view);
        int key = teach_screen_key();
        if (key == TEACH_STOPPED || key == 'q')
            break;
        s = press(l, key, &done, e);
        snprintf(l->message, sizeof l->message, "%.399s", s ? e->message : l->view.all_ten ? "1-9 and 0: which of the ten?" : usual);
        if (s == OP_ERR_ARG || s == OP_ERR_FORMAT)
            s = OP_OK;
    }
    return s == OP_ERR_INTERRUPTED ? OP_OK : s;
}

/* ---- beginning and end ---- */

static op_status open_all(lesson *l, op_error *e)
{
    const options *o = l->o;
    const char *by = o->by ? o->by : getenv("USER") ? getenv("USER") : "person";
    char draft[4096] = "operant-teach.draft";
    const char *file = !strncmp(o->store, "sqlite:", 7) ? o->store + 7 : o->store;
    if (o->draft)
        snprintf(draft, sizeof draft, "%s", o->draft);
    else if (!strstr(o->store, "://"))
        snprintf(draft, sizeof draft, "%s.draft", file);
    op_status s = teach_desk_init(&l->desk, by, draft, e);
    s = s ? s : cli_open(&l->subject, o->model, o->dtype, OP_TRAIN_NONE, e);
    s = s ? s : op_store_open(&l->store, o->store, e);
    s = s ? s : op_pass_new(&l->pass, l->subject.model, e);
    if (!s && !(l->logits = malloc((size_t)op_model_get_config(l->subject.model)->vocab * sizeof *l->logits)))
        s = no_memory(e);
    l->view.desk = &l->desk;
    l->view.tokenizer = l->subject.tokenizer;
    return s ? s : find_trials(l, e);
}

static int run(const cli_command *c, int argc, char **argv)
{
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words || a.json) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "unexpected argument \"%s\"", a.n_words ? a.words[0] : "--json");
    }
    op_env_threads((int)o.threads);
    lesson l = {.o = &o};
    op_error e = {0};
    cli_stop_words = "";
    op_status s = teach_screen_open(&e); /* before the model is read: a pipe is told at once */
    bool screen = !s;
    if (screen)
        teach_screen_close();
    s = s ? s : open_all(&l, &e);
    if (!s && !l.n_ids)
        fprintf(stderr, "no trials to judge in %s%s\n", o.store, o.all ? "" : " (all=true shows those that were judged too)");
    if (!s && l.n_ids) {
        s = teach_screen_open(&e);
        s = s ? s : loop(&l, &e);
        teach_screen_close();
        if (l.desk.n_actions)
            fprintf(stderr, "what you said about trial %lld is kept in %s: the next operant teach takes it up\n", (long long)l.desk.trial.id, l.desk.draft);
    }
    op_pass_free(l.pass);
    op_store_close(l.store);
    teach_desk_release(&l.desk);
    cli_close(&l.subject);
    free(l.logits);
    free(l.ids);
    op_config_release(&o, c->table);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_teach = {
    "teach", "judge trials at the terminal: marks, alternatives, another try", "store=STORE model=MODEL [key=value ...]",
    "Shows the trials of a store that nobody has judged, token by token. Arrows move; + and - mark, 0 takes a mark away; 1 to 9 take one of the model's\n"
    "likeliest tokens there, t types the right continuation, r lets the model try again from here; Enter accepts and goes on, u undoes, ? helps.\n"
    "What is not yet accepted lies in a draft: neither Ctrl-C nor a power cut loses it.\n\n"
    "example:\n  operant teach store=runs/marks/trials.db model=runs/marks by=ann",
    table, run, NULL};
