// Elements of tensors in float32, bfloat16 and float16, computed with in float32: read and written as packs
// of 16 bytes, or one by one where rows are not aligned or end.
#pragma once
#include <type_traits>

#include "../step_args.h"
#include "ptx.h"
#include "quads.cuh"

namespace df::cuda {

template <Dtype D>
struct Format {  // of 16 bits
    using T = uint16_t;
    static constexpr int kPack = 8;
    static constexpr ptx::Half kHalf = D == Dtype::kBfloat16 ? ptx::Half::kBf16 : ptx::Half::kF16;

    static __device__ __forceinline__ float value(T bits) { return ptx::from_half<kHalf>(bits); }
    static __device__ __forceinline__ T bits(float v) { return ptx::to_half<kHalf>(v); }

    static __device__ __forceinline__ void unpack(uint4 raw, float v[kPack]) {
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float2 two = ptx::unpack<kHalf>(words[k]);
            v[2 * k] = two.x;
            v[2 * k + 1] = two.y;
        }
    }
    static __device__ __forceinline__ uint4 pack(const float v[kPack]) {
        return {ptx::pack<kHalf>(v[0], v[1]), ptx::pack<kHalf>(v[2], v[3]), ptx::pack<kHalf>(v[4], v[5]),
                ptx::pack<kHalf>(v[6], v[7])};
    }
};

template <>
struct Format<Dtype::kFloat32> {
    using T = float;
    static constexpr int kPack = 4;

    static __device__ __forceinline__ float value(T v) { return v; }
    static __device__ __forceinline__ T bits(float v) { return v; }

    static __device__ __forceinline__ void unpack(uint4 raw, float v[kPack]) {
        v[0] = ScalarLanes::as_float(raw.x);
        v[1] = ScalarLanes::as_float(raw.y);
        v[2] = ScalarLanes::as_float(raw.z);
        v[3] = ScalarLanes::as_float(raw.w);
    }
    static __device__ __forceinline__ uint4 pack(const float v[kPack]) {
        return {ScalarLanes::as_bits(v[0]), ScalarLanes::as_bits(v[1]), ScalarLanes::as_bits(v[2]),
                ScalarLanes::as_bits(v[3])};
    }
};

// work(tag), tag the dtype as a constant.
template <Dtype D>
using Tag = std::integral_constant<Dtype, D>;

template <class Work>
void with_dtype(Dtype dtype, Work work) {
    switch (dtype) {
        case Dtype::kFloat32:
            return work(Tag<Dtype::kFloat32>{});
        case Dtype::kBfloat16:
            return work(Tag<Dtype::kBfloat16>{});
        case Dtype::kFloat16:
            return work(Tag<Dtype::kFloat16>{});
    }
}

template <class Work>
void with_every_dtype(Work work) {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16}) with_dtype(dtype, work);
}

// A pack: one access of 16 bytes a tensor.
template <class E>
struct PackAccess {
    static constexpr int kCount = E::kPack;
    using Raw = uint4;
    const Elements<kCount> at;

    __device__ __forceinline__ Raw load(const void* tensor) const {
        return *reinterpret_cast<const uint4*>(static_cast<const typename E::T*>(tensor) + at.first);
    }
    __device__ __forceinline__ void store(void* tensor, Raw raw) const {
        *reinterpret_cast<uint4*>(static_cast<typename E::T*>(tensor) + at.first) = raw;
    }
    static __device__ __forceinline__ void unpack(Raw raw, float v[kCount]) { E::unpack(raw, v); }
    static __device__ __forceinline__ Raw pack(const float v[kCount]) { return E::pack(v); }
};

// A quad, element by element.
template <class E>
struct QuadAccess {
    static constexpr int kCount = 4;
    struct Raw {
        typename E::T v[4];
    };
    const Elements<4> at;

    __device__ __forceinline__ Raw load(const void* tensor) const {
        const auto* from = static_cast<const typename E::T*>(tensor) + at.first;
        Raw raw{};
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (k < at.count) raw.v[k] = from[k];
        return raw;
    }
    __device__ __forceinline__ void store(void* tensor, Raw raw) const {
        auto* to = static_cast<typename E::T*>(tensor) + at.first;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (k < at.count) to[k] = raw.v[k];
    }
    static __device__ __forceinline__ void unpack(Raw raw, float v[4]) {
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = E::value(raw.v[k]);
    }
    static __device__ __forceinline__ Raw pack(const float v[4]) {
        Raw raw;
#pragma unroll
        for (int k = 0; k < 4; ++k) raw.v[k] = E::bits(v[k]);
        return raw;
    }
};

}  // namespace df::cuda
