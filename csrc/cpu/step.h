// One row's update on tensors in memory, (n, dim) with any dim: the same terms in the same order, and the
// same noise bits, as the chain.
//
// Block by block: first the random words of a block of quads, drawn into the cache; then one pass that turns
// them into normals and uses them. Philox and Box-Muller are each a loop of independent short bodies this
// way, which the processor overlaps, and the loads and stores of the update run under the arithmetic of
// Box-Muller: on one core 1.25 times the speed of drawing the normals first (dims 3 and 64, from memory).
#pragma once
#include "chain.h"
#include "noise_block.h"

namespace df::DF_ISA {

// ---- element types

template <Dtype D>
struct Element;
template <>
struct Element<Dtype::kFloat32> {
    using T = float;
    static DF_INLINE vf get(const T* p) { return load(p); }
    static DF_INLINE void put(T* p, vf v) { store(p, v); }
};
template <>
struct Element<Dtype::kBfloat16> {
    using T = uint16_t;
    static DF_INLINE vf get(const T* p) { return from_bfloat16(load_half(p)); }
    static DF_INLINE void put(T* p, vf v) { store_half(p, to_bfloat16(v)); }
};
template <>
struct Element<Dtype::kFloat16> {
    using T = uint16_t;
    static DF_INLINE vf get(const T* p) { return from_float16(load_half(p)); }
    static DF_INLINE void put(T* p, vf v) { store_half(p, to_float16(v)); }
};

// Tensors of one step, as pointers to the element at hand.
template <class E>
struct StepTensors {
    using T = typename E::T;
    T* out;
    const T *x, *F, *uncond, *log_variance;
    T *h[3], *prediction;

    StepTensors(const StepArgs& a, int64_t at)
        : out(static_cast<T*>(a.out) + at),
          x(static_cast<const T*>(a.x) + at),
          F(a.model_output ? static_cast<const T*>(a.model_output) + at : nullptr),
          uncond(a.uncond_output ? static_cast<const T*>(a.uncond_output) + at : nullptr),
          log_variance(a.log_variance ? static_cast<const T*>(a.log_variance) + at : nullptr),
          prediction(a.prediction ? static_cast<T*>(a.prediction) + at : nullptr) {
        for (int i = 0; i < 3; ++i) h[i] = a.history[i] ? static_cast<T*>(a.history[i]) + at : nullptr;
    }
};

// What belongs to each element's sample: the guidance scale, its rescale and the dynamic threshold, or null.
struct PerSample {
    const float *scale, *factor, *threshold;

    PerSample at(int i) const {
        return {scale ? scale + i : nullptr, factor ? factor + i : nullptr,
                threshold ? threshold + i : nullptr};
    }
};

template <int N, class Op>
DF_INLINE void times(Op op) {
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) op(k);
}

// N vectors of the update, for which each question about the row is asked once; z is looked at where s is not
// 0.
template <class E, int N>
DF_INLINE void update_vectors(const StepRow& r, uint32_t terms, const StepTensors<E>& t, int i, const vf* z,
                              const PerSample& p) {
    const vf zero = splat(0.0f);
    vf x[N], F[N], m[N], next[N];
    times<N>([&](int k) { x[k] = E::get(t.x + i + k * W); });
    times<N>([&](int k) { F[k] = t.F ? E::get(t.F + i + k * W) : zero; });
    if (t.uncond)
        times<N>([&](int k) {
            const vf u = E::get(t.uncond + i + k * W);
            F[k] = fma(load(p.scale + i + k * W), F[k] - u, u);
            if (p.factor) F[k] = load(p.factor + i + k * W) * F[k];
        });
    times<N>([&](int k) { m[k] = zero, next[k] = terms & kTermA ? splat(r.a) * x[k] : zero; });
    if (terms & (kTermB | kTermPush) || t.prediction) {
        if (terms & kTermPx) times<N>([&](int k) { m[k] = splat(r.p_x) * x[k]; });
        if (terms & kTermPF) times<N>([&](int k) { m[k] = fma(splat(r.p_F), F[k], m[k]); });
        if (p.threshold)
            times<N>([&](int k) { m[k] = thresholded(m[k], load(p.threshold + i + k * W)); });
        else if (terms & kTermClip)
            times<N>([&](int k) { m[k] = max_keep_nan(splat(-r.clip), min_keep_nan(splat(r.clip), m[k])); });
        if (terms & kTermB) times<N>([&](int k) { next[k] = fma(splat(r.b), m[k], next[k]); });
    }
    if (terms & kTermE) times<N>([&](int k) { next[k] = fma(splat(r.e), F[k], next[k]); });
    const uint32_t reads[] = {kTermC1, kTermC2, kTermC3};
    const float weights[] = {r.c1, r.c2, r.c3};
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j)
        if (terms & reads[j])
            times<N>([&](int k) { next[k] = fma(splat(weights[j]), E::get(t.h[j] + i + k * W), next[k]); });
    if (r.s != 0.0f)
        times<N>([&](int k) {
            const vf s = t.log_variance ? exp(splat(0.5f) * E::get(t.log_variance + i + k * W)) : splat(r.s);
            next[k] = fma(s, z[k], next[k]);
        });
    if (r.flags & kPush)  // the last first: each takes what was in the one before
        times<N>([&](int k) {
            const int at = i + k * W;
            if (t.h[2]) E::put(t.h[2] + at, t.h[1] ? E::get(t.h[1] + at) : zero);
            if (t.h[1]) E::put(t.h[1] + at, t.h[0] ? E::get(t.h[0] + at) : zero);
            if (t.h[0]) E::put(t.h[0] + at, m[k]);
        });
    if (t.prediction) times<N>([&](int k) { E::put(t.prediction + i + k * W, m[k]); });
    times<N>([&](int k) { E::put(t.out + i + k * W, next[k]); });
}

// The last elements of a block go through a padded copy, so that both cases run the same code.
template <class E>
static void update_tail(const StepRow& r, uint32_t terms, const StepTensors<E>& t, int at, int left, vf z,
                        const PerSample& per_sample) {
    using T = typename E::T;
    T pad[9][W] = {};
    StepTensors<E> p = t;
    const auto in = [&](const T* from, int k) -> T* {
        if (!from) return nullptr;
        memcpy(pad[k], from + at, size_t(left) * sizeof(T));
        return pad[k];
    };
    p.out = pad[0];
    if (t.prediction) p.prediction = pad[8];
    p.x = in(t.x, 1);
    p.F = in(t.F, 2);
    p.uncond = in(t.uncond, 3);
    p.log_variance = in(t.log_variance, 4);
    for (int k = 0; k < 3; ++k) p.h[k] = in(t.h[k], 5 + k);
    update_vectors<E, 1>(r, terms, p, 0, &z, per_sample.at(at));
    memcpy(t.out + at, pad[0], size_t(left) * sizeof(T));
    if (t.prediction) memcpy(t.prediction + at, pad[8], size_t(left) * sizeof(T));
    if (r.flags & kPush)
        for (int k = 0; k < 3; ++k)
            if (t.h[k]) memcpy(t.h[k] + at, pad[5 + k], size_t(left) * sizeof(T));
}

// out[i - from] = the value of the sample that element i belongs to, for i in [from, to).
static void spread_per_sample(const float* values, int64_t dim, int64_t from, int64_t to, float* out) {
    int64_t sample = from / dim;
    for (int64_t at = from; at < to; ++sample) {
        const int64_t next = (sample + 1) * dim < to ? (sample + 1) * dim : to;
        const float value = values[sample];
        for (; at < next; ++at) *out++ = value;
    }
}

template <Dtype D>
static void step_blocks(const StepArgs& a, int64_t begin, int64_t end) {
    using E = Element<D>;
    NoiseBlock block(a.seed, a.start, a.dim, a.step, kPurposeStep, 0);
    alignas(64) float scale[4 * kBlockQuads + W], factor[4 * kBlockQuads + W], limit[4 * kBlockQuads + W];
    if (a.uncond_output && !a.guidance_scales)  // one scale for all: filled once
        for (float& value : scale) value = a.guidance_scale;
    const PerSample per_sample{scale, a.factor ? factor : nullptr, a.threshold ? limit : nullptr};
    // The row of ddpm and ddim without clamp or guidance, x <- a x + e F + s z, has a loop without tests.
    const bool plain = (a.terms & ~kTermCin) == (kTermA | kTermE | kTermS) && a.model_output &&
                       !a.uncond_output && !a.log_variance && !a.prediction;
    const vf r = splat(a.row.a), e = splat(a.row.e), s = splat(a.row.s), none[4] = {};
    for (int64_t q = begin; q < end; q += kBlockQuads) {
        const int64_t last = q + kBlockQuads < end ? q + kBlockQuads : end;
        const int64_t from = QuadPosition(q, a.dim).element(a.dim);
        const int count = int(QuadPosition(last, a.dim).element(a.dim) - from);
        const StepTensors<E> t(a, from);
        if (a.uncond_output && a.guidance_scales)
            spread_per_sample(a.guidance_scales, a.dim, from, from + count, scale);
        if (a.factor) spread_per_sample(a.factor, a.dim, from, from + count, factor);
        if (a.threshold) spread_per_sample(a.threshold, a.dim, from, from + count, limit);
        const auto update = [&](int i, vf z) {
            if (i + W <= count)
                update_vectors<E, 1>(a.row, a.terms, t, i, &z, per_sample);
            else if (i < count)
                update_tail<E>(a.row, a.terms, t, i, count - i, z, per_sample);
        };
        if (a.row.s == 0.0f) {
            int i = 0;
            for (; i + 4 * W <= count; i += 4 * W)
                update_vectors<E, 4>(a.row, a.terms, t, i, none, per_sample);
            for (; i < count; i += W) update(i, splat(0.0f));
        } else if (a.noise) {
            const auto* given = static_cast<const typename E::T*>(a.noise) + from;
            int i = 0;
            for (; i + W <= count; i += W) update(i, E::get(given + i));
            typename E::T z[W] = {};
            memcpy(z, given + i, sizeof(z[0]) * size_t(count - i));
            update(i, E::get(z));
        } else {
            block.draw(q, last);
            if (!plain) {
                block.each_normal(q, last, update);
                continue;
            }
            block.each_normal(q, last, [&, out = t.out, x = t.x, F = t.F, count](int i, vf z) {
                if (i + W <= count)
                    E::put(out + i, fma(s, z, fma(e, E::get(F + i), r * E::get(x + i))));
                else
                    update(i, z);
            });
        }
    }
}

// A row of a tensor as floats.
template <class E>
static void to_floats(const typename E::T* from, int count, float* to) {
    int i = 0;
    for (; i + W <= count; i += W) store(to + i, E::get(from + i));
    typename E::T rest[W] = {};
    float last[W];
    memcpy(rest, from + i, size_t(count - i) * sizeof(rest[0]));
    store(last, E::get(rest));
    memcpy(to + i, last, size_t(count - i) * sizeof(float));
}

// Sample by sample, in the order of memory: what the update needs to know of a sample as a whole.
template <Dtype D>
static void statistics_of(const StepArgs& a, int64_t begin, int64_t end, float* scratch, float* factor,
                          float* threshold) {
    using E = Element<D>;
    using T = typename E::T;
    const StepRow& r = a.row;
    const RowGroup g{int(a.dim)};
    const int dim = int(a.dim),
              row = (dim + cpu::kStatisticsPadding - 1) / cpu::kStatisticsPadding * cpu::kStatisticsPadding;
    float *F = scratch, *other = scratch + row;
    for (int64_t i = begin; i < end; ++i) {
        const auto read = [&](const void* tensor, float* to) {
            to_floats<E>(static_cast<const T*>(tensor) + i * a.dim, dim, to);
        };
        if (a.model_output) read(a.model_output, F);
        if (a.uncond_output) {
            const float scale = a.guidance_scales ? a.guidance_scales[i] : a.guidance_scale;
            read(a.uncond_output, other);
            for (int j = 0; j < dim; ++j) F[j] = fma(scale, F[j] - other[j], other[j]);
            if (r.rescale != 0.0f) {
                read(a.model_output, other);
                factor[i] = rescale_factor(g, r.rescale, other, F);
                for (int j = 0; j < dim; ++j) F[j] = factor[i] * F[j];
            }
        }
        if (r.quantile == 0.0f) continue;
        read(a.x, other);
        for (int j = 0; j < dim; ++j) {
            float m = a.terms & kTermPx ? r.p_x * other[j] : 0.0f;
            if (a.terms & kTermPF) m = fma(r.p_F, a.model_output ? F[j] : 0.0f, m);
            other[j] = m;
        }
        threshold[i] = dynamic_threshold(g, r.quantile, r.clip, other);
    }
}

static void step_statistics(const StepArgs& a, int64_t begin, int64_t end, float* scratch, float* factor,
                            float* threshold) {
    switch (a.dtype) {
        case Dtype::kFloat32:
            return statistics_of<Dtype::kFloat32>(a, begin, end, scratch, factor, threshold);
        case Dtype::kBfloat16:
            return statistics_of<Dtype::kBfloat16>(a, begin, end, scratch, factor, threshold);
        case Dtype::kFloat16:
            return statistics_of<Dtype::kFloat16>(a, begin, end, scratch, factor, threshold);
    }
}

static void step(const StepArgs& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
        case Dtype::kFloat32:
            return step_blocks<Dtype::kFloat32>(a, begin, end);
        case Dtype::kBfloat16:
            return step_blocks<Dtype::kBfloat16>(a, begin, end);
        case Dtype::kFloat16:
            return step_blocks<Dtype::kFloat16>(a, begin, end);
    }
}

}  // namespace df::DF_ISA
