/* Reads a tokenizer from GGUF metadata: tokenizer.ggml.* and tokenizer.chat_template. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/tensors.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

/* Values of tokenizer.ggml.token_type. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

#define KEY(name) "tokenizer.ggml." name

/* "default" is what converters wrote before there were names. */
const op_family op_families[] = {
    {"gpt-2", 1, {OP_SPLIT_GPT2}, false, false, false},
    {"default", 1, {OP_SPLIT_GPT2}, false, false, false},
    {"smollm", 2, {OP_SPLIT_DIGITS, OP_SPLIT_GPT2}, false, false, false},
    {"qwen2", 1, {OP_SPLIT_QWEN2}, true, false, false},
    {"llama-bpe", 1, {OP_SPLIT_LLAMA3}, false, true, true},
    {"llama3", 1, {OP_SPLIT_LLAMA3}, false, true, true},
    {"tekken", 1, {OP_SPLIT_TEKKEN}, false, true, true},
    {NULL, 0, {0}, false, false, false},
};

static op_status set_family(op_tokenizer *t, const op_tensors *g, bool *add_bos, op_error *e)
{
    const char *pre = op_tensors_meta_string(g, KEY("pre"), NULL);
    pre = pre ? pre : "default";
    for (const op_family *f = op_families; f->pre; f++) {
        if (strcmp(pre, f->pre) != 0)
            continue;
        memcpy(t->split, f->split, sizeof f->split);
        t->n_split = f->n_split;
        if (f->nfc)
            t->normal[t->n_normal++] = (op_normal_step){.kind = OP_NORMAL_NFC};
        t->bpe.ignore_merges = f->ignore_merges;
        *add_bos = f->add_bos;
        return OP_OK;
    }
    return op_error_set(e, OP_ERR_UNSUPPORTED, KEY("pre") ": pre-tokenizer '%.64s' is not supported", pre);
}

static op_status read_tokens(op_tokenizer *t, const op_tensors *g, op_error *e)
{
    const op_gguf_pair *tokens = op_gguf_array(g, KEY("tokens")), *types = op_gguf_array(g, KEY("token_type"));
    size_t n = tokens ? tokens->n : 0, n_types = types ? types->n : 0;
    if (!n || n > INT32_MAX / 2 || (n_types && n_types != n))
        return op_error_set(e, OP_ERR_FORMAT, KEY("tokens") ": %zu tokens with %zu types", n, n_types);
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++) {
        size_t len = 0;
        const char *text = op_gguf_array_string(tokens, i, &len);
        int64_t type = n_types ? op_gguf_array_int(types, i) : TYPE_NORMAL;
        if (!text || op_utf8_valid(text, len) != len)
            return op_error_set(e, OP_ERR_FORMAT, KEY("tokens") ": token %zu is not a string of UTF-8", i);
        s = op_strings_add(&t->texts, text, len);
        if (!s && len && (type == TYPE_CONTROL || type == TYPE_USER_DEFINED || type == TYPE_UNKNOWN))
            s = op_tokenizer_add(t, (op_added){.id = (int32_t)i, .special = type != TYPE_USER_DEFINED});
    }
    return s;
}

static op_status merge_lines(op_tokenizer *t, const op_tensors *g, const op_lookup *index, op_error *e)
{
    const op_gguf_pair *merges = op_gguf_array(g, KEY("merges"));
    size_t n = merges ? merges->n : 0;
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++) {
        size_t len = 0;
        const char *line = op_gguf_array_string(merges, i, &len);
        /* A token that itself starts with a space is escaped in byte-level texts, so the first inner space divides. */
        const char *space = line && len > 1 ? memchr(line + 1, ' ', len - 1) : NULL;
        if (!space)
            return op_error_set(e, OP_ERR_FORMAT, KEY("merges") ": merge %zu is not two tokens with a space between", i);
        s = op_tokenizer_merge(t, index, line, (size_t)(space - line), space + 1, len - 1 - (size_t)(space - line), (uint32_t)i,
                               KEY("merges"), e);
    }
    return s;
}

typedef struct scored {
    double score;
    int32_t left, right, id;
    uint32_t n_left, n_right; /* characters */
    uint32_t order;
} scored;

static int by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x->n_left != y->n_left)
        return x->n_left > y->n_left ? -1 : 1;
    if (x->n_right != y->n_right)
        return x->n_right > y->n_right ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static int by_left(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    if (x->left != y->left)
        return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

static uint32_t characters(const char *s, size_t n)
{
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

/* SentencePiece keeps scores, not merges: every way to build a token from two others is a merge, those of higher score
 * first. The order among equals is that of the converter of `transformers`, so that ids agree with converted models. */
static op_status merge_scores(op_tokenizer *t, const op_tensors *g, const op_lookup *index, const bool *plain)
{
    scored *list = NULL;
    size_t n = 0, cap = 0;
    op_status s = OP_OK;
    for (int32_t id = 0; !s && id < t->texts.n; id++) {
        size_t len;
        const char *text = op_strings_get(&t->texts, id, &len);
        for (size_t k = 1; !s && plain[id] && k < len; k++) {
            if (((unsigned char)text[k] & 0xc0) == 0x80)
                continue;
            int32_t left = op_lookup_find(index, &t->texts, text, k);
            int32_t right = left < 0 ? -1 : op_lookup_find(index, &t->texts, text + k, len - k);
            if (right < 0)
                continue;
            if (n == cap) {
                cap = cap ? 2 * cap : 4096;
                scored *more = op_realloc(list, cap * sizeof *more);
                if (!more) {
                    op_free(list);
                    return OP_ERR_NOMEM;
                }
                list = more;
            }
            list[n++] = (scored){.score = op_tensors_meta_array_float(g, KEY("scores"), (size_t)id), .left = left, .right = right,
                                 .id = id, .n_left = characters(text, k), .n_right = characters(text + k, len - k)};
        }
    }
    if (n)
        qsort(list, n, sizeof *list, by_left);
    for (size_t i = 0; i < n; i++)
        list[i].order = (uint32_t)i;
    if (n)
        qsort(list, n, sizeof *list, by_score);
    s = op_bpe_resize(&t->bpe, n);
    for (size_t i = 0; !s && i < n; i++)
        op_bpe_merge(&t->bpe, list[i].left, list[i].right, list[i].id, (uint32_t)i);
    op_free(list);
    return s;
}

static int32_t special_id(const op_tokenizer *t, const op_tensors *g, const char *key)
{
    int64_t id = op_tensors_meta_int(g, key, -1);
    return id >= 0 && id < t->texts.n ? (int32_t)id : -1;
}

static op_status read_all(op_tokenizer *t, const op_tensors *g, op_error *e)
{
    const char *model = op_tensors_meta_string(g, KEY("model"), NULL);
    bool scores = model && strcmp(model, "llama") == 0, add_bos = scores;
    if (!model || (!scores && strcmp(model, "gpt2") != 0))
        return op_error_set(e, OP_ERR_UNSUPPORTED, KEY("model") ": '%.64s' is not supported, only 'gpt2' and 'llama'",
                            model ? model : "(missing)");
    op_status s = read_tokens(t, g, e);
    if (s)
        return s;
    int64_t prefix = op_tensors_meta_int(g, KEY("add_space_prefix"), scores);
    if (scores) {
        if (op_tensors_meta_array(g, KEY("scores")) != (size_t)t->texts.n)
            return op_error_set(e, OP_ERR_FORMAT, KEY("scores") ": %zu scores for %d tokens",
                                op_tensors_meta_array(g, KEY("scores")), t->texts.n);
        for (int32_t i = 0; i < t->texts.n; i++)
            if (!isfinite(op_tensors_meta_array_float(g, KEY("scores"), (size_t)i)))
                return op_error_set(e, OP_ERR_FORMAT, KEY("scores") ": the score of token %d is not a finite number", i);
        t->bpe.byte_fallback = t->bpe.fuse_unk = t->decode_bytes = t->decode_meta = true;
        t->strip_space = prefix != 0;
        if (prefix)
            t->normal[t->n_normal++] = (op_normal_step){.kind = OP_NORMAL_PREPEND, .content = "\xe2\x96\x81"};
        t->normal[t->n_normal++] = (op_normal_step){.kind = OP_NORMAL_REPLACE, .pattern = " ", .content = "\xe2\x96\x81"};
    } else {
        t->byte_level = true;
        s = set_family(t, g, &add_bos, e);
        if (s)
            return s;
        if (prefix)
            t->prefix[t->n_prefix++] = (op_normal_step){.kind = OP_NORMAL_PREPEND_MISSING, .content = " "};
    }
    t->bos = special_id(t, g, KEY("bos_token_id"));
    t->eos = special_id(t, g, KEY("eos_token_id"));
    t->pad = special_id(t, g, KEY("padding_token_id"));
    t->unk = special_id(t, g, KEY("unknown_token_id"));
    t->bpe.unk = scores ? t->unk : -1;
    if (op_tensors_meta_int(g, KEY("add_bos_token"), add_bos) && t->bos >= 0)
        t->before[t->n_before++] = t->bos;
    if (op_tensors_meta_int(g, KEY("add_eos_token"), 0) && t->eos >= 0)
        t->after[t->n_after++] = t->eos;

    s = op_tokenizer_prepare(t, NULL, op_tensors_meta_array(g, KEY("merges")));
    op_lookup index = {0};
    const op_gguf_pair *types = op_gguf_array(g, KEY("token_type"));
    bool *plain = op_alloc_zero((size_t)t->texts.n, sizeof *plain);
    s = s ? s : plain ? op_lookup_init(&index, t->texts.n) : OP_ERR_NOMEM;
    for (int32_t i = 0; !s && i < t->texts.n; i++) {
        int64_t type = types && types->n ? op_gguf_array_int(types, (size_t)i) : TYPE_NORMAL;
        plain[i] = type == TYPE_NORMAL || type == TYPE_UNUSED;
        op_lookup_put(&index, &t->texts, i);
    }
    s = s ? s : scores ? merge_scores(t, g, &index, plain) : merge_lines(t, g, &index, e);
    op_lookup_release(&index);
    op_free(plain);
    s = s ? s : op_tokenizer_finish(t);
    size_t n;
    const char *template = op_tensors_meta_string(g, "tokenizer.chat_template", &n);
    if (!s && template && !(t->chat_template = op_strndup(template, n)))
        s = OP_ERR_NOMEM;
    return s;
}

op_status op_tokenizer_from_gguf(op_tokenizer **out, const op_tensors *gguf, op_error *e)
{
    *out = NULL;
    op_tokenizer *t = op_tokenizer_new();
    op_status s = t ? read_all(t, gguf, e) : OP_ERR_NOMEM;
    if (s) {
        op_tokenizer_free(t);
        return s == OP_ERR_NOMEM ? op_error_set(e, s, "out of memory while reading the tokenizer") : s;
    }
    *out = t;
    return OP_OK;
}
