// exp of cpu/functions.h for a scalar, to the bit: no libm, no approximate unit.
#pragma once
#include "../noise.h"
#include "device.h"

namespace df::cuda {

__device__ __forceinline__ float power_of_two(int n) {  // n in [-126, 127]
    return ScalarLanes::as_float(uint32_t(n + 127) << 23);
}

// Zero and infinity beyond [-105, 90]; NaN stays.
__device__ __forceinline__ float exp(float x) {
    const float top = 90.0f < x ? 90.0f : x, v = -105.0f > top ? -105.0f : top;
    const float magic = 0x1.8p23f;  // adding it rounds to an integer, which its lowest bits are
    const float shifted = ScalarLanes::fma(v, 0x1.715476p0f, magic), n = shifted - magic;
    float r = ScalarLanes::fma(n, -0x1.62e400p-1f, v);
    r = ScalarLanes::fma(n, -0x1.7f7d1cp-20f, r);
    float p = 0.001390129f;
    p = ScalarLanes::fma(p, r, 0.008363171f);
    p = ScalarLanes::fma(p, r, 0.041666854f);
    p = ScalarLanes::fma(p, r, 0.16666578f);
    p = ScalarLanes::fma(p, r, 0.5f);
    p = ScalarLanes::fma(r * r, p, r) + 1.0f;
    const int power = v == v ? int(ScalarLanes::as_bits(shifted) - 0x4b400000u) : 0, half = power >> 1;
    return p * power_of_two(half) * power_of_two(power - half);
}

}  // namespace df::cuda
