// The noise of tensors in memory, (n, dim) with any dim: drawn block by block, words first, then normals.
#pragma once
#include "statistics.h"
#include "tile_ops.h"
#include "wide.h"

namespace df::DF_ISA {

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
        uint32_t* to = words;
        const auto put = [&](const L::U* c) {
            for (int k = 0; k < kWide; ++k)
                for (int i = 0; i < 4; ++i, to += W) store_bits(to, c[i].v[k]);
        };
        L::U c[4];
        const uint64_t first = start + uint64_t(begin), last = start + uint64_t(end) + kAtOnce;
        if (dim <= 4 && first >> 32 == last >> 32) {
            L::U sample;
            for (int k = 0; k < kWide; ++k)
                sample.v[k] =
                    splat_bits(uint32_t(first) + k * W) + (dim == 4 ? transposed_index() : lane_index());
            for (int64_t q = begin; q < end; q += kAtOnce) {
                philox_of_samples<L>(c, keys, 0, word, sample, uint32_t(first >> 32) | substream << 16);
                put(c);
                sample = sample + L::splat_bits(kAtOnce);
            }
            return;
        }
        QuadCursor at(QuadPosition(begin, dim), start, dim);
        for (int64_t q = begin; q < end; q += kAtOnce, at.advance()) {
            L::U quad, lo, hi;
            at.counters(quad, lo, hi);
            c[0] = quad;
            c[1] = L::splat_bits(word);
            c[2] = lo;
            c[3] = hi | L::splat_bits(substream << 16);
            philox4x32_10<L>(c, keys);
            put(c);
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
    // C normals of each quad: one or two elements a sample take a part of what a call gives. kWide vectors
    // side by side, as the words were drawn: a Box-Muller transform is one long chain of dependent
    // operations.
    template <int C, class Use>
    DF_INLINE void each_of(int vectors, Use use) {
        using L = WideLanes<kWide>;
        const uint32_t* from = words + (C <= 2 ? component / 2 * 2 * W : 0);
        for (int k = 0; k < vectors; k += kWide, from += 4 * kAtOnce) {
            const auto word_of = [from](int i) {
                L::U w;
#pragma GCC unroll 3
                for (int v = 0; v < kWide; ++v) w.v[v] = load_bits(from + (4 * v + i) * W);
                return w;
            };
            L::F a, b, c, d;
            box_muller<L>(word_of(0), word_of(1), a, b);
            if (C > 2) box_muller<L>(word_of(2), word_of(3), c, d);
#pragma GCC unroll 3
            for (int v = 0; v < kWide; ++v) {
                vf z[4];
                if constexpr (C == 1)
                    z[0] = component & 1 ? b.v[v] : a.v[v];
                else if constexpr (C == 2)
                    interleave<2>({a.v[v], b.v[v]}, z);
                else if constexpr (C == 3)
                    interleave<3>({a.v[v], b.v[v], c.v[v]}, z);
                else
                    transpose4({a.v[v], b.v[v], c.v[v], d.v[v]}, z);
#pragma GCC unroll 4
                for (int i = 0; i < C; ++i) use((C * (k + v) + i) * W, z[i]);
            }
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

}  // namespace df::DF_ISA
