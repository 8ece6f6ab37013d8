/* A frozen judge: another model reads question and response and says yes or no; the reward is how much likelier yes is. It proves first, on replies that
 * people labelled, that it can tell good from bad.
 *
 * Settings: {"type": "judge", ...}
 *     model      needed: what operant opens as a model
 *     labelled   needed: JSON lines {"messages" or "prompt", "response", "label": true or false, "tags"}: if the area under the ROC curve of its verdicts
 *                on them is below min_auroc, it may not teach; or the list itself
 *     min_auroc  0.7 (default) .. 1
 *     prompt     the words that it sees, with {question} (the user's last message), {dialogue} (all messages), {response} and {tag.NAME} filled in;
 *                default: "Question:\n{question}\n\nAnswer:\n{response}\n\nIs this a good answer? Reply with yes or no."
 *     system     a system message before it
 *     raw        true: the prompt is continued as plain text; default false: it is the user's message in the judge's chat template
 *     yes, no    verdict words; default Yes, yes and No, no, with and without a space before them
 *     low, high  the reward of a certain no and of a certain yes; default 0 and 1
 *     dtype      auto (default), f32, bf16
 *     name       what the feedback is signed with; default "judge"
 *
 *   reward = low + (high - low) P(yes) / (P(yes) + P(no)), each a sum over its words, a word being the product of its tokens
 *
 * The area under the ROC curve is the probability that a good reply gets a higher verdict than a bad one, ties counting half. */
#include "trial/teachers.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/jsonl.h>
#include <operant/subject.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/json.h"
#include "trial/settings.h"
#include "trial/trial_parts.h"

enum { WORDS_MAX = 32, LABELLED_MAX = 5000, PROMPT_MAX = 1 << 22 };

typedef struct judge {
    json_t *settings;      /* keeps the strings alive */
    op_subject subject;
    op_pass *pass;
    const op_chat *room;   /* of the one who is judged */
    const char *prompt, *system, *title;
    bool raw;
    double low, high, min_auroc, auroc;
    op_tokens word[WORDS_MAX]; /* yes first, then no */
    int n_words, n_yes;
    char hash[65];
} judge;

static op_status no_memory(const judge *j, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "judge %s: out of memory", j->title);
}

/* ---- what it sees ---- */

typedef struct scene {
    const json_t *messages;  /* or NULL: `prompt` */
    const char *prompt;
    const char *response;
    const json_t *tags;
} scene;

static op_status add_dialogue(const scene *x, op_buf *out)
{
    size_t i;
    json_t *m;
    json_array_foreach((json_t *)(uintptr_t)x->messages, i, m) {
        const char *role = json_string_value(json_object_get(m, "role")), *content = json_string_value(json_object_get(m, "content"));
        op_status s = op_buf_printf(out, "%s%s: %s", i ? "\n" : "", role ? role : "?", content ? content : "");
        if (s)
            return s;
    }
    return x->messages ? OP_OK : op_buf_puts(out, x->prompt);
}

static op_status add_question(const scene *x, op_buf *out)
{
    for (size_t i = json_array_size(x->messages); i-- > 0;) {
        json_t *m = json_array_get(x->messages, i);
        const char *role = json_string_value(json_object_get(m, "role")), *content = json_string_value(json_object_get(m, "content"));
        if (role && content && !strcmp(role, "user"))
            return op_buf_puts(out, content);
    }
    return add_dialogue(x, out);
}

static op_status add_tag(const scene *x, const char *tag, op_buf *out)
{
    const json_t *value = json_object_get(x->tags, tag);
    if (json_is_string(value))
        return op_buf_puts(out, json_string_value(value));
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    op_status s = value && !text ? OP_ERR_NOMEM : text ? op_buf_puts(out, text) : OP_OK;
    op_free(text);
    return s;
}

/* The length of a placeholder at `at`, braces included; 0: there is none. */
static size_t placeholder(const char *at, char what[64])
{
    size_t n = 0;
    while (n < 63 && (isalnum((unsigned char)at[1 + n]) || (at[1 + n] && strchr("._-", at[1 + n]))))
        n++;
    if (at[0] != '{' || !n || at[1 + n] != '}')
        return 0;
    memcpy(what, at + 1, n);
    what[n] = 0;
    return n + 2;
}

static op_status check_prompt(const judge *j, op_error *e)
{
    char what[64];
    bool response = false;
    for (const char *at = j->prompt; *at; at++) {
        if (!placeholder(at, what))
            continue;
        response |= !strcmp(what, "response");
        if (strcmp(what, "response") != 0 && strcmp(what, "question") != 0 && strcmp(what, "dialogue") != 0 && strncmp(what, "tag.", 4) != 0)
            return op_error_set(e, OP_ERR_FORMAT, "judge %s: key \"prompt\": found {%s}, expected {question}, {dialogue}, {response} or {tag.NAME}", j->title, what);
    }
    return response ? OP_OK : op_error_set(e, OP_ERR_FORMAT, "judge %s: key \"prompt\": {response} is missing: it would judge what it does not see", j->title);
}

static op_status fill_in(const judge *j, const scene *x, op_buf *out, op_error *e)
{
    char what[64];
    op_status s = OP_OK;
    for (const char *at = j->prompt; !s && *at;) {
        size_t n = placeholder(at, what);
        if (!n)
            s = op_buf_add(out, at, 1);
        else if (!strcmp(what, "response"))
            s = op_buf_puts(out, x->response);
        else if (!strcmp(what, "question"))
            s = add_question(x, out);
        else if (!strcmp(what, "dialogue"))
            s = add_dialogue(x, out);
        else
            s = add_tag(x, what + 4, out);
        at += n ? n : 1;
    }
    return s ? no_memory(j, e) : OP_OK;
}

static op_status encode(const judge *j, const scene *x, op_tokens *out, op_error *e)
{
    op_buf words;
    op_buf_init(&words, PROMPT_MAX);
    op_status s = fill_in(j, x, &words, e);
    if (!s && j->raw) {
        s = op_tokenizer_encode(j->subject.tokenizer, words.data, words.len, OP_ENCODE_AFFIX, out, e);
    } else if (!s) {
        json_t *messages = json_array();
        bool ok = messages && (!j->system || !json_array_append_new(messages, json_pack("{ss ss}", "role", "system", "content", j->system)));
        ok = ok && !json_array_append_new(messages, json_pack("{ss ss}", "role", "user", "content", words.data));
        s = ok ? op_chat_encode(&j->subject.chat, messages, NULL, true, out, NULL, NULL, e) : no_memory(j, e);
        json_decref(messages);
    }
    op_buf_release(&words);
    return s;
}

/* ---- the verdict ---- */

static double log_sum(const double *x, int n)
{
    double most = x[0], sum = 0;
    for (int i = 1; i < n; i++)
        most = fmax(most, x[i]);
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - most);
    return most + log(sum);
}

/* log P(yes) - log P(no): the prompt once, and every word as a branch of it. */
static op_status weigh(judge *j, const op_tokens *prompt, double *odds, op_error *e)
{
    int32_t P = (int32_t)prompt->n, T = P, longest = 0;
    for (int i = 0; i < j->n_words; i++) {
        T += (int32_t)j->word[i].n;
        longest = (int32_t)j->word[i].n > longest ? (int32_t)j->word[i].n : longest;
    }
    int32_t max = op_model_get_config(j->subject.model)->max_positions;
    if (!P || P + longest > max)
        return op_error_set(e, OP_ERR_ARG, "judge %s: what it is to see has %d tokens, expected 1..%d", j->title, P, max - longest);
    op_seq seqs[WORDS_MAX + 1] = {{.length = P, .parent = -1, .adapter = j->subject.adapter}};
    double score[WORDS_MAX] = {0};
    int32_t *ids = op_alloc_array((size_t)T, sizeof *ids);
    float *logp = op_alloc_array((size_t)T, sizeof *logp);
    uint8_t *want = op_alloc_zero((size_t)T, 1);
    op_status s = ids && logp && want ? OP_OK : no_memory(j, e);
    if (!s) {
        memcpy(ids, prompt->ids, prompt->n * sizeof *ids);
        for (int32_t i = 0, at = P; i < j->n_words; at += seqs[++i].length) {
            seqs[i + 1] = (op_seq){.start = at, .length = (int32_t)j->word[i].n, .parent = 0, .branch = P, .adapter = j->subject.adapter};
            memcpy(ids + at, j->word[i].ids, j->word[i].n * sizeof *ids);
        }
        memset(want + P, 1, (size_t)(T - P));
        s = op_model_forward(j->subject.model, j->pass, &(op_batch){T, j->n_words + 1, ids, seqs}, &(op_how){0}, e);
    }
    s = s ? s : op_model_logprobs(j->subject.model, j->pass, want, NULL, logp, e);
    for (int i = 0; !s && i < j->n_words; i++)
        for (int32_t k = 0; k < seqs[i + 1].length; k++)
            score[i] += (double)logp[seqs[i + 1].start + k];
    if (!s)
        *odds = log_sum(score, j->n_yes) - log_sum(score + j->n_yes, j->n_words - j->n_yes);
    op_free(ids);
    op_free(logp);
    op_free(want);
    return s;
}

static op_status verdict(judge *j, const scene *x, double *odds, op_error *e)
{
    op_tokens prompt;
    op_tokens_init(&prompt);
    op_status s = encode(j, x, &prompt, e);
    s = s ? s : weigh(j, &prompt, odds, e);
    op_tokens_release(&prompt);
    return s;
}

/* ---- teaching ---- */

static op_status teach_one(op_teacher *teacher, op_trial *t, op_error *e)
{
    judge *j = teacher->ctx;
    op_buf prompt;
    op_buf_init(&prompt, OP_TRIAL_TEXT_MAX);
    char *response = NULL;
    double odds;
    op_status s = op_trial_text(t, j->room->tokenizer, 0, t->n_response, &response, e);
    if (!s && !t->messages && op_tokenizer_decode(j->room->tokenizer, t->prompt, (size_t)t->n_prompt, OP_DECODE_SKIP_SPECIAL, &prompt))
        s = no_memory(j, e);
    s = s ? s : verdict(j, &(scene){t->messages, prompt.data ? prompt.data : "", response, t->tags}, &odds, e);
    s = s ? op_error_prefix(e, "trial %lld", (long long)t->id), s
          : op_teacher_reward(t, j->low + (j->high - j->low) / (1 + exp(-odds)), teacher->name, e);
    op_free(response);
    op_buf_release(&prompt);
    return s;
}

static op_status teach(op_teacher *t, op_trial *const *trials, size_t n, op_error *e)
{
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++)
        s = teach_one(t, trials[i], e);
    return s;
}

/* ---- the examination ---- */

typedef struct examination {
    judge *j;
    const char *file;
    int n, n_good;
    double *odds;  /* [LABELLED_MAX] */
    bool *good;
} examination;

static op_status examine(void *ctx, json_t *row, int line, op_error *e)
{
    static const char *const keys[] = {"id", "messages", "prompt", "response", "label", "tags", NULL};
    examination *x = ctx;
    char where[300];
    snprintf(where, sizeof where, "%.260s: line %d", x->file, line);
    json_t *messages = NULL, *tags = NULL;
    const char *prompt = NULL, *response;
    bool good = false;
    op_status s = x->n == LABELLED_MAX ? op_error_set(e, OP_ERR_FORMAT, "%s: expected at most %d labelled replies", where, LABELLED_MAX) : OP_OK;
    s = s ? s : op_settings_check(row, keys, where, e);
    s = s ? s : op_json_get_array(row, "messages", false, &messages, where, e);
    s = s ? s : op_json_get_string(row, "prompt", false, &prompt, where, e);
    s = s ? s : op_json_get_string(row, "response", true, &response, where, e);
    s = s ? s : op_json_get_bool(row, "label", true, &good, where, e);
    s = s ? s : op_json_get_object(row, "tags", false, &tags, where, e);
    if (!s && !messages == !prompt)
        s = op_error_set(e, OP_ERR_FORMAT, "%s: expected one of \"messages\" and \"prompt\"", where);
    s = s ? s : verdict(x->j, &(scene){messages, prompt, response, tags}, &x->odds[x->n], e);
    if (s)
        return s;
    x->good[x->n++] = good;
    x->n_good += good;
    return OP_OK;
}

static op_status sit_examination(judge *j, const op_classroom *room, op_error *e)
{
    const char *file;
    char *path = NULL;
    json_t *row, *rows = json_object_get(j->settings, "labelled");
    size_t i;
    examination x = {.j = j, .odds = op_alloc_array(LABELLED_MAX, sizeof *x.odds), .good = op_alloc_array(LABELLED_MAX, sizeof *x.good)};
    op_status s = x.odds && x.good ? OP_OK : no_memory(j, e);
    if (json_is_array(rows)) {
        x.file = "labelled";
        json_array_foreach(rows, i, row)
            s = s ? s : examine(&x, row, (int)i + 1, e);
    } else {
        s = s ? s : op_json_get_string(j->settings, "labelled", true, &file, "judge", e);
        s = s ? s : op_settings_path(&path, room->dir, file, e);
        x.file = path;
        s = s ? s : op_json_lines(path, examine, &x, e);
    }
    if (!s && (!x.n_good || x.n_good == x.n))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: %d replies, %d of them good: expected some good and some bad", x.file, x.n, x.n_good);
    double above = 0;
    for (int a = 0; !s && a < x.n; a++)
        for (int k = 0; x.good[a] && k < x.n; k++)
            above += x.good[k] ? 0 : x.odds[a] > x.odds[k] ? 1 : x.odds[a] == x.odds[k] ? 0.5 : 0;
    if (!s) {
        j->auroc = above / ((double)x.n_good * (x.n - x.n_good));
        if (!(j->auroc >= j->min_auroc))
            s = op_error_set(e, OP_ERR_MISMATCH, "judge %s: AUROC %.3f on the %d labelled replies of %s, expected at least %g: it may not teach", j->title,
                             j->auroc, x.n, x.file, j->min_auroc);
    }
    op_free(x.odds);
    op_free(x.good);
    op_free(path);
    return s;
}

/* ---- state: who it was, so that a resume has the same judge ---- */

static op_status save(op_teacher *t, json_t **state, op_error *e)
{
    const judge *j = t->ctx;
    *state = json_pack("{ss sf}", "hash", j->hash, "auroc", j->auroc);
    return *state ? OP_OK : no_memory(j, e);
}

static op_status load(op_teacher *t, const json_t *state, op_error *e)
{
    const judge *j = t->ctx;
    const char *hash;
    op_status s = op_json_get_string(state, "hash", true, &hash, "state of the judge", e);
    if (!s && strcmp(hash, j->hash) != 0)
        s = op_error_set(e, OP_ERR_MISMATCH, "judge %s: its weights are %.12s..., the training began with %.12s...", j->title, j->hash, hash);
    return s;
}

/* ---- opening ---- */

static op_status add_word(void *ctx, const char *word, op_error *e)
{
    judge *j = ctx;
    if (j->n_words == WORDS_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "judge: expected at most %d verdict words", WORDS_MAX);
    op_tokens *ids = &j->word[j->n_words++];
    op_tokens_init(ids);
    op_status s = op_tokenizer_encode(j->subject.tokenizer, word, strlen(word), OP_ENCODE_CONTINUE, ids, e);
    return s || ids->n ? s : op_error_set(e, OP_ERR_FORMAT, "judge: a verdict word is empty");
}

static op_status read_words(judge *j, op_error *e)
{
    static const char *const words[2][4] = {{"Yes", "yes", " Yes", " yes"}, {"No", "no", " No", " no"}};
    for (int side = 0; side < 2; side++) {
        const char *key = side ? "no" : "yes";
        op_status s = op_settings_words(j->settings, key, false, add_word, j, "judge", e);
        for (int i = 0; !s && !json_object_get(j->settings, key) && i < 4; i++)
            s = add_word(j, words[side][i], e);
        if (s)
            return s;
        if (!side)
            j->n_yes = j->n_words;
    }
    return j->n_yes && j->n_words > j->n_yes ? OP_OK : op_error_set(e, OP_ERR_FORMAT, "judge: expected at least one word for yes and one for no");
}

static op_status open_subject(op_subject *out, const json_t *settings, const char *dir, op_error *e)
{
    int dtype = 0;
    char *path = NULL;
    const char *title;
    op_status s = op_json_get_string(settings, "model", true, &title, "judge", e);
    s = s ? s : op_settings_choice(settings, "dtype", OP_SUBJECT_DTYPES, &dtype, "judge", e);
    s = s ? s : op_settings_path(&path, dir, title, e);
    s = s ? s : op_subject_open(out, path, &(op_model_options){.act = op_subject_dtype(dtype, NULL)}, e);
    op_free(path);
    return s;
}

/* Of base and adapters. */
static op_status hash_weights(const op_model *m, char hex[65], op_error *e)
{
    char text[2 * 65];
    op_status s = op_model_hash(m, hex, e);
    if (s || !op_model_adapter_count(m))
        return s;
    memcpy(text, hex, 64);
    s = op_model_fingerprint(m, text + 64, e);
    if (!s)
        op_hash(text, strlen(text), hex);
    return s;
}

op_status op_judge_weights(const json_t *settings, const char *dir, char hex[65], op_error *e)
{
    op_subject subject = {0};
    op_status s = open_subject(&subject, settings, dir, e);
    s = s ? s : hash_weights(subject.model, hex, e);
    op_subject_close(&subject);
    return s;
}

static op_status open_model(judge *j, const op_classroom *room, op_error *e)
{
    op_status s = open_subject(&j->subject, j->settings, room->dir, e);
    if (!s && !j->raw && !j->subject.tmpl)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "judge %s: it has no chat template: say raw: true and write the prompt as text that goes on with the verdict", j->title);
    s = s ? s : hash_weights(j->subject.model, j->hash, e);
    return s ? s : op_pass_new(&j->pass, j->subject.model, e);
}

static op_status read_settings(op_teacher *t, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "model", "labelled", "min_auroc", "prompt", "system", "raw", "yes", "no", "low", "high", "dtype", "name", NULL};
    judge *j = t->ctx;
    const json_t *o = j->settings;
    op_status s = op_settings_check(o, keys, "judge", e);
    s = s ? s : op_json_get_string(o, "model", true, &j->title, "judge", e);
    s = s ? s : op_json_get_string(o, "prompt", false, &j->prompt, "judge", e);
    s = s ? s : op_json_get_string(o, "system", false, &j->system, "judge", e);
    s = s ? s : op_json_get_string(o, "name", false, &t->name, "judge", e);
    s = s ? s : op_json_get_bool(o, "raw", false, &j->raw, "judge", e);
    s = s ? s : op_settings_number(o, "low", -1e6, 1e6, &j->low, "judge", e);
    s = s ? s : op_settings_number(o, "high", -1e6, 1e6, &j->high, "judge", e);
    s = s ? s : op_settings_number(o, "min_auroc", 0.7, 1, &j->min_auroc, "judge", e);
    s = s ? s : check_prompt(j, e);
    s = s ? s : open_model(j, room, e);
    s = s ? s : read_words(j, e);
    return s ? s : sit_examination(j, room, e);
}

static void free_judge(op_teacher *t)
{
    judge *j = t->ctx;
    for (int i = 0; i < j->n_words; i++)
        op_tokens_release(&j->word[i]);
    op_pass_free(j->pass);
    op_subject_close(&j->subject);
    json_decref(j->settings);
}

op_status op_teacher_judge_examined(op_teacher **out, const json_t *settings, const op_classroom *room, double *auroc, op_error *e)
{
    op_teacher *t;
    op_status s = op_teacher_new(&t, "judge", sizeof(judge), e);
    if (s)
        return s;
    judge *j = t->ctx;
    *j = (judge){.settings = json_deep_copy(settings), .room = room->chat, .high = 1, .min_auroc = 0.7, .auroc = NAN, .title = "?",
                 .prompt = "Question:\n{question}\n\nAnswer:\n{response}\n\nIs this a good answer? Reply with yes or no."};
    t->teach = teach;
    t->save = save;
    t->load = load;
    t->free = free_judge;
    s = j->settings ? read_settings(t, room, e) : no_memory(j, e);
    *auroc = j->auroc;
    if (s) {
        op_teacher_close(t);
        return s;
    }
    *out = t;
    return OP_OK;
}

op_status op_teacher_judge_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    double auroc;
    return op_teacher_judge_examined(out, settings, room, &auroc, e);
}
