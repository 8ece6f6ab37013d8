#include <operant/tokenizer.h>

#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

op_tokenizer *op_tokenizer_new(void)
{
    op_tokenizer *t = op_alloc_zero(1, sizeof *t);
    if (t)
        t->bos = t->eos = t->pad = t->unk = t->bpe.unk = -1;
    return t;
}

void op_tokenizer_free(op_tokenizer *t)
{
    if (!t)
        return;
    op_strings_release(&t->texts);
    op_strings_release(&t->bytes);
    op_bpe_release(&t->bpe);
    op_trie_release(&t->raw);
    op_trie_release(&t->normalized);
    op_free(t->added);
    op_free(t->special);
    op_free(t->chat_template);
    op_free(t->json);
    for (int i = 0; i < OP_STEPS_MAX; i++)
        op_regex_free(t->regex[i]);
    json_decref(t->config);
    op_free(t);
}

op_status op_tokenizer_add(op_tokenizer *t, op_added a)
{
    if (t->n_added == t->added_cap) {
        size_t cap = t->added_cap ? 2 * t->added_cap : 32;
        op_added *added = op_realloc(t->added, cap * sizeof *added);
        if (!added)
            return OP_ERR_NOMEM;
        t->added = added;
        t->added_cap = cap;
    }
    t->added[t->n_added++] = a;
    return OP_OK;
}

/* The stand-ins are the byte itself where it is printable in Latin-1, else U+0100 onwards in order. */
static bool printable(uint32_t c)
{
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

uint32_t op_byte_to_char(unsigned char byte)
{
    if (printable(byte))
        return byte;
    if (byte < 0x21)
        return 0x100u + byte;
    return byte == 0xad ? 0x143 : 0x121u + (byte - 0x7fu);
}

int op_char_to_byte(uint32_t c)
{
    if (c < 0x100)
        return printable(c) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

/* The bytes behind a token's stand-ins; false: a character stands for none, and the text stands for itself. */
static bool behind(const char *text, size_t n, op_buf *out, op_status *s)
{
    size_t end = out->len;
    if (!n || (*s = op_buf_add(out, text, n)))
        return !n;
    for (size_t i = 0; i < n; i += op_utf8_length((unsigned char)text[i])) {
        int byte = op_char_to_byte(op_utf8_get(text + i));
        if (byte < 0) {
            memcpy(out->data + out->len - n, text, n);
            return false;
        }
        out->data[end++] = (char)byte;
    }
    out->len = end;
    return true;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of a token "<0xNN>", or -1. */
static int fallback_byte(const char *text, size_t n)
{
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

#define META "\xe2\x96\x81"

static op_status decoded(const op_tokenizer *t, const char *text, size_t n, op_buf *out)
{
    int byte = t->decode_bytes ? fallback_byte(text, n) : -1;
    if (byte >= 0) {
        char c = (char)byte;
        return op_buf_add(out, &c, 1);
    }
    op_status s = OP_OK;
    for (size_t i = 0, step; !s && i < n; i += step) {
        bool meta = t->decode_meta && n - i >= 3 && memcmp(text + i, META, 3) == 0;
        step = meta ? 3 : 1;
        s = meta ? op_buf_add(out, " ", 1) : op_buf_add(out, text + i, 1);
    }
    return s;
}

op_status op_tokenizer_prepare(op_tokenizer *t, const bool *in_model, size_t n_merges)
{
    op_bpe *b = &t->bpe;
    op_buf one;
    op_buf_init(&one, 1 << 24);
    op_status s = OP_OK;
    bool *is_word = op_alloc_zero((size_t)t->texts.n + 1, sizeof *is_word);
    t->special = op_alloc_zero((size_t)t->texts.n + 1, 1);
    if (!is_word || !t->special)
        s = OP_ERR_NOMEM;
    memset(b->byte_id, 0xff, sizeof b->byte_id);
    b->bytes = t->byte_level;
    for (int32_t i = 0; !s && i < t->texts.n; i++) {
        size_t n;
        const char *text = op_strings_get(&t->texts, i, &n);
        bool in = !in_model || in_model[i];
        one.len = 0;
        if (t->byte_level) {
            is_word[i] = behind(text, n, &one, &s) && in && n;
            if (is_word[i] && one.len == 1)
                b->byte_id[(unsigned char)one.data[0]] = i;
            s = s ? s : op_strings_add(&b->keys, one.data, one.len);
        } else {
            is_word[i] = in && n;
            int byte = in && b->byte_fallback ? fallback_byte(text, n) : -1;
            if (byte >= 0)
                b->byte_id[byte] = i;
            s = op_strings_add(&b->keys, text, n);
            s = s ? s : decoded(t, text, n, &one);
        }
        s = s ? s : op_strings_add(&t->bytes, one.data, one.len);
    }
    s = s ? s : op_bpe_init(b, n_merges);
    for (int32_t i = 0; !s && i < t->texts.n; i++)
        if (is_word[i])
            op_bpe_index(b, i);
    op_free(is_word);
    op_buf_release(&one);
    return s;
}

op_status op_tokenizer_merge(op_tokenizer *t, const op_lookup *texts, const char *left, size_t n_left, const char *right,
                             size_t n_right, uint32_t rank, const char *name, op_error *e)
{
    char joined[1024];
    if (n_left + n_right > sizeof joined)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: merge %u is longer than %zu bytes", name, rank, sizeof joined);
    memcpy(joined, left, n_left);
    memcpy(joined + n_left, right, n_right);
    int32_t a = op_lookup_find(texts, &t->texts, left, n_left), b = op_lookup_find(texts, &t->texts, right, n_right);
    int32_t ab = op_lookup_find(texts, &t->texts, joined, n_left + n_right);
    if (a < 0 || b < 0 || ab < 0)
        return op_error_set(e, OP_ERR_FORMAT, "%s: merge %u of '%.*s' and '%.*s' needs a token that is not in the vocabulary",
                            name, rank, (int)(n_left < 64 ? n_left : 64), left, (int)(n_right < 64 ? n_right : 64), right);
    op_bpe_merge(&t->bpe, a, b, ab, rank);
    return OP_OK;
}

/* Whether no token has a U+2581 after another character: then no merge crosses the start of a run of them, and the text
 * may be cut there, which spares the long heap. */
static bool meta_only_leads(const op_tokenizer *t)
{
    for (uint64_t i = 0; i <= t->bpe.merge_mask; i++) {
        if (t->bpe.merges[i].id < 0)
            continue;
        size_t n, k = 0;
        const char *key = op_strings_get(&t->bpe.keys, t->bpe.merges[i].id, &n);
        while (n - k >= 3 && memcmp(key + k, META, 3) == 0)
            k += 3;
        if (memmem(key + k, n - k, META, 3))
            return false;
    }
    return op_lookup_find(&t->bpe.index, &t->bpe.keys, META, 3) >= 0;
}

op_status op_tokenizer_finish(op_tokenizer *t)
{
    op_normal a = {0}, b = {0};
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < t->n_added; i++) {
        const op_added *x = &t->added[i];
        size_t n;
        const char *text = op_strings_get(&t->texts, x->id, &n);
        t->special[x->id] = x->special ? TOKEN_SPECIAL : t->special[x->id] ? t->special[x->id] : TOKEN_ADDED;
        if (!x->normalized) {
            s = op_trie_add(&t->raw, text, n, (int32_t)i);
            continue;
        }
        s = op_normal_set(&a, text, n, 0);
        s = s ? s : op_normal_apply(&a, &b, t->normal, t->n_normal, OP_PLACE_START);
        s = s ? s : op_trie_add(&t->normalized, a.bytes, a.n, (int32_t)i);
    }
    op_normal_release(&a);
    op_normal_release(&b);
    if (!s && !t->byte_level && !t->n_split && meta_only_leads(t))
        t->split[t->n_split++] = OP_SPLIT_META_RUN;
    return s;
}

int32_t op_tokenizer_vocab_size(const op_tokenizer *t)
{
    return t->texts.n;
}

int32_t op_tokenizer_bos(const op_tokenizer *t)
{
    return t->bos;
}

int32_t op_tokenizer_eos(const op_tokenizer *t)
{
    return t->eos;
}

int32_t op_tokenizer_pad(const op_tokenizer *t)
{
    return t->pad;
}

int32_t op_tokenizer_unk(const op_tokenizer *t)
{
    return t->unk;
}

bool op_tokenizer_is_special(const op_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->texts.n && t->special[id] == TOKEN_SPECIAL;
}

int32_t op_tokenizer_find(const op_tokenizer *t, const char *token)
{
    size_t n = strlen(token);
    for (size_t i = 0; i < t->n_added; i++) {
        size_t len;
        const char *text = op_strings_get(&t->texts, t->added[i].id, &len);
        if (len == n && memcmp(text, token, n) == 0)
            return t->added[i].id;
    }
    return -1;
}

const char *op_tokenizer_chat_template(const op_tokenizer *t)
{
    return t->chat_template;
}

const char *op_tokenizer_bytes(const op_tokenizer *t, int32_t id, size_t *len)
{
    *len = 0;
    return id < 0 || id >= t->bytes.n ? "" : op_strings_get(&t->bytes, id, len);
}

void op_tokens_init(op_tokens *t)
{
    *t = (op_tokens){0};
}

void op_tokens_clear(op_tokens *t)
{
    t->n = 0;
}

void op_tokens_release(op_tokens *t)
{
    op_free(t->ids);
    op_free(t->begin);
    op_free(t->end);
    *t = (op_tokens){0};
}
