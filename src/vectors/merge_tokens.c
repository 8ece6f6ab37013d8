/* Aligning the vocabularies of several models, as mergekit's tokenizer_source does: the result has the tokens of one model or of all, and every model's
 * embedding is brought into their order. A token that a model lacks gets the row of the base, of the one model that has it, or the mean of those that have it. */
#include "vectors/merge.h"

#include <stdio.h>
#include <stdlib.h>

#include <operant/file.h>
#include <operant/log.h>
#include <operant/tokenizer.h>

#include "io/file.h"
#include "io/json.h"
#include "io/tensors.h"

/* The words of one model: ids by text. */
typedef struct lexicon {
    json_t *tokenizer; /* tokenizer.json */
    json_t *ids;       /* {text: id} */
    int64_t rows;      /* of its embedding: larger ids are of no use */
} lexicon;

struct op_merge_words {
    const op_merge_config *c;
    lexicon *of; /* [n_models] */
    int n_models;
    json_t *ids;        /* {text: id} of the result */
    json_t *tokenizer;  /* tokenizer.json of the result */
    bool changed;       /* it is another than the donor's */
    int donor;          /* whose tokenizer it was, and whose other files are taken */
    const char **words; /* [n] by id; borrowed from `ids` */
    size_t n;
    int64_t rows; /* n, padded */
    int64_t *row; /* [n_models, n] the model's row of a word, -1: none */
};

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "tokenizers: out of memory");
}

/* ---- reading ---- */

static op_status put_id(lexicon *x, const char *text, json_int_t id, op_error *e)
{
    return id < 0 || id >= x->rows ? OP_OK : json_object_set_new(x->ids, text, json_integer(id)) ? no_memory(e) : OP_OK;
}

static op_status read_ids(lexicon *x, const char *path, op_error *e)
{
    const json_t *vocabulary = json_object_get(json_object_get(x->tokenizer, "model"), "vocab"), *item;
    const char *key;
    size_t i;
    op_status s = OP_OK;
    if (!(x->ids = json_object()))
        return no_memory(e);
    if (!json_is_object(vocabulary) && !json_is_array(vocabulary))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tokenizer.json has no vocabulary", path);
    json_object_foreach((json_t *)vocabulary, key, item)
        if (!s && json_is_integer(item))
            s = put_id(x, key, json_integer_value(item), e);
    json_array_foreach(vocabulary, i, item) /* unigram: [[text, score], ...] */
        if (!s && json_is_string(json_array_get(item, 0)))
            s = put_id(x, json_string_value(json_array_get(item, 0)), (json_int_t)i, e);
    json_array_foreach(json_object_get(x->tokenizer, "added_tokens"), i, item)
    {
        const char *text = json_string_value(json_object_get(item, "content"));
        if (!s && text && json_is_integer(json_object_get(item, "id")))
            s = put_id(x, text, json_integer_value(json_object_get(item, "id")), e);
    }
    return s;
}

static const op_weights_tensor *embedding(const op_weights *w)
{
    for (size_t i = 0; i < op_weights_count(w); i++)
        if (op_merge_is_vocabulary(op_weights_at(w, i)->name))
            return op_weights_at(w, i);
    return NULL;
}

/* A model without a tokenizer is taken to have the base's words, as in mergekit. */
static op_status read_lexicon(op_merge_words *w, int model, const op_merge_model *m, op_error *e)
{
    lexicon *x = &w->of[model];
    const op_weights_tensor *t = embedding(m->weights);
    char *path = op_path_join(op_weights_base_path(m->weights), "tokenizer.json"), *own = op_path_join(m->path, "tokenizer.json");
    op_status s = path && own ? OP_OK : no_memory(e);
    x->rows = t && t->rank == 2 ? t->shape[0] : 0;
    const char *file = own && op_path_exists(own) ? own : path;
    if (!s && op_path_exists(file))
        s = op_json_read(&x->tokenizer, file, e);
    else if (!s && !model)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: has no tokenizer.json, which is needed to align vocabularies; for a .gguf: operant export --format hf", m->path);
    else if (!s)
        op_log(OP_LOG_WARN, "%s: has no tokenizer.json: taken to have the words of \"%s\"", m->path, w->c->models[0]);
    if (!s && !x->tokenizer)
        x->tokenizer = json_incref(w->of[0].tokenizer);
    if (!s)
        s = read_ids(x, m->path, e);
    op_free(path);
    op_free(own);
    return s;
}

static int64_t id_in(const lexicon *x, const char *text)
{
    const json_t *id = json_object_get(x->ids, text);
    return id ? (int64_t)json_integer_value(id) : -1;
}

/* ---- the words of the result ---- */

/* Adds a token to the result's tokenizer.json, with the next id. `like`: an entry of another model's added_tokens, or NULL. */
static op_status add_token(op_merge_words *w, const char *text, const json_t *like, op_error *e)
{
    json_t *list = json_object_get(w->tokenizer, "added_tokens");
    json_int_t id = (json_int_t)json_object_size(w->ids);
    json_t *entry = like ? json_copy((json_t *)like)
                         : json_pack("{si ss sb sb sb sb sb}", "id", 0, "content", text, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 1, "special", 0);
    if (!entry || json_object_set_new(entry, "id", json_integer(id))) {
        json_decref(entry);
        return no_memory(e);
    }
    if (!list && !json_object_set_new(w->tokenizer, "added_tokens", json_array()))
        list = json_object_get(w->tokenizer, "added_tokens");
    w->changed = true;
    return json_array_append_new(list, entry) || json_object_set_new(w->ids, text, json_integer(id)) ? no_memory(e) : OP_OK;
}

typedef struct numbered {
    const char *text;
    int64_t id;
} numbered;

static int by_id(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static const json_t *added_entry(const lexicon *x, const char *text)
{
    size_t i;
    const json_t *item;
    json_array_foreach(json_object_get(x->tokenizer, "added_tokens"), i, item)
    {
        const char *content = json_string_value(json_object_get(item, "content"));
        if (content && !strcmp(content, text))
            return item;
    }
    return NULL;
}

/* The words of the other models that the base lacks: first the plain ones, model by model in the order of their ids, then the added ones. */
static op_status unite(op_merge_words *w, op_error *e)
{
    op_status s = OP_OK;
    for (int pass = 0; pass < 2 && !s; pass++)
        for (int m = 0; m < w->n_models && !s; m++) {
            size_t n = 0;
            const char *key;
            json_t *value;
            numbered *list = op_alloc_array(json_object_size(w->of[m].ids) + 1, sizeof *list);
            if (!list)
                return no_memory(e);
            json_object_foreach(w->of[m].ids, key, value)
                if (!json_object_get(w->ids, key))
                    list[n++] = (numbered){key, (int64_t)json_integer_value(value)};
            qsort(list, n, sizeof *list, by_id);
            for (size_t i = 0; i < n && !s; i++) {
                const json_t *added = added_entry(&w->of[m], list[i].text);
                if (!added == !pass)
                    s = add_token(w, list[i].text, added, e);
            }
            op_free(list);
        }
    return s;
}

/* Words beyond the embedding are of no use, and leave the tokenizer. */
static op_status drop_useless(op_merge_words *w, op_error *e)
{
    const lexicon *x = &w->of[w->donor];
    json_t *list = json_object_get(w->tokenizer, "added_tokens"), *value;
    const char *key;
    for (size_t i = json_array_size(list); i-- > 0;)
        if (json_integer_value(json_object_get(json_array_get(list, i), "id")) >= x->rows) {
            json_array_remove(list, i);
            w->changed = true;
        }
    json_object_foreach(json_object_get(json_object_get(w->tokenizer, "model"), "vocab"), key, value)
        if (json_integer_value(value) >= x->rows)
            return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: the tokenizer has the word \"%.40s\" beyond the %lld rows of the embedding", w->c->models[w->donor], key,
                                (long long)x->rows);
    return OP_OK;
}

/* Ids must be 0 .. n-1 for the rows of an embedding to be those of the words. */
static op_status number_words(op_merge_words *w, op_error *e)
{
    const char *key;
    json_t *value;
    w->n = json_object_size(w->ids);
    w->words = op_alloc_zero(w->n, sizeof *w->words);
    w->row = op_alloc_array(w->n * (size_t)w->n_models, sizeof *w->row);
    if (!w->words || !w->row)
        return no_memory(e);
    json_object_foreach(w->ids, key, value)
    {
        json_int_t id = json_integer_value(value);
        if (id >= (json_int_t)w->n || w->words[id])
            return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tokenizer.json has %zu words, but one (\"%.40s\") has the id %lld", w->c->models[w->donor], w->n, key, (long long)id);
        w->words[id] = key;
        for (int m = 0; m < w->n_models; m++)
            w->row[(size_t)m * w->n + (size_t)id] = id_in(&w->of[m], key);
    }
    w->rows = (int64_t)w->n;
    if (w->c->pad_to > 1)
        w->rows = (w->rows + w->c->pad_to - 1) / w->c->pad_to * w->c->pad_to;
    return OP_OK;
}

op_status op_merge_words_make(op_merge_words **out, const op_merge_config *c, const op_merge_plan *p, op_error *e)
{
    *out = NULL;
    if (c->vocabulary == OP_VOCABULARY_COPY)
        return OP_OK;
    op_merge_words *w = op_alloc_zero(1, sizeof *w);
    if (!w)
        return no_memory(e);
    w->c = c;
    w->n_models = c->n_models;
    w->donor = c->vocabulary == OP_VOCABULARY_MODEL ? c->vocabulary_model : 0;
    w->of = op_alloc_zero((size_t)c->n_models, sizeof *w->of);
    op_status s = w->of ? OP_OK : no_memory(e);
    for (int m = 0; m < c->n_models && !s; m++)
        s = read_lexicon(w, m, &p->models[m], e);
    if (!s && (!(w->ids = json_copy(w->of[w->donor].ids)) || !(w->tokenizer = json_deep_copy(w->of[w->donor].tokenizer))))
        s = no_memory(e);
    if (!s)
        s = drop_useless(w, e);
    if (!s && c->vocabulary == OP_VOCABULARY_UNION)
        s = unite(w, e);
    for (int i = 0; i < c->n_tokens && !s; i++)
        if (!json_object_get(w->ids, c->tokens[i].text))
            s = add_token(w, c->tokens[i].text, NULL, e);
    if (!s)
        s = number_words(w, e);
    if (s)
        op_merge_words_free(w);
    else
        *out = w;
    return s;
}

void op_merge_words_free(op_merge_words *w)
{
    if (!w)
        return;
    for (int m = 0; m < w->n_models && w->of; m++) {
        json_decref(w->of[m].tokenizer);
        json_decref(w->of[m].ids);
    }
    json_decref(w->ids);
    json_decref(w->tokenizer);
    op_free(w->of);
    op_free(w->words);
    op_free(w->row);
    op_free(w);
}

int64_t op_merge_words_count(const op_merge_words *w)
{
    return w->rows;
}

/* ---- rows ---- */

/* The row of a token that a model lacks, or that is to be the same in all. */
typedef struct borrowed {
    bool needed, force;
    int from; /* an input, -1: zeros, -2: the mean of those that have it */
    int64_t row;
} borrowed;

static const op_merge_token *wish_of(const op_merge_config *c, const char *text)
{
    for (int i = 0; i < c->n_tokens; i++)
        if (!strcmp(c->tokens[i].text, text))
            return &c->tokens[i];
    return NULL;
}

static int64_t row_in(const op_merge_words *w, const op_merge_job *j, int input, size_t id)
{
    return w->row[(size_t)j->in[input].index * w->n + id];
}

/* What the configuration says of a token. */
static op_status grant(const op_merge_words *w, const op_merge_job *j, const op_merge_token *wish, borrowed *b, op_error *e)
{
    b->force = wish->force;
    if (!b->needed && !b->force)
        return OP_OK;
    b->needed = true;
    b->from = -1;
    if (wish->model == -1)
        return OP_OK;
    if (wish->model == -2)
        return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: token \"%.40s\" needs a source", w->c->name, wish->line, wish->text);
    for (int i = 0; i < j->n; i++)
        if (j->in[i].index == wish->model)
            b->from = i;
    if (b->from < 0)
        return op_error_set(e, OP_ERR_ARG, "%s: line %d: model \"%s\" is not among those that are merged", w->c->name, wish->line, w->c->models[wish->model]);
    const lexicon *from = &w->of[wish->model];
    b->row = wish->id >= 0 ? wish->id : id_in(from, wish->other ? wish->other : wish->text);
    return b->row >= 0 && b->row < from->rows
               ? OP_OK : op_error_set(e, OP_ERR_MISMATCH, "%s: line %d: model \"%s\" has no token \"%.40s\"", w->c->name, wish->line, w->c->models[wish->model],
                                      wish->other ? wish->other : wish->text);
}

/* Where the row of a token comes from that some input lacks: the only one that has it, the base, or the mean. */
static op_status find_source(const op_merge_words *w, const op_merge_job *j, size_t id, borrowed *b, op_error *e)
{
    int having = 0, last = -1;
    *b = (borrowed){0};
    for (int i = 0; i < j->n; i++)
        if (row_in(w, j, i, id) >= 0) {
            having++;
            last = i;
        }
    b->needed = having < j->n;
    bool base = j->words_base >= 0 && row_in(w, j, j->words_base, id) >= 0;
    b->from = having <= 1 ? last : base ? j->words_base : -2;
    b->row = b->from >= 0 ? row_in(w, j, b->from, id) : 0;
    const op_merge_token *wish = w->c->n_tokens ? wish_of(w->c, w->words[id]) : NULL;
    return wish ? grant(w, j, wish, b, e) : OP_OK;
}

typedef struct rows {
    const op_merge_words *w;
    op_merge_job *j;
    float *whole[OP_MERGE_INPUTS_MAX]; /* tensors that cannot be read in parts */
    int64_t cols;
} rows;

static op_status read_row(const rows *r, int input, int64_t row, float *out, op_error *e)
{
    const op_merge_input *in = &r->j->in[input];
    if (row >= in->tensor->shape[0])
        return op_error_set(e, OP_ERR_MISMATCH, "%s: tensor \"%s\" has %lld rows, but the tokenizer a token %lld", in->model->path, in->tensor->name,
                            (long long)in->tensor->shape[0], (long long)row);
    op_status s = OP_OK;
    if (r->whole[input])
        memcpy(out, r->whole[input] + row * r->cols, (size_t)r->cols * sizeof *out);
    else
        s = op_tensor_read_f32(in->tensor->stored, row * r->cols, r->cols, out, e);
    for (int64_t k = 0; k < r->cols && !s; k++)
        out[k] = op_round(r->j->type, out[k]);
    return s;
}

static op_status mean_row(const rows *r, size_t id, float *out, float *room, op_error *e)
{
    op_status s = OP_OK;
    int n = 0;
    memset(out, 0, (size_t)r->cols * sizeof *out);
    for (int i = 0; i < r->j->n && !s; i++) {
        int64_t row = row_in(r->w, r->j, i, id);
        if (row < 0)
            continue;
        s = read_row(r, i, row, room, e);
        op_lane_add(r->j->type, room, out, (int)r->cols);
        n++;
    }
    op_lane_divide(r->j->type, (float)n, out, (int)r->cols);
    return s;
}

static op_status fill_word(const rows *r, size_t id, float *lent, float *room, op_error *e)
{
    borrowed b;
    op_status s = find_source(r->w, r->j, id, &b, e);
    if (!s && b.needed && b.from >= 0)
        s = read_row(r, b.from, b.row, lent, e);
    else if (!s && b.needed && b.from == -2)
        s = mean_row(r, id, lent, room, e);
    else if (!s && b.needed)
        memset(lent, 0, (size_t)r->cols * sizeof *lent);
    for (int i = 0; i < r->j->n && !s; i++) {
        int64_t row = row_in(r->w, r->j, i, id);
        float *to = r->j->in[i].held + (int64_t)id * r->cols;
        if (row >= 0 && !b.force)
            s = read_row(r, i, row, to, e);
        else
            memcpy(to, lent, (size_t)r->cols * sizeof *to);
    }
    return s;
}

/* Rows beyond the words, which make the vocabulary a round number, are the mean of the others (Hewitt, 2021: initializing new word embeddings). */
static op_status pad(const rows *r, float *held, op_error *e)
{
    int64_t n = (int64_t)r->w->n;
    double *sum = n < r->w->rows ? op_alloc_zero((size_t)r->cols, sizeof *sum) : NULL;
    if (n == r->w->rows)
        return OP_OK;
    if (!sum)
        return no_memory(e);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < r->cols; k++)
            sum[k] += held[i * r->cols + k];
    for (int64_t i = n; i < r->w->rows; i++)
        for (int64_t k = 0; k < r->cols; k++)
            held[i * r->cols + k] = op_round(r->j->type, (float)(sum[k] / (double)n));
    op_free(sum);
    return OP_OK;
}

op_status op_merge_words_hold(const op_merge_words *w, op_merge_job *j, op_error *e)
{
    rows r = {.w = w, .j = j, .cols = j->count / j->shape[0]};
    float *lent = op_alloc_array((size_t)r.cols * 2, sizeof *lent);
    op_status s = lent ? OP_OK : no_memory(e);
    for (int i = 0; i < j->n && !s; i++) {
        op_merge_input *in = &j->in[i];
        if (!(in->held = op_alloc_array((size_t)j->count, sizeof *in->held)))
            s = no_memory(e);
        if (!s && !in->tensor->plain && !(r.whole[i] = op_alloc_array((size_t)in->tensor->count, sizeof *r.whole[i])))
            s = no_memory(e);
        if (!s && r.whole[i])
            s = op_weights_read(in->model->weights, in->tensor, r.whole[i], e);
    }
    for (size_t id = 0; id < w->n && !s; id++)
        s = fill_word(&r, id, lent, lent + r.cols, e);
    for (int i = 0; i < j->n; i++) {
        if (!s)
            s = pad(&r, j->in[i].held, e);
        op_free(r.whole[i]);
    }
    op_free(lent);
    return s;
}

/* ---- files ---- */

static op_status copy_from(const char *model, const char *dir, const char *name, op_error *e)
{
    char *from = op_path_join(model, name), *to = op_path_join(dir, name);
    op_map m = {0};
    op_status s = from && to ? OP_OK : no_memory(e);
    if (!s && op_path_exists(from)) {
        if (!(s = op_map_open(&m, from, e)))
            s = op_file_put(to, m.data, m.size, e);
    } else if (!s) {
        s = op_path_remove(to, e);
    }
    op_map_close(&m);
    op_free(from);
    op_free(to);
    return s;
}

op_status op_merge_words_write(const op_merge_words *w, const char *dir, op_error *e)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                                        "tokenizer.model", "chat_template.jinja"};
    op_status s = OP_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && w->donor && !s; i++)
        s = copy_from(w->c->models[w->donor], dir, names[i], e);
    char *path = op_path_join(dir, "tokenizer.json");
    if (!s && !path)
        s = no_memory(e);
    if (!s && w->changed)
        s = op_json_write(path, w->tokenizer, e);
    op_free(path);
    return s;
}

/* ---- chat template ---- */

static const char chatml[] = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
                             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/* The template that most of the models have; the first of equals. A new string, or NULL where there is none. */
static op_status commonest(const op_merge_plan *p, char **out, op_error *e)
{
    char *found[OP_MERGE_INPUTS_MAX] = {0};
    int votes[OP_MERGE_INPUTS_MAX] = {0}, best = -1;
    op_status s = OP_OK;
    *out = NULL;
    for (int m = 0; m < p->n_models && !s; m++) {
        op_tokenizer *t = NULL;
        s = op_tokenizer_open(&t, p->models[m].path, e);
        if (s != OP_ERR_NOMEM)
            s = OP_OK; /* a model without words has no vote */
        const char *text = t ? op_tokenizer_chat_template(t) : NULL;
        if (!s && text && !(found[m] = op_strdup(text)))
            s = no_memory(e);
        op_tokenizer_free(t);
        for (int k = 0; k <= m && found[m]; k++)
            if (found[k] && !strcmp(found[k], found[m])) {
                votes[k]++;
                best = best < 0 || votes[k] > votes[best] ? k : best;
                break;
            }
    }
    for (int m = 0; m < p->n_models; m++)
        if (m == best && !s)
            *out = found[m];
        else
            op_free(found[m]);
    return s;
}

op_status op_merge_template_write(const op_merge_config *c, const op_merge_plan *p, const char *dir, op_error *e)
{
    char *text = NULL;
    op_status s = OP_OK;
    if (!c->chat_template || !*c->chat_template)
        return OP_OK;
    if (!strcmp(c->chat_template, "auto"))
        s = commonest(p, &text, e);
    else if (!strcmp(c->chat_template, "chatml") || strchr(c->chat_template, '{'))
        s = (text = op_strdup(strchr(c->chat_template, '{') ? c->chat_template : chatml)) ? OP_OK : no_memory(e);
    else
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: chat_template: found \"%.40s\", expected auto, chatml or a template", c->name, c->chat_template);
    if (s || !text)
        return s;
    char *jinja = op_path_join(dir, "chat_template.jinja"), *config = op_path_join(dir, "tokenizer_config.json");
    json_t *j = NULL;
    s = jinja && config ? op_file_put(jinja, text, strlen(text), e) : no_memory(e);
    if (!s && op_path_exists(config) && !(s = op_json_read(&j, config, e)) && json_object_get(j, "chat_template")) {
        s = json_object_set_new(j, "chat_template", json_string(text)) ? no_memory(e) : op_json_write(config, j, e);
    }
    json_decref(j);
    op_free(jinja);
    op_free(config);
    op_free(text);
    return s;
}
