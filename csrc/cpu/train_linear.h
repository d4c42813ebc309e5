// The three products of training a linear layer, on rows in memory: lanes = outputs.
//
//     forward   y[n][j]  = bias[j] + sum_k x[n][k] w[k][j]
//     backward  dx[n][k] = sum_j dy[n][j] w^T[j][k]
//     gradient  dw[k][j] = sum_n x[n][k] dy[n][j]
//
// One register block does all three: R rows x V vectors of accumulators, a scalar of the left factor against
// V vectors of the right one. Each result is one fma chain in ascending order whatever the blocks, so neither
// the threads nor the instruction set change a bit.
#pragma once
#include "simd.h"

namespace df::DF_ISA {

constexpr int kPanel = 2 * W;  // outputs of a panel; the last may be W
#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 accumulators + 2 of the right factor of 32 registers
#else
constexpr int kRows = 6;  // 12 + 2 and a scalar of 16
#endif

enum class Start { kZero, kBias, kMemory };
enum class Finish { kStore, kMultiply };  // c = sum, or c = sum * c

// Element (row, depth) of the left factor is left[row * row_step + depth * depth_step].
struct Left {
    const float* at;
    int64_t row_step, depth_step;
};

template <int R, int V, Start S, Finish F>
DF_INLINE void product_block(int depth, Left a, const float* b, int64_t b_step, const float* bias, float* c,
                             int64_t c_step) {
    vf acc[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
            acc[r][v] = S == Start::kZero   ? splat(0.0f)
                        : S == Start::kBias ? load(bias + v * W)
                                            : load(c + r * c_step + v * W);
    for (int k = 0; k < depth; ++k, b += b_step, a.at += a.depth_step) {
        vf bv[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const vf ar = splat(a.at[r * a.row_step]);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[r][v] = fma(ar, bv[v], acc[r][v]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            float* at = c + r * c_step + v * W;
            store(at, F == Finish::kMultiply ? acc[r][v] * load(at) : acc[r][v]);
        }
}

// All rows of a panel of V vectors.
template <int V, Start S, Finish F>
static __attribute__((noinline)) void product_panel(int rows, int depth, Left a, const float* b,
                                                    int64_t b_step, const float* bias, float* c,
                                                    int64_t c_step) {
    for (int r; rows; rows -= r, a.at += r * a.row_step, c += r * c_step) {
        if (rows >= kRows) {
            r = kRows;
            product_block<kRows, V, S, F>(depth, a, b, b_step, bias, c, c_step);
        } else if (rows >= 4) {
            r = 4;
            product_block<4, V, S, F>(depth, a, b, b_step, bias, c, c_step);
        } else if (rows >= 2) {
            r = 2;
            product_block<2, V, S, F>(depth, a, b, b_step, bias, c, c_step);
        } else {
            r = 1;
            product_block<1, V, S, F>(depth, a, b, b_step, bias, c, c_step);
        }
    }
}

template <Start S, Finish F>
DF_INLINE void product(int width, int rows, int depth, Left a, const float* b, int64_t b_step,
                       const float* bias, float* c, int64_t c_step) {
    const auto panel = width == kPanel ? product_panel<2, S, F> : product_panel<1, S, F>;
    panel(rows, depth, a, b, b_step, bias, c, c_step);
}

DF_INLINE int panel_width(int padded, int first) { return padded - first < kPanel ? W : kPanel; }

// c[j] = the sum over rows of y[row][j], j in a panel: four chains, added pairwise
DF_INLINE void column_sums(int width, int rows, const float* y, int64_t step, float* c) {
    for (int j = 0; j < width; j += W) {
        vf sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        int n = 0;
        for (; n + 4 <= rows; n += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sum[i] += load(y + (n + i) * step + j);
        for (; n < rows; ++n) sum[0] += load(y + n * step + j);
        store(c + j, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

}  // namespace df::DF_ISA
