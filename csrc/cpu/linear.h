// y = act(init + W x) on a tile: feature-major, y[j] and x[k] hold S = V * W samples each.
//
// Register block: R outputs x V vectors of accumulators, one broadcast weight against V vectors of x at a
// time; with R = 8, V = 3 that is 24 chains in flight, 11 loads for 24 fma. Each output is one fma chain,
// init first, k ascending; beyond kChain inputs each further kChain are a chain from 0, added to what stands.
//
// A program runs on one of two shapes of tile with the same bits: the usual one, and one of fewer samples and
// more outputs for layers whose inputs and outputs would not fit into the first cache.
#pragma once
#include "functions.h"
#include "kernels.h"

namespace df::DF_ISA {

// R outputs x up to V vectors of samples.
template <int R, int V>
struct TileShape {
    static constexpr int kBlock = R, kVectors = V;
};

#if defined(__AVX512F__)
using Usual = TileShape<8, 3>;  // 24 accumulators + 3 of x + 1 weight of 32 registers
using Wide = Usual;
#else
using Usual = TileShape<4, 3>;  // 12 + 3 + 1 of 16
using Wide = TileShape<6, 2>;   // 12 + 2 + 1
#endif

// init: (R), and lane_init: [R][S] or null;  w: [n_in][R];  x: [n_in][S];  y: [R][S]
template <int R, int V>
DF_INLINE void linear_block(int n_in, const float* __restrict w, const float* __restrict init,
                            const float* __restrict lane_init, const float* __restrict x, float* __restrict y,
                            bool relu) {
    constexpr int S = V * W;
    for (int from = 0; from < n_in; from += kChain) {
        const int to = n_in - from > kChain ? from + kChain : n_in;
        vf acc[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) {
                acc[r][v] = from ? splat(0.0f) : splat(init[r]);
                if (lane_init && !from) acc[r][v] += load(lane_init + r * S + v * W);
            }
        for (int k = from; k < to; ++k, w += R, x += S) {
            vf xv[V];
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) xv[v] = load(x + v * W);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vf wr = splat(w[r]);
#pragma GCC unroll 3
                for (int v = 0; v < V; ++v) acc[r][v] = fma(wr, xv[v], acc[r][v]);
            }
        }
        const bool clip = relu && to == n_in;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) {
                float* at = y + r * S + v * W;
                const vf sum = from ? load(at) + acc[r][v] : acc[r][v];
                store(at, clip ? max_keep_nan(splat(0.0f), sum) : sum);
            }
    }
}

// One branch of a layer: init (n_out), lane_init [n_out][S] or null, x [n_in][S], y [n_out][S].
struct LinearBranch {
    const float *init, *lane_init, *x;
    float* y;
};

// A block's weights serve all branches before the next block's are read.
template <int R, int V>
static __attribute__((noinline)) void linear_blocks(const cpu::PackedOp& l, int first, int last,
                                                    const float* w, const LinearBranch* branches, int count) {
    constexpr int S = V * W;
    const bool relu = Function(l.function) == Function::kRelu;
    const bool plain = relu || Function(l.function) == Function::kIdentity;
    for (int j = first; j < last; j += R, w += R * l.n_in)
        for (const LinearBranch* b = branches; b < branches + count; ++b) {
            float* y = b->y + j * S;
            if (b->lane_init)
                linear_block<R, V>(l.n_in, w, b->init + j, b->lane_init + j * S, b->x, y, relu);
            else
                linear_block<R, V>(l.n_in, w, b->init + j, nullptr, b->x, y, relu);
            if (!plain) apply(Function(l.function), l.param, y, y, R * S);
        }
}

// The outputs that are left where R do not divide them, 1 to Most of them.
template <int Most, int V>
static void linear_tail(const cpu::PackedOp& l, int first, const float* w, const LinearBranch* b, int count) {
    if constexpr (Most > 0) {
        if (l.n_out - first == Most) return linear_blocks<Most, V>(l, first, l.n_out, w, b, count);
        linear_tail<Most - 1, V>(l, first, w, b, count);
    }
}

template <int R, int V>
static void linear_tile(const cpu::PackedOp& l, const LinearBranch* b, int count) {
    const int whole = l.n_out / R * R;
    linear_blocks<R, V>(l, 0, whole, l.blocks, b, count);
    linear_tail<R - 1, V>(l, whole, l.blocks + int64_t(whole) * l.n_in, b, count);
}

// The few-sample path: lanes = outputs, one sample. The same fma chain per output, so the same bits.
// A panel of B vectors; init and y: [B W];  w: [n_in][B W]
template <int B>
DF_INLINE void linear_panel(int n_in, const float* __restrict w, const float* __restrict init,
                            const float* __restrict x, float* __restrict y) {
    for (int from = 0; from < n_in; from += kChain) {
        const int to = n_in - from > kChain ? from + kChain : n_in;
        vf acc[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) acc[b] = from ? splat(0.0f) : load(init + b * W);
        for (int k = from; k < to; ++k, w += B * W) {
            const vf xk = splat(x[k]);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) acc[b] = fma(load(w + b * W), xk, acc[b]);
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) store(y + b * W, from ? load(y + b * W) + acc[b] : acc[b]);
    }
}

// Backwards the panels come last to first. A chain whose weights are a little more than a cache holds goes to
// and fro: what the step before read last is still there.
static void linear_row(const cpu::PackedOp& l, const float* init, const float* x, float* y, bool backwards) {
    const auto panel_at = [&](int v, int B) {
        const auto panel = B == 8 ? linear_panel<8> : B == 4 ? linear_panel<4> : linear_panel<1>;
        panel(l.n_in, l.rows + int64_t(v) * W * l.n_in, init + v * W, x, y + v * W);
    };
    const int vectors = l.n_out_padded / W;
    if (backwards)
        for (int end = vectors, B; end > 0; end -= B) {
            B = end % 8 == 0 ? 8 : end % 4 == 0 ? 4 : 1;  // where the panels of panel_vectors end
            panel_at(end - B, B);
        }
    else
        for (int v = 0, B; v < vectors; v += B) {
            B = cpu::panel_vectors(vectors - v);
            panel_at(v, B);
        }
    apply(Function(l.function), l.param, y, y, l.n_out_padded);
}

}  // namespace df::DF_ISA
