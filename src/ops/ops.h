/* ops/ops.h: the arithmetic of operant, as one table of functions per backend.
 *
 * An op_ops table is a backend for one activation type: ref/f32 (plain C, accumulates in double: the truth), cpu/f32 and
 * cpu/bf16 (oneDNN products, SIMD loops chosen at run time). Every op of every backend is tested against ref, and ref against finite
 * differences. Functions do not allocate per call after the first use of a shape, do not fail on valid shapes, and give the
 * same bits for the same shape, instruction set and thread count.
 *
 * Legend: T rows (tokens of a packed batch), C model width, H query heads, G key-value heads, D head width, F feed-forward width,
 * V vocabulary, N x K a weight matrix (out x in). `act` is the activation type: float or op_bf16, as the table's `act` says;
 * an act pointer is `void *`. All matrices are row-major; ld is the distance between rows in elements.
 * The residual stream, norm weights, gradients of weights and all reductions are float, whatever `act` is.
 * Buffers are 64-byte aligned where a row starts at the buffer's start. Rows past T are never read or written. */
#ifndef OP_OPS_OPS_H
#define OP_OPS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/dtype.h>
#include <operant/status.h>

/* A weight matrix [N, K] prepared for products with activations. Owned by the caller, freed with weight_free. */
typedef struct op_weight op_weight;

/* Where a product goes. */
typedef enum op_out {
    OP_OUT_ACT,     /* act, overwritten */
    OP_OUT_F32,     /* float, overwritten */
    OP_OUT_F32_ADD, /* added to float: a residual sum or an accumulated gradient */
} op_out;

/* Attention over a packed ragged forest. Sequence s owns rows start[s] .. start[s]+length[s]-1 of the batch. Its row i (from
 * its own start) sees its own rows 0..i, and the rows of the segments seg[first_seg[s] .. first_seg[s+1]-1], which are the shared beginnings of its
 * ancestors, complete and in order. Positions: position[t] is the row's place in its whole sequence. With window > 0 a row sees only keys
 * with position > its own - window. Sequences of one tree are adjacent; tree_first[k] is the first sequence of tree k. */
typedef struct op_segment {
    int32_t start, length; /* rows of the batch (or of the cache) */
} op_segment;

typedef struct op_attention {
    int32_t T, H, G, D;
    int32_t ld;         /* of the joint q|k|v rows: H*D query, G*D key, G*D value columns */
    int32_t window;     /* 0: none */
    float scale;        /* usually 1/sqrt(D) */
    int32_t n_seqs, n_trees;
    const int32_t *start, *length; /* [n_seqs] */
    const int32_t *first_seg;      /* [n_seqs + 1] */
    const op_segment *seg;
    const int32_t *tree_first; /* [n_trees + 1] */
    const int32_t *position;   /* [T] */
} op_attention;

/* Attention of new rows against a cache of keys and values (generation). Row r sees the cache rows of the segments
 * seg[first_seg[r] .. first_seg[r+1]-1]; key_position[] gives each cache row's place in its sequence (for the window; may be NULL if window is 0).
 * A row's result depends neither on other rows nor on how its keys are cut into segments. With `prompts` neighbours that continue one another (the same
 * segments, the last of them one row longer) are done together, which differs from doing them alone in the last place: so it is the caller's to say. */
typedef struct op_cached_attention {
    int32_t R, H, G, D;
    int32_t ldq;    /* of the query rows */
    int32_t ldkv;   /* of the cache's rows of K and of V (G*D or more) */
    int32_t window;
    float scale;
    const int32_t *first_seg; /* [R + 1] */
    const op_segment *seg;
    const int32_t *position;     /* [R] */
    const int32_t *key_position; /* [cache rows] */
    bool prompts;
} op_cached_attention;

typedef struct op_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* gradients are multiplied by it first (clipping, normaliser) */
    int64_t step;     /* from 1, for the bias correction */
    uint32_t noise;   /* adamw8: of its rounding; to differ from step to step and from parameter to parameter */
} op_adamw;

/* AdamW's moments of one parameter in 8 bits (ops/dynamic8.h): codes, and the largest magnitude of every 256 elements. */
typedef struct op_moments8 {
    uint8_t *m, *v;       /* [n] */
    float *m_top, *v_top; /* [(n + 255) / 256] */
} op_moments8;

enum { OP_DRAW_BLOCK = 256 };

typedef struct op_ops {
    const char *name; /* "ref", "cpu" */
    op_dtype act;     /* OP_F32 or OP_BF16 */
    size_t act_size;  /* bytes: 4 or 2 */

    /* ---- products ---- */
    /* A handle for an [N, K] matrix; `backward`: matmul_dx will be used too. NULL when memory is out. */
    op_weight *(*weight_new)(int N, int K, bool backward);
    /* Takes the float values w[N, K]. keeps_f32 below says whether the handle goes on reading `w` afterwards.
     * Called again after every update of w. */
    op_status (*weight_pack)(op_weight *W, const float *w);
    /* The same for rows first..first+n-1 alone, w[n, K]: first is a multiple of pack_step(W), and n is that or what is left of N. Several threads may pack
     * different rows at once. */
    op_status (*weight_pack_rows)(op_weight *W, int first, int n, const float *w);
    int (*pack_step)(const op_weight *W);
    void (*weight_free)(op_weight *W);
    bool keeps_f32; /* true: f32 backends multiply with the caller's w itself, which must outlive the handle */

    /* y[M, N] = x[M, K] W^T + bias[N]; bias may be NULL; y's type by `out`. x, y contiguous. For one M <= 512 a row of y has the
     * same bits wherever it stands and whatever the other rows hold, unless op_ops_product_isa() is avx2 or avx2_vnni (whose
     * kernels of 6 rows and of 2 differ in the last place). cpu runs blocks of 512 rows and the rest, each with the kernel of its row count. */
    op_status (*matmul)(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y);
    /* The same for generation: a row of y has the same bits for every M, whatever the other rows hold, on any number of threads.
     * OP_ERR_UNSUPPORTED unless decodes(W, rows). */
    op_status (*decode)(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y);
    /* Can decode multiply by W, and is it the better way where there are at most `rows` rows? */
    bool (*decodes)(const op_weight *W, int rows);
    /* A handle whose weights are kept in 4 bits or 8 (ops/quantise.h) for matmul and decode, which round x to 8 bits in each block of 32, and are the same
     * then. weight_pack does not go on reading w, whatever keeps_f32 says. There is no matmul_dx. */
    op_weight *(*weight_new_quantised)(int N, int K);
    /* Bytes that the handle holds besides what the caller owns. */
    size_t (*weight_bytes)(const op_weight *W);
    /* out[T, K] (float) = rows ids[t] of W, as it multiplies with them (rounded to act); only where embeds(W). */
    void (*embed_weight)(const op_weight *W, int T, const int32_t *ids, float *out);
    bool (*embeds)(const op_weight *W);
    /* dx[M, K] = dy[M, N] W */
    op_status (*matmul_dx)(const op_weight *W, int M, const void *dy, op_out out, void *dx);
    /* dw[N, K] += dy[M, N]^T x[M, K] */
    op_status (*matmul_dw)(int M, int N, int K, const void *dy, const void *x, float *dw);
    /* General small product: C[M, N] = alpha op(A) op(B) + beta C. A and B are act, C is act or float (c_f32). ta: A is stored [K, M];
     * tb: B is stored [N, K]. beta is 0 or 1. Rows are as independent as matmul's. For LoRA (rank as M, N or K) and attention-like uses. */
    op_status (*gemm)(bool ta, bool tb, int M, int N, int K, float alpha, const void *A, int lda, const void *B, int ldb,
                      float beta, void *C, int ldc, bool c_f32);
    /* db[N] += column sums of dy[M, N] (ld between rows) */
    void (*bias_backward)(int M, int N, const void *dy, int ld, float *db);

    /* ---- rows ---- */
    void (*to_act)(size_t n, const float *x, void *y);
    void (*from_act)(size_t n, const void *x, float *y);
    void (*add)(size_t n, const void *x, void *y);         /* y += x, act */
    void (*add_f32)(size_t n, const float *x, float *y);   /* y += x */
    /* out[T, C] (float) = table[ids[t]] ; table is float, or act when table_act */
    void (*embed)(int T, int C, const int32_t *ids, const void *table, bool table_act, float *out);
    /* dtable[ids[t]] += dout[t]; rows of equal id are added in order of t */
    void (*embed_backward)(int T, int C, const int32_t *ids, const float *dout, float *dtable);

    /* The same for a gradient in act, to which the rows of one id are added as one float sum. */
    void (*embed_backward_act)(int T, int C, const int32_t *ids, const float *dout, void *dtable);

    /* y = x rstd g, rstd = 1/sqrt(mean(x^2) + eps)   (Zhang, Sennrich: 1910.07467) */
    void (*rmsnorm)(int T, int C, const float *x, const float *g, float eps, void *y, float *rstd);
    /* dx += ..., dg += ... (dg NULL: not wanted). dy is act. */
    void (*rmsnorm_backward)(int T, int C, const float *x, const float *g, const float *rstd, const void *dy, float *dx,
                             float *dg);
    /* y = (x - mean) rstd g + b   (Ba, Kiros, Hinton: 1607.06450) */
    void (*layernorm)(int T, int C, const float *x, const float *g, const float *b, float eps, void *y, float *mean,
                      float *rstd);
    void (*layernorm_backward)(int T, int C, const float *x, const float *g, const float *mean, const float *rstd,
                               const void *dy, float *dx, float *dg, float *db);
    /* RMS norm of each head of act rows in place (Qwen3): x[t, h*D .. h*D+D-1] for H heads, ld between rows; rstd[T, H].
     * Backward: x is the value before the norm [T, H*D] contiguous; d is changed in place from dy to dx. */
    void (*headnorm)(int T, int H, int D, int ld, void *x, const float *g, float eps, float *rstd);
    void (*headnorm_backward)(int T, int H, int D, const void *x, const float *g, const float *rstd, int ld, void *d,
                              float *dg);
    /* Rotary embedding in place over H heads of act rows, halves rotated as in Hugging Face's models: (x1, x2) -> (x1 c - x2 s, x2 c + x1 s)
     * with x1 = the first D/2 of the head (Su et al.: 2104.09864). cos/sin [P, D/2] are indexed by position[t]. inverse: the backward. */
    void (*rope)(int T, int H, int D, int ld, const int32_t *position, const float *cos, const float *sin, bool inverse,
                 void *x);
    /* y[T, F] = silu(gu[:, :F]) * gu[:, F:]   (Shazeer: 2002.05202) ; backward gives dgu[T, 2F] */
    void (*swiglu)(int T, int F, const void *gu, void *y);
    void (*swiglu_backward)(int T, int F, const void *gu, const void *dy, void *dgu);
    /* gelu_new, the tanh form (Hendrycks, Gimpel: 1606.08415) */
    void (*gelu)(size_t n, const void *x, void *y);
    void (*gelu_backward)(size_t n, const void *x, const void *dy, void *dx);
    /* y[i] = x[i] * keep_i / (1 - p), keep_i from the counter-based generator at (seed, stream, first + i); the same call on dy
     * is the backward. 0 <= p < 1. With e = first + i: word e/16 % 4 of counter e/64*16 + e%16, kept if >= p 2^32. */
    void (*dropout)(size_t n, float p, uint64_t seed, uint64_t stream, uint64_t first, const void *x, void *y);

    /* ---- attention (softmax(scale q k^T) v with a running softmax in tiles: Dao: 2307.08691) ---- */
    /* out[T, H*D] act; lse[T, H] = log sum exp of the scaled scores (may be NULL). Rows of no sequence get zeros in out and dqkv. */
    op_status (*attention)(const op_attention *a, const void *qkv, void *out, float *lse);
    /* dqkv[T, ld] is overwritten. Ancestors' keys and values collect from all descendants. */
    op_status (*attention_backward)(const op_attention *a, const void *qkv, const void *out, const float *lse,
                                    const void *dout, void *dqkv);
    op_status (*attention_cached)(const op_cached_attention *a, const void *q, const void *k, const void *v, void *out);

    /* ---- vocabulary ---- */
    /* lse[n] of logits[n, V] and logp[i] = logits[i, target[i]] - lse[i] */
    void (*logprob)(int n, int V, const float *logits, const int32_t *target, float *lse, float *logp);
    /* dlogits[n, V] (act) = dlogp[i] * (onehot(target[i]) - softmax(logits[i])) (+ extra[n, V] if not NULL) */
    void (*logprob_backward)(int n, int V, const float *logits, const float *lse, const int32_t *target,
                             const float *dlogp, const float *extra, void *dlogits);

    /* For a draw from one row: p[v] = exp((x[v] - most) inverse), most being the largest of x[V], which is returned; for every OP_DRAW_BLOCK values from the
     * first on top[] gets the largest p and sum[] their sum. p may be x. Nothing is written if all x are -infinity. Not threaded. */
    float (*draw_weights)(int V, const float *x, float inverse, float *p, float *top, float *sum);

    /* ---- parameters ---- */
    /* AdamW with decoupled decay (Loshchilov, Hutter: 1711.05101) */
    void (*adamw)(size_t n, float *p, const float *g, float *m, float *v, const op_adamw *o);
    double (*sum_squares)(size_t n, const float *x); /* deterministic for a thread count */
    /* The same for gradients in act. */
    void (*adamw_act)(size_t n, float *p, const void *g, float *m, float *v, const op_adamw *o);
    double (*sum_squares_act)(size_t n, const void *x);
    /* The same with 8-bit moments; g is float, or act when g_act. The step itself uses the new moments before they are rounded. */
    void (*adamw8)(size_t n, float *p, const void *g, bool g_act, const op_moments8 *x, const op_adamw *o);
} op_ops;

/* The table for a backend name ("ref", "cpu") and activation type, or NULL if there is none (ref has f32 only).
 * cpu/bf16 works on every x86-64 (oneDNN emulates where the processor lacks bf16). */
const op_ops *op_ops_get(const char *name, op_dtype act);

/* True if the processor multiplies bf16 natively (AVX512-BF16 or AMX): the default of dtype=auto. */
bool op_ops_native_bf16(void);
/* The instruction set of the SIMD loops ("x86-64-v4", "x86-64-v4 bf16" with AVX512-BF16) and oneDNN's ("avx512_core_bf16", "avx512_core_amx", ...). */
const char *op_ops_simd(void);
const char *op_ops_product_isa(void);

/* Threads used by every op (OpenMP); 0: all cores. Returns the number set. */
int op_threads_set(int n);
int op_threads(void);
int op_thread(void); /* which of them calls, from 0 on */

/* GFLOP/s of a product M x N x K on packed weights, measured now (bench). */
double op_ops_peak(const op_ops *ops, int M, int N, int K, double seconds);
/* GB/s between memory and processor, all threads together, measured now: the better of a pass that reads 256 MiB and of STREAM's
 * triad a = b + s c over three times 128 MiB (McCalpin). 0 when memory is out. */
double op_ops_bandwidth(double seconds);

/* What op_ops_get hands out for the table t: t itself, or its copy that counts while a profile is on (operant/profile.h). */
const op_ops *op_profile_table(const op_ops *t);

/* Frees the kept kernels and the working memory of the cpu backend; weights must be freed before. Ops may be used again. */
void op_ops_release(void);

/* Test hook: the SIMD loops of another level ("x86-64-v2", "-v3", "-v4", "-v4 bf16") in the tables that op_ops_get has handed out.
 * False, and nothing changes, if the processor lacks the level. */
bool op_ops_simd_force(const char *level);

#endif
