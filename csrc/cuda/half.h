// 16-bit floats on the host, rounded to nearest, ties to even.
#pragma once
#include "../noise.h"

namespace df::cuda {

inline uint16_t to_bfloat16(float x) {  // finite
    const uint32_t u = ScalarLanes::as_bits(x);
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline uint16_t to_float16(float x) {  // |x| <= 65504
    const uint32_t u = ScalarLanes::as_bits(x), magnitude = u & 0x7fffffffu;
    // Below 2^-14 adding 1/2 leaves the value, rounded to a multiple of 2^-24, in the low mantissa bits.
    const uint32_t rounded = magnitude < 0x38800000u
                                 ? ScalarLanes::as_bits(ScalarLanes::as_float(magnitude) + 0.5f) - 0x3f000000u
                                 : (magnitude + 0xfffu + ((magnitude >> 13) & 1) - 0x38000000u) >> 13;
    return uint16_t(rounded | ((u >> 16) & 0x8000u));
}

inline float from_float16(uint16_t h) {  // finite
    const float magnitude = ScalarLanes::as_float(uint32_t(h & 0x7fffu) << 13) * 0x1p112f;
    return h & 0x8000u ? -magnitude : magnitude;
}

}  // namespace df::cuda
