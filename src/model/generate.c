/* Sampling with a cache of keys and values.
 *
 * The cache is one pool of rows; a request owns an extent of them and sees, besides, the rows that it shares with an earlier request.
 * Prompts run in blocks of PREFILL rows, mixed from all requests that have just come in; after that every step runs one row a request.
 * A request's results are its own because a row of op_ops.decode depends on no other; where that does not serve, products have a fixed number
 * of rows, PREFILL or DECODE, since oneDNN picks kernels by that number. Adapters' products always have. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <operant/generate.h>

#include "base/mem.h"
#include "base/rng.h"
#include "model/parts.h"

enum { DECODE = 32, PREFILL = 128, SLOTS = 32 };

/* A request while it runs, and the extent of the cache that it holds. */
typedef struct run {
    int32_t share_n;        /* rows of its path that belong to ancestors */
    int32_t first, rows;    /* extent in the cache; rows 0: none held */
    int32_t cached;         /* own rows filled */
    int32_t limit;          /* tokens that it may draw */
    int32_t sharers;        /* unfinished requests that see its rows */
    int32_t *ids;           /* [n_prompt + limit] prompt and what was drawn */
    bool finished;
} run;

typedef struct sampler {
    op_model *m;
    op_request *requests;
    size_t n;
    const op_generate_options *o;
    run *runs;
    bool decode, decode_prompts; /* steps, and prompts, multiply by op_ops.decode */
    int32_t *active;        /* requests in slots */
    int32_t n_active, slots;
    size_t next;            /* the first request that has not come in */
    op_arena memory;
    int32_t capacity;       /* rows of the cache */
    char **k, **v;          /* [L] of [capacity, G D] act */
    int32_t *key_position;  /* [capacity] */
    /* one block of rows */
    int32_t R, M;
    int32_t *row_request, *row_id, *position, *cache_row, *first_seg;
    op_seq *seqs;
    op_stretch *stretch;
    op_segment *seg;
    size_t seg_cap;
    float *resid;
    void *x, *att, *gu, *h;
    op_qkv q;
    float *mean, *rstd;
    op_lora_scratch lora;
    /* the output layer */
    void *last;             /* [DECODE, C] rows whose logits are wanted */
    int32_t *last_request;  /* [DECODE] */
    int32_t n_last;
    float *logits, *work, *lse, *logp; /* work: what is drawn from, then its weights */
    int32_t *drawn;
    int threads;
    struct candidate *room; /* [threads, V] */
    float *top, *sum;       /* [threads, blocks of V] */
} sampler;

void op_request_release(op_request *r)
{
    op_free(r->tokens);
    op_free(r->logprobs);
    r->tokens = NULL;
    r->logprobs = NULL;
    r->n = 0;
}

/* ---- drawing a token ---- */

typedef struct candidate {
    float p;
    int32_t id;
} candidate;

static int likelier(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->p != y->p)
        return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Moves the k likeliest of c[n] to the front (Hoare's selection). */
static void select_likeliest(candidate *c, int32_t n, int32_t k)
{
    int32_t low = 0, high = n - 1;
    while (low < high) {
        candidate pivot = c[low + (high - low) / 2];
        int32_t i = low, j = high;
        while (i <= j) {
            while (likelier(&c[i], &pivot) < 0)
                i++;
            while (likelier(&c[j], &pivot) > 0)
                j--;
            if (i <= j) {
                candidate swap = c[i];
                c[i++] = c[j];
                c[j--] = swap;
            }
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            return;
    }
}

/* before has room for V. */
static void penalise(float *logits, const int32_t *ids, int32_t n, float penalty, candidate *before)
{
    /* Each token that occurred is penalised once: remember the value it came from. */
    for (int32_t i = 0; i < n; i++)
        before[ids[i]].p = logits[ids[i]];
    for (int32_t i = 0; i < n; i++) {
        float x = before[ids[i]].p;
        logits[ids[i]] = x > 0 ? x / penalty : x * penalty;
    }
}

static int32_t argmax(const float *x, int32_t n)
{
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int32_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (int32_t i = 0; i < n; i++)
        if (x[i] == most)
            return i;
    return 0;
}

/* The weights of a draw, as op_ops.draw_weights leaves them. */
typedef struct weights {
    const float *p, *top, *sum;
    int32_t V, blocks;
} weights;

static int32_t block_end(const weights *w, int32_t block)
{
    return block + 1 < w->blocks ? (block + 1) * OP_DRAW_BLOCK : w->V;
}

static double total_of(const weights *w)
{
    double total = 0;
    for (int32_t b = 0; b < w->blocks; b++)
        total += w->sum[b];
    return total;
}

/* The token at u, 0 <= u < total, of the weights laid end to end; after rounding, the last that weighs anything. */
static int32_t token_at(const weights *w, double u)
{
    int32_t last = 0;
    for (int32_t b = 0; b < w->blocks; b++) {
        if (u >= w->sum[b]) {
            u -= w->sum[b];
            continue;
        }
        for (int32_t i = b * OP_DRAW_BLOCK; i < block_end(w, b); i++) {
            u -= w->p[i];
            last = w->p[i] > 0 ? i : last;
            if (u < 0)
                return i;
        }
        return last; /* the block's sum was rounded up */
    }
    for (int32_t b = w->blocks - 1; b >= 0; b--)
        for (int32_t i = block_end(w, b) - 1; i >= b * OP_DRAW_BLOCK; i--)
            if (w->p[i] > 0)
                return i;
    return last;
}

/* Those that weigh `least` or more, and something. */
static int32_t collect(const weights *w, double least, candidate *c)
{
    int32_t n = 0;
    for (int32_t b = 0; b < w->blocks; b++)
        for (int32_t i = b * OP_DRAW_BLOCK; w->top[b] >= least && i < block_end(w, b); i++)
            if (w->p[i] >= least && w->p[i] > 0)
                c[n++] = (candidate){w->p[i], i};
    return n;
}

/* The k likeliest. Of as many blocks as there are, the k-th largest maximum is a floor: k weights reach it. */
static int32_t likeliest(const weights *w, int32_t k, candidate *c)
{
    double least = 0;
    if (k <= w->blocks) {
        for (int32_t b = 0; b < w->blocks; b++)
            c[b] = (candidate){w->top[b], b};
        select_likeliest(c, w->blocks, k);
        least = c[k - 1].p;
    }
    int32_t n = collect(w, least, c);
    if (n > k)
        select_likeliest(c, n, k);
    return n < k ? n : k;
}

/* The nucleus of c[n]: the fewest whose weights reach `share` of the total, the likeliest first. */
static int32_t nucleus(candidate *c, int32_t n, double reach)
{
    double sum = 0;
    int32_t sorted = 0, kept = 0;
    for (int32_t k = 64; kept < n && sum < reach; k *= 8) {
        int32_t part = k < n - sorted ? k : n - sorted;
        select_likeliest(c + sorted, n - sorted, part);
        qsort(c + sorted, (size_t)part, sizeof *c, likelier);
        sorted += part;
        while (kept < sorted && (kept == 0 || sum < reach))
            sum += c[kept++].p;
    }
    return kept;
}

/* Temperature, then top-k, top-p (Holtzman et al.: 1904.09751), min-p (2407.01082), in the order of Hugging Face's warpers.
 * logits[V] may hold -inf and becomes weights when it is p; room holds V; top and sum hold one for each block. */
static int32_t draw(const op_ops *ops, const op_sampling *o, const float *logits, int32_t V, uint64_t counter, float *p, float *top, float *sum,
                    candidate *c)
{
    if (o->temperature <= 0)
        return argmax(logits, V);
    weights w = {p, top, sum, V, (V + OP_DRAW_BLOCK - 1) / OP_DRAW_BLOCK};
    if (ops->draw_weights(V, logits, (float)fmin(1 / o->temperature, FLT_MAX), p, top, sum) == -INFINITY)
        return 0;
    double u = op_rng_uniform(o->seed, OP_STREAM_SAMPLE, counter), total = 0;
    bool some = o->top_k > 0 && o->top_k < V;
    if (!some && o->top_p >= 1 && o->min_p <= 0)
        return token_at(&w, u * total_of(&w));
    int32_t n;
    if (some) {
        n = likeliest(&w, o->top_k, c);
        for (int32_t i = 0; i < n; i++)
            total += c[i].p;
    } else {
        /* What is smaller than this cannot belong to the nucleus: all of it together weighs less than 1 - top_p. */
        total = total_of(&w);
        n = collect(&w, fmax((1 - o->top_p) * total / V, o->top_p >= 1 ? o->min_p : 0), c);
    }
    if (o->top_p < 1)
        n = nucleus(c, n, o->top_p * total);
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++)
        if (c[i].p >= o->min_p) /* the likeliest weighs 1 */
            c[kept++] = c[i];
    total = 0;
    for (int32_t i = 0; i < kept; i++)
        total += c[i].p;
    u *= total;
    for (int32_t i = 0; i < kept; i++) {
        u -= c[i].p;
        if (u < 0)
            return c[i].id;
    }
    return kept ? c[kept - 1].id : 0; /* none: the logits are no numbers */
}

/* ---- the cache ---- */

static int32_t own_rows(const sampler *s, size_t i)
{
    return s->requests[i].n_prompt - s->runs[i].share_n + s->runs[i].limit;
}

/* First fit: the lowest gap of `rows` free rows, or -1. */
static int32_t find_gap(const sampler *s, int32_t rows)
{
    int32_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < s->next; i++) {
            const run *r = &s->runs[i];
            if (r->rows && at < r->first + r->rows && r->first < at + rows) {
                at = r->first + r->rows;
                moved = true;
            }
        }
    }
    return at + rows <= s->capacity ? at : -1;
}

static void leave(sampler *s, int32_t i)
{
    while (i >= 0) {
        run *r = &s->runs[i];
        if (!r->finished || r->sharers)
            return;
        r->rows = 0;
        i = s->requests[i].share;
        if (i >= 0)
            s->runs[i].sharers--;
    }
}

/* Enough for the largest requests in all slots at once, and for every one that others share. */
static int32_t needed_rows(const sampler *s)
{
    int64_t largest[SLOTS] = {0}, total = 0;
    for (size_t i = 0; i < s->n; i++) {
        int64_t rows = own_rows(s, i);
        if (s->runs[i].sharers) {
            total += rows;
            continue;
        }
        int32_t least = 0;
        for (int32_t k = 1; k < s->slots; k++)
            least = largest[k] < largest[least] ? k : least;
        largest[least] = rows > largest[least] ? rows : largest[least];
    }
    for (int32_t k = 0; k < s->slots; k++)
        total += largest[k];
    if (s->n > (size_t)s->slots)
        total *= 2; /* first fit leaves gaps where others were */
    return total > INT32_MAX ? -1 : (int32_t)total;
}

/* ---- set-up ---- */

static op_status check_request(const sampler *s, size_t i, op_error *e)
{
    const op_request *r = &s->requests[i];
    const op_model_config *c = &s->m->config;
    if (r->n_prompt < 1 || r->n_prompt >= c->max_positions)
        return op_error_set(e, OP_ERR_ARG, "request %zu: a prompt of %d tokens, the model takes 1..%d", i, r->n_prompt,
                            c->max_positions - 1);
    if (r->sampling.max_tokens < 1 || !(r->sampling.temperature >= 0) || r->sampling.top_k < 0 ||
        !(r->sampling.top_p > 0) || !(r->sampling.min_p >= 0 && r->sampling.min_p <= 1) || !(r->sampling.repetition_penalty > 0))
        return op_error_set(e, OP_ERR_ARG, "request %zu: a sampling setting is out of range", i);
    if (r->adapter < -1 || r->adapter >= s->m->n_adapters)
        return op_error_set(e, OP_ERR_ARG, "request %zu: adapter %d, expected -1..%d", i, r->adapter, s->m->n_adapters - 1);
    for (int32_t t = 0; t < r->n_prompt; t++)
        if (r->prompt[t] < 0 || r->prompt[t] >= c->vocab)
            return op_error_set(e, OP_ERR_ARG, "request %zu: token %d is %d, expected 0..%d", i, t, r->prompt[t], c->vocab - 1);
    if (r->share < 0)
        return OP_OK;
    if ((size_t)r->share >= i)
        return op_error_set(e, OP_ERR_ARG, "request %zu shares with %d, expected an earlier one", i, r->share);
    const op_request *p = &s->requests[r->share];
    if (r->share_n < 1 || r->share_n > p->n_prompt || r->share_n > r->n_prompt || r->adapter != p->adapter ||
        memcmp(r->prompt, p->prompt, (size_t)r->share_n * sizeof *r->prompt))
        return op_error_set(e, OP_ERR_ARG, "request %zu does not begin with the first %d tokens of request %d", i, r->share_n, r->share);
    return OP_OK;
}

static void *take(sampler *s, size_t n, size_t size, bool *ok)
{
    void *p = *ok ? op_arena_alloc(&s->memory, n * size) : NULL;
    *ok = *ok && p;
    return p;
}

static int32_t draw_blocks(const op_model_config *c)
{
    return (c->vocab + OP_DRAW_BLOCK - 1) / OP_DRAW_BLOCK;
}

static op_status reserve(sampler *s, op_error *e)
{
    const op_model_config *c = &s->m->config;
    size_t act = s->m->ops->act_size, C = (size_t)c->width, D = (size_t)c->head_dim, HD = (size_t)c->heads * D;
    size_t gu = (size_t)op_gu_width(c), row = (size_t)c->kv_heads * D;
    bool ok = s->capacity > 0;
    s->k = take(s, (size_t)c->layers, sizeof *s->k, &ok);
    s->v = take(s, (size_t)c->layers, sizeof *s->v, &ok);
    for (int32_t l = 0; l < c->layers && ok; l++) {
        s->k[l] = take(s, (size_t)s->capacity * row, act, &ok);
        s->v[l] = take(s, (size_t)s->capacity * row, act, &ok);
    }
    s->key_position = take(s, (size_t)s->capacity, sizeof(int32_t), &ok);
    s->row_request = take(s, PREFILL, sizeof(int32_t), &ok);
    s->row_id = take(s, PREFILL, sizeof(int32_t), &ok);
    s->position = take(s, PREFILL, sizeof(int32_t), &ok);
    s->cache_row = take(s, PREFILL, sizeof(int32_t), &ok);
    s->first_seg = take(s, PREFILL + 1, sizeof(int32_t), &ok);
    s->seqs = take(s, PREFILL, sizeof *s->seqs, &ok);
    s->stretch = take(s, PREFILL, sizeof *s->stretch, &ok);
    s->resid = take(s, PREFILL * C, sizeof(float), &ok);
    s->x = take(s, PREFILL * C, act, &ok);
    s->att = take(s, PREFILL * HD, act, &ok);
    s->gu = take(s, PREFILL * gu, act, &ok);
    s->h = take(s, PREFILL * (size_t)c->ffn, act, &ok);
    s->q.qkv = take(s, PREFILL * (size_t)op_joint_width(c), act, &ok);
    if (c->qk_norm) {
        s->q.qk_raw = take(s, PREFILL * (HD + row), act, &ok);
        s->q.q_rstd = take(s, PREFILL * (size_t)c->heads, sizeof(float), &ok);
        s->q.k_rstd = take(s, PREFILL * (size_t)c->kv_heads, sizeof(float), &ok);
    }
    s->mean = take(s, PREFILL, sizeof(float), &ok);
    s->rstd = take(s, PREFILL, sizeof(float), &ok);
    s->lora.h = take(s, PREFILL * (size_t)op_lora_rank(s->m), act, &ok);
    s->last = take(s, DECODE * C, act, &ok);
    s->last_request = take(s, DECODE, sizeof(int32_t), &ok);
    size_t rows = s->decode ? (size_t)s->slots : DECODE;
    s->logits = take(s, rows * (size_t)c->vocab, sizeof(float), &ok);
    s->work = take(s, rows * (size_t)c->vocab, sizeof(float), &ok);
    s->lse = take(s, DECODE, sizeof(float), &ok);
    s->logp = take(s, DECODE, sizeof(float), &ok);
    s->drawn = take(s, DECODE, sizeof(int32_t), &ok);
    s->threads = op_threads() < DECODE ? op_threads() : DECODE;
    s->room = take(s, (size_t)s->threads * (size_t)c->vocab, sizeof *s->room, &ok);
    s->top = take(s, (size_t)s->threads * (size_t)draw_blocks(c), sizeof(float), &ok);
    s->sum = take(s, (size_t)s->threads * (size_t)draw_blocks(c), sizeof(float), &ok);
    s->active = take(s, SLOTS, sizeof(int32_t), &ok);
    return ok ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for a cache of %d rows", s->capacity);
}

/* Can op_ops.decode multiply at most `rows` rows by every matrix? How oneDNN lays one out may depend on its size. */
static bool decodes(const op_model *m, int rows)
{
    bool all = m->ops->decodes(m->head.W, rows);
    for (int32_t l = 0; l < m->config.layers && all; l++) {
        const op_layer *y = &m->layers[l];
        all = m->ops->decodes(y->qkv.W, rows) && m->ops->decodes(y->o.W, rows) && m->ops->decodes(y->gu.W, rows) && m->ops->decodes(y->down.W, rows);
    }
    return all;
}

static op_status setup(sampler *s, op_error *e)
{
    op_arena_init(&s->memory);
    s->slots = s->o->max_batch > 0 && s->o->max_batch < SLOTS ? s->o->max_batch : SLOTS;
    s->decode = decodes(s->m, s->slots);
    s->decode_prompts = decodes(s->m, PREFILL);
    s->runs = op_alloc_zero(s->n, sizeof *s->runs);
    if (!s->runs)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu requests", s->n);
    for (size_t i = 0; i < s->n; i++) {
        op_request *r = &s->requests[i];
        run *y = &s->runs[i];
        op_status status = check_request(s, i, e);
        if (status)
            return status;
        int32_t room = s->m->config.max_positions - r->n_prompt;
        y->limit = r->sampling.max_tokens < room ? r->sampling.max_tokens : room;
        y->ids = op_alloc_array((size_t)r->n_prompt + (size_t)y->limit, sizeof *y->ids);
        r->tokens = op_alloc_array((size_t)y->limit, sizeof *r->tokens);
        r->logprobs = op_alloc_array((size_t)y->limit, sizeof *r->logprobs);
        if (!y->ids || !r->tokens || !r->logprobs)
            return op_error_set(e, OP_ERR_NOMEM, "out of memory for request %zu", i);
        memcpy(y->ids, r->prompt, (size_t)r->n_prompt * sizeof *y->ids);
        r->n = 0;
        if (r->share >= 0) {
            /* the last prompt token is always run: its logits start the text */
            y->share_n = r->share_n < r->n_prompt ? r->share_n : r->n_prompt - 1;
            s->runs[r->share].sharers++;
        }
    }
    s->capacity = needed_rows(s);
    return reserve(s, e);
}

static void release(sampler *s)
{
    for (size_t i = 0; s->runs && i < s->n; i++)
        op_free(s->runs[i].ids);
    op_free(s->runs);
    op_free(s->seg);
    op_arena_release(&s->memory);
}

/* ---- a block of rows ---- */

static op_status add_segment(sampler *s, int32_t *n, op_segment g)
{
    if ((size_t)*n == s->seg_cap) {
        size_t cap = s->seg_cap ? 2 * s->seg_cap : 256;
        op_segment *seg = op_realloc(s->seg, cap * sizeof *seg);
        if (!seg)
            return OP_ERR_NOMEM;
        s->seg = seg;
        s->seg_cap = cap;
    }
    s->seg[(*n)++] = g;
    return OP_OK;
}

/* The first `length` cache rows of request i's path, ancestors first. */
static op_status add_path(sampler *s, int32_t i, int32_t length, int32_t *n)
{
    const run *r = &s->runs[i];
    int32_t shared = r->share_n < length ? r->share_n : length;
    op_status status = shared ? add_path(s, s->requests[i].share, shared, n) : OP_OK;
    if (!status && length > shared)
        status = add_segment(s, n, (op_segment){r->first, length - shared});
    return status;
}

static void add_row(sampler *s, int32_t request)
{
    run *r = &s->runs[request];
    int32_t i = s->R++, place = r->share_n + r->cached;
    s->row_request[i] = request;
    s->row_id[i] = r->ids[place];
    s->position[i] = place;
    s->cache_row[i] = r->first + r->cached;
    s->key_position[s->cache_row[i]] = place;
    s->seqs[i] = (op_seq){.start = i, .length = 1, .parent = -1, .adapter = s->requests[request].adapter};
    r->cached++;
}

/* Is any of the R rows the last of its prompt, or a drawn one: one whose logits are wanted? */
static bool wants_logits(const sampler *s)
{
    for (int32_t i = 0; i < s->R; i++)
        if (s->position[i] >= s->requests[s->row_request[i]].n_prompt - 1)
            return true;
    return false;
}

/* Runs the R rows through all layers, as `most` (PREFILL or DECODE) where rows are padded; x then holds them after the final norm.
 * Of rows in the middle of prompts the last layer's keys and values are all that anybody sees: the rest is left out, and x means nothing. */
static op_status run_rows(sampler *s, int32_t most)
{
    op_model *m = s->m;
    const op_model_config *c = &m->config;
    size_t act = m->ops->act_size, row = (size_t)c->kv_heads * (size_t)c->head_dim * act;
    int32_t n_seg = 0, n_stretch = 0, ld = op_joint_width(c), q = c->heads * c->head_dim;
    for (int32_t i = 0; i < s->R; i++) {
        s->first_seg[i] = n_seg;
        op_status status = add_path(s, s->row_request[i], s->position[i] + 1, &n_seg);
        if (status)
            return status;
        if (n_stretch && s->stretch[n_stretch - 1].adapter == s->seqs[i].adapter)
            s->stretch[n_stretch - 1].n++;
        else
            s->stretch[n_stretch++] = (op_stretch){i, 1, s->seqs[i].adapter};
    }
    s->first_seg[s->R] = n_seg;
    bool decode = most == PREFILL ? s->decode_prompts : s->decode;
    s->M = decode && !m->n_adapters ? s->R : most;
    op_rows rows = {.T = s->R, .M = s->M, .decode = decode, .padded = true, .stretch = s->stretch, .n_stretch = n_stretch, .position = s->position};
    op_cached_attention a = {.R = s->R, .H = c->heads, .G = c->kv_heads, .D = c->head_dim, .ldq = ld,
                             .ldkv = c->kv_heads * c->head_dim, .window = c->window, .scale = 1 / sqrtf((float)c->head_dim),
                             .first_seg = s->first_seg, .seg = s->seg, .position = s->position, .key_position = s->key_position,
                             .prompts = most == PREFILL};
    op_batch batch = {s->R, s->R, s->row_id, s->seqs};
    memset(s->resid, 0, (size_t)s->M * c->width * sizeof(float));
    memset(s->att, 0, (size_t)s->M * q * act);
    op_layer_embed(m, s->R, s->row_id, s->position, s->resid);
    op_status status = OP_OK;
    for (int32_t l = 0; l < c->layers && !status; l++) {
        status = op_taps_forward(m, l, &batch, s->resid);
        op_norm_forward(m, l, OP_ROLE_NORM1, s->M, s->resid, s->x, s->mean, s->rstd);
        if (!status)
            status = op_layer_qkv(m, &rows, l, s->x, &s->q, &s->lora);
        for (int32_t i = 0; i < s->R; i++) {
            const char *joint = op_act_column(m, s->q.qkv, (int64_t)i * ld + q);
            memcpy(s->k[l] + (size_t)s->cache_row[i] * row, joint, row);
            memcpy(s->v[l] + (size_t)s->cache_row[i] * row, joint + row, row);
        }
        if (l == c->layers - 1 && !m->n_taps && !wants_logits(s))
            return status;
        if (!status)
            status = m->ops->attention_cached(&a, s->q.qkv, s->k[l], s->v[l], s->att);
        if (!status)
            status = op_layer_attention_out(m, &rows, l, s->att, s->resid, &s->lora);
        op_norm_forward(m, l, OP_ROLE_NORM2, s->M, s->resid, s->x, s->mean, s->rstd);
        if (!status)
            status = op_layer_mlp_in(m, &rows, l, s->x, s->gu, &s->lora);
        op_layer_activation(m, s->M, s->gu, s->h);
        if (!status)
            status = op_layer_mlp_out(m, &rows, l, s->h, s->resid, &s->lora);
    }
    if (!status)
        status = op_taps_forward(m, c->layers, &batch, s->resid);
    op_norm_forward(m, -1, OP_ROLE_FINAL, s->M, s->resid, s->x, s->mean, s->rstd);
    return status;
}

/* ---- what comes after the logits ---- */

static bool ends_text(const sampler *s, int32_t id)
{
    const op_model_config *c = &s->m->config;
    for (int32_t i = 0; i < c->n_eos && !s->o->ignore_eos; i++)
        if (c->eos[i] == id)
            return true;
    for (int32_t i = 0; i < s->o->n_stop_ids; i++)
        if (s->o->stop_ids[i] == id)
            return true;
    return false;
}

static void finish(sampler *s, int32_t i, op_finish how)
{
    s->requests[i].finish = how;
    s->runs[i].finished = true;
    for (int32_t k = 0; k < s->n_active; k++)
        if (s->active[k] == i)
            s->active[k--] = s->active[--s->n_active];
    leave(s, i);
    if (s->o->done)
        s->o->done(s->o->ctx, (size_t)i, &s->requests[i]);
}

static void accept(sampler *s, int32_t i, int32_t id, float logp)
{
    op_request *r = &s->requests[i];
    run *y = &s->runs[i];
    y->ids[r->n_prompt + r->n] = id;
    r->tokens[r->n] = id;
    r->logprobs[r->n++] = logp;
    op_verdict v = s->o->stop ? s->o->stop(s->o->ctx, (size_t)i, r->tokens, r->n, logp) : OP_GO;
    if (v == OP_VETO)
        finish(s, i, OP_FINISH_VETO);
    else if (v == OP_STOP || ends_text(s, id))
        finish(s, i, OP_FINISH_STOP);
    else if (r->n == y->limit)
        finish(s, i, OP_FINISH_LENGTH);
}

/* The token that row k of the logits gives. Its weights go to `work`, the logits stay as they are. */
static int32_t draw_row(sampler *s, int32_t k, bool changed)
{
    const op_model_config *c = &s->m->config;
    const op_request *r = &s->requests[s->last_request[k]];
    size_t row = (size_t)k * (size_t)c->vocab, t = (size_t)op_thread(), blocks = (size_t)draw_blocks(c);
    return draw(s->m->ops, &r->sampling, (changed ? s->work : s->logits) + row, c->vocab, (uint64_t)r->n, s->work + row, s->top + t * blocks,
                s->sum + t * blocks, s->room + t * (size_t)c->vocab);
}

/* Draws one token for each of the gathered rows. */
static op_status draw_tokens(sampler *s)
{
    op_model *m = s->m;
    int32_t V = m->config.vocab, n = s->n_last;
    s->n_last = 0;
    op_status status = s->decode ? m->ops->decode(m->head.W, n, s->last, NULL, OP_OUT_F32, s->logits)
                                 : m->ops->matmul(m->head.W, DECODE, s->last, NULL, OP_OUT_F32, s->logits);
    if (status)
        return status;
    bool vetoed[DECODE] = {false}, changed[DECODE] = {false};
    for (int32_t k = 0; k < n; k++) {
        int32_t i = s->last_request[k], length = s->requests[i].n_prompt + s->requests[i].n;
        float penalty = (float)s->requests[i].sampling.repetition_penalty, *work = s->work + (size_t)k * V;
        changed[k] = penalty != 1 || s->o->gate;
        if (changed[k])
            memcpy(work, s->logits + (size_t)k * V, (size_t)V * sizeof *work);
        if (penalty != 1)
            penalise(work, s->runs[i].ids, length, penalty, s->room);
        if (s->o->gate)
            vetoed[k] = s->o->gate(s->o->ctx, (size_t)i, s->runs[i].ids, length, work) != OP_GO;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(s->threads)
    for (int32_t k = 0; k < n; k++)
        s->drawn[k] = draw_row(s, k, changed[k]);
    m->ops->logprob(n, V, s->logits, s->drawn, s->lse, s->logp);
    for (int32_t k = 0; k < n; k++) {
        if (vetoed[k])
            finish(s, s->last_request[k], OP_FINISH_VETO);
        else
            accept(s, s->last_request[k], s->drawn[k], s->logp[k]);
    }
    return OP_OK;
}

static op_status gather(sampler *s, int32_t row)
{
    size_t bytes = (size_t)s->m->config.width * s->m->ops->act_size;
    memcpy((char *)s->last + (size_t)s->n_last * bytes, (char *)s->x + (size_t)row * bytes, bytes);
    s->last_request[s->n_last++] = s->row_request[row];
    return s->n_last == DECODE ? draw_tokens(s) : OP_OK;
}

/* ---- the loop ---- */

static op_status run_prefill(sampler *s)
{
    op_status status = run_rows(s, PREFILL);
    for (int32_t i = 0; i < s->R && !status; i++)
        if (s->position[i] == s->requests[s->row_request[i]].n_prompt - 1)
            status = gather(s, i);
    s->R = 0;
    return status;
}

/* Lets requests in while there is a slot and room, and runs their prompts. */
static op_status admit(sampler *s)
{
    op_status status = OP_OK;
    while (s->next < s->n && s->n_active < s->slots && !status) {
        run *r = &s->runs[s->next];
        int32_t rows = own_rows(s, s->next), at = find_gap(s, rows);
        if (at < 0)
            break;
        r->first = at;
        r->rows = rows;
        int32_t i = (int32_t)s->next++;
        s->active[s->n_active++] = i;
        while (r->share_n + r->cached < s->requests[i].n_prompt && !status) {
            add_row(s, i);
            if (s->R == PREFILL)
                status = run_prefill(s);
        }
    }
    if (!status && s->R)
        status = run_prefill(s);
    return !status && s->n_last ? draw_tokens(s) : status;
}

static op_status step(sampler *s)
{
    for (int32_t k = 0; k < s->n_active; k++)
        add_row(s, s->active[k]);
    op_status status = run_rows(s, DECODE);
    for (int32_t i = 0; i < s->R && !status; i++)
        status = gather(s, i);
    s->R = 0;
    return !status && s->n_last ? draw_tokens(s) : status;
}

op_status op_generate(op_model *m, op_request *requests, size_t n, const op_generate_options *o, op_error *e)
{
    sampler s = {.m = m, .requests = requests, .n = n, .o = o};
    for (size_t i = 0; i < n; i++) {
        requests[i].tokens = NULL;
        requests[i].logprobs = NULL;
        requests[i].n = 0;
    }
    if (n > INT32_MAX / 2)
        return op_error_set(e, OP_ERR_ARG, "%zu requests are too many for one call", n);
    op_status status = n ? setup(&s, e) : OP_OK;
    bool ready = !status;
    while (!status && (s.next < n || s.n_active)) {
        if (o->interrupt && *o->interrupt)
            status = OP_ERR_INTERRUPTED;
        else if (s.next < n && s.n_active < s.slots)
            status = admit(&s);
        if (!status && s.n_active)
            status = step(&s);
        else if (!status && s.next < n && !s.n_active && find_gap(&s, own_rows(&s, s.next)) < 0)
            status = OP_ERR_NOMEM;
    }
    if (ready && status)
        op_error_set(e, status, "generation stopped: %s", op_status_string(status));
    release(&s);
    return status;
}
