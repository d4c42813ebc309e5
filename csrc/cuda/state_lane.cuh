// What a thread of the kernels on tensor cores does to the elements of x that it holds: x, its noise and its
// updates are in float32, in the accumulators' layout. Of a tile of 16 samples and 8 columns thread (g, t)
// of a warp holds rows g and g + 8 and columns 2 t and 2 t + 1: element r is row g + 8 (r / 2), column
// 2 t + r % 2.
#pragma once
#include "chain_args.h"
#include "device.h"
#include "row.cuh"

namespace df::cuda {

static __device__ __attribute__((noinline)) float4 shared_normal4(const RoundKeys& keys, uint32_t quad,
                                                                  uint32_t word, uint32_t low,
                                                                  uint32_t high) {
    float z[4];
    normal4<ScalarLanes>(keys, quad, word, low, high, z);
    return make_float4(z[0], z[1], z[2], z[3]);
}

// A row's update of four elements; history: 3 values of each, kThreads apart, or null
template <int kThreads>
__device__ __forceinline__ void update_four(const StepRow& row, uint32_t terms, const float (&F)[4],
                                            const float (&z)[4], float (&x)[4], float* history) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        float* h = history + 3 * r * kThreads;
        Element e{x[r], {}};
        if (history)
            for (int k = 0; k < 3; ++k) e.h[k] = h[k * kThreads];
        update(row, terms, e, F[r], 0.0f, z[r]);
        x[r] = e.x;
        if (row.flags & kPush)
            for (int k = 0; k < 3; ++k) h[k * kThreads] = e.h[k];
    }
}

template <int kThreads>
static __device__ __attribute__((noinline)) float4 shared_update_four(const StepRow& row, uint32_t terms,
                                                                      float4 F, float4 z, float4 x,
                                                                      float* history) {
    float v[4] = {x.x, x.y, x.z, x.w};
    update_four<kThreads>(row, terms, {F.x, F.y, F.z, F.w}, {z.x, z.y, z.z, z.w}, v, history);
    return make_float4(v[0], v[1], v[2], v[3]);
}

// kThreads: of the block; between two values of a thread's history. Tiles are named by their first sample and
// by their eight columns, c.
template <int kThreads>
struct StateLane {
    const ChainArgs& a;
    const RoundKeys& device_keys;
    const bool has_history;

    int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;

    __device__ int64_t sample(int64_t first, int half) const { return first + g + 8 * half; }
    __device__ bool valid(int64_t first, int half) const { return sample(first, half) < a.n; }
    __device__ int column(int c, int r) const { return 8 * c + 2 * t + r % 2; }

    // Whether element r is one of x; f(r, index in an array of shape (n, dim), column) for those that are
    template <class Each>
    __device__ void each(int64_t first, int c, Each f) const {
#pragma unroll
        for (int r = 0; r < 4; ++r)
            if (valid(first, r / 2) && column(c, r) < a.program.dim)
                f(r, sample(first, r / 2) * a.program.dim + column(c, r), column(c, r));
    }

    // ---- noise

    // The normals of a quad: of row g of a tile for even t, of row g + 8 for odd.
    // often: in the chain's loop, where the code is not shared and its keys come as constants.
    template <bool often>
    __device__ void draw(uint32_t word, int64_t first, int quad, float (&v)[4]) const {
        const uint64_t index = a.start + uint64_t(sample(first, t % 2));
        const uint32_t low = uint32_t(index), high = uint32_t(index >> 32);
        if (often && !a.device_seed) return normal4<ScalarLanes>(a.keys, uint32_t(quad), word, low, high, v);
        const float4 z =
            shared_normal4(a.device_seed ? device_keys : a.keys, uint32_t(quad), word, low, high);
        v[0] = z.x;
        v[1] = z.y;
        v[2] = z.z;
        v[3] = z.w;
    }

    __device__ int quad(int c) const { return 2 * c + t / 2; }  // the one that holds this thread's columns

    // To each thread the normals of its four elements: neighbours swap halves of their quads. `component` is
    // not 0 in one and two dimensions only, where thread 0 of four holds all elements.
    __device__ void spread(const float (&v)[4], uint32_t component, float (&z)[4]) const {
        const float low0 = component == 0 ? v[0] : component == 1 ? v[1] : component == 2 ? v[2] : v[3];
        const float low1 = component < 2 ? v[1] : v[3];
        const bool odd = t % 2;
        const float other0 = __shfl_xor_sync(~0u, odd ? low0 : v[2], 1);
        const float other1 = __shfl_xor_sync(~0u, odd ? low1 : v[3], 1);
        z[0] = odd ? other0 : low0;
        z[1] = odd ? other1 : low1;
        z[2] = odd ? v[2] : other0;
        z[3] = odd ? v[3] : other1;
    }

    __device__ void given_noise(int i, int64_t first, int c, float (&z)[4]) const {
        each(first, c, [&](int r, int64_t at, int) { z[r] = a.noise[i * a.n * a.program.dim + at]; });
    }

    // ---- x

    // x_T, given or drawn; 0 beyond the columns there are. A sample whose label is out of range is NaN.
    __device__ void begin(int64_t first, int c, float (&x)[4]) const {
        float v[4] = {};
        if (!a.x_T) draw<false>(uint32_t(kPurposeInitial) << 28, first, quad(c), v);
        spread(v, 0, x);
        if (a.x_T) each(first, c, [&](int r, int64_t at, int) { x[r] = a.x_T[at]; });
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const bool labelled = a.labels && valid(first, r / 2);
            if (labelled && uint32_t(a.labels[sample(first, r / 2)]) >= uint32_t(a.program.n_classes))
                x[r] = ScalarLanes::as_float(0x7fc00000u);
            if (column(c, r) >= a.program.dim) x[r] = 0.0f;
        }
    }

    // The class of a sample; class 0 for a label that is out of range
    __device__ int32_t label(int64_t s) const {
        if (!a.labels || s >= a.n) return a.label;
        return uint32_t(a.labels[s]) < uint32_t(a.program.n_classes) ? a.labels[s] : 0;
    }

    // s of F = F_u + s (F_c - F_u), for element r
    __device__ float guidance(const StepRow& row, int64_t first, int r) const {
        return a.guidance && valid(first, r / 2) ? a.guidance[sample(first, r / 2)] : row.guidance;
    }

    // Fixed coordinates take their value, at the noise level of row i, which is about to evaluate x.
    __device__ void fix(int i, int64_t first, int c, float signal, float noise, float (&x)[4]) const {
        float z[4] = {};
        if (noise != 0.0f) {
            float v[4];
            draw<false>(uint32_t(i) | uint32_t(kPurposeForward) << 28, first, quad(c), v);
            spread(v, 0, z);
        }
        each(first, c, [&](int r, int64_t, int j) {
            if (a.fixed_mask[j])
                x[r] = __fmaf_rn(noise, z[r], signal * a.fixed[sample(first, r / 2) * a.fixed_stride + j]);
        });
    }

    // The row's update; z: this step's normals, or unused. shared: by code that is there once
    template <bool shared>
    __device__ void update_tile(const StepRow& row, int c, const float (&F)[4], const float (&z)[4],
                                float (&x)[4], float* history) const {
        float* h = has_history ? history : nullptr;
        if constexpr (shared) {
            const float4 next = shared_update_four<kThreads>(
                row, a.program.terms, make_float4(F[0], F[1], F[2], F[3]),
                make_float4(z[0], z[1], z[2], z[3]), make_float4(x[0], x[1], x[2], x[3]), h);
            x[0] = next.x;
            x[1] = next.y;
            x[2] = next.z;
            x[3] = next.w;
        } else {
            update_four<kThreads>(row, a.program.terms, F, z, x, h);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r)
            if (column(c, r) >= a.program.dim) x[r] = 0.0f;
    }

    __device__ void write(float* rows, int64_t first, int c, const float (&x)[4]) const {
        each(first, c, [&](int r, int64_t at, int) { rows[at] = x[r]; });
    }
};

}  // namespace df::cuda
