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

// C[r, 0:BLOCK] (+)= Σ_i A(r, i) B[i, 0:BLOCK] for ROWS rows; A(r, i) = a[r · row_step + i · step].
template <int ROWS>
inline void micro(int k, const real* a, long row_step, long step, const real* b, long b_step, real* c, long ldc,
                  bool accumulate) {
    Vector acc[ROWS][BLOCK_VECTORS] = {};
#pragma GCC unroll 4
    for (int i = 0; i < k; i++, a += step, b += b_step) {
        Vector x[BLOCK_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) x[v] = load(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < BLOCK_VECTORS; v++) acc[r][v] += a[r * row_step] * x[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < BLOCK_VECTORS; v++) {
            real* p = c + r * ldc + v * LANES;
            store(p, accumulate ? load(p) + acc[r][v] : acc[r][v]);
        }
}

template <int ROWS>
inline void micro_rest(int rows, int k, const real* a, long row_step, long step, const real* b, long b_step, real* c,
                       long ldc, bool accumulate) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            micro<ROWS>(k, a, row_step, step, b, b_step, c, ldc, accumulate);
        else
            micro_rest<ROWS - 1>(rows, k, a, row_step, step, b, b_step, c, ldc, accumulate);
    }
}

// A column of blocks of C: all rows.
__attribute__((noinline)) inline void column(int rows, int k, const real* a, long row_step, long step, const real* b,
                                            long b_step, real* c, long ldc, bool accumulate) {
    int r = 0;
    for (; r + MICRO_ROWS <= rows; r += MICRO_ROWS)
        micro<MICRO_ROWS>(k, a + r * row_step, row_step, step, b, b_step, c + r * ldc, ldc, accumulate);
    micro_rest<MICRO_ROWS - 1>(rows - r, k, a + r * row_step, row_step, step, b, b_step, c + r * ldc, ldc, accumulate);
}

// C[rows, n] (+)= A[rows, k] B, with B packed.
inline void matmul(int rows, int k, int n, const real* a, long lda, const real* b, real* c, long ldc,
                   bool accumulate) {
    for (int r = 0; r < rows; r += ROWS_AT_A_TIME)
        for (int j = 0; j < n; j += BLOCK)
            column(std::min(ROWS_AT_A_TIME, rows - r), k, a + r * lda, lda, 1, b + size_t(j) * k, BLOCK,
                   c + r * ldc + j, ldc, accumulate);
}

// C[k, n] += A[rows, k]ᵀ B[rows, n].
inline void add_outer(int rows, int k, int n, const real* a, long lda, const real* b, long ldb, real* c) {
    for (int r = 0; r < rows; r += ROWS_AT_A_TIME)
        for (int j = 0; j < n; j += BLOCK)
            column(k, std::min(ROWS_AT_A_TIME, rows - r), a + r * lda, 1, lda, b + r * ldb + j, ldb, c + j, n, true);
}
