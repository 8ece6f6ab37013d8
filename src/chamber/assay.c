/* What a model does in a world it was not trained in: the share of right answers and of every habit, by any tags of the episodes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <operant/file.h>
#include <operant/subject.h>

#include "base/mem.h"
#include "chamber/answers.h"
#include "chamber/parts.h"
#include "io/json.h"
#include "ops/ops.h"

#define AT(field) offsetof(op_chamber_assay_options, field)

const op_option op_chamber_assay_table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory; needed"},
    {"partner", OP_OPTION_STRING, AT(partner), NULL, 0, 0, NULL, "a second model of the same vocabulary, which goes on with each reply; unset: the first answers alone"},
    {"handover", OP_OPTION_INT, AT(handover), "1", 1, OP_CHAMBER_SEGMENTS_MAX, NULL, "sentences of a reply (tokens that end in . ? or !) after which the partner goes on; a shorter reply stands"},
    {"output_dir|output", OP_OPTION_STRING, AT(output_dir), NULL, 0, 0, NULL, "where results.json goes; unset: nowhere"},
    {"n", OP_OPTION_INT, AT(n), "300", 1, 1 << 24, NULL, "fresh episodes that are asked"},
    {"by", OP_OPTION_LIST, AT(by), "rule,distance", 0, 0, NULL, "tags of the episodes by whose values answers are counted apart (operant chamber sample --json shows all tags)"},
    {"margin", OP_OPTION_BOOL, AT(margin), "false", 0, 0, NULL, "also how much likelier the right response is than the likeliest competing one, in nats"},
    {"temperature", OP_OPTION_FLOAT, AT(temperature), "1", 0, 10, NULL, "of the answers; 0: greedy"},
    {"threads", OP_OPTION_INT, AT(threads), "1", 0, 4096, NULL, "0: one a core"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "f32", 0, 0, OP_SUBJECT_DTYPES, "type of activations and products"},
    OP_CHAMBER_ROWS(op_chamber_assay_options, world.),
    {0},
};

enum { TAGS_MAX = 16, TRANSCRIPTS = 4, TOKENS_MAX = 1 << 14 };

typedef struct assay {
    const op_chamber_assay_options *o;
    op_subject subject, partner;
    op_pass *pass;
    json_t *all, *by, *transcripts; /* a group; tag: value: group; a list */
    char *words;                    /* o->by, cut */
    const char *tags[TAGS_MAX];
    int n_tags, kept[2];            /* transcripts of wrong and of right answers */
    int32_t ids[TOKENS_MAX];        /* of a prompt and its replies */
    uint8_t want[TOKENS_MAX];
    float logp[TOKENS_MAX];
} assay;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory while measuring in the chamber");
}

/* ---- groups: {n, right, margin, tendency, habits: {name: {possible, shown}}}, sums until the end ---- */

static json_t *new_group(void)
{
    return json_pack("{sI sI sf sf s{}}", "n", (json_int_t)0, "right", (json_int_t)0, "margin", 0.0, "tendency", 0.0, "habits");
}

static int add(json_t *object, const char *key, json_int_t more)
{
    return json_object_set_new(object, key, json_integer(json_integer_value(json_object_get(object, key)) + more));
}

static int add_real(json_t *object, const char *key, double more)
{
    return json_object_set_new(object, key, json_real(json_real_value(json_object_get(object, key)) + more));
}

static int count_in(json_t *g, const chamber_answer *a, double margin)
{
    json_t *habits = json_object_get(g, "habits");
    int bad = add(g, "n", 1) | add(g, "right", a->verdict->success) |
              add_real(g, "margin", margin) | add_real(g, "tendency", a->episode->trigger ? margin : -margin);
    for (int i = 0; i < a->episode->n_wrong && !bad; i++) {
        const char *name = a->episode->wrong[i].habit;
        json_t *habit = json_object_get(habits, name);
        if (!habit && !json_object_set_new(habits, name, json_object()))
            habit = json_object_get(habits, name);
        bad = !habit || add(habit, "possible", 1) | add(habit, "shown", a->verdict->habit && !strcmp(a->verdict->habit, name));
    }
    return bad;
}

/* The group of this value of a tag; what has no such tag is in the group "none". NULL: no memory. */
static json_t *group_of(json_t *groups, const json_t *value)
{
    char *text = json_is_string(value) || !value ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    const char *name = json_is_string(value) ? json_string_value(value) : text ? text : "none";
    json_t *found = json_object_get(groups, name);
    if (!found && !json_object_set_new(groups, name, new_group()))
        found = json_object_get(groups, name);
    op_free(text);
    return found;
}

/* Sums become shares. */
static void finish_group(json_t *g, bool margin)
{
    double n = (double)json_integer_value(json_object_get(g, "n"));
    const char *name;
    json_t *habit;
    json_object_set_new(g, "right", json_real((double)json_integer_value(json_object_get(g, "right")) / (n > 0 ? n : 1)));
    for (int i = 0; i < 2; i++) {
        const char *key = i ? "tendency" : "margin";
        if (margin)
            json_object_set_new(g, key, json_real(json_real_value(json_object_get(g, key)) / (n > 0 ? n : 1)));
        else
            json_object_del(g, key);
    }
    json_object_foreach(json_object_get(g, "habits"), name, habit) {
        json_object_set_new(habit, "rate", json_real((double)json_integer_value(json_object_get(habit, "shown")) / (double)json_integer_value(json_object_get(habit, "possible"))));
        json_object_del(habit, "shown");
    }
}

static int compare_names(const void *a, const void *b)
{
    return strverscmp(*(char *const *)a, *(char *const *)b); /* 9 before 10 */
}

/* The groups of a tag, finished, in the order of its values. NULL: no memory. */
static json_t *finish_groups(json_t *groups, bool margin)
{
    size_t n = 0;
    const char *value, **names = op_alloc_array(json_object_size(groups) + 1, sizeof *names);
    json_t *g, *sorted = names ? json_object() : NULL;
    if (sorted) {
        json_object_foreach(groups, value, g) {
            finish_group(g, margin);
            names[n++] = value;
        }
        qsort(names, n, sizeof *names, compare_names);
    }
    for (size_t i = 0; i < n && sorted; i++)
        if (json_object_set(sorted, names[i], json_object_get(groups, names[i]))) {
            json_decref(sorted);
            sorted = NULL;
        }
    op_free(names);
    return sorted;
}

/* ---- the margin ---- */

/* Appends the reply as a branch of the prompt, which is the first sequence. */
static op_status add_reply(assay *x, const chamber_answer *a, const char *reply, op_batch *batch, op_seq *seqs, op_error *e)
{
    op_tokens whole;
    op_turns turns = {0};
    op_tokens_init(&whole);
    json_t *messages = json_pack("[{ss ss} {ss ss}]", "role", "user", "content", a->episode->prompt, "role", "assistant", "content", reply);
    op_status s = messages ? op_chat_encode(&x->subject.chat, messages, NULL, false, &whole, &turns, NULL, e) : no_memory(e);
    size_t first = a->prompt->n, n = 0;
    while (!s && first + n < whole.n && turns.turn[first + n] >= 0)
        n++;
    if (!s && (!n || memcmp(whole.ids, a->prompt->ids, first * sizeof *whole.ids)))
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "the chat template writes another beginning when a reply follows");
    if (!s && (size_t)batch->n_tokens + n > TOKENS_MAX)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "episode %llu: more than %d tokens in a prompt and its replies", (unsigned long long)a->episode->index, TOKENS_MAX);
    if (!s) {
        memcpy(x->ids + batch->n_tokens, whole.ids + first, n * sizeof *x->ids);
        memset(x->want + batch->n_tokens, 1, n);
        seqs[batch->n_seqs++] = (op_seq){.start = batch->n_tokens, .length = (int32_t)n, .parent = 0, .branch = (int32_t)first, .adapter = x->subject.adapter};
        batch->n_tokens += (int32_t)n;
    }
    json_decref(messages);
    op_turns_release(&turns);
    op_tokens_release(&whole);
    return s;
}

static op_status margin_of(assay *x, const chamber_answer *a, double *margin, op_error *e)
{
    const op_chamber_episode *episode = a->episode;
    op_seq seqs[OP_CHAMBER_WRONG_MAX + 2];
    op_batch batch = {.ids = x->ids, .seqs = seqs, .n_seqs = 1, .n_tokens = (int32_t)a->prompt->n};
    *margin = 0;
    if (!episode->n_wrong)
        return OP_OK;
    if (a->prompt->n >= TOKENS_MAX)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "episode %llu: a prompt of more than %d tokens", (unsigned long long)episode->index, TOKENS_MAX);
    memcpy(x->ids, a->prompt->ids, a->prompt->n * sizeof *x->ids);
    memset(x->want, 0, a->prompt->n);
    seqs[0] = (op_seq){.length = (int32_t)a->prompt->n, .parent = -1, .adapter = x->subject.adapter};
    op_status s = add_reply(x, a, episode->right.text, &batch, seqs, e);
    for (int i = 0; i < episode->n_wrong && !s; i++)
        s = add_reply(x, a, episode->wrong[i].text, &batch, seqs, e);
    s = s ? s : op_model_forward(x->subject.model, x->pass, &batch, &(op_how){0}, e);
    s = s ? s : op_model_logprobs(x->subject.model, x->pass, x->want, NULL, x->logp, e);
    double right = 0, best = -INFINITY;
    for (int32_t i = 1; i < batch.n_seqs && !s; i++) {
        double sum = 0;
        for (int32_t t = 0; t < seqs[i].length; t++)
            sum += x->logp[seqs[i].start + t];
        if (i == 1)
            right = sum;
        else if (sum > best)
            best = sum;
    }
    *margin = right - best;
    if (!s && !isfinite(*margin))
        s = op_error_set(e, OP_ERR_FORMAT, "episode %llu: a reply's log-probability is no number: the model's weights are not finite", (unsigned long long)episode->index);
    return s;
}

/* ---- answers ---- */

static op_status keep_transcript(assay *x, const chamber_answer *a, op_error *e)
{
    bool right = a->verdict->success;
    if (x->kept[right] == TRANSCRIPTS)
        return OP_OK;
    x->kept[right]++;
    json_t *line = json_pack("{ss ss ss si}", "prompt", a->episode->prompt, "response", a->text, "note", right ? "right" : a->verdict->habit, "score", (int)right);
    return json_array_append_new(x->transcripts, line) ? no_memory(e) : OP_OK;
}

static op_status hear(void *ctx, const chamber_answer *a, op_error *e)
{
    assay *x = ctx;
    double margin = 0;
    op_status s = x->o->margin ? margin_of(x, a, &margin, e) : OP_OK;
    if (!s && count_in(x->all, a, margin))
        s = no_memory(e);
    for (int i = 0; i < x->n_tags && !s; i++) {
        json_t *g = group_of(json_object_get(x->by, x->tags[i]), json_object_get(a->episode->tags, x->tags[i]));
        if (!g || count_in(g, a, margin))
            s = no_memory(e);
    }
    return s ? s : keep_transcript(x, a, e);
}

/* ---- the whole ---- */

/* Does an episode among the first have this tag? Some belong to one rule only. */
static op_status find_tag(const op_chamber *world, const char *tag, op_error *e)
{
    enum { LOOKED_AT = 200 };
    bool found = false;
    op_status s = OP_OK;
    for (uint64_t i = 0; i < LOOKED_AT && !found && !s; i++) {
        op_chamber_episode x;
        s = op_chamber_make(world, CHAMBER_FRESH + i, &x, e);
        found = !s && json_object_get(x.tags, tag);
        if (!s)
            op_chamber_release(&x);
    }
    return s || found ? s : op_error_set(e, OP_ERR_ARG, "by: no episode has the tag \"%.60s\"; operant chamber sample --json shows them", tag);
}

/* Cuts o->by. */
static op_status read_tags(assay *x, op_error *e)
{
    op_chamber *world = NULL;
    x->words = x->o->by ? op_strdup(x->o->by) : NULL;
    op_status s = x->o->by && !x->words ? no_memory(e) : op_chamber_open(&world, &x->o->world, e);
    char *rest = NULL;
    for (char *word = s || !x->words ? NULL : strtok_r(x->words, ", ", &rest); word && !s; word = strtok_r(NULL, ", ", &rest)) {
        s = x->n_tags == TAGS_MAX ? op_error_set(e, OP_ERR_ARG, "by: more than %d tags", TAGS_MAX) : find_tag(world, word, e);
        if (!s && json_object_set_new(x->by, word, json_object()))
            s = no_memory(e);
        if (!s)
            x->tags[x->n_tags++] = word;
    }
    op_chamber_close(world);
    return s;
}

static op_status finish(assay *x, json_t **out, op_error *e)
{
    json_t *by = json_object();
    finish_group(x->all, x->o->margin);
    bool bad = json_object_set_new(x->all, "by", by) || json_object_set(x->all, "transcripts", x->transcripts);
    for (int i = 0; i < x->n_tags && !bad; i++)
        bad = json_object_set_new(by, x->tags[i], finish_groups(json_object_get(x->by, x->tags[i]), x->o->margin));
    if (bad)
        return no_memory(e);
    *out = json_incref(x->all);
    char *path = x->o->output_dir ? op_path_join(x->o->output_dir, "results.json") : NULL;
    op_status s = !x->o->output_dir ? OP_OK : !path ? no_memory(e) : op_dir_make(x->o->output_dir, e);
    s = s || !path ? s : op_json_write(path, x->all, e);
    op_free(path);
    return s;
}

/* Both must read each other's tokens. */
static op_status open_partner(assay *x, const op_model_options *how, op_error *e)
{
    op_status s = x->o->margin ? op_error_set(e, OP_ERR_ARG, "margin: of one model's own replies, and a partner goes on with them: unset one of the two") : OP_OK;
    s = s ? s : op_subject_open(&x->partner, x->o->partner, how, e);
    int32_t n = s ? 0 : op_tokenizer_vocab_size(x->subject.tokenizer);
    bool same = s || n == op_tokenizer_vocab_size(x->partner.tokenizer);
    for (int32_t i = 0; i < n && same; i++) {
        size_t a = 0, b = 0;
        const char *mine = op_tokenizer_bytes(x->subject.tokenizer, i, &a), *theirs = op_tokenizer_bytes(x->partner.tokenizer, i, &b);
        same = a == b && (!a || !memcmp(mine, theirs, a));
    }
    return same ? s : op_error_set(e, OP_ERR_UNSUPPORTED, "%s and its partner %s have different vocabularies", x->o->model, x->o->partner);
}

op_status op_chamber_assay(const op_chamber_assay_options *o, const volatile int *stop, json_t **out, op_error *e)
{
    *out = NULL;
    if (!o->model)
        return op_error_set(e, OP_ERR_ARG, "key \"model\" is not set");
    op_threads_set((int)o->threads);
    assay *x = op_alloc_zero(1, sizeof *x);
    if (!x)
        return no_memory(e);
    *x = (assay){.o = o, .all = new_group(), .by = json_object(), .transcripts = json_array(), .subject.adapter = -1};
    op_model_options how = {.act = op_subject_dtype(o->dtype, NULL)};
    op_status s = x->all && x->by && x->transcripts ? read_tags(x, e) : no_memory(e);
    s = s ? s : op_subject_open(&x->subject, o->model, &how, e);
    if (!s && !x->subject.tmpl)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s has no chat template, so it cannot be asked", o->model);
    if (!s && o->partner)
        s = open_partner(x, &how, e);
    if (!s && o->margin)
        s = op_pass_new(&x->pass, x->subject.model, e);
    chamber_asking q = {.chat = &x->subject.chat, .model = x->subject.model, .adapter = x->subject.adapter, .partner = x->partner.model,
                        .partner_adapter = x->partner.adapter, .handover = o->handover, .world = &o->world, .temperature = o->temperature, .stop = stop, .ctx = x, .heard = hear};
    s = s ? s : chamber_ask(&q, o->n, e);
    s = s ? s : finish(x, out, e);
    if (s) {
        json_decref(*out);
        *out = NULL;
    }
    op_pass_free(x->pass);
    op_subject_close(&x->partner);
    op_subject_close(&x->subject);
    json_decref(x->all);
    json_decref(x->by);
    json_decref(x->transcripts);
    op_free(x->words);
    op_free(x);
    return s;
}
