#include "train/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void op_pack_init(op_pack *p)
{
    *p = (op_pack){0};
    op_arena_init(&p->arena);
}

void op_pack_release(op_pack *p)
{
    op_arena_release(&p->arena);
    *p = (op_pack){0};
}

typedef struct builder {
    op_pack *pack;
    const op_item *items;
    const int32_t *context; /* [n] leading tokens without a weight: what may be shared */
    int32_t share_min, adapter;
    op_part *part; /* being filled */
} builder;

static int longest_first(const void *a, const void *b, void *ctx)
{
    const op_item *items = ctx;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (items[i].n != items[j].n)
        return items[i].n > items[j].n ? -1 : 1;
    return i < j ? -1 : 1;
}

static int32_t common(const builder *b, uint32_t i, uint32_t j)
{
    int32_t limit = b->context[i] < b->context[j] ? b->context[i] : b->context[j];
    int32_t n = 0;
    while (n < limit && b->items[i].ids[n] == b->items[j].ids[n])
        n++;
    return n;
}

static int by_context(const void *a, const void *b, void *ctx)
{
    const builder *build = ctx;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    int32_t n = common(build, i, j);
    bool end_i = n == build->context[i], end_j = n == build->context[j];
    if (end_i != end_j)
        return end_i ? -1 : 1;
    if (!end_i)
        return build->items[i].ids[n] < build->items[j].ids[n] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Tokens from .. to-1 of an item become a sequence after `from` tokens of `parent`. Returns its index within the part. */
static int32_t add_sequence(builder *b, uint32_t item, int32_t from, int32_t to, int32_t parent, bool leaf)
{
    op_pack *p = b->pack;
    const op_item *x = &b->items[item];
    op_part *part = b->part;
    int32_t n = to - from, at = p->n_tokens, index = part->n_seqs;
    memcpy(p->ids + at, x->ids + from, (size_t)n * sizeof *p->ids);
    for (int32_t i = 0; i < n; i++) {
        p->weight[at + i] = from + i ? x->weights[from + i] : 0;
        if (p->behaviour)
            p->behaviour[at + i] = x->behaviour ? x->behaviour[from + i] : NAN;
        if (p->reference)
            p->reference[at + i] = x->reference ? x->reference[from + i] : NAN;
    }
    op_seq s = {.start = at - part->token, .length = n, .parent = parent, .branch = parent < 0 ? 0 : from, .adapter = b->adapter};
    p->seqs[p->n_seqs] = s;
    s.start = at;
    s.parent = parent < 0 ? -1 : parent + part->seq;
    p->whole[p->n_seqs] = s;
    p->item[p->n_seqs] = leaf ? (int32_t)item : -1;
    p->n_tokens += n;
    p->n_seqs++;
    part->n_tokens += n;
    part->n_seqs++;
    return index;
}

/* Adds order[n], sorted by context, all of which share their first `depth` tokens with `parent`. */
static void add_tree(builder *b, const uint32_t *order, size_t n, int32_t depth, int32_t parent)
{
    if (n == 1) {
        add_sequence(b, order[0], depth, b->items[order[0]].n, parent, true);
        return;
    }
    int32_t shared = common(b, order[0], order[n - 1]);
    if (shared - depth >= b->share_min) {
        parent = add_sequence(b, order[0], depth, shared, parent, false);
        depth = shared;
    }
    for (size_t i = 0, end; i < n; i = end) {
        end = i + 1;
        if (b->context[order[i]] > shared)
            while (end < n && b->items[order[end]].ids[shared] == b->items[order[i]].ids[shared])
                end++;
        add_tree(b, order + i, end - i, depth, parent);
    }
}

static op_status allocate(op_pack *p, const op_item *items, size_t n, op_error *e)
{
    bool behaviour = false, reference = false;
    int64_t tokens = 0;
    for (size_t i = 0; i < n; i++) {
        if (items[i].n < 1)
            return op_error_set(e, OP_ERR_ARG, "item %zu has no tokens", i);
        tokens += items[i].n;
        behaviour |= items[i].behaviour != NULL;
        reference |= items[i].reference != NULL;
    }
    if (tokens > INT32_MAX || n > INT32_MAX / 2)
        return op_error_set(e, OP_ERR_ARG, "a step of %lld tokens is too large", (long long)tokens);
    size_t t = (size_t)tokens, s = 2 * n; /* a tree with n leaves has fewer than n shared beginnings */
    p->item_tokens = tokens;
    p->ids = op_arena_alloc(&p->arena, t * sizeof *p->ids);
    p->weight = op_arena_alloc(&p->arena, t * sizeof *p->weight);
    p->behaviour = behaviour ? op_arena_alloc(&p->arena, t * sizeof *p->behaviour) : NULL;
    p->reference = reference ? op_arena_alloc(&p->arena, t * sizeof *p->reference) : NULL;
    p->seqs = op_arena_alloc(&p->arena, s * sizeof *p->seqs);
    p->whole = op_arena_alloc(&p->arena, s * sizeof *p->whole);
    p->item = op_arena_alloc(&p->arena, s * sizeof *p->item);
    p->parts = op_arena_alloc(&p->arena, n * sizeof *p->parts);
    if (!p->ids || !p->weight || (behaviour && !p->behaviour) || (reference && !p->reference) || !p->seqs || !p->whole ||
        !p->item || !p->parts)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a step of %zu tokens", t);
    return OP_OK;
}

/* bin[i] of each item; returns the number of bins. */
static int32_t first_fit(const op_item *items, const uint32_t *order, size_t n, int32_t block, int32_t *bin, int32_t *room)
{
    int32_t bins = 0;
    for (size_t k = 0; k < n; k++) {
        uint32_t i = order[k];
        int32_t at = 0;
        while (at < bins && room[at] < items[i].n)
            at++;
        if (at == bins)
            room[bins++] = block > items[i].n ? block : items[i].n;
        room[at] -= items[i].n;
        bin[i] = at;
    }
    return bins;
}

/* Puts each item into the emptiest of so many bins; false if that overfills one. */
static bool level(const op_item *items, const uint32_t *order, size_t n, int32_t block, int32_t bins, int32_t *bin, int32_t *load)
{
    memset(load, 0, (size_t)bins * sizeof *load);
    for (size_t k = 0; k < n; k++) {
        uint32_t i = order[k];
        int32_t at = 0;
        for (int32_t b = 1; b < bins; b++)
            at = load[b] < load[at] ? b : at;
        if (load[at] && items[i].n > block - load[at])
            return false;
        load[at] += items[i].n;
        bin[i] = at;
    }
    return true;
}

/* Equally full bins, a multiple of `ranks`; as many as items leave none too full. */
static int32_t level_fit(const op_item *items, const uint32_t *order, size_t n, int32_t block, int32_t ranks, int32_t *bin, int32_t *load)
{
    int32_t bins = (first_fit(items, order, n, block, bin, load) + ranks - 1) / ranks * ranks;
    while (!level(items, order, n, block, bins, bin, load))
        bins += ranks;
    return bins;
}

op_status op_pack_build(op_pack *p, const op_item *items, size_t n, const op_pack_options *o, op_error *e)
{
    op_arena arena = p->arena;
    op_arena_reset(&arena);
    *p = (op_pack){.arena = arena};
    op_status status = allocate(p, items, n, e);
    if (status)
        return status;
    uint32_t *order = op_arena_alloc(&p->arena, n * sizeof *order), *members = op_arena_alloc(&p->arena, n * sizeof *members);
    int32_t *context = op_arena_alloc(&p->arena, n * sizeof *context), *bin = op_arena_alloc(&p->arena, n * sizeof *bin);
    int32_t ranks = o->ranks > 1 ? o->ranks : 1, bins;
    int32_t *room = op_arena_alloc(&p->arena, (n + (size_t)ranks) * sizeof *room);
    if (!order || !members || !context || !bin || !room)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for packing %zu items", n);
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
        int32_t c = items[i].n > 1 ? 1 : 0;
        while (c < items[i].n - 1 && items[i].weights[c] == 0)
            c++;
        context[i] = c;
    }
    qsort_r(order, n, sizeof *order, longest_first, (void *)items);
    bins = ranks > 1 ? level_fit(items, order, n, o->block_tokens, ranks, bin, room) : first_fit(items, order, n, o->block_tokens, bin, room);

    builder b = {.pack = p, .items = items, .context = context, .adapter = o->adapter,
                 .share_min = o->share_min > 0 ? o->share_min : INT32_MAX};
    for (int32_t k = 0; k < bins; k++) {
        size_t count = 0;
        for (size_t i = 0; i < n; i++)
            if (bin[i] == k)
                members[count++] = (uint32_t)i;
        if (!count)
            continue;
        qsort_r(members, count, sizeof *members, by_context, &b);
        b.part = &p->parts[p->n_parts++];
        *b.part = (op_part){.token = p->n_tokens, .seq = p->n_seqs};
        add_tree(&b, members, count, 0, -1);
    }
    for (int32_t t = 0; t < p->n_tokens; t++) {
        p->z += fabs((double)p->weight[t]);
        p->trained += p->weight[t] != 0;
    }
    return OP_OK;
}

op_batch op_pack_part(const op_pack *p, int32_t part)
{
    const op_part *x = &p->parts[part];
    return (op_batch){.n_tokens = x->n_tokens, .n_seqs = x->n_seqs, .ids = p->ids + x->token, .seqs = p->seqs + x->seq};
}

op_batch op_pack_whole(const op_pack *p)
{
    return (op_batch){.n_tokens = p->n_tokens, .n_seqs = p->n_seqs, .ids = p->ids, .seqs = p->whole};
}

op_signal op_pack_signal(const op_pack *p)
{
    return (op_signal){.weight = p->weight, .behaviour = p->behaviour, .reference = p->reference, .normaliser = p->z,
                       .item = p->item};
}
