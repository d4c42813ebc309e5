// One row's update on tensors in memory, (n, dim) with any dim: the same terms in the same order, and the
// same noise bits, as the chain. A block of noise is drawn into the cache in element order, then one pass
// updates the block.
#pragma once
#include "chain.h"

namespace df::DF_ISA {

using cpu::Dtype;
using cpu::NoiseArgs;
using cpu::StepArgs;

constexpr int kBlockQuads = 512;  // a noise block: at most 2048 floats, 8 KB

// Position of a quad: its index inside the sample, and the sample relative to `start`.
struct QuadPosition {
    int64_t sample, quad;
    QuadPosition(int64_t index, int64_t dim)
        : sample(index / ((dim + 3) / 4)), quad(index % ((dim + 3) / 4)) {}
    int64_t element(int64_t dim) const { return sample * dim + 4 * quad; }
};

constexpr int kWide = 3;            // vectors of quads drawn side by side
constexpr int kAtOnce = kWide * W;  // quads drawn side by side

// The counters of kAtOnce consecutive quads, moved on as many at a time without a division.
struct QuadCursor {
    vu quad[kWide], sample[kWide];  // sample relative to the first one's
    const vu first_lo, first_hi;
    const uint32_t per_sample, quad_stride, sample_stride;

    QuadCursor(QuadPosition at, uint64_t start, int64_t dim)
        : first_lo(splat_bits(uint32_t(start + uint64_t(at.sample)))),
          first_hi(splat_bits(uint32_t((start + uint64_t(at.sample)) >> 32))),
          per_sample(uint32_t((dim + 3) / 4)),
          quad_stride(kAtOnce % per_sample),
          sample_stride(kAtOnce / per_sample) {
        uint32_t quads[kAtOnce], samples[kAtOnce];
        for (int l = 0; l < kAtOnce; ++l) {
            const uint64_t index = uint64_t(at.quad) + uint64_t(l);
            quads[l] = uint32_t(index % per_sample);
            samples[l] = uint32_t(index / per_sample);
        }
        memcpy(quad, quads, sizeof(quad));
        memcpy(sample, samples, sizeof(sample));
    }

    void counters(WideLanes<kWide>::U& q, WideLanes<kWide>::U& lo, WideLanes<kWide>::U& hi) const {
        for (int k = 0; k < kWide; ++k) {
            q.v[k] = quad[k];
            lo.v[k] = first_lo + sample[k];
            hi.v[k] = first_hi + (vu(lo.v[k] < first_lo) & splat_bits(1));  // the carry
        }
    }

    void advance() {
        for (int k = 0; k < kWide; ++k) {
            quad[k] += splat_bits(quad_stride);
            sample[k] += splat_bits(sample_stride);
            const vu wrapped = vu(quad[k] >= splat_bits(per_sample));
            quad[k] -= wrapped & splat_bits(per_sample);
            sample[k] -= wrapped;  // minus (-1)
        }
    }
};

// One or two elements per sample: only the Box-Muller pair that this step uses. z: kAtOnce rows of 1 or 2
// floats.
DF_INLINE void narrow_normals(uint64_t seed, uint32_t word, uint32_t component, const WideLanes<kWide>::U& lo,
                              const WideLanes<kWide>::U& hi, int64_t dim, float* z) {
    using L = WideLanes<kWide>;
    L::U c[4] = {L::splat_bits(0), L::splat_bits(word), lo, hi};
    philox4x32_10<L>(c, uint32_t(seed), uint32_t(seed >> 32));
    L::F n[2];
    if (component < 2)
        box_muller<L>(c[0], c[1], n[0], n[1]);
    else
        box_muller<L>(c[2], c[3], n[0], n[1]);
    for (int k = 0; k < kWide; ++k) {
        const vf pair[2] = {n[0].v[k], n[1].v[k]};
        if (dim == 1)
            store(z + k * W, component & 1 ? pair[1] : pair[0]);
        else
            interleave<2>(pair, z + 2 * k * W);
    }
}

// Fills z with the normals of quads [begin, end), elements contiguous as in memory; z has room for 4 kAtOnce
// floats beyond. ahead(i, n) is called before elements i .. i + n - 1 are drawn: some 100 ns in which memory
// can be fetched.
template <class Ahead>
static void fill_normals(uint64_t seed, uint64_t start, uint32_t word, uint32_t component, uint32_t substream,
                         int64_t dim, int64_t begin, int64_t end, float* z, Ahead ahead) {
    using L = WideLanes<kWide>;
    const QuadPosition first(begin, dim);
    QuadCursor at(first, start, dim);
    const uint32_t skipped = uint32_t(4 * first.quad);  // elements of the first sample before `begin`
    const int64_t width = dim < 4 ? dim : 4;            // floats of a quad, at most
    for (int64_t q = begin; q < end; q += kAtOnce, at.advance()) {
        ahead((q - begin) * width, kAtOnce * width);
        L::U quad, lo, hi;
        at.counters(quad, lo, hi);
        hi = hi | L::splat_bits(substream << 16);
        if (dim <= 2) {
            narrow_normals(seed, word, component, lo, hi, dim, z + (q - begin) * dim);
            continue;
        }
        L::F n[4];
        normal4<L>(seed, quad, word, lo, hi, n);
        for (int k = 0; k < kWide; ++k) {
            const vf rows[4] = {n[0].v[k], n[1].v[k], n[2].v[k], n[3].v[k]};
            if (dim == 3) {
                interleave<3>(rows, z + 3 * (q - begin + k * W));
            } else if (dim % 4 == 0) {
                interleave<4>(rows, z + 4 * (q - begin + k * W));
            } else {  // a sample's short last quad is overwritten by the next sample's first
                float quads[4 * W];
                interleave<4>(rows, quads);
                int32_t element[W];
                const vu position = at.sample[k] * splat_bits(uint32_t(dim)) + at.quad[k] * splat_bits(4);
                const vu relative = position - splat_bits(skipped);
                memcpy(element, &relative, sizeof(element));
                for (int l = 0; l < W; ++l) memcpy(z + element[l], quads + 4 * l, 16);
            }
        }
    }
}

static void noise(const NoiseArgs& a, int64_t begin, int64_t end) {
    uint32_t component;
    const uint32_t word = step_word(a.step, a.purpose, uint32_t(a.dim), component);
    alignas(64) float z[4 * kBlockQuads + 4 * kAtOnce];
    for (int64_t q = begin; q < end; q += kBlockQuads) {
        const int64_t last = q + kBlockQuads < end ? q + kBlockQuads : end;
        const int64_t from = QuadPosition(q, a.dim).element(a.dim),
                      to = QuadPosition(last, a.dim).element(a.dim);
        fill_normals(a.seed, a.start, word, component, a.substream, a.dim, q, last, z,
                     [](int64_t, int64_t) {});
        memcpy(a.out + from, z, size_t(to - from) * sizeof(float));
    }
}

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
    T* h[3];

    StepTensors(const StepArgs& a, int64_t at)
        : out(static_cast<T*>(a.out) + at),
          x(static_cast<const T*>(a.x) + at),
          F(a.model_output ? static_cast<const T*>(a.model_output) + at : nullptr),
          uncond(a.uncond_output ? static_cast<const T*>(a.uncond_output) + at : nullptr),
          log_variance(a.log_variance ? static_cast<const T*>(a.log_variance) + at : nullptr) {
        for (int i = 0; i < 3; ++i) h[i] = a.history[i] ? static_cast<T*>(a.history[i]) + at : nullptr;
    }
};

// W elements of the general update. scale holds the guidance scale of each element's sample.
template <class E>
DF_INLINE void update_vector(const StepRow& r, uint32_t terms, const StepTensors<E>& t, int i, const float* z,
                             const float* scale) {
    const vf zero = splat(0.0f), x = E::get(t.x + i);
    vf F = t.F ? E::get(t.F + i) : zero;
    if (t.uncond) {
        const vf u = E::get(t.uncond + i);
        F = fma(load(scale + i), F - u, u);
    }
    vf m = zero, next = terms & kTermA ? splat(r.a) * x : zero;
    if (terms & (kTermB | kTermPush)) {
        if (terms & kTermPx) m = splat(r.p_x) * x;
        if (terms & kTermPF) m = fma(splat(r.p_F), F, m);
        if (terms & kTermClip) m = max_keep_nan(splat(-r.clip), min_keep_nan(splat(r.clip), m));
        if (terms & kTermB) next = fma(splat(r.b), m, next);
    }
    if (terms & kTermE) next = fma(splat(r.e), F, next);
    const vf h1 = t.h[0] ? E::get(t.h[0] + i) : zero, h2 = t.h[1] ? E::get(t.h[1] + i) : zero;
    if (terms & kTermC1) next = fma(splat(r.c1), h1, next);
    if (terms & kTermC2) next = fma(splat(r.c2), h2, next);
    if (terms & kTermC3) next = fma(splat(r.c3), E::get(t.h[2] + i), next);
    if (z) {
        const vf s = t.log_variance ? exp(splat(0.5f) * E::get(t.log_variance + i)) : splat(r.s);
        next = fma(s, load(z + i), next);
    }
    if (r.flags & kPush) {
        if (t.h[2]) E::put(t.h[2] + i, h2);
        if (t.h[1]) E::put(t.h[1] + i, h1);
        if (t.h[0]) E::put(t.h[0] + i, m);
    }
    E::put(t.out + i, next);
}

// The last count % W elements go through a padded copy, so that both cases run the same code.
template <class E>
static void update_tail(const StepRow& r, uint32_t terms, const StepTensors<E>& t, int at, int left,
                        const float* z, const float* scale) {
    using T = typename E::T;
    T pad[8][W] = {};
    StepTensors<E> p = t;
    const auto in = [&](const T* from, int k) -> T* {
        if (!from) return nullptr;
        memcpy(pad[k], from + at, size_t(left) * sizeof(T));
        return pad[k];
    };
    p.out = pad[0];
    p.x = in(t.x, 1);
    p.F = in(t.F, 2);
    p.uncond = in(t.uncond, 3);
    p.log_variance = in(t.log_variance, 4);
    for (int k = 0; k < 3; ++k) p.h[k] = in(t.h[k], 5 + k);
    update_vector<E>(r, terms, p, 0, z ? z + at : nullptr, scale ? scale + at : nullptr);
    memcpy(t.out + at, pad[0], size_t(left) * sizeof(T));
    if (r.flags & kPush)
        for (int k = 0; k < 3; ++k)
            if (t.h[k]) memcpy(t.h[k] + at, pad[5 + k], size_t(left) * sizeof(T));
}

template <Dtype D>
static void step_blocks(const StepArgs& a, int64_t begin, int64_t end) {
    using E = Element<D>;
    const bool noisy = a.row.s != 0.0f;
    uint32_t component;
    const uint32_t word = step_word(a.step, kPurposeStep, uint32_t(a.dim), component);
    alignas(64) float z[4 * kBlockQuads + 4 * kAtOnce], scale[4 * kBlockQuads + W];
    for (int64_t q = begin; q < end; q += kBlockQuads) {
        const int64_t last = q + kBlockQuads < end ? q + kBlockQuads : end;
        const int64_t from = QuadPosition(q, a.dim).element(a.dim);
        const int count = int(QuadPosition(last, a.dim).element(a.dim) - from);
        const StepTensors<E> t(a, from);
        if (noisy && a.noise) {
            const auto* given = static_cast<const typename E::T*>(a.noise) + from;
            int i = 0;
            for (; i + W <= count; i += W) store(z + i, E::get(given + i));
            if (i < count) {
                typename E::T pad[W] = {};
                memcpy(pad, given + i, size_t(count - i) * sizeof(pad[0]));
                store(z + i, E::get(pad));
            }
        } else if (noisy) {
            fill_normals(a.seed, a.start, word, component, 0, a.dim, q, last, z, [&t](int64_t i, int64_t n) {
                for (size_t byte = 0; byte < size_t(n) * sizeof(*t.x); byte += 64) {
                    __builtin_prefetch(reinterpret_cast<const char*>(t.x + i) + byte);
                    if (t.F) __builtin_prefetch(reinterpret_cast<const char*>(t.F + i) + byte);
                }
            });
        }
        if (a.uncond_output)
            for (int i = 0; i < count; ++i)
                scale[i] = a.guidance_scale[(from + i) / a.dim * a.guidance_stride];
        const float* zp = noisy ? z : nullptr;
        // The plain ddpm/ddim row without history or clamp has its own loop: everything known, nothing
        // tested.
        constexpr uint32_t kPlain = kTermA | kTermE | kTermS | kTermCin;
        const bool plain =
            (a.terms & kTermA) && (a.terms & kTermE) && !(a.terms & ~kPlain) && !a.log_variance && t.F;
        int i = 0;
        if (plain && !t.uncond && zp) {
            const vf ra = splat(a.row.a), re = splat(a.row.e), rs = splat(a.row.s);
            for (; i + W <= count; i += W)
                E::put(t.out + i, fma(rs, load(z + i), fma(re, E::get(t.F + i), ra * E::get(t.x + i))));
        } else {
            for (; i + W <= count; i += W) update_vector<E>(a.row, a.terms, t, i, zp, scale);
        }
        if (i < count) update_tail<E>(a.row, a.terms, t, i, count - i, zp, scale);
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
