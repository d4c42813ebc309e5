// One row's update on tensors in memory, (n, dim) with any dim: the same terms in the same order, and the
// same noise bits, as the chain.
//
// Block by block: first the random words of a block of quads, drawn into the cache; then one pass that turns
// them into normals and uses them. Philox and Box-Muller are each a loop of independent short bodies this
// way, which the processor overlaps, and the loads and stores of the update run under the arithmetic of
// Box-Muller: on one core 1.25 times the speed of drawing the normals first (dims 3 and 64, from memory).
#pragma once
#include "chain.h"

namespace df::DF_ISA {

using cpu::Dtype;
using cpu::NoiseArgs;
using cpu::StepArgs;

constexpr int kBlockQuads = 480;    // at most 1920 elements, their words 8 KB
constexpr int kWide = 3;            // vectors of quads drawn side by side
constexpr int kAtOnce = kWide * W;  // quads drawn side by side

// Position of a quad: its index inside the sample, and the sample relative to `start`.
struct QuadPosition {
    int64_t sample, quad;
    QuadPosition(int64_t index, int64_t dim)
        : sample(index / ((dim + 3) / 4)), quad(index % ((dim + 3) / 4)) {}
    int64_t element(int64_t dim) const { return sample * dim + 4 * quad; }
};

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
            // Whole quads are laid out by transpose4, which wants its lanes in this order.
            const int lane = dim > 3 ? l / W * W + transposed_lane(l % W) : l;
            const uint64_t index = uint64_t(at.quad) + uint64_t(lane);
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

// What the noise of a tensor is drawn from, and the words of one block.
struct NoiseBlock {
    const RoundKeys keys;
    const uint64_t start;
    const int64_t dim;
    const uint32_t substream;
    uint32_t word, component;
    alignas(64) uint32_t words[4 * (kBlockQuads + kAtOnce)];  // per vector of quads its four words

    NoiseBlock(uint64_t seed, uint64_t start_, int64_t dim_, uint32_t step, Purpose purpose, uint32_t sub)
        : keys(seed), start(start_), dim(dim_), substream(sub) {
        word = step_word(step, purpose, uint32_t(dim), component);
    }

    // The words of quads [begin, end), of which there are at most kBlockQuads.
    void draw(int64_t begin, int64_t end) {
        using L = WideLanes<kWide>;
        QuadCursor at(QuadPosition(begin, dim), start, dim);
        uint32_t* to = words;
        for (int64_t q = begin; q < end; q += kAtOnce, at.advance()) {
            L::U c[4], quad, lo, hi;
            at.counters(quad, lo, hi);
            c[0] = quad;
            c[1] = L::splat_bits(word);
            c[2] = lo;
            c[3] = hi | L::splat_bits(substream << 16);
            philox4x32_10<L>(c, keys);
            for (int k = 0; k < kWide; ++k)
                for (int i = 0; i < 4; ++i, to += W) memcpy(to, &c[i].v[k], sizeof(vu));
        }
    }

    // use(i, z) for each vector z of the block's normals in the order of memory, i its first element. The
    // last vectors may lie beyond the block's end.
    template <class Use>
    DF_INLINE void each_normal(int64_t begin, int64_t end, Use use) {
        const int vectors = int((end - begin + W - 1) / W);
        if (dim == 1) return each_of<1>(vectors, use);
        if (dim == 2) return each_of<2>(vectors, use);
        if (dim == 3) return each_of<3>(vectors, use);
        if (dim % 4 == 0) return each_of<4>(vectors, use);
        // A sample's short last quad is overwritten by the next sample's first.
        alignas(64) float z[4 * (kBlockQuads + kAtOnce)];
        const int64_t last = (dim + 3) / 4 - 1;
        int64_t quad = QuadPosition(begin, dim).quad;
        float* to = z;
        each_of<4>(vectors, [&](int, vf four) {
            float quads[W];
            store(quads, four);
            for (int l = 0; l < W; l += 4) {
                memcpy(to, quads + l, 16);
                to += quad == last ? dim - 4 * last : 4;
                quad = quad == last ? 0 : quad + 1;
            }
        });
        for (int i = 0; z + i < to; i += W) use(i, load(z + i));
    }

  private:
    // C normals of each quad: one or two elements a sample take a part of what a call gives.
    template <int C, class Use>
    DF_INLINE void each_of(int vectors, Use use) {
        using L = VectorLanes;
        for (int k = 0; k < vectors; ++k) {
            const uint32_t* from = words + 4 * W * k + (C <= 2 ? component / 2 * 2 * W : 0);
            vu w[4];
            memcpy(w, from, (C <= 2 ? 2 : 4) * sizeof(vu));
            vf n[4], z[4];
            box_muller<L>(w[0], w[1], n[0], n[1]);
            if (C > 2) box_muller<L>(w[2], w[3], n[2], n[3]);
            if constexpr (C == 1)
                z[0] = component & 1 ? n[1] : n[0];
            else if constexpr (C == 4)
                transpose4(n, z);
            else
                interleave<C>(n, z);
            for (int i = 0; i < C; ++i) use((C * k + i) * W, z[i]);
        }
    }
};

static void noise(const NoiseArgs& a, int64_t begin, int64_t end) {
    NoiseBlock block(a.seed, a.start, a.dim, a.step, a.purpose, a.substream);
    for (int64_t q = begin; q < end; q += kBlockQuads) {
        const int64_t last = q + kBlockQuads < end ? q + kBlockQuads : end;
        const int64_t from = QuadPosition(q, a.dim).element(a.dim);
        const int count = int(QuadPosition(last, a.dim).element(a.dim) - from);
        block.draw(q, last);
        block.each_normal(q, last, [out = a.out + from, count](int i, vf z) {
            if (i + W <= count)
                store(out + i, z);
            else if (i < count)
                memcpy(out + i, &z, size_t(count - i) * sizeof(float));
        });
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

// W elements of the update. scale holds the guidance scale of each element's sample; z is looked at where s
// is not 0.
template <class E>
DF_INLINE void update_vector(const StepRow& r, uint32_t terms, const StepTensors<E>& t, int i, vf z,
                             const float* scale) {
    const vf zero = splat(0.0f), x = E::get(t.x + i);
    vf F = t.F ? E::get(t.F + i) : zero;
    if (t.uncond) {
        const vf u = E::get(t.uncond + i);
        F = fma(load(scale + i), F - u, u);
    }
    vf m = zero, next = terms & kTermA ? splat(r.a) * x : zero;
    if (terms & (kTermB | kTermPush) || t.prediction) {
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
    if (r.s != 0.0f) {
        const vf s = t.log_variance ? exp(splat(0.5f) * E::get(t.log_variance + i)) : splat(r.s);
        next = fma(s, z, next);
    }
    if (r.flags & kPush) {
        if (t.h[2]) E::put(t.h[2] + i, h2);
        if (t.h[1]) E::put(t.h[1] + i, h1);
        if (t.h[0]) E::put(t.h[0] + i, m);
    }
    if (t.prediction) E::put(t.prediction + i, m);
    E::put(t.out + i, next);
}

// The last elements of a block go through a padded copy, so that both cases run the same code.
template <class E>
static void update_tail(const StepRow& r, uint32_t terms, const StepTensors<E>& t, int at, int left, vf z,
                        const float* scale) {
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
    update_vector<E>(r, terms, p, 0, z, scale + at);
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
    alignas(64) float scale[4 * kBlockQuads + W];  // one scale for all: filled once
    if (a.uncond_output && !a.guidance_stride)
        for (float& value : scale) value = *a.guidance_scale;
    // The row of ddpm and ddim without clamp or guidance, x <- a x + e F + s z, has a loop without tests.
    const bool plain = (a.terms & ~kTermCin) == (kTermA | kTermE | kTermS) && a.model_output &&
                       !a.uncond_output && !a.log_variance && !a.prediction;
    const vf r = splat(a.row.a), e = splat(a.row.e), s = splat(a.row.s);
    for (int64_t q = begin; q < end; q += kBlockQuads) {
        const int64_t last = q + kBlockQuads < end ? q + kBlockQuads : end;
        const int64_t from = QuadPosition(q, a.dim).element(a.dim);
        const int count = int(QuadPosition(last, a.dim).element(a.dim) - from);
        const StepTensors<E> t(a, from);
        if (a.uncond_output && a.guidance_stride)
            spread_per_sample(a.guidance_scale, a.dim, from, from + count, scale);
        const auto update = [&](int i, vf z) {
            if (i + W <= count)
                update_vector<E>(a.row, a.terms, t, i, z, scale);
            else if (i < count)
                update_tail<E>(a.row, a.terms, t, i, count - i, z, scale);
        };
        if (a.row.s == 0.0f) {
            for (int i = 0; i < count; i += W) update(i, splat(0.0f));
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
