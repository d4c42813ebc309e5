// Activations together with their derivatives, for training.
#pragma once
#include "functions.h"

namespace df::DF_ISA {

struct Sloped {
    vf value, slope;
};

DF_INLINE Sloped sigmoid_sloped(vf x) {
    const vf s = sigmoid(x);
    return {s, s * (splat(1.0f) - s)};
}
DF_INLINE Sloped tanh_sloped(vf x) {
    const vf t = tanh(x);
    return {t, fma(-t, t, splat(1.0f))};
}
DF_INLINE Sloped silu_sloped(vf x) {
    const vf s = sigmoid(x), y = x * s;
    return {y, fma(y, splat(1.0f) - s, s)};
}
DF_INLINE Sloped gelu_sloped(vf x) {
    vf bell;
    const vf cdf = normal_cdf(x, bell);
    return {x * cdf, fma(x * splat(0.39894228f), bell, cdf)};  // 1 / sqrt(2 pi)
}
// y = x s, s = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)
DF_INLINE Sloped gelu_tanh_sloped(vf x) {
    const vf s = splat(1.0f) / gelu_tanh_denominator(x), y = x * s;
    const vf v = max_keep_nan(splat(-12.0f), min_keep_nan(splat(12.0f), x));
    const vf two_u_slope = fma(v * v, splat(0.21406444f), splat(1.5957692f));
    return {y, fma(y * (splat(1.0f) - s), two_u_slope, s)};
}
DF_INLINE Sloped softplus_sloped(vf x) { return {softplus(x), sigmoid(x)}; }
// y = x w, w = tanh(softplus(x)); 1 - w = rest / (n + rest)
DF_INLINE Sloped mish_sloped(vf x) {
    vf n, rest;
    mish_parts(x, n, rest);
    const vf w = n / (n + rest), one_less = rest / (n + rest);
    return {x * w, fma(x * (one_less * (splat(1.0f) + w)), sigmoid(x), w)};
}

// use(f), f being the activation with its derivative on a vector; the derivative at a kink is torch's
template <class Use>
DF_INLINE void with_slope(Function function, float param, Use use) {
    const vf zero = splat(0.0f), one = splat(1.0f), k = splat(param);
    switch (function) {
        case Function::kRelu:
            return use([=](vf v) { return Sloped{max_keep_nan(zero, v), select(v > zero, one, zero)}; });
        case Function::kLeakyRelu:
            return use([=](vf v) { return Sloped{select(v > zero, v, v * k), select(v > zero, one, k)}; });
        case Function::kElu:
            return use([=](vf v) {
                const vf negative = k * expm1_negative(v);
                return Sloped{select(v > zero, v, negative), select(v > zero, one, negative + k)};
            });
        case Function::kTanh:
            return use([](vf v) { return tanh_sloped(v); });
        case Function::kSigmoid:
            return use([](vf v) { return sigmoid_sloped(v); });
        case Function::kSilu:
            return use([](vf v) { return silu_sloped(v); });
        case Function::kGelu:
            return use([](vf v) { return gelu_sloped(v); });
        case Function::kGeluTanh:
            return use([](vf v) { return gelu_tanh_sloped(v); });
        case Function::kSoftplus:
            return use([](vf v) { return softplus_sloped(v); });
        case Function::kMish:
            return use([](vf v) { return mish_sloped(v); });
        default:
            return use([=](vf v) { return Sloped{v, one}; });
    }
}

}  // namespace df::DF_ISA
