// y = act(init + W x) on a tile: feature-major, y[j] and x[k] hold S = V * W samples each.
//
// Register block: R outputs x V vectors of accumulators, one broadcast weight against V vectors of x at a
// time; with R = 8, V = 3 that is 24 chains in flight, 11 loads for 24 fma. Each output is one fma chain,
// init first, k ascending; beyond kChain inputs each further kChain are a chain from 0, added to what stands.
//
// A program runs on one of two shapes of tile with the same bits: the usual one, and one of fewer samples and
// more outputs for layers whose inputs and outputs would not fit into the first cache.
//
// In the bfloat16 tier the products of a wide layer are of pairs of inputs (Products): k counts pairs then.
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

// What a layer multiplies, term by term: x[k] and w[k] of type T, in vectors V.
struct Float32Products {
    using T = float;
    using V = vf;
    static DF_INLINE V get(const T* p) { return load(p); }
    static DF_INLINE V all(T value) { return splat(value); }
    static DF_INLINE vf add(vf acc, V w, V x) { return fma(w, x, acc); }
    static int terms(int n_in) { return n_in; }
    static const T* blocks(const cpu::PackedOp& l) { return l.blocks; }
    static const T* rows(const cpu::PackedOp& l) { return l.rows; }
};
struct Bfloat16Products {
    using T = uint32_t;
    using V = vu;
    static DF_INLINE V get(const T* p) { return load_bits(p); }
    static DF_INLINE V all(T value) { return splat_bits(value); }
    static DF_INLINE vf add(vf acc, V w, V x) { return dot_bfloat16(acc, w, x); }
    static int terms(int n_in) { return (n_in + 1) / 2; }
    static const T* blocks(const cpu::PackedOp& l) { return l.pair_blocks; }
    static const T* rows(const cpu::PackedOp& l) { return l.pair_rows; }
};

// init: (R), and lane_init: [R][S] or null;  w: [terms][R];  x: [terms][S];  y: [R][S]
template <class P, int R, int V>
DF_INLINE void linear_block(int terms, const typename P::T* __restrict w, const float* __restrict init,
                            const float* __restrict lane_init, const typename P::T* __restrict x,
                            float* __restrict y, bool relu) {
    constexpr int S = V * W;
    for (int from = 0; from < terms; from += kChain) {
        const int to = terms - from > kChain ? from + kChain : terms;
        vf acc[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) {
                acc[r][v] = from ? splat(0.0f) : splat(init[r]);
                if (lane_init && !from) acc[r][v] += load(lane_init + r * S + v * W);
            }
        for (int k = from; k < to; ++k, w += R, x += S) {
            typename P::V xv[V];
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) xv[v] = P::get(x + v * W);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const auto wr = P::all(w[r]);
#pragma GCC unroll 3
                for (int v = 0; v < V; ++v) acc[r][v] = P::add(acc[r][v], wr, xv[v]);
            }
        }
        const bool clip = relu && to == terms;
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

// One branch of a layer: init (n_out), lane_init [n_out][S] or null, x [n_in][S], y [n_out][S]; pairs: of x,
// [pairs of inputs][S], room for them.
struct LinearBranch {
    const float *init, *lane_init, *x;
    float* y;
    uint32_t* pairs;
};
DF_INLINE const float* input(const LinearBranch& b, Float32Products) { return b.x; }
DF_INLINE const uint32_t* input(const LinearBranch& b, Bfloat16Products) { return b.pairs; }

// A block's weights serve all branches before the next block's are read.
template <class P, int R, int V>
static __attribute__((noinline)) void linear_blocks(const cpu::PackedOp& l, int first, int last,
                                                    const typename P::T* w, const LinearBranch* branches,
                                                    int count) {
    constexpr int S = V * W;
    const bool relu = Function(l.function) == Function::kRelu;
    const bool plain = relu || Function(l.function) == Function::kIdentity;
    const int terms = P::terms(l.n_in);
    for (int j = first; j < last; j += R, w += R * terms)
        for (const LinearBranch* b = branches; b < branches + count; ++b) {
            float* y = b->y + j * S;
            if (b->lane_init)
                linear_block<P, R, V>(terms, w, b->init + j, b->lane_init + j * S, input(*b, P()), y, relu);
            else
                linear_block<P, R, V>(terms, w, b->init + j, nullptr, input(*b, P()), y, relu);
            if (!plain) apply(Function(l.function), l.param, y, y, R * S);
        }
}

// The outputs that are left where R do not divide them, 1 to Most of them.
template <class P, int Most, int V>
static void linear_tail(const cpu::PackedOp& l, int first, const typename P::T* w, const LinearBranch* b,
                        int count) {
    if constexpr (Most > 0) {
        if (l.n_out - first == Most) return linear_blocks<P, Most, V>(l, first, l.n_out, w, b, count);
        linear_tail<P, Most - 1, V>(l, first, w, b, count);
    }
}

template <class P, int R, int V>
static void linear_outputs(const cpu::PackedOp& l, const LinearBranch* b, int count) {
    const int whole = l.n_out / R * R;
    linear_blocks<P, R, V>(l, 0, whole, P::blocks(l), b, count);
    linear_tail<P, R - 1, V>(l, whole, P::blocks(l) + int64_t(whole) * P::terms(l.n_in), b, count);
}

template <int R, int V>
static void linear_tile(const cpu::PackedOp& l, const LinearBranch* branches, int count, bool low) {
    constexpr int S = V * W;
    if (!low || !l.pair_blocks) return linear_outputs<Float32Products, R, V>(l, branches, count);
    for (const LinearBranch* b = branches; b < branches + count; ++b)
        for (int k = 0; k < l.n_in; k += 2)
            for (int v = 0; v < S; v += W) {
                const vf odd = k + 1 < l.n_in ? load(b->x + (k + 1) * S + v) : splat(0.0f);
                store_bits(b->pairs + k / 2 * S + v, bfloat16_pairs(load(b->x + k * S + v), odd));
            }
    linear_outputs<Bfloat16Products, R, V>(l, branches, count);
}

// The few-sample path: lanes = outputs, one sample. The same chain per output, so the same bits.
// A panel of B vectors; init and y: [B W];  w: [terms][B W]
template <class P, int B>
DF_INLINE void linear_panel(int terms, const typename P::T* __restrict w, const float* __restrict init,
                            const typename P::T* __restrict x, float* __restrict y) {
    for (int from = 0; from < terms; from += kChain) {
        const int to = terms - from > kChain ? from + kChain : terms;
        vf acc[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) acc[b] = from ? splat(0.0f) : load(init + b * W);
        for (int k = from; k < to; ++k, w += B * W) {
            const auto xk = P::all(x[k]);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) acc[b] = P::add(acc[b], P::get(w + b * W), xk);
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) store(y + b * W, from ? load(y + b * W) + acc[b] : acc[b]);
    }
}

// Backwards the panels come last to first. A chain whose weights are a little more than a cache holds goes to
// and fro: what the step before read last is still there.
template <class P>
static void linear_panels(const cpu::PackedOp& l, const float* init, const typename P::T* x, float* y,
                          bool backwards) {
    const int terms = P::terms(l.n_in), vectors = l.n_out_padded / W;
    const auto panel_at = [&](int v, int B) {
        const auto panel = B == 8 ? linear_panel<P, 8> : B == 4 ? linear_panel<P, 4> : linear_panel<P, 1>;
        panel(terms, P::rows(l) + int64_t(v) * W * terms, init + v * W, x, y + v * W);
    };
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
}

// pairs: room for those of x, and a vector more.
static void linear_row(const cpu::PackedOp& l, const float* init, const float* x, uint32_t* pairs, float* y,
                       bool backwards, bool low) {
    if (low && l.pair_rows) {
        for (int k = 0; 2 * k < l.n_in; k += W) {  // rounded as a tile's are, by the same function
            vf even, odd;
            for (int i = 0; i < W; ++i) {
                even[i] = x[2 * (k + i)];
                odd[i] = 2 * (k + i) + 1 < l.n_in ? x[2 * (k + i) + 1] : 0.0f;
            }
            store_bits(pairs + k, bfloat16_pairs(even, odd));
        }
        linear_panels<Bfloat16Products>(l, init, pairs, y, backwards);
    } else {
        linear_panels<Float32Products>(l, init, x, y, backwards);
    }
    apply(Function(l.function), l.param, y, y, l.n_out_padded);
}

}  // namespace df::DF_ISA
