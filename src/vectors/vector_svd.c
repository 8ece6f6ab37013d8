/* What can be said of a matrix's singular values without finding all of them. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "ops/ops.h"
#include "vectors/vector.h"

enum { SPARE = 8, ROUNDS = 2, BLOCK = 512, STREAM_SKETCH = 0x7376, SINGULAR_MAX = 256 };

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for singular values");
}

static void scale(double s, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(s * x[i]);
}

/* Makes the rows of q[l, n] orthonormal: Gram-Schmidt, twice, since once leaves what rounding left. A row that depends on those before it becomes 0. */
static void orthonormalise(float *q, int l, int64_t n)
{
    for (int i = 0; i < l; i++) {
        float *row = q + i * n;
        double before = sqrt(op_dot(row, row, n));
        for (int again = 0; again < 2; again++)
            for (int k = 0; k < i; k++)
                op_axpy(-op_dot(row, q + k * n, n), q + k * n, row, n);
        double norm = sqrt(op_dot(row, row, n));
        scale(norm > 1e-6 * before && norm > 0 ? 1 / norm : 0, row, n);
    }
}

/* Eigenvalues of the symmetric m[n, n] onto its diagonal: rotations by Jacobi's method. */
static void diagonalise(double *m, int n)
{
    for (int sweep = 0; sweep < 30; sweep++) {
        double off = 0, all = 0;
        for (int i = 0; i < n * n; i++) {
            all += m[i] * m[i];
            off += i % (n + 1) ? m[i] * m[i] : 0;
        }
        if (off <= 1e-24 * all)
            return;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) {
                if (m[p * n + q] == 0)
                    continue;
                double h = (m[q * n + q] - m[p * n + p]) / (2 * m[p * n + q]);
                double t = (h < 0 ? -1 : 1) / (fabs(h) + sqrt(h * h + 1)), c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < n; k++) {
                    double a = m[k * n + p], b = m[k * n + q];
                    m[k * n + p] = c * a - s * b;
                    m[k * n + q] = s * a + c * b;
                }
                for (int k = 0; k < n; k++) {
                    double a = m[p * n + k], b = m[q * n + k];
                    m[p * n + k] = c * a - s * b;
                    m[q * n + k] = s * a + c * b;
                }
            }
    }
}

/* Squares of the l largest singular values of a[rows, cols], the largest first, by randomised subspace iteration: from a random
 * row space z, y = z A^T and z = y A in turn, made orthonormal at each step; then those of y A, whose rows are few. */
static op_status top_squares(const op_ops *ops, const float *a, int rows, int cols, int l, double *squares, op_error *e)
{
    float *z = op_alloc_array((size_t)l * (size_t)cols, sizeof *z), *y = op_alloc_array((size_t)l * (size_t)rows, sizeof *y);
    double *m = op_alloc_array((size_t)l * (size_t)l, sizeof *m);
    op_status s = z && y && m ? OP_OK : no_memory(e);
    for (int64_t i = 0; i < (int64_t)l * cols && !s; i++)
        z[i] = (float)op_rng_normal(1, STREAM_SKETCH, (uint64_t)i);
    for (int round = 0; round <= ROUNDS && !s; round++) {
        orthonormalise(z, l, cols);
        s = ops->gemm(false, true, l, rows, cols, 1, z, cols, a, cols, 0, y, rows, true);
        orthonormalise(y, l, rows);
        if (!s)
            s = ops->gemm(false, false, l, cols, rows, 1, y, rows, a, cols, 0, z, cols, true);
    }
    if (s == OP_ERR_NOMEM)
        s = no_memory(e);
    for (int i = 0; i < l * l && !s; i++)
        m[i] = op_dot(z + (int64_t)(i / l) * cols, z + (int64_t)(i % l) * cols, cols);
    if (!s)
        diagonalise(m, l);
    for (int i = 0; i < l && !s; i++) { /* insertion, the largest first */
        int k = i;
        for (; k && squares[k - 1] < m[i * l + i]; k--)
            squares[k] = squares[k - 1];
        squares[k] = m[i * l + i];
    }
    op_free(z);
    op_free(y);
    op_free(m);
    return s;
}

/* |A A^T|_F^2, or |A^T A|_F^2 where that is smaller: a block of the product at a time. */
static op_status fourth_powers(const op_ops *ops, const float *a, int rows, int cols, double *out, op_error *e)
{
    bool wide = rows <= cols;
    int n = wide ? rows : cols, depth = wide ? cols : rows;
    float *block = op_alloc_array((size_t)BLOCK * (size_t)n, sizeof *block);
    op_status s = block ? OP_OK : no_memory(e);
    *out = 0;
    for (int first = 0; first < n && !s; first += BLOCK) {
        int m = n - first < BLOCK ? n - first : BLOCK;
        s = wide ? ops->gemm(false, true, m, n, depth, 1, a + (int64_t)first * cols, cols, a, cols, 0, block, n, true)
                 : ops->gemm(true, false, m, n, depth, 1, a + first, cols, a, cols, 0, block, n, true);
        *out += s ? 0 : op_dot(block, block, (int64_t)m * n);
    }
    op_free(block);
    return s == OP_ERR_NOMEM ? no_memory(e) : s;
}

/* The energy of the first k of n squares, as a share of all; NAN when k were not looked for. */
static double share(const double *squares, int n, int k, int64_t most, double energy)
{
    double sum = 0;
    if (n < k && n < most)
        return NAN;
    for (int i = 0; i < k && i < n; i++)
        sum += squares[i];
    return fmin(1, sum / energy);
}

op_status op_matrix_ranks(const float *a, int64_t rows, int64_t cols, int singular, op_ranks *out, op_error *e)
{
    double squares[SINGULAR_MAX + SPARE], fourth, energy = op_dot(a, a, rows * cols);
    int64_t most = rows < cols ? rows : cols;
    int k = singular < SINGULAR_MAX ? singular : SINGULAR_MAX, l = k + SPARE < most ? k + SPARE : (int)most;
    const op_ops *ops = op_ops_get("cpu", OP_F32);
    /* numbers near 1, so that fourth powers stay within a float's range */
    float *unit = op_alloc_array((size_t)(rows * cols), sizeof *unit);
    if (!unit)
        return no_memory(e);
    double root = sqrt(energy / (double)(rows * cols));
    for (int64_t i = 0; i < rows * cols; i++)
        unit[i] = (float)(a[i] / root);
    energy = op_dot(unit, unit, rows * cols);
    op_status s = top_squares(ops, unit, (int)rows, (int)cols, l, squares, e);
    if (!s)
        s = fourth_powers(ops, unit, (int)rows, (int)cols, &fourth, e);
    if (!s)
        *out = (op_ranks){.stable = energy / squares[0], .participation = energy * energy / fourth, .top_1 = share(squares, k, 1, most, energy),
                          .top_4 = share(squares, k, 4, most, energy), .top_16 = share(squares, k, 16, most, energy)};
    op_free(unit);
    return s;
}
