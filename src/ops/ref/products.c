/* Products of the reference backend: one loop over strided views serves them all. */
#include <math.h>

#include "base/mem.h"
#include "ops/quantise.h"
#include "ops/ref/ref.h"

struct op_weight {
    int N, K;
    const float *w;  /* the caller's, or `rounded` */
    bool quantised;
    float *rounded;  /* owned: what the quantised weights stand for */
};

typedef struct view {
    const float *p;
    size_t row, col; /* distance between rows and between columns */
} view;

/* C[M, N] = alpha A[M, K] B[K, N] + bias + beta C */
static void product(int M, int N, int K, double alpha, view A, view B, const float *bias, double beta, float *C,
                    size_t ldc)
{
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++)
        for (int m = 0; m < M; m++) {
            const float *a = A.p + m * A.row, *b = B.p + n * B.col;
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)a[k * A.col] * b[k * B.row];
            float *c = &C[m * ldc + n];
            *c = (float)(alpha * sum + (bias ? bias[n] : 0) + (beta != 0 ? beta * *c : 0));
        }
}

static op_weight *weight_new(int N, int K, bool backward)
{
    (void)backward;
    op_weight *W = op_alloc(sizeof *W);
    if (W)
        *W = (op_weight){.N = N, .K = K};
    return W;
}

static op_weight *weight_new_quantised(int N, int K)
{
    op_weight *W = weight_new(N, K, false);
    if (W)
        W->quantised = true;
    return W;
}

static op_status weight_pack(op_weight *W, const float *w)
{
    W->w = w;
    if (!W->quantised)
        return OP_OK;
    size_t n = (size_t)W->N, K = (size_t)W->K;
    float *rounded = W->rounded ? W->rounded : op_alloc_array(n * K, sizeof *rounded);
    if (!rounded)
        return OP_ERR_NOMEM;
    int bits = op_quantise_bits(W->N, W->K, w);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < K; k += OP_QBLOCK) {
            op_qblock b;
            int count = K - k < OP_QBLOCK ? (int)(K - k) : OP_QBLOCK;
            if (bits == 4)
                op_quantise_4(w + i * K + k, count, &b);
            else
                op_quantise_8(w + i * K + k, count, &b);
            for (int j = 0; j < count; j++)
                rounded[i * K + k + (size_t)j] = b.minimum + b.scale * (float)(b.q[j] - (bits == 4 ? 0 : 128));
        }
    W->w = W->rounded = rounded;
    return OP_OK;
}

static int pack_step(const op_weight *W)
{
    return W->N;
}

static op_status weight_pack_rows(op_weight *W, int first, int n, const float *w)
{
    (void)first, (void)n; /* all of them */
    return weight_pack(W, w);
}

static size_t weight_bytes(const op_weight *W)
{
    return W->rounded ? (size_t)W->N * (size_t)W->K * sizeof(float) : 0;
}

static void weight_free(op_weight *W)
{
    if (W)
        op_free(W->rounded);
    op_free(W);
}

/* x to 8 bits in each block of 32, and back. */
static void round_rows(size_t M, size_t K, const float *x, float *y)
{
    for (size_t m = 0; m < M; m++)
        for (size_t from = 0; from < K; from += OP_QBLOCK) {
            size_t to = from + OP_QBLOCK < K ? from + OP_QBLOCK : K;
            float most = 0;
            for (size_t k = m * K + from; k < m * K + to; k++)
                most = fmaxf(most, fabsf(x[k]));
            float inverse = most > 1e-30f ? 127 / most : 0;
            for (size_t k = m * K + from; k < m * K + to; k++)
                y[k] = rintf(x[k] * inverse) * (most / 127);
        }
}

static op_status matmul(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y)
{
    size_t K = (size_t)W->K;
    float *rounded = W->quantised ? op_alloc_array((size_t)M * K, sizeof *rounded) : NULL;
    if (W->quantised && !rounded)
        return OP_ERR_NOMEM;
    if (rounded)
        round_rows((size_t)M, K, x, rounded);
    product(M, W->N, W->K, 1, (view){rounded ? rounded : x, K, 1}, (view){W->w, 1, K}, bias, out == OP_OUT_F32_ADD, y, (size_t)W->N);
    op_free(rounded);
    return OP_OK;
}

static void embed_weight(const op_weight *W, int T, const int32_t *ids, float *out)
{
    for (int t = 0; t < T; t++)
        for (int k = 0; k < W->K; k++)
            out[(size_t)t * W->K + k] = W->w[(size_t)ids[t] * W->K + k];
}

static bool embeds(const op_weight *W)
{
    (void)W;
    return true;
}

static bool decodes(const op_weight *W, int rows)
{
    (void)W;
    (void)rows;
    return true;
}

static op_status matmul_dx(const op_weight *W, int M, const void *dy, op_out out, void *dx)
{
    size_t N = (size_t)W->N, K = (size_t)W->K;
    if (W->quantised)
        return OP_ERR_UNSUPPORTED;
    product(M, W->K, W->N, 1, (view){dy, N, 1}, (view){W->w, K, 1}, NULL, out == OP_OUT_F32_ADD, dx, K);
    return OP_OK;
}

static op_status matmul_dw(int M, int N, int K, const void *dy, const void *x, float *dw)
{
    size_t n = (size_t)N, k = (size_t)K;
    product(N, K, M, 1, (view){dy, 1, n}, (view){x, k, 1}, NULL, 1, dw, k);
    return OP_OK;
}

static op_status gemm(bool ta, bool tb, int M, int N, int K, float alpha, const void *A, int lda, const void *B,
                      int ldb, float beta, void *C, int ldc, bool c_f32)
{
    (void)c_f32;
    size_t la = (size_t)lda, lb = (size_t)ldb;
    product(M, N, K, alpha, ta ? (view){A, 1, la} : (view){A, la, 1}, tb ? (view){B, 1, lb} : (view){B, lb, 1}, NULL,
            beta, C, (size_t)ldc);
    return OP_OK;
}

static void bias_backward(int M, int N, const void *dy, int ld, float *db)
{
    const float *d = dy;
    for (int n = 0; n < N; n++) {
        double sum = 0;
        for (int m = 0; m < M; m++)
            sum += d[(size_t)m * ld + n];
        db[n] += (float)sum;
    }
}

void op_ref_products(op_ops *t)
{
    t->weight_new = weight_new;
    t->weight_new_quantised = weight_new_quantised;
    t->weight_bytes = weight_bytes;
    t->weight_pack = weight_pack;
    t->weight_pack_rows = weight_pack_rows;
    t->pack_step = pack_step;
    t->weight_free = weight_free;
    t->keeps_f32 = true;
    t->matmul = matmul;
    t->decode = matmul;
    t->decodes = decodes;
    t->embed_weight = embed_weight;
    t->embeds = embeds;
    t->matmul_dx = matmul_dx;
    t->matmul_dw = matmul_dw;
    t->gemm = gemm;
    t->bias_backward = bias_backward;
}
