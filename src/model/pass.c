/* One forward and backward over a packed ragged forest.
 *
 * The residual stream is float; everything between two residual sums is in the activation type. Kept for the backward of a layer:
 * the stream before its attention and before its MLP, q|k|v after the rotation, the attention's output and log-sum-exp, gate|up. What is cheap
 * is computed again: both norms, the SwiGLU, the adapters' hidden values. With `recompute` only the stream entering each layer is kept. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "model/parts.h"

/* Rows of logits that exist at a time. In training each chunk adds to the gradient of the output layer, which is passed over once more for it: fewer rows cost
 * more than their memory is worth, unless that gradient is half as large (bf16), or there is none (frozen). */
enum { HEAD_ROWS = 256, HEAD_ROWS_BF16 = 128, HEAD_ROWS_FROZEN = 64 };

/* What a layer leaves for its backward. */
typedef struct kept {
    float *resid_in, *resid_mid; /* [T, C] */
    float *mean1, *rstd1, *mean2, *rstd2; /* [T] */
    op_qkv q;
    void *att;                   /* [T, H D] */
    float *lse;                  /* [T, H] */
    void *gu;                    /* [T, 2F] (GPT-2: [T, F]) */
} kept;

struct op_pass {
    op_model *m;
    int32_t capacity;  /* rows that the buffers hold */
    bool has_kept;     /* the buffers hold a `kept` for every layer */
    int32_t rank;      /* adapters' rank that they hold */
    bool hooked;       /* they hold room for a logits hook's gradient */
    char *memory;      /* all of them, one after the other */
    size_t bytes;
    int32_t head_rows; /* rows of logits that the buffers hold */
    kept *layer;       /* [L] */
    float *resid_out;  /* [T, C] */
    float *final_mean, *final_rstd;
    void *hidden;      /* [T, C] after the final norm */
    float *d_hidden;   /* [T, C] gradient of hidden */
    float *d_resid;    /* [T, C] */
    void *x, *wide, *wide2, *d_qkv, *d_att, *d_x; /* act scratch: [T,C] [T,2F] [T,2F] [T,ld] [T,H D] [T,C] */
    op_lora_scratch lora;
    /* the output layer's chunk */
    void *rows_act, *d_logits;
    float *logits, *lse, *d_rows, *extra;
    int32_t *chunk_tokens;
    /* the batch */
    op_batch batch;
    op_seq *seqs;
    int32_t *ids, *position, *before, *targets; /* before[t]: row that predicts token t, -1: none */
    int32_t *seq_start, *seq_length, *first_seg, *tree_first;
    op_segment *seg;
    op_stretch *stretch;
    size_t seg_capacity;
    int32_t seq_capacity;
    op_attention attention;
    op_rows rows;
    bool ran;          /* a forward came to its end, and its last layer's q|k|v are still there */
    bool kept_valid, head_done;
};

op_status op_pass_new(op_pass **out, op_model *m, op_error *e)
{
    *out = NULL;
    op_pass *p = op_alloc_zero(1, sizeof *p);
    if (p)
        p->layer = op_alloc_zero((size_t)m->config.layers, sizeof *p->layer);
    if (!p || !p->layer) {
        op_free(p);
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a pass");
    }
    p->m = m;
    p->head_rows = 1;
    *out = p;
    return OP_OK;
}

void op_pass_free(op_pass *p)
{
    if (!p)
        return;
    op_free_aligned(p->memory);
    op_free(p->seqs);
    op_free(p->seq_start);
    op_free(p->seg);
    op_free(p->stretch);
    op_free(p->layer);
    op_free(p);
}

size_t op_pass_bytes(const op_pass *p)
{
    return p->bytes;
}

/* ---- buffers ---- */

/* The next n elements of the memory at `p->memory`, or, while that is NULL, only their place. */
static void *take(op_pass *p, size_t *at, size_t n, size_t size)
{
    void *q = p->memory ? p->memory + *at : NULL;
    *at += (n * size + 63) / 64 * 64;
    return q;
}

static void take_layer(op_pass *p, kept *k, size_t T, size_t *at)
{
    const op_model_config *c = &p->m->config;
    size_t act = p->m->ops->act_size;
    k->resid_mid = take(p, at, T * (size_t)c->width, sizeof(float));
    k->mean1 = take(p, at, T, sizeof(float));
    k->rstd1 = take(p, at, T, sizeof(float));
    k->mean2 = take(p, at, T, sizeof(float));
    k->rstd2 = take(p, at, T, sizeof(float));
    k->q.qkv = take(p, at, T * (size_t)op_joint_width(c), act);
    k->att = take(p, at, T * (size_t)(c->heads * c->head_dim), act);
    k->lse = take(p, at, T * (size_t)c->heads, sizeof(float));
    k->gu = take(p, at, T * (size_t)op_gu_width(c), act);
    if (c->qk_norm) {
        k->q.qk_raw = take(p, at, T * (size_t)((c->heads + c->kv_heads) * c->head_dim), act);
        k->q.q_rstd = take(p, at, T * (size_t)c->heads, sizeof(float));
        k->q.k_rstd = take(p, at, T * (size_t)c->kv_heads, sizeof(float));
    }
}

static void take_layers(op_pass *p, size_t n, bool keep, size_t *at)
{
    const op_model_config *c = &p->m->config;
    bool every = keep && !p->m->options.recompute;
    for (int32_t l = 0; l < c->layers; l++) {
        kept *k = &p->layer[l];
        if (l == 0 || every)
            take_layer(p, k, n, at);
        else
            *k = p->layer[0];
        if (l == 0 || keep)
            k->resid_in = take(p, at, n * (size_t)c->width, sizeof(float));
    }
}

/* What only a layer uses, and what only the output layer uses: never at the same time, so they share their place. */
static void take_scratch(op_pass *p, size_t n, bool keep, size_t rank, size_t *at)
{
    const op_model_config *c = &p->m->config;
    size_t act = p->m->ops->act_size, C = (size_t)c->width, V = (size_t)c->vocab, rows = (size_t)p->head_rows, begin = *at;
    size_t heads = (size_t)(c->heads * c->head_dim); /* Qwen3's raw queries pass through `wide` too */
    size_t widest = (size_t)op_gu_width(c) > heads ? (size_t)op_gu_width(c) : heads;
    p->wide = take(p, at, n * widest, act);
    if (keep) {
        p->wide2 = take(p, at, n * widest, act);
        p->d_qkv = take(p, at, n * (size_t)op_joint_width(c), act);
        p->d_att = take(p, at, n * heads, act);
    }
    if (rank) {
        p->lora.h = take(p, at, n * rank, act);
        p->lora.dh = take(p, at, n * rank, act);
        p->lora.wide = take(p, at, n * (widest > C ? widest : C), act);
    }
    size_t end = *at;
    *at = begin;
    p->extra = NULL;
    p->logits = take(p, at, rows * V, sizeof(float));
    if (keep) {
        p->d_logits = take(p, at, rows * V, act);
        p->d_rows = take(p, at, rows * C, sizeof(float));
        if (p->m->hook)
            p->extra = take(p, at, rows * V, sizeof(float));
    }
    *at = *at > end ? *at : end;
}

/* Lays out everything for n rows; returns the bytes. */
static size_t lay_out(op_pass *p, size_t n, bool keep, size_t rank)
{
    size_t act = p->m->ops->act_size, C = (size_t)p->m->config.width, rows = (size_t)p->head_rows, at = 0;
    take_layers(p, n, keep, &at);
    p->resid_out = take(p, &at, n * C, sizeof(float));
    p->final_mean = take(p, &at, n, sizeof(float));
    p->final_rstd = take(p, &at, n, sizeof(float));
    p->hidden = take(p, &at, n * C, act);
    p->x = take(p, &at, n * C, act);
    if (keep) {
        p->d_hidden = take(p, &at, n * C, sizeof(float));
        p->d_resid = take(p, &at, n * C, sizeof(float));
        p->d_x = take(p, &at, n * C, act);
    }
    p->rows_act = take(p, &at, rows * C, act);
    p->lse = take(p, &at, rows, sizeof(float));
    p->chunk_tokens = take(p, &at, rows, sizeof(int32_t));
    p->targets = take(p, &at, rows, sizeof(int32_t));
    p->ids = take(p, &at, n, sizeof(int32_t));
    p->position = take(p, &at, n, sizeof(int32_t));
    p->before = take(p, &at, n, sizeof(int32_t));
    take_scratch(p, n, keep, rank, &at);
    return at;
}

/* The buffers as they are, or larger ones: measured first, then one piece of memory. */
static op_status reserve(op_pass *p, int32_t T, bool keep, op_error *e)
{
    const op_model *m = p->m;
    int32_t most = op_lora_rank(m);
    if (T <= p->capacity && (!keep || p->has_kept) && most <= p->rank && (!m->hook || !keep || p->hooked))
        return OP_OK;
    keep = keep || p->has_kept;
    size_t n = (size_t)(T > p->capacity ? T : p->capacity);
    n = (n + 63) / 64 * 64;
    op_free_aligned(p->memory);
    p->memory = NULL;
    p->capacity = 0;
    p->kept_valid = false;
    const op_slot *head = &m->slots[m->head.first];
    size_t rows = !keep ? HEAD_ROWS : !head->grad ? HEAD_ROWS_FROZEN : head->grad_act ? HEAD_ROWS_BF16 : HEAD_ROWS;
    p->head_rows = (int32_t)(n < rows ? n : rows);
    p->bytes = lay_out(p, n, keep, (size_t)most);
    p->memory = op_alloc_aligned(p->bytes);
    if (!p->memory)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a pass over %zu tokens", n);
    lay_out(p, n, keep, (size_t)most);
    p->capacity = (int32_t)n;
    p->has_kept = keep;
    p->rank = most;
    p->hooked = m->hook && keep;
    return OP_OK;
}

static op_status reserve_seqs(op_pass *p, int32_t S, op_error *e)
{
    if (S <= p->seq_capacity)
        return OP_OK;
    size_t n = (size_t)S;
    op_seq *seqs = op_realloc(p->seqs, n * sizeof *seqs);
    p->seqs = seqs ? seqs : p->seqs;
    int32_t *ints = op_realloc(p->seq_start, (4 * n + 2) * sizeof *ints);
    p->seq_start = ints ? ints : p->seq_start;
    op_stretch *stretch = op_realloc(p->stretch, n * sizeof *stretch);
    p->stretch = stretch ? stretch : p->stretch;
    if (!seqs || !ints || !stretch) {
        p->seq_capacity = 0;
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %d sequences", S);
    }
    p->seq_length = ints + n;
    p->first_seg = ints + 2 * n;
    p->tree_first = ints + 3 * n + 1;
    p->seq_capacity = S;
    return OP_OK;
}

/* ---- the batch: checked, and turned into rows and segments ---- */

static op_status check_batch(const op_model *m, const op_batch *b, op_error *e)
{
    if (b->n_tokens < 1 || b->n_seqs < 1)
        return op_error_set(e, OP_ERR_ARG, "a batch of %d sequences and %d tokens is empty", b->n_seqs, b->n_tokens);
    int32_t at = 0;
    for (int32_t s = 0; s < b->n_seqs; s++) {
        const op_seq *q = &b->seqs[s];
        if (q->start != at || q->length < 1 || q->length > b->n_tokens - at)
            return op_error_set(e, OP_ERR_ARG, "sequence %d: %d tokens from %d on, expected to start at %d and to end by %d", s,
                                q->length, q->start, at, b->n_tokens);
        if (q->parent >= s || (q->parent < 0 && q->branch != 0) || (q->parent >= 0 && q->branch < 1))
            return op_error_set(e, OP_ERR_ARG, "sequence %d: parent %d at branch %d", s, q->parent, q->branch);
        if (q->adapter < -1 || q->adapter >= m->n_adapters)
            return op_error_set(e, OP_ERR_ARG, "sequence %d: adapter %d, expected -1..%d", s, q->adapter, m->n_adapters - 1);
        at += q->length;
    }
    if (at != b->n_tokens)
        return op_error_set(e, OP_ERR_ARG, "the sequences hold %d tokens, the batch %d", at, b->n_tokens);
    for (int32_t t = 0; t < b->n_tokens; t++)
        if (b->ids[t] < 0 || b->ids[t] >= m->config.vocab)
            return op_error_set(e, OP_ERR_ARG, "token %d is %d, expected 0..%d", t, b->ids[t], m->config.vocab - 1);
    return OP_OK;
}

static op_status add_segment(op_pass *p, int32_t *n, op_segment s, op_error *e)
{
    if ((size_t)*n == p->seg_capacity) {
        size_t cap = p->seg_capacity ? 2 * p->seg_capacity : 64;
        op_segment *seg = op_realloc(p->seg, cap * sizeof *seg);
        if (!seg)
            return op_error_set(e, OP_ERR_NOMEM, "out of memory for the branches of a batch");
        p->seg = seg;
        p->seg_capacity = cap;
    }
    p->seg[(*n)++] = s;
    return OP_OK;
}

/* The segments of sequence s: its parent's whole path, cut to `branch` tokens. */
static op_status add_path(op_pass *p, const op_seq *q, int32_t *n, op_error *e)
{
    int32_t left = q->branch, parent = q->parent;
    for (int32_t k = p->first_seg[parent]; k < p->first_seg[parent + 1] && left > 0; k++) {
        op_segment g = p->seg[k];
        g.length = g.length < left ? g.length : left;
        left -= g.length;
        op_status s = add_segment(p, n, g, e);
        if (s)
            return s;
    }
    if (left > p->seqs[parent].length)
        return op_error_set(e, OP_ERR_ARG, "branch %d lies past the end of sequence %d", q->branch, parent);
    return left > 0 ? add_segment(p, n, (op_segment){p->seqs[parent].start, left}, e) : OP_OK;
}

static op_status plan(op_pass *p, const op_batch *b, op_error *e)
{
    const op_model_config *c = &p->m->config;
    int32_t n_seg = 0, n_trees = 0, n_stretch = 0;
    memcpy(p->ids, b->ids, (size_t)b->n_tokens * sizeof *p->ids);
    memcpy(p->seqs, b->seqs, (size_t)b->n_seqs * sizeof *p->seqs);
    p->batch = (op_batch){b->n_tokens, b->n_seqs, p->ids, p->seqs};
    for (int32_t s = 0; s < b->n_seqs; s++) {
        const op_seq *q = &b->seqs[s];
        p->first_seg[s] = n_seg;
        if (q->parent < 0)
            p->tree_first[n_trees++] = s;
        else if (q->parent < p->tree_first[n_trees - 1])
            return op_error_set(e, OP_ERR_ARG, "sequence %d does not follow the tree of its parent %d", s, q->parent);
        op_status status = q->parent < 0 ? OP_OK : add_path(p, q, &n_seg, e);
        if (status)
            return status;
        int32_t last = n_seg > p->first_seg[s] ? p->seg[n_seg - 1].start + p->seg[n_seg - 1].length - 1 : -1;
        if (q->branch > c->max_positions - q->length)
            return op_error_set(e, OP_ERR_ARG, "sequence %d has %d tokens, the model takes %d", s, q->branch + q->length,
                                c->max_positions);
        for (int32_t i = 0; i < q->length; i++) {
            p->position[q->start + i] = q->branch + i;
            p->before[q->start + i] = i ? q->start + i - 1 : last;
        }
        p->seq_start[s] = q->start;
        p->seq_length[s] = q->length;
        if (n_stretch && p->stretch[n_stretch - 1].adapter == q->adapter)
            p->stretch[n_stretch - 1].n += q->length;
        else
            p->stretch[n_stretch++] = (op_stretch){q->start, q->length, q->adapter};
    }
    p->first_seg[b->n_seqs] = n_seg;
    p->tree_first[n_trees] = b->n_seqs;
    p->attention = (op_attention){.T = b->n_tokens, .H = c->heads, .G = c->kv_heads, .D = c->head_dim, .ld = op_joint_width(c),
                                  .window = c->window, .scale = 1 / sqrtf((float)c->head_dim), .n_seqs = b->n_seqs,
                                  .n_trees = n_trees, .start = p->seq_start, .length = p->seq_length,
                                  .first_seg = p->first_seg, .seg = p->seg, .tree_first = p->tree_first, .position = p->position};
    p->rows = (op_rows){.T = b->n_tokens, .M = b->n_tokens, .stretch = p->stretch, .n_stretch = n_stretch,
                        .position = p->position};
    return OP_OK;
}

/* ---- forward ---- */

static void norm_backward(op_model *m, int32_t layer, op_role role, int32_t T, const float *x, const float *mean,
                          const float *rstd, const void *dy, float *dx)
{
    const float *g = op_model_value(m, layer, role);
    float *dg = op_model_grad(m, layer, role);
    if (m->config.family == OP_GPT2)
        m->ops->layernorm_backward(T, m->config.width, x, g, mean, rstd, dy, dx, dg, op_model_grad(m, layer, role + 1));
    else
        m->ops->rmsnorm_backward(T, m->config.width, x, g, rstd, dy, dx, dg);
}

static op_status taps_backward(op_model *m, int32_t layer, const op_batch *b, float *d_resid)
{
    for (size_t i = m->n_taps; i-- > 0;)
        if (m->taps[i].layer == layer && m->taps[i].backward) {
            op_status s = m->taps[i].backward(m->taps[i].ctx, layer, b, d_resid);
            if (s)
                return s;
        }
    return OP_OK;
}

/* Layer l from k->resid_in; its output goes to `out` [T, C], which may be k->resid_in itself. */
static op_status layer_forward(op_pass *p, int32_t l, kept *k, float *out)
{
    op_model *m = p->m;
    const op_rows *r = &p->rows;
    size_t bytes = (size_t)r->T * m->config.width * sizeof(float);
    op_norm_forward(m, l, OP_ROLE_NORM1, r->T, k->resid_in, p->x, k->mean1, k->rstd1);
    op_status s = op_layer_qkv(m, r, l, p->x, &k->q, &p->lora);
    if (!s)
        s = m->ops->attention(&p->attention, k->q.qkv, k->att, k->lse);
    memcpy(k->resid_mid, k->resid_in, bytes);
    if (!s)
        s = op_layer_attention_out(m, r, l, k->att, k->resid_mid, &p->lora);
    op_norm_forward(m, l, OP_ROLE_NORM2, r->T, k->resid_mid, p->x, k->mean2, k->rstd2);
    if (!s)
        s = op_layer_mlp_in(m, r, l, p->x, k->gu, &p->lora);
    if (s)
        return s;
    op_layer_activation(m, r->T, k->gu, p->wide);
    if (out) { /* NULL: recomputed for the backward, which does not need the output */
        memcpy(out, k->resid_mid, bytes);
        s = op_layer_mlp_out(m, r, l, p->wide, out, &p->lora);
    }
    return s;
}

op_status op_model_forward(op_model *m, op_pass *p, const op_batch *b, const op_how *how, op_error *e)
{
    p->ran = p->kept_valid = p->head_done = false;
    op_status s = check_batch(m, b, e);
    if (s || (s = reserve(p, b->n_tokens, how->keep, e)) || (s = reserve_seqs(p, b->n_seqs, e)) || (s = plan(p, b, e)))
        return s;
    p->rows.dropout_on = how->train;
    p->rows.seed = how->seed;
    p->rows.step = how->step;
    int32_t L = m->config.layers;
    op_layer_embed(m, b->n_tokens, p->ids, p->position, p->layer[0].resid_in);
    for (int32_t l = 0; l < L && !s; l++) {
        kept *k = &p->layer[l];
        s = op_taps_forward(m, l, &p->batch, k->resid_in);
        if (!s)
            s = layer_forward(p, l, k, l + 1 < L ? p->layer[l + 1].resid_in : p->resid_out);
    }
    if (!s)
        s = op_taps_forward(m, L, &p->batch, p->resid_out);
    if (s)
        return op_error_set(e, s, "the forward pass failed: %s", op_status_string(s));
    op_norm_forward(m, -1, OP_ROLE_FINAL, b->n_tokens, p->resid_out, p->hidden, p->final_mean, p->final_rstd);
    p->kept_valid = how->keep;
    p->ran = true;
    return OP_OK;
}

/* Layers share their buffers or each have their own: those of the last hold its values either way. */
const void *op_pass_last_qkv(const op_pass *p, const op_attention **how)
{
    *how = &p->attention;
    return p->ran ? p->layer[p->m->config.layers - 1].q.qkv : NULL;
}

/* ---- the output layer ---- */

/* Gathers rows of `hidden` and multiplies: logits [n, V]. */
static op_status chunk_logits(op_pass *p, int32_t n, const int32_t *rows, float *logits)
{
    op_model *m = p->m;
    size_t bytes = (size_t)m->config.width * m->ops->act_size;
    for (int32_t i = 0; i < n; i++)
        memcpy((char *)p->rows_act + (size_t)i * bytes, (char *)p->hidden + (size_t)rows[i] * bytes, bytes);
    return m->ops->matmul(m->head.W, n, p->rows_act, NULL, OP_OUT_F32, logits);
}

op_status op_model_logits(op_model *m, op_pass *p, const int32_t *rows, int32_t n, float *logits, op_error *e)
{
    for (int32_t at = 0; at < n; at += p->head_rows) {
        int32_t k = n - at < p->head_rows ? n - at : p->head_rows;
        for (int32_t i = 0; i < k; i++)
            if (rows[at + i] < 0 || rows[at + i] >= p->batch.n_tokens)
                return op_error_set(e, OP_ERR_ARG, "row %d, expected 0..%d", rows[at + i], p->batch.n_tokens - 1);
        if (chunk_logits(p, k, rows + at, logits + (size_t)at * m->config.vocab))
            return op_error_set(e, OP_ERR_NOMEM, "the output layer failed");
    }
    return OP_OK;
}

/* The gradient of a weight, in float or in the activation type. */
static op_status weight_backward(op_model *m, const op_group *g, int32_t T, const void *dy, const void *x)
{
    const op_slot *w = &m->slots[g->first];
    if (w->grad && w->grad_act)
        return m->ops->gemm(true, false, g->N, g->K, T, 1, dy, g->N, x, g->K, 1, w->grad, g->K, false);
    return w->grad ? m->ops->matmul_dw(T, g->N, g->K, dy, x, w->grad) : OP_OK;
}

/* One chunk of n tokens (their batch indices in chunk_tokens): log p into logp if not NULL; with slopes also the backward. */
static op_status head_chunk(op_pass *p, int32_t n, const float *slope, float *logp)
{
    op_model *m = p->m;
    int32_t C = m->config.width, V = m->config.vocab;
    float picked[HEAD_ROWS], d[HEAD_ROWS];
    int32_t rows[HEAD_ROWS] = {0};
    for (int32_t i = 0; i < n; i++) {
        rows[i] = p->before[p->chunk_tokens[i]];
        p->targets[i] = p->ids[p->chunk_tokens[i]];
        d[i] = slope ? slope[p->chunk_tokens[i]] : 0;
    }
    op_status s = chunk_logits(p, n, rows, p->logits);
    if (s)
        return s;
    m->ops->logprob(n, V, p->logits, p->targets, p->lse, picked);
    for (int32_t i = 0; logp && i < n; i++)
        logp[p->chunk_tokens[i]] = picked[i];
    float *extra = NULL;
    if (m->hook) {
        extra = slope ? p->extra : NULL;
        if (extra)
            memset(extra, 0, (size_t)n * V * sizeof *extra);
        if ((s = m->hook(m->hook_ctx, n, p->chunk_tokens, p->logits, extra)))
            return s;
    }
    if (!slope)
        return OP_OK;
    m->ops->logprob_backward(n, V, p->logits, p->lse, p->targets, d, extra, p->d_logits);
    if ((s = weight_backward(m, &m->head, n, p->d_logits, p->rows_act)))
        return s;
    if ((s = m->ops->matmul_dx(m->head.W, n, p->d_logits, OP_OUT_F32, p->d_rows)))
        return s;
    for (int32_t i = 0; i < n; i++)
        m->ops->add_f32((size_t)C, p->d_rows + (size_t)i * C, p->d_hidden + (size_t)rows[i] * C);
    return OP_OK;
}

/* Runs the output layer over the tokens that are wanted or, with slopes, have one other than 0 (a logits hook sees every wanted one). */
static op_status head_pass(op_pass *p, const uint8_t *want, const float *slope, float *logp, op_error *e)
{
    if (slope && !p->kept_valid)
        return op_error_set(e, OP_ERR_ARG, "a backward pass needs a forward pass that kept its activations");
    if (slope && p->m->hook && !p->extra)
        return op_error_set(e, OP_ERR_ARG, "the logits hook must be set before the forward pass");
    op_status s = OP_OK;
    int32_t n = 0, T = p->batch.n_tokens;
    if (slope)
        memset(p->d_hidden, 0, (size_t)T * p->m->config.width * sizeof(float));
    if (logp)
        memset(logp, 0, (size_t)T * sizeof *logp);
    for (int32_t t = 0; t < T && !s; t++) {
        bool wanted = want ? want[t] : !slope;
        if (p->before[t] >= 0 && (wanted || (slope && slope[t] != 0)))
            p->chunk_tokens[n++] = t;
        if (n == p->head_rows || (t == T - 1 && n > 0)) {
            s = head_chunk(p, n, slope, logp);
            n = 0;
        }
    }
    return s ? op_error_set(e, s, "the output layer failed: %s", op_status_string(s)) : OP_OK;
}

op_status op_model_logprobs(op_model *m, op_pass *p, const uint8_t *want, const float *slope, float *logp, op_error *e)
{
    (void)m;
    op_status s = head_pass(p, want, slope, logp, e);
    p->head_done = !s && slope;
    return s;
}

/* ---- backward ---- */

static void bias_backward(op_model *m, int32_t l, op_role role, int32_t T, const void *dy, int32_t ld)
{
    const op_slot *b = op_model_slot(m, l, role);
    if (b && b->grad)
        m->ops->bias_backward(T, (int)b->rows, dy, ld, b->grad);
}

/* p->d_resid: gradient of the stream that leaves the MLP -> of the one that enters it. */
static op_status mlp_backward(op_pass *p, int32_t l, kept *k)
{
    op_model *m = p->m;
    const op_rows *r = &p->rows;
    int32_t T = r->T, C = m->config.width, F = m->config.ffn;
    bool gpt2 = m->config.family == OP_GPT2;
    const op_layer *y = &m->layers[l];
    op_layer_activation(m, T, k->gu, p->wide);
    m->ops->to_act((size_t)T * C, p->d_resid, p->d_x);
    op_status s = weight_backward(m, &y->down, T, p->d_x, p->wide);
    bias_backward(m, l, OP_ROLE_DOWN_B, T, p->d_x, C);
    void *d_h = p->wide2;
    if (!s)
        s = m->ops->matmul_dx(y->down.W, T, p->d_x, OP_OUT_ACT, d_h);
    if (!s)
        s = op_lora_backward(m, r, l, 6, p->wide, p->d_x, C, d_h, &p->lora);
    if (s)
        return s;
    void *d_gu = p->wide; /* the activation is not needed any more */
    if (gpt2)
        m->ops->gelu_backward((size_t)T * F, k->gu, d_h, d_gu);
    else
        m->ops->swiglu_backward(T, F, k->gu, d_h, d_gu);
    op_norm_forward(m, l, OP_ROLE_NORM2, T, k->resid_mid, p->x, k->mean2, k->rstd2);
    s = weight_backward(m, &y->gu, T, d_gu, p->x);
    bias_backward(m, l, OP_ROLE_UP_B, T, d_gu, F);
    if (!s)
        s = m->ops->matmul_dx(y->gu.W, T, d_gu, OP_OUT_ACT, p->d_x);
    if (!s && !gpt2)
        s = op_lora_backward(m, r, l, 4, p->x, d_gu, 2 * F, p->d_x, &p->lora);
    if (!s)
        s = op_lora_backward(m, r, l, 5, p->x, gpt2 ? d_gu : op_act_column(m, d_gu, F), gpt2 ? F : 2 * F, p->d_x, &p->lora);
    if (!s)
        norm_backward(m, l, OP_ROLE_NORM2, T, k->resid_mid, k->mean2, k->rstd2, p->d_x, p->d_resid);
    return s;
}

static op_status attention_backward(op_pass *p, int32_t l, kept *k)
{
    op_model *m = p->m;
    const op_rows *r = &p->rows;
    const op_model_config *c = &m->config;
    int32_t T = r->T, C = c->width, D = c->head_dim, q = c->heads * D, kv = c->kv_heads * D, ld = q + 2 * kv;
    const int32_t first[3] = {0, q, q + kv}, width[3] = {q, kv, kv};
    const op_role bias[3] = {OP_ROLE_Q_B, OP_ROLE_K_B, OP_ROLE_V_B};
    const op_layer *y = &m->layers[l];
    m->ops->to_act((size_t)T * C, p->d_resid, p->d_x);
    op_status s = weight_backward(m, &y->o, T, p->d_x, k->att);
    bias_backward(m, l, OP_ROLE_O_B, T, p->d_x, C);
    if (!s)
        s = m->ops->matmul_dx(y->o.W, T, p->d_x, OP_OUT_ACT, p->d_att);
    if (!s)
        s = op_lora_backward(m, r, l, 3, k->att, p->d_x, C, p->d_att, &p->lora);
    if (!s)
        s = m->ops->attention_backward(&p->attention, k->q.qkv, k->att, k->lse, p->d_att, p->d_qkv);
    if (s)
        return s;
    if (c->family != OP_GPT2)
        m->ops->rope(T, c->heads + c->kv_heads, D, ld, p->position, m->cos, m->sin, true, p->d_qkv);
    if (c->qk_norm) {
        int32_t raw = q + kv;
        /* the raw rows hold q and k side by side; the op wants each of them contiguous */
        for (int part = 0; part < 2; part++) {
            size_t bytes = (size_t)width[part] * m->ops->act_size;
            for (int32_t t = 0; t < T; t++)
                memcpy((char *)p->wide + (size_t)t * bytes, op_act_column(m, k->q.qk_raw, (int64_t)t * raw + first[part]), bytes);
            m->ops->headnorm_backward(T, width[part] / D, D, p->wide, op_model_value(m, l, part ? OP_ROLE_K_NORM : OP_ROLE_Q_NORM),
                                      part ? k->q.k_rstd : k->q.q_rstd, ld, op_act_column(m, p->d_qkv, first[part]),
                                      op_model_grad(m, l, part ? OP_ROLE_K_NORM : OP_ROLE_Q_NORM));
        }
    }
    op_norm_forward(m, l, OP_ROLE_NORM1, T, k->resid_in, p->x, k->mean1, k->rstd1);
    s = weight_backward(m, &y->qkv, T, p->d_qkv, p->x);
    for (int t = 0; t < 3; t++)
        bias_backward(m, l, bias[t], T, op_act_column(m, p->d_qkv, first[t]), ld);
    if (!s)
        s = m->ops->matmul_dx(y->qkv.W, T, p->d_qkv, OP_OUT_ACT, p->d_x);
    for (int t = 0; t < 3 && !s; t++)
        s = op_lora_backward(m, r, l, t, p->x, op_act_column(m, p->d_qkv, first[t]), ld, p->d_x, &p->lora);
    if (!s)
        norm_backward(m, l, OP_ROLE_NORM1, T, k->resid_in, k->mean1, k->rstd1, p->d_x, p->d_resid);
    return s;
}

static void embed_backward(op_model *m, const op_slot *table, int32_t T, const int32_t *ids, const float *d)
{
    if (table->grad && table->grad_act)
        m->ops->embed_backward_act(T, m->config.width, ids, d, table->grad);
    else if (table->grad)
        m->ops->embed_backward(T, m->config.width, ids, d, table->grad);
}

/* Parameters lie in the order of the layers. */
static void tell_gradients(const op_model *m, int32_t l)
{
    const op_params all = op_model_params((op_model *)m);
    if (!m->gradient_hook || !all.grads)
        return;
    const float *first = op_model_grad(m, l, OP_ROLE_NORM1);
    if (m->options.trainable == OP_TRAIN_ADAPTER) {
        const op_lora *lora = &m->adapters[0].lora[l * OP_TARGET_COUNT];
        int t = 0;
        while (t < OP_TARGET_COUNT && !lora[t].dA)
            t++;
        first = t < OP_TARGET_COUNT ? lora[t].dA : NULL;
    }
    if (first)
        m->gradient_hook(m->gradient_ctx, (size_t)(first - all.grads));
}

op_status op_model_backward(op_model *m, op_pass *p, const float *slope, op_error *e)
{
    if (!p->kept_valid || (!slope && !p->head_done))
        return op_error_set(e, OP_ERR_ARG, "a backward pass needs a forward pass that kept its activations, and slopes");
    op_status s = slope ? head_pass(p, NULL, slope, NULL, e) : OP_OK;
    if (s)
        return s;
    int32_t T = p->batch.n_tokens, C = m->config.width, L = m->config.layers;
    m->ops->to_act((size_t)T * C, p->d_hidden, p->d_x);
    memset(p->d_resid, 0, (size_t)T * C * sizeof *p->d_resid);
    norm_backward(m, -1, OP_ROLE_FINAL, T, p->resid_out, p->final_mean, p->final_rstd, p->d_x, p->d_resid);
    s = taps_backward(m, L, &p->batch, p->d_resid);
    for (int32_t l = L - 1; l >= 0 && !s; l--) {
        kept *k = &p->layer[l];
        if (m->options.recompute)
            s = layer_forward(p, l, k, NULL);
        if (!s && !(s = mlp_backward(p, l, k)) && !(s = attention_backward(p, l, k)))
            s = taps_backward(m, l, &p->batch, p->d_resid);
        if (!s)
            tell_gradients(m, l);
    }
    p->ran = p->kept_valid = p->head_done = false;
    if (s)
        return op_error_set(e, s, "the backward pass failed: %s", op_status_string(s));
    const op_slot *table = op_model_slot(m, -1, OP_ROLE_EMBED), *places = op_model_slot(m, -1, OP_ROLE_POSITION);
    embed_backward(m, table, T, p->ids, p->d_resid);
    if (places)
        embed_backward(m, places, T, p->position, p->d_resid);
    return OP_OK;
}
