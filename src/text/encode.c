/* Text to tokens: cut at added tokens, normalise, cut at added tokens again, cut into words, merge. */
#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

typedef struct encoding {
    const op_tokenizer *t;
    unsigned flags;
    op_plain plain;
    op_tokens *out;
    op_normal normal, prefixed, scratch;
    op_regex_room room;
    op_error *e;
} encoding;

static op_status cut(encoding *x, int k, const char *s, size_t at, size_t n, uint32_t base);

/* Cuts s[at..n) at the matches of an expression, as the reference goes from one to the next: an empty one cuts as well, unless it
 * stands where the last one ended. */
static op_status cut_at_matches(encoding *x, int k, const char *s, size_t at, size_t n, uint32_t base)
{
    op_split kind = x->t->split[k];
    size_t from = at, first = at, last = n + 1;
    while (first <= n) {
        bool found;
        size_t begin, end;
        op_status status = op_regex_find(x->t->regex[k], &x->room, s + at, n - at, first - at, &found, &begin, &end, x->e);
        if (status)
            return status;
        if (!found)
            break;
        begin += at;
        end += at;
        if (begin == end && end == last) {
            first = end + (end < n ? op_utf8_length((unsigned char)s[end]) : 1);
            continue;
        }
        if (begin > from && kind != OP_SPLIT_REGEX_MATCHES)
            status = cut(x, k + 1, s, from, begin, base);
        if (!status && end > begin && kind != OP_SPLIT_REGEX_GAPS)
            status = cut(x, k + 1, s, begin, end, base);
        if (status)
            return status;
        first = last = from = end;
    }
    return from < n && kind != OP_SPLIT_REGEX_MATCHES ? cut(x, k + 1, s, from, n, base) : OP_OK;
}

/* Cuts s[at..n) with pre-tokenizer number `k` and the ones after it. Offsets are counted from `base`. */
static op_status cut(encoding *x, int k, const char *s, size_t at, size_t n, uint32_t base)
{
    if (k == x->t->n_split)
        return op_bpe_word(&x->t->bpe, s + at, n - at, base + (uint32_t)at, x->out);
    if (x->t->split[k] >= OP_SPLIT_REGEX)
        return cut_at_matches(x, k, s, at, n, base);
    op_status status = OP_OK;
    while (!status && at < n) {
        size_t end = op_split_next(x->t->split[k], s, at, n);
        status = cut(x, k + 1, s, at, end, base);
        at = end;
    }
    return status;
}

/* Offsets into a normalised piece become offsets into the source. */
static void map_back(const op_normal *y, op_tokens *out, size_t from)
{
    for (size_t i = from; i < out->n; i++) {
        uint32_t first = out->begin[i], last = out->end[i] - 1;
        out->begin[i] = y->from[first];
        out->end[i] = y->to[last];
    }
}

/* A stretch without added tokens: s[n] is source text if y is NULL, else bytes from..from+n-1 of the normalised y. */
static op_status words(encoding *x, const char *s, size_t n, uint32_t base, const op_normal *y, op_place place)
{
    const op_tokenizer *t = x->t;
    size_t first = x->out->n;
    if (op_normal_is_identity(t->prefix, t->n_prefix, s, n, place)) {
        op_status status = cut(x, 0, s, 0, n, base);
        if (!status && y)
            map_back(y, x->out, first);
        return status;
    }
    op_normal *z = &x->prefixed;
    op_status status = op_normal_set(z, s, n, base);
    if (!status && y) {
        memcpy(z->from, y->from + base, n * sizeof *z->from);
        memcpy(z->to, y->to + base, n * sizeof *z->to);
    }
    status = status ? status : op_normal_apply(z, &x->scratch, t->prefix, t->n_prefix, place);
    status = status ? status : cut(x, 0, z->bytes, 0, z->n, 0);
    if (!status)
        map_back(z, x->out, first);
    return status;
}

/* A match of an added token, spaces that it strips included. */
typedef struct match {
    const op_added *token;
    size_t begin, end;
} match;

static bool word_before(const char *s, size_t at)
{
    return at && (op_class(op_utf8_get(s + op_utf8_back(s, at))) & OP_WORD);
}

static bool word_after(const char *s, size_t at, size_t n)
{
    return at < n && (op_class(op_utf8_get(s + at)) & OP_WORD);
}

/* Is one of source bytes begin..end-1 to be plain? */
static bool is_plain(const op_plain *p, size_t begin, size_t end)
{
    size_t low = 0, high = p->n;
    begin += p->base;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (p->at[middle] < begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low < p->n && p->at[low] < end + p->base;
}

/* The next added token at or after *at, the longest of those that start there. *at moves past every match, also one that is
 * then refused, as in the reference. `kept` is where the text not yet used begins; base and y as for words(). */
static bool find_added(const encoding *x, const op_trie *trie, const char *s, size_t n, uint32_t base, const op_normal *y, size_t *at,
                       size_t kept, match *m)
{
    for (size_t i = *at; trie->n && i < n; i++) {
        if (!trie->first[(unsigned char)s[i]])
            continue;
        int32_t found = -1, node = trie->nodes[0].child;
        size_t end = i;
        for (size_t k = i; node >= 0 && k < n;) {
            if (trie->nodes[node].byte != (unsigned char)s[k]) {
                node = trie->nodes[node].sibling;
                continue;
            }
            k++;
            if (trie->nodes[node].added >= 0) {
                found = trie->nodes[node].added;
                end = k;
            }
            node = trie->nodes[node].child;
        }
        if (found < 0)
            continue;
        const op_added *a = &x->t->added[found];
        if (a->special && x->plain.n && is_plain(&x->plain, y ? y->from[base + i] : base + i, y ? y->to[base + end - 1] : base + end))
            continue;
        *at = end;
        bool refused = (a->special && !(x->flags & OP_ENCODE_SPECIAL)) ||
                       (a->single_word && (word_before(s, i) || word_after(s, end, n)));
        if (refused) {
            i = end - 1;
            continue;
        }
        *m = (match){a, i, end};
        while (a->lstrip && m->begin > kept && (op_class(op_utf8_get(s + op_utf8_back(s, m->begin))) & OP_SPACE))
            m->begin = op_utf8_back(s, m->begin);
        while (a->rstrip && m->end < n && (op_class(op_utf8_get(s + m->end)) & OP_SPACE))
            m->end += op_utf8_length((unsigned char)s[m->end]);
        if (m->end > *at)
            *at = m->end;
        return true;
    }
    *at = n;
    return false;
}

static op_status push(op_tokens *out, int32_t id, size_t begin, size_t end)
{
    if (op_tokens_reserve(out, 1))
        return OP_ERR_NOMEM;
    out->ids[out->n] = id;
    out->begin[out->n] = (uint32_t)begin;
    out->end[out->n++] = (uint32_t)end;
    return OP_OK;
}

/* Text between added tokens that are matched in the source. */
static op_status piece(encoding *x, const char *s, size_t n, uint32_t base, op_place place)
{
    const op_tokenizer *t = x->t;
    const op_normal *y = NULL;
    if (!op_normal_is_identity(t->normal, t->n_normal, s, n, place)) {
        op_normal *z = &x->normal;
        if (op_normal_set(z, s, n, base) || op_normal_apply(z, &x->scratch, t->normal, t->n_normal, place))
            return OP_ERR_NOMEM;
        y = z;
        s = z->bytes;
        n = z->n;
        base = 0;
    }
    size_t at = 0, kept = 0;
    op_status status = OP_OK;
    match m;
    while (!status && kept < n) {
        bool found = find_added(x, &t->normalized, s, n, base, y, &at, kept, &m);
        size_t stop = found ? m.begin : n;
        if (stop > kept)
            status = words(x, s + kept, stop - kept, base + (uint32_t)kept, y, place);
        if (!found || status)
            break;
        status = push(x->out, m.token->id, base + m.begin, base + m.end);
        if (!status && y)
            map_back(y, x->out, x->out->n - 1);
        kept = m.end;
        place = OP_PLACE_AFTER_TOKEN;
    }
    return status;
}

op_status op_tokenizer_encode(const op_tokenizer *t, const char *text, size_t n, unsigned flags, op_tokens *out, op_error *e)
{
    return op_tokenizer_encode_plain(t, text, n, flags, (op_plain){0}, out, e);
}

op_status op_tokenizer_encode_plain(const op_tokenizer *t, const char *text, size_t n, unsigned flags, op_plain plain, op_tokens *out,
                                    op_error *e)
{
    if (n >= UINT32_MAX)
        return op_error_set(e, OP_ERR_ARG, "a text of %zu bytes is too long to encode: at most %u", n, UINT32_MAX - 1);
    size_t valid = op_utf8_valid(text, n);
    if (valid < n)
        return op_error_set(e, OP_ERR_FORMAT, "text to encode: byte %zu (0x%02x) is not valid UTF-8", valid,
                            (unsigned char)text[valid]);
    encoding x = {.t = t, .flags = flags, .plain = plain, .out = out, .e = e};
    size_t at = 0, kept = 0, first = out->n;
    op_place place = flags & OP_ENCODE_CONTINUE    ? OP_PLACE_CONTINUES
                     : flags & OP_ENCODE_AFTER_TOKEN ? OP_PLACE_AFTER_TOKEN
                                                     : OP_PLACE_START;
    op_status s = OP_OK;
    match m;
    for (int i = 0; !s && (flags & OP_ENCODE_AFFIX) && i < t->n_before; i++)
        s = push(out, t->before[i], 0, 0);
    while (!s && kept < n) {
        bool found = find_added(&x, &t->raw, text, n, 0, NULL, &at, kept, &m);
        size_t stop = found ? m.begin : n;
        if (stop > kept)
            s = piece(&x, text + kept, stop - kept, (uint32_t)kept, place);
        if (!found || s)
            break;
        s = push(out, m.token->id, m.begin, m.end);
        kept = m.end;
        place = OP_PLACE_AFTER_TOKEN;
    }
    for (int i = 0; !s && (flags & OP_ENCODE_AFFIX) && i < t->n_after; i++)
        s = push(out, t->after[i], n, n);
    op_normal_release(&x.normal);
    op_normal_release(&x.prefixed);
    op_normal_release(&x.scratch);
    op_regex_room_release(&x.room);
    if (s) {
        out->n = first;
        return s != OP_ERR_NOMEM ? s : op_error_set(e, s, "out of memory while encoding a text of %zu bytes", n);
    }
    return OP_OK;
}
