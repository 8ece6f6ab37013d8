/* The element of a given rank, exactly and without sorting: a histogram over the upper half of the keys finds its bin, one over the lower half of that bin's keys
 * the key itself, and where equal keys come before it in the order of indices, counting them finds its place. */
#include "vectors/merge.h"

enum { BINS = 1 << 16 };

typedef struct search {
    op_merge_key_fn fn;
    void *ctx;
    op_merge_rank *ranks;
    int n_ranks, streams;
    int64_t left[OP_MERGE_INPUTS_MAX * 2], equal[OP_MERGE_INPUTS_MAX * 2]; /* rank among its bin's keys, counted upwards; keys like it */
    uint32_t *bins;  /* [workers, streams or n_ranks, BINS] */
    int64_t *counts; /* [n_ranks, tiles] */
    int64_t tiles;
    uint32_t *keys;  /* of the one tile that is looked at last */
} search;

static uint32_t *keys_of(const search *s, const op_merge_tile *t, int stream)
{
    uint32_t *keys = op_alloc_array((size_t)t->n, sizeof *keys);
    if (keys)
        s->fn(s->ctx, t, stream, keys);
    return keys;
}

static op_status count_upper(void *ctx, const op_merge_tile *t)
{
    const search *s = ctx;
    for (int k = 0; k < s->streams; k++) {
        uint32_t *bins = s->bins + ((size_t)t->worker * (size_t)s->streams + (size_t)k) * BINS, *keys = keys_of(s, t, k);
        if (!keys)
            return OP_ERR_NOMEM;
        for (int i = 0; i < t->n; i++)
            bins[keys[i] >> 16]++;
        op_free(keys);
    }
    return OP_OK;
}

static op_status count_lower(void *ctx, const op_merge_tile *t)
{
    const search *s = ctx;
    for (int k = 0; k < s->streams; k++) {
        uint32_t *keys = keys_of(s, t, k);
        if (!keys)
            return OP_ERR_NOMEM;
        for (int q = 0; q < s->n_ranks; q++) {
            uint32_t *bins = s->bins + ((size_t)t->worker * (size_t)s->n_ranks + (size_t)q) * BINS, upper = s->ranks[q].at.key >> 16;
            for (int i = 0; i < t->n && s->ranks[q].stream == k; i++)
                if (keys[i] >> 16 == upper)
                    bins[keys[i] & 0xffff]++;
        }
        op_free(keys);
    }
    return OP_OK;
}

static op_status count_equal(void *ctx, const op_merge_tile *t)
{
    search *s = ctx;
    for (int q = 0; q < s->n_ranks; q++) {
        uint32_t *keys = keys_of(s, t, s->ranks[q].stream);
        if (!keys)
            return OP_ERR_NOMEM;
        int64_t n = 0;
        for (int i = 0; i < t->n; i++)
            n += keys[i] == s->ranks[q].at.key;
        s->counts[q * s->tiles + t->first / t->job->tile] = n;
        op_free(keys);
    }
    return OP_OK;
}

/* Finds the bin of the key with *left keys before it, counting upwards, in the workers' histograms number `which` of `n`; *left becomes its rank inside the bin. */
static uint32_t find_bin(const search *s, int which, int n, int64_t *left, int64_t *size)
{
    for (uint32_t b = 0;; b++) {
        *size = 0;
        for (int w = 0; w < OP_MERGE_WORKERS; w++)
            *size += s->bins[((size_t)w * (size_t)n + (size_t)which) * BINS + b];
        if (*left < *size || b == BINS - 1)
            return b;
        *left -= *size;
    }
}

typedef struct look {
    const search *s;
    int stream;
    uint32_t key;
    int64_t skip, found;
} look;

static op_status look_for(void *ctx, const op_merge_tile *t)
{
    look *l = ctx;
    uint32_t *keys = keys_of(l->s, t, l->stream);
    if (!keys)
        return OP_ERR_NOMEM;
    for (int i = 0; i < t->n; i++)
        if (keys[i] == l->key && l->skip-- == 0)
            l->found = t->first + i;
    op_free(keys);
    return OP_OK;
}

/* Places among equal keys: the `before`-th of them in the order of indices. Where all are zero, which of them is of no consequence to anybody. */
static op_status find_indices(op_merge_job *j, search *s, const int64_t *before, op_error *e)
{
    bool needed = false;
    for (int q = 0; q < s->n_ranks; q++)
        needed |= before[q] && s->ranks[q].at.key && !s->ranks[q].key_only;
    if (!needed)
        return OP_OK;
    s->tiles = op_merge_tile_count(j);
    if (!(s->counts = op_alloc_zero((size_t)s->tiles * (size_t)s->n_ranks, sizeof *s->counts)))
        return op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
    op_status status = op_merge_pass(j, count_equal, s, e);
    for (int q = 0; q < s->n_ranks && !status; q++) {
        look l = {.s = s, .stream = s->ranks[q].stream, .key = s->ranks[q].at.key, .skip = before[q]};
        int64_t tile = 0;
        while (tile < s->tiles - 1 && l.skip >= s->counts[q * s->tiles + tile])
            l.skip -= s->counts[q * s->tiles + tile++];
        if (!before[q] || !l.key || s->ranks[q].key_only)
            continue;
        status = op_merge_one(j, tile, look_for, &l, e);
        s->ranks[q].at.index = l.found;
    }
    return status;
}

op_status op_merge_select(op_merge_job *j, op_merge_key_fn fn, void *ctx, int streams, op_merge_rank *ranks, int n_ranks, op_error *e)
{
    search s = {.fn = fn, .ctx = ctx, .ranks = ranks, .n_ranks = n_ranks, .streams = streams};
    size_t most = (size_t)(streams > n_ranks ? streams : n_ranks) * OP_MERGE_WORKERS * BINS;
    int64_t before[OP_MERGE_INPUTS_MAX * 2] = {0};
    if (!(s.bins = op_alloc_zero(most, sizeof *s.bins)))
        return op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
    op_status status = op_merge_pass(j, count_upper, &s, e);
    for (int q = 0; q < n_ranks && !status; q++) {
        s.left[q] = ranks[q].descending ? j->count - 1 - ranks[q].rank : ranks[q].rank;
        ranks[q].at = (op_merge_cut){find_bin(&s, ranks[q].stream, streams, &s.left[q], &s.equal[q]) << 16, 0};
    }
    memset(s.bins, 0, most * sizeof *s.bins);
    if (!status)
        status = op_merge_pass(j, count_lower, &s, e);
    for (int q = 0; q < n_ranks && !status; q++) {
        ranks[q].at.key |= find_bin(&s, q, n_ranks, &s.left[q], &s.equal[q]);
        before[q] = ranks[q].descending ? s.equal[q] - 1 - s.left[q] : s.left[q];
    }
    if (!status)
        status = find_indices(j, &s, before, e);
    op_free(s.counts);
    op_free(s.bins);
    return status;
}
