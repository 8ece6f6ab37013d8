/* The chamber in a session: episodes as cues, and the judge as a teacher. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "chamber/parts.h"
#include "io/json.h"
#include "trial/settings.h"

static const char name[] = "chamber";

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
}

/* ---- teacher ---- */

enum { SEGMENT, WORD };
enum { SUCCESS, GRADED, NONE };

typedef struct teacher {
    const op_tokenizer *tokenizer;
    bool marks, alternative;
    int span, reward;
    double noise;
    int64_t noise_seed;
} teacher;

/* The same response to the same episode gets the same mistakes. */
static bool mistaken(const teacher *c, const op_chamber_episode *x, const op_trial *t, int i)
{
    uint64_t h = 0xcbf29ce484222325u ^ x->index; /* FNV-1a */
    for (int32_t k = 0; k < t->n_response; k++)
        h = (h ^ (uint32_t)t->response[k]) * 0x100000001b3u;
    return op_rng_uniform((uint64_t)c->noise_seed, (uint64_t)OP_STREAM_CHAMBER | (uint64_t)(SLOT_NOISE | i << 8) << 32, h) < c->noise;
}

/* What the right response says from the first wrong word on, and its end token. */
static op_status propose(const teacher *c, op_trial *t, int32_t at, const char *right, int32_t instead, op_error *e)
{
    const char *rest = right + instead - (instead > 0 && right[instead - 1] == ' '); /* a word's token begins with its space */
    op_tokens ids;
    op_tokens_init(&ids);
    op_status s = op_tokenizer_encode(c->tokenizer, rest, strlen(rest), OP_ENCODE_CONTINUE, &ids, e);
    int32_t n = (int32_t)ids.n, eos = op_tokenizer_eos(c->tokenizer), *all = s ? NULL : op_alloc_array(ids.n + 1, sizeof *all);
    if (!s && !all)
        s = no_memory(e);
    if (!s && n)
        memcpy(all, ids.ids, ids.n * sizeof *all);
    if (!s && eos >= 0)
        all[n++] = eos;
    if (!s && n)
        s = op_trial_add_alternative(t, at, all, n, NAN, true, name, e);
    op_free(all);
    op_tokens_release(&ids);
    return s;
}

static op_status give_marks(const teacher *c, op_trial *t, const op_chamber_episode *x, const op_chamber_verdict *v, op_error *e)
{
    op_status s = OP_OK;
    bool proposed = false;
    for (int i = 0; i < v->n && !s; i++) {
        const op_chamber_mark *m = &v->marks[i];
        bool bad = m->value < 0;
        int32_t start, end;
        s = op_trial_span(t, c->tokenizer, bad && c->span == WORD ? m->word : m->start, bad && c->span == WORD ? m->word_end : m->end, &start, &end, e);
        if (!s && c->marks)
            s = op_trial_add_mark(t, start, end, mistaken(c, x, t, i) ? -m->value : m->value, name, m->note, e);
        if (s || !bad || !c->alternative || proposed)
            continue;
        proposed = true;
        s = op_trial_span(t, c->tokenizer, m->word, m->word_end, &start, &end, e);
        s = s ? s : propose(c, t, start, x->right.text, v->instead, e);
    }
    return s;
}

static op_status teach_one(const teacher *c, op_trial *t, const char *words, op_error *e)
{
    op_chamber_episode x;
    op_chamber_verdict v = {0};
    char *text = NULL;
    op_status s = op_chamber_recall(words, &x, e);
    s = s ? s : op_trial_text(t, c->tokenizer, 0, t->n_response, &text, e);
    s = s ? s : op_chamber_judge(&x, text, &v, e);
    s = s ? s : give_marks(c, t, &x, &v, e);
    if (!s && json_object_set_new(t->tags, "habit", json_string(v.habit ? v.habit : "right")))
        s = no_memory(e);
    if (!s && c->reward != NONE)
        s = op_teacher_reward(t, c->reward == SUCCESS ? v.success : v.reward, name, e);
    op_chamber_verdict_release(&v);
    op_chamber_release(&x);
    op_free(text);
    return s;
}

static op_status teach(op_teacher *t, op_trial *const *trials, size_t n, op_error *e)
{
    for (size_t i = 0; i < n; i++) {
        const char *words = json_string_value(json_object_get(trials[i]->tags, "episode"));
        if (words && teach_one(t->ctx, trials[i], words, e))
            return op_error_prefix(e, "%s: trial %lld", name, (long long)trials[i]->id);
    }
    return OP_OK;
}

static op_status open_teacher(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "marks", "span", "reward", "alternative", "noise", "noise_seed", NULL};
    op_status s = op_teacher_new(out, name, sizeof(teacher), e);
    if (s)
        return s;
    teacher *c = (*out)->ctx;
    *c = (teacher){.tokenizer = room->chat->tokenizer, .marks = true, .alternative = true, .noise_seed = (int64_t)(room->seed & INT64_MAX)};
    (*out)->teach = teach;
    s = op_settings_check(settings, keys, name, e);
    s = s ? s : op_json_get_bool(settings, "marks", false, &c->marks, name, e);
    s = s ? s : op_json_get_bool(settings, "alternative", false, &c->alternative, name, e);
    s = s ? s : op_settings_choice(settings, "span", "segment|word", &c->span, name, e);
    s = s ? s : op_settings_choice(settings, "reward", "success|graded|none", &c->reward, name, e);
    s = s ? s : op_settings_number(settings, "noise", 0, 1, &c->noise, name, e);
    s = s ? s : op_json_get_int(settings, "noise_seed", false, 0, INT64_MAX, &c->noise_seed, name, e);
    if (s) {
        op_teacher_close(*out);
        *out = NULL;
    }
    return s;
}

const op_teacher_type op_chamber_teachers[] = {{name, "knows the right answer to every episode of the chamber, segment by segment", open_teacher}, {0}};

/* ---- source of cues ---- */

typedef struct source {
    op_cue_source base;
    op_chamber *world;
    const op_chat *chat;
    uint64_t first;
} source;

static op_status draw(op_cue_source *c, uint64_t index, op_cue *out, op_error *e)
{
    const source *f = c->ctx;
    op_chamber_episode x;
    op_tokens tokens;
    *out = (op_cue){0};
    op_status s = op_chamber_make(f->world, f->first + index, &x, e);
    if (s)
        return s;
    op_tokens_init(&tokens);
    out->messages = json_pack("[{ss ss}]", "role", "user", "content", x.prompt);
    out->tags = json_incref(x.tags);
    s = out->messages ? op_chat_encode(f->chat, out->messages, NULL, true, &tokens, NULL, NULL, e) : no_memory(e);
    if (!s) {
        out->prompt = tokens.ids;
        out->n_prompt = (int32_t)tokens.n;
        tokens.ids = NULL;
    } else
        op_cue_release(out);
    op_tokens_release(&tokens);
    op_chamber_release(&x);
    return s;
}

static void free_source(op_cue_source *c)
{
    source *f = c->ctx;
    op_chamber_close(f->world);
    op_free(f);
}

/* Settings of the world are words: whatever JSON says of one, it is set as a command line would. */
static op_status set_option(op_chamber_options *o, const char *key, const json_t *value, op_error *e)
{
    op_buf word;
    op_buf_init(&word, 1 << 16);
    op_status s = op_buf_printf(&word, "%s=", key);
    size_t i;
    const json_t *one;
    if (json_is_array(value)) {
        json_array_foreach(value, i, one)
            s = s ? s : op_buf_printf(&word, "%s%s", i ? "," : "", json_is_string(one) ? json_string_value(one) : "?");
    } else if (!s) {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        s = json_is_string(value) ? op_buf_puts(&word, json_string_value(value)) : text ? op_buf_puts(&word, text) : OP_ERR_NOMEM;
        op_free(text);
    }
    s = s ? no_memory(e) : op_config_set(o, op_chamber_table, word.data, e);
    op_buf_release(&word);
    return s;
}

static op_status read_settings(const json_t *settings, op_chamber_options *o, int64_t *first, int64_t *episodes, op_error *e)
{
    const char *key;
    json_t *value;
    op_status s = op_json_get_int(settings, "first", false, 0, INT64_MAX, first, name, e);
    s = s ? s : op_json_get_int(settings, "episodes", false, 0, INT32_MAX, episodes, name, e);
    json_object_foreach((json_t *)settings, key, value)
        if (!s && strcmp(key, "type") && strcmp(key, "first") && strcmp(key, "episodes"))
            s = set_option(o, key, value, e);
    return s;
}

static op_status open_source(op_cue_source **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    op_chamber_options o;
    int64_t first = 0, episodes = 0;
    *out = NULL;
    if (!room->chat->tmpl)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "cues of the chamber: the model has no chat template");
    source *f = op_alloc_zero(1, sizeof *f);
    if (!f)
        return no_memory(e);
    op_status s = op_config_init(&o, op_chamber_table, e);
    if (!s) {
        s = read_settings(settings, &o, &first, &episodes, e);
        s = s ? s : op_chamber_open(&f->world, &o, e);
        op_config_release(&o, op_chamber_table);
    }
    if (s) {
        op_free(f);
        return op_error_prefix(e, "cues of the chamber");
    }
    f->chat = room->chat;
    f->first = (uint64_t)first;
    f->base = (op_cue_source){.ctx = f, .n = (uint64_t)episodes, .draw = draw, .free = free_source};
    *out = &f->base;
    return OP_OK;
}

const op_cue_source_type op_chamber_sources[] = {{name, "episodes of the chamber, made as they are drawn", open_source}, {0}};
