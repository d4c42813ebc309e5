// The precisions of the kernels on tensor cores: how values become operands of mma.sync, and how good the
// activations are.
#pragma once
#include "../cpu/functions.h"
#include "ptx.h"

namespace df::cuda {

// Functions that networks rarely have: one copy for all, so that the loops stay small.
static __device__ __attribute__((noinline)) float rare_function(Function function, float param, float x) {
    with_function(function, param, [&x](auto f) { x = f(vf(x)).v; });
    return x;
}

template <int n, class F>
__device__ __forceinline__ void for_all(float (&v)[n], F f) {
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = f(v[i]);
}

// The same where the code of f is large: a few values at a time, and all of them move on.
template <int n, class F>
__device__ __forceinline__ void for_all_in_turn(float (&v)[n], F f) {
    constexpr int kTurn = n < 32 ? 1 : n / 16;
#pragma unroll 1
    for (int at = 0; at < n; at += kTurn) {
        float done[kTurn];
#pragma unroll
        for (int i = 0; i < kTurn; ++i) done[i] = f(v[i]);
#pragma unroll
        for (int i = 0; i < n; ++i) v[i] = i + kTurn < n ? v[(i + kTurn) % n] : done[(i + kTurn) % n];
    }
}

// One product of 16-bit values. Activations by tanh.approx, whose error is below the rounding to 16 bits.
template <ptx::Half type>
struct SixteenBits {
    static constexpr ptx::Half kFormat = type;
    static constexpr int kParts = 1;  // into which a value is split
    struct Operand {
        uint32_t a[4];
    };
    using Weight = uint2;
    struct Accumulator {
        float c[4];
    };
    static constexpr int kPieceWeights = 4;  // chain_wide.cuh

    static __device__ auto& part(Operand& in, int) { return in.a; }
    static __device__ auto& part(Accumulator& acc, int) { return acc.c; }

    static __device__ Weight weight_of(const uint4 (&piece)[2], int i) {
        return i % 2 ? make_uint2(piece[i / 2].z, piece[i / 2].w)
                     : make_uint2(piece[i / 2].x, piece[i / 2].y);
    }

    // An operand in shared memory: 16 bytes of each lane; `at` is this lane's.
    static __device__ Operand load(const uint4* at) { return {{at->x, at->y, at->z, at->w}}; }

    // The first or second eight columns of an operand, as those of the one there
    static __device__ void store(const Operand& in, int from, uint4* at, int half) {
        reinterpret_cast<uint2*>(at)[half] = make_uint2(in.a[2 * from], in.a[2 * from + 1]);
    }

    static __device__ Accumulator start(float2 row, float2 row8) { return {{row.x, row.y, row8.x, row8.y}}; }

    static __device__ void multiply(Accumulator& acc, const Operand& in, Weight w) {
        ptx::mma<type>(acc.c, in.a, w.x, w.y);
    }

    static __device__ void values(const Accumulator& acc, float (&v)[4]) {
#pragma unroll
        for (int r = 0; r < 4; ++r) v[r] = acc.c[r];
    }

    // Four values of an accumulator's layout as the first or second eight columns of an operand
    static __device__ void pack(const float (&v)[4], int half, Operand& out) {
        out.a[2 * half] = ptx::pack<type>(v[0], v[1]);
        out.a[2 * half + 1] = ptx::pack<type>(v[2], v[3]);
    }

    // Where x has at most eight columns the second eight hold what rounding the first left, times the same
    // weights: x enters with twice the bits at no cost.
    static __device__ void pack_rest(const float (&v)[4], Operand& out) {
        const float2 low = ptx::unpack<type>(out.a[0]), high = ptx::unpack<type>(out.a[1]);
        out.a[2] = ptx::pack<type>(v[0] - low.x, v[1] - low.y);
        out.a[3] = ptx::pack<type>(v[2] - high.x, v[3] - high.y);
    }

    template <int n>
    static __device__ void activate(Function function, float param, float (&v)[n]) {
        switch (function) {
            case Function::kIdentity:
                return;
            case Function::kRelu:
                return for_all(v, [](float x) { return 0.0f > x ? 0.0f : x; });
            case Function::kTanh:
                return for_all(v, [](float x) { return ptx::tanh_approx(x); });
            case Function::kSilu:  // x / (1 + exp(-x)) = h + h tanh(h), h = x / 2
                return for_all(v, [](float x) {
                    const float h = 0.5f * x;
                    return __fmaf_rn(h, ptx::tanh_approx(h), h);
                });
            case Function::kGeluTanh:  // h + h tanh(sqrt(2 / pi) (x + 0.044715 x^3))
                return for_all(v, [](float x) {
                    const float h = 0.5f * x, u = x * __fmaf_rn(0.035677408f, x * x, 0.7978845608f);
                    return __fmaf_rn(h, ptx::tanh_approx(u), h);
                });
            default:
                return for_all_in_turn(v, [=](float x) { return rare_function(function, param, x); });
        }
    }
};

// float32 by three products of float16: a value is high + low / 2^11, and of the four products of the parts
// the smallest is left out (Ootomo and Yokota 2022). Values beyond 65504 become NaN. The approximate
// reciprocal and power of two are within 2 ulp.
struct SplitFloat32 {
    static constexpr ptx::Half type = ptx::Half::kF16, kFormat = type;
    static constexpr int kParts = 2;  // high, low
    static constexpr float kScale = 2048.0f;
    struct Operand {
        uint32_t high[4], low[4];
    };
    using Weight = uint4;  // high b0 and b1, low b0 and b1
    struct Accumulator {
        float high[4], low[4];
    };
    static constexpr int kPieceWeights = 2;

    static __device__ auto& part(Operand& in, int i) { return i ? in.low : in.high; }
    static __device__ auto& part(Accumulator& acc, int i) { return i ? acc.low : acc.high; }

    static __device__ Weight weight_of(const uint4 (&piece)[2], int i) { return piece[i]; }

    // The high parts of all lanes, then the low ones
    static __device__ Operand load(const uint4* at) {
        const uint4 high = at[0], low = at[32];
        return {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
    }

    static __device__ void store(const Operand& in, int from, uint4* at, int half) {
        reinterpret_cast<uint2*>(at)[half] = make_uint2(in.high[2 * from], in.high[2 * from + 1]);
        reinterpret_cast<uint2*>(at + 32)[half] = make_uint2(in.low[2 * from], in.low[2 * from + 1]);
    }

    static __device__ Accumulator start(float2 row, float2 row8) {
        return {{row.x, row.y, row8.x, row8.y}, {0.0f, 0.0f, 0.0f, 0.0f}};
    }

    static __device__ void multiply(Accumulator& acc, const Operand& in, Weight w) {
        ptx::mma<type>(acc.low, in.low, w.x, w.y);
        ptx::mma<type>(acc.high, in.high, w.x, w.y);  // between two that depend on each other
        ptx::mma<type>(acc.low, in.high, w.z, w.w);
    }

    static __device__ void values(const Accumulator& acc, float (&v)[4]) {
#pragma unroll
        for (int r = 0; r < 4; ++r) v[r] = __fmaf_rn(acc.low[r], 1.0f / kScale, acc.high[r]);
    }

    static __device__ void pack_pair(float a, float b, uint32_t& high, uint32_t& low) {
        high = ptx::pack<type>(a, b);
        const float2 rounded = ptx::unpack<type>(high);
        low = ptx::pack<type>((a - rounded.x) * kScale, (b - rounded.y) * kScale);
    }

    static __device__ void pack(const float (&v)[4], int half, Operand& out) {
        pack_pair(v[0], v[1], out.high[2 * half], out.low[2 * half]);
        pack_pair(v[2], v[3], out.high[2 * half + 1], out.low[2 * half + 1]);
    }

    static __device__ void pack_rest(const float (&)[4], Operand& out) {
        out.high[2] = out.high[3] = out.low[2] = out.low[3] = 0;
    }

    template <int n>
    static __device__ void activate(Function function, float param, float (&v)[n]) {
        switch (function) {
            case Function::kIdentity:
                return;
            case Function::kRelu:
                return for_all(v, [](float x) { return 0.0f > x ? 0.0f : x; });
            case Function::kTanh:
                return for_all(v, [](float x) {
                    vf q;
                    const vf p = tanh_numerator(vf(x), q);
                    return p.v * ptx::rcp_approx(q.v);
                });
            case Function::kSilu:
                return for_all(
                    v, [](float x) { return x * ptx::rcp_approx(1.0f + ptx::ex2_approx(-1.44269504f * x)); });
            default:
                return for_all_in_turn(v, [=](float x) { return rare_function(function, param, x); });
        }
    }
};

}  // namespace df::cuda
