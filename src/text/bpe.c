#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/unicode.h"

#define SHORT_WORD 48 /* symbols up to which merging by scanning beats merging by heap */

static op_status grow(void **p, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return OP_OK;
    size_t more = *cap ? *cap : 64;
    while (more < need)
        more *= 2;
    void *q = more > SIZE_MAX / size ? NULL : op_realloc(*p, more * size);
    if (!q)
        return OP_ERR_NOMEM;
    *p = q;
    *cap = more;
    return OP_OK;
}

op_status op_strings_add(op_strings *s, const char *bytes, size_t n)
{
    size_t used = s->n ? s->at[s->n] : 0;
    if (n > UINT32_MAX - used || s->n == INT32_MAX - 1)
        return OP_ERR_NOMEM;
    if (grow((void **)&s->bytes, &s->bytes_cap, used + n + 1, 1) ||
        grow((void **)&s->at, &s->at_cap, (size_t)s->n + 2, sizeof *s->at))
        return OP_ERR_NOMEM;
    if (n)
        memcpy(s->bytes + used, bytes, n);
    s->at[s->n++] = (uint32_t)used;
    s->at[s->n] = (uint32_t)(used + n);
    return OP_OK;
}

void op_strings_release(op_strings *s)
{
    op_free(s->bytes);
    op_free(s->at);
    *s = (op_strings){0};
}

/* Multiply and fold, eight bytes at a time. */
static inline uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xd1b54a32d192ed03u);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash(const char *s, size_t n)
{
    uint64_t h = n, word = 0;
    for (; n > 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = mix(h, word);
    }
    word = 0;
    memcpy(&word, s, n);
    return mix(h, word);
}

static uint64_t slots_for(size_t n)
{
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)n)
        slots *= 2;
    return slots;
}

op_status op_lookup_init(op_lookup *x, int32_t n)
{
    uint64_t slots = slots_for((size_t)n);
    x->mask = slots - 1;
    x->slots = op_alloc_array(slots, sizeof *x->slots);
    if (!x->slots)
        return OP_ERR_NOMEM;
    memset(x->slots, 0xff, slots * sizeof *x->slots);
    return OP_OK;
}

void op_lookup_release(op_lookup *x)
{
    op_free(x->slots);
    *x = (op_lookup){0};
}

/* The slot that holds the key, or the empty one where it would go. */
static inline uint64_t seek(const op_lookup *x, const op_strings *s, const char *key, size_t n, uint64_t h)
{
    uint64_t i = h & x->mask;
    for (; x->slots[i].at >= 0; i = (i + 1) & x->mask) {
        if (x->slots[i].tag != (uint32_t)(h >> 32))
            continue;
        size_t len;
        const char *other = op_strings_get(s, x->slots[i].at, &len);
        if (len == n && memcmp(other, key, n) == 0)
            break;
    }
    return i;
}

void op_lookup_put(op_lookup *x, const op_strings *s, int32_t i)
{
    size_t n;
    const char *key = op_strings_get(s, i, &n);
    uint64_t h = hash(key, n), slot = seek(x, s, key, n, h);
    if (x->slots[slot].at < 0)
        x->slots[slot] = (struct op_lookup_slot){i, (uint32_t)(h >> 32)};
}

int32_t op_lookup_find(const op_lookup *x, const op_strings *s, const char *key, size_t n)
{
    return x->slots[seek(x, s, key, n, hash(key, n))].at;
}

op_status op_bpe_resize(op_bpe *b, size_t n_merges)
{
    uint64_t slots = slots_for(n_merges);
    op_free(b->merges);
    b->merge_mask = slots - 1;
    b->merges = op_alloc_array(slots, sizeof *b->merges);
    if (!b->merges)
        return OP_ERR_NOMEM;
    memset(b->merges, 0xff, slots * sizeof *b->merges);
    return OP_OK;
}

op_status op_bpe_init(op_bpe *b, size_t n_merges)
{
    b->whole = op_alloc_zero((size_t)b->keys.n + 1, sizeof *b->whole);
    op_status s = b->whole ? op_bpe_resize(b, n_merges) : OP_ERR_NOMEM;
    return s ? s : op_lookup_init(&b->index, b->keys.n);
}

void op_bpe_release(op_bpe *b)
{
    op_strings_release(&b->keys);
    op_lookup_release(&b->index);
    op_free(b->merges);
    op_free(b->whole);
    *b = (op_bpe){0};
}

void op_bpe_index(op_bpe *b, int32_t id)
{
    op_lookup_put(&b->index, &b->keys, id);
}

static inline op_merge_slot *merge_slot(const op_bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t i = mix(pair, 1) & b->merge_mask;
    while (b->merges[i].pair != pair && b->merges[i].pair != UINT64_MAX)
        i = (i + 1) & b->merge_mask;
    return &b->merges[i];
}

void op_bpe_merge(op_bpe *b, int32_t left, int32_t right, int32_t id, uint32_t rank)
{
    *merge_slot(b, left, right) =
        (op_merge_slot){.pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, .rank = rank, .id = id};
}

static int by_rank(const void *a, const void *b)
{
    const op_merge_slot *x = a, *y = b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

op_status op_bpe_merges(const op_bpe *b, op_merge_slot **out, size_t *n)
{
    op_merge_slot *list = op_alloc_array(b->merge_mask + 1, sizeof *list);
    *n = 0;
    if (!(*out = list))
        return OP_ERR_NOMEM;
    for (uint64_t i = 0; i <= b->merge_mask; i++)
        if (b->merges[i].id >= 0)
            list[(*n)++] = b->merges[i];
    qsort(list, *n, sizeof *list, by_rank);
    return OP_OK;
}

op_status op_tokens_reserve(op_tokens *t, size_t more)
{
    if (more <= t->cap - t->n)
        return OP_OK;
    size_t cap = t->cap, cap2 = t->cap, cap3 = t->cap;
    if (grow((void **)&t->ids, &cap, t->n + more, sizeof *t->ids) ||
        grow((void **)&t->begin, &cap2, t->n + more, sizeof *t->begin) ||
        grow((void **)&t->end, &cap3, t->n + more, sizeof *t->end))
        return OP_ERR_NOMEM;
    t->cap = cap;
    return OP_OK;
}

/* Appends the word's first symbols; a symbol is a token and the bytes it covers. Room for n is there. */
static void first_symbols(const op_bpe *b, const char *word, size_t n, uint32_t base, op_tokens *out)
{
    bool unknown_before = false;
    for (size_t i = 0, step; i < n; i += step) {
        step = b->bytes ? 1 : op_utf8_length((unsigned char)word[i]);
        int32_t id = b->bytes ? b->byte_id[(unsigned char)word[i]] : op_lookup_find(&b->index, &b->keys, word + i, step);
        bool fallback = id < 0 && !b->bytes && b->byte_fallback;
        for (size_t k = 0; fallback && k < step; k++)
            fallback = b->byte_id[(unsigned char)word[i + k]] >= 0;
        size_t width = fallback ? 1 : step;
        for (size_t k = 0; k < step; k += width) {
            if (fallback)
                id = b->byte_id[(unsigned char)word[i + k]];
            bool unknown = id < 0;
            if (unknown && unknown_before && b->fuse_unk && b->unk >= 0) {
                out->end[out->n - 1] = base + (uint32_t)(i + step);
            } else if (!unknown || b->unk >= 0) {
                out->ids[out->n] = unknown ? b->unk : id;
                out->begin[out->n] = base + (uint32_t)(i + k);
                out->end[out->n++] = base + (uint32_t)(i + k + width);
            }
            unknown_before = unknown;
        }
    }
}

/* Merges symbols from..n-1 of *out in place: always the pair of lowest rank, the leftmost of equals. */
static void merge_short(const op_bpe *b, op_tokens *out, size_t from)
{
    int32_t *ids = out->ids + from;
    uint32_t *begin = out->begin + from, *end = out->end + from;
    size_t n = out->n - from;
    const op_merge_slot *pair[SHORT_WORD]; /* of symbols i and i + 1 */
    for (size_t i = 0; i + 1 < n; i++)
        pair[i] = merge_slot(b, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (pair[i]->rank < pair[best]->rank)
                best = i;
        if (pair[best]->pair == UINT64_MAX)
            break;
        ids[best] = pair[best]->id;
        end[best] = end[best + 1];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            begin[i] = begin[i + 1];
            end[i] = end[i + 1];
            pair[i - 1] = pair[i];
        }
        if (best + 1 < n)
            pair[best] = merge_slot(b, ids[best], ids[best + 1]);
        if (best > 0)
            pair[best - 1] = merge_slot(b, ids[best - 1], ids[best]);
    }
    out->n = from + n;
}

/* A pair of neighbours that could merge. It is stale when its left symbol or the pair's merge has changed since. */
typedef struct candidate {
    uint32_t rank, at;
} candidate;

typedef struct heap {
    candidate *items;
    size_t n, cap;
} heap;

static bool before(candidate a, candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static op_status heap_push(heap *h, candidate c)
{
    if (grow((void **)&h->items, &h->cap, h->n + 1, sizeof c))
        return OP_ERR_NOMEM;
    size_t i = h->n++;
    for (; i && before(c, h->items[(i - 1) / 2]); i = (i - 1) / 2)
        h->items[i] = h->items[(i - 1) / 2];
    h->items[i] = c;
    return OP_OK;
}

static candidate heap_pop(heap *h)
{
    candidate top = h->items[0], last = h->items[--h->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && before(h->items[child + 1], h->items[child]))
            child++;
        if (!before(h->items[child], last))
            break;
        h->items[i] = h->items[child];
    }
    h->items[i] = last;
    return top;
}

/* The same for long words, in n log n: symbols are a linked list, candidates wait in a heap. */
static op_status merge_long(const op_bpe *b, op_tokens *out, size_t from)
{
    size_t n = out->n - from;
    int32_t *ids = out->ids + from;
    uint32_t *end = out->end + from;
    const uint32_t none = UINT32_MAX;
    uint32_t *next = op_alloc_array(n, 2 * sizeof *next), *previous = next + n;
    heap h = {0};
    op_status s = next ? OP_OK : OP_ERR_NOMEM;
    for (size_t i = 0; !s && i < n; i++) {
        previous[i] = i ? (uint32_t)i - 1 : none;
        next[i] = i + 1 < n ? (uint32_t)i + 1 : none;
        const op_merge_slot *m = i + 1 < n ? merge_slot(b, ids[i], ids[i + 1]) : NULL;
        if (m && m->id >= 0)
            s = heap_push(&h, (candidate){m->rank, (uint32_t)i});
    }
    while (!s && h.n) {
        candidate c = heap_pop(&h);
        uint32_t left = c.at, right = next[left];
        if (ids[left] < 0 || right == none)
            continue;
        const op_merge_slot *m = merge_slot(b, ids[left], ids[right]);
        if (m->id < 0 || m->rank != c.rank)
            continue;
        ids[left] = m->id;
        end[left] = end[right];
        ids[right] = -1;
        next[left] = next[right];
        if (next[left] != none) {
            previous[next[left]] = left;
            m = merge_slot(b, ids[left], ids[next[left]]);
            if (m->id >= 0)
                s = heap_push(&h, (candidate){m->rank, left});
        }
        if (!s && previous[left] != none) {
            m = merge_slot(b, ids[previous[left]], ids[left]);
            if (m->id >= 0)
                s = heap_push(&h, (candidate){m->rank, previous[left]});
        }
    }
    size_t kept = from;
    for (size_t i = from; !s && i < out->n; i++)
        if (out->ids[i] >= 0) {
            out->ids[kept] = out->ids[i];
            out->begin[kept] = out->begin[i];
            out->end[kept++] = out->end[i];
        }
    out->n = s ? from : kept;
    op_free(next);
    op_free(h.items);
    return s;
}

op_status op_bpe_word(const op_bpe *b, const char *word, size_t n, uint32_t base, op_tokens *out)
{
    if (op_tokens_reserve(out, n))
        return OP_ERR_NOMEM;
    int32_t id = op_lookup_find(&b->index, &b->keys, word, n);
    unsigned char whole = id < 0 ? 2 : b->ignore_merges ? 1 : atomic_load_explicit(&b->whole[id], memory_order_relaxed);
    if (whole == 1) {
        out->ids[out->n] = id;
        out->begin[out->n] = base;
        out->end[out->n++] = base + (uint32_t)n;
        return OP_OK;
    }
    size_t from = out->n;
    first_symbols(b, word, n, base, out);
    op_status s = OP_OK;
    if (out->n - from > SHORT_WORD)
        s = merge_long(b, out, from);
    else if (out->n - from > 1)
        merge_short(b, out, from);
    if (!s && id >= 0 && whole == 0)
        atomic_store_explicit(&b->whole[id], out->n == from + 1 && out->ids[from] == id ? 1 : 2, memory_order_relaxed);
    return s;
}
