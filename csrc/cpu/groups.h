// The tile operations beside linear layers and maps. Values lie in one of two layouts, and both give the same
// bits: in a tile feature-major, x[j * S + lane]; for one sample (S = 1) feature after feature, padded to
// whole vectors.
//
// A sum over features has one order everywhere: feature j goes into part j mod 16, each part ascending; then
// the upper half of the parts is added to the lower, until one is left.
#pragma once
#include "functions.h"

namespace df::DF_ISA {

constexpr int kParts = 16;

// use(op), op being the function on two vectors
template <class Use>
DF_INLINE void with_binary(BinaryFunction function, Use use) {
    switch (function) {
        case BinaryFunction::kAdd:
            return use([](vf u, vf v) { return u + v; });
        case BinaryFunction::kSub:
            return use([](vf u, vf v) { return u - v; });
        case BinaryFunction::kMul:
            return use([](vf u, vf v) { return u * v; });
        case BinaryFunction::kDiv:
        case BinaryFunction::kCount:
            return use([](vf u, vf v) { return u / v; });
    }
}

// ---- one group of n features, in either layout

// Lanes = samples: features stride floats apart.
struct LaneGroup {
    using T = vf;
    using I = vi;
    const int n, stride;
    DF_ANYWHERE T get(const float* x, int j) const { return load(x + j * stride); }
    DF_ANYWHERE void put(float* y, int j, T v) const { store(y + j * stride, v); }
    static DF_ANYWHERE T fill(float v) { return splat(v); }
    static DF_ANYWHERE I fill_bits(int v) { return vi(splat_bits(uint32_t(v))); }
    static DF_ANYWHERE I select(I mask, I a, I b) { return mask ? a : b; }
    static DF_ANYWHERE T as_float(I bits) { return vf(bits); }
    DF_ANYWHERE I magnitude(const float* x, int j) const { return vi(abs(get(x, j))); }

    DF_ANYWHERE I count_below(const float* x, I bound) const {  // of the magnitudes' bits
        I count = fill_bits(0);
        for (int j = 0; j < n; ++j) count -= magnitude(x, j) < bound;  // a true lane is -1
        return count;
    }

    template <class F>
    DF_ANYWHERE T sum(F term) const {  // term(j)
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

    DF_ANYWHERE T max(const float* x) const {
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
DF_INLINE typename Group::T reduce(ReduceFunction function, const Group& g, const float* x) {
    const auto total = g.sum([&](int j) { return g.get(x, j); });
    return function == ReduceFunction::kMean ? total / Group::fill(float(g.n)) : total;
}

}  // namespace df::DF_ISA
