/* Products of the reference backend: one loop over strided views serves them all. */
#include "base/mem.h"
#include "ops/ref/ref.h"

struct op_weight {
    int N, K;
    const float *w; /* the caller's */
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

static op_status weight_pack(op_weight *W, const float *w)
{
    W->w = w;
    return OP_OK;
}

static void weight_free(op_weight *W)
{
    op_free(W);
}

static op_status matmul(const op_weight *W, int M, const void *x, const float *bias, op_out out, void *y)
{
    size_t K = (size_t)W->K;
    product(M, W->N, W->K, 1, (view){x, K, 1}, (view){W->w, 1, K}, bias, out == OP_OUT_F32_ADD, y, (size_t)W->N);
    return OP_OK;
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
    t->weight_pack = weight_pack;
    t->weight_free = weight_free;
    t->keeps_f32 = true;
    t->matmul = matmul;
    t->decode = matmul;
    t->decodes = decodes;
    t->matmul_dx = matmul_dx;
    t->matmul_dw = matmul_dw;
    t->gemm = gemm;
    t->bias_backward = bias_backward;
}
