/* Reads a tokenizer.json of the `tokenizers` library. What this file does not know is an error that names it: a step left
 * out would give other ids without a sign. */
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "text/tokenizer_impl.h"

typedef struct reader {
    op_tokenizer *t;
    const char *name;
    op_error *e;
    bool byte_level; /* a ByteLevel step was seen */
} reader;

static op_status unsupported(const reader *r, const char *part, const char *what)
{
    return op_error_set(r->e, OP_ERR_UNSUPPORTED, "%s: %s '%s' is not supported", r->name, part, what);
}

static op_status get_string(const reader *r, const json_t *object, const char *key, const char **out)
{
    return op_json_get_string(object, key, true, out, r->name, r->e);
}

/* A list such as "normalizers" of a Sequence. */
static op_status get_steps(const reader *r, const json_t *object, const char *key, json_t **out)
{
    return op_json_get_array(object, key, true, out, r->name, r->e);
}

static op_status new_normal(const reader *r, op_normal_step *steps, int *n, op_normal_kind kind, const char *pattern,
                            const char *content, op_normal_step **out)
{
    op_normal_step step = {.kind = kind};
    if (*n == OP_STEPS_MAX || strlen(pattern) >= sizeof step.pattern || strlen(content) >= sizeof step.content)
        return op_error_set(r->e, OP_ERR_UNSUPPORTED, "%s: a normalizer of more than %d steps or with a text of more than "
                            "%zu bytes", r->name, OP_STEPS_MAX, sizeof step.pattern - 1);
    strcpy(step.pattern, pattern);
    strcpy(step.content, content);
    steps[*n] = step;
    if (out)
        *out = &steps[*n];
    ++*n;
    return OP_OK;
}

static op_status read_normalizer(const reader *r, const json_t *x)
{
    op_tokenizer *t = r->t;
    const char *type, *content;
    json_t *list, *item;
    if (!x || json_is_null(x))
        return OP_OK;
    op_status s = get_string(r, x, "type", &type);
    if (s)
        return s;
    if (strcmp(type, "NFC") == 0)
        return new_normal(r, t->normal, &t->n_normal, OP_NORMAL_NFC, "", "", NULL);
    if (strcmp(type, "Prepend") == 0) {
        s = get_string(r, x, "prepend", &content);
        return s ? s : new_normal(r, t->normal, &t->n_normal, OP_NORMAL_PREPEND, "", content, NULL);
    }
    if (strcmp(type, "Replace") == 0) {
        const char *pattern = json_string_value(json_object_get(json_object_get(x, "pattern"), "String"));
        if (!pattern || !*pattern)
            return unsupported(r, "normalizer", "Replace with an expression");
        s = get_string(r, x, "content", &content);
        return s ? s : new_normal(r, t->normal, &t->n_normal, OP_NORMAL_REPLACE, pattern, content, NULL);
    }
    if (strcmp(type, "Sequence") != 0)
        return unsupported(r, "normalizer", type);
    s = get_steps(r, x, "normalizers", &list);
    for (size_t i = 0; !s && (item = json_array_get(list, i)); i++)
        s = read_normalizer(r, item);
    return s;
}

static op_status new_split(const reader *r, op_split kind)
{
    if (r->t->n_split == OP_STEPS_MAX)
        return unsupported(r, "pre_tokenizer", "Sequence of many steps");
    r->t->split[r->t->n_split++] = kind;
    return OP_OK;
}

static op_status read_metaspace(reader *r, const json_t *x)
{
    op_tokenizer *t = r->t;
    const char *mark = "\xe2\x96\x81", *scheme = NULL;
    bool legacy_prefix = true, split = true;
    op_normal_step *prepend;
    op_status s = op_json_get_string(x, "replacement", false, &mark, r->name, r->e);
    s = s ? s : op_json_get_string(x, "prepend_scheme", false, &scheme, r->name, r->e);
    s = s ? s : op_json_get_bool(x, "add_prefix_space", false, &legacy_prefix, r->name, r->e);
    s = s ? s : op_json_get_bool(x, "split", false, &split, r->name, r->e);
    if (s)
        return s;
    if (strcmp(mark, "\xe2\x96\x81") != 0)
        return unsupported(r, "pre_tokenizer", "Metaspace with another replacement");
    if (!scheme)
        scheme = legacy_prefix ? "always" : "never";
    if (t->n_split)
        return unsupported(r, "pre_tokenizer", "Metaspace after another step");
    s = new_normal(r, t->prefix, &t->n_prefix, OP_NORMAL_REPLACE, " ", mark, NULL);
    if (!s && strcmp(scheme, "never") != 0) {
        s = new_normal(r, t->prefix, &t->n_prefix, OP_NORMAL_PREPEND_MISSING, "", mark, &prepend);
        if (!s)
            prepend->first_only = strcmp(scheme, "first") == 0;
    }
    return s || !split ? s : new_split(r, OP_SPLIT_META);
}

static op_status read_pre_tokenizer(reader *r, const json_t *x)
{
    op_tokenizer *t = r->t;
    const char *type, *behavior;
    json_t *list, *item;
    op_split kind;
    if (!x || json_is_null(x))
        return OP_OK;
    op_status s = get_string(r, x, "type", &type);
    if (s)
        return s;
    if (strcmp(type, "ByteLevel") == 0) {
        bool prefix = true, use_regex = true;
        r->byte_level = true;
        s = op_json_get_bool(x, "add_prefix_space", false, &prefix, r->name, r->e);
        s = s ? s : op_json_get_bool(x, "use_regex", false, &use_regex, r->name, r->e);
        if (!s && prefix && t->n_split)
            return unsupported(r, "pre_tokenizer", "ByteLevel with add_prefix_space after another step");
        if (!s && prefix)
            s = new_normal(r, t->prefix, &t->n_prefix, OP_NORMAL_PREPEND_MISSING, "", " ", NULL);
        return s || !use_regex ? s : new_split(r, OP_SPLIT_GPT2);
    }
    if (strcmp(type, "Digits") == 0) {
        bool individual = false;
        s = op_json_get_bool(x, "individual_digits", false, &individual, r->name, r->e);
        return s ? s : new_split(r, individual ? OP_SPLIT_DIGITS : OP_SPLIT_DIGIT_RUNS);
    }
    if (strcmp(type, "Split") == 0) {
        bool invert = false;
        const json_t *pattern = json_object_get(x, "pattern");
        const char *regex = json_string_value(json_object_get(pattern, "Regex")), *text = json_string_value(json_object_get(pattern, "String"));
        s = get_string(r, x, "behavior", &behavior);
        s = s ? s : op_json_get_bool(x, "invert", false, &invert, r->name, r->e);
        if (s)
            return s;
        bool removed = strcmp(behavior, "Removed") == 0;
        if (!regex && !text)
            return unsupported(r, "pre_tokenizer", "Split without a pattern");
        if (!removed && strcmp(behavior, "Isolated") != 0)
            return unsupported(r, "pre_tokenizer", "Split with another behavior than Isolated and Removed");
        /* The known expressions match everywhere, so keeping only the matches is the same as cutting at them. */
        if (regex && (!removed || invert) && op_split_from_regex(&kind, regex))
            return new_split(r, kind);
        s = new_split(r, !removed ? OP_SPLIT_REGEX : invert ? OP_SPLIT_REGEX_MATCHES : OP_SPLIT_REGEX_GAPS);
        return s ? s : op_regex_new(&t->regex[t->n_split - 1], regex ? regex : text, !regex, r->name, r->e);
    }
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(r, x);
    if (strcmp(type, "Sequence") != 0)
        return unsupported(r, "pre_tokenizer", type);
    s = get_steps(r, x, "pretokenizers", &list);
    for (size_t i = 0; !s && (item = json_array_get(list, i)); i++)
        s = read_pre_tokenizer(r, item);
    return s;
}

static op_status read_decoder(const reader *r, const json_t *x)
{
    op_tokenizer *t = r->t;
    const char *type, *content;
    json_t *list, *item;
    if (!x || json_is_null(x))
        return OP_OK;
    op_status s = get_string(r, x, "type", &type);
    if (s || strcmp(type, "ByteLevel") == 0 || strcmp(type, "Fuse") == 0)
        return s;
    if (strcmp(type, "ByteFallback") == 0) {
        t->decode_bytes = true;
        return OP_OK;
    }
    if (strcmp(type, "Metaspace") == 0) {
        const char *scheme = "always";
        s = op_json_get_string(x, "prepend_scheme", false, &scheme, r->name, r->e);
        t->decode_meta = true;
        t->strip_first_meta = strcmp(scheme, "never") != 0;
        return s;
    }
    if (strcmp(type, "Replace") == 0) {
        const char *pattern = json_string_value(json_object_get(json_object_get(x, "pattern"), "String"));
        s = get_string(r, x, "content", &content);
        if (!s && (!pattern || strcmp(pattern, "\xe2\x96\x81") != 0 || strcmp(content, " ") != 0))
            return unsupported(r, "decoder", "Replace of another text than U+2581");
        t->decode_meta = true;
        return s;
    }
    if (strcmp(type, "Strip") == 0) {
        int64_t start = 0, stop = 0;
        s = get_string(r, x, "content", &content);
        s = s ? s : op_json_get_int(x, "start", false, 0, 1, &start, r->name, r->e);
        s = s ? s : op_json_get_int(x, "stop", false, 0, 0, &stop, r->name, r->e);
        if (!s && strcmp(content, " ") != 0)
            return unsupported(r, "decoder", "Strip of another text than a space");
        t->strip_space = start == 1;
        return s;
    }
    if (strcmp(type, "Sequence") != 0)
        return unsupported(r, "decoder", type);
    s = get_steps(r, x, "decoders", &list);
    for (size_t i = 0; !s && (item = json_array_get(list, i)); i++)
        s = read_decoder(r, item);
    return s;
}

/* [{"SpecialToken":{"id":"<s>"}}, {"Sequence":{"id":"A"}}, ...] with the ids in special_tokens. */
static op_status read_template(const reader *r, const json_t *x)
{
    op_tokenizer *t = r->t;
    json_t *list, *item, *ids, *id;
    bool after = false;
    op_status s = get_steps(r, x, "single", &list);
    for (size_t i = 0; !s && (item = json_array_get(list, i)); i++) {
        const char *token = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (!token) {
            after = true;
            continue;
        }
        ids = json_object_get(json_object_get(json_object_get(x, "special_tokens"), token), "ids");
        if (!json_is_array(ids))
            return op_error_set(r->e, OP_ERR_FORMAT, "%s: post_processor: no ids for '%s'", r->name, token);
        for (size_t k = 0; (id = json_array_get(ids, k)); k++) {
            json_int_t value = json_integer_value(id);
            int *n = after ? &t->n_after : &t->n_before;
            if (*n == OP_AFFIX_MAX || value < 0 || value >= t->texts.n)
                return op_error_set(r->e, OP_ERR_FORMAT, "%s: post_processor: id %lld of '%s' is out of range or one too many",
                                    r->name, (long long)value, token);
            (after ? t->after : t->before)[(*n)++] = (int32_t)value;
        }
    }
    return s;
}

static op_status read_post_processor(const reader *r, const json_t *x)
{
    const char *type;
    json_t *list, *item;
    if (!x || json_is_null(x))
        return OP_OK;
    op_status s = get_string(r, x, "type", &type);
    if (s || strcmp(type, "ByteLevel") == 0)
        return s;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(r, x);
    if (strcmp(type, "Sequence") != 0)
        return unsupported(r, "post_processor", type);
    s = get_steps(r, x, "processors", &list);
    for (size_t i = 0; !s && (item = json_array_get(list, i)); i++)
        s = read_post_processor(r, item);
    return s;
}

/* Every token's text, in order of id; texts point into the JSON. */
typedef struct slot {
    const char *text;
    bool in_model;
} slot;

#define VOCAB_MAX (1 << 22)

static op_status put_slot(const reader *r, slot *slots, size_t n, const char *text, const json_t *id, bool in_model)
{
    json_int_t i = json_integer_value(id);
    if (!json_is_integer(id) || i < 0 || (size_t)i >= n)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: token '%.64s' has no id between 0 and %zu", r->name, text, n - 1);
    if (in_model && slots[i].text)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: id %d belongs to '%.64s' and to '%.64s'", r->name, (int)i, slots[i].text,
                            text);
    slots[i].text = text;
    slots[i].in_model |= in_model;
    return OP_OK;
}

static op_status read_added(const reader *r, const json_t *item, slot *slots, size_t n)
{
    const char *content;
    op_added a = {0};
    op_status s = get_string(r, item, "content", &content);
    s = s ? s : put_slot(r, slots, n, content, json_object_get(item, "id"), false);
    s = s ? s : op_json_get_bool(item, "special", false, &a.special, r->name, r->e);
    s = s ? s : op_json_get_bool(item, "lstrip", false, &a.lstrip, r->name, r->e);
    s = s ? s : op_json_get_bool(item, "rstrip", false, &a.rstrip, r->name, r->e);
    s = s ? s : op_json_get_bool(item, "single_word", false, &a.single_word, r->name, r->e);
    s = s ? s : op_json_get_bool(item, "normalized", false, &a.normalized, r->name, r->e);
    a.id = (int32_t)json_integer_value(json_object_get(item, "id"));
    return s ? s : op_tokenizer_add(r->t, a);
}

static size_t count_ids(const json_t *vocab, const json_t *added)
{
    json_int_t last = -1;
    const char *key;
    json_t *id, *item;
    size_t i;
    json_object_foreach((json_t *)vocab, key, id)
        last = json_integer_value(id) > last ? json_integer_value(id) : last;
    json_array_foreach(added, i, item) {
        json_int_t n = json_integer_value(json_object_get(item, "id"));
        last = n > last ? n : last;
    }
    return last >= VOCAB_MAX ? VOCAB_MAX : (size_t)(last + 1);
}

static op_status read_merges(const reader *r, const json_t *merges, const bool *in_model)
{
    op_tokenizer *t = r->t;
    op_lookup index;
    op_status s = op_lookup_init(&index, t->texts.n);
    for (int32_t i = 0; !s && i < t->texts.n; i++)
        if (in_model[i])
            op_lookup_put(&index, &t->texts, i);
    for (size_t i = 0; !s && i < json_array_size(merges); i++) {
        const json_t *item = json_array_get(merges, i), *left = json_array_get(item, 0), *right = json_array_get(item, 1);
        const char *line = json_string_value(item), *space = line ? strchr(line, ' ') : NULL;
        if (space)
            s = op_tokenizer_merge(t, &index, line, (size_t)(space - line), space + 1, strlen(space + 1), (uint32_t)i, r->name,
                                   r->e);
        else if (json_is_string(left) && json_is_string(right))
            s = op_tokenizer_merge(t, &index, json_string_value(left), json_string_length(left), json_string_value(right),
                                   json_string_length(right), (uint32_t)i, r->name, r->e);
        else
            s = op_error_set(r->e, OP_ERR_FORMAT, "%s: merge %zu is neither \"a b\" nor a pair of strings", r->name, i);
    }
    op_lookup_release(&index);
    return s;
}

static op_status read_model(reader *r, const json_t *root)
{
    op_tokenizer *t = r->t;
    const json_t *added = json_object_get(root, "added_tokens");
    json_t *model, *vocab, *merges, *item;
    const char *type = "BPE", *unk = NULL, *prefix = "", *suffix = "";
    op_bpe *b = &t->bpe;
    op_status s = op_json_get_object(root, "model", true, &model, r->name, r->e);
    s = s ? s : op_json_get_string(model, "type", false, &type, r->name, r->e);
    if (!s && strcmp(type, "BPE") != 0)
        return unsupported(r, "model", type);
    s = s ? s : op_json_get_object(model, "vocab", true, &vocab, r->name, r->e);
    s = s ? s : op_json_get_array(model, "merges", true, &merges, r->name, r->e);
    s = s ? s : op_json_get_string(model, "unk_token", false, &unk, r->name, r->e);
    s = s ? s : op_json_get_string(model, "continuing_subword_prefix", false, &prefix, r->name, r->e);
    s = s ? s : op_json_get_string(model, "end_of_word_suffix", false, &suffix, r->name, r->e);
    s = s ? s : op_json_get_bool(model, "byte_fallback", false, &b->byte_fallback, r->name, r->e);
    s = s ? s : op_json_get_bool(model, "fuse_unk", false, &b->fuse_unk, r->name, r->e);
    s = s ? s : op_json_get_bool(model, "ignore_merges", false, &b->ignore_merges, r->name, r->e);
    if (s)
        return s;
    if (*prefix || *suffix)
        return unsupported(r, "model", "continuing_subword_prefix or end_of_word_suffix");
    size_t n = count_ids(vocab, added);
    slot *slots = op_alloc_zero(n + 1, sizeof *slots);
    bool *in_model = op_alloc_zero(n + 1, sizeof *in_model);
    s = slots && in_model ? OP_OK : OP_ERR_NOMEM;
    const char *key;
    json_t *id;
    if (!s)
        json_object_foreach(vocab, key, id)
            if (!s)
                s = put_slot(r, slots, n, key, id, true);
    for (size_t i = 0; !s && (item = json_array_get(added, i)); i++)
        s = read_added(r, item, slots, n);
    for (size_t i = 0; !s && i < n; i++) {
        in_model[i] = slots[i].in_model;
        s = op_strings_add(&t->texts, slots[i].text ? slots[i].text : "", slots[i].text ? strlen(slots[i].text) : 0);
        if (!s && unk && in_model[i] && strcmp(slots[i].text, unk) == 0)
            b->unk = (int32_t)i;
    }
    op_free(slots);
    t->byte_level = r->byte_level;
    s = s ? s : op_tokenizer_prepare(t, in_model, json_array_size(merges));
    s = s ? s : read_merges(r, merges, in_model);
    op_free(in_model);
    return s;
}

op_status op_tokenizer_from_json(op_tokenizer **out, const char *json, size_t n, const char *name, op_error *e)
{
    *out = NULL;
    json_t *root = NULL;
    reader r = {.t = op_tokenizer_new(), .name = name, .e = e};
    op_status s = r.t ? op_json_parse(&root, json, n, name, e) : OP_ERR_NOMEM;
    if (!s && !json_is_object(root))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: expected an object, found %s", name, op_json_kind(root));
    s = s ? s : read_normalizer(&r, json_object_get(root, "normalizer"));
    s = s ? s : read_pre_tokenizer(&r, json_object_get(root, "pre_tokenizer"));
    s = s ? s : read_decoder(&r, json_object_get(root, "decoder"));
    s = s ? s : read_model(&r, root);
    s = s ? s : read_post_processor(&r, json_object_get(root, "post_processor"));
    s = s ? s : op_tokenizer_finish(r.t);
    json_decref(root);
    if (!s && !(r.t->json = op_strndup(json, n)))
        s = OP_ERR_NOMEM;
    if (s) {
        op_tokenizer_free(r.t);
        return s == OP_ERR_NOMEM ? op_error_set(e, s, "%s: out of memory while reading the tokenizer", name) : s;
    }
    r.t->json_n = n;
    r.t->unk = r.t->bpe.unk;
    *out = r.t;
    return OP_OK;
}
