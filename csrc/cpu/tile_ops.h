// The tile operations beside linear layers. Values lie in one of two layouts, and both give the same bits:
// in a tile feature-major, x[j * S + lane]; for one sample (S = 1) feature after feature, padded to whole
// vectors.
//
// A sum over features has one order everywhere: feature j goes into part j mod 16, each part ascending; then
// the upper half of the parts is added to the lower, until one is left.
#pragma once
#include "linear.h"

namespace df::DF_ISA {

using cpu::PackedOp;

constexpr int kParts = 16;

DF_INLINE void binary(BinaryFunction function, const float* a, const float* b, float* y, int count) {
    const auto each = [&](auto op) {
        for (int i = 0; i < count; i += W) store(y + i, op(load(a + i), load(b + i)));
    };
    switch (function) {
        case BinaryFunction::kAdd:
            return each([](vf u, vf v) { return u + v; });
        case BinaryFunction::kSub:
            return each([](vf u, vf v) { return u - v; });
        case BinaryFunction::kMul:
            return each([](vf u, vf v) { return u * v; });
        case BinaryFunction::kDiv:
        case BinaryFunction::kCount:
            return each([](vf u, vf v) { return u / v; });
    }
}

// ---- one group of n features, in either layout

// Lanes = samples: features stride floats apart.
struct LaneGroup {
    using T = vf;
    using I = vi;
    const int n, stride;
    T get(const float* x, int j) const { return load(x + j * stride); }
    void put(float* y, int j, T v) const { store(y + j * stride, v); }
    static T fill(float v) { return splat(v); }
    static I fill_bits(int v) { return vi(splat_bits(uint32_t(v))); }
    static I select(I mask, I a, I b) { return mask ? a : b; }
    static T as_float(I bits) { return vf(bits); }
    I magnitude(const float* x, int j) const { return vi(abs(get(x, j))); }

    I count_below(const float* x, I bound) const {  // of the magnitudes' bits
        I count = fill_bits(0);
        for (int j = 0; j < n; ++j) count -= magnitude(x, j) < bound;  // a true lane is -1
        return count;
    }

    template <class F>
    T sum(F term) const {  // term(j)
        T part[kParts];
#pragma GCC unroll 16
        for (int i = 0; i < kParts; ++i) part[i] = i < n ? term(i) : splat(0.0f);
        int j = kParts;
        for (; j + kParts <= n; j += kParts)
#pragma GCC unroll 16
            for (int i = 0; i < kParts; ++i) part[i] += term(j + i);
#pragma GCC unroll 16
        for (int i = 0; i < kParts; ++i)
            if (j + i < n) part[i] += term(j + i);
#pragma GCC unroll 4
        for (int half = kParts / 2; half; half /= 2)
            for (int i = 0; i < half; ++i) part[i] += part[i + half];
        return part[0];
    }

    T max(const float* x) const {
        T m = get(x, 0);
        for (int j = 1; j < n; ++j) m = max_keep_nan(m, get(x, j));
        return m;
    }
};

// Lanes = features of one sample. The vectors of a sum's terms are the parts.
struct RowGroup {
    using T = float;
    using I = int32_t;
    const int n;
    T get(const float* x, int j) const { return x[j]; }
    void put(float* y, int j, T v) const { y[j] = v; }
    static T fill(float v) { return v; }
    static I fill_bits(int v) { return v; }
    static I select(bool mask, I a, I b) { return mask ? a : b; }
    static T as_float(I bits) { return ScalarLanes::as_float(uint32_t(bits)); }
    I magnitude(const float* x, int j) const { return I(ScalarLanes::as_bits(x[j]) & 0x7fffffffu); }

    I count_below(const float* x, I bound) const {
        I count = 0;
        for (int j = 0; j < n; ++j) count += magnitude(x, j) < bound;
        return count;
    }

    template <class F>
    T sum(F term) const {
        float part[kParts];
        for (int i = 0; i < kParts; ++i) part[i] = i < n ? term(i) : 0.0f;
        int j = kParts;
        for (; j + kParts <= n; j += kParts)
            for (int i = 0; i < kParts; ++i) part[i] += term(j + i);
        for (int i = 0; j + i < n; ++i) part[i] += term(j + i);
        for (int half = kParts / 2; half; half /= 2)
            for (int i = 0; i < half; ++i) part[i] += part[i + half];
        return part[0];
    }

    T max(const float* x) const {
        T m = x[0];
        for (int j = 1; j < n; ++j) m = m > x[j] ? m : x[j];
        return m;
    }
};

DF_INLINE float fma(float a, float b, float c) { return ScalarLanes::fma(a, b, c); }
DF_INLINE float sqrt(float a) { return ScalarLanes::sqrt(a); }
DF_INLINE float exp(float a) { return exp(splat(a))[0]; }
DF_INLINE float max_keep_nan(float floor, float x) { return floor > x ? floor : x; }
DF_INLINE float min_keep_nan(float ceiling, float x) { return ceiling < x ? ceiling : x; }

// weight and bias: of the group's first feature, or null
template <class Group>
DF_INLINE void normalise(NormFunction function, float epsilon, const Group& g, const float* x, float* y,
                         const float* weight, const float* bias) {
    using T = typename Group::T;
    const T count = Group::fill(float(g.n));
    if (function == NormFunction::kSoftmax) {
        const T top = g.max(x);
        for (int j = 0; j < g.n; ++j) g.put(y, j, exp(g.get(x, j) - top));
        const T total = g.sum([&](int j) { return g.get(y, j); });
        for (int j = 0; j < g.n; ++j) g.put(y, j, g.get(y, j) / total);
        return;
    }
    const bool centered = function == NormFunction::kLayerNorm;
    const T mean = centered ? g.sum([&](int j) { return g.get(x, j); }) / count : Group::fill(0.0f);
    const T square = g.sum([&](int j) {
        const T d = g.get(x, j) - mean;
        return d * d;
    });
    const T factor = Group::fill(1.0f) / sqrt(square / count + Group::fill(epsilon));
    for (int j = 0; j < g.n; ++j) {
        T v = (g.get(x, j) - mean) * factor;
        if (weight) v = v * Group::fill(weight[j]);
        if (bias) v = v + Group::fill(bias[j]);
        g.put(y, j, v);
    }
}

template <class Group>
DF_INLINE void norm_or_reduce(const PackedOp& op, const Group& g, int group, const float* x, float* y) {
    const int first = group * g.n;
    if (op.kind == OpKind::kNorm)
        return normalise(NormFunction(op.function), op.param, g, x, y,
                         op.weight ? op.weight + first : nullptr, op.bias ? op.bias + first : nullptr);
    auto total = g.sum([&](int j) { return g.get(x, j); });
    if (ReduceFunction(op.function) == ReduceFunction::kMean) total = total / Group::fill(float(g.n));
    g.put(y, 0, total);
}

// ---- any op but linear and table: slots[...] in the layout of S lanes, S = 1 for a single sample

template <int S>
static __attribute__((noinline)) void other_op(const PackedOp& op, const float* x, const float* x2,
                                               float* y) {
    const int floats = S == 1 ? op.n_out_padded : op.n_out * S;
    switch (op.kind) {
        case OpKind::kMap:
            return apply(Function(op.function), op.param, x, y, floats);
        case OpKind::kBinary:
            return binary(BinaryFunction(op.function), x, x2, y, floats);
        case OpKind::kGather:
            y += op.extra * S;
            for (int j = 0; j < op.n_in; ++j) memcpy(y + j * S, x + op.index[j] * S, S * sizeof(float));
            return;
        default:
            break;
    }
    const int size = op.n_in / op.extra, out_step = op.kind == OpKind::kNorm ? size : 1;
    for (int group = 0; group < op.extra; ++group) {
        const float* from = x + group * size * S;
        float* to = y + group * out_step * S;
        if constexpr (S == 1)
            norm_or_reduce(op, RowGroup{size}, group, from, to);
        else
            for (int v = 0; v < S; v += W) norm_or_reduce(op, LaneGroup{size, S}, group, from + v, to + v);
    }
}

}  // namespace df::DF_ISA
