// Functions of single features on vectors: the activations, their derivatives, and what else modules do.
// Within a few ulp of the exact one for every float (envelope: tests/test_activations.py,
// tests/test_functions.py).
#pragma once
#include "elementary.h"

namespace df::DF_ISA {

// tanh(x) = the result / denominator:  x P(x^2) / Q(x^2) on |x| <= 9.02, where it is 1 to the last bit
// (2.1e-8)
DF_INLINE vf tanh_numerator(vf x, vf& denominator) {
    const vf limit = splat(9.02f);
    const vf v = max_keep_nan(-limit, min_keep_nan(limit, x)), y = v * v;
    const float p[] = {1.0f, 0.13379753f, 0.0034940755f, 2.0584115e-05f, 1.3319869e-08f};
    const float q[] = {1.0f, 0.4671307f, 0.02587123f, 0.0003283158f, 7.762363e-07f};
    denominator = polynomial(y, q);
    return v * polynomial(y, p);
}

DF_INLINE vf tanh(vf x) {
    vf q;
    const vf p = tanh_numerator(x, q);
    return max_keep_nan(splat(-1.0f), min_keep_nan(splat(1.0f), p / q));
}

DF_INLINE vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }
DF_INLINE vf silu(vf x) { return x / (splat(1.0f) + exp(-x)); }

// Phi(x), and e = exp(-a^2/2) for a = min(|x|, 14.6). With the tail q = Phi(-a) = e g(a), g rational (6e-9):
// q for x < 0, 1 - q else, so the far negative side keeps its relative accuracy (1 + erf would cancel).
DF_INLINE vf normal_cdf(vf x, vf a, vf& e) {
    const float p[] = {0.5f, 0.43848953f, 0.18337913f, 0.040681727f, 0.0041234973f};
    const float q[] = {1.0f, 1.674864f, 1.2031016f, 0.46985075f, 0.10198034f, 0.010335957f};
    // a^2/2 = h + l exactly, exp(-(h + l)) = exp(-h) (1 - l)
    const vf half = splat(0.5f) * a, h = a * half, l = fma(a, half, -h);
    e = exp(-h);
    e = fma(-l, e, e);
    const vf tail = e * (polynomial(a, p) / polynomial(a, q));
    return select(x < splat(0.0f), tail, splat(1.0f) - tail);
}

DF_INLINE vf gelu(vf x) {
    vf e;
    return x * normal_cdf(x, min_keep_nan(splat(14.6f), abs(x)), e);
}

// exp(-2 u), u = sqrt(2/pi) (v + 0.044715 v^3) for |v| <= 12, with the argument carried as w + w_err: it
// reaches 100, where one rounding of it would cost exp a hundred ulp.
DF_INLINE vf gelu_tanh_exp(vf v) {
    const vf c1 = splat(-1.5957692f), c1_err = splat(4.534068e-08f);      // -2 sqrt(2/pi)
    const vf c2 = splat(-0.071354814f), c2_err = splat(-2.3988325e-09f);  // times 0.044715
    const vf t = v * v, t_err = fma(v, v, -t);
    const vf p = c2 * t, p_err = fma(c2, t, -p) + fma(c2, t_err, c2_err * t);
    const vf s = p + c1, c1_part = s - p, s_err = (p - (s - c1_part)) + (c1 - c1_part);  // two-sum
    const vf w = v * s, w_err = fma(v, s, -w) + v * (s_err + (p_err + c1_err));
    return exp(w) * (splat(1.0f) + w_err);
}

DF_INLINE vf gelu_tanh(vf x) { return x / (splat(1.0f) + gelu_tanh_exp(within(12.0f, x))); }

DF_INLINE vf softplus(vf x) { return max_keep_nan(splat(0.0f), x) + log1p_unit(exp(-abs(x))); }

// x tanh(softplus(x)) = x n / (n + 2), n = e (e + 2), e = exp(x); for x > 0 multiplied through by exp(-2x)
DF_INLINE vf mish(vf x) {
    const vf u = exp(-abs(x));
    const vf down = u * (u + splat(2.0f)), up = fma(splat(2.0f), u, splat(1.0f));
    const vf n = select(x > splat(0.0f), up, down);
    const vf rest = select(x > splat(0.0f), splat(2.0f) * u * u, splat(2.0f));
    return x * (n / (n + rest));
}

// ---- derivatives of the activations

DF_INLINE vf relu_slope(vf x) { return select(x <= splat(0.0f), splat(0.0f), splat(1.0f)); }
DF_INLINE vf leaky_relu_slope(vf x, vf slope) { return select(x > splat(0.0f), splat(1.0f), slope); }
DF_INLINE vf elu_slope(vf x, vf alpha) { return select(x > splat(0.0f), splat(1.0f), alpha * exp(x)); }

// e / (1 + e)^2, e = exp(-|x|)
DF_INLINE vf sigmoid_slope(vf x) {
    const vf e = exp(-abs(x)), d = splat(1.0f) + e;
    return e / (d * d);
}

// 1 - tanh(x)^2 is four times the sigmoid's at 2 x
DF_INLINE vf tanh_slope(vf x) { return splat(4.0f) * sigmoid_slope(x + x); }

// s + x s (1 - s) du, s = 1 / (1 + e), of whose complement e s and 1 - s keep their digits on one side each
DF_INLINE vf sigmoid_unit_slope(vf x, vf e, vf du) {
    const vf s = splat(1.0f) / (splat(1.0f) + e);
    return fma(x * s * select(x > splat(0.0f), e * s, splat(1.0f) - s), du, s);
}
DF_INLINE vf silu_slope(vf x) { return sigmoid_unit_slope(x, exp(-x), splat(1.0f)); }

// Phi(x) + x phi(x)
DF_INLINE vf gelu_slope(vf x) {
    vf e;
    const vf a = min_keep_nan(splat(14.6f), abs(x)), cdf = normal_cdf(x, a, e);
    return fma(select(x < splat(0.0f), -a, a) * splat(0.3989423f), e, cdf);
}

// du = 2 u': see gelu_tanh_exp
DF_INLINE vf gelu_tanh_slope(vf x) {
    const vf v = within(12.0f, x);
    return sigmoid_unit_slope(v, gelu_tanh_exp(v), fma(v * v, splat(0.21406445f), splat(1.5957692f)));
}

// t + x sigmoid(x) (1 - t^2), t = tanh(softplus(x)) = n / d, d = n + 2: see mish. The second term is
// 4 x e (1 + e) / d^2.
DF_INLINE vf mish_slope(vf x) {
    const vf u = exp(-abs(x)), one = splat(1.0f);
    const vf n = select(x > splat(0.0f), fma(splat(2.0f), u, one), u * (u + splat(2.0f)));
    const vf d = n + select(x > splat(0.0f), splat(2.0f) * u * u, splat(2.0f));
    const vf p = u * (one + u) * select(x > splat(0.0f), u, one);
    return (n + splat(4.0f) * within(128.0f, x) * p / d) / d;
}

// use(f), f being the function on a vector
template <class Use>
DF_INLINE void with_function(Function function, float param, Use use) {
    const vf zero = splat(0.0f), k = splat(param);
    switch (function) {
        case Function::kRelu:
            return use([=](vf v) { return max_keep_nan(zero, v); });
        case Function::kLeakyRelu:
            return use([=](vf v) { return select(v > zero, v, v * k); });
        case Function::kElu:
            return use([=](vf v) { return select(v > zero, v, k * expm1_negative(v)); });
        case Function::kTanh:
            return use([](vf v) { return tanh(v); });
        case Function::kSigmoid:
            return use([](vf v) { return sigmoid(v); });
        case Function::kSilu:
            return use([](vf v) { return silu(v); });
        case Function::kGelu:
            return use([](vf v) { return gelu(v); });
        case Function::kGeluTanh:
            return use([](vf v) { return gelu_tanh(v); });
        case Function::kSoftplus:
            return use([](vf v) { return softplus(v); });
        case Function::kMish:
            return use([](vf v) { return mish(v); });
        case Function::kSin:
            return use([](vf v) { return sine(v, 0); });
        case Function::kCos:
            return use([](vf v) { return sine(v, 1); });
        case Function::kExp:
            return use([](vf v) { return exp(v); });
        case Function::kLog:
            return use([](vf v) { return log(v); });
        case Function::kSqrt:
            return use([](vf v) { return sqrt(v); });
        case Function::kAbs:
            return use([](vf v) { return abs(v); });
        case Function::kReciprocal:
            return use([](vf v) { return splat(1.0f) / v; });
        case Function::kPow:
            return use([=](vf v) {
                for (int i = 0; i < W; ++i) v[i] = power_of(v[i], param);
                return v;
            });
        case Function::kClampMin:
            return use([=](vf v) { return max_keep_nan(k, v); });
        case Function::kClampMax:
            return use([=](vf v) { return min_keep_nan(k, v); });
        case Function::kAddConst:
            return use([=](vf v) { return v + k; });
        case Function::kMulConst:
            return use([=](vf v) { return v * k; });
        case Function::kReluSlope:
            return use([](vf v) { return relu_slope(v); });
        case Function::kLeakyReluSlope:
            return use([=](vf v) { return leaky_relu_slope(v, k); });
        case Function::kEluSlope:
            return use([=](vf v) { return elu_slope(v, k); });
        case Function::kTanhSlope:
            return use([](vf v) { return tanh_slope(v); });
        case Function::kSigmoidSlope:
            return use([](vf v) { return sigmoid_slope(v); });
        case Function::kSiluSlope:
            return use([](vf v) { return silu_slope(v); });
        case Function::kGeluSlope:
            return use([](vf v) { return gelu_slope(v); });
        case Function::kGeluTanhSlope:
            return use([](vf v) { return gelu_tanh_slope(v); });
        case Function::kMishSlope:
            return use([](vf v) { return mish_slope(v); });
        case Function::kExponential: {
            const double exact = log2_of(param);
            const float high = float(exact), low = float(exact - high);
            return use([=](vf v) { return exponential(v, high, low); });
        }
        case Function::kIdentity:
        case Function::kCount:
            return use([](vf v) { return v; });
    }
}

// N vectors side by side. A function is one long chain of dependent operations; three of them in flight take
// 0.65 of the time of one after the other (silu, AVX2), given a compiler that mixes them (-fschedule-insns).
constexpr int kAbreast = 3;
template <int N, class F>
DF_INLINE void map_vectors(F f, const float* x, float* y) {
    vf v[N];
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) v[k] = f(load(x + k * W));
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) store(y + k * W, v[k]);
}

// y[i] = f(x[i]), y may be x; a call handles a whole block, so the branch costs nothing. count: a multiple
// of W
[[maybe_unused]] static void apply(Function function, float param, const float* x, float* y, int count) {
    if (function == Function::kIdentity && x == y) return;
    with_function(function, param, [=](auto f) {
        int i = 0;
        for (; i + kAbreast * W <= count; i += kAbreast * W) map_vectors<kAbreast>(f, x + i, y + i);
        for (; i < count; i += W) map_vectors<1>(f, x + i, y + i);
    });
}

DF_INLINE Function slope_of(Function activation) {
    switch (activation) {
        case Function::kRelu:
            return Function::kReluSlope;
        case Function::kLeakyRelu:
            return Function::kLeakyReluSlope;
        case Function::kElu:
            return Function::kEluSlope;
        case Function::kTanh:
            return Function::kTanhSlope;
        case Function::kSigmoid:
            return Function::kSigmoidSlope;
        case Function::kSilu:
            return Function::kSiluSlope;
        case Function::kGelu:
            return Function::kGeluSlope;
        case Function::kGeluTanh:
            return Function::kGeluTanhSlope;
        case Function::kSoftplus:
            return Function::kSigmoid;
        case Function::kMish:
            return Function::kMishSlope;
        default:
            return Function::kCount;  // has none
    }
}

template <int N, class F, class G>
DF_INLINE void map_vectors(F f, G f_slope, const float* x, float* y, float* slope) {
    vf v[N], d[N];
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) v[k] = load(x + k * W);
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) d[k] = f_slope(v[k]);
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) {
        store(y + k * W, f(v[k]));
        store(slope + k * W, d[k]);
    }
}

// y[i] = f(x[i]) and slope[i] = f'(x[i]), with the bits of the two apart; what they have in common, exp above
// all, is computed once. y may be x; slope lies apart.
[[maybe_unused]] static void apply_with_slope(Function function, float param, const float* x, float* y,
                                              float* slope, int count) {
    const auto both = [=](auto f, auto f_slope) {
        int i = 0;
        for (; i + kAbreast * W <= count; i += kAbreast * W)
            map_vectors<kAbreast>(f, f_slope, x + i, y + i, slope + i);
        for (; i < count; i += W) map_vectors<1>(f, f_slope, x + i, y + i, slope + i);
    };
    switch (function) {
        case Function::kSilu:
            return both([](vf v) { return silu(v); }, [](vf v) { return silu_slope(v); });
        case Function::kGelu:
            return both([](vf v) { return gelu(v); }, [](vf v) { return gelu_slope(v); });
        case Function::kGeluTanh:
            return both([](vf v) { return gelu_tanh(v); }, [](vf v) { return gelu_tanh_slope(v); });
        case Function::kMish:
            return both([](vf v) { return mish(v); }, [](vf v) { return mish_slope(v); });
        case Function::kIdentity:
            return both([](vf v) { return v; }, [](vf) { return splat(1.0f); });
        default:  // the slope first: x may be gone after
            apply(slope_of(function), param, x, slope, count);
            apply(function, param, x, y, count);
    }
}

}  // namespace df::DF_ISA
