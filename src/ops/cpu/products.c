/* Matrix products with oneDNN (C API of version 2).
 *
 * A primitive is made once for each shape and kept; the least recently used one makes room when the table is full.
 * Packed bf16 weights have the layout that oneDNN likes best for 512 rows; all row counts use it. Products of many rows
 * run in blocks of 512, so that x and y stay in the L2 cache (with AMX a block is several times faster than the whole).
 * Where oneDNN has no bf16 (below AVX-512), operands are widened to floats first; weights are then kept as floats that
 * were rounded to bf16, so that the results mean the same. */
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/num.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/decode.h"

/* PART: rows of a weight that are packed at a time, whole blocks of every layout that oneDNN likes (16 to 64 of N, 32 of K). */
enum { BLOCK = 512, DW_BLOCK = 1024, PART = 192, KERNELS = 512, BUCKETS = 2048 };

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static op_status status_of(dnnl_status_t s)
{
    return s == dnnl_success         ? OP_OK
           : s == dnnl_out_of_memory ? OP_ERR_NOMEM
           : s == dnnl_unimplemented ? OP_ERR_UNSUPPORTED
                                     : OP_ERR_ARG;
}

static op_status start(void)
{
    if (engine)
        return OP_OK;
    dnnl_status_t s = dnnl_engine_create(&engine, dnnl_cpu, 0);
    if (!s)
        s = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    return status_of(s);
}

static bool dnnl_has_bf16(void)
{
    return dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core;
}

/* ---- kernels ---- */

/* C[M, N] = alpha op(A) op(B) + bias + (add ? C : 0), as in op_ops.gemm. Compared as bytes: cleared before it is filled. */
typedef struct spec {
    int M, N, K, lda, ldb, ldc, threads;
    float alpha;
    bool ta, tb, packed, bf16, c_f32, add, bias; /* packed: B is in the layout of packed_layout */
} spec;

typedef struct kernel {
    spec spec;
    uint64_t used; /* time of the last use; 0: free */
    int next;      /* 1 + the index of the next in its chain; 0: none */
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, bias, c, scratch; /* views whose pointers are set at each call; b is NULL if packed */
    size_t scratch_bytes;
} kernel;

_Static_assert(sizeof(spec) % 8 == 0, "a spec is hashed in whole words");
static kernel kernels[KERNELS];
static int buckets[BUCKETS]; /* 1 + the index of the first kernel of each chain; 0: none */
static uint64_t clock_now;

static void kernel_release(kernel *k)
{
    dnnl_primitive_destroy(k->primitive);
    dnnl_memory_destroy(k->a);
    dnnl_memory_destroy(k->b);
    dnnl_memory_destroy(k->bias);
    dnnl_memory_destroy(k->c);
    dnnl_memory_destroy(k->scratch);
    *k = (kernel){0};
}

/* The [rows, columns] view of a matrix; transposed: it is stored [columns, rows]. */
static dnnl_memory_desc_t view(int rows, int columns, dnnl_data_type_t type, int ld, bool transposed)
{
    dnnl_memory_desc_t d;
    dnnl_memory_desc_init_by_strides(&d, 2, (dnnl_dims_t){rows, columns}, type,
                                     (dnnl_dims_t){transposed ? 1 : ld, transposed ? ld : 1});
    return d;
}

static dnnl_status_t describe(const spec *s, const dnnl_memory_desc_t *b, dnnl_primitive_desc_t *out)
{
    dnnl_data_type_t type = s->bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t a = view(s->M, s->K, type, s->lda, s->ta), bias = view(1, s->N, dnnl_f32, s->N, false);
    dnnl_memory_desc_t c = view(s->M, s->N, s->c_f32 ? dnnl_f32 : type, s->ldc, false);
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t after = NULL;
    dnnl_status_t e = dnnl_matmul_desc_init(&d, &a, b, s->bias ? &bias : NULL, &c);
    e = e ? e : dnnl_primitive_attr_create(&attr);
    e = e ? e : dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!e && s->alpha != 1)
        e = dnnl_primitive_attr_set_output_scales(attr, 1, 0, &s->alpha);
    if (!e && s->add) {
        e = dnnl_post_ops_create(&after);
        e = e ? e : dnnl_post_ops_append_sum(after, 1);
        e = e ? e : dnnl_primitive_attr_set_post_ops(attr, after);
    }
    e = e ? e : dnnl_primitive_desc_create(out, &d, attr, engine, NULL);
    dnnl_post_ops_destroy(after);
    dnnl_primitive_attr_destroy(attr);
    return e;
}

/* The layout of a packed [K, N] right-hand side. */
static dnnl_status_t packed_layout(int N, int K, dnnl_memory_desc_t *out)
{
    spec s = {.M = BLOCK, .N = N, .K = K, .lda = K, .ldc = N, .alpha = 1, .bf16 = true};
    dnnl_memory_desc_t any;
    dnnl_primitive_desc_t p;
    dnnl_memory_desc_init_by_tag(&any, 2, (dnnl_dims_t){K, N}, dnnl_bf16, dnnl_format_tag_any);
    dnnl_status_t e = describe(&s, &any, &p);
    if (e)
        return e;
    *out = *dnnl_primitive_desc_query_md(p, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_destroy(p);
    return dnnl_success;
}

static dnnl_status_t kernel_init(kernel *k, const spec *s)
{
    dnnl_data_type_t type = s->bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t b = view(s->K, s->N, type, s->ldb, s->tb);
    dnnl_primitive_desc_t d = NULL;
    dnnl_status_t e = s->packed ? packed_layout(s->N, s->K, &b) : dnnl_success;
    e = e ? e : describe(s, &b, &d);
    e = e ? e : dnnl_primitive_create(&k->primitive, d);
    const struct {
        dnnl_memory_t *memory;
        dnnl_query_t query;
        int index;
        bool wanted;
    } views[] = {
        {&k->a, dnnl_query_src_md, 0, true},
        {&k->b, dnnl_query_weights_md, 0, !s->packed},
        {&k->bias, dnnl_query_weights_md, 1, s->bias},
        {&k->c, dnnl_query_dst_md, 0, true},
        {&k->scratch, dnnl_query_scratchpad_md, 0, true},
    };
    for (size_t i = 0; i < sizeof views / sizeof *views && !e; i++)
        if (views[i].wanted)
            e = dnnl_memory_create(views[i].memory, dnnl_primitive_desc_query_md(d, views[i].query, views[i].index),
                                   engine, DNNL_MEMORY_NONE);
    if (!e)
        k->scratch_bytes = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(d, dnnl_query_scratchpad_md, 0));
    dnnl_primitive_desc_destroy(d);
    return e;
}

/* Where the chain of kernels begins that `s` belongs to. */
static int *bucket_of(const spec *s)
{
    uint64_t words[sizeof *s / 8], h = 0;
    memcpy(words, s, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        h = (h ^ words[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    return &buckets[h % BUCKETS];
}

static void unlink_kernel(kernel *k)
{
    int *at = bucket_of(&k->spec), self = (int)(k - kernels) + 1;
    while (*at != self)
        at = &kernels[*at - 1].next;
    *at = k->next;
}

static op_status kernel_get(const spec *s, kernel **out)
{
    int *bucket = bucket_of(s);
    for (int i = *bucket; i; i = kernels[i - 1].next)
        if (memcmp(&kernels[i - 1].spec, s, sizeof *s) == 0) {
            kernels[i - 1].used = ++clock_now;
            *out = &kernels[i - 1];
            return OP_OK;
        }
    op_status status = start();
    if (status)
        return status;
    kernel *oldest = kernels;
    for (int i = 1; i < KERNELS; i++)
        if (kernels[i].used < oldest->used)
            oldest = &kernels[i];
    if (oldest->used)
        unlink_kernel(oldest);
    kernel_release(oldest);
    status = status_of(kernel_init(oldest, s));
    if (status) {
        kernel_release(oldest);
        return status;
    }
    oldest->spec = *s;
    oldest->used = ++clock_now;
    oldest->next = *bucket;
    *bucket = (int)(oldest - kernels) + 1;
    *out = oldest;
    return OP_OK;
}

/* Runs the product; `packed` is B when s->packed, else NULL. */
static op_status run(const spec *s, const void *A, const void *B, dnnl_memory_t packed, const float *bias, void *C)
{
    kernel *k;
    op_status status = kernel_get(s, &k);
    if (status)
        return status;
    void *scratch = op_cpu_scratch(OP_SCRATCH_DNNL, k->scratch_bytes);
    if (!scratch)
        return OP_ERR_NOMEM;
    dnnl_memory_set_data_handle(k->a, (void *)A);
    if (!packed)
        dnnl_memory_set_data_handle(k->b, (void *)B);
    if (bias)
        dnnl_memory_set_data_handle(k->bias, (void *)bias);
    dnnl_memory_set_data_handle(k->c, C);
    dnnl_memory_set_data_handle(k->scratch, scratch);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, k->a},
                              {DNNL_ARG_WEIGHTS, packed ? packed : k->b},
                              {DNNL_ARG_DST, k->c},
                              {DNNL_ARG_SCRATCHPAD, k->scratch},
                              {DNNL_ARG_BIAS, k->bias}};
    return status_of(dnnl_primitive_execute(k->primitive, stream, bias ? 5 : 4, args));
}

/* ---- bf16 as floats ---- */

static void widen(size_t rows, size_t columns, const op_bf16 *x, size_t ld, float *y)
{
    for (size_t i = 0; i < rows; i++)
#pragma omp simd
        for (size_t j = 0; j < columns; j++)
            y[i * columns + j] = op_bf16_to_f32(x[i * ld + j]);
}

static void narrow(size_t rows, size_t columns, const float *x, op_bf16 *y, size_t ld)
{
    for (size_t i = 0; i < rows; i++)
#pragma omp simd
        for (size_t j = 0; j < columns; j++)
            y[i * ld + j] = op_f32_to_bf16(x[i * columns + j]);
}

/* run() for a processor without bf16: B is bf16, or floats when wide_b. */
static op_status run_wide(spec s, const void *A, const void *B, bool wide_b, const float *bias, void *C)
{
    size_t a_rows = (size_t)(s.ta ? s.K : s.M), a_columns = (size_t)(s.ta ? s.M : s.K);
    size_t b_rows = (size_t)(s.tb ? s.N : s.K), b_columns = (size_t)(s.tb ? s.K : s.N);
    size_t M = (size_t)s.M, N = (size_t)s.N;
    float *a = op_cpu_scratch(OP_SCRATCH_WIDE_A, a_rows * a_columns * sizeof *a);
    float *b = wide_b ? (float *)B : op_cpu_scratch(OP_SCRATCH_WIDE_B, b_rows * b_columns * sizeof *b);
    float *c = s.c_f32 ? C : op_cpu_scratch(OP_SCRATCH_WIDE_C, M * N * sizeof *c);
    if (!a || !b || !c)
        return OP_ERR_NOMEM;
    widen(a_rows, a_columns, A, (size_t)s.lda, a);
    s.lda = (int)a_columns;
    if (!wide_b) {
        widen(b_rows, b_columns, B, (size_t)s.ldb, b);
        s.ldb = (int)b_columns;
    }
    int ldc = s.ldc;
    if (!s.c_f32) {
        if (s.add)
            widen(M, N, C, (size_t)ldc, c);
        s.ldc = s.N;
    }
    bool back = !s.c_f32;
    s.bf16 = false;
    s.c_f32 = true;
    op_status status = run(&s, a, b, NULL, bias, c);
    if (!status && back)
        narrow(M, N, c, C, (size_t)ldc);
    return status;
}

/* ---- weights ---- */

/* One orientation of a packed weight: the right-hand side of matmul or of matmul_dx. */
typedef struct packed {
    dnnl_memory_t blocks;
    void *bytes;          /* owned, of `blocks`; NULL: this orientation is not used */
    size_t stride;        /* bytes from one part to the next */
    struct {
        dnnl_primitive_t reorder; /* from floats; NULL: there is no such part */
        dnnl_memory_desc_t rows, blocks;
    } part[2]; /* of PART rows, and of the rows that are left */
} packed;

struct op_weight {
    int N, K;
    bool bf16;
    const float *w;  /* f32: the caller's; bf16 widened: `floats` */
    float *floats;   /* owned; [N, K] */
    packed forward, backward;
    op_panels panels; /* `forward` for the products of generation */
    bool quantised;   /* `q` instead of all of these; bf16 is then the type of x alone */
    op_quantised q;
};

static void packed_release(packed *p)
{
    for (int i = 0; i < 2; i++)
        dnnl_primitive_destroy(p->part[i].reorder);
    dnnl_memory_destroy(p->blocks);
    op_free_aligned(p->bytes);
    *p = (packed){0};
}

/* What is packed of rows first..first+n-1 of W[N, K]; *at is its distance from the start of the whole in bytes. */
static dnnl_status_t part_layout(const dnnl_memory_desc_t *whole, int first, int n, int K, bool backward, dnnl_memory_desc_t *out, size_t *at)
{
    dnnl_dims_t size = {backward ? n : K, backward ? K : n}, from = {backward ? first : 0, backward ? 0 : first};
    dnnl_status_t e = dnnl_memory_desc_init_submemory(out, whole, size, from);
    *at = e ? 0 : (size_t)out->offset0 * sizeof(op_bf16);
    out->offset0 = 0;
    return e;
}

static dnnl_status_t packed_init(packed *p, int N, int K, bool backward)
{
    dnnl_memory_desc_t blocks, next;
    dnnl_status_t e = backward ? packed_layout(K, N, &blocks) : packed_layout(N, K, &blocks);
    if (e)
        return e;
    p->bytes = op_alloc_aligned(dnnl_memory_desc_get_size(&blocks));
    e = p->bytes ? dnnl_success : dnnl_out_of_memory;
    e = e ? e : dnnl_memory_create(&p->blocks, &blocks, engine, p->bytes);
    if (!e && N > PART)
        e = part_layout(&blocks, PART, N - PART < PART ? N - PART : PART, K, backward, &next, &p->stride);
    for (int i = 0; i < 2 && !e; i++) {
        int n = i ? N % PART : N < PART ? 0 : PART;
        if (!n)
            continue;
        dnnl_primitive_desc_t d = NULL;
        size_t at;
        p->part[i].rows = backward ? view(n, K, dnnl_f32, K, false) : view(K, n, dnnl_f32, K, true);
        e = part_layout(&blocks, i ? N - n : 0, n, K, backward, &p->part[i].blocks, &at);
        e = e ? e : dnnl_reorder_primitive_desc_create(&d, &p->part[i].rows, engine, &p->part[i].blocks, engine, NULL);
        e = e ? e : dnnl_primitive_create(&p->part[i].reorder, d);
        dnnl_primitive_desc_destroy(d);
    }
    return e;
}

/* Part number `index`, from its n rows w. */
static op_status packed_fill(const packed *p, int index, int n, const float *w)
{
    if (!p->bytes)
        return OP_OK;
    int i = n < PART;
    dnnl_memory_t rows = NULL, blocks = NULL;
    dnnl_status_t e = dnnl_memory_create(&rows, &p->part[i].rows, engine, (void *)w);
    e = e ? e : dnnl_memory_create(&blocks, &p->part[i].blocks, engine, (char *)p->bytes + (size_t)index * p->stride);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, rows}, {DNNL_ARG_TO, blocks}};
    e = e ? e : dnnl_primitive_execute(p->part[i].reorder, stream, 2, args);
    dnnl_memory_destroy(rows);
    dnnl_memory_destroy(blocks);
    return status_of(e);
}

static void weight_free(op_weight *W)
{
    if (!W)
        return;
    packed_release(&W->forward);
    packed_release(&W->backward);
    op_quantised_release(&W->q);
    op_free_aligned(W->floats);
    op_free(W);
}

static op_weight *weight_new_f32(int N, int K, bool backward)
{
    (void)backward;
    op_weight *W = op_alloc(sizeof *W);
    if (W)
        *W = (op_weight){.N = N, .K = K};
    return W;
}

/* The packed bytes as decode_bf16.c reads them, if that is how they lie and the processor can. */
static op_panels panels_of(const op_weight *W)
{
    op_panels none = {0};
    const dnnl_memory_desc_t *d;
    if (!__builtin_cpu_supports("avx512bf16") || dnnl_memory_get_memory_desc(W->forward.blocks, &d))
        return none;
    const dnnl_blocking_desc_t *b = &d->format_desc.blocking;
    bool pairs = d->format_kind == dnnl_blocked && b->inner_nblks == 3 && b->inner_blks[0] == 16 && b->inner_idxs[0] == 0 &&
                 b->inner_blks[1] == 64 && b->inner_idxs[1] == 1 && b->inner_blks[2] == 2 && b->inner_idxs[2] == 0;
    return pairs && b->strides[0] == 2048 ? (op_panels){W->N, W->K, (size_t)b->strides[1], W->forward.bytes} : none;
}

static op_weight *weight_new_bf16(int N, int K, bool backward)
{
    op_weight *W = start() ? NULL : op_alloc(sizeof *W);
    if (!W)
        return NULL;
    *W = (op_weight){.N = N, .K = K, .bf16 = true};
    dnnl_status_t e = dnnl_success;
    if (dnnl_has_bf16()) {
        e = packed_init(&W->forward, N, K, false);
        if (!e && backward)
            e = packed_init(&W->backward, N, K, true);
        if (!e)
            W->panels = panels_of(W);
    } else {
        W->w = W->floats = op_alloc_aligned((size_t)N * (size_t)K * sizeof(float));
        e = W->floats ? dnnl_success : dnnl_out_of_memory;
    }
    if (!e)
        return W;
    weight_free(W);
    return NULL;
}

static op_weight *weight_new_quantised(bool bf16, int N, int K)
{
    op_weight *W = op_alloc(sizeof *W);
    if (W)
        *W = (op_weight){.N = N, .K = K, .bf16 = bf16, .quantised = true, .q = {.N = N, .K = K}};
    return W;
}

static op_weight *weight_new_quantised_f32(int N, int K)
{
    return weight_new_quantised(false, N, K);
}

static op_weight *weight_new_quantised_bf16(int N, int K)
{
    return weight_new_quantised(true, N, K);
}

static size_t weight_bytes(const op_weight *W)
{
    size_t n = (size_t)W->N * (size_t)W->K * sizeof(float);
    return W->quantised ? op_quantised_bytes(&W->q) : W->floats ? n : (W->forward.bytes ? n / 2 : 0) + (W->backward.bytes ? n / 2 : 0);
}

static int pack_step(const op_weight *W)
{
    return W->quantised || !W->bf16 ? W->N : PART;
}

static op_status weight_pack_rows(op_weight *W, int first, int n, const float *w)
{
    if (W->quantised)
        return op_quantised_pack(&W->q, w);
    if (!W->bf16) {
        W->w = w;
        return OP_OK;
    }
    if (W->floats) {
        float *to = W->floats + (size_t)first * (size_t)W->K;
        for (size_t i = 0; i < (size_t)n * (size_t)W->K; i++)
            to[i] = op_bf16_to_f32(op_f32_to_bf16(w[i]));
        return OP_OK;
    }
    op_status status = packed_fill(&W->forward, first / PART, n, w);
    return status ? status : packed_fill(&W->backward, first / PART, n, w);
}

static op_status weight_pack(op_weight *W, const float *w)
{
    int step = pack_step(W), status = OP_OK;
    if (step == W->N)
        return weight_pack_rows(W, 0, step, w);
#pragma omp parallel for schedule(static) reduction(min : status)
    for (int first = 0; first < W->N; first += step) {
        int one = weight_pack_rows(W, first, W->N - first < step ? W->N - first : step, w + (size_t)first * (size_t)W->K);
        status = one < status ? one : status;
    }
    return (op_status)status;
}

/* ---- rows of a weight ---- */

/* The usual layout of packed bf16: blocks of 32 rows k by n columns, and in a block pairs of rows: element (k, c) lies at
 * k / 32 * below + c / n * beside + k % 32 / 2 * 2 n + c % n * 2 + k % 2. Column c is row c of W. */
typedef struct pairs {
    size_t n, below, beside; /* n is 0 for another layout */
} pairs;

static pairs pairs_of(const op_weight *W)
{
    const dnnl_memory_desc_t *d;
    if (dnnl_memory_get_memory_desc(W->forward.blocks, &d) || d->format_kind != dnnl_blocked || d->offset0)
        return (pairs){0};
    const dnnl_blocking_desc_t *b = &d->format_desc.blocking;
    bool usual = b->inner_nblks == 3 && b->inner_blks[0] == 16 && b->inner_idxs[0] == 0 && b->inner_idxs[1] == 1 && b->inner_blks[2] == 2 &&
                 b->inner_idxs[2] == 0;
    return usual ? (pairs){(size_t)b->inner_blks[1], (size_t)b->strides[0], (size_t)b->strides[1]} : (pairs){0};
}

static bool embeds(const op_weight *W)
{
    return W->quantised || !W->bf16 || W->floats || pairs_of(W).n;
}

static void embed_weight(const op_weight *W, int T, const int32_t *ids, float *out)
{
    for (int t = 0; t < T && W->quantised; t++)
        op_quantised_row(&W->q, ids[t], out + (size_t)t * (size_t)W->K);
    if (W->quantised)
        return;
    const float *rows = W->bf16 ? W->floats : W->w;
    pairs b = rows ? (pairs){0} : pairs_of(W);
    size_t K = (size_t)W->K;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < T; t++) {
        float *y = out + (size_t)t * K;
        size_t id = (size_t)ids[t];
        if (rows)
            memcpy(y, rows + id * K, K * sizeof *y);
        const op_bf16 *column = rows ? NULL : (const op_bf16 *)W->forward.bytes + id / b.n * b.beside + id % b.n * 2;
        for (size_t k = 0; !rows && k < K; k++)
            y[k] = op_bf16_to_f32(column[k / 32 * b.below + k % 32 / 2 * 2 * b.n + k % 2]);
    }
}

/* ---- the ops ---- */

static op_kernels level_kernels;

void op_cpu_products_use(op_kernels k)
{
    level_kernels = k;
}

/* y[M, N] = x[M, K] B, B being W^T or W by the orientation, in blocks of rows */
static op_status weight_product(const op_weight *W, bool backward, int M, const void *x, const float *bias, op_out out,
                                void *y)
{
    int N = backward ? W->K : W->N, K = backward ? W->N : W->K;
    const packed *p = backward ? &W->backward : &W->forward;
    bool wide = W->bf16 && W->floats;
    spec s;
    memset(&s, 0, sizeof s);
    s.N = N;
    s.K = K;
    s.lda = K;
    s.ldb = p->blocks ? 0 : W->K;
    s.ldc = N;
    s.threads = omp_get_max_threads();
    s.alpha = 1;
    s.tb = !backward && !p->blocks;
    s.packed = p->blocks != NULL;
    s.bf16 = W->bf16;
    s.c_f32 = out != OP_OUT_ACT || !W->bf16;
    s.add = out == OP_OUT_F32_ADD;
    s.bias = bias != NULL;
    if (W->bf16 && !wide && !p->blocks)
        return OP_ERR_ARG; /* made without `backward` */
    size_t x_row = (size_t)K * (W->bf16 ? 2 : 4), y_row = (size_t)N * (s.c_f32 ? 4 : 2);
    op_status status = OP_OK;
    for (int m = 0; m < M && !status; m += BLOCK) {
        const void *a = (const char *)x + (size_t)m * x_row;
        void *c = (char *)y + (size_t)m * y_row;
        s.M = M - m < BLOCK ? M - m : BLOCK;
        status = wide ? run_wide(s, a, W->w, true, bias, c) : run(&s, a, W->w, p->blocks, bias, c);
    }
    return status;
}

static op_status matmul(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y)
{
    if (W->quantised)
        return level_kernels.quantised[W->bf16](&W->q, M, x, bias, out, y);
    return weight_product(W, false, M, x, bias, out, y);
}

static op_status matmul_dx(const op_weight *W, int M, const void *dy, op_out out, void *dx)
{
    if (W->quantised)
        return OP_ERR_UNSUPPORTED;
    return weight_product(W, true, M, dy, NULL, out, dx);
}

/* decode_bf16.c is as fast as oneDNN on many rows and has none to pad; but AMX makes good for 31 padded rows. decode_floats.c reaches 0.7 of oneDNN's speed
 * on 32 rows (AVX-512), all of which a step seldom has; for prompts it is worth it where oneDNN's rows depend on their place. What is chosen may depend on
 * `rows` only so coarsely, or a text sampled alone would differ from the same text beside others. */
static bool decodes(const op_weight *W, int rows)
{
    enum { FEW = 32 };
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    if (W->quantised)
        return true;
    return W->w ? rows <= FEW || isa == dnnl_cpu_isa_avx2 || isa == dnnl_cpu_isa_avx2_vnni : W->panels.data && isa != dnnl_cpu_isa_avx512_core_amx;
}

static op_status decode(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y)
{
    if (W->quantised)
        return matmul(W, M, x, bias, out, y);
    if (W->w)
        return level_kernels.floats[W->bf16](W->N, W->K, W->w, M, x, bias, out, y);
    if (!W->panels.data)
        return OP_ERR_UNSUPPORTED;
    op_cpu_decode_bf16(&W->panels, M, x, bias, out, y);
    return OP_OK;
}

static op_status general(bool bf16, bool ta, bool tb, int M, int N, int K, float alpha, const void *A, int lda,
                         const void *B, int ldb, float beta, void *C, int ldc, bool c_f32)
{
    if (M == 0 || N == 0)
        return OP_OK;
    spec s;
    memset(&s, 0, sizeof s);
    s.M = M;
    s.N = N;
    s.K = K;
    s.lda = lda;
    s.ldb = ldb;
    s.ldc = ldc;
    s.threads = omp_get_max_threads();
    s.alpha = alpha;
    s.ta = ta;
    s.tb = tb;
    s.bf16 = bf16;
    s.c_f32 = c_f32 || !bf16;
    s.add = beta != 0;
    return bf16 && !dnnl_has_bf16() ? run_wide(s, A, B, false, NULL, C) : run(&s, A, B, NULL, NULL, C);
}

static op_status weight_gradient(bool bf16, int M, int N, int K, const void *dy, const void *x, float *dw)
{
    size_t size = bf16 ? 2 : 4;
    op_status status = OP_OK;
    for (int m = 0; m < M && !status; m += DW_BLOCK)
        status = general(bf16, true, false, N, K, M - m < DW_BLOCK ? M - m : DW_BLOCK, 1,
                         (const char *)dy + (size_t)m * (size_t)N * size, N,
                         (const char *)x + (size_t)m * (size_t)K * size, K, 1, dw, K, true);
    return status;
}

static op_status matmul_dw_f32(int M, int N, int K, const void *dy, const void *x, float *dw)
{
    return weight_gradient(false, M, N, K, dy, x, dw);
}

static op_status matmul_dw_bf16(int M, int N, int K, const void *dy, const void *x, float *dw)
{
    return weight_gradient(true, M, N, K, dy, x, dw);
}

static op_status gemm_f32(bool ta, bool tb, int M, int N, int K, float alpha, const void *A, int lda, const void *B,
                          int ldb, float beta, void *C, int ldc, bool c_f32)
{
    return general(false, ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc, c_f32);
}

static op_status gemm_bf16(bool ta, bool tb, int M, int N, int K, float alpha, const void *A, int lda, const void *B,
                           int ldb, float beta, void *C, int ldc, bool c_f32)
{
    return general(true, ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc, c_f32);
}

void op_cpu_products(op_ops *t)
{
    bool bf16 = t->act == OP_BF16;
    t->weight_new = bf16 ? weight_new_bf16 : weight_new_f32;
    t->weight_new_quantised = bf16 ? weight_new_quantised_bf16 : weight_new_quantised_f32;
    t->weight_bytes = weight_bytes;
    t->weight_pack = weight_pack;
    t->weight_pack_rows = weight_pack_rows;
    t->pack_step = pack_step;
    t->weight_free = weight_free;
    t->keeps_f32 = !bf16;
    t->matmul = matmul;
    t->decode = decode;
    t->decodes = decodes;
    t->embed_weight = embed_weight;
    t->embeds = embeds;
    t->matmul_dx = matmul_dx;
    t->matmul_dw = bf16 ? matmul_dw_bf16 : matmul_dw_f32;
    t->gemm = bf16 ? gemm_bf16 : gemm_f32;
}

void op_cpu_products_release(void)
{
    for (int i = 0; i < KERNELS; i++)
        kernel_release(&kernels[i]);
    memset(buckets, 0, sizeof buckets);
    if (stream)
        dnnl_stream_destroy(stream);
    if (engine)
        dnnl_engine_destroy(engine);
    stream = NULL;
    engine = NULL;
}

const char *op_cpu_onednn_version(void)
{
    static char text[32];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof text, "%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

const char *op_ops_product_isa(void)
{
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_avx512_core_amx: return "avx512_core_amx";
    case dnnl_cpu_isa_avx512_core_bf16: return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_vnni: return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core: return "avx512_core";
    case dnnl_cpu_isa_avx512_mic_4ops: return "avx512_mic_4ops";
    case dnnl_cpu_isa_avx512_mic: return "avx512_mic";
    case dnnl_cpu_isa_avx2_vnni: return "avx2_vnni";
    case dnnl_cpu_isa_avx2: return "avx2";
    case dnnl_cpu_isa_avx: return "avx";
    case dnnl_cpu_isa_sse41: return "sse41";
    default: return "generic";
    }
}
