// What guidance rescale and dynamic thresholding need of one sample: its standard deviation, and a quantile
// of its magnitudes. Group (tile_ops.h) is the layout: lanes = samples, or one sample.
#pragma once
#include "groups.h"

namespace df::DF_ISA {

template <class Group>
DF_INLINE typename Group::T variance(const Group& g, const float* x) {
    using T = typename Group::T;
    const T count = Group::fill(float(g.n));
    const T mean = g.sum([&](int j) { return g.get(x, j); }) / count;
    return g.sum([&](int j) {
        const T d = g.get(x, j) - mean;
        return d * d;
    }) / count;
}

// phi std(c) / std(F) + 1 - phi (Lin et al. 2024, eq. 15 and 16)
template <class Group>
DF_INLINE typename Group::T rescale_factor(const Group& g, float phi, const float* c, const float* F) {
    return Group::fill(phi) * sqrt(variance(g, c) / variance(g, F)) + Group::fill(1.0f - phi);
}

// Magnitudes are ordered as their bits, so the k-th smallest of |x| (k from 0) is built from the highest bit
// down: a bit is set where no more than k magnitudes are below the candidate. No sorting, no branch per lane.
template <class Group>
DF_INLINE typename Group::T kth_magnitude(const Group& g, const float* x, int k) {
    using I = typename Group::I;
    I found = Group::fill_bits(0);
    for (int bit = 30; bit >= 0; --bit) {
        const I candidate = found | Group::fill_bits(1 << bit);
        found = Group::select(g.count_below(x, candidate) <= k, candidate, found);
    }
    return Group::as_float(found);
}

// The q-quantile of |x|, linear between neighbours, as numpy.quantile and torch.quantile take it.
template <class Group>
DF_INLINE typename Group::T magnitude_quantile(const Group& g, float q, const float* x) {
    using T = typename Group::T;
    const double position = double(q) * (g.n - 1);
    const int k = int(position);
    const T low = kth_magnitude(g, x, k);
    if (position == k) return low;
    return fma(Group::fill(float(position - k)), kth_magnitude(g, x, k + 1) - low, low);
}

// The threshold of Saharia et al. 2022, section 2.3: the quantile, limited to [1, most].
template <class Group>
DF_INLINE typename Group::T dynamic_threshold(const Group& g, float q, float most, const float* x) {
    const typename Group::T t = magnitude_quantile(g, q, x);
    return max_keep_nan(Group::fill(1.0f), min_keep_nan(Group::fill(most), t));
}

// clamp(m, -q, q) / q
template <class T>
DF_INLINE T thresholded(T m, T q) {
    return max_keep_nan(-q, min_keep_nan(q, m)) / q;
}

}  // namespace df::DF_ISA
