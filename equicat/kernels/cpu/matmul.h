// Products of matrices that fit into the cache: a few dozen rows times weights, which are packed once a call.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.h"

constexpr int ROWS_AT_A_TIME = 16 * MICRO_ROWS;  // of the left matrix: they stay in the L2 cache
// Rows whose distance is a power of two compete for the same few lines of the cache; this much further they do not.
inline int leading(int width) { return width % (4 * BLOCK) ? width : width + BLOCK; }

// A weight [k, n], n a multiple of BLOCK, in panels of BLOCK columns that are read from front to back.
inline std::vector<real> packed(const real* weight, int k, int n) {
    std::vector<real> out(size_t(k) * n);
    real* p = out.data();
    for (int column = 0; column < n; column += BLOCK)
        for (int row = 0; row < k; row++, p += BLOCK)
            std::memcpy(p, weight + size_t(row) * n + column, sizeof(real) * BLOCK);
    return out;
}

// The transpose of a weight [k, n], k a multiple of BLOCK, packed like `packed`.
inline std::vector<real> packed_transposed(const real* weight, int k, int n) {
    std::vector<real> out(size_t(k) * n);
    real* p = out.data();
    for (int block = 0; block < k; block += BLOCK)
        for (int column = 0; column < n; column++)
            for (int row = block; row < block + BLOCK; row++) *p++ = weight[size_t(row) * n + column];
    return out;
}

// Two matrices to multiply, A(r, i) = a[r · row_step + i · step] with i < k and a block of columns B(i, c) = b[i · b_step + c].
struct Factors {
    int k;
    const real* a;
    long row_step, step;
    const real* b;
    long b_step;
    Factors after_rows(long rows) const { return {k, a + rows * row_step, row_step, step, b, b_step}; }
};

// acc[r] += Σ_i A(r, i) B(i, 0:BLOCK) for ROWS rows.
template <int ROWS> inline void add_product(const Factors& f, Vector (&acc)[ROWS][BLOCK_VECTORS]) {
    const real *a = f.a, *b = f.b;
#pragma GCC unroll 4
    for (int i = 0; i < f.k; i++, a += f.step, b += f.b_step) {
        Vector x[BLOCK_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) x[v] = load(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < BLOCK_VECTORS; v++) acc[r][v] += a[r * f.row_step] * x[v];
    }
}

// C[r, 0:BLOCK] (+)= the sum of the PARTS products, for ROWS rows.
template <int ROWS, int PARTS>
inline void micro(const Factors (&parts)[PARTS], int after, real* c, long ldc, bool accumulate) {
    // Every loop over acc is unrolled, the first too: the compiler then keeps it in registers from beginning to end.
    Vector acc[ROWS][BLOCK_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) acc[r][v] = Vector{};
#pragma GCC unroll 2
    for (int p = 0; p < PARTS; p++) add_product<ROWS>(parts[p].after_rows(after), acc);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) {
            real* p = c + (after + r) * ldc + v * LANES;
            store(p, accumulate ? load(p) + acc[r][v] : acc[r][v]);
        }
}

template <int ROWS, int PARTS>
inline void micro_rest(int rows, const Factors (&parts)[PARTS], int after, real* c, long ldc, bool accumulate) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            micro<ROWS>(parts, after, c, ldc, accumulate);
        else
            micro_rest<ROWS - 1>(rows, parts, after, c, ldc, accumulate);
    }
}

// A column of blocks of C: all rows.
template <int PARTS>
__attribute__((noinline)) inline void column(int rows, const Factors (&parts)[PARTS], real* c, long ldc, bool accumulate) {
    int r = 0;
    for (; r + MICRO_ROWS <= rows; r += MICRO_ROWS) micro<MICRO_ROWS>(parts, r, c, ldc, accumulate);
    micro_rest<MICRO_ROWS - 1>(rows - r, parts, r, c, ldc, accumulate);
}

// C[rows, n] (+)= A[rows, k] B, with B packed.
inline void matmul(int rows, int k, int n, const real* a, long lda, const real* b, real* c, long ldc,
                   bool accumulate) {
    for (int r = 0; r < rows; r += ROWS_AT_A_TIME)
        for (int j = 0; j < n; j += BLOCK) {
            const Factors factors[] = {{k, a + r * lda, lda, 1, b + size_t(j) * k, BLOCK}};
            column(std::min(ROWS_AT_A_TIME, rows - r), factors, c + r * ldc + j, ldc, accumulate);
        }
}

// C[k, n] += A₀[rows, k]ᵀ B₁[rows, n] + A₁ᵀ B₀: what dual numbers A and B, whose ε parts are a plane further, give in ε.
// C, which does not fit into the cache, is read and written once for both.
inline void add_outer(int rows, int k, int n, const real* a, long lda, long a_plane, const real* b, long ldb,
                      long b_plane, real* c) {
    for (int r = 0; r < rows; r += ROWS_AT_A_TIME)
        for (int j = 0; j < n; j += BLOCK) {
            const int count = std::min(ROWS_AT_A_TIME, rows - r);
            const real *left = a + r * lda, *right = b + r * ldb + j;
            const Factors factors[] = {{count, left, 1, lda, right + b_plane, ldb},
                                       {count, left + a_plane, 1, lda, right, ldb}};
            column(k, factors, c + j, n, true);
        }
}
