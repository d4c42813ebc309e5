// One row's update on tensors in memory: the same terms in the same order as cpu/step.h, and the same noise.
//
// A thread has one pack or one quad. It reads all that it needs first, so that the latency of memory passes
// under the arithmetic of Philox and Box-Muller, and writes last, so that out may be x.
#pragma once
#include "../cpu/functions.h"
#include "api.h"
#include "elements.cuh"

namespace df::cuda {

struct StepParams {
    StepArgs args;
    RoundKeys keys;  // of args.seed
    Draw draw;
    Replay replay;
    Cut cut;
};

__device__ __forceinline__ float clamped(float m, float limit) {
    return max_keep_nan(vf(-limit), min_keep_nan(vf(limit), vf(m))).v;
}

// The normals of a thread's elements. Only the full kernel reads a seed from memory, for round keys made in
// the kernel cost it some 35 instructions.
template <bool Full, int N>
__device__ __forceinline__ void draw_normals(const StepParams& p, const Elements<N>& at, float z[N]) {
    if constexpr (Full) {
        Draw draw = p.draw;
        if (p.replay.step) draw.move_to(*p.replay.step);
        draw.normals(RoundKeys(p.replay.seed ? *p.replay.seed : p.args.seed), at, z);
    } else {
        p.draw.normals(p.keys, at, z);
    }
}

// Full: history, prediction, log_variance, statistics, noise that is given, and replays; without, x and the
// network's outputs alone, in fewer registers.
template <bool Full, class Access>
__device__ __forceinline__ void advance(const StepParams& p, const Access& to) {
    constexpr int N = Access::kCount, kQuads = N / 4;
    using Raw = typename Access::Raw;
    const StepArgs& a = p.args;
    const StepRow& r = a.row;
    const bool noisy = r.s != 0.0f, pushes = Full && (r.flags & kPush);

    const Raw raw_x = to.load(a.x);
    Raw raw_F{}, raw_u{}, raw_v{}, raw_z{}, raw_h[3]{};
    float scale[kQuads] = {}, factor[kQuads] = {}, limit[kQuads] = {};
    if (a.model_output) raw_F = to.load(a.model_output);
    if (a.uncond_output) {
        raw_u = to.load(a.uncond_output);
#pragma unroll
        for (int k = 0; k < kQuads; ++k)
            scale[k] = a.guidance_scales ? a.guidance_scales[to.at.sample[k]] : a.guidance_scale;
    }
    if constexpr (Full) {
        const bool reads[3] = {bool(a.terms & kTermC1) || (pushes && a.history[1]),
                               bool(a.terms & kTermC2) || (pushes && a.history[2]), bool(a.terms & kTermC3)};
#pragma unroll
        for (int j = 0; j < 3; ++j)
            if (reads[j] && a.history[j]) raw_h[j] = to.load(a.history[j]);
        if (noisy && a.log_variance) raw_v = to.load(a.log_variance);
        if (noisy && a.noise) raw_z = to.load(a.noise);
#pragma unroll
        for (int k = 0; k < kQuads; ++k) {
            if (a.factor) factor[k] = a.factor[to.at.sample[k]];
            if (a.threshold) limit[k] = a.threshold[to.at.sample[k]];
        }
    }

    float z[N] = {};
    if (noisy) {
        if (Full && a.noise)
            Access::unpack(raw_z, z);
        else
            draw_normals<Full>(p, to.at, z);
    }

    float x[N], F[N], m[N], next[N], other[N];
    const auto each = [](auto work) {
#pragma unroll
        for (int k = 0; k < N; ++k) work(k);
    };
    Access::unpack(raw_x, x);
    Access::unpack(raw_F, F);
    if (a.uncond_output) {
        Access::unpack(raw_u, other);
        each([&](int k) { F[k] = ScalarLanes::fma(scale[k / 4], F[k] - other[k], other[k]); });
        if (Full && a.factor) each([&](int k) { F[k] = factor[k / 4] * F[k]; });
    }
    each([&](int k) { m[k] = 0.0f, next[k] = a.terms & kTermA ? r.a * x[k] : 0.0f; });
    if (a.terms & (kTermB | kTermPush) || (Full && a.prediction)) {
        if (a.terms & kTermPx) each([&](int k) { m[k] = r.p_x * x[k]; });
        if (a.terms & kTermPF) each([&](int k) { m[k] = ScalarLanes::fma(r.p_F, F[k], m[k]); });
        if (Full && a.threshold)
            each([&](int k) { m[k] = clamped(m[k], limit[k / 4]) / limit[k / 4]; });
        else if (a.terms & kTermClip)
            each([&](int k) { m[k] = clamped(m[k], r.clip); });
        if (a.terms & kTermB) each([&](int k) { next[k] = ScalarLanes::fma(r.b, m[k], next[k]); });
    }
    if (a.terms & kTermE) each([&](int k) { next[k] = ScalarLanes::fma(r.e, F[k], next[k]); });
    if constexpr (Full) {
        const float weights[3] = {r.c1, r.c2, r.c3};
#pragma unroll
        for (int j = 0; j < 3; ++j)
            if (a.terms & (kTermC1 << j)) {
                Access::unpack(raw_h[j], other);
                each([&](int k) { next[k] = ScalarLanes::fma(weights[j], other[k], next[k]); });
            }
    }
    if (noisy) {
        if (Full && a.log_variance) {
            Access::unpack(raw_v, other);
            each([&](int k) { next[k] = ScalarLanes::fma(exp(vf(0.5f * other[k])).v, z[k], next[k]); });
        } else {
            each([&](int k) { next[k] = ScalarLanes::fma(r.s, z[k], next[k]); });
        }
    }

    if constexpr (Full) {
        if (pushes) {
            if (a.history[2]) to.store(a.history[2], raw_h[1]);
            if (a.history[1]) to.store(a.history[1], raw_h[0]);
            if (a.history[0]) to.store(a.history[0], Access::pack(m));
        }
        if (a.prediction) to.store(a.prediction, Access::pack(m));
    }
    to.store(a.out, Access::pack(next));
}

template <Dtype D, bool Full>
__global__ void __launch_bounds__(kThreads) step_kernel(const __grid_constant__ StepParams p) {
    using E = Format<D>;
    const uint64_t item = item_index();
    if (item < p.cut.packs)
        advance<Full>(p, PackAccess<E>{pack_at<E::kPack>(item, p.cut.quads, p.args.dim)});
    else if (item < p.cut.items)
        advance<Full>(p,
                      QuadAccess<E>{quad_at(item - p.cut.packs + p.cut.first_quad, p.cut.quads, p.args.dim)});
}

}  // namespace df::cuda
