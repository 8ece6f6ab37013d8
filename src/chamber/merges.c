#include "chamber/merges.h"

#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_impl.h"

enum { TOKENS_MAX = 2048, WORDS_MAX = 8192, WORD_BYTES_MAX = 32 };

typedef struct word {
    int32_t symbols[WORD_BYTES_MAX], n;
    int64_t count;
} word;

struct merges {
    op_strings texts;
    op_lookup index;
    word *words;
    int32_t left[TOKENS_MAX], right[TOKENS_MAX]; /* what token i was merged from, from 256 on */
    int32_t n_tokens;
};

op_status merges_new(merges **out, op_error *e)
{
    merges *t = *out = op_alloc_zero(1, sizeof *t);
    if (!t || op_lookup_init(&t->index, WORDS_MAX) || !(t->words = op_alloc_zero(WORDS_MAX, sizeof *t->words))) {
        merges_free(t);
        *out = NULL;
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a vocabulary");
    }
    return OP_OK;
}

void merges_free(merges *t)
{
    if (!t)
        return;
    op_strings_release(&t->texts);
    op_lookup_release(&t->index);
    op_free(t->words);
    op_free(t);
}

op_status merges_add(merges *t, const char *text, op_error *e)
{
    size_t n = strlen(text), end;
    for (size_t at = 0; at < n; at = end) {
        end = op_split_next(OP_SPLIT_GPT2, text, at, n);
        int32_t i = op_lookup_find(&t->index, &t->texts, text + at, end - at);
        if (i < 0 && end - at <= WORD_BYTES_MAX && t->texts.n < WORDS_MAX) {
            i = t->texts.n;
            if (op_strings_add(&t->texts, text + at, end - at))
                return op_error_set(e, OP_ERR_NOMEM, "out of memory for a vocabulary");
            op_lookup_put(&t->index, &t->texts, i);
            t->words[i].n = (int32_t)(end - at);
            for (size_t k = 0; k < end - at; k++)
                t->words[i].symbols[k] = (unsigned char)text[at + k];
        }
        if (i >= 0)
            t->words[i].count++;
    }
    return OP_OK;
}

/* ---- merging ---- */

/* The pair that comes most often, the first of equals by its tokens; false: every word is one token. `counts` has a place for every pair. */
static bool best_pair(const merges *t, int64_t *counts, int32_t *left, int32_t *right)
{
    int64_t most = 0;
    memset(counts, 0, sizeof *counts * TOKENS_MAX * TOKENS_MAX);
    for (int32_t i = 0; i < t->texts.n; i++)
        for (int32_t k = 0; k + 1 < t->words[i].n; k++) {
            int32_t a = t->words[i].symbols[k], b = t->words[i].symbols[k + 1];
            int64_t count = counts[(size_t)a * TOKENS_MAX + (size_t)b] += t->words[i].count;
            if (count > most || (count == most && (a < *left || (a == *left && b < *right)))) {
                most = count;
                *left = a;
                *right = b;
            }
        }
    return most > 0;
}

static void merge(word *w, int32_t left, int32_t right, int32_t to)
{
    int32_t n = 0;
    for (int32_t k = 0; k < w->n; k++) {
        bool both = k + 1 < w->n && w->symbols[k] == left && w->symbols[k + 1] == right;
        w->symbols[n++] = both ? to : w->symbols[k];
        k += both;
    }
    w->n = n;
}

static op_status learn(merges *t, int32_t most, op_error *e)
{
    int64_t *counts = op_alloc_array((size_t)TOKENS_MAX * TOKENS_MAX, sizeof *counts);
    if (!counts)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a vocabulary");
    int32_t left = 0, right = 0;
    for (t->n_tokens = 256; t->n_tokens < most && best_pair(t, counts, &left, &right); t->n_tokens++) {
        t->left[t->n_tokens] = left;
        t->right[t->n_tokens] = right;
        for (int32_t i = 0; i < t->texts.n; i++)
            merge(&t->words[i], left, right, t->n_tokens);
    }
    op_free(counts);
    return OP_OK;
}

/* ---- as tokenizer.json ---- */

static void put_token(const merges *t, int32_t id, op_buf *b, op_status *s)
{
    if (id >= 256) {
        put_token(t, t->left[id], b, s);
        put_token(t, t->right[id], b, s);
    } else if (!*s) { /* every byte has a letter that prints; JSON wants two of them escaped */
        uint32_t c = op_byte_to_char((unsigned char)id);
        char utf8[3] = {(char)(c < 0x80 ? c : 0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
        *s = c == '"' || c == '\\' ? op_buf_printf(b, "\\%c", (int)c) : op_buf_add(b, utf8, c < 0x80 ? 1 : 2);
    }
}

static op_status write_json(const merges *t, const char *const *special, int32_t n_special, op_buf *b)
{
    op_status s = op_buf_puts(b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    for (int i = 0; i < n_special && !s; i++)
        s = op_buf_printf(b, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}",
                          i ? "," : "", (int)t->n_tokens + i, special[i]);
    s = s ? s : op_buf_puts(b, "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
                               "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
                               "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
                               "\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{");
    for (int32_t i = 0; i < t->n_tokens && !s; i++) {
        s = op_buf_puts(b, i ? ",\"" : "\"");
        put_token(t, i, b, &s);
        s = s ? s : op_buf_printf(b, "\":%d", (int)i);
    }
    s = s ? s : op_buf_puts(b, "},\"merges\":[");
    for (int32_t i = 256; i < t->n_tokens && !s; i++) {
        s = op_buf_puts(b, i > 256 ? ",\"" : "\"");
        put_token(t, t->left[i], b, &s);
        s = s ? s : op_buf_puts(b, " ");
        put_token(t, t->right[i], b, &s);
        s = s ? s : op_buf_puts(b, "\"");
    }
    return s ? s : op_buf_puts(b, "]}}");
}

op_status merges_learn(merges *t, int32_t most, const char *const *special, int32_t n_special, op_tokenizer **out, op_error *e)
{
    *out = NULL;
    if (most < 256 + n_special || most > TOKENS_MAX)
        return op_error_set(e, OP_ERR_ARG, "a vocabulary of %d tokens, expected %d..%d", (int)most, 256 + (int)n_special, TOKENS_MAX);
    op_buf json;
    op_buf_init(&json, 1 << 22);
    op_status s = learn(t, most - n_special, e);
    if (!s && write_json(t, special, n_special, &json))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory for a vocabulary");
    s = s ? s : op_tokenizer_from_json(out, json.data, json.len, "the vocabulary", e);
    op_buf_release(&json);
    return s;
}

op_status merges_dress(op_tokenizer *t, const char *chat_template, int32_t eos, int32_t pad, op_error *e)
{
    t->eos = eos;
    t->pad = pad;
    t->chat_template = op_strdup(chat_template);
    return t->chat_template ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for a vocabulary");
}
